//! Interventions on the device against the oracle: every kind at every value that can be changed, on chosen tokens, heads and
//! elements, in prompt and decode, in f32, f16 and over packed weights, fused and unfused, watched and not.

use crate::golden::goldens;
use crate::support::*;
use doppler::cpu::CpuExecutor;
use doppler::debug::interventions::set;
use doppler::debug::patching::{Column, Question, patch};
use doppler::exec::{Content, Editable, Executor, Read, Request, Rows, Step, Storage, Tokens, Want};
use doppler::formats::safetensors::{Output, read_header, write};
use doppler::formats::{InMemory, Local};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::model::*;
use doppler::plan::edit::{Edit, apply};
use doppler::plan::intervention::{Change, Given, Intervention, Span};
use doppler::plan::{At, Op, Plan, Stage, ValueId};
use doppler::quant::Format;
use doppler::tensor::{Tensor, to_f32};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Tokens of the prompt, and read one by one after it.
const PROMPT: usize = 19;
const DECODED: [u32; 2] = [5, 77];

fn config(inner: usize) -> ModelConfig {
    let mut config = crate::support::config(64, 4, 2, 16, inner, 131);
    set_layers(&mut config, &[(Some(6), Some(0)), (None, Some(0))]);
    config
}

fn ids() -> Vec<u32> {
    (0..PROMPT as u32).map(|i| i * 37 % 131).collect()
}

/// Each step's logits, and what was watched, by key, the rows of all steps together: of the one row of a decode step the rounding
/// floor would be a matter of luck.
type Seen = (Vec<Vec<f32>>, BTreeMap<String, Tensor>);

/// The prompt in steps of `chunk` tokens, then each of `DECODED`.
fn run<E: Executor>(executor: &E, chunk: usize, requests: &[Request]) -> Seen {
    let (ids, mut cache) = (ids(), executor.new_cache(64, 32).expect("a cache"));
    let (mut logits, mut values) = (Vec::new(), BTreeMap::<String, Vec<f32>>::new());
    let positions = ids.len() + DECODED.len();
    for tokens in ids.chunks(chunk).chain(DECODED.chunks(1)) {
        let step = Step { tokens: Tokens::Ids(tokens), rows: Rows::Last, pick: None, read: Read::Logits, long_rope: false, requests };
        let output = pollster::block_on(executor.step(&mut cache, &step)).expect("a step");
        logits.push(output.logits.expect("logits were asked for"));
        for value in output.values {
            let Content::Full(tensor) = value.content else { panic!("whole values were asked for") };
            let joined = values.entry(value.at.key()).or_default();
            // Rows of scores have a cell for each position that there is.
            let padding = if value.at.stage.layout().is_scores() { positions - tensor.width() } else { 0 };
            for row in tensor.data.chunks_exact(tensor.width()) {
                joined.extend_from_slice(row);
                joined.extend(std::iter::repeat_n(0.0, padding));
            }
        }
    }
    let plan = executor.plan();
    let width =
        |key: &str| plan.nodes.iter().find(|node| node.at.key() == key).map(|node| (node.at.stage.layout().is_scores(), node.width));
    let tensor = |(key, data): (String, Vec<f32>)| {
        let row = match width(&key) {
            Some((false, width)) => width,
            _ => positions,
        };
        let tensor = Tensor::new(vec![data.len() / row, row], data).expect("whole rows");
        (key, tensor)
    };
    (logits, values.into_iter().map(tensor).collect())
}

fn given(rng: &mut Rng, first: usize, shape: &[usize]) -> Given {
    let data = rng.vec(shape.iter().product(), 0.7);
    Given { name: "from:test".into(), first, tensor: Arc::new(Tensor::new(shape.to_vec(), data).expect("a tensor")) }
}

/// A change of kind `kind` of value `id` at some tokens, heads and elements.
fn case(plan: &Plan, id: ValueId, kind: usize, choice: usize) -> Intervention {
    let (node, mut rng) = (plan.node(id), Rng((id.0 * 31 + kind) as u64));
    let scores = node.at.stage.layout().is_scores();
    let of_tokens = |rng: &mut Rng| {
        let tokens = PROMPT - 3; // from position 4 to the first decoded token
        given(rng, 4, &if scores { vec![node.width, tokens, PROMPT + 1] } else { vec![tokens, node.width] })
    };
    let change = match kind {
        0 => Change::Zero,
        1 => Change::Scale(-0.75),
        2 if !scores => Change::Add { given: given(&mut rng, 0, &[node.width]), factor: 0.5 },
        3 if !scores => Change::Set(given(&mut rng, 0, &[node.width])),
        _ => Change::Set(of_tokens(&mut rng)),
    };
    let of_tokens = kind > 3 || (scores && kind > 1);
    let tokens: Option<Vec<Span>> = match choice % 3 {
        _ if of_tokens => Some(vec![(4, 6), (PROMPT - 2, PROMPT)]),
        0 => None,
        1 => Some(vec![(2, 3), (PROMPT - 1, PROMPT)]),
        _ => Some(vec![(PROMPT - 2, usize::MAX)]),
    };
    let heads = plan.heads(id).map(|heads| vec![(heads - 1, heads - 1)]).filter(|_| choice % 2 == 1);
    let dims = (choice % 4 > 1).then(|| vec![(1, 6), (9, 9)]);
    Intervention { tokens, heads, dims, change }
}

fn loaded(executor: &mut (impl Editable + Executor + doppler::exec::WeightSink), format: Format) {
    let plan = executor.plan().clone();
    random_weights(&plan, format, 9, &mut [executor]);
}

/// Every value that can be changed, each with kinds and choices in turn.
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn against_the_oracle(storage: Storage, format: Format, kinds: &[usize], every: usize) {
    // Rows of whole blocks, where weights are packed.
    let inner = if format.dtype().is_some() { 56 } else { 64 };
    let plan = pipeline::build(&config(inner)).expect("a plan");
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let mut device = GpuExecutor::new(gpu, plan.clone(), storage).expect("an executor");
    let mut exact = CpuExecutor::<f64>::new(plan.clone(), Storage::F32).expect("an oracle");
    let mut model = CpuExecutor::<f32>::new(plan.clone(), storage).expect("an oracle");
    loaded(&mut device, format);
    loaded(&mut exact, format);
    loaded(&mut model, format);
    let all = everything(&plan);
    let rows: Vec<Request> = all.iter().filter(|request| !request.stage.layout().is_scores()).cloned().collect();
    let plain = run(&device, PROMPT, &[]).0;
    let mut worst = 0f64;
    let values = plan.nodes.iter().enumerate().filter(|(_, node)| node.op != Op::Same && !node.op.appends());
    for (n, (i, node)) in values.enumerate().step_by(every) {
        let kind = kinds[n % kinds.len()];
        let with = case(&plan, ValueId(i), kind, n);
        let what = format!("{}{with}, {} over {format}", node.at, storage.activations);
        let edited = apply(&plan, &[Edit::Intervene { at: node.at, with }]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let list = edited.interventions();
        device.set_interventions(&list).expect("an intervention");
        exact.set_interventions(&list).expect("an intervention");
        model.set_interventions(&list).expect("an intervention");
        let (expected, rounded) = (run(&exact, PROMPT, &all).1, run(&model, PROMPT, &all).1);
        for fusion in [true, false] {
            device.set_fusion(fusion);
            let found = run(&device, PROMPT, &all).1;
            let (ratio, lines) = beyond_floor(&expected, &rounded, &found, 3.0);
            worst = worst.max(ratio);
            assert!(lines.is_empty(), "{what}, fused {fusion}:\n{}", lines.join("\n"));
        }
        device.set_fusion(true);
        let unwatched = run(&device, PROMPT, &[]).0;
        assert_eq!(unwatched, run(&device, PROMPT, &rows).0, "{what}: watching changed the logits");
        assert_ne!(unwatched, plain, "{what}: nothing changed");
        let (chunked, whole) = (run(&device, 8, &[]).0, run(&exact, PROMPT, &[]).0);
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let ends = [chunked.last(), whole.last(), unwatched.last()].map(|row| row.expect("logits").as_slice());
        let [chunked, exact_end, whole_end] = ends;
        assert!(far(chunked, exact_end) <= 4.0 * far(whole_end, exact_end).max(1e-5), "{what}: other logits in chunks");
    }
    println!("{} over {format}: worst {worst:.2}x the floor", storage.activations);
}

#[test]
fn every_value_in_f32() {
    against_the_oracle(Storage::F32, Format::F32, &[0, 1, 2, 3, 4], 1);
}

#[test]
fn every_value_in_f16() {
    against_the_oracle(Storage::F16, Format::F16, &[1, 2, 3, 4, 0, 4], 1);
}

#[test]
fn every_value_over_packed_weights() {
    against_the_oracle(Storage::F16, Format::Q8_0, &[4, 3, 2], 4);
}

/// Keys and values are changed before they are cached.
#[test]
fn what_is_cached_is_not_changed_alone() {
    let plan = pipeline::build(&config(56)).expect("a plan");
    for (stage, appended) in [(Stage::KCache, "L1 k_rope"), (Stage::VCache, "L1 v_proj")] {
        let with = Intervention { tokens: None, heads: None, dims: None, change: Change::Zero };
        let refused = apply(&plan, &[Edit::Intervene { at: At { stage, layer: Some(1) }, with }]).expect_err("a cache");
        assert!(refused.message.ends_with(&format!("change {appended}")), "{refused}");
    }
}

/// An op alone, as `compare --isolated` computes it, is followed by its interventions.
#[test]
fn ops_alone_are_changed_too() {
    let plan = pipeline::build(&config(56)).expect("a plan");
    let id =
        plan.nodes.iter().position(|node| node.at.stage == Stage::AttnCoreOut && node.at.layer == Some(1)).map(ValueId).expect("a value");
    let with = Intervention { tokens: Some(vec![(7, 7)]), heads: Some(vec![(2, 2)]), dims: None, change: Change::Scale(3.0) };
    let edited = apply(&plan, &[Edit::Intervene { at: plan.node(id).at, with }]).expect("an edit");
    let mut rng = Rng(3);
    let inputs = [
        Tensor::new(vec![4, 2, 8], rng.vec(64, 1.0)).expect("probabilities"),
        Tensor::new(vec![8, 32], rng.vec(256, 1.0)).expect("values"),
    ];
    let Some(gpu) = adapter(GpuOptions::default()) else { return };
    let device = GpuExecutor::new(gpu, edited.clone(), Storage::F32).expect("an executor");
    let oracle = CpuExecutor::<f32>::new(edited, Storage::F32).expect("an oracle");
    let plain = CpuExecutor::<f32>::new(plan, Storage::F32).expect("an oracle");
    let [found, expected, before] = [
        pollster::block_on(device.eval(id, &inputs, 6, false)),
        pollster::block_on(oracle.eval(id, &inputs, 6, false)),
        pollster::block_on(plain.eval(id, &inputs, 6, false)),
    ]
    .map(|value| value.expect("a value"));
    assert!(distance(&found, &expected) <= 1e-5 * length(&expected));
    let changed: Vec<usize> = (0..before.data.len()).filter(|i| before.data[*i] != expected.data[*i]).collect();
    assert_eq!(changed, (64 + 32..64 + 48).collect::<Vec<_>>());
}

/// What `src/debug/reference/make_edited.py` computed with forward hooks of transformers, in prompt and decode.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn hooks_of_transformers_give_the_same_logits() {
    let golden = goldens().into_iter().filter(|golden| ["gemma2", "llama3"].contains(&&*golden.name));
    for golden in golden {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/interventions/{}.safetensors", golden.name));
        let source = InMemory::open(&file).expect("made by make_edited.py");
        let header = pollster::block_on(read_header(&source)).expect("a header");
        let tensor = |name: &str| {
            let entry = header.tensors.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("{name} is missing"));
            let bytes = source.slice(entry.range.clone()).expect("bytes");
            Tensor::new(entry.shape.clone(), to_f32(&bytes, entry.dtype.known().expect("f32 or i32"))).expect("a tensor")
        };
        let cases: Vec<String> = serde_json::from_str(&header.metadata["cases"]).expect("a list of texts");
        let ids: Vec<u32> = tensor("ids").data.iter().map(|id| *id as u32).collect();
        let vector = tensor("vector");
        let open = |_: &str| {
            let (mut bytes, shape) = (Vec::new(), vector.shape.clone());
            write(&mut bytes, &BTreeMap::new(), &[Output::f32("vector", shape, &vector.data)]).expect("a file");
            Ok(Local::Memory(InMemory::new("vector", bytes)))
        };
        let mut oracle = golden.oracle::<f32>(Storage::F32);
        let mut exact = golden.oracle::<f64>(Storage::F32);
        let mut device = adapter(GpuOptions::default())
            .map(|gpu| golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), Storage::F32).expect("an executor")));
        for (i, text) in cases.iter().enumerate() {
            let expected = tensor(&format!("case.{i}"));
            let edited = pollster::block_on(set(&golden.plan, std::slice::from_ref(text), Some(golden.prompt.len()), &open)).expect(text);
            oracle.set_interventions(&edited.interventions()).expect("an intervention");
            exact.set_interventions(&edited.interventions()).expect("an intervention");
            let found = rows(&oracle, &ids, golden.prompt.len());
            let relative = distance(&found, &expected) / length(&expected);
            println!("{} {text}: {relative:.2e} from transformers", golden.name);
            assert!(relative <= 1e-5, "{} {text}: {relative:.2e}", golden.name);
            let Some(device) = &mut device else { continue };
            device.set_interventions(&edited.interventions()).expect("an intervention");
            let (exact, on_device) = (rows(&exact, &ids, golden.prompt.len()), rows(device, &ids, golden.prompt.len()));
            let floor = distance(&found, &exact).max(ulps(&exact));
            assert!(
                distance(&on_device, &exact) <= 3.0 * floor,
                "{} {text}: {:.2e}, floor {floor:.2e}",
                golden.name,
                distance(&on_device, &exact)
            );
        }
    }
}

/// One map of `src/debug/reference/make_patching.py`.
#[derive(serde::Deserialize)]
struct Expected {
    clean: Vec<u32>,
    corrupted: Vec<u32>,
    stage: Stage,
    answer: u32,
    against: u32,
    /// Share that comes back, [layers][tokens].
    regained: Vec<Vec<f64>>,
}

/// Facts of the built-in model's world are decided where forward hooks of transformers find it: every cell of the map, on the
/// oracle and on a device.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn patching_finds_the_layers_that_transformers_finds() {
    #[derive(serde::Deserialize)]
    struct File {
        maps: Vec<Expected>,
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/fixtures/interventions/patching.json")).expect("made by make_patching.py");
    let File { maps } = serde_json::from_str(&text).expect("maps");
    let demo = crate::golden::demo();
    let mut oracle = demo.oracle::<f32>(Storage::F32);
    let mut device =
        adapter(GpuOptions::default()).map(|gpu| demo.filled(GpuExecutor::new(gpu, demo.plan.clone(), Storage::F32).expect("an executor")));
    let mut deciding = Vec::new();
    for (i, map) in maps.iter().enumerate() {
        let [clean, corrupted] = [&map.clean[..], &map.corrupted[..]];
        let asked =
            Question { clean, corrupted, stage: map.stage, column: Column::Token, layers: None, answer: None, against: None, chunk: 4 };
        let mut found = vec![pollster::block_on(patch(&mut oracle, &asked, &mut |_, _| {})).expect("a map")];
        // A GPU in software takes a second for each cell: one map is enough.
        if let Some(device) = device.as_mut().filter(|_| i == 0) {
            found.push(pollster::block_on(patch(device, &asked, &mut |_, _| {})).expect("a map"));
        }
        for found in found {
            assert_eq!((found.answer, found.against), (map.answer, map.against), "{} {i}", map.stage);
            let cells = |rows: &[Vec<f64>]| rows.concat();
            let far = cells(&found.regained).iter().zip(cells(&map.regained)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            println!("{} {i}: {:?} decides, furthest cell {far:.1e} from transformers", map.stage, found.best());
            assert_eq!(found.regained.len(), map.regained.len());
            // Measured: 5.3e-7, of numbers that are written with six digits.
            assert!(far <= 2e-6, "{} {i}: {far:.1e}", map.stage);
            deciding.push(found.best());
        }
    }
    deciding.dedup();
    assert!(deciding.len() > 2, "{deciding:?}");
}

/// Logits of every position: the prompt in one step, what follows in steps of one token.
fn rows<E: Executor>(executor: &E, ids: &[u32], prompt: usize) -> Tensor {
    let mut cache = executor.new_cache(ids.len(), prompt).expect("a cache");
    let request = [Request { stage: Stage::LogitsFinal, layers: None, want: Want::Full }];
    let mut all: Option<Tensor> = None;
    for tokens in std::iter::once(&ids[..prompt]).chain(ids[prompt..].chunks(1)) {
        let step =
            Step { tokens: Tokens::Ids(tokens), rows: Rows::All, pick: None, read: Read::Nothing, long_rope: false, requests: &request };
        let output = pollster::block_on(executor.step(&mut cache, &step)).expect("a step");
        let Some(Content::Full(rows)) = output.values.into_iter().next().map(|value| value.content) else {
            panic!("logits were asked for")
        };
        match &mut all {
            None => all = Some(rows),
            Some(all) => {
                all.shape[0] += rows.shape[0];
                all.data.extend(rows.data);
            }
        }
    }
    all.expect("logits")
}
