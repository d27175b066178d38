//! A report of made-up records: complete, self-contained, safe against what texts may hold.

use super::*;
use crate::debug::record::Candidate;
use crate::debug::summary::Summary;
use crate::plan::{At, Stage};

fn trace(step: usize, at: At, max_abs: f32) -> Record {
    let stats = Summary {
        count: 8,
        max_abs,
        token: 1,
        dim: 3,
        head: None,
        mean: 0.5,
        rms: 1.0,
        min: -1.0,
        max: 2.0,
        nan: u64::from(max_abs.is_nan()),
        inf: 0,
        zero: 0,
    };
    Record::Trace(TraceRecord { step, first_token: 0, tokens: 2, at, stats, head_rms: None })
}

fn report() -> Report {
    let evil = "</script><img src=x onerror=alert(1)>\"'\n\u{1b}";
    let mut report = Report { title: evil.into(), lines: vec![evil.into()], ..Report::default() };
    report.tokens.push(TokenCell { id: 7, text: Some(evil.into()), generated: false });
    report.tokens.push(TokenCell { id: 8, text: None, generated: true });
    for step in 0..2 {
        for layer in 0..3 {
            let size = if layer == 2 { f32::NAN } else { 10f32.powi(layer as i32) };
            report.take(&trace(step, At { stage: Stage::LayerOut, layer: Some(layer) }, size));
        }
        report.take(&trace(step, At { stage: Stage::EmbedOut, layer: None }, 0.0));
    }
    let candidate = Candidate { id: 4, text: Some(evil.into()), logit: 1.0, probability: 0.25 };
    let top = vec![candidate.clone()];
    report.take(&Record::Sample(SampleRecord {
        step: 0,
        token: 1,
        chosen: Some(candidate),
        entropy: 0.1,
        non_finite: 0,
        top: top.clone(),
    }));
    report.take(&Record::Lens(LensRecord { step: 0, token: 1, layer: 2, entropy: 0.1, top, chosen: None }));
    let place = Some(At { stage: Stage::LayerOut, layer: Some(2) });
    report.findings.push(Finding::new("non_finite", 0, place, evil.into()));
    report.facts = vec![("Command", evil.into()), ("Prompt", evil.into())];
    report.times.push(KernelTime { kernel: "rms_norm", stage: Stage::LayerOut, count: 2, nanoseconds: 1500.0 });
    report.config.push(ConfigRow { name: "norm.eps".into(), value: "1e-6".into(), source: evil.into() });
    report
}

#[test]
fn every_section_is_there_and_texts_stay_texts() {
    let page = report().render();
    for part in ["Findings", "Tokens", "Layers and stages", "Growth", "Chosen tokens", "Logit lens", "Config", "Kernel times", "Version"] {
        assert!(page.contains(part), "{part}");
    }
    // The data of the map, and the script.
    assert!(!page.contains("<img") && page.matches("</script>").count() == 2 && !page.contains('\u{1b}'));
    assert!(page.contains("light-dark(") && page.contains("name=\"viewport\"") && page.contains("scope=\"row\""));
    // The one address that scripts have names a kind of element.
    let page = page.replace("\"http://www.w3.org/2000/svg\"", "");
    for outside in ["http://", "https://", "src=\"", "@import", "url(", "import ", "fetch("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let links = page.matches("href=\"").count();
    assert_eq!(links, page.matches("href=\"#at-").count(), "links lead to cells of the map");
    assert!(links > 0 && page.contains("\"layer.2.layer_out\":[\"NaN\""));
    assert!(page.contains("layer_out maxAbs from 1 (L0) to 10 (L1), largest 10 (L1)"));
}

#[test]
fn elements_are_closed() {
    let page = report().render();
    for name in ["div", "table", "tr", "td", "th", "section", "button", "svg", "ol", "li", "dl", "dt", "dd", "a", "p", "script", "caption"]
    {
        let opened = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
    }
}

/// A report embeds what it draws, and nothing else.
#[test]
fn scripts_are_those_that_are_needed() {
    let script = |drawn: &[&str]| picture::script(drawn);
    let (run, both) = (script(&["run"]), script(&["run", "attention"]));
    assert!(run.contains("class RunMap") && !run.contains("class AttentionMaps") && both.contains("class AttentionMaps"));
    assert!(!script(&["comparison"]).contains("class RunMap") && script(&[]).is_empty());
    for text in [&run, &both, &script(&["comparison"])] {
        assert!(!text.lines().any(|line| line.starts_with("import ") || line.starts_with("export ")) && !text.contains("</script"));
        // One script after the other: a name is declared once.
        let first =
            |line: &str| line.split_once(' ').map(|(_, rest)| rest.split(['(', ' ', '=', '{']).next().unwrap_or_default().to_string());
        let mut all: Vec<String> = text
            .lines()
            .filter(|line| ["function ", "class ", "const "].iter().any(|word| line.starts_with(word)))
            .filter_map(first)
            .filter(|name| !name.is_empty() && !name.starts_with('['))
            .collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
    }
    let empty = Report { lines: vec!["x".into()], ..Report::default() }.render();
    assert!(!empty.contains("<script"), "nothing is drawn");
}

#[test]
fn an_empty_report_is_a_page_too() {
    let page = Report::default().render();
    assert!(page.contains("No anomaly") && !page.contains("Logit lens") && page.ends_with("</html>\n"));
}
