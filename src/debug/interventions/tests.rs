//! Settings as people write them, in a small model's plan.

use super::*;
use crate::formats::InMemory;
use crate::formats::gguf::{self, Metadata};
use crate::formats::safetensors::{Output, write};
use crate::inference::pipeline;
use crate::quant::Format;
use pollster::block_on;
use std::collections::BTreeMap;

fn plan() -> Plan {
    pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
}
fn no_files(file: &str) -> Result<Local> {
    Err(Error::io(file, "no such file"))
}
fn edited(text: &str, open: &dyn Fn(&str) -> Result<Local>) -> Result<Vec<String>> {
    block_on(set(&plan(), &[text.to_string()], Some(6), open)).map(|plan| plan.edited())
}

#[test]
fn texts_become_edits() {
    for (text, expected) in [
        ("ffn_out@1=zero", "ffn_out@1=zero"),
        ("attn_out=zero", "o_proj@0-2=zero"),
        ("ffn_out@0,2-2 = scale:-0.5", "ffn_out@0,2=scale:-0.5"),
        ("layer_out@-1,token=-1=zero", "layer_out@2,token=5=zero"),
        ("layer_out@mid,token=0,2-3,9-=zero", "layer_out@1,token=0,2-3,9-=zero"),
        ("q_rope@1-,head=-1,dim=0,-1=zero", "q_rope@1-2,head=1,dim=0,3=zero"),
        ("attn_probs@1,head=0,token=3,dim=0-1=scale:2", "attn_probs@1,token=3,head=0,dim=0-1=scale:2"),
        ("embed_out,dim=3=zero", "embed_out,dim=3=zero"),
        ("logits=scale:2", "logits=scale:2"),
    ] {
        assert_eq!(edited(text, &no_files).unwrap_or_else(|e| panic!("{text}: {e}")), [expected], "{text}");
    }
}

#[test]
fn texts_that_say_nothing_are_explained() {
    for (text, expected) in [
        ("ffn_out@1", "says nothing after `=`"),
        ("ffn_uot@1=zero", "nearest: ffn_act, ffn_out, ffn_up"),
        ("ffn_out@x=zero", "`x` is neither a number nor a range"),
        ("ffn_out@5-3=zero", "neither a number nor a range"),
        ("ffn_out@1=nil", "`nil` is no change of a value"),
        ("ffn_out@1=scale:x", "`x` is no finite number"),
        ("ffn_out@1=mean", "mean:DUMP"),
        ("ffn_out@1=from:", "names no file"),
        ("ffn_out@1,token=1,token=2=zero", "`token=` is there twice"),
        ("ffn_out@3=zero", "layers 0 to 2, so there is no layer 3"),
        ("q_norm@1=zero", "this model has no such value"),
        ("embed_out@1=zero", "leave @LAYERS out"),
        ("ffn_out@1,token=-9=zero", "no token -9"),
        ("ffn_out@1,head=0=zero", "not made of heads"),
        ("layer_in@1=zero", "under another name"),
        ("sampled=zero", "no such value"),
        ("ffn_out@1=from:x.safetensors", "no such file"),
    ] {
        let message = edited(text, &no_files).expect_err(text).message;
        assert!(message.contains(expected) && message.contains(text), "{text}: {message}");
    }
    let without = block_on(set(&plan(), &["ffn_out@1,token=-1=zero".into()], None, &no_files)).unwrap_err();
    assert!(without.message.contains("there is no prompt yet"), "{without}");
}

fn width(stage: Stage) -> usize {
    let plan = plan();
    plan.node(plan.find(At { stage, layer: Some(1) }).unwrap()).width
}
/// A file of f32 tensors, of the numbers 0, 1, 2 …
fn file(name: &str, tensors: &[(&str, &[usize])]) -> Local {
    let numbers: Vec<f32> = (0..4096).map(|i| i as f32).collect();
    let output = |(key, shape): &(&str, &[usize])| Output::f32(*key, shape.to_vec(), &numbers[..shape.iter().product()]);
    let mut out = Vec::new();
    write(&mut out, &BTreeMap::new(), &tensors.iter().map(output).collect::<Vec<_>>()).unwrap();
    Local::Memory(InMemory::new(name, out))
}

#[test]
fn vectors_come_by_name_or_alone() {
    let hidden = width(Stage::LayerOut);
    let row = [hidden];
    let one = |_: &str| Ok(file("v.safetensors", &[("steer", &row)]));
    assert_eq!(edited("layer_out@0-1=add:v.safetensors*0.5", &one).unwrap(), ["layer_out@0-1=add:v.safetensors*0.5"]);
    let named = |_: &str| Ok(file("v.safetensors", &[("layer.1.layer_out", &row), ("layer.2.layer_out", &row)]));
    assert!(edited("layer_out@1=add:v", &named).is_ok());
    let message = edited("layer_out@0=add:v", &named).unwrap_err().message;
    assert!(message.contains("expected a tensor `layer.0.layer_out` or a single one"), "{message}");
    let rows = [2, hidden];
    let several = |_: &str| Ok(file("v", &[("layer.1.layer_out", &rows)]));
    assert!(edited("layer_out@1=add:v", &several).unwrap_err().message.contains("expected one row"));
}

#[test]
fn dumps_give_tokens_and_means() {
    let (hidden, version) = (width(Stage::LayerOut), crate::plan::stage::STAGE_TABLE_VERSION.to_string());
    let metadata = BTreeMap::from([("stage_table".to_string(), version)]);
    let numbers: Vec<f32> = (0..4 * hidden).map(|i| i as f32).collect();
    let mut written = Vec::new();
    let outputs = [Output::ids("input_ids", &[0, 1, 2, 3]), Output::f32("layer.1.layer_out", vec![4, hidden], &numbers)];
    write(&mut written, &metadata, &outputs).unwrap();
    let dump = |_: &str| Ok(Local::Memory(InMemory::new("d.safetensors", written.clone())));
    assert_eq!(edited("layer_out@1=from:d", &dump).unwrap(), ["layer_out@1,token=0-3=from:d.safetensors"]);
    assert!(edited("layer_out@1,token=4=from:d", &dump).unwrap_err().message.contains("values of tokens 0 to 3 only"));
    assert!(edited("layer_out@2=from:d", &dump).unwrap_err().message.contains("does not hold layer.2.layer_out"));
    let mean = block_on(set(&plan(), &["layer_out@1,token=7=mean:d".into()], None, &dump)).unwrap();
    let [(_, list)] = &mean.interventions()[..] else { panic!("one value") };
    let Change::Set(given) = &list[0].change else { panic!("it is set") };
    assert_eq!(given.tensor.data[..2], [1.5 * hidden as f32, 1.5 * hidden as f32 + 1.0]);
}

#[test]
fn control_vectors_begin_with_layer_1() {
    let hidden = width(Stage::LayerOut);
    let made = |architecture: &str| {
        let bytes: Vec<u8> = (0..hidden).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", architecture);
        metadata.set("controlvector.layer_count", 2u32);
        let tensor = |name: &str| gguf::Output {
            name: name.into(),
            format: Format::F32,
            shape: vec![hidden],
            data: Box::new(|out: &mut dyn std::io::Write| out.write_all(&bytes)),
        };
        let tensors = [tensor("direction.1"), tensor("direction.2")];
        let mut out = Vec::new();
        gguf::write(&mut out, &metadata, &tensors).unwrap();
        Ok(Local::Memory(InMemory::new("v.gguf", out)))
    };
    let vectors = |_: &str| made("controlvector");
    assert_eq!(edited("layer_out=add:v.gguf*0.8", &vectors).unwrap(), ["layer_out@1-2=add:v.gguf*0.8"]);
    assert!(edited("layer_out@0=add:v.gguf", &vectors).unwrap_err().message.contains("it has no `direction.0`"));
    assert!(edited("ffn_out@1=add:v.gguf", &vectors).unwrap_err().message.contains("added to layer_out"));
    let model = |_: &str| made("llama");
    assert!(edited("layer_out@1=add:v.gguf", &model).unwrap_err().message.contains("expected control vectors"));
}
