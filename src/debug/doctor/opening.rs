//! A model that does not open is a diagnosis too: from what the typed error is about to a class, and to a change of
//! config.json with which the model opens.

use super::report::{Fault, Fix, Site, Suspect, Verdict};
use super::{Cause, mend};
use crate::config::{ResolveOptions, resolve};
use crate::error::{About, Error, Misfit, TensorProblem, nearest};
use crate::formats::{ModelTexts, TensorIndex};
use crate::inference::pipeline;
use crate::loader::match_slots;
use serde_json::{Map, Value, json};

/// Which class a key of config.json belongs to.
const KEYS: &[(&str, Cause)] = &[
    ("rms_norm_eps", Cause::NormEps),
    ("layer_norm_eps", Cause::NormEps),
    ("norm_epsilon", Cause::NormEps),
    ("norm_eps", Cause::NormEps),
    ("rope_theta", Cause::RopeBase),
    ("rope_local_base_freq", Cause::RopeBase),
    ("rope_scaling", Cause::RopeScaling),
    ("rope_parameters", Cause::RopeScaling),
    ("rope_type", Cause::RopeScaling),
    ("factor", Cause::RopeScaling),
    ("low_freq_factor", Cause::RopeScaling),
    ("high_freq_factor", Cause::RopeScaling),
    ("original_max_position_embeddings", Cause::RopeScaling),
    ("short_factor", Cause::RopeScaling),
    ("long_factor", Cause::RopeScaling),
    ("partial_rotary_factor", Cause::PartialRotary),
    ("no_rope_layers", Cause::RopeLayers),
    ("attn_logit_softcapping", Cause::AttnSoftcap),
    ("final_logit_softcapping", Cause::FinalSoftcap),
    ("query_pre_attn_scalar", Cause::AttnScale),
    ("attention_multiplier", Cause::AttnScale),
    ("num_key_value_heads", Cause::GqaMapping),
    ("sliding_window", Cause::WindowPattern),
    ("sliding_window_pattern", Cause::WindowPattern),
    ("layer_types", Cause::WindowPattern),
    ("max_window_layers", Cause::WindowPattern),
    ("embedding_multiplier", Cause::EmbedScale),
    ("tie_word_embeddings", Cause::TiedHead),
    ("attention_bias", Cause::MissingBias),
    ("mlp_bias", Cause::MissingBias),
    ("hidden_act", Cause::Activation),
    ("hidden_activation", Cause::Activation),
    ("residual_multiplier", Cause::ResidualMultiplier),
    ("logits_scaling", Cause::LogitsScale),
];

/// What a model's files are, as far as they can be read.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// config.json and its like.
    pub texts: &'a ModelTexts,
    /// The tensors, where their headers can be read.
    pub index: Option<&'a TensorIndex>,
}

/// The diagnosis of a model that `error` kept from opening.
pub fn examine(error: &Error, files: Option<Files<'_>>) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.not_examined.push("everything that needs the model to open".into());
    let named = match error.about.as_deref() {
        Some(About::Key(key)) => Some(of_key(key, files)),
        Some(About::Tensors(misfits)) => of_tensors(misfits, files),
        _ => None,
    };
    match named {
        Some(Ok(mut fault)) => {
            fault.evidence.insert(0, format!("the model does not open: {}", error.message));
            verdict.faults.push(fault);
        }
        Some(Err(suspect)) => {
            verdict.unexplained.push(format!("the model does not open: {}", error.message));
            verdict.suspects.push(*suspect);
        }
        None => verdict.unexplained.push(format!("the model does not open: {}", error.message)),
    }
    verdict
}

fn cause_of(key: &str) -> Option<(Cause, &'static str)> {
    let last = key.rsplit('.').next().unwrap_or(key).trim_end_matches(|c: char| c == ']' || c == '[' || c.is_ascii_digit());
    KEYS.iter().find(|(known, _)| *known == last).map(|(known, cause)| (*cause, *known))
}

/// A key that is missing, wrong or unknown; one that is unknown may be another one misspelled.
fn of_key(key: &str, files: Option<Files<'_>>) -> Result<Fault, Box<Suspect>> {
    let site = Site { config_key: Some(key.to_string()), ..Site::default() };
    if let Some((cause, _)) = cause_of(key) {
        let fix = Fix { text: format!("correct `{key}` in config.json"), ..Fix::default() };
        return Ok(Fault { cause, site, fix: Some(fix), evidence: vec![format!("`{key}` of config.json cannot be used as it stands")] });
    }
    let (place, last) = key.rsplit_once('.').map_or(("", key), |(place, last)| (place, last));
    let near = nearest(last, KEYS.iter().map(|(known, _)| *known)).first().and_then(|near| cause_of(near));
    let value = files.and_then(|files| serde_json::from_str::<Value>(&files.texts.config).ok()).and_then(|config| {
        let pointer = format!("/{}", key.replace('.', "/"));
        config.pointer(&pointer).cloned()
    });
    if let (Some((cause, known)), Some(files), Some(value)) = (near, files, value) {
        let mut patch = Map::new();
        patch.insert(key.to_string(), Value::Null);
        let target = if place.is_empty() { known.to_string() } else { format!("{place}.{known}") };
        if let Some(text) = renamed(&files.texts.config, key, &target, value)
            && resolve(&text, files.texts.generation_config.as_deref(), ResolveOptions::default()).is_ok()
        {
            let evidence = vec![format!(
                "`{key}` is no key that this kind of model has, and `{target}`, which it has, is missing: with the key renamed the config is understood"
            )];
            let fix = Fix { text: format!("in config.json, rename `{key}` to `{target}`"), ..Fix::default() };
            return Ok(Fault { cause, site, fix: Some(fix), evidence });
        }
    }
    let cause = near.map_or(Cause::ReferenceSuspect, |(cause, _)| cause);
    Err(Box::new(Suspect { cause, site, why: format!("`{key}` of config.json is not understood") }))
}

/// The text with a key under another name, which it must not have yet.
fn renamed(text: &str, key: &str, target: &str, value: Value) -> Option<String> {
    let mut config: Value = serde_json::from_str(text).ok()?;
    let (place, last) = key.rsplit_once('.').map_or(("", key), |(place, last)| (place, last));
    let pointer = if place.is_empty() { String::new() } else { format!("/{}", place.replace('.', "/")) };
    let inside = config.pointer_mut(&pointer)?.as_object_mut()?;
    let known = target.rsplit('.').next()?;
    if inside.contains_key(known) {
        return None;
    }
    inside.remove(last)?;
    inside.insert(known.to_string(), value);
    serde_json::to_string(&config).ok()
}

/// Tensors that do not fit the config.
fn of_tensors(misfits: &[Misfit], files: Option<Files<'_>>) -> Option<Result<Fault, Box<Suspect>>> {
    let first = misfits.first()?;
    let all = |problem: TensorProblem, part: &str| misfits.iter().all(|m| m.problem == problem && m.tensor.contains(part));
    let any = |problem: TensorProblem, part: &str| misfits.iter().any(|m| m.problem == problem && m.tensor.contains(part));
    let site = Site { tensor: Some(first.tensor.clone()), ..Site::default() };
    let turned = |m: &Misfit| {
        let sizes = |text: &Option<String>| -> Vec<String> {
            text.as_deref().unwrap_or_default().split(|c: char| !c.is_ascii_digit()).filter(|s| !s.is_empty()).map(str::to_string).collect()
        };
        let (expected, mut found) = (sizes(&m.expected), sizes(&m.found));
        found.reverse();
        m.problem == TensorProblem::Shape && expected.len() == 2 && expected == found
    };
    let bias = |m: &Misfit| m.tensor.ends_with(".bias") || m.tensor.ends_with("bias");
    let (cause, why) = match () {
        () if misfits.iter().all(turned) => (Cause::TransposedWeight, "the shape is that of the matrix the other way round"),
        () if misfits.iter().all(bias) && all(TensorProblem::Extra, "") => {
            (Cause::MissingBias, "the checkpoint has biases that the config says there are none of")
        }
        () if misfits.iter().all(bias) && all(TensorProblem::Missing, "") => {
            (Cause::MissingBias, "the config asks for biases that the checkpoint lacks")
        }
        () if any(TensorProblem::Extra, "q_norm") || any(TensorProblem::Extra, "k_norm") => {
            (Cause::MissingQkNorm, "the checkpoint has norms of queries and keys that this kind of model has none of")
        }
        () if any(TensorProblem::Extra, "post_feedforward") || any(TensorProblem::Extra, "pre_feedforward") => {
            (Cause::MissingPostNorm, "the checkpoint has norms around its blocks that this kind of model has none of")
        }
        () if all(TensorProblem::Missing, "lm_head") => {
            (Cause::TiedHead, "the config says that the head is a tensor of its own, and there is none")
        }
        () if misfits.iter().all(|m| m.problem == TensorProblem::Shape && (m.tensor.contains("k_proj") || m.tensor.contains("v_proj"))) => {
            (Cause::GqaMapping, "keys and values have another number of heads than the config says")
        }
        () if all(TensorProblem::Missing, "") => {
            let fix = Fix { text: "fetch the checkpoint again: tensors are missing".into(), ..Fix::default() };
            let evidence = vec![format!("{} tensors are missing that the config asks for", misfits.len())];
            return Some(Ok(Fault { cause: Cause::CorruptWeight, site, fix: Some(fix), evidence }));
        }
        () => return None,
    };
    let fixed = files.and_then(|files| toggled(cause, misfits, files));
    let site = match &fixed {
        Some(fix) => Site { config_key: fix.config.keys().next().cloned(), ..site },
        None => site,
    };
    let mut evidence = vec![why.to_string()];
    let fix = match fixed {
        Some(fix) => {
            evidence.push("with the fix every tensor has its place".into());
            Some(fix)
        }
        None if cause == Cause::TransposedWeight => Some(Fix { text: format!("transpose {}", first.tensor), ..Fix::default() }),
        None => None,
    };
    Some(Ok(Fault { cause, site, fix, evidence }))
}

/// The first change of config.json with which every tensor has its place.
fn toggled(cause: Cause, misfits: &[Misfit], files: Files<'_>) -> Option<Fix> {
    let config: Value = serde_json::from_str(&files.texts.config).ok()?;
    let mut patches: Vec<Map<String, Value>> = Vec::new();
    let mut patch = |pairs: &[(&str, Value)]| {
        for prefix in ["", "text_config."] {
            patches.push(pairs.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())).collect());
        }
    };
    match cause {
        Cause::MissingBias => {
            let wanted = misfits.iter().all(|m| m.problem == TensorProblem::Extra);
            patch(&[("attention_bias", json!(wanted))]);
            patch(&[("mlp_bias", json!(wanted))]);
            patch(&[("attention_bias", json!(wanted)), ("mlp_bias", json!(wanted))]);
        }
        Cause::TiedHead => patch(&[("tie_word_embeddings", json!(true))]),
        Cause::GqaMapping => {
            let heads = config.get("num_attention_heads").and_then(Value::as_u64).unwrap_or(0).min(256);
            (1..=heads).for_each(|n| patch(&[("num_key_value_heads", json!(n))]));
        }
        _ => {}
    }
    let opens = |patch: &&Map<String, Value>| {
        let Some(text) = mend::patched(&files.texts.config, patch) else { return false };
        let Ok(resolved) = resolve(&text, files.texts.generation_config.as_deref(), ResolveOptions::default()) else { return false };
        let Ok(plan) = pipeline::build(&resolved.config) else { return false };
        files.index.is_some_and(|index| match_slots(&plan, &resolved.config.tensors, index, false).is_ok())
    };
    let found = patches.iter().find(opens)?;
    let says: Vec<String> = found.iter().map(|(key, value)| format!("`{key}` to {value}")).collect();
    Some(Fix { text: format!("in config.json, set {}", says.join(" and ")), config: found.clone(), applicable: true })
}
