//! Fits of s·q + o with whole q from 0 to a top and o ≤ 0: one group, or a super-block of groups whose s and o are small whole
//! multiples of two numbers.

use super::fit::{Moments, Scaled, Totals, inverse, limit, moments, round, totals};
use half::f16;

/// Scale and offset of a group.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Moments of the levels nearest to `x`.
#[inline(always)]
fn assign<const N: usize>(x: &[f32; N], w: &[f32; N], line: Line, top: f32) -> Moments {
    let inv = inverse(line.scale);
    moments(x, w, inv, -line.offset * inv, |v| round(limit(v, 0.0, top)))
}

/// The line of least error for given levels, and that error.
fn solve(m: Moments, t: Totals, offset_limit: f32) -> (Line, f32) {
    let det = m.wqq * t.w - m.wq * m.wq;
    let mut line = Line { scale: 0.0, offset: t.wx / t.w };
    if det > 1e-7 * m.wqq * t.w {
        line.scale = (t.w * m.wqx - m.wq * t.wx) / det;
        line.offset = (t.wx - line.scale * m.wq) / t.w;
    }
    if line.offset > offset_limit {
        line.offset = offset_limit;
        line.scale = if m.wqq > 0.0 { (m.wqx - line.offset * m.wq) / m.wqq } else { 0.0 };
    }
    (line, error(m, t, line))
}

/// The weighted squared error of levels with a line.
fn error(m: Moments, t: Totals, line: Line) -> f32 {
    let (s, o) = (line.scale, line.offset);
    t.wxx + s * (s * m.wqq - 2.0 * m.wqx) + o * (o * t.w - 2.0 * t.wx + 2.0 * s * m.wq)
}

/// How far levels reach beyond the elements of a group, at either end, when a search for its line starts: in steps.
const REACH: [f32; 3] = [-0.2, 0.2, 0.6];

/// The best line found for a group, with an offset of at most `offset_limit`, from assignments in `rounds`.
pub(super) fn line<const N: usize>(x: &[f32; N], w: &[f32; N], top: f32, offset_limit: f32, rounds: usize) -> Line {
    let t = totals(x, w);
    let low = x.iter().fold(offset_limit, |m: f32, v| if *v < m { *v } else { m });
    let high = x.iter().fold(low, |m: f32, v| if *v > m { *v } else { m });
    let mut best = (Line { scale: 0.0, offset: low }, f32::INFINITY);
    for (below, above) in REACH.iter().flat_map(|below| REACH.map(|above| (below, above))) {
        let scale = (high - low) / (top + below + above);
        let mut line = Line { scale, offset: low + below * scale };
        for _ in 0..rounds {
            let found = solve(assign(x, w, line, top), t, offset_limit);
            line = found.0;
            if found.1 < best.1 {
                best = found;
            }
        }
    }
    best.0
}

/// A super-block: `G` groups of `N` elements d·s·q − dmin·m.
pub(super) struct Block<const G: usize, const N: usize> {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) s: [u8; G],
    pub(super) m: [u8; G],
    pub(super) q: [[u8; N]; G],
}

/// What a search may try.
pub(super) struct Effort {
    /// Multiples of d tried on either side.
    pub(super) around: i32,
    /// Rounds between groups and d, dmin.
    pub(super) turns: usize,
}

/// A group's choice, its moments and its error.
#[derive(Clone, Copy, Default)]
struct Choice {
    s: f32,
    m: f32,
    moments: Moments,
    error: f32,
}

/// The best multiples found for a group, near those of `near`, whose moments may be of other levels.
fn choose<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    t: Totals,
    (d, dmin): (f32, f32),
    near: Choice,
    top: f32,
    most: f32,
    around: i32,
) -> Choice {
    let mut best = Choice { error: f32::INFINITY, ..near };
    let inv = inverse(dmin);
    for step in -around..=around {
        let s = near.s + step as f32;
        if s < 0.0 || s > most {
            continue;
        }
        let (mut moments, mut last) = (near.moments, -1.0);
        for _ in 0..3 {
            let offset = (t.wx - d * s * moments.wq) / t.w;
            let m = round(limit(-offset * inv, 0.0, most));
            if m == last {
                break;
            }
            last = m;
            let line = Line { scale: d * s, offset: -dmin * m };
            moments = assign(x, w, line, top);
            let error = error(moments, t, line);
            if error < best.error {
                best = Choice { s, m, moments, error };
            }
        }
    }
    best
}

/// The best super-block found; s and m go to `most`, q to `top`. Offsets of one super-block have one sign. They are negative or
/// 0, except where a group is all positive: then the mirrored elements are tried too, and d and dmin have minus signs.
pub(super) fn block<const G: usize, const N: usize>(values: &Scaled<256>, top: f32, most: f32, effort: &Effort) -> Block<G, N> {
    let (mut found, error) = search(values, top, most, effort);
    if values.x.as_chunks::<N>().0.iter().any(|x| x.iter().all(|x| *x > 0.0)) {
        let (mirrored, mirrored_error) = search(&values.mirrored(), top, most, effort);
        if mirrored_error < error {
            found = Block { d: -mirrored.d, dmin: -mirrored.dmin, ..mirrored };
        }
    }
    found
}

/// The best super-block found, and its error.
fn search<const G: usize, const N: usize>(values: &Scaled<256>, top: f32, most: f32, effort: &Effort) -> (Block<G, N>, f32) {
    let (x, w) = (values.x.as_chunks::<N>().0, values.w.as_chunks::<N>().0);
    let mut t = [Totals { w: 0.0, wx: 0.0, wxx: 0.0 }; G];
    let mut lines = [Line { scale: 0.0, offset: 0.0 }; G];
    let (mut scale, mut depth) = (0.0f32, 0.0f32);
    for g in 0..G {
        t[g] = totals(&x[g], &w[g]);
        lines[g] = line(&x[g], &w[g], top, 0.0, 1);
        scale = scale.max(lines[g].scale);
        depth = depth.max(-lines[g].offset);
    }
    let (mut d, mut dmin) = (values.half_outward(scale / most), values.half_outward(depth / most));
    let mut now = [Choice::default(); G];
    for g in 0..G {
        let s = round(limit(lines[g].scale * inverse(d.1), 0.0, most));
        let m = round(limit(-lines[g].offset * inverse(dmin.1), 0.0, most));
        let line = Line { scale: d.1 * s, offset: -dmin.1 * m };
        now[g] = Choice { s, m, moments: assign(&x[g], &w[g], line, top), error: 0.0 };
    }
    let mut best = (f32::INFINITY, d, dmin, now);
    for turn in 0..effort.turns {
        for g in 0..G {
            now[g] = choose(&x[g], &w[g], t[g], (d.1, dmin.1), now[g], top, most, effort.around);
        }
        let error = now.iter().fold(0.0, |sum, c| sum + c.error);
        if error < best.0 {
            best = (error, d, dmin, now);
        }
        if turn + 1 < effort.turns {
            let found = solve_block(&now, &t, d.1, dmin.1);
            (d, dmin) = (values.half(found.0), values.half(found.1));
        }
    }
    let (error, d, dmin, now) = best;
    let mut out = Block { d: d.0, dmin: dmin.0, s: now.map(|c| c.s as u8), m: now.map(|c| c.m as u8), q: [[0; N]; G] };
    for g in 0..G {
        let inv = inverse(d.1 * now[g].s);
        let shift = dmin.1 * now[g].m * inv;
        out.q[g] = x[g].map(|x| round(limit(x * inv + shift, 0.0, top)) as u8);
    }
    (out, error)
}

/// d and dmin of least error for given choices.
fn solve_block(now: &[Choice], t: &[Totals], d: f32, dmin: f32) -> (f32, f32) {
    let (mut ss, mut sm, mut mm, mut sx, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (c, t) in now.iter().zip(t) {
        ss += c.s * c.s * c.moments.wqq;
        sm += c.s * c.m * c.moments.wq;
        mm += c.m * c.m * t.w;
        sx += c.s * c.moments.wqx;
        mx += c.m * t.wx;
    }
    let det = ss * mm - sm * sm;
    if det > 1e-6 * ss * mm {
        return ((sx * mm - sm * mx) / det, (sx * sm - ss * mx) / det);
    }
    (if ss > 0.0 { (sx + dmin * sm) / ss } else { d }, dmin)
}
