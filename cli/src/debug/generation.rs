//! One generation of `debug`, on whatever device the model is.

use crate::interrupt;
use crate::kept::Loaded;
use crate::output::Lines;
use doppler::Result;
use doppler::config::runtime::Inference;
use doppler::debug::lines::Times;
use doppler::debug::observers::wanting;
use doppler::debug::watching::Stopwatch;
use doppler::exec::Observer;
use doppler::inference::session::{Event, GenerateOptions, Generated, Session, SessionOptions};
use pollster::block_on;
use std::ops::ControlFlow;
use std::time::Instant;

/// One generation.
#[derive(Clone, Copy)]
pub struct Generation<'a> {
    pub ids: &'a [u32],
    /// How its session is set up.
    pub session: SessionOptions,
    /// Ids that end it; none for raw runs.
    pub stop_ids: &'a [u32],
    pub max_tokens: usize,
    /// Steps are started early: not on the oracle, which computes while it starts one.
    pub pipelined: bool,
    pub inference: &'a Inference,
    pub lines: &'a Lines,
}

impl Generation<'_> {
    /// Generates, watched by `observer`.
    ///
    /// # Errors
    /// What the session reports.
    pub fn run(&self, loaded: &Loaded, observer: &mut dyn Observer) -> Result<(Generated, Times)> {
        let stop_ids = self.stop_ids;
        let sampling = doppler::settings::sampling(&self.inference.sampling);
        let generate = GenerateOptions { max_tokens: self.max_tokens, sampling, stop_ids, hash_logits: true, pipelined: self.pipelined };
        let mut session = Session::new(&loaded.engine, self.session)?;
        let _guard = interrupt::guard();
        let start = Instant::now();
        let mut watch = Stopwatch::start(|| start.elapsed().as_secs_f64() * 1e3);
        let mut on_event = |event: Event| {
            watch.hear(event);
            // Lines come out step by step. Where nobody reads them, nobody waits for more.
            let unread = self.lines.step().is_err();
            if unread || interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generated = block_on(session.generate(self.ids, &generate, wanting(observer), &mut on_event))?;
        Ok((generated, watch.times()))
    }
}
