//! `doppler run`: continues a prompt, or talks. Generated text goes to stdout as it comes, everything else to stderr.

mod commands;
mod reader;
mod talk;

use crate::args::{ConfigArgs, MachineArgs, ModelArgs, SamplingArgs, SetArgs, TextArgs};
use crate::chat::ChatArgs;
use crate::device;
use crate::end::{Ended, Stop};
use crate::model::Model;
use crate::settings::Settings;
use crate::terminal::{self, tell};
use crate::{chat, interrupt, load, model, prompt};
use doppler::config::runtime::Sampling;
use doppler::debug::lines::Line;
use doppler::debug::watching::Stopwatch;
use doppler::exec::Executor;
use doppler::inference::session::{Event, GenerateOptions, Session, SessionOptions, StopReason};
use doppler::inference::words::{Chat, Words, session_options};
use doppler::open::CONVERSATION;
use doppler::{Error, Result};
use pollster::block_on;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    text: TextArgs,
    /// Talk: each line of stdin is a message, the conversation goes on (PROMPT is the first message); end with Ctrl-D.
    /// Lines that begin with a slash are commands: /help lists them. At a terminal earlier lines are kept for the arrow keys,
    /// in ~/.local/state/doppler/history ($DOPPLER_HISTORY=off: not)
    #[arg(short, long, help_heading = "Prompt")]
    interactive: bool,
    /// Tokens to generate at most, per answer
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Prompt")]
    max_tokens: usize,
    /// Say on stderr where it runs, and after each answer how fast
    #[arg(long, help_heading = "Prompt")]
    stats: bool,

    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let settings = Settings::resolve(&args.config, &args.sampling, &args.machine)?.with(&args.set);
    if let Some(ended) = settings.show(&args.config)? {
        return Ok(ended);
    }
    let inference = settings.unseen();
    let mut model = args.model.open()?;
    args.sampling.replace(&mut model.resolved.generation);
    if !model.resolved.ignored_keys.is_empty() {
        tell(&format!("not understood and not used: {}", model.resolved.ignored_keys.join(", ")));
    }
    let text = model.needed_words("use a model folder that has one, or give ids: `doppler debug --token-ids`")?;
    let first = first_message(args)?;
    if let Some(prompt) = &first {
        prompt::check_bytes(&model, &text, prompt, inference.kvcache.max_tokens)?;
    }
    if text.template().is_none() && args.interactive {
        return Err(Error::template("this model has no chat template, which -i needs").into());
    }
    let chat = if args.chat.wanted() || args.interactive { Some(args.chat.read(first.as_deref())?) } else { None };
    let ids = match (&chat, &first) {
        // Talk waits for the first message, unless there is something to answer.
        (Some(chat), None) if args.interactive && !asks(chat) => None,
        (Some(chat), _) => Some(chat::ids(&text, chat)?),
        (None, prompt) => Some(text.raw(prompt.as_deref().unwrap_or_default())?),
    };
    let wanted = if args.interactive { args.max_tokens.max(CONVERSATION) } else { args.max_tokens };
    let probe = ids.clone().unwrap_or_else(|| vec![0]);
    let capacity = prompt::fit(&mut model, &probe, wanted, inference.kvcache.max_tokens)?;
    model::set(&mut model, &settings.debug().set, ids.as_ref().map(Vec::len))?;
    model.plan.edited().iter().for_each(|text| tell(&format!("edited: {text}")));

    let device = device::open(&args.machine, inference)?;
    if let Some(caps) = device.caps().filter(|caps| caps.software) {
        tell(&format!("{} computes in software: slow", caps.name));
    }
    let prepared = load::prepare(&model, device, inference, capacity)?;
    // Those of its weights come when they are loaded.
    let unread = chat.as_ref().and_then(|chat| text.unread(chat));
    model.notes(Some(&text), &[]).iter().chain(&unread).for_each(|note| tell(&format!("note: {note}")));
    let (engine, _) = prepared.load(false)?;
    let options = session_options(Some(&text), model.plan.vocab_size, capacity, doppler::settings::chunk(inference, capacity));
    let typed = args.interactive && std::io::stdin().is_terminal();
    if args.stats || typed {
        tell(&format!("{} on {}, context of {capacity} tokens", model.name, engine.describe()));
    }
    if typed {
        tell("/help lists commands, Ctrl-D ends");
    }
    // The oracle computes while a step is started, so starting one early would only delay the text.
    let pipelined = engine.is_ahead();
    let (max_tokens, sampling) = (args.max_tokens, inference.sampling.clone());
    let mut speaker = Speaker { model: &model, text: &text, options, max_tokens, sampling, pipelined, stats: args.stats };
    match ids {
        Some(ids) if !args.interactive => speaker.once(&engine, &ids),
        ids => talk::talk(&mut speaker, &engine, chat.unwrap_or_default(), ids.is_some()),
    }
}

/// Whether a conversation ends with what a model answers.
fn asks(chat: &Chat) -> bool {
    chat.messages.last().is_some_and(|last| !matches!(&*last.role, "system" | "developer" | "assistant"))
}

/// The prompt: given, or all of a pipe. A conversation may begin without.
fn first_message(args: &Args) -> Result<Option<String>> {
    // In a conversation, a dash is a message.
    if args.interactive {
        return match args.chat.stdin() {
            Some(option) => Err(Error::invalid(option, "stdin is read for the conversation: give a file")),
            None => Ok(args.text.given().map(str::to_string)),
        };
    }
    match prompt::read(&args.text, &args.chat)? {
        None if args.chat.messages.is_some() => Ok(None),
        None if std::io::stdin().is_terminal() => {
            Err(Error::invalid("PROMPT", "expected a text to continue, or -i to talk: doppler run \"The color of the sky is\""))
        }
        None => prompt::from_stdin().map(Some),
        given => Ok(given),
    }
}

/// What all answers share.
struct Speaker<'a> {
    model: &'a Model,
    text: &'a Words,
    options: SessionOptions,
    max_tokens: usize,
    sampling: Sampling,
    pipelined: bool,
    stats: bool,
}

impl Speaker<'_> {
    fn once<E: Executor>(&self, executor: &E, ids: &[u32]) -> Result<Ended, Stop> {
        let mut session = Session::new(executor, self.options)?;
        session.set_prompt(ids)?;
        let (_, ended) = self.answer(&mut session)?;
        Ok(ended)
    }

    /// Generates after the session's sequence, each piece of text as it comes.
    fn answer<E: Executor>(&self, session: &mut Session<'_, E>) -> Result<(String, Ended), Stop> {
        let tokenizer = &self.text.tokenizer;
        let mut stream = tokenizer.stream(session.ids(), true)?;
        let mut answer = String::new();
        let mut failed: Option<Stop> = None;
        let _guard = interrupt::guard();
        let sampling = doppler::settings::sampling(&self.sampling);
        let rules = &self.model.rules(&sampling);
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            sampling,
            stop_ids: tokenizer.eos(),
            hash_logits: false,
            rules: Some(rules),
            pipelined: self.pipelined,
        };
        let start = Instant::now();
        let mut watch = Stopwatch::start(|| start.elapsed().as_secs_f64() * 1e3);
        let on_event = &mut |event| {
            watch.hear(event);
            if let Event::Token(id) = event {
                let piece = stream.push(tokenizer, id).map_err(Stop::from).and_then(|piece| show(&mut answer, &piece));
                failed = piece.err();
            }
            if failed.is_some() || interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generated = block_on(session.generate(&[], &options, None, on_event));
        if let Some(failed) = failed {
            return Err(failed);
        }
        let rest = stream.finish(tokenizer)?;
        show(&mut answer, &rest)?;
        terminal::generated("\n")?;
        let generated = generated?;
        if self.stats {
            tell(&Line::done(&generated, watch.times()).to_string());
        }
        for note in &generated.notes {
            tell(note);
        }
        let ended = match generated.stop {
            StopReason::Interrupted => Ended::Interrupted,
            StopReason::Eos => Ended::Fine,
            StopReason::MaxTokens => {
                tell(&format!("(stopped after {} tokens: --max-tokens)", self.max_tokens));
                Ended::Fine
            }
            StopReason::Capacity => {
                tell("(stopped: the context is full)");
                Ended::Fine
            }
        };
        Ok((answer, ended))
    }
}

/// Shows a piece of text at once.
fn show(answer: &mut String, piece: &str) -> Result<(), Stop> {
    if !piece.is_empty() {
        answer.push_str(piece);
        terminal::generated(piece)?;
    }
    Ok(())
}
