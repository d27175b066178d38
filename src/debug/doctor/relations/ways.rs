//! The ways in which a sequence is read, and what is compared to the bit.

use super::{Relation, rows};
use crate::debug::compare::Rowed;
use crate::error::{Error, Result};
use crate::exec::{DECODE_TOKENS, Editable, Entry, Executor, Read, Request, Rows, Step, Tokens, Want};
use crate::plan::intervention::{Change, Given, Intervention};
use crate::plan::{Op, Stage, ValueId};
use crate::tensor::Tensor;
use std::sync::Arc;

/// Tokens of the chunks that are uneven; the largest fits the smallest ring.
const CHUNKS: [usize; 6] = [5, 8, 1, 7, 2, 6];
const LARGEST: usize = 8;
/// Tokens that are read one at a time after a prompt.
const DECODE: usize = 4;

/// A way to read a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    pub relation: Relation,
}

impl Script {
    pub const ALL: [Script; 6] = [
        Script { relation: Relation::Whole },
        Script { relation: Relation::Single },
        Script { relation: Relation::Chunks },
        Script { relation: Relation::Grown },
        Script { relation: Relation::CutBack },
        Script { relation: Relation::Watched },
    ];

    /// Tokens of each step.
    fn sizes(self, count: usize) -> Vec<usize> {
        let prompt = count.saturating_sub(DECODE).max(1);
        match self.relation {
            Relation::Single => vec![1; count],
            Relation::Chunks | Relation::Grown | Relation::CutBack => uneven(count),
            _ => std::iter::once(prompt).chain(std::iter::repeat_n(1, count - prompt)).collect(),
        }
    }
    /// An empty cache for `count` tokens.
    pub fn cache<E: Executor>(self, device: &E, count: usize) -> Result<E::Cache> {
        match self.relation {
            Relation::Single => device.new_cache(count, 1),
            Relation::Chunks | Relation::CutBack => device.new_cache(count, LARGEST.min(count)),
            Relation::Grown => device.new_cache(LARGEST.min(count), LARGEST.min(count)),
            _ => device.new_cache(count, count),
        }
    }
    /// Reads `ids`; the logits after each step. `None` where the way is closed to this cache.
    pub async fn run<E: Executor>(self, device: &E, ids: &[u32]) -> Result<Option<Rowed>> {
        let mut cache = self.cache(device, ids.len())?;
        if self.relation == Relation::CutBack {
            // Two thirds with other tokens at the end, of which some are taken back.
            // No more than a ring can give back.
            let (keep, more) = (ids.len() / 2, (ids.len() / 6 + 1).min(12));
            let vocab = device.plan().vocab_size as u32;
            let long_rope = device.plan().is_long(ids.len());
            for (first, size) in steps(&uneven(keep)) {
                one(device, &mut cache, &ids[first..first + size], long_rope, &[]).await?;
            }
            let wrong: Vec<u32> = ids[keep..keep + more].iter().map(|id| (id + 1) % vocab).collect();
            for id in &wrong {
                one(device, &mut cache, &[*id], long_rope, &[]).await?;
            }
            if !device.truncate(&mut cache, keep) {
                return Ok(None);
            }
            return self.from(device, &mut cache, ids, keep).await.map(Some);
        }
        self.steps(device, &mut cache, ids).await.map(Some)
    }
    /// Reads `ids` into an empty cache; the logits after each step.
    pub async fn steps<E: Executor>(self, device: &E, cache: &mut E::Cache, ids: &[u32]) -> Result<Rowed> {
        self.from(device, cache, ids, 0).await
    }
    async fn from<E: Executor>(self, device: &E, cache: &mut E::Cache, ids: &[u32], begin: usize) -> Result<Rowed> {
        let plan = device.plan();
        let long_rope = plan.is_long(ids.len());
        let watch: Vec<Request> = if self.relation == Relation::Watched {
            let want = |stage| if stage == Stage::LogitsFinal { Want::Full } else { Want::Stats };
            plan.stages().into_iter().map(|stage| Request { stage, layers: None, want: want(stage) }).collect()
        } else {
            Vec::new()
        };
        let mut found = Vec::new();
        for (first, size) in steps(&self.sizes(ids.len() - begin)) {
            let first = begin + first;
            if self.relation == Relation::Grown && device.capacity(cache) < first + size {
                device.grow(cache, first + size)?;
            }
            found.extend(one(device, cache, &ids[first..first + size], long_rope, &watch).await?);
        }
        Ok(found)
    }
}

/// Sizes of uneven chunks of `count` tokens.
fn uneven(count: usize) -> Vec<usize> {
    let (mut sizes, mut left) = (Vec::new(), count);
    for size in CHUNKS.into_iter().cycle() {
        if left == 0 {
            break;
        }
        sizes.push(size.min(left));
        left -= size.min(left);
    }
    sizes
}

/// First token and tokens of each step.
fn steps(sizes: &[usize]) -> Vec<(usize, usize)> {
    let mut first = 0;
    let step = |size: &usize| {
        first += size;
        (first - size, *size)
    };
    sizes.iter().map(step).collect()
}

/// One step; the logits of its last token, or of all that were asked for.
async fn one<E: Executor>(device: &E, cache: &mut E::Cache, ids: &[u32], long_rope: bool, requests: &[Request]) -> Result<Rowed> {
    let last = device.len(cache) + ids.len() - 1;
    let output = device.step(cache, &step(ids, long_rope, requests)).await?;
    let watched = output.values.into_iter().filter(|value| value.at.stage == Stage::LogitsFinal);
    let watched: Rowed = watched.flat_map(|value| rows(value.first_token, value.content)).collect();
    Ok(if watched.is_empty() { output.logits.map(|row| (last, row)).into_iter().collect() } else { watched })
}

fn step<'a>(ids: &'a [u32], long_rope: bool, requests: &'a [Request]) -> Step<'a> {
    let rows = if requests.is_empty() { Rows::Last } else { Rows::All };
    Step { tokens: Tokens::Ids(ids), rows, pick: None, read: Read::Logits, long_rope, requests }
}

/// The first position at which two runs have other bits.
pub(super) fn same_bits(a: &Rowed, b: &Rowed) -> Option<usize> {
    let equal = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    a.iter().zip(b).find(|((_, a), (_, b))| !equal(a, b)).map(|((position, _), _)| *position)
}

/// Reads `ids` with NaN in place of every embedding, in steps of all sizes, and empties the cache again: what nobody writes
/// in the next run is NaN.
pub(super) async fn poison<E: Executor + Editable>(device: &mut E, cache: &mut E::Cache, ids: &[u32]) -> Result<()> {
    let plan = device.plan();
    let before = plan.interventions();
    let Some(embed) = plan.nodes.iter().position(|node| matches!(node.op, Op::Embed { .. })).map(ValueId) else { return Ok(()) };
    let width = plan.node(embed).width;
    let tensor = Arc::new(Tensor::new(vec![width], vec![f32::NAN; width])?);
    let given = Given { name: "NaN".into(), first: 0, tensor };
    let nan = Intervention { tokens: None, heads: None, dims: None, change: Change::Add { given, factor: 1.0 } };
    device.set_interventions(&[(embed, vec![nan])])?;
    let run = async |device: &E, cache: &mut E::Cache| -> Result<()> {
        let whole = Script::ALL[0];
        for _ in 0..2 {
            if !device.truncate(cache, 0) {
                return Err(Error::device("a cache cannot be emptied"));
            }
            whole.steps(device, cache, ids).await?;
        }
        if device.truncate(cache, 0) { Ok(()) } else { Err(Error::device("a cache cannot be emptied")) }
    };
    let ran = run(device, cache).await;
    device.set_interventions(&before)?;
    ran
}

/// A sequence in steps together with those of another one, and alone: the first position that differs; and of what it goes
/// on with alone.
pub(super) async fn together<E: Executor>(device: &E, ids: &[u32]) -> Result<[Option<usize>; 2]> {
    let half = ids.len() / 2;
    let (long_rope, vocab) = (device.plan().is_long(ids.len()), device.plan().vocab_size as u32);
    let other: Vec<u32> = ids.iter().rev().map(|id| (id + 3) % vocab).collect();
    let first = (half / 2).clamp(1, LARGEST);
    let sizes: Vec<usize> = std::iter::once(first).chain(std::iter::repeat_n(1, (half - first).min(2 * DECODE_TOKENS))).collect();
    let read = steps(&sizes);
    let tail = read.last().map_or(0, |(first, size)| first + size);
    let (mut alone, mut a, mut b) =
        (device.new_cache(ids.len(), LARGEST)?, device.new_cache(ids.len(), LARGEST)?, device.new_cache(ids.len(), LARGEST)?);
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for (first, size) in &read {
        expected.extend(one(device, &mut alone, &ids[*first..first + size], long_rope, &[]).await?);
        let mine = step(&ids[*first..first + size], long_rope, &[]);
        let its = step(&other[*first..first + size], long_rope, &[]);
        let mut pending = device.submit_batch(&mut [Entry { cache: &mut a, step: mine }, Entry { cache: &mut b, step: its }])?.into_iter();
        let position = first + size - 1;
        if let Some(pending) = pending.next() {
            found.extend(device.finish(pending).await?.logits.map(|row| (position, row)));
        }
        for pending in pending {
            device.finish(pending).await?;
        }
    }
    let beside = same_bits(&expected, &found);
    let end = (tail + 2).min(ids.len());
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for id in &ids[tail..end] {
        expected.extend(one(device, &mut alone, &[*id], long_rope, &[]).await?);
        found.extend(one(device, &mut a, &[*id], long_rope, &[]).await?);
    }
    Ok([beside, same_bits(&expected, &found)])
}
