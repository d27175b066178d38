//! Matrices that packed checkpoints keep in several tensors: which tensors these are and whether they fit, by their headers
//! alone, and then rows in a `quant::Format` of their bytes. One file for each layout says where codes, scales and zero points
//! lie; how they become blocks is here.

mod awq;
mod bits;
mod bnb;
mod bytes;
mod compressed;
mod find;
mod gptq;
mod mlx;
mod mxfp4;

pub(super) use find::{Finder, Found};

use super::places::Order;
use crate::error::{Error, Result};
use crate::exec::StoredRows;
use crate::formats::{Stored, TensorEntry};
use crate::quant::{Format, four_bit, fp8, grouped};
use crate::tensor::{DType, element};
use ::bytes::Bytes;
use std::ops::Range;

/// A matrix, or a band of its rows, that several tensors make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Positions in the index of tensors, in the order of the layout.
    pub parts: Vec<usize>,
    /// The format that its rows are given.
    pub format: Format,
    layout: Layout,
    shape: Shape,
    /// The first row of the band.
    first: usize,
    /// Which others.
    order: Order,
    /// It is that of one of so many experts, of each of whom the tensors have an equal part.
    expert: Option<(usize, usize)>,
}

/// Rows and columns of a whole matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    rows: usize,
    columns: usize,
}

/// Where the parts of a matrix lie.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Gptq(gptq::Gptq),
    Awq(awq::Awq),
    Compressed(compressed::Compressed),
    Bytes(bytes::Scaled),
    FourBit(bnb::FourBit),
    Mlx(mlx::Mlx),
    Mxfp4,
}

/// What codes stand for, g being the group of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codes {
    /// scale[g] · (code − offset[g]), with whole offsets.
    Zeros,
    /// scale[g] · code + offset[g].
    Offsets,
    /// scale[g] · code, with codes of eight bits and a sign.
    Signed,
    /// scale[g] · a number of 8-bit floating point.
    E4m3,
    /// scale[g] · a level.
    Nf4,
    /// scale[g] · a level.
    Fp4,
}

/// A row, taken apart.
struct Row {
    /// One for each column.
    codes: Vec<u8>,
    /// One for each group.
    scales: Vec<f32>,
    /// One for each group; 0 where codes have none.
    offsets: Vec<f32>,
}

/// Which group a column belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Groups {
    /// So many columns each, in order.
    Even(usize),
    /// Each column's own.
    Listed(Vec<u32>),
}

impl Groups {
    fn of(&self, column: usize) -> usize {
        match self {
            Groups::Even(size) => column / size.max(&1),
            Groups::Listed(all) => all.get(column).map_or(0, |group| *group as usize),
        }
    }
}

/// The tensors of a matrix in memory, checked.
pub struct Unpacked<'a> {
    matrix: &'a Matrix,
    parts: Vec<Part>,
    groups: Groups,
    codes: Codes,
    /// Scales that had to be computed from several tensors, for all of the matrix.
    scales: Vec<f32>,
}

/// A tensor's bytes and the type of its numbers.
struct Part {
    bytes: Bytes,
    dtype: Numbers,
}

/// Types of the numbers of scales and their like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    Plain(DType),
    /// Powers of two, by their exponent: 2^(e − 127).
    E8m0,
    /// Not read as numbers.
    Raw,
}

impl Numbers {
    fn of(stored: &Stored) -> Self {
        match stored {
            Stored::Known(dtype) => Numbers::Plain(*dtype),
            Stored::Other(name) if name == "F8_E8M0" => Numbers::E8m0,
            _ => Numbers::Raw,
        }
    }
}

impl Part {
    /// Number `i`; 0 beyond the end, where no header that was checked leads.
    fn number(&self, i: usize) -> f32 {
        match self.dtype {
            Numbers::Plain(dtype) if (i + 1) * dtype.size() <= self.bytes.len() => element(&self.bytes, dtype, i),
            Numbers::E8m0 => match self.byte(i) {
                255 => f32::NAN,
                0 => f32::from_bits(0x0040_0000),
                e => f32::from_bits(u32::from(e) << 23),
            },
            _ => 0.0,
        }
    }
    fn word(&self, i: usize) -> u32 {
        let bytes = self.bytes.get(4 * i..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
    fn byte(&self, i: usize) -> u8 {
        self.bytes.get(i).copied().unwrap_or(0)
    }
}

impl Matrix {
    /// That of an expert, where the tensors have those of `experts`.
    pub(super) fn of_expert(&self, expert: usize, experts: usize) -> Self {
        Self { expert: Some((expert, experts)), ..self.clone() }
    }
    /// What is read of the files: which file, which bytes.
    pub(super) fn reads(&self, entries: &[TensorEntry]) -> Vec<(usize, Range<u64>)> {
        let part = |part: &usize| {
            let TensorEntry { file, range, .. } = &entries[*part];
            let (expert, experts) = self.expert.unwrap_or((0, 1));
            let length = (range.end - range.start) / experts.max(1) as u64;
            let start = range.start + expert as u64 * length;
            (*file, start..start + length)
        };
        self.parts.iter().map(part).collect()
    }
    /// The tensors' bytes, ready to be read row by row. `entries` are those of the index.
    ///
    /// # Errors
    /// `Kind::Weights`, naming the tensor, where values contradict the config or each other.
    pub(super) fn unpack<'a>(&'a self, parts: Vec<Bytes>, entries: &[TensorEntry]) -> Result<Unpacked<'a>> {
        let named = |i: usize| self.parts.get(i).and_then(|part| entries.get(*part));
        let part = |(i, bytes)| Part { bytes, dtype: named(i).map_or(Numbers::Raw, |entry| Numbers::of(&entry.dtype)) };
        let parts: Vec<Part> = parts.into_iter().enumerate().map(part).collect();
        let mut out = Unpacked { matrix: self, parts, groups: Groups::Even(self.shape.columns), codes: Codes::Zeros, scales: Vec::new() };
        let wrong =
            |part: usize, message: String| Error::weights(format!("{}: {message}", named(part).map_or("?", |entry| entry.name.as_str())));
        let shape = self.shape;
        match &self.layout {
            Layout::Gptq(gptq) => out.groups = gptq.groups(&out.parts, shape).map_err(|(part, message)| wrong(part, message))?,
            Layout::Awq(awq) => out.groups = Groups::Even(awq.group),
            Layout::Compressed(compressed) => {
                compressed.check(&out.parts, shape).map_err(|(part, message)| wrong(part, message))?;
                out.groups = compressed.groups(&out.parts, shape).map_err(|(part, message)| wrong(part, message))?;
            }
            Layout::Bytes(scaled) => (out.groups, out.codes) = (Groups::Even(scaled.block[1]), scaled.codes()),
            Layout::FourBit(four) => {
                (out.scales, out.codes) = four.scales(&out.parts, shape).map_err(|(part, message)| wrong(part, message))?;
                out.groups = Groups::Even(four.block);
            }
            Layout::Mlx(mlx) => (out.groups, out.codes) = (Groups::Even(mlx.group), Codes::Offsets),
            Layout::Mxfp4 => {}
        }
        Ok(out)
    }
}

impl Unpacked<'_> {
    /// Rows `rows` of the weight in its format.
    ///
    /// # Errors
    /// None: rows of tensors in memory can be read.
    pub fn rows(&self, rows: Range<usize>) -> Result<Bytes> {
        let row_bytes = self.row_bytes();
        let fill = |rows: Range<usize>, out: &mut [u8]| {
            self.fill(rows, out);
            Ok(())
        };
        StoredRows { rows, row_bytes, fill: &fill }.read().map(Bytes::from)
    }
    fn row_bytes(&self) -> usize {
        self.matrix.format.row_bytes(self.matrix.shape.columns).unwrap_or(0)
    }
    /// As [`Self::rows`], into bytes of just their size.
    pub fn fill(&self, rows: Range<usize>, out: &mut [u8]) {
        let mut row = Row { codes: vec![0; self.matrix.shape.columns], scales: Vec::new(), offsets: Vec::new() };
        for (i, out) in rows.zip(out.chunks_exact_mut(self.row_bytes().max(1))) {
            self.row(self.matrix.order.nth(i, self.matrix.first).0, &mut row, out);
        }
    }
    /// Row `row` of the whole matrix, in its format.
    fn row(&self, row: usize, taken: &mut Row, out: &mut [u8]) {
        let shape = self.matrix.shape;
        match &self.matrix.layout {
            Layout::Gptq(gptq) => gptq.row(&self.parts, shape, row, taken),
            Layout::Awq(awq) => awq.row(&self.parts, shape, row, taken),
            Layout::Compressed(compressed) => compressed.row(&self.parts, shape, row, taken),
            Layout::Bytes(scaled) => scaled.row(&self.parts, shape, row, taken),
            Layout::FourBit(four) => return self.four_bit(four, row, taken, out),
            Layout::Mlx(mlx) => mlx.row(&self.parts, shape, row, taken),
            Layout::Mxfp4 => return mxfp4::row(&self.parts, shape, row, out),
        }
        let value = |column: usize| {
            let group = self.groups.of(column);
            let at = |list: &[f32]| list.get(group).copied().unwrap_or(0.0);
            self.codes.value(taken.codes[column], at(&taken.scales), at(&taken.offsets))
        };
        match self.matrix.format {
            Format::F32 => floats(value, out),
            format => blocks(format, self.codes, taken, &self.groups, out),
        }
    }
    /// A row of levels, whose groups need not begin where rows do.
    fn four_bit(&self, four: &bnb::FourBit, row: usize, taken: &mut Row, out: &mut [u8]) {
        four.row(&self.parts, self.matrix.shape, row, taken);
        let first = row * self.matrix.shape.columns;
        let scale = |column: usize| self.scales.get((first + column) / four.block.max(1)).copied().unwrap_or(0.0);
        match self.matrix.format {
            Format::F32 => floats(|column| self.codes.value(taken.codes[column], scale(column), 0.0), out),
            format => {
                let size = format.info().block;
                taken.scales.clear();
                taken.scales.extend((0..self.matrix.shape.columns).step_by(size.max(1)).map(scale));
                taken.offsets.clear();
                blocks(format, self.codes, taken, &Groups::Even(size), out);
            }
        }
    }
}

impl Codes {
    /// The number that a code stands for.
    fn value(self, code: u8, scale: f32, offset: f32) -> f32 {
        match self {
            Codes::Zeros => scale * (f32::from(code) - offset),
            Codes::Offsets => scale * f32::from(code) + offset,
            Codes::Signed => scale * f32::from(code.cast_signed()),
            Codes::E4m3 => scale * fp8::e4m3(code),
            Codes::Nf4 => scale * four_bit::NF4[usize::from(code & 15)],
            Codes::Fp4 => scale * four_bit::FP4[usize::from(code & 15)],
        }
    }
    /// The formats that such codes can have, those with larger blocks first. `exact` says that scales have 16 bits.
    fn formats(self, bits: u32, exact: bool) -> &'static [Format] {
        match self {
            Codes::Zeros if bits <= 4 && exact => &[Format::Z4x128, Format::Z4x32],
            Codes::Zeros | Codes::Offsets if bits <= 4 => &[Format::A4x64, Format::A4x32],
            Codes::Zeros | Codes::Offsets => &[Format::A8x64, Format::A8x32],
            Codes::Signed => &[Format::S8x128, Format::S8x32],
            Codes::E4m3 => &[Format::E4m3x128, Format::E4m3x32],
            Codes::Nf4 => &[Format::Nf4],
            Codes::Fp4 => &[Format::Fp4],
        }
    }
    /// The format for rows of `columns` in groups of `group`: the first whose blocks are whole and have one scale each, or f32.
    fn format(self, bits: u32, exact: bool, columns: usize, group: usize) -> Format {
        let fits = |format: &Format| {
            let block = format.info().block;
            columns.is_multiple_of(block) && (group >= columns || group.is_multiple_of(block))
        };
        self.formats(bits, exact).iter().copied().find(fits).unwrap_or(Format::F32)
    }
}

/// Writes values in f32.
fn floats(value: impl Fn(usize) -> f32, out: &mut [u8]) {
    for (column, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *out = value(column).to_le_bytes();
    }
}

/// Writes a row's codes as blocks, each within one group.
fn blocks(format: Format, codes: Codes, row: &Row, groups: &Groups, out: &mut [u8]) {
    let info = format.info();
    for (i, (block, out)) in row.codes.chunks_exact(info.block).zip(out.chunks_exact_mut(info.bytes)).enumerate() {
        let group = groups.of(i * info.block);
        let at = |list: &[f32]| list.get(group).copied().unwrap_or(0.0);
        let (scale, offset) = (at(&row.scales), at(&row.offsets));
        let added = if codes == Codes::Zeros { -(scale * offset) } else { offset };
        let head: ([u8; 8], usize) = match format {
            Format::Z4x32 | Format::Z4x128 => {
                // Chosen for scales of 16 bits only; offsets are from 0 to 16.
                let word = grouped::scale_and_zero(scale, (offset - 8.0) as i8).unwrap_or_default();
                (join(word, [0; 4]), 4)
            }
            Format::A4x32 | Format::A4x64 | Format::A8x32 | Format::A8x64 => (join(scale.to_le_bytes(), added.to_le_bytes()), 8),
            _ => (join(scale.to_le_bytes(), [0; 4]), 4),
        };
        let (to, rest) = out.split_at_mut(head.1);
        to.copy_from_slice(&head.0[..head.1]);
        if rest.len() == block.len() {
            rest.copy_from_slice(block);
        } else {
            for (byte, pair) in rest.iter_mut().zip(block.as_chunks::<2>().0) {
                *byte = pair[0] & 15 | pair[1] << 4;
            }
        }
    }
}

fn join(a: [u8; 4], b: [u8; 4]) -> [u8; 8] {
    std::array::from_fn(|i| if i < 4 { a[i] } else { b[i - 4] })
}
