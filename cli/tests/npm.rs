//! `npm run debug` as the documents write it: no `npm install`, a release build by itself, nothing of the build on
//! success. This builds the release binary where it is not there.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say what they skip")]
#![cfg(unix)]

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a line in the repository's root with a resident process of its own.
fn shell(line: &str) -> String {
    let home = std::env::temp_dir().join(format!("dr-npm-{}", std::process::id()));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(root).env("DOPPLER_RESIDENT_DIR", home).stdin(Stdio::null());
    if std::env::var("CI").as_deref() == Ok("true") {
        // That the build runs by itself is tested, not how fast it computes, and optimising takes most of its time.
        shell.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
    }
    let output = shell.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // `build` tells where the web bundle is and how large.
    assert!(stderr.is_empty() || line.starts_with("npm run build"), "{line}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn npm_scripts_work_as_written() {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has("npm") {
        eprintln!("skipped: there is no npm");
        return;
    }
    let said = shell(r#"npm run debug -- -m demo 2>&1 | grep -E "Done|Output|Error""#);
    assert!(said.starts_with("Output  blue.\nDone 3 tokens in "), "{said}");
    assert_eq!(shell(r#"npm run debug -- -m demo 2>&1 | grep -E "Error|NaN|Inf|ANOMALY""#), "");
    let first = shell(r#"npm run debug -- -m demo --trace ffn 2>&1 | sed '/Done/q'"#);
    assert!(first.lines().any(|line| line.starts_with("Config ")) && first.contains("[TRACE:ffn] L6 ffn_out"), "{first}");
    let again = shell(r#"npm run debug -- -m demo --trace ffn --skip-load 2>&1 | sed '/Done/q'"#);
    // Only a run that loads opens a device, and says which one it does not take.
    let lines = |said: &str| said.lines().filter(|line| !line.contains("computes in software")).count();
    assert_eq!(lines(&again), lines(&first), "{again}");
    assert!(!again.contains("Note"), "{again}");
    let said = shell(r#"npm run build && npm run debug -- -m demo --skip-load 2>&1 | grep -E "Config|Done|Output""#);
    let words = said.lines().filter_map(|line| line.split(' ').next()).filter(|word| !word.starts_with('/'));
    assert_eq!(words.collect::<Vec<_>>(), ["Config", "Output", "Done"], "{said}");
    // The package as it would be published: what the page loads, its types, texts and licences, and nothing else.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("web");
    let packed: serde_json::Value = serde_json::from_str(&shell(&format!("npm pack --dry-run --json '{}'", folder.display()))).unwrap();
    let files: Vec<&str> = packed[0]["files"].as_array().unwrap().iter().filter_map(|file| file["path"].as_str()).collect();
    for needed in ["README.md", "LICENSE", "THIRD-PARTY.txt", "package.json", "index.js", "index.d.ts", "worker.js", "doppler_web_bg.wasm"]
    {
        assert!(files.contains(&needed), "{needed} is missing: {files:?}");
    }
    let known = [".js", ".d.ts", ".wasm", "README.md", "LICENSE", "THIRD-PARTY.txt", "package.json"];
    let odd: Vec<&&str> = files.iter().filter(|file| !known.iter().any(|end| file.ends_with(end))).collect();
    assert!(odd.is_empty(), "{odd:?}");
    // What npm itself has to say is printed: a script that does not exist.
    assert!(shell("npm run nonsense || true").contains("Missing script: \\\"nonsense\\\""));
    assert!(shell("npm run resident -- stop").contains("ended; it held demo"));
}

#[test]
fn the_package_says_that_node_is_no_browser() {
    if !Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no node");
        return;
    }
    let script = r#"
        const { Doppler } = await import("./web/package/index.js");
        const { needBrowser } = await import("./web/package/errors.js");
        for (const call of [() => Doppler.load("/m/"), () => Doppler.forecast("/m/"), () => Doppler.compare("a", "b")])
            await call().then(() => console.log("no error"), (error) => console.log(error.kind, error.message));
        needBrowser({ process: { versions: { node: "1" } }, navigator: { gpu: {} } });
        needBrowser({});
    "#;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new("node").args(["--input-type=module", "-e", script]).current_dir(root).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 3 && wrong.is_empty(), "{said}{wrong}");
    assert!(lines.iter().all(|line| line.starts_with("device @doppler/web runs on WebGPU in a browser, but this is Node ")), "{said}");
}
