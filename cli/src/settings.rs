//! The runtime config of a command: defaults, `--config`, then single options. `--list-presets` and `--dump-config`.

use crate::args::{ConfigArgs, Device, MachineArgs, SamplingArgs, SetArgs, Tune};
use crate::end::{Ended, Stop};
use crate::terminal::tell;
use doppler::config::RuntimeConfig;
use doppler::config::runtime::{Debug, Inference, merge, runtime_preset, runtime_presets};
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// What `--config` and the options around it come to.
pub struct Settings {
    /// The merged config.
    pub runtime: RuntimeConfig,
    /// The preset's or file's name, for the `Config` line.
    pub name: String,
}

impl Settings {
    /// Merges, checks every key and range.
    pub fn resolve(config: &ConfigArgs, sampling: &SamplingArgs, machine: &MachineArgs) -> Result<Self> {
        let (name, patch) = match &config.config {
            Some(argument) => patch(argument)?,
            None => ("default".to_string(), json!({})),
        };
        // Checked by itself first, so that what is wrong with it is not put down to the options.
        RuntimeConfig::from_patch(patch.clone())?;
        let runtime = RuntimeConfig::from_patch(merge(patch, options(sampling, machine)));
        let mut runtime = runtime.map_err(|e| e.within("options"))?;
        let tuned = &mut runtime.runtime.inference.tuned;
        match machine.tune {
            // What a config has itself is followed as it stands. The oracle has no variants.
            Tune::Auto if tuned.is_empty() && machine.device != Device::Cpu => *tuned = machine.tune.tables()?,
            Tune::Auto => {}
            Tune::Off => tuned.clear(),
        }
        Ok(Self { runtime, name })
    }
    /// With what the command line changes of values, where it does, in place of what the config says.
    pub fn with(mut self, args: &SetArgs) -> Self {
        if !args.set.is_empty() {
            self.runtime.runtime.debug.set.clone_from(&args.set);
        }
        self
    }
    /// `--list-presets` and `--dump-config`, if one of them is given.
    pub fn show(&self, config: &ConfigArgs) -> Result<Option<Ended>, Stop> {
        let mut out = crate::terminal::stdout();
        if config.list_presets {
            for name in runtime_presets() {
                let changes: Value = runtime_preset(name).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
                writeln!(out, "{name:<14} {}", changes["runtime"])?;
            }
            return Ok(Some(Ended::Fine));
        }
        if config.dump_config {
            let text = serde_json::to_string_pretty(&self.runtime).map_err(|e| Error::io("--dump-config", e))?;
            writeln!(out, "{text}")?;
            return Ok(Some(Ended::Fine));
        }
        Ok(None)
    }
    /// How to run.
    pub fn inference(&self) -> &Inference {
        &self.runtime.runtime.inference
    }
    /// What to see.
    pub fn debug(&self) -> &Debug {
        &self.runtime.runtime.debug
    }
    /// Refuses a config that changes values, for commands that run a model as it is.
    ///
    /// # Errors
    /// `Kind::Config`.
    pub fn unchanged(&self) -> Result<()> {
        let hint = "values are changed by `run`, `debug` and `compare`, not here";
        if self.debug().set.is_empty() { Ok(()) } else { Err(Error::config("runtime.debug.set", hint)) }
    }
    /// As [`Self::inference`], for commands that show nothing of a run; says so where the config asks for something.
    pub fn unseen(&self) -> &Inference {
        if self.debug().trace.enabled || !self.debug().probes.is_empty() {
            tell(&format!("config {}: traces and probes are shown by `doppler debug`, not here", self.name));
        }
        self.inference()
    }
}

/// Name and JSON of the argument of `--config`.
fn patch(argument: &str) -> Result<(String, Value)> {
    if let Some(text) = runtime_preset(argument) {
        return Ok((argument.to_string(), object(text, argument)?));
    }
    if argument.trim_start().starts_with('{') {
        return Ok(("inline".to_string(), object(argument, "--config")?));
    }
    let path = Path::new(argument);
    if !path.is_file() {
        // Its error names the presets.
        return RuntimeConfig::parse(argument).map(|_| (argument.to_string(), json!({})));
    }
    let text = read_text(path, MAX_TEXT)?;
    let name = path.file_name().map_or_else(|| argument.into(), |name| name.to_string_lossy());
    Ok((name.into_owned(), object(&text, argument)?))
}

fn object(text: &str, name: &str) -> Result<Value> {
    let broken = |e| Error::format(format!("config {name}"), format!("expected a JSON object: {e}"));
    let value: Value = serde_json::from_str(text).map_err(broken)?;
    if value.is_object() { Ok(value) } else { Err(Error::format(format!("config {name}"), "should hold an object")) }
}

/// The options as a patch in the runtime config's own words; absent ones are left out.
fn options(sampling: &SamplingArgs, machine: &MachineArgs) -> Value {
    let chosen = [
        ("/sampling/temperature", sampling.temperature.map(|v| json!(v))),
        ("/sampling/topK", sampling.top_k.map(|v| json!(v))),
        ("/sampling/topP", sampling.top_p.map(|v| json!(v))),
        ("/sampling/minP", sampling.min_p.map(|v| json!(v))),
        ("/sampling/repeatPenalty", sampling.repeat_penalty.map(|v| json!(v))),
        ("/sampling/seed", sampling.seed.map(|v| json!(v))),
        ("/kvcache/maxTokens", machine.context.map(|v| json!(v))),
        ("/dtype", machine.dtype.as_ref().map(|v| json!(v))),
        ("/limits", machine.limits.as_ref().map(|v| json!(v))),
        ("/prefillChunk", machine.prefill_chunk.map(|v| json!(v))),
    ];
    let mut patch = json!({});
    for (path, value) in chosen {
        let Some(value) = value else { continue };
        let nested = path.rsplit('/').filter(|key| !key.is_empty()).fold(value, |inner, key| json!({ (key): inner }));
        patch = merge(patch, nested);
    }
    json!({"runtime": {"inference": patch}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        sampling: SamplingArgs,
        #[command(flatten)]
        machine: MachineArgs,
    }

    fn resolve(line: &[&str]) -> Result<Settings> {
        let line = Line::try_parse_from(std::iter::once(&"test").chain(line)).unwrap();
        Settings::resolve(&line.config, &line.sampling, &line.machine)
    }

    #[test]
    fn options_win_over_the_config() {
        let config = r#"{"runtime":{"inference":{"sampling":{"topK":3,"seed":7},"dtype":"f32"}}}"#;
        let settings = resolve(&["--config", config, "--top-k", "5", "--context", "64", "--limits", "floor"]).unwrap();
        let inference = settings.inference();
        assert_eq!((inference.sampling.top_k, inference.sampling.seed, inference.kvcache.max_tokens), (5, 7, Some(64)));
        assert_eq!(serde_json::to_value(inference).unwrap()["limits"], "floor");
        assert_eq!(settings.name, "inline");
        assert_eq!(doppler::settings::sampling(&inference.sampling).top_k, 5);
    }

    #[test]
    fn mistakes_are_put_where_they_are() {
        let message = |line: &[&str]| resolve(line).map(|_| ()).unwrap_err().message;
        assert!(message(&["--top-p", "0"]).starts_with("options: config key `runtime.inference.sampling.topP`"));
        assert!(Line::try_parse_from(["test", "--temperature", "NaN"]).unwrap_err().to_string().contains("finite"));
        assert!(message(&["--config", "debgu"]).contains("gemma2-debug"));
        assert!(message(&["--config", "{\"runtime\":{\"inference\":{\"dtyp\":1}}}", "--top-k", "1"]).starts_with("config key"));
    }
}
