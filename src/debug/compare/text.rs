//! A report as lines: the divergence first, a table, what is missing, and a summary.

use super::{Mode, Report, StageLine};
use crate::debug::number::number;
use std::fmt::Write;

/// Floors as people read them: `1.8`, `4000`, `2.1e9`, `Inf`.
pub fn number_of_floors(times: f64) -> String {
    match times {
        t if !t.is_finite() => number(t as f32),
        t if t < 10.0 => format!("{t:.2}"),
        t if t < 100.0 => format!("{t:.1}"),
        t if t < 1e6 => format!("{t:.0}"),
        t => format!("{t:.1e}"),
    }
}

/// Three significant digits.
pub(super) fn short(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => number(x as f32),
        0.0 => "0".into(),
        size if (1e-3..1e4).contains(&size) => {
            let digits = (2 - size.log10().floor() as i32).max(0) as usize;
            format!("{x:.digits$}")
        }
        _ => format!("{x:.2e}"),
    }
}

/// The line of the first divergence: `DIVERGENCE layer=3 stage=q_rope token=17 head=2 dim=40 times_floor=4000 …`.
pub fn divergence_line(report: &Report) -> Option<String> {
    let line = report.stages.iter().find(|line| line.diverged)?;
    let mut out = String::from("DIVERGENCE");
    let fields = [("token", line.token), ("head", line.head), ("dim", line.dim)];
    // Writing to a string cannot fail.
    let _ = match line.at.layer {
        Some(layer) => write!(out, " layer={layer} stage={}", line.at.stage),
        None => write!(out, " stage={}", line.at.stage),
    };
    if let Some(part) = &line.part {
        let _ = write!(out, " part={part}");
    }
    for (name, value) in fields {
        if let Some(value) = value {
            let _ = write!(out, " {name}={value}");
        }
    }
    let _ = write!(out, " times_floor={} relative_l2={}", number_of_floors(line.times_floor), short(line.relative_l2));
    if let Some([a, b]) = line.values {
        let _ = write!(out, " a={} b={}", number(a), number(b));
    }
    if line.one_dim {
        out.push_str(" (one dim of all tokens)");
    }
    Some(out)
}

/// The whole report. The table has the values that differ; with `all`, every value.
pub fn text(report: &Report, all: bool) -> String {
    let mut out = String::new();
    if let Some(line) = divergence_line(report) {
        let _ = writeln!(out, "{line}");
    }
    for missing in &report.missing {
        let layers = if missing.layers.is_empty() { String::new() } else { format!(" layers={}", ranges(&missing.layers)) };
        let _ = writeln!(out, "MISSING stage={}{layers} in={}", missing.stage, missing.side);
    }
    let _ = writeln!(out, "Compared {} with {}", report.a, report.b);
    let _ = writeln!(out, "Mode     {}; {} values of {} tokens", mode(report), report.stages.len(), report.tokens);
    let _ = writeln!(out, "Floor    {}", report.floor);
    for text in &report.injected {
        let _ = writeln!(out, "Injected {text} of A");
    }
    for note in &report.notes {
        let _ = writeln!(out, "Note     {note}");
    }
    for left in &report.not_judged {
        let _ = writeln!(out, "NotJudged {left}");
    }
    table(&mut out, report, all);
    let _ = writeln!(out, "{}", summary(report));
    out
}

fn table(out: &mut String, report: &Report, all: bool) {
    let shown: Vec<&StageLine> = report.stages.iter().filter(|line| all || line.diverged).collect();
    if shown.is_empty() {
        return;
    }
    let name = StageLine::label;
    let wide = shown.iter().map(|line| name(line).len()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        out,
        "\n  {:wide$} {:>9} {:>9} {:>9} {:>9} {:>12} {:>6} {:>5} {:>7}",
        "value", "x floor", "rel L2", "floor", "max abs", "cosine", "token", "head", "dim"
    );
    let place = |x: Option<usize>| x.map_or("-".to_string(), |x| x.to_string());
    for line in shown {
        let mark = if line.diverged { '!' } else { ' ' };
        let floor = format!("{}{}", if line.estimated { "~" } else { "" }, short(line.floor));
        let distance = format!("{}{}", if line.sketch { "~" } else { "" }, short(line.relative_l2));
        let cosine = if line.cosine.is_finite() { format!("{:.9}", line.cosine) } else { number(line.cosine as f32) };
        let largest = if line.sketch { "-".into() } else { short(f64::from(line.max_abs)) };
        let _ = writeln!(
            out,
            "{mark} {:wide$} {:>9} {distance:>9} {floor:>9} {largest:>9} {cosine:>12} {:>6} {:>5} {:>7}",
            name(line),
            number_of_floors(line.times_floor),
            place(line.token),
            place(line.head),
            place(line.dim)
        );
    }
    out.push('\n');
}

/// What was compared how.
pub(super) fn mode(report: &Report) -> &'static str {
    if report.mode == Mode::Isolated { "isolated: every op of B on the values of A" } else { "cumulative: what the runs computed" }
}

/// The last line.
pub(super) fn summary(report: &Report) -> String {
    let beyond = report.stages.iter().filter(|line| line.diverged).count();
    let (count, allowed) = (report.stages.len(), report.allowed);
    let lacking =
        if report.missing.is_empty() { String::new() } else { format!("; {} stages are missing on one side", report.missing.len()) };
    let worst = report.worst().map_or(String::new(), |w| {
        let place = w.token.map_or(String::new(), |token| format!(" token {token}"));
        format!("{}× floor at {}{place}", number_of_floors(w.times_floor), w.label())
    });
    let covers = format!("{count} values of {} tokens, {allowed} allowed; covers {}", report.tokens, covered(report));
    match beyond {
        0 if !report.missing.is_empty() => {
            format!("DIFFER no value is beyond {allowed} floors, worst {worst} ({count} values){lacking}")
        }
        0 if !report.not_judged.is_empty() => {
            let left: Vec<String> = report.not_judged.iter().map(ToString::to_string).collect();
            format!("INCOMPLETE worst {worst} ({covers}); not judged: {}", left.join("; "))
        }
        0 => format!("AGREE worst {worst} ({covers})"),
        _ => format!("DIFFER {beyond} of {count} values are beyond {allowed} floors, worst {worst}{lacking}"),
    }
}

/// What the verdict is about.
fn covered(report: &Report) -> String {
    let watched = report.stages.iter().filter(|line| line.part.is_none()).count();
    let values = match report.mode {
        Mode::Cumulative => vec![format!("{watched} values of watched runs or dumps")],
        Mode::Isolated => Vec::new(),
    };
    let injected = (!report.injected.is_empty()).then(|| format!("what follows from {} of A", report.injected.join(" and ")));
    values.into_iter().chain(injected).chain(report.covers.iter().cloned()).collect::<Vec<_>>().join(", ")
}

/// `0-3,5`.
pub(super) fn ranges(list: &[usize]) -> String {
    let mut out = String::new();
    let mut rest = list;
    while let Some(first) = rest.first() {
        let count = rest.iter().zip(*first..).take_while(|(x, y)| *x == y).count();
        let comma = if out.is_empty() { "" } else { "," };
        let _ = match count {
            1 => write!(out, "{comma}{first}"),
            n => write!(out, "{comma}{first}-{}", first + n - 1),
        };
        rest = &rest[count..];
    }
    out
}
