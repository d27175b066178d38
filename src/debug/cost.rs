//! What packing a model costs: how far the packed model's predictions are from the original's over a text, and beside it
//! the floor, the same of the original with its matrices rounded to f16. It says nothing of where the cost comes from;
//! that is for `attribution`.

use super::agreement::{self, Agreement, Reference, Window, brief, json_real};
use crate::error::Result;
use crate::exec::Executor;
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use crate::quant::recipe::{Recipe, choose};
use serde::Serialize;

/// A mean divergence, in nats, from which down there is no floor: rounding in f32 changes logits by some 1e-5, and the divergence
/// is about half the square of that.
const NO_FLOOR: f64 = 1e-10;

/// What a packed model costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// The packed model against the original.
    pub packed: Measured,
    /// The original in f16 against the original; `None` where the measurement was ended before.
    pub floor: Option<Measured>,
    /// Mean divergence as a multiple of the floor's; `None` where that is only what rounding in f32 makes, as where the
    /// matrices lose nothing in f16.
    pub times_floor: Option<f64>,
}

/// A model against the original.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Formats of its weights, each once, in the order of [`Format`].
    pub formats: Vec<Format>,
    /// Bits per weight, vectors included.
    #[serde(serialize_with = "json_real")]
    pub bits: f64,
    /// The figures.
    #[serde(flatten)]
    pub agreement: Agreement,
}

impl Cost {
    /// Whether all of the text was read by both.
    pub fn is_complete(&self) -> bool {
        self.packed.agreement.complete && self.floor.as_ref().is_some_and(|floor| floor.agreement.complete)
    }
    /// `FLOOR formats=f16,f32 bits=16.01 …` and `COST formats=q4_k,q6_k,f32 bits=4.85 timesFloor=… tokens=… klMean=… …`.
    pub fn lines(&self) -> Vec<String> {
        let times = self.times_floor.map_or(String::new(), |times| format!(" timesFloor={}", brief(times)));
        let floor = self.floor.iter().map(|floor| format!("FLOOR {}", floor.text("")));
        floor.chain([format!("COST {}", self.packed.text(&times))]).collect()
    }
}

impl Measured {
    fn new(plan: &Plan, formats: &[Format], agreement: Agreement) -> Self {
        let mut kinds = formats.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        Self { formats: kinds, bits: bits(plan, formats), agreement }
    }
    fn text(&self, more: &str) -> String {
        let formats: Vec<&str> = self.formats.iter().map(|format| format.name()).collect();
        format!("formats={} bits={:.3}{more} {}", formats.join(","), self.bits, self.agreement.figures())
    }
}

/// Measures `packed`, which holds weights in `formats`, against `original` over `windows`; then `packed` is dropped, and
/// the same is asked of what `floor` makes: an executor of the original's plan with its formats, as [`f16_formats`] says.
/// So never more than two executors are held. `progress` counts the tokens of both readings.
///
/// # Errors
/// Those of `agreement::agree`; what `floor` reports.
pub async fn cost<A: Executor, B: Executor>(
    original: &A,
    (packed, formats): (B, &[Format]),
    floor: impl FnOnce() -> Result<(B, Vec<Format>)>,
    windows: &[Window],
    valid: usize,
    progress: agreement::OnProgress<'_>,
) -> Result<Cost> {
    let tokens = agreement::check(&[original.plan(), packed.plan()], windows, valid)?;
    let mut reference = Reference::new(original, packed.plan(), windows, true)?;
    let at = |done: usize| agreement::Progress { done, of: 2 * tokens };
    let mut now = |now: agreement::Progress| progress(at(now.done));
    let found = agreement::agree_with(&mut reference, &packed, windows, valid, &mut now).await?;
    let packed_plan = packed.plan().clone();
    drop(packed);
    let packed = Measured::new(&packed_plan, formats, found);
    if !packed.agreement.complete {
        return Ok(Cost { packed, floor: None, times_floor: None });
    }
    let (rounded, formats) = floor()?;
    let mut now = |now: agreement::Progress| progress(at(tokens + now.done));
    let found = agreement::agree_with(&mut reference, &rounded, windows, valid, &mut now).await?;
    let floor = Measured::new(rounded.plan(), &formats, found);
    let (least, kl) = (floor.agreement.kl.mean, packed.agreement.kl.mean);
    Ok(Cost { times_floor: times(kl, least), floor: Some(floor), packed })
}

/// A mean divergence as a multiple of the floor's, where there is a floor.
fn times(kl: f64, floor: f64) -> Option<f64> {
    (floor > NO_FLOOR).then(|| kl / floor)
}

/// The formats of `plan`'s weights where `recipe` decides over matrices: `None` for vectors, which stay as they are.
pub fn recipe_formats(plan: &Plan, recipe: &Recipe) -> Vec<Option<Format>> {
    let one = |slot: &crate::plan::WeightSlot| {
        let columns = slot.shape.get(1).copied().filter(|_| !slot.bias)?;
        Some(choose(recipe, slot.role, slot.layer, plan.num_layers, columns).format)
    };
    plan.weights.iter().map(one).collect()
}

/// Matrices in f16, the rest as it is: the floor of packing.
pub fn f16_formats(plan: &Plan) -> Vec<Option<Format>> {
    recipe_formats(plan, &Recipe::uniform(Format::F16))
}

/// Bits per weight of `plan` in `formats`, one per slot.
pub fn bits(plan: &Plan, formats: &[Format]) -> f64 {
    let sizes = plan.weights.iter().zip(formats).map(|(slot, format)| (slot.elements() as f64, format.bits()));
    let (elements, bits) = sizes.fold((0.0, 0.0), |sum, (elements, bits)| (sum.0 + elements, sum.1 + elements * bits));
    if elements > 0.0 { bits / elements } else { 0.0 }
}

/// The formats that weights have which are stored in `stored` and then encoded in `formats`.
pub fn after(stored: &[Format], formats: &[Option<Format>]) -> Vec<Format> {
    stored.iter().zip(formats).map(|(stored, format)| format.unwrap_or(*stored)).collect()
}

/// Ids of the weights of a plan.
pub(super) fn ids(plan: &Plan) -> impl Iterator<Item = WeightId> + use<> {
    (0..plan.weights.len()).map(WeightId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounding_in_f32_makes_is_no_floor() {
        assert_eq!(times(1e-3, 2e-7), Some(1e-3 / 2e-7));
        for none in [0.0, 1.2e-14, f64::NAN] {
            assert_eq!(times(1e-3, none), None);
        }
    }
}
