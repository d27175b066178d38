//! Doppler: an LLM inference engine on WebGPU whose intermediate values can be seen, compared and explained.
//!
//! [`Model`] is the front door: it opens a model of this machine, continues a prompt, answers a conversation, and shows the
//! values that are computed on the way, each under its name. This is `examples/hello.rs`:
//!
//! ```no_run
//! use doppler::{AnswerOptions, Message, Model, Result};
//!
//! pub fn main() -> Result<()> {
//!     let model = Model::open("models/demo")?;
//!     let options = AnswerOptions { max_tokens: 16, ..AnswerOptions::default() };
//!     model.generate("The color of the sky is", &options, |text| print!("{text}"))?;
//!
//!     let answer = model.chat(&[Message::new("user", "What color is the sky?")], &options, |_| ())?;
//!     println!("\n{} ({:?})", answer.text, answer.stop);
//!
//!     for value in model.observe("The color of the sky is", &["ffn_out@0-2", "logits_final"])? {
//!         println!("{} {:?}", value.at, value.tensor.shape);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! It prints the same with a GPU and without ([`Model::open_with`] chooses a [`Device`]):
//!
//! ```text
//!  blue.
//! The sky is blue. (Eos)
//! L0 ffn_out [7, 256]
//! L1 ffn_out [7, 256]
//! L2 ffn_out [7, 256]
//! logits_final [7, 1531]
//! ```
//!
//! Values are tensors of f32: `[tokens, width]`, or `[heads, tokens, positions]` for attention. Every function that can fail
//! returns [`Error`], whose [`Kind`] is for programs and whose text says where, what was expected and found, and what to try.
//!
//! Below that door, a config becomes a [`plan::Plan`]; an [`exec::Executor`] runs it (the CPU oracle or the GPU);
//! [`inference::session`] turns that into text; [`debug`] watches and compares. This crate prints nothing and knows no command
//! line. On wasm32 it has no front door, as nothing may wait there: the package `@doppler/web` is that.

pub mod bench;
pub mod config;
#[cfg(not(target_arch = "wasm32"))]
pub mod convert;
pub mod cpu;
pub mod debug;
pub mod engine;
pub mod error;
pub mod exec;
pub mod forecast;
pub mod formats;
#[cfg(not(target_arch = "wasm32"))]
pub mod front;
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

pub use engine::Device;
pub use error::{Error, Kind, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use front::{Answer, AnswerOptions, Flow, Model, OpenOptions, Value};
pub use inference::chat::Message;
