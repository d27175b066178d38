//! The real binary from outside, on the golden models of `tests/data`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say what they skip")]

mod activations;
mod bad_input;
mod changing;
mod compare;
mod convert;
mod doctor;
mod ending;
mod golden;
mod hub;
mod numbers;
mod outputs;
mod private;
mod python;
mod resident;
mod seeing;
mod serving;
mod support;
mod surface;
mod tables;
mod talking;
mod terminal;
