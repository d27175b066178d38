// out = x · sigmoid(s), s one number for each row, or EACH element. One thread per four elements.
#include "step"
#include "math"
struct Params {
    stride4: u32,
    scale_stride: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
#ifdef EACH
@group(1) @binding(3) var<storage, read> scale: array<vec4<f32>>;
#else
@group(1) @binding(3) var<storage, read> scale: array<f32>;
#endif
@group(1) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = linear_id(group, groups) * 64u + thread;
    if (i >= step.tokens * p.stride4) { return; }
#ifdef EACH
    let s = scale[i];
    out[i] = x[i] * (1.0 / (1.0 + vec4<f32>(exp_f32(-s.x), exp_f32(-s.y), exp_f32(-s.z), exp_f32(-s.w))));
#else
    let s = scale[(i / p.stride4) * p.scale_stride];
    out[i] = x[i] * (1.0 / (1.0 + exp_f32(-s)));
#endif
}
