//! A headless Chromium: found on this machine, started with WebGPU, steered through its DevTools, and ended with
//! everything it left; and whether the files that it is to show are up to date (`site`). It knows nothing of models. What
//! goes wrong is a text for people.

mod devtools;
mod find;
mod process;
mod profile;
pub mod site;

pub use devtools::Page;
pub use find::find;
pub use process::{Adapter, Browser};

/// Failures are texts that say what to do next.
pub type Result<T> = std::result::Result<T, String>;

/// 128 random bits of the system as 32 hexadecimal digits: a name or a path that nobody can guess.
///
/// # Errors
/// When the system has no randomness to give.
pub fn secret() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| format!("random numbers of the system: {e}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
