//! What pages get of the engine: a device, a model on it, forecasts; each call is handed on.

use crate::host::{Files, Jobs, Task, thrown};
use crate::loaded::{About, Loaded, load, memory, prepare, with_forecast};
use crate::{compare, session};
use doppler::config::RuntimeConfig;
use doppler::formats::ModelTexts;
use doppler::formats::gguf;
use doppler::formats::manifest::Manifest;
use doppler::formats::shards::ShardIndex;
use doppler::gpu::{Gpu, GpuOptions};
use doppler::{Error, Result, settings};
use serde::Deserialize;
use serde_json::{Value, json};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use wasm_bindgen_futures::js_sys::Promise;

/// An open device.
#[wasm_bindgen]
pub struct Device {
    pub(crate) gpu: Gpu,
}

/// What wgpu does not know of a browser's device.
#[derive(Deserialize)]
struct Granted {
    name: String,
    software: bool,
    /// It has them although wgpu did not ask.
    subgroups: bool,
    /// Shaders have products of packed integers.
    dots: bool,
}

/// Opens the best adapter. `runtime` is a patch of the runtime config, `about` what wgpu does not know of the device,
/// both JSON.
///
/// # Errors
/// What the engine reports, as an `Error` whose name is the kind.
#[wasm_bindgen]
pub async fn open_device(runtime: String, about: String) -> std::result::Result<Device, JsValue> {
    open(&runtime, &about, Vec::new()).await.map_err(|e| thrown(&e))
}

/// As [`open_device`], with replacement WGSL by kernel name.
pub async fn open(runtime: &str, about: &str, kernels: Vec<(String, String)>) -> Result<Device> {
    let patch = serde_json::from_str(runtime).map_err(|e| Error::format("options", e))?;
    let inference = RuntimeConfig::from_patch(patch)?.runtime.inference;
    let granted: Granted = serde_json::from_str(about).map_err(|e| Error::invalid("device", e))?;
    let options = GpuOptions { subgroups_granted: granted.subgroups, kernels, ..settings::gpu_options(&inference) };
    let mut gpu = Gpu::open(options).await?;
    (gpu.caps.name, gpu.caps.software, gpu.caps.dots) = (granted.name, granted.software, granted.dots);
    Ok(Device { gpu })
}

/// The files that an index of shards names, sorted, as a JSON array.
///
/// # Errors
/// `format`, as an `Error`.
#[wasm_bindgen]
pub fn shard_files(name: &str, json: &str) -> std::result::Result<String, JsValue> {
    let index = ShardIndex::parse(name, json).map_err(|e| thrown(&e))?;
    Ok(Value::from(index.files).to_string())
}

/// The texts and shards that the manifest `text` lists, as JSON: `texts` and `shards`, lists of `name`, `bytes`, `sha256`;
/// `null` where it is a file of that name from another program. `name` is for errors.
///
/// # Errors
/// `format`, as an `Error`, for a manifest that cannot be read, or lists texts that are none of a model.
#[wasm_bindgen]
pub fn manifest_files(name: &str, text: &str) -> std::result::Result<String, JsValue> {
    let listed = || {
        if !Manifest::is_meant(text) {
            return Ok(Value::Null);
        }
        let Manifest { texts, shards, .. } = Manifest::parse(name, text)?;
        match texts.iter().find(|file| !ModelTexts::FILES.contains(&&*file.name)) {
            Some(unknown) => Err(Error::format(name, format!("`{}` is no text of a model", unknown.name))),
            None => Ok(json!({ "texts": texts, "shards": shards })),
        }
    };
    listed().map(|files| files.to_string()).map_err(|e: Error| thrown(&e))
}

/// The files of the set of which a GGUF file called `name` is one, in order, as a JSON array.
#[wasm_bindgen]
pub fn gguf_set(name: String) -> String {
    Value::from(gguf::split_files(&name).unwrap_or_else(|| vec![name])).to_string()
}

/// The files of the GGUF model that `wanted` names, or of the only one, as a JSON array; `null` where there is none. `files`
/// is JSON: bytes (or null) by name. `place` and `how` are for errors, as in the engine's `choose`.
///
/// # Errors
/// `io`, as an `Error`, saying what there is to choose from.
#[wasm_bindgen]
pub fn choose_gguf(place: &str, how: &str, wanted: Option<String>, files: &str) -> std::result::Result<String, JsValue> {
    let choose = || {
        let files: gguf::Sizes = serde_json::from_str(files).map_err(|e| Error::format(place, e))?;
        Ok(json!(gguf::choose(place, how, wanted.as_deref(), &files)?).to_string())
    };
    choose().map_err(|e: Error| thrown(&e))
}

/// What the model in `files` will need in memory on `device`, as JSON; none of its weights are read. `about` is JSON.
///
/// # Errors
/// What the engine reports, as an `Error` whose name is the kind; `memory` for more than the page allows, or than one
/// buffer can be.
#[wasm_bindgen]
pub async fn forecast(device: Device, about: String, files: Files) -> std::result::Result<String, JsValue> {
    let forecast = async {
        let about: About = serde_json::from_str(&about).map_err(|e| Error::invalid("model", e))?;
        Ok::<_, Error>(memory(&prepare(&device.gpu, about, &files).await?.forecast).to_string())
    };
    forecast.await.map_err(|e| thrown(&e))
}

/// Bytes of memory that this module has; it never gives any back.
#[wasm_bindgen]
pub fn memory_bytes() -> f64 {
    const PAGE: f64 = 65536.0;
    core::arch::wasm32::memory_size(0) as f64 * PAGE
}

/// A model on its device.
#[wasm_bindgen]
pub struct Model {
    pub(crate) loaded: Rc<Loaded>,
}

#[wasm_bindgen]
impl Model {
    /// Reads the weights in `files` onto `device`. `about` is JSON.
    ///
    /// # Errors
    /// What the engine reports, as an `Error` whose name is the kind.
    pub async fn load(device: Device, about: String, files: Files) -> std::result::Result<Model, JsValue> {
        let loaded = load(device.gpu, &about, files).await.map_err(|e| thrown(&e))?;
        Ok(Model { loaded: Rc::new(loaded) })
    }
    /// Whether the device has had no trouble so far.
    ///
    /// # Errors
    /// `device`, `memory`, as an `Error`.
    pub fn check(&self) -> std::result::Result<(), JsValue> {
        let checked = self.loaded.executor.gpu().check();
        checked.map_err(|e| thrown(&with_forecast(e, &self.loaded.forecast)))
    }
    /// Makes the pipelines of a prompt and of a decode step, and lets go of them.
    ///
    /// # Errors
    /// What the engine reports, as an `Error` whose name is the kind.
    pub fn build(&self) -> std::result::Result<(), JsValue> {
        self.loaded.executor.build().map_err(|e| thrown(&e))
    }
    /// What it is, as JSON.
    pub fn info(&self) -> String {
        self.loaded.info().to_string()
    }
    /// What a prompt is for this model: a JSON array of `{ id, text }`. `request` is JSON.
    ///
    /// # Errors
    /// What the engine reports, as an `Error` whose name is the kind.
    pub fn tokens(&self, request: &str) -> std::result::Result<String, JsValue> {
        session::tokens(&self.loaded, request).map(|tokens| tokens.to_string()).map_err(|e| thrown(&e))
    }
    /// Opens a session and does its jobs until there are no more; the promise then settles. `options` is JSON.
    pub fn session(&self, options: String, jobs: Jobs) -> Promise {
        let loaded = self.loaded.clone();
        future_to_promise(async move {
            let served = session::serve(&loaded, &options, &jobs).await;
            served.map(|()| JsValue::UNDEFINED).map_err(|e| thrown(&e))
        })
    }
    /// Compares a dump with a run of its tokens; a promise of what was found, as JSON. `request` is JSON.
    pub fn compare(&self, dump: Vec<u8>, request: String, task: Task) -> Promise {
        let loaded = self.loaded.clone();
        future_to_promise(async move {
            let compared = compare::with_run(&loaded, dump, &request, &task).await;
            compared.map(JsValue::from).map_err(|e| thrown(&e))
        })
    }
}
