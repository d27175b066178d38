//! p[h, t, s] = exp(score[h, t, s] − m) / Σ exp(score[h, t, ·] − m), m the highest visible score; masked cells 0
//!
//! Softmax over the positions that query t sees (`attn_scores::visible`), as `torch.softmax` in the type computed in.

use super::attn_scores::visible;
use super::real::{Real, sum};
use crate::plan::Attention;

/// Probabilities of `scores` [heads, `tokens`, positions], the first query at position `first`, the first key at
/// `keys_first`; returns the same shape.
pub fn attn_probs<T: Real>(a: &Attention, scores: &[T], tokens: usize, first: usize, keys_first: usize) -> Vec<T> {
    let positions = scores.len() / (a.heads * tokens).max(1);
    let mut probs = vec![T::default(); scores.len()];
    let rows = scores.chunks_exact(positions.max(1)).zip(probs.chunks_exact_mut(positions.max(1)));
    for (row, (scores, probs)) in rows.enumerate() {
        let seen = visible(a, first + row % tokens, keys_first, positions);
        let (scores, probs) = (&scores[seen.clone()], &mut probs[seen]);
        let Some(highest) = scores.iter().copied().reduce(|m, x| if x > m { x } else { m }) else { continue };
        probs.iter_mut().zip(scores).for_each(|(p, &x)| *p = (x - highest).exp());
        let total = sum(probs);
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
        let probs = attn_probs(&attention(1, 1, 1, Some(2)), &scores, 2, 1, 0);
        for (p, expected) in probs.iter().zip([0.25, 0.75, 0.0, 0.0, 0.5, 0.5]) {
            assert!((p - expected).abs() < 1e-15, "{probs:?}");
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let probs = attn_probs(&attention(1, 1, 1, None), &[1e4f32, 1e4], 1, 1, 0);
        assert_eq!(probs, [0.5, 0.5]);
    }
}
