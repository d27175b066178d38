//! What does not fit between a plan and a checkpoint, gathered and told in groups: one line for the same tensor of
//! many layers.

use super::places::Place;
use crate::error::{About, Error, Misfit, Result, TensorProblem, nearest};
use crate::formats::TensorEntry;
use crate::model::WeightRole;
use crate::quant::Format;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

/// Lines per kind of problem.
const MAX_LINES: usize = 12;
/// Unused names among which one like a missing one is looked for.
const MAX_NEAR: usize = 1000;

/// Types of the files that are not numbers with fractions.
const WHOLE_NUMBERS: [&str; 9] = ["BOOL", "U8", "I8", "U16", "I16", "U32", "i32", "U64", "I64"];
/// Misfits that an error lists for programs.
const MAX_MISFITS: usize = 1000;

/// Everything that does not fit.
#[derive(Default)]
pub(super) struct Problems {
    misfits: Vec<Misfit>,
    /// The config says that weights are packed: those in FP8 then need their scales.
    pub is_packed: bool,
    head_missing: bool,
    /// What was added. Several slots can share a fused tensor, which is listed once.
    known: HashSet<(TensorProblem, String)>,
}

impl Problems {
    /// The tensor `name`, which holds a weight of `role` at `place`, does not exist.
    pub fn missing(&mut self, role: WeightRole, place: &Place, name: String) {
        self.head_missing |= role == WeightRole::Head && place.shape.len() > 1;
        self.add(TensorProblem::Missing, name, Some(format!("{:?}", place.stored_shape())), None);
    }
    /// The format of `entry`, if both it and its shape are those of `place`.
    pub fn check(&mut self, place: &Place, entry: &TensorEntry) -> Option<Format> {
        let expected = &place.stored_shape();
        let fits = place.fits(&entry.shape);
        if !fits {
            self.add(TensorProblem::Shape, entry.name.clone(), Some(format!("{expected:?}")), Some(format!("{:?}", entry.shape)));
        }
        // Vectors are plain: nobody packs a norm or a bias.
        let rows_are_whole = expected.len() > 1 && !place.transposed;
        let without_scale = |format: &Format| self.is_packed && matches!(format, Format::E4m3 | Format::E5m2);
        let usable = entry.dtype.format().filter(|format| (rows_are_whole || format.is_plain()) && !without_scale(format));
        if usable.is_none() {
            let types = if rows_are_whole { "f64, f32, f16, bf16 or packed" } else { "f64, f32, f16 or bf16" };
            self.add(TensorProblem::Type, entry.name.clone(), Some(types.into()), Some(entry.dtype.to_string()));
        }
        usable.filter(|_| fits)
    }
    /// The tensor `name` is stored in another format than that of the expert before it, with which it makes one weight.
    pub fn differs(&mut self, name: String, expected: Format, found: Format) {
        self.add(TensorProblem::Type, name, Some(format!("{expected}, as other experts")), Some(found.to_string()));
    }
    /// What a packed weight's tensors are not.
    pub fn extend(&mut self, misfits: Vec<Misfit>) {
        for Misfit { tensor, problem, expected, found } in misfits {
            self.add(problem, tensor, expected, found);
        }
    }
    /// `entry` has no place in the plan.
    pub fn extra(&mut self, entry: &TensorEntry) {
        self.add(TensorProblem::Extra, entry.name.clone(), None, Some(format!("{:?}", entry.shape)));
    }
    fn add(&mut self, problem: TensorProblem, tensor: String, expected: Option<String>, found: Option<String>) {
        if self.known.insert((problem, tensor.clone())) {
            self.misfits.push(Misfit { tensor, problem, expected, found });
        }
    }
    /// Those of one kind: name and words.
    fn list(&self, problem: TensorProblem) -> Vec<(&str, String)> {
        let of_kind = self.misfits.iter().filter(|misfit| misfit.problem == problem);
        of_kind.map(|misfit| (misfit.tensor.as_str(), words(misfit))).collect()
    }
    /// One error about everything, if there is anything; it lists the first misfits for programs too.
    pub fn into_result(mut self, prefix: &str) -> Result<()> {
        if self.misfits.is_empty() {
            return Ok(());
        }
        let [missing, misshapen, mistyped, extra] =
            [TensorProblem::Missing, TensorProblem::Shape, TensorProblem::Type, TensorProblem::Extra].map(|problem| self.list(problem));
        let mut text = format!("the checkpoint's tensors are not those that the model's config asks for (names begin with `{prefix}`)");
        let unused: Vec<String> = groups(&extra).into_keys().map(|(pattern, _)| pattern).take(MAX_NEAR).collect();
        section(&mut text, "missing", &missing, &unused);
        section(&mut text, "of another shape", &misshapen, &[]);
        section(&mut text, "of a type that weights cannot have", &mistyped, &[]);
        section(&mut text, "without a place in the model", &extra, &[]);
        if self.head_missing && missing.len() == 1 {
            text += "\nonly the head is missing: if it is the embedding, config.json should say `tie_word_embeddings`: true";
        }
        let has = |part: &str| extra.iter().any(|(name, _)| name.contains(part));
        if has(".lora_") || has(".base_layer.") {
            text += "\nthese are parts of a LoRA adapter: merge it into the base (`merge_and_unload` of peft) and save the result";
        } else if has("tok_embeddings.") {
            text += "\nthese are names of the original release's own layout: use the model's Hugging Face files";
        } else if mistyped.iter().any(|(_, about)| WHOLE_NUMBERS.iter().any(|name| about.ends_with(&format!("found {name}")))) {
            text += "\nweights in whole numbers or truth values are not read, although transformers converts them: load the model with transformers in a float type and save it again (`from_pretrained(FOLDER, dtype=\"float32\")`, `save_pretrained`)";
        } else if [&missing, &misshapen, &mistyped].iter().all(|list| list.is_empty()) {
            text += "\n`--allow-extra-tensors` loads the model without them, as transformers does with a warning";
        }
        self.misfits.truncate(MAX_MISFITS);
        Err(Error::weights(text).on(About::Tensors(self.misfits)))
    }
}

/// `expected [4, 2], found [4, 3]`.
fn words(misfit: &Misfit) -> String {
    let parts = [("expected", &misfit.expected), ("found", &misfit.found)];
    let parts: Vec<String> = parts.iter().filter_map(|(word, value)| Some(format!("{word} {}", value.as_ref()?))).collect();
    parts.join(", ")
}

/// Tensors that differ in numbers only (layers, experts) and of which the same is to be said.
fn groups<'l>(list: &'l [(&str, String)]) -> BTreeMap<(String, &'l str), Vec<&'l str>> {
    let mut groups: BTreeMap<(String, &'l str), Vec<&'l str>> = BTreeMap::new();
    for (name, about) in list {
        groups.entry((pattern(name), about)).or_default().push(name);
    }
    groups
}

/// `model.layers.12.mlp` as `model.layers.*.mlp`.
fn pattern(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
    parts.join(".")
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

fn section(text: &mut String, title: &str, list: &[(&str, String)], unused: &[String]) {
    if list.is_empty() {
        return;
    }
    // Writing to a string cannot fail.
    let _ = write!(text, "\n{title}: {}", plural(list.len()));
    let groups = groups(list);
    for ((pattern, about), names) in groups.iter().take(MAX_LINES) {
        let _ = match names[..] {
            [one] => write!(text, "\n  {one}: {about}"),
            _ => write!(text, "\n  {pattern} ({}): {about}", numbers(names)),
        };
        if let Some(near) = nearest(pattern, unused.iter().map(String::as_str)).first() {
            let _ = write!(text, "; nearest unused: {near}");
        }
    }
    if groups.len() > MAX_LINES {
        let rest: usize = groups.values().skip(MAX_LINES).map(Vec::len).sum();
        let _ = write!(text, "\n  … and {} more", plural(rest));
    }
}

fn plural(count: usize) -> String {
    format!("{count} {}", if count == 1 { "tensor" } else { "tensors" })
}

/// `24 tensors: 0-22, 25`, or only the count where names hold several numbers.
fn numbers(names: &[&str]) -> String {
    let count = plural(names.len());
    let single = |name: &&str| {
        let mut found = name.split('.').filter(|part| is_number(part));
        found.next().filter(|_| found.next().is_none())?.parse::<u64>().ok()
    };
    let Some(mut found) = names.iter().map(single).collect::<Option<Vec<u64>>>() else { return count };
    found.sort_unstable();
    let runs: Vec<String> = found
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        })
        .collect();
    format!("{count}: {}", runs.join(", "))
}
