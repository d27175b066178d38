//! The table of a `Precompiled` normalizer, SentencePiece's: whether it is sound, and how much longer it makes a text.

use std::collections::VecDeque;

/// Bytes of a table; those of known models have 300 KB.
const TABLE: usize = 4 << 20;

/// How many bytes the table in `text`, base64, makes of a byte at most; `None` for a table that is damaged or too large.
pub(super) fn growth(text: &str) -> Option<f64> {
    from_base64(text).filter(|table| table.len() <= TABLE).and_then(|table| walk(&table))
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [None; 256];
    for (value, digit) in (0u32..).zip(DIGITS) {
        values[usize::from(*digit)] = Some(value);
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0;
        for byte in four {
            bits = bits << 6 | values[usize::from(*byte)]?;
        }
        bits <<= 6 * (4 - four.len() as u32);
        out.extend(bits.to_be_bytes()[1..four.len()].iter());
    }
    Some(out)
}

/// Walks every path through a table: its length, a double array of units of 32 bits, and texts, each ended by a zero byte.
/// `None` where a path leaves it; else the longest text for each byte of what it replaces, 1 at least. Format:
/// `Darts::DoubleArray` of SentencePiece.
fn walk(table: &[u8]) -> Option<f64> {
    let (length, rest) = table.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (units, texts) = (rest.get(..length)?, std::str::from_utf8(rest.get(length..)?).ok()?);
    let units: Vec<u32> = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let ends: Vec<usize> = texts.bytes().enumerate().filter(|(_, byte)| *byte == 0).map(|(at, _)| at).collect();
    let end = |start: usize| ends.get(ends.partition_point(|end| *end < start)).copied().unwrap_or(texts.len());
    let offset = |unit: u32| (unit as usize >> 10) << ((unit & 1 << 9) >> 6);
    let mut seen = vec![false; units.len()];
    // Nodes and bytes of the paths to them, the shortest paths first.
    let mut open = VecDeque::from([(offset(*units.first()?), 0u32)]);
    let mut growth = 1.0f64;
    while let Some((node, depth)) = open.pop_front() {
        if std::mem::replace(seen.get_mut(node)?, true) {
            continue;
        }
        for byte in 1..=255usize {
            let at = node ^ byte;
            let unit = units.get(at)?;
            if (*unit & (1 << 31 | 0xff)) as usize != byte {
                continue;
            }
            let next = at ^ offset(*unit);
            if unit >> 8 & 1 == 1 {
                let value = (units.get(next)? & ((1 << 31) - 1)) as usize;
                if !texts.is_char_boundary(value) {
                    return None;
                }
                growth = growth.max((end(value) - value) as f64 / f64::from(depth + 1));
            }
            open.push_back((next, depth + 1));
        }
    }
    Some(growth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_walked() {
        // One unit for the root, 256 for its children: `a` (97) becomes the text at 0.
        let unit = |offset: u32, leaf: u32, label: u32| offset << 10 | leaf << 8 | label;
        let table = |value: u32, text: &str| {
            let mut units = vec![0u32; 1024];
            units[0] = unit(256, 0, 0);
            units[256 ^ 97] = unit(512 ^ 256 ^ 97, 1, 97);
            units[512] = value;
            let mut bytes = 4096u32.to_le_bytes().to_vec();
            bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
            bytes.extend(text.as_bytes());
            bytes
        };
        assert_eq!((walk(&table(0, "é\0")), walk(&table(2, "é\0"))), (Some(2.0), Some(1.0)));
        assert_eq!(walk(&table(0, &"x".repeat(5000))), Some(5000.0), "a text without an end");
        assert_eq!(walk(&table(1, "é\0")), None, "inside a character");
        assert_eq!(walk(&table(9, "é\0")), None, "past the texts");
        assert!(walk(&table(0, "é\0")[..2000]).is_none() && walk(&[]).is_none() && walk(&[0; 4]).is_none());
        assert_eq!(from_base64("AAECAwQ=").unwrap(), [0, 1, 2, 3, 4]);
        assert!(from_base64("A*").is_none() && growth("AAAAAA==").is_none());
    }
}
