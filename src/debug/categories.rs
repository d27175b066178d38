//! Trace categories: their names, and sets of them as people write them.

use crate::config::runtime::Trace;
use crate::error::{Error, Result, nearest};
use std::collections::BTreeSet;

/// Every category and what it shows. Those of stages are a column of the stage table.
pub const CATEGORIES: &[(&str, &str)] = &[
    ("loader", "tensors as they are loaded"),
    ("kernels", "the dispatches of a step"),
    ("embed", "token embeddings"),
    ("attn", "the attention block"),
    ("conv", "the convolution block"),
    ("delta", "the block of a gated delta rule"),
    ("ffn", "the feed-forward block"),
    ("kv", "keys and values, and inputs of convolutions and delta rules, as they are cached"),
    ("logits", "the final norm and the logits"),
    ("sample", "the chosen token, its probability and its alternatives"),
    ("layer", "the residual stream between layers"),
    ("perf", "times of every kernel, each run in a pass of its own; not part of `all`"),
    ("lens", "what each layer would say: final norm and head on its output; not part of `all`"),
];

/// A set of categories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Categories(BTreeSet<&'static str>);

impl Categories {
    /// Names, one or several (with commas) per item, taken from left to right: `all` is every category but `lens` and
    /// `perf`, which run more than the model does, or otherwise; `-name` takes one out again; beginning with one that is taken out, the rest is in.
    ///
    /// # Errors
    /// `Kind::Invalid` for an unknown name, with the nearest ones; for no name at all.
    pub fn parse<'n>(items: impl IntoIterator<Item = &'n str>) -> Result<Self> {
        let mut set = BTreeSet::new();
        let mut any = false;
        for word in items.into_iter().flat_map(|item| item.split(',')).map(str::trim).filter(|word| !word.is_empty()) {
            let (name, out) = word.strip_prefix('-').map_or((word, false), |name| (name, true));
            if out && !any {
                set = all();
            }
            any = true;
            let meant = if name == "all" { all() } else { BTreeSet::from([known(name)?]) };
            set = if out { &set - &meant } else { &set | &meant };
        }
        if any { Ok(Self(set)) } else { Err(Error::invalid("trace", format!("expected categories: {}", names().join(", ")))) }
    }
    /// The categories of a runtime config; none where its trace is off.
    ///
    /// # Errors
    /// `Kind::Invalid` for an unknown name.
    pub fn of(config: &Trace) -> Result<Self> {
        if !config.enabled || config.categories.is_empty() {
            return Ok(Self::default());
        }
        Self::parse(config.categories.iter().map(String::as_str)).map_err(|e| e.within("runtime.debug.trace.categories"))
    }
    /// Whether `name` is in.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
    /// Whether none is in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn names() -> Vec<&'static str> {
    CATEGORIES.iter().map(|(name, _)| *name).chain(["all"]).collect()
}

fn all() -> BTreeSet<&'static str> {
    CATEGORIES.iter().map(|(name, _)| *name).filter(|name| !matches!(*name, "lens" | "perf")).collect()
}

fn known(name: &str) -> Result<&'static str> {
    CATEGORIES.iter().find(|(known, _)| *known == name).map(|(known, _)| *known).ok_or_else(|| {
        let near = nearest(name, names());
        let (word, list) = if near.is_empty() { ("known", names()) } else { ("nearest", near) };
        Error::invalid("trace", format!("there is no category `{name}` ({word}: {})", list.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::STAGES;

    #[test]
    fn sets() {
        let parse = |text: &str| Categories::parse([text]);
        let set = parse("attn, ffn").unwrap();
        assert!(set.has("attn") && set.has("ffn") && !set.has("kv"));
        let set = parse("all,-kernels").unwrap();
        assert!(set.has("loader") && !set.has("kernels") && !set.has("lens") && !set.has("perf"));
        assert_eq!(parse("-kernels").unwrap(), set);
        assert!(parse("all,lens").unwrap().has("lens"));
        assert!(parse("attn,-attn").unwrap().is_empty());
        assert_eq!(Categories::parse(["attn", "ffn,kv"]).unwrap(), parse("kv,attn,ffn").unwrap());
        let error = |text: &str| parse(text).unwrap_err().message;
        assert!(error("atn").contains("nearest: attn"), "{}", error("atn"));
        assert!(error("feedforwardblocks").contains("known: loader") && error(" ,").contains("expected categories"));
    }

    #[test]
    fn configs_and_the_stage_table() {
        assert!(STAGES.iter().all(|s| known(s.category).is_ok()));
        let config = |enabled, list: &[&str]| Trace { enabled, categories: list.iter().map(|c| c.to_string()).collect(), layers: None };
        assert!(Categories::of(&config(false, &["nonsense"])).unwrap().is_empty());
        assert!(Categories::of(&config(true, &[])).unwrap().is_empty());
        assert!(Categories::of(&config(true, &["ffn"])).unwrap().has("ffn"));
        assert!(Categories::of(&config(true, &["ff"])).unwrap_err().message.contains("runtime.debug.trace.categories"));
    }
}
