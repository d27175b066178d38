//! What a comparison left out although nobody asked for that: with any of it, sides that agree are not known to agree.

use crate::plan::{At, Stage};
use serde::{Serialize, Serializer};
use std::fmt;

/// Something that was left out. Its words are its text, in JSON too.
#[derive(Debug, Clone, PartialEq)]
pub enum NotJudged {
    /// Tokens from this position on: one side has no values of them.
    Absent(usize),
    /// Tokens from this position on: they differ, or a side does not say which they are.
    OtherTokens(usize),
    /// The run that nobody watches: the reference has no final logits, and there is no oracle.
    Unobserved,
    /// Steps of several sequences: the reference has no final logits of their tokens, and neither has an oracle.
    Together,
    /// What follows a choice of experts that rounding alone turns around.
    NearTie {
        /// Where they are chosen.
        at: At,
        /// The first token that chose so; values of earlier ones are judged.
        token: usize,
        /// The expert that A chose, and the one that B chose.
        experts: [usize; 2],
        /// How far their logits are apart.
        apart: f64,
        /// How far rounding may bring them.
        allowed: f64,
    },
    /// Ops that read keys and values of all tokens, after the factors of a longrope model changed.
    AfterCrossing {
        /// Stages of the ops.
        stages: Vec<Stage>,
        /// The first token with the other factors.
        first: usize,
        /// The last token of the comparison.
        last: usize,
    },
}

impl fmt::Display for NotJudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotJudged::Absent(from) => write!(f, "tokens that one side lacks, from {from} on"),
            NotJudged::OtherTokens(from) => write!(f, "tokens from {from} on, which differ or are unknown"),
            NotJudged::Unobserved => {
                f.write_str("the run that nobody watches: A has no final logits, and there is no oracle to take them from")
            }
            NotJudged::Together => f.write_str("steps of several sequences: nobody has final logits of their tokens"),
            NotJudged::NearTie { at, token, experts: [a, b], apart, allowed } => write!(
                f,
                "values from {at} on, of tokens from {token} on: there A chooses expert {a} and B expert {b}, whose logits are {apart:.1e} apart, and rounding alone may move them by {allowed:.1e}; set router_weights to A's (`--set`) to compare what follows"
            ),
            NotJudged::AfterCrossing { stages, first, last } => {
                let stages: Vec<&str> = stages.iter().map(|stage| stage.name()).collect();
                write!(
                    f,
                    "{} of tokens {first}-{last}: the position encoding changes for all keys at token {first}, and the dump does not hold the new keys; compare without --isolated, or a dump whose prompt is longer than {first}",
                    stages.join(" and ")
                )
            }
        }
    }
}

impl Serialize for NotJudged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
