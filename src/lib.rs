//! Doppler: an LLM inference engine on WebGPU whose intermediate values can be seen, compared and explained.
//!
//! A config becomes a [`plan::Plan`]; an [`exec::Executor`] runs it (the CPU oracle or the GPU);
//! [`inference::session`] turns that into text. This crate prints nothing and knows no command line.

pub mod bench;
pub mod config;
#[cfg(not(target_arch = "wasm32"))]
pub mod convert;
pub mod cpu;
pub mod debug;
pub mod error;
pub mod exec;
pub mod forecast;
pub mod formats;
pub mod geometry;
pub mod gpu;
pub mod groups;
pub mod inference;
mod json;
pub mod loader;
pub mod model;
pub mod open;
pub mod plan;
pub mod quant;
pub mod remote;
pub mod settings;
pub mod tensor;
mod threads;
pub mod tuned;

pub use error::{Error, Kind, Result};
