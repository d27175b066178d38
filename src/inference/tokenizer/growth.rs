//! How much longer the parts of a tokenizer.json make what goes through them, at most. Each part of a kind that can lengthen
//! has its factor here; a sequence has the product of its parts.
//!
//! A part is known by its `type` or by a key that only its kind has: the `tokenizers` crate reads parts without a `type`, or
//! with one that it does not know, by their keys. Kinds that are not named here remove, split or change characters for others
//! of no more bytes:
//! - normalizers `Strip`, `StripAccents`, `Nmt`;
//! - pre-tokenizers `BertPreTokenizer`, `CharDelimiterSplit`, `Digits`, `FixedLength`, `Punctuation`, `Split`,
//!   `UnicodeScripts`, `Whitespace`, `WhitespaceSplit`;
//! - post-processor `ByteLevel`;
//! - decoders `ByteFallback` (six bytes become three at most), `Fuse`, `Metaspace`, `Strip`.

use serde_json::Value;

use super::precompiled;

/// The keys under which a sequence has its parts.
const PARTS: [&str; 4] = ["normalizers", "pretokenizers", "decoders", "processors"];

/// The parts of a sequence.
pub(super) fn parts(part: &Value) -> impl Iterator<Item = &Value> {
    PARTS.iter().flat_map(|key| part[*key].as_array().into_iter().flatten())
}

/// Whether a part is of one of `kinds`, or has `key`, which only they have.
fn is(part: &Value, kinds: &[&str], key: &str) -> bool {
    part["type"].as_str().is_some_and(|kind| kinds.contains(&kind)) || part.get(key).is_some()
}

fn length(part: &Value, key: &str) -> f64 {
    part[key].as_str().map_or(0, str::len) as f64
}

/// The largest of a part's own factors, 1 at least, times those of its parts.
fn product(part: &Value, own: &[f64], inner: fn(&Value) -> f64) -> f64 {
    own.iter().copied().fold(1.0, f64::max) * parts(part).map(inner).product::<f64>()
}

/// How many bytes a normalizer makes of a byte, at most. The factors of Unicode's forms are those of its FAQ on normalization.
pub(super) fn normalizer(part: &Value) -> f64 {
    let kind = part["type"].as_str().unwrap_or_default();
    let unicode = match kind {
        "NFKC" | "NFKD" => 11.0,
        "NFC" | "NFD" => 3.0,
        "ByteLevel" => 2.0,
        "Lowercase" => 1.5,
        _ => 1.0,
    };
    // Blanks around Chinese characters, NFD and small letters.
    let bert = if is(part, &["Bert", "BertNormalizer"], "handle_chinese_chars") { 8.0 } else { 1.0 };
    let table = part["precompiled_charsmap"].as_str().and_then(precompiled::growth).unwrap_or(1.0);
    product(part, &[unicode, bert, table, replace(part), 1.0 + length(part, "prepend")], normalizer)
}

/// `Replace`, as normalizer or decoder. A pattern that can match nothing matches before each character and at the end.
fn replace(part: &Value) -> f64 {
    let content = length(part, "content");
    match part.get("pattern") {
        None => 1.0,
        Some(pattern) => match pattern["String"].as_str() {
            Some(text) if !text.is_empty() => content / text.len() as f64,
            _ => 1.0 + 2.0 * content,
        },
    }
}

/// How many bytes a pre-tokenizer makes of a byte, at most. What it puts before a text it may put before each character,
/// as others split the text before it.
pub(super) fn pre_tokenizer(part: &Value) -> f64 {
    let metaspace = if is(part, &["Metaspace"], "replacement") { 1.0 + length(part, "replacement") } else { 1.0 };
    let bytes = match part["add_prefix_space"].as_bool() {
        _ if !is(part, &["ByteLevel"], "add_prefix_space") => 1.0,
        Some(false) => 2.0,
        _ => 4.0,
    };
    product(part, &[metaspace, bytes], pre_tokenizer)
}

/// How many bytes and pieces a decoder makes of a byte or piece, at most.
pub(super) fn decoder(part: &Value) -> f64 {
    // A text that is replaced by a blank and is empty is found before each character and at the end.
    let blank = |key: &str| if part.get(key).is_some_and(|text| text == "") { 3.0 } else { 1.0 };
    // A byte that is no UTF-8, spelled in two bytes, becomes U+FFFD.
    let bytes = if is(part, &["ByteLevel"], "add_prefix_space") { 1.5 } else { 1.0 };
    let word_piece = if is(part, &["WordPiece"], "prefix") { 2.0 } else { 1.0 };
    product(part, &[bytes, word_piece, blank("word_delimiter_token"), blank("suffix"), replace(part)], decoder)
}

/// What a post-processor puts around a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Around {
    /// Pieces of its templates in all.
    pub pieces: usize,
    /// How often the text itself stands there.
    pub copies: f64,
    /// Ids that are added, and bytes of their spelling.
    pub added: usize,
}

/// What a post-processor puts around a text, at most.
pub(super) fn post_processor(part: &Value) -> Around {
    let template = |key: &str| {
        let pieces = part[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let added = pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str()).map(|id| weight(&part["special_tokens"][id]));
        let copies = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count().max(1);
        Around { pieces: pieces.len(), copies: copies as f64, added: added.fold(0, usize::saturating_add) }
    };
    // BERT's and RoBERTa's: one before, two between, one after.
    let named = ["cls", "sep"].map(|key| part[key][0].as_str().map_or(0, |text| 2 + 2 * text.len()));
    let own = [template("single"), template("pair")];
    let own = own.into_iter().fold(Around { pieces: 0, copies: 1.0, added: named[0] + named[1] }, |a, b| Around {
        pieces: a.pieces.max(b.pieces),
        copies: a.copies.max(b.copies),
        added: a.added.max(b.added),
    });
    parts(part).map(post_processor).fold(own, |a, b| Around {
        pieces: a.pieces + b.pieces,
        copies: a.copies * b.copies,
        added: a.added.saturating_add(b.added),
    })
}

/// Ids of a template's special token and bytes of their spelling.
fn weight(special: &Value) -> usize {
    let list = |key: &str| special[key].as_array().map(Vec::as_slice).unwrap_or_default();
    list("ids").len() + list("tokens").iter().map(|text| text.as_str().map_or(0, str::len)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_without_a_type_are_known_by_their_keys() {
        let tagged = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"});
        let mut bare = tagged.clone();
        bare.as_object_mut().unwrap().remove("type");
        assert_eq!((normalizer(&tagged), normalizer(&bare), decoder(&bare)), (4.0, 4.0, 4.0));
        assert_eq!(normalizer(&json!({"type": "?", "prepend": "abc"})), 4.0);
        assert_eq!(normalizer(&json!({"normalizers": [bare, {"type": "NFKC"}]})), 44.0);
        // A list of parts in a part that is no sequence hides nothing.
        assert_eq!(normalizer(&json!({"type": "Prepend", "prepend": "abc", "normalizers": []})), 4.0);
        assert_eq!(pre_tokenizer(&json!({"add_prefix_space": true, "trim_offsets": true})), 4.0);
        assert_eq!(decoder(&json!({"pad_token": "", "word_delimiter_token": "", "cleanup": true})), 3.0);
    }

    #[test]
    fn known_pipelines_stay_small() {
        let llama = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        assert_eq!(normalizer(&llama), 12.0);
        let xlnet = json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            {"type": "NFKD"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        assert!(normalizer(&xlnet) * pre_tokenizer(&metaspace) < 4096.0);
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let split = json!({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": false});
        assert_eq!(pre_tokenizer(&json!({"type": "Sequence", "pretokenizers": [split, level]})), 2.0);
        let decoders = json!([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
        assert_eq!(decoder(&json!({"type": "Sequence", "decoders": decoders})), 1.0);
    }

    #[test]
    fn templates_are_counted_by_ids() {
        let one = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let template = json!({"type": "TemplateProcessing", "single": [one, one, text], "pair": [text, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 2], "tokens": ["<", "s>"]}}});
        assert_eq!(post_processor(&template), Around { pieces: 3, copies: 2.0, added: 10 });
        let twice = json!({"type": "Sequence", "processors": [template, template]});
        assert_eq!(post_processor(&twice), Around { pieces: 6, copies: 4.0, added: 20 });
        let roberta = json!({"sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": true});
        assert_eq!(post_processor(&roberta), Around { pieces: 0, copies: 1.0, added: 18 });
    }
}
