//! Models that are wrong in one place: with the reference's own inputs, the op that is wrong differs and no other; in a
//! free run nothing before it does.

use super::{alone, free, oracles, reference};
use crate::golden::{Golden, goldens};
use doppler::Result;
use doppler::cpu::CpuExecutor;
use doppler::debug::compare::text;
use doppler::exec::{Content, Executor, Observed, Step, StepOutput, Storage, Tokens, WeightSink};
use doppler::inference::pipeline;
use doppler::model::{LayerConfig, WeightRole};
use doppler::plan::edit::{Edit, Parameter, apply};
use doppler::plan::{At, Op, Plan, Stage, ValueId, WeightId, WeightSlot};
use doppler::quant::Format;
use doppler::tensor::Tensor;
use pollster::block_on;
use std::collections::BTreeMap;

/// Whole weights, so that an edit sees all of one.
#[derive(Default)]
struct Whole(BTreeMap<usize, Vec<f32>>);

impl WeightSink for Whole {
    fn put(&mut self, id: WeightId, format: Format, _: usize, bytes: bytes::Bytes) -> Result<()> {
        self.0.entry(id.0).or_default().extend(format.values(&bytes)?);
        Ok(())
    }
}

/// Changes a whole weight.
type WeightEdit = dyn Fn(&WeightSlot, &mut [f32]);

/// What is wrong with a model.
pub(super) struct Fault {
    what: String,
    /// The op that is wrong.
    pub(super) at: At,
    /// Ops behind it that the same fault makes wrong.
    also: Vec<Stage>,
    weights: Box<WeightEdit>,
    edits: Vec<Edit>,
    /// Rotates neighbours, not halves.
    interleaved: bool,
}

fn fault(what: &str, stage: Stage, layer: Option<usize>) -> Fault {
    let at = At { stage, layer };
    Fault { what: format!("{what} at {at}"), at, also: Vec::new(), weights: Box::new(|_, _| {}), edits: Vec::new(), interleaved: false }
}

impl Fault {
    /// `sink` with the model's weights, which have the fault.
    pub(super) fn filled<S: WeightSink>(&self, golden: &Golden, mut sink: S) -> S {
        for (id, mut data) in golden.filled(Whole::default()).0 {
            (self.weights)(&golden.plan.weights[id], &mut data);
            let bytes: Vec<u8> = data.into_iter().flat_map(f32::to_le_bytes).collect();
            sink.put(WeightId(id), Format::F32, 0, bytes.into()).expect("a weight");
        }
        sink
    }
}

/// A fault of the weights of `role`.
pub(super) fn weights(what: &str, stage: Stage, layer: usize, role: WeightRole, edit: fn(&[usize], &mut [f32])) -> Fault {
    let weights = move |slot: &WeightSlot, data: &mut [f32]| {
        if slot.role == role && slot.layer == Some(layer) && !slot.bias {
            edit(&slot.shape, data);
        }
    };
    Fault { weights: Box::new(weights), ..fault(what, stage, Some(layer)) }
}

/// One element in the middle, a fifth larger.
pub(super) fn one_element(shape: &[usize], data: &mut [f32]) {
    let place = data.len() / 2 + shape[1] / 3;
    data[place] = data[place] * 1.2 + 0.01;
}

/// Of the last product of a layer's feed-forward block; all weights of experts, as not each is chosen.
pub(super) fn down(golden: &Golden, layer: usize) -> Fault {
    let out = At { stage: Stage::ExpertOut, layer: Some(layer) };
    if golden.plan.find(out).is_none() {
        return weights("one weight", Stage::FfnOut, layer, WeightRole::DownProj, one_element);
    }
    weights("larger experts", out.stage, layer, WeightRole::ExpertDown, |_, data| data.iter_mut().for_each(|x| *x *= 1.2))
}

fn transpose(shape: &[usize], data: &mut [f32]) {
    let old = data.to_vec();
    let columns = shape[1];
    for (i, x) in data.iter_mut().enumerate() {
        *x = old[i % columns * columns + i / columns];
    }
}

/// Every fault that `golden` can have.
fn faults(golden: &Golden) -> Vec<Fault> {
    let last = golden.plan.num_layers - 1;
    let mut layers = vec![0, last / 2, last];
    layers.dedup();
    let mut faults = Vec::new();
    for layer in layers {
        use WeightRole::{Conv, ConvIn, OProj, QProj};
        let has = |stage| golden.plan.find(At { stage, layer: Some(layer) }).is_some();
        if has(Stage::QProj) {
            faults.push(weights("one weight", Stage::QProj, layer, QProj, one_element));
        }
        if has(Stage::ConvIn) {
            faults.push(weights("one weight", Stage::ConvIn, layer, ConvIn, one_element));
            faults.push(weights("taps in the other order", Stage::ConvMix, layer, Conv, |_, data| data.reverse()));
        }
        faults.push(down(golden, layer));
        for (stage, role) in [(Stage::QProj, QProj), (Stage::OProj, OProj)] {
            let square = |s: &&WeightSlot| s.role == role && s.layer == Some(layer) && !s.bias && s.shape[0] == s.shape[1];
            if golden.plan.weights.iter().any(|slot| square(&slot)) {
                faults.push(weights("a transposed weight", stage, layer, role, transpose));
            }
        }
        if golden.plan.find(At { stage: Stage::QRope, layer: Some(layer) }).is_some() {
            faults.push(Fault { interleaved: true, ..fault("interleaved pairs", Stage::QRope, Some(layer)) });
        }
        if golden.config.attentions().any(|a| a.softcap.is_some()) {
            let edit = Edit::Parameter { at: At { stage: Stage::AttnScores, layer: Some(layer) }, to: Parameter::Softcap(None) };
            faults.push(Fault { edits: vec![edit], ..fault("no soft-cap", Stage::AttnScores, Some(layer)) });
        }
        if let Some(window) = golden.config.layers[layer].window().filter(|w| *w < golden.prompt.len()) {
            for by in [-1, 1] {
                let to = Parameter::Window(window.checked_add_signed(by));
                let edit = Edit::Parameter { at: At { stage: Stage::AttnScores, layer: Some(layer) }, to };
                // The softmax sees another window, and so does the mixture where that is narrower.
                let also = if by < 0 { vec![Stage::AttnProbs, Stage::AttnCoreOut] } else { vec![Stage::AttnProbs] };
                let what = format!("a window off by {by}");
                faults.push(Fault { edits: vec![edit], also, ..fault(&what, Stage::AttnScores, Some(layer)) });
            }
        }
    }
    if golden.config.final_logit_softcapping.is_some() {
        let edit = Edit::Bypass { at: At { stage: Stage::LogitsFinal, layer: None }, input: 0 };
        faults.push(Fault { edits: vec![edit], ..fault("no soft-cap", Stage::LogitsFinal, None) });
    }
    faults
}

/// The oracle with a fault. Steps go op by op, so that ops can be wrong whose definition has no such option.
struct Broken {
    inner: CpuExecutor<f32>,
    interleaved: Option<At>,
}

fn broken(golden: &Golden, fault: &Fault) -> Broken {
    let plan = apply(&golden.plan, &fault.edits).expect("an edited plan");
    let inner = fault.filled(golden, CpuExecutor::new(plan, Storage::F32).expect("a verified plan"));
    Broken { inner, interleaved: fault.interleaved.then_some(fault.at) }
}

impl Broken {
    /// Moves the elements of every head's rotated part: element 2i to i and 2i + 1 to i + half, or back.
    fn moved(&self, id: ValueId, x: &Tensor, back: bool) -> Tensor {
        let Op::Rope { rope, head_dim, .. } = &self.inner.plan().node(id).op else { panic!("no rotation") };
        let half = self.inner.plan().ropes[*rope].rotary_dim / 2;
        let mut out = x.clone();
        for (out, x) in out.data.chunks_exact_mut(*head_dim).zip(x.data.chunks_exact(*head_dim)) {
            for i in 0..2 * half {
                let other = i / 2 + i % 2 * half;
                if back { out[i] = x[other] } else { out[other] = x[i] }
            }
        }
        out
    }
}

impl Executor for Broken {
    type Cache = ();
    type Pending = StepOutput;

    fn plan(&self) -> &Plan {
        self.inner.plan()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn storage(&self) -> Storage {
        self.inner.storage()
    }
    fn new_cache(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
    fn grow(&self, _: &mut (), _: usize) -> Result<()> {
        Ok(())
    }
    fn len(&self, _: &()) -> usize {
        0
    }
    fn capacity(&self, _: &()) -> usize {
        usize::MAX
    }
    fn truncate(&self, _: &mut (), _: usize) -> bool {
        true
    }
    /// One step from position 0 on.
    fn submit(&self, _: &mut (), step: &Step<'_>) -> Result<StepOutput> {
        let Tokens::Ids(ids) = step.tokens else { panic!("ids") };
        let ids = Tensor::new(vec![ids.len(), 1], ids.iter().map(|id| *id as f32).collect())?;
        let long = self.plan().longrope_limit().is_some_and(|limit| ids.rows() > limit);
        let mut values: Vec<Tensor> = Vec::new();
        for (i, node) in self.plan().nodes.iter().enumerate() {
            let inputs: Vec<Tensor> = node.inputs.iter().map(|input| values[input.0].clone()).collect();
            let inputs = if inputs.is_empty() { vec![ids.clone()] } else { inputs };
            values.push(block_on(self.eval(ValueId(i), &inputs, 0, long))?);
        }
        let all = self.plan().nodes.iter().zip(values);
        let values = all.map(|(node, value)| Observed { at: node.at, first_token: 0, content: Content::Full(value) }).collect();
        Ok(StepOutput { values, ..StepOutput::default() })
    }
    async fn finish(&self, pending: StepOutput) -> Result<StepOutput> {
        Ok(pending)
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first: usize, long: bool) -> Result<Tensor> {
        if self.interleaved != Some(self.plan().node(id).at) {
            return self.inner.eval(id, inputs, first, long).await;
        }
        let rotated = self.inner.eval(id, &[self.moved(id, &inputs[0], false)], first, long).await?;
        Ok(self.moved(id, &rotated, true))
    }
    fn groups(&self) -> Result<Vec<doppler::exec::Group>> {
        self.inner.groups()
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn a_fault_is_found_where_it_is() {
    let mut failures = Vec::new();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for golden in goldens() {
        let a = reference(&golden);
        let oracles = oracles(&golden, &[Storage::F32]);
        let faults = faults(&golden);
        let mut least = (f64::INFINITY, String::new());
        for fault in &faults {
            let executor = broken(&golden, fault);
            let what = format!("{}, {}", golden.name, fault.what);
            *kinds.entry(fault.what.split(" at ").next().expect("a name").into()).or_default() += 1;
            let report = alone(&golden, &a, &executor, &oracles);
            match &report.first_divergence {
                Some(first) if first.at == fault.at => {
                    least = if first.times_floor < least.0 { (first.times_floor, fault.what.clone()) } else { least };
                }
                _ => failures.push(format!("{what}, alone:\n{}", text(&report, false))),
            }
            let others = report.stages.iter().filter(|l| l.diverged && l.at != fault.at);
            let others = others.filter(|l| l.at.layer != fault.at.layer || !fault.also.contains(&l.at.stage));
            failures.extend(others.map(|l| format!("{what}, alone: {} is off too, {:.1} floors", l.at, l.times_floor)));

            let report = free(&golden, &a, &executor, &oracles);
            let place = |at| golden.plan.find(at).map(|id| id.0);
            match &report.first_divergence {
                Some(first) if place(first.at) >= place(fault.at) && first.at.layer >= fault.at.layer => {}
                _ => failures.push(format!("{what}, free:\n{}", text(&report, false))),
            }
        }
        println!("{:20} {:2} faults, the smallest {:.0} floors off: {}", golden.name, faults.len(), least.0, least.1);
    }
    println!("{kinds:?}");
    assert!(kinds.len() >= 6, "{kinds:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A model whose list of layers without RoPE is off by one layer, either way: free and alone, the layer is found, with
/// floors by oracles that believe the same list.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn a_wrong_list_of_layers_without_rope_is_found() {
    let mut both = [0; 2];
    for golden in goldens().iter().filter(|golden| ["smollm3", "llama3"].contains(&golden.name.as_str())) {
        let a = reference(golden);
        let rope = golden.config.layers.iter().find_map(LayerConfig::rope).expect("a layer with RoPE");
        for layer in 0..golden.config.layers.len() {
            let mut config = golden.config.clone();
            let rotated = config.layers[layer].rope().is_some();
            config.layers[layer].attention_mut().expect("attention").rope = if rotated { None } else { Some(rope) };
            both[usize::from(rotated)] += 1;
            let plan = pipeline::build(&config).expect("a plan");
            let (name, folder) = (golden.name.clone(), golden.folder.clone());
            let (prompt, generated) = (golden.prompt.clone(), golden.generated.clone());
            let wrong = Golden { name, folder, config, plan, values: BTreeMap::new(), prompt, generated };
            let oracles = oracles(&wrong, &[Storage::F32]);
            let executor = wrong.oracle::<f32>(Storage::F32);
            for (mode, report) in [("free", free(&wrong, &a, &executor, &oracles)), ("alone", alone(&wrong, &a, &executor, &oracles))] {
                let what = format!("{}, layer {layer} {}, {mode}", golden.name, if rotated { "without RoPE" } else { "with RoPE" });
                let first = report.first_divergence.as_ref().unwrap_or_else(|| panic!("{what}:\n{}", text(&report, false)));
                println!("{what}: {} {:.0} floors off", first.at, first.times_floor);
                assert_eq!(first.at.layer, Some(layer), "{what}:\n{}", text(&report, false));
                let missing = report.missing.iter().any(|m| m.stage == "q_rope" && m.layers == [layer]);
                assert!(missing, "{what}: {:?}", report.missing);
            }
        }
    }
    assert!(both.iter().all(|count| *count > 0), "layers with RoPE and without it: {both:?}");
}
