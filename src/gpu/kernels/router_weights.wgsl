// Weights of the experts of a token from their logits: scores, the highest of them, a division by their sum. One workgroup per
// token; each thread counts, for some experts, those that are chosen before it. Of equal ones the lowest number is chosen first, and
// NaN is above every number.
// CHOICE: a bias is added to the scores for the choice only. GROUPS: only experts of the best groups are chosen.
// SCALES: weights are multiplied by a number of each expert.
// NUMBERS: the experts that have a weight are listed too, in ascending order.
#include "step"
#include "math"
const WG = 128u;
struct Params {
    experts: u32,          // at most 512
    score: u32,            // 0 softmax, 1 softmax over the chosen, 2 sigmoid
    groups: u32,           // at most 64
    chosen: u32,
    in_stride: u32,
    out_stride: u32,
    numbers: u32,          // numbers of a token
    numbers_stride: u32,
    choice_first: u32,
    groups_chosen: u32,
    highest: u32,          // scores that a group's is the sum of
    divide: u32,           // by the sum of the chosen and eps, if 1
    eps: f32,
    scaling: f32,
    scales_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> logits: array<f32>;
@group(1) @binding(3) var<storage, read_write> out: array<f32>;
#ifdef NUMBERS
@group(1) @binding(4) var<storage, read_write> numbers: array<f32>;
#endif
#ifdef CHOICE
@group(1) @binding(5) var<storage, read> choice: array<f32>;
#endif
#ifdef SCALES
@group(1) @binding(6) var<storage, read> scales: array<f32>;
#endif

// Loops over all experts take four at a time; after the last there are zeros up to a multiple of four.
var<workgroup> scores: array<f32, 512>;
var<workgroup> keys: array<u32, 512>;    // as integers in the order of the scores to choose by
var<workgroup> ranks: array<u32, 512>;   // how many come before
#ifdef GROUPS
var<workgroup> of_groups: array<f32, 64>;
#endif

// Integers in the order of floats, NaN above all.
fn order(x: f32) -> u32 {
    var bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
    if (bits == 0x80000000u) { bits = 0u; }
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn four_keys(first: u32) -> vec4<u32> {
    return vec4<u32>(keys[first], keys[first + 1u], keys[first + 2u], keys[first + 3u]);
}
fn highest_key() -> u32 {
    var top = vec4<u32>(0u);
    for (var e = 0u; e < p.experts; e += 4u) { top = max(top, four_keys(e)); }
    return max(max(top.x, top.y), max(top.z, top.w));
}
fn sum_of_scores() -> f32 {
    var sums = vec4<f32>(0.0);
    for (var e = 0u; e < p.experts; e += 4u) { sums += vec4<f32>(scores[e], scores[e + 1u], scores[e + 2u], scores[e + 3u]); }
    return (sums.x + sums.y) + (sums.z + sums.w);
}

fn score_to_choose_by(e: u32) -> f32 {
#ifdef CHOICE
    return scores[e] + choice[p.choice_first + e];
#else
    return scores[e];
#endif
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let token = linear_id(group, groups);
    if (token >= step.tokens) { return; }
    for (var e = thread; e < (p.experts + 3u) / 4u * 4u; e += WG) {
        scores[e] = 0.0;
        keys[e] = 0u;
        if (e < p.experts) {
            let x = logits[token * p.in_stride + e];
            if (p.score == 2u) { scores[e] = 1.0 / (1.0 + exp_f32(-x)); } else { scores[e] = x; }
            keys[e] = order(x);
        }
    }
    workgroupBarrier();
    if (p.score == 0u) {
        // The highest logit, and what its powers add up to, by every thread alike.
        let highest = value_of(highest_key());
        for (var e = thread; e < p.experts; e += WG) { scores[e] = exp_f32(scores[e] - highest); }
        workgroupBarrier();
        let total = sum_of_scores();
        workgroupBarrier();
        for (var e = thread; e < p.experts; e += WG) { scores[e] /= total; }
    }
    workgroupBarrier();
#ifdef GROUPS
    let size = p.experts / p.groups;
    for (var g = thread; g < p.groups; g += WG) {
        // The highest one after the other: of equal ones the first.
        var sum = 0.0;
        for (var n = 0u; n < size; n++) {
            var before = 0u;
            let mine = order(score_to_choose_by(g * size + n));
            for (var m = 0u; m < size; m++) {
                let other = order(score_to_choose_by(g * size + m));
                if (other > mine || (other == mine && m < n)) { before += 1u; }
            }
            if (before < p.highest) { sum += score_to_choose_by(g * size + n); }
        }
        of_groups[g] = sum;
    }
    workgroupBarrier();
#endif
    for (var e = thread; e < p.experts; e += WG) {
        var key = order(score_to_choose_by(e));
#ifdef GROUPS
        let mine = order(of_groups[e / size]);
        var before = 0u;
        for (var g = 0u; g < p.groups; g++) {
            let other = order(of_groups[g]);
            if (other > mine || (other == mine && g < e / size)) { before += 1u; }
        }
        if (before >= p.groups_chosen) { key = 0u; }
#endif
        keys[e] = key;
    }
    workgroupBarrier();
    for (var e = thread; e < p.experts; e += WG) {
        let mine = vec4<u32>(keys[e]);
        var before = vec4<u32>(0u);
        for (var first = 0u; first < p.experts; first += 4u) {
            let others = four_keys(first);
            let earlier = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(e);
            before += select(vec4<u32>(0u), vec4<u32>(1u), (others > mine) | ((others == mine) & earlier));
        }
        ranks[e] = before.x + before.y + before.z + before.w;
    }
    workgroupBarrier();
    // From here on the scores of those that are not chosen are 0.
    for (var e = thread; e < p.experts; e += WG) {
        let chosen = ranks[e] < p.chosen;
        keys[e] = select(0u, order(scores[e]), chosen);
        if (!chosen) { scores[e] = 0.0; }
    }
    workgroupBarrier();
    if (p.score == 1u) {
        let highest = value_of(highest_key());
        for (var e = thread; e < p.experts; e += WG) {
            if (ranks[e] < p.chosen) { scores[e] = exp_f32(scores[e] - highest); }
        }
        workgroupBarrier();
        let total = sum_of_scores();
        workgroupBarrier();
        for (var e = thread; e < p.experts; e += WG) { scores[e] /= total; }
        workgroupBarrier();
    }
    var divisor = 1.0;
    if (p.divide == 1u) { divisor = sum_of_scores() + p.eps; }
    for (var e = thread; e < p.experts; e += WG) {
        var weight = 0.0;
        if (ranks[e] < p.chosen) {
            weight = scores[e];
            if (p.divide == 1u) { weight /= divisor; }
            weight *= p.scaling;
#ifdef SCALES
            weight *= scales[p.scales_first + e];
#endif
        }
        out[token * p.out_stride + e] = weight;
        keys[e] = select(0u, 1u, (bitcast<u32>(weight) & 0x7fffffffu) != 0u);
    }
#ifdef NUMBERS
    workgroupBarrier();
    for (var e = thread; e < p.experts; e += WG) {
        var sums = vec4<u32>(0u);
        for (var first = 0u; first < e; first += 4u) {
            let earlier = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(e);
            sums += select(vec4<u32>(0u), four_keys(first), earlier);
        }
        let before = sums.x + sums.y + sums.z + sums.w;
        if (keys[e] == 1u && before < p.numbers) { numbers[token * p.numbers_stride + before] = f32(e); }
        if (e == p.experts - 1u) {
            for (var c = before + keys[e]; c < p.numbers; c++) { numbers[token * p.numbers_stride + c] = -1.0; }
        }
    }
#endif
}

// The float of which `order` makes `key`.
fn value_of(key: u32) -> f32 {
    if (key == 0xffffffffu) { return bitcast<f32>(0x7fc00000u); }
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}
