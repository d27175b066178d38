//! Does an adapter compute rightly? Small plans with every kind of op and every variant of its kernels run on it and on the
//! oracle, watched and as users run them, sequences alone and together. A value is right within `ALLOWED` times the rounding floor: what the same plan
//! loses when the oracle computes in f32, with the adapter's storage types, instead of f64.
//!
//! Of packed weights, each format of [`PACKED`] is embedding, head, and read by both products, with a bias and without. The
//! other formats are left out: each is some ten pipelines, which a software adapter takes seconds to compile. Rows so long that
//! larger teams add them are there in one packed format, as the size of a team is no matter of the format.

use super::compare::run as compare_run;
use crate::cpu::CpuExecutor;
pub use crate::debug::floor::ALLOWED;
use crate::debug::floor::{self, times, ulp};
use crate::error::{Error, Result};
use crate::exec::{Content, Executor, Read, Replaceable, Request, Rows, Step, Storage, Tokens, Want};
use crate::inference::pipeline;
use crate::model::{
    Activation, AttentionConfig, DeltaHeads, DenseConfig, ExpertsConfig, Ffn, GatedDeltaConfig, LayerConfig, LayerInputsConfig, Mixer,
    ModelConfig, Norm, Norms, QueryKeyNorm, RopeConfig, RopePairing, Router, RouterGroups, RouterScore, SharedExpert, ShortConvConfig,
    TensorName, TensorNames, TensorRows, WeightRole,
};
use crate::plan::{Plan, WeightId, WeightSlot};
use crate::quant::{Format, random};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Prompt of the test; longer than a layer's window, and then one token more, as in decoding.
const PROMPT: [u32; 11] = [5, 90, 17, 3, 44, 61, 8, 29, 72, 1, 50];
const NEXT: [u32; 1] = [33];
/// Tokens of a chunk of the prompt that nobody watches: what is left is a step of a few tokens.
const CHUNK: usize = 8;

/// Packed formats that are tested: codes of eight bits, of four with offsets, of four and two more, with the three kinds of
/// scales that most files have. `tests/suite/gpu.rs` runs every format.
pub const PACKED: [Format; 3] = [Format::Q8_0, Format::Q4K, Format::Q6K];

/// How an executor of the test is set up.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// How values are stored.
    pub storage: Storage,
    /// Decode is computed as is best for many sequences.
    pub batched: bool,
}

impl Way {
    /// Those that differ on a device that computes in f16 or does not, and has matrix units or not.
    pub fn all(f16: bool, matrix: bool) -> Vec<Self> {
        let way = |storage, batched| Self { storage, batched };
        let narrow = f16.then_some(way(Storage::F16, false));
        let batched = (f16 && matrix).then_some(way(Storage::F16, true));
        [way(Storage::F32, false)].into_iter().chain(narrow).chain(batched).collect()
    }
    fn name(self) -> &'static str {
        match self {
            Self { batched: true, .. } => "batched f16",
            Self { storage: Storage::F16, .. } => "f16",
            _ => "f32",
        }
    }
}

/// What came out.
#[derive(Debug)]
pub struct Verdict {
    /// The largest error, in rounding floors.
    pub worst: f64,
    /// Where it is.
    pub at: String,
    /// One line per value that is wrong.
    pub failures: Vec<String>,
}

/// Tests executors that `make` makes on one device, in each of `ways`. `after` is shown each when its tests are over, with how many
/// are done and how many there are.
///
/// # Errors
/// What the executors report.
pub async fn run<E: Executor + Replaceable>(
    ways: &[Way],
    make: impl Fn(Plan, Way) -> Result<E>,
    mut after: impl FnMut(&E, usize, usize),
) -> Result<Verdict> {
    let mut verdict = Verdict { worst: 0.0, at: "nowhere".into(), failures: Vec::new() };
    let (models, mut done) = (models(), 0);
    let all = models.len() * ways.len();
    for model in models {
        let plan = pipeline::build(&model.config)?;
        for way in ways {
            let mut exact = CpuExecutor::<f64>::new(plan.clone(), Storage::F32)?;
            let mut rounded = CpuExecutor::<f32>::new(plan.clone(), way.storage)?;
            let mut device = make(plan.clone(), *way)?;
            // One executor after the other would compile all kernels again for each format.
            for formats in &model.formats {
                let name = format!("{} {} {}", way.name(), formats.name(), model.name);
                fill(&plan, *formats, &mut [&mut exact, &mut rounded, &mut device])?;
                let (exact, rounded) = (values(&exact, model.ways).await?, values(&rounded, model.ways).await?);
                compare(&name, &exact, &rounded, &values(&device, model.ways).await?, &mut verdict)?;
                unwatched(&name, &exact, &rounded, &device, &mut verdict).await?;
            }
            done += 1;
            after(&device, done, all);
        }
    }
    Ok(verdict)
}

/// The run that nobody watches: its logits, those of steps of several sequences, and its choices.
async fn unwatched<E: Executor>(name: &str, exact: &Values, rounded: &Values, device: &E, verdict: &mut Verdict) -> Result<()> {
    let tokens = compare_run::Tokens { prompt: PROMPT.to_vec(), forced: NEXT.to_vec(), steps: NEXT.len() };
    let Some(run) = tokens.unobserved(device, CHUNK, &mut |_, _| {}).await? else { return Ok(()) };
    let (mut right, mut floor, mut found) = (Values::new(), Values::new(), Values::new());
    let alone = run.logits.iter().zip(["prompt", "decode"]).map(|(row, what)| (what, std::slice::from_ref(row)));
    // A row's own floor is a draw of chance: those of several sequences are judged as one value.
    for (what, rows) in alone.chain([("together", &run.together[..])]) {
        let key = format!("logits_final (unwatched {what})");
        let tokens = || rows.iter().map(|(token, _)| *token);
        right.insert(key.clone(), logits_at(exact, tokens())?);
        floor.insert(key.clone(), logits_at(rounded, tokens())?);
        let data: Vec<f32> = rows.iter().flat_map(|(_, row)| row).copied().collect();
        found.insert(key, Tensor::new(vec![rows.len(), data.len() / rows.len().max(1)], data)?);
    }
    if run.choices().diverged {
        verdict.failures.push(format!("{name} the chosen token or the candidates are not the highest of the logits"));
    }
    compare(name, &right, &floor, &found, verdict)
}

/// Rows of logits of tokens at these positions.
fn logits_at(values: &Values, positions: impl Iterator<Item = usize>) -> Result<Tensor> {
    let (mut data, mut rows) = (Vec::new(), 0);
    for position in positions {
        let (what, row) = position.checked_sub(PROMPT.len()).map_or(("prompt", position), |row| ("decode", row));
        let tensor = values.get(&format!("logits_final (open {what})"));
        let tensor = tensor.filter(|tensor| row < tensor.rows()).ok_or_else(|| Error::device(format!("no logits at {position}")))?;
        data.extend(tensor.row(row));
        rows += 1;
    }
    Tensor::new(vec![rows, data.len() / rows.max(1)], data)
}

/// Adds to the verdict how far `found` is from `exact`, in units of how far `rounded` is.
///
/// A floor is one draw of chance: none is below what the value has on the whole, in the prompt and in decode, in proportion to its
/// length. Of few numbers (a token's weights of experts) it can be almost 0, or the error of one token far out: these are judged
/// over all tokens at once.
fn compare(storage: &str, exact: &Values, rounded: &Values, found: &Values, verdict: &mut Verdict) -> Result<()> {
    let mut usual: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (key, exact) in exact {
        let rounded = rounded.get(key).ok_or_else(|| lost(key))?;
        let (floor2, length2) = usual.entry(value_of(key)).or_default();
        (*floor2, *length2) = (*floor2 + distance(rounded, exact).powi(2), *length2 + length2_of(exact));
    }
    let mut judged: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (key, exact) in exact {
        let (Some(rounded), Some(found)) = (rounded.get(key), found.get(key)) else { return Err(lost(key)) };
        // No floor is below the spacing of numbers at the value's largest element.
        let largest = exact.data.iter().fold(0f32, |most, x| most.max(x.abs()));
        let mut floor = distance(rounded, exact).max(ulp(largest));
        let few = exact.width() < floor::FEW;
        if let (false, Some((floor2, length2))) = (few, usual.get(value_of(key)).filter(|(_, length2)| *length2 > 0.0)) {
            floor = floor.max((floor2 / length2 * length2_of(exact)).sqrt());
        }
        let (error2, floor2) = judged.entry(if few { value_of(key) } else { key.as_str() }).or_default();
        (*error2, *floor2) = (*error2 + distance(found, exact).powi(2), *floor2 + floor * floor);
    }
    for (key, (error2, floor2)) in judged {
        let ratio = times(error2.sqrt(), floor2.sqrt());
        if ratio > ALLOWED || ratio.is_nan() {
            verdict.failures.push(format!("{storage} {key}: {ratio:.1} times the rounding floor"));
        }
        if ratio > verdict.worst {
            (verdict.worst, verdict.at) = (ratio, format!("{storage} {key}"));
        }
    }
    Ok(())
}

/// A key without its step and the way that was asked in: what is one value.
fn value_of(key: &str) -> &str {
    key.split_once(" (").map_or(key, |(value, _)| value)
}

fn lost(key: &str) -> Error {
    Error::device(format!("{key} did not come back"))
}

/// The sum of squares.
fn length2_of(a: &Tensor) -> f64 {
    a.data.iter().map(|x| f64::from(*x).powi(2)).sum()
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

/// How values are asked for: as production runs them (attention fused: its inside is not asked for), and all of them.
type Ways = &'static [(&'static str, bool)];
const BOTH: Ways = &[("fused", false), ("open", true)];
const OPEN: Ways = &[("open", true)];

/// Every value of a prompt and of a decode step.
async fn values<E: Executor>(executor: &E, ways: Ways) -> Result<Values> {
    let all = |with_scores: bool| -> Vec<Request> {
        let stages = executor.plan().stages().into_iter();
        let wanted = stages.filter(|s| with_scores || !matches!(s.name(), "attn_scores" | "attn_probs"));
        wanted.map(|stage| Request { stage, layers: None, want: Want::Full }).collect()
    };
    let mut values = Values::new();
    for (way, with_scores) in ways {
        let mut cache = executor.new_cache(PROMPT.len() + NEXT.len(), PROMPT.len())?;
        for (what, ids) in [("prompt", &PROMPT[..]), ("decode", &NEXT[..])] {
            let requests = all(*with_scores);
            let step =
                Step { tokens: Tokens::Ids(ids), rows: Rows::All, pick: None, read: Read::Nothing, long_rope: false, requests: &requests };
            for value in executor.step(&mut cache, &step).await?.values {
                if let Content::Full(tensor) = value.content {
                    values.insert(format!("{} ({way} {what})", value.at), tensor);
                }
            }
        }
    }
    Ok(values)
}

/// The same pseudo-random weights for all, in place of those that they have: SplitMix64, of the spread of trained weights.
fn fill(plan: &Plan, formats: Formats, sinks: &mut [&mut dyn Replaceable]) -> Result<()> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let together = !matches!(formats, Formats::Apart(_));
    let formats: Vec<Format> = plan.weights.iter().map(|slot| formats.of(slot)).collect();
    for sink in sinks.iter_mut() {
        (0..plan.weights.len()).try_for_each(|i| sink.clear(WeightId(i)))?;
        if together {
            sink.expect(&formats);
        }
    }
    for (i, (slot, format)) in plan.weights.iter().zip(formats).enumerate() {
        let size = format.row_bytes(slot.elements()).ok_or_else(|| Error::plan(format!("{} in {format}", slot.label())))?;
        let mut bytes = vec![0; size];
        random::fill(format, 1.7 / (slot.shape.get(1).copied().unwrap_or(4) as f32).sqrt(), &mut next, &mut bytes)?;
        for sink in sinks.iter_mut() {
            sink.put(WeightId(i), format, 0, bytes.clone().into())?;
        }
    }
    Ok(())
}

/// How a model's weights are stored.
#[derive(Debug, Clone, Copy)]
enum Formats {
    /// Each layer as another plain type; what is outside layers as this one.
    Plain(Format),
    /// All matrices as this one.
    Packed(Format),
    /// Likewise, with every weight in a buffer of its own, as those of one input have that are stored in several formats.
    Apart(Format),
}

impl Formats {
    fn of(self, slot: &WeightSlot) -> Format {
        match self {
            Formats::Plain(format) => slot.layer.map_or(format, |layer| [Format::F32, Format::F16, Format::BF16][layer % 3]),
            Formats::Packed(format) | Formats::Apart(format) if slot.shape.len() > 1 => format,
            Formats::Packed(_) | Formats::Apart(_) => Format::F32,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Formats::Plain(format) | Formats::Packed(format) | Formats::Apart(format) => format.name(),
        }
    }
}

/// A model, what its weights are stored as, one after the other, and its name in messages.
struct Model {
    name: &'static str,
    formats: Vec<Formats>,
    config: ModelConfig,
    ways: Ways,
}

/// Models that together reach every variant: rows of weights that are whole eights or not, biases or none, each activation,
/// each stored type in layers and in the head, more ids than one pass chooses among, rows so long that larger teams add them, and
/// heads of the widths that models have: attention of a decode step is compiled for each.
fn models() -> Vec<Model> {
    let bare = |config| dense(attention(config, |a| (a.qkv_bias, a.o_bias) = (false, false)), |ffn| ffn.bias = false);
    let inner = |size, config| dense(config, |ffn| ffn.intermediate_size = size);
    let even = |config| ModelConfig { hidden_size: 64, ..inner(96, sized(config, 16)) };
    let odd = |config| ModelConfig { hidden_size: 76, ..inner(100, sized(config, 20)) };
    let with = |activation, config| dense(config, |ffn| ffn.activation = activation);
    let one_layer = |config: ModelConfig| ModelConfig { layers: config.layers[..1].to_vec(), ..config };
    let few_heads = attention(one_layer(config()), |a| (a.num_heads, a.num_kv_heads) = (2, 1));
    let wide = ModelConfig { hidden_size: 2304, ..inner(24, few_heads) };
    // Rows of whole blocks of 256, a bias in some products.
    let blocks = |hidden_size, config| {
        let heads = attention(one_layer(sized(config, 64)), |a| (a.num_heads, a.o_bias) = (4, false));
        ModelConfig { hidden_size, ..dense(heads, |ffn| (ffn.intermediate_size, ffn.bias) = (256, false)) }
    };
    let plain = [Format::F32, Format::F16, Format::BF16].map(Formats::Plain);
    let packed = [PACKED.map(Formats::Packed), PACKED.map(Formats::Apart)].concat();
    let norms = |norms: Norms, mut config: ModelConfig| {
        config.layers.iter_mut().for_each(|layer| layer.norms = norms);
        config
    };
    let before = |config| norms(Norms { before_mixer: true, after_mixer: false, before_ffn: true, after_ffn: false }, config);
    let after = |config| {
        let whole = attention(with(Activation::Silu, bare(config)), |a| a.query_key_norm = QueryKeyNorm::WholeProjection);
        norms(Norms { before_mixer: false, after_mixer: true, before_ffn: false, after_ffn: true }, whole)
    };
    let neighbours = |mut config: ModelConfig| {
        config.ropes.iter_mut().for_each(|rope| rope.pairing = RopePairing::Neighbours);
        config
    };
    let bare_heads = |config| attention(config, |a| a.query_key_norm = QueryKeyNorm::None);
    let model = |name, format, config| Model { name, formats: vec![Formats::Plain(format)], config, ways: BOTH };
    let experts = |router: Router, bias, shared, mut config: ModelConfig| {
        let of = ExpertsConfig { router, router_bias: bias, intermediate_size: 32, activation: Activation::Silu, bias, shared };
        config.layers.iter_mut().for_each(|layer| layer.ffn = Ffn::Experts(of.clone()));
        config
    };
    let router = Router {
        experts: 6,
        chosen: 2,
        score: RouterScore::Softmax,
        choice_bias: false,
        groups: None,
        renormalise: Some(0.0),
        scaling: 1.0,
        scales: false,
    };
    let groups = Some(RouterGroups { count: 3, chosen: 2, highest: 1 });
    let sigmoid = Router { score: RouterScore::Sigmoid, choice_bias: true, groups, scaling: 1.5, ..router };
    let of_chosen = Router { score: RouterScore::SoftmaxOfChosen, renormalise: None, ..router };
    let gated = Some(SharedExpert { intermediate_size: 96, gated: true });
    vec![
        model("experts", Format::F16, experts(router, false, None, before(bare(even(config()))))),
        model("experts, all kinds", Format::F32, experts(sigmoid, true, gated, before(even(config())))),
        model("experts, softmax of the chosen", Format::BF16, experts(of_chosen, false, gated, bare(even(config())))),
        Model {
            name: "experts, packed",
            formats: packed.clone(),
            config: wide_experts(experts(router, false, None, before(blocks(256, config())))),
            ways: OPEN,
        },
        model("biased, whole eights", Format::F32, even(config())),
        model("bare, whole eights", Format::F16, with(Activation::Silu, bare(even(config())))),
        model("bare, whole eights", Format::BF16, with(Activation::Gelu, bare(even(config())))),
        model("biased, odd", Format::F32, odd(config())),
        model("bare, odd", Format::F16, with(Activation::Silu, bare(odd(config())))),
        model("bare, odd", Format::BF16, ModelConfig { vocab_size: 2100, ..bare(odd(config())) }),
        model("added, biased", Format::F16, before(with(Activation::Silu, even(config())))),
        model("added, bare", Format::F16, before(bare(even(config())))),
        model("added, odd", Format::F16, before(with(Activation::Silu, bare(odd(config()))))),
        model("norms behind", Format::F16, after(sized(even(config()), 128))),
        model("neighbours", Format::F16, neighbours(before(sized(bare(even(config())), 12)))),
        model("neighbours, bare heads", Format::F16, neighbours(bare_heads(before(sized(bare(even(config())), 8))))),
        Model { formats: plain.to_vec(), ..model("layer norms, in parallel", Format::F32, layer_normed(even(config()), true)) },
        model("layer norms", Format::BF16, layer_normed(even(config()), false)),
        model("layer norms, longer rows", Format::BF16, layer_normed(ModelConfig { hidden_size: 128, ..even(config()) }, false)),
        model("layer norms, biased, odd", Format::F16, layer_normed(with(Activation::Gelu, odd(config())), false)),
        Model { formats: plain[1..].to_vec(), ..model("layer norms, odd", Format::F16, layer_normed(bare(odd(config())), false)) },
        model("convolutions", Format::F16, convolving(before(even(config())), true)),
        model("convolutions, bare", Format::F16, convolving(before(bare(even(config()))), false)),
        model("convolutions, odd", Format::BF16, convolving(before(bare(odd(config()))), false)),
        model("delta rules", Format::F16, deltas(before(bare(even(config()))), 24)),
        model("delta rules, short keys", Format::F16, deltas(before(bare(even(config()))), 12)),
        model("inputs of layers, experts beside a block", Format::F16, inputs(bare(even(config())), Router { scales: true, ..router })),
        model("wide", Format::F16, sized(wide, 256)),
        model("wide heads", Format::F16, one_layer(sized(before(bare(even(config()))), 320))),
        Model { name: "packed", formats: packed, config: blocks(256, config()), ways: OPEN },
        Model { name: "packed, wide", formats: vec![Formats::Packed(Format::Q4K)], config: blocks(2304, config()), ways: OPEN },
        model(
            "sinks, clamped experts",
            Format::F16,
            clamped(experts(Router { choice_bias: true, ..of_chosen }, true, None, bare_heads(before(sized(even(config()), 12))))),
        ),
        model("sinks, wide heads", Format::F16, attention(sized(before(bare(even(config()))), 64), |a| a.sinks = true)),
    ]
}

/// `config` with sinks, and experts whose gate and up are cut off.
fn clamped(config: ModelConfig) -> ModelConfig {
    let mut config = attention(config, |a| a.sinks = true);
    config.experts_mut().for_each(|experts| experts.activation = Activation::Clamped { alpha: 1.702, limit: 0.7 });
    config
}

/// `config` with experts of whole blocks.
fn wide_experts(mut config: ModelConfig) -> ModelConfig {
    config.experts_mut().for_each(|experts| experts.intermediate_size = 256);
    config
}

/// `config` with layer norms, those of heads with weights of their own, and feed-forward blocks without a gate; `parallel` ones
/// have one norm for both blocks, and biases of norms and head.
fn layer_normed(config: ModelConfig, parallel: bool) -> ModelConfig {
    let mut config = attention(dense(config, |ffn| ffn.gated = false), |a| a.query_key_norm = QueryKeyNorm::PerHeadOwnWeights);
    (config.norm, config.head_bias) = (Norm::Layer { eps: 1e-3, bias: parallel }, parallel);
    for layer in &mut config.layers {
        layer.parallel = parallel;
        layer.norms = Norms { before_mixer: true, after_mixer: false, before_ffn: !parallel, after_ffn: false };
    }
    config
}

/// `config` with a layer of attention behind short convolutions in weights of every plain type.
fn convolving(mut config: ModelConfig, bias: bool) -> ModelConfig {
    config.layers.rotate_left(1);
    config.layers.extend(config.layers.last().cloned());
    config.layers.iter_mut().take(3).for_each(|layer| layer.mixer = Mixer::ShortConv(ShortConvConfig { taps: 3, bias }));
    config
}

/// `config` with inputs of layers, scalars, normalised values, experts beside each dense block, and a last layer that reads the
/// keys and values of the first.
fn inputs(mut config: ModelConfig, router: Router) -> ModelConfig {
    let (activation, shared) = (Activation::GeluTanh, None);
    let experts = ExpertsConfig { router, router_bias: false, intermediate_size: 32, activation, bias: false, shared };
    for layer in &mut config.layers {
        layer.scalar = true;
        if let Some(dense) = layer.dense().cloned() {
            layer.ffn = Ffn::DenseAndExperts { dense, experts: experts.clone() };
        }
    }
    config.layer_inputs = Some(LayerInputsConfig { width: 24, activation });
    let mut config = attention(config, |a| a.value_norm = true);
    let window = config.attentions().next().and_then(|first| first.window);
    if let Some(last) = config.attentions_mut().last() {
        (last.window, last.shared_kv) = (window, Some(0));
    }
    config
}

/// `config` with delta rules in all layers but the last, whose attention has a gate.
fn deltas(mut config: ModelConfig, key_dim: usize) -> ModelConfig {
    let heads = DeltaHeads { keys: 2, values: 4, key_dim, value_dim: 20 };
    let rule = GatedDeltaConfig { heads, taps: 4, activation: Activation::Silu, unit_eps: 1e-6, scale: 0.2 };
    config.layers.iter_mut().take(2).for_each(|layer| layer.mixer = Mixer::GatedDelta(rule.clone()));
    attention(config, |a| a.gated = true)
}

/// `config` with heads of `head_dim`.
fn sized(config: ModelConfig, head_dim: usize) -> ModelConfig {
    let ropes = config.ropes.into_iter().map(|rope| RopeConfig { rotary_dim: head_dim, ..rope }).collect();
    attention(ModelConfig { ropes, ..config }, |a| a.head_dim = head_dim)
}

/// `config` with other attention.
fn attention(mut config: ModelConfig, change: impl FnMut(&mut AttentionConfig)) -> ModelConfig {
    config.attentions_mut().for_each(change);
    config
}

/// `config` with other feed-forward blocks.
fn dense(mut config: ModelConfig, change: impl FnMut(&mut DenseConfig)) -> ModelConfig {
    config.denses_mut().for_each(change);
    config
}

/// A small model with every kind of op: all norms, biases, caps, grouped heads, a window, odd sizes.
fn config() -> ModelConfig {
    let name = |(role, name): &(WeightRole, &str)| {
        (*role, TensorName { template: format!("layers.{{layer}}.{name}"), fused: Vec::new(), bare: false, rows: TensorRows::default() })
    };
    let layer = |window| LayerConfig {
        norms: Norms { before_mixer: true, after_mixer: true, before_ffn: true, after_ffn: true },
        mixer: Mixer::Attention(AttentionConfig {
            num_heads: 6,
            num_kv_heads: 2,
            head_dim: 20,
            window,
            rope: Some(0),
            query_rope: None,
            query_key_norm: QueryKeyNorm::PerHead,
            scale: 0.25,
            softcap: Some(3.0),
            qkv_bias: true,
            o_bias: true,
            sinks: false,
            value_norm: false,
            values_from_keys: false,
            shared_kv: None,
            gated: false,
        }),
        ffn: Ffn::Dense(DenseConfig { intermediate_size: 104, gated: true, activation: Activation::GeluTanh, bias: true }),
        parallel: false,
        scalar: false,
    };
    ModelConfig {
        preset: "self-test".into(),
        vocab_size: 97,
        hidden_size: 72,
        max_positions: 64,
        layers: [Some(5), None, Some(4)].map(layer).to_vec(),
        ropes: vec![RopeConfig::plain(10_000.0, 20)],
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
            names: WeightRole::TABLE.iter().map(name).collect(),
            ignored: Vec::new(),
            neighbours: None,
            packing: None,
        },
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
    }
}
