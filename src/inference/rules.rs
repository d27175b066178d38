//! A model's rules for the choice of tokens, applied to a row of logits: in the order, and with the f32 arithmetic, of the
//! logits processors of transformers 5 (`generation/logits_process.py`). It knows no file and no sampler.

use crate::model::GenerationRules;
use std::collections::BTreeMap;

const NEVER: f32 = f32::NEG_INFINITY;

/// Where a generation is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The sequence so far.
    pub ids: &'a [u32],
    /// How many of them are the prompt, and what came before it.
    pub prompt: usize,
    /// New tokens at most.
    pub max_tokens: usize,
}

/// Changes `logits` [vocabulary rows] as `rules` say. Ids that it has no row for are passed over.
pub fn apply(rules: &GenerationRules, logits: &mut [f32], at: Place<'_>) {
    let Place { ids, prompt, max_tokens } = at;
    let before = &ids[..prompt.min(ids.len())];
    let new = ids.len() - before.len();
    let row = &mut Row(logits);
    let biases = rules.sequence_bias.iter().map(|(sequence, bias)| (&sequence[..], *bias));
    row.bias(biases, ids);
    // The prompt's ids become likelier by dividing the penalty.
    row.penalise(before, rules.encoder_repetition_penalty.map(|penalty| 1.0 / penalty));
    row.penalise(ids, rules.repetition_penalty);
    row.count(&ids[before.len()..], rules.presence_penalty, rules.frequency_penalty);
    row.ban_repeats(rules.no_repeat_ngram, ids, ids);
    row.ban_repeats(rules.encoder_no_repeat_ngram, before, ids);
    let single_eos = |sequence: &[u32]| matches!(sequence, [id] if rules.eos.contains(id));
    row.bias(rules.bad_words.iter().map(|words| (&words[..], NEVER)).filter(|(words, _)| !single_eos(words)), ids);
    if ids.len() < rules.min_length || new < rules.min_new_tokens {
        row.ban(&rules.eos);
    }
    if ids.len() == 1 {
        row.force(&rules.forced_bos);
    }
    if new + 1 == max_tokens {
        row.force(&rules.forced_eos);
    }
    if let Some((start, factor)) = rules.exponential_decay
        && new > start
    {
        let beyond = libm::pow(factor, (new - start) as f64) - 1.0;
        row.change(&rules.eos, |x| if x.is_finite() { x + x.abs() * beyond as f32 } else { x });
    }
    row.ban(&rules.suppress);
    let first = usize::from(prompt == 1 && !rules.forced_bos.is_empty());
    if new == first {
        row.ban(&rules.begin_suppress);
    }
}

struct Row<'a>(&'a mut [f32]);

impl Row<'_> {
    fn change(&mut self, ids: &[u32], f: impl Fn(f32) -> f32) {
        for (i, id) in ids.iter().enumerate() {
            if let Some(x) = self.0.get_mut(*id as usize).filter(|_| !ids[..i].contains(id)) {
                *x = f(*x);
            }
        }
    }
    fn ban(&mut self, ids: &[u32]) {
        for id in ids {
            self.add(*id, NEVER);
        }
    }
    fn add(&mut self, id: u32, bias: f32) {
        if let Some(x) = self.0.get_mut(id as usize) {
            *x += bias;
        }
    }
    /// Only `ids` can be chosen, if there are any.
    fn force(&mut self, ids: &[u32]) {
        if !ids.is_empty() {
            self.0.fill(NEVER);
            self.change(ids, |_| 0.0);
        }
    }
    fn bias<'s>(&mut self, sequences: impl Iterator<Item = (&'s [u32], f32)>, ids: &[u32]) {
        for (sequence, bias) in sequences {
            if let [start @ .., last] = sequence
                && ids.ends_with(start)
            {
                self.add(*last, bias);
            }
        }
    }
    /// Divides positive logits of `ids` by the penalty and multiplies the others with it, once for each id.
    fn penalise(&mut self, ids: &[u32], penalty: Option<f32>) {
        let Some(penalty) = penalty else { return };
        let mut seen = vec![false; self.0.len()];
        for id in ids {
            let (Some(x), Some(seen)) = (self.0.get_mut(*id as usize), seen.get_mut(*id as usize)) else { continue };
            if !std::mem::replace(seen, true) && x.is_finite() {
                let scaled = if *x < 0.0 { *x * penalty } else { *x / penalty };
                *x = scaled.clamp(f32::MIN, f32::MAX);
            }
        }
    }
    /// Takes `presence` from the logits of `new` ids, and `frequency` for each time that they occur: the penalties of the
    /// OpenAI API (their formula is in its reference).
    fn count(&mut self, new: &[u32], presence: f32, frequency: f32) {
        if presence == 0.0 && frequency == 0.0 {
            return;
        }
        let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
        new.iter().for_each(|id| *counts.entry(*id).or_default() += 1.0);
        for (id, count) in counts {
            self.add(id, -(frequency * count + presence));
        }
    }
    /// Bans ids that would end a sequence of `size` ids which `known` holds; `ids` is what they would follow.
    fn ban_repeats(&mut self, size: usize, known: &[u32], ids: &[u32]) {
        if size == 0 || ids.len() + 1 < size {
            return;
        }
        let start = &ids[ids.len() + 1 - size..];
        for window in known.windows(size) {
            if window[..size - 1] == *start {
                self.add(window[size - 1], NEVER);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row 1, 2, 3, -4, 5, 6, 7, 8 after `rules`.
    fn row(rules: GenerationRules, ids: &[u32], prompt: usize, max_tokens: usize) -> Vec<f32> {
        let mut row = [1.0, 2.0, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0].to_vec();
        apply(&GenerationRules { eos: vec![6], ..rules }, &mut row, Place { ids, prompt, max_tokens });
        row
    }

    fn banned(rules: GenerationRules, ids: &[u32], prompt: usize, max_tokens: usize) -> Vec<usize> {
        row(rules, ids, prompt, max_tokens).iter().enumerate().filter(|(_, x)| **x == NEVER).map(|(i, _)| i).collect()
    }

    fn none() -> GenerationRules {
        GenerationRules::default()
    }

    #[test]
    fn factors_and_biases_change_logits_once() {
        let repetition = GenerationRules { repetition_penalty: Some(2.0), ..none() };
        assert_eq!(row(repetition, &[2, 3, 2, 99], 1, 9), [1.0, 2.0, 1.5, -8.0, 5.0, 6.0, 7.0, 8.0]);
        let of_prompt = GenerationRules { encoder_repetition_penalty: Some(2.0), ..none() };
        assert_eq!(row(of_prompt, &[2, 3], 1, 9), [1.0, 2.0, 6.0, -4.0, 5.0, 6.0, 7.0, 8.0]);
        let bias = GenerationRules { sequence_bias: vec![(vec![0], 0.5), (vec![1, 2], -1.0), (vec![3, 2], 9.0)], ..none() };
        assert_eq!(row(bias, &[0, 1], 1, 9), [1.5, 2.0, 2.0, -4.0, 5.0, 6.0, 7.0, 8.0]);
        let counted = GenerationRules { presence_penalty: 0.5, frequency_penalty: 0.25, ..none() };
        assert_eq!(row(counted, &[0, 1, 2, 1, 99], 1, 9), [1.0, 1.0, 2.25, -4.0, 5.0, 6.0, 7.0, 8.0], "the prompt's ids are not counted");
        let decay = GenerationRules { exponential_decay: Some((1, 2.0)), ..none() };
        assert_eq!(row(decay.clone(), &[0, 1], 1, 9)[6], 7.0);
        assert_eq!(row(decay, &[0, 1, 1, 1], 1, 9)[6], 7.0 + 7.0 * 3.0);
    }

    #[test]
    fn bans_hold_where_they_should() {
        let suppress = GenerationRules { suppress: vec![1, 99], begin_suppress: vec![5], ..none() };
        assert_eq!(banned(suppress.clone(), &[0, 0], 2, 9), [1, 5]);
        assert_eq!(banned(suppress, &[0, 0, 0], 2, 9), [1]);
        let words = GenerationRules { bad_words: vec![vec![4], vec![6], vec![1, 2], vec![1, 3, 5]], ..none() };
        assert_eq!(banned(words.clone(), &[1, 3], 1, 9), [4, 5], "an end-of-sequence id alone is no bad word");
        assert_eq!(banned(words, &[1], 1, 9), [2, 4]);
        let repeats = |size| GenerationRules { no_repeat_ngram: size, ..none() };
        assert_eq!(banned(repeats(1), &[1, 2], 1, 9), [1, 2]);
        assert_eq!(banned(repeats(2), &[1, 2, 3, 1], 1, 9), [2]);
        assert_eq!(banned(repeats(3), &[1, 2, 3, 1], 1, 9), [0; 0]);
        assert_eq!(banned(repeats(9), &[1], 1, 9), [0; 0]);
        let of_prompt = GenerationRules { encoder_no_repeat_ngram: 2, ..none() };
        assert_eq!(banned(of_prompt, &[1, 2, 1, 3, 1], 2, 9), [2]);
    }

    #[test]
    fn ends_are_delayed_and_forced() {
        assert_eq!(banned(GenerationRules { min_length: 3, ..none() }, &[0, 0], 1, 9), [6]);
        assert_eq!(banned(GenerationRules { min_length: 3, ..none() }, &[0, 0, 0], 1, 9), [0; 0]);
        assert_eq!(banned(GenerationRules { min_new_tokens: 2, ..none() }, &[0, 0, 0], 2, 9), [6]);
        let forced = GenerationRules { forced_bos: vec![1], forced_eos: vec![6], begin_suppress: vec![2], ..none() };
        assert_eq!(row(forced.clone(), &[0], 1, 9)[..3], [NEVER, 0.0, NEVER]);
        assert_eq!(banned(forced.clone(), &[0, 1], 1, 9), [2], "the first token after a forced one");
        assert_eq!(row(forced.clone(), &[0, 1, 2], 1, 3)[6], 0.0);
        assert_eq!(banned(forced, &[0, 1, 2], 1, 3).len(), 7);
    }
}
