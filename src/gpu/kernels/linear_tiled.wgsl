// out[t, n] = (Σ_k x[t, k]·w[n, k] + bias[n]) / divisor for many rows: 64×64 tiles of out, K in steps of 32
// staged through workgroup memory (16 KiB), sixteen sums per thread. ADD: out = residual + multiplier · that. EXPERTS: as
// shared/tile.wgsl has it.
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
    w_first: u32,     // row of the buffer where the matrix begins
    bias_first: u32,
    multiplier: f32,
    chosen: u32,      // with EXPERTS: rows of a token
    share: u32,       // those that read one row of x
    piece_first: u32, // row of all experts' where this buffer's begin
    piece_rows: u32,
    experts: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#ifdef BIAS
@group(1) @binding(5) var<storage, read> bias: array<f32>;
#endif
#ifdef ADD
@group(1) @binding(6) var<storage, read> residual: array<f32>;
#endif
#include "weights"
#include "input"
#include "tile"

// [k/4][row]: four k of a row at a time. Whole vectors are written, for writing one component of a shared vector may
// rewrite the others, and neighbouring threads are neighbours in memory both ways.
var<workgroup> tile_x: array<vec4<f32>, 512>;
var<workgroup> tile_w: array<vec4<f32>, 512>;

// Σ + x[k] · w[k, 0..4] for the four k of x; w holds four k of one row each.
fn add4(sum: vec4<f32>, x: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
    return sum + x.x * w[0] + x.y * w[1] + x.z * w[2] + x.w * w[3];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let n_tile = group.x * 64u;
#ifdef EXPERTS
    if (group.y >= order[0]) { return; }
#endif
    let tile = tile_of(group.y, 64u);
    // loading: thread owns one row of each tile and eight k
    let load_row = thread % 64u;
    let load_k8 = thread / 64u;
    let x_from = x_row(tile, load_row) * p.in_stride8;
    let w_from = row_start(w_row(tile, n_tile + load_row));
    // computing: thread owns rows tt + 16·i and columns tn + 16·j, i and j below 4
    let tn = thread % 16u;
    let tt = thread / 16u;
    var sums = array<vec4<f32>, 4>();
    for (var k8 = 0u; k8 < p.k8; k8 += 4u) {
        var vx = Eight(vec4<f32>(0.0), vec4<f32>(0.0));
        var vw = Eight(vec4<f32>(0.0), vec4<f32>(0.0));
        if (k8 + load_k8 < p.k8) {
            vx = input8(x_from, k8 + load_k8);
            vw = weight8(w_from, k8 + load_k8);
        }
        let to = load_k8 * 128u + load_row;
        tile_x[to] = vx.a;
        tile_x[to + 64u] = vx.b;
        tile_w[to] = vw.a;
        tile_w[to + 64u] = vw.b;
        workgroupBarrier();
        // each step of K has its own sums, which keeps rounding near that of a tree
        var block = array<vec4<f32>, 4>();
        for (var k4 = 0u; k4 < 512u; k4 += 64u) {
            let b = transpose(mat4x4<f32>(tile_w[k4 + tn], tile_w[k4 + tn + 16u], tile_w[k4 + tn + 32u], tile_w[k4 + tn + 48u]));
            block[0] = add4(block[0], tile_x[k4 + tt], b);
            block[1] = add4(block[1], tile_x[k4 + tt + 16u], b);
            block[2] = add4(block[2], tile_x[k4 + tt + 32u], b);
            block[3] = add4(block[3], tile_x[k4 + tt + 48u], b);
        }
        sums[0] += block[0];
        sums[1] += block[1];
        sums[2] += block[2];
        sums[3] += block[3];
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let t = tt + 16u * i;
        let row = out_row(tile, t);
        for (var j = 0u; j < 4u; j++) {
            let n = n_tile + tn + 16u * j;
            if (has_row(tile, t) && is_computed(tile, n)) {
                var sum = sums[i][j];
#ifdef BIAS
                sum += bias[bias_at(tile, n)];
#endif
                sum = of_expert(tile, sum);
                let to = row * p.out_stride + p.n_first + n;
#ifdef ADD
                out[to] = residual[to] + p.multiplier * (sum / p.divisor);
#else
                out[to] = sum / p.divisor;
#endif
            }
        }
    }
}
