// out = act(gate) · up. One thread per two elements. PART: up is a part of a wider row.
#include "step"
#include "pack"
#include "activation"
struct Params {
    width: u32,
    stride: u32,
    out_stride: u32,
    up_stride: u32,
    up_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> gate: array<vec2<f32>>;
#ifdef PART
@group(1) @binding(3) var<storage, read> up: array<f32>;
#else
@group(1) @binding(3) var<storage, read> up: array<vec2<f32>>;
#endif
#ifdef OUT_F16
@group(1) @binding(4) var<storage, read_write> out: array<u32>;
#else
@group(1) @binding(4) var<storage, read_write> out: array<vec2<f32>>;
#endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pairs = (p.width + 1u) / 2u;
    let item = linear_id(group, groups) * 64u + thread;
    let token = item / pairs;
    if (token >= step.tokens) { return; }
    let i = item % pairs;
    let g = gate[token * (p.stride / 2u) + i];
#ifdef PART
    let origin = token * p.up_stride + p.up_first + 2u * i;
    var u = vec2<f32>(up[origin], 0.0);
    if (2u * i + 1u < p.width) { u.y = up[origin + 1u]; }
#else
    let u = up[token * (p.up_stride / 2u) + i];
#endif
    let y = vec2<f32>(gated(g.x, u.x), gated(g.y, u.y));
    let to = token * (p.out_stride / 2u) + i;
#ifdef OUT_F16
    out[to] = pack2(y.x, y.y);
#else
    out[to] = y;
#endif
}
