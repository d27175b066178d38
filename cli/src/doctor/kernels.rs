//! The device: every op as it computes it against the oracle on the same inputs, watched and unwatched, before anything is
//! said of the model. Where kernels were replaced (`--kernels`), which of them is wrong is tried one by one.

use super::{Args, ids, recorded, settings, wants_device};
use crate::compare::sides::oracles;
use crate::device::{self, Device};
use crate::load;
use crate::model::Model;
use crate::progress::shown;
use doppler::debug::compare::run::storage_of;
use doppler::debug::compare::{Choice, Report, isolated, number_of_floors};
use doppler::debug::doctor::trial::Patient;
use doppler::debug::doctor::{Cause, Fault, Fix, Site, Verdict};
use doppler::debug::dump::Dump;
use doppler::exec::Executor;
use doppler::gpu::{Gpu, GpuOptions};
use doppler::open::Weights;
use doppler::{Result, settings as options};
use pollster::block_on;

/// Judges the device; true when it is wrong, which says nothing of the model.
///
/// # Errors
/// What the device and the oracle report.
pub fn check(args: &Args, model: &Model, weights: &Weights, reference: Option<&Dump>, verdict: &mut Verdict) -> Result<bool> {
    let config = settings(&args.machine)?;
    let inference = &config.runtime.inference;
    if !wants_device(&args.machine) {
        verdict.not_examined.push("the GPU and its kernels: --device cpu was given".into());
        return Ok(false);
    }
    let opened = device::open(&args.machine, inference)?;
    if let Device::Cpu = opened {
        verdict.not_examined.push("the GPU and its kernels: there is no adapter but one in software (--device gpu takes it)".into());
        return Ok(false);
    }
    // On the oracle's own values: what the model's files say is the oracle's to define.
    let patient = Patient { name: model.name.clone(), resolved: &model.resolved, checkpoint: &weights.checkpoint };
    let prompt = reference.map_or_else(|| ids(args, model), Dump::input_ids)?;
    let own = block_on(recorded(&patient, prompt, 4, &mut |_, _, _| {}))?;
    let report = judge(model, opened, inference, &own)?;
    let lines = report.stages.len();
    let Some(first) = &report.first_divergence else {
        let worst = report.worst().map_or(0.0, |line| line.times_floor);
        verdict.examined.push(format!("every op of the device against the oracle on the same inputs, watched and unwatched: {lines} values, {} rounding floors at most", number_of_floors(worst)));
        return Ok(false);
    };
    let wrong: Vec<String> = report.stages.iter().filter(|line| line.diverged).map(|line| line.at.stage.to_string()).collect();
    let mut kernel = None;
    let mut evidence = vec![format!(
        "{}{}: the device is {} rounding floors from the oracle on the same inputs (3 are allowed); {} of {lines} values are wrong",
        first.at,
        first.part.as_ref().map(|part| format!(" [{part}]")).unwrap_or_default(),
        number_of_floors(first.times_floor),
        wrong.len()
    )];
    let mut fix = None;
    if let Some(folder) = &args.machine.kernels {
        for (name, _) in device::read_kernels(folder)? {
            let others: Vec<(String, String)> = device::read_kernels(folder)?.into_iter().filter(|(of, _)| *of != name).collect();
            let gpu = block_on(Gpu::open(GpuOptions { kernels: others, ..options::gpu_options(inference) }))?;
            if judge(model, Device::Gpu(Box::new(gpu)), inference, &own)?.first_divergence.is_none() {
                evidence.push(format!("with the built-in {name}.wgsl in its place, all {lines} values are right"));
                fix = Some(Fix { text: format!("mend or take out {}", folder.join(format!("{name}.wgsl")).display()), ..Fix::default() });
                kernel = Some(name);
                break;
            }
        }
    }
    let site = Site { layer: first.at.layer, stage: Some(first.at.stage.name()), kernel, ..Site::default() };
    verdict.faults.push(Fault { cause: Cause::WrongKernel, site, fix, evidence });
    Ok(true)
}

fn judge(model: &Model, device: Device, inference: &doppler::config::runtime::Inference, own: &Dump) -> Result<Report> {
    let capacity = own.input_ids()?.len() + 8;
    let (engine, _) = load::prepare(model, device, inference, capacity)?.load(false)?;
    let oracles = oracles(model, &[storage_of(own)?, engine.storage()])?;
    let names = ["oracle".to_string(), model.name.clone()];
    shown("the device's ops", |progress| block_on(isolated(own, &engine, &oracles, names, &Choice::default(), progress)))
}
