//! `doppler doctor`: what is wrong with a model on this machine, and the fix. The checks are the engine's; here are their
//! options, the model's files, the device, and where the verdict goes.

mod apply;
mod kernels;
mod opening;
mod page;

use crate::args::{Device as DeviceOption, MachineArgs, ModelArgs};
use crate::end::{Ended, Stop};
use crate::model::{self, Model};
use crate::progress::shown_parts;
use crate::{debug, output, terminal};
use doppler::config::RuntimeConfig;
use doppler::cpu::CpuExecutor;
use doppler::debug::compare::Choice;
use doppler::debug::compare::run::Tokens;
use doppler::debug::doctor::mended::{Patch, patches};
use doppler::debug::doctor::trial::{Patient, Right, Trial};
use doppler::debug::doctor::{Cause, Fault, against, alone, checks, words};
use doppler::debug::dump::Dump;
use doppler::debug::weight_source::Stored;
use doppler::exec::Storage;
use doppler::formats::Local;
use doppler::model::ModelConfig;
use doppler::open::Weights;
use doppler::plan::Plan;
use doppler::plan::edit::{ConfigEdit, Edit};
use doppler::{Error, Result};
use pollster::block_on;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Positions of the prompt that are read where no text is given and the model has no tokenizer.
const IDS: usize = 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What is right: a dump (`debug --dump`, or the reference scripts' of Hugging Face's run), or the folder or GGUF file of a
    /// right copy of the model, which the CPU oracle then runs
    #[arg(long, value_name = "DUMP|MODEL", help_heading = "Diagnosis")]
    reference: Option<PathBuf>,
    /// Text to read where the reference does not say; without it a fixed one
    #[arg(short, long, value_name = "TEXT", help_heading = "Diagnosis")]
    prompt: Option<String>,
    /// A text that the model should know, such as it was trained on: without a reference, likelihood is measured on it
    #[arg(long, value_name = "FILE", help_heading = "Diagnosis")]
    text: Option<PathBuf>,
    /// Write the verdict as JSON; `-` is stdout, in place of the text
    #[arg(long, value_name = "FILE", help_heading = "Diagnosis")]
    json: Option<String>,
    /// Write the verdict as an HTML page
    #[arg(long, value_name = "FILE", help_heading = "Diagnosis")]
    html: Option<PathBuf>,
    /// Write a mended copy of the model's folder, if the fault can be mended in its files
    #[arg(long, value_name = "DIR", help_heading = "Diagnosis")]
    apply: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    output::check(&[("--json", args.json.as_deref().map(Path::new)), ("--html", args.html.as_deref())])?;
    if let Some(out) = args.apply.as_deref().filter(|out| out.exists()) {
        return Err(Error::invalid("--apply", format!("{} exists already; name a folder that does not", out.display())).into());
    }
    let (found, patches) = examine(args)?;
    let json = serde_json::to_value(&found.verdict).map_err(|e| Error::io("--json", e))?;
    if let Some(path) = &args.html {
        output::file(path, &page::page(&args.model.model, &found.verdict))?;
    }
    if let Some(out) = &args.apply {
        apply::apply(&args.model.model, &found, &patches, out)?;
    }
    match args.json.as_deref() {
        Some("-") => output::document("-", &json)?,
        path => {
            if let Some(path) = path {
                output::document(path, &json)?;
            }
            let mut out = terminal::stdout();
            out.write_all(found.verdict.text().as_bytes())?;
            out.flush()?;
        }
    }
    Ok(if found.verdict.is_healthy() { Ended::Fine } else { Ended::Finding })
}

/// All checks, and with `--apply` what is to be written into the weights.
fn examine(args: &Args) -> Result<(against::Examined, Vec<Patch>), Stop> {
    let unopened = |verdict| (against::Examined { verdict, ..Default::default() }, Vec::new());
    let model = match opening::open(args)? {
        Ok(model) => model,
        Err(verdict) => return Ok(unopened(*verdict)),
    };
    let weights = match block_on(model.weights()) {
        Ok(weights) => weights,
        Err(error) => return Ok(unopened(opening::weights(&model, &error)?)),
    };
    let reference = args.reference.as_deref().map(|path| reference(args, path, &model)).transpose()?;
    let right = reference.as_ref().and_then(|reference| reference.copy.as_ref());
    let right = right.map(|(model, weights)| Right {
        plan: &model.plan,
        weights: Stored { checkpoint: &weights.checkpoint, matched: &weights.matched },
    });
    let patient = Patient { right: right.as_ref(), ..Patient::new(&model.name, &model.resolved, &weights.checkpoint) };
    let found = checks_of(args, &model, &weights, &patient, reference.as_ref().map(|reference| &reference.dump))?;
    let patches = if args.apply.is_some() { block_on(patches(&patient, &found.edits))? } else { Vec::new() };
    Ok((found, patches))
}

/// All checks of a model that opens, cheap ones first.
fn checks_of(
    args: &Args,
    model: &Model,
    weights: &Weights,
    patient: &Patient<'_, Local>,
    reference: Option<&Dump>,
) -> Result<against::Examined, Stop> {
    let texts = model.files.gguf.is_none().then_some(&model.files.texts);
    let words = model.words();
    let mut found = against::Examined::default();
    words::check(words.as_ref().map(|words| words.as_ref()), &model.resolved.config, reference, &mut found.verdict)?;
    let static_faults = block_on(checks::weights(patient, &weights.matched, &mut found.verdict))?;
    if !static_faults.is_empty() && reference.is_none() {
        found.verdict.faults.extend(static_faults);
        found.verdict.not_examined.push("everything after the first fault: mend it and run this again".into());
        return Ok(found);
    }
    let device = kernels::check(args, model, weights, reference, &mut found.verdict)?;
    if device {
        found.verdict.not_examined.push("the model itself: mend the kernel, or run this with --device cpu".into());
        return Ok(found);
    }
    match reference {
        Some(reference) => {
            let more = shown_parts(|progress| block_on(against::examine(patient, texts, reference, progress)))?;
            found.verdict.add(more.verdict);
            found.edits = more.edits;
            // What the reference's values showed already is not told twice.
            let named = |fault: &Fault| {
                found.verdict.faults.iter().any(|known| known.site.tensor == fault.site.tensor || known.cause == Cause::TiedHead)
            };
            let new: Vec<Fault> = static_faults.into_iter().filter(|fault| !named(fault)).collect();
            found.verdict.faults.extend(new);
        }
        None => {
            let text = text(args)?;
            let words = words.ok().flatten();
            let more = shown_parts(|progress| block_on(alone::examine(patient, texts, words.as_ref(), text.as_deref(), progress)))?;
            found.verdict.add(more.verdict);
            found.edits = more.edits;
        }
    }
    Ok(found)
}

/// The text on which likelihood is measured: the file's, or that of the built-in model's exam.
fn text(args: &Args) -> Result<Option<String>> {
    match crate::exam::heldout(args.text.as_deref()) {
        Ok(source) => Ok(Some(source.text)),
        Err(e) if args.text.is_some() => Err(e),
        Err(_) => Ok(None),
    }
}

/// What is right.
struct Reference {
    /// Its values.
    dump: Dump,
    /// The copy of the model that they are of, where it was given.
    copy: Option<(Model, Weights)>,
}

/// The reference: a dump, or what the oracle computes of another copy of the model.
fn reference(args: &Args, path: &Path, model: &Model) -> Result<Reference> {
    // A GGUF file is a model.
    if path.is_file() && path.extension().is_none_or(|extension| extension != "gguf") {
        return Ok(Reference { dump: Dump::open(path)?, copy: None });
    }
    let spec = path.to_str().ok_or_else(|| Error::invalid("--reference", "expected a path in UTF-8"))?;
    let right = model::open(spec, args.model.allow.allow_unknown_config).map_err(|e| e.within("--reference"))?;
    let ids = ids(args, &right)?;
    let weights = block_on(right.weights())?;
    let patient = Patient::new(&right.name, &right.resolved, &weights.checkpoint);
    if right.plan.vocab_size != model.plan.vocab_size {
        let text =
            format!("{} has {} ids, this model {}: they are different models", right.name, right.plan.vocab_size, model.plan.vocab_size);
        return Err(Error::invalid("--reference", text));
    }
    let edits = if model.files.gguf.is_some() { convention(&model.resolved.config, &right.resolved.config) } else { Vec::new() };
    let mut dump = shown_parts(|progress| block_on(recorded(&patient, (&right.plan, &edits), ids, progress)))?;
    if right.words().is_ok_and(|words| words.is_some()) {
        // Its tokenizer is right too.
        dump.metadata.insert("prompt".into(), args.prompt.clone().unwrap_or_else(|| debug::PROMPT.into()));
    }
    Ok(Reference { dump, copy: Some((right, weights)) })
}

/// Tokens that a right copy generates.
const STEPS: usize = 8;

/// What makes `right` compute as a GGUF file says: what its format leaves to convention is in its weights.
fn convention(own: &ModelConfig, right: &ModelConfig) -> Vec<Edit> {
    let scale = |config: &ModelConfig| {
        let mut all = config.attentions().map(|attention| attention.scale);
        let first = all.next()?;
        all.all(|scale| scale == first).then_some(first)
    };
    let scale = scale(own).filter(|own| scale(right).is_some_and(|right| right != *own));
    scale.map(|scale| Edit::Config(ConfigEdit::AttentionScale(scale))).into_iter().collect()
}

/// What the oracle computes of some ids and of what follows them, by the weights of the plan `from` with `edits` of the config.
async fn recorded<S: doppler::formats::ByteSource>(
    patient: &Patient<'_, S>,
    (from, edits): (&Plan, &[Edit]),
    prompt: Vec<u32>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Dump> {
    let trial = Trial::new(patient, edits)?;
    let mut oracle = CpuExecutor::<f32>::new(trial.plan.clone(), Storage::F32)?;
    trial.load_in_convention(patient, from, &mut oracle).await?;
    let tokens = Tokens { prompt, forced: Vec::new(), steps: STEPS };
    tokens.record(&oracle, usize::MAX, &Choice::default(), &patient.name, &mut |done, of| progress("the reference", done, of)).await
}

/// The ids that are read where no dump says which.
fn ids(args: &Args, model: &Model) -> Result<Vec<u32>> {
    // Words that cannot be read are a finding by themselves.
    let ids = match (model.words().ok().flatten(), &args.prompt) {
        (Some(words), prompt) => words.raw(prompt.as_deref().unwrap_or(debug::PROMPT))?,
        (None, Some(_)) => return Err(model.without_words("leave out --prompt")),
        (None, None) => {
            let count = IDS.min(model.plan.max_positions.saturating_sub(8)).max(1);
            (0..count).map(|i| ((i * 37 + 11) % model.plan.vocab_size) as u32).collect()
        }
    };
    Ok(ids)
}

/// The runtime config of the machine's options.
fn settings(machine: &MachineArgs) -> Result<RuntimeConfig> {
    let settings = crate::settings::Settings::resolve(&Default::default(), &Default::default(), machine)?;
    Ok(settings.runtime)
}

/// Whether a device other than the oracle was asked for, or is there.
fn wants_device(machine: &MachineArgs) -> bool {
    machine.device != DeviceOption::Cpu
}
