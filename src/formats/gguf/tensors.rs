//! The table of tensors: names, types, shapes and ranges of bytes, each checked against the file.

use super::bytes::{Cursor, Stop};
use super::types::{TypeInfo, type_info};
use crate::formats::TensorEntry;
use std::collections::HashSet;
use std::ops::Range;

/// Sizes of one tensor, at most.
const MAX_DIMS: u32 = 4;
/// Smallest entry: a name's length, count of sizes, type, offset.
const SMALLEST: u64 = 8 + 4 + 4 + 8;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: TypeInfo,
    /// Sizes, outermost first (the file has them the other way round); the last one is in whole blocks.
    pub shape: Vec<usize>,
    /// Which of a split model's files it is in.
    pub file: usize,
    /// Bytes in that file, counted from its beginning.
    pub range: Range<u64>,
}

impl Tensor {
    /// The tensor as an index of tensors has it.
    pub fn entry(&self) -> TensorEntry {
        let (name, dtype, shape, range) = (self.name.clone(), self.kind.stored(), self.shape.clone(), self.range.clone());
        TensorEntry { name, dtype, shape, file: self.file, range }
    }
}

/// Reads the table of `count` tensors, whose data begins at the next multiple of `alignment` after it.
pub(super) fn read(cursor: &mut Cursor, count: u64, alignment: u64) -> Result<Vec<Tensor>, Stop> {
    cursor.check_count("tensors", count, SMALLEST)?;
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for i in 0..count {
        let name = cursor.text().map_err(|stop| stop.within(format!("name of tensor {i}")))?;
        if !names.insert(name) {
            return Err(Stop::Bad(format!("tensor `{name:.80}` is there twice")));
        }
        let tensor = entry(cursor, name, alignment).map_err(|stop| stop.within(format!("tensor `{name:.80}`")))?;
        tensors.push(tensor);
    }
    let end = cursor.at();
    let Some(start) = end.checked_next_multiple_of(alignment) else {
        return Err(Stop::Bad(format!("no place after byte {end} is a multiple of {alignment}")));
    };
    place(&mut tensors, start, cursor.file_len())?;
    Ok(tensors)
}

/// One entry of the table; its range counts from the beginning of the data.
fn entry(cursor: &mut Cursor, name: &str, alignment: u64) -> Result<Tensor, Stop> {
    let dims = cursor.u32()?;
    if dims > MAX_DIMS {
        return Err(Stop::Bad(format!("{dims} sizes are more than {MAX_DIMS}")));
    }
    let mut sizes = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        sizes.push(cursor.u64()?);
    }
    let id = cursor.u32()?;
    let offset = cursor.u64()?;
    let Some(kind) = type_info(id) else {
        return Err(Stop::Bad(format!("type {id} of ggml is not known: a newer file, or a corrupt one")));
    };
    let columns = sizes.first().copied().unwrap_or(1);
    if !columns.is_multiple_of(kind.block) {
        return Err(Stop::Bad(format!("rows of {columns} elements are no whole blocks of {} ({})", kind.block, kind.name)));
    }
    let row = kind.row_bytes(columns);
    let bytes = row.and_then(|row| sizes.iter().skip(1).try_fold(row, |product, size| product.checked_mul(*size)));
    let elements = sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    let end = bytes.and_then(|bytes| offset.checked_add(bytes)).filter(|_| elements.is_some());
    let Some(end) = end else {
        return Err(Stop::Bad(format!("sizes {sizes:?} of {} are too large to be true", kind.name)));
    };
    if !offset.is_multiple_of(alignment) {
        return Err(Stop::Bad(format!("offset {offset} is no multiple of the alignment, {alignment}")));
    }
    let shape: Option<Vec<usize>> = sizes.iter().rev().map(|size| usize::try_from(*size).ok()).collect();
    let Some(shape) = shape else {
        return Err(Stop::Bad(format!("sizes {sizes:?} are too large for this machine")));
    };
    Ok(Tensor { name: name.to_owned(), kind, shape, file: 0, range: offset..end })
}

/// Moves ranges to count from the file's beginning; each must be inside the file, and none in another.
fn place(tensors: &mut [Tensor], start: u64, file_len: u64) -> Result<(), Stop> {
    for tensor in tensors.iter_mut() {
        let moved = |offset: u64| start.checked_add(offset);
        match (moved(tensor.range.start), moved(tensor.range.end)) {
            (Some(begin), Some(end)) if end <= file_len => tensor.range = begin..end,
            (_, end) => {
                let end = end.map_or("the end of numbers".to_owned(), |end| format!("byte {end}"));
                let name = &tensor.name;
                return Err(Stop::Bad(format!(
                    "truncated or corrupt: tensor `{name:.80}` ends at {end}, but the file has {file_len}; download it again"
                )));
            }
        }
    }
    let mut sorted: Vec<&Tensor> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    sorted.sort_by_key(|tensor| tensor.range.start);
    for pair in sorted.windows(2) {
        if let [a, b] = pair
            && b.range.start < a.range.end
        {
            let bytes = a.range.end - b.range.start;
            return Err(Stop::Bad(format!("tensors `{:.80}` and `{:.80}` overlap by {bytes} bytes", a.name, b.name)));
        }
    }
    Ok(())
}
