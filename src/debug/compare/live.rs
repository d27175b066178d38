//! Runs whose values are kept as a dump in memory: of given ids, and of given or chosen tokens after them.

use crate::debug::dump::{Dump, DumpObserver};
use crate::error::{Error, Result};
use crate::exec::{Executor, Observer, Pick, Read, Step, StepInfo, Storage, Tokens, rows_of_logits};
use crate::formats::InMemory;
use crate::inference::decode::{Decoding, Next, Reading};
use crate::tensor::DType;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The prompt.
    pub prompt: &'a [u32],
    /// Tokens after it, to be read as they are. Where they end, the most likely token follows.
    pub forced: &'a [u32],
    /// Tokens to read after the prompt.
    pub steps: usize,
    /// Tokens of the prompt to read in one step.
    pub chunk: usize,
}

/// The task that repeats a dump: its prompt, and its generated tokens as far as it has values of them.
///
/// # Errors
/// `Kind::Format` if the dump's ids are not valid token ids.
pub fn of_dump(dump: &Dump) -> Result<(Vec<u32>, Vec<u32>, usize)> {
    let (prompt, generated) = (dump.input_ids()?, dump.generated_ids()?.unwrap_or_default());
    let rows = dump.held().into_iter().filter(|at| at.stage.info().layout == crate::plan::Layout::Rows);
    let rows = rows.filter_map(|at| dump.parts(at).first()).map(|part| part.tokens).max().unwrap_or(prompt.len());
    let steps = rows.saturating_sub(prompt.len()).min(generated.len());
    Ok((prompt, generated, steps))
}

/// Runs `task` on `executor` and keeps what `observer` wants, as a dump called `name`. `progress` receives how many of how
/// many tokens are read.
///
/// # Errors
/// `Kind::Invalid` for an empty prompt and ids that the model lacks; what the executor says.
pub async fn record<E: Executor>(
    executor: &E,
    task: Task<'_>,
    mut observer: DumpObserver,
    name: &str,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Dump> {
    let plan = executor.plan();
    let (prompt, total) = (task.prompt.len(), task.prompt.len() + task.steps);
    if prompt == 0 {
        return Err(Error::invalid("prompt", "expected at least one token, found none"));
    }
    let pick = Pick { valid: plan.vocab_size, masked: None };
    let chunk = task.chunk.clamp(1, prompt);
    let mut cache = executor.new_cache(total, chunk)?;
    let requests = observer.requests(0);
    let mut ids = task.prompt.to_vec();
    // A dump's generated ids go one beyond what was read: what the last logits led to.
    let mut decoding = Decoding::new(plan, prompt, 0, chunk, task.steps + 1);
    loop {
        let reading = match decoding.next() {
            Next::End => break,
            Next::StartOver => {
                cache = executor.new_cache(total, chunk)?;
                decoding.start_over();
                continue;
            }
            Next::Step(reading) => reading,
        };
        let Reading { first, count, decode_step, chooses, again } = reading;
        let requests = if again { &[][..] } else { &requests[..] };
        let Some(tokens) = ids.get(first..first + count) else { break };
        let step = Step {
            tokens: Tokens::Ids(tokens),
            rows: rows_of_logits(plan, requests, chooses),
            pick: chooses.then_some(pick),
            read: Read::Nothing,
            long_rope: decoding.long_rope(),
            requests,
        };
        let mut output = executor.step(&mut cache, &step).await?;
        decoding.started(&reading);
        if again {
            continue;
        }
        let chosen = if chooses { task.forced.get(first + count - prompt).copied().or(output.token) } else { None };
        let info = StepInfo { decode_step, first_token: first, tokens, chosen, notes: &output.notes };
        observer.observe(info, std::mem::take(&mut output.values))?;
        progress(first + count, total);
        // Where every logit is NaN or infinite no token follows, and the values up to here are what there is to compare.
        ids.extend(chosen);
    }
    let mut bytes = Vec::new();
    let about = [("model", name), ("dtype", dtype(executor.storage())), ("device", &*executor.describe())];
    observer.write(&mut bytes, &about).map_err(|e| Error::io(name, e))?;
    drop(observer);
    Dump::read(InMemory::new(name, bytes))
}

/// The name of a storage, as dumps carry it.
fn dtype(storage: Storage) -> &'static str {
    if storage.activations == DType::F16 || storage.cache == DType::F16 { "f16" } else { "f32" }
}
