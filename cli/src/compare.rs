//! `doppler compare`: where two runs of a model part: two dumps, a dump and a run of its tokens, or two runs. Everything
//! is in units of the rounding floor; the first value beyond it is told first.

pub mod agree;
mod attribute;
mod cost;
mod replay;
pub mod sides;
mod tokens;

use crate::args::{self, AllowArgs, SetArgs};
use crate::chat::ChatArgs;
use crate::end::{Ended, Stop};
use crate::model::Model;
use crate::output;
use crate::progress::{shown, shown_parts};
use crate::prompt;
use doppler::debug::compare::run::{Measured, align_run, storage_of, worth_keeping};
use doppler::debug::compare::{Align, Choice, Floors, Injection, Report, Unobserved, align, cumulative, html, isolated, judge_unobserved};
use doppler::debug::dump::Dump;
use doppler::debug::floor::Oracles;
use doppler::debug::interventions;
use doppler::exec::Executor;
use doppler::loader::NonFinite;
use doppler::plan::{At, Stage};
use doppler::{Error, Result};
use pollster::block_on;
use sides::{SideArgs, Tokens, edited_side, injected_side, oracles};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    runs: Runs,
}

/// What else is compared.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Repeat the run of a bundle (`doppler debug --bundle FILE`): same files, same ids, same settings
    Replay(Box<replay::Args>),
    /// Hold the ids that a model's tokenizer gives a text against expected ones
    Tokens(tokens::Args),
    /// Let two models, or one on two devices, read a text: KL divergence, same likeliest token, perplexity of each
    Agree(Box<agree::Args>),
    /// Say how each tensor of a model differs from the right one's; over a text, how much divergence goes with it
    Attribute(Box<attribute::Args>),
    /// Say what packing a model costs, beside the floor of f16; suggest a recipe for a budget of bits
    Cost(Box<cost::Args>),
}

/// Two runs.
#[derive(Debug, clap::Args)]
struct Runs {
    /// Dumps of `debug --dump` or of the reference scripts: A, the reference, and B
    #[arg(value_name = "DUMP", num_args = 0..=2)]
    dumps: Vec<PathBuf>,
    /// Run this model on the tokens of the one dump; with --a and --b, run it twice. With two dumps: measure the floors
    #[arg(short, long, value_name = "MODEL", help_heading = "Model")]
    model: Option<String>,
    #[command(flatten)]
    allow: AllowArgs,
    /// How side A runs where there is no dump: device=, dtype=, limits=, kernels=; the rest as the options below say
    #[arg(long, value_name = "KEY=VALUE,…", requires = "model", help_heading = "Sides")]
    a: Option<String>,
    /// How side B runs, likewise
    #[arg(long, value_name = "KEY=VALUE,…", requires = "model", help_heading = "Sides")]
    b: Option<String>,

    /// Give each op of B the values of A: shows which op is wrong, not what inherits its error
    #[arg(long, requires = "model", help_heading = "Comparing")]
    isolated: bool,
    /// Give B the values of A here in place of its own, and judge what follows from them: layer_in@3, k_cache@0-5,
    /// router_weights; again for another. Layers, tokens, heads and elements as in --set
    #[arg(long, value_name = "STAGE@LAYERS[,token=..][,head=..][,dim=..]", requires = "model", value_parser = place, help_heading = "Comparing")]
    inject: Vec<String>,
    /// Compare these stages only (`doppler stages` lists them)
    #[arg(long, value_name = "STAGE,STAGE,…", value_delimiter = ',', help_heading = "Comparing")]
    stages: Vec<String>,
    /// Compare these layers only, and what is outside layers
    #[arg(long, value_name = "N,N-N,…", value_parser = args::parse_layers, help_heading = "Comparing")]
    layers: Option<args::Layers>,
    /// Where rounding floors come from: measured with the CPU oracle (needs -m; slow for large models), or the dumps,
    /// which bring them or let them be estimated [default: measured with -m]
    #[arg(long, value_name = "FROM", value_parser = ["measured", "dumps"], help_heading = "Comparing")]
    floor: Option<String>,
    /// Show every value, not only those that differ
    #[arg(long, help_heading = "Comparing")]
    all: bool,
    /// Write the report as JSON; `-` is stdout, in place of the text
    #[arg(long, value_name = "FILE", help_heading = "Comparing")]
    json: Option<String>,
    /// Write the report as an HTML page: layers by stages, and what each token is off
    #[arg(long, value_name = "FILE", help_heading = "Comparing")]
    html: Option<PathBuf>,

    /// Text that two runs read, as it stands; without it and --token-ids a fixed one
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    prompt: Option<String>,
    /// Ids that two runs read, raw
    #[arg(long, value_name = "ID,ID,…", value_parser = prompt::parse_ids, conflicts_with_all = ["prompt", "chat", "system", "messages", "tools", "template_kwargs"], help_heading = "Prompt")]
    token_ids: Option<prompt::Ids>,
    /// Tokens that two runs read behind the prompt: A chooses the most likely, B reads the same. A dump says itself
    #[arg(long, value_name = "N", help_heading = "Prompt")]
    max_tokens: Option<usize>,
    /// Run the dump's prompt only, not what was generated behind it
    #[arg(long, help_heading = "Prompt")]
    prompt_only: bool,

    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    how: SideArgs,
}

/// An injection as it stands, if it can be read.
fn place(text: &str) -> Result<String, String> {
    interventions::injected_stage(text).map(|_| text.to_string()).map_err(|e| e.message)
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    match &args.command {
        None => runs(&args.runs),
        Some(Command::Replay(args)) => replay::run(args),
        Some(Command::Tokens(args)) => tokens::run(args),
        Some(Command::Agree(args)) => agree::run(args),
        Some(Command::Attribute(args)) => attribute::run(args),
        Some(Command::Cost(args)) => cost::run(args),
    }
}

fn runs(args: &Runs) -> Result<Ended, Stop> {
    if let Some(ended) = args.how.show()? {
        return Ok(ended);
    }
    output::check(&[("--json", args.json.as_deref().map(Path::new)), ("--html", args.html.as_deref())])?;
    fits(args)?;
    let choice = choice(args)?;
    let mut model = args.model.as_deref().map(|spec| args.allow.open(spec)).transpose()?;
    for note in model.iter().flat_map(|model| model.notes(None, &[])) {
        crate::terminal::tell(&format!("note: {note}"));
    }
    let dumps = args.dumps.iter().map(|path| Dump::open(path)).collect::<Result<Vec<Dump>>>()?;
    let (report, non_finite) = match (&dumps[..], &mut model) {
        ([a, b], model) => (two_dumps(args, a, b, model.as_ref(), &choice)?, Vec::new()),
        ([a], Some(model)) => with_run(args, a, a.name(), model, &choice)?,
        (_, Some(model)) => two_runs(args, model, &choice)?,
        _ => return Err(Error::invalid("compare", "give two dumps, or a dump and -m MODEL, or -m MODEL with --a and --b").into()),
    };
    tell(args, &report, &non_finite)?;
    Ok(if report.finding() || !non_finite.is_empty() { Ended::Finding } else { Ended::Fine })
}

/// Options that say nothing about what is compared are refused.
fn fits(args: &Runs) -> Result<()> {
    let (dumps, live) = (args.dumps.len(), args.model.is_some());
    let runs = if dumps == 0 { 2 } else { usize::from(dumps == 1 && live) };
    let refuse = |option: &str, why: &str| Err(Error::invalid(option, why));
    match (dumps, live) {
        (_, true) if args.isolated && !args.inject.is_empty() => {
            return refuse("--inject", "with --isolated every op is given the values of A");
        }
        (2, _) if args.isolated => {
            return refuse("--isolated", "this runs the ops of a model on the values of one dump, but two dumps are given");
        }
        (1, false) => return refuse("compare", "one dump is given: add a second one, or -m MODEL to run its tokens"),
        (0, true) if args.a.is_none() && args.b.is_none() => {
            return refuse(
                "compare",
                "-m MODEL alone is one run: add a dump, or say with --a and --b how two runs differ, as in --a device=gpu --b device=cpu",
            );
        }
        _ => {}
    }
    let for_two_runs = [
        ("--a", args.a.is_some() && dumps > 0),
        ("--b", args.b.is_some() && dumps > 1),
        ("--prompt", args.prompt.is_some() && runs < 2),
        ("--token-ids", args.token_ids.is_some() && runs < 2),
        ("--chat", args.chat.wanted() && runs < 2),
        ("--max-tokens", args.max_tokens.is_some() && runs < 2),
        ("--prompt-only", args.prompt_only && runs != 1),
        ("--set", !args.set.set.is_empty() && runs == 0),
        ("--inject", !args.inject.is_empty() && runs == 0),
    ];
    if let Some((option, _)) = for_two_runs.iter().find(|(_, given)| *given) {
        return refuse(option, "it says how a side runs, but that side is a dump here, which has its own tokens");
    }
    let allowed = [("--allow-unknown-config", args.allow.allow_unknown_config), ("--allow-extra-tensors", args.allow.allow_extra_tensors)];
    if let Some((option, _)) = allowed.iter().find(|(_, given)| *given && !live) {
        return refuse(option, "it is about a model: add -m MODEL");
    }
    if args.floor.as_deref() == Some("measured") && !live {
        return refuse("--floor", "floors are measured with a model: add -m MODEL");
    }
    if args.isolated && args.floor.as_deref() == Some("dumps") {
        return refuse("--floor", "the floor of single ops is always measured");
    }
    Ok(())
}

fn choice(args: &Runs) -> Result<Choice> {
    let stages = args.stages.iter().map(|name| Stage::parse(name.trim())).collect::<Result<Vec<Stage>>>()?;
    let stages = (!stages.is_empty()).then_some(stages);
    Ok(Choice { stages, layers: args.layers.as_ref().map(|layers| layers.0.clone()) })
}

/// Free runs held against each other, with floors from `model` if they are to be measured.
fn free(args: &Runs, [a, b]: [&Dump; 2], names: [String; 2], model: Option<&Model>, choice: &Choice) -> Result<Report> {
    let plan = model.map(|model| &model.plan);
    let aligned = align(a, b, names, plan, choice)?;
    floored(args.floor.as_deref(), [a, b], aligned, model, choice, None)
}

/// As [`free`] where B is a run, and `unwatched` the same run with nothing asked of it, where that is judged.
fn run_free(
    floor: Option<&str>,
    [a, b]: [&Dump; 2],
    names: [String; 2],
    model: &Model,
    choice: &Choice,
    injection: Option<&Injection>,
    unwatched: Option<&Option<Unobserved>>,
) -> Result<Report> {
    let mut aligned = align_run(a, b, names, &model.plan, choice)?;
    injection.map_or(Ok(()), |injection| injection.narrow(&mut aligned))?;
    floored(floor, [a, b], aligned, Some(model), choice, unwatched)
}

fn floored(
    floor: Option<&str>,
    [a, b]: [&Dump; 2],
    mut aligned: Align,
    model: Option<&Model>,
    choice: &Choice,
    unwatched: Option<&Option<Unobserved>>,
) -> Result<Report> {
    let plan = model.map(|model| &model.plan);
    let Some(model) = model.filter(|_| floor != Some("dumps")) else {
        let report = shown("comparing", |progress| cumulative(a, b, &aligned, Floors::Brought, plan, progress))?;
        let Some((run, plan)) = unwatched.zip(plan) else { return Ok(report) };
        return judge_unobserved(report, run.as_ref(), a, &aligned, Floors::Brought, None, plan);
    };
    let Oracles { exact, rounded } = oracles(model, &[storage_of(a)?, storage_of(b)?])?;
    let measured = shown_parts(|progress| block_on(Measured::new((&exact, &rounded), [a, b], &mut aligned, choice, usize::MAX, progress)))?;
    let report = shown("comparing", |progress| measured.judge([a, b], &aligned, &model.plan, progress))?;
    let Some(run) = unwatched else { return Ok(report) };
    measured.judge_unobserved(report, run.as_ref(), a, &aligned, &model.plan)
}

fn two_dumps(args: &Runs, a: &Dump, b: &Dump, model: Option<&Model>, choice: &Choice) -> Result<Report> {
    free(args, [a, b], [a.name().into(), b.name().into()], model, choice)
}

/// A dump, or a run that was kept as one, and a run of its tokens.
fn with_run(args: &Runs, a: &Dump, name: &str, model: &mut Model, choice: &Choice) -> Result<(Report, Vec<NonFinite>)> {
    let tokens = Tokens::of(a, args.prompt_only)?;
    let inject = (!args.inject.is_empty()).then_some((&args.inject[..], a));
    let side = injected_side(&args.how, args.b.as_deref(), model, &tokens, &args.set, inject)?;
    let names = [name.to_string(), side.name.clone()];
    if args.isolated {
        let storages = [storage_of(a)?, side.engine.storage()];
        let oracles = oracles(model, &storages)?;
        let report = shown("comparing", |progress| block_on(isolated(a, &side.engine, &oracles, names, choice, progress)))?;
        return Ok((report, side.non_finite));
    }
    // Only what there is something to compare with.
    let b = side.run(&tokens, &worth_keeping(a, choice), "running B")?;
    // What nobody watches is judged by its logits.
    let chosen = choice.has(At { stage: Stage::LogitsFinal, layer: None });
    let unwatched = chosen.then(|| side.unobserved(&tokens)).transpose()?;
    let (non_finite, injection) = (side.non_finite, side.injection);
    drop(side.engine);
    let report = run_free(args.floor.as_deref(), [a, &b], names, model, choice, injection.as_ref(), unwatched.as_ref())?;
    Ok((report, non_finite))
}

fn two_runs(args: &Runs, model: &mut Model, choice: &Choice) -> Result<(Report, Vec<NonFinite>)> {
    let prompt = match (&args.token_ids, &args.prompt) {
        (Some(ids), _) => ids.0.clone(),
        (None, prompt) => args.chat.prompt(&model.needed_words("give --token-ids")?, prompt.as_deref(), crate::debug::PROMPT)?,
    };
    let steps = args.max_tokens.unwrap_or(0);
    if steps > model.plan.max_positions.saturating_sub(prompt.len()) {
        let message = format!(
            "{steps} tokens after the prompt's {} are more than the {} positions that the model allows",
            prompt.len(),
            model.plan.max_positions
        );
        return Err(Error::invalid("--max-tokens", message));
    }
    let tokens = Tokens { prompt, forced: Vec::new(), steps };
    let side = edited_side(&args.how, args.a.as_deref(), model, &tokens, &args.set)?;
    // Ops on their own need every input of theirs.
    let mut kept = if args.isolated { Choice::default() } else { choice.clone() };
    if !args.inject.is_empty() {
        let inject = args.inject.iter().map(|text| interventions::injected_stage(text)).collect::<Result<Vec<Stage>>>()?;
        kept.stages.iter_mut().for_each(|stages| stages.extend(&inject));
        kept.layers = None;
    }
    let (a, name) = (side.run(&tokens, &kept, "running A")?, side.name.clone());
    drop(side);
    with_run(args, &a, &name, model, choice)
}

/// Text on stdout, or JSON there; files.
fn tell(args: &Runs, report: &Report, non_finite: &[NonFinite]) -> Result<(), Stop> {
    let mut report = report.clone();
    report.note_weights(non_finite);
    if let Some(path) = &args.json {
        let json = serde_json::to_value(&report).map_err(|e| Error::io("--json", e))?;
        output::document(path, &json)?;
    }
    let to_stdout = args.json.as_deref() == Some("-");
    let mut out: Box<dyn Write> = if to_stdout { Box::new(std::io::sink()) } else { Box::new(crate::terminal::stdout()) };
    show(args.html.as_deref(), args.all, &report, &mut out)
}

/// The report as text and as a page.
fn show(page: Option<&Path>, all: bool, report: &Report, out: &mut dyn Write) -> Result<(), Stop> {
    if let Some(path) = page {
        output::file(path, &html(report, &output::facts()))?;
    }
    out.write_all(doppler::debug::compare::text(report, all).as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    pub(in crate::compare) fn parsed(line: &[&str]) -> Runs {
        Line::try_parse_from(std::iter::once(&"compare").chain(line)).unwrap_or_else(|e| panic!("{e}")).args.runs
    }

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(args::parse_layers("0, 3-5").unwrap().0, [0, 3, 4, 5]);
        for bad in ["", "x", "5-3", "-1", "1-", "0-99999999999"] {
            assert!(args::parse_layers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_that_say_nothing_are_refused() {
        let refused = |line: &[&str], expected: &str| {
            let message = fits(&parsed(line)).unwrap_err().message;
            assert!(message.contains(expected), "{message}");
        };
        refused(&["a"], "add a second one");
        refused(&["-m", "demo"], "--a and --b");
        refused(&["a", "b", "-m", "demo", "--isolated"], "two dumps");
        refused(&["a", "-m", "demo", "--a", "dtype=f16"], "--a: ");
        refused(&["a", "b", "--max-tokens", "3"], "--max-tokens: ");
        refused(&["a", "b", "--floor", "measured"], "-m MODEL");
        refused(&["a", "b", "--allow-extra-tensors"], "-m MODEL");
        refused(&["a", "-m", "demo", "--isolated", "--floor", "dumps"], "always measured");
        fits(&parsed(&["a", "b", "-m", "demo"])).unwrap();
        fits(&parsed(&["a", "-m", "demo", "--b", "dtype=f16", "--isolated"])).unwrap();
        fits(&parsed(&["-m", "demo", "--a", "device=gpu", "--b", "device=cpu", "--max-tokens", "3"])).unwrap();
    }
}
