//! Curves of size over layers, as an inline drawing with its numbers in words.

use super::escape;
use super::heat::short;
use crate::debug::record::TraceRecord;
use crate::debug::summary::Summary;
use crate::plan::Stage;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Stages that are drawn where they were seen, most telling first, and how many of them.
const DRAWN: [Stage; 5] = [Stage::LayerOut, Stage::FfnOut, Stage::OProj, Stage::QProj, Stage::FfnAct];
const MOST: usize = 2;
/// The drawing's size and margins.
const W: f64 = 720.0;
const H: f64 = 300.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 30.0;

/// A curve: its name and a size per layer.
struct Curve {
    name: String,
    points: Vec<(usize, f32)>,
}

/// The prompt's curves; empty where no stage was seen in two layers.
pub(super) fn growth(traces: &[TraceRecord]) -> String {
    let curves = curves(traces);
    let sizes = || curves.iter().flat_map(|c| &c.points).map(|(_, x)| f64::from(*x).log10());
    let (low, high) = (sizes().fold(f64::INFINITY, f64::min).floor(), sizes().fold(f64::NEG_INFINITY, f64::max).ceil());
    let last = curves.iter().flat_map(|c| &c.points).map(|(layer, _)| *layer).max().unwrap_or(0);
    if curves.is_empty() || last == 0 {
        return String::new();
    }
    let high = if high > low { high } else { low + 1.0 };
    let x = |layer: usize| LEFT + (W - LEFT - RIGHT) * layer as f64 / last as f64;
    let y = |log: f64| H - BOTTOM - (H - TOP - BOTTOM) * (log - low) / (high - low);
    let words: Vec<String> = curves.iter().map(Curve::words).collect();
    let words = escape(&format!("Sizes over the layers of the prompt, logarithmic: {}", words.join("; ")));
    let region = "<div class=\"wide\" role=\"region\" aria-label=\"Curves of sizes\" tabindex=\"0\">\n";
    let mut out =
        format!("{region}<svg class=\"curves\" viewBox=\"0 0 {W} {H}\" role=\"img\" aria-label=\"{words}\">\n<title>{words}</title>\n");
    let ticks = ((high - low) / 8.0).ceil().max(1.0);
    for i in 0..=((high - low) / ticks) as usize {
        let log = low + ticks * i as f64;
        let (at, right, label) = (y(log), W - RIGHT, LEFT - 6.0);
        let _ = write!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ = writeln!(out, "<text x=\"{label}\" y=\"{:.1}\" text-anchor=\"end\">1e{log}</text>", at + 4.0);
    }
    let every = last.div_ceil(12).max(1);
    for layer in (0..=last).step_by(every) {
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">L{layer}</text>", x(layer), H - 10.0);
    }
    for (i, curve) in curves.iter().enumerate() {
        let points: Vec<String> = curve.points.iter().map(|(l, size)| format!("{:.1},{:.1}", x(*l), y(f64::from(*size).log10()))).collect();
        let _ = writeln!(out, "<polyline class=\"k{i}\" points=\"{}\"/>", points.join(" "));
        let at = LEFT + i as f64 * 165.0;
        let _ = write!(out, "<polyline class=\"k{i}\" points=\"{at},12 {},12\"/>", at + 22.0);
        let _ = writeln!(out, "<text x=\"{}\" y=\"16\">{}</text>", at + 27.0, escape(&curve.name));
    }
    let list: String = curves.iter().map(|c| format!("<p class=\"soft\">{}</p>\n", escape(&c.words()))).collect();
    out + "</svg>\n</div>\n" + &list
}

/// maxAbs and rms of the first stages that are there.
fn curves(traces: &[TraceRecord]) -> Vec<Curve> {
    let mut found = Vec::new();
    for stage in DRAWN {
        let mut layers: BTreeMap<usize, Summary> = BTreeMap::new();
        for trace in traces.iter().filter(|t| t.at.stage == stage && t.step == 0) {
            let Some(layer) = trace.at.layer else { continue };
            layers.entry(layer).and_modify(|known| known.join(&trace.stats)).or_insert(trace.stats);
        }
        if layers.len() < 2 || found.len() >= 2 * MOST {
            continue;
        }
        for (name, size) in [("maxAbs", (|s| s.max_abs) as fn(&Summary) -> f32), ("rms", |s| s.rms)] {
            let drawn = |(layer, stats): (&usize, &Summary)| Some((*layer, size(stats))).filter(|(_, x)| x.is_finite() && *x > 0.0);
            let points: Vec<(usize, f32)> = layers.iter().filter_map(drawn).collect();
            if !points.is_empty() {
                found.push(Curve { name: format!("{stage} {name}"), points });
            }
        }
    }
    found
}

impl Curve {
    /// `layer_out maxAbs from 1.2 (L0) to 30 (L25), largest 44 (L17)`.
    fn words(&self) -> String {
        let of = |point: Option<&(usize, f32)>| point.map_or(String::new(), |(layer, x)| format!("{} (L{layer})", short(*x)));
        let largest = self.points.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        format!("{} from {} to {}, largest {}", self.name, of(self.points.first()), of(self.points.last()), of(largest))
    }
}
