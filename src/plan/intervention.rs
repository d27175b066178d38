//! Interventions: changes of a value as soon as its op has computed it, before anything reads it, on chosen tokens, heads and
//! elements. Plain data with absolute positions; what they compute is defined in `cpu/intervention.rs`.

use super::stage::Layout;
use crate::tensor::Tensor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// First and last of neighbours; `usize::MAX` is as many as there are.
pub type Span = (usize, usize);

/// One change of one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intervention {
    /// Absolute positions of the tokens; `None` is every token.
    pub tokens: Option<Vec<Span>>,
    /// Heads, of values made of heads; `None` is every head.
    pub heads: Option<Vec<Span>>,
    /// Elements: of a head where `heads` are named, else of a token's row; of scores the positions that are attended to.
    /// `None` is every element.
    pub dims: Option<Vec<Span>>,
    /// What becomes of them.
    pub change: Change,
}

/// What becomes of the chosen elements. Of scores only cells that the token sees are changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// 0, whatever they were.
    Zero,
    /// Multiplied by this.
    Scale(f64),
    /// `factor` times the given values is added.
    Add {
        /// What is added.
        given: Given,
        /// Its factor.
        factor: f64,
    },
    /// The given values, whatever they were.
    Set(Given),
}

/// Values from elsewhere.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// Where they are from, in the words of `--set`: `from:clean.safetensors`.
    pub name: String,
    /// Position of their first token; 0 for a row that is every token's.
    pub first: usize,
    /// `[width]`, the same for every token; [tokens, width]; of scores [heads, tokens, positions].
    #[serde(serialize_with = "tensor_out", deserialize_with = "tensor_in")]
    pub tensor: Arc<Tensor>,
}

fn tensor_out<S: Serializer>(tensor: &Arc<Tensor>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    tensor.as_ref().serialize(serializer)
}

fn tensor_in<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Arc<Tensor>, D::Error> {
    Tensor::deserialize(deserializer).map(Arc::new)
}

/// The numbers by a hash, so that a plan's fingerprint knows them without being as long as they are.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<u8> = self.tensor.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        let hash = xxhash_rust::xxh64::xxh64(&bytes, 0);
        write!(f, "Given({} from {}, {:?}, {hash:016x})", self.name, self.first, self.tensor.shape)
    }
}

impl Given {
    /// Elements from token to token, and from head to head; 0 where each has the same.
    pub fn strides(&self) -> (usize, usize) {
        match self.tensor.shape[..] {
            [_, tokens, positions] => (positions, tokens * positions),
            [_, width] => (width, 0),
            _ => (0, 0),
        }
    }
    /// Positions of the tokens that it has values for; `None` is every one.
    pub(super) fn tokens(&self) -> Option<Span> {
        let tokens = match self.tensor.shape[..] {
            [_, tokens, _] | [tokens, _] => tokens,
            _ => return None,
        };
        Some((self.first, (self.first + tokens).checked_sub(1)?))
    }
}

/// Whether `index` is chosen.
pub fn holds(spans: Option<&[Span]>, index: usize) -> bool {
    spans.is_none_or(|spans| spans.iter().any(|(first, last)| (*first..=*last).contains(&index)))
}

impl Intervention {
    /// A change of every element.
    pub fn of(change: Change) -> Self {
        Self { tokens: None, heads: None, dims: None, change }
    }
    /// The values that it takes from elsewhere.
    pub fn given(&self) -> Option<&Given> {
        match &self.change {
            Change::Add { given, .. } | Change::Set(given) => Some(given),
            Change::Zero | Change::Scale(_) => None,
        }
    }
    /// Which elements of a row of `width` it changes, in heads of `head_dim`; of scores, which of `width` heads. `None` is
    /// every one.
    pub fn columns(&self, layout: Layout, width: usize, head_dim: Option<usize>) -> Option<Vec<bool>> {
        let (heads, dims) = (self.heads.as_deref(), self.dims.as_deref());
        if layout.is_scores() {
            return heads.map(|heads| (0..width).map(|head| holds(Some(heads), head)).collect());
        }
        match (heads, head_dim) {
            (Some(heads), Some(of)) if of > 0 => Some((0..width).map(|i| holds(Some(heads), i / of) && holds(dims, i % of)).collect()),
            _ => dims.map(|dims| (0..width).map(|i| holds(Some(dims), i)).collect()),
        }
    }
    /// Whether it leaves every value as it is.
    pub(super) fn changes_nothing(&self) -> bool {
        match &self.change {
            Change::Scale(factor) => *factor == 1.0,
            Change::Add { given, factor } => *factor == 0.0 || given.tensor.data.iter().all(|x| *x == 0.0),
            Change::Zero | Change::Set(_) => false,
        }
    }
}

/// `0-3,7,9-`.
pub(super) fn spans(spans: &[Span]) -> String {
    let one = |(first, last): &Span| match last {
        _ if first == last => format!("{first}"),
        &usize::MAX => format!("{first}-"),
        last => format!("{first}-{last}"),
    };
    spans.iter().map(one).collect::<Vec<_>>().join(",")
}

/// As in `--set`, after the layers: `,token=3,head=0-1=scale:0.5`.
impl fmt::Display for Intervention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, chosen) in [("token", &self.tokens), ("head", &self.heads), ("dim", &self.dims)] {
            chosen.as_deref().map_or(Ok(()), |chosen| write!(f, ",{key}={}", spans(chosen)))?;
        }
        match &self.change {
            Change::Zero => f.write_str("=zero"),
            Change::Scale(factor) => write!(f, "=scale:{factor}"),
            Change::Add { given, factor } if *factor == 1.0 => write!(f, "={}", given.name),
            Change::Add { given, factor } => write!(f, "={}*{factor}", given.name),
            Change::Set(given) => write!(f, "={}", given.name),
        }
    }
}
