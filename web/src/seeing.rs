//! What is seen of one generation: the observers that `doppler debug` has too, and their records on the way to the
//! page, each as its JSON twin with its line under `line`.

use crate::host::now;
use doppler::config::runtime::Debug;
use doppler::debug::anomaly::{AnomalyObserver, AnomalyOptions, Finding};
use doppler::debug::categories::Categories;
use doppler::debug::dump::DumpObserver;
use doppler::debug::lens::{self, LensObserver};
use doppler::debug::probe::ProbeObserver;
use doppler::debug::record::{Record, Sink, TokenText};
use doppler::debug::trace::{TraceObserver, TraceOptions};
use doppler::exec::{Executor, Observer};
use doppler::plan::Plan;
use doppler::{Error, Result};
use serde::Deserialize;
use std::cell::RefCell;

/// Alternatives of a layer in the lens.
const LENS_TOP: usize = 5;

/// What a dump is to hold.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dump {
    stages: Vec<String>,
    layers: Option<Vec<usize>>,
}

/// The run that is seen.
pub struct Scene<'a> {
    pub plan: &'a Plan,
    /// Ids before the first generated one.
    pub prompt_end: usize,
    /// Ids from here on are padding.
    pub valid_vocab: usize,
    /// PAD, where it must not win.
    pub pad: Option<u32>,
    pub text: Option<TokenText<'a>>,
}

/// Records that the page has not got yet.
pub struct Records {
    start: f64,
    waiting: RefCell<Vec<String>>,
}

impl Records {
    /// None yet; lines count milliseconds from now on.
    pub fn new() -> Self {
        Self { start: now(), waiting: RefCell::default() }
    }
    /// Keeps a record.
    ///
    /// # Errors
    /// `Kind::Invalid` if it has no JSON.
    fn keep(&self, record: &Record) -> Result<()> {
        let line = serde_json::Value::from(record.line(now() - self.start));
        let twin = serde_json::to_string(record).map_err(|e| Error::invalid("record", e))?;
        let twin = twin.strip_suffix('}').unwrap_or(&twin);
        self.waiting.borrow_mut().push(format!("{twin},\"line\":{line}}}"));
        Ok(())
    }
    /// What was kept, as a JSON array; `None` for nothing.
    pub fn take(&self) -> Option<String> {
        let records = self.waiting.take();
        (!records.is_empty()).then(|| format!("[{}]", records.join(",")))
    }
}

/// Everyone who watches a generation.
pub struct Watchers<'a> {
    trace: TraceObserver<'a>,
    probes: Option<ProbeObserver<'a>>,
    lens: Option<LensObserver>,
    anomalies: Option<AnomalyObserver<'a>>,
    dump: Option<DumpObserver>,
    text: Option<TokenText<'a>>,
    records: &'a Records,
    /// What was asked for and is not shown here.
    pub notes: Vec<String>,
}

impl<'a> Watchers<'a> {
    /// Those whom `config` and `dump` ask for.
    ///
    /// # Errors
    /// `Kind::Invalid` for categories, layers, stages, tokens and dims that there are not.
    pub fn new(config: &Debug, dump: Option<&Dump>, scene: Scene<'a>, records: &'a Records) -> Result<Self> {
        let Scene { plan, prompt_end, valid_vocab, pad, text } = scene;
        let sink = Sink::new(|record| records.keep(&record));
        let categories = Categories::of(&config.trace)?;
        let layers = config.trace.layers.clone().filter(|_| config.trace.enabled);
        let unseen: Vec<&str> = ["kernels", "perf"].into_iter().filter(|name| categories.has(name)).collect();
        let notes = if unseen.is_empty() { vec![] } else { vec![format!("not shown in browsers: {}", unseen.join(", "))] };
        let lens = categories.has("lens").then(|| LensObserver::new(plan, layers.as_deref(), prompt_end)).transpose()?;
        let options = TraceOptions { categories, layers, prompt_end, text: text.clone() };
        let anomalies = &config.anomalies;
        let rules = AnomalyOptions {
            pad,
            factor: anomalies.factor,
            profile_factor: anomalies.profile_factor,
            repetitions: anomalies.repetitions,
            ..AnomalyOptions::new(prompt_end, valid_vocab)
        };
        let probes = ProbeObserver::new(plan, &config.probes, prompt_end, sink.clone())?;
        let dump = dump.map(|d| DumpObserver::new(plan, d.stages.iter().map(String::as_str), d.layers.as_deref())).transpose()?;
        Ok(Self {
            trace: TraceObserver::new(plan, options, sink.clone())?,
            probes: (!config.probes.is_empty()).then_some(probes),
            lens,
            anomalies: anomalies.enabled.then(|| AnomalyObserver::new(plan, rules, sink)),
            dump,
            text,
            records,
            notes,
        })
    }
    /// Those who want something, in the order in which they see a step.
    pub fn all(&mut self) -> Vec<&mut dyn Observer> {
        let mut all: Vec<&mut dyn Observer> = Vec::new();
        if !self.trace.is_empty() {
            all.push(&mut self.trace);
        }
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
        records.into_iter().try_for_each(|record| self.records.keep(&Record::Lens(record)))
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
}
