//! What the suite's tests share: seeded numbers, random models, an adapter or a spoken skip, distances.

use doppler::cpu::CpuExecutor;
use doppler::debug::floor;
use doppler::exec::{Content, Executor, Read, Request, Rows, Step, Storage, Tokens, Want, WeightSink};
use doppler::gpu::{Gpu, GpuOptions};
use doppler::model::*;
use doppler::plan::{At, Op, Plan, Stage, StateId, WeightId, WeightSlot};
use doppler::quant::{Format, random};
use doppler::tensor::Tensor;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Numbers in (-1, 1) from a seed: SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub fn vec(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// Says that a test is skipped, past the test runner, which shows what is printed only of tests that fail.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stdout(), "skipped: {why}");
}

/// The folder of published files that tests read, and whether it is the whole collection: that of `DOPPLER_FIXTURES`, or
/// beside the checkout; else what `tests/fixtures` has of it.
pub fn fixtures() -> (PathBuf, bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = || Some(root.join("../shared/fixtures")).filter(|folder| folder.is_dir());
    let ours = root.join("tests/fixtures");
    let folder = std::env::var_os("DOPPLER_FIXTURES").map(PathBuf::from).or_else(beside).unwrap_or_else(|| ours.clone());
    let whole = folder.canonicalize().ok() != ours.canonicalize().ok();
    (folder, whole)
}

/// An adapter, or `None` after saying that the test is skipped. `DOPPLER_REQUIRE_GPU=1` makes that a failure.
///
/// A device with these options is opened once: it keeps what was compiled, and compiling is most of the work of small models.
pub fn adapter(options: GpuOptions) -> Option<Gpu> {
    static OPEN: Mutex<BTreeMap<String, Gpu>> = Mutex::new(BTreeMap::new());
    // On a software adapter too, kernels are those of real GPUs, which the tests are about, unless a test wants its own.
    let options = GpuOptions { serial: Some(options.serial.unwrap_or(false)), ..options };
    let key = options.kernels.is_empty().then(|| format!("{options:?}"));
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = key.as_ref().and_then(|key| open.get(key)) {
        return Some(gpu.clone());
    }
    match pollster::block_on(Gpu::open(options)) {
        Ok(gpu) => {
            open.extend(key.map(|key| (key, gpu.clone())));
            Some(gpu)
        }
        Err(error) if std::env::var("DOPPLER_REQUIRE_GPU").as_deref() == Ok("1") => panic!("an adapter is required: {error}"),
        Err(error) => {
            skipped(&error.to_string());
            None
        }
    }
}

/// A model with every shape free: pre- and post-norms, biases, q/k norms over heads, soft-caps, RoPE.
pub fn config(hidden: usize, heads: usize, kv_heads: usize, head_dim: usize, inner: usize, vocab: usize) -> ModelConfig {
    let name = |template: &str| TensorName { template: template.into(), fused: Vec::new(), bare: false, rows: TensorRows::default() };
    ModelConfig {
        preset: "synthetic".into(),
        vocab_size: vocab,
        hidden_size: hidden,
        max_positions: 4096,
        layers: vec![LayerConfig {
            norms: Norms { before_mixer: true, after_mixer: true, before_ffn: true, after_ffn: true },
            mixer: Mixer::Attention(AttentionConfig {
                num_heads: heads,
                num_kv_heads: kv_heads,
                head_dim,
                window: None,
                rope: Some(0),
                query_rope: None,
                query_key_norm: QueryKeyNorm::PerHead,
                scale: (head_dim as f64).powf(-0.5),
                softcap: Some(3.0),
                qkv_bias: true,
                o_bias: true,
                sinks: false,
                value_norm: false,
                values_from_keys: false,
                shared_kv: None,
                gated: false,
            }),
            ffn: Ffn::Dense(DenseConfig { intermediate_size: inner, gated: true, activation: Activation::GeluTanh, bias: true }),
            parallel: false,
            scalar: false,
        }],
        ropes: vec![RopeConfig::plain(10_000.0, head_dim)],
        norm: Norm::Rms { eps: 1e-6, weight_offset: 1.0 },
        final_logit_softcapping: Some(5.0),
        embedding_scale: 1.5,
        residual_multiplier: 0.75,
        logits_scaling: 1.25,
        head_bias: false,
        layer_inputs: None,
        tie_word_embeddings: false,
        tensors: TensorNames {
            prefixes: vec![String::new()],
            names: WeightRole::TABLE.iter().map(|(role, n)| (*role, name(&format!("layers.{{layer}}.{n}")))).collect(),
            ignored: Vec::new(),
            neighbours: None,
            packing: None,
        },
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
    }
}

/// A softmax over all of `experts`, of which `chosen` have weights that add up to 1.
pub fn router(experts: usize, chosen: usize) -> Router {
    let (score, renormalise) = (RouterScore::Softmax, Some(0.0));
    Router { experts, chosen, score, choice_bias: false, groups: None, renormalise, scaling: 1.0, scales: false }
}

/// As many layers like the first as there are windows and RoPEs.
pub fn set_layers(config: &mut ModelConfig, of: &[(Option<usize>, Option<usize>)]) {
    let layer = |(window, rope): &(Option<usize>, Option<usize>)| {
        let mut layer = config.layers[0].clone();
        let attention = layer.attention_mut().expect("attention");
        (attention.window, attention.rope) = (*window, *rope);
        layer
    };
    config.layers = of.iter().map(layer).collect();
}

/// Has the attention of layer `to` read what layer `from`, an earlier one, keeps.
pub fn share_state(plan: &mut Plan, from: usize, to: usize) {
    let cached = |plan: &Plan, stage| plan.find(At { stage, layer: Some(from) }).expect("a cache");
    let (keys, values) = (cached(plan, Stage::KCache), cached(plan, Stage::VCache));
    let state = StateId(plan.states.iter().position(|state| state.layer == from).expect("a state"));
    for node in plan.nodes.iter_mut().filter(|node| node.at.layer == Some(to)) {
        match &mut node.op {
            Op::AttnScores(a) => (a.state, node.inputs[1]) = (state, keys),
            Op::AttnProbs(a) => a.state = state,
            Op::AttnMix(a) => (a.state, node.inputs[1]) = (state, values),
            _ => {}
        }
    }
    doppler::plan::verify::verify(plan).expect("a sound plan");
}

/// Fills every weight of `plan` with seeded values, stored as `format` (vectors are plain), in `sinks` alike.
pub fn random_weights(plan: &Plan, format: Format, seed: u64, sinks: &mut [&mut dyn WeightSink]) {
    mixed_weights(plan, &[format], seed, sinks);
}

/// As [`random_weights`], each matrix in the next of `formats`.
pub fn mixed_weights(plan: &Plan, formats: &[Format], seed: u64, sinks: &mut [&mut dyn WeightSink]) {
    let mut formats = formats.iter().copied().cycle();
    let first = formats.clone().next().expect("a format");
    // Nobody packs a norm or a bias.
    let vector = if first.dtype().is_some() { first } else { Format::F32 };
    let of = |slot: &WeightSlot| if slot.shape.len() == 1 { vector } else { formats.next().unwrap_or(first) };
    let formats: Vec<Format> = plan.weights.iter().map(of).collect();
    sinks.iter_mut().for_each(|sink| sink.expect(&formats));
    for (index, (slot, format)) in plan.weights.iter().zip(formats).enumerate() {
        let mut rng = Rng(seed * 1000 + index as u64);
        let columns = slot.shape.get(1).copied().unwrap_or(4);
        let mut bytes = vec![0; format.row_bytes(slot.elements()).expect("whole blocks")];
        random::fill(format, 1.7 / (columns as f32).sqrt(), &mut || rng.next(), &mut bytes).expect("finite values");
        for sink in sinks.iter_mut() {
            sink.put(WeightId(index), format, 0, bytes.clone().into()).expect("a weight fits its slot");
        }
    }
}

/// Requests for every element of every stage of `plan`.
pub fn everything(plan: &Plan) -> Vec<Request> {
    plan.stages().into_iter().map(|stage| Request { stage, layers: None, want: Want::Full }).collect()
}

/// Runs `ids` as one prompt and returns the wanted values by dump key.
pub fn observe<E: Executor>(executor: &E, ids: &[u32], requests: &[Request], long_rope: bool) -> BTreeMap<String, Tensor> {
    let mut cache = executor.new_cache(ids.len(), ids.len()).expect("a cache");
    let step = Step { tokens: Tokens::Ids(ids), rows: Rows::Last, pick: None, read: Read::Nothing, long_rope, requests };
    let output = pollster::block_on(executor.step(&mut cache, &step)).expect("a step");
    let full = output.values.into_iter().filter_map(|v| if let Content::Full(t) = v.content { Some((v.at.key(), t)) } else { None });
    full.collect()
}

/// ‖a − b‖ over all elements.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape, b.shape);
    floor::distance(&a.data, &b.data)
}

/// ‖a‖.
pub fn length(a: &Tensor) -> f64 {
    a.data.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// One unit in the last place of each row's largest value, over all rows: no floor is below it.
pub fn ulps(a: &Tensor) -> f64 {
    let row = |i| a.row(i).iter().fold(0f32, |m, v| m.max(v.abs()));
    (0..a.rows()).map(|i| floor::ulp(row(i)).powi(2)).sum::<f64>().sqrt()
}

/// One line per stage where `found` is further from `exact` than `times` the rounding floor, which is the distance of
/// `model` (the oracle in f32 with the device's storage) from `exact`.
pub fn beyond_floor(
    exact: &BTreeMap<String, Tensor>,
    model: &BTreeMap<String, Tensor>,
    found: &BTreeMap<String, Tensor>,
    times: f64,
) -> (f64, Vec<String>) {
    beyond_floors(exact, &floors(exact, model), found, times)
}

/// The rounding floor of every value: the distance of `model` from `exact`.
pub fn floors(exact: &BTreeMap<String, Tensor>, model: &BTreeMap<String, Tensor>) -> BTreeMap<String, f64> {
    exact.iter().map(|(key, exact)| (key.clone(), distance(&model[key], exact).max(ulps(exact)))).collect()
}

/// Likewise of two oracles, the second with other roundings: the larger of both.
pub fn larger_floors(exact: &BTreeMap<String, Tensor>, [one, other]: [&BTreeMap<String, Tensor>; 2]) -> BTreeMap<String, f64> {
    let other = floors(exact, other);
    floors(exact, one).into_iter().map(|(key, floor)| (key.clone(), floor.max(other[&key]))).collect()
}

/// Likewise, with the floor of every value.
pub fn beyond_floors(
    exact: &BTreeMap<String, Tensor>,
    floors: &BTreeMap<String, f64>,
    found: &BTreeMap<String, Tensor>,
    times: f64,
) -> (f64, Vec<String>) {
    let mut worst = 0.0f64;
    let mut lines = Vec::new();
    assert_eq!(exact.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "the same stages on both sides");
    for (key, reference) in exact {
        let least = floors[key];
        let error = distance(&found[key], reference);
        let ratio = floor::times(error, least);
        worst = worst.max(ratio);
        if ratio > times || ratio.is_nan() {
            let relative = error / length(reference).max(1e-30);
            lines.push(format!(
                "{key}: {ratio:.1}× the floor, relative L2 {relative:.2e}, floor {:.2e}",
                least / length(reference).max(1e-30)
            ));
        }
    }
    (worst, lines)
}

/// The exact oracle and the oracle in f32 with the storage of `storage`.
pub fn oracles(plan: &Plan, storage: Storage) -> (CpuExecutor<f64>, CpuExecutor<f32>) {
    (CpuExecutor::new(plan.clone(), Storage::F32).expect("an oracle"), CpuExecutor::new(plan.clone(), storage).expect("an oracle"))
}
