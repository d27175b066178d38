//! RoPE from both dialects of `config.json`: `rope_theta` with `rope_scaling`, and `rope_parameters`, flat or one per
//! layer type. It decides which numbers apply and where they came from; `plan::rope` turns them into frequencies.
//! Defaults of the scalings are those of transformers' `modeling_rope_utils`.

use serde_json::Value;

use super::keys::{Keys, Object, unsupported};
use super::preset::RopePreset;
use super::values::{Lines, Scalar, Sourced, brief, is_off, same};
use crate::error::{Error, Result};
use crate::model::{RopeConfig, RopeGrowth, RopeScaling, Source};

/// The context of pretraining, which three of the scalings need.
const ORIGINAL: &str = "original_max_position_embeddings";
/// What objects of RoPE hold, of whatever kind; what a kind does not read means nothing to transformers.
const KNOWN: [&str; 18] = [
    "rope_theta",
    "rope_type",
    "type",
    "partial_rotary_factor",
    "factor",
    "attention_factor",
    "alpha",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "max_position_embeddings",
    ORIGINAL,
];

/// The RoPE variants of a model and which layers use them (indices into `list`).
pub(super) struct Ropes {
    pub list: Vec<RopeConfig>,
    /// For layers that attend to everything.
    pub full: usize,
    /// For windowed layers.
    pub sliding: usize,
    /// For queries, where it is another.
    pub query: Option<usize>,
    /// Keys of scaling objects that were not understood.
    pub ignored: Vec<String>,
    /// What the file says twice and differently, or says in vain; transformers' reading of it is taken.
    pub notes: Vec<String>,
}

/// What RoPE needs to know about the rest of the model.
pub(super) struct Model<'a> {
    pub preset: &'a RopePreset,
    /// Of full layers, and of windowed ones.
    pub head_dims: [usize; 2],
    pub max_positions: &'a Sourced<usize>,
    /// Unknown keys of scaling objects are collected instead of refused.
    pub allow_unknown: bool,
}

/// Reads every RoPE variant. Adds `ropes[i].…` lines. Errors name the key.
pub(super) fn read(keys: &mut Keys, model: &Model, lines: &mut Lines) -> Result<Ropes> {
    let old = object(keys, "rope_scaling")?;
    let of_class = Some((&model.preset.parameters, format!("{}.", keys.path("rope_parameters")))).filter(|(map, _)| !map.is_empty());
    let new = object(keys, "rope_parameters")?.or(of_class);
    let mut reader = Reader { keys, model, lines, ignored: Vec::new(), notes: Vec::new() };
    let Some(local_theta) = &model.preset.local_theta_key else {
        let of_queries = if model.preset.query_growth.is_some() { old.clone().or(new.clone()) } else { None };
        let mut list = vec![reader.variant("rope_theta", old, new, 0)?];
        let query = reader.grown(of_queries, &list[0])?;
        list.extend(query);
        let query = (list.len() > 1).then_some(1);
        return Ok(Ropes { list, full: 0, sliding: 0, query, ignored: reader.ignored, notes: reader.notes });
    };
    let (full, sliding) = per_layer_type(reader.keys, new)?;
    let list = vec![reader.variant("rope_theta", old, full, 0)?, reader.variant(local_theta, None, sliding, 1)?];
    Ok(Ropes { list, full: 0, sliding: 1, query: None, ignored: reader.ignored, notes: reader.notes })
}

/// An object of RoPE numbers and its path.
type Part<'a> = Option<(&'a Object, String)>;

/// The object under `key`; absent, null, empty, 0 and false are none, as Python takes them.
fn object<'a>(keys: &mut Keys<'a>, key: &str) -> Result<Part<'a>> {
    match keys.raw(key) {
        None => Ok(None),
        Some(value) if is_off(value) => Ok(None),
        Some(Value::Object(map)) => Ok((!map.is_empty()).then(|| (map, format!("{}.", keys.path(key))))),
        Some(other) => Err(Error::config(keys.path(key), format!("should be an object, found {}", brief(other)))),
    }
}

/// Splits `rope_parameters` that hold one object per layer type.
fn per_layer_type<'a>(keys: &Keys, parameters: Part<'a>) -> Result<(Part<'a>, Part<'a>)> {
    let Some((map, path)) = parameters else { return Ok((None, None)) };
    let mut parts = [None, None];
    for (key, value) in map {
        let place = match key.as_str() {
            "full_attention" => &mut parts[0],
            "sliding_attention" => &mut parts[1],
            _ => {
                let message = format!("holds `{key}`, but here it should have full_attention and sliding_attention");
                return Err(Error::config(keys.path("rope_parameters"), message));
            }
        };
        match value {
            Value::Null => {}
            Value::Object(inner) => *place = Some((inner, format!("{path}{key}."))),
            other => {
                let message = format!("should be an object, found {}", brief(other));
                return Err(Error::config(format!("{path}{key}"), message));
            }
        }
    }
    let [full, sliding] = parts;
    Ok((full, sliding))
}

/// Reads variants and collects their lines.
struct Reader<'r, 'k, 'm> {
    keys: &'r mut Keys<'k>,
    model: &'r Model<'m>,
    lines: &'r mut Lines,
    ignored: Vec<String>,
    notes: Vec<String>,
}

impl Reader<'_, '_, '_> {
    /// One variant from whichever dialect states it. A file that uses both should say the same twice: where it does not,
    /// transformers takes `rope_scaling`, or in classes with a RoPE for each layer type mixes them, which is refused.
    fn variant(&mut self, theta_key: &str, old: Part, new: Part, index: usize) -> Result<RopeConfig> {
        if old.is_none() && new.is_none() && self.model.preset.scaled_by_default {
            let message = "is missing, and its class then scales RoPE by numbers of its own; state them, or \"rope_type\": \"default\"";
            return Err(Error::config(self.keys.path("rope_parameters"), message));
        }
        let (Some(old), Some(new)) = (&old, &new) else { return self.one(theta_key, old.or(new), index) };
        let (lines, ignored, notes) = (self.lines.0.len(), self.ignored.len(), self.notes.len());
        let second = self.one(theta_key, Some(new.clone()), index);
        self.lines.0.truncate(lines);
        self.ignored.truncate(ignored);
        self.notes.truncate(notes);
        let first = self.one(theta_key, Some(old.clone()), index)?;
        if second.as_ref() == Ok(&first) {
            return Ok(first);
        }
        let (old, new) = (old.1.trim_end_matches('.'), new.1.trim_end_matches('.'));
        if self.model.preset.local_theta_key.is_some() {
            return Err(second.err().unwrap_or_else(|| Error::config(new, format!("`{old}` is stated too, and they differ"))));
        }
        self.notes.push(format!("config.json: `{old}` and `{new}` differ; `{old}` is used, as in transformers"));
        Ok(first)
    }

    /// The RoPE of queries, whose factor grows with the position: that of keys with what the object says of it.
    fn grown(&mut self, part: Part, of_keys: &RopeConfig) -> Result<Option<RopeConfig>> {
        let Some(key) = &self.model.preset.query_growth else { return Ok(None) };
        let empty = Object::new();
        let (map, path) = part.unwrap_or((&empty, String::new()));
        let mut inner = Keys::new(map, path, None, &[]);
        let beta = inner.required::<f64>(key)?;
        let original_max_positions = inner.required::<usize>(ORIGINAL)?;
        let growth = RopeGrowth {
            beta: self.lines.put("ropes[1].growth.beta", beta),
            original_max_positions: self.lines.put("ropes[1].growth.originalMaxPositions", original_max_positions),
        };
        Ok(Some(RopeConfig { growth: Some(growth), ..of_keys.clone() }))
    }

    /// One variant from one object of numbers, or from top-level keys alone.
    fn one(&mut self, theta_key: &str, part: Part, index: usize) -> Result<RopeConfig> {
        let Self { keys, model, lines, ignored, notes } = self;
        let empty = Object::new();
        let (map, path) = part.unwrap_or((&empty, String::new()));
        let mut inner = Keys::new(map, path, None, &[]);
        let theta = agreed::<f64>(keys, &mut inner, theta_key, "rope_theta", notes)?;
        if theta.value <= 1.0 {
            return Err(Error::config(keys.path(theta_key), format!("should be above 1, found {:?}", theta.value)));
        }
        let head_dim = model.head_dims[index.min(1)];
        let kind = kind(&mut inner, model.preset, notes)?;
        let proportional = kind.value == "proportional";
        // That kind rotates a part of the pairs of a whole head.
        let rotary_dim = if proportional {
            even(keys, "head_dim", head_dim, head_dim, "head_dim")?
        } else {
            rotary_dim(keys, &mut inner, model, head_dim, notes)?
        };
        let theta = if kind.value == "dynamic" { stretched(&mut inner, theta, rotary_dim.value)? } else { theta };
        let theta = lines.put(&format!("ropes[{index}].theta"), theta);
        let rotary_dim = lines.put(&format!("ropes[{index}].rotaryDim"), rotary_dim);
        lines.put(&format!("ropes[{index}].pairing"), Sourced::preset(model.preset.pairing));
        let field = format!("ropes[{index}].scaling");
        lines.text(field.clone(), kind.value.clone(), kind.source);
        keys.raw(ORIGINAL); // known in every family, read where a scaling needs it
        let mut numbers = Numbers { outer: keys, inner: &mut inner, model, lines, notes: &mut *notes, field };
        let kind = kind.value;
        let scaling = match kind.as_str() {
            "proportional" => numbers.proportional(head_dim)?,
            "linear" => RopeScaling::Linear { factor: numbers.get("factor", "factor")? },
            "llama3" => numbers.llama3()?,
            "yarn" => numbers.yarn()?,
            "longrope" => numbers.longrope(rotary_dim)?,
            _ => RopeScaling::None,
        };
        if model.preset.query_growth.is_some() {
            inner.raw(ORIGINAL); // the growth is counted by it, whatever the kind
        }
        let in_vain = inner.unread(&KNOWN);
        if !in_vain.is_empty() {
            let list = in_vain.join(", ");
            notes.push(format!("config.json: {list} means nothing for RoPE of type {kind}, and is not used, as in transformers"));
        }
        let growth = model.preset.query_growth.as_deref();
        let harmless: Vec<String> = KNOWN
            .iter()
            .chain(&["finetuned"])
            .copied()
            .chain(growth)
            .chain(model.preset.harmless.iter().map(String::as_str))
            .map(|key| key.to_string())
            .collect();
        let mut unknown = inner.unknown(&harmless, &[])?;
        // What the config says too says nothing new; transformers warns of such keys and does not use them.
        let head_dim = Value::from(head_dim);
        unknown.retain(|u| {
            let stated = keys.whole().get(&u.key).or((u.key == "head_dim").then_some(&head_dim));
            !map.get(&u.key).zip(stated).is_some_and(|(a, b)| same(a, b))
        });
        ignored.extend(inner.refuse(unknown, model.allow_unknown)?);
        Ok(RopeConfig { theta, rotary_dim, pairing: model.preset.pairing, scaling, growth: None })
    }
}

/// A number that may stand in the object, at the top level, or in both, where the object counts; else the class default.
fn agreed<T>(keys: &mut Keys, inner: &mut Keys, outer_key: &str, inner_key: &str, notes: &mut Vec<String>) -> Result<Sourced<T>>
where
    T: Scalar + PartialEq + std::fmt::Debug,
{
    let outer = keys.stated::<T>(outer_key)?;
    let within = match inner.raw(inner_key) {
        Some(Value::Null) => return Err(Error::config(inner.path(inner_key), "null has no meaning here")),
        _ => inner.stated::<T>(inner_key)?,
    };
    match (within, outer) {
        (Some(found), outer) => {
            if let Some(outer) = outer.filter(|outer| outer.value != found.value) {
                notes.push(format!(
                    "config.json: `{}` is {:?}, but `{}` is {:?}; the former is used, as in transformers",
                    inner.path(inner_key),
                    found.value,
                    keys.path(outer_key),
                    outer.value
                ));
            }
            Ok(found)
        }
        (None, _) => keys.required(outer_key),
    }
}

/// The base that "dynamic" with an `alpha` means: θ·alpha^(d/(d−2)), at every length.
fn stretched(inner: &mut Keys, theta: Sourced<f64>, rotary_dim: usize) -> Result<Sourced<f64>> {
    let alpha = inner.required::<f64>("alpha")?;
    let d = rotary_dim as f64;
    if rotary_dim < 4 {
        return Err(unsupported(inner.path("alpha"), format!("{rotary_dim} rotated elements have no base that it could stretch")));
    }
    let how = format!("{:?} ({}) * alpha^(d/(d-2)), alpha {:?} ({})", theta.value, theta.source, alpha.value, alpha.source);
    Ok(Sourced::derived(theta.value * libm::pow(alpha.value, d / (d - 2.0)), how))
}

/// How much of a head is rotated.
fn rotary_dim(keys: &mut Keys, inner: &mut Keys, model: &Model, head_dim: usize, notes: &mut Vec<String>) -> Result<Sourced<usize>> {
    const KEY: &str = "partial_rotary_factor";
    let (factor, source) = if model.preset.partial {
        let factor = agreed::<f64>(keys, inner, KEY, KEY, notes)?;
        (factor.value, format!("head_dim * {:?} ({KEY}: {})", factor.value, factor.source))
    } else {
        for (path, stated) in [(keys.path(KEY), keys.raw(KEY)), (inner.path(KEY), inner.raw(KEY))] {
            if let Some(factor) = stated.filter(|v| !is_off(v) && v.as_f64() != Some(1.0)) {
                notes.push(format!(
                    "config.json: `{path}` {} is not used: this kind of model rotates whole heads, in transformers too",
                    brief(factor)
                ));
            }
        }
        (1.0, "head_dim".to_string())
    };
    let dim = (head_dim as f64 * factor).floor() as usize;
    even(keys, if model.preset.partial { KEY } else { "head_dim" }, dim, head_dim, source)
}

/// `dim`, if it is an even part of `head_dim`.
fn even(keys: &Keys, key: &str, dim: usize, head_dim: usize, source: impl Into<String>) -> Result<Sourced<usize>> {
    if dim > head_dim || dim == 0 || !dim.is_multiple_of(2) {
        let message = format!("{dim} of {head_dim} elements of a head would be rotated; that must be an even part");
        return Err(Error::config(keys.path(key), message));
    }
    Ok(Sourced::derived(dim, source))
}

/// The kind of scaling: `rope_type`, or `type` in old files.
fn kind(inner: &mut Keys, preset: &RopePreset, notes: &mut Vec<String>) -> Result<Sourced<String>> {
    let new = inner.stated::<String>("rope_type")?;
    let old = inner.stated::<String>("type")?;
    if let (Some(new), Some(old)) = (&new, &old)
        && new.value != old.value
    {
        let path = inner.path("rope_type");
        notes.push(format!(
            "config.json: `{path}` is {:.40}, but `type` is {:.40}; the former is used, as in transformers",
            new.value, old.value
        ));
    }
    if preset.local_theta_key.is_some()
        && let (None, Some(old)) = (&new, &old)
    {
        let message = "is read by old versions of transformers and ignored by new ones in this kind of model";
        let message = format!("{:.40} {message}; write rope_type", old.value);
        return Err(Error::config(inner.path("type"), message));
    }
    let Some(mut kind) = new.or(old) else { return Ok(Sourced::new("default".into(), Source::ClassDefault)) };
    if let Some(name) = preset.type_aliases.get(&kind.value) {
        kind.value.clone_from(name);
    }
    if kind.value == "dynamic" && !preset.alpha && preset.types.is_empty() {
        inner.required::<f64>("factor")?;
        notes.push(format!(
            "config.json: `{}` dynamic changes nothing within max_position_embeddings, in transformers too; longer sequences, for which it stretches the base, are refused",
            inner.path("rope_type")
        ));
        kind.value = "default".into();
    }
    let all = ["default", "linear", "llama3", "yarn", "longrope", "proportional"].map(str::to_string);
    let mut allowed = if preset.types.is_empty() { all.to_vec() } else { preset.types.clone() };
    if preset.alpha {
        allowed.push("dynamic".into());
    }
    if !allowed.contains(&kind.value) {
        let message = format!("{:.40} is not supported (supported: {})", kind.value, allowed.join(", "));
        return Err(unsupported(inner.path("rope_type"), message));
    }
    Ok(kind)
}

/// Reads one scaling's numbers and records their sources.
struct Numbers<'n, 'o, 'i, 'm> {
    outer: &'n mut Keys<'o>,
    inner: &'n mut Keys<'i>,
    model: &'n Model<'m>,
    lines: &'n mut Lines,
    notes: &'n mut Vec<String>,
    /// Prefix of the lines.
    field: String,
}

impl Numbers<'_, '_, '_, '_> {
    fn put<T: serde::Serialize>(&mut self, name: &str, value: Sourced<T>) -> T {
        self.lines.put(&format!("{}.{name}", self.field), value)
    }

    /// A number that must be stated.
    fn get(&mut self, field: &str, key: &str) -> Result<f64> {
        let found = self.inner.required::<f64>(key)?;
        Ok(self.put(field, found))
    }

    /// A number of which 0 means "not given", as null does: transformers asks whether it is true.
    fn given(&mut self, key: &str) -> Result<Option<Sourced<f64>>> {
        if self.inner.raw(key).is_some_and(is_off) { Ok(None) } else { self.inner.stated(key) }
    }

    /// One with a default that transformers writes into its formulas.
    fn given_or(&mut self, field: &str, key: &str, default: f64) -> Result<f64> {
        let found = self.given(key)?;
        Ok(self.put(field, found.unwrap_or(Sourced::new(default, Source::ClassDefault))))
    }

    /// Context of pretraining: at the top level, which counts where both are stated, or in the object; else the model's
    /// context.
    fn original_max_positions(&mut self) -> Result<usize> {
        let outer = self.outer.optional::<usize>(ORIGINAL)?;
        let inner = self.inner.stated::<usize>(ORIGINAL)?;
        let found = match (inner, outer.value) {
            (Some(a), Some(b)) if a.value != b => {
                let (inner, outer_path) = (self.inner.path(ORIGINAL), self.outer.path(ORIGINAL));
                if self.model.preset.local_theta_key.is_some() {
                    return Err(Error::config(inner, format!("is {}, but `{outer_path}` is {b} ({})", a.value, outer.source)));
                }
                self.notes.push(format!(
                    "config.json: `{inner}` is {}, but `{outer_path}` is {b}; the latter is used, as in transformers",
                    a.value
                ));
                Sourced::new(b, outer.source)
            }
            (Some(found), _) => found,
            (None, Some(value)) => Sourced::new(value, outer.source),
            (None, None) => {
                let context = self.model.max_positions;
                Sourced::derived(context.value, format!("max_position_embeddings ({})", context.source))
            }
        };
        Ok(self.put("originalMaxPositions", found))
    }

    /// `max_position_embeddings` over the context of pretraining.
    fn context_ratio(&self, original: usize) -> Sourced<f64> {
        let ratio = self.model.max_positions.value as f64 / original as f64;
        Sourced::derived(ratio, "max_position_embeddings / original_max_position_embeddings")
    }

    /// Of `head_dim` / 2 pairs a part is rotated, by default all; a stretch is 1 unless stated.
    fn proportional(&mut self, head_dim: usize) -> Result<RopeScaling> {
        const KEY: &str = "partial_rotary_factor";
        let part = match self.inner.stated::<f64>(KEY)? {
            Some(stated) => Some(stated),
            None if self.model.preset.partial => self.outer.stated(KEY)?,
            None => None,
        };
        let part = part.unwrap_or(Sourced::new(1.0, Source::ClassDefault));
        let rotated = (part.value * head_dim as f64 / 2.0).floor() as usize;
        if !(0.0..=1.0).contains(&part.value) {
            return Err(Error::config(self.inner.path(KEY), format!("should be from 0 to 1, found {:?}", part.value)));
        }
        let how = format!("head_dim / 2 * {:?} ({KEY}: {})", part.value, part.source);
        let rotated = self.put("rotated", Sourced::derived(rotated, how));
        let stretch = self.inner.stated::<f64>("factor")?.unwrap_or(Sourced::new(1.0, Source::ClassDefault));
        Ok(RopeScaling::Proportional { rotated, factor: self.put("factor", stretch) })
    }

    fn llama3(&mut self) -> Result<RopeScaling> {
        let factor = self.get("factor", "factor")?;
        let low_freq_factor = self.get("lowFreqFactor", "low_freq_factor")?;
        let high_freq_factor = self.get("highFreqFactor", "high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let message = format!("{high_freq_factor:?} should be above low_freq_factor, {low_freq_factor:?}");
            return Err(Error::config(self.inner.path("high_freq_factor"), message));
        }
        let original_max_positions = self.original_max_positions()?;
        Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions })
    }

    /// The factor on cos and sin is 0.1·ln(factor) + 1 (at least 1), or the quotient of two such terms with `mscale`
    /// and `mscale_all_dim` in front of the logarithms.
    fn yarn(&mut self) -> Result<RopeScaling> {
        let original_max_positions = self.original_max_positions()?;
        let stretch = match self.inner.raw("factor") {
            Some(Value::Null) => self.context_ratio(original_max_positions),
            _ => self.inner.required::<f64>("factor")?,
        };
        let factor = self.put("factor", stretch);
        let beta_fast = self.given_or("betaFast", "beta_fast", 32.0)?;
        let beta_slow = self.given_or("betaSlow", "beta_slow", 1.0)?;
        if beta_fast < beta_slow {
            let message = format!("{beta_fast:?} should not be below beta_slow, {beta_slow:?}");
            return Err(Error::config(self.inner.path("beta_fast"), message));
        }
        let (mscale, mscale_all_dim) = (self.given("mscale")?, self.given("mscale_all_dim")?);
        let term = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * libm::log(factor) + 1.0 };
        let attention_factor = match (self.inner.stated::<f64>("attention_factor")?, mscale, mscale_all_dim) {
            (Some(stated), _, _) => stated,
            (None, Some(a), Some(b)) => {
                let how = "(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)";
                Sourced::derived(term(a.value) / term(b.value), how)
            }
            _ => Sourced::derived(term(1.0), "0.1 ln(factor) + 1"),
        };
        let attention_factor = self.put("attentionFactor", attention_factor);
        let truncate = self.truncate()?;
        Ok(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate })
    }

    /// Whether YaRN's range is cut to whole elements: unless a file says so or gives what Python takes for false, null too.
    fn truncate(&mut self) -> Result<bool> {
        let of_layers = self.model.preset.local_theta_key.is_some();
        let truncate = match self.inner.raw("truncate") {
            Some(value) if is_off(value) && !of_layers => Some(Sourced::new(false, Source::Config(self.inner.path("truncate")))),
            _ => self.inner.stated::<bool>("truncate")?,
        };
        if of_layers && truncate.as_ref().is_some_and(|t| !t.value) {
            let message = "false is not supported here: transformers ignores it where layer types have their own RoPE";
            return Err(unsupported(self.inner.path("truncate"), message));
        }
        Ok(self.put("truncate", truncate.unwrap_or(Sourced::new(true, Source::ClassDefault))))
    }

    /// The factor on cos and sin is sqrt(1 + ln(factor)/ln(original)), at least 1; `factor` is the ratio of contexts
    /// unless stated.
    fn longrope(&mut self, rotary_dim: usize) -> Result<RopeScaling> {
        let original_max_positions = self.original_max_positions()?;
        let short_factor = self.divisors("shortFactor", "short_factor", rotary_dim / 2)?;
        let long_factor = self.divisors("longFactor", "long_factor", rotary_dim / 2)?;
        let ratio = self.inner.stated::<f64>("factor")?.unwrap_or_else(|| self.context_ratio(original_max_positions));
        let factor = self.put("factor", ratio);
        let attention_factor = self.inner.stated::<f64>("attention_factor")?.unwrap_or_else(|| {
            let grown = (1.0 + libm::log(factor) / libm::log(original_max_positions as f64)).sqrt();
            Sourced::derived(if factor <= 1.0 { 1.0 } else { grown }, "sqrt(1 + ln(factor) / ln(original))")
        });
        if !attention_factor.value.is_finite() {
            let message = format!("{original_max_positions} leaves no factor on cos and sin");
            return Err(Error::config(self.outer.path(ORIGINAL), message));
        }
        let attention_factor = self.put("attentionFactor", attention_factor);
        Ok(RopeScaling::LongRope { short_factor, long_factor, original_max_positions, attention_factor })
    }

    /// A list with one divisor per frequency.
    fn divisors(&mut self, field: &str, key: &str, expected: usize) -> Result<Vec<f64>> {
        let list = self.inner.required::<Vec<f64>>(key)?;
        if list.value.len() != expected {
            let message = format!("has {} entries; half the rotated part of a head is {expected}", list.value.len());
            return Err(Error::config(self.inner.path(key), message));
        }
        let range = |list: &[f64]| {
            let low = list.iter().copied().fold(f64::INFINITY, f64::min);
            let high = list.iter().copied().fold(0.0, f64::max);
            format!("{} divisors from {low:?} to {high:?}", list.len())
        };
        self.lines.text(format!("{}.{field}", self.field), range(&list.value), list.source);
        Ok(list.value)
    }
}
