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

/// The numbers that a super-block may take, and what a search for them tries.
pub(super) struct Search {
    /// The largest q.
    pub(super) top: f32,
    /// The largest s and m.
    pub(super) most: f32,
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

/// A group of elements.
struct Group<'a, const N: usize> {
    x: &'a [f32; N],
    w: &'a [f32; N],
    totals: Totals,
}

impl<const N: usize> Group<'_, N> {
    /// The best multiples found, near those of `near`, whose moments may be of other levels.
    fn choose(&self, (d, dmin): (f32, f32), near: Choice, search: &Search) -> Choice {
        let (t, inv) = (self.totals, inverse(dmin));
        let mut best = Choice { error: f32::INFINITY, ..near };
        for step in -search.around..=search.around {
            let s = near.s + step as f32;
            if s < 0.0 || s > search.most {
                continue;
            }
            let (mut moments, mut last) = (near.moments, -1.0);
            for _ in 0..3 {
                let offset = (t.wx - d * s * moments.wq) / t.w;
                let m = round(limit(-offset * inv, 0.0, search.most));
                if m == last {
                    break;
                }
                last = m;
                let line = Line { scale: d * s, offset: -dmin * m };
                moments = assign(self.x, self.w, line, search.top);
                let error = error(moments, t, line);
                if error < best.error {
                    best = Choice { s, m, moments, error };
                }
            }
        }
        best
    }
}

/// The best super-block found. Offsets of one super-block have one sign. They are negative or 0, except where a group is all
/// positive: then the mirrored elements are tried too, and d and dmin have minus signs.
pub(super) fn block<const G: usize, const N: usize>(values: &Scaled<256>, search: &Search) -> Block<G, N> {
    let (mut found, error) = one_sign(values, search);
    if values.x.as_chunks::<N>().0.iter().any(|x| x.iter().all(|x| *x > 0.0)) {
        let (mirrored, mirrored_error) = one_sign(&values.mirrored(), search);
        if mirrored_error < error {
            found = Block { d: -mirrored.d, dmin: -mirrored.dmin, ..mirrored };
        }
    }
    found
}

/// The best super-block found with offsets that are not positive, and its error.
fn one_sign<const G: usize, const N: usize>(values: &Scaled<256>, search: &Search) -> (Block<G, N>, f32) {
    let (x, w) = (values.x.as_chunks::<N>().0, values.w.as_chunks::<N>().0);
    let groups: [Group<N>; G] = std::array::from_fn(|g| Group { x: &x[g], w: &w[g], totals: totals(&x[g], &w[g]) });
    let lines = groups.each_ref().map(|group| line(group.x, group.w, search.top, 0.0, 1));
    let scale = lines.iter().fold(0.0f32, |most, line| most.max(line.scale));
    let depth = lines.iter().fold(0.0f32, |most, line| most.max(-line.offset));
    let (mut d, mut dmin) = (values.half_outward(scale / search.most), values.half_outward(depth / search.most));
    let mut now: [Choice; G] = std::array::from_fn(|g| {
        let s = round(limit(lines[g].scale * inverse(d.1), 0.0, search.most));
        let m = round(limit(-lines[g].offset * inverse(dmin.1), 0.0, search.most));
        let line = Line { scale: d.1 * s, offset: -dmin.1 * m };
        Choice { s, m, moments: assign(groups[g].x, groups[g].w, line, search.top), error: 0.0 }
    });
    let mut best = (f32::INFINITY, d, dmin, now);
    for turn in 0..search.turns {
        for (choice, group) in now.iter_mut().zip(&groups) {
            *choice = group.choose((d.1, dmin.1), *choice, search);
        }
        let error = now.iter().fold(0.0, |sum, choice| sum + choice.error);
        if error < best.0 {
            best = (error, d, dmin, now);
        }
        if turn + 1 < search.turns {
            let found = solve_block(&now, &groups, d.1, dmin.1);
            (d, dmin) = (values.half(found.0), values.half(found.1));
        }
    }
    let (error, d, dmin, now) = best;
    let q = std::array::from_fn(|g| {
        let inv = inverse(d.1 * now[g].s);
        let shift = dmin.1 * now[g].m * inv;
        groups[g].x.map(|x| round(limit(x * inv + shift, 0.0, search.top)) as u8)
    });
    (Block { d: d.0, dmin: dmin.0, s: now.map(|c| c.s as u8), m: now.map(|c| c.m as u8), q }, error)
}

/// d and dmin of least error for given choices.
fn solve_block<const N: usize>(now: &[Choice], groups: &[Group<N>], d: f32, dmin: f32) -> (f32, f32) {
    let (mut ss, mut sm, mut mm, mut sx, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (c, t) in now.iter().zip(groups.iter().map(|group| group.totals)) {
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
