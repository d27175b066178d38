//! The executor as a whole, on a plan of one windowed layer made by hand.

use super::{CpuExecutor, Real};
use crate::error::{Kind, Result};
use crate::exec::{Content, Executor, Observed, Pick, Read, Request, Rows, Step, StepOutput, Storage, Tokens, Want, WeightSink};
use crate::model::{RopeConfig, WeightRole};
use crate::plan::{At, Attention, KvSpec, Node, Op, Plan, Stage, StateId, StateKind, StatePart, StateSpec, ValueId, WeightId, WeightSlot};
use crate::quant::Format;
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use half::{bf16, f16};
use pollster::block_on;

const VOCAB: usize = 11;
const HIDDEN: usize = 6;
const IDS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];
const PICK: Pick = Pick { valid: VOCAB };

/// Two query heads of width 4 over one key/value head, window 3, half of each head rotated, tied head, capped logits.
fn plan() -> Plan {
    let mut plan = Plan {
        nodes: vec![],
        weights: vec![],
        states: vec![],
        ropes: vec![],
        num_layers: 1,
        vocab_size: VOCAB,
        max_positions: 64,
        head: None,
    };
    plan.ropes.push(RopeConfig::plain(100.0, 2));
    plan.states.push(StateSpec { layer: 0, kind: StateKind::Kv(KvSpec { kv_heads: 1, head_dim: 4, window: Some(3) }) });
    let mut weight = |role, shape: &[usize]| {
        let slot = WeightSlot { role, layer: None, bias: shape.len() == 1, shape: shape.to_vec(), experts: None };
        plan.weights.push(slot);
        WeightId(plan.weights.len() - 1)
    };
    let table = weight(WeightRole::Embed, &[VOCAB, HIDDEN]);
    let norm = weight(WeightRole::AttnNorm, &[HIDDEN]);
    let [q, k, v] =
        [(WeightRole::QProj, 8), (WeightRole::KProj, 4), (WeightRole::VProj, 4)].map(|(role, rows)| weight(role, &[rows, HIDDEN]));
    let k_bias = weight(WeightRole::KProj, &[4]);
    let o = weight(WeightRole::OProj, &[HIDDEN, 8]);

    let linear = |weight, bias| Op::Linear { weight, bias, divisor: 1.0 };
    let rms = Op::RmsNorm { weight: norm, offset: 1.0, eps: 1e-6, group: HIDDEN };
    let a =
        Attention { state: StateId(0), heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5, softcap: Some(20.0), window: Some(3), sinks: None };
    for (stage, op, inputs, width) in [
        (Stage::EmbedOut, Op::Embed { table, scale: 2.0 }, &[][..], HIDDEN),
        (Stage::LayerIn, Op::Same, &[0], HIDDEN),
        (Stage::AttnNormed, rms.clone(), &[1], HIDDEN),
        (Stage::QProj, linear(q, None), &[2], 8),
        (Stage::KProj, linear(k, Some(k_bias)), &[2], 4),
        (Stage::VProj, linear(v, None), &[2], 4),
        (Stage::QRope, Op::Rope { rope: 0, heads: 2, head_dim: 4 }, &[3], 8),
        (Stage::KRope, Op::Rope { rope: 0, heads: 1, head_dim: 4 }, &[4], 4),
        (Stage::KCache, Op::Append { state: StateId(0), part: StatePart::Keys }, &[7], 4),
        (Stage::VCache, Op::Append { state: StateId(0), part: StatePart::Values }, &[5], 4),
        (Stage::AttnScores, Op::AttnScores(a.clone()), &[6, 8], 2),
        (Stage::AttnProbs, Op::AttnProbs(a.clone()), &[10], 2),
        (Stage::AttnCoreOut, Op::AttnMix(a), &[11, 9], 8),
        (Stage::OProj, linear(o, None), &[12], HIDDEN),
        (Stage::LayerOut, Op::Add { multiplier: 0.5 }, &[1, 13], HIDDEN),
        (Stage::FinalNorm, rms, &[14], HIDDEN),
        (Stage::Logits, Op::Linear { weight: table, bias: None, divisor: 1.5 }, &[15], VOCAB),
        (Stage::LogitsFinal, Op::SoftCap { cap: 3.0 }, &[16], VOCAB),
    ] {
        let layer = stage.info().per_layer.then_some(0);
        plan.nodes.push(Node {
            op,
            inputs: inputs.iter().map(|i| ValueId(*i)).collect(),
            at: At { stage, layer },
            width,
            interventions: Vec::new(),
        });
    }
    plan.head = plan.find(At { stage: Stage::FinalNorm, layer: None });
    plan
}

/// Reproducible elements in −1 ..= 1 that f16 and bf16 hold exactly.
fn elements(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((seed * 31 + i * i * 7 + i * 13) % 65) as f32 / 32.0 - 1.0).collect()
}

fn bytes(values: &[f32], dtype: DType) -> Bytes {
    let each = |x: &f32| match dtype {
        DType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(each).collect::<Vec<u8>>().into()
}

fn executor<T: Real>(storage: Storage) -> CpuExecutor<T> {
    let mut executor = CpuExecutor::new(plan(), storage).expect("a valid plan");
    for (i, slot) in plan().weights.iter().enumerate() {
        executor.put(WeightId(i), Format::F32, 0, bytes(&elements(i, slot.elements()), DType::F32)).expect("it fits");
    }
    executor
}

fn step<'a>(ids: &'a [u32], requests: &'a [Request]) -> Step<'a> {
    Step { tokens: Tokens::Ids(ids), rows: Rows::Last, pick: Some(PICK), read: Read::Logits, long_rope: false, requests }
}

fn full(stage: Stage) -> Request {
    Request { stage, layers: None, want: Want::Full }
}

fn tensor(observed: &Observed) -> &Tensor {
    match &observed.content {
        Content::Full(tensor) => tensor,
        other => panic!("expected all of {}, found {other:?}", observed.at),
    }
}

fn run<T: Real>(executor: &CpuExecutor<T>, sizes: &[usize]) -> Result<StepOutput> {
    let mut cache = executor.new_cache(IDS.len(), IDS.len())?;
    let (mut first, mut last) = (0, StepOutput::default());
    for size in sizes {
        last = block_on(executor.step(&mut cache, &step(&IDS[first..first + size], &[])))?;
        first += size;
    }
    assert_eq!(executor.len(&cache), first);
    Ok(last)
}

#[test]
fn chunks_change_nothing() {
    for storage in [Storage::F32, Storage::F16] {
        let executor = executor::<f32>(storage);
        let whole = run(&executor, &[7]).expect("runs");
        assert!(whole.logits.iter().flatten().all(|x| x.is_finite()));
        assert_eq!(run(&executor, &[1; 7]).expect("runs"), whole);
        assert_eq!(run(&executor, &[3, 2, 2]).expect("runs"), whole);
    }
}

#[test]
fn f64_is_near_and_f16_storage_is_further_off() {
    let exact = run(&executor::<f64>(Storage::F32), &[7]).expect("runs").logits.expect("asked for");
    let distance = |other: StepOutput| -> f32 {
        let other = other.logits.expect("asked for");
        exact.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let f32s = distance(run(&executor::<f32>(Storage::F32), &[7]).expect("runs"));
    let f16s = distance(run(&executor::<f32>(Storage::F16), &[7]).expect("runs"));
    assert!(f32s < 2e-6 && (1e-5..1e-2).contains(&f16s), "{f32s} {f16s}");
}

#[test]
fn picked_tokens_feed_the_next_step() {
    let executor = executor::<f32>(Storage::F32);
    let (mut by_id, mut by_pick) = (executor.new_cache(9, 7).expect("a cache"), executor.new_cache(9, 7).expect("a cache"));
    let first = block_on(executor.step(&mut by_id, &step(&IDS, &[]))).expect("runs");
    block_on(executor.step(&mut by_pick, &step(&IDS, &[]))).expect("runs");
    let token = first.token.expect("picked");
    let picked = Step { tokens: Tokens::Picked, ..step(&[], &[]) };
    let expected = block_on(executor.step(&mut by_id, &step(&[token], &[]))).expect("runs");
    assert_eq!(block_on(executor.step(&mut by_pick, &picked)).expect("runs"), expected);
    let unpicked = Step { pick: None, ..picked };
    block_on(executor.step(&mut by_pick, &unpicked)).expect("runs");
    assert_eq!(block_on(executor.step(&mut by_pick, &picked)).map_err(|e| e.kind), Err(Kind::Invalid));
}

#[test]
fn truncation_forgets() {
    let executor = executor::<f32>(Storage::F32);
    let mut cache = executor.new_cache(7, 7).expect("a cache");
    let expected = block_on(executor.step(&mut cache, &step(&IDS, &[]))).expect("runs");
    assert!(executor.truncate(&mut cache, 2));
    block_on(executor.step(&mut cache, &step(&[7, 7, 7], &[]))).expect("runs");
    assert!(executor.truncate(&mut cache, 2));
    assert_eq!(block_on(executor.step(&mut cache, &step(&IDS[2..], &[]))).expect("runs"), expected);
}

#[test]
fn head_rows_are_those_wanted() {
    let executor = executor::<f32>(Storage::F32);
    let rows = |rows, pick, requests: &[Request]| {
        let mut cache = executor.new_cache(7, 7).expect("a cache");
        let step = Step { rows, pick, read: Read::Nothing, ..step(&IDS, requests) };
        block_on(executor.step(&mut cache, &step)).expect("runs")
    };
    let requests = [full(Stage::LogitsFinal), full(Stage::FinalNorm)];
    let output = rows(Rows::Last, Some(PICK), &requests);
    assert_eq!(output.values.iter().map(|v| v.at.stage).collect::<Vec<_>>(), [Stage::FinalNorm, Stage::LogitsFinal]);
    assert_eq!(tensor(&output.values[1]).shape, [7, VOCAB]);
    assert_eq!(output.token, rows(Rows::Last, Some(PICK), &[]).token);
    assert_eq!(rows(Rows::None, None, &requests).values, output.values);
    assert_eq!(rows(Rows::None, None, &[]), StepOutput::default());
    let last = run(&executor, &[7]).expect("runs").logits;
    assert_eq!(last.as_deref(), Some(tensor(&output.values[1]).row(6)));
}

#[test]
fn gathered_and_reduced_values_are_those_in_full() {
    let executor = executor::<f32>(Storage::F32);
    let mut cache = executor.new_cache(7, 7).expect("a cache");
    let gather = Want::Gather { tokens: vec![6, 1, 4], dims: vec![2, 0] };
    let requests = [Want::Full, gather, Want::Stats].map(|want| Request { stage: Stage::QRope, layers: Some(vec![0]), want });
    block_on(executor.step(&mut cache, &step(&IDS[..4], &[]))).expect("runs");
    let values = block_on(executor.step(&mut cache, &step(&IDS[4..], &requests))).expect("runs").values;
    let whole = tensor(&values[0]);
    let at = |t: usize, d: usize| (t, d, whole.row(t - 4)[d]);
    assert_eq!(values[0].first_token, 4);
    assert_eq!(values[1].content, Content::Gather(vec![at(6, 2), at(6, 0), at(4, 2), at(4, 0)]));
    assert_eq!(values[2].content, Content::Stats(super::stats::stats(&whole.data, 8)));
}

#[test]
fn every_op_alone_gives_what_the_step_gave() {
    for storage in [Storage::F32, Storage::F16] {
        let executor = executor::<f32>(storage);
        let requests: Vec<Request> = plan().nodes.iter().map(|n| full(n.at.stage)).collect();
        let mut cache = executor.new_cache(7, 7).expect("a cache");
        let before = block_on(executor.step(&mut cache, &step(&IDS[..4], &requests))).expect("runs").values;
        let values = block_on(executor.step(&mut cache, &step(&IDS[4..], &requests))).expect("runs").values;
        for (i, node) in plan().nodes.iter().enumerate() {
            let mut inputs: Vec<Tensor> = node.inputs.iter().map(|id| tensor(&values[id.0]).clone()).collect();
            if node.op.reads_state().is_some() {
                let earlier = tensor(&before[node.inputs[1].0]);
                let data: Vec<f32> = earlier.data.iter().chain(&inputs[1].data).copied().collect();
                inputs[1] = Tensor::new(vec![7, 4], data).expect("7 positions");
            }
            if inputs.is_empty() {
                inputs.push(Tensor::new(vec![3, 1], IDS[4..].iter().map(|id| *id as f32).collect()).expect("3 ids"));
            }
            let alone = block_on(executor.eval(ValueId(i), &inputs, 4, false)).expect("runs");
            assert_eq!(&alone, tensor(&values[i]), "{}", node.at);
        }
    }
}

#[test]
fn an_op_alone_refuses_what_does_not_fit() {
    let executor = executor::<f32>(Storage::F32);
    let zeros = |shape: &[usize]| Tensor::new(shape.to_vec(), vec![0.0; shape.iter().product()]).expect("it fits");
    let eval = |stage, inputs: &[Tensor], first| {
        let id = plan().nodes.iter().position(|n| n.at.stage == stage).expect("the plan has it");
        block_on(executor.eval(ValueId(id), inputs, first, false)).map_err(|e| e.to_string())
    };
    let (q, k) = (zeros(&[3, 8]), zeros(&[5, 4]));
    assert_eq!(eval(Stage::AttnScores, &[q.clone(), k.clone()], 2).map(|t| t.shape), Ok(vec![2, 3, 5]));
    assert_eq!(eval(Stage::AttnScores, &[q.clone(), zeros(&[3, 4])], 9).map(|t| t.shape), Ok(vec![2, 3, 3]));
    for (stage, inputs, first, message) in [
        (Stage::AttnScores, vec![q.clone(), k.clone()], 1, "5 key positions for 3 rows from position 1"),
        (Stage::AttnScores, vec![q.clone(), zeros(&[2, 4])], 0, "2 key positions for 3 rows"),
        (Stage::AttnScores, vec![q.clone()], 2, "expected 2, found 1"),
        (Stage::AttnScores, vec![q, zeros(&[5, 3])], 2, "expected shape [5, 4], found [5, 3]"),
        (Stage::AttnProbs, vec![zeros(&[1, 3, 5])], 2, "expected shape [2, 3, 5], found [1, 3, 5]"),
        (Stage::LayerOut, vec![zeros(&[2, HIDDEN]), zeros(&[3, HIDDEN])], 0, "expected shape [2, 6], found [3, 6]"),
        (Stage::FinalNorm, vec![zeros(&[0, HIDDEN])], 0, "no rows"),
        (Stage::EmbedOut, vec![Tensor::new(vec![1, 1], vec![0.5]).expect("it fits")], 0, "0.5 is no token id"),
        (Stage::EmbedOut, vec![Tensor::new(vec![1, 1], vec![11.0]).expect("it fits")], 0, "no id 11"),
    ] {
        let found = eval(stage, &inputs, first).expect_err("refused");
        assert!(found.contains(message), "{found}");
    }
}

#[test]
fn steps_that_cannot_be_are_refused_and_change_nothing() {
    let executor = executor::<f32>(Storage::F32);
    let mut cache = executor.new_cache(4, 3).expect("a cache");
    let ok = step(&IDS[..2], &[]);
    block_on(executor.step(&mut cache, &ok)).expect("runs");
    let absent = [full(Stage::QNorm)];
    for (step, message) in [
        (step(&[], &[]), "at least one token"),
        (step(&[1, 2, 3, 4], &[]), "at most 3"),
        (step(&[1, 2, 3], &[]), "capacity of 4"),
        (step(&[1, 11], &[]), "no id 11"),
        (Step { rows: Rows::None, ..ok }, "no row's logits"),
        (step(&[1], &absent), "q_norm"),
    ] {
        let error = block_on(executor.step(&mut cache, &step)).expect_err("refused");
        assert!(error.to_string().contains(message) && error.kind == Kind::Invalid, "{error}");
        assert_eq!(executor.len(&cache), 2);
    }
    executor.grow(&mut cache, 5).expect("grows");
    assert_eq!(executor.capacity(&cache), 5);
    block_on(executor.step(&mut cache, &step(&[1, 2, 3], &[]))).expect("fits now");
    assert!(executor.new_cache(4, 0).is_err());
    assert!(CpuExecutor::<f32>::new(plan(), Storage { activations: DType::BF16, cache: DType::F32 }).is_err());
}

#[test]
fn weights_come_in_bands_of_any_dtype_and_order() {
    let expected = run(&executor::<f32>(Storage::F32), &[7]).expect("runs");
    let mut executor = CpuExecutor::<f32>::new(plan(), Storage::F32).expect("a valid plan");
    let error = run(&executor, &[7]).expect_err("no weights").to_string();
    assert!(error.contains("embed (0 of 11 rows)") && error.contains("o_proj"), "{error}");
    for (i, slot) in plan().weights.iter().enumerate() {
        let (all, columns) = (elements(i, slot.elements()), slot.elements() / slot.shape[0]);
        for (band, dtype) in [(3..slot.shape[0], DType::BF16), (0..1, DType::F16), (1..3, DType::F32)] {
            assert_eq!(run(&executor, &[7]).map_err(|e| e.kind), Err(Kind::Weights));
            let part = bytes(&all[band.start * columns..band.end * columns], dtype);
            executor.put(WeightId(i), Format::of(dtype).expect("plain values"), band.start, part).expect("it fits");
        }
    }
    assert_eq!(run(&executor, &[7]).expect("runs"), expected);
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let mut executor = executor::<f32>(Storage::F32);
    let row = bytes(&[0.0; HIDDEN], DType::F32);
    for (id, first_row, bytes, message) in [
        (0, 0, row.clone(), "embed: rows 0 to 1 come a second time"),
        (0, 11, row.clone(), "embed: rows 11 to 12 are out of range: it has 11"),
        (0, 0, row.slice(1..), "embed: 23 bytes of f32 are not whole rows of 6 columns"),
        (99, 0, row.clone(), "no weight 99"),
    ] {
        let error = executor.put(WeightId(id), Format::F32, first_row, bytes).expect_err("refused").to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn logits_that_are_no_numbers_choose_nothing() {
    let mut executor = CpuExecutor::<f32>::new(plan(), Storage::F32).expect("a valid plan");
    for (i, slot) in plan().weights.iter().enumerate() {
        let values = if slot.role == WeightRole::OProj { vec![f32::NAN; slot.elements()] } else { elements(i, slot.elements()) };
        executor.put(WeightId(i), Format::F32, 0, bytes(&values, DType::F32)).expect("it fits");
    }
    let mut cache = executor.new_cache(7, 7).expect("a cache");
    // The step runs, so that its values can be looked at.
    let output = block_on(executor.step(&mut cache, &Step { read: Read::Logits, ..step(&IDS, &[]) })).expect("runs");
    assert_eq!(output.token, None);
    assert!(output.logits.expect("asked for")[0].is_nan());
}
