//! A folder in Hugging Face's layout: texts, and safetensors files of plain numbers.

use super::Options;
use super::encode::{Encoder, Item};
use crate::error::{Error, Result};
use crate::formats::ModelTexts;
use crate::formats::safetensors::{Output, write as write_file};
use crate::formats::write::{write_atomically, write_folder};
use crate::json;
use crate::quant::Format;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of one file, unless a single tensor has more.
const SHARD: u64 = 5_000_000_000;

/// The format of all matrices, which must be plain numbers.
pub(super) fn format(options: &Options) -> Result<Format> {
    let plain = |format: Format| if format.dtype().is_some() { Ok(format) } else { Err(packed(format.name())) };
    options.keep.iter().try_for_each(|keep| plain(keep.format).map(drop))?;
    Format::parse(&options.quantize).map_or_else(|| Err(packed(&options.quantize)), plain)
}

fn packed(name: &str) -> Error {
    Error::unsupported(format!(
        "{name} cannot be written as safetensors, which here hold plain numbers (f32, f16, bf16); convert to gguf or manifest, which hold packed ones"
    ))
}

/// The config with the type that the weights now have, and without what it said of packed ones. The text stays as it is
/// where that changes nothing.
pub(super) fn config(text: &str, format: Format) -> Result<String> {
    let name = match format {
        Format::F16 => "float16",
        Format::BF16 => "bfloat16",
        _ => "float32",
    };
    let mut config = json::parse("config.json", text)?;
    let before = config.clone();
    let Some(outer) = config.as_object_mut() else { return Err(Error::format("config.json", "should hold an object")) };
    let key = if outer.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    outer.insert(key.into(), name.into());
    outer.shift_remove("quantization_config");
    if let Some(Value::Object(inner)) = outer.get_mut("text_config") {
        restate(inner, name);
    }
    if config == before {
        return Ok(text.to_owned());
    }
    serde_json::to_string_pretty(&config).map(|text| text + "\n").map_err(|e| Error::format("config.json", e))
}

fn restate(config: &mut Map<String, Value>, name: &str) {
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = name.into();
        }
    }
}

/// Writes the folder `out`.
pub(super) fn write(out: &Path, texts: &ModelTexts, items: &[Item], encoder: &Encoder<'_>) -> Result<()> {
    write_folder(out, |folder| {
        for (name, text) in texts.iter() {
            write_atomically(&folder.join(name), |out| out.write_all(text.as_bytes()))?;
        }
        let files = split(items);
        let mut map = Map::new();
        for (number, items) in files.iter().enumerate() {
            let name = match files.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            map.extend(items.iter().map(|item| (item.name.clone(), Value::from(name.as_str()))));
            let tensors = items.iter().map(|item| output(item, encoder)).collect::<Result<Vec<_>>>()?;
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            write_atomically(&folder.join(name), |out| write_file(out, &metadata, &tensors))?;
        }
        if files.len() > 1 {
            let total: u64 = items.iter().filter_map(Item::bytes).sum();
            let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
            write_atomically(&folder.join("model.safetensors.index.json"), |out| writeln!(out, "{index:#}"))?;
        }
        Ok(())
    })
}

/// Items by file.
fn split(items: &[Item]) -> Vec<&[Item]> {
    let (mut files, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, item) in items.iter().enumerate() {
        let more = item.bytes().unwrap_or(0);
        if i > start && bytes + more > SHARD {
            files.push(&items[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += more;
    }
    files.push(&items[start..]);
    files
}

fn output<'o>(item: &'o Item, encoder: &'o Encoder<'_>) -> Result<Output<'o>> {
    let dtype = item.format.dtype().ok_or_else(|| packed(item.format.name()))?;
    Ok(Output { name: item.name.clone(), dtype, shape: item.shape.clone(), data: Box::new(move |out| encoder.write(item, out)) })
}
