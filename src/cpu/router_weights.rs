//! Of a token's logits `l[e]`: scores s = softmax(l), or sigmoid(l), or l itself where the softmax is over the chosen; the experts with
//! the highest s + b are chosen, of equal ones the lowest number; with groups, only experts of the best groups are chosen.
//! `w[e] = scaling · s[e] / (Σ chosen s + eps)` or `scaling · s[e]` for the chosen, 0 for all others; times a number of each expert
//! where there are such (transformers `Gemma4TextRouter`, `per_expert_scale`).
//!
//! Shazeer et al., "Outrageously Large Neural Networks" (arXiv 1701.06538); DeepSeek-V3 (arXiv 2412.19437) for sigmoid, the bias of
//! the choice and groups; the routers of transformers 5 for the order of operations. NaN is above every number, as in torch.

use super::real::Real;
use crate::model::{Router, RouterScore};

/// Weights [T, experts] of `logits` [T, experts]; `choice` is `[experts]`.
pub fn router_weights<T: Real>(router: &Router, logits: &[T], choice: Option<&[T]>) -> Vec<T> {
    logits.chunks_exact(router.experts.max(1)).flat_map(|row| of_token(router, row, choice)).collect()
}

/// Weights [T, experts], each times the number of its expert, `scales` `[experts]`.
pub fn scaled<T: Real>(mut weights: Vec<T>, scales: &[T]) -> Vec<T> {
    weights.chunks_exact_mut(scales.len().max(1)).for_each(|row| row.iter_mut().zip(scales).for_each(|(w, s)| *w = *w * *s));
    weights
}

/// The weights of one token.
fn of_token<T: Real>(router: &Router, logits: &[T], choice: Option<&[T]>) -> Vec<T> {
    let one = T::from_f32(1.0);
    let mut scores = match router.score {
        RouterScore::Softmax => softmax(logits),
        RouterScore::SoftmaxOfChosen => logits.to_vec(),
        RouterScore::Sigmoid => logits.iter().map(|x| one / (one + (-*x).exp())).collect(),
    };
    let mut keys: Vec<T> = scores.iter().enumerate().map(|(e, s)| choice.map_or(*s, |b| *s + b[e])).collect();
    if let Some(groups) = router.groups {
        let size = logits.len() / groups.count.max(1);
        let best = |keys: &[T]| highest(keys, groups.highest).into_iter().fold(T::default(), |sum, at| sum + keys[at]);
        let of_groups: Vec<T> = keys.chunks_exact(size.max(1)).map(best).collect();
        let open = highest(&of_groups, groups.chosen);
        for (e, key) in keys.iter_mut().enumerate() {
            if !open.contains(&(e / size.max(1))) {
                *key = T::from_f32(f32::NEG_INFINITY);
            }
        }
    }
    let chosen = highest(&keys, router.chosen);
    if router.score == RouterScore::SoftmaxOfChosen {
        let of_chosen = softmax(&chosen.iter().map(|e| logits[*e]).collect::<Vec<T>>());
        chosen.iter().zip(of_chosen).for_each(|(e, score)| scores[*e] = score);
    }
    let divisor = router.renormalise.map(|eps| {
        // Of the highest first, as they are added where they come sorted.
        chosen.iter().fold(T::default(), |sum, e| sum + scores[*e]) + T::from_f64(eps)
    });
    let mut weights = vec![T::default(); logits.len()];
    for e in chosen {
        let score = divisor.map_or(scores[e], |divisor| scores[e] / divisor);
        weights[e] = score * T::from_f64(router.scaling);
    }
    weights
}

fn softmax<T: Real>(x: &[T]) -> Vec<T> {
    let top = x.iter().copied().fold(x.first().copied().unwrap_or_default(), |a, b| if above(b, a) { b } else { a });
    let powers: Vec<T> = x.iter().map(|x| (*x - top).exp()).collect();
    let sum = super::real::sum(&powers);
    powers.into_iter().map(|p| p / sum).collect()
}

/// Whether `a` is chosen before `b`: NaN is above every number.
fn above<T: Real>(a: T, b: T) -> bool {
    let nan = |x: T| x.partial_cmp(&x).is_none();
    if nan(a) || nan(b) { nan(a) && !nan(b) } else { a > b }
}

/// Where the `count` highest of `x` are, highest first, of equal ones the first.
fn highest<T: Real>(x: &[T], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    let rank = |a: &usize, b: &usize| {
        let (a, b) = (x[*a], x[*b]);
        if above(a, b) {
            std::cmp::Ordering::Less
        } else if above(b, a) {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Equal
        }
    };
    order.sort_by(rank);
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouterGroups;

    const LOGITS: [f32; 16] = [
        -2.28125, -1.125, -0.984375, -2.421875, -0.15625, -0.90625, -1.46875, -2.40625, -1.0625, 0.453125, -1.171875, -0.375, -0.328125,
        2.53125, 0.34375, 0.703125,
    ];
    const BIAS: [f32; 8] = [-0.40625, -0.21875, -0.359375, -0.015625, -0.078125, -0.390625, 0.171875, 0.109375];
    const PLAIN: Router = Router {
        experts: 8,
        chosen: 3,
        score: RouterScore::Softmax,
        choice_bias: false,
        groups: None,
        renormalise: None,
        scaling: 1.0,
        scales: false,
    };
    const V3: Router = Router {
        score: RouterScore::Sigmoid,
        choice_bias: true,
        groups: Some(RouterGroups { count: 4, chosen: 2, highest: 2 }),
        renormalise: Some(1e-20),
        scaling: 2.5,
        ..PLAIN
    };

    /// Weights by token and expert, all others 0.
    fn sparse(of: [&[(usize, f32)]; 2]) -> Vec<f32> {
        let mut weights = vec![0.0; 16];
        for (token, of) in of.into_iter().enumerate() {
            of.iter().for_each(|(expert, weight)| weights[token * 8 + expert] = *weight);
        }
        weights
    }
    fn check(name: &str, router: &Router, choice: Option<&[f32]>, expected: [&[(usize, f32)]; 2]) {
        let expected = sparse(expected);
        let found = router_weights(router, &LOGITS, choice);
        let close = found.iter().zip(&expected).all(|(f, e)| (f - e).abs() <= 4e-7 * e.abs());
        assert!(close, "{name}: {found:?}, expected {expected:?}");
    }

    /// What the routers of transformers 5.24 (DeepseekV3TopkRouter, DeepseekV2TopkRouter, Qwen3MoeTopKRouter) give.
    #[test]
    fn as_transformers_has_them() {
        let v3: [&[_]; 2] =
            [&[(4, 1.576_995_3), (6, 0.640_122_83), (7, 0.282_881_92)], &[(5, 1.062_135_9), (6, 0.670_899_8), (7, 0.766_964_26)]];
        check("sigmoid, bias, groups", &V3, Some(&BIAS), v3);
        let groups = Some(RouterGroups { count: 4, chosen: 2, highest: 1 });
        let first = [(2, 0.378_366_83), (4, 0.866_090_3), (5, 0.409_112_1)];
        let v2 = Router { groups, scaling: 2.5, ..PLAIN };
        check("groups by their best", &v2, None, [&first, &[(5, 1.600_304_7), (6, 0.179_549_22), (7, 0.257_192_37)]]);
        let all = Router { scaling: 2.5, ..PLAIN };
        check("no groups", &all, None, [&first, &[(1, 0.200_301_62), (5, 1.600_304_7), (7, 0.257_192_37)]]);
        let of_one: [&[_]; 2] =
            [&[(2, 0.228_818_25), (4, 0.523_770_2), (5, 0.247_411_53)], &[(1, 0.097_337_81), (5, 0.777_677_95), (7, 0.124_984_22)]];
        check("divided", &Router { renormalise: Some(0.0), ..PLAIN }, None, of_one);
        check("softmax of the chosen", &Router { score: RouterScore::SoftmaxOfChosen, ..PLAIN }, None, of_one);
    }

    #[test]
    fn of_equal_ones_the_first_is_chosen_and_nan_before_all() {
        let router = Router { experts: 4, chosen: 2, score: RouterScore::Sigmoid, ..PLAIN };
        let chosen = |logits: [f32; 4]| router_weights(&router, &logits, None).iter().map(|w| *w != 0.0).collect::<Vec<_>>();
        assert_eq!(chosen([1.0, 2.0, 1.0, 1.0]), [true, true, false, false]);
        assert_eq!(chosen([0.0, -0.0, 0.0, -1.0]), [true, true, false, false]);
        assert_eq!(chosen([1.0, 2.0, f32::NAN, 3.0]), [false, false, true, true]);
    }
}
