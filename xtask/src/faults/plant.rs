//! The faults that are planted, as users meet them: in config.json, in tensors, in the tokenizer's files, in kernels. Numbers
//! are drawn continuously. Nothing here knows how faults are found.

pub mod formulas;
pub mod gguf;
pub mod kernels;
mod tools;

use super::draw::Draw;
use super::files::{Folder, Tensor, half};
use serde_json::{Map, Value, json};
use tools::*;

/// Plants a fault in `folder`, in layer `layer` where it is in one; false where this model cannot have it.
pub type Plant = fn(&mut Folder, usize, &mut Draw) -> bool;

/// Class, name of the variant, whether it is in one layer, and how it is planted.
pub const PLANTS: &[(&str, &str, bool, Plant)] = &[
    ("norm_eps", "config", false, |f, _, d| number(f, &["rms_norm_eps"], |x| x * d.factor(1.6, 20.0))),
    ("rope_base", "config", false, |f, _, d| {
        // The first pair turns as fast with any base.
        let pairs = |f: &mut Folder| {
            let layer = f.text_config().get("layer_types")?.as_array()?.iter().position(|of| of == "full_attention")?;
            let part = f.text_config().get("rope_parameters")?.get("full_attention")?.get("partial_rotary_factor")?.as_f64()?;
            Some(part * head_dim(f, layer) as f64 / 2.0)
        };
        pairs(f).is_none_or(|pairs| pairs >= 2.0)
            && number(f, &["rope_theta", "rope_parameters.rope_theta", "rope_parameters.full_attention.rope_theta"], |x| {
                x * d.factor(1.3, 8.0)
            })
    }),
    ("rope_base", "local", false, |f, _, d| {
        number(f, &["rope_local_base_freq", "rope_parameters.sliding_attention.rope_theta"], |x| x * d.factor(1.3, 8.0))
    }),
    ("rope_scaling", "factor", false, |f, _, d| {
        let alpha =
            ["rope_scaling", "rope_parameters"].iter().any(|of| f.text_config().get(*of).is_some_and(|of| of.get("alpha").is_some()));
        !alpha
            && number(f, &["rope_scaling.factor", "rope_parameters.factor", "rope_parameters.full_attention.factor"], |x| {
                1.0 + (x - 1.0) * d.factor(1.3, 2.5)
            })
    }),
    ("rope_scaling", "removed", false, |f, _, _| {
        // A default stretches nothing, and with `alpha` it is the base that is another one.
        let stretches =
            f.text_config().get("rope_scaling").is_some_and(|of| of.is_object() && kind(of) != "default" && of.get("alpha").is_none());
        stretches && no_list(f) && set(f, "rope_scaling", Value::Null)
    }),
    ("rope_scaling", "added", false, |f, _, d| {
        let plain = f.text_config().get("rope_scaling").is_none_or(Value::is_null)
            && f.text_config().get("rope_parameters").is_none()
            && f.config["model_type"] == "llama";
        plain && set(f, "rope_scaling", json!({"rope_type": "linear", "factor": d.between(1.5, 6.0)}))
    }),
    ("rope_scaling", "short_factor", false, |f, _, d| {
        let by = d.between(1.2, 1.8);
        let text = f.text_config();
        let place =
            ["rope_scaling", "rope_parameters"].into_iter().find(|place| text.get(*place).and_then(|v| v.get("short_factor")).is_some());
        let Some(place) = place else { return false };
        for list in ["short_factor", "long_factor"] {
            let Some(list) = text[place].get_mut(list).and_then(Value::as_array_mut) else { return false };
            let last = list.len() - 1;
            list[last] = json!(list[last].as_f64().unwrap_or(1.0) * by);
        }
        true
    }),
    ("rope_scaling", "original", false, |f, _, d| {
        let paths = ["rope_scaling.original_max_position_embeddings", "rope_parameters.original_max_position_embeddings"];
        // Far enough that the corrected range of short heads moves by a frequency.
        no_list(f) && number(f, &paths, |x| (x * d.factor(4.0, 8.0)).round().max(2.0))
    }),
    ("rope_scaling", "short is long", false, |f, _, _| {
        let text = f.text_config();
        let Some(place) =
            ["rope_scaling", "rope_parameters"].into_iter().find(|place| text.get(*place).is_some_and(|v| v.get("short_factor").is_some()))
        else {
            return false;
        };
        let long = text[place]["long_factor"].clone();
        let differs = text[place]["short_factor"] != long && !crosses(text);
        text[place]["short_factor"] = long;
        differs
    }),
    ("rope_scaling", "long is short", false, |f, _, _| {
        let text = f.text_config();
        let Some(place) = ["rope_scaling", "rope_parameters"].into_iter().find(|place| text.get(*place).is_some_and(has_lists)) else {
            return false;
        };
        let short = text[place]["short_factor"].clone();
        let differs = text[place]["long_factor"] != short && crosses(text);
        text[place]["long_factor"] = short;
        differs
    }),
    ("rope_scaling", "of global layers", false, |f, _, _| {
        let plain = |of: &mut Map<String, Value>| of.retain(|key, _| key == "rope_theta");
        f.text_config().get_mut("rope_parameters").and_then(|all| all.get_mut("full_attention")).and_then(Value::as_object_mut).is_some_and(
            |of| {
                let scaled = of.get("rope_type").is_some_and(|kind| kind != "default");
                plain(of);
                of.insert("rope_type".into(), json!("default"));
                scaled
            },
        )
    }),
    ("rope_scaling", "of sliding layers", false, |f, _, _| {
        let Some(all) = f.text_config().get_mut("rope_parameters").and_then(Value::as_object_mut) else { return false };
        let (Some(global), Some(sliding)) = (all.get("full_attention").cloned(), all.get("sliding_attention").cloned()) else {
            return false;
        };
        let scaled = global.get("rope_type") != sliding.get("rope_type");
        let mut of = global;
        of["rope_theta"] = sliding["rope_theta"].clone();
        all.insert("sliding_attention".into(), of);
        scaled
    }),
    ("rope_scaling", "attention factor", false, |f, _, d| {
        let text = f.text_config();
        let Some(place) =
            ["rope_scaling", "rope_parameters"].into_iter().find(|place| text.get(*place).is_some_and(|of| kind(of) == "yarn"))
        else {
            return false;
        };
        ["mscale", "mscale_all_dim"].iter().for_each(|key| drop(text[place].as_object_mut().and_then(|of| of.remove(*key))));
        text[place]["attention_factor"] = json!(d.between(0.7, 0.95));
        true
    }),
    ("partial_rotary", "all", false, |f, _, _| {
        let lists = ["rope_scaling", "rope_parameters"].iter().any(|place| f.text_config().get(*place).is_some_and(has_lists));
        !lists && number(f, &["partial_rotary_factor", "rope_parameters.partial_rotary_factor"], |_| 1.0)
    }),
    ("rope_layers", "config", true, |f, layer, _| {
        let Some(list) = f.text_config().get_mut("no_rope_layers").and_then(Value::as_array_mut) else { return false };
        let Some(entry) = list.get_mut(layer) else { return false };
        *entry = json!(1 - entry.as_u64().unwrap_or(0).min(1));
        true
    }),
    ("attn_scale", "config", false, |f, _, d| number(f, &["query_pre_attn_scalar", "attention_multiplier"], |x| x * d.factor(1.3, 4.0))),
    ("attn_softcap", "value", false, |f, _, d| number(f, &["attn_logit_softcapping"], |x| x * d.factor(1.3, 3.0))),
    ("attn_softcap", "null", false, |f, _, _| has_number(f, "attn_logit_softcapping") && set(f, "attn_logit_softcapping", Value::Null)),
    ("activation_clamp", "limit", false, |f, _, d| number(f, &["swiglu_limit"], |x| x * d.between(0.3, 0.8))),
    // A limit that nothing reaches is none.
    ("activation_clamp", "beyond", false, |f, _, d| number(f, &["swiglu_limit"], |x| x * d.between(100.0, 1000.0))),
    ("activation_clamp", "alpha", false, |f, _, d| number(f, &["swiglu_alpha"], |x| x * d.factor(1.2, 2.0))),
    ("attn_sinks", "none", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, _| name.ends_with(".sinks")) else { return false };
        let far = -d.between(500.0, 2000.0) as f32;
        f.tensor(&name).is_some_and(|tensor| {
            tensor.values.fill(far);
            true
        })
    }),
    ("attn_sinks", "one head", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, _| name.ends_with(".sinks")) else { return false };
        let by = d.between(0.5, 3.0) as f32;
        f.tensor(&name).is_some_and(|tensor| {
            let at = d.of(tensor.values.len());
            tensor.values[at] += by;
            true
        })
    }),
    ("router", "division", false, |f, _, _| {
        // In a family that always divides the key means nothing.
        let Some(divided) = f.text_config().get("norm_topk_prob").and_then(Value::as_bool) else { return false };
        set(f, "norm_topk_prob", json!(!divided))
    }),
    ("router", "count", false, |f, _, _| {
        let experts = ["num_experts", "num_local_experts"].iter().find_map(|key| f.text_config().get(*key).and_then(Value::as_f64));
        experts.is_some_and(|experts| {
            experts > 1.0 && number(f, &["num_experts_per_tok"], |x| if x + 1.0 < experts { x + 1.0 } else { x - 1.0 })
        })
    }),
    ("swapped_tensors", "experts", true, |f, layer, _| {
        let of = |expert: usize| ["gate_proj", "w1"].map(|part| format!("layers.{layer}.mlp.experts.{expert}.{part}.weight"));
        of(0).iter().zip(&of(1)).any(|(a, b)| swap(f, a, b))
    }),
    ("final_softcap", "value", false, |f, _, d| number(f, &["final_logit_softcapping"], |x| x * d.factor(1.3, 3.0))),
    ("final_softcap", "null", false, |f, _, _| has_number(f, "final_logit_softcapping") && set(f, "final_logit_softcapping", Value::Null)),
    ("window_off_by_one", "config", false, |f, _, d| {
        windowed(f) && {
            let up = d.of(2) == 0;
            number(f, &["sliding_window"], |x| if up { x + 1.0 } else { x - 1.0 })
        }
    }),
    ("window_pattern", "width", false, |f, _, d| {
        windowed(f) && number(f, &["sliding_window"], |x| x + [-3.0, -2.0, 2.0, 3.0, 4.0][d.of(5)])
    }),
    ("window_pattern", "layers", true, |f, layer, _| {
        // With a RoPE for each kind of layer, this is two faults.
        if !windowed(f) || f.text_config().get("rope_parameters").is_some_and(|p| p.get("full_attention").is_some()) {
            return false;
        }
        let Some(list) = f.text_config().get_mut("layer_types").and_then(Value::as_array_mut) else { return false };
        let Some(entry) = list.get_mut(layer) else { return false };
        *entry = json!(if entry == "full_attention" { "sliding_attention" } else { "full_attention" });
        true
    }),
    ("window_pattern", "exchanged", false, |f, _, _| {
        if !windowed(f) || f.text_config().get("rope_parameters").is_some_and(|p| p.get("full_attention").is_some()) {
            return false;
        }
        let Some(list) = f.text_config().get_mut("layer_types").and_then(Value::as_array_mut) else { return false };
        for entry in &mut *list {
            *entry = json!(if entry == "full_attention" { "sliding_attention" } else { "full_attention" });
        }
        list.iter().any(|entry| *entry != list[0])
    }),
    ("activation", "config", false, |f, _, d| {
        let key = if f.text_config().contains_key("hidden_activation") { "hidden_activation" } else { "hidden_act" };
        let now = f.text_config().get(key).and_then(Value::as_str).unwrap_or("silu").to_string();
        let others: Vec<&str> = if now.starts_with("gelu") { vec!["silu"] } else { vec!["gelu", "gelu_pytorch_tanh"] };
        // Where gates are cut off the function is not the config's.
        f.text_config().contains_key(key) && f.config["model_type"] != "gpt_oss" && set(f, key, json!(others[d.of(others.len())]))
    }),
    ("embed_scale", "config", false, |f, _, d| number(f, &["embedding_multiplier"], |x| x * d.factor(1.1, 4.0))),
    ("residual_multiplier", "config", false, |f, _, d| number(f, &["residual_multiplier"], |x| x * d.factor(1.1, 3.0))),
    ("logits_scale", "config", false, |f, _, d| number(f, &["logits_scaling"], |x| x * d.factor(1.1, 3.0))),
    ("tied_head", "config", false, |f, _, _| {
        let now = f.config.get("tie_word_embeddings").and_then(Value::as_bool);
        now.is_some_and(|now| {
            f.config["tie_word_embeddings"] = json!(!now);
            if f.config.get("text_config").is_some() {
                f.config["text_config"]["tie_word_embeddings"] = json!(!now);
            }
            true
        })
    }),
    ("missing_bias", "config", false, |f, _, d| {
        let key = ["attention_bias", "mlp_bias"][d.of(2)];
        f.text_config().get(key) == Some(&json!(true)) && set(f, key, json!(false))
    }),
    ("missing_bias", "zeroed", true, |f, layer, d| {
        let name = pick(f, layer, d, |name, _| name.ends_with(".bias"));
        name.and_then(|name| f.tensor(&name)).is_some_and(|tensor| {
            let any = tensor.values.iter().any(|x| *x != 0.0);
            tensor.values.fill(0.0);
            any
        })
    }),
    ("norm_offset", "weights", false, |f, _, d| {
        let by = if d.of(2) == 0 { 1.0 } else { -1.0 };
        let names: Vec<String> = f.tensors.keys().filter(|name| name.contains("norm")).cloned().collect();
        for name in names {
            f.tensor(&name).into_iter().for_each(|tensor| {
                tensor.dtype = "F32".into();
                tensor.values.iter_mut().for_each(|x| *x += by);
            });
        }
        true
    }),
    ("corrupt_weight", "element", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| name.contains("layers") && t.shape.len() == 2) else { return false };
        let by = (d.between(3.0, 12.0) * if d.of(2) == 0 { 1.0 } else { -1.0 }) as f32;
        f.tensor(&name).is_some_and(|tensor| {
            let at = d.of(tensor.values.len());
            tensor.values[at] += by * tensor.size();
            true
        })
    }),
    ("corrupt_weight", "norm", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| name.contains("norm") && t.shape.len() == 1) else { return false };
        let by = d.between(0.2, 2.0) as f32;
        f.tensor(&name).is_some_and(|tensor| {
            let at = d.of(tensor.values.len());
            tensor.values[at] += by;
            true
        })
    }),
    ("corrupt_weight", "identity norm", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| name.contains("norm") && t.shape.len() == 1) else { return false };
        let adds_one = f.config["model_type"].as_str().is_some_and(|kind| kind.starts_with("gemma"));
        f.tensor(&name).is_some_and(|tensor| {
            tensor.values.fill(if adds_one { 0.0 } else { 1.0 });
            true
        })
    }),
    ("corrupt_weight", "another type", false, |f, layer, d| {
        let is = |name: &str, t: &Tensor| name.contains("layers") && t.shape.len() == 2 && t.dtype == "BF16";
        let Some(name) = pick(f, layer, d, is) else { return false };
        widen(f, &name);
        f.tensor(&name).is_some_and(|tensor| {
            // The bits of bf16, read as the other type of 16 bits.
            tensor.values.iter_mut().for_each(|x| *x = half((x.to_bits() >> 16) as u16));
            true
        })
    }),
    ("corrupt_weight", "row", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| name.contains("layers") && t.shape.len() == 2) else { return false };
        f.tensor(&name).is_some_and(|tensor| {
            let (row, columns) = (d.of(tensor.rows()), tensor.columns());
            tensor.values[row * columns..(row + 1) * columns].fill(0.0);
            true
        })
    }),
    ("corrupt_weight", "nan", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| name.contains("layers") && t.shape.len() == 2) else { return false };
        f.tensor(&name).is_some_and(|tensor| {
            let at = d.of(tensor.values.len());
            tensor.values[at] = f32::NAN;
            true
        })
    }),
    ("corrupt_weight", "scaled", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| {
            name.contains("layers") && t.shape.len() == 2 && !name.contains("qkv") && !name.contains("gate_up")
        }) else {
            return false;
        };
        let by = d.factor(1.1, 3.0) as f32;
        widen(f, &name);
        f.tensor(&name).is_some_and(|tensor| {
            tensor.values.iter_mut().for_each(|x| *x *= by);
            true
        })
    }),
    ("swapped_tensors", "norms", true, |f, layer, _| {
        swap(f, &format!("layers.{layer}.input_layernorm.weight"), &format!("layers.{layer}.post_attention_layernorm.weight"))
            || swap(
                f,
                &format!("layers.{layer}.post_attention_layernorm.weight"),
                &format!("layers.{layer}.post_feedforward_layernorm.weight"),
            )
    }),
    ("swapped_tensors", "keys", true, |f, layer, _| {
        swap(f, &format!("layers.{layer}.self_attn.k_proj.weight"), &format!("layers.{layer}.self_attn.v_proj.weight"))
    }),
    ("swapped_layers", "down", true, |f, layer, _| {
        layer > 0 && swap(f, "layers.0.mlp.down_proj.weight", &format!("layers.{layer}.mlp.down_proj.weight"))
    }),
    ("swapped_layers", "whole", true, |f, layer, _| {
        let names: Vec<String> = f.tensors.keys().filter(|name| name.contains("layers.0.")).cloned().collect();
        layer > 0 && names.iter().all(|name| swap(f, name, &name.replace("layers.0.", &format!("layers.{layer}."))))
    }),
    ("gate_up_swapped", "tensors", true, |f, layer, _| {
        let part = |name: &str| format!("layers.{layer}.mlp.{name}.weight");
        if swap(f, &part("gate_proj"), &part("up_proj")) {
            // Biases go with their matrices.
            let bias = |name: &str| format!("layers.{layer}.mlp.{name}.bias");
            swap(f, &bias("gate_proj"), &bias("up_proj"));
            return true;
        }
        let Some(name) = full(f, &part("gate_up_proj")) else { return false };
        f.tensor(&name).is_some_and(|tensor| {
            let middle = tensor.values.len() / 2;
            tensor.values.rotate_left(middle);
            true
        })
    }),
    ("gate_layout", "fused", true, |f, layer, _| {
        let Some(name) = full(f, &format!("layers.{layer}.mlp.gate_up_proj.weight")) else { return false };
        f.tensor(&name).is_some_and(|tensor| {
            let half = tensor.rows() / 2;
            reorder(tensor, |row| row / 2 + if row % 2 == 0 { 0 } else { half });
            true
        })
    }),
    ("transposed_weight", "square", true, |f, layer, d| {
        let Some(name) = pick(f, layer, d, |name, t| {
            let meant = name.contains("layers") && t.shape.len() == 2 && t.shape.iter().all(|size| *size > 1);
            meant && !name.contains("qkv") && !name.contains("gate_up")
        }) else {
            return false;
        };
        f.tensor(&name).is_some_and(|tensor| {
            let (rows, columns) = (tensor.rows(), tensor.columns());
            // The bytes of the transposed matrix under the shape of the right one.
            tensor.values = (0..rows * columns).map(|i| tensor.values[(i % rows) * columns + i / rows]).collect();
            true
        })
    }),
    ("permuted_qk", "rows", true, |f, layer, d| {
        let width = head_dim(f, layer);
        let part = ["q_proj", "k_proj"][d.of(2)];
        let mut done = false;
        for kind in ["weight", "bias"] {
            let Some(name) = full(f, &format!("layers.{layer}.self_attn.{part}.{kind}")) else { continue };
            f.tensor(&name).into_iter().for_each(|tensor| {
                reorder(tensor, |row| row / width * width + (row % width) / 2 + if row % 2 == 0 { 0 } else { width / 2 });
            });
            done = true;
        }
        done
    }),
    ("permuted_qk", "both", false, |f, _, _| {
        permuted(f, |row, width| row / width * width + (row % width) / 2 + if row % 2 == 0 { 0 } else { width / 2 })
    }),
    ("permuted_qk", "both back", false, |f, _, _| {
        permuted(f, |row, width| {
            row / width * width + if row % width < width / 2 { row % width * 2 } else { (row % width - width / 2) * 2 + 1 }
        })
    }),
    ("gqa_mapping", "keys", true, |f, layer, _| {
        let width = head_dim(f, layer);
        let mut done = false;
        for kind in ["weight", "bias"] {
            let Some(name) = full(f, &format!("layers.{layer}.self_attn.k_proj.{kind}")) else { continue };
            f.tensor(&name).into_iter().for_each(|tensor| {
                let rows = tensor.rows();
                done = rows > width;
                reorder(tensor, |row| (row + width) % rows);
            });
        }
        done
    }),
    ("missing_special_token", "processor", false, |f, _, _| {
        let Some(text) = f.texts.get_mut("tokenizer.json") else { return false };
        let Ok(mut json) = serde_json::from_str::<Value>(text) else { return false };
        let had = !json["post_processor"].is_null();
        json["post_processor"] = Value::Null;
        *text = json.to_string();
        if let Some(text) = f.texts.get_mut("tokenizer_config.json")
            && let Ok(mut json) = serde_json::from_str::<Value>(text)
        {
            json["add_bos_token"] = json!(false);
            *text = json.to_string();
        }
        had
    }),
    ("chat_template", "broken", false, |f, _, d| {
        template(f, |text| {
            let ends: Vec<usize> = text.match_indices("%}").map(|(at, _)| at).collect();
            let at = *ends.get(d.of(ends.len()))?;
            Some(format!("{}{}", &text[..at], &text[at + 1..]))
        })
    }),
    ("bos_doubled", "template", false, |f, _, _| {
        template(f, |text| text.contains("bos_token").then(|| format!("{{{{ bos_token }}}}{text}")))
    }),
    ("bf16_overflow_f16", "scaled", true, |f, layer, d| {
        // What the first factor adds the second takes away: in f32 the model is the same.
        let by = 2f32.powi(d.between(24.0, 40.0) as i32);
        let part = |name: &str| format!("layers.{layer}.mlp.{name}.weight");
        let (Some(up), Some(down)) = (full(f, &part("up_proj")), full(f, &part("down_proj"))) else { return false };
        for (name, by) in [(up, by), (down, 1.0 / by)] {
            f.tensor(&name).into_iter().for_each(|tensor| {
                tensor.dtype = "F32".into();
                tensor.values.iter_mut().for_each(|x| *x *= by);
            });
        }
        full(f, &format!("layers.{layer}.mlp.up_proj.bias")).is_none()
    }),
    ("pre_tokenizer", "merges", false, |f, _, d| {
        let Some(text) = f.texts.get_mut("tokenizer.json") else { return false };
        let Ok(mut json) = serde_json::from_str::<Value>(text) else { return false };
        let Some(merges) = json["model"]["merges"].as_array_mut() else { return false };
        let keep = merges.len() / 4 + d.of(merges.len() / 4 + 1);
        merges.truncate(keep);
        *text = json.to_string();
        true
    }),
    ("delta_rule", "decays stored with sign", true, |f, layer, _| {
        changed(f, layer, "linear_attn.A_log", |t| t.values.iter_mut().for_each(|x| *x = -x.exp()))
    }),
    ("delta_rule", "decays stored without sign", true, |f, layer, _| {
        changed(f, layer, "linear_attn.A_log", |t| t.values.iter_mut().for_each(|x| *x = x.exp()))
    }),
    ("missing_bias", "steps of decays", true, |f, layer, _| changed(f, layer, "linear_attn.dt_bias", |t| t.values.fill(0.0))),
    ("swapped_tensors", "decays and steps", true, |f, layer, _| {
        swap(f, &format!("layers.{layer}.linear_attn.A_log"), &format!("layers.{layer}.linear_attn.dt_bias"))
    }),
    ("swapped_tensors", "rates and decays", true, |f, layer, _| {
        let part = |name: &str| format!("layers.{layer}.linear_attn.in_proj_{name}.weight");
        swap(f, &part("a"), &part("b"))
    }),
    ("corrupt_weight", "decay", true, |f, layer, d| {
        let (by, part) = (d.factor(1.3, 3.0) as f32, ["linear_attn.A_log", "linear_attn.dt_bias"][d.of(2)]);
        changed(f, layer, part, |t| {
            let at = d.of(t.values.len());
            t.values[at] = t.values[at] * by + 0.3;
        })
    }),
    ("corrupt_weight", "tap", true, |f, layer, d| {
        let (end, by) =
            (if full(f, "conv.conv.weight").is_some() { "conv.conv.weight" } else { "linear_attn.conv1d.weight" }, d.between(0.5, 2.0));
        changed(f, layer, end, |t| {
            let (at, size) = (d.of(t.values.len()), t.size());
            t.values[at] += by as f32 * size;
        })
    }),
    ("corrupt_weight", "taps reversed", true, |f, layer, _| {
        let end = if full(f, "conv.conv.weight").is_some() { "conv.conv.weight" } else { "linear_attn.conv1d.weight" };
        changed(f, layer, end, |t| {
            let taps = t.shape.last().copied().unwrap_or(1).max(1);
            t.values.chunks_mut(taps).for_each(<[f32]>::reverse);
        })
    }),
    ("norm_offset", "gated norms", false, |f, _, d| {
        let by = if d.of(2) == 0 { 1.0 } else { -1.0 };
        let names: Vec<String> = f.tensors.keys().filter(|name| name.ends_with("linear_attn.norm.weight")).cloned().collect();
        names
            .iter()
            .map(|name| changed(f, layer_of(name), "linear_attn.norm.weight", |t| t.values.iter_mut().for_each(|x| *x += by)))
            .count()
            > 0
    }),
    ("gqa_mapping", "gates of value heads", true, |f, layer, _| {
        let of = |f: &mut Folder, key: &str| f.text_config().get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
        let (keys, values) = (of(f, "linear_num_key_heads"), of(f, "linear_num_value_heads"));
        let width = of(f, "linear_value_head_dim").max(1);
        // Value heads of one key head are next to each other, or in turn.
        let place = |row: usize| (row / width % keys * (values / keys) + row / width / keys) * width + row % width;
        keys > 1 && values > keys && changed(f, layer, "linear_attn.in_proj_z.weight", |t| reorder(t, place))
    }),
    ("gate_layout", "queries and their gate", true, |f, layer, _| {
        let width = head_dim(f, layer);
        let gated = full(f, "linear_attn.A_log").is_some();
        gated
            && changed(f, layer, "self_attn.q_proj.weight", |t| {
                // All queries, then all gates, in place of a head's query and gate in turn.
                let half = t.rows() / 2;
                reorder(t, |row| row % half / width * 2 * width + row / half * width + row % width);
            })
    }),
    ("corrupt_weight", "layer's number", true, |f, layer, d| {
        let by = d.factor(1.2, 4.0) as f32;
        changed(f, layer, "layer_scalar", |t| t.values.iter_mut().for_each(|x| *x *= by))
    }),
    ("corrupt_weight", "experts' numbers", true, |f, layer, d| {
        changed(f, layer, "router.per_expert_scale", |t| t.values.iter_mut().for_each(|x| *x *= d.factor(1.1, 2.0) as f32))
    }),
    ("corrupt_weight", "router's vector", true, |f, layer, d| {
        changed(f, layer, "router.scale", |t| t.values.iter_mut().for_each(|x| *x += d.between(0.2, 1.0) as f32))
    }),
];
