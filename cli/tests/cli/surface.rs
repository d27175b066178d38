//! `--surface browser`: the same lines, dumps and verdicts as natively, from a tab of headless Chromium on its software
//! adapter; the tab of a resident process is used again; what can go wrong is told.
#![cfg(unix)]

use crate::resident::{Home, alive, until};
use crate::seeing::{documented, shell};
use crate::support::{Ran, command, data, doppler, finish, scratch, text};
use doppler::debug::dump::Dump;
use doppler_browser::{Adapter, Browser};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Whether there is a browser; says that a test is skipped where there is none.
pub fn there_is_a_browser() -> bool {
    let missing = match doppler_browser::find() {
        Ok(_) => return true,
        Err(missing) => missing,
    };
    assert!(std::env::var("DOPPLER_REQUIRE_BROWSER").as_deref() != Ok("1"), "a browser is required: {missing}");
    eprintln!("skipped in a browser: {missing}");
    false
}

/// Processes of browsers that `parent` started.
pub fn browsers(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = parent.to_string();
    let is_child = |process: &u32| {
        let about = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // State and parent stand behind the name in parentheses.
        about.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&*parent))
    };
    processes.filter(is_child).collect()
}

/// The documents' lines, in one tab, which a resident process keeps; it takes its browser with it.
#[test]
fn the_documented_lines_are_the_same_in_a_browser() {
    if !there_is_a_browser() {
        return;
    }
    let home = Home::new("surface");
    // Nothing is there yet, which --skip-load would say.
    let first = home.run(&[
        "debug",
        "--surface",
        "browser",
        "-m",
        text(crate::seeing::model()),
        "--max-tokens",
        "1",
        "--dtype",
        "f32",
        "--trace",
        "loader",
    ]);
    assert!(first.stdout.contains("[TRACE:loader] model.norm.weight bf16 [336] loaded="), "{}", first.stdout);
    assert!(first.stdout.contains(" in Chrome/") && first.stdout.contains("webgpu"), "{}", first.stdout);
    let process = home.process().expect("a process");
    let tab = browsers(process);
    let run = |line: &str| {
        // A preset among the lines asks for f32, which is another loading than auto.
        let debug = "doppler debug --surface browser --skip-load --dtype f32 --max-tokens 3";
        let places = [("DOPPLER_RESIDENT_DIR", home.folder()), ("DOPPLER_RESIDENT", Path::new("on"))];
        shell(&line.replace(" --skip-load", ""), debug, &places)
    };
    let said = run("npm run debug -- -m MODEL --trace ffn");
    assert!(!said.contains("Note"), "{said}");
    documented(&run);
    assert_eq!((browsers(process), tab.len()), (tab.clone(), 1), "one browser, and the same one");
    home.run(&["resident", "stop"]).fine();
    until("the browser ends", || !alive(tab[0]));
}

/// Dumps hold what the oracle computes, and `compare` runs its own side in the browser, whole and op by op.
#[test]
fn a_browsers_values_agree() {
    if !there_is_a_browser() {
        return;
    }
    let folder = scratch("surface_values");
    let (dump, twins) = (folder.join("dump.safetensors"), folder.join("lines.json"));
    let (model, ids) = (data("gemma2"), "2,10,20,30");
    let common = ["debug", "-m", &model, "--token-ids", ids, "--max-tokens", "3", "--dtype", "f32", "--trace", "layer"];
    let seen = |more: &[&str]| -> Ran {
        let files = ["--dump", text(&dump), "--json", text(&twins)];
        finish(&mut command(&[&common[..], &files, more].concat())).fine()
    };
    let kinds = |records: &str| -> Vec<(String, Vec<String>)> {
        let record = |line: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).unwrap();
        let kind = |record: serde_json::Map<_, serde_json::Value>| (record["type"].to_string(), record.keys().cloned().collect());
        // The oracle has no fusions to leave out, of which a note tells.
        records.lines().map(|line| kind(record(line))).filter(|(kind, _)| kind != "\"note\"").collect()
    };
    let native = seen(&["--device", "cpu"]);
    let (of_oracle, lines) = (Dump::open(&dump).unwrap(), std::fs::read_to_string(&twins).unwrap());
    let browser = seen(&["--surface", "browser"]);
    let of_browser = Dump::open(&dump).unwrap();
    assert_eq!(of_browser.stages(), of_oracle.stages());
    assert_eq!(of_browser.generated_ids().unwrap(), of_oracle.generated_ids().unwrap());
    assert_eq!(kinds(&std::fs::read_to_string(&twins).unwrap()), kinds(&lines), "JSON twins of the same kinds, with the same keys");
    let output = |ran: &Ran| ran.stdout.lines().find(|line| line.starts_with("Output")).map(str::to_string);
    assert_eq!(output(&browser), output(&native));

    for more in [&[][..], &["--isolated"]] {
        let ran = finish(&mut command(&[&["compare", text(&dump), "-m", &model, "--surface", "browser"], more].concat())).fine();
        assert!(ran.stdout.contains("AGREE") && ran.stdout.contains(" in Chrome/"), "{}{}", ran.stdout, ran.stderr);
    }
    // A kernel that is wrong in the browser only is found there, and named.
    let kernels = scratch("surface_kernels");
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/gpu/kernels/gated_act.wgsl");
    let right = std::fs::read_to_string(kernel).unwrap();
    let wrong = right.replacen("gated(g.x, u.x)", "1.01 * gated(g.x, u.x)", 1);
    assert_ne!(wrong, right);
    std::fs::write(kernels.join("gated_act.wgsl"), wrong).unwrap();
    let args = ["compare", text(&dump), "-m", &model, "--surface", "browser", "--isolated", "--kernels", text(&kernels)];
    let ran = finish(&mut command(&args));
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("DIVERGENCE layer=0 stage=ffn_act"), "{}", ran.stdout);
}

#[test]
fn what_can_go_wrong_is_told() {
    let run = |browser: &str, more: &[&str]| {
        let mut command = command(&[&["debug", "--surface", "browser", "--max-tokens", "2"], more].concat());
        finish(command.env("DOPPLER_BROWSER", browser))
    };
    run("/no/such/browser", &[]).refused(&["--surface browser", "$DOPPLER_BROWSER names /no/such/browser"]);
    run("/bin/false", &["--device", "cpu"]).refused(&["--device", "leave out --surface browser"]);
    run("/bin/false", &[]).refused(&["it ended at once"]);
}

#[test]
fn speed_is_measured_in_the_tab_and_natively() {
    if !there_is_a_browser() {
        return;
    }
    let file = scratch("surface_bench").join("bench.json");
    let shape = ["--synthetic", "demo", "--dtype", "f32", "--prompt", "8", "--tokens", "4"];
    let args = ["bench", "--surface", "browser", "--watch", "ffn", "--json", text(&file)];
    let ran = finish(&mut command(&[&args[..], &shape].concat())).fine();
    let figures: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let rate = |figures: &serde_json::Value| figures["decodeTokensPerSecond"].as_f64().expect("a rate");
    assert!(rate(&figures) > 0.0 && figures["device"].as_str().is_some_and(|device| device.contains(" in Chrome/")), "{figures}");
    for part in ["\ndecode   ", "\nwatched  ffn: ", "\nkernels  ", " linear "] {
        assert!(ran.stdout.contains(part), "{part} in {}", ran.stdout);
    }
    if crate::support::devices().contains(&"gpu") {
        let share = rate(&figures) / rate(&figures["native"]) * 100.0;
        assert!(ran.stdout.contains(&format!("share    decode: {share:.0} % of native")), "{share} in {}", ran.stdout);
    } else {
        assert!(ran.stdout.contains("native   not measured: "), "{}", ran.stdout);
    }
}

/// Status line and headers, and the body, of what a server of this machine answers.
fn get(port: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    ask(port, &format!("GET {path}"), &format!("Host: localhost:{port}\r\n{headers}"))
}

/// The answer to a request: its head in small letters, its body.
pub fn ask(port: &str, request: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer[end + 4..].to_vec())
}

/// `doppler web` with a model.
struct Served {
    server: Child,
    port: String,
    /// Path of the address that the page is told of.
    model: String,
}

impl Served {
    fn new(model: &str) -> Self {
        let mut server = command(&["web", "-m", model, "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("Serving http://127.0.0.1:").and_then(|rest| rest.split_once("/?model=."));
        let (port, model) = address.unwrap_or_else(|| panic!("{line}"));
        Self { port: port.into(), model: model.into(), server }
    }
    fn end(mut self) {
        Command::new("kill").args(["-TERM", &self.server.id().to_string()]).status().unwrap();
        assert_eq!(self.server.wait().unwrap().code(), Some(143));
    }
}

#[test]
fn the_page_is_served_with_a_model_beside_it() {
    if !there_is_a_browser() {
        return;
    }
    let folder = data("llama3");
    let served = Served::new(&folder);
    assert_eq!(served.model, "/model/llama3/", "its name is that of the model");
    let port = served.port.clone();
    let (head, page) = get(&port, "/", "");
    assert!(head.starts_with("http/1.1 200") && head.contains("text/html") && String::from_utf8_lossy(&page).contains("Doppler"), "{head}");
    assert!(get(&port, "/doppler/doppler_web_bg.wasm", "").0.contains("application/wasm"));
    for path in ["/model/config.json", "/model/llama3/config.json"] {
        assert_eq!(get(&port, path, "").1, std::fs::read(Path::new(&folder).join("config.json")).unwrap(), "{path}");
    }
    // Two shards, one of them in part.
    let index = String::from_utf8(get(&port, "/model/model.safetensors.index.json", "").1).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let shard = index["weight_map"]["model.norm.weight"].as_str().expect("a shard").to_string();
    let whole = std::fs::read(Path::new(&folder).join(&shard)).unwrap();
    let (head, part) = get(&port, &format!("/model/{shard}"), "Range: bytes=8-99\r\n");
    assert!(head.starts_with("http/1.1 206") && head.contains(&format!("content-range: bytes 8-99/{}", whole.len())), "{head}");
    assert_eq!(part, whole[8..100]);
    assert!(get(&port, "/model/no-such-file", "").0.starts_with("http/1.1 404"));
    assert!(get(&port, "/../Cargo.toml", "").0.starts_with("http/1.1 404"));
    // Another name for this address (DNS rebinding), a page of another origin, a request that would change something.
    let status = |request: &str, headers: &str| ask(&port, request, headers).0.split(' ').nth(1).map(str::to_string);
    let here = format!("Host: 127.0.0.1:{port}\r\n");
    assert_eq!(status("GET /model/config.json", &here).as_deref(), Some("200"));
    assert_eq!(status("GET /model/config.json", &format!("{here}Origin: http://localhost:{port}\r\n")).as_deref(), Some("200"));
    for headers in
        [format!("Host: rebound.example:{port}\r\n"), format!("{here}Origin: https://elsewhere.example\r\n"), "Host: localhost\r\n".into()]
    {
        assert_eq!(status("GET /model/config.json", &headers).as_deref(), Some("403"), "{headers}");
    }
    assert_eq!(status("POST /model/config.json", &here).as_deref(), Some("405"));
    let refused = finish(&mut command(&["web", "--port", &port]));
    refused.refused(&["--port 0"]);
    served.end();
}

/// A folder from elsewhere may hold a link to any file of the user who serves it.
#[test]
#[cfg(unix)]
fn links_out_of_a_models_folder_are_not_served() {
    let folder = crate::support::copy("gemma2", "web_link");
    let secret = scratch("web_secret").join("id");
    std::fs::write(&secret, "secret").unwrap();
    let file = folder.join("chat_template.jinja");
    let _ = std::fs::remove_file(&file);
    std::os::unix::fs::symlink(&secret, &file).unwrap();
    finish(&mut command(&["web", "-m", text(&folder), "--port", "0"])).refused(&["chat_template.jinja", "out of the model's folder"]);
}

/// A GGUF file of the fixtures.
fn gguf(name: &str) -> String {
    format!("{}/../tests/fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// One model as GGUF files, of which the first is given, and as a folder with a manifest.
fn other_forms(folder: &Path) -> [PathBuf; 2] {
    let convert = |name: &str, more: &[&str]| {
        let out = folder.join(name);
        doppler(&[&["convert", &gguf("llama3.f16.gguf"), "-o", text(&out), "--quantize", "f16"], more].concat()).fine();
        out
    };
    convert("a model.gguf", &["--shard-size", "50000"]);
    [folder.join("a model-00001-of-00003.gguf"), convert("manifest", &["--to", "manifest"])]
}

/// Packed weights, rows that are put in order, and files that are several, in the tab as here.
#[test]
fn other_forms_run_in_a_browser() {
    if !there_is_a_browser() {
        return;
    }
    let [split, manifest] = other_forms(&scratch("surface_forms"));
    for model in [&gguf("phi3.q8_0.gguf"), text(&split), text(&manifest)] {
        let run = |more: &[&str]| {
            let args = ["debug", "-m", model, "--token-ids", "5,6,7", "--max-tokens", "4", "--dtype", "f32"];
            let ran = finish(&mut command(&[&args[..], more].concat())).fine();
            ran.stdout.lines().find(|line| line.starts_with("Output ")).map(str::to_string)
        };
        let (here, there) = (run(&["--device", "cpu"]), run(&["--surface", "browser"]));
        assert!(here.is_some() && here == there, "{model}: {here:?} {there:?}");
    }
}

/// The page is told of an address that it takes for a GGUF file, or for a folder with a manifest, and loads it. What is
/// served is read when it is asked for: a file that was changed meanwhile is an error that says so.
#[test]
fn other_forms_are_served_with_the_page() {
    if !there_is_a_browser() {
        return;
    }
    let [split, manifest] = other_forms(&scratch("web_forms"));
    let mut browser = Browser::start(Adapter::Software).unwrap();
    for (model, path, part) in [
        (&split, "/model/a%20model-00001-of-00003.gguf", "/model/a%20model-00003-of-00003.gguf"),
        (&manifest, &*format!("/model/{}/", manifest.file_name().unwrap().to_string_lossy()), "/model/shard-00000.bin"),
    ] {
        let served = Served::new(text(model));
        assert_eq!(served.model, path);
        let (head, bytes) = get(&served.port, part, "Range: bytes=0-3\r\n");
        assert!(head.starts_with("http/1.1 206") && head.contains("content-length: 4") && bytes.len() == 4, "{head}");
        let mut page = browser.open(&format!("http://127.0.0.1:{}/?model=.{path}", served.port)).unwrap();
        // What the page knows is shown one frame later.
        let shown = "document.getElementById('about-model').textContent";
        let loaded = format!("globalThis.doppler?.state.model && {shown} !== 'No model.' && {shown}");
        let title = page.wait_for(&loaded, Duration::from_secs(240)).unwrap();
        assert!(title.as_str().is_some_and(|title| title.contains("3 layers") && title.contains("f16")), "{title}");
        served.end();
    }
    let served = Served::new(text(&manifest));
    let shard = std::fs::OpenOptions::new().append(true).open(manifest.join("shard-00000.bin"));
    shard.unwrap().write_all(b"more").unwrap();
    let (head, message) = get(&served.port, "/model/shard-00000.bin", "");
    assert!(head.starts_with("http/1.1 500") && String::from_utf8_lossy(&message).contains("changed while it was read"), "{head}");
    served.end();
}
