// ACT: 0 SiLU, 1 GELU by tanh, 2 GELU by erf; 3, of a gate only: SiLU of ALPHA · x, divided by ALPHA, with gate and up cut off at LIMIT.
#include "math"
override ACT: u32 = 0u;
override ALPHA: f32 = 1.0;
override LIMIT: f32 = 1.0;

fn activation(x: f32) -> f32 {
    switch ACT {
        case 0u: { return x / (1.0 + exp_f32(-x)); }
        case 1u: { return 0.5 * x * (1.0 + tanh_f32(0.7978845608028654 * (x + 0.044715 * x * x * x))); }
        case 2u: { return 0.5 * x * (1.0 + erf_f32(x * 0.7071067811865476)); }
        default: {
            let g = at_most(x);
            return g / (1.0 + exp_f32(-(g * ALPHA)));
        }
    }
}

fn gated(gate: f32, up: f32) -> f32 {
    if (ACT == 3u) { return activation(gate) * (1.0 - at_most(-at_most(up))); }
    return activation(gate) * up;
}

// The smaller one; NaN stays.
fn at_most(x: f32) -> f32 {
    return select(x, LIMIT, x > LIMIT);
}
