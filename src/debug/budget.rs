//! A recipe within a budget of bits, chosen by what each bit buys: the divergence that a tensor causes when it alone is
//! packed is measured in one format, and carried to other formats by their squared errors, which divergence grows with.
//! Tensors are taken to add up. What comes of it is measured on another text, beside the plain recipe of that size.

mod greedy;
mod keeps;

use super::agreement::{self, Reference, Window, json_real};
use super::attribution::encoded_error;
use super::cost::{after, bits, ids, recipe_formats};
use super::number::significant;
use super::weight_source::{Encoded, WeightSource, bands, columns, put};
use crate::error::{Error, Result};
use crate::exec::{Executor, Replaceable};
use crate::plan::{Plan, WeightId};
use crate::quant::recipe::{ModelFacts, Recipe, choose};
use crate::quant::{Format, TABLE};
use greedy::{Item, Offer};
use keeps::keeps;
use serde::Serialize;
use std::ops::ControlFlow;

/// Most elements of a tensor that are encoded to learn the errors of formats.
const ENCODED: usize = 1 << 19;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Most bits per weight, vectors included.
    pub bits: f64,
    /// Formats that matrices may have.
    pub formats: &'a [Format],
    /// What mixtures ask of the model.
    pub facts: ModelFacts,
    /// By weight: the importance of its columns; or none at all.
    pub importance: &'a [Option<Vec<f32>>],
    /// What is read to choose.
    pub choosing: &'a [Window],
    /// What is read to judge the choice.
    pub judging: &'a [Window],
    /// Size of the real vocabulary.
    pub valid: usize,
}

/// Formats that are tried where none are named: those with kernels and encoders whose errors differ.
pub const FORMATS: [Format; 8] =
    [Format::Q2K, Format::Q3K, Format::Iq4Xs, Format::Q4K, Format::Q5K, Format::Q6K, Format::Q8_0, Format::F16];

/// A recipe, and what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    /// Most bits per weight.
    pub budget: f64,
    /// The format of what no line of `keep` names.
    pub base: Format,
    /// Exceptions, as `--keep` takes them; the first that matches decides.
    pub keep: Vec<String>,
    /// The suggestion over the judging text.
    pub suggested: Judged,
    /// The largest plain recipe within the budget, likewise.
    pub plain: Judged,
    /// What was measured of each matrix, the dearest first.
    pub tensors: Vec<Sensitivity>,
    /// Tokens that were read to choose, and to judge.
    pub tokens: [usize; 2],
    /// Whether all was measured.
    pub complete: bool,
}

/// A recipe over the judging text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// `suggested`, a format or a mixture.
    pub name: String,
    /// Bits per weight.
    pub bits: f64,
    /// Mean divergence from the original, in nats; `None` where it was not measured.
    pub kl: Option<f64>,
}

/// What packing one matrix does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sensitivity {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its role: `L3 q_proj`.
    pub role: String,
    /// The format that was measured.
    pub measured: Format,
    /// Mean divergence with it alone in that format, in nats.
    #[serde(serialize_with = "json_real")]
    pub kl: f64,
    /// Its relative squared error there, each column by its importance where that is known.
    #[serde(serialize_with = "json_real")]
    pub squared_error: f64,
    /// The format that it gets.
    pub chosen: Format,
}

/// How far it is: measurements of a text done, and all.
pub type OnProgress<'p> = &'p mut dyn FnMut(&str, usize, usize) -> ControlFlow<()>;

/// Suggests a recipe. `exact` and `executor` hold the weights of `source`; `executor` has those of the plain recipe
/// afterwards.
///
/// # Errors
/// `Kind::Invalid` for a budget below what the smallest formats need, for formats that are not written, and for texts
/// without a token to predict; what the source and the executors report.
pub async fn suggest<A: Executor, B: Executor + Replaceable>(
    exact: &A,
    executor: &mut B,
    source: &impl WeightSource,
    stored: &[Format],
    ask: &Ask<'_>,
    progress: OnProgress<'_>,
) -> Result<Suggestion> {
    let plan = executor.plan().clone();
    check(&plan, stored, ask)?;
    let tokens = [ask.choosing, ask.judging].map(agreement::predicted);
    for windows in [ask.choosing, ask.judging] {
        agreement::check(&[exact.plan(), &plan], windows, ask.valid)?;
    }
    let matrices: Vec<WeightId> = ids(&plan).filter(|id| is_matrix(&plan, *id)).collect();
    let of = matrices.len() + 2;
    let mut reference = Reference::new(exact, &plan, ask.choosing, true)?;
    let (mut items, mut tensors) = (Vec::with_capacity(of), Vec::with_capacity(of));
    let mut complete = true;
    for (done, id) in matrices.iter().enumerate() {
        let name = source.name(&plan, *id);
        let mut heard = || progress(&name, done, of);
        let Some(item) = measure_one(&mut reference, executor, &plan, source, *id, ask, &mut heard).await? else {
            complete = false;
            break;
        };
        let slot = &plan.weights[id.0];
        let Item { offers, probe, .. } = &item;
        let (measured, chosen) = (offers[*probe].format, offers[*probe].format);
        let (kl, squared_error) = (offers[*probe].cost, item.squared_error);
        tensors.push(Sensitivity { name, role: slot.label(), measured, kl, squared_error, chosen });
        items.push(item);
    }
    let fixed: f64 =
        ids(&plan).filter(|id| !is_matrix(&plan, *id)).map(|id| plan.weights[id.0].elements() as f64 * stored[id.0].bits()).sum();
    let elements: f64 = plan.weights.iter().map(|slot| slot.elements() as f64).sum();
    let plain = plain_recipe(&plan, stored, ask)?;
    let plain_formats = recipe_formats(&plan, &plain.1);
    let mut plain = Judged { name: plain.0, bits: bits(&plan, &after(stored, &plain_formats)), kl: None };
    if !complete {
        let suggested = Judged { name: "suggested".into(), bits: 0.0, kl: None };
        let base = ask.formats.first().copied().unwrap_or(Format::F16);
        return Ok(Suggestion { budget: ask.bits, base, keep: Vec::new(), suggested, plain, tensors, tokens, complete });
    }
    let chosen = greedy::choose(&items, ask.bits * elements - fixed);
    let mut formats = vec![None; plan.weights.len()];
    for ((item, chosen), (id, tensor)) in items.iter().zip(chosen).zip(matrices.iter().zip(&mut tensors)) {
        tensor.chosen = item.offers[chosen].format;
        formats[id.0] = Some(tensor.chosen);
    }
    tensors.sort_by(|a, b| b.kl.total_cmp(&a.kl));
    let (base, keep) = keeps(&plan, &formats);

    let mut reference = Reference::new(exact, &plan, ask.judging, true)?;
    let mut suggested = Judged { name: "suggested".into(), bits: bits(&plan, &after(stored, &formats)), kl: None };
    for (done, (judged, formats)) in [(&mut suggested, formats), (&mut plain, plain_formats)].into_iter().enumerate() {
        let encoded = Encoded::new(source, &plan, formats, ask.importance);
        for id in &matrices {
            put(&plan, &encoded, *id, executor).await?;
        }
        let mut heard = |_: agreement::Progress| progress(&judged.name, matrices.len() + done, of);
        let found = agreement::agree_with(&mut reference, executor, ask.judging, ask.valid, &mut heard).await?;
        complete &= found.complete;
        if !complete {
            break;
        }
        judged.kl = Some(found.kl.mean);
    }
    Ok(Suggestion { budget: ask.bits, base, keep, suggested, plain, tensors, tokens, complete })
}

/// A weight that recipes decide over.
fn is_matrix(plan: &Plan, id: WeightId) -> bool {
    let slot = &plan.weights[id.0];
    slot.shape.len() == 2 && !slot.bias
}

/// Refuses what nothing can come of.
fn check(plan: &Plan, stored: &[Format], ask: &Ask<'_>) -> Result<()> {
    let wrong = |what: String| Err(Error::invalid("budget", what));
    if let Some(format) = ask.formats.iter().find(|format| format.info().encode.is_none()) {
        return wrong(format!("{format} can be read, not written"));
    }
    if ask.formats.is_empty() || !ask.bits.is_finite() {
        return wrong("expected bits per weight, and formats to choose from".into());
    }
    let smallest = |id: WeightId| {
        let all = offered(plan, id, ask.formats).into_iter();
        all.min_by(|a, b| a.bits().total_cmp(&b.bits())).unwrap_or(stored[id.0])
    };
    let least: Vec<Format> = ids(plan).map(|id| if is_matrix(plan, id) { smallest(id) } else { stored[id.0] }).collect();
    let least = bits(plan, &least);
    if least > ask.bits {
        return wrong(format!("{} bits per weight are too few: the smallest of the formats need {least:.3}", significant(ask.bits)));
    }
    Ok(())
}

/// The formats that weight `id` may get, by bits: the wanted ones, or what takes their place where its columns are no
/// whole blocks.
fn offered(plan: &Plan, id: WeightId, formats: &[Format]) -> Vec<Format> {
    let slot = &plan.weights[id.0];
    let one = |format: &Format| choose(&Recipe::uniform(*format), slot.role, slot.layer, plan.num_layers, columns(slot)).format;
    let mut offered: Vec<Format> = formats.iter().map(one).collect();
    offered.sort_by(|a, b| a.bits().total_cmp(&b.bits()).then(a.cmp(b)));
    offered.dedup();
    offered
}

/// What weight `id` costs in each format. `None` where it was ended.
async fn measure_one<A: Executor, B: Executor + Replaceable>(
    reference: &mut Reference<'_, A>,
    executor: &mut B,
    plan: &Plan,
    source: &impl WeightSource,
    id: WeightId,
    ask: &Ask<'_>,
    heard: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Option<Item>> {
    let slot = &plan.weights[id.0];
    let offered = offered(plan, id, ask.formats);
    // Near the budget errors are of the size that they will have.
    let probe = offered.iter().rposition(|format| format.bits() <= ask.bits).unwrap_or(0);
    let mut formats = vec![None; plan.weights.len()];
    formats[id.0] = Some(offered[probe]);
    put(plan, &Encoded::new(source, plan, formats, ask.importance), id, executor).await?;
    let measured = agreement::agree_with(reference, executor, ask.choosing, ask.valid, &mut |_| heard()).await;
    put(plan, source, id, executor).await?;
    let measured = measured?;
    if !measured.complete {
        return Ok(None);
    }
    let errors = errors(plan, source, id, &offered, ask.importance.get(id.0).and_then(Option::as_deref)).await?;
    let each = if errors[probe] > 0.0 { measured.kl.mean / errors[probe] } else { 0.0 };
    let elements = slot.elements() as f64;
    let offer = |(format, error): (&Format, &f64)| Offer { format: *format, bits: elements * format.bits(), cost: each * error };
    Ok(Some(Item { offers: offered.iter().zip(&errors).map(offer).collect(), probe, squared_error: errors[probe] }))
}

/// Relative squared error of some rows of weight `id` in each of `formats`.
async fn errors(plan: &Plan, source: &impl WeightSource, id: WeightId, formats: &[Format], importance: Option<&[f32]>) -> Result<Vec<f64>> {
    let slot = &plan.weights[id.0];
    let elements = slot.elements().max(1);
    // Bands from all over the tensor, about as many elements as wanted together.
    let all: Vec<_> = bands(slot, 4 * elements.div_ceil(64).min(ENCODED / 8)).collect();
    let stride = (elements / ENCODED).max(1);
    let mut values = Vec::new();
    for rows in all.into_iter().step_by(stride) {
        let (format, bytes) = source.rows(id, rows).await?;
        values.extend(format.values(&bytes)?);
    }
    let error = |format: &Format| encoded_error(*format, &values, columns(slot), importance).map(|e| e.unwrap_or(0.0));
    formats.iter().map(error).collect()
}

/// The largest recipe within the budget that is one format for all, or a mixture, and its name.
fn plain_recipe(plan: &Plan, stored: &[Format], ask: &Ask<'_>) -> Result<(String, Recipe)> {
    let uniform = TABLE.iter().filter(|row| row.encode.is_some() && row.bytes * 8 > row.block * 2);
    let uniform = uniform.map(|row| (row.name.to_string(), Recipe::uniform(row.format)));
    let mixtures = Recipe::names().map(|name| Ok((name.to_string(), Recipe::mixture(name, ask.facts)?))).collect::<Result<Vec<_>>>()?;
    let sized = uniform.chain(mixtures).map(|(name, recipe)| (bits(plan, &after(stored, &recipe_formats(plan, &recipe))), name, recipe));
    let within = sized.filter(|(bits, ..)| *bits <= ask.bits + 1e-9);
    let largest = within.max_by(|a, b| a.0.total_cmp(&b.0));
    largest
        .map(|(_, name, recipe)| (name, recipe))
        .ok_or_else(|| Error::invalid("budget", format!("no plain recipe has at most {} bits per weight", ask.bits)))
}

impl Suggestion {
    /// A line for each matrix, and the recipe: `KEEP …`, `PLAIN …`, `RECIPE …`.
    pub fn lines(&self) -> Vec<String> {
        let tensor = |t: &Sensitivity| {
            let (kl, error) = (significant(t.kl), significant(t.squared_error));
            format!(
                "TENSOR name={} role={} kl={kl} in={} squaredError={error} chosen={}",
                t.name,
                t.role.replace(' ', "."),
                t.measured,
                t.chosen
            )
        };
        let judged = |kind: &str, judged: &Judged| {
            let kl = judged.kl.map_or("-".to_string(), significant);
            format!("{kind} name={} bits={:.3} klMean={kl} tokens={}", judged.name, judged.bits, self.tokens[1])
        };
        let mut lines: Vec<String> = self.tensors.iter().map(tensor).collect();
        lines.extend(self.keep.iter().map(|keep| format!("KEEP {keep}")));
        lines.push(judged("PLAIN", &self.plain));
        let complete = if self.complete { "" } else { " incomplete=true" };
        lines.push(format!("{}{complete}", judged("RECIPE", &self.suggested)));
        lines
    }
    /// The options of `convert` that make it: `--quantize q4_k --keep v_proj=q6_k …`.
    pub fn options(&self) -> String {
        self.keep.iter().fold(format!("--quantize {}", self.base), |line, keep| format!("{line} --keep {keep}"))
    }
    /// Whether it is better than the plain recipe, where both were measured.
    pub fn is_better(&self) -> Option<bool> {
        Some(self.suggested.kl? < self.plain.kl?)
    }
}
