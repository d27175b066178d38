//! A model's folder that may be spoiled: config.json as JSON, tensors as f32. Reads and writes safetensors by itself, so
//! that what plants faults shares nothing with what finds them.

use crate::Result;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A tensor.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    /// Rows of a matrix.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }
    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
    /// Root of the mean square.
    pub fn size(&self) -> f32 {
        (self.values.iter().map(|x| x * x).sum::<f32>() / self.values.len().max(1) as f32).sqrt()
    }
}

/// What a mutant is made of.
#[derive(Debug, Clone)]
pub struct Folder {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// Other files, by name.
    pub texts: BTreeMap<String, String>,
    /// Whether config.json, tensors or texts were changed is no matter: all is written again.
    weights_changed: bool,
    sources: BTreeMap<String, Vec<u8>>,
    /// By layer, the experts that some token of the references chose; of others no reference says anything.
    chosen: BTreeMap<usize, BTreeSet<usize>>,
}

impl Folder {
    /// Reads the folder of a model.
    pub fn read(path: &Path) -> Result<Self> {
        let mut folder = Self {
            config: Value::Null,
            tensors: BTreeMap::new(),
            texts: BTreeMap::new(),
            weights_changed: false,
            sources: BTreeMap::new(),
            chosen: BTreeMap::new(),
        };
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.as_str() {
                "config.json" => folder.config = serde_json::from_str(&std::fs::read_to_string(&path)?)?,
                "golden.safetensors" => folder.chosen = chosen(&std::fs::read(&path)?)?,
                _ if name.ends_with(".safetensors") => {
                    let bytes = std::fs::read(&path)?;
                    folder.tensors.extend(tensors(&bytes)?);
                    folder.sources.insert(name, bytes);
                }
                _ if ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"]
                    .contains(&name.as_str())
                    || name.ends_with(".jinja") =>
                {
                    folder.texts.insert(name, std::fs::read_to_string(&path)?);
                }
                _ => {}
            }
        }
        Ok(folder)
    }
    /// The object that holds the text model's keys.
    pub fn text_config(&mut self) -> &mut Map<String, Value> {
        let nested = self.config.get("text_config").is_some();
        let place = if nested { &mut self.config["text_config"] } else { &mut self.config };
        if !place.is_object() {
            *place = json!({});
        }
        place.as_object_mut().expect("it was made an object")
    }
    /// Whether the references say something of a tensor.
    pub fn is_used(&self, name: &str) -> bool {
        let Some((before, after)) = name.split_once("experts.") else { return true };
        let layer = before.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse::<usize>().ok());
        match (layer.and_then(|layer| self.chosen.get(&layer)), after.split('.').next().map(str::parse)) {
            (Some(chosen), Some(Ok(expert))) => chosen.contains(&expert),
            _ => true,
        }
    }
    /// A tensor that will be changed.
    pub fn tensor(&mut self, name: &str) -> Option<&mut Tensor> {
        self.weights_changed = true;
        self.tensors.get_mut(name)
    }
    /// Writes it; weights that were not changed stay byte for byte.
    pub fn write(&self, path: &Path) -> Result {
        let _ = std::fs::remove_dir_all(path);
        std::fs::create_dir_all(path)?;
        std::fs::write(path.join("config.json"), serde_json::to_string_pretty(&self.config)?)?;
        for (name, text) in &self.texts {
            if !(self.weights_changed && name.ends_with("index.json")) {
                std::fs::write(path.join(name), text)?;
            }
        }
        if self.weights_changed {
            std::fs::write(path.join("model.safetensors"), bytes(&self.tensors))?;
        } else {
            for (name, bytes) in &self.sources {
                std::fs::write(path.join(name), bytes)?;
            }
        }
        Ok(())
    }
}

/// The experts of each layer that a reference's tokens chose.
fn chosen(bytes: &[u8]) -> Result<BTreeMap<usize, BTreeSet<usize>>> {
    let mut all = BTreeMap::new();
    for (name, (tensor, _)) in super::plant::formulas::values(bytes)? {
        let layer = name.strip_prefix("layer.").and_then(|rest| rest.strip_suffix(".chosen_experts")?.parse().ok());
        if let Some(layer) = layer {
            all.insert(layer, tensor.values.iter().filter(|x| **x >= 0.0).map(|x| *x as usize).collect());
        }
    }
    Ok(all)
}

fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let length = u64::from_le_bytes(bytes.get(..8).ok_or("a short file")?.try_into()?) as usize;
    let header: Map<String, Value> = serde_json::from_slice(bytes.get(8..8 + length).ok_or("a short header")?)?;
    let mut all = BTreeMap::new();
    for (name, about) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let shape: Vec<usize> = serde_json::from_value(about["shape"].clone())?;
        let range: [usize; 2] = serde_json::from_value(about["data_offsets"].clone())?;
        let data = bytes.get(8 + length + range[0]..8 + length + range[1]).ok_or("a short tensor")?;
        let dtype = about["dtype"].as_str().unwrap_or_default().to_string();
        let values = match dtype.as_str() {
            "F32" => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "BF16" => data.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect(),
            "F16" => data.as_chunks::<2>().0.iter().map(|b| half(u16::from_le_bytes(*b))).collect(),
            other => return Err(format!("{name}: type {other}").into()),
        };
        all.insert(name, Tensor { dtype, shape, values });
    }
    Ok(all)
}

/// Everything as f32, which holds the other types exactly.
fn bytes(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let start = data.len();
        let keep = |x: &f32| -> Vec<u8> {
            match tensor.dtype.as_str() {
                "BF16" => ((x.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
                _ => x.to_le_bytes().to_vec(),
            }
        };
        tensor.values.iter().for_each(|x| data.extend(keep(x)));
        let dtype = if tensor.dtype == "BF16" { "BF16" } else { "F32" };
        header.insert(name.clone(), json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    [&(padded.len() as u64).to_le_bytes()[..], padded.as_bytes(), &data].concat()
}

/// A number of 16 bits, IEEE 754.
pub fn half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 => f32::INFINITY,
        e => (1024.0 + fraction) * 2f32.powi(e - 25),
    };
    if sign == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_read_and_tensors_come_back() {
        assert_eq!([half(0x3c00), half(0xc500), half(0x0001)], [1.0, -5.0, 2f32.powi(-24)]);
        let tensor = Tensor { dtype: "BF16".into(), shape: vec![2, 1], values: vec![1.5, -2.0] };
        let all = BTreeMap::from([("a".to_string(), tensor)]);
        let back = tensors(&bytes(&all)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((&back["a"].values, &back["a"].shape), (&vec![1.5, -2.0], &vec![2, 1]));
    }
}
