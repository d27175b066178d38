//! What can be said of a tokenizer.json before the `tokenizers` crate builds it: files that would make the crate panic, run
//! out of memory or draw lots are refused or mended here, because a browser's worker cannot catch a panic.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{growth, precompiled};
use crate::error::{Error, Result};

/// Brackets inside each other; the files of known models have 8.
const NESTING: usize = 32;
/// Bytes of one token; the longest of known models have some hundred.
pub(super) const TOKEN: usize = 64 << 10;
/// Largest id. Ids are rows of a matrix.
const ID: u64 = 1 << 30;
/// How many times longer normalizers, pre-tokenizers and post-processors together may make a text.
const GROWTH: f64 = 4096.0;
/// How many times longer decoders may make the text of tokens.
const DECODED: f64 = 256.0;
/// Pieces of a post-processor's templates.
const PIECES: usize = 64;
/// Ids that a post-processor adds, and bytes of their spelling.
const ADDED: usize = 64 << 10;
/// Bytes of what may stand for each character: the unknown token, and what the model puts before or after a part of a word.
pub(super) const REPEATED: usize = 256;
/// Bytes of all added tokens after the normalizer, which keeps what it makes of each.
const NORMALIZED: f64 = (64u64 << 20) as f64;
/// Longest word that WordPiece looks at, whose work grows with its cube.
const WORD: u64 = 1000;

/// The parts of a tokenizer.json, its vocabulary but for measures.
#[derive(serde::Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    added_tokens: Option<Vec<Added>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    padding: Value,
    model: Model,
    /// How many times longer the normalizer makes a text at most.
    #[serde(skip)]
    normalizer_growth: f64,
}

#[derive(serde::Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default = "yes")]
    normalized: bool,
}

fn yes() -> bool {
    true
}

#[derive(serde::Deserialize, Default)]
struct Model {
    #[serde(default)]
    vocab: Vocab,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    unk_id: Option<u64>,
}

impl Model {
    /// What may stand for each character or be put to it, with its bytes.
    fn repeated(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let listed = self.unk_id.and_then(|id| self.vocab.lengths.get(usize::try_from(id).ok()?).copied());
        let length = |text: &Option<String>| text.as_ref().map(String::len);
        let found = [
            ("unk_token", length(&self.unk_token)),
            ("unk_id", listed.map(|length| length as usize)),
            ("continuing_subword_prefix", length(&self.continuing_subword_prefix)),
            ("end_of_word_suffix", length(&self.end_of_word_suffix)),
        ];
        found.into_iter().filter_map(|(key, length)| Some((key, length?)))
    }
}

/// The longest token and the largest id of a vocabulary; of a list also the bytes of each token.
#[derive(Default)]
struct Vocab {
    longest: usize,
    largest: u64,
    lengths: Vec<u32>,
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Measure;
        impl<'de> Visitor<'de> for Measure {
            type Value = Vocab;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a vocabulary: an object of ids by token, or a list of tokens with scores")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Vocab, M::Error> {
                let mut vocab = Vocab::default();
                while let Some((token, id)) = map.next_entry::<std::borrow::Cow<str>, Value>()? {
                    vocab.longest = vocab.longest.max(token.len());
                    vocab.largest = vocab.largest.max(id.as_u64().unwrap_or(0));
                }
                Ok(vocab)
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vocab, S::Error> {
                let mut vocab = Vocab::default();
                while let Some(pair) = seq.next_element::<Value>()? {
                    let token = pair.get(0).unwrap_or(&pair).as_str().map_or(0, str::len);
                    vocab.longest = vocab.longest.max(token);
                    vocab.lengths.push(u32::try_from(token).unwrap_or(u32::MAX));
                }
                Ok(vocab)
            }
            fn visit_unit<E>(self) -> Result<Vocab, E> {
                Ok(Vocab::default())
            }
        }
        from.deserialize_any(Measure)
    }
}

fn refused<T>(problem: impl std::fmt::Display) -> Result<T> {
    Err(Error::tokenizer(format!("tokenizer.json: {problem}; download it again, or convert the model's tokenizer with transformers")))
}

impl Outline {
    /// Reads and checks the bytes of a tokenizer.json.
    pub fn read(json: &[u8]) -> Result<Self> {
        check_nesting(json)?;
        let mut outline: Self = serde_json::from_slice(json).map_err(|e| {
            Error::tokenizer(format!(
                "tokenizer.json cannot be read: {e}; expected the file of a Hugging Face fast tokenizer, so download it again or convert the model's tokenizer with transformers"
            ))
        })?;
        outline.check_tokens()?;
        if outline.model.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty()) {
            check_merges(json, outline.model.continuing_subword_prefix.as_deref().unwrap_or_default())?;
        }
        for part in [&outline.normalizer, &outline.pre_tokenizer] {
            each(part, &mut |part| check_part(part))?;
        }
        outline.normalizer_growth = growth::normalizer(&outline.normalizer);
        outline.check_growth()?;
        outline.check_added(outline.added_tokens.iter().flatten().filter(|token| token.normalized).map(|token| token.content.len()))?;
        Ok(outline)
    }

    fn check_tokens(&self) -> Result<()> {
        let added = self.added_tokens.as_deref().unwrap_or_default();
        let longest = added.iter().map(|token| token.content.len()).max().unwrap_or(0).max(self.model.vocab.longest);
        if longest > TOKEN {
            return refused(format!("a token has {longest} bytes, expected {TOKEN} at most"));
        }
        let largest = added.iter().map(|token| token.id).max().unwrap_or(0).max(self.model.vocab.largest);
        if largest > ID {
            return refused(format!("a token has the id {largest}, expected {ID} at most"));
        }
        if self.model.max_input_chars_per_word.is_some_and(|chars| chars > WORD) {
            return refused(format!("`max_input_chars_per_word` is above {WORD}"));
        }
        if let Some((key, length)) = self.model.repeated().find(|(_, length)| *length > REPEATED) {
            return refused(format!(
                "its model's `{key}` has {length} bytes, which may stand for each character; expected {REPEATED} at most"
            ));
        }
        Ok(())
    }

    /// Refuses parts that make a text or its ids too long, each alone or all together.
    fn check_growth(&self) -> Result<()> {
        let around = growth::post_processor(&self.post_processor);
        if around.pieces > PIECES {
            return refused(format!("its post-processor has templates of {} pieces, expected {PIECES} at most", around.pieces));
        }
        if around.added > ADDED {
            let added = around.added;
            return refused(format!(
                "its post-processor adds {added} ids and bytes of their spelling to each text, expected {ADDED} at most"
            ));
        }
        let growth = self.normalizer_growth * self.added_growth();
        if growth > GROWTH {
            let parts = "normalizer, pre-tokenizer and post-processor";
            return refused(format!("its {parts} can make a text {growth:.0} times longer, expected {GROWTH} at most"));
        }
        let growth = growth::decoder(&self.decoder);
        if growth > DECODED {
            return refused(format!("its decoder can make a text {growth:.0} times longer, expected {DECODED} at most"));
        }
        Ok(())
    }

    /// Refuses added tokens of so many bytes each if the normalizer makes too much of them.
    ///
    /// # Errors
    /// `Kind::Tokenizer`.
    pub fn check_added(&self, lengths: impl Iterator<Item = usize>) -> Result<()> {
        let bytes = lengths.fold(0usize, usize::saturating_add) as f64 * self.normalizer_growth;
        if self.normalizer_growth > 1.0 && bytes > NORMALIZED {
            return refused(format!("its normalizer can make {bytes:.0} bytes of the added tokens, expected {NORMALIZED:.0} at most"));
        }
        Ok(())
    }

    /// How many times longer the normalizer makes a text at most.
    pub fn growth(&self) -> f64 {
        self.normalizer_growth
    }

    /// How many times more a normalized text becomes at most by pre-tokenizer and post-processor.
    pub fn added_growth(&self) -> f64 {
        growth::pre_tokenizer(&self.pre_tokenizer) * growth::post_processor(&self.post_processor).copies
    }

    /// Whether merges are left out at random, as in training.
    pub fn has_dropout(&self) -> bool {
        self.model.dropout.is_some_and(|dropout| dropout > 0.0)
    }

    /// Whether pre-tokenizer or decoder are byte-level.
    pub fn is_byte_level(&self) -> bool {
        [&self.pre_tokenizer, &self.decoder].iter().any(|part| part.to_string().contains(r#""ByteLevel""#))
    }

    /// Whether a byte-level pre-tokenizer puts a blank before a text.
    pub fn puts_blank_first(&self) -> bool {
        let mut found = false;
        // The closure refuses nothing.
        let _ = each(&self.pre_tokenizer, &mut |part| {
            found |= part["type"] == "ByteLevel" && part["add_prefix_space"] == true;
            Ok(())
        });
        found
    }

    /// The text that tokenizer.json pads with.
    pub fn pad_token(&self) -> Option<&str> {
        self.padding["pad_token"].as_str()
    }

    /// The regular expressions that split text, for [`super::splitting`].
    pub fn patterns(&self) -> Vec<String> {
        let mut patterns = Vec::new();
        let mut collect = |part: &Value| {
            // By their keys: only `Split` and `Replace` have patterns, and `Metaspace` may have `add_prefix_space` too.
            patterns.extend(part["pattern"]["Regex"].as_str().map(str::to_owned));
            if part["use_regex"] != false && part.get("add_prefix_space").is_some() && part["type"] != "Metaspace" {
                patterns.push(BYTE_LEVEL.to_owned());
            }
            Ok(())
        };
        // The closure refuses nothing.
        let _ = each(&self.normalizer, &mut collect);
        let _ = each(&self.pre_tokenizer, &mut collect);
        patterns
    }
}

/// The pattern that `ByteLevel` has inside, GPT-2's.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Counts brackets outside of texts, without a stack.
fn check_nesting(json: &[u8]) -> Result<()> {
    let (mut depth, mut text, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if text => escaped = true,
            b'"' => text = !text,
            b'{' | b'[' if !text => {
                depth += 1;
                if depth > NESTING {
                    return refused(format!("it nests more than {NESTING} levels deep"));
                }
            }
            b'}' | b']' if !text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// The right side of every merge begins with the prefix that the crate cuts off without looking.
fn check_merges(json: &[u8], prefix: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct File {
        model: Merges,
    }
    #[derive(serde::Deserialize)]
    struct Merges {
        #[serde(default)]
        merges: Vec<Value>,
        #[serde(flatten)]
        _rest: IgnoredAny,
    }
    let file: File = serde_json::from_slice(json).map_err(|e| Error::tokenizer(format!("tokenizer.json cannot be read: {e}")))?;
    for merge in &file.model.merges {
        let right = merge.get(1).and_then(Value::as_str).or_else(|| merge.as_str()?.split_once(' ').map(|(_, right)| right));
        if right.is_some_and(|right| right.len() < prefix.len()) {
            return refused(format!("the merge {merge} lacks the prefix `{prefix}` that the model declares"));
        }
    }
    Ok(())
}

/// Calls `visit` for a part and for the parts of its sequences.
fn each(part: &Value, visit: &mut impl FnMut(&Value) -> Result<()>) -> Result<()> {
    visit(part)?;
    growth::parts(part).try_for_each(|inner| each(inner, visit))
}

fn check_part(part: &Value) -> Result<()> {
    if part["length"].as_u64() == Some(0) {
        return refused("its pre-tokenizer `FixedLength` has the length 0");
    }
    let table = part.get("precompiled_charsmap");
    if (table.is_some() || part["type"] == "Precompiled") && table.and_then(Value::as_str).and_then(precompiled::growth).is_none() {
        return refused("the table of its normalizer `Precompiled` is damaged");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: impl FnOnce(&mut Value)) -> Result<Outline> {
        let mut file = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "decoder": null,
            "post_processor": null, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
        change(&mut file);
        Outline::read(&serde_json::to_vec(&file).unwrap())
    }

    #[test]
    fn hostile_files_are_refused() {
        assert!(read(|_| {}).is_ok());
        let replace = |content: String| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
        let doubling = |count: usize| json!({"type": "Sequence", "normalizers": vec![replace("aa".into()); count]});
        assert!(read(|f| f["normalizer"] = doubling(12)).is_ok());
        assert!(read(|f| f["normalizer"] = doubling(13)).is_err());
        assert!(read(|f| f["decoder"] = json!({"type": "Sequence", "decoders": vec![replace("aa".into()); 40]})).is_err());
        assert!(read(|f| f["normalizer"] = replace("a".repeat(5000))).is_err());
        assert!(read(|f| f["normalizer"] = json!({"type": "Prepend", "prepend": "a".repeat(5000)})).is_err());
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let levels = |count: usize| json!({"type": "Sequence", "pretokenizers": vec![&level; count]});
        assert!(read(|f| f["pre_tokenizer"] = levels(12)).is_ok());
        assert!(read(|f| f["pre_tokenizer"] = levels(13)).is_err());
        // All stages count together, whatever each does alone.
        assert!(read(|f| (f["normalizer"], f["pre_tokenizer"]) = (doubling(6), levels(7))).is_err());
        let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        assert!(read(|f| f["pre_tokenizer"] = json!({"pretokenizers": vec![space; 7]})).is_err());
        let mut blanks = vec![json!({"type": "CTC", "pad_token": "zz", "word_delimiter_token": "", "cleanup": true})];
        blanks.push(json!({"type": "BPEDecoder", "suffix": ""}));
        blanks.push(json!({"type": "WordPiece", "prefix": "zz", "cleanup": false}));
        blanks.push(json!({"pattern": {"String": "a"}, "content": "aa"}));
        for blank in blanks {
            assert!(read(|f| f["decoder"] = json!({"type": "Sequence", "decoders": vec![&blank; 4]})).is_ok());
            assert!(read(|f| f["decoder"] = json!({"type": "Sequence", "decoders": vec![&blank; 40]})).is_err(), "{blank}");
        }
        assert!(read(|f| f["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})).is_err());
        assert!(read(|f| f["pre_tokenizer"] = json!({"length": 0})).is_err());
        let inner = json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]});
        assert!(read(|f| f["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [inner]})).is_err());
        assert!(read(|f| f["added_tokens"] = json!([{"id": u32::MAX, "content": "x"}])).is_err());
        assert!(read(|f| f["model"]["vocab"]["b"] = u32::MAX.into()).is_err());
        assert!(read(|f| f["model"]["vocab"]["b".repeat(70_000)] = 1.into()).is_err());
        assert!(read(|f| f["model"]["max_input_chars_per_word"] = 100_000.into()).is_err());
        let piece = json!({"Sequence": {"id": "A", "type_id": 0}});
        assert!(read(|f| f["post_processor"] = json!({"type": "TemplateProcessing", "single": vec![&piece; 100], "pair": []})).is_err());
        let bos = json!({"SpecialToken": {"id": "a", "type_id": 0}});
        let templates = |ids: usize, text: &str, count: usize| {
            let special = json!({"a": {"id": "a", "ids": vec![0; ids], "tokens": vec![text; ids]}});
            let one = json!({"type": "TemplateProcessing", "single": [bos, bos, piece], "pair": [piece], "special_tokens": special});
            json!({"type": "Sequence", "processors": vec![one; count]})
        };
        assert!(read(|f| f["post_processor"] = templates(1000, "a", 1)).is_ok());
        assert!(read(|f| f["post_processor"] = templates(20_000, "a", 1)).is_err());
        assert!(read(|f| f["post_processor"] = templates(1, &"a".repeat(40_000), 1)).is_err());
        assert!(read(|f| f["post_processor"] = templates(1, "a", 100)).is_err());
        let copies = json!({"type": "TemplateProcessing", "single": [piece, piece], "pair": [piece, piece], "special_tokens": {}});
        assert!(read(|f| f["post_processor"] = json!({"type": "Sequence", "processors": vec![copies; 20]})).is_err());
        for key in ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
            assert!(read(|f| f["model"][key] = "#".repeat(200).into()).is_ok());
            assert!(read(|f| f["model"][key] = "#".repeat(300).into()).is_err(), "{key}");
        }
        let pieces = json!({"type": "Unigram", "unk_id": 1, "vocab": [["a", 0.0], ["#".repeat(300), 0.0]]});
        assert!(read(|f| f["model"] = pieces).is_err());
        let many: Vec<Value> =
            (0..2000).map(|i| json!({"id": i, "content": format!("{i}{}", "a".repeat(1000)), "normalized": true})).collect();
        assert!(read(|f| f["added_tokens"] = json!(many)).is_ok());
        assert!(
            read(|f| (f["added_tokens"], f["normalizer"]) = (json!(many), doubling(6))).is_err(),
            "they are normalized when they are read"
        );
        let nested = (0..100).fold(json!(null), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
        assert!(read(|f| f["normalizer"] = nested).is_err());
        assert!(Outline::read("[".repeat(1 << 20).as_bytes()).is_err());
        let merges = |file: &mut Value| {
            file["model"]["continuing_subword_prefix"] = "##".into();
            file["model"]["merges"] = json!(["a b"]);
        };
        assert!(read(merges).is_err());
    }
}
