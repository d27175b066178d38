//! Which layers have a window, which have RoPE and which convolve, from lists, patterns and switches.
//! It knows the layer types that transformers has for these, and no family.

use serde_json::Value;

use super::keys::{Keys, unsupported};
use super::preset::{GatedDelta, LayerPattern, NoRopeLayers, Preset, ShortConv};
use super::rope::Ropes;
use super::values::{Lines, Sourced};
use crate::error::{Error, Result};
use crate::model::{Activation, DeltaHeads, GatedDeltaConfig, LayerConfig, Mixer, ShortConvConfig, Source};

/// More layers than any model has; keeps a wrong count from allocating.
const MAX_LAYERS: usize = 1_000;
/// More taps than any convolution has.
const MAX_TAPS: usize = 64;

/// How many layers there are, and which have RoPE and a window.
pub(super) struct Kinds {
    count: Sourced<usize>,
    rotated: Sourced<Vec<bool>>,
    window: Sourced<Option<usize>>,
    /// Which have one.
    pub windowed: Sourced<Vec<bool>>,
}

/// Reads which layers have RoPE and a window. Errors name the key.
pub(super) fn kinds(keys: &mut Keys, preset: &Preset, notes: &mut Vec<String>) -> Result<Kinds> {
    let stated = keys.required::<usize>("num_hidden_layers")?;
    let count = stated.clone();
    if count.value > MAX_LAYERS {
        let message = format!("{} layers are more than {MAX_LAYERS}", count.value);
        return Err(Error::config(keys.path("num_hidden_layers"), message));
    }
    let count = count.value;
    let mut rotated = match &preset.no_rope_layers {
        Some(NoRopeLayers::Listed { key, interval }) => rotated_layers(keys, key, interval, count)?,
        Some(NoRopeLayers::Unless { key, is }) => {
            let stated = keys.optional::<String>(key)?;
            Sourced::new(vec![stated.value.as_ref() == Some(is); count], stated.source)
        }
        Some(NoRopeLayers::FullBesideWindows) | None => Sourced::preset(vec![true; count]),
    };
    let (window, mut windowed) = windowed_layers(keys, preset, &rotated.value, count)?;
    if let (Some(LayerPattern::FullEveryAndLast(_)), Some(last)) = (&preset.layer_pattern, windowed.value.last_mut())
        && std::mem::replace(last, false)
    {
        let (list, at) = (preset.layer_types.as_ref().map_or("layer_types", |list| &list.key), count - 1);
        notes.push(format!(
            "config.json: `{}` says sliding_attention of the last layer, {at}, which has full attention, as in transformers",
            keys.path(list)
        ));
    }
    if window.value.is_some() && matches!(preset.no_rope_layers, Some(NoRopeLayers::FullBesideWindows)) {
        rotated = Sourced::derived(windowed.value.clone(), "layers without a window have none in models with windows (preset)");
    }
    Ok(Kinds { count: stated, rotated, window, windowed })
}

/// The layers, each `alike` but for its window and RoPE. `ropes` says which RoPE full and windowed layers use. Lines
/// `layers`, `layers[].mixer.window` and `layers[].mixer.rope` are added. Errors name the key.
pub(super) fn read(
    keys: &mut Keys,
    preset: &Preset,
    kinds: Kinds,
    ropes: &Ropes,
    alike: LayerConfig,
    lines: &mut Lines,
) -> Result<Vec<LayerConfig>> {
    let Kinds { count, rotated, window, windowed } = kinds;
    let count = lines.put("layers", count);
    let layer = |i: usize| {
        let mut layer = alike.clone();
        if let Some(attention) = layer.attention_mut() {
            attention.window = window.value.filter(|_| windowed.value[i]);
            attention.rope = rotated.value[i].then_some(if windowed.value[i] { ropes.sliding } else { ropes.full });
            attention.query_rope = ropes.query.filter(|_| rotated.value[i]);
        }
        layer
    };
    let mut layers: Vec<LayerConfig> = (0..count).map(layer).collect();
    if let Some(spec) = &preset.short_conv {
        convolutions(keys, spec, &mut layers, lines)?;
    }

    match window.value.filter(|_| windowed.value.contains(&true)) {
        None => lines.text("layers[].mixer.window", "none", if window.value.is_none() { window.source } else { windowed.source }),
        Some(width) => {
            lines.text("layers[].mixer.window", format!("{width}"), window.source);
            lines.text("layers[].mixer.windowed", which(&windowed.value), windowed.source);
        }
    }
    let rope = |layer: &LayerConfig| layer.rope().map_or("none".to_string(), |rope| format!("ropes[{rope}]"));
    lines.text("layers[].mixer.rope", by_layer(layers.iter().map(rope)), rotated.source);
    if let Some(query) = ropes.query {
        lines.text("layers[].mixer.queryRope", format!("ropes[{query}]"), Source::Preset);
    }
    Ok(layers)
}

/// Gives the layers that have one a short convolution in place of attention.
fn convolutions(keys: &mut Keys, spec: &ShortConv, layers: &mut [LayerConfig], lines: &mut Lines) -> Result<()> {
    let taps = taps(keys, &spec.taps)?;
    let bias = keys.required::<bool>(&spec.bias)?;
    let listed = keys.stated::<Vec<u32>>(&spec.attention_layers)?;
    let attends = match keys.stated::<Vec<String>>(&spec.layer_types)? {
        Some(list) => attends(keys.path(&spec.layer_types), list, "conv", layers.len())?,
        None => match listed {
            Some(list) => Sourced::new((0..layers.len()).map(|i| list.value.iter().any(|at| *at as usize == i)).collect(), list.source),
            None => Sourced::new(vec![true; layers.len()], Source::ClassDefault),
        },
    };
    for layer in layers.iter_mut().zip(&attends.value).filter(|(_, attends)| !**attends).map(|(layer, _)| layer) {
        layer.mixer = Mixer::ShortConv(ShortConvConfig { taps: taps.value, bias: bias.value });
    }
    let kind = |attends: &bool| if *attends { "attention".to_string() } else { "shortConv".to_string() };
    lines.text("layers[].mixer.type", by_layer(attends.value.iter().map(kind)), attends.source);
    lines.put("layers[].mixer.taps", taps);
    lines.put("layers[].mixer.bias", bias);
    Ok(())
}

/// Gives the layers that have one a gated delta rule in place of attention; its heads.
pub(super) fn deltas(
    keys: &mut Keys,
    spec: &GatedDelta,
    activation: Activation,
    layers: &mut [LayerConfig],
    lines: &mut Lines,
) -> Result<DeltaHeads> {
    let taps = taps(keys, &spec.taps)?;
    let found = [&spec.key_heads, &spec.value_heads, &spec.key_dim, &spec.value_dim].map(|key| keys.required::<usize>(key));
    let [key_heads, value_heads, key_dim, value_dim] = found;
    let (key_heads, value_heads, key_dim, value_dim) = (key_heads?, value_heads?, key_dim?, value_dim?);
    let heads = DeltaHeads { keys: key_heads.value, values: value_heads.value, key_dim: key_dim.value, value_dim: value_dim.value };
    if !heads.values.is_multiple_of(heads.keys) {
        let message = format!("{} is no multiple of {}, {}", heads.values, keys.path(&spec.key_heads), heads.keys);
        return Err(Error::config(keys.path(&spec.value_heads), message));
    }
    if heads.matrices().max(heads.width()).max(heads.taken()) > i32::MAX as usize {
        let message = format!("{} heads of {} times {} elements are too many", heads.values, heads.value_dim, heads.key_dim);
        return Err(Error::config(keys.path(&spec.value_heads), message));
    }
    if let Activation::Clamped { .. } = activation {
        return Err(unsupported(keys.path(&spec.taps), "a convolution has no clamped activation"));
    }
    let interval = keys.required::<usize>(&spec.interval)?;
    let attends = match keys.stated::<Vec<String>>(&spec.layer_types)? {
        Some(list) => attends(keys.path(&spec.layer_types), list, "linear_attention", layers.len())?,
        None => {
            let attends = (0..layers.len()).map(|i| (i + 1).is_multiple_of(interval.value)).collect();
            let how = format!("every {}th layer has attention ({}: {})", interval.value, keys.path(&spec.interval), interval.source);
            Sourced::derived(attends, how)
        }
    };
    let scale = (1.0 / heads.key_dim as f64).sqrt();
    let mixer = Mixer::GatedDelta(GatedDeltaConfig { heads, taps: taps.value, activation, unit_eps: spec.unit_eps, scale });
    for (layer, _) in layers.iter_mut().zip(&attends.value).filter(|(_, attends)| !**attends) {
        layer.mixer = mixer.clone();
    }
    let kind = |attends: &bool| if *attends { "attention".to_string() } else { "gatedDelta".to_string() };
    lines.text("layers[].mixer.type", by_layer(attends.value.iter().map(kind)), attends.source);
    lines.put("layers[].mixer.heads.keys", key_heads);
    lines.put("layers[].mixer.heads.values", value_heads);
    lines.put("layers[].mixer.heads.keyDim", key_dim);
    lines.put("layers[].mixer.heads.valueDim", value_dim);
    lines.put("layers[].mixer.taps", taps);
    lines.put("layers[].mixer.unitEps", Sourced::preset(spec.unit_eps));
    lines.put("layers[].mixer.deltaScale", Sourced::derived(scale, format!("{}^-1/2", keys.path(&spec.key_dim))));
    Ok(heads)
}

/// Tokens that a convolution sees.
fn taps(keys: &mut Keys, key: &str) -> Result<Sourced<usize>> {
    let taps = keys.required::<usize>(key)?;
    if taps.value == 0 || taps.value > MAX_TAPS {
        let message = format!("should be from 1 to {MAX_TAPS}, found {}", taps.value);
        return Err(Error::config(keys.path(key), message));
    }
    Ok(taps)
}

/// Which layers have attention, of a list at `path` of the types of `count` layers, the others being of type `other`.
fn attends(path: String, list: Sourced<Vec<String>>, other: &str, count: usize) -> Result<Sourced<Vec<bool>>> {
    if list.value.len() != count {
        return Err(Error::config(path, format!("lists {} layers, but there are {count}", list.value.len())));
    }
    let attends = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(true),
        kind if kind == other => Ok(false),
        unknown => Err(unsupported(&path, format!("layer type {unknown:.40} is not supported (supported: full_attention, {other})"))),
    };
    Ok(Sourced::new(list.value.iter().map(attends).collect::<Result<Vec<bool>>>()?, list.source))
}

/// What each layer has, in words: once where all have the same, else with the layers that have it.
pub(super) fn by_layer(texts: impl Iterator<Item = String>) -> String {
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (layer, text) in texts.enumerate() {
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, layers)) => layers.push(layer),
            None => found.push((text, vec![layer])),
        }
    }
    if let [(text, _)] = &found[..] {
        return text.clone();
    }
    let parts: Vec<String> = found.iter().map(|(text, layers)| format!("{text} (layers {})", ranges(layers.iter().copied()))).collect();
    parts.join(", ")
}

/// Layers with RoPE: the list, or all but every n-th.
fn rotated_layers(keys: &mut Keys, key: &str, interval_key: &str, count: usize) -> Result<Sourced<Vec<bool>>> {
    let interval = keys.required::<usize>(interval_key)?;
    let path = keys.path(key);
    let Some(list) = keys.stated::<Vec<u32>>(key)? else {
        let rotated = (0..count).map(|i| (i + 1) % interval.value != 0).collect();
        let how = format!("every {}th layer has none ({}: {})", interval.value, keys.path(interval_key), interval.source);
        return Ok(Sourced::derived(rotated, how));
    };
    if list.value.len() < count {
        return Err(Error::config(path, format!("lists {} layers of {count}", list.value.len())));
    }
    if let Some(bad) = list.value.iter().find(|v| **v > 1) {
        return Err(Error::config(path, format!("should hold 0 and 1 only, found {bad}")));
    }
    Ok(Sourced::new(list.value[..count].iter().map(|v| *v == 1).collect(), list.source))
}

/// A window's width, and which layers have it: none of them when there is no window.
type Windows = (Sourced<Option<usize>>, Sourced<Vec<bool>>);

/// Reads the window and the layers that have it.
fn windowed_layers(keys: &mut Keys, preset: &Preset, rotated: &[bool], count: usize) -> Result<Windows> {
    let Some(spec) = &preset.sliding_window else {
        if let Some(reference) = &preset.layer_types {
            let list = listed(keys, &reference.key, count)?;
            if list.is_none() && matches!(preset.layer_pattern, Some(LayerPattern::OnlyListed)) {
                let message = "is missing: then all layers are recurrent in this kind of model, which is not supported";
                return Err(unsupported(keys.path(&reference.key), message));
            }
            if list.is_some_and(|list| list.value.contains(&true)) {
                let message = "has layers of type sliding_attention, but this kind of model has no window";
                return Err(Error::config(keys.path(&reference.key), message));
            }
        }
        return Ok((Sourced::preset(None), Sourced::preset(vec![false; count])));
    };
    let switched_off = match &spec.switch {
        Some(switch) => {
            let on = keys.required::<bool>(switch)?;
            (!on.value).then(|| format!("{} is false ({})", keys.path(switch), on.source))
        }
        None => None,
    };
    let window = match switched_off {
        Some(how) => {
            keys.raw(&spec.key); // known, and of no meaning
            Sourced::derived(None, how)
        }
        None => keys.optional::<usize>(&spec.key)?,
    };
    // The pattern is read in any case: its keys are known, and a wrong value is an error even when a list decides.
    let mut windowed = pattern(keys, preset, rotated, count)?;
    if let Some(reference) = &preset.layer_types
        && let Some(list) = listed(keys, &reference.key, count)?
    {
        if window.value.is_none() && list.value.contains(&true) {
            let message = "has layers of type sliding_attention, but the window is off";
            return Err(Error::config(keys.path(&reference.key), format!("{message} ({})", window.source)));
        }
        windowed = list;
    }
    if window.value.is_none() {
        windowed.value.fill(false);
    }
    Ok((window, windowed))
}

/// `layer_types` as flags: windowed or not.
fn listed(keys: &mut Keys, key: &str, count: usize) -> Result<Option<Sourced<Vec<bool>>>> {
    let Some(list) = keys.stated::<Vec<String>>(key)? else { return Ok(None) };
    if list.value.len() != count {
        let message = format!("lists {} layers, but there are {count}", list.value.len());
        return Err(Error::config(keys.path(key), message));
    }
    let flag = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" | "attention" => Ok(false),
        other => Err(unsupported(keys.path(key), format!("layer type {other:.40} is not supported"))),
    };
    let flags: Result<Vec<bool>> = list.value.iter().map(flag).collect();
    Ok(Some(Sourced::new(flags?, list.source)))
}

/// The windowed layers where no list is given.
fn pattern(keys: &mut Keys, preset: &Preset, rotated: &[bool], count: usize) -> Result<Sourced<Vec<bool>>> {
    Ok(match &preset.layer_pattern {
        None | Some(LayerPattern::OnlyListed) => Sourced::preset(vec![false; count]),
        Some(LayerPattern::FullEveryAndLast(period)) => {
            let windowed: Vec<bool> = (0..count).map(|i| (i + 1) % period != 0 && i + 1 < count).collect();
            Sourced::new(windowed, Source::ClassDefault)
        }
        Some(LayerPattern::AllSliding) => Sourced::preset(vec![true; count]),
        Some(LayerPattern::SlidingWithoutRope) => Sourced::preset(rotated.iter().map(|r| !r).collect()),
        Some(LayerPattern::FullEvery(setting)) => {
            let period = keys.setting::<usize>(setting)?;
            Sourced::new((0..count).map(|i| (i + 1) % period.value != 0).collect(), period.source)
        }
        Some(LayerPattern::FullEveryUnlessListed(key)) => {
            let listed = preset.layer_types.as_ref().is_some_and(|list| keys.raw(&list.key).is_some_and(|v| !v.is_null()));
            let found = keys.raw(key);
            if listed {
                return Ok(Sourced::preset(vec![false; count]));
            }
            if let Some(Value::String(letters)) = found {
                let message = format!("{letters:.40?} needs `layer_types`, which says the same for each layer, in transformers too");
                return Err(Error::config(keys.path(key), message));
            }
            let period = keys.required::<usize>(key)?;
            Sourced::new((0..count).map(|i| (i + 1) % period.value != 0).collect(), period.source)
        }
        Some(LayerPattern::AlternatingBelow(key)) => {
            let end = keys.required::<u32>(key)?;
            Sourced::new((0..count).map(|i| i % 2 == 0 && i < end.value as usize).collect(), end.source)
        }
        Some(LayerPattern::SlidingFrom(key)) => {
            let first = keys.required::<u32>(key)?;
            Sourced::new((0..count).map(|i| i >= first.value as usize).collect(), first.source)
        }
    })
}

/// The set layers in words: "all", "none" or ranges.
pub(super) fn which(flags: &[bool]) -> String {
    if flags.iter().all(|f| *f) {
        return "all layers".to_string();
    }
    let set = ranges(flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(i, _)| i));
    if set.is_empty() { "no layer".to_string() } else { format!("layers {set}") }
}

/// Ascending numbers as ranges: `0-1 3`.
fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for i in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == i => *last = i,
            _ => ranges.push((i, i)),
        }
    }
    let text = |(a, b): &(usize, usize)| if a == b { format!("{a}") } else { format!("{a}-{b}") };
    ranges.iter().map(text).collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{by_layer, which};

    #[test]
    fn layers_in_words() {
        assert_eq!(which(&[true, true]), "all layers");
        assert_eq!(which(&[false, false]), "no layer");
        assert_eq!(which(&[true, true, false, true, false, true, true]), "layers 0-1 3 5-6");
        let widths = |list: &[usize]| by_layer(list.iter().map(usize::to_string));
        assert_eq!((widths(&[64, 64]), widths(&[64, 64, 128, 64])), ("64".into(), "64 (layers 0-1 3), 128 (layers 2)".into()));
    }
}
