//! Filters that few chat templates use.

use std::sync::Arc;

use super::arguments::{Given, defined, number};
use super::limits::{Fallible, Meter, fault};
use super::numbers::{escape, parse_float};
use super::value::{Value, View, write};

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
pub(super) fn truncate(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [length, kill, end, leeway] = given.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let size = |value: Option<Value>, default: i128| {
        value.filter(|v| !matches!(v, Value::None)).map_or(Ok(default), |v| number(Some(&v), "truncate"))
    };
    let (length, leeway) = (size(length, 255)?, size(leeway, 5)?);
    let end: Arc<str> = end.map_or_else(|| Ok("...".into()), |end| end.to_text(meter))?;
    let kept = length - end.chars().count() as i128;
    let (Ok(kept), true) = (usize::try_from(kept), leeway >= 0) else {
        return fault(format!("expected length >= {}, got {length}", end.len()));
    };
    let of = match value {
        Value::Undefined(_) => "",
        other => match other.as_str() {
            Some(text) => text,
            None => return fault(format!("object of type '{}' has no len()", other.type_name())),
        },
    };
    if of.chars().count() as i128 <= length + leeway {
        return Ok(value.clone());
    }
    let cut: String = of.chars().take(kept).collect();
    let cut = if kill.is_some_and(|k| k.truthy()) { &cut } else { cut.rsplit_once(' ').map_or(&*cut, |(before, _)| before) };
    Value::text([cut, &end].concat(), meter)
}

fn quoted(value: &Value, in_query: bool, meter: &Meter) -> Fallible<String> {
    let text = value.to_text(meter)?;
    meter.make(text.len().saturating_mul(3))?;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !in_query => out.push('/'),
            b' ' if in_query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out)
}

pub(super) fn urlencode(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    given.bind("urlencode", [], 0)?;
    let pairs = match value {
        Value::Dict(dict) => Value::View(View::Items, dict.clone()).iterate(meter)?,
        Value::List(_) | Value::Tuple(_) | Value::Stream(_) | Value::View(..) => value.iterate(meter)?,
        other => return Value::text(quoted(other, false, meter)?, meter),
    };
    let pair = |pair: &Value| match &*pair.iterate(meter)? {
        [key, value] => Ok(format!("{}={}", quoted(key, true, meter)?, quoted(value, true, meter)?)),
        _ => fault("urlencode: expected pairs"),
    };
    Value::text(pairs.iter().map(pair).collect::<Fallible<Vec<_>>>()?.join("&"), meter)
}

pub(super) fn filesize(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [binary] = given.bind("filesizeformat", ["binary"], 0)?;
    let binary = binary.is_some_and(|b| b.truthy());
    let bytes = match value.as_str() {
        Some(text) => parse_float(text),
        None => defined(value)?.as_float(),
    };
    let Some(bytes) = bytes else { return fault("filesizeformat: the value must be a number") };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    let out = if bytes == 1.0 {
        "1 Byte".into()
    } else if bytes < base {
        format!("{} Bytes", bytes as i64)
    } else {
        let mut unit = base * base;
        let mut prefixes = "kMGTPEZY".chars();
        let mut prefix = prefixes.next();
        while bytes >= unit {
            let Some(next) = prefixes.next() else { break };
            (unit, prefix) = (unit * base, Some(next));
        }
        let prefix = prefix.map(|p| if binary { format!("{}i", p.to_ascii_uppercase()) } else { p.to_string() });
        format!("{:.1} {}B", base * bytes / unit, prefix.unwrap_or_default())
    };
    Value::text(out, meter)
}

pub(super) fn xmlattr(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [autospace] = given.bind("xmlattr", ["autospace"], 0)?;
    let Value::Dict(dict) = defined(value)? else { return fault("xmlattr: the value must be a dict") };
    let mut out = String::new();
    for (key, value) in dict.pairs.iter().filter(|(_, value)| !matches!(value, Value::None | Value::Undefined(_))) {
        if key.as_str().is_none_or(|key| key.contains(|c: char| c.is_ascii_whitespace() || "/>=".contains(c))) {
            return fault("Invalid character in attribute name");
        }
        let space = if out.is_empty() && autospace.as_ref().is_some_and(|a| !a.truthy()) { "" } else { " " };
        write(&mut out, &format!("{space}{}=\"{}\"", escape(key, meter)?, escape(value, meter)?), meter)?;
    }
    Value::text(out, meter)
}
