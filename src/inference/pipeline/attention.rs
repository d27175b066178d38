//! The attention block: projections, optional q/k norms, RoPE, the cache, attention over it, output projection.

use super::norm;
use crate::error::Result;
use crate::model::{AttentionConfig, ModelConfig, QueryKeyNorm, WeightRole};
use crate::plan::builder::Builder;
use crate::plan::{Attention, KvSpec, Op, Stage, StateKind, StatePart, ValueId};

/// Adds the block reading `x` [T, hidden]; returns `o_proj` [T, hidden].
pub fn attention(b: &mut Builder, config: &ModelConfig, of: &AttentionConfig, x: ValueId) -> Result<ValueId> {
    let (heads, kv_heads, head_dim) = (of.num_heads, of.num_kv_heads, of.head_dim);
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);

    let mut q = linear(b, WeightRole::QProj, Stage::QProj, x, q_width, of.qkv_bias);
    // A layer that reads another's keys and values has none.
    let mut kv = if of.shared_kv.is_some() {
        None
    } else {
        let k = linear(b, WeightRole::KProj, Stage::KProj, x, kv_width, of.qkv_bias);
        let v = if of.values_from_keys { k } else { linear(b, WeightRole::VProj, Stage::VProj, x, kv_width, of.qkv_bias) };
        Some((k, v))
    };
    let gate = of.gated.then(|| linear(b, WeightRole::AttnGate, Stage::AttnGate, x, q_width, of.qkv_bias));
    let groups = match of.query_key_norm {
        QueryKeyNorm::None => None,
        QueryKeyNorm::PerHead | QueryKeyNorm::PerHeadAfterRope | QueryKeyNorm::PerHeadOwnWeights => Some((head_dim, head_dim)),
        QueryKeyNorm::WholeProjection => Some((q_width, kv_width)),
    };
    let after_rope = of.query_key_norm == QueryKeyNorm::PerHeadAfterRope;
    let own = of.query_key_norm == QueryKeyNorm::PerHeadOwnWeights;
    let norms = |b: &mut Builder, q: &mut ValueId, kv: &mut Option<(ValueId, ValueId)>| {
        let Some((q_group, k_group)) = groups else { return };
        *q = norm::heads(b, &config.norm, (WeightRole::QNorm, own), Stage::QNorm, *q, q_group);
        if let Some((k, _)) = kv {
            *k = norm::heads(b, &config.norm, (WeightRole::KNorm, own), Stage::KNorm, *k, k_group);
        }
    };
    if !after_rope {
        norms(b, &mut q, &mut kv);
    }
    if let Some((_, v)) = kv.as_mut().filter(|_| of.value_norm) {
        *v = norm::unit(b, &config.norm, Stage::VNorm, *v, head_dim);
    }
    if let Some(rope) = of.rope {
        let query_rope = of.query_rope.unwrap_or(rope);
        q = b.push(Stage::QRope, Op::Rope { rope: query_rope, heads, head_dim }, &[q], q_width);
        if let Some((k, _)) = &mut kv {
            *k = b.push(Stage::KRope, Op::Rope { rope, heads: kv_heads, head_dim }, &[*k], kv_width);
        }
    }
    if after_rope {
        norms(b, &mut q, &mut kv);
    }

    let (state, k, v) = match (kv, of.shared_kv) {
        (Some((k, v)), _) => {
            let state = b.state(StateKind::Kv(KvSpec { kv_heads, head_dim, window: of.window }));
            let k = b.push(Stage::KCache, Op::Append { state, part: StatePart::Keys }, &[k], kv_width);
            (state, k, b.push(Stage::VCache, Op::Append { state, part: StatePart::Values }, &[v], kv_width))
        }
        (None, from) => {
            let from = from.unwrap_or_default();
            let (state, k) = b.appended(Stage::KCache, from)?;
            (state, k, b.appended(Stage::VCache, from)?.1)
        }
    };
    let sinks = of.sinks.then(|| b.weight(WeightRole::Sinks, false, &[heads]));
    let attention = Attention { state, heads, kv_heads, head_dim, scale: of.scale, softcap: of.softcap, window: of.window, sinks };
    let scores = b.push(Stage::AttnScores, Op::AttnScores(attention.clone()), &[q, k], heads);
    let probs = b.push(Stage::AttnProbs, Op::AttnProbs(attention.clone()), &[scores], heads);
    let mut mixed = b.push(Stage::AttnCoreOut, Op::AttnMix(attention), &[probs, v], q_width);
    if let Some(gate) = gate {
        mixed = b.push(Stage::AttnGated, Op::SigmoidScale, &[mixed, gate], q_width);
    }
    Ok(linear(b, WeightRole::OProj, Stage::OProj, mixed, config.hidden_size, of.o_bias))
}

/// A projection of `x` to `width` under weight `role`.
pub fn linear(b: &mut Builder, role: WeightRole, stage: Stage, x: ValueId, width: usize, bias: bool) -> ValueId {
    let weight = b.weight(role, false, &[width, b.width(x)]);
    let bias = bias.then(|| b.weight(role, true, &[width]));
    b.push(stage, Op::Linear { weight, bias, divisor: 1.0 }, &[x], width)
}
