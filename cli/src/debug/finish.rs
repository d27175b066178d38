//! The end of a `debug` run: values around what was found, a bundle, a profile, a report, and the last lines.

use super::generation::Generation;
use super::{Args, PROMPT};
use crate::end::{Ended, Stop};
use crate::kept::Loaded;
use crate::model::Model;
use crate::output;
use crate::settings::Settings;
use doppler::debug::anomaly::surroundings;
use doppler::debug::bundle;
use doppler::debug::dump::DumpObserver;
use doppler::debug::html::Facts;
use doppler::debug::lines::{Line, Times};
use doppler::debug::record::Finding;
use doppler::debug::watching::Watching;
use doppler::inference::session::{Generated, StopReason};
use doppler::inference::words::Words;
use doppler::{Error, Kind, Result};
use std::path::Path;

/// How a generation ended.
pub enum Ending {
    /// By itself.
    Whole((Generated, Times)),
    /// No token could be chosen, or `--break` ended it.
    Broken(Error),
}

/// A run that is over.
pub struct Finished<'a> {
    pub args: &'a Args,
    pub model: &'a Model,
    pub settings: &'a Settings,
    /// The `Config` line.
    pub config: &'a Line,
    pub loaded: &'a Loaded,
    pub generation: &'a Generation<'a>,
    /// The prompt's text, where one was given.
    pub text: Option<&'a str>,
    pub words: Option<&'a Words>,
}

impl Finished<'_> {
    /// Notes, files and the last lines.
    pub fn finish(&self, watching: &Watching<'_>, ending: Ending) -> Result<Ended, Stop> {
        let Self { args, model, loaded, generation, .. } = *self;
        let (lines, found) = (generation.lines, watching.findings());
        let mut notes = Vec::new();
        if let (Some(path), Some(first)) = (&args.watch.break_at, found.first()) {
            notes.push(self.dump_around(path, first)?);
        }
        notes.extend(args.watch.write_profile(watching, &model.name)?);
        let mut all = generation.ids.to_vec();
        let (mut last, mut hash) = (Vec::new(), None);
        let ended = match &ending {
            Ending::Broken(error) => {
                last.push(watching.ended_by(error));
                Ended::Finding
            }
            Ending::Whole((generated, times)) => {
                notes.extend(generated.notes.clone());
                all.extend(&generated.ids);
                hash = generated.logits_hash;
                let text = self.words.map(|words| words.after(generation.ids, &generated.ids)).transpose()?;
                last.push(Line::Output { text, input_ids: generation.ids.to_vec(), ids: generated.ids.clone() });
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
        if let (Some(path), false) = (&args.bundle, ended == Ended::Interrupted) {
            notes.push(self.write_bundle(path, found, &notes, hash)?);
        }
        let notes: Vec<Line> = notes.into_iter().map(Line::note).collect();
        let weights: Vec<Line> = loaded.non_finite.iter().map(Line::weights_anomaly).collect();
        let shown = std::iter::once(self.config).chain(&weights).chain(&notes).chain(&last).map(Line::to_string).collect();
        args.watch.write_report(watching.report((self.facts(), shown), &all, &model.resolved).as_deref())?;
        for line in notes.iter().chain(&last) {
            lines.put(line)?;
        }
        Ok(ended)
    }
    /// The command, the time, the model, the prompt.
    fn facts(&self) -> Facts {
        let Self { args, generation, text, .. } = *self;
        let ids = || format!("ids {:?}", generation.ids);
        let asked = match (text, &args.token_ids) {
            (Some(text), _) => text.to_string(),
            (None, None) if args.chat.messages.is_none() => PROMPT.to_string(),
            _ => ids(),
        };
        let mut facts = output::facts();
        facts.extend([("Model", args.model.model.clone()), ("Prompt", asked)]);
        facts
    }
    /// Runs again up to the step of `finding` and writes the values around it; what was done, in words.
    fn dump_around(&self, path: &Path, finding: &Finding) -> Result<String> {
        let plan = &self.model.plan;
        let Some(at) = finding.at else { return Ok(format!("{} is about tokens: there are no values around it to write", finding.kind)) };
        let around = surroundings(plan, at);
        let mut dump = DumpObserver::of(plan, &around)?;
        self.rerun(finding.step + 1, &mut dump)?;
        dump.finish(path, &self.config.metadata())?;
        let names: Vec<String> = around.iter().map(|at| at.key()).collect();
        Ok(format!("stopped at the first anomaly; the values around it are in {}: {}", path.display(), names.join(" ")))
    }
    /// Writes everything that repeating this run takes, and the values around the first finding; what was done, in words.
    fn write_bundle(&self, path: &Path, found: &[Finding], notes: &[String], logits_hash: Option<u64>) -> Result<String> {
        let (args, generation, engine) = (self.args, self.generation, &self.loaded.engine);
        let values = bundle::values(&self.model.plan, found.iter().find_map(|f| f.at));
        let mut dump = DumpObserver::of(&self.model.plan, &values)?;
        self.rerun(generation.max_tokens, &mut dump)?;
        let contents = crate::bundle::contents(&crate::bundle::Told {
            model: self.model,
            allow_unknown_config: args.model.allow.allow_unknown_config,
            runtime: &self.settings.runtime,
            prompt: self.text.or_else(|| (args.token_ids.is_none() && args.chat.messages.is_none()).then_some(PROMPT)),
            session: generation.session,
            max_tokens: generation.max_tokens,
            stop_ids: generation.stop_ids,
            rules: generation.rules,
            engine,
            logits_hash,
            notes,
            findings: found.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect(),
        })?;
        contents.finish(&dump, path)?;
        Ok(format!("replay bundle written to {}; `doppler compare replay {0}` repeats this run elsewhere", path.display()))
    }
    /// The same run with another observer, for at most `max_tokens` tokens.
    fn rerun(&self, max_tokens: usize, observer: &mut DumpObserver) -> Result<()> {
        let again = Generation { max_tokens: max_tokens.min(self.generation.max_tokens), ..*self.generation };
        match again.run(self.loaded, observer) {
            Err(error) if error.kind != Kind::Finding => Err(error),
            _ => Ok(()),
        }
    }
}
