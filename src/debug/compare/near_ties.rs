//! Experts that are chosen otherwise because rounding alone turns two logits of a router around: what follows such a choice is another
//! computation and no error, so it is left out of the verdict, which says so.

use super::{NotJudged, Report};
use crate::debug::dump::Dump;
use crate::error::Result;
use crate::plan::{At, Op, Plan, Stage};
use crate::tensor::Tensor;

/// Looks after a first divergence in what a router chooses. Where each token that departs there chose between logits that are nearer to each
/// other than rounding may bring them, values of the first such token and of later ones are not judged from there on.
///
/// # Errors
/// Those of reading the dumps.
pub(super) fn near_ties(mut report: Report, [a, b]: [&Dump; 2], plan: Option<&Plan>) -> Result<Report> {
    let Some(at) = report.first_divergence.as_ref().map(|first| first.at) else { return Ok(report) };
    let line = |report: &Report, stage| report.stages.iter().find(|line| line.at == At { stage, ..at } && line.part.is_none()).cloned();
    let weights = At { stage: Stage::RouterWeights, ..at };
    if !matches!(at.stage, Stage::RouterWeights | Stage::ChosenExperts) || !ordered_by_logits(plan, weights) {
        return Ok(report);
    }
    let (Some(departed), Some(logits)) = (line(&report, at.stage), line(&report, Stage::RouterLogits)) else { return Ok(report) };
    let of = |side: &Dump, at| side.value(at);
    let (Some(scores), Some(chosen_a), Some(chosen_b)) = (of(a, logits.at)?, of(a, weights)?, of(b, weights)?) else { return Ok(report) };
    let size = scores.data.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    // What is allowed of a row of logits.
    let allowed = report.allowed * logits.floor * size / (logits.rows.max(1) as f64).sqrt();
    let mut found: Option<NotJudged> = None;
    let beyond = |times: &f32| *times > report.allowed as f32 || times.is_nan();
    for token in (0..departed.tokens.len()).filter(|token| beyond(&departed.tokens[*token])) {
        let Some((experts, apart)) = turned(&scores, [&chosen_a, &chosen_b], token).filter(|(_, apart)| *apart <= allowed) else {
            return Ok(report);
        };
        found.get_or_insert(NotJudged::NearTie { at, token, experts, apart, allowed });
    }
    report.not_judged.extend(found);
    report.leave_out_ties();
    Ok(report)
}

/// Whether the experts with the highest logits are chosen: no bias and no groups come between.
fn ordered_by_logits(plan: Option<&Plan>, at: At) -> bool {
    let node = plan.and_then(|plan| plan.find(at).map(|id| plan.node(id)));
    node.is_none_or(|node| matches!(&node.op, Op::RouterWeights { router, .. } if !router.choice_bias && router.groups.is_none()))
}

/// An expert that A alone chose for `token` and one that B alone chose, and how far their logits are apart, of all such the most;
/// `None` where both chose the same.
fn turned(logits: &Tensor, chosen: [&Tensor; 2], token: usize) -> Option<([usize; 2], f64)> {
    if token >= logits.rows() || chosen.iter().any(|side| token >= side.rows() || side.width() != logits.width()) {
        return None;
    }
    let [a, b] = chosen.map(|side| side.row(token));
    let logits = logits.row(token);
    let only = |own: &[f32], other: &[f32]| (0..logits.len()).filter(|e| own[*e] != 0.0 && other[*e] == 0.0).collect::<Vec<usize>>();
    let (of_a, of_b) = (only(a, b), only(b, a));
    let highest = of_a.into_iter().max_by(|x, y| logits[*x].total_cmp(&logits[*y]))?;
    let lowest = of_b.into_iter().min_by(|x, y| logits[*x].total_cmp(&logits[*y]))?;
    Some(([highest, lowest], (f64::from(logits[highest]) - f64::from(logits[lowest])).abs()))
}

impl Report {
    /// Takes what follows near ties out of the verdict: lines of later values that are off at no earlier token.
    pub(super) fn leave_out_ties(&mut self) {
        let tie = |left: &NotJudged| if let NotJudged::NearTie { at, token, .. } = left { Some((*at, *token)) } else { None };
        let ties: Vec<(At, usize)> = self.not_judged.iter().filter_map(tie).collect();
        if ties.is_empty() {
            return;
        }
        for (at, token) in ties {
            let begin = self.stages.iter().position(|line| line.at == at && line.part.is_none()).unwrap_or(0);
            let allowed = self.allowed as f32;
            // Whether the highest logit is chosen is no matter of what they are.
            for line in self.stages.iter_mut().skip(begin).filter(|line| line.at.stage != Stage::Sampled) {
                let earlier = line.tokens.iter().take(token).any(|times| *times > allowed || times.is_nan());
                line.diverged &= earlier;
            }
        }
        self.first_divergence = self.stages.iter().find(|line| line.diverged).map(super::StageLine::divergence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_furthest_pair_of_experts_decides() {
        let tensor = |rows: usize, data: &[f32]| Tensor::new(vec![rows, data.len() / rows], data.to_vec()).unwrap();
        let logits = tensor(2, &[3.0, 1.0, 1.25, 0.0, 1.0, 2.0, 3.0, 4.0]);
        let a = tensor(2, &[0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5]);
        let b = tensor(2, &[0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
        assert_eq!(turned(&logits, [&a, &b], 0), Some(([2, 1], 0.25)));
        assert_eq!(turned(&logits, [&a, &b], 1), None, "the same experts");
        assert_eq!(turned(&logits, [&a, &b], 2), None, "no such token");
    }
}
