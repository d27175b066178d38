// f16 storage without the f16 feature: two halves in a u32. Rounds to nearest, ties to even, on every
// adapter; pack2x16float leaves the rounding to the driver.
fn f16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) { // 65536 and above, infinite, NaN
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if (magnitude < 0x38800000u) { // below 2^-14: adding 0.5 rounds to multiples of 2^-24
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
    }
    let odd = (magnitude >> 13u) & 1u;
    return sign | ((magnitude + 0xfffu + odd - 0x38000000u) >> 13u);
}

fn pack2(a: f32, b: f32) -> u32 {
    return f16_bits(a) | (f16_bits(b) << 16u);
}

fn unpack4(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}
