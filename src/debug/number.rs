//! How numbers are spelled, in text and in JSON: here and nowhere else.

use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};

/// Shown with the fewest digits that give back the same f32; `NaN`, `Inf`, `-Inf`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(pub f32);

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            x if x.is_nan() => f.write_str("NaN"),
            f32::INFINITY => f.write_str("Inf"),
            f32::NEG_INFINITY => f.write_str("-Inf"),
            x => write!(f, "{x:?}"),
        }
    }
}

/// Shown with six significant digits: sums, probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Significant(pub f64);

impl Display for Significant {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let x = self.0;
        let scale = 10f64.powi(5 - x.abs().log10().floor().clamp(-290.0, 290.0) as i32);
        // Where scaling leaves the range of numbers there is nothing to round.
        let rounded = (x * scale).round() / scale;
        Number(if x != 0.0 && rounded.is_finite() { rounded as f32 } else { x as f32 }).fmt(f)
    }
}

/// A `Number` as text.
pub fn number(x: f32) -> String {
    Number(x).to_string()
}

/// A `Significant` as text.
pub fn significant(x: f64) -> String {
    Significant(x).to_string()
}

/// `number` with at least four decimals where there is no exponent, so that columns line up: `12.2500`.
pub fn padded(x: f32) -> String {
    let text = number(x);
    match text.split_once('.') {
        Some((_, decimals)) if !text.contains('e') => format!("{text}{}", "0".repeat(4usize.saturating_sub(decimals.len()))),
        _ => text,
    }
}

/// An f32 in JSON.
pub(super) fn json_number<S: Serializer>(x: &f32, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    if x.is_finite() { serializer.serialize_f32(*x) } else { serializer.serialize_str(&number(*x)) }
}

/// An f32 as `json_number` writes it.
pub(super) fn from_json_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Spelled {
        Number(f32),
        Text(String),
    }
    match Spelled::deserialize(deserializer)? {
        Spelled::Number(x) => Ok(x),
        Spelled::Text(text) => [("NaN", f32::NAN), ("Inf", f32::INFINITY), ("-Inf", f32::NEG_INFINITY)]
            .into_iter()
            .find_map(|(name, x)| (name == text).then_some(x))
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no number"))),
    }
}

/// Several f32 in JSON.
pub(super) fn json_numbers<S: Serializer>(list: &[f32], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    struct One(f32);
    impl Serialize for One {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            json_number(&self.0, serializer)
        }
    }
    serializer.collect_seq(list.iter().map(|x| One(*x)))
}

/// Several f32 in JSON, or null.
pub(super) fn json_some_numbers<S: Serializer>(list: &Option<Vec<f32>>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match list {
        Some(list) => json_numbers(list, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_give_back_their_bits() {
        for x in [12.25f32, 0.1, 1e-30, -3.4e38, 1.0, -0.0, 16_777_217.0, 1.0e-45, 123_456.79] {
            for text in [number(x), padded(x)] {
                assert_eq!(text.parse::<f32>().unwrap().to_bits(), x.to_bits(), "{text}");
            }
        }
        assert_eq!([number(f32::NAN), number(f32::INFINITY), padded(f32::NEG_INFINITY)], ["NaN", "Inf", "-Inf"]);
        assert_eq!([padded(12.25), padded(-3.0), padded(0.123_456), padded(1e-9)], ["12.2500", "-3.0000", "0.123456", "1e-9"]);
        assert_eq!(
            [significant(1.0 / 3.0), significant(12345.678), significant(0.0), significant(f64::NAN)],
            ["0.333333", "12345.7", "0.0", "NaN"]
        );
        assert_eq!(significant(1e300), "Inf");
    }
}
