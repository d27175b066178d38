//! Where two runs of a model part: every value of one side against that of the other, in units of the rounding floor.
//!
//! A side is a dump: read from a file in blocks, or made by `live::record` of a run. `cumulative` compares what the runs
//! computed; an error then shows in everything behind it too. `isolated` gives each op of an executor the reference's own
//! inputs, so that only the op that is wrong stands out. Both give a `Report`, which is plain data; `text` and `html`
//! show it.

mod align;
mod alone;
mod cumulative;
mod html;
mod inject;
mod isolated;
mod judge;
pub mod live;
mod near_ties;
mod not_judged;
pub mod run;
mod sums;
mod text;
mod unobserved;

use align::lacking_layers;
pub use align::{Align, Choice, align, held_as};
pub use cumulative::{Floors, OracleDumps, blame, cumulative};
pub use html::html;
pub use inject::Injection;
pub use isolated::isolated;
pub use not_judged::NotJudged;
pub use text::{divergence_line, number_of_floors, text};
pub use unobserved::{Rowed, Unobserved, judge_rows, judge_unobserved};

use crate::debug::number::json_numbers;
use crate::plan::{At, Plan, Stage};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

/// What a comparison found. In JSON: `first_divergence` (null if there is none), `stages`, `missing`, `notes` and more;
/// numbers that are not finite are the strings `"NaN"` and `"Inf"`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What A is, in words: the reference.
    pub a: String,
    /// What B is.
    pub b: String,
    /// `cumulative` or `isolated`.
    pub mode: Mode,
    /// Tokens that were compared.
    pub tokens: usize,
    /// How the floors were come by, in words.
    pub floor: String,
    /// A value is right within this many floors.
    pub allowed: f64,
    /// The first value, in the order of computation, that is beyond them.
    pub first_divergence: Option<Divergence>,
    /// Every value that was compared, in the order of computation.
    pub stages: Vec<StageLine>,
    /// Values that one side lacks.
    pub missing: Vec<Missing>,
    /// Values of A that B was given in place of its own, in the words of `--inject`: what follows from them is judged.
    pub injected: Vec<String>,
    /// What the verdict covers, in words, beside the values of the lines without a part.
    pub covers: Vec<String>,
    /// What was left out although nobody asked for that: where there is any, the sides do not agree.
    pub not_judged: Vec<NotJudged>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Free runs: errors are inherited.
    Cumulative,
    /// Each op on the reference's inputs.
    Isolated,
}

/// The place of the first divergence.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// The value.
    pub at: At,
    /// As in `StageLine`.
    pub part: Option<String>,
    /// Absolute position of the token that is furthest off.
    pub token: Option<usize>,
    /// Its head, in values made of heads.
    pub head: Option<usize>,
    /// Its element; for scores and probabilities the position attended to. `None` for sketches.
    pub dim: Option<usize>,
    /// How many floors it is off.
    pub times_floor: f64,
}

/// One compared value.
#[derive(Debug, Clone, PartialEq)]
pub struct StageLine {
    /// The value.
    pub at: At,
    /// `None`: the value of a run that is watched, or of its op alone. Else what a run that nobody watches makes, which
    /// in JSON `run` says too: `unobserved`, its logits and choices; `together`, logits of steps of several sequences; alone, `decode` and `prompt`, an op in steps of
    /// another size; `attention.prompt`, a group of ops in the prompt; `attention.together`, the same as steps of several
    /// sequences compute it; `cache.decode`, what decode leaves in the cache;
    /// `choice`; `since.layer_out.prompt`, all ops from the values that the reference has.
    pub part: Option<String>,
    /// Rows compared: tokens, or heads · tokens.
    pub rows: usize,
    /// ‖a − b‖ / ‖a‖ over all rows.
    pub relative_l2: f64,
    /// Largest |a − b|; 0 for sketches, which do not know.
    pub max_abs: f32,
    /// Cosine of the angle between all of a and all of b; NaN where one is 0.
    pub cosine: f64,
    /// The floor of all rows together, relative to ‖a‖.
    pub floor: f64,
    /// Distance of the worst row, or of the worst dim over all tokens, in floors.
    pub times_floor: f64,
    /// Absolute position of the worst token.
    pub token: Option<usize>,
    /// Its head.
    pub head: Option<usize>,
    /// Its element.
    pub dim: Option<usize>,
    /// What A and B have there, where it was kept.
    pub values: Option<[f32; 2]>,
    /// It is one dim of all tokens that is off, rather than rows.
    pub one_dim: bool,
    /// Beyond what is allowed.
    pub diverged: bool,
    /// The floor is an estimate.
    pub estimated: bool,
    /// Distances are estimated from sketches.
    pub sketch: bool,
    /// Elements that are not finite, and the same on both sides.
    pub odd: usize,
    /// Floors that each token is off, by position. In JSON null for values that do not diverge.
    pub tokens: Vec<f32>,
}

/// A value that one side has and the other has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The stage's name.
    pub stage: &'static str,
    /// Layers in which it is missing; none for stages outside layers.
    pub layers: Vec<usize>,
    /// `A` or `B`: the side that lacks it.
    pub side: &'static str,
}

impl Report {
    /// Whether there is anything to find: a divergence, a stage that one side lacks, or something that was not judged.
    pub fn finding(&self) -> bool {
        self.first_divergence.is_some() || !self.missing.is_empty() || !self.not_judged.is_empty()
    }
    /// Adds a line behind all others.
    fn add(&mut self, line: StageLine) {
        if line.diverged {
            self.first_divergence.get_or_insert_with(|| line.divergence());
        }
        self.stages.push(line);
    }
    /// The line that is furthest off, in floors.
    pub fn worst(&self) -> Option<&StageLine> {
        self.stages.iter().fold(None, |worst: Option<&StageLine>, line| match worst {
            Some(worst) if worst.times_floor >= line.times_floor => Some(worst),
            _ => Some(line),
        })
    }
    fn new(align: &Align, mode: Mode, floor: String, stages: Vec<StageLine>) -> Self {
        let first = stages.iter().find(|line| line.diverged);
        let first_divergence = first.map(StageLine::divergence);
        let mut notes = align.notes.clone();
        let odd: Vec<String> = stages.iter().filter(|l| l.odd > 0).map(|l| format!("{} ({})", l.at, l.odd)).collect();
        if !odd.is_empty() {
            notes.push(format!("elements that are not finite, in the same places on both sides: {}", odd.join(", ")));
        }
        Self {
            a: align.names[0].clone(),
            b: align.names[1].clone(),
            mode,
            tokens: align.tokens,
            floor,
            allowed: crate::debug::floor::ALLOWED,
            first_divergence,
            stages,
            missing: align.missing.clone(),
            injected: align.injected.clone(),
            covers: align.covers.clone(),
            not_judged: align.not_judged.clone(),
            notes,
        }
    }
}

impl StageLine {
    fn new(at: At) -> Self {
        Self {
            at,
            part: None,
            rows: 0,
            relative_l2: 0.0,
            max_abs: 0.0,
            cosine: 1.0,
            floor: 0.0,
            times_floor: 0.0,
            token: None,
            head: None,
            dim: None,
            values: None,
            one_dim: false,
            diverged: false,
            estimated: false,
            sketch: false,
            odd: 0,
            tokens: Vec::new(),
        }
    }
    fn divergence(&self) -> Divergence {
        let Self { at, part, token, head, dim, times_floor, .. } = self;
        Divergence { at: *at, part: part.clone(), token: *token, head: *head, dim: *dim, times_floor: *times_floor }
    }
    /// The value and its part: `L0 attn_core_out [attention.decode]`.
    pub fn label(&self) -> String {
        self.part.as_ref().map_or_else(|| self.at.to_string(), |part| format!("{} [{part}]", self.at))
    }
    /// Takes in the choice at a token, right and found: the candidates, and the id that the next step reads. Anything
    /// but the same ids and logits is wrong.
    fn choice(&mut self, token: usize, top: [&[(u32, f32)]; 2], next: [Option<u32>; 2]) {
        self.rows += 1;
        self.tokens.resize(self.tokens.len().max(token + 1), 0.0);
        let [right, found] = top;
        let place = (0..right.len().max(found.len())).find(|i| right.get(*i) != found.get(*i));
        if (place.is_none() && next[0] == next[1]) || self.diverged {
            return;
        }
        let id = |list: &[(u32, f32)]| place.and_then(|i| list.get(i)).map_or(f32::NAN, |(id, _)| *id as f32);
        let ids = if place.is_some() { [id(right), id(found)] } else { next.map(|id| id.map_or(f32::NAN, |id| id as f32)) };
        self.tokens[token] = f32::INFINITY;
        (self.times_floor, self.diverged, self.token, self.dim, self.values) = (f64::INFINITY, true, Some(token), place, Some(ids));
    }
}

/// Widths of heads, to tell a dim's head.
#[derive(Debug, Clone, Copy, Default)]
struct Heads {
    head_dim: Option<usize>,
}

impl Heads {
    /// Those of a value.
    fn of(plan: &Plan, at: At) -> Self {
        Self { head_dim: plan.find(at).and_then(|id| plan.head_dim(id)) }
    }
    /// The head that element `dim` of a row of `stage` belongs to.
    fn head(self, stage: Stage, dim: usize) -> Option<usize> {
        self.head_dim.filter(|_| stage.is_headed()).and_then(|width| dim.checked_div(width))
    }
}

/// Which run a line with this part is about.
fn run_of(part: &Option<String>) -> &'static str {
    if part.is_some() { "unobserved" } else { "observed" }
}

/// An f64 in JSON.
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            serializer.serialize_f64(self.0)
        } else {
            serializer.serialize_str(&crate::debug::number::number(self.0 as f32))
        }
    }
}

impl Serialize for Divergence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Divergence", 8)?;
        out.serialize_field("layer", &self.at.layer)?;
        out.serialize_field("stage", self.at.stage.name())?;
        out.serialize_field("run", run_of(&self.part))?;
        out.serialize_field("part", &self.part)?;
        out.serialize_field("token", &self.token)?;
        out.serialize_field("head", &self.head)?;
        out.serialize_field("dim", &self.dim)?;
        out.serialize_field("times_floor", &Number(self.times_floor))?;
        out.end()
    }
}

impl Serialize for StageLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Values<'a>(&'a [f32]);
        impl Serialize for Values<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                json_numbers(self.0, serializer)
            }
        }
        let mut out = serializer.serialize_struct("StageLine", 20)?;
        out.serialize_field("layer", &self.at.layer)?;
        out.serialize_field("stage", self.at.stage.name())?;
        out.serialize_field("run", run_of(&self.part))?;
        out.serialize_field("part", &self.part)?;
        out.serialize_field("diverged", &self.diverged)?;
        out.serialize_field("times_floor", &Number(self.times_floor))?;
        out.serialize_field("relative_l2", &Number(self.relative_l2))?;
        out.serialize_field("floor", &Number(self.floor))?;
        out.serialize_field("estimated_floor", &self.estimated)?;
        out.serialize_field("max_abs", &Number(f64::from(self.max_abs)))?;
        out.serialize_field("cosine", &Number(self.cosine))?;
        out.serialize_field("token", &self.token)?;
        out.serialize_field("head", &self.head)?;
        out.serialize_field("dim", &self.dim)?;
        out.serialize_field("one_dim", &self.one_dim)?;
        out.serialize_field("a", &self.values.map(|v| Number(f64::from(v[0]))))?;
        out.serialize_field("b", &self.values.map(|v| Number(f64::from(v[1]))))?;
        out.serialize_field("rows", &self.rows)?;
        out.serialize_field("sketch", &self.sketch)?;
        out.serialize_field("tokens", &self.diverged.then_some(Values(&self.tokens)))?;
        out.end()
    }
}
