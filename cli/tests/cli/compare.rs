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
            assert!(page.contains("DIVERGENCE") && !page.contains("http"), "{key}");
            // The oracle of these files agrees with the run of these files.
            let blamed = ran.stdout.contains("A was computed otherwise than these model files say");
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
    let ran = ended(doppler(&["compare", text(&a), "-m", &model]), 1);
    assert!(ran.stdout.contains("MISSING stage=q_norm layers=0-") && ran.stdout.contains("in=A"), "{}", ran.stdout);
    ended(doppler(&["compare", text(&a), "-m", &model, "--stages", "layer_out,final_norm"]), 0);
    ended(doppler(&["compare", text(&a), "-m", &model, "--stages", "layer_out", "--layers", "0-1"]), 0);
    doppler(&["compare", text(&a), "-m", &model, "--isolated"]).refused(&[
        "lacks values",
        "q_norm (layers 0-",
        "embed_out",
        "--stages all",
    ]);
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
        [("rope", "a * c - b * s", "a * c + b * s", &["q_rope", "k_rope"][..]), ("gated_act", "0.044715", "0.054715", &["ffn_act"])]
    {
        let text_of = std::fs::read_to_string(kernels.join(format!("{name}.wgsl"))).expect("a kernel");
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
            let mut expected: Vec<(&str, u64)> = stages.iter().flat_map(|stage| (0..3).map(move |layer| (*stage, layer))).collect();
            expected.sort_unstable();
            assert_eq!(off, expected, "{name} {dtype}");
            let free = ended(doppler(&args), 1);
            assert!(free.stdout.starts_with(&format!("DIVERGENCE layer=0 stage={} ", stages[0])), "{}", free.stdout);
            assert!(free.stdout.contains("B computes otherwise than the model files say (a kernel"), "{}", free.stdout);
        }
    }
}
