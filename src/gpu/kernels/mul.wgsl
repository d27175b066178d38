// out = a · b, of `width` elements of each row of a from `left` on and of b from `right` on. One thread per element.
#include "step"
struct Params {
    width: u32,
    a_stride: u32,
    b_stride: u32,
    out_stride: u32,
    left: u32,
    right: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> a: array<f32>;
@group(1) @binding(3) var<storage, read> b: array<f32>;
@group(1) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / p.width;
    if (token >= step.tokens) { return; }
    let i = item % p.width;
    out[token * p.out_stride + i] = a[token * p.a_stride + p.left + i] * b[token * p.b_stride + p.right + i];
}
