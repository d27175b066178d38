//! Where a plan's weights come from, whatever they are stored as, and what may be done to them on the way to an executor:
//! put into the conventions of another plan, encoded in other formats. It knows no file and no device; weights come and go
//! in bands of rows.

use crate::error::{Error, Result};
use crate::exec::Replaceable;
use crate::formats::ByteSource;
use crate::loader::{Checkpoint, Matched, read_rows};
use crate::model::WeightRole;
use crate::plan::edit::{Slot, weight};
use crate::plan::{Op, Plan, WeightId, WeightSlot};
use crate::quant::{Format, encode_rows};
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;

/// Most bytes of a weight, as f32, that are put at once, unless one row has more.
const BAND_BYTES: usize = 64 << 20;

/// Where a plan's weights come from, whatever they are stored as.
#[expect(async_fn_in_trait, reason = "single-threaded by design: no Send bounds, so that it runs in browsers")]
pub trait WeightSource {
    /// What people call weight `id` of `plan` there.
    fn name(&self, plan: &Plan, id: WeightId) -> String;
    /// Rows `rows` of weight `id`, as an executor takes them: their format and bytes, row-major.
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)>;
}

/// A checkpoint whose tensors a plan's slots were matched to.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'c, S> {
    /// The checkpoint.
    pub checkpoint: &'c Checkpoint<S>,
    /// Where each weight is in it.
    pub matched: &'c Matched,
}

impl<S: ByteSource> WeightSource for Stored<'_, S> {
    fn name(&self, _: &Plan, id: WeightId) -> String {
        let placed = &self.matched.weights[id.0];
        let rows = placed.band.as_ref().map_or(String::new(), |r| format!("[{}..{}]", r.start, r.end));
        format!("{}{rows}", self.checkpoint.index.entries()[placed.tensor].name)
    }
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)> {
        let placed = &self.matched.weights[id.0];
        let Checkpoint { sources, index, .. } = self.checkpoint;
        Ok((placed.format, read_rows(sources, index.entries(), placed, rows).await?))
    }
}

/// The weights of `inner` with changes.
#[derive(Debug)]
pub struct Edited<'s, S> {
    inner: &'s S,
    plan: &'s Plan,
    changes: &'s [(Slot, weight::Change)],
    /// Those of a right copy, as this plan reads them, and its plan.
    right: Option<(InConvention<'s, S>, &'s Plan)>,
}

impl<'s, S: WeightSource> Edited<'s, S> {
    /// The weights of `inner`, which are those of `plan`, changed.
    pub fn new(inner: &'s S, plan: &'s Plan, changes: &'s [(Slot, weight::Change)]) -> Self {
        Self { inner, plan, changes, right: None }
    }
    /// The same with the weights of a right copy, and its plan.
    #[must_use]
    pub fn with_right(self, right: Option<(&'s S, &'s Plan)>) -> Self {
        let slots = |plan: &Plan| -> Vec<Slot> { (0..plan.weights.len()).map(|i| Slot::of(plan, WeightId(i))).collect() };
        let in_convention = |(source, plan): (&'s S, &'s Plan)| {
            let to = if slots(plan) == slots(self.plan) { self.plan } else { plan };
            (InConvention::new(source, plan, to), plan)
        };
        Self { right: right.map(in_convention), ..self }
    }
    /// All of a weight of the right copy, as it is stored; `None` where there is no right copy, or it has no such weight.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn right(&self, slot: Slot) -> Result<Option<Vec<f32>>> {
        let Some((source, plan)) = &self.right else { return Ok(None) };
        match slot.find(plan) {
            Some(id) => whole(source, plan, id).await.map(Some),
            None => Ok(None),
        }
    }
    /// All of a weight as it is stored.
    async fn stored(&self, id: WeightId) -> Result<Vec<f32>> {
        whole(self.inner, self.plan, id).await
    }
    /// All of a weight, changed.
    ///
    /// # Errors
    /// Those of the source; `Kind::Weights` for a change that does not fit.
    pub async fn whole(&self, id: WeightId) -> Result<Vec<f32>> {
        let slot = Slot::of(self.plan, id);
        let mut values = self.stored(id).await?;
        let shape = &self.plan.weights[id.0].shape;
        let misfit = || Error::weights(format!("{}: the change does not fit its shape {shape:?}", self.plan.weights[id.0].label()));
        for (_, change) in self.changes.iter().filter(|(of, _)| *of == slot) {
            match change {
                weight::Change::Elements(list) => {
                    for (at, value) in list {
                        *values.get_mut(*at).ok_or_else(misfit)? = *value;
                    }
                }
                weight::Change::Add(x) => values.iter_mut().for_each(|v| *v = (f64::from(*v) + x) as f32),
                weight::Change::Scale(x) => values.iter_mut().for_each(|v| *v = (f64::from(*v) * x) as f32),
                weight::Change::From(other) => {
                    let other = self.stored(other.find(self.plan).ok_or_else(misfit)?).await?;
                    values = if other.len() == values.len() { other } else { return Err(misfit()) };
                }
                weight::Change::Rows(rows) => values = self.rows_of(rows, shape).await?,
                weight::Change::Transposed => {
                    let [rows, columns] = shape[..] else { return Err(misfit()) };
                    values = (0..rows * columns).map(|i| values[(i % columns) * rows + i / columns]).collect();
                }
                weight::Change::OfReference => {
                    values = self.right(slot).await?.filter(|right| right.len() == values.len()).ok_or_else(misfit)?;
                }
                weight::Change::ReadAs(half) => {
                    let read: Option<Vec<f32>> = values.iter().map(|x| half.read(*x)).collect();
                    values = read.ok_or_else(|| Error::weights(format!("{}: it has elements of no 16 bits", slot.label())))?;
                }
            }
        }
        Ok(values)
    }
    async fn rows_of(&self, rows: &[(Slot, usize)], shape: &[usize]) -> Result<Vec<f32>> {
        let columns: usize = shape.iter().skip(1).product();
        let mut known: Vec<(Slot, Vec<f32>)> = Vec::new();
        let mut values = Vec::with_capacity(rows.len() * columns);
        for (slot, row) in rows {
            if known.iter().all(|(of, _)| of != slot) {
                let id = slot.find(self.plan).ok_or_else(|| Error::weights("a row is taken from a weight that is not there"))?;
                known.push((*slot, self.stored(id).await?));
            }
            let of = known.iter().find(|(of, _)| of == slot).map_or(&[][..], |(_, values)| values);
            values.extend_from_slice(of.get(row * columns..(row + 1) * columns).unwrap_or_default());
        }
        Ok(values)
    }
}

/// All of weight `id` of `plan` as it is stored.
async fn whole<S: WeightSource>(source: &S, plan: &Plan, id: WeightId) -> Result<Vec<f32>> {
    let rows = plan.weights[id.0].shape.first().copied().unwrap_or(1);
    let (format, bytes) = source.rows(id, 0..rows).await?;
    format.values(&bytes)
}

impl<S: WeightSource> WeightSource for Edited<'_, S> {
    fn name(&self, plan: &Plan, id: WeightId) -> String {
        self.inner.name(plan, id)
    }
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)> {
        let slot = Slot::of(self.plan, id);
        if self.changes.iter().all(|(of, _)| *of != slot) {
            return self.inner.rows(id, rows).await;
        }
        let columns = columns(&self.plan.weights[id.0]);
        let values = self.whole(id).await?;
        let part = values.get(rows.start * columns..rows.end * columns).unwrap_or_default();
        Ok((Format::F32, part.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()))
    }
}

/// The weights of one plan's files as another plan of the same model reads them: norms may hold the number that the
/// other's ops add to them, and queries the factor that the other's scores are multiplied by.
#[derive(Debug)]
pub struct InConvention<'s, S> {
    inner: &'s S,
    /// By weight; `None` where both read it alike.
    changes: Vec<Option<Change>>,
}

/// x becomes (x + `add`) · `factor` − `subtract`.
#[derive(Debug, Clone, Copy)]
struct Change {
    add: f64,
    factor: f64,
    subtract: f64,
}

impl<'s, S: WeightSource> InConvention<'s, S> {
    /// The weights of `inner`, which are those of plan `from`, for plan `to`, slot by slot.
    pub fn new(inner: &'s S, from: &Plan, to: &Plan) -> Self {
        let (offsets, others) = (norm_offsets(from), norm_offsets(to));
        let change =
            |((factor, add), subtract): ((f64, f64), f64)| (factor != 1.0 || add != subtract).then_some(Change { add, factor, subtract });
        Self { inner, changes: query_factors(from, to).into_iter().zip(offsets).zip(others).map(change).collect() }
    }
}

impl<S: WeightSource> WeightSource for InConvention<'_, S> {
    fn name(&self, plan: &Plan, id: WeightId) -> String {
        self.inner.name(plan, id)
    }
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)> {
        let (format, bytes) = self.inner.rows(id, rows).await?;
        let Some(Change { add, factor, subtract }) = self.changes.get(id.0).copied().flatten() else { return Ok((format, bytes)) };
        let changed = |x: f32| ((f64::from(x) + add) * factor - subtract) as f32;
        Ok((Format::F32, format.values(&bytes)?.into_iter().flat_map(|x| changed(x).to_le_bytes()).collect::<Vec<u8>>().into()))
    }
}

/// What the norms of `plan` add to each of its weights.
fn norm_offsets(plan: &Plan) -> Vec<f64> {
    let mut offsets = vec![0.0; plan.weights.len()];
    for node in &plan.nodes {
        if let Op::RmsNorm { weight, offset, .. } = &node.op
            && let Some(of_weight) = offsets.get_mut(weight.0)
        {
            *of_weight = *offset;
        }
    }
    offsets
}

/// What each weight of `to` is multiplied by, as the factor on q·k is another one there: that of the norm of queries, or of
/// their projection where there is none.
fn query_factors(from: &Plan, to: &Plan) -> Vec<f64> {
    let scales = |plan: &Plan| -> HashMap<Option<usize>, f64> {
        plan.nodes.iter().filter_map(|node| if let Op::AttnScores(a) = &node.op { Some((node.at.layer, a.scale)) } else { None }).collect()
    };
    let (from_scales, to_scales) = (scales(from), scales(to));
    let normed = to.weights.iter().any(|slot| slot.role == WeightRole::QNorm);
    let role = if normed { WeightRole::QNorm } else { WeightRole::QProj };
    let factor = |slot: &WeightSlot| {
        let (a, b) = (from_scales.get(&slot.layer)?, to_scales.get(&slot.layer)?);
        // Some files have the factor in f32.
        Some(a / b).filter(|ratio| slot.role == role && ratio.is_finite() && (ratio - 1.0).abs() > 1e-6)
    };
    to.weights.iter().map(|slot| factor(slot).unwrap_or(1.0)).collect()
}

/// Weights encoded in other formats on the way: what a file would hold.
#[derive(Debug)]
pub struct Encoded<'s, S> {
    inner: &'s S,
    plan: &'s Plan,
    /// By weight; `None` is as it comes.
    formats: Vec<Option<Format>>,
    /// By weight: the importance of its columns.
    importance: &'s [Option<Vec<f32>>],
}

impl<'s, S: WeightSource> Encoded<'s, S> {
    /// The weights of `inner` for `plan`, each in its format of `formats`. `importance` has one entry per weight, or none at
    /// all.
    pub fn new(inner: &'s S, plan: &'s Plan, formats: Vec<Option<Format>>, importance: &'s [Option<Vec<f32>>]) -> Self {
        Self { inner, plan, formats, importance }
    }
}

impl<S: WeightSource> WeightSource for Encoded<'_, S> {
    fn name(&self, plan: &Plan, id: WeightId) -> String {
        self.inner.name(plan, id)
    }
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)> {
        let (stored, bytes) = self.inner.rows(id, rows).await?;
        let Some(format) = self.formats.get(id.0).copied().flatten().filter(|format| *format != stored) else {
            return Ok((stored, bytes));
        };
        let slot = &self.plan.weights[id.0];
        let importance = self.importance.get(id.0).and_then(Option::as_deref);
        let encoded = encode_rows(format, &stored.values(&bytes)?, columns(slot), importance);
        Ok((format, encoded.map_err(|e| e.within(slot.label()))?.into()))
    }
}

/// Elements of a row of `slot` as executors take it: vectors are one column wide.
pub(super) fn columns(slot: &WeightSlot) -> usize {
    slot.shape.iter().skip(1).product::<usize>().max(1)
}

/// The rows of `slot` in bands of at most `most` bytes of f32.
pub(super) fn bands(slot: &WeightSlot, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let rows = slot.shape.first().copied().unwrap_or(1);
    let step = (most / (4 * columns(slot))).max(1);
    (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
}

/// Gives `executor` the rows of `source` for weight `id`, in place of those that it has.
///
/// # Errors
/// What the source and the executor report.
pub async fn put(plan: &Plan, source: &impl WeightSource, id: WeightId, executor: &mut impl Replaceable) -> Result<()> {
    let slot = plan.weights.get(id.0).ok_or_else(|| Error::weights(format!("the plan has no weight {}", id.0)))?;
    executor.clear(id)?;
    for rows in bands(slot, BAND_BYTES) {
        let first = rows.start;
        let (format, bytes) = source.rows(id, rows).await?;
        executor.put(id, format, first, bytes).map_err(|e| e.within(slot.label()))?;
    }
    Ok(())
}
