//! A tokenizer as the metadata of a GGUF file: the inverse of reading one. A pipeline is recognised part by part; what the
//! format has no word for is an error. What was written is then read back and held against the original.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};
use tokenizers::{ModelWrapper, NormalizedString, Normalizer};

use super::{BYTE, CONTROL, GPT2, KINDS, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, by_scores, key};
use crate::error::{Error, Result};
use crate::formats::gguf::Metadata;
use crate::inference::tokenizer::Tokenizer;

/// Pieces whose texts are tried.
const TRIED: usize = 6000;
/// Texts that tell pipelines apart.
const TEXTS: [&str; 12] = [
    "Hello, world!  It's 12345 o'clock; we'll see.\n",
    "  leading and trailing  ",
    "a\n\n\nb\r\n\tc   d\u{a0}e\u{3000}f",
    "don't DON'T I'LL they've 'tis",
    "naïve café e\u{301}a\u{30a}\u{1e0b}\u{323} Ångström ﬁn",
    "世界 こんにちは 안녕하세요 مرحبا हिन्दी",
    "😀👩‍👩‍👧 \u{10ffff}\0 \u{200b}|",
    "x = foo_bar(3.14, \"q\") != 1e-6; // 日本",
    "1234567890 1,000,000 ½ ² ٣",
    "▁▁ ▁▁▁a▁ <0x0A> <s>",
    "ABCdefGHI camelCase SNAKE_CASE http://example.org/?q=1&r=2",
    "",
];

/// The parts of a serialised pipeline.
struct Parts {
    normalizer: Value,
    splitter: Value,
    decoder: Value,
    model: Value,
}

fn cannot(what: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("the tokenizer cannot be expressed in a GGUF file: {what}"))
}

/// The elements of a sequence under `key`; those of another part are the part alone, and of null none.
fn sequence(part: &Value, key: &str) -> Vec<Value> {
    match (part, part.get(key).and_then(Value::as_array)) {
        (Value::Null, _) => Vec::new(),
        (_, Some(list)) => list.clone(),
        (part, None) => vec![part.clone()],
    }
}

/// Regular expressions with line ends as escapes.
fn pattern(text: &str) -> String {
    text.replace('\r', "\\r").replace('\n', "\\n")
}

impl Tokenizer {
    /// The metadata of a GGUF file of `architecture` whose table of embeddings has `rows` rows; ids without a token are unused
    /// ones.
    ///
    /// # Errors
    /// `Kind::Unsupported` for a pipeline, a vocabulary or tokens that the format has no words for.
    pub fn to_gguf(&self, rows: usize, architecture: &str) -> Result<Metadata> {
        let parts = self.parts()?;
        let scored = parts.decoder.to_string().contains("\"ByteFallback\"");
        let (tokens, types) = self.vocabulary(rows, &parts.model, if scored { architecture } else { "" })?;
        let mut out = Metadata::default();
        out.set(key("tokens"), tokens.clone());
        out.set(key("token_type"), &types.iter().map(|kind| i32::from(*kind)).collect::<Vec<_>>()[..]);
        let unknown = parts.model["unk_token"].as_str().map(str::to_owned);
        if scored {
            self.pieces(&parts, &tokens, &types, &mut out)?;
        } else {
            byte_level(&parts, architecture, &mut out)?;
        }
        self.ids(unknown.as_deref(), &mut out)?;
        let (bos, eos) = self.around()?;
        out.set(key("add_bos_token"), bos);
        out.set(key("add_eos_token"), eos);
        Ok(out)
    }

    /// What differs from `back`, which was read from the metadata that stand for this one: a note for an end of generation
    /// that the format adds.
    ///
    /// # Errors
    /// `Kind::Unsupported` where a text becomes other ids, or ids another text.
    pub fn compare(&self, back: &Tokenizer) -> Result<Vec<String>> {
        let differs = |text: &str, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            cannot(format!("read back, {text:?} becomes {found:?}, expected {expected:?}"))
        };
        let (ours, theirs) = (self.inner.get_vocab(true), back.inner.get_vocab(true));
        if let Some((text, id)) = ours.iter().find(|(text, id)| theirs.get(*text) != Some(*id)) {
            return Err(differs(text, &theirs.get(text), &id));
        }
        for text in self.probes() {
            for special in [false, true] {
                let (found, expected) = (back.encode(&text, special), self.encode(&text, special));
                let (Ok(found), Ok(expected)) = (found, expected) else { continue };
                if found != expected {
                    return Err(differs(&text, &found, &expected));
                }
                // Which control tokens a text hides is not in the format, and changes no id.
                let (again, wanted) = (back.decode(&found, false)?, self.decode(&expected, false)?);
                if again != wanted {
                    return Err(differs(&format!("{expected:?}"), &again, &wanted));
                }
            }
        }
        for name in ["bos_token", "eos_token"] {
            let (found, expected) = (back.named_tokens.get(name), self.named_tokens.get(name));
            if expected.is_some() && found != expected {
                return Err(differs(name, &found, &expected));
            }
        }
        if let Some(id) = self.eos.iter().find(|id| !back.eos.contains(id)) {
            return Err(cannot(format!("it has more ids that end a generation than there are keys for, {:?}; {id} is lost", self.eos)));
        }
        let more: Vec<String> = back.eos.iter().filter(|id| !self.eos.contains(id)).map(|id| self.token_text(*id)).collect();
        let note =
            format!("a GGUF file's reader ends a generation at {} too, by convention; this model's files do not say so", more.join(", "));
        Ok(if more.is_empty() { Vec::new() } else { vec![note] })
    }

    fn parts(&self) -> Result<Parts> {
        let value = |part: serde_json::Result<Value>| part.map_err(|e| Error::tokenizer(e.to_string()));
        let ModelWrapper::BPE(model) = self.inner.get_model() else {
            return Err(cannot("its model is not BPE, with merges or with scores that stand for them"));
        };
        let parts = Parts {
            normalizer: value(serde_json::to_value(self.inner.get_normalizer()))?,
            splitter: value(serde_json::to_value(self.inner.get_pre_tokenizer()))?,
            decoder: value(serde_json::to_value(self.inner.get_decoder()))?,
            model: value(serde_json::to_value(model))?,
        };
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if parts.model[name].as_str().is_some_and(|text| !text.is_empty()) {
                return Err(cannot(format!("its model has a `{name}`")));
            }
        }
        Ok(parts)
    }

    /// Text and type of each id below `rows`.
    fn vocabulary(&self, rows: usize, model: &Value, architecture: &str) -> Result<(Vec<String>, Vec<u8>)> {
        if self.vocab_size as usize > rows {
            return Err(cannot(format!("it has {} ids, the model's table only {rows} rows", self.vocab_size)));
        }
        let fallback = model["byte_fallback"] == true;
        let added = self.inner.get_added_tokens_decoder();
        for (id, token) in &added {
            let mut normalized = NormalizedString::from(token.content.as_str());
            let changed = match self.inner.get_normalizer().filter(|_| token.normalized) {
                Some(normalizer) => normalizer.normalize(&mut normalized).is_err() || normalized.get() != token.content,
                None => false,
            };
            let rstrip = KINDS.as_ref().map_err(Clone::clone)?.takes_spaces(architecture, &token.content);
            if token.lstrip || token.rstrip != rstrip || token.single_word || changed {
                let message = format!("token {id}, {:?}, takes the spaces around it, or is found in normalised text only", token.content);
                return Err(cannot(message));
            }
        }
        let unknown = model["unk_token"].as_str();
        let (mut tokens, mut types, mut seen) = (Vec::with_capacity(rows), Vec::with_capacity(rows), HashSet::new());
        for id in 0..u32::try_from(rows).unwrap_or(u32::MAX) {
            let text = self.inner.id_to_token(id);
            let kind = match (&text, added.get(&id)) {
                (None, _) => UNUSED,
                (Some(text), Some(token)) if token.special && unknown == Some(text) => UNKNOWN,
                (_, Some(token)) if token.special => CONTROL,
                (_, Some(_)) => USER_DEFINED,
                (Some(text), _) if fallback && is_byte(text) => BYTE,
                _ => NORMAL,
            };
            let text = text.unwrap_or_else(|| format!("[PAD{id}]"));
            if kind != UNUSED && !seen.insert(text.clone()) {
                return Err(cannot(format!("two of its tokens are {text:?}")));
            }
            tokens.push(text);
            types.push(kind);
        }
        Ok((tokens, types))
    }

    /// Pieces that are no bytes, as SentencePiece has them: merges become scores.
    fn pieces(&self, parts: &Parts, tokens: &[String], types: &[u8], out: &mut Metadata) -> Result<()> {
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let spaces = replace(" ", "▁");
        let prefix = match &sequence(&parts.normalizer, "normalizers")[..] {
            [only] if *only == spaces => false,
            [first, second] if *first == json!({"type": "Prepend", "prepend": "▁"}) && *second == spaces => true,
            _ => return Err(cannot(format!("its normalizer is {:.200}", parts.normalizer.to_string()))),
        };
        // Behind such a normalizer no space is left to split at.
        let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        if !parts.splitter.is_null() && parts.splitter != split {
            return Err(cannot(format!("its pre-tokenizer is {:.200}", parts.splitter.to_string())));
        }
        let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        if sequence(&parts.decoder, "decoders") != decoders {
            return Err(cannot(format!("its decoder is {:.200}", parts.decoder.to_string())));
        }
        if parts.model["byte_fallback"] != true || parts.model["fuse_unk"] != true || parts.model["ignore_merges"] == true {
            return Err(cannot("its model is without byte_fallback or fuse_unk, or ignores merges"));
        }
        let kinds = KINDS.as_ref().map_err(Clone::clone)?;
        out.set(key("pre"), "default");
        out.set(key("add_space_prefix"), prefix);
        let merges = merges(&parts.model)?;
        let vocabulary = Vocabulary { tokens, types: types.to_vec() };
        if let Some(scores) = scores(&merges, tokens, types) {
            out.set(key("scores"), &scores[..]);
            if by_scores(out, &vocabulary, &vocabulary.ids())? == merges {
                out.set(key("model"), kind(&kinds.by_scores)?);
                return Ok(());
            }
            out.remove(&key("scores"));
        }
        // Merges that no scores stand for: a newer kind has them as they are.
        out.set(key("model"), kind(&kinds.by_merges)?);
        out.set(key("merges"), lines(&merges));
        Ok(())
    }

    /// The ids of tokens with a part to play.
    fn ids(&self, unknown: Option<&str>, out: &mut Metadata) -> Result<()> {
        let mut set = |name: &str, id: Option<u32>| {
            if let Some(id) = id {
                out.set(key(name), id);
            }
        };
        let named = |name: &str| self.named_tokens.get(name).and_then(|text| self.inner.token_to_id(text));
        set("bos_token_id", self.bos());
        set("unknown_token_id", unknown.and_then(|text| self.inner.token_to_id(text)).or_else(|| named("unk_token")));
        set("padding_token_id", self.pad());
        set("seperator_token_id", named("sep_token"));
        set("mask_token_id", named("mask_token"));
        // The one that templates know comes first.
        let first = named("eos_token").or(self.eos.first().copied());
        let rest = self.eos.iter().copied().filter(|id| Some(*id) != first);
        let known = KINDS.as_ref().map_err(Clone::clone)?;
        let by_text = |id: &u32| self.inner.id_to_token(*id).is_some_and(|text| known.ends.contains(&text));
        // Those that readers know by their texts need no key.
        let (by_text, rest): (Vec<u32>, Vec<u32>) = rest.partition(by_text);
        let all: Vec<u32> = first.into_iter().chain(rest).chain(by_text).collect();
        for (name, id) in ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().zip(all) {
            set(name, Some(id));
        }
        Ok(())
    }

    /// Whether BOS is put before a text, and EOS after it.
    fn around(&self) -> Result<(bool, bool)> {
        let (bare, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let at = whole.windows(bare.len().max(1)).position(|part| part == bare);
        let at = at.ok_or_else(|| cannot("what it adds to a text changes the text's own ids"))?;
        let (before, after) = (&whole[..at], &whole[at + bare.len()..]);
        let bos = before.is_empty() || (before.len() == 1 && before.first().copied() == self.bos());
        let first = self.named_tokens.get("eos_token").and_then(|text| self.inner.token_to_id(text)).or(self.eos.first().copied());
        let eos = after.is_empty() || (after.len() == 1 && after.first().copied() == first);
        if !bos || !eos {
            return Err(cannot(format!("it puts {before:?} before a text and {after:?} after it; expected BOS, EOS or nothing")));
        }
        Ok((!before.is_empty(), !after.is_empty()))
    }

    /// Texts that should become the same ids: fixed ones, those of pieces, and those around tokens found in texts.
    fn probes(&self) -> Vec<String> {
        let step = (self.vocab_size as usize / TRIED).max(1);
        let pieces: Vec<String> = (0..self.vocab_size).step_by(step).filter_map(|id| self.decode(&[id], false).ok()).collect();
        let added = self.inner.get_added_tokens_decoder();
        let added: BTreeMap<&u32, &str> = added.iter().map(|(id, token)| (id, token.content.as_str())).collect();
        let around = added.values().take(64).map(|text| format!("a {text} b{text}\n{text}{text}c"));
        let fixed = TEXTS.iter().map(|text| (*text).to_owned());
        // Several pieces in a row, so that each is met in another place than at the beginning.
        let rows = pieces.chunks(7).map(|chunk| chunk.concat()).chain(pieces.chunks(5).map(|chunk| chunk.join(" ")));
        fixed.chain(around).chain(rows).collect()
    }
}

fn is_byte(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// The name of a kind of vocabulary.
fn kind(names: &[String]) -> Result<&str> {
    names.first().map(String::as_str).ok_or_else(|| cannot("this kind of vocabulary has no name"))
}

/// Merges as files have them.
fn lines(merges: &[(String, String)]) -> Vec<String> {
    merges.iter().map(|(first, second)| format!("{first} {second}")).collect()
}

/// Scores of pieces in the order of their first merges, exact up to 2^24 pieces; `None` where the merges that make a piece are
/// not one after the other. What is no piece has no score.
fn scores(merges: &[(String, String)], tokens: &[String], types: &[u8]) -> Option<Vec<f32>> {
    const LAST: f32 = -1e6;
    let ids: HashMap<&str, usize> = tokens.iter().zip(0..).map(|(text, id)| (text.as_str(), id)).collect();
    let mut scores: Vec<f32> = types.iter().map(|kind| if *kind == NORMAL { LAST } else { 0.0 }).collect();
    let (mut rank, mut last) = (0.0f32, usize::MAX);
    for (first, second) in merges {
        let id = *ids.get([first.as_str(), second.as_str()].concat().as_str())?;
        if id != last {
            rank -= 1.0;
            let score = scores.get_mut(id).filter(|score| **score == LAST)?;
            *score = rank;
            last = id;
        }
    }
    Some(scores)
}

/// The merges of a serialised BPE, best first.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Value| match merge {
        Value::Array(pair) => match &pair[..] {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        Value::String(line) => line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        _ => None,
    };
    let list = model["merges"].as_array().and_then(|list| list.iter().map(pair).collect::<Option<Vec<_>>>());
    list.ok_or_else(|| Error::tokenizer("the merges of the tokenizer cannot be read"))
}

/// Byte-level BPE: its pre-tokenizer must be one of those that have names.
fn byte_level(parts: &Parts, architecture: &str, out: &mut Metadata) -> Result<()> {
    if parts.decoder["type"] != "ByteLevel" {
        return Err(cannot(format!("its decoder is {:.200}", parts.decoder.to_string())));
    }
    let nfc = match &sequence(&parts.normalizer, "normalizers")[..] {
        [] => false,
        [only] if *only == json!({"type": "NFC"}) => true,
        _ => return Err(cannot(format!("its normalizer is {:.200}", parts.normalizer.to_string()))),
    };
    let mut patterns = Vec::new();
    let mut as_bytes = false;
    for part in sequence(&parts.splitter, "pretokenizers") {
        let unknown = || cannot(format!("a part of its pre-tokenizer is {:.300}", part.to_string()));
        let regex = part["pattern"]["Regex"].as_str();
        match (part["type"].as_str(), regex) {
            _ if as_bytes => return Err(unknown()),
            // What is kept of a pattern that matches everything is everything.
            (Some("Split"), Some(regex)) if part["behavior"] == "Isolated" || (part["behavior"] == "Removed" && part["invert"] == true) => {
                patterns.push(pattern(regex));
            }
            (Some("Digits"), _) if part["individual_digits"] == true => patterns.push(r"\p{N}".into()),
            (Some("ByteLevel"), _) if part["add_prefix_space"] == false => {
                as_bytes = true;
                if part["use_regex"] == true {
                    patterns.push("GPT-2".into());
                }
            }
            _ => return Err(unknown()),
        }
    }
    let patterns: Vec<String> = patterns.into_iter().map(|text| if text == GPT2 { "GPT-2".into() } else { text }).collect();
    let kinds = KINDS.as_ref().map_err(Clone::clone)?;
    let ignore = parts.model["ignore_merges"] == true;
    let fits = |known: &&&super::PreTokenizer| known.patterns.iter().map(|text| pattern(text)).eq(patterns.iter().cloned());
    // Of several, that which says the rest too. Words that are taken whole come out the same where every token can be merged to,
    // which the texts find out that are read back.
    let rest = |known: &&super::PreTokenizer| (known.ignore_merges != ignore, known.nfc != nfc);
    let known: Vec<&'static super::PreTokenizer> = kinds.pre_tokenizers.iter().collect();
    let own = |name: &&String| kinds.own_names.get(architecture) == Some(*name);
    let named = |known: &'static super::PreTokenizer| known.names.iter().find(own).or(known.names.first());
    let name = known.iter().filter(fits).copied().min_by_key(rest).and_then(named);
    let name = name.filter(|_| as_bytes).ok_or_else(|| cannot(format!("no pre-tokenizer of GGUF has the patterns {patterns:.300?}")))?;
    out.set(key("model"), kind(&kinds.byte_level)?);
    out.set(key("pre"), name.as_str());
    out.set(key("normalizer.nfc"), nfc);
    out.set(key("merges"), lines(&merges(&parts.model)?));
    Ok(())
}
