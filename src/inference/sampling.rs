//! The seeded sampler: one row of logits in, one token id out.
//! The answer depends on the logits, the history, the config and the step, never on the machine: sums run in f64 in a
//! fixed order, `exp` comes from `libm`, and the random number is a hash of (seed, step).
//! Candidates read back from a GPU go through the same code as a full row. It must not know where logits come from.

use std::cmp::Ordering;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How tokens are chosen; `inference.sampling` of the runtime config. The default is greedy.
///
/// Filters run in the order of Hugging Face's `generate`: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Logits are divided by this; 0 takes the largest logit. Finite, at least 0.
    pub temperature: f64,
    /// Keep this many largest logits; 0 keeps all. Exactly so many: of equal logits the lowest ids stay.
    pub top_k: u32,
    /// Keep the fewest tokens, most probable first, whose probabilities reach this sum. In (0, 1]; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this probable, relative to the most probable one. In [0, 1]; 0 keeps all.
    pub min_p: f64,
    /// Logits of ids in the history are divided by this if positive, else multiplied. Above 0; 1 is off.
    pub repeat_penalty: f64,
    /// Same seed, same draws.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: 0 }
    }
}

impl SamplingConfig {
    /// Checks every range.
    ///
    /// # Errors
    /// `Kind::Invalid` naming the first key that is out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |key: &str, found: f64, ok: bool, expected: &str| {
            let error = || Error::invalid(format!("sampling key `{key}`"), format!("expected {expected}, found {found}"));
            ok.then_some(()).ok_or_else(error)
        };
        let Self { temperature, top_p, min_p, repeat_penalty, .. } = *self;
        let cool = (0.0..f64::INFINITY).contains(&temperature);
        check("temperature", temperature, cool, "a finite number, at least 0 (0 takes the largest logit)")?;
        check("topP", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0 and at most 1 (1 keeps all tokens)")?;
        check("minP", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1 (0 keeps all tokens)")?;
        let penalty = repeat_penalty as f32;
        let mild = penalty > 0.0 && penalty.is_finite();
        check("repeatPenalty", repeat_penalty, mild, "a finite number above 0 (1 switches it off)")
    }
}

/// The ids that can never be sampled: rows of a padded vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Sorted, disjoint, none empty.
    hidden: Vec<Range<u32>>,
}

impl TokenMask {
    /// Hides every id of `hidden`; the ranges may overlap and come in any order. No ranges hide nothing.
    pub fn new(hidden: impl IntoIterator<Item = Range<u32>>) -> Self {
        let mut ranges: Vec<Range<u32>> = hidden.into_iter().filter(|r| !r.is_empty()).collect();
        ranges.sort_unstable_by_key(|r| (r.start, r.end));
        ranges.dedup_by(|next, kept| {
            let joined = next.start <= kept.end;
            if joined {
                kept.end = kept.end.max(next.end);
            }
            joined
        });
        Self { hidden: ranges }
    }

    /// Whether `id` can never be sampled.
    pub fn hides(&self, id: u32) -> bool {
        let after = self.hidden.partition_point(|r| r.end <= id);
        self.hidden.get(after).is_some_and(|r| r.contains(&id))
    }

    /// The hidden ids, sorted and disjoint: what a GPU kernel must leave out of its argmax or top-k.
    pub fn hidden(&self) -> &[Range<u32>] {
        &self.hidden
    }
}

/// A validated config and a mask; holds no state, so any step can be drawn again.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplingConfig,
    mask: TokenMask,
}

impl Sampler {
    /// # Errors
    /// Those of [`SamplingConfig::validate`].
    pub fn new(config: SamplingConfig, mask: TokenMask) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, mask })
    }

    /// The config.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// The mask.
    pub fn mask(&self) -> &TokenMask {
        &self.mask
    }

    /// How many of the largest unmasked logits decide the answer, so that a GPU need only read these back for
    /// [`Self::sample_candidates`]; `None` if the whole row is needed.
    pub fn candidates(&self) -> Option<u32> {
        match &self.config {
            c if c.repeat_penalty != 1.0 => None,
            c if c.temperature == 0.0 => Some(1),
            c if c.top_k > 0 => Some(c.top_k),
            _ => None,
        }
    }

    /// Samples from a full row. `logits` [vocabulary rows]; `history` the prompt's and generated ids, for the
    /// repetition penalty; `step` counts the tokens sampled since the session began.
    ///
    /// # Errors
    /// `Kind::Finding` if an unmasked logit is NaN or +Inf, or if none is finite.
    pub fn sample(&self, logits: &[f32], history: &[u32], step: u64) -> Result<u32> {
        let mut entries: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        if self.config.repeat_penalty != 1.0 {
            self.penalise(&mut entries, history);
        }
        self.draw(self.usable(entries)?, step)
    }

    /// Refuses a row with an unmasked logit that is NaN or +Inf, however tokens are chosen from it.
    ///
    /// # Errors
    /// `Kind::Finding` naming the first of them.
    pub fn check(&self, logits: &[f32]) -> Result<()> {
        let bad = |(id, x): &(u32, &f32)| !(x.is_finite() || **x == f32::NEG_INFINITY || self.mask.hides(*id));
        let mut broken = (0..).zip(logits).filter(bad);
        broken.next().map_or(Ok(()), |(id, logit)| Err(unusable(id, *logit, broken.count() + 1)))
    }

    /// Samples from the exact top `candidates()` (id, logit) pairs of the unmasked row, in any order (ties: lowest
    /// ids). The answer is the one [`Self::sample`] gives for the whole row. Masked pairs are ignored, so a caller
    /// that cannot mask may send that many more.
    ///
    /// # Errors
    /// As `sample`; and `Kind::Invalid` if the config needs the whole row (`candidates()` is `None`).
    pub fn sample_candidates(&self, candidates: &[(u32, f32)], step: u64) -> Result<u32> {
        if self.candidates().is_none() {
            return Err(Error::invalid(
                "sampling",
                "the largest logits alone do not decide this draw (a repetition penalty is set, or topK is not): give the whole row",
            ));
        }
        self.draw(self.usable(candidates.to_vec())?, step)
    }

    /// Hugging Face's `RepetitionPenaltyLogitsProcessor`: once per distinct id, in f32.
    fn penalise(&self, entries: &mut [(u32, f32)], history: &[u32]) {
        let mut seen = vec![false; entries.len()];
        for &id in history {
            if let Some(flag) = seen.get_mut(id as usize) {
                *flag = true;
            }
        }
        let penalty = self.config.repeat_penalty as f32;
        for ((_, logit), _) in entries.iter_mut().zip(seen).filter(|((_, l), seen)| *seen && l.is_finite()) {
            let scaled = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            *logit = scaled.clamp(f32::MIN, f32::MAX);
        }
    }

    /// The unmasked entries with finite logits, order kept. −Inf means "never"; NaN and +Inf are findings.
    fn usable(&self, mut entries: Vec<(u32, f32)>) -> Result<Vec<(u32, f32)>> {
        entries.retain(|(id, logit)| *logit != f32::NEG_INFINITY && !self.mask.hides(*id));
        let mut broken = entries.iter().filter(|(_, logit)| !logit.is_finite());
        if let Some((id, logit)) = broken.next() {
            return Err(unusable(*id, *logit, broken.count() + 1));
        }
        if entries.is_empty() {
            return Err(Error::finding("cannot sample: every logit is masked or -Inf, so no token can be chosen"));
        }
        Ok(entries)
    }

    /// Draws from usable, non-empty entries.
    fn draw(&self, mut entries: Vec<(u32, f32)>, step: u64) -> Result<u32> {
        let SamplingConfig { temperature, top_k, top_p, min_p, seed, .. } = self.config;
        let best = entries.iter().copied().min_by(descending).unwrap_or_default();
        if temperature == 0.0 {
            return Ok(best.0);
        }
        // Weights are probabilities relative to the largest, which has 1.
        let weight = |(_, logit): (u32, f32)| libm::exp((f64::from(logit) - f64::from(best.1)) / temperature);

        let mut sorted = 0;
        if top_k > 0 {
            let k = entries.len().min(top_k as usize);
            sorted = sort_head(&mut entries, 0, k);
            entries.truncate(k);
        }
        // In sorted order after top-k, else in id order: either way the same for every caller.
        let total: f64 = entries.iter().copied().map(weight).sum();

        let (mut kept, mut mass) = (entries.len(), total);
        if top_p < 1.0 || min_p > 0.0 {
            (kept, mass) = (0, 0.0);
            while kept < entries.len() {
                sorted = sorted_beyond(&mut entries, sorted, kept);
                let w = weight(entries[kept]);
                let enough = top_p < 1.0 && mass >= top_p * total;
                if kept > 0 && (enough || w < min_p) {
                    break;
                }
                mass += w;
                kept += 1;
            }
        }

        let target = uniform(seed, step) * mass;
        let (mut sum, mut chosen) = (0.0, best);
        for i in 0..kept {
            sorted = sorted_beyond(&mut entries, sorted, i);
            let w = weight(entries[i]);
            if w > 0.0 {
                chosen = entries[i];
            }
            sum += w;
            if sum > target {
                break;
            }
        }
        Ok(chosen.0)
    }
}

/// The finding for a row of which `all` logits are NaN or +Inf, the first that of token `id`.
fn unusable(id: u32, logit: f32, all: usize) -> Error {
    let name = if logit.is_nan() { "NaN" } else { "Inf" };
    Error::finding(format!(
        "cannot sample: the logit of token {id} is {name} ({all} of the row's logits are NaN or Inf); trace the layers to find where this begins"
    ))
}

/// Largest logit first, then lowest id. Logits are not NaN here.
fn descending(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// Given that `entries[..from]` are the largest in order, extends that by `count` entries. Returns the new length.
fn sort_head(entries: &mut [(u32, f32)], from: usize, count: usize) -> usize {
    let rest = &mut entries[from..];
    let count = count.min(rest.len());
    if count > 0 && count < rest.len() {
        rest.select_nth_unstable_by(count - 1, descending);
    }
    rest[..count].sort_unstable_by(descending);
    from + count
}

/// Makes sure that `entries[i]` is in its sorted place; sorts ever larger pieces, as few draws look far.
fn sorted_beyond(entries: &mut [(u32, f32)], sorted: usize, i: usize) -> usize {
    if i < sorted { sorted } else { sort_head(entries, sorted, (3 * sorted).max(256)) }
}

/// A number in [0, 1) with 53 random bits: SplitMix64 (Steele, Lea, Flood 2014) at position `step` of the stream that
/// starts at the mixed seed.
fn uniform(seed: u64, step: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let counter = step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(counter));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn sampler(config: SamplingConfig) -> Sampler {
        Sampler::new(config, TokenMask::default()).unwrap()
    }

    fn hot() -> SamplingConfig {
        SamplingConfig { temperature: 1.0, ..Default::default() }
    }

    /// Which ids come up in 2000 draws, with their shares.
    fn shares(sampler: &Sampler, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for step in 0..2000 {
            counts[sampler.sample(logits, &[], step).unwrap() as usize] += 1.0 / 2000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let greedy = sampler(SamplingConfig::default());
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0, -0.5], &[], 0).unwrap(), 1);
        assert_eq!(greedy.sample(&[-0.0, 0.0], &[], 0).unwrap(), 0);
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -9.0], &[], 0).unwrap(), 1);
        assert_eq!(greedy.sample_candidates(&[(7, 2.0), (3, 2.0)], 0).unwrap(), 3);
    }

    #[test]
    fn broken_logits_are_findings() {
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY], &[]] {
            for config in [SamplingConfig::default(), hot(), SamplingConfig { repeat_penalty: 1.3, ..hot() }] {
                assert_eq!(sampler(config).sample(logits, &[0, 1, 99], 0).unwrap_err().kind, Kind::Finding);
            }
        }
    }

    #[test]
    fn masked_ids_never_win_even_when_broken() {
        let mask = TokenMask::new([4..u32::MAX, 0..1, 0..1, 3..4, 2..2]);
        assert_eq!(mask.hidden(), [0..1, 3..u32::MAX]);
        let logits = [90.0, 1.0, 1.5, f32::NAN, 99.0];
        let greedy = Sampler::new(SamplingConfig::default(), mask.clone()).unwrap();
        assert_eq!(greedy.sample(&logits, &[], 0).unwrap(), 2);
        let hot = Sampler::new(hot(), mask).unwrap();
        assert!((0..500).all(|step| matches!(hot.sample(&logits, &[], step), Ok(1 | 2))));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        for (share, expected) in shares(&sampler(hot()), &logits).iter().zip([0.1, 0.2, 0.3, 0.4]) {
            assert!((share - expected).abs() < 0.04, "{share} for {expected}"); // 3.6 standard deviations of 2000 draws
        }
        // At temperature ½ probabilities are squared: 1, 4, 9, 16 of 30.
        let cold = sampler(SamplingConfig { temperature: 0.5, ..hot() });
        assert!((shares(&cold, &logits)[3] - 16.0 / 30.0).abs() < 0.04);
    }

    #[test]
    fn filters_keep_what_hugging_face_keeps() {
        let logits = [0.1f32, 0.4, 0.3, 0.2].map(f32::ln);
        let kept = |config| shares(&sampler(config), &logits).iter().map(|s| *s > 0.0).collect::<Vec<_>>();
        assert_eq!(kept(SamplingConfig { top_k: 2, ..hot() }), [false, true, true, false]);
        assert_eq!(kept(SamplingConfig { top_p: 0.75, ..hot() }), [false, true, true, true]); // 0.4 + 0.3 < 0.75
        assert_eq!(kept(SamplingConfig { top_p: 0.65, ..hot() }), [false, true, true, false]);
        assert_eq!(kept(SamplingConfig { top_p: 1e-9, ..hot() }), [false, true, false, false]);
        assert_eq!(kept(SamplingConfig { min_p: 0.6, ..hot() }), [false, true, true, false]); // 0.24 and more
        // top-p counts probabilities after top-k: 0.4/0.7 = 0.57.
        assert_eq!(kept(SamplingConfig { top_k: 2, top_p: 0.55, ..hot() }), [false, true, false, false]);
    }

    #[test]
    fn penalty_counts_each_id_once() {
        let config = SamplingConfig { repeat_penalty: 2.0, ..Default::default() };
        let greedy = sampler(config);
        assert_eq!(greedy.sample(&[4.0, 3.0, -1.0], &[0, 0, 0], 0).unwrap(), 1); // 4/2 < 3
        assert_eq!(greedy.sample(&[4.0, 1.5, -1.0], &[0, 0, 0], 0).unwrap(), 0); // 4/2 > 1.5, 4/8 would not be
        assert_eq!(greedy.sample(&[-1.0, -1.5], &[0], 0).unwrap(), 1); // −1·2 < −1.5
        let tiny = sampler(SamplingConfig { repeat_penalty: 1e-40, temperature: 1.0, ..Default::default() });
        assert!(tiny.sample(&[4.0, 3.0], &[0, 1], 0).is_ok());
    }

    #[test]
    fn the_random_numbers_are_pinned() {
        // The first outputs of this generator; a change here changes everybody's seeded texts.
        assert_eq!(uniform(0, 0), PINNED[0]);
        assert_eq!(uniform(42, 7), PINNED[1]);
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32) / 25.0).collect();
        let config = SamplingConfig { temperature: 0.8, top_k: 40, top_p: 0.9, seed: 42, ..Default::default() };
        let drawn: Vec<u32> = (0..6).map(|step| sampler(config.clone()).sample(&logits, &[], step).unwrap()).collect();
        assert_eq!(drawn, PINNED_DRAWS);
    }
    const PINNED: [f64; 2] = [0.6524484863740322, 0.7347204584623639];
    const PINNED_DRAWS: [u32; 6] = [161, 423, 666, 232, 393, 232];

    #[test]
    fn bad_values_name_their_key() {
        let bad = [
            ("temperature", SamplingConfig { temperature: -0.1, ..hot() }),
            ("temperature", SamplingConfig { temperature: f64::NAN, ..hot() }),
            ("topP", SamplingConfig { top_p: 0.0, ..hot() }),
            ("topP", SamplingConfig { top_p: 1.01, ..hot() }),
            ("minP", SamplingConfig { min_p: -1.0, ..hot() }),
            ("repeatPenalty", SamplingConfig { repeat_penalty: 0.0, ..hot() }),
        ];
        for (key, config) in bad {
            let error = Sampler::new(config, TokenMask::default()).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.message.contains(key), "{error}");
        }
        let json: SamplingConfig = serde_json::from_str(r#"{"topK": 5, "repeatPenalty": 1.1}"#).unwrap();
        assert_eq!((json.top_k, json.repeat_penalty, json.top_p), (5, 1.1, 1.0));
        assert!(serde_json::from_str::<SamplingConfig>(r#"{"topk": 5}"#).unwrap_err().to_string().contains("topk"));
    }

    proptest! {
        /// Coarse logits make many ties; the candidates come shuffled, as a GPU may give them.
        #[test]
        fn candidates_give_the_answer_of_the_row(
            row in prop::collection::vec((-6i32..6).prop_map(|x| x as f32 * 0.75), 1..700),
            top_k in 0u32..900, top_p in 0.05f64..=1.0, min_p in 0.0f64..0.5, greedy in any::<bool>(),
            hidden in prop::collection::vec(0u32..700, 0..5), seed in any::<u64>(), step in any::<u64>(),
        ) {
            let mask = TokenMask::new(hidden.into_iter().map(|id| id..id + 1).chain(std::iter::once(650..u32::MAX)));
            let config = SamplingConfig {
                temperature: if greedy { 0.0 } else { 0.7 }, top_k, top_p, min_p, seed, ..Default::default()
            };
            let sampler = Sampler::new(config, mask.clone()).unwrap();
            let mut best: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).filter(|(id, _)| !mask.hides(*id)).collect();
            best.sort_by(descending);
            match sampler.candidates() {
                None => prop_assert_eq!(sampler.sample_candidates(&best, step).unwrap_err().kind, Kind::Invalid),
                Some(count) => {
                    best.truncate(count as usize);
                    best.sort_by_key(|(id, _)| id.wrapping_mul(0x9e37_79b9));
                    prop_assert_eq!(sampler.sample(&row, &[], step), sampler.sample_candidates(&best, step));
                }
            }
        }

        #[test]
        fn no_row_panics(
            row in prop::collection::vec(any::<f32>(), 0..300), history in prop::collection::vec(any::<u32>(), 0..9),
            temperature in 0.0f64..1e300, penalty in 1e-30f64..1e30, top_p in 1e-300f64..=1.0,
        ) {
            let config = SamplingConfig { temperature, top_p, repeat_penalty: penalty, ..Default::default() };
            if let Ok(id) = sampler(config).sample(&row, &history, 3) {
                prop_assert!(row[id as usize].is_finite());
            }
        }
    }
}
