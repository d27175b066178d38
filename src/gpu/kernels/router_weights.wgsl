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

var<workgroup> scores: array<f32, 512>;
var<workgroup> keys: array<u32, 512>;    // as integers in the order of the scores to choose by
var<workgroup> ranks: array<u32, 512>;   // how many come before
var<workgroup> sums: array<f32, 2>;
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
    for (var e = thread; e < p.experts; e += WG) {
        let x = logits[token * p.in_stride + e];
        if (p.score == 2u) { scores[e] = 1.0 / (1.0 + exp_f32(-x)); } else { scores[e] = x; }
        keys[e] = order(x);
    }
    workgroupBarrier();
    if (p.score == 0u) {
        // The highest logit, and what its powers add up to, by every thread alike.
        var top = keys[0];
        for (var e = 1u; e < p.experts; e++) { top = max(top, keys[e]); }
        let highest = value_of(top);
        for (var e = thread; e < p.experts; e += WG) { scores[e] = exp_f32(scores[e] - highest); }
        workgroupBarrier();
        var total = 0.0;
        for (var e = 0u; e < p.experts; e++) { total += scores[e]; }
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
        let mine = keys[e];
        var before = 0u;
        for (var other = 0u; other < p.experts; other++) {
            if (keys[other] > mine || (keys[other] == mine && other < e)) { before += 1u; }
        }
        ranks[e] = before;
    }
    workgroupBarrier();
    if (p.score == 1u) {
        if (thread == 0u) {
            var top = 0u;
            for (var e = 0u; e < p.experts; e++) { if (ranks[e] < p.chosen) { top = max(top, order(scores[e])); } }
            var total = 0.0;
            for (var e = 0u; e < p.experts; e++) { if (ranks[e] < p.chosen) { total += exp_f32(scores[e] - value_of(top)); } }
            sums[0] = value_of(top);
            sums[1] = total;
        }
        workgroupBarrier();
        let highest = sums[0];
        let total = sums[1];
        for (var e = thread; e < p.experts; e += WG) { scores[e] = exp_f32(scores[e] - highest) / total; }
        workgroupBarrier();
    }
    if (p.divide == 1u) {
        if (thread == 0u) {
            var total = 0.0;
            for (var e = 0u; e < p.experts; e++) { if (ranks[e] < p.chosen) { total += scores[e]; } }
            sums[0] = total + p.eps;
        }
        workgroupBarrier();
    }
    let divisor = sums[0];
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
        var before = 0u;
        for (var other = 0u; other < e; other++) { before += keys[other]; }
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
