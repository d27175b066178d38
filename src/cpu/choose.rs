//! The choice among logits that an executor makes by itself: the greedy token, and the highest candidates.
//! Eligible are ids below `Pick::valid` whose logit is not −∞. NaN ranks above every number, so that a row with NaN is seen
//! to have one: nothing is chosen from it.

use crate::exec::Pick;

/// The lowest id among the highest eligible logits; `None` where none is eligible, or one is NaN or +∞.
pub fn greedy(logits: &[f32], rules: Pick) -> Option<u32> {
    let above = |a: f32, b: f32| a > b || (a.is_nan() && !b.is_nan());
    let best = eligible(logits, Some(rules)).reduce(|best, next| if above(next.1, best.1) { next } else { best });
    best.filter(|(_, logit)| logit.is_finite()).map(|(id, _)| id)
}

/// The `k` highest eligible logits with their ids, highest first, ties by ascending id; fewer where fewer are eligible.
pub fn top(logits: &[f32], rules: Option<Pick>, k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = eligible(logits, rules).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| {
        let numbers = || b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal);
        b.1.is_nan().cmp(&a.1.is_nan()).then_with(numbers).then(a.0.cmp(&b.0))
    };
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
    }
    all.truncate(k);
    all.sort_unstable_by(order);
    all
}

fn eligible(logits: &[f32], rules: Option<Pick>) -> impl Iterator<Item = (u32, f32)> {
    let valid = rules.map_or(logits.len(), |r| r.valid);
    (0u32..).zip(logits.iter().copied()).take(valid).filter(|(_, x)| *x != f32::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Pick = Pick { valid: usize::MAX };

    #[test]
    fn lowest_id_among_the_highest() {
        let logits = [1.0, f32::NEG_INFINITY, 3.0, 3.0, 2.0];
        assert_eq!(greedy(&logits, ALL), Some(2));
        assert_eq!(greedy(&logits, Pick { valid: 2 }), Some(0));
        assert_eq!(greedy(&[f32::NEG_INFINITY; 2], ALL), None);
        // A row that is broken chooses nothing, unless the broken entry could not be chosen anyway.
        for broken in [f32::NAN, -f32::NAN, f32::INFINITY] {
            assert_eq!(greedy(&[1.0, broken, 3.0], ALL), None);
            assert_eq!(greedy(&[broken, 3.0, 1.0], ALL), None);
            assert_eq!(greedy(&[1.0, 3.0, broken], Pick { valid: 2 }), Some(1));
        }
    }

    #[test]
    fn top_is_sorted_and_ties_ascend() {
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, -1.0];
        assert_eq!(top(&logits, None, 3), [(1, 3.0), (3, 3.0), (0, 1.0)]);
        assert_eq!(top(&logits, Some(Pick { valid: 3 }), 9), [(1, 3.0), (0, 1.0)]);
        assert_eq!(top(&logits, None, 0), []);
        assert_eq!(top(&[f32::NEG_INFINITY], None, 1), []);
        let broken = top(&[1.0, f32::NAN, 5.0, f32::INFINITY], None, 2);
        assert!(broken[0].0 == 1 && broken[0].1.is_nan() && broken[1] == (3, f32::INFINITY), "{broken:?}");
    }
}
