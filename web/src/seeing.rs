//! What is seen of one generation: the observers that `doppler debug` has too, and their records on the way to the
//! page, each as its JSON twin with its line under `line`; the report that is drawn of them.

use crate::host::now;
use doppler::config::runtime::Debug;
use doppler::debug::anomaly::{AnomalyObserver, AnomalyOptions, NEVER, Profile};
use doppler::debug::categories::Categories;
use doppler::debug::dump::DumpObserver;
use doppler::debug::html::{Pictures, Report};
use doppler::debug::lens::{self, LensObserver};
use doppler::debug::logits_view::LogitsObserver;
use doppler::debug::probe::ProbeObserver;
use doppler::debug::record::{Finding, Record, Sink, TokenText};
use doppler::debug::trace::{TraceObserver, TraceOptions};
use doppler::exec::{Executor, Observer};
use doppler::gpu::{Log, StepLog};
use doppler::model::Resolved;
use doppler::plan::Plan;
use doppler::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::cell::RefCell;

/// Alternatives of a layer in the lens.
const LENS_TOP: usize = 5;

/// What a generation is to keep beside the records of the runtime config.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keeping {
    dump: Option<Dump>,
    /// Whether to draw a report.
    pub report: bool,
    /// A profile of healthy runs to judge by, as JSON.
    profile: Option<Value>,
    /// Whether to make a profile of this run.
    record_profile: bool,
    /// So many alternatives of each chosen token, as records; 0 for none.
    candidates: usize,
}

/// What a dump is to hold.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Dump {
    stages: Vec<String>,
    layers: Option<Vec<usize>>,
}

/// The run that is seen.
pub struct Scene<'a> {
    pub plan: &'a Plan,
    /// What the model is called.
    pub model: &'a str,
    /// Ids before the first generated one.
    pub prompt_end: usize,
    /// Ids from here on are padding.
    pub valid_vocab: usize,
    /// PAD, where it must not win.
    pub pad: Option<u32>,
    /// End-of-sequence ids.
    pub eos: &'a [u32],
    pub text: Option<TokenText<'a>>,
}

/// Records that the page has not got yet, and the report.
pub struct Records {
    start: f64,
    waiting: RefCell<Vec<String>>,
    report: Option<RefCell<Report>>,
}

impl Records {
    /// None yet; lines count milliseconds from now on. With `report`, one is drawn.
    pub fn new(report: bool) -> Self {
        Self { start: now(), waiting: RefCell::default(), report: report.then(RefCell::default) }
    }
    /// Keeps a record for the page.
    ///
    /// # Errors
    /// `Kind::Invalid` if it has no JSON.
    pub fn keep(&self, record: &Record) -> Result<()> {
        let line = Value::from(record.line(now() - self.start));
        let twin = serde_json::to_string(record).map_err(|e| Error::invalid("record", e))?;
        let twin = twin.strip_suffix('}').unwrap_or(&twin);
        self.waiting.borrow_mut().push(format!("{twin},\"line\":{line}}}"));
        Ok(())
    }
    /// Keeps a record for the report.
    fn picture(&self, record: &Record) {
        self.report.iter().for_each(|report| report.borrow_mut().take(record));
    }
    /// What was kept for the page, as a JSON array; `None` for nothing.
    pub fn take(&self) -> Option<String> {
        let records = self.waiting.take();
        (!records.is_empty()).then(|| format!("[{}]", records.join(",")))
    }
    /// The report, if there is one: `lines` about the run, `ids` of which `prompt` are the prompt.
    pub fn report(&self, scene: &Scene<'_>, lines: Vec<String>, ids: &[u32], resolved: &Resolved) -> Option<String> {
        let mut report = self.report.as_ref()?.borrow_mut();
        report.about(scene.model, lines, (ids, scene.prompt_end), scene.text.as_ref(), resolved);
        Some(report.render())
    }
}

/// Dispatches and their times, as far as they are wanted.
pub struct Dispatches<'a> {
    kernels: bool,
    perf: bool,
    prompt: usize,
    records: &'a Records,
}

impl<'a> Dispatches<'a> {
    /// Those that `config` asks for; `prompt` is the count of ids before the first generated one.
    ///
    /// # Errors
    /// `Kind::Invalid` for unknown categories.
    pub fn new(config: &Debug, prompt: usize, records: &'a Records) -> Result<Self> {
        let categories = Categories::of(&config.trace)?;
        Ok(Self { kernels: categories.has("kernels"), perf: categories.has("perf"), prompt, records })
    }
    /// What is to be noted on an adapter with or without `timestamps`, and what there is to say about it.
    pub fn log(&self, timestamps: bool) -> (Log, Option<&'static str>) {
        match (self.perf, timestamps) {
            (true, true) => (Log::Times, None),
            (true, false) => (Log::Names, Some("this adapter has no timestamps, so kernels are not timed")),
            (false, _) if self.kernels => (Log::Names, None),
            (false, _) => (Log::Off, None),
        }
    }
    /// Keeps records of steps.
    ///
    /// # Errors
    /// Those of `Records::keep`.
    pub fn tell(&self, steps: &[StepLog]) -> Result<()> {
        let keep = |category: &str, lines: Vec<String>| -> Result<()> {
            lines.into_iter().try_for_each(|text| self.records.keep(&Record::told(category, text)))
        };
        for step in steps {
            if self.kernels {
                keep("kernels", step.kernel_lines(self.prompt))?;
            }
            if self.perf {
                keep("perf", step.time_lines(self.prompt))?;
            }
        }
        Ok(())
    }
}

/// Everyone who watches a generation.
pub struct Watchers<'a> {
    trace: TraceObserver<'a>,
    candidates: Option<LogitsObserver<'a>>,
    pictures: Option<Pictures<'a>>,
    probes: Option<ProbeObserver<'a>>,
    lens: Option<LensObserver>,
    anomalies: Option<AnomalyObserver<'a>>,
    dump: Option<DumpObserver>,
    record_profile: bool,
    text: Option<TokenText<'a>>,
    records: &'a Records,
}

impl<'a> Watchers<'a> {
    /// Those whom `config` and `keeping` ask for.
    ///
    /// # Errors
    /// `Kind::Invalid` for categories, layers, stages, tokens and dims that there are not; `Kind::Format` for what is no
    /// profile; `Kind::Config` where there are no rules that a profile is for.
    pub fn new(config: &Debug, keeping: &Keeping, scene: &Scene<'a>, records: &'a Records) -> Result<Self> {
        let Scene { plan, prompt_end, .. } = *scene;
        let to_page = Sink::new(|record| records.keep(&record));
        let to_report = Sink::new(|record| {
            records.picture(&record);
            Ok(())
        });
        let to_both = Sink::new(|record| {
            records.picture(&record);
            records.keep(&record)
        });
        let categories = Categories::of(&config.trace)?;
        let layers = config.trace.layers.clone().filter(|_| config.trace.enabled);
        let lens = categories.has("lens").then(|| LensObserver::new(plan, layers.as_deref(), prompt_end)).transpose()?;
        let options = TraceOptions { categories, layers, prompt_end, text: scene.text.clone() };
        let pictures = keeping.report.then(|| Pictures::new(plan, prompt_end, scene.text.clone(), to_report)).transpose()?;
        let profile = keeping.profile.as_ref().map(|profile| read(profile, scene.model)).transpose()?;
        if !config.anomalies.enabled && (profile.is_some() || keeping.record_profile) {
            return Err(Error::config("anomalies", "they are off, so there is nothing to judge by a profile or to record in one"));
        }
        let rules =
            AnomalyOptions { profile, ..AnomalyOptions::of(&config.anomalies, prompt_end, scene.valid_vocab, scene.pad, scene.eos) };
        let probes = ProbeObserver::new(plan, &config.probes, prompt_end, to_both.clone())?;
        let dump = keeping.dump.as_ref();
        let dump = dump.map(|d| DumpObserver::new(plan, d.stages.iter().map(String::as_str), d.layers.as_deref())).transpose()?;
        Ok(Self {
            candidates: (keeping.candidates > 0)
                .then(|| LogitsObserver::new(plan, prompt_end, keeping.candidates, scene.text.clone(), to_page.clone())),
            trace: TraceObserver::new(plan, options, to_page)?,
            pictures,
            probes: (!config.probes.is_empty()).then_some(probes),
            lens,
            anomalies: config.anomalies.enabled.then(|| AnomalyObserver::new(plan, rules, to_both)),
            dump,
            record_profile: keeping.record_profile,
            text: scene.text.clone(),
            records,
        })
    }
    /// Those who want something, in the order in which they see a step.
    pub fn all(&mut self) -> Vec<&mut dyn Observer> {
        let mut all: Vec<&mut dyn Observer> = Vec::new();
        if !self.trace.is_empty() {
            all.push(&mut self.trace);
        }
        all.extend(self.candidates.as_mut().map(|o| o as &mut dyn Observer));
        all.extend(self.pictures.iter_mut().flat_map(Pictures::observers));
        all.extend(self.probes.as_mut().map(|o| o as &mut dyn Observer));
        all.extend(self.lens.as_mut().map(|o| o as &mut dyn Observer));
        all.extend(self.anomalies.as_mut().map(|o| o as &mut dyn Observer));
        all.extend(self.dump.as_mut().map(|o| o as &mut dyn Observer));
        all
    }
    /// Tells what is known when a run is over: the lens.
    ///
    /// # Errors
    /// What the executor reports.
    pub async fn after(&self, executor: &impl Executor) -> Result<()> {
        let Some(lens) = &self.lens else { return Ok(()) };
        let records = lens::read(executor, lens.inputs(), LENS_TOP, self.text.as_ref()).await?;
        records.into_iter().map(Record::Lens).try_for_each(|record| {
            self.records.picture(&record);
            self.records.keep(&record)
        })
    }
    /// What the rules found.
    pub fn findings(&self) -> &[Finding] {
        self.anomalies.as_ref().map(AnomalyObserver::findings).unwrap_or_default()
    }
    /// The dump as a file's bytes, with `about` in its metadata.
    ///
    /// # Errors
    /// `Kind::Io` when it cannot be written, which memory always can.
    pub fn dump(&self, about: &[(&str, String)]) -> Result<Option<Vec<u8>>> {
        let Some(dump) = &self.dump else { return Ok(None) };
        let about: Vec<(&str, &str)> = about.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut bytes = Vec::new();
        dump.write(&mut bytes, &about).map_err(|e| Error::io("dump", e))?;
        Ok(Some(bytes))
    }
    /// The profile of this run, if one was wanted; else, for a run that was not healthy, why there is none.
    pub fn profile(&self, model: &str) -> Option<std::result::Result<Value, String>> {
        let anomalies = self.anomalies.as_ref().filter(|_| self.record_profile)?;
        let bad = anomalies.findings().iter().map(|f| f.kind).find(|kind| NEVER.contains(kind));
        let read = |text: String| serde_json::from_str(&text).map_err(|e| format!("the profile of this run is no JSON: {e}"));
        Some(match bad {
            Some(kind) => Err(format!("there is no profile: a run with {kind} is no healthy one")),
            None => read(anomalies.profile().to_json(model)),
        })
    }
}

/// A profile of `model`.
fn read(profile: &Value, model: &str) -> Result<Profile> {
    let (profile, of) = Profile::from_json(&profile.to_string(), "profile")?;
    if of != model {
        return Err(Error::invalid("profile", format!("it is one of the model {of}, but this is {model}; record one of this model")));
    }
    Ok(profile)
}
