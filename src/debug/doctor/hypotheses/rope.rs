//! RoPE: the angles are measured from what went in and came out, frequency by frequency; then which numbers make them.

use crate::debug::doctor::Cause;
use crate::debug::doctor::case::{Case, Hypothesis};
use crate::debug::doctor::numbers::{least, snap};
use crate::debug::weight_source::WeightSource;
use crate::error::Result;
use crate::model::{RopeConfig, RopePairing, RopeScaling};
use crate::plan::edit::{ConfigEdit, Edit};
use crate::plan::rope::frequencies;
use crate::plan::{Op, ValueId};

/// How far an angle may be off, in radians: roundings of f32 numbers over a hundred positions.
const ANGLE: f64 = 1e-4;

/// What rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// (i, i + half of so many leading elements).
    Halves(usize),
    /// (2i, 2i + 1) of so many leading elements.
    Neighbours(usize),
}

impl Pairs {
    /// Those of `rope`.
    fn of(rope: &RopeConfig) -> Self {
        Self::with(rope.pairing, rope.rotary_dim)
    }
    fn with(pairing: RopePairing, dim: usize) -> Self {
        match pairing {
            RopePairing::Halves => Self::Halves(dim),
            RopePairing::Neighbours => Self::Neighbours(dim),
        }
    }
    /// The elements of a pair.
    fn place(self, i: usize) -> (usize, usize) {
        match self {
            Self::Halves(dim) => (i, i + dim / 2),
            Self::Neighbours(_) => (2 * i, 2 * i + 1),
        }
    }
    fn count(self) -> usize {
        match self {
            Self::Halves(dim) | Self::Neighbours(dim) => dim / 2,
        }
    }
}

/// Rotations as measured.
#[derive(Debug, Clone)]
struct Measured {
    /// Radians per position, one per pair.
    turns: Vec<f64>,
    /// Position that the first token stands at.
    start: f64,
    /// Factor on cos and sin.
    factor: f64,
    /// Tokens that were seen.
    tokens: usize,
}

/// Rows of heads before and after.
struct Rotated {
    x: Vec<f32>,
    y: Vec<f32>,
    width: usize,
    head_dim: usize,
}

impl Rotated {
    fn read<S: WeightSource>(case: &Case<'_, S>, id: ValueId) -> Result<Option<(Self, usize)>> {
        let node = case.plan.node(id);
        let Op::Rope { rope, head_dim, .. } = node.op else { return Ok(None) };
        let (Some(x), Some(y)) = (case.input(id, 0)?, case.value(node.at)?) else { return Ok(None) };
        Ok(Some((Self { x: x.data, y: y.data, width: node.width, head_dim }, rope)))
    }
    /// How far `y` is from what `predicted` gives of a head and its position, relative to `y`.
    fn off(&self, predicted: impl Fn(&[f32], usize) -> Vec<f64>) -> f64 {
        let (mut gap, mut size) = (0.0, 0.0);
        for (t, (x, y)) in self.x.chunks_exact(self.width).zip(self.y.chunks_exact(self.width)).enumerate() {
            for (x, y) in x.chunks_exact(self.head_dim).zip(y.chunks_exact(self.head_dim)) {
                for (p, y) in predicted(x, t).iter().zip(y) {
                    (gap, size) = (gap + (p - f64::from(*y)).powi(2), size + f64::from(*y).powi(2));
                }
            }
        }
        (gap / size.max(f64::MIN_POSITIVE)).sqrt()
    }
    fn is_unchanged(&self) -> bool {
        self.off(|x, _| x.iter().map(|x| f64::from(*x)).collect()) < 1e-7
    }
    /// The rotations of these pairs; `None` where what came out is no rotation of them.
    fn measure(&self, pairs: Pairs) -> Option<Measured> {
        let count = pairs.count();
        let tokens = self.x.len() / self.width;
        // By pair and token, Σ conj(before)·after and Σ |before|² over heads.
        let (mut turned, mut lengths) = (vec![vec![(0.0, 0.0); tokens]; count], 0.0);
        let mut along = 0.0;
        for (t, (x, y)) in self.x.chunks_exact(self.width).zip(self.y.chunks_exact(self.width)).enumerate() {
            for (x, y) in x.chunks_exact(self.head_dim).zip(y.chunks_exact(self.head_dim)) {
                for (i, turned) in turned.iter_mut().enumerate() {
                    let (a, b) = pairs.place(i);
                    let (xa, xb, ya, yb) = (f64::from(x[a]), f64::from(x[b]), f64::from(y[a]), f64::from(y[b]));
                    turned[t].0 += xa * ya + xb * yb;
                    turned[t].1 += xa * yb - xb * ya;
                    lengths += xa * xa + xb * xb;
                }
            }
        }
        turned.iter().flatten().for_each(|(c, s)| along += (c * c + s * s).sqrt());
        let factor = along / lengths;
        let angles: Vec<Vec<f64>> = turned.iter().map(|of| of.iter().map(|(c, s)| libm::atan2(*s, *c)).collect()).collect();
        let turns: Vec<f64> = angles.iter().map(|angles| turn(angles)).collect();
        let fastest = turns.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i)?;
        let start = angles[fastest][0] / turns[fastest];
        let measured = Measured { start: if start.abs() < 1e-4 { 0.0 } else { start }, turns, factor, tokens };
        (self.off(|x, t| measured.rotate(pairs, x, t)) < 3e-6).then_some(measured)
    }
}

/// Radians per position of a pair whose angles wrap around.
fn turn(angles: &[f64]) -> f64 {
    let wrapped = |x: f64| x - (x / std::f64::consts::TAU).round() * std::f64::consts::TAU;
    let from = angles[0];
    let mut turn = angles.get(1).map_or(0.0, |a| wrapped(a - from));
    for (t, angle) in angles.iter().enumerate().skip(2) {
        turn += wrapped(angle - from - turn * t as f64) / t as f64;
    }
    turn
}

impl Measured {
    fn rotate(&self, pairs: Pairs, x: &[f32], t: usize) -> Vec<f64> {
        let mut y: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for (i, turn) in self.turns.iter().enumerate() {
            let (a, b) = pairs.place(i);
            let angle = turn * (t as f64 + self.start);
            let (c, s) = (libm::cos(angle) * self.factor, libm::sin(angle) * self.factor);
            (y[a], y[b]) = (f64::from(x[a]) * c - f64::from(x[b]) * s, f64::from(x[b]) * c + f64::from(x[a]) * s);
        }
        y
    }
    /// The largest difference of an angle from those of `rope`, over all tokens; what is left of the factor counts too.
    fn off(&self, rope: &RopeConfig, long: bool) -> f64 {
        let (known, factor) = frequencies(rope, long);
        if known.len() != self.turns.len() {
            return f64::INFINITY;
        }
        let reach = self.tokens.saturating_sub(1) as f64;
        let apart = known.iter().zip(&self.turns).map(|(k, m)| (f64::from(*k) - m).abs() * reach).fold(0.0, f64::max);
        apart.max((factor - self.factor).abs() * 10.0)
    }
    /// Leading pairs that are rotated, where there are others.
    fn rotated(&self) -> Option<usize> {
        let rotated = self.turns.iter().take_while(|turn| turn.abs() * self.tokens as f64 > ANGLE).count();
        let still = self.turns[rotated..].iter().all(|turn| turn.abs() * self.tokens as f64 <= ANGLE);
        (still && rotated > 0 && rotated < self.turns.len()).then_some(rotated)
    }
    fn is(&self, rope: &RopeConfig, long: bool) -> bool {
        self.off(rope, long) < ANGLE
    }
}

/// Hypotheses for the RoPE of `case`.
pub async fn hypotheses<S: WeightSource>(case: &Case<'_, S>) -> Result<Vec<Hypothesis>> {
    let Some((rotated, index)) = Rotated::read(case, case.id)? else { return Ok(Vec::new()) };
    let rope = &case.config.ropes[index];
    let long = case.plan.is_long(case.tokens);
    if rotated.is_unchanged() {
        return layers(case, None, "the reference does not rotate there");
    }
    let mut found = Vec::new();
    if let Some(measured) = rotated.measure(Pairs::of(rope)) {
        found.extend(numbers(case, &measured, index, long)?);
    }
    if found.is_empty() {
        for dim in (2..=rotated.head_dim).step_by(2).filter(|dim| *dim != rope.rotary_dim) {
            let other = RopeConfig { rotary_dim: dim, ..rope.clone() };
            if rotated.measure(Pairs::with(rope.pairing, dim)).is_some_and(|measured| measured.is(&other, long)) {
                let why =
                    format!("the reference rotates {dim} of the {} elements of a head, and not {}", rotated.head_dim, rope.rotary_dim);
                found.push(Hypothesis::new(Cause::PartialRotary, vec![Edit::Config(ConfigEdit::RotaryDim(index, dim))], why));
            }
        }
    }
    let (halves, neighbours) = ("(i, i + half)", "(2i, 2i + 1)");
    let (other, there, here) = match rope.pairing {
        RopePairing::Halves => (RopePairing::Neighbours, neighbours, halves),
        RopePairing::Neighbours => (RopePairing::Halves, halves, neighbours),
    };
    if let Some(measured) = rotated.measure(Pairs::with(other, rope.rotary_dim)).filter(|_| found.is_empty())
        && measured.is(rope, long)
    {
        let text = format!("the reference rotates the pairs {there} of each head, and not {here}");
        found.push(Hypothesis::shown(Cause::RopePairing, text));
    }
    Ok(found)
}

/// Another RoPE of the model, or none, on every layer that shows it.
fn layers<S: WeightSource>(case: &Case<'_, S>, to: Option<usize>, why: &str) -> Result<Vec<Hypothesis>> {
    let mut layers = Vec::new();
    let long = case.plan.is_long(case.tokens);
    for id in case.nodes(|node| matches!(node.op, Op::Rope { .. })) {
        let Some((rotated, of)) = Rotated::read(case, id)?.filter(|_| case.is_wrong(id)) else { continue };
        let is = match to {
            None => rotated.is_unchanged(),
            Some(to) => of != to && rotated.measure(Pairs::of(&case.config.ropes[to])).is_some_and(|m| m.is(&case.config.ropes[to], long)),
        };
        layers.extend(case.plan.node(id).at.layer.filter(|_| is));
    }
    layers.dedup();
    let edits = vec![Edit::Config(ConfigEdit::LayerRope(layers.clone(), to))];
    Ok(vec![Hypothesis::new(Cause::RopeLayers, edits, format!("{why}, in layers {layers:?}"))])
}

/// Which numbers give the measured angles.
fn numbers<S: WeightSource>(case: &Case<'_, S>, measured: &Measured, index: usize, long: bool) -> Result<Vec<Hypothesis>> {
    let rope = &case.config.ropes[index];
    if measured.start != 0.0 {
        let shift = Measured { start: 0.0, ..measured.clone() };
        let text = format!("positions count from {:.3} in the reference, and from 0 here", measured.start);
        return Ok(if shift.is(rope, long) { vec![Hypothesis::shown(Cause::RopePosition, text)] } else { Vec::new() });
    }
    if let Some(other) = (0..case.config.ropes.len()).find(|other| *other != index && measured.is(&case.config.ropes[*other], long)) {
        return layers(
            case,
            Some(other),
            &format!("the reference rotates with the other RoPE of this model, of base {}", case.config.ropes[other].theta),
        );
    }
    let mut found = Vec::new();
    // The base first: the other numbers as they are.
    let of_base = |theta: f64| RopeConfig { theta, ..rope.clone() };
    if let Some(theta) = solved(measured, long, 1.5, 1e9, of_base) {
        let why = format!("the angles are those of base {theta}, and not {}", rope.theta);
        found.push(Hypothesis::new(Cause::RopeBase, vec![Edit::Config(ConfigEdit::Theta(index, theta))], why));
        return Ok(found);
    }
    let base = (measured.factor - 1.0).abs() < ANGLE;
    let mut scaled = |scaling: RopeScaling, why: String, rank: u8| {
        let edit = Edit::Config(ConfigEdit::Scaling(index, scaling));
        found.push(Hypothesis::new(Cause::RopeScaling, vec![edit], why).rank(rank));
    };
    let with = |scaling: RopeScaling| RopeConfig { scaling, ..rope.clone() };
    if base && measured.is(&with(RopeScaling::None), long) {
        scaled(RopeScaling::None, "the angles are those of the plain frequencies: the reference stretches nothing".into(), 1);
        return Ok(found);
    }
    if let Some(rotated) = measured.rotated() {
        let of = |factor: f64| RopeScaling::Proportional { rotated, factor };
        if let Some(factor) = solved(measured, long, 0.05, 1e4, |factor| with(of(factor))) {
            scaled(of(factor), format!("only the first {rotated} pairs of a head are rotated, their frequencies divided by {factor}"), 1);
            return Ok(found);
        }
    }
    let linear = |factor: f64| with(RopeScaling::Linear { factor });
    if let Some(factor) = solved(measured, long, 0.05, 1e4, linear) {
        scaled(RopeScaling::Linear { factor }, format!("every frequency is divided by {factor}"), 1);
        return Ok(found);
    }
    for (scaling, why) in varied(measured, rope, long) {
        scaled(scaling, why, 1);
    }
    if found.is_empty() {
        // As a file would hold them, and as they were measured.
        found.extend(listed(measured, rope, index, long, 1e-5));
        found.extend(listed(measured, rope, index, long, 0.0).map(|one| one.rank(5)));
    }
    Ok(found)
}

/// The number between `low` and `high` with which `rope` has the measured angles, as a file would hold it.
fn solved(measured: &Measured, long: bool, low: f64, high: f64, rope: impl Fn(f64) -> RopeConfig) -> Option<f64> {
    let off = |x: f64| {
        let (known, _) = frequencies(&rope(x), long);
        known.iter().zip(&measured.turns).map(|(k, m)| (f64::from(*k) - m).powi(2)).sum::<f64>()
    };
    let x = least(low, high, off);
    // The shortest number that is as good as the best.
    let best = measured.off(&rope(x), long);
    let tolerances = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
    let short = tolerances.into_iter().map(|tolerance| snap(x, tolerance)).find(|x| measured.off(&rope(*x), long) <= 1.5 * best + 1e-6);
    let x = short.unwrap_or(x);
    measured.is(&rope(x), long).then_some(x)
}

/// One number of the scaling that the model has, changed.
fn varied(measured: &Measured, rope: &RopeConfig, long: bool) -> Vec<(RopeScaling, String)> {
    let mut found = Vec::new();
    if let RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, .. } = rope.scaling {
        let attention_factor = measured.factor;
        let other = RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate: !truncate };
        if measured.is(&RopeConfig { scaling: other.clone(), ..rope.clone() }, long) {
            let ends = if truncate { "are not rounded" } else { "are rounded" };
            return vec![(other, format!("the ends of the range that is stretched {ends} in the reference (truncate)"))];
        }
    }
    let mut tried = |name: &str, low: f64, high: f64, scaling: &dyn Fn(f64) -> RopeScaling| {
        let of = |x: f64| RopeConfig { scaling: scaling(x), ..rope.clone() };
        if let Some(x) = solved(measured, long, low, high, of) {
            found.push((scaling(x), format!("the angles are those of {name} {x}")));
        }
    };
    match rope.scaling.clone() {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let of = move |factor, low_freq_factor, high_freq_factor, original: f64| RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions: original.round().max(1.0) as usize,
            };
            let original = original_max_positions as f64;
            tried("factor", 1.0, 1e3, &|x| of(x, low_freq_factor, high_freq_factor, original));
            tried("low_freq_factor", 0.01, high_freq_factor * 0.999, &|x| of(factor, x, high_freq_factor, original));
            tried("high_freq_factor", low_freq_factor * 1.001, 1e3, &|x| of(factor, low_freq_factor, x, original));
            tried("original_max_position_embeddings", 1.0, 1e6, &|x| of(factor, low_freq_factor, high_freq_factor, x));
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, attention_factor, truncate } => {
            let of = move |factor, beta_fast, beta_slow, original: f64| RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_positions: original.round().max(1.0) as usize,
                attention_factor: measured.factor,
                truncate,
            };
            let original = original_max_positions as f64;
            if (measured.factor - attention_factor).abs() > 1e-6 {
                tried("factor", 1.0, 1e3, &|x| of(x, beta_fast, beta_slow, original));
            }
            tried("factor", 1.0, 1e3, &|x| of(x, beta_fast, beta_slow, original));
            tried("original_max_position_embeddings", 1.0, 1e6, &|x| of(factor, beta_fast, beta_slow, x));
            tried("beta_fast", 0.1, 1e4, &|x| of(factor, x, beta_slow, original));
            tried("beta_slow", 0.01, 1e3, &|x| of(factor, beta_fast, x, original));
        }
        _ => {}
    }
    found
}

/// Divisors of a list, one per frequency: of those that the model has, or as a list where it has none.
fn listed(measured: &Measured, rope: &RopeConfig, index: usize, long: bool, tolerance: f64) -> Option<Hypothesis> {
    let plain = frequencies(&RopeConfig { scaling: RopeScaling::None, ..rope.clone() }, false).0;
    let divisors: Vec<f64> = plain.iter().zip(&measured.turns).map(|(k, m)| snap(f64::from(*k) / m, tolerance)).collect();
    let attention_factor = snap(measured.factor, if tolerance > 0.0 { 1e-6 } else { 1e-8 });
    if divisors.len() != rope.rotary_dim / 2 || divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
        return None;
    }
    let text = format!("the plain frequencies are divided by {divisors:?}, and cos and sin multiplied by {attention_factor}");
    let scaling = match rope.scaling.clone() {
        // The list that the prompt does not use is as it was.
        RopeScaling::LongRope { short_factor, original_max_positions, .. } if long => {
            RopeScaling::LongRope { short_factor, long_factor: divisors, original_max_positions, attention_factor }
        }
        RopeScaling::LongRope { long_factor, original_max_positions, .. } => {
            RopeScaling::LongRope { short_factor: divisors, long_factor, original_max_positions, attention_factor }
        }
        _ => RopeScaling::LongRope {
            short_factor: divisors.clone(),
            long_factor: divisors,
            original_max_positions: usize::MAX,
            attention_factor,
        },
    };
    Some(Hypothesis::new(Cause::RopeScaling, vec![Edit::Config(ConfigEdit::Scaling(index, scaling))], text).rank(4))
}
