//! What `--set` and `runtime.debug.set` say: texts like `ffn_out@3-5,token=-1=zero`, read, and made edits of a plan. Files
//! that they name come from the face; what they hold is read here.

mod files;

use crate::config::runtime::Position;
use crate::debug::dump::Dump;
use crate::debug::places;
use crate::error::{Error, Result};
use crate::formats::Local;
use crate::plan::edit::{self, Edit, apply};
use crate::plan::intervention::{Change, Intervention, Span};
use crate::plan::{At, Plan, Stage};
use files::ValueFile;

/// The form of a text, for messages.
pub const FORM: &str =
    "STAGE@LAYERS[,token=..][,head=..][,dim=..]=zero|mean:DUMP|scale:F|add:FILE[*F]|from:DUMP, as in ffn_out@3-5,token=-1=zero";
/// The form of a text that only names values.
const PLACES: &str = "STAGE@LAYERS[,token=..][,head=..][,dim=..], as in layer_in@3";

/// One text, read.
#[derive(Debug, Clone, PartialEq)]
struct Setting {
    stage: Stage,
    /// `None` is every layer that has the stage.
    layers: Option<Vec<Item>>,
    tokens: Option<Vec<Item>>,
    heads: Option<Vec<Item>>,
    dims: Option<Vec<Item>>,
    to: To,
}

/// One of a list of layers, tokens, heads or elements.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Item {
    One(Position),
    /// From the first to the last; `None` is as many as there are.
    Range(usize, Option<usize>),
}

/// What values become.
#[derive(Debug, Clone, PartialEq)]
enum To {
    Zero,
    Scale(f64),
    Add { file: String, factor: f64 },
    From(String),
    Mean(String),
}

/// `plan` with the interventions that `texts` say, for a prompt of `prompt` tokens, where that is known. `open` finds the
/// files that they name.
///
/// # Errors
/// `Kind::Invalid` for texts that say nothing; `Kind::Plan` for what cannot be done to the plan; what files report. Each
/// names the text.
pub async fn set(plan: &Plan, texts: &[String], prompt: Option<usize>, open: &dyn Fn(&str) -> Result<Local>) -> Result<Plan> {
    let mut plan = plan.clone();
    for text in texts {
        let within = |e: Error| e.within(format!("set `{text}`"));
        let edits = edits(&plan, &parse(text, FORM, None).map_err(within)?, prompt, open).await.map_err(within)?;
        plan = apply(&plan, &edits).map_err(within)?;
    }
    Ok(plan)
}

/// Whether `text` has the form of a setting.
///
/// # Errors
/// `Kind::Invalid` saying what it lacks.
pub fn check(text: &str) -> Result<()> {
    parse(text, FORM, None).map(|_| ())
}

/// The values that `text` names, `layer_in@3` or `k_cache@0-5,token=-1`, as those of `dump` in a run of `plan`: what `--inject` says.
///
/// # Errors
/// As `set`; `Kind::Format` where the dump lacks the values.
pub fn injected(plan: &Plan, text: &str, dump: &Dump) -> Result<Vec<Injected>> {
    let setting = parse(text, PLACES, Some(To::From(dump.name().into())))?;
    let tokens = setting.tokens.as_deref().map(|items| tokens(items, Some(dump.input_ids()?.len()))).transpose()?;
    let is_whole = setting.tokens.is_none() && setting.heads.is_none() && setting.dims.is_none();
    let one = |layer: Option<usize>| -> Result<Injected> {
        let at = At { stage: setting.stage, layer };
        let id = edit::find(plan, at)?;
        let source = plan.node(plan.source(id)).at;
        // A value under its own name or, where the dump has no such one, under that of what it is.
        let (given, of) = files::tokens(dump, if dump.parts(at).is_empty() { source } else { at })?;
        let (heads, dims) = chosen(plan, &setting, at)?;
        let tokens = Some(tokens.clone().unwrap_or_else(|| vec![of]));
        let edit = Edit::Intervene { at: source, with: Intervention { tokens, heads, dims, change: Change::Set(given) } };
        Ok(Injected { at: source, is_whole, edit })
    };
    layers(plan, &setting, None)?.into_iter().map(one).collect()
}

/// A value of another run in the place of one that is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The value, which is computed: no second name of one.
    pub at: At,
    /// All of it is injected.
    pub is_whole: bool,
    /// The edit that does it.
    pub edit: Edit,
}

/// The whole values that `text` names: `logits`, `ffn_out`, `ffn_out@3-5`. That the model has them is not looked for.
///
/// # Errors
/// `Kind::Invalid` for texts that name no value, or parts of one, and for layers that the model lacks.
pub fn named(plan: &Plan, text: &str) -> Result<Vec<At>> {
    let setting = parse(text, PLACES, Some(To::Zero))?;
    if setting.tokens.is_some() || setting.heads.is_some() || setting.dims.is_some() {
        return Err(Error::invalid("stage", format!("`{text}` names a part of a value; expected STAGE or STAGE@LAYERS, as in ffn_out@3")));
    }
    Ok(layers(plan, &setting, None)?.into_iter().map(|layer| At { stage: setting.stage, layer }).collect())
}

/// The stage that a text of `injected` names.
///
/// # Errors
/// `Kind::Invalid` saying what the text lacks.
pub fn injected_stage(text: &str) -> Result<Stage> {
    parse(text, PLACES, Some(To::Zero)).map(|setting| setting.stage)
}

/// `text` in this `form`. It says what values become, unless that is `given`.
fn parse(text: &str, form: &str, mut given: Option<To>) -> Result<Setting> {
    let wrong = |what: String| Error::invalid("set", format!("{what}; expected {form}"));
    // The value begins after the first `=` that does not follow one of these words.
    let (mut lists, mut key, mut rest): (Vec<(&str, &str)>, &str, &str) = (Vec::new(), "", text.trim());
    let to = loop {
        let Some((left, right)) = rest.split_once('=') else {
            let to = given.take().ok_or_else(|| wrong(format!("`{text}` says nothing after `=`")))?;
            lists.push((key, rest));
            break to;
        };
        let (list, word) = left.rsplit_once(',').unwrap_or(("", left));
        let known = ["token", "head", "dim"].into_iter().find(|known| *known == word.trim());
        lists.push((key, if known.is_some() { list } else { left }));
        match known {
            Some(known) => (key, rest) = (known, right),
            None if given.is_some() => {
                return Err(wrong(format!("`{text}` says what the values become, and they are those of the reference")));
            }
            None => break change(right.trim()).map_err(wrong)?,
        }
    };
    let head = lists.remove(0).1;
    let (stage, layers) = head.split_once('@').map_or((head, None), |(stage, layers)| (stage, Some(layers)));
    let stage = Stage::parse(stage.trim())?;
    let layers = layers.map(str::trim).filter(|layers| *layers != "all").map(items).transpose().map_err(wrong)?;
    let mut setting = Setting { stage, layers, tokens: None, heads: None, dims: None, to };
    for (key, list) in lists {
        let list = items(list).map_err(wrong)?;
        let place = match key {
            "token" => &mut setting.tokens,
            "head" => &mut setting.heads,
            _ => &mut setting.dims,
        };
        if place.replace(list).is_some() {
            return Err(wrong(format!("`{key}=` is there twice")));
        }
    }
    Ok(setting)
}

/// `0,3-5,-1,mid,8-`.
fn items(text: &str) -> std::result::Result<Vec<Item>, String> {
    let one = |part: &str| {
        let part = part.trim();
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let range = || {
            let (first, last) = part.split_once('-')?;
            let (first, last) = (number(first)?, if last.is_empty() { None } else { Some(number(last)?) });
            last.is_none_or(|last| first <= last).then_some(Item::Range(first, last))
        };
        match (part, part.parse::<i64>()) {
            ("mid", _) => Ok(Item::One(Position::Mid)),
            (_, Ok(n)) => Ok(Item::One(Position::At(n))),
            _ => range().ok_or_else(|| format!("`{part}` is neither a number nor a range like 3-5 or 8-")),
        }
    };
    text.split(',').map(one).collect()
}

/// `zero`, `scale:0.5`, `add:vector.gguf*0.8`, `from:clean.safetensors`, `mean:many.safetensors`.
fn change(text: &str) -> std::result::Result<To, String> {
    let number = |text: &str| match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(format!("`{text}` is no finite number")),
    };
    let (what, of) = text.split_once(':').unwrap_or((text, ""));
    match (what.trim(), of.trim()) {
        ("zero", "") => Ok(To::Zero),
        ("scale", of) => number(of).map(To::Scale),
        ("mean", "") => Err("`mean` of what? mean:DUMP sets the mean of a dump's tokens, as of a run over many texts".into()),
        ("add" | "from", "") => Err(format!("`{what}:` names no file")),
        ("add", of) => match of.rsplit_once('*') {
            Some((file, factor)) => Ok(To::Add { file: file.trim().into(), factor: number(factor)? }),
            None => Ok(To::Add { file: of.into(), factor: 1.0 }),
        },
        ("from", of) => Ok(To::From(of.into())),
        ("mean", of) => Ok(To::Mean(of.into())),
        _ => Err(format!("`{text}` is no change of a value")),
    }
}

/// The edits that a setting means in `plan`.
async fn edits(plan: &Plan, setting: &Setting, prompt: Option<usize>, open: &dyn Fn(&str) -> Result<Local>) -> Result<Vec<Edit>> {
    let stage = setting.stage;
    let tokens = setting.tokens.as_deref().map(|items| tokens(items, prompt)).transpose()?;
    let given = match &setting.to {
        To::Zero | To::Scale(_) => None,
        To::Add { file, .. } => Some(ValueFile::vectors(open(file)?).await?),
        To::From(file) | To::Mean(file) => Some(ValueFile::dump(open(file)?)?),
    };
    let mut edits = Vec::new();
    for layer in layers(plan, setting, given.as_ref())? {
        let at = At { stage, layer };
        let (heads, dims) = chosen(plan, setting, at)?;
        let mut tokens = tokens.clone();
        let change = match (&setting.to, &given) {
            (To::Scale(factor), _) => Change::Scale(*factor),
            (To::Add { factor, .. }, Some(given)) => Change::Add { given: given.vector(at)?, factor: *factor },
            (To::From(_), Some(given)) => {
                let (given, of) = given.tokens(at)?;
                tokens.get_or_insert_with(|| vec![of]);
                Change::Set(given)
            }
            (To::Mean(_), Some(given)) => Change::Set(given.mean(at)?),
            _ => Change::Zero,
        };
        edits.push(Edit::Intervene { at, with: Intervention { tokens, heads, dims, change } });
    }
    Ok(edits)
}

/// Spans of heads, or of elements; `None` is all of them.
type Spans = Option<Vec<Span>>;

/// The heads and elements of `at` that a setting means.
fn chosen(plan: &Plan, setting: &Setting, at: At) -> Result<(Spans, Spans)> {
    let id = plan.find(at);
    let count = |of_heads: bool| {
        let Some(id) = id else { return 0 };
        match (of_heads, &setting.heads) {
            (true, _) => plan.heads(id).unwrap_or(0),
            (false, _) if at.stage.layout().is_scores() => usize::MAX,
            (false, Some(_)) => plan.head_dim(id).unwrap_or(0),
            (false, None) => plan.node(id).width,
        }
    };
    let spans = |items: &Option<Vec<Item>>, what: &str, of_heads: bool| {
        let count = count(of_heads);
        items.as_ref().map(|items| items.iter().map(|item| span(*item, count, what)).collect::<Result<Vec<Span>>>()).transpose()
    };
    Ok((spans(&setting.heads, "head", true)?, spans(&setting.dims, "element", false)?))
}

/// The layers that a setting means; `[None]` for a stage that exists once.
fn layers(plan: &Plan, setting: &Setting, given: Option<&ValueFile>) -> Result<Vec<Option<usize>>> {
    let stage = setting.stage;
    let having = plan.layers_with(stage);
    let Some(items) = &setting.layers else {
        if !stage.info().per_layer || having.is_empty() {
            return Ok(vec![if stage.info().per_layer { Some(0) } else { None }]);
        }
        // Of a file with vectors for some layers, those.
        let listed: Vec<_> = having.into_iter().filter(|layer| given.is_none_or(|given| given.has(*layer))).map(Some).collect();
        return if listed.is_empty() { Err(Error::invalid("layers", "the file has values of none of them")) } else { Ok(listed) };
    };
    if !stage.info().per_layer {
        return Err(Error::invalid("layers", format!("the model has `{stage}` once, not per layer: leave @LAYERS out")));
    }
    let mut found = Vec::new();
    for item in items {
        match item {
            Item::One(position) => found.extend(places::layers(plan, &[*position])?),
            Item::Range(first, last) => {
                let last = last.unwrap_or(plan.num_layers.saturating_sub(1));
                let ends = [*first, last].map(|layer| Position::At(layer as i64));
                places::layers(plan, &ends)?;
                // A range takes what is there.
                found.extend((*first..=last).filter(|layer| having.contains(layer)));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found.into_iter().map(Some).collect())
}

/// The positions that `text` means in a prompt of `count` tokens: `0,3-5,8-,-1`. Those that it is too short for are left out.
///
/// # Errors
/// `Kind::Invalid` for what are no positions.
pub fn positions(text: &str, count: usize) -> Result<Vec<Span>> {
    let all = items(text).map_err(|what| Error::invalid("tokens", what))?;
    let one = |item: Item| match item {
        Item::One(position) => position.index(count).map(|i| (i, i)),
        Item::Range(first, last) => Some((first, last.unwrap_or(usize::MAX))),
    };
    Ok(all.into_iter().filter_map(one).collect())
}

/// Positions; those that count from the prompt's end need the prompt.
fn tokens(items: &[Item], prompt: Option<usize>) -> Result<Vec<Span>> {
    let one = |item: &Item| match (*item, prompt) {
        (Item::One(Position::At(n)), _) if n >= 0 => Ok((n as usize, n as usize)),
        (Item::One(position), Some(prompt)) => places::tokens(prompt, &[position]).map(|found| (found[0], found[0])),
        (Item::One(position), None) => Err(Error::invalid(
            "token",
            format!("{position} counts from the prompt's end, and there is no prompt yet: give positions from 0"),
        )),
        (Item::Range(first, last), _) => Ok((first, last.unwrap_or(usize::MAX))),
    };
    items.iter().map(one).collect()
}

fn span(item: Item, count: usize, what: &str) -> Result<Span> {
    match item {
        Item::Range(first, last) => Ok((first, last.unwrap_or(usize::MAX))),
        Item::One(Position::At(n)) if n >= 0 => Ok((n as usize, n as usize)),
        Item::One(position) => {
            let absent = || Error::invalid(what, format!("there are {count}, so there is no {what} {position}"));
            position.index(count).map(|i| (i, i)).ok_or_else(absent)
        }
    }
}

#[cfg(test)]
mod tests;
