//! Faults of GGUF files: numbers of their metadata, names of tensors, bytes of packed blocks, all in place. Reads the header by
//! itself.

use crate::Result;
use crate::faults::draw::Draw;
use std::ops::Range;

/// Plants a fault in the bytes of a file, in a layer; false where this file cannot have it.
pub type GgufPlant = fn(&mut Gguf, usize, &mut Draw) -> bool;

/// Class, variant, whether it is in one layer, and how it is planted.
pub const GGUF_PLANTS: &[(&str, &str, bool, GgufPlant)] = &[
    ("norm_eps", "metadata", false, |f, _, d| f.number(".layer_norm_rms_epsilon", |x| x * d.factor(1.6, 20.0))),
    ("rope_base", "metadata", false, |f, _, d| f.number(".rope.freq_base", |x| x * d.factor(1.3, 8.0))),
    ("attn_softcap", "metadata", false, |f, _, d| f.number(".attn_logit_softcapping", |x| x * d.factor(1.3, 3.0))),
    ("final_softcap", "metadata", false, |f, _, d| f.number(".final_logit_softcapping", |x| x * d.factor(1.3, 3.0))),
    ("window_off_by_one", "metadata", false, |f, _, _| f.number(".attention.sliding_window", |x| if x < 2.0 { x } else { x + 1.0 })),
    ("swapped_tensors", "keys", true, |f, layer, _| f.rename(&format!("blk.{layer}.attn_k.weight"), &format!("blk.{layer}.attn_v.weight"))),
    ("swapped_layers", "down", true, |f, layer, _| layer > 0 && f.rename("blk.0.ffn_down.weight", &format!("blk.{layer}.ffn_down.weight"))),
    ("corrupt_weight", "block scale", true, |f, layer, d| {
        let name = format!("blk.{layer}.{}.weight", ["ffn_up", "ffn_down", "attn_output", "attn_q"][d.of(4)]);
        let Some((kind, data)) = f.data(&name) else { return false };
        let Some((block, at)) = block(kind) else { return false };
        let first = data.start + d.of(data.len() / block) * block + at;
        // An exponent bit of the scale: the block is some times as large.
        f.bytes[first + 1] ^= 0x04;
        true
    }),
    ("quant_unpack", "nibbles", true, |f, layer, d| {
        let name = format!("blk.{layer}.{}.weight", ["ffn_up", "ffn_gate"][d.of(2)]);
        let Some((12, data)) = f.data(&name) else { return false };
        // q4_k: after 16 bytes of scales, 128 bytes of two codes each.
        for at in data {
            if at % 144 >= 16 {
                f.bytes[at] = f.bytes[at].rotate_left(4);
            }
        }
        true
    }),
];

/// Bytes of a block and where its f16 scale is, of the types that are planted in: q8_0, q4_k, q6_k.
fn block(kind: u32) -> Option<(usize, usize)> {
    match kind {
        8 => Some((34, 0)),
        12 => Some((144, 0)),
        14 => Some((210, 208)),
        _ => None,
    }
}

/// A file and what its header says.
pub struct Gguf {
    pub bytes: Vec<u8>,
    /// Key, type, place of the value.
    keys: Vec<(String, u32, usize)>,
    /// Place of the name, its text, elements, type, offset of the data.
    tensors: Vec<(usize, String, usize, u32, usize)>,
    data: usize,
}

impl Gguf {
    pub fn read(bytes: Vec<u8>) -> Result<Self> {
        let mut at = 8;
        let (tensors, keys) = (long(&bytes, &mut at)?, long(&bytes, &mut at)?);
        let mut file = Self { keys: Vec::new(), tensors: Vec::new(), data: 0, bytes };
        for _ in 0..keys {
            let key = text(&file.bytes, &mut at)?.1;
            let kind = word(&file.bytes, &mut at)?;
            file.keys.push((key, kind, at));
            skip(&file.bytes, kind, &mut at)?;
        }
        for _ in 0..tensors {
            let (place, name) = text(&file.bytes, &mut at)?;
            let mut elements = 1;
            for _ in 0..word(&file.bytes, &mut at)? {
                elements *= long(&file.bytes, &mut at)? as usize;
            }
            let kind = word(&file.bytes, &mut at)?;
            let offset = long(&file.bytes, &mut at)? as usize;
            file.tensors.push((place, name, elements, kind, offset));
        }
        file.data = at.next_multiple_of(32);
        Ok(file)
    }
    /// Changes a number whose key ends so.
    fn number(&mut self, end: &str, change: impl FnOnce(f64) -> f64) -> bool {
        let Some((_, kind, at)) = self.keys.iter().find(|(key, ..)| key.ends_with(end)) else { return false };
        let place = &mut self.bytes[*at..*at + 4];
        let old: [u8; 4] = place.try_into().unwrap_or_default();
        let new = match kind {
            4 | 5 => (change(f64::from(u32::from_le_bytes(old))) as u32).to_le_bytes(),
            6 => (change(f64::from(f32::from_le_bytes(old))) as f32).to_le_bytes(),
            _ => return false,
        };
        place.copy_from_slice(&new);
        new != old
    }
    /// Exchanges the names of two tensors of one size.
    fn rename(&mut self, a: &str, b: &str) -> bool {
        let find =
            |name: &str| self.tensors.iter().find(|(_, of, ..)| of == name).map(|(at, name, elements, ..)| (*at, name.len(), *elements));
        let (Some((at_a, length_a, of_a)), Some((at_b, length_b, of_b))) = (find(a), find(b)) else { return false };
        if length_a != length_b || of_a != of_b {
            return false;
        }
        self.bytes[at_a..at_a + length_a].copy_from_slice(b.as_bytes());
        self.bytes[at_b..at_b + length_b].copy_from_slice(a.as_bytes());
        true
    }
    /// The type and the bytes of a tensor of packed blocks.
    fn data(&self, name: &str) -> Option<(u32, Range<usize>)> {
        let (_, _, elements, kind, offset) = self.tensors.iter().find(|(_, of, ..)| of == name)?;
        let per_block = if *kind == 8 { 32 } else { 256 };
        let (bytes, _) = block(*kind)?;
        let first = self.data + offset;
        Some((*kind, first..first + elements / per_block * bytes))
    }
}

fn word(bytes: &[u8], at: &mut usize) -> Result<u32> {
    *at += 4;
    Ok(u32::from_le_bytes(bytes.get(*at - 4..*at).ok_or("a short header")?.try_into()?))
}

fn long(bytes: &[u8], at: &mut usize) -> Result<u64> {
    *at += 8;
    Ok(u64::from_le_bytes(bytes.get(*at - 8..*at).ok_or("a short header")?.try_into()?))
}

/// A text and where it begins.
fn text(bytes: &[u8], at: &mut usize) -> Result<(usize, String)> {
    let length = long(bytes, at)? as usize;
    let first = *at;
    *at += length;
    Ok((first, String::from_utf8_lossy(bytes.get(first..*at).ok_or("a short header")?).into_owned()))
}

/// Goes past a value.
fn skip(bytes: &[u8], kind: u32, at: &mut usize) -> Result {
    match kind {
        0 | 1 | 7 => *at += 1,
        2 | 3 => *at += 2,
        4..=6 => *at += 4,
        10..=12 => *at += 8,
        8 => {
            text(bytes, at)?;
        }
        9 => {
            let (of, count) = (word(bytes, at)?, long(bytes, at)?);
            for _ in 0..count {
                skip(bytes, of, at)?;
            }
        }
        other => return Err(format!("metadata of type {other}").into()),
    }
    Ok(())
}
