//! Interventions in a plan: which can be made of which value, and all of a plan's together.

use super::intervention::{Change, Given, Intervention, Span, spans};
use super::op::{Node, Op, Plan, ValueId};
use super::stage::Stage;
use crate::error::{Error, Result};
use crate::tensor::product;

/// Why `one` cannot be made at node `id`.
pub(super) fn refused(plan: &Plan, id: ValueId, one: &Intervention) -> std::result::Result<(), String> {
    let node = plan.node(id);
    if let (Op::Same, [of]) = (&node.op, &node.inputs[..]) {
        let source = plan.node(plan.source(*of)).at;
        return Err(format!("it is {source} under another name, and cannot be changed alone: change {source}"));
    }
    if let (Op::Append { .. }, [of]) = (&node.op, &node.inputs[..]) {
        return Err(format!("it is {} as the cache holds it: change {}", plan.node(*of).at, plan.node(*of).at));
    }
    let (heads, scores) = (plan.heads(id), node.at.stage.layout().is_scores());
    let row = match (&one.heads, plan.head_dim(id)) {
        _ if scores => usize::MAX,
        (Some(_), Some(head_dim)) => head_dim,
        _ => node.width,
    };
    let of_heads = heads.unwrap_or(0);
    if one.heads.is_some() && heads.is_none() {
        return Err("it is not made of heads".into());
    }
    for (what, spans, count) in [("token", &one.tokens, usize::MAX), ("head", &one.heads, of_heads), ("element", &one.dims, row)] {
        let Some(spans) = spans else { continue };
        if spans.is_empty() || spans.iter().any(|(first, last)| first > last) {
            return Err(format!("no {what} is chosen"));
        }
        let outside = |(first, last): &&Span| *first >= count || (*last >= count && *last != usize::MAX);
        if let Some((first, last)) = spans.iter().find(outside) {
            return Err(format!("it has {what}s 0 to {}, so there is no {what} {}", count.saturating_sub(1), last.max(first)));
        }
    }
    match &one.change {
        Change::Scale(factor) | Change::Add { factor, .. } if !factor.is_finite() => return Err("its factor is not finite".into()),
        _ => {}
    }
    one.given().map_or(Ok(()), |given| fits(one, given, node))
}

/// Whether `given` has every element that is chosen.
fn fits(one: &Intervention, given: &Given, node: &Node) -> std::result::Result<(), String> {
    let shape = &given.tensor.shape[..];
    let scores = node.at.stage.layout().is_scores();
    let good = match shape {
        [heads, _, _] => scores && *heads == node.width,
        [_, width] | [width] => !scores && *width == node.width,
        _ => false,
    };
    if !good {
        let expected = if scores { format!("[{}, tokens, positions]", node.width) } else { format!("[{0}] or [tokens, {0}]", node.width) };
        return Err(format!("{}: expected {expected}, found {shape:?}", given.name));
    }
    if given.tensor.data.is_empty() || product(shape.iter().copied()) != given.tensor.data.len() as u64 {
        return Err(format!("{}: its shape {shape:?} is not that of its {} numbers", given.name, given.tensor.data.len()));
    }
    let Some((first, last)) = given.tokens() else { return Ok(()) };
    let inside = |(a, b): &Span| (first..=last).contains(a) && (first..=last).contains(b);
    if !one.tokens.as_ref().is_some_and(|tokens| tokens.iter().all(inside)) {
        let chosen = one.tokens.as_deref().map_or("every token".into(), |tokens| format!("tokens {}", spans(tokens)));
        return Err(format!("{}: {chosen} should be set, but it has values of tokens {first} to {last} only", given.name));
    }
    // A token sees no position after its own.
    if scores && shape[2] <= last {
        return Err(format!("{}: it has {} positions, fewer than its tokens see", given.name, shape[2]));
    }
    Ok(())
}

impl Plan {
    /// Its interventions, by value.
    pub fn interventions(&self) -> Vec<(ValueId, Vec<Intervention>)> {
        let changed = self.nodes.iter().enumerate().filter(|(_, node)| !node.interventions.is_empty());
        changed.map(|(i, node)| (ValueId(i), node.interventions.clone())).collect()
    }
    /// Puts `interventions` in place of those that it has. Nothing is done where it breaks a rule of them.
    ///
    /// # Errors
    /// `Kind::Plan` for values that it lacks and what cannot be done to them.
    pub fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        for (id, list) in interventions {
            let Some(node) = self.nodes.get(id.0) else { return Err(Error::plan(format!("there is no value {}", id.0))) };
            list.iter().try_for_each(|one| refused(self, *id, one)).map_err(|rule| Error::plan(format!("{}: {rule}", node.at)))?;
        }
        self.nodes.iter_mut().for_each(|node| node.interventions.clear());
        interventions.iter().for_each(|(id, list)| self.nodes[id.0].interventions.clone_from(list));
        Ok(())
    }
    /// Without interventions: what its weights and buffers are for.
    pub fn unedited(&self) -> Plan {
        let mut plan = self.clone();
        plan.nodes.iter_mut().for_each(|node| node.interventions.clear());
        plan
    }
    /// Its interventions in the words of `--set`, those of several layers together: `ffn_out@0-3,7,token=5=zero`.
    pub fn edited(&self) -> Vec<String> {
        let mut found: Vec<(Stage, String, Vec<usize>)> = Vec::new();
        for node in &self.nodes {
            for one in &node.interventions {
                let text = one.to_string();
                match found.iter_mut().find(|(stage, known, _)| *stage == node.at.stage && *known == text) {
                    Some((_, _, layers)) => layers.extend(node.at.layer),
                    None => found.push((node.at.stage, text, node.at.layer.into_iter().collect())),
                }
            }
        }
        let line = |(stage, text, layers): (Stage, String, Vec<usize>)| {
            let mut of: Vec<Span> = Vec::new();
            for layer in layers {
                match of.last_mut() {
                    Some((_, last)) if *last + 1 == layer => *last = layer,
                    _ => of.push((layer, layer)),
                }
            }
            let layers = if of.is_empty() { String::new() } else { format!("@{}", spans(&of)) };
            format!("{stage}{layers}{text}")
        };
        found.into_iter().map(line).collect()
    }
}
