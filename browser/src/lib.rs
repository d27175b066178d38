//! A headless Chromium: found on this machine, started with WebGPU, steered through its DevTools, and ended with
//! everything it left. It knows nothing of models. What goes wrong is a text for people.

mod devtools;
mod find;
mod process;

pub use devtools::Page;
pub use find::find;
pub use process::{Adapter, Browser};

/// Failures are texts that say what to do next.
pub type Result<T> = std::result::Result<T, String>;
