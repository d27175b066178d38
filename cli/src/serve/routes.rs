//! What is at which path. Bodies are read with limits of size and time, texts become ids in other threads, and answers go out
//! whole or as server-sent events.

use super::answer::Answers;
use super::embeddings;
use super::fields::{CHAT, DETOKENIZE, EMBED, Fields, RESPONSE, TEMPLATE, TEXT, TOKENIZE};
use super::guard::{self, Guard};
use super::metrics::{self, Counted};
use super::openapi;
use super::problem::Problem;
use super::request::{self, Ask};
use super::responses::Reply;
use super::wire::{Form, Frame, Whole};
use super::worker::Hosted;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper::body::Frame as BodyFrame;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How long a client may take to read a piece of an answer.
const READ_TIME: Duration = Duration::from_secs(60);
/// Pieces of an answer that wait for a client.
const PIECES: usize = 64;

/// What handlers share.
pub struct Shared {
    pub models: Vec<Arc<Hosted>>,
    pub most_body: usize,
    /// Hashes are told, and runs can be watched.
    pub debug: bool,
    /// No request is taken any more.
    pub ending: AtomicBool,
    /// Requests under way.
    pub active: AtomicUsize,
}

type App = State<Arc<Shared>>;

/// The server's paths.
pub fn router(shared: Arc<Shared>, guard: Guard) -> Router {
    let chat = |shared: App, body: Body| complete(shared, body, Form::Chat);
    let text = |shared: App, body: Body| complete(shared, body, Form::Text);
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/responses", post(respond))
        .route("/v1/embeddings", post(embed))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/apply-template", post(apply_template))
        .route("/health", get(health))
        .route("/metrics", get(numbers))
        .route("/openapi.json", get(|| async { answer(&openapi::document()) }))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "nothing is here; /openapi.json lists what is") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method; /openapi.json says which")
        })
        .with_state(shared)
        .layer(from_fn_with_state(Arc::new(guard), guard::check))
}

fn answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string()).into_response()
}

/// Counts a request for as long as it is under way.
struct Active(Arc<Shared>);

impl Active {
    fn new(shared: &Arc<Shared>) -> Result<Self, Problem> {
        shared.active.fetch_add(1, Ordering::SeqCst);
        let active = Self(shared.clone());
        match shared.ending.load(Ordering::SeqCst) {
            true => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending")),
            false => Ok(active),
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    async fn body(&self, body: Body) -> Result<Bytes, Problem> {
        let most = self.most_body;
        let read = tokio::time::timeout(BODY_TIME, to_bytes(body, most)).await;
        let read = read.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to come"))?;
        read.map_err(|error| {
            let long = std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("length limit"));
            match long {
                true => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {most} bytes (--max-body)")),
                false => Problem::invalid(format!("the body broke off: {error}")),
            }
        })
    }
    fn model(&self, id: Option<&str>) -> Result<Arc<Hosted>, Problem> {
        let found = match (id, &self.models[..]) {
            (None, [one]) => Some(one),
            (None, _) => return Err(Problem::field("model", "missing: several models are served").code("missing_required_parameter")),
            (Some(id), models) => models.iter().find(|model| model.id == id),
        };
        found.cloned().ok_or_else(|| {
            let shown: String = id.unwrap_or_default().chars().take(80).collect();
            let known: Vec<&str> = self.models.iter().map(|model| model.id.as_str()).collect();
            let text = format!("the model `{shown}` is not served here; served: {}", known.join(", "));
            Problem::new(StatusCode::NOT_FOUND, text).about("model").code("model_not_found")
        })
    }
    /// What `work` makes of a request's fields and model, in a thread that may take its time.
    async fn read<T: Send + 'static>(
        &self,
        body: Body,
        of: u8,
        work: impl FnOnce(&Fields, &Hosted) -> Result<T, Problem> + Send + 'static,
    ) -> Result<(T, Arc<Hosted>), Problem> {
        let bytes = self.body(body).await?;
        let fields = Fields::read(&bytes, of)?;
        drop(bytes);
        let hosted = self.model(fields.text("model"))?;
        let work = move || work(&fields, &hosted).map(|found| (found, hosted));
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "a bug in Doppler, please report it: reading the request failed"))
        })
    }
}

/// Seconds of Unix time.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A name for an answer, of this kind, that no other one has.
fn name(kind: &str) -> String {
    let mut bytes = [0; 12];
    // Without random numbers, answers share a name.
    let _ = SystemRandom::new().fill(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}{hex}")
}

async fn complete(State(shared): App, body: Body, form: Form) -> Result<Response, Problem> {
    let active = Active::new(&shared)?;
    let debug = shared.debug;
    let read = move |fields: &Fields, hosted: &Hosted| match form {
        Form::Chat => Ask::chat(fields, hosted, debug),
        Form::Text => Ask::text(fields, hosted, debug),
    };
    let (ask, hosted) = shared.read(body, if form == Form::Chat { CHAT } else { TEXT }, read).await?;
    let id = name(if form == Form::Chat { "chatcmpl-" } else { "cmpl-" });
    let frame = Frame { form, id, created: now(), hosted: hosted.clone(), seed: ask.sampling.seed, n: ask.n, debug };
    let (stream, usage, logprobs) = (ask.stream, ask.usage, ask.alternatives.is_some());
    let mut answers = Answers::begin(&hosted, ask, debug)?;
    if stream {
        return Ok(streamed(async move |to| {
            // Who does not read has left.
            let _ = send(&frame, &mut answers, usage, logprobs, &to).await;
            drop((answers, active));
        }));
    }
    let mut wholes: Vec<Whole> = (0..answers.count()).map(|_| Whole::default()).collect();
    while let Some(update) = answers.next().await {
        let update = update?;
        if let Some(whole) = wholes.get_mut(update.choice) {
            whole.add(update);
        }
    }
    Ok(answer(&frame.whole(wholes, logprobs, &answers)))
}

/// The events that `send` sends, as a body.
fn streamed<F: Future<Output = ()> + Send + 'static>(send: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Response {
    let (to, pieces) = mpsc::channel(PIECES);
    tokio::spawn(send(to));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::new(Pieces(pieces))).into_response()
}

async fn respond(State(shared): App, body: Body) -> Result<Response, Problem> {
    let active = Active::new(&shared)?;
    let debug = shared.debug;
    let read = |fields: &Fields, hosted: &Hosted| Ok((Ask::response(fields, hosted)?, fields.clone()));
    let ((ask, fields), hosted) = shared.read(body, RESPONSE, read).await?;
    let mut reply = Reply::new([name("resp_"), name("msg_")], now(), hosted.id.clone(), fields, &ask, debug);
    let stream = ask.stream;
    let mut answers = Answers::begin(&hosted, ask, debug)?;
    if stream {
        return Ok(streamed(async move |to| {
            // Who does not read has left.
            let _ = send_reply(&mut reply, &mut answers, &to).await;
            drop((answers, active));
        }));
    }
    while let Some(update) = answers.next().await {
        reply.add(update?);
    }
    Ok(answer(&reply.whole(Some(&answers))))
}

/// Sends a response in events, each with its name.
async fn send_reply(reply: &mut Reply, answers: &mut Answers, to: &mpsc::Sender<Bytes>) -> Result<(), Left> {
    for event in reply.opening() {
        named(to, &event).await?;
    }
    loop {
        let update = tokio::select! {
            update = answers.next() => update,
            () = to.closed() => return Err(Left),
        };
        let events = match update {
            None => reply.closing(answers),
            Some(Err(problem)) => vec![reply.failure(&problem)],
            Some(Ok(update)) => {
                if let Some(event) = reply.piece(update) {
                    named(to, &event).await?;
                }
                continue;
            }
        };
        for event in events {
            named(to, &event).await?;
        }
        return Ok(());
    }
}

async fn named(to: &mpsc::Sender<Bytes>, event: &Value) -> Result<(), Left> {
    chunk(to, format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default())).await
}

async fn embed(State(shared): App, body: Body) -> Result<Response, Problem> {
    let _active = Active::new(&shared)?;
    let (ask, hosted) = shared.read(body, EMBED, embeddings::Ask::new).await?;
    Ok(answer(&embeddings::answer(&hosted, ask).await?))
}

/// The client went away, or does not read.
struct Left;

/// Sends an answer in pieces.
async fn send(frame: &Frame, answers: &mut Answers, usage: bool, logprobs: bool, to: &mpsc::Sender<Bytes>) -> Result<(), Left> {
    let mut offsets = vec![0; answers.count()];
    for piece in (0..answers.count()).filter_map(|index| frame.opening(index)) {
        event(to, &piece.to_string()).await?;
    }
    loop {
        let update = tokio::select! {
            update = answers.next() => update,
            () = to.closed() => return Err(Left),
        };
        match update {
            None => break,
            Some(Err(problem)) => return event(to, &problem.json().to_string()).await,
            Some(Ok(update)) => {
                let Some(offset) = offsets.get_mut(update.choice) else { continue };
                if let Some(mut piece) = frame.piece(update, logprobs, offset) {
                    if usage {
                        piece["usage"] = Value::Null;
                    }
                    event(to, &piece.to_string()).await?;
                }
            }
        }
    }
    if usage {
        event(to, &frame.counted(answers).to_string()).await?;
    }
    event(to, "[DONE]").await
}

async fn event(to: &mpsc::Sender<Bytes>, data: &str) -> Result<(), Left> {
    chunk(to, format!("data: {data}\n\n")).await
}

async fn chunk(to: &mpsc::Sender<Bytes>, text: String) -> Result<(), Left> {
    match tokio::time::timeout(READ_TIME, to.send(text.into())).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Left),
    }
}

/// Pieces as a body.
struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(BodyFrame::data(piece))))
    }
}

fn described(hosted: &Hosted) -> Value {
    json!({
        "id": hosted.id,
        "object": "model",
        "created": hosted.created,
        "owned_by": "doppler",
        "max_model_len": hosted.room.capacity,
    })
}

async fn models(State(shared): App) -> Response {
    let list: Vec<Value> = shared.models.iter().map(|model| described(model)).collect();
    answer(&json!({"object": "list", "data": list}))
}

async fn model(State(shared): App, id: Result<UrlPath<String>, PathRejection>) -> Result<Response, Problem> {
    let UrlPath(id) = id.map_err(|e| Problem::new(e.status(), format!("the model's name: {}", e.body_text())))?;
    shared.model(Some(&id)).map(|hosted| answer(&described(&hosted)))
}

async fn tokenize(State(shared): App, body: Body) -> Result<Response, Problem> {
    let _active = Active::new(&shared)?;
    let read = |fields: &Fields, hosted: &Hosted| {
        let text = fields.text("prompt").unwrap_or_default();
        request::short(text, hosted)?;
        Ok(hosted.words.tokenizer.encode(text, fields.flag("add_special_tokens").unwrap_or(true))?)
    };
    let (ids, hosted) = shared.read(body, TOKENIZE, read).await?;
    Ok(answer(&json!({"tokens": ids, "count": ids.len(), "max_model_len": hosted.room.capacity})))
}

async fn detokenize(State(shared): App, body: Body) -> Result<Response, Problem> {
    let _active = Active::new(&shared)?;
    let read = |fields: &Fields, hosted: &Hosted| {
        let ids = request::ids_of(fields.get("tokens").unwrap_or(&Value::Null), hosted)?;
        Ok(hosted.words.tokenizer.decode(&ids, false)?)
    };
    let (text, _) = shared.read(body, DETOKENIZE, read).await?;
    Ok(answer(&json!({ "prompt": text })))
}

async fn apply_template(State(shared): App, body: Body) -> Result<Response, Problem> {
    let _active = Active::new(&shared)?;
    let read = |fields: &Fields, hosted: &Hosted| request::template(fields, hosted, fields.flag("add_generation_prompt").unwrap_or(true));
    let (text, _) = shared.read(body, TEMPLATE, read).await?;
    Ok(answer(&json!({ "prompt": text })))
}

async fn health(State(shared): App) -> Response {
    let trouble = |model: &Arc<Hosted>| Some(format!("{}: {}", model.id, model.trouble()?));
    let mut found: Vec<String> = shared.models.iter().filter_map(trouble).collect();
    if shared.ending.load(Ordering::SeqCst) {
        found.push("the server is ending".into());
    }
    match found.is_empty() {
        true => answer(&json!({"status": "ok"})),
        false => Problem::new(StatusCode::SERVICE_UNAVAILABLE, found.join("; ")).into_response(),
    }
}

async fn numbers(State(shared): App) -> Response {
    let models = shared.models.iter().map(|model| Counted {
        id: &model.id,
        metrics: &model.metrics,
        waiting: model.waiting(),
        room: model.room.count * model.room.capacity,
    });
    let models: Vec<Counted<'_>> = models.collect();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))], metrics::text(&models)).into_response()
}
