//! What reports and the page have in common: scripts and a style, in the folder `picture`. They are modules of the page. A
//! report has those that it needs one after the other in one script, without their imports and exports.
//!
//! `xtask` reads this file too. A browser's engine has no scripts; the package has them, and puts them into its reports.

/// Every module: what draws with it (a run, a comparison, attention), and its text. A module stands after those that it imports.
const MODULES: &[(&[&str], &str)] = &[
    (&["run", "comparison", "attention"], include_str!("picture/dom.js")),
    (&["run", "comparison"], include_str!("picture/names.js")),
    (&["run", "comparison"], include_str!("picture/chart.js")),
    (&["run", "comparison"], include_str!("picture/heatmap.js")),
    (&["run"], include_str!("picture/scale.js")),
    (&["run", "comparison"], include_str!("picture/details.js")),
    (&["run"], include_str!("picture/map.js")),
    (&["run"], include_str!("picture/report.js")),
    (&["comparison"], include_str!("picture/comparemap.js")),
    (&["comparison"], include_str!("picture/comparison.js")),
    (&["attention"], include_str!("picture/attention.js")),
    (&["attention"], include_str!("picture/attended.js")),
];

/// The style of a report.
pub fn style() -> String {
    [include_str!("picture/picture.css"), include_str!("style.css")].concat()
}

/// The script of a report that draws these things.
pub fn script(drawn: &[&str]) -> String {
    let needed = MODULES.iter().filter(|(of, _)| of.iter().any(|name| drawn.contains(name)));
    needed.flat_map(|(_, text)| text.lines()).filter_map(plain).flat_map(|line| [line, "\n"]).collect()
}

/// A line as a script without modules has it; `None` for imports, comments and empty lines.
fn plain(line: &str) -> Option<&str> {
    let start = line.trim_start();
    let out = start.is_empty() || start == "*/" || ["import ", "//", "/**", "* "].iter().any(|mark| start.starts_with(mark));
    (!out).then(|| line.strip_prefix("export ").unwrap_or(line))
}
