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
    report.config.push(ConfigRow { name: "norm.eps".into(), value: "1e-6".into(), source: evil.into() });
    report
}

#[test]
fn every_section_is_there_and_texts_stay_texts() {
    let page = report().render();
    for part in ["Findings", "Tokens", "Layers and stages", "Growth", "Chosen tokens", "Logit lens", "Config", "No anomaly"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<img") && page.matches("</script>").count() == 2 && !page.contains('\u{1b}'));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("name=\"viewport\"") && page.contains("scope=\"row\""));
    for outside in ["http://", "https://", "src=\"", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("class=\"odd\"") && page.contains(">NaN<"));
    assert!(page.contains("layer_out maxAbs from 1 (L0) to 10 (L1), largest 10 (L1)"));
}

#[test]
fn elements_are_closed() {
    let page = report().render();
    for name in ["div", "table", "tr", "td", "th", "section", "button", "svg", "ol", "li", "select", "p", "script", "caption"] {
        let opened = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
    }
}

#[test]
fn an_empty_report_is_a_page_too() {
    let page = Report::default().render();
    assert!(page.contains("No anomaly") && !page.contains("Logit lens") && page.ends_with("</html>\n"));
}
