//! `--surface browser`: a tab of a headless browser that holds a model and answers for an executor. `bundle` is what the
//! tab runs, which `build` builds, `server`, `packed` and `pieces` what it is given, `tab` the tab.

mod build;
mod bundle;
mod packed;
mod pieces;
mod server;
mod tab;

pub use bundle::{SITE, find as find_bundle};
pub use server::{Files, Server};
pub use tab::{Tab, patch};
