//! How a model of the Hub is spelled: `org/name[@revision][:FILE]`.

use doppler::formats::shards::is_plain;
use doppler::{Error, Result};
use std::fmt;

/// The revision that is meant where none is given.
pub const MAIN: &str = "main";

/// A model of the Hub, or one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// A GGUF file, or what tells it from the others (`Q4_K_M`).
    pub file: Option<String>,
}

impl HubId {
    /// What `spec` names; `None` where it has no such form.
    ///
    /// # Errors
    /// `Kind::Invalid` for a revision or file that leads out of the model's folder.
    pub fn parse(spec: &str) -> Result<Option<Self>> {
        let (spec_of_repo, file) = spec.split_once(':').map_or((spec, None), |(before, file)| (before, Some(file)));
        let (repo, revision) = spec_of_repo.split_once('@').map_or((spec_of_repo, None), |(repo, revision)| (repo, Some(revision)));
        if !is_repo(repo) {
            return Ok(None);
        }
        let checked = |what: &str, text: Option<&str>| match text {
            Some(text) if !is_plain(text) || text.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                Err(Error::invalid(spec, format!("`{text}` is no {what} of a model of the Hub; expected org/name[@revision][:FILE]")))
            }
            text => Ok(text.map(String::from)),
        };
        let (revision, file) = (checked("revision", revision)?, checked("file", file)?);
        Ok(Some(Self { repo: repo.into(), revision: revision.unwrap_or_else(|| MAIN.into()), file }))
    }
    /// The model without its file.
    pub fn model(&self) -> String {
        if self.revision == MAIN { self.repo.clone() } else { format!("{}@{}", self.repo, self.revision) }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.model())?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// Whether `text` is `org/name`, of the characters that the Hub allows.
fn is_repo(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let part = |text: &str| text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && text.chars().all(allowed);
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_up_to_three_parts() {
        let parts = |spec: &str| HubId::parse(spec).unwrap().map(|id| (id.repo, id.revision, id.file));
        let expected = |repo: &str, revision: &str, file: Option<&str>| Some((repo.into(), revision.into(), file.map(String::from)));
        assert_eq!(parts("google/gemma-2-2b-it"), expected("google/gemma-2-2b-it", "main", None));
        assert_eq!(parts("a/b@refs/pr/1"), expected("a/b", "refs/pr/1", None));
        assert_eq!(parts("a/b:q/x-00001-of-00002.gguf"), expected("a/b", "main", Some("q/x-00001-of-00002.gguf")));
        assert_eq!(parts("a/b@v1:Q4_K_M"), expected("a/b", "v1", Some("Q4_K_M")));
        for other in ["demo", "./a/b", "a/b/c", "/a/b", "a/", "a/b c", "C:/models/x.gguf", "C:\\x", "", "https://h/a/b", "a/.b", "../b"] {
            assert_eq!(parts(other), None, "{other}");
        }
        for spec in ["a/b", "a/b@v1", "a/b@v1:x.gguf", "a/b:x"] {
            assert_eq!(HubId::parse(spec).unwrap().unwrap().to_string(), spec);
        }
    }

    #[test]
    fn ways_out_of_the_folder_are_refused() {
        for spec in ["a/b:../x.gguf", "a/b@../../x", "a/b:/etc/passwd", "a/b@", "a/b:", "a/b:c\\d.gguf", "a/b:x y.gguf", "a/b:q/../x.gguf"]
        {
            assert!(HubId::parse(spec).unwrap_err().message.contains("org/name[@revision][:FILE]"), "{spec}");
        }
    }
}
