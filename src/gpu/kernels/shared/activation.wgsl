// ACT: 0 SiLU, 1 GELU by tanh, 2 GELU by erf.
#include "math"
override ACT: u32 = 0u;

fn activation(x: f32) -> f32 {
    switch ACT {
        case 0u: { return x / (1.0 + exp_f32(-x)); }
        case 1u: { return 0.5 * x * (1.0 + tanh_f32(0.7978845608028654 * (x + 0.044715 * x * x * x))); }
        default: { return 0.5 * x * (1.0 + erf_f32(x * 0.7071067811865476)); }
    }
}
