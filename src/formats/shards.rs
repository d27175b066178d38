//! `model.safetensors.index.json`: which tensor is in which of several files. Names only; it opens nothing.

use crate::error::{Error, Result};
use crate::json;
use serde_json::Value;

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
    /// `Kind::Format`: not such an index, or a shard outside the model's folder. Of two entries of one name the last counts.
    pub fn parse(name: &str, json: &str) -> Result<Self> {
        let bad = |message: &str| Error::format(name, format!("corrupt index of shards: {message}"));
        let json = json::parse(name, json)?;
        let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("it has no object `weight_map`"))?;
        let pair = |(tensor, file): (&String, &Value)| Some((tensor.clone(), file.as_str()?.to_string()));
        let pairs: Option<Vec<(String, String)>> = map.iter().map(pair).collect();
        let pairs = pairs.ok_or_else(|| bad("`weight_map` should map names of tensors to names of files"))?;
        let mut files: Vec<String> = pairs.iter().map(|(_, file)| file.clone()).collect();
        files.sort_unstable();
        files.dedup();
        if files.is_empty() {
            return Err(Error::format(name, "its weight_map lists no tensor"));
        }
        if let Some(outside) = files.iter().find(|f| !is_plain(f)) {
            return Err(Error::format(name, format!("shard `{outside}` is not a file of the model's folder")));
        }
        let place = |file: &String| files.partition_point(|f| f < file);
        let tensors = pairs.into_iter().map(|(tensor, file)| (tensor, place(&file))).collect();
        Ok(Self { name: name.to_string(), files, tensors })
    }
}

/// Whether `file` is a relative path that stays where it is put.
pub fn is_plain(file: &str) -> bool {
    !file.contains(['\\', ':', '\0']) && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
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
        let twice = ShardIndex::parse("i", r#"{"metadata":{"total_size":NaN},"weight_map":{"a":"x","a":"y"}}"#).unwrap();
        assert_eq!((&twice.files[..], &twice.tensors[..]), (&["y".to_string()][..], &[("a".to_string(), 0)][..]));
    }

    #[test]
    fn nonsense_is_refused() {
        let outside = ["../x", "/etc/passwd", "a/../../x", "", "c:\\x", "a//b"];
        let maps = outside.iter().map(|f| serde_json::json!({ "weight_map": { "a": f } }).to_string());
        let broken = ["", "{}", "[]", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}"];
        for json in maps.chain(broken.map(String::from)) {
            assert_eq!(ShardIndex::parse("i", &json).unwrap_err().kind, Kind::Format, "{json}");
        }
    }
}
