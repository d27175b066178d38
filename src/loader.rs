//! From a checkpoint's bytes to an executor's weights: the index over its files, the plan's slots matched to it
//! (`matching`), and the transfer in bands of rows. It knows no device, and no family; native folders are in
//! `directory`.

#[cfg(not(target_arch = "wasm32"))]
mod directory;
mod duplicates;
#[cfg(not(target_arch = "wasm32"))]
mod leftovers;
#[cfg(not(target_arch = "wasm32"))]
mod links;
mod making;
mod matching;
mod packed;
mod places;
mod problems;
mod rows;
mod scan;

#[cfg(not(target_arch = "wasm32"))]
pub use directory::{model_folder, open_directory};
#[cfg(not(target_arch = "wasm32"))]
pub use links::check_within;
pub use making::Making;
pub use matching::{Matched, check_claim, match_slots};
pub use packed::{Matrix, Unpacked};
pub use places::{Order, Place, places};
pub use rows::{AtOnce, Placed, Reader, Rows, read_rows};
pub use scan::NonFinite;

use crate::error::{Error, Result};
use crate::exec::{StoredRows, WeightSink};
use crate::formats::gguf::Header;
use crate::formats::manifest::Manifest;
use crate::formats::safetensors::read_header;
use crate::formats::shards::ShardIndex;
use crate::formats::{ByteSource, Local, ModelTexts, TensorIndex};
use crate::plan::Plan;
use crate::quant::Format;
use scan::Findings;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Most bytes that are read and handed on at once, unless one row has more.
const BAND_BYTES: usize = 64 << 20;

/// The files of a model: those of a folder, or of a page.
#[derive(Debug, Clone)]
pub struct ModelFiles<S = Local> {
    /// The folder; in a page, what the page calls it.
    pub path: PathBuf,
    /// Those that are texts, as they stand in the files, JSON without byte-order marks.
    pub texts: ModelTexts,
    /// The weight files, opened, for [`Checkpoint::open`]; none where only texts were read.
    pub sources: Vec<S>,
    /// The index of shards, if there are several.
    pub shards: Option<ShardIndex>,
    /// What there is in place of tokenizer.json, and how to make one; for messages.
    pub other_tokenizer: Option<String>,
    /// What lies in the folder and is not used, or used in a way that may surprise.
    pub notes: Vec<String>,
    /// Texts that are links out of the folder: [`Self::check_texts`].
    pub linked: Vec<String>,
    /// What the weight files say of the model, where they are GGUF: the texts come from it.
    pub gguf: Option<Arc<Gguf>>,
    /// The table of the weights, where they are shards of a manifest: the only source is all of them as one.
    pub manifest: Option<Arc<Manifest>>,
}

/// What the headers of a model's GGUF files say.
#[derive(Debug)]
pub struct Gguf {
    /// Metadata and tensors of all files.
    pub header: Header,
    /// Where each key of the config that the metadata make comes from: a metadatum, a tensor, a convention.
    pub sources: Vec<(String, String)>,
    /// Norm weights hold the 1 that the family adds.
    pub norms_hold_offset: bool,
    /// Rows of q and k are stored as the pairs that RoPE rotates.
    pub neighbouring_pairs: bool,
    /// Value heads of delta rules are not stored by key head.
    pub tiled_values: bool,
    /// Beginnings of names of tensors that belong to parts that are not run.
    pub ignored: Vec<String>,
    /// What is computed otherwise than llama.cpp would, a sentence each.
    pub notes: Vec<String>,
}

impl<S> ModelFiles<S> {
    /// Before its texts go into what others get: none is a link out of the folder, which may be to any file of this user.
    ///
    /// # Errors
    /// `Kind::Io` naming the first that is.
    pub fn check_texts(&self) -> Result<()> {
        let Some(name) = self.linked.first() else { return Ok(()) };
        let message = "a link out of the model's folder, which may be to any file of yours: copy that file into the folder before the model is \
                       converted, bundled or served";
        Err(Error::io(self.path.join(name).display(), message))
    }
    /// Files about which there is nothing to say.
    pub fn new(path: PathBuf, texts: ModelTexts, sources: Vec<S>, shards: Option<ShardIndex>) -> Self {
        Self { path, texts, sources, shards, other_tokenizer: None, notes: Vec::new(), linked: Vec::new(), gguf: None, manifest: None }
    }
}

/// A checkpoint: its files and the tensors in them.
#[derive(Debug, Clone)]
pub struct Checkpoint<S> {
    /// The files; `TensorEntry::file` counts in them.
    pub sources: Vec<S>,
    /// The tensors.
    pub index: TensorIndex,
    /// `__metadata__` of all files together.
    pub metadata: BTreeMap<String, String>,
    /// What the files say twice, or the index of shards says of them wrongly.
    pub notes: Vec<String>,
}

impl<S> Checkpoint<S> {
    /// The checkpoint of a table that was read already. Its notes name formats that no kernel reads packed.
    pub fn of_index(sources: Vec<S>, index: TensorIndex) -> Self {
        let formats: BTreeSet<Format> = index.entries().iter().filter_map(|entry| entry.dtype.format()).collect();
        let decoded = formats.into_iter().filter(|format| !format.is_plain() && format.planes().is_none());
        let note = |format: Format| {
            format!("no GPU kernel reads {format}: on a GPU its weights are f32, {:.1} times as large", 32.0 / format.bits())
        };
        Self { sources, index, metadata: BTreeMap::new(), notes: decoded.map(note).collect() }
    }
}

impl<S: ByteSource> Checkpoint<S> {
    /// Reads and checks the headers of safetensors files. With `shards`, `sources[i]` is the file `shards.files[i]`.
    ///
    /// Of a tensor that is in two files, the copy that `shards` maps counts. Entries of `shards` that no file has are
    /// passed over: whether a tensor is missing is for [`match_slots`] to say.
    ///
    /// # Errors
    /// `Kind::Format` for files that break the format, and for tensors that are in two files with different values when
    /// there is no index to choose; `Kind::Io` when reading fails.
    pub async fn open(sources: Vec<S>, shards: Option<&ShardIndex>) -> Result<Self> {
        let (mut entries, mut metadata) = (Vec::new(), BTreeMap::new());
        for (file, source) in sources.iter().enumerate() {
            let header = read_header(source).await?;
            entries.extend(header.tensors.into_iter().map(|mut tensor| {
                tensor.file = file;
                tensor
            }));
            metadata.extend(header.metadata);
        }
        let mut notes = Vec::new();
        let entries = duplicates::resolve(entries, &sources, shards, &mut notes).await?;
        let index = TensorIndex::new(entries)
            .map_err(|(name, _, file)| Error::format(sources[file].name(), format!("tensor `{name}` is there twice")))?;
        if let Some(shards) = shards {
            notes.extend(duplicates::stale(shards, &index));
        }
        Ok(Self { sources, index, metadata, notes })
    }
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Bytes read.
    pub bytes_done: u64,
    /// Bytes that the plan's weights have.
    pub bytes_total: u64,
    /// The tensor that was handed on last.
    pub tensor: &'a str,
    /// The format in which it was handed on.
    pub format: Format,
    /// Its shape, or that of the matrix whose codes it holds.
    pub shape: &'a [usize],
    /// All of it that the plan needs was handed on.
    pub complete: bool,
}

/// What loading found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Bytes read of weights.
    pub bytes: u64,
    /// Tensors with NaN or infinite elements, in the plan's order; empty when not looked for.
    pub non_finite: Vec<NonFinite>,
}

/// Hands every weight of `plan` to `sink`, in the order in which the files store them, in bands of whole rows of at
/// most 64 MiB. With `scan`, NaN and infinite weights are counted on the way: a finding, no error.
///
/// # Errors
/// What `sink` and the sources report; `Kind::Weights` when a tied head is stored and differs from the embedding.
pub async fn load<S: ByteSource>(
    plan: &Plan,
    checkpoint: &Checkpoint<S>,
    matched: &Matched,
    scan: bool,
    sink: &mut impl WeightSink,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<LoadReport> {
    load_in_bands(plan, checkpoint, matched, scan, BAND_BYTES, sink, progress).await
}

/// As [`load`], in bands of at most `band_bytes`, or of one row where that has more.
///
/// # Errors
/// Those of [`load`].
pub async fn load_in_bands<S: ByteSource>(
    plan: &Plan,
    checkpoint: &Checkpoint<S>,
    matched: &Matched,
    scan: bool,
    band_bytes: usize,
    sink: &mut impl WeightSink,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<LoadReport> {
    check_head_copy(checkpoint, matched, band_bytes).await?;
    let entries = checkpoint.index.entries();
    let mut order: Vec<&Placed> = matched.weights.iter().collect();
    order.sort_by_key(|w| w.reads(entries).first().map(|(file, range)| (*file, range.start)));

    sink.expect(&matched.formats());
    let (total, mut before, findings) = (matched.bytes(), 0, Findings::default());
    for weight in order {
        let name = &entries[weight.tensor].name;
        let within = |e: Error| e.within(format!("{} ({name})", plan.weights[weight.id.0].label()));
        let mut band_rows = (band_bytes / weight.row_bytes.max(1)).max(1);
        if let Rows::Pairs(_, head) = weight.source {
            band_rows = (band_rows / head.max(1)).max(1) * head.max(1);
        }
        let reader = weight.reader(&checkpoint.sources, entries).await.map_err(within)?;
        for first_row in (0..weight.rows).step_by(band_rows) {
            let rows = first_row..weight.rows.min(first_row + band_rows);
            let end = rows.end;
            let look = |bytes: &[u8], row: usize| {
                let of_row = weight.row_bytes.max(1);
                let parts = if scan { weight.parts(row..row + bytes.len() / of_row) } else { Vec::new() };
                parts.into_iter().try_for_each(|(part, rows, at)| {
                    let bytes = &bytes[at * of_row..(at + rows.len()) * of_row];
                    findings.look(&entries[part.tensor].name, part, bytes, rows.start)
                })
            };
            match reader.at_once() {
                Some(source) => {
                    // Looked at while they are in the cache of the processor that read them.
                    let fill = |rows: Range<usize>, out: &mut [u8]| {
                        source.fill(rows.clone(), out)?;
                        look(out, rows.start)
                    };
                    let rows = StoredRows { rows, row_bytes: weight.row_bytes, fill: &fill };
                    sink.pull(weight.id, weight.format, &rows).map_err(within)?;
                }
                None => {
                    let bytes = reader.rows(rows).await?;
                    look(&bytes, first_row)?;
                    sink.put(weight.id, weight.format, first_row, bytes).map_err(within)?;
                }
            }
            let share = (u128::from(weight.bytes) * end as u128 / weight.rows as u128) as u64;
            let complete = end == weight.rows;
            let (bytes_done, format, shape) = (before + share, weight.format, &weight.shape);
            progress(Progress { bytes_done, bytes_total: total, tensor: name, format, shape, complete });
        }
        before += weight.bytes;
    }
    let done = before;
    Ok(LoadReport { bytes: done, non_finite: findings.in_order(entries, matched) })
}

/// A head that is stored in addition to the embedding to which it is tied must equal it. Where it does not, transformers
/// (5 and later) uses the stored head and warns that the config is wrong; we stop, as the plan has no place for it.
async fn check_head_copy<S: ByteSource>(checkpoint: &Checkpoint<S>, matched: &Matched, band_bytes: usize) -> Result<()> {
    let Some((head, embedding)) = matched.head_copy else { return Ok(()) };
    let entries = checkpoint.index.entries();
    let (head, embedding) = (&entries[head], &entries[embedding]);
    match duplicates::difference(&checkpoint.sources, head, embedding, band_bytes).await? {
        None => Ok(()),
        Some(what) => Err(Error::weights(format!(
            "the config ties the head to the embedding, but `{}` is stored too and differs from `{}` ({what}); transformers then uses the stored head: set `tie_word_embeddings` to false in config.json to do the same",
            head.name, embedding.name
        ))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
