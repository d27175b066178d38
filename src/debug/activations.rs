//! Activations of many prompts, for programs that learn from them: rows of chosen values, all prompts one after the other, in
//! safetensors shards of about one size. What is in memory is one shard and one step. A shard is written whole or not at
//! all and says where the next one begins, so a run that was ended goes on there.
//!
//! In a shard, row i of `layer.3.layer_out` [rows, width] is of position `position[i]` of prompt `prompt[i]`, where the token
//! `id[i]` stands.

use super::bundle::Fingerprint;
use crate::error::{Error, Result};
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want};
use crate::formats::safetensors::{Output, read_header, write};
use crate::formats::write::write_atomically;
use crate::formats::{Local, LocalFile};
use crate::plan::intervention::{Span, holds};
use crate::plan::{At, Plan};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh64::{Xxh64, xxh64};

/// Where a run is: rows before it are in shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Place {
    prompt: usize,
    position: usize,
}

/// Which rows, and of which run.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Stages by name, or `all`.
    pub stages: &'a [&'a str],
    /// Layers; `None` is every one that has the stages.
    pub layers: Option<&'a [usize]>,
    /// Metadata of the shards: the model, how it runs, which tokens are kept.
    pub about: &'a [(&'a str, &'a str)],
    /// The model's files.
    pub files: &'a [Fingerprint],
}

/// Writes the shards of a run.
pub struct Activations {
    folder: PathBuf,
    /// Bytes of rows from which on a shard is written.
    limit: usize,
    metadata: BTreeMap<String, String>,
    requests: Vec<Request>,
    /// The first row that no shard has.
    next: Place,
    /// Of the prompts before `next.prompt`.
    hash: Xxh64,
    /// The hash that the shards of an earlier run end with, until the prompts have come that far.
    known: Option<String>,
    shards: usize,
    rows: Rows,
    total: usize,
}

/// Rows of the shard that is being filled.
#[derive(Default)]
struct Rows {
    prompt: Vec<u32>,
    position: Vec<u32>,
    id: Vec<u32>,
    values: BTreeMap<At, (usize, Vec<f32>)>,
}

impl Activations {
    /// Shards of `limit` bytes or somewhat more in `folder`. What lies there of the same run stays, and this one goes on after it.
    ///
    /// # Errors
    /// `Kind::Invalid` for values that the plan lacks, those whose rows differ in length, and for a folder with shards of another
    /// run; `Kind::Io`, `Kind::Format`.
    pub async fn open(plan: &Plan, wanted: &Wanted<'_>, folder: &Path, limit: usize) -> Result<Self> {
        let (mut requests, _) = super::select(plan, wanted.stages.iter().copied(), wanted.layers, &Want::Full)?;
        if let Some(scores) = requests.iter().find(|request| !request.stage.layout().is_rows()) {
            let text = format!("rows of `{}` differ in length, so they cannot be put together: dump them prompt by prompt", scores.stage);
            return Err(Error::invalid("stages", text));
        }
        requests.sort_by_key(|request| request.stage);
        if requests.is_empty() {
            return Err(Error::invalid("stages", "expected at least one"));
        }
        let of = |request: &Request| request.layers.as_ref().map_or(request.stage.to_string(), |l| format!("{}@{l:?}", request.stage));
        let values: Vec<String> = requests.iter().map(of).collect();
        let mut metadata: BTreeMap<String, String> = wanted.about.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        metadata.insert("tool".into(), "doppler".into());
        metadata.insert("plan".into(), plan.fingerprint());
        metadata.insert("values".into(), values.join(" "));
        // Rows of other weights do not belong to these.
        metadata.insert("files".into(), format!("{:016x}", xxh64(format!("{:?}", wanted.files).as_bytes(), 0)));
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder.display(), e))?;
        let mut run = Self {
            folder: folder.to_path_buf(),
            limit,
            metadata,
            requests,
            next: Place::default(),
            hash: Xxh64::new(0),
            known: None,
            shards: 0,
            rows: Rows::default(),
            total: 0,
        };
        run.resume().await?;
        Ok(run)
    }
    /// Goes behind the shards that are there.
    async fn resume(&mut self) -> Result<()> {
        while self.path().is_file() {
            let file = LocalFile::open(&self.path())?;
            let header = read_header(&Local::File(file)).await?;
            let name = self.path().display().to_string();
            let of = |key: &str| header.metadata.get(key).cloned().unwrap_or_default();
            if let Some((key, ours)) = self.metadata.iter().find(|(key, ours)| of(key) != **ours) {
                let text =
                    format!("`{key}` is `{}` there and `{ours}` now: give an empty folder, or repeat that run to go on with it", of(key));
                return Err(Error::invalid("dump", format!("{name} is of another run: {text}")));
            }
            let number = |key: &str| of(key).parse::<usize>().map_err(|_| Error::format(&name, format!("metadata: `{key}` is no number")));
            self.next = Place { prompt: number("next_prompt")?, position: number("next_position")? };
            self.total += number("rows")?;
            self.known = Some(of("prompts_hash"));
            self.shards += 1;
        }
        Ok(())
    }
    fn path(&self) -> PathBuf {
        self.folder.join(format!("activations-{:05}.safetensors", self.shards))
    }
    /// Hears of the text of the next prompt, number `prompt`; whether it is to be read, or is in shards already.
    ///
    /// # Errors
    /// `Kind::Invalid` where the prompts of an earlier run were others.
    pub fn begins(&mut self, prompt: usize, text: &[u8]) -> Result<bool> {
        if prompt == self.next.prompt {
            self.same_prompts()?;
        }
        if prompt >= self.next.prompt {
            return Ok(true);
        }
        self.heard(text);
        Ok(false)
    }
    fn heard(&mut self, text: &[u8]) {
        self.hash.update(&(text.len() as u64).to_le_bytes());
        self.hash.update(text);
    }
    fn same_prompts(&mut self) -> Result<()> {
        match self.known.take() {
            Some(known) if known != self.digest() => {
                let text = format!("the shards in {} are of other prompts than the first {} here", self.folder.display(), self.next.prompt);
                Err(Error::invalid("prompts", text))
            }
            _ => Ok(()),
        }
    }
    fn digest(&self) -> String {
        format!("{:016x}", self.hash.digest())
    }
    /// An observer of prompt number `prompt` at the chosen positions; `None` is all.
    pub fn observer(&mut self, prompt: usize, tokens: Option<Vec<Span>>) -> PromptObserver<'_> {
        PromptObserver { run: self, prompt, tokens }
    }
    /// The prompt called `text` has been read.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn ended(&mut self, prompt: usize, text: &[u8]) -> Result<()> {
        self.heard(text);
        self.next = Place { prompt: prompt + 1, position: 0 };
        self.write_if(self.limit)
    }
    /// There is no other prompt.
    ///
    /// # Errors
    /// As `pause`; `Kind::Invalid` where an earlier run had more prompts.
    pub fn finish(mut self) -> Result<(usize, usize)> {
        self.same_prompts()?;
        self.pause()
    }
    /// Writes what no shard has yet. Rows and shards, those of earlier runs included.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn pause(&mut self) -> Result<(usize, usize)> {
        self.write_if(1)?;
        Ok((self.total, self.shards))
    }
    /// Writes a shard if there are so many bytes for it.
    fn write_if(&mut self, bytes: usize) -> Result<()> {
        let held: usize = self.rows.values.values().map(|(_, values)| values.len() * 4).sum();
        if held < bytes {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let mut metadata = self.metadata.clone();
        let numbers = [("next_prompt", self.next.prompt), ("next_position", self.next.position), ("rows", rows.id.len())];
        metadata.extend(numbers.map(|(key, number)| (key.to_string(), number.to_string())));
        metadata.insert("prompts_hash".into(), self.digest());
        let mut outputs = vec![Output::ids("prompt", &rows.prompt), Output::ids("position", &rows.position), Output::ids("id", &rows.id)];
        outputs.extend(rows.values.iter().map(|(at, (width, values))| Output::f32(at.key(), vec![rows.id.len(), *width], values)));
        write_atomically(&self.path(), |out| write(out, &metadata, &outputs))?;
        self.total += rows.id.len();
        self.shards += 1;
        Ok(())
    }
}

/// Takes the rows of one prompt.
pub struct PromptObserver<'a> {
    run: &'a mut Activations,
    prompt: usize,
    tokens: Option<Vec<Span>>,
}

impl Observer for PromptObserver<'_> {
    fn requests(&self, _: usize) -> Vec<Request> {
        self.run.requests.clone()
    }
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        let place = |position: usize| Place { prompt: self.prompt, position };
        let kept = |position: &usize| place(*position) >= self.run.next && holds(self.tokens.as_deref(), *position);
        let positions: Vec<usize> = (step.first_token..step.first_token + step.tokens.len()).filter(kept).collect();
        let number = |n: usize| u32::try_from(n).map_err(|_| Error::invalid("prompts", "there are too many for a shard's numbers"));
        let rows = &mut self.run.rows;
        for position in &positions {
            rows.prompt.push(number(self.prompt)?);
            rows.position.push(number(*position)?);
            rows.id.push(step.tokens[position - step.first_token]);
        }
        for value in values {
            let Content::Full(tensor) = value.content else { continue };
            let whole = value.first_token == step.first_token && tensor.rows() == step.tokens.len();
            if !whole {
                return Err(Error::device(format!("{}: expected rows of all {} tokens of a step", value.at, step.tokens.len())));
            }
            let (_, into) = rows.values.entry(value.at).or_insert_with(|| (tensor.width(), Vec::new()));
            positions.iter().for_each(|position| into.extend_from_slice(tensor.row(position - step.first_token)));
        }
        self.run.next = self.run.next.max(place(step.first_token + step.tokens.len()));
        self.run.write_if(self.run.limit)
    }
}
