//! The sides of `compare` that are run: their options, their model on its device, their tokens.

use crate::args::{ConfigArgs, Device, MachineArgs, SamplingArgs, SetArgs, Surface, Tune};
use crate::device;
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::model::{self, Model};
use crate::output::{self, PipeWriter};
use crate::progress::shown;
use crate::settings::Settings;
use crate::{load, prompt};
pub use doppler::debug::compare::run::Tokens;
use doppler::debug::compare::{Choice, Injection, Unobserved};
use doppler::debug::dump::Dump;
use doppler::debug::floor::Oracles;
use doppler::exec::{Executor, Storage};
use doppler::loader::NonFinite;
use doppler::open::Weights;
use doppler::{Error, Result, settings};
use pollster::block_on;
use serde_json::Value;
use std::io::Write;
use std::path::Path;

/// Runs tokens and keeps the chosen values, behind a bar.
fn run<E: Executor>(tokens: &Tokens, executor: &E, chunk: usize, choice: &Choice, name: &str, what: &str) -> Result<Dump> {
    shown(what, |progress| block_on(tokens.record(executor, chunk, choice, name, progress)))
}

/// How sides run, but for what --a and --b say.
#[derive(Debug, Default, clap::Args)]
pub struct SideArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl SideArgs {
    /// `--list-presets` and `--dump-config`, if one of them is given.
    pub fn show(&self) -> Result<Option<Ended>, Stop> {
        Settings::resolve(&self.config, &SamplingArgs::default(), &self.machine)?.show(&self.config)
    }
}

/// Does `work`, which writes lines, and writes its document as JSON where `json` says, in place of the lines for `-`. That
/// JSON and `page`, an HTML page that `work` writes, can be written is checked first.
pub fn reported(
    json: Option<&str>,
    page: Option<&Path>,
    work: impl FnOnce(&mut dyn Write) -> Result<(Ended, Value), Stop>,
) -> Result<Ended, Stop> {
    output::check(&[("--json", json.map(Path::new)), ("--html", page)])?;
    let mut out = PipeWriter::new(if json == Some("-") { Box::new(std::io::sink()) } else { Box::new(crate::terminal::stdout()) });
    let compared = work(&mut out);
    if out.closed() {
        return Err(Stop::Closed);
    }
    let (ended, document) = compared?;
    if let Some(path) = json {
        output::document(path, &document)?;
    }
    Ok(ended)
}

/// A loaded model and how to run it.
pub struct Side {
    pub engine: Engine,
    pub non_finite: Vec<NonFinite>,
    chunk: usize,
    pub name: String,
    /// What of another run it was given.
    pub injection: Option<Injection>,
}

/// Loads the model for a side that runs as `spec` says, its values as they are.
pub fn side(how: &SideArgs, spec: Option<&str>, model: &mut Model, tokens: &Tokens) -> Result<Side> {
    let of_side = Settings::resolve(&how.config, &SamplingArgs::default(), &machine(&how.machine, spec)?)?;
    of_side.unchanged()?;
    edited_side(how, spec, model, tokens, &SetArgs::default())
}

/// As [`side`], with what `set`, or else the config, changes of values.
pub fn edited_side(how: &SideArgs, spec: Option<&str>, model: &mut Model, tokens: &Tokens, set: &SetArgs) -> Result<Side> {
    injected_side(how, spec, model, tokens, set, None)
}

/// As [`edited_side`], with values of a dump in the places that these texts name.
pub fn injected_side(
    how: &SideArgs,
    spec: Option<&str>,
    model: &mut Model,
    tokens: &Tokens,
    set: &SetArgs,
    inject: Option<(&[String], &Dump)>,
) -> Result<Side> {
    let machine = machine(&how.machine, spec)?;
    let of_side = Settings::resolve(&how.config, &SamplingArgs::default(), &machine)?.with(set);
    let inference = of_side.unseen();
    let capacity = prompt::fit(model, &tokens.prompt, tokens.steps, inference.kvcache.max_tokens)?;
    model::set(model, &of_side.debug().set, Some(tokens.prompt.len()))?;
    let edited = model.plan.edited().iter().map(|text| format!(", edited: {text}")).collect::<String>();
    let mut injection = None;
    if let Some((texts, a)) = inject {
        let (plan, made) = Injection::new(&model.plan, texts, a)?;
        (model.plan, injection) = (plan, Some(made));
    }
    let device = device::open(&machine, inference)?;
    let chunk = settings::chunk(inference, capacity);
    let (engine, report) = load::prepare(model, device, inference, capacity)?.load(true)?;
    let name = format!("{} on {}{edited}", model.name, engine.describe());
    Ok(Side { engine, non_finite: report.non_finite, chunk, name, injection })
}

impl Side {
    /// Tokens of a prompt's step.
    pub fn chunk(&self) -> usize {
        self.chunk
    }
    /// Runs the tokens and keeps the chosen values.
    pub fn run(&self, tokens: &Tokens, choice: &Choice, what: &str) -> Result<Dump> {
        run(tokens, &self.engine, self.chunk, choice, &self.name, what)
    }
    /// Runs the tokens as users' runs are, with nothing asked of any step.
    pub fn unobserved(&self, tokens: &Tokens) -> Result<Option<Unobserved>> {
        shown("running B, unwatched", |progress| block_on(tokens.unobserved(&self.engine, self.chunk, progress)))
    }
}

/// The options of one side over those of all.
fn machine(base: &MachineArgs, spec: Option<&str>) -> Result<MachineArgs> {
    let MachineArgs { surface, device, dtype, limits, tune, kernels, context, prefill_chunk } = base;
    let (mut machine, mut named) = (
        MachineArgs {
            surface: *surface,
            device: *device,
            dtype: dtype.clone(),
            limits: limits.clone(),
            tune: *tune,
            kernels: kernels.clone(),
            context: *context,
            prefill_chunk: *prefill_chunk,
        },
        Vec::new(),
    );
    let refuse = |text: String| Err(Error::invalid("--a and --b", text));
    for part in spec.into_iter().flat_map(|spec| spec.split(',')).filter(|part| !part.trim().is_empty()) {
        let Some((key, value)) = part.split_once('=') else {
            return refuse(format!("`{part}`: expected key=value, as in device=gpu,dtype=f16"));
        };
        let (key, value) = (key.trim(), value.trim());
        match (key, value) {
            ("surface", "native") => machine.surface = Surface::Native,
            ("surface", "browser") => machine.surface = Surface::Browser,
            ("device", "auto") => machine.device = Device::Auto,
            ("device", "gpu") => machine.device = Device::Gpu,
            ("device", "cpu") => machine.device = Device::Cpu,
            ("dtype", "auto" | "f32" | "f16") => machine.dtype = Some(value.into()),
            ("limits", "native" | "floor") => machine.limits = Some(value.into()),
            ("tune", "auto") => machine.tune = Tune::Auto,
            ("tune", "off") => machine.tune = Tune::Off,
            ("kernels", _) => machine.kernels = Some(value.into()),
            ("surface" | "device" | "dtype" | "limits" | "tune", _) => {
                return refuse(format!(
                    "{key}={value}: expected surface=native|browser, device=auto|gpu|cpu, dtype=auto|f32|f16, limits=native|floor, tune=auto|off"
                ));
            }
            _ => return refuse(format!("there is no `{key}`; known are surface, device, dtype, limits, tune, kernels")),
        }
        named.push(key.to_string());
    }
    // What is about a GPU, and meant for the other side, does not disturb an oracle.
    if machine.device == Device::Cpu && named.iter().any(|key| key == "device") {
        machine.limits = machine.limits.filter(|_| named.iter().any(|key| key == "limits"));
        if !named.iter().any(|key| key == "surface") {
            machine.surface = Surface::Native;
        }
        machine.kernels = machine.kernels.filter(|_| named.iter().any(|key| key == "kernels"));
    }
    Ok(machine)
}

/// Oracles with the model's weights.
pub fn oracles(model: &Model, storages: &[Storage]) -> Result<Oracles> {
    let Weights { checkpoint, matched } = block_on(model.weights())?;
    let mut oracles = Oracles::new(&model.plan, storages)?;
    block_on(doppler::loader::load(&model.plan, &checkpoint, &matched, false, &mut oracles, &mut |_| {}))?;
    Ok(oracles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_laid_over_the_options() {
        let base = crate::compare::tests::parsed(&["--device", "gpu", "--limits", "floor", "--dtype", "f32"]).how.machine;
        let a = machine(&base, Some("dtype=f16")).unwrap();
        assert_eq!((a.device, a.dtype.as_deref(), a.limits.as_deref()), (Device::Gpu, Some("f16"), Some("floor")));
        let b = machine(&base, Some("device=cpu, dtype=f32")).unwrap();
        assert_eq!((b.device, b.limits), (Device::Cpu, None));
        // A browser has no oracle: a side that asks for one runs natively.
        let base = crate::compare::tests::parsed(&["--surface", "browser"]).how.machine;
        let surface = |spec| machine(&base, Some(spec)).unwrap().surface;
        assert_eq!((surface("dtype=f16"), surface("device=cpu")), (Surface::Browser, Surface::Native));
        assert_eq!((surface("surface=native"), surface("surface=browser,device=cpu")), (Surface::Native, Surface::Browser));
        assert_eq!(machine(&base, Some("tune=off")).unwrap().tune, Tune::Off);
        for (spec, expected) in [("device", "key=value"), ("device=tpu", "auto|gpu|cpu"), ("threads=2", "known are surface, device")] {
            let message = machine(&base, Some(spec)).unwrap_err().message;
            assert!(message.contains(expected), "{message}");
        }
    }
}
