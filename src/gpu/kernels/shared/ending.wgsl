// Where sums of products go: out[t, n] = (sum + bias[n]) / divisor, of one matrix or of several; declares the buffers from
// binding 4 on.
// SEVERAL: rows from p.second and p.third on belong to other matrices, and are written elsewhere.
// GATED: rows from p.second on belong to `up`; out = act(gate)·up, in f16 with OUT_F16.
// GATING: out = act(y)·up, of a value `up` from element p.second of its row on, in f16 with OUT_F16.
// ADD: out = residual + multiplier · y.
// EXPERTS: rows are those of an expert, of which the kernel says where they begin; they may be in another buffer.
// KEPT: what is inside is written too: `gate` and `up` of GATED, y of ADD.
#ifdef OUT_F16
@group(1) @binding(4) var<storage, read_write> out: array<u32>;
#else
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#endif
#ifdef BIAS
@group(1) @binding(5) var<storage, read> bias: array<f32>;
#endif
#ifdef ADD
@group(1) @binding(7) var<storage, read> residual: array<f32>;
#endif
#ifdef GATING
@group(1) @binding(7) var<storage, read> gated_by: array<f32>;
#endif
#ifdef SEVERAL
@group(1) @binding(7) var<storage, read_write> out_second: array<f32>;
@group(1) @binding(8) var<storage, read_write> out_third: array<f32>;
#endif
#ifdef KEPT
#ifdef GATED
@group(1) @binding(7) var<storage, read_write> out_second: array<f32>;
#endif
@group(1) @binding(8) var<storage, read_write> out_third: array<f32>;
#endif

#ifdef EXPERTS
var<private> expert_is: bool;
var<private> expert_row: u32;
#endif

// What belongs to row n of a matrix whose biases begin at `first`.
fn finished(sum: f32, n: u32, first: u32) -> f32 {
#ifdef EXPERTS
    if (!expert_is) { return 0.0; }
    let skipped = expert_row;
#else
    let skipped = 0u;
#endif
#ifdef BIAS
    return (sum + bias[first + skipped + n]) / p.divisor;
#else
    return sum / p.divisor;
#endif
}

#ifdef GATED
#include "activation"
// Writes what belongs to row t of x and rows first and first + 1 of `gate`, whose sums come before those of `up`.
fn put_four(t: u32, first: u32, sum: vec4<f32>) {
    if (first >= p.n) { return; }
    var y = vec2<f32>(0.0);
    for (var i = 0u; i < 2u; i++) {
        if (first + i < p.n) {
            let g = finished(sum[i], first + i, p.bias_first);
            let u = finished(sum[i + 2u], first + i, p.second_bias);
            y[i] = gated(g, u);
#ifdef KEPT
            out_second[t * p.second_stride + first + i] = g;
            out_third[t * p.third_stride + first + i] = u;
#endif
        }
    }
#ifdef OUT_F16
    out[(t * p.out_stride + first) / 2u] = pack2(y.x, y.y);
#else
    for (var i = 0u; i < 2u; i++) {
        if (first + i < p.n) { out[t * p.out_stride + first + i] = y[i]; }
    }
#endif
}
#else
#ifdef GATING
#include "activation"
// Writes what belongs to row t of x and four rows from `first` on.
fn put_four(t: u32, first: u32, sum: vec4<f32>) {
    if (first >= p.n) { return; }
    var y = vec4<f32>(0.0);
    for (var i = 0u; i < 4u; i++) {
        if (first + i < p.n) {
            let up = gated_by[t * p.second_stride + p.second + first + i];
            y[i] = gated(finished(sum[i], first + i, p.bias_first), up);
        }
    }
#ifdef OUT_F16
    let to = (t * p.out_stride + first) / 2u;
    out[to] = pack2(y.x, y.y);
    if (first + 2u < p.n) { out[to + 1u] = pack2(y.z, y.w); }
#else
    for (var i = 0u; i < 4u; i++) {
        if (first + i < p.n) { out[t * p.out_stride + first + i] = y[i]; }
    }
#endif
}
#else
// Writes what belongs to row t of x and row n of the matrices.
fn put(t: u32, n: u32, sum: f32) {
#ifdef SEVERAL
    if (n >= p.third) {
        out_third[t * p.third_stride + n - p.third] = finished(sum, n - p.third, p.third_bias);
    } else if (n >= p.second) {
        out_second[t * p.second_stride + n - p.second] = finished(sum, n - p.second, p.second_bias);
    } else {
        out[t * p.out_stride + n] = finished(sum, n, p.bias_first);
    }
#else
    let to = t * p.out_stride + p.n_first + n;
#ifdef ADD
    let y = finished(sum, n, p.bias_first);
    out[to] = residual[to] + p.multiplier * y;
#ifdef KEPT
    out_third[t * p.third_stride + p.n_first + n] = y;
#endif
#else
    out[to] = finished(sum, n, p.bias_first);
#endif
#endif
}
// Likewise of four rows from `first` on.
fn put_four(t: u32, first: u32, sum: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
#ifdef EXPERTS
        let here = expert_row + first + i - p.piece_first < p.piece_rows;
#else
        let here = true;
#endif
        if (here && first + i < p.n) { put(t, first + i, sum[i]); }
    }
}
#endif
#endif
