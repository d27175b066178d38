//! The tokens that a model's small files name: tokenizer_config.json, special_tokens_map.json and added_tokens.json, read
//! and added to the vocabulary as transformers does it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, PostProcessor, PreTokenizerWrapper};

use super::outline::{self, Outline};
use crate::error::{Error, Result};
use crate::json;

/// The named tokens that transformers knows, in the order in which it adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Values of `tokenizer_class` for which transformers 5 builds its own pipeline from the vocabulary, so that normalizer,
/// pre-tokenizer and decoder of tokenizer.json have no effect there; but it takes a byte-level file as it is.
const REBUILT: &str = include_str!("rebuilt.txt");

/// Those for which its own pipeline is that of GPT-2, also for a byte-level file that splits text otherwise first, as
/// SmolLM2's, which takes digits apart.
const REBUILT_AS_GPT2: [&str; 5] = ["CodeGenTokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer", "RobertaTokenizer", "WhisperTokenizer"];

/// Those for which `add_prefix_space` of tokenizer_config.json, false by default, decides whether a byte-level pre-tokenizer puts
/// a blank before a text, whatever tokenizer.json says.
const PREFIXED: &str = include_str!("prefixed.txt");

/// The one for which the post-processor of tokenizer.json is dropped.
const UNPROCESSED: &str = "GPTNeoXTokenizer";

/// The key of further special tokens by name.
const SPECIFIC: &str = "model_specific_special_tokens";

/// Notes of one kind that are given in full.
const NOTES: usize = 8;

/// What Doppler reads of tokenizer_config.json and its companions. The default stands for missing files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerConfig {
    /// Texts of the named special tokens that are set: `bos_token`, `eos_token`, `pad_token`, ….
    pub named_tokens: BTreeMap<String, String>,
    /// `chat_template` as it stands there: a text, or a list of named texts.
    pub chat_template: Option<Value>,
    /// Tokens with the ids that the files give them, which may differ from those that they get.
    added: BTreeMap<u64, AddedToken>,
    /// The named tokens, then `extra_special_tokens`, with their properties, in the order in which they are added.
    special: Vec<AddedToken>,
    /// Whether `added` is `added_tokens_decoder`, which stands for the tokens of tokenizer.json too.
    lists_all: bool,
    /// `tokenizer_class`, without the `Fast` at its end.
    class: String,
    /// `add_prefix_space`.
    prefix_space: bool,
    /// `split_special_tokens`: whether special tokens in a text are text.
    splits_special: bool,
}

impl TokenizerConfig {
    /// The named special tokens alone.
    pub(super) fn of_named(named_tokens: BTreeMap<String, String>) -> Self {
        Self { named_tokens, ..Self::default() }
    }

    /// Reads tokenizer_config.json, special_tokens_map.json and added_tokens.json, in this order; each may be missing.
    /// As in transformers, the other two have no effect where tokenizer_config.json has `added_tokens_decoder`.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if one of them is not a JSON object.
    pub fn from_files([config, special_tokens_map, added_tokens]: [Option<&str>; 3]) -> Result<Self> {
        let mut keys = object("tokenizer_config.json", config)?;
        // As in transformers, other tokens of this file with a name replace this list.
        let specific = keys.shift_remove(SPECIFIC);
        if named(&keys).iter().all(|(name, _)| NAMED.contains(&name.as_str())) {
            keys.extend(specific.map(|value| (SPECIFIC.to_owned(), value)));
        }
        let mut added = BTreeMap::new();
        let lists_all = keys.contains_key("added_tokens_decoder");
        if let Some(Value::Object(tokens)) = keys.get("added_tokens_decoder") {
            for (id, token) in tokens {
                if let (Ok(id), Some(token)) = (id.parse(), token_of(token, false)) {
                    added.insert(id, token);
                }
            }
        } else {
            for (key, value) in object("special_tokens_map.json", special_tokens_map)? {
                match (keys.get_mut(&key), value) {
                    (Some(Value::Array(known)), Value::Array(more)) if key == "extra_special_tokens" => known.extend(more),
                    (_, value) => drop(keys.insert(key, value)),
                }
            }
            let special: BTreeSet<String> =
                named(&keys).into_iter().map(|(_, token)| token).chain(extra(&keys)).map(|t| t.content).collect();
            for (text, id) in object("added_tokens.json", added_tokens)? {
                if let Some(id) = id.as_u64() {
                    let is_special = special.contains(&text);
                    added.insert(id, AddedToken::from(text, is_special));
                }
            }
        }
        let named = named(&keys);
        let named_tokens = named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect();
        let special = named.into_iter().map(|(_, token)| token).chain(extra(&keys)).collect();
        let class = keys.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let class = class.strip_suffix("Fast").unwrap_or(class);
        let class = class.to_owned();
        let chat_template = keys.get("chat_template").filter(|value| !value.is_null()).cloned();
        let flag = |key: &str| keys.get(key).and_then(Value::as_bool).unwrap_or(false);
        let (prefix_space, splits_special) = (flag("add_prefix_space"), flag("split_special_tokens"));
        Ok(Self { named_tokens, chat_template, added, special, lists_all, class, prefix_space, splits_special })
    }

    /// Reads tokenizer_config.json alone. A token may be a text or an object with `content`.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if `json` is not a JSON object.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(json).map_err(|e| Error::tokenizer(format!("tokenizer_config.json: {e}")))?;
        Self::from_files([Some(text), None, None])
    }

    /// Adds the tokens that `tokenizer` lacks, as transformers does: in the order of the ids that the files give, then the
    /// special ones, each with the next free id. Notes say where a token gets another id than its file gives it.
    pub(super) fn add_to(&self, tokenizer: &mut tokenizers::Tokenizer, outline: &Outline) -> Result<Vec<String>> {
        let known = tokenizer.get_added_tokens_decoder();
        let mut texts: BTreeSet<String> = known.values().map(|token| token.content.clone()).collect();
        let named: BTreeSet<&String> = self.named_tokens.values().collect();
        let mut listed = self.added.clone();
        if !self.lists_all {
            listed.extend(known.iter().map(|(id, token)| (u64::from(*id), token.clone())));
        }
        let mut tokens: Vec<AddedToken> = listed.into_values().collect();
        texts.extend(tokens.iter().map(|token| token.content.clone()));
        for token in &self.special {
            if texts.insert(token.content.clone()) {
                tokens.push(token.clone());
            }
        }
        for token in &mut tokens {
            token.special |= named.contains(&token.content);
        }
        let longest = tokens.iter().map(|token| token.content.len()).max().unwrap_or(0);
        if longest > outline::TOKEN {
            let most = outline::TOKEN;
            return Err(Error::tokenizer(format!("tokenizer_config.json: a token has {longest} bytes, expected {most} at most")));
        }
        outline.check_added(tokens.iter().filter(|token| token.normalized).map(|token| token.content.len()))?;
        let unknown: Vec<String> = tokens.iter().map(|t| t.content.clone()).filter(|text| tokenizer.token_to_id(text).is_none()).collect();
        let failed = |e| Error::tokenizer(format!("tokenizer_config.json: its tokens cannot be added: {e}"));
        tokenizer.add_tokens(tokens).map_err(failed)?;
        tokenizer.set_encode_special_tokens(self.splits_special);
        let mut notes = self.pipeline_notes(tokenizer, outline);
        notes.extend(self.id_notes(tokenizer, &unknown));
        Ok(notes)
    }

    /// Where transformers 5 builds another pipeline than tokenizer.json describes.
    fn pipeline_notes(&self, tokenizer: &tokenizers::Tokenizer, outline: &Outline) -> Vec<String> {
        let class = self.class.as_str();
        let mut notes = Vec::new();
        let byte_level = outline.is_byte_level();
        let rebuilt = match byte_level {
            false => REBUILT.lines().any(|line| line == class),
            true => REBUILT_AS_GPT2.contains(&class) && !matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(_))),
        };
        if rebuilt {
            notes.push(format!(
                "tokenizer_config.json: `tokenizer_class` is `{class}`, for which transformers 5 builds a pipeline of its own from the vocabulary; ids here are those of tokenizer.json, and may differ"
            ));
        }
        let prefixed = byte_level && PREFIXED.lines().any(|line| line == class);
        match (self.prefix_space, outline.puts_blank_first()) {
            (true, false) if prefixed => notes.push(format!(
                "tokenizer_config.json: `add_prefix_space` is true, so transformers 5 puts a blank before a text for the class `{class}`; tokenizer.json puts none, and is followed"
            )),
            (false, true) if prefixed => notes.push(format!(
                "tokenizer_config.json: `add_prefix_space` is not true, so transformers 5 puts no blank before a text for the class `{class}`; tokenizer.json puts one, and is followed"
            )),
            _ => {}
        }
        let processed = tokenizer.get_post_processor().is_some_and(|processor| processor.added_tokens(false) > 0);
        if class == UNPROCESSED && processed {
            notes.push(format!(
                "tokenizer_config.json: `tokenizer_class` is `{class}`, for which transformers 5 drops the post-processor of tokenizer.json, whatever `add_bos_token` says; here it adds its special tokens to a text"
            ));
        }
        if self.splits_special {
            notes.push("tokenizer_config.json: `split_special_tokens` is true, so special tokens in a text, also of a chat template, are spelled like other text, as in transformers".into());
        }
        notes
    }

    /// Where a token gets another id than its file gives it, or is in no file. `unknown` were in no vocabulary before.
    fn id_notes(&self, tokenizer: &tokenizers::Tokenizer, unknown: &[String]) -> Vec<String> {
        let moved = self.added.iter().filter_map(|(id, token)| {
            let got = tokenizer.token_to_id(&token.content).filter(|got| u64::from(*got) != *id)?;
            Some(format!(
                "tokenizer_config.json or added_tokens.json gives the token {:?} the id {id}, but it has the id {got}, as in transformers",
                token.content
            ))
        });
        let listed: HashSet<&str> = self.added.values().map(|token| token.content.as_str()).collect();
        let fresh = unknown.iter().filter(|text| !listed.contains(text.as_str())).map(|text| {
            let id = tokenizer.token_to_id(text).unwrap_or_default();
            format!("the special token {text:?} is in no vocabulary and gets the next free id, {id}, as in transformers")
        });
        let (mut notes, fresh) = (few(moved), few(fresh));
        notes.extend(fresh);
        notes
    }
}

/// The first of `notes`, and how many more there are: a file may give a hundred thousand.
fn few(mut notes: impl Iterator<Item = String>) -> Vec<String> {
    let mut first: Vec<String> = notes.by_ref().take(NOTES).collect();
    let more = notes.count();
    if let (Some(last), 1..) = (first.last_mut(), more) {
        last.push_str(&format!(" (and {more} tokens more likewise)"));
    }
    first
}

/// The keys of a JSON object, as Python's `json` reads it; none for a missing file.
fn object(file: &str, text: Option<&str>) -> Result<Map<String, Value>> {
    let Some(text) = text else { return Ok(Map::new()) };
    match json::parse(file, text).map_err(|e| Error::tokenizer(format!("{} (expected a JSON object)", e.message)))? {
        Value::Object(keys) => Ok(keys),
        _ => Err(Error::tokenizer(format!("{file}: expected a JSON object"))),
    }
}

/// A token that is a text, or an object with `content` and properties.
fn token_of(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = special || flag("special", false);
    Some(AddedToken {
        content: value.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

/// The named tokens: those that transformers knows, then others, such as `image_token`, or those of
/// `model_specific_special_tokens`.
fn named(keys: &Map<String, Value>) -> Vec<(String, AddedToken)> {
    let known = NAMED.iter().filter_map(|name| Some(((*name).to_owned(), token_of(keys.get(*name)?, true)?)));
    let others = keys.iter().filter(|(name, _)| name.ends_with("_token") && !NAMED.contains(&name.as_str()));
    let others = others.filter_map(|(name, value)| Some((name.clone(), token_of(value, true)?)));
    let by_name = |key: &str| keys.get(key).and_then(Value::as_object).into_iter().flatten();
    let token = |(name, value): (&String, &Value)| Some((name.clone(), token_of(value, true)?));
    let listed = ["extra_special_tokens", SPECIFIC].into_iter().flat_map(by_name).filter_map(token);
    known.chain(others).chain(listed).collect()
}

/// `extra_special_tokens`, formerly `additional_special_tokens`.
fn extra(keys: &Map<String, Value>) -> Vec<AddedToken> {
    let list = |key: &str| keys.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    let given = keys.get("extra_special_tokens").is_some_and(|value| value.as_object().is_some_and(|map| !map.is_empty()));
    let list = list("extra_special_tokens").or_else(|| list("additional_special_tokens").filter(|_| !given));
    list.into_iter().flatten().filter_map(|token| token_of(token, true)).collect()
}
