//! The noise of stored weights against a reference's, tensor by tensor, in bands of rows and in f64.

use super::{Attribution, OnProgress, Progress, Tensor};
use crate::debug::agreement::json_real;
use crate::error::Result;
use crate::plan::{Plan, WeightId, WeightSlot};
use crate::quant::Format;
use bytes::Bytes;
use serde::Serialize;
use std::ops::Range;

/// Most bytes that are read of one side at once, unless one row has more.
const BAND_BYTES: usize = 16 << 20;

/// Where a plan's weights come from, whatever they are stored as.
#[expect(async_fn_in_trait, reason = "single-threaded by design: no Send bounds, so that it runs in browsers")]
pub trait WeightSource {
    /// What people call weight `id` of `plan` there.
    fn name(&self, plan: &Plan, id: WeightId) -> String;
    /// Rows `rows` of weight `id`, as an executor takes them: their format and bytes, row-major.
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)>;
}

/// How a tensor's values differ from the reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Noise {
    /// The weight.
    #[serde(skip)]
    pub id: WeightId,
    /// Its name in the checkpoint.
    pub name: String,
    /// Its role: `L3 q_proj`.
    pub role: String,
    /// Its layer.
    pub layer: Option<usize>,
    /// Elements.
    pub elements: usize,
    /// Formats of the reference and of the other.
    #[serde(serialize_with = "names")]
    pub types: [Format; 2],
    /// Signal to noise, 10·log10(Σ r² / Σ (r − q)²), in dB.
    #[serde(serialize_with = "json_real")]
    pub sqnr: f64,
    /// √(Σ (r − q)² / Σ r²).
    #[serde(serialize_with = "json_real")]
    pub relative_l2: f64,
    /// Largest |r − q|.
    #[serde(serialize_with = "json_real")]
    pub max_abs: f64,
    /// Its row and column.
    pub at: [usize; 2],
    /// Elements that differ.
    pub differing: usize,
    /// Elements that are not finite on one side only, which the figures above leave out.
    pub non_finite: usize,
}

fn names<S: serde::Serializer>(types: &[Format; 2], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(types.iter().map(|t| t.name()))
}

/// The noise of every tensor of `own` against `reference`, the noisiest first; nothing is run.
///
/// # Errors
/// What the sources report.
pub async fn noise(plan: &Plan, reference: &impl WeightSource, own: &impl WeightSource, progress: OnProgress<'_>) -> Result<Attribution> {
    let (mut tensors, of) = (Vec::new(), plan.weights.len());
    let mut found = Attribution { kl: None, tokens: 0, tensors: Vec::new(), equal: 0, restored: 0, complete: true };
    for (done, slot) in plan.weights.iter().enumerate() {
        let id = WeightId(done);
        let name = reference.name(plan, id);
        if progress(Progress { tensor: Some(&name), done, of }).is_break() {
            found.complete = false;
            break;
        }
        let noise = of_tensor(slot, id, name, reference, own).await?;
        if noise.differing > 0 {
            tensors.push(Tensor { noise, restored: None });
        } else {
            found.equal += 1;
        }
    }
    // Broken elements first, then the least signal to noise.
    tensors.sort_by(|a, b| (b.noise.non_finite > 0).cmp(&(a.noise.non_finite > 0)).then(a.noise.sqnr.total_cmp(&b.noise.sqnr)));
    found.tensors = tensors;
    Ok(found)
}

async fn of_tensor(slot: &WeightSlot, id: WeightId, name: String, reference: &impl WeightSource, own: &impl WeightSource) -> Result<Noise> {
    let rows = slot.shape.first().copied().unwrap_or(1);
    let columns = slot.shape.iter().skip(1).product::<usize>().max(1);
    let (mut signal, mut noise, mut max_abs, mut at) = (0.0f64, 0.0f64, 0.0f64, [0, 0]);
    let (mut types, mut differing, mut non_finite) = ([Format::F32; 2], 0, 0);
    for band in bands(slot, rows, BAND_BYTES) {
        let (r_type, r_bytes) = reference.rows(id, band.clone()).await?;
        let (q_type, q_bytes) = own.rows(id, band.clone()).await?;
        types = [r_type, q_type];
        let (mut r, mut q) = (vec![0.0; band.len() * columns], vec![0.0; band.len() * columns]);
        r_type.decode(&r_bytes, &mut r)?;
        q_type.decode(&q_bytes, &mut q)?;
        for (i, (r, q)) in r.into_iter().zip(q).enumerate() {
            if !r.is_finite() || !q.is_finite() {
                // The same NaN or infinity on both sides is no difference.
                let same = r == q || (r.is_nan() && q.is_nan());
                (differing, non_finite) = (differing + usize::from(!same), non_finite + usize::from(!same));
                continue;
            }
            let (r, error) = (f64::from(r), f64::from(r) - f64::from(q));
            signal += r * r;
            noise += error * error;
            differing += usize::from(error != 0.0);
            if error.abs() > max_abs {
                (max_abs, at) = (error.abs(), [band.start + i / columns, i % columns]);
            }
        }
    }
    let (role, elements) = (slot.label(), slot.elements());
    let (sqnr, relative_l2) = (10.0 * (signal / noise).log10(), (noise / signal).sqrt());
    let layer = slot.layer;
    Ok(Noise { id, name, role, layer, elements, types, sqnr, relative_l2, max_abs, at, differing, non_finite })
}

/// The rows of `slot` in bands of at most `most` bytes of f32.
pub(super) fn bands(slot: &WeightSlot, rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let columns = slot.shape.iter().skip(1).product::<usize>().max(1);
    let step = (most / (4 * columns)).max(1);
    (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
}
