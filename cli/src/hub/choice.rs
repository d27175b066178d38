//! Which files of a model's repository are needed. Names and sizes only; it fetches nothing.

use super::id::HubId;
use doppler::formats::ModelTexts;
use doppler::formats::gguf;
use doppler::formats::shards::is_plain;
use doppler::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// The index of a checkpoint in several files.
pub const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Names that an error lists, at most.
const LISTED: usize = 12;

/// What a list says of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub size: Option<u64>,
    /// Of large files.
    pub sha256: Option<String>,
    /// What Git calls its content, of small ones.
    pub git: Option<String>,
}

/// A model's files by name.
pub type Files = BTreeMap<String, Entry>;

/// Reads the Hub's list: the commit of the revision, and its files.
///
/// # Errors
/// `Kind::Format` for anything else, and for names that lead out of the model's folder.
pub fn parse(id: &HubId, text: &str) -> Result<(String, Files)> {
    let bad = |message: String| Error::format(id, format!("the Hub's list of its files: {message}"));
    let json: Value = serde_json::from_str(text).map_err(|e| bad(format!("expected JSON, found: {e}")))?;
    let commit = json["sha"].as_str().filter(|sha| is_hex(sha, 40)).ok_or_else(|| bad("expected a commit as `sha`".into()))?;
    let rows = json["siblings"].as_array().ok_or_else(|| bad("expected a list `siblings`".into()))?;
    let mut files = Files::new();
    for row in rows {
        let name = row["rfilename"].as_str().ok_or_else(|| bad("expected a name (`rfilename`) of each file".into()))?;
        if !is_plain(name) || name.chars().any(char::is_control) {
            return Err(bad(format!("`{name}` is not a file of the model's folder")));
        }
        let hash = |value: &Value, digits: usize| value.as_str().filter(|hash| is_hex(hash, digits)).map(str::to_lowercase);
        let size = row["lfs"]["size"].as_u64().or_else(|| row["size"].as_u64());
        let entry = Entry { size, sha256: hash(&row["lfs"]["sha256"], 64), git: hash(&row["blobId"], 40) };
        files.insert(name.to_string(), entry);
    }
    Ok((commit.to_lowercase(), files))
}

/// Whether `text` is a number of so many hexadecimal digits.
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What of a repository is a model.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// A folder: its texts, and its weights.
    Folder(Vec<String>, Weights),
    /// The files of one GGUF model, in order.
    Gguf(Vec<String>),
}

/// Weights of a folder.
#[derive(Debug, PartialEq, Eq)]
pub enum Weights {
    /// These files.
    Files(Vec<String>),
    /// Those that [`INDEX`] names.
    OfIndex,
}

/// The files that `id` asks for: the one that it names; else safetensors with what belongs to them, else the only GGUF file.
///
/// # Errors
/// `Kind::Io` saying what there is to choose from.
pub fn choose(id: &HubId, files: &Files) -> Result<Choice> {
    let of_gguf = || {
        let sizes = files.iter().map(|(name, entry)| (name.clone(), entry.size)).collect();
        let chosen = gguf::choose(&id.model(), &format!("{}:FILE", id.model()), id.file.as_deref(), &sizes)?;
        let nothing = || format!("the repository has neither config.json with safetensors files nor GGUF files; {}", listed(files));
        chosen.map(Choice::Gguf).ok_or_else(|| Error::io(id, nothing()))
    };
    if id.file.is_some() {
        return of_gguf();
    }
    let has = |name: &str| files.contains_key(name);
    let texts: Vec<String> = ModelTexts::FILES.iter().filter(|name| has(name)).map(|name| (*name).to_string()).collect();
    let others: Vec<String> = files.keys().filter(|name| name.ends_with(".safetensors") && !name.contains('/')).cloned().collect();
    match () {
        () if !has("config.json") => of_gguf(),
        () if has(SINGLE) => Ok(Choice::Folder(texts, Weights::Files(vec![SINGLE.into()]))),
        () if has(INDEX) => Ok(Choice::Folder([texts, vec![INDEX.into()]].concat(), Weights::OfIndex)),
        // Which of them are its weights, the folder's reader says.
        () if !others.is_empty() => Ok(Choice::Folder(texts, Weights::Files(others))),
        () => of_gguf(),
    }
}

fn listed(files: &Files) -> String {
    let names: Vec<&str> = files.keys().take(LISTED).map(String::as_str).collect();
    let more = if files.len() > names.len() { format!(", … ({} files)", files.len()) } else { String::new() };
    let pytorch = files.keys().any(|name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)));
    let hint = if pytorch { "; PyTorch files are not read: look for a copy of the model in safetensors" } else { "" };
    format!("it holds {}{more}{hint}", if names.is_empty() { "nothing".to_string() } else { names.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Files {
        names.iter().map(|name| ((*name).to_string(), Entry { size: Some(2_500_000_000), ..Entry::default() })).collect()
    }

    fn chosen(spec: &str, names: &[&str]) -> Result<Choice> {
        choose(&HubId::parse(spec).unwrap().unwrap(), &files(names))
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_string()).collect()
    }

    #[test]
    fn only_what_is_needed_is_chosen() {
        let more = ["README.md", "config.json", "onnx/model.onnx", "pytorch_model.bin", "tokenizer.json", "chat_template.jinja", "a.gguf"];
        let folder = |weights: &[&str]| chosen("a/b", &[&more[..], weights].concat()).unwrap();
        let small = || texts(&["config.json", "tokenizer.json", "chat_template.jinja"]);
        assert_eq!(folder(&[SINGLE, INDEX]), Choice::Folder(small(), Weights::Files(texts(&[SINGLE]))));
        assert_eq!(folder(&[INDEX, "x.safetensors"]), Choice::Folder([small(), texts(&[INDEX])].concat(), Weights::OfIndex));
        assert_eq!(folder(&["x.safetensors", "q/y.safetensors"]), Choice::Folder(small(), Weights::Files(texts(&["x.safetensors"]))));
        assert_eq!(folder(&[]), Choice::Gguf(texts(&["a.gguf"])));
    }

    #[test]
    fn gguf_files_are_chosen_where_nothing_else_is() {
        assert_eq!(chosen("a/b", &["a.gguf", "config.json", "README.md"]).unwrap(), Choice::Gguf(texts(&["a.gguf"])));
        assert_eq!(chosen("a/b:q8_0", &["a-q8_0.gguf", "b.gguf"]).unwrap(), Choice::Gguf(texts(&["a-q8_0.gguf"])));
        let message = |names: &[&str]| chosen("a/b@v1", names).unwrap_err().message;
        assert!(message(&["a.gguf", "b.gguf"]).contains("a/b@v1:FILE"));
        assert!(message(&["pytorch_model.bin", "config.json"]).contains("PyTorch"));
        assert!(message(&[]).contains("nothing"));
    }

    #[test]
    fn lists_are_read_and_doubted() {
        let id = HubId::parse("a/b").unwrap().unwrap();
        let list = |name: &str| {
            format!(r#"{{"sha":"{}","siblings":[{{"rfilename":"{name}","size":3,"blobId":"{}"}}]}}"#, "A".repeat(40), "b".repeat(40))
        };
        let (commit, found) = parse(&id, &list("x/y.json")).unwrap();
        assert_eq!((commit, found["x/y.json"].clone()), ("a".repeat(40), Entry { size: Some(3), sha256: None, git: Some("b".repeat(40)) }));
        for name in ["../x", "/etc/passwd", "a/../../x", "c:x", "a\\\\b", ""] {
            assert!(parse(&id, &list(name)).unwrap_err().message.contains("not a file of the model's folder"), "{name}");
        }
        for text in ["", "[]", "{}", r#"{"sha":"../x","siblings":[]}"#, r#"{"sha":"x"}"#] {
            assert!(parse(&id, text).is_err(), "{text}");
        }
    }
}
