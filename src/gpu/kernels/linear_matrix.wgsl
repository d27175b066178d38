// As linear_tiled.wgsl, by the matrix units: products of S×S tiles of f16, summed in f32, by whole subgroups. A workgroup
// computes TOKENS×COLUMNS of out; tiles of x and w are staged through workgroup memory, K in steps of 32, and the next step is
// read while this one is computed. There are two of each tile, so that a step waits once for the other threads.
// WIDE: 128×128 by eight subgroups in place of 64×64 by four. EIGHT: S is 8, not 16. EXPERTS: as shared/tile.wgsl has it.
#enable f16
#enable wgpu_cooperative_matrix
#include "step"
#include "pack"
struct Params {
    k: u32,
    k8: u32,
    n: u32,
    n_first: u32,
    in_stride8: u32,
    out_stride: u32,
    divisor: f32,
    row4: u32,
    w_first: u32,
    bias_first: u32,
    multiplier: f32,
    chosen: u32,      // with EXPERTS: rows of a token
    share: u32,       // those that read one row of x
    piece_first: u32, // row of all experts' where this buffer's begin
    piece_rows: u32,
    experts: u32,
    w_scale: f32,     // weights are multiplied by it, so that they are f16 numbers
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#ifdef BIAS
@group(1) @binding(5) var<storage, read> bias: array<f32>;
#endif
#ifdef ADD
@group(1) @binding(6) var<storage, read> residual: array<f32>;
#endif
#include "halves"
#include "tile"

#include "units"
#ifdef WIDE
const ACROSS = 4u;           // subgroups along the columns, two along the tokens
const TOKENS = 8u * S;
#else
const ACROSS = 2u;
const TOKENS = 4u * S;
#endif
const COLUMNS = 2u * S * ACROSS;
const SUBGROUPS = 2u * ACROSS;
const ROW = 10u;             // fours from row to row of a tile: eight, and two that keep rows out of each other's banks
const THREADS = SUBGROUPS * LANES;
const FOURS_OF_X = TOKENS * 8u / THREADS;   // of a thread, in each step of K
const EIGHTS_OF_W = COLUMNS * 4u / THREADS;

var<workgroup> tile_x: array<vec4<f16>, 2u * TOKENS * ROW>;
var<workgroup> tile_w: array<vec4<f16>, 2u * COLUMNS * ROW>;
var<workgroup> patches: array<f32, SUBGROUPS * S * S>;

alias Fours = array<vec4<f16>, FOURS_OF_X>;
alias Eights = array<Fetched8, EIGHTS_OF_W>;

// A thread's part of the tiles from k8 on; x is zero behind the end of K.
fn fetch(k8: u32, here: u32, tile: Tile, n_tile: u32, fours: ptr<function, Fours>, eights: ptr<function, Eights>) {
    for (var i = 0u; i < FOURS_OF_X; i++) {
        let at = here + i * THREADS;
        (*fours)[i] = x_four(x_row(tile, at / 8u), 2u * k8 + at % 8u);
    }
    for (var i = 0u; i < EIGHTS_OF_W; i++) {
        let at = here + i * THREADS;
        let row = row_start(w_row(tile, n_tile + at / 4u));
        // Behind the end of K, x is zero; what is read instead is finite.
        (*eights)[i] = fetched8(row, min(k8 + at % 4u, p.k8 - 1u));
    }
}

// Puts them into the tiles that begin there.
fn stage(x_at: u32, w_at: u32, here: u32, fours: ptr<function, Fours>, eights: ptr<function, Eights>) {
    for (var i = 0u; i < FOURS_OF_X; i++) {
        let at = here + i * THREADS;
        tile_x[x_at + (at / 8u) * ROW + at % 8u] = (*fours)[i];
    }
    for (var i = 0u; i < EIGHTS_OF_W; i++) {
        let at = here + i * THREADS;
        let to = w_at + (at / 4u) * ROW + 2u * (at % 4u);
        let v = halves((*eights)[i]);
        tile_w[to] = v[0];
        tile_w[to + 1u] = v[1];
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let here = subgroup * LANES + lane;
    let n_tile = group.x * COLUMNS;
#ifdef EXPERTS
    if (group.y >= order[0]) { return; }
#endif
    let tile = tile_of(group.y, TOKENS);
    let down = subgroup / ACROSS;
    let across = subgroup % ACROSS;
    var fours = Fours();
    var eights = Eights();
    // Products of the subgroup's rows (first index) and columns.
    var sum_00 = Sums();
    var sum_01 = Sums();
    var sum_10 = Sums();
    var sum_11 = Sums();
#ifdef WIDE
    var sum_20 = Sums();
    var sum_21 = Sums();
    var sum_30 = Sums();
    var sum_31 = Sums();
#endif
    fetch(0u, here, tile, n_tile, &fours, &eights);
    stage(0u, 0u, here, &fours, &eights);
    workgroupBarrier();
    var x_at = 0u;
    var w_at = 0u;
    for (var k8 = 0u; k8 < p.k8; k8 += 4u) {
        // What is read here is computed in the next round.
        fetch(k8 + 4u, here, tile, n_tile, &fours, &eights);
        for (var k4 = 0u; k4 < 8u; k4 += S / 4u) {
            let right_0 = coopLoad<Right>(&tile_w[w_at + (across * 2u * S) * ROW + k4], ROW);
            let right_1 = coopLoad<Right>(&tile_w[w_at + (across * 2u * S + S) * ROW + k4], ROW);
            let left_0 = coopLoadT<Left>(&tile_x[x_at + (down * (TOKENS / 2u)) * ROW + k4], ROW);
            let left_1 = coopLoadT<Left>(&tile_x[x_at + (down * (TOKENS / 2u) + S) * ROW + k4], ROW);
            sum_00 = coopMultiplyAdd(left_0, right_0, sum_00);
            sum_01 = coopMultiplyAdd(left_0, right_1, sum_01);
            sum_10 = coopMultiplyAdd(left_1, right_0, sum_10);
            sum_11 = coopMultiplyAdd(left_1, right_1, sum_11);
#ifdef WIDE
            let left_2 = coopLoadT<Left>(&tile_x[x_at + (down * (TOKENS / 2u) + 2u * S) * ROW + k4], ROW);
            let left_3 = coopLoadT<Left>(&tile_x[x_at + (down * (TOKENS / 2u) + 3u * S) * ROW + k4], ROW);
            sum_20 = coopMultiplyAdd(left_2, right_0, sum_20);
            sum_21 = coopMultiplyAdd(left_2, right_1, sum_21);
            sum_30 = coopMultiplyAdd(left_3, right_0, sum_30);
            sum_31 = coopMultiplyAdd(left_3, right_1, sum_31);
#endif
        }
        x_at = TOKENS * ROW - x_at;
        w_at = COLUMNS * ROW - w_at;
        stage(x_at, w_at, here, &fours, &eights);
        workgroupBarrier();
    }
    let patch_at = subgroup * S * S;
    let t_first = down * (TOKENS / 2u);
    let n_first = n_tile + across * 2u * S;
    // One tile after the other: the lanes of a subgroup write out what it left in its patch.
    write_out(tile, sum_00, patch_at, S, lane, t_first, n_first);
    write_out(tile, sum_01, patch_at, S, lane, t_first, n_first + S);
    write_out(tile, sum_10, patch_at, S, lane, t_first + S, n_first);
    write_out(tile, sum_11, patch_at, S, lane, t_first + S, n_first + S);
#ifdef WIDE
    write_out(tile, sum_20, patch_at, S, lane, t_first + 2u * S, n_first);
    write_out(tile, sum_21, patch_at, S, lane, t_first + 2u * S, n_first + S);
    write_out(tile, sum_30, patch_at, S, lane, t_first + 3u * S, n_first);
    write_out(tile, sum_31, patch_at, S, lane, t_first + 3u * S, n_first + S);
#endif
}

// Writes sums to rows t_first … of the tile and columns n_first … of out, through a patch of workgroup memory.
fn write_out(tile: Tile, sums: Sums, patch_at: u32, side: u32, lane: u32, t_first: u32, n_first: u32) {
    coopStoreT(sums, &patches[patch_at], side);
    workgroupBarrier();
    for (var i = lane; i < S * S; i += LANES) {
        let t = t_first + i / S;
        let n = n_first + i % S;
        if (has_row(tile, t) && is_computed(tile, n)) {
            var sum = patches[patch_at + i] / p.w_scale;
#ifdef BIAS
            sum += bias[bias_at(tile, n)];
#endif
            sum = of_expert(tile, sum);
            let to = out_row(tile, t) * p.out_stride + p.n_first + n;
#ifdef ADD
            out[to] = residual[to] + p.multiplier * (sum / p.divisor);
#else
            out[to] = sum / p.divisor;
#endif
        }
    }
    workgroupBarrier();
}
