//! Python's numbers as they are read from texts. Whole numbers have 128 bits; beyond that is an error, not a wrong number.

use super::limits::{Fallible, Meter, fault};
use super::value::{Value, is_space};

/// Digits as Python reads them in a text: underscores only between digits.
fn without_underscores(text: &str) -> Option<String> {
    let good = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    good.then(|| text.replace('_', ""))
}

/// Python's `int(text, base)`; `None` where it is no number.
pub(super) fn parse_int(text: &str, base: u32) -> Fallible<Option<i128>> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let prefixed = match prefix.as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 0,
    };
    let (base, digits) = match base {
        0 if prefixed > 0 => (prefixed, &digits[2..]),
        0 => (10, digits),
        _ if base == prefixed => (base, &digits[2..]),
        _ => (base, digits),
    };
    let digits = digits.strip_prefix('_').filter(|_| prefixed > 0).unwrap_or(digits);
    let Some(digits) = without_underscores(digits).filter(|d| !d.is_empty() && d.chars().all(|c| c.is_digit(base))) else {
        return Ok(None);
    };
    match i128::from_str_radix(&digits, base) {
        Ok(number) => Ok(Some(sign * number)),
        Err(_) => too_large(),
    }
}

/// Python's `float(text)`; `None` where it is no number.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = without_underscores(text.trim_matches(is_space))?;
    let plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    let word = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    if text.chars().all(plain) || matches!(word.as_str(), "inf" | "infinity" | "nan") { text.parse().ok() } else { None }
}

/// A number of things: none where it is negative, more than any memory has where it is too large.
pub(super) fn size(number: i128) -> usize {
    usize::try_from(number.max(0)).unwrap_or(usize::MAX)
}

pub(super) fn too_large<T>() -> Fallible<T> {
    fault("a whole number beyond 128 bits is not supported")
}

/// A float cut to a whole number.
pub(super) fn whole(x: f64) -> Fallible<Option<i128>> {
    match x {
        x if x.is_nan() || x.is_infinite() => Ok(None),
        x if x.abs() < 1.7e38 => Ok(Some(x as i128)),
        _ => too_large(),
    }
}

/// The text of a value with HTML's characters escaped, unless it is marked as safe.
pub(super) fn escape(value: &Value, meter: &Meter) -> Fallible<String> {
    let text = value.to_text(meter)?;
    if matches!(value, Value::Markup(_)) {
        meter.make(text.len())?;
        return Ok(text.to_string());
    }
    meter.make(text.len().saturating_mul(5))?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out)
}
