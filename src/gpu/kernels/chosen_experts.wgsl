// The numbers of the experts whose weight is not 0, ascending, -1 after them. One thread per token: this is for weights that
// somebody changed; a router lists what it chose itself.
#include "step"
struct Params {
    experts: u32,
    chosen: u32,
    in_stride: u32,
    out_stride: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> weights: array<f32>;
@group(1) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let token = linear_id(group, groups) * 64u + thread;
    if (token >= step.tokens) { return; }
    var found = 0u;
    for (var e = 0u; e < p.experts && found < p.chosen; e++) {
        // As bits, so that NaN counts and -0 does not.
        if ((bitcast<u32>(weights[token * p.in_stride + e]) & 0x7fffffffu) != 0u) {
            out[token * p.out_stride + found] = f32(e);
            found += 1u;
        }
    }
    for (; found < p.chosen; found++) { out[token * p.out_stride + found] = -1.0; }
}
