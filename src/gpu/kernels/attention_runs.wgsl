// Attention of a few tokens over a long cache: one workgroup for each token, up to four query heads of a key/value head,
// and run of positions. Keys and values are read once for the four heads. What a run gives is its highest score, the sum of
// its weights and the mixture of its values; attention_merge.wgsl puts runs together (online softmax, Milakov and
// Gimelshein 2018).
// WIDE: a head has more than 64 fours, at most 128, and a workgroup two heads.
#include "step"
#include "pack"
#include "math"
override D4: u32 = 32u;  // fours of a head
const WG = 256u;
struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,   // 4·D4
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
const TEAMS = 32u;  // teams of threads that share a position, eight each
const SHARE = 8u;
const PITCH = 9u;   // from position to position: one more, so that they are in different banks
const HEADS = 4u;   // WG/TILE: each thread has the score of one head at one position
#ifdef WIDE
const BLOCK = 2u;   // heads of a workgroup
const FOURS = 128u; // room for those of a head
#else
const BLOCK = 4u;
const FOURS = 64u;
#endif
var<workgroup> query: array<vec4<f32>, 256>;      // BLOCK heads
var<workgroup> dots: array<vec4<f32>, 576>;       // of each position and thread of a team; later of each thread and two heads
var<workgroup> weights: array<f32, WG>;           // [head][position]
var<workgroup> highests: array<f32, 64>;          // of each subgroup, and at the end of each head
var<workgroup> totals: array<f32, 64>;
var<workgroup> fades: array<f32, HEADS>;
#ifdef SUBGROUPS
#else
var<workgroup> scores: array<f32, WG>;
#endif

// A thread's part of the mixture of each head.
var<private> mixed_0: vec4<f32>;
var<private> mixed_1: vec4<f32>;
#ifdef WIDE
#else
var<private> mixed_2: vec4<f32>;
var<private> mixed_3: vec4<f32>;
#endif

fn mix_in(value: vec4<f32>, w: vec4<f32>) {
    mixed_0 += w.x * value;
    mixed_1 += w.y * value;
#ifdef WIDE
#else
    mixed_2 += w.z * value;
    mixed_3 += w.w * value;
#endif
}
fn weight_of(j: u32, count: u32) -> vec4<f32> {
    if (j >= count) { return vec4<f32>(0.0); }
    return vec4<f32>(weights[j], weights[TILE + j], weights[2u * TILE + j], weights[3u * TILE + j]);
}
// Products of a key with the queries.
fn four_heads(key: vec4<f32>, i: u32) -> vec4<f32> {
#ifdef WIDE
    return vec4<f32>(dot(key, query[i]), dot(key, query[FOURS + i]), 0.0, 0.0);
#else
    return vec4<f32>(dot(key, query[i]), dot(key, query[FOURS + i]), dot(key, query[2u * FOURS + i]), dot(key, query[3u * FOURS + i]));
#endif
}

struct EightValues { v0: Four, v1: Four, v2: Four, v3: Four, v4: Four, v5: Four, v6: Four, v7: Four }
// Beyond the last position weights are zero, and the last is read again.
fn eight_values(slab: vec2<u32>, at_tile: u32, j: u32, parts: u32, count: u32, row4: u32, column: u32) -> EightValues {
    return EightValues(
        values[slot_after(slab, at_tile, min(j, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + parts, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + 2u * parts, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + 3u * parts, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + 4u * parts, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + 5u * parts, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + 6u * parts, count - 1u)) * row4 + column],
        values[slot_after(slab, at_tile, min(j + 7u * parts, count - 1u)) * row4 + column],
    );
}
@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_id) subgroup: u32,
#endif
) {
#ifdef SUBGROUPS
    let here = subgroup * lanes + lane;
    let per_head = TILE / lanes; // subgroups
#else
    let here = index;
#endif
    let per_kv = p.heads / p.kv_heads;
    let blocks = (per_kv + BLOCK - 1u) / BLOCK;
    let run = group.x;
    let kv_head = (group.y / blocks) % p.kv_heads;
    let first_head = (group.y % blocks) * BLOCK; // within those of the key/value head
    let token = group.y / (blocks * p.kv_heads);
    let at = position_of(token);
    let slab = slab_of(token);
    let visible = first_visible(at);
    let length = run_length(at + 1u - visible);
    let begin = visible + run * length;
    if (begin > at) { return; }
    let end = min(begin + length, at + 1u);

    let d4 = D4;
    let row4 = p.kv_heads * d4;
    let heads = min(BLOCK, per_kv - first_head);
    for (var i = here; i < BLOCK * d4; i += WG) {
        let head = i / d4;
        var four = vec4<f32>(0.0);
        if (head < heads) { four = q[token * (p.in_stride / 4u) + (kv_head * per_kv + first_head + head) * d4 + i % d4]; }
        query[head * FOURS + i % d4] = four;
    }
    workgroupBarrier();

    let team = here / SHARE;
    let share = here % SHARE;
    // softmax: 64 threads for each head
    let of_head = here / TILE;
    let place = here % TILE;
    // mixing: thread owns four `d` of the heads for every `parts`-th position
    let parts = WG / d4;
    let d = here % d4;
    let part = here / d4;
    var highest = LOWEST;
    var total = 0.0;
    mixed_0 = vec4<f32>(0.0);
    mixed_1 = vec4<f32>(0.0);
#ifdef WIDE
#else
    mixed_2 = vec4<f32>(0.0);
    mixed_3 = vec4<f32>(0.0);
#endif
    for (var tile = begin; tile < end; tile += TILE) {
        let count = min(TILE, end - tile);
        let column = kv_head * d4;
        let at_tile = place_of(slab, tile);
        // Values are on their way while scores are computed.
        var ahead = eight_values(slab, at_tile, part, parts, count, row4, column + d);
        // A team takes positions team, team + TEAMS, …
        let row_0 = slot_after(slab, at_tile, min(team, count - 1u)) * row4 + column;
        let row_1 = slot_after(slab, at_tile, min(team + TEAMS, count - 1u)) * row4 + column;
        var dot_0 = vec4<f32>(0.0);
        var dot_1 = vec4<f32>(0.0);
        var i = share;
        for (; i + SHARE < d4; i += 2u * SHARE) {
            let a_0 = keys[row_0 + i];
            let a_1 = keys[row_1 + i];
            let b_0 = keys[row_0 + i + SHARE];
            let b_1 = keys[row_1 + i + SHARE];
            dot_0 += four_heads(four(a_0), i) + four_heads(four(b_0), i + SHARE);
            dot_1 += four_heads(four(a_1), i) + four_heads(four(b_1), i + SHARE);
        }
        if (i < d4) {
            dot_0 += four_heads(four(keys[row_0 + i]), i);
            dot_1 += four_heads(four(keys[row_1 + i]), i);
        }
        dots[team * PITCH + share] = dot_0;
        dots[(team + TEAMS) * PITCH + share] = dot_1;
        workgroupBarrier();
        var score = LOWEST;
        if (place < count) {
            score = 0.0;
            for (var i = 0u; i < SHARE; i++) { score += dots[place * PITCH + i][of_head]; }
            score *= p.scale;
            if (p.softcap > 0.0) { score = soft_cap(score, p.softcap); }
        }
        var risen = highest;
#ifdef SUBGROUPS
        let top = subgroupMax(score);
        if (lane == 0u) { highests[subgroup] = top; }
        workgroupBarrier();
        for (var i = 0u; i < per_head; i++) { risen = max(risen, highests[of_head * per_head + i]); }
#else
        scores[here] = score;
        workgroupBarrier();
        for (var i = 0u; i < TILE; i++) { risen = max(risen, scores[of_head * TILE + i]); }
#endif
        var weight = 0.0;
        if (place < count) { weight = exp_f32(score - risen); }
        var fading = 0.0;
        if (highest > LOWEST) { fading = exp_f32(highest - risen); }
        highest = risen;
        weights[here] = weight;
        if (place == 0u) { fades[of_head] = fading; }
        var of_tile = 0.0;
#ifdef SUBGROUPS
        let of_lanes = subgroupAdd(weight);
        if (lane == 0u) { totals[subgroup] = of_lanes; }
        workgroupBarrier();
        for (var i = 0u; i < per_head; i++) { of_tile += totals[of_head * per_head + i]; }
#else
        workgroupBarrier();
        for (var i = 0u; i < TILE; i++) { of_tile += weights[of_head * TILE + i]; }
#endif
        total = total * fading + of_tile;
        let fade = vec4<f32>(fades[0], fades[1], fades[2], fades[3]);
        mixed_0 *= fade.x;
        mixed_1 *= fade.y;
#ifdef WIDE
#else
        mixed_2 *= fade.z;
        mixed_3 *= fade.w;
#endif
        if (part < parts) {
            for (var j = part; j < count; j += 8u * parts) {
                let now = ahead;
                if (j + 8u * parts < count) { ahead = eight_values(slab, at_tile, j + 8u * parts, parts, count, row4, column + d); }
                mix_in(four(now.v0), weight_of(j, count));
                mix_in(four(now.v1), weight_of(j + parts, count));
                mix_in(four(now.v2), weight_of(j + 2u * parts, count));
                mix_in(four(now.v3), weight_of(j + 3u * parts, count));
                mix_in(four(now.v4), weight_of(j + 4u * parts, count));
                mix_in(four(now.v5), weight_of(j + 5u * parts, count));
                mix_in(four(now.v6), weight_of(j + 6u * parts, count));
                mix_in(four(now.v7), weight_of(j + 7u * parts, count));
            }
        }
        workgroupBarrier();
    }
    if (place == 0u) {
        highests[of_head] = highest;
        totals[of_head] = total;
    }
    mixed_out(here, 0u, heads, mixed_0, mixed_1, (token * p.heads + kv_head * per_kv + first_head) * p.runs + run);
#ifdef WIDE
#else
    mixed_out(here, 2u, heads, mixed_2, mixed_3, (token * p.heads + kv_head * per_kv + first_head) * p.runs + run);
#endif
}

// Adds up what threads have of heads `head` and head + 1, and writes it; run `to` is that of the first of `heads`.
fn mixed_out(here: u32, head: u32, heads: u32, one: vec4<f32>, two: vec4<f32>, to: u32) {
    workgroupBarrier();
    dots[here] = one;
    dots[WG + here] = two;
    workgroupBarrier();
    let second = here / D4;
    if (second > 1u || head + second >= heads) { return; }
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < WG / D4; j++) { sum += dots[second * WG + j * D4 + here % D4]; }
    let first = (to + (head + second) * p.runs) * (D4 + 1u);
    partials[first + here % D4] = sum;
    if (here % D4 == 0u) { partials[first + D4] = vec4<f32>(highests[head + second], totals[head + second], 0.0, 0.0); }
}
