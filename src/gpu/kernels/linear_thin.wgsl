// Matrix products of a few rows of x by the matrix units: rows of one or of many sequences, whose bits do not depend on each
// other. A workgroup computes ROWS×COLUMNS of out; its eight subgroups share K, each taking every eighth step of 32, and add up
// what they have in order. Two steps are on their way while one is computed.
// TWO: 2·S rows of x in place of S. EIGHT: S is 8, not 16. SEVERAL, ADD, HEAD: as in linear.wgsl.
#enable f16
#enable wgpu_cooperative_matrix
#include "step"
#include "pack"
override HEAD: bool = false;
struct Params {
    k: u32,           // elements of x and of a row of w
    k8: u32,          // the same in eights, rounded up
    n: u32,           // rows of w, of all matrices
    w_first: u32,     // row of the buffer where they begin
    n_first: u32,     // element of out that belongs to row 0
    in_stride8: u32,  // row of x, in eights
    out_stride: u32,  // row of out, elements
    divisor: f32,
    row4: u32,        // words of a row of w, where it is packed
    bias_first: u32,  // element of `bias` that belongs to row 0
    multiplier: f32,
    second: u32,      // row where the second matrix begins
    second_stride: u32,
    second_bias: u32,
    third: u32,
    third_stride: u32,
    third_bias: u32,
    w_scale: f32,     // weights are multiplied by it, so that they are f16 numbers
}
@group(1) @binding(0) var<uniform> p: Params;
#include "ending"
#include "halves"

#include "units"
#ifdef TWO
const ROWS = 2u * S;
#else
const ROWS = S;
#endif
const COLUMNS = 2u * S;
const SUBGROUPS = 8u;
const THREADS = SUBGROUPS * LANES;
const ROW = 10u;             // fours from row to row of a tile: eight, and two that keep rows out of each other's banks
const FOURS_OF_X = ROWS * 8u / LANES;       // of a lane, in each step of K
const EIGHTS_OF_W = COLUMNS * 4u / LANES;

// Each subgroup has its own.
var<workgroup> tile_x: array<vec4<f16>, SUBGROUPS * ROWS * ROW>;
var<workgroup> tile_w: array<vec4<f16>, SUBGROUPS * COLUMNS * ROW>;
var<workgroup> patches: array<f32, SUBGROUPS * S * S>;

alias Fours = array<vec4<f16>, FOURS_OF_X>;
alias Eights = array<Fetched8, EIGHTS_OF_W>;

// A lane's part of the tiles from k8 on; x is zero behind the end of K. `last`: the last row of x.
fn fetch(k8: u32, lane: u32, first: u32, last: u32, n_tile: u32, fours: ptr<function, Fours>, eights: ptr<function, Eights>) {
    for (var i = 0u; i < EIGHTS_OF_W; i++) {
        let at = lane + i * LANES;
        let row = row_start(p.w_first + min(n_tile + at / 4u, p.n - 1u));
        // Behind the end of K, x is zero; what is read instead is finite.
        (*eights)[i] = fetched8(row, min(k8 + at % 4u, p.k8 - 1u));
    }
    for (var i = 0u; i < FOURS_OF_X; i++) {
        let at = lane + i * LANES;
        (*fours)[i] = x_four(min(first + at / 8u, last), 2u * k8 + at % 8u);
    }
}

fn stage(lane: u32, x_at: u32, w_at: u32, fours: ptr<function, Fours>, eights: ptr<function, Eights>) {
    workgroupBarrier();
    for (var i = 0u; i < FOURS_OF_X; i++) {
        let at = lane + i * LANES;
        tile_x[x_at + (at / 8u) * ROW + at % 8u] = (*fours)[i];
    }
    for (var i = 0u; i < EIGHTS_OF_W; i++) {
        let at = lane + i * LANES;
        let to = w_at + (at / 4u) * ROW + 2u * (at % 4u);
        let v = halves((*eights)[i]);
        tile_w[to] = v[0];
        tile_w[to + 1u] = v[1];
    }
    workgroupBarrier();
}

// Adds the products of the rows and columns whose tiles begin there.
fn added(sums: Sums, x_at: u32, w_at: u32) -> Sums {
    var result = sums;
    for (var k4 = 0u; k4 < 8u; k4 += S / 4u) {
        let right = coopLoad<Right>(&tile_w[w_at + k4], ROW);
        let left = coopLoadT<Left>(&tile_x[x_at + k4], ROW);
        result = coopMultiplyAdd(left, right, result);
    }
    return result;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    // Blocks that read the same rows of w are next to each other.
    let n_tile = (group.y + group.z * groups.y) * COLUMNS;
    let block = group.x * ROWS;
    let count = select(step.tokens, step.head_rows, HEAD);
    let first = select(0u, step.head_first, HEAD);
    let x_at = subgroup * ROWS * ROW;
    let w_at = subgroup * COLUMNS * ROW;
    var fours = Fours();
    var eights = Eights();
    var next_fours = Fours();
    var next_eights = Eights();
    var sum_00 = Sums();
    var sum_01 = Sums();
#ifdef TWO
    var sum_10 = Sums();
    var sum_11 = Sums();
#endif
    let from_row = first + block;
    let last = first + count - 1u;
    let round = 4u * SUBGROUPS;  // eights of K that a workgroup takes in a step
    fetch(4u * subgroup, lane, from_row, last, n_tile, &fours, &eights);
    fetch(round + 4u * subgroup, lane, from_row, last, n_tile, &next_fours, &next_eights);
    for (var k8 = 0u; k8 < p.k8; k8 += 2u * round) {
        stage(lane, x_at, w_at, &fours, &eights);
        fetch(k8 + 2u * round + 4u * subgroup, lane, from_row, last, n_tile, &fours, &eights);
        sum_00 = added(sum_00, x_at, w_at);
        sum_01 = added(sum_01, x_at, w_at + S * ROW);
#ifdef TWO
        sum_10 = added(sum_10, x_at + S * ROW, w_at);
        sum_11 = added(sum_11, x_at + S * ROW, w_at + S * ROW);
#endif
        stage(lane, x_at, w_at, &next_fours, &next_eights);
        fetch(k8 + 3u * round + 4u * subgroup, lane, from_row, last, n_tile, &next_fours, &next_eights);
        sum_00 = added(sum_00, x_at, w_at);
        sum_01 = added(sum_01, x_at, w_at + S * ROW);
#ifdef TWO
        sum_10 = added(sum_10, x_at + S * ROW, w_at);
        sum_11 = added(sum_11, x_at + S * ROW, w_at + S * ROW);
#endif
    }
    let here = subgroup * LANES + lane;
    let patch_at = subgroup * S * S;
    write_out(sum_00, patch_at, S, here, block, count, n_tile);
    write_out(sum_01, patch_at, S, here, block, count, n_tile + S);
#ifdef TWO
    write_out(sum_10, patch_at, S, here, block + S, count, n_tile);
    write_out(sum_11, patch_at, S, here, block + S, count, n_tile + S);
#endif
}

// Adds up what the subgroups have of rows t_first … and columns n_first … of out, and writes it.
fn write_out(sums: Sums, patch_at: u32, side: u32, here: u32, t_first: u32, count: u32, n_first: u32) {
    workgroupBarrier();
    coopStoreT(sums, &patches[patch_at], side);
    workgroupBarrier();
    let t = t_first + here / S;
    let n = n_first + here % S;
    if (here < S * S && t < count && n < p.n) {
        var sum = patches[here];
        for (var i = 1u; i < SUBGROUPS; i++) { sum += patches[i * S * S + here]; }
        put(t, n, sum / p.w_scale);
    }
}
