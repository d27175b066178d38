//! The row that a token is chosen from: its highest logits with their probabilities, and how sure it is (entropy).
//! Probabilities are those of the whole row at temperature 1, masked ids included: what the model says, not the sampler.

use crate::debug::record::{Candidate, Record, SampleRecord, Sink, TokenText};
use crate::error::Result;
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want};
use crate::plan::{At, Plan, Stage};

/// What a row of logits says.
#[derive(Debug, Clone, PartialEq)]
pub struct RowView {
    /// The highest logits in descending order, ties by ascending id: id, logit, probability.
    pub top: Vec<(u32, f32, f64)>,
    /// Of the whole row, in nats: 0 is certain, ln(row length) knows nothing. NaN where no logit is a number.
    pub entropy: f64,
    /// Logits that are NaN or infinite; they are left out of all else.
    pub non_finite: usize,
    /// Largest logit.
    max: f64,
    /// Σ exp(logit − max).
    sum: f64,
}

impl RowView {
    /// Probability of a logit of this row; 0 for NaN and Inf.
    pub fn probability(&self, logit: f32) -> f64 {
        if logit.is_finite() && self.sum > 0.0 { (f64::from(logit) - self.max).exp() / self.sum } else { 0.0 }
    }
}

/// The `k` highest logits of `row`, and its entropy. It is taken of every row that a token is chosen from, so it is made
/// for long rows: three passes without branches that compilers vectorise, and an exponential in f32.
pub fn view(row: &[f32], k: usize) -> RowView {
    let (mut most, mut bad) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    for part in lanes(row) {
        for i in 0..LANES {
            let x = if part[i].is_finite() { part[i] } else { f32::NEG_INFINITY };
            most[i] = if x > most[i] { x } else { most[i] };
            bad[i] += u32::from(!part[i].is_finite());
        }
    }
    let max = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let filling = row.len().next_multiple_of(LANES) - row.len();
    let non_finite = bad.iter().sum::<u32>() as usize - filling;
    let (mut sum, mut weighted) = (0.0f64, 0.0f64);
    for part in row.chunks(64 * LANES) {
        // Few enough terms for f32, which the sums of the parts are not.
        let (mut sums, mut weights) = ([0.0f32; LANES], [0.0f32; LANES]);
        for part in lanes(part) {
            for i in 0..LANES {
                let below = if part[i].is_finite() { part[i] - max } else { -200.0 };
                let e = exp(below);
                sums[i] += e;
                weights[i] += below * e;
            }
        }
        sum += sums.iter().map(|x| f64::from(*x)).sum::<f64>();
        weighted += weights.iter().map(|x| f64::from(*x)).sum::<f64>();
    }
    let entropy = if sum > 0.0 { (sum.ln() - weighted / sum).max(0.0) } else { f64::NAN };
    let mut seen = RowView { top: Vec::new(), entropy, non_finite, max: f64::from(max), sum };
    seen.top = highest(row, k).into_iter().map(|(id, logit)| (id, logit, seen.probability(logit))).collect();
    seen
}

/// Numbers that are treated at once.
const LANES: usize = 16;

/// `row` in parts of `LANES`, the last one filled up with NaN.
fn lanes(row: &[f32]) -> impl Iterator<Item = [f32; LANES]> {
    let (whole, rest) = row.as_chunks::<LANES>();
    let last = (!rest.is_empty()).then(|| {
        let mut last = [f32::NAN; LANES];
        last[..rest.len()].copy_from_slice(rest);
        last
    });
    whole.iter().copied().chain(last)
}

/// e^x for x ≤ 0 to within 2 units in the last place of f32; 0 below −87. Exactly 1 for 0.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to a whole number
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that the difference is exact
    let r = (clamped - whole * 0.693_359_4) + whole * 2.121_944_4e-4;
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x > -87.0 { series * power } else { 0.0 }
}

/// The `k` highest finite logits in descending order, ties by ascending id.
fn highest(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    let mut least = f32::NEG_INFINITY;
    for (i, part) in row.chunks(256).enumerate() {
        // Most parts hold nothing that is high enough.
        if top.len() >= k && part.iter().fold(true, |none, x| none & (*x <= least || !x.is_finite())) {
            continue;
        }
        for (id, x) in (i as u32 * 256..).zip(part).filter(|(_, x)| x.is_finite()) {
            let place = top.partition_point(|known| order(known, &(id, *x)).is_lt());
            if place < k {
                top.insert(place, (id, *x));
                top.truncate(k);
                least = if top.len() < k { f32::NEG_INFINITY } else { top.last().map_or(f32::NEG_INFINITY, |t| t.1) };
            }
        }
    }
    top
}

/// One row of a stage for every token that is chosen: that of the prompt's last token, then of each decode step's.
#[derive(Debug, Clone)]
pub(super) struct LastRow {
    stage: Stage,
    width: usize,
    prompt_end: usize,
}

impl LastRow {
    /// Rows of `stage`, where the plan has it. `prompt_end` is the position after the prompt's last token.
    pub(super) fn new(plan: &Plan, stage: Stage, prompt_end: usize) -> Option<Self> {
        let node = plan.nodes.iter().find(|node| node.at.stage == stage)?;
        Some(Self { stage, width: node.width, prompt_end })
    }
    /// The stage.
    pub(super) fn stage(&self) -> Stage {
        self.stage
    }
    /// In the prompt, only this token's logits need to be computed.
    pub(super) fn request(&self, decode_step: usize) -> Request {
        let want = match (decode_step, self.prompt_end.checked_sub(1)) {
            (0, last) => Want::Gather { tokens: last.into_iter().collect(), dims: (0..self.width).collect() },
            _ => Want::Full,
        };
        Request { stage: self.stage, layers: None, want }
    }
    /// The row, if `value` is it.
    pub(super) fn of(&self, step: StepInfo<'_>, value: &Observed) -> Option<Vec<f32>> {
        match &value.content {
            _ if value.at.stage != self.stage => None,
            Content::Gather(cells) if step.decode_step == 0 && cells.len() == self.width => Some(cells.iter().map(|c| c.2).collect()),
            Content::Full(tensor) if step.decode_step > 0 && tensor.rows() > 0 => Some(tensor.row(tensor.rows() - 1).to_vec()),
            _ => None,
        }
    }
}

/// What `row` says of the token chosen after `step`.
pub fn sample_record(step: StepInfo<'_>, row: &[f32], k: usize, text: Option<&TokenText<'_>>) -> SampleRecord {
    let view = view(row, k);
    let candidate = |id: u32, logit: f32| {
        let text = text.map(|text| text(id));
        Candidate { id, text, logit, probability: view.probability(logit) }
    };
    let token = (step.first_token + step.tokens.len()).saturating_sub(1);
    let chosen = step.chosen.map(|id| candidate(id, row.get(id as usize).copied().unwrap_or(f32::NAN)));
    let top = view.top.iter().map(|(id, logit, _)| candidate(*id, *logit)).collect();
    SampleRecord { step: step.decode_step, token, chosen, entropy: view.entropy, non_finite: view.non_finite, top }
}

/// Emits a `Record::Sample` for every row that a token is chosen from.
pub struct LogitsObserver<'a> {
    row: Option<LastRow>,
    k: usize,
    text: Option<TokenText<'a>>,
    sink: Sink<'a>,
}

impl<'a> LogitsObserver<'a> {
    /// The `k` highest per row. `prompt_end` is the position after the prompt's last token.
    pub fn new(plan: &Plan, prompt_end: usize, k: usize, text: Option<TokenText<'a>>, sink: Sink<'a>) -> Self {
        Self { row: LastRow::new(plan, Stage::LogitsFinal, prompt_end), k, text, sink }
    }
}

impl Observer for LogitsObserver<'_> {
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        self.row.iter().map(|row| row.request(decode_step)).collect()
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        let Some(row) = self.row.as_ref().and_then(|row| values.iter().find_map(|value| row.of(step, value))) else { return Ok(()) };
        self.sink.put(Record::Sample(sample_record(step, &row, self.k, self.text.as_ref())))
    }
}

/// The value that tokens are chosen from.
pub(super) const LOGITS: At = At { stage: Stage::LogitsFinal, layer: None };

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn probabilities_entropy_and_order() {
        let seen = view(&[0.0, 2.0, f32::NAN, 2.0, -1.0], 3);
        assert_eq!(seen.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        let sum = 2.0 + (-2f64).exp() + (-3f64).exp();
        assert!((seen.top[0].2 - 1.0 / sum).abs() < 2e-7 && seen.non_finite == 1);
        let p = [1.0 / sum, 1.0 / sum, (-2f64).exp() / sum, (-3f64).exp() / sum];
        // Of the exponential in f32.
        assert!((seen.entropy + p.iter().map(|p| p * p.ln()).sum::<f64>()).abs() < 2e-7);
        assert!((view(&[1.5; 64], 0).entropy - 64f64.ln()).abs() < 1e-12, "here it is exact");
        assert_eq!(view(&[80.0, -80.0, -80.0], 9).top[0].2, 1.0);
        for odd in [&[][..], &[f32::NAN], &[f32::INFINITY, f32::NEG_INFINITY]] {
            let seen = view(odd, 5);
            assert!(seen.top.is_empty() && seen.entropy.is_nan() && seen.non_finite == odd.len() && seen.probability(1.0) == 0.0);
        }
    }

    /// Long rows against the definition in f64 and a full sort.
    #[test]
    fn long_rows_are_as_defined() {
        let mut state = 3u32;
        for (length, spread) in [(1, 1.0), (15, 3.0), (131_072, 0.5), (131_072, 12.0), (50_003, 90.0)] {
            let row: Vec<f32> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Many ties.
                    ((state >> 16) as f32 / 65_536.0 - 0.7) * spread
                })
                .collect();
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let below: Vec<f64> = row.iter().map(|x| f64::from(*x) - f64::from(max)).collect();
            let sum: f64 = below.iter().map(|x| x.exp()).sum();
            let entropy = sum.ln() - below.iter().map(|x| x * x.exp()).sum::<f64>() / sum;
            let seen = view(&row, 9);
            assert!((seen.entropy - entropy).abs() <= 3e-7 * entropy.max(1.0), "{length} {spread}: {} {entropy}", seen.entropy);
            assert!((seen.sum / sum - 1.0).abs() < 2e-7, "{length} {spread}");
            let mut sorted: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let top: Vec<(u32, f32)> = seen.top.iter().map(|t| (t.0, t.1)).collect();
            assert_eq!(top, sorted[..9.min(length)]);
        }
        assert_eq!((exp(0.0), exp(-87.0), exp(-1e9)), (1.0, 0.0, 0.0));
        let worst = (0..87_000).map(|i| -f64::from(i) / 1000.0).map(|x| (f64::from(exp(x as f32)) / f64::from(x as f32).exp() - 1.0).abs());
        assert!(worst.fold(0.0, f64::max) < 2.4e-7);
    }

    #[test]
    fn a_chosen_token_in_words() {
        let text: TokenText<'_> = Rc::new(|id| format!("<{id}>\n"));
        let step = StepInfo { decode_step: 2, first_token: 9, tokens: &[4], chosen: Some(1), notes: &[] };
        let record = sample_record(step, &[0.0, 1.0], 1, Some(&text));
        assert_eq!(record.text(), r#"sampled step=2 id=1 text="<1>\n" logit=1.0 p=0.731059 entropy=0.582203 top=[1 "<1>\n" 0.731059]"#);
        assert_eq!(record.token, 9);
        let step = StepInfo { chosen: Some(7), ..step };
        let record = sample_record(step, &[0.0, f32::NAN], 1, None);
        assert!(record.text().contains("id=7 logit=NaN p=0.0") && record.text().contains("nonFinite=1"), "{}", record.text());
    }
}
