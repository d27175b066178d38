// Copies a buffer, sixteen bytes a thread: the measured ceiling of memory bandwidth.
#include "step"
struct Params {
    count: u32, // vec4s
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<vec4<u32>>;
@group(1) @binding(3) var<storage, read_write> out: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = linear_id(group, groups) * 256u + thread;
    if (i < p.count) { out[i] = x[i]; }
}
