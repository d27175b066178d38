//! Which steps read and extend one sequence: the prompt in chunks, then a token at a time, and everything again where
//! longrope's factors change. It holds no executor, cache or token: sessions, comparisons and benchmarks drive it, and
//! decide what runs at the same time.

use crate::plan::Plan;

/// A step of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Position of its first token.
    pub first: usize,
    /// Its tokens.
    pub count: usize,
    /// As in `StepInfo`: 0 for the prompt, n for the step that reads the n-th generated token.
    pub decode_step: usize,
    /// A token is chosen after it.
    pub chooses: bool,
    /// It reads again what was read and observed before.
    pub again: bool,
}

/// What a sequence needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This step, then `started`.
    Step(Reading),
    /// The sequence crosses the length at which longrope's factors change: once all that was started is finished, an empty
    /// cache, then `start_over`.
    StartOver,
    /// Nothing.
    End,
}

/// The state of one sequence: what was started, and which token choices.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// Longrope's limit.
    limit: Option<usize>,
    max_positions: usize,
    /// Tokens before anything is generated.
    prompt: usize,
    /// Tokens of a step that reads known tokens.
    chunk: usize,
    /// Tokens to choose at most.
    choices: usize,
    /// Positions read by what was started.
    read: usize,
    /// Positions that are to be read in chunks before decoding begins or goes on.
    read_to: usize,
    /// Steps started after which a token is chosen.
    chosen: usize,
    long_rope: bool,
}

impl Decoding {
    /// A sequence of `prompt` tokens, of which `cached` are read already, and up to `choices` more.
    pub fn new(plan: &Plan, prompt: usize, cached: usize, chunk: usize, choices: usize) -> Self {
        Self {
            limit: plan.longrope_limit(),
            max_positions: plan.max_positions,
            prompt,
            chunk: chunk.max(1),
            choices,
            read: cached,
            read_to: prompt,
            chosen: 0,
            long_rope: plan.is_long(prompt),
        }
    }
    /// Whether steps use longrope's long list now.
    pub fn long_rope(&self) -> bool {
        self.long_rope
    }
    /// Positions that are in the cache when all that was started is finished.
    pub fn read(&self) -> usize {
        self.read
    }
    /// Positions that the cache must have room for before the next step.
    pub fn room(&self, step: &Reading) -> usize {
        (step.first + step.count).max(self.read_to)
    }
    /// What comes next. Asking changes nothing.
    pub fn next(&self) -> Next {
        let first = self.read;
        if first < self.read_to {
            let (count, again) = (self.chunk.min(self.read_to - first), self.chosen > 0);
            let chooses = !again && first + count == self.prompt && self.choices > 0;
            return Next::Step(Reading { first, count, decode_step: 0, chooses, again });
        }
        if self.chosen == 0 || self.chosen >= self.choices || first >= self.max_positions {
            return Next::End;
        }
        if !self.long_rope && self.limit.is_some_and(|limit| first + 1 > limit) {
            return Next::StartOver;
        }
        Next::Step(Reading { first, count: 1, decode_step: first + 1 - self.prompt, chooses: true, again: false })
    }
    /// `step`, which `next` gave, was started.
    pub fn started(&mut self, step: &Reading) {
        self.read = step.first + step.count;
        self.chosen += usize::from(step.chooses);
    }
    /// The cache was emptied: everything before the newest token is read again, unseen, with the long list; then decoding
    /// goes on where it was.
    pub fn start_over(&mut self) {
        (self.read_to, self.read, self.long_rope) = (self.read, 0, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RopeConfig, RopeScaling};
    use crate::plan::builder::Builder;

    fn plan(max_positions: usize, longrope: Option<usize>) -> Plan {
        let scaling = longrope.map_or(RopeScaling::None, |original_max_positions| RopeScaling::LongRope {
            short_factor: vec![1.0],
            long_factor: vec![2.0],
            original_max_positions,
            attention_factor: 1.0,
        });
        let ropes = vec![RopeConfig { scaling, ..RopeConfig::plain(1e4, 2) }];
        Builder::new(ropes, 0, 9, max_positions).finish().unwrap()
    }

    /// Every step as `first+count`, with `d` and the number in decode, `!` where a token is chosen, `again`; `over` where
    /// the cache is emptied, `long` before the first step with the long list.
    fn steps(mut decoding: Decoding) -> String {
        let (mut found, mut long) = (Vec::new(), false);
        loop {
            match decoding.next() {
                Next::End => return found.join(" "),
                Next::StartOver => {
                    found.push("over".to_string());
                    decoding.start_over();
                }
                Next::Step(step) => {
                    if decoding.long_rope() && !long {
                        found.push("long".into());
                        long = true;
                    }
                    let decode = if step.decode_step > 0 { format!("d{}", step.decode_step) } else { String::new() };
                    let (chooses, again) = (if step.chooses { "!" } else { "" }, if step.again { "again" } else { "" });
                    found.push(format!("{}+{}{decode}{chooses}{again}", step.first, step.count));
                    assert!(decoding.room(&step) >= step.first + step.count);
                    decoding.started(&step);
                }
            }
        }
    }

    #[test]
    fn prompts_in_chunks_then_a_token_at_a_time() {
        let plan = plan(8, None);
        assert_eq!(steps(Decoding::new(&plan, 5, 0, 2, 3)), "0+2 2+2 4+1! 5+1d1! 6+1d2!");
        assert_eq!(steps(Decoding::new(&plan, 5, 4, 2, 1)), "4+1!");
        assert_eq!(steps(Decoding::new(&plan, 5, 0, 9, 0)), "0+5");
        // The last position that the model has may be read, not written beyond.
        assert_eq!(steps(Decoding::new(&plan, 6, 0, 6, 99)), "0+6! 6+1d1! 7+1d2!");
    }

    #[test]
    fn crossing_longropes_limit_reads_everything_again() {
        let plan = plan(20, Some(6));
        assert_eq!(steps(Decoding::new(&plan, 5, 0, 4, 4)), "0+4 4+1! 5+1d1! over long 0+4again 4+2again 6+1d2! 7+1d3!");
        // A prompt beyond the limit is long from its first chunk.
        assert_eq!(steps(Decoding::new(&plan, 7, 0, 4, 2)), "long 0+4 4+3! 7+1d1!");
    }
}
