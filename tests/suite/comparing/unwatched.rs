//! What is judged is what runs: every kernel variant that a run without observers dispatches is dispatched by what judges
//! it, and a wrong kernel is found by both comparisons although watching takes it out of the run.

use super::reference;
use crate::golden::goldens;
use crate::support::{adapter, config, mixed_weights, random_weights, set_layers};
use doppler::debug::compare::run::{Measured, Tokens, align_run};
use doppler::debug::compare::{Choice, Report, isolated, text};
use doppler::debug::dump::Dump;
use doppler::debug::floor::Oracles;
use doppler::debug::self_test;
use doppler::exec::{Entry, Executor, Pick, Read, Replaceable, Rows, Step, Storage, Tokens as StepTokens, WeightSink};
use doppler::gpu::kernels::KERNELS;
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::model::{ModelConfig, QueryKeyNorm};
use doppler::plan::{Plan, WeightId};
use doppler::quant::Format;
use pollster::block_on;
use std::collections::BTreeSet;
use std::path::Path;

/// Puts a model's weights.
type Fill = Box<dyn Fn(&mut dyn WeightSink)>;

/// A model, what it is filled with, and a reference run.
struct Subject {
    name: String,
    plan: Plan,
    fill: Fill,
    reference: Dump,
    chunk: usize,
}

/// A random model of two layers, the first with a window, and the oracle's run of more tokens than its ring holds.
fn random(vocab: usize, format: Format) -> Subject {
    let mut config = config(40, 4, 2, 16, 57, vocab);
    set_layers(&mut config, &[(Some(5), Some(0)), (None, Some(0))]);
    subject(format!("random {vocab} {format}"), &config, vec![format])
}

/// A random model whose matrices are packed, each in the next of the formats.
fn packed() -> Subject {
    let mut config = packed_config();
    set_layers(&mut config, &[(Some(5), Some(0))]);
    subject("packed".into(), &config, self_test::PACKED.to_vec())
}

/// Of rows that are whole blocks of every format.
fn packed_config() -> ModelConfig {
    let mut config = config(256, 4, 2, 64, 256, 131);
    config.attentions_mut().for_each(|a| a.o_bias = false);
    config.denses_mut().for_each(|dense| dense.bias = false);
    config
}

/// A random model, each matrix in the next of `formats`, and the oracle's run.
fn subject(name: String, config: &ModelConfig, formats: Vec<Format>) -> Subject {
    let plan = pipeline::build(config).expect("a plan");
    let mut oracle = doppler::cpu::CpuExecutor::<f32>::new(plan.clone(), Storage::F32).expect("an oracle");
    mixed_weights(&plan, &formats, 1, &mut [&mut oracle]);
    let of = plan.clone();
    let fill = Box::new(move |sink: &mut dyn WeightSink| mixed_weights(&of, &formats, 1, &mut [sink]));
    let prompt = (0..45).map(|i| (i * 37 + 5) % 131).collect();
    let tokens = Tokens { prompt, forced: Vec::new(), steps: 4 };
    let reference = block_on(tokens.record(&oracle, 64, &Choice::default(), "reference", &mut |_, _| {})).expect("a run");
    Subject { name, plan, fill, reference, chunk: 14 }
}

/// A sink behind a reference.
struct Sink<'s>(&'s mut dyn WeightSink);

impl WeightSink for Sink<'_> {
    fn expect(&mut self, formats: &[Format]) {
        self.0.expect(formats);
    }
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> doppler::Result<()> {
        self.0.put(id, format, first_row, bytes)
    }
}

impl Subject {
    fn oracles(&self, storage: Storage) -> Oracles {
        let mut oracles = Oracles::new(&self.plan, &[Storage::F32, storage]).expect("oracles");
        (self.fill)(&mut oracles);
        oracles
    }
    fn executor(&self, options: GpuOptions, storage: Storage) -> Option<GpuExecutor> {
        let mut executor = GpuExecutor::new(adapter(options)?, self.plan.clone(), storage).expect("an executor");
        (self.fill)(&mut executor);
        Some(executor)
    }
    fn tokens(&self) -> Tokens {
        Tokens::of(&self.reference, false).expect("ids")
    }
    fn names(&self) -> [String; 2] {
        ["reference".into(), self.name.clone()]
    }
    /// As `compare` does it: a watched run and one that nobody watches.
    fn free(&self, executor: &GpuExecutor, oracles: &Oracles) -> Report {
        let (tokens, choice, quiet) = (self.tokens(), Choice::default(), &mut |_: usize, _: usize| {});
        let b = block_on(tokens.record(executor, self.chunk, &choice, "b", quiet)).expect("a run");
        let unwatched = block_on(tokens.unobserved(executor, self.chunk, quiet)).expect("a run");
        let a = &self.reference;
        let mut aligned = align_run(a, &b, self.names(), &self.plan, &choice).expect("aligned");
        let oracles = (&oracles.exact, &oracles.rounded[..]);
        let measured = block_on(Measured::new(oracles, [a, &b], &mut aligned, &choice, 64, &mut |_, _, _| {})).expect("floors");
        let report = measured.judge([a, &b], &aligned, &self.plan, quiet).expect("a report");
        measured.judge_unobserved(report, unwatched.as_ref(), a, &aligned, &self.plan).expect("a report")
    }
    fn alone(&self, executor: &GpuExecutor, oracles: &Oracles) -> Report {
        block_on(isolated(&self.reference, executor, oracles, self.names(), &Choice::default(), &mut |_, _| {}))
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Steps of few and of many rows of several sequences, as a server runs them.
fn together(executor: &GpuExecutor) {
    let ids = [1, 2, 3, 4];
    let mut caches: Vec<_> = (0..5).map(|_| executor.new_cache(8, ids.len()).expect("a cache")).collect();
    for (count, tokens) in [(2, 1), (5, 4)] {
        let step = Step {
            tokens: StepTokens::Ids(&ids[..tokens]),
            rows: Rows::Last,
            pick: Some(Pick { valid: executor.plan().vocab_size }),
            read: Read::Nothing,
            long_rope: false,
            requests: &[],
        };
        let mut batch: Vec<_> = caches.iter_mut().take(count).map(|cache| Entry { cache, step }).collect();
        for pending in executor.submit_batch(&mut batch).expect("a batch") {
            block_on(executor.finish(pending)).expect("results");
        }
    }
}

/// Ways to run on the adapter that have kernels of their own.
fn ways() -> Vec<(Storage, GpuOptions)> {
    let units = adapter(GpuOptions::default()).is_some_and(|gpu| gpu.caps.matrix.is_some());
    let way = |storage, batched, serial| (storage, GpuOptions { batched, serial: Some(serial), ..Default::default() });
    let own = [way(Storage::F32, false, false), way(Storage::F16, false, false), way(Storage::F16, false, true)];
    own.into_iter().chain(units.then(|| way(Storage::F16, true, false))).collect()
}

fn subjects() -> Vec<Subject> {
    let golden = goldens().into_iter().map(|golden| {
        let (name, plan, reference) = (golden.name.clone(), golden.plan.clone(), reference(&golden));
        let fill = Box::new(move |sink: &mut dyn WeightSink| drop(golden.fill(&mut Sink(sink))));
        Subject { name, plan, fill, reference, chunk: 7 }
    });
    golden.chain([random(131, Format::F16), random(2500, Format::BF16), packed()]).collect()
}

/// Of each model that runs a variant which none before it did.
#[test]
fn every_variant_that_runs_is_judged() {
    let (mut failures, mut seen) = (Vec::new(), vec![BTreeSet::new(); ways().len()]);
    for subject in subjects() {
        for ((storage, options), seen) in ways().into_iter().zip(&mut seen) {
            let options = || options.clone();
            let Some(users) = subject.executor(options(), storage) else { return };
            block_on(subject.tokens().unobserved(&users, subject.chunk, &mut |_, _| {})).expect("a run");
            together(&users);
            let dispatched = users.variants();
            assert!(dispatched.iter().any(|variant| variant.starts_with("attention_runs")), "{dispatched:?}");
            if dispatched.is_subset(seen) {
                continue;
            }
            seen.extend(dispatched.iter().cloned());
            let oracles = subject.oracles(storage);
            for mode in ["free", "alone"] {
                let judge = subject.executor(options(), storage).expect("an adapter");
                let report = if mode == "free" { subject.free(&judge, &oracles) } else { subject.alone(&judge, &oracles) };
                let what = format!("{} {mode} {}", subject.name, storage.activations);
                let missed: Vec<String> = dispatched.difference(&judge.variants()).cloned().collect();
                if !missed.is_empty() {
                    failures.push(format!("{what} does not judge {missed:?}"));
                }
                if report.finding() {
                    failures.push(format!("{what}:\n{}", text(&report, false)));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Norms of heads whose weights lie apart, as after one was replaced, are computed one by one: those of values too.
#[test]
fn replaced_norms_of_heads_give_the_same_bits() {
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut config = config(64, 4, 2, 16, 96, 99);
    config.attentions_mut().for_each(|a| (a.query_key_norm, a.value_norm) = (QueryKeyNorm::PerHead, true));
    let plan = pipeline::build(&config).expect("a plan");
    let tokens = Tokens { prompt: (5..30).collect(), forced: vec![3], steps: 2 };
    let logits = |replaced: bool| {
        let mut executor = GpuExecutor::new(gpu.clone(), plan.clone(), Storage::F32).expect("an executor");
        random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
        if replaced {
            (0..plan.weights.len()).for_each(|id| executor.clear(WeightId(id)).expect("a weight"));
            random_weights(&plan, Format::F32, 1, &mut [&mut executor]);
        }
        block_on(tokens.unobserved(&executor, 14, &mut |_, _| {})).expect("a run").expect("groups").logits
    };
    assert_eq!(logits(true), logits(false));
}

#[test]
fn every_variant_that_runs_is_in_the_self_test() {
    every_variant_is_in_the_self_test(false);
}

#[test]
fn every_variant_for_serial_threads_is_in_the_self_test() {
    every_variant_is_in_the_self_test(true);
}

/// The kernels without what they compute: which variants are dispatched is no matter of that, and compiling it takes minutes in software.
fn emptied() -> Vec<(String, String)> {
    let empty = |source: &str| {
        let main = source.find("fn main(").expect("an entry point");
        let body = main + source[main..].find(") {\n").expect("its body") + 4;
        format!("{}}}\n", &source[..body])
    };
    KERNELS.iter().map(|kernel| (kernel.name.to_string(), empty(kernel.source))).collect()
}

fn every_variant_is_in_the_self_test(serial: bool) {
    let Some(gpu) = adapter(GpuOptions { serial: Some(serial), kernels: emptied(), ..Default::default() }) else { return };
    let mut variants = BTreeSet::new();
    let ways = self_test::Way::all(gpu.caps.f16, gpu.caps.matrix.is_some());
    let make = |plan, way: self_test::Way| {
        let mut executor = GpuExecutor::new(gpu.clone(), plan, way.storage)?;
        executor.set_batched(way.batched);
        Ok(executor)
    };
    block_on(self_test::run(&ways, make, |executor, _, _| variants.extend(executor.variants()))).expect("a verdict");
    let mut missed = BTreeSet::new();
    for subject in subjects() {
        for way in &ways {
            let mut users = make(subject.plan.clone(), *way).expect("an executor");
            (subject.fill)(&mut users);
            block_on(subject.tokens().unobserved(&users, subject.chunk, &mut |_, _| {})).expect("a run");
            together(&users);
            missed.extend(users.variants().difference(&variants).cloned());
        }
    }
    // Whole models in each packed format: its embedding and its head too.
    let plan = pipeline::build(&packed_config()).expect("a plan");
    let tokens = Tokens { prompt: (5..50).collect(), forced: vec![3], steps: 2 };
    for way in &ways {
        let mut users = make(plan.clone(), *way).expect("an executor");
        for format in self_test::PACKED {
            (0..plan.weights.len()).for_each(|id| users.clear(WeightId(id)).expect("a weight"));
            random_weights(&plan, format, 1, &mut [&mut users]);
            block_on(tokens.unobserved(&users, 14, &mut |_, _| {})).expect("a run");
            together(&users);
        }
        assert!(users.variants().iter().filter(|variant| variant.starts_with("embed PACKED")).count() >= self_test::PACKED.len());
        missed.extend(users.variants().difference(&variants).cloned());
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Kernel, what is right, what is wrong, and the parts of which one must be named first when ops are judged alone.
type Edit = (&'static str, &'static str, &'static str, &'static [&'static str]);

const ATTENTION: &[&str] = &["L0 attn_core_out [attention", "L1 attn_core_out [attention"];
const CACHE: &[&str] = &["L0 k_cache [cache.", "L0 v_cache [cache.", "L1 k_cache [cache.", "L1 v_cache [cache."];
const CHOICE: &[&str] = &["sampled [choice"];

const EDITS: &[Edit] = &[
    ("attention", "* p.scale;", "* p.scale * 1.3;", ATTENTION),
    ("attention", "let begin = first_visible(at);", "let begin = first_visible(at) + u32(p.window > 0u && at >= p.window);", ATTENTION),
    ("attention", "head / (p.heads / p.kv_heads);", "head % p.kv_heads;", ATTENTION),
    ("attention", "if (p.softcap > 0.0)", "if (p.softcap > 1e9)", ATTENTION),
    (
        "attention",
        "select(0.0, exp_f32(score - risen), position <= at)",
        "select(0.0, exp_f32(score - risen), position < at || at == 0u)",
        ATTENTION,
    ),
    ("attention", "sum /= total;", "sum /= total + 0.01;", ATTENTION),
    ("attention_runs", "score *= p.scale;", "score *= p.scale * 1.3;", ATTENTION),
    ("attention_runs", "score *= p.scale;", "score *= p.scale * select(1.0, 1.3, step.tokens == 1u);", ATTENTION),
    ("attention_runs", "if (p.softcap > 0.0)", "if (p.softcap > 1e9)", ATTENTION),
    ("attention_runs", "let part = here / d4;", "let part = here / d4 + u32(step.position > 44u);", ATTENTION),
    ("attention_merge", "sum /= total;", "sum /= total + 0.01;", ATTENTION),
    (
        "heads",
        "slot(slab_of(token), position_of(token))",
        "slot(slab_of(token), position_of(token) + u32(step.tokens > 4u && token == 2u))",
        CACHE,
    ),
    ("heads", "slot(slab_of(token), position_of(token))", "slot(slab_of(token), position_of(token) + u32(step.tokens <= 4u))", CACHE),
    (
        "heads",
        "slot(slab_of(token), position_of(token))",
        "slot(slab_of(token), position_of(token) + u32(position_of(token) >= slab_of(token).y))",
        CACHE,
    ),
    ("heads", "let to = (slot", "if (kv_head + 1u == p.kv_heads && position_of(token) > 0u) { return; }\n    let to = (slot", CACHE),
    ("heads", "turned[first] = a * c - b * s;", "turned[first] = a * c - b * s * select(1.0, 1.01, is_query);", ATTENTION),
    ("top_k", "if (keys[i] > key)", "if (keys[i] > key && keys[i] < 0xbf800000u)", CHOICE),
    ("top_k", "] = min(winner.id,", "] = min(winner.id + 1u,", CHOICE),
    (
        "linear_rows",
        "x8[i] = (from_row + min(i, count - 1u - block))",
        "x8[i] = (from_row + 0u * min(i, count - 1u - block))",
        &["L0 q_proj [products.decode]", "L0 q_proj [decode]"],
    ),
    // Only where rows are of several sequences.
    (
        "linear_rows",
        "(from_row + min(i, count - 1u - block))",
        "(from_row + select(1u, 0u, step.entries > 4u) * min(i, count - 1u - block))",
        &["L0 q_proj [products.together]"],
    ),
    (
        "linear_rows",
        "(from_row + min(i, count - 1u - block))",
        "(from_row + select(1u, 0u, HEAD) * min(i, count - 1u - block))",
        &["logits ["],
    ),
    ("shared/ending", "n - p.third, p.third_bias", "n - p.third, p.second_bias", &["L0 v_proj [products.decode]"]),
    ("shared/ending", "y[i] = gated(g, u)", "y[i] = 1.01 * gated(g, u)", &["L0 ffn_act [gated products.decode]"]),
    ("rms_norm", "residual[to] + p.multiplier * v.a", "residual[to] + 0.99 * p.multiplier * v.a", &["L0 post_attn [norm and add."]),
    ("linear_tiled", "for (var k8 = 0u; k8 < p.k8; k8 += 4u)", "for (var k8 = 0u; k8 + 4u < p.k8; k8 += 4u)", &["L0 q_proj"]),
];

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn a_wrong_kernel_that_only_users_run_is_found() {
    let subject = random(131, Format::F32);
    let oracles = subject.oracles(Storage::F32);
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu/kernels");
    let mut failures = Vec::new();
    for (kernel, right, wrong, named) in EDITS {
        let source = std::fs::read_to_string(kernels.join(format!("{kernel}.wgsl"))).expect("a kernel");
        assert!(source.contains(right), "{kernel} has no `{right}`");
        let name = kernel.trim_start_matches("shared/").to_string();
        let options = GpuOptions { kernels: vec![(name, source.replace(right, wrong))], ..Default::default() };
        let Some(executor) = subject.executor(options, Storage::F32) else { return };
        let what = format!("{kernel}: {wrong}");
        let free = subject.free(&executor, &oracles);
        let alone = subject.alone(&executor, &oracles);
        let first = |report: &Report| report.stages.iter().find(|line| line.diverged).map(|line| (line.label(), line.times_floor));
        println!("{what}: free {:?}, alone {:?}", first(&free), first(&alone));
        if first(&free).is_none() {
            failures.push(format!("{what} is not found by the free comparison:\n{}", text(&free, false)));
        }
        if first(&alone).is_none_or(|(label, _)| !named.iter().any(|name| label.starts_with(name))) {
            failures.push(format!("{what} alone:\n{}", text(&alone, false)));
        }
        // What is only wrong unwatched is found unwatched.
        if *kernel == "attention" && free.stages.iter().any(|line| line.diverged && line.part.is_none()) {
            failures.push(format!("{what}: the watched run departs too:\n{}", text(&free, false)));
        }
    }
    let kinds: BTreeSet<&str> = EDITS.iter().map(|(kernel, ..)| *kernel).collect();
    assert!(EDITS.len() >= 20 && kinds.len() >= 8, "{kinds:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A reference of layer outputs and logits is judged layer by layer, and what is wrong is named by its layer.
#[test]
fn layers_alone_are_judged() {
    let subject = random(131, Format::F32);
    let oracles = subject.oracles(Storage::F32);
    let choice = Choice { stages: Some(vec![doppler::plan::Stage::LayerOut, doppler::plan::Stage::LogitsFinal]), layers: None };
    let mut oracle = doppler::cpu::CpuExecutor::<f32>::new(subject.plan.clone(), Storage::F32).expect("an oracle");
    (subject.fill)(&mut oracle);
    let few = block_on(subject.tokens().record(&oracle, 64, &choice, "few", &mut |_, _| {})).expect("a run");
    let few = Subject { reference: few, ..random(131, Format::F32) };
    let Some(right) = few.executor(GpuOptions::default(), Storage::F32) else { return };
    let report = few.alone(&right, &oracles);
    assert!(!report.finding() && report.stages.len() >= 6, "{}", text(&report, true));
    let source =
        include_str!("../../../src/gpu/kernels/attention.wgsl").replace("* p.scale;", "* p.scale * select(1.0, 1.3, p.window == 0u);");
    let options = GpuOptions { kernels: vec![("attention".into(), source)], ..Default::default() };
    let Some(wrong) = few.executor(options, Storage::F32) else { return };
    let report = few.alone(&wrong, &oracles);
    let first = report.stages.iter().find(|line| line.diverged).map(|line| line.label());
    assert_eq!(first.as_deref(), Some("L1 layer_out [since.layer_out.prompt]"), "{}", text(&report, true));
}

/// After the factors of a longrope model change, the dump does not hold what attention read: that is no agreement.
#[test]
fn what_is_left_out_is_no_agreement() {
    let golden = goldens().into_iter().find(|golden| golden.name == "phi3-crossing").expect("a model that crosses");
    let oracle = golden.oracle::<f32>(Storage::F32);
    let limit = golden.plan.longrope_limit().expect("longrope");
    let tokens = Tokens {
        prompt: golden.prompt[..golden.prompt.len().min(limit)].to_vec(),
        forced: Vec::new(),
        steps: 3 + limit - golden.prompt.len().min(limit),
    };
    let a = block_on(tokens.record(&oracle, 64, &Choice::default(), "a", &mut |_, _| {})).expect("a run");
    let oracles = golden.filled(Oracles::new(&golden.plan, &[Storage::F32]).expect("oracles"));
    let names = ["a".to_string(), "b".to_string()];
    let report = block_on(isolated(&a, &oracle, &oracles, names, &Choice::default(), &mut |_, _| {})).expect("a report");
    let last = text(&report, false);
    assert!(report.finding() && report.first_divergence.is_none(), "{last}");
    assert!(last.lines().last().is_some_and(|line| line.starts_with("INCOMPLETE worst ") && line.contains("attn_scores")), "{last}");
    // Ops that need no history are judged to the end.
    let q = report.stages.iter().find(|line| line.at.stage == doppler::plan::Stage::QRope).expect("q_rope");
    assert_eq!(q.rows, report.tokens);
}
