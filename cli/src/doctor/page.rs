//! The verdict as one HTML page that loads nothing.

use crate::output;
use doppler::debug::doctor::Verdict;
use doppler::debug::html::{Heading, escape, page as framed};
use std::fmt::Write;

/// The page.
pub fn page(model: &str, verdict: &Verdict) -> String {
    let mut rows = String::new();
    for line in verdict.text().lines() {
        let (name, text) = named(line);
        let head = if name.trim().is_empty() { "<td></td>".into() } else { format!("<th scope=\"row\">{}</th>", escape(name.trim())) };
        let _ = writeln!(rows, "<tr>{head}<td>{}</td></tr>", escape(text));
    }
    let table = format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"The verdict, line by line\" tabindex=\"0\">\n<table>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    );
    let mut facts = output::facts();
    facts.push(("Model", model.into()));
    let title = format!("doctor: {model}");
    framed(&Heading { title: &title, facts: &facts, verdict: String::new(), lines: &[] }, &[("verdict", "Verdict", table)], &[])
}

/// The name of a line and its words. Names fill nine columns; the first line's is followed by its words at once.
fn named(line: &str) -> (&str, &str) {
    let column = line.char_indices().nth(9).map_or(line.len(), |(at, _)| at);
    let is_filled = line.char_indices().nth(8).is_none_or(|(_, c)| c == ' ');
    line.split_at(if is_filled { column } else { line.find(' ').unwrap_or(line.len()) })
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_line_is_cut_after_its_name() {
        for (line, name) in [
            ("VERDICT diagnosed cause=x", "VERDICT"),
            ("Fix      set it", "Fix"),
            ("Examined weights", "Examined"),
            ("         and so on", ""),
            ("Not", "Not"),
        ] {
            let (found, text) = named(line);
            assert_eq!((found.trim(), format!("{found}{text}")), (name, line.to_string()));
        }
    }
}
