//! Options that several commands share; they know no command.

use crate::model::{self, Model, Place};
use crate::tuned;
use clap::{Args, ValueEnum};
use doppler::Result;
use doppler::debug::interventions;
use doppler::model::GenerationRules;
use doppler::tuned::Tuned;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Which model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A folder with config.json and *.safetensors, a GGUF file, a model of the Hugging Face Hub (org/name[@revision][:FILE],
    /// downloaded into its cache), or `demo`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::model::DEMO)]
    pub model: String,
    #[command(flatten)]
    pub allow: AllowArgs,
}

impl ModelArgs {
    /// Opens the model.
    ///
    /// # Errors
    /// Those of `model::open`.
    pub fn open(&self) -> Result<Model> {
        self.allow.open(&self.model)
    }
}

/// What may be passed over in a model's files.
#[derive(Debug, Default, Clone, Args)]
pub struct AllowArgs {
    /// Go on although config.json has keys that are not understood; they are listed
    #[arg(long, help_heading = "Model")]
    pub allow_unknown_config: bool,
    /// Go on although the checkpoint has tensors that the model of config.json has no place for (a value head, further
    /// layers); they are not used
    #[arg(long, help_heading = "Model")]
    pub allow_extra_tensors: bool,
}

impl AllowArgs {
    /// Opens the model that `spec` names.
    ///
    /// # Errors
    /// Those of `model::open`.
    pub fn open(&self, spec: &str) -> Result<Model> {
        model::open(spec, self.allow_unknown_config).map(|model| self.applied(model))
    }
    /// Opens the model at `place`.
    ///
    /// # Errors
    /// Those of [`Place::open`].
    pub fn open_at(&self, place: &Place) -> Result<Model> {
        place.open(self.allow_unknown_config).map(|model| self.applied(model))
    }
    fn applied(&self, mut model: Model) -> Model {
        model.allow_extra = self.allow_extra_tensors;
        model
    }
}

/// The text of a prompt, for `run` and `debug` alike.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Prompt")]
pub struct TextArgs {
    /// Text to continue, as it stands; `-` reads it from stdin
    #[arg(value_name = "PROMPT")]
    text: Option<String>,
    /// The same as an option: its text may begin with a dash
    #[arg(short, long, value_name = "TEXT", conflicts_with = "text", allow_hyphen_values = true)]
    prompt: Option<String>,
}

impl TextArgs {
    /// The text, where one was given.
    pub fn given(&self) -> Option<&str> {
        self.prompt.as_deref().or(self.text.as_deref())
    }
    /// Whether it comes from stdin.
    pub fn is_stdin(&self) -> bool {
        self.prompt.is_none() && self.text.as_deref() == Some("-")
    }
}

/// How tokens are chosen. What is absent is as `--config` says.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divide logits by T; 0 takes the most likely token (greedy)
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = finite)]
    pub temperature: Option<f64>,
    /// Choose among the K most likely tokens; 0 is off
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Choose among the most likely tokens that together reach probability P; 1 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite)]
    pub top_p: Option<f64>,
    /// Choose among tokens at least P times as likely as the most likely one; 0 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite)]
    pub min_p: Option<f64>,
    /// Make tokens that occurred before less likely by this factor on their logits; 1 is off
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = finite)]
    pub repeat_penalty: Option<f64>,
    /// The same seed gives the same tokens with the same build, device and dtype; others round differently, and where two
    /// tokens are nearly as likely, the choice may differ
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// A penalty that is stated takes the place of the model's own, one of 1 too, which is off.
    pub fn replace(&self, rules: &mut GenerationRules) {
        if self.repeat_penalty.is_some() {
            rules.repetition_penalty = None;
        }
    }
}

/// Whether to follow what was measured.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tune {
    #[default]
    Auto,
    Off,
}

impl Tune {
    /// The tables that were kept, unless none is to be followed.
    ///
    /// # Errors
    /// Those of [`tuned::tables`].
    pub fn tables(self) -> Result<Vec<Tuned>> {
        if self == Self::Off { Ok(Vec::new()) } else { tuned::tables() }
    }
}

/// Where and how to compute.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// browser: on WebGPU in headless Chromium or Chrome ($DOPPLER_BROWSER, or the one that is installed), which is started
    /// for it with further switches from $DOPPLER_BROWSER_SWITCHES; everything else stays as it is
    #[arg(long, value_enum, default_value_t)]
    pub surface: Surface,
    /// auto: the GPU, or the CPU oracle where there is none or only a software adapter, which is slower (said on stderr).
    /// gpu: any adapter. cpu: the oracle, exact and slow
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Storage of activations and KV cache: auto is f16 where the GPU has it, else f32
    #[arg(long, value_name = "TYPE", value_parser = ["auto", "f32", "f16"])]
    pub dtype: Option<String>,
    /// How much of the GPU to use: floor is what every browser has
    #[arg(long, value_name = "LIMITS", value_parser = ["native", "floor"])]
    pub limits: Option<String>,
    /// Follow what `doppler tune` measured on this device (auto), or not (off). The `Config` line says which table it is
    #[arg(long, value_enum, default_value_t)]
    pub tune: Tune,
    /// Use KERNEL.wgsl from this folder in place of the built-in kernel of that name
    #[arg(long, value_name = "DIR")]
    pub kernels: Option<PathBuf>,
    /// Positions to make room for; prompt and answer cannot be longer. Without it, what the model allows
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Prompt tokens to compute in one pass
    #[arg(long, value_name = "N")]
    pub prefill_chunk: Option<usize>,
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Device {
    #[default]
    Auto,
    Gpu,
    Cpu,
}

/// `--surface`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Surface {
    #[default]
    Native,
    Browser,
}

/// What is changed of a run's values.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Changing")]
pub struct SetArgs {
    /// Change a value while the model runs; again for another: ffn_out@3-5,token=-1=zero. Layers, tokens, heads and elements
    /// are numbers and ranges (0,3-5,8-), negative from the end; left out, all of them. CHANGE is zero; scale:F; add:FILE[*F]
    /// (a vector in a safetensors file, or control vectors in a GGUF file); from:DUMP (the values of another run, for its
    /// tokens); mean:DUMP (their mean over its tokens). Everything after it reads the changed value, and caches keep it
    #[arg(long, value_name = "STAGE@LAYERS[,token=..][,head=..][,dim=..]=CHANGE", value_parser = setting)]
    pub set: Vec<String>,
}

/// A setting as it stands, if it can be read.
fn setting(text: &str) -> Result<String, String> {
    interventions::check(text).map(|()| text.to_string()).map_err(|e| e.message)
}

/// Layers as options name them: a number, or a range like `3-5`.
pub fn layers(text: &str) -> Result<RangeInclusive<usize>, String> {
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("`{text}` is no layer; expected numbers like 0,3-5"));
    let Some((first, last)) = text.split_once('-') else { return number(text).map(|layer| layer..=layer) };
    match (number(first)?, number(last)?) {
        (first, last) if first <= last && last - first < 100_000 => Ok(first..=last),
        _ => Err(format!("`{text}` is no range of layers; expected one like 3-5")),
    }
}

/// Several of them.
#[derive(Debug, Clone)]
pub struct Layers(pub Vec<usize>);

/// Layers as lists of options name them: `0,3-5`.
pub fn parse_layers(text: &str) -> Result<Layers, String> {
    let mut all = Vec::new();
    text.split(',').try_for_each(|part| layers(part).map(|range| all.extend(range)))?;
    Ok(Layers(all))
}

/// A number that is one: JSON, in which configs are merged, has no others.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("expected a finite number, like 0.7".into()),
    }
}

/// The runtime config that the options above are laid over.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Runtime config")]
pub struct ConfigArgs {
    /// A preset's name, a file, or JSON text; options of the command line win over it
    #[arg(long, value_name = "PRESET|FILE|JSON")]
    pub config: Option<String>,
    /// List the presets and what they change, and exit
    #[arg(long)]
    pub list_presets: bool,
    /// Print the whole runtime config that results, as JSON, and exit
    #[arg(long)]
    pub dump_config: bool,
}
