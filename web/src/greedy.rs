//! `greedy_ids`: from bytes to ids in one call, nothing kept.

use doppler::config::{ResolveOptions, resolve};
use doppler::exec::{Executor, Storage};
use doppler::formats::InMemory;
use doppler::gpu::{Gpu, GpuExecutor, GpuOptions};
use doppler::inference::pipeline;
use doppler::inference::session::{GenerateOptions, Session, SessionOptions};
use doppler::loader::{Checkpoint, load, match_slots};
use doppler::{Error, Result};
use std::ops::ControlFlow;
use wasm_bindgen::prelude::*;

/// Tokens per step while the prompt is read.
const CHUNK: usize = 256;

/// A panic becomes an error that the page's `error` event carries; without it a promise would never settle.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|info| wasm_bindgen::throw_str(&info.to_string())));
}

/// The `max_tokens` ids that follow `prompt`, each the highest logit: nothing is masked, no id ends the run.
/// `config` is the text of `config.json`, `weights` one safetensors file, `storage` `f32` or `f16`.
/// Gives JSON: `{"device": …, "ids": […]}`.
///
/// # Errors
/// What the engine reports, as a JavaScript `Error`.
#[wasm_bindgen]
pub async fn greedy_ids(config: String, weights: Vec<u8>, prompt: Vec<u32>, max_tokens: usize, storage: String) -> Result<String, JsError> {
    Ok(generate(&config, weights, &prompt, max_tokens, &storage).await?)
}

async fn generate(config: &str, weights: Vec<u8>, prompt: &[u32], max_tokens: usize, storage: &str) -> Result<String> {
    let storage = match storage {
        "f32" => Storage::F32,
        "f16" => Storage::F16,
        other => return Err(Error::invalid("storage", format!("expected f32 or f16, found `{other}`"))),
    };
    let config = resolve(config, None, ResolveOptions::default())?.config;
    let plan = pipeline::build(&config)?;
    let gpu = Gpu::open(GpuOptions::default()).await?;
    let checkpoint = Checkpoint::open(vec![InMemory::new("model.safetensors", weights)], None).await?;
    let matched = match_slots(&plan, &config.tensors, &checkpoint.index)?;
    let mut executor = GpuExecutor::new(gpu, plan.clone(), storage)?;
    load(&plan, &checkpoint, &matched, false, &mut executor, &mut |_| {}).await?;

    let capacity = prompt.len() + max_tokens;
    let options = SessionOptions { capacity, chunk: CHUNK.min(capacity), valid_vocab: plan.vocab_size, pad_masked: None };
    let mut session = Session::new(&executor, options)?;
    let generate = GenerateOptions { max_tokens, ..Default::default() };
    let generated = session.generate(prompt, &generate, None, &mut |_| ControlFlow::Continue(())).await?;
    Ok(serde_json::json!({ "device": executor.describe(), "ids": generated.ids }).to_string())
}
