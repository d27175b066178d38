// out[t, h·D + d] = Σ_s probs[h, t, s] · values[s, d]. One thread per four elements of out.
#include "step"
#include "pack"
struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    window: u32,
    out_stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> probs: array<f32>;
@group(0) @binding(3) var<storage, read> values: array<Four>;
#ifdef OUT_F16
@group(0) @binding(4) var<storage, read_write> out: array<vec2<u32>>;
#else
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
#endif
#include "cache"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let d4 = p.head_dim / 4u;
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / (p.heads * d4);
    if (token >= step.tokens) { return; }
    let head = (item / d4) % p.heads;
    let d = item % d4;
    let positions = step.position + step.tokens;
    let at = step.position + token;
    let row = (head * step.tokens + token) * positions;
    let source = head / (p.heads / p.kv_heads) * d4 + d;
    var sum = vec4<f32>(0.0);
    for (var i = first_visible(at); i <= at; i++) {
        sum += probs[row + i] * four(values[(i % p.capacity) * p.kv_heads * d4 + source]);
    }
    let to = token * (p.out_stride / 4u) + head * d4 + d;
#ifdef OUT_F16
    out[to] = vec2<u32>(pack2(sum.x, sum.y), pack2(sum.z, sum.w));
#else
    out[to] = sum;
#endif
}
