//! What `debug` shows of a run: from options and the runtime config to observers, and what is told once the run is over
//! (the log of dispatches, the logit lens, files).

use crate::args;
use crate::engine::Engine;
use crate::kept::Loaded;
use crate::output::{self, Lines};
use doppler::config::runtime::{Debug, Position};
use doppler::debug::anomaly::{AnomalyObserver, AnomalyOptions, NEVER, Profile};
use doppler::debug::categories::Categories;
use doppler::debug::html::{Pictures, Report};
use doppler::debug::lens::{self, LensObserver};
use doppler::debug::lines::Line;
use doppler::debug::perfetto::{self, KernelSpan, StepSpans};
use doppler::debug::probe::ProbeObserver;
use doppler::debug::record::{Record, Sink, TokenText};
use doppler::debug::trace::{TraceObserver, TraceOptions};
use doppler::exec::Observer;
use doppler::gpu::{Log, StepLog};
use doppler::inference::words::Words;
use doppler::loader::Progress;
use doppler::model::Resolved;
use doppler::plan::Plan;
use doppler::{Error, Result};
use pollster::block_on;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Alternatives of a layer in the lens.
const LENS_TOP: usize = 5;

/// Options about what is shown.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Seeing")]
pub struct SeeingArgs {
    /// Show statistics of every value of these categories: embed, attn, ffn, kv, logits, layer; the chosen tokens
    /// (sample); tensors as they load (loader); dispatches (kernels) and their times (perf); what each layer would say
    /// (lens). `all` is all but lens and perf, `all,-kernels` leaves one out
    #[arg(long, value_name = "CATEGORY,…", value_delimiter = ',', allow_hyphen_values = true)]
    pub trace: Option<Vec<String>>,
    /// Trace these layers only, and print a LAYER_OUT line for each: 0,3-5,mid,-1; negative numbers count from the end
    #[arg(long, value_name = "LAYER,…", value_parser = parse_layers, allow_hyphen_values = true)]
    pub trace_layers: Option<Layers>,
    /// Write a report with pictures: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the GPU times of every kernel for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// Stop at the first anomaly, and write the values around it to FILE
    #[arg(long = "break", value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "doppler-break.safetensors")]
    pub break_at: Option<PathBuf>,
    /// Write what this healthy run looked like to FILE; what FILE holds of earlier runs stays
    #[arg(long, value_name = "FILE")]
    pub record_profile: Option<PathBuf>,
    /// Judge sizes by the healthy runs recorded in FILE instead of by the layers before
    #[arg(long, value_name = "FILE", conflicts_with = "record_profile")]
    pub profile: Option<PathBuf>,
}

/// The argument of `--trace-layers`.
#[derive(Debug, Clone)]
pub struct Layers(Vec<Position>);

fn parse_layers(text: &str) -> std::result::Result<Layers, String> {
    let mut layers = Vec::new();
    for part in text.split(',').map(str::trim) {
        match (part, part.parse()) {
            ("mid", _) => layers.push(Position::Mid),
            (_, Ok(number)) => layers.push(Position::At(number)),
            _ => match args::layers(part) {
                Ok(range) => layers.extend(range.map(|layer| Position::At(layer as i64))),
                Err(_) => return Err(format!("`{part}` is no layer; expected numbers and ranges like 0,3-5,-1, or mid")),
            },
        }
    }
    Ok(Layers(layers))
}

/// What is to be seen of one run.
pub struct Seeing<'a> {
    args: &'a SeeingArgs,
    config: &'a Debug,
    categories: Categories,
    layers: Option<Vec<Position>>,
    profile: Option<Profile>,
    report: Option<RefCell<Report>>,
}

/// The run that is seen.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub plan: &'a Plan,
    /// Ids of the prompt.
    pub prompt: usize,
    /// Ids from here on are padding.
    pub valid_vocab: usize,
    /// PAD, where it must not win.
    pub pad: Option<u32>,
    /// End-of-sequence ids.
    pub eos: &'a [u32],
    pub text: Option<&'a Rc<Words>>,
    pub lines: &'a Lines,
}

impl<'a> Seeing<'a> {
    /// Reads options, config and profiles.
    ///
    /// # Errors
    /// `Kind::Invalid` for unknown categories; what reading a profile reports.
    pub fn new(args: &'a SeeingArgs, config: &'a Debug, model: &str) -> Result<Self> {
        let categories = match &args.trace {
            Some(names) => Categories::parse(names.iter().map(String::as_str)).map_err(|e| e.within("--trace"))?,
            None => Categories::of(&config.trace)?,
        };
        let of_config = config.trace.layers.clone().filter(|_| config.trace.enabled);
        let read = |path: &PathBuf| -> Result<Profile> {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?;
            parse_profile(&text, path, model)
        };
        // What it holds is read again when this run is added; what is wrong with it is said before.
        args.record_profile.as_ref().filter(|path| path.is_file()).map(read).transpose()?;
        if !config.anomalies.enabled && (args.break_at.is_some() || args.record_profile.is_some() || args.profile.is_some()) {
            let message = "is false in this config, so there is nothing to stop at, to record or to judge";
            return Err(Error::config("runtime.debug.anomalies.enabled", message));
        }
        Ok(Self {
            categories,
            layers: args.trace_layers.as_ref().map(|Layers(layers)| layers.clone()).or(of_config),
            profile: args.profile.as_ref().map(read).transpose()?,
            report: args.html.as_ref().map(|_| RefCell::default()),
            args,
            config,
        })
    }
    /// Told of every tensor that is loaded.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn loading(&self, lines: &Lines, progress: &Progress<'_>) -> Result<()> {
        if !self.categories.has("loader") {
            return Ok(());
        }
        lines.seen(Record::loading(progress))
    }
    /// Switches the log of dispatches on where something of it is shown.
    pub fn log(&self, engine: &Engine, lines: &Lines) -> Result<(), crate::end::Stop> {
        let wanted = self.categories.has("perf") || self.args.perfetto.is_some();
        let note = |text: &str| lines.put(&Line::note(text));
        match engine {
            Engine::Cpu(_) if wanted || self.categories.has("kernels") => note("the CPU oracle has no kernels to show or to time"),
            _ if wanted && engine.set_log(Log::Times).is_ok() => Ok(()),
            _ => {
                engine.set_log(if wanted || self.categories.has("kernels") { Log::Names } else { Log::Off })?;
                if wanted { note("this adapter has no timestamps, so kernels are not timed") } else { Ok(()) }
            }
        }
    }
    /// Everyone who watches.
    ///
    /// # Errors
    /// `Kind::Invalid` for layers, stages, tokens and dims that the model or the prompt lacks.
    pub fn watchers<'w>(&'w self, scene: Scene<'w>) -> Result<Watchers<'w>> {
        let Scene { plan, prompt, text, lines, .. } = scene;
        let token_text: Option<TokenText<'w>> = text.map(|text| -> TokenText<'w> { Rc::new(move |id| text.tokenizer.token_text(id)) });
        let to_lines = Sink::new(move |record| lines.seen(record));
        let to_report = Sink::new(move |record| {
            self.report.iter().for_each(|report| report.borrow_mut().take(&record));
            Ok(())
        });
        let to_both = Sink::new(move |record| {
            self.report.iter().for_each(|report| report.borrow_mut().take(&record));
            lines.seen(record)
        });
        let (categories, layers) = (self.categories.clone(), self.layers.clone());
        let options = TraceOptions { categories, layers, prompt_end: prompt, text: token_text.clone() };
        let trace = TraceObserver::new(plan, options, to_lines)?;
        let pictures = self.report.as_ref().map(|_| Pictures::new(plan, prompt, token_text.clone(), to_report)).transpose()?;
        let anomalies = &self.config.anomalies;
        let anomaly_options = AnomalyOptions {
            profile: self.profile.clone(),
            stop: self.args.break_at.is_some(),
            ..AnomalyOptions::of(anomalies, prompt, scene.valid_vocab, scene.pad, scene.eos)
        };
        let probes = ProbeObserver::new(plan, &self.config.probes, prompt, to_both.clone())?;
        let lens = self.categories.has("lens").then(|| LensObserver::new(plan, self.layers.as_deref(), prompt)).transpose()?;
        let anomalies = anomalies.enabled.then(|| AnomalyObserver::new(plan, anomaly_options, to_both));
        Ok(Watchers { trace, pictures, probes: (!self.config.probes.is_empty()).then_some(probes), anomalies, lens, token_text })
    }
    /// Tells what is known when a run is over: dispatches and their times, the lens.
    ///
    /// # Errors
    /// What the executor reports; files that cannot be written; `Kind::Io` when nobody reads any more.
    pub fn after(&self, watchers: &Watchers<'_>, loaded: &Loaded, prompt: usize, about: &str, lines: &Lines) -> Result<()> {
        loaded.engine.set_log(Log::Off)?;
        self.dispatches(&loaded.engine.take_log()?, prompt, about, lines)?;
        if let Some(lens) = &watchers.lens {
            let text = watchers.token_text.as_ref();
            let records = block_on(lens::read(&loaded.engine, lens.inputs(), LENS_TOP, text))?;
            for record in records.into_iter().map(Record::Lens) {
                self.report.iter().for_each(|report| report.borrow_mut().take(&record));
                lines.seen(record)?;
            }
        }
        Ok(())
    }
    fn dispatches(&self, steps: &[StepLog], prompt: usize, about: &str, lines: &Lines) -> Result<()> {
        for step in steps {
            if self.categories.has("kernels") {
                step.kernel_lines(prompt).into_iter().try_for_each(|text| lines.seen(Record::told("kernels", text)))?;
            }
            if self.categories.has("perf") {
                step.time_lines(prompt).into_iter().try_for_each(|text| lines.seen(Record::told("perf", text)))?;
            }
        }
        if let Some(path) = &self.args.perfetto {
            let span = |d: &doppler::gpu::DispatchLog| {
                let (start_ns, duration_ns) = d.time?;
                Some(KernelSpan { kernel: d.kernel.into(), at: d.at, start_ns, duration_ns })
            };
            let spans = steps.iter().map(|s| StepSpans { name: s.name(prompt), kernels: s.dispatches.iter().filter_map(span).collect() });
            let spans: Vec<StepSpans> = spans.collect();
            if spans.iter().any(|s| !s.kernels.is_empty()) {
                output::file(path, &perfetto::trace(about, &spans))?;
            }
        }
        Ok(())
    }
    /// Writes the profile of a run, joined with what the file held; how that went, in words.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn record_profile(&self, watchers: &Watchers<'_>, model: &str) -> Result<Option<String>> {
        let (Some(path), Some(anomalies)) = (&self.args.record_profile, &watchers.anomalies) else { return Ok(None) };
        let bad: Vec<&str> = anomalies.findings().iter().map(|f| f.kind).filter(|kind| NEVER.contains(kind)).collect();
        if let Some(kind) = bad.first() {
            return Ok(Some(format!("no profile is written: a run with {kind} is no healthy one")));
        }
        let mut profile = anomalies.profile();
        let normal: Vec<String> = profile.accepted.iter().map(|a| a.kind.clone()).collect();
        let mut before = "";
        output::update(path, |old| {
            if let Some(old) = old {
                profile.join(&parse_profile(old, path, model)?);
                before = ", joined with the runs it held";
            }
            Ok(profile.to_json(model))
        })?;
        let taken = if normal.is_empty() { String::new() } else { format!("; taken as normal: {}", normal.join(", ")) };
        Ok(Some(format!("profile of this run written to {}{before}{taken}; judge by it with --profile", path.display())))
    }
    /// Writes the report.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn write_report(&self, run: &ReportRun<'_>) -> Result<()> {
        let (Some(path), Some(report)) = (&self.args.html, &self.report) else { return Ok(()) };
        let ReportRun { model, lines, ids, prompt, text, resolved } = *run;
        let token_text = text.map(|text| -> TokenText<'_> { Rc::new(move |id| text.tokenizer.token_text(id)) });
        let mut report = report.borrow_mut();
        report.about(model, lines.to_vec(), (ids, prompt), token_text.as_ref(), resolved);
        output::file(path, &report.render())
    }
    /// Where the values around the first finding go.
    pub fn break_at(&self) -> Option<&PathBuf> {
        self.args.break_at.as_ref()
    }
    /// Whether a report is made.
    pub fn has_report(&self) -> bool {
        self.report.is_some()
    }
}

/// The profile in the file `path`, which must be one of `model`.
fn parse_profile(text: &str, path: &Path, model: &str) -> Result<Profile> {
    let (profile, of) = Profile::from_json(text, &path.display().to_string())?;
    if of != model {
        let message = format!("a profile of the model {of}, but this is {model}; record one of this model (--record-profile FILE)");
        return Err(Error::invalid("profile", format!("{}: {message}", path.display())));
    }
    Ok(profile)
}

/// What a report tells of a run beside what was seen.
pub struct ReportRun<'a> {
    pub model: &'a str,
    pub lines: &'a [String],
    pub ids: &'a [u32],
    /// How many of them are the prompt.
    pub prompt: usize,
    pub text: Option<&'a Rc<Words>>,
    pub resolved: &'a Resolved,
}

/// Everyone who watches a run.
pub struct Watchers<'a> {
    trace: TraceObserver<'a>,
    pictures: Option<Pictures<'a>>,
    probes: Option<ProbeObserver<'a>>,
    /// The rules.
    pub anomalies: Option<AnomalyObserver<'a>>,
    lens: Option<LensObserver>,
    token_text: Option<TokenText<'a>>,
}

impl<'a> Watchers<'a> {
    /// Those who want something, in the order in which they see a step.
    pub fn all(&mut self) -> Vec<&mut dyn Observer> {
        let mut all: Vec<&mut dyn Observer> = Vec::new();
        if !self.trace.is_empty() {
            all.push(&mut self.trace);
        }
        all.extend(self.pictures.iter_mut().flat_map(Pictures::observers));
        all.extend(self.probes.as_mut().map(|o| o as &mut dyn Observer));
        all.extend(self.lens.as_mut().map(|o| o as &mut dyn Observer));
        all.extend(self.anomalies.as_mut().map(|o| o as &mut dyn Observer));
        all
    }
}
