//! The device, before anything is said of the model. What is wrong with it is the engine's to name (`doctor::device`); here
//! are the devices that are tried for that: with one replaced kernel (`--kernels`) after the other taken out, and without
//! subgroups.

use super::{Args, ids, settings, wants_device};
use crate::compare::sides::oracles;
use crate::device::{self, Device};
use crate::load;
use crate::model::Model;
use crate::progress::shown_parts;
use doppler::config::runtime::Inference;
use doppler::cpu::CpuExecutor;
use doppler::debug::doctor::device::{examine, overflow};
use doppler::debug::doctor::trial::{Patient, Trial};
use doppler::debug::doctor::{Cause, Fault, Fix, Site, Verdict};
use doppler::debug::dump::Dump;
use doppler::exec::{Executor, Storage};
use doppler::gpu::{Gpu, GpuOptions};
use doppler::open::Weights;
use doppler::{Result, settings as options};
use pollster::block_on;

/// Multiplications with weights that the relations of a run may take: a small model's in seconds, on a CPU.
const MOST: u64 = 12_000_000_000;
/// Tokens of the sequences for which room is made.
const ROOM: usize = 256;

/// Judges the device; true when it is wrong, which says nothing of the model.
///
/// # Errors
/// What the device and the oracle report.
pub fn check(args: &Args, model: &Model, weights: &Weights, reference: Option<&Dump>, verdict: &mut Verdict) -> Result<bool> {
    let config = settings(&args.machine)?;
    let inference = &config.runtime.inference;
    let prompt = reference.map_or_else(|| ids(args, model), Dump::input_ids)?;
    if !wants_device(&args.machine) {
        verdict.not_examined.push("the GPU and its kernels: --device cpu was given".into());
        halves(model, weights, &prompt, options::storage(inference.dtype, false), verdict)?;
        return Ok(false);
    }
    let opened = device::open(&args.machine, inference)?;
    if let Device::Cpu = opened {
        verdict.not_examined.push("the GPU and its kernels: there is no adapter but one in software (--device gpu takes it)".into());
        halves(model, weights, &prompt, options::storage(inference.dtype, false), verdict)?;
        return Ok(false);
    }
    let storage = options::storage(inference.dtype, opened.caps().is_some_and(|caps| caps.f16));
    if halves(model, weights, &prompt, storage, verdict)? {
        return Ok(false);
    }
    let (found, notes) = judge(model, opened, inference, &prompt)?;
    let wrong = !found.faults.is_empty() || !found.unexplained.is_empty();
    verdict.add(found);
    if !wrong {
        return Ok(false);
    }
    verdict.evidence.push(format!("the device: {notes}"));
    let Some(fault) = verdict.faults.last_mut() else { return Ok(true) };
    heal(args, model, inference, &prompt, fault)?;
    Ok(true)
}

/// Looks for the replacement of a kernel with which the device is right, or for what of the device must not be used.
fn heal(args: &Args, model: &Model, inference: &Inference, prompt: &[u32], fault: &mut Fault) -> Result<()> {
    let right = |gpu: GpuOptions| -> Result<bool> {
        let gpu = block_on(Gpu::open(gpu))?;
        let (found, _) = judge(model, Device::Gpu(Box::new(gpu)), inference, prompt)?;
        Ok(found.faults.is_empty() && found.unexplained.is_empty())
    };
    let Some(folder) = &args.machine.kernels else {
        if fault.cause == Cause::WrongKernel && right(GpuOptions { no_subgroups: true, ..options::gpu_options(inference) })? {
            fault.cause = Cause::SubgroupSize;
            fault.evidence.push("without subgroups every value is right".into());
        }
        return Ok(());
    };
    let kernels = device::read_kernels(folder)?;
    for (name, _) in &kernels {
        let others: Vec<(String, String)> = kernels.iter().filter(|(of, _)| of != name).cloned().collect();
        if right(GpuOptions { kernels: others, ..options::gpu_options(inference) })? {
            fault.evidence.push(format!("with the built-in {name}.wgsl in its place, everything that was examined is right"));
            let text = format!("mend or take out {}", folder.join(format!("{name}.wgsl")).display());
            fault.fix = Some(Fix { text, ..Fix::default() });
            fault.site.kernel = Some(name.clone());
            break;
        }
    }
    Ok(())
}

/// The verdict on a device, and its description.
fn judge(model: &Model, device: Device, inference: &Inference, prompt: &[u32]) -> Result<(Verdict, String)> {
    let capacity = (prompt.len() + 8).max(ROOM).min(model.plan.max_positions);
    let (mut engine, _) = load::prepare(model, device, inference, capacity)?.load(false)?;
    let oracles = oracles(model, &[Storage::F32, engine.storage()])?;
    let found = shown_parts(|progress| block_on(examine(&mut engine, &oracles, prompt, MOST, progress)))?;
    Ok((found, engine.describe()))
}

/// Whether values are too large for f16, where the model would run so; where it would not, that is only seen.
fn halves(model: &Model, weights: &Weights, prompt: &[u32], storage: Storage, verdict: &mut Verdict) -> Result<bool> {
    let patient = Patient::new(&model.name, &model.resolved, &weights.checkpoint);
    let trial = Trial::new(&patient, &[])?;
    let oracle = |storage| -> Result<CpuExecutor<f32>> {
        let mut oracle = CpuExecutor::new(trial.plan.clone(), storage)?;
        block_on(trial.load(&patient, &mut oracle))?;
        Ok(oracle)
    };
    let found = block_on(overflow(&oracle(Storage::F16)?, &oracle(Storage::F32)?, prompt))?;
    let Some(at) = found else {
        verdict.examined.push(format!("values stored in f16 against f32, on the oracle: all of {} tokens are finite", prompt.len()));
        return Ok(false);
    };
    let text = format!("{at} is the first value that is NaN or Inf where matrix products read f16, and every value is finite in f32");
    if storage != Storage::F16 {
        verdict.evidence.push(format!("{text}: keep to --dtype f32 with this model"));
        return Ok(false);
    }
    let site = Site { layer: at.layer, stage: Some(at.stage.name()), ..Site::default() };
    let fix = Fix { text: "run it with --dtype f32".into(), ..Fix::default() };
    verdict.faults.push(Fault { cause: Cause::Bf16OverflowF16, site, fix: Some(fix), evidence: vec![text] });
    Ok(true)
}
