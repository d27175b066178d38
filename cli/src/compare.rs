//! Pieces of `doppler compare` that work on whole texts, checkpoints, tokens and bundles. Each takes models and engines
//! that are open, writes its lines to `out`, and returns how it ended with its JSON document.
#![allow(dead_code, reason = "the command itself calls them")]

pub mod attribution;
pub mod replay;
pub mod text;
pub mod tokens;
