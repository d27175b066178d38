// As linear.wgsl, over packed weights: LANES threads share ROWS rows of w, each taking 32 weights of each at a time.
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
    row4: u32,        // words of a row of w
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#ifdef BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif
#include "packed"
#include "input"

const ROWS = 4u;
var<workgroup> sums: array<vec4<f32>, WG>;

fn total(v: Eight) -> f32 {
    return dot(v.a, vec4<f32>(1.0)) + dot(v.b, vec4<f32>(1.0));
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
    let last = p.n - 1u;
    let w0 = row_start(min(first, last));
    let w1 = row_start(min(first + 1u, last));
    let w2 = row_start(min(first + 2u, last));
    let w3 = row_start(min(first + 3u, last));
    var sum = vec4<f32>(0.0);
    for (var k = lane; k < p.k8 / 4u; k += LANES) {
        let a = input8(row8, 4u * k);
        let b = input8(row8, 4u * k + 1u);
        let c = input8(row8, 4u * k + 2u);
        let d = input8(row8, 4u * k + 3u);
        let of_x = vec2<f32>(total(a) + total(b), total(c) + total(d));
        sum += vec4<f32>(
            dot32(w0, k, a, b, c, d, of_x),
            dot32(w1, k, a, b, c, d, of_x),
            dot32(w2, k, a, b, c, d, of_x),
            dot32(w3, k, a, b, c, d, of_x),
        );
    }
#ifdef SUBGROUPS
    sum = vec4<f32>(subgroupAdd(sum.x), subgroupAdd(sum.y), subgroupAdd(sum.z), subgroupAdd(sum.w));
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
