// out = a + multiplier · b. One thread per four elements.
#include "step"
struct Params {
    stride4: u32,
    multiplier: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> a: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read> b: array<vec4<f32>>;
@group(1) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = linear_id(group, groups) * 64u + thread;
    if (i >= step.tokens * p.stride4) { return; }
    out[i] = a[i] + p.multiplier * b[i];
}
