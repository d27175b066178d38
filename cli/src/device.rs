//! Where a plan runs: the GPU, natively or as a browser has it, or the oracle on the CPU.

use crate::args::{self, MachineArgs, Surface};
use crate::browser::Tab;
use crate::terminal::tell_once;
use doppler::config::runtime::Inference;
use doppler::engine::{self, Found};
use doppler::error::nearest;
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::gpu::kernels::{KERNELS, SHARED};
use doppler::gpu::{Caps, Gpu, GpuOptions};
use doppler::plan::Plan;
use doppler::remote::Remote;
use doppler::{Error, Result, settings};
use pollster::block_on;
use std::path::Path;

/// A device that was opened.
pub enum Device {
    /// The oracle.
    Cpu,
    /// An adapter.
    Gpu(Box<Gpu>),
    /// What a browser's tab has.
    Browser(Box<Tab>),
}

/// An executor; one that is elsewhere is the GPU of a browser's tab.
pub type Engine = engine::Engine<Tab>;

impl Device {
    /// An executor of `plan` without weights.
    ///
    /// # Errors
    /// What the executors say of the plan.
    pub fn engine(self, plan: Plan, inference: &Inference) -> Result<Engine> {
        match self {
            Self::Cpu => Engine::new(None, plan, inference.dtype),
            Self::Gpu(gpu) => Engine::new(Some(*gpu), plan, inference.dtype),
            Self::Browser(tab) => {
                let (storage, description) = (settings::storage(inference.dtype, tab.caps().f16), tab.describe());
                Ok(Engine::Remote(Box::new(Remote::new(*tab, plan, storage, description))))
            }
        }
    }
    /// What its GPU offers; the oracle has none.
    pub fn caps(&self) -> Option<&Caps> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(&gpu.caps),
            Self::Browser(tab) => Some(tab.caps()),
        }
    }
}

/// Opens what `--device` asks for.
///
/// # Errors
/// `Kind::Device` when a GPU is asked for and there is none; `Kind::Invalid` for options that the device cannot follow;
/// what reading `--kernels` reports.
pub fn open(machine: &MachineArgs, inference: &Inference) -> Result<Device> {
    let kernels = machine.kernels.as_deref().map(read_kernels).transpose()?;
    if machine.surface == Surface::Browser {
        if machine.device == args::Device::Cpu {
            return Err(Error::invalid("--device", "the oracle runs natively: leave out --surface browser, or --device cpu"));
        }
        return Ok(Device::Browser(Box::new(Tab::open(inference, kernels.unwrap_or_default())?)));
    }
    let device = match machine.device {
        args::Device::Cpu => {
            for (option, given) in [("--kernels", kernels.is_some()), ("--limits", machine.limits.is_some())] {
                if given {
                    return Err(Error::invalid(option, "this is about a GPU, but --device cpu was given"));
                }
            }
            engine::Device::Cpu
        }
        args::Device::Auto if kernels.is_none() => engine::Device::Auto,
        // Who names kernels means an adapter.
        args::Device::Auto | args::Device::Gpu => engine::Device::Gpu,
    };
    let options = GpuOptions { kernels: kernels.unwrap_or_default(), ..settings::gpu_options(inference) };
    // Who names limits means the adapter that is there.
    match block_on(engine::open(device, machine.limits.is_some(), options))? {
        Found::Gpu(gpu) => return Ok(Device::Gpu(gpu)),
        Found::Cpu => {}
        Found::Software(name) => tell_once(&format!(
            "{name} computes in software, slower than the CPU oracle, which therefore runs (--device gpu takes the adapter)"
        )),
        Found::NoAdapter => {
            tell_once("no GPU could be used, so the CPU oracle runs: exact, but slow (`doppler devices` shows what is there)")
        }
    }
    Ok(Device::Cpu)
}

/// Replacement kernels of a folder: every `NAME.wgsl` in it, and in its `shared`, must be a kernel's or a shared text's.
pub fn read_kernels(folder: &Path) -> Result<Vec<(String, String)>> {
    let failed = |path: &Path, e: std::io::Error| Error::io(path.display(), e);
    let shared = folder.join("shared");
    let folders = [Some(folder), shared.is_dir().then_some(&*shared)];
    let mut kernels = Vec::new();
    for folder in folders.into_iter().flatten() {
        for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
            let path = entry.map_err(|e| failed(folder, e))?.path();
            if path.extension().is_none_or(|e| e != "wgsl") {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let known = || KERNELS.iter().map(|k| k.name).chain(SHARED.iter().map(|(name, _)| *name));
            if !known().any(|k| k == name) {
                let near = nearest(&name, known()).join(", ");
                return Err(Error::invalid("--kernels", format!("{}: there is no kernel `{name}` (nearest: {near})", path.display())));
            }
            kernels.push((name, read_text(&path, MAX_TEXT)?));
        }
    }
    if kernels.is_empty() {
        return Err(Error::invalid("--kernels", format!("{}: no .wgsl files in this folder", folder.display())));
    }
    kernels.sort();
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_own_kernels_can_be_read_back() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/gpu");
        let kernels = read_kernels(&root.join("kernels")).unwrap();
        assert_eq!(kernels.len(), KERNELS.len() + SHARED.len());
        assert!(read_kernels(&root).unwrap_err().message.contains("no .wgsl"));
        assert!(read_kernels(&root.join("none")).is_err());
    }
}
