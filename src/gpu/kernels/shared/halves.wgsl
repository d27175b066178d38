// Rows of x and weights as matrix units take them, in f16; declares `x` and `w`. Weights are eight of a row, times p.w_scale. What
// is fetched early is as it is stored, so that nothing waits for it before it is needed; packed weights are decoded as they come.
// With TAIL the width is no multiple of eight and elements from p.k on are zero.
override TAIL: bool = false;
@group(1) @binding(2) var<storage, read> x: array<vec4<f16>>;

// Four elements of a row of x; zeros behind its end.
fn x_four(row: u32, k4: u32) -> vec4<f16> {
    let zero = vec4<f16>(0.0h);
    if (k4 >= 2u * p.k8) { return zero; }
    let v = x[row * 2u * p.in_stride8 + k4];
    if (!TAIL) { return v; }
    return select(zero, v, vec4<u32>(4u * k4) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.k));
}

alias Halves = array<vec4<f16>, 2>;
#ifdef W_F16
@group(1) @binding(3) var<storage, read> w: array<Halves>;
alias Fetched8 = Halves;
fn row_start(row: u32) -> u32 { return row * p.k8; }
fn fetched8(row: u32, k8: u32) -> Fetched8 { return w[row + k8]; }
// Their scale is 1.
fn halves(v: Fetched8) -> Halves { return v; }
#else
@group(1) @binding(3) var<storage, read> w: array<vec4<u32>>;
#include "weights"
fn narrow(v: Eight) -> Halves {
    return Halves(vec4<f16>(v.a * p.w_scale), vec4<f16>(v.b * p.w_scale));
}
#ifdef PACKED
alias Fetched8 = Halves;
fn fetched8(row: u32, k8: u32) -> Fetched8 { return narrow(weight8(row, k8)); }
fn halves(v: Fetched8) -> Halves { return v; }
#else
alias Fetched8 = Stored8;
fn fetched8(row: u32, k8: u32) -> Fetched8 { return stored8(row, k8); }
fn halves(v: Fetched8) -> Halves { return narrow(eight(v)); }
#endif
#endif
