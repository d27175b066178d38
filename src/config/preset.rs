//! Model presets: what is known about a family, as data. One JSON file each in `presets/models`, one line each in
//! `FILES`; nothing else in the engine names a family.

mod ffn;
mod heads;
mod mixers;
mod select;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

pub(super) use ffn::{ClampedActivation, DenseLayers, Experts};
pub(super) use heads::{FullHeads, LayerInputs, SharedKv};
pub(super) use mixers::{GatedDelta, ShortConv};
pub(super) use select::select;

use super::keys::{Object, Values};
use super::setting::{KeyRef, Setting};
use super::values::brief;
use crate::error::{Error, Result};
use crate::model::{DeltaHeads, Norms, QueryKeyNorm, RopePairing, TensorName, TensorNames, TensorRows, WeightRole};

/// The registered families.
const FILES: &[&str] = &[
    include_str!("presets/models/cohere.json"),
    include_str!("presets/models/cohere2.json"),
    include_str!("presets/models/exaone4.json"),
    include_str!("presets/models/gemma.json"),
    include_str!("presets/models/gemma2.json"),
    include_str!("presets/models/gemma3.json"),
    include_str!("presets/models/gemma4.json"),
    include_str!("presets/models/glm4.json"),
    include_str!("presets/models/gpt_neox.json"),
    include_str!("presets/models/gpt_oss.json"),
    include_str!("presets/models/granite.json"),
    include_str!("presets/models/granitemoe.json"),
    include_str!("presets/models/granitemoehybrid.json"),
    include_str!("presets/models/hunyuan_v1_dense.json"),
    include_str!("presets/models/lfm2.json"),
    include_str!("presets/models/lfm2_moe.json"),
    include_str!("presets/models/llama.json"),
    include_str!("presets/models/ministral3.json"),
    include_str!("presets/models/mistral.json"),
    include_str!("presets/models/mixtral.json"),
    include_str!("presets/models/olmo2.json"),
    include_str!("presets/models/olmo3.json"),
    include_str!("presets/models/olmoe.json"),
    include_str!("presets/models/phi.json"),
    include_str!("presets/models/phi3.json"),
    include_str!("presets/models/qwen2.json"),
    include_str!("presets/models/qwen2_moe.json"),
    include_str!("presets/models/qwen3.json"),
    include_str!("presets/models/qwen3_5.json"),
    include_str!("presets/models/qwen3_5_moe.json"),
    include_str!("presets/models/qwen3_moe.json"),
    include_str!("presets/models/qwen3_next.json"),
    include_str!("presets/models/seed_oss.json"),
    include_str!("presets/models/smollm3.json"),
    include_str!("presets/models/starcoder2.json"),
];

/// One family: which configs it takes, what its transformers class assumes, and what its layers are made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preset {
    pub(super) name: String,
    pub(super) architectures: Vec<String>,
    pub(super) model_types: Vec<String>,
    /// Defaults of the transformers class (version 5.23), which real config files leave out.
    pub(super) class_defaults: Object,
    /// Keys with a default other than null for which null has a meaning too.
    #[serde(default)]
    pub(super) nullable: Vec<String>,
    /// Keys of this family that change no logit.
    #[serde(default)]
    pub(super) harmless_keys: Vec<String>,
    /// Keys that the class does not read but files carry: harmless at these values.
    #[serde(default)]
    pub(super) accepted_values: Values,
    /// Keys that the class reads and Doppler supports at these values only.
    #[serde(default)]
    pub(super) supported_values: Values,
    /// The language model may be a part of a larger config.
    #[serde(default)]
    pub(super) text_config: Option<TextConfig>,
    /// Keys whose feature Doppler does not run where the class has it by default: files must state it as off.
    #[serde(default)]
    pub(super) off_keys: Vec<String>,
    /// Other names of keys; where a file has one of them, it counts.
    #[serde(default)]
    pub(super) key_aliases: BTreeMap<String, String>,
    /// The class takes the other name where a file has both; elsewhere two values are an error.
    #[serde(default)]
    pub(super) aliases_win: bool,
    /// Of RMS norms: what is added to their weight. A family has this or `layer_norm`.
    #[serde(default)]
    pub(super) rms_norm_weight_offset: Option<f64>,
    /// Norms are layer norms.
    #[serde(default)]
    pub(super) layer_norm: Option<LayerNorm>,
    /// The key of the norms' epsilon.
    #[serde(default = "norm_eps")]
    pub(super) norm_eps: String,
    pub(super) norms: Norms,
    pub(super) query_key_norm: QueryKeyNorm,
    /// A flag without which queries and keys are not normalised.
    #[serde(default)]
    pub(super) query_key_norm_switch: Option<String>,
    /// Heads of values are normalised, without a weight.
    #[serde(default)]
    pub(super) value_norm: bool,
    #[serde(default)]
    pub(super) full_heads: Option<FullHeads>,
    #[serde(default)]
    pub(super) shared_kv: Option<SharedKv>,
    #[serde(default)]
    pub(super) layer_inputs: Option<LayerInputs>,
    /// What leaves a layer is multiplied by a learned number.
    #[serde(default)]
    pub(super) layer_scalar: bool,
    /// The feed-forward block reads what enters the layer.
    #[serde(default = "no")]
    pub(super) parallel: Setting<bool>,
    pub(super) qkv_bias: Setting<bool>,
    pub(super) o_bias: Setting<bool>,
    /// Heads have sinks.
    #[serde(default)]
    pub(super) sinks: bool,
    pub(super) mlp_bias: Setting<bool>,
    #[serde(default = "intermediate_size")]
    pub(super) intermediate_size: Setting<usize>,
    /// Feed-forward blocks are experts, but for some layers.
    #[serde(default)]
    pub(super) experts: Option<Experts>,
    /// How the width of the feed-forward block is made of the one that the config states.
    #[serde(default)]
    pub(super) adjusted_ffn: Option<AdjustedFfn>,
    /// The feed-forward block has no gate.
    #[serde(default)]
    pub(super) plain_ffn: bool,
    /// Some layers have a short convolution in place of attention.
    #[serde(default)]
    pub(super) short_conv: Option<ShortConv>,
    /// Some layers have a gated delta rule in place of attention.
    #[serde(default)]
    pub(super) gated_delta: Option<GatedDelta>,
    /// What attention gives has a gate.
    #[serde(default)]
    pub(super) attention_gate: bool,
    pub(super) activation: Setting<String>,
    /// The class cuts gate and up off, with these numbers, whatever the activation is called.
    #[serde(default)]
    pub(super) clamped_activation: Option<ClampedActivation>,
    /// Activations that the class replaces by another.
    #[serde(default)]
    pub(super) activation_aliases: BTreeMap<String, String>,
    /// Embeddings are multiplied by √hidden_size.
    #[serde(default)]
    pub(super) scale_embeddings: bool,
    #[serde(default = "one")]
    pub(super) embedding_multiplier: Setting<f64>,
    #[serde(default = "one")]
    pub(super) residual_multiplier: Setting<f64>,
    #[serde(default = "one")]
    pub(super) logits_scaling: Setting<f64>,
    /// The key of a factor on logits, where the class multiplies them.
    #[serde(default)]
    pub(super) logits_multiplier: Option<KeyRef>,
    /// The head has a bias.
    #[serde(default)]
    pub(super) head_bias: bool,
    /// s, where the attention scale is s^-1/2.
    #[serde(default)]
    pub(super) query_pre_attn_scalar: Option<Setting<f64>>,
    /// The attention scale itself.
    #[serde(default)]
    pub(super) attention_multiplier: Option<Setting<f64>>,
    #[serde(default = "off")]
    pub(super) attn_logit_softcapping: Setting<Option<f64>>,
    #[serde(default = "off")]
    pub(super) final_logit_softcapping: Setting<Option<f64>>,
    #[serde(default)]
    pub(super) sliding_window: Option<SlidingWindow>,
    /// The key that lists each layer's type, where the class reads one.
    #[serde(default)]
    pub(super) layer_types: Option<KeyRef>,
    /// Which layers are windowed when no list says so.
    #[serde(default)]
    pub(super) layer_pattern: Option<LayerPattern>,
    #[serde(default)]
    pub(super) no_rope_layers: Option<NoRopeLayers>,
    #[serde(default)]
    pub(super) rope: RopePreset,
    tensors: Tensors,
    #[serde(default)]
    hugging_face_modules: Option<Value>,
}

/// Layer norms.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerNorm {
    /// They have a bias.
    pub bias: bool,
}

/// The width of a feed-forward block as a part of what the config states, rounded up to a multiple, where a switch is on.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AdjustedFfn {
    /// The switch.
    pub switch: String,
    /// The key of a factor on two thirds of the width; where it is null, nothing is rounded.
    pub multiplier: String,
    /// The key of what the width is a multiple of.
    pub multiple_of: String,
}

/// Where a multimodal config keeps its language model.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TextConfig {
    pub key: String,
    /// Architectures and model types that cannot do without it.
    pub required_by: Vec<String>,
    /// The outer class's default of `tie_word_embeddings`, which decides there.
    pub ties_head_by_default: bool,
    /// Keys beside it that concern other parts.
    pub harmless_keys: Vec<String>,
    /// Keys within it that the outer class supports at these values only.
    #[serde(default)]
    pub supported_values: Values,
}

/// The attention window.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SlidingWindow {
    /// Its width.
    pub key: String,
    /// A flag without which it is off.
    #[serde(default)]
    pub switch: Option<String>,
}

/// Which layers are windowed.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum LayerPattern {
    /// All of them.
    AllSliding,
    /// All but layers n−1, 2n−1, ….
    FullEvery(Setting<usize>),
    /// Likewise, with n under this key, where no list states each layer's type; where one does, the key may be anything.
    FullEveryUnlessListed(String),
    /// Those from the index that this key states.
    SlidingFrom(String),
    /// Every other one, from the first, below the index that this key states.
    AlternatingBelow(String),
    /// Those without RoPE.
    SlidingWithoutRope,
    /// Those but n−1, 2n−1, …, and never the last, whatever a list says.
    FullEveryAndLast(usize),
    /// Without a list all layers are recurrent, which Doppler does not run.
    OnlyListed,
}

/// Layers without position encoding.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum NoRopeLayers {
    /// As a list says, or an interval.
    Listed {
        /// A list with 1 for layers that have RoPE and 0 for those that do not.
        key: String,
        /// Without the list: every n-th layer has none.
        interval: String,
    },
    /// Those without a window, in models that have a window.
    FullBesideWindows,
    /// All, unless this key is this text.
    Unless {
        /// The key.
        key: String,
        /// The text.
        is: String,
    },
}

/// What a family allows RoPE to be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RopePreset {
    /// Windowed layers have a RoPE of their own, with this key for its base.
    #[serde(default)]
    pub local_theta_key: Option<String>,
    /// What the class has for RoPE where files say nothing.
    #[serde(default)]
    pub parameters: Object,
    /// `partial_rotary_factor` is read; otherwise whole heads are rotated.
    #[serde(default)]
    pub partial: bool,
    /// Which elements of a head are rotated together.
    #[serde(default)]
    pub pairing: RopePairing,
    /// The key of β, where the factor on queries grows with the position.
    #[serde(default)]
    pub query_growth: Option<String>,
    /// Scaling "dynamic" with an `alpha` is read, which changes the base; it has no length that it depends on.
    #[serde(default)]
    pub alpha: bool,
    /// Without an object of RoPE's numbers the class scales by numbers of its own: files must state them.
    #[serde(default)]
    pub scaled_by_default: bool,
    /// Kinds of scaling that the class takes; empty is all.
    #[serde(default)]
    pub types: Vec<String>,
    /// Old names of kinds.
    #[serde(default)]
    pub type_aliases: BTreeMap<String, String>,
    /// Keys of the object that mean nothing for text.
    #[serde(default)]
    pub harmless: Vec<String>,
}

/// Where weights are. A name's key is a role, or several in row order when the tensor is fused.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tensors {
    prefixes: Vec<String>,
    names: serde_json::Map<String, Value>,
    ignored: Vec<String>,
}

/// A name's template: a text, or an object where rows do not lie as they usually do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    name: String,
    /// See `TensorRows`.
    #[serde(default)]
    transposed: bool,
    /// Likewise.
    #[serde(default)]
    interleaved: Option<Interleaved>,
}

/// What roles that share a tensor have in their turns.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Interleaved {
    /// One row.
    Rows,
    /// The rows of one head.
    Heads,
    /// Those of a key head of a delta rule, with its value heads.
    KeyHeads,
}

impl Template {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(name) => Some(Self { name: name.clone(), transposed: false, interleaved: None }),
            other => serde_json::from_value(other.clone()).ok(),
        }
    }
}

fn norm_eps() -> String {
    "rms_norm_eps".into()
}

fn no() -> Setting<bool> {
    Setting::Value(false)
}

fn one() -> Setting<f64> {
    Setting::Value(1.0)
}

fn intermediate_size() -> Setting<usize> {
    Setting::Key(KeyRef { key: "intermediate_size".into() })
}

fn off() -> Setting<Option<f64>> {
    Setting::Value(None)
}

static PRESETS: LazyLock<Result<Vec<Preset>>> = LazyLock::new(|| FILES.iter().map(|text| Preset::parse(text)).collect());

/// The registered model presets, in alphabetical order.
pub fn presets() -> &'static [Preset] {
    PRESETS.as_deref().unwrap_or_default()
}

/// The Hugging Face module path of each stage, by preset name: `{stage: path}`, as `presets/models` has it.
/// `None` for an unknown preset or one without paths.
pub fn hugging_face_modules(preset: &str) -> Option<&'static Value> {
    presets().iter().find(|p| p.name == preset)?.hugging_face_modules.as_ref()
}

impl Preset {
    /// Parses a preset's JSON. An error names what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let preset: Preset = serde_json::from_str(text).map_err(|e| Error::format("model preset", e))?;
        preset.tensor_names(1, None)?;
        Ok(preset)
    }

    /// Name of the family, as messages and dumps show it.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Entries of `architectures` that it takes.
    pub fn architectures(&self) -> &[String] {
        &self.architectures
    }
    /// Values of `model_type` that it takes.
    pub fn model_types(&self) -> &[String] {
        &self.model_types
    }

    /// Name templates of the family's weights, in the order of the role table, for heads of `head_dim` elements, and of a delta rule.
    pub(super) fn tensor_names(&self, head_dim: usize, delta: Option<DeltaHeads>) -> Result<TensorNames> {
        let mut names = Vec::new();
        for (roles, template) in &self.tensors.names {
            let bad = || Error::format(format!("model preset {}", self.name), format!("tensor `{roles}`"));
            let roles: Vec<WeightRole> = roles.split(' ').map(WeightRole::parse).collect::<Option<_>>().ok_or_else(bad)?;
            // Of several templates the first is the usual one. One that begins with `=` is a whole name.
            let templates = match template {
                Value::Array(several) => several.iter().map(Template::read).collect::<Option<Vec<_>>>(),
                one => Template::read(one).map(|one| vec![one]),
            };
            for Template { name, transposed, interleaved } in templates.ok_or_else(bad)? {
                let (template, bare) = name.strip_prefix('=').map_or((name.as_str(), false), |whole| (whole, true));
                let fused = if roles.len() > 1 { roles.clone() } else { Vec::new() };
                let share = delta.map_or(1, |heads| heads.share());
                let of_delta =
                    delta.filter(|_| matches!(interleaved, Some(Interleaved::KeyHeads)) && roles.contains(&WeightRole::DeltaQkv));
                let sections = of_delta.map(|heads| heads.sections());
                let interleaved = interleaved.filter(|_| sections.is_none()).map(|turn| match turn {
                    Interleaved::Rows => 1,
                    Interleaved::Heads => head_dim,
                    Interleaved::KeyHeads => share,
                });
                let rows = TensorRows { transposed, interleaved, sections, ..TensorRows::default() };
                let name = TensorName { template: template.to_string(), fused, bare, rows };
                names.extend(roles.iter().map(|role| (*role, name.clone())));
            }
        }
        names.sort_by_key(|(role, _)| *role);
        let (prefixes, ignored) = (self.tensors.prefixes.clone(), self.tensors.ignored.clone());
        Ok(TensorNames { prefixes, names, ignored, neighbours: None, packing: None })
    }

    /// The object that describes the language model, with the path in front of its keys.
    pub(super) fn text_part<'a>(&self, config: &'a Object, matched: &str) -> Result<(&'a Object, String)> {
        let Some(part) = &self.text_config else { return Ok((config, String::new())) };
        match config.get(&part.key) {
            Some(Value::Object(inner)) => {
                let kind = inner.get("model_type").filter(|v| !v.is_null());
                if let Some(kind) = kind.filter(|k| !self.model_types.iter().any(|t| k.as_str() == Some(t))) {
                    let message = format!("model_type {} in `{}` is not supported", brief(kind), part.key);
                    return Err(Error::unsupported(format!("{message} (supported: {})", self.model_types.join(", "))));
                }
                Ok((inner, format!("{}.", part.key)))
            }
            None | Some(Value::Null) if !part.required_by.iter().any(|name| name == matched) => Ok((config, String::new())),
            None | Some(Value::Null) => Err(Error::config(&part.key, format!("is missing, and {matched} needs it"))),
            Some(other) => Err(Error::config(&part.key, format!("should be an object, found {}", brief(other)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_preset_parses_and_is_complete() {
        assert_eq!(PRESETS.as_ref().map(Vec::len), Ok(FILES.len()));
        assert!(presets().is_sorted_by_key(|p| p.name.clone()));
        for preset in presets() {
            let names = preset.tensor_names(1, None).unwrap().names;
            let shared = preset.experts.as_ref().and_then(|experts| experts.shared.as_ref());
            let has = |role: WeightRole| names.iter().any(|(r, _)| *r == role);
            assert!(preset.rms_norm_weight_offset.is_some() != preset.layer_norm.is_some(), "{}", preset.name);
            let expected = WeightRole::TABLE.map(|(role, _)| match role {
                WeightRole::AttnNorm => preset.norms.before_mixer,
                WeightRole::PostAttnNorm => preset.norms.after_mixer,
                WeightRole::FfnNorm => preset.norms.before_ffn,
                WeightRole::PostFfnNorm => preset.norms.after_ffn,
                WeightRole::QNorm | WeightRole::KNorm => preset.query_key_norm != QueryKeyNorm::None,
                WeightRole::GateProj if preset.plain_ffn => false,
                WeightRole::GateProj | WeightRole::UpProj | WeightRole::DownProj => {
                    preset.experts.as_ref().is_none_or(|experts| experts.dense_layers.is_some() || experts.beside_dense.is_some())
                }
                WeightRole::Router | WeightRole::ExpertGate | WeightRole::ExpertUp | WeightRole::ExpertDown => preset.experts.is_some(),
                WeightRole::SharedGate | WeightRole::SharedUp | WeightRole::SharedDown => shared.is_some(),
                WeightRole::SharedScale => shared.is_some_and(|shared| shared.gated),
                WeightRole::RouterChoice => {
                    preset.experts.as_ref().is_some_and(|experts| !matches!(experts.choice_bias, Setting::Value(false)))
                }
                WeightRole::Sinks => preset.sinks,
                WeightRole::PleEmbed | WeightRole::PleProj | WeightRole::PleProjNorm => preset.layer_inputs.is_some(),
                WeightRole::PleGate | WeightRole::PleOut | WeightRole::PostPleNorm => preset.layer_inputs.is_some(),
                WeightRole::LayerScalar => preset.layer_scalar,
                WeightRole::RouterScales => preset.experts.as_ref().is_some_and(|experts| experts.scales),
                WeightRole::RouterIn | WeightRole::DenseNorm | WeightRole::ExpertsIn | WeightRole::ExpertsNorm => {
                    preset.experts.as_ref().is_some_and(|experts| experts.beside_dense.is_some())
                }
                WeightRole::ConvIn | WeightRole::ConvOut => preset.short_conv.is_some(),
                WeightRole::Conv => preset.short_conv.is_some() || preset.gated_delta.is_some(),
                WeightRole::AttnGate => preset.attention_gate,
                role if role.name().starts_with("delta_") => preset.gated_delta.is_some(),
                _ => true,
            });
            assert_eq!(WeightRole::TABLE.map(|(role, _)| has(role)), expected, "{}", preset.name);
            assert!(preset.hugging_face_modules.as_ref().is_none_or(Value::is_object), "{}", preset.name);
        }
    }

    #[test]
    fn fused_tensors_list_their_roles_in_row_order() {
        let preset = presets().iter().find(|p| p.name == "phi3").unwrap();
        let names = preset.tensor_names(1, None).unwrap().names;
        let fused = |role| names.iter().find(|(r, _)| *r == role).map(|(_, n)| n.clone()).unwrap();
        let qkv = fused(WeightRole::VProj);
        assert_eq!(qkv.fused, [WeightRole::QProj, WeightRole::KProj, WeightRole::VProj]);
        assert_eq!(qkv.template, "{prefix}layers.{layer}.self_attn.qkv_proj");
        assert!(fused(WeightRole::OProj).fused.is_empty());
    }

    #[test]
    fn selection_needs_a_supported_name() {
        let pick = |v: Value| select(v.as_object().unwrap()).map(|(p, by, _)| (p.name.clone(), by));
        assert_eq!(pick(json!({"model_type": "qwen2"})).unwrap(), ("qwen2".into(), "qwen2".into()));
        let by_architecture = pick(json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi4"}));
        assert_eq!(by_architecture.unwrap().0, "phi3");
        let renamed = json!({"architectures": ["YiForCausalLM"], "model_type": "llama"});
        let (preset, by, note) = select(renamed.as_object().unwrap()).unwrap();
        assert_eq!((preset.name.as_str(), by.as_str()), ("llama", "llama"));
        assert!(note.is_some_and(|note| note.contains("YiForCausalLM") && note.contains("model_type")));
        for other in ["LlamaModel", "LlamaForSequenceClassification", "Qwen2ForCausalLM"] {
            let (preset, _, note) = select(json!({"architectures": [other], "model_type": "llama"}).as_object().unwrap()).unwrap();
            assert!(preset.name == "llama" && note.is_some_and(|note| note.contains(other)), "{other}");
        }
        for bad in [
            json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}),
            json!({"architectures": ["LlamaForCausalLM"], "model_type": "mamba"}),
            json!({"architectures": ["LlamaModel"]}),
        ] {
            let error = pick(bad).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::Unsupported);
            assert!(error.message.contains("LlamaForCausalLM"), "{error}");
        }
        assert!(pick(json!({"hidden_size": 8})).unwrap_err().message.contains("model_type"));
        assert!(pick(json!({"architectures": 3})).is_err());
    }
}
