//! Reads dumps, ours and those of the reference scripts.

use super::parts::{Holds, Key, Part};
use crate::error::{Error, Result};
use crate::formats::safetensors::{header_length, parse};
use crate::formats::{ByteSource, InMemory, Local, Stored, TensorEntry, TensorIndex};
use crate::plan::stage::STAGE_TABLE_VERSION;
use crate::plan::{At, Stage};
use crate::tensor::{DType, Tensor, to_f32};
use std::collections::BTreeMap;

/// An opened dump. Values are decoded when asked for.
#[derive(Debug, Clone)]
pub struct Dump {
    /// Model, revision, dtype, tool, versions, stage_table, as the writer said.
    pub metadata: BTreeMap<String, String>,
    /// Keys that name no stage of the table, sorted as in the file.
    pub unknown: Vec<String>,
    pub(super) source: Local,
    pub(super) index: TensorIndex,
    stages: Vec<At>,
    pub(super) parts: BTreeMap<At, Vec<Part>>,
}

impl Dump {
    /// Opens and checks the dump at `path`; its values are read when asked for.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Format` for files that are no safetensors, or no dumps, or of another stage table.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        Self::of(Local::File(crate::formats::LocalFile::open(path)?))
    }
    /// Checks the dump in `source`.
    ///
    /// # Errors
    /// As `open`.
    pub fn read(source: InMemory) -> Result<Self> {
        Self::of(Local::Memory(source))
    }
    /// Checks the dump in `source`, wherever that is.
    ///
    /// # Errors
    /// As `open`.
    pub fn of(source: Local) -> Result<Self> {
        let (name, len) = (source.name(), source.len());
        let header_len = header_length(name, len, &source.slice(0..len.min(8))?)?;
        let header = parse(name, len, &source.slice(8..8 + header_len)?)?;
        let bad = |message: String| Error::format(name, message);
        let ours = STAGE_TABLE_VERSION.to_string();
        match header.metadata.get("stage_table") {
            None => return Err(bad("a safetensors file, but no dump: its metadata has no `stage_table`; dumps are written by `--dump` and the reference scripts".into())),
            Some(theirs) if *theirs != ours => {
                return Err(bad(format!("written for version {theirs} of the stage table, but this is version {ours}: write it again")));
            }
            Some(_) => {}
        }
        let (mut stages, mut unknown, mut parts) = (Vec::new(), Vec::new(), BTreeMap::<At, Vec<Part>>::new());
        for entry in &header.tensors {
            if matches!(entry.name.as_str(), "input_ids" | "generated_ids" | "sampled") {
                continue;
            }
            let Some(key) = Key::parse(&entry.name) else {
                unknown.push(entry.name.clone());
                continue;
            };
            if let Some(part) = key.check(entry).map_err(bad)? {
                parts.entry(key.at).or_default().push(part);
            }
            if key.step.is_none() && key.holds == Holds::Value {
                stages.push(key.at);
            }
        }
        stages.sort_unstable_by_key(|at| order(*at));
        for parts in parts.values_mut() {
            // Of a value and its sketch the value stays.
            parts.sort_by_key(|part| (part.step, part.sketch));
            parts.dedup_by_key(|part| part.step);
        }
        let index = TensorIndex::new(header.tensors).map_err(|(key, _, _)| bad(format!("two tensors are called `{key}`")))?;
        let dump = Self { metadata: header.metadata, unknown, index, stages, parts, source };
        dump.input_ids()?;
        Ok(dump)
    }
    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        self.source.name()
    }
    /// Stages and layers whose values it holds whole, in the order of computation.
    pub fn stages(&self) -> &[At] {
        &self.stages
    }
    /// The prompt's ids.
    ///
    /// # Errors
    /// `Kind::Format` when they are missing or no ids.
    pub fn input_ids(&self) -> Result<Vec<u32>> {
        let absent = || Error::format(self.name(), "a safetensors file, but no dump: it has no `input_ids`");
        self.ids("input_ids")?.ok_or_else(absent)
    }
    /// The generated ids, end-of-sequence included; `None` if the dump has none.
    ///
    /// # Errors
    /// `Kind::Format` when they are no ids.
    pub fn generated_ids(&self) -> Result<Option<Vec<u32>>> {
        self.ids("generated_ids")
    }
    /// Shape of a value, if the dump has it: [tokens, width], or [heads, tokens, positions].
    pub fn shape(&self, at: At) -> Option<&[usize]> {
        self.index.get(&at.key()).map(|entry| &entry.shape[..])
    }
    /// A value, if the dump has it.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn value(&self, at: At) -> Result<Option<Tensor>> {
        self.index.get(&at.key()).map(|entry| self.decode(entry)).transpose()
    }
    /// Scores or probabilities [heads, 1, positions] of decode step `step` (from 1), if the dump has them.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn step_value(&self, step: usize, at: At) -> Result<Option<Tensor>> {
        self.index.get(&format!("step.{step}.{}", at.key())).map(|entry| self.decode(entry)).transpose()
    }

    fn decode(&self, entry: &TensorEntry) -> Result<Tensor> {
        let bytes = self.source.slice(entry.range.clone())?;
        Tensor::new(entry.shape.clone(), to_f32(&bytes, DType::F32))
    }
    fn ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(entry) = self.index.get(key) else { return Ok(None) };
        let bytes = self.source.slice(entry.range.clone())?;
        let found = match (&entry.dtype, entry.shape.len()) {
            (Stored::Known(DType::I32), 1) => {
                bytes.as_chunks::<4>().0.iter().map(|b| u32::try_from(i32::from_le_bytes(*b)).ok()).collect::<Option<Vec<u32>>>()
            }
            _ => None,
        };
        let wrong = || {
            let (dtype, shape) = (&entry.dtype, &entry.shape);
            Error::format(self.name(), format!("`{key}`: expected ids as i32 [tokens], none negative, found {dtype} {shape:?}"))
        };
        found.map(Some).ok_or_else(wrong)
    }
}

/// Orders values as a model computes them: by layer, then as the table of stages.
pub fn order(at: At) -> (bool, Option<usize>, Stage) {
    (at.layer.is_none() && at.stage > Stage::EmbedOut, at.layer, at.stage)
}
