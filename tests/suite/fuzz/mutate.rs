//! Broken files from whole ones: changed bytes, cut and doubled parts, numbers at the edges of types; of JSON, other values
//! in other places too.

use serde_json::{Value, json};

/// Numbers on which arithmetic goes wrong.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    7,
    31,
    32,
    127,
    128,
    255,
    256,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// What is put into texts, besides a target's own words.
const WORDS: [&str; 20] = [
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "1e-999",
    "18446744073709551616",
    "NaN",
    "\"\"",
    "[]",
    "{}",
    "[[[[",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\0",
    "\r\n",
    "é",
    "\u{10ffff}",
    "../",
];

/// Makes the input of one number: the same one for the same number.
pub struct Mutator {
    state: u64,
    words: &'static [&'static str],
}

impl Mutator {
    pub fn new(seed: u64, number: u64, words: &'static [&'static str]) -> Self {
        Self { state: seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(number), words }
    }
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
    /// A broken file.
    pub fn input(mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        let json = if bytes.first() == Some(&b'{') { serde_json::from_slice::<Value>(&bytes).ok() } else { None };
        if let Some(mut json) = json.filter(|_| self.below(4) != 0) {
            for _ in 0..=self.below(3) {
                self.change_json(&mut json);
            }
            bytes = json.to_string().into_bytes();
            if self.below(4) != 0 {
                return bytes;
            }
        }
        for _ in 0..=self.below(4) {
            self.change_bytes(&mut bytes, seeds);
        }
        bytes
    }
    /// A range of `bytes`, mostly a short one.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let longest = self.one(&[1, 4, 16, 64, 1024, usize::MAX]).min(len);
        let start = self.below(len + 1);
        start..(start + self.below(longest + 1)).min(len)
    }
    /// A place, in the first part more often: headers are what is parsed.
    fn place(&mut self, len: usize) -> usize {
        let within = self.one(&[64, 512, 4096, usize::MAX]).min(len);
        self.below(within)
    }
    fn change_bytes(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.place(bytes.len());
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.next() as u8,
            2 | 3 => {
                let width = self.one(&[1, 2, 4, 8]);
                let number = self.one(&EDGES).wrapping_add(if self.below(4) == 0 { bytes.len() as u64 } else { 0 });
                let number = number.to_le_bytes();
                for (byte, new) in bytes.iter_mut().skip(at).zip(&number[..width]) {
                    *byte = *new;
                }
            }
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(self.range(bytes.len()))),
            6 => {
                let part = bytes[self.range(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            7 => {
                let other = &seeds[self.below(seeds.len())];
                let part = other[self.range(other.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let word = if self.words.is_empty() || self.below(3) == 0 { self.one(&WORDS) } else { self.one(self.words) };
                let end = (at + self.below(2) * word.len()).min(bytes.len());
                bytes.splice(at..end, word.bytes());
            }
        }
    }
    /// Changes one value somewhere within `value`.
    fn change_json(&mut self, value: &mut Value) {
        let inner = match value {
            Value::Array(items) if !items.is_empty() && self.below(8) != 0 => {
                let at = self.below(items.len());
                if self.below(12) == 0 {
                    let again = items[at].clone();
                    return items.push(again);
                }
                Some(&mut items[at])
            }
            Value::Object(map) if !map.is_empty() && self.below(12) != 0 => {
                let key = map.keys().nth(self.below(map.len())).cloned().unwrap_or_default();
                match self.below(16) {
                    0 => return drop(map.remove(&key)),
                    1 => {
                        let moved = map.remove(&key).unwrap_or_default();
                        let word = if self.words.is_empty() { "other" } else { self.one(self.words) };
                        map.insert(word.to_string(), moved);
                        return;
                    }
                    _ => map.get_mut(&key),
                }
            }
            _ => None,
        };
        match inner {
            Some(inner) => self.change_json(inner),
            None => *value = self.other(value),
        }
    }
    /// Another value in the place of `old`.
    fn other(&mut self, old: &Value) -> Value {
        let edge = self.one(&EDGES);
        match self.below(12) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(edge),
            3 => json!(-(edge as f64)),
            4 => json!(old.as_f64().unwrap_or(1.0) * self.one(&[-1.0, 0.0, 0.5, 2.0, 1e30, 1e308, 1e-308])),
            5 => json!(old.as_i64().unwrap_or(0).wrapping_add(self.one(&[-1, 1, 2]))),
            6 => Value::Array(vec![old.clone(), old.clone()]),
            7 => json!({ "a": old.clone() }),
            8 => {
                let mut text = old.as_str().unwrap_or_default().to_string();
                let at = (0..=self.below(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                let word = self.one(&WORDS);
                text.insert_str(at, word);
                Value::String(text)
            }
            9 if !self.words.is_empty() => Value::String(self.one(self.words).to_string()),
            10 => json!(self.one(&WORDS).repeat(self.one(&[1, 10, 1000]))),
            // Not `json!`, which copies what is within.
            _ => (0..self.one(&[3, 40, 300])).fold(old.clone(), |inner, _| Value::Array(vec![inner])),
        }
    }
}
