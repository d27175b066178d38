//! Faults of formulas, which no file of a model can have: the reference is a run in which some op computes otherwise, as another
//! implementation might. The value is computed here from the values before it; what comes after it, the engine computes. Nothing
//! here knows the engine's ops, nor how faults are found.

use crate::Result;
use crate::faults::draw::Draw;
use crate::faults::files::{Folder, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Values of a run, those of its prompt, and the model's files.
pub struct Scene<'a> {
    pub values: &'a BTreeMap<String, Tensor>,
    pub folder: &'a Folder,
    pub layer: usize,
}

/// What a value becomes.
pub enum Formula {
    /// Times a number that is drawn.
    Scale(fn(&Scene<'_>, &mut Draw) -> Option<f64>),
    /// Other values, [T, width] or as the value is; `None` where this model cannot have the fault.
    Values(fn(&Scene<'_>, &mut Draw) -> Option<Vec<f64>>),
}
use Formula::{Scale, Values};

/// Class, variant, the value that is another one, and how it is made. In every layer that has the value; numbers are drawn once.
pub type FormulaPlant = (&'static str, &'static str, &'static str, Formula);

pub const FORMULA_PLANTS: &[FormulaPlant] = &[
    ("delta_rule", "no decay", "delta_in", Values(|s, _| s.taken(|k, _| k, sigmoid, |_, _, _| 0.0))),
    (
        "delta_rule",
        "decay of the other sign",
        "delta_in",
        Values(|s, _| s.taken(|k, _| k, sigmoid, |log, a, b| log.exp() * softplus(a + b))),
    ),
    ("delta_rule", "decay without exponent", "delta_in", Values(|s, _| s.taken(|k, _| k, sigmoid, |log, a, b| -log * softplus(a + b)))),
    ("delta_rule", "decay without softplus", "delta_in", Values(|s, _| s.taken(|k, _| k, sigmoid, |log, a, b| -log.exp() * (a + b)))),
    ("missing_bias", "steps of decays", "delta_in", Values(|s, _| s.taken(|k, _| k, sigmoid, |log, a, _| -log.exp() * softplus(a)))),
    ("delta_rule", "rates without sigmoid", "delta_in", Values(|s, _| s.taken(|k, _| k, |x| x, decay))),
    ("missing_qk_norm", "keys of delta rules", "delta_in", Values(|s, _| s.taken(|_, raw| raw, sigmoid, decay))),
    (
        "norm_eps",
        "keys of delta rules",
        "delta_in",
        Values(|s, d| {
            let eps = d.between(0.01, 0.2);
            let heads = s.heads()?;
            let made = |raw: Vec<f64>| raw.chunks_exact(heads.key_dim).flat_map(|k| divided(k, (squares(k) + eps).sqrt())).collect();
            s.taken(|_, raw| made(raw), sigmoid, decay)
        }),
    ),
    (
        "delta_rule",
        "mean of keys",
        "delta_in",
        Values(|s, _| {
            let width = s.heads()?.key_dim;
            let made =
                |raw: Vec<f64>| raw.chunks_exact(width).flat_map(|k| divided(k, (squares(k) / width as f64 + 1e-6).sqrt())).collect();
            s.taken(|_, raw| made(raw), sigmoid, decay)
        }),
    ),
    (
        "missing_qk_norm",
        "queries of delta rules",
        "delta_mix",
        Values(|s, _| s.rule(&Rule { length: |_, _| 1.0, ..RIGHT }, usize::MAX, 1.0)),
    ),
    (
        "delta_rule",
        "mean of queries",
        "delta_mix",
        Values(|s, _| s.rule(&Rule { length: |sum, width| (sum / width + 1e-6).sqrt(), ..RIGHT }, usize::MAX, 1.0)),
    ),
    (
        "attn_scale",
        "queries of delta rules",
        "delta_mix",
        Values(|s, d| {
            let by = d.factor(1.3, 4.0);
            s.rule(&RIGHT, usize::MAX, by)
        }),
    ),
    (
        "gqa_mapping",
        "key heads in turn",
        "delta_mix",
        Values(|s, _| {
            s.heads().filter(|heads| heads.keys > 1 && heads.values > heads.keys)?;
            s.rule(&Rule { key: |head, keys, _| head % keys, ..RIGHT }, usize::MAX, 1.0)
        }),
    ),
    ("kv_corruption", "matrices lost", "delta_mix", Values(|s, d| s.rule(&RIGHT, 3 + d.of(6), 1.0))),
    ("delta_rule", "matrices without decay", "delta_mix", Values(|s, _| s.rule(&Rule { decay: |_| 0.0, ..RIGHT }, usize::MAX, 1.0))),
    ("delta_rule", "decay after correction", "delta_mix", Values(|s, _| s.rule(&Rule { late: true, ..RIGHT }, usize::MAX, 1.0))),
    ("attention_mask", "padding", "conv_mix", Values(padded)),
    ("missing_gate", "delta rule", "delta_gated", Values(|s, _| s.get("delta_normed"))),
    (
        "activation",
        "gate of a delta rule",
        "delta_gated",
        Values(|s, _| Some(s.get("delta_normed")?.iter().zip(s.get("delta_z")?).map(|(x, z)| x * sigmoid(z)).collect())),
    ),
    (
        "norm_order",
        "gate before norm",
        "delta_gated",
        Values(|s, _| {
            let (width, eps) = (s.heads()?.value_dim, s.number("rms_norm_eps")?);
            let weight = s.weight("linear_attn.norm.weight")?;
            let gated: Vec<f64> = s.get("delta_mix")?.iter().zip(s.get("delta_z")?).map(|(x, z)| x * z * sigmoid(z)).collect();
            let row = |row: &[f64]| divided(row, (squares(row) / width as f64 + eps).sqrt());
            Some(
                gated.chunks_exact(width).flat_map(|x| row(x).into_iter().zip(&weight).map(|(x, w)| x * w).collect::<Vec<f64>>()).collect(),
            )
        }),
    ),
    ("missing_gate", "attention", "attn_gated", Values(|s, _| s.get("attn_core_out"))),
    (
        "activation",
        "gate of attention",
        "attn_gated",
        Values(|s, _| Some(s.get("attn_core_out")?.iter().zip(s.get("attn_gate")?).map(|(x, g)| x * g).collect())),
    ),
    (
        "gate_layout",
        "gate of attention",
        "attn_gated",
        Values(|s, _| {
            let (width, heads) = (s.width("attn_gate")?, s.number("num_attention_heads")? as usize);
            let (gate, head) = (s.get("attn_gate")?, width / heads);
            let other = |i: usize| gate[i / width * width + i % width % heads * head + i % width / heads];
            Some(s.get("attn_core_out")?.iter().enumerate().map(|(i, x)| x * sigmoid(other(i))).collect())
        }),
    ),
    ("missing_qk_norm", "values", "v_norm", Values(|s, _| s.get("v_proj").or_else(|| s.get("k_proj")))),
    (
        "norm_eps",
        "values",
        "v_norm",
        Values(|s, d| {
            let (x, eps) = (s.get("v_proj").or_else(|| s.get("k_proj"))?, s.number("rms_norm_eps")? * d.factor(2.0, 8.0));
            let width = s.values.get(&format!("layer.{}.q_norm", s.layer))?.columns() / s.number("num_attention_heads")? as usize;
            Some(x.chunks_exact(width).flat_map(|x| divided(x, (squares(x) / width as f64 + eps).sqrt())).collect())
        }),
    ),
    ("router", "norm", "router_norm", Values(|s, _| s.get("post_attn"))),
    (
        "router",
        "vector",
        "router_in",
        Values(|s, _| {
            let width = s.number("hidden_size")?;
            Some(s.get("router_norm")?.iter().map(|x| x / width.sqrt()).collect())
        }),
    ),
    (
        "router",
        "experts' numbers",
        "router_weights",
        Values(|s, _| {
            let numbers = s.weight("router.per_expert_scale")?;
            Some(s.get("router_weights")?.iter().enumerate().map(|(i, w)| w / numbers[i % numbers.len()]).collect())
        }),
    ),
    ("router", "sigmoid", "router_weights", Values(|s, _| s.chosen(sigmoid, true))),
    ("router", "no function", "router_weights", Values(|s, _| s.chosen(|x| x, false))),
    (
        "residual_multiplier",
        "layer's number",
        "layer_out",
        Values(|s, _| {
            s.weight("layer_scalar")?;
            s.get("post_ple").or_else(|| s.get("post_ffn"))
        }),
    ),
    ("embed_scale", "inputs of layers", "ple_inputs", Scale(|_, d| Some(d.factor(1.2, 3.0)))),
    (
        "attn_scale",
        "layers that share keys",
        "attn_scores",
        Scale(|s, d| {
            let (all, shared) = (s.number("num_hidden_layers")? as usize, s.number("num_kv_shared_layers").filter(|n| *n > 0.0)? as usize);
            (s.layer + shared >= all).then(|| d.factor(1.2, 3.0))
        }),
    ),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
fn softplus(x: f64) -> f64 {
    (1.0 + x.exp()).ln()
}
fn decay(log: f64, a: f64, step: f64) -> f64 {
    -log.exp() * softplus(a + step)
}
fn squares(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}
fn divided(x: &[f64], by: f64) -> Vec<f64> {
    x.iter().map(|x| x / by).collect()
}

/// Sizes of a delta rule's heads.
struct Heads {
    keys: usize,
    values: usize,
    key_dim: usize,
    value_dim: usize,
}

/// A form of the delta rule.
struct Rule {
    /// The key head of a value head, of so many key heads and value heads.
    key: fn(usize, usize, usize) -> usize,
    /// What a query is divided by: of the sum of its squares, and its width.
    length: fn(f64, f64) -> f64,
    /// The logarithm of the decay.
    decay: fn(f64) -> f64,
    /// Matrices decay after the correction.
    late: bool,
}

const RIGHT: Rule =
    Rule { key: |head, keys, values| head * keys / values, length: |sum, _| (sum + 1e-6).sqrt(), decay: |log| log, late: false };

impl Scene<'_> {
    fn tensor(&self, stage: &str) -> Option<&Tensor> {
        self.values.get(&format!("layer.{}.{stage}", self.layer)).or_else(|| self.values.get(stage))
    }
    fn get(&self, stage: &str) -> Option<Vec<f64>> {
        Some(self.tensor(stage)?.values.iter().map(|x| f64::from(*x)).collect())
    }
    fn width(&self, stage: &str) -> Option<usize> {
        Some(self.tensor(stage)?.columns())
    }
    fn weight(&self, end: &str) -> Option<Vec<f64>> {
        let end = format!("layers.{}.{end}", self.layer);
        let tensor = self.folder.tensors.iter().find(|(name, _)| name.ends_with(&end))?.1;
        Some(tensor.values.iter().map(|x| f64::from(*x)).collect())
    }
    fn number(&self, key: &str) -> Option<f64> {
        let config = &self.folder.config;
        config.get("text_config").unwrap_or(config).get(key)?.as_f64()
    }
    fn heads(&self) -> Option<Heads> {
        let of = |key: &str| Some(self.number(key)? as usize);
        let (keys, values) = (of("linear_num_key_heads")?, of("linear_num_value_heads")?);
        Some(Heads { keys, values, key_dim: of("linear_key_head_dim")?, value_dim: of("linear_value_head_dim")? })
    }
    /// What a delta rule takes of tokens, with other keys (of right ones, and those before), rates and decays.
    fn taken(
        &self,
        keys: impl Fn(Vec<f64>, Vec<f64>) -> Vec<f64>,
        rate: fn(f64) -> f64,
        decay: fn(f64, f64, f64) -> f64,
    ) -> Option<Vec<f64>> {
        let heads = self.heads()?;
        let (width, key_width) = (self.width("conv_mix")?, heads.keys * heads.key_dim);
        let (rows, right, b, a) = (self.get("conv_mix")?, self.get("delta_in")?, self.get("delta_b")?, self.get("delta_a")?);
        let (log, step) = (self.weight("linear_attn.A_log")?, self.weight("linear_attn.dt_bias")?);
        let taken = self.width("delta_in")?;
        let mut all = Vec::new();
        for (t, row) in rows.chunks_exact(width).enumerate() {
            let of = t * heads.values;
            all.extend(keys(right[t * taken..][..key_width].to_vec(), row[key_width..2 * key_width].to_vec()));
            all.extend(&row[2 * key_width..]);
            all.extend(b[of..of + heads.values].iter().map(|b| rate(*b)));
            all.extend((0..heads.values).map(|h| decay(log[h], a[of + h], step[h])));
        }
        Some(all)
    }
    /// What the delta rule gives in another form: from 0 after so many tokens, queries times a number.
    fn rule(&self, form: &Rule, tokens: usize, by: f64) -> Option<Vec<f64>> {
        let heads = self.heads()?;
        let (key_width, width, taken) = (heads.keys * heads.key_dim, self.width("conv_mix")?, self.width("delta_in")?);
        let (rows, given) = (self.get("conv_mix")?, self.get("delta_in")?);
        let scale = by / (heads.key_dim as f64).sqrt();
        let mut all = vec![0.0; rows.len() / width * heads.values * heads.value_dim];
        for head in 0..heads.values {
            let first = (form.key)(head, heads.keys, heads.values) * heads.key_dim;
            for element in 0..heads.value_dim {
                let mut s = vec![0.0; heads.key_dim];
                for (t, row) in given.chunks_exact(taken).enumerate() {
                    if t % tokens == 0 {
                        s.fill(0.0);
                    }
                    let k = &row[first..first + heads.key_dim];
                    let v = row[key_width + head * heads.value_dim + element];
                    let at = taken - 2 * heads.values + head;
                    let decay = (form.decay)(row[at + heads.values]).exp();
                    let times = |s: &mut Vec<f64>| s.iter_mut().for_each(|s| *s *= decay);
                    if !form.late {
                        times(&mut s);
                    }
                    let known: f64 = s.iter().zip(k).map(|(s, k)| s * k).sum();
                    s.iter_mut().zip(k).for_each(|(s, k)| *s += row[at] * (v - known) * k);
                    if form.late {
                        times(&mut s);
                    }
                    let q = &rows[t * width + first..][..heads.key_dim];
                    let read: f64 = s.iter().zip(q).map(|(s, q)| s * q).sum();
                    all[(t * heads.values + head) * heads.value_dim + element] =
                        read * scale / (form.length)(squares(q), heads.key_dim as f64);
                }
            }
        }
        Some(all)
    }
    /// Weights of the chosen experts made of their logits, each alone, and divided by their sum.
    fn chosen(&self, score: fn(f64) -> f64, divide: bool) -> Option<Vec<f64>> {
        if self.weight("router.per_expert_scale").is_some() {
            return None;
        }
        let width = self.width("router_logits")?;
        let (logits, weights) = (self.get("router_logits")?, self.get("router_weights")?);
        let row = |(logits, weights): (&[f64], &[f64])| -> Vec<f64> {
            let all: Vec<f64> = logits.iter().zip(weights).map(|(x, w)| if *w == 0.0 { 0.0 } else { score(*x) }).collect();
            let sum = if divide { all.iter().sum() } else { 1.0 };
            all.iter().map(|x| x / sum).collect()
        };
        Some(logits.chunks_exact(width).zip(weights.chunks_exact(width)).flat_map(row).collect())
    }
}

/// A convolution that reads the row of a padding token before the first one.
fn padded(s: &Scene<'_>, d: &mut Draw) -> Option<Vec<f64>> {
    let (width, x, weight) = (s.width("delta_qkv")?, s.get("delta_qkv")?, s.weight("linear_attn.conv1d.weight")?);
    let taps = weight.len() / width;
    let pad: Vec<f64> = (0..width).map(|_| d.between(-1.0, 1.0)).collect();
    let mut all = Vec::with_capacity(x.len());
    for t in 0..x.len() / width {
        for c in 0..width {
            let at = |j: usize| (t + j + 1).checked_sub(taps).map_or(pad[c], |t| x[t * width + c]);
            let sum: f64 = (0..taps).map(|j| weight[c * taps + j] * at(j)).sum();
            all.push(sum * sigmoid(sum));
        }
    }
    Some(all)
}

/// The tensors of f32 in a dump's bytes that are of its prompt, and the place of each.
pub fn values(bytes: &[u8]) -> Result<BTreeMap<String, (Tensor, usize)>> {
    let length = u64::from_le_bytes(bytes.get(..8).ok_or("a short file")?.try_into()?) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes.get(8..8 + length).ok_or("a short header")?)?;
    let mut all = BTreeMap::new();
    for (name, about) in header.iter().filter(|(_, about)| ["F32", "I32"].iter().any(|kind| about["dtype"] == *kind)) {
        let shape: Vec<usize> = serde_json::from_value(about["shape"].clone())?;
        let range: [usize; 2] = serde_json::from_value(about["data_offsets"].clone())?;
        let data = bytes.get(8 + length + range[0]..8 + length + range[1]).ok_or("a short tensor")?;
        let whole = about["dtype"] == "I32";
        let number = |b: &[u8; 4]| if whole { i32::from_le_bytes(*b) as f32 } else { f32::from_le_bytes(*b) };
        let values = data.as_chunks::<4>().0.iter().map(number).collect();
        all.insert(name.clone(), (Tensor { dtype: "F32".into(), shape, values }, 8 + length + range[0]));
    }
    Ok(all)
}

/// Runs `run`, which takes changes of values and a file to write, until every layer has the fault; false where the model cannot have
/// it. What was written last is the reference.
pub fn reference(plant: &FormulaPlant, folder: &Folder, draw: &Draw, to: &Path, run: &dyn Fn(&[String], &Path) -> Result) -> Result<bool> {
    let (_, _, stage, formula) = plant;
    let mut sets: Vec<String> = Vec::new();
    run(&sets, to)?;
    let keys: Vec<String> = values(&std::fs::read(to)?)?.into_keys().collect();
    let of_layer = |key: &str| {
        key.strip_prefix("layer.").and_then(|rest| rest.split_once('.')).filter(|(_, name)| name == stage).map(|of| of.0.parse())
    };
    let mut layers: Vec<Option<usize>> = keys.iter().filter_map(|key| of_layer(key)?.ok()).map(Some).collect();
    layers.extend(keys.iter().any(|key| key == stage).then_some(None));
    layers.sort_unstable();
    for layer in layers {
        let mut bytes = std::fs::read(to)?;
        let all = values(&bytes)?;
        let tensors: BTreeMap<String, Tensor> = all.iter().map(|(name, (tensor, _))| (name.clone(), tensor.clone())).collect();
        let scene = Scene { values: &tensors, folder, layer: layer.unwrap_or(0) };
        let (key, place) = match layer {
            Some(layer) => (format!("layer.{layer}.{stage}"), format!("{stage}@{layer}")),
            None => ((*stage).to_string(), (*stage).to_string()),
        };
        match formula {
            Scale(by) => sets.extend(by(&scene, &mut draw.clone()).map(|by| format!("{place}=scale:{by}"))),
            Values(made) => {
                let Some(made) = made(&scene, &mut draw.clone()) else { continue };
                let (tensor, at) = &all[&key];
                if made.len() != tensor.values.len() {
                    return Err(format!("{key} has {} elements, and not {}", tensor.values.len(), made.len()).into());
                }
                let data: Vec<u8> = made.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
                bytes[*at..*at + data.len()].copy_from_slice(&data);
                let file = to.with_extension(format!("{}.set", layer.unwrap_or(0)));
                std::fs::write(&file, bytes)?;
                sets.push(format!("{place}=from:{}", file.display()));
            }
        }
        run(&sets, to)?;
    }
    Ok(!sets.is_empty())
}
