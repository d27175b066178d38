//! `--set` and `patch` through the binary: what is changed is said, the hash follows the values, dumps and bundles keep it.

use crate::support::{data, doppler, scratch};
use doppler::debug::dump::Dump;
use doppler::plan::{At, Stage};
use serde_json::Value;

const IDS: &str = "--token-ids=2,10,7,4,9";

fn debug(more: &[&str]) -> crate::support::Ran {
    let model = data("gemma2");
    let fixed = ["debug", "-m", &model, IDS, "--max-tokens", "3", "--device", "cpu", "--json", "-"];
    doppler(&[&fixed[..], more].concat())
}

fn hash(ran: &crate::support::Ran) -> Value {
    ran.record("done")["logits"].clone()
}

#[test]
fn what_is_changed_is_said_and_kept() {
    let folder = scratch("changing");
    let [dump, bundle] = ["changed.safetensors", "changed.bundle"].map(|name| folder.join(name).display().to_string());
    let plain = debug(&[]).fine();
    let zeroed = debug(&["--set", "ffn_out@1=zero", "--dump", &dump, "--bundle", &bundle]);
    // A value of zeros is a finding.
    assert_eq!(zeroed.code, Some(1), "{}{}", zeroed.stdout, zeroed.stderr);
    assert_ne!(hash(&plain), hash(&zeroed));
    assert_eq!(zeroed.record("config")["edited"], "ffn_out@1=zero");
    assert!(plain.record("config").get("edited").is_none());
    assert!(zeroed.stdout.contains("edited: ffn_out@1=zero"), "{}", zeroed.stdout);
    let read = Dump::open(dump.as_ref()).unwrap();
    assert_eq!(read.metadata["edited"], "ffn_out@1=zero");
    let value = read.value(At { stage: Stage::FfnOut, layer: Some(1) }).unwrap().unwrap();
    assert!(value.data.iter().all(|x| *x == 0.0));
    // A config says it in the same words.
    let config = r#"{"runtime":{"debug":{"set":["ffn_out@1=zero"]}}}"#;
    assert_eq!(hash(&debug(&["--config", config])), hash(&zeroed));
    // A change of tokens after the last one changes nothing.
    assert_eq!(hash(&debug(&["--set", "ffn_out@1,token=50-=zero"]).fine()), hash(&plain));
    // The values of a run put into itself change nothing; those of a changed one do.
    let original = folder.join("plain.safetensors").display().to_string();
    debug(&["--dump", &original, "--stages", "layer_out"]).fine();
    let from = |file: &str| format!("layer_out@1,token=2=from:{file}");
    assert_eq!(hash(&debug(&["--set", &from(&original)]).fine()), hash(&plain));
    assert_ne!(hash(&debug(&["--set", &from(&dump)]).fine()), hash(&plain));
    let model = data("gemma2");
    let again = doppler(&["compare", "replay", &bundle, "-m", &model, "--device", "cpu"]).fine();
    assert!(again.stdout.contains("same logits") || again.stdout.contains("REPLAY"), "{}", again.stdout);
    // Compared with itself, a changed run agrees when it is changed alike, and only then.
    let compare = |more: &[&str]| doppler(&[&["compare", &dump, "-m", &model, "--device", "cpu", "--floor", "dumps"][..], more].concat());
    assert_eq!(compare(&[]).code, Some(1));
    let alike = compare(&["--set", "ffn_out@1=zero"]).fine();
    assert!(alike.stdout.contains("edited: ffn_out@1=zero"), "{}", alike.stdout);
}

#[test]
fn what_cannot_be_changed_is_explained() {
    let refused = |set: &str, parts: &[&str]| {
        let ran = debug(&["--set", set]);
        assert_eq!(ran.code, Some(2), "{}{}", ran.stdout, ran.stderr);
        let said = ran.stdout + &ran.stderr;
        parts.iter().for_each(|part| assert!(said.contains(part), "expected `{part}` in: {said}"));
    };
    refused("layer_in@1=zero", &["layer_in@1=zero", "under another name", "change L0 layer_out"]);
    refused("ffn_out@1=scale:1", &["changes nothing"]);
    refused("ffn_out@9=zero", &["layers 0 to 2"]);
    refused("ffn_out@1=mean", &["mean:DUMP"]);
    refused("ffn_out@1,token=-9=zero", &["no token -9"]);
    refused("ffn_out@1=from:nowhere.safetensors", &["nowhere.safetensors"]);
    let model = data("gemma2");
    doppler(&["exam", "-m", &model, "--set", "ffn_out=zero"]).refused(&["--set"]);
}

#[test]
fn patches_find_where_prompts_differ() {
    let (model, folder) = (data("gemma2"), scratch("patching"));
    let prompts = ["2,10,7,4,9", "2,10,8,4,9"].map(|ids| {
        let file = folder.join(format!("{ids}.safetensors")).display().to_string();
        doppler(&[
            "debug",
            "-m",
            &model,
            "--token-ids",
            ids,
            "--max-tokens",
            "1",
            "--device",
            "cpu",
            "--dump",
            &file,
            "--stages",
            "embed_out",
        ])
        .fine();
        file
    });
    let page = folder.join("map.html").display().to_string();
    let fixed = ["patch", &prompts[0], &prompts[1], "-m", &model, "--device", "cpu", "--answer", "5", "--against", "6"];
    let ran = doppler(&[&fixed[..], &["--html", &page, "--contributions"]].concat()).fine();
    assert!(ran.stdout.contains("PATCH stage=layer_out answer=5(") && ran.stdout.contains("ADDS embed_out difference="), "{}", ran.stdout);
    assert!(std::fs::read_to_string(&page).unwrap().contains("<table class=\"heat digits\">"));
    let found: Value = serde_json::from_str(&doppler(&[&fixed[..], &["--json", "-"]].concat()).fine().stdout).unwrap();
    let regained = |layer: usize, token: usize| found["regained"][layer][token].as_f64().unwrap();
    assert_eq!((regained(0, 0), regained(0, 1), found["firstDifference"].as_u64()), (0.0, 0.0, Some(2)));
    assert!((regained(2, 4) - 1.0).abs() < 1e-3 && regained(2, 2).abs() < 1e-3, "{found}");
    doppler(&["patch", &prompts[0], &prompts[0], "-m", &model, "--device", "cpu"]).refused(&["the same tokens"]);
}
