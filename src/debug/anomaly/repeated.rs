//! A model that says the same few tokens again and again has lost its input.

use super::{Margins, StepView, untrained};
use crate::debug::record::Finding;

/// Longest cycle that is looked for.
const PERIOD: usize = 8;

/// The cycle that the chosen tokens end with, and how often it came, where that is as often as the options say.
pub(super) fn cycle<'s>(step: &StepView<'s>) -> Option<(&'s [u32], usize)> {
    let (period, times) = repetitions(step)?;
    let ids = &step.history.generated;
    (times >= step.options.repetitions.max(2)).then(|| (&ids[ids.len() - period..], times))
}

fn repetitions(step: &StepView<'_>) -> Option<(usize, usize)> {
    // A raw run goes on past the end of a text, where there is nothing to say but the end again.
    let ids = &step.history.generated;
    let ended = ids.last().is_some_and(|id| step.options.eos.contains(id));
    if ended { None } else { longest(ids) }
}

/// The last tokens, as often as the options say, in a model that is trained.
pub(super) fn check(step: &StepView<'_>, margins: &mut Margins) -> Vec<Finding> {
    margins.repetitions = margins.repetitions.max(repetitions(step).map_or(0, |(_, times)| times));
    let Some((cycle, times)) = cycle(step).filter(|_| !untrained::is_untrained(step)) else { return Vec::new() };
    let words: Vec<String> = cycle.iter().map(u32::to_string).collect();
    let mut finding =
        Finding::new("repeated_tokens", step.decode_step, None, format!("the ids {} came {times} times in a row", words.join(" ")));
    finding.token = Some(step.options.prompt_end + step.history.generated.len() - 1);
    vec![finding]
}

/// The cycle at the end of `ids` that is repeated most often, shortest first: its length and how often it came.
fn longest(ids: &[u32]) -> Option<(usize, usize)> {
    let times = |period: usize| {
        let again = (period..ids.len()).rev().take_while(|i| ids[*i] == ids[*i - period]).count();
        (again + period) / period
    };
    (1..=PERIOD.min(ids.len())).map(|period| (period, times(period))).rev().max_by_key(|(_, times)| *times)
}

#[cfg(test)]
mod tests {
    use super::longest;

    #[test]
    fn cycles() {
        assert_eq!(longest(&[]), None);
        assert_eq!(longest(&[1]), Some((1, 1)));
        assert_eq!(longest(&[1, 2, 3, 3, 3]), Some((1, 3)));
        assert_eq!(longest(&[9, 1, 2, 1, 2, 1, 2]), Some((2, 3)));
        assert_eq!(longest(&[5; 20]), Some((1, 20)));
        assert_eq!(longest(&[2, 1, 2, 3, 1, 2, 3]), Some((3, 2)));
    }
}
