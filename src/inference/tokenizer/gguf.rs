//! A tokenizer from the metadata of a GGUF file: the same pipeline of the `tokenizers` crate that a tokenizer.json of the
//! model would describe, built in memory. Names of kinds and pre-tokenizers are data, in `gguf/kinds.json`.
//!
//! What the metadata leaves open is filled in by convention, as in llama.cpp (`src/llama-vocab.cpp`):
//! - `tokenizer.ggml.model` names the algorithm. Pieces with scores (SentencePiece's BPE) have no merges there: two
//!   neighbours merge into the piece with the best score, so every way to split a piece in two known ones is a merge, in
//!   the order of scores. Spaces are ▁, one is put in front unless `add_space_prefix` is false, BOS is added unless
//!   `add_bos_token` is false, and characters without a piece are bytes. The kind by merges is the same without the two
//!   additions and with its own merges.
//! - Byte-level BPE has its merges, but of its pre-tokenizer only the name, `tokenizer.ggml.pre`; the patterns are those
//!   of the tokenizer.json files that the names stand for. Some of them take words that are in the vocabulary whole
//!   (`ignoreMerges`), and some add BOS unless told otherwise.
//! - NFC comes before the patterns where `tokenizer.ggml.normalizer.nfc` says so; in files from before that key, where the
//!   tokenizer.json of the pre-tokenizer's models has it (qwen2).
//! - Tokens of type control, unknown and user-defined are found in a text before anything else; unused ones never.
//! - Which tokens take the spaces after them is in no metadatum. In `phi3` files of pieces with scores they are those of the
//!   models' tokenizer.json; llama.cpp lets all special tokens of models with such a name take them.
//! - Tokens with certain texts (`<|eot_id|>`, `<|im_end|>`, …) end a generation in addition to the one that the file names.

mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};

use super::outline::{self, Outline};
use super::{TokenIds, Tokenizer, TokenizerConfig, failed, guarded};
use crate::error::{Error, Result};
use crate::formats::gguf::Metadata;

/// The metadatum with the architecture's name.
const ARCHITECTURE: &str = "general.architecture";
/// Longest piece with a score, in bytes: the work to find its merges grows with the square.
const PIECE: usize = 512;
/// The pattern of GPT-2, which several names use as a part.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The names that files use.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kinds {
    /// Values of `tokenizer.ggml.model`: pieces with scores,
    by_scores: Vec<String>,
    /// pieces with merges,
    by_merges: Vec<String>,
    /// and byte-level pieces with merges.
    byte_level: Vec<String>,
    /// Texts of tokens that end a generation.
    ends: Vec<String>,
    /// Beginnings of tokens that take the spaces after them, by architecture; of pieces with scores only.
    takes_spaces: BTreeMap<String, Vec<String>>,
    /// By architecture, the name of its models' pre-tokenizer where others stand for the same patterns.
    own_names: BTreeMap<String, String>,
    pre_tokenizers: Vec<PreTokenizer>,
}

/// What names of `tokenizer.ggml.pre` stand for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PreTokenizer {
    names: Vec<String>,
    /// Patterns, one after the other; "GPT-2" stands for that one.
    patterns: Vec<String>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    add_bos: bool,
    #[serde(default)]
    nfc: bool,
}

static KINDS: LazyLock<Result<Kinds>> =
    LazyLock::new(|| serde_json::from_str(include_str!("gguf/kinds.json")).map_err(|e| Error::format("kinds.json", e)));

impl Kinds {
    /// Whether `token`, in a file of `architecture` whose pieces have scores, takes the spaces after it.
    fn takes_spaces(&self, architecture: &str, token: &str) -> bool {
        self.takes_spaces.get(architecture).is_some_and(|list| list.iter().any(|beginning| token.starts_with(beginning)))
    }
}

/// How text becomes pieces.
enum Algorithm {
    Scores,
    Merges,
    ByteLevel(&'static PreTokenizer),
}

/// A metadatum of the tokenizer, with `tokenizer.ggml.` before its name.
fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn wrong(name: &str, problem: impl std::fmt::Display) -> Error {
    Error::tokenizer(format!("metadata `{}`: {problem}", key(name)))
}

/// The vocabulary as the file has it.
struct Vocabulary<'a> {
    tokens: &'a [String],
    /// One for each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    types: Vec<u8>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata.texts(&key("tokens"))?.ok_or_else(|| wrong("tokens", "is missing: the file has no vocabulary"))?;
        if let Some((id, token)) = (0u32..).zip(tokens).find(|(_, token)| token.len() > outline::TOKEN) {
            return Err(wrong("tokens", format!("token {id} has {} bytes, expected {} at most", token.len(), outline::TOKEN)));
        }
        let types = match metadata.numbers(&key("token_type"))? {
            None => vec![1; tokens.len()],
            Some(types) if types.len() == tokens.len() => {
                types.scalars().map(|kind| kind.unsigned().and_then(|kind| u8::try_from(kind).ok()).unwrap_or(0)).collect()
            }
            Some(types) => return Err(wrong("token_type", format!("lists {} types of {} tokens", types.len(), tokens.len()))),
        };
        Ok(Self { tokens, types })
    }
    fn iter(&self) -> impl Iterator<Item = (u32, &'a String, u8)> {
        (0u32..).zip(self.tokens).zip(&self.types).map(|((id, token), kind)| (id, token, *kind))
    }
    /// Ids by text; unused and empty tokens have none.
    fn ids(&self) -> HashMap<&'a str, u32> {
        let used = self.iter().filter(|(_, token, kind)| *kind != UNUSED && !token.is_empty());
        used.map(|(id, token, _)| (token.as_str(), id)).collect()
    }
    /// The text of the token that the metadatum `name` names.
    fn named(&self, metadata: &Metadata, name: &str) -> Result<Option<(u32, &'a str)>> {
        let Some(id) = metadata.unsigned(&key(name))? else { return Ok(None) };
        let found = u32::try_from(id).ok().and_then(|id| Some((id, self.tokens.get(id as usize)?.as_str())));
        found.map(Some).ok_or_else(|| wrong(name, format!("{id} is beyond the vocabulary of {}", self.tokens.len())))
    }
}

const NORMAL: u8 = 1;
const UNKNOWN: u8 = 2;
const CONTROL: u8 = 3;
const USER_DEFINED: u8 = 4;
const UNUSED: u8 = 5;
const BYTE: u8 = 6;

impl Tokenizer {
    /// The tokenizer that the metadata of a GGUF file describes.
    ///
    /// # Errors
    /// `Kind::Format` for metadata of another type; `Kind::Unsupported` for kinds and pre-tokenizers that are not known,
    /// by name; `Kind::Tokenizer` for a vocabulary that contradicts itself.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        guarded("the vocabulary of the GGUF file", || read(metadata))
    }
}

/// The chat template as tokenizer_config.json would have it: a text, or a list of named texts; `None` without one.
///
/// # Errors
/// `Kind::Format` for metadata of another type.
pub fn gguf_chat_template(metadata: &Metadata) -> Result<Option<Value>> {
    const KEY: &str = "tokenizer.chat_template";
    let main = metadata.text(KEY)?;
    let mut named = Vec::new();
    let mut seen = HashSet::new();
    // A name that is listed again would be the same text again.
    for name in metadata.texts("tokenizer.chat_templates")?.unwrap_or_default().iter().filter(|name| seen.insert(name.as_str())) {
        if let Some(text) = metadata.text(&format!("{KEY}.{name}"))? {
            named.push(json!({"name": name, "template": text}));
        }
    }
    if named.is_empty() {
        return Ok(main.map(Value::from));
    }
    if let Some(text) = main {
        named.insert(0, json!({"name": "default", "template": text}));
    }
    Ok(Some(named.into()))
}

fn read(metadata: &Metadata) -> Result<Tokenizer> {
    let kinds = KINDS.as_ref().map_err(Clone::clone)?;
    let algorithm = algorithm(kinds, metadata)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let ids = vocabulary.ids();
    let mut named_tokens = BTreeMap::new();
    for (name, of) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("seperator", "sep"), ("padding", "pad"), ("mask", "mask")] {
        if let Some((_, text)) = vocabulary.named(metadata, &format!("{name}_token_id"))? {
            named_tokens.insert(format!("{of}_token"), text.to_owned());
        }
    }
    let (bpe, dropped) = match &algorithm {
        Algorithm::Scores => (pieces(metadata, &vocabulary, &ids, by_scores(metadata, &vocabulary, &ids)?)?, 0),
        Algorithm::Merges => {
            let (merges, dropped) = merges(metadata, &ids)?;
            (pieces(metadata, &vocabulary, &ids, merges)?, dropped)
        }
        Algorithm::ByteLevel(pre) => {
            let (merges, dropped) = merges(metadata, &ids)?;
            (built(BpeBuilder::new().ignore_merges(pre.ignore_merges), &ids, merges)?, dropped)
        }
    };
    let form = serde_json::to_vec(&form(&algorithm, metadata, &vocabulary)?).map_err(|e| Error::tokenizer(e.to_string()))?;
    let outline = Outline::read(&form)?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&form).map_err(failed("the vocabulary of the GGUF file"))?;
    inner.with_model(bpe);
    let found = vocabulary.iter().filter(|(_, text, kind)| matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) && !text.is_empty());
    let architecture = metadata.text(ARCHITECTURE)?.filter(|_| matches!(algorithm, Algorithm::Scores)).unwrap_or_default();
    let added = found.map(|(_, text, kind)| {
        let takes_spaces = kinds.takes_spaces(architecture, text);
        AddedToken::from(text.as_str(), kind != USER_DEFINED).normalized(false).rstrip(takes_spaces)
    });
    inner.add_tokens(added.collect::<Vec<_>>()).map_err(failed("the special tokens of the GGUF file"))?;
    let ids = token_ids(kinds, metadata, &vocabulary)?;
    let config = TokenizerConfig::of_named(named_tokens);
    let mut tokenizer = Tokenizer::assemble(inner, &outline, &config, &ids, Vec::new())?;
    if matches!(algorithm, Algorithm::Scores) && equal_scores(metadata, &vocabulary)? {
        let key = key("scores");
        tokenizer.notes.push(format!(
            "metadata `{key}`: all pieces have the same score, so the file does not say in which order they are merged; ids may differ from those of the original model"
        ));
    }
    if dropped > 0 {
        let key = key("merges");
        tokenizer.notes.push(format!("metadata `{key}`: {dropped} merges of pieces that the vocabulary lacks are not used"));
    }
    Ok(tokenizer)
}

fn algorithm(kinds: &'static Kinds, metadata: &Metadata) -> Result<Algorithm> {
    let model = metadata.text(&key("model"))?.ok_or_else(|| wrong("model", "is missing: the file has no tokenizer"))?;
    let is = |names: &[String]| names.iter().any(|name| name == model);
    if is(&kinds.by_scores) {
        return Ok(Algorithm::Scores);
    }
    if is(&kinds.by_merges) {
        return Ok(Algorithm::Merges);
    }
    if !is(&kinds.byte_level) {
        let known: Vec<&str> = [&kinds.by_scores, &kinds.by_merges, &kinds.byte_level].into_iter().flatten().map(String::as_str).collect();
        let message = format!("metadata `{}`: {model:.40?} is not supported (supported: {})", key("model"), known.join(", "));
        return Err(Error::unsupported(message));
    }
    let name = metadata.text(&key("pre"))?.ok_or_else(|| {
        wrong("pre", "is missing, so how text is split is not known: the file is from an old converter; convert the model again")
    })?;
    let found = kinds.pre_tokenizers.iter().find(|pre| pre.names.iter().any(|known| known == name));
    found.map(Algorithm::ByteLevel).ok_or_else(|| {
        let known = kinds.pre_tokenizers.iter().flat_map(|pre| pre.names.iter().map(String::as_str));
        let near = crate::error::nearest(name, known).join(", ");
        let message = format!("metadata `{}`: the pre-tokenizer {name:.40?} is not supported (nearest: {near})", key("pre"));
        Error::unsupported(message)
    })
}

/// The parts of a tokenizer.json around its vocabulary.
fn form(algorithm: &Algorithm, metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Value> {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prefix = metadata.flag(&key("add_space_prefix"))?.unwrap_or(matches!(algorithm, Algorithm::Scores));
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let (normalizer, splitter, decoder) = match algorithm {
        Algorithm::ByteLevel(pre) => {
            let split = |pattern: &String| {
                let pattern = if pattern == "GPT-2" { GPT2 } else { pattern };
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            };
            let parts: Vec<Value> = pre.patterns.iter().map(split).chain([level.clone()]).collect();
            let nfc = metadata.flag(&key("normalizer.nfc"))?.unwrap_or(pre.nfc);
            let normalizer = if nfc { json!({"type": "NFC"}) } else { Value::Null };
            (normalizer, json!({"type": "Sequence", "pretokenizers": parts}), level)
        }
        _ => {
            let before = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
            let normalizers: Vec<Value> = before.into_iter().chain([replace(" ", "▁")]).collect();
            let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
            if prefix {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            let sequence = json!({"type": "Sequence", "normalizers": normalizers});
            (sequence, Value::Null, json!({"type": "Sequence", "decoders": decoders}))
        }
    };
    Ok(json!({
        "version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": splitter, "decoder": decoder,
        "post_processor": template(algorithm, metadata, vocabulary)?, "model": {"type": "BPE", "vocab": {}, "merges": []},
    }))
}

/// What is put around a text: BOS before it, EOS after it.
fn template(algorithm: &Algorithm, metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Value> {
    let adds_bos = match algorithm {
        Algorithm::Scores | Algorithm::Merges => true,
        Algorithm::ByteLevel(pre) => pre.add_bos,
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let (mut single, mut special) = (vec![text.clone()], serde_json::Map::new());
    for (flag, default, token) in [("add_bos_token", adds_bos, "bos_token_id"), ("add_eos_token", false, "eos_token_id")] {
        if !metadata.flag(&key(flag))?.unwrap_or(default) {
            continue;
        }
        let Some((id, text)) = vocabulary.named(metadata, token)? else {
            return Err(wrong(token, format!("is missing, and `{}` needs it", key(flag))));
        };
        let piece = json!({"SpecialToken": {"id": text, "type_id": 0}});
        special.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        if token == "bos_token_id" { single.insert(0, piece) } else { single.push(piece) }
    }
    if metadata.flag(&key("add_sep_token"))? == Some(true) {
        return Err(Error::unsupported(format!("metadata `{}`: a separator after each text is not supported", key("add_sep_token"))));
    }
    if special.is_empty() {
        return Ok(Value::Null);
    }
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": [text, text], "special_tokens": special}))
}

fn token_ids(kinds: &Kinds, metadata: &Metadata, vocabulary: &Vocabulary) -> Result<TokenIds> {
    let id = |name: &str| Ok::<_, Error>(vocabulary.named(metadata, name)?.map(|(id, _)| id));
    let mut eos = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(id(name)?);
    }
    let ends: HashSet<&str> = kinds.ends.iter().map(String::as_str).collect();
    let by_text = vocabulary.iter().filter(|(_, text, kind)| matches!(*kind, CONTROL | USER_DEFINED) && ends.contains(text.as_str()));
    eos.extend(by_text.map(|(id, _, _)| id));
    let mut seen = HashSet::new();
    eos.retain(|id| seen.insert(*id));
    Ok(TokenIds { bos: id("bos_token_id")?, eos, pad: id("padding_token_id")? })
}

type Merges = Vec<(String, String)>;

/// The merges of the file, and how many of them are of no use.
fn merges(metadata: &Metadata, ids: &HashMap<&str, u32>) -> Result<(Merges, usize)> {
    let lines = metadata.texts(&key("merges"))?.ok_or_else(|| wrong("merges", "is missing"))?;
    let mut merges = Vec::with_capacity(lines.len());
    let mut joined = String::new();
    for line in lines {
        // A piece may be a space itself, so the separating one is not the first character.
        let at = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let Some((first, second)) = at.and_then(|at| Some((line.get(..at)?, line.get(at + 1..)?))) else {
            return Err(wrong("merges", format!("{line:.60?} is no pair of pieces")));
        };
        joined.clear();
        joined.extend([first, second]);
        if [first, second, joined.as_str()].iter().all(|piece| ids.contains_key(piece)) {
            merges.push((first.to_owned(), second.to_owned()));
        }
    }
    let dropped = lines.len() - merges.len();
    Ok((merges, dropped))
}

/// Whether all pieces have one score, as converters write that know none.
fn equal_scores(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<bool> {
    let Some(scores) = metadata.numbers(&key("scores"))? else { return Ok(false) };
    let mut of_pieces =
        vocabulary.iter().zip(scores.scalars()).filter(|((_, token, kind), _)| *kind == NORMAL && token.chars().count() > 1);
    let Some((_, first)) = of_pieces.next() else { return Ok(false) };
    let mut more = of_pieces.map(|(_, score)| score.number()).peekable();
    Ok(more.peek().is_some() && more.all(|score| score == first.number()))
}

/// The merges that pieces with scores stand for: every split of a piece into two others, the best pieces first. Of equal
/// scores the piece with the lower id comes first, and of one piece's splits the one whose parts have lower ids.
fn by_scores(metadata: &Metadata, vocabulary: &Vocabulary, ids: &HashMap<&str, u32>) -> Result<Merges> {
    let scores = metadata.numbers(&key("scores"))?.ok_or_else(|| wrong("scores", "is missing"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(wrong("scores", format!("lists {} scores of {} tokens", scores.len(), vocabulary.tokens.len())));
    }
    let normal = |id: u32| vocabulary.types.get(id as usize).is_some_and(|kind| *kind == NORMAL);
    let part = |text: &str| ids.get(text).copied().filter(|id| normal(*id));
    let mut found = Vec::new();
    for ((id, token, kind), score) in vocabulary.iter().zip(scores.scalars()) {
        if kind != NORMAL {
            continue;
        }
        let score = score.number().filter(|score| !score.is_nan());
        let score = score.ok_or_else(|| wrong("scores", format!("the score of token {id} is no number")))?;
        if token.len() > PIECE {
            return Err(wrong("tokens", format!("piece {id} has {} bytes, expected {PIECE} at most", token.len())));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (first, second) = token.split_at(at);
            if let (Some(a), Some(b)) = (part(first), part(second)) {
                found.push((score, id, a, b, first, second));
            }
        }
    }
    found.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2, x.3).cmp(&(y.1, y.2, y.3))));
    Ok(found.into_iter().map(|(.., first, second)| (first.to_owned(), second.to_owned())).collect())
}

/// The model of pieces that are no bytes: what has no piece is spelled in byte pieces, or is the unknown token.
fn pieces(metadata: &Metadata, vocabulary: &Vocabulary, ids: &HashMap<&str, u32>, merges: Merges) -> Result<BPE> {
    let mut builder = BpeBuilder::new().fuse_unk(true).byte_fallback(vocabulary.types.contains(&BYTE) || ids.contains_key("<0x00>"));
    let of_type =
        || vocabulary.iter().find(|(_, text, kind)| *kind == UNKNOWN || *text == "<unk>").map(|(id, text, _)| (id, text.as_str()));
    if let Some((id, unknown)) = vocabulary.named(metadata, "unknown_token_id")?.or_else(of_type) {
        if unknown.len() > outline::REPEATED {
            let problem = format!("the unknown token, {id}, has {} bytes, expected {} at most", unknown.len(), outline::REPEATED);
            return Err(wrong("tokens", problem));
        }
        builder = builder.unk_token(unknown.to_owned());
    }
    built(builder, ids, merges)
}

fn built(builder: BpeBuilder, ids: &HashMap<&str, u32>, merges: Merges) -> Result<BPE> {
    let vocab: Vocab = ids.iter().map(|(text, id)| ((*text).to_owned(), *id)).collect();
    builder.vocab_and_merges(vocab, merges).build().map_err(failed("the vocabulary of the GGUF file"))
}
