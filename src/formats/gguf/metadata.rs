//! Typed metadata: numbers, flags, texts, arrays of them. It knows no key but by name.

use super::bytes::{Cursor, Stop};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;

/// Arrays within arrays; no file known has more than one inside another.
const NESTING: usize = 4;
/// Longest key, by the format.
const KEY: usize = 65_535;

/// A value, as the file types it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned, of 8 to 64 bits.
    Unsigned(u64),
    /// Signed, of 8 to 64 bits.
    Signed(i64),
    /// 32 bits.
    F32(f32),
    /// 64 bits.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Values of one type.
    Array(Array),
}

/// Values of one type, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Numbers or flags, as bytes of this scalar type.
    Scalars(Scalar, Vec<u8>),
    /// Texts.
    Texts(Vec<String>),
    /// Arrays.
    Arrays(Vec<Array>),
}

/// A type of numbers or flags, by the format's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the format")]
pub enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Scalar {
    /// The scalar types by the format's numbers; 8 and 9 are texts and arrays.
    fn of(id: u32) -> Option<Self> {
        use Scalar::*;
        Some(match id {
            0 => U8,
            1 => I8,
            2 => U16,
            3 => I16,
            4 => U32,
            5 => I32,
            6 => F32,
            7 => Bool,
            10 => U64,
            11 => I64,
            12 => F64,
            _ => return None,
        })
    }
    /// The format's number of the type.
    pub(super) fn id(self) -> u32 {
        use Scalar::*;
        match self {
            U8 => 0,
            I8 => 1,
            U16 => 2,
            I16 => 3,
            U32 => 4,
            I32 => 5,
            F32 => 6,
            Bool => 7,
            U64 => 10,
            I64 => 11,
            F64 => 12,
        }
    }
    /// Bytes of one.
    fn size(self) -> usize {
        use Scalar::*;
        match self {
            U8 | I8 | Bool => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 => 8,
        }
    }
    /// The value of its bytes, which are as many as `size` says.
    fn value(self, bytes: &[u8]) -> Value {
        use Scalar::*;
        let mut eight = [0; 8];
        for (to, from) in eight.iter_mut().zip(bytes) {
            *to = *from;
        }
        let bits = u64::from_le_bytes(eight);
        match self {
            U8 | U16 | U32 | U64 => Value::Unsigned(bits),
            I8 => Value::Signed(i64::from(bits as i8)),
            I16 => Value::Signed(i64::from(bits as i16)),
            I32 => Value::Signed(i64::from(bits as i32)),
            I64 => Value::Signed(bits as i64),
            F32 => Value::F32(f32::from_bits(bits as u32)),
            F64 => Value::F64(f64::from_bits(bits)),
            Bool => Value::Bool(bits != 0),
        }
    }
}

impl Array {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Array::Scalars(kind, bytes) => bytes.len() / kind.size(),
            Array::Texts(texts) => texts.len(),
            Array::Arrays(arrays) => arrays.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Each value by itself; none for texts and arrays.
    pub fn scalars(&self) -> impl Iterator<Item = Value> {
        let (kind, bytes) = match self {
            Array::Scalars(kind, bytes) => (*kind, bytes.as_slice()),
            _ => (Scalar::U8, [].as_slice()),
        };
        bytes.chunks_exact(kind.size()).map(move |bytes| kind.value(bytes))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Unsigned(number.into())
    }
}

impl From<f32> for Value {
    fn from(number: f32) -> Self {
        Value::F32(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Bool(flag)
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Value::Array(Array::Texts(texts))
    }
}

impl From<&[f32]> for Value {
    fn from(numbers: &[f32]) -> Self {
        Value::Array(Array::Scalars(Scalar::F32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()))
    }
}

impl From<&[i32]> for Value {
    fn from(numbers: &[i32]) -> Self {
        Value::Array(Array::Scalars(Scalar::I32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()))
    }
}

impl From<&[bool]> for Value {
    fn from(flags: &[bool]) -> Self {
        Value::Array(Array::Scalars(Scalar::Bool, flags.iter().map(|flag| u8::from(*flag)).collect()))
    }
}

impl Value {
    fn read(cursor: &mut Cursor) -> Result<Self, Stop> {
        let id = cursor.u32()?;
        match id {
            8 => Ok(Value::Text(cursor.text()?.to_owned())),
            9 => Ok(Value::Array(Array::read(cursor, NESTING)?)),
            _ => {
                let kind = Scalar::of(id).ok_or_else(|| unknown(id))?;
                let bytes = cursor.take(kind.size() as u64)?;
                match (kind, bytes) {
                    (Scalar::Bool, [byte]) if *byte > 1 => Err(Stop::Bad(format!("expected 0 or 1, found {byte}"))),
                    _ => Ok(kind.value(bytes)),
                }
            }
        }
    }
    /// A whole number from 0, of whatever type.
    pub fn unsigned(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
    /// A number. One of 32 bits is the shortest decimal number that stands for it, which is what a converter read: files
    /// have 1e-06 as 9.99999997e-07.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            Value::F32(x) => x.to_string().parse().ok(),
            Value::F64(x) => Some(*x),
            _ => None,
        }
    }
}

impl Array {
    fn read(cursor: &mut Cursor, nesting: usize) -> Result<Self, Stop> {
        let id = cursor.u32()?;
        let count = cursor.u64()?;
        match id {
            8 => {
                cursor.check_count("texts of an array", count, 8)?;
                let mut texts = Vec::new();
                for i in 0..count {
                    texts.push(cursor.text().map_err(|stop| stop.within(format!("text {i}")))?.to_owned());
                }
                Ok(Array::Texts(texts))
            }
            9 if nesting == 0 => Err(Stop::Bad(format!("arrays are nested deeper than {NESTING}"))),
            9 => {
                cursor.check_count("arrays of an array", count, 12)?;
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(Array::read(cursor, nesting - 1)?);
                }
                Ok(Array::Arrays(arrays))
            }
            _ => {
                let kind = Scalar::of(id).ok_or_else(|| unknown(id))?;
                cursor.check_count("values of an array", count, kind.size() as u64)?;
                Ok(Array::Scalars(kind, cursor.take(count * kind.size() as u64)?.to_vec()))
            }
        }
    }
}

fn unknown(id: u32) -> Stop {
    Stop::Bad(format!("type {id} of values is not known (0 to 12 are)"))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(n) => write!(f, "{n}"),
            Value::Signed(n) => write!(f, "{n}"),
            Value::F32(x) => write!(f, "{x:?}"),
            Value::F64(x) => write!(f, "{x:?}"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::Text(text) => write!(f, "{text:.60?}"),
            Value::Array(array) => write!(f, "an array of {}", array.len()),
        }
    }
}

/// The metadata of a file, by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn read(cursor: &mut Cursor, count: u64) -> Result<Self, Stop> {
        cursor.check_count("metadata", count, 8 + 4 + 1)?;
        let mut values = BTreeMap::new();
        for i in 0..count {
            let key = cursor.text().map_err(|stop| stop.within(format!("key {i} of the metadata")))?;
            if key.len() > KEY {
                return Err(Stop::Bad(format!("key {i} of the metadata has {} bytes, expected {KEY} at most", key.len())));
            }
            let value = Value::read(cursor).map_err(|stop| stop.within(format!("metadata `{key:.80}`")))?;
            if values.insert(key.to_owned(), value).is_some() {
                return Err(Stop::Bad(format!("metadata `{key:.80}` is there twice")));
            }
        }
        Ok(Self { values })
    }
    /// Gives `key` a value, in place of the one that it had.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.values.insert(key.into(), value.into());
    }
    /// Takes `key` away.
    pub fn remove(&mut self, key: &str) {
        self.values.remove(key);
    }
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.values.len()
    }
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }
    /// All keys with their values, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }
    /// The text of `key`, if there is one.
    ///
    /// # Errors
    /// `Kind::Format` for another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }
    /// The whole number of `key`, if there is one.
    ///
    /// # Errors
    /// `Kind::Format` for another type, or a negative number.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number from 0", Value::unsigned)
    }
    /// The flag of `key`, if there is one.
    ///
    /// # Errors
    /// `Kind::Format` for another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| if let Value::Bool(x) = value { Some(*x) } else { None })
    }
    /// The texts of `key`, if there are any.
    ///
    /// # Errors
    /// `Kind::Format` for another type.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Array(Array::Texts(texts)) => Some(texts.as_slice()),
            Value::Array(array) if array.is_empty() => Some(&[]),
            _ => None,
        })
    }
    /// The array of numbers of `key`, if there is one.
    ///
    /// # Errors
    /// `Kind::Format` for another type.
    pub fn numbers(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array of numbers", |value| match value {
            Value::Array(array @ Array::Scalars(..)) => Some(array),
            _ => None,
        })
    }
    fn typed<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| Error::format("GGUF", format!("metadata `{key}`: expected {expected}, found {value}")))
    }
    /// The metadata as a JSON object of its keys. Texts of arrays, and arrays of more than 4096 values, which are parts of
    /// vocabularies, are left out; numbers that JSON does not have are texts, as in a config.json that Python wrote.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        use serde_json::Value as Json;
        let scalar = |value: &Value| match value {
            Value::Unsigned(n) => Json::from(*n),
            Value::Signed(n) => Json::from(*n),
            Value::Bool(x) => Json::from(*x),
            Value::Text(text) => Json::from(text.as_str()),
            Value::F32(_) | Value::F64(_) => match value.number() {
                Some(x) if x.is_finite() => Json::from(x),
                _ => Json::from(value.to_string()),
            },
            Value::Array(_) => Json::Null,
        };
        let json = |value: &Value| match value {
            Value::Array(array @ Array::Scalars(..)) if array.len() <= 4096 => Some(array.scalars().map(|value| scalar(&value)).collect()),
            Value::Array(_) => None,
            value => Some(scalar(value)),
        };
        self.values.iter().filter_map(|(key, value)| Some((key.clone(), json(value)?))).collect()
    }
}
