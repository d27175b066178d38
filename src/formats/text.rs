//! Text files of this machine, read whole: regular files only, of at most as many bytes as the caller allows, in UTF-8.
//! It knows nothing of what they say.

use crate::error::{Error, Result};
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

/// Most bytes of a small text: configs, templates, probes, messages, kernels.
pub const MAX_TEXT: u64 = 16 << 20;
/// Most bytes of a `tokenizer.json`; those of large vocabularies have 35 MB.
pub const MAX_TOKENIZER: u64 = 256 << 20;
/// Most bytes of an index of shards; 100 bytes for each of a million tensors.
pub const MAX_INDEX: u64 = 128 << 20;
/// Most bytes of a prompt or another text on stdin.
pub const MAX_STDIN: u64 = 64 << 20;

/// Opens the regular file at `path`, through links. Pipes and devices are refused before they are opened, as opening a
/// pipe waits for its writer.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let failed = |e: std::io::Error| Error::io(path.display(), e);
    let regular = |about: &Metadata| match about.is_file() {
        true => Ok(()),
        false => {
            let found = if about.is_dir() { "a folder" } else { "a pipe, a device or the like" };
            Err(Error::io(path.display(), format!("expected a regular file, found {found}")))
        }
    };
    regular(&std::fs::metadata(path).map_err(failed)?)?;
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    // It may have been replaced between the two.
    regular(&about)?;
    Ok((file, about))
}

/// The text of the regular file at `path`, without the byte-order mark that some editors put first.
///
/// # Errors
/// `Kind::Io` when it cannot be read, is not a regular file, or has more than `limit` bytes; `Kind::Format` when it is
/// not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let mut text = read_verbatim(path, limit)?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// As [`read_text`], with the byte-order mark where there is one.
///
/// # Errors
/// Those of [`read_text`].
pub fn read_verbatim(path: &Path, limit: u64) -> Result<String> {
    let (file, about) = open_regular(path)?;
    let name = path.display().to_string();
    if about.len() > limit {
        return Err(too_long(&name, limit));
    }
    text_of(&name, file, limit)
}

/// The text that `reader` gives until it ends: stdin.
///
/// # Errors
/// Those of [`read_text`], with `name` for the path.
pub fn text_of(name: &str, reader: impl Read, limit: u64) -> Result<String> {
    String::from_utf8(bytes_of(name, reader, limit)?)
        .map_err(|e| Error::format(name, format!("not UTF-8 (byte {})", e.utf8_error().valid_up_to())))
}

/// The bytes that `reader` gives until it ends.
///
/// # Errors
/// `Kind::Io` when it cannot be read or gives more than `limit` bytes.
pub fn bytes_of(name: &str, reader: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(name, e))?;
    if bytes.len() as u64 > limit { Err(too_long(name, limit)) } else { Ok(bytes) }
}

fn too_long(name: &str, limit: u64) -> Error {
    Error::io(name, format!("it has more than the {limit} bytes that are read of such a text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn texts_are_regular_files_of_bounded_length() {
        let folder = std::env::temp_dir().join(format!("doppler-text-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("t");
        std::fs::write(&path, "\u{feff}{}").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "{}");
        assert_eq!(read_verbatim(&path, 5).unwrap(), "\u{feff}{}");
        assert!(read_text(&path, 4).unwrap_err().message.contains("more than the 4 bytes"));
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        let error = read_text(&path, 9).unwrap_err();
        assert!(error.kind == Kind::Format && error.message.contains("byte 1"), "{error}");
        assert!(read_text(&folder, 9).unwrap_err().message.contains("found a folder"));
        assert!(text_of("stdin", std::io::repeat(b'a'), 1000).unwrap_err().message.contains("stdin"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/dev/zero", folder.join("zero")).unwrap();
            let error = read_text(&folder.join("zero"), 9).unwrap_err();
            assert!(error.kind == Kind::Io && error.message.contains("regular file"), "{error}");
            // Opening a pipe without a writer would wait for ever.
            let made = std::process::Command::new("mkfifo").arg(folder.join("pipe")).status();
            if made.is_ok_and(|status| status.success()) {
                assert!(read_text(&folder.join("pipe"), 9).unwrap_err().message.contains("regular file"));
            }
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
