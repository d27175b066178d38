// Fills a weight buffer with pseudo-random values of spread `scale`, as two f16 or bf16 or one f32 per word: the
// benchmark's weights, made where they are used. PCG hash of the word's index (Jarzynski and Olano 2020).
#include "step"
#include "pack"
struct Params {
    words: u32,
    seed: u32,
    scale: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read_write> out: array<u32>;

fn hash(x: u32) -> u32 {
    let state = x * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

fn uniform_value(bits: u32) -> f32 {
    return (f32(bits & 0xffffu) / 32768.0 - 1.0) * p.scale;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let step_size = groups.x * 256u;
    for (var i = group.x * 256u + thread; i < p.words; i += step_size) {
        let random = hash(i ^ p.seed);
        let a = uniform_value(random);
        let b = uniform_value(random >> 16u);
#ifdef W_F16
        out[i] = pack2(a, b);
#endif
#ifdef W_BF16
        out[i] = (bitcast<u32>(a) >> 16u) | (bitcast<u32>(b) & 0xffff0000u);
#endif
#ifdef W_F32
        out[i] = bitcast<u32>(a);
#endif
    }
}
