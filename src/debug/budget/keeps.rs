//! Formats of single matrices as the lines of a recipe: one format for most, exceptions by role, and by role and layer.

use crate::model::WeightRole;
use crate::plan::Plan;
use crate::quant::Format;
use crate::quant::recipe::{Recipe, choose};
use std::collections::BTreeMap;

/// The format of most elements, and the exceptions as `--keep` takes them, of which the first that matches decides.
pub fn keeps(plan: &Plan, formats: &[Option<Format>]) -> (Format, Vec<String>) {
    let matrices = || plan.weights.iter().zip(formats).filter_map(|(slot, format)| Some((slot, (*format)?)));
    let base = most(matrices().map(|(slot, format)| (format, slot.elements()))).unwrap_or(Format::F16);
    let plain = Recipe::uniform(base);
    let (mut single, mut of_roles) = (Vec::new(), Vec::new());
    for (role, name) in WeightRole::TABLE {
        let of_role = || matrices().filter(|(slot, _)| slot.role == role);
        let Some(usual) = most(of_role().map(|(slot, format)| (format, slot.elements()))) else { continue };
        for (slot, format) in of_role().filter(|(_, format)| *format != usual) {
            let layer = slot.layer.map_or(String::new(), |layer| format!("@{layer}"));
            single.push(format!("{name}{layer}={format}"));
        }
        let made = |slot: &crate::plan::WeightSlot| {
            choose(&plain, role, slot.layer, plan.num_layers, slot.shape.get(1).copied().unwrap_or(1)).format
        };
        if of_role().any(|(slot, _)| made(slot) != usual) {
            of_roles.push(format!("{name}={usual}"));
        }
    }
    (base, [single, of_roles].concat())
}

/// The format with most elements; of equals the smallest.
fn most(sizes: impl Iterator<Item = (Format, usize)>) -> Option<Format> {
    let mut sums: BTreeMap<Format, usize> = BTreeMap::new();
    sizes.for_each(|(format, elements)| *sums.entry(format).or_default() += elements);
    sums.into_iter().rev().max_by_key(|(_, elements)| *elements).map(|(format, _)| format)
}
