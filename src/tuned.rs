//! What was measured to be fastest on a device, as plain data: which variant computes products of which shape. `bench::tune`
//! measures it, a runtime config carries it, and `gpu::variants` follows it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What was measured on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tuned {
    /// The device with its driver and what of it is used; on others, other variants are faster.
    pub device: String,
    /// Hash of the kernels' texts; of other texts, other variants are faster.
    pub kernels: String,
    /// By product, such as `q4_k 16384x2048 f16 normed`: the variant that was faster than the one that is taken untuned.
    pub products: BTreeMap<String, Variant>,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Variant {
    /// Of a vector.
    Vector {
        /// Threads that share a row of the matrix.
        lanes: u32,
        /// Whether packed weights are multiplied as whole numbers.
        digits: bool,
    },
    /// Of many rows, by matrix units.
    Tiles {
        /// In tiles of twice as many rows and columns.
        wide: bool,
    },
}

impl Tuned {
    /// Nothing yet, of a device and kernels.
    pub fn new(device: String, kernels: String) -> Self {
        Self { device, kernels, products: BTreeMap::new() }
    }
    /// Whether it was measured on such a device with such kernels.
    pub fn is_of(&self, device: &str, kernels: &str) -> bool {
        self.device == device && self.kernels == kernels
    }
    /// Eight hexadecimal digits, for people: other tables have others.
    pub fn id(&self) -> String {
        let products = self.products.iter().map(|(product, variant)| format!("{product} {variant}\n")).collect::<String>();
        short_hash([self.device.as_str(), &self.kernels, &products])
    }
}

/// The first eight hexadecimal digits of the SHA-256 of texts.
pub fn short_hash<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Variant::Vector { lanes, digits } => write!(f, "{lanes} threads a row{}", if *digits { ", whole numbers" } else { "" }),
            Variant::Tiles { wide } => f.write_str(if *wide { "large tiles" } else { "small tiles" }),
        }
    }
}
