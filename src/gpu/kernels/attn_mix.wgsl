// out[t, h·D + d] = Σ_s probs[h, t, s] · values[s, d]. One workgroup per token and head; each thread has four elements of
// out and every parts-th position.
#include "step"
#include "pack"
struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    slab: u32,       // which of a sequence's slabs
    window: u32,
    out_stride: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> probs: array<f32>;
@group(1) @binding(3) var<storage, read> values: array<Four>;
#ifdef OUT_F16
@group(1) @binding(4) var<storage, read_write> out: array<vec2<u32>>;
#else
@group(1) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
#endif
#include "cache"
#include "visible"

var<workgroup> mixed: array<vec4<f32>, 128>;

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_id(group, groups);
    let token = item / p.heads;
    if (token >= step.tokens) { return; }
    let head = item % p.heads;
    let d4 = p.head_dim / 4u;
    let parts = 128u / d4;
    let part = thread / d4;
    let at = position_of(token);
    let slab = slab_of(token);
    let row = (head * step.tokens + token) * (step.position + step.tokens);
    let row4 = p.kv_heads * d4;
    let column = head / (p.heads / p.kv_heads) * d4 + thread % d4;
    var sum = vec4<f32>(0.0);
    if (part < parts) {
        var i = first_visible(at) + part;
        // four loads in flight
        for (; i + 3u * parts <= at; i += 4u * parts) {
            let a = values[slot(slab, i) * row4 + column];
            let b = values[slot(slab, i + parts) * row4 + column];
            let c = values[slot(slab, i + 2u * parts) * row4 + column];
            let e = values[slot(slab, i + 3u * parts) * row4 + column];
            sum += probs[row + i] * four(a) + probs[row + i + parts] * four(b) + probs[row + i + 2u * parts] * four(c)
                + probs[row + i + 3u * parts] * four(e);
        }
        for (; i <= at; i += parts) { sum += probs[row + i] * four(values[slot(slab, i) * row4 + column]); }
    }
    mixed[thread] = sum;
    workgroupBarrier();
    if (thread >= d4) { return; }
    for (var i = 1u; i < parts; i++) { sum += mixed[i * d4 + thread]; }
    let to = token * (p.out_stride / 4u) + head * d4 + thread;
#ifdef OUT_F16
    out[to] = vec2<u32>(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
#else
    out[to] = sum;
#endif
}
