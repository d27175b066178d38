//! The engine in browsers, as far as it is proven: a model's files in, greedy ids out, over the same plan, kernels and
//! session as everywhere. It knows no page; on other targets it is empty.

#[cfg(target_arch = "wasm32")]
mod greedy;

#[cfg(target_arch = "wasm32")]
pub use greedy::greedy_ids;
