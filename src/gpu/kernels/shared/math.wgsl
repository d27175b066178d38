// Functions that WGSL leaves too loose, to about one unit in the last place.
// Polynomials for small arguments: the Cephes single-precision approximations (expf, tanhf, erff).

// The built-in exp may be off by 3 + 2·|x| units: much, for the tails of a softmax.
fn exp_f32(x: f32) -> f32 {
    // clamp would turn NaN into a number
    if ((bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u) { return x; }
    if (x < -87.0) { return exp(x); }
    let y = min(x, 89.0);
    let n = floor(y * 1.44269504 + 0.5);
    // ln 2 in two parts, so that what is left over keeps its bits
    let r = (y - n * 0.693359375) + n * 2.12194440e-4;
    let series = ((((1.9875691500e-4 * r + 1.3981999507e-3) * r + 8.3334519073e-3) * r + 4.1665795894e-2) * r
        + 1.6666665459e-1) * r + 5.0000001201e-1;
    // 2^n in two factors: n may be 128
    let half = i32(n) / 2;
    return (series * r * r + r + 1.0) * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(i32(n) - half + 127) << 23u);
}

fn tanh_f32(x: f32) -> f32 {
    let a = abs(x);
    if (a < 0.625) {
        let z = x * x;
        let poly = ((((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
            - 3.33332819422e-1) * z;
        return poly * x + x;
    }
    // min would turn NaN into a number
    if ((bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u) { return x; }
    // beyond 10 tanh is 1 in f32; clamped so that exp stays finite
    let e = exp_f32(2.0 * min(a, 10.0));
    return select(1.0, -1.0, x < 0.0) * (1.0 - 2.0 / (e + 1.0));
}

fn erf_f32(x: f32) -> f32 {
    let a = abs(x);
    if (a < 1.0) {
        let z = x * x;
        return x * ((((((7.853861353153693e-5 * z - 8.010193625184903e-4) * z + 5.188327685732524e-3) * z
            - 2.685381193529856e-2) * z + 1.128358514861418e-1) * z - 3.761262582423300e-1) * z + 1.128379165726710);
    }
    // erfc by the rational Chebyshev fit of Numerical Recipes (6.2), relative error below 1.2e-7
    let t = 1.0 / (1.0 + 0.5 * a);
    let poly = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    let erfc = t * exp_f32(-a * a + poly);
    return select(1.0, -1.0, x < 0.0) * (1.0 - erfc);
}

fn soft_cap(x: f32, cap: f32) -> f32 {
    return cap * tanh_f32(x / cap);
}
