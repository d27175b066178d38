//! What a runtime config says, as devices, executors and samplers take it. They know no runtime config themselves.

use crate::config::runtime::{self, Dtype, Inference};
use crate::exec::Storage;
use crate::gpu::{GpuOptions, Limits};
use crate::inference::sampling::SamplingConfig;

/// How a device is opened; what `inference` does not say is the default.
pub fn gpu_options(inference: &Inference) -> GpuOptions {
    let limits = match inference.limits {
        runtime::Limits::Native => Limits::Native,
        runtime::Limits::Floor => Limits::Floor,
    };
    let tuned = inference.tuned.clone();
    GpuOptions { limits, no_fusion: !inference.fusion, batched: inference.batched, tuned, ..GpuOptions::default() }
}

/// Storage of activations and cache on a device that computes in f16 or does not.
pub fn storage(dtype: Dtype, f16: bool) -> Storage {
    match dtype {
        Dtype::F16 => Storage::F16,
        Dtype::Auto if f16 => Storage::F16,
        Dtype::Auto | Dtype::F32 => Storage::F32,
    }
}

/// Tokens of a prompt's step in a session of `capacity` positions.
pub fn chunk(inference: &Inference, capacity: usize) -> usize {
    inference.prefill_chunk.min(capacity)
}

/// How tokens are chosen.
pub fn sampling(from: &runtime::Sampling) -> SamplingConfig {
    let runtime::Sampling { temperature, top_k, top_p, min_p, repeat_penalty, seed } = *from;
    SamplingConfig { temperature, top_k, top_p, min_p, repeat_penalty, seed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RuntimeConfig;
    use serde_json::json;

    #[test]
    fn what_a_runtime_config_says_of_a_device_arrives_there() {
        let options = |inference| {
            let config = RuntimeConfig::from_patch(json!({"runtime": {"inference": inference}})).unwrap();
            gpu_options(&config.runtime.inference)
        };
        let (usual, other) = (options(json!({})), options(json!({"limits": "floor", "fusion": false, "batched": true})));
        assert_eq!((usual.limits, usual.no_fusion, usual.batched), (Limits::Native, false, false));
        assert_eq!((other.limits, other.no_fusion, other.batched), (Limits::Floor, true, true));
    }
}
