//! What is seen of one run: everyone whom its runtime config and its caller ask to watch, in one list, and what is known
//! when it is over. A new thing to see is added here, for every face. Where records go and what the time is, the face says.

use crate::config::runtime::Debug;
use crate::debug::anomaly::{AnomalyObserver, AnomalyOptions, NEVER, Profile};
use crate::debug::categories::Categories;
use crate::debug::dump::DumpObserver;
#[cfg(not(target_arch = "wasm32"))]
use crate::debug::html::attention_maps;
use crate::debug::html::{Facts, Pictures, Report};
use crate::debug::lens::{self, LensObserver};
use crate::debug::lines::{Line, Times};
use crate::debug::logits_view::LogitsObserver;
use crate::debug::observers::Observers;
use crate::debug::probe::ProbeObserver;
use crate::debug::record::{Finding, Record, Sink, TokenText};
use crate::debug::trace::{TraceObserver, TraceOptions};
use crate::error::{Error, Result};
use crate::exec::{Executor, Observer};
use crate::gpu::Log;
use crate::gpu::StepLog;
use crate::inference::session::{Event, SessionOptions};
use crate::inference::words::Words;
use crate::loader::Progress;
use crate::model::Resolved;
use crate::plan::Plan;
use std::cell::RefCell;
use std::rc::Rc;

/// Alternatives of a layer in the lens.
const LENS_TOP: usize = 5;

/// What is kept of a run in addition to what its runtime config shows.
#[derive(Default)]
pub struct Keep {
    /// Draw a report.
    pub report: bool,
    /// Attention that the report shows.
    #[cfg(not(target_arch = "wasm32"))]
    pub attention: Option<DumpObserver>,
    /// Dump values.
    pub dump: Option<DumpObserver>,
    /// Judge by this profile of healthy runs.
    pub profile: Option<Profile>,
    /// Make a profile of this run.
    pub record_profile: bool,
    /// End the run at the first finding.
    pub stop: bool,
    /// Show so many alternatives of each chosen token; 0 for none.
    pub candidates: usize,
    /// Time dispatches, although no line shows that.
    pub times: bool,
}

/// The run that is seen.
#[derive(Clone)]
pub struct Scene<'a> {
    /// What is computed.
    pub plan: &'a Plan,
    /// The model's name.
    pub model: &'a str,
    /// Ids before the first generated one.
    pub prompt_end: usize,
    /// How the session was set up.
    pub session: SessionOptions,
    /// End-of-sequence ids.
    pub eos: &'a [u32],
    /// Texts of ids, where there is a tokenizer.
    pub text: Option<TokenText<'a>>,
}

/// Everyone who watches a run.
pub struct Watching<'a> {
    scene: Scene<'a>,
    categories: Categories,
    times: bool,
    record_profile: bool,
    trace: TraceObserver<'a>,
    candidates: Option<LogitsObserver<'a>>,
    pictures: Option<Pictures<'a>>,
    probes: Option<ProbeObserver<'a>>,
    lens: Option<LensObserver>,
    anomalies: Option<AnomalyObserver<'a>>,
    dump: Option<DumpObserver>,
    #[cfg(not(target_arch = "wasm32"))]
    attention: Option<DumpObserver>,
    report: Option<Rc<RefCell<Report>>>,
    lines: Sink<'a>,
    to_both: Sink<'a>,
}

impl<'a> Watching<'a> {
    /// Those whom `config` and `keep` ask for. Records go to `lines`.
    ///
    /// # Errors
    /// `Kind::Invalid` for categories, layers, stages, tokens and dims that the model or the prompt lacks; `Kind::Config`
    /// where the rules are off that a profile or a stop needs.
    pub fn new(config: &Debug, keep: Keep, scene: Scene<'a>, lines: Sink<'a>) -> Result<Self> {
        let Scene { plan, prompt_end, session, eos, .. } = scene;
        #[cfg(not(target_arch = "wasm32"))]
        let attention = keep.attention;
        let Keep { report, dump, profile, record_profile, stop, candidates, times, .. } = keep;
        if !config.anomalies.enabled && (stop || record_profile || profile.is_some()) {
            let message = "is false in this config, so there is nothing to stop at, to record or to judge by a profile";
            return Err(Error::config("runtime.debug.anomalies.enabled", message));
        }
        let text = || scene.text.clone();
        let report = report.then(Rc::<RefCell<Report>>::default);
        let picture = |report: Option<Rc<RefCell<Report>>>| move |record: &Record| report.iter().for_each(|r| r.borrow_mut().take(record));
        let (to_report, to_lines) = (picture(report.clone()), lines.clone());
        let to_both = Sink::new(move |record| {
            to_report(&record);
            to_lines.put(record)
        });
        let to_report = picture(report.clone());
        let to_report = Sink::new(move |record| {
            to_report(&record);
            Ok(())
        });

        let categories = Categories::of(&config.trace)?;
        let layers = config.trace.layers.clone().filter(|_| config.trace.enabled);
        let lens = categories.has("lens").then(|| LensObserver::new(plan, layers.as_deref(), prompt_end)).transpose()?;
        let options = TraceOptions { categories: categories.clone(), layers, prompt_end, text: text() };
        let probes = ProbeObserver::new(plan, &config.probes, prompt_end, to_both.clone())?;
        let rules = AnomalyOptions::of(&config.anomalies, prompt_end, session.valid_vocab, session.pad, eos);
        let rules = AnomalyOptions { profile, stop, ..rules };
        Ok(Self {
            trace: TraceObserver::new(plan, options, lines.clone())?,
            candidates: (candidates > 0).then(|| LogitsObserver::new(plan, prompt_end, candidates, text(), lines.clone())),
            pictures: report.as_ref().map(|_| Pictures::new(plan, prompt_end, text(), to_report)).transpose()?,
            probes: (!config.probes.is_empty()).then_some(probes),
            anomalies: config.anomalies.enabled.then(|| AnomalyObserver::new(plan, rules, to_both.clone())),
            scene,
            categories,
            times,
            record_profile,
            lens,
            dump,
            #[cfg(not(target_arch = "wasm32"))]
            attention,
            report,
            lines,
            to_both,
        })
    }
    /// Those who want something, in the order in which they see a step.
    pub fn observers(&mut self) -> Observers<'_> {
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
        #[cfg(not(target_arch = "wasm32"))]
        all.extend(self.attention.as_mut().map(|o| o as &mut dyn Observer));
        Observers::new(self.scene.plan, all)
    }
    /// Shows that a tensor was loaded, where that is traced.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn loading(&self, progress: &Progress<'_>) -> Result<()> {
        if self.categories.has("loader") { self.lines.put(Record::loading(progress)) } else { Ok(()) }
    }
    /// What shows dispatches.
    pub fn dispatches(&self) -> Dispatches<'a> {
        let (kernels, perf) = (self.categories.has("kernels"), self.categories.has("perf"));
        let (report, lines) = (self.report.clone(), self.lines.clone());
        Dispatches { kernels, perf, times: self.times, prompt_end: self.scene.prompt_end, report, lines }
    }
    /// Shows what is computed when a run is over: the lens.
    ///
    /// # Errors
    /// What the executor reports; those of the sink.
    pub async fn after(&self, executor: &impl Executor) -> Result<()> {
        let Some(lens) = &self.lens else { return Ok(()) };
        let records = lens::read(executor, lens.inputs(), LENS_TOP, self.scene.text.as_ref()).await?;
        records.into_iter().map(Record::Lens).try_for_each(|record| self.to_both.put(record))
    }
    /// What the rules found.
    pub fn findings(&self) -> &[Finding] {
        self.anomalies.as_ref().map(AnomalyObserver::findings).unwrap_or_default()
    }
    /// The line of a run that a finding ended: `error`.
    pub fn ended_by(&self, error: &Error) -> Line {
        match self.findings().is_empty() {
            true => Line::logits_anomaly(&error.message),
            false => Line::note(format!("nothing more was generated: {}", error.message)),
        }
    }
    /// The values that were dumped.
    pub fn dump(&self) -> Option<&DumpObserver> {
        self.dump.as_ref()
    }
    /// The profile of this run, if one was wanted; for a run that was not healthy, why there is none.
    pub fn profile(&self) -> Option<std::result::Result<Profile, String>> {
        let anomalies = self.anomalies.as_ref().filter(|_| self.record_profile)?;
        let bad = anomalies.findings().iter().map(|f| f.kind).find(|kind| NEVER.contains(kind));
        Some(match bad {
            Some(kind) => Err(format!("no profile is made: a run with {kind} is not a healthy one")),
            None => Ok(anomalies.profile()),
        })
    }
    /// The report as HTML, if one was wanted: facts and lines about the run, all `ids` of the sequence, the config.
    pub fn report(&self, about: (Facts, Vec<String>), ids: &[u32], resolved: &Resolved) -> Option<String> {
        let mut report = self.report.as_ref()?.borrow_mut();
        report.about(self.scene.model, about, (ids, self.scene.prompt_end), self.scene.text.as_ref(), resolved);
        #[cfg(not(target_arch = "wasm32"))]
        if let Some(seen) = &self.attention {
            report.attention = attention_maps(seen, &report.tokens);
        }
        Some(report.render())
    }
}

/// Dispatches and their times, as far as they are shown.
pub struct Dispatches<'a> {
    kernels: bool,
    perf: bool,
    times: bool,
    prompt_end: usize,
    report: Option<Rc<RefCell<Report>>>,
    lines: Sink<'a>,
}

impl Dispatches<'_> {
    /// What a device is to note, and what there is to say about that. `timestamps` says whether its adapter has them;
    /// `None` is the oracle.
    pub fn log(&self, timestamps: Option<bool>) -> (Log, Option<&'static str>) {
        let (timed, noted) = (self.perf || self.times, self.perf || self.times || self.kernels);
        match timestamps {
            None => (Log::Off, noted.then_some("the CPU oracle has no kernels to show or to time")),
            Some(true) if timed => (Log::Times, None),
            Some(false) if timed => (Log::Names, Some("this adapter has no timestamps, so kernels are not timed")),
            Some(_) if noted => (Log::Names, None),
            Some(_) => (Log::Off, None),
        }
    }
    /// Shows steps that are over.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn show(&self, steps: &[StepLog]) -> Result<()> {
        let put = |category: &str, lines: Vec<String>| lines.into_iter().try_for_each(|text| self.lines.put(Record::told(category, text)));
        if let Some(report) = &self.report {
            report.borrow_mut().timed(steps);
        }
        for step in steps {
            if self.kernels {
                put("kernels", step.kernel_lines(self.prompt_end))?;
            }
            if self.perf {
                put("perf", step.time_lines(self.prompt_end))?;
            }
        }
        Ok(())
    }
}

/// A profile of healthy runs of `model`, from the JSON `text` of what is called `name`.
///
/// # Errors
/// Those of `Profile::from_json`; `Kind::Invalid` for a profile of another model.
pub fn profile_of(model: &str, text: &str, name: &str) -> Result<Profile> {
    let (profile, of) = Profile::from_json(text, name)?;
    if of != model {
        let message = format!("a profile of the model {of}, but this is {model}; record one of this model");
        return Err(Error::invalid(name, message));
    }
    Ok(profile)
}

/// Texts of ids by the model's words.
pub fn token_text(words: &Words) -> TokenText<'_> {
    Rc::new(move |id| words.tokenizer.token_text(id))
}

/// Measures a generation by `clock`, in milliseconds.
pub struct Stopwatch<C> {
    clock: C,
    start: f64,
    prefilled: f64,
}

impl<C: Fn() -> f64> Stopwatch<C> {
    /// Starts.
    pub fn start(clock: C) -> Self {
        let start = clock();
        Self { clock, start, prefilled: start }
    }
    /// Takes note of an event of the generation.
    pub fn hear(&mut self, event: Event) {
        if matches!(event, Event::Prefill { done, total } if done == total) {
            self.prefilled = (self.clock)();
        }
    }
    /// Times until now.
    pub fn times(&self) -> Times {
        Times { prefill: self.prefilled - self.start, total: (self.clock)() - self.start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RuntimeConfig;
    use crate::debug::observers::wanting;
    use crate::inference::pipeline;
    use serde_json::json;
    use std::cell::Cell;

    fn debug(patch: serde_json::Value) -> Debug {
        RuntimeConfig::from_patch(json!({ "runtime": { "debug": patch } })).unwrap().runtime.debug
    }

    fn with<R>(config: &Debug, keep: Keep, look: impl FnOnce(Result<Watching<'_>>) -> R) -> R {
        let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        let session = SessionOptions { capacity: 8, chunk: 8, valid_vocab: plan.vocab_size, pad: None };
        let scene = Scene { plan: &plan, model: "tiny", prompt_end: 3, session, eos: &[], text: None };
        look(Watching::new(config, keep, scene, Sink::new(|_| Ok(()))))
    }

    #[test]
    fn nothing_is_wanted_where_nothing_is_asked_for() {
        let quiet = debug(json!({ "anomalies": { "enabled": false } }));
        let wants = |config: &Debug, keep| with(config, keep, |w| wanting(&mut w.unwrap().observers()).is_some());
        assert!(!wants(&quiet, Keep::default()));
        assert!(wants(&debug(json!({})), Keep::default()), "the rules are on by default");
        for keep in [Keep { report: true, ..Keep::default() }, Keep { candidates: 3, ..Keep::default() }] {
            assert!(wants(&quiet, keep));
        }
        let traced = debug(json!({ "anomalies": { "enabled": false }, "trace": { "enabled": true, "categories": ["lens"] } }));
        assert!(wants(&traced, Keep::default()));
    }

    #[test]
    fn rules_that_are_off_judge_nothing() {
        let quiet = debug(json!({ "anomalies": { "enabled": false } }));
        let kind = |keep| with(&quiet, keep, |w| w.map(|_| ()).unwrap_err().message);
        for keep in [Keep { stop: true, ..Keep::default() }, Keep { record_profile: true, ..Keep::default() }] {
            assert!(kind(keep).contains("runtime.debug.anomalies.enabled"));
        }
        with(&debug(json!({})), Keep { record_profile: true, report: true, ..Keep::default() }, |w| {
            let w = w.unwrap();
            assert!(w.findings().is_empty() && w.profile().is_some_and(|p| p.is_ok()) && w.dump().is_none());
            assert!(w.ended_by(&Error::finding("x")).to_string().starts_with("ANOMALY kind=non_finite_logits"));
        });
        assert!(profile_of("tiny", "{", "p.json").unwrap_err().message.contains("p.json"));
    }

    #[test]
    fn a_device_notes_what_is_shown() {
        let log = |categories: &[&str], times, timestamps| {
            let config = debug(json!({ "trace": { "enabled": true, "categories": categories } }));
            with(&config, Keep { times, ..Keep::default() }, |w| w.unwrap().dispatches().log(timestamps))
        };
        assert_eq!(log(&["attn"], false, Some(true)), (Log::Off, None));
        assert_eq!(log(&["kernels"], false, Some(false)), (Log::Names, None));
        assert_eq!(log(&["attn"], true, Some(true)), (Log::Times, None));
        assert!(matches!(log(&["perf"], false, Some(false)), (Log::Names, Some(note)) if note.contains("timestamps")));
        assert!(matches!(log(&["kernels"], false, None), (Log::Off, Some(note)) if note.contains("oracle")));
        assert_eq!(log(&["attn"], false, None), (Log::Off, None));
    }

    #[test]
    fn a_stopwatch_parts_the_prompt_from_the_rest() {
        let now = Cell::new(5.0);
        let mut watch = Stopwatch::start(|| now.get());
        for (at, event) in
            [(7.0, Event::Prefill { done: 1, total: 2 }), (9.0, Event::Prefill { done: 2, total: 2 }), (12.0, Event::Token(3))]
        {
            now.set(at);
            watch.hear(event);
        }
        assert_eq!(watch.times(), Times { prefill: 4.0, total: 7.0 });
    }
}
