//! The front door of the crate: a model of this machine, opened, continued, talked to and looked into in a few lines. All of it
//! is made of the modules below (`open`, `engine`, `inference`, `debug`), which are there for whoever needs more. Calls wait
//! until they are done; what cannot wait, a page, has those modules.

use crate::config::{ResolveOptions, RuntimeConfig, runtime::Inference};
use crate::debug::interventions;
use crate::engine::{self, Device, Engine, Found};
use crate::error::{Error, Result};
use crate::exec::{Content, Editable, Executor, Observed, Observer, Request, Sequences, StepInfo, Want, match_requests};
use crate::inference::chat::{Clock, Message};
use crate::inference::sampling::SamplingConfig;
use crate::inference::session::{Event, GenerateOptions, Generated, Session, StopReason};
use crate::inference::words::{Chat, Words, session_options};
use crate::loader::load;
use crate::open::{CONVERSATION, Opened, Room, Weights, place};
use crate::plan::{At, Plan};
use crate::settings;
use crate::tensor::Tensor;
use pollster::block_on;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

/// How a model is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where it is computed.
    pub device: Device,
    /// How it is computed, as `runtime.inference` of a runtime config says it: storage, limits, context. Its sampling counts
    /// for nothing here; [`AnswerOptions`] has that.
    pub inference: Inference,
    /// Go on although config.json has keys that are not understood.
    pub allow_unknown: bool,
    /// Go on although the checkpoint has tensors that the model has no place for.
    pub allow_extra: bool,
    /// Bytes of memory that the model may need; `None` is as many as it takes.
    pub memory: Option<u64>,
}

impl OpenOptions {
    /// Everything as `doppler run` does it without options.
    ///
    /// # Errors
    /// None but those of a broken build: the defaults are a file of this crate.
    pub fn defaults() -> Result<Self> {
        let inference = RuntimeConfig::defaults()?.runtime.inference;
        Ok(Self { device: Device::Auto, inference, allow_unknown: false, allow_extra: false, memory: None })
    }
}

/// How an answer is made.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerOptions {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How tokens are chosen; the default takes the most likely one.
    pub sampling: SamplingConfig,
    /// The time that a chat template may show. Without it, a template that shows one is an error.
    pub now: Option<Clock>,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self { max_tokens: 512, sampling: SamplingConfig::default(), now: None }
    }
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text, without special tokens.
    pub text: String,
    /// Its ids, the end-of-sequence id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// A value of a run, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its name: `ffn_out` of layer 3 shows as `L3 ffn_out`, and is `layer.3.ffn_out` in a dump.
    pub at: At,
    /// One row for each token: [tokens, width]; attention scores and probabilities [heads, tokens, positions].
    pub tensor: Tensor,
}

/// What a closure that gets text may return: nothing, or whether to go on.
pub trait Flow {
    /// Whether to go on.
    fn flow(self) -> ControlFlow<()>;
}

impl Flow for () {
    fn flow(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Flow for ControlFlow<()> {
    fn flow(self) -> ControlFlow<()> {
        self
    }
}

/// A model on its device.
pub struct Model {
    opened: Opened,
    words: Option<Words>,
    engine: Engine,
    inference: Inference,
    notes: Vec<String>,
}

impl Model {
    /// Opens the model at `path` (a folder with config.json and *.safetensors, a folder with a manifest, or a GGUF file) and
    /// reads its weights onto the GPU or, where there is none, to the CPU oracle; [`Self::notes`] says so then.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Format` for files that are missing or malformed; `Kind::Config`, `Kind::Unsupported`, `Kind::Weights`
    /// for models that are not understood; `Kind::Memory` for those that do not fit; `Kind::Device`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, OpenOptions::defaults()?)
    }
    /// As [`Self::open`], as `options` say.
    ///
    /// # Errors
    /// As [`Self::open`]; `Kind::Device` also where a GPU is asked for and there is none; `Kind::Invalid` for a context longer
    /// than the model allows.
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        let OpenOptions { device, inference, allow_unknown, allow_extra, memory } = options;
        let mut opened = place::open(path.as_ref(), ResolveOptions { allow_unknown })?;
        opened.allow_extra = allow_extra;
        opened.limit(inference.kvcache.max_tokens)?;
        let words = opened.words()?;
        let Weights { checkpoint, matched } = block_on(opened.weights())?;
        let weights = Weights { checkpoint, matched };
        let mut notes = opened.notes(words.as_ref(), &weights.notes());

        let gpu = match block_on(engine::open(device, false, settings::gpu_options(&inference)))? {
            Found::Gpu(gpu) => Some(*gpu),
            Found::Cpu => None,
            Found::Software(name) => {
                notes.push(format!("{name} computes in software, slower than the CPU oracle, which runs (Device::Gpu takes the adapter)"));
                None
            }
            Found::NoAdapter => {
                notes.push("no GPU could be used, so the CPU oracle runs: exact, but slow (Device::Gpu says why)".into());
                None
            }
        };
        let buffer = gpu.as_ref().map(|gpu| gpu.caps.largest_buffer());
        let mut engine: Engine = Engine::new(gpu, opened.plan.clone(), inference.dtype)?;
        let capacity = opened.plan.max_positions.min(CONVERSATION);
        let sequences = Sequences::one(capacity, settings::chunk(&inference, capacity));
        Room { total: memory, buffer }.check(&weights.forecast(&opened.plan, sequences, engine.storage()))?;
        block_on(load(&opened.plan, &weights.checkpoint, &weights.matched, false, &mut engine, &mut |_| ()))?;
        Ok(Self { opened, words, engine, inference, notes })
    }
    /// Continues `prompt` as it stands. `on_text` gets each piece of text as soon as it is known, and may end the answer by
    /// returning `ControlFlow::Break(())`.
    ///
    /// # Errors
    /// `Kind::Invalid` for an empty prompt and one longer than the context, and for bad sampling; `Kind::Tokenizer` for a model
    /// without one; `Kind::Finding` where the model's logits are NaN; what the device reports.
    pub fn generate<F: Flow>(&self, prompt: &str, options: &AnswerOptions, on_text: impl FnMut(&str) -> F) -> Result<Answer> {
        self.answer(&self.ids(prompt)?, options, on_text)
    }
    /// Answers `messages`, oldest first, through the model's chat template. The rest is as for [`Self::generate`].
    ///
    /// # Errors
    /// As [`Self::generate`]; `Kind::Template` for a model without a template, one that refuses the messages, and one that shows
    /// the time where `options` have none.
    pub fn chat<F: Flow>(&self, messages: &[Message], options: &AnswerOptions, on_text: impl FnMut(&str) -> F) -> Result<Answer> {
        let words = self.words()?;
        let chat = Chat { messages: messages.to_vec(), ..Chat::default() };
        let at = |unix_seconds| words.chat(&chat, options.now.unwrap_or(Clock { unix_seconds, utc_offset: 0 }));
        // Two instants that share no part of a date.
        let ids = at(0)?;
        if ids != at(1_729_685_159)? {
            return Err(Error::template("this model's chat template shows the time, which the engine does not ask: give it as `now`"));
        }
        self.answer(&ids, options, on_text)
    }
    /// What the model computes while it reads `prompt`: the values that `stages` name (`logits`, `ffn_out`, `ffn_out@0,3-5`, or
    /// `all`), in the order of computation, each once. `doppler stages` lists the names; [`Self::plan`] has those of this model.
    ///
    /// # Errors
    /// `Kind::Invalid` for names and layers that the model lacks, naming the nearest; those of reading the prompt.
    pub fn observe(&self, prompt: &str, stages: &[&str]) -> Result<Vec<Value>> {
        self.observe_ids(&self.ids(prompt)?, stages)
    }
    /// As [`Self::observe`], of ids; no tokenizer is needed.
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub fn observe_ids(&self, ids: &[u32], stages: &[&str]) -> Result<Vec<Value>> {
        let mut taking = Taking { requests: requests(self.plan(), stages)?, values: Vec::new() };
        // In one step, so that every value is whole.
        let mut session = self.session(ids.len(), ids.len())?;
        let options = GenerateOptions { pipelined: self.engine.is_ahead(), ..GenerateOptions::default() };
        block_on(session.generate(ids, &options, Some(&mut taking), &mut |_| ControlFlow::Continue(())))?;
        Ok(taking.values)
    }
    /// Changes values while they are computed, in all calls that follow: `ffn_out@3=zero`, `layer_out@5,token=-1=scale:2`
    /// (docs/INTERVENTIONS.md). They take the place of those before; an empty list takes all back. Changes that read a file are
    /// for `interventions::set`.
    ///
    /// # Errors
    /// `Kind::Invalid` for texts that say nothing; `Kind::Plan` for what cannot be done to this model.
    pub fn set(&mut self, changes: &[&str]) -> Result<()> {
        let texts: Vec<String> = changes.iter().map(|text| (*text).to_string()).collect();
        let open = |file: &str| Err(Error::invalid("set", format!("{file}: changes that read a file are for `debug::interventions::set`")));
        let plan = block_on(interventions::set(&self.plan().unedited(), &texts, None, &open))?;
        self.engine.set_interventions(&plan.interventions())
    }
    /// The ids of `prompt` as it stands, with what the tokenizer adds.
    ///
    /// # Errors
    /// `Kind::Invalid` for an empty prompt; `Kind::Tokenizer` for a model without one.
    pub fn ids(&self, prompt: &str) -> Result<Vec<u32>> {
        self.words()?.raw(prompt)
    }
    /// Its tokenizer and chat template.
    ///
    /// # Errors
    /// `Kind::Tokenizer` for a model without one.
    pub fn words(&self) -> Result<&Words> {
        self.words.as_ref().ok_or_else(|| self.opened.without_words("give ids"))
    }
    /// What was dropped, changed or done otherwise than its files and the caller say, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
    /// What it computes: layers, stages, shapes.
    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }
    /// What is known of it: its name, its config with the source of every number.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }
    /// What computes it, for sessions and observers of one's own.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn session(&self, capacity: usize, chunk: usize) -> Result<Session<'_, Engine>> {
        let (rows, most) = (self.plan().vocab_size, self.plan().max_positions.max(1));
        Session::new(&self.engine, session_options(self.words.as_ref(), rows, capacity.clamp(1, most), chunk.clamp(1, most)))
    }
    fn answer<F: Flow>(&self, ids: &[u32], options: &AnswerOptions, mut on_text: impl FnMut(&str) -> F) -> Result<Answer> {
        let tokenizer = &self.words()?.tokenizer;
        let capacity = ids.len().saturating_add(options.max_tokens);
        let mut session = self.session(capacity, self.inference.prefill_chunk)?;
        let mut stream = tokenizer.stream(ids, true)?;
        let (mut text, mut failed) = (String::new(), None);
        let mut show = |piece: &str| {
            text.push_str(piece);
            if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(piece).flow() }
        };
        let on_event = &mut |event| match event {
            Event::Token(id) => match stream.push(tokenizer, id) {
                Ok(piece) => show(&piece),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            },
            Event::Prefill { .. } => ControlFlow::Continue(()),
        };
        let generation = GenerateOptions {
            max_tokens: options.max_tokens,
            sampling: options.sampling.clone(),
            stop_ids: tokenizer.eos(),
            hash_logits: false,
            rules: Some(&self.opened.rules(&options.sampling)),
            pipelined: self.engine.is_ahead(),
        };
        let Generated { ids: answer, mut stop, .. } = block_on(session.generate(ids, &generation, None, on_event))?;
        if let Some(failed) = failed {
            return Err(failed);
        }
        if show(&stream.finish(tokenizer)?).is_break() {
            stop = StopReason::Interrupted;
        }
        Ok(Answer { text, ids: answer, stop, prompt_tokens: ids.len() })
    }
}

/// What is wanted so that every value that `stages` name is seen whole.
fn requests(plan: &Plan, stages: &[&str]) -> Result<Vec<Request>> {
    let mut values = BTreeSet::new();
    for text in stages {
        match text.trim() {
            "all" => values.extend(plan.nodes.iter().map(|node| node.at)),
            text => values.extend(interventions::named(plan, text)?),
        }
    }
    if values.is_empty() {
        return Err(Error::invalid("stages", "expected at least one name, or `all`"));
    }
    let request = |at: At| Request { stage: at.stage, layers: at.layer.map(|layer| vec![layer]), want: Want::Full };
    let requests: Vec<Request> = values.into_iter().map(request).collect();
    match_requests(plan, &requests)?;
    Ok(requests)
}

/// Keeps whole values.
struct Taking {
    requests: Vec<Request>,
    values: Vec<Value>,
}

impl Observer for Taking {
    fn requests(&self, _: usize) -> Vec<Request> {
        self.requests.clone()
    }
    fn observe(&mut self, _: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        self.values.extend(values.into_iter().filter_map(|value| match value.content {
            Content::Full(tensor) => Some(Value { at: value.at, tensor }),
            Content::Stats(_) | Content::HeadStats(_) | Content::Gather(_) => None,
        }));
        Ok(())
    }
}
