//! A setting of a preset: a value, or the config key that holds it.

use serde::Deserialize;

/// A value of the preset, or the config key that holds it.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Setting<T> {
    /// Read from the config.
    Key(KeyRef),
    /// The same in every model of the family.
    Value(T),
}

impl<T> Setting<T> {
    /// The path of its key, or `otherwise` where the preset has the value.
    pub fn path(&self, keys: &super::keys::Keys, otherwise: &str) -> String {
        match self {
            Setting::Key(reference) => keys.path(&reference.key),
            Setting::Value(_) => otherwise.to_string(),
        }
    }
}

/// The name of a config key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRef {
    pub key: String,
}
