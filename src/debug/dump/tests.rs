//! Dumps of made-up steps, written and read.

use super::*;
use crate::error::Kind;
use crate::formats::InMemory;
use crate::inference::pipeline;
use crate::plan::Stage;

fn plan() -> Plan {
    pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
}

fn at(stage: Stage, layer: Option<usize>) -> At {
    At { stage, layer }
}

/// A value whose elements tell their place: token·100 + element.
fn rows(at: At, first_token: usize, count: usize, width: usize) -> Observed {
    let data = (0..count * width).map(|i| ((first_token + i / width) * 100 + i % width) as f32).collect();
    Observed { at, first_token, content: Content::Full(Tensor::new(vec![count, width], data).unwrap()) }
}

/// Scores of two heads: head·1000 + token·100 + position.
fn scores(first_token: usize, count: usize) -> Observed {
    let positions = first_token + count;
    let cell = |h: usize, t: usize, p: usize| (h * 1000 + (first_token + t) * 100 + p) as f32;
    let data = (0..2).flat_map(|h| (0..count).flat_map(move |t| (0..positions).map(move |p| cell(h, t, p)))).collect();
    let tensor = Tensor::new(vec![2, count, positions], data).unwrap();
    Observed { at: at(Stage::AttnScores, Some(1)), first_token, content: Content::Full(tensor) }
}

fn observe(dump: &mut DumpObserver, decode_step: usize, first: usize, tokens: &[u32], chosen: Option<u32>) -> Result<()> {
    let info = StepInfo { decode_step, first_token: first, tokens, chosen, notes: &[] };
    let out = at(Stage::LayerOut, Some(1));
    dump.observe(info, vec![rows(out, first, tokens.len(), 3), scores(first, tokens.len())])
}

fn written(dump: &DumpObserver) -> Vec<u8> {
    let mut file = Vec::new();
    dump.write(&mut file, &[("model", "tiny"), ("dtype", "f32")]).unwrap();
    file
}

#[test]
fn chunks_and_decode_steps_are_joined() {
    let mut dump = DumpObserver::new(&plan(), ["layer_out", "attn_scores", "sampled"], Some(&[1])).unwrap();
    observe(&mut dump, 0, 0, &[5, 6], None).unwrap();
    observe(&mut dump, 0, 2, &[7], Some(8)).unwrap();
    observe(&mut dump, 1, 3, &[8], Some(9)).unwrap();
    let file = written(&dump);
    let dump = Dump::read(InMemory::new("d", file.clone())).unwrap();
    assert_eq!((dump.input_ids().unwrap(), dump.generated_ids().unwrap()), (vec![5, 6, 7], Some(vec![8, 9])));
    assert_eq!((dump.metadata["model"].as_str(), dump.metadata["tool"].as_str()), ("tiny", "doppler"));
    let (out, scores) = (at(Stage::LayerOut, Some(1)), at(Stage::AttnScores, Some(1)));
    assert_eq!(dump.stages(), [scores, out]);
    let value = dump.value(out).unwrap().unwrap();
    assert_eq!((&value.shape[..], value.row(3)), (&[4, 3][..], &[300.0, 301.0, 302.0][..]));
    let value = dump.value(scores).unwrap().unwrap();
    assert_eq!(value.shape, [2, 3, 3]);
    assert_eq!((value.row(0), value.row(3 + 1)), (&[0.0, 1.0, 0.0][..], &[1100.0, 1101.0, 0.0][..]));
    assert_eq!(value.row(2), [200.0, 201.0, 202.0]);
    assert_eq!(dump.step_value(1, scores).unwrap().unwrap().shape, [2, 1, 4]);
    assert!(dump.step_value(2, scores).unwrap().is_none() && dump.value(at(Stage::Logits, None)).unwrap().is_none());
    assert!(dump.unknown.is_empty());

    for len in 0..file.len() {
        assert_eq!(Dump::read(InMemory::new("d", file[..len].to_vec())).unwrap_err().kind, Kind::Format, "{len}");
    }
}

#[test]
fn ids_alone_and_a_second_prompt() {
    let mut dump = DumpObserver::new(&plan(), ["sampled"], None).unwrap();
    assert_eq!(dump.requests(0).len(), 1);
    let step = |decode_step, tokens| StepInfo { decode_step, first_token: 0, tokens, chosen: Some(4), notes: &[] };
    let nothing = || vec![Observed { at: at(Stage::EmbedOut, None), first_token: 0, content: Content::Gather(vec![]) }];
    dump.observe(step(0, &[1]), nothing()).unwrap();
    dump.observe(step(1, &[4]), nothing()).unwrap();
    assert!(dump.observe(step(0, &[1]), nothing()).unwrap_err().message.contains("second prompt"));
    let read = Dump::read(InMemory::new("d", written(&dump))).unwrap();
    assert_eq!((read.stages().len(), read.generated_ids().unwrap()), (0, Some(vec![4, 4])));
}

#[test]
fn rows_that_do_not_follow_are_an_error() {
    let mut dump = DumpObserver::new(&plan(), ["all"], None).unwrap();
    observe(&mut dump, 0, 0, &[5, 6], None).unwrap();
    assert!(observe(&mut dump, 0, 3, &[7], None).unwrap_err().message.contains("from token 2 on"));
    assert!(DumpObserver::new(&plan(), ["layer_uot"], None).unwrap_err().message.contains("layer_out"));
}

#[test]
fn foreign_files_are_told_from_dumps() {
    let file = |metadata: &[(&str, &str)], outputs: &[Output<'_>]| {
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let mut file = Vec::new();
        write(&mut file, &metadata, outputs).unwrap();
        Dump::read(InMemory::new("f", file)).map(|dump| dump.unknown)
    };
    let table = STAGE_TABLE_VERSION.to_string();
    let ours = [("stage_table", table.as_str())];
    let ids = || Output::ids("input_ids", &[1]);
    let cases = [
        (file(&[], &[Output::f32("model.embed_tokens.weight", vec![1, 1], &[0.0])]), "no dump: its metadata"),
        (file(&[("stage_table", "999")], &[ids()]), "version 999"),
        (file(&ours, &[Output::f32("embed_out", vec![1, 1], &[0.0])]), "no `input_ids`"),
        (file(&ours, &[ids(), Output::f32("embed_out", vec![1], &[0.0])]), "expected f32 [tokens, width]"),
        (file(&ours, &[Output::f32("input_ids", vec![1], &[0.0])]), "expected ids"),
    ];
    for (found, expected) in cases {
        let error = found.unwrap_err();
        assert!(error.kind == Kind::Format && error.message.contains(expected), "{error}");
    }
    let strange = ["layer.1.logits", "layer_out", "layer.x.q_proj", "layer.01.q_proj", "attn_out", "q_projj"];
    let outputs: Vec<Output<'_>> = strange.iter().map(|k| Output::f32(*k, vec![1, 1], &[0.0])).chain([ids()]).collect();
    let mut unknown = file(&ours, &outputs).unwrap();
    unknown.sort_unstable();
    let mut expected = strange.to_vec();
    expected.sort_unstable();
    assert_eq!(unknown, expected);
}
