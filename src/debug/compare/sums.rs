//! What is kept of two values while their rows go by: sums per row and per dim. A value of any size leaves some numbers
//! per row and per dim; judging them is `judge`'s.

use crate::debug::sketch::{SIGNS, square_distance};

/// Two rows of one value at one place.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowSums {
    /// Absolute position of the token.
    pub token: usize,
    /// Head, for scores and probabilities.
    pub head: Option<usize>,
    /// Elements that can differ: dims, or the positions that the token sees.
    pub elements: usize,
    /// Σa².
    pub a2: f64,
    /// Σb².
    pub b2: f64,
    /// Σab.
    pub ab: f64,
    /// Σ(a − b)²; infinite where one side has a non-finite element and the other does not have the same.
    pub d2: f64,
    /// Square of the floor, if it was measured or brought along.
    pub floor2: f64,
    /// Largest magnitude of both.
    pub top: f32,
    /// Largest |a − b|.
    pub gap: f32,
    /// Its element.
    pub dim: usize,
    /// What A and B have there.
    pub values: [f32; 2],
    /// Elements that are not finite, and the same on both sides.
    pub odd: usize,
    /// Estimated from a sketch.
    pub sketch: bool,
}

/// One dim of all tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DimSums {
    /// Σ(a − b)² over tokens.
    pub d2: f64,
    /// Σa² over tokens.
    pub a2: f64,
    /// Σ of squared floors over tokens, where they were measured per element.
    pub floor2: f64,
    /// Largest |a − b|.
    pub gap: f32,
    /// Index into `Sums::rows` of its row.
    pub row: usize,
}

/// What is kept of a value.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    /// In the order in which they came.
    pub rows: Vec<RowSums>,
    /// Per dim, for values laid out in rows.
    pub dims: Vec<DimSums>,
}

/// Where a row is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub token: usize,
    pub head: Option<usize>,
    pub elements: usize,
}

/// What the oracles have in a row: f64, f32 with A's storage, f32 with B's.
pub(super) type Exact<'a> = [&'a [f32]; 3];

impl Sums {
    /// Takes in a row of A and of B of one length. `exact` are the oracles' rows; `floor` is the row's floor where that
    /// is known.
    pub fn row(&mut self, place: Place, a: &[f32], b: &[f32], exact: Option<Exact<'_>>, floor: Option<f64>) {
        let Place { token, head, elements } = place;
        let index = self.rows.len();
        if head.is_none() && self.dims.len() < a.len() {
            self.dims.resize(a.len(), DimSums::default());
        }
        let mut row = RowSums { token, head, elements, floor2: floor.map_or(0.0, |f| f * f), ..RowSums::default() };
        let none = &mut [][..];
        let dims = if head.is_none() { &mut self.dims[..a.len()] } else { none };
        add(&mut row, index, a, b, dims);
        if let Some(exact) = exact {
            row.floor2 = floors(exact, dims);
        }
        dims.iter_mut().zip(a).for_each(|(dim, a)| dim.a2 += if a.is_finite() { f64::from(*a).powi(2) } else { 0.0 });
        self.rows.push(row);
    }
    /// Takes in a row of which at least one side is a sketch. `top` is the largest magnitude, where known; `odd` says
    /// that the sides' counts of non-finite elements differ.
    pub fn sketched(&mut self, place: Place, a: &[f64; SIGNS], b: &[f64; SIGNS], top: Option<f32>, floor: Option<f64>, odd: bool) {
        let mean = |f: &dyn Fn(usize) -> f64| (0..SIGNS).map(f).sum::<f64>() / SIGNS as f64;
        let (a2, b2) = (mean(&|j| a[j] * a[j]), mean(&|j| b[j] * b[j]));
        // Sums are stored as f32, which is a rounding of the file and not of the model.
        let stored = 2f64.powi(-24).powi(2) * (a2 + b2);
        self.rows.push(RowSums {
            token: place.token,
            head: place.head,
            elements: place.elements,
            a2,
            b2,
            ab: mean(&|j| a[j] * b[j]),
            d2: if odd { f64::INFINITY } else { (square_distance(a, b) - stored).max(0.0) },
            floor2: floor.map_or(0.0, |f| f * f),
            top: top.unwrap_or_else(|| (a2.max(b2) / SIGNS as f64).sqrt() as f32),
            sketch: true,
            ..RowSums::default()
        });
    }
}

/// Adds a row's elements to its own sums and to the dims'.
fn add(row: &mut RowSums, index: usize, a: &[f32], b: &[f32], dims: &mut [DimSums]) {
    let (mut a2, mut b2, mut ab, mut d2) = ([0.0f64; 4], [0.0f64; 4], [0.0f64; 4], [0.0f64; 4]);
    let (mut top, mut gap) = ([0f32; 4], [0f32; 4]);
    let whole = a.len() / 4 * 4;
    let mut one = |lane: usize, x: f32, y: f32| {
        let (p, q) = (f64::from(x), f64::from(y));
        let d = p - q;
        a2[lane] += p * p;
        b2[lane] += q * q;
        ab[lane] += p * q;
        d2[lane] += d * d;
        let distance = (x - y).abs();
        let size = if x.abs() > y.abs() { x.abs() } else { y.abs() };
        top[lane] = if size > top[lane] { size } else { top[lane] };
        gap[lane] = if distance > gap[lane] { distance } else { gap[lane] };
    };
    for (a, b) in a[..whole].as_chunks::<4>().0.iter().zip(b[..whole].as_chunks::<4>().0) {
        for lane in 0..4 {
            one(lane, a[lane], b[lane]);
        }
    }
    a[whole..].iter().zip(&b[whole..]).for_each(|(x, y)| one(0, *x, *y));
    (row.a2, row.b2, row.ab, row.d2) = (a2.iter().sum(), b2.iter().sum(), ab.iter().sum(), d2.iter().sum());
    (row.top, row.gap) = (top.iter().fold(0f32, |m, x| m.max(*x)), gap.iter().fold(0f32, |m, x| m.max(*x)));
    if !(row.a2 + row.b2).is_finite() {
        return add_odd(row, index, a, b, dims);
    }
    if row.gap == 0.0 && row.d2 == 0.0 {
        return;
    }
    row.dim = a.iter().zip(b).position(|(x, y)| (x - y).abs() >= row.gap).unwrap_or(0);
    row.values = [a[row.dim], b[row.dim]];
    for (dim, (x, y)) in dims.iter_mut().zip(a.iter().zip(b)) {
        let d = f64::from(*x) - f64::from(*y);
        dim.d2 += d * d;
        let distance = (x - y).abs();
        if distance > dim.gap {
            (dim.gap, dim.row) = (distance, index);
        }
    }
}

/// As `add`, for rows with elements that are not finite: the same ones on both sides are counted and left out; others
/// are infinitely far apart.
fn add_odd(row: &mut RowSums, index: usize, a: &[f32], b: &[f32], dims: &mut [DimSums]) {
    (row.a2, row.b2, row.ab, row.d2, row.top, row.gap) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        let d = if x.is_finite() && y.is_finite() {
            let (p, q) = (f64::from(*x), f64::from(*y));
            row.a2 += p * p;
            row.b2 += q * q;
            row.ab += p * q;
            row.top = row.top.max(x.abs()).max(y.abs());
            p - q
        } else if x == y || (x.is_nan() && y.is_nan()) {
            row.odd += 1;
            0.0
        } else {
            f64::INFINITY
        };
        row.d2 += d * d;
        let distance = d.abs() as f32;
        if distance > row.gap {
            (row.gap, row.dim, row.values) = (distance, i, [*x, *y]);
        }
        if let Some(dim) = dims.get_mut(i) {
            dim.d2 += d * d;
            if distance > dim.gap {
                (dim.gap, dim.row) = (distance, index);
            }
        }
    }
}

/// The squared floor of a row from the oracles' rows, added to the dims' floors too. Both sides' roundings add up as
/// independent errors do.
fn floors([exact, a, b]: Exact<'_>, dims: &mut [DimSums]) -> f64 {
    let square = |x: f32, y: f32| {
        let d = f64::from(x) - f64::from(y);
        // What overflows in f32 alone has no floor.
        if d.is_finite() { d * d } else { 0.0 }
    };
    let mut total = 0.0;
    for (i, ((exact, a), b)) in exact.iter().zip(a).zip(b).enumerate() {
        let floor2 = square(*a, *exact) + square(*b, *exact);
        total += floor2;
        if let Some(dim) = dims.get_mut(i) {
            dim.floor2 += floor2;
        }
    }
    total
}
