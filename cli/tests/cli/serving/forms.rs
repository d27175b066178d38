//! `doppler serve`: vectors of texts, responses, prompts that begin alike, and a socket in the file system.

use super::{Answer, SKY, Server, user};
use crate::support::{command, data, devices, doppler, scratch};
use doppler::debug::dump::Dump;
use doppler::plan::{At, Stage};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

fn vector(embedding: &Value) -> Vec<f64> {
    embedding.as_array().expect("numbers").iter().filter_map(Value::as_f64).collect()
}

/// The numbers of a vector in Base64.
fn decoded(text: &str) -> Vec<f64> {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> =
        text.trim_end_matches('=').chars().flat_map(|c| (0..6).rev().map(move |bit| (digits.find(c).unwrap() >> bit & 1) as u8)).collect();
    let bytes: Vec<u8> = bits.as_chunks::<8>().0.iter().map(|eight| eight.iter().fold(0, |byte, bit| byte << 1 | bit)).collect();
    bytes.as_chunks::<4>().0.iter().map(|four| f64::from(f32::from_le_bytes(*four))).collect()
}

#[test]
fn vectors_are_made_of_the_states_that_a_dump_has() {
    let server = Server::new(&["--device", "cpu", "--context", "64", "--prefill-chunk", "8", "--queue", "2"]);
    let embed = |body: &Value| server.post("/v1/embeddings", body);
    let ids: Vec<u32> = (0..20).map(|i| 2 + (i * 37) % 900).collect();
    let tokens = server.post("/tokenize", &json!({ "prompt": SKY })).fine()["tokens"].clone();
    let file = scratch("embeddings").join("states.safetensors").display().to_string();
    for (input, ids) in [(json!(SKY), tokens.clone()), (json!(ids), json!(ids))] {
        let list = ids.to_string().replace(['[', ']'], "");
        let args = ["debug", "--device", "cpu", "--prefill-chunk", "8", "--max-tokens", "0", "--token-ids", &list];
        doppler(&[&args[..], &["--dump", &file, "--stages", "final_norm"]].concat()).fine();
        let states = Dump::open(file.as_ref()).unwrap().value(At { stage: Stage::FinalNorm, layer: None }).unwrap().unwrap();
        let rows: Vec<&[f32]> = states.data.chunks(states.width()).collect();
        assert_eq!(Some(rows.len()), ids.as_array().map(Vec::len));
        let unit = |vector: Vec<f64>| {
            let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
            vector.into_iter().map(|x| x / length).collect::<Vec<f64>>()
        };
        let sum = (0..states.width()).map(|dim| rows.iter().map(|row| f64::from(row[dim])).sum()).collect();
        let last = rows[rows.len() - 1].iter().map(|x| f64::from(*x)).collect();
        for (pooling, expected) in [("mean", unit(sum)), ("last", unit(last))] {
            let found = embed(&json!({"model": "demo", "input": input, "pooling": pooling, "dimensions": states.width()})).fine();
            let numbers = vector(&found["data"][0]["embedding"]);
            let far = numbers.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(numbers.len() == expected.len() && far < 1e-7, "{pooling}: {far} {numbers:?}");
            assert_eq!(found["usage"], json!({"prompt_tokens": rows.len(), "total_tokens": rows.len()}));
            let packed = embed(&json!({"input": input, "pooling": pooling, "encoding_format": "base64"})).fine();
            assert_eq!(decoded(packed["data"][0]["embedding"].as_str().unwrap()), numbers);
        }
    }
    // Lists, in their order, longer than the queue; the mean is what comes unless said.
    let one = embed(&json!({ "input": SKY })).fine();
    let lists = [json!([SKY, "The", "A", SKY]), json!([tokens, [2, 3], [4], tokens])];
    for list in lists {
        let found = embed(&json!({ "input": list })).fine();
        let data = found["data"].as_array().unwrap();
        assert_eq!(
            (data.len(), &data[0]["embedding"], &data[3]["embedding"]),
            (4, &one["data"][0]["embedding"], &one["data"][0]["embedding"])
        );
        assert!(data[1]["embedding"] != data[0]["embedding"] && data.iter().enumerate().all(|(i, item)| item["index"] == i), "{found}");
    }
    for (body, part) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": [999_999]}), "out of range"),
        (json!({"input": SKY, "dimensions": 3}), "dimensions: expected"),
        (json!({"input": SKY, "pooling": "max"}), "pooling"),
        (json!({"input": SKY, "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": SKY, "temperature": 1}), "temperature"),
        (json!({"input": "a ".repeat(100)}), "context of 64 tokens"),
    ] {
        embed(&body).refused(400, part);
    }
    // Others are computed meanwhile.
    let (server, many) = (&server, json!({"input": vec![SKY; 200]}));
    let (vectors, text) = std::thread::scope(|scope| {
        let vectors = scope.spawn(move || server.post("/v1/embeddings", &many).fine());
        let text = server.complete(json!({"prompt": SKY, "max_tokens": 8})).fine();
        (vectors.join().unwrap(), text)
    });
    assert_eq!((vectors["data"].as_array().map(Vec::len), &text["choices"][0]["text"]), (Some(200), &json!(" blue.")));
}

/// The events of a response, each under its name.
fn events(answer: &Answer) -> Vec<Value> {
    assert!(answer.status == 200 && answer.head.contains("text/event-stream"), "{answer:?}");
    let parts = answer.body.split_terminator("\n\n").map(|event| {
        let (name, data) = event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: ")).expect("an event");
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        data
    });
    let all: Vec<Value> = parts.collect();
    assert!(all.iter().enumerate().all(|(number, event)| event["sequence_number"] == number), "{all:?}");
    all
}

#[test]
fn responses_say_what_conversations_do() {
    let server = Server::new(&["--device", "cpu", "--context", "100", "--allow-debug"]);
    let respond = |body: &Value| server.post("/v1/responses", body);
    let question = "What color is the sky?";
    let chat = server.chat(json!({"messages": user(question), "max_tokens": 12, "temperature": 0})).fine();
    let text = chat["choices"][0]["message"]["content"].clone();
    let asked =
        json!({"model": "demo", "input": question, "max_output_tokens": 12, "temperature": 0, "store": false, "metadata": {"a": "b"}});
    let whole = respond(&asked).fine();
    assert_eq!((&whole["object"], &whole["status"], &whole["store"]), (&json!("response"), &json!("completed"), &json!(false)));
    let message = &whole["output"][0];
    assert_eq!((&message["role"], &message["content"][0]["type"]), (&json!("assistant"), &json!("output_text")));
    assert_eq!((&message["content"][0]["text"], &whole["metadata"]), (&text, &json!({"a": "b"})));
    assert_eq!(whole["doppler"]["logits_hash"], chat["choices"][0]["doppler"]["logits_hash"]);
    let usage = &whole["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&chat["usage"]["prompt_tokens"], &chat["usage"]["completion_tokens"]));
    // Messages with parts, and the same in events.
    let mut streamed = asked.clone();
    streamed["stream"] = true.into();
    streamed["input"] = json!([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]}]);
    let found = events(&respond(&streamed));
    let names: Vec<&str> = found.iter().filter_map(|event| event["type"].as_str()).filter(|name| !name.ends_with(".delta")).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed"
        ]
    );
    let deltas: String = found.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(json!(deltas), text);
    let last = &found[found.len() - 1]["response"];
    for same in ["usage", "status", "model", "temperature"] {
        assert_eq!(last[same], whole[same], "{same}");
    }
    assert_eq!((&last["output"][0]["content"], &last["id"]), (&message["content"], &found[0]["response"]["id"]));
    assert_eq!(last["output"][0]["id"], found[2]["item"]["id"]);
    // What ends for want of room says so. Instructions are a system message, which this model's template does not take.
    let cut = respond(&json!({"input": question, "max_output_tokens": 1, "temperature": 0})).fine();
    assert_eq!((&cut["status"], &cut["incomplete_details"]["reason"]), (&json!("incomplete"), &json!("max_output_tokens")));
    assert_eq!(cut["output"][0]["status"], "incomplete");
    let told = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]);
    let chat = server.chat(json!({"messages": told, "max_tokens": 1}));
    let instructed = respond(&json!({"input": question, "instructions": "Be brief."}));
    assert_eq!((instructed.status, instructed.json()), (400, chat.json()));
    for (field, part) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id: expected no such field (Nothing is stored here"),
        (json!({"store": true}), "store: expected false (Nothing is stored here)"),
        (json!({"tools": [{"type": "web_search"}]}), "Tools cannot be called yet"),
        (json!({"reasoning": {"effort": "low"}}), "reasoning: this field is not known here"),
        (json!({"text": {"format": {"type": "json_object"}}}), "text"),
        (json!({"max_tokens": 4}), "max_tokens: this field is not known here"),
        (json!({"input": [{"type": "function_call_output", "output": "x"}]}), "input"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}), "input_text"),
    ] {
        let mut body = json!({ "input": question });
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        respond(&body).refused(400, part);
    }
}

#[test]
fn prompts_that_begin_alike_are_read_once_with_the_same_bits() {
    for device in devices() {
        let model = data("gemma2");
        let room = ["--device", device, "-m", &model, "--allow-debug", "--sequences", "3", "--context", "96", "--prefill-chunk", "8"];
        let (shares, reads) = (Server::new(&room), Server::new(&[&room[..], &["--no-prefix-cache"]].concat()));
        let ask = |server: &Server, ends: &str, n: usize| {
            let prompt = format!("{}{ends}", "The model sees. ".repeat(3));
            server.complete(json!({"prompt": prompt, "max_tokens": 6, "temperature": 1.1, "seed": 4, "n": n})).fine()
        };
        let asked = [("A", 1), ("A", 1), ("B", 3), ("A longer end of it", 1), ("B", 2)];
        let mut cached = Vec::new();
        for (ends, n) in asked {
            let [found, expected] = [&shares, &reads].map(|server| ask(server, ends, n));
            assert!(expected["choices"][0]["doppler"]["logits_hash"].is_string(), "{expected}");
            assert_eq!(found["choices"], expected["choices"], "{ends} on {device}");
            assert_eq!(expected["usage"]["prompt_tokens_details"], json!({"cached_tokens": 0}));
            let (of, prompt) = (&found["usage"]["prompt_tokens_details"]["cached_tokens"], &found["usage"]["prompt_tokens"]);
            cached.push(of.as_u64().unwrap());
            assert!(of.as_u64() < prompt.as_u64(), "{found}");
        }
        // The oracle keeps what windows have passed.
        assert!(
            cached[0] == 0 && (*device == "gpu" || cached[1..].iter().all(|count| *count >= 8 && count % 8 == 0)),
            "{device}: {cached:?}"
        );
        // Answers to one prompt take all of it from the first, on every device.
        let (hits, queries) = (shares.number("prefix_cache_hits_total"), shares.number("prefix_cache_queries_total"));
        assert!(hits >= 60.0 && hits < queries, "{device}: {hits} of {queries}, {cached:?}");
        assert_eq!(reads.number("prefix_cache_hits_total"), 0.0);
    }
}

#[test]
fn what_a_request_changes_nobody_else_sees() {
    for device in devices() {
        let server = Server::new(&["--device", device, "--context", "64", "--allow-debug", "--sequences", "2"]);
        let ask = |watch: Value| server.complete(json!({"prompt": SKY, "max_tokens": 8, "doppler": watch}));
        let hash = |answer: &Answer| answer.fine()["choices"][0]["doppler"]["logits_hash"].as_str().unwrap().to_string();
        let plain = hash(&ask(json!({})));
        let set = json!({"set": ["ffn_out@1-2=zero"]});
        let debugged = ["debug", "--device", device, "--max-tokens", "8", "--set", "ffn_out@1-2=zero", "--json", "-", SKY];
        // Zeros are an anomaly, which its exit code says.
        let debugged = doppler(&debugged).record("done")["logits"].as_str().unwrap().to_string();
        let (changed, after) = (hash(&ask(set.clone())), hash(&ask(json!({}))));
        assert_eq!((&changed, &after), (&debugged, &plain), "{device}");
        assert_ne!(changed, plain);
        // Those that run meanwhile, too.
        let (ask, hash, set) = (&ask, &hash, &set);
        let together: Vec<String> = std::thread::scope(|scope| {
            let asked = (0..6).map(|i| if i % 2 == 0 { json!({}) } else { set.clone() });
            let threads: Vec<_> = asked.map(|watch| scope.spawn(move || hash(&ask(watch)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(together.iter().enumerate().all(|(i, found)| found == [&plain, &changed][i % 2]), "{together:?}");
        ask(json!({"set": ["ffn_out@99=zero"]})).refused(400, "ffn_out@99");
        ask(json!({"set": ["ffn_uot@1=zero"]})).refused(400, "ffn_out");
        ask(json!({"set": ["ffn_out@1=add:/etc/passwd"]})).refused(400, "requests may not");
        assert_eq!(hash(&ask(json!({}))), plain);
    }
}

#[test]
fn a_socket_serves_who_may_write_it() {
    let path = scratch("socket").join("s");
    let text = path.display().to_string();
    let args = ["serve", "--device", "cpu", "--context", "64", "--unix", &text];
    // What is there is left alone.
    std::fs::write(&path, "mine").unwrap();
    doppler(&args).refused(&["--unix", "something else is there"]);
    std::fs::remove_file(&path).unwrap();
    // A socket that nobody listens at is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    let body = json!({"prompt": SKY, "max_tokens": 8}).to_string();
    let mut answer = String::new();
    let mut stream = UnixStream::connect(&path).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    let second = doppler(&args);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let code = child.wait().unwrap().code();
    assert!(line.contains(&text) && answer.starts_with("HTTP/1.1 200") && answer.contains("\" blue.\""), "{line} {answer}");
    second.refused(&["another server listens there"]);
    assert_eq!((mode & 0o777, code, path.exists()), (0o600, Some(130), false));
    doppler(&["serve", "--unix", &text, "--port", "1"]).refused(&["--port"]);
}
