//! The GPU executor: a plan lowered to WGSL kernels and run through wgpu. Knows plans and `exec`; never the
//! oracle, debugging or model families.

mod bench;
mod buffers;
mod build_program;
mod caches;
mod capture;
mod compiled;
pub mod device;
mod eval;
mod executor;
pub mod kernels;
pub mod layouts;
mod log;
mod lower;
mod part;
mod pipelines;
mod program;
mod readback;
mod recording;
#[cfg(not(target_arch = "wasm32"))]
mod staging;
mod state;
mod submit;
pub mod variants;
mod weights;
pub mod wgsl;
mod workspace;

pub use device::{Caps, Gpu, GpuOptions, Limits, list_adapters};

pub use log::{DispatchLog, KernelSum, Log, StepLog};
pub use state::{GpuCache, GpuExecutor};
