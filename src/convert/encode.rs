//! The bytes of one tensor of the target, from rows of the source: read, put in order, decoded and encoded in bands of
//! rows by several threads, and written in order. What is in memory at a time is a band for each thread.

use crate::error::{Error, Result};
use crate::formats::{Local, TensorEntry};
use crate::loader::{Making, Order, Placed, Reader};
use crate::quant::Format;
use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Elements of a band, unless a head, or a row, has more.
const BAND: usize = 1 << 19;

/// A tensor of the target.
pub struct Item {
    /// Its name there.
    pub name: String,
    /// What it is for, in the words of plans; its own name where no plan knows it.
    pub role: String,
    /// Its layer.
    pub layer: Option<usize>,
    /// Its format there.
    pub format: Format,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Where its rows come from, in their order.
    pub parts: Vec<Part>,
    /// Rows, in heads of so many, are put into the order of the pairs that RoPE rotates: (2i, 2i + 1).
    pub pairs: Option<usize>,
    /// Added to every element: what a convention has in the weights.
    pub add: f32,
    /// Multiplies every element, after that.
    pub factor: f32,
    /// Importance of each column.
    pub importance: Option<Arc<[f32]>>,
}

/// Rows of a tensor.
pub enum Part {
    /// Of the source.
    Stored(Placed),
    /// Made here: one value a row.
    Values(Vec<f32>),
    /// Weights of the source whose rows take turns, and may be columns here.
    Turns(Turns),
}

/// Weights that have the rows of a matrix between them.
pub struct Turns {
    /// Each with its first row, and which others.
    pub weights: Vec<(Placed, usize, Order)>,
    /// Rows of the matrix.
    pub all: usize,
    /// The matrix is stored with its columns as rows.
    pub transposed: bool,
    /// What the target's rows are made into by its reader.
    pub making: Option<Making>,
}

impl Turns {
    fn rows(&self) -> usize {
        let Some((first, ..)) = self.weights.first() else { return 0 };
        if self.transposed { first.shape.iter().skip(1).product() } else { self.held() }
    }
    /// Rows that the weights have.
    pub fn held(&self) -> usize {
        self.weights.iter().map(|(weight, ..)| weight.rows).sum()
    }
    /// All elements of the matrix, as it is stored.
    fn values(&self, sources: &[Local], entries: &[TensorEntry]) -> Result<Vec<f32>> {
        let mut parts = Vec::with_capacity(self.weights.len());
        for (weight, ..) in &self.weights {
            let reader = ready(weight.reader(sources, entries))?;
            parts.push(weight.format.values(&ready(reader.rows(0..weight.rows))?)?);
        }
        let mut out = vec![0.0; parts.iter().map(Vec::len).sum()];
        for ((weight, first, order), part) in self.weights.iter().zip(&parts) {
            let columns = part.len().checked_div(weight.rows).unwrap_or(0);
            for (i, value) in part.iter().enumerate() {
                let (row, column) = (order.nth(i / columns.max(1), *first).0, i % columns.max(1));
                let at = if self.transposed { column * self.held() + row } else { row * columns + column };
                if let Some(out) = out.get_mut(at) {
                    *out = *value;
                }
            }
        }
        if let (Some(making), Some((weight, ..))) = (&self.making, self.weights.first()) {
            making.stored(&mut out, parts.first().map_or(1, Vec::len).checked_div(weight.rows).unwrap_or(1));
        }
        Ok(out)
    }
}

impl Part {
    fn rows(&self) -> usize {
        match self {
            Part::Stored(placed) => placed.rows,
            Part::Values(values) => values.len(),
            Part::Turns(turns) => turns.rows(),
        }
    }
}

impl Item {
    /// Rows of all its parts; of a vector, one for each element, in whatever shape the target has it.
    fn rows(&self) -> usize {
        self.parts.iter().map(Part::rows).sum()
    }
    /// Elements of a row.
    fn columns(&self) -> usize {
        self.shape.iter().product::<usize>().checked_div(self.rows()).unwrap_or(0)
    }
    /// Whether packed rows are encoded again, in another format.
    pub fn encodes_packed(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Stored(placed) => !placed.format.is_plain() && placed.format != self.format && !self.format.is_plain(),
            Part::Values(_) | Part::Turns(_) => false,
        })
    }
    /// Bytes in the target; `None` where the shape and the format do not belong together.
    pub fn bytes(&self) -> Option<u64> {
        (self.format.row_bytes(self.columns())? as u64).checked_mul(self.rows() as u64)
    }
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Bytes that were written.
    pub bytes_done: u64,
    /// Bytes of all tensors of the target.
    pub bytes_total: u64,
    /// The tensor that is being written.
    pub tensor: &'a str,
}

/// Told of every band; an error ends the conversion.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> Result<()>;

/// What became of the weights of one role in one format.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The role.
    pub role: String,
    /// The format.
    pub format: Format,
    /// Tensors.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes in the target.
    pub bytes: u64,
    /// Sum of the squared differences that encoding made.
    pub squared_error: f64,
    /// Sum of the squares of the encoded values; 0 where bytes were copied as they are.
    pub energy: f64,
    /// Finite values beyond what the format holds.
    pub clipped: u64,
}

impl Line {
    /// Root of the mean squared error over the root mean square; `None` where bytes were copied.
    pub fn relative_error(&self) -> Option<f64> {
        (self.energy > 0.0).then(|| (self.squared_error / self.energy).sqrt())
    }
    /// Counts the weights of `other` too.
    pub fn add(&mut self, other: &Self) {
        self.tensors += other.tensors;
        self.elements += other.elements;
        self.bytes += other.bytes;
        self.squared_error += other.squared_error;
        self.energy += other.energy;
        self.clipped += other.clipped;
    }
}

/// Writes items, and counts.
pub struct Encoder<'a> {
    sources: &'a [Local],
    entries: &'a [TensorEntry],
    threads: usize,
    state: RefCell<State<'a>>,
}

struct State<'a> {
    on_progress: OnProgress<'a>,
    done: u64,
    total: u64,
    lines: Vec<Line>,
    failure: Option<Error>,
}

/// A band in the target's bytes, and what encoding it did.
struct Band {
    bytes: Vec<u8>,
    squared_error: f64,
    energy: f64,
    clipped: u64,
}

impl<'a> Encoder<'a> {
    /// An encoder of items with `total` bytes in all, whose rows are in the tensors `entries` of `sources`.
    pub fn new((sources, entries): (&'a [Local], &'a [TensorEntry]), threads: usize, total: u64, on_progress: OnProgress<'a>) -> Self {
        let state = State { on_progress, done: 0, total, lines: Vec::new(), failure: None };
        Self { sources, entries, threads: threads.max(1), state: RefCell::new(state) }
    }
    /// The error of the engine that ended [`Self::write`], which others only know as a text.
    pub fn failure(&self) -> Option<Error> {
        self.state.borrow_mut().failure.take()
    }
    /// What was written, by role and format in the order of their first tensors.
    pub fn lines(self) -> Vec<Line> {
        self.state.into_inner().lines
    }
    /// Writes the bytes of `item`.
    ///
    /// # Errors
    /// What `out` reports; [`Self::failure`] has the others.
    pub fn write(&self, item: &Item, out: &mut dyn Write) -> io::Result<()> {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Failed::Io);
        self.encode(item, &mut put).map_err(|failed| match failed {
            Failed::Io(e) => e,
            Failed::Engine(e) => {
                let text = io::Error::other(e.message.clone());
                self.state.borrow_mut().failure.get_or_insert(e);
                text
            }
        })
    }
    fn encode(&self, item: &Item, put: &mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
        let mut line = Line {
            role: item.role.clone(),
            format: item.format,
            tensors: 1,
            elements: item.shape.iter().map(|size| *size as u64).product(),
            bytes: 0,
            squared_error: 0.0,
            energy: 0.0,
            clipped: 0,
        };
        let mut first_row = 0;
        for part in &item.parts {
            let rows = match part {
                Part::Values(values) => Source::Values(values.into()),
                Part::Turns(turns) => {
                    let values = turns.values(self.sources, self.entries);
                    Source::Values(values.map_err(|e| Failed::Engine(named(Problem::Engine(e), item, first_row)))?.into())
                }
                Part::Stored(placed) => {
                    let reader = ready(placed.reader(self.sources, self.entries));
                    Source::Stored(reader.map_err(|e| Failed::Engine(named(Problem::Engine(e), item, first_row)))?, placed.format)
                }
            };
            let bands = bands(part.rows(), item.columns(), item.pairs);
            for some in bands.chunks(self.threads) {
                for band in self.band_of_each(item, &rows, some) {
                    let band = band.map_err(|e| Failed::Engine(named(e, item, first_row)))?;
                    put(&band.bytes)?;
                    line.bytes += band.bytes.len() as u64;
                    line.squared_error += band.squared_error;
                    line.energy += band.energy;
                    line.clipped += band.clipped;
                    self.progress(item, band.bytes.len() as u64).map_err(Failed::Engine)?;
                }
            }
            first_row += part.rows();
        }
        self.count(line);
        Ok(())
    }
    /// Some bands at a time, each by a thread of its own; in order.
    fn band_of_each(&self, item: &Item, source: &Source<'_>, bands: &[Range<usize>]) -> Vec<Result<Band, Problem>> {
        match bands {
            [one] => vec![band(item, source, one.clone())],
            _ => std::thread::scope(|scope| {
                let threads: Vec<_> = bands.iter().map(|rows| scope.spawn(|| band(item, source, rows.clone()))).collect();
                let gone = || Err(Problem::Engine(Error::invalid("threads", "one that encodes rows has panicked")));
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
            }),
        }
    }
    fn progress(&self, item: &Item, bytes: u64) -> Result<()> {
        let state = &mut *self.state.borrow_mut();
        state.done += bytes;
        (state.on_progress)(Progress { bytes_done: state.done, bytes_total: state.total, tensor: &item.name })
    }
    fn count(&self, line: Line) {
        let lines = &mut self.state.borrow_mut().lines;
        match lines.iter_mut().find(|known| known.role == line.role && known.format == line.format) {
            None => lines.push(line),
            Some(known) => known.add(&line),
        }
    }
}

/// Why writing stopped.
enum Failed {
    Io(io::Error),
    Engine(Error),
}

/// What is wrong with a band.
enum Problem {
    Engine(Error),
    /// A value that is not finite: its row in the part, its column.
    NonFinite(usize, usize, f32),
}

/// The problem of `item`, of whose rows `before` are in earlier parts, as an error that names it.
fn named(problem: Problem, item: &Item, before: usize) -> Error {
    let label = item.layer.map_or(item.role.clone(), |layer| format!("{} of layer {layer}", item.role));
    match problem {
        Problem::Engine(e) => e.within(format!("{} ({label})", item.name)),
        Problem::NonFinite(row, column, value) => {
            let (row, format) = (before + row, item.format);
            Error::weights(format!(
                "{} ({label}): row {row}, column {column} is {value}, which {format} cannot hold; repair the weight, or convert to f32, f16 or bf16, which can",
                item.name
            ))
        }
    }
}

/// The rows of each band: whole heads where rows are moved in them. It depends on nothing but the tensor, so the sums that
/// are made of bands do not either.
fn bands(rows: usize, columns: usize, pairs: Option<usize>) -> Vec<Range<usize>> {
    let head = pairs.unwrap_or(1).max(1);
    let count = (BAND / columns.max(1) / head).max(1) * head;
    (0..rows).step_by(count).map(|start| start..(start + count).min(rows)).collect()
}

/// A part, being read.
enum Source<'a> {
    Values(Cow<'a, [f32]>),
    Stored(Reader<'a, Local>, Format),
}

/// What a future over local files gives: they never keep anyone waiting.
fn ready<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::invalid("source", "a local file is not ready to be read")),
    }
}

/// Rows `rows` of `source`, in the target's bytes.
fn band(item: &Item, source: &Source<'_>, rows: Range<usize>) -> Result<Band, Problem> {
    let columns = item.columns();
    let (bytes, stored) = match source {
        Source::Values(values) => {
            let some = rows.start * columns..rows.end * columns;
            (values.get(some).unwrap_or_default().iter().flat_map(|x| x.to_le_bytes()).collect(), Format::F32)
        }
        Source::Stored(reader, format) => (ready(reader.rows(rows.clone())).map_err(Problem::Engine)?.to_vec(), *format),
    };
    let bytes = match item.pairs {
        Some(head) => neighbours(&bytes, rows.len(), head).map_err(Problem::Engine)?,
        None => bytes,
    };
    if stored == item.format && item.add == 0.0 && item.factor == 1.0 {
        return Ok(Band { bytes, squared_error: 0.0, energy: 0.0, clipped: 0 });
    }
    let mut values = stored.values(&bytes).map_err(Problem::Engine)?;
    drop(bytes);
    if item.add != 0.0 {
        values.iter_mut().for_each(|x| *x += item.add);
    }
    if item.factor != 1.0 {
        values.iter_mut().for_each(|x| *x *= item.factor);
    }
    encode(&values, columns, item).map_err(|problem| match problem {
        Problem::NonFinite(row, column, value) => Problem::NonFinite(rows.start + row, column, value),
        other => other,
    })
}

/// `values`, in rows of `columns`, in the format of `item`.
fn encode(values: &[f32], columns: usize, item: &Item) -> Result<Band, Problem> {
    let format = item.format;
    let wrong = || Problem::Engine(Error::weights(format!("rows of {columns} elements are no whole blocks of {format}")));
    let row_bytes = format.row_bytes(columns).ok_or_else(wrong)?;
    let mut bytes = vec![0; row_bytes * (values.len() / columns.max(1))];
    if format.dtype().is_some() {
        plain(values, format, &mut bytes);
    } else {
        // Each row has the same importance.
        for (row, (values, out)) in values.chunks(columns.max(1)).zip(bytes.chunks_mut(row_bytes.max(1))).enumerate() {
            if let Some(column) = values.iter().position(|x| !x.is_finite()) {
                return Err(Problem::NonFinite(row, column, values[column]));
            }
            format.encode(values, item.importance.as_deref(), out).map_err(Problem::Engine)?;
        }
    }
    let (mut squared_error, mut energy, mut clipped) = (0.0, 0.0, 0);
    for (x, y) in values.iter().zip(format.values(&bytes).map_err(Problem::Engine)?) {
        if x.is_finite() {
            squared_error += f64::from(x - y).powi(2);
            energy += f64::from(*x).powi(2);
            clipped += u64::from(format.dtype().is_some() && (x - y).abs() > x.abs() / 64.0 && y.abs() >= 65504.0);
        }
    }
    Ok(Band { bytes, squared_error, energy, clipped })
}

/// Plain numbers, with NaN and infinities as they are. Finite ones beyond the format become its largest.
fn plain(values: &[f32], format: Format, out: &mut [u8]) {
    if let Some(encode) = format.info().encode {
        encode(values, None, out);
    }
    for (x, out) in values.iter().zip(out.chunks_mut(format.info().bytes)).filter(|(x, _)| !x.is_finite()) {
        match format {
            Format::F16 => out.copy_from_slice(&half::f16::from_f32(*x).to_le_bytes()),
            Format::BF16 => out.copy_from_slice(&half::bf16::from_f32(*x).to_le_bytes()),
            _ => {}
        }
    }
}

/// `rows` rows, in whole heads of `head` in the order of Hugging Face, as neighbouring pairs.
fn neighbours(bytes: &[u8], rows: usize, head: usize) -> Result<Vec<u8>> {
    let row_bytes = bytes.len() / rows.max(1);
    if head == 0 || !head.is_multiple_of(2) || !rows.is_multiple_of(head) || row_bytes == 0 {
        return Err(Error::weights(format!("{rows} rows are no whole heads of {head}")));
    }
    let mut out = Vec::with_capacity(bytes.len());
    for head_rows in bytes.chunks(row_bytes * head) {
        let (first, second) = head_rows.split_at(head_rows.len() / 2);
        for (a, b) in first.chunks(row_bytes).zip(second.chunks(row_bytes)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    Ok(out)
}
