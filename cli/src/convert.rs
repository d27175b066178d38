//! `doppler convert`: a model in another form: as a GGUF file, as a folder of plain safetensors, as a manifest; its weights
//! in the formats that are asked for. What cannot be is refused before anything is written.

use crate::args::AllowArgs;
use crate::end::{Ended, Stop};
use crate::interrupt;
use crate::progress;
use crate::terminal::{self, tell};
use clap::ValueEnum;
use doppler::convert::{Conversion, Importance, Line, Options, Report, Target};
use doppler::forecast::size;
use doppler::formats::write::{check_folder, check_writable, target};
use doppler::formats::{Local, LocalFile};
use doppler::quant::recipe::Keep;
use doppler::{Error, Result};
use pollster::block_on;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("how").required(true).multiple(true).args(["quantize", "recipe"])))]
pub struct Args {
    /// A model as -m takes it: a folder, a GGUF file, or `demo`, the built-in model
    #[arg(value_name = "SRC")]
    source: String,
    /// Where the result goes: a file for gguf, a folder else. What exists is only replaced with --force
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// Format of all matrices: f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q3_k, q2_k, q5_0, q4_0, iq4_nl, iq4_xs, mxfp4, …; or a
    /// mixture, as --recipe. Norms and biases stay f32
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<String>,
    /// A mixture, which gives sensitive weights more bits: q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// Store weights that match PATTERN as TYPE: ROLE or ROLE@LAYER, where * is any text, such as v_proj=q8_0, down_proj@3=f16
    #[arg(long, value_name = "PATTERN=TYPE")]
    keep: Vec<String>,
    /// How much each column of a weight matters: an importance matrix in GGUF form
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Write GGUF as several files NAME-00001-of-0000N.gguf, each with at most SIZE bytes of tensors (a number, or one like 500M
    /// or 2G) unless one tensor has more
    #[arg(long, value_name = "SIZE", value_parser = file_size)]
    shard_size: Option<u64>,
    /// What to write. Without it: gguf where OUT ends so, else safetensors
    #[arg(long, value_name = "FORM")]
    to: Option<Form>,
    /// Replace OUT
    #[arg(long)]
    force: bool,
    /// Threads that encode; the result does not depend on them [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    allow: AllowArgs,
}

/// `--to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One GGUF file
    Gguf,
    /// A folder in Hugging Face's layout; plain numbers only
    Safetensors,
    /// A folder of hashed shards with a table (docs/FORMAT.md)
    Manifest,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let quantize = args.quantize()?;
    let keep = args.keep.iter().map(|text| Keep::parse(text)).collect::<Result<Vec<_>>>()?;
    let target = args.target();
    if args.shard_size.is_some() && target != Target::Gguf {
        return Err(Error::invalid("--shard-size", format!("it is about GGUF files, but OUT is {}", target.name())).into());
    }
    let model = args.allow.open(&args.source)?;
    if args.shard_size.is_none() {
        check_out(&args.out, target, &model.files.path, args.force)?;
    }
    let importance = args.imatrix.as_deref().map(|path| block_on(Importance::read(&Local::File(LocalFile::open(path)?)))).transpose()?;
    let threads = args.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let command = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let options = Options { quantize, keep, importance, threads, file_bytes: args.shard_size, command: format!("doppler {command}") };
    let weights = block_on(model.weights())?;
    let conversion = Conversion::new(&model, &weights, target, &options)?;
    let files = conversion.files(&args.out)?;
    if args.shard_size.is_some() {
        files.iter().try_for_each(|file| check_out(file, target, &model.files.path, args.force))?;
    }
    let words = model.words().ok().flatten();
    let notes = model.notes(words.as_ref(), &[weights.matched.notes.clone(), conversion.notes().to_vec()].concat());
    notes.iter().for_each(|note| tell(&format!("note: {note}")));

    let bar = progress::Bytes::new("converting", conversion.bytes());
    // An interruption ends it between two bands, so that what is half written is removed.
    let guard = interrupt::guard();
    let report = block_on(conversion.write(&args.out, &mut |progress| {
        bar.set(progress.bytes_done, progress.tensor);
        if interrupt::requested() { Err(Error::invalid("convert", "interrupted")) } else { Ok(()) }
    }));
    drop(bar);
    if report.is_err() && interrupt::requested() {
        return Ok(Ended::Interrupted);
    }
    drop(guard);
    let report = report?;
    report.notes.iter().for_each(|note| tell(&format!("note: {note}")));
    print(&files, &conversion, &report)
}

impl Args {
    /// The format or mixture.
    fn quantize(&self) -> Result<String> {
        match (&self.quantize, &self.recipe) {
            (Some(format), Some(recipe)) if !recipe.to_lowercase().starts_with(&format.to_lowercase()) => Err(Error::invalid(
                "--recipe",
                format!("{recipe} is a mixture of other formats than --quantize {format}; give one of them"),
            )),
            (_, Some(recipe)) | (Some(recipe), None) => Ok(recipe.clone()),
            (None, None) => Err(Error::invalid("--quantize", "expected a format or a mixture")),
        }
    }
    fn target(&self) -> Target {
        let gguf = self.out.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        match self.to {
            Some(Form::Gguf) => Target::Gguf,
            Some(Form::Manifest) => Target::Manifest,
            Some(Form::Safetensors) => Target::Safetensors,
            None if gguf => Target::Gguf,
            None => Target::Safetensors,
        }
    }
}

/// Bytes, or millions or thousands of millions of them.
fn file_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.trim_end_matches(['M', 'G']) {
        digits if text.len() - digits.len() > 1 => (text, 1),
        digits => (
            digits,
            if text.ends_with('G') {
                1_000_000_000
            } else if text.ends_with('M') {
                1_000_000
            } else {
                1
            },
        ),
    };
    let size = digits.parse::<u64>().ok().and_then(|size| size.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| format!("`{text}` is no size; expected bytes, or a number like 500M or 2G"))
}

/// Refuses what must not be replaced, and what cannot be written.
fn check_out(out: &Path, form: Target, source: &Path, force: bool) -> Result<()> {
    let wrong = |message: &str| Err(Error::io(out.display(), message));
    if out.exists() && !force {
        return wrong("exists already; give another name, or --force to replace it");
    }
    let (to, from) = (target(out)?, source.canonicalize().unwrap_or_else(|_| source.to_path_buf()));
    if from.starts_with(&to) || (out.is_file() && std::fs::canonicalize(out).is_ok_and(|file| file == from)) {
        return wrong("this is what is to be converted, or the folder that it is in; give another name");
    }
    if form == Target::Gguf {
        return check_writable(out);
    }
    let is_model = ["config.json", "manifest.json"].iter().any(|name| out.join(name).is_file());
    let empty = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if out.is_dir() && !is_model && !empty {
        return wrong("this folder holds no model (no config.json, no manifest.json), so --force does not replace it");
    }
    check_folder(out)
}

/// The table of what was written.
fn print(files: &[PathBuf], conversion: &Conversion<'_>, report: &Report) -> Result<Ended, Stop> {
    let mut to = terminal::stdout();
    writeln!(to, "{:<22} {:<8} {:>7} {:>12} {:>6}  relative RMS error", "weights", "format", "tensors", "size", "bits")?;
    let bits = |bytes: u64, elements: u64| bytes as f64 * 8.0 / elements.max(1) as f64;
    for line in &merged(&report.lines) {
        let error = line.relative_error().map_or("as stored".into(), |error| format!("{error:.2e}"));
        let (role, format, tensors, bytes) = (&line.role, line.format.name(), line.tensors, line.bytes);
        writeln!(to, "{role:<22} {format:<8} {tensors:>7} {:>12} {:>6.2}  {error}", size(bytes), bits(bytes, line.elements))?;
    }
    let sum = |of: fn(&Line) -> u64| report.lines.iter().map(of).sum::<u64>();
    let (bytes, elements) = (sum(|line| line.bytes), sum(|line| line.elements));
    let tensors: usize = report.lines.iter().map(|line| line.tensors).sum();
    let (squared, energy): (f64, f64) = report.lines.iter().fold((0.0, 0.0), |(a, b), line| (a + line.squared_error, b + line.energy));
    let error = if energy > 0.0 { format!("{:.2e}", (squared / energy).sqrt()) } else { "as stored".into() };
    writeln!(to, "{:<22} {:<8} {tensors:>7} {:>12} {:>6.2}  {error}", "all", "", size(bytes), bits(bytes, elements))?;
    let more = if files.len() > 1 { format!(" and {} more files", files.len() - 1) } else { String::new() };
    let first = files.first().map(|file| file.display().to_string()).unwrap_or_default();
    writeln!(to, "wrote {first}{more} ({})", conversion.target().name())?;
    Ok(Ended::Fine)
}

/// Norms, and biases, in one line for each format: nobody looks for them one by one.
fn merged(lines: &[Line]) -> Vec<Line> {
    let (mut out, mut places) = (Vec::<Line>::new(), BTreeMap::new());
    for line in lines {
        let role = match line.role.as_str() {
            role if role.ends_with("norm") => "norms",
            role if role.ends_with("bias") => "biases",
            role => role,
        };
        let at = *places.entry((role.to_owned(), line.format)).or_insert(out.len());
        match out.get_mut(at) {
            None => out.push(Line { role: role.to_owned(), ..line.clone() }),
            Some(known) => known.add(line),
        }
    }
    out
}
