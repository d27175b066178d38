// out[r, n] = (Σ_k x[r, k]·w[n, k] + bias[n]) / divisor for one row r per dispatch slice in y: the matrix-vector
// product, limited by the speed at which w is read.
// LANES threads share four rows of w, each reading eight weights of a row at a time, or 32 packed ones; a workgroup holds
// WG/LANES such teams. Packed weights are read ahead of use; with DIGITS they are multiplied by digits of x.
// NORM: x is normalised on the way, by every workgroup for itself, with the bits that rms_norm.wgsl would have stored. NORM_KEPT: the
// first workgroup of a row stores them.
// SEVERAL, GATED, ADD: as shared/ending.wgsl has them.
// EXPERTS: a slice in y for each chosen expert of each row; w has the matrices of all experts, n rows each.
// HEAD: rows of logits, taken from step.head_first on.
#include "step"
#include "pack"
override WG: u32 = 128u;
override LANES: u32 = 32u;
override SPLIT: bool = false; // a team is larger than a subgroup
override NARROW: bool = false; // a team is a part of a subgroup
override HEAD: bool = false;
override HELD: u32 = 1u;      // with NORM, vectors that hold a row of x
struct Params {
    k: u32,           // elements of x and of a row of w
    k8: u32,          // the same in eights, rounded up
    n: u32,           // rows of w, of all matrices; with GATED those of `gate`
    w_first: u32,     // row of the buffer where they begin
    n_first: u32,     // element of out that belongs to row 0
    in_stride8: u32,  // row of x, in eights
    out_stride: u32,  // row of out, elements
    divisor: f32,
    row4: u32,        // words of a row of w, where it is packed
    bias_first: u32,  // element of `bias` that belongs to row 0
    eps: f32,
    offset: f32,      // added to the norm's weight
    multiplier: f32,
    second: u32,      // row where the second matrix begins
    second_stride: u32,
    second_bias: u32,
    third: u32,
    third_stride: u32,
    third_bias: u32,
    chosen: u32,      // with EXPERTS: slices of a token
    share: u32,       // those that read one row of x
    piece_first: u32, // row of all experts' where this buffer's begin
    piece_rows: u32,
    experts: u32,
    normed_stride8: u32, // with NORM_KEPT: row of `normed_x`, in eights
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(3) var<storage, read> w: array<vec4<u32>>;
#include "ending"
#ifdef EXPERTS
@group(1) @binding(6) var<storage, read> numbers: array<f32>;
#endif
#ifdef NORM
@group(1) @binding(6) var<storage, read> norm_weight: array<vec4<f32>>;
#endif
#include "weights"
#ifdef NORM
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
#include "norm_row"
#ifdef NORM_KEPT
#ifdef X_F16
@group(1) @binding(9) var<storage, read_write> normed_x: array<vec4<u32>>;
#else
@group(1) @binding(9) var<storage, read_write> normed_x: array<vec4<f32>>;
#endif
#endif
#ifdef X_F16
fn stored_row8(v: Row8) -> vec4<u32> {
    return vec4<u32>(pack2(v.a.x, v.a.y), pack2(v.a.z, v.a.w), pack2(v.b.x, v.b.y), pack2(v.b.z, v.b.w));
}
fn eight_of(v: vec4<u32>) -> Eight {
    return Eight(unpack4(v.xy), unpack4(v.zw));
}
#endif
#ifdef DIGITS
#else
#ifdef X_F16
var<workgroup> held: array<vec4<u32>, HELD>;
fn input8(first: u32, k8: u32) -> Eight {
    return eight_of(held[k8]);
}
fn hold(k8: u32, v: Row8) {
    held[k8] = stored_row8(v);
}
#else
var<workgroup> held: array<vec4<f32>, HELD>;
fn input8(first: u32, k8: u32) -> Eight {
    return Eight(held[2u * k8], held[2u * k8 + 1u]);
}
fn hold(k8: u32, v: Row8) {
    held[2u * k8] = v.a;
    held[2u * k8 + 1u] = v.b;
}
#endif
#endif
#else
#include "input"
#endif
#ifdef DIGITS
#include "digits"
#ifdef NORM
// Eight i of a row as it would be stored. A row that is not LONG has at most two for each thread, which `row` holds.
fn source8(first: u32, i: u32, row: RowScale) -> Eight {
    if (i >= p.k8) { return Eight(vec4<f32>(0.0), vec4<f32>(0.0)); }
    return as_stored(normed8(first, i, row));
}
fn source_a(first: u32, i: u32, row: RowScale) -> Eight {
    if (LONG) { return source8(first, i, row); }
    return as_stored(normed(row.a, row.of_a, row.scale));
}
fn source_b(first: u32, i: u32, row: RowScale) -> Eight {
    if (LONG) { return source8(first, i, row); }
    return as_stored(normed(row.b, row.of_b, row.scale));
}
fn as_stored(v: Row8) -> Eight {
#ifdef X_F16
    return eight_of(stored_row8(v));
#else
    return Eight(v.a, v.b);
#endif
}
#else
fn source8(first: u32, i: u32) -> Eight {
    if (i >= p.k8) { return Eight(vec4<f32>(0.0), vec4<f32>(0.0)); }
    return input8(first, i);
}
#endif
#endif

#ifdef SUBGROUPS
#include "team"
#endif
var<workgroup> sums: array<vec4<f32>, WG>;

#ifdef PACKED
// A block of four rows, as it is stored.
struct Four32 { a: Stored32, b: Stored32, c: Stored32, d: Stored32 }
fn blocks_of(rows: vec4<u32>, k32: u32) -> Four32 {
    return Four32(stored32(rows.x, k32), stored32(rows.y, k32), stored32(rows.z, k32), stored32(rows.w, k32));
}
fn total(v: Eight) -> f32 {
    return dot(v.a, vec4<f32>(1.0)) + dot(v.b, vec4<f32>(1.0));
}
#else
fn eight_dot(a: Eight, b: Eight) -> f32 {
    return dot(a.a, b.a) + dot(a.b, b.b);
}
// Eight weights of four rows, as they are stored.
struct Four8 { a: Stored8, b: Stored8, c: Stored8, d: Stored8 }
fn weights_of(rows: vec4<u32>, k8: u32) -> Four8 {
    return Four8(stored8(rows.x, k8), stored8(rows.y, k8), stored8(rows.z, k8), stored8(rows.w, k8));
}
fn four_dots(w: Four8, x: Eight) -> vec4<f32> {
    return vec4<f32>(eight_dot(eight(w.a), x), eight_dot(eight(w.b), x), eight_dot(eight(w.c), x), eight_dot(eight(w.d), x));
}
#endif

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
    let team = (group.x + group.z * groups.x) * (WG / LANES) + here / LANES;
#ifdef EXPERTS
    let of_token = group.y / p.chosen;
    let number = numbers[of_token * ((p.chosen + 7u) / 8u * 8u) + group.y - of_token * p.chosen];
    expert_is = number >= 0.0 && number < f32(p.experts);
    expert_row = select(0u, u32(number), expert_is) * p.n;
    let row = group.y / p.share;
    // rows of this buffer
    let begin_row = expert_row - p.piece_first;
    let last_row = p.piece_rows - 1u;
#else
    let row = select(group.y, step.head_first + group.y, HEAD);
#endif
    // rows past the end read the last row and are not written
    let last = p.n - 1u;
#ifdef GATED
    let first = team * 2u;
    let gate = vec2<u32>(min(first, last), min(first + 1u, last));
#ifdef EXPERTS
    let of_team = vec4<u32>(gate, gate + vec2<u32>(p.second)) + vec4<u32>(p.w_first + expert_row);
#else
    let of_team = vec4<u32>(gate, gate + vec2<u32>(p.second)) + vec4<u32>(p.w_first);
#endif
#else
    let first = team * 4u;
    let of_one = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
#ifdef EXPERTS
    // rows of other buffers read some row of this one, and are not written
    let of_team = min(of_one + vec4<u32>(begin_row), vec4<u32>(last_row)) + vec4<u32>(p.w_first);
#else
    let of_team = of_one + vec4<u32>(p.w_first);
#endif
#endif
    let rows = vec4<u32>(row_start(of_team.x), row_start(of_team.y), row_start(of_team.z), row_start(of_team.w));
    // On their way while x is made ready.
#ifdef PACKED
    let blocks = p.k8 / 4u;
    var ahead = blocks_of(rows, min(part, blocks - 1u));
#else
#ifdef NORM
    let ahead = weights_of(rows, min(part, p.k8 - 1u));
    let behind = weights_of(rows, min(part + LANES, p.k8 - 1u));
#endif
#endif
    let x_first = row * p.in_stride8;
#ifdef NORM
    thread = here;
#ifdef SUBGROUPS
    lane = subgroup_lane;
    lanes = subgroup_lanes;
#endif
    let of_row = row_scale(x_first);
#endif
#ifdef NORM_KEPT
    if (group.x == 0u && group.z == 0u) {
        for (var i = here; 8u * i < p.k; i += WG) {
            let v = normed8(x_first, i, of_row);
            let to = row * p.normed_stride8 + i;
#ifdef X_F16
            normed_x[to] = stored_row8(v);
#else
            normed_x[2u * to] = v.a;
            normed_x[2u * to + 1u] = v.b;
#endif
        }
    }
#endif
    var sum = vec4<f32>(0.0);
#ifdef DIGITS
    for (var begin = 0u; begin < blocks; begin += WG / 2u) {
        let i = 4u * begin + here;
#ifdef NORM
        let a = source_a(x_first, i, of_row);
        let b = source_b(x_first, i + WG, of_row);
#else
        let a = source8(x_first, i);
        let b = source8(x_first, i + WG);
#endif
        // Of the blocks before, all is read.
        workgroupBarrier();
        hold_top(here, a);
        if (p.k8 > WG) { hold_top(here + WG, b); }
        workgroupBarrier();
        hold_digits(here, a);
        if (p.k8 > WG) { hold_digits(here + WG, b); }
        workgroupBarrier();
        let end = min(begin + WG / 2u, blocks);
        for (var k = begin + part; k < end; k += LANES) {
            let now = ahead;
            let next = select(k + LANES, end + part, k + LANES >= end);
            ahead = blocks_of(rows, min(next, blocks - 1u));
            let x32 = digits32(k - begin);
            sum += vec4<f32>(
                dot_digits(now.a, k, x32),
                dot_digits(now.b, k, x32),
                dot_digits(now.c, k, x32),
                dot_digits(now.d, k, x32),
            );
        }
    }
#else
#ifdef NORM
    if (LONG) {
        for (var i = here; i < p.k8; i += WG) { hold(i, normed8(x_first, i, of_row)); }
    } else {
        if (here < p.k8) { hold(here, normed(of_row.a, of_row.of_a, of_row.scale)); }
        if (here + WG < p.k8) { hold(here + WG, normed(of_row.b, of_row.of_b, of_row.scale)); }
    }
    workgroupBarrier();
    let x8 = 0u;
#else
    let x8 = x_first;
#endif
#ifdef PACKED
    for (var k = part; k < p.k8 / 4u; k += LANES) {
        let a = input8(x8, 4u * k);
        let b = input8(x8, 4u * k + 1u);
        let c = input8(x8, 4u * k + 2u);
        let d = input8(x8, 4u * k + 3u);
        let of_x = vec2<f32>(total(a) + total(b), total(c) + total(d));
        let now = ahead;
        ahead = blocks_of(rows, min(k + LANES, blocks - 1u));
        sum += vec4<f32>(
            dot32(now.a, k, a, b, c, d, of_x),
            dot32(now.b, k, a, b, c, d, of_x),
            dot32(now.c, k, a, b, c, d, of_x),
            dot32(now.d, k, a, b, c, d, of_x),
        );
    }
#else
    var k = part;
#ifdef NORM
    if (k + LANES < p.k8) {
        sum += four_dots(ahead, input8(x8, k)) + four_dots(behind, input8(x8, k + LANES));
        k += 2u * LANES;
    }
#endif
    for (; k + LANES < p.k8; k += 2u * LANES) {
        let a = weights_of(rows, k);
        let b = weights_of(rows, k + LANES);
        sum += four_dots(a, input8(x8, k)) + four_dots(b, input8(x8, k + LANES));
    }
    if (k < p.k8) { sum += four_dots(weights_of(rows, k), input8(x8, k)); }
#endif
#endif
#ifdef SUBGROUPS
    sum = team_sum(sum);
    if (SPLIT) {
        if (subgroup_lane == 0u) { sums[subgroup] = sum; }
        workgroupBarrier();
        if (part == 0u) {
            for (var i = 1u; i < LANES / subgroup_lanes; i++) { sum += sums[subgroup + i]; }
        }
    }
#else
    if (LANES > 1u) {
        sums[here] = sum;
        workgroupBarrier();
        for (var n = LANES / 2u; n > 0u; n /= 2u) {
            if (part < n) { sums[here] += sums[here + n]; }
            workgroupBarrier();
        }
        sum = sums[here];
    }
#endif
    if (part == 0u) { put_four(group.y, first, sum); }
}
