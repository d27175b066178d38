// What a cache [slots, width] holds of a step's tokens, as stored: out[token] = cache[slot of the token].
// One thread per word, which is an element in f32 or two in f16.
#include "step"
struct Params {
    words: u32,     // of a row of the cache
    out_words: u32, // from row to row of `out`
    slab: u32,      // which of a sequence's slabs
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> cache: array<u32>;
@group(1) @binding(3) var<storage, read_write> out: array<u32>;
#include "ring"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / p.words;
    if (token >= step.tokens) { return; }
    let i = item % p.words;
    out[token * p.out_words + i] = cache[slot(slab_of(token), position_of(token)) * p.words + i];
}
