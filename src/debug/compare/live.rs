//! Runs whose values are kept as a dump in memory: of given ids, and of given or chosen tokens behind them.

use crate::debug::dump::{Dump, DumpObserver};
use crate::error::{Error, Result};
use crate::exec::{Executor, Observer, Pick, Read, Request, Step, StepInfo, StepOutput, Storage, Tokens, rows_of_logits};
use crate::formats::InMemory;
use crate::inference::decode::{Decoding, Next, Reading};
use crate::tensor::DType;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The prompt.
    pub prompt: &'a [u32],
    /// Tokens behind it, to be read as they are. Where they end, the most likely token follows.
    pub forced: &'a [u32],
    /// Tokens to read behind the prompt.
    pub steps: usize,
    /// Tokens of the prompt to read in one step.
    pub chunk: usize,
}

/// The task that repeats a dump: its prompt, and its generated tokens as far as it has values of them.
///
/// # Errors
/// `Kind::Format` for dumps whose ids are none.
pub fn of_dump(dump: &Dump) -> Result<(Vec<u32>, Vec<u32>, usize)> {
    let (prompt, generated) = (dump.input_ids()?, dump.generated_ids()?.unwrap_or_default());
    let rows = dump.held().into_iter().filter(|at| at.stage.layout().is_rows());
    let rows = rows.filter_map(|at| dump.parts(at).first()).map(|part| part.tokens).max().unwrap_or(prompt.len());
    let steps = rows.saturating_sub(prompt.len()).min(generated.len());
    Ok((prompt, generated, steps))
}

/// Runs `task` on `executor` and keeps what `observer` wants, as a dump called `name`. `progress` is told how many of how
/// many tokens are read.
///
/// # Errors
/// `Kind::Invalid` for an empty prompt and ids that the model lacks; what the executor says.
pub async fn record<E: Executor>(
    executor: &E,
    task: Task<'_>,
    observer: DumpObserver,
    name: &str,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Dump> {
    Ok(record_logits(executor, task, observer, name, progress).await?.0)
}

/// As `record`, with the final logits of the prompt's end and of every decode step, by position.
pub(super) async fn record_logits<E: Executor>(
    executor: &E,
    task: Task<'_>,
    mut observer: DumpObserver,
    name: &str,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Dump, Vec<(usize, Vec<f32>)>)> {
    let mut rows = Vec::new();
    let mut take = |token: usize, output: &mut StepOutput| rows.extend(output.logits.take().map(|row| (token, row)));
    record_with(executor, task, &mut observer, &mut take, progress).await?;
    let mut bytes = Vec::new();
    let about = [("model", name), ("dtype", dtype(executor.storage())), ("device", &*executor.describe())];
    observer.write(&mut bytes, &about).map_err(|e| Error::io(name, e))?;
    drop(observer);
    Ok((Dump::read(InMemory::new(name, bytes))?, rows))
}

/// Is shown each step that has logits: the position of its last token, and what it gave.
type Take<'t> = dyn FnMut(usize, &mut StepOutput) + 't;

/// Runs `task` with nothing asked of any step, so that a step picks as users' steps do; a token that the step before picked
/// is taken where it is. The cache that is left, the tokens in it, and whether the other factors of longrope were used.
pub(super) async fn unobserved<E: Executor>(
    executor: &E,
    task: Task<'_>,
    take: &mut Take<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(E::Cache, Vec<u32>, bool)> {
    struct Nothing;
    impl Observer for Nothing {
        fn requests(&self, _: usize) -> Vec<Request> {
            Vec::new()
        }
        fn observe(&mut self, _: StepInfo<'_>, _: Vec<crate::exec::Observed>) -> Result<()> {
            Ok(())
        }
    }
    record_with(executor, task, &mut Nothing, take, progress).await
}

async fn record_with<E: Executor>(
    executor: &E,
    task: Task<'_>,
    observer: &mut impl Observer,
    take: &mut Take<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(E::Cache, Vec<u32>, bool)> {
    let plan = executor.plan();
    let (prompt, total) = (task.prompt.len(), task.prompt.len() + task.steps);
    if prompt == 0 {
        return Err(Error::invalid("prompt", "expected at least one token, found none"));
    }
    let chunk = task.chunk.clamp(1, prompt);
    let mut cache = executor.new_cache(total, chunk)?;
    // A dump's generated ids go one beyond what was read: what the last logits led to.
    let mut decoding = Decoding::new(plan, prompt, 0, chunk, task.steps + 1);
    let mut ids = task.prompt.to_vec();
    let mut picked = None;
    loop {
        let reading = match decoding.next() {
            Next::End => break,
            Next::StartOver => {
                (cache, picked) = (executor.new_cache(total, chunk)?, None);
                decoding.start_over();
                continue;
            }
            Next::Step(reading) => reading,
        };
        let Reading { first, count, decode_step, chooses, again } = reading;
        let end = first + count;
        // Where no logit is a number, the values up to here are what there is to compare.
        let Some(tokens) = ids.get(first..end) else { break };
        let requests = if again { Vec::new() } else { observer.requests(decode_step) };
        let in_place = requests.is_empty() && decode_step > 0 && picked.is_some_and(|id| tokens == [id]);
        let step = Step {
            tokens: if in_place { Tokens::Picked } else { Tokens::Ids(tokens) },
            rows: rows_of_logits(plan, &requests, chooses),
            pick: chooses.then_some(Pick { valid: plan.vocab_size }),
            read: if chooses { Read::Logits } else { Read::Nothing },
            long_rope: decoding.long_rope(),
            requests: &requests,
        };
        let mut output = executor.step(&mut cache, &step).await?;
        decoding.started(&reading);
        if again {
            continue;
        }
        picked = output.token;
        if chooses {
            take(end - 1, &mut output);
        }
        let chosen = if chooses { task.forced.get(end - prompt).copied().or(output.token) } else { None };
        let info = StepInfo { decode_step, first_token: first, tokens, chosen, notes: &output.notes };
        observer.observe(info, std::mem::take(&mut output.values))?;
        progress(end, total);
        ids.extend(chosen);
    }
    ids.truncate(decoding.read());
    Ok((cache, ids, decoding.long_rope()))
}

/// The name of a storage, as dumps carry it.
fn dtype(storage: Storage) -> &'static str {
    if storage.activations == DType::F16 || storage.cache == DType::F16 { "f16" } else { "f32" }
}
