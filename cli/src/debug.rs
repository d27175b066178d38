//! `doppler debug`: one prompt through a model, said in lines that can be grepped: what was resolved, what was found,
//! what was generated, how fast, and a hash of the logits. Any value can be dumped on the way.

use crate::args::{ConfigArgs, MachineArgs, ModelArgs, SamplingArgs};
use crate::device::{self, Engine};
use crate::end::{Ended, Stop, tell};
use crate::load::{self, Prepared};
use crate::model::{self, Model};
use crate::output::{Lines, Record};
use crate::settings::{self, Settings};
use crate::text::Text;
use crate::{interrupt, prompt};
use doppler::config::runtime::Inference;
use doppler::debug::dump::DumpObserver;
use doppler::exec::{Executor, Observer};
use doppler::inference::chat::Message;
use doppler::inference::session::{Event, GenerateOptions, Generated, Session, SessionOptions, StopReason};
use doppler::loader::NonFinite;
use doppler::{Error, Kind, Result};
use pollster::block_on;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The prompt when none is given.
const PROMPT: &str = "The color of the sky is";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Text to continue, as it stands; without it and --token-ids a fixed one
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    prompt: Option<String>,
    /// Ids to continue, raw: nothing is added or masked, end-of-sequence ids do not stop; no tokenizer is needed
    #[arg(long, value_name = "ID,ID,…", value_parser = prompt::parse_ids, conflicts_with_all = ["prompt", "chat"], help_heading = "Prompt")]
    token_ids: Option<prompt::Ids>,
    /// Put the prompt into the model's chat template, as a user's message
    #[arg(long, help_heading = "Prompt")]
    chat: bool,
    /// Tokens to generate at most; 0 only reads the prompt
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Prompt")]
    max_tokens: usize,

    /// Write values of every step to this safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Seeing")]
    dump: Option<PathBuf>,
    /// Stages to dump (`doppler stages` lists them), or `all`
    #[arg(long, value_name = "STAGE,STAGE,…", value_delimiter = ',', default_value = "all", requires = "dump", help_heading = "Seeing")]
    stages: Vec<String>,
    /// Write each line as a JSON object too; `-` is stdout, in place of the lines
    #[arg(long, value_name = "FILE", help_heading = "Seeing")]
    json: Option<String>,

    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let mut lines = Lines::new(args.json.as_deref())?;
    let ended = debug(args, &mut lines);
    if let Err(Stop::Failed(error)) = &ended {
        lines.put_error(error)?;
    }
    ended
}

fn debug(args: &Args, lines: &mut Lines) -> Result<Ended, Stop> {
    let settings = Settings::resolve(&args.config, &args.sampling, &args.machine)?;
    if let Some(ended) = settings.show(&args.config)? {
        return Ok(ended);
    }
    let inference = settings.inference()?;
    let mut model = model::open(&args.model.model, args.model.allow_unknown_config)?;
    let text = text(args, &model)?;
    let ids = prompt(args, text.as_ref())?;
    let capacity = prompt::fit(&mut model, &ids, args.max_tokens, inference.kvcache.max_tokens)?;
    let stages = || args.stages.iter().map(String::as_str);
    let mut dump = args.dump.as_ref().map(|_| DumpObserver::new(&model.plan, stages(), None)).transpose()?;

    let device = device::open(&args.machine, inference.limits)?;
    let prepared = load::prepare(&model, device, inference, capacity)?;
    let config = config_line(&model, &settings, &prepared);
    lines.put(&config)?;
    let about = about(&config);
    let (engine, report) = prepared.load(true)?;
    for found in &report.non_finite {
        lines.put(&weights_anomaly(found))?;
    }

    let raw = args.token_ids.is_some();
    let task = Task { ids: &ids, text: text.as_ref().filter(|_| !raw), max_tokens: args.max_tokens, capacity, inference };
    let observer = dump.as_mut().map(|dump| dump as &mut dyn Observer);
    let outcome = match &engine {
        Engine::Cpu(executor) => task.generate(executor, observer),
        Engine::Gpu(executor) => task.generate(&**executor, observer),
    };
    // Before any line, so that a closed pipe does not cost the file; after a finding too, which the values explain.
    let finding = matches!(&outcome, Err(e) if e.kind == Kind::Finding);
    if let (Some(path), Some(dump), true) = (&args.dump, &dump, finding || outcome.is_ok()) {
        dump.finish(path, &about)?;
    }
    let (generated, times) = match outcome {
        Err(e) if e.kind == Kind::Finding => {
            let details = e.message;
            lines.put(&Record::Anomaly { kind: "non_finite_logits", stage: Some("logits_final"), layer: None, details })?;
            return Ok(Ended::Finding);
        }
        other => other?,
    };
    for note in &generated.notes {
        lines.put(&Record::Note { text: note.clone() })?;
    }
    let shown = text.as_ref().map(|text| text.after(&ids, &generated.ids)).transpose()?;
    lines.put(&Record::Output { text: shown, input_ids: ids, ids: generated.ids.clone() })?;
    lines.put(&done_line(&generated, times))?;
    Ok(match (generated.stop, report.non_finite.is_empty()) {
        (StopReason::Interrupted, _) => Ended::Interrupted,
        (_, false) => Ended::Finding,
        (_, true) => Ended::Fine,
    })
}

/// The tokenizer: needed for text; for raw ids, taken where there is a good one.
fn text(args: &Args, model: &Model) -> Result<Option<Text>> {
    if args.token_ids.is_none() {
        return Text::needed(model, "give --token-ids").map(Some);
    }
    Text::read(model).or_else(|e| {
        tell(&format!("output is shown as ids: {e}"));
        Ok(None)
    })
}

fn prompt(args: &Args, text: Option<&Text>) -> Result<Vec<u32>> {
    let prompt = args.prompt.as_deref().unwrap_or(PROMPT);
    match (&args.token_ids, text) {
        (Some(ids), _) => Ok(ids.0.clone()),
        (None, Some(text)) if args.chat => text.chat(&[Message::new("user", prompt)]),
        (None, Some(text)) => text.raw(prompt),
        (None, None) => Err(Error::tokenizer("there is no tokenizer")),
    }
}

/// One generation.
struct Task<'a> {
    ids: &'a [u32],
    /// `None` for raw runs: nothing is masked, nothing stops.
    text: Option<&'a Text>,
    max_tokens: usize,
    capacity: usize,
    inference: &'a Inference,
}

/// How long the prompt took, and the whole.
#[derive(Clone, Copy)]
struct Times {
    prefill: Duration,
    total: Duration,
}

impl Task<'_> {
    fn generate<E: Executor>(&self, executor: &E, observer: Option<&mut dyn Observer>) -> Result<(Generated, Times)> {
        let rows = executor.plan().vocab_size;
        let options = SessionOptions {
            capacity: self.capacity,
            chunk: load::chunk(self.inference, self.capacity),
            valid_vocab: self.text.map_or(rows, |text| rows.min(text.tokenizer.vocab_size() as usize)),
            pad_masked: self.text.and_then(Text::masked_pad),
        };
        let stop_ids = self.text.map(|text| text.tokenizer.eos()).unwrap_or_default();
        let sampling = settings::sampling(self.inference);
        let generate = GenerateOptions { max_tokens: self.max_tokens, sampling, stop_ids, hash_logits: true, ..GenerateOptions::default() };
        let mut session = Session::new(executor, options)?;
        let _guard = interrupt::guard();
        let start = Instant::now();
        let mut prefill = Duration::ZERO;
        let on_event = &mut |event| {
            if matches!(event, Event::Prefill { .. }) {
                prefill = start.elapsed();
            }
            if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generated = block_on(session.generate(self.ids, &generate, observer, on_event))?;
        Ok((generated, Times { prefill, total: start.elapsed() }))
    }
}

fn config_line(model: &Model, settings: &Settings, prepared: &Prepared) -> Record {
    let config = &model.resolved.config;
    Record::Config {
        model: model.name.clone(),
        preset: config.preset.clone(),
        layers: config.layers.len(),
        hidden: config.hidden_size,
        vocab: config.vocab_size,
        weights: prepared.weight_types.clone(),
        dtype: prepared.engine.storage().activations.to_string(),
        context: model.plan.max_positions,
        config: settings.name.clone(),
        device: prepared.engine.describe(),
        ignored_keys: model.resolved.ignored_keys.clone(),
    }
}

/// A dump's metadata.
fn about(config: &Record) -> Vec<(&str, &str)> {
    match config {
        Record::Config { model, dtype, device, .. } => vec![("model", model), ("dtype", dtype), ("device", device)],
        _ => Vec::new(),
    }
}

fn weights_anomaly(found: &NonFinite) -> Record {
    let NonFinite { tensor, shape, nan, inf, first } = found;
    let details = format!("tensor={tensor} shape={shape:?} nan={nan} inf={inf} first={first}");
    Record::Anomaly { kind: "non_finite_weights", stage: None, layer: None, details }
}

fn done_line(generated: &Generated, times: Times) -> Record {
    let rate = |count: usize, time: Duration| {
        let seconds = time.as_secs_f64();
        (count > 0 && seconds > 0.0).then(|| count as f64 / seconds)
    };
    // The first token belongs to the prompt's time.
    let decoded = generated.ids.len().saturating_sub(1);
    Record::Done {
        tokens: generated.ids.len(),
        milliseconds: times.total.as_secs_f64() * 1e3,
        prefill_tokens: generated.prefill_tokens,
        prefill_tokens_per_second: rate(generated.prefill_tokens, times.prefill),
        decode_tokens_per_second: rate(decoded, times.total.saturating_sub(times.prefill)),
        logits: format!("{:016x}", generated.logits_hash.unwrap_or_default()),
        stop: match generated.stop {
            StopReason::MaxTokens => "maxTokens",
            StopReason::Eos => "eos",
            StopReason::Capacity => "context",
            StopReason::Interrupted => "interrupted",
        },
    }
}
