//! Edits: changes of a model as plain data. A fault, a hypothesis about a fault, an intervention and an injection are all edits.
//! They name values by stage and layer and weights by role, never by index, and an edited plan keeps the rules that every plan keeps.

mod config;
pub mod weight;

pub use config::ConfigEdit;
pub use weight::Slot;

use super::changes::refused;
use super::intervention::Intervention;
use super::op::{Op, Plan, StateKind, ValueId};
use super::stage::At;
use super::verify::verify;
use crate::error::{Error, Result, near_text};
use crate::model::{Activation, RopeConfig};
use serde::{Deserialize, Serialize};

/// One change of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Edit {
    /// Another parameter of the op that makes `at`; of attention, in all ops of the layer that share it.
    Parameter {
        /// The value.
        at: At,
        /// The parameter with its new number.
        to: Parameter,
    },
    /// The op that makes `at` reads `from` as its input number `input`.
    Read {
        /// The value.
        at: At,
        /// Which of its inputs, from 0.
        input: usize,
        /// What it reads, an earlier value.
        from: At,
    },
    /// No op: `at` is its input number `input`.
    Bypass {
        /// The value.
        at: At,
        /// Which of its inputs, from 0.
        input: usize,
    },
    /// Another position encoding of `at`.
    Rope {
        /// The value, queries or keys after rotation.
        at: At,
        /// The encoding.
        to: RopeConfig,
    },
    /// Changes `at` when it has been computed, after the interventions that it has.
    Intervene {
        /// The value.
        at: At,
        /// The change.
        with: Intervention,
    },
    /// Another weight than the files have.
    Weight(Slot, weight::Change),
    /// Another number of the config than the files have (`inference::pipeline::edited`).
    Config(ConfigEdit),
}

/// A parameter of an op.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Parameter {
    /// Factor on embeddings, or on q·k.
    Scale(f64),
    /// Added to a norm's weight.
    Offset(f64),
    /// Added to a norm's mean square.
    Eps(f64),
    /// Divides a matrix product.
    Divisor(f64),
    /// The function on the gate.
    Activation(Activation),
    /// Factor on what is added to the residual stream.
    Multiplier(f64),
    /// Soft-cap of scores or logits; `None` for none, which only scores may have.
    Softcap(Option<f64>),
    /// Positions that attention sees, the query's own included; `None` is all.
    Window(Option<usize>),
}

impl Parameter {
    fn name(self) -> &'static str {
        match self {
            Parameter::Scale(_) => "scale",
            Parameter::Offset(_) => "offset",
            Parameter::Eps(_) => "eps",
            Parameter::Divisor(_) => "divisor",
            Parameter::Activation(_) => "activation",
            Parameter::Multiplier(_) => "multiplier",
            Parameter::Softcap(_) => "softcap",
            Parameter::Window(_) => "window",
        }
    }
    /// Whether an op can compute with it.
    fn is_sound(self) -> bool {
        match self {
            Parameter::Scale(x) | Parameter::Offset(x) | Parameter::Eps(x) | Parameter::Multiplier(x) => x.is_finite(),
            Parameter::Divisor(x) => x.is_finite() && x != 0.0,
            Parameter::Softcap(cap) => cap.is_none_or(|cap| cap.is_finite() && cap > 0.0),
            Parameter::Window(window) => window != Some(0),
            Parameter::Activation(_) => true,
        }
    }
    /// Puts it into `op`, if that has such a parameter.
    fn put(self, op: &mut Op) -> bool {
        match (op, self) {
            (Op::Embed { scale, .. }, Parameter::Scale(to)) => *scale = to,
            (Op::RmsNorm { offset, .. }, Parameter::Offset(to)) => *offset = to,
            (Op::RmsNorm { eps, .. } | Op::LayerNorm { eps, .. }, Parameter::Eps(to)) => *eps = to,
            (Op::Linear { divisor, .. }, Parameter::Divisor(to)) => *divisor = to,
            (Op::GatedAct { act, .. } | Op::Act { act }, Parameter::Activation(to)) => *act = to,
            (Op::Add { multiplier }, Parameter::Multiplier(to)) => *multiplier = to,
            (Op::SoftCap { cap }, Parameter::Softcap(Some(to))) => *cap = to,
            (Op::AttnScores(a) | Op::AttnProbs(a) | Op::AttnMix(a), Parameter::Scale(to)) => a.scale = to,
            (Op::AttnScores(a) | Op::AttnProbs(a) | Op::AttnMix(a), Parameter::Softcap(to)) => a.softcap = to,
            (Op::AttnScores(a) | Op::AttnProbs(a) | Op::AttnMix(a), Parameter::Window(to)) => a.window = to,
            _ => return false,
        }
        true
    }
}

/// `plan` with `edits`, one after the other.
///
/// # Errors
/// `Kind::Plan` for values and weights that the plan lacks, ops that have no such parameter or input, edits that change nothing or
/// are of the config, and plans that would break a rule of `verify`; each is about the value.
pub fn apply(plan: &Plan, edits: &[Edit]) -> Result<Plan> {
    let mut edited = plan.clone();
    for edit in edits {
        let at = match edit {
            Edit::Parameter { at, .. } | Edit::Read { at, .. } | Edit::Bypass { at, .. } => *at,
            Edit::Rope { at, .. } | Edit::Intervene { at, .. } => *at,
            Edit::Weight(slot, change) => {
                let refused = |what: String| Error::plan(format!("edit of the weight {}: {what}", slot.label()));
                change.refused(plan, *slot).map_err(refused)?;
                continue;
            }
            Edit::Config(number) => return Err(Error::plan(format!("edit of {}: the plan is built from the config", number.field()))),
        };
        let refused = |what: String| Error::plan(format!("edit of {at}: {what}")).on(at.about());
        let id = find(&edited, at)?;
        one(&mut edited, id, edit).map_err(refused)?;
    }
    if edits.iter().any(|edit| matches!(edit, Edit::Rope { .. })) {
        order_ropes(&mut edited);
    }
    verify(&edited).map_err(|e| e.within("the edited plan"))?;
    Ok(edited)
}

/// The node that makes `at`.
///
/// # Errors
/// `Kind::Plan` saying what there is in its place.
pub fn find(plan: &Plan, at: At) -> Result<ValueId> {
    plan.find(at).ok_or_else(|| {
        let having = plan.layers_with(at.stage);
        let what = match at.layer {
            Some(layer) if layer >= plan.num_layers => format!("this model has layers 0 to {}", plan.num_layers.saturating_sub(1)),
            Some(_) if !having.is_empty() => format!("this layer has no such value; layers that have it: {having:?}"),
            _ => {
                let near = near_text(at.stage.name(), plan.stages().iter().map(|stage| stage.name()));
                format!("this model has no such value{near}")
            }
        };
        Error::plan(format!("edit of {at}: {what}")).on(at.about())
    })
}

/// Makes one edit at node `id`; why not, in words.
fn one(plan: &mut Plan, id: ValueId, edit: &Edit) -> std::result::Result<(), String> {
    let node = plan.node(id).clone();
    let input_of = |input: usize| {
        let absent = || format!("`{}` reads {} values, so it has no input {input}", node.op.name(), node.inputs.len());
        node.inputs.get(input).copied().ok_or_else(absent)
    };
    match edit {
        Edit::Parameter { to, .. } => parameter(plan, id, *to)?,
        Edit::Read { input, from, .. } => {
            input_of(*input)?;
            plan.nodes[id.0].inputs[*input] = find(plan, *from).map_err(|why| why.message)?;
        }
        Edit::Bypass { input, .. } => {
            let source = input_of(*input)?;
            let changed = &mut plan.nodes[id.0];
            (changed.op, changed.inputs) = (Op::Same, vec![source]);
        }
        Edit::Rope { to, .. } => {
            let Op::Rope { heads, head_dim, .. } = node.op else {
                return Err(format!("it is made by `{}`, which has no position encoding", node.op.name()));
            };
            let known = plan.ropes.iter().position(|rope| rope == to);
            let rope = known.unwrap_or_else(|| {
                plan.ropes.push(to.clone());
                plan.ropes.len() - 1
            });
            plan.nodes[id.0].op = Op::Rope { rope, heads, head_dim };
        }
        Edit::Intervene { with, .. } => {
            refused(plan, id, with)?;
            if with.changes_nothing() {
                return Err(format!("{} changes nothing", with.to_string().trim_start_matches('=')));
            }
            plan.nodes[id.0].interventions.push(with.clone());
            return Ok(());
        }
        Edit::Weight(..) | Edit::Config(_) => return Err("it is of no value".into()),
    }
    if *plan.node(id) == node { Err("it changes nothing: that is so already".into()) } else { Ok(()) }
}

fn parameter(plan: &mut Plan, id: ValueId, to: Parameter) -> std::result::Result<(), String> {
    let mut changed = plan.node(id).op.clone();
    if !to.is_sound() {
        return Err(format!("{to:?} is no number to compute with"));
    }
    if !to.put(&mut changed) {
        return Err(format!("it is made by `{}`, which has no {}", changed.name(), to.name()));
    }
    let Some(state) = changed.attention().map(|a| a.state) else {
        plan.nodes[id.0].op = changed;
        return Ok(());
    };
    let layer = plan.node(id).at.layer;
    for node in &mut plan.nodes {
        if node.at.layer == layer && node.op.attention().is_some() {
            to.put(&mut node.op);
        }
    }
    if let (Parameter::Window(window), Some(StateKind::Kv(spec))) = (to, plan.states.get_mut(state.0).map(|state| &mut state.kind)) {
        // A cache may hold more than is seen, never less.
        spec.window = spec.window.zip(window).map(|(held, wanted)| held.max(wanted));
    }
    Ok(())
}

/// Position encodings in the order in which they are first used, and no other, so that the order of edits leaves no trace.
fn order_ropes(plan: &mut Plan) {
    let before = std::mem::take(&mut plan.ropes);
    for node in &mut plan.nodes {
        let Op::Rope { rope, .. } = &mut node.op else { continue };
        let Some(config) = before.get(*rope) else { continue };
        let known = plan.ropes.iter().position(|known| known == config);
        *rope = known.unwrap_or_else(|| {
            plan.ropes.push(config.clone());
            plan.ropes.len() - 1
        });
    }
}

#[cfg(test)]
mod tests;
