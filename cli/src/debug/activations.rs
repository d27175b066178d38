//! `debug --prompts FILE --dump FOLDER`: activations of many prompts, one line of the file after the other.

use super::Args;
use crate::device;
use crate::end::{Ended, Stop};
use crate::hub::Need;
use crate::interrupt;
use crate::load;
use crate::model::{self, Model, Place};
use crate::progress::Steps;
use crate::prompt;
use crate::settings::Settings;
use crate::terminal::{stdout, tell};
use doppler::debug::activations::{Activations, Wanted};
use doppler::debug::bundle::fingerprints;
use doppler::debug::interventions::positions;
use doppler::debug::lines::Line;
use doppler::formats::text::MAX_STDIN;
use doppler::inference::session::{GenerateOptions, Session};
use doppler::inference::words::{Words, session_options};
use doppler::{Error, Result};
use pollster::block_on;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

/// Positions to make room for before the first prompt is read; longer ones get more.
const ROOM: usize = 512;

/// A line of a `.jsonl` file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Plain(String),
    Text { text: String },
    Ids { ids: Vec<u32> },
}

pub fn run(args: &Args, settings: &Settings, prompts: &Path, place: Result<Option<Place>>) -> Result<Ended, Stop> {
    let place = place?.map_or_else(|| model::locate(&args.model.model, Need::Everything), Ok)?;
    let mut model = args.model.allow.open_at(&place)?;
    let words = model.words()?;
    let inference = settings.unseen();
    let room = inference.kvcache.max_tokens.unwrap_or(ROOM.min(model.plan.max_positions));
    // Checks the context, and sets it.
    prompt::fit(&mut model, &[0], 0, inference.kvcache.max_tokens)?;
    model::set(&mut model, &settings.debug().set, None)?;
    if let Some(tokens) = &args.dump_tokens {
        positions(tokens, 1).map_err(|e| e.within("--dump-tokens"))?;
    }
    let mut lines = PromptLines::open(prompts)?;
    let chunk = doppler::settings::chunk(inference, room);
    let prepared = load::prepare(&model, device::open(&args.machine, inference)?, inference, room)?;
    let config = Line::config(&model.name, &model.resolved, &prepared.engine, &prepared.weights.types(), Some(&settings.name));
    let (engine, loaded) = prepared.load(true)?;
    let folder = args.dump.as_deref().unwrap_or(Path::new("."));
    let mut about = config.metadata();
    let tokens = args.dump_tokens.clone().unwrap_or_else(|| "all".into());
    about.push(("tokens", &tokens));
    let files = block_on(fingerprints(&model.files, &mut |_| {}))?;
    let stages = args.stages.iter().map(String::as_str).collect::<Vec<_>>();
    let limit = args.shard_size.max(1).saturating_mul(1 << 20);
    let wanted = Wanted { stages: &stages, layers: args.dump_layers(), about: &about, files: &files };
    let mut run = block_on(Activations::open(&model.plan, &wanted, folder, limit))?;
    for found in &loaded.non_finite {
        tell(&format!("note: {}", Line::weights_anomaly(found)));
    }

    let session = session_options(words.as_ref(), model.plan.vocab_size, room, chunk);
    let bar = Steps::new("prompts");
    let _guard = interrupt::guard();
    let mut number = 0;
    while let Some(line) = lines.next()? {
        let ended = bar.heard("", lines.done, lines.bytes);
        if ended.is_break() {
            let (rows, shards) = run.pause()?;
            tell(&format!("note: interrupted after {number} prompts; {rows} rows in {shards} shards; the same command goes on from there"));
            return Ok(Ended::Interrupted);
        }
        let within = |e: Error| e.within(format!("{}, line {}", prompts.display(), number + 1));
        if !run.begins(number, &line)? {
            number += 1;
            continue;
        }
        if !line.is_empty() {
            let ids = lines.ids(&line, words.as_ref(), &model).map_err(within)?;
            let chosen = args.dump_tokens.as_ref().map(|text| positions(text, ids.len())).transpose()?;
            let mut observer = run.observer(number, chosen);
            let read = Session::new(&engine, session).and_then(|mut session| {
                let mut event = |_| ControlFlow::Continue(());
                block_on(session.generate(&ids, &GenerateOptions::default(), Some(&mut observer), &mut event))
            });
            read.map_err(within)?;
        }
        run.ended(number, &line)?;
        number += 1;
    }
    drop(bar);
    let (rows, shards) = run.finish()?;
    let mut out = stdout();
    writeln!(out, "{config}")?;
    writeln!(out, "ACTIVATIONS prompts={number} rows={rows} shards={shards} written to {}", folder.display())?;
    Ok(Ended::Fine)
}

/// The lines of a file, one in memory at a time.
struct PromptLines {
    name: String,
    file: BufReader<File>,
    is_json: bool,
    done: usize,
    bytes: usize,
}

impl PromptLines {
    fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(path.display(), e);
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len() as usize;
        let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
        Ok(Self { name: path.display().to_string(), file: BufReader::new(file), is_json, done: 0, bytes })
    }
    /// The next line, without its end.
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = self.file.by_ref().take(MAX_STDIN + 1).read_until(b'\n', &mut line).map_err(|e| Error::io(&self.name, e))?;
        if line.len() as u64 > MAX_STDIN {
            return Err(Error::format(&self.name, format!("a line has more than {MAX_STDIN} bytes")));
        }
        self.done += read;
        while line.last().is_some_and(|byte| b"\n\r".contains(byte)) {
            line.pop();
        }
        Ok((read > 0).then_some(line))
    }
    /// The ids that a line means.
    fn ids(&self, line: &[u8], words: Option<&Words>, model: &Model) -> Result<Vec<u32>> {
        let text = std::str::from_utf8(line).map_err(|e| Error::format(&self.name, e))?;
        let prompt = if self.is_json {
            let expected = "expected a JSON text, {\"text\": ..} or {\"ids\": [..]}";
            serde_json::from_str(text).map_err(|e| Error::format(&self.name, format!("{expected}: {e}")))?
        } else {
            Prompt::Plain(text.into())
        };
        match (prompt, words) {
            (Prompt::Ids { ids }, _) => Ok(ids),
            (Prompt::Plain(text) | Prompt::Text { text }, Some(words)) => {
                prompt::check_bytes(model, words, &text, None)?;
                words.raw(&text)
            }
            (_, None) => Err(model.without_words("give {\"ids\": [..]} in a .jsonl file")),
        }
    }
}
