//! Loading of a made-up model: whole, broken in every way, tied and fused.

use super::places::{Place, places};
use super::*;
use crate::error::{About, Kind, TensorProblem};
use crate::formats::safetensors::{Output, write};
use crate::formats::{InMemory, Stored, TensorEntry};
use crate::inference::pipeline;
use crate::model::{
    Activation, AttentionConfig, DenseConfig, Ffn, LayerConfig, Mixer, ModelConfig, Norm, Norms, QueryKeyNorm, RopeConfig, TensorName,
    TensorNames, TensorRows, WeightRole,
};
use crate::plan::WeightId;
use crate::quant::Format;
use crate::tensor::DType;
use std::collections::HashMap;

/// Three layers, hidden 8, fused qkv (2 heads of 4, 2 key/value heads), inner width 12, 10 tokens.
pub(crate) fn tiny_config(tied: bool) -> ModelConfig {
    use WeightRole::*;
    let name = |role, template: &str, fused: &[WeightRole]| {
        (role, TensorName { template: template.into(), fused: fused.to_vec(), bare: false, rows: TensorRows::default() })
    };
    let qkv = [QProj, KProj, VProj];
    let mut names = vec![
        name(Embed, "{prefix}embed", &[]),
        name(FinalNorm, "{prefix}norm", &[]),
        name(Head, "lm_head", &[]),
        name(AttnNorm, "{prefix}layers.{layer}.norm1", &[]),
        name(FfnNorm, "{prefix}layers.{layer}.norm2", &[]),
        name(OProj, "{prefix}layers.{layer}.o", &[]),
        name(GateProj, "{prefix}layers.{layer}.gate", &[]),
        name(UpProj, "{prefix}layers.{layer}.up", &[]),
        name(DownProj, "{prefix}layers.{layer}.down", &[]),
    ];
    names.extend(qkv.map(|role| name(role, "{prefix}layers.{layer}.qkv", &qkv)));
    let layer = |window| LayerConfig {
        norms: Norms { before_mixer: true, after_mixer: false, before_ffn: true, after_ffn: false },
        mixer: Mixer::Attention(AttentionConfig {
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 4,
            window,
            rope: Some(0),
            query_rope: None,
            query_key_norm: QueryKeyNorm::None,
            scale: 0.5,
            softcap: None,
            qkv_bias: true,
            o_bias: false,
            sinks: false,
            value_norm: false,
            values_from_keys: false,
            shared_kv: None,
            gated: false,
        }),
        ffn: Ffn::Dense(DenseConfig { intermediate_size: 12, gated: true, activation: Activation::Silu, bias: false }),
        parallel: false,
        scalar: false,
    };
    ModelConfig {
        preset: "tiny".into(),
        vocab_size: 10,
        hidden_size: 8,
        max_positions: 64,
        layers: vec![layer(Some(4)), layer(None), layer(None)],
        ropes: vec![RopeConfig::plain(10_000.0, 4)],
        norm: Norm::Rms { eps: 1e-6, weight_offset: 0.0 },
        final_logit_softcapping: None,
        embedding_scale: 1.0,
        residual_multiplier: 1.0,
        logits_scaling: 1.0,
        head_bias: false,
        layer_inputs: None,
        tie_word_embeddings: tied,
        tensors: TensorNames {
            prefixes: vec!["model.".into(), String::new()],
            names,
            ignored: vec!["vision.".into(), "inv_freq".into()],
            neighbours: None,
            packing: None,
        },
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
    }
}

/// Name, shape and values of every tensor of the model's checkpoint. Values count up from the name's length.
fn tensors(config: &ModelConfig, prefix: &str) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let plan = pipeline::build(config).unwrap();
    let mut all: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for Place { tensor, shape, .. } in places(&plan, &config.tensors).unwrap() {
        let name = tensor.replace("{prefix}", prefix);
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| (i + name.len()) as f32).collect();
        if all.iter().all(|(known, _, _)| *known != name) {
            all.push((name, shape, values));
        }
    }
    all
}

/// Name, shape and values of tensors.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn file(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> InMemory {
    let outputs: Vec<Output<'_>> = tensors.iter().map(|(n, s, v)| Output::f32(n, s.clone(), v)).collect();
    let mut bytes = Vec::new();
    write(&mut bytes, &BTreeMap::new(), &outputs).unwrap();
    InMemory::new("t.safetensors", bytes)
}

fn open(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Checkpoint<InMemory> {
    pollster::block_on(Checkpoint::open(vec![file(tensors)], None)).unwrap()
}

fn match_all(config: &ModelConfig, checkpoint: &Checkpoint<InMemory>) -> Result<(Plan, Matched)> {
    let plan = pipeline::build(config)?;
    let matched = match_slots(&plan, &config.tensors, &checkpoint.index, false)?;
    Ok((plan, matched))
}

#[derive(Default)]
struct Sink {
    weights: HashMap<WeightId, Vec<u8>>,
}

impl WeightSink for Sink {
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        assert!(format == Format::F32 && (first_row == 0) != self.weights.contains_key(&id));
        self.weights.entry(id).or_default().extend_from_slice(&bytes);
        Ok(())
    }
}

fn load_all(config: &ModelConfig, checkpoint: &Checkpoint<InMemory>) -> Result<(Plan, Sink, LoadReport)> {
    let (plan, matched) = match_all(config, checkpoint)?;
    let (mut sink, mut seen) = (Sink::default(), Vec::new());
    let mut progress = |p: Progress<'_>| seen.push((p.bytes_done, p.bytes_total));
    let report = pollster::block_on(load(&plan, checkpoint, &matched, true, &mut sink, &mut progress))?;
    assert_eq!(seen.last(), Some(&(matched.bytes(), matched.bytes())));
    assert!(seen.is_sorted());
    Ok((plan, sink, report))
}

#[test]
fn every_weight_arrives_fused_bands_included() {
    for (prefix, tied) in [("model.", true), ("", false)] {
        let config = tiny_config(tied);
        let all = tensors(&config, prefix);
        let (plan, sink, report) = load_all(&config, &open(&all)).unwrap();
        assert_eq!(sink.weights.len(), plan.weights.len());
        assert!(report.non_finite.is_empty());
        let places = places(&plan, &config.tensors).unwrap();
        for (i, (slot, Place { tensor, rows, .. })) in plan.weights.iter().zip(places).enumerate() {
            let name = tensor.replace("{prefix}", prefix);
            let (_, _, values) = all.iter().find(|(n, _, _)| *n == name).unwrap();
            let columns = slot.elements() / slot.shape[0];
            let expected = &values[rows.start * columns..rows.end * columns];
            assert_eq!(crate::tensor::to_f32(&sink.weights[&WeightId(i)], DType::F32), expected, "{}", slot.label());
        }
    }
}

#[test]
fn rows_side_by_side_for_each_head_are_put_in_order() {
    let turns = |rows| {
        let mut config = tiny_config(false);
        let fused = config.tensors.names.iter_mut().filter(|(_, name)| !name.fused.is_empty());
        fused.for_each(|(_, name)| name.rows.interleaved = Some(rows));
        config
    };
    let config = turns(4);
    let all = tensors(&config, "model.");
    let checkpoint = open(&all);
    let (plan, sink, _) = load_all(&config, &checkpoint).unwrap();
    let (_, matched) = match_all(&config, &checkpoint).unwrap();
    let mut seen = 0;
    for (i, slot) in plan.weights.iter().enumerate() {
        let qkv = [WeightRole::QProj, WeightRole::KProj, WeightRole::VProj];
        let Some(turn) = qkv.iter().position(|role| *role == slot.role) else { continue };
        let name = format!("model.layers.{}.qkv{}", slot.layer.unwrap(), if slot.bias { ".bias" } else { ".weight" });
        let (_, _, values) = all.iter().find(|(n, _, _)| *n == name).unwrap();
        let columns = slot.elements() / slot.shape[0];
        // 2 heads of 4 rows: the second begins after all that the first one has, 3 times 4.
        let row = |row: usize| (row / 4 * 12 + turn * 4 + row % 4) * columns;
        let expected: Vec<f32> = (0..8).flat_map(|i| values[row(i)..row(i) + columns].to_vec()).collect();
        assert_eq!(crate::tensor::to_f32(&sink.weights[&WeightId(i)], DType::F32), expected, "{}", slot.label());
        for band in [0..8, 1..7, 3..4, 4..8, 5..5] {
            let found = read_rows(&checkpoint.sources, checkpoint.index.entries(), &matched.weights[i], band.clone());
            let found = crate::tensor::to_f32(&pollster::block_on(found).unwrap(), DType::F32);
            assert_eq!(found, expected[band.start * columns..band.end * columns], "{} {band:?}", slot.label());
        }
        seen += 1;
    }
    assert_eq!(seen, 18);
    let error = match_all(&turns(3), &checkpoint).unwrap_err();
    assert!(error.kind == Kind::Plan && error.message.contains("turns of 3 rows"), "{error}");
}

#[test]
fn everything_wrong_is_told_at_once() {
    let config = tiny_config(false);
    let mut all = tensors(&config, "model.");
    all.retain(|(name, _, _)| !name.ends_with("qkv.bias") && name != "model.layers.1.up.weight");
    all.push(("model.layers.1.upp.weight".into(), vec![12, 8], vec![0.0; 96]));
    all.push(("vision.x".into(), vec![1], vec![0.0]));
    all.push(("model.layers.0.rope.inv_freq".into(), vec![1], vec![0.0]));
    let down = all.iter_mut().find(|(name, _, _)| name == "model.layers.2.down.weight").unwrap();
    down.1 = vec![12, 8];
    let mut checkpoint = open(&all);
    let mut entries = checkpoint.index.entries().to_vec();
    let norm = entries.iter_mut().find(|e| e.name == "model.norm.weight").unwrap();
    norm.dtype = Stored::Other("I8".into());
    checkpoint.index = TensorIndex::new(entries).unwrap();

    let error = match_all(&config, &checkpoint).unwrap_err();
    assert_eq!(error.kind, Kind::Weights);
    for line in [
        "missing: 4 tensors",
        "model.layers.*.qkv.bias (3 tensors: 0-2): expected [24]",
        "model.layers.1.up.weight: expected [12, 8]; nearest unused: model.layers.*.upp.weight",
        "model.layers.2.down.weight: expected [8, 12], found [12, 8]",
        "model.norm.weight: expected f64, f32, f16 or bf16, found I8",
        "without a place in the model: 1 tensor\n  model.layers.1.upp.weight: found [12, 8]",
    ] {
        assert!(error.message.contains(line), "expected `{line}` in\n{error}");
    }
    assert!(!error.message.contains("vision"), "{error}");
    let Some(About::Tensors(misfits)) = error.about.as_deref() else { panic!("{:?}", error.about) };
    let of = |problem| misfits.iter().filter(|m| m.problem == problem).map(|m| m.tensor.as_str()).collect::<Vec<_>>();
    assert_eq!(of(TensorProblem::Missing).len(), 4);
    assert_eq!(of(TensorProblem::Shape), ["model.layers.2.down.weight"]);
    assert_eq!(of(TensorProblem::Type), ["model.norm.weight"]);
    assert_eq!(of(TensorProblem::Extra), ["model.layers.1.upp.weight"]);
    let down = misfits.iter().find(|m| m.problem == TensorProblem::Shape).unwrap();
    assert_eq!((down.expected.as_deref(), down.found.as_deref()), (Some("[8, 12]"), Some("[12, 8]")));
}

#[test]
fn unused_types_do_not_hurt_and_a_missing_head_gets_a_hint() {
    let config = tiny_config(true);
    let mut entries = open(&tensors(&config, "model.")).index.entries().to_vec();
    entries.push(TensorEntry { name: "vision.q".into(), dtype: Stored::Other("I64".into()), shape: vec![1], file: 0, range: 0..8 });
    let index = TensorIndex::new(entries).unwrap();
    let plan = pipeline::build(&config).unwrap();
    assert_eq!(match_slots(&plan, &config.tensors, &index, false).unwrap().ignored, ["vision.q"]);
    let plan = pipeline::build(&tiny_config(false)).unwrap();
    let error = match_slots(&plan, &config.tensors, &index, false).unwrap_err();
    assert!(error.message.contains("tie_word_embeddings"), "{error}");
}

#[test]
fn a_tied_head_may_be_stored_if_it_is_the_embedding() {
    let config = tiny_config(true);
    let mut all = tensors(&config, "model.");
    let table = all.iter().find(|(name, _, _)| name == "model.embed.weight").unwrap().clone();
    all.push(("lm_head.weight".into(), table.1, table.2));
    assert!(load_all(&config, &open(&all)).is_ok());

    all.last_mut().unwrap().2[13] = 0.25;
    let error = load_all(&config, &open(&all)).map(|_| ()).unwrap_err();
    assert!(error.kind == Kind::Weights && error.message.contains("element 13"), "{error}");

    // In place of the embedding it is the embedding, as in transformers.
    all.retain(|(name, _, _)| name != "model.embed.weight");
    let (plan, sink, _) = load_all(&config, &open(&all)).unwrap();
    let table = plan.weights.iter().position(|w| w.role == WeightRole::Embed).unwrap();
    assert_eq!(crate::tensor::to_f32(&sink.weights[&WeightId(table)], DType::F32)[13], 0.25);
}

#[test]
fn non_finite_weights_are_found_not_refused() {
    let config = tiny_config(true);
    let mut all = tensors(&config, "model.");
    let qkv = all.iter_mut().find(|(name, _, _)| name == "model.layers.1.qkv.weight").unwrap();
    (qkv.2[70], qkv.2[65]) = (f32::NAN, f32::NEG_INFINITY);
    let (_, _, report) = load_all(&config, &open(&all)).unwrap();
    let found = &report.non_finite[..];
    assert_eq!(found, [NonFinite { tensor: "model.layers.1.qkv.weight".into(), shape: vec![24, 8], nan: 1, inf: 1, first: 65 }]);
}

/// Two files with these tensors, and an index that maps those of `map` to them.
fn open_shards(a: &Tensors, b: &Tensors, map: Option<&[(&str, usize)]>) -> Result<Checkpoint<InMemory>> {
    let tensors = map.unwrap_or_default().iter().map(|(name, file)| (name.to_string(), *file)).collect();
    let index = ShardIndex { name: "index".into(), files: vec!["a".into(), "b".into()], tensors };
    pollster::block_on(Checkpoint::open(vec![file(a), file(b)], map.map(|_| &index)))
}

#[test]
fn an_index_may_be_stale_but_what_is_needed_must_be_there() {
    let config = tiny_config(true);
    let all = tensors(&config, "model.");
    let (a, b) = (all[..5].to_vec(), all[5..].to_vec());
    let map: Vec<(&str, usize)> = a.iter().map(|t| (t.0.as_str(), 0)).chain(b.iter().map(|t| (t.0.as_str(), 1))).collect();
    let opened = open_shards(&a, &b, Some(&map)).unwrap();
    assert!(load_all(&config, &opened).is_ok() && opened.notes.is_empty(), "{:?}", opened.notes);

    // A tied head, a table of frequencies, a tensor in the other file: transformers loads it without a word.
    let mut stale = map.clone();
    stale[0].1 = 1;
    stale.extend([("lm_head.weight", 1), ("model.layers.0.self_attn.rotary_emb.inv_freq", 0)]);
    let opened = open_shards(&a, &b, Some(&stale)).unwrap();
    assert!(load_all(&config, &opened).is_ok());
    assert!(
        opened.notes[0].contains("index: 2 tensors are listed that no file has") && opened.notes[0].contains("lm_head"),
        "{:?}",
        opened.notes
    );
    assert!(opened.notes[1].contains("index: 1 tensor is in another file") && opened.notes[1].contains(map[0].0), "{:?}", opened.notes);

    let opened = open_shards(&a, &b[1..].to_vec(), Some(&map)).unwrap();
    let error = load_all(&config, &opened).map(|_| ()).unwrap_err();
    assert!(error.kind == Kind::Weights && error.message.contains(&format!("missing: 1 tensor\n  {}", b[0].0)), "{error}");
}

#[test]
fn of_a_tensor_in_two_files_the_mapped_copy_counts() {
    let config = tiny_config(true);
    let all = tensors(&config, "model.");
    let (a, mut b) = (all[..5].to_vec(), all[5..].to_vec());
    let first = a[0].clone();
    let value = |checkpoint: &Checkpoint<InMemory>| {
        let entry = checkpoint.index.get(&first.0).unwrap();
        crate::tensor::to_f32(&checkpoint.sources[entry.file].slice(entry.range.clone()).unwrap(), DType::F32)[0]
    };
    b.push(first.clone());
    let same = open_shards(&a, &b, None).unwrap();
    assert!(load_all(&config, &same).is_ok());
    assert!(same.notes[0].contains("copies are equal") && same.notes[0].contains(&first.0), "{:?}", same.notes);

    b.last_mut().unwrap().2[0] += 1.0;
    let error = open_shards(&a, &b, None).map(|_| ()).unwrap_err();
    assert!(error.kind == Kind::Format && error.message.contains("with other values (first at element 0"), "{error}");
    // The index chooses; where it does not choose the last file, transformers reads other values.
    for (file, expected, notes) in [(0, first.2[0], 2), (1, first.2[0] + 1.0, 1)] {
        let opened = open_shards(&a, &b, Some(&[(&first.0, file)])).unwrap();
        assert_eq!((value(&opened), opened.notes.len()), (expected, notes), "{:?}", opened.notes);
        assert_eq!(opened.notes.iter().any(|n| n.contains("transformers reads the last file's copy")), file == 0);
    }
    let mut bf16 = open_shards(&a, &b, Some(&[])).unwrap();
    assert_eq!(value(&bf16), first.2[0] + 1.0, "the last file's, where the index says nothing");
    bf16.notes.clear();
}

#[test]
fn a_head_may_be_stored_under_a_prefix() {
    for tied in [true, false] {
        let mut config = tiny_config(tied);
        config.tensors.prefixes = vec!["model.".into(), "language_model.model.".into(), "model.language_model.".into()];
        let mut all = tensors(&config, "language_model.model.");
        let table = all.iter().find(|(name, _, _)| name.ends_with("embed.weight")).unwrap().clone();
        all.retain(|(name, _, _)| name != "lm_head.weight");
        for name in ["lm_head", "language_model.lm_head", "model.language_model.lm_head", "model.lm_head"] {
            let mut stored = all.clone();
            stored.push((format!("{name}.weight"), table.1.clone(), table.2.clone()));
            assert!(load_all(&config, &open(&stored)).is_ok(), "{name}, tied: {tied}");
            stored.last_mut().unwrap().2[3] = 0.25;
            let other = load_all(&config, &open(&stored));
            assert_eq!(other.is_err(), tied, "{name}: another head is no tied one");
        }
    }
}

/// As in transformers, which takes the base model's prefix off a name, or puts it before, where that gives a name it knows.
#[test]
fn the_base_models_prefix_may_be_there_once_too_often_or_missing() {
    let config = tiny_config(false);
    let whole = |name: &str| format!("model.{name}");
    let without = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
    let plain = tensors(&config, "model.");
    let (_, expected, _) = load_all(&config, &open(&plain)).unwrap();
    let renamed =
        |rename: &dyn Fn(&str) -> String| plain.iter().map(|(name, s, x)| (rename(name), s.clone(), x.clone())).collect::<Vec<_>>();
    let of_layer = |name: &str| name.contains("layers.1.");
    for other in [
        renamed(&whole),
        renamed(&without),
        renamed(&|name| if of_layer(name) { without(name) } else { name.into() }),
        renamed(&|name| if of_layer(name) { whole(name) } else { without(name) }),
        renamed(&|name| if name == "lm_head.weight" { whole(name) } else { name.into() }),
    ] {
        let (_, found, _) = load_all(&config, &open(&other)).unwrap();
        assert_eq!(found.weights, expected.weights, "{:?}", other.iter().map(|(name, ..)| name).collect::<Vec<_>>());
    }
    // Of two copies the one counts whose name comes first.
    let mut twice = plain.clone();
    for name in ["model.lm_head.weight", "model.model.embed.weight"] {
        let (_, shape, values) = plain.iter().find(|(known, ..)| whole(known) == name).unwrap();
        twice.push((name.into(), shape.clone(), vec![0.5; values.len()]));
    }
    let checkpoint = open(&twice);
    assert_eq!(load_all(&config, &checkpoint).unwrap().1.weights, expected.weights);
    let notes = match_all(&config, &checkpoint).unwrap().1.notes;
    assert!(
        notes.len() == 1 && notes[0].starts_with("2 tensors of the checkpoint, first `model.") && notes[0].contains("as in transformers"),
        "{notes:?}"
    );
    // Three times is another name.
    assert!(match_all(&config, &open(&renamed(&|name| format!("model.model.{name}")))).is_err());
}

#[test]
fn whole_numbers_are_no_weights_and_fp8_is_plain_only_where_nothing_is_packed() {
    let config = tiny_config(true);
    let checkpoint = open(&tensors(&config, "model."));
    let of = |dtype: Stored, packed: bool| {
        let mut entries = checkpoint.index.entries().to_vec();
        entries.iter_mut().find(|e| e.name.ends_with("layers.1.up.weight")).unwrap().dtype = dtype;
        let mut config = config.clone();
        let packing = || crate::model::Packing { layout: crate::model::PackedLayout::Awq, bits: vec![4], groups: vec![] };
        config.tensors.packing = packed.then(packing);
        let plan = pipeline::build(&config).unwrap();
        match_slots(&plan, &config.tensors, &TensorIndex::new(entries).unwrap(), false).map(|_| ()).map_err(|e| e.message)
    };
    for dtype in [Stored::Other("I64".into()), Stored::Other("BOOL".into()), Stored::Known(DType::I32)] {
        assert!(of(dtype.clone(), false).unwrap_err().contains("whole numbers or truth values are not read"), "{dtype}");
    }
    for format in [Format::E4m3, Format::E5m2] {
        assert_eq!(of(Stored::Packed(format), false), Ok(()));
    }
    assert!(of(Stored::Packed(Format::E5m2), true).unwrap_err().contains("found f8_e5m2"));
}

#[test]
fn what_has_no_place_is_refused_or_allowed_with_a_note() {
    let config = tiny_config(true);
    let mut all = tensors(&config, "model.");
    for buffer in
        ["model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached", "model.position_ids", "x.attn.masked_bias"]
    {
        all.push((buffer.into(), vec![1], vec![0.0]));
    }
    all.push(("model.nothing".into(), vec![0, 4], Vec::new()));
    assert_eq!(match_all(&config, &open(&all)).unwrap().1.ignored.len(), 5);
    for extra in ["v_head.summary.weight", "score.weight", "model.layers.3.up.weight"] {
        all.push((extra.into(), vec![1], vec![0.0]));
    }
    let checkpoint = open(&all);
    let error = match_all(&config, &checkpoint).unwrap_err();
    assert!(error.message.contains("score.weight") && error.message.contains("--allow-extra-tensors"), "{error}");
    let plan = pipeline::build(&config).unwrap();
    let matched = match_slots(&plan, &config.tensors, &checkpoint.index, true).unwrap();
    assert_eq!(matched.ignored.len(), 8);
    assert!(matched.notes[0].starts_with("3 tensors of the checkpoint"), "{:?}", matched.notes);

    all.push(("base_model.model.model.layers.0.qkv.lora_A.weight".into(), vec![1], vec![0.0]));
    assert!(match_all(&config, &open(&all)).unwrap_err().message.contains("merge_and_unload"));
}

#[test]
fn a_million_misfits_are_reported_at_once() {
    let config = tiny_config(true);
    let entry =
        |i: usize| TensorEntry { name: format!("x{i:x}.weight"), dtype: Stored::Known(DType::F32), shape: vec![], file: 0, range: 0..4 };
    let index = TensorIndex::new((0..300_000).map(entry).collect()).unwrap();
    let mut plan = pipeline::build(&config).unwrap();
    let slot = plan.weights.iter().find(|slot| slot.role == WeightRole::AttnNorm).unwrap().clone();
    plan.weights.extend((0..100_000).map(|i| crate::plan::WeightSlot { layer: Some(100 + i), ..slot.clone() }));
    let error = match_slots(&plan, &config.tensors, &index, false).unwrap_err();
    assert!(error.message.contains("300000 tensors") && error.message.len() < 10_000, "{}", error.message.len());
}
