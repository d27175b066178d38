//! `doctor`: what is wrong with a model on this machine. Checks are ordered from cheap to dear; a fault is named only when
//! changing it makes the wrong numbers right, and nothing else wrong. What is not known is said, and what was not looked at.
//!
//! Everything here is about numbers that anyone can repeat: no name, path or date of a file is evidence.

pub mod against;
pub mod alone;
mod case;
pub mod cause;
pub mod checks;
pub mod device;
mod hypotheses;
pub mod mend;
pub mod mended;
mod numbers;
pub mod opening;
pub mod relations;
pub mod report;
pub mod trial;
mod variants;
pub mod words;
pub mod wrong_op;

pub use cause::Cause;
pub use report::{Fault, Fix, Outcome, Site, Suspect, Verdict};
