//! Python's numbers: how they are written and read, and arithmetic on values. Whole numbers have 128 bits; beyond that
//! is an error, not a wrong number.

use super::ast::MathOp;
use super::limits::{Fallible, Meter, fault};
use super::value::{Value, is_space};

/// Python's `repr` of a float: shortest digits, an exponent below 1e-4 and from 1e16.
pub(super) fn float_text(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{x:?}"),
        e => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.unsigned_abs()),
    }
}

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

/// An operator of `+ - * / // % **` on two values.
pub(super) fn math(op: MathOp, left: &Value, right: &Value, meter: &Meter) -> Fallible<Value> {
    for value in [left, right] {
        if let Value::Undefined(why) = value
            && !(op == MathOp::Mod && left.as_str().is_some())
        {
            return fault(&**why);
        }
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return on_ints(op, a, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return on_floats(op, a, b).map(Value::Float);
    }
    match (op, left, right) {
        (MathOp::Add, Value::Str(a), Value::Str(b)) => {
            meter.make(a.len() + b.len())?;
            Value::text([&**a, b].concat(), meter)
        }
        (MathOp::Add, Value::Markup(_), b) | (MathOp::Add, b, Value::Markup(_)) if b.as_str().is_some() => {
            let parts = [left, right].map(|part| escape(part, meter));
            let [a, b] = parts;
            let (a, b) = (a?, b?);
            meter.make(a.len() + b.len())?;
            Ok(Value::Markup([a, b].concat().into()))
        }
        (MathOp::Add, Value::List(a), Value::List(b)) => {
            meter.make((a.items.len() + b.items.len()) * size_of::<Value>())?;
            Value::list([&*a.items, &b.items].concat(), meter)
        }
        (MathOp::Add, Value::Tuple(a), Value::Tuple(b)) => {
            meter.make((a.items.len() + b.items.len()) * size_of::<Value>())?;
            Value::tuple([&*a.items, &b.items].concat(), meter)
        }
        (MathOp::Mul, value, count) | (MathOp::Mul, count, value) if count.as_int().is_some() && value.len().is_some() => {
            let count = size(count.as_int().unwrap_or(0));
            repeated(value, count, meter).unwrap_or_else(|| unsupported("*", left, right))
        }
        (MathOp::Mod, Value::Str(text), _) => Value::text(super::format::percent(text, right, meter)?, meter),
        (MathOp::Mod, Value::Markup(text), _) => {
            Ok(Value::Markup(super::format::percent(text, &escaped_inside(right, meter)?, meter)?.into()))
        }
        _ => unsupported(symbol(op), left, right),
    }
}

pub(super) fn symbol(op: MathOp) -> &'static str {
    match op {
        MathOp::Add => "+",
        MathOp::Sub => "-",
        MathOp::Mul => "*",
        MathOp::Div => "/",
        MathOp::FloorDiv => "//",
        MathOp::Mod => "%",
        MathOp::Pow => "**",
    }
}

fn unsupported(symbol: &str, left: &Value, right: &Value) -> Fallible<Value> {
    let hint = match (symbol, left, right) {
        ("+", Value::Str(_), _) => return fault(format!("can only concatenate str (not \"{}\") to str", right.type_name())),
        ("+", Value::List(_), _) => return fault(format!("can only concatenate list (not \"{}\") to list", right.type_name())),
        _ => "unsupported operand type(s) for",
    };
    fault(format!("{hint} {symbol}: '{}' and '{}'", left.type_name(), right.type_name()))
}

/// `value * count` for texts, lists and tuples.
fn repeated(value: &Value, count: usize, meter: &Meter) -> Option<Fallible<Value>> {
    let make = |bytes: usize| meter.make(bytes.saturating_mul(count));
    Some(match value {
        Value::Str(text) => make(text.len()).and_then(|()| Value::text(text.repeat(count), meter)),
        Value::Markup(text) => make(text.len()).map(|()| Value::Markup(text.repeat(count).into())),
        Value::List(items) | Value::Tuple(items) => make(items.items.len() * size_of::<Value>()).and_then(|()| {
            let times = if items.items.is_empty() { 0 } else { count };
            let all = std::iter::repeat_n(&items.items, times).flatten().cloned().collect();
            if matches!(value, Value::List(_)) { Value::list(all, meter) } else { Value::tuple(all, meter) }
        }),
        _ => return None,
    })
}

fn on_ints(op: MathOp, a: i128, b: i128) -> Fallible<Value> {
    let result = match op {
        MathOp::Add => a.checked_add(b),
        MathOp::Sub => a.checked_sub(b),
        MathOp::Mul => a.checked_mul(b),
        MathOp::Div if b == 0 => return fault("division by zero"),
        MathOp::Div => return Ok(Value::Float(a as f64 / b as f64)),
        MathOp::FloorDiv | MathOp::Mod if b == 0 => return fault("integer division or modulo by zero"),
        MathOp::FloorDiv => a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q }),
        MathOp::Mod => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        MathOp::Pow if b < 0 => return on_floats(op, a as f64, b as f64).map(Value::Float),
        MathOp::Pow => match a {
            0 | 1 => Some(if b == 0 { 1 } else { a }),
            -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        },
    };
    match result {
        Some(number) => Ok(Value::Int(number)),
        None => too_large(),
    }
}

fn on_floats(op: MathOp, a: f64, b: f64) -> Fallible<f64> {
    if b == 0.0 && matches!(op, MathOp::Div | MathOp::FloorDiv | MathOp::Mod) {
        return fault(if op == MathOp::Div { "float division by zero" } else { "float floor division by zero" });
    }
    let modulo = || {
        let r = a % b;
        if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
    };
    Ok(match op {
        MathOp::Add => a + b,
        MathOp::Sub => a - b,
        MathOp::Mul => a * b,
        MathOp::Div => a / b,
        MathOp::FloorDiv => ((a - modulo()) / b).round(),
        MathOp::Mod => modulo(),
        MathOp::Pow if a == 0.0 && b < 0.0 => return fault("0.0 cannot be raised to a negative power"),
        MathOp::Pow if a < 0.0 && b.fract() != 0.0 => return fault("a complex number is not supported"),
        MathOp::Pow => a.powf(b),
    })
}

/// A value with the texts in it escaped, as what is put into a marked text is.
fn escaped_inside(value: &Value, meter: &Meter) -> Fallible<Value> {
    match value {
        Value::Str(_) => Ok(Value::Str(escape(value, meter)?.into())),
        Value::Tuple(items) => Value::tuple(items.items.iter().map(|item| escaped_inside(item, meter)).collect::<Fallible<_>>()?, meter),
        Value::Dict(dict) => {
            let pairs = dict.pairs.iter().map(|(key, value)| Ok((key.clone(), escaped_inside(value, meter)?)));
            Value::dict(pairs.collect::<Fallible<Vec<_>>>()?, meter)
        }
        other => Ok(other.clone()),
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
