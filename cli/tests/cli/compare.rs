//! `compare`: right runs agree on every device, a wrong config is named by the op that it makes wrong, and what cannot
//! be compared is explained.

use crate::support::{Ran, change_config, copy, data, devices, doppler, models, scratch, text};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(model: &str) -> String {
    data(&format!("{model}/golden.safetensors"))
}

/// The report on stdout.
fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr))
}

fn ended(ran: Ran, code: i32) -> Ran {
    assert_eq!(ran.code, Some(code), "{}{}", ran.stdout, ran.stderr);
    ran
}

/// A dump of a model's run of `ids`.
fn dump(folder: &Path, name: &str, model: &str, more: &[&str]) -> PathBuf {
    let file = folder.join(name);
    let args = ["debug", "--no-resident", "-m", model, "--device", "cpu", "--max-tokens", "3", "--dump", text(&file)];
    doppler(&[&args[..], more].concat()).fine();
    file
}

#[test]
fn transformers_and_live_runs_agree() {
    for device in devices() {
        for model in models() {
            for more in [&[][..], &["--isolated"]] {
                let args = ["compare", &golden(&model), "-m", &data(&model), "--device", device, "--dtype", "f32"];
                let ran = ended(doppler(&[&args[..], more].concat()), 0);
                let last = ran.stdout.trim_end().lines().last().unwrap_or_default();
                assert!(last.starts_with("AGREE worst "), "{model}: {}", ran.stdout);
                assert!(ran.stdout.contains("Floor    measured: "), "{}", ran.stdout);
            }
        }
    }
}

#[test]
fn a_wrong_config_is_named() {
    let folder = scratch("compare_wrong");
    for (key, value, stage, layer) in [
        ("attn_logit_softcapping", json!(null), "attn_scores", Some(0)),
        ("final_logit_softcapping", json!(null), "logits_final", None),
        ("sliding_window", json!(8), "attn_scores", Some(0)),
        ("query_pre_attn_scalar", json!(9), "attn_scores", Some(0)),
    ] {
        let wrong = copy("gemma2", &format!("compare_{key}"));
        change_config(&wrong, json!({ (key): value }));
        for mode in [&["--isolated"][..], &[]] {
            let (json, html) = (folder.join("report.json"), folder.join("report.html"));
            let args = ["compare", &golden("gemma2"), "-m", text(&wrong), "--device", "cpu"];
            let files = ["--json", text(&json), "--html", text(&html)];
            let ran = ended(doppler(&[&args[..], mode, &files].concat()), 1);
            let place = layer.map_or(String::new(), |layer: usize| format!("layer={layer} "));
            assert!(ran.stdout.starts_with(&format!("DIVERGENCE {place}stage={stage} token=")), "{key}: {}", ran.stdout);
            let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("a report")).expect("JSON");
            let first = &report["first_divergence"];
            assert_eq!((&first["stage"], &first["layer"]), (&json!(stage), &json!(layer)), "{key}");
            assert!(
                first["times_floor"].as_f64().is_some_and(|t| t > 100.0) && first["token"].is_u64() && first["dim"].is_u64(),
                "{first}"
            );
            let page = std::fs::read_to_string(&html).expect("a page");
            let page = page.replace("\"http://www.w3.org/2000/svg\"", "");
            assert!(page.contains("DIVERGENCE") && !page.contains("http"), "{key}");
            let place = layer.map_or(String::new(), |layer: usize| format!("layer.{layer}."));
            assert!(
                page.contains(&format!("href=\"#at-{place}{stage}\"")) && page.contains("<dt>Command</dt><dd>doppler compare "),
                "{key}"
            );
            // The oracle of these files agrees with the run of these files.
            let blamed = ran.stdout.contains("A departs from what these model files say");
            assert_eq!(blamed, mode.is_empty(), "{}", ran.stdout);
        }
    }
}

#[test]
fn two_dumps_say_that_their_floor_is_an_estimate() {
    let folder = scratch("compare_dumps");
    let (right, wrong) = (data("gemma2"), copy("gemma2", "compare_dumps_wrong"));
    change_config(&wrong, json!({ "attn_logit_softcapping": null }));
    let ids = ["--token-ids", "2,17,9,40,8"];
    let a = dump(&folder, "a", &right, &ids);
    let b = dump(&folder, "b", text(&wrong), &ids);
    let same = ended(doppler(&["compare", text(&a), text(&a)]), 0);
    assert!(same.stdout.contains("Floor    ESTIMATED, not measured") && same.stdout.contains("AGREE"), "{}", same.stdout);
    let ran = ended(doppler(&["compare", text(&a), text(&b)]), 1);
    assert!(ran.stdout.starts_with("DIVERGENCE layer=0 stage=attn_scores token="), "{}", ran.stdout);
    let ran = ended(doppler(&["compare", text(&a), text(&b), "-m", &right, "--json", "-"]), 1);
    let report = report(&ran);
    assert_eq!((&report["first_divergence"]["stage"], &report["stages"][0]["estimated_floor"]), (&json!("attn_scores"), &json!(false)));
    // The dump's own generated tokens are read again.
    let ran = ended(doppler(&["compare", text(&a), "-m", &right, "--json", "-"]), 0);
    assert!(ran.stdout.contains("\"tokens\": 7"), "{}", ran.stdout);
    let ran = ended(doppler(&["compare", text(&a), "-m", &right, "--prompt-only", "--isolated"]), 0);
    assert!(ran.stdout.contains("AGREE"), "{}", ran.stdout);
}

#[test]
fn a_missing_stage_is_told_and_can_be_left_out() {
    let folder = scratch("compare_missing");
    let model = data("qwen3");
    let a = dump(&folder, "a", &model, &["--token-ids", "2,17,9", "--stages", "layer_out,final_norm"]);
    let whole = dump(&folder, "whole", &model, &["--token-ids", "2,17,9"]);
    let ran = ended(doppler(&["compare", text(&a), text(&whole)]), 1);
    assert!(ran.stdout.contains("MISSING stage=q_norm layers=0-") && ran.stdout.contains("in=A"), "{}", ran.stdout);
    assert!(ran.stdout.lines().last().is_some_and(|line| line.starts_with("DIFFER no value is beyond")), "{}", ran.stdout);
    // A run could have it all.
    let ran = ended(doppler(&["compare", text(&a), "-m", &model]), 0);
    assert!(ran.stdout.contains("Note     A holds "), "{}", ran.stdout);
    ended(doppler(&["compare", text(&a), "-m", &model, "--stages", "layer_out,final_norm"]), 0);
    ended(doppler(&["compare", text(&a), "-m", &model, "--stages", "layer_out", "--layers", "0-1"]), 0);
    // Each layer is then computed from the reference's output of the layer before.
    let ran = ended(doppler(&["compare", text(&a), "-m", &model, "--isolated"]), 0);
    assert!(
        ran.stdout.contains("since.layer_out") || ran.stdout.lines().last().is_some_and(|line| line.starts_with("AGREE")),
        "{}",
        ran.stdout
    );
}

#[test]
fn two_runs_of_one_model() {
    let model = data("llama3");
    let ids = ["--token-ids", "5,6,7,8", "--max-tokens", "3", "--json", "-"];
    let args = ["compare", "-m", &model, "--a", "device=cpu", "--b", "device=cpu,dtype=f16"];
    let ran = ended(doppler(&[&args[..], &ids].concat()), 0);
    assert_eq!(report(&ran)["tokens"], 7);
    ended(doppler(&[&args[..], &ids, &["--isolated"]].concat()), 0);
    if devices().contains(&"gpu") {
        let args = ["compare", "-m", &model, "--a", "device=gpu,dtype=f16", "--b", "device=cpu"];
        ended(doppler(&[&args[..], &ids].concat()), 0);
    }
}

#[test]
fn what_follows_injected_values_is_judged() {
    let (a, wrong) = (golden("gemma2"), copy("gemma2", "compare_inject"));
    change_config(&wrong, json!({ "attn_logit_softcapping": 3.4 }));
    let fixed = ["compare", &a, "-m", text(&wrong), "--device", "cpu", "--dtype", "f32"];
    let run = |more: &[&str]| doppler(&[&fixed[..], &["--json", "-"], more].concat());
    let first = |ran: &Ran| report(ran)["first_divergence"].clone();
    assert_eq!(first(&ended(run(&[]), 1))["stage"], "attn_scores");
    let next = ended(run(&["--inject", "attn_scores@0"]), 1);
    assert_eq!((&first(&next)["layer"], &first(&next)["stage"]), (&json!(1), &json!("attn_scores")));
    let all = ended(run(&["--inject", "attn_scores"]), 0);
    assert_eq!(report(&all)["injected"], json!(["attn_scores"]));
    let lines = ended(doppler(&[&fixed[..], &["--inject", "attn_scores@0-1", "--inject", "attn_scores@2"]].concat()), 0).stdout;
    for part in [
        "Injected attn_scores@0-1 of A\nInjected attn_scores@2 of A\n",
        "AGREE",
        "what follows from attn_scores@0-1 and attn_scores@2 of A",
    ] {
        assert!(lines.contains(part), "expected {part} in {lines}");
    }
    // A side that runs keeps what the other one is given, whatever is compared.
    let model = data("gemma2");
    let runs =
        ["compare", "-m", &model, "--a", "device=cpu", "--b", "device=cpu,dtype=f16", "--token-ids", "5,6,7", "--stages", "layer_out"];
    ended(doppler(&[&runs[..], &["--inject", "ffn_in@1"]].concat()), 0);
    run(&["--inject", "ffn_out@0=zero"]).refused(&["those of the reference"]);
    run(&["--inject", "q_norm@0"]).refused(&["no such value"]);
    run(&["--inject", "ffn_out@0", "--isolated"]).refused(&["--inject", "every op"]);
    doppler(&["compare", &a, &a, "-m", &model, "--inject", "ffn_out@0"]).refused(&["--inject"]);
}

#[test]
fn what_cannot_be_compared_is_explained() {
    let folder = scratch("compare_bad");
    let model = data("llama3");
    let a = dump(&folder, "a", &model, &["--token-ids", "2,17,9"]);
    let b = dump(&folder, "b", &model, &["--token-ids", "2,17,8"]);
    let (a, b) = (text(&a), text(&b));
    doppler(&["compare", a, b]).refused(&["different prompts", "token 2 is id 9 in A", "id 8 in B"]);
    doppler(&["compare", a, &golden("qwen3")]).refused(&["different prompts"]);
    doppler(&["compare", a, "-m", &data("qwen3")]).refused(&["`embed_out` has 48", "different models"]);
    doppler(&["compare", a, "-m", &data("qwen3"), "--isolated"]).refused(&["different models"]);
    doppler(&["compare", a]).refused(&["add a second one"]);
    doppler(&["compare"]).refused(&["give two dumps"]);
    doppler(&["compare", a, &data("gemma2/model.safetensors")]).refused(&["no dump", "stage_table"]);
    doppler(&["compare", a, a, "--stages", "q_rpoe"]).refused(&["q_rope"]);
    doppler(&["compare", a, "-m", &model, "--b", "dtype=f8"]).refused(&["dtype=auto|f32|f16"]);
    let whole = std::fs::read(a).expect("a dump");
    let cut = folder.join("cut");
    std::fs::write(&cut, &whole[..whole.len() - 100]).expect("a file");
    doppler(&["compare", a, text(&cut)]).refused(&["cut"]);
}

/// A kernel that is wrong by one sign, digit or element is told from a config that is wrong.
#[test]
fn a_wrong_kernel_is_named() {
    if !devices().contains(&"gpu") {
        return;
    }
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/gpu/kernels");
    for (name, right, wrong, stages) in
        [("rope", "a * c - b * s", "a * c + b * s", &["q_rope", "k_rope"][..]), ("activation", "0.044715", "0.054715", &["ffn_act"])]
    {
        let file = format!("{name}.wgsl");
        let text_of = std::fs::read_to_string(kernels.join(&file)).or_else(|_| std::fs::read_to_string(kernels.join("shared").join(&file)));
        let text_of = text_of.expect("a kernel");
        assert!(text_of.contains(right), "{name} has no `{right}`");
        let folder = scratch(&format!("compare_kernel_{name}"));
        std::fs::write(folder.join(format!("{name}.wgsl")), text_of.replace(right, wrong)).expect("a file");
        for dtype in ["f32", "f16"] {
            let model = data("gemma2");
            let args = ["compare", &golden("gemma2"), "-m", &model, "--device", "gpu", "--dtype", dtype, "--kernels", text(&folder)];
            let ran = ended(doppler(&[&args[..], &["--isolated", "--json", "-"]].concat()), 1);
            let report = report(&ran);
            let off = report["stages"].as_array().expect("stages").iter().filter(|s| s["diverged"] == true);
            let mut off: Vec<(&str, u64)> = off.filter_map(|s| Some((s["stage"].as_str()?, s["layer"].as_u64()?))).collect();
            off.sort_unstable();
            // An op is judged alone, and in the group that computes it.
            off.dedup();
            let mut expected: Vec<(&str, u64)> = stages.iter().flat_map(|stage| (0..3).map(move |layer| (*stage, layer))).collect();
            expected.sort_unstable();
            assert_eq!(off, expected, "{name} {dtype}");
            let free = ended(doppler(&args), 1);
            assert!(free.stdout.starts_with(&format!("DIVERGENCE layer=0 stage={} ", stages[0])), "{}", free.stdout);
            assert!(free.stdout.contains("B departs from what the model files say (a kernel"), "{}", free.stdout);
        }
    }
}

/// Sketches in place of values tell the same places from a small file.
#[test]
fn a_sketch_is_compared() {
    let folder = scratch("compare_sketch");
    let demo = "demo";
    let (whole, sketch) = (dump(&folder, "whole", demo, &[]), dump(&folder, "sketch", demo, &["--sketch"]));
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(bytes(&sketch) * 2 < bytes(&whole), "{} {}", bytes(&sketch), bytes(&whole));
    let ran = ended(doppler(&["compare", text(&sketch), "-m", demo, "--device", "cpu", "--dtype", "f32"]), 0);
    assert!(ran.stdout.contains("AGREE worst "), "{}", ran.stdout);
    doppler(&["compare", text(&sketch), "-m", demo, "--device", "cpu", "--isolated"]).refused(&["sketch"]);
    // Its numbers tell a wrong model too.
    let wrong = folder.join("model");
    std::fs::create_dir_all(&wrong).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(built_in.join(name), wrong.join(name)).unwrap();
    }
    change_config(&wrong, json!({"attn_logit_softcapping": null}));
    let ran = ended(doppler(&["compare", text(&sketch), "-m", text(&wrong), "--device", "cpu", "--dtype", "f32"]), 1);
    assert!(ran.stdout.starts_with("DIVERGENCE layer=0 stage=attn_scores"), "{}", ran.stdout);
}

#[test]
fn agreement_over_a_text() {
    let folder = scratch("compare_text");
    let story = folder.join("story.txt");
    std::fs::write(&story, "Once upon a time there was a small fox named Luna.\n=====\nThe color of the sky is blue.").unwrap();
    let base = ["compare", "agree", text(&story), "--documents"];
    let run = |more: &[&str]| doppler(&[&base[..], more].concat());
    let same = ended(run(&["--a", "device=cpu,dtype=f32", "--b", "device=cpu,dtype=f32"]), 0);
    assert!(same.stdout.contains(" klMean=0.0±0.0 ") && same.stdout.contains(" sameTop=100.000%"), "{}", same.stdout);
    let json = ended(run(&["--a", "device=cpu,dtype=f32", "--b", "device=cpu,dtype=f16", "--json", "-"]), 0);
    let kl = report(&json)["kl"]["mean"].as_f64().unwrap();
    // Measured: 2e-10 nats.
    assert!(kl > 0.0 && kl < 1e-8, "{kl}");
    run(&["--a", "dtype=f32", "--max-kl", "-1"]).refused(&["--max-kl"]);
    run(&[]).refused(&["both sides are the same", "--reference"]);
    run(&["--isolated", "--a", "dtype=f32"]).refused(&["--isolated"]);
    doppler(&["compare", "attribute", "-m", "demo"]).refused(&["--reference"]);

    // A tensor that is off is named, by its numbers alone and by what restoring it regains.
    let wrong = folder.join("model");
    std::fs::create_dir_all(&wrong).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(built_in.join(name), wrong.join(name)).unwrap();
    }
    let weights = wrong.join("model.safetensors");
    let source = doppler::formats::InMemory::open(&weights).unwrap();
    let header = pollster::block_on(doppler::formats::safetensors::read_header(&source)).unwrap();
    let down = header.tensors.iter().find(|t| t.name.ends_with("layers.3.mlp.down_proj.weight")).unwrap().range.clone();
    let mut bytes = std::fs::read(&weights).unwrap();
    for x in bytes[down.start as usize..down.end as usize].as_chunks_mut::<2>().0 {
        // bf16: the exponent one higher is twice the number.
        let value = u16::from_le_bytes([x[0], x[1]]);
        if value & 0x7f80 != 0 {
            x.copy_from_slice(&(value + 0x80).to_le_bytes());
        }
    }
    std::fs::write(&weights, bytes).unwrap();
    let pair = ["compare", "attribute", "-m", text(&wrong), "--reference", "demo"];
    let noise = doppler(&pair);
    let named = |ran: &Ran| ran.stdout.lines().find(|line| line.starts_with("TENSOR ")).unwrap_or_default().to_string();
    assert!(named(&noise).contains("model.layers.3.mlp.down_proj.weight role=L3.down_proj sqnr=0.00dB"), "{}", noise.stdout);
    let regained = doppler(&[&pair[..], &["--text", text(&story), "--documents", "--device", "cpu", "--dtype", "f32"]].concat());
    assert!(named(&regained).contains("klShare=100"), "{}", regained.stdout);
}

#[test]
fn ids_of_a_text_are_compared() {
    let folder = scratch("compare_tokens");
    let (story, ids) = (folder.join("story.txt"), folder.join("ids.json"));
    std::fs::write(&story, "The color of the sky is").unwrap();
    let found = doppler(&["debug", "--device", "cpu", "--max-tokens", "0", "--json", "-", "-p", "The color of the sky is"]).fine();
    let mut expected: Vec<u32> = serde_json::from_value(found.record("output")["inputIds"].clone()).unwrap();
    let run = || doppler(&["compare", "tokens", text(&story), "--expect-ids", text(&ids)]);
    std::fs::write(&ids, json!(expected).to_string()).unwrap();
    assert_eq!(ended(run(), 0).stdout, format!("TOKENS {} equal\n", expected.len()));
    expected[3] += 1;
    std::fs::write(&ids, json!(expected).to_string()).unwrap();
    let ran = ended(run(), 1);
    assert!(ran.stdout.starts_with("TOKENS mismatch index=3 ") && ran.stdout.contains(" bytes="), "{}", ran.stdout);
}

#[test]
fn a_bundle_repeats_its_run() {
    let folder = scratch("compare_replay");
    let bundle = folder.join("run.bundle");
    for device in devices() {
        let args = ["debug", "--device", device, "--max-tokens", "3", "--bundle", text(&bundle)];
        let packed = doppler(&args).fine();
        assert!(packed.stdout.contains("Note replay bundle written to "), "{}", packed.stdout);
        let again = ended(doppler(&["compare", "replay", text(&bundle), "--device", device]), 0);
        assert!(again.stdout.contains("REPLAY verdict=\"same\"") && again.stdout.contains("AGREE worst 0.00× floor"), "{}", again.stdout);
    }
    // The bundle of a broken model holds what is around the finding, and says which file is another one.
    let broken = copy("gemma2", "compare_replay_model");
    let weights = broken.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let args = ["debug", "--device", "cpu", "-m", text(&broken), "-p", "The model", "--bundle", text(&bundle)];
    assert_eq!(doppler(&args).code, Some(1));
    let elsewhere = doppler(&["compare", "replay", text(&bundle), "-m", &data("gemma2"), "--device", "cpu"]);
    assert_eq!(elsewhere.code, Some(1), "{}{}", elsewhere.stdout, elsewhere.stderr);
    assert!(elsewhere.stdout.contains("model.safetensors"), "{}", elsewhere.stdout);
    doppler(&["compare", "replay", &golden("gemma2")]).refused(&["no replay bundle"]);
}

/// What a dump left out is no finding where the other side is a run; decode steps count where only scores are chosen.
#[test]
fn parts_of_runs_are_compared_whole() {
    let folder = scratch("compare_parts");
    let part = dump(&folder, "part", "demo", &["--stages", "layer_out,logits_final", "-p", "The sky is"]);
    let ran = ended(doppler(&["compare", text(&part), "-m", "demo", "--device", "cpu"]), 0);
    assert!(
        ran.stdout.contains("Note     A holds 8 of the 159 values that the model computes") && ran.stdout.contains("AGREE worst "),
        "{}",
        ran.stdout
    );
    let wrong = copy("gemma2", "compare_late_window");
    // Only tokens behind the prompt see that the window is another one.
    change_config(&wrong, json!({"sliding_window": 5}));
    let right = copy("gemma2", "compare_late_right");
    change_config(&right, json!({"sliding_window": 9}));
    let ids = ["--token-ids", "2,10,7,45,99"];
    let a = dump(&folder, "late_a", text(&right), &ids);
    for stages in ["attn_probs", "attn_scores,attn_probs"] {
        let ran = ended(doppler(&["compare", text(&a), "-m", text(&wrong), "--device", "cpu", "--stages", stages]), 1);
        assert!(
            ran.stdout.starts_with("DIVERGENCE layer=0 stage=attn_") && !ran.stdout.contains("each is right by itself"),
            "{}",
            ran.stdout
        );
    }
}

/// A run that ended in NaN is repeated too: that it fails again, and the values up to there.
#[test]
fn a_bundle_of_a_failure_is_replayed() {
    let folder = scratch("compare_failure");
    let broken = copy("gemma2", "compare_failure_model");
    let weights = broken.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let (bundle, model) = (folder.join("nan.bundle"), text(&broken));
    let packed = doppler(&["debug", "--device", "cpu", "-m", model, "-p", "The model", "--bundle", text(&bundle)]);
    assert_eq!(packed.code, Some(1), "{}", packed.stdout);
    let again = doppler(&["compare", "replay", text(&bundle), "-m", model, "--device", "cpu"]);
    assert!(
        again.stdout.contains("REPLAY verdict=\"same failure\"") && again.stdout.contains("\nCompared "),
        "{}{}",
        again.stdout,
        again.stderr
    );
    let two =
        doppler(&["compare", "-m", model, "--a", "device=cpu,dtype=f32", "--b", "device=cpu,dtype=f16", "--max-tokens", "3", "-p", "The"]);
    assert_eq!(two.code, Some(1), "{}{}", two.stdout, two.stderr);
    assert!(two.stdout.contains("non_finite_weights") && two.stdout.contains("Compared "), "{}", two.stdout);
}

/// A copy of the built-in model whose numbers have three bits of their mantissas.
fn coarse(folder: &Path) -> PathBuf {
    let model = folder.join("coarse");
    std::fs::create_dir_all(&model).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(built_in.join(name), model.join(name)).unwrap();
    }
    let mut bytes = std::fs::read(built_in.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].iter_mut().step_by(2).for_each(|low| *low &= 0xf0);
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
    model
}

#[test]
fn what_packing_costs_and_what_a_budget_buys() {
    let folder = scratch("compare_cost");
    let (story, packed) = (folder.join("story.txt"), coarse(&folder));
    std::fs::write(&story, "Once upon a time there was a small fox named Luna.\n=====\nThe color of the sky is blue.").unwrap();
    let cpu = ["--device", "cpu", "--dtype", "f32"];
    let run = |more: &[&str]| doppler(&[&["compare", "cost", "demo"], more, &cpu].concat());
    let base = ["-m", text(&packed), "--text", text(&story), "--documents"];
    let ran = ended(run(&base), 0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    // Nearly all of its bf16 are f16 too, so that there is no floor.
    assert!(lines[2].starts_with("Note in f16 the original loses nothing"), "{}", ran.stdout);
    assert!(lines[3].starts_with("FLOOR formats=f16,bf16 bits=16.000 tokens="), "{}", ran.stdout);
    assert!(lines[4].starts_with("COST formats=bf16 bits=16.000 tokens=") && lines.len() == 5, "{}", ran.stdout);
    let json = report(&ended(run(&[&base[..], &["--json", "-"]].concat()), 0))["cost"].clone();
    let kl = |side: &str| json[side]["kl"]["mean"].as_f64().unwrap();
    assert!(kl("packed") > 1e-6 && kl("floor") < 1e-6 && json["packed"]["deltaP"].as_f64().unwrap() > 0.0, "{json}");
    assert!(json["timesFloor"].is_null(), "{json}");
    let above = run(&[&base[..], &["--max-kl", "1e-9"]].concat());
    assert!(above.code == Some(1) && above.stdout.contains("ANOMALY kind=divergence "), "{}", above.stdout);
    // Without a text it is the built-in one.
    let same = ended(run(&["-m", "demo", "--text-tokens", "40"]), 0);
    assert!(same.stdout.contains(" tokens=40 ") && same.stdout.lines().last().unwrap().contains(" klMean=0.0±0.0 "), "{}", same.stdout);

    let imatrix = folder.join("imatrix.gguf");
    let made = ended(doppler(&[&["imatrix", "-m", "demo", "--text", text(&story), "-o", text(&imatrix)], &cpu[..]].concat()), 0);
    assert!(made.stdout.contains("IMATRIX tensors=50 tokens="), "{}", made.stdout);
    let short = ["--text-tokens", "60", "--window", "30", "--formats", "q3_k,q5_k,q8_0", "--imatrix", text(&imatrix)];
    let found = ended(run(&[&["--budget", "4.6"], &short[..]].concat()), 0);
    let last = |kind: &str| found.stdout.lines().find(|line| line.starts_with(kind)).unwrap_or_default().to_string();
    assert!(last("RECIPE ").starts_with("RECIPE name=suggested bits=4.") && last("PLAIN ").contains(" klMean=0."), "{}", found.stdout);
    // On so few tokens a plain recipe may be the better one; then that is said in place of the command.
    let command = last("CONVERT ").starts_with("CONVERT doppler convert demo -o OUT.gguf --quantize q");
    assert!(command != found.stdout.contains("Note the plain recipe "), "{}", found.stdout);
    assert_eq!(found.stdout.lines().filter(|line| line.starts_with("TENSOR ")).count(), 50);

    run(&[]).refused(&["--model"]);
    run(&["-m", &data("qwen2")]).refused(&["two copies of one model"]);
    run(&["--budget", "2", "--text-tokens", "60", "--window", "30"]).refused(&["too few"]);
    run(&["--budget", "4", "--text", text(&story)]).refused(&["one half of a text"]);
    run(&["--budget", "4", "--formats", "q9"]).refused(&["unknown format `q9`"]);
    run(&["--budget", "4.6", "--imatrix", text(&story)]).refused(&["expected a GGUF file"]);
}
