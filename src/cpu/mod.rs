//! The oracle: the definition of every op, in plain loops over f32 or f64, and an executor that runs plans with them.
//! One file per op, its name that of `Op::name`; a GPU kernel is right when it agrees with the file of its name to the
//! rounding floor. It knows plans and weights as stored; no device, no files, no threads.

pub mod act;
pub mod add;
mod apart;
pub mod attn_mix;
pub mod attn_probs;
pub mod attn_scores;
mod choose;
pub mod chosen_experts;
pub mod delta_in;
pub mod embed;
mod eval;
mod executor;
pub mod expert_linear;
pub mod expert_mix;
pub mod gated_act;
pub mod gated_delta;
pub mod intervention;
pub mod layer_norm;
pub mod linear;
pub mod mul;
pub mod real;
pub mod rms_norm;
pub mod rope;
pub mod router_weights;
pub mod scale;
pub mod short_conv;
pub mod sigmoid_scale;
pub mod soft_cap;
pub mod stats;
pub mod unit_norm;
mod weights;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use executor::{CpuCache, CpuExecutor};
pub use real::Real;

#[cfg(test)]
mod tests;
