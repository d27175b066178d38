// Puts the runs of attention_runs.wgsl together: one workgroup for each token and query head.
#include "step"
#include "pack"
#include "math"
override WG: u32 = 128u;
struct Params {
    heads: u32,
    head_dim: u32,
    window: u32,     // 0: none
    out_stride: u32,
    runs: u32,       // of a head, for which `partials` has room
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> partials: array<vec4<f32>>;
#ifdef OUT_F16
@group(1) @binding(3) var<storage, read_write> out: array<vec2<u32>>;
#else
@group(1) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
#endif
#include "origins"
#include "visible"
#include "runs"

var<workgroup> ends: array<vec2<f32>, MOST_RUNS>; // highest score and sum of weights; later the factor
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
    let d4 = p.head_dim / 4u;
    let first = item * p.runs * (d4 + 1u);
    if (here < runs) { ends[here] = partials[first + here * (d4 + 1u) + d4].xy; }
    workgroupBarrier();
    var highest = ends[0].x;
    for (var i = 1u; i < runs; i++) { highest = max(highest, ends[i].x); }
    var total = 0.0;
    for (var i = 0u; i < runs; i++) { total += ends[i].y * exp_f32(ends[i].x - highest); }
    let parts = WG / d4;
    let part = here / d4;
    var sum = vec4<f32>(0.0);
    if (part < parts) {
        for (var i = part; i < runs; i += parts) {
            sum += exp_f32(ends[i].x - highest) * partials[first + i * (d4 + 1u) + here % d4];
        }
    }
    mixed[here] = sum;
    workgroupBarrier();
    if (here >= d4) { return; }
    for (var i = 1u; i < parts; i++) { sum += mixed[i * d4 + here]; }
    sum /= total;
    let to = token * (p.out_stride / 4u) + (item % p.heads) * d4 + here;
#ifdef OUT_F16
    out[to] = vec2<u32>(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
#else
    out[to] = sum;
#endif
}
