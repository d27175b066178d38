// Rotates the halves (i, i + half_dim), or with NEIGHBOURS (2i, 2i + 1), of every head's leading 2·half_dim elements; the rest
// passes through.
// table: [variant][cos, sin][positions][half_dim]. One thread per element pair, then one per element left.
#include "step"
#include "origins"
#include "pairs"
struct Params {
    heads: u32,
    head_dim: u32,
    half_dim: u32,
    positions: u32,
    in_stride: u32,
    out_stride: u32,
    variants: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<f32>;
@group(1) @binding(3) var<storage, read> table: array<f32>;
@group(1) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let per_head = p.head_dim - p.half_dim;
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / (per_head * p.heads);
    if (token >= step.tokens) { return; }
    let head = (item / per_head) % p.heads;
    let i = item % per_head;
    let at_in = token * p.in_stride + head * p.head_dim;
    let at_out = token * p.out_stride + head * p.head_dim;
    if (i >= p.half_dim) {
        out[at_out + p.half_dim + i] = x[at_in + p.half_dim + i];
        return;
    }
    let variant = min(origins[entry_of(token)].long_rope, p.variants - 1u) * 2u * p.positions * p.half_dim;
    let angle = variant + position_of(token) * p.half_dim + i;
    let c = table[angle];
    let s = table[angle + p.positions * p.half_dim];
    let pair = pair_of(i, p.half_dim);
    let first = pair.x;
    let second = pair.y;
    let a = x[at_in + first];
    let b = x[at_in + second];
    out[at_out + first] = a * c - b * s;
    out[at_out + second] = b * c + a * s;
}
