// Stored weights, eight at a time. Rows are padded to a multiple of eight with zeros.
// Set one of W_F32, W_F16, W_BF16; `w` is declared by the kernel as array<vec4<u32>>.
struct Eight { a: vec4<f32>, b: vec4<f32> }

fn weight8(index: u32) -> Eight {
#ifdef W_F32
    return Eight(bitcast<vec4<f32>>(w[2u * index]), bitcast<vec4<f32>>(w[2u * index + 1u]));
#endif
#ifdef W_F16
    let v = w[index];
    return Eight(unpack4(v.xy), unpack4(v.zw));
#endif
#ifdef W_BF16
    let v = w[index];
    let low = v << vec4<u32>(16u);
    let high = v & vec4<u32>(0xffff0000u);
    return Eight(
        bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y)),
        bitcast<vec4<f32>>(vec4<u32>(low.z, high.z, low.w, high.w)),
    );
#endif
}
