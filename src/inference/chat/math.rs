//! Python's arithmetic on values: numbers, texts, lists and tuples.

use super::ast::MathOp;
use super::format::percent;
use super::limits::{Fallible, Meter, fault};
use super::numbers::{escape, size, too_large};
use super::value::Value;

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
        (MathOp::Mod, Value::Str(text), _) => Value::text(percent(text, right, meter)?, meter),
        (MathOp::Mod, Value::Markup(text), _) => Ok(Value::Markup(percent(text, &escaped_inside(right, meter)?, meter)?.into())),
        _ => unsupported(symbol(op), left, right),
    }
}

fn symbol(op: MathOp) -> &'static str {
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
