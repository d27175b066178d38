//! Configuration: a model's `config.json` and a preset become a `ModelConfig` with the source of every number
//! (`resolve`), and `--config` becomes a `RuntimeConfig` (`runtime`).
//! It reads no files and knows no plan, device or tensor data.

mod generation;
mod gguf;
mod heads;
mod keys;
mod layers;
mod packing;
mod preset;
pub mod resolve;
mod rope;
pub mod runtime;
mod setting;
mod token_ids;
mod values;

pub use crate::model::ModelConfig;
pub use gguf::{FACTORS, GgufConfig, GgufModel, Tensors as GgufTensors, gguf_config, gguf_model};
pub use preset::{Preset, hugging_face_modules, presets};
pub use resolve::{ResolveOptions, resolve};
pub use runtime::RuntimeConfig;

use crate::error::{Error, Result, nearest};

/// Shapes of real models and of the built-in one, for benchmarks without their weights: name and `config.json`.
const SHAPES: &[(&str, &str)] = &[
    ("qwen3-0.6b", include_str!("presets/shapes/qwen3-0.6b.json")),
    ("gemma3-1b", include_str!("presets/shapes/gemma3-1b.json")),
    ("gemma4-e2b", include_str!("presets/shapes/gemma4-e2b.json")),
    ("llama3.2-1b", include_str!("presets/shapes/llama3.2-1b.json")),
    ("gemma2-2b", include_str!("presets/shapes/gemma2-2b.json")),
    ("qwen3.5-2b", include_str!("presets/shapes/qwen3.5-2b.json")),
    ("qwen3-8b", include_str!("presets/shapes/qwen3-8b.json")),
    ("qwen3-30b-a3b", include_str!("presets/shapes/qwen3-30b-a3b.json")),
    ("gpt-oss-20b", include_str!("presets/shapes/gpt-oss-20b.json")),
    ("llama3.1-8b", include_str!("presets/shapes/llama3.1-8b.json")),
    ("demo", include_str!("../../models/demo/config.json")),
];

/// The `config.json` of the synthetic shape called `name`. An unknown name is an error that lists them all.
pub fn synthetic_shape(name: &str) -> Result<&'static str> {
    SHAPES.iter().find(|(known, _)| *known == name).map(|(_, json)| *json).ok_or_else(|| {
        let names: Vec<&str> = synthetic_shapes().collect();
        let near = nearest(name, names.iter().copied());
        let near = near.first().map_or_else(String::new, |n| format!(", nearest: {n}"));
        Error::invalid("synthetic shape", format!("there is no `{name}` (known: {}{near})", names.join(", ")))
    })
}

/// Names of the synthetic shapes.
pub fn synthetic_shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_resolve() {
        for name in synthetic_shapes() {
            let resolved = resolve(synthetic_shape(name).unwrap(), None, ResolveOptions::default()).unwrap();
            assert!(!resolved.config.layers.is_empty(), "{name}");
        }
        let error = synthetic_shape("llama3.2-1g").unwrap_err();
        assert!(error.message.contains("qwen3-8b") && error.message.contains("nearest: llama3.2-1b"), "{error}");
    }
}
