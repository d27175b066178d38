// The products of linear.wgsl for several rows of x and plain weights: a workgroup takes BLOCK of them and reads w once for all. Each row has the
// bits that linear.wgsl gives it, whatever the others are: the same threads add the same products in the same order.
// LANES threads share four rows of w; a workgroup holds WG/LANES such teams.
// BLOCK8: eight rows of x, not four. SEVERAL, GATED, ADD, HEAD: as in linear.wgsl.
#include "step"
#include "pack"
override WG: u32 = 128u;
override LANES: u32 = 32u;
override SPLIT: bool = false; // a team is larger than a subgroup
override NARROW: bool = false; // a team is a part of a subgroup
override HEAD: bool = false;
struct Params {
    k: u32,           // elements of x and of a row of w
    k8: u32,          // the same in eights, rounded up
    n: u32,           // rows of w, of all matrices; with GATED those of `gate`
    w_first: u32,     // row of the buffer where they begin
    n_first: u32,     // element of out that belongs to row 0
    in_stride8: u32,  // row of x, in eights
    out_stride: u32,  // row of out, elements
    divisor: f32,
    bias_first: u32,  // element of `bias` that belongs to row 0
    multiplier: f32,
    second: u32,      // row where the second matrix begins
    second_stride: u32,
    second_bias: u32,
    third: u32,
    third_stride: u32,
    third_bias: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(3) var<storage, read> w: array<vec4<u32>>;
#include "ending"
#include "weights"
#include "input"

#ifdef BLOCK8
const BLOCK = 8u;
#else
const BLOCK = 4u;
#endif

#ifdef SUBGROUPS
#include "team"
#endif
var<workgroup> sums: array<vec4<f32>, WG>;

fn eight_dot(a: Eight, b: Eight) -> f32 {
    return dot(a.a, b.a) + dot(a.b, b.b);
}
// Eight weights of four rows.
struct Four8 { a: Eight, b: Eight, c: Eight, d: Eight }
fn weights_of(rows: vec4<u32>, k8: u32) -> Four8 {
    return Four8(weight8(rows.x, k8), weight8(rows.y, k8), weight8(rows.z, k8), weight8(rows.w, k8));
}
fn four_dots(w: Four8, x: Eight) -> vec4<f32> {
    return vec4<f32>(eight_dot(w.a, x), eight_dot(w.b, x), eight_dot(w.c, x), eight_dot(w.d, x));
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
    let here = subgroup * subgroup_lanes + subgroup_lane;
#else
    let here = index;
#endif
    let part = here % LANES;
    // Blocks that read the same rows of w are next to each other.
    let team = (group.y + group.z * groups.y) * (WG / LANES) + here / LANES;
    let count = select(step.tokens, step.head_rows, HEAD);
    let block = group.x * BLOCK;
    let from_row = select(block, step.head_first + block, HEAD);
    // rows past the end read the last row and are not written
    let last = p.n - 1u;
#ifdef GATED
    let first = team * 2u;
    let gate = vec2<u32>(min(first, last), min(first + 1u, last));
    let of_team = vec4<u32>(gate, gate + vec2<u32>(p.second)) + vec4<u32>(p.w_first);
#else
    let first = team * 4u;
    let of_team = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last)) + vec4<u32>(p.w_first);
#endif
    let rows = vec4<u32>(row_start(of_team.x), row_start(of_team.y), row_start(of_team.z), row_start(of_team.w));
    var x8 = array<u32, BLOCK>();
    var sum = array<vec4<f32>, BLOCK>();
    for (var i = 0u; i < BLOCK; i++) {
        x8[i] = (from_row + min(i, count - 1u - block)) * p.in_stride8;
        sum[i] = vec4<f32>(0.0);
    }
    var k = part;
    for (; k + LANES < p.k8; k += 2u * LANES) {
        let a = weights_of(rows, k);
        let b = weights_of(rows, k + LANES);
        for (var i = 0u; i < BLOCK; i++) {
            sum[i] += four_dots(a, input8(x8[i], k)) + four_dots(b, input8(x8[i], k + LANES));
        }
    }
    if (k < p.k8) {
        let a = weights_of(rows, k);
        for (var i = 0u; i < BLOCK; i++) { sum[i] += four_dots(a, input8(x8[i], k)); }
    }
    for (var i = 0u; i < BLOCK; i++) {
        var of_row = sum[i];
#ifdef SUBGROUPS
        of_row = team_sum(of_row);
        if (SPLIT) {
            workgroupBarrier();
            if (subgroup_lane == 0u) { sums[subgroup] = of_row; }
            workgroupBarrier();
            if (part == 0u) {
                for (var j = 1u; j < LANES / subgroup_lanes; j++) { of_row += sums[subgroup + j]; }
            }
        }
#else
        if (LANES > 1u) {
            workgroupBarrier();
            sums[here] = of_row;
            workgroupBarrier();
            for (var n = LANES / 2u; n > 0u; n /= 2u) {
                if (part < n) { sums[here] += sums[here + n]; }
                workgroupBarrier();
            }
            of_row = sums[here];
        }
#endif
        if (part == 0u && block + i < count) { put_four(block + i, first, of_row); }
    }
}
