//! p[h, t, s] = exp(score[h, t, s] − m) / (Σ exp(score[h, t, ·] − m) + exp(sink[h] − m)), m the highest visible score, or the sink;
//! masked cells 0
//!
//! Softmax over the positions that query t sees (`attn_scores::visible`), as `torch.softmax` in the type computed in. A head may have a
//! sink, one score more whose probability goes nowhere (Xiao and others, arXiv 2309.17453; learned, as in gpt-oss): then they add up to less than 1.

use super::attn_scores::visible;
use super::real::{Real, sum};
use crate::plan::Attention;

/// Probabilities of `scores` [heads, `tokens`, positions], the first query at position `first`, the first key at
/// `keys_first`; returns the same shape. `sinks` has one for each head, where there are any.
pub fn attn_probs<T: Real>(a: &Attention, scores: &[T], sinks: Option<&[T]>, tokens: usize, first: usize, keys_first: usize) -> Vec<T> {
    let positions = scores.len() / (a.heads * tokens).max(1);
    let mut probs = vec![T::default(); scores.len()];
    let rows = scores.chunks_exact(positions.max(1)).zip(probs.chunks_exact_mut(positions.max(1)));
    for (row, (scores, probs)) in rows.enumerate() {
        let seen = visible(a, first + row % tokens, keys_first, positions);
        let (scores, probs) = (&scores[seen.clone()], &mut probs[seen]);
        let sink = sinks.and_then(|sinks| sinks.get(row / tokens.max(1)).copied());
        let Some(highest) = scores.iter().copied().chain(sink).reduce(|m, x| if x > m { x } else { m }) else { continue };
        probs.iter_mut().zip(scores).for_each(|(p, &x)| *p = (x - highest).exp());
        let total = sum(probs) + sink.map_or(T::default(), |sink| (sink - highest).exp());
        probs.iter_mut().for_each(|p| *p = *p / total);
    }
    probs
}

#[cfg(test)]
mod tests {
    use super::super::attn_scores::tests::attention;
    use super::*;

    #[test]
    fn softmax_of_what_is_seen() {
        let ln = |x: f64| x.ln();
        // One head, two queries at positions 1 and 2 of three; window 2.
        let scores = [ln(1.0), ln(3.0), 0.0, 0.0, ln(1.0), ln(1.0)];
        let probs = attn_probs(&attention(1, 1, 1, Some(2)), &scores, None, 2, 1, 0);
        for (p, expected) in probs.iter().zip([0.25, 0.75, 0.0, 0.0, 0.5, 0.5]) {
            assert!((p - expected).abs() < 1e-15, "{probs:?}");
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let probs = attn_probs(&attention(1, 1, 1, None), &[1e4f32, 1e4], None, 1, 1, 0);
        assert_eq!(probs, [0.5, 0.5]);
    }

    #[test]
    fn sinks_take_their_part_and_may_be_the_highest() {
        let ln = |x: f64| x.ln();
        // Two heads, one query that sees two positions.
        let scores = [ln(1.0), ln(2.0), 0.0, 0.0];
        let probs = attn_probs(&attention(2, 1, 1, None), &scores, Some(&[ln(1.0), ln(6.0)]), 1, 1, 0);
        for (p, expected) in probs.iter().zip([0.25, 0.5, 0.125, 0.125]) {
            assert!((p - expected).abs() < 1e-15, "{probs:?}");
        }
        assert_eq!(attn_probs(&attention(1, 1, 1, None), &[0.0f32], Some(&[1e4]), 1, 0, 0), [0.0]);
    }
}
