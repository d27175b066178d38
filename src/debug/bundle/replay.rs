//! Repeats a bundle's run: the same ids with the same settings, on whatever executor is given.

use super::Bundle;
use crate::error::Result;
use crate::exec::{Executor, Observer};
use crate::inference::session::{Event, Generated, Session};
use serde::Serialize;
use std::ops::ControlFlow;

/// How a repeated run compares with the one in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replayed {
    /// Ids that were generated now.
    pub ids: Vec<u32>,
    /// Index of the first generated id that differs, or where one list ends before the other; `None` when they are equal.
    pub first_other_id: Option<usize>,
    /// The logits' hash now, 16 hexadecimal digits.
    pub logits: Option<String>,
    /// Whether it is the bundle's; `None` where the bundle has none.
    pub same_logits: Option<bool>,
    /// What had to change on the way, now.
    pub notes: Vec<String>,
    /// Whether the run came to its end.
    pub complete: bool,
}

/// Runs `bundle`'s ids through `executor` as its settings say; `observer` sees the values.
///
/// # Errors
/// `Kind::Format` for ids that cannot be read; what the session reports.
pub async fn replay<E: Executor>(
    executor: &E,
    bundle: &Bundle,
    observer: Option<&mut dyn Observer>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Replayed> {
    let (prompt, expected) = (bundle.input_ids()?, bundle.generated_ids()?);
    let mut session = Session::new(executor, bundle.contents.session())?;
    let generated = session.generate(&prompt, &bundle.contents.generate(), observer, on_event).await?;
    let Generated { ids, stop, logits_hash, notes, .. } = generated;
    let common = ids.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let first_other_id = (common < ids.len().max(expected.len())).then_some(common);
    let same_logits = bundle.contents.hash()?.map(|hash| logits_hash == Some(hash));
    let complete = stop != crate::inference::session::StopReason::Interrupted;
    Ok(Replayed { ids, first_other_id, logits: logits_hash.map(|h| format!("{h:016x}")), same_logits, notes, complete })
}

impl Replayed {
    /// Whether ids and logits, where the bundle has them, are the bundle's.
    pub fn is_same(&self) -> bool {
        self.first_other_id.is_none() && self.same_logits != Some(false)
    }
    /// `REPLAY same ids=32 logits=…`, or `REPLAY other firstOtherId=3 …`. Other bits of logits with the same ids are what
    /// another device gives: no finding.
    pub fn text(&self, expected: Option<&str>) -> String {
        let logits = self.logits.as_deref().unwrap_or("-");
        let first = self.first_other_id.map_or(String::new(), |i| format!(" firstOtherId={i}"));
        let verdict = match (self.first_other_id, self.same_logits) {
            (Some(_), _) => "other ids",
            (None, Some(false)) => "same ids, other logits",
            (None, None) => "same ids",
            (None, Some(true)) => "same",
        };
        let incomplete = if self.complete { "" } else { " incomplete=true" };
        format!(
            "REPLAY verdict=\"{verdict}\" ids={}{first} logits={logits} expected={}{incomplete}",
            self.ids.len(),
            expected.unwrap_or("-")
        )
    }
}
