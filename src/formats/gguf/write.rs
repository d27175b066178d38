//! Writes GGUF, version 3: a whole model, or one of the files of a split one. Tensors are produced while they are written, so
//! a file may be larger than memory.

use super::super::content::{Content, Counted};
use super::metadata::{Array, Metadata, Value};
use crate::quant::Format;
use std::collections::HashSet;
use std::io::{Error, Result, Write};

/// What offsets are multiples of where the metadata name nothing else.
const ALIGNMENT: u64 = 32;

/// A tensor to be written.
pub struct Output<'a> {
    /// Name, unique in the file.
    pub name: String,
    /// Its format, which must have a type number of ggml.
    pub format: Format,
    /// Sizes, outermost first, at most four; the last one is in whole blocks.
    pub shape: Vec<usize>,
    /// Writes the blocks, row-major: exactly as many as the shape says.
    pub data: Content<'a>,
}

impl Output<'_> {
    /// Bytes; an error where the shape and the format do not belong together.
    fn bytes(&self) -> Result<u64> {
        let row = self.format.row_bytes(self.shape.last().copied().unwrap_or(1));
        let rows = self.shape.iter().rev().skip(1).try_fold(1u64, |product, size| product.checked_mul(*size as u64));
        let bytes = row.zip(rows).and_then(|(row, rows)| rows.checked_mul(row as u64)).filter(|_| self.shape.len() <= 4);
        bytes.ok_or_else(|| Error::other(format!("tensor `{}`: {:?} cannot be written as {}", self.name, self.shape, self.format)))
    }
}

/// Which file of a split model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0.
    pub number: u16,
    /// How many files there are.
    pub count: u16,
    /// Tensors of all of them.
    pub tensors: i32,
}

/// Writes a whole file: `metadata`, then `tensors` in the given order, each at a multiple of 32 bytes. Whole numbers of the
/// metadata have 32 bits where those are enough, else 64; `general.alignment` is left out.
///
/// # Errors
/// What `out` reports; two tensors of one name; a tensor that writes more or less than its shape says, or that GGUF
/// cannot hold.
pub fn write(out: &mut dyn Write, metadata: &Metadata, tensors: &[Output<'_>]) -> Result<()> {
    write_part(out, metadata, tensors, None)
}

/// As [`write()`], one of several files where `part` says which; `metadata` are in the first of them alone.
///
/// # Errors
/// As [`write()`].
pub fn write_part(out: &mut dyn Write, metadata: &Metadata, tensors: &[Output<'_>], part: Option<Part>) -> Result<()> {
    let aligned = |end: u64| end.checked_next_multiple_of(ALIGNMENT).ok_or_else(|| Error::other("more bytes than can be counted"));
    let values = metadata.iter().filter(|(key, _)| *key != "general.alignment");
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    let others = if part.is_some() { 3 } else { 0 };
    header.extend((metadata.count() as u64 - u64::from(metadata.get("general.alignment").is_some()) + others).to_le_bytes());
    for (key, metadatum) in values {
        text(&mut header, key);
        value(&mut header, metadatum);
    }
    if let Some(Part { number, count, tensors }) = part {
        // Other readers ask for exactly these types.
        for (key, kind, bytes) in [
            ("split.no", 2u32, &number.to_le_bytes()[..]),
            ("split.count", 2, &count.to_le_bytes()),
            ("split.tensors.count", 5, &tensors.to_le_bytes()),
        ] {
            text(&mut header, key);
            header.extend(kind.to_le_bytes());
            header.extend(bytes);
        }
    }
    let (mut names, mut starts, mut end) = (HashSet::new(), Vec::with_capacity(tensors.len()), 0);
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(Error::other(format!("two tensors are called `{}`", tensor.name)));
        }
        let kind = tensor.format.info().ggml;
        let kind = kind.ok_or_else(|| Error::other(format!("tensor `{}`: GGUF has no type for {}", tensor.name, tensor.format)))?;
        let start = aligned(end)?;
        end = start.checked_add(tensor.bytes()?).ok_or_else(|| Error::other("more bytes than can be counted"))?;
        starts.push((start, end));
        text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        header.extend(tensor.shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
        header.extend(kind.to_le_bytes());
        header.extend(start.to_le_bytes());
    }
    header.resize(usize::try_from(aligned(header.len() as u64)?).map_err(Error::other)?, 0);
    out.write_all(&header)?;

    let mut counted = Counted::new(out);
    for (tensor, (start, end)) in tensors.iter().zip(starts) {
        pad(&mut counted, start)?;
        counted.put(&tensor.name, &tensor.data, end)?;
    }
    // Readers of other programs expect the last tensor to be padded too.
    let end = aligned(counted.written())?;
    pad(&mut counted, end)?;
    counted.flush()
}

/// Zeros up to byte `end`, which is less than an alignment away.
fn pad(out: &mut Counted<'_>, end: u64) -> Result<()> {
    let zeros = [0; ALIGNMENT as usize];
    let missing = end.saturating_sub(out.written()).min(ALIGNMENT) as usize;
    out.write_all(&zeros[..missing])
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A value with its type in front.
fn value(out: &mut Vec<u8>, value: &Value) {
    let mut typed = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => typed(4, &n.to_le_bytes()),
            Err(_) => typed(10, &n.to_le_bytes()),
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => typed(5, &n.to_le_bytes()),
            Err(_) => typed(11, &n.to_le_bytes()),
        },
        Value::F32(x) => typed(6, &x.to_le_bytes()),
        Value::F64(x) => typed(12, &x.to_le_bytes()),
        Value::Bool(x) => typed(7, &[u8::from(*x)]),
        Value::Text(value) => {
            typed(8, &[]);
            text(out, value);
        }
        Value::Array(values) => {
            typed(9, &[]);
            array(out, values);
        }
    }
}

/// Type and count of the elements, and the elements.
fn array(out: &mut Vec<u8>, values: &Array) {
    let kind = match values {
        Array::Scalars(kind, _) => kind.id(),
        Array::Texts(_) => 8,
        Array::Arrays(_) => 9,
    };
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    match values {
        Array::Scalars(_, bytes) => out.extend(bytes),
        Array::Texts(texts) => texts.iter().for_each(|value| text(out, value)),
        Array::Arrays(arrays) => arrays.iter().for_each(|values| array(out, values)),
    }
}
