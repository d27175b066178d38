//! Comparing in a page: a dump with a run of its tokens on the model that is there, or two dumps. Floors are measured by
//! the oracles where the weights fit into this module's memory; they are then read again, through the same files.

use crate::host::{Task, thrown};
use crate::loaded::{BAND_BYTES, Loaded, announce};
use crate::wrappers::{Pauses, Sliced, still_wanted};
use doppler::debug::compare::run::{Measured, Tokens, align_run, storage_of, worth_keeping};
use doppler::debug::compare::{Align, Choice, Floors, Report, align, cumulative, html, isolated, judge_unobserved, text};
use doppler::debug::dump::Dump;
use doppler::debug::floor::Oracles;
use doppler::exec::{Executor, Storage, WeightSink};
use doppler::forecast::size;
use doppler::formats::InMemory;
use doppler::loader::{NonFinite, Progress, load_in_bands};
use doppler::plan::{At, Stage, WeightId};
use doppler::quant::Format;
use doppler::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use wasm_bindgen::prelude::*;

/// Stored weights up to which floors are measured unasked, in bytes: seconds for a short prompt.
const SMALL: u64 = 64 << 20;
/// What weights and dumps may take together, in bytes: a module has 4 GiB at most.
const MOST: u64 = 3 << 30;
/// Tokens that an oracle reads in one go, without letting messages in.
const CHUNK: usize = 8;

/// How to compare.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    /// What to call A, or A and B; null for what they say themselves.
    names: [Option<String>; 2],
    stages: Option<Vec<String>>,
    layers: Option<Vec<usize>>,
    /// Show every value in the text.
    all: bool,
    /// Each op on the values of the dump.
    isolated: bool,
    /// Without what follows the dump's prompt.
    prompt_only: bool,
    floor: Option<Floor>,
}

/// Where floors come from.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum Floor {
    Measured,
    Dumps,
}

impl Request {
    fn read(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| Error::invalid("compare", e))
    }
    fn choice(&self) -> Result<Choice> {
        let stages = self.stages.iter().flatten().map(|name| Stage::parse(name.trim())).collect::<Result<Vec<Stage>>>()?;
        Ok(Choice { stages: (!stages.is_empty()).then_some(stages), layers: self.layers.clone() })
    }
    /// The name of side `i`.
    fn name(&self, i: usize, dump: &Dump) -> String {
        let of_metadata = || dump.metadata.get("model").map_or("a dump".to_string(), |model| format!("a dump of {model}"));
        self.names[i].clone().unwrap_or_else(of_metadata)
    }
    /// What the page gets, as JSON.
    fn answer(&self, mut report: Report, non_finite: &[NonFinite]) -> Result<String> {
        report.note_weights(non_finite);
        let (report, differs) = (&report, report.finding() || !non_finite.is_empty());
        let twin = serde_json::to_value(report).map_err(|e| Error::invalid("report", e))?;
        Ok(json!({ "differs": differs, "text": text(report, self.all), "html": html(report, &[]), "report": twin }).to_string())
    }
}

fn opened(name: &str, bytes: Vec<u8>) -> Result<Dump> {
    Dump::read(InMemory::new(name, bytes))
}

/// Compares two dumps; what was found, as JSON.
///
/// # Errors
/// What the engine reports, as an `Error` whose name is the kind.
#[wasm_bindgen]
pub fn compare_dumps(a: Vec<u8>, b: Vec<u8>, request: String) -> std::result::Result<String, JsValue> {
    two_dumps(a, b, &request).map_err(|e| thrown(&e))
}

fn two_dumps(a: Vec<u8>, b: Vec<u8>, request: &str) -> Result<String> {
    let request = Request::read(request)?;
    let (a, b) = (opened("A", a)?, opened("B", b)?);
    let names = [request.name(0, &a), request.name(1, &b)];
    let aligned = align(&a, &b, names, None, &request.choice()?)?;
    request.answer(cumulative(&a, &b, &aligned, Floors::Brought, None, &mut |_, _| {})?, &[])
}

/// Compares a dump with a run of its tokens; what was found, as JSON.
///
/// # Errors
/// `Kind::Memory` for floors that cannot be measured here; those of the comparison.
pub async fn with_run(loaded: &Loaded, dump: Vec<u8>, request: &str, task: &Task) -> Result<String> {
    let request = Request::read(request)?;
    let choice = request.choice()?;
    let a = opened("dump", dump)?;
    let name = format!("{} on {}", loaded.opened.name, loaded.executor.describe());
    let names = [request.name(0, &a), name];
    let pauses = Pauses::new(task);
    let work = Work { loaded, request: &request, choice, pauses: &pauses, task };
    let report = if request.isolated { work.alone(&a, names).await? } else { work.free(&a, names).await? };
    request.answer(report, &loaded.non_finite)
}

/// A comparison under way.
struct Work<'w> {
    loaded: &'w Loaded,
    request: &'w Request,
    choice: Choice,
    pauses: &'w Pauses<'w>,
    task: &'w Task,
}

impl Work<'_> {
    fn sliced<'e, E>(&'e self, inner: &'e E) -> Sliced<'e, E> {
        Sliced { inner, pauses: self.pauses }
    }
    fn tell(&self, what: &str, done: usize, of: usize) {
        self.task.progress(what, done as f64, of as f64);
    }
    /// Each op on the values of `a`.
    async fn alone(&self, a: &Dump, names: [String; 2]) -> Result<Report> {
        if self.request.floor == Some(Floor::Dumps) {
            return Err(Error::invalid("floor", "the floor of single ops is always measured"));
        }
        fits(self.loaded.weights.matched.bytes(), 0)?;
        let oracles = self.oracles(&[storage_of(a)?, self.loaded.executor.storage()]).await?;
        let executor = self.sliced(&self.loaded.executor);
        isolated(a, &executor, &oracles, names, &self.choice, &mut |done, of| self.tell("comparing ops", done, of)).await
    }
    /// What a run of the tokens of `a` computes.
    async fn free(&self, a: &Dump, names: [String; 2]) -> Result<Report> {
        let (plan, executor) = (self.loaded.plan(), &self.loaded.executor);
        let tokens = Tokens::of(a, self.request.prompt_only)?;
        let kept = worth_keeping(a, &self.choice);
        let storages = [storage_of(a)?, executor.storage()];
        let values = tokens.bytes(plan, &kept);
        // What is being written is there twice.
        fits(0, values.saturating_mul(2))?;
        // The run, the oracle in f64 and two in f32 for each storage.
        let runs = if storages[0] == storages[1] { 4 } else { 6 };
        let unmeasured = self.unmeasured(values.saturating_mul(runs + 1))?;
        let chunk = self.loaded.inference.prefill_chunk;
        let name = names[1].clone();
        let tell = &mut |done, of| self.tell("running the model", done, of);
        let b = tokens.record(&self.sliced(executor), chunk, &kept, &name, tell).await?;
        let judged = self.choice.has(At { stage: Stage::LogitsFinal, layer: None });
        let tell = &mut |done, of| self.tell("running the model, unwatched", done, of);
        let unwatched = if judged { Some(tokens.unobserved(&self.sliced(executor), chunk, tell).await?) } else { None };
        let mut aligned = align_run(a, &b, names, plan, &self.choice)?;
        let comparing = &mut |done, of| self.tell("comparing", done, of);
        if let Some(note) = unmeasured {
            aligned.notes.extend(note);
            let report = cumulative(a, &b, &aligned, Floors::Brought, Some(plan), comparing)?;
            let Some(run) = unwatched else { return Ok(report) };
            return judge_unobserved(report, run.as_ref(), a, &aligned, Floors::Brought, None, plan);
        }
        let measured = self.measured([a, &b], &mut aligned, &storages).await?;
        let report = measured.judge([a, &b], &aligned, plan, comparing)?;
        let Some(run) = unwatched else { return Ok(report) };
        measured.judge_unobserved(report, run.as_ref(), a, &aligned, plan)
    }
    async fn measured(&self, sides: [&Dump; 2], aligned: &mut Align, storages: &[Storage]) -> Result<Measured> {
        let oracles = self.oracles(storages).await?;
        let exact = self.sliced(&oracles.exact);
        let rounded: Vec<_> = oracles.rounded.iter().map(|oracle| self.sliced(oracle)).collect();
        let tell = &mut |what: &str, done, of| self.tell(what, done, of);
        Measured::new((&exact, &rounded), sides, aligned, &self.choice, CHUNK, tell).await
    }
    /// `None` where floors are to be measured; else what there is to say about it.
    fn unmeasured(&self, values: u64) -> Result<Option<Option<String>>> {
        let weights = self.loaded.weights.matched.bytes();
        let note = match (self.request.floor, fits(weights, values)) {
            (Some(Floor::Dumps), _) => None,
            (Some(Floor::Measured), fits) => return fits.map(|()| None),
            (None, _) if weights > SMALL => Some(format!(
                "floors are not measured: unasked they are up to {} of weights, and these are {} (ask with floor: \"measured\")",
                size(SMALL),
                size(weights)
            )),
            (None, Ok(())) => return Ok(None),
            (None, Err(error)) => Some(format!("floors are not measured: {}", error.message)),
        };
        Ok(Some(note))
    }
    /// Oracles with the model's weights, read again.
    async fn oracles(&self, storages: &[Storage]) -> Result<Oracles> {
        let Loaded { weights, files, .. } = self.loaded;
        let mut oracles = Oracles::new(self.loaded.plan(), storages)?;
        announce(weights, files);
        let task = self.task;
        let tell = &mut |p: Progress<'_>| task.progress("reading weights", p.bytes_done as f64, p.bytes_total as f64);
        let mut sink = Wanted { oracles: &mut oracles, task };
        load_in_bands(self.loaded.plan(), &weights.checkpoint, &weights.matched, false, BAND_BYTES, &mut sink, tell).await?;
        Ok(oracles)
    }
}

/// Whether an oracle's weights and the values of runs fit into memory together.
fn fits(weights: u64, values: u64) -> Result<()> {
    if weights.saturating_add(values) <= MOST {
        return Ok(());
    }
    let oracle = if weights > 0 { format!("the oracle needs {} of weights beside ", size(weights)) } else { String::new() };
    Err(Error::memory(format!(
        "{oracle}{} of values, but a page has {} for them; choose fewer stages or layers, leave out what was generated, \
         take the floors from the dumps (floor: \"dumps\"), or compare natively",
        size(values),
        size(MOST)
    )))
}

/// Oracles that take weights as long as the page wants the task.
struct Wanted<'w> {
    oracles: &'w mut Oracles,
    task: &'w Task,
}

impl WeightSink for Wanted<'_> {
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        still_wanted(self.task)?;
        self.oracles.put(id, format, first_row, bytes)
    }
}
