// out = x / sqrt(mean(x²) + eps) · (weight + offset), over groups of p.k elements.
// One workgroup per token and group; with OUT_F16 there is one group per row.
// ADD: out = residual + multiplier · that.
#include "step"
#include "pack"
override WG: u32 = 128u;
struct Params {
    width: u32,
    k: u32,
    in_stride: u32,
    out_stride: u32,
    eps: f32,
    offset: f32,
    weight_first: u32,  // element of the buffer where the weight begins
    multiplier: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> norm_weight: array<f32>;
#ifdef OUT_F16
@group(0) @binding(4) var<storage, read_write> out: array<u32>;
#else
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#endif
#ifdef ADD
@group(0) @binding(5) var<storage, read> residual: array<f32>;
#endif
#include "norm"

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
    let first = token * p.in_stride + begin;
    let scale = norm_scale(first, p.k);
#ifdef OUT_F16
    for (var i = thread; i < (p.k + 1u) / 2u; i += WG) {
        let a = normed(first, 2u * i, p.weight_first, scale);
        let b = normed(first, 2u * i + 1u, p.weight_first, scale);
        out[token * (p.out_stride / 2u) + i] = pack2(a, b);
    }
#else
    for (var i = thread; i < p.k; i += WG) {
        let to = token * p.out_stride + begin + i;
        let y = normed(first, i, p.weight_first, scale);
#ifdef ADD
        out[to] = residual[to] + p.multiplier * y;
#else
        out[to] = y;
#endif
    }
#endif
}
