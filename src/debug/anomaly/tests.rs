//! Rules on made-up steps of a tiny plan; models that are broken for real are in the suite.

use super::*;
use crate::exec::Stats;
use crate::inference::pipeline;
use crate::tensor::Tensor;
use std::cell::RefCell;

fn plan() -> Plan {
    pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
}

fn usual(rms: f32) -> Stats {
    Stats { count: 80, max_abs: 1.5 * rms, mean: 0.1 * rms, rms, min: -rms, max: 1.5 * rms, ..Stats::default() }
}

/// One step of ten tokens, or a decode step, whose values all have rms 1, edited.
struct Made {
    values: Vec<Observed>,
    row: Vec<f32>,
}

fn made(plan: &Plan, observer: &AnomalyObserver<'_>, step: usize) -> Made {
    let row: Vec<f32> = (0..10).map(|i| ((i * 7) % 10) as f32 * 0.5).collect();
    let found = crate::exec::match_requests(plan, &observer.requests(step)).unwrap();
    let value = |(id, want): (ValueId, Want)| {
        let content = match want {
            Want::Stats | Want::StatsIfMade | Want::HeadStats => Content::Stats(usual(1.0)),
            Want::Gather { tokens, .. } => Content::Gather(row.iter().enumerate().map(|(d, x)| (tokens[0], d, *x)).collect()),
            Want::Full => Content::Full(Tensor::new(vec![1, 10], row.clone()).unwrap()),
        };
        Observed { at: plan.node(id).at, first_token: if step == 0 { 0 } else { 9 + step }, content }
    };
    Made { values: found.into_iter().map(value).collect(), row: row.clone() }
}

impl Made {
    fn set(&mut self, stage: Stage, layer: Option<usize>, stats: Stats) {
        let value = self.values.iter_mut().find(|v| v.at == At { stage, layer }).unwrap();
        value.content = Content::Stats(stats);
    }
    fn logits(&mut self, row: &[f32]) {
        self.row = row.to_vec();
        for value in self.values.iter_mut().filter(|v| matches!(v.at.stage, Stage::Logits | Stage::LogitsFinal)) {
            value.content = match &value.content {
                Content::Full(_) => Content::Full(Tensor::new(vec![1, row.len()], row.to_vec()).unwrap()),
                _ => Content::Gather(row.iter().enumerate().map(|(d, x)| (9, d, *x)).collect()),
            };
        }
    }
}

#[test]
fn thresholds_come_from_the_runtime_config() {
    let config = |patch| crate::config::RuntimeConfig::from_patch(patch).unwrap().runtime.debug.anomalies;
    let (usual, of) = (AnomalyOptions::new(3, 9), AnomalyOptions::of(&config(serde_json::json!({})), 3, 9, None, &[]));
    assert_eq!(format!("{of:?}"), format!("{usual:?}"), "the usual thresholds are those of the default config");
    let patch = serde_json::json!({"runtime": {"debug": {"anomalies": {"factor": 20.0, "profileFactor": 3.0, "repetitions": 4}}}});
    let of = AnomalyOptions::of(&config(patch), 3, 9, Some(0), &[1, 2]);
    assert_eq!((of.factor, of.profile_factor, of.repetitions, of.pad, &of.eos[..]), (20.0, 3.0, 4, Some(0), &[1, 2][..]));
}

/// Runs `steps` steps, each edited, and returns what was found.
fn run(
    options: impl FnOnce(&mut AnomalyOptions),
    steps: usize,
    edit: impl Fn(usize, &mut Made),
    chosen: impl Fn(usize) -> u32,
) -> Vec<Finding> {
    let plan = plan();
    let found = RefCell::new(Vec::new());
    let sink = Sink::new(|record| {
        found.borrow_mut().push(record);
        Ok(())
    });
    let mut with = AnomalyOptions::new(10, 10);
    options(&mut with);
    let mut observer = AnomalyObserver::new(&plan, with, sink);
    for step in 0..steps {
        let mut made = made(&plan, &observer, step);
        edit(step, &mut made);
        let (first_token, count) = if step == 0 { (0, 10) } else { (9 + step, 1) };
        let tokens = vec![0; count];
        let info = StepInfo { decode_step: step, first_token, tokens: &tokens, chosen: Some(chosen(step)), notes: &[] };
        if let Err(error) = observer.observe(info, made.values) {
            assert_eq!(error.kind, crate::Kind::Finding);
            break;
        }
    }
    let findings = observer.findings().to_vec();
    drop(observer);
    let lines: Vec<String> = found.into_inner().iter().map(|record| record.line(0.0)).collect();
    assert_eq!(lines, findings.iter().map(Finding::text).collect::<Vec<_>>());
    findings
}

fn counting(step: usize) -> u32 {
    step as u32
}

#[test]
fn a_healthy_run_is_quiet() {
    assert_eq!(run(|o| o.pad = Some(0), 7, |_, _| {}, counting), []);
}

#[test]
fn the_first_value_that_is_not_finite_is_responsible() {
    let bad = Stats { nan: 2, inf: 1, max_abs: f32::NAN, max_row: 4, max_dim: 5, ..usual(1.0) };
    let edit = |_: usize, made: &mut Made| {
        for (stage, layer) in [(Stage::FfnAct, 1), (Stage::FfnOut, 1), (Stage::LayerOut, 1), (Stage::LayerIn, 2)] {
            made.set(stage, Some(layer), bad);
        }
        made.set(Stage::QProj, Some(2), usual(1000.0));
        made.logits(&[f32::NAN; 10]);
    };
    let found = run(|_| {}, 3, edit, counting);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].text(),
        "ANOMALY kind=non_finite stage=ffn_act layer=1 token=4 dim=5 value=NaN (NaN=2 Inf=1 of 80 elements; what it reads is finite: ffn_gate, ffn_up)"
    );
    let json = serde_json::to_value(Record::Anomaly(found[0].clone())).unwrap();
    assert_eq!((&json["type"], &json["kind"], &json["value"]), (&"anomaly".into(), &"non_finite".into(), &"NaN".into()));
}

#[test]
fn growth_is_told_where_it_begins() {
    let edit = |_: usize, made: &mut Made| {
        for (stage, layer) in
            [(Stage::FfnGate, 1), (Stage::FfnAct, 1), (Stage::FfnOut, 1), (Stage::LayerOut, 1), (Stage::LayerIn, 2), (Stage::LayerOut, 2)]
        {
            made.set(stage, Some(layer), usual(1000.0));
        }
        made.set(Stage::PreFinalNorm, None, usual(1000.0));
    };
    let found = run(|_| {}, 2, edit, counting);
    assert_eq!(found.iter().map(|f| (f.kind, f.stage, f.layer)).collect::<Vec<_>>(), [("explosion", Some("ffn_gate"), Some(1))]);
    assert!(found[0].message.starts_with("1000.0 times the largest ffn_gate of the layers before"), "{}", found[0].message);
    assert_eq!(run(|o| o.factor = 2000.0, 2, edit, counting), []);

    let small = |_: usize, made: &mut Made| made.set(Stage::OProj, Some(2), usual(0.01));
    let found = run(|_| {}, 2, small, counting);
    assert_eq!(found.iter().map(|f| (f.kind, f.stage, f.layer)).collect::<Vec<_>>(), [("collapse", Some("o_proj"), Some(2))]);
    // A huge element at one token is known from healthy models.
    let massive = |_: usize, made: &mut Made| {
        for layer in [1, 2] {
            made.set(Stage::LayerOut, Some(layer), Stats { max_abs: 500.0, ..usual(60.0) });
        }
    };
    assert_eq!(run(|_| {}, 2, massive, counting), []);
}

#[test]
fn a_profile_decides() {
    let plan = plan();
    let mut healthy = AnomalyObserver::new(&plan, AnomalyOptions::new(10, 10), Sink::new(|_| Ok(())));
    for step in 0..2 {
        let mut made = made(&plan, &healthy, step);
        made.set(Stage::FfnOut, Some(1), usual(100.0));
        made.set(Stage::OProj, Some(1), Stats { zero: 80, max_abs: 0.0, rms: 0.0, ..usual(1.0) });
        let tokens = vec![0; if step == 0 { 10 } else { 1 }];
        let info = StepInfo { decode_step: step, first_token: 10 * step, tokens: &tokens, chosen: None, notes: &[] };
        healthy.observe(info, made.values).unwrap();
    }
    assert_eq!(healthy.findings().len(), 2);
    let text = healthy.profile().to_json("tiny");
    let (profile, model) = Profile::from_json(&text, "p.json").unwrap();
    assert_eq!((&profile, model.as_str()), (&healthy.profile(), "tiny"));
    assert_eq!(profile.accepted.len(), 2);

    let with = |o: &mut AnomalyOptions| o.profile = Some(profile.clone());
    let as_recorded = |_: usize, made: &mut Made| {
        made.set(Stage::FfnOut, Some(1), usual(150.0));
        made.set(Stage::OProj, Some(1), Stats { zero: 80, max_abs: 0.0, rms: 0.0, ..usual(1.0) });
    };
    assert_eq!(run(with, 2, as_recorded, counting), []);
    // What no layer before could show: the first layer, and values outside layers.
    let worse = |_: usize, made: &mut Made| {
        made.set(Stage::FfnOut, Some(1), usual(50.0));
        made.set(Stage::EmbedOut, None, usual(9.0));
        made.set(Stage::QProj, Some(0), usual(0.1));
    };
    let found = run(with, 2, worse, counting);
    assert_eq!(
        found.iter().map(|f| (f.kind, f.stage)).collect::<Vec<_>>(),
        [("explosion", Some("embed_out")), ("collapse", Some("q_proj"))]
    );
    assert!(found[0].message.contains("the profile's largest"), "{}", found[0].message);

    let mut both = profile.clone();
    both.join(&profile);
    assert_eq!(both, profile);
    for (text, expected) in [
        ("{}", "no profile"),
        (&text.replace("\"dopplerProfile\": 1", "\"dopplerProfile\": 2"), "record it again"),
        (&text.replace("\"stage\": \"q_proj\"", "\"stage\": \"q_projj\""), "nearest: q_proj"),
        (&text.replace("1.5", "-1.5"), "a range should"),
    ] {
        let error = Profile::from_json(text, "p.json").unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn zeros_spikes_and_rows() {
    let zero = Stats { zero: 80, max_abs: 0.0, rms: 0.0, mean: 0.0, min: 0.0, max: 0.0, ..usual(1.0) };
    let zeros = |_: usize, made: &mut Made| {
        made.set(Stage::OProj, Some(0), zero);
        made.set(Stage::FfnGate, Some(0), zero);
        made.set(Stage::FfnAct, Some(0), zero);
    };
    let found = run(|_| {}, 2, zeros, counting);
    assert_eq!(found.iter().map(|f| (f.kind, f.stage)).collect::<Vec<_>>(), [("all_zero", Some("o_proj")), ("all_zero", Some("ffn_gate"))]);

    // Width 8: a dimension with 0.9 of every token's energy.
    let spike = |_: usize, made: &mut Made| {
        for layer in 0..3 {
            made.set(Stage::LayerOut, Some(layer), Stats { max_dim: 6, max_row: 0, max_abs: (0.9f32 * 8.0).sqrt(), ..usual(1.0) });
        }
    };
    let found = run(|_| {}, 1, spike, counting);
    assert_eq!(
        found.iter().map(|f| (f.kind, f.stage, f.layer, f.dim)).collect::<Vec<_>>(),
        [("dim_spike", Some("layer_out"), Some(0), Some(6))]
    );
    // At one token only: up to the token count times as much.
    let massive = |step: usize, made: &mut Made| {
        if step == 0 {
            spike(0, made);
            (0..3).for_each(|l| made.set(Stage::LayerOut, Some(l), Stats { max_dim: 6, max_abs: (0.9f32 * 80.0).sqrt(), ..usual(1.0) }));
        }
    };
    assert_eq!(run(|_| {}, 3, massive, counting), []);

    let logits = |row: &'static [f32; 10]| move |_: usize, made: &mut Made| made.logits(row);
    let kinds = |found: Vec<Finding>| found.iter().map(|f| (f.kind, f.dim)).collect::<Vec<_>>();
    const PAD: [f32; 10] = [0.0, 0.1, 9.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
    assert_eq!(kinds(run(|o| o.pad = Some(2), 2, logits(&PAD), counting)), [("pad_wins", Some(2))]);
    assert_eq!(kinds(run(|o| o.valid_vocab = 2, 2, logits(&PAD), counting)), [("padded_row_wins", Some(2))]);
    const FLAT: [f32; 10] = [1.0; 10];
    let trained = |step: usize, made: &mut Made| {
        made.set(Stage::FinalNorm, None, usual(2.0));
        logits(&FLAT)(step, made);
    };
    assert_eq!(kinds(run(|_| {}, 2, trained, counting)), [("flat", Some(0))]);
    // Every norm gives values of rms 1.
    let found = run(|_| {}, 12, logits(&FLAT), |_| 4);
    assert_eq!(kinds(found.clone()), [("untrained", Some(0))]);
    let norms = plan().nodes.iter().filter(|n| matches!(n.op, Op::RmsNorm { .. })).count();
    let expected = format!("looks untrained: entropy 2.30259 of 2.30259 nats, and the outputs of all {norms} norms have rms 1.0 to 1.0");
    assert!(found[0].message.contains(&expected), "{}", found[0].message);
    const SURE: [f32; 10] = [0.0, 0.0, 0.0, 90.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(run(|_| {}, 3, logits(&SURE), counting), []);
    assert_eq!(kinds(run(|_| {}, 6, logits(&SURE), counting)), [("saturated", Some(3))]);
}

#[test]
fn repetition_and_stopping() {
    let found = run(|_| {}, 16, |_, _| {}, |step| if step < 3 { 9 - step as u32 } else { 1 + (step % 2) as u32 });
    assert_eq!(found, []);
    let found = run(|_| {}, 24, |_, _| {}, |step| if step < 3 { 9 - step as u32 } else { 1 + (step % 2) as u32 });
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].text(), "ANOMALY kind=repeated_tokens step=18 token=28 (the ids 2 1 came 8 times in a row)");
    let found = run(
        |o| o.stop = true,
        24,
        |step, made| {
            if step > 2 {
                made.set(Stage::OProj, Some(1), usual(40.0))
            }
        },
        |_| 4,
    );
    assert_eq!(found.iter().map(|f| (f.kind, f.step)).collect::<Vec<_>>(), [("explosion", 3)]);
}

#[test]
fn what_is_around_a_value() {
    let plan = plan();
    let found = surroundings(&plan, At { stage: Stage::FfnAct, layer: Some(1) });
    let names: Vec<String> = found.iter().map(At::to_string).collect();
    assert_eq!(names, ["L1 layer_in", "L1 ffn_gate", "L1 ffn_up", "L1 ffn_act", "L1 ffn_out", "L1 layer_out"]);
    assert!(surroundings(&plan, At { stage: Stage::QNorm, layer: Some(1) }).is_empty());
    assert_eq!(surroundings(&plan, At { stage: Stage::EmbedOut, layer: None }).len(), 2);
}
