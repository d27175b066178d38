//! A plan's weight slots against the tensors of a checkpoint. Everything that does not fit is reported at once.

use super::packed::{Finder, Found, Matrix};
use super::places::{Place, of_files, places};
use super::problems::Problems;
use super::rows::{Placed, Rows, Spread};
use crate::error::{Error, Result};
use crate::formats::{TensorEntry, TensorIndex};
use crate::model::{Quantised, TensorNames, WeightRole};
use crate::plan::{Plan, WeightId, WeightSlot};
use crate::quant::Format;
use crate::tensor::{DType, product};
use std::collections::{BTreeSet, HashSet};
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

impl Matched {
    /// Bytes that are read for all weights.
    pub fn bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.bytes).sum()
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
/// One `Kind::Weights` error listing every tensor that is missing, has another shape or an element type that weights
/// cannot have, or has no place in the plan and is not in `names.ignored`; `Kind::Plan` when `names` does not say
/// where a weight is.
pub fn match_slots(plan: &Plan, names: &TensorNames, index: &TensorIndex, allow_extra: bool) -> Result<Matched> {
    let lookup = Lookup { index, base: names.prefixes.first().map_or("", String::as_str) };
    let names = &of_files(plan, names, |name| lookup.has(name));
    let places = places(plan, names)?;
    let prefix = choose_prefix(plan, &places, names, &lookup);
    let full = |name: &str| name.replace("{prefix}", &prefix);
    let heads = find_heads(names, &lookup, &full);
    let head = heads.first().copied();
    // A tied plan has no slot for the head. Its tensor may be stored nevertheless, even in place of the embedding.
    let tied = plan.weights.iter().all(|slot| slot.role != WeightRole::Head || slot.bias);
    let stand_in = |role: WeightRole| match role {
        WeightRole::Head => head,
        WeightRole::Embed => head.filter(|_| tied),
        _ => None,
    };

    let (mut weights, mut problems) = (Vec::with_capacity(plan.weights.len()), Problems::default());
    let finder = names.packing.as_ref().map(|packing| Finder::new(packing, index));
    let mut decoded = Decoded::default();
    let (mut used, mut head_copy) = (vec![false; index.entries().len()], None);
    let mut copies: BTreeSet<usize> = heads.iter().skip(1).copied().collect();
    problems.is_packed = finder.is_some();
    // Modules of packed weights of which something was said: what else they have says nothing more.
    let mut told = HashSet::new();
    for (i, (slot, at)) in plan.weights.iter().zip(&places).enumerate() {
        let name = at.name(&prefix);
        if let Some(experts) = slot.experts {
            let of = OfExperts { id: WeightId(i), slot, at, prefix: &prefix, index, finder: finder.as_ref() };
            weights.extend(of.placed(experts, &mut used, &mut problems, &mut decoded));
            continue;
        }
        match finder.as_ref().filter(|_| !slot.bias).map_or(Found::Plain, |finder| finder.find(&name, at)) {
            Found::Plain => {}
            Found::Wrong(misfits) => {
                told.extend(name.strip_suffix(".weight").map(str::to_string));
                problems.extend(misfits);
                continue;
            }
            Found::Matrix { matrix, tensor, why } => {
                matrix.parts.iter().for_each(|part| used[*part] = true);
                let packed = packed(WeightId(i), tensor, at, *matrix, index);
                decoded.count(why, &packed);
                weights.push(packed);
                continue;
            }
        }
        let found = lookup.all(&name, !at.tensor.contains("{prefix}"));
        copies.extend(found.iter().skip(1));
        let found = found.first().copied();
        if let (WeightRole::Embed, true, Some(table), Some(head)) = (slot.role, tied, found, head) {
            head_copy = Some((head, table));
        }
        let Some(tensor) = found.or_else(|| stand_in(slot.role).filter(|_| !slot.bias)) else {
            problems.missing(slot.role, at, name);
            continue;
        };
        used[tensor] = true;
        let entry = &index.entries()[tensor];
        if let Some(format) = problems.check(at, entry) {
            let pairs = names.neighbours.filter(|_| matches!(slot.role, WeightRole::QProj | WeightRole::KProj));
            let placed = placed(WeightId(i), tensor, (at, 0..at.height()), entry, format, pairs);
            weights.extend(placed.map(|placed| match at.making {
                None => placed,
                Some(making) => {
                    let made = placed.made(making);
                    decoded.count(making.why(format), &made);
                    made
                }
            }));
        }
    }
    if let Some(head) = head {
        used[head] = true;
    }
    copies.retain(|copy| !used[*copy]);
    let (mut ignored, mut extra) = (Vec::new(), Vec::new());
    for (at, entry) in index.entries().iter().enumerate().filter(|(at, _)| !used[*at]) {
        let part = |part: &String| entry.name.starts_with(&full(part)) || entry.name.ends_with(part.as_str());
        let of_module = || entry.name.match_indices('.').any(|(at, _)| told.contains(&entry.name[..at]));
        if !told.is_empty() && !entry.name.ends_with(".bias") && of_module() {
            continue;
        }
        let goes_with = finder.is_some() && Finder::unused(&entry.name);
        // A tensor without elements can change nothing.
        if goes_with
            || copies.contains(&at)
            || entry.shape.contains(&0)
            || names.ignored.iter().any(part)
            || BUFFERS.iter().any(|end| entry.name.ends_with(end))
        {
            ignored.push(entry.name.clone());
        } else if allow_extra {
            extra.push(entry.name.clone());
        } else {
            problems.extra(entry);
        }
    }
    problems.into_result(&prefix)?;
    let notes = [unused_note(&extra), copies_note(&copies, index)].into_iter().flatten();
    let notes = notes.chain(decoded.notes()).chain(doubles(&weights, index)).collect();
    ignored.append(&mut extra);
    Ok(Matched { weights, prefix, head_copy, ignored, notes })
}

/// Holds a claim of config.json that weights are packed against the tensors that there are. A claim that is wrong is a
/// leftover which other programs would trust; where the caller allows it, or transformers does not read its key, it is a note.
///
/// # Errors
/// `Kind::Config` when all tensors are plain; `Kind::Unsupported` when they are packed in a way that is not read.
pub fn check_claim(claim: Option<&Quantised>, index: &TensorIndex) -> Result<Option<String>> {
    let Some(Quantised { key, method, problem, allowed }) = claim else { return Ok(None) };
    let mut types = Vec::new();
    for entry in index.entries() {
        match entry.dtype.known() {
            Some(dtype @ (DType::F32 | DType::F16 | DType::BF16)) if !types.contains(&dtype.name()) => types.push(dtype.name()),
            Some(DType::F32 | DType::F16 | DType::BF16) => {}
            _ => {
                let refused = |problem: &String| {
                    Error::unsupported(format!("the checkpoint is packed ({method}): {problem}; use the unquantised model"))
                };
                return problem.as_ref().map_or(Ok(None), |problem| Err(refused(problem)));
            }
        }
    }
    let types = types.join("+");
    // Of all keys of packed weights this is the one that transformers reads.
    let is_read = key.ends_with("quantization_config");
    if *allowed || !is_read {
        let others = if is_read { "" } else { ", as in transformers, which does not read that key" };
        return Ok(Some(format!("config.json: `{key}` claims {method} weights, but all are plain {types}; it is passed over{others}")));
    }
    let hint = "remove the key from config.json, or give --allow-unknown-config";
    Err(Error::config(key, format!("claims {method} weights, but every weight of the checkpoint is plain {types}: {hint}")))
}

/// Tensors by name, where all names may begin with the base model's prefix once more than they should, or lack it, each by
/// itself: transformers takes them off or puts them before where that gives a name that the model has.
struct Lookup<'a> {
    index: &'a TensorIndex,
    /// `model.`; empty where there is none.
    base: &'a str,
}

impl Lookup<'_> {
    /// The tensors that may be meant by `name`, which in the model begins with the prefix or `is_outside` it. The first one counts:
    /// transformers takes them in the order of their names.
    fn all(&self, name: &str, is_outside: bool) -> Vec<usize> {
        if self.base.is_empty() {
            return self.index.find(name).into_iter().collect();
        }
        let bare = if is_outside { name } else { name.trim_start_matches(self.base) };
        let most = if is_outside { 1 } else { 2 };
        let mut names: Vec<String> = (0..=most).map(|times| self.base.repeat(times) + bare).collect();
        names.sort_unstable();
        names.iter().filter_map(|name| self.index.find(name)).collect()
    }
    /// Whether there is one for a name that begins with the prefix.
    fn has(&self, name: &str) -> bool {
        !self.all(name, false).is_empty()
    }
}

/// The head's tensors under its own name, or with a prefix of the checkpoint's before it: exports of multimodal models put
/// it within the language model. The first one counts.
fn find_heads(names: &TensorNames, lookup: &Lookup, full: &dyn Fn(&str) -> String) -> Vec<usize> {
    let Some((_, name)) = names.names.iter().find(|(role, _)| *role == WeightRole::Head) else { return Vec::new() };
    let plain = full(&format!("{}.weight", name.template));
    let mut found = lookup.all(&plain, !name.template.contains("{prefix}"));
    let prefixes = names.prefixes.iter().flat_map(|p| [p.as_str(), p.strip_suffix("model.").unwrap_or(p)]);
    for tensor in prefixes.filter_map(|prefix| lookup.index.find(&format!("{prefix}{plain}"))) {
        if !found.contains(&tensor) {
            found.push(tensor);
        }
    }
    found
}

/// The first candidate under which the embedding exists; else the one under which most tensors do.
fn choose_prefix(plan: &Plan, places: &[Place], names: &TensorNames, lookup: &Lookup) -> String {
    // All names may begin with it once more.
    let doubled = Some(lookup.base.repeat(2)).filter(|prefix| !prefix.is_empty());
    let candidates: Vec<&String> = names.prefixes.iter().chain(&doubled).collect();
    let exists = |prefix: &String, place: &Place| lookup.index.find(&place.name(prefix)).is_some();
    let table = plan.weights.iter().position(|slot| slot.role == WeightRole::Embed).map(|i| &places[i]);
    let first = candidates.iter().find(|p| table.is_some_and(|place| exists(p, place)));
    let count = |p: &&&String| places.iter().filter(|place| exists(p, place)).count();
    // Of equals the first: `max_by_key` would take the last.
    let most = || candidates.iter().rev().max_by_key(count);
    first.or_else(most).map(|prefix| (*prefix).clone()).unwrap_or_default()
}

/// A weight of experts, being found.
struct OfExperts<'a> {
    id: WeightId,
    slot: &'a WeightSlot,
    at: &'a Place,
    prefix: &'a str,
    index: &'a TensorIndex,
    finder: Option<&'a Finder<'a>>,
}

impl OfExperts<'_> {
    /// Its place; `None` where `problems` has more afterwards.
    fn placed(&self, experts: usize, used: &mut [bool], problems: &mut Problems, decoded: &mut Decoded) -> Option<Placed> {
        let found: Vec<Placed> = if self.at.is_split() {
            (0..experts).filter_map(|expert| self.of_one(expert, used, problems, decoded)).collect()
        } else {
            self.in_one(experts, used, problems)?
        };
        let first = found.first().filter(|_| found.len() == experts)?.clone();
        if let Some(other) = found.iter().find(|one| one.format != first.format) {
            let name = &self.index.entries()[other.tensor].name;
            problems.differs(name.clone(), first.format, other.format);
            return None;
        }
        let shape = self.slot.shape.clone();
        let (rows, bytes) = (self.slot.shape.first().copied()?, found.iter().map(|one| one.bytes).sum());
        let source = match whole(&found) {
            Some(range) => Rows::Plain(range),
            None => Rows::Experts(found),
        };
        Some(Placed { rows, bytes, shape, band: None, source, ..first })
    }
    /// That of one expert, which has a tensor of its own.
    fn of_one(&self, expert: usize, used: &mut [bool], problems: &mut Problems, decoded: &mut Decoded) -> Option<Placed> {
        let name = self.at.name_of(self.prefix, expert);
        match self.finder.filter(|_| !self.slot.bias).map_or(Found::Plain, |finder| finder.find(&name, self.at)) {
            Found::Plain => {}
            Found::Wrong(misfits) => {
                problems.extend(misfits);
                return None;
            }
            Found::Matrix { matrix, tensor, why } => {
                matrix.parts.iter().for_each(|part| used[*part] = true);
                let packed = packed(self.id, tensor, self.at, *matrix, self.index);
                decoded.count(why, &packed);
                return Some(packed);
            }
        }
        let Some(tensor) = self.index.find(&name) else {
            problems.missing(self.slot.role, self.at, name);
            return None;
        };
        used[tensor] = true;
        let entry = &self.index.entries()[tensor];
        placed(self.id, tensor, (self.at, 0..self.at.height()), entry, problems.check(self.at, entry)?, None)
    }
    /// Those of all experts in one tensor.
    fn in_one(&self, experts: usize, used: &mut [bool], problems: &mut Problems) -> Option<Vec<Placed>> {
        let name = self.at.name(self.prefix);
        match self.finder.filter(|_| !self.slot.bias).map_or(Found::Plain, |finder| finder.find_experts(&name, self.at)) {
            Found::Plain => {}
            Found::Wrong(misfits) => {
                problems.extend(misfits);
                return None;
            }
            Found::Matrix { matrix, tensor, .. } => {
                matrix.parts.iter().for_each(|part| used[*part] = true);
                let place = Place { shape: self.at.shape.get(1..)?.to_vec(), ..self.at.clone() };
                let of = |expert| packed(self.id, tensor, &place, matrix.of_expert(expert, experts), self.index);
                return Some((0..experts).map(of).collect());
            }
        }
        let Some(tensor) = self.index.find(&name) else {
            problems.missing(self.slot.role, self.at, name);
            return None;
        };
        used[tensor] = true;
        let entry = &self.index.entries()[tensor];
        let format = problems.check(self.at, entry)?;
        // As the rows of one matrix.
        let [_, of_one, rest @ ..] = &self.at.shape[..] else { return None };
        let shape: Vec<usize> = std::iter::once(experts.checked_mul(*of_one)?).chain(rest.iter().copied()).collect();
        let place = |expert: usize| {
            let first = expert * of_one;
            let rows = first + self.at.rows.start..first + self.at.rows.end;
            let place = Place { rows, shape: shape.clone(), ..self.at.clone() };
            placed(self.id, tensor, (&place, first..first + of_one), entry, format, None)
        };
        (0..experts).map(place).collect()
    }
}

/// What is said of tensors that the caller allows to have no place.
fn unused_note(extra: &[String]) -> Option<String> {
    let (first, count) = (extra.first()?, extra.len());
    let (tensors, have, are) = if count == 1 { ("tensor", "has", "is") } else { ("tensors", "have", "are") };
    Some(format!("{count} {tensors} of the checkpoint, first `{first}`, {have} no place in the model of config.json and {are} not used"))
}

/// What is said of tensors that are the same weight as another one, by their names.
fn copies_note(copies: &BTreeSet<usize>, index: &TensorIndex) -> Option<String> {
    let (name, count) = (&index.entries()[*copies.first()?].name, copies.len());
    let (tensors, differ) = if count == 1 { ("tensor", "differs") } else { ("tensors", "differ") };
    Some(format!(
        "{count} {tensors} of the checkpoint, first `{name}`, {differ} from another one only by how often the name begins with the base model's prefix: the other one is used, as in transformers"
    ))
}

/// What is said of weights in f64, if there are any.
fn doubles(weights: &[Placed], index: &TensorIndex) -> Option<String> {
    let of_f64: Vec<&Placed> = weights.iter().filter(|weight| weight.format == Format::F64).collect();
    let first = &index.entries()[of_f64.first()?.tensor].name;
    Some(format!("{} weights, first `{first}`, are f64: each number is rounded to f32 when it is read", of_f64.len()))
}

/// The bytes of all places, where they lie one after the other in one tensor.
fn whole(places: &[Placed]) -> Option<Range<u64>> {
    let mut all: Option<(usize, Range<u64>)> = None;
    for place in places {
        let Rows::Plain(range) = &place.source else { return None };
        all = Some(match all {
            None => (place.tensor, range.clone()),
            Some((tensor, before)) if tensor == place.tensor && before.end == range.start => (tensor, before.start..range.end),
            Some(_) => return None,
        });
    }
    all.map(|(_, range)| range)
}

/// Packed matrices that are not kept packed.
#[derive(Default)]
struct Decoded {
    /// Why; how many; their bytes as stored, and as they become.
    causes: Vec<(String, usize, u64, u64)>,
}

impl Decoded {
    fn count(&mut self, why: Option<String>, weight: &Placed) {
        let Some(why) = why else { return };
        let bytes = product([weight.rows, weight.row_bytes]);
        match self.causes.iter_mut().find(|(known, ..)| *known == why) {
            Some((_, count, stored, decoded)) => (*count, *stored, *decoded) = (*count + 1, *stored + weight.bytes, *decoded + bytes),
            None => self.causes.push((why, 1, weight.bytes, bytes)),
        }
    }
    fn notes(self) -> impl Iterator<Item = String> {
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        self.causes.into_iter().map(move |(why, count, stored, decoded)| {
            let of = if count == 1 { "1 packed matrix is".to_string() } else { format!("{count} packed matrices are") };
            format!("{of} decoded to f32 as they are read, {} become {}: {why}", megabytes(stored), megabytes(decoded))
        })
    }
}

/// The band of a packed matrix at `place`.
fn packed(id: WeightId, tensor: usize, place: &Place, matrix: Matrix, index: &TensorIndex) -> Placed {
    let rows = place.rows.clone();
    let band = (place.shape.first() != Some(&rows.len())).then(|| rows.clone());
    let row_bytes = matrix.format.row_bytes(place.shape[1..].iter().product()).unwrap_or(0);
    let bytes = matrix.reads(index.entries()).iter().map(|(_, range)| range.end - range.start).sum();
    let (format, shape) = (matrix.format, place.shape.clone());
    Placed { id, tensor, format, band, shape, rows: rows.len(), row_bytes, bytes, source: Rows::Packed(Box::new(matrix)) }
}

/// The band of `entry` at `place`, which it fits, with the rows of the matrix that it is of; with `pairs`, its rows are stored as those
/// of heads of so many rows.
fn placed(
    id: WeightId,
    tensor: usize,
    (place, matrix): (&Place, Range<usize>),
    entry: &TensorEntry,
    format: Format,
    pairs: Option<usize>,
) -> Option<Placed> {
    let rows = place.rows.clone();
    // The shape fits the entry's bytes, so these products cannot overflow.
    let row_bytes = format.row_bytes(place.shape[1..].iter().product())?;
    let at = |row: usize| entry.range.start + row as u64 * row_bytes as u64;
    let band = (place.shape.first() != Some(&rows.len())).then(|| rows.clone());
    let range = at(rows.start)..at(rows.end);
    let (shape, bytes) = (place.shape.clone(), range.end - range.start);
    let source = match pairs {
        _ if place.is_spread() => {
            // Elements are counted in plain tensors, and blocks are never taken apart.
            let (first, element) = (rows.start - matrix.start, format.row_bytes(1).unwrap_or(0));
            let before = at(matrix.start).saturating_sub(entry.range.start) / element.max(1) as u64;
            let spread = Spread { first, order: place.order, all: matrix.len(), before, element, transposed: place.transposed };
            Rows::Spread(at(matrix.start)..at(matrix.end), spread)
        }
        Some(head) => Rows::Pairs(range, head),
        None => Rows::Plain(range),
    };
    Some(Placed { id, tensor, format, band, shape, rows: rows.len(), row_bytes, bytes, source })
}
