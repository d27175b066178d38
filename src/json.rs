//! JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` where numbers stand, and byte-order marks that editors put
//! first. It knows no keys.

use crate::error::{Error, Result};
use serde_json::Value;
use std::borrow::Cow;

/// The JSON value in `text`. Numbers that JSON does not have become the texts "NaN", "Infinity" and "-Infinity": harmless
/// in a key that nobody reads, and an error that shows them in one that must be a number. Of two equal keys the last one
/// counts, as in Python.
///
/// # Errors
/// `Kind::Format` naming `file`, with line and column; nesting beyond 127 levels too.
pub fn parse(file: &str, text: &str) -> Result<Value> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(&quoted(text)).map_err(|e| Error::format(file, e))
}

/// `text` with quotes around the numbers that JSON does not have.
fn quoted(text: &str) -> Cow<'_, str> {
    const NAMES: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !NAMES.iter().any(|name| text.contains(name)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 64);
    let (mut within, mut escaped, mut rest) = (false, false, text);
    while let Some(c) = rest.chars().next() {
        let name = NAMES.iter().find(|name| !within && rest.starts_with(**name));
        if let Some(name) = name {
            out.extend(["\"", name, "\""]);
            rest = &rest[name.len()..];
            continue;
        }
        within ^= c == '"' && !escaped;
        escaped = within && c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_python_writes_is_read() {
        let text =
            "\u{feff}{\"a\": [NaN, Infinity, -Infinity, 1], \"b\": \"NaN \\\" Infinity\", \"c\": {\"\\\\\": NaN}, \"d\": 1, \"d\": 2}";
        let expected = json!({"a": ["NaN", "Infinity", "-Infinity", 1], "b": "NaN \" Infinity", "c": {"\\": "NaN"}, "d": 2});
        assert_eq!(parse("f", text).unwrap(), expected);
        for bad in ["", "{", "{\"a\": nan}", "{\"a\": Infinityx}", "NaN NaN", "[1,]"] {
            assert!(parse("f", bad).unwrap_err().message.starts_with("f: "), "{bad}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        for depth in [100, 100_000] {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(parse("f", &text).is_ok(), depth == 100);
        }
    }
}
