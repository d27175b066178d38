//! Models of the Hub, from a server of this machine that answers as the Hub does, into the Hub's cache.

mod server;

use crate::support::{Ran, command, copy, data, doppler, finish, scratch, text};
use server::{COMMIT, Hub, folder, git, sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Ids of a run that needs no tokenizer.
const RUN: [&str; 7] = ["debug", "--device", "cpu", "--token-ids", "2,10,7", "--max-tokens", "3"];

/// A cache of its own, and a server.
struct Place {
    hub: Hub,
    home: PathBuf,
}

impl Place {
    fn new(name: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { hub: Hub::serve(files), home: scratch(&format!("hub-{name}")) }
    }
    /// Runs the binary with further variables.
    fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = command(args);
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        for name in ["TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.hub.address).env("HF_HOME", &self.home);
        finish(command.envs(variables.iter().copied()))
    }
    fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }
    fn pull(&self, spec: &str) -> Ran {
        self.run(&["pull", spec])
    }
    /// What a model computed.
    fn logits(&self, spec: &str) -> String {
        logits(&self.run(&[&RUN[..], &["-m", spec]].concat()).fine())
    }
    /// The cache of `org/tiny`.
    fn cache(&self) -> PathBuf {
        self.home.join("hub/models--org--tiny")
    }
    fn snapshot(&self) -> PathBuf {
        self.cache().join("snapshots").join(COMMIT)
    }
    /// Names in `blobs`.
    fn blobs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cache().join("blobs")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

/// The hash of the logits that tokens were chosen from.
fn logits(ran: &Ran) -> String {
    let hash = ran.stdout.split_whitespace().find(|word| word.starts_with("logits="));
    hash.unwrap_or_else(|| panic!("no hash in {}\n{}", ran.stdout, ran.stderr)).to_string()
}

/// What a model of this machine computes.
fn expected(path: &str) -> String {
    logits(&doppler(&[&RUN[..], &["-m", path]].concat()).fine())
}

fn gguf(name: &str) -> Vec<u8> {
    let path = format!("{}/../tests/fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The golden model with what lies around it in a repository.
fn tiny() -> BTreeMap<String, Vec<u8>> {
    let mut files = folder(Path::new(&data("gemma2")));
    for other in ["README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.bin"] {
        files.insert(other.into(), b"not needed".to_vec());
    }
    files
}

#[test]
fn a_model_is_downloaded_once_and_runs_without_a_network() {
    let place = Place::new("once", tiny());
    let golden = expected(&data("gemma2"));
    let first = place.run(&[&RUN[..], &["-m", "org/tiny"]].concat()).fine();
    assert_eq!(logits(&first), golden);
    assert!(first.stdout.contains("org/tiny"), "{}", first.stdout);
    let needed = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    // The Hub's own redirect is asked too.
    let mut asked = place.hub.names();
    asked.dedup();
    assert_eq!(asked, needed);

    // The layout of the Hub's client.
    let commit = std::fs::read_to_string(place.cache().join("refs/main")).unwrap();
    assert_eq!(commit, COMMIT);
    for name in needed {
        let bytes = std::fs::read(place.snapshot().join(name)).unwrap();
        assert_eq!(bytes, std::fs::read(Path::new(&data("gemma2")).join(name)).unwrap());
        let blob = if name == "model.safetensors" { sha256(&bytes) } else { git(&bytes) };
        if cfg!(unix) {
            assert_eq!(std::fs::read_link(place.snapshot().join(name)).unwrap(), Path::new("../../blobs").join(blob));
        }
    }
    assert!(place.blobs().iter().all(|name| !name.ends_with(".incomplete")));

    // Again: the list alone, to see whether it changed.
    assert_eq!(place.logits("org/tiny"), golden);
    let again: Vec<String> = place.hub.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(again, ["/api/models/org/tiny/revision/main?blobs=true"]);
    // Nobody there, and a server that does not work; both are reported.
    let debug = [&RUN[..], &["-m", "org/tiny"]].concat();
    let alone = place.run_with(&debug, &[("HF_ENDPOINT", "http://127.0.0.1:9")]).fine();
    assert_eq!(logits(&alone), golden);
    let all = format!("{}{}", alone.stdout, alone.stderr);
    assert!(all.contains("from the cache") && all.contains("127.0.0.1:9 does not answer"), "{all}");
    place.hub.state().refusal = Some((503, "Broken"));
    let broken = place.run(&debug).fine();
    assert!(format!("{}{}", broken.stdout, broken.stderr).contains("HTTP status 503"), "{}", broken.stdout);
    // Nobody is asked where that is forbidden.
    place.hub.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let ran = place.run_with(&debug, &offline).fine();
    assert!(logits(&ran) == golden && place.hub.requests().is_empty());
    place.run_with(&["pull", "org/other"], &offline).refused(&["org/other", "not in the cache", "HF_HUB_OFFLINE"]);
    place.run_with(&["pull", "org/tiny@v2"], &offline).refused(&["org/tiny@v2", "not in the cache"]);
    // A snapshot that lacks something says what.
    std::fs::remove_file(place.snapshot().join("model.safetensors")).unwrap();
    place.run_with(&debug, &offline).refused(&["org/tiny", "what is in the cache counts", "HF_HUB_OFFLINE"]);
}

#[test]
fn every_command_takes_a_model_of_the_hub() {
    let place = Place::new("commands", tiny());
    let stages = place.run(&["stages", "-m", "org/tiny"]).fine();
    assert!(stages.stdout.contains("layer_out"), "{}", stages.stdout);
    let mut asked = place.hub.names();
    asked.dedup();
    assert_eq!(asked, ["config.json", "generation_config.json"], "stages needs no weights");
    let inspected = place.run(&["inspect", "org/tiny"]).fine();
    assert!(inspected.stdout.contains("org/tiny"), "{}", inspected.stdout);
    place.run(&["run", "--device", "cpu", "-m", "org/tiny", "hello", "--max-tokens", "2"]).fine();
    let pulled = place.pull("org/tiny").fine();
    assert_eq!(Path::new(pulled.stdout.trim()), place.snapshot());
}

#[test]
fn shards_of_a_revision() {
    let mut files = folder(Path::new(&data("llama3")));
    files.insert("other.safetensors".into(), b"not needed".to_vec());
    let place = Place::new("shards", files);
    assert_eq!(place.logits("org/tiny@refs/pr/1"), expected(&data("llama3")));
    let requests = place.hub.requests();
    assert_eq!(requests[0].path, "/api/models/org/tiny/revision/refs%2Fpr%2F1?blobs=true");
    assert!(requests.iter().all(|r| !r.path.contains("other.safetensors")));
    assert_eq!(std::fs::read_to_string(place.cache().join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert!(!place.cache().join("refs/main").exists());
    // A commit that is here has no need of a name.
    place.run_with(&["pull", &format!("org/tiny@{COMMIT}")], &[("HF_HUB_OFFLINE", "1")]).fine();
}

#[test]
fn broken_downloads_go_on_where_they_stopped() {
    let place = Place::new("broken", tiny());
    let weights = place.hub.state().files["model.safetensors"].clone();
    let stored = || -> Vec<Option<String>> { place.hub.requests().into_iter().filter(|r| r.stored).map(|r| r.range).collect() };
    place.hub.state().breaks = (2, 1000);
    place.pull("org/tiny").fine();
    assert_eq!(stored(), [None, Some("bytes=1000-".into()), Some("bytes=2000-".into())]);
    assert_eq!(std::fs::read(place.snapshot().join("model.safetensors")).unwrap(), weights);

    // What an earlier process left, also of another file or longer than it should be.
    let blob = place.cache().join("blobs").join(sha256(&weights));
    let incomplete = blob.with_file_name(format!("{}.incomplete", sha256(&weights)));
    let long = vec![7; weights.len() + 1];
    for (left, ranges) in [
        (&weights[..5000], vec![Some("bytes=5000-".to_string())]),
        (&weights[..], vec![]),
        (&[9; 4000][..], vec![Some("bytes=4000-".to_string()), None]),
        (&long[..], vec![None]),
    ] {
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&incomplete, left).unwrap();
        place.pull("org/tiny").fine();
        assert_eq!(stored(), ranges);
        assert_eq!(std::fs::read(&blob).unwrap(), weights);
        assert!(!incomplete.exists());
    }
    // A server that knows no ranges gives all of it again.
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&incomplete, &weights[..5000]).unwrap();
    place.hub.state().whole = true;
    place.pull("org/tiny").fine();
    assert_eq!(std::fs::read(&blob).unwrap(), weights);
    // A content that lost its end is fetched again.
    std::fs::write(&blob, &weights[..100]).unwrap();
    place.pull("org/tiny").fine();
    assert_eq!(std::fs::read(&blob).unwrap(), weights);
}

#[test]
fn a_server_that_asks_to_wait_is_given_the_time() {
    let place = Place::new("busy", tiny());
    for header in ["Retry-After: 1", "RateLimit: \"resolvers\";r=0;t=1"] {
        let _ = std::fs::remove_dir_all(place.home.join("hub"));
        place.hub.state().busy = (1, header);
        let start = Instant::now();
        place.pull("org/tiny").fine();
        assert!(start.elapsed() >= Duration::from_secs(1), "{header}");
    }
    // Of the cache, without waiting for ever; where there is nothing, an error that says it.
    place.hub.state().busy = (1, "Retry-After: 3600");
    let ran = place.pull("org/tiny").fine();
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("from the cache"), "{}", ran.stderr);
    std::fs::remove_dir_all(place.home.join("hub")).unwrap();
    place.hub.state().busy = (1, "Retry-After: 3600");
    place.pull("org/tiny").refused(&["not in the cache", "HTTP status 429, and the server asks to wait 3600 s"]);
}

#[test]
fn what_did_not_come_whole_is_not_taken_for_a_model() {
    let place = Place::new("wrong", tiny());
    place.hub.state().damaged = true;
    place.pull("org/tiny").refused(&["org/tiny", "model.safetensors", "expected SHA-256", "thrown away"]);
    let hash = sha256(&place.hub.state().files["model.safetensors"].clone());
    assert!(place.blobs().iter().all(|name| !name.starts_with(&hash)), "{:?}", place.blobs());
    assert!(!place.snapshot().join("model.safetensors").exists() && !place.cache().join("refs/main").exists());
    place.hub.state().damaged = false;
    // No byte ever comes.
    place.hub.state().breaks = (usize::MAX, 0);
    place.pull("org/tiny").refused(&["org/tiny", "model.safetensors", "could not be downloaded", "goes on from there"]);
    assert!(place.blobs().contains(&format!("{hash}.incomplete")), "{:?}", place.blobs());
    let incomplete = format!("{hash}.incomplete");
    place.run_with(&["inspect", "org/tiny"], &[("HF_HUB_OFFLINE", "1")]).refused(&["not in the cache", "did not finish", &incomplete]);
}

#[test]
fn refusals_say_what_to_do() {
    let place = Place::new("refused", tiny());
    place.pull("org/tiny").fine();
    let refused = |status: u16, code: &'static str, spec: &str, token: &str, parts: &[&str]| {
        place.hub.state().refusal = Some((status, code));
        place.run_with(&["inspect", spec], &[("HF_TOKEN", token)]).refused(parts);
    };
    refused(401, "GatedRepo", "org/gated", "", &["gated", "accept its licence", "org/gated", "HF_TOKEN", "/settings/tokens"]);
    refused(403, "GatedRepo", "org/gated", "hf_x", &["gated", "ask for access"]);
    refused(401, "RepoNotFound", "org/tony", "", &["no such model", "private or gated", "org/tony", "in the cache there is `org/tiny`"]);
    refused(401, "", "org/name", "hf_x", &["the token", "not valid"]);
    refused(404, "RepoNotFound", "org/name", "", &["no such model", "HTTP status 404"]);
    refused(404, "RevisionNotFound", "org/name@v9", "", &["no revision `v9`", "branches"]);
    place.hub.state().refusal = None;
    place.pull("org/tiny:model.gguf").refused(&["no file `model.gguf`", "no GGUF files"]);
    place.pull("tiny").refused(&["org/name"]);
    place.pull("org/tiny:../../x.gguf").refused(&["org/name[@revision][:FILE]"]);
    place.run_with(&["pull", "org/tiny"], &[("HF_TOKEN", "a\nb")]).refused(&["HF_TOKEN"]);
    place.run_with(&["pull", "org/tiny"], &[("HF_ENDPOINT", "huggingface.co")]).refused(&["HF_ENDPOINT", "https://"]);
    for status in [401, 403, 404, 418] {
        place.hub.state().refusal = Some((status, ""));
        let ran = place.run_with(&["pull", "org/tiny"], &[("HF_TOKEN", "hf_secret")]).refused(&["org/tiny"]);
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("hf_secret"), "{}", ran.stderr);
    }
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let place = Place::new("token", tiny());
    let sent = |variables: &[(&str, &str)]| {
        let _ = std::fs::remove_dir_all(place.home.join("hub"));
        place.hub.requests();
        place.run_with(&["pull", "org/tiny"], variables).fine();
        let requests = place.hub.requests();
        assert!(requests.iter().any(|r| r.stored), "a large file comes from the other port");
        assert!(requests.iter().filter(|r| r.stored).all(|r| r.token.is_none()), "{requests:?}");
        let of_hub: Vec<Option<String>> = requests.into_iter().filter(|r| !r.stored).map(|r| r.token).collect();
        assert!(of_hub.iter().all(|token| *token == of_hub[0]), "{of_hub:?}");
        of_hub[0].clone()
    };
    assert_eq!(sent(&[]), None);
    assert_eq!(sent(&[("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")]).as_deref(), Some("Bearer hf_a"));
    assert_eq!(sent(&[("HUGGING_FACE_HUB_TOKEN", "hf_b")]).as_deref(), Some("Bearer hf_b"));
    std::fs::write(place.home.join("token"), "hf_file\n").unwrap();
    assert_eq!(sent(&[]).as_deref(), Some("Bearer hf_file"));
    assert_eq!(sent(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
}

#[test]
fn names_that_lead_out_of_the_folder_are_refused() {
    let place = Place::new("names", tiny());
    for name in ["../../../outside.json", "/etc/outside.json", "a/../../b"] {
        place.hub.state().listed = vec![name.into()];
        place.pull("org/tiny").refused(&[name, "not a file of the model's folder"]);
    }
    place.hub.state().listed.clear();
    let index = |shard: &str| format!("{{\"weight_map\": {{\"a\": \"{shard}\"}}}}").into_bytes();
    let weights = place.hub.state().files.remove("model.safetensors").unwrap();
    for (shard, part) in
        [("../../../model.safetensors", "not a file of the model's folder"), ("absent.safetensors", "not in the repository")]
    {
        place.hub.state().files.insert("model.safetensors.index.json".into(), index(shard));
        place.pull("org/tiny").refused(&[shard, part]);
    }
    place.hub.state().files.insert("model.safetensors".into(), weights);
    assert!(!place.home.join("hub/model.safetensors").exists() && !place.home.join("hub/outside.json").exists());
}

#[test]
fn gguf_files_are_chosen_by_name() {
    let (gemma, phi) = (gguf("gemma.f16.gguf"), gguf("phi3.q8_0.gguf"));
    let place = Place::new("gguf", BTreeMap::from([("q/phi3.q8_0.gguf".into(), phi.clone()), ("README.md".into(), b"x".to_vec())]));
    let local = |name: &str| expected(&format!("{}/../tests/fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR")));
    assert_eq!(place.logits("org/tiny"), local("phi3.q8_0.gguf"));
    place.hub.state().files.insert("gemma.f16.gguf".into(), gemma);
    place.pull("org/tiny").refused(&[
        "several GGUF models",
        "org/tiny:FILE",
        "\n  gemma.f16.gguf  92.7 kB",
        "\n  q/phi3.q8_0.gguf  95.8 kB",
    ]);
    place.pull("org/tiny:phi3.q8_0.gguf").refused(&["did you mean `q/phi3.q8_0.gguf`"]);
    place.hub.requests();
    for spec in ["org/tiny:gemma.f16.gguf", "org/tiny:F16"] {
        assert_eq!(place.logits(spec), local("gemma.f16.gguf"));
    }
    assert!(place.hub.requests().iter().all(|r| !r.path.contains("phi3")));
    let pulled = place.pull("org/tiny:q8_0").fine();
    assert_eq!(Path::new(pulled.stdout.trim()), place.snapshot().join("q/phi3.q8_0.gguf"));
    assert_eq!(std::fs::read(pulled.stdout.trim()).unwrap(), phi);
}

#[test]
fn a_folder_wins_over_a_model_of_its_name() {
    let place = Place::new("folder", tiny());
    let work = scratch("hub-folder-work");
    std::fs::create_dir_all(work.join("org")).unwrap();
    std::fs::rename(copy("llama2", "hub-folder-model"), work.join("org/tiny")).unwrap();
    let mut command = command(&[&RUN[..], &["-m", "org/tiny"]].concat());
    let ran = finish(command.current_dir(&work).env("HF_ENDPOINT", &place.hub.address).env("HF_HOME", &place.home)).fine();
    assert_eq!(logits(&ran), expected(&data("llama2")));
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("the folder org/tiny is opened"), "{}", ran.stdout);
    assert!(place.hub.requests().is_empty());
}

#[test]
fn a_folder_of_gguf_files_is_a_model_where_it_has_one() {
    let folder = scratch("hub-gguf-folder");
    std::fs::write(folder.join("a.gguf"), gguf("gemma.f16.gguf")).unwrap();
    std::fs::write(folder.join("mmproj-a.gguf"), b"of images").unwrap();
    let run = || doppler(&[&RUN[..], &["-m", text(&folder)]].concat());
    assert_eq!(logits(&run().fine()), expected(text(&folder.join("a.gguf"))));
    std::fs::write(folder.join("b.gguf"), gguf("phi3.q8_0.gguf")).unwrap();
    run().refused(&["several GGUF models", "a.gguf", "b.gguf", "-m "]);
    // A part of a set whose others are missing.
    std::fs::remove_file(folder.join("a.gguf")).unwrap();
    std::fs::rename(folder.join("b.gguf"), folder.join("b-00002-of-00002.gguf")).unwrap();
    run().refused(&["b-00001-of-00002.gguf", "no such file"]);
}

/// The client downloads; the resident process knows neither the address nor the cache.
#[cfg(unix)]
#[test]
fn the_resident_process_gets_what_its_client_downloaded() {
    let place = Place::new("resident", tiny());
    let own = scratch("hub-resident-place");
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let variables = [("DOPPLER_RESIDENT", "on"), ("DOPPLER_RESIDENT_DIR", text(&own)), ("DOPPLER_RESIDENT_IDLE", "20")];
    let debug = [&RUN[..], &["-m", "org/tiny"]].concat();
    let ran = place.run_with(&debug, &variables).fine();
    assert_eq!(logits(&ran), expected(&data("gemma2")));
    let again = place.run_with(&[&debug[..], &["--skip-load"]].concat(), &variables).fine();
    assert!(logits(&again) == logits(&ran) && again.stdout.contains("org/tiny"), "{}", again.stdout);
    let status = place.run_with(&["resident", "stop"], &variables).fine();
    assert!(status.stdout.contains(COMMIT), "{}", status.stdout);
}
