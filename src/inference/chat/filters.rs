//! Jinja2's filters, by its own definitions. Those that chat templates have no use for are refused by name.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::access::item;
use super::arguments::{Given, defined, number};
use super::ast::MathOp;
use super::checks::check;
use super::json::tojson;
use super::limits::{Fallible, Meter, fault};
use super::math::math;
use super::methods::{self, lines, replaced};
use super::names::{filter_exists, has_method};
use super::numbers::{escape, parse_float, parse_int, size, whole};
use super::rare_filters::{filesize, truncate, urlencode, xmlattr};
use super::value::{Value, View, is_space, write};

/// Filters that `map` may call inside each other.
const DEPTH: u32 = 16;

/// `value | name(…)`.
pub(super) fn apply(name: &str, value: &Value, given: Given, depth: u32, meter: &Meter) -> Fallible<Value> {
    meter.work(value.as_str().map_or(0, str::len))?;
    let text = |out: String| Value::text(out, meter);
    match name {
        "map" => mapped(value, given, depth, meter),
        "select" | "reject" | "selectattr" | "rejectattr" => selected(name, value, given, meter),
        "tojson" => tojson(value, given, meter),
        "format" => {
            if !given.by_place.is_empty() && !given.by_name.is_empty() {
                return fault("can't handle positional and keyword arguments at the same time");
            }
            let values = if given.by_name.is_empty() {
                Value::tuple(given.by_place, meter)?
            } else {
                Value::dict(given.by_name.into_iter().map(|(name, value)| (Value::Str(name), value)), meter)?
            };
            math(MathOp::Mod, &texted(value, meter)?, &values, meter)
        }
        "sort" | "unique" | "min" | "max" | "groupby" | "dictsort" => ordered(name, value, given, meter),
        "count" | "length" | "string" | "upper" | "lower" | "capitalize" | "title" | "list" | "items" | "first" | "last" | "reverse"
        | "safe" | "escape" | "e" | "forceescape" | "wordcount" | "abs" => {
            given.bind(name, [], 0)?;
            plain(name, value, meter)
        }
        "default" | "d" => {
            let [default, boolean] = given.bind(name, ["default_value", "boolean"], 0)?;
            let replace = value.is_undefined() || (boolean.is_some_and(|b| b.truthy()) && !value.truthy());
            Ok(if replace { default.unwrap_or(Value::Str("".into())) } else { value.clone() })
        }
        "trim" => {
            let [characters] = given.bind(name, ["chars"], 0)?;
            methods::call(
                &texted(value, meter)?,
                "strip",
                Given { by_place: vec![characters.unwrap_or(Value::None)], ..Given::default() },
                meter,
            )
        }
        "center" => {
            let [width] = given.bind(name, ["width"], 0)?;
            methods::call(
                &texted(value, meter)?,
                "center",
                Given { by_place: vec![width.unwrap_or(Value::Int(80))], ..Given::default() },
                meter,
            )
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"], 2)?;
            let [of, old, new] = [Some(value.clone()), old, new].map(|v| v.unwrap_or(Value::None).to_text(meter));
            let count = match count {
                None | Some(Value::None) => -1,
                Some(count) => number(Some(&count), name)?,
            };
            text(replaced(&of?, &old?, &new?, count, meter)?)
        }
        "join" => {
            let [separator, attribute] = given.bind(name, ["d", "attribute"], 0)?;
            let separator = separator.map_or_else(|| Ok("".into()), |s| s.to_text(meter))?;
            let mut out = String::new();
            for (i, item) in value.iterate(meter)?.iter().enumerate() {
                if i > 0 {
                    write(&mut out, &separator, meter)?;
                }
                getter(item, attribute.as_ref(), None, meter)?.print(&mut out, meter)?;
            }
            text(out)
        }
        "indent" => indent(value, given, meter),
        "int" => int(value, given, meter),
        "float" => {
            let [default] = given.bind(name, ["default"], 0)?;
            let number = match value.as_str() {
                Some(text) => parse_float(text),
                None => defined(value)?.as_float(),
            };
            Ok(number.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "round" => round(value, given, meter),
        "sum" => {
            let [attribute, start] = given.bind(name, ["attribute", "start"], 0)?;
            let mut total = start.unwrap_or(Value::Int(0));
            for item in value.iterate(meter)? {
                total = math(MathOp::Add, &total, &getter(&item, attribute.as_ref(), None, meter)?, meter)?;
            }
            Ok(total)
        }
        "attr" => {
            let [attribute] = given.bind(name, ["name"], 1)?;
            let Some(attribute) = attribute.filter(|a| a.as_str().is_some()) else { return fault("attr: the name must be a text") };
            // Items are no attributes.
            match value {
                Value::Dict(_) if has_method(value, attribute.as_str().unwrap_or_default()) != Ok(true) => {
                    Ok(Value::undefined(format!("'dict object' has no attribute '{}'", attribute.as_str().unwrap_or_default())))
                }
                _ => super::access::attribute(value, &attribute.to_text(meter)?, meter),
            }
        }
        "batch" | "slice" => cut(name, value, given, meter),
        "truncate" => truncate(value, given, meter),
        "urlencode" => urlencode(value, given, meter),
        "filesizeformat" => filesize(value, given, meter),
        "xmlattr" => xmlattr(value, given, meter),
        _ if filter_exists(name) => fault(format!("the filter '{name}' is not supported")),
        _ => fault(format!("there is no filter named '{name}'")),
    }
}

/// `value` as a text, marked if it is.
fn texted(value: &Value, meter: &Meter) -> Fallible<Value> {
    if value.as_str().is_some() { Ok(value.clone()) } else { Ok(Value::Str(value.to_text(meter)?)) }
}

/// Filters without arguments.
fn plain(name: &str, value: &Value, meter: &Meter) -> Fallible<Value> {
    match name {
        "count" | "length" => match value.len() {
            Some(len) => Ok(len.into()),
            None => fault(format!("object of type '{}' has no len()", value.type_name())),
        },
        "string" => texted(value, meter),
        "upper" | "lower" | "capitalize" => methods::call(&texted(value, meter)?, name, Given::default(), meter),
        "title" => {
            let of = value.to_text(meter)?;
            let starts = |c: char| is_space(c) || "-({[<".contains(c);
            let mut out = String::with_capacity(of.len());
            let mut inside = false;
            for c in of.chars() {
                if inside {
                    out.extend(c.to_lowercase())
                } else {
                    out.extend(c.to_uppercase())
                }
                inside = !starts(c);
            }
            Value::text(out, meter)
        }
        "list" => Value::list(value.iterate(meter)?, meter),
        "items" => match value {
            Value::Undefined(_) => Value::stream(Vec::new(), meter),
            Value::Dict(dict) => Value::stream(Value::View(View::Items, dict.clone()).iterate(meter)?, meter),
            _ => fault("Can only get item pairs from a mapping."),
        },
        "first" => Ok(match value {
            Value::Stream(stream) => stream.items.borrow_mut().pop_front(),
            other => other.iterate(meter)?.into_iter().next(),
        }
        .unwrap_or_else(|| Value::undefined("No first item, sequence was empty."))),
        "last" => match value {
            Value::Stream(_) => fault(format!("'{}' object is not reversible", value.type_name())),
            other => Ok(other.iterate(meter)?.pop().unwrap_or_else(|| Value::undefined("No last item, sequence was empty."))),
        },
        "reverse" => match value.as_str() {
            Some(text) => Value::text(text.chars().rev().collect::<String>(), meter),
            None => {
                let mut items = value.iterate(meter)?;
                items.reverse();
                Value::stream(items, meter)
            }
        },
        "safe" => Ok(Value::Markup(value.to_text(meter)?)),
        "escape" | "e" | "forceescape" => {
            let plain = Value::Str(value.to_text(meter)?);
            Ok(Value::Markup(escape(if name == "forceescape" { &plain } else { value }, meter)?.into()))
        }
        "abs" => match defined(value)? {
            Value::Float(x) => Ok(Value::Float(x.abs())),
            other => match other.as_int() {
                Some(x) => Ok(Value::Int(x.saturating_abs())),
                None => fault(format!("bad operand type for abs(): '{}'", other.type_name())),
            },
        },
        _ => {
            let of = value.to_text(meter)?;
            let word = |c: char| c == '_' || c.is_alphanumeric();
            Ok(of.split(|c| !word(c)).filter(|part| !part.is_empty()).count().into())
        }
    }
}

/// `item` at `attribute`, a text with dots or a number; `default` where that is undefined.
fn getter(item_: &Value, attribute: Option<&Value>, default: Option<&Value>, meter: &Meter) -> Fallible<Value> {
    let mut found = item_.clone();
    let mut step = |key: &Value| -> Fallible<()> {
        found = item(&found, key, meter)?;
        if let (true, Some(default)) = (found.is_undefined(), default) {
            found = default.clone();
        }
        Ok(())
    };
    match attribute {
        None | Some(Value::None) => {}
        Some(attribute) => match attribute.as_str() {
            Some(path) => {
                for part in path.split('.') {
                    step(&match part.parse::<i128>() {
                        Ok(number) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(number),
                        _ => Value::text(part, meter)?,
                    })?;
                }
            }
            None => step(attribute)?,
        },
    }
    Ok(found)
}

fn mapped(value: &Value, mut given: Given, depth: u32, meter: &Meter) -> Fallible<Value> {
    if depth > DEPTH {
        return fault("map: too many filters inside each other");
    }
    if !value.truthy() {
        return Value::stream(Vec::new(), meter);
    }
    let items = value.iterate(meter)?;
    let out: Vec<Value> = if given.by_place.is_empty() && given.by_name.iter().any(|(name, _)| &**name == "attribute") {
        let [attribute, default] = given.bind("map", ["attribute", "default"], 0)?;
        let default = default.filter(|d| !matches!(d, Value::None));
        items.iter().map(|item| getter(item, attribute.as_ref(), default.as_ref(), meter)).collect::<Fallible<_>>()?
    } else {
        if given.by_place.is_empty() {
            return fault("map requires a filter argument");
        }
        let name = given.by_place.remove(0).to_text(meter)?;
        let one = |item: &Value| {
            meter.make(given.by_place.len() * size_of::<Value>())?;
            apply(&name, item, given.clone(), depth + 1, meter)
        };
        items.iter().map(one).collect::<Fallible<_>>()?
    };
    Value::stream(out, meter)
}

fn selected(name: &str, value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let mut places: VecDeque<Value> = given.by_place.into();
    let attribute = if name.ends_with("attr") {
        let Some(attribute) = places.pop_front() else { return fault("Missing parameter for attribute name") };
        Some(attribute)
    } else {
        None
    };
    if !value.truthy() {
        return Value::stream(Vec::new(), meter);
    }
    let test = places.pop_front().map(|test| test.to_text(meter)).transpose()?;
    let given = Given { by_place: places.into(), by_name: given.by_name };
    let mut out = Vec::new();
    for item in value.iterate(meter)? {
        let looked_at = getter(&item, attribute.as_ref(), None, meter)?;
        let good = match &test {
            Some(test) => {
                meter.make(given.by_place.len() * size_of::<Value>())?;
                check(test, &looked_at, given.clone(), meter)?
            }
            None => looked_at.truthy(),
        };
        if good == name.starts_with("select") {
            out.push(item);
        }
    }
    Value::stream(out, meter)
}

/// Small letters for a text, unless case counts.
fn folded(value: Value, case_sensitive: bool, meter: &Meter) -> Fallible<Value> {
    match value.as_str() {
        Some(text) if !case_sensitive => Value::text(text.to_lowercase(), meter),
        _ => Ok(value),
    }
}

/// Sorts by keys; the first error ends it.
fn sorted<T>(mut items: Vec<(Value, T)>, reverse: bool, meter: &Meter) -> Fallible<Vec<(Value, T)>> {
    let mut failed = None;
    items.sort_by(|(a, _), (b, _)| {
        if failed.is_some() {
            return Ordering::Equal;
        }
        let order = a.order(b, "<", meter).unwrap_or_else(|fault| {
            failed = Some(fault);
            None
        });
        let order = order.unwrap_or(Ordering::Equal);
        if reverse { order.reverse() } else { order }
    });
    failed.map_or(Ok(items), Err)
}

fn ordered(name: &str, value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let truth = |value: &Option<Value>| value.as_ref().is_some_and(Value::truthy);
    if name == "dictsort" {
        let [case, by, reverse] = given.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
        let by = by.map_or_else(|| Ok("key".into()), |by| by.to_text(meter))?;
        let Value::Dict(dict) = defined(value)? else { return fault(format!("'{}' object has no attribute 'items'", value.type_name())) };
        if !matches!(&*by, "key" | "value") {
            return fault("You can only sort by either \"key\" or \"value\"");
        }
        let keyed = |(key, value): &(Value, Value)| {
            let by = if &*by == "key" { key } else { value };
            Ok((folded(by.clone(), truth(&case), meter)?, Value::tuple(vec![key.clone(), value.clone()], meter)?))
        };
        let pairs = dict.pairs.iter().map(keyed).collect::<Fallible<Vec<_>>>()?;
        let pairs = sorted(pairs, truth(&reverse), meter)?;
        return Value::list(pairs.into_iter().map(|(_, pair)| pair).collect(), meter);
    }
    let (reverse, case, attribute, default) = match name {
        "sort" => {
            let [reverse, case, attribute] = given.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
            (truth(&reverse), truth(&case), attribute, None)
        }
        "groupby" => {
            let [attribute, default, case] = given.bind(name, ["attribute", "default", "case_sensitive"], 1)?;
            (false, truth(&case), attribute, default)
        }
        _ => {
            let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
            (false, truth(&case), attribute, None)
        }
    };
    let key = |item: &Value| -> Fallible<Value> {
        if name != "sort" {
            return folded(getter(item, attribute.as_ref(), default.as_ref(), meter)?, case, meter);
        }
        // Sorting is by lists, so that equal keys without an order are no error.
        let Some(all) = attribute.as_ref().and_then(Value::as_str) else {
            return Value::list(vec![folded(getter(item, attribute.as_ref(), None, meter)?, case, meter)?], meter);
        };
        let part = |part: &str| folded(getter(item, Some(&Value::text(part, meter)?), None, meter)?, case, meter);
        Value::list(all.split(',').map(part).collect::<Fallible<_>>()?, meter)
    };
    let items = value.iterate(meter)?;
    meter.make(items.len().saturating_mul(3 * size_of::<Value>()))?;
    let keyed = items.into_iter().map(|item| Ok((key(&item)?, item))).collect::<Fallible<Vec<_>>>()?;
    match name {
        "sort" => Value::list(sorted(keyed, reverse, meter)?.into_iter().map(|(_, item)| item).collect(), meter),
        "unique" => {
            // A dict finds what was seen, by Python's equality of keys.
            let firsts = keyed.iter().enumerate().rev().map(|(at, (key, _))| (key.clone(), at.into()));
            let Value::Dict(firsts) = Value::dict(firsts, meter)? else { return fault("unique") };
            let mut out = Vec::new();
            for (at, (key, item)) in keyed.into_iter().enumerate() {
                if Value::find(&firsts, &key, meter)?.is_some_and(|first| first.as_int() == Some(at as i128)) {
                    out.push(item);
                }
            }
            Value::stream(out, meter)
        }
        "min" | "max" => {
            let mut best: Option<(Value, Value)> = None;
            for (key, item) in keyed {
                let symbol = if name == "min" { "<" } else { ">" };
                let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
                if best.is_none() || key.order(&best.as_ref().map_or(Value::None, |(key, _)| key.clone()), symbol, meter)? == Some(wanted) {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
        }
        _ => {
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            for (key, item) in sorted(keyed, false, meter)? {
                match groups.last_mut() {
                    Some((last, items)) if last.equals(&key, meter)? => items.push(item),
                    _ => groups.push((key, vec![item])),
                }
            }
            let group = |(_, items): (Value, Vec<Value>)| {
                let key = getter(&items[0], attribute.as_ref(), default.as_ref(), meter)?;
                Value::named_tuple(vec![key, Value::list(items, meter)?], &["grouper", "list"], meter)
            };
            Value::list(groups.into_iter().map(group).collect::<Fallible<_>>()?, meter)
        }
    }
}

/// `indent(width=4, first=False, blank=False)`.
fn indent(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [width, first, blank] = given.bind("indent", ["width", "first", "blank"], 0)?;
    let Some(of) = defined(value)?.as_str() else { return fault("indent: the value must be a text") };
    let margin = match width.as_ref().map(|w| (w, w.as_str())) {
        None => "    ".to_owned(),
        Some((_, Some(margin))) => margin.to_owned(),
        Some((width, None)) => {
            let width = size(number(Some(width), "indent")?);
            meter.make(width)?;
            " ".repeat(width)
        }
    };
    let blank = blank.is_some_and(|b| b.truthy());
    let with_end = format!("{of}\n");
    let count = lines(&with_end, false).count();
    meter.make(count.saturating_mul(margin.len() + 1).saturating_add(of.len()))?;
    let mut out = if first.is_some_and(|f| f.truthy()) { margin.clone() } else { String::new() };
    for (i, line) in lines(&with_end, false).enumerate() {
        if i > 0 {
            out.push('\n');
            out.push_str(if line.is_empty() && !blank { "" } else { &margin });
        }
        out.push_str(line);
    }
    Value::text(out, meter)
}

/// `int(default=0, base=10)`.
fn int(value: &Value, given: Given, _: &Meter) -> Fallible<Value> {
    let [default, base] = given.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    let base = base.map_or(Ok(10), |base| number(Some(&base), "int"))?;
    // Another base is an error that Jinja2 takes for a text that is no whole number.
    let base = u32::try_from(base).ok().filter(|b| *b == 0 || (2..=36).contains(b));
    let found = match value.as_str() {
        Some(text) => match base.map_or(Ok(None), |base| parse_int(text, base))? {
            Some(number) => Some(number),
            None => parse_float(text).map_or(Ok(None), whole)?,
        },
        None => match defined(value)? {
            Value::Float(x) => whole(*x)?,
            other => other.as_int(),
        },
    };
    Ok(found.map_or(default, Value::Int))
}

/// `round(precision=0, method='common')`.
fn round(value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [precision, method] = given.bind("round", ["precision", "method"], 0)?;
    let precision = precision.map_or(Ok(0), |p| number(Some(&p), "round"))?.clamp(-300, 300) as i32;
    let method = method.map_or_else(|| Ok("common".into()), |m| m.to_text(meter))?;
    let power = 10f64.powi(precision);
    let Some(x) = defined(value)?.as_float() else { return fault(format!("type {} doesn't define __round__ method", value.type_name())) };
    match &*method {
        "common" => match value.as_int() {
            Some(number) if precision >= 0 => Ok(Value::Int(number)),
            Some(number) => {
                let unit = 10i128.checked_pow(precision.unsigned_abs()).unwrap_or(i128::MAX);
                let (down, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
                let up = rest > unit - rest || (rest == unit - rest && down % 2 != 0);
                Ok(Value::Int((down + i128::from(up)).saturating_mul(unit)))
            }
            None if precision >= 0 => Ok(Value::Float(format!("{x:.*}", precision as usize).parse().unwrap_or(x))),
            None => Ok(Value::Float((x * power).round_ties_even() / power)),
        },
        "ceil" => Ok(Value::Float((x * power).ceil() / power)),
        "floor" => Ok(Value::Float((x * power).floor() / power)),
        _ => fault("method must be common, ceil or floor"),
    }
}

/// `batch(linecount, fill_with=None)` and `slice(slices, fill_with=None)`.
fn cut(name: &str, value: &Value, given: Given, meter: &Meter) -> Fallible<Value> {
    let [count, fill] = given.bind(name, [if name == "batch" { "linecount" } else { "slices" }, "fill_with"], 1)?;
    let count = number(count.as_ref(), name)?;
    if name == "slice" && count <= 0 {
        return if count == 0 { fault("integer division or modulo by zero") } else { Value::stream(Vec::new(), meter) };
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let fill = fill.filter(|f| !matches!(f, Value::None));
    let items = value.iterate(meter)?;
    let mut parts: Vec<Vec<Value>> = Vec::new();
    meter.make(items.len().saturating_mul(size_of::<Value>()))?;
    if name == "batch" {
        // As Jinja2 has it, no line ever has 0 items again after the first.
        if count == 0 && !items.is_empty() {
            parts.push(Vec::new());
        }
        meter.make(items.len().div_ceil(count.max(1)).saturating_mul(2 * size_of::<Value>()))?;
        parts.extend(items.chunks(if count == 0 { usize::MAX } else { count }).map(<[Value]>::to_vec));
        if let (Some(last), Some(fill), true) = (parts.last_mut(), &fill, count < usize::MAX) {
            meter.make(count.saturating_sub(last.len()).saturating_mul(size_of::<Value>()))?;
            last.resize(count.max(last.len()), fill.clone());
        }
    } else {
        meter.make(count.saturating_mul(size_of::<Vec<Value>>()))?;
        let (each, extra) = (items.len() / count, items.len() % count);
        let mut at = 0;
        for part in 0..count {
            let end = at + each + usize::from(part < extra);
            let mut taken = items[at..end].to_vec();
            at = end;
            taken.extend(fill.clone().filter(|_| part >= extra));
            parts.push(taken);
        }
    }
    Value::stream(parts.into_iter().map(|part| Value::list(part, meter)).collect::<Fallible<_>>()?, meter)
}
