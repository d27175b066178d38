//! Python's two ways to put values into a text: `text % values` and `text.format(values)`.

use super::access::{attribute, item, repr};
use super::arguments::Given;
use super::floats::float_text;
use super::limits::{Fallible, Meter, fault};
use super::numbers::whole;
use super::value::{Value, write};

/// How one value is laid out.
#[derive(Default)]
struct Layout {
    fill: Option<char>,
    /// One of `<>^=`.
    align: Option<char>,
    /// `+`, a space, or nothing for a minus only.
    sign: Option<char>,
    alternate: bool,
    width: usize,
    /// `,` or `_` between thousands.
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Layout {
    /// Whether nothing was said.
    fn is_plain(&self) -> bool {
        self.fill.is_none() && self.align.is_none() && self.sign.is_none() && !self.alternate && self.width == 0 && self.precision.is_none()
    }
}

/// Digits before and after the point that are written at most.
const DIGITS: usize = 400;

/// `text % values`.
pub(super) fn percent(text: &str, values: &Value, meter: &Meter) -> Fallible<String> {
    let mut by_place = match values {
        Value::Tuple(items) => items.items.clone(),
        other => vec![other.clone()],
    }
    .into_iter();
    let mut named = false;
    let mut out = String::new();
    let mut rest = text;
    while let Some((plain, spec)) = rest.split_once('%') {
        write(&mut out, plain, meter)?;
        let mut spec = spec;
        let mut value = None;
        if let Some(inner) = spec.strip_prefix('(') {
            let (Some((name, after)), Value::Dict(dict)) = (inner.split_once(')'), values) else {
                return fault("format requires a mapping");
            };
            let name = Value::text(name, meter)?;
            value = Some(Value::find(dict, &name, meter)?.map_or_else(|| fault(format!("'{}'", name.as_str().unwrap_or_default())), Ok)?);
            (spec, named) = (after, true);
        }
        let mut layout = Layout::default();
        while let Some(flag) = spec.chars().next().filter(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => layout.align = Some('<'),
                '+' => layout.sign = Some('+'),
                ' ' => layout.sign = layout.sign.or(Some(' ')),
                '0' => layout.fill = Some('0'),
                _ => layout.alternate = true,
            }
            spec = &spec[1..];
        }
        let mut star = |spec: &mut &str| -> Fallible<Option<usize>> {
            if let Some(after) = spec.strip_prefix('*') {
                *spec = after;
                let given = by_place.next().and_then(|v| v.as_int()).and_then(|n| usize::try_from(n).ok());
                return given.map_or_else(|| fault("* wants int"), |n| Ok(Some(n)));
            }
            number(spec)
        };
        layout.width = star(&mut spec)?.unwrap_or(0);
        if let Some(after) = spec.strip_prefix('.') {
            spec = after;
            layout.precision = Some(star(&mut spec)?.unwrap_or(0));
        }
        spec = spec.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = spec.chars().next() else { return fault("incomplete format") };
        rest = &spec[kind.len_utf8()..];
        if kind == '%' && layout.is_plain() {
            write(&mut out, "%", meter)?;
            continue;
        }
        let Some(value) = value.or_else(|| by_place.next()) else { return fault("not enough arguments for format string") };
        write(&mut out, &percent_one(kind, layout, &value, meter)?, meter)?;
    }
    write(&mut out, rest, meter)?;
    let mapping = named || matches!(values, Value::Dict(_) | Value::List(_));
    if by_place.next().is_some() && !mapping {
        return fault("not all arguments converted during string formatting");
    }
    Ok(out)
}

fn percent_one(kind: char, mut layout: Layout, value: &Value, meter: &Meter) -> Fallible<String> {
    if layout.align.is_some() {
        layout.fill = None;
    }
    let needs = |what: &str| fault(format!("%{kind} format: {what} is required, not {}", value.type_name()));
    match kind {
        's' | 'r' | 'a' => {
            let text = if kind == 's' { value.to_text(meter)?.to_string() } else { repr(value, meter)? };
            let text: String = layout.precision.map_or(text.clone(), |n| text.chars().take(n).collect());
            layout.align = layout.align.or(Some('>'));
            layout.fill = None;
            padded("", &text, &layout, meter)
        }
        'c' => match (value.as_int(), value.as_str()) {
            (Some(code), _) => {
                let c = u32::try_from(code).ok().and_then(char::from_u32);
                let Some(c) = c else { return fault("%c arg not in range(0x110000)") };
                padded("", &c.to_string(), &Layout { align: layout.align.or(Some('>')), fill: None, ..layout }, meter)
            }
            (None, Some(text)) if text.chars().count() == 1 => {
                padded("", text, &Layout { align: layout.align.or(Some('>')), fill: None, ..layout }, meter)
            }
            _ => fault("%c requires int or char"),
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let number = match value {
                Value::Float(x) if matches!(kind, 'd' | 'i' | 'u') => whole(*x)?,
                other => other.as_int(),
            };
            let Some(number) = number else { return needs(if kind == 'd' { "a real number" } else { "an integer" }) };
            layout.kind = Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind });
            let least = layout.precision.take().unwrap_or(0);
            integer(number, &layout, least, meter)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(number) = value.as_float() else { return needs("a real number") };
            layout.kind = Some(kind);
            layout.precision = layout.precision.or(Some(6));
            float(number, &layout, meter)
        }
        '%' => Ok("%".into()),
        _ => fault(format!("unsupported format character '{kind}'")),
    }
}

/// `text.format(…)`.
pub(super) fn format(text: &str, given: &Given, meter: &Meter) -> Fallible<String> {
    let mut next = Next::default();
    fields(text, given, &mut next, 0, meter)
}

/// How fields without a name are numbered.
#[derive(Default)]
struct Next {
    automatic: Option<usize>,
    manual: bool,
}

fn fields(text: &str, given: &Given, next: &mut Next, depth: u32, meter: &Meter) -> Fallible<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        write(&mut out, &rest[..at], meter)?;
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            write(&mut out, brace, meter)?;
            rest = after;
            continue;
        }
        if brace == "}" {
            return fault("Single '}' encountered in format string");
        }
        let mut open = 1;
        let end = rest.char_indices().find(|(_, c)| {
            open += i32::from(*c == '{') - i32::from(*c == '}');
            open == 0
        });
        let Some((end, _)) = end else { return fault("expected '}' before end of string") };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').map_or((name, None), |(name, c)| (name, Some(c)));
        let mut value = field_value(name, given, next, meter)?;
        match conversion {
            None => {}
            Some("s") => value = Value::Str(value.to_text(meter)?),
            Some("r" | "a") => value = Value::text(repr(&value, meter)?, meter)?,
            Some(other) => return fault(format!("Unknown conversion specifier '{other}'")),
        }
        if depth > 1 {
            return fault("Max string recursion exceeded");
        }
        let spec = fields(spec, given, next, depth + 1, meter)?;
        write(&mut out, &with_spec(&value, &spec, meter)?, meter)?;
    }
    write(&mut out, rest, meter)?;
    Ok(out)
}

/// The value that `0.name[key]` of a field names.
fn field_value(name: &str, given: &Given, next: &mut Next, meter: &Meter) -> Fallible<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut rest) = name.split_at(end);
    let place = if first.is_empty() {
        next.automatic = Some(next.automatic.map_or(0, |at| at + 1));
        next.automatic
    } else {
        first.parse::<usize>().ok()
    };
    next.manual |= place.is_some() && !first.is_empty();
    if next.manual && next.automatic.is_some() {
        return fault("cannot switch between manual field specification and automatic field numbering");
    }
    let mut value = match place {
        Some(place) => match given.by_place.get(place) {
            Some(value) => value.clone(),
            None => return fault(format!("Replacement index {place} out of range for positional args tuple")),
        },
        None => match given.by_name.iter().find(|(name, _)| **name == *first) {
            Some((_, value)) => value.clone(),
            None => return fault(format!("'{first}'")),
        },
    };
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            value = attribute(&value, &after[..end].into(), meter)?;
            rest = &after[end..];
        } else {
            let Some((key, after)) = rest[1..].split_once(']') else { return fault("Missing ']' in format string") };
            let key = key.parse::<i128>().map_or_else(|_| Value::text(key, meter), |n| Ok(Value::Int(n)))?;
            value = item(&value, &key, meter)?;
            rest = after;
        }
    }
    Ok(value)
}

/// Python's `format(value, spec)`.
fn with_spec(value: &Value, spec: &str, meter: &Meter) -> Fallible<String> {
    if spec.is_empty() {
        return Ok(value.to_text(meter)?.to_string());
    }
    let mut layout = Layout::default();
    let mut rest = spec;
    let mut chars = spec.chars();
    let (first, second) = (chars.next(), chars.next());
    let is_align = |c: Option<char>| c.is_some_and(|c| "<>^=".contains(c));
    if is_align(second) {
        (layout.fill, layout.align) = (first, second);
        rest = &spec[first.map_or(0, char::len_utf8) + 1..];
    } else if is_align(first) {
        layout.align = first;
        rest = &spec[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        layout.sign = Some(sign).filter(|c| *c != '-');
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('#') {
        layout.alternate = true;
        rest = after;
    }
    if rest.starts_with('0') && layout.fill.is_none() {
        layout.fill = Some('0');
        layout.align = layout.align.or_else(|| value.as_str().is_none().then_some('='));
    }
    layout.width = number(&mut rest)?.unwrap_or(0);
    if let Some(grouping) = rest.chars().next().filter(|c| ",_".contains(*c)) {
        layout.grouping = Some(grouping);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        layout.precision = number(&mut rest)?;
    }
    layout.kind = rest.chars().next();
    if rest.chars().count() > 1 {
        return fault(format!("Invalid format specifier '{spec}' for object of type '{}'", value.type_name()));
    }
    let unknown = || fault(format!("Unknown format code '{}' for object of type '{}'", layout.kind.unwrap_or(' '), value.type_name()));
    match (value, layout.kind) {
        (Value::Str(text) | Value::Markup(text), None | Some('s')) => {
            let text: String = layout.precision.map_or_else(|| text.to_string(), |n| text.chars().take(n).collect());
            layout.align = layout.align.or(Some('<'));
            padded("", &text, &layout, meter)
        }
        (Value::Int(_) | Value::Bool(_), None | Some('d' | 'x' | 'X' | 'o' | 'b' | 'n')) => {
            integer(value.as_int().unwrap_or(0), &layout, 0, meter)
        }
        (Value::Int(code), Some('c')) => {
            let Some(c) = u32::try_from(*code).ok().and_then(char::from_u32) else { return fault("%c arg not in range(0x110000)") };
            padded("", &c.to_string(), &layout, meter)
        }
        (Value::Int(_) | Value::Bool(_) | Value::Float(_), _) => {
            if layout.kind.is_some_and(|kind| !"eEfFgGn%".contains(kind)) {
                return unknown();
            }
            float(value.as_float().unwrap_or(0.0), &layout, meter)
        }
        (Value::Str(_) | Value::Markup(_), _) => unknown(),
        _ => fault(format!("unsupported format string passed to {}.__format__", value.type_name())),
    }
}

/// A number at the start of `text`, which is passed.
fn number(text: &mut &str) -> Fallible<Option<usize>> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    if digits.is_empty() {
        return Ok(None);
    }
    digits.parse().map_or_else(|_| fault("Too many decimal digits in format string"), |n| Ok(Some(n)))
}

/// `sign` and `text` at the layout's width.
fn padded(sign: &str, text: &str, layout: &Layout, meter: &Meter) -> Fallible<String> {
    let missing = layout.width.saturating_sub(sign.chars().count() + text.chars().count());
    let fill = layout.fill.unwrap_or(' ');
    meter.make(missing.saturating_mul(fill.len_utf8()).saturating_add(text.len()))?;
    let filling = |count: usize| fill.to_string().repeat(count);
    let align = layout.align.unwrap_or(if layout.fill == Some('0') { '=' } else { '>' });
    Ok(match align {
        '<' => format!("{sign}{text}{}", filling(missing)),
        '^' => format!("{}{sign}{text}{}", filling(missing / 2), filling(missing - missing / 2)),
        '=' => format!("{sign}{}{text}", filling(missing)),
        _ => format!("{}{sign}{text}", filling(missing)),
    })
}

fn sign(negative: bool, layout: &Layout) -> String {
    if negative { "-".into() } else { layout.sign.map(String::from).unwrap_or_default() }
}

/// Digits before the point with separators between groups.
fn grouped(digits: &str, layout: &Layout) -> String {
    let Some(separator) = layout.grouping else { return digits.to_owned() };
    let size = if matches!(layout.kind, Some('x' | 'X' | 'o' | 'b')) { 4 } else { 3 };
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

/// A whole number of at least `least` digits.
fn integer(number: i128, layout: &Layout, least: usize, meter: &Meter) -> Fallible<String> {
    let magnitude = number.unsigned_abs();
    let (prefix, digits) = match layout.kind {
        Some('x') => ("0x", format!("{magnitude:x}")),
        Some('X') => ("0X", format!("{magnitude:X}")),
        Some('o') => ("0o", format!("{magnitude:o}")),
        Some('b') => ("0b", format!("{magnitude:b}")),
        _ => ("", magnitude.to_string()),
    };
    meter.make(least)?;
    let digits = grouped(&("0".repeat(least.saturating_sub(digits.len())) + &digits), layout);
    let prefix = if layout.alternate { prefix } else { "" };
    padded(&format!("{}{prefix}", sign(number < 0, layout)), &digits, layout, meter)
}

fn float(number: f64, layout: &Layout, meter: &Meter) -> Fallible<String> {
    let precision = layout.precision.unwrap_or(6);
    if precision > DIGITS {
        return fault(format!("more than {DIGITS} digits of a float are not supported"));
    }
    let kind = layout.kind.unwrap_or(' ');
    let magnitude = number.abs();
    let text = if !number.is_finite() {
        float_text(magnitude)
    } else {
        match kind {
            'f' | 'F' => format!("{magnitude:.precision$}"),
            '%' => format!("{:.precision$}%", magnitude * 100.0),
            'e' | 'E' => exponent(&format!("{magnitude:.precision$e}")),
            'g' | 'G' | 'n' => general(magnitude, precision.max(1), layout.alternate),
            _ if layout.precision.is_some() => {
                let text = general(magnitude, precision.max(1), false);
                if text.contains(['.', 'e']) { text } else { format!("{text}.0") }
            }
            _ => float_text(magnitude),
        }
    };
    let text = if kind.is_ascii_uppercase() { text.to_uppercase() } else { text };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let text = format!("{}{}", grouped(&text[..end], layout), &text[end..]);
    padded(&sign(number.is_sign_negative() && !number.is_nan(), layout), &text, layout, meter)
}

/// Rust's exponent as C writes it: a sign and two digits.
fn exponent(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
}

/// C's `%g`.
fn general(number: f64, precision: usize, keep_zeros: bool) -> String {
    let scientific = format!("{number:.*e}", precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let strip = |digits: &str| match digits.contains('.') && !keep_zeros {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        let (digits, _) = scientific.split_once('e').unwrap_or((&scientific, ""));
        return exponent(&format!("{}e{power}", strip(digits)));
    }
    let decimals = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    strip(&format!("{number:.decimals$}"))
}
