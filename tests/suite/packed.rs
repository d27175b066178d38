//! Packed checkpoints as other libraries write them: their rows bit for bit, their logits on the CPU and the GPU, and files
//! that contradict themselves. `tests/fixtures/packed/make.py` made the models and knows what they must give.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use doppler::config::ResolveOptions;
use doppler::cpu::CpuExecutor;
use doppler::error::{Error, Kind};
use doppler::exec::{Executor, Read, Rows, Step, Storage, Tokens, WeightSink};
use doppler::formats::{InMemory, Local};
use doppler::gpu::{GpuExecutor, GpuOptions};
use doppler::loader::{LoadReport, ModelFiles, load_in_bands, open_directory, read_rows};
use doppler::model::WeightRole;
use doppler::open::{Opened, Weights};
use pollster::block_on;
use serde_json::Value;

/// Each model, the formats that its matrices are given, and words of its notes.
const MODELS: &[(&str, &str, &str)] = &[
    ("gptq", "f32+f16+z4_32", ""),
    ("gptq-desc-act", "f32+f16", "7 packed matrices are decoded to f32 as they are read"),
    ("gptq-v2-8", "f32+f16+a8_32+a8_64", ""),
    ("gptq-3", "f32+f16+z4_32", ""),
    ("awq", "f32+f16+z4_32+z4_128", ""),
    ("compressed-w4", "f32+f16+z4_32", ""),
    ("compressed-w4-zeros", "f32+f16+z4_32", ""),
    ("compressed-w4-actorder", "f32+f16", "in no order (g_idx)"),
    ("compressed-w8a8", "f32+f16+s8_32", "keeps activations as they are"),
    ("compressed-fp8", "f32+f16+e4m3_32", ""),
    ("fp8-block", "f32+f16+e4m3_32", "keeps activations as they are"),
    ("bnb-nf4", "f32+f16+nf4", ""),
    ("bnb-fp4", "f32+f16+fp4", "rows of 96 columns in groups of 32 are no whole blocks"),
    ("bnb-int8", "f32+f16+s8_32", ""),
    ("mlx-4", "f32+a4_64", ""),
    ("mlx-mixed", "f32+f16+a4_32+a8_32", ""),
    ("mlx-mxfp4", "f32+f16+mxfp4", ""),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/packed").join(name)
}

fn open(files: ModelFiles) -> Result<(Opened, Weights), Error> {
    let opened = Opened::new("packed".into(), files, ResolveOptions::default())?;
    let weights = block_on(opened.weights())?;
    Ok((opened, weights))
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(name).join("golden.json")).unwrap()).unwrap()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Loads `weights` in small bands and gives the logits of the last of `ids`.
fn logits<E: Executor + WeightSink>(opened: &Opened, weights: &Weights, mut executor: E, ids: &[u32]) -> Vec<f32> {
    let mut last = 0;
    let mut progress = |p: doppler::loader::Progress<'_>| {
        assert!(p.bytes_done >= last && p.bytes_done <= p.bytes_total);
        last = p.bytes_done;
    };
    let Weights { checkpoint, matched } = weights;
    let report = block_on(load_in_bands(&opened.plan, checkpoint, matched, true, 5000, &mut executor, &mut progress)).unwrap();
    assert_eq!((report.bytes, last), (matched.bytes(), matched.bytes()));
    assert!(report.non_finite.is_empty());
    let mut cache = executor.new_cache(ids.len(), ids.len()).unwrap();
    let step = Step { tokens: Tokens::Ids(ids), rows: Rows::Last, pick: None, read: Read::Logits, long_rope: false, requests: &[] };
    block_on(executor.step(&mut cache, &step)).unwrap().logits.unwrap()
}

fn relative(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let sum = |f: &dyn Fn(usize) -> f64| (0..found.len()).map(|i| f(i) * f(i)).sum::<f64>().sqrt();
    sum(&|i| f64::from(found[i]) - expected[i]) / sum(&|i| expected[i])
}

/// FNV-1a over the bits of the layer's matrices, in the order of the script.
fn hash(opened: &Opened, weights: &Weights) -> String {
    use WeightRole::*;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for role in [QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj] {
        let id = opened.plan.weights.iter().position(|slot| slot.role == role).unwrap();
        let placed = &weights.matched.weights[id];
        let (sources, entries) = (&weights.checkpoint.sources, weights.checkpoint.index.entries());
        // In two parts, of which the second begins within whatever rows share.
        for rows in [0..5, 5..placed.rows] {
            let bytes = block_on(read_rows(sources, entries, placed, rows)).unwrap();
            for value in placed.format.values(&bytes).unwrap() {
                hash = (hash ^ u64::from((value + 0.0).to_bits())).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    format!("{hash:016x}")
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn rows_and_logits_are_those_of_the_weights_dequantised() {
    for (name, types, note) in MODELS {
        let (opened, weights) = open(open_directory(&folder(name)).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(weights.types(), *types, "{name}");
        let notes = opened.notes(None, &weights.notes());
        assert!(notes.iter().any(|n| n.contains(note)) || note.is_empty() && notes.is_empty(), "{name}: {notes:?}");
        let golden = golden(name);
        assert_eq!(hash(&opened, &weights), golden["hash"].as_str().unwrap(), "{name}: weights differ");
        let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|id| *id as u32).collect();
        let found = logits(&opened, &weights, CpuExecutor::<f32>::new(opened.plan.clone(), Storage::F32).unwrap(), &ids);
        let error = relative(&found, &numbers(&golden["logits"]));
        println!("{name}: {error:.1e}");
        assert!(error < 2e-6, "{name}: {error:.2e}");
    }
}

/// The formats themselves are compared in `gpu`; this is the way from the files to the device.
#[test]
fn the_gpu_reads_packed_checkpoints() {
    for name in ["gptq", "fp8-block", "mlx-mixed"] {
        let (opened, weights) = open(open_directory(&folder(name)).unwrap()).unwrap();
        let golden = golden(name);
        let (ids, expected) = (numbers(&golden["ids"]).iter().map(|id| *id as u32).collect::<Vec<_>>(), numbers(&golden["logits"]));
        let Some(gpu) = crate::support::adapter(GpuOptions::default()) else { return };
        let found = logits(&opened, &weights, GpuExecutor::new(gpu, opened.plan.clone(), Storage::F32).unwrap(), &ids);
        let floor =
            relative(&logits(&opened, &weights, CpuExecutor::<f32>::new(opened.plan.clone(), Storage::F32).unwrap(), &ids), &expected);
        let error = relative(&found, &expected);
        // Not below one unit in the last place.
        assert!(error < 3.0 * floor.max(1.2e-7), "{name}: {error:.2e}, floor {floor:.2e}");
    }
}

/// All experts in two tensors, gate and up in turns, by `tests/fixtures/packed/make_experts.py`: packed rows on the CPU and the GPU, and
/// files that contradict themselves.
#[test]
fn experts_in_blocks_and_scales() {
    let name = "mxfp4-experts";
    let (opened, weights) = open(open_directory(&folder(name)).unwrap()).unwrap();
    assert_eq!((weights.types().as_str(), opened.notes(None, &weights.notes()).len()), ("bf16+mxfp4", 0));
    let golden = golden(name);
    let (ids, expected) = (numbers(&golden["ids"]).iter().map(|id| *id as u32).collect::<Vec<_>>(), numbers(&golden["logits"]));
    let error = relative(&logits(&opened, &weights, CpuExecutor::<f32>::new(opened.plan.clone(), Storage::F32).unwrap(), &ids), &expected);
    assert!(error < 2e-6, "{error:.2e}");
    if let Some(gpu) = crate::support::adapter(GpuOptions::default()) {
        let found = logits(&opened, &weights, GpuExecutor::new(gpu, opened.plan.clone(), Storage::F32).unwrap(), &ids);
        assert!(relative(&found, &expected) < 3.0 * error.max(1.2e-7), "{:.2e}, floor {error:.2e}", relative(&found, &expected));
    }
    let of = |part: &str| format!("model.layers.0.mlp.experts.{part}");
    let broken = |change: &dyn Fn(&mut Tensors)| {
        let (config, mut tensors) = parts(name);
        change(&mut tensors);
        read_all(&config, &tensors).unwrap_err().message
    };
    let blocks = broken(&|tensors| drop(tensors.remove(&of("down_proj_blocks"))));
    assert!(blocks.contains("down_proj_blocks") && blocks.contains("missing"), "{blocks}");
    let scales = broken(&|tensors| drop(tensors.remove(&of("gate_up_proj_scales"))));
    assert!(scales.contains("gate_up_proj_scales: expected [3, 64, 2]"), "{scales}");
    let shape = broken(&|tensors| tensors.get_mut(&of("down_proj_blocks")).unwrap().shape = vec![3, 64, 16]);
    assert!(shape.contains("expected [3, 64, 1, 16], found [3, 64, 16]"), "{shape}");
    let neither = broken(&|tensors| ["down_proj_blocks", "down_proj_scales"].iter().for_each(|part| drop(tensors.remove(&of(part)))));
    assert!(neither.contains("experts.down_proj: expected [3, 32, 64]"), "{neither}");
}

/// A tensor of a file: its type, its shape, its bytes.
struct Stored {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

/// The config and the tensors of a model.
fn parts(name: &str) -> (Value, Tensors) {
    let config = serde_json::from_str(&std::fs::read_to_string(folder(name).join("config.json")).unwrap()).unwrap();
    let file = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
    let tensor = |(name, entry): (String, Value)| {
        let at = |i: usize| start + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        (name, Stored { dtype: entry["dtype"].as_str().unwrap().into(), shape, bytes: file[at(0)..at(1)].to_vec() })
    };
    (config, header.into_iter().map(tensor).collect())
}

/// A model of these parts.
fn files(config: &Value, tensors: &Tensors) -> ModelFiles {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, Stored { dtype, shape, bytes }) in tensors {
        let end = data.len() + bytes.len();
        header.insert(name.clone(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend_from_slice(bytes);
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    let texts = doppler::formats::ModelTexts { config: config.to_string(), ..Default::default() };
    let sources = vec![Local::Memory(InMemory::new("model.safetensors", file))];
    ModelFiles::new("changed".into(), texts, sources, None)
}

/// Opens what is left of a model, and reads all of it.
fn read_all(config: &Value, tensors: &Tensors) -> Result<LoadReport, Error> {
    let (opened, Weights { checkpoint, matched }) = open(files(config, tensors))?;
    let mut executor = CpuExecutor::<f32>::new(opened.plan.clone(), Storage::F32)?;
    block_on(load_in_bands(&opened.plan, &checkpoint, &matched, true, 5000, &mut executor, &mut |_| ()))
}

const Q: &str = "model.layers.0.self_attn.q_proj";

fn of_q<'t>(tensors: &'t mut Tensors, end: &str) -> &'t mut Stored {
    tensors.get_mut(&format!("{Q}{end}")).unwrap_or_else(|| panic!("{Q}{end}"))
}

/// A model, what is done to it, and what the error says.
type Broken = (&'static str, fn(&mut Value, &mut Tensors), &'static [&'static str]);

#[test]
fn files_that_contradict_themselves_are_errors_that_name_the_tensor() {
    let broken: &[Broken] = &[
        ("gptq", |_, t| of_q(t, ".g_idx").bytes[..4].copy_from_slice(&999i32.to_le_bytes()), &["g_idx", "column 0 has group 999, of 2"]),
        (
            "gptq-desc-act",
            |_, t| of_q(t, ".g_idx").bytes[4..8].copy_from_slice(&(-1i32).to_le_bytes()),
            &["g_idx", "column 1 has group -1"],
        ),
        ("gptq", |_, t| of_q(t, ".g_idx").bytes[..4].copy_from_slice(&1i32.to_le_bytes()), &["g_idx", "set `desc_act` to true"]),
        (
            "gptq",
            |_, t| {
                let scales = of_q(t, ".scales");
                (scales.shape, scales.bytes) = (vec![2, 63], scales.bytes[..252].to_vec());
            },
            &["of another shape", ".scales: expected [2, 64], found [2, 63]"],
        ),
        ("gptq", |c, _| c["quantization_config"]["group_size"] = 48.into(), &["groups of 48 columns", "found 3 groups for 96 columns"]),
        ("gptq", |c, _| c["quantization_config"]["bits"] = 8.into(), &["expected codes of 8 bits"]),
        ("gptq", |_, t| drop(t.remove(&format!("{Q}.qzeros"))), &["missing: 1 tensor", ".qzeros: expected [2, 8]"]),
        ("gptq", |_, t| of_q(t, ".scales").dtype = "I16".into(), &["of a type", "expected f32 or f16 or bf16, found I16"]),
        ("gptq-desc-act", |_, t| drop(t.remove(&format!("{Q}.g_idx"))), &["missing: 1 tensor", ".g_idx: expected [64]"]),
        ("awq", |_, t| of_q(t, ".qzeros").shape = vec![2, 4], &["qzeros: expected [1, 8], found [2, 4]"]),
        ("compressed-w4", |_, t| of_q(t, ".weight_shape").bytes[0] = 65, &["weight_shape", "expected [64, 64], found [65, 64]"]),
        ("compressed-w4-actorder", |_, t| of_q(t, ".weight_g_idx").bytes[0] = 7, &["weight_g_idx", "column 0 has group 7, of 2"]),
        (
            "compressed-w4",
            |c, _| c["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 24.into(),
            &["groups of 24"],
        ),
        (
            "fp8-block",
            |c, _| c["quantization_config"]["weight_block_size"] = vec![32, 32].into(),
            // One scale is that of a whole matrix only where the matrix is one block.
            &["weight_scale_inv: expected [3, 2], found [2, 1]", "q_proj.weight_scale_inv: expected [2, 2], found [1, 1]"],
        ),
        (
            "fp8-block",
            |_, t| t.get_mut("model.layers.0.mlp.gate_proj.weight_scale_inv").unwrap().shape = vec![1, 2],
            &["gate_proj.weight_scale_inv: expected [2, 1], found [1, 2]"],
        ),
        ("gptq", |_, t| drop(t.remove(&format!("{Q}.qweight"))), &["missing: 1 tensor", ".qweight: expected the codes of"]),
        ("awq", |_, t| drop(t.remove(&format!("{Q}.qweight"))), &["missing: 1 tensor", ".qweight: expected the codes of"]),
        ("compressed-w4", |_, t| drop(t.remove(&format!("{Q}.weight_packed"))), &["missing: 1 tensor", "expected the codes of"]),
        ("compressed-fp8", |_, t| drop(t.remove(&format!("{Q}.weight"))), &["missing: 1 tensor", ".weight: expected the codes of"]),
        ("mlx-4", |_, t| drop(t.remove(&format!("{Q}.weight"))), &["missing: 1 tensor", ".weight: expected the codes of"]),
        ("bnb-nf4", |_, t| of_q(t, ".weight.quant_state.bitsandbytes__nf4").bytes[0] = b'x', &["quant_state", "quant_state"]),
        ("bnb-nf4", |_, t| of_q(t, ".weight.quant_map").bytes[..4].copy_from_slice(&0.5f32.to_le_bytes()), &["quant_map", "another table"]),
        (
            "bnb-fp4",
            |_, t| {
                let text = serde_json::json!({"quant_type": "fp4", "blocksize": -64, "shape": [64, 64]}).to_string();
                let state = of_q(t, ".weight.quant_state.bitsandbytes__fp4");
                (state.shape, state.bytes) = (vec![text.len()], text.into());
            },
            &["`blocksize`: expected 64, found -64"],
        ),
        (
            "bnb-nf4",
            |_, t| {
                let state = of_q(t, ".weight.quant_state.bitsandbytes__nf4");
                let text = String::from_utf8(state.bytes.clone()).unwrap().replace("\"nested_blocksize\": 256", "\"nested_blocksize\": 0");
                (state.shape, state.bytes) = (vec![text.len()], text.into());
            },
            &["`nested_blocksize`: 0"],
        ),
        ("bnb-int8", |_, t| of_q(t, ".SCB").shape = vec![32, 2], &[".SCB: expected [64, 1], found [32, 2]"]),
        ("mlx-4", |_, t| drop(t.remove(&format!("{Q}.biases"))), &["missing: 1 tensor", ".biases"]),
        ("mlx-4", |c, _| c["quantization"]["bits"] = 5.into(), &["q_proj.weight", "codes of 5 bits"]),
        ("gptq", |c, _| c["quantization_config"]["checkpoint_format"] = "marlin".into(), &["checkpoint_format", "marlin"]),
        ("gptq", |c, _| c["quantization_config"]["spin"] = true.into(), &["quantization_config.spin", "--allow-unknown-config"]),
    ];
    for (name, change, words) in broken {
        let (mut config, mut tensors) = parts(name);
        assert!(read_all(&config, &tensors).is_ok(), "{name}");
        change(&mut config, &mut tensors);
        let error = read_all(&config, &tensors).unwrap_err();
        assert!(matches!(error.kind, Kind::Weights | Kind::Unsupported), "{name}: {error}");
        assert!(words.iter().all(|word| error.message.contains(word)), "{name}: expected {words:?} in\n{error}");
        // What goes with the tensor is not complained of.
        assert!(!error.message.contains("without a place"), "{name}: {error}");
    }
}

#[test]
fn scales_that_are_no_numbers_are_found_in_the_matrix() {
    let (config, mut tensors) = parts("gptq");
    // The scale of group 1 of row 3, in f16: elements 32 to 63 of that row, where its codes are not its zero point.
    let scales = of_q(&mut tensors, ".scales");
    scales.bytes[2 * (64 + 3)..2 * (64 + 4)].copy_from_slice(&0x7c00u16.to_le_bytes());
    let report = read_all(&config, &tensors).unwrap();
    let [found] = &report.non_finite[..] else { panic!("{:?}", report.non_finite) };
    assert_eq!((found.tensor.as_str(), &found.shape[..], found.nan + found.inf), (format!("{Q}.qweight").as_str(), &[64, 64][..], 32));
    assert!((3 * 64 + 32..4 * 64).contains(&found.first));
}

/// GPTQModel before version 7 subtracted numbers of its own from the words of 3-bit zero points; they are the same weights.
#[test]
fn zero_points_of_3_bits_are_read_as_their_writer_stored_them() {
    let (mut config, mut tensors) = parts("gptq-3");
    let found = |config: &mut Value, tensors: &Tensors, version: &str| {
        config["quantization_config"]["meta"] = serde_json::json!({"quantizer": [format!("gptqmodel:{version}")]});
        let (opened, weights) = open(files(config, tensors)).unwrap();
        hash(&opened, &weights)
    };
    let expected = golden("gptq-3")["hash"].as_str().unwrap().to_string();
    assert_eq!(found(&mut config, &tensors, "7.7.0"), expected);
    for (_, stored) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".qzeros")) {
        // 32 zero points, a run of bits, are three words.
        for three in stored.bytes.as_chunks_mut::<12>().0 {
            let word = |i: usize| u32::from_le_bytes(three[4 * i..][..4].try_into().unwrap());
            let run = (0..3).fold(0u128, |run, i| run | u128::from(word(i)) << (32 * i));
            let run = (0..32).fold(0u128, |all, i| all | (((run >> (3 * i)) + 1) & 7) << (3 * i));
            for (i, less) in [0x2492_4924, 0x9249_2492, 0x4924_9249].into_iter().enumerate() {
                three[4 * i..][..4].copy_from_slice(&((run >> (32 * i)) as u32).wrapping_sub(less).to_le_bytes());
            }
        }
    }
    assert_eq!(found(&mut config, &tensors, "6.0.3"), expected);
    assert_ne!(found(&mut config, &tensors, "7.7.0"), expected);
}

/// Shapes, types and bytes at random: anything but a panic.
#[test]
fn changed_files_never_panic() {
    let mut rng = crate::support::Rng(7);
    let mut below = |n: usize| (rng.vec(1, 0.5)[0] + 0.5).clamp(0.0, 0.999) as f64 * n as f64;
    for (name, ..) in MODELS {
        for _ in 0..12 {
            let (config, mut tensors) = parts(name);
            let names: Vec<String> = tensors.keys().filter(|name| name.contains("layers")).cloned().collect();
            for _ in 0..2 {
                let Some(stored) = tensors.get_mut(&names[below(names.len()) as usize]) else { continue };
                match below(4) as usize {
                    0 if !stored.shape.is_empty() => {
                        // Other sizes of as many elements.
                        let (a, b) = (below(stored.shape.len()) as usize, below(stored.shape.len()) as usize);
                        if stored.shape[a].is_multiple_of(2) {
                            stored.shape[a] /= 2;
                            stored.shape[b] *= 2;
                        }
                    }
                    1 => stored.shape.push(1),
                    2 if stored.shape.first().is_some_and(|n| *n > 1) => {
                        let lines = stored.shape[0];
                        stored.shape[0] -= 1;
                        stored.bytes.truncate(stored.bytes.len() / lines * (lines - 1));
                    }
                    _ => (0..8).for_each(|_| {
                        let at = below(stored.bytes.len()) as usize;
                        stored.bytes[at] = below(256) as u8;
                    }),
                }
            }
            if let Err(error) = read_all(&config, &tensors) {
                assert!(!error.message.is_empty());
            }
        }
    }
}
