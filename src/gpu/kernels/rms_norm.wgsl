// out = x / sqrt(mean(x²) + eps) · (weight + offset), over groups of p.group elements.
// One workgroup per token and group; with OUT_F16 there is one group per row.
#include "step"
#include "pack"
override WG: u32 = 256u;
struct Params {
    width: u32,
    group: u32,
    in_stride: u32,
    out_stride: u32,
    eps: f32,
    offset: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
#ifdef OUT_F16
@group(0) @binding(4) var<storage, read_write> out: array<u32>;
#else
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#endif
#include "reduce"

fn normed(first: u32, i: u32, scale: f32) -> f32 {
    if (i >= p.group) { return 0.0; }
    return x[first + i] * scale * (weight[i] + p.offset);
}

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
    let per_row = p.width / p.group;
    let item = linear_id(group, groups);
    let token = item / per_row;
    if (token >= step.tokens) { return; }
    let begin = (item % per_row) * p.group;
    let first = token * p.in_stride + begin;
    var squares = 0.0;
    for (var i = thread; i < p.group; i += WG) { squares += x[first + i] * x[first + i]; }
    let scale = 1.0 / sqrt(workgroup_sum(squares) / f32(p.group) + p.eps);
#ifdef OUT_F16
    for (var i = thread; i < (p.group + 1u) / 2u; i += WG) {
        out[token * (p.out_stride / 2u) + i] = pack2(normed(first, 2u * i, scale), normed(first, 2u * i + 1u, scale));
    }
#else
    for (var i = thread; i < p.group; i += WG) { out[token * p.out_stride + begin + i] = normed(first, i, scale); }
#endif
}
