//! From the ids that a request's jobs give to its answers: text as it comes, stop texts, what is told of tokens, why each answer
//! ended. Whoever drops this ends the jobs.

use super::batch::{Client, Event, Job, Likelihood, Token};
use super::metrics;
use super::problem::Problem;
use super::request::Ask;
use super::stops::Stops;
use super::watched::Watched;
use super::worker::{Hosted, Refusal, Work};
use axum::http::StatusCode;
use doppler::inference::session::StopReason;
use doppler::inference::tokenizer::TextStream;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// Seconds after which a client may try again that found the queue full.
const RETRY_SECONDS: u32 = 2;

/// The answers to one request, as they come.
pub struct Answers {
    hosted: Arc<Hosted>,
    events: UnboundedReceiver<(usize, Event)>,
    choices: Vec<Choice>,
    pub prompt_tokens: usize,
    /// Answers to each prompt.
    n: usize,
    started: Instant,
    ended: bool,
}

struct Choice {
    stream: Option<TextStream>,
    stops: Stops,
    done: Arc<AtomicBool>,
    tokens: usize,
    /// Tokens of its prompt that another sequence had read.
    cached: usize,
    hash: Option<u64>,
    /// When its last token came.
    last: Option<Instant>,
    ended: bool,
}

/// What there is new of one of the answers.
#[derive(Debug, Default, PartialEq)]
pub struct Update {
    pub choice: usize,
    pub text: String,
    pub token: Option<TokenNote>,
    pub record: Option<Value>,
    pub end: Option<End>,
}

/// A token and how likely it was.
#[derive(Debug, PartialEq)]
pub struct TokenNote {
    pub id: u32,
    pub likelihood: Likelihood,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub reason: &'static str,
    pub hash: Option<u64>,
}

impl Answers {
    /// Puts what `ask` needs into the queue of `hosted`.
    ///
    /// # Errors
    /// A problem where the queue has no room.
    pub fn begin(hosted: &Arc<Hosted>, ask: Ask, hash: bool) -> Result<Self, Problem> {
        let (to, events) = mpsc::unbounded_channel();
        let (mut choices, mut work) = (Vec::new(), Vec::new());
        let prompt_tokens = ask.prompts.iter().map(Vec::len).sum();
        for prompt in &ask.prompts {
            for i in 0..ask.n {
                let done = Arc::<AtomicBool>::default();
                let client = Client { events: to.clone(), number: choices.len(), done: done.clone() };
                let stream = hosted.words.tokenizer.stream(prompt, true)?;
                choices.push(Choice {
                    stream: Some(stream),
                    stops: Stops::new(ask.stops.clone()),
                    done,
                    tokens: 0,
                    cached: 0,
                    hash: None,
                    last: None,
                    ended: false,
                });
                let mut sampling = ask.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(i as u64);
                let job = Job {
                    max_tokens: ask.most(prompt.len(), hosted.room.capacity),
                    prompt: prompt.clone(),
                    sampling,
                    rules: ask.rules.clone(),
                    stop_ids: hosted.words.tokenizer.eos().to_vec(),
                    hash,
                    alternatives: ask.alternatives,
                    client,
                };
                work.push(match &ask.watch {
                    Some(debug) => Work::Watched(Box::new(Watched { client: job.client.clone(), debug: debug.clone(), job })),
                    None => Work::Job(Box::new(job)),
                });
            }
        }
        let count = work.len();
        hosted.submit(work).map_err(|refusal| refused(hosted, &refusal, count))?;
        metrics::add(&hosted.metrics.prompt_tokens, prompt_tokens);
        Ok(Self { hosted: hosted.clone(), events, choices, prompt_tokens, n: ask.n, started: Instant::now(), ended: false })
    }
    /// How many answers there are.
    pub fn count(&self) -> usize {
        self.choices.len()
    }
    /// Tokens that were generated.
    pub fn tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens).sum()
    }
    /// Tokens of prompts that no answer had to read.
    pub fn cached_tokens(&self) -> usize {
        let of_prompt = |answers: &[Choice]| answers.iter().map(|choice| choice.cached).min().unwrap_or(0);
        self.choices.chunks(self.n.max(1)).map(of_prompt).sum()
    }
    /// What comes next; `None` when all answers ended. A future that is dropped loses nothing.
    pub async fn next(&mut self) -> Option<Result<Update, Problem>> {
        while !self.ended {
            let Some((choice, event)) = self.events.recv().await else {
                return Some(Err(self.fail(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the model's thread ended"))));
            };
            match self.take(choice, event) {
                Ok(Some(update)) => return Some(Ok(update)),
                Ok(None) => {}
                Err(problem) => return Some(Err(self.fail(problem))),
            }
        }
        None
    }
    fn fail(&mut self, problem: Problem) -> Problem {
        self.ended = true;
        metrics::add(&self.hosted.metrics.failed, 1);
        problem
    }
    /// What an event makes new.
    fn take(&mut self, number: usize, event: Event) -> Result<Option<Update>, Problem> {
        let (hosted, started) = (&self.hosted, self.started);
        let Some(choice) = self.choices.get_mut(number).filter(|choice| !choice.ended) else { return Ok(None) };
        let mut update = Update { choice: number, ..Update::default() };
        match event {
            Event::Prompt { tokens, cached } => {
                choice.cached = cached;
                metrics::add(&hosted.metrics.prefix_queries, tokens);
                metrics::add(&hosted.metrics.prefix_hits, cached);
                return Ok(None);
            }
            Event::Token(token) => {
                let now = Instant::now();
                match choice.last.replace(now) {
                    None => hosted.metrics.first_token.add(now - started),
                    Some(before) => hosted.metrics.next_token.add(now - before),
                }
                metrics::add(&hosted.metrics.generated_tokens, 1);
                choice.token(hosted, token, &mut update)?;
            }
            Event::Record(record) => update.record = Some(record),
            Event::End(reason) => choice.end(hosted, reason, &mut update)?,
            Event::Failed(error) => return Err(error.into()),
        }
        if self.choices.iter().all(|choice| choice.ended) {
            self.ended = true;
            metrics::add(&hosted.metrics.finished, 1);
            hosted.metrics.whole.add(started.elapsed());
        }
        Ok(Some(update))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if !self.ended {
            metrics::add(&self.hosted.metrics.left, 1);
        }
    }
}

impl Choice {
    fn token(&mut self, hosted: &Hosted, token: Token, update: &mut Update) -> Result<(), Problem> {
        (self.tokens, self.hash) = (self.tokens + 1, token.hash);
        let tokenizer = &hosted.words.tokenizer;
        // What ends an answer is no part of it.
        if tokenizer.is_eos(token.id) {
            return Ok(());
        }
        update.token = token.likelihood.map(|likelihood| TokenNote { id: token.id, likelihood });
        let piece = self.stream.as_mut().map(|stream| stream.push(tokenizer, token.id)).transpose()?;
        self.show(&piece.unwrap_or_default(), update);
        Ok(())
    }
    /// Adds a piece of text; ends the answer where a stop text is in it.
    fn show(&mut self, piece: &str, update: &mut Update) {
        let (text, stopped) = self.stops.push(piece);
        update.text += &text;
        if stopped {
            self.done.store(true, Ordering::Relaxed);
            self.ended = true;
            update.end = Some(End { reason: "stop", hash: self.hash });
        }
    }
    fn end(&mut self, hosted: &Hosted, reason: StopReason, update: &mut Update) -> Result<(), Problem> {
        if let Some(stream) = self.stream.take() {
            self.show(&stream.finish(&hosted.words.tokenizer)?, update);
        }
        if self.ended {
            return Ok(());
        }
        update.text += &self.stops.finish();
        self.ended = true;
        let reason = match reason {
            StopReason::Eos | StopReason::Interrupted => "stop",
            StopReason::MaxTokens | StopReason::Capacity => "length",
        };
        update.end = Some(End { reason, hash: self.hash });
        Ok(())
    }
}

/// What a client is told whose work the queue did not take.
pub fn refused(hosted: &Hosted, refusal: &Refusal, count: usize) -> Problem {
    metrics::add(&hosted.metrics.refused, 1);
    match refusal {
        Refusal::Full => {
            let text = format!("the queue of {} is full ({} wait): try again", hosted.id, hosted.waiting());
            Problem::new(StatusCode::TOO_MANY_REQUESTS, text).code("queue_full").retry(RETRY_SECONDS)
        }
        Refusal::Many => {
            let text =
                format!("{count} answers were asked for at once, and the queue has room for {}: ask for fewer", hosted.most_waiting());
            Problem::invalid(text).about("n")
        }
        Refusal::Gone => Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("the thread of {} ended", hosted.id)),
    }
}
