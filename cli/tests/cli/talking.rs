//! Text in, text out: raw prompts, chat, conversations, masks and stops.

use crate::support::{Ran, command, copy, data, devices, doppler, finish, golden, ids};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn with_input(command: &mut Command, input: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    // The binary may end without having read it.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the binary ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn cases(model: &str) -> Value {
    let path = format!("{}/tokenizer_cases.json", data(model));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The ids that a prompt becomes.
fn input_ids(model: &str, more: &[&str]) -> Vec<u32> {
    let model = data(model);
    let args = ["debug", "-m", &model, "--device", "cpu", "--max-tokens", "0", "--json", "-"];
    let ran = doppler(&[&args[..], more].concat()).fine();
    assert_eq!(ran.record("done")["tokens"], 0);
    ids(&ran.record("output")["inputIds"])
}

#[test]
fn prompts_become_the_ids_of_transformers() {
    for model in ["gemma2", "llama3", "qwen3"] {
        for case in cases(model)["texts"].as_array().unwrap() {
            assert_eq!(input_ids(model, &["-p", case["text"].as_str().unwrap()]), ids(&case["ids"]), "{model}");
        }
    }
}

#[test]
fn a_users_message_is_put_into_the_template() {
    let found = input_ids("gemma2", &["--chat", "-p", "Is the table right?"]);
    // `<bos><turn>user\nIs the table right?<end>\n<turn>model\n`: the beginning and end of the longer conversation's ids.
    let whole = ids(&cases("gemma2")["chat"]["ids"]);
    assert_eq!(found[..19], whole[..19]);
    assert_eq!(found[found.len() - 4..], whole[whole.len() - 4..]);
    assert_eq!(found.iter().filter(|id| **id == 2).count(), 1, "one BOS");
    doppler(&["debug", "-m", &data("llama3"), "--device", "cpu", "--chat", "-p", "x", "--max-tokens", "1"]);
}

/// A template that shows everything that it is given: the model's own, replaced in a copy of the folder.
#[test]
fn system_messages_turns_tools_and_variables_reach_the_template() {
    let folder = copy("gemma2", "chat_options");
    let template = "{% for m in messages %}{{ m.role }}={{ m.content }} {% endfor %}\
                    {% if tools %}tools={{ tools | length }} {% endif %}{% if enable_thinking is defined %}think={{ enable_thinking }}{% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let (messages, tools) = (folder.join("messages.json"), folder.join("tools.json"));
    let turns = r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#;
    std::fs::write(&messages, turns).unwrap();
    std::fs::write(&tools, r#"[{"type":"function"}]"#).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_string();
    let (model, messages, tools) = (path(&folder), path(&messages), path(&tools));
    let base = ["debug", "-m", &model, "--device", "cpu", "--max-tokens", "0", "--json", "-"];
    let ids_of = |ran: &Ran| ids(&ran.record("output")["inputIds"]);
    let asked = |more: &[&str]| ids_of(&doppler(&[&base[..], more].concat()).fine());
    let raw = |text: &str| asked(&["-p", text])[1..].to_vec();

    assert_eq!(asked(&["--system", "s", "-p", "x"]), raw("system=s user=x "));
    assert_eq!(asked(&["--messages", &messages, "-p", "x"]), raw("user=a assistant=b user=x "));
    assert_eq!(asked(&["--messages", &messages, "--system", "s"]), raw("system=s user=a assistant=b "));
    assert_eq!(asked(&["--tools", &tools, "-p", "x"]), raw("user=x tools=1 "));
    assert_eq!(asked(&["--template-kwargs", r#"{"enable_thinking":false}"#, "-p", "x"]), raw("user=x think=False"));
    let piped = with_input(&mut command(&[&base[..], &["--messages", "-", "-p", "x"]].concat()), turns).fine();
    assert_eq!(ids_of(&piped), raw("user=a assistant=b user=x "));
    let run = ["run", "-m", &model, "--device", "cpu", "--max-tokens", "1", "--messages", &messages, "--system", "s"];
    doppler(&run).fine();
    with_input(&mut command(&[&run[..], &["-i"]].concat()), "x\n").fine();
    let pair = ["compare", "-m", &model, "--a", "device=cpu", "--b", "device=cpu,dtype=f32", "--dtype", "f32", "--messages", &messages];
    doppler(&pair).fine();

    std::fs::write(folder.join("bad.json"), "[1]").unwrap();
    doppler(&[&base[..], &["--messages", &path(&folder.join("bad.json"))]].concat()).refused(&["bad.json", "message 0", "found a number"]);
    doppler(&[&base[..], &["--tools", &messages, "--token-ids", "2"]].concat()).refused(&["--token-ids"]);
    doppler(&[&base[..], &["--template-kwargs", "[]"]].concat()).refused(&["--template-kwargs", "found a list"]);
}

#[test]
fn run_prints_the_text_and_nothing_else() {
    for model in ["gemma2", "llama3", "qwen3"] {
        let golden = golden(model);
        let (prompt, folder) = (golden.metadata["prompt"].as_str(), data(model));
        for device in devices() {
            let debug =
                doppler(&["debug", "-m", &folder, "--device", device, "--dtype", "f32", "-p", prompt, "--max-tokens", "12", "--json", "-"]);
            let output = debug.fine().record("output");
            let ran = doppler(&["run", "-m", &folder, "--device", device, "--dtype", "f32", "--max-tokens", "12", prompt]).fine();
            assert_eq!(ran.stdout, format!("{}\n", output["text"].as_str().unwrap()), "{model} on {device}");
            // That the adapter is software is said, and that the answer was cut.
            let others = |line: &&str| *line != "(stopped after 12 tokens: --max-tokens)" && !line.ends_with(" computes in software: slow");
            assert_eq!(ran.stderr.lines().find(others), None, "{}", ran.stderr);
            let piped = with_input(
                &mut command(&["run", "-m", &folder, "--device", device, "--dtype", "f32", "--max-tokens", "12"]),
                &format!("{prompt}\n"),
            );
            assert_eq!(piped.fine().stdout, ran.stdout, "{model} on {device}: the prompt from stdin");
        }
    }
}

#[test]
fn a_raw_run_stops_at_no_id() {
    // With text, end-of-sequence ids stop a run; PAD does not, and may be chosen, as in transformers.
    let folder = data("gemma2");
    let args = ["debug", "-m", &folder, "--device", "cpu", "-p", "The", "--max-tokens", "60", "--temperature", "50", "--json", "-"];
    let text = doppler(&args).fine();
    assert!(ids(&text.record("output")["ids"]).iter().all(|id| *id != 0), "PAD is masked");
    let args =
        ["debug", "-m", &folder, "--device", "cpu", "--token-ids", "2,274", "--max-tokens", "250", "--temperature", "50", "--json", "-"];
    let raw = doppler(&args).fine();
    let raw = ids(&raw.record("output")["ids"]);
    assert_eq!(raw.len(), 250, "end-of-sequence ids do not stop a raw run");
    assert!(raw.iter().any(|id| [1, 5].contains(id)) || raw.contains(&0), "such hot sampling meets special ids: {raw:?}");
}

#[test]
fn every_end_of_sequence_id_stops() {
    // The model's generation_config.json names the id that it would choose next.
    let (folder, golden) = (copy("gemma2", "early_eos"), golden("gemma2"));
    let next = golden.generated_ids().unwrap().unwrap()[2];
    let path = folder.join("generation_config.json");
    std::fs::write(&path, format!("{{\"bos_token_id\": 2, \"pad_token_id\": 0, \"eos_token_id\": [1, {next}]}}")).unwrap();
    let args = ["debug", "-m", crate::support::text(&folder), "--device", "cpu", "-p", &golden.metadata["prompt"], "--json", "-"];
    let ran = doppler(&args).fine();
    assert_eq!(ran.record("done")["stop"], "eos");
    assert_eq!(ids(&ran.record("output")["ids"]).last(), Some(&next), "the end-of-sequence id is among the ids");
}

#[test]
fn the_same_seed_gives_the_same_tokens_everywhere() {
    let folder = data("gemma2");
    let mut found = Vec::new();
    for device in devices() {
        let args = ["debug", "-m", &folder, "--device", device, "--dtype", "f32", "-p", "The model", "--json", "-"];
        let sampling = ["--temperature", "0.8", "--top-k", "20", "--top-p", "0.9", "--repeat-penalty", "1.1", "--seed", "7"];
        found.push(ids(&doppler(&[&args[..], &sampling].concat()).fine().record("output")["ids"]));
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
}

#[test]
fn a_conversation_of_two_turns() {
    let folder = data("gemma2");
    for device in devices() {
        let args = ["run", "-i", "-m", &folder, "--device", device, "--dtype", "f32", "--max-tokens", "6"];
        let two = with_input(&mut command(&args), "Is the table right?\n\nAnd the second?\n").fine();
        assert!(two.stdout.lines().count() >= 2, "{}", two.stdout);
        let one = with_input(&mut command(&args), "Is the table right?\n").fine();
        assert!(two.stdout.starts_with(&one.stdout), "the first answer is the same: {:?} {:?}", two.stdout, one.stdout);
        let first = doppler(&[&args[..], &["Is the table right?"]].concat()).fine();
        assert_eq!(first.stdout, one.stdout, "PROMPT is the first message");
    }
    with_input(&mut command(&["run", "-i", "-m", &data("smollm3"), "--device", "cpu"]), "x\n").refused(&["tokenizer"]);
}

#[test]
fn the_built_in_model_is_found_from_anywhere() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    if !folder.join("model.safetensors").is_file() {
        eprintln!("skipped: this checkout has no built-in model");
        doppler(&["run", "x"]).refused(&["-m DIR"]);
        return;
    }
    for device in devices() {
        let run = |args: &[&str]| finish(command(args).args(["--device", device]).current_dir("/")).fine();
        assert!(run(&["run", "The color of the sky is"]).stdout.starts_with(" blue"), "on {device}");
        assert!(run(&["debug"]).stdout.contains("\nOutput  blue"), "on {device}");
    }
}

#[test]
fn a_prompt_is_given_as_it_is_in_every_command() {
    let folder = data("gemma2");
    let prompt = "The color of the sky is";
    let run = |more: &[&str]| doppler(&[&["run", "-m", &folder, "--device", "cpu", "--max-tokens", "4"][..], more].concat()).fine();
    let text = run(&[prompt]).stdout;
    assert_eq!(run(&["-p", prompt]).stdout, text);
    assert_eq!(input_ids("gemma2", &[prompt]), input_ids("gemma2", &["-p", prompt]));
    let args = ["debug", "-m", &folder, "--device", "cpu", "--max-tokens", "0", "--json", "-", "-"];
    let piped = with_input(&mut command(&args), &format!("{prompt}\n")).fine();
    assert_eq!(ids(&piped.record("output")["inputIds"]), input_ids("gemma2", &[prompt]));
    assert!(input_ids("gemma2", &["-p", "--x"]).len() > 1, "a text may begin with a dash");
    doppler(&["run", "-m", &folder, "a", "-p", "b"]).refused(&["cannot be used with"]);
    doppler(&["debug", "-m", &folder, "a", "--token-ids", "2"]).refused(&["cannot be used with"]);
    let shown = doppler(&["debug", "-m", &folder, "--device", "cpu", "--max-tokens", "0", prompt]).fine();
    let line = shown.stdout.lines().find(|line| line.starts_with("Prompt ")).unwrap_or_else(|| panic!("{}", shown.stdout));
    assert!(line.contains(" tokens: <bos>") && line.ends_with(prompt), "{line}");
}

#[test]
fn speed_is_said_where_it_is_asked_for() {
    let ran = doppler(&["run", "-m", &data("gemma2"), "--device", "cpu", "--max-tokens", "4", "--stats", "The"]).fine();
    assert!(ran.stderr.contains(" on CPU") && ran.stderr.contains("Done 4 tokens in "), "{}", ran.stderr);
}

#[test]
fn a_conversation_obeys_commands() {
    let folder = copy("gemma2", "commands");
    let template = "{% for m in messages %}{{ m.role }}={{ m.content }} {% endfor %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let saved = folder.join("saved.json");
    let args = ["run", "-i", "-m", crate::support::text(&folder), "--device", "cpu", "--max-tokens", "2"];
    let input = format!(
        "/system Be short.\none\n/set top-k 3\n/set top-p 7\n/set tok-k 3\n//two\n/save {}\n/clear\n/save {}\n/exit\nthree\n",
        saved.display(),
        folder.join("after.json").display()
    );
    let ran = with_input(&mut command(&args), &input).fine();
    let messages = |path: &Path| -> Value { serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() };
    let said: Vec<(String, String)> =
        messages(&saved).as_array().unwrap().iter().map(|m| (text_of(&m["role"]), text_of(&m["content"]))).collect();
    assert_eq!(said.iter().map(|(role, _)| role.as_str()).collect::<Vec<_>>(), ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!((&*said[0].1, &*said[1].1, &*said[3].1), ("Be short.", "one", "/two"));
    assert_eq!(messages(&folder.join("after.json")), serde_json::json!([{"role": "system", "content": "Be short."}]));
    for part in ["top-k 3", "topP", "expected one of", "wrote 5 messages to ", "(a new conversation)"] {
        assert!(ran.stderr.contains(part), "expected `{part}` in: {}", ran.stderr);
    }
    let again =
        ["run", "-m", crate::support::text(&folder), "--device", "cpu", "--max-tokens", "2", "--messages", crate::support::text(&saved)];
    doppler(&again).fine();
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_string()
}

/// A conversation at a terminal: what is typed can be edited, several pasted lines are one message, a mistake is no end.
#[test]
#[cfg(unix)]
fn a_conversation_at_a_terminal() {
    use crate::terminal::Terminal;
    let folder = copy("gemma2", "terminal");
    let template = "{% for m in messages %}{{ m.role }}={{ m.content }} {% endfor %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let saved = folder.join("saved.json");
    let args = ["run", "-i", "-m", crate::support::text(&folder), "--device", "cpu", "--max-tokens", "2"];
    let mut terminal = Terminal::start(command(&args).env("XDG_STATE_HOME", &folder).env("TERM", "xterm"));
    terminal.wait("/help lists commands");
    // The terminal is asked to mark what is pasted where a line begins to be read; "> " is shown again with every letter.
    let ready = "\x1b[?2004h";
    terminal.wait(ready);
    // A letter is taken back, and two lines are pasted between the marks that terminals put around what is pasted.
    terminal.type_in("onx\x7fe\r");
    terminal.wait(ready);
    terminal.type_in("\x1b[200~first\nsecond\x1b[201~\r");
    terminal.wait(ready);
    terminal.type_in("/sav\r");
    terminal.wait("did you mean /save?");
    terminal.wait(ready);
    terminal.type_in("\x03");
    terminal.wait("Ctrl-D or /exit ends");
    terminal.wait(ready);
    terminal.type_in(&format!("/save {}\r", saved.display()));
    terminal.wait("wrote 4 messages");
    terminal.wait(ready);
    terminal.type_in("\x04");
    assert_eq!(terminal.end(), Some(0));
    let messages: Value = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!((&messages[0]["content"], &messages[2]["content"]), (&"one".into(), &"first\nsecond".into()));
    let history = folder.join("doppler/history");
    assert!(std::fs::read_to_string(&history).unwrap().contains("one"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&history).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "only its user reads it: {mode:o}");
}

#[test]
#[cfg(unix)]
fn a_terminal_has_colours_unless_nobody_wants_them() {
    use crate::terminal::Terminal;
    let args = ["inspect", "/nowhere"];
    for (no_color, coloured) in [("", true), ("1", false)] {
        let mut terminal = Terminal::start(command(&args).env("NO_COLOR", no_color).env("TERM", "xterm"));
        let shown = terminal.wait("/nowhere");
        assert_eq!(terminal.end(), Some(2));
        assert_eq!(shown.contains("\x1b[1;31mError\x1b[0m"), coloured, "{shown:?}");
    }
}
