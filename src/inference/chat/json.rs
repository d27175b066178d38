//! `tojson` as transformers gives it to chat templates: Python's `json.dumps`, without HTML escapes.

use super::arguments::Given;
use super::floats::float_text;
use super::limits::{Fallible, Meter, fault};
use super::numbers::size;
use super::value::{Value, write};

/// The options of `json.dumps` that transformers lets templates choose.
struct JsonStyle {
    ascii: bool,
    /// Text of one level of indentation; `None` writes one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)` as transformers defines it.
pub(super) fn tojson(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [ascii, indent, separators, sort_keys] = given.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_int()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => {
                let width = size(width);
                meter.make(width)?;
                " ".repeat(width)
            }
            _ => return fault("tojson: `indent` must be a whole number or a text"),
        }),
    };
    let [item_separator, key_separator] = match separators {
        None | Some(Value::None) => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(two) => match &*two.iterate(meter)? {
            [Value::Str(items), Value::Str(keys)] => [items.to_string(), keys.to_string()],
            _ => return fault("tojson: `separators` must be two texts"),
        },
    };
    let truth = |value: Option<Value>| value.is_some_and(|v| v.truthy());
    let style = JsonStyle { ascii: truth(ascii), indent, item_separator, key_separator, sort_keys: truth(sort_keys) };
    let mut out = String::new();
    write_json(&mut out, value, &style, 0, meter)?;
    Value::text(out, meter)
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize, meter: &Meter) -> Fallible<()> {
    meter.step(1)?;
    match value {
        Value::None => write(out, "null", meter),
        Value::Bool(value) => write(out, if *value { "true" } else { "false" }, meter),
        Value::Int(number) => write(out, &number.to_string(), meter),
        Value::Float(number) => write(out, &float_json(*number), meter),
        Value::Str(text) | Value::Markup(text) => write_text(out, text, style.ascii, meter),
        Value::List(items) | Value::Tuple(items) => {
            let items = &items.items;
            write_all(out, ["[", "]"], items.len(), style, depth, meter, |out, at| write_json(out, &items[at], style, depth + 1, meter))
        }
        Value::Dict(dict) => {
            let mut pairs: Vec<&(Value, Value)> = dict.pairs.iter().collect();
            if style.sort_keys {
                let mut failed = None;
                pairs.sort_by(|(a, _), (b, _)| {
                    let order = a.order(b, "<", meter).unwrap_or_else(|fault| {
                        failed.get_or_insert(fault);
                        None
                    });
                    order.unwrap_or(std::cmp::Ordering::Equal)
                });
                failed.map_or(Ok(()), Err)?;
            }
            write_all(out, ["{", "}"], pairs.len(), style, depth, meter, |out, at| {
                let (key, value) = pairs[at];
                match key {
                    Value::Str(text) | Value::Markup(text) => write_text(out, text, style.ascii, meter)?,
                    Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                        write(out, "\"", meter)?;
                        write_json(out, key, style, depth + 1, meter)?;
                        write(out, "\"", meter)?;
                    }
                    other => return fault(format!("keys must be str, int, float, bool or None, not {}", other.type_name())),
                }
                write(out, &style.key_separator, meter)?;
                write_json(out, value, style, depth + 1, meter)
            })
        }
        other => fault(format!("Object of type {} is not JSON serializable", other.type_name())),
    }
}

/// `count` things between brackets, each on a line of its own where the style has lines.
fn write_all(
    out: &mut String,
    [open, close]: [&str; 2],
    count: usize,
    style: &JsonStyle,
    depth: usize,
    meter: &Meter,
    mut one: impl FnMut(&mut String, usize) -> Fallible<()>,
) -> Fallible<()> {
    let break_line = |out: &mut String, depth: usize| {
        let Some(indent) = &style.indent else { return Ok(()) };
        meter.make(indent.len().saturating_mul(depth) + 1)?;
        out.push('\n');
        out.push_str(&indent.repeat(depth));
        Ok(())
    };
    write(out, open, meter)?;
    for at in 0..count {
        write(out, if at == 0 { "" } else { &style.item_separator }, meter)?;
        break_line(out, depth + 1)?;
        one(out, at)?;
    }
    if count > 0 {
        break_line(out, depth)?;
    }
    write(out, close, meter)
}

fn float_json(number: f64) -> String {
    match number {
        x if x.is_nan() => "NaN".into(),
        x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        x => float_text(x),
    }
}

fn write_text(out: &mut String, text: &str, ascii: bool, meter: &Meter) -> Fallible<()> {
    meter.make(text.len() + 2)?;
    out.push('"');
    for c in text.chars() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            c if c < ' ' || (ascii && c > '~') => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write(out, &format!("\\u{unit:04x}"), meter)?;
                }
                continue;
            }
            c => {
                out.push(c);
                continue;
            }
        };
        write(out, escape, meter)?;
    }
    out.push('"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dumps(value: serde_json::Value, options: &[(&str, Value)]) -> String {
        let meter = Meter::new(0);
        let by_name = options.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        let value = Value::from_json(&value, &meter).unwrap();
        tojson(&value, Given { by_place: Vec::new(), by_name }, &meter).unwrap().as_str().unwrap().to_owned()
    }

    /// Expected texts from CPython 3.11.
    #[test]
    fn json_is_pythons() {
        let value = json!({"b": [1, 2.0, 1e16, 1e-5, 0.0001, 123456789.125, -0.0], "a": {"x": null, "y": true}, "e": [], "o": {}});
        let line = r#"{"b": [1, 2.0, 1e+16, 1e-05, 0.0001, 123456789.125, -0.0], "a": {"x": null, "y": true}, "e": [], "o": {}}"#;
        assert_eq!(dumps(value, &[]), line);
        let value = json!({"b": [1, {"c": "d"}], "a": []});
        assert_eq!(
            dumps(value.clone(), &[("indent", Value::Int(2))]),
            "{\n  \"b\": [\n    1,\n    {\n      \"c\": \"d\"\n    }\n  ],\n  \"a\": []\n}"
        );
        let meter = Meter::new(0);
        let tight = Value::tuple(vec![Value::Str(",".into()), Value::Str(":".into())], &meter).unwrap();
        assert_eq!(dumps(value, &[("separators", tight), ("sort_keys", true.into())]), r#"{"a":[],"b":[1,{"c":"d"}]}"#);
        let text = json!("<b>'é\u{7f}😀\"\\\n\u{1}/");
        assert_eq!(dumps(text.clone(), &[]), "\"<b>'é\u{7f}😀\\\"\\\\\\n\\u0001/\"");
        assert_eq!(dumps(text, &[("ensure_ascii", true.into())]), r#""<b>'\u00e9\u007f\ud83d\ude00\"\\\n\u0001/""#);
    }

    #[test]
    fn what_has_no_json_is_an_error() {
        let meter = Meter::new(0);
        assert!(tojson(&Value::undefined("x"), Given::default(), &meter).is_err());
        let nonsense = Given { by_place: Vec::new(), by_name: vec![("nonsense".into(), Value::Int(1))] };
        assert!(tojson(&Value::Int(1), nonsense, &meter).is_err());
    }
}
