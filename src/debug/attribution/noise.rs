//! The noise of stored weights against a reference's, tensor by tensor, in bands of rows and in f64.

use super::{Attribution, OnProgress, Progress, Tensor};
use crate::debug::agreement::json_real;
use crate::debug::weight_source::{InConvention, WeightSource, bands, columns};
use crate::error::Result;
use crate::plan::{Plan, WeightId, WeightSlot};
use crate::quant::{Format, encode_rows};
use serde::Serialize;

/// Most bytes that are read of one side at once, unless one row has more.
const BAND_BYTES: usize = 16 << 20;
/// About how many elements of a tensor are encoded to see what its format can hold.
const ENCODED: usize = 1 << 19;
/// An error that is so many times what our encoder leaves is no matter of the format. Other programs' encoders leave up to
/// 1.3 times as much.
const POOR: f64 = 2.0;

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
    /// Its square, which divergence grows with.
    #[serde(serialize_with = "json_real")]
    pub squared_error: f64,
    /// `relative_l2` of our own encoding of the reference in the same format, from some of its rows; `None` where that is a
    /// plain type or one that is not written.
    pub attainable: Option<f64>,
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

impl Noise {
    /// Whether the error is beyond what the format explains.
    pub fn is_poor(&self) -> bool {
        self.attainable.is_some_and(|attainable| self.relative_l2 > POOR * attainable)
    }
}

fn names<S: serde::Serializer>(types: &[Format; 2], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(types.iter().map(|t| t.name()))
}

/// The noise of every tensor of `own` against `reference`, the noisiest first; nothing is run. The plans are theirs.
///
/// # Errors
/// What the sources report.
pub async fn noise(
    [from, plan]: [&Plan; 2],
    reference: &impl WeightSource,
    own: &impl WeightSource,
    progress: OnProgress<'_>,
) -> Result<Attribution> {
    let reference = &InConvention::new(reference, from, plan);
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
    let columns = columns(slot);
    let (mut signal, mut noise, mut max_abs, mut at) = (0.0f64, 0.0f64, 0.0f64, [0, 0]);
    let (mut types, mut differing, mut non_finite, mut attainable) = ([Format::F32; 2], 0, 0, None);
    for band in bands(slot, BAND_BYTES) {
        let (r_type, r_bytes) = reference.rows(id, band.clone()).await?;
        let (q_type, q_bytes) = own.rows(id, band.clone()).await?;
        types = [r_type, q_type];
        let (mut r, mut q) = (vec![0.0; band.len() * columns], vec![0.0; band.len() * columns]);
        r_type.decode(&r_bytes, &mut r)?;
        q_type.decode(&q_bytes, &mut q)?;
        if band.start == 0 {
            attainable = sampled_error(q_type, &r, columns)?;
        }
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
    let (role, elements, layer) = (slot.label(), slot.elements(), slot.layer);
    let (sqnr, squared_error) = (10.0 * (signal / noise).log10(), noise / signal);
    let relative_l2 = squared_error.sqrt();
    Ok(Noise { id, name, role, layer, elements, types, sqnr, relative_l2, squared_error, attainable, max_abs, at, differing, non_finite })
}

/// The relative L2 error of some rows of `values` as our encoder packs them; `None` for what is not packed.
fn sampled_error(format: Format, values: &[f32], columns: usize) -> Result<Option<f64>> {
    if format.is_plain() {
        return Ok(None);
    }
    let rows = values.chunks_exact(columns).step_by((values.len() / ENCODED).max(1));
    let some: Vec<f32> = rows.filter(|row| row.iter().all(|x| x.is_finite())).flatten().copied().collect();
    Ok(encoded_error(format, &some, columns, None)?.map(f64::sqrt))
}

/// The relative squared error of `values` [rows, columns] as our encoder packs them, each column by its importance;
/// `None` for zeros, and for formats that are not written or have other blocks.
pub(in crate::debug) fn encoded_error(format: Format, values: &[f32], columns: usize, importance: Option<&[f32]>) -> Result<Option<f64>> {
    if format.info().encode.is_none() || format.row_bytes(columns).is_none() {
        return Ok(None);
    }
    let mut packed = vec![0.0; values.len()];
    format.decode(&encode_rows(format, values, columns, importance)?, &mut packed)?;
    let (mut signal, mut noise) = (0.0, 0.0);
    for (i, (x, q)) in values.iter().zip(&packed).enumerate() {
        let weight = importance.map_or(1.0, |weights| f64::from(weights[i % columns]));
        let (x, q) = (f64::from(*x), f64::from(*q));
        signal += weight * x * x;
        noise += weight * (x - q) * (x - q);
    }
    Ok((signal > 0.0).then(|| noise / signal))
}
