//! What `debug --bundle` puts into a replay bundle beside ids and values.

use crate::device::Engine;
use crate::model::Model;
use doppler::Result;
use doppler::config::RuntimeConfig;
use doppler::debug::bundle::{Contents, Run, fingerprints};
use doppler::exec::Executor;
use doppler::inference::session::SessionOptions;
use doppler::model::GenerationRules;
use pollster::block_on;
use serde_json::Value;
use std::collections::BTreeMap;

/// A run, as told by who ran it.
pub struct Told<'r> {
    pub model: &'r Model,
    /// `--allow-unknown-config`.
    pub allow_unknown_config: bool,
    pub runtime: &'r RuntimeConfig,
    /// The prompt as text, if it was one.
    pub prompt: Option<&'r str>,
    pub session: SessionOptions,
    pub max_tokens: usize,
    pub stop_ids: &'r [u32],
    pub engine: &'r Engine,
    /// `Generated::logits_hash`; none when the run ended with a finding.
    pub logits_hash: Option<u64>,
    pub rules: Option<&'r GenerationRules>,
    pub notes: &'r [String],
    /// JSON twins of its findings.
    pub findings: Vec<Value>,
}

/// The contents of the run's bundle; `Contents::finish` writes them with a dump. Reads all of the model's files.
///
/// # Errors
/// `Kind::Io`.
pub fn contents(told: &Told<'_>) -> Result<Contents> {
    let files = &told.model.files;
    let SessionOptions { capacity, chunk, valid_vocab, pad } = told.session;
    let versions = [("doppler", env!("CARGO_PKG_VERSION")), ("os", std::env::consts::OS), ("arch", std::env::consts::ARCH)];
    Ok(Contents {
        version: Contents::VERSION,
        model: told.model.name.clone(),
        config: files.texts.config.clone(),
        generation_config: files.texts.generation_config.clone(),
        allow_unknown_config: told.allow_unknown_config,
        files: block_on(fingerprints(files, &mut |_| {}))?,
        runtime: told.runtime.clone(),
        prompt: told.prompt.map(str::to_string),
        run: Run {
            max_tokens: told.max_tokens,
            capacity,
            chunk,
            valid_vocab,
            pad,
            stop_ids: told.stop_ids.to_vec(),
            rules: told.rules.cloned(),
        },
        dtype: told.engine.storage().activations.to_string(),
        device: told.engine.describe(),
        versions: versions.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect::<BTreeMap<_, _>>(),
        logits: told.logits_hash.map(|hash| format!("{hash:016x}")),
        notes: told.notes.to_vec(),
        findings: told.findings.clone(),
    })
}
