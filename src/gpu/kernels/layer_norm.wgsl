// out = (x - m) / sqrt(mean((x - m)²) + eps) · weight + bias, m = mean(x), over groups of p.k elements.
// One workgroup per token and group; a thread takes two elements at a time. OUT_F16 is for one group per row. BIAS: there is one.
#include "step"
#include "pack"
override WG: u32 = 128u;
struct Params {
    width: u32,
    k: u32,
    in_stride: u32,
    out_stride: u32,
    eps: f32,
    weight_first: u32,  // element of the buffer where the weight begins
    bias_first: u32,
    weight_step: u32,   // from the weights of a group to those of the next; 0 where all have the same
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<f32>;
@group(1) @binding(3) var<storage, read> norm_weight: array<f32>;
#ifdef OUT_F16
@group(1) @binding(4) var<storage, read_write> out: array<u32>;
#else
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#endif
#ifdef BIAS
@group(1) @binding(5) var<storage, read> norm_bias: array<f32>;
#endif
#include "reduce"

// Element i of the group whose weights begin `own` after the first, from its element less the mean.
fn normed(centred: f32, i: u32, own: u32, scale: f32) -> f32 {
    let y = centred * scale * norm_weight[p.weight_first + own + i];
#ifdef BIAS
    return y + norm_bias[p.bias_first + own + i];
#else
    return y;
#endif
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
    let per_row = p.width / p.k;
    let item = linear_id(group, groups);
    let token = item / per_row;
    if (token >= step.tokens) { return; }
    let begin = (item % per_row) * p.k;
    let first = token * p.in_stride + begin;
    var sum = 0.0;
    for (var i = thread; i < p.k; i += WG) { sum += x[first + i]; }
    let mean = workgroup_sum(sum) / f32(p.k);
    var squares = 0.0;
    for (var i = thread; i < p.k; i += WG) {
        let centred = x[first + i] - mean;
        squares += centred * centred;
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares) / f32(p.k) + p.eps);
    let own = (item % per_row) * p.weight_step;
    for (var i = 2u * thread; i < p.k; i += 2u * WG) {
        let a = normed(x[first + i] - mean, i, own, scale);
        var b = 0.0;
        if (i + 1u < p.k) { b = normed(x[first + i + 1u] - mean, i + 1u, own, scale); }
#ifdef OUT_F16
        out[(token * p.out_stride + i) / 2u] = pack2(a, b);
#else
        let to = token * p.out_stride + begin + i;
        out[to] = a;
        if (i + 1u < p.k) { out[to + 1u] = b; }
#endif
    }
}
