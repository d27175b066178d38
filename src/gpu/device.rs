//! Adapters, the device and what it can do. The only place that asks wgpu for features and limits.

use super::compiled::Kept;
use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::tuned::Tuned;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// How much of an adapter may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limits {
    /// All that it offers.
    #[default]
    Native,
    /// The WebGPU defaults and no optional feature: what every browser has.
    Floor,
}

/// How to open a device.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Which adapter, as `list_adapters` counts them; `None` takes the best.
    pub adapter: Option<usize>,
    /// Limits to run under.
    pub limits: Limits,
    /// Do not use subgroups even where they exist.
    pub no_subgroups: bool,
    /// Do not use matrix units even where they exist.
    pub no_matrix: bool,
    /// The device will have subgroups although wgpu cannot ask for them: in browsers, whose pages add the feature.
    pub subgroups_granted: bool,
    /// Run every op of the plan as a kernel of its own, watched or not.
    pub no_fusion: bool,
    /// Compute the decode steps of every sequence, alone or with others, as is best for many: by matrix units, where they are.
    pub batched: bool,
    /// Use the kernels for threads that run one after the other, or those of real GPUs; `None` asks the adapter which it is.
    pub serial: Option<bool>,
    /// Largest storage binding to use, for testing split weights; bytes.
    pub max_binding: Option<u64>,
    /// Replacement WGSL files by kernel name, as (name, text).
    pub kernels: Vec<(String, String)>,
    /// What was measured to be fastest, on this device or on others.
    pub tuned: Vec<Tuned>,
}

/// What the opened device offers to lowering.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Caps {
    /// Adapter name, for people.
    pub name: String,
    /// Driver and backend, for people.
    pub driver: String,
    /// Runs on the CPU (llvmpipe, SwiftShader).
    pub software: bool,
    /// A workgroup's threads run one after the other, a vector of them at a time: see [`KernelShape`].
    pub serial: bool,
    /// Largest storage binding, bytes.
    pub max_binding: u64,
    /// Largest buffer, bytes.
    pub max_buffer: u64,
    /// Workgroups along one dimension of a dispatch.
    pub max_workgroups: u32,
    /// Storage buffers that a kernel can bind.
    pub storage_buffers: u32,
    /// Invocations of one workgroup.
    pub max_invocations: u32,
    /// Memory that a workgroup shares, bytes.
    pub workgroup_memory: u32,
    /// Subgroup size, where subgroups are used and have one size.
    pub subgroup: Option<u32>,
    /// Side of the tiles that the adapter's matrix units multiply in f16 and sum in f32, a subgroup at a time.
    pub matrix: Option<u32>,
    /// Shaders multiply packed integers: everywhere but in browsers whose WGSL lacks it.
    pub dots: bool,
    /// The adapter computes in f16. Storage in f16 needs no feature and works everywhere.
    pub f16: bool,
    /// Timestamps around passes.
    pub timestamps: bool,
}

/// What lowering chooses by the way in which threads run. A GPU runs hundreds at a time, which share what they load. A software adapter
/// runs a vector of them to the next barrier, then the next vector; loads are done one thread after the other, and calls of a
/// kernel cost little. So it wants threads that do much with what they load, and no barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelShape {
    /// Threads of a matrix-vector product, and those that normalise a row, wherever it is done: the order of its sum is theirs.
    pub row_threads: u32,
    /// Threads share rows of a matrix; else each has four of its own.
    pub teams: bool,
    /// Products of many rows are computed in tiles that a workgroup holds, where weights are plain; else as those of a few rows.
    pub tiles: bool,
}

impl Caps {
    /// What lowering chooses by the way in which threads run.
    pub fn kernel_shape(&self) -> KernelShape {
        if self.serial {
            return KernelShape { row_threads: 8, teams: false, tiles: false };
        }
        let row_threads = if self.workgroup_memory >= 32 << 10 && self.max_invocations >= 256 { 256 } else { 128 };
        KernelShape { row_threads, teams: true, tiles: true }
    }
    /// Most bytes of a buffer that a kernel can see whole.
    pub fn largest_buffer(&self) -> u64 {
        self.max_binding.min(self.max_buffer)
    }
    /// The longest row of values of `dtype` that a workgroup holds beside the sums of its threads: kernels/linear.wgsl.
    pub fn norm_row(&self, dtype: DType) -> usize {
        (self.workgroup_memory as usize).saturating_sub(32 * self.kernel_shape().row_threads as usize) / dtype.size()
    }
    /// What tells it from other devices for which other variants are faster.
    pub fn identity(&self) -> String {
        let dots = if self.dots { "" } else { ", no integer products" };
        format!("{}; workgroups of {}{dots}", self.describe(), self.kernel_shape().row_threads)
    }
    /// Device and driver, in words.
    pub fn describe(&self) -> String {
        let subgroup = self.subgroup.map(|s| format!(", subgroups of {s}")).unwrap_or_default();
        let matrix = self.matrix.map(|s| format!(", {s}x{s} matrices")).unwrap_or_default();
        let software = if self.software { ", software" } else { "" };
        format!("gpu {} ({}{subgroup}{matrix}{software})", self.name, self.driver)
    }
}

/// An open device.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// The device.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
    /// What it offers.
    pub caps: Caps,
    /// Every op is a kernel of its own.
    pub no_fusion: bool,
    /// Decode steps are computed as is best for many sequences.
    pub batched: bool,
    /// Replacement WGSL by kernel name.
    pub kernels: Arc<Vec<(String, String)>>,
    /// What was measured to be fastest here.
    pub(super) tuned: Option<Tuned>,
    /// What was compiled, for all executors.
    pub(super) kept: Arc<Kept>,
    /// The first error that wgpu reported outside any scope.
    failure: Arc<Mutex<Option<Error>>>,
}

/// One adapter, as `doppler devices` lists it.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Name, driver and backend.
    pub name: String,
    /// `discrete GPU`, `integrated GPU`, `CPU`, …
    pub kind: String,
    /// Runs on the CPU (llvmpipe, SwiftShader, WARP).
    pub software: bool,
    /// Backend.
    pub backend: String,
    /// Driver text.
    pub driver: String,
    /// Largest storage binding, bytes.
    pub max_binding: u64,
    /// Largest buffer, bytes.
    pub max_buffer: u64,
    /// Workgroup memory, bytes.
    pub workgroup_memory: u32,
    /// Invocations of one workgroup.
    pub max_invocations: u32,
    /// Subgroup sizes, smallest and largest; `None` without subgroups.
    pub subgroups: Option<(u32, u32)>,
    /// Has 16-bit floats.
    pub f16: bool,
    /// Has timestamps.
    pub timestamps: bool,
}

/// One for the whole process: some drivers give out a few dozen in its life, and each takes a while.
#[cfg(not(target_arch = "wasm32"))]
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: std::sync::OnceLock<wgpu::Instance> = std::sync::OnceLock::new();
    INSTANCE.get_or_init(new_instance)
}

/// Browsers have one of their own.
#[cfg(target_arch = "wasm32")]
fn instance() -> wgpu::Instance {
    new_instance()
}

fn new_instance() -> wgpu::Instance {
    // GL is left out: starting it prints to stderr on headless Linux, and no kernel is tested on it.
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::BROWSER_WEBGPU;
    wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() })
}

/// Every adapter of this machine that Doppler could use.
pub async fn list_adapters() -> Vec<AdapterSummary> {
    adapters().await.iter().map(summary).collect()
}

async fn adapters() -> Vec<wgpu::Adapter> {
    instance().enumerate_adapters(wgpu::Backends::all()).await
}

fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    AdapterSummary {
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "CPU (software)",
            wgpu::DeviceType::Other => "other",
        }
        .into(),
        software: info.device_type == wgpu::DeviceType::Cpu,
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        max_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        subgroups: features.contains(wgpu::Features::SUBGROUP).then_some((info.subgroup_min_size, info.subgroup_max_size)),
        f16: features.contains(wgpu::Features::SHADER_F16),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        name: info.name,
    }
}

impl Gpu {
    /// Opens the best adapter: a discrete GPU before an integrated one before software.
    /// No adapter at all is an error of `Kind::Device` that says what to install.
    pub async fn open(options: GpuOptions) -> Result<Gpu> {
        let request = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            force_fallback_adapter: false,
            compatible_surface: None,
            apply_limit_buckets: false,
        };
        let hint = "install a Vulkan driver (on Debian and Ubuntu `apt-get install mesa-vulkan-drivers` gives a software one), or use --device cpu";
        let adapter = match options.adapter {
            None => {
                instance().request_adapter(&request).await.map_err(|e| Error::device(format!("no WebGPU adapter found ({e}); {hint}")))?
            }
            Some(index) => {
                let mut all = adapters().await;
                if index >= all.len() {
                    return Err(Error::device(format!("there is no adapter {index}; this machine has {}", all.len())));
                }
                all.swap_remove(index)
            }
        };
        let (info, offered) = (adapter.get_info(), adapter.features());
        let floor = options.limits == Limits::Floor;
        let mut features = wgpu::Features::empty();
        if !floor {
            features |= offered & (wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY);
        }
        let one_size = info.subgroup_min_size == info.subgroup_max_size && info.subgroup_min_size >= 4;
        let granted = features.contains(wgpu::Features::SUBGROUP) || (options.subgroups_granted && !floor);
        let subgroup = (granted && !options.no_subgroups && one_size).then_some(info.subgroup_min_size);
        let matrix = matrix_side(&adapter, subgroup).filter(|_| !floor && !options.no_matrix);
        if matrix.is_some() {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        }
        let limits = if floor { wgpu::Limits::default() } else { adapter.limits() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("doppler"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            // SAFETY: of what is experimental, only matrix units are used, by one kernel of ours, whose results the suite
            // and the self-test hold against the oracle.
            experimental_features: if matrix.is_some() { unsafe { wgpu::ExperimentalFeatures::enabled() } } else { Default::default() },
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::device(format!("the adapter `{}` gave no device: {e}", info.name)))?;
        let failure = Arc::new(Mutex::new(None));
        let slot = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            if let Ok(mut slot) = slot.lock() {
                slot.get_or_insert_with(|| reported(&error));
            }
        }));
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let caps = Caps {
            driver: format!("{} {} {}", info.backend, info.driver, info.driver_info).trim().to_string(),
            software,
            // Where these kernels were measured and are tested: browsers' own software adapter is another one.
            serial: options.serial.unwrap_or(software && subgroup.is_some() && !cfg!(target_arch = "wasm32")),
            max_binding: limits.max_storage_buffer_binding_size.min(options.max_binding.unwrap_or(u64::MAX)),
            max_buffer: limits.max_buffer_size,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            subgroup,
            matrix,
            dots: true,
            f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            name: info.name,
        };
        let kernels = Arc::new(options.kernels);
        let kept = Arc::new(Kept::default());
        let mut gpu =
            Gpu { device, queue, caps, no_fusion: options.no_fusion, batched: options.batched, kernels, tuned: None, kept, failure };
        gpu.set_tuned(options.tuned);
        Ok(gpu)
    }

    /// The first error that wgpu reported since the last call, as an error of ours.
    pub fn check(&self) -> Result<()> {
        let taken = self.failure.lock().ok().and_then(|mut slot| slot.take());
        taken.map_or(Ok(()), Err)
    }
}

/// The side of the tiles that kernels/linear_matrix.wgsl can have multiplied: 16 by subgroups of 32, or 8 by subgroups of 8.
fn matrix_side(adapter: &wgpu::Adapter, subgroup: Option<u32>) -> Option<u32> {
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if !adapter.features().contains(needed) {
        return None;
    }
    let known = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        known.iter().any(|m| {
            (m.m_size, m.n_size, m.k_size) == (side, side, side)
                && m.ab_type == wgpu::CooperativeScalarType::F16
                && m.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    [(16, 32), (8, 8)].into_iter().find(|(side, lanes)| subgroup == Some(*lanes) && has(*side)).map(|(side, _)| side)
}

/// An error that wgpu reports as one of ours.
fn reported(error: &wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::memory("out of device memory; use a smaller model, dtype f16 or a shorter context"),
        other => Error::device(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn reports_keep_their_kind_whatever_their_words() {
        let source = || Box::new(std::fmt::Error);
        assert_eq!(reported(&wgpu::Error::OutOfMemory { source: source() }).kind, Kind::Memory);
        let index = wgpu::Error::Validation { source: source(), description: "index 7 is out of bounds".into() };
        let error = reported(&index);
        assert!(error.kind == Kind::Device && error.message.contains("out of bounds"), "{error}");
    }
}
