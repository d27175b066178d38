//! Values of a template as Python has them: what they print as, whether they are equal, which comes first. Everything
//! but a namespace is immutable, as in the sandbox of transformers; what is built is counted by a [`Meter`].

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::floats::float_text;
use super::limits::{Fallible, Meter, VALUE_DEPTH, fault};

#[derive(Clone)]
pub(super) enum Value {
    /// Why it is undefined.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    /// A text that `safe` or `escape` marked: what is joined to it is escaped.
    Markup(Arc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    /// `keys()`, `values()` and `items()` of a dict, or an item of them.
    View(View, Rc<Dict>),
    /// Start, stop and step.
    Range([i64; 3]),
    /// What can be read once: the results of `map`, `select`, `items` and others.
    Stream(Rc<Stream>),
    Namespace(Rc<Namespace>),
    /// A macro and the scope that it was defined in.
    Macro(usize, usize),
    /// A global function.
    Function(&'static str),
    /// A method of a value.
    Method(Rc<(Value, Arc<str>)>),
    Loop(Rc<LoopState>),
    Cycler(Rc<(Vec<Value>, Cell<usize>)>),
    /// Its separator, and whether it was used.
    Joiner(Rc<(Value, Cell<bool>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// The items of a list or tuple.
pub(super) struct Items {
    pub items: Vec<Value>,
    depth: u32,
    /// Names of a tuple's items.
    pub names: &'static [&'static str],
}

/// A dict in the order in which keys were first put in.
pub(super) struct Dict {
    pub pairs: Vec<(Value, Value)>,
    places: HashMap<Key, usize>,
    depth: u32,
}

pub(super) struct Stream {
    pub items: RefCell<VecDeque<Value>>,
    depth: u32,
}

pub(super) struct Namespace {
    pub attributes: RefCell<Vec<(Arc<str>, Value)>>,
}

/// What `loop` knows.
pub(super) struct LoopState {
    pub items: Vec<Value>,
    pub at: Cell<usize>,
    pub level: u32,
    /// The loop and its scope, if it is `recursive`.
    pub recursive: Option<(usize, usize)>,
    pub last_seen: RefCell<Option<Value>>,
    pub depth: u32,
}

/// What a dict finds a value by: 1, 1.0 and true are one key.
#[derive(PartialEq, Eq, Hash, Clone)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Arc<str>),
    Tuple(Vec<Key>),
    Other(usize),
}

/// What a value takes in a list, and a pair in a dict.
const ITEM: usize = size_of::<Value>();
const PAIR: usize = 2 * ITEM + size_of::<Key>() + 16;

/// Python's white space: that of `str.strip()`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The depth of something that holds `values`.
pub(super) fn depth_over<'a>(values: impl IntoIterator<Item = &'a Value>) -> Fallible<u32> {
    let depth = 1 + values.into_iter().map(Value::depth).max().unwrap_or(0);
    if depth > VALUE_DEPTH { fault(format!("a value nests more than {VALUE_DEPTH} levels deep")) } else { Ok(depth) }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(value as i128)
    }
}

impl Value {
    /// A text that is about to be made: `text` must be no longer than what the meter was asked for before.
    pub fn text(text: impl AsRef<str>, meter: &Meter) -> Fallible<Self> {
        let text = text.as_ref();
        meter.make(text.len() + ITEM)?;
        Ok(Self::Str(text.into()))
    }

    pub fn undefined(why: impl AsRef<str>) -> Self {
        Self::Undefined(why.as_ref().into())
    }

    fn items(items: Vec<Value>, names: &'static [&'static str], meter: &Meter) -> Fallible<Rc<Items>> {
        meter.make(ITEM * (2 + items.len()))?;
        Ok(Rc::new(Items { depth: depth_over(&items)?, items, names }))
    }

    pub fn list(items: Vec<Value>, meter: &Meter) -> Fallible<Self> {
        Ok(Self::List(Self::items(items, &[], meter)?))
    }

    pub fn tuple(items: Vec<Value>, meter: &Meter) -> Fallible<Self> {
        Ok(Self::Tuple(Self::items(items, &[], meter)?))
    }

    /// A tuple whose items have names too.
    pub fn named_tuple(items: Vec<Value>, names: &'static [&'static str], meter: &Meter) -> Fallible<Self> {
        Ok(Self::Tuple(Self::items(items, names, meter)?))
    }

    pub fn stream(items: Vec<Value>, meter: &Meter) -> Fallible<Self> {
        meter.make(ITEM * (2 + items.len()))?;
        Ok(Self::Stream(Rc::new(Stream { depth: depth_over(&items)?, items: RefCell::new(items.into()) })))
    }

    /// A dict; of equal keys the first stays, with the last value.
    pub fn dict(pairs: impl IntoIterator<Item = (Value, Value)>, meter: &Meter) -> Fallible<Self> {
        let mut dict = Dict { pairs: Vec::new(), places: HashMap::new(), depth: 1 };
        for (key, value) in pairs {
            meter.make(PAIR)?;
            let place = key.key(meter)?;
            if let Some(at) = dict.places.get(&place) {
                dict.pairs[*at].1 = value;
            } else {
                dict.places.insert(place, dict.pairs.len());
                dict.pairs.push((key, value));
            }
        }
        dict.depth = depth_over(dict.pairs.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self::Dict(Rc::new(dict)))
    }

    /// A JSON value as Python's `json` reads it.
    pub fn from_json(json: &serde_json::Value, meter: &Meter) -> Fallible<Self> {
        use serde_json::Value as Json;
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i128(), number.as_f64()) {
                (Some(whole), _) => Self::Int(whole),
                (_, Some(real)) => Self::Float(real),
                _ => return fault(format!("the number {number} is not supported")),
            },
            Json::String(text) => Self::text(text, meter)?,
            Json::Array(items) => {
                let items = items.iter().map(|item| Self::from_json(item, meter)).collect::<Fallible<_>>()?;
                Self::list(items, meter)?
            }
            Json::Object(pairs) => {
                let pairs = pairs.iter().map(|(key, value)| Ok((Self::text(key, meter)?, Self::from_json(value, meter)?)));
                Self::dict(pairs.collect::<Fallible<Vec<_>>>()?, meter)?
            }
        })
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Stream(stream) => stream.depth,
            Self::Method(method) => 1 + method.0.depth(),
            Self::Loop(state) => state.depth,
            Self::Cycler(cycler) => 1 + cycler.0.iter().map(Self::depth).max().unwrap_or(0),
            Self::Joiner(joiner) => 1 + joiner.0.depth(),
            _ => 0,
        }
    }

    /// The text of a text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number, or a truth value as one.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// Any number as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            _ => self.as_int().map(|whole| whole as f64),
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Stream(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Macro(..) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    pub fn truthy(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            _ => self.len() != Some(0),
        }
    }

    /// Python's `len`; `None` where there is none.
    pub fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) | Self::Markup(text) => text.chars().count(),
            Self::List(items) | Self::Tuple(items) => items.items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.pairs.len(),
            Self::Range(range) => range_len(*range),
            Self::Loop(state) => state.items.len(),
            _ => return None,
        })
    }

    /// What iterating gives. A stream is empty after that.
    pub fn iterate(&self, meter: &Meter) -> Fallible<Vec<Value>> {
        let list = |len: usize| meter.make(len * ITEM);
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) | Self::Markup(text) => {
                meter.make(text.len() * (ITEM + 32))?;
                text.chars().map(|c| Self::Str((&*c.encode_utf8(&mut [0; 4])).into())).collect()
            }
            Self::List(items) | Self::Tuple(items) => {
                list(items.items.len())?;
                items.items.clone()
            }
            Self::Dict(dict) | Self::View(View::Keys, dict) => {
                list(dict.pairs.len())?;
                dict.pairs.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::View(View::Values, dict) => {
                list(dict.pairs.len())?;
                dict.pairs.iter().map(|(_, value)| value.clone()).collect()
            }
            Self::View(View::Items, dict) => {
                list(dict.pairs.len())?;
                dict.pairs.iter().map(|(key, value)| Self::tuple(vec![key.clone(), value.clone()], meter)).collect::<Fallible<_>>()?
            }
            Self::Range(range) => {
                list(range_len(*range))?;
                (0..range_len(*range)).map(|i| Self::Int(i128::from(range[0]) + i128::from(range[2]) * i as i128)).collect()
            }
            Self::Stream(stream) => {
                let items = stream.items.take();
                meter.step(items.len())?;
                items.into()
            }
            other => return fault(format!("'{}' object is not iterable", other.type_name())),
        })
    }

    fn key(&self, meter: &Meter) -> Fallible<Key> {
        meter.work(self.as_str().map_or(0, str::len))?;
        Ok(match self {
            Self::None => Key::None,
            Self::Float(x) if x.fract() == 0.0 && x.abs() < 1e38 => Key::Int(*x as i128),
            Self::Float(x) => Key::Float(x.to_bits()),
            Self::Str(text) | Self::Markup(text) => Key::Str(text.clone()),
            Self::Tuple(items) => {
                // A key shares nothing: a tuple that stands in it twice is there twice.
                meter.make(size_of::<Key>() * (1 + items.items.len()))?;
                // Collecting through errors would make room for four.
                let mut keys = Vec::with_capacity(items.items.len());
                items.items.iter().try_for_each(|item| item.key(meter).map(|key| keys.push(key)))?;
                Key::Tuple(keys)
            }
            Self::List(_) | Self::Dict(_) | Self::View(..) => return fault(format!("unhashable type: '{}'", self.type_name())),
            Self::Undefined(_) => Key::Other(0),
            Self::Namespace(namespace) => Key::Other(Rc::as_ptr(namespace) as usize),
            other => match other.as_int() {
                Some(number) => Key::Int(number),
                None => return fault(format!("a {} as a key is not supported", other.type_name())),
            },
        })
    }

    /// The value at `key` of a dict.
    pub fn find(dict: &Dict, key: &Value, meter: &Meter) -> Fallible<Option<Value>> {
        Ok(dict.places.get(&key.key(meter)?).map(|at| dict.pairs[*at].1.clone()))
    }

    /// The value at a text of a dict.
    pub fn find_str(dict: &Dict, key: &Arc<str>) -> Option<Value> {
        dict.places.get(&Key::Str(key.clone())).map(|at| dict.pairs[*at].1.clone())
    }

    /// Whether both are one object in Python: the same list, or the same constant.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Stream(a), Self::Stream(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            (Self::Joiner(a), Self::Joiner(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a, x), Self::Macro(b, y)) => (a, x) == (b, y),
            (Self::Function(a), Self::Function(b)) => a == b,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b && (-5..=256).contains(a),
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::None, Self::None) => true,
            _ => false,
        }
    }

    /// Python's `==`.
    pub fn equals(&self, other: &Self, meter: &Meter) -> Fallible<bool> {
        meter.step(1)?;
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a) | Self::Markup(a), Self::Str(b) | Self::Markup(b)) => {
                meter.work(a.len().min(b.len()))?;
                a == b
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                if Rc::ptr_eq(a, b) {
                    return Ok(true);
                }
                if a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (x, y) in a.items.iter().zip(&b.items) {
                    if !x.equals(y, meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Dict(a), Self::Dict(b)) => {
                if a.pairs.len() != b.pairs.len() {
                    return Ok(false);
                }
                for (key, value) in &a.pairs {
                    match Self::find(b, key, meter)? {
                        Some(theirs) if value.equals(&theirs, meter)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Range(a), Self::Range(b)) => {
                let n = range_len(*a);
                n == range_len(*b) && (n == 0 || (a[0] == b[0] && (n == 1 || a[2] == b[2])))
            }
            (Self::Float(_), _) | (_, Self::Float(_)) => {
                matches!((self.as_float(), other.as_float()), (Some(a), Some(b)) if a == b)
            }
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => self.same(other),
            },
        })
    }

    /// Python's order of two values; `symbol` is the operator that asks, for the error.
    pub fn order(&self, other: &Self, symbol: &str, meter: &Meter) -> Fallible<Option<Ordering>> {
        meter.step(1)?;
        match (self, other) {
            (Self::Str(a) | Self::Markup(a), Self::Str(b) | Self::Markup(b)) => {
                meter.work(a.len().min(b.len()))?;
                return Ok(Some(a.cmp(b)));
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (x, y) in a.items.iter().zip(&b.items) {
                    if !x.equals(y, meter)? {
                        return x.order(y, symbol, meter);
                    }
                }
                return Ok(Some(a.items.len().cmp(&b.items.len())));
            }
            (Self::Undefined(why), _) | (_, Self::Undefined(why)) => return fault(&**why),
            _ => {}
        }
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        match (self.as_float(), other.as_float()) {
            (Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
            _ => fault(format!("'{symbol}' not supported between instances of '{}' and '{}'", self.type_name(), other.type_name())),
        }
    }

    /// Python's `str`: what `{{ value }}` prints.
    pub fn print(&self, out: &mut String, meter: &Meter) -> Fallible<()> {
        match self {
            Self::Undefined(_) => Ok(()),
            Self::Str(text) | Self::Markup(text) => write(out, text, meter),
            _ => self.repr(out, meter, 0),
        }
    }

    /// What [`Self::print`] writes.
    pub fn to_text(&self, meter: &Meter) -> Fallible<Arc<str>> {
        if let Self::Str(text) | Self::Markup(text) = self {
            return Ok(text.clone());
        }
        let mut out = String::new();
        self.print(&mut out, meter)?;
        Ok(out.into())
    }

    /// Python's `repr`.
    pub fn repr(&self, out: &mut String, meter: &Meter, depth: u32) -> Fallible<()> {
        if depth > 2 * VALUE_DEPTH {
            return fault(format!("a value nests more than {VALUE_DEPTH} levels deep"));
        }
        match self {
            Self::Undefined(_) => write(out, "Undefined", meter),
            Self::None => write(out, "None", meter),
            Self::Bool(true) => write(out, "True", meter),
            Self::Bool(false) => write(out, "False", meter),
            Self::Int(number) => write(out, &number.to_string(), meter),
            Self::Float(number) => write(out, &float_text(*number), meter),
            Self::Str(text) => repr_text(text, out, meter),
            Self::Markup(text) => {
                write(out, "Markup(", meter)?;
                repr_text(text, out, meter)?;
                write(out, ")", meter)
            }
            Self::List(items) => repr_all(&items.items, ["[", "]"], out, meter, depth),
            Self::Tuple(items) if items.items.len() == 1 => repr_all(&items.items, ["(", ",)"], out, meter, depth),
            Self::Tuple(items) => repr_all(&items.items, ["(", ")"], out, meter, depth),
            Self::View(..) => {
                write(out, self.type_name(), meter)?;
                repr_all(&self.iterate(meter)?, ["([", "])"], out, meter, depth)
            }
            Self::Dict(dict) => repr_pairs(dict.pairs.iter().cloned(), out, meter, depth),
            Self::Namespace(namespace) => {
                write(out, "<Namespace ", meter)?;
                let attributes = namespace.attributes.borrow().clone();
                repr_pairs(attributes.into_iter().map(|(name, value)| (Self::Str(name), value)), out, meter, depth)?;
                write(out, ">", meter)
            }
            Self::Range([start, stop, 1]) => write(out, &format!("range({start}, {stop})"), meter),
            Self::Range([start, stop, step]) => write(out, &format!("range({start}, {stop}, {step})"), meter),
            Self::Loop(state) => write(out, &format!("<LoopContext {}/{}>", state.at.get() + 1, state.items.len()), meter),
            other => fault(format!("a {} cannot be printed", other.type_name())),
        }
    }
}

/// Appends `text` to `out`, counted.
pub(super) fn write(out: &mut String, text: &str, meter: &Meter) -> Fallible<()> {
    meter.make(text.len())?;
    out.push_str(text);
    Ok(())
}

fn repr_all(items: &[Value], [open, close]: [&str; 2], out: &mut String, meter: &Meter, depth: u32) -> Fallible<()> {
    write(out, open, meter)?;
    for (i, item) in items.iter().enumerate() {
        write(out, if i == 0 { "" } else { ", " }, meter)?;
        item.repr(out, meter, depth + 1)?;
    }
    write(out, close, meter)
}

fn repr_pairs(pairs: impl Iterator<Item = (Value, Value)>, out: &mut String, meter: &Meter, depth: u32) -> Fallible<()> {
    write(out, "{", meter)?;
    for (i, (key, value)) in pairs.enumerate() {
        write(out, if i == 0 { "" } else { ", " }, meter)?;
        key.repr(out, meter, depth + 1)?;
        write(out, ": ", meter)?;
        value.repr(out, meter, depth + 1)?;
    }
    write(out, "}", meter)
}

/// Python's `repr` of a text: in single quotes unless it holds one and no double quote.
fn repr_text(text: &str, out: &mut String, meter: &Meter) -> Fallible<()> {
    meter.make(text.len() + 2)?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let escape = match c {
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\\' => "\\\\",
            _ if c == quote => {
                write(out, "\\", meter)?;
                out.push(c);
                continue;
            }
            _ if is_printable(c) => {
                out.push(c);
                continue;
            }
            _ => {
                let code = u32::from(c);
                let code = match code {
                    0..0x100 => format!("\\x{code:02x}"),
                    0x100..0x1_0000 => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                };
                write(out, &code, meter)?;
                continue;
            }
        };
        write(out, escape, meter)?;
    }
    out.push(quote);
    Ok(())
}

/// Whether Python's `repr` writes a character as it is. (Unassigned characters, which it escapes, are not known here.)
fn is_printable(c: char) -> bool {
    let invisible = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}');
    !(c.is_control() || invisible || (c != ' ' && c.is_whitespace()))
}

/// How many numbers a range has.
pub(super) fn range_len(range: [i64; 3]) -> usize {
    let [start, stop, step] = range.map(i128::from);
    let span = if step > 0 { stop - start } else { start - stop };
    usize::try_from((span + step.abs() - 1) / step.abs().max(1)).unwrap_or(0)
}
