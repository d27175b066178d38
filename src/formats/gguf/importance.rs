//! The importance of columns in GGUF form, as llama.cpp's `imatrix` writes it: for each matrix `NAME.in_sum2`, the sums of
//! squares [experts, columns], and `NAME.counts` [experts, 1], in f32.

use super::metadata::{Array, Metadata, Value};
use super::{ByteSource, Header, Output, Tensor, read_header, write as write_file};
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::quant::importance::{Importance, Sums};
use std::io::Write;

const SQUARES: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const KIND: &str = "general.type";
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Reads the importance in `source`.
///
/// # Errors
/// `Kind::Format` for other files, saying what they are; `Kind::Io` when reading fails.
pub async fn read(source: &impl ByteSource) -> Result<Importance> {
    let file = source.name();
    let header = read_header(source).await.map_err(|e| match file.ends_with(".dat") {
        true => Error::format(file, "the old binary form of an importance matrix is not read; convert it to GGUF"),
        false => e,
    })?;
    let text = |value: Option<&Value>| if let Some(Value::Text(text)) = value { Some(text.clone()) } else { None };
    let kind = text(header.metadata.get(KIND));
    if kind.as_deref() != Some("imatrix") {
        let found = kind.map_or("no such key".to_string(), |kind| format!("`{kind}`"));
        return Err(Error::format(file, format!("expected an importance matrix, `{KIND}` = `imatrix`; found {found}")));
    }
    let mut importance = Importance::default();
    for tensor in &header.tensors {
        let Some(name) = tensor.name.strip_suffix(SQUARES) else { continue };
        let within = |e: Error| Error::format(file, format!("`{name}`: {}", e.message));
        let counts =
            find(&header, &format!("{name}{COUNTS}")).ok_or_else(|| Error::format(file, format!("`{name}{COUNTS}` is missing")))?;
        let sums = Sums { squares: values(source, tensor).await?, counts: values(source, counts).await? };
        sums.check().map_err(within)?;
        importance.tensors.insert(name.to_string(), sums);
    }
    if importance.tensors.is_empty() {
        return Err(Error::format(file, format!("no tensor ends in `{SQUARES}`, so it says nothing of any matrix")));
    }
    if let Some(Value::Array(Array::Texts(names))) = header.metadata.get(DATASETS) {
        importance.datasets.clone_from(names);
    }
    let number = |key: &str| header.metadata.get(key).and_then(Value::unsigned).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    (importance.chunks, importance.chunk_size) = (number(CHUNKS), number(CHUNK_SIZE));
    Ok(importance)
}

fn find<'h>(header: &'h Header, name: &str) -> Option<&'h Tensor> {
    header.tensors.iter().find(|tensor| tensor.name == name)
}

/// The elements of a tensor of f32.
async fn values(source: &impl ByteSource, tensor: &Tensor) -> Result<Vec<f32>> {
    if tensor.entry().dtype.format() != Some(Format::F32) {
        return Err(Error::format(source.name(), format!("tensor `{}`: expected f32, found {}", tensor.name, tensor.entry().dtype)));
    }
    Format::F32.values(&source.read(tensor.range.clone()).await?)
}

/// Writes `importance` as a GGUF file.
///
/// # Errors
/// What `out` reports.
pub fn write(out: &mut dyn Write, importance: &Importance) -> std::io::Result<()> {
    let mut metadata = Metadata::default();
    metadata.set(KIND, "imatrix");
    metadata.set(DATASETS, importance.datasets.clone());
    metadata.set(CHUNKS, importance.chunks);
    metadata.set(CHUNK_SIZE, importance.chunk_size);
    let tensor = |name: String, shape: Vec<usize>, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Output { name, format: Format::F32, shape, data: Box::new(move |out: &mut dyn Write| out.write_all(&bytes)) }
    };
    let pairs = importance.tensors.iter().flat_map(|(name, sums)| {
        let experts = sums.counts.len();
        let squares = tensor(format!("{name}{SQUARES}"), vec![experts, sums.columns()], &sums.squares);
        [squares, tensor(format!("{name}{COUNTS}"), vec![experts, 1], &sums.counts)]
    });
    write_file(out, &metadata, &pairs.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::InMemory;
    use pollster::block_on;
    use std::collections::BTreeMap;

    fn importance() -> Importance {
        let sums = |squares: &[f32], counts: &[f32]| Sums { squares: squares.to_vec(), counts: counts.to_vec() };
        let tensors = [("blk.0.attn_q.weight", sums(&[1.0, 0.0, 2.5], &[7.0])), ("blk.0.ffn_up_exps.weight", sums(&[1.0; 6], &[3.0, 0.0]))];
        let tensors: BTreeMap<String, Sums> = tensors.into_iter().map(|(name, sums)| (name.to_string(), sums)).collect();
        Importance { tensors, datasets: vec!["calibration.txt".into()], chunks: 4, chunk_size: 512 }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut file = Vec::new();
        write(&mut file, &importance()).unwrap();
        assert_eq!(block_on(read(&InMemory::new("i.gguf", file))).unwrap(), importance());
    }

    #[test]
    fn other_files_are_explained() {
        let error = |name: &'static str, file: Vec<u8>| block_on(read(&InMemory::new(name, file))).unwrap_err().message;
        let with = |kind: &str, tensors: &[(&str, f32)]| {
            let mut metadata = Metadata::default();
            metadata.set(KIND, kind);
            let tensor = |(name, value): &(&str, f32)| {
                let bytes = value.to_le_bytes();
                let data: crate::formats::Content<'static> = Box::new(move |out| out.write_all(&bytes));
                Output { name: (*name).into(), format: Format::F32, shape: vec![1, 1], data }
            };
            let mut file = Vec::new();
            write_file(&mut file, &metadata, &tensors.iter().map(tensor).collect::<Vec<_>>()).unwrap();
            file
        };
        assert!(error("x.gguf", with("model", &[])).contains("found `model`"));
        assert!(error("x.gguf", with("imatrix", &[])).contains("no tensor ends in `.in_sum2`"));
        assert!(error("x.gguf", with("imatrix", &[("a.in_sum2", 1.0)])).contains("`a.counts` is missing"));
        assert!(
            error("x.gguf", with("imatrix", &[("a.in_sum2", -1.0), ("a.counts", 1.0)]))
                .contains("`a`: importance: expected sums of squares")
        );
        assert!(error("x.dat", vec![1, 0, 0, 0]).contains("old binary form") && error("x.gguf", vec![0; 4]).contains("GGUF"));
    }
}
