// Appends a step's keys or values to a cache [slots, width].
// One thread per two elements; CACHE_F16 rounds them.
#include "step"
#include "pack"
struct Params {
    width: u32,
    in_stride: u32,
    slab: u32,     // which of a sequence's slabs
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x: array<f32>;
#ifdef CACHE_F16
@group(1) @binding(3) var<storage, read_write> cache: array<u32>;
#else
@group(1) @binding(3) var<storage, read_write> cache: array<vec2<f32>>;
#endif
#include "cache"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pairs = p.width / 2u;
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / pairs;
    if (token >= step.tokens) { return; }
    let i = item % pairs;
    let at = token * p.in_stride + 2u * i;
    let to = slot(slab_of(token), position_of(token)) * pairs + i;
#ifdef CACHE_F16
    cache[to] = pack2(x[at], x[at + 1u]);
#else
    cache[to] = vec2<f32>(x[at], x[at + 1u]);
#endif
}
