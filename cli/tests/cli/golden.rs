//! `debug` gives the ids and, dumped, the values that transformers gives, on every golden model and device.

use crate::support::{Ran, data, devices, doppler, golden, ids, list, models, relative, scratch, text};
use doppler::debug::dump::Dump;
use doppler::tensor::Tensor;

/// Relative L2 distance from transformers at every stage, the figure for the GPU in f32.
const TOLERANCE: f64 = 3e-5;

fn debug(model: &str, device: &str, more: &[&str]) -> Ran {
    let golden = golden(model);
    let (prompt, generated) = (golden.input_ids().unwrap(), golden.generated_ids().unwrap().unwrap());
    let (prompt, count, model) = (list(&prompt), generated.len().to_string(), data(model));
    let args = ["debug", "-m", &model, "--device", device, "--dtype", "f32", "--token-ids", &prompt, "--max-tokens", &count, "--json", "-"];
    let ran = doppler(&[&args[..], more].concat()).fine();
    assert_eq!(ids(&ran.record("output")["ids"]), generated, "{model} on {device}");
    ran
}

#[test]
fn ids_and_values_are_those_of_transformers() {
    let folder = scratch("golden_dumps");
    for device in devices() {
        for model in models() {
            let plain = debug(&model, device, &[]);
            let file = folder.join(format!("{model}.{device}.safetensors"));
            let dumped = debug(&model, device, &["--dump", text(&file)]);
            let noted = fusion_dropped(&dumped);
            let same = plain.record("done")["logits"] == dumped.record("done")["logits"];
            assert!(same || noted, "{model} on {device}: other logits with --dump, and no word about it");
            assert!(*device == "gpu" || (same && !noted), "the oracle fuses nothing");

            let without_scores = debug(&model, device, &["--dump", text(&file), "--stages", &not_scores(&model)]);
            assert_eq!(plain.record("done")["logits"], without_scores.record("done")["logits"], "{model} on {device}");
            assert!(!fusion_dropped(&without_scores), "{model} on {device}");

            let again = debug(&model, device, &["--dump", text(&file), "--stages", "all"]);
            assert_eq!(again.record("done")["logits"], dumped.record("done")["logits"], "{model} on {device}");
            compare(&Dump::open(&file).unwrap(), &golden(&model), &format!("{model} on {device}"));
        }
    }
}

fn fusion_dropped(ran: &Ran) -> bool {
    ran.records().iter().any(|r| r["type"] == "note" && r["text"].to_string().contains("fusion dropped"))
}

/// Every stage of a model that a fused attention computes too.
fn not_scores(model: &str) -> String {
    let table = doppler(&["stages", "-m", &data(model), "--json", "-"]).fine();
    let table: serde_json::Value = serde_json::from_str(&table.stdout).unwrap();
    let has = |row: &&serde_json::Value| row["present"] == true && row["shape"] != "[heads, tokens, positions]";
    let rows = table["stages"].as_array().unwrap().iter().filter(has);
    rows.map(|row| row["name"].as_str().unwrap().to_string()).collect::<Vec<_>>().join(",")
}

fn compare(ours: &Dump, golden: &Dump, what: &str) {
    assert_eq!(ours.input_ids().unwrap(), golden.input_ids().unwrap(), "{what}");
    assert_eq!(ours.generated_ids().unwrap(), golden.generated_ids().unwrap(), "{what}");
    assert!(ours.metadata.contains_key("model") && ours.metadata["dtype"] == "f32" && ours.metadata["tool"] == "doppler");
    let steps = golden.generated_ids().unwrap().unwrap().len() - 1;
    for at in golden.stages() {
        let (mut found, expected) = (value(ours, *at, what), value(golden, *at, what));
        if expected.shape.len() == 2 {
            assert_eq!(found.rows(), expected.rows() + steps, "{what}: {at} of prompt and decode steps");
            found.data.truncate(expected.data.len());
        } else {
            assert_eq!(found.shape, expected.shape, "{what}: {at}");
            for step in 1..=steps {
                let later = ours.step_value(step, *at).unwrap().unwrap_or_else(|| panic!("{what}: no {at} of step {step}"));
                assert_eq!(later.shape, [expected.shape[0], 1, expected.shape[2] + step], "{what}: {at} of step {step}");
            }
        }
        let distance = relative(&found, &expected);
        assert!(distance <= TOLERANCE, "{what}: {at} is off by {distance:.2e}");
    }
}

fn value(dump: &Dump, at: doppler::plan::At, what: &str) -> Tensor {
    dump.value(at).unwrap().unwrap_or_else(|| panic!("{what}: no {at}"))
}

#[test]
fn f16_gives_the_same_answer_kinds() {
    for device in devices() {
        let prompt = list(&golden("llama3").input_ids().unwrap());
        let args = ["debug", "-m", &data("llama3"), "--device", device, "--dtype", "f16", "--token-ids", &prompt, "--json", "-"];
        let ran = doppler(&args).fine();
        assert_eq!(ran.record("config")["dtype"], "f16");
        assert_eq!(ran.record("done")["tokens"], 32);
    }
}

#[test]
fn chunks_and_limits_change_nothing() {
    let whole = debug("gemma2", "cpu", &[]);
    assert_eq!(debug("gemma2", "cpu", &["--prefill-chunk", "3"]).record("done")["logits"], whole.record("done")["logits"]);
    if devices().contains(&"gpu") {
        debug("gemma2", "gpu", &["--prefill-chunk", "3"]);
        debug("gemma2", "gpu", &["--limits", "floor"]);
        let kernels = format!("{}/../src/gpu/kernels", env!("CARGO_MANIFEST_DIR"));
        debug("gemma2", "gpu", &["--kernels", &kernels]);
    }
}

#[test]
fn the_lines_are_as_documented_and_a_healthy_run_is_quiet() {
    for device in devices() {
        let ran = doppler(&["debug", "-m", &data("gemma2"), "--device", device, "-p", "The model says", "--max-tokens", "4"]).fine();
        let lines: Vec<&str> = ran.stdout.lines().collect();
        let [config, prompt, output, done] = lines[..] else { panic!("{}", ran.stdout) };
        assert!(config.starts_with("Config model=gemma2 preset=gemma2 layers=3 hidden=40 vocab=331 weights=bf16 dtype="), "{config}");
        assert!(prompt.starts_with("Prompt ") && prompt.ends_with(" tokens: <bos>The model says"), "{prompt}");
        assert!(output.starts_with("Output "), "{output}");
        let hash = done.rsplit_once(" logits=").expect("a hash").1;
        assert!(hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{done}");
        let done: Vec<&str> = done.split(' ').collect();
        assert_eq!((done[0], done[1], done[2], done[3], done[5], done[6]), ("Done", "4", "tokens", "in", "ms", "(prefill"));
        for word in ["Error", "NaN", "Inf", "ANOMALY"] {
            assert!(!config.contains(word) && !done.contains(&word) && !ran.stderr.contains(word), "{}{}", ran.stdout, ran.stderr);
        }
        assert_eq!(ran.stderr, "");
    }
}
