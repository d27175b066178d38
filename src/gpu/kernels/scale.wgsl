// out = x · factor. WEIGHT: times a learned number, or one for each element. One thread per four elements.
#include "step"
struct Params {
    stride4: u32,
    weight_first: u32,  // element of the buffer where the numbers are
    weight_step: u32,   // 0 where it is one for all
    factor: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
#ifdef WEIGHT
@group(1) @binding(4) var<storage, read> weight: array<f32>;
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = linear_id(group, groups) * 64u + thread;
    if (i >= step.tokens * p.stride4) { return; }
#ifdef WEIGHT
    let at = vec4<u32>(p.weight_first) + p.weight_step * (vec4<u32>(4u * (i % p.stride4)) + vec4<u32>(0u, 1u, 2u, 3u));
    out[i] = x[i] * (p.factor * vec4<f32>(weight[at.x], weight[at.y], weight[at.z], weight[at.w]));
#else
    out[i] = x[i] * p.factor;
#endif
}
