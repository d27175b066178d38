// out[t, n] = (Σ_k x[t, k]·w[n, k] + bias[n]) / divisor for many rows: 64×64 tiles of out, K in steps of 32
// staged through workgroup memory (16 KiB), sixteen sums per thread.
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
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#ifdef BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif
#include "weights"
#include "input"

// [k][row], so that four neighbouring rows are one load
var<workgroup> tile_x: array<vec4<f32>, 512>;
var<workgroup> tile_w: array<vec4<f32>, 512>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let n_tile = group.x * 64u;
    let t_tile = group.y * 64u;
    // loading: thread owns one row of each tile and eight k
    let load_row = thread % 64u;
    let load_k8 = thread / 64u;
    let x_row = (min(t_tile + load_row, step.tokens - 1u)) * p.in_stride8;
    let w_row = (min(n_tile + load_row, p.n - 1u)) * p.k8;
    // computing: thread owns a 4×4 block
    let tn = thread % 16u;
    let tt = thread / 16u;
    var sums: array<vec4<f32>, 4>;
    for (var k8 = 0u; k8 < p.k8; k8 += 4u) {
        var vx = Eight(vec4<f32>(0.0), vec4<f32>(0.0));
        var vw = Eight(vec4<f32>(0.0), vec4<f32>(0.0));
        if (k8 + load_k8 < p.k8) {
            vx = input8(x_row, k8 + load_k8);
            vw = weight8(w_row + k8 + load_k8);
        }
        for (var i = 0u; i < 4u; i++) {
            let low = (load_k8 * 8u + i) * 16u + load_row / 4u;
            let high = (load_k8 * 8u + i + 4u) * 16u + load_row / 4u;
            tile_x[low][load_row % 4u] = vx.a[i];
            tile_x[high][load_row % 4u] = vx.b[i];
            tile_w[low][load_row % 4u] = vw.a[i];
            tile_w[high][load_row % 4u] = vw.b[i];
        }
        workgroupBarrier();
        // each step of K has its own sums, which keeps rounding near that of a tree
        var block: array<vec4<f32>, 4>;
        for (var k = 0u; k < 32u; k++) {
            let a = tile_x[k * 16u + tt];
            let b = tile_w[k * 16u + tn];
            block[0] += a.x * b;
            block[1] += a.y * b;
            block[2] += a.z * b;
            block[3] += a.w * b;
        }
        sums[0] += block[0];
        sums[1] += block[1];
        sums[2] += block[2];
        sums[3] += block[3];
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let t = t_tile + tt * 4u + i;
        for (var j = 0u; j < 4u; j++) {
            let n = n_tile + tn * 4u + j;
            if (t < step.tokens && n < p.n) {
                var sum = sums[i][j];
#ifdef BIAS
                sum += bias[p.n_first + n];
#endif
                out[t * p.out_stride + p.n_first + n] = sum / p.divisor;
            }
        }
    }
}
