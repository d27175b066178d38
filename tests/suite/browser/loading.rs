//! What the cases of `loading.js` must give.

use super::made::{PADDING, WIDE, small_bytes};
use super::{case, error, ids, questions, root};
use doppler::config::ResolveOptions;
use doppler::cpu::CpuExecutor;
use doppler::exec::Storage;
use doppler::formats::{Local, LocalFile};
use doppler::inference::session::{GenerateOptions, Session, SessionOptions};
use doppler::loader::load;
use doppler::open::{Opened, open_gguf};
use pollster::block_on;
use serde_json::{Value, json};
use std::ops::ControlFlow;

/// Bytes that came from `from` when a model was loaded.
fn bytes(tried: &Value, from: &str) -> u64 {
    tried["loading"][from].as_u64().unwrap_or_else(|| panic!("{tried}"))
}

fn notes(tried: &Value) -> String {
    tried["notes"].as_array().expect("notes").iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_model_is_downloaded_once() {
    let Some(found) = case("cached") else { return };
    for how in ["first", "again", "off", "damaged", "mended", "offline", "changed", "after"] {
        assert_eq!(found[how]["ids"], found["plain"]["ids"], "{how}");
    }
    let all = small_bytes();
    assert!(bytes(&found["first"], "network") >= all && bytes(&found["first"], "cache") == 0, "{}", found["first"]);
    assert!(found["first"]["cached"] == true && notes(&found["first"]).is_empty(), "{}", found["first"]);
    assert!(found["plain"]["cached"] == false && notes(&found["plain"]).contains("neither ETag nor Last-Modified"));
    for how in ["again", "mended", "after"] {
        assert_eq!((bytes(&found[how], "network"), bytes(&found[how], "cache")), (0, all), "{how}: {}", found[how]);
        assert_eq!((&found[how]["from"], notes(&found[how]).as_str()), (&json!(["cache"]), ""), "{how}");
    }
    assert!(bytes(&found["off"], "cache") == 0 && found["off"]["cached"] == false);
    // One piece was changed, another cut: both are fetched again, and nothing else.
    let again = bytes(&found["damaged"], "network");
    assert!(again > 1 << 20 && again < all && bytes(&found["damaged"], "cache") == all - again, "{}", found["damaged"]);
    assert!(notes(&found["damaged"]).contains("damaged pieces in the cache that were fetched again: 1"), "{}", notes(&found["damaged"]));
    assert_eq!((bytes(&found["offline"], "network"), bytes(&found["offline"], "cache")), (0, all));
    assert!(notes(&found["offline"]).contains("without asking the server"), "{}", notes(&found["offline"]));
    // Another version is another content, and the earlier one is gone: one large piece.
    assert_eq!((bytes(&found["changed"], "cache"), &found["contents"]), (0, &json!(1)));
    for tried in found["both"].as_array().expect("two") {
        assert_eq!(tried["ids"], found["plain"]["ids"]);
    }
    let row = &found["list"][0];
    assert_eq!((&row["model"], row["files"].as_array().map(Vec::len)), (&json!("small"), Some(2)), "{row}");
    assert!(row["bytes"].as_u64() > Some(all) && row["source"].as_str().is_some_and(|s| s.ends_with("/tagged/small/")), "{row}");
    assert!(found["estimate"]["models"] == 1 && found["estimate"]["bytes"] == row["bytes"], "{}", found["estimate"]);
    assert!(found["estimate"]["quota"].as_f64() > found["estimate"]["usage"].as_f64(), "{}", found["estimate"]);
    assert_eq!((&found["inUse"], &found["removed"], &found["empty"]), (&json!(0), &json!(1), &json!([[], 0])));
    assert!(error(&found["nothing"], "io").contains("the connection failed"), "{}", found["nothing"]);
}

/// 180 MB of weights: four pieces of 16 MiB are on their way at once (67 MB measured), and wasm, which holds a band of
/// 16 MiB or two beside what it is, had 21 MB.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are a point of --nocapture")]
fn a_broken_download_goes_on_and_memory_stays_small() {
    let Some(found) = case("interrupted") else { return };
    assert_eq!(found["broken"]["name"], "AbortError", "{}", found["broken"]);
    let (weights, stopped) = (found["weightBytes"].as_u64().expect("bytes"), found["stopped"].as_u64().expect("bytes"));
    assert!(weights > 170_000_000, "{weights}");
    assert!(stopped > weights * 2 / 5 && stopped < weights, "{stopped} of {weights}");
    let (network, cache) = (bytes(found, "network"), bytes(found, "cache"));
    // Each piece has a checksum of 32 bytes, in the cache only.
    // What was on its way when the page gave up may have come.
    assert!(cache + 64 * 32 > stopped && cache < stopped + (5 << 24), "{cache} of {stopped}");
    // Norms are half as large in the file as on the device.
    assert!(network + cache + (1 << 16) > weights && network + cache < weights + (1 << 20), "{network} and {cache} of {weights}");
    assert!(notes(found).is_empty(), "{}", notes(found));
    assert_eq!(found["ids"], found["same"]);
    for loading in [&found["loading"], &found["uncached"]] {
        let (peak, wasm) = (loading["peak"].as_u64().expect("bytes"), loading["wasm"].as_u64().expect("bytes"));
        println!("browser: {weights} bytes of weights, at most {peak} in JavaScript, {wasm} of wasm, {} ms", loading["milliseconds"]);
        assert!(peak <= 5 << 24, "{loading}");
        assert!(wasm <= 64 << 20, "{loading}");
    }
}

#[test]
fn a_full_disk_is_no_error() {
    let Some(found) = case("quota") else { return };
    for how in ["full", "small", "evicting", "again"] {
        assert_eq!(found[how]["ids"], found["again"]["ids"], "{how}");
    }
    assert!(found["full"]["cached"] == false && notes(&found["full"]).contains("no more room"), "{}", found["full"]);
    assert!(
        found["small"]["cached"] == false && notes(&found["small"]).contains("MB are needed, the browser has room for 0"),
        "{}",
        found["small"]
    );
    // The other model made room.
    assert_eq!((&found["before"], &found["list"]), (&json!(["gemma2"]), &json!(["small"])));
    assert!(found["evicting"]["cached"] == true && notes(&found["evicting"]).is_empty(), "{}", found["evicting"]);
    assert_eq!(bytes(&found["again"], "network"), 0);
}

#[test]
fn models_come_from_a_hub_and_are_what_it_says() {
    let Some(found) = case("hub") else { return };
    for how in ["again", "mirror", "offline", "token"] {
        assert_eq!(found[how]["ids"], found["first"]["ids"], "{how}");
    }
    assert!(bytes(&found["first"], "network") >= small_bytes() && found["first"]["cached"] == true, "{}", found["first"]);
    // Another revision with the same files, and a mirror of them: stored once.
    assert_eq!((bytes(&found["again"], "network"), &found["contents"]), (0, &json!(1)), "{}", found["again"]);
    assert_eq!(found["list"], json!(["test/demo@v1", "test/demo"]));
    assert!(bytes(&found["mirror"], "cache") > 1 << 20, "{}", found["mirror"]);
    assert_eq!(bytes(&found["offline"], "network"), 0);
    assert!(notes(&found["offline"]).contains("does not answer"), "{}", notes(&found["offline"]));
    for (what, texts) in [
        ("gated", &["test/gated", "gated", "licence", "`token`"][..]),
        ("gatedToken", &["gated", "ask for access"]),
        ("private", &["401", "needs a `token`", "./test/private/"]),
        ("absent", &["no such model", "./test/nothing/"]),
        ("revision", &["no revision `v7`"]),
        ("corrupt", &["model.safetensors", "SHA-256", "load again"]),
        ("corruptUncached", &["model.safetensors", "SHA-256"]),
    ] {
        let message = error(&found[what], "io");
        assert!(texts.iter().all(|text| message.contains(text)), "{what}: {message}");
    }
    assert_eq!((&found["kept"], &found["left"]), (&json!(0), &json!(0)));
}

#[test]
fn a_lost_device_is_recovered() {
    let Some(found) = case("lost") else { return };
    for (how, kind) in [("worker", "device"), ("beside", "device"), ("crash", "crash")] {
        let found = &found[how];
        let message = error(&found["pending"], kind);
        assert!(message.contains("is being loaded again"), "{how}: {message}");
        assert!(found["dead"].is_null() && found["reloaded"] == true, "{how}: {found}");
        let losses = found["losses"].as_array().expect("losses");
        assert!(losses.len() == 1 && losses[0]["kind"] == kind && losses[0]["recovering"] == true, "{how}: {losses:?}");
        assert_eq!(losses[0]["reason"], if kind == "device" { "destroyed" } else { "crash" });
        for (a, b) in [("third", "expected"), ("later", "plain")] {
            assert_eq!(found[a]["ids"], found[b]["ids"], "{how} {a}");
        }
        assert_eq!(
            (&found["third"]["sequence"], &found["length"]),
            (&found["expected"]["sequence"], &found["expected"]["sequence"]),
            "{how}"
        );
    }
    let message = error(&found["off"][0], "device");
    assert!(message.contains("destroyed") && message.contains("load the model again"), "{message}");
    assert_eq!((error(&found["off"][1], "device"), &found["off"][2]), (message, &json!("device")));
    for i in 0..3 {
        assert!(error(&found["often"][i], "device").contains("being loaded again"), "{i}: {}", found["often"]);
    }
    assert!(error(&found["often"][3], "device").contains("4 times in a row; load the model again"), "{}", found["often"]);
    assert_eq!(found["given"], found["often"][3]);
}

#[test]
fn memory_is_forecast_and_refused() {
    let Some(found) = case("memory") else { return };
    let rows = found["forecast"]["rows"].as_array().expect("rows");
    let weights: u64 = rows.iter().filter(|row| row["what"] == "weights").filter_map(|row| row["bytes"].as_u64()).sum();
    // 2 layers of 2048 x (2048 + 2048 + 2 x 512 + 3 x 5632) and an embedding, in bf16; their two norms and the last one, in f32.
    assert_eq!(weights, 2 * (2 * 2048 * (2 * 2048 + 2 * 512 + 3 * 5632) + 512 * 2048) + 4 * (2 * 2 + 1) * 2048);
    // 2 layers, keys and values, 512 positions of 4 heads of 128 in f32.
    let cache = rows.iter().find(|row| row["what"] == "kv cache").expect("a cache");
    assert_eq!(cache["bytes"], 2 * 2 * 512 * 4 * 128 * 4);
    let sum: u64 = rows.iter().filter_map(|row| row["bytes"].as_u64()).sum();
    assert_eq!((&found["forecast"]["total"], found["tiny"]["total"].as_u64() > Some(0)), (&json!(sum), true));
    let message = error(&found["budget"], "memory");
    assert!(message.contains("weights alone are too large") && message.contains("\ntotal") && message.contains("kv cache"), "{message}");
    assert_eq!(found["enough"], 3);
    let message = error(&found["poor"], "memory");
    assert!(message.contains("out of device memory") && message.contains("\ntotal"), "{message}");
    assert!(error(&found["option"], "invalid").contains("memory"));
}

#[test]
fn tensors_may_lie_behind_4_gib() {
    let Some(found) = case("huge") else { return };
    for how in ["far", "kept", "again"] {
        assert_eq!(found[how]["ids"], found["plain"]["ids"], "{how}");
    }
    assert!(found["size"].as_u64() > Some(PADDING), "{}", found["size"]);
    assert!(bytes(&found["far"], "network") < 1 << 20, "{}", found["far"]);
    assert_eq!(bytes(&found["again"], "network"), 0, "{}", found["again"]);
}

/// What the oracle makes of the ids that the case gives to a fixture.
fn oracle(name: &str) -> Vec<u32> {
    let path = root().join("tests/fixtures/gguf").join(name);
    let sources = vec![Local::File(LocalFile::open(&path).expect("a fixture"))];
    let files = block_on(open_gguf(path, sources)).expect("a GGUF file");
    let model = Opened::new(name.into(), files, ResolveOptions::default()).expect("a model");
    let weights = block_on(model.weights()).expect("its weights");
    let mut executor = CpuExecutor::<f32>::new(model.plan.clone(), Storage::F32).expect("an oracle");
    block_on(load(&model.plan, &weights.checkpoint, &weights.matched, false, &mut executor, &mut |_| {})).expect("loaded weights");
    let options = SessionOptions { capacity: 16, chunk: 16, valid_vocab: model.plan.vocab_size, pad: None };
    let mut session = Session::new(&executor, options).expect("a session");
    let generate = GenerateOptions { max_tokens: 3, ..Default::default() };
    block_on(session.generate(&[5, 6, 7], &generate, None, &mut |_| ControlFlow::Continue(()))).expect("ids").ids
}

#[test]
fn gguf_files_are_models_wherever_they_come_from() {
    let Some(found) = case("gguf") else { return };
    let (gemma, phi) = (oracle("gemma.f16.gguf"), oracle("phi3.q8_0.gguf"));
    assert_eq!(ids(&found["packed"]["ids"]), phi, "packed weights");
    assert_eq!(ids(&found["moved"]["ids"]), oracle("llama3.f16.gguf"), "rows of pairs");
    let plain = ["plain", "second", "hub"].map(|how| &found[how]);
    let cached = ["wide.gguf", "split/tiny-00001-of-00002.gguf"].map(|name| &found[name]);
    let files = found["files"].as_array().expect("two");
    for tried in plain.into_iter().chain(files).chain(cached.iter().flat_map(|both| [&both["first"], &both["again"]])) {
        assert_eq!(ids(&tried["ids"]), gemma, "{tried}");
    }
    assert_eq!((ids(&found["hubEnd"]["ids"]), ids(&found["offline"]["ids"])), (phi.clone(), phi));
    assert!(bytes(&found["offline"], "network") == 0 && notes(&found["offline"]).contains("does not answer"), "{}", found["offline"]);
    for both in cached {
        let (all, again) = (bytes(&both["first"], "network"), bytes(&both["again"], "cache"));
        assert!(all > 0 && bytes(&both["again"], "network") == 0 && again == all, "{both}");
        assert!(both["first"]["cached"] == true && notes(&both["again"]).is_empty(), "{both}");
    }
    // The header comes in pieces, once, and nothing else does with it.
    assert!(bytes(&found["wide.gguf"]["first"], "network") > WIDE as u64, "{}", found["wide.gguf"]);
    assert!(files.iter().all(|tried| bytes(tried, "file") > 0 && bytes(tried, "network") == 0));
    let expected = ["test/gguf@v1:q8_0", "test/gguf:gemma.f16.gguf", "tiny-00001-of-00002.gguf", "wide.gguf"];
    assert_eq!(found["list"], json!(expected));
    for (what, kind, texts) in [
        ("several", "io", &["test/gguf:FILE", "gemma.f16.gguf  92.7 kB", "phi3.q8_0.gguf"][..]),
        ("typo", "io", &["gemma.f61.gguf", "did you mean `gemma.f16.gguf`"]),
        ("severalFiles", "io", &["several GGUF models", "give its file or files alone"]),
        ("partMissing", "io", &["tiny-00001-of-00002.gguf", "1 of the 2 files"]),
        ("absent", "io", &["none.gguf", "404"]),
        ("cut", "format", &["gemma.f16.gguf", "truncated"]),
        ("lying", "format", &["lying.gguf"]),
        ("web", "format", &["page.gguf", "a web page"]),
        ("config", "invalid", &["config.json", "GGUF"]),
    ] {
        let message = error(&found[what], kind);
        assert!(texts.iter().all(|text| message.contains(text)), "{what}: {message}");
    }
}

#[test]
fn shards_of_a_manifest_are_compared_with_their_hashes() {
    let Some(found) = case("manifest") else { return };
    let (_, expected) = questions().into_iter().find(|(item, _)| item["chat"] == false).expect("a text");
    for how in ["first", "again", "offline", "copy", "files"] {
        assert_eq!(ids(&found[how]["ids"]), expected, "{how}");
    }
    let all = bytes(&found["first"], "network");
    assert!(all > 9_000_000 && found["first"]["cached"] == true && notes(&found["first"]).is_empty(), "{}", found["first"]);
    for how in ["again", "offline"] {
        assert_eq!((bytes(&found[how], "network"), bytes(&found[how], "cache")), (0, all), "{how}: {}", found[how]);
    }
    assert_eq!((notes(&found["again"]).as_str(), &found["list"]), ("", &json!([["manifest", 3]])));
    assert!(notes(&found["offline"]).contains("without asking the server"), "{}", notes(&found["offline"]));
    // Equal files are stored once.
    let (network, cache) = (bytes(&found["copy"], "network"), bytes(&found["copy"], "cache"));
    assert!(network > 0 && network < 1 << 20 && network + cache == all, "{}", found["copy"]);
    assert!(bytes(&found["files"], "file") > 9_000_000 && bytes(&found["files"], "network") == 0, "{}", found["files"]);
    assert_eq!(found["kept"], 0, "what is corrupt is not kept");
    for (what, kind, texts) in [
        ("corrupt", "io", &["part-0.bin", "SHA-256", "load again"][..]),
        ("corruptUncached", "io", &["part-0.bin", "SHA-256"]),
        ("nowhere", "io", &["part-0.bin", "it changed on the server"]),
        ("corruptFile", "format", &["shard part-1.bin is corrupt", "SHA-256"]),
        ("corruptText", "format", &["tokenizer_config.json", "not the file that the manifest lists", "SHA-256"]),
        ("missing", "weights", &["1 of 3 weight files are missing", "part-2.bin"]),
        ("missingText", "io", &["tokenizer.json", "manifest.json lists"]),
        ("version", "format", &["manifest.json", "version 2"]),
        ("other", "io", &["neither model.safetensors nor"]),
    ] {
        let message = error(&found[what], kind);
        assert!(texts.iter().all(|text| message.contains(text)), "{what}: {message}");
    }
}
