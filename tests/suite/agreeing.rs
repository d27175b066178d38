//! Agreement over a text, attribution to tensors, tokens against tokens, and replay bundles: on the built-in model and on
//! golden ones, against figures that are computed another way.

use crate::golden::{Golden, goldens};
use crate::support::{adapter, everything, observe};
use bytes::Bytes;
use doppler::config::{ResolveOptions, RuntimeConfig, resolve};
use doppler::cpu::CpuExecutor;
use doppler::debug::agreement::{Agreement, Cut, Window, agree, cut, likelihood, predicted};
use doppler::debug::anomaly::surroundings;
use doppler::debug::attribution::{Attribution, Text, attribute, noise};
use doppler::debug::bundle::{self, Bundle, Contents, Run, differences, fingerprint_text, fingerprints, replay};
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::debug::tokenisation::{compare, parse_ids};
use doppler::debug::weight_source::{Stored, WeightSource};
use doppler::exec::{Executor, Replaceable, Storage, WeightSink};
use doppler::formats::{InMemory, Local};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::inference::session::Session;
use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig};
use doppler::loader::{Checkpoint, Matched, match_slots, open_directory};
use doppler::plan::{At, Op, Plan, Stage, WeightId};
use doppler::quant::Format;
use doppler::{Kind, Result};
use pollster::block_on;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// The built-in model and its tokenizer.
pub fn demo() -> (Golden, Tokenizer) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let files = open_directory(&folder).expect("the built-in model");
    let config =
        resolve(&files.texts.config, files.texts.generation_config.as_deref(), ResolveOptions::default()).expect("a config").config;
    let plan = pipeline::build(&config).expect("a plan");
    let words = TokenizerConfig::from_json(files.texts.tokenizer_config.unwrap_or_default().as_bytes()).expect("a tokenizer config");
    let ids = TokenIds { bos: config.bos_token_id, eos: config.eos_token_ids.clone(), pad: config.pad_token_id };
    let tokenizer = Tokenizer::from_bytes(files.texts.tokenizer.expect("a tokenizer").as_bytes(), &words, &ids).expect("a tokenizer");
    (Golden { name: "demo".into(), folder, config, plan, values: BTreeMap::new(), prompt: vec![2], generated: Vec::new() }, tokenizer)
}

fn heldout() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/heldout.txt");
    std::fs::read_to_string(path).expect("the held-out text")
}

/// The first `documents` of the held-out text, each a window.
pub fn windows(tokenizer: &Tokenizer, documents: usize) -> Vec<Window> {
    let mut windows = cut(tokenizer, &heldout(), Cut { window: 1024, documents: true }).expect("windows");
    windows.truncate(documents);
    windows
}

pub fn agreement<A: Executor, B: Executor>(a: &A, b: &B, windows: &[Window]) -> Agreement {
    block_on(agree(a, b, windows, a.plan().vocab_size, &mut |_| ControlFlow::Continue(()))).expect("an agreement")
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn equal_runs_agree_exactly_and_f16_storage_nearly() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 12);
    let (exact, rounded) = (demo.oracle::<f32>(Storage::F32), demo.oracle::<f32>(Storage::F16));
    let same = agreement(&exact, &demo.oracle::<f32>(Storage::F32), &windows);
    assert_eq!((same.kl.mean, same.kl.max, same.same_top.value, same.ratio.value), (0.0, 0.0, 1.0, 1.0));
    assert_eq!((same.tokens, same.complete, &same.a), (predicted(&windows), true, &same.b));

    // Measured: mean 2.1e-10, largest 1.0e-8, where keys, values and matmul inputs are rounded to 2^-11.
    let f16 = agreement(&exact, &rounded, &windows);
    println!("{}", f16.text());
    assert!(f16.kl.mean > 0.0 && f16.kl.mean < 2e-9 && f16.kl.max < 1e-7, "{}", f16.text());
    assert!(f16.kl.median <= f16.kl.p90 && f16.kl.p90 <= f16.kl.p99 && f16.kl.p99 <= f16.kl.max);
    assert!((f16.ratio.value - f16.b.perplexity / f16.a.perplexity).abs() < 1e-12 && f16.same_top.value > 0.99);
    assert_eq!((f16.worst.len(), f16.worst[0].kl, f16.worst[0].token), (10, f16.kl.max, f16.kl.max_token));

    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let gpu = demo.filled(GpuExecutor::new(gpu, demo.plan.clone(), Storage::F32).expect("an executor"));
    // Software adapters are slow.
    let found = agreement(&exact, &gpu, &windows[..3]);
    println!("{}", found.text());
    // Rounding of f32 in another order; measured: mean 4.8e-15.
    assert!(found.kl.mean < 1e-13 && found.same_top.value == 1.0, "{}", found.text());
}

/// Perplexity over the golden prompts from transformers' own logits, by the formula.
#[test]
fn likelihood_is_that_of_transformers_logits() {
    for golden in goldens() {
        // A longrope model's values are of the whole prompt at once, as windows are.
        let ids = &golden.prompt;
        let logits = &golden.values["logits_final"];
        let nll = |place: usize| {
            let row: Vec<f64> = logits.row(place).iter().map(|x| f64::from(*x)).collect();
            row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[ids[place + 1] as usize]
        };
        let all: Vec<f64> = (0..ids.len() - 1).map(nll).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let window = [Window { ids: ids.clone(), added: 0, first: 0 }];
        let executor = golden.oracle::<f32>(Storage::F32);
        let found =
            block_on(likelihood(&executor, &window, golden.plan.vocab_size, &mut |_| ControlFlow::Continue(()))).expect("a likelihood");
        // The oracle's logits are within 1e-5 of transformers'.
        assert!(found.tokens == all.len() && (found.nll / mean - 1.0).abs() < 1e-5, "{}: {} for {mean}", golden.name, found.nll);
    }
}

/// A window longer than a step gives what one step over all of it gives, and breaking off gives what was read.
#[test]
fn steps_make_no_difference_and_breaking_off_keeps_what_is_known() {
    let (demo, tokenizer) = demo();
    let text = heldout().replace("\n=====\n", " ");
    let all = cut(&tokenizer, &text, Cut { window: 600, documents: false }).expect("windows");
    assert!(all.len() > 10 && all.iter().all(|w| w.ids[0] == 2 && w.added == 1));
    assert_eq!(predicted(&all), tokenizer.encode(&text, false).expect("ids").len());
    let executor = demo.oracle::<f32>(Storage::F32);
    let logits = observe(&executor, &all[1].ids, &everything(&demo.plan), false).remove("logits_final").expect("logits");
    let nll = |place: usize| {
        let row = logits.row(place);
        row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() - f64::from(row[all[1].ids[place + 1] as usize])
    };
    let mean = (0..all[1].ids.len() - 1).map(nll).sum::<f64>() / (all[1].ids.len() - 1) as f64;
    let two = &all[1..3];
    let first = |progress: doppler::debug::agreement::Progress| {
        if progress.done >= two[0].ids.len() - 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let found = block_on(likelihood(&executor, two, demo.plan.vocab_size, &mut { first })).expect("a likelihood");
    assert_eq!(found.tokens, two[0].ids.len() - 1);
    assert!((found.nll / mean - 1.0).abs() < 1e-9, "{} for {mean}", found.nll);
    let broken = block_on(agree(&executor, &executor, two, demo.plan.vocab_size, &mut { first })).expect("an agreement");
    assert!(!broken.complete && broken.tokens == found.tokens && broken.a.nll == found.nll);
    assert!(broken.text().contains("incomplete=true"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let (demo, _) = demo();
    let executor = demo.oracle::<f32>(Storage::F32);
    let check = |ids: Vec<u32>, valid: usize| {
        let windows = [Window { ids, added: 0, first: 0 }];
        let error = block_on(agree(&executor, &executor, &windows, valid, &mut |_| ControlFlow::Continue(()))).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{error}");
        error.message
    };
    assert!(check(vec![2], 1531).contains("at least two tokens"));
    assert!(check(vec![2, 1531], 1531).contains("id 1531"));
    assert!(check(vec![2, 3], 1532).contains("1531"));
    assert!(check(vec![2; 1025], 1531).contains("context of 1024"));
}

/// A checkpoint with its plan's slots.
pub fn stored(golden: &Golden) -> (Checkpoint<Local>, Matched) {
    let files = open_directory(&golden.folder).expect("a model folder");
    let checkpoint = block_on(Checkpoint::open(files.sources, files.shards.as_ref())).expect("a checkpoint");
    let matched = match_slots(&golden.plan, &golden.config.tensors, &checkpoint.index, false).expect("all weights");
    (checkpoint, matched)
}

/// Weights as `edit` changes them: id, element index, value.
pub struct Edited<'s, W> {
    inner: &'s W,
    columns: Vec<usize>,
    edit: &'s dyn Fn(WeightId, usize, f32) -> f32,
}

impl<'s, W: WeightSource> Edited<'s, W> {
    pub fn new(plan: &Plan, inner: &'s W, edit: &'s dyn Fn(WeightId, usize, f32) -> f32) -> Self {
        Self { inner, columns: plan.weights.iter().map(|s| s.elements() / s.shape[0]).collect(), edit }
    }
}

impl<W: WeightSource> WeightSource for Edited<'_, W> {
    fn name(&self, plan: &Plan, id: WeightId) -> String {
        self.inner.name(plan, id)
    }
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)> {
        let first = rows.start * self.columns[id.0];
        let (format, bytes) = self.inner.rows(id, rows).await?;
        let values = format.values(&bytes)?.into_iter().enumerate().map(|(i, x)| (self.edit)(id, first + i, x));
        Ok((Format::F32, values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()))
    }
}

pub fn fill<S: WeightSink>(plan: &Plan, mut executor: S, source: &impl WeightSource) -> S {
    for (i, slot) in plan.weights.iter().enumerate() {
        let (format, bytes) = block_on(source.rows(WeightId(i), 0..slot.shape[0])).expect("rows");
        executor.put(WeightId(i), format, 0, bytes).expect("a weight fits its slot");
    }
    executor
}

fn attributed<A: Executor, B: Executor + Replaceable>(
    exact: &A,
    executor: &mut B,
    reference: &impl WeightSource,
    own: &impl WeightSource,
    windows: &[Window],
    most: Option<usize>,
) -> Attribution {
    let text = Text { windows, valid: exact.plan().vocab_size, most };
    block_on(attribute(exact, executor, reference, own, text, &mut |_| ControlFlow::Continue(()))).expect("an attribution")
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn a_perturbed_tensor_is_first_and_regains_nearly_all() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 2);
    let (checkpoint, matched) = stored(&demo);
    let stored = Stored { checkpoint: &checkpoint, matched: &matched };
    let guilty = demo.plan.weights.iter().position(|w| w.label() == "L3 down_proj").expect("a down projection");
    // All weights but the embedding a little off, one much; one tensor hardly.
    let noisy = |id: WeightId, i: usize, x: f32| {
        let sign = if (i.wrapping_mul(2_654_435_761) >> 7) & 1 == 0 { 1.0 } else { -1.0 };
        x * (1.0
            + sign
                * if id.0 == guilty {
                    0.1
                } else if demo.plan.weights[id.0].layer.is_none() {
                    0.0
                } else {
                    1e-4
                })
    };
    let own = Edited::new(&demo.plan, &stored, &noisy);
    let exact = demo.oracle::<f32>(Storage::F32);
    let empty = || CpuExecutor::<f32>::new(demo.plan.clone(), Storage::F32).expect("a plan");
    let mut executor = fill(&demo.plan, empty(), &own);
    let before = agreement(&exact, &executor, &windows).kl.mean;
    let found = attributed(&exact, &mut executor, &stored, &own, &windows, Some(3));
    println!("{}\n{}", found.text(), found.lines().join("\n"));
    let first = &found.tensors[0];
    assert_eq!((first.noise.id, found.restored, found.complete, found.kl), (WeightId(guilty), 3, true, Some(before)));
    // Every element is 10 % off: 20 dB. Of the divergence, which grows as the square, others have 1e-6 each.
    assert!((first.noise.sqnr - 20.0).abs() < 1e-3 && (first.noise.relative_l2 - 0.1).abs() < 1e-5, "{}", first.text());
    assert!(first.restored.expect("restored").share > 0.999, "{}", first.text());
    assert!(found.tensors[1].restored.expect("restored").share.abs() < 0.05 && found.tensors[3].restored.is_none());
    let line = first.text();
    assert!(line.starts_with("TENSOR name=model.layers.3.mlp.down_proj.weight role=L3.down_proj sqnr=20.00dB klRegained="), "{line}");
    assert_eq!(found.equal + found.tensors.len(), demo.plan.weights.len());
    assert!(found.equal >= 2 && found.text().contains(" restored=3"), "{}", found.text());
    // The executor has its own weights again; what was left is what a model with that one tensor restored has.
    assert_eq!(agreement(&exact, &executor, &windows).kl.mean, before);
    let but_one = |id: WeightId, i: usize, x: f32| if id.0 == guilty { x } else { noisy(id, i, x) };
    let restored = fill(&demo.plan, empty(), &Edited::new(&demo.plan, &stored, &but_one));
    assert_eq!(Some(agreement(&exact, &restored, &windows).kl.mean), first.restored.map(|r| r.kl));

    // The noise alone, from its definition.
    let alone = block_on(noise([&demo.plan; 2], &stored, &own, &mut |_| ControlFlow::Continue(()))).expect("noise");
    assert_eq!((alone.kl, alone.tensors[0].noise.id), (None, WeightId(guilty)));
    let (format, bytes) = block_on(stored.rows(WeightId(guilty), 0..256)).expect("rows");
    let largest = format
        .values(&bytes)
        .expect("values")
        .into_iter()
        .enumerate()
        .map(|(i, x)| (f64::from(x) - f64::from(noisy(WeightId(guilty), i, x))).abs());
    let largest = largest.enumerate().fold((0, 0.0), |m, x| if x.1 > m.1 { x } else { m });
    let columns = demo.plan.weights[guilty].shape[1];
    assert_eq!((alone.tensors[0].noise.max_abs, alone.tensors[0].noise.at), (largest.1, [largest.0 / columns, largest.0 % columns]));
}

/// Restoring on the GPU, where weights change their type on the way; and what is not finite comes first.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn weights_are_restored_on_the_gpu_as_on_the_oracle() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 1);
    let (checkpoint, matched) = stored(&demo);
    let stored = Stored { checkpoint: &checkpoint, matched: &matched };
    let guilty = demo.plan.weights.iter().position(|w| w.label() == "L1 v_proj").expect("a value projection");
    // Every other element: a factor on all of it would go away in the norm behind attention.
    let scaled = |id: WeightId, i: usize, x: f32| if id.0 == guilty && i.is_multiple_of(2) { 0.0 } else { x };
    let own = Edited::new(&demo.plan, &stored, &scaled);
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let exact = demo.oracle::<f32>(Storage::F32);
    let mut executor = fill(&demo.plan, GpuExecutor::new(gpu, demo.plan.clone(), Storage::F32).expect("an executor"), &own);
    let before = agreement(&exact, &executor, &windows).kl.mean;
    let found = attributed(&exact, &mut executor, &stored, &own, &windows, None);
    assert_eq!((found.tensors.len(), found.restored), (1, 1));
    let (kl, restored) = (found.kl.expect("measured"), found.tensors[0].restored.expect("restored"));
    // What is left is rounding.
    println!("{}", found.tensors[0].text());
    assert!(kl == before && kl > 1e-9 && restored.kl < 1e-13, "{}", found.tensors[0].text());
    assert_eq!(agreement(&exact, &executor, &windows).kl.mean, before);

    let nan = |id: WeightId, i: usize, x: f32| if id.0 == 5 && i == 7 { f32::NAN } else { scaled(id, i, x) };
    let own = Edited::new(&demo.plan, &stored, &nan);
    let found = block_on(noise([&demo.plan; 2], &stored, &own, &mut |_| ControlFlow::Continue(()))).expect("noise");
    assert_eq!((found.tensors[0].noise.id.0, found.tensors[0].noise.non_finite, found.tensors.len()), (5, 1, 2));
    assert!(found.tensors[0].text().contains(" nonFinite=1"), "{}", found.tensors[0].text());
}

/// Copies with four bits of each mantissa: the noise of cutting the others off, by a sum over whole tensors.
#[test]
fn noise_of_rounded_copies() {
    let golden = goldens().into_iter().find(|g| g.name == "phi3").expect("a model with fused tensors");
    let (checkpoint, matched) = stored(&golden);
    let stored = Stored { checkpoint: &checkpoint, matched: &matched };
    let cut = |x: f32| f32::from_bits(x.to_bits() & 0xfff8_0000);
    let four_bits = |_: WeightId, _: usize, x: f32| cut(x);
    let own = Edited::new(&golden.plan, &stored, &four_bits);
    let found = block_on(noise([&golden.plan; 2], &stored, &own, &mut |_| ControlFlow::Continue(()))).expect("noise");
    assert!(!found.tensors.is_empty());
    let mut names = Vec::new();
    for tensor in &found.tensors {
        let slot = &golden.plan.weights[tensor.noise.id.0];
        let (format, bytes) = block_on(stored.rows(tensor.noise.id, 0..slot.shape[0])).expect("rows");
        let values: Vec<f64> = format.values(&bytes).expect("values").iter().map(|x| f64::from(*x)).collect();
        let errors = values.iter().map(|x| (x - f64::from(cut(*x as f32))).powi(2));
        let exact = 10.0 * (values.iter().map(|x| x * x).sum::<f64>() / errors.sum::<f64>()).log10();
        assert!((tensor.noise.sqnr - exact).abs() < 1e-9 && (25.0..40.0).contains(&exact), "{}: {exact}", tensor.text());
        names.push(tensor.noise.name.clone());
    }
    let (all, fused) = (names.len(), names.iter().filter(|n| n.contains("qkv_proj.weight[")).count());
    names.sort();
    names.dedup();
    assert!(names.len() == all && fused >= 3, "{names:?}");
}

#[test]
fn tokens_part_where_the_text_says() {
    let (_, tokenizer) = demo();
    let text = "Once upon a time 😀 größer was the sea.";
    let ours = tokenizer.encode(text, true).expect("ids");
    let line = |expected: &[u32]| compare(&tokenizer, text, true, expected).expect("a comparison").text();
    assert_eq!(line(&ours), format!("TOKENS {} equal", ours.len()));
    // The spans are those of the text: each token's bytes begin where the one before ends, or are its character's.
    let spans = tokenizer.encode_spans(text, true).expect("spans");
    assert_eq!(spans.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ours);
    assert!(spans.iter().all(|(_, s)| text.is_char_boundary(s.start) && text.is_char_boundary(s.end)), "{spans:?}");

    // Another id for a token behind the emoji and the umlaut: bytes are counted, not characters.
    let (sea, span) = spans.iter().rev().find(|(_, s)| text[s.clone()].contains("sea")).cloned().expect("a sea");
    let index = ours.iter().rposition(|id| *id == sea).expect("its place");
    let mut other = ours.clone();
    other[index] = 7;
    let found = compare(&tokenizer, text, true, &other).expect("a comparison");
    let m = found.mismatch.clone().expect("a mismatch");
    assert_eq!((m.index, m.span.clone(), m.differing), (index, span, [1, 1]));
    assert_eq!((m.ours.as_ref().map(|t| t.id), m.expected.as_ref().map(|t| t.id)), (Some(sea), Some(7)));
    assert!(m.before.ends_with("größer was the") && m.at.trim() == "sea" && m.after == ".", "{m:?}");
    assert!(found.text().starts_with(&format!("TOKENS mismatch index={index} ours={sea}(\"")), "{}", found.text());

    // A mismatch within the emoji, which is several tokens of one character.
    let emoji = spans.iter().position(|(_, s)| text[s.clone()].contains('😀')).expect("an emoji");
    let mut other = ours.clone();
    other.insert(emoji, 9);
    let m = compare(&tokenizer, text, true, &other).expect("a comparison").mismatch.expect("a mismatch");
    assert!(m.index == emoji && m.differing[1] == m.differing[0] + 1 && text[m.span.clone()].contains('😀'), "{m:?}");

    // Lists that end early, and what is seen often.
    assert!(line(&ours[..5]).contains("expected=end "), "{}", line(&ours[..5]));
    let longer: Vec<u32> = ours.iter().copied().chain([1]).collect();
    assert!(line(&longer).contains("ours=end expected=1(") && line(&longer).contains("end-of-sequence"), "{}", line(&longer));
    assert!(line(&longer).contains(&format!("bytes={0}..{0}", text.len())));
    assert!(line(&ours[1..]).contains("index=0 ours=2(\"<bos>\")") && line(&ours[1..]).contains("only BOS"), "{}", line(&ours[1..]));
    assert!(line(&[]).contains("no ids were expected") && line(&[2, 999_999]).contains("of another model?"));
    let lines = compare(&tokenizer, "a\nb", true, &[2]).expect("a comparison").text();
    assert!(!lines.contains('\n'), "{lines}");
}

#[test]
fn expected_ids_are_read_in_every_spelling() {
    for text in ["[2, 651,7]", "2,651,7", " 2\n651\n7\n", "2, 651 7,", "[\n2,651,7\n]\n"] {
        assert_eq!(parse_ids("ids", text).expect("ids"), [2, 651, 7], "{text}");
    }
    assert!(parse_ids("ids", " \n").expect("no ids").is_empty());
    for (text, expected) in
        [("2 x 3", "entry 2: expected an id, found `x`"), ("-1", "entry 1"), ("[2, \"a\"]", "JSON list"), ("{}", "entry 1")]
    {
        let error = parse_ids("ids", text).unwrap_err();
        assert!(error.kind == Kind::Format && error.message.starts_with("ids: ") && error.message.contains(expected), "{error}");
    }
}

/// A run of the built-in model, bundled.
fn bundled(demo: &Golden, tokenizer: &Tokenizer, executor: &CpuExecutor<f32>, values: &[At]) -> (Contents, Vec<u8>) {
    let files = open_directory(&demo.folder).expect("a model folder");
    let prints = block_on(fingerprints(&files, &mut |_| {})).expect("fingerprints");
    let prompt = "The color of the sky is";
    let runtime = RuntimeConfig::parse(r#"{"runtime":{"inference":{"sampling":{"temperature":0.7,"seed":11}}}}"#).expect("a config");
    let mut contents = Contents {
        version: Contents::VERSION,
        model: "demo".into(),
        config: files.texts.config,
        generation_config: files.texts.generation_config,
        allow_unknown_config: false,
        files: prints,
        runtime,
        prompt: Some(prompt.into()),
        run: Run {
            max_tokens: 6,
            capacity: 64,
            chunk: 4,
            valid_vocab: demo.plan.vocab_size,
            pad: Some(0),
            stop_ids: vec![1, 5],
            rules: None,
        },
        dtype: "f32".into(),
        device: executor.describe(),
        versions: BTreeMap::from([("doppler".into(), "test".into())]),
        logits: None,
        notes: vec!["a note".into()],
        findings: vec![serde_json::json!({"kind": "made_up"})],
    };
    let mut dump = DumpObserver::of(&demo.plan, values).expect("values");
    let mut session = Session::new(executor, contents.session()).expect("a session");
    let ids = tokenizer.encode(prompt, true).expect("ids");
    let options = contents.generate();
    let generated = block_on(session.generate(&ids, &options, Some(&mut dump), &mut |_| ControlFlow::Continue(()))).expect("a generation");
    contents.logits = generated.logits_hash.map(|h| format!("{h:016x}"));
    let mut file = Vec::new();
    contents.write(&dump, &mut file).expect("a bundle in memory");
    (contents, file)
}

fn open(file: Vec<u8>) -> Result<Bundle> {
    Bundle::of(Dump::read(InMemory::new("b.safetensors", file))?)
}

#[test]
fn a_bundle_round_trips_and_repeats_its_run() {
    let (demo, tokenizer) = demo();
    let executor = demo.oracle::<f32>(Storage::F32);
    let at = At { stage: Stage::QRope, layer: Some(3) };
    let values = bundle::values(&demo.plan, Some(at));
    assert_eq!(values, surroundings(&demo.plan, at));
    let (contents, file) = bundled(&demo, &tokenizer, &executor, &values);
    let bundle = open(file.clone()).expect("a bundle");
    assert_eq!(bundle.contents, contents);
    assert_eq!(bundle.input_ids().expect("ids"), tokenizer.encode("The color of the sky is", true).expect("ids"));
    // It is a dump of exactly these values.
    let mut held: Vec<String> = bundle.dump.stages().iter().map(|at| at.key()).collect();
    let mut wanted: Vec<String> = values.iter().map(|at| at.key()).collect();
    held.sort();
    wanted.sort();
    assert_eq!(held, wanted);
    assert!(bundle.dump.shape(at).expect("the value")[0] > bundle.input_ids().expect("ids").len());
    assert_eq!(bundle.dump.metadata["dtype"], "f32");

    let mut dump = DumpObserver::of(&demo.plan, &values).expect("values");
    let again = block_on(replay(&executor, &bundle, Some(&mut dump), &mut |_| ControlFlow::Continue(()))).expect("a run");
    assert!(again.is_same() && again.same_logits == Some(true) && again.complete, "{}", again.text(None));
    let mut now = Vec::new();
    contents.write(&dump, &mut now).expect("a bundle");
    assert_eq!(now, file, "the same run writes the same bundle");

    // On another device the bits are others; a model that computes something else gives other ids.
    let rounded = block_on(replay(&demo.oracle::<f32>(Storage::F16), &bundle, None, &mut |_| ControlFlow::Continue(()))).expect("a run");
    assert!(rounded.same_logits == Some(false) && rounded.first_other_id.is_none(), "{}", rounded.text(None));
    let mut plan = demo.plan.clone();
    for node in &mut plan.nodes {
        if let Op::Embed { scale, .. } = &mut node.op {
            *scale = 1.0;
        }
    }
    let broken = demo.filled(CpuExecutor::<f32>::new(plan, Storage::F32).expect("a plan"));
    let other = block_on(replay(&broken, &bundle, None, &mut |_| ControlFlow::Continue(()))).expect("a run");
    assert!(!other.is_same() && other.text(None).starts_with("REPLAY verdict=\"other "), "{}", other.text(None));

    // Without a place, the residual stream.
    let stream = bundle::values(&demo.plan, None);
    assert_eq!(stream.len(), demo.plan.num_layers + 2);
    assert!(DumpObserver::of(&demo.plan, &[At { stage: Stage::RouterLogits, layer: Some(0) }]).is_err());
}

#[test]
fn foreign_and_broken_bundles_are_told_apart() {
    let (demo, tokenizer) = demo();
    let executor = demo.oracle::<f32>(Storage::F32);
    let at = At { stage: Stage::FinalNorm, layer: None };
    let (contents, file) = bundled(&demo, &tokenizer, &executor, &[at]);
    assert_eq!(open(file.clone()).expect("a bundle").dump.stages(), [at]);
    for len in (0..file.len()).step_by(97).chain([file.len() - 1]) {
        let error = open(file[..len].to_vec()).map(|_| ()).unwrap_err();
        assert!(error.kind == Kind::Format && error.message.contains("truncated"), "{len}: {error}");
    }
    // A dump that is no bundle, and bundles whose record is not ours.
    let mut plain = Vec::new();
    let dump = DumpObserver::of(&demo.plan, &[at]).expect("values");
    dump.write(&mut plain, &[("model", "demo")]).expect("a dump");
    let error = open(plain).map(|_| ()).unwrap_err();
    assert!(error.message.contains("no replay bundle") && error.message.contains("--bundle"), "{error}");
    let with = |record: &str| {
        let mut file = Vec::new();
        dump.write(&mut file, &[("bundle", record)]).expect("a dump");
        open(file).map(|_| ()).unwrap_err()
    };
    let whole = serde_json::to_value(&contents).expect("JSON");
    let edited = |key: &str, value: serde_json::Value| {
        let mut record = whole.clone();
        *record.pointer_mut(key).expect("the key") = value;
        with(&record.to_string())
    };
    for (error, expected) in [
        (with("x"), "corrupt `bundle`"),
        (with("{}"), "version"),
        (with("{\"version\":1}"), "missing field"),
        (edited("/version", 2.into()), "version 2, but this is version 1"),
        (edited("/run/chunk", 0.into()), "run.chunk"),
        (edited("/logits", "xyz".into()), "hexadecimal"),
        (edited("/run/maxTokens", (-1).into()), "corrupt"),
    ] {
        assert!(error.kind == Kind::Format && error.message.contains("b.safetensors") && error.message.contains(expected), "{error}");
    }
}

#[test]
fn files_that_changed_are_named() {
    let (demo, _) = demo();
    let files = open_directory(&demo.folder).expect("a model folder");
    let mut read = 0;
    let prints = block_on(fingerprints(&files, &mut |bytes| read += bytes)).expect("fingerprints");
    let names: Vec<&str> = prints.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]);
    let weights = std::fs::read(demo.folder.join("model.safetensors")).expect("the weights");
    assert_eq!(read, weights.len() as u64);
    assert_eq!((prints[4].bytes, prints[4].xxh64.len()), (weights.len() as u64, 16));
    // XXH64 of nothing with seed 0, from the algorithm's description.
    assert_eq!(fingerprint_text("empty", "").xxh64, "ef46db3751d8e999");
    assert!(differences(&prints, &prints).is_empty());
    let mut now = prints.clone();
    now[0] = fingerprint_text("config.json", "{}");
    now.remove(2);
    now.push(fingerprint_text("chat_template.jinja", "x"));
    let found: Vec<String> = differences(&prints, &now).iter().map(|d| d.text()).collect();
    assert_eq!(found.len(), 3);
    assert!(found[0].starts_with("ANOMALY kind=other_file file=config.json expected=787:"), "{}", found[0]);
    assert!(found[1].contains("file=tokenizer.json") && found[1].contains("found=absent"));
    assert!(found[2].contains("file=chat_template.jinja expected=absent"));
}
