//! A text's ids by this tokenizer against expected ones: of a file, or of the `tokenizers` package in Python.

use super::agree::text;
use super::sides::reported;
use crate::end::{Ended, Stop};
use crate::model::{self, Model};
use doppler::debug::tokenisation::{compare, parse_ids};
use doppler::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Reads {tokenizer, text, special} on stdin, prints {version, ids}.
const SCRIPT: &str = "
import json, sys
try:
    import tokenizers
except ImportError:
    sys.exit(3)
asked = json.load(sys.stdin)
known = tokenizers.Tokenizer.from_str(asked['tokenizer'])
known.no_padding()
known.no_truncation()
ids = known.encode(asked['text'], add_special_tokens=asked['special']).ids
json.dump({'version': tokenizers.__version__, 'ids': ids}, sys.stdout)
";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The text (- for stdin)
    #[arg(value_name = "TEXT")]
    text: PathBuf,
    /// The model whose tokenizer is meant
    #[arg(short, long, value_name = "MODEL", default_value = model::DEMO)]
    model: String,
    /// Go on although config.json has keys that are not understood
    #[arg(long)]
    allow_unknown_config: bool,
    /// The expected ids: a JSON list, or numbers with commas or blanks; without it, Python's `tokenizers` is asked
    /// ($DOPPLER_PYTHON, else python3)
    #[arg(long, value_name = "FILE")]
    expect_ids: Option<PathBuf>,
    /// The expected ids have no BOS: add nothing to ours
    #[arg(long)]
    no_special: bool,
    /// Write what was found as JSON; `-` is stdout, in place of the line
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    let model = model::open(&args.model, args.allow_unknown_config)?;
    reported(args.json.as_deref(), None, |out| held(args, &model, out))
}

/// The ids of the text held against the expected ones.
///
/// # Errors
/// `Kind::Tokenizer` for a model without a tokenizer; `Kind::Io` when files or Python cannot be used; `Kind::Format` for
/// what are no ids.
fn held(args: &Args, model: &Model, out: &mut dyn Write) -> Result<(Ended, Value), Stop> {
    let (words, asked) = (model.needed_words("there are no tokens to compare")?, text(&args.text)?);
    let special = !args.no_special;
    let (expected, source) = match &args.expect_ids {
        Some(file) => (parse_ids(&file.display().to_string(), &text(file)?)?, file.display().to_string()),
        None => by_python(&python(), model, &asked, special)?,
    };
    let found = compare(&words.tokenizer, &asked, special, &expected)?;
    writeln!(out, "{}", found.text())?;
    let mut document = serde_json::to_value(&found).map_err(|e| Error::io("--json", e))?;
    document["source"] = json!(source);
    Ok((if found.mismatch.is_some() { Ended::Finding } else { Ended::Fine }, document))
}

/// The interpreter to ask.
fn python() -> String {
    std::env::var("DOPPLER_PYTHON").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "python3".into())
}

/// Ids by the `tokenizers` package of `python`, and its name and version.
fn by_python(python: &str, model: &Model, text: &str, special: bool) -> Result<(Vec<u32>, String)> {
    let failed = |what: String| {
        let hint = "give the expected ids with --expect-ids FILE, or set DOPPLER_PYTHON to a Python that has `tokenizers` (pip install tokenizers)";
        Error::io(python, format!("{what}; {hint}"))
    };
    let tokenizer = model.files.texts.tokenizer.as_deref().unwrap_or_default();
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(format!("cannot be started: {e}")))?;
    let asked = json!({"tokenizer": tokenizer, "text": text, "special": special}).to_string();
    if let Some(mut stdin) = child.stdin.take() {
        // A script that ended early tells why by how it ended.
        let _ = stdin.write_all(asked.as_bytes());
    }
    let ended = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    match ended.status.code() {
        Some(0) => {}
        Some(3) => return Err(failed("it has no `tokenizers`".into())),
        code => {
            let said = String::from_utf8_lossy(&ended.stderr).trim().lines().last().unwrap_or("nothing").to_string();
            let code = code.map_or("a signal".into(), |code| code.to_string());
            return Err(failed(format!("the script ended with {code} and said: {said}")));
        }
    }
    #[derive(serde::Deserialize)]
    struct Answer {
        version: String,
        ids: Vec<u32>,
    }
    let answer: Answer = serde_json::from_slice(&ended.stdout).map_err(|e| failed(format!("its answer is no list of ids: {e}")))?;
    Ok((answer.ids, format!("tokenizers {}", answer.version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_file_and_of_python() {
        let demo = model::open(model::DEMO, false).unwrap();
        let folder = std::env::temp_dir().join(format!("doppler-tokens-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (asked, ids) = (folder.join("asked.txt"), folder.join("ids.json"));
        let words = "The sea was größer than 😀.";
        std::fs::write(&asked, words).unwrap();
        let ours = demo.needed_words("-").unwrap().raw(words).unwrap();
        let args = Args {
            text: asked.clone(),
            model: model::DEMO.into(),
            allow_unknown_config: false,
            expect_ids: Some(ids.clone()),
            no_special: false,
            json: None,
        };
        let told = |args: &Args| {
            let mut out = Vec::new();
            held(args, &demo, &mut out).map(|(ended, document)| (ended, document, String::from_utf8(out).unwrap()))
        };
        std::fs::write(&ids, format!("{ours:?}")).unwrap();
        let (ended, _, line) = told(&args).unwrap();
        assert_eq!((ended, line), (Ended::Fine, format!("TOKENS {} equal\n", ours.len())));
        std::fs::write(&ids, format!("{:?}", &ours[1..])).unwrap();
        let (ended, document, line) = told(&args).unwrap();
        assert!(ended == Ended::Finding && line.contains("only BOS differs") && document["mismatch"]["index"] == 0, "{line}");
        assert_eq!(told(&Args { no_special: true, ..args }).unwrap().0, Ended::Fine);

        let missing = by_python("no-such-python", &demo, words, true).unwrap_err();
        assert!(missing.message.contains("DOPPLER_PYTHON") && missing.message.contains("--expect-ids"), "{missing}");
        // Where the package is there, both are the same; where it is not, that is said.
        match by_python(&python(), &demo, words, true) {
            Ok((expected, source)) => assert!(expected == ours && source.starts_with("tokenizers "), "{source}"),
            Err(error) => assert!(error.message.contains("pip install tokenizers"), "{error}"),
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
