//! What can be said of a tokenizer.json before the `tokenizers` crate builds it: files that would make the crate panic, run
//! out of memory or draw lots are refused or mended here, because a browser's worker cannot catch a panic.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};

/// Brackets inside each other; the files of known models have 8.
const NESTING: usize = 32;
/// Bytes of one token; the longest of known models have some hundred.
pub(super) const TOKEN: usize = 64 << 10;
/// Largest id. Ids are rows of a matrix.
const ID: u64 = 1 << 30;
/// How many times longer a text may become by normalizers, decoders or templates.
const GROWTH: f64 = 4096.0;
/// Longest word that WordPiece looks at, whose work grows with its cube.
const WORD: u64 = 1000;
/// Bytes of a `Precompiled` table; those of known models have 300 KB.
const TABLE: usize = 4 << 20;

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
}

#[derive(serde::Deserialize)]
struct Added {
    id: u64,
    content: String,
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
}

/// The longest token and the largest id of a vocabulary.
#[derive(Default)]
struct Vocab {
    longest: usize,
    largest: u64,
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
        let outline: Self = serde_json::from_slice(json).map_err(|e| {
            Error::tokenizer(format!(
                "tokenizer.json cannot be read: {e}; expected the file of a Hugging Face fast tokenizer, so download it again or convert the model's tokenizer with transformers"
            ))
        })?;
        let added = outline.added_tokens.as_deref().unwrap_or_default();
        let longest = added.iter().map(|token| token.content.len()).max().unwrap_or(0).max(outline.model.vocab.longest);
        if longest > TOKEN {
            return refused(format!("a token has {longest} bytes, expected {TOKEN} at most"));
        }
        let largest = added.iter().map(|token| token.id).max().unwrap_or(0).max(outline.model.vocab.largest);
        if largest > ID {
            return refused(format!("a token has the id {largest}, expected {ID} at most"));
        }
        if outline.model.max_input_chars_per_word.is_some_and(|chars| chars > WORD) {
            return refused(format!("`max_input_chars_per_word` is above {WORD}"));
        }
        if outline.model.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty()) {
            check_merges(json, outline.model.continuing_subword_prefix.as_deref().unwrap_or_default())?;
        }
        for (what, part) in [("normalizer", &outline.normalizer), ("decoder", &outline.decoder)] {
            let growth = growth(part);
            if growth > GROWTH {
                return refused(format!("its {what} can make a text {growth:.0} times longer, expected {GROWTH} at most"));
            }
        }
        let copies = pieces(&outline.post_processor);
        if copies > 64 {
            return refused(format!("its post-processor has a template of {copies} pieces, expected 64 at most"));
        }
        for part in [&outline.normalizer, &outline.pre_tokenizer] {
            each(part, &mut |part| check_part(part))?;
        }
        Ok(outline)
    }

    /// How many times longer the normalizer makes a text at most.
    pub fn growth(&self) -> f64 {
        growth(&self.normalizer)
    }

    /// Whether merges are left out at random, as in training.
    pub fn has_dropout(&self) -> bool {
        self.model.dropout.is_some_and(|dropout| dropout > 0.0)
    }

    /// Whether pre-tokenizer or decoder are byte-level.
    pub fn is_byte_level(&self) -> bool {
        [&self.pre_tokenizer, &self.decoder].iter().any(|part| part.to_string().contains(r#""ByteLevel""#))
    }

    /// The text that tokenizer.json pads with.
    pub fn pad_token(&self) -> Option<&str> {
        self.padding["pad_token"].as_str()
    }

    /// The regular expressions that split text, for [`super::splitting`].
    pub fn patterns(&self) -> Vec<String> {
        let mut patterns = Vec::new();
        let mut collect = |part: &Value| {
            match part["type"].as_str() {
                Some("Split" | "Replace") => patterns.extend(part["pattern"]["Regex"].as_str().map(str::to_owned)),
                Some("ByteLevel") if part["use_regex"] != false && part.get("add_prefix_space").is_some() => {
                    patterns.push(BYTE_LEVEL.to_owned());
                }
                _ => {}
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
    for key in ["normalizers", "pretokenizers", "decoders", "processors"] {
        for inner in part[key].as_array().into_iter().flatten() {
            each(inner, visit)?;
        }
    }
    Ok(())
}

/// How many times longer a normalizer or decoder makes a text of some length, at most.
fn growth(part: &Value) -> f64 {
    let inner = ["normalizers", "decoders"].iter().find_map(|key| part[*key].as_array());
    if let Some(inner) = inner {
        return inner.iter().map(growth).product();
    }
    let content = part["content"].as_str().map_or(0, str::len) as f64;
    match part["type"].as_str() {
        Some("Replace") => match part["pattern"]["String"].as_str() {
            Some(text) if !text.is_empty() => (content / text.len() as f64).max(1.0),
            _ => content + 1.0,
        },
        Some("Prepend") => 1.0 + part["prepend"].as_str().map_or(0, str::len) as f64,
        Some("NFKC" | "NFKD" | "Precompiled") => 18.0,
        Some("NFD" | "BertNormalizer") => 4.0,
        Some("NFC" | "Lowercase" | "ByteLevel" | "Nmt") => 3.0,
        _ => 1.0,
    }
}

/// Pieces of the longest template.
fn pieces(post_processor: &Value) -> usize {
    let inner = post_processor["processors"].as_array().into_iter().flatten().map(pieces);
    let of = |key: &str| post_processor[key].as_array().map_or(0, Vec::len);
    inner.chain([of("single"), of("pair")]).max().unwrap_or(0)
}

fn check_part(part: &Value) -> Result<()> {
    match part["type"].as_str() {
        Some("FixedLength") if part["length"].as_u64() == Some(0) => refused("its pre-tokenizer `FixedLength` has the length 0"),
        Some("Precompiled") => {
            let table = part["precompiled_charsmap"].as_str().unwrap_or_default();
            match from_base64(table).filter(|table| table.len() <= TABLE && is_sound(table)) {
                Some(_) => Ok(()),
                None => refused("the table of its normalizer `Precompiled` is damaged"),
            }
        }
        _ => Ok(()),
    }
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [None; 256];
    for (value, digit) in (0u32..).zip(DIGITS) {
        values[usize::from(*digit)] = Some(value);
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0;
        for byte in four {
            bits = bits << 6 | values[usize::from(*byte)]?;
        }
        bits <<= 6 * (4 - four.len() as u32);
        out.extend(bits.to_be_bytes()[1..four.len()].iter());
    }
    Some(out)
}

/// Whether every path through a SentencePiece table stays inside it: its length, a double array of units of 32 bits, and
/// texts, each ended by a zero byte. Format: `Darts::DoubleArray` of SentencePiece.
fn is_sound(table: &[u8]) -> bool {
    let Some((length, rest)) = table.split_first_chunk::<4>() else { return false };
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (Some(units), Some(texts)) = (rest.get(..length), rest.get(length..)) else { return false };
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let units: Vec<u32> = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let offset = |unit: u32| (unit as usize >> 10) << ((unit & 1 << 9) >> 6);
    let Some(root) = units.first() else { return false };
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(*root)];
    while let Some(node) = open.pop() {
        match seen.get_mut(node) {
            Some(seen) if *seen => continue,
            Some(seen) => *seen = true,
            None => return false,
        }
        for byte in 1..=255usize {
            let at = node ^ byte;
            let Some(unit) = units.get(at) else { return false };
            if (*unit & (1 << 31 | 0xff)) as usize != byte {
                continue;
            }
            let next = at ^ offset(*unit);
            if unit >> 8 & 1 == 1 {
                let value = units.get(next).map(|leaf| (leaf & ((1 << 31) - 1)) as usize);
                if !value.is_some_and(|value| texts.is_char_boundary(value)) {
                    return false;
                }
            }
            open.push(next);
        }
    }
    true
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
        assert!(read(|f| f["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})).is_err());
        let inner = json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]});
        assert!(read(|f| f["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [inner]})).is_err());
        assert!(read(|f| f["added_tokens"] = json!([{"id": u32::MAX, "content": "x"}])).is_err());
        assert!(read(|f| f["model"]["vocab"]["b"] = u32::MAX.into()).is_err());
        assert!(read(|f| f["model"]["vocab"]["b".repeat(70_000)] = 1.into()).is_err());
        assert!(read(|f| f["model"]["max_input_chars_per_word"] = 100_000.into()).is_err());
        let piece = json!({"Sequence": {"id": "A", "type_id": 0}});
        assert!(read(|f| f["post_processor"] = json!({"type": "TemplateProcessing", "single": vec![piece; 100], "pair": []})).is_err());
        let nested = (0..100).fold(json!(null), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
        assert!(read(|f| f["normalizer"] = nested).is_err());
        assert!(Outline::read("[".repeat(1 << 20).as_bytes()).is_err());
        let merges = |file: &mut Value| {
            file["model"]["continuing_subword_prefix"] = "##".into();
            file["model"]["merges"] = json!(["a b"]);
        };
        assert!(read(merges).is_err());
    }

    #[test]
    fn tables_of_precompiled_are_walked() {
        // One unit for the root, 256 for its children: `a` (97) becomes the text at 0.
        let unit = |offset: u32, leaf: u32, label: u32| offset << 10 | leaf << 8 | label;
        let table = |value: u32| {
            let mut units = vec![0u32; 1024];
            units[0] = unit(256, 0, 0);
            units[256 ^ 97] = unit(512 ^ 256 ^ 97, 1, 97);
            units[512] = value;
            let mut bytes = 4096u32.to_le_bytes().to_vec();
            bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
            bytes.extend("é\0".as_bytes());
            bytes
        };
        assert!(is_sound(&table(0)) && is_sound(&table(2)));
        assert!(!is_sound(&table(1)), "inside a character");
        assert!(!is_sound(&table(9)), "past the texts");
        assert!(!is_sound(&table(0)[..2000]) && !is_sound(&[]) && !is_sound(&[0; 4]));
        assert_eq!(from_base64("AAECAwQ=").unwrap(), [0, 1, 2, 3, 4]);
        assert!(from_base64("A*").is_none());
        assert!(read(|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="})).is_err());
    }
}
