// out = Σ over the chosen experts of a token, weight · row, in ascending order of experts. One thread per four elements.
// ADD: out = residual + multiplier · the sum.
#include "step"
struct Params {
    width4: u32,          // row of an expert, and of out, in fours
    experts: u32,
    chosen: u32,
    numbers_stride: u32,
    weights_stride: u32,
    multiplier: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read> numbers: array<f32>;
@group(1) @binding(4) var<storage, read> weights: array<f32>;
@group(1) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
#ifdef ADD
@group(1) @binding(6) var<storage, read> residual: array<vec4<f32>>;
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = linear_id(group, groups) * 64u + thread;
    if (i >= step.tokens * p.width4) { return; }
    let token = i / p.width4;
    var sum = vec4<f32>(0.0);
    for (var c = 0u; c < p.chosen; c++) {
        let number = numbers[token * p.numbers_stride + c];
        if (number >= 0.0 && number < f32(p.experts)) {
            let weight = weights[token * p.weights_stride + u32(number)];
            sum += weight * x[(token * p.chosen + c) * p.width4 + i % p.width4];
        }
    }
#ifdef ADD
    out[i] = residual[i] + p.multiplier * sum;
#else
    out[i] = sum;
#endif
}
