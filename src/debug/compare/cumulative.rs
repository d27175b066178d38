//! Free runs, value by value, in blocks of rows: dumps of any size pass through buffers of a few megabytes.

use super::judge::{Basis, judge};
use super::near_ties::near_ties;
use super::sums::{Place, Sums};
use super::text::number_of_floors;
use super::{Align, Choice, Heads, Mode, Report, StageLine, align};
use crate::debug::dump::{Dump, Part, STATS};
use crate::debug::floor::{ALLOWED, Numbers, distance, estimate, further, numbers};
use crate::debug::sketch::{SIGNS, sketches};
use crate::error::{Error, Result};
use crate::plan::{At, Plan, Stage};
use std::ops::Range;

/// Most numbers of one side that are in memory at once, unless one row has more.
const BLOCK: usize = 1 << 17;

/// Where the floors of free runs come from.
#[derive(Debug, Clone, Copy)]
pub enum Floors<'d> {
    /// Dumps of the oracle on the same tokens. Not used where a side stores its numbers as no oracle does (`Numbers::imitated`).
    Measured(OracleDumps<'d>),
    /// `floor.*` of the dumps where they have it; else estimated from the type in their metadata, which the report says.
    Brought,
}

/// Dumps of the oracle: in f64, in f32 with A's storage, in f32 with B's, and the last two again with other roundings, or as they are.
pub type OracleDumps<'d> = [&'d Dump; 5];

/// Compares all values of `align`. `progress` is told how many of how many values are done.
///
/// # Errors
/// `Kind::Io`; `Kind::Invalid` for metadata with an unknown type, and for oracle dumps that lack what is compared.
pub fn cumulative(
    a: &Dump,
    b: &Dump,
    align: &Align,
    floors: Floors<'_>,
    plan: Option<&Plan>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let numbers = [numbers(a.metadata.get("dtype").map(String::as_str))?, numbers(b.metadata.get("dtype").map(String::as_str))?];
    // An oracle that does not round as a run did measures nothing of it.
    let floors = if numbers.iter().all(|n| n.imitated) { floors } else { Floors::Brought };
    let layers = align.both.iter().filter_map(|at| at.layer).max().map_or(0, |last| last + 1);
    let unplanned = heads_of(a, b);
    let mut pair = Pair { a, b, align, floors, numbers, layers, buffers: Default::default() };
    let mut lines: Vec<StageLine> = Vec::with_capacity(align.both.len());
    for (i, at) in align.both.iter().enumerate() {
        progress(i, align.both.len());
        let (sums, basis) = pair.sums(*at).map_err(|e| e.within(at.key()))?;
        let heads = plan.map_or(unplanned, |plan| Heads::of(plan, *at));
        lines.push(judge(*at, &sums, basis, heads, Mode::Cumulative));
    }
    progress(align.both.len(), align.both.len());
    if let Floors::Measured(oracles) = floors {
        settle(&mut lines, [a, b], oracles, align, plan)?;
    }
    let text = floor_text(floors, numbers, &lines);
    near_ties(Report::new(align, Mode::Cumulative, text, lines), [a, b], plan)
}

/// Two runs that are each within the allowance of the oracle in f64 are both right, although they may be further from
/// each other. Looks after lines that are beyond the allowance by no more than that can explain.
fn settle(lines: &mut [StageLine], sides: [&Dump; 2], oracles: OracleDumps<'_>, align: &Align, plan: Option<&Plan>) -> Result<()> {
    let exact = oracles[0];
    // One of these is the oracle itself.
    if sides.iter().any(|side| std::ptr::eq(*side, exact)) {
        return Ok(());
    }
    let close = |line: &StageLine| line.diverged && line.times_floor < ALLOWED * std::f64::consts::SQRT_2;
    let stages: Vec<Stage> = lines.iter().filter(|line| close(line)).map(|line| line.at.stage).collect();
    if stages.is_empty() {
        return Ok(());
    }
    let choice = Choice { stages: Some(stages), layers: None };
    let mut off: Vec<(At, f64)> = Vec::new();
    for (i, side) in sides.into_iter().enumerate() {
        let mut aligned = super::align(exact, side, ["oracle".to_string(), side.name().to_string()], plan, &choice)?;
        aligned.tokens = aligned.tokens.min(align.tokens);
        aligned.both.retain(|at| lines.iter().any(|line| line.at == *at && close(line)));
        let floors = Floors::Measured(of_side(oracles, i));
        let found = cumulative(exact, side, &aligned, floors, plan, &mut |_, _| {})?;
        off.extend(found.stages.iter().map(|line| (line.at, line.times_floor)));
    }
    for line in lines.iter_mut().filter(|line| close(line)) {
        let own: Vec<f64> = off.iter().filter(|(at, _)| *at == line.at).map(|(_, times)| *times).collect();
        if let [a, b] = own[..]
            && a.max(b) <= ALLOWED
        {
            (line.times_floor, line.diverged) = (a.max(b), false);
        }
    }
    Ok(())
}

/// The dumps for a comparison of the oracle in f64 with side `i`.
fn of_side([exact, a, b, a_again, b_again]: OracleDumps<'_>, i: usize) -> OracleDumps<'_> {
    if i == 0 { [exact, exact, a, exact, a_again] } else { [exact, exact, b, exact, b_again] }
}

/// Notes in `report` how far each side is from the oracle in f64 at the first divergence, which tells the wrong side.
/// `floors` are those of `Floors::Measured`.
///
/// # Errors
/// As `cumulative`.
pub fn blame(mut report: Report, sides: [&Dump; 2], floors: OracleDumps<'_>, plan: &Plan) -> Result<Report> {
    let Some(first) = &report.first_divergence else { return Ok(report) };
    let choice = Choice { stages: Some(vec![first.at.stage]), layers: Some(first.at.layer.into_iter().collect()) };
    let mut off = [0.0; 2];
    for (i, side) in sides.into_iter().enumerate() {
        let exact = floors[0];
        let names = ["oracle".to_string(), side.name().to_string()];
        let mut aligned = align(exact, side, names, Some(plan), &choice)?;
        aligned.tokens = aligned.tokens.min(report.tokens);
        let floors = Floors::Measured(of_side(floors, i));
        let found = cumulative(exact, side, &aligned, floors, Some(plan), &mut |_, _| {})?;
        off[i] = found.stages.first().map_or(0.0, |line| line.times_floor);
    }
    // The oracle computes what the model's files say, as this program reads them.
    let wrong = match off.map(|off| off > ALLOWED) {
        [true, false] => "A departs from what these model files say (other weights or config, a kernel, the device)",
        [false, true] => "B departs from what the model files say (a kernel, the device)",
        [true, true] => "neither is what these model files say",
        [false, false] => "each is right by itself",
    };
    let [a, b] = off.map(number_of_floors);
    report.notes.push(format!("{} against the oracle in f64: A {a}x floor, B {b}x: {wrong}", first.at));
    Ok(report)
}

/// How the floors were come by.
fn floor_text(floors: Floors<'_>, [a, b]: [Numbers; 2], lines: &[StageLine]) -> String {
    let estimated = lines.iter().filter(|line| line.estimated).count();
    let measured = match floors {
        Floors::Measured(_) => {
            return format!(
                "measured: the oracle in f64 against the oracle in f32 with {} (A) and {} (B) storage",
                a.storage.activations, b.storage.activations
            );
        }
        Floors::Brought => "brought along by the dumps (`floor.*`: the run in f64 against the run in f32)",
    };
    if estimated == 0 {
        return measured.into();
    }
    let of = |n: Numbers| format!("{} · 2^{:.0}", super::text::short(estimate(n, 0) / n.rounding), n.rounding.log2());
    let estimate = format!(
        "ESTIMATED, not measured, from the types that the metadata names (A {}: {}, B {}: {}; times √(layer + 1), of a row's length); {}",
        a.name,
        of(a),
        b.name,
        of(b),
        if a.imitated && b.imitated {
            "compare with the model at hand, or with dumps that bring `floor.*`, to have it measured"
        } else {
            "the oracle does not compute in such types; compare float32 runs to have it measured"
        }
    );
    if estimated == lines.len() { estimate } else { format!("{measured}; for {estimated} values {estimate}") }
}

/// Widths of heads, as the shapes of scores and queries tell.
fn heads_of(a: &Dump, b: &Dump) -> Heads {
    let of = |dump: &Dump| {
        let scores = dump.held().into_iter().find(|at| at.stage.layout().is_scores())?;
        let heads = dump.parts(scores).first()?.heads;
        let queries = [Stage::QProj, Stage::QRope, Stage::AttnCoreOut].into_iter();
        let mut parts = queries.filter_map(|stage| dump.parts(At { stage, layer: scores.layer }).first());
        let width = parts.find(|part| !part.sketch)?.width;
        width.checked_div(heads)
    };
    Heads { head_dim: of(a).or_else(|| of(b)) }
}

struct Pair<'d> {
    a: &'d Dump,
    b: &'d Dump,
    align: &'d Align,
    floors: Floors<'d>,
    numbers: [Numbers; 2],
    layers: usize,
    /// A, B, and the oracles.
    buffers: [Vec<f32>; 7],
}

/// A run of rows of one head (or of none) in both sides.
struct Run<'p> {
    at: At,
    parts: [&'p Part; 2],
    head: Option<usize>,
    /// Position of token 0 of the parts.
    first_token: usize,
    /// Tokens, counted from the parts' first.
    tokens: Range<usize>,
}

impl<'d> Pair<'d> {
    /// The sums of a value, and where its floors come from.
    fn sums(&mut self, at: At) -> Result<(Sums, Basis)> {
        let (a, b) = (self.a, self.b);
        let mut sums = Sums::default();
        let mut basis = Basis::Known;
        for part in a.parts(at) {
            let Some(other) = b.parts(at).iter().find(|p| p.step == part.step) else { continue };
            let first_token = if part.step == 0 { 0 } else { self.align.prompt + part.step - 1 };
            let tokens = part.tokens.min(other.tokens).min(self.align.tokens.saturating_sub(first_token));
            let mut floors = None;
            if let Floors::Brought = self.floors {
                floors = self.brought(at, part, other)?;
                if floors.is_none() {
                    let depth = at.layer.unwrap_or(if at.stage == Stage::EmbedOut { 0 } else { self.layers });
                    basis = Basis::Estimated(estimate(self.numbers[0], depth).hypot(estimate(self.numbers[1], depth)));
                }
            }
            let scores = at.stage.layout().is_scores();
            let stats = [a.row_stats(at, part.step)?, b.row_stats(at, part.step)?];
            let rows = (BLOCK / part.width.max(other.width).max(1)).max(1);
            for head in 0..part.heads.min(other.heads) {
                for first in (0..tokens).step_by(rows) {
                    let tokens = first..(first + rows).min(tokens);
                    let run = Run { at, parts: [part, other], head: scores.then_some(head), first_token, tokens };
                    self.run(&run, floors.as_deref(), &stats, &mut sums)?;
                }
            }
        }
        Ok((sums, basis))
    }

    /// Floors of the rows of A's part, if both sides' are known.
    fn brought(&self, at: At, a: &Part, b: &Part) -> Result<Option<Vec<f64>>> {
        let (mut of_a, mut of_b) = (self.a.floors(at, a.step)?, self.b.floors(at, b.step)?);
        // Runs of one type round alike.
        if self.numbers[0] == self.numbers[1] && a.tokens == b.tokens {
            of_a = of_a.or_else(|| of_b.clone());
            of_b = of_b.or_else(|| of_a.clone());
        }
        let (Some(of_a), Some(of_b)) = (of_a, of_b) else { return Ok(None) };
        let row = |i: usize| {
            let (head, token) = (i / a.tokens.max(1), i % a.tokens.max(1));
            let other = if token < b.tokens { of_b.get(head * b.tokens + token) } else { None };
            f64::from(of_a.get(i).copied().unwrap_or(0.0)).hypot(f64::from(other.copied().unwrap_or(0.0)))
        };
        Ok(Some((0..a.rows()).map(row).collect()))
    }

    /// Takes in a block of rows.
    fn run(&mut self, run: &Run<'_>, floors: Option<&[f64]>, stats: &[Option<Vec<f32>>; 2], sums: &mut Sums) -> Result<()> {
        let [buffer_a, buffer_b, oracles @ ..] = &mut self.buffers;
        let [part_a, part_b] = run.parts;
        self.a.read_rows(part_a, run.rows(part_a), buffer_a)?;
        self.b.read_rows(part_b, run.rows(part_b), buffer_b)?;
        let mut oracle_width = 0;
        if let Floors::Measured(dumps) = self.floors {
            for (i, dump) in dumps.into_iter().enumerate() {
                let part = dump.parts(run.at).iter().find(|p| p.step == part_a.step && p.tokens >= run.tokens.end && !p.sketch);
                let lacking = || Error::invalid("oracle", format!("it has no {} of tokens up to {}", run.at, run.tokens.end));
                let part = part.ok_or_else(lacking)?;
                oracle_width = part.width;
                if first_of(dumps, i) == i {
                    dump.read_rows(part, run.rows(part), &mut oracles[i])?;
                }
            }
        }
        let from = if let Floors::Measured(dumps) = self.floors { [0, 1, 2, 3, 4].map(|i| first_of(dumps, i)) } else { [0; 5] };
        let sketched = part_a.sketch || part_b.sketch;
        let sketch = sketched.then(|| [sketches_of(buffer_a, part_a), sketches_of(buffer_b, part_b)]);
        for (i, token) in run.tokens.clone().enumerate() {
            let position = run.first_token + token;
            let row = |data: &[f32], width: usize| -> Range<usize> { (i * width).min(data.len())..((i + 1) * width).min(data.len()) };
            let (a, b) = (&buffer_a[row(buffer_a, part_a.width)], &buffer_b[row(buffer_b, part_b.width)]);
            let oracle = |n: usize| &oracles[from[n]][row(&oracles[from[n]], oracle_width)];
            let worse = |n: usize| if from[n] == from[n + 2] { oracle(n) } else { further(oracle(0), oracle(n), oracle(n + 2)) };
            let exact = (oracle_width > 0).then(|| [oracle(0), worse(1), worse(2)]);
            let index = run.head.unwrap_or(0) * part_a.tokens + token;
            let floor = floors.and_then(|f| f.get(index).copied());
            let other_index = run.head.unwrap_or(0) * part_b.tokens + token;
            if let Some([of_a, of_b]) = &sketch {
                let elements = if run.head.is_some() { position + 1 } else { SIGNS.max(part_a.width).max(part_b.width) };
                let floor = floor.or_else(|| exact.map(|[e, x, y]| distance(e, x).hypot(distance(e, y))));
                let (stats_a, stats_b) = (whole(a, part_a, &stats[0], index), whole(b, part_b, &stats[1], other_index));
                let top = stats_a.zip(stats_b).map(|(x, y)| x.0.max(y.0));
                let odd = stats_a.zip(stats_b).is_some_and(|(x, y)| x.1 != y.1);
                sums.sketched(Place { token: position, head: run.head, elements }, &of_a[i], &of_b[i], top, floor, odd);
                continue;
            }
            // Scores may have columns for positions that no token of this part sees.
            let width = a.len().min(b.len()).min(if oracle_width > 0 { oracle_width } else { usize::MAX });
            let elements = if run.head.is_some() { (position + 1).min(width) } else { width };
            let exact = exact.map(|rows| rows.map(|row| &row[..width.min(row.len())]));
            sums.row(Place { token: position, head: run.head, elements }, &a[..width], &b[..width], exact, floor);
        }
        Ok(())
    }
}

/// The first of `dumps` that is the same as number `i`: what is there twice is read once.
fn first_of(dumps: OracleDumps<'_>, i: usize) -> usize {
    (0..i).find(|first| std::ptr::eq(dumps[*first], dumps[i])).unwrap_or(i)
}

impl Run<'_> {
    /// The rows of these tokens in a part.
    fn rows(&self, part: &Part) -> Range<usize> {
        let start = self.head.unwrap_or(0) * part.tokens;
        start + self.tokens.start..start + self.tokens.end
    }
}

fn sketches_of(rows: &[f32], part: &Part) -> Vec<[f64; SIGNS]> {
    if !part.sketch {
        return sketches(rows, part.width);
    }
    rows.as_chunks::<SIGNS>().0.iter().map(|row| row.map(f64::from)).collect()
}

/// Largest magnitude and count of non-finite elements of a row, from the row or from its statistics.
fn whole(row: &[f32], part: &Part, stats: &Option<Vec<f32>>, index: usize) -> Option<(f32, u64)> {
    if !part.sketch {
        let odd = row.iter().filter(|x| !x.is_finite()).count();
        return Some((row.iter().filter(|x| x.is_finite()).fold(0.0, |m, x| m.max(x.abs())), odd as u64));
    }
    let stats = stats.as_ref()?.get(index * STATS..(index + 1) * STATS)?;
    let largest = stats[5].abs().max(stats[6].abs());
    Some((largest, stats[7] as u64 + stats[8] as u64))
}
