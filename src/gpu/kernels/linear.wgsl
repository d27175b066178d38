// out[r, n] = (Σ_k x[r, k]·w[n, k] + bias[n]) / divisor for one row r per dispatch slice in y: the matrix-vector
// product, limited by the speed at which w is read.
// LANES threads share ROWS rows of w, each reading eight weights at a time; a workgroup holds WG/LANES such teams.
// HEAD: rows of logits, taken from step.head_first on.
#include "step"
#include "pack"
override WG: u32 = 128u;
override LANES: u32 = 32u;
override SPLIT: bool = false; // a team is larger than a subgroup
struct Params {
    k: u32,           // elements of x and of a row of w
    k8: u32,          // the same in eights, rounded up
    n: u32,           // rows of w in this piece
    n_first: u32,     // element of out that belongs to row 0
    in_stride8: u32,  // row of x, in eights
    out_stride: u32,  // row of out, elements
    divisor: f32,
    row4: u32,        // words of a row of w, where it is packed
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#ifdef BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif
#include "weights"
#include "input"

const ROWS = 2u;
var<workgroup> sums: array<vec2<f32>, WG>;

fn eight_dot(a: Eight, b: Eight) -> f32 {
    return dot(a.a, b.a) + dot(a.b, b.b);
}

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
#ifdef SUBGROUPS
    let thread = subgroup * subgroup_lanes + subgroup_lane;
#else
    let thread = index;
#endif
    let lane = thread % LANES;
    let team = thread / LANES;
    let first = ((group.x + group.z * groups.x) * (WG / LANES) + team) * ROWS;
#ifdef HEAD
    let row8 = (step.head_first + group.y) * p.in_stride8;
#else
    let row8 = group.y * p.in_stride8;
#endif
    // rows past the end read the last row and are not written
    let w0 = row_start(min(first, p.n - 1u));
    let w1 = row_start(min(first + 1u, p.n - 1u));
    var sum = vec2<f32>(0.0);
    var k = lane;
    for (; k + LANES < p.k8; k += 2u * LANES) {
        let a0 = weight8(w0, k);
        let a1 = weight8(w1, k);
        let b0 = weight8(w0, k + LANES);
        let b1 = weight8(w1, k + LANES);
        let xa = input8(row8, k);
        let xb = input8(row8, k + LANES);
        sum += vec2<f32>(eight_dot(a0, xa), eight_dot(a1, xa));
        sum += vec2<f32>(eight_dot(b0, xb), eight_dot(b1, xb));
    }
    if (k < p.k8) {
        let xa = input8(row8, k);
        sum += vec2<f32>(eight_dot(weight8(w0, k), xa), eight_dot(weight8(w1, k), xa));
    }
#ifdef SUBGROUPS
    sum = vec2<f32>(subgroupAdd(sum.x), subgroupAdd(sum.y));
    if (SPLIT) {
        if (subgroup_lane == 0u) { sums[subgroup] = sum; }
        workgroupBarrier();
        if (lane == 0u) {
            for (var i = 1u; i < LANES / subgroup_lanes; i++) { sum += sums[subgroup + i]; }
        }
    }
#else
    sums[thread] = sum;
    workgroupBarrier();
    for (var n = LANES / 2u; n > 0u; n /= 2u) {
        if (lane < n) { sums[thread] += sums[thread + n]; }
        workgroupBarrier();
    }
    sum = sums[thread];
#endif
    if (lane == 0u) {
        for (var i = 0u; i < ROWS; i++) {
            let n = first + i;
            if (n < p.n) {
#ifdef BIAS
                sum[i] += bias[p.n_first + n];
#endif
                out[group.y * p.out_stride + p.n_first + n] = sum[i] / p.divisor;
            }
        }
    }
}
