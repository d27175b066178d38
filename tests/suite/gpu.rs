//! Every kernel variant against the oracle, at awkward shapes.

use crate::support::*;
use doppler::Result;
use doppler::debug::floor;
use doppler::exec::{Entry, Executor, Pick, Read, Request, Rows, Step, Storage, StoredRows, Tokens, Want, WeightSink};
use doppler::gpu::{Caps, GpuExecutor, GpuOptions, Limits};
use doppler::inference::pipeline;
use doppler::model::*;
use doppler::plan::{At, Plan, Stage, WeightId};
use doppler::quant::{Format, planes};
use doppler::tensor::Tensor;
use doppler::tuned::{Tuned, Variant};
use half::f16;
use pollster::block_on;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Adapter settings that change which variants run, on this adapter.
pub fn settings() -> Vec<(&'static str, GpuOptions)> {
    static CAPS: LazyLock<Option<Caps>> = LazyLock::new(|| adapter(GpuOptions::default()).map(|gpu| gpu.caps));
    let has = |name: &str| match (name, &*CAPS) {
        ("no subgroups", Some(caps)) => caps.subgroup.is_some(),
        ("no matrix units", Some(caps)) => caps.matrix.is_some(),
        _ => true,
    };
    let all = [
        ("native", GpuOptions::default()),
        ("no subgroups", GpuOptions { no_subgroups: true, ..Default::default() }),
        ("no matrix units", GpuOptions { no_matrix: true, ..Default::default() }),
        ("floor", GpuOptions { limits: Limits::Floor, ..Default::default() }),
        ("split weights", GpuOptions { max_binding: Some(40_000), ..Default::default() }),
        ("serial", GpuOptions { serial: Some(true), ..Default::default() }),
    ];
    all.into_iter().filter(|(name, _)| has(name)).collect()
}

/// Runs `config` on every setting with `storage` and `format` weights, all stages of `tokens` tokens against the oracle.
pub fn check(name: &str, config: &ModelConfig, tokens: usize, storage: Storage, format: Format, options: &[(&str, GpuOptions)]) {
    check_plan(name, &pipeline::build(config).expect("a plan"), tokens, storage, format, options);
}

/// Likewise, of a plan.
fn check_plan(name: &str, plan: &Plan, tokens: usize, storage: Storage, format: Format, options: &[(&str, GpuOptions)]) {
    check_values(name, plan, &everything(plan), tokens, (storage, format), options);
}

/// Likewise, of some values.
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn check_values(
    name: &str,
    plan: &Plan,
    requests: &[Request],
    tokens: usize,
    (storage, format): (Storage, Format),
    options: &[(&str, GpuOptions)],
) {
    let ids: Vec<u32> = (0..tokens).map(|i| ((i * 7919 + 3) % plan.vocab_size) as u32).collect();
    let (mut exact, mut model) = oracles(plan, storage);
    random_weights(plan, format, 1, &mut [&mut exact, &mut model]);
    let observed = |ids: &[u32]| (observe(&exact, ids, requests, false), observe(&model, ids, requests, false));
    let (exact, model) = observed(&ids);
    let mut floors = floors(&exact, &model);
    if tokens < 3 {
        // A floor is one draw of chance, of one token perhaps of a single number: then none is below those of more tokens.
        let (more, rounded) = observed(&(0..9).map(|i| i * 31 % plan.vocab_size as u32).collect::<Vec<u32>>());
        for (key, floor) in &mut floors {
            let (rounded, more) = (&rounded[key], &more[key]);
            let rows = || (0..more.rows()).map(|row| floor::distance(rounded.row(row), more.row(row)));
            if more.width() < floor::FEW {
                *floor = floor.max(rows().fold(0.0, f64::max));
            }
        }
    }
    for (setting, options) in options {
        let Some(gpu) = adapter(options.clone()) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
        random_weights(plan, format, 1, &mut [&mut executor]);
        let found = observe(&executor, &ids, requests, false);
        let (worst, lines) = beyond_floors(&exact, &floors, &found, 3.0);
        println!("{name}, {setting}, {tokens} tokens, weights {format}, activations {}: worst {worst:.2}x the floor", storage.activations);
        assert!(lines.is_empty(), "{name}, {setting}:\n{}", lines.join("\n"));
    }
}

#[test]
fn every_variant_of_a_small_model() {
    let mut config = config(40, 6, 3, 16, 57, 131);
    set_layers(&mut config, &[(Some(5), Some(0)), (None, None), (None, Some(0))]);
    config.ropes[0].rotary_dim = 12;
    for tokens in [1, 3, 21] {
        for storage in [Storage::F32, Storage::F16] {
            check("small", &config, tokens, storage, Format::F32, &settings());
        }
    }
    for format in [Format::F16, Format::BF16] {
        check("small", &config, 9, Storage::F16, format, &settings());
        check("small", &config, 2, Storage::F32, format, &settings());
    }
}

/// A layer that reads another one's keys and values: op by op, and, in the logits of steps that nobody watches, fused.
#[test]
fn layers_that_share_a_cache() {
    let mut config = config(40, 6, 3, 16, 57, 131);
    set_layers(&mut config, &[(Some(5), Some(0)), (None, None), (Some(5), Some(0)), (None, Some(0))]);
    let mut plan = pipeline::build(&config).expect("a plan");
    share_state(&mut plan, 0, 2);
    share_state(&mut plan, 1, 3);
    for storage in [Storage::F32, Storage::F16] {
        check_plan("shared", &plan, 21, storage, Format::F32, &two());
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
        let (mut exact, mut model) = oracles(&plan, storage);
        random_weights(&plan, Format::F32, 1, &mut [&mut exact, &mut model, &mut executor]);
        let (exact, model, found) = (last_logits(&exact), last_logits(&model), last_logits(&executor));
        let (_, lines) = beyond_floor(&exact, &model, &found, 3.0);
        assert!(lines.is_empty(), "{storage:?}: {lines:?}");
    }
}

/// The logits of several steps, which together wrap the ring of a window of five.
pub fn last_logits<E: Executor>(executor: &E) -> BTreeMap<String, Tensor> {
    let mut cache = executor.new_cache(64, 21).expect("a cache");
    let mut rows: Vec<f32> = Vec::new();
    for count in [9, 21, 1, 1, 21, 3] {
        let ids: Vec<u32> = (0..count).map(|i| i * 37 % 131).collect();
        let tokens = Tokens::Ids(&ids);
        let step = Step { tokens, rows: Rows::Last, pick: None, read: Read::Logits, long_rope: false, requests: &[] };
        rows.extend(block_on(executor.step(&mut cache, &step)).expect("a step").logits.expect("logits"));
    }
    BTreeMap::from([("logits_final".to_string(), Tensor::new(vec![6, 131], rows).expect("six rows"))])
}

/// Each variant that a device could be tuned to, in place of the usual one, for all products at once: every value, op by op, and
/// the logits of steps that nobody watches.
#[test]
fn every_variant_that_tuning_can_choose() {
    let plan = pipeline::build(&config(256, 4, 2, 64, 512, 131)).expect("a plan");
    for (storage, format) in [(Storage::F16, Format::F16), (Storage::F16, Format::Q4K), (Storage::F32, Format::F32)] {
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let untuned = gpu.untuned();
        let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
        let (mut exact, mut model) = oracles(&plan, storage);
        random_weights(&plan, format, 1, &mut [&mut exact, &mut model, &mut executor]);
        let (exact, model) = (last_logits(&exact), last_logits(&model));
        let _sequence = executor.new_cache(64, 21).expect("a sequence");
        let products = executor.tunable().expect("products");
        let most = products.iter().map(|(_, variants)| variants.len()).max().unwrap_or(0);
        assert!(most > 2, "{format}: {products:?}");
        let mut settings = Vec::new();
        for i in 1..most {
            let mut table = untuned.clone();
            table.products.extend(products.iter().filter_map(|(product, variants)| Some((product.to_string(), *variants.get(i)?))));
            executor.set_tuned(Some(table.clone()));
            assert!(executor.describe().ends_with(&format!(", tuned {}", table.id())), "{}", executor.describe());
            let (_, lines) = beyond_floor(&exact, &model, &last_logits(&executor), 3.0);
            assert!(lines.is_empty(), "{format}: {lines:?}, with {:?}", table.products);
            settings.push(("tuned", GpuOptions { tuned: vec![table], ..Default::default() }));
        }
        for tokens in [1, 21] {
            check_plan("tuned", &plan, tokens, storage, format, &settings);
        }
    }
}

/// A table of another device is not followed, and one that asks for what does not serve is refused.
#[test]
fn tables_that_do_not_fit() {
    let plan = pipeline::build(&config(64, 4, 2, 16, 64, 131)).expect("a plan");
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let of = |mut table: Tuned, device: &str| {
        table.products.insert("f32 128x64 f32 normed".into(), Variant::Vector { lanes: 7, digits: false });
        Tuned { device: format!("{}{device}", table.device), ..table }
    };
    let [other, here] = [of(gpu.untuned(), ", another one"), of(gpu.untuned(), "")];
    let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
    random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
    let usual = last_logits(&executor);
    executor.set_tuned(Some(other));
    assert!(usual == last_logits(&executor) && !executor.describe().contains("tuned"), "{}", executor.describe());
    executor.set_tuned(Some(here));
    let mut cache = executor.new_cache(8, 8).expect("a sequence");
    let step = Step { tokens: Tokens::Ids(&[1]), rows: Rows::Last, pick: None, read: Read::Logits, long_rope: false, requests: &[] };
    let message = block_on(executor.step(&mut cache, &step)).expect_err("seven threads do not share a row").to_string();
    for part in ["runtime.inference.tuned", "f32 128x64 f32 normed", "7 threads a row", "8 threads a row", "doppler tune"] {
        assert!(message.contains(part), "{message}");
    }
}

/// Products of a few rows by the matrix units, where there are any.
#[test]
fn batched_decode() {
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    if gpu.caps.matrix.is_none() {
        return skipped("this adapter has no matrix units");
    }
    let options = [("batched", GpuOptions { batched: true, ..Default::default() })];
    let mut odd = config(40, 6, 3, 16, 57, 131);
    set_layers(&mut odd, &[(Some(5), Some(0)), (None, Some(0))]);
    let mut long = config(768, 4, 2, 64, 2304, 77);
    long.layers.truncate(1);
    for tokens in [1, 3] {
        for format in [Format::F32, Format::F16, Format::BF16] {
            check("batched, odd", &odd, tokens, Storage::F16, format, &options);
            check("batched, odd", &odd, tokens, Storage::F32, format, &options);
        }
        for format in [Format::BF16, Format::Q8_0, Format::Q4K, Format::Q6K, Format::Mxfp4] {
            check("batched, long rows", &long, tokens, Storage::F16, format, &options);
        }
    }
}

/// Every format that kernels read packed, in matrix-vector and tiled products and as an embedding, watched and as users run
/// it; and one that no kernel reads, which the device holds decoded.
#[test]
fn packed_weights_of_every_format() {
    let mut config = config(256, 4, 2, 64, 512, 131);
    config.layers.truncate(1);
    let formats = planes::TABLE.iter().map(planes::Planes::format).chain([Format::Tq1_0]);
    for (i, format) in formats.enumerate() {
        check("packed", &config, 1, Storage::F16, format, &two());
        // Matrix units take activations in f16.
        check("packed", &config, 9, [Storage::F32, Storage::F16][i % 2], format, &two());
    }
    // Odd numbers of rows, pieces, biases, long rows.
    check("packed, biased", &config, 3, Storage::F32, Format::Q4K, &settings());
    check("packed, biased", &config, 1, Storage::F16, Format::Q6K, &settings());
    let mut long = config;
    (long.hidden_size, long.vocab_size) = (768, 77);
    long.denses_mut().for_each(|dense| dense.intermediate_size = 2304);
    check("packed, long rows", &long, 2, Storage::F16, Format::Q8_0, &two());
    check("packed, long rows", &long, 2, Storage::F16, Format::Q5K, &two());
}

/// Rows of f16 whose blocks hold large elements among small ones, nothing, or the smallest numbers, against packed weights: whole
/// numbers of x lose nothing that a sum of floats would keep.
#[test]
fn uneven_rows_and_packed_weights() {
    let mut config = config(256, 4, 2, 64, 4608, 131);
    config.layers.truncate(1);
    let plan = pipeline::build(&config).expect("a plan");
    let id = plan.find(At { stage: Stage::FfnOut, layer: Some(0) }).expect("a product of long rows");
    let mut rng = Rng(3);
    let spread = |i: usize| match i / 32 % 6 {
        0 => [1.0, 3e-4, 1e-2, 2e-5][i % 4],
        1 if i % 32 == 5 => 60_000.0,
        1 => 1e-3,
        2 => 0.0,
        3 => 6e-8,
        4 if i.is_multiple_of(7) => -1.0,
        4 => 0.01,
        _ => 1.0,
    };
    let values = rng.vec(4608, 1.0).into_iter().enumerate().map(|(i, x)| f16::from_f32(x * spread(i)).to_f32());
    let input = Tensor::new(vec![1, 4608], values.collect()).expect("a row");
    let in_one_plane = [Format::Q4K, Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::S8x128, Format::Z4x128];
    for format in in_one_plane.into_iter().chain([Format::Q6K, Format::Q5K, Format::Q5_0, Format::Q5_1]) {
        let (mut exact, mut model) = oracles(&plan, Storage::F16);
        random_weights(&plan, format, 1, &mut [&mut exact, &mut model]);
        let inputs = std::slice::from_ref(&input);
        let exact = block_on(exact.eval(id, inputs, 0, false)).expect("a product");
        let model = block_on(model.eval(id, inputs, 0, false)).expect("a product");
        for (setting, options) in two() {
            let Some(gpu) = adapter(options) else { return };
            let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F16).expect("an executor");
            random_weights(&plan, format, 1, &mut [&mut executor]);
            let found = block_on(executor.eval(id, inputs, 0, false)).expect("a product");
            let (floor, off) = (distance(&model, &exact), distance(&found, &exact));
            assert!(off <= 3.0 * floor, "{format}, {setting}: {off:e} from the exact row, the floor is {floor:e}");
            assert!(executor.variants().iter().any(|name| name.contains("DIGITS")), "{:?}", executor.variants());
        }
    }
}

/// Experts of every kind: scores, groups, biases, a shared expert; all of them chosen; more than a workgroup has threads.
#[test]
fn experts_and_their_routers() {
    let mut plain = config(64, 4, 2, 16, 96, 131);
    plain.attentions_mut().for_each(|a| a.softcap = None);
    let of = |router: Router, bias: bool, shared: Option<SharedExpert>| {
        let mut config = plain.clone();
        let activation = if bias { Activation::GeluTanh } else { Activation::Silu };
        config.layers[0].ffn = Ffn::Experts(ExpertsConfig { router, router_bias: bias, intermediate_size: 40, activation, bias, shared });
        config
    };
    let router = router(6, 2);
    let shared = |gated| Some(SharedExpert { intermediate_size: 57, gated });
    let groups = |count, chosen, highest| Some(RouterGroups { count, chosen, highest });
    let sigmoid = Router { score: RouterScore::Sigmoid, scaling: 2.5, renormalise: Some(1e-20), ..router };
    let cases = [
        ("softmax", of(router, false, None)),
        ("softmax of the chosen", of(Router { score: RouterScore::SoftmaxOfChosen, renormalise: None, ..router }, true, None)),
        ("sigmoid", of(Router { choice_bias: true, groups: groups(3, 2, 2), ..sigmoid }, false, shared(false))),
        ("groups", of(Router { groups: groups(3, 1, 1), renormalise: None, ..router }, true, shared(true))),
        ("all of them", of(Router { experts: 3, chosen: 3, ..router }, false, shared(true))),
        ("one of them", of(Router { experts: 9, chosen: 1, renormalise: None, ..router }, false, None)),
        ("many", of(Router { experts: 200, chosen: 9, groups: groups(8, 3, 2), choice_bias: true, ..sigmoid }, false, None)),
    ];
    for (name, config) in cases {
        for tokens in [1, 3, 9] {
            check(&format!("experts, {name}"), &config, tokens, Storage::F32, Format::F32, &settings());
        }
        check(&format!("experts, {name}"), &config, 2, Storage::F16, Format::BF16, &two());
    }
    let mut packed = of(router, false, None);
    packed.hidden_size = 256;
    packed.experts_mut().for_each(|experts| experts.intermediate_size = 256);
    packed.attentions_mut().for_each(|a| a.head_dim = 64);
    packed.ropes[0].rotary_dim = 64;
    for format in [Format::Q4K, Format::Q6K, Format::Q8_0, Format::Mxfp4] {
        check("experts, packed", &packed, 1, Storage::F16, format, &two());
        check("experts, packed", &packed, 6, Storage::F32, format, &two());
    }
}

/// Sinks in every kernel that ends a softmax, by itself and fused; experts whose gate and up are cut off, and biased.
#[test]
fn sinks_and_clamped_experts() {
    let mut config = config(64, 4, 2, 64, 96, 131);
    let router = Router { score: RouterScore::SoftmaxOfChosen, renormalise: None, ..router(6, 2) };
    let activation = Activation::Clamped { alpha: 1.702, limit: 0.7 };
    let experts = ExpertsConfig { router, router_bias: true, intermediate_size: 40, activation, bias: true, shared: None };
    config.layers[0].ffn = Ffn::Experts(experts);
    set_layers(&mut config, &[(Some(5), Some(0)), (None, Some(0))]);
    config.attentions_mut().for_each(|a| (a.sinks, a.softcap) = (true, None));
    let plan = pipeline::build(&config).expect("a plan");
    let wanted = [Stage::AttnCoreOut, Stage::ExpertAct, Stage::LogitsFinal].map(|stage| Request { stage, layers: None, want: Want::Full });
    // A step of one token; of several, which decode kernels take too; of a prompt, also by matrix units.
    for (tokens, storage) in [(1, Storage::F32), (3, Storage::F16), (33, Storage::F32), (33, Storage::F16)] {
        check_plan("sinks", &plan, tokens, storage, Format::F32, &two());
        check_values("sinks, fused", &plan, &wanted, tokens, (storage, Format::BF16), &settings());
    }
}

/// Settings with and without subgroups: what large shapes are worth.
pub fn two() -> Vec<(&'static str, GpuOptions)> {
    settings().into_iter().filter(|(n, _)| matches!(*n, "native" | "floor")).collect()
}

#[test]
fn widths_of_real_models() {
    for (hidden, heads, kv_heads, head_dim, inner) in [(1152, 4, 1, 256, 700), (2304, 8, 4, 256, 333)] {
        let config = config(hidden, heads, kv_heads, head_dim, inner, 501);
        check("width", &config, 1, Storage::F16, Format::F16, &two());
        check("width", &config, 7, Storage::F32, Format::BF16, &two());
    }
}

#[test]
fn head_dims_from_64_to_512() {
    for head_dim in [64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 512] {
        let mut config = config(32, 4, 2, head_dim, 48, 99);
        config.attentions_mut().for_each(|a| a.softcap = None);
        check(&format!("head_dim {head_dim}"), &config, 150, Storage::F32, Format::F32, &two());
        check(&format!("head_dim {head_dim}"), &config, 5, Storage::F16, Format::F16, &two());
    }
}

#[test]
fn every_activation_and_the_whole_projection_norm() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let mut config = config(64, 4, 4, 16, 160, 99);
        config.denses_mut().for_each(|dense| dense.activation = activation);
        config.attentions_mut().for_each(|a| a.query_key_norm = QueryKeyNorm::WholeProjection);
        config.layers[0].norms = Norms { before_mixer: false, after_mixer: true, before_ffn: false, after_ffn: true };
        config.tie_word_embeddings = true;
        check(&format!("{activation:?}"), &config, 11, Storage::F32, Format::F32, &two());
        check(&format!("{activation:?}"), &config, 11, Storage::F16, Format::F32, &two());
    }
}

/// Layer norms with a bias and without, of rows and of heads, with one weight for all heads or each its own; no gate; blocks in
/// parallel, with one norm or two; a head with a bias.
#[test]
fn layer_norms_plain_blocks_and_parallel_ones() {
    for (bias, own, parallel, one_norm) in [(true, false, false, false), (false, true, true, true), (true, true, true, false)] {
        for activation in [Activation::GeluTanh, Activation::Gelu] {
            let mut config = config(72, 6, 3, 20, 57, 131);
            set_layers(&mut config, &[(Some(5), Some(0)), (None, None)]);
            config.norm = Norm::Layer { eps: 1e-3, bias };
            config.head_bias = bias;
            config.denses_mut().for_each(|dense| (dense.gated, dense.activation) = (own, activation));
            let heads = if own { QueryKeyNorm::PerHeadOwnWeights } else { QueryKeyNorm::PerHead };
            config.attentions_mut().for_each(|a| a.query_key_norm = heads);
            for layer in &mut config.layers {
                layer.parallel = parallel;
                layer.norms = Norms { before_mixer: true, after_mixer: bias, before_ffn: !one_norm, after_ffn: false };
            }
            let name = format!("layer norms, bias {bias}, own {own}, parallel {parallel}, {activation:?}");
            for (tokens, storage) in [(1, Storage::F16), (3, Storage::F32), (21, Storage::F16), (21, Storage::F32)] {
                check(&name, &config, tokens, storage, Format::F32, &two());
            }
            check(&name, &config, 9, Storage::F16, Format::BF16, &settings());
        }
    }
}

/// A model with short convolutions in its first and last layer.
fn convolving(taps: usize, bias: bool) -> ModelConfig {
    let mut config = config(42, 6, 3, 16, 57, 131);
    set_layers(&mut config, &[(None, Some(0)), (Some(5), Some(0)), (None, Some(0))]);
    config.layers[0].mixer = Mixer::ShortConv(ShortConvConfig { taps, bias });
    config.layers[2].mixer = config.layers[0].mixer.clone();
    config
}

#[test]
fn short_convolutions() {
    for (taps, bias) in [(3, false), (4, true), (1, true)] {
        let config = convolving(taps, bias);
        for (tokens, storage) in [(1, Storage::F16), (3, Storage::F32), (21, Storage::F16), (21, Storage::F32)] {
            check(&format!("{taps} taps"), &config, tokens, storage, Format::F32, &two());
        }
        check(&format!("{taps} taps"), &config, 9, Storage::F16, Format::BF16, &settings());
    }
}

/// What a convolution keeps: over chunks and single tokens, beyond its ring, in forks, after a cut, and where sequences share steps.
#[test]
fn states_of_convolutions_continue() {
    let plan = pipeline::build(&convolving(3, true)).expect("a plan");
    for storage in [Storage::F32, Storage::F16] {
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
        let (mut exact, mut model) = oracles(&plan, storage);
        random_weights(&plan, Format::F32, 1, &mut [&mut exact, &mut model, &mut executor]);
        let (right, floor, found) = (last_logits(&exact), last_logits(&model), last_logits(&executor));
        let (_, lines) = beyond_floor(&right, &floor, &found, 3.0);
        assert!(lines.is_empty(), "{storage:?}: {lines:?}");

        let ids: Vec<u32> = (0..40).map(|i| i * 37 % 131).collect();
        let logits = |output: doppler::exec::StepOutput| output.logits.expect("logits");
        let read = |cache: &mut doppler::gpu::GpuCache, ids: &[u32]| {
            let step = Step { tokens: Tokens::Ids(ids), rows: Rows::Last, pick: None, read: Read::Logits, long_rope: false, requests: &[] };
            logits(block_on(executor.step(cache, &step)).expect("a step"))
        };
        let mut cache = executor.new_cache(64, 8).expect("a cache");
        ids[..24].chunks(8).for_each(|chunk| drop(read(&mut cache, chunk)));
        let mut fork = executor.fork(&cache).expect("a fork");
        let (after, again) = (read(&mut cache, &ids[24..25]), read(&mut fork, &ids[24..25]));
        assert_eq!(after, again, "a fork has the state");
        // What is still in the ring can be taken back; what is not, is not.
        (0..3).for_each(|i| drop(read(&mut cache, &ids[30 + i..31 + i])));
        assert!(executor.truncate(&mut cache, 24), "four tokens are in the ring");
        assert_eq!(read(&mut cache, &ids[24..25]), after, "as if they had not been read");
        assert!(!executor.truncate(&mut cache, 1), "the inputs before position 1 are written over");
        // Two sequences of other lengths in one step give what each gives alone.
        let mut other = executor.new_cache(64, 8).expect("a cache");
        drop(read(&mut other, &ids[..5]));
        let (mut a, mut b) = (executor.fork(&cache).expect("a fork"), executor.fork(&other).expect("a fork"));
        let step = |i: usize| Step {
            tokens: Tokens::Ids(&ids[i..=i]),
            rows: Rows::Last,
            pick: None,
            read: Read::Logits,
            long_rope: false,
            requests: &[],
        };
        let mut batch = [Entry { cache: &mut a, step: step(25) }, Entry { cache: &mut b, step: step(5) }];
        let pending = executor.submit_batch(&mut batch).expect("a step of two");
        let together: Vec<Vec<f32>> = pending.into_iter().map(|one| logits(block_on(executor.finish(one)).expect("its results"))).collect();
        let alone = [read(&mut cache, &ids[25..26]), read(&mut other, &ids[5..6])];
        for (together, alone) in together.iter().zip(&alone) {
            let size = alone.iter().map(|x| x * x).sum::<f32>().sqrt();
            let off = together.iter().zip(alone).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(off <= if storage == Storage::F32 { 1e-5 } else { 1e-2 } * size, "{storage:?}: {off} of {size}");
        }
    }
}

#[test]
fn neighbouring_pairs_and_queries_with_a_rope_of_their_own() {
    for norm in [QueryKeyNorm::None, QueryKeyNorm::PerHead, QueryKeyNorm::PerHeadAfterRope] {
        let mut config = config(64, 4, 2, 16, 96, 99);
        config.attentions_mut().for_each(|a| a.query_key_norm = norm);
        config.ropes[0] = RopeConfig { pairing: RopePairing::Neighbours, ..RopeConfig::plain(500.0, 12) };
        check(&format!("neighbours, {norm:?}"), &config, 11, Storage::F32, Format::F32, &two());
        let growth = Some(RopeGrowth { beta: 0.5, original_max_positions: 4 });
        config.ropes.push(RopeConfig { growth, ..config.ropes[0].clone() });
        config.attentions_mut().for_each(|a| a.query_rope = Some(1));
        check(&format!("growth, {norm:?}"), &config, 11, Storage::F32, Format::F32, &two());
        check(&format!("growth, {norm:?}"), &config, 3, Storage::F16, Format::F16, &two());
    }
}

#[test]
fn vocabularies_of_real_models() {
    for vocab in [151_936, 262_144] {
        let config = config(24, 2, 1, 16, 40, vocab);
        check(&format!("vocabulary {vocab}"), &config, 1, Storage::F32, Format::F16, &two());
        check(&format!("vocabulary {vocab}"), &config, 6, Storage::F16, Format::F16, &[settings().remove(0)]);
    }
}

#[test]
fn more_than_65_535_workgroups() {
    // gated_act takes 512·16392/2/64 = 65,568. (llvmpipe ends a shader's loops after 65,535 rounds in all, so a longer
    // row in place of more tokens would test that instead.)
    let config = config(8, 1, 1, 8, 16_392, 40);
    check("workgroups", &config, 512, Storage::F32, Format::F16, &[settings().remove(0)]);
}

/// Greedy choice and candidates agree with sorting the logits on the host, for every rule, over many workgroups.
#[test]
fn picks_and_candidates() {
    for vocab in [7, 131, 2048, 2049, 70_001] {
        let config = config(16, 1, 1, 8, 16, vocab);
        let plan = pipeline::build(&config).expect("a plan");
        let Some(gpu) = adapter(GpuOptions::default()) else { return };
        let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
        random_weights(&plan, Format::F32, 3, &mut [&mut executor]);
        let mut cache = executor.new_cache(64, 16).expect("a cache");
        for (k, valid) in [(1, vocab), (5, vocab), (64, vocab), (3, vocab - 2), (64, vocab / 2 + 1)] {
            let step = |read| Step {
                tokens: Tokens::Ids(&[1, 2, 3]),
                rows: Rows::Last,
                pick: Some(Pick { valid }),
                read,
                long_rope: false,
                requests: &[],
            };
            assert!(executor.truncate(&mut cache, 0));
            let logits = pollster::block_on(executor.step(&mut cache, &step(Read::Logits))).expect("a step");
            assert!(executor.truncate(&mut cache, 0));
            let top = pollster::block_on(executor.step(&mut cache, &step(Read::Top(k)))).expect("a step");
            let row = logits.logits.expect("logits were asked for");
            let mut expected: Vec<(u32, f32)> = row.iter().enumerate().map(|(i, v)| (i as u32, *v)).take(valid).collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            expected.truncate(k);
            assert_eq!(top.top.expect("candidates"), expected, "vocabulary {vocab}, k {k}");
            assert_eq!(top.token, Some(expected[0].0));
            assert_eq!(logits.token, Some(expected[0].0));
        }
    }
}

/// Hands every weight on as rows that are read by threads, in two bands.
struct Pulling<'a>(&'a mut GpuExecutor);

impl WeightSink for Pulling<'_> {
    fn expect(&mut self, formats: &[Format]) {
        self.0.expect(formats);
    }
    fn put(&mut self, id: WeightId, format: Format, _: usize, bytes: bytes::Bytes) -> Result<()> {
        let columns = self.0.plan().weights[id.0].shape.get(1).copied().unwrap_or(1);
        let row_bytes = format.row_bytes(columns).expect("whole blocks");
        let (rows, fill) = (bytes.len() / row_bytes, |rows: std::ops::Range<usize>, out: &mut [u8]| {
            out.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
            Ok(())
        });
        let bands = [0..rows / 3, rows / 3..rows];
        bands.into_iter().try_for_each(|rows| self.0.pull(id, format, &StoredRows { rows, row_bytes, fill: &fill }))
    }
}

/// Large weights reach the device through buffers that are used again: more rows than one takes, rows that are padded, laid out
/// in planes, decoded, and weights in several pieces.
#[test]
fn weights_that_threads_read_are_those_that_are_handed_over() {
    let cases = [
        (256, 45_000, Format::F32, None),
        (256, 45_000, Format::F32, Some(20 << 20)),
        (100, 12_001, Format::F16, None),
        (256, 12_001, Format::BF16, None),
        (256, 30_001, Format::Q4K, None),
        (256, 5_001, Format::Iq2Xxs, None),
    ];
    for (hidden, vocab, format, max_binding) in cases {
        let plan = pipeline::build(&config(hidden, 8, 4, 32, 256, vocab)).expect("a plan");
        let logits = [Request { stage: Stage::LogitsFinal, layers: None, want: Want::Full }];
        let ids = [3, vocab as u32 / 2, vocab as u32 - 1];
        let run = |pulled: bool| {
            let gpu = adapter(GpuOptions { max_binding, ..Default::default() })?;
            let mut executor = GpuExecutor::new(gpu, plan.clone(), Storage::F32).expect("an executor");
            match pulled {
                true => random_weights(&plan, format, 1, &mut [&mut Pulling(&mut executor)]),
                false => random_weights(&plan, format, 1, &mut [&mut executor]),
            }
            Some(observe(&executor, &ids, &logits, false))
        };
        let (Some(put), Some(pulled)) = (run(false), run(true)) else { return };
        assert!(!put.is_empty() && put == pulled, "{format}, {hidden} columns");
    }
}
