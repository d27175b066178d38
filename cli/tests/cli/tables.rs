//! `inspect`, `stages`, `devices`, and what `debug` tells of its own config.

use crate::support::{change_config, copy, data, devices, doppler, models, scratch, text};
use serde_json::{Value, json};

fn json_of(args: &[&str]) -> Value {
    let ran = doppler(&[args, &["--json", "-"]].concat()).fine();
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.stdout))
}

#[test]
fn inspect_shows_every_model() {
    for model in models() {
        let shown = doppler(&["inspect", &data(&model)]).fine();
        for part in ["vocabSize", "config.json ", "Plan: ", "linear head", "Tensors: ", "Memory for ", "total"] {
            let tied = part == "linear head" && shown.stdout.contains("linear embed");
            assert!(shown.stdout.contains(part) || tied, "{model}: no `{part}` in\n{}", shown.stdout);
        }
        let json = json_of(&["inspect", &data(&model)]);
        let config = json["config"].as_object().unwrap();
        let sources = json["sources"].as_array().unwrap();
        // Of what there is none, nothing says how it is.
        for (field, _) in config.iter().filter(|(_, value)| !value.as_array().is_some_and(Vec::is_empty)) {
            let named = |row: &Value| row["field"].as_str().unwrap().split(['.', '[']).next() == Some(field);
            assert!(sources.iter().any(named), "{model}: no source of {field}");
        }
        assert!(json["memory"]["total"].as_u64().unwrap() > 0 && !json["tensors"].as_array().unwrap().is_empty());
    }
}

#[test]
fn inspect_explains_a_config_whose_weights_do_not_fit() {
    let folder = copy("llama2", "inspect_misfit");
    change_config(&folder, json!({"intermediate_size": 200}));
    let ran = doppler(&["inspect", text(&folder)]).refused(&["of another shape"]);
    assert!(ran.stdout.contains("intermediateSize") && ran.stdout.contains("Plan: "), "{}", ran.stdout);
    let alone = doppler(&["inspect", text(&folder.join("config.json"))]).fine();
    assert!(alone.stdout.contains("Plan: "));
}

#[test]
fn stages_with_and_without_a_model() {
    let table = json_of(&["stages"]);
    let names = |table: &Value| -> Vec<String> {
        table["stages"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_string()).collect()
    };
    assert!(names(&table).contains(&"attn_core_out".to_string()) && table["stages"][0].get("present").is_none());
    let gemma2 = json_of(&["stages", "-m", &data("gemma2")]);
    assert_eq!(names(&table), names(&gemma2));
    let row = |name: &str| gemma2["stages"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    assert_eq!((&row("q_proj")["width"], &row("q_proj")["layers"]), (&json!(48), &json!([0, 1, 2])));
    assert_eq!(row("q_proj")["huggingFace"], "model.layers.{layer}.self_attn.q_proj");
    assert_eq!((&row("q_norm")["present"], &row("logits_final")["present"]), (&json!(false), &json!(true)));
    assert!(doppler(&["stages", "-m", &data("gemma2")]).fine().stdout.contains("absent"));
    assert!(doppler(&["stages"]).fine().stdout.contains("also called attn_out"));
    let config = format!("{}/config.json", data("gemma2"));
    assert_eq!(json_of(&["stages", "-m", &config])["stages"], gemma2["stages"]);
}

#[test]
fn devices_pass_their_self_test() {
    let listed = json_of(&["devices"]);
    let tested: Vec<&Value> = listed["adapters"].as_array().unwrap().iter().filter(|a| !a["selfTest"].is_null()).collect();
    assert_eq!(tested.is_empty(), !devices().contains(&"gpu"), "{listed}");
    assert!(tested.iter().all(|a| a["selfTest"]["passed"] == true), "{listed}");
}

#[test]
fn presets_and_the_merged_config_can_be_seen() {
    let presets = doppler(&["debug", "--list-presets"]).fine().stdout;
    assert!(presets.lines().any(|line| line.starts_with("gemma2-debug ")), "{presets}");
    let dumped = doppler(&["debug", "--config", "floor", "--top-k", "9", "--dump-config"]).fine().stdout;
    let dumped: Value = serde_json::from_str(&dumped).unwrap();
    assert_eq!(dumped["runtime"]["inference"]["limits"], "floor");
    assert_eq!(dumped["runtime"]["inference"]["sampling"]["topK"], 9);
    let file = scratch("config_file").join("mine.json");
    std::fs::write(&file, dumped.to_string()).unwrap();
    let again = doppler(&["debug", "--config", text(&file), "--dump-config"]).fine().stdout;
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), dumped);
}

#[test]
fn lines_and_their_twins_can_go_to_a_file() {
    let file = scratch("json_file").join("lines.jsonl");
    let args = ["debug", "-m", &data("llama2"), "--device", "cpu", "--token-ids", "2", "--max-tokens", "2", "--json", text(&file)];
    let ran = doppler(&args).fine();
    assert!(ran.stdout.starts_with("Config "));
    let twins: Vec<Value> = std::fs::read_to_string(&file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<&str> = twins.iter().map(|r| r["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["config", "prompt", "output", "done"]);
}
