//! The engine's error type: where it went wrong, what was expected, what was found, what to try. Programs read `kind` and
//! `about`; the text is for people and nobody parses it.
//! It knows no command line and no exit codes; `cli` turns kinds into exit codes.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// Shorthand used through the whole engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. Kinds decide exit codes and let callers react; texts are for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `config.json`, a preset or a runtime config: a key is missing, unknown or has a bad value.
    Config,
    /// The architecture or an option of it is not supported.
    Unsupported,
    /// Bytes of a file do not follow their format.
    Format,
    /// Tensors that a plan needs are missing, extra or misshapen.
    Weights,
    /// A tokenizer is missing or cannot be read.
    Tokenizer,
    /// A chat template is missing or cannot be rendered.
    Template,
    /// The caller asked for something that cannot be (ids out of range, an empty prompt, an unknown stage).
    Invalid,
    /// A plan breaks the rules of `plan::verify`.
    Plan,
    /// No adapter, a lost device, a shader that does not compile.
    Device,
    /// Not enough memory, on the device or the host.
    Memory,
    /// Reading or writing a file failed.
    Io,
    /// The model's values are not usable (for example no finite logit to sample from): a finding, not misuse.
    Finding,
}

impl Kind {
    /// Its name, one lower-case word, as in JSON.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What an error is about, for programs. In JSON one member, whose name says which: `{"key": "hidden_size"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum About {
    /// A key of `config.json`, of a runtime config or of another JSON file, as a dotted path.
    Key(String),
    /// Tensors of a checkpoint that do not fit the plan.
    Tensors(Vec<Misfit>),
    /// A value of the model.
    Value {
        /// Name of its stage.
        stage: String,
        /// Its layer, for stages that exist per layer.
        layer: Option<usize>,
    },
    /// What could not be read or written, or holds malformed bytes: a file, by the name in the text.
    File(String),
    /// Memory that is needed and not there, in bytes. The text has the table of a forecast.
    Memory {
        /// What is needed.
        needed: u64,
        /// What there is.
        available: u64,
    },
    /// A step was to read the token that the step before picked, and that one picked none.
    NothingPicked,
}

/// A tensor that does not fit the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Misfit {
    /// Its name in the checkpoint.
    pub tensor: String,
    /// What is wrong.
    pub problem: TensorProblem,
    /// The shape, or the types, that the plan needs.
    pub expected: Option<String>,
    /// The shape, or the type, that the checkpoint has.
    pub found: Option<String>,
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TensorProblem {
    /// The checkpoint lacks it.
    Missing,
    /// It has another shape.
    Shape,
    /// Its elements have a type that weights cannot have.
    Type,
    /// The plan has no place for it.
    Extra,
}

/// An error with its kind and one to several plain sentences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of error this is.
    pub kind: Kind,
    /// The text for people.
    pub message: String,
    /// What it is about, where a program could act on that.
    pub about: Option<Box<About>>,
}

impl Error {
    /// An error of `kind` with a plain text.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), about: None }
    }
    /// A configuration error about `key`.
    pub fn config(key: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::new(Kind::Config, format!("config key `{key}`: {message}")).on(About::Key(key.to_string()))
    }
    /// Something that Doppler does not support.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }
    /// Malformed bytes in `file`.
    pub fn format(file: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::new(Kind::Format, format!("{file}: {message}")).on(About::File(file.to_string()))
    }
    /// Missing, extra or misshapen tensors.
    pub fn weights(message: impl Into<String>) -> Self {
        Self::new(Kind::Weights, message)
    }
    /// A tokenizer problem.
    pub fn tokenizer(message: impl Into<String>) -> Self {
        Self::new(Kind::Tokenizer, message)
    }
    /// A chat template problem.
    pub fn template(message: impl Into<String>) -> Self {
        Self::new(Kind::Template, message)
    }
    /// Invalid input: `what` names the argument or key.
    pub fn invalid(what: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::new(Kind::Invalid, format!("{what}: {message}"))
    }
    /// A plan that breaks a rule.
    pub fn plan(message: impl Into<String>) -> Self {
        Self::new(Kind::Plan, message)
    }
    /// An adapter, device or shader problem.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }
    /// Too little memory.
    pub fn memory(message: impl Into<String>) -> Self {
        Self::new(Kind::Memory, message)
    }
    /// A file that cannot be read or written.
    pub fn io(path: impl fmt::Display, error: impl fmt::Display) -> Self {
        let error = error.to_string();
        Self::new(Kind::Io, format!("{path}: {}", without_number(&error))).on(About::File(path.to_string()))
    }
    /// Values of the model that are unusable.
    pub fn finding(message: impl Into<String>) -> Self {
        Self::new(Kind::Finding, message)
    }
    /// The same error, about `about`.
    #[must_use]
    pub fn on(mut self, about: About) -> Self {
        self.about = Some(Box::new(about));
        self
    }
    /// The same error with `context: ` in front.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// What the system says of an error, without the number that it has there: "No such file or directory (os error 2)".
fn without_number(text: &str) -> Cow<'_, str> {
    const NUMBER: &str = " (os error ";
    let found = text.find(NUMBER).and_then(|at| Some((at, at + text[at..].find(')')? + 1)));
    found.map_or(text.into(), |(at, end)| format!("{}{}", &text[..at], &text[end..]).into())
}

/// The entries of `known` nearest to `word`, best first, at most three: for "did you mean".
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(usize, &str)> = known.into_iter().map(|k| (edit_distance(word, k), k)).collect();
    scored.sort();
    let limit = word.len().max(6) / 2 + 1;
    scored.into_iter().filter(|(d, _)| *d <= limit).take(3).map(|(_, k)| k).collect()
}

/// The nearest of what a model has, in brackets behind a message; nothing where nothing is near.
pub fn near_text<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = nearest(word, known);
    if near.is_empty() { String::new() } else { format!(" (nearest that it has: {})", near.join(", ")) }
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let substitution = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos() {
        assert_eq!(nearest("layer_uot", ["layer_out", "layer_in", "q_proj"])[0], "layer_out");
        assert!(nearest("zzzzzzzzzzzz", ["q_proj"]).is_empty());
    }

    #[test]
    fn errors_of_the_system_are_words() {
        let error = std::io::Error::from_raw_os_error(2);
        assert!(error.to_string().contains("(os error 2)"));
        let message = Error::io("model.gguf", error).message;
        assert!(message.starts_with("model.gguf: ") && !message.contains("os error"), "{message}");
        assert_eq!(Error::io("x", "no such file").message, "x: no such file");
        assert_eq!(Error::io("x", "cannot start: gone (os error 2); try y").message, "x: cannot start: gone; try y");
    }

    #[test]
    fn what_an_error_is_about_outlives_its_context() {
        let error = Error::config("text_config.rope_theta", "should be a number").within("my-model");
        assert_eq!(error.message, "my-model: config key `text_config.rope_theta`: should be a number");
        assert_eq!(error.about.as_deref(), Some(&About::Key("text_config.rope_theta".into())));
        assert_eq!(serde_json::to_string(&error.about).unwrap(), r#"{"key":"text_config.rope_theta"}"#);
        let value = About::Value { stage: "ffn_out".into(), layer: Some(3) };
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"value":{"stage":"ffn_out","layer":3}}"#);
        // It also crosses the link to a browser, whose format is not self-describing.
        let bytes = postcard::to_allocvec(&error).unwrap();
        assert_eq!(postcard::from_bytes::<Error>(&bytes).unwrap(), error);
    }
}
