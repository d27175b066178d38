//! RoPE from both dialects of `config.json`: `rope_theta` with `rope_scaling`, and `rope_parameters`, flat or one per
//! layer type. It decides which numbers apply and where they came from; `plan::rope` turns them into frequencies.
//! Defaults of the scalings are those of transformers' `modeling_rope_utils`.

use serde_json::Value;

use super::keys::{Keys, Object, unsupported};
use super::preset::RopePreset;
use super::values::{Lines, Scalar, Sourced, brief};
use crate::error::{Error, Result};
use crate::model::{RopeConfig, RopeScaling, Source};

/// The context of pretraining, which three of the scalings need.
const ORIGINAL: &str = "original_max_position_embeddings";

/// The RoPE variants of a model and which layers use them (indices into `list`).
pub(super) struct Ropes {
    pub list: Vec<RopeConfig>,
    /// For layers that attend to everything.
    pub full: usize,
    /// For windowed layers.
    pub sliding: usize,
    /// Keys of scaling objects that were not understood.
    pub ignored: Vec<String>,
}

/// What RoPE needs to know about the rest of the model.
pub(super) struct Model<'a> {
    pub preset: &'a RopePreset,
    pub head_dim: usize,
    pub max_positions: &'a Sourced<usize>,
    /// Unknown keys of scaling objects are collected instead of refused.
    pub allow_unknown: bool,
}

/// Reads every RoPE variant. Adds `ropes[i].…` lines. Errors name the key.
pub(super) fn read(keys: &mut Keys, model: &Model, lines: &mut Lines) -> Result<Ropes> {
    let old = object(keys, "rope_scaling")?;
    let new = object(keys, "rope_parameters")?;
    let mut reader = Reader { keys, model, lines, ignored: Vec::new() };
    let Some(local_theta) = &model.preset.local_theta_key else {
        let list = vec![reader.variant("rope_theta", old, new, 0)?];
        return Ok(Ropes { list, full: 0, sliding: 0, ignored: reader.ignored });
    };
    let (full, sliding) = per_layer_type(reader.keys, new)?;
    let list = vec![reader.variant("rope_theta", old, full, 0)?, reader.variant(local_theta, None, sliding, 1)?];
    Ok(Ropes { list, full: 0, sliding: 1, ignored: reader.ignored })
}

/// An object of RoPE numbers and its path.
type Part<'a> = Option<(&'a Object, String)>;

/// The object under `key`; absent, null and empty are none.
fn object<'a>(keys: &mut Keys<'a>, key: &str) -> Result<Part<'a>> {
    match keys.raw(key) {
        None | Some(Value::Null) => Ok(None),
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
}

impl Reader<'_, '_, '_> {
    /// One variant from whichever dialect states it; a file that uses both must say the same twice.
    fn variant(&mut self, theta_key: &str, old: Part, new: Part, index: usize) -> Result<RopeConfig> {
        let (Some(old), Some(new)) = (&old, &new) else { return self.one(theta_key, old.or(new), index) };
        let (lines, ignored) = (self.lines.0.len(), self.ignored.len());
        let first = self.one(theta_key, Some(old.clone()), index)?;
        self.lines.0.truncate(lines);
        self.ignored.truncate(ignored);
        let second = self.one(theta_key, Some(new.clone()), index)?;
        if first != second {
            let message = format!("`{}` is stated too, and they differ", old.1.trim_end_matches('.'));
            return Err(Error::config(new.1.trim_end_matches('.'), message));
        }
        Ok(second)
    }

    /// One variant from one object of numbers, or from top-level keys alone.
    fn one(&mut self, theta_key: &str, part: Part, index: usize) -> Result<RopeConfig> {
        let Self { keys, model, lines, ignored } = self;
        let empty = Object::new();
        let (map, path) = part.unwrap_or((&empty, String::new()));
        let mut inner = Keys::new(map, path, None, &[]);
        let theta = agreed::<f64>(keys, &mut inner, theta_key, "rope_theta")?;
        if theta.value <= 1.0 {
            return Err(Error::config(keys.path(theta_key), format!("should be above 1, found {:?}", theta.value)));
        }
        let theta = lines.put(&format!("ropes[{index}].theta"), theta);
        let rotary_dim = lines.put(&format!("ropes[{index}].rotaryDim"), rotary_dim(keys, &mut inner, model)?);
        let kind = kind(&mut inner, model.preset)?;
        let field = format!("ropes[{index}].scaling");
        lines.text(field.clone(), kind.value.clone(), kind.source);
        keys.raw(ORIGINAL); // known in every family, read where a scaling needs it
        let mut numbers = Numbers { outer: keys, inner: &mut inner, model, lines, field };
        let scaling = match kind.value.as_str() {
            "linear" => RopeScaling::Linear { factor: numbers.get("factor", "factor")? },
            "llama3" => numbers.llama3()?,
            "yarn" => numbers.yarn()?,
            "longrope" => numbers.longrope(rotary_dim)?,
            _ => RopeScaling::None,
        };
        let unknown = inner.unknown(&["finetuned".to_string()], &[])?;
        ignored.extend(inner.refuse(unknown, model.allow_unknown)?);
        Ok(RopeConfig { theta, rotary_dim, scaling })
    }
}

/// A number that may stand in the object, at the top level, or in both if they agree; else the class default.
fn agreed<T>(keys: &mut Keys, inner: &mut Keys, outer_key: &str, inner_key: &str) -> Result<Sourced<T>>
where
    T: Scalar + PartialEq + std::fmt::Debug,
{
    let outer = keys.stated::<T>(outer_key)?;
    let within = match inner.raw(inner_key) {
        Some(Value::Null) => return Err(Error::config(inner.path(inner_key), "null has no meaning here")),
        _ => inner.stated::<T>(inner_key)?,
    };
    match (within, outer) {
        (Some(a), Some(b)) if a.value != b.value => {
            let message = format!("is {:?}, but `{}` is {:?}", a.value, keys.path(outer_key), b.value);
            Err(Error::config(inner.path(inner_key), message))
        }
        (Some(found), _) => Ok(found),
        (None, _) => keys.required(outer_key),
    }
}

/// How much of a head is rotated.
fn rotary_dim(keys: &mut Keys, inner: &mut Keys, model: &Model) -> Result<Sourced<usize>> {
    const KEY: &str = "partial_rotary_factor";
    let (factor, source) = if model.preset.partial {
        let factor = agreed::<f64>(keys, inner, KEY, KEY)?;
        (factor.value, format!("head_dim * {:?} ({KEY}: {})", factor.value, factor.source))
    } else {
        let refuse = |factor: Sourced<f64>, path: String| {
            let message = format!("{:?} is not supported: this kind of model rotates whole heads", factor.value);
            if factor.value == 1.0 { Ok(()) } else { Err(unsupported(path, message)) }
        };
        keys.stated(KEY)?.map_or(Ok(()), |factor| refuse(factor, keys.path(KEY)))?;
        inner.stated(KEY)?.map_or(Ok(()), |factor| refuse(factor, inner.path(KEY)))?;
        (1.0, "head_dim".to_string())
    };
    let dim = (model.head_dim as f64 * factor).floor() as usize;
    if factor > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
        let key = if model.preset.partial { KEY } else { "head_dim" };
        let message = format!("{dim} of {} elements of a head would be rotated; that must be an even part", model.head_dim);
        return Err(Error::config(keys.path(key), message));
    }
    Ok(Sourced::derived(dim, source))
}

/// The kind of scaling: `rope_type`, or `type` in old files.
fn kind(inner: &mut Keys, preset: &RopePreset) -> Result<Sourced<String>> {
    let new = inner.stated::<String>("rope_type")?;
    let old = inner.stated::<String>("type")?;
    if let (Some(new), Some(old)) = (&new, &old)
        && new.value != old.value
    {
        let message = format!("is {:.40}, but `type` beside it is {:.40}", new.value, old.value);
        return Err(Error::config(inner.path("rope_type"), message));
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
    let all = ["default", "linear", "llama3", "yarn", "longrope"].map(str::to_string);
    let allowed = if preset.types.is_empty() { &all[..] } else { &preset.types[..] };
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

    /// A number with a default that transformers writes into its formulas.
    fn get_or(&mut self, field: &str, key: &str, default: f64) -> Result<f64> {
        let found = self.inner.stated::<f64>(key)?;
        Ok(self.put(field, found.unwrap_or(Sourced::new(default, Source::ClassDefault))))
    }

    /// Context of pretraining: beside the scaling or at the top level (which must agree), else the model's context.
    fn original_max_positions(&mut self) -> Result<usize> {
        let outer = self.outer.optional::<usize>(ORIGINAL)?;
        let inner = self.inner.stated::<usize>(ORIGINAL)?;
        let found = match (inner, outer.value) {
            (Some(a), Some(b)) if a.value != b => {
                let message = format!("is {}, but `{}` is {b} ({})", a.value, self.outer.path(ORIGINAL), outer.source);
                return Err(Error::config(self.inner.path(ORIGINAL), message));
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
        let beta_fast = self.get_or("betaFast", "beta_fast", 32.0)?;
        let beta_slow = self.get_or("betaSlow", "beta_slow", 1.0)?;
        if beta_fast < beta_slow {
            let message = format!("{beta_fast:?} should not be below beta_slow, {beta_slow:?}");
            return Err(Error::config(self.inner.path("beta_fast"), message));
        }
        let mscale = self.inner.stated::<f64>("mscale")?;
        let mscale_all_dim = self.inner.stated::<f64>("mscale_all_dim")?;
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
        let truncate = self.inner.stated::<bool>("truncate")?;
        if self.model.preset.local_theta_key.is_some() && truncate.as_ref().is_some_and(|t| !t.value) {
            let message = "false is not supported here: transformers ignores it where layer types have their own RoPE";
            return Err(unsupported(self.inner.path("truncate"), message));
        }
        let truncate = self.put("truncate", truncate.unwrap_or(Sourced::new(true, Source::ClassDefault)));
        Ok(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate })
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
