//! `model.safetensors.index.json`: which tensor is in which of several files. Names only; it opens nothing.

use crate::error::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::fmt;

/// The index of a sharded checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Name of the index file, for messages.
    pub name: String,
    /// The shards' file names, sorted.
    pub files: Vec<String>,
    /// Tensor name and position of its file in `files`.
    pub tensors: Vec<(String, usize)>,
}

impl ShardIndex {
    /// Reads the text of an index file.
    ///
    /// # Errors
    /// `Kind::Format`: not such an index, a tensor listed twice, or a shard outside the model's folder.
    pub fn parse(name: &str, json: &str) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Raw {
            weight_map: WeightMap,
        }
        let raw: Raw = serde_json::from_str(json).map_err(|e| Error::format(name, format!("corrupt index of shards: {e}")))?;
        let mut files: Vec<String> = raw.weight_map.0.iter().map(|(_, file)| file.clone()).collect();
        files.sort_unstable();
        files.dedup();
        if files.is_empty() {
            return Err(Error::format(name, "its weight_map lists no tensor"));
        }
        if let Some(outside) = files.iter().find(|f| !is_plain(f)) {
            return Err(Error::format(name, format!("shard `{outside}` is not a file of the model's folder")));
        }
        let place = |file: &String| files.partition_point(|f| f < file);
        let tensors = raw.weight_map.0.iter().map(|(tensor, file)| (tensor.clone(), place(file))).collect();
        Ok(Self { name: name.to_string(), files, tensors })
    }
}

/// A relative path that stays where it is put.
fn is_plain(file: &str) -> bool {
    !file.contains(['\\', ':', '\0']) && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Pairs of an object whose keys must differ.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let (mut pairs, mut seen) = (Vec::new(), std::collections::HashSet::new());
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if !seen.insert(tensor.clone()) {
                        return Err(A::Error::custom(format!("tensor `{tensor}` is listed twice")));
                    }
                    pairs.push((tensor, file));
                }
                Ok(WeightMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn reads_a_map_of_tensors() {
        let index = ShardIndex::parse("i", r#"{"metadata":{"total_size":9},"weight_map":{"a":"y","b":"x","c":"y"}}"#).unwrap();
        assert_eq!(index.files, ["x", "y"]);
        assert_eq!(index.tensors, [("a".to_string(), 1), ("b".to_string(), 0), ("c".to_string(), 1)]);
    }

    #[test]
    fn nonsense_is_refused() {
        let outside = ["../x", "/etc/passwd", "a/../../x", "", "c:\\x", "a//b"];
        let maps = outside.iter().map(|f| serde_json::json!({ "weight_map": { "a": f } }).to_string());
        let broken = ["", "{}", "[]", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}"];
        for json in maps.chain(broken.map(String::from)) {
            assert_eq!(ShardIndex::parse("i", &json).unwrap_err().kind, Kind::Format, "{json}");
        }
    }
}
