//! Where the text of a command goes: to stdout and stderr of this process, or to the client for whom the resident
//! process runs it. Commands that never run there write to [`stdout`]. Texts come from model folders, dumps and servers:
//! what a terminal would obey instead of showing is escaped here, where all lines leave, whoever made them.

use doppler::inference::tokenizer::is_obeyed;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// The other end of a command that runs in the resident process.
pub trait Client: Send + Sync {
    /// The command line, the program's name first.
    fn line(&self) -> &[String];
    /// Text for its stdout.
    ///
    /// # Errors
    /// `BrokenPipe` when it is gone.
    fn out(&self, text: &str) -> io::Result<()>;
    /// A line for its stderr. One that cannot be told is lost.
    fn tell(&self, text: &str);
    /// How far loading is, in bytes, and what is being loaded.
    fn progress(&self, done: u64, total: u64, what: &str);
    /// Whether an interruption will be noticed between two tokens from now on.
    fn generating(&self, on: bool);
    /// Whether it wants to end.
    fn interrupted(&self) -> bool;
    /// Whether nobody is there any more.
    fn gone(&self) -> bool;
}

thread_local! {
    static CLIENT: RefCell<Option<Arc<dyn Client>>> = const { RefCell::new(None) };
}

/// The client that this thread works for.
pub fn client() -> Option<Arc<dyn Client>> {
    CLIENT.with_borrow(Clone::clone)
}

/// The command line that is obeyed, as a shell takes it, the program's name without its folder.
pub fn line() -> String {
    let words =
        client().map_or_else(|| std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(), |c| c.line().to_vec());
    let plain = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c));
    let quoted = |word: &str| if plain(word) { word.to_string() } else { format!("'{}'", word.replace('\'', "'\\''")) };
    let name = words.first().map(|name| std::path::Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned());
    name.iter().chain(words.iter().skip(1)).map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// Runs `work` for `client`.
pub fn for_client<R>(client: Arc<dyn Client>, work: impl FnOnce() -> R) -> R {
    CLIENT.set(Some(client));
    let done = work();
    CLIENT.set(None);
    done
}

/// Writes to stdout, at once.
///
/// # Errors
/// Those of stdout; `BrokenPipe` when nobody reads.
pub fn out(text: &str) -> io::Result<()> {
    match client() {
        Some(client) => client.out(text),
        None => {
            let mut out = stdout();
            out.write_all(text.as_bytes())?;
            out.flush()
        }
    }
}

/// A line on stderr. One that cannot be written is lost: there is nowhere to say so.
pub fn tell(text: &str) {
    match client() {
        Some(client) => client.tell(text),
        None => {
            let _ = stderr().write_all(format!("{text}\n").as_bytes());
        }
    }
}

/// As [`tell`], but a command that comes to say the same line again does not: one that opens a device for each of its sides.
pub fn tell_once(text: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    // A client's command is one of many in the process.
    let is_new = client().is_some() || TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_string());
    if is_new {
        tell(text);
    }
}

/// `text` with the characters that a terminal obeys (but for line breaks and tabs) written as `\u001b`: what JSON takes
/// for the same character, so that JSON on stdout stays what it is.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| is_obeyed(c) && !matches!(c, '\n' | '\t');
    if !text.contains(obeyed) {
        return text.into();
    }
    let one = |c: char| if obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(one).collect()
}

/// Words with which lines begin that a reader looks for, and how a terminal shows them: red, green or yellow, in bold.
const COLOURED: &[(&str, &str)] = &[
    ("ANOMALY", RED),
    ("DIFFER", RED),
    ("Error", RED),
    ("MISSING", RED),
    ("WRONG", RED),
    ("VERDICT diagnosed", RED),
    ("AGREE", GREEN),
    ("VERDICT healthy", GREEN),
    ("INCOMPLETE", YELLOW),
    ("Note", YELLOW),
    ("note:", YELLOW),
    ("VERDICT abstained", YELLOW),
];
const RED: &str = "1;31";
const GREEN: &str = "1;32";
const YELLOW: &str = "1;33";

/// Whether text on `stream` may be coloured: it is a terminal that has colours, and nobody asked for none
/// (<https://no-color.org>).
fn has_colours(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// Output in which only what is printable leaves, with the first words of its lines in colours where there are any. Each
/// write must hold whole characters, as those of `write!` do.
pub struct Printable<W> {
    to: W,
    colours: bool,
    /// The next write begins a line.
    fresh: bool,
}

impl<W> Printable<W> {
    fn new(to: W, colours: bool) -> Self {
        Self { to, colours, fresh: true }
    }
}

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = printable(&text);
        if self.colours {
            for line in text.split_inclusive('\n') {
                self.to.write_all(coloured(line, self.fresh).as_bytes())?;
                self.fresh = line.ends_with('\n');
            }
        } else {
            self.to.write_all(text.as_bytes())?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// `line` with its first word in colour, if it has one of those.
fn coloured(line: &str, fresh: bool) -> Cow<'_, str> {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let known = COLOURED.iter().find_map(|(word, colour)| {
        let rest = line.strip_prefix(word).filter(|rest| fresh && ends(rest))?;
        Some(format!("\u{1b}[{colour}m{word}\u{1b}[0m{rest}"))
    });
    known.map_or(line.into(), Cow::Owned)
}

/// This process's stdout.
pub fn stdout() -> Printable<io::Stdout> {
    let out = io::stdout();
    let colours = has_colours(&out);
    Printable::new(out, colours)
}

/// This process's stderr.
pub fn stderr() -> Printable<io::Stderr> {
    let err = io::stderr();
    let colours = has_colours(&err);
    Printable::new(err, colours)
}

/// Writes text that a model generated to stdout: byte for byte, but on a terminal only what is printable.
///
/// # Errors
/// Those of stdout.
pub fn generated(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let shown = if out.is_terminal() { printable(text) } else { text.into() };
    out.write_all(shown.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(printable("a\tb\n é😀"), "a\tb\n é😀");
        assert_eq!(printable("\u{1b}]0;x\u{7}\r\u{7f}\u{9b}\u{202e}\u{2066}"), "\\u001b]0;x\\u0007\\u000d\\u007f\\u009b\\u202e\\u2066");
        let name = "\u{9b}2J\u{7f}\u{202e}";
        let json = serde_json::to_string_pretty(&serde_json::json!({ "name": name })).unwrap();
        let back: serde_json::Value = serde_json::from_str(&printable(&json)).unwrap();
        assert_eq!(back["name"], name);
        let mut out = Printable::new(Vec::new(), false);
        writeln!(out, "\u{1b}-é").unwrap();
        assert_eq!(out.to, "\\u001b-é\n".as_bytes());
    }

    #[test]
    fn the_first_words_of_lines_have_colours() {
        let mut out = Printable::new(Vec::new(), true);
        out.write_all(b"Note Error\nNotes\nAGREEMENT\n").unwrap();
        writeln!(out, "VERDICT healthy: all of it").unwrap();
        let text = String::from_utf8(out.to).unwrap();
        let expected = "\u{1b}[1;33mNote\u{1b}[0m Error\nNotes\nAGREEMENT\n\u{1b}[1;32mVERDICT healthy\u{1b}[0m: all of it\n";
        assert_eq!(text, expected);
    }
}
