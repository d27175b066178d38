// Attention of a few tokens over a long cache: one workgroup for each token, up to four query heads of a key/value head,
// and run of positions. Keys and values are read once for the four heads. What a run gives is its highest score, the sum of
// its weights and the mixture of its values; attention_merge.wgsl puts runs together (online softmax, Milakov and
// Gimelshein 2018).
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
    scale: f32,
    softcap: f32,    // 0: none
    runs: u32,       // of a head, for which `partials` has room
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read> keys: array<Four>;
@group(1) @binding(4) var<storage, read> values: array<Four>;
// [token, head, run]: the mixture, then (highest score, sum of weights, 0, 0)
@group(1) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;
#include "cache"
#include "visible"
#include "runs"

const LOWEST = -3.0e38;
const TEAMS = 16u;  // teams of threads that share a position, eight each
const SHARE = 8u;
var<workgroup> query: array<vec4<f32>, 256>;      // four heads of up to 64 fours
var<workgroup> dots: array<vec4<f32>, 512>;       // of each position and thread of a team; later of each thread and head
var<workgroup> weights: array<vec4<f32>, TILE>;   // of the four heads
var<workgroup> reduced: array<vec4<f32>, TILE>;

// A thread's part of the mixture of each head.
var<private> mixed_0: vec4<f32>;
var<private> mixed_1: vec4<f32>;
var<private> mixed_2: vec4<f32>;
var<private> mixed_3: vec4<f32>;

fn mix_in(value: vec4<f32>, w: vec4<f32>) {
    mixed_0 += w.x * value;
    mixed_1 += w.y * value;
    mixed_2 += w.z * value;
    mixed_3 += w.w * value;
}
fn weight_of(j: u32, count: u32) -> vec4<f32> {
    if (j >= count) { return vec4<f32>(0.0); }
    return weights[j];
}
fn exp4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_f32(x.x), exp_f32(x.y), exp_f32(x.z), exp_f32(x.w));
}
fn cap4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(soft_cap(x.x, p.softcap), soft_cap(x.y, p.softcap), soft_cap(x.z, p.softcap), soft_cap(x.w, p.softcap));
}
// Products of a key with the four queries.
fn four_heads(key: vec4<f32>, i: u32) -> vec4<f32> {
    return vec4<f32>(dot(key, query[i]), dot(key, query[64u + i]), dot(key, query[128u + i]), dot(key, query[192u + i]));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) here: u32,
) {
    let per_kv = p.heads / p.kv_heads;
    let blocks = (per_kv + 3u) / 4u;
    let run = group.x;
    let kv_head = (group.y / blocks) % p.kv_heads;
    let first_head = (group.y % blocks) * 4u; // within those of the key/value head
    let token = group.y / (blocks * p.kv_heads);
    let at = position_of(token);
    let slab = slab_of(token);
    let visible = first_visible(at);
    let length = run_length(at + 1u - visible);
    let begin = visible + run * length;
    if (begin > at) { return; }
    let end = min(begin + length, at + 1u);

    let d4 = p.head_dim / 4u;
    let row4 = p.kv_heads * d4;
    let heads = min(4u, per_kv - first_head);
    for (var i = here; i < 4u * d4; i += WG) {
        let head = i / d4;
        var four = vec4<f32>(0.0);
        if (head < heads) { four = q[token * (p.in_stride / 4u) + (kv_head * per_kv + first_head + head) * d4 + i % d4]; }
        query[head * 64u + i % d4] = four;
    }
    workgroupBarrier();

    let team = here / SHARE;
    let share = here % SHARE;
    // mixing: thread owns four `d` of the heads for every `parts`-th position
    let parts = WG / d4;
    let d = here % d4;
    let part = here / d4;
    var highest = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    mixed_0 = vec4<f32>(0.0);
    mixed_1 = vec4<f32>(0.0);
    mixed_2 = vec4<f32>(0.0);
    mixed_3 = vec4<f32>(0.0);
    for (var tile = begin; tile < end; tile += TILE) {
        let count = min(TILE, end - tile);
        // A team takes positions team, team + 16, …: eight parts of keys in flight.
        let column = kv_head * d4;
        let row_0 = slot(slab, tile + min(team, count - 1u)) * row4 + column;
        let row_1 = slot(slab, tile + min(team + TEAMS, count - 1u)) * row4 + column;
        let row_2 = slot(slab, tile + min(team + 2u * TEAMS, count - 1u)) * row4 + column;
        let row_3 = slot(slab, tile + min(team + 3u * TEAMS, count - 1u)) * row4 + column;
        var dot_0 = vec4<f32>(0.0);
        var dot_1 = vec4<f32>(0.0);
        var dot_2 = vec4<f32>(0.0);
        var dot_3 = vec4<f32>(0.0);
        var i = share;
        for (; i + SHARE < d4; i += 2u * SHARE) {
            let a_0 = keys[row_0 + i];
            let a_1 = keys[row_1 + i];
            let a_2 = keys[row_2 + i];
            let a_3 = keys[row_3 + i];
            let b_0 = keys[row_0 + i + SHARE];
            let b_1 = keys[row_1 + i + SHARE];
            let b_2 = keys[row_2 + i + SHARE];
            let b_3 = keys[row_3 + i + SHARE];
            dot_0 += four_heads(four(a_0), i) + four_heads(four(b_0), i + SHARE);
            dot_1 += four_heads(four(a_1), i) + four_heads(four(b_1), i + SHARE);
            dot_2 += four_heads(four(a_2), i) + four_heads(four(b_2), i + SHARE);
            dot_3 += four_heads(four(a_3), i) + four_heads(four(b_3), i + SHARE);
        }
        if (i < d4) {
            dot_0 += four_heads(four(keys[row_0 + i]), i);
            dot_1 += four_heads(four(keys[row_1 + i]), i);
            dot_2 += four_heads(four(keys[row_2 + i]), i);
            dot_3 += four_heads(four(keys[row_3 + i]), i);
        }
        dots[team * SHARE + share] = dot_0;
        dots[(team + TEAMS) * SHARE + share] = dot_1;
        dots[(team + 2u * TEAMS) * SHARE + share] = dot_2;
        dots[(team + 3u * TEAMS) * SHARE + share] = dot_3;
        workgroupBarrier();
        var score = vec4<f32>(LOWEST);
        if (here < count) {
            score = vec4<f32>(0.0);
            for (var i = 0u; i < SHARE; i++) { score += dots[here * SHARE + i]; }
            score *= p.scale;
            if (p.softcap > 0.0) { score = cap4(score); }
        }
        if (here < TILE) { reduced[here] = score; }
        for (var n = TILE / 4u; n > 0u; n /= 4u) {
            workgroupBarrier();
            if (here < n) {
                reduced[here] = max(max(reduced[here], reduced[here + n]), max(reduced[here + 2u * n], reduced[here + 3u * n]));
            }
        }
        workgroupBarrier();
        let risen = max(highest, reduced[0]);
        workgroupBarrier();
        let weight = select(vec4<f32>(0.0), exp4(score - risen), here < count);
        if (here < TILE) {
            weights[here] = weight;
            reduced[here] = weight;
        }
        for (var n = TILE / 4u; n > 0u; n /= 4u) {
            workgroupBarrier();
            if (here < n) { reduced[here] += reduced[here + n] + (reduced[here + 2u * n] + reduced[here + 3u * n]); }
        }
        workgroupBarrier();
        let fade = select(vec4<f32>(0.0), exp4(highest - risen), highest > vec4<f32>(LOWEST));
        total = total * fade + reduced[0];
        highest = risen;
        mixed_0 *= fade.x;
        mixed_1 *= fade.y;
        mixed_2 *= fade.z;
        mixed_3 *= fade.w;
        if (part < parts) {
            // Eight values in flight; beyond the last position weights are zero, and the last is read again.
            for (var j = part; j < count; j += 8u * parts) {
                let value_0 = values[slot(slab, tile + j) * row4 + column + d];
                let value_1 = values[slot(slab, tile + min(j + parts, count - 1u)) * row4 + column + d];
                let value_2 = values[slot(slab, tile + min(j + 2u * parts, count - 1u)) * row4 + column + d];
                let value_3 = values[slot(slab, tile + min(j + 3u * parts, count - 1u)) * row4 + column + d];
                let value_4 = values[slot(slab, tile + min(j + 4u * parts, count - 1u)) * row4 + column + d];
                let value_5 = values[slot(slab, tile + min(j + 5u * parts, count - 1u)) * row4 + column + d];
                let value_6 = values[slot(slab, tile + min(j + 6u * parts, count - 1u)) * row4 + column + d];
                let value_7 = values[slot(slab, tile + min(j + 7u * parts, count - 1u)) * row4 + column + d];
                mix_in(four(value_0), weight_of(j, count));
                mix_in(four(value_1), weight_of(j + parts, count));
                mix_in(four(value_2), weight_of(j + 2u * parts, count));
                mix_in(four(value_3), weight_of(j + 3u * parts, count));
                mix_in(four(value_4), weight_of(j + 4u * parts, count));
                mix_in(four(value_5), weight_of(j + 5u * parts, count));
                mix_in(four(value_6), weight_of(j + 6u * parts, count));
                mix_in(four(value_7), weight_of(j + 7u * parts, count));
            }
        }
        workgroupBarrier();
    }
    dots[here] = mixed_0;
    dots[WG + here] = mixed_1;
    dots[2u * WG + here] = mixed_2;
    dots[3u * WG + here] = mixed_3;
    workgroupBarrier();
    for (var i = here; i < heads * d4; i += WG) {
        let head = i / d4;
        var sum = vec4<f32>(0.0);
        for (var j = 0u; j < parts; j++) { sum += dots[head * WG + j * d4 + i % d4]; }
        let to = ((token * p.heads + kv_head * per_kv + first_head + head) * p.runs + run) * (d4 + 1u);
        partials[to + i % d4] = sum;
        if (i % d4 == 0u) { partials[to + d4] = vec4<f32>(highest[head], total[head], 0.0, 0.0); }
    }
}
