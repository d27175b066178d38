//! The page (`web/demo`) in headless Chromium, driven as a person would: it answers, its map shows what the oracle
//! computes, a wrong config diverges from its dump at the right stage, and everybody can use it. One browser; a tab each.

mod chat;
mod keeping;
mod reports;

use crate::browser::package;
use crate::browser::server::{Site, serve};
use crate::golden::{Golden, goldens};
use doppler::debug::categories::Categories;
use doppler::debug::record::{Record, Sink, TraceRecord};
use doppler::debug::trace::{TraceObserver, TraceOptions};
use doppler::exec::Storage;
use doppler::inference::session::{GenerateOptions, Session, SessionOptions};
use doppler_browser::{Adapter, Browser, Page};
use pollster::block_on;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Helpers that the tests call in the page.
const HELPERS: &str = include_str!("page/helpers.js");
/// A software adapter compiles and computes for seconds, and other tests compute beside it.
const WAIT: Duration = Duration::from_secs(240);
/// Text must stand out by this ratio of luminances: WCAG 2.2, level AA.
const CONTRAST: f64 = 4.5;
/// A phone's width, in CSS pixels.
const PHONE: u32 = 390;

/// The browser, and where the page is.
struct Stage {
    browser: Browser,
    address: String,
}

fn start() -> Result<Mutex<Stage>, String> {
    doppler_browser::find()?;
    let site = package()?.with_file_name("site");
    let index = std::fs::read(site.join("index.html")).map_err(|e| format!("{}: {e}", site.display()))?;
    let site = Site::new(vec![("/", site)], BTreeMap::from([("/", index)]));
    let (address, _posted) = serve(Arc::new(site));
    Ok(Mutex::new(Stage { browser: Browser::start(Adapter::Software)?, address }))
}

/// Opens the page with its model loaded, on a large screen, and does `work` there; says so where that cannot be.
fn visit(work: impl FnOnce(&mut Page) -> Result<(), String>) {
    static STAGE: OnceLock<Result<Mutex<Stage>, String>> = OnceLock::new();
    let stage = match STAGE.get_or_init(start) {
        Ok(stage) => stage,
        Err(why) => {
            assert!(std::env::var("DOPPLER_REQUIRE_BROWSER").as_deref() != Ok("1"), "a browser is required: {why}");
            return crate::support::skipped(&format!("the page in a browser: {why}"));
        }
    };
    // A test that failed leaves the browser as it was.
    let mut stage = stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let address = stage.address.clone();
    let mut page = stage.browser.open(&address).unwrap_or_else(|e| panic!("{e}"));
    let done = page.screen(1280, 900, false, false).and_then(|()| {
        page.wait_for("document.readyState === 'complete' && Boolean(globalThis.doppler)", WAIT)?;
        page.evaluate(HELPERS)?;
        page.wait_for("loaded()", WAIT)?;
        work(&mut page)
    });
    let told = page.evaluate("document.getElementById('alarm')?.textContent ?? ''").unwrap_or_default();
    let console = page.console();
    let _ = page.call("Page.close", json!({}));
    if let Err(why) = done {
        panic!("{why}\nthe page says: {told}\nits console:\n{}", console.join("\n"));
    }
    assert!(console.is_empty(), "the page's console:\n{}", console.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn gemma2() -> Golden {
    goldens().into_iter().find(|golden| golden.name == "gemma2").expect("the golden model gemma2")
}

/// Loads files of a golden model by the dialog, with another text for keys of its config.
fn load_golden(page: &mut Page, golden: &Golden, names: &[&str], config: &Value) -> Result<(), String> {
    let paths: Vec<PathBuf> = names.iter().map(|name| golden.folder.join(name)).collect();
    page.evaluate("press('open-load')")?;
    page.set_files("#pick-files", &paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    page.wait_for("text('picked')", WAIT)?;
    // Empty first: what an earlier model left there would be taken for what is still being read, and replaced by it.
    page.evaluate("document.getElementById('config-text').value = ''")?;
    page.evaluate("document.getElementById('config-part').open = true; press('read-config')")?;
    page.wait_for("document.getElementById('config-text').value", WAIT)?;
    page.evaluate(&format!("changeConfig({config})"))?;
    page.evaluate("globalThis.before = doppler.state.model; press('load-go')")?;
    page.wait_for("loaded() && doppler.state.model !== before", WAIT)?;
    Ok(())
}

/// The first question of the exam that is no chat, and its answer, which transformers gives too.
fn question() -> (String, String) {
    let text = std::fs::read_to_string(root().join("models/demo/exam.jsonl")).expect("the exam");
    let items = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a question"));
    let item = items.into_iter().find(|item| item["chat"] == false).expect("a text");
    let of = |key: &str| item[key].as_str().expect("a text").to_string();
    (of("prompt"), of("answer"))
}

#[test]
fn it_chats_and_continues_texts() {
    visit(|page| {
        page.evaluate("press('fold')")?;
        assert_eq!(page.evaluate("document.getElementById('inspector').hidden")?, true);
        page.evaluate("ask('What is 37 + 48?')")?;
        page.wait_for("answered(1)", WAIT)?;
        let answer = page.evaluate("text('log')")?;
        assert!(answer.as_str().is_some_and(|a| a.contains("What is 37 + 48?") && a.contains("37 + 48 = 85.")), "{answer}");
        assert_eq!(page.evaluate("doppler.state.run === null")?, true, "nothing is traced behind a folded inspector");
        let rates = page.evaluate("text('rates')")?;
        assert!(rates.as_str().is_some_and(|r| r.matches("tok/s").count() == 2), "{rates}");
        page.evaluate("document.querySelector('input[name=mode][value=text]').click()")?;
        let (prompt, answer) = question();
        page.evaluate(&format!("ask({})", json!(prompt)))?;
        page.wait_for("answered(1)", WAIT)?;
        let given = page.evaluate("document.querySelector('.turn .given').textContent")?;
        assert_eq!(given.as_str().map(str::trim), Some(answer.as_str()));
        // Stopping keeps what there is.
        page.evaluate("document.getElementById('maxTokens').value = 400; ask('Once upon a time')")?;
        page.wait_for("document.querySelectorAll('.turn .given')[1].textContent.length > 4", WAIT)?;
        page.evaluate("press('stop')")?;
        page.wait_for("answered(2)", WAIT)?;
        let note = page.evaluate("[...document.querySelectorAll('.turn .note')].at(-1).textContent")?;
        assert_eq!(note, "stopped");
        Ok(())
    });
}

/// Statistics of every value of a prompt and a decode step, as the oracle has them.
fn native(golden: &Golden) -> Vec<TraceRecord> {
    let executor = golden.oracle::<f32>(Storage::F32);
    let records = RefCell::new(Vec::new());
    let sink = Sink::new(|record| {
        if let Record::Trace(record) = record {
            records.borrow_mut().push(record);
        }
        Ok(())
    });
    let categories = Categories::parse(["embed,attn,kv,ffn,layer,logits"]).expect("categories");
    let options = TraceOptions { categories, layers: None, prompt_end: golden.prompt.len(), text: None };
    let mut trace = TraceObserver::new(&golden.plan, options, sink).expect("an observer");
    let options = SessionOptions { capacity: 64, chunk: 64, valid_vocab: golden.plan.vocab_size, pad: None };
    let mut session = Session::new(&executor, options).expect("a session");
    let generate = GenerateOptions { max_tokens: 2, pipelined: false, ..Default::default() };
    block_on(session.generate(&golden.prompt, &generate, Some(&mut trace), &mut |_| ControlFlow::Continue(()))).expect("ids");
    drop(trace);
    records.into_inner()
}

/// A number of the page, like `1.23`, which has `digits` significant digits, is `expected`. Golden models agree with the
/// oracle to 3e-5 of a stage's norm (golden_gpu); a largest element or a mean has more than that of itself.
#[track_caller]
fn same(found: &str, expected: f32, scale: f32, digits: i32, what: &str) {
    let number: f64 = found.trim().parse().unwrap_or_else(|e| panic!("{what}: {found}: {e}"));
    let rounding = 0.5 * 10f64.powi(1 - digits) * f64::from(expected.abs());
    let off = (number - f64::from(expected)).abs();
    assert!(off <= 1.02 * rounding + 1e-4 * f64::from(scale), "{what}: the page has {found}, the oracle {expected}");
}

/// Every cell of the map, by name, and the statistics of one, against a run of the oracle on the same ids.
#[test]
fn the_map_shows_what_the_oracle_computes() {
    let golden = gemma2();
    let records = native(&golden);
    visit(|page| {
        load_golden(page, &golden, &["config.json", "generation_config.json", "model.safetensors"], &json!({}))?;
        let ids: Vec<String> = golden.prompt.iter().map(u32::to_string).collect();
        page.evaluate(&format!("document.getElementById('maxTokens').value = 2; ask('{}')", ids.join(", ")))?;
        page.wait_for("Boolean(doppler.state.run?.done) && !doppler.state.busy", WAIT)?;
        let generated = page.evaluate("doppler.state.run.tokens.slice(doppler.state.run.promptEnd).map((t) => t.id)")?;
        assert_eq!(generated, json!(golden.generated[..2]));
        // The page draws in frames.
        page.wait_for(&format!("document.getElementById('tokens').children.length === {}", golden.prompt.len() + 2), WAIT)?;
        for step in 0..2 {
            page.evaluate(&format!("document.getElementById('tokens').children[{}].click()", golden.prompt.len() + step))?;
            page.wait_for(&format!("text('step-text').startsWith('Step {step} ')"), WAIT)?;
            let cells: BTreeMap<String, String> = serde_json::from_value(page.evaluate("cells()")?).map_err(|e| e.to_string())?;
            let expected: Vec<&TraceRecord> = records.iter().filter(|record| record.step == step).collect();
            assert_eq!(cells.len(), expected.len(), "cells of step {step}: {:?}", cells.keys());
            for record in expected {
                let name = record.at.to_string();
                let cell = cells.get(&name).unwrap_or_else(|| panic!("no cell {name}; there are {:?}", cells.keys()));
                let number = |key: &str| cell.split_once(key).and_then(|(_, rest)| rest.split([' ', ',']).next()).unwrap_or_default();
                let what = format!("step {step}, {name}: {cell}");
                same(number("rms "), record.stats.rms, record.stats.rms, 3, &what);
                same(number("largest "), record.stats.max_abs, record.stats.max_abs, 3, &what);
                same(number("mean "), record.stats.mean, record.stats.rms, 3, &what);
                assert_eq!((number("NaN "), number("Inf ")), ("0", "0"), "{what}");
            }
        }
        // By the keyboard: the cursor moves a cell to the right, and Enter opens it.
        let opened = page.evaluate("openByKeys()")?;
        let record = records.iter().find(|r| r.step == 1 && json!(r.at.to_string()) == opened["name"]).ok_or_else(|| opened.to_string())?;
        let stats = &record.stats;
        let of = |key: &str| opened["stats"][key].as_str().unwrap_or_default().split(' ').next().unwrap_or_default().to_string();
        same(&of("rms"), stats.rms, stats.rms, 7, "the panel's rms");
        same(&of("largest"), stats.max_abs, stats.max_abs, 7, "the panel's largest");
        same(&of("range"), stats.min, stats.max_abs, 7, "the panel's smallest");
        assert_eq!(of("elements"), stats.count.to_string());
        // Its elements, read on demand: the largest is the one of the statistics.
        page.evaluate("press('read-values')")?;
        page.wait_for("Boolean(document.querySelector('#values tbody tr'))", WAIT)?;
        let largest = page.evaluate("document.querySelector('#values tbody tr').cells[1].textContent")?;
        let largest: f32 = largest.as_str().and_then(|x| x.parse().ok()).ok_or("no number")?;
        same(&largest.abs().to_string(), stats.max_abs, stats.max_abs, 7, "the largest element");
        // Ten alternatives of the chosen token, which is among them.
        let candidates = page.evaluate("press('tab-logits'), [...document.querySelectorAll('#pane-logits table')[0].tBodies[0].rows].map((r) => r.cells[1].textContent)")?;
        let candidates: Vec<String> = serde_json::from_value(candidates).map_err(|e| e.to_string())?;
        assert_eq!(candidates.len(), 10);
        assert_eq!(candidates[0], golden.generated[1].to_string());
        Ok(())
    });
}

/// Twice the scalar makes other scores, and nothing before them.
#[test]
fn an_edited_config_diverges_from_its_dump_at_the_right_stage() {
    let golden = gemma2();
    let files = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let dump = golden.folder.join("golden.safetensors");
    let scalar = golden_config(&golden)["query_pre_attn_scalar"].as_f64().expect("a number");
    visit(|page| {
        for (change, expected) in [
            (json!({}), "They agree"),
            (json!({ "query_pre_attn_scalar": 2.0 * scalar }), "The first value that differs is L0 attn_scores"),
        ] {
            load_golden(page, &golden, &files, &change)?;
            page.evaluate("press('tab-compare')")?;
            page.set_files("#compare-file", &[&dump])?;
            page.wait_for("Boolean(document.getElementById('verdict'))", WAIT)?;
            let verdict = page.evaluate("text('verdict')")?;
            assert!(verdict.as_str().is_some_and(|v| v.contains(expected)), "with {change}: {verdict}");
            let marked =
                page.evaluate("[...document.querySelectorAll('#compare-result td.marked')].map((td) => td.getAttribute('aria-label'))")?;
            let marked = marked.as_array().map(Vec::len);
            assert_eq!(marked, Some(usize::from(!change.as_object().is_some_and(serde_json::Map::is_empty))));
        }
        let title = page.evaluate("text('about-model')")?;
        assert!(title.as_str().is_some_and(|t| t.contains("config.json changed")), "{title}");
        Ok(())
    });
}

fn golden_config(golden: &Golden) -> Value {
    let text = std::fs::read_to_string(golden.folder.join("config.json")).expect("its config");
    serde_json::from_str(&text).expect("JSON")
}

/// Roles of what a person acts on.
const CONTROLS: &[&str] =
    &["button", "textbox", "combobox", "checkbox", "radio", "spinbutton", "tab", "gridcell", "option", "link", "listbox", "grid", "slider"];

/// Every control has a name, in each tab and in the dialog; text stands out in both themes; a phone scrolls one way.
#[test]
fn everybody_can_use_it() {
    visit(|page| {
        page.evaluate("document.getElementById('maxTokens').value = 2; document.getElementById('watch').value = 'ffn,layer'")?;
        page.evaluate("ask('What is 37 + 48?')")?;
        page.wait_for("answered(1)", WAIT)?;
        page.wait_for("Boolean(document.querySelector('#heat td.cell'))", WAIT)?;
        page.evaluate(
            "document.querySelector('#heat td.cell').click(); document.querySelectorAll('details').forEach((d) => (d.open = true))",
        )?;
        page.call("Accessibility.enable", json!({}))?;
        for dark in [false, true] {
            page.screen(PHONE, 844, true, dark)?;
            for pair in page.evaluate("contrasts()")?.as_array().ok_or("no pairs")? {
                let ratio = pair["ratio"].as_f64().unwrap_or(0.0);
                assert!(ratio >= CONTRAST, "{} on {}: {ratio:.2}, dark {dark}", pair["ink"], pair["back"]);
            }
            for tab in ["logits", "attention", "lens", "probes", "compare", "lines", "model", "load"] {
                page.evaluate(&format!("press('{}')", if tab == "load" { "open-load".into() } else { format!("tab-{tab}") }))?;
                let width = page.evaluate("document.documentElement.scrollWidth")?.as_u64().unwrap_or(u64::MAX);
                assert!(width <= u64::from(PHONE), "{tab}: {width} pixels; {}", page.evaluate("wide()")?);
                let tree = page.call("Accessibility.getFullAXTree", json!({}))?;
                let nodes = tree["nodes"].as_array().ok_or("no nodes")?;
                let controls = nodes.iter().filter(|n| n["ignored"] == false && CONTROLS.iter().any(|role| n["role"]["value"] == *role));
                let named = |node: &&Value| node["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty());
                let (good, bad): (Vec<&Value>, Vec<&Value>) = controls.partition(named);
                assert!(bad.is_empty(), "{tab}: controls without a name: {bad:?}");
                assert!(good.len() > 8, "{tab}: {} controls", good.len());
            }
            page.evaluate("press('close-load')")?;
        }
        Ok(())
    });
}
