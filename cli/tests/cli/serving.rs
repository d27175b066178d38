//! `doppler serve` from outside, by a client of a page of code: answers whole and in pieces, the same alone and among others;
//! what is refused, and that nothing a client sends stops the server.
#![cfg(unix)]

mod forms;

use crate::support::{command, data, devices, doppler};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SKY: &str = "The color of the sky is";

/// A server that ends with the test.
struct Server {
    child: Child,
    port: String,
}

/// What it answered.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    status: u16,
    /// In small letters.
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    #[track_caller]
    fn fine(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }
    /// An error in the API's form, whose message has `part`.
    #[track_caller]
    fn refused(&self, status: u16, part: &str) {
        let error = &self.json()["error"];
        let keys: Vec<&String> = error.as_object().expect("an error").keys().collect();
        assert_eq!((self.status, keys.len()), (status, 4), "{self:?}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(part)), "{part} in {self:?}");
    }
    /// The data of its events, the last of which says that it is all.
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        assert!(self.status == 200 && self.head.contains("text/event-stream"), "{self:?}");
        let mut events: Vec<&str> = self.body.split("\n\n").map(|event| event.trim_start_matches("data: ")).collect();
        assert_eq!(events.split_off(events.len() - 2), ["[DONE]", ""], "{self:?}");
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Server {
    fn new(args: &[&str]) -> Self {
        let args = [&["serve", "--port", "0"], args].concat();
        let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("Serving http://127.0.0.1:").and_then(|rest| rest.strip_suffix("/v1"));
        let port = port.unwrap_or_else(|| panic!("{line}")).to_string();
        Self { child, port }
    }
    fn connect(&self, request: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{}", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let host = if headers.contains("Host:") { String::new() } else { format!("Host: localhost:{}\r\n", self.port) };
        // A server that refuses by the head need not read the body.
        let _ =
            write!(stream, "{request} HTTP/1.1\r\nConnection: close\r\n{host}{headers}{length}\r\n").and_then(|()| stream.write_all(body));
        stream
    }
    fn ask(&self, request: &str, headers: &str, body: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        let _ = self.connect(request, headers, body).read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("{request}: no answer"));
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        let rest = &bytes[end + 4..];
        let body = if head.contains("transfer-encoding: chunked") { joined(rest) } else { rest.to_vec() };
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }
    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), "", b"")
    }
    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(&format!("POST {path}"), "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }
    fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", &body)
    }
    fn chat(&self, body: Value) -> Answer {
        self.post("/v1/chat/completions", &body)
    }
    /// A number of `/metrics`.
    fn number(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(&format!("doppler:{name}")));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }
    /// Interrupts it; its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A chunked body, joined.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok()).unwrap();
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
    }
    body
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn answers_come_whole_and_in_pieces() {
    let server = Server::new(&["--device", "cpu", "--allow-debug", "--context", "200"]);
    let whole = server.complete(json!({"model": "demo", "prompt": SKY, "max_tokens": 8})).fine();
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"], &whole["object"]),
        (&json!(" blue."), &json!("stop"), &json!("text_completion"))
    );
    assert_eq!(
        whole["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 0}})
    );
    // The same as the engine that is debugged.
    let debugged = doppler(&["debug", "--device", "cpu", "--max-tokens", "8", "--json", "-", SKY]).fine().record("done");
    assert_eq!(choice["doppler"]["logits_hash"], debugged["logits"]);
    let pieces =
        server.complete(json!({"prompt": SKY, "max_tokens": 8, "stream": true, "stream_options": {"include_usage": true}})).events();
    let (counted, pieces) = pieces.split_last().unwrap();
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect();
    assert_eq!((text.as_str(), &counted["usage"], &counted["choices"]), (" blue.", &whole["usage"], &json!([])));
    let last = &pieces.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["doppler"]["logits_hash"]), (&json!("stop"), &debugged["logits"]));
    assert!(pieces.iter().all(|piece| piece["usage"].is_null() && piece["id"] == pieces[0]["id"]));

    // Conversations: who speaks comes once, first, and no piece has tool calls.
    let asked = json!({"messages": user("What color is the sky?"), "max_completion_tokens": 12, "temperature": 0});
    let chat = server.chat(asked.clone()).fine();
    let answer = chat["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    assert!(!answer.is_empty() && chat["object"] == "chat.completion" && chat["choices"][0]["logprobs"].is_null(), "{chat}");
    let mut streamed = asked.clone();
    streamed["stream"] = true.into();
    let pieces = server.chat(streamed).events();
    let delta = |piece: &Value| piece["choices"][0]["delta"].clone();
    assert_eq!(delta(&pieces[0]), json!({"role": "assistant", "content": "", "refusal": null}));
    let text: String = pieces.iter().filter_map(|piece| delta(piece)["content"].as_str().map(str::to_string)).collect();
    assert_eq!(text, answer);
    assert!(pieces[1..].iter().all(|piece| delta(piece).get("role").is_none() && delta(piece).get("tool_calls").is_none()));
    let ends: Vec<bool> = pieces.iter().map(|piece| !piece["choices"][0]["finish_reason"].is_null()).collect();
    assert_eq!((ends.iter().filter(|end| **end).count(), ends.last()), (1, Some(&true)));
    // Parts are joined, and the template's text and ids are those of the conversation.
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "What color is "}, {"type": "text", "text": "the sky?"}]}]);
    let template = server.post("/apply-template", &json!({ "messages": parts })).fine();
    let ids = server.post("/tokenize", &json!({"prompt": template["prompt"], "add_special_tokens": false})).fine();
    assert_eq!(ids["count"], chat["usage"]["prompt_tokens"]);
    assert_eq!(server.post("/detokenize", &json!({"tokens": ids["tokens"]})).fine()["prompt"], template["prompt"]);

    // Likelihoods: greedy takes the likeliest, and both forms say the same.
    let likely = server.complete(json!({"prompt": SKY, "max_tokens": 8, "logprobs": 2})).fine()["choices"][0]["logprobs"].clone();
    let tokens: Vec<&str> = likely["tokens"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!((tokens.concat().as_str(), likely["text_offset"].as_array().map(Vec::len)), (" blue.", Some(tokens.len())));
    let first = likely["token_logprobs"][0].as_f64().unwrap();
    assert!(first < 0.0 && likely["top_logprobs"][0][tokens[0]].as_f64() == Some(first), "{likely}");
    let likely =
        server.chat(json!({"messages": user("Hi"), "max_tokens": 2, "logprobs": true, "top_logprobs": 3, "stream": true})).events();
    let content: Vec<&Value> = likely.iter().filter_map(|piece| piece["choices"][0]["logprobs"]["content"].get(0)).collect();
    assert!(!content.is_empty() && content.iter().all(|token| token["top_logprobs"][0]["logprob"] == token["logprob"]), "{content:?}");
    assert_eq!(content[0]["token"].as_str().map(str::as_bytes).map(|bytes| json!(bytes)), Some(content[0]["bytes"].clone()));

    // Stop texts across tokens; several answers, each with its seed; ids; several prompts.
    let stopped = server.complete(json!({"prompt": SKY, "max_tokens": 8, "stop": ["zz", "ue."]})).fine();
    assert_eq!((&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]), (&json!(" bl"), &json!("stop")));
    let many =
        |seed: u64, n: usize| server.complete(json!({"prompt": "The", "max_tokens": 6, "temperature": 1.5, "seed": seed, "n": n})).fine();
    let texts = |of: &Value| of["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>();
    let three = texts(&many(5, 3));
    assert_eq!((three.len(), &texts(&many(6, 2))[..]), (3, &three[1..]));
    assert!(three[0] != three[1] || three[1] != three[2]);
    let tokens = server.post("/tokenize", &json!({ "prompt": SKY })).fine()["tokens"].clone();
    let both = server.complete(json!({"prompt": [tokens, tokens], "max_tokens": 2})).fine();
    assert_eq!((texts(&both), &both["choices"][1]["finish_reason"]), (vec![json!(" blue."); 2], &json!("length")));
    let biased = server.complete(json!({"prompt": SKY, "max_tokens": 1, "logit_bias": {(first_id(&server)): -100}})).fine();
    assert!(biased["choices"][0]["text"] != json!(" blue"), "{biased}");

    // A run that is watched has the hash that it has unseen.
    let seen = server.complete(json!({"prompt": SKY, "max_tokens": 8, "doppler": {"trace": ["ffn"], "layers": [0]}})).fine();
    let (told, records) = (&seen["choices"][0]["doppler"], seen["choices"][0]["doppler"]["records"].as_array().unwrap());
    assert_eq!((&told["logits_hash"], &seen["choices"][0]["text"]), (&debugged["logits"], &json!(" blue.")));
    assert!(records.iter().any(|r| r["type"] == "trace" && r["stage"] == "ffn_out" && r["layer"] == 0), "{records:?}");
    server.complete(json!({"prompt": SKY, "doppler": {"trace": ["nothing"]}})).refused(400, "nothing");

    assert!(server.number("generation_tokens_total") > 20.0);
    assert!(server.number("time_to_first_token_seconds_count") > 5.0 && server.number("num_requests_running") == 0.0);
    assert_eq!(server.get("/health").fine(), json!({"status": "ok"}));
    assert_eq!(server.get("/v1/models").fine()["data"][0]["id"], "demo");
    assert_eq!(server.get("/v1/models/demo").fine()["max_model_len"], 200);
    server.get("/v1/models/other").refused(404, "served: demo");
    server.get("/v1/models/%ff").refused(400, "the model's name");
    // The document names each path, and each path is there.
    for (path, methods) in server.get("/openapi.json").fine()["paths"].as_object().unwrap() {
        let answer = match methods.get("post") {
            Some(_) => server.post(path, &json!({})),
            None => server.get(&path.replace("{id}", "demo")),
        };
        assert_eq!(answer.status, if methods.get("post").is_some() { 400 } else { 200 }, "{path}");
    }
}

/// The id of the first token after the sentence.
fn first_id(server: &Server) -> String {
    let ids = |text: &str| server.post("/tokenize", &json!({ "prompt": text })).fine()["tokens"].clone();
    let (before, after) = (ids(SKY), ids(&format!("{SKY} blue")));
    after[before.as_array().unwrap().len()].to_string()
}

#[test]
fn eight_at_once_get_what_each_gets_alone() {
    for device in devices() {
        let room = ["--allow-debug", "--sequences", "3", "--context", "96", "--prefill-chunk", "8", "--queue", "8"];
        let model = data("gemma2");
        let server = Server::new(&[&["--device", device, "-m", &model], &room[..]].concat());
        let asked = |i: usize| {
            let (prompt, temperature) = ("The model sees. ".repeat(i % 4 + 1), [0.0, 1.2][i % 2]);
            json!({"prompt": prompt, "max_tokens": 3 + i, "temperature": temperature, "seed": i, "stream": i == 3})
        };
        // Of streams the pieces have their times and names.
        let gist = |answer: &Answer| -> Vec<Value> {
            let objects = if answer.head.contains("event-stream") { answer.events() } else { vec![answer.fine()] };
            // What was read before depends on who came before; nothing else does.
            objects.into_iter().map(|object| json!([object["choices"], object["usage"]["total_tokens"]])).collect()
        };
        let alone: Vec<Vec<Value>> = (0..8).map(|i| gist(&server.complete(asked(i)))).collect();
        let (server, gist, asked) = (&server, &gist, &asked);
        let together: Vec<Vec<Value>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || gist(&server.complete(asked(i))))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(together, alone, "on {device}");
        assert!(alone[0][0][0][0]["doppler"]["logits_hash"].is_string(), "{alone:?}");
    }
}

#[test]
fn nothing_that_is_sent_stops_the_server() {
    let server = Server::new(&["--device", "cpu", "--max-body", "4000", "--context", "64"]);
    let body = json!({"model": "demo", "messages": user("Hi"), "max_tokens": 1, "temperature": 0.5, "stop": ["a"], "stream": false, "n": 1,
        "logit_bias": {"5": 1.0}, "seed": 3, "top_logprobs": 1, "logprobs": true, "stream_options": null});
    assert_eq!(server.chat(body.clone()).status, 200);
    let whole = body.to_string().into_bytes();
    let refused = |path: &str, bytes: &[u8]| {
        let answer = server.ask(&format!("POST {path}"), "Content-Type: application/json\r\n", bytes);
        assert!(
            (400..500).contains(&answer.status) && answer.json()["error"]["message"].is_string(),
            "{}: {answer:?}",
            String::from_utf8_lossy(bytes)
        );
    };
    for cut in (1..whole.len()).step_by(9) {
        refused("/v1/chat/completions", &whole[..cut]);
    }
    // Each field with values of other types, too large and too deep.
    let deep = serde_json::from_str::<Value>(&format!("{}{}", "[".repeat(60), "]".repeat(60))).unwrap();
    for name in body.as_object().unwrap().keys() {
        for wrong in [json!({"a": [1]}), json!(-1e300), json!("\u{0}\u{ffff}"), deep.clone(), json!(true), json!([null])] {
            let mut changed = body.clone();
            let right = (name == "stream" || name == "logprobs") && wrong == json!(true);
            changed[name] = wrong;
            if right || (name == "stop" && changed[name].is_string()) {
                continue;
            }
            refused("/v1/chat/completions", changed.to_string().as_bytes());
        }
    }
    for text in
        ["[".repeat(3000), format!("{{\"messages\":{}", "{\"a\":".repeat(600)), "{\"n\":1e999}".into(), "\u{feff}{}".into(), "null".into()]
    {
        refused("/v1/chat/completions", text.as_bytes());
    }
    refused("/v1/completions", b"{\"prompt\":\"\xff\"}");
    for (path, body) in [
        ("/v1/completions", json!({"prompt": [[999_999]]})),
        ("/v1/completions", json!({"prompt": "a ".repeat(1500)})),
        ("/v1/completions", json!({"prompt": "a", "n": 100})),
        ("/v1/completions", json!({"prompt": "a", "model": "gpt-4"})),
        ("/v1/completions", json!({"prompt": "a", "best_of": 2})),
        ("/v1/completions", json!({"prompt": "a", "doppler": {}})),
        ("/v1/completions", json!({"prompt": "a", "doppler": {"set": []}})),
        ("/v1/chat/completions", json!({"messages": user("a"), "tools": [{"type": "function", "function": {"name": "f"}}]})),
        ("/v1/chat/completions", json!({"messages": user("a"), "response_format": {"type": "json_object"}})),
        ("/v1/chat/completions", json!({"messages": user("a"), "max_token": 3})),
        ("/v1/chat/completions", json!({"messages": [{"role": "nobody", "content": "a"}, {"role": "nobody", "content": "b"}]})),
        ("/detokenize", json!({"tokens": [-1]})),
        ("/detokenize", json!({"tokens": [4_000_000]})),
        ("/tokenize", json!({"prompt": 1})),
        ("/apply-template", json!({"messages": []})),
    ] {
        refused(path, body.to_string().as_bytes());
    }
    server.chat(json!({"messages": user("a"), "max_token": 3})).refused(400, "max_tokens");
    server.complete(json!({"prompt": "a ".repeat(100)})).refused(400, "context of 64 tokens");
    server.complete(json!({"prompt": "a".repeat(5000)})).refused(413, "4000 bytes");
    server.ask("GET /v1/completions", "", b"").refused(405, "another method");
    server.get("/../../etc/passwd").refused(404, "nothing is here");
    assert_eq!(server.ask("GET /health", &format!("X: {}\r\n", "x".repeat(1 << 20)), b"").status, 431);
    doppler(&["serve", "--api-key", ""]).refused(&["--api-key", "it is empty"]);
    doppler(&["serve", "--sequences", "0"]).refused(&["expected a whole number from 1"]);
    doppler(&["serve", "--device", "cpu", "-m", "demo", "-m", "demo"]).refused(&["two models have the id `demo`"]);
    doppler(&["serve", "--device", "cpu", "--port", &server.port]).refused(&["choose another with --port"]);
    // Harmless fields are taken.
    let harmless =
        json!({"messages": user("a"), "max_tokens": 1, "user": "x", "metadata": {}, "store": true, "service_tier": "auto", "tools": []});
    assert_eq!(server.chat(harmless).status, 200);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn who_may_ask_and_how_much() {
    let server = Server::new(&[
        "--device",
        "cpu",
        "--api-key",
        "secret",
        "--sequences",
        "1",
        "--queue",
        "1",
        "--cors",
        "https://page.example",
        "--allow-host",
        "models.example",
    ]);
    let key = "Authorization: Bearer secret\r\n";
    let status = |request: &str, headers: &str| server.ask(request, headers, b"").status;
    server.get("/v1/models").refused(401, "Authorization: Bearer KEY");
    assert_eq!(status("GET /v1/models", "Authorization: Bearer secrets\r\n"), 401);
    assert_eq!((status("GET /v1/models", key), status("GET /health", "")), (200, 200));
    // Other names, pages of other origins.
    for (host, expected) in [("rebound.example", 403), ("models.example", 200), ("localhost:1", 403)] {
        assert_eq!(status("GET /v1/models", &format!("{key}Host: {host}\r\n")), expected, "{host}");
    }
    assert_eq!(status("GET /v1/models", &format!("{key}Origin: https://other.example\r\n")), 403);
    let page = server.ask(
        "OPTIONS /v1/chat/completions",
        "Origin: https://page.example\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n",
        b"",
    );
    assert!(page.status == 204 && page.head.contains("access-control-allow-origin: https://page.example"), "{page:?}");
    assert!(page.head.contains("access-control-allow-headers: authorization"), "{page:?}");
    assert_eq!(status("OPTIONS /v1/models", "Origin: https://other.example\r\nAccess-Control-Request-Method: GET\r\n"), 403);

    // One is computed, one waits, the third is told to try again; when clients leave, their places are free at once.
    let numbers = |name: &str| {
        let text = server.ask("GET /metrics", key, b"").body;
        text.lines()
            .find(|line| line.starts_with(&format!("doppler:{name}{{")))
            .and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .unwrap()
    };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let endless = json!({"prompt": [[2, 10, 11]], "max_tokens": 900, "logit_bias": {"1": -100, "5": -100}, "stream": true}).to_string();
    let first = server.connect("POST /v1/completions", key, endless.as_bytes());
    until("it runs", &|| numbers("num_requests_running") == 1.0);
    let second = server.connect("POST /v1/completions", key, endless.replace(",\"stream\":true", "").as_bytes());
    until("it waits", &|| numbers("num_requests_waiting") == 1.0);
    let third = server.ask("POST /v1/completions", key, endless.as_bytes());
    third.refused(429, "full");
    assert!(third.head.contains("retry-after: "), "{third:?}");
    drop((first, second));
    until("they left", &|| numbers("num_requests_running") + numbers("num_requests_waiting") == 0.0);

    // What runs at Ctrl-C has its time; what comes later is refused.
    let asked = json!({"prompt": SKY, "max_tokens": 8}).to_string();
    let slow = json!({"prompt": [[2, 10, 11]], "max_tokens": 150, "logit_bias": {"1": -100, "5": -100}, "stream": true}).to_string();
    let mut last = server.connect("POST /v1/completions", key, slow.as_bytes());
    until("it runs", &|| numbers("num_requests_running") == 1.0);
    Command::new("kill").args(["-INT", &server.child.id().to_string()]).status().unwrap();
    until("it is ending", &|| server.get("/health").status == 503);
    server.ask("POST /v1/completions", key, asked.as_bytes()).refused(503, "ending");
    let mut text = String::new();
    last.read_to_string(&mut text).unwrap();
    assert!(text.contains("[DONE]") && text.contains("\"length\""), "{text}");
    let (code, said) = server.end();
    assert!(code == Some(130) && said.contains("requests have 30 s") && !said.contains("cut"), "{code:?} {said}");
}
