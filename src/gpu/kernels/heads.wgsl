// One head of q, k or v for each workgroup, as attention wants it: q and k normalised (NORM) and rotated (ROPE), q written
// out, k and v appended to the cache. NEIGHBOURS are rotated in place of halves. Without ROPE, k and v are appended as they
// are. VALUE_NORM: v is normalised too, without a weight. LONE: q alone, of a layer without k and
// v. The bits are those of rms_norm.wgsl, rope.wgsl and kv_write.wgsl one after the other.
#include "step"
#include "pack"
#include "pairs"
override WG: u32 = 64u;
struct Params {
    heads: u32,         // of q; 0 without ROPE
    kv_heads: u32,
    k: u32,             // head_dim
    half_dim: u32,
    positions: u32,     // of the table
    variants: u32,
    slab: u32,          // which of a sequence's slabs
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    out_stride: u32,
    eps: f32,
    offset: f32,
    q_norm_first: u32,  // element of the buffer where the weight begins
    k_norm_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
#ifdef LONE
#else
@group(1) @binding(2) var<storage, read> k_rows: array<f32>;
@group(1) @binding(3) var<storage, read> v_rows: array<f32>;
#ifdef CACHE_F16
@group(1) @binding(4) var<storage, read_write> keys: array<u32>;
@group(1) @binding(5) var<storage, read_write> values: array<u32>;
#else
@group(1) @binding(4) var<storage, read_write> keys: array<vec2<f32>>;
@group(1) @binding(5) var<storage, read_write> values: array<vec2<f32>>;
#endif
#endif
#ifdef ROPE
@group(1) @binding(6) var<storage, read> q_rows: array<f32>;
@group(1) @binding(7) var<storage, read_write> out: array<f32>;
@group(1) @binding(8) var<storage, read> table: array<f32>;
#endif
#ifdef NORM
@group(1) @binding(9) var<storage, read> norm_weight: array<f32>;
#endif
#include "cache"

const MOST = 512u; // elements of a head
var<workgroup> x: array<f32, MOST>;
var<workgroup> turned: array<f32, MOST>;
#ifdef NORM
#include "norm"
#endif

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_lanes: u32,
    @builtin(subgroup_id) subgroup: u32,
#endif
) {
#ifdef SUBGROUPS
    let here = subgroup * subgroup_lanes + subgroup_lane;
#else
    let here = index;
#endif
    let of_token = p.heads + 2u * p.kv_heads;
    let item = linear_id(group, groups);
    let token = item / of_token;
    if (token >= step.tokens) { return; }
    let head = item % of_token;
    let is_query = head < p.heads;
    let is_value = head >= p.heads + p.kv_heads;
#ifdef LONE
#else
    let kv_head = (head - p.heads) % p.kv_heads; // of k and v
#endif
    for (var i = here; i < p.k; i += WG) {
#ifdef LONE
#else
        if (is_value) {
            x[i] = v_rows[token * p.v_stride + kv_head * p.k + i];
        } else if (!is_query) {
            x[i] = k_rows[token * p.k_stride + kv_head * p.k + i];
        }
#endif
#ifdef ROPE
        if (is_query) { x[i] = q_rows[token * p.q_stride + head * p.k + i]; }
#endif
    }
    workgroupBarrier();
#ifdef NORM
#ifdef VALUE_NORM
    let is_normed = true;
#else
    let is_normed = !is_value;
#endif
    if (is_normed) {
        thread = here;
#ifdef SUBGROUPS
        lane = subgroup_lane;
        lanes = subgroup_lanes;
#endif
        let scale = norm_scale(0u, p.k);
        let weights = select(p.k_norm_first, p.q_norm_first, is_query);
        for (var i = here; i < p.k; i += WG) {
            if (is_value) { turned[i] = x[i] * scale; } else { turned[i] = normed(0u, i, weights, scale); }
        }
        workgroupBarrier();
        for (var i = here; i < p.k; i += WG) { x[i] = turned[i]; }
        workgroupBarrier();
    }
#endif
    for (var i = here; i < p.k; i += WG) { turned[i] = x[i]; }
#ifdef ROPE
    if (!is_value) {
        workgroupBarrier();
        let variant = min(origins[entry_of(token)].long_rope, p.variants - 1u) * 2u * p.positions * p.half_dim;
        for (var i = here; i < p.half_dim; i += WG) {
            let angle = variant + position_of(token) * p.half_dim + i;
            let c = table[angle];
            let s = table[angle + p.positions * p.half_dim];
            let pair = pair_of(i, p.half_dim);
            let first = pair.x;
            let second = pair.y;
            let a = x[first];
            let b = x[second];
            turned[first] = a * c - b * s;
            turned[second] = b * c + a * s;
        }
    }
#endif
    workgroupBarrier();
#ifdef ROPE
    if (is_query) {
        for (var i = here; i < p.k; i += WG) { out[token * p.out_stride + head * p.k + i] = turned[i]; }
        return;
    }
#endif
#ifdef LONE
#else
    let to = (slot(slab_of(token), position_of(token)) * p.kv_heads + kv_head) * (p.k / 2u);
    for (var i = here; i < p.k / 2u; i += WG) {
#ifdef CACHE_F16
        let pair = pack2(turned[2u * i], turned[2u * i + 1u]);
#else
        let pair = vec2<f32>(turned[2u * i], turned[2u * i + 1u]);
#endif
        if (is_value) {
            values[to + i] = pair;
        } else {
            keys[to + i] = pair;
        }
    }
#endif
}
