// Rows that a matrix product reads, eight elements at a time; X_F16 when they are stored as f16.
// With TAIL the width is no multiple of eight and elements from p.k on are zero.
override TAIL: bool = false;
#ifdef X_F16
@group(1) @binding(2) var<storage, read> x: array<vec4<u32>>;
fn input8_raw(index: u32) -> Eight {
    let v = x[index];
    return Eight(unpack4(v.xy), unpack4(v.zw));
}
#else
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
fn input8_raw(index: u32) -> Eight {
    return Eight(x[2u * index], x[2u * index + 1u]);
}
#endif

// Elements 8·k8 … of a row that begins at `row8` (in eights).
fn input8(row8: u32, k8: u32) -> Eight {
    let v = input8_raw(row8 + k8);
    if (!TAIL) { return v; }
    let first = vec4<u32>(8u * k8) + vec4<u32>(0u, 1u, 2u, 3u);
    let zero = vec4<f32>(0.0);
    return Eight(
        select(zero, v.a, first < vec4<u32>(p.k)),
        select(zero, v.b, first + vec4<u32>(4u) < vec4<u32>(p.k)),
    );
}
