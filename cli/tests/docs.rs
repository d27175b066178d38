//! The commands in the documents exist: every line of every `sh` block names a known program, command and options. Each
//! can be the first one in a fresh clone: what it needs it has of itself, of `rust-toolchain.toml` and of Cargo.lock.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli lies in the repository")
}

/// Every Markdown document but those of other people's packages.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["docs", "skills", "models", "src", "web", "python"].iter().map(|folder| root().join(folder)).collect();
    found.extend(["README.md", "CONTRIBUTING.md"].iter().map(|name| root().join(name)));
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("a folder's entry").path()) {
            if path.is_dir() && !path.ends_with("node_modules") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Lines of `sh` blocks, continued lines joined.
fn commands(text: &str) -> Vec<String> {
    let (mut found, mut inside) = (Vec::new(), false);
    for line in text.replace("\\\n", " ").lines() {
        match line.trim() {
            "```sh" | "```bash" => inside = true,
            "```" => inside = false,
            line if inside && !line.is_empty() && !line.starts_with('#') => found.push(line.to_string()),
            _ => {}
        }
    }
    found
}

/// A command's words as a shell reads them, up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (_, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            ('#', None) if word.is_none() => break,
            ('|' | '>' | ';' | '&', None) => break,
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What `doppler ARGUMENTS` prints on stdout.
fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_doppler")).args(arguments).output().expect("the binary runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether `text` has `word` between characters that belong to no word.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

/// What is wrong with the arguments of `doppler`.
fn check_doppler(arguments: &[&str]) -> Result<(), String> {
    let Some((command, rest)) = arguments.split_first() else { return Err("names no command".to_string()) };
    if *command == "help" {
        return Ok(());
    }
    if !has_word(&help(&["help"]), command) {
        return Err(format!("there is no command `{command}`"));
    }
    let page = help(&[command, "--help"]);
    // Of a subcommand, its own options count.
    let list = page.split_once("\nCommands:\n").map_or("", |(_, list)| list);
    let mut listed = list.lines().take_while(|line| line.starts_with(' ')).filter_map(|line| line.split_whitespace().next());
    let options = match rest.first().filter(|word| listed.any(|name| name == **word)) {
        Some(subcommand) => help(&[command, subcommand, "--help"]),
        None => page,
    };
    let given = rest.iter().take_while(|word| **word != "--").filter(|word| word.starts_with('-') && word.len() > 1);
    let name = |word: &&&str| word.split('=').next().unwrap_or_default().to_string();
    match given.map(|word| name(&word)).find(|option| !has_word(&options, option)) {
        Some(unknown) => Err(format!("`doppler {command}` has no `{unknown}`")),
        None => Ok(()),
    }
}

/// What is wrong with a command.
fn check(line: &str) -> Result<(), String> {
    let words = words(line);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["cargo", "run" | "test" | "build" | "install", ref rest @ ..] = words[..]
        && !rest.contains(&"--locked")
    {
        return Err("without `--locked`, Cargo may take other versions than ours".to_string());
    }
    match words[..] {
        ["doppler", ref rest @ ..] | ["node", "xtask/npm.mjs", ref rest @ ..] => check_doppler(rest),
        ["cargo", "run", ref rest @ ..] => {
            let at = rest.iter().position(|word| *word == "--").ok_or("`cargo run` without `--`")?;
            if !rest[..at].contains(&"doppler-cli") {
                return Err("`cargo run` of another package".to_string());
            }
            check_doppler(&rest[at + 1..])
        }
        ["cargo", "xtask", task, ..] => {
            let tasks = std::fs::read_to_string(root().join("xtask/src/main.rs")).expect("xtask's source");
            if tasks.contains(&format!("[\"{task}\"")) { Ok(()) } else { Err(format!("xtask has no `{task}`")) }
        }
        ["cargo", "test" | "build" | "install", ..] | ["git" | "cd", ..] | ["python3" | "pip" | "npm" | "printf" | "curl", ..] => Ok(()),
        _ => Err("a program that no test knows".to_string()),
    }
}

#[test]
fn every_command_in_the_documents_exists() {
    let mut found = Vec::new();
    let mut count = 0;
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for line in commands(&text) {
            count += 1;
            found.extend(check(&line).err().map(|why| format!("{}: `{line}`: {why}", path.display())));
        }
    }
    assert!(count > 5, "only {count} commands were found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The README's request gets an answer from the server of the line before it.
#[test]
fn the_readme_s_request_is_answered() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let line = commands(&text).into_iter().find(|line| line.starts_with("curl ")).expect("a request");
    let request = words(&line);
    let [_, address, _, body] = &request[..] else { panic!("{request:?}") };
    let path = address.strip_prefix("localhost:8422").expect("the usual port of this machine");
    let mut server = Command::new(env!("CARGO_BIN_EXE_doppler"));
    let server = server.args(["serve", "--device", "cpu", "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut server = server.expect("the binary runs");
    let mut said = String::new();
    BufReader::new(server.stdout.as_mut().expect("a pipe")).read_line(&mut said).expect("a line");
    let host = said.trim().strip_prefix("Serving http://").and_then(|rest| rest.strip_suffix("/v1")).unwrap_or_else(|| panic!("{said}"));
    let mut stream = TcpStream::connect(host).expect("the server");
    // As curl sends it.
    let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let _ = server.kill();
    let _ = server.wait();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"role\":\"assistant\""), "{answer}");
}

/// What scripts and `cargo xtask` call are Cargo's own commands and ours; no other command has to install anything first.
#[test]
fn each_command_can_be_the_first() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let package: serde_json::Value = serde_json::from_str(&read("package.json")).expect("package.json");
    let locked = r#"const release = ["--locked", "--release", "-p", "doppler-cli"];"#;
    assert!(read("xtask/npm.mjs").contains(locked), "without `--locked`, Cargo may take other versions than ours");
    assert!(package.get("dependencies").is_none() && package.get("devDependencies").is_none(), "npm would have to install first");
    let scripts = package["scripts"].as_object().expect("scripts");
    for (name, script) in scripts {
        for line in script.as_str().expect("a line").split(" && ") {
            assert_eq!(check(line), Ok(()), "npm run {name}: {line}");
        }
    }
    // Each command of the binary is a script.
    let page = help(&["help"]);
    let list = page.split_once("\nCommands:\n").expect("a list of commands").1;
    // A command begins a line; what is indented further goes on about it.
    let begins = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let listed = list.lines().take_while(|line| line.starts_with(' ')).filter(begins).filter_map(|line| line.split_whitespace().next());
    let missing: Vec<&str> = listed.filter(|command| *command != "help" && !scripts.contains_key(*command)).collect();
    assert!(missing.is_empty() && page.contains("web"), "no script for {missing:?}");

    assert!(read(".cargo/config.toml").contains("xtask = \"run --locked "), "the alias takes our versions");
    let toolchain = read("rust-toolchain.toml");
    for part in ["rustfmt", "clippy", "wasm32-unknown-unknown"] {
        assert!(toolchain.contains(part), "rustup does not install {part} by itself");
    }
    // Both crates of wasm-bindgen must be of one version, which is why no tool of it is called.
    let version = |file: &str, name: &str| {
        let text = read(file);
        let line = text.lines().find(|line| line.starts_with(&format!("{name} = "))).map(str::to_string);
        line.and_then(|line| line.split_once('=')?.1.trim().trim_matches('"').strip_prefix('=').map(str::to_string))
    };
    let engine = version("web/Cargo.toml", "wasm-bindgen");
    assert!(engine.is_some() && engine == version("xtask/Cargo.toml", "wasm-bindgen-cli-support"), "{engine:?}");
    for document in documents() {
        let text = read(document.strip_prefix(root()).expect("in the repository").to_str().expect("a plain name"));
        for line in commands(&text) {
            let installs = ["rustup ", "wasm-pack", "wasm-bindgen ", "npm install", "npm ci"].into_iter().find(|tool| line.contains(tool));
            assert_eq!(installs, None, "{}: {line}", document.display());
        }
    }
}

#[test]
fn wrong_commands_are_found() {
    assert_eq!(words("doppler run -m M \"a b\"   # says"), ["doppler", "run", "-m", "M", "a b"]);
    for wrong in ["doppler dance", "doppler run --no-such-option", "cargo xtask fly", "cargo run --locked -p xtask -- check", "rm -r ."] {
        assert!(check(wrong).is_err(), "{wrong}");
    }
    assert!(check("cargo run --release -p doppler-cli -- stages").is_err_and(|why| why.contains("--locked")));
    assert_eq!(check("cargo run --locked --release -p doppler-cli -- run \"The sky\" --max-tokens 3 | cat"), Ok(()));
}
