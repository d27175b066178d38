//! The choice among logits that an executor makes by itself: the greedy token, and the highest candidates.
//! Eligible are ids below `Pick::valid` other than `Pick::masked` whose logit is a number above −∞.

use crate::exec::Pick;

/// The lowest id among the highest eligible logits, where one is eligible.
pub fn greedy(logits: &[f32], rules: Pick) -> Option<u32> {
    let best = eligible(logits, Some(rules)).reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(id, _)| id)
}

/// The `k` highest eligible logits with their ids, highest first, ties by ascending id; fewer where fewer are eligible.
pub fn top(logits: &[f32], rules: Option<Pick>, k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = eligible(logits, rules).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0));
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
    }
    all.truncate(k);
    all.sort_unstable_by(order);
    all
}

fn eligible(logits: &[f32], rules: Option<Pick>) -> impl Iterator<Item = (u32, f32)> {
    let valid = rules.map_or(logits.len(), |r| r.valid);
    let masked = rules.and_then(|r| r.masked);
    (0u32..).zip(logits.iter().copied()).take(valid).filter(move |(id, x)| *x > f32::NEG_INFINITY && Some(*id) != masked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Pick = Pick { valid: usize::MAX, masked: None };

    #[test]
    fn lowest_id_among_the_highest() {
        let logits = [1.0, f32::NAN, 3.0, 3.0, 2.0];
        assert_eq!(greedy(&logits, ALL), Some(2));
        assert_eq!(greedy(&logits, Pick { masked: Some(2), ..ALL }), Some(3));
        assert_eq!(greedy(&logits, Pick { valid: 2, masked: None }), Some(0));
        assert_eq!(greedy(&[f32::NAN, f32::NEG_INFINITY], ALL), None);
    }

    #[test]
    fn top_is_sorted_and_ties_ascend() {
        let logits = [1.0, 3.0, f32::NAN, 3.0, -1.0];
        assert_eq!(top(&logits, None, 3), [(1, 3.0), (3, 3.0), (0, 1.0)]);
        assert_eq!(top(&logits, Some(Pick { valid: 3, masked: Some(1) }), 9), [(0, 1.0)]);
        assert_eq!(top(&logits, None, 0), []);
        assert_eq!(top(&[f32::NAN], None, 1), []);
    }
}
