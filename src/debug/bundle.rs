//! Replay bundles: everything that repeating a run elsewhere takes, in one file, but the weights, which are identified by
//! fingerprints. A bundle is a dump whose metadata holds a `bundle`: whatever reads dumps reads it.

mod contents;
mod fingerprint;
mod replay;

pub use contents::{Contents, Run};
#[cfg(not(target_arch = "wasm32"))]
pub use fingerprint::fingerprints;
pub use fingerprint::{Difference, Fingerprint, differences, fingerprint, fingerprint_text};
pub use replay::{Replayed, replay};

use super::anomaly::surroundings;
use super::dump::{Dump, DumpObserver};
use crate::error::{Error, Result};
use crate::plan::{At, Plan, Stage};

/// Key of the metadata.
const KEY: &str = "bundle";
/// Version of what stands there.
const VERSION: u32 = 1;

/// An opened bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// What was run, and how.
    pub contents: Contents,
    /// The run's ids and values.
    pub dump: Dump,
}

impl Bundle {
    /// Maps and checks the bundle at `path`.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Format` for files that are no dumps, dumps that are no bundles, and other versions.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: &std::path::Path) -> Result<Self> {
        Self::of(Dump::open(path)?)
    }
    /// The bundle that a dump is.
    ///
    /// # Errors
    /// `Kind::Format` as for `open`.
    pub fn of(dump: Dump) -> Result<Self> {
        let bad = |text: String| Error::format(dump.name(), text);
        let Some(text) = dump.metadata.get(KEY) else {
            let text = "a dump, but no replay bundle: its metadata has no `bundle`; `doppler debug --bundle FILE` writes one, and `doppler compare` compares dumps";
            return Err(bad(text.into()));
        };
        // The version first, as other versions may hold other things.
        #[derive(serde::Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_str(text).map_err(|e| bad(format!("corrupt `bundle`: {e}")))?;
        if versioned.version != VERSION {
            return Err(bad(format!("a bundle of version {}, but this is version {VERSION}: write it again", versioned.version)));
        }
        let contents: Contents = serde_json::from_str(text).map_err(|e| bad(format!("corrupt `bundle`: {e}")))?;
        contents.check().map_err(|e| e.within(dump.name()))?;
        Ok(Self { contents, dump })
    }
    /// Ids of the prompt.
    ///
    /// # Errors
    /// As `Dump::input_ids`.
    pub fn input_ids(&self) -> Result<Vec<u32>> {
        self.dump.input_ids()
    }
    /// Ids that were generated.
    ///
    /// # Errors
    /// As `Dump::generated_ids`.
    pub fn generated_ids(&self) -> Result<Vec<u32>> {
        Ok(self.dump.generated_ids()?.unwrap_or_default())
    }
}

impl Contents {
    /// Writes a bundle to `path`: these contents, and what `dump` saw of the same run.
    ///
    /// # Errors
    /// `Kind::Io`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn finish(&self, dump: &DumpObserver, path: &std::path::Path) -> Result<()> {
        crate::formats::source::write_atomically(path, |out| self.write(dump, out))
    }
    /// Writes it, as `finish` does, to `out`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, dump: &DumpObserver, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let text = serde_json::to_string(self).map_err(std::io::Error::other)?;
        dump.write(out, &[("model", &self.model), ("dtype", &self.dtype), ("device", &self.device), (KEY, &text)])
    }
}

/// The values that a bundle holds in full: those around `at`, where something was found; else what shows in which layer
/// a run goes another way, the residual stream.
pub fn values(plan: &Plan, at: Option<At>) -> Vec<At> {
    let around = at.map(|at| surroundings(plan, at)).unwrap_or_default();
    if !around.is_empty() {
        return around;
    }
    let stream = [Stage::EmbedOut, Stage::LayerOut, Stage::FinalNorm];
    plan.nodes.iter().map(|node| node.at).filter(|at| stream.contains(&at.stage)).collect()
}
