// out = x / sqrt(mean(x²) + eps) · (weight + offset), over groups of p.k elements.
// One workgroup per token and group. ROW: there is one group per row, whose threads take eight elements at a time; OUT_F16 and
// ADD are for these.
// ADD: out = residual + multiplier · the norm; SCALED: that, times a factor and a learned number. UNIT: there is no weight to multiply by.
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
    scale_first: u32,   // element of the buffer where the learned number is
    factor: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
#ifdef ROW
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read> norm_weight: array<vec4<f32>>;
#ifdef OUT_F16
@group(1) @binding(4) var<storage, read_write> out: array<vec4<u32>>;
#else
@group(1) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
#endif
#ifdef ADD
@group(1) @binding(5) var<storage, read> residual: array<vec4<f32>>;
#endif
#ifdef SCALED
@group(1) @binding(6) var<storage, read> learned: array<f32>;
#endif
#include "norm_row"
#else
@group(1) @binding(2) var<storage, read> x: array<f32>;
#ifdef UNIT
#else
@group(1) @binding(3) var<storage, read> norm_weight: array<f32>;
#endif
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#include "norm"
#endif

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
#ifdef ROW
    let first = token * (p.in_stride / 8u);
    let of_row = row_scale(first);
    for (var i = thread; 8u * i < p.k; i += WG) {
        let v = normed8(first, i, of_row);
#ifdef OUT_F16
        let to = token * (p.out_stride / 8u) + i;
        out[to] = vec4<u32>(pack2(v.a.x, v.a.y), pack2(v.a.z, v.a.w), pack2(v.b.x, v.b.y), pack2(v.b.z, v.b.w));
#else
        let to = token * (p.out_stride / 4u) + 2u * i;
#ifdef ADD
        var sum = Row8(residual[to] + p.multiplier * v.a, residual[to + 1u] + p.multiplier * v.b);
#ifdef SCALED
        let scale = p.factor * learned[p.scale_first];
        sum = Row8(sum.a * scale, sum.b * scale);
#endif
        out[to] = sum.a;
        out[to + 1u] = sum.b;
#else
        out[to] = v.a;
        out[to + 1u] = v.b;
#endif
#endif
    }
#else
    let begin = (item % per_row) * p.k;
    let scale = norm_scale(token * p.in_stride + begin, p.k);
    for (var i = thread; i < p.k; i += WG) {
        out[token * p.out_stride + begin + i] = normed(token * p.in_stride + begin, i, p.weight_first, scale);
    }
#endif
}
