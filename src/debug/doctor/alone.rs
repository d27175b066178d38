//! Without a reference: what a trained model itself says of its numbers. Each hypothesis is scored by how well the model then
//! predicts a text that it should know. A model with one wrong number gains much when that is put right; a fault is named
//! only when the gain is large, and no other class comes near. Whatever is not named so is a suspect at most.

use super::Cause;
use super::against::Examined;
use super::mend::{self, Files};
use super::report::{Fault, Site, Suspect};
use super::trial::{Patient, Trial};
use crate::cpu::CpuExecutor;
use crate::debug::agreement::{Cut, Window, cut, likelihood};
use crate::error::Result;
use crate::exec::Storage;
use crate::formats::{ByteSource, ModelTexts};
use crate::inference::words::Words;
use crate::model::{Activation, LayerConfig, ModelConfig, RopeScaling, WeightRole};
use crate::plan::edit::{ConfigEdit, Edit, Slot, weight::Change};
use std::ops::ControlFlow;

/// Tokens of the text that are read.
const TOKENS: usize = 200;
/// Tokens of the part on which all changes are tried.
const SIEVE: usize = 64;
/// Changes that are tried on all of it.
const BEST: usize = 14;
/// Nats per token that the right change must gain. Measured: of the built-in model, which is right, no change gained more than 0.28
/// on eight parts of its held-out text, the hardest of which begin within a document (docs/FAULTS.md). This is twice as much.
const GAIN: f64 = 0.55;
/// How much of the gain another class may reach.
const NEXT: f64 = 0.6;

/// A change and what it would be.
struct Candidate {
    cause: Cause,
    edits: Vec<Edit>,
    slot: Option<Slot>,
}

/// Examines `patient` by the likelihood of `text`.
///
/// # Errors
/// What reading the files and the oracle report.
pub async fn examine<S: ByteSource>(
    patient: &Patient<'_, S>,
    texts: Option<&ModelTexts>,
    words: Option<&Words>,
    text: Option<&str>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Examined> {
    let mut found = Examined::default();
    let (Some(words), Some(text)) = (words, text) else {
        found
            .verdict
            .not_examined
            .push("whether the numbers of the config are right: without a reference that takes a tokenizer and a text".into());
        return Ok(found);
    };
    let trial = Trial::new(patient, &[])?;
    let windows = windows(words, text, trial.plan.max_positions, TOKENS)?;
    let few = self::windows(words, text, trial.plan.max_positions, SIEVE)?;
    let valid = trial.plan.vocab_size.min(words.tokenizer.vocab_size() as usize);
    let as_is = nll(patient, &trial, &windows, valid).await?.unwrap_or(f64::INFINITY);
    let known = by_frequency(&windows);
    let options = options(&trial.config);
    let (count, mut sieved, mut scores) = (options.len(), Vec::new(), Vec::new());
    for (i, option) in options.into_iter().enumerate() {
        progress("likelihood of a part of the text under what could be wrong", i, count);
        let Ok(with) = Trial::new(patient, &option.edits) else { continue };
        if let Some(nll) = nll(patient, &with, &few, valid).await? {
            sieved.push((nll, option));
        }
    }
    sieved.sort_by(|a, b| a.0.total_cmp(&b.0));
    sieved.truncate(BEST);
    for (i, (_, option)) in sieved.into_iter().enumerate() {
        progress("likelihood of the text under the best of them", i, BEST);
        if let Some(nll) = nll(patient, &Trial::new(patient, &option.edits)?, &windows, valid).await? {
            scores.push((nll, option));
        }
    }
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    let read: usize = windows.iter().map(|w| w.ids.len() - 1).sum();
    found.verdict.evidence.push(format!("{as_is:.3} nats per token on {read} tokens of the text as it is"));
    decide(patient, texts, &trial, [as_is, known], scores, &mut found);
    found.verdict.examined.push(format!("the likelihood of a text under {count} changes of config and weights"));
    found.verdict.not_examined.push("numbers that change little, and what this text does not show: give --reference".into());
    Ok(found)
}

/// Nats per token of a text of which only the frequency of each token is known.
fn by_frequency(windows: &[Window]) -> f64 {
    let mut counts = std::collections::BTreeMap::<u32, f64>::new();
    windows.iter().flat_map(|window| &window.ids).for_each(|id| *counts.entry(*id).or_default() += 1.0);
    let all: f64 = counts.values().sum();
    counts.values().map(|count| -count / all * libm::log(count / all)).sum()
}

fn windows(words: &Words, text: &str, most: usize, tokens: usize) -> Result<Vec<Window>> {
    let mut windows = cut(&words.tokenizer, text, Cut { window: most.min(tokens).max(2), documents: true })?;
    let mut left = tokens;
    windows.retain_mut(|window| {
        window.ids.truncate(left);
        left = left.saturating_sub(window.ids.len());
        window.ids.len() > 1
    });
    Ok(windows)
}

/// Nats per token; `None` where logits are not finite.
async fn nll<S: ByteSource>(patient: &Patient<'_, S>, trial: &Trial, windows: &[Window], valid: usize) -> Result<Option<f64>> {
    let mut oracle = CpuExecutor::<f32>::new(trial.plan.clone(), Storage::F32)?;
    trial.load(patient, &mut oracle).await?;
    let found = likelihood(&oracle, windows, valid, &mut |_| ControlFlow::Continue(())).await;
    match found {
        Ok(found) => Ok(Some(found.nll)),
        Err(e) if e.kind == crate::error::Kind::Finding => Ok(None),
        Err(e) => Err(e),
    }
}

fn decide<S>(
    patient: &Patient<'_, S>,
    texts: Option<&ModelTexts>,
    trial: &Trial,
    [as_is, known]: [f64; 2],
    scores: Vec<(f64, Candidate)>,
    found: &mut Examined,
) {
    let Some((best, option)) = scores.first() else { return };
    let gain = as_is - best;
    found.verdict.evidence.push(format!("no change makes it likelier by more than {:.3} nats per token", gain.max(0.0)));
    if best.min(as_is) >= known {
        // What helps a model that knows nothing of a text is to be less sure of itself, which is no fault.
        found.verdict.not_examined.push(format!(
            "whether the numbers of the config are right: under no change does the model predict the text better than the frequency of its tokens does ({known:.3} nats); give a text that it should know, or --reference"
        ));
        return;
    }
    let rival = scores.iter().find(|(_, other)| other.cause != option.cause).map_or(0.0, |(nll, _)| as_is - nll);
    let site = |option: &Candidate| Site {
        layer: option.slot.and_then(|slot| slot.layer),
        tensor: option.slot.and_then(|slot| trial.tensor(patient, slot)),
        ..Site::default()
    };
    let changes = |option: &Candidate| -> String {
        let one = |edit: &Edit| match edit {
            Edit::Config(edit) => edit.to_string(),
            Edit::Weight(slot, change) => format!("{} {:?}", slot.role.name(), std::mem::discriminant(change)),
            of_value => format!("{of_value:?}"),
        };
        option.edits.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    if gain < GAIN {
        return;
    }
    let named = rival < NEXT * gain;
    if named {
        let mut site = site(option);
        let tensors: Vec<String> = option
            .edits
            .iter()
            .filter_map(|edit| if let Edit::Weight(slot, _) = edit { trial.tensor(patient, *slot) } else { None })
            .collect();
        let fixed = mend::fix(&Files { texts, resolved: patient.resolved }, &option.edits, &[], &tensors);
        let fix = fixed.map(|(fix, key)| {
            site.config_key = key;
            fix
        });
        let evidence = vec![
            format!("with {} the text is likelier by {gain:.3} nats per token ({as_is:.3} to {best:.3})", changes(option)),
            format!("the best change of another kind gains {rival:.3}"),
        ];
        found.verdict.faults.push(Fault { cause: option.cause, site, fix, evidence });
        found.edits.clone_from(&option.edits);
        return;
    }
    found
        .verdict
        .unexplained
        .push(format!("some changes make the text likelier by up to {gain:.3} nats per token, and none of them stands out"));
    for (nll, option) in scores.iter().filter(|(nll, _)| as_is - nll > 0.3 * gain).take(8) {
        let why = format!("with {} the text is likelier by {:.3} nats per token", changes(option), as_is - nll);
        found.verdict.suspects.push(Suspect { cause: option.cause, site: site(option), why });
    }
}

/// What could be wrong: numbers over the range in which models have them, and weights under other names.
fn options(config: &ModelConfig) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut config_edit = |cause: Cause, edit: ConfigEdit| {
        let mut changed = config.clone();
        edit.apply(&mut changed);
        if changed != *config {
            all.push(Candidate { cause, edits: vec![Edit::Config(edit)], slot: None });
        }
    };
    let Some(attention) = config.attentions().next() else { return all };
    let width = attention.head_dim;
    let offset = config.norm.weight_offset();
    for offset in [0.0, 1.0, offset - 1.0, offset + 1.0] {
        config_edit(Cause::NormOffset, ConfigEdit::NormOffset(offset));
    }
    for eps in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2] {
        config_edit(Cause::NormEps, ConfigEdit::NormEps(eps));
    }
    for (rope, of) in config.ropes.iter().enumerate() {
        for theta in [1e3, 3e3, 1e4, 3e4, 1e5, 5e5, 1e6] {
            config_edit(Cause::RopeBase, ConfigEdit::Theta(rope, theta));
        }
        config_edit(Cause::RopeScaling, ConfigEdit::Scaling(rope, RopeScaling::None));
        for factor in [2.0, 4.0, 8.0] {
            config_edit(Cause::RopeScaling, ConfigEdit::Scaling(rope, RopeScaling::Linear { factor }));
        }
        for part in [1, 2, 3, 4].map(|quarter| width * quarter / 4 / 2 * 2).into_iter().filter(|dim| *dim > 0 && *dim != of.rotary_dim) {
            config_edit(Cause::PartialRotary, ConfigEdit::RotaryDim(rope, part));
        }
    }
    let root = |x: usize| 1.0 / (x as f64).sqrt();
    for scale in [root(width), root(config.hidden_size / attention.num_heads), root(config.hidden_size), 1.0 / width as f64, 1.0] {
        config_edit(Cause::AttnScale, ConfigEdit::AttentionScale(scale));
    }
    for factor in [0.25, 0.5, 0.7, 1.4, 2.0, 4.0] {
        config_edit(Cause::AttnScale, ConfigEdit::AttentionScale(attention.scale * factor));
        config_edit(Cause::EmbedScale, ConfigEdit::EmbeddingScale(config.embedding_scale * factor));
        config_edit(Cause::ResidualMultiplier, ConfigEdit::ResidualMultiplier(config.residual_multiplier * factor));
        config_edit(Cause::LogitsScale, ConfigEdit::LogitsScaling(config.logits_scaling * factor));
    }
    for scale in [1.0, (config.hidden_size as f64).sqrt()] {
        config_edit(Cause::EmbedScale, ConfigEdit::EmbeddingScale(scale));
    }
    for cap in [None, Some(5.0), Some(10.0), Some(20.0), Some(30.0), Some(50.0)] {
        config_edit(Cause::AttnSoftcap, ConfigEdit::AttnSoftcap(cap));
        config_edit(Cause::FinalSoftcap, ConfigEdit::FinalSoftcap(cap));
    }
    for act in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        config_edit(Cause::Activation, ConfigEdit::Activation(act));
    }
    windows_of(config, &mut config_edit);
    for layer in 0..config.layers.len() {
        let slot = |role| Slot { role, layer: Some(layer), bias: false };
        let (gate, up) = (slot(WeightRole::GateProj), slot(WeightRole::UpProj));
        let edits = vec![Edit::Weight(gate, Change::From(up)), Edit::Weight(up, Change::From(gate))];
        all.push(Candidate { cause: Cause::GateUpSwapped, edits, slot: Some(gate) });
        let (key, value) = (slot(WeightRole::KProj), slot(WeightRole::VProj));
        let edits = vec![Edit::Weight(key, Change::From(value)), Edit::Weight(value, Change::From(key))];
        all.push(Candidate { cause: Cause::SwappedTensors, edits, slot: Some(key) });
    }
    all
}

/// Other windows: none, or on the layers between.
fn windows_of(config: &ModelConfig, edit: &mut dyn FnMut(Cause, ConfigEdit)) {
    let widths: std::collections::BTreeSet<usize> = config.layers.iter().filter_map(LayerConfig::window).collect();
    let layers = config.layers.len();
    edit(Cause::WindowPattern, ConfigEdit::Windows((0..layers).map(|layer| (layer, None)).collect()));
    for width in widths {
        for period in [1, 2, 3, 4, 6] {
            for phase in 0..period {
                let of = |layer: usize| (layer, (layer % period != phase || period == 1).then_some(width));
                edit(Cause::WindowPattern, ConfigEdit::Windows((0..layers).map(of).collect()));
            }
        }
        for other in [width / 2, width * 2] {
            let of = |layer: usize| (layer, config.layers[layer].window().map(|_| other));
            edit(Cause::WindowPattern, ConfigEdit::Windows((0..layers).map(of).collect()));
        }
    }
}
