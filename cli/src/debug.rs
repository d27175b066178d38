//! `doppler debug`: one prompt through a model, said in lines that can be grepped: what was resolved, what was seen on
//! the way, what was found, what was generated, how fast, and a hash of the logits that it was chosen from. It runs in
//! the resident process where it can, which keeps the model for the next run.

mod over;
mod task;

use crate::args::{ConfigArgs, MachineArgs, ModelArgs, SamplingArgs};
use crate::end::{Ended, Stop};
use crate::engine::Engine;
use crate::kept::{Found, Kept, Key};
use crate::load::Prepared;
use crate::model::{self, Model};
use crate::output::{self, Lines};
use crate::seeing::{Scene, Seeing, SeeingArgs};
use crate::settings::Settings;
use crate::terminal::{self, tell};
use crate::{chat, prompt, resident};
use doppler::debug::dump::DumpObserver;
use doppler::debug::lines::Line;
use doppler::debug::observers::Observers;
use doppler::exec::Observer;
use doppler::inference::chat::Message;
use doppler::inference::session::SessionOptions;
use doppler::inference::words::{Words, session_options};
use doppler::{Error, Kind, Result};
use over::{Ending, Run};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use task::Task;

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
    /// Dump statistics and 64 sums of random signs per token instead of whole values: small, and enough to tell distances
    #[arg(long, requires = "dump", help_heading = "Seeing")]
    sketch: bool,
    /// Write everything that repeating this run elsewhere takes to FILE: config, ids, versions, device, fingerprints of the
    /// model's files, the values around the first anomaly (`doppler compare --replay FILE` repeats it)
    #[arg(long, value_name = "FILE", help_heading = "Seeing")]
    bundle: Option<PathBuf>,
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
    let checked = output::check(&outputs(args));
    // A file that the check refused is not touched, not even for the error's twin.
    let to_stdout = args.json.as_deref().is_none_or(|path| path == "-");
    let refused = match checked {
        Err(e) if !to_stdout => return Err(e.into()),
        checked => checked.err(),
    };
    let lines = Lines::new(args.json.as_deref())?;
    let ended = match refused {
        None => debug(args, &settings, kept, &lines, notes),
        Some(e) => Err(e.into()),
    };
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
    if args.sketch {
        dump = dump.map(DumpObserver::sketching);
    }

    let raw = args.token_ids.is_some();
    let words = text.as_ref().filter(|_| !raw);
    let session =
        session_options(words.map(|words| &**words), model.plan.vocab_size, capacity, doppler::settings::chunk(inference, capacity));
    let SessionOptions { valid_vocab, pad_masked: pad, .. } = session;
    let eos = &model.resolved.config.eos_token_ids[..];
    let scene = Scene { plan: &model.plan, prompt: ids.len(), valid_vocab, pad, eos, text: text.as_ref(), lines };
    // What the model or the prompt lacks is told before anything is loaded.
    let mut watchers = seeing.watchers(scene)?;

    let about = come_by(args, model, settings, capacity, &seeing, kept, lines, notes)?;
    let loaded = kept.loaded(model.plan.max_positions)?;
    for found in &loaded.non_finite {
        lines.put(&Line::weights_anomaly(found))?;
    }
    seeing.log(&loaded.engine, lines)?;
    let pipelined = loaded.engine.is_ahead();
    let stop_ids = words.map(|words| words.tokenizer.eos()).unwrap_or_default();
    let task = Task { ids: &ids, session, stop_ids, max_tokens: args.max_tokens, pipelined, inference, lines };
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
            output::write(path, |out| dump.write(out, &about.metadata()))?;
        }
        seeing.after(&watchers, loaded, ids.len(), &about.line.to_string(), lines)?;
        lines.flush()?;
    }
    let found = watchers.anomalies.as_ref().map(|anomalies| anomalies.findings().to_vec()).unwrap_or_default();
    let ending = match outcome {
        Err(error) if error.kind == Kind::Finding => Ending::Broken(error),
        outcome => Ending::Whole(outcome?),
    };
    let run = Run { args, model, settings, seeing: &seeing, loaded, task: &task, text: text.as_ref(), about: &about };
    run.end(&watchers, &found, ending)
}

/// The files that it writes, by option.
fn outputs(args: &Args) -> [(&'static str, Option<&Path>); 7] {
    let SeeingArgs { html, perfetto, break_at, record_profile, .. } = &args.seeing;
    [
        ("--json", args.json.as_deref().map(Path::new)),
        ("--dump", args.dump.as_deref()),
        ("--bundle", args.bundle.as_deref()),
        ("--html", html.as_deref()),
        ("--perfetto", perfetto.as_deref()),
        ("--break", break_at.as_deref()),
        ("--record-profile", record_profile.as_deref()),
    ]
}

/// Whether nobody reads the lines any more.
fn nobody(lines: &Lines) -> bool {
    lines.closed() || terminal::client().is_some_and(|client| client.gone())
}

/// The `Config` line, and a dump's metadata.
struct About {
    line: Line,
}

impl About {
    fn metadata(&self) -> Vec<(&str, &str)> {
        match &self.line {
            Line::Config { model, dtype, device, .. } => vec![("model", model), ("dtype", dtype), ("device", device)],
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
    let note = |text: &str| lines.put(&Line::note(text));
    let mut prepared: Option<(Box<Key>, Prepared)> = None;
    let mut why = None;
    if let Found::Absent(key, reason) = kept.find(model, &args.machine, inference, args.skip_load)? {
        why = reason.map(|reason| format!("--skip-load: {reason}, so the model is loaded"));
        prepared = Some((key, Kept::prepare(model, &args.machine, inference, capacity)?));
    }
    let line = |engine: &Engine, weights: &str| Line::config(&model.name, &model.resolved, engine, weights, Some(&settings.name));
    let line = match &prepared {
        Some((_, prepared)) => line(&prepared.engine, &prepared.weights.types()),
        None => {
            let loaded = kept.loaded(model.plan.max_positions)?;
            line(&loaded.engine, &loaded.weight_types)
        }
    };
    lines.put(&line)?;
    notes.iter().chain(&why).try_for_each(|text| note(text))?;
    if let Some((key, prepared)) = prepared {
        kept.load(prepared, *key, &mut |progress| seeing.loading(lines, progress))?;
        lines.flush()?;
    }
    Ok(About { line })
}

/// The tokenizer: needed for text; for raw ids, taken where there is a good one.
fn text(args: &Args, model: &Model, kept: &mut Kept) -> Result<Option<Rc<Words>>> {
    if args.token_ids.is_none() {
        return match kept.words(model)? {
            Some(text) => Ok(Some(text)),
            None => Err(model.without_words("give --token-ids")),
        };
    }
    kept.words(model).or_else(|e| {
        tell(&format!("output is shown as ids: {e}"));
        Ok(None)
    })
}

fn prompt(args: &Args, text: Option<&Words>) -> Result<Vec<u32>> {
    let prompt = args.prompt.as_deref().unwrap_or(PROMPT);
    match (&args.token_ids, text) {
        (Some(ids), _) => Ok(ids.0.clone()),
        (None, Some(text)) if args.chat => chat::ids(text, &[Message::new("user", prompt)]),
        (None, Some(text)) => text.raw(prompt),
        (None, None) => Err(Error::tokenizer("there is no tokenizer")),
    }
}
