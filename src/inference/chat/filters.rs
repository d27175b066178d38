//! Filters, tests and methods that Jinja2 and Python have and minijinja lacks or treats otherwise, and how Python prints
//! values. Only what chat templates use.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

/// Values nested deeper than this are not walked.
pub(super) const MAX_DEPTH: usize = 200;

/// Adds everything here to `environment`.
pub(super) fn install(environment: &mut Environment) {
    environment.set_formatter(|out, _, value| Ok(out.write_str(&text(value))?));
    environment.set_unknown_method_callback(method);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("trim", trim);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    // Undefined is empty here, as in Jinja2.
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) });
    }
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
}

/// Methods of Python's values.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "rsplit" => {
            let (separator, limit): (&str, Option<i64>) = from_args(args)?;
            let pieces = limit.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            Ok(Value::from_iter(parts))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Jinja's filter `trim(chars)`: also of what is not a text.
fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = text(value);
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => text.trim().to_owned(),
    }
}

/// Jinja's filter `indent(width=4, first=False, blank=False)`; unlike minijinja's it keeps a last line break.
fn indent(text: String, width: Option<Value>, first: Option<bool>, blank: Option<bool>, names: Kwargs) -> Result<String, Error> {
    let width = named(width, &names, "width")?;
    let first = named(first, &names, "first")?.unwrap_or(false);
    let blank = named(blank, &names, "blank")?.unwrap_or(false);
    names.assert_all_used()?;
    let margin = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(margin) => margin.to_owned(),
            None => " ".repeat(usize::try_from(width)?.min(1000)),
        },
    };
    let indented = |(i, line): (usize, &str)| {
        let bare = if i == 0 { !first } else { line.is_empty() && !blank };
        format!("{}{line}", if bare { "" } else { &margin })
    };
    Ok(text.split('\n').enumerate().map(indented).collect::<Vec<_>>().join("\n"))
}

/// Jinja's filter `int(default=0, base=10)`: what is not a number gives the default.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, names: Kwargs) -> Result<Value, Error> {
    let default = named(default, &names, "default")?.unwrap_or_else(|| 0.into());
    let base = named(base, &names, "base")?.unwrap_or(10);
    names.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(invalid("int: `base` must be from 2 to 36"));
    }
    let whole = |x: f64| (x.abs() < 1e18).then(|| Value::from(x as i64));
    let parsed = match value.as_str().map(str::trim) {
        Some(text) => i64::from_str_radix(text, base).ok().map(Value::from).or_else(|| whole(text.parse().ok()?)),
        None if value.is_integer() => Some(value.clone()),
        None => real(value).and_then(whole),
    };
    Ok(parsed.unwrap_or(default))
}

/// Jinja's filter `float(default=0.0)`: what is not a number gives the default.
fn float(value: &Value, default: Option<Value>, names: Kwargs) -> Result<Value, Error> {
    let default = named(default, &names, "default")?.unwrap_or_else(|| 0.0.into());
    names.assert_all_used()?;
    let parsed = value.as_str().map_or_else(|| real(value), |text| text.trim().parse().ok());
    Ok(parsed.map_or(default, Value::from))
}

/// An argument given by place or by name.
fn named<T>(by_place: Option<T>, names: &Kwargs, name: &str) -> Result<Option<T>, Error>
where
    for<'a> Option<T>: minijinja::value::ArgType<'a, Output = Option<T>>,
{
    if by_place.is_some() { Ok(by_place) } else { names.get(name) }
}

/// A number or a truth value as a float.
fn real(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Bool { Some(value.is_true().into()) } else { f64::try_from(value.clone()).ok() }
}

/// Python's `str` of a number.
pub(super) fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float_text(x),
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float, as `json.dumps` writes it: shortest digits, an exponent below 1e-4 and from 1e16.
fn float_text(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{x:?}"),
        e => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.unsigned_abs()),
    }
}

/// Python's `str` of a value: what `{{ value }}` prints.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => repr(value, 0),
        ValueKind::Number => number(value),
        _ => value.to_string(),
    }
}

/// Python's `repr`: texts in single quotes unless they hold one and no double quote.
fn repr(value: &Value, depth: usize) -> String {
    if depth > MAX_DEPTH {
        return "...".into();
    }
    let items = |of: &Value| of.try_iter().map(|items| items.collect::<Vec<_>>()).unwrap_or_default();
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let mut out = String::from(quote);
            for c in text.chars() {
                match c {
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    '\\' => out.push_str("\\\\"),
                    c if c == quote => out.extend(['\\', c]),
                    c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
                    c => out.push(c),
                }
            }
            out.push(quote);
            out
        }
        ValueKind::Seq | ValueKind::Iterable => {
            format!("[{}]", items(value).iter().map(|v| repr(v, depth + 1)).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Map => {
            let pair = |key: &Value| {
                let item = value.get_item(key).unwrap_or_default();
                format!("{}: {}", repr(key, depth + 1), repr(&item, depth + 1))
            };
            format!("{{{}}}", items(value).iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Undefined => "Undefined".into(),
        _ => text(value),
    }
}

/// An error of a filter or function.
pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Expected texts from CPython 3.11.
    #[test]
    fn repr_is_pythons() {
        let value = Value::from_serialize(json!({"a": ["x'y", "\"'", "é\n", 1.5, true, null]}));
        assert_eq!(text(&value), r#"{'a': ["x'y", '"\'', 'é\n', 1.5, True, None]}"#);
        assert_eq!(text(&Value::from("plain")), "plain");
        assert_eq!(text(&Value::from(1e20)), "1e+20");
    }

    #[test]
    fn filters_and_methods_are_pythons() {
        let mut environment = Environment::new();
        install(&mut environment);
        let render = |source: &str| environment.render_str(source, ()).unwrap();
        assert_eq!(render("{{ ['a', 1] | trim }}{{ 'xax' | trim('x') }}{{ nothing | trim }}"), "['a', 1]a");
        assert_eq!(render("{{ 'a\n\nb\n' | indent(2, first=true) }}|"), "  a\n\n  b\n|");
        assert_eq!(
            render("{{ 'x' | int }} {{ ' 7.9 ' | int }} {{ '11' | int(base=2) }} {{ true | int }} {{ 'x' | int(-1) }}"),
            "0 7 3 1 -1"
        );
        assert_eq!(render("{{ '1.5' | float }} {{ 'x' | float }} {{ 2 | float }} {{ nothing | length }}"), "1.5 0.0 2.0 0");
        assert_eq!(
            render("{{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b'.rsplit('-') }} {{ 'a-b'.rsplit('-', -1)[0] }}"),
            "['a-b', 'c'] ['a', 'b'] a"
        );
        assert_eq!(render("{{ 'ab'.removeprefix('a') }}{{ 'ab'.removesuffix('b') }}{{ 'ab'.upper() }}"), "baAB");
        assert_eq!(render("{{ 'x' is sequence }} {{ 1 is sequence }} {{ [1, 2, 3][::-1] }} {{ none }}"), "True False [3, 2, 1] None");
        assert!(environment.render_str("{{ '1' | int(base=1) }}", ()).is_err());
    }
}
