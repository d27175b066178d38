//! From sums to a verdict: every row, and every dim over all tokens, in units of its rounding floor.
//!
//! The floor of a row is the measured one of this row, but not below what its value has on the whole (a row's own
//! measure is one draw of chance) nor below one unit in the last place. Of many rows or dims the worst is further out
//! than one is: of R normal vectors of n elements the longest has at most √n + √(2 ln R), so that is allowed too. In a
//! free run n counts as 3 at most: an inherited error moves a whole row at once. (With n as it is, right runs of the
//! golden models were up to 4.3 floors off, with 3 up to 2.6; single ops, whose elements err by themselves, 2.2.)

use super::sums::{DimSums, RowSums, Sums};
use super::{Heads, Mode, StageLine};
use crate::debug::floor::{ALLOWED, FEW, times, ulp};
use crate::debug::sketch::SPREAD;
use crate::plan::{At, Stage};

/// Elements of a row that err by themselves in a free run.
const INHERITED: usize = 3;

/// Where the floors of a value come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Basis {
    /// In the sums: from oracles, or from the dumps.
    Known,
    /// This fraction of a row's length.
    Estimated(f64),
}

/// The line of a value.
pub(super) fn judge(at: At, sums: &Sums, basis: Basis, heads: Heads, mode: Mode) -> StageLine {
    let most = if mode == Mode::Cumulative { INHERITED } else { usize::MAX };
    // Scores are sums that cancel; probabilities, like all else, are off in proportion to their size.
    let floors = row_floors(sums, basis, at.stage == Stage::AttnScores);
    let count = sums.rows.len().max(1) as f64;
    let mut line = StageLine { at, rows: sums.rows.len(), estimated: matches!(basis, Basis::Estimated(_)), ..StageLine::new(at) };
    let (mut a2, mut b2, mut ab, mut d2, mut floor2) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let mut worst = None;
    for (row, floor) in sums.rows.iter().zip(&floors) {
        (a2, b2, ab, d2, floor2) = (a2 + row.a2, b2 + row.b2, ab + row.ab, d2 + row.d2, floor2 + floor * floor);
        let chance = chance(count, free(at.stage, row.elements).min(most)) * if row.sketch { SPREAD } else { 1.0 };
        let ratio = times(row.d2.sqrt(), floor * chance);
        line.max_abs = line.max_abs.max(row.gap);
        line.odd += row.odd;
        line.sketch |= row.sketch;
        line.tokens.resize(line.tokens.len().max(row.token + 1), 0.0);
        line.tokens[row.token] = line.tokens[row.token].max(ratio as f32);
        if ratio > line.times_floor {
            (line.times_floor, worst) = (ratio, Some((row, row.dim)));
        }
    }
    if let Some((dim, ratio)) = worst_dim(sums, &floors, most)
        && ratio > line.times_floor
    {
        (line.times_floor, line.one_dim) = (ratio, true);
        worst = sums.rows.get(sums.dims[dim].row).map(|row| (row, dim));
    }
    line.relative_l2 = if d2 == 0.0 { 0.0 } else { (d2 / a2).sqrt() };
    line.floor = if floor2 == 0.0 { 0.0 } else { (floor2 / a2).sqrt() };
    line.cosine = if a2 == b2 && d2 == 0.0 { 1.0 } else { ab / (a2 * b2).sqrt() };
    line.diverged = line.times_floor > ALLOWED;
    if let Some((row, dim)) = worst {
        line.token = Some(row.token);
        line.dim = (!row.sketch).then_some(dim);
        line.head = row.head.or_else(|| heads.head(at.stage, dim).filter(|_| !row.sketch));
        line.values = (!row.sketch && row.dim == dim).then_some(row.values);
    }
    line
}

/// Elements of a row that can differ by themselves: probabilities add up to 1.
fn free(stage: Stage, elements: usize) -> usize {
    if stage == Stage::AttnProbs { elements.saturating_sub(1).max(1) } else { elements }
}

/// How much further out than one the worst of `count` vectors of `elements` elements is.
fn chance(count: f64, elements: usize) -> f64 {
    1.0 + (2.0 * count.ln() / elements.max(1) as f64).sqrt()
}

/// The floor of every row.
fn row_floors(sums: &Sums, basis: Basis, scores: bool) -> Vec<f64> {
    if let Basis::Estimated(relative) = basis {
        // A row's length may be small by cancellation: it is not held to less than the value's ordinary rows.
        let mean = |f: &dyn Fn(&RowSums) -> f64| sums.rows.iter().map(f).sum::<f64>() / sums.rows.len().max(1) as f64;
        let (length2, elements) = (mean(&|r| r.a2.max(r.b2)), mean(&|r| r.elements as f64));
        let of = |row: &RowSums| {
            let usual = length2 * if scores { row.elements as f64 / elements.max(1.0) } else { 1.0 };
            (relative * row.a2.max(row.b2).max(usual).sqrt()).max(ulp(row.top))
        };
        return sums.rows.iter().map(of).collect();
    }
    // Of rows, the floor follows their lengths; of scores, which are sums that cancel, and of few numbers, the count of elements.
    let counted = scores || sums.rows.iter().all(|row| row.elements < FEW);
    let weight = |row: &RowSums| if counted { row.elements as f64 } else { row.a2 };
    let mut pooled: Vec<(f64, f64)> = Vec::new();
    for row in &sums.rows {
        let head = row.head.unwrap_or(0);
        pooled.resize(pooled.len().max(head + 1), (0.0, 0.0));
        pooled[head] = (pooled[head].0 + row.floor2, pooled[head].1 + weight(row));
    }
    let of = |row: &RowSums| {
        let (floor2, total) = pooled[row.head.unwrap_or(0)];
        let usual = if total > 0.0 { floor2 / total * weight(row) } else { 0.0 };
        row.floor2.max(usual).sqrt().max(ulp(row.top))
    };
    sums.rows.iter().map(of).collect()
}

/// The dim that is furthest off over all tokens, in floors.
fn worst_dim(sums: &Sums, floors: &[f64], most: usize) -> Option<(usize, f64)> {
    let dims = &sums.dims;
    if dims.is_empty() || sums.rows.is_empty() {
        return None;
    }
    let total: f64 = floors.iter().map(|f| f * f).sum();
    let even = total / dims.len() as f64;
    let length: f64 = dims.iter().map(|d| d.a2).sum();
    let chance = chance(dims.len() as f64, sums.rows.len().min(most));
    let ratio = |dim: &DimSums| {
        // Its own measure where there is one, its share of the rows' floors by its size, or an even share.
        let share = if length > 0.0 { total * dim.a2 / length } else { 0.0 };
        times(dim.d2.sqrt(), dim.floor2.max(share).max(even).sqrt() * chance)
    };
    dims.iter().map(ratio).enumerate().fold(None, |worst: Option<(usize, f64)>, next| match worst {
        Some(worst) if worst.1 >= next.1 => Some(worst),
        _ => Some(next),
    })
}
