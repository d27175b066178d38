//! `doppler debug`: one prompt through a model, said in lines that can be grepped: what was resolved, what was seen on
//! the way, what was found, what was generated, how fast, and a hash of the logits that it was chosen from. It runs in
//! the resident process where it can, which keeps the model for the next run.

mod activations;
mod finish;
mod generation;

use crate::args::{self, ConfigArgs, MachineArgs, ModelArgs, SamplingArgs, SetArgs, TextArgs};
use crate::chat::ChatArgs;
use crate::device::Engine;
use crate::end::{Ended, Stop};
use crate::hub::Need;
use crate::kept::{Key, Lookup, ModelCache};
use crate::load::Prepared;
use crate::model::{self, Model, Place};
use crate::output::{self, Lines};
use crate::prompt;
use crate::settings::Settings;
use crate::terminal::{self, tell};
use crate::watching::WatchArgs;
use doppler::debug::dump::DumpObserver;
use doppler::debug::lines::Line;
use doppler::debug::record::Sink;
use doppler::debug::watching::{Scene, Watching, token_text};
use doppler::gpu::Log;
use doppler::inference::words::{Words, session_options};
use doppler::{Error, Kind, Result};
use finish::{Ending, Finished};
use generation::Generation;
use pollster::block_on;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The prompt when none is given.
pub const PROMPT: &str = "The color of the sky is";

/// Options that are about one prompt.
const ONE_PROMPT: [&str; 27] = [
    "text",
    "prompt",
    "token_ids",
    "max_tokens",
    "chat",
    "system",
    "messages",
    "tools",
    "template_kwargs",
    "sketch",
    "bundle",
    "json",
    "skip_load",
    "trace",
    "trace_layers",
    "html",
    "attention",
    "perfetto",
    "break_at",
    "record_profile",
    "profile",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "seed",
];

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    text: TextArgs,
    /// Ids to continue, raw: nothing is added or masked, end-of-sequence ids do not stop; no tokenizer is needed
    #[arg(long, value_name = "ID,ID,…", value_parser = prompt::parse_ids, conflicts_with_all = ["text", "prompt", "chat", "system", "messages", "tools", "template_kwargs"], help_heading = "Prompt")]
    token_ids: Option<prompt::Ids>,
    /// Tokens to generate at most; 0 only reads the prompt
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Prompt")]
    max_tokens: usize,

    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    set: SetArgs,
    /// Write values of every step to this safetensors file; with --prompts, the shards to this folder
    #[arg(long, value_name = "FILE", help_heading = "Seeing")]
    dump: Option<PathBuf>,
    /// Dump these layers only, and what is outside layers
    #[arg(long, value_name = "N,N-N,…", value_parser = args::parse_layers, requires = "dump", help_heading = "Seeing")]
    dump_layers: Option<args::Layers>,
    /// Read every line of FILE as a prompt and write the rows of all of them to safetensors shards in the folder --dump, for
    /// programs that learn from activations. In FILE.jsonl a line is a text, {"text": ..} or {"ids": [..]}. Nothing is
    /// generated. A run that was ended goes on where it was
    #[arg(long, value_name = "FILE", requires = "dump", conflicts_with_all = ONE_PROMPT, help_heading = "Many prompts")]
    prompts: Option<PathBuf>,
    /// Keep the rows of these positions only: 0,3-5,8-; negative ones count from each prompt's end
    #[arg(long, value_name = "N,N-N,…", requires = "prompts", allow_hyphen_values = true, help_heading = "Many prompts")]
    dump_tokens: Option<String>,
    /// Write a shard as soon as it has so many MiB of rows: what is held in memory
    #[arg(long, value_name = "MIB", default_value_t = 256, requires = "prompts", help_heading = "Many prompts")]
    shard_size: usize,
    /// Stages to dump (`doppler stages` lists them), or `all`
    #[arg(long, value_name = "STAGE,STAGE,…", value_delimiter = ',', default_value = "all", requires = "dump", help_heading = "Seeing")]
    stages: Vec<String>,
    /// Dump statistics and 64 sums of random signs per token instead of whole values: small, and enough to tell distances
    #[arg(long, requires = "dump", help_heading = "Seeing")]
    sketch: bool,
    /// Write everything that repeating this run elsewhere takes to FILE: config, ids, versions, device, fingerprints of the
    /// model's files, the values around the first anomaly (`doppler compare replay FILE` repeats it)
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

/// A command line of `debug`, as the resident process gets it.
#[derive(Debug, clap::Parser)]
#[command(name = "doppler")]
pub enum CommandLine {
    /// Run a prompt
    Debug(Box<Args>),
}

impl Args {
    /// Whether the resident process is of no use: it is not wanted, or has nothing to do, or lacks our stdin.
    pub fn runs_here(&self) -> bool {
        self.no_resident || self.prompts.is_some() || self.text.is_stdin() || self.chat.stdin().is_some() || self.shows_config()
    }
    /// The layers to dump.
    fn dump_layers(&self) -> Option<&[usize]> {
        self.dump_layers.as_ref().map(|layers| &layers.0[..])
    }
    /// Whether only the runtime config is to be shown.
    fn shows_config(&self) -> bool {
        self.config.list_presets || self.config.dump_config
    }
    /// Where its model is, downloaded if need be; `None` for one of this machine, which is looked for later.
    ///
    /// # Errors
    /// Those of `model::downloaded`.
    pub fn place(&self) -> Result<Option<Place>> {
        if self.shows_config() { Ok(None) } else { model::downloaded(&self.model.model, Need::Everything) }
    }
}

/// The command itself. `kept` is what earlier runs of this process left; `place` is where a model of the Hub was put, or why
/// it could not be; `notes` are told first.
pub fn perform(args: &Args, kept: &mut ModelCache, place: Result<Option<Place>>, notes: &[String]) -> Result<Ended, Stop> {
    let settings = Settings::resolve(&args.config, &args.sampling, &args.machine)?.with(&args.set);
    if let Some(ended) = settings.show(&args.config)? {
        return Ok(ended);
    }
    if let Some(prompts) = &args.prompts {
        return activations::run(args, &settings, prompts, place);
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
        None => debug(args, &settings, kept, place, &lines, notes),
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

fn debug(
    args: &Args,
    settings: &Settings,
    kept: &mut ModelCache,
    place: Result<Option<Place>>,
    lines: &Lines,
    notes: &[String],
) -> Result<Ended, Stop> {
    let inference = settings.inference();
    let place = place?.map_or_else(|| model::locate(&args.model.model, Need::Everything), Ok)?;
    let mut model = args.model.allow.open_at(&place)?;
    if args.bundle.is_some() {
        model.files.check_texts()?;
    }
    args.watch.check_profile(&model.name)?;
    let shown = args.watch.over(settings.debug())?;
    let words = words(args, &model, kept)?;
    let text = prompt::read(&args.text, &args.chat)?;
    if let (Some(words), Some(text)) = (words.as_deref(), text.as_deref()) {
        prompt::check_bytes(&model, words, text, inference.kvcache.max_tokens)?;
    }
    let ids = prompt(args, text.as_deref(), words.as_deref())?;
    let capacity = prompt::fit(&mut model, &ids, args.max_tokens, inference.kvcache.max_tokens)?;
    model::set(&mut model, &settings.debug().set, Some(ids.len()))?;
    let model = &model;
    let stages = || args.stages.iter().map(String::as_str);
    let mut dump = args.dump.as_ref().map(|_| DumpObserver::new(&model.plan, stages(), args.dump_layers())).transpose()?;
    if args.sketch {
        dump = dump.map(DumpObserver::sketching);
    }

    // Raw ids are continued without a mask, and end nowhere.
    let masking = words.as_deref().filter(|_| args.token_ids.is_none());
    let session = session_options(masking, model.plan.vocab_size, capacity, doppler::settings::chunk(inference, capacity));
    let eos = &model.resolved.config.eos_token_ids[..];
    let spelling = words.as_deref().map(token_text);
    let scene = Scene { plan: &model.plan, model: &model.name, prompt_end: ids.len(), session, eos, text: spelling };
    // What the model or the prompt lacks is reported before anything is loaded.
    let mut watching = Watching::new(
        &shown,
        args.watch.keep((&model.name, &model.plan), capacity.min(ids.len().saturating_add(args.max_tokens)), dump)?,
        scene,
        Sink::new(|record| lines.seen(record)),
    )?;

    let request = LoadRequest { args, model, settings, capacity, words: words.as_deref(), watching: &watching, lines, notes };
    let config = ensure_loaded(&request, kept)?;
    lines.put(&Line::prompt(&ids, words.as_deref())?)?;
    let loaded = kept.loaded(&model.plan)?;
    for found in &loaded.non_finite {
        lines.put(&Line::weights_anomaly(found))?;
    }
    let dispatches = watching.dispatches();
    let (log, note) = dispatches.log(timestamps(&loaded.engine));
    loaded.engine.set_log(log)?;
    note.map_or(Ok(()), |note| lines.put(&Line::note(note)))?;
    let (pipelined, stop_ids) = (loaded.engine.is_ahead(), masking.map(|words| words.tokenizer.eos()).unwrap_or_default());
    let mut rules = model.rules(&doppler::settings::sampling(&inference.sampling));
    args.sampling.replace(&mut rules);
    let rules = masking.map(|_| &rules);
    if rules.is_none() && model.resolved.generation.any() {
        lines.put(&Line::note("with --token-ids, what the model's files say of the choice of tokens is not followed"))?;
    }
    let generation = Generation { ids: &ids, session, stop_ids, max_tokens: args.max_tokens, rules, pipelined, inference, lines };
    let outcome = generation.run(loaded, &mut watching.observers());
    lines.flush()?;
    // If nobody reads the output any more, write no files: they would look complete.
    if nobody(lines) {
        return Err(Stop::Closed);
    }

    // Before any line that ends the output, so that a closed pipe does not cost a file; after a finding too, which the
    // values explain.
    let finding = matches!(&outcome, Err(e) if e.kind == Kind::Finding);
    if finding || outcome.is_ok() {
        if let (Some(path), Some(dump)) = (&args.dump, watching.dump()) {
            let texts = words.as_deref().map(|words| dump.token_texts(&token_text(words)));
            let about = config.metadata().into_iter().chain(texts.as_deref().map(|texts| ("tokens", texts)));
            let about: Vec<_> = about.collect();
            output::write(path, |out| dump.write(out, &about))?;
        }
        loaded.engine.set_log(Log::Off)?;
        let steps = loaded.engine.take_log()?;
        dispatches.show(&steps)?;
        args.watch.write_times(&steps, ids.len(), &config.to_string())?;
        block_on(watching.after(&loaded.engine))?;
        lines.flush()?;
    }
    let ending = match outcome {
        Err(error) if error.kind == Kind::Finding => Ending::Broken(error),
        outcome => Ending::Whole(outcome?),
    };
    let (config, words) = (&config, words.as_deref());
    Finished { args, model, settings, config, loaded, generation: &generation, text: text.as_deref(), words }.finish(&watching, ending)
}

/// Whether kernels of `engine` can be timed; `None` for the oracle, which has none.
fn timestamps(engine: &Engine) -> Option<bool> {
    match engine {
        Engine::Cpu(_) => None,
        engine => Some(engine.set_log(Log::Times).is_ok()),
    }
}

/// The files that it writes, by option.
fn outputs(args: &Args) -> [(&'static str, Option<&Path>); 7] {
    let WatchArgs { html, perfetto, break_at, record_profile, .. } = &args.watch;
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

/// Which model is to be loaded, and what is shown of that.
struct LoadRequest<'a, 'w> {
    args: &'a Args,
    model: &'a Model,
    settings: &'a Settings,
    capacity: usize,
    words: Option<&'a Words>,
    watching: &'a Watching<'w>,
    lines: &'a Lines,
    /// What there is to say first.
    notes: &'a [String],
}

/// Takes the model that is there, or loads it; the `Config` line.
fn ensure_loaded(request: &LoadRequest<'_, '_>, kept: &mut ModelCache) -> Result<Line, Stop> {
    let LoadRequest { args, model, settings, capacity, words, watching, lines, notes } = *request;
    let inference = settings.inference();
    let mut prepared: Option<(Box<Key>, Prepared)> = None;
    let mut why = None;
    if let Lookup::Absent(key, reason) = kept.find(model, &args.machine, inference, args.skip_load)? {
        why = reason.map(|reason| format!("--skip-load: {reason}, so the model is loaded"));
        prepared = Some((key, ModelCache::prepare(model, &args.machine, inference, capacity)?));
    }
    let config = |engine: &Engine, weights: &str| Line::config(&model.name, &model.resolved, engine, weights, Some(&settings.name));
    let (config, of_weights) = match &prepared {
        Some((_, prepared)) => (config(&prepared.engine, &prepared.weights.types()), prepared.weights.notes()),
        None => {
            let loaded = kept.loaded(&model.plan)?;
            (config(&loaded.engine, &loaded.weight_types), loaded.notes.clone())
        }
    };
    lines.put(&config)?;
    let mut of_model = model.notes(words, &of_weights);
    // Runs over bare ids follow no rules of the model's, and say so.
    of_model.retain(|note| args.token_ids.is_none() || model.resolved.generation_note.as_ref() != Some(note));
    notes.iter().chain(&why).chain(&of_model).try_for_each(|text| lines.put(&Line::note(text)))?;
    model.plan.edited().iter().try_for_each(|text| lines.put(&Line::note(format!("edited: {text}"))))?;
    if let Some((key, prepared)) = prepared {
        kept.load(prepared, *key, &mut |progress| watching.loading(progress))?;
        lines.flush()?;
    }
    Ok(config)
}

/// The tokenizer: needed for text; for raw ids, taken where there is a good one.
fn words(args: &Args, model: &Model, kept: &mut ModelCache) -> Result<Option<Rc<Words>>> {
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

fn prompt(args: &Args, text: Option<&str>, words: Option<&Words>) -> Result<Vec<u32>> {
    match (&args.token_ids, words) {
        (Some(ids), _) => Ok(ids.0.clone()),
        (None, Some(words)) => args.chat.prompt(words, text, PROMPT),
        (None, None) => Err(Error::tokenizer("there is no tokenizer")),
    }
}
