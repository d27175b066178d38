//! The end of a `debug` run: values around what was found, a bundle, a profile, a report, and the last lines.

use super::task::Task;
use super::{About, Args, PROMPT};
use crate::end::{Ended, Stop};
use crate::kept::Loaded;
use crate::model::Model;
use crate::seeing::{ReportRun, Seeing, Watchers};
use crate::settings::Settings;
use doppler::debug::anomaly::surroundings;
use doppler::debug::bundle;
use doppler::debug::dump::DumpObserver;
use doppler::debug::lines::{Line, Times};
use doppler::debug::record::Finding;
use doppler::inference::session::{Generated, StopReason};
use doppler::inference::words::Words;
use doppler::{Error, Kind, Result};
use std::path::Path;
use std::rc::Rc;

/// How a generation ended.
pub enum Ending {
    /// By itself.
    Whole((Generated, Times)),
    /// No token could be chosen, or `--break` ended it.
    Broken(Error),
}

/// A run that is over.
pub struct Run<'a> {
    pub args: &'a Args,
    pub model: &'a Model,
    pub settings: &'a Settings,
    pub seeing: &'a Seeing<'a>,
    pub loaded: &'a Loaded,
    pub task: &'a Task<'a>,
    pub text: Option<&'a Rc<Words>>,
    pub about: &'a About,
}

impl Run<'_> {
    /// Notes, files and the last lines.
    pub fn end(&self, watchers: &Watchers<'_>, found: &[Finding], ending: Ending) -> Result<Ended, Stop> {
        let Self { model, seeing, loaded, task, text, about, .. } = *self;
        let lines = task.lines;
        let mut notes = Vec::new();
        if let (Some(path), Some(first)) = (seeing.break_at(), found.first()) {
            notes.push(self.surround(path, first)?);
        }
        notes.extend(seeing.record_profile(watchers, &model.name)?);
        let mut all = task.ids.to_vec();
        let (mut last, mut hash) = (Vec::new(), None);
        let ended = match &ending {
            Ending::Broken(error) => {
                if found.is_empty() {
                    last.push(Line::logits_anomaly(&error.message));
                } else {
                    notes.push(format!("nothing more was generated: {}", error.message));
                }
                Ended::Finding
            }
            Ending::Whole((generated, times)) => {
                notes.extend(generated.notes.clone());
                all.extend(&generated.ids);
                hash = generated.logits_hash;
                let shown = text.map(|text| text.after(task.ids, &generated.ids)).transpose()?;
                last.push(Line::Output { text: shown, input_ids: task.ids.to_vec(), ids: generated.ids.clone() });
                last.push(Line::done(generated, *times));
                if generated.stop == StopReason::Capacity {
                    notes.push("the context is full: no more tokens fit (--context, or the model's own)".into());
                }
                match generated.stop {
                    StopReason::Interrupted => Ended::Interrupted,
                    _ if !found.is_empty() || !loaded.non_finite.is_empty() => Ended::Finding,
                    _ => Ended::Fine,
                }
            }
        };
        if let (Some(path), false) = (&self.args.bundle, ended == Ended::Interrupted) {
            notes.push(self.pack(path, found, &notes, hash)?);
        }
        let notes: Vec<Line> = notes.into_iter().map(Line::note).collect();
        if seeing.has_report() {
            let weights: Vec<Line> = loaded.non_finite.iter().map(Line::weights_anomaly).collect();
            let told = std::iter::once(&about.line).chain(&weights).chain(&notes).chain(&last);
            let told: Vec<String> = told.map(Line::to_string).collect();
            let (prompt, resolved) = (task.ids.len(), &model.resolved);
            seeing.write_report(&ReportRun { model: &model.name, lines: &told, ids: &all, prompt, text, resolved })?;
        }
        for line in notes.iter().chain(&last) {
            lines.put(line)?;
        }
        Ok(ended)
    }
    /// Runs again up to the step of `finding` and writes the values around it; what was done, in words.
    fn surround(&self, path: &Path, finding: &Finding) -> Result<String> {
        let plan = &self.model.plan;
        let Some(at) = finding.at else { return Ok(format!("{} is about tokens: there are no values around it to write", finding.kind)) };
        let around = surroundings(plan, at);
        let mut dump = DumpObserver::of(plan, &around)?;
        self.again(finding.step + 1, &mut dump)?;
        dump.finish(path, &self.about.metadata())?;
        let names: Vec<String> = around.iter().map(|at| at.key()).collect();
        Ok(format!("stopped at the first anomaly; the values around it are in {}: {}", path.display(), names.join(" ")))
    }
    /// Writes everything that repeating this run takes, and the values around the first finding; what was done, in words.
    fn pack(&self, path: &Path, found: &[Finding], notes: &[String], logits_hash: Option<u64>) -> Result<String> {
        let (args, task, engine) = (self.args, self.task, &self.loaded.engine);
        let values = bundle::values(&self.model.plan, found.iter().find_map(|f| f.at));
        let mut dump = DumpObserver::of(&self.model.plan, &values)?;
        self.again(task.max_tokens, &mut dump)?;
        let contents = crate::bundle::contents(&crate::bundle::Told {
            model: self.model,
            allow_unknown_config: args.model.allow_unknown_config,
            runtime: &self.settings.runtime,
            prompt: args.token_ids.is_none().then(|| args.prompt.as_deref().unwrap_or(PROMPT)),
            session: task.session,
            max_tokens: task.max_tokens,
            stop_ids: task.stop_ids,
            engine,
            logits_hash,
            notes,
            findings: found.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect(),
        })?;
        contents.finish(&dump, path)?;
        Ok(format!("replay bundle written to {}; `doppler compare --replay {0}` repeats this run elsewhere", path.display()))
    }
    /// The same run with another observer, for at most `max_tokens` tokens.
    fn again(&self, max_tokens: usize, observer: &mut DumpObserver) -> Result<()> {
        let again = Task { max_tokens: max_tokens.min(self.task.max_tokens), ..*self.task };
        match again.on(self.loaded, observer) {
            Err(error) if error.kind != Kind::Finding => Err(error),
            _ => Ok(()),
        }
    }
}
