//! Values that interventions take from files: dumps, vectors in safetensors files, control vectors in GGUF files.

use crate::debug::dump::Dump;
use crate::error::{Error, Result};
use crate::formats::{ByteSource, Local, TensorEntry, TensorIndex, gguf, safetensors};
use crate::plan::intervention::{self, Span};
use crate::plan::{At, Stage};
use crate::tensor::{Tensor, to_f32};
use std::sync::Arc;

/// A file, opened.
pub enum ValueFile {
    Dump(Dump),
    /// Vectors under the names of dumps, or a single one.
    Vectors {
        source: Local,
        index: TensorIndex,
    },
    /// Control vectors as llama.cpp has them: `direction.N` is added to the residual stream that leaves layer N.
    Control {
        source: Local,
        index: TensorIndex,
    },
}

impl ValueFile {
    /// A dump.
    ///
    /// # Errors
    /// Those of `Dump::open`.
    pub fn dump(source: Local) -> Result<Self> {
        Dump::of(source).map(ValueFile::Dump)
    }
    /// A file of vectors.
    ///
    /// # Errors
    /// `Kind::Format` for other files, GGUF files of models among them.
    pub async fn vectors(source: Local) -> Result<Self> {
        if !gguf::is_gguf(source.name()) {
            let header = safetensors::read_header(&source).await?;
            let index = TensorIndex::new(header.tensors).map_err(|(key, ..)| twice(&source, &key))?;
            return Ok(ValueFile::Vectors { source, index });
        }
        let header = gguf::read_header(&source).await?;
        let architecture = header.metadata.text("general.architecture")?.unwrap_or("nothing");
        if architecture != "controlvector" {
            let message = format!("expected control vectors (general.architecture `controlvector`), found `{architecture}`");
            return Err(Error::format(source.name(), message));
        }
        let index = header.index()?;
        Ok(ValueFile::Control { source, index })
    }
    /// Whether it has values of `layer`, as far as it depends on that.
    pub fn has(&self, layer: usize) -> bool {
        match self {
            ValueFile::Control { index, .. } => index.get(&direction(layer)).is_some(),
            ValueFile::Dump(_) | ValueFile::Vectors { .. } => true,
        }
    }
    /// A row for every token.
    ///
    /// # Errors
    /// `Kind::Format` where there is none, or a tensor of another shape.
    pub fn vector(&self, at: At) -> Result<intervention::Given> {
        let (source, entry) = match self {
            ValueFile::Dump(dump) => return Err(Error::format(dump.name(), "it is a dump, not a file of vectors")),
            ValueFile::Vectors { source, index } => {
                let only = || index.entries().first().filter(|_| index.entries().len() == 1);
                let absent = || {
                    let names: Vec<&str> = index.entries().iter().take(4).map(|entry| entry.name.as_str()).collect();
                    let message =
                        format!("expected a tensor `{}` or a single one, found {} ({})", at.key(), index.entries().len(), names.join(", "));
                    Error::format(source.name(), message)
                };
                (source, index.get(&at.key()).or_else(only).ok_or_else(absent)?)
            }
            ValueFile::Control { source, index } => {
                let layer = at.layer.filter(|_| at.stage == Stage::LayerOut);
                let Some(layer) = layer else {
                    return Err(Error::invalid("stage", format!("control vectors are added to layer_out, not to {at}")));
                };
                let absent = || {
                    let message = format!("it has no `{}` (such files begin with layer 1)", direction(layer));
                    Error::format(source.name(), message)
                };
                (source, index.get(&direction(layer)).ok_or_else(absent)?)
            }
        };
        let shape = match entry.shape[..] {
            [width] | [1, width] => vec![width],
            _ => {
                let message = format!("`{}`: expected one row [width], found {:?}; from: and mean: take dumps", entry.name, entry.shape);
                return Err(Error::format(source.name(), message));
            }
        };
        Ok(given("add", source.name(), 0, Tensor::new(shape, numbers(source, entry)?)?))
    }
    /// The rows of every token of a dump, and which tokens these are.
    ///
    /// # Errors
    /// Those of the function of this name.
    pub fn tokens(&self, at: At) -> Result<(intervention::Given, Span)> {
        tokens(self.dump_itself()?, at)
    }
    /// The mean of a dump's rows.
    ///
    /// # Errors
    /// `Kind::Format` where the dump lacks the value; `Kind::Invalid` for scores, whose rows differ in length.
    pub fn mean(&self, at: At) -> Result<intervention::Given> {
        if at.stage.layout().is_scores() {
            return Err(Error::invalid("mean", format!("rows of {at} differ in length, so they have no mean")));
        }
        let dump = self.dump_itself()?;
        let tensor = dumped(dump, at)?;
        let mut mean = vec![0f64; tensor.width()];
        for i in 0..tensor.rows() {
            mean.iter_mut().zip(tensor.row(i)).for_each(|(sum, x)| *sum += f64::from(*x) / tensor.rows() as f64);
        }
        let mean: Vec<f32> = mean.into_iter().map(|x| x as f32).collect();
        Ok(given("mean", dump.name(), 0, Tensor::new(vec![mean.len()], mean)?))
    }
    fn dump_itself(&self) -> Result<&Dump> {
        let ValueFile::Dump(dump) = self else { return Err(Error::invalid("set", "expected a dump")) };
        Ok(dump)
    }
}

/// The rows of every token of a dump, and which tokens these are.
///
/// # Errors
/// `Kind::Format` where the dump lacks the value.
pub fn tokens(dump: &Dump, at: At) -> Result<(intervention::Given, Span)> {
    let tensor = dumped(dump, at)?;
    let rows = match tensor.shape[..] {
        [_, tokens, _] | [tokens, _] => tokens,
        _ => 0,
    };
    let last = rows.checked_sub(1).ok_or_else(|| Error::format(dump.name(), format!("{} has no tokens", at.key())))?;
    Ok((given("from", dump.name(), 0, tensor), (0, last)))
}

fn dumped(dump: &Dump, at: At) -> Result<Tensor> {
    let hint = format!("it does not hold {}; write it with `doppler debug --dump FILE --stages {}`", at.key(), at.stage);
    let value = dump.value(at)?.ok_or_else(|| Error::format(dump.name(), hint))?;
    if at.stage.layout().is_scores() { with_steps(dump, at, value) } else { Ok(value) }
}

/// Scores of the prompt [heads, tokens, positions] with those of the decode steps after it, cells that are not there 0.
fn with_steps(dump: &Dump, at: At, prompt: Tensor) -> Result<Tensor> {
    let [heads, tokens, _] = prompt.shape[..] else { return Ok(prompt) };
    let mut all = vec![prompt];
    while let Some(step) = dump.step_value(all.len(), at)? {
        all.push(step);
    }
    let rows = tokens + all.len() - 1;
    let mut data = vec![0f32; heads * rows * rows];
    let mut first = 0;
    for part in &all {
        let (tokens, positions) = (part.rows() / heads.max(1), part.width());
        for (row, from) in part.data.chunks_exact(positions.max(1)).enumerate() {
            let (head, token) = (row / tokens, first + row % tokens);
            let seen = positions.min(rows);
            data[(head * rows + token) * rows..][..seen].copy_from_slice(&from[..seen]);
        }
        first += tokens;
    }
    Tensor::new(vec![heads, rows, rows], data)
}

fn direction(layer: usize) -> String {
    format!("direction.{layer}")
}

fn given(how: &str, file: &str, first: usize, tensor: Tensor) -> intervention::Given {
    intervention::Given { name: format!("{how}:{file}"), first, tensor: Arc::new(tensor) }
}

fn numbers(source: &Local, entry: &TensorEntry) -> Result<Vec<f32>> {
    let dtype = entry.dtype.known().ok_or_else(|| {
        let message = format!("`{}`: expected f32, f16 or bf16, found {}", entry.name, entry.dtype);
        Error::format(source.name(), message)
    })?;
    Ok(to_f32(&source.slice(entry.range.clone())?, dtype))
}

fn twice(source: &Local, key: &str) -> Error {
    Error::format(source.name(), format!("two tensors are called `{key}`"))
}
