//! How a report is filled: the observers that collect its pictures, and the facts of the run that are added when it is over.

use super::{ConfigRow, Facts, KernelTime, Report, TokenCell};
use crate::debug::categories::Categories;
use crate::debug::logits_view::LogitsObserver;
use crate::debug::record::{Sink, TokenText};
use crate::debug::trace::{TraceObserver, TraceOptions};
use crate::error::Result;
use crate::exec::Observer;
use crate::gpu::StepLog;
use crate::model::Resolved;
use crate::plan::Plan;

/// Alternatives of a chosen token.
const TOP: usize = 10;

/// Watches what every report shows: statistics of every value, and the alternatives of the chosen tokens. Probes, findings
/// and the lens come from whoever was asked for them.
pub struct Pictures<'a> {
    values: TraceObserver<'a>,
    tokens: LogitsObserver<'a>,
}

impl<'a> Pictures<'a> {
    /// Of one prompt of `prompt` tokens and its decode steps. Records go to `sink`, which hands them to `Report::take`.
    ///
    /// # Errors
    /// Those of `TraceObserver::new`.
    pub fn new(plan: &Plan, prompt: usize, text: Option<TokenText<'a>>, sink: Sink<'a>) -> Result<Self> {
        let categories = Categories::parse(["all"])?;
        let options = TraceOptions { categories, layers: None, prompt_end: prompt, text: text.clone() };
        Ok(Self { values: TraceObserver::new(plan, options, sink.clone())?, tokens: LogitsObserver::new(plan, prompt, TOP, text, sink) })
    }
    /// Those who see the steps.
    pub fn observers(&mut self) -> [&mut dyn Observer; 2] {
        [&mut self.values, &mut self.tokens]
    }
}

impl Report {
    /// Adds the times of steps, where they were timed.
    pub fn timed(&mut self, steps: &[StepLog]) {
        for sum in StepLog::sums(steps) {
            match self.times.iter_mut().find(|known| known.kernel == sum.kernel && known.stage == sum.stage) {
                Some(known) => (known.count, known.nanoseconds) = (known.count + sum.count, known.nanoseconds + sum.nanoseconds),
                None => {
                    let (kernel, stage, count, nanoseconds) = (sum.kernel, sum.stage, sum.count, sum.nanoseconds);
                    self.times.push(KernelTime { kernel, stage, count, nanoseconds });
                }
            }
        }
    }
    /// Sets what was run: the model, facts and lines about the run, the sequence `ids` of which `prompt` are the prompt, and
    /// the config with its sources.
    pub fn about(
        &mut self,
        title: &str,
        (facts, lines): (Facts, Vec<String>),
        (ids, prompt): (&[u32], usize),
        text: Option<&TokenText<'_>>,
        config: &Resolved,
    ) {
        self.facts = facts;
        let cell = |(i, id): (usize, &u32)| TokenCell { id: *id, text: text.map(|text| text(*id)), generated: i >= prompt };
        let rows = config.sources.iter();
        self.title = title.into();
        self.lines = lines;
        self.tokens = ids.iter().enumerate().map(cell).collect();
        self.config =
            rows.map(|(name, value, source)| ConfigRow { name: name.clone(), value: value.clone(), source: source.to_string() }).collect();
    }
}
