// out[r, n] = (Σ_k x[r, k]·w[n, k] + bias[n]) / divisor for one row r per dispatch slice in y: the matrix-vector
// product, limited by the speed at which w is read.
// LANES threads share four rows of w, each reading eight weights of a row at a time, or 32 packed ones; a workgroup holds
// WG/LANES such teams.
// NORM: x is normalised on the way, by every workgroup for itself, with the bits that rms_norm.wgsl would have stored.
// SEVERAL: rows from p.second and p.third on belong to other matrices, and are written elsewhere.
// GATED: rows from p.second on belong to `up`; out = act(gate)·up, in f16 with OUT_F16.
// ADD: out = residual + multiplier · y.
// HEAD: rows of logits, taken from step.head_first on.
#include "step"
#include "pack"
override WG: u32 = 128u;
override LANES: u32 = 32u;
override SPLIT: bool = false; // a team is larger than a subgroup
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
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(3) var<storage, read> w: array<vec4<u32>>;
#ifdef OUT_F16
@group(1) @binding(4) var<storage, read_write> out: array<u32>;
#else
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#endif
#ifdef BIAS
@group(1) @binding(5) var<storage, read> bias: array<f32>;
#endif
#ifdef NORM
@group(1) @binding(6) var<storage, read> norm_weight: array<vec4<f32>>;
#endif
#ifdef ADD
@group(1) @binding(7) var<storage, read> residual: array<f32>;
#endif
#ifdef SEVERAL
@group(1) @binding(7) var<storage, read_write> out_second: array<f32>;
@group(1) @binding(8) var<storage, read_write> out_third: array<f32>;
#endif
#include "weights"
#ifdef NORM
@group(1) @binding(2) var<storage, read> x: array<vec4<f32>>;
#include "norm_row"
#ifdef X_F16
var<workgroup> held: array<vec4<u32>, HELD>;
fn input8(first: u32, k8: u32) -> Eight {
    let v = held[k8];
    return Eight(unpack4(v.xy), unpack4(v.zw));
}
fn hold(k8: u32, v: Row8) {
    held[k8] = vec4<u32>(pack2(v.a.x, v.a.y), pack2(v.a.z, v.a.w), pack2(v.b.x, v.b.y), pack2(v.b.z, v.b.w));
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
#else
#include "input"
#endif
#ifdef GATED
#include "activation"
#endif

var<workgroup> sums: array<vec4<f32>, WG>;

#ifdef PACKED
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

// What belongs to row n of a matrix whose biases begin at `first`.
fn finished(sum: f32, n: u32, first: u32) -> f32 {
#ifdef BIAS
    return (sum + bias[first + n]) / p.divisor;
#else
    return sum / p.divisor;
#endif
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
    let team = (group.x + group.z * groups.x) * (WG / LANES) + here / LANES;
    let row = select(group.y, step.head_first + group.y, HEAD);
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
#ifdef NORM
#ifdef PACKED
#else
    // On their way while the row is normalised.
    let ahead = weights_of(rows, min(part, p.k8 - 1u));
    let behind = weights_of(rows, min(part + LANES, p.k8 - 1u));
#endif
    thread = here;
#ifdef SUBGROUPS
    lane = subgroup_lane;
    lanes = subgroup_lanes;
#endif
    let x_first = row * p.in_stride8;
    let scale = row_scale(x_first);
    for (var i = here; i < p.k8; i += WG) { hold(i, normed8(x_first, i, scale)); }
    workgroupBarrier();
    let x8 = 0u;
#else
    let x8 = row * p.in_stride8;
#endif
    var sum = vec4<f32>(0.0);
#ifdef PACKED
    for (var k = part; k < p.k8 / 4u; k += LANES) {
        let a = input8(x8, 4u * k);
        let b = input8(x8, 4u * k + 1u);
        let c = input8(x8, 4u * k + 2u);
        let d = input8(x8, 4u * k + 3u);
        let of_x = vec2<f32>(total(a) + total(b), total(c) + total(d));
        sum += vec4<f32>(
            dot32(rows.x, k, a, b, c, d, of_x),
            dot32(rows.y, k, a, b, c, d, of_x),
            dot32(rows.z, k, a, b, c, d, of_x),
            dot32(rows.w, k, a, b, c, d, of_x),
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
#ifdef SUBGROUPS
    sum = vec4<f32>(subgroupAdd(sum.x), subgroupAdd(sum.y), subgroupAdd(sum.z), subgroupAdd(sum.w));
    if (SPLIT) {
        if (subgroup_lane == 0u) { sums[subgroup] = sum; }
        workgroupBarrier();
        if (part == 0u) {
            for (var i = 1u; i < LANES / subgroup_lanes; i++) { sum += sums[subgroup + i]; }
        }
    }
#else
    sums[here] = sum;
    workgroupBarrier();
    for (var n = LANES / 2u; n > 0u; n /= 2u) {
        if (part < n) { sums[here] += sums[here + n]; }
        workgroupBarrier();
    }
    sum = sums[here];
#endif
    if (part != 0u) { return; }
#ifdef GATED
    if (first >= p.n) { return; }
    var y = vec2<f32>(0.0);
    for (var i = 0u; i < 2u; i++) {
        if (first + i < p.n) {
            let g = finished(sum[i], first + i, p.bias_first);
            y[i] = activation(g) * finished(sum[i + 2u], first + i, p.second_bias);
        }
    }
#ifdef OUT_F16
    out[(group.y * p.out_stride + first) / 2u] = pack2(y.x, y.y);
#else
    for (var i = 0u; i < 2u; i++) {
        if (first + i < p.n) { out[group.y * p.out_stride + first + i] = y[i]; }
    }
#endif
#else
    for (var i = 0u; i < 4u; i++) {
        let n = first + i;
        if (n >= p.n) { break; }
#ifdef SEVERAL
        if (n >= p.third) {
            out_third[group.y * p.third_stride + n - p.third] = finished(sum[i], n - p.third, p.third_bias);
        } else if (n >= p.second) {
            out_second[group.y * p.second_stride + n - p.second] = finished(sum[i], n - p.second, p.second_bias);
        } else {
            out[group.y * p.out_stride + n] = finished(sum[i], n, p.bias_first);
        }
#else
        let to = group.y * p.out_stride + p.n_first + n;
#ifdef ADD
        out[to] = residual[to] + p.multiplier * finished(sum[i], n, p.bias_first);
#else
        out[to] = finished(sum[i], n, p.bias_first);
#endif
#endif
    }
#endif
}
