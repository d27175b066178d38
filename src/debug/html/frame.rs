//! The frame of every report: its title, the facts of the run, lines about it, sections, and the script that draws. It
//! loads nothing from anywhere.

use super::escape;
use std::fmt::Write;

#[cfg(not(target_arch = "wasm32"))]
use super::picture;

/// In a browser the package fills these in: it has the same files as modules, which the wasm would only hold twice.
#[cfg(target_arch = "wasm32")]
mod picture {
    pub(super) fn style() -> &'static str {
        ""
    }
    pub(super) fn script(_: &[&str]) -> &'static str {
        ""
    }
}

/// Facts of a run, by name: the command, the time, the model, the prompt. What knows no clock and no command line gets
/// them from its caller.
pub type Facts = Vec<(&'static str, String)>;

/// What stands above the sections.
pub struct Heading<'a> {
    /// What was run.
    pub title: &'a str,
    /// Shown with the version of the tool.
    pub facts: &'a [(&'static str, String)],
    /// HTML after the facts: a verdict.
    pub verdict: String,
    /// Lines about the run.
    pub lines: &'a [String],
}

/// A page of sections (id, title, content), those without content left out, with the script that draws `drawn`.
pub fn page(heading: &Heading<'_>, sections: &[(&str, &str, String)], drawn: &[&str]) -> String {
    let title = escape(heading.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} · Doppler</title>\n\
         <style data-drawn>{}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n<dl class=\"facts\">",
        picture::style()
    );
    let version = ("Version", format!("doppler {}", env!("CARGO_PKG_VERSION")));
    // Writing to a string cannot fail.
    for (name, text) in heading.facts.iter().chain([&version]) {
        let _ = write!(page, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(text));
    }
    let _ = writeln!(page, "</dl>\n{}", heading.verdict);
    for line in heading.lines {
        let _ = writeln!(page, "<p class=\"line\">{}</p>", escape(line));
    }
    page.push_str("</header>\n<main>\n");
    for (id, title, content) in sections.iter().filter(|(_, _, content)| !content.is_empty()) {
        let _ = write!(page, "<section aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{content}</section>\n");
    }
    page.push_str("</main>\n");
    if !drawn.is_empty() {
        let _ = writeln!(page, "<script type=\"module\" data-drawn=\"{}\">{}</script>", drawn.join(" "), picture::script(drawn));
    }
    page + "</body>\n</html>\n"
}

/// A place in which the script draws what is held as JSON under `id`-data.
pub(in crate::debug) fn drawing(place: &str, id: &str, what: &str, held: &serde_json::Value) -> String {
    // JSON that may stand in a script element.
    let held = held.to_string().replace('<', "\\u003c");
    format!(
        "<div id=\"{place}\"></div>\n<noscript><p>{what} is drawn by a script, which this reader does not run.</p></noscript>\n\
         <script type=\"application/json\" id=\"{id}-data\">{held}</script>\n"
    )
}
