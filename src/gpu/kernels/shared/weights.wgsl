// Stored weights, eight at a time. Rows of plain values are padded to a multiple of eight with zeros.
// Set one of W_F32, W_F16, W_BF16, or PACKED; `w` is declared by the kernel as array<vec4<u32>>, `p` has k8 and row4.
#ifdef PACKED
#include "packed"
#else
struct Eight { a: vec4<f32>, b: vec4<f32> }

// Where a row begins, for weight8.
fn row_start(row: u32) -> u32 {
    return row * p.k8;
}

// Eight weights as they are stored, for reading ahead of use.
#ifdef W_F32
struct Stored8 { a: vec4<u32>, b: vec4<u32> }
fn stored8(row: u32, k8: u32) -> Stored8 {
    return Stored8(w[2u * (row + k8)], w[2u * (row + k8) + 1u]);
}
fn eight(v: Stored8) -> Eight {
    return Eight(bitcast<vec4<f32>>(v.a), bitcast<vec4<f32>>(v.b));
}
#else
alias Stored8 = vec4<u32>;
fn stored8(row: u32, k8: u32) -> Stored8 {
    return w[row + k8];
}
#endif
#ifdef W_F16
fn eight(v: Stored8) -> Eight {
    return Eight(unpack4(v.xy), unpack4(v.zw));
}
#endif
#ifdef W_BF16
fn eight(v: Stored8) -> Eight {
    let low = v << vec4<u32>(16u);
    let high = v & vec4<u32>(0xffff0000u);
    return Eight(
        bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y)),
        bitcast<vec4<f32>>(vec4<u32>(low.z, high.z, low.w, high.w)),
    );
}
#endif

// Weights 8·k8 … of the row that begins there.
fn weight8(row: u32, k8: u32) -> Eight {
    return eight(stored8(row, k8));
}
#endif
