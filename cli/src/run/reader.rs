//! Where a conversation's lines come from: a terminal, with a line that can be edited and a history, or a pipe.

use crate::end::Stop;
use crate::terminal::tell;
use doppler::Error;
use rustyline::config::{Behavior, Configurer};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use std::io::IsTerminal;
use std::path::PathBuf;

type Editor = rustyline::Editor<(), FileHistory>;

/// Lines that the history keeps.
const KEPT: usize = 1000;
const PROMPT: &str = "> ";

/// What comes next.
pub enum Read {
    /// A line, or the several that were pasted at once.
    Line(String),
    /// Nothing more.
    End,
}

/// The source of lines.
pub struct Reader {
    editor: Option<(Box<Editor>, Option<PathBuf>)>,
}

impl Reader {
    /// Lines of stdin: edited where that is a terminal.
    pub fn new() -> Self {
        let editor = std::io::stdin().is_terminal().then(editor).and_then(|made| match made {
            Ok(editor) => Some(editor),
            Err(e) => {
                tell(&format!("lines cannot be edited here: {e}"));
                None
            }
        });
        let history = history();
        let editor = editor.map(|mut editor| {
            // There is none yet, or it cannot be read: it begins now.
            let _ = history.as_ref().map(|path| editor.load_history(path));
            (Box::new(editor), history)
        });
        Self { editor }
    }
    /// Whether somebody types.
    pub fn is_typed(&self) -> bool {
        self.editor.is_some()
    }
    /// The next line, without its end. Ctrl-C at a terminal gives up the line that is being typed.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn next(&mut self) -> Result<Read, Stop> {
        let Some((editor, history)) = &mut self.editor else { return piped() };
        loop {
            match editor.readline(PROMPT) {
                Ok(line) => {
                    if editor.add_history_entry(&*line).unwrap_or(false)
                        && let Some(path) = history
                    {
                        // A history that cannot be kept is no reason to end a conversation.
                        let _ = editor.append_history(path);
                    }
                    return Ok(Read::Line(line));
                }
                Err(ReadlineError::Interrupted) => tell("(Ctrl-D or /exit ends)"),
                Err(ReadlineError::Eof) => return Ok(Read::End),
                Err(e) => return Err(Error::io("terminal", e).into()),
            }
        }
    }
}

fn editor() -> rustyline::Result<Editor> {
    // The terminal itself, so that stdout holds answers only.
    let config = rustyline::Config::builder().behavior(Behavior::PreferTerm).build();
    let mut editor = Editor::with_config(config)?;
    editor.set_max_history_size(KEPT)?;
    editor.set_history_ignore_space(true);
    Ok(editor)
}

/// The file of earlier lines, which only its user can read; `None` where there is no home, or $DOPPLER_HISTORY is `off`.
fn history() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if std::env::var_os("DOPPLER_HISTORY").is_some_and(|value| value == "off" || value == "0") {
        return None;
    }
    let states = var("XDG_STATE_HOME").map(PathBuf::from).or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".local/state")))?;
    let folder = states.join("doppler");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

fn piped() -> Result<Read, Stop> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).map_err(|e| Error::io("stdin", e))?;
    Ok(if read == 0 { Read::End } else { Read::Line(line.trim_end_matches(['\r', '\n']).to_string()) })
}
