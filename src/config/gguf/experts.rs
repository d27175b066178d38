//! What metadata say of experts, in every architecture that has them.

use super::keys::Keys;
use crate::error::Result;
use serde_json::json;

/// Experts: how many, how many of a token. Whether weights are divided by their sum is `divided` where no key says so.
pub(super) fn experts(k: &mut Keys, name: &str, divided: Option<bool>) -> Result<()> {
    k.count("expert_count", name)?;
    k.count("expert_used_count", "num_experts_per_tok")?;
    const NORM: &str = "expert_weights_norm";
    match (k.flag(NORM)?, divided) {
        (Some(stated), Some(fixed)) if stated != fixed => {
            return Err(k.unsupported(NORM, format!("{stated} is not supported in this architecture, only {fixed}")));
        }
        _ => {}
    }
    const SCORES: &str = "expert_gating_func";
    // What was read already was understood.
    if let Some(other) = k.unread_count(SCORES)?.filter(|function| *function != 1) {
        return Err(k.unsupported(SCORES, format!("{other} is not supported in this architecture, only 1, a softmax")));
    }
    const SCALE: &str = "expert_weights_scale";
    if let Some(other) = k.number(SCALE)?.filter(|scale| ![Some(0.0), Some(1.0)].contains(&scale.as_f64())) {
        return Err(k.unsupported(SCALE, format!("{other} is not supported in this architecture, only 1")));
    }
    Ok(())
}

/// `norm_topk_prob`, which is `usual` where no key says otherwise.
pub(super) fn divided(k: &mut Keys, usual: bool) -> Result<()> {
    match k.flag("expert_weights_norm")? {
        Some(stated) => k.set_from("norm_topk_prob", json!(stated), "expert_weights_norm"),
        None => k.set("norm_topk_prob", json!(usual), "GGUF convention: that of the architecture where expert_weights_norm is absent"),
    }
    Ok(())
}
