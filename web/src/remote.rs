//! The engine for somebody outside the browser, who has everything but the device: `package/remote.js` passes on what
//! comes. Calls on the executor are bytes that only [`doppler::remote`] understands.

use crate::host::{now, thrown};
use crate::model::{self, Device, Model};
use doppler::exec::Executor;
use doppler::{Error, bench, remote};
use serde_json::json;
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;
use wasm_bindgen_futures::js_sys::{Function, Promise, Uint8Array};

/// As `open_device`; `kernels` is JSON: replacement WGSL as pairs of name and text.
///
/// # Errors
/// What the engine reports, as an `Error` whose name is the kind.
#[wasm_bindgen]
pub async fn open_device_with(runtime: String, about: String, kernels: String) -> Result<Device, JsValue> {
    let open = async {
        let kernels = serde_json::from_str(&kernels).map_err(|e| Error::invalid("kernels", e))?;
        model::open(&runtime, &about, kernels).await
    };
    open.await.map_err(|e| thrown(&e))
}

#[wasm_bindgen]
impl Device {
    /// Measures as `options` (JSON) say; the figures as JSON. `say` takes lines.
    ///
    /// # Errors
    /// What the engine reports, as an `Error` whose name is the kind.
    pub async fn bench(self, options: String, say: Function) -> Result<String, JsValue> {
        let measured = async {
            let options: bench::Options = serde_json::from_str(&options).map_err(|e| Error::invalid("options", e))?;
            let mut tell = |line: String| {
                let told = say.call1(&JsValue::NULL, &line.into());
                told.map(|_| ()).map_err(|e| Error::io("output", format!("{e:?}")))
            };
            bench::measure(self.gpu, &options, &|| now() / 1e3, &mut tell).await
        };
        measured.await.map(|figures| figures.to_string()).map_err(|e| thrown(&e))
    }
    /// What it offers, as JSON.
    pub fn caps(&self) -> String {
        json!(self.gpu.caps).to_string()
    }
}

/// A model's executor, for calls from elsewhere.
#[wasm_bindgen]
pub struct Host {
    host: Rc<remote::Host>,
    report: String,
}

#[wasm_bindgen]
impl Host {
    /// Takes the executor of `model`, which nobody else may be using.
    ///
    /// # Errors
    /// `invalid`, as an `Error`, when a session is open.
    #[wasm_bindgen(constructor)]
    pub fn new(model: Model) -> Result<Host, JsValue> {
        let taken = Rc::try_unwrap(model.loaded).map_err(|_| thrown(&Error::invalid("model", "it has open sessions")))?;
        let report = json!({ "plan": taken.executor.plan().fingerprint(), "nonFinite": taken.non_finite });
        Ok(Host { host: Rc::new(remote::Host::new(taken.executor)), report: report.to_string() })
    }
    /// A fingerprint of its plan, and its weights that are no numbers, as JSON.
    pub fn report(&self) -> String {
        self.report.clone()
    }
    /// A promise of the answer to a call. Calls begin in the order in which they come.
    pub fn answer(&self, call: Vec<u8>) -> Promise {
        let host = self.host.clone();
        future_to_promise(async move { Ok(Uint8Array::from(&*host.answer(&call).await).into()) })
    }
}
