//! Lines and requests of traces of made-up steps.

use super::*;
use crate::cpu::stats::stats;
use crate::debug::number::significant;
use crate::inference::pipeline;
use std::cell::RefCell;

fn plan() -> Plan {
    pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
}

fn options(categories: &str, layers: Option<&[i64]>) -> TraceOptions<'static> {
    let categories = if categories.is_empty() { Categories::default() } else { Categories::parse([categories]).unwrap() };
    let layers = layers.map(|list| list.iter().map(|l| Position::At(*l)).collect());
    TraceOptions { categories, layers, prompt_end: 3, text: None }
}

#[test]
fn stages_and_layers_that_are_asked_for() {
    let plan = plan();
    let sink = || Sink::new(|_| Ok(()));
    let of = |categories: &str, layers: Option<&[i64]>| TraceObserver::new(&plan, options(categories, layers), sink());
    let all = of("all", None).unwrap();
    let stages: Vec<Stage> = all.requests(0).iter().filter(|r| matches!(r.want, Want::Stats | Want::HeadStats)).map(|r| r.stage).collect();
    assert_eq!(stages, plan.stages());
    let some = of("ffn", Some(&[-1, 0])).unwrap().requests(1);
    assert!(some.iter().all(|r| r.layers == Some(vec![0, 2])));
    let last = some.last().unwrap();
    assert_eq!((last.stage, &last.want), (Stage::LayerOut, &Want::Gather { tokens: vec![3], dims: (0..8).collect() }));
    assert!(of("kernels,perf", None).unwrap().is_empty() && !of("", Some(&[1])).unwrap().is_empty());
    assert!(of("ffn", Some(&[3])).err().unwrap().message.contains("no layer 3"));
}

#[test]
fn layer_out_lines_do_not_depend_on_chunks() {
    let plan = plan();
    let at = At { stage: Stage::LayerOut, layer: Some(1) };
    // Row t is t + 1 everywhere but for one element.
    let row = |t: usize| -> Vec<f32> { (0..8).map(|d| if (t, d) == (1, 5) { -40.0 } else { t as f32 + 1.0 }).collect() };
    let run = |chunks: &[usize]| {
        let records = RefCell::new(Vec::new());
        let sink = Sink::new(|record| {
            records.borrow_mut().push(record);
            Ok(())
        });
        let mut trace = TraceObserver::new(&plan, options("layer", Some(&[1])), sink).unwrap();
        let mut first = 0;
        for (count, decode_step) in chunks.iter().map(|c| (*c, 0)).chain([(1, 1)]) {
            let rows: Vec<f32> = (first..first + count).flat_map(row).collect();
            let wanted = trace.last_token(decode_step);
            let cells = (first..first + count).filter(|t| *t == wanted).flat_map(|t| (0..8).map(move |d| (t, d, row(t)[d]))).collect();
            let value = |content| Observed { at, first_token: first, content };
            let values = vec![value(Content::Stats(stats(&rows, 8))), value(Content::Gather(cells))];
            let tokens = vec![1; count];
            trace.observe(StepInfo { decode_step, first_token: first, tokens: &tokens, chosen: None, notes: &[] }, values).unwrap();
            first += count;
        }
        drop(trace);
        records.into_inner().iter().map(|r| r.line(2.5)).collect::<Vec<String>>()
    };
    let (whole, parts) = (run(&[3]), run(&[2, 1]));
    assert_eq!(whole.len(), 4);
    assert!(whole[0].starts_with("[2.5ms][TRACE:layer] L1 layer_out tokens=3 maxAbs=40.0@t1,d5 mean="), "{}", whole[0]);
    assert!(parts[1].starts_with("[2.5ms][TRACE:layer] L1 layer_out from=2 tokens=1 maxAbs=3.0@t2,d0 mean="), "{}", parts[1]);
    let out = |lines: &[String]| lines.iter().filter(|l| l.starts_with("LAYER_OUT")).cloned().collect::<Vec<_>>();
    assert_eq!(out(&whole), out(&parts));
    let rms = significant(((8.0 + (1600.0 + 7.0 * 4.0) + 8.0 * 9.0) / 24.0f64).sqrt());
    assert!(out(&whole)[0].starts_with(&format!("LAYER_OUT L1 maxAbs=40.0 rms={rms} first=")), "{}", out(&whole)[0]);
    assert!(out(&whole)[0].ends_with("first=[3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]"));
    assert!(out(&whole)[1].starts_with("LAYER_OUT L1 step=1 maxAbs=4.0 rms=4.0 first=[4.0"));
}

#[test]
fn records_are_flat_in_json() {
    let at = At { stage: Stage::EmbedOut, layer: None };
    let stats = Summary::new(&stats(&[1.0, -2.0], 2), at, 0, 1, None);
    let record = Record::Trace(TraceRecord { step: 0, first_token: 0, tokens: 1, at, stats, head_rms: None });
    let json: serde_json::Value = serde_json::to_value(&record).unwrap();
    assert_eq!((&json["type"], &json["stage"], &json["layer"]), (&"trace".into(), &"embed_out".into(), &serde_json::Value::Null));
    assert_eq!((&json["maxAbs"], &json["dim"], &json["head"]), (&2.0.into(), &1.into(), &serde_json::Value::Null));
    let record = Record::LayerOut(LayerOutRecord { step: 0, layer: 1, stats, last_token: 0, first: vec![f32::NAN, 0.5] });
    let json: serde_json::Value = serde_json::to_value(&record).unwrap();
    assert_eq!(json["first"], serde_json::json!(["NaN", 0.5]));
}
