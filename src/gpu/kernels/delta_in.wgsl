// What a delta rule takes of a token: keys as long as 1, values, rates sigmoid(b), decays -e^d · ln(1 + e^(a + s)).
// One workgroup per token and key head, with the value heads that share it. RING: it goes into the cache [slots, taken].
#include "step"
#include "math"
override WG: u32 = 64u;
struct Params {
    keys: u32,         // heads
    values: u32,
    key_dim: u32,
    value_dim: u32,
    in_stride: u32,    // of queries, keys and values
    gate_stride: u32,  // of b, and of a
    out_stride: u32,
    decay_first: u32,  // element of the buffer where d begins
    step_first: u32,   // and s
    slab: u32,         // which of a sequence's slabs
    eps: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> qkv: array<f32>;
@group(1) @binding(3) var<storage, read> rate: array<f32>;
@group(1) @binding(4) var<storage, read> decay: array<f32>;
@group(1) @binding(5) var<storage, read> log_decay: array<f32>;
@group(1) @binding(6) var<storage, read> time_step: array<f32>;
@group(1) @binding(7) var<storage, read_write> out: array<f32>;
#include "reduce"
#include "ring"

// ln(1 + e^x) = max(x, 0) + ln(1 + e), e = e^-|x|; the second by the series of 2 artanh(e / (2 + e)).
fn softplus(x: f32) -> f32 {
    let e = exp_f32(-abs(x));
    let z = e / (2.0 + e);
    let y = z * z;
    let series = ((((((y / 15.0 + 1.0 / 13.0) * y + 1.0 / 11.0) * y + 1.0 / 9.0) * y + 1.0 / 7.0) * y + 0.2) * y + 1.0 / 3.0) * y;
    return max(x, 0.0) + 2.0 * (z + z * series);
}

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
    thread = index;
#ifdef SUBGROUPS
    lane = subgroup_lane;
    lanes = subgroup_lanes;
    thread = subgroup * subgroup_lanes + subgroup_lane;
#endif
    let item = linear_id(group, groups);
    let token = item / p.keys;
    if (token >= step.tokens) { return; }
    let head = item % p.keys;
    let key_width = p.keys * p.key_dim;
    let value_width = p.values * p.value_dim;
    let taken = key_width + value_width + 2u * p.values;
#ifdef RING
    let to = slot(slab_of(token), position_of(token)) * taken;
#else
    let to = token * p.out_stride;
#endif
    let key = token * p.in_stride + key_width + head * p.key_dim;
    var squares = 0.0;
    for (var i = thread; i < p.key_dim; i += WG) { squares += qkv[key + i] * qkv[key + i]; }
    let inverse = 1.0 / sqrt(workgroup_sum(squares) + p.eps);
    for (var i = thread; i < p.key_dim; i += WG) { out[to + head * p.key_dim + i] = qkv[key + i] * inverse; }

    let share = p.values / p.keys;
    let first = head * share * p.value_dim;
    let value = token * p.in_stride + 2u * key_width + first;
    for (var i = thread; i < share * p.value_dim; i += WG) { out[to + key_width + first + i] = qkv[value + i]; }
    for (var i = thread; i < share; i += WG) {
        let h = head * share + i;
        out[to + key_width + value_width + h] = 1.0 / (1.0 + exp_f32(-rate[token * p.gate_stride + h]));
        let step_of = softplus(decay[token * p.gate_stride + h] + time_step[p.step_first + h]);
        out[to + key_width + value_width + p.values + h] = -(exp_f32(log_decay[p.decay_first + h]) * step_of);
    }
}
