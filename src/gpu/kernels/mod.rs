//! THE table of kernels: name, WGSL text, parameters. A call that disagrees with its row is refused, and a test
//! checks every row against what the shader compiler reads from the text.

/// A WGSL compute kernel. Group 0 is the step and where its tokens are from; of group 1, binding 0 is the kernel's parameters, 2
/// and up its buffers in the order of the call.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Name; the text is `<name>.wgsl`.
    pub name: &'static str,
    /// WGSL before preprocessing.
    pub source: &'static str,
    /// Members of `Params`, in order.
    pub params: &'static [&'static str],
}

#[cfg(any(test, target_arch = "wasm32"))]
mod short;

/// The text in a file: as it is, or, for browsers, without comments.
#[cfg(not(target_arch = "wasm32"))]
macro_rules! text {
    ($path:expr) => {
        include_str!($path)
    };
}
#[cfg(target_arch = "wasm32")]
macro_rules! text {
    ($path:expr) => {{
        const SHORT: [u8; short::length(include_str!($path))] = short::shorten(include_str!($path));
        const TEXT: &str = match std::str::from_utf8(&SHORT) {
            Ok(text) => text,
            Err(_) => panic!("no whole characters are taken away"),
        };
        TEXT
    }};
}

macro_rules! kernels {
    ($( $name:literal: [$($param:literal)*] )*) => {
        /// Every kernel.
        pub const KERNELS: &[Kernel] = &[ $( Kernel {
            name: $name, source: text!(concat!($name, ".wgsl")), params: &[$($param),*],
        } ),* ];
    };
}

kernels! {
    "embed":        ["k8" "out_stride" "row_first" "row_count" "scale" "row4"]
    "rms_norm":     ["width" "k" "in_stride" "out_stride" "eps" "offset" "weight_first" "multiplier" "scale_first"
                     "factor"]
    "layer_norm":   ["width" "k" "in_stride" "out_stride" "eps" "weight_first" "bias_first" "weight_step"]
    "linear":       ["k" "k8" "n" "w_first" "n_first" "in_stride8" "out_stride" "divisor" "row4" "bias_first" "eps" "offset"
                     "multiplier" "second" "second_stride" "second_bias" "third" "third_stride" "third_bias" "chosen" "share" "piece_first"
                     "piece_rows" "experts" "normed_stride8"]
    "linear_rows":  ["k" "k8" "n" "w_first" "n_first" "in_stride8" "out_stride" "divisor" "bias_first" "multiplier" "second"
                     "second_stride" "second_bias" "third" "third_stride" "third_bias"]
    "linear_thin":  ["k" "k8" "n" "w_first" "n_first" "in_stride8" "out_stride" "divisor" "row4" "bias_first" "multiplier" "second"
                     "second_stride" "second_bias" "third" "third_stride" "third_bias" "w_scale"]
    "linear_tiled": ["k" "k8" "n" "n_first" "in_stride8" "out_stride" "divisor" "row4" "w_first" "bias_first" "multiplier"
                     "chosen" "share" "piece_first" "piece_rows" "experts"]
    "linear_matrix": ["k" "k8" "n" "n_first" "in_stride8" "out_stride" "divisor" "row4" "w_first" "bias_first" "multiplier"
                     "chosen" "share" "piece_first" "piece_rows" "experts" "w_scale"]
    "heads":        ["heads" "kv_heads" "k" "half_dim" "positions" "variants" "slab" "q_stride" "k_stride" "v_stride"
                     "out_stride" "eps" "offset" "q_norm_first" "k_norm_first"]
    "rope":         ["heads" "head_dim" "half_dim" "positions" "in_stride" "out_stride" "variants"]
    "kv_write":     ["width" "in_stride" "slab" "left" "right"]
    "kv_read":      ["words" "out_words" "slab"]
    "attention":    ["heads" "kv_heads" "head_dim" "slab" "window" "in_stride" "out_stride" "scale" "softcap"
                     "sinks_first"]
    "attention_runs": ["heads" "kv_heads" "head_dim" "slab" "window" "in_stride" "scale" "softcap" "runs"]
    "attention_merge": ["heads" "head_dim" "window" "out_stride" "runs" "sinks_first"]
    "attention_matrix": ["heads" "kv_heads" "head_dim" "slab" "window" "in_stride" "out_stride" "scale" "softcap" "sinks_first"]
    "attn_scores":  ["heads" "kv_heads" "head_dim" "slab" "window" "in_stride" "scale" "softcap"]
    "attn_probs":   ["heads" "window" "sinks_first"]
    "attn_mix":     ["heads" "kv_heads" "head_dim" "slab" "window" "out_stride"]
    "router_weights": ["experts" "score" "groups" "chosen" "in_stride" "out_stride" "numbers" "numbers_stride" "choice_first"
                     "groups_chosen" "highest" "divide" "eps" "scaling" "scales_first"]
    "chosen_experts": ["experts" "chosen" "in_stride" "out_stride"]
    "expert_rows":  ["experts" "chosen" "stride" "tile"]
    "expert_mix":   ["width4" "experts" "chosen" "numbers_stride" "weights_stride" "multiplier"]
    "sigmoid_scale": ["stride4" "scale_stride"]
    "gated_act":    ["width" "stride" "out_stride" "up_stride" "up_first"]
    "act":          ["width" "stride" "out_stride"]
    "mul":          ["width" "a_stride" "b_stride" "out_stride" "left" "right"]
    "short_conv":   ["width" "in_stride" "out_stride" "gate" "taps" "slab" "weight_first" "bias_first"]
    "delta_in":     ["keys" "values" "key_dim" "value_dim" "in_stride" "gate_stride" "out_stride" "decay_first" "step_first" "slab" "eps"]
    "gated_delta":  ["keys" "values" "key_dim" "value_dim" "in_stride" "out_stride" "slab" "matrix_slab" "eps" "scale"]
    "add":          ["stride4" "multiplier"]
    "intervention": ["width" "stride" "window" "shift" "tokens" "columns" "positions" "given_first" "per_token" "per_head" "factor"]
    "scale":        ["stride4" "weight_first" "weight_step" "factor"]
    "soft_cap":     ["stride" "cap"]
    "top_k":        ["count" "k" "valid" "stride"]
    "stats":        ["first"]
    "gather":       ["count" "slot" "stride"]
    "fill":         ["words" "seed" "scale"]
    "copy":         ["count"]
}

/// Texts that kernels include.
pub const SHARED: &[(&str, &str)] = &[
    ("step", text!("shared/step.wgsl")),
    ("pack", text!("shared/pack.wgsl")),
    ("reduce", text!("shared/reduce.wgsl")),
    ("team", text!("shared/team.wgsl")),
    ("tile", text!("shared/tile.wgsl")),
    ("math", text!("shared/math.wgsl")),
    ("weights", text!("shared/weights.wgsl")),
    ("packed", text!("shared/packed.wgsl")),
    ("units", text!("shared/units.wgsl")),
    ("halves", text!("shared/halves.wgsl")),
    ("digits", text!("shared/digits.wgsl")),
    ("ending", text!("shared/ending.wgsl")),
    ("input", text!("shared/input.wgsl")),
    ("norm", text!("shared/norm.wgsl")),
    ("norm_row", text!("shared/norm_row.wgsl")),
    ("activation", text!("shared/activation.wgsl")),
    ("runs", text!("shared/runs.wgsl")),
    ("origins", text!("shared/origins.wgsl")),
    ("pairs", text!("shared/pairs.wgsl")),
    ("ring", text!("shared/ring.wgsl")),
    ("cache", text!("shared/cache.wgsl")),
    ("visible", text!("shared/visible.wgsl")),
];

/// The kernel called `name`.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name)
}
