//! `config.json` and a preset become a `ModelConfig` in which every number has a source.
//! It knows the keys that all families share; what a family does differently is in its preset.

use serde_json::Value;

use super::keys::{Claim, Keys, Object, unsupported};
use super::preset::{self, AdjustedFfn, ClampedActivation, DenseLayers, Preset};
use super::setting::{KeyRef, Setting};
use super::token_ids::TokenIds;
use super::values::{Lines, Sourced, brief};
use super::{generation, heads, layers, rope};
use crate::error::{Error, Result};
use crate::json;
use crate::model::{
    Activation, AttentionConfig, DenseConfig, ExpertsConfig, Ffn, LayerConfig, Mixer, ModelConfig, Norm, QueryKeyNorm, Resolved, Router,
    SharedExpert, Source, TensorNames,
};

/// How strictly a config is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// Keys that are not understood are listed in `Resolved::ignored_keys` instead of refused.
    pub allow_unknown: bool,
}

/// Resolves a model's `config.json` (its text), with `generation_config.json` where the model has one.
///
/// The family is found by `architectures`, else by `model_type`. An absent key takes the default of its transformers
/// class; an explicit null is off where null has a meaning for that key.
///
/// Token ids are those that `generate` of transformers uses: stated in `generation_config.json`, else in
/// `config.json`. Class defaults of ids are not used, as there; ids beyond the vocabulary are dropped.
///
/// A `generation_config.json` that cannot be read is passed over with a note.
///
/// Whether a checkpoint that config.json calls quantised is so, only its files say: `Resolved::quantised` is the claim.
///
/// Errors are `Kind::Format` (no JSON object), `Kind::Unsupported` (another family, an option that Doppler does not run) and `Kind::Config` (a key that is missing, unknown or has a bad value, named by path).
pub fn resolve(config_json: &str, generation_config_json: Option<&str>, options: ResolveOptions) -> Result<Resolved> {
    let config = object(config_json, "config.json")?;
    let (generation, broken) = match generation_config_json.map(|text| object(text, "generation_config.json")).transpose() {
        Ok(generation) => (generation, None),
        Err(error) => (None, Some(format!("{}; the model is run as without that file, as transformers does", error.message))),
    };
    let (preset, matched, note) = preset::select(&config)?;
    let mut resolved = resolve_with(preset, &matched, &config, generation.as_ref(), options)?;
    resolved.notes.splice(0..0, note.into_iter().chain(broken));
    Ok(resolved)
}

/// The JSON object in `text`.
fn object(text: &str, file: &str) -> Result<Object> {
    match json::parse(file, text)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::format(file, format!("should hold an object, found {}", brief(&other)))),
    }
}

fn resolve_with(preset: &Preset, matched: &str, config: &Object, generation: Option<&Object>, options: ResolveOptions) -> Result<Resolved> {
    let (text, prefix) = preset.text_part(config, matched)?;
    let nested = preset.text_config.as_ref().filter(|_| !prefix.is_empty());
    let mut outer = Keys::new(config, "", None, &[]);
    let mut keys = Keys::new(text, prefix, Some(&preset.class_defaults), &preset.nullable).with_aliases(&preset.key_aliases);
    let mut claim = Claim::default();
    for part in [&outer, &keys] {
        // Both are the same object where a config is not nested.
        if claim.quantised.is_none() && claim.notes.is_empty() && claim.ignored.is_empty() {
            claim = part.quantised(options.allow_unknown)?;
        }
    }
    let Claim { quantised, packing, ignored: passed_over, mut notes } = claim;
    if !preset.aliases_win {
        keys.check_aliases()?;
    }
    keys.check_supported(&preset.supported_values)?;
    keys.check_off(&preset.off_keys)?;
    if let Some(nested) = nested {
        keys.check_supported(&nested.supported_values)?;
        outer.raw(&nested.key);
    }
    let keys = &mut keys;
    let mut lines = Lines::default();
    let lines = &mut lines;

    lines.put("preset", Sourced::derived(preset.name.clone(), format!("chosen by {matched}")));
    let vocab_size = lines.put("vocabSize", keys.required("vocab_size")?);
    let hidden_size = lines.put("hiddenSize", keys.required("hidden_size")?);
    let max_positions = keys.required::<usize>("max_position_embeddings")?;
    lines.put("maxPositions", max_positions.clone());

    let (mut layer_lines, mut rope_lines) = (Lines::default(), Lines::default());
    let layer = layer(keys, preset, hidden_size, &mut layer_lines)?;
    let head_dim = layer.attention().map_or(0, |attention| attention.head_dim);
    let kinds = layers::kinds(keys, preset, &mut notes)?;
    let windowed = kinds.windowed.value.clone();
    let heads = heads::read(keys, preset, &windowed, layer.attention(), &mut layer_lines, &mut notes)?;
    let head_dims = heads::dims(&heads, &windowed, head_dim);
    let model = rope::Model { preset: &preset.rope, head_dims, max_positions: &max_positions, allow_unknown: options.allow_unknown };
    let ropes = rope::read(keys, &model, &mut rope_lines)?;
    let mut layers = layers::read(keys, preset, kinds, &ropes, layer, lines)?;
    let delta = match &preset.gated_delta {
        Some(spec) => {
            let activation = activation(keys, preset)?.value;
            Some(layers::deltas(keys, spec, activation, &mut layers, lines)?)
        }
        None => None,
    };
    dense_layers(keys, preset, &mut layers, &mut layer_lines)?;
    let mut tensors = TensorNames { packing, ..preset.tensor_names(head_dim, delta)? };
    heads::apply(keys, preset, &heads, &mut layers, &mut tensors, &mut layer_lines)?;
    lines.0.append(&mut layer_lines.0);
    // Where no layer rotates, there is nothing to say of how.
    let rotates = layers.iter().any(|layer| layer.rope().is_some());
    if rotates {
        lines.0.append(&mut rope_lines.0);
    }

    let norm = norm(keys, preset, lines)?;
    let cap = keys.optional_setting(&preset.final_logit_softcapping)?;
    let final_logit_softcapping = lines.put("finalLogitSoftcapping", cap);
    let embedding_scale = lines.put("embeddingScale", embedding_scale(keys, preset, hidden_size)?);
    let residual_multiplier = lines.put("residualMultiplier", keys.setting(&preset.residual_multiplier)?);
    let logits_scaling = lines.put("logitsScaling", logits_scaling(keys, preset)?);
    let head_bias = lines.put("headBias", Sourced::preset(preset.head_bias));
    let layer_inputs = heads::inputs(keys, preset, (layers.len(), vocab_size), |keys| activation(keys, preset), lines)?;
    let tied = tied(keys, &mut outer, nested.map(|n| n.ties_head_by_default))?;
    let tie_word_embeddings = lines.put("tieWordEmbeddings", tied);
    let printed = format!("{} roles, prefixes {:?}", tensors.names.len(), tensors.prefixes);
    lines.text("tensors", printed, Source::Preset);
    if let (Some(quantised), Some(_)) = (&quantised, &tensors.packing) {
        lines.text("packing", quantised.method.clone(), Source::Config(quantised.key.clone()));
    }

    notes.extend(ropes.notes);
    let no_keys = Object::new();
    let mut ids = TokenIds { generation: generation.unwrap_or(&no_keys), outer: &mut outer, keys, vocab_size };
    let bos_token_id = lines.put("bosTokenId", ids.one("bos_token_id")?);
    let eos_token_ids = lines.put("eosTokenIds", ids.list("eos_token_id")?);
    let pad_token_id = lines.put("padTokenId", ids.one("pad_token_id")?);
    if !eos_token_ids.is_empty() && generation.is_some_and(|generation| !generation.contains_key("eos_token_id")) {
        notes.push(format!(
            "generation_config.json states no eos_token_id: generation stops at that of config.json, {eos_token_ids:?}; transformers does not stop there"
        ));
    }

    let family = [&preset.accepted_values, &preset.supported_values];
    let unknown = keys.unknown(&preset.harmless_keys, &family)?;
    let mut ignored_keys = keys.refuse(unknown, options.allow_unknown)?;
    if let Some(nested) = nested {
        let unknown = outer.unknown(&nested.harmless_keys, &[])?;
        ignored_keys.extend(outer.refuse(unknown, options.allow_unknown)?);
    }
    ignored_keys.extend(ropes.ignored);
    ignored_keys.extend(passed_over);
    // Old files have such keys in config.json, where transformers reads them if there is no other file.
    let (file, object) = generation.map_or(("config.json", config), |object| ("generation_config.json", object));
    let read = generation::read(file, object, &eos_token_ids, vocab_size);
    notes.extend(read.notes);

    let config = ModelConfig {
        preset: preset.name.clone(),
        vocab_size,
        hidden_size,
        max_positions: max_positions.value,
        layers,
        ropes: if rotates { ropes.list } else { Vec::new() },
        norm,
        final_logit_softcapping,
        embedding_scale,
        residual_multiplier,
        logits_scaling,
        head_bias,
        layer_inputs,
        tie_word_embeddings,
        tensors,
        bos_token_id,
        eos_token_ids,
        pad_token_id,
    };
    let (sources, generation_note) = (std::mem::take(&mut lines.0), read.followed);
    Ok(Resolved { config, sources, ignored_keys, generation: read.rules, generation_note, quantised, notes })
}

/// A layer as all are, but for what `layers::read` finds by layer: window and RoPE.
fn layer(keys: &mut Keys, preset: &Preset, hidden_size: usize, lines: &mut Lines) -> Result<LayerConfig> {
    lines.text("layers[].norms", norms_text(preset), Source::Preset);
    let mixer = |field: &str| format!("layers[].mixer.{field}");
    let num_heads = lines.put(&mixer("numHeads"), keys.required("num_attention_heads")?);
    let num_kv_heads = lines.put(&mixer("numKvHeads"), kv_heads(keys, num_heads)?);
    let head_dim = lines.put(&mixer("headDim"), head_dim(keys, hidden_size, num_heads)?);
    let attention = AttentionConfig {
        num_heads,
        num_kv_heads,
        head_dim,
        window: None,
        rope: None,
        query_rope: None,
        query_key_norm: lines.put(&mixer("queryKeyNorm"), query_key_norm(keys, preset)?),
        scale: lines.put(&mixer("scale"), attention_scale(keys, preset, head_dim)?),
        softcap: lines.put(&mixer("softcap"), keys.optional_setting(&preset.attn_logit_softcapping)?),
        qkv_bias: lines.put(&mixer("qkvBias"), keys.setting(&preset.qkv_bias)?),
        o_bias: lines.put(&mixer("oBias"), keys.setting(&preset.o_bias)?),
        sinks: lines.put(&mixer("sinks"), Sourced::preset(preset.sinks)),
        value_norm: preset.value_norm,
        values_from_keys: false,
        shared_kv: None,
        gated: lines.put(&mixer("gated"), Sourced::preset(preset.attention_gate)),
    };
    let ffn = match &preset.experts {
        Some(of) => match &of.beside_dense {
            Some(switch) if !keys.required::<bool>(switch)?.value => Ffn::Dense(dense(keys, preset, lines)?),
            Some(_) => Ffn::DenseAndExperts {
                dense: within(lines, "dense", |lines| dense(keys, preset, lines))?,
                experts: within(lines, "experts", |lines| experts(keys, preset, of, lines))?,
            },
            None => Ffn::Experts(experts(keys, preset, of, lines)?),
        },
        None => Ffn::Dense(dense(keys, preset, lines)?),
    };
    let parallel = lines.put("layers[].parallel", keys.setting(&preset.parallel)?);
    Ok(LayerConfig { norms: preset.norms, mixer: Mixer::Attention(attention), ffn, parallel, scalar: preset.layer_scalar })
}

/// Lines of a part of a feed-forward block, under its name.
fn within<T>(lines: &mut Lines, part: &str, read: impl FnOnce(&mut Lines) -> Result<T>) -> Result<T> {
    let mut of_part = Lines::default();
    let found = read(&mut of_part)?;
    lines.0.extend(of_part.0.into_iter().map(|(field, value, source)| (field.replace("ffn.", &format!("ffn.{part}.")), value, source)));
    Ok(found)
}

/// Layers that have a dense block in place of experts.
fn dense_layers(keys: &mut Keys, preset: &Preset, layers: &mut [LayerConfig], lines: &mut Lines) -> Result<()> {
    let Some(of) = preset.experts.as_ref().and_then(|experts| experts.dense_layers.as_ref()) else { return Ok(()) };
    let (is_dense, how): (Vec<bool>, String) = match of {
        DenseLayers::Listed { listed, step } => {
            let (list, path) = (keys.stated::<Vec<u32>>(listed)?, keys.path(listed));
            let (step, of_step) = (keys.required::<usize>(step)?, keys.path(step));
            let is_listed = |i: usize| list.as_ref().is_some_and(|list| list.value.iter().any(|layer| *layer as usize == i));
            let is_dense = (0..layers.len()).map(|i| is_listed(i) || !(i + 1).is_multiple_of(step.value)).collect();
            (is_dense, format!("{path} and all but each {}th ({of_step}: {})", step.value, step.source))
        }
        DenseLayers::First { first } => {
            let (count, path) = (keys.required::<u32>(first)?, keys.path(first));
            let is_dense = (0..layers.len()).map(|i| i < count.value as usize).collect();
            (is_dense, format!("the first {} ({path}: {})", count.value, count.source))
        }
    };
    let found: Vec<usize> = (0..layers.len()).filter(|i| is_dense[*i]).collect();
    if found.is_empty() {
        // Known, and of no meaning.
        if let Setting::Key(reference) = &preset.intermediate_size {
            keys.raw(&reference.key);
        }
        return Ok(());
    }
    lines.text("layers[].ffn.dense", layers::which(&is_dense), Source::Derived(how));
    let dense = within(lines, "dense", |lines| dense(keys, preset, lines))?;
    for layer in found {
        layers[layer].ffn = Ffn::Dense(dense.clone());
    }
    Ok(())
}

/// A dense block.
fn dense(keys: &mut Keys, preset: &Preset, lines: &mut Lines) -> Result<DenseConfig> {
    Ok(DenseConfig {
        intermediate_size: lines.put("layers[].ffn.intermediateSize", intermediate_size(keys, preset)?),
        gated: lines.put("layers[].ffn.gated", Sourced::preset(!preset.plain_ffn)),
        activation: lines.put("layers[].ffn.activation", activation(keys, preset)?),
        bias: lines.put("layers[].ffn.bias", keys.setting(&preset.mlp_bias)?),
    })
}

/// The kind of the model's norms.
fn norm(keys: &mut Keys, preset: &Preset, lines: &mut Lines) -> Result<Norm> {
    let eps = lines.put("norm.eps", keys.required(&preset.norm_eps)?);
    Ok(match &preset.layer_norm {
        Some(layer_norm) => Norm::Layer { eps, bias: lines.put("norm.bias", Sourced::preset(layer_norm.bias)) },
        None => {
            let offset = preset.rms_norm_weight_offset.ok_or_else(|| Error::format("model preset", "it says nothing of its norms"))?;
            Norm::Rms { eps, weight_offset: lines.put("norm.weightOffset", Sourced::preset(offset)) }
        }
    })
}

/// The norms of queries and keys, which a switch may turn off.
fn query_key_norm(keys: &mut Keys, preset: &Preset) -> Result<Sourced<QueryKeyNorm>> {
    let Some(switch) = &preset.query_key_norm_switch else { return Ok(Sourced::preset(preset.query_key_norm)) };
    let on = keys.required::<bool>(switch)?;
    Ok(Sourced::new(if on.value { preset.query_key_norm } else { QueryKeyNorm::None }, on.source))
}

/// Width of the feed-forward block: as stated, or what the class makes of that.
fn intermediate_size(keys: &mut Keys, preset: &Preset) -> Result<Sourced<usize>> {
    let stated = keys.setting(&preset.intermediate_size)?;
    let Some(AdjustedFfn { switch, multiplier, multiple_of }) = &preset.adjusted_ffn else { return Ok(stated) };
    let (on, factor, multiple) = (keys.required::<bool>(switch)?, keys.optional::<f64>(multiplier)?, keys.required::<usize>(multiple_of)?);
    if !on.value {
        return Ok(stated);
    }
    let third = (2.0 * stated.value as f64 / 3.0).floor();
    let (size, more) = match factor.value {
        Some(factor) => {
            let size = ((factor * third).floor() as usize).checked_next_multiple_of(multiple.value).unwrap_or(usize::MAX);
            (size, format!(", times {factor:?} ({multiplier}) and up to a multiple of {} ({multiple_of})", multiple.value))
        }
        None => (third as usize, String::new()),
    };
    if size == 0 || size > i32::MAX as usize {
        let message = format!("makes a feed-forward block of {size} elements; it should be from 1 to {}", i32::MAX);
        return Err(Error::config(keys.path(multiplier), message));
    }
    Ok(Sourced::derived(size, format!("two thirds of {} ({}){more}, as {} says", stated.value, stated.source, keys.path(switch))))
}

/// The divisor of logits; a class that multiplies them divides by the inverse.
fn logits_scaling(keys: &mut Keys, preset: &Preset) -> Result<Sourced<f64>> {
    let Some(KeyRef { key }) = &preset.logits_multiplier else { return keys.setting(&preset.logits_scaling) };
    let factor = keys.required::<f64>(key)?;
    if factor.value == 0.0 {
        return Err(Error::config(keys.path(key), "0 makes all logits equal"));
    }
    Ok(Sourced::derived(1.0 / factor.value, format!("1 / {key}, {:?} ({})", factor.value, factor.source)))
}

/// A block of experts.
fn experts(keys: &mut Keys, preset: &Preset, of: &preset::Experts, lines: &mut Lines) -> Result<ExpertsConfig> {
    let field = |name: &str| format!("layers[].ffn.{name}");
    let count = lines.put(&field("router.experts"), keys.setting(&of.count)?);
    let chosen = keys.setting(&of.chosen)?;
    if chosen.value > count {
        let message = format!("{} experts of a token, of {count} in all", chosen.value);
        return Err(Error::config(of.chosen.path(keys, "experts of a token"), message));
    }
    if count > MAX_EXPERTS {
        return Err(Error::config(of.count.path(keys, "experts"), format!("{count} experts are more than {MAX_EXPERTS}")));
    }
    let chosen = lines.put(&field("router.chosen"), chosen);
    let score = lines.put(&field("router.score"), Sourced::preset(of.score));
    let renormalise = lines.put(&field("router.renormalise"), keys.setting(&of.renormalise)?);
    let scaling = lines.put(&field("router.scaling"), keys.setting(&of.scaling)?);
    let choice_bias = lines.put(&field("router.choiceBias"), keys.setting(&of.choice_bias)?);
    let scales = lines.put(&field("router.scales"), Sourced::preset(of.scales));
    let intermediate_size = lines.put(&field("intermediateSize"), keys.setting(&of.intermediate_size)?);
    let shared = match &of.shared {
        Some(shared) => Some(SharedExpert {
            intermediate_size: lines.put(&field("shared.intermediateSize"), keys.setting(&shared.intermediate_size)?),
            gated: lines.put(&field("shared.gated"), Sourced::preset(shared.gated)),
        }),
        None => None,
    };
    let router = Router {
        experts: count,
        chosen,
        score,
        choice_bias,
        groups: None,
        renormalise: renormalise.then_some(of.renormalise_eps),
        scaling,
        scales,
    };
    let activation = lines.put(&field("activation"), activation(keys, preset)?);
    let router_bias = lines.put(&field("routerBias"), Sourced::preset(of.router_bias));
    let bias = lines.put(&field("bias"), Sourced::preset(of.bias));
    Ok(ExpertsConfig { router, router_bias, intermediate_size, activation, bias, shared })
}

/// More experts than any model has; keeps a wrong count from allocating.
const MAX_EXPERTS: usize = 4096;

/// Key/value heads; absent or null is one per query head where the class says so.
fn kv_heads(keys: &mut Keys, num_heads: usize) -> Result<Sourced<usize>> {
    const KEY: &str = "num_key_value_heads";
    let found = keys.optional::<usize>(KEY)?;
    let heads = match found.value {
        Some(value) => Sourced::new(value, found.source),
        None => Sourced::derived(num_heads, "num_attention_heads"),
    };
    if !num_heads.is_multiple_of(heads.value) {
        let message = format!("{} does not divide num_attention_heads, {num_heads}", heads.value);
        return Err(Error::config(keys.path(KEY), message));
    }
    Ok(heads)
}

/// Width of a head: stated, the class default, or hidden_size / num_attention_heads.
fn head_dim(keys: &mut Keys, hidden_size: usize, num_heads: usize) -> Result<Sourced<usize>> {
    // 0 is "not given" to transformers where it has a meaning at all.
    let found = match keys.raw("head_dim") {
        Some(value) if value.as_f64() == Some(0.0) => Sourced::new(None, Source::Config(keys.path("head_dim"))),
        _ => keys.optional::<usize>("head_dim")?,
    };
    let dim = match found.value {
        Some(value) => Sourced::new(value, found.source),
        None if hidden_size.is_multiple_of(num_heads) => Sourced::derived(hidden_size / num_heads, "hidden_size / num_attention_heads"),
        None => {
            let message = format!("is not stated, and hidden_size {hidden_size} is no multiple of {num_heads} heads");
            return Err(Error::config(keys.path("head_dim"), message));
        }
    };
    if dim.value.checked_mul(num_heads).is_none_or(|width| width > i32::MAX as usize) {
        let message = format!("{num_heads} heads of {} elements are too wide", dim.value);
        return Err(Error::config(keys.path("head_dim"), message));
    }
    Ok(dim)
}

/// Factor on q·k: s^-1/2 of `query_pre_attn_scalar`, a multiplier as it stands, or head_dim^-1/2.
fn attention_scale(keys: &mut Keys, preset: &Preset, head_dim: usize) -> Result<Sourced<f64>> {
    if let Some(setting) = &preset.attention_multiplier {
        return keys.setting(setting);
    }
    let Some(setting) = &preset.query_pre_attn_scalar else {
        return Ok(Sourced::derived(inverse_root(head_dim as f64), "head_dim^-1/2"));
    };
    let scalar = keys.setting(setting)?;
    let how = format!("query_pre_attn_scalar^-1/2 = {:?}^-1/2 ({})", scalar.value, scalar.source);
    Ok(Sourced::derived(inverse_root(scalar.value), how))
}

/// Factor on embeddings.
fn embedding_scale(keys: &mut Keys, preset: &Preset, hidden_size: usize) -> Result<Sourced<f64>> {
    if preset.scale_embeddings {
        return Ok(Sourced::derived((hidden_size as f64).sqrt(), "hidden_size^1/2 (preset)"));
    }
    keys.setting(&preset.embedding_multiplier)
}

/// The activation by its transformers name. A family's class may read a name as another one: Gemma 1 files say
/// "gelu" and mean the tanh approximation, and transformers 5 replaces the name when it loads them.
fn activation(keys: &mut Keys, preset: &Preset) -> Result<Sourced<Activation>> {
    if let Some(ClampedActivation { alpha, limit }) = &preset.clamped_activation {
        let path = limit.path(keys, "limit of the activation");
        let (alpha, limit) = (keys.setting(alpha)?, keys.setting(limit)?);
        if limit.value <= 0.0 {
            return Err(Error::config(path, format!("should be above 0, found {:?}", limit.value)));
        }
        let how = format!("alpha {:?} ({}), limit {:?} ({})", alpha.value, alpha.source, limit.value, limit.source);
        return Ok(Sourced::derived(Activation::Clamped { alpha: alpha.value, limit: limit.value }, how));
    }
    let found = keys.setting(&preset.activation)?;
    let alias = preset.activation_aliases.get(&found.value);
    let activation = match alias.unwrap_or(&found.value).as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        _ => {
            let key = match &preset.activation {
                Setting::Key(reference) => keys.path(&reference.key),
                Setting::Value(_) => "activation".to_string(),
            };
            let message = format!("{:.40} is not supported (supported: silu, gelu_pytorch_tanh, gelu)", found.value);
            return Err(unsupported(key, message));
        }
    };
    let source = match alias {
        Some(name) => {
            let how = format!("{} says {}, which transformers reads as {name} in this family", found.source, found.value);
            Source::Derived(how)
        }
        None => found.source,
    };
    Ok(Sourced::new(activation, source))
}

/// Whether the head is the embedding table. In a multimodal config the outer key decides (`nested` is its default),
/// and an inner one may only agree.
fn tied(keys: &mut Keys, outer: &mut Keys, nested: Option<bool>) -> Result<Sourced<bool>> {
    const KEY: &str = "tie_word_embeddings";
    let Some(default) = nested else { return keys.required(KEY) };
    let outside = outer.stated::<bool>(KEY)?.unwrap_or(Sourced::new(default, Source::ClassDefault));
    match keys.stated::<bool>(KEY)? {
        Some(inside) if inside.value != outside.value => {
            let message = format!("{}, but outside it is {} ({})", inside.value, outside.value, outside.source);
            Err(Error::config(keys.path(KEY), message))
        }
        _ => Ok(outside),
    }
}

/// The norms of a layer in words.
fn norms_text(preset: &Preset) -> String {
    let norms = preset.norms;
    let places = [
        (norms.before_mixer, "before attention"),
        (norms.after_mixer, "after attention"),
        (norms.before_ffn, "before ffn"),
        (norms.after_ffn, "after ffn"),
    ];
    let present: Vec<&str> = places.into_iter().filter(|(on, _)| *on).map(|(_, place)| place).collect();
    present.join(", ")
}

/// x^−½, by operations that round alike on every machine, browsers included.
fn inverse_root(x: f64) -> f64 {
    (1.0 / x).sqrt()
}

#[cfg(test)]
mod tests;
