//! The rows of a weight, made of what a checkpoint stores: one after another in a tensor, as the pairs that RoPE rotates, or
//! packed in several tensors. Here alone rows are put together; what packed tensors mean is in `packed`.

use super::making::Making;
use super::packed::{Matrix, Unpacked};
use super::places::{Order, Place};
use crate::error::{Error, Result};
use crate::formats::{ByteSource, Local, TensorEntry};
use crate::plan::WeightId;
use crate::quant::Format;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// One weight's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The slot.
    pub id: WeightId,
    /// Position in the index of tensors; of the codes, where there are several.
    pub tensor: usize,
    /// How the bytes of its rows mean numbers.
    pub format: Format,
    /// Rows of that tensor, if the weight has not all of them.
    pub band: Option<Range<usize>>,
    /// Shape of the tensor, or of the matrix that several tensors make.
    pub shape: Vec<usize>,
    /// Rows; a vector has one per element.
    pub rows: usize,
    /// Bytes of one row, in its format.
    pub row_bytes: usize,
    /// Bytes that are read of the files.
    pub bytes: u64,
    /// How its rows are stored.
    pub source: Rows,
}

/// How the rows of a weight are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// One after another, in these bytes of the tensor's file.
    Plain(Range<u64>),
    /// The same, but those of each head, of so many rows, as neighbouring pairs.
    Pairs(Range<u64>, usize),
    /// The same, but not one after another: some of the rows of a matrix in these bytes.
    Spread(Range<u64>, Spread),
    /// In several tensors.
    Packed(Box<Matrix>),
    /// One expert's after the other's, each with a place of its own; all have as many rows and one format.
    Experts(Vec<Placed>),
    /// Made of those of a place, which are one after another or spread.
    Made(Box<Placed>, Making),
}

/// Where rows lie in a matrix of which they are some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// The first of them in the matrix.
    pub first: usize,
    /// Which others.
    pub order: Order,
    /// Rows of the matrix.
    pub all: usize,
    /// Elements of the tensor that come before the matrix.
    pub before: u64,
    /// Bytes of an element.
    pub element: usize,
    /// The matrix is stored with its columns as rows.
    pub transposed: bool,
}

impl Spread {
    /// The flat index, in the tensor, of an element of the weight whose rows have `columns`.
    pub fn index(&self, element: u64, columns: u64) -> u64 {
        let (row, column) = (element / columns.max(1), element % columns.max(1));
        let row = self.row(row as usize) as u64;
        self.before + if self.transposed { column * self.all as u64 + row } else { row * columns + column }
    }
    /// Where row `row` of the weight is in the matrix.
    fn row(&self, row: usize) -> usize {
        self.order.nth(row, self.first).0
    }
    /// Rows `rows` of the weight by runs: which of them, and where they begin in the matrix.
    fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let begin = next;
            let (at, left) = self.order.nth(begin, self.first);
            next = rows.end.min(begin + left);
            (begin < rows.end).then_some((begin..next, at))
        })
    }
    /// Makes rows `rows` of `row_bytes` each of the bytes of the whole matrix, which is transposed.
    fn gather(&self, matrix: &[u8], rows: Range<usize>, row_bytes: usize) -> Vec<u8> {
        let mut out = vec![0; rows.len() * row_bytes];
        let (element, length) = (self.element.max(1), row_bytes.max(1));
        for (row, out) in rows.map(|row| self.row(row)).zip(out.chunks_exact_mut(length)) {
            for (column, out) in out.chunks_exact_mut(element).enumerate() {
                let from = (column * self.all + row) * element;
                let stored = matrix.get(from..from + element).unwrap_or_default();
                out[..stored.len()].copy_from_slice(stored);
            }
        }
        out
    }
}

/// The matrix that was read last of those of a weight, and where it begins: rows are asked for in bands.
#[derive(Default)]
pub struct LastMatrix(Mutex<Option<(u64, Bytes)>>);

/// Rows of one weight, being read.
pub enum Reader<'a, S> {
    /// From a place in a file.
    Stored(&'a S, &'a Placed),
    /// From a matrix in a file, of which it has some rows; the one read last.
    Spread(&'a S, &'a Placed, Arc<LastMatrix>),
    /// From tensors that are in memory now.
    Unpacked(Unpacked<'a>),
    /// One expert's after the other's, of so many rows each.
    Experts(Vec<Reader<'a, S>>, usize),
    /// Of rows from a place in a file.
    Made(&'a S, &'a Placed, Making),
}

impl Placed {
    /// Its rows by place: for rows `rows` the places that have some of them, which rows of each, and where these begin in `rows`.
    pub fn parts(&self, rows: Range<usize>) -> Vec<(&Placed, Range<usize>, usize)> {
        match &self.source {
            Rows::Experts(places) => {
                let one = places.first().map_or(1, |place| place.rows.max(1));
                let part = |(place, of): (usize, Range<usize>)| Some((places.get(place)?, of.clone(), place * one + of.start - rows.start));
                split(rows.clone(), one).filter_map(part).collect()
            }
            _ => vec![(self, rows, 0)],
        }
    }
    /// The place of the rows that `making` makes of these.
    pub(super) fn made(self, making: Making) -> Self {
        let format = making.format(self.format);
        let row_bytes = format.row_bytes(self.columns()).unwrap_or(0);
        let source = Rows::Made(Box::new(self.clone()), making);
        Self { format, row_bytes, source, ..self }
    }
    /// Elements of a row.
    fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
    /// The rows of one of `experts` experts, all of whose rows it has one after the other.
    pub fn of_expert(&self, expert: usize, experts: usize) -> Self {
        let rows = self.rows / experts.max(1);
        let bytes = (rows * self.row_bytes) as u64;
        let source = match &self.source {
            Rows::Experts(places) => match places.get(expert) {
                Some(place) => return place.clone(),
                None => return self.clone(),
            },
            Rows::Plain(range) => {
                let start = range.start + expert as u64 * bytes;
                Rows::Plain(start..start + bytes)
            }
            other => other.clone(),
        };
        let shape = std::iter::once(rows).chain(self.shape.iter().skip(1).copied()).collect();
        Self { rows, bytes, shape, source, ..self.clone() }
    }
    /// The whole tensor of which it is some rows that do not follow each other, by the rows that the tensor is stored in.
    pub fn whole(&self) -> Option<Self> {
        let places = if let Rows::Experts(places) = &self.source { places.as_slice() } else { std::slice::from_ref(self) };
        let [Rows::Spread(first, spread), Rows::Spread(last, _)] = [&places.first()?.source, &places.last()?.source] else { return None };
        let row_bytes = if spread.transposed { spread.all * spread.element } else { self.row_bytes };
        let (range, bytes) = (first.start..last.end, last.end.checked_sub(first.start)?);
        let rows = usize::try_from(bytes).ok()?.checked_div(row_bytes)?;
        let shape = vec![rows, row_bytes.checked_div(spread.element)?];
        Some(Self { band: None, shape, rows, row_bytes, bytes, source: Rows::Plain(range), ..self.clone() })
    }
    /// Whether its rows lie in their tensor as those at `place` do.
    pub fn lies_as(&self, place: &Place) -> bool {
        let one = if let Rows::Experts(places) = &self.source { places.first() } else { Some(self) };
        match one.map(|one| &one.source) {
            Some(Rows::Spread(_, spread)) => (spread.order, spread.transposed) == (place.order, place.transposed),
            _ => false,
        }
    }
    /// What is read of the files for it: which file, which bytes.
    pub fn reads(&self, entries: &[TensorEntry]) -> Vec<(usize, Range<u64>)> {
        match &self.source {
            Rows::Plain(range) | Rows::Pairs(range, _) | Rows::Spread(range, _) => vec![(entries[self.tensor].file, range.clone())],
            Rows::Packed(matrix) => matrix.reads(entries),
            Rows::Made(place, _) => place.reads(entries),
            Rows::Experts(places) => places.iter().flat_map(|place| place.reads(entries)).collect(),
        }
    }
    /// Starts to read its rows. Packed tensors are read as a whole, plain ones row by row.
    ///
    /// # Errors
    /// `Kind::Io` when reading fails; `Kind::Weights` for packed tensors whose values contradict each other.
    pub async fn reader<'a, S: ByteSource>(&'a self, sources: &'a [S], entries: &'a [TensorEntry]) -> Result<Reader<'a, S>> {
        let last = Arc::<LastMatrix>::default();
        match &self.source {
            Rows::Experts(places) => {
                let mut readers = Vec::with_capacity(places.len());
                for place in places {
                    // An expert's place is none of several.
                    readers.push(place.reader_of_one(sources, entries, &last).await?);
                }
                Ok(Reader::Experts(readers, places.first().map_or(1, |place| place.rows.max(1))))
            }
            _ => self.reader_of_one(sources, entries, &last).await,
        }
    }
    async fn reader_of_one<'a, S: ByteSource>(
        &'a self,
        sources: &'a [S],
        entries: &'a [TensorEntry],
        last: &Arc<LastMatrix>,
    ) -> Result<Reader<'a, S>> {
        match &self.source {
            Rows::Experts(_) => Err(Error::weights("the place of an expert's rows is that of several")),
            Rows::Made(place, making) => Ok(Reader::Made(&sources[entries[self.tensor].file], place, *making)),
            Rows::Plain(range) | Rows::Pairs(range, _) | Rows::Spread(range, _) => {
                let source = &sources[entries[self.tensor].file];
                // Once, before several threads read.
                if let Some(Local::Sharded(shards)) = source.local() {
                    shards.check(range)?;
                }
                if let Rows::Spread(..) = self.source {
                    return Ok(Reader::Spread(source, self, last.clone()));
                }
                Ok(Reader::Stored(source, self))
            }
            Rows::Packed(matrix) => {
                let mut parts = Vec::with_capacity(matrix.parts.len());
                for (file, range) in matrix.reads(entries) {
                    parts.push(sources[file].read(range).await?);
                }
                Ok(Reader::Unpacked(matrix.unpack(parts, entries)?))
            }
        }
    }
}

impl<S: ByteSource> Reader<'_, S> {
    /// Rows `rows` of the weight, in the order of its role and in its format.
    ///
    /// # Errors
    /// `Kind::Io` when reading fails.
    pub async fn rows(&self, rows: Range<usize>) -> Result<Bytes> {
        match self {
            Reader::Stored(source, placed) => stored(*source, placed, rows).await,
            Reader::Spread(source, placed, last) => spread(*source, placed, rows, last).await,
            Reader::Unpacked(unpacked) => unpacked.rows(rows),
            Reader::Made(source, place, making) => made(*source, place, *making, rows).await,
            Reader::Experts(readers, one) => {
                let mut out = Vec::new();
                for (place, rows) in split(rows, *one) {
                    if let Some(reader) = readers.get(place) {
                        out.extend_from_slice(&reader.rows_of_one(rows).await?);
                    }
                }
                Ok(out.into())
            }
        }
    }
    async fn rows_of_one(&self, rows: Range<usize>) -> Result<Bytes> {
        match self {
            Reader::Stored(source, placed) => stored(*source, placed, rows).await,
            Reader::Spread(source, placed, last) => spread(*source, placed, rows, last).await,
            Reader::Unpacked(unpacked) => unpacked.rows(rows),
            Reader::Made(source, place, making) => made(*source, place, *making, rows).await,
            Reader::Experts(..) => Err(Error::weights("the rows of an expert are those of several")),
        }
    }
    /// The same rows for several threads; `None` where they have to be waited for.
    pub fn at_once(&self) -> Option<AtOnce<'_>> {
        match self {
            Reader::Spread(source, placed, _) => match &placed.source {
                Rows::Spread(_, spread) if !spread.transposed && spread.order.run() > 1 => {
                    source.local().map(|local| AtOnce::Stored(local, placed))
                }
                // More is read than some of the rows: one thread does that for many of them.
                _ => None,
            },
            Reader::Made(..) => None,
            Reader::Stored(source, placed) => source.local().map(|local| AtOnce::Stored(local, placed)),
            Reader::Unpacked(unpacked) => Some(AtOnce::Unpacked(unpacked)),
            Reader::Experts(readers, one) => Some(AtOnce::Experts(readers.iter().map(Reader::at_once).collect::<Option<Vec<_>>>()?, *one)),
        }
    }
}

/// Rows of one weight that several threads can read.
pub enum AtOnce<'a> {
    /// From a place in a file of this machine.
    Stored(&'a Local, &'a Placed),
    /// From tensors that are in memory now.
    Unpacked(&'a Unpacked<'a>),
    /// One expert's after the other's, of so many rows each.
    Experts(Vec<AtOnce<'a>>, usize),
}

/// Rows of places of `one` rows each: which place, which of its rows.
fn split(rows: Range<usize>, one: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let places = if rows.is_empty() { 0..0 } else { rows.start / one..rows.end.div_ceil(one) };
    places.map(move |place| (place, rows.start.max(place * one) - place * one..rows.end.min((place + 1) * one) - place * one))
}

impl AtOnce<'_> {
    /// Rows `rows` of the weight, in the order of its role and in its format, into bytes of just their size.
    ///
    /// # Errors
    /// `Kind::Io` when reading fails.
    pub fn fill(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let (local, placed) = match self {
            AtOnce::Stored(local, placed) => (local, placed),
            AtOnce::Unpacked(unpacked) => {
                unpacked.fill(rows, out);
                return Ok(());
            }
            AtOnce::Experts(places, one) => {
                let row_bytes = out.len().checked_div(rows.len()).unwrap_or(0);
                let mut rest = out;
                for (place, rows) in split(rows, *one) {
                    let (here, after) = std::mem::take(&mut rest).split_at_mut(rows.len() * row_bytes);
                    if let Some(place) = places.get(place) {
                        place.fill(rows, here)?;
                    }
                    rest = after;
                }
                return Ok(());
            }
        };
        let at = |range: &Range<u64>, row: usize| range.start + row as u64 * placed.row_bytes as u64;
        match &placed.source {
            Rows::Plain(range) => local.fill(at(range, rows.start), out),
            Rows::Pairs(range, head) => {
                let mut rows = rows.zip(out.chunks_mut(placed.row_bytes.max(1)));
                rows.try_for_each(|(row, out)| local.fill(at(range, stored_row(row, *head)), out))
            }
            Rows::Spread(range, spread) => {
                let mut rest = out;
                for (rows, start) in spread.runs(rows) {
                    let bytes = (rows.len() * placed.row_bytes).min(rest.len());
                    let (here, after) = std::mem::take(&mut rest).split_at_mut(bytes);
                    local.fill(at(range, start), here)?;
                    rest = after;
                }
                Ok(())
            }
            Rows::Packed(_) | Rows::Experts(_) | Rows::Made(..) => Ok(()),
        }
    }
}

/// Where row `row` is stored, when heads of `head` rows are stored as neighbouring pairs (2i, 2i + 1): Hugging Face has the
/// first of every pair, then the second.
fn stored_row(row: usize, head: usize) -> usize {
    let head = head.max(1);
    let (half, within) = (head.div_ceil(2), row % head);
    row - within + if within < half { 2 * within } else { 2 * (within - half) + 1 }
}

/// Some rows of a matrix. One that is stored with its columns as rows is read as a whole.
async fn spread<S: ByteSource>(source: &S, placed: &Placed, rows: Range<usize>, last: &LastMatrix) -> Result<Bytes> {
    let Rows::Spread(range, spread) = &placed.source else { return Ok(Bytes::new()) };
    if !spread.transposed {
        // From the first of them that is stored to the last.
        let ends = || spread.runs(rows.clone()).map(|(rows, at)| (at, at + rows.len()));
        let (Some(start), Some(end)) = (ends().map(|ends| ends.0).min(), ends().map(|ends| ends.1).max()) else { return Ok(Bytes::new()) };
        let at = |row: usize| range.start + row as u64 * placed.row_bytes as u64;
        let bytes = source.read(at(start)..at(end).min(range.end)).await?;
        let mut out = Vec::with_capacity(rows.len() * placed.row_bytes);
        for (rows, first) in spread.runs(rows) {
            let cut = |row: usize| ((row - start) * placed.row_bytes).min(bytes.len());
            out.extend_from_slice(&bytes[cut(first)..cut(first + rows.len())]);
        }
        return Ok(out.into());
    }
    let held = last.0.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|(start, _)| *start == range.start);
    let matrix = match held {
        Some((_, matrix)) => matrix,
        None => source.read(range.clone()).await?,
    };
    *last.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((range.start, matrix.clone()));
    Ok(spread.gather(&matrix, rows, placed.row_bytes).into())
}

/// Rows that are made of those of `place`.
async fn made<S: ByteSource>(source: &S, place: &Placed, making: Making, rows: Range<usize>) -> Result<Bytes> {
    let bytes = match &place.source {
        Rows::Spread(..) => spread(source, place, rows, &LastMatrix::default()).await?,
        _ => stored(source, place, rows).await?,
    };
    Ok(making.rows(&bytes, place.format, place.columns())?.into())
}

/// Rows that lie in one tensor.
async fn stored<S: ByteSource>(source: &S, placed: &Placed, rows: Range<usize>) -> Result<Bytes> {
    let (range, head) = match &placed.source {
        Rows::Plain(range) => (range, 1),
        // Rows of a head are moved within it, so whole heads are read.
        Rows::Pairs(range, head) => (range, (*head).max(1)),
        Rows::Spread(..) | Rows::Packed(_) | Rows::Experts(_) | Rows::Made(..) => return Ok(Bytes::new()),
    };
    let whole = rows.start / head * head..rows.end.next_multiple_of(head).min(placed.rows);
    let at = |row: usize| range.start + row as u64 * placed.row_bytes as u64;
    let bytes = source.read(at(whole.start)..at(whole.end).min(range.end)).await?;
    let cut = |row: usize| ((row.saturating_sub(whole.start)) * placed.row_bytes).min(bytes.len());
    if matches!(placed.source, Rows::Plain(_)) {
        return Ok(bytes.slice(cut(rows.start)..cut(rows.end)));
    }
    let mut out = Vec::with_capacity(rows.len() * placed.row_bytes);
    for row in rows.map(|row| stored_row(row, head)) {
        out.extend_from_slice(&bytes[cut(row)..cut(row + 1)]);
    }
    Ok(out.into())
}

/// Rows `rows` of a weight, in the order of its role.
///
/// # Errors
/// Those of [`Placed::reader`] and [`Reader::rows`].
pub async fn read_rows<S: ByteSource>(sources: &[S], entries: &[TensorEntry], placed: &Placed, rows: Range<usize>) -> Result<Bytes> {
    placed.reader(sources, entries).await?.rows(rows).await
}
