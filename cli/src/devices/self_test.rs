//! Does an adapter compute rightly? A small plan with every kind of op runs on it and on the oracle. A value is right
//! within `ALLOWED` times the rounding floor: what the same plan loses when the oracle computes in f32, with the
//! adapter's storage types, instead of f64.

use doppler::cpu::CpuExecutor;
pub use doppler::debug::floor::ALLOWED;
use doppler::debug::floor::{self, times, ulp};
use doppler::exec::{Content, Executor, Read, Request, Rows, Step, Storage, Tokens, Want, WeightSink};
use doppler::gpu::{Gpu, GpuExecutor};
use doppler::inference::pipeline;
use doppler::model::{
    Activation, LayerConfig, ModelConfig, Norms, QueryKeyNorm, RopeConfig, RopeScaling, TensorName, TensorNames, WeightRole,
};
use doppler::plan::{Plan, WeightId};
use doppler::tensor::{DType, Tensor};
use doppler::{Error, Result};
use pollster::block_on;
use std::collections::BTreeMap;

/// Prompt of the test; longer than a layer's window, and then one token more, as in decoding.
const PROMPT: [u32; 11] = [5, 90, 17, 3, 44, 61, 8, 29, 72, 1, 50];
const NEXT: [u32; 1] = [33];

/// What came out.
pub struct Verdict {
    /// The largest error, in rounding floors.
    pub worst: f64,
    /// Where it is.
    pub at: String,
    /// One line per value that is wrong.
    pub failures: Vec<String>,
}

/// Tests an open device in f32, and in f16 where it has that.
///
/// # Errors
/// What the device reports.
pub fn run(gpu: &Gpu) -> Result<Verdict> {
    let plan = pipeline::build(&config())?;
    let mut verdict = Verdict { worst: 0.0, at: "nowhere".into(), failures: Vec::new() };
    let storages = [("f32", Storage::F32), ("f16", Storage::F16)];
    for (name, storage) in storages.into_iter().filter(|(_, s)| gpu.caps.f16 || *s == Storage::F32) {
        let mut exact = CpuExecutor::<f64>::new(plan.clone(), Storage::F32)?;
        let mut rounded = CpuExecutor::<f32>::new(plan.clone(), storage)?;
        let mut device = GpuExecutor::new(gpu.clone(), plan.clone(), storage)?;
        fill(&plan, &mut [&mut exact, &mut rounded, &mut device])?;
        compare(name, &values(&exact)?, &values(&rounded)?, &values(&device)?, &mut verdict)?;
    }
    Ok(verdict)
}

/// Adds to the verdict how far `found` is from `exact`, in units of how far `rounded` is.
fn compare(storage: &str, exact: &Values, rounded: &Values, found: &Values, verdict: &mut Verdict) -> Result<()> {
    for (key, exact) in exact {
        let (Some(rounded), Some(found)) = (rounded.get(key), found.get(key)) else {
            return Err(Error::device(format!("{key} did not come back")));
        };
        // No floor is below the spacing of numbers at the value's largest element.
        let largest = exact.data.iter().fold(0f32, |most, x| most.max(x.abs()));
        let ratio = times(distance(found, exact), distance(rounded, exact).max(ulp(largest)));
        if ratio > ALLOWED || ratio.is_nan() {
            verdict.failures.push(format!("{storage} {key}: {ratio:.1} times the rounding floor"));
        }
        if ratio > verdict.worst {
            (verdict.worst, verdict.at) = (ratio, format!("{storage} {key}"));
        }
    }
    Ok(())
}

/// Root of the sum of squared differences; NaN where shapes differ.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    if a.shape != b.shape {
        return f64::NAN;
    }
    floor::distance(&a.data, &b.data)
}

/// Values by step and stage.
type Values = BTreeMap<String, Tensor>;

/// Every value of a prompt and of a decode step, once as production runs them (attention fused: its inside is not
/// asked for) and once with everything asked for.
fn values<E: Executor>(executor: &E) -> Result<Values> {
    let all = |with_scores: bool| -> Vec<Request> {
        let stages = executor.plan().stages().into_iter();
        let wanted = stages.filter(|s| with_scores || !matches!(s.name(), "attn_scores" | "attn_probs"));
        wanted.map(|stage| Request { stage, layers: None, want: Want::Full }).collect()
    };
    let mut values = Values::new();
    for (way, with_scores) in [("fused", false), ("open", true)] {
        let mut cache = executor.new_cache(PROMPT.len() + NEXT.len(), PROMPT.len())?;
        for (what, ids) in [("prompt", &PROMPT[..]), ("decode", &NEXT[..])] {
            let requests = all(with_scores);
            let step =
                Step { tokens: Tokens::Ids(ids), rows: Rows::All, pick: None, read: Read::Nothing, long_rope: false, requests: &requests };
            for value in block_on(executor.step(&mut cache, &step))?.values {
                if let Content::Full(tensor) = value.content {
                    values.insert(format!("{} ({way} {what})", value.at), tensor);
                }
            }
        }
    }
    Ok(values)
}

/// The same pseudo-random weights for all: SplitMix64, of the spread of trained weights.
fn fill(plan: &Plan, sinks: &mut [&mut dyn WeightSink]) -> Result<()> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    for (i, slot) in plan.weights.iter().enumerate() {
        let scale = 1.7 / (slot.shape.get(1).copied().unwrap_or(4) as f32).sqrt();
        let bytes: Vec<u8> = (0..slot.elements()).flat_map(|_| (next() * scale).to_le_bytes()).collect();
        for sink in sinks.iter_mut() {
            sink.put(WeightId(i), DType::F32, 0, bytes.clone().into())?;
        }
    }
    Ok(())
}

/// A small model with every kind of op: all norms, biases, caps, grouped heads, a window, odd sizes.
fn config() -> ModelConfig {
    let name = |(role, name): &(WeightRole, &str)| (*role, TensorName { template: format!("layers.{{layer}}.{name}"), fused: Vec::new() });
    ModelConfig {
        preset: "self-test".into(),
        vocab_size: 97,
        hidden_size: 72,
        intermediate_size: 104,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 20,
        max_positions: 64,
        layers: vec![LayerConfig { window: Some(5), rope: Some(0) }, LayerConfig { window: None, rope: Some(0) }],
        ropes: vec![RopeConfig { theta: 10_000.0, rotary_dim: 20, scaling: RopeScaling::None }],
        rms_norm_eps: 1e-6,
        rms_norm_weight_offset: 1.0,
        norms: Norms { before_attention: true, after_attention: true, before_ffn: true, after_ffn: true },
        query_key_norm: QueryKeyNorm::PerHead,
        attention_scale: 0.25,
        attn_logit_softcapping: Some(3.0),
        final_logit_softcapping: Some(5.0),
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        activation: Activation::GeluTanh,
        embedding_scale: 1.5,
        residual_multiplier: 0.75,
        logits_scaling: 1.25,
        tie_word_embeddings: false,
        tensors: TensorNames { prefixes: vec![String::new()], names: WeightRole::TABLE.iter().map(name).collect(), ignored: Vec::new() },
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
    }
}
