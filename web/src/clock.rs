//! Times of a generation.

use crate::host::now;
use doppler::debug::lines::Times;
use doppler::inference::session::Event;

/// One that runs since it was made.
pub struct Clock {
    start: f64,
    prefilled: f64,
}

impl Clock {
    /// One that starts now.
    pub fn new() -> Self {
        let start = now();
        Self { start, prefilled: start }
    }
    /// Takes note of an event.
    pub fn hear(&mut self, event: Event) {
        if matches!(event, Event::Prefill { done, total } if done == total) {
            self.prefilled = now();
        }
    }
    /// How long it took until now.
    pub fn times(&self) -> Times {
        Times { prefill: self.prefilled - self.start, total: now() - self.start }
    }
}
