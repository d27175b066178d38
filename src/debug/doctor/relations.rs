//! Relations that a right executor keeps, whatever the model is: the same tokens read in another way give the same numbers.
//! They need no reference. What must be equal to the bit is compared with itself; all else is held against the oracle, within
//! the measured rounding floor. What a broken relation means is said in `device.rs`.

mod lengths;
mod ways;

pub use lengths::{Length, lengths};

use crate::cpu::CpuExecutor;
use crate::debug::compare::{Rowed, judge_rows, run::further_of};
use crate::debug::floor::Oracles;
use crate::error::{Error, Result};
use crate::exec::{Content, Editable, Executor, Read, Request, Rows, Step, Tokens, Want};
use crate::plan::Stage;
use std::fmt;
use ways::{Script, poison, same_bits, together};

/// A way to read a sequence, or what is repeated of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The prompt in one step, then tokens one at a time: what users run.
    Whole,
    /// Token by token from the first.
    Single,
    /// The prompt in uneven chunks.
    Chunks,
    /// Likewise, in a cache that is made larger on the way.
    Grown,
    /// Some tokens are read, taken back, and read again.
    CutBack,
    /// As `Whole`, with every op by itself.
    Watched,
    /// The first run, which found memory as it was made, and the same run after it.
    Rerun,
    /// Two runs after equal ones.
    Repeated,
    /// A run after another one that left NaN in every value.
    Poisoned,
    /// Steps together with those of another sequence, and alone.
    Together,
    /// What a sequence goes on with alone, after steps together with another one.
    Afterwards,
}

impl Relation {
    /// What it says, in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Whole => "the prompt in one step and decode, against the oracle",
            Self::Single => "token by token, against the oracle",
            Self::Chunks => "the prompt in uneven chunks, against the oracle",
            Self::Grown => "in a cache that grows on the way, against the oracle",
            Self::CutBack => "after tokens were taken back, against the oracle",
            Self::Watched => "with every op by itself, against the oracle",
            Self::Rerun => "the first run and the same run after it, bit by bit",
            Self::Repeated => "two equal runs, bit by bit",
            Self::Poisoned => "the same run after one that left NaN in every value, bit by bit",
            Self::Together => "together with another sequence and alone, bit by bit",
            Self::Afterwards => "alone after steps together, bit by bit",
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A relation that does not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Broken {
    /// Which.
    pub relation: Relation,
    /// Tokens of the sequence.
    pub length: usize,
    /// The first position whose logits are wrong.
    pub position: usize,
    /// How far they are off, in rounding floors; infinite for numbers that are not finite. `None` where bits are compared.
    pub times: Option<f64>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: of {} tokens, the logits after position {}", self.relation, self.length, self.position)?;
        match self.times {
            Some(times) => write!(f, " are {} rounding floors off (3 are allowed)", crate::debug::compare::number_of_floors(times)),
            None => write!(f, " differ"),
        }
    }
}

/// What was examined.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Relations {
    /// Relations that hold, with the tokens of the sequence.
    pub kept: Vec<(Relation, usize)>,
    /// Those that do not.
    pub broken: Vec<Broken>,
    /// What was not examined, a sentence each.
    pub left_out: Vec<String>,
}

impl Relations {
    /// Whether `relation` was examined and holds at every length.
    pub fn holds(&self, relation: Relation) -> bool {
        self.kept.iter().any(|(kept, _)| *kept == relation) && !self.breaks(relation)
    }
    /// Whether `relation` is broken.
    pub fn breaks(&self, relation: Relation) -> bool {
        self.broken.iter().any(|broken| broken.relation == relation)
    }
}

/// Examines `device` on sequences that begin with `ids`, at the lengths of `lengths`, the shortest first; longer ones only while
/// nothing is wrong. `progress` is told how many of how many ways are done.
///
/// # Errors
/// What the executors report.
pub async fn examine<E: Executor + Editable>(
    device: &mut E,
    oracles: &Oracles,
    ids: &[u32],
    lengths: &[Length],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Relations> {
    let mut found = Relations::default();
    let (mut done, all) = (0, lengths.len() * Script::ALL.len());
    for length in lengths {
        if !found.broken.is_empty() {
            found
                .left_out
                .push(format!("relations at {} tokens ({}): a shorter sequence shows a fault already", length.tokens, length.why));
            continue;
        }
        let ids = sequence(ids, length.tokens, device.plan().vocab_size);
        let right = Right::new(oracles, device, &ids).await?;
        for script in Script::ALL {
            done += 1;
            progress(done, all);
            let Some(rows) = script.run(device, &ids).await? else {
                found.left_out.push(format!("{} at {} tokens: this cache gives nothing back so far", script.relation, ids.len()));
                continue;
            };
            found.judged(script.relation, ids.len(), right.judge(&rows, device)?);
        }
        bits(device, &ids, &mut found).await?;
    }
    Ok(found)
}

/// The relations that hold to the bit.
async fn bits<E: Executor + Editable>(device: &mut E, ids: &[u32], found: &mut Relations) -> Result<()> {
    let whole = Script::ALL[0];
    let mut cache = whole.cache(device, ids.len())?;
    let first = whole.steps(device, &mut cache, ids).await?;
    let mut again = Vec::new();
    for _ in 0..3 {
        if !device.truncate(&mut cache, 0) {
            return Err(Error::device("a cache cannot be emptied"));
        }
        again.push(whole.steps(device, &mut cache, ids).await?);
    }
    let repeated = again[1..].iter().find_map(|rows| same_bits(&again[0], rows));
    found.same(Relation::Repeated, ids.len(), repeated);
    found.same(Relation::Rerun, ids.len(), same_bits(&first, &again[0]));
    poison(device, &mut cache, ids).await?;
    let poisoned = whole.steps(device, &mut cache, ids).await?;
    found.same(Relation::Poisoned, ids.len(), same_bits(&again[0], &poisoned));
    drop(cache);
    let [beside, afterwards] = together(device, ids).await?;
    found.same(Relation::Together, ids.len(), beside);
    found.same(Relation::Afterwards, ids.len(), afterwards);
    Ok(())
}

impl Relations {
    fn judged(&mut self, relation: Relation, length: usize, off: Option<(usize, f64)>) {
        match off {
            None => self.kept.push((relation, length)),
            Some((position, times)) => self.broken.push(Broken { relation, length, position, times: Some(times) }),
        }
    }
    fn same(&mut self, relation: Relation, length: usize, differs: Option<usize>) {
        match differs {
            None => self.kept.push((relation, length)),
            Some(position) => self.broken.push(Broken { relation, length, position, times: None }),
        }
    }
}

/// `ids`, then others until there are `count`.
pub fn sequence(ids: &[u32], count: usize, vocab: usize) -> Vec<u32> {
    let more = (ids.len()..count).map(|i| ((i * 37 + 11) % vocab.max(1)) as u32);
    ids.iter().copied().take(count).chain(more).collect()
}

/// The oracles' logits of every position.
struct Right {
    exact: Rowed,
    rounded: Rowed,
}

impl Right {
    async fn new<E: Executor>(oracles: &Oracles, device: &E, ids: &[u32]) -> Result<Self> {
        let [first, second] = oracles.both(device.storage());
        let exact = rows_of(&oracles.exact, ids).await?;
        let rounded = further_of(&exact, &rows_of(first, ids).await?, &rows_of(second, ids).await?);
        Ok(Self { exact, rounded })
    }
    /// The first position whose logits are beyond the floor, and how far.
    fn judge<E: Executor>(&self, found: &Rowed, device: &E) -> Result<Option<(usize, f64)>> {
        let right = |position: usize| self.exact.get(position).is_some_and(|(_, row)| row.iter().all(|x| x.is_finite()));
        if let Some((position, _)) = found.iter().find(|(position, row)| right(*position) && !row.iter().all(|x| x.is_finite())) {
            return Ok(Some((*position, f64::INFINITY)));
        }
        let line = judge_rows(found, [&self.exact, &self.rounded], device.plan())?;
        let beyond = |times: &f32| f64::from(*times) > crate::debug::floor::ALLOWED;
        let first = line.tokens.iter().position(beyond).or(line.token).unwrap_or(0);
        Ok(line.diverged.then_some((first, line.times_floor)))
    }
}

/// The logits of every position, read in one step.
async fn rows_of<T: crate::cpu::Real>(oracle: &CpuExecutor<T>, ids: &[u32]) -> Result<Rowed> {
    let mut cache = oracle.new_cache(ids.len(), ids.len())?;
    let requests = [Request { stage: Stage::LogitsFinal, layers: None, want: Want::Full }];
    let long_rope = oracle.plan().is_long(ids.len());
    let step = Step { tokens: Tokens::Ids(ids), rows: Rows::All, pick: None, read: Read::Nothing, long_rope, requests: &requests };
    let output = oracle.step(&mut cache, &step).await?;
    Ok(output.values.into_iter().flat_map(|value| rows(value.first_token, value.content)).collect())
}

/// The rows of a value of the head by position.
fn rows(first: usize, content: Content) -> Rowed {
    let Content::Full(tensor) = content else { return Vec::new() };
    (0..tensor.rows()).map(|row| (first + row, tensor.row(row).to_vec())).collect()
}
