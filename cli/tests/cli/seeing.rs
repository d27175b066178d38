//! What `debug` shows, as the documents write its command lines: through a shell, `grep` and `sed`, on a random Gemma 2
//! of 26 layers that is large enough for their layers and dims.

use crate::support::{change_config, command, copy, devices, doppler, finish, scratch, text};
use doppler::debug::dump::Dump;
use doppler::plan::{At, Stage};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const LAYERS: usize = 26;
const HIDDEN: usize = 336;
const VOCAB: usize = 17_040;
const INNER: usize = 256;
const HEAD: usize = 32;

/// A random Gemma 2 with bf16 weights of the spread of a trained one: 26 layers, 336 wide, 17,040 ids.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = copy("gemma2", "wide_gemma2");
        let kinds: Vec<&str> = (0..LAYERS).map(|i| if i % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect();
        change_config(
            &folder,
            json!({"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "vocab_size": VOCAB, "intermediate_size": INNER,
                "head_dim": HEAD, "num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": HEAD,
                "layer_types": kinds, "rms_norm_eps": 1e-6, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
        );
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]), ("model.norm.weight".into(), vec![HIDDEN])];
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            for norm in ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"] {
                tensors.push((name(norm), vec![HIDDEN]));
            }
            for (part, shape) in [
                ("self_attn.q_proj", [4 * HEAD, HIDDEN]),
                ("self_attn.k_proj", [2 * HEAD, HIDDEN]),
                ("self_attn.v_proj", [2 * HEAD, HIDDEN]),
                ("self_attn.o_proj", [HIDDEN, 4 * HEAD]),
                ("mlp.gate_proj", [INNER, HIDDEN]),
                ("mlp.up_proj", [INNER, HIDDEN]),
                ("mlp.down_proj", [HIDDEN, INNER]),
            ] {
                tensors.push((name(part), shape.to_vec()));
            }
        }
        write_random(&folder.join("model.safetensors"), &tensors);
        folder
    })
}

/// Uniform numbers of the spread 1/√columns (of norms: 0.1 around 0) as bf16.
fn write_random(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), 7u64);
    for (name, shape) in tensors {
        let count: usize = shape.iter().product();
        let begin = data.len();
        let scale = if shape.len() == 1 { 0.1 } else { 1.0 / (shape[1] as f32).sqrt() };
        for _ in 0..count {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let x = ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale;
            data.extend_from_slice(&x.to_le_bytes()[2..]);
        }
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// Runs a line as the documents have it, with `debug` for `npm run debug --`, in an environment with `places`: `doppler`
/// is the binary, MODEL the random model. Its output.
pub fn shell(line: &str, debug: &str, places: &[(&str, &Path)]) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_doppler"));
    let line = line.replace("MODEL", text(model())).replace("npm run debug --", debug);
    let path = format!("{}:{}", text(binary.parent().unwrap()), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).env("PATH", path).envs(places.iter().copied()).stdin(Stdio::null());
    let output = shell.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every line of `output` holds all of `parts`, and there are `count` of them.
#[track_caller]
fn lines(output: &str, count: usize, parts: &[&str]) {
    assert_eq!(output.lines().count(), count, "{output}");
    for line in output.lines() {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} in {line}");
    }
}

#[test]
fn the_documented_lines_work_as_written() {
    for device in devices() {
        let debug = format!("doppler debug --device {device} --max-tokens 3");
        let run = |line: &str| shell(line, &debug, &[("DOPPLER_RESIDENT", Path::new("off"))]);
        // The built-in model is a healthy one.
        assert_eq!(run(r#"npm run debug -- -m demo 2>&1 | grep -E "Error|NaN|Inf|ANOMALY""#), "");
        let said = run(r#"npm run debug -- -m MODEL --trace loader 2>&1 | grep -E "TRACE|maxAbs""#);
        assert!(said.contains("model.norm.weight bf16 [336] loaded="), "{said}");
        documented(&run);
    }
}

/// The lines of the documents say what they should, however `run` runs them.
pub fn documented(run: &dyn Fn(&str) -> String) {
    let said = run(r#"npm run debug -- -m MODEL 2>&1 | grep -E "Done|Output|Error""#);
    assert!(said.starts_with("Output ") && said.contains("\nDone 3 tokens in "), "{said}");
    for (category, stages) in [("attn", 12), ("ffn", 5), ("kv", 2), ("logits", 4), ("all,-kernels,-loader,-sample", 24)] {
        let said = run(&format!(r#"npm run debug -- -m MODEL --trace {category} 2>&1 | grep -E "TRACE|maxAbs""#));
        assert!(said.lines().count() >= stages, "{category}: {said}");
        assert!(said.lines().all(|line| line.contains("[TRACE:") || line.starts_with("LAYER_OUT")), "{category}: {said}");
    }
    let said = run(r#"npm run debug -- -m MODEL --trace sample 2>&1 | grep -E "TRACE|maxAbs""#);
    assert!(said.contains("sampled step=0 id="), "{said}");
    let said = run(r#"npm run debug -- -m MODEL --trace ffn 2>&1 | sed '/Done/q'"#);
    assert!(said.starts_with("Config ") && said.lines().last().is_some_and(|line| line.starts_with("Done ")), "{said}");
    let said = run(r#"npm run debug -- --config gemma2-debug -m MODEL 2>&1 | grep -E "PROBE|Output""#);
    assert!(said.contains("PROBE[scores] stage=attn_scores layer=25") && said.contains("\nOutput "), "{said}");
    let said = run(r#"npm run debug -- -m MODEL --trace-layers 0,12,25 2>&1 | grep "LAYER_OUT""#);
    lines(&said, 9, &["LAYER_OUT L", " maxAbs=", " rms=", " first=["]);
    let said = run(concat!(
        "npm run debug -- -m MODEL --config '{\"runtime\":{\"debug\":{\"trace\":{\"enabled\":true,\"categories\":[\"ffn\"]},",
        "\"probes\":[{\"id\":\"dim334\",\"stage\":\"layer_out\",\"layers\":[0,17,25],\"tokens\":[0,-1],\"dims\":[334]}]}}}' 2>&1",
        " | grep -E \"PROBE\""
    ));
    // Two tokens of the prompt, then that of each decode step, in three layers.
    lines(&said, 3 * (2 + 2), &["PROBE[dim334] stage=layer_out layer=", " values=[334="]);
    let said = run(concat!(
        "npm run debug -- -m MODEL --config '{\"runtime\":{\"debug\":{\"probes\":[{\"id\":\"topk\",\"stage\":\"logits_final\",",
        "\"tokens\":[-1],\"dims\":[476,3868,17022]}]}}}' 2>&1 | grep -E \"PROBE\""
    ));
    lines(&said, 3, &["PROBE[topk] stage=logits_final token=", "476=", "3868=", "17022="]);
    let said = run(r#"npm run debug -- -m MODEL --skip-load 2>&1 | grep -E "Config|Done|Output""#);
    assert_eq!(said.lines().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>(), ["Config", "Output", "Done"], "{said}");
}

#[test]
fn what_a_model_lacks_is_refused_before_it_is_loaded() {
    let refused = |more: &[&str], parts: &[&str]| {
        let ran = doppler(&[&["debug", "--device", "cpu"], more].concat()).refused(parts);
        assert_eq!(ran.stdout, "");
    };
    let probe = |rest: &str| format!(r#"{{"runtime":{{"debug":{{"probes":[{{"id":"x",{rest}}}]}}}}}}"#);
    refused(&["--trace", "fnn"], &["--trace", "there is no category `fnn`", "ffn"]);
    refused(&["--trace-layers", "0,7"], &["layers 0 to 6, so there is no layer 7"]);
    refused(&["--trace-layers", "x"], &["`x` is no layer"]);
    refused(&["--trace-layers", "5-9"], &["layers 0 to 6, so there is no layer 7"]);
    refused(&["--trace-layers", "3-2"], &["`3-2` is no layer"]);
    refused(&["--temperature", "inf"], &["--temperature", "finite"]);
    refused(&["--config", "{"], &["config --config", "expected a JSON object"]);
    refused(&["--dump", "-"], &["expected a file's name"]);
    refused(&["--config", &probe(r#""stage":"layer_uot""#)], &["probe `x`", "layer_out"]);
    refused(&["--config", &probe(r#""stage":"q_norm""#)], &["probe `x`", "no stage `q_norm`"]);
    refused(&["--config", &probe(r#""stage":"layer_out","layers":[26]"#)], &["no layer 26"]);
    refused(&["--config", &probe(r#""stage":"layer_out","tokens":[99]"#)], &["no token 99"]);
    refused(&["--config", &probe(r#""stage":"layer_out","dims":[256]"#)], &["256 elements per token, so there is no dim 256"]);
    refused(&["--config", r#"{"runtime":{"debug":{"trace":{"enabled":true,"categories":["kvv"]}}}}"#], &["runtime.debug.trace.categories"]);
    refused(&["--profile", "/no/such/file"], &["/no/such/file"]);
    refused(&["--config", "bench", "--record-profile", "x"], &["runtime.debug.anomalies.enabled"]);
    for option in ["--dump", "--html", "--bundle", "--perfetto", "--record-profile"] {
        refused(&[option, "/no/such/folder/file"], &["there is no folder /no/such/folder"]);
        refused(&[option, "/"], &["/"]);
    }
}

/// The element that a PROBE line gives, as its text.
fn probed(line: &str, dim: usize) -> f32 {
    let start = line.find(&format!("{dim}=")).map(|at| at + format!("{dim}=").len()).unwrap();
    let rest = &line[start..];
    rest[..rest.find([',', ']']).unwrap()].parse().unwrap()
}

#[test]
fn lines_equal_the_dump() {
    let config = r#"{"runtime":{"debug":{"probes":[{"id":"p","stage":"layer_out","layers":[0,-1],"tokens":[0,-1],"dims":[3,255]}]}}}"#;
    for device in devices() {
        let folder = scratch(&format!("seen_{device}"));
        let (dump, records) = (folder.join("dump.safetensors"), folder.join("lines.json"));
        let files = ["--dump", text(&dump), "--json", text(&records)];
        let args = ["debug", "--device", device, "--max-tokens", "2", "--config", config, "--trace", "ffn,layer"];
        let ran = doppler(&[&args[..], &files].concat()).fine();
        let dump = Dump::open(&dump).unwrap();
        let out = |layer| dump.value(At { stage: Stage::LayerOut, layer: Some(layer) }).unwrap().unwrap();
        let prompt = dump.input_ids().unwrap().len();
        for line in ran.stdout.lines().filter(|line| line.starts_with("PROBE[p]")) {
            let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.parse::<usize>().ok()).unwrap();
            let row = out(field("layer="));
            for dim in [3, 255] {
                assert_eq!(probed(line, dim).to_bits(), row.row(field("token="))[dim].to_bits(), "{line}");
            }
        }
        let records = std::fs::read_to_string(&records).unwrap();
        let (mut traces, mut outs) = (0, 0);
        for record in records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let number = |key: &str| record[key].as_f64().map(|x| x as f32).unwrap();
            if record["type"] == "trace" {
                let stage = Stage::parse(record["stage"].as_str().unwrap()).unwrap();
                let at = At { stage, layer: record["layer"].as_u64().map(|l| l as usize) };
                let value = dump.value(at).unwrap().unwrap();
                let (token, dim) = (record["token"].as_u64().unwrap() as usize, record["dim"].as_u64().unwrap() as usize);
                assert_eq!(value.row(token)[dim].abs().to_bits(), number("maxAbs").to_bits(), "{record}");
                traces += 1;
            }
            if record["type"] == "layerOut" {
                let layer = record["layer"].as_u64().unwrap() as usize;
                let row = prompt - 1 + record["step"].as_u64().unwrap() as usize;
                let first: Vec<f32> = record["first"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
                assert_eq!(first, out(layer).row(row)[..8], "{record}");
                outs += 1;
            }
        }
        // The prompt and one decode step, seven layers.
        assert_eq!((traces, outs), (2 * 7 * (6 + 2), 2 * 7), "{device}");
    }
}

#[test]
fn files_for_people_who_look() {
    let folder = scratch("looked_at");
    let (html, perfetto) = (folder.join("report.html"), folder.join("perf.json"));
    for device in devices() {
        let args =
            ["debug", "--device", device, "--max-tokens", "2", "--html", text(&html), "--perfetto", text(&perfetto), "--trace", "lens"];
        let ran = doppler(&args).fine();
        let page = std::fs::read_to_string(&html).unwrap();
        for part in ["Layers and stages", "Growth from layer to layer", "Chosen tokens", "Logit lens", "No anomaly was found", "blue"] {
            assert!(page.contains(part), "{device}: {part}");
        }
        let command = format!("<dt>Command</dt><dd>doppler debug --device {device} --max-tokens 2 --html ");
        for part in [
            &command,
            "<dt>Date</dt><dd>20",
            "<dt>Version</dt><dd>doppler ",
            "<dt>Model</dt><dd>demo<",
            "<dt>Prompt</dt><dd>The color of the sky is<",
        ] {
            assert!(page.contains(part), "{device}: {part}");
        }
        if *device == "gpu" && perfetto.exists() {
            assert!(
                page.contains("id=\"times-title\">Kernel times") && page.contains("<th scope=\"row\">rms_norm</th>"),
                "kernels were timed"
            );
        }
        // Attention is not there, and the report says how to ask for it.
        assert!(page.contains("--attention=0,3") && !page.contains("attention-data") && !page.contains("class AttentionMaps"), "{device}");
        let asked = doppler(&["debug", "--device", device, "--max-tokens", "2", "--html", text(&html), "--attention=0,5-6"]);
        asked.fine();
        let page = std::fs::read_to_string(&html).unwrap();
        let held = page.split_once("id=\"attention-data\">").and_then(|(_, rest)| rest.split_once("</script>")).expect("attention").0;
        let held: Value = serde_json::from_str(held).unwrap();
        let layers: Vec<&Value> = held["layers"].as_array().unwrap().iter().map(|layer| &layer["layer"]).collect();
        assert_eq!(layers, [0, 5, 6], "{device}");
        // A token sees what stands before it: 7 of the prompt, and the one that was read after it.
        assert_eq!(held["layers"][0]["widths"], serde_json::json!([1, 2, 3, 4, 5, 6, 7, 8]), "{device}");
        assert_eq!(ran.stdout.lines().filter(|line| line.contains("[TRACE:lens] L")).count(), 2 * 7, "{}", ran.stdout);
        assert_eq!(*device == "cpu", ran.stdout.contains("Note the CPU oracle has no kernels"), "{}", ran.stdout);
        if perfetto.exists() {
            let events: Value = serde_json::from_str(&std::fs::read_to_string(&perfetto).unwrap()).unwrap();
            assert!(events["traceEvents"].as_array().unwrap().len() > 200);
        }
    }
}

#[test]
fn attention_that_cannot_be_shown_is_refused() {
    let html = scratch("attention_refused").join("report.html");
    doppler(&["debug", "--attention"]).refused(&["--html"]);
    doppler(&["debug", "--html", text(&html), "--attention=7"]).refused(&["--attention", "layer 7"]);
    doppler(&["debug", "--html", text(&html), "--attention=x"]).refused(&["--attention"]);
    doppler(&["debug", "--html", text(&html), "--attention", "--max-tokens", "1000"]).fine();
    assert!(html.is_file());
}

#[test]
fn a_profile_decides_and_a_break_shows_what_is_around() {
    let folder = scratch("profiles");
    let (profile, dump) = (folder.join("profile.json"), folder.join("break.safetensors"));
    let args = |folder: &str, more: &[&str]| {
        let args = ["debug", "--device", "cpu", "-m", folder, "-p", "The model says", "--max-tokens", "3"];
        doppler(&[&args[..], more].concat())
    };
    let healthy = crate::support::data("gemma2");
    let ran = args(&healthy, &["--record-profile", text(&profile)]).fine();
    assert!(ran.stdout.contains("Note profile of this run written to"), "{}", ran.stdout);
    args(&healthy, &["--profile", text(&profile)]).fine();
    args("demo", &["--profile", text(&profile)]).refused(&["a profile of the model gemma2"]);
    // The same model with a norm that is far too large, under the same name.
    let broken = copy("gemma2", "broken/gemma2");
    let weights = broken.join("model.safetensors");
    let source = doppler::formats::InMemory::open(&weights).unwrap();
    let header = pollster::block_on(doppler::formats::safetensors::read_header(&source)).unwrap();
    let norm = header.tensors.iter().find(|t| t.name.ends_with("layers.1.post_feedforward_layernorm.weight")).unwrap().range.clone();
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[norm.start as usize..norm.end as usize]
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .for_each(|x| x.copy_from_slice(&0x4380u16.to_le_bytes()));
    std::fs::write(&weights, bytes).unwrap();
    let judged = args(text(&broken), &["--profile", text(&profile), &format!("--break={}", text(&dump))]);
    assert_eq!(judged.code, Some(1), "{}{}", judged.stdout, judged.stderr);
    assert!(judged.stdout.contains("ANOMALY kind=explosion stage=post_ffn_norm layer=1"), "{}", judged.stdout);
    assert!(judged.stdout.contains("the values around it are in"), "{}", judged.stdout);
    let dump = Dump::open(&dump).unwrap();
    let at = |stage, layer| At { stage, layer: Some(layer) };
    assert!(dump.value(at(Stage::FfnOut, 1)).unwrap().is_some() && dump.value(at(Stage::PostFfnNorm, 1)).unwrap().is_some());
}

/// Hashes of the logits do not depend on who watches.
#[test]
fn watching_changes_no_logits() {
    let folder = scratch("hashes");
    for device in devices() {
        for dtype in ["f32", "f16"] {
            let hash = |more: &[&str]| {
                let args = ["debug", "--device", device, "--dtype", dtype, "--max-tokens", "4", "--json", "-"];
                finish(&mut command(&[&args[..], more].concat())).fine().record("done")["logits"].clone()
            };
            let plain = hash(&["--config", "bench"]);
            assert_eq!(hash(&[]), plain, "{device} {dtype}: the rules");
            assert_eq!(hash(&["--trace", "ffn,kv,layer,logits,sample,embed,kernels,perf"]), plain, "{device} {dtype}: traces");
            let unfused = hash(&["--trace", "all"]);
            let dump = folder.join("all.safetensors");
            assert_eq!(hash(&["--trace", "attn", "--dump", text(&dump)]), unfused, "{device} {dtype}: without the fused attention");
            assert!(*device == "gpu" || unfused == plain, "the oracle fuses nothing");
        }
    }
}
