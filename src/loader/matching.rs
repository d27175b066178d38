//! A plan's weight slots against the tensors of a checkpoint. Everything that does not fit is reported at once.

use super::places::{Place, places};
use super::problems::Problems;
use crate::error::{Error, Result};
use crate::formats::{TensorEntry, TensorIndex};
use crate::model::{Quantised, TensorNames, WeightRole};
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use crate::tensor::DType;
use std::ops::Range;

/// Where every weight of a plan is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// One per slot, in the plan's order.
    pub weights: Vec<Placed>,
    /// What `{prefix}` stands for in this checkpoint.
    pub prefix: String,
    /// A head stored although it is tied, and the embedding: positions in the index of tensors that must be equal.
    pub head_copy: Option<(usize, usize)>,
    /// Tensors that are not used: of parts that Doppler does not run, buffers, and what the caller allowed.
    pub ignored: Vec<String>,
    /// What was passed over although it could matter.
    pub notes: Vec<String>,
}

/// One weight's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The slot.
    pub id: WeightId,
    /// Position in the index of tensors.
    pub tensor: usize,
    /// How its bytes mean numbers.
    pub format: Format,
    /// Rows of that tensor, if the weight has not all of them.
    pub band: Option<Range<usize>>,
    /// Rows; a vector has one per element.
    pub rows: usize,
    /// Bytes of one row.
    pub row_bytes: usize,
    /// Bytes within the tensor's file.
    pub range: Range<u64>,
    /// Rows of each head, of so many rows, are stored as neighbouring pairs; readers put them into the order of the role.
    pub neighbours: Option<usize>,
}

impl Matched {
    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.range.end - w.range.start).sum()
    }
    /// Format of every slot, in the plan's order.
    pub fn formats(&self) -> Vec<Format> {
        self.weights.iter().map(|w| w.format).collect()
    }
}

/// Ends of the names of tensors that are no weights: tables and masks that old checkpoints store.
const BUFFERS: [&str; 6] =
    ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "position_ids", "masked_bias", "self_attn.bias"];

/// Finds every weight of `plan` among the tensors of `index`, which are called as `names` says. With `allow_extra`,
/// tensors without a place in the plan (a value head, more layers than the config has) are passed over with a note.
///
/// # Errors
/// One `Kind::Weights` error listing every tensor that is missing, has another shape or an element type other than
/// f32, f16 and bf16, or has no place in the plan and is not in `names.ignored`; `Kind::Plan` when `names` does not say
/// where a weight is.
pub fn match_slots(plan: &Plan, names: &TensorNames, index: &TensorIndex, allow_extra: bool) -> Result<Matched> {
    let places = places(plan, names)?;
    let prefix = choose_prefix(plan, &places, names, index);
    let full = |name: &str| name.replace("{prefix}", &prefix);
    let head = find_head(names, index, &full);
    // A tied plan has no slot for the head. Its tensor may be stored nevertheless, even in place of the embedding.
    let tied = plan.weights.iter().all(|slot| slot.role != WeightRole::Head);
    let stand_in = |role: WeightRole| match role {
        WeightRole::Head => head,
        WeightRole::Embed => head.filter(|_| tied),
        _ => None,
    };

    let (mut weights, mut problems) = (Vec::with_capacity(plan.weights.len()), Problems::default());
    let (mut used, mut head_copy) = (vec![false; index.entries().len()], None);
    for (i, (slot, at)) in plan.weights.iter().zip(&places).enumerate() {
        let name = at.name(&prefix);
        let found = index.find(&name);
        if let (WeightRole::Embed, true, Some(table), Some(head)) = (slot.role, tied, found, head) {
            head_copy = Some((head, table));
        }
        let Some(tensor) = found.or_else(|| stand_in(slot.role)) else {
            problems.missing(slot.role, at, name);
            continue;
        };
        used[tensor] = true;
        let entry = &index.entries()[tensor];
        if let Some(format) = problems.check(at, entry) {
            let pairs = names.neighbours.filter(|_| matches!(slot.role, WeightRole::QProj | WeightRole::KProj));
            weights.extend(placed(WeightId(i), tensor, at, entry, format).map(|found| Placed { neighbours: pairs, ..found }));
        }
    }
    if let Some(head) = head {
        used[head] = true;
    }
    let (mut ignored, mut extra) = (Vec::new(), Vec::new());
    for (entry, _) in index.entries().iter().zip(used).filter(|(_, used)| !used) {
        let part = |part: &String| entry.name.starts_with(&full(part)) || entry.name.ends_with(part.as_str());
        if names.ignored.iter().any(part) || BUFFERS.iter().any(|end| entry.name.ends_with(end)) {
            ignored.push(entry.name.clone());
        } else if allow_extra {
            extra.push(entry.name.clone());
        } else {
            problems.extra(entry);
        }
    }
    problems.into_result(&prefix)?;
    let note = extra.first().map(|first| {
        let count = extra.len();
        let (tensors, have) = if count == 1 { ("tensor", "has") } else { ("tensors", "have") };
        format!("{count} {tensors} of the checkpoint, first `{first}`, {have} no place in the model of config.json and are not used")
    });
    ignored.append(&mut extra);
    Ok(Matched { weights, prefix, head_copy, ignored, notes: note.into_iter().collect() })
}

/// Holds a claim of config.json that weights are packed against the tensors that there are. Doppler reads no packed ones,
/// and a claim that is wrong is a leftover which other programs would trust.
///
/// # Errors
/// `Kind::Config` when all tensors are plain; `Kind::Unsupported` when they are packed.
pub fn check_claim(claim: Option<&Quantised>, index: &TensorIndex) -> Result<()> {
    let Some(Quantised { key, method }) = claim else { return Ok(()) };
    let mut types = Vec::new();
    for entry in index.entries() {
        match entry.dtype.known() {
            Some(dtype @ (DType::F32 | DType::F16 | DType::BF16)) if !types.contains(&dtype.name()) => types.push(dtype.name()),
            Some(DType::F32 | DType::F16 | DType::BF16) => {}
            _ => {
                let message = format!("quantised Hugging Face checkpoints are not supported ({method}); use the unquantised model");
                return Err(Error::unsupported(format!("config key `{key}`: {message}")));
            }
        }
    }
    let types = types.join("+");
    let hint = "remove the key from config.json, or give --allow-unknown-config";
    Err(Error::config(key, format!("claims {method} weights, but every weight of the checkpoint is plain {types}: {hint}")))
}

/// The head's tensor under its own name, or with a prefix of the checkpoint's before it: exports of multimodal models put
/// it within the language model.
fn find_head(names: &TensorNames, index: &TensorIndex, full: &dyn Fn(&str) -> String) -> Option<usize> {
    let (_, name) = names.names.iter().find(|(role, _)| *role == WeightRole::Head)?;
    let plain = full(&format!("{}.weight", name.template));
    let prefixes = names.prefixes.iter().flat_map(|p| [p.as_str(), p.strip_suffix("model.").unwrap_or(p)]);
    std::iter::once("").chain(prefixes).find_map(|prefix| index.find(&format!("{prefix}{plain}")))
}

/// The first candidate under which the embedding exists; else the one under which most tensors do.
fn choose_prefix(plan: &Plan, places: &[Place], names: &TensorNames, index: &TensorIndex) -> String {
    let exists = |prefix: &String, place: &Place| index.find(&place.name(prefix)).is_some();
    let table = plan.weights.iter().position(|slot| slot.role == WeightRole::Embed).map(|i| &places[i]);
    let first = names.prefixes.iter().find(|p| table.is_some_and(|place| exists(p, place)));
    let count = |p: &&String| places.iter().filter(|place| exists(p, place)).count();
    // Of equals the first: `max_by_key` would take the last.
    let most = || names.prefixes.iter().rev().max_by_key(count);
    first.or_else(most).cloned().unwrap_or_default()
}

/// The band of `entry` at `place`, which it fits.
fn placed(id: WeightId, tensor: usize, place: &Place, entry: &TensorEntry, format: Format) -> Option<Placed> {
    let rows = place.rows.clone();
    // The shape fits the entry's bytes, so these products cannot overflow.
    let row_bytes = format.row_bytes(place.shape[1..].iter().product())?;
    let at = |row: usize| entry.range.start + row as u64 * row_bytes as u64;
    let band = (place.shape.first() != Some(&rows.len())).then(|| rows.clone());
    Some(Placed { id, tensor, format, band, rows: rows.len(), row_bytes, range: at(rows.start)..at(rows.end), neighbours: None })
}
