// out[t] = table[ids[t]] · scale. One thread per eight elements; a table split over several buffers takes one
// dispatch per piece, each writing the tokens whose rows it holds.
#include "step"
#include "pack"
struct Params {
    width8: u32,      // row of the table, in eights
    out_stride: u32,  // elements
    row_first: u32,   // first row of this piece
    row_count: u32,
    scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
#include "weights"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / p.width8;
    if (token >= step.tokens) { return; }
    let row = ids[token];
    if (row < p.row_first || row - p.row_first >= p.row_count) { return; }
    let k8 = item % p.width8;
    let v = weight8((row - p.row_first) * p.width8 + k8);
    let at = token * (p.out_stride / 4u) + 2u * k8;
    out[at] = v.a * p.scale;
    out[at + 1u] = v.b * p.scale;
}
