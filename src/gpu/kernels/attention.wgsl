// Scores, softmax and mixture of values in one pass over the cache, nothing materialised: one workgroup per
// query head and token walks the visible positions in tiles of WG, with a running maximum and sum
// (online softmax, Milakov and Gimelshein 2018).
// SINKS: each head has a score more, which has no value.
#include "step"
#include "pack"
#include "math"
override WG: u32 = 128u;
struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    slab: u32,       // which of a sequence's slabs
    window: u32,     // 0: none
    in_stride: u32,
    out_stride: u32,
    scale: f32,
    softcap: f32,    // 0: none
    sinks_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read> keys: array<Four>;
@group(1) @binding(4) var<storage, read> values: array<Four>;
#ifdef OUT_F16
@group(1) @binding(5) var<storage, read_write> out: array<vec2<u32>>;
#else
@group(1) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
#endif
#ifdef SINKS
@group(1) @binding(6) var<storage, read> sinks: array<f32>;
#endif
#include "cache"
#include "visible"
#include "reduce"

const LOWEST = -3.0e38;
var<workgroup> query: array<vec4<f32>, 128>;
var<workgroup> weights: array<f32, WG>;
var<workgroup> mixed: array<vec4<f32>, WG>;

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
    let item = linear_id(group, groups);
    let token = item / p.heads;
    if (token >= step.tokens) { return; }
    let head = item % p.heads;
    let kv_head = head / (p.heads / p.kv_heads);
    let d4 = p.head_dim / 4u;            // vec4s of a head
    let row4 = p.kv_heads * d4;          // vec4s of a cached position
    if (thread < d4) { query[thread] = q[token * (p.in_stride / 4u) + head * d4 + thread]; }
    workgroupBarrier();

    let at = position_of(token);
    let slab = slab_of(token);
    let begin = first_visible(at);
    // mixing: thread owns vec4 `d` of the head for every `parts`-th position
    let parts = WG / d4;
    let d = thread % d4;
    let part = thread / d4;
#ifdef SINKS
    var highest = sinks[p.sinks_first + head];
    var total = 1.0;
#else
    var highest = LOWEST;
    var total = 0.0;
#endif
    var sum = vec4<f32>(0.0);
    for (var tile = begin; tile <= at; tile += WG) {
        let position = tile + thread;
        var score = LOWEST;
        if (position <= at) {
            let row = slot(slab, position) * row4 + kv_head * d4;
            var dots = vec4<f32>(0.0);
            // four loads in flight
            var i = 0u;
            for (; i + 4u <= d4; i += 4u) {
                let a = keys[row + i];
                let b = keys[row + i + 1u];
                let c = keys[row + i + 2u];
                let e = keys[row + i + 3u];
                dots += query[i] * four(a) + query[i + 1u] * four(b) + query[i + 2u] * four(c) + query[i + 3u] * four(e);
            }
            for (; i < d4; i++) { dots += query[i] * four(keys[row + i]); }
            score = (dots.x + dots.y + dots.z + dots.w) * p.scale;
            if (p.softcap > 0.0) { score = soft_cap(score, p.softcap); }
        }
        let risen = max(highest, workgroup_max(score));
        let weight = select(0.0, exp_f32(score - risen), position <= at);
        weights[thread] = weight;
        let fade = select(0.0, exp_f32(highest - risen), highest > LOWEST);
        total = total * fade + workgroup_sum(weight);
        highest = risen;
        sum *= fade;
        let count = min(WG, at + 1u - tile);
        if (part < parts) {
            let column = kv_head * d4 + d;
            var j = part;
            for (; j + 3u * parts < count; j += 4u * parts) {
                let a = values[slot(slab, tile + j) * row4 + column];
                let b = values[slot(slab, tile + j + parts) * row4 + column];
                let c = values[slot(slab, tile + j + 2u * parts) * row4 + column];
                let e = values[slot(slab, tile + j + 3u * parts) * row4 + column];
                sum += weights[j] * four(a) + weights[j + parts] * four(b) + weights[j + 2u * parts] * four(c)
                    + weights[j + 3u * parts] * four(e);
            }
            for (; j < count; j += parts) { sum += weights[j] * four(values[slot(slab, tile + j) * row4 + column]); }
        }
        workgroupBarrier();
    }
    mixed[thread] = sum;
    workgroupBarrier();
    if (thread < d4) {
        for (var i = 1u; i < parts; i++) { sum += mixed[i * d4 + thread]; }
        sum /= total;
        let to = token * (p.out_stride / 4u) + head * d4 + thread;
#ifdef OUT_F16
        out[to] = vec2<u32>(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
#else
        out[to] = sum;
#endif
    }
}
