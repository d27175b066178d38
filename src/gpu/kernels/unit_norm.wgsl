// out = x / sqrt(mean(x²) + eps), over groups of p.k elements. One workgroup per token and group.
#include "step"
override WG: u32 = 64u;
struct Params {
    width: u32,
    k: u32,
    in_stride: u32,
    out_stride: u32,
    eps: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<f32>;
@group(1) @binding(3) var<storage, read_write> out: array<f32>;
#include "reduce"

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_lanes: u32,
    @builtin(subgroup_id) subgroup: u32,
#endif
) {
    thread = index;
#ifdef SUBGROUPS
    lane = subgroup_lane;
    lanes = subgroup_lanes;
    thread = subgroup * subgroup_lanes + subgroup_lane;
#endif
    let per_row = p.width / p.k;
    let item = linear_id(group, groups);
    let token = item / per_row;
    if (token >= step.tokens) { return; }
    let begin = (item % per_row) * p.k;
    let origin = token * p.in_stride + begin;
    var squares = 0.0;
    for (var i = thread; i < p.k; i += WG) { squares += x[origin + i] * x[origin + i]; }
    let scale = 1.0 / sqrt(workgroup_sum(squares) / f32(p.k) + p.eps);
    for (var i = thread; i < p.k; i += WG) { out[token * p.out_stride + begin + i] = x[origin + i] * scale; }
}
