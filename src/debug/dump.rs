//! Dumps: every wanted value of a run in one safetensors file, under the names of the stage table. The writer is an
//! observer that keeps values as they come and joins them only while it writes; the reader is `Dump`.

mod parts;
mod read;

pub use parts::{Part, STATS};
pub use read::{Dump, order};

use crate::cpu::stats::stats;
use crate::debug::record::TokenText;
use crate::debug::sketch::{SIGNS, sketches};
use crate::error::{Error, Result};
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want};
use crate::formats::safetensors::{Output, write, write_f32};
use crate::plan::stage::STAGE_TABLE_VERSION;
use crate::plan::{At, Plan};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::io::Write;

/// Collects a run's values. One prompt and its decode steps; a new run needs a new observer.
#[derive(Debug)]
pub struct DumpObserver {
    requests: Vec<Request>,
    sampled: bool,
    sketch: bool,
    input_ids: Vec<u32>,
    generated_ids: Vec<u32>,
    /// Values laid out in rows, and the prompt's scores; in the plan's order.
    values: Vec<Pieces>,
    /// Scores of decode steps, under their keys.
    step_scores: Vec<(String, Tensor)>,
    decoding: bool,
}

/// One value of all steps, in order.
#[derive(Debug)]
struct Pieces {
    at: At,
    /// Before the key: nothing, `sketch.`, `stats.`.
    prefix: &'static str,
    first_token: usize,
    /// [t, width] each, or [heads, t, positions].
    tensors: Vec<Tensor>,
}

impl DumpObserver {
    /// An observer of `stages` (names, aliases, `all`) in `layers`, or in all of them.
    ///
    /// # Errors
    /// `Kind::Invalid` for stages and layers that the model lacks.
    pub fn new<'a>(plan: &Plan, stages: impl IntoIterator<Item = &'a str>, layers: Option<&[usize]>) -> Result<Self> {
        let (mut requests, sampled) = super::select(plan, stages, layers, &Want::Full)?;
        if let (true, Some(node)) = (requests.is_empty(), plan.nodes.first()) {
            // Ids alone: a step is shown to observers only if something is wanted of it.
            let want = Want::Gather { tokens: Vec::new(), dims: Vec::new() };
            requests.push(Request { stage: node.at.stage, layers: None, want });
        }
        Ok(Self {
            requests,
            sampled,
            sketch: false,
            input_ids: Vec::new(),
            generated_ids: Vec::new(),
            values: Vec::new(),
            step_scores: Vec::new(),
            decoding: false,
        })
    }
    /// An observer of single values.
    ///
    /// # Errors
    /// `Kind::Invalid` for values that the model lacks; for none at all.
    pub fn of(plan: &Plan, values: &[At]) -> Result<Self> {
        let request = |at: &At| Request { stage: at.stage, layers: at.layer.map(|layer| vec![layer]), want: Want::Full };
        let requests: Vec<Request> = values.iter().map(request).collect();
        crate::exec::match_requests(plan, &requests)?;
        let mut observer = Self::new(plan, values.first().map(|at| at.stage.name()), None)?;
        observer.requests = requests;
        Ok(observer)
    }
    /// Keeps sketches and statistics of rows in place of the rows: a fixed size per token, whatever the width.
    #[must_use]
    pub fn sketching(self) -> Self {
        Self { sketch: true, ..self }
    }
    /// Tokens of the prompt that were seen.
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }
    /// Tokens that were chosen, the end-of-sequence id included.
    pub fn generated_ids(&self) -> &[u32] {
        &self.generated_ids
    }
    /// Texts of all its tokens, a JSON list: what its metadata have under `tokens`.
    pub fn token_texts(&self, text: &TokenText<'_>) -> String {
        let texts = self.input_ids.iter().chain(&self.generated_ids).map(|id| text(*id));
        serde_json::Value::from(texts.collect::<Vec<_>>()).to_string()
    }
    /// Scores or probabilities `stage` of each layer: those of the prompt's chunks, then of each step, [heads, tokens, positions].
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn scores(&self, stage: crate::plan::Stage) -> Vec<(Option<usize>, Vec<&Tensor>)> {
        let of = |pieces: &'_ Pieces| pieces.at.stage == stage && pieces.is_scores() && pieces.prefix.is_empty();
        let steps = |key: &str| {
            let of = move |name: &str| name.strip_prefix("step.").and_then(|rest| rest.split_once('.')).is_some_and(|(_, of)| of == key);
            self.step_scores.iter().filter(move |(name, _)| of(name)).map(|(_, tensor)| tensor).collect::<Vec<_>>()
        };
        let found = self.values.iter().filter(|pieces| of(pieces));
        found.map(|pieces| (pieces.at.layer, pieces.tensors.iter().chain(steps(&pieces.at.key())).collect())).collect()
    }
    /// Writes the dump to `path`, whole or not at all. `about` is put into its metadata (model, revision, dtype,
    /// device), in addition to the tool, its version and that of the stage table.
    ///
    /// # Errors
    /// `Kind::Io`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn finish(&self, path: &std::path::Path, about: &[(&str, &str)]) -> Result<()> {
        crate::formats::write::write_atomically(path, |out| self.write(out, about))
    }
    /// Writes the dump, as `finish` does, to `out`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn Write, about: &[(&str, &str)]) -> std::io::Result<()> {
        let version = format!("doppler {}", env!("CARGO_PKG_VERSION"));
        let table = STAGE_TABLE_VERSION.to_string();
        let ours = [("tool", "doppler"), ("versions", version.as_str()), ("stage_table", table.as_str())];
        let signs = SIGNS.to_string();
        let sketch = self.sketch.then_some(("sketch", signs.as_str()));
        let metadata: BTreeMap<String, String> =
            about.iter().chain(&ours).chain(&sketch).map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let mut outputs = vec![Output::ids("input_ids", &self.input_ids), Output::ids("generated_ids", &self.generated_ids)];
        if self.sampled {
            outputs.push(Output::ids("sampled", &self.generated_ids));
        }
        outputs.extend(self.values.iter().map(Pieces::output));
        outputs.extend(self.step_scores.iter().map(|(key, t)| Output::f32(key.clone(), t.shape.clone(), &t.data)));
        write(out, &metadata, &outputs)
    }

    fn keep(&mut self, step: StepInfo<'_>, at: At, first_token: usize, tensor: Tensor) -> Result<()> {
        if !self.sketch {
            return self.join(step, at, first_token, "", tensor);
        }
        let [sketch, stats] = sketched(&tensor)?;
        self.join(step, at, first_token, "sketch.", sketch)?;
        self.join(step, at, first_token, "stats.", stats)
    }
    fn join(&mut self, step: StepInfo<'_>, at: At, first_token: usize, prefix: &'static str, tensor: Tensor) -> Result<()> {
        let scores = at.stage.layout().is_scores();
        let wrong = |what: String| Error::device(format!("dump of {at}: {what}"));
        if tensor.shape.len() != if scores { 3 } else { 2 } || tensor.data.len() != tensor.shape.iter().product::<usize>() {
            return Err(wrong(format!("unexpected shape {:?}", tensor.shape)));
        }
        if scores && step.decode_step > 0 {
            self.step_scores.push((format!("{prefix}step.{}.{}", step.decode_step, at.key()), tensor));
            return Ok(());
        }
        let Some(known) = self.values.iter_mut().find(|pieces| pieces.at == at && pieces.prefix == prefix) else {
            self.values.push(Pieces { at, prefix, first_token, tensors: vec![tensor] });
            return Ok(());
        };
        // The rows must follow, and what is not rows must be the same for all.
        let (next, fixed) = (known.first_token + known.tokens(), usize::from(!scores));
        let [first, ..] = &known.tensors[..] else { return Err(wrong("no rows".into())) };
        if next != first_token || first.shape[fixed] != tensor.shape[fixed] {
            let message = format!("expected rows from token {next} on, found {:?} from token {first_token} on", tensor.shape);
            return Err(wrong(message));
        }
        known.tensors.push(tensor);
        Ok(())
    }
}

/// A value's rows as sketches [.., 64] and as statistics [.., 10].
fn sketched(tensor: &Tensor) -> Result<[Tensor; 2]> {
    let (width, outer) = (tensor.width(), &tensor.shape[..tensor.shape.len().saturating_sub(1)]);
    let with = |last: usize, data: Vec<f32>| Tensor::new(outer.iter().copied().chain([last]).collect(), data);
    let sums = sketches(&tensor.data, width).into_iter().flatten().map(|sum| sum as f32).collect();
    let stats = (0..tensor.rows()).flat_map(|row| {
        let s = stats(tensor.row(row), width);
        [s.count as f32, s.max_abs, s.max_dim as f32, s.mean, s.rms, s.min, s.max, s.nan as f32, s.inf as f32, s.zero as f32]
    });
    Ok([with(SIGNS, sums)?, with(STATS, stats.collect())?])
}

impl Observer for DumpObserver {
    fn requests(&self, _: usize) -> Vec<Request> {
        self.requests.clone()
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        if step.decode_step == 0 {
            if self.decoding {
                return Err(Error::invalid("dump", "a dump holds one prompt and its answer, but a second prompt was read"));
            }
            self.input_ids.extend_from_slice(step.tokens);
        } else {
            self.decoding = true;
        }
        self.generated_ids.extend(step.chosen);
        for value in values {
            if let Content::Full(tensor) = value.content {
                self.keep(step, value.at, value.first_token, tensor)?;
            }
        }
        Ok(())
    }
}

impl Pieces {
    fn is_scores(&self) -> bool {
        self.at.stage.layout().is_scores()
    }
    /// Tokens of all pieces.
    fn tokens(&self) -> usize {
        let place = usize::from(self.is_scores());
        self.tensors.iter().map(|t| t.shape[place]).sum()
    }
    /// The pieces as one tensor: rows one after the other; scores [heads, tokens, positions] with the positions that
    /// an earlier chunk could not see yet as zeros.
    fn output(&self) -> Output<'_> {
        let name = format!("{}{}", self.prefix, self.at.key());
        let first = self.tensors.first().map_or(&[][..], |t| &t.shape[..]);
        if !self.is_scores() {
            let shape = vec![self.tokens(), first.get(1).copied().unwrap_or(0)];
            let data = |out: &mut dyn Write| self.tensors.iter().try_for_each(|t| write_f32(out, &t.data));
            return Output { name, dtype: DType::F32, shape, data: Box::new(data) };
        }
        let heads = first.first().copied().unwrap_or(0);
        let positions = self.tensors.iter().map(Tensor::width).max().unwrap_or(0);
        let data = move |out: &mut dyn Write| {
            let zeros = vec![0.0; positions];
            for head in 0..heads {
                for tensor in &self.tensors {
                    for row in head * tensor.shape[1]..(head + 1) * tensor.shape[1] {
                        write_f32(out, tensor.row(row))?;
                        write_f32(out, &zeros[tensor.width()..])?;
                    }
                }
            }
            Ok(())
        };
        Output { name, dtype: DType::F32, shape: vec![heads, self.tokens(), positions], data: Box::new(data) }
    }
}

#[cfg(test)]
mod tests;
