//! Which GGUF files make a model: of a folder's or a repository's names, the one that is asked for, or the only one. Names
//! and sizes only; it opens nothing.

use super::split_files;
use crate::error::{Error, Result, nearest};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Models that an error lists, at most.
const LISTED: usize = 24;

/// Files by name, with their bytes where these are known.
pub type Sizes = BTreeMap<String, Option<u64>>;

/// The files, in order, of the GGUF model among `files` that `wanted` names: a file, any file of a set, or the end of a
/// name (`Q4_K_M`). Without `wanted`, those of the only model; `None` where there is none. `place` and `how` are for errors:
/// where the files are, and how one of them is chosen (`org/name:FILE`).
///
/// # Errors
/// `Kind::Io` saying what there is to choose from; for a set of which files are missing.
pub fn choose(place: &str, how: &str, wanted: Option<&str>, files: &Sizes) -> Result<Option<Vec<String>>> {
    let models = models(files);
    if let Some(wanted) = wanted {
        return named(place, wanted, &models, files).map(Some);
    }
    match &models[..] {
        [only] => complete(place, only, files).map(Some),
        [] => Ok(None),
        several => Err(Error::io(place, format!("there are several GGUF models; choose one ({how}):{}", table(several, files)))),
    }
}

fn named(place: &str, wanted: &str, models: &[Vec<String>], files: &Sizes) -> Result<Vec<String>> {
    if files.contains_key(wanted) {
        if !is_gguf(wanted) {
            return Err(Error::io(place, format!("expected a GGUF file, found `{wanted}`")));
        }
        let all = split_files(wanted).unwrap_or_else(|| vec![wanted.to_string()]);
        return complete(place, &all, files);
    }
    let found: Vec<Vec<String>> =
        models.iter().filter(|model| model.first().is_some_and(|name| ends_in(stem(name), wanted))).cloned().collect();
    match &found[..] {
        [one] => complete(place, one, files),
        [] => {
            let near = nearest(wanted, models.iter().flatten().map(String::as_str));
            let near = near.first().map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            let there =
                if models.is_empty() { "; there are no GGUF files".into() } else { format!(" The GGUF files:{}", table(models, files)) };
            Err(Error::io(place, format!("there is no file `{wanted}`{near}{there}")))
        }
        several => Err(Error::io(place, format!("several files end in `{wanted}`; give one whole:{}", table(several, files)))),
    }
}

/// The files of a model if all are there.
fn complete(place: &str, model: &[String], files: &Sizes) -> Result<Vec<String>> {
    let absent: Vec<&String> = model.iter().filter(|name| !files.contains_key(*name)).collect();
    match absent.first() {
        None => Ok(model.to_vec()),
        Some(first) => Err(Error::io(
            place,
            format!("no such file: `{first}`; {} of the {} files of this model are missing", absent.len(), model.len()),
        )),
    }
}

/// The GGUF models, each with the names of its files in order, which may not all be there. Projectors of images and
/// importance matrices are none.
fn models(files: &Sizes) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    for name in files.keys().filter(|name| is_gguf(name)) {
        let last = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        if !last.starts_with("mmproj") && !last.contains("imatrix") && !found.iter().flatten().any(|known| known == name) {
            found.push(split_files(name).unwrap_or_else(|| vec![name.clone()]));
        }
    }
    found
}

/// Whether a file is called as GGUF files are.
pub fn is_gguf(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("gguf"))
}

/// A model's name without what all have: ending, and number within a set.
fn stem(name: &str) -> &str {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    match stem.rsplit_once("-of-") {
        Some((before, _)) if split_files(name).is_some() => before.rsplit_once('-').map_or(before, |(base, _)| base),
        _ => stem,
    }
}

/// Whether a stem ends in `wanted` as a word of its own.
fn ends_in(stem: &str, wanted: &str) -> bool {
    let (stem, wanted) = (stem.to_lowercase(), wanted.to_lowercase());
    stem.strip_suffix(&wanted).is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '/', '_']))
}

/// A line for each model: its first file and its bytes.
fn table(models: &[Vec<String>], files: &Sizes) -> String {
    let mut text = String::new();
    for model in models.iter().take(LISTED) {
        let bytes: Option<u64> = model.iter().map(|name| files.get(name).copied().flatten()).sum();
        let bytes = bytes.map_or_else(String::new, |bytes| format!("  {}", size(bytes)));
        let parts = if model.len() > 1 { format!(" ({} files)", model.len()) } else { String::new() };
        // Writing into a text cannot fail.
        let _ = write!(text, "\n  {}{parts}{bytes}", model.first().map_or("", String::as_str));
    }
    if models.len() > LISTED {
        let _ = write!(text, "\n  … ({} in all)", models.len());
    }
    text
}

/// Bytes for people, in powers of ten as Hubs have them.
pub fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} kB", bytes as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: Option<&str>, names: &[&str]) -> Result<Option<Vec<String>>> {
        let files: Sizes = names.iter().map(|name| ((*name).to_string(), Some(2_500_000_000))).collect();
        choose("a/b", "a/b:FILE", wanted, &files)
    }

    #[test]
    fn files_are_named_or_the_only_ones() {
        let (one, two) = ("q8/m-Q8_0-00001-of-00002.gguf", "q8/m-Q8_0-00002-of-00002.gguf");
        let names = ["m-Q4_K_M.gguf", one, two, "mmproj-f16.gguf", "config.json", "m.imatrix.gguf"];
        let several = chosen(None, &names).unwrap_err().message;
        for part in ["m-Q4_K_M.gguf  2.5 GB", "q8/m-Q8_0-00001-of-00002.gguf (2 files)  5.0 GB", "a/b:FILE"] {
            assert!(several.contains(part), "{several}");
        }
        assert!(!several.contains("mmproj") && !several.contains("imatrix"), "{several}");
        let single = || Some(vec!["m-Q4_K_M.gguf".to_string()]);
        assert_eq!(chosen(Some("m-Q4_K_M.gguf"), &names).unwrap(), single());
        assert_eq!(chosen(Some("q4_k_m"), &names).unwrap(), single());
        let set = || Some(vec![one.to_string(), two.to_string()]);
        for wanted in [one, two, "Q8_0"] {
            assert_eq!(chosen(Some(wanted), &names).unwrap(), set());
        }
        assert_eq!(chosen(None, &[one, two, "README.md"]).unwrap(), set());
        assert_eq!(chosen(None, &["mmproj.gguf", "README.md"]).unwrap(), None);
        let message = |wanted, names: &[&str]| chosen(wanted, names).unwrap_err().message;
        assert!(message(Some("m-Q4_K_S.gguf"), &names).contains("did you mean `m-Q4_K_M.gguf`?"));
        assert!(message(Some("Q8_0"), &["x-Q8_0.gguf", "y-Q8_0.gguf"]).contains("several"));
        assert!(message(Some("config.json"), &names).contains("expected a GGUF file"));
        assert!(message(Some("x.gguf"), &["config.json"]).contains("no GGUF files"));
        for wanted in [None, Some(one), Some("Q8_0")] {
            assert!(message(wanted, &[one]).contains(two), "{wanted:?}");
        }
    }
}
