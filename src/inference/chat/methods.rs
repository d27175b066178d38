//! Methods of Python's texts, lists, tuples and dicts, as far as the sandbox of transformers lets templates call them:
//! none that changes a value.

use std::sync::Arc;

use super::access::repr;
use super::arguments::Given;
use super::format;
use super::limits::{Fallible, Meter, fault};
use super::numbers::{escape, size};
use super::value::{Value, View, is_space};

/// Calls the method `name` of `value`.
pub(super) fn call(value: &Value, name: &str, given: Given, meter: &Meter) -> Fallible<Value> {
    match value {
        Value::Str(text) => text_method(text, name, given, meter),
        Value::Markup(text) => marked(text, name, given, meter),
        Value::Dict(dict) => match name {
            "get" => {
                let [key, default] = given.bind("get", ["key", "default"], 1)?;
                let found = Value::find(dict, &key.unwrap_or(Value::None), meter)?;
                Ok(found.or(default).unwrap_or(Value::None))
            }
            "copy" => Ok(value.clone()),
            _ => {
                given.bind(name, [], 0)?;
                let view = match name {
                    "items" => View::Items,
                    "keys" => View::Keys,
                    _ => View::Values,
                };
                Ok(Value::View(view, dict.clone()))
            }
        },
        Value::Float(number) => Ok((number.fract() == 0.0).into()),
        Value::Int(number) if name == "bit_length" => Ok(Value::Int((128 - number.unsigned_abs().leading_zeros()).into())),
        Value::Int(_) => Ok(true.into()),
        Value::Cycler(cycler) => {
            let at = cycler.1.get();
            cycler.1.set(if name == "next" { (at + 1) % cycler.0.len() } else { 0 });
            Ok(if name == "next" { cycler.0[at].clone() } else { Value::None })
        }
        Value::Loop(state) => {
            if name == "cycle" {
                let Some(count) = given.by_place.len().checked_sub(1) else { return fault("no items for cycling given") };
                return Ok(given.by_place[state.at.get() % (count + 1)].clone());
            }
            let seen = Value::tuple(given.by_place, meter)?;
            let same = state.last_seen.borrow().as_ref().map(|last| last.equals(&seen, meter)).transpose()?;
            state.last_seen.replace(Some(seen));
            Ok((same != Some(true)).into())
        }
        Value::Function(_) => {
            let [keys, default] = given.bind("fromkeys", ["iterable", "value"], 1)?;
            let (keys, default) = (keys.unwrap_or(Value::None).iterate(meter)?, default.unwrap_or(Value::None));
            Value::dict(keys.into_iter().map(|key| (key, default.clone())), meter)
        }
        _ if name == "copy" => Ok(value.clone()),
        _ => {
            let [what, start, stop] = given.bind(name, ["value", "start", "stop"], 1)?;
            let (items, what) = (value.iterate(meter)?, what.unwrap_or(Value::None));
            let (start, stop) = span(items.len(), start.as_ref(), stop.as_ref())?;
            let mut count = 0;
            for (at, item) in items.iter().enumerate().take(stop).skip(start) {
                if item.same(&what) || item.equals(&what, meter)? {
                    count += 1;
                    if name == "index" {
                        return Ok(at.into());
                    }
                }
            }
            if name == "count" { Ok(count.into()) } else { fault(format!("{} is not in {}", repr(&what, meter)?, value.type_name())) }
        }
    }
}

/// Where `start:stop` of something of length `len` begins and ends.
fn span(len: usize, start: Option<&Value>, stop: Option<&Value>) -> Fallible<(usize, usize)> {
    let place = |given: Option<&Value>, default: usize| match given {
        None | Some(Value::None) => Ok(default),
        Some(value) => match value.as_int() {
            Some(at) if at < 0 => Ok(usize::try_from(at + len as i128).unwrap_or(0)),
            Some(at) => Ok(usize::try_from(at).unwrap_or(usize::MAX)),
            None => fault("slice indices must be integers or None or have an __index__ method"),
        },
    };
    Ok((place(start, 0)?, place(stop, len)?.min(len)))
}

fn needed<'a>(value: Option<&'a Value>, function: &str) -> Fallible<&'a str> {
    match value {
        Some(Value::Undefined(why)) => fault(&**why),
        Some(value) => match value.as_str() {
            Some(text) => Ok(text),
            None => fault(format!("{function}() argument must be str, not {}", value.type_name())),
        },
        None => fault(format!("{function}() needs an argument")),
    }
}

fn whole(value: Option<&Value>, function: &str) -> Fallible<i128> {
    match value.and_then(Value::as_int) {
        Some(number) => Ok(number),
        None => fault(format!("{function}(): '{}' object cannot be interpreted as an integer", value.map_or("missing", Value::type_name))),
    }
}

/// A method of a marked text: what it gives is marked too, and what is put into it is escaped.
fn marked(text: &Arc<str>, name: &str, mut given: Given, meter: &Meter) -> Fallible<Value> {
    let wanted: &[&str] = &["join", "format", "replace", "center", "ljust", "rjust", "partition", "rpartition"];
    if wanted.contains(&name) {
        let escaped = |value: &Value| match value {
            Value::Str(_) => Ok(Value::Str(escape(value, meter)?.into())),
            other => Ok(other.clone()),
        };
        for value in given.by_place.iter_mut().chain(given.by_name.iter_mut().map(|(_, value)| value)) {
            let new = match &*value {
                Value::List(items) if name == "join" => Value::list(items.items.iter().map(escaped).collect::<Fallible<_>>()?, meter)?,
                other => escaped(other)?,
            };
            *value = new;
        }
    }
    let mark = |value: Value| match value {
        Value::Str(text) => Value::Markup(text),
        other => other,
    };
    Ok(match text_method(text, name, given, meter)? {
        Value::List(items) => Value::list(items.items.iter().cloned().map(mark).collect(), meter)?,
        Value::Tuple(items) => Value::tuple(items.items.iter().cloned().map(mark).collect(), meter)?,
        other => mark(other),
    })
}

fn text_method(text: &Arc<str>, name: &str, given: Given, meter: &Meter) -> Fallible<Value> {
    meter.work(4 * text.len())?;
    let s: &str = text;
    if name == "format" {
        return Value::text(format::format(s, &given, meter)?, meter);
    }
    let [first, second, third] = match name {
        "split" | "rsplit" => {
            let [separator, limit] = given.bind(name, ["sep", "maxsplit"], 0)?;
            [separator, limit, None]
        }
        "splitlines" => {
            let [keep] = given.bind(name, ["keepends"], 0)?;
            [keep, None, None]
        }
        "expandtabs" => {
            let [size] = given.bind(name, ["tabsize"], 0)?;
            [size, None, None]
        }
        _ => {
            let (least, most) = match name {
                "center" | "ljust" | "rjust" => (1, 2),
                "count" | "find" | "index" | "rfind" | "rindex" | "startswith" | "endswith" => (1, 3),
                "join" | "partition" | "rpartition" | "removeprefix" | "removesuffix" | "zfill" | "format_map" => (1, 1),
                "strip" | "lstrip" | "rstrip" => (0, 1),
                "replace" => (2, 3),
                _ => (0, 0),
            };
            if given.by_place.len() > most || !given.by_name.is_empty() && name != "replace" {
                return fault(format!("{name}() takes at most {most} arguments by place ({} given)", given.by_place.len()));
            }
            given.bind(name, ["first", "second", "count"], least)?
        }
    };
    let text_of = |out: String| Value::text(out, meter);
    match name {
        "upper" => text_of(s.to_uppercase()),
        "lower" => text_of(s.to_lowercase()),
        "casefold" => text_of(s.to_lowercase().replace('ß', "ss")),
        "capitalize" => text_of(capitalized(s)),
        "title" => text_of(titled(s)),
        "swapcase" => {
            let swap = |c: char| if c.is_uppercase() { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() };
            text_of(s.chars().map(swap).collect())
        }
        "strip" | "lstrip" | "rstrip" => {
            let stripped = match &first {
                None | Some(Value::None) => (s.trim_start_matches(is_space), s.trim_end_matches(is_space), s.trim_matches(is_space)),
                Some(_) => {
                    let set = needed(first.as_ref(), name)?;
                    meter.step(s.len().saturating_mul(1 + set.len() / 16))?;
                    let inside = |c: char| set.contains(c);
                    (s.trim_start_matches(inside), s.trim_end_matches(inside), s.trim_matches(inside))
                }
            };
            text_of(
                match name {
                    "lstrip" => stripped.0,
                    "rstrip" => stripped.1,
                    _ => stripped.2,
                }
                .to_owned(),
            )
        }
        "removeprefix" => text_of(s.strip_prefix(needed(first.as_ref(), name)?).unwrap_or(s).to_owned()),
        "removesuffix" => text_of(s.strip_suffix(needed(first.as_ref(), name)?).unwrap_or(s).to_owned()),
        "startswith" | "endswith" => affix(s, name, [first, second, third], meter),
        "find" | "index" | "rfind" | "rindex" | "count" => search(s, name, [first, second, third]),
        "replace" => {
            let (old, new) = (needed(first.as_ref(), name)?, needed(second.as_ref(), name)?);
            let count = third.as_ref().map_or(Ok(-1), |n| whole(Some(n), name))?;
            text_of(replaced(s, old, new, count, meter)?)
        }
        "split" | "rsplit" => {
            let limit = second.as_ref().map_or(Ok(-1), |n| whole(Some(n), name))?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let (from_end, most) = (name == "rsplit", limit.saturating_add(1));
            match &first {
                None | Some(Value::None) => texts(at_spaces(s, limit, from_end), from_end, meter),
                Some(_) => match needed(first.as_ref(), name)? {
                    "" => fault("empty separator"),
                    separator if from_end => texts(s.rsplitn(most, separator), from_end, meter),
                    separator => texts(s.splitn(most, separator), from_end, meter),
                },
            }
        }
        "splitlines" => texts(lines(s, first.is_some_and(|keep| keep.truthy())), false, meter),
        "partition" | "rpartition" => {
            let separator = needed(first.as_ref(), name)?;
            if separator.is_empty() {
                return fault("empty separator");
            }
            let cut = if name == "partition" { s.split_once(separator) } else { s.rsplit_once(separator) };
            let parts = match cut {
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::tuple(parts.iter().map(|part| Value::text(part, meter)).collect::<Fallible<_>>()?, meter)
        }
        "join" => {
            let items = first.unwrap_or(Value::None).iterate(meter)?;
            let mut out = String::new();
            for (i, item) in items.iter().enumerate() {
                let Some(item_text) = item.as_str() else {
                    return fault(format!("sequence item {i}: expected str instance, {} found", item.type_name()));
                };
                meter.make(s.len() + item_text.len())?;
                out.extend([if i == 0 { "" } else { s }, item_text]);
            }
            text_of(out)
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let width = size(whole(first.as_ref(), name)?);
            let fill = second.as_ref().map_or(Ok(if name == "zfill" { "0" } else { " " }), |fill| needed(Some(fill), name))?;
            if fill.chars().count() != 1 {
                return fault("The fill character must be exactly one character long");
            }
            let missing = width.saturating_sub(s.chars().count());
            meter.make(missing.saturating_mul(4).saturating_add(s.len()))?;
            // As CPython rounds: the odd space goes left where the width is odd.
            let left = match name {
                "center" => missing / 2 + (missing & width & 1),
                "ljust" => 0,
                _ => missing,
            };
            let sign = usize::from(name == "zfill" && s.starts_with(['+', '-']));
            text_of([&s[..sign], &fill.repeat(left), &s[sign..], &fill.repeat(missing - left)].concat())
        }
        "expandtabs" => {
            let size = first.as_ref().map_or(Ok(8), |n| whole(Some(n), name))?;
            let size = self::size(size);
            let (mut out, mut column) = (String::new(), 0);
            for c in s.chars() {
                if c == '\t' {
                    let spaces = if size == 0 { 0 } else { size - column % size };
                    meter.make(spaces)?;
                    out.push_str(&" ".repeat(spaces));
                    column += spaces;
                } else {
                    out.push(c);
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                }
            }
            text_of(out)
        }
        "format_map" => {
            let Some(Value::Dict(dict)) = &first else { return fault("format_map() needs a dict") };
            let by_name = dict.pairs.iter().filter_map(|(key, value)| Some((key.as_str()?.into(), value.clone())));
            let given = Given { by_place: Vec::new(), by_name: by_name.collect() };
            text_of(format::format(s, &given, meter)?)
        }
        _ => Ok(is(s, name).into()),
    }
}

/// The `is…` methods.
fn is(s: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    let cased = |c: char| c.is_lowercase() || c.is_uppercase();
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => s.is_ascii(),
        "isdecimal" => all(|c| c.is_ascii_digit() || is_digit_block(c)),
        "isdigit" => {
            all(|c| c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric() && (is_digit_block(c) || "²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(c))))
        }
        "isnumeric" => all(char::is_numeric),
        "isidentifier" => {
            s.chars().next().is_some_and(|c| c == '_' || c.is_alphabetic()) && s.chars().all(|c| c == '_' || c.is_alphanumeric())
        }
        "islower" => s.chars().any(cased) && !s.chars().any(char::is_uppercase),
        "isupper" => s.chars().any(cased) && !s.chars().any(char::is_lowercase),
        "isspace" => all(is_space),
        "isprintable" => s.chars().all(|c| !c.is_control() && (c == ' ' || !c.is_whitespace())),
        _ => s.chars().any(cased) && titled(s) == s,
    }
}

/// Whether a numeric character is one of ten decimal digits in a row (Arabic, Devanagari and others).
fn is_digit_block(c: char) -> bool {
    const ZEROS: [u32; 10] = [0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xe50, 0xff10];
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&u32::from(c)))
}

/// First letter large, the rest small.
pub(super) fn capitalized(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase())
}

/// Every letter after a letter small, others large.
fn titled(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// Python's `splitlines`.
pub(super) fn lines(s: &str, keep: bool) -> impl Iterator<Item = &str> {
    const ENDS: [char; 10] = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = s;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(end) = rest.find(ENDS) else { return Some(std::mem::take(&mut rest)) };
        let length = if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(1, char::len_utf8) };
        let line = &rest[..if keep { end + length } else { end }];
        rest = &rest[end + length..];
        Some(line)
    })
}

/// The parts between runs of spaces, `limit` splits at most; from the end, the last part comes first.
fn at_spaces(s: &str, limit: usize, from_end: bool) -> impl Iterator<Item = &str> {
    // What is left after the last split keeps its spaces on the other side.
    let mut rest = if from_end { s.trim_end_matches(is_space) } else { s.trim_start_matches(is_space) };
    let mut splits = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let (Some(cut), true) = (cut, splits < limit) else { return Some(std::mem::take(&mut rest)) };
        splits += 1;
        Some(if from_end {
            let after = cut + rest[cut..].chars().next().map_or(1, char::len_utf8);
            let part = &rest[after..];
            rest = rest[..cut].trim_end_matches(is_space);
            part
        } else {
            let part = &rest[..cut];
            rest = rest[cut..].trim_start_matches(is_space);
            part
        })
    })
}

/// A list of texts, each counted before it is made, and its place in the list.
fn texts<'a>(parts: impl Iterator<Item = &'a str>, reversed: bool, meter: &Meter) -> Fallible<Value> {
    let item = |part: &str| {
        meter.make(size_of::<Value>())?;
        Value::text(part, meter)
    };
    let mut items = parts.map(item).collect::<Fallible<Vec<_>>>()?;
    if reversed {
        items.reverse();
    }
    Value::list(items, meter)
}

/// Python's `replace`: `count` replacements, or all if it is negative.
pub(super) fn replaced(s: &str, old: &str, new: &str, count: i128, meter: &Meter) -> Fallible<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = s.matches(old).take(count).count();
    meter.make(found.saturating_mul(new.len()).saturating_add(s.len()))?;
    Ok(s.replacen(old, new, count))
}

/// Byte offset of the character at `place`.
fn offset(s: &str, place: usize) -> usize {
    s.char_indices().nth(place).map_or(s.len(), |(at, _)| at)
}

fn affix(s: &str, name: &str, [what, start, stop]: [Option<Value>; 3], meter: &Meter) -> Fallible<Value> {
    let length = s.chars().count();
    let (start, stop) = span(length, start.as_ref(), stop.as_ref())?;
    let part = if start > length { None } else { s.get(offset(s, start)..offset(s, stop)) };
    let has = |text: &str| part.is_some_and(|part| if name == "startswith" { part.starts_with(text) } else { part.ends_with(text) });
    match &what {
        Some(Value::Tuple(items)) => {
            for item in &items.items {
                let text = needed(Some(item), name)?;
                meter.work(text.len())?;
                if has(text) {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        what => Ok(has(needed(what.as_ref(), name)?).into()),
    }
}

fn search(s: &str, name: &str, [what, start, stop]: [Option<Value>; 3]) -> Fallible<Value> {
    let what = needed(what.as_ref(), name)?;
    let length = s.chars().count();
    let (start, stop) = span(length, start.as_ref(), stop.as_ref())?;
    let part = if start > length { None } else { s.get(offset(s, start)..offset(s, stop)) };
    if name == "count" {
        return Ok(part.map_or(0, |part| part.matches(what).count()).into());
    }
    let at = part.and_then(|part| {
        let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) }?;
        Some(start + part[..at].chars().count())
    });
    match at {
        Some(at) => Ok(at.into()),
        None if name.ends_with("index") => fault("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}
