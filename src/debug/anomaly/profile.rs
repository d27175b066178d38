//! A profile: what a healthy run of a model looked like. Ranges of size per value, apart for the prompt and for decode
//! steps (whose single token lacks the prompt's extremes), and the findings that are normal for this model. As JSON.

use crate::debug::record::Finding;
use crate::debug::summary::Summary;
use crate::error::{Error, Result};
use crate::plan::stage::STAGE_TABLE_VERSION;
use crate::plan::{At, Stage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Findings that no run makes normal.
pub const NEVER: [&str; 4] = ["non_finite", "pad_wins", "padded_row_wins", "repeated_tokens"];

/// Ranges of one value, from smallest to largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Range {
    /// Of the largest magnitude.
    pub max_abs: (f32, f32),
    /// Of the root mean square.
    pub rms: (f32, f32),
}

impl Range {
    /// The range of one value, if it has a size.
    pub(super) fn of(stats: &Summary) -> Option<Self> {
        let sound = stats.nan + stats.inf == 0 && stats.max_abs > 0.0 && stats.rms > 0.0;
        sound.then_some(Self { max_abs: (stats.max_abs, stats.max_abs), rms: (stats.rms, stats.rms) })
    }
    /// From the smaller of the smallest to the larger of the largest.
    pub(super) fn union(self, other: Self) -> Self {
        let wide = |x: (f32, f32), y: (f32, f32)| (x.0.min(y.0), x.1.max(y.1));
        Self { max_abs: wide(self.max_abs, other.max_abs), rms: wide(self.rms, other.rms) }
    }
}

/// A finding that is normal for the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Accepted {
    /// The rule.
    pub kind: String,
    /// Where it shows first.
    pub stage: Option<String>,
    /// Its layer.
    pub layer: Option<usize>,
    /// The dimension, for `dim_spike`.
    pub dim: Option<usize>,
}

/// What a healthy run looked like.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// (prompt, decode) per value.
    ranges: BTreeMap<At, (Option<Range>, Option<Range>)>,
    /// Findings that are normal.
    pub accepted: Vec<Accepted>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    doppler_profile: u32,
    stage_table: u32,
    model: String,
    ranges: Vec<Line>,
    accepted: Vec<Accepted>,
}

/// One value of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    stage: String,
    layer: Option<usize>,
    prompt: Option<Range>,
    decode: Option<Range>,
}

/// Version of the file.
const VERSION: u32 = 1;

impl Profile {
    /// The range of `at` in a prompt (`decode_step` 0) or in decode steps, if the profile has it. A part of a prompt
    /// that is not its beginning may be like either.
    pub fn range(&self, at: At, decode_step: usize, first_token: usize) -> Option<Range> {
        let (prompt, decode) = self.ranges.get(&at)?;
        match (decode_step, first_token) {
            (0, 0) => *prompt,
            (0, _) => both(*prompt, *decode),
            _ => *decode,
        }
    }
    /// Takes in a step's values. What is not finite or all zero is left out.
    pub(super) fn widen(&mut self, decode_step: usize, values: &[(At, Summary)]) {
        for (at, stats) in values {
            let Some(point) = Range::of(stats) else { continue };
            let (prompt, decode) = self.ranges.entry(*at).or_default();
            let range = if decode_step == 0 { prompt } else { decode };
            *range = Some(range.map_or(point, |range| range.union(point)));
        }
    }
    /// Takes in another run of the same model.
    pub fn join(&mut self, other: &Profile) {
        for (at, (prompt, decode)) in &other.ranges {
            let known = self.ranges.entry(*at).or_default();
            *known = (both(known.0, *prompt), both(known.1, *decode));
        }
        let new: Vec<Accepted> = other.accepted.iter().filter(|a| !self.accepted.contains(a)).cloned().collect();
        self.accepted.extend(new);
    }
    /// Declares findings normal, but for those that never are.
    pub(super) fn accept(&mut self, findings: &[Finding]) {
        for finding in findings.iter().filter(|f| !NEVER.contains(&f.kind)) {
            let accepted = accepted(finding);
            if !self.accepted.contains(&accepted) {
                self.accepted.push(accepted);
            }
        }
    }
    /// Whether a finding is normal for the model.
    pub(super) fn accepts(&self, finding: &Finding) -> bool {
        self.accepted.contains(&accepted(finding))
    }
    /// As JSON text, of `model`.
    pub fn to_json(&self, model: &str) -> String {
        let line = |(at, (prompt, decode)): (&At, &(Option<Range>, Option<Range>))| Line {
            stage: at.stage.name().into(),
            layer: at.layer,
            prompt: *prompt,
            decode: *decode,
        };
        let ranges = self.ranges.iter().map(line).collect();
        let accepted = self.accepted.clone();
        let file = File { doppler_profile: VERSION, stage_table: STAGE_TABLE_VERSION, model: model.into(), ranges, accepted };
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }
    /// From JSON text; the model's name with it. `name` is the file's, for messages.
    ///
    /// # Errors
    /// `Kind::Format` for text that is not a profile, of another version or of another stage table; for invalid ranges.
    pub fn from_json(text: &str, name: &str) -> Result<(Self, String)> {
        let bad = |message: String| Error::format(name, message);
        let file: File = serde_json::from_str(text).map_err(|e| bad(format!("no profile: {e}")))?;
        if (file.doppler_profile, file.stage_table) != (VERSION, STAGE_TABLE_VERSION) {
            return Err(bad(format!("a profile of another version of doppler: record it again (--record-profile {name})")));
        }
        let mut ranges = BTreeMap::new();
        for Line { stage, layer, prompt, decode } in file.ranges {
            let at = At { stage: Stage::parse(&stage).map_err(|e| e.within(name))?, layer };
            let sound = |(low, high): (f32, f32)| low > 0.0 && low <= high && high.is_finite();
            if [prompt, decode].iter().flatten().any(|r| !sound(r.max_abs) || !sound(r.rms)) {
                return Err(bad(format!("{at}: a range should go from a number above 0 to one that is not smaller")));
            }
            ranges.insert(at, (prompt, decode));
        }
        Ok((Self { ranges, accepted: file.accepted }, file.model))
    }
}

fn both(a: Option<Range>, b: Option<Range>) -> Option<Range> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.union(b)),
        (a, b) => a.or(b),
    }
}

fn accepted(finding: &Finding) -> Accepted {
    let dim = finding.dim.filter(|_| finding.kind == "dim_spike");
    Accepted { kind: finding.kind.into(), stage: finding.stage.map(str::to_string), layer: finding.layer, dim }
}
