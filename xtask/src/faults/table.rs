//! The table of a campaign's results.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

const COLUMNS: [&str; 10] =
    ["named", "one of two", "kernel only", "wrong name", "abstained", "missed", "no answer", "clean", "false alarm", "all"];

/// Counts by class and by how the doctor was asked, with a reference and without.
pub fn table(lines: &str) -> String {
    let mut rows: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for result in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let text = |key: &str| result[key].as_str().unwrap_or_default().to_string();
        let (class, judged, id) = (text("class"), text("judged"), text("id"));
        let setting = id.rsplit('/').next().unwrap_or_default();
        let side = if setting.starts_with("alone") { "without" } else { "with" };
        seconds.entry(side).or_default().push(result["seconds"].as_f64().unwrap_or_default());
        let total = if class == "clean" { format!("2 clean, {side}") } else { format!("0 all faults, {side}") };
        for key in [total, format!("1 {class}, {side}"), format!("3 setting {setting}")] {
            let row = rows.entry(key).or_default();
            *row.entry(judged.clone()).or_default() += 1;
            *row.entry("all".into()).or_default() += 1;
        }
    }
    let mut text = format!("{:<40}", "");
    COLUMNS.iter().for_each(|column| {
        let _ = write!(text, " {column:>11}");
    });
    text.push('\n');
    for (name, counts) in rows {
        let _ = write!(text, "{:<40}", &name[2..]);
        COLUMNS.iter().for_each(|column| {
            let _ = write!(text, " {:>11}", counts.get(*column).copied().unwrap_or(0));
        });
        text.push('\n');
    }
    for (side, mut seconds) in seconds {
        seconds.sort_by(f64::total_cmp);
        let (median, worst) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
        let _ = writeln!(text, "{side} a reference: {} diagnoses, median {median:.2} s, worst {worst:.2} s", seconds.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_counted() {
        let line = |class: &str, judged: &str, setting: &str| {
            json!({"id": format!("{class}/x/m/0/0/{setting}"), "class": class, "judged": judged, "seconds": 1.0}).to_string()
        };
        let text =
            table(&[line("norm_eps", "named", "golden"), line("clean", "clean", "alone"), line("race", "missed", "alone")].join("\n"));
        assert!(text.contains("with a reference: 1 diagnoses, median 1.00 s"), "{text}");
        let row = |name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .map(|line| line[40..].split_whitespace().map(str::to_string).collect::<Vec<_>>())
        };
        assert_eq!(row("all faults, with ").map(|row| row[0].clone()).as_deref(), Some("1"), "{text}");
        assert_eq!(row("all faults, without").map(|row| row[5].clone()).as_deref(), Some("1"), "{text}");
    }
}
