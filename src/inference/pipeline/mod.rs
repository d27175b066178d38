//! From a `ModelConfig` to a `Plan`: one page from token to logits. Differences between models are plain
//! conditions on the config; no family has a name here.

mod attention;
mod experts;
mod ffn;
mod gated_delta;
mod inputs;
mod layer;
mod norm;
mod short_conv;

use crate::error::{Error, Result};
use crate::model::{ModelConfig, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::edit::{Edit, apply};
use crate::plan::{Op, Plan, Stage};

/// The plan of a model.
pub fn build(config: &ModelConfig) -> Result<Plan> {
    let mut b = Builder::new(config.ropes.clone(), config.layers.len(), config.vocab_size, config.max_positions);

    let table = b.weight(WeightRole::Embed, false, &[config.vocab_size, config.hidden_size]);
    let mut x = b.push(Stage::EmbedOut, Op::Embed { table, scale: config.embedding_scale }, &[], config.hidden_size);
    let inputs = config.layer_inputs.as_ref().map(|of| inputs::all(&mut b, config, of, x));
    for index in 0..config.layers.len() {
        b.enter_layer(index);
        x = layer::layer(&mut b, config, index, inputs, x)?;
        b.leave_layer();
    }
    let x = b.push(Stage::PreFinalNorm, Op::Same, &[x], config.hidden_size);
    let x = norm::norm(&mut b, &config.norm, WeightRole::FinalNorm, Stage::FinalNorm, x);
    b.begin_head(x);

    let role = if config.tie_word_embeddings { WeightRole::Embed } else { WeightRole::Head };
    let weight = b.weight(role, false, &[config.vocab_size, config.hidden_size]);
    let bias = config.head_bias.then(|| b.weight(WeightRole::Head, true, &[config.vocab_size]));
    let head = Op::Linear { weight, bias, divisor: config.logits_scaling };
    let logits = b.push(Stage::Logits, head, &[x], config.vocab_size);
    let last = config.final_logit_softcapping.map_or(Op::Same, |cap| Op::SoftCap { cap });
    b.push(Stage::LogitsFinal, last, &[logits], config.vocab_size);
    b.finish()
}

/// The config and the plan of a model with `edits`, those of the config first.
///
/// # Errors
/// Those of `build` and `apply`; `Kind::Plan` for edits of the config that change nothing.
pub fn edited(config: &ModelConfig, edits: &[Edit]) -> Result<(ModelConfig, Plan)> {
    let mut config = config.clone();
    let mut others = Vec::new();
    for edit in edits {
        let Edit::Config(number) = edit else {
            others.push(edit.clone());
            continue;
        };
        let before = config.clone();
        number.apply(&mut config);
        if config == before {
            return Err(Error::plan(format!("edit of the config: it changes nothing: {number} already")));
        }
    }
    let plan = apply(&build(&config)?, &others)?;
    Ok((config, plan))
}
