//! What prompts have in common is read once. A sequence begins, at its first turn, with the chunks that another one has read of
//! the same tokens: it takes the cache of one that ended, or a copy of one that is under way. Whole chunks only, as it would
//! read them alone, so that its bits are those that it has alone. Sequences with the same prompt (`n` answers) wait for the
//! first of them, and take what its last chunk gave, too.

use super::{Batch, Reading, Sequence};
use doppler::exec::{Executor, StepOutput};
use doppler::inference::decode::Decoding;
use doppler::{Error, Result};

/// A sequence that ended.
pub struct Ended<C> {
    /// The tokens of its prompt that it read in whole chunks.
    ids: Vec<u32>,
    long_rope: bool,
    cache: C,
}

/// Tokens at the beginning of both, in whole chunks.
fn common(a: &[u32], b: &[u32], chunk: usize) -> usize {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    same - same % chunk.max(1)
}

impl<E: Executor> Batch<E> {
    /// Makes one more place free for what runs beside the batch, where it is not full.
    pub fn make_place(&mut self) {
        while !self.ended.is_empty() && !self.has_place() {
            self.ended.pop_front();
        }
    }
    fn has_place(&self) -> bool {
        let taken = self.running.iter().filter(|sequence| sequence.cache.is_some()).count();
        taken + self.ended.len() < self.room.count
    }
    /// Gives the sequence at `place` its cache, with what others have read of its prompt.
    pub(super) fn begin_cache(&mut self, executor: &E, place: usize) -> Result<()> {
        let Some(sequence) = self.running.get(place) else { return Ok(()) };
        let (chunk, capacity, prompt) = (sequence.chunk, sequence.capacity, &sequence.job.prompt);
        let long = sequence.decoding.long_rope();
        // The token after which one is chosen is read in any case.
        let wanted = prompt.get(..prompt.len().saturating_sub(1)).unwrap_or_default();
        let shares = self.shares && chunk == self.room.chunk;
        let best = |found: &mut dyn Iterator<Item = (usize, usize)>| found.filter(|(_, count)| *count > 0).max_by_key(|(_, count)| *count);
        let of_ended = best(
            &mut self
                .ended
                .iter()
                .enumerate()
                .filter(|(_, ended)| shares && ended.long_rope == long)
                .map(|(at, ended)| (at, common(&ended.ids, wanted, chunk))),
        );
        let of_running = best(
            &mut self
                .running
                .iter()
                .enumerate()
                .filter(|(_, other)| shares && other.decoding.long_rope() == long)
                .map(|(at, other)| (at, common(other.whole_chunks(), wanted, chunk))),
        );
        let (mut cache, mut cached) = (None, 0);
        if let Some((at, count)) = of_ended.filter(|(_, count)| of_running.is_none_or(|(_, other)| *count >= other)) {
            // A longer one stays for others, if there is a place.
            let longer = self.ended.get(at).filter(|ended| self.has_place() && ended.ids.len() > count);
            cache = match longer {
                Some(ended) => Some(executor.fork(&ended.cache)?),
                None => self.ended.remove(at).map(|ended| ended.cache),
            };
            cached = count;
        } else if let Some((at, count)) = of_running {
            self.make_place();
            let other = self.running.get(at).and_then(|other| other.cache.as_ref());
            (cache, cached) = (other.map(|other| executor.fork(other)).transpose()?, count);
        }
        // A window's keys may have been overwritten since.
        let fit = cache.as_mut().is_some_and(|cache| executor.truncate(cache, cached));
        let cache = match cache.filter(|_| fit) {
            Some(mut cache) => {
                if executor.capacity(&cache) < capacity {
                    executor.grow(&mut cache, capacity)?;
                }
                cache
            }
            None => {
                cached = 0;
                self.make_place();
                executor.new_cache(capacity, chunk)?
            }
        };
        let Some(sequence) = self.running.get_mut(place) else { return Ok(()) };
        sequence.decoding = Decoding::new(executor.plan(), sequence.job.prompt.len(), cached, chunk, sequence.job.max_tokens);
        (sequence.cache, sequence.cached) = (Some(cache), cached);
        Ok(())
    }
    /// Whether another sequence is about to read all of the prompt of that at `place`.
    pub(super) fn waits_for_twin(&self, place: usize) -> bool {
        let Some(sequence) = self.running.get(place).filter(|sequence| sequence.cache.is_none()) else { return false };
        let reads_before = |(at, other): (usize, &Sequence<E>)| {
            let reads = other.generated == 0 && (other.cache.is_some() || at < place);
            at != place && reads && sequence.is_twin(other)
        };
        self.shares && self.running.iter().enumerate().any(reads_before)
    }
    /// The sequence at `place` with what its step gave, and likewise all that have waited for it: each has a copy of its cache
    /// and, as the step is the one that it would compute, the same output.
    pub(super) fn with_twins(
        &mut self,
        executor: &E,
        place: usize,
        reading: &Reading,
        output: Result<StepOutput>,
    ) -> Vec<(usize, Result<StepOutput>)> {
        let mut found = Vec::new();
        if self.shares
            && reading.chooses
            && reading.decode_step == 0
            && let Ok(output) = &output
        {
            let waiting: Vec<usize> = (0..self.running.len()).filter(|at| *at != place && self.is_waiting_twin(*at, place)).collect();
            for at in waiting {
                let copied = self.copy_to(executor, place, at);
                found.push((at, copied.map(|()| output.clone())));
            }
        }
        found.insert(0, (place, output));
        found
    }
    fn is_waiting_twin(&self, at: usize, place: usize) -> bool {
        let (Some(one), Some(other)) = (self.running.get(at), self.running.get(place)) else { return false };
        one.cache.is_none() && one.is_twin(other) && !one.job.client.is_gone()
    }
    fn copy_to(&mut self, executor: &E, from: usize, to: usize) -> Result<()> {
        self.make_place();
        let cache = self.running.get(from).and_then(|sequence| sequence.cache.as_ref());
        let cache = cache.ok_or_else(|| Error::invalid("sequence", "it has no cache to copy"))?;
        let copy = executor.fork(cache)?;
        if let Some(sequence) = self.running.get_mut(to) {
            (sequence.cache, sequence.cached) = (Some(copy), sequence.job.prompt.len());
        }
        Ok(())
    }
    /// Keeps the caches of sequences that ended well, for others that begin alike; the oldest ones go where there is no room.
    pub(super) fn retire(&mut self, places: &[usize]) {
        if !self.shares {
            return;
        }
        for place in places {
            let Some(sequence) = self.running.get_mut(*place).filter(|sequence| sequence.chunk == self.room.chunk) else { continue };
            let (ids, long_rope) = (sequence.whole_chunks().to_vec(), sequence.decoding.long_rope());
            if let Some(cache) = sequence.cache.take().filter(|_| !ids.is_empty()) {
                // One that is a beginning of another is of no more use.
                self.ended.retain(|ended| ended.long_rope != long_rope || !ids.starts_with(&ended.ids));
                self.ended.push_back(Ended { ids, long_rope, cache });
            }
        }
    }
}

impl<E: Executor> Sequence<E> {
    /// The tokens of its prompt that are in its cache in whole chunks.
    fn whole_chunks(&self) -> &[u32] {
        let read = if self.cache.is_some() { self.decoding.read().min(self.job.prompt.len()) } else { 0 };
        self.job.prompt.get(..read - read % self.chunk.max(1)).unwrap_or_default()
    }
    /// Whether both read the same prompt by the same steps.
    fn is_twin(&self, other: &Self) -> bool {
        let steps = |of: &Self| (of.chunk, of.capacity, of.chooser.pick(), of.chooser.read());
        steps(self) == steps(other) && self.job.prompt == other.job.prompt
    }
}
