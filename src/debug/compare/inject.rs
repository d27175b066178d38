//! Injection: values of A in the place of those that B computes, so that what follows is judged on inputs that are right. One
//! fault then hides no other, and experts are compared although both sides would have chosen other ones.

use super::Align;
use crate::debug::dump::Dump;
use crate::debug::interventions::{Injected, injected};
use crate::error::{Error, Result};
use crate::plan::edit::apply;
use crate::plan::{At, Op, Plan};

/// What is injected into B.
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    /// In words: `layer_out@2`.
    texts: Vec<String>,
    /// Values that follow from injected ones, or are injected in part.
    follow: Vec<At>,
}

impl Injection {
    /// `plan` with the values of `a` at the places that `texts` name, and what that leaves to be judged.
    ///
    /// # Errors
    /// `Kind::Invalid` for texts that name nothing, and where nothing follows; `Kind::Plan` for values that the plan lacks;
    /// `Kind::Format` for those that `a` lacks.
    pub fn new(plan: &Plan, texts: &[String], a: &Dump) -> Result<(Plan, Self)> {
        let mut all = Vec::new();
        for text in texts {
            all.extend(injected(plan, text, a).map_err(|e| e.within(format!("inject `{text}`")))?);
        }
        let edits: Vec<_> = all.iter().map(|one| one.edit.clone()).collect();
        let edited = apply(plan, &edits).map_err(|e| e.within("inject"))?;
        let follow = follow(plan, &all);
        if follow.is_empty() {
            return Err(Error::invalid("inject", "no value follows from what is injected: nothing is left to be judged"));
        }
        Ok((edited, Self { texts: texts.to_vec(), follow }))
    }
    /// Leaves in `aligned` what follows from injected values, and says so.
    ///
    /// # Errors
    /// `Kind::Invalid` where A has nothing of it.
    pub fn narrow(&self, aligned: &mut Align) -> Result<()> {
        let before = aligned.both.len();
        aligned.both.retain(|at| self.follow.contains(at));
        if aligned.both.is_empty() {
            let text =
                format!("of the values that follow from {} nothing is compared: choose other stages or layers", self.texts.join(" and "));
            return Err(Error::invalid("inject", text));
        }
        let left = before - aligned.both.len();
        if left > 0 {
            aligned.notes.push(format!("{left} values are injected or do not follow from what is: they are not judged"));
        }
        aligned.injected.clone_from(&self.texts);
        Ok(())
    }
}

/// Values that are computed from injected ones, in any number of steps, and those that are injected in part only.
fn follow(plan: &Plan, injected: &[Injected]) -> Vec<At> {
    // Of each value: whether it is A's own, and whether anything of A is in it.
    let mut known: Vec<(bool, bool)> = Vec::with_capacity(plan.nodes.len());
    for node in &plan.nodes {
        let inputs: Vec<(bool, bool)> = node.inputs.iter().filter_map(|input| known.get(input.0).copied()).collect();
        let here: Vec<bool> = injected.iter().filter(|one| one.at == node.at).map(|one| one.is_whole).collect();
        let same = node.op == Op::Same && inputs.iter().any(|(own, _)| *own);
        let own = same || here.contains(&true);
        known.push((own, !here.is_empty() || inputs.iter().any(|(own, touched)| *own || *touched)));
    }
    let follows = plan.nodes.iter().zip(known).filter(|(_, (own, touched))| *touched && !own);
    follows.map(|(node, _)| node.at).collect()
}
