//! Probes of a tiny model on the oracle, in chunks and in decode, and probes of what is not there.

use super::*;
use crate::config::runtime::RuntimeConfig;
use crate::inference::pipeline;
use std::cell::RefCell;

fn plan() -> Plan {
    pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
}

fn probes(json: &str) -> Vec<Probe> {
    let text = format!(r#"{{"runtime":{{"debug":{{"probes":{json}}}}}}}"#);
    RuntimeConfig::parse(&text).unwrap().runtime.debug.probes
}

fn refused(json: &str) -> String {
    ProbeObserver::new(&plan(), &probes(json), 5, Sink::new(|_| Ok(()))).err().unwrap().message
}

#[test]
fn what_a_model_or_prompt_lacks_is_named() {
    for (json, expected) in [
        (r#"[{"id":"a","stage":"layer_uot"}]"#, "probe `a`: stage: there is no stage `layer_uot` (nearest: layer_out"),
        (r#"[{"id":"a","stage":"q_norm"}]"#, "this model has no stage `q_norm`"),
        (r#"[{"id":"a","stage":"layer_out","layers":[3]}]"#, "layers 0 to 2, so there is no layer 3"),
        (r#"[{"id":"a","stage":"logits_final","layers":[0]}]"#, "once, not per layer"),
        (r#"[{"id":"a","stage":"layer_out","tokens":[5]}]"#, "tokens 0 to 4, so there is no token 5"),
        (r#"[{"id":"a","stage":"layer_out","dims":[8]}]"#, "L0 layer_out has 8 elements per token, so there is no dim 8"),
        (r#"[{"id":"a","stage":"attn_probs","dims":[5]}]"#, "the prompt has 5, so there is no 5"),
        (r#"[{"id":"a","stage":"sampled"}]"#, "trace category `sample`"),
    ] {
        assert!(refused(json).contains(expected), "{}", refused(json));
    }
}

/// A value of three tokens from `first` on whose elements tell their place.
fn rows(at: At, first: usize, tokens: usize) -> Tensor {
    let cell = |t: usize, d: usize| (first + t) as f32 * 10.0 + d as f32 + at.layer.unwrap_or(0) as f32 * 100.0;
    Tensor::new(vec![tokens, 8], (0..tokens).flat_map(|t| (0..8).map(move |d| cell(t, d))).collect()).unwrap()
}

fn scores(first: usize, tokens: usize) -> Tensor {
    let positions = first + tokens;
    let cell = |h: usize, t: usize, p: usize| if p <= first + t { (h * 100 + (first + t) * 10 + p) as f32 } else { 0.0 };
    let data = (0..2).flat_map(|h| (0..tokens).flat_map(move |t| (0..positions).map(move |p| cell(h, t, p)))).collect();
    Tensor::new(vec![2, tokens, positions], data).unwrap()
}

/// What an executor would answer to `requests`.
fn answer(plan: &Plan, requests: &[Request], first: usize, tokens: usize) -> Vec<Observed> {
    let found = match_requests(plan, requests).unwrap();
    let value = |(id, want): (crate::plan::ValueId, Want)| {
        let at = plan.node(id).at;
        let full = if at.stage.layout().is_scores() { scores(first, tokens) } else { rows(at, first, tokens) };
        let content = match want {
            Want::Full => Content::Full(full),
            Want::Stats | Want::StatsIfMade | Want::HeadStats => Content::Stats(stats(&full.data, full.width())),
            Want::Gather { tokens: list, dims } => {
                let inside = list.into_iter().filter(|t| (first..first + tokens).contains(t));
                Content::Gather(
                    inside
                        .flat_map(|t| dims.iter().map(move |d| (t, *d)).collect::<Vec<_>>())
                        .map(|(t, d)| (t, d, full.row(t - first)[d]))
                        .collect(),
                )
            }
        };
        Observed { at, first_token: first, content }
    };
    found.into_iter().map(value).collect()
}

fn lines(json: &str, chunks: &[usize], decode: usize) -> Vec<String> {
    let (plan, found) = (plan(), RefCell::new(Vec::new()));
    let sink = Sink::new(|record| {
        found.borrow_mut().push(record.line(0.0));
        Ok(())
    });
    let mut probe = ProbeObserver::new(&plan, &probes(json), 5, sink).unwrap();
    let mut first = 0;
    for (count, decode_step) in chunks.iter().map(|c| (*c, 0)).chain((1..=decode).map(|n| (1, n))) {
        let requests = probe.requests(decode_step);
        let ids = vec![1; count];
        let info = StepInfo { decode_step, first_token: first, tokens: &ids, chosen: None, notes: &[] };
        probe.observe(info, answer(&plan, &requests, first, count)).unwrap();
        first += count;
    }
    drop(probe);
    found.into_inner()
}

#[test]
fn chunks_and_decode_steps() {
    let json = r#"[{"id":"d","stage":"layer_out","layers":[0,-1],"tokens":[0,-1],"dims":[3,1]},
        {"id":"same","stage":"layer_out","layers":"mid","tokens":[-2],"dims":[3]},
        {"id":"again","stage":"layer_out","layers":[1],"tokens":[-2],"dims":[3]}]"#;
    let expected = [
        "PROBE[d] stage=layer_out layer=0 token=0 values=[3=3.0000, 1=1.0000]",
        "PROBE[d] stage=layer_out layer=2 token=0 values=[3=203.0000, 1=201.0000]",
        "PROBE[d] stage=layer_out layer=0 token=4 values=[3=43.0000, 1=41.0000]",
        "PROBE[same] stage=layer_out layer=1 token=3 values=[3=133.0000]",
        "PROBE[again] stage=layer_out layer=1 token=3 values=[3=133.0000]",
        "PROBE[d] stage=layer_out layer=2 token=4 values=[3=243.0000, 1=241.0000]",
        "PROBE[d] stage=layer_out layer=0 token=5 step=1 values=[3=53.0000, 1=51.0000]",
        "PROBE[d] stage=layer_out layer=2 token=5 step=1 values=[3=253.0000, 1=251.0000]",
    ];
    assert_eq!(lines(json, &[3, 2], 1), expected);
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    for chunks in [&[5][..], &[1, 1, 1, 1, 1]] {
        assert_eq!(sorted(lines(json, chunks, 1)), sorted(expected.map(String::from).to_vec()));
    }
}

#[test]
fn statistics_of_rows_are_the_same_in_any_chunks() {
    for json in [
        r#"[{"id":"s","stage":"ffn_in","layers":[1]}]"#,
        r#"[{"id":"s","stage":"ffn_in","layers":[1],"tokens":[1,-1],"dims":"stats"}]"#,
        r#"[{"id":"s","stage":"attn_probs","layers":[0],"tokens":[1,-1]}]"#,
        r#"[{"id":"s","stage":"attn_scores","layers":[0],"tokens":[1,-1],"dims":[0,4]}]"#,
    ] {
        let whole = lines(json, &[5], 2);
        assert_eq!(whole, lines(json, &[2, 1, 2], 2), "{json}");
        assert_eq!(whole.len(), if json.contains("tokens") { 4 } else { 7 }, "{whole:?}");
    }
    let found = lines(r#"[{"id":"s","stage":"attn_probs","layers":[0],"tokens":[1,-1]}]"#, &[5], 1);
    assert!(found[0].starts_with("PROBE[s] stage=attn_probs layer=0 token=1 maxAbs=111.0@h1,t1,p1 mean="), "{}", found[0]);
    assert!(found[2].starts_with("PROBE[s] stage=attn_probs layer=0 token=5 step=1 maxAbs=155.0@h1,t5,p5"), "{}", found[2]);
    let found = lines(r#"[{"id":"s","stage":"attn_scores","layers":[0],"tokens":[1],"dims":[0,4]}]"#, &[2, 3], 1);
    assert_eq!(found, ["PROBE[s] stage=attn_scores layer=0 token=1 values=[h0.0=10.0000, h0.4=0.0000, h1.0=110.0000, h1.4=0.0000]"]);
}

#[test]
fn json_says_null_where_nothing_applies() {
    let at = At { stage: Stage::LogitsFinal, layer: None };
    let value = ProbeValue { head: None, dim: 4, value: f32::INFINITY };
    let record = ProbeRecord { id: "x".into(), step: 0, at, token: 2, values: Some(vec![value]), stats: None };
    assert_eq!(record.text(), "PROBE[x] stage=logits_final token=2 values=[4=Inf]");
    let text = serde_json::to_string(&Record::Probe(record)).unwrap();
    assert_eq!(
        text,
        r#"{"type":"probe","id":"x","step":0,"stage":"logits_final","layer":null,"token":2,"values":[{"head":null,"dim":4,"value":"Inf"}],"stats":null}"#
    );
}
