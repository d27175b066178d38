//! From a model's files to a model that is understood: its config and plan, its words, where its weights are, what it
//! needs in memory. Every face opens models here. It takes texts and sources; what lies at a path, `place` knows.

mod gguf;
pub mod manifest;
#[cfg(not(target_arch = "wasm32"))]
pub mod place;

pub use gguf::{open_gguf, tensor_names};
pub use manifest::open_manifest;

use crate::config::{ResolveOptions, resolve};
use crate::error::{Error, Result};
use crate::exec::{Sequences, Storage};
use crate::forecast::{Forecast, forecast};
use crate::formats::{ByteSource, Local};
use crate::inference::pipeline;
use crate::inference::sampling::SamplingConfig;
use crate::inference::words::Words;
use crate::loader::{Checkpoint, Matched, ModelFiles, check_claim, match_slots};
use crate::model::{GenerationRules, Resolved};
use crate::plan::Plan;

/// Positions for which a conversation begins with room, if nothing else is said; it grows from there.
pub const CONVERSATION: usize = 4096;

/// A model that is understood. Its weights are not looked for yet.
#[derive(Debug, Clone)]
pub struct Opened<S = Local> {
    /// Name for people.
    pub name: String,
    /// Its files.
    pub files: ModelFiles<S>,
    /// Its config with the source of every number.
    pub resolved: Resolved,
    /// What it computes.
    pub plan: Plan,
    /// Tensors that the model has no place for are passed over with a note.
    pub allow_extra: bool,
}

impl<S: ByteSource + Clone> Opened<S> {
    /// Understands the config in `files`.
    ///
    /// # Errors
    /// Those of `config::resolve` and `pipeline::build`, with the model's place in front.
    pub fn new(name: String, files: ModelFiles<S>, options: ResolveOptions) -> Result<Self> {
        let within = |e: Error| e.within(files.path.display());
        let mut resolved = resolve(&files.texts.config, files.texts.generation_config.as_deref(), options).map_err(within)?;
        if let Some(gguf) = &files.gguf {
            gguf.amend(&mut resolved);
        }
        if files.manifest.is_some() {
            manifest::amend(&mut resolved);
        }
        let plan = pipeline::build(&resolved.config).map_err(within)?;
        Ok(Self { name, files, resolved, plan, allow_extra: false })
    }
    /// Limits sequences to `context` positions; `None` leaves what the model allows.
    ///
    /// # Errors
    /// `Kind::Invalid` for more than the model was made for.
    pub fn limit(&mut self, context: Option<usize>) -> Result<()> {
        let (most, context) = (self.plan.max_positions, context.unwrap_or(self.plan.max_positions));
        if context > most {
            return Err(Error::invalid("context", format!("the model was made for {most} positions, {context} were asked for")));
        }
        self.plan.max_positions = context;
        Ok(())
    }
    /// Its tokenizer and chat template; `None` if it has no tokenizer.
    ///
    /// # Errors
    /// Those of `Words::read`, with the model's place in front.
    pub fn words(&self) -> Result<Option<Words>> {
        let words = match &self.files.gguf {
            Some(gguf) => Words::of_gguf(&gguf.header.metadata),
            None => Words::read(&self.files.texts, &self.resolved.config),
        };
        words.map_err(|e| e.within(self.files.path.display()))
    }
    /// As [`Self::words`], for what cannot be done without; `hint` says what to do instead.
    ///
    /// # Errors
    /// Those of [`Self::words`]; `Kind::Tokenizer` if it has no tokenizer.
    pub fn needed_words(&self, hint: &str) -> Result<Words> {
        self.words()?.ok_or_else(|| self.without_words(hint))
    }
    /// The error for a model without a tokenizer; `hint` says what to do instead.
    pub fn without_words(&self, hint: &str) -> Error {
        let place = self.files.path.display();
        let other = self.files.other_tokenizer.as_ref().map(|other| format!("; {other}")).unwrap_or_default();
        Error::tokenizer(format!("{place}: no tokenizer.json, so text cannot be read or written; {hint}{other}"))
    }
    /// Reads the headers of its weight files and finds each weight of the plan.
    ///
    /// # Errors
    /// Those of `Checkpoint::open`, `check_claim` and `match_slots`; `Kind::Weights` where only its texts were read.
    pub async fn weights(&self) -> Result<Weights<S>> {
        let ModelFiles { path, sources, shards, gguf, manifest, .. } = &self.files;
        if sources.is_empty() {
            return Err(Error::weights(format!("{}: only the config was read", path.display())));
        }
        let checkpoint = match (gguf, manifest) {
            (Some(gguf), _) => gguf.checkpoint(sources)?,
            (_, Some(manifest)) => Checkpoint::of_index(sources.clone(), manifest.index()?),
            _ => Checkpoint::open(sources.clone(), shards.as_ref()).await?,
        };
        let leftover = check_claim(self.resolved.quantised.as_ref(), &checkpoint.index).map_err(|e| e.within(path.display()))?;
        let matched = match_slots(&self.plan, &self.resolved.config.tensors, &checkpoint.index, self.allow_extra);
        let mut matched = matched.map_err(|e| e.within(path.display()))?;
        matched.notes.extend(leftover);
        Ok(Weights { checkpoint, matched })
    }
    /// What its files say of the choice of tokens, where it is followed: not in runs over bare ids. A penalty that the caller
    /// asks for takes the place of the model's.
    pub fn rules(&self, sampling: &SamplingConfig) -> GenerationRules {
        let mut rules = self.resolved.generation.clone();
        if sampling.repeat_penalty != 1.0 {
            rules.repetition_penalty = None;
        }
        rules
    }
    /// What was dropped, changed or done otherwise than its files say, a sentence each; of its words, and `of_weights`, too,
    /// as far as they were read.
    pub fn notes(&self, words: Option<&Words>, of_weights: &[String]) -> Vec<String> {
        let mut notes = [&self.files.notes[..], &self.resolved.notes].concat();
        notes.extend(self.resolved.generation_note.clone());
        notes.extend(words.into_iter().flat_map(Words::notes));
        notes.extend_from_slice(of_weights);
        // In order, each once.
        let mut seen = std::collections::BTreeSet::new();
        notes.retain(|note| seen.insert(note.clone()));
        notes
    }
}

/// Where a model's weights are.
#[derive(Debug, Clone)]
pub struct Weights<S = Local> {
    /// The files and their tensors.
    pub checkpoint: Checkpoint<S>,
    /// The place of each weight of the plan.
    pub matched: Matched,
}

impl<S> Weights<S> {
    /// Types of the stored weights, in words: `bf16`, `f16+f32`.
    pub fn types(&self) -> String {
        let mut types = self.matched.formats();
        types.sort_unstable();
        types.dedup();
        types.iter().map(|format| format.name()).collect::<Vec<_>>().join("+")
    }
    /// What `plan` will need for `sequences`.
    pub fn forecast(&self, plan: &Plan, sequences: Sequences, storage: Storage) -> Forecast {
        forecast(plan, &self.matched.formats(), sequences, storage)
    }
    /// What of the files is not used as they say, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        [&self.checkpoint.notes[..], &self.matched.notes].concat()
    }
}

/// What is known of the memory that a device can give, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Room {
    /// In all.
    pub total: Option<u64>,
    /// For one buffer.
    pub buffer: Option<u64>,
}

impl Room {
    /// Refuses what cannot fit, as far as that is known.
    ///
    /// # Errors
    /// `Kind::Memory` with the forecast.
    pub fn check(&self, needed: &Forecast) -> Result<()> {
        self.total.map_or(Ok(()), |total| needed.check(total))?;
        self.buffer.map_or(Ok(()), |buffer| needed.check_buffers(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use pollster::block_on;

    fn opened() -> Opened {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gemma2");
        let files = crate::loader::open_directory(std::path::Path::new(folder)).unwrap();
        Opened::new("gemma2".into(), files, ResolveOptions::default()).unwrap()
    }

    #[test]
    fn a_folder_is_understood_and_its_weights_are_found() {
        let mut opened = opened();
        let weights = block_on(opened.weights()).unwrap();
        assert_eq!((weights.types().as_str(), weights.matched.weights.len()), ("bf16", opened.plan.weights.len()));
        assert!(opened.words().unwrap().is_some_and(|words| words.template().is_some()));
        let needed = weights.forecast(&opened.plan, Sequences::one(16, 16), Storage::F32);
        assert_eq!(needed.sequences, Sequences::one(16, 16));
        let room = |total, buffer| Room { total, buffer }.check(&needed).map_err(|e| e.kind);
        assert_eq!((room(None, None), room(Some(1), None), room(None, Some(1))), (Ok(()), Err(Kind::Memory), Err(Kind::Memory)));

        let most = opened.plan.max_positions;
        assert_eq!(opened.limit(Some(most + 1)).unwrap_err().kind, Kind::Invalid);
        opened.limit(Some(7)).unwrap();
        opened.limit(None).unwrap();
        assert_eq!(opened.plan.max_positions, 7);
    }

    #[test]
    fn notes_come_once_and_texts_alone_have_no_weights() {
        let mut opened = opened();
        opened.files.notes = ["b", "a", "b"].map(String::from).to_vec();
        assert_eq!(opened.notes(None, &[]), ["b", "a"]);
        opened.files.sources.clear();
        assert!(block_on(opened.weights()).unwrap_err().message.contains("only the config was read"));
        opened.files.texts.tokenizer = None;
        assert!(opened.words().unwrap().is_none() && opened.without_words("x").message.contains("gemma2: no tokenizer.json"));
    }
}
