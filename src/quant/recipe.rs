//! Which format each weight of a model is stored in: one for all, or a named mixture, with exceptions. Plain data and one
//! function; it reads no file and converts nothing.
//!
//! The mixtures and fallbacks are those that llama.cpp publishes under the same names, for dense models. Its exceptions for
//! single architectures, for eight experts and for 80 layers are not here.

use super::Format;
use crate::error::{Error, Result, nearest};
use crate::model::{ModelConfig, WeightRole};

/// A choice of formats for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The format of what no rule names.
    base: Format,
    rules: &'static [Rule],
    /// Exceptions; the first that matches decides.
    keep: Vec<Keep>,
    model: ModelFacts,
}

/// What mixtures ask of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelFacts {
    /// The embedding is the head too.
    pub tied: bool,
    /// Query heads of each key/value head.
    pub queries_per_kv: usize,
}

impl ModelFacts {
    /// Those of a model.
    pub fn of(config: &ModelConfig) -> Self {
        let queries_per_kv = config.attentions().next().and_then(|a| a.num_heads.checked_div(a.num_kv_heads));
        Self { tied: config.tie_word_embeddings, queries_per_kv: queries_per_kv.unwrap_or(1) }
    }
}

/// Weights that have a format of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// `ROLE` or `ROLE@LAYER`, such as `v_proj` or `down_proj@3`, where `*` is any text. Without a layer: of all layers.
    pub pattern: String,
    /// Their format.
    pub format: Format,
}

/// What a weight becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its format.
    pub format: Format,
    /// Why it is not the recipe's, where its columns are no whole blocks of that.
    pub note: Option<String>,
}

/// Weights of a role where a condition holds.
#[derive(Debug, PartialEq)]
struct Rule {
    role: WeightRole,
    when: When,
    format: Format,
}

#[derive(Debug, PartialEq)]
enum When {
    Always,
    /// In so many first layers.
    First(usize),
    /// In the first layers, one in so many of all.
    FirstPart(usize),
    /// In the first and the last eighth of the layers, and in every third between.
    Sensitive,
    /// Where at least four query heads share a key and a value.
    Grouped,
}

const fn rule(role: WeightRole, when: When, format: Format) -> Rule {
    Rule { role, when, format }
}

/// The mixtures: name, format of the rest, rules of which the first that holds decides. Heads are Q6_K in each.
#[rustfmt::skip]
const MIXTURES: [(&str, Format, &[Rule]); 8] = {
    use Format::{Q2K, Q3K, Q4K, Q5K, Q6K};
    use WeightRole::{DownProj, OProj, VProj};
    use When::{Always, First, FirstPart, Grouped, Sensitive};
    [
        ("q2_k", Q2K, &[
            rule(VProj, Grouped, Q4K), rule(VProj, Always, Q3K), rule(DownProj, Always, Q3K), rule(OProj, Always, Q3K),
        ]),
        ("q3_k_s", Q3K, &[]),
        ("q3_k_m", Q3K, &[
            rule(VProj, First(2), Q5K), rule(VProj, Always, Q4K),
            rule(DownProj, FirstPart(16), Q5K), rule(DownProj, Always, Q4K), rule(OProj, Always, Q4K),
        ]),
        ("q3_k_l", Q3K, &[rule(VProj, Always, Q5K), rule(DownProj, Always, Q5K), rule(OProj, Always, Q5K)]),
        ("q4_k_s", Q4K, &[rule(VProj, First(4), Q5K), rule(DownProj, FirstPart(8), Q5K)]),
        ("q4_k_m", Q4K, &[rule(VProj, Sensitive, Q6K), rule(DownProj, Sensitive, Q6K)]),
        ("q5_k_s", Q5K, &[]),
        ("q5_k_m", Q5K, &[rule(VProj, Sensitive, Q6K), rule(DownProj, Sensitive, Q6K)]),
    ]
};

/// What the heads of mixtures are.
const HEAD: Format = Format::Q6K;

impl Recipe {
    /// All matrices in one format, heads and embeddings included.
    pub fn uniform(format: Format) -> Self {
        Self { base: format, rules: &[], keep: Vec::new(), model: ModelFacts::default() }
    }
    /// A mixture by its name, such as `q4_k_m`.
    pub fn mixture(name: &str, model: ModelFacts) -> Result<Self> {
        let Some((_, base, rules)) = MIXTURES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)) else {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            return Err(Error::invalid("recipe", format!("unknown mixture `{name}`; known are {known}")));
        };
        let head = |role| Keep { pattern: WeightRole::name(role).to_string(), format: HEAD };
        let embed = model.tied.then(|| head(WeightRole::Embed));
        Ok(Self { base: *base, rules, keep: std::iter::once(head(WeightRole::Head)).chain(embed).collect(), model })
    }
    /// The names of the mixtures.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MIXTURES.iter().map(|(name, ..)| *name)
    }
    /// The same, but for these weights; earlier exceptions go before later ones, and all before the mixture's rules.
    #[must_use]
    pub fn keeping(mut self, keep: impl IntoIterator<Item = Keep>) -> Self {
        let given: Vec<Keep> = keep.into_iter().collect();
        self.keep.splice(0..0, given);
        self
    }
}

impl Keep {
    /// Reads `PATTERN=FORMAT`.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: String| Error::invalid("keep", format!("`{text}`: {why}"));
        let (pattern, format) = text.split_once('=').ok_or_else(|| bad("expected PATTERN=FORMAT, such as v_proj=q8_0".into()))?;
        let format = Format::try_from(format.to_string()).map_err(bad)?;
        let role = pattern.split('@').next().unwrap_or_default();
        if !WeightRole::TABLE.iter().any(|(_, name)| fits(role, name)) {
            let near = nearest(role, WeightRole::TABLE.iter().map(|(_, name)| *name)).join(", ");
            return Err(bad(format!("no weight is called `{role}`; near are {near}")));
        }
        Ok(Self { pattern: pattern.to_string(), format })
    }
    /// Does the pattern match a weight?
    pub fn matches(&self, role: WeightRole, layer: Option<usize>) -> bool {
        let (pattern, place) = self.pattern.split_once('@').unwrap_or((&self.pattern, "*"));
        fits(pattern, role.name()) && fits(place, &layer.map(|l| l.to_string()).unwrap_or_default())
    }
}

/// Does `text` fit a pattern with `*` for any text?
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| fits(rest, &text[at..]))
        }),
    }
}

/// The format of a matrix `[.., columns]` of `role` in `layer` of `layers`. Norms, and biases, which no recipe is asked for, are
/// vectors and stay f32. Columns that are no whole blocks get the next larger format whose blocks they are.
pub fn choose(recipe: &Recipe, role: WeightRole, layer: Option<usize>, layers: usize, columns: usize) -> Choice {
    // What routers compute is small, and a wrong choice is not.
    if role.name().ends_with("norm") || matches!(role, WeightRole::Router | WeightRole::SharedScale) {
        return Choice { format: Format::F32, note: None };
    }
    let asked = role;
    // Experts go as dense blocks do.
    let role = if role == WeightRole::ExpertDown { WeightRole::DownProj } else { role };
    let kept = recipe.keep.iter().find(|keep| keep.matches(asked, layer)).map(|keep| keep.format);
    let ruled = || recipe.rules.iter().find(|rule| rule.role == role && rule.holds(layer, layers, recipe.model)).map(|r| r.format);
    let wanted = kept.or_else(ruled).unwrap_or(recipe.base);
    let format = whole_blocks(wanted, columns);
    let note = (format != wanted)
        .then(|| format!("{format} instead of {wanted}: its {columns} columns are no whole blocks of {}", wanted.info().block));
    Choice { format, note }
}

impl Rule {
    fn holds(&self, layer: Option<usize>, layers: usize, model: ModelFacts) -> bool {
        let in_layer = |holds: &dyn Fn(usize) -> bool| layer.is_some_and(holds);
        match self.when {
            When::Always => true,
            When::First(count) => in_layer(&|layer| layer < count),
            When::FirstPart(part) => in_layer(&|layer| layer < layers / part),
            When::Sensitive => in_layer(&|layer| {
                let first = layers / 8;
                layer < first || layer >= layers.saturating_mul(7) / 8 || (layer - first) % 3 == 2
            }),
            When::Grouped => model.queries_per_kv >= 4,
        }
    }
}

/// The format, or what takes its place where `columns` are no whole blocks of it: one of 32, else f16.
fn whole_blocks(format: Format, columns: usize) -> Format {
    let smaller = match format {
        Format::Q2K | Format::Q3K | Format::Tq1_0 | Format::Tq2_0 | Format::Q1_0 | Format::Q2_0 => Format::Q4_0,
        Format::Q4K => Format::Q5_0,
        Format::Q5K => Format::Q5_1,
        Format::Q6K => Format::Q8_0,
        Format::Iq4Xs | Format::Iq2Xxs | Format::Iq2Xs | Format::Iq2S | Format::Iq3Xxs | Format::Iq3S => Format::Iq4Nl,
        _ => Format::F16,
    };
    let fits = |format: &Format| format.row_bytes(columns).is_some();
    [format, smaller].into_iter().find(fits).unwrap_or(Format::F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(recipe: &Recipe, role: WeightRole, layers: usize) -> String {
        let name = |layer| choose(recipe, role, Some(layer), layers, 4096).format.name();
        (0..layers).map(|layer| name(layer).trim_start_matches('q').chars().next().unwrap()).collect()
    }

    #[test]
    fn mixtures_give_sensitive_weights_more_bits() {
        let recipe = Recipe::mixture("Q4_K_M", ModelFacts::default()).unwrap();
        // 32 layers: 4 first, 4 last, every third between.
        assert_eq!(formats(&recipe, WeightRole::VProj, 32), "66664464464464464464464464466666");
        assert_eq!(formats(&recipe, WeightRole::DownProj, 32), formats(&recipe, WeightRole::VProj, 32));
        assert_eq!(formats(&recipe, WeightRole::GateProj, 8), "44444444");
        let one = |recipe: &Recipe, role| choose(recipe, role, None, 32, 4096).format;
        assert_eq!((one(&recipe, WeightRole::Head), one(&recipe, WeightRole::Embed)), (Format::Q6K, Format::Q4K));
        assert_eq!(one(&recipe, WeightRole::FinalNorm), Format::F32);
        let tied = Recipe::mixture("q3_k_m", ModelFacts { tied: true, queries_per_kv: 4 }).unwrap();
        assert_eq!(one(&tied, WeightRole::Embed), Format::Q6K);
        assert_eq!(formats(&tied, WeightRole::VProj, 32), "55444444444444444444444444444444");
        assert_eq!(formats(&tied, WeightRole::DownProj, 32), "55444444444444444444444444444444");
        let grouped = |queries_per_kv| Recipe::mixture("q2_k", ModelFacts { tied: false, queries_per_kv }).unwrap();
        assert_eq!(formats(&grouped(4), WeightRole::VProj, 2), "44");
        assert_eq!(formats(&grouped(2), WeightRole::VProj, 2), "33");
        assert_eq!(formats(&grouped(2), WeightRole::QProj, 2), "22");
        let error = Recipe::mixture("q9", ModelFacts::default()).unwrap_err().to_string();
        assert!(error.contains("unknown mixture `q9`; known are q2_k, q3_k_s"), "{error}");
    }

    #[test]
    fn exceptions_go_first_and_norms_stay() {
        let keep = ["down_proj@3=q8_0", "*_proj@0=f16", "down*=q5_k", "*=q6_k"].map(|text| Keep::parse(text).unwrap());
        let recipe = Recipe::mixture("q4_k_m", ModelFacts::default()).unwrap().keeping(keep);
        let one = |role, layer| choose(&recipe, role, layer, 8, 512).format;
        assert_eq!(one(WeightRole::DownProj, Some(3)), Format::Q8_0);
        assert_eq!(one(WeightRole::DownProj, Some(0)), Format::F16);
        assert_eq!(one(WeightRole::DownProj, Some(7)), Format::Q5K);
        assert_eq!(one(WeightRole::UpProj, Some(30)), Format::Q6K);
        assert_eq!(one(WeightRole::AttnNorm, Some(0)), Format::F32);
        let text = |keep| Keep::parse(keep).unwrap_err().to_string();
        assert_eq!(text("v_proj"), "keep: `v_proj`: expected PATTERN=FORMAT, such as v_proj=q8_0");
        assert!(text("v_porj=q8_0").contains("no weight is called `v_porj`; near are v_proj"), "{}", text("v_porj=q8_0"));
        assert!(text("v_proj=q9").contains("unknown format `q9`"), "{}", text("v_proj=q9"));
    }

    #[test]
    fn columns_that_are_no_whole_blocks_fall_back_with_a_note() {
        let recipe = Recipe::uniform(Format::Q4K);
        let found = choose(&recipe, WeightRole::QProj, Some(0), 1, 576);
        let note = "q5_0 instead of q4_k: its 576 columns are no whole blocks of 256";
        assert_eq!(found, Choice { format: Format::Q5_0, note: Some(note.to_string()) });
        assert_eq!(choose(&recipe, WeightRole::QProj, Some(0), 1, 100).format, Format::F16);
        assert_eq!(choose(&recipe, WeightRole::QProj, Some(0), 1, 1024), Choice { format: Format::Q4K, note: None });
        for row in &super::super::TABLE {
            for columns in [1, 32, 64, 100, 256] {
                assert!(whole_blocks(row.format, columns).row_bytes(columns).is_some(), "{}, {columns}", row.name);
            }
        }
    }
}
