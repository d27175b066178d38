//! Conversions: what is written is the model that was read; what cannot be is an error; broken manifests are named.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use doppler::config::ResolveOptions;
use doppler::convert::{Conversion, Options, Report, Target};
use doppler::cpu::CpuExecutor;
use doppler::exec::{self, Executor, Rows, Step, Storage, Tokens};
use doppler::formats::gguf::{Array, Metadata, Output, Value, read_header, split_files, write};
use doppler::formats::manifest::{Hashed, Manifest, Provenance, Quantization};
use doppler::formats::sharded::Sharded;
use doppler::formats::{ByteSource, InMemory, Local, LocalFile};
use doppler::loader::{load, open_directory};
use doppler::open::{Opened, manifest, open_gguf};
use doppler::quant::Format;
use doppler::quant::recipe::Keep;
use doppler::{Error, Kind, Result};
use pollster::block_on;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("convert-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The model at `path`, whatever its form.
pub fn open(path: &Path) -> Result<Opened> {
    let files = match () {
        () if path.join("manifest.json").is_file() => manifest::open_folder(path)?,
        () if path.is_dir() => open_directory(path)?,
        () => {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let names = split_files(&name).unwrap_or_else(|| vec![name]);
            let sources = names.iter().map(|name| LocalFile::open(&path.with_file_name(name)).map(Local::File)).collect::<Result<_>>()?;
            block_on(open_gguf(path.to_path_buf(), sources))?
        }
    };
    Opened::new("model".into(), files, ResolveOptions::default())
}

fn options(quantize: &str, threads: usize) -> Options {
    Options { quantize: quantize.into(), keep: Vec::new(), importance: None, threads, file_bytes: None, command: "doppler convert".into() }
}

fn convert_as(from: &Path, to: &Path, target: Target, options: &Options) -> Result<(Report, Vec<String>)> {
    let model = open(from)?;
    let weights = block_on(model.weights())?;
    let conversion = Conversion::new(&model, &weights, target, options)?;
    let (mut last, total) = (0, conversion.bytes());
    let report = block_on(conversion.write(to, &mut |progress| {
        assert!(progress.bytes_done >= last && progress.bytes_total == total && !progress.tensor.is_empty());
        last = progress.bytes_done;
        Ok(())
    }))?;
    assert_eq!(last, total, "all bytes were told of");
    Ok((report, conversion.notes().to_vec()))
}

/// Converts the model at `from`.
pub fn convert(from: &Path, to: &Path, target: Target, quantize: &str) -> Result<Report> {
    convert_as(from, to, target, &options(quantize, 2)).map(|(report, _)| report)
}

/// Logits after some ids, by the oracle.
pub fn logits(path: &Path) -> Vec<f32> {
    let model = open(path).unwrap();
    let weights = block_on(model.weights()).unwrap();
    let mut executor = CpuExecutor::<f32>::new(model.plan.clone(), Storage::F32).unwrap();
    block_on(load(&model.plan, &weights.checkpoint, &weights.matched, true, &mut executor, &mut |_| {})).unwrap();
    let ids: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % model.plan.vocab_size as u32).collect();
    let mut cache = executor.new_cache(32, 32).unwrap();
    let step = Step { tokens: Tokens::Ids(&ids), rows: Rows::Last, pick: None, read: exec::Read::Logits, long_rope: false, requests: &[] };
    block_on(executor.step(&mut cache, &step)).unwrap().logits.unwrap()
}

/// ‖a − b‖ / ‖b‖.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

fn same_words(a: &Path, b: &Path) {
    let (a, b) = (open(a).unwrap(), open(b).unwrap());
    let (Some(a), Some(b)) = (a.words().unwrap(), b.words().unwrap()) else { panic!("both should have a tokenizer") };
    assert_eq!(a.template().is_some(), b.template().is_some());
    assert_eq!(
        (a.tokenizer.bos(), a.tokenizer.pad(), a.tokenizer.adds_bos()),
        (b.tokenizer.bos(), b.tokenizer.pad(), b.tokenizer.adds_bos())
    );
    for text in ["The color of the sky is", " two  spaces\n\tand <bos> é 世界 12345", "don't", ""] {
        for special in [false, true] {
            assert_eq!(a.tokenizer.encode(text, special).unwrap(), b.tokenizer.encode(text, special).unwrap(), "{text:?}");
        }
    }
}

/// Golden models with what a GGUF file cannot say of them.
const NOT_IN_GGUF: [(&str, &str); 11] = [
    ("qwen3", "no pre-tokenizer of GGUF"),
    ("lfm2-biased", "`layers[0].mixer.bias"),
    ("mistral", "`layers"),
    ("mixtral", "`layers"),
    ("phi-normed", "`layers[0].mixer.queryKeyNorm"),
    ("qwen2-moe", "`layers"),
    ("qwen2-window", "`layers"),
    ("qwen3-moe", "`layers"),
    ("qwen3-next", "`layers[1].ffn"),
    ("smollm3", "`layers"),
    ("starcoder2", "`layers"),
];
/// Golden models whose logits differ by rounding there: RoPE is a table of divisors of 32 bits, or the factor on q·k, which has
/// no key, is in the weights of queries.
/// Decays are −e^x.
const ROUNDED: [&str; 7] = ["llama3", "gemma2", "gemma3", "gemma3-multimodal", "qwen3-5", "qwen3-5-moe", "qwen3-5-tied"];

#[test]
fn every_golden_model_is_the_same_in_every_form() {
    let folder = scratch("forms");
    let mut seen = 0;
    let mut names: Vec<PathBuf> = std::fs::read_dir(root().join("tests/data")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.join("config.json").is_file());
    names.sort();
    for path in names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // A copy without the golden values, which would pass for weights.
        let source = folder.join(&name);
        std::fs::create_dir_all(&source).unwrap();
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_string_lossy().starts_with("golden") {
                std::fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
            }
        }
        let expected = logits(&source);
        let (manifest, plain) = (folder.join(format!("{name}-m")), folder.join(format!("{name}-s")));
        convert(&source, &manifest, Target::Manifest, "f32").unwrap();
        assert_eq!(logits(&manifest), expected, "{name}: manifest");
        convert(&source, &plain, Target::Safetensors, "f32").unwrap();
        assert_eq!(logits(&plain), expected, "{name}: safetensors");
        let has_words = open(&source).unwrap().words().unwrap().is_some();
        if has_words {
            same_words(&source, &manifest);
            same_words(&source, &plain);
        }
        seen += 1;

        let gguf = folder.join(format!("{name}.gguf"));
        let written = convert(&source, &gguf, Target::Gguf, "f32");
        if let Some((_, what)) = NOT_IN_GGUF.iter().find(|(known, _)| *known == name) {
            let error = written.unwrap_err();
            assert!(error.kind == Kind::Unsupported && error.message.contains(what), "{name}: {error}");
            assert!(error.message.contains("--to manifest") && !gguf.exists(), "{name}: {error}");
            continue;
        }
        written.unwrap_or_else(|e| panic!("{name}: {e}"));
        if name == "exaone4" {
            let (_, notes) = convert_as(&source, &gguf, Target::Gguf, &options("f32", 2)).unwrap();
            assert!(
                notes.iter().any(|note| note.contains("llama.cpp computes windows") && note.contains("has 3, of which 2")),
                "{notes:?}"
            );
        }
        let off = distance(&logits(&gguf), &expected);
        let allowed = if ROUNDED.contains(&name.as_str()) { 2e-6 } else { 0.0 };
        assert!(off <= allowed, "{name}: logits are off by {off:e}");
        // And back, through the texts that the metadata make.
        let back = folder.join(format!("{name}-b"));
        convert(&gguf, &back, Target::Safetensors, "f32").unwrap();
        let off = distance(&logits(&back), &expected);
        assert!(off <= allowed.max(1e-6), "{name}: back from GGUF, logits are off by {off:e}");
        if has_words {
            same_words(&source, &gguf);
            same_words(&gguf, &back);
        }
    }
    assert!(seen > 12, "{seen}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// The built-in model: packed, by any number of threads, and back.
#[test]
fn packed_models_do_not_depend_on_threads_and_keep_their_numbers() {
    let folder = scratch("packed");
    let demo = root().join("models/demo");
    let (one, three) = (folder.join("one.gguf"), folder.join("three.gguf"));
    let keep = vec![Keep::parse("down_proj@0=q8_0").unwrap()];
    let with = |threads| Options { keep: keep.clone(), ..options("q4_k_m", threads) };
    let (report, notes) = convert_as(&demo, &one, Target::Gguf, &with(1)).unwrap();
    convert_as(&demo, &three, Target::Gguf, &with(3)).unwrap();
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&three).unwrap(), "bytes depend on threads");
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    assert!(notes.iter().all(|note| !note.contains("packed already")), "{notes:?}");
    let line = |role: &str, format| report.lines.iter().find(|line| line.role == role && line.format == format);
    let error = |role: &str, format| line(role, format).unwrap().relative_error().unwrap();
    // What the formats leave of values that are about Gaussian: 0.072 and 0.018 on unit blocks.
    assert!((0.05..0.09).contains(&error("q_proj", Format::Q4K)), "{}", error("q_proj", Format::Q4K));
    assert!((0.002..0.01).contains(&error("down_proj", Format::Q8_0)));
    assert!((0.01..0.025).contains(&error("embed", Format::Q6K)), "a tied embedding is a head");
    assert_eq!(line("attn_norm", Format::F32).unwrap().tensors, 7);

    // Read back, it is the model with other weights; a manifest and another GGUF file of it have the same ones.
    let (manifest, again) = (folder.join("manifest"), folder.join("again.gguf"));
    let expected = logits(&one);
    let off = distance(&expected, &logits(&demo));
    assert!((1e-4..0.3).contains(&off), "{off}");
    convert_as(&one, &manifest, Target::Manifest, &with(2)).unwrap();
    assert_eq!(logits(&manifest), expected);
    let (copied, notes) = convert_as(&manifest, &again, Target::Gguf, &with(2)).unwrap();
    assert!(copied.lines.iter().all(|line| line.squared_error == 0.0), "{:?}", copied.lines);
    assert!(notes.iter().all(|note| !note.contains("packed already")), "{notes:?}");
    assert_eq!(logits(&again), expected);
    same_words(&demo, &again);
    // From GGUF to GGUF only the tensors change.
    let small = folder.join("small.gguf");
    let (_, notes) = convert_as(&one, &small, Target::Gguf, &options("q8_0", 2)).unwrap();
    assert!(notes.iter().any(|note| note.contains("packed already")), "{notes:?}");
    let header = |path: &Path| block_on(read_header(&Local::File(LocalFile::open(path).unwrap()))).unwrap();
    let (before, after) = (header(&one), header(&small));
    let changed: Vec<&str> =
        before.metadata.iter().filter(|(key, value)| after.metadata.get(key) != Some(value)).map(|(key, _)| key).collect();
    assert_eq!(changed, ["general.file_type"]);
    assert!(after.tensors.iter().any(|tensor| tensor.name == "blk.3.attn_q.weight" && tensor.kind.name == "q8_0"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let folder = scratch("refused");
    let (demo, out) = (root().join("models/demo"), folder.join("out"));
    let refused = |target, quantize: &str, part: &str| {
        let error = convert(&demo, &out, target, quantize).unwrap_err();
        assert!(error.message.contains(part), "{error}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{part}: something was left");
    };
    refused(Target::Safetensors, "q8_0", "q8_0 cannot be written as safetensors");
    refused(Target::Safetensors, "q4_k_m", "convert to gguf or manifest");
    refused(Target::Gguf, "iq2_xs", "iq2_xs can be read, not written (possible: f32, f16, bf16, q8_0");
    refused(Target::Gguf, "q9", "`q9` is neither a format (f32, ");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A copy of a golden model, one of whose weights has a NaN.
fn with_nan(folder: &Path) -> PathBuf {
    let path = folder.join("nan");
    convert(&root().join("models/demo"), &path, Target::Safetensors, "f32").unwrap();
    let file = path.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let model = open(&path).unwrap();
    let weights = block_on(model.weights()).unwrap();
    let entry = weights.checkpoint.index.get("model.layers.2.mlp.up_proj.weight").unwrap();
    let at = entry.range.start as usize + (5 * entry.shape[1] + 7) * 4;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    path
}

#[test]
fn nan_is_named_unless_the_format_can_hold_it() {
    let folder = scratch("nan");
    let nan = with_nan(&folder);
    let error = convert(&nan, &folder.join("out.gguf"), Target::Gguf, "q8_0").unwrap_err();
    let expected = "blk.2.ffn_up.weight (up_proj of layer 2): row 5, column 7 is NaN, which q8_0 cannot hold";
    assert!(error.kind == Kind::Weights && error.message.contains(expected), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left");
    for format in ["f16", "bf16"] {
        convert(&nan, &folder.join(format), Target::Safetensors, format).unwrap();
        let model = open(&folder.join(format)).unwrap();
        let weights = block_on(model.weights()).unwrap();
        let mut executor = CpuExecutor::<f32>::new(model.plan.clone(), Storage::F32).unwrap();
        let report = block_on(load(&model.plan, &weights.checkpoint, &weights.matched, true, &mut executor, &mut |_| {})).unwrap();
        assert_eq!((report.non_finite.len(), report.non_finite[0].nan), (1, 1), "{format}");
        assert!(model.files.texts.config.contains(if format == "f16" { "\"float16\"" } else { "\"bfloat16\"" }));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_gguf_file_in_several_is_the_same_model() {
    let folder = scratch("split");
    let source = root().join("tests/data/gemma2");
    let whole = folder.join("whole.gguf");
    convert(&source, &whole, Target::Gguf, "f16").unwrap();
    for (file_bytes, least, most) in [(1, 20, usize::MAX), (20_000, 3, 12), (1 << 30, 1, 1)] {
        let to = folder.join(format!("model-{file_bytes}.gguf"));
        convert_as(&source, &to, Target::Gguf, &Options { file_bytes: Some(file_bytes), ..options("f16", 2) }).unwrap();
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(&format!("model-{file_bytes}")));
        files.sort();
        assert!((least..=most).contains(&files.len()), "{file_bytes}: {files:?}");
        assert_eq!(files.len() == 1, to.is_file());
        assert_eq!(logits(&files[0]), logits(&whole));
        same_words(&files[0], &whole);
        // Of the set, converted again, it is one file.
        let again = folder.join("again.gguf");
        convert(&files[0], &again, Target::Gguf, "f16").unwrap();
        assert_eq!(std::fs::read(&again).unwrap().len(), std::fs::read(&whole).unwrap().len());
        if files.len() > 1 {
            std::fs::remove_file(&files[1]).unwrap();
            assert!(open(&files[0]).is_err());
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn broken_manifests_are_named() {
    let folder = scratch("broken");
    let good = folder.join("good");
    convert(&root().join("tests/data/qwen3"), &good, Target::Manifest, "f32").unwrap();
    let text = std::fs::read_to_string(good.join("manifest.json")).unwrap();
    let parse = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut json);
        Manifest::parse("manifest.json", &json.to_string())
    };
    assert_eq!(parse(&|_| ()).unwrap().shards.len(), 1);
    let refused = |part: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let error: Error = parse(change).unwrap_err();
        assert!(error.kind == Kind::Format && error.message.contains(part), "{part}: {error}");
    };
    for name in ["../shard", "/etc/passwd", "a/b", "a\\b", ".hidden", "", "c:x", "sh\u{e4}rd"] {
        refused("is not the name of a file", &|json| json["shards"][0]["name"] = name.into());
        refused("is not the name of a file", &|json| json["texts"][0]["name"] = name.into());
    }
    refused("is there twice", &|json| json["shards"][0]["name"] = "CONFIG.json".into());
    refused("64 hexadecimal digits", &|json| json["shards"][0]["sha256"] = "abc".into());
    refused("version 2 of the format", &|json| json["version"] = 2.into());
    refused("no manifest", &|json| json["format"] = "zip".into());
    refused("unknown field `more`", &|json| json["more"] = 1.into());
    refused("unknown format `q9`", &|json| json["tensors"][0]["format"] = "q9".into());
    refused("it overlaps the one before it by", &|json| {
        json["tensors"][1]["offset"] = (json["tensors"][1]["offset"].as_u64().unwrap() - 512).into();
    });
    refused("no multiple of 256", &|json| json["tensors"][1]["offset"] = 1.into());
    refused("it ends beyond the last shard", &|json| {
        let shard = json["shards"][0]["bytes"].as_u64().unwrap();
        json["shards"][0]["bytes"] = (shard - 1).into();
    });
    refused("beyond its shard", &|json| json["tensors"][1]["offset"] = (u64::MAX / 256 * 256).into());
    for shard in [1, 7, u64::MAX] {
        refused(&format!("there is no shard {shard}"), &|json| json["tensors"][1]["shard"] = shard.into());
    }
    refused("are not", &|json| json["tensors"][1]["bytes"] = 1.into());
    refused("are not", &|json| json["tensors"][1]["shape"][0] = u64::from(u32::MAX).into());
    refused("too large to be true", &|json| json["tensors"][0]["shape"] = serde_json::json!([1, u64::MAX, 2]));
    refused("is there twice", &|json| json["tensors"][1]["name"] = json["tensors"][0]["name"].clone());
    refused("more bytes than can be counted", &|json| {
        let mut more = json["shards"][0].clone();
        (more["name"], more["bytes"]) = ("more.bin".into(), u64::MAX.into());
        json["shards"].as_array_mut().unwrap().push(more);
    });
    refused("is empty", &|json| json["shards"][0]["bytes"] = 0.into());
    for end in (0..text.len()).step_by(97).chain([text.len() - 2]) {
        let cut = text.get(..end).unwrap_or_default();
        assert_eq!(Manifest::parse("m", cut).unwrap_err().kind, Kind::Format, "{end}");
    }

    // What is in the folder.
    let run = |path: &Path| -> Result<()> {
        let model = open(path)?;
        let weights = block_on(model.weights())?;
        let mut executor = CpuExecutor::<f32>::new(model.plan.clone(), Storage::F32)?;
        block_on(load(&model.plan, &weights.checkpoint, &weights.matched, false, &mut executor, &mut |_| {})).map(drop)
    };
    run(&good).unwrap();
    let shard = good.join("shard-00000.bin");
    let bytes = std::fs::read(&shard).unwrap();
    let spoilt = |file: &str, content: &[u8], part: &str| {
        let before = std::fs::read(good.join(file)).unwrap();
        std::fs::write(good.join(file), content).unwrap();
        let error = run(&good).unwrap_err();
        assert!(error.message.contains(part) && error.message.contains(file), "{error}");
        std::fs::write(good.join(file), before).unwrap();
    };
    // One bit in the midst, and one in the last byte: each is in the hash.
    for at in [bytes.len() / 2, bytes.len() - 1] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        spoilt("shard-00000.bin", &other, "is corrupt: its SHA-256 is");
    }
    spoilt("shard-00000.bin", &bytes[..bytes.len() - 1], "expected");
    spoilt("config.json", br#"{"model_type": "other"}"#, "not the file that the manifest lists");
    run(&good).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

/// What the built-in test of a page needs too: shards that a tensor goes through are one range of bytes.
#[test]
fn tensors_go_on_in_the_next_shard() {
    let hash = |bytes: &[u8]| doppler::formats::sharded::sha256_of(bytes);
    let (first, second) = ((0..=255u8).cycle().take(512).collect::<Vec<u8>>(), vec![7u8; 300]);
    let shard = |name: &str, bytes: &[u8]| serde_json::json!({"name": name, "bytes": bytes.len(), "sha256": hash(bytes)});
    let text = |rows: usize| {
        serde_json::json!({
            "format": "doppler-manifest", "version": 1, "name": "x",
            "provenance": {"tool": "t", "command": "c", "source": "s", "files": []},
            "quantization": {"recipe": "f32", "keep": [], "imatrix": null},
            "resolved": [], "texts": [], "shards": [shard("a", &first), shard("b", &second)],
            "tensors": [{"name": "t", "role": "embed", "layer": null, "format": "f32", "shape": [rows, 512 / rows / 2], "shard": 0, "offset": 256, "bytes": 1024}]
        })
        .to_string()
    };
    assert!(Manifest::parse("m", &text(2)).unwrap_err().message.contains("it ends beyond the last shard"));
    let text = text(2).replace("\"bytes\":1024", "\"bytes\":512").replace("[2,128]", "[2,64]");
    let manifest = Manifest::parse("m", &text).unwrap();
    assert!(Manifest::parse("m", &text.replace("[2,64]", "[1,128]")).unwrap_err().message.contains("is within one of its rows"));
    let sources = |second: &[u8]| vec![InMemory::new("a", first.clone()), InMemory::new("b", second.to_vec())];
    let range = manifest.index().unwrap().get("t").unwrap().range.clone();
    assert_eq!(range, 256..768);
    let one = doppler::formats::sharded::Sharded::new("m".into(), &manifest, sources(&second)).unwrap();
    let bytes = block_on(one.read(range.clone())).unwrap();
    assert!(bytes[..256] == first[256..] && bytes[256..] == second[..256]);
    // A part of a shard is not held against its hash; all of it, in order, is.
    let mut other = second.clone();
    other[299] = 8;
    let one = doppler::formats::sharded::Sharded::new("m".into(), &manifest, sources(&other)).unwrap();
    block_on(one.read(range)).unwrap();
    assert!(block_on(one.read(768..812)).unwrap_err().message.contains("shard b is corrupt"));
    let wrong = block_on(one.verify(&mut |_| {})).unwrap();
    assert!(wrong.len() == 1 && wrong[0].message.contains("shard b"), "{wrong:?}");
    assert!(block_on(one.read(700..900)).is_err());
    assert!(doppler::formats::sharded::Sharded::new("m".into(), &manifest, sources(&second[1..])).is_err());

    // Files of this machine are hashed before anything of them is given, in whatever order they are read.
    let local = |second: &[u8]| {
        let local = sources(second).into_iter().map(Local::Memory).collect();
        Local::from(Sharded::new("m".into(), &manifest, local).unwrap())
    };
    let (good, bad) = (local(&second), local(&other));
    for range in [700..812, 256..768, 0..1, 0..812] {
        let expected = &[&first[..], &second].concat()[range.start..range.end];
        let mut filled = vec![0; range.len()];
        good.fill(range.start as u64, &mut filled).unwrap();
        let range = range.start as u64..range.end as u64;
        assert!(filled == expected && good.slice(range.clone()).unwrap() == *expected, "{range:?}");
        // The first shard is as it should be. Whether the second was looked at with it depends on the number of threads.
        if range.end > 512 {
            assert!(bad.slice(range.clone()).unwrap_err().message.contains("shard b is corrupt"), "{range:?}");
            assert!(bad.fill(range.start, &mut filled).unwrap_err().message.contains("shard b is corrupt"));
        }
    }
    assert!(good.slice(700..900).is_err() && good.fill(700, &mut [0; 200]).is_err());
}

fn output<'a>(name: &str, format: Format, shape: &[usize], bytes: &'a [u8]) -> Output<'a> {
    Output { name: name.into(), format, shape: shape.to_vec(), data: Box::new(move |out| out.write_all(bytes)) }
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "x");
    metadata.set("general.alignment", 64u32);
    metadata.set("x.count", 7u32);
    metadata.set("x.large", Value::Unsigned(1 << 40));
    metadata.set("x.negative", Value::Signed(-1));
    metadata.set("x.far", Value::Signed(-(1 << 40)));
    metadata.set("x.eps", 1e-6f32);
    metadata.set("x.double", Value::F64(0.1));
    metadata.set("x.flag", true);
    metadata.set("x.texts", ["a", "é", ""].map(String::from).to_vec());
    metadata.set("x.floats", &[0.5f32, f32::NAN][..]);
    metadata.set("x.types", &[1i32, -3][..]);
    metadata.set("x.flags", &[true, false][..]);
    metadata.set("x.nested", Value::Array(Array::Arrays(vec![Array::Texts(vec!["b".into()]), Array::Texts(Vec::new())])));
    metadata
}

#[test]
fn gguf_that_is_written_can_be_read() {
    let (a, b) = ((0..136).collect::<Vec<u8>>(), [1.0f32, -2.0, 3.0].map(f32::to_le_bytes).concat());
    let tensors = [output("a", Format::Q8_0, &[2, 64], &a), output("none", Format::F32, &[0, 4], &[]), output("b", Format::F32, &[3], &b)];
    let mut file = Vec::new();
    write(&mut file, &metadata(), &tensors).unwrap();
    assert_eq!(file.len() % 32, 0);
    if let Some(path) = std::env::var_os("DOPPLER_KEEP_GGUF") {
        // For a look with another program.
        std::fs::write(path, &file).unwrap();
    }
    let source = InMemory::new("t", file);
    let header = block_on(read_header(&source)).unwrap();
    let mut expected = metadata();
    expected.remove("general.alignment");
    // NaN equals nothing, so the texts are compared.
    assert_eq!(format!("{:?}", header.metadata), format!("{expected:?}"));
    assert_eq!(header.version, 3);
    let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.kind.name, t.shape.clone())).collect();
    assert_eq!(found, [("a", "q8_0", vec![2, 64]), ("none", "f32", vec![0, 4]), ("b", "f32", vec![3])]);
    for (tensor, bytes) in [(0, &a), (2, &b)] {
        let range = header.tensors[tensor].range.clone();
        assert_eq!((range.start % 32, &source.slice(range).unwrap()[..]), (0, &bytes[..]));
    }
    let refused = |tensors: &[Output<'_>]| write(&mut Vec::new(), &Metadata::default(), tensors).unwrap_err().to_string();
    let short = refused(&[output("x", Format::F32, &[2], &[0; 4])]);
    assert_eq!(short, "tensor `x`: expected to end at data byte 8, wrote up to 4");
    let twice = [output("x", Format::F32, &[0], &[]), output("x", Format::F32, &[0], &[])];
    assert_eq!(refused(&twice), "two tensors are called `x`");
    for shape in [&[33][..], &[1, 1, 1, 1, 32], &[usize::MAX, usize::MAX, 32]] {
        assert!(refused(&[output("x", Format::Q8_0, shape, &[])]).contains("cannot be written as q8_0"), "{shape:?}");
    }
}

#[test]
fn a_shard_that_is_trusted_is_not_hashed() {
    let provenance = Provenance { tool: String::new(), command: String::new(), source: String::new(), files: Vec::new() };
    let mut manifest = Manifest::new("x", provenance, Quantization { recipe: "f32".into(), keep: Vec::new(), imatrix: None });
    manifest.shards = ["a", "b"].map(|name| Hashed { name: name.into(), bytes: 8, sha256: "0".repeat(64) }).to_vec();
    let shards = || Sharded::new("x".into(), &manifest, vec![InMemory::new("a", vec![1; 8]), InMemory::new("b", vec![2; 8])]).unwrap();
    let trusting = shards();
    trusting.trust(0);
    assert_eq!(block_on(trusting.read(4..8)).unwrap()[..], [1; 4]);
    assert_eq!(block_on(trusting.read(0..8)).unwrap()[..], [1; 8]);
    assert!(block_on(trusting.read(4..16)).unwrap_err().message.contains("shard b is corrupt"));
    assert!(block_on(shards().read(0..8)).unwrap_err().message.contains("shard a is corrupt"));
    assert_eq!(trusting.parts(&(4..12)).unwrap(), [(0, 4..8), (1, 0..4)]);
    assert_eq!(trusting.parts(&(8..17)).unwrap_err().kind, Kind::Format);
}
