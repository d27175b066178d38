//! Which tensors a target has, in which formats, and where their rows come from.

use super::encode::{Item, Part, Turns};
use super::imatrix::Importance;
use crate::error::{Error, Result};
use crate::formats::TensorEntry;
use crate::formats::gguf::{Header, names};
use crate::loader::{Matched, Place, Placed, Rows, places};
use crate::model::{TensorNames, WeightRole};
use crate::plan::{Plan, WeightId, WeightSlot};
use crate::quant::recipe::{Choice, Recipe, choose};
use crate::quant::{Format, TABLE};
use std::collections::{BTreeMap, BTreeSet};

/// How tensors of a target are made.
pub(super) struct Wishes<'w> {
    pub recipe: &'w Recipe,
    pub importance: Option<&'w Importance>,
    /// Vectors that are stored in this format stay in it; all others become f32.
    pub vectors: Option<Format>,
    /// Heads of q and k, of so many rows, become neighbouring pairs.
    pub pairs: Option<usize>,
    /// Tables have two dimensions, not one of 1 between them.
    pub flat: bool,
    /// Added to the weights of norms.
    pub norms: f32,
    /// Multiplies queries, where the target's factor on q·k is another one: in the weights of their norm, or of their
    /// projection where there is none.
    pub queries: f32,
}

/// The tensors of a target, and what is to be said of them.
#[derive(Default)]
pub(super) struct Items {
    pub items: Vec<Item>,
    pub notes: Vec<String>,
}

/// Every weight of `plan` under the names of the target, in the order of the plan.
pub(super) fn of_plan(plan: &Plan, names: &TensorNames, prefix: &str, matched: &Matched, wishes: &Wishes) -> Result<Items> {
    let (mut list, mut by_name, mut notes) = (Vec::<Item>::new(), BTreeMap::new(), Notes::default());
    // Where the rows of each part begin, by item.
    let mut starts = Vec::<Vec<usize>>::new();
    let layers = plan.weights.iter().filter_map(|slot| slot.layer).max().map_or(0, |last| last + 1);
    let normed = plan.weights.iter().any(|slot| slot.role == WeightRole::QNorm);
    for ((slot, place), placed) in plan.weights.iter().zip(places(plan, names)?).zip(&matched.weights) {
        let chosen = chosen(slot, layers, wishes, placed)?;
        for (name, first, part) in parts(slot, &place, prefix, placed) {
            let at = *by_name.entry(name.clone()).or_insert(list.len());
            let Some(item) = list.get_mut(at) else {
                // That of a delta rule adds nothing, whatever others do.
                let norm = slot.role.name().ends_with("norm") && slot.role != WeightRole::DeltaNorm && !slot.bias;
                let paired = matches!(slot.role, WeightRole::QProj | WeightRole::KProj);
                let queries = slot.role == if normed { WeightRole::QNorm } else { WeightRole::QProj };
                starts.push(vec![first]);
                list.push(Item {
                    role: slot.role.name().to_owned() + if slot.bias { " bias" } else { "" },
                    layer: slot.layer,
                    importance: wishes.importance.map(|importance| importance.of(slot, &name, &place.shape)).transpose()?.flatten(),
                    format: chosen.format,
                    shape: table(&place, slot.role, wishes.flat),
                    parts: vec![part],
                    pairs: wishes.pairs.filter(|_| paired),
                    add: if norm { wishes.norms } else { 0.0 },
                    factor: if queries { wishes.queries } else { 1.0 },
                    name,
                });
                continue;
            };
            // Of weights that share a tensor, the one that needs most decides.
            if chosen.format.bits() > item.format.bits() {
                item.format = chosen.format;
            }
            if !item.role.split('+').any(|role| role == slot.role.name()) {
                item.role = format!("{}+{}", item.role, slot.role.name());
            }
            // A tensor that is copied as it lies has the rows of all that share it.
            let copied = place.is_spread() && matches!(part, Part::Stored(_));
            if let Some(starts) = starts.get_mut(at).filter(|_| !copied) {
                let place = starts.partition_point(|start| *start < first);
                starts.insert(place, first);
                item.parts.insert(place, part);
            }
        }
        notes.add(chosen, slot.role.name());
    }
    list.iter_mut().for_each(|item| join_turns(&mut item.parts));
    Ok(Items { items: list, notes: notes.sentences() })
}

/// Puts weights that take turns together, which follow each other.
fn join_turns(parts: &mut Vec<Part>) {
    let mut joined = Vec::<Part>::with_capacity(parts.len());
    for part in std::mem::take(parts) {
        match (joined.last_mut(), part) {
            (Some(Part::Turns(before)), Part::Turns(after)) if before.held() < before.all => before.weights.extend(after.weights),
            (_, part) => joined.push(part),
        }
    }
    *parts = joined;
}

/// Whether weights of a role are vectors, which some files have as tables.
fn is_vector(role: &WeightRole) -> bool {
    matches!(role, WeightRole::Conv | WeightRole::QNorm | WeightRole::KNorm)
}

/// The shape of a tensor: of a vector that is a table, that of the table.
fn table(place: &Place, role: WeightRole, flat: bool) -> Vec<usize> {
    let Some(columns) = place.columns else { return place.stored_shape() };
    let rows = place.shape.iter().product::<usize>() / columns.max(1);
    // The kernel of a convolution has a dimension for the channels that it joins, here one.
    if role == WeightRole::Conv && !flat { vec![rows, 1, columns] } else { vec![rows, columns] }
}

/// The tensors of the target that a weight is in, where its rows begin in each, and its rows of it. Experts have a tensor each, or are
/// in one, where each may have rows of several weights.
fn parts(slot: &WeightSlot, place: &Place, prefix: &str, placed: &Placed) -> Vec<(String, usize, Part)> {
    if place.is_spread() || place.making.is_some() {
        if let Some(whole) = placed.whole().filter(|_| placed.lies_as(place)) {
            return vec![(place.name(prefix), 0, Part::Stored(whole))];
        }
        let experts = slot.experts.unwrap_or(1);
        let all = place.shape.get(usize::from(slot.experts.is_some() && !place.is_split())).copied().unwrap_or(0);
        let one = |expert| {
            let weight = if slot.experts.is_some() { placed.of_expert(expert, experts) } else { placed.clone() };
            let (weights, transposed) = (vec![(weight, place.rows.start, place.order)], place.transposed);
            let turns = Turns { weights, all, transposed, making: place.making };
            (place.name(prefix), expert * all + place.rows.start, Part::Turns(turns))
        };
        return (0..experts).map(one).collect();
    }
    let first = place.rows.start;
    let of_all = place.shape.get(1).copied().unwrap_or(0);
    match slot.experts {
        Some(experts) if place.is_split() => {
            let one = |expert| (place.name_of(prefix, expert), first, Part::Stored(placed.of_expert(expert, experts)));
            (0..experts).map(one).collect()
        }
        Some(experts) if of_all != place.rows.len() => {
            let one = |expert| (place.name(prefix), expert * of_all + first, Part::Stored(placed.of_expert(expert, experts)));
            (0..experts).map(one).collect()
        }
        _ => vec![(place.name(prefix), first, Part::Stored(placed.clone()))],
    }
}

fn chosen(slot: &WeightSlot, layers: usize, wishes: &Wishes, placed: &Placed) -> Result<Choice> {
    let [_, columns] = slot.shape[..] else {
        let format = wishes.vectors.filter(|format| *format == placed.format).unwrap_or(Format::F32);
        return Ok(Choice { format, note: None });
    };
    writable(choose(wishes.recipe, slot.role, slot.layer, layers, columns))
}

/// Refuses formats that are only read.
pub(super) fn writable(choice: Choice) -> Result<Choice> {
    if choice.format.info().encode.is_some() {
        return Ok(choice);
    }
    let possible: Vec<&str> = TABLE.iter().filter(|row| row.encode.is_some()).map(|row| row.name).collect();
    Err(Error::unsupported(format!("{} can be read, not written (possible: {})", choice.format, possible.join(", "))))
}

/// Every tensor of a GGUF file under its own name, in its order. Matrices that the table of names knows get the recipe's
/// formats; what else there is stays as it is.
pub(super) fn of_gguf(header: &Header, wishes: &Wishes) -> Result<Items> {
    let (mut list, mut notes) = (Items::default(), Notes::default());
    let mut unknown = Vec::new();
    let names: BTreeSet<String> = header.tensors.iter().map(|tensor| names::of_first_layer(&tensor.name)).collect();
    let plain = names::plain(|name| header.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| &tensor.shape[..]));
    let has = |name: &str| names.contains(name) || (plain && name == names::GATE);
    let parsed: Vec<Option<(Vec<WeightRole>, Option<usize>)>> = header.tensors.iter().map(|tensor| roles(&tensor.name, &has)).collect();
    let layers = parsed.iter().flatten().filter_map(|(_, layer)| *layer).max().map_or(0, |last| last + 1);
    for (at, (tensor, found)) in header.tensors.iter().zip(parsed).enumerate() {
        let entry = tensor.entry();
        let stored = entry.dtype.format().ok_or_else(|| {
            Error::unsupported(format!("tensor `{}` is stored as {}, which Doppler cannot copy", entry.name, entry.dtype))
        })?;
        let (format, role, layer) = match (found, &entry.shape[..]) {
            (Some((roles, layer)), [_, .., columns]) if entry.name.ends_with(".weight") && !roles.iter().any(is_vector) => {
                let mut format = None::<Format>;
                for role in &roles {
                    let chosen = writable(choose(wishes.recipe, *role, layer, layers, *columns))?;
                    format = format.filter(|known| known.bits() >= chosen.format.bits()).or(Some(chosen.format));
                    notes.add(chosen, role.name());
                }
                let role = roles.iter().map(|role| role.name()).collect::<Vec<_>>().join("+");
                (format.unwrap_or(stored), role, layer)
            }
            (Some((roles, layer)), _) => {
                let bias = if entry.name.ends_with(".bias") { " bias" } else { "" };
                (stored, roles.iter().map(|role| role.name()).collect::<Vec<_>>().join("+") + bias, layer)
            }
            (None, _) => {
                unknown.push(entry.name.clone());
                (stored, "other".to_owned(), None)
            }
        };
        let placed = whole(at, &entry, stored)?;
        let importance =
            wishes.importance.map(|importance| importance.named(&entry.name, entry.shape.last().copied())).transpose()?.flatten();
        let (name, shape, parts) = (entry.name, entry.shape, vec![Part::Stored(placed)]);
        list.items.push(Item { name, role, layer, format, shape, parts, pairs: None, add: 0.0, factor: 1.0, importance });
    }
    list.notes = notes.sentences();
    if let Some(first) = unknown.iter().find(|name| !names::IGNORED.contains(&name.as_str())) {
        list.notes.push(format!("{} tensors that no recipe names, first `{first}`, are copied as they are", unknown.len()));
    }
    Ok(list)
}

/// The roles and the layer of a tensor, by the names of GGUF.
fn roles(name: &str, has: &impl Fn(&str) -> bool) -> Option<(Vec<WeightRole>, Option<usize>)> {
    let stem = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).filter(|_| !name.ends_with("ssm_dt.bias"));
    let stem = stem.or_else(|| names::is_whole(name).then_some(name))?;
    let layer = stem.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let template = match layer {
        Some(layer) => stem.replacen(&format!("blk.{layer}."), "blk.{layer}.", 1),
        None => stem.to_owned(),
    };
    let of: Vec<WeightRole> = WeightRole::TABLE
        .iter()
        .filter(|(_, role)| names::template(role, has).is_some_and(|(known, _)| known == template))
        .map(|(role, _)| *role)
        .collect();
    if of.is_empty() { None } else { Some((of, layer)) }
}

/// All rows of tensor `tensor` as they are. One of several leading sizes has as many rows as those make.
fn whole(tensor: usize, entry: &TensorEntry, format: Format) -> Result<Placed> {
    let (columns, rows) = match &entry.shape[..] {
        [rows @ .., columns] if !rows.is_empty() => (*columns, rows.iter().product()),
        one => (1, one.iter().product()),
    };
    let row_bytes = format.row_bytes(columns).ok_or_else(|| Error::weights(format!("tensor `{}`: no whole blocks", entry.name)))?;
    let (shape, bytes, source) = (entry.shape.clone(), entry.bytes(), Rows::Plain(entry.range.clone()));
    Ok(Placed { id: WeightId(0), tensor, format, band: None, shape, rows, row_bytes, bytes, source })
}

/// Notes of choices, with the weights of which the same is to be said.
#[derive(Default)]
struct Notes(BTreeMap<String, Vec<&'static str>>);

impl Notes {
    fn add(&mut self, choice: Choice, role: &'static str) {
        if let Some(note) = choice.note {
            self.0.entry(note).or_default().push(role);
        }
    }
    fn sentences(self) -> Vec<String> {
        let sentence = |(note, mut roles): (String, Vec<&'static str>)| {
            let count = roles.len();
            roles.sort_unstable();
            roles.dedup();
            format!("{} ({count} tensors): {note}", roles.join(", "))
        };
        self.0.into_iter().map(sentence).collect()
    }
}
