// scores[h, t, s] = cap(scale · q·k), masked cells 0: the materialised form, used where scores are wanted.
// One thread per cell; P = step.position + step.tokens positions.
#include "step"
#include "pack"
#include "math"
struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    slab: u32,       // which of a sequence's slabs
    window: u32,
    in_stride: u32,
    scale: f32,
    softcap: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(1) @binding(3) var<storage, read> keys: array<Four>;
@group(1) @binding(4) var<storage, read_write> out: array<f32>;
#include "cache"
#include "visible"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let positions = step.position + step.tokens;
    let cell = linear_id(group, groups) * 64u + thread;
    let position = cell % positions;
    let token = (cell / positions) % step.tokens;
    let head = cell / positions / step.tokens;
    if (head >= p.heads) { return; }
    let at = position_of(token);
    var score = 0.0;
    if (position <= at && position >= first_visible(at)) {
        let d4 = p.head_dim / 4u;
        let row = slot(slab_of(token), position) * p.kv_heads * d4 + head / (p.heads / p.kv_heads) * d4;
        let from_q = token * (p.in_stride / 4u) + head * d4;
        var dots = vec4<f32>(0.0);
        for (var i = 0u; i < d4; i++) { dots += q[from_q + i] * four(keys[row + i]); }
        score = (dots.x + dots.y + dots.z + dots.w) * p.scale;
        if (p.softcap > 0.0) { score = soft_cap(score, p.softcap); }
    }
    out[cell] = score;
}
