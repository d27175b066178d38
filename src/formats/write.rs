//! How files are written: whole or not at all, and with the mode of the file that they replace. Not for browsers.

use crate::error::{Error, Result};
use std::fs::{File, Metadata, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::path::{Path, PathBuf};

/// Links to follow before a path counts as a circle.
const LINKS: usize = 40;
/// Random names to try for a temporary file.
const ATTEMPTS: usize = 100;

/// Writes a file so that it is either whole or not there: into a temporary file of random name in its folder, which is
/// flushed to the disk and renamed. What exists under `path` stays until then and passes on its mode, and its owner and
/// group where that is allowed; where the group is another one, its rights are taken away. Of a link, the file that it
/// names is written. Pipes, devices and names of open descriptors (`/dev/stdout`, `/dev/fd/3`) are written directly.
///
/// # Errors
/// `Kind::Io`; the temporary file is then removed.
pub fn write_atomically(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let failed = |e: io::Error| Error::io(path.display(), e);
    if is_direct(path) {
        let mut file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        return content(&mut file).and_then(|()| file.flush()).map_err(failed);
    }
    let target = target(path)?;
    let (partial, file) = create_partial(&target).map_err(failed)?;
    let written = write_and_sync(file, content).and_then(|()| std::fs::rename(&partial, &target));
    if let Err(e) = written {
        // The first error matters; a temporary file that cannot be removed still has a name that says what it is.
        let _ = std::fs::remove_file(&partial);
        return Err(failed(e));
    }
    // The new name itself reaches the disk with its folder; where folders cannot be opened (Windows) it does anyway.
    if let Ok(folder) = File::open(folder(&target)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Finds out whether [`write_atomically`] could write `path` now, and leaves no trace. A full disk shows only later.
///
/// # Errors
/// `Kind::Io`.
pub fn check_writable(path: &Path) -> Result<()> {
    let failed = |e: io::Error| Error::io(path.display(), e);
    if path.is_dir() {
        return Err(Error::io(path.display(), "expected a file to write, found a folder"));
    }
    if is_direct(path) {
        return Ok(());
    }
    let target = target(path)?;
    let folder = folder(&target);
    if !folder.is_dir() {
        return Err(Error::io(path.display(), format!("there is no folder {}", folder.display())));
    }
    if target.exists() {
        // Replacing needs no right to write the old file; whoever took that right away meant the content.
        OpenOptions::new().write(true).open(&target).map_err(failed)?;
    }
    let beside = |e: io::Error| Error::io(path.display(), format!("no file can be made in the folder {}: {e}", folder.display()));
    let (partial, _) = create_partial(&target).map_err(beside)?;
    std::fs::remove_file(partial).map_err(failed)
}

/// Writes a folder so that it is either whole or not there: `content` fills one of random name beside it, which is renamed in
/// the end. A folder that exists under `path` stays until then, and is removed after it.
///
/// # Errors
/// `Kind::Io`, and those of `content`; the new folder is then removed.
pub fn write_folder(path: &Path, content: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let failed = |e: io::Error| Error::io(path.display(), e);
    let target = target(path)?;
    let partial = create_partial_folder(&target).map_err(failed)?;
    let old = partial.with_extension("old");
    let replace = || {
        if !target.exists() {
            return std::fs::rename(&partial, &target);
        }
        std::fs::rename(&target, &old)?;
        // Where the new one cannot take its place, the old one does again.
        std::fs::rename(&partial, &target).inspect_err(|_| drop(std::fs::rename(&old, &target)))
    };
    if let Err(e) = content(&partial).and_then(|()| replace().map_err(failed)) {
        let _ = std::fs::remove_dir_all(&partial);
        return Err(e);
    }
    if old.exists() {
        std::fs::remove_dir_all(&old).map_err(|e| Error::io(old.display(), e))?;
    }
    if let Ok(folder) = File::open(folder(&target)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Finds out whether [`write_folder`] could write `path` now, and leaves no trace.
///
/// # Errors
/// `Kind::Io`.
pub fn check_folder(path: &Path) -> Result<()> {
    let failed = |e: io::Error| Error::io(path.display(), e);
    let target = target(path)?;
    if target.exists() && !target.is_dir() {
        return Err(Error::io(path.display(), "expected a folder to write, found a file"));
    }
    let partial = create_partial_folder(&target).map_err(failed)?;
    std::fs::remove_dir(partial).map_err(failed)
}

/// A new folder of random name in the folder of `target`.
fn create_partial_folder(target: &Path) -> io::Result<PathBuf> {
    if target.file_name().is_none() {
        return Err(io::Error::other("the path names no folder"));
    }
    for _ in 0..ATTEMPTS {
        let random = RandomState::new().build_hasher().finish();
        let partial = folder(target).join(format!(".doppler-{random:016x}.partial"));
        match std::fs::create_dir(&partial) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| partial),
        }
    }
    Err(io::Error::other("no free name for a temporary folder was found"))
}

/// Where `path` leads: of a link, the file that it names, which need not exist.
///
/// # Errors
/// `Kind::Io` for links that lead to each other in a circle.
pub fn target(path: &Path) -> Result<PathBuf> {
    let (mut target, mut links) = (path.to_path_buf(), 0);
    while let Ok(to) = std::fs::read_link(&target) {
        links += 1;
        if links > LINKS {
            let message = format!("a link that leads through more than {LINKS} others, in a circle perhaps; give the file itself");
            return Err(Error::io(path.display(), message));
        }
        target = folder(&target).join(to);
    }
    Ok(match (folder(&target).canonicalize(), target.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => target,
    })
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether `path` is no file that could be replaced.
fn is_direct(path: &Path) -> bool {
    let descriptor = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|start| path.starts_with(start));
    descriptor || std::fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir())
}

/// A new file of random name in the folder of `target`, with the rights that `target` has where it exists.
fn create_partial(target: &Path) -> io::Result<(PathBuf, File)> {
    if target.file_name().is_none() {
        return Err(io::Error::other("the path names no file"));
    }
    let old = std::fs::metadata(target).ok();
    for _ in 0..ATTEMPTS {
        let random = RandomState::new().build_hasher().finish();
        let partial = folder(target).join(format!(".doppler-{random:016x}.partial"));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, if old.is_some() { 0o600 } else { 0o666 });
        match options.open(&partial) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
            Ok(file) => {
                if let Some(Err(e)) = old.map(|old| keep_rights(&file, &old)) {
                    let _ = std::fs::remove_file(&partial);
                    return Err(e);
                }
                return Ok((partial, file));
            }
        }
    }
    Err(io::Error::other("no free name for a temporary file was found"))
}

/// Gives `file` the mode of `old`, and owner and group where that is allowed.
#[cfg(unix)]
fn keep_rights(file: &File, old: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    let new = file.metadata()?;
    let group_kept = new.gid() == old.gid() || fchown(file, None, Some(old.gid())).is_ok();
    if new.uid() != old.uid() {
        // Only root may do that. Else the file belongs to whoever wrote it, as every new file does.
        let _ = fchown(file, Some(old.uid()), None);
    }
    let mode = old.mode() & if group_kept { 0o777 } else { 0o707 };
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn keep_rights(_: &File, _: &Metadata) -> io::Result<()> {
    Ok(())
}

fn write_and_sync(file: File, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    content(&mut out)?;
    out.into_inner().map_err(IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn scratch(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp").join(format!("write-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn write(path: &Path, text: &str) -> Result<()> {
        write_atomically(path, |out| out.write_all(text.as_bytes()))
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = scratch("failed");
        let path = folder.join("out");
        write(&path, "first").unwrap();
        let broken = write_atomically(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(broken.unwrap_err().message.contains("the disk is full"));
        check_writable(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        for check in [|path: &Path| write(path, ""), check_writable] {
            assert_eq!(check(&folder).unwrap_err().kind, Kind::Io);
            assert_eq!(check(&folder.join("no/such")).unwrap_err().kind, Kind::Io);
        }
        // The longest name that file systems take.
        write(&folder.join("n".repeat(255)), "long").unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_is_replaced_keeps_its_mode_and_its_links() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = scratch("mode");
        let (path, link, open) = (folder.join("out"), folder.join("link"), folder.join("open"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        symlink("out", &link).unwrap();
        // A link to what does not exist yet names the new file.
        write(&link, "first").unwrap();
        for wanted in [0o600, 0o640, 0o666, 0o755] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wanted)).unwrap();
            write(&link, "second").unwrap();
            assert_eq!((mode(&path), std::fs::read(&path).unwrap()), (wanted, b"second".to_vec()));
        }
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        let (a, b) = (folder.join("a"), folder.join("b"));
        symlink("b", &a).unwrap();
        symlink("a", &b).unwrap();
        for refused in [write(&a, "circle"), check_writable(&a), check_folder(&a), write_folder(&a, |_| Ok(()))] {
            assert!(refused.unwrap_err().message.contains("circle"));
        }
        assert!(a.is_symlink() && b.is_symlink() && !a.exists());
        File::create(&open).unwrap();
        write(&folder.join("new"), "").unwrap();
        assert_eq!(mode(&folder.join("new")), mode(&open), "a new file has the mode that the umask leaves");
    }
}
