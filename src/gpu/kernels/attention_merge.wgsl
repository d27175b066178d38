// Puts the runs of attention_runs.wgsl together: one workgroup for each token and query head.
// SINKS: each head has a score more, which has no value.
#include "step"
#include "pack"
#include "math"
override WG: u32 = 128u;
override D4: u32 = 32u;   // fours of a head
struct Params {
    heads: u32,
    head_dim: u32,
    window: u32,     // 0: none
    out_stride: u32,
    runs: u32,       // of a head, for which `partials` has room
    sinks_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> partials: array<vec4<f32>>;
#ifdef OUT_F16
@group(1) @binding(3) var<storage, read_write> out: array<vec2<u32>>;
#else
@group(1) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
#endif
#ifdef SINKS
@group(1) @binding(4) var<storage, read> sinks: array<f32>;
#endif
#include "origins"
#include "visible"
#include "runs"

var<workgroup> ends: array<vec2<f32>, MOST_RUNS>;    // highest score and sum of weights
var<workgroup> factors: array<f32, MOST_RUNS>;
var<workgroup> mixed: array<vec4<f32>, WG>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) here: u32,
) {
    let item = linear_id(group, groups);
    let token = item / p.heads;
    if (token >= step.tokens) { return; }
    let at = position_of(token);
    let count = at + 1u - first_visible(at);
    let length = run_length(count);
    let runs = (count + length - 1u) / length;
    let first = item * p.runs * (D4 + 1u);
    let parts = WG / D4;
    let part = here / D4;
    let column = first + here % D4;
    // On their way while the factors are computed.
    let ahead_0 = partials[column + min(part, runs - 1u) * (D4 + 1u)];
    let ahead_1 = partials[column + min(part + parts, runs - 1u) * (D4 + 1u)];
    let ahead_2 = partials[column + min(part + 2u * parts, runs - 1u) * (D4 + 1u)];
    let ahead_3 = partials[column + min(part + 3u * parts, runs - 1u) * (D4 + 1u)];
    if (here < runs) { ends[here] = partials[first + here * (D4 + 1u) + D4].xy; }
    workgroupBarrier();
    var highest = ends[0].x;
    for (var i = 1u; i < runs; i++) { highest = max(highest, ends[i].x); }
#ifdef SINKS
    let sink = sinks[p.sinks_first + item % p.heads];
    highest = max(highest, sink);
#endif
    if (here < runs) { factors[here] = exp_f32(ends[here].x - highest); }
    workgroupBarrier();
#ifdef SINKS
    var total = exp_f32(sink - highest);
#else
    var total = 0.0;
#endif
    for (var i = 0u; i < runs; i++) { total += ends[i].y * factors[i]; }
    var sum = vec4<f32>(0.0);
    if (part < parts) {
        if (part < runs) { sum += factors[part] * ahead_0; }
        if (part + parts < runs) { sum += factors[part + parts] * ahead_1; }
        if (part + 2u * parts < runs) { sum += factors[part + 2u * parts] * ahead_2; }
        if (part + 3u * parts < runs) { sum += factors[part + 3u * parts] * ahead_3; }
        for (var i = part + 4u * parts; i < runs; i += parts) { sum += factors[i] * partials[column + i * (D4 + 1u)]; }
    }
    mixed[here] = sum;
    workgroupBarrier();
    if (here >= D4) { return; }
    for (var i = 1u; i < parts; i++) { sum += mixed[i * D4 + here]; }
    sum /= total;
    let to = token * (p.out_stride / 4u) + (item % p.heads) * D4 + here;
#ifdef OUT_F16
    out[to] = vec2<u32>(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
#else
    out[to] = sum;
#endif
}
