//! What can be said to the program itself in a conversation: lines that begin with a slash.

use doppler::error::nearest;
use std::path::PathBuf;

/// A command, as it was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// What there is.
    Help,
    /// The system message from now on; none where nothing follows.
    System(Option<String>),
    /// A setting and its value; all of them are shown where nothing follows.
    Set(Option<(String, String)>),
    /// A new conversation.
    Clear,
    /// The conversation, to a file.
    Save(PathBuf),
    /// The end.
    Exit,
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A message to the model.
    Message(String),
    /// A command.
    Command(Command),
    /// It looks like a command and is none; why not, and what to try.
    Mistake(String),
}

/// The commands, for people.
pub const HELP: &str = "\
/system TEXT       the system message from now on; without TEXT, none
/set NAME VALUE    temperature, top-k, top-p, min-p, repeat-penalty, seed, max-tokens; without NAME, show them
/clear             begin a new conversation, with the same system message
/save FILE         write the conversation, as --messages reads it
/exit              end, like Ctrl-D; Ctrl-C ends an answer
//…                a message that begins with a slash
Several lines that are pasted are one message.";

const NAMES: [&str; 6] = ["help", "system", "set", "clear", "save", "exit"];

impl Line {
    /// Reads a line. In a pipe, where messages are data, what is no command is a message.
    pub fn read(line: &str, typed: bool) -> Self {
        let Some(rest) = line.strip_prefix('/') else { return Self::Message(line.to_string()) };
        if rest.starts_with('/') {
            return Self::Message(rest.to_string());
        }
        let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let rest = rest.trim();
        match Command::read(name, rest) {
            Some(Ok(command)) => Self::Command(command),
            Some(Err(expected)) => Self::Mistake(format!("/{name}: expected {expected}")),
            None if typed => {
                let near = nearest(name, NAMES).first().map_or(String::new(), |near| format!("; did you mean /{near}?"));
                Self::Mistake(format!("there is no command /{name}{near} (/help lists them; // begins a message that begins with a slash)"))
            }
            None => Self::Message(line.to_string()),
        }
    }
}

impl Command {
    fn read(name: &str, rest: &str) -> Option<Result<Self, &'static str>> {
        let given = || (!rest.is_empty()).then(|| rest.to_string());
        let alone = |command| if rest.is_empty() { Ok(command) } else { Err("nothing after it") };
        Some(match name {
            "help" | "?" => alone(Self::Help),
            "exit" | "quit" | "bye" => alone(Self::Exit),
            "clear" => alone(Self::Clear),
            "system" => Ok(Self::System(given())),
            "save" => given().map(|file| Self::Save(file.into())).ok_or("a file's name"),
            "set" => match (given(), rest.split_once(|c: char| c.is_whitespace() || c == '=')) {
                (None, _) => Ok(Self::Set(None)),
                (_, Some((name, value))) if !value.trim().is_empty() => Ok(Self::Set(Some((name.into(), value.trim().into())))),
                _ => Err("a name and a value, like temperature 0.7"),
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let typed = |line: &str| Line::read(line, true);
        let command = |line: &str| match typed(line) {
            Line::Command(command) => command,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(typed("What is /etc?"), Line::Message("What is /etc?".into()));
        assert_eq!(typed("//etc is what?"), Line::Message("/etc is what?".into()));
        assert_eq!(command("/system Be short."), Command::System(Some("Be short.".into())));
        assert_eq!(command("/system "), Command::System(None));
        assert_eq!(command("/set"), Command::Set(None));
        for line in ["/set top-k 5", "/set top-k=5", "/set  top-k   5 "] {
            assert_eq!(command(line), Command::Set(Some(("top-k".into(), "5".into()))), "{line}");
        }
        assert_eq!(command("/save my chat.json"), Command::Save("my chat.json".into()));
        assert_eq!((command("/clear"), command("/exit"), command("/?")), (Command::Clear, Command::Exit, Command::Help));
        for (line, said) in
            [("/save", "a file's name"), ("/set x", "a name and a value"), ("/exit now", "nothing"), ("/sistem x", "/system")]
        {
            assert!(matches!(typed(line), Line::Mistake(text) if text.contains(said)), "{line}");
        }
        assert_eq!(Line::read("/usr/bin is a folder", false), Line::Message("/usr/bin is a folder".into()));
        assert_eq!(Line::read("/exit", false), Line::Command(Command::Exit));
    }
}
