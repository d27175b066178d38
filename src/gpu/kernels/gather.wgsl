// out[i] = x[row_i, dim_i], as f32. One thread per element. HEAD: rows are counted from the step's first token, and
// each batch of logits gives those it holds.
#include "step"
#include "pack"
struct Params {
    count: u32,
    slot: u32,    // first element of `out` and first place of `at`
    stride: u32,
}
struct Place {
    row: u32,
    dim: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<u32>; // f32 bits, or two halves with X_F16
@group(1) @binding(3) var<storage, read> at: array<Place>;
@group(1) @binding(4) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.count) { return; }
    var row = at[p.slot + id.x].row;
#ifdef HEAD
    if (row < step.head_first || row >= step.head_first + step.head_rows) { return; }
    row -= step.head_first;
#endif
    let i = row * p.stride + at[p.slot + id.x].dim;
#ifdef X_F16
    let half = (x[i / 2u] >> (16u * (i & 1u))) & 0xffffu;
    // infinities and NaN by their bits, the rest by conversion
    var bits = bitcast<u32>(unpack2x16float(half).x);
    if ((half & 0x7c00u) == 0x7c00u) { bits = ((half & 0x8000u) << 16u) | 0x7f800000u | ((half & 0x3ffu) << 13u); }
    out[p.slot + id.x] = bits;
#else
    out[p.slot + id.x] = x[i];
#endif
}
