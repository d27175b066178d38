//! The thread of one model: it loads the model, reserves room for its sequences, and computes what the queue has. Executors
//! stay in their thread; jobs, ids and words cross. It knows no HTTP.

use super::Args;
use super::batch::{Batch, Event, Job};
use super::embed::{self, Embedding};
use super::metrics::{self, Metrics};
use super::watched::{self, Watched};
use crate::device::Engine;
use crate::end;
use crate::terminal::tell;
use crate::{device, load};
use doppler::config::runtime::Inference;
use doppler::exec::{Executor, Sequences};
use doppler::inference::sampling::SamplingConfig;
use doppler::inference::words::{Words, session_options};
use doppler::model::GenerationRules;
use doppler::{Error, Kind, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// Positions of a sequence where neither `--context` nor the model says fewer.
const CONTEXT: usize = 4096;

/// A model that is served.
pub struct Hosted {
    pub id: String,
    pub words: Words,
    /// Elements of a token's final hidden state.
    pub width: usize,
    /// Rows of its head.
    pub vocab: usize,
    /// What a request's sampling is where it does not say.
    pub sampling: SamplingConfig,
    pub rules: GenerationRules,
    /// Sequences at a time; positions of each.
    pub room: Sequences,
    /// Most bytes of a text that fit.
    pub most_bytes: Option<u64>,
    /// When it was loaded, in seconds of Unix time.
    pub created: u64,
    /// Device and storage, in words.
    pub device: String,
    pub metrics: Metrics,
    queue: Sender<Work>,
    /// Jobs that wait.
    waiting: AtomicUsize,
    /// Jobs that may wait.
    most_waiting: usize,
    /// What is wrong with its device, if anything is.
    broken: Mutex<Option<String>>,
    ended: AtomicBool,
}

/// What a thread is asked.
pub enum Work {
    Job(Box<Job>),
    /// A run alone, watched.
    Watched(Box<Watched>),
    /// Hidden states of texts, one after the other.
    Embedding(Box<Embedding>),
    End,
}

impl Work {
    /// Whether nobody waits for it.
    fn is_gone(&self) -> bool {
        match self {
            Self::Job(job) => job.client.is_gone(),
            Self::Watched(watched) => watched.client.is_gone(),
            Self::Embedding(embedding) => embedding.to.is_closed(),
            Self::End => true,
        }
    }
}

/// Why work was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full.
    Full,
    /// It never has room for so many.
    Many,
    /// The thread ended.
    Gone,
}

impl Hosted {
    /// Puts all of `work` into the queue, or none.
    ///
    /// # Errors
    /// Why not.
    pub fn submit(&self, work: Vec<Work>) -> Result<(), Refusal> {
        let count = work.len();
        if count > self.most_waiting {
            return Err(Refusal::Many);
        }
        if self.waiting.fetch_add(count, Ordering::SeqCst) + count > self.most_waiting {
            self.waiting.fetch_sub(count, Ordering::SeqCst);
            return Err(Refusal::Full);
        }
        work.into_iter().try_for_each(|work| self.queue.send(work)).map_err(|_| Refusal::Gone)
    }
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
    pub fn most_waiting(&self) -> usize {
        self.most_waiting
    }
    /// What is wrong with it, if anything is.
    pub fn trouble(&self) -> Option<String> {
        if self.ended.load(Ordering::SeqCst) {
            return Some("its thread ended".into());
        }
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Asks the thread to end.
    pub fn end(&self) {
        let _ = self.queue.send(Work::End);
    }
}

/// Says, however a thread ends, that it did.
struct EndNote<'a>(&'a Hosted);

impl Drop for EndNote<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

/// Loads the model that `spec` names in a thread of its own, which then works.
///
/// # Errors
/// What opening and loading report.
pub fn start(spec: String, args: Arc<Args>, inference: Inference) -> Result<(Arc<Hosted>, JoinHandle<()>)> {
    let (ready, loaded) = mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("model {spec}"));
    let work = move || match open(&spec, &args, &inference) {
        Ok((engine, hosted, jobs)) => {
            let _note = EndNote(&hosted);
            if ready.send(Ok(hosted.clone())).is_ok() {
                work(engine, &hosted, &jobs, !args.no_prefix_cache);
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    };
    let thread = thread.spawn(work).map_err(|e| Error::io("a thread", e))?;
    let hosted = loaded.recv().map_err(|_| match end::bug() {
        end::Stop::Failed(error) => error,
        end::Stop::Closed => Error::io("a thread", "it ended"),
    })??;
    Ok((hosted, thread))
}

/// Opens and loads a model, and reserves its room.
fn open(spec: &str, args: &Args, inference: &Inference) -> Result<(Engine, Arc<Hosted>, Receiver<Work>)> {
    let mut model = args.allow.open(spec)?;
    model.files.check_texts()?;
    let words = model.needed_words("an API of texts needs one")?;
    let context = inference.kvcache.max_tokens.unwrap_or_else(|| model.plan.max_positions.min(CONTEXT));
    model.limit(Some(context)).map_err(|e| e.within(spec))?;
    let device = device::open(&args.machine, inference)?;
    // A run that is watched has room of its own.
    let room = Sequences { count: args.sequences, capacity: context, chunk: doppler::settings::chunk(inference, context) };
    let all = Sequences { count: room.count + usize::from(args.allow_debug), ..room };
    let prepared = load::prepare_for(&model, device, inference, all).map_err(|e| match e.kind {
        Kind::Memory => Error { message: format!("{} (or fewer --sequences, or a smaller --context)", e.message), ..e },
        _ => e,
    })?;
    model.notes(Some(&words), &[]).iter().for_each(|note| tell(&format!("note: {spec}: {note}")));
    let (engine, _) = prepared.load(false)?;
    engine.reserve(all)?;
    let (queue, jobs) = mpsc::channel();
    let sampling = doppler::settings::sampling(&inference.sampling);
    let hosted = Hosted {
        id: model.name.clone(),
        width: embed::width(&model.plan),
        vocab: session_options(Some(&words), model.plan.vocab_size, context, room.chunk).valid_vocab,
        rules: model.rules(&sampling),
        sampling,
        room,
        most_bytes: words.tokenizer.most_bytes(context),
        words,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        device: engine.describe(),
        metrics: Metrics::default(),
        queue,
        waiting: AtomicUsize::new(0),
        most_waiting: args.queue,
        broken: Mutex::new(None),
        ended: AtomicBool::new(false),
    };
    Ok((engine, Arc::new(hosted), jobs))
}

/// Computes what comes until it is told to end.
fn work(mut engine: Engine, hosted: &Hosted, jobs: &Receiver<Work>, shares: bool) {
    let mut batch = Batch::new(hosted.room, hosted.vocab, shares);
    let mut waiting: VecDeque<Work> = VecDeque::new();
    loop {
        if batch.is_empty() && waiting.is_empty() {
            let Ok(work) = jobs.recv() else { return };
            waiting.push_back(work);
        }
        waiting.extend(jobs.try_iter());
        if waiting.iter().any(|work| matches!(work, Work::End)) {
            return;
        }
        let before = waiting.len();
        waiting.retain(|work| !work.is_gone());
        hosted.waiting.fetch_sub(before - waiting.len(), Ordering::SeqCst);
        while !batch.is_full()
            && let Some(work) = waiting.pop_front()
        {
            hosted.waiting.fetch_sub(1, Ordering::SeqCst);
            match work {
                Work::Job(job) => batch.begin(&engine, *job),
                Work::Watched(watched) => {
                    batch.make_place();
                    let ran = watched::changed(&mut engine, &watched).and_then(|()| watched::run(&engine, hosted, &watched));
                    ran.unwrap_or_else(|e| watched.client.send(Event::Failed(e)));
                    // Nobody else may have what was changed.
                    if let Err(error) = watched::restored(&mut engine, &watched) {
                        tell(&format!("Error {}: a request's changes cannot be taken back: {error}", hosted.id));
                        return;
                    }
                    break;
                }
                Work::Embedding(mut embedding) => {
                    batch.make_place();
                    // Others have their turn before its next text.
                    if embed::next(&engine, hosted.room, &mut embedding) {
                        hosted.waiting.fetch_add(1, Ordering::SeqCst);
                        waiting.push_back(Work::Embedding(embedding));
                    }
                    break;
                }
                Work::End => return,
            }
        }
        let stepped = batch.step(&engine);
        if let Err(error) = &stepped {
            tell(&format!("Error {}: {error}", hosted.id));
        }
        *hosted.broken.lock().unwrap_or_else(PoisonError::into_inner) =
            stepped.err().filter(|error| error.kind == Kind::Device).map(|error| error.message);
        let (running, positions) = batch.load();
        metrics::set(&hosted.metrics.running, running);
        metrics::set(&hosted.metrics.positions, positions);
    }
}
