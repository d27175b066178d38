// The gated delta rule, token by token: S = e^decay · S, S += rate · (v - S k) kᵀ, out = S q / |q| · scale.
// One workgroup for the tokens of a sequence, a value head and four elements of its values: sixteen threads have a row of S, each
// every sixteenth element. It starts from the matrices before position `base`, or from 0 where that is 0, and takes what the ring
// holds from there on; results are of the step's tokens.
#include "step"
#include "math"
override EACH: u32 = 8u;  // elements of a row that a thread has
const LANES = 16u;
const ROWS = 4u;
struct Params {
    keys: u32,        // heads
    values: u32,
    key_dim: u32,     // at most 16·EACH
    value_dim: u32,
    in_stride: u32,   // of rows that begin with queries
    out_stride: u32,
    slab: u32,        // which of a sequence's slabs has what is taken of tokens
    matrix_slab: u32, // which has the matrices: (the slot to start from, base); the results go to its neighbour
    eps: f32,
    scale: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> queries: array<f32>;
@group(1) @binding(3) var<storage, read> taken: array<f32>;
@group(1) @binding(4) var<storage, read_write> matrices: array<f32>; // [slots, heads, value_dim, key_dim]
@group(1) @binding(5) var<storage, read_write> out: array<f32>;
#include "ring"

// Products with keys, then those with queries and the squares of these: in two parts, so that each is read while the other is written.
var<workgroup> found: array<vec2<f32>, 128>;

// What the sixteen threads of a row found, from the first of them on, added as a tree: it rounds less than one after the other.
fn total(first: u32) -> vec2<f32> {
    var sums = array<vec2<f32>, 4>();
    for (var i = 0u; i < 4u; i++) {
        let at = first + 4u * i;
        sums[i] = (found[at] + found[at + 1u]) + (found[at + 2u] + found[at + 3u]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

fn matrix_of(entry: u32) -> vec2<u32> {
    let two = origins[entry].slabs[p.matrix_slab / 2u];
    return select(two.xy, two.zw, p.matrix_slab % 2u == 1u);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let slices = (p.value_dim + ROWS - 1u) / ROWS;
    let item = group.x + groups.x * group.z;
    let entry = group.y;
    if (entry >= step.entries || item >= p.values * slices) { return; }
    let kept = matrix_of(entry);
    // Where each token has an entry, the first of a sequence is that of all.
    if (entry > 0u && matrix_of(max(entry, 1u) - 1u).x == kept.x) { return; }
    var count = step.tokens;
    if (step.entries > 1u) {
        count = 1u;
        while (entry + count < step.entries && matrix_of(entry + count).x == kept.x) { count++; }
    }
    let head = item / slices;
    let lane = thread % LANES;
    let row = thread / LANES;
    let element = (item % slices) * ROWS + row;
    let inside = element < p.value_dim;
    let share = p.values / p.keys;
    let key = (head / share) * p.key_dim;
    let key_width = p.keys * p.key_dim;
    let value = key_width + head * p.value_dim + element;
    let rate = key_width + p.values * p.value_dim + head;
    let width = rate - head + 2u * p.values;
    let of_row = (head * p.value_dim + element) * p.key_dim;
    let of_slot = p.values * p.value_dim * p.key_dim;
    let base = kept.y;

    var s = array<f32, 16>();
    if (inside && base > 0u) {
        for (var e = 0u; e < EACH; e++) {
            let i = lane + e * LANES;
            if (i < p.key_dim) { s[e] = matrices[kept.x * of_slot + of_row + i]; }
        }
    }
    let slab = slab_of(entry);
    let position = origins[entry].position;
    for (var t = base; t < position + count; t++) {
        let at = slot(slab, t) * width;
        let decay = exp_f32(taken[at + rate + p.values]);
        var k = array<f32, 16>();
        var sum = 0.0;
        for (var e = 0u; e < EACH; e++) {
            let i = lane + e * LANES;
            if (i < p.key_dim) { k[e] = taken[at + key + i]; }
            s[e] *= decay;
            sum += s[e] * k[e];
        }
        found[thread] = vec2<f32>(sum, 0.0);
        workgroupBarrier();
        var correction = 0.0;
        if (inside) { correction = taken[at + rate] * (taken[at + value] - total(row * LANES).x); }
        let token = entry + max(t, position) - position;
        var part = vec2<f32>(0.0);
        for (var e = 0u; e < EACH; e++) {
            let i = lane + e * LANES;
            s[e] += correction * k[e];
            if (i < p.key_dim) {
                let q = queries[token * p.in_stride + key + i];
                part += vec2<f32>(s[e] * q, q * q);
            }
        }
        found[64u + thread] = part;
        workgroupBarrier();
        if (lane == 0u && inside && t >= position) {
            let along = total(64u + thread);
            out[token * p.out_stride + head * p.value_dim + element] = along.x * (p.scale / sqrt(along.y + p.eps));
        }
    }
    if (inside) {
        for (var e = 0u; e < EACH; e++) {
            let i = lane + e * LANES;
            if (i < p.key_dim) { matrices[(kept.x ^ 1u) * of_slot + of_row + i] = s[e]; }
        }
    }
}
