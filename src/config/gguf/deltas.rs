//! What metadata say of layers with delta rules, in every architecture that has them.

use super::Tensors;
use super::experts::experts;
use super::families::biases;
use super::keys::Keys;
use crate::error::Result;
use serde_json::{Value, json};

pub(super) fn qwen35(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    // Of each axis of a position as many frequencies; in a text all axes are alike.
    k.note_read("rope.dimension_sections");
    deltas(k)?;
    biases(k, tensors, false)
}

pub(super) fn qwen35moe(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    with_experts(k)?;
    qwen35(k, tensors)
}

pub(super) fn qwen3next(k: &mut Keys, tensors: &Tensors) -> Result<()> {
    with_experts(k)?;
    k.set("norm_topk_prob", json!(true), "GGUF convention: weights of experts are divided by their sum");
    deltas(k)?;
    biases(k, tensors, false)
}

fn with_experts(k: &mut Keys) -> Result<()> {
    experts(k, "num_experts", Some(true))?;
    k.count("expert_feed_forward_length", "moe_intermediate_size")?;
    k.count("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?;
    Ok(())
}

/// Delta rules, and which layers have them.
fn deltas(k: &mut Keys) -> Result<()> {
    k.count("ssm.conv_kernel", "linear_conv_kernel_dim")?;
    k.count("ssm.group_count", "linear_num_key_heads")?;
    k.count("ssm.state_size", "linear_key_head_dim")?;
    let heads = k.count("ssm.time_step_rank", "linear_num_value_heads")?;
    const WIDTH: &str = "ssm.inner_size";
    let width = k.optional_count(WIDTH)?.ok_or_else(|| k.wrong(WIDTH, "is missing"))?;
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(k.wrong(WIDTH, format!("{width} is no multiple of ssm.time_step_rank, {heads}")));
    }
    k.set_from("linear_value_head_dim", json!(width / heads), WIDTH);

    const FURTHER: &str = "nextn_predict_layers";
    let all = k.config("num_hidden_layers").as_u64().unwrap_or(0).min(10_000);
    let further = k.optional_count(FURTHER)?.unwrap_or(0);
    let layers = all.checked_sub(further).filter(|layers| *layers > 0);
    let layers = layers.ok_or_else(|| k.wrong(FURTHER, format!("{further} of {all} blocks leave none")))?;
    if further > 0 {
        k.set_from("num_hidden_layers", json!(layers), FURTHER);
        k.ignored.extend((layers..all).map(|layer| format!("blk.{layer}.")));
        k.note(format!("the file has {further} blocks that predict further tokens (`{}`): they are not run", k.path(FURTHER)));
    }
    const LISTED: &str = "attention.recurrent_layers";
    const INTERVAL: &str = "full_attention_interval";
    let interval = k.optional_count(INTERVAL)?;
    let (recurrent, from) = match k.get(LISTED) {
        Some(Value::Array(list)) if list.len() as u64 >= layers => (list.iter().map(Value::as_bool).collect::<Option<Vec<bool>>>(), LISTED),
        Some(_) => (None, LISTED),
        None => match interval.unwrap_or(4) {
            0 => (None, INTERVAL),
            period => (Some((1..=layers).map(|number| !number.is_multiple_of(period)).collect()), INTERVAL),
        },
    };
    let recurrent = recurrent.ok_or_else(|| k.wrong(from, format!("expected a flag for each of {layers} layers, or a period")))?;
    let kind = |recurrent: &bool| if *recurrent { "linear_attention" } else { "full_attention" };
    let kinds = recurrent.iter().take(layers as usize).map(kind).collect();
    if from == INTERVAL && interval.is_none() {
        k.set("layer_types", kinds, "GGUF convention: attention in each fourth layer");
    } else {
        k.set_from("layer_types", kinds, from);
    }
    Ok(())
}
