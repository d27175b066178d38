//! Rows of a dump, read in blocks: values, sketches, floors and statistics, as the file's keys name them.
//! A value of many gigabytes goes through a buffer of the caller's; nothing is kept.

use super::Dump;
use crate::debug::sketch::SIGNS;
use crate::error::{Error, Result};
use crate::formats::{Stored, TensorEntry};
use crate::plan::{At, Layout, Stage};
use crate::tensor::{DType, product, to_f32};
use std::ops::Range;

/// Numbers of a row of `stats.<key>`: count, max_abs, max_dim, mean, rms, min, max, nan, inf, zero.
pub const STATS: usize = 10;

/// Some rows of a value: those of the prompt and of decode steps alike, or the scores of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// 0, or the decode step whose scores these are.
    pub step: usize,
    /// Heads of scores and probabilities; 1 for values laid out in rows.
    pub heads: usize,
    /// Tokens.
    pub tokens: usize,
    /// Numbers of a row: elements, positions, or the 64 of a sketch.
    pub width: usize,
    /// Sketches in place of the rows themselves.
    pub sketch: bool,
    /// Place of its first byte.
    start: u64,
}

impl Part {
    /// Rows: heads · tokens, the tokens of one head after the other.
    pub fn rows(&self) -> usize {
        self.heads * self.tokens
    }
}

/// What a key holds of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Value,
    Sketch,
    Stats,
    Floor,
}

impl Holds {
    const PREFIXES: [(&str, Holds); 3] = [("sketch.", Holds::Sketch), ("stats.", Holds::Stats), ("floor.", Holds::Floor)];

    /// Shape in words.
    fn shape(self, layout: Layout) -> &'static str {
        match (self, layout.is_scores()) {
            (Holds::Value, _) => layout.text(),
            (Holds::Sketch, false) => "[tokens, 64]",
            (Holds::Sketch, true) => "[heads, tokens, 64]",
            (Holds::Stats, false) => "[tokens, 10]",
            (Holds::Stats, true) => "[heads, tokens, 10]",
            (Holds::Floor, false) => "[tokens]",
            (Holds::Floor, true) => "[heads, tokens]",
        }
    }
}

/// A key taken apart: what it holds, of which step, of which value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) holds: Holds,
    pub(super) step: Option<usize>,
    pub(super) at: At,
}

impl Key {
    /// `embed_out`, `layer.3.q_proj`, `step.2.layer.3.attn_scores`, `floor.layer.3.q_proj`.
    pub(super) fn parse(key: &str) -> Option<Key> {
        let prefixed = Holds::PREFIXES.iter().find_map(|(prefix, holds)| Some((*holds, key.strip_prefix(prefix)?)));
        let (holds, key) = prefixed.unwrap_or((Holds::Value, key));
        let (step, rest) = match key.strip_prefix("step.") {
            Some(rest) => rest.split_once('.').and_then(|(n, rest)| Some((Some(n.parse().ok()?), rest)))?,
            None => (None, key),
        };
        let (layer, name) = match rest.strip_prefix("layer.") {
            Some(rest) => rest.split_once('.').and_then(|(l, name)| Some((Some(l.parse().ok()?), name)))?,
            None => (None, rest),
        };
        let stage = Stage::parse(name).ok().filter(|s| s.name() == name && s.info().per_layer == layer.is_some())?;
        let at = At { stage, layer };
        // Only the canonical spelling can be looked up again.
        let canonical = step.map_or(at.key(), |n| format!("step.{n}.{}", at.key()));
        (canonical == key).then_some(Key { holds, step, at })
    }
    /// Checks a tensor's type and shape; its rows, if it holds rows of values.
    ///
    /// # Errors
    /// What was expected and found, without the file's name.
    pub(super) fn check(self, entry: &TensorEntry) -> std::result::Result<Option<Part>, String> {
        let layout = self.at.stage.layout();
        let outer = usize::from(layout.is_scores()) + 1;
        let last = entry.shape.last().copied().unwrap_or(0);
        let fits = match self.holds {
            Holds::Value => entry.shape.len() == outer + 1,
            Holds::Sketch => entry.shape.len() == outer + 1 && last == SIGNS,
            Holds::Stats => entry.shape.len() == outer + 1 && last == STATS,
            Holds::Floor => entry.shape.len() == outer,
        };
        if entry.dtype != Stored::Known(DType::F32) || !fits {
            let (name, dtype, shape) = (&entry.name, &entry.dtype, &entry.shape);
            return Err(format!("`{name}`: expected f32 {}, found {dtype} {shape:?}", self.holds.shape(layout)));
        }
        if !matches!(self.holds, Holds::Value | Holds::Sketch) {
            return Ok(None);
        }
        let heads = if outer == 2 { entry.shape[0] } else { 1 };
        let (step, sketch) = (self.step.unwrap_or(0), self.holds == Holds::Sketch);
        Ok(Some(Part { step, heads, tokens: entry.shape[outer - 1], width: last, sketch, start: entry.range.start }))
    }
}

impl Dump {
    /// The rows of a value: one part, or for scores one per step, in the order of steps; empty if the dump lacks it.
    /// Where the file has both a value and its sketch, the value.
    pub fn parts(&self, at: At) -> &[Part] {
        self.parts.get(&at).map_or(&[], Vec::as_slice)
    }
    /// Values of which the file holds rows or sketches, in the order of computation.
    pub fn held(&self) -> Vec<At> {
        let mut held: Vec<At> = self.parts.keys().copied().collect();
        held.sort_unstable_by_key(|at| super::order(*at));
        held
    }
    /// Reads rows `rows` of `part` into `out` [rows, width], which it empties first.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Invalid` for rows that the part does not have.
    pub fn read_rows(&self, part: &Part, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        if rows.end > part.rows() || rows.start > rows.end {
            return Err(Error::invalid("rows", format!("{rows:?} of a part that has {} rows", part.rows())));
        }
        let first = part.start + product([rows.start, part.width, 4]);
        self.read_numbers(first, rows.len() * part.width, out)
    }
    /// The measured rounding floor of every row of a value, `[tokens]` or `[heads · tokens]`, if the file brings it: the L2
    /// distance of a free run in f64 from the run that was dumped.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn floors(&self, at: At, step: usize) -> Result<Option<Vec<f32>>> {
        self.beside("floor.", at, step)
    }
    /// Statistics of every row, [rows, 10], if the file brings them.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn row_stats(&self, at: At, step: usize) -> Result<Option<Vec<f32>>> {
        self.beside("stats.", at, step)
    }

    fn beside(&self, prefix: &str, at: At, step: usize) -> Result<Option<Vec<f32>>> {
        let key = if step == 0 { format!("{prefix}{}", at.key()) } else { format!("{prefix}step.{step}.{}", at.key()) };
        let Some(entry) = self.index.get(&key) else { return Ok(None) };
        let mut out = Vec::new();
        self.read_numbers(entry.range.start, entry.shape.iter().product(), &mut out)?;
        Ok(Some(out))
    }
    /// `count` little-endian f32 from byte `first` on.
    fn read_numbers(&self, first: u64, count: usize, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.extend(to_f32(&self.source.slice(first..first + 4 * count as u64)?, DType::F32));
        Ok(())
    }
}
