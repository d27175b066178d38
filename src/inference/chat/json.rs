//! `tojson` as transformers gives it to chat templates: Python's `json.dumps`, without HTML escapes.

use minijinja::Error;
use minijinja::value::{Kwargs, Value, ValueKind};

use super::filters::{MAX_DEPTH, invalid, number};

/// The options of `json.dumps` that transformers lets templates choose.
struct JsonStyle {
    ascii: bool,
    /// Text of one level of indentation; `None` writes one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)` as transformers defines it:
/// `json.dumps` without HTML escapes.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<Value>>("indent")?.map(|v| match v.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => usize::try_from(v).map(|n| " ".repeat(n.min(64))),
    });
    let indent = indent.transpose()?;
    let [item_separator, key_separator] = match options.get::<Option<Vec<String>>>("separators")? {
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(two) => two.try_into().map_err(|_| invalid("tojson: `separators` must be two texts"))?,
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let style = JsonStyle { ascii, indent, item_separator, key_separator, sort_keys };
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(&mut out, value, &style, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("tojson: the value is nested too deeply"));
    }
    let break_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_json_text(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { &style.item_separator });
                break_line(out, depth + 1);
                write_json(out, &item, style, depth + 1)?;
                empty = false;
            }
            if !empty {
                break_line(out, depth);
            }
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { &style.item_separator });
                break_line(out, depth + 1);
                match key.kind() {
                    ValueKind::String => write_json_text(out, key.as_str().unwrap_or_default(), style.ascii),
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                        out.push('"');
                        write_json(out, key, style, depth + 1)?;
                        out.push('"');
                    }
                    kind => return Err(invalid(format!("tojson: a key may not be of type {kind}"))),
                }
                out.push_str(&style.key_separator);
                write_json(out, &value.get_item(key)?, style, depth + 1)?;
            }
            if !keys.is_empty() {
                break_line(out, depth);
            }
            out.push('}');
        }
        kind => return Err(invalid(format!("tojson: a value of type {kind} has no JSON form"))),
    }
    Ok(())
}

fn write_json_text(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && c > '~') => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dumps(value: serde_json::Value, options: &[(&str, Value)]) -> String {
        let options = options.iter().map(|(key, value)| (*key, value.clone())).collect();
        tojson(&Value::from_serialize(value), options).unwrap()
    }

    /// Expected texts from CPython 3.11.
    #[test]
    fn json_is_pythons() {
        let value = json!({"b": [1, 2.0, 1e16, 1e-5, 0.0001, 123456789.125, -0.0], "a": {"x": null, "y": true}, "e": [], "o": {}});
        let line = r#"{"b": [1, 2.0, 1e+16, 1e-05, 0.0001, 123456789.125, -0.0], "a": {"x": null, "y": true}, "e": [], "o": {}}"#;
        assert_eq!(dumps(value, &[]), line);
        let value = json!({"b": [1, {"c": "d"}], "a": []});
        assert_eq!(
            dumps(value.clone(), &[("indent", 2.into())]),
            "{\n  \"b\": [\n    1,\n    {\n      \"c\": \"d\"\n    }\n  ],\n  \"a\": []\n}"
        );
        let tight = Value::from(vec![",", ":"]);
        assert_eq!(dumps(value, &[("separators", tight), ("sort_keys", true.into())]), r#"{"a":[],"b":[1,{"c":"d"}]}"#);
        let text = json!("<b>'é\u{7f}😀\"\\\n\u{1}/");
        assert_eq!(dumps(text.clone(), &[]), "\"<b>'é\u{7f}😀\\\"\\\\\\n\\u0001/\"");
        assert_eq!(dumps(text, &[("ensure_ascii", true.into())]), r#""<b>'\u00e9\u007f\ud83d\ude00\"\\\n\u0001/""#);
    }

    #[test]
    fn what_has_no_json_is_an_error() {
        assert!(tojson(&Value::UNDEFINED, Kwargs::from_iter::<[(&str, Value); 0]>([])).is_err());
        assert!(tojson(&1.into(), Kwargs::from_iter([("nonsense", Value::from(1))])).is_err());
        let deep = (0..500).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
        assert!(tojson(&deep, Kwargs::from_iter::<[(&str, Value); 0]>([])).is_err());
    }
}
