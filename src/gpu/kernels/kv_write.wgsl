// Appends a step's keys, values or inputs of a convolution to a cache [slots, width].
// One thread per two elements; CACHE_F16 rounds them. PRODUCT: what is appended is the product of two parts of x.
#include "step"
#include "pack"
struct Params {
    width: u32,
    in_stride: u32,
    slab: u32,     // which of a sequence's slabs
    left: u32,     // first elements of the factors
    right: u32,
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
#ifdef PRODUCT
    let y = vec2<f32>(x[at + p.left] * x[at + p.right], x[at + p.left + 1u] * x[at + p.right + 1u]);
#else
    let y = vec2<f32>(x[at], x[at + 1u]);
#endif
    let to = slot(slab_of(token), position_of(token)) * pairs + i;
#ifdef CACHE_F16
    cache[to] = pack2(y.x, y.y);
#else
    cache[to] = y;
#endif
}
