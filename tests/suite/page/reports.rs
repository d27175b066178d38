//! One picture in both places: attention and the map, on the page and in the reports that it saves and that the engine
//! makes. A report is opened as a file and looked at.

use super::{PHONE, WAIT, gemma2, golden_config, load_golden, native, visit};
use doppler::debug::html::Report;
use doppler::debug::record::Record;
use doppler::plan::{At, Stage};
use doppler_browser::Page;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Opens a report as a file of this machine.
fn open(page: &mut Page, name: &str, html: &str, hash: &str) -> Result<PathBuf, String> {
    assert!(!html.contains("<style data-drawn></style>") && !html.contains("\"></script>"), "style and scripts are there");
    let path = std::env::temp_dir().join(format!("doppler-{name}-{}.html", std::process::id()));
    std::fs::write(&path, html).map_err(|e| e.to_string())?;
    page.navigate("about:blank")?;
    page.navigate(&format!("file://{}{hash}", path.display()))?;
    page.wait_for(
        "document.readyState === 'complete' && location.protocol === 'file:' && Boolean(document.querySelector('td.cell'))",
        WAIT,
    )?;
    page.evaluate(super::HELPERS)?;
    Ok(path)
}

/// Nothing is wider than a phone, in both themes.
fn fits(page: &mut Page) -> Result<(), String> {
    for dark in [false, true] {
        page.screen(PHONE, 844, true, dark)?;
        let width = page.evaluate("document.documentElement.scrollWidth")?.as_u64().unwrap_or(u64::MAX);
        assert!(width <= u64::from(PHONE), "{width} pixels");
    }
    page.screen(1280, 900, false, false)
}

/// The attention that the page shows is what transformers computes; the report that it saves shows it too.
#[test]
fn attention_is_shown_token_by_token_and_saved() {
    let golden = gemma2();
    let expected = &golden.values["layer.1.attn_probs"];
    let (heads, tokens) = (expected.shape[0], expected.shape[1]);
    visit(|page| {
        load_golden(page, &golden, &["config.json", "generation_config.json", "model.safetensors"], &json!({}))?;
        let ids: Vec<String> = golden.prompt.iter().map(u32::to_string).collect();
        page.evaluate(&format!("document.getElementById('maxTokens').value = 2; ask('{}')", ids.join(", ")))?;
        page.wait_for("Boolean(doppler.state.run?.done) && !doppler.state.busy", WAIT)?;
        page.evaluate("press('tab-attention')")?;
        page.wait_for("Boolean(document.getElementById('read-attention'))", WAIT)?;
        page.evaluate("press('read-attention')")?;
        page.wait_for("Boolean(document.querySelector('#attention .heads button'))", WAIT)?;
        page.evaluate("choose(document.querySelector('#attention select'), '1')")?;
        page.wait_for("document.querySelector('#attention .heads button')?.getAttribute('aria-label') === 'h0 of layer 1'", WAIT)?;
        assert_eq!(page.evaluate("document.querySelectorAll('#attention .heads canvas').length")?, heads);
        let looked = |page: &mut Page| -> Result<Vec<f64>, String> {
            let labels =
                page.evaluate("[...document.querySelectorAll('#attention [role=option]')].map((s) => s.getAttribute('aria-label'))")?;
            let share = |label: &Value| {
                let text = label.as_str()?.rsplit("looked at ").next()?.trim_end_matches('%').trim().trim_start_matches('<').to_string();
                text.parse::<f64>().ok()
            };
            labels.as_array().ok_or("no labels")?.iter().map(|label| share(label).ok_or_else(|| label.to_string())).collect()
        };
        for head in 0..heads {
            page.evaluate(&format!("document.querySelectorAll('#attention .heads button')[{head}].click()"))?;
            // By the keyboard, from the last token to the first.
            page.evaluate("keyOn('#attention [role=option][tabindex=\"0\"]', 'Home')")?;
            for token in 0..tokens {
                let found = looked(page)?;
                let row = expected.row(head * tokens + token);
                for (at, p) in row.iter().enumerate() {
                    let percent = 100.0 * f64::from(*p);
                    // A digit after the point; below 0.05 % it says less than 0.1.
                    assert!(
                        (found[at] - percent).abs() < 0.051 + 0.05 * f64::from(u8::from(percent < 0.05)),
                        "head {head}, {token} at {at}: {} for {percent}",
                        found[at]
                    );
                }
                page.evaluate("keyOn('#attention [role=option][tabindex=\"0\"]', 'ArrowRight')")?;
            }
        }
        page.evaluate("catchSaves(); press('save-report')")?;
        page.wait_for("Boolean(globalThis.savedBlob)", WAIT)?;
        let html = page.evaluate("savedBlob.text()")?;
        let html = html.as_str().ok_or("no report")?;
        for part in ["<dt>Command</dt>", "doppler debug -m", "<dt>Date</dt>", "<dt>Version</dt>", "<dt>Prompt</dt>"] {
            assert!(html.contains(part), "{part}");
        }
        let path = open(page, "page-report", html, "#at-1-layer.2.ffn_out")?;
        page.wait_for("document.querySelectorAll('#attention .heads canvas').length > 0", WAIT)?;
        // The layer that was read first, then the other; the strip has what the page has.
        assert_eq!(page.evaluate("[...document.querySelectorAll('#attention select')[0].options].map((o) => o.value)")?, json!(["0", "1"]));
        page.evaluate("choose(document.querySelector('#attention select'), '1'); 0")?;
        page.wait_for("document.querySelector('#attention .heads button')?.getAttribute('aria-label') === 'h0 of layer 1'", WAIT)?;
        page.evaluate(
            "document.querySelector('#attention .heads button').click(); keyOn('#attention [role=option][tabindex=\"0\"]', 'Home')",
        )?;
        for token in 0..3 {
            let found = looked(page)?;
            for (at, p) in expected.row(token).iter().enumerate() {
                // A byte holds the square root in 254 steps: half a step, and the rounding of the text.
                let root = f64::from(*p).sqrt();
                let off = 100.0 * ((root + 0.5 / 254.0).powi(2) - root * root) + 0.101;
                assert!((found[at] - 100.0 * f64::from(*p)).abs() < off, "{token} at {at}: {} for {p}", found[at]);
            }
            page.evaluate("keyOn('#attention [role=option][tabindex=\"0\"]', 'ArrowRight')")?;
        }
        // The address names a cell: its step is shown, and its numbers are beside the map.
        assert_eq!(page.evaluate("document.getElementById('step').value")?, "1");
        let title = page.evaluate("document.querySelector('#pane-stage h3').textContent")?;
        assert!(title.as_str().is_some_and(|t| t.starts_with("L2 ffn_out")), "{title}");
        let beside = page.evaluate("document.getElementById('pane-stage').getBoundingClientRect().left >= document.getElementById('map').getBoundingClientRect().right")?;
        assert_eq!(beside, true);
        fits(page)?;
        std::fs::remove_file(path).map_err(|e| e.to_string())
    });
}

/// The engine's own report: every cell of the map, the first value that is NaN framed and linked.
#[test]
fn the_first_nan_of_a_report_is_framed_and_linked() {
    let golden = gemma2();
    let mut report = Report { title: golden.name.clone(), ..Report::default() };
    let broken = At { stage: Stage::FfnAct, layer: Some(1) };
    let records = native(&golden);
    for mut record in records.clone() {
        let later = record.at.layer > broken.layer || (record.at.layer == broken.layer && record.at.stage > broken.stage);
        if record.step == 1 && (record.at == broken || later) {
            (record.stats.max_abs, record.stats.rms, record.stats.nan) = (f32::NAN, f32::NAN, 1);
        }
        report.take(&Record::Trace(record));
    }
    let html = report.render();
    visit(|page| {
        let path = open(page, "nan-report", &html, "")?;
        let cells = page.evaluate("document.querySelectorAll('td.cell').length")?;
        assert_eq!(cells, records.iter().filter(|record| record.step == 0).count());
        assert_eq!(page.evaluate("document.querySelectorAll('td.first').length")?, 0, "the prompt is healthy");
        let link = page.evaluate("document.querySelector('#first a').textContent")?;
        assert!(link.as_str().is_some_and(|link| link.starts_with("L1 ffn_act, step 1")), "{link}");
        page.evaluate("document.querySelector('#first a').click()")?;
        page.wait_for("document.querySelectorAll('td.first').length === 1", WAIT)?;
        let label = page.evaluate("document.querySelector('td.first').getAttribute('aria-label')")?;
        assert!(label.as_str().is_some_and(|label| label.starts_with("L1 ffn_act: rms NaN")), "{label}");
        assert_eq!(page.evaluate("document.activeElement === document.querySelector('td.first')")?, true);
        // No column is cut off: the map is as wide as its box.
        let cut = page.evaluate("[...document.querySelectorAll('#map .wide')].some((box) => box.scrollWidth > box.clientWidth + 1)")?;
        assert_eq!(cut, false);
        fits(page)?;
        std::fs::remove_file(path).map_err(|e| e.to_string())
    });
}

/// A comparison's report has the page's map; the first divergence is framed, linked and told in numbers.
#[test]
fn the_first_divergence_of_a_report_is_framed_and_linked() {
    let golden = gemma2();
    let files = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let scalar = golden_config(&golden)["query_pre_attn_scalar"].as_f64().expect("a number");
    visit(|page| {
        load_golden(page, &golden, &files, &json!({ "query_pre_attn_scalar": 2.0 * scalar }))?;
        page.evaluate("press('tab-compare')")?;
        page.set_files("#compare-file", &[&golden.folder.join("golden.safetensors")])?;
        page.wait_for("Boolean(document.getElementById('verdict'))", WAIT)?;
        let of_page =
            page.evaluate("[...document.querySelectorAll('#compare-result td.cell')].map((td) => td.getAttribute('aria-label'))")?;
        page.evaluate(
            "catchSaves(); [...document.querySelectorAll('#compare-result button')].find((b) => b.textContent === 'Save as HTML').click()",
        )?;
        page.wait_for("Boolean(globalThis.savedBlob)", WAIT)?;
        let html = page.evaluate("savedBlob.text()")?;
        let path = open(page, "compare-report", html.as_str().ok_or("no report")?, "")?;
        let of_report = page.evaluate("[...document.querySelectorAll('td.cell')].map((td) => td.getAttribute('aria-label'))")?;
        assert_eq!(of_page, of_report, "one picture");
        page.evaluate("document.querySelector('#first a').click()")?;
        page.wait_for("Boolean(document.querySelector('.details h3'))", WAIT)?;
        assert_eq!(page.evaluate("document.querySelector('.details h3').textContent")?, "L0 attn_scores");
        assert_eq!(page.evaluate("document.activeElement === document.querySelector('td.first')")?, true);
        fits(page)?;
        std::fs::remove_file(path).map_err(|e| e.to_string())
    });
}

/// A cell's details stand beside the map where there is room, and the whole map is seen, however wide the screen is.
#[test]
fn details_stand_beside_a_map_that_is_not_cut_off() {
    visit(|page| {
        page.evaluate("document.getElementById('maxTokens').value = 1; ask('What is 37 + 48?')")?;
        page.wait_for("answered(1) && Boolean(document.querySelector('#heat td.cell'))", WAIT)?;
        page.evaluate("document.querySelector('#heat td.cell').click()")?;
        for (width, is_beside) in [(1440, true), (1280, true), (1100, true), (900, true), (760, false)] {
            page.screen(width, 900, false, false)?;
            let cut = page.evaluate("[...document.querySelectorAll('#map .wide')].some((box) => box.scrollWidth > box.clientWidth + 1)")?;
            assert_eq!(cut, false, "{width}");
            let beside = page.evaluate(
                "document.getElementById('pane-stage').getBoundingClientRect().left >= document.getElementById('map').getBoundingClientRect().right",
            )?;
            assert_eq!(beside, is_beside, "{width}");
        }
        Ok(())
    });
}
