//! What GGUF calls the weights of every decoder-only transformer: one table, since converters use the same names for all
//! architectures. Roles are those of presets and plans; `{layer}` is replaced. Source: ggml's `gguf-py/gguf/constants.py`.
//!
//! Deviations are visible in the tensors themselves: a fused tensor takes the place of its parts (q, k and v in
//! `attn_qkv`; gate, then up, in `ffn_up` where there is no `ffn_gate`). Norms after attention and after the feed-forward
//! block are `post_attention_norm` and `post_ffw_norm` in every architecture that has them; `ffn_norm` is the norm before the
//! feed-forward block, whatever Hugging Face's classes call it, but in `gpt-oss`, which calls that one `post_attention_norm`. Biases end in `.bias` instead of `.weight`.

/// Role and name, without `.weight` or `.bias` unless it [`is_whole`].
pub const NAMES: [(&str, &str); 49] = [
    ("embed", "token_embd"),
    ("attn_norm", "blk.{layer}.attn_norm"),
    ("q_proj", "blk.{layer}.attn_q"),
    ("k_proj", "blk.{layer}.attn_k"),
    ("v_proj", "blk.{layer}.attn_v"),
    ("q_norm", "blk.{layer}.attn_q_norm"),
    ("k_norm", "blk.{layer}.attn_k_norm"),
    ("o_proj", "blk.{layer}.attn_output"),
    ("sinks", "blk.{layer}.attn_sinks"),
    ("post_attn_norm", "blk.{layer}.post_attention_norm"),
    ("ffn_norm", "blk.{layer}.ffn_norm"),
    ("gate_proj", "blk.{layer}.ffn_gate"),
    ("up_proj", "blk.{layer}.ffn_up"),
    ("down_proj", "blk.{layer}.ffn_down"),
    ("router", "blk.{layer}.ffn_gate_inp"),
    ("router_choice", "blk.{layer}.exp_probs_b"),
    ("expert_gate", "blk.{layer}.ffn_gate_exps"),
    ("expert_up", "blk.{layer}.ffn_up_exps"),
    ("expert_down", "blk.{layer}.ffn_down_exps"),
    ("shared_gate", "blk.{layer}.ffn_gate_shexp"),
    ("shared_up", "blk.{layer}.ffn_up_shexp"),
    ("shared_down", "blk.{layer}.ffn_down_shexp"),
    ("shared_scale", "blk.{layer}.ffn_gate_inp_shexp"),
    ("post_ffn_norm", "blk.{layer}.post_ffw_norm"),
    ("final_norm", "output_norm"),
    ("head", "output"),
    ("conv_in", "blk.{layer}.shortconv.in_proj"),
    ("conv", "blk.{layer}.shortconv.conv"),
    ("conv_out", "blk.{layer}.shortconv.out_proj"),
    ("ple_embed", "per_layer_token_embd"),
    ("ple_proj", "per_layer_model_proj"),
    ("ple_proj_norm", "per_layer_proj_norm"),
    ("ple_gate", "blk.{layer}.inp_gate"),
    ("ple_out", "blk.{layer}.proj"),
    ("post_ple_norm", "blk.{layer}.post_norm"),
    ("layer_scalar", "blk.{layer}.layer_output_scale"),
    ("router_in", "blk.{layer}.ffn_gate_inp.scale"),
    ("router_scales", "blk.{layer}.ffn_down_exps.scale"),
    ("dense_norm", "blk.{layer}.post_ffw_norm_1"),
    ("experts_in", "blk.{layer}.pre_ffw_norm_2"),
    ("experts_norm", "blk.{layer}.post_ffw_norm_2"),
    ("delta_qkv", "blk.{layer}.attn_qkv"),
    ("delta_z", "blk.{layer}.attn_gate"),
    ("delta_b", "blk.{layer}.ssm_beta"),
    ("delta_a", "blk.{layer}.ssm_alpha"),
    ("delta_decay", "blk.{layer}.ssm_a"),
    ("delta_step", "blk.{layer}.ssm_dt.bias"),
    ("delta_norm", "blk.{layer}.ssm_norm"),
    ("delta_out", "blk.{layer}.ssm_out"),
];

/// Other names, in files that have such a tensor and not the usual one: the final norm of `lfm2`, the norm before the feed-forward
/// block of `gpt-oss` and `qwen35`, the convolution before a delta rule.
pub const OTHERS: [(&str, &str); 3] =
    [("final_norm", "token_embd_norm"), ("ffn_norm", "blk.{layer}.post_attention_norm"), ("conv", "blk.{layer}.ssm_conv1d")];

/// Roles that share a tensor, in row order, and its name. The first is one by what the model is: the tensor has the same name where
/// queries have no gate.
pub const FUSED: [(&[&str], &str); 6] = [
    (&["q_proj", "attn_gate"], "blk.{layer}.attn_q"),
    (&["q_proj", "k_proj", "v_proj"], "blk.{layer}.attn_qkv"),
    (&["gate_proj", "up_proj"], "blk.{layer}.ffn_up"),
    (&["expert_gate", "expert_up"], "blk.{layer}.ffn_gate_up_exps"),
    (&["delta_qkv", "delta_z"], "blk.{layer}.ssm_in"),
    (&["delta_b", "delta_a"], "blk.{layer}.ssm_ba"),
];

/// Whether a name ends in neither `.weight` nor `.bias`, or has its own ending.
pub fn is_whole(name: &str) -> bool {
    [".scale", ".bias", ".ssm_a"].iter().any(|end| name.ends_with(end))
}

/// `name` of whatever layer as that of the first one: of a kind of layer, the first need not be one.
pub fn of_first_layer(name: &str) -> String {
    let rest = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).filter(|(layer, _)| layer.parse::<usize>().is_ok());
    rest.map_or_else(|| name.to_owned(), |(_, rest)| format!("blk.0.{rest}"))
}

/// The tensor without which `ffn_up` holds the gate too, where that is not [`plain`].
pub const GATE: &str = "blk.0.ffn_gate.weight";

/// Whether `ffn_up` holds no gate: it is as high as `ffn_down` is wide. `shape` gives shapes by name, outermost size first.
pub fn plain<'s>(shape: impl Fn(&str) -> Option<&'s [usize]>) -> bool {
    match (shape("blk.0.ffn_up.weight"), shape("blk.0.ffn_down.weight")) {
        (Some([rows, _]), Some([_, columns])) => rows == columns,
        _ => false,
    }
}

/// Tensors of a layer's keys and values, where it has some of its own.
pub const KEYS_AND_VALUES: [&str; 3] = ["attn_k", "attn_v", "attn_k_norm"];
/// Tensors that are no weights of ops: divisors of RoPE frequencies, which a config holds.
pub const IGNORED: [&str; 4] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "attn_rot_embd.weight"];

/// What a tensor of a file is called that holds weights of `role` in `layer`, its own first, then the one that it shares
/// with others.
pub fn tensors_of(role: &str, layer: Option<usize>) -> Vec<String> {
    let own = NAMES.iter().filter(|(known, _)| *known == role).map(|(_, name)| name);
    let shared = FUSED.iter().filter(|(roles, _)| roles.contains(&role)).map(|(_, name)| name);
    let place = layer.unwrap_or(0).to_string();
    let full = |name: &&str| name.replace("{layer}", &place) + if is_whole(name) { "" } else { ".weight" };
    let mut all: Vec<String> = own.chain(shared).map(full).collect();
    all.dedup();
    all
}

/// The name of a role's weight with the roles that share its tensor (none if it has its own), in a file that has the
/// tensors for which `has`, asked for names [`of_first_layer`], is true.
pub fn template(role: &str, has: impl Fn(&str) -> bool) -> Option<(&'static str, &'static [&'static str])> {
    let first = |name: &str| has(&format!("{}.weight", name.replace("{layer}", "0")));
    let fused = FUSED.iter().find(|(roles, name)| {
        let own = NAMES.iter().find(|(first_role, _)| roles.first() == Some(first_role));
        roles.contains(&role) && first(name) && !own.is_some_and(|(_, own)| first(own))
    });
    let usual = NAMES.iter().find(|(known, _)| *known == role);
    let other = OTHERS.iter().find(|(known, name)| *known == role && first(name) && !usual.is_some_and(|(_, usual)| first(usual)));
    match (fused, other) {
        (Some((roles, name)), _) => Some((name, roles)),
        (None, Some((_, name))) => Some((name, &[])),
        (None, None) => usual.map(|(_, name)| (*name, [].as_slice())),
    }
}
