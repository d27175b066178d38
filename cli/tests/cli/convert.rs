//! `convert` and `verify` through the real binary: what they say, what they refuse, exit codes.

use crate::support::{copy, data, doppler, scratch, text};

#[test]
fn the_built_in_model_is_converted_and_verified() {
    let folder = scratch("convert");
    let (gguf, manifest) = (folder.join("demo.gguf"), folder.join("demo"));
    let made = doppler(&["convert", "demo", "-o", text(&gguf), "--quantize", "q8_0"]).fine();
    let line = |role: &str| made.stdout.lines().find(|line| line.starts_with(role)).unwrap_or_else(|| panic!("{}", made.stdout));
    assert!(line("q_proj").contains("q8_0") && line("norms").contains("f32") && line("all").contains("e-3"), "{}", made.stdout);
    assert!(made.stdout.ends_with(&format!("wrote {} (gguf)\n", gguf.display())), "{}", made.stdout);
    let answer = doppler(&["run", "-m", text(&gguf), "--device", "cpu", "The color of the sky is"]).fine();
    assert!(answer.stdout.contains("blue"), "{}", answer.stdout);
    let seen = doppler(&["verify", text(&gguf)]).fine().stdout;
    assert!(seen.contains("hashes     none in this format") && seen.contains("nothing is wrong"), "{seen}");

    doppler(&["convert", text(&gguf), "-o", text(&manifest), "--recipe", "q4_k_m", "--to", "manifest"]).fine();
    let seen = doppler(&["verify", text(&manifest)]).fine().stdout;
    assert!(seen.contains("1 of 1 shards and 4 texts are as listed") && seen.contains("no NaN, no Inf"), "{seen}");
    let answer = doppler(&["run", "-m", text(&manifest), "--device", "cpu", "The color of the sky is"]).fine();
    assert!(answer.stdout.contains("blue"), "{}", answer.stdout);
    // A bit that is flipped is a finding of verify, and an error of what would use it.
    let shard = manifest.join("shard-00000.bin");
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 4;
    std::fs::write(&shard, bytes).unwrap();
    let seen = doppler(&["verify", text(&manifest)]);
    assert_eq!(seen.code, Some(1), "{}", seen.stdout);
    assert!(seen.stdout.contains("hashes     WRONG") && seen.stdout.contains("1 thing is wrong"), "{}", seen.stdout);
    doppler(&["run", "-m", text(&manifest), "--device", "cpu", "x"]).refused(&["shard shard-00000.bin is corrupt"]);
}

#[test]
fn conversions_that_would_lose_something_are_refused() {
    let folder = scratch("convert-refused");
    let (out, model) = (folder.join("out"), copy("qwen3", "convert-source"));
    let convert = |more: &[&str]| doppler(&[&["convert", text(&model), "--quantize", "f16"], more].concat());
    convert(&["-o", text(&model), "--force"]).refused(&["this is what is to be converted"]);
    convert(&["-o", text(model.parent().unwrap()), "--force"]).refused(&["or the folder that it is in"]);
    convert(&["-o", text(&folder)]).refused(&["exists already", "--force"]);
    std::fs::write(folder.join("letter.txt"), "dear").unwrap();
    convert(&["-o", text(&folder), "--force"]).refused(&["holds no model"]);
    convert(&["-o", text(&folder.join("no/such/out"))]).refused(&["no/such"]);
    convert(&["-o", text(&out), "--keep", "v_porj=q8_0"]).refused(&["no weight is called `v_porj`", "v_proj"]);
    convert(&["-o", text(&out), "--recipe", "q4_k_m"]).refused(&["--recipe", "give one of them"]);
    assert_eq!(doppler(&["convert", text(&model), "-o", text(&out)]).code, Some(2));
    assert!(!out.exists() && folder.join("letter.txt").exists());
    convert(&["-o", text(&out)]).fine();
    convert(&["-o", text(&out), "--force"]).fine();
    let mut names: Vec<String> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["letter.txt", "out"], "nothing else is left");
    doppler(&["verify", &data("qwen3")]).fine();
    assert!(doppler(&["verify", text(&out)]).fine().stdout.contains("f16"));
    doppler(&["verify", text(&folder.join("none"))]).refused(&["no such folder"]);
}
