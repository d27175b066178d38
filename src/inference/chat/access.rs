//! Attributes, items and slices of values, and `in`: as the sandbox of transformers gives them.

use std::sync::Arc;

use super::limits::{Fallible, Meter, fault};
use super::names::has_method;
use super::numbers::too_large;
use super::value::{Value, range_len};

/// How Jinja2 names an object in its messages.
fn described(value: &Value) -> String {
    match value {
        Value::None => "None".into(),
        other => format!("{} object", other.type_name()),
    }
}

/// `value.name`: an attribute, or else the item of that name; undefined if there is neither.
pub(super) fn attribute(value: &Value, name: &Arc<str>, meter: &Meter) -> Fallible<Value> {
    meter.step(4)?;
    if let Some(found) = own_attribute(value, name, meter)? {
        return Ok(found);
    }
    if let Value::Dict(dict) = value
        && let Some(found) = Value::find_str(dict, name)
    {
        return Ok(found);
    }
    Ok(Value::undefined(format!("'{}' has no attribute '{name}'", described(value))))
}

/// What Python's `getattr` gives.
fn own_attribute(value: &Value, name: &Arc<str>, meter: &Meter) -> Fallible<Option<Value>> {
    if let Value::Undefined(why) = value {
        return fault(&**why);
    }
    match has_method(value, name) {
        Ok(true) => return Ok(Some(Value::Method(std::rc::Rc::new((value.clone(), name.clone()))))),
        Ok(false) => {}
        Err(()) => {
            let why = format!("access to attribute '{name}' of '{}' object is unsafe.", value.type_name());
            return Ok(Some(Value::undefined(why)));
        }
    }
    Ok(match value {
        Value::Namespace(namespace) => {
            let attributes = namespace.attributes.borrow();
            meter.step(attributes.len() / 4)?;
            attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
        }
        Value::Tuple(items) => items.names.iter().position(|n| **n == **name).map(|at| items.items[at].clone()),
        Value::Cycler(cycler) if &**name == "current" => Some(cycler.0[cycler.1.get()].clone()),
        Value::Range([start, stop, step]) => match &**name {
            "start" => Some(Value::Int((*start).into())),
            "stop" => Some(Value::Int((*stop).into())),
            "step" => Some(Value::Int((*step).into())),
            _ => None,
        },
        Value::Loop(state) => {
            let (at, length) = (state.at.get(), state.items.len());
            let item = |place: Option<usize>, what: &str| {
                let found = place.and_then(|place| state.items.get(place)).cloned();
                found.unwrap_or_else(|| Value::undefined(format!("there is no {what} item")))
            };
            Some(match &**name {
                "index" => (at + 1).into(),
                "index0" => at.into(),
                "revindex" => (length - at).into(),
                "revindex0" => (length - at - 1).into(),
                "first" => (at == 0).into(),
                "last" => (at + 1 == length).into(),
                "length" => length.into(),
                "depth" => (state.level as usize + 1).into(),
                "depth0" => (state.level as usize).into(),
                "previtem" => item(at.checked_sub(1), "previous"),
                "nextitem" => item(Some(at + 1), "next"),
                _ => return Ok(None),
            })
        }
        _ => None,
    })
}

/// `value[key]`: an item, or else, for a text, the attribute of that name; undefined if there is neither.
pub(super) fn item(value: &Value, key: &Value, meter: &Meter) -> Fallible<Value> {
    meter.step(1)?;
    let found = match (value, key) {
        (Value::Undefined(why), _) => return fault(&**why),
        (Value::Dict(_), Value::List(_) | Value::Dict(_)) => None,
        (Value::Dict(dict), key) => Value::find(dict, key, meter)?,
        (Value::Str(text) | Value::Markup(text), key) => match key.as_int() {
            Some(at) => {
                meter.work(text.len())?;
                let at = if at < 0 { at + text.chars().count() as i128 } else { at };
                let c = usize::try_from(at).ok().and_then(|at| text.chars().nth(at));
                c.map(|c| Value::text(c.encode_utf8(&mut [0; 4]), meter)).transpose()?
            }
            None => None,
        },
        (Value::List(items) | Value::Tuple(items), key) => place(key, items.items.len()).map(|at| items.items[at].clone()),
        (Value::Range(range), key) => {
            place(key, range_len(*range)).map(|at| Value::Int(i128::from(range[0]) + i128::from(range[2]) * at as i128))
        }
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    match key {
        Value::Str(name) | Value::Markup(name) => {
            let own = own_attribute(value, name, meter)?;
            Ok(own.unwrap_or_else(|| Value::undefined(format!("'{}' has no attribute '{name}'", described(value)))))
        }
        key => Ok(Value::undefined(format!("{} has no element {}", described(value), repr(key, meter)?))),
    }
}

/// Where the item `key` of something of length `len` is.
fn place(key: &Value, len: usize) -> Option<usize> {
    let at = key.as_int()?;
    usize::try_from(if at < 0 { at + len as i128 } else { at }).ok().filter(|at| *at < len)
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, parts: [Option<Value>; 3], meter: &Meter) -> Fallible<Value> {
    let none = || fault(format!("'{}' object cannot be sliced like that", value.type_name()));
    if let Value::Undefined(why) = value {
        return fault(&**why);
    }
    let (Some(len), false) = (value.len(), matches!(value, Value::Dict(_) | Value::View(..) | Value::Loop(_))) else { return none() };
    let mut numbers = [None; 3];
    for (number, part) in numbers.iter_mut().zip(&parts) {
        *number = match part {
            None | Some(Value::None) => None,
            Some(part) => match part.as_int() {
                Some(part) => Some(part),
                None => return none(),
            },
        };
    }
    let [start, stop, step] = numbers;
    let (step, len) = (step.unwrap_or(1), len as i128);
    if step == 0 {
        return fault("slice step cannot be zero");
    }
    let clamp = |at: Option<i128>, default: i128| match at {
        None => default,
        Some(at) if step > 0 => (if at < 0 { at.saturating_add(len) } else { at }).clamp(0, len),
        Some(at) => (if at < 0 { at.saturating_add(len) } else { at }).clamp(-1, len - 1),
    };
    let (start, stop) = if step > 0 { (clamp(start, 0), clamp(stop, len)) } else { (clamp(start, len - 1), clamp(stop, -1)) };
    let step = step.clamp(-(1 << 62), 1 << 62);
    let span = if step > 0 { stop - start } else { start - stop };
    let count = if span <= 0 { 0 } else { ((span - 1) / step.abs() + 1) as usize };
    let places = (0..count).map(|i| (start + i as i128 * step) as usize);
    meter.step(count)?;
    match value {
        Value::Str(text) | Value::Markup(text) => {
            meter.make(text.len())?;
            let taken: String = if step == 1 {
                text.chars().skip(start as usize).take(count).collect()
            } else {
                meter.make(4 * text.len())?;
                let chars: Vec<char> = text.chars().collect();
                places.map(|at| chars[at]).collect()
            };
            Ok(if matches!(value, Value::Str(_)) { Value::Str(taken.into()) } else { Value::Markup(taken.into()) })
        }
        Value::List(items) | Value::Tuple(items) => {
            meter.make(count * size_of::<Value>())?;
            let taken = places.map(|at| items.items[at].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(taken, meter) } else { Value::tuple(taken, meter) }
        }
        Value::Range(range) => {
            let [first, _, every] = range.map(i128::from);
            let ends = [first + every * start, first + every * stop, every * step];
            let ends = ends.map(|end| i64::try_from(end).ok());
            match ends {
                [Some(start), Some(stop), Some(step)] => Ok(Value::Range([start, stop, step])),
                _ => too_large(),
            }
        }
        _ => none(),
    }
}

/// Python's `needle in haystack`.
pub(super) fn contains(haystack: &Value, needle: &Value, meter: &Meter) -> Fallible<bool> {
    match haystack {
        Value::Str(text) | Value::Markup(text) => match needle {
            Value::Str(part) | Value::Markup(part) => {
                meter.work(text.len() + part.len())?;
                Ok(text.contains(&**part))
            }
            other => fault(format!("'in <string>' requires string as left operand, not {}", other.type_name())),
        },
        Value::Dict(dict) | Value::View(super::value::View::Keys, dict) => Ok(Value::find(dict, needle, meter)?.is_some()),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            fault(format!("argument of type '{}' is not iterable", haystack.type_name()))
        }
        _ => {
            for item in haystack.iterate(meter)? {
                if item.same(needle) || item.equals(needle, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Python's `repr` of a value.
pub(super) fn repr(value: &Value, meter: &Meter) -> Fallible<String> {
    let mut out = String::new();
    value.repr(&mut out, meter, 0)?;
    Ok(out)
}
