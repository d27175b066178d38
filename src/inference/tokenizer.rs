//! Text to ids and back: a thin layer over the `tokenizers` crate that adds what a session needs (BOS once, several
//! EOS ids, PAD, the ids no token has, streamed text). Bytes come in, nothing is read from disk.
//! It must not know models or templates; the tokenizer.json decides, as in transformers 5, whether BOS is added.

mod config;
mod gguf;
mod growth;
mod length;
mod outline;
mod precompiled;
mod splitting;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::ModelWrapper;

use crate::error::{Error, Result};
pub use config::TokenizerConfig;
pub use gguf::gguf_chat_template;
use length::Length;
use outline::Outline;
use splitting::{Splitting, Steps};
pub use stream::TextStream;

/// Token ids that the model's own files give (generation_config.json before config.json); all may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`: one or several. Empty means that tokenizer_config.json decides.
    pub eos: Vec<u32>,
    /// `pad_token_id`.
    pub pad: Option<u32>,
}

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    named_tokens: BTreeMap<String, String>,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    specials: BTreeSet<u32>,
    /// One more than the largest id.
    vocab_size: u32,
    /// How many BOS the post-processor puts in front; most have one, or none.
    added_bos: usize,
    splitting: Splitting,
    length: Length,
    notes: Vec<String>,
    /// Whether pieces like `<0x0A>` are bytes.
    byte_fallback: bool,
    /// Whether each character of a piece is a byte.
    byte_level: bool,
}

impl Tokenizer {
    /// Loads the bytes of a tokenizer.json. Truncation, padding and dropout set there are for training and are
    /// dropped. Tokens that only `config` knows are added.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if the bytes are not a tokenizer that the `tokenizers` crate understands.
    pub fn from_bytes(tokenizer_json: &[u8], config: &TokenizerConfig, ids: &TokenIds) -> Result<Self> {
        let outline = Outline::read(tokenizer_json)?;
        // The crate panics on some files that contradict themselves, when it loads them or first uses them.
        guarded("tokenizer.json", || Self::load(tokenizer_json, &outline, config, ids))
    }

    fn load(tokenizer_json: &[u8], outline: &Outline, config: &TokenizerConfig, ids: &TokenIds) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|e| {
            Error::tokenizer(format!(
                "tokenizer.json cannot be read: {e}; expected the file of a Hugging Face fast tokenizer, so download it again or convert the model's tokenizer with transformers"
            ))
        })?;
        inner.with_truncation(None).map_err(failed("tokenizer.json"))?;
        inner.with_padding(None);
        let mut notes = Vec::new();
        if outline.has_dropout() {
            notes.push("tokenizer.json: `dropout` leaves out merges at random; it is for training and is not followed".into());
            if let ModelWrapper::BPE(model) = inner.get_model() {
                let mut model = model.clone();
                model.dropout = None;
                inner.with_model(model);
            }
        }
        notes.extend(config.add_to(&mut inner, outline)?);
        Self::assemble(inner, outline, config, ids, notes)
    }

    /// What a session needs to know of a complete pipeline.
    fn assemble(
        inner: tokenizers::Tokenizer,
        outline: &Outline,
        config: &TokenizerConfig,
        ids: &TokenIds,
        mut notes: Vec<String>,
    ) -> Result<Self> {
        let decoder = serde_json::to_value(inner.get_decoder()).map_err(|e| Error::tokenizer(e.to_string()))?;
        if strips_ends(&decoder) {
            return Err(Error::tokenizer(
                "tokenizer.json: its decoder strips characters from the end of pieces (`Strip` with `stop` above 0), which transformers takes; here a text is shown as it comes, when its end is not known, and the `tokenizers` crate fails at a piece that is shorter; expected `stop: 0`",
            ));
        }
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1));
        let named = |key: &str| config.named_tokens.get(key).and_then(|text| inner.token_to_id(text));
        let padding = || outline.pad_token().and_then(|text| inner.token_to_id(text));
        let bos = named("bos_token").or(ids.bos);
        let pad = ids.pad.or_else(|| named("pad_token")).or_else(padding);
        let eos: Vec<u32> = if ids.eos.is_empty() { named("eos_token").into_iter().collect() } else { ids.eos.clone() };
        if let (true, Some(id)) = (ids.eos.is_empty(), eos.first()) {
            let text = config.named_tokens.get("eos_token").map_or("", String::as_str);
            notes.push(format!(
                "config.json and generation_config.json have no `eos_token_id`: generation ends at {text:?} ({id}), the `eos_token` of tokenizer_config.json, where transformers goes on"
            ));
        }
        let empty = inner.encode_fast("", true).map_err(failed("tokenizer.json"))?;
        let mut tokenizer = Self {
            named_tokens: config.named_tokens.clone(),
            bos,
            eos,
            pad,
            specials: inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect(),
            vocab_size,
            added_bos: bos.map_or(0, |bos| empty.get_ids().iter().take_while(|id| **id == bos).count()),
            splitting: Splitting::new(outline.patterns())?,
            length: Length::new(&inner, outline)?,
            notes,
            byte_fallback: decoder.to_string().contains(r#""ByteFallback""#),
            byte_level: decoder.to_string().contains(r#""ByteLevel""#),
            inner,
        };
        if config.named_tokens.is_empty() {
            let ids = [("bos_token", bos), ("eos_token", tokenizer.eos.first().copied()), ("pad_token", pad)];
            let text = |id: u32| tokenizer.inner.id_to_token(id);
            let known = ids.into_iter().filter_map(|(key, id)| Some((key.to_owned(), text(id?)?)));
            tokenizer.named_tokens = known.collect();
        }
        if let Some(text) = outline.pad_token() {
            tokenizer.named_tokens.entry("pad_token".into()).or_insert_with(|| text.to_owned());
        }
        Ok(tokenizer)
    }

    /// Ids of `text`. With `add_special` the tokenizer's own post-processor adds what it adds (Gemma, Llama: BOS),
    /// but one BOS less where the text begins with one. Text from a chat template wants `add_special = false`.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if the tokenizer refuses the text (for example no unknown token is defined), or its patterns
    /// cannot split it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.check(text)?;
        let encoded = || self.inner.encode_fast(text, add_special).map_err(failed("encoding text"));
        let mut ids = guarded("encoding text", encoded)?.get_ids().to_vec();
        if add_special && self.has_own_bos(ids.iter().copied()) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// As [`Self::encode`], each id with the bytes of `text` that it stands for: empty for ids that were added, shared
    /// by tokens that are parts of one character. A normalizer's changes are mapped back to the text as given.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_spans(&self, text: &str, add_special: bool) -> Result<Vec<(u32, Range<usize>)>> {
        self.check(text)?;
        let encoded = || self.inner.encode(text, add_special).map_err(failed("encoding text"));
        let encoding = guarded("encoding text", encoded)?;
        let mut spans: Vec<(u32, Range<usize>)> =
            encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(id, (start, end))| (*id, *start..*end)).collect();
        if add_special && self.has_own_bos(spans.iter().map(|(id, _)| *id)) {
            spans.remove(0);
        }
        Ok(spans)
    }

    /// Whether ids begin with more BOS than the post-processor adds: the text has its own.
    fn has_own_bos(&self, mut ids: impl Iterator<Item = u32>) -> bool {
        self.added_bos > 0 && ids.nth(self.added_bos) == self.bos
    }

    /// Refuses a text that the tokenizer would make too long, or that the patterns cannot split.
    fn check(&self, text: &str) -> Result<()> {
        let steps = Steps::of(text);
        guarded("encoding text", || self.length.check(&self.inner, text, &|part| self.splitting.check(part, &steps)))
    }

    /// Text of `ids`; ids without a token are left out, special tokens too if `skip_special`.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if !ids.iter().any(|id| self.has_text(*id, skip_special)) {
            return Ok(String::new()); // some decoders cannot bear to have nothing to do
        }
        guarded("decoding ids", || self.inner.decode(ids, skip_special).map_err(failed("decoding ids")))
    }

    /// Starts streaming the text that follows `context` (a prompt, or empty): see [`TextStream`].
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn stream(&self, context: &[u32], skip_special: bool) -> Result<TextStream> {
        let window = context.iter().copied().filter(|id| self.has_text(*id, skip_special)).collect();
        let mut stream = TextStream { window, shown: 0, skip_special };
        stream.shift(self)?;
        Ok(stream)
    }

    /// The text of a tokenizer.json with this pipeline.
    ///
    /// # Errors
    /// `Kind::Tokenizer` where the `tokenizers` crate cannot write it.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(failed("writing tokenizer.json"))
    }

    /// BOS, from tokenizer_config.json or else from the model's files.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether BOS is put in front of a text.
    pub fn adds_bos(&self) -> bool {
        self.added_bos > 0
    }

    /// What transformers would do otherwise, or what was not followed: whole sentences that name the file.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The ids that end generation.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Whether `id` ends generation.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// PAD, from the model's files or else from tokenizer_config.json.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether `id` is a special token: control, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.contains(&id)
    }

    /// One more than the largest id, added tokens included. The model may have more rows (padding) or fewer.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Most bytes of text that `tokens` tokens can stand for; `None` for a tokenizer that may drop text, or gather any length
    /// of it in one unknown token.
    pub fn most_bytes(&self, tokens: usize) -> Option<u64> {
        let described = |part: serde_json::Result<String>| part.unwrap_or_default();
        let normalizer = described(serde_json::to_string(&self.inner.get_normalizer()));
        let splitter = described(serde_json::to_string(&self.inner.get_pre_tokenizer()));
        let byte_level = splitter.contains("\"ByteLevel\"") || normalizer.contains("\"ByteLevel\"");
        let drops = ["Strip", "Bert", "\"Removed\"", "\"Whitespace", "NFK", "Precompiled"];
        let dropped = |text: &str| drops.iter().any(|part| text.contains(part));
        if !(byte_level || self.byte_fallback) || dropped(&normalizer) || dropped(&splitter) {
            return None;
        }
        // Spelled in the vocabulary's way, a piece has at least as many bytes as its text.
        let longest = self.inner.get_vocab(true).into_keys().map(|piece| piece.len()).max().unwrap_or(0);
        Some((longest as u64).saturating_mul(tokens as u64))
    }

    /// Texts of the named special tokens, for chat templates (`bos_token`, `eos_token`, …).
    pub fn named_tokens(&self) -> &BTreeMap<String, String> {
        &self.named_tokens
    }

    /// PAD where a model that chooses it is at fault: not where it also ends generation (many models use one token for both),
    /// and not where it is an ordinary piece of text. Sampling may choose it, as in transformers.
    pub fn idle_pad(&self) -> Option<u32> {
        self.pad.filter(|id| !self.is_eos(*id) && self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(id))
    }

    /// The text of token `id` as it stands inside a sentence, leading space kept; `None` where that is not whole characters, or
    /// there is no such token.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)?;
        // Decoded twice in a row: decoders treat only the first piece of a text specially.
        let (once, twice) = (self.decode(&[id], false).ok()?, self.decode(&[id, id], false).ok()?);
        let text = twice.get(once.len()..)?.to_owned();
        (!text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER)).then_some(text)
    }

    /// The bytes that token `id` stands for inside a sentence, also where they are only a part of a character; `None` where they
    /// are not known.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        if let Some(text) = self.piece(id) {
            return Some(text.into_bytes());
        }
        let spelled = self.inner.id_to_token(id)?;
        if self.is_byte_piece(id) {
            return Some(vec![u8::from_str_radix(spelled.get(3..5)?, 16).ok()?]);
        }
        spelled.chars().map(byte_of).collect::<Option<Vec<u8>>>().filter(|_| self.byte_level && !self.is_special(id))
    }

    /// The vocabulary's own spelling of token `id`; `<id N>` if there is no such token.
    pub fn spelling(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_else(|| format!("<id {id}>"))
    }

    /// Token `id` for display, on one line: its text as it stands inside a sentence (leading space kept), or the
    /// vocabulary's own spelling where that is not whole characters; `<id N>` if there is no such token.
    pub fn token_text(&self, id: u32) -> String {
        escape_line(&self.piece(id).unwrap_or_else(|| self.spelling(id)))
    }

    /// Whether decoding takes `id` into account.
    fn has_text(&self, id: u32, skip_special: bool) -> bool {
        self.inner.id_to_token(id).is_some() && !(skip_special && self.is_special(id))
    }

    /// Whether `id` is a piece that stands for one byte of a text in UTF-8, such as `<0x0A>`.
    fn is_byte_piece(&self, id: u32) -> bool {
        let digits = |piece: String| Some(piece.strip_prefix("<0x")?.strip_suffix('>')?.to_owned());
        let byte = |digits: String| digits.len() == 2 && u8::from_str_radix(&digits, 16).is_ok();
        self.byte_fallback && self.inner.id_to_token(id).and_then(digits).is_some_and(byte)
    }
}

/// The byte that a character of a byte-level piece stands for: itself where it is printable, else the next one from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0x100.. => (0..=u8::MAX).filter(|b| !printable(*b)).nth(code as usize - 0x100),
        code => u8::try_from(code).ok().filter(|b| printable(*b)),
    }
}

/// Whether a decoder, or one inside it, is a `Strip` that takes characters from the end.
fn strips_ends(decoder: &Value) -> bool {
    let inner = decoder.get("decoders").and_then(Value::as_array);
    let here = decoder.get("type").and_then(Value::as_str) == Some("Strip");
    (here && decoder.get("stop").and_then(Value::as_u64) != Some(0)) || inner.is_some_and(|all| all.iter().any(strips_ends))
}

/// Runs a part of the `tokenizers` crate, which panics on files that contradict themselves.
fn guarded<T>(doing: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|_| {
        Err(Error::tokenizer(format!(
            "{doing}: tokenizer.json contradicts itself (a merge, template, table or special token refers to what is not there); download it again"
        )))
    })
}

/// Puts an error of the `tokenizers` crate into ours.
fn failed(doing: &str) -> impl Fn(tokenizers::Error) -> Error {
    move |e| Error::tokenizer(format!("{doing}: {e}"))
}

/// Whether a terminal obeys `c` instead of showing it: control characters, line and paragraph separators, and the marks
/// that reverse the direction of what follows.
pub fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` on one line: backslash, line breaks, tabs and other characters that a terminal obeys instead of showing
/// are written as `\\`, `\n`, `\r`, `\t`, `\u{1b}`.
pub fn escape_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if is_obeyed(c) => line.extend(c.escape_unicode()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A tokenizer with 256 one-byte pieces from id 3 on, then `words`; ids 0–2 are <pad>, <bos>, <eos>.
    fn tokenizer(byte_piece: impl Fn(u8) -> String, words: &[&str], mut parts: Value) -> Tokenizer {
        let specials = ["<pad>", "<bos>", "<eos>"].map(str::to_owned).into_iter();
        let pieces = specials.chain((0..=255).map(byte_piece)).chain(words.iter().map(|w| w.to_string()));
        let vocab: serde_json::Map<String, Value> = pieces.zip(0..).map(|(p, i): (String, u32)| (p, i.into())).collect();
        let special = |(id, text): (u32, &str)| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let bos = json!({"SpecialToken": {"id": "<bos>", "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        parts["version"] = "1.0".into();
        parts["truncation"] = json!({"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        parts["added_tokens"] = (0..).zip(["<pad>", "<bos>", "<eos>"]).map(special).collect();
        parts["post_processor"] = json!({"type": "TemplateProcessing", "single": [bos, text], "pair": [text, text],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}}});
        parts["model"] = json!({"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []});
        let config = br#"{"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": null}"#;
        let config = TokenizerConfig::from_json(config).unwrap();
        Tokenizer::from_bytes(&serde_json::to_vec(&parts).unwrap(), &config, &TokenIds::default()).unwrap()
    }

    /// As Llama 2 and Mistral: spaces are ▁, unknown characters become bytes, one leading space is stripped.
    fn sentencepiece() -> Tokenizer {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let decoders =
            json!([replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
        let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let words = ["▁", "▁▁", "▁the", "a", "é", "�", "▁世界", "\n"];
        let parts = json!({"normalizer": normalizer, "decoder": {"type": "Sequence", "decoders": decoders}});
        tokenizer(|byte| format!("<0x{byte:02X}>"), &words, parts)
    }

    /// As GPT-2 and Llama 3: every byte is a printable character.
    fn byte_level() -> Tokenizer {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let letter = move |b: u8| {
            let moved = (0..b).filter(|b| !printable(*b)).count() as u32;
            char::from_u32(if printable(b) { b.into() } else { 256 + moved }).unwrap().to_string()
        };
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        tokenizer(letter, &["Ġthe", "Ã©", "ðŁ", "ĺĢ"], json!({"decoder": level, "pre_tokenizer": level}))
    }

    fn streamed(t: &Tokenizer, context: &[u32], ids: &[u32], skip: bool) -> (String, String) {
        let mut stream = t.stream(context, skip).unwrap();
        let live: String = ids.iter().map(|id| stream.push(t, *id).unwrap()).collect();
        (live, stream.finish(t).unwrap())
    }

    #[test]
    fn bos_is_added_once() {
        let t = sentencepiece();
        assert_eq!(t.encode("a", true).unwrap(), [1, 262]);
        assert_eq!(t.encode("a", false).unwrap(), [262]);
        assert_eq!(t.encode("<bos>a", true).unwrap(), [1, 262]);
        assert_eq!(t.encode("<bos><bos>a", true).unwrap(), [1, 1, 262]);
        assert_eq!(t.encode("", true).unwrap(), [1]);
        assert_eq!(t.encode("aaaa", false).unwrap().len(), 4, "truncation is dropped");
        assert_eq!((t.bos(), t.eos(), t.pad(), t.vocab_size()), (Some(1), &[2][..], Some(0), 267));
        assert!(t.is_special(1) && !t.is_special(262) && t.is_eos(2));
    }

    #[test]
    fn the_models_files_decide_eos_and_pad() {
        let json = serde_json::to_vec(&json!({"version": "1.0", "added_tokens": [], "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 4}, "merges": []}}));
        let load = |ids| Tokenizer::from_bytes(json.as_ref().unwrap(), &TokenizerConfig::default(), &ids).unwrap();
        let t = load(TokenIds { bos: Some(1), eos: vec![0, 4], pad: Some(4) });
        assert!(t.is_eos(0) && t.is_eos(4));
        assert_eq!((t.pad(), t.idle_pad()), (Some(4), None), "PAD that is also EOS may win");
        assert_eq!(t.named_tokens()["eos_token"], "a");
        let t = load(TokenIds { pad: Some(0), ..Default::default() });
        assert_eq!((t.pad(), t.idle_pad()), (Some(0), None), "PAD that is an ordinary piece may win");
        assert_eq!(sentencepiece().idle_pad(), Some(0));
    }

    #[test]
    fn streams_spaces_and_split_characters() {
        let t = sentencepiece();
        assert_eq!(streamed(&t, &[], &[261, 261], true), ("the the".into(), String::new()));
        assert_eq!(streamed(&t, &[1, 262], &[261], true), (" the".into(), String::new()));
        assert_eq!(streamed(&t, &[1], &[261], true), ("the".into(), String::new()));
        let emoji: Vec<u32> = "😀".bytes().map(|b| u32::from(b) + 3).collect();
        assert_eq!(streamed(&t, &[], &emoji, true), (String::new(), "😀".into()));
        assert_eq!(streamed(&t, &emoji[..2], &[&emoji[2..], &[262]].concat(), true), ("😀a".into(), String::new()));
        // What the prompt has whole is the prompt's, also where it ends with bytes.
        assert_eq!(streamed(&t, &emoji, &[262], true), ("a".into(), String::new()));
        assert_eq!(streamed(&t, &emoji, &emoji, true), (String::new(), "😀".into()));
        assert_eq!(streamed(&t, &[&emoji[..], &emoji[..2]].concat(), &[&emoji[2..], &[262]].concat(), true), ("😀a".into(), String::new()));
        assert!(streamed(&t, &emoji, &[emoji[1], 262], true).0.ends_with('a'), "a wrong byte loses nothing behind it");
        let t = byte_level();
        assert_eq!(streamed(&t, &[], &[emoji.as_slice(), &[259]].concat(), true), ("😀 the".into(), String::new()));
        assert_eq!(streamed(&t, &[], &[261, 262], true), ("😀".into(), String::new()));
        assert_eq!(streamed(&t, &[261], &[262, 2], true), ("😀".into(), String::new()));
        assert_eq!(streamed(&t, &[], &[261, 2, 9999], false), ("�<eos>".into(), String::new()));
    }

    #[test]
    fn tokens_show_on_one_line() {
        let t = sentencepiece();
        assert_eq!([261, 266, 13, 131, 1, 999].map(|id| t.token_text(id)), [" the", "\\n", "\\n", "<0x80>", "<bos>", "<id 999>"]);
        assert_eq!([261, 131, 1, 999].map(|id| t.bytes(id)), [Some(b" the".to_vec()), Some(vec![0x80]), Some(b"<bos>".to_vec()), None]);
        let t = byte_level();
        assert_eq!([259, 260, 261, 3 + 10].map(|id| t.token_text(id)), [" the", "é", "ðŁ", "\\n"]);
        assert_eq!([260, 261].map(|id| t.bytes(id).unwrap()), ["é".as_bytes(), &[0xf0, 0x9f]]);
        assert!((0..=255).all(|byte| t.bytes(3 + u32::from(byte)) == Some(vec![byte])));
        assert_eq!(escape_line("a\\n\n\t\r\u{1b}[0m\u{202e}é😀"), "a\\\\n\\n\\t\\r\\u{1b}[0m\\u{202e}é😀");
        assert!(!escape_line(&(0..0x3000).filter_map(char::from_u32).collect::<String>()).contains(char::is_control));
    }

    #[test]
    fn broken_files_are_errors() {
        for bad in [&b""[..], b"{}", b"[1]", b"{\"model\":", &[0xff; 40]] {
            let error = Tokenizer::from_bytes(bad, &TokenizerConfig::default(), &TokenIds::default()).err().unwrap();
            assert_eq!(error.kind, crate::error::Kind::Tokenizer);
        }
        assert!(TokenizerConfig::from_json(b"[]").is_err());
        assert!(strips_ends(&json!({"type": "Sequence", "decoders": [{"type": "Strip", "stop": 1}]})));
    }

    proptest! {
        #[test]
        fn pieces_add_up(
            ids in prop::collection::vec(prop_oneof![0u32..280, 3u32..259, 195u32..259, 259u32..268], 0..40),
            split in 0usize..40, skip in any::<bool>(), spm in any::<bool>(),
        ) {
            let t = if spm { sentencepiece() } else { byte_level() };
            let (live, rest) = streamed(&t, &[], &ids, skip);
            prop_assert_eq!(live + &rest, t.decode(&ids, skip).unwrap());
            // A context adds up too where it ends with a whole character.
            let (context, new) = ids.split_at(split.min(ids.len()));
            let before = t.decode(context, skip).unwrap();
            let last = t.stream(context, skip).unwrap().window.last().copied();
            if !before.ends_with(char::REPLACEMENT_CHARACTER) && !last.is_some_and(|id| t.is_byte_piece(id)) {
                let (live, rest) = streamed(&t, context, new, skip);
                prop_assert_eq!(before + &live + &rest, t.decode(&ids, skip).unwrap());
            }
        }

        #[test]
        fn one_line_can_be_read_back(text in any::<String>()) {
            let line = escape_line(&text);
            prop_assert!(!line.contains(char::is_control));
            let mut back = String::new();
            let mut rest = line.as_str();
            while let Some((plain, escape)) = rest.split_once('\\') {
                let end = if escape.starts_with('u') { escape.find('}').unwrap() + 1 } else { 1 };
                let (code, after) = escape.split_at(end);
                back.push_str(plain);
                back.push(match code {
                    "n" => '\n',
                    "r" => '\r',
                    "t" => '\t',
                    "\\" => '\\',
                    hex => char::from_u32(u32::from_str_radix(&hex[2..end - 1], 16).unwrap()).unwrap(),
                });
                rest = after;
            }
            prop_assert_eq!(back + rest, text);
        }
    }
}
