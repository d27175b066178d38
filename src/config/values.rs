//! Values on their way from JSON into a config: what counts as a count, a number or an id, and where each came from.

use serde::Serialize;
use serde_json::Value;

use crate::model::Source;

/// Largest count that a config may state; products of two stay within u64.
const MAX_COUNT: u64 = 1 << 30;

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Its source.
    pub source: Source,
}

impl<T> Sourced<T> {
    /// A value with its source.
    pub fn new(value: T, source: Source) -> Self {
        Self { value, source }
    }
    /// A value of the preset.
    pub fn preset(value: T) -> Self {
        Self::new(value, Source::Preset)
    }
    /// A computed value; `how` says from what.
    pub fn derived(value: T, how: impl Into<String>) -> Self {
        Self::new(value, Source::Derived(how.into()))
    }
}

/// The lines of `Resolved::sources`, collected in order.
#[derive(Default)]
pub(super) struct Lines(pub Vec<(String, String, Source)>);

impl Lines {
    /// Records `field` with its value, printed as in JSON but without quotes, and hands the value on.
    pub fn put<T: Serialize>(&mut self, field: &str, sourced: Sourced<T>) -> T {
        let text = match serde_json::to_value(&sourced.value).unwrap_or_default() {
            Value::Null => "none".to_string(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        self.text(field, text, sourced.source);
        sourced.value
    }
    /// A line with a text of its own.
    pub fn text(&mut self, field: impl Into<String>, value: impl Into<String>, source: Source) {
        self.0.push((field.into(), value.into(), source));
    }
}

/// A type that a config value can have.
pub(super) trait Scalar: Sized {
    /// Reads `value`, or says what it should have been.
    fn read(value: &Value) -> Result<Self, String>;
}

impl Scalar for bool {
    fn read(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("should be true or false, found {}", brief(value)))
    }
}

impl Scalar for String {
    fn read(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_string).ok_or_else(|| format!("should be a text, found {}", brief(value)))
    }
}

/// A positive number that f32 can hold.
impl Scalar for f64 {
    fn read(value: &Value) -> Result<Self, String> {
        let number = value.as_f64().filter(|x| *x as f32 > 0.0 && (*x as f32).is_finite());
        number.ok_or_else(|| format!("should be a positive number within the range of f32, found {}", brief(value)))
    }
}

/// A count: at least 1, at most 2^30. `8.0` is read as 8.
impl Scalar for usize {
    fn read(value: &Value) -> Result<Self, String> {
        let count = whole(value).filter(|n| (1..=MAX_COUNT).contains(n));
        let count = count.and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| format!("should be a whole number from 1 to {MAX_COUNT}, found {}", brief(value)))
    }
}

/// An index or id: at least 0.
impl Scalar for u32 {
    fn read(value: &Value) -> Result<Self, String> {
        let index = whole(value).and_then(|n| u32::try_from(n).ok());
        index.ok_or_else(|| format!("should be a whole number from 0 to {}, found {}", u32::MAX, brief(value)))
    }
}

impl<T: Scalar> Scalar for Vec<T> {
    fn read(value: &Value) -> Result<Self, String> {
        let list = value.as_array().ok_or_else(|| format!("should be a list, found {}", brief(value)))?;
        let read = |(i, v)| T::read(v).map_err(|e| format!("entry {i} {e}"));
        list.iter().enumerate().map(read).collect()
    }
}

/// A whole, non-negative number, also when it is written as a float.
fn whole(value: &Value) -> Option<u64> {
    let from_float = |x: f64| (x.fract() == 0.0 && (0.0..=2f64.powi(53)).contains(&x)).then_some(x as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(from_float))
}

/// A value for messages: never longer than a few words.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

/// Equality of JSON values with 1 equal to 1.0.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(usize::read(&json!(8.0)), Ok(8));
        for bad in [json!(0), json!(-1), json!(1.5), json!(1e30), json!("8"), json!(true), json!([]), json!(u64::MAX)] {
            assert!(usize::read(&bad).is_err(), "{bad}");
        }
        for bad in [json!(0), json!(-1e-5), json!(1e300), json!(1e-60), json!("1"), json!({})] {
            assert!(f64::read(&bad).is_err(), "{bad}");
        }
        assert_eq!(u32::read(&json!(0)), Ok(0));
        assert!(u32::read(&json!(-1)).is_err());
        assert!(Vec::<u32>::read(&json!([1, "x"])).unwrap_err().contains("entry 1"));
    }
}
