//! A folder with a manifest (docs/FORMAT.md): texts, shards, and the table of what is where, written last.

use super::Options;
use super::encode::{Encoder, Item};
use crate::error::{Error, Result};
use crate::formats::manifest::{ALIGNMENT, FILE, Hashed, Manifest, Provenance, Quantization, SHARD, Tensor};
use crate::formats::sharded::{hexadecimal, sha256, sha256_of};
use crate::formats::write::{write_atomically, write_folder};
use crate::formats::{ByteSource, Local, ModelTexts};
use crate::open::Opened;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// What the manifest says of how it was made. Hashes the source's weight files.
pub(super) async fn begin(model: &Opened, options: &Options, sources: &[Local]) -> Result<Manifest> {
    let mut files = Vec::new();
    for source in sources {
        files.extend(of_source(source).await?);
    }
    let provenance = Provenance {
        tool: format!("doppler {}", env!("CARGO_PKG_VERSION")),
        command: options.command.clone(),
        source: model.name.clone(),
        files,
    };
    let quantization = Quantization {
        recipe: options.quantize.clone(),
        keep: options.keep.iter().map(|keep| format!("{}={}", keep.pattern, keep.format)).collect(),
        imatrix: options.importance.as_ref().map(|importance| importance.file_name()),
    };
    let mut manifest = Manifest::new(&model.name, provenance, quantization);
    let line = |(field, value, source): &(String, String, crate::model::Source)| [field.clone(), value.clone(), source.to_string()];
    manifest.resolved = model.resolved.sources.iter().map(line).collect();
    Ok(manifest)
}

/// The hash of a file, or of each shard of one made of several, which must be as its manifest says.
async fn of_source(source: &Local) -> Result<Vec<Hashed>> {
    let plain = |name: &str| Path::new(name).file_name().map_or(name.to_owned(), |name| name.to_string_lossy().into_owned());
    match source {
        Local::Sharded(sharded) => match sharded.verify(&mut |_| {}).await?.into_iter().next() {
            Some(wrong) => Err(wrong),
            None => Ok(sharded.expected().to_vec()),
        },
        one => Ok(vec![Hashed { name: plain(one.name()), bytes: one.len(), sha256: sha256(one, &mut |_| {}).await? }]),
    }
}

/// Writes the folder `out`.
pub(super) fn write(out: &Path, manifest: &Manifest, texts: &ModelTexts, items: &[Item], encoder: &Encoder<'_>) -> Result<()> {
    write_folder(out, |folder| {
        let mut manifest = manifest.clone();
        for (name, text) in texts.iter() {
            write_atomically(&folder.join(name), |out| out.write_all(text.as_bytes()))?;
            manifest.texts.push(Hashed { name: name.into(), bytes: text.len() as u64, sha256: sha256_of(text.as_bytes()) });
        }
        let failed = |e: io::Error| Error::io(folder.display(), e);
        let mut shards = Shards { folder, open: None, done: Vec::new() };
        for item in items {
            let bytes = item.bytes().ok_or_else(|| Error::weights(format!("`{}`: no whole blocks", item.name)))?;
            let row = bytes / item.shape.first().map_or(1, |rows| *rows as u64).max(1);
            // A vector is not cut.
            let (shard, offset) = shards.begin(bytes, if item.shape.len() == 1 { bytes } else { row }).map_err(failed)?;
            encoder.write(item, &mut shards).map_err(failed)?;
            let Item { name, role, layer, format, shape, .. } = item;
            let (name, role, shape) = (name.clone(), role.clone(), shape.clone());
            manifest.tensors.push(Tensor { name, role, layer: *layer, format: *format, shape, shard, offset, bytes });
        }
        shards.finish().map_err(failed)?;
        manifest.shards = shards.done;
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::format(FILE, e))? + "\n";
        // What is written is what is read.
        Manifest::parse(FILE, &text)?;
        write_atomically(&folder.join(FILE), |out| out.write_all(text.as_bytes()))
    })
}

/// Shards being written.
struct Shards<'f> {
    folder: &'f Path,
    open: Option<Open>,
    done: Vec<Hashed>,
}

/// The shard that is written to.
struct Open {
    name: String,
    out: BufWriter<File>,
    hash: Sha256,
    len: u64,
    /// Bytes of a row of the tensor that is written.
    row: u64,
}

impl Open {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl Shards<'_> {
    /// Makes room for a tensor of `bytes` in rows of `row`; the shard and the byte where it begins. One that fits into a
    /// shard is not cut.
    fn begin(&mut self, bytes: u64, row: u64) -> io::Result<(usize, u64)> {
        let start = self.open.as_ref().map_or(0, |open| open.len.next_multiple_of(ALIGNMENT));
        if self.open.is_some() && start + bytes > SHARD {
            self.finish()?;
        }
        let open = self.opened()?;
        open.row = row;
        let missing = open.len.next_multiple_of(ALIGNMENT) - open.len;
        open.put(&vec![0; missing as usize])?;
        let at = open.len;
        Ok((self.done.len(), at))
    }
    fn opened(&mut self) -> io::Result<&mut Open> {
        let row = 1;
        if self.open.is_none() {
            let name = format!("shard-{:05}.bin", self.done.len());
            let out = BufWriter::with_capacity(1 << 20, File::create_new(self.folder.join(&name))?);
            self.open = Some(Open { name, out, hash: Sha256::new(), len: 0, row });
        }
        self.open.as_mut().ok_or_else(|| io::Error::other("no shard is open"))
    }
    /// Ends the shard that is open.
    fn finish(&mut self) -> io::Result<()> {
        let Some(Open { name, out, hash, len, .. }) = self.open.take() else { return Ok(()) };
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        if len > 0 {
            self.done.push(Hashed { name, bytes: len, sha256: hexadecimal(&hash.finalize()) });
        }
        Ok(())
    }
}

impl Write for Shards<'_> {
    /// Takes whole rows: as many as the shard has room for, or the one that is larger than a shard.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let row = self.open.as_ref().map_or(1, |open| open.row).max(1);
        let room = |len: u64| (SHARD.saturating_sub(len) / row * row).max(if len == 0 { row } else { 0 });
        if self.open.as_ref().is_some_and(|open| room(open.len) == 0) {
            self.finish()?;
        }
        let open = self.opened()?;
        open.row = row;
        let count = usize::try_from(room(open.len)).unwrap_or(usize::MAX).min(bytes.len());
        open.put(bytes.get(..count).unwrap_or(bytes))?;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
