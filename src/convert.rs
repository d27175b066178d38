//! From one stored form of a model to another: the tensors of the target are made from the source's rows in bands, by
//! several threads, in memory that does not grow with the model. What a conversion will write is known before it begins.
//! It starts no command and prints nothing; not for browsers.

mod encode;
mod gguf;
mod imatrix;
mod items;
mod manifest;
mod safetensors;
mod texts;

pub use encode::{Line, OnProgress, Progress};
pub use imatrix::Importance;

use crate::error::{Error, Result};
use crate::formats::ModelTexts;
use crate::formats::gguf::{MAX_FILES, Metadata, Output, Part, Value, named, write_part};
use crate::formats::write::write_atomically;
use crate::model::TensorNames;
use crate::open::manifest::tensor_names;
use crate::open::{Opened, Weights};
use crate::quant::Format;
use crate::quant::recipe::{Keep, ModelFacts, Recipe};
use encode::{Encoder, Item};
use items::{Items, Wishes};
use std::path::{Path, PathBuf};

/// What a model is converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A GGUF file, or several.
    Gguf,
    /// A folder in Hugging Face's layout, of plain numbers.
    Safetensors,
    /// A folder with a manifest.
    Manifest,
}

impl Target {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Target::Gguf => "gguf",
            Target::Safetensors => "safetensors",
            Target::Manifest => "manifest",
        }
    }
}

/// How weights are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// A format, or a mixture by its name.
    pub quantize: String,
    /// Weights that get formats of their own.
    pub keep: Vec<Keep>,
    /// Which columns matter, where that was measured.
    pub importance: Option<Importance>,
    /// Threads that encode; the result does not depend on them.
    pub threads: usize,
    /// Bytes of the tensors of a GGUF file, unless one tensor has more; without it, all are in one.
    pub file_bytes: Option<u64>,
    /// The command, for those who read a manifest.
    pub command: String,
}

/// A conversion that is understood, and that nothing forbids as far as headers tell.
pub struct Conversion<'m> {
    model: &'m Opened,
    weights: &'m Weights,
    target: Target,
    items: Items,
    /// Of a GGUF file.
    metadata: Metadata,
    /// Of a folder.
    texts: Option<ModelTexts>,
    options: &'m Options,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// By role and format, in the order of the model.
    pub lines: Vec<Line>,
    /// What turned out while writing.
    pub notes: Vec<String>,
}

impl<'m> Conversion<'m> {
    /// Decides what every tensor becomes.
    ///
    /// # Errors
    /// `Kind::Invalid` for formats that are not known, `Kind::Unsupported` for those that are not written, or that the target
    /// does not hold, and for models that the target cannot express; those of reading the model's texts.
    pub fn new(model: &'m Opened, weights: &'m Weights, target: Target, options: &'m Options) -> Result<Self> {
        model.files.check_texts()?;
        let recipe = recipe(model, options)?;
        let wishes = Wishes {
            recipe: &recipe,
            importance: options.importance.as_ref(),
            vectors: None,
            pairs: None,
            flat: false,
            norms: 0.0,
            queries: 1.0,
        };
        let (mut metadata, mut texts) = (Metadata::default(), None);
        let mut items = match target {
            Target::Gguf => {
                let items;
                (metadata, items) = match &model.files.gguf {
                    Some(gguf) => (gguf.header.metadata.clone(), items::of_gguf(&gguf.header, &wishes)?),
                    None => gguf::plan(model, weights, &wishes)?,
                };
                state(&mut metadata, &options.quantize);
                items
            }
            Target::Safetensors => {
                let format = safetensors::format(options)?;
                let (mut all, names, offset) = texts::of(model)?;
                let wishes =
                    Wishes { vectors: Some(format), norms: (model.resolved.config.norm.weight_offset() - offset) as f32, ..wishes };
                let items = as_hugging_face(model, weights, &names, &wishes)?;
                all.config = safetensors::config(&all.config, format)?;
                texts = Some(all);
                items
            }
            Target::Manifest => {
                let (all, _, offset) = texts::of(model)?;
                let wishes = Wishes { norms: (model.resolved.config.norm.weight_offset() - offset) as f32, ..wishes };
                texts = Some(all);
                let matched = &weights.matched;
                items::of_plan(&model.plan, &tensor_names(), "", matched, &wishes)?
            }
        };
        if items.items.iter().any(Item::encodes_packed) {
            items.notes.push(PACKED.into());
        }
        if metadata.get("tokenizer.ggml.merges").is_some() && metadata.get("tokenizer.ggml.add_space_prefix").is_some() {
            items.notes.push(MERGES.into());
        }
        if let Some(importance) = &options.importance {
            let used = items.items.iter().filter(|item| item.importance.is_some()).count();
            if used == 0 {
                return Err(Error::invalid("imatrix", format!("none of its {} weights is one of this model's", importance.len())));
            }
            items
                .notes
                .push(format!("importance is known of {used} of {} tensors; all columns of the others count alike", items.items.len()));
        }
        let unused = &weights.matched.ignored;
        if let (Some(first), None) = (unused.first(), &model.files.gguf) {
            items.notes.push(format!("{} tensors that the model does not use, first `{first}`, are not written", unused.len()));
        }
        Ok(Self { model, weights, target, items, metadata, texts, options })
    }
    /// What it makes.
    pub fn target(&self) -> Target {
        self.target
    }
    /// Bytes of all tensors of the target.
    pub fn bytes(&self) -> u64 {
        self.items.items.iter().filter_map(Item::bytes).sum()
    }
    /// Elements of them.
    pub fn elements(&self) -> u64 {
        self.items.items.iter().map(|item| item.shape.iter().map(|size| *size as u64).product::<u64>()).sum()
    }
    /// The files that are written for `out`, or the folder: of a split model `NAME-00001-of-00003.gguf` and so on.
    ///
    /// # Errors
    /// `Kind::Invalid` for more files than a model can have.
    pub fn files(&self, out: &Path) -> Result<Vec<PathBuf>> {
        let count = self.parts().len() as u64;
        if count <= 1 {
            return Ok(vec![out.to_path_buf()]);
        }
        if count > MAX_FILES {
            return Err(Error::invalid("file size", format!("the model would be {count} files; expected {MAX_FILES} at most")));
        }
        let base = out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(named(&base, count).into_iter().map(|name| out.with_file_name(name)).collect())
    }
    /// The tensors of each file.
    fn parts(&self) -> Vec<&[Item]> {
        let (mut parts, mut first, mut bytes) = (Vec::new(), 0, 0u64);
        for (i, item) in self.items.items.iter().enumerate() {
            let more = item.bytes().unwrap_or(0);
            let full = self.options.file_bytes.is_some_and(|most| bytes.saturating_add(more) > most);
            if full && self.target == Target::Gguf && i > first {
                parts.push(&self.items.items[first..i]);
                (first, bytes) = (i, 0);
            }
            bytes = bytes.saturating_add(more);
        }
        parts.push(&self.items.items[first..]);
        parts
    }
    /// What is done otherwise than one might expect, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.items.notes
    }
    /// Writes `out`, a file or a folder that is not there, or may be replaced: whole or not at all. Of several files, those
    /// that were there before are lost where a later one cannot be written.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Weights` for values that a format cannot hold; what `on_progress` returns.
    pub async fn write(&self, out: &Path, on_progress: OnProgress<'_>) -> Result<Report> {
        let checkpoint = &self.weights.checkpoint;
        let encoder = Encoder::new((&checkpoint.sources, checkpoint.index.entries()), self.options.threads, self.bytes(), on_progress);
        let written = match self.target {
            Target::Gguf => self.write_gguf(out, &encoder),
            Target::Safetensors => safetensors::write(out, self.texts(), &self.items.items, &encoder),
            Target::Manifest => {
                let sources = &self.weights.checkpoint.sources;
                let begun = manifest::begin(self.model, self.options, sources).await;
                begun.and_then(|manifest| manifest::write(out, &manifest, self.texts(), &self.items.items, &encoder))
            }
        };
        // An error of the engine says more than that of the file in whose midst it came.
        if let Some(failure) = encoder.failure() {
            return Err(failure.within(self.model.files.path.display()));
        }
        written?;
        let lines = encoder.lines();
        let clipped = |line: &Line| {
            let Line { role, format, clipped, .. } = line;
            (*clipped > 0).then(|| format!("{clipped} values of {role} are beyond what {format} holds, and were made its largest number"))
        };
        let notes = lines.iter().filter_map(clipped).collect();
        Ok(Report { lines, notes })
    }
    fn texts(&self) -> &ModelTexts {
        self.texts.as_ref().unwrap_or(&self.model.files.texts)
    }
    fn write_gguf<'i>(&'i self, out: &Path, encoder: &'i Encoder<'_>) -> Result<()> {
        let output = |item: &'i Item| Output {
            name: item.name.clone(),
            format: item.format,
            shape: item.shape.clone(),
            data: Box::new(move |out| encoder.write(item, out)),
        };
        let (files, parts) = (self.files(out)?, self.parts());
        let (count, all) = (files.len() as u16, self.items.items.len() as i32);
        let none = Metadata::default();
        for (number, (file, items)) in files.iter().zip(parts).enumerate() {
            let tensors: Vec<Output<'_>> = items.iter().map(output).collect();
            let part = (count > 1).then_some(Part { number: number as u16, count, tensors: all });
            // The first file has the metadata.
            let metadata = if number == 0 { &self.metadata } else { &none };
            let written = write_atomically(file, |out| write_part(out, metadata, &tensors, part));
            if written.is_err() {
                files.iter().take(number).for_each(|file| drop(std::fs::remove_file(file)));
                return written;
            }
        }
        Ok(())
    }
}

/// Said where packed weights are encoded again.
const PACKED: &str = "the source is packed already, so errors add up: figures below are those of this conversion alone; convert the original where you have it";
/// Said where pieces have merges that no scores stand for.
const MERGES: &str = "no scores stand for the merges of this tokenizer, so they are written as they are, in the form of the newest vocabularies: older readers do not know it";

/// The recipe of the options for this model.
fn recipe(model: &Opened, options: &Options) -> Result<Recipe> {
    let config = &model.resolved.config;
    let name = &options.quantize;
    let recipe = match Format::parse(name) {
        // Of names that are both, such as `q2_k`, the format counts.
        Some(format) => Recipe::uniform(format),
        None if Recipe::names().any(|known| known.eq_ignore_ascii_case(name)) => {
            let facts = ModelFacts::of(config);
            Recipe::mixture(name, facts)?
        }
        None => {
            let formats = crate::quant::TABLE.iter().filter(|row| row.encode.is_some()).map(|row| row.name);
            let mixtures: Vec<&str> = Recipe::names().filter(|name| Format::parse(name).is_none()).collect();
            let formats: Vec<&str> = formats.collect();
            let message = format!("`{name}` is neither a format ({}) nor a mixture ({})", formats.join(", "), mixtures.join(", "));
            return Err(Error::invalid("quantize", message));
        }
    };
    Ok(recipe.keeping(options.keep.iter().cloned()))
}

/// Every weight under the names of Hugging Face.
fn as_hugging_face(model: &Opened, weights: &Weights, names: &TensorNames, wishes: &Wishes) -> Result<Items> {
    let own = model.files.gguf.is_none() && model.files.manifest.is_none();
    let prefix = if own { weights.matched.prefix.clone() } else { names.prefixes.first().cloned().unwrap_or_default() };
    items::of_plan(&model.plan, names, &prefix, &weights.matched, wishes)
}

/// What the metadata say of the file itself.
fn state(metadata: &mut Metadata, recipe: &str) {
    for key in ["split.no", "split.count", "split.tensors.count", "general.file_type", "general.quantization_version"] {
        metadata.remove(key);
    }
    if let Some(number) = gguf::file_type(&recipe.to_ascii_lowercase()) {
        metadata.set("general.file_type", number);
    }
    metadata.set("general.quantization_version", Value::Unsigned(2));
}
