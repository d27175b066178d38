//! What the package compares and draws: the same findings, floors and lines as natively.

use super::{case, decode, error, golden, ids};
use crate::golden::Golden;
use doppler::debug::compare::run::{Measured, Tokens, align_run, worth_keeping};
use doppler::debug::compare::{Choice, Floors, Report, align, cumulative, text};
use doppler::debug::dump::{Dump, DumpObserver};
use doppler::debug::floor::Oracles;
use doppler::exec::Storage;
use doppler::formats::InMemory;
use doppler::inference::session::{GenerateOptions, Session, SessionOptions};
use doppler::plan::stage::STAGE_TABLE_VERSION;
use pollster::block_on;
use serde_json::{Value, json};
use std::ops::ControlFlow;

/// The model that is compared.
const MODEL: &str = "gemma2";

/// What `compare` and `seeing` take.
pub fn compared() -> Value {
    json!({
        "model": MODEL,
        "prompt": golden(MODEL).prompt,
        "stageTable": STAGE_TABLE_VERSION,
        // Scores are scaled otherwise: the first value that this changes is attn_scores of layer 0.
        "edit": { "query_pre_attn_scalar": 50 },
        // Of the native oracle's answer to these ids, 276 is the 12th to the 18th, and 161 the 22nd to the 25th.
        "repeating": [2, 10, 7, 9, 30],
        "repeated": 276,
    })
}

/// A dump of the oracle in f32: the golden prompt and three decode steps.
pub fn native_dump() -> Vec<u8> {
    let golden = golden(MODEL);
    let executor = golden.oracle::<f32>(Storage::F32);
    let mut observer = DumpObserver::new(&golden.plan, ["all"], None).expect("stages");
    let options = SessionOptions { capacity: 64, chunk: 64, valid_vocab: golden.plan.vocab_size, pad: None };
    let mut session = Session::new(&executor, options).expect("a session");
    let generate = GenerateOptions { max_tokens: 4, pipelined: false, ..Default::default() };
    block_on(session.generate(&golden.prompt, &generate, Some(&mut observer), &mut |_| ControlFlow::Continue(()))).expect("ids");
    let mut bytes = Vec::new();
    observer.write(&mut bytes, &[("model", "native"), ("dtype", "f32"), ("device", "oracle")]).expect("memory");
    bytes
}

fn opened(name: &str, bytes: Vec<u8>) -> Dump {
    Dump::read(InMemory::new(name, bytes)).expect("a dump")
}

fn transformers(golden: &Golden) -> Dump {
    Dump::open(&golden.folder.join("golden.safetensors")).expect("a golden dump")
}

/// The native comparison of `a` with a run of the oracle in f32, all floors measured.
fn native(golden: &Golden, a: &Dump) -> Report {
    let Oracles { exact, rounded } = golden.filled(Oracles::new(&golden.plan, &[Storage::F32]).expect("a verified plan"));
    let (choice, names) = (Choice::default(), ["a".to_string(), "b".to_string()]);
    let tokens = Tokens::of(a, false).expect("ids");
    let b = block_on(tokens.record(&rounded[0], usize::MAX, &worth_keeping(a, &choice), "b", &mut |_, _| {})).expect("a run");
    let mut aligned = align_run(a, &b, names, &golden.plan, &choice).expect("the same prompt");
    let mut unheard = |_: &str, _, _| {};
    let measured = Measured::new((&exact, &rounded), [a, &b], &mut aligned, &choice, usize::MAX, &mut unheard);
    let measured = block_on(measured).expect("floors");
    measured.judge([a, &b], &aligned, &golden.plan, &mut |_, _| {}).expect("a report")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

/// Whether two JSON values are the same but for numbers, which may be `relative` apart.
fn same(a: &Value, b: &Value, relative: f64) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => (number(a) - number(b)).abs() <= relative * number(a).abs(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, relative)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b, relative)))
        }
        _ => a == b,
    }
}

/// The lines of a report about values of watched runs and single ops.
fn values(report: &Value) -> Vec<Value> {
    let lines = report["stages"].as_array().cloned().unwrap_or_default();
    lines.into_iter().filter(|line| line["part"].is_null()).collect()
}

#[test]
fn right_runs_agree_with_transformers_and_the_native_engine() {
    let Some(found) = case("compare") else { return };
    let golden = golden(MODEL);
    for how in ["free", "alone", "steps", "prompt", "estimated", "dumps", "partial", "layers"] {
        let text = found[how]["text"].as_str().expect("lines");
        assert_eq!(found[how]["differs"], false, "{how}: {text}");
        assert!(text.lines().last().is_some_and(|line| line.starts_with("AGREE worst ")), "{how}: {text}");
        assert!(found[how]["report"]["first_divergence"].is_null(), "{how}");
        assert!(
            found[how]["html"]
                .as_str()
                .is_some_and(|page| page.contains("id=\"heat-title\"") && page.contains("AGREE") && page.contains("function compareMap")),
            "{how}"
        );
    }
    // What its cache holds, transformers does not show: alone it is held against what was appended. The engine shows it.
    let (count, all) = (golden.values.len(), golden.plan.nodes.len());
    for (how, count) in [("alone", all), ("steps", all), ("free", count), ("estimated", count), ("dumps", count)] {
        assert_eq!(values(&found[how]["report"]).len(), count, "{how}");
    }
    // What runs when nobody watches is judged too.
    for how in ["free", "alone", "steps", "estimated"] {
        let all = found[how]["report"]["stages"].as_array().map_or(0, Vec::len);
        assert!(all > count, "{how}: {all} lines");
    }
    // Two layers of one stage, and the logits.
    assert_eq!(values(&found["prompt"]["report"]).len(), 3);
    let tokens = |how: &str| found[how]["report"]["tokens"].as_u64().unwrap_or_default() as usize;
    assert_eq!((tokens("steps"), tokens("prompt")), (golden.prompt.len() + 3, golden.prompt.len()));
    let names = |how: &str| [found[how]["report"]["a"].as_str(), found[how]["report"]["b"].as_str()].map(Option::unwrap_or_default);
    assert_eq!((names("free")[0], names("alone")[0], names("steps")[0]), ("golden.safetensors", "transformers", "a dump of native"));
    assert_eq!(names("dumps"), ["golden", "browser"]);
    assert!(names("free")[1].starts_with("gemma2 on gpu "), "{:?}", names("free"));
    let said = |how: &str, what: &str| found[how]["text"].as_str().is_some_and(|text| text.contains(what));
    assert!(said("free", "Floor    measured: ") && said("alone", "isolated: every op") && said("estimated", "ESTIMATED"));
    assert!(said("partial", "A holds 3 of the "), "{}", found["partial"]["text"]);
    assert!(said("free", " L2 q_rope "), "every value is in the table of `all`: {}", found["free"]["text"]);
    let phases: Vec<&str> = found["phases"].as_array().expect("phases").iter().filter_map(|phase| phase[0].as_str()).collect();
    let expected = [
        "running the model",
        "running the model, unwatched",
        "reading weights",
        "measuring the floor, f64",
        "measuring the floor, f32",
        "comparing",
    ];
    let mut distinct = phases.clone();
    distinct.dedup();
    assert_eq!(distinct, expected);
    assert_eq!(found["meanwhile"][0], found["meanwhile"][1]);
}

/// The same oracle on the same tokens, although it reads a prompt in pieces: the same bits up to the first tanh. From there
/// on the browser's tanh and exp may differ in the last place, and a floor is another draw of chance: measured on this
/// model, by 36 % at most.
#[test]
fn floors_measured_in_a_browser_are_those_measured_natively() {
    let Some(found) = case("compare") else { return };
    let golden = golden(MODEL);
    let dumps = [("free", transformers(&golden)), ("steps", opened("native", native_dump()))];
    for (how, a) in dumps {
        let native = serde_json::to_value(native(&golden, &a)).expect("JSON");
        let (native, browser) = (values(&native), values(&found[how]["report"]));
        assert_eq!(native.len(), browser.len());
        let first = native.iter().position(|line| line["stage"] == "attn_scores").expect("scores, which have a cap");
        for (i, (native, browser)) in native.iter().zip(&browser).enumerate() {
            assert_eq!((&native["stage"], &native["layer"]), (&browser["stage"], &browser["layer"]));
            let (a, b) = (number(&native["floor"]), number(&browser["floor"]));
            let (apart, most) = ((a / b).max(b / a) - 1.0, if i < first { 1e-12 } else { 0.6 });
            assert!(apart <= most, "{how} {} {}: natively {a:.3e}, in the browser {b:.3e}", native["layer"], native["stage"]);
        }
    }
}

#[test]
fn another_config_is_found_at_its_stage() {
    let Some(found) = case("compare") else { return };
    for (how, only) in [("wrong", false), ("wrongAlone", true)] {
        let (report, text) = (&found[how]["report"], found[how]["text"].as_str().expect("lines"));
        assert_eq!(found[how]["differs"], true, "{how}");
        let first = &report["first_divergence"];
        assert_eq!((&first["stage"], &first["layer"]), (&json!("attn_scores"), &json!(0)), "{how}: {text}");
        assert!(text.starts_with("DIVERGENCE layer=0 stage=attn_scores "), "{how}: {text}");
        let diverged = report["stages"].as_array().expect("stages").iter().filter(|line| line["diverged"] == true);
        let names: Vec<&str> = diverged.filter_map(|line| line["stage"].as_str()).collect();
        // By itself no other op is wrong but the kernel that computes scores among other things; in a run everything after is.
        let fused = |name: &str| name == "attn_scores" || name == "attn_core_out";
        assert_eq!(names.iter().all(|name| fused(name)), only, "{how}: {names:?}");
        let scores = names.iter().filter(|name| **name == "attn_scores").count();
        assert_eq!(scores, 3, "{how}: {names:?}");
    }
    let notes = found["wrong"]["report"]["notes"].to_string();
    // The oracle knows nothing but the edited config, and the run agrees with it.
    assert!(notes.contains("A departs from what these model files say"), "{notes}");
}

/// Sums are those of the native engine; roots and logarithms may differ in their last place.
#[test]
fn two_dumps_give_the_report_that_they_give_natively() {
    let Some(found) = case("compare") else { return };
    let golden = golden(MODEL);
    let (a, b) = (transformers(&golden), opened("browser", decode(found["own"].as_str().expect("a dump"))));
    let aligned = align(&a, &b, ["golden".into(), "browser".into()], None, &Choice::default()).expect("the same prompt");
    let native = cumulative(&a, &b, &aligned, Floors::Brought, None, &mut |_, _| {}).expect("a report");
    let twin = serde_json::to_value(&native).expect("JSON");
    assert!(same(&twin, &found["dumps"]["report"], 1e-12), "{twin}\n{}", found["dumps"]["report"]);
    assert_eq!(found["dumps"]["text"], text(&native, false));
}

#[test]
fn comparisons_that_cannot_be_made_are_explained() {
    let Some(found) = case("compare") else { return };
    for (what, kind, text) in [
        ("stage", "invalid", "layer_out"),
        ("layer", "invalid", "a layer 7"),
        ("floor", "invalid", "always measured"),
        ("unknownFloor", "invalid", "unknown variant `exact`"),
        ("option", "invalid", "`isolate`"),
        ("dump", "invalid", "a File or Blob, or its bytes"),
        ("bytes", "format", "dump"),
        ("memory", "memory", "but a page has 3.00 GiB"),
        ("prompts", "invalid", "different prompts"),
        ("closed", "closed", "closed"),
    ] {
        let message = error(&found["errors"][what], kind);
        assert!(message.contains(text), "{what}: expected `{text}` in: {message}");
        assert!(!message.contains(" --") && !message.contains("`-"), "{what}: an option of the command line in: {message}");
    }
}

#[test]
fn a_comparison_that_is_aborted_stops() {
    let Some(found) = case("aborted") else { return };
    assert_eq!(found["error"]["name"], "AbortError");
    // Rejected where the signal is heard, not where the oracle ends.
    assert!(number(&found["told"]) < 100.0, "{}", found["told"]);
    let later: Vec<&str> = found["later"].as_array().expect("phases").iter().filter_map(Value::as_str).collect();
    // The oracle reads 80 tokens in ten pieces.
    assert!(later.iter().all(|what| *what == "measuring the floor, f64") && later.len() < 7, "{later:?}");
    assert_eq!(found["next"]["text"].as_str().map(str::trim), Some("blue."));
}

/// The lines of a category.
fn lines<'v>(records: &'v Value, category: &str) -> Vec<&'v str> {
    let of = records.as_array().expect("records").iter().filter(|r| r["type"] == "told" && r["category"] == category);
    of.map(|record| record["line"].as_str().expect("a line")).collect()
}

#[test]
fn loading_dispatches_and_times_are_told() {
    let Some(found) = case("seeing") else { return };
    let loaded = lines(&found["loading"], "loader");
    assert_eq!(loaded.len(), golden(MODEL).plan.weights.len(), "a line for every tensor: {loaded:?}");
    assert!(loaded.iter().all(|line| line.contains("[TRACE:loader] ") && line.contains(" loaded=")), "{loaded:?}");
    let total = found["info"]["weightBytes"].as_u64().expect("bytes");
    let last = loaded.last().expect("a line");
    assert!(last.ends_with(" bytes") && loaded[0] != *last && total > 0, "{last}");

    let (kernels, times) = (lines(&found["dispatches"], "kernels"), lines(&found["dispatches"], "perf"));
    for step in ["step=0 ", "step=1 ", "step=2 "] {
        let of = |list: &[&str]| list.iter().filter(|line| line.contains(&format!("] {step}"))).count();
        assert!(of(&kernels) > 20, "{step}: {kernels:?}");
        // A whole, and a line for each kernel and stage.
        assert_eq!(of(&times) > 10, found["info"]["device"]["timestamps"] == true, "{step}: {times:?}");
    }
    assert!(kernels.iter().any(|line| line.contains(" L2 ")), "{kernels:?}");
    // Each dispatch in a pass of its own gives the same bits.
    let untimed = &found["both"][1];
    assert_eq!((&found["timed"]["ids"], &found["timed"]["logits"]), (&untimed["ids"], &untimed["logits"]));
    // Whoever runs at the same time has nothing of it, and adds nothing to it.
    let bare =
        |lines: &[&str]| lines.iter().map(|line| line.split_once("] ").map_or(*line, |(_, rest)| rest).to_string()).collect::<Vec<_>>();
    let beside = lines(&found["alone"], "kernels");
    assert_eq!(bare(&beside).len(), bare(&kernels).len());
    assert_eq!(bare(&beside), bare(&kernels));
    assert!(lines(&found["plain"], "kernels").is_empty() && found["plain"].as_array().is_some_and(|list| list.len() == 3));
    assert_eq!((&found["both"][0]["ids"], &found["both"][0]["logits"]), (&untimed["ids"], &untimed["logits"]));
}

#[test]
fn reports_show_the_run() {
    let Some(found) = case("seeing") else { return };
    let (done, page) = (&found["report"], found["report"]["report"].as_str().expect("a page"));
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    for section in ["findings", "tokens", "heat", "growth", "samples", "lens", "probes", "config"] {
        assert!(page.contains(&format!("id=\"{section}-title\"")), "{section}");
    }
    for line in ["Config model=", "Output ", "Done 3 tokens in "] {
        assert!(page.contains(&format!("<p class=\"line\">{line}")), "{line}");
    }
    assert!(page.contains(" preset=gemma2 layers=3 hidden=40 "));
    // Every stage of every layer is there to be drawn, and so are the style and the script, which the wasm has not.
    for stage in ["q_rope", "attn_core_out", "ffn_act", "layer_out"] {
        assert!(page.contains(&format!("\"layer.2.{stage}\":[")), "{stage}");
    }
    assert!(page.contains("class RunMap") && page.contains("light-dark(") && !page.contains("></script>"));
    assert!(page.contains(&format!("logits={}", done["logits"].as_str().expect("a hash"))));
    let (dropped, plain) = (done["notes"].to_string().contains("fusion"), &found["both"][1]);
    assert_eq!(done["ids"], plain["ids"]);
    assert!(dropped || done["logits"] == plain["logits"], "{}", done["notes"]);
    assert!(plain["report"].is_null());

    assert_eq!(found["broken"]["kind"], "finding");
    let page = found["broken"]["report"].as_str().expect("a page");
    assert!(page.contains("ANOMALY kind=non_finite_weights") && page.contains("non_finite"), "{page}");
    assert_eq!(found["brokenCompared"]["differs"], true);
    assert!(found["brokenCompared"]["notes"].to_string().contains("ANOMALY kind=non_finite_weights"));
}

#[test]
fn runs_are_judged_by_profiles_and_by_the_ids_that_end_them() {
    let Some(found) = case("seeing") else { return };
    let kinds = |how: &str| -> Vec<String> {
        let list = found[how]["findings"].as_array().unwrap_or_else(|| panic!("{how}: {}", found[how]));
        list.iter().filter_map(|finding| finding["kind"].as_str()).map(String::from).collect()
    };
    assert!(found["recorded"]["profile"]["ranges"].as_array().is_some_and(|ranges| ranges.len() > 20), "{}", found["recorded"]);
    assert!(found["healthy"]["profile"].is_null());
    assert_eq!(kinds("healthy"), Vec::<String>::new());
    assert!(kinds("judged").iter().any(|kind| kind == "explosion"), "{:?}", kinds("judged"));
    assert!(error(&found["noProfile"], "format").contains("no profile"));
    assert!(error(&found["ofAnother"], "invalid").contains("of the model another"));
    assert!(error(&found["unjudged"], "config").contains("is false in this config"));

    let repeated = ids(&found["repeated"]["ids"]);
    // Raw runs go on behind the end.
    assert_eq!((&repeated[11..18], &repeated[21..25]), (&[276; 7][..], &[161; 4][..]), "{repeated:?}");
    let findings = found["repeated"]["findings"].as_array().expect("findings");
    let told: Vec<&str> = findings.iter().filter(|f| f["kind"] == "repeated_tokens").filter_map(|f| f["message"].as_str()).collect();
    assert_eq!(told, ["the ids 161 came 4 times in a row"]);
}
