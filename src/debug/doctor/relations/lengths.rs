//! How long sequences must be to go past every place at which something changes for a model.

use crate::plan::{Plan, StateKind};
use std::collections::BTreeMap;

/// A length to examine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Length {
    /// Tokens.
    pub tokens: usize,
    /// What it is for.
    pub why: String,
}

/// Tokens of the shortest sequence: enough for a prompt that is read as prompts are, and some decode.
const SHORT: usize = 14;
/// Tokens beyond a place.
const BEYOND: usize = 6;
/// Positions at which kernels begin another tile of what they divide: rows of products, and positions of attention.
const TILES: [usize; 2] = [64, 128];
/// More slots than window and chunk that a ring has (`geometry`), and a chunk of `Script`.
const RING: usize = 16 + 8;

/// Lengths of sequences for `plan`, the shortest first, as far as `most` multiplications with weights go; and what is left out.
pub fn lengths(plan: &Plan, most: u64) -> (Vec<Length>, Vec<String>) {
    let weights: u64 = plan.weights.iter().filter(|slot| slot.shape.len() > 1).map(|slot| slot.elements() as u64).sum();
    // About as many ways as there are, and the oracles.
    let affordable = usize::try_from(most / (weights.max(1) * 16)).unwrap_or(usize::MAX).min(plan.max_positions);
    let mut places: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut place = |at: usize, why: String| places.entry(at).or_default().push(why);
    for state in &plan.states {
        if let Some(window) = state.kind.window() {
            let what = match state.kind {
                StateKind::Matrix(_) => continue,
                StateKind::Kv(_) => "a window",
                StateKind::Conv(_) => "a convolution",
            };
            place(window, format!("{what} of {window}"));
            place(window + RING, format!("the ring of {what} of {window}"));
        }
    }
    TILES.iter().for_each(|tile| place(*tile, format!("tiles of {tile}")));
    let limit = plan.longrope_limit();
    if let Some(limit) = limit {
        place(limit, format!("the other factors of longrope from {limit} on"));
    }
    let short = SHORT.min(plan.max_positions).min(limit.unwrap_or(usize::MAX));
    let mut found = vec![Length { tokens: short, why: "a short prompt and decode".into() }];
    let (mut within, mut left_out, mut reached) = (Vec::new(), Vec::new(), 0);
    for (at, mut why) in places.into_iter().filter(|(at, _)| at + 1 < plan.max_positions) {
        why.dedup();
        let tokens = (at + BEYOND).min(plan.max_positions);
        if tokens <= affordable {
            reached = tokens;
            within.extend(why);
        } else {
            left_out.push(format!("relations beyond {at} tokens ({}): that many tokens take too long here", why.join(", ")));
        }
    }
    // Longrope's lists are two models: the shorter one at its longest, too.
    if let Some(limit) = limit.filter(|limit| *limit < reached && *limit > short) {
        found.push(Length { tokens: limit, why: "as long as the shorter list of longrope goes".into() });
    }
    if reached > short {
        found.push(Length { tokens: reached, why: format!("beyond {}", within.join(", ")) });
    }
    (found, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RopeConfig, RopeScaling};
    use crate::plan::builder::Builder;

    #[test]
    fn lengths_go_past_every_place_or_say_so() {
        let scaling =
            RopeScaling::LongRope { short_factor: vec![1.0], long_factor: vec![2.0], original_max_positions: 40, attention_factor: 1.0 };
        let ropes = vec![RopeConfig { scaling, ..RopeConfig::plain(1e4, 2) }];
        let plan = Builder::new(ropes, 0, 9, 1000).finish().unwrap();
        let tokens = |most| lengths(&plan, most).0.iter().map(|length| length.tokens).collect::<Vec<_>>();
        assert_eq!(tokens(u64::MAX), [14, 40, 134]);
        assert_eq!(tokens(16 * 50), [14, 40, 46]);
        let (few, left_out) = lengths(&plan, 0);
        assert_eq!((few.len(), left_out.len()), (1, 3), "{left_out:?}");
        assert!(left_out[0].contains("longrope from 40"), "{left_out:?}");
    }
}
