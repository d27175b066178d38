//! `--surface browser`: a tab of a headless browser that holds a model and answers for an executor. `bundle` is what the
//! tab runs, `server` what it is given, `tab` the tab.

mod bundle;
mod server;
mod tab;

pub use bundle::{SITE, find as find_bundle};
pub use server::{Files, Server};
pub use tab::{Tab, patch};
