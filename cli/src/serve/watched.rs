//! A run that is seen: one job alone, by a session, with the observers of `debug`. Others wait while it runs. Its records go
//! to the client with its tokens.

use super::batch::{Client, Event, Job, Token};
use super::worker::Hosted;
use crate::device::Engine;
use doppler::config::runtime::Debug;
use doppler::debug::interventions;
use doppler::debug::lines::Line;
use doppler::debug::observers::wanting;
use doppler::debug::record::{Record, Sink};
use doppler::debug::watching::{Keep, Scene, Watching, token_text};
use doppler::exec::{Editable, Executor};
use doppler::inference::session::{self, GenerateOptions, Session};
use doppler::inference::words::session_options;
use doppler::{Error, Result};
use pollster::block_on;
use std::cell::Cell;
use std::ops::ControlFlow;

/// Bytes of records that one run may give.
const MOST: usize = 32 << 20;

/// A job and what to see of it.
pub struct Watched {
    pub job: Job,
    pub debug: Debug,
    pub client: Client,
}

/// Changes the values that its `set` names, for the steps to come. What would read a file of this machine is refused.
///
/// # Errors
/// What the texts lack; what the device reports. `restored` is needed in any case.
pub fn changed(engine: &mut Engine, watched: &Watched) -> Result<()> {
    let texts = &watched.debug.set;
    if texts.is_empty() {
        return Ok(());
    }
    let open =
        |file: &str| Err(Error::invalid("doppler", format!("`set` names the file {file}: requests may not; `doppler debug --set` may")));
    let plan = block_on(interventions::set(&engine.plan().unedited(), texts, Some(watched.job.prompt.len()), &open))?;
    engine.set_interventions(&plan.interventions())
}

/// Takes back what `changed` did.
///
/// # Errors
/// What the device reports: values are changed still.
pub fn restored(engine: &mut Engine, watched: &Watched) -> Result<()> {
    if watched.debug.set.is_empty() { Ok(()) } else { engine.set_interventions(&[]) }
}

/// Runs it to its end.
///
/// # Errors
/// `Kind::Invalid` for what the model does not have, and for more records than are given; what the session reports.
pub fn run(engine: &Engine, hosted: &Hosted, watched: &Watched) -> Result<()> {
    let Watched { job, debug, client } = watched;
    let capacity = job.prompt.len().saturating_add(job.max_tokens).min(hosted.room.capacity);
    let options = session_options(Some(&hosted.words), engine.plan().vocab_size, capacity, hosted.room.chunk.min(capacity));
    let scene = Scene {
        plan: engine.plan(),
        model: &hosted.id,
        prompt_end: job.prompt.len(),
        session: options,
        eos: &job.stop_ids,
        text: Some(token_text(&hosted.words)),
    };
    let bytes = Cell::new(0);
    let sink = Sink::new(|record: Record| {
        let record = serde_json::to_value(&record).map_err(|e| Error::invalid("record", e))?;
        bytes.set(bytes.get() + record.to_string().len());
        if bytes.get() > MOST {
            return Err(Error::invalid(
                "doppler",
                format!("the records of this run exceed {MOST} bytes: ask for fewer layers, categories or tokens"),
            ));
        }
        client.send(Event::Record(record));
        Ok(())
    });
    let mut watching = Watching::new(debug, Keep::default(), scene, sink)?;
    let mut session = Session::new(engine, options)?;
    let generate = GenerateOptions {
        max_tokens: job.max_tokens,
        sampling: job.sampling.clone(),
        stop_ids: &job.stop_ids,
        hash_logits: true,
        rules: Some(&job.rules),
        pipelined: engine.is_ahead(),
    };
    let mut on_event = |_: session::Event| {
        if client.is_gone() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let generated = block_on(session.generate(&job.prompt, &generate, wanting(&mut watching.observers()), &mut on_event))?;
    block_on(watching.after(engine))?;
    // What had to be computed otherwise because it was watched.
    for note in &generated.notes {
        let line = serde_json::to_value(Line::note(note)).map_err(|e| Error::invalid("record", e))?;
        client.send(Event::Record(line));
    }
    // The hash of a session is that of all of it.
    for id in generated.ids {
        client.send(Event::Token(Token { id, likelihood: None, hash: generated.logits_hash }));
    }
    client.send(Event::End(generated.stop));
    Ok(())
}
