// out[t] = table[id of t] · scale. One thread per eight elements; a table split over several buffers takes one
// dispatch per piece, each writing the tokens whose rows it holds.
#include "step"
#include "origins"
#include "pack"
struct Params {
    k8: u32,          // row of the table, in eights
    out_stride: u32,  // elements
    row_first: u32,   // first row of this piece
    row_count: u32,
    scale: f32,
    row4: u32,        // words of a row, where it is packed
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> ids: array<u32>;
@group(1) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(1) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
#include "weights"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / p.k8;
    if (token >= step.tokens) { return; }
    let entry = entry_of(token);
    let row = ids[origins[entry].id + token - entry];
    if (row < p.row_first || row - p.row_first >= p.row_count) { return; }
    let k8 = item % p.k8;
    let v = weight8(row_start(row - p.row_first), k8);
    let at = token * (p.out_stride / 4u) + 2u * k8;
    out[at] = v.a * p.scale;
    out[at + 1u] = v.b * p.scale;
}
