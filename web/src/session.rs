//! A session's jobs, one after the other: each a prompt, what is wanted of it, and a page that is told as it happens.

use crate::host::{Job, Jobs, clock, now};
use crate::loaded::Loaded;
use crate::watching::{Keeping, Records};
use crate::wrappers::Logged;
use doppler::config::RuntimeConfig;
use doppler::debug::lines::Line;
use doppler::debug::observers::wanting;
use doppler::debug::record::Sink;
use doppler::debug::watching::{Scene, Stopwatch, Watching, token_text};
use doppler::gpu::Log;
use doppler::inference::session::{Event, GenerateOptions, Session, SessionOptions};
use doppler::inference::tokenizer::TextStream;
use doppler::inference::words::{Chat, session_options};
use doppler::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use wasm_bindgen::JsCast;

/// How a session is opened.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Opening {
    /// Positions to make room for at first; null is what the first job needs.
    capacity: Option<usize>,
    /// Nothing is masked, no id ends a generation.
    raw: bool,
}

/// One generation.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    prompt: Prompt,
    max_tokens: usize,
    /// Whether to hash the logits.
    hash: bool,
    /// What to keep of it.
    keeping: Keeping,
    /// A patch of the runtime config: sampling, and what to see.
    runtime: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Prompt {
    /// To be continued as it stands.
    Text(String),
    /// Likewise.
    Ids(Vec<u32>),
    /// A whole conversation, in place of what the session held.
    Chat(Chat),
}

/// Opens a session and does its jobs until there are no more.
///
/// # Errors
/// What opening it reports. What jobs report, they report themselves.
pub async fn serve(loaded: &Loaded, options: &str, jobs: &Jobs) -> Result<()> {
    let opening: Opening = serde_json::from_str(options).map_err(|e| Error::invalid("session", e))?;
    let logged = Logged::new(&loaded.executor);
    let open = |capacity: usize| {
        let words = loaded.words.as_ref().filter(|_| !opening.raw);
        let chunk = doppler::settings::chunk(&loaded.inference, capacity);
        let options = session_options(words, loaded.plan().vocab_size, capacity, chunk);
        Ok::<_, Error>((Session::new(&logged, options)?, options))
    };
    let mut session = opening.capacity.map(open).transpose()?;
    jobs.opened();
    while let Ok(next) = jobs.next().await {
        if !next.is_object() {
            break;
        }
        let job: Job = next.unchecked_into();
        let mut files = Made::default();
        let done = async {
            let request: Request = serde_json::from_str(&job.request()).map_err(|e| Error::invalid("request", e))?;
            let before = session.as_ref().map_or(&[][..], |(session, _)| session.ids());
            let ids = prompt(loaded, &request.prompt, before)?;
            let needed = ids.len().saturating_add(request.max_tokens).clamp(1, loaded.plan().max_positions);
            let (session, options) = match &mut session {
                Some(known) => known,
                absent => absent.insert(open(needed)?),
            };
            let generation = Generation { loaded, request: &request, options: *options, raw: opening.raw, job: &job, logged: &logged };
            generation.perform(session, ids, &mut files).await
        };
        let done = done.await;
        let Made { dump, report } = files;
        match done {
            Ok(text) => job.finished(&text.to_string(), dump, report),
            Err(error) => job.failed(&error.kind.name(), &error.message, dump, report),
        }
    }
    Ok(())
}

/// What a text, ids or a conversation are for this model, as a JSON array of `{ id, text }`: what a run would read.
/// `request` is JSON; without a tokenizer, texts of ids are null.
///
/// # Errors
/// `Kind::Tokenizer` and `Kind::Template` where the model has neither; `Kind::Invalid` for an empty text or an id that
/// the model has not.
pub fn tokens(loaded: &Loaded, request: &str) -> Result<Value> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Asked {
        prompt: Prompt,
    }
    let Asked { prompt: asked } = serde_json::from_str(request).map_err(|e| Error::invalid("request", e))?;
    let ids = prompt(loaded, &asked, &[])?;
    let rows = loaded.plan().vocab_size;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(Error::invalid("prompt", format!("id {id} is not below the vocabulary's size, {rows}")));
    }
    let text = |id: u32| loaded.words.as_ref().map(|words| words.tokenizer.token_text(id));
    Ok(ids.into_iter().map(|id| json!({ "id": id, "text": text(id) })).collect())
}

/// Ids of a prompt that follows `before`; all of them for a conversation.
fn prompt(loaded: &Loaded, prompt: &Prompt, before: &[u32]) -> Result<Vec<u32>> {
    let not_empty = |text: &str| match text.is_empty() && before.is_empty() {
        true => Err(Error::invalid("prompt", "it is empty")),
        false => Ok(()),
    };
    match prompt {
        Prompt::Ids(ids) => Ok(ids.clone()),
        Prompt::Text(text) => not_empty(text).and_then(|()| loaded.words()?.tokenizer.encode(text, before.is_empty())),
        Prompt::Chat(chat) => loaded.words()?.chat(chat, clock()),
    }
}

/// One job of a session.
struct Generation<'a> {
    loaded: &'a Loaded,
    request: &'a Request,
    options: SessionOptions,
    raw: bool,
    job: &'a Job,
    logged: &'a Logged<'a>,
}

/// Files that a generation made.
#[derive(Default)]
struct Made {
    dump: Option<Vec<u8>>,
    report: Option<String>,
}

impl Generation<'_> {
    /// Generates; what there is to tell in the end.
    async fn perform(&self, session: &mut Session<'_, Logged<'_>>, ids: Vec<u32>, files: &mut Made) -> Result<Value> {
        let Self { loaded, request, options, raw, job, logged } = self;
        let runtime = RuntimeConfig::from_patch(request.runtime.clone())?.runtime;
        if !runtime.debug.set.is_empty() && runtime.debug.set != loaded.set {
            return Err(Error::config(
                "runtime.debug.set",
                "values are changed of a model, for all of its sessions: say it when it is loaded",
            ));
        }
        let whole = matches!(request.prompt, Prompt::Chat(_));
        let context = if whole { ids.clone() } else { [session.ids(), &ids].concat() };
        let (words, model, plan) = (loaded.words.as_ref(), &*loaded.opened.name, loaded.plan());
        let (text, eos) = (words.map(token_text), &loaded.opened.resolved.config.eos_token_ids[..]);
        let scene = Scene { plan, model, prompt_end: context.len(), session: *options, eos, text };
        let records = Records::new();
        let keep = request.keeping.keep(plan, model)?;
        let mut watching = Watching::new(&runtime.debug, keep, scene, Sink::new(|record| records.keep(&record)))?;
        let dispatches = watching.dispatches();
        if whole {
            session.set_prompt(&ids)?;
        }

        let mut telling = Telling { loaded, job, stream: None, failed: None, text: String::new(), count: 0 };
        let mut watch = Stopwatch::start(now);
        telling.stream = words.map(|words| words.tokenizer.stream(&context, true)).transpose()?;
        let sampling = doppler::settings::sampling(&runtime.inference.sampling);
        let rules = loaded.opened.rules(&sampling);
        let generate = GenerateOptions {
            rules: (!*raw).then_some(&rules),
            max_tokens: request.max_tokens,
            sampling,
            stop_ids: words.filter(|_| !raw).map_or(&[], |words| words.tokenizer.eos()),
            hash_logits: request.hash,
            pipelined: true,
        };
        let (log, untimed) = dispatches.log(Some(loaded.executor.gpu().caps.timestamps));
        logged.set(log);
        let outcome = {
            let mut all = watching.observers();
            let mut on_event = |event: Event| {
                watch.hear(event);
                let shown = dispatches.show(&logged.take());
                records.take().iter().for_each(|records| job.records(records));
                telling.tell(event);
                telling.failed = telling.failed.take().or(shown.err());
                if job.stopped() || telling.failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            session.generate(if whole { &[] } else { &ids }, &generate, wanting(&mut all), &mut on_event).await
        };
        let times = watch.times();
        logged.set(Log::Off);
        dispatches.show(&logged.take())?;
        // After a finding too, which the values explain.
        if outcome.as_ref().map_or_else(|e| e.kind == Kind::Finding, |_| true) {
            if let Some(dump) = watching.dump() {
                let bytes = files.dump.insert(Vec::new());
                let (config, texts) = (loaded.config_line(), loaded.words.as_ref().map(|words| dump.token_texts(&token_text(words))));
                let about = config.metadata().into_iter().chain(texts.as_deref().map(|texts| ("tokens", texts)));
                dump.write(bytes, &about.collect::<Vec<_>>()).map_err(|e| Error::io("dump", e))?;
            }
            watching.after(&loaded.executor).await?;
        }
        records.take().iter().for_each(|records| job.records(records));
        let mut notes: Vec<String> = untimed.into_iter().map(String::from).collect();
        let report = |notes: &[String], last: Vec<Line>| {
            let notes = notes.iter().map(Line::note);
            let shown = loaded.lines().into_iter().chain(notes).chain(last).map(|line| line.to_string()).collect();
            watching.report((Vec::new(), shown), session.ids(), &loaded.opened.resolved)
        };
        let findings: Vec<Value> = watching.findings().iter().map(|f| json!(f)).collect();
        let generated = match outcome {
            Err(error) if error.kind == Kind::Finding => {
                files.report = report(&notes, vec![watching.ended_by(&error)]);
                return Err(error);
            }
            outcome => outcome?,
        };
        let text = telling.end()?;
        notes.extend(generated.notes.iter().cloned());
        let profile = watching.profile();
        notes.extend(profile.iter().filter_map(|profile| profile.as_ref().err().cloned()));
        let done = Line::done(&generated, times);
        // The line's numbers under the line's names, and what else a page is told.
        let mut told = json!(done);
        let rest = json!({
            "text": text, "promptIds": ids, "ids": generated.ids, "notes": notes, "findings": findings,
            "sequence": session.ids().len(),
        });
        if let (Value::Object(told), Value::Object(rest)) = (&mut told, rest) {
            told.remove("type");
            told.extend(rest);
        }
        if let Some(Ok(profile)) = profile {
            told["profile"] = serde_json::from_str(&profile.to_json(model)).map_err(|e| Error::invalid("profile", e))?;
        }
        let output = Line::Output { text: words.map(|_| text), input_ids: ids, ids: generated.ids };
        files.report = report(&notes, vec![output, done]);
        Ok(told)
    }
}

/// The page that is told of tokens as they come.
struct Telling<'a> {
    loaded: &'a Loaded,
    job: &'a Job,
    stream: Option<TextStream>,
    failed: Option<Error>,
    text: String,
    /// Tokens so far.
    count: usize,
}

impl Telling<'_> {
    fn tell(&mut self, event: Event) {
        let id = match event {
            Event::Prefill { done, total } => return self.job.prefill(done, total),
            Event::Token(id) => id,
        };
        let piece = match (&mut self.stream, &self.loaded.words) {
            (Some(stream), Some(words)) => stream.push(&words.tokenizer, id),
            _ => Ok(String::new()),
        };
        match piece {
            Ok(piece) => {
                self.job.part(&piece, Some(id), Some(self.count));
                self.text += &piece;
            }
            Err(error) => self.failed = Some(error),
        }
        self.count += 1;
    }
    /// What is left of the text; all of it.
    fn end(mut self) -> Result<String> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if let (Some(stream), Some(words)) = (self.stream.take(), &self.loaded.words) {
            let rest = stream.finish(&words.tokenizer)?;
            if !rest.is_empty() {
                self.job.part(&rest, None, None);
                self.text += &rest;
            }
        }
        Ok(self.text)
    }
}
