//! Compiled variants of kernels: a device keeps what was compiled for any of its executors.

use super::layouts::{Origin, StepUniform};
use crate::geometry::{MOST_ENTRIES, ORIGINS_BYTES};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Size of a slot of the step uniform.
pub(super) const STEP_BYTES: u64 = size_of::<StepUniform>() as u64;
const _: () = assert!(ORIGINS_BYTES == (MOST_ENTRIES * size_of::<Origin>()) as u64);

/// What a pipeline depends on: kernel, defines, constants, and which bindings are written.
pub(super) type VariantKey = (&'static str, Vec<&'static str>, Vec<(&'static str, u64)>, Vec<Option<bool>>);

/// A pipeline, and the layout of what a call binds.
pub(super) type Compiled = (wgpu::ComputePipeline, wgpu::BindGroupLayout);

/// What was compiled on a device for any of its executors: compiling is what a first token waits for.
#[derive(Debug, Default)]
pub struct Kept {
    compiled: Mutex<HashMap<VariantKey, Compiled>>,
    shared: OnceLock<wgpu::BindGroupLayout>,
}

impl Kept {
    pub(super) fn get(&self, key: &VariantKey) -> Option<Compiled> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
    pub(super) fn put(&self, made: impl IntoIterator<Item = (VariantKey, Compiled)>) {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).extend(made);
    }
    pub(super) fn clear(&self) {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    /// The layout of group 0.
    pub(super) fn shared(&self, device: &wgpu::Device) -> &wgpu::BindGroupLayout {
        self.shared.get_or_init(|| {
            let entries = [uniform(0, true, STEP_BYTES), uniform(1, true, ORIGINS_BYTES)];
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("step"), entries: &entries })
        })
    }
}

/// A uniform buffer of at least `size` bytes at a binding, with an offset that each use gives.
pub(super) fn uniform(binding: u32, dynamic: bool, size: u64) -> wgpu::BindGroupLayoutEntry {
    let min_binding_size = std::num::NonZeroU64::new(size);
    let ty = wgpu::BindingType::Buffer { ty: wgpu::BufferBindingType::Uniform, has_dynamic_offset: dynamic, min_binding_size };
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}
