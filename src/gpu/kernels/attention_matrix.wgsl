// Attention of many tokens by matrix units: a workgroup takes 4·S tokens of one head, each of its four subgroups S of them,
// and walks the visible positions in tiles of 2·S, twice: for the highest score of every token, then for weights and mixture,
// which so need never be scaled again. Queries and weights are rounded to f16, sums are f32.
// SINKS: each head has a score more, which has no value.
// Heads have D·S elements: D is 4, 8 with D8, 16 with D8 and D16. EIGHT: S is 8, not 16.
#enable f16
#enable wgpu_cooperative_matrix
#include "step"
#include "pack"
#include "math"
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
@group(1) @binding(3) var<storage, read> keys: array<vec4<f16>>;
@group(1) @binding(4) var<storage, read> values: array<vec4<f16>>;
@group(1) @binding(5) var<storage, read_write> out: array<u32>;
#ifdef SINKS
@group(1) @binding(6) var<storage, read> sinks: array<f32>;
#endif
#include "ring"
#include "visible"

#include "units"
#ifdef D16
const D = 16u;
#else
#ifdef D8
const D = 8u;
#else
const D = 4u;
#endif
#endif
const THREADS = 4u * LANES;
const P = 2u * S;             // positions of a tile
const FOURS = D * S / 4u;     // of a head
const ROW = FOURS + 2u;       // from row to row of a tile
const SHARERS = LANES / S;    // lanes that share a token
const LOWEST = -3.0e38;

// First the queries; then keys, and values behind them.
var<workgroup> tile: array<vec4<f16>, 4u * S * ROW>;
var<workgroup> scores: array<f32, 4u * S * P>;
var<workgroup> weights: array<vec4<f16>, S * P>;
var<workgroup> ends: array<f32, THREADS>;

// Where a subgroup and its lane stand: its scores, and of these the lane's token and first position.
struct Place {
    scores_at: u32,
    at: u32,          // position of the token
    column: u32,
}

fn score(place: Place, i: u32, first: u32, row: u32) -> f32 {
    let position = first + place.column + i;
    if (position > place.at || position < first_visible(place.at)) { return LOWEST; }
    let s = scores[place.scores_at + row * P + place.column + i] * p.scale;
    if (p.softcap > 0.0) { return soft_cap(s, p.softcap); }
    return s;
}

// Stages keys (and values) of positions from `first` on; those behind the last are repeated.
fn stage(slab: vec2<u32>, first: u32, last: u32, column: u32, here: u32, with_values: bool) {
    for (var i = here; i < P * FOURS; i += THREADS) {
        let row = i / FOURS;
        let from_row = slot(slab, min(first + row, last)) * (p.kv_heads * FOURS) + column + i % FOURS;
        tile[row * ROW + i % FOURS] = keys[from_row];
        if (with_values) { tile[(P + row) * ROW + i % FOURS] = values[from_row]; }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let here = subgroup * LANES + lane;
    let head = group.x;
    let kv_head = head / (p.heads / p.kv_heads);
    let column = kv_head * FOURS;
    let t_first = group.y * 4u * S;
    for (var i = here; i < 4u * S * FOURS; i += THREADS) {
        let token = min(t_first + i / FOURS, step.tokens - 1u);
        tile[(i / FOURS) * ROW + i % FOURS] = vec4<f16>(q[token * (p.in_stride / 4u) + head * FOURS + i % FOURS]);
    }
    workgroupBarrier();
    let query_0 = coopLoadT<Left>(&tile[subgroup * S * ROW + 0u * S / 4u], ROW);
    let query_1 = coopLoadT<Left>(&tile[subgroup * S * ROW + 1u * S / 4u], ROW);
    let query_2 = coopLoadT<Left>(&tile[subgroup * S * ROW + 2u * S / 4u], ROW);
    let query_3 = coopLoadT<Left>(&tile[subgroup * S * ROW + 3u * S / 4u], ROW);
#ifdef D8
    let query_4 = coopLoadT<Left>(&tile[subgroup * S * ROW + 4u * S / 4u], ROW);
    let query_5 = coopLoadT<Left>(&tile[subgroup * S * ROW + 5u * S / 4u], ROW);
    let query_6 = coopLoadT<Left>(&tile[subgroup * S * ROW + 6u * S / 4u], ROW);
    let query_7 = coopLoadT<Left>(&tile[subgroup * S * ROW + 7u * S / 4u], ROW);
#ifdef D16
    let query_8 = coopLoadT<Left>(&tile[subgroup * S * ROW + 8u * S / 4u], ROW);
    let query_9 = coopLoadT<Left>(&tile[subgroup * S * ROW + 9u * S / 4u], ROW);
    let query_10 = coopLoadT<Left>(&tile[subgroup * S * ROW + 10u * S / 4u], ROW);
    let query_11 = coopLoadT<Left>(&tile[subgroup * S * ROW + 11u * S / 4u], ROW);
    let query_12 = coopLoadT<Left>(&tile[subgroup * S * ROW + 12u * S / 4u], ROW);
    let query_13 = coopLoadT<Left>(&tile[subgroup * S * ROW + 13u * S / 4u], ROW);
    let query_14 = coopLoadT<Left>(&tile[subgroup * S * ROW + 14u * S / 4u], ROW);
    let query_15 = coopLoadT<Left>(&tile[subgroup * S * ROW + 15u * S / 4u], ROW);
#endif
#endif
    workgroupBarrier();
    let row = lane / SHARERS;      // the lane's token within the subgroup
    let place = Place(
        subgroup * S * P,
        position_of(min(t_first + subgroup * S + row, step.tokens - 1u)),
        (lane % SHARERS) * (P / SHARERS),
    );
    let slab = slab_of(t_first);
    let begin = first_visible(position_of(t_first));
    let last = position_of(min(t_first + 4u * S, step.tokens) - 1u);

    var highest = LOWEST;
    for (var first = begin; first <= last; first += P) {
        stage(slab, first, last, column, here, false);
        workgroupBarrier();
        var left_half = Sums();
        var right_half = Sums();
        left_half = coopMultiplyAdd(query_0, coopLoad<Right>(&tile[0u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_0, coopLoad<Right>(&tile[S * ROW + 0u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_1, coopLoad<Right>(&tile[1u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_1, coopLoad<Right>(&tile[S * ROW + 1u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_2, coopLoad<Right>(&tile[2u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_2, coopLoad<Right>(&tile[S * ROW + 2u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_3, coopLoad<Right>(&tile[3u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_3, coopLoad<Right>(&tile[S * ROW + 3u * S / 4u], ROW), right_half);
#ifdef D8
        left_half = coopMultiplyAdd(query_4, coopLoad<Right>(&tile[4u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_4, coopLoad<Right>(&tile[S * ROW + 4u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_5, coopLoad<Right>(&tile[5u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_5, coopLoad<Right>(&tile[S * ROW + 5u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_6, coopLoad<Right>(&tile[6u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_6, coopLoad<Right>(&tile[S * ROW + 6u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_7, coopLoad<Right>(&tile[7u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_7, coopLoad<Right>(&tile[S * ROW + 7u * S / 4u], ROW), right_half);
#ifdef D16
        left_half = coopMultiplyAdd(query_8, coopLoad<Right>(&tile[8u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_8, coopLoad<Right>(&tile[S * ROW + 8u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_9, coopLoad<Right>(&tile[9u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_9, coopLoad<Right>(&tile[S * ROW + 9u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_10, coopLoad<Right>(&tile[10u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_10, coopLoad<Right>(&tile[S * ROW + 10u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_11, coopLoad<Right>(&tile[11u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_11, coopLoad<Right>(&tile[S * ROW + 11u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_12, coopLoad<Right>(&tile[12u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_12, coopLoad<Right>(&tile[S * ROW + 12u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_13, coopLoad<Right>(&tile[13u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_13, coopLoad<Right>(&tile[S * ROW + 13u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_14, coopLoad<Right>(&tile[14u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_14, coopLoad<Right>(&tile[S * ROW + 14u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_15, coopLoad<Right>(&tile[15u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_15, coopLoad<Right>(&tile[S * ROW + 15u * S / 4u], ROW), right_half);
#endif
#endif
        keep(left_half, place.scores_at, P);
        keep(right_half, place.scores_at + S, P);
        workgroupBarrier();
        for (var i = 0u; i < P / SHARERS; i++) { highest = max(highest, score(place, i, first, row)); }
        workgroupBarrier();
    }
    ends[here] = highest;
    workgroupBarrier();
    for (var i = 0u; i < SHARERS; i++) { highest = max(highest, ends[subgroup * LANES + row * SHARERS + i]); }
    workgroupBarrier();

    var total = 0.0;
#ifdef SINKS
    let sink = sinks[p.sinks_first + head];
    highest = max(highest, sink);
    // One of the lanes that share a token counts it.
    if (lane % SHARERS == 0u) { total = exp_f32(sink - highest); }
#endif
    var mixed_0 = Sums();
    var mixed_1 = Sums();
    var mixed_2 = Sums();
    var mixed_3 = Sums();
#ifdef D8
    var mixed_4 = Sums();
    var mixed_5 = Sums();
    var mixed_6 = Sums();
    var mixed_7 = Sums();
#ifdef D16
    var mixed_8 = Sums();
    var mixed_9 = Sums();
    var mixed_10 = Sums();
    var mixed_11 = Sums();
    var mixed_12 = Sums();
    var mixed_13 = Sums();
    var mixed_14 = Sums();
    var mixed_15 = Sums();
#endif
#endif
    for (var first = begin; first <= last; first += P) {
        stage(slab, first, last, column, here, true);
        workgroupBarrier();
        var left_half = Sums();
        var right_half = Sums();
        left_half = coopMultiplyAdd(query_0, coopLoad<Right>(&tile[0u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_0, coopLoad<Right>(&tile[S * ROW + 0u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_1, coopLoad<Right>(&tile[1u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_1, coopLoad<Right>(&tile[S * ROW + 1u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_2, coopLoad<Right>(&tile[2u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_2, coopLoad<Right>(&tile[S * ROW + 2u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_3, coopLoad<Right>(&tile[3u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_3, coopLoad<Right>(&tile[S * ROW + 3u * S / 4u], ROW), right_half);
#ifdef D8
        left_half = coopMultiplyAdd(query_4, coopLoad<Right>(&tile[4u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_4, coopLoad<Right>(&tile[S * ROW + 4u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_5, coopLoad<Right>(&tile[5u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_5, coopLoad<Right>(&tile[S * ROW + 5u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_6, coopLoad<Right>(&tile[6u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_6, coopLoad<Right>(&tile[S * ROW + 6u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_7, coopLoad<Right>(&tile[7u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_7, coopLoad<Right>(&tile[S * ROW + 7u * S / 4u], ROW), right_half);
#ifdef D16
        left_half = coopMultiplyAdd(query_8, coopLoad<Right>(&tile[8u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_8, coopLoad<Right>(&tile[S * ROW + 8u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_9, coopLoad<Right>(&tile[9u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_9, coopLoad<Right>(&tile[S * ROW + 9u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_10, coopLoad<Right>(&tile[10u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_10, coopLoad<Right>(&tile[S * ROW + 10u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_11, coopLoad<Right>(&tile[11u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_11, coopLoad<Right>(&tile[S * ROW + 11u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_12, coopLoad<Right>(&tile[12u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_12, coopLoad<Right>(&tile[S * ROW + 12u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_13, coopLoad<Right>(&tile[13u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_13, coopLoad<Right>(&tile[S * ROW + 13u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_14, coopLoad<Right>(&tile[14u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_14, coopLoad<Right>(&tile[S * ROW + 14u * S / 4u], ROW), right_half);
        left_half = coopMultiplyAdd(query_15, coopLoad<Right>(&tile[15u * S / 4u], ROW), left_half);
        right_half = coopMultiplyAdd(query_15, coopLoad<Right>(&tile[S * ROW + 15u * S / 4u], ROW), right_half);
#endif
#endif
        keep(left_half, place.scores_at, P);
        keep(right_half, place.scores_at + S, P);
        workgroupBarrier();
        for (var i = 0u; i < P / SHARERS; i += 4u) {
            var four = vec4<f32>(score(place, i, first, row), score(place, i + 1u, first, row), score(place, i + 2u, first, row), score(place, i + 3u, first, row));
            four = vec4<f32>(weight(four.x, highest), weight(four.y, highest), weight(four.z, highest), weight(four.w, highest));
            total += (four.x + four.y) + (four.z + four.w);
            weights[(place.scores_at + row * P + place.column + i) / 4u] = vec4<f16>(four);
        }
        workgroupBarrier();
        let before = coopLoadT<Left>(&weights[place.scores_at / 4u], P / 4u);
        let behind = coopLoadT<Left>(&weights[(place.scores_at + S) / 4u], P / 4u);
        mixed_0 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 0u * S / 4u], ROW), mixed_0);
        mixed_0 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 0u * S / 4u], ROW), mixed_0);
        mixed_1 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 1u * S / 4u], ROW), mixed_1);
        mixed_1 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 1u * S / 4u], ROW), mixed_1);
        mixed_2 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 2u * S / 4u], ROW), mixed_2);
        mixed_2 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 2u * S / 4u], ROW), mixed_2);
        mixed_3 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 3u * S / 4u], ROW), mixed_3);
        mixed_3 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 3u * S / 4u], ROW), mixed_3);
#ifdef D8
        mixed_4 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 4u * S / 4u], ROW), mixed_4);
        mixed_4 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 4u * S / 4u], ROW), mixed_4);
        mixed_5 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 5u * S / 4u], ROW), mixed_5);
        mixed_5 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 5u * S / 4u], ROW), mixed_5);
        mixed_6 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 6u * S / 4u], ROW), mixed_6);
        mixed_6 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 6u * S / 4u], ROW), mixed_6);
        mixed_7 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 7u * S / 4u], ROW), mixed_7);
        mixed_7 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 7u * S / 4u], ROW), mixed_7);
#ifdef D16
        mixed_8 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 8u * S / 4u], ROW), mixed_8);
        mixed_8 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 8u * S / 4u], ROW), mixed_8);
        mixed_9 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 9u * S / 4u], ROW), mixed_9);
        mixed_9 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 9u * S / 4u], ROW), mixed_9);
        mixed_10 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 10u * S / 4u], ROW), mixed_10);
        mixed_10 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 10u * S / 4u], ROW), mixed_10);
        mixed_11 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 11u * S / 4u], ROW), mixed_11);
        mixed_11 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 11u * S / 4u], ROW), mixed_11);
        mixed_12 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 12u * S / 4u], ROW), mixed_12);
        mixed_12 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 12u * S / 4u], ROW), mixed_12);
        mixed_13 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 13u * S / 4u], ROW), mixed_13);
        mixed_13 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 13u * S / 4u], ROW), mixed_13);
        mixed_14 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 14u * S / 4u], ROW), mixed_14);
        mixed_14 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 14u * S / 4u], ROW), mixed_14);
        mixed_15 = coopMultiplyAdd(before, coopLoadT<Right>(&tile[P * ROW + 15u * S / 4u], ROW), mixed_15);
        mixed_15 = coopMultiplyAdd(behind, coopLoadT<Right>(&tile[(P + S) * ROW + 15u * S / 4u], ROW), mixed_15);
#endif
#endif
        workgroupBarrier();
    }
    ends[here] = total;
    workgroupBarrier();
    let t_of_subgroup = t_first + subgroup * S;
    write_out(mixed_0, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 0u) * S);
    write_out(mixed_1, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 1u) * S);
    write_out(mixed_2, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 2u) * S);
    write_out(mixed_3, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 3u) * S);
#ifdef D8
    write_out(mixed_4, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 4u) * S);
    write_out(mixed_5, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 5u) * S);
    write_out(mixed_6, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 6u) * S);
    write_out(mixed_7, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 7u) * S);
#ifdef D16
    write_out(mixed_8, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 8u) * S);
    write_out(mixed_9, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 9u) * S);
    write_out(mixed_10, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 10u) * S);
    write_out(mixed_11, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 11u) * S);
    write_out(mixed_12, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 12u) * S);
    write_out(mixed_13, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 13u) * S);
    write_out(mixed_14, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 14u) * S);
    write_out(mixed_15, place.scores_at, P, subgroup, lane, t_of_subgroup, (head * D + 15u) * S);
#endif
#endif
}

fn weight(score: f32, highest: f32) -> f32 {
    if (score <= LOWEST) { return 0.0; }
    return exp_f32(score - highest);
}

fn keep(sums: Sums, at: u32, stride: u32) {
    coopStoreT(sums, &scores[at], stride);
}

// Writes a mixture's S elements from `element` on, of S tokens, each divided by its token's sum of weights.
fn write_out(sums: Sums, at: u32, stride: u32, subgroup: u32, lane: u32, t_first: u32, element: u32) {
    coopStoreT(sums, &scores[at], stride);
    workgroupBarrier();
    for (var i = lane; i < S * S / 2u; i += LANES) {
        let row = i / (S / 2u);
        let pair = 2u * (i % (S / 2u));
        let token = t_first + row;
        var total = 0.0;
        for (var j = 0u; j < SHARERS; j++) { total += ends[subgroup * LANES + row * SHARERS + j]; }
        if (token < step.tokens) {
            let from_here = at + row * stride + pair;
            out[(token * p.out_stride + element + pair) / 2u] = pack2(scores[from_here] / total, scores[from_here + 1u] / total);
        }
    }
    workgroupBarrier();
}
