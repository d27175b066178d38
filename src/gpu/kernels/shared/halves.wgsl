// Weights as matrix units take them: eight of a row, in f16, times p.w_scale; declares `w`. What is fetched early is as it is
// stored, so that nothing waits for it before it is needed; packed weights are decoded as they come.
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
