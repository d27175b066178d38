//! Several observers as one: what they want is asked for once, and each gets what it asked for, in the plan's order.

use crate::error::Result;
use crate::exec::{Content, Observed, Observer, Request, StepInfo, Want};
use crate::plan::{At, Plan, Stage};
use std::collections::BTreeMap;

/// Observers of one run. Each gets its own copy of what it wants, and sees the steps that it wants something of.
pub struct Observers<'a> {
    observers: Vec<&'a mut dyn Observer>,
    /// Layers that have each per-layer stage.
    layers: BTreeMap<Stage, Vec<usize>>,
}

impl<'a> Observers<'a> {
    /// `observers` of a run of `plan`; they see each step in this order.
    pub fn new(plan: &Plan, observers: Vec<&'a mut dyn Observer>) -> Self {
        let mut layers: BTreeMap<Stage, Vec<usize>> = BTreeMap::new();
        for At { stage, layer } in plan.nodes.iter().map(|node| node.at) {
            layers.entry(stage).or_default().extend(layer);
        }
        Self { observers, layers }
    }
    /// Whether it is empty, so that the run needs no observer.
    pub fn is_empty(&self) -> bool {
        self.observers.is_empty()
    }

    /// Adds `request` to `merged`. What the plan lacks stays as it is, for the executor to refuse.
    fn merge(&self, merged: &mut Vec<Request>, request: Request) {
        let having = self.layers.get(&request.stage);
        let sound = |layers: &Option<Vec<usize>>| layers.iter().flatten().all(|l| having.is_some_and(|h| h.contains(l)));
        let same = |known: &&mut Request| known.stage == request.stage && known.want == request.want && sound(&known.layers);
        match merged.iter_mut().find(same) {
            Some(known) if sound(&request.layers) => match (&mut known.layers, request.layers) {
                (Some(known), Some(more)) => {
                    known.extend(more);
                    known.sort_unstable();
                    known.dedup();
                }
                (every, _) => *every = None,
            },
            _ => merged.push(request),
        }
    }
}

impl Observer for Observers<'_> {
    fn requests(&self, decode_step: usize) -> Vec<Request> {
        let mut merged = Vec::new();
        for request in self.observers.iter().flat_map(|o| o.requests(decode_step)) {
            self.merge(&mut merged, request);
        }
        merged
    }
    /// Every observer sees the step, also when one of them reports an error; the first error is returned.
    fn observe(&mut self, step: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
        let wanted: Vec<Vec<Request>> = self.observers.iter().map(|o| o.requests(step.decode_step)).collect();
        let mut by_stage: BTreeMap<Stage, Vec<(usize, &Request)>> = BTreeMap::new();
        for (i, request) in wanted.iter().enumerate().flat_map(|(i, requests)| requests.iter().map(move |r| (i, r))) {
            by_stage.entry(request.stage).or_default().push((i, request));
        }
        let mut shares: Vec<Vec<Observed>> = wanted.iter().map(|_| Vec::new()).collect();
        for value in values {
            let asked = by_stage.get(&value.at.stage).map(Vec::as_slice).unwrap_or_default();
            let mut takers: Vec<usize> = asked.iter().filter(|(_, r)| answers(r, &value, step)).map(|(i, _)| *i).collect();
            // By observer: one that asked twice gets the value once.
            takers.dedup();
            let last = takers.pop();
            for i in takers {
                shares[i].push(value.clone());
            }
            if let Some(i) = last {
                shares[i].push(value);
            }
        }
        let mut outcome = Ok(());
        for ((observer, requests), values) in self.observers.iter_mut().zip(&wanted).zip(shares) {
            if !requests.is_empty() {
                outcome = outcome.and(observer.observe(step, values));
            }
        }
        outcome
    }
}

/// `observer`, if it wants anything: steps of a run that nobody wants anything of run as without observers.
pub fn wanting(observer: &mut dyn Observer) -> Option<&mut dyn Observer> {
    if observer.requests(0).is_empty() && observer.requests(1).is_empty() { None } else { Some(observer) }
}

/// Whether `value` is what `request` asked for.
pub(super) fn answers(request: &Request, value: &Observed, step: StepInfo<'_>) -> bool {
    let At { stage, layer } = value.at;
    let here = request.stage == stage && layer.is_none_or(|l| request.layers.as_ref().is_none_or(|list| list.contains(&l)));
    here && match (&request.want, &value.content) {
        (Want::Full, Content::Full(_))
        | (Want::Stats | Want::StatsIfMade, Content::Stats(_))
        | (Want::HeadStats, Content::HeadStats(_)) => true,
        (Want::Gather { tokens, dims }, Content::Gather(cells)) => {
            let inside = tokens.iter().filter(|t| (step.first_token..step.first_token + step.tokens.len()).contains(t));
            inside.flat_map(|t| dims.iter().map(move |d| (*t, *d))).eq(cells.iter().map(|(t, d, _)| (*t, *d)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::exec::Stats;
    use crate::inference::pipeline;

    struct Wants {
        requests: Vec<Request>,
        seen: Vec<Vec<Observed>>,
        fails: bool,
    }

    impl Wants {
        fn new(requests: &[(Stage, Option<&[usize]>, Want)]) -> Self {
            let request = |(stage, layers, want): &(Stage, Option<&[usize]>, Want)| Request {
                stage: *stage,
                layers: layers.map(<[usize]>::to_vec),
                want: want.clone(),
            };
            Self { requests: requests.iter().map(request).collect(), seen: Vec::new(), fails: false }
        }
    }

    impl Observer for Wants {
        fn requests(&self, _: usize) -> Vec<Request> {
            self.requests.clone()
        }
        fn observe(&mut self, _: StepInfo<'_>, values: Vec<Observed>) -> Result<()> {
            self.seen.push(values);
            if self.fails { Err(Error::finding("enough")) } else { Ok(()) }
        }
    }

    fn gather(tokens: &[usize], dims: &[usize]) -> Want {
        Want::Gather { tokens: tokens.to_vec(), dims: dims.to_vec() }
    }

    #[test]
    fn wanted_once_and_given_to_each() {
        let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        let mut a = Wants::new(&[(Stage::LayerOut, Some(&[0]), Want::Stats), (Stage::LayerOut, Some(&[0]), gather(&[4, 1], &[2]))]);
        let mut b = Wants::new(&[
            (Stage::LayerOut, None, Want::Stats),
            (Stage::LayerOut, Some(&[0]), gather(&[4], &[3])),
            (Stage::EmbedOut, None, Want::Stats),
        ]);
        let (mut nothing, mut wrong) = (Wants::new(&[]), Wants::new(&[(Stage::LayerOut, Some(&[7]), Want::Stats)]));
        a.fails = true;
        let mut all = Observers::new(&plan, vec![&mut a, &mut b, &mut nothing]);
        let merged = all.requests(0);
        assert_eq!(merged.len(), 4);
        assert_eq!((merged[0].layers.clone(), &merged[0].want), (None, &Want::Stats));

        let at = |stage, layer| At { stage, layer };
        let value = |at, content| Observed { at, first_token: 4, content };
        let stats = || Content::Stats(Stats::default());
        let out = at(Stage::LayerOut, Some(0));
        let values = vec![
            value(at(Stage::EmbedOut, None), stats()),
            value(out, stats()),
            value(out, Content::Gather(vec![(4, 2, 0.5)])),
            value(out, Content::Gather(vec![(4, 3, 0.75)])),
            value(at(Stage::LayerOut, Some(1)), stats()),
        ];
        let step = StepInfo { decode_step: 0, first_token: 4, tokens: &[9], chosen: None, notes: &[] };
        assert_eq!(all.observe(step, values.clone()).unwrap_err().message, "enough");
        assert_eq!(a.seen, [vec![values[1].clone(), values[2].clone()]]);
        assert_eq!(b.seen, [vec![values[0].clone(), values[1].clone(), values[3].clone(), values[4].clone()]]);
        assert!(nothing.seen.is_empty());

        // What the plan lacks is left for the executor to refuse.
        let merged = Observers::new(&plan, vec![&mut b, &mut wrong]).requests(0);
        assert!(merged.iter().any(|r| r.layers == Some(vec![7])));
        assert!(crate::exec::match_requests(&plan, &merged).is_err());
    }
}
