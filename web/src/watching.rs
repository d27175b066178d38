//! What a page asks to see of a generation, and its records on the way there, each as its JSON twin with its line under
//! `line`.

use crate::host::now;
use doppler::debug::dump::DumpObserver;
use doppler::debug::record::Record;
use doppler::debug::watching::{Keep, profile_of};
use doppler::plan::Plan;
use doppler::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::cell::RefCell;

/// What a generation is to keep in addition to the records of the runtime config.
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

impl Keeping {
    /// As the engine takes it, of a run of `plan`, which is that of `model`.
    ///
    /// # Errors
    /// `Kind::Invalid` for stages and layers that the model lacks and for a profile of another; `Kind::Format` for what is
    /// not a profile.
    pub fn keep(&self, plan: &Plan, model: &str) -> Result<Keep> {
        let dump = self.dump.as_ref();
        let dump = dump.map(|d| DumpObserver::new(plan, d.stages.iter().map(String::as_str), d.layers.as_deref())).transpose()?;
        let profile = self.profile.as_ref().map(|profile| profile_of(model, &profile.to_string(), "profile")).transpose()?;
        let Self { report, record_profile, candidates, .. } = *self;
        Ok(Keep { report, dump, profile, record_profile, candidates, ..Keep::default() })
    }
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
    /// What was kept, as a JSON array; `None` for nothing.
    pub fn take(&self) -> Option<String> {
        let records = self.waiting.take();
        (!records.is_empty()).then(|| format!("[{}]", records.join(",")))
    }
}
