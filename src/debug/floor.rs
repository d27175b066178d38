//! Rounding floors: how far right numbers may be apart. A floor is measured: the distance of the oracle in f32, with the
//! storage of the run that is judged, from the oracle in f64. It is never below one unit in the last place of a row's
//! largest value. One draw of roundings may be small by chance, so the oracle in f32 computes twice, with other roundings the second
//! time, and the larger distance counts, row by row. Whoever judges numbers (comparisons, tests, the self-test of adapters) takes these from here.

use crate::cpu::CpuExecutor;
use crate::error::Result;
use crate::exec::{Executor, Storage, WeightSink};
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use crate::tensor::Tensor;

/// A value is right within this many floors. Measured on the golden models and on random ones, over all adapters' kernel
/// variants: 2.8 at most.
pub const ALLOWED: f64 = 3.0;

/// Spacing of f32 numbers next to 1.
const ULP: f64 = 1.0 / (1u64 << 23) as f64;

/// Rows of fewer elements are single numbers nearly: their length says nothing of their error, and one row's floor little.
pub const FEW: usize = 8;

/// One unit in the last place of a row whose largest magnitude is `top`.
pub fn ulp(top: f32) -> f64 {
    f64::from(top) * ULP
}

/// ‖a − b‖ over the elements that both have.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt()
}

/// The one of two rounded rows that is further from the exact one.
pub fn further<'r>(exact: &[f32], a: &'r [f32], b: &'r [f32]) -> &'r [f32] {
    // Where one of them overflowed, there is no floor in either.
    if distance(exact, b) > distance(exact, a) { b } else { a }
}

/// `a` with the rows of `b` that are further from the exact ones.
pub fn further_rows(exact: &Tensor, mut a: Tensor, b: &Tensor) -> Tensor {
    let width = a.width();
    if a.shape == b.shape && a.shape == exact.shape && width > 0 {
        for row in 0..a.data.len() / width {
            let range = row * width..(row + 1) * width;
            let of = further(&exact.data[range.clone()], &a.data[range.clone()], &b.data[range.clone()]).to_vec();
            a.data[range].copy_from_slice(&of);
        }
    }
    a
}

/// `error` in floors: 0 without an error, infinite where there is one and no floor.
pub fn times(error: f64, floor: f64) -> f64 {
    match (error == 0.0, floor > 0.0) {
        (true, _) => 0.0,
        (false, true) => error / floor,
        (false, false) => f64::INFINITY,
    }
}

/// The oracle in f64, and in f32 with a storage. Takes weights as one sink.
#[derive(Debug)]
pub struct Oracles {
    /// What is exact.
    pub exact: CpuExecutor<f64>,
    /// What rounds as a right run of this storage does; two for each storage, one after the other, the second with other roundings.
    pub rounded: Vec<CpuExecutor<f32>>,
}

impl Oracles {
    /// Oracles without weights, one in f64 and two in f32 for each of `storages`, equal ones once.
    ///
    /// # Errors
    /// Those of `CpuExecutor::new`.
    pub fn new(plan: &Plan, storages: &[Storage]) -> Result<Self> {
        let mut rounded: Vec<CpuExecutor<f32>> = Vec::new();
        for storage in storages {
            if rounded.iter().all(|known| known.storage() != *storage) {
                rounded.push(CpuExecutor::new(plan.clone(), *storage)?);
                rounded.push(CpuExecutor::new(plan.clone(), *storage)?.apart());
            }
        }
        Ok(Self { exact: CpuExecutor::new(plan.clone(), Storage::F32)?, rounded })
    }
    /// The first f32 oracle of `storage`; the first of all if there is none.
    pub fn rounded(&self, storage: Storage) -> usize {
        of_storage(&self.rounded, storage)[0]
    }
    /// Both f32 oracles of `storage`.
    pub fn both(&self, storage: Storage) -> [&CpuExecutor<f32>; 2] {
        of_storage(&self.rounded, storage).map(|i| &self.rounded[i])
    }
}

/// The places of the oracles of `storage`: the first, and the one with other roundings, if there is one.
pub fn of_storage<E: Executor>(rounded: &[E], storage: Storage) -> [usize; 2] {
    let first = rounded.iter().position(|oracle| oracle.storage() == storage).unwrap_or(0);
    let next = rounded.get(first + 1).filter(|next| next.storage() == storage);
    [first, first + usize::from(next.is_some())]
}

impl WeightSink for Oracles {
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        for rounded in &mut self.rounded {
            rounded.put(id, format, first_row, bytes.clone())?;
        }
        self.exact.put(id, format, first_row, bytes)
    }
}

/// What is known of a dump's numbers from the `dtype` of its metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// Storage that an oracle imitates.
    pub storage: Storage,
    /// Half the spacing of the stored numbers next to 1: the relative error of one rounding.
    pub rounding: f64,
    /// The oracle can round as this run did. It cannot where everything is stored in 16 bits, the residual stream too.
    pub imitated: bool,
    /// The name of the type, for people.
    pub name: &'static str,
}

/// The numbers of a dump whose metadata has this `dtype`; f32 where it says nothing.
///
/// # Errors
/// `Kind::Invalid` for types that are not known.
pub fn numbers(dtype: Option<&str>) -> Result<Numbers> {
    let of = |storage, bits: i32, imitated, name| Numbers { storage, rounding: 2f64.powi(-bits), imitated, name };
    match dtype {
        None | Some("f32" | "float32") => Ok(of(Storage::F32, 24, true, "f32")),
        Some("f16") => Ok(of(Storage::F16, 11, true, "f16")),
        // Names of torch are of runs that store everything so.
        Some("float16") => Ok(of(Storage::F16, 11, false, "float16")),
        Some("bf16" | "bfloat16") => Ok(of(Storage::F32, 8, false, "bfloat16")),
        Some("f64" | "float64") => Ok(of(Storage::F32, 53, true, "f64")),
        Some(other) => Err(crate::error::Error::invalid(
            "dtype",
            format!("a dump's metadata names the type `{other}`; known are f32, f16, bf16 and f64"),
        )),
    }
}

/// An estimated floor, relative to a row's length, for a value of layer `layer`: errors of layers add up as a random walk
/// does. In 32 bits and more the roundings of sums count too; 16 bits are a storage, and sums in it are taken in more.
///
/// The factors are measured on the golden models, where right runs in f32, f16 and bf16 come to 2.6 such floors at most.
pub fn estimate(numbers: Numbers, layer: usize) -> f64 {
    let roundings = if numbers.rounding < 1e-4 { 8.0 } else { 3.0 };
    numbers.rounding * roundings * (1.0 + layer as f64).sqrt()
}
