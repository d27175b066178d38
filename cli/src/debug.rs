//! `doppler debug`: one prompt through a model, said in lines that can be grepped: what was resolved, what was seen on
//! the way, what was found, what was generated, how fast, and a hash of the logits that it was chosen from. It runs in
//! the resident process where it can, which keeps the model for the next run.

use crate::args::{ConfigArgs, MachineArgs, ModelArgs, SamplingArgs};
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::kept::{Found, Kept, Loaded};
use crate::load::{self, Prepared};
use crate::model::{self, Model};
use crate::output::{Lines, Record};
use crate::resident;
use crate::seeing::{ReportRun, Scene, Seeing, SeeingArgs, Watchers};
use crate::settings::{self, Settings};
use crate::terminal::{self, tell};
use crate::text::Text;
use crate::{interrupt, prompt};
use doppler::config::runtime::Inference;
use doppler::debug::anomaly::{Finding, surroundings};
use doppler::debug::dump::DumpObserver;
use doppler::debug::observers::Observers;
use doppler::exec::{Executor, Observer};
use doppler::inference::chat::Message;
use doppler::inference::session::{Event, GenerateOptions, Generated, Session, SessionOptions, StopReason};
use doppler::loader::NonFinite;
use doppler::{Error, Kind, Result};
use pollster::block_on;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The prompt when none is given.
pub const PROMPT: &str = "The color of the sky is";

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

    #[command(flatten)]
    seeing: SeeingArgs,
    /// Write values of every step to this safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Seeing")]
    dump: Option<PathBuf>,
    /// Stages to dump (`doppler stages` lists them), or `all`
    #[arg(long, value_name = "STAGE,STAGE,…", value_delimiter = ',', default_value = "all", requires = "dump", help_heading = "Seeing")]
    stages: Vec<String>,
    /// Write each line as a JSON object too; `-` is stdout, in place of the lines
    #[arg(long, value_name = "FILE", help_heading = "Seeing")]
    json: Option<String>,

    /// Use the model that an earlier `debug` left loaded; where it is not the same any more, load it and say why
    #[arg(long, help_heading = "Resident model")]
    skip_load: bool,
    /// Run in this process and leave nothing behind
    #[arg(long, conflicts_with = "skip_load", help_heading = "Resident model")]
    no_resident: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs in the resident process, or here where that is not wanted or not possible.
pub fn run(args: &Args) -> Result<Ended, Stop> {
    if args.no_resident || args.config.list_presets || args.config.dump_config {
        return perform(args, &mut Kept::default(), &[]);
    }
    match resident::client::ask()? {
        resident::Asked::Ended(ended) => Ok(ended),
        resident::Asked::NotPossible(note) => perform(args, &mut Kept::default(), &note),
    }
}

/// The command itself. `kept` is what earlier runs of this process left; `notes` are told first.
pub fn perform(args: &Args, kept: &mut Kept, notes: &[String]) -> Result<Ended, Stop> {
    let settings = Settings::resolve(&args.config, &args.sampling, &args.machine)?;
    if let Some(ended) = settings.show(&args.config)? {
        return Ok(ended);
    }
    let lines = Lines::new(args.json.as_deref())?;
    let ended = debug(args, &settings, kept, &lines, notes);
    if nobody(&lines) {
        return Err(Stop::Closed);
    }
    if let Err(Stop::Failed(error)) = &ended {
        lines.put_error(error)?;
    }
    ended
}

fn debug(args: &Args, settings: &Settings, kept: &mut Kept, lines: &Lines, notes: &[String]) -> Result<Ended, Stop> {
    let inference = settings.inference();
    let mut model = model::open(&args.model.model, args.model.allow_unknown_config)?;
    let seeing = Seeing::new(&args.seeing, settings.debug(), &model.name)?;
    let text = text(args, &model, kept)?;
    let ids = prompt(args, text.as_deref())?;
    let capacity = prompt::fit(&mut model, &ids, args.max_tokens, inference.kvcache.max_tokens)?;
    let model = &model;
    let stages = || args.stages.iter().map(String::as_str);
    let mut dump = args.dump.as_ref().map(|_| DumpObserver::new(&model.plan, stages(), None)).transpose()?;

    let raw = args.token_ids.is_some();
    let words = text.as_ref().filter(|_| !raw);
    let rows = model.plan.vocab_size;
    let valid_vocab = words.map_or(rows, |text| rows.min(text.tokenizer.vocab_size() as usize));
    let pad = words.and_then(|text| text.masked_pad());
    let scene = Scene { plan: &model.plan, prompt: ids.len(), valid_vocab, pad, text: text.as_ref(), lines };
    // What the model or the prompt lacks is told before anything is loaded.
    let mut watchers = seeing.watchers(scene)?;

    let about = come_by(args, model, settings, capacity, &seeing, kept, lines, notes)?;
    let loaded = kept.loaded(model.plan.max_positions)?;
    for found in &loaded.non_finite {
        lines.put(&weights_anomaly(found))?;
    }
    seeing.log(&loaded.engine, lines)?;
    let pipelined = matches!(loaded.engine, Engine::Gpu(_));
    let text_of_run = words.map(|text| &**text);
    let task = Task { ids: &ids, text: text_of_run, max_tokens: args.max_tokens, capacity, valid_vocab, pipelined, inference, lines };
    let outcome = {
        let mut all = watchers.all();
        all.extend(dump.as_mut().map(|dump| dump as &mut dyn Observer));
        task.on(loaded, &mut Observers::new(&model.plan, all))
    };
    lines.flush()?;
    // What was cut short because nobody reads it leaves no file that looks whole.
    if nobody(lines) {
        return Err(Stop::Closed);
    }

    // Before any line that ends the output, so that a closed pipe does not cost a file; after a finding too, which the
    // values explain.
    let finding = matches!(&outcome, Err(e) if e.kind == Kind::Finding);
    if finding || outcome.is_ok() {
        if let (Some(path), Some(dump)) = (&args.dump, &dump) {
            dump.finish(path, &about.metadata())?;
        }
        seeing.after(&watchers, loaded, ids.len(), &about.line.to_string(), lines)?;
        lines.flush()?;
    }
    let found = watchers.anomalies.as_ref().map(|anomalies| anomalies.findings().to_vec()).unwrap_or_default();
    let ending = match outcome {
        Err(error) if error.kind == Kind::Finding => Ending::Broken(error),
        outcome => Ending::Whole(outcome?),
    };
    end(model, &seeing, &watchers, (loaded, &task, text.as_ref()), &about, &found, ending)
}

/// Whether nobody reads the lines any more.
fn nobody(lines: &Lines) -> bool {
    lines.closed() || terminal::client().is_some_and(|client| client.gone())
}

/// How a generation ended.
enum Ending {
    /// By itself.
    Whole((Generated, Times)),
    /// No token could be chosen, or `--break` ended it.
    Broken(Error),
}

/// Notes, files and the last lines.
#[expect(clippy::too_many_arguments, reason = "everything that a run left")]
fn end(
    model: &Model,
    seeing: &Seeing<'_>,
    watchers: &Watchers<'_>,
    (loaded, task, text): (&Loaded, &Task<'_>, Option<&Rc<Text>>),
    about: &About,
    found: &[Finding],
    ending: Ending,
) -> Result<Ended, Stop> {
    let lines = task.lines;
    let mut notes = Vec::new();
    if let (Some(path), Some(first)) = (seeing.break_at(), found.first()) {
        notes.push(surround(path, model, loaded, task, about, first)?);
    }
    notes.extend(seeing.record_profile(watchers, &model.name)?);
    let mut all = task.ids.to_vec();
    let mut last = Vec::new();
    let ended = match &ending {
        Ending::Broken(error) => {
            if found.is_empty() {
                let details = error.message.clone();
                last.push(Record::Anomaly { kind: "non_finite_logits", stage: Some("logits_final"), layer: None, details });
            } else {
                notes.push(format!("nothing more was generated: {}", error.message));
            }
            Ended::Finding
        }
        Ending::Whole((generated, times)) => {
            notes.extend(generated.notes.clone());
            all.extend(&generated.ids);
            let shown = text.map(|text| text.after(task.ids, &generated.ids)).transpose()?;
            last.push(Record::Output { text: shown, input_ids: task.ids.to_vec(), ids: generated.ids.clone() });
            last.push(done_line(generated, *times));
            match generated.stop {
                StopReason::Interrupted => Ended::Interrupted,
                _ if !found.is_empty() || !loaded.non_finite.is_empty() => Ended::Finding,
                _ => Ended::Fine,
            }
        }
    };
    let notes: Vec<Record> = notes.into_iter().map(|text| Record::Note { text }).collect();
    if seeing.has_report() {
        let told: Vec<String> = std::iter::once(&about.line).chain(&notes).chain(&last).map(Record::to_string).collect();
        let (prompt, resolved) = (task.ids.len(), &model.resolved);
        seeing.write_report(&ReportRun { model: &model.name, lines: &told, ids: &all, prompt, text, resolved })?;
    }
    for record in notes.iter().chain(&last) {
        lines.put(record)?;
    }
    Ok(ended)
}

/// Runs again up to the step of `finding` and writes the values around it; what was done, in words.
fn surround(path: &Path, model: &Model, loaded: &Loaded, task: &Task<'_>, about: &About, finding: &Finding) -> Result<String> {
    let Some(at) = finding.at else { return Ok(format!("{} is about tokens: there are no values around it to write", finding.kind)) };
    let around = surroundings(&model.plan, at);
    let mut dump = DumpObserver::of(&model.plan, &around)?;
    let again = Task { max_tokens: (finding.step + 1).min(task.max_tokens), ..*task };
    match again.on(loaded, &mut dump) {
        Err(error) if error.kind != Kind::Finding => return Err(error),
        _ => dump.finish(path, &about.metadata())?,
    }
    let names: Vec<String> = around.iter().map(|at| at.key()).collect();
    Ok(format!("stopped at the first anomaly; the values around it are in {}: {}", path.display(), names.join(" ")))
}

/// The `Config` line, and a dump's metadata.
struct About {
    line: Record,
}

impl About {
    fn metadata(&self) -> Vec<(&str, &str)> {
        match &self.line {
            Record::Config { model, dtype, device, .. } => vec![("model", model), ("dtype", dtype), ("device", device)],
            _ => Vec::new(),
        }
    }
}

/// Takes the model that is there, or loads it; tells which.
#[expect(clippy::too_many_arguments, reason = "everything that a model is loaded with")]
fn come_by(
    args: &Args,
    model: &Model,
    settings: &Settings,
    capacity: usize,
    seeing: &Seeing<'_>,
    kept: &mut Kept,
    lines: &Lines,
    notes: &[String],
) -> Result<About, Stop> {
    let inference = settings.inference();
    let note = |text: &str| lines.put(&Record::Note { text: text.into() });
    let mut prepared: Option<Prepared> = None;
    let mut why = None;
    if let Found::Absent(reason) = kept.find(model, &args.machine, inference, args.skip_load)? {
        why = reason.map(|reason| format!("--skip-load: {reason}, so the model is loaded"));
        prepared = Some(Kept::prepare(model, &args.machine, inference, capacity)?);
    }
    let line = match &prepared {
        Some(prepared) => config_line(model, settings, &prepared.engine, &prepared.weight_types),
        None => {
            let loaded = kept.loaded(model.plan.max_positions)?;
            config_line(model, settings, &loaded.engine, &loaded.weight_types)
        }
    };
    lines.put(&line)?;
    notes.iter().chain(&why).try_for_each(|text| note(text))?;
    if let Some(prepared) = prepared {
        kept.load(prepared, (model, &args.machine, inference), &mut |progress| seeing.loading(lines, progress))?;
        lines.flush()?;
    }
    Ok(About { line })
}

/// The tokenizer: needed for text; for raw ids, taken where there is a good one.
fn text(args: &Args, model: &Model, kept: &mut Kept) -> Result<Option<Rc<Text>>> {
    if args.token_ids.is_none() {
        return match kept.text(model)? {
            Some(text) => Ok(Some(text)),
            None => Err(Text::absent(model, "give --token-ids")),
        };
    }
    kept.text(model).or_else(|e| {
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
#[derive(Clone, Copy)]
struct Task<'a> {
    ids: &'a [u32],
    /// `None` for raw runs: nothing is masked, nothing stops.
    text: Option<&'a Text>,
    max_tokens: usize,
    capacity: usize,
    valid_vocab: usize,
    /// Steps are started early: not on the oracle, which computes while it starts one.
    pipelined: bool,
    inference: &'a Inference,
    lines: &'a Lines,
}

/// How long the prompt took, and the whole.
#[derive(Clone, Copy)]
struct Times {
    prefill: Duration,
    total: Duration,
}

impl Task<'_> {
    fn on(&self, loaded: &Loaded, observer: &mut dyn Observer) -> Result<(Generated, Times)> {
        // An observer that wants nothing is none: steps run as without.
        let observer = if observer.requests(0).is_empty() && observer.requests(1).is_empty() { None } else { Some(observer) };
        match &loaded.engine {
            Engine::Cpu(executor) => self.generate(executor, observer),
            Engine::Gpu(executor) => self.generate(&**executor, observer),
        }
    }
    fn generate<E: Executor>(&self, executor: &E, observer: Option<&mut dyn Observer>) -> Result<(Generated, Times)> {
        let options = SessionOptions {
            capacity: self.capacity,
            chunk: load::chunk(self.inference, self.capacity),
            valid_vocab: self.valid_vocab,
            pad_masked: self.text.and_then(Text::masked_pad),
        };
        let stop_ids = self.text.map(|text| text.tokenizer.eos()).unwrap_or_default();
        let sampling = settings::sampling(self.inference);
        let generate = GenerateOptions { max_tokens: self.max_tokens, sampling, stop_ids, hash_logits: true, pipelined: self.pipelined };
        let mut session = Session::new(executor, options)?;
        let _guard = interrupt::guard();
        let start = Instant::now();
        let mut prefill = Duration::ZERO;
        let mut on_event = |event: Event| {
            if matches!(event, Event::Prefill { done, total } if done == total) {
                prefill = start.elapsed();
            }
            // Lines come out step by step. Where nobody reads them, nobody waits for more.
            let unread = self.lines.flush().is_err();
            if unread || interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generated = block_on(session.generate(self.ids, &generate, observer, &mut on_event))?;
        Ok((generated, Times { prefill, total: start.elapsed() }))
    }
}

fn config_line(model: &Model, settings: &Settings, engine: &Engine, weight_types: &str) -> Record {
    let config = &model.resolved.config;
    Record::Config {
        model: model.name.clone(),
        preset: config.preset.clone(),
        layers: config.layers.len(),
        hidden: config.hidden_size,
        vocab: config.vocab_size,
        weights: weight_types.to_string(),
        dtype: engine.storage().activations.to_string(),
        context: model.plan.max_positions,
        config: settings.name.clone(),
        device: engine.describe(),
        ignored_keys: model.resolved.ignored_keys.clone(),
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
