//! Which values of two dumps belong together: the same tokens, the same widths, and what one side lacks.

use super::{Missing, NotJudged};
use crate::debug::dump::{Dump, order};
use crate::error::{Error, Result};
use crate::plan::{At, Plan, Stage};
use std::collections::BTreeMap;

/// What two sides have in common.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Align {
    /// What A and B are, in words.
    pub names: [String; 2],
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens whose values are compared: the prompt and what was generated alike.
    pub tokens: usize,
    /// Values that both have, in the order of computation.
    pub both: Vec<At>,
    /// Values that one side lacks.
    pub missing: Vec<Missing>,
    /// What there is to know.
    pub notes: Vec<String>,
    /// Values of A that B was given, in words.
    pub injected: Vec<String>,
    /// What the comparison covers.
    pub covers: Vec<String>,
    /// What was left out although nobody asked for that.
    pub not_judged: Vec<NotJudged>,
}

/// Which values are compared; everything by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Choice {
    /// Only these stages.
    pub stages: Option<Vec<Stage>>,
    /// Only these layers, and what is outside layers.
    pub layers: Option<Vec<usize>>,
}

impl Choice {
    /// What was named must be among `held`.
    pub(super) fn check<'a>(&self, held: impl Iterator<Item = &'a At> + Clone, nobody: &str) -> Result<()> {
        if let Some(stage) = self.stages.iter().flatten().find(|stage| !held.clone().any(|at| at.stage == **stage)) {
            return Err(Error::invalid("stages", format!("{nobody} `{stage}`")));
        }
        if let Some(layer) = self.layers.iter().flatten().find(|layer| !held.clone().any(|at| at.layer == Some(**layer))) {
            return Err(Error::invalid("layers", format!("{nobody} a layer {layer}")));
        }
        Ok(())
    }
    /// Whether a value is chosen.
    pub fn has(&self, at: At) -> bool {
        self.stages.as_ref().is_none_or(|s| s.contains(&at.stage))
            && at.layer.is_none_or(|layer| self.layers.as_ref().is_none_or(|l| l.contains(&layer)))
    }
}

/// What `reference` has of a value: itself or, of what is cached, what was appended, which differs by its storage alone.
pub fn held_as(reference: &Dump, plan: &Plan, at: At) -> At {
    if !at.stage.is_cached() || !reference.parts(at).is_empty() {
        return at;
    }
    let appended = plan.find(at).and_then(|id| plan.node(id).inputs.first());
    appended.map_or(at, |id| plan.node(*id).at)
}

/// Lays `a` beside `b`. With `plan`, values come in its order.
///
/// # Errors
/// `Kind::Invalid` for dumps of different prompts, widths or layers, and where nothing is left to compare.
pub fn align(a: &Dump, b: &Dump, names: [String; 2], plan: Option<&Plan>, choice: &Choice) -> Result<Align> {
    let (prompt, ids_b) = (a.input_ids()?, b.input_ids()?);
    same_prompt(&prompt, &ids_b, &names)?;
    let (held_a, held_b) = (a.held(), b.held());
    choice.check(held_a.iter().chain(&held_b), "neither side has")?;
    let chosen = |held: &[At]| held.iter().copied().filter(|at| choice.has(*at)).collect::<Vec<At>>();
    let (chosen_a, chosen_b) = (chosen(&held_a), chosen(&held_b));
    same_layers(&chosen_a, &chosen_b, choice, &names)?;
    let mut both: Vec<At> = chosen_a.iter().copied().filter(|at| chosen_b.contains(at)).collect();
    let place = |at: At| plan.and_then(|plan| plan.find(at)).map_or(usize::MAX, |id| id.0);
    both.sort_by_key(|at| (place(*at), order(*at)));
    let mut missing = absent(&chosen_a, &chosen_b, "B");
    missing.extend(absent(&chosen_b, &chosen_a, "A"));
    // A side that shows nothing of caches lacks nothing else: what was appended is compared.
    let shows = |held: &[At]| held.iter().any(|at| at.stage.is_cached());
    let cached = |missing: &Missing| Stage::parse(missing.stage).is_ok_and(Stage::is_cached);
    missing.retain(|one| !cached(one) || shows(if one.side == "A" { &chosen_a } else { &chosen_b }));
    let mut notes = Vec::new();
    if !missing.is_empty() {
        notes.push("one side lacks stages; to compare certain ones only, choose them by name (stages)".to_string());
    }
    if both.is_empty() {
        let has = |held: &[At]| held.first().map_or("no values".to_string(), |at| format!("`{}` and more", at.key()));
        let text = format!("there is no value that both sides have: A has {}, B has {}", has(&chosen_a), has(&chosen_b));
        return Err(Error::invalid("compare", text));
    }
    let mut align = Align { names, prompt: prompt.len(), both, missing, notes, ..Align::default() };
    same_widths(a, b, &align)?;
    limit(a, b, &mut align)?;
    whole(a, "A", &align)?;
    whole(b, "B", &align)?;
    let steps = |dump: &Dump, at: At| dump.parts(at).iter().map(|part| part.step).collect::<Vec<usize>>();
    let scores = |at: &&At| at.stage.layout().is_scores();
    if let Some(at) = align.both.iter().filter(scores).find(|at| steps(a, **at) != steps(b, **at)) {
        align.notes.push(format!("one side lacks {} of some decode steps: those that both have are compared", at.stage));
    }
    Ok(align)
}

fn same_prompt(a: &[u32], b: &[u32], names: &[String; 2]) -> Result<()> {
    let Some(first) = (0..a.len().max(b.len())).find(|i| a.get(*i) != b.get(*i)) else { return Ok(()) };
    let id = |ids: &[u32]| ids.get(first).map_or("the end".to_string(), |id| format!("id {id}"));
    let text = format!(
        "the sides read different prompts ({} and {} tokens): token {first} is {} in A ({}) and {} in B ({}); compare runs of the same ids",
        a.len(),
        b.len(),
        id(a),
        names[0],
        id(b),
        names[1]
    );
    Err(Error::invalid("input_ids", text))
}

fn same_layers(a: &[At], b: &[At], choice: &Choice, names: &[String; 2]) -> Result<()> {
    let last = |held: &[At]| held.iter().filter_map(|at| at.layer).max();
    match (last(a), last(b)) {
        (Some(x), Some(y)) if x != y && choice.layers.is_none() => {
            let text = format!(
                "A ({}) has layers up to {x}, B ({}) up to {y}: these are different models, or parts of runs; layers 0-{} alone may be in both, if they are chosen",
                names[0],
                names[1],
                x.min(y)
            );
            Err(Error::invalid("layers", text))
        }
        _ => Ok(()),
    }
}

/// What `here` has and `there` has not, by stage.
fn absent(here: &[At], there: &[At], side: &'static str) -> Vec<Missing> {
    let mut stages: BTreeMap<Stage, Vec<usize>> = BTreeMap::new();
    for at in here.iter().filter(|at| !there.contains(at)) {
        stages.entry(at.stage).or_default().extend(at.layer);
    }
    stages.into_iter().map(|(stage, layers)| Missing { stage: stage.name(), layers, side }).collect()
}

/// Chosen stages that `held` has in some layers but not in all in which the model has them and `held` has others.
pub(super) fn lacking_layers(held: &[At], plan: &Plan, choice: &Choice) -> Vec<Missing> {
    let has_layer = |layer: usize| held.iter().any(|at| at.layer == Some(layer));
    let lacking = |at: &At| {
        let layer = at.layer.is_some_and(has_layer);
        layer && !held.contains(at) && held.iter().any(|other| other.stage == at.stage)
    };
    let mut stages: BTreeMap<Stage, Vec<usize>> = BTreeMap::new();
    for at in plan.nodes.iter().map(|node| node.at).filter(|at| choice.has(*at) && lacking(at)) {
        stages.entry(at.stage).or_default().extend(at.layer);
    }
    stages.into_iter().map(|(stage, layers)| Missing { stage: stage.name(), layers, side: "A" }).collect()
}

fn same_widths(a: &Dump, b: &Dump, align: &Align) -> Result<()> {
    for at in &align.both {
        let (Some(x), Some(y)) = (a.parts(*at).first(), b.parts(*at).first()) else { continue };
        let scores = at.stage.layout().is_scores();
        let widths = (!x.sketch && !y.sketch && !scores).then_some((x.width, y.width, "elements per token"));
        let heads = scores.then_some((x.heads, y.heads, "heads"));
        if let Some((x, y, what)) = widths.into_iter().chain(heads).find(|(x, y, _)| x != y) {
            let [a, b] = &align.names;
            let text = format!("`{}` has {x} {what} in A ({a}), {y} in B ({b}): these are different models", at.key());
            return Err(Error::invalid("widths", text));
        }
    }
    Ok(())
}

/// Every value must have rows of all the tokens that are compared: what is not there is not right.
fn whole(dump: &Dump, side: &str, align: &Align) -> Result<()> {
    for at in &align.both {
        let expected = if at.stage.layout().is_scores() { align.tokens.min(align.prompt) } else { align.tokens };
        let part = dump.parts(*at).iter().find(|part| part.step == 0);
        let found = part.map_or(0, |part| part.tokens);
        let scores = at.stage.layout().is_scores();
        if let Some(part) = part.filter(|part| scores && !part.sketch && part.width < expected) {
            let text = format!("`{}` has {} positions in {side}, but tokens see {expected}", at.key(), part.width);
            return Err(Error::invalid("positions", text));
        }
        if found < expected {
            let text = format!("`{}` has values of {found} tokens in {side}, other values of {expected}", at.key());
            return Err(Error::invalid("tokens", text));
        }
    }
    Ok(())
}

/// Sets how many tokens can be compared: rows that both have, up to the first token that was generated differently.
fn limit(a: &Dump, b: &Dump, align: &mut Align) -> Result<()> {
    let rows = |dump: &Dump| {
        // Of scores, each decode step is a part of its own.
        let parts = align.both.iter().flat_map(|at| dump.parts(*at));
        parts.map(|part| if part.step == 0 { part.tokens } else { align.prompt + part.step }).max().unwrap_or(align.prompt)
    };
    let (rows_a, rows_b) = (rows(a), rows(b));
    align.tokens = rows_a.min(rows_b);
    if rows_a != rows_b {
        let text = format!("A has values of {rows_a} tokens, B of {rows_b}: the first {} are compared", align.tokens);
        align.notes.push(text);
        align.not_judged.push(NotJudged::Absent(align.tokens));
    }
    let (ids_a, ids_b) = (a.generated_ids()?.unwrap_or_default(), b.generated_ids()?.unwrap_or_default());
    let common = ids_a.iter().zip(&ids_b).take_while(|(x, y)| x == y).count();
    if let (Some(x), Some(y)) = (ids_a.get(common), ids_b.get(common)) {
        let position = align.prompt + common;
        let text = format!("generated tokens differ from position {position} on (A {x}, B {y}): values before it are compared");
        align.notes.push(text);
    }
    let known = align.prompt + common;
    if known < align.tokens {
        align.not_judged.push(NotJudged::OtherTokens(known));
        let short = [("A", ids_a.len()), ("B", ids_b.len())].into_iter().find(|(_, count)| *count == common);
        if let Some((side, _)) = short {
            let text = format!("{side} does not say which tokens were generated from position {known} on: values before it are compared");
            align.notes.push(text);
        }
        align.tokens = known;
    }
    if align.tokens == 0 {
        return Err(Error::invalid("tokens", "there is no token whose values both sides have"));
    }
    Ok(())
}
