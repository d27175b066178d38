// out = cap · tanh(x / cap) over rows of logits. One thread per element.
#include "step"
#include "math"
struct Params {
    stride: u32,
    cap: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<f32>;
@group(1) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = linear_id(group, groups) * 64u + thread;
    if (i >= step.head_rows * p.stride) { return; }
    out[i] = soft_cap(x[i], p.cap);
}
