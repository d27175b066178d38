//! From text to text: tokens, templates, a model's plan, sessions over any executor, sampling.
//! Nothing here knows how values are observed or shown.

pub mod chat;
pub mod choose;
pub mod decode;
pub mod pipeline;
pub mod rules;
pub mod sampling;
pub mod session;
pub mod tokenizer;
pub mod words;
