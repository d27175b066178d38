//! Mixers other than attention.

use super::{Activation, WeightRole};
use serde::Serialize;

/// A short convolution (LFM2): out(C · conv(B · x)), where `B, C, x` are three equal parts of one projection.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShortConvConfig {
    /// Tokens that the convolution sees, the current one included.
    pub taps: usize,
    /// The projections and the convolution have a bias.
    pub bias: bool,
}

/// A gated delta rule (Qwen 3 Next, Qwen 3.5): a matrix of each value head that every token decays and corrects.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatedDeltaConfig {
    /// Its heads.
    pub heads: DeltaHeads,
    /// Tokens that the convolution of queries, keys and values sees, the current one included.
    pub taps: usize,
    /// Activation after the convolution.
    pub activation: Activation,
    /// Added to the sum of squares where queries and keys are made as long as 1.
    pub unit_eps: f64,
    /// Factor on queries.
    pub scale: f64,
}

/// Heads of a delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeltaHeads {
    /// Heads of queries and keys.
    pub keys: usize,
    /// Heads of values, a multiple of those; value head h has key head h / (values / keys).
    pub values: usize,
    /// Width of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Width of all keys, or queries.
    pub fn key_width(&self) -> usize {
        self.keys.saturating_mul(self.key_dim)
    }
    /// Width of all values.
    pub fn value_width(&self) -> usize {
        self.values.saturating_mul(self.value_dim)
    }
    /// Width of queries, keys and values side by side, which one convolution sees.
    pub fn width(&self) -> usize {
        self.key_width().saturating_mul(2).saturating_add(self.value_width())
    }
    /// Width of what the matrices take of a token: keys, values, and of each value head a rate and a decay.
    pub fn taken(&self) -> usize {
        self.key_width().saturating_add(self.value_width()).saturating_add(self.values.saturating_mul(2))
    }
    /// Value heads of each key head.
    pub fn share(&self) -> usize {
        self.values / self.keys.max(1)
    }
    /// Rows of a tensor that has queries, keys, values and their gates by key head.
    pub fn sections(&self) -> Sections {
        let values = self.share().saturating_mul(self.value_dim);
        Sections { heads: self.keys, rows: [self.key_dim, self.key_dim, values, values] }
    }
    /// How a weight of `role` lies where value heads are not by key head; `None` for those that have none.
    pub fn tiles(&self, role: WeightRole) -> Option<Tiles> {
        let (before, width, columns) = match role {
            WeightRole::DeltaQkv | WeightRole::Conv => (self.key_width().saturating_mul(2), self.value_dim, false),
            WeightRole::DeltaZ => (0, self.value_dim, false),
            WeightRole::DeltaB | WeightRole::DeltaA | WeightRole::DeltaDecay | WeightRole::DeltaStep => (0, 1, false),
            WeightRole::DeltaOut => (0, self.value_dim, true),
            _ => return None,
        };
        Some(Tiles { before, keys: self.keys, share: self.share(), width, columns })
    }
    /// Elements of all matrices: of each value head [value_dim, key_dim].
    pub fn matrices(&self) -> usize {
        self.value_width().saturating_mul(self.key_dim)
    }
}

/// Rows of a tensor by head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sections {
    /// Heads.
    pub heads: usize,
    /// Rows of each section of a head.
    pub rows: [usize; 4],
}

/// Value heads that are not stored by key head: the first of every key head, then the second of every one, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tiles {
    /// Rows before the heads, which lie as usual.
    pub before: usize,
    /// Key heads.
    pub keys: usize,
    /// Value heads of each.
    pub share: usize,
    /// Rows of a value head.
    pub width: usize,
    /// All this of columns, not of rows.
    pub columns: bool,
}

impl Tiles {
    /// Where row (or column) `i` of the usual order is stored, and how many from it on follow each other.
    pub fn stored(&self, i: usize) -> (usize, usize) {
        let Some(i) = i.checked_sub(self.before) else { return (i, self.before - i) };
        let (head, within) = (i / self.width.max(1), i % self.width.max(1));
        let head = head % self.share.max(1) * self.keys + head / self.share.max(1);
        (self.before + head * self.width + within, self.width.max(1) - within)
    }
    /// All rows, or columns.
    pub fn all(&self) -> usize {
        self.keys.saturating_mul(self.share).saturating_mul(self.width).saturating_add(self.before)
    }
}
