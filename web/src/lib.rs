//! The engine in browsers, for `package/engine.js`, which calls what is exported here and nothing else: a device, a
//! model on it, and sessions that take jobs from a queue. It knows no page, no worker and no address: bytes, jobs and
//! time come from the JavaScript side (`host`). On other targets it is empty.

#[cfg(target_arch = "wasm32")]
mod compare;
#[cfg(target_arch = "wasm32")]
mod host;
#[cfg(target_arch = "wasm32")]
mod loaded;
#[cfg(target_arch = "wasm32")]
mod model;
#[cfg(target_arch = "wasm32")]
mod remote;
#[cfg(target_arch = "wasm32")]
mod session;
#[cfg(target_arch = "wasm32")]
mod watching;
#[cfg(target_arch = "wasm32")]
mod wrappers;

#[cfg(target_arch = "wasm32")]
pub use compare::compare_dumps;
#[cfg(target_arch = "wasm32")]
pub use host::on_panic;
#[cfg(target_arch = "wasm32")]
pub use model::{Device, Model, forecast, memory_bytes, open_device, shard_files};
#[cfg(target_arch = "wasm32")]
pub use remote::{Host, open_device_with};
