// probs[h, t] = softmax of scores[h, t] over visible positions, masked cells 0. One workgroup per row.
// SINKS: each head has a score more, whose probability is left out.
#include "step"
#include "math"
override WG: u32 = 128u;
struct Params {
    heads: u32,
    window: u32,
    sinks_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> scores: array<f32>;
@group(1) @binding(3) var<storage, read_write> out: array<f32>;
#ifdef SINKS
@group(1) @binding(4) var<storage, read> sinks: array<f32>;
#endif
#include "visible"
#include "reduce"

const LOWEST = -3.0e38;

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
    let row = linear_id(group, groups);
    if (row >= p.heads * step.tokens) { return; }
    let positions = step.position + step.tokens;
    let at = step.position + row % step.tokens;
    let begin = first_visible(at);
    let first = row * positions;
    var highest = LOWEST;
    for (var i = begin + thread; i <= at; i += WG) { highest = max(highest, scores[first + i]); }
    highest = workgroup_max(highest);
#ifdef SINKS
    let sink = sinks[p.sinks_first + row / step.tokens];
    highest = max(highest, sink);
#endif
    var total = 0.0;
    for (var i = begin + thread; i <= at; i += WG) { total += exp_f32(scores[first + i] - highest); }
    total = workgroup_sum(total);
#ifdef SINKS
    total += exp_f32(sink - highest);
#endif
    for (var i = thread; i < positions; i += WG) {
        out[first + i] = select(0.0, exp_f32(scores[first + i] - highest) / total, i >= begin && i <= at);
    }
}
