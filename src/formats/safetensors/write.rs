//! Writes safetensors. Tensors are produced while they are written, so a file may be larger than memory.

use super::super::content::{Content, Counted};
use crate::tensor::DType;
use std::collections::{BTreeMap, HashSet};
use std::io::{Error, Result, Write};

/// A tensor to be written.
pub struct Output<'a> {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Writes the elements, little-endian, row-major: exactly as many as the shape says.
    pub data: Content<'a>,
}

impl<'a> Output<'a> {
    /// f32 values of `shape`.
    pub fn f32(name: impl Into<String>, shape: Vec<usize>, values: &'a [f32]) -> Self {
        Self { name: name.into(), dtype: DType::F32, shape, data: Box::new(move |out| write_f32(out, values)) }
    }
    /// Ids `[values]` as i32. Ids from 2³¹ on, which no vocabulary reaches, are an error when written.
    pub fn ids(name: impl Into<String>, values: &'a [u32]) -> Self {
        let write = move |out: &mut dyn Write| {
            values.iter().try_for_each(|id| out.write_all(&i32::try_from(*id).map_err(Error::other)?.to_le_bytes()))
        };
        Self { name: name.into(), dtype: DType::I32, shape: vec![values.len()], data: Box::new(write) }
    }
}

/// Writes `values` little-endian.
pub fn write_f32(out: &mut dyn Write, values: &[f32]) -> Result<()> {
    let mut bytes = [0u8; 4096];
    for part in values.chunks(bytes.len() / 4) {
        for (place, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(part) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        out.write_all(&bytes[..4 * part.len()])?;
    }
    Ok(())
}

/// Writes a whole file: `tensors` in the given order, without gaps, the data aligned to 8 bytes.
///
/// # Errors
/// What `out` reports; two tensors of one name; a tensor that writes more or less than its shape says.
pub fn write(out: &mut dyn Write, metadata: &BTreeMap<String, String>, tensors: &[Output<'_>]) -> Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut names = HashSet::new();
    let mut ends = Vec::with_capacity(tensors.len());
    let mut end = 0u64;
    for tensor in tensors {
        if !names.insert(&tensor.name) || tensor.name == "__metadata__" {
            return Err(Error::other(format!("two tensors are called `{}`", tensor.name)));
        }
        let start = end;
        end += tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.size() as u64;
        ends.push(end);
        let dtype = tensor.dtype.name().to_uppercase();
        let entry = serde_json::json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut json = serde_json::to_vec(&header).map_err(Error::other)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&json)?;

    let mut counted = Counted::new(out);
    for (tensor, end) in tensors.iter().zip(ends) {
        counted.put(&tensor.name, &tensor.data, end)?;
    }
    counted.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{InMemory, Stored, safetensors::read_header};
    use crate::tensor::to_f32;

    #[test]
    fn what_is_written_can_be_read() {
        let values: Vec<f32> = (0..2500).map(|i| i as f32 - 7.5).collect();
        let metadata = BTreeMap::from([("model".to_string(), "a \"quoted\" näme".to_string())]);
        let tensors =
            [Output::ids("ids", &[3, 1, 2]), Output::f32("layer.0.x", vec![50, 50], &values), Output::f32("none", vec![0, 4], &[])];
        let mut file = Vec::new();
        write(&mut file, &metadata, &tensors).unwrap();

        let source = InMemory::new("t", file);
        let header = pollster::block_on(read_header(&source)).unwrap();
        assert_eq!(header.metadata, metadata);
        let x = header.tensors.iter().find(|t| t.name == "layer.0.x").unwrap();
        assert_eq!(to_f32(&source.slice(x.range.clone()).unwrap(), DType::F32), values);
        assert_eq!((header.tensors[0].range.start % 8, &header.tensors[0].dtype), (0, &Stored::Known(DType::I32)));
    }

    #[test]
    fn wrong_lengths_and_names_are_errors() {
        let short = [Output::f32("x", vec![3], &[1.0, 2.0])];
        assert!(write(&mut Vec::new(), &BTreeMap::new(), &short).unwrap_err().to_string().contains("`x`"));
        let twice = [Output::ids("x", &[]), Output::ids("x", &[])];
        assert!(write(&mut Vec::new(), &BTreeMap::new(), &twice).is_err());
        assert!(write(&mut Vec::new(), &BTreeMap::new(), &[Output::ids("x", &[u32::MAX])]).is_err());
    }
}
