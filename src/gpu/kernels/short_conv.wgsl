// out = gate · (sum over j of weight[channel, j] · input[position - (taps - 1) + j, channel] + bias), the inputs from a cache
// [slots, width]; those before position 0 are 0. One thread per two channels. BIAS: there is one. ACTIVATED: out = act(the sum).
#include "step"
#include "pack"
#ifdef ACTIVATED
#include "activation"
#endif
struct Params {
    width: u32,
    in_stride: u32,    // of the rows that have the gate
    out_stride: u32,
    gate: u32,         // first element of the gate
    taps: u32,
    slab: u32,         // which of a sequence's slabs
    weight_first: u32, // element of the buffer where the weight begins
    bias_first: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> gates: array<f32>;
@group(1) @binding(3) var<storage, read> cache: array<f32>;
@group(1) @binding(4) var<storage, read> weight: array<f32>;
#ifdef OUT_F16
@group(1) @binding(5) var<storage, read_write> out: array<u32>;
#else
@group(1) @binding(5) var<storage, read_write> out: array<f32>;
#endif
#ifdef BIAS
@group(1) @binding(6) var<storage, read> conv_bias: array<f32>;
#endif
#include "ring"

fn channel(token: u32, c: u32) -> f32 {
    if (c >= p.width) { return 0.0; }
    let slab = slab_of(token);
    let position = position_of(token);
    var sum = 0.0;
    for (var j = 0u; j < p.taps; j++) {
        let back = p.taps - 1u - j;
        if (back <= position) {
            sum += weight[p.weight_first + c * p.taps + j] * cache[slot(slab, position - back) * p.width + c];
        }
    }
#ifdef BIAS
    sum += conv_bias[p.bias_first + c];
#endif
#ifdef ACTIVATED
    return activation(sum);
#else
    return gates[token * p.in_stride + p.gate + c] * sum;
#endif
}

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
    let c = 2u * (item % pairs);
    let a = channel(token, c);
    let b = channel(token, c + 1u);
#ifdef OUT_F16
    out[(token * p.out_stride + c) / 2u] = pack2(a, b);
#else
    out[token * p.out_stride + c] = a;
    if (c + 1u < p.width) { out[token * p.out_stride + c + 1u] = b; }
#endif
}
