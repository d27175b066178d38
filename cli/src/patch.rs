//! `doppler patch`: where in a model the difference between two prompts is decided.

use crate::args::{self, ModelArgs};
use crate::compare::sides::{SideArgs, Tokens, reported, side};
use crate::end::{Ended, Stop};
use crate::model::Model;
use crate::output;
use crate::progress::shown;
use doppler::debug::dump::Dump;
use doppler::debug::patching::{Column, Contribution, PatchMap, Question, contributions, html, patch, text};
use doppler::inference::words::Words;
use doppler::plan::Stage;
use doppler::{Error, Result};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompt after which the model says the answer, or a dump of `debug --dump`, for its prompt
    #[arg(value_name = "CLEAN")]
    clean: String,
    /// A prompt of as many tokens after which it does not, likewise
    #[arg(value_name = "CORRUPTED")]
    corrupted: String,
    #[command(flatten)]
    model: ModelArgs,

    /// The value to put into the corrupted run [default: layer_out, with --heads attn_core_out]
    #[arg(long, value_name = "STAGE", help_heading = "Patching")]
    stage: Option<String>,
    /// One head at a time, at every token, instead of one token at a time
    #[arg(long, help_heading = "Patching")]
    heads: bool,
    /// These layers only
    #[arg(long, value_name = "N,N-N,…", value_parser = args::parse_layers, help_heading = "Patching")]
    layers: Option<args::Layers>,
    /// The token whose logit should come back, as text or as an id [default: what the clean run says]
    #[arg(long, value_name = "TOKEN", help_heading = "Patching")]
    answer: Option<String>,
    /// The token that it is held against [default: what the corrupted run says]
    #[arg(long, value_name = "TOKEN", help_heading = "Patching")]
    against: Option<String>,
    /// Say too what each block adds to the difference in the clean run (direct logit attribution)
    #[arg(long, help_heading = "Patching")]
    contributions: bool,
    /// Write what was found as JSON; `-` is stdout, in place of the text
    #[arg(long, value_name = "FILE", help_heading = "Patching")]
    json: Option<String>,
    /// Write the map as an HTML page
    #[arg(long, value_name = "FILE", help_heading = "Patching")]
    html: Option<PathBuf>,

    #[command(flatten)]
    how: SideArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    reported(args.json.as_deref(), args.html.as_deref(), |out| patched(args, out))
}

fn patched(args: &Args, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    let stage = args.stage.as_deref().map(Stage::parse).transpose()?;
    let stage = stage.unwrap_or(if args.heads { Stage::AttnCoreOut } else { Stage::LayerOut });
    let mut model = args.model.open()?;
    let words = model.words()?;
    let [clean, corrupted] = [&args.clean, &args.corrupted].map(|prompt| ids(prompt, &model, words.as_ref()));
    let (clean, corrupted) = (clean?, corrupted?);
    let token = |option: &str, given: &Option<String>| given.as_deref().map(|text| token(option, text, &model, words.as_ref())).transpose();
    let (answer, against) = (token("--answer", &args.answer)?, token("--against", &args.against)?);
    let longest = if clean.len() > corrupted.len() { &clean } else { &corrupted };
    let room = Tokens { prompt: longest.clone(), forced: Vec::new(), steps: 0 };
    let mut side = side(&args.how, None, &mut model, &room)?;
    let layers = args.layers.as_ref().map(|layers| &layers.0[..]);
    let column = if args.heads { Column::Head } else { Column::Token };
    let chunk = side.chunk();
    let asked = Question { clean: &clean, corrupted: &corrupted, stage, column, layers, answer, against, chunk };
    let map = shown("patching", |progress| block_on(patch(&mut side.engine, &asked, progress)))?;
    let parts = match args.contributions {
        true => block_on(contributions(&side.engine, &clean, chunk, map.answer, map.against))?,
        false => Vec::new(),
    };
    let name = |id: u32| words.as_ref().map_or_else(String::new, |words| words.tokenizer.token_text(id));
    let columns = columns(&map, [&clean, &corrupted], &name);
    writeln!(out, "Config model={}", side.name)?;
    out.write_all(text(&map, &parts, &name, &columns).as_bytes())?;
    if let Some(path) = &args.html {
        output::file(path, &html(&map, &parts, &name, &columns, &output::facts()))?;
    }
    Ok((Ended::Fine, document(&map, &parts, [&clean, &corrupted], &columns)?))
}

/// Names of the columns: heads, or the tokens of the corrupted prompt; where the clean one has another, both.
fn columns(map: &PatchMap, [clean, corrupted]: [&[u32]; 2], name: &dyn Fn(u32) -> String) -> Vec<String> {
    let tokens = clean.iter().zip(corrupted).enumerate().map(|(i, (clean, corrupted))| match clean == corrupted {
        true => format!("{i}{}", name(*clean)),
        false => format!("{i}{}/{}", name(*clean), name(*corrupted)),
    });
    match map.column {
        Column::Token => tokens.collect(),
        Column::Head => (0..map.regained.first().map_or(0, Vec::len)).map(|head| format!("head {head}")).collect(),
    }
}

fn document(map: &PatchMap, parts: &[Contribution], [clean, corrupted]: [&[u32]; 2], columns: &[String]) -> Result<Value> {
    let mut document = serde_json::to_value(map).map_err(|e| Error::io("--json", e))?;
    document["columns"] = json!(columns);
    document["cleanIds"] = json!(clean);
    document["corruptedIds"] = json!(corrupted);
    document["contributions"] = serde_json::to_value(parts).map_err(|e| Error::io("--json", e))?;
    Ok(document)
}

/// The ids of a prompt: a dump's, or those of a text.
fn ids(prompt: &str, model: &Model, words: Option<&Words>) -> Result<Vec<u32>> {
    if Path::new(prompt).is_file() {
        return Dump::open(Path::new(prompt))?.input_ids();
    }
    words.ok_or_else(|| model.without_words("give dumps of `doppler debug --token-ids … --dump FILE`"))?.raw(prompt)
}

/// The id of a token that an option names.
fn token(option: &str, text: &str, model: &Model, words: Option<&Words>) -> Result<u32> {
    if let Ok(id) = text.parse::<u32>() {
        return Ok(id);
    }
    let words = words.ok_or_else(|| model.without_words("give ids"))?;
    match words.tokenizer.encode(text, false)?[..] {
        [id] => Ok(id),
        ref several => Err(Error::invalid(option, format!("{text:?} is {} tokens ({several:?}): give one, or its id", several.len()))),
    }
}
