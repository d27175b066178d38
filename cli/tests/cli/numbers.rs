//! Every number that the command line takes, at the ends of what numbers can be: done or refused, soon, and never a panic.

use crate::support::{command, data, doppler, finish, scratch, text};
use std::time::{Duration, Instant};

/// Values that overflow something, or are no number.
const VALUES: [&str; 6] = ["0", "4294967296", "9223372036854775808", "18446744073709551615", "18446744073709551616", "-1"];

/// A run of the command must end soon, done or with one error.
#[track_caller]
fn held(args: &[&str]) {
    let since = Instant::now();
    let ran = doppler(args);
    assert!(since.elapsed() < Duration::from_secs(60), "{args:?} took {:?}", since.elapsed());
    assert!(matches!(ran.code, Some(0..=2)), "{args:?}: {:?}\n{}", ran.code, ran.stderr);
    for word in ["bug in Doppler", "panicked", "overflow"] {
        assert!(!ran.stderr.contains(word), "{args:?}: {}", ran.stderr);
    }
    if ran.code == Some(2) {
        assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("Error ")).count(), 1, "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn numbers_are_followed_or_refused() {
    let (gemma2, llama2) = (data("gemma2"), data("llama2"));
    let words = scratch("numbers").join("text.txt");
    std::fs::write(&words, "The first row is right. The second row is not.").unwrap();
    let debug = ["debug", "-m", &llama2, "--device", "cpu", "--token-ids", "2,10", "--max-tokens", "2"];
    let run = ["run", "-m", &gemma2, "--device", "cpu", "The model", "--max-tokens", "2"];
    let two =
        ["compare", "-m", &llama2, "--a", "device=cpu", "--b", "device=cpu,dtype=f16", "--token-ids", "2,10", "--stages", "logits_final"];
    let read = ["compare", "agree", text(&words), "-m", &gemma2, "--a", "device=cpu", "--b", "device=cpu,dtype=f16"];
    let commands: [(&[&str], &[&str]); 5] = [
        (
            &debug,
            &[
                "--max-tokens",
                "--context",
                "--prefill-chunk",
                "--top-k",
                "--top-p",
                "--min-p",
                "--temperature",
                "--seed",
                "--repeat-penalty",
                "--trace-layers",
                "--token-ids",
            ],
        ),
        (&run, &["--context", "--prefill-chunk", "--top-k", "--seed"]),
        (&two, &["--max-tokens", "--layers", "--context", "--prefill-chunk"]),
        (&read, &["--window", "--text-tokens", "--max-kl"]),
        (&["inspect", &llama2], &["--context"]),
    ];
    for (command, options) in commands {
        for option in options {
            // An option may be given once.
            let mut line: Vec<&str> = command.to_vec();
            if let Some(at) = line.iter().position(|word| word == option) {
                line.drain(at..at + 2);
            }
            for value in VALUES {
                let given = format!("{option}={value}");
                held(&[&line[..], &[&given]].concat());
            }
        }
    }
}

#[test]
fn bench_refuses_what_it_cannot_hold() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let most = doppler::bench::MOST_POSITIONS.to_string();
    for (prompt, tokens) in [("9223372036854775808", "9223372036854775808"), ("18446744073709551615", "1"), ("1", "9223372036854775807")] {
        let ran = doppler(&["bench", "--synthetic", "demo", "--prompt", prompt, "--tokens", tokens]);
        ran.refused(&["expected at most", &most]);
    }
    for (prompt, tokens) in [("0", "1"), ("1", "0")] {
        doppler(&["bench", "--synthetic", "demo", "--prompt", prompt, "--tokens", tokens]).refused(&["at least one token"]);
    }
    doppler(&["bench", "--synthetic", "demo", "--depth", &most, "--prompt", "1", "--tokens", "1"]).refused(&["expected at most", &most]);
    for repeat in ["0", "1001", "18446744073709551615"] {
        doppler(&["bench", "--synthetic", "demo", "--repeat", repeat]).refused(&["repeat: expected 1 to 1000"]);
    }
}

/// Formats that are only read are made of random codes; those that no kernel reads are decoded on the way.
#[test]
fn bench_takes_every_format_whose_blocks_fit() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let bench = |format| doppler(&["bench", "--synthetic", "demo", "--prompt", "2", "--tokens", "1", "--no-kernels", "--format", format]);
    for format in ["z4_128", "iq2_xxs"] {
        let ran = bench(format).fine();
        assert!(ran.stdout.contains(&format!("format={format}")) && ran.stdout.contains("decode   "), "{}", ran.stdout);
    }
    bench("z4").refused(&["unknown format `z4`; known are f32"]);
}

/// What is measured after other tokens is measured there, and the device's memory is said.
#[test]
fn bench_measures_at_a_depth() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let file = scratch("bench_depth").join("figures.json");
    let task = ["bench", "--synthetic", "demo", "--depth", "5", "--prompt", "2", "--tokens", "1", "--repeat", "2", "--json", text(&file)];
    let ran = doppler(&task).fine();
    let figures: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let number = |key: &str| figures[key].as_u64().unwrap_or_else(|| panic!("{key} in {figures}"));
    assert_eq!((number("depth"), number("promptTokens"), number("tokens")), (5, 2, 1));
    assert!(number("deviceBytes") > number("weightBytes") && ran.stdout.contains("memory   "), "{}", ran.stdout);
    let kernels = ran.stdout.lines().filter(|line| line.starts_with("kernels  ")).collect::<Vec<_>>();
    if !kernels.is_empty() {
        assert!(kernels.iter().any(|line| line.contains("a step of 2 tokens at position 5")), "{kernels:?}");
        let product = |line: &&str| line.starts_with("         linear") && line.contains(" of copy");
        assert!(ran.stdout.lines().any(|line| product(&line)), "{}", ran.stdout);
    }
}

/// A model is measured with its own weights, and its first token after a cold start; what watching costs is said twice.
#[test]
fn bench_measures_a_model() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let file = scratch("bench_model").join("figures.json");
    let task = ["bench", "-m", "demo", "--prompt", "6", "--tokens", "2", "--repeat", "1", "--no-kernels"];
    let ran = doppler(&[&task[..], &["--watch", "rules", "--watch", "ffn", "--json", text(&file)]].concat()).fine();
    let figures: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&figures["model"], &figures["format"]), (&"demo".into(), &"bf16".into()), "{figures}");
    assert!(figures["firstTokenSeconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{figures}");
    for part in ["Config model=demo format=bf16 dtype=f16 gpu ", "\nfirst    token after ", "\nwatched  rules: ", "\nwatched  ffn: "] {
        assert!(ran.stdout.contains(part), "{part} in {}", ran.stdout);
    }
    assert_eq!(ran.stdout.matches(" % against the same fusions unwatched").count(), 2, "{}", ran.stdout);
    doppler(&[&task[..], &["--compare", text(&file)]].concat()).fine();
    doppler(&["bench", "--synthetic", "demo", "--compare", text(&file)]).refused(&["synthetic was null, now it is \"demo\""]);
    doppler(&["bench"]).refused(&["--model"]);
    doppler(&["bench", "-m", "demo", "--format", "q8_0"]).refused(&["--format"]);
    doppler(&["bench", "-m", "demo", "--depth", "4000"]).refused(&["the model has 1024 positions"]);
}

/// Nothing that was asked is no success.
#[test]
fn an_exam_of_nothing_is_refused() {
    let folder = scratch("exam_of_nothing");
    let file = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let question = "{\"kind\":\"where\",\"prompt\":\"Where?\",\"chat\":false,\"answer\":\"Here.\"}\n";
    let (none, one) = (file("none.jsonl", "\n"), file("one.jsonl", question));
    let (short, long) = (file("short.txt", "short text"), file("long.txt", &"The color of the sky is blue.\n".repeat(40)));
    let exam = |questions, held| doppler(&["exam", "--device", "cpu", "--questions", text(questions), "--text", text(held)]);
    exam(&none, &long).refused(&["none.jsonl", "at least one question", "found none"]);
    exam(&one, &short).refused(&["short.txt", "at least 64 tokens", "found"]);
    assert!(exam(&one, &long).fine().stdout.contains("of 1 "));
}

#[test]
fn bench_tells_what_changed() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let file = scratch("bench_compare").join("before.json");
    let task = ["bench", "--synthetic", "demo", "--tokens", "1", "--repeat", "1", "--no-kernels"];
    let bench = |more: &[&str]| doppler(&[&task[..], more].concat());
    bench(&["--prompt", "2", "--json", text(&file)]).fine();
    let ran = bench(&["--prompt", "2", "--compare", text(&file)]).fine();
    for name in ["prefill", "decode"] {
        let line = ran.stdout.lines().find(|line| line.starts_with(&format!("change   {name}: ")));
        assert!(line.is_some_and(|line| line.contains(" -> ") && line.contains(" tok/s, ")), "{}", ran.stdout);
    }
    for (other, refused) in [
        (["--prompt", "3"], "promptTokens was 2, now it is 3"),
        (["--depth", "2"], "depth was 0, now it is 2"),
        (["--limits", "floor"], "limits was \"native\", now it is \"floor\""),
    ] {
        let prompt: &[&str] = if other[0] == "--prompt" { &[] } else { &["--prompt", "2"] };
        bench(&[&other[..], prompt, &["--compare", text(&file)]].concat()).refused(&[refused]);
    }
    bench(&["--prompt", "2", "--compare", "no/such/file"]).refused(&["no/such/file"]);
}

/// What was measured is kept for this user, followed by the runs to come, named in their `Config` line, and left alone where
/// that is asked for. Whether a variant is faster depends on the day; which one is followed does not.
#[test]
fn tuned_variants_are_kept_and_followed() {
    if !crate::support::devices().contains(&"gpu") {
        return;
    }
    let folder = scratch("tuned");
    let run = |args: &[&str]| finish(command(args).env("XDG_CACHE_HOME", &folder));
    let shown = run(&["tune", "-m", "demo", "--dtype", "f32", "--prompt", "2", "--tokens", "1", "--repeat", "1"]).fine().stdout;
    let debug = ["debug", "-m", "demo", "-p", "Once", "--max-tokens", "1", "--device", "gpu", "--dtype", "f32"];
    if shown.contains("software") {
        // There each product has one kernel; a table that cannot be read is refused all the same.
        assert!(shown.contains("tune     0 products have a choice") && !shown.contains("kept"), "{shown}");
        let path = folder.join("doppler/tuned/broken.json");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "{").unwrap();
        run(&debug).refused(&[text(&path), "delete this file", "--tune off"]);
        return;
    }
    assert!(shown.contains(" products have a choice") && shown.contains("tuned    decode: "), "{shown}");
    let kept = shown.lines().find_map(|line| Some(line.strip_prefix("kept     ")?.split_once(": ")?.0));
    let path = kept.unwrap_or_else(|| panic!("{shown}"));
    let product = shown.lines().find_map(|line| Some(line.strip_prefix("         ")?.split_once(": ")?.0));
    let product = product.filter(|product| product.contains(" f32")).unwrap_or_else(|| panic!("{shown}"));
    let mut table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // Eight threads share a row of no product of the built-in model unless they are told to.
    table["products"] = serde_json::json!({ (product): {"lanes": 8, "digits": false} });
    std::fs::write(path, table.to_string()).unwrap();
    let out = |more: &[&str]| run(&[&debug[..], more].concat()).fine().stdout;
    assert!(out(&[]).contains(", tuned "), "{}", out(&[]));
    assert!(!out(&["--tune", "off"]).contains(", tuned "));
    let sides = ["compare", "-m", "demo", "-p", "Once", "--device", "gpu", "--dtype", "f32", "--a", "tune=off", "--b", "tune=auto"];
    assert!(run(&sides).fine().stdout.contains("AGREE"));
    std::fs::write(path, "{").unwrap();
    run(&debug).refused(&[path, "delete this file", "--tune off"]);
}
