//! Edits of a small model's plan: each changes what it says, is refused in words, and does not depend on its neighbours.

use super::*;
use crate::inference::pipeline;
use crate::plan::intervention::{Change, Given};
use crate::plan::{Stage, StateId};
use crate::tensor::Tensor;
use proptest::prelude::*;
use std::sync::Arc;

fn plan() -> Plan {
    pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap()
}
fn at(stage: Stage, layer: usize) -> At {
    At { stage, layer: stage.info().per_layer.then_some(layer) }
}
fn intervene(stage: Stage, layer: usize, change: Change) -> Edit {
    Edit::Intervene { at: at(stage, layer), with: Intervention::of(change) }
}
fn one(edit: Edit) -> Result<Plan> {
    apply(&plan(), &[edit])
}

#[test]
fn each_kind_changes_its_op_alone() {
    let before = plan();
    let rope = RopeConfig::plain(77.0, 2);
    let edits = [
        Edit::Parameter { at: at(Stage::AttnNormed, 1), to: Parameter::Eps(0.5) },
        Edit::Parameter { at: at(Stage::PostAttn, 1), to: Parameter::Multiplier(0.5) },
        Edit::Read { at: at(Stage::FfnIn, 1), input: 0, from: at(Stage::LayerIn, 1) },
        Edit::Bypass { at: at(Stage::AttnNormed, 1), input: 0 },
        Edit::Rope { at: at(Stage::QRope, 1), to: rope },
        intervene(Stage::FfnOut, 1, Change::Zero),
    ];
    for edit in edits {
        let edited = one(edit.clone()).unwrap();
        let differ = before.nodes.iter().zip(&edited.nodes).filter(|(a, b)| {
            // The number of an encoding may be another.
            let rope = |node: &crate::plan::Node, plan: &Plan| {
                if let Op::Rope { rope, .. } = node.op { Some(plan.ropes[rope].clone()) } else { None }
            };
            a.inputs != b.inputs
                || a.interventions != b.interventions
                || rope(a, &before) != rope(b, &edited)
                || (rope(a, &before).is_none() && a.op != b.op)
        });
        let names: Vec<At> = differ.map(|(a, _)| a.at).collect();
        assert_eq!(names, [at_of(&edit)]);
        let text = serde_json::to_string(&edit).unwrap();
        assert_eq!(serde_json::from_str::<Edit>(&text).unwrap(), edit, "{text}");
    }
}

#[test]
fn attention_changes_in_all_of_its_ops_and_its_cache() {
    // Layer 0 has a window of 4.
    let edited = one(Edit::Parameter { at: at(Stage::AttnProbs, 0), to: Parameter::Window(Some(7)) }).unwrap();
    assert_eq!(edited.kv(StateId(0)).unwrap().window, Some(7));
    let windows = edited.nodes.iter().filter_map(|node| match &node.op {
        Op::AttnScores(a) | Op::AttnProbs(a) | Op::AttnMix(a) if a.state == StateId(0) => Some(a.window),
        _ => None,
    });
    assert_eq!(windows.collect::<Vec<_>>(), [Some(7); 3]);
    let narrower = one(Edit::Parameter { at: at(Stage::AttnProbs, 0), to: Parameter::Window(Some(2)) }).unwrap();
    assert_eq!(narrower.kv(StateId(0)).unwrap().window, Some(4));
}

#[test]
fn what_cannot_be_is_said_with_the_value() {
    let bypass = |stage, layer, input| Edit::Bypass { at: at(stage, layer), input };
    let given = |shape: &[usize]| Given {
        name: "from:x".into(),
        first: 0,
        tensor: Arc::new(Tensor::new(shape.to_vec(), vec![1.0; shape.iter().product()]).unwrap()),
    };
    let (hidden, q) =
        (plan().node(plan().find(at(Stage::LayerOut, 0)).unwrap()).width, plan().node(plan().find(at(Stage::QProj, 0)).unwrap()).width);
    let some = |choose: fn(&mut Intervention), stage| {
        let mut with = Intervention::of(Change::Zero);
        choose(&mut with);
        Edit::Intervene { at: at(stage, 1), with }
    };
    for (edit, expected) in [
        (bypass(Stage::FfnOut, 9, 0), "L9 ffn_out: this model has layers 0 to 2"),
        (bypass(Stage::QNorm, 1, 0), "L1 q_norm: this model has no such value (nearest"),
        (bypass(Stage::FfnOut, 1, 1), "`linear` reads 1 values, so it has no input 1"),
        (bypass(Stage::FfnOut, 1, 0), "width"),
        (bypass(Stage::LayerIn, 1, 0), "changes nothing"),
        (Edit::Parameter { at: at(Stage::FfnOut, 1), to: Parameter::Eps(1.0) }, "made by `linear`, which has no eps"),
        (Edit::Parameter { at: at(Stage::FfnOut, 1), to: Parameter::Divisor(0.0) }, "no number to compute with"),
        (Edit::Parameter { at: at(Stage::FfnOut, 1), to: Parameter::Divisor(1.0) }, "that is so already"),
        (Edit::Read { at: at(Stage::FfnIn, 1), input: 0, from: at(Stage::LayerOut, 2) }, "before it is computed"),
        (Edit::Rope { at: at(Stage::FfnOut, 1), to: plan().ropes[0].clone() }, "has no position encoding"),
        (intervene(Stage::LayerIn, 1, Change::Zero), "it is L0 layer_out under another name"),
        (intervene(Stage::LogitsFinal, 0, Change::Scale(1.0)), ""),
        (intervene(Stage::FfnOut, 1, Change::Scale(1.0)), "scale:1 changes nothing"),
        (intervene(Stage::FfnOut, 1, Change::Scale(f64::NAN)), "not finite"),
        (intervene(Stage::FfnOut, 1, Change::Set(given(&[3]))), "expected ["),
        (
            intervene(Stage::LayerOut, 1, Change::Set(given(&[2, hidden]))),
            "every token should be set, but it has values of tokens 0 to 1 only",
        ),
        (intervene(Stage::QProj, 1, Change::Add { given: given(&[q]), factor: 0.0 }), "changes nothing"),
        (some(|i| i.heads = Some(vec![(0, 0)]), Stage::FfnOut), "not made of heads"),
        (some(|i| i.heads = Some(vec![(2, 9)]), Stage::QProj), "so there is no head 9"),
        (some(|i| (i.heads, i.dims) = (Some(vec![(0, 0)]), Some(vec![(4, 4)])), Stage::QProj), "it has elements 0 to 3"),
        (some(|i| i.tokens = Some(vec![]), Stage::QProj), "no token is chosen"),
    ] {
        let error = one(edit.clone()).expect_err("it cannot be");
        assert!(error.message.contains(expected), "{edit:?}: {error}");
    }
}

#[test]
fn interventions_print_as_they_are_said_and_count_in_the_fingerprint() {
    let zero = |layer| intervene(Stage::FfnOut, layer, Change::Zero);
    let mut part = Intervention::of(Change::Scale(0.5));
    (part.tokens, part.heads) = (Some(vec![(3, 3), (5, usize::MAX)]), Some(vec![(1, 1)]));
    let edited = apply(&plan(), &[zero(0), zero(1), Edit::Intervene { at: at(Stage::QRope, 2), with: part }]).unwrap();
    assert_eq!(edited.edited(), ["ffn_out@0-1=zero", "q_rope@2,token=3,5-,head=1=scale:0.5"]);
    assert_ne!(edited.fingerprint(), plan().fingerprint());
    assert_eq!(edited.unedited(), plan());
    let given = |x: f32| Given { name: "add:v".into(), first: 0, tensor: Arc::new(Tensor::new(vec![2], vec![0.5, x]).unwrap()) };
    assert_ne!(format!("{:?}", given(1.0)), format!("{:?}", given(2.0)));
}

/// An edit of some value, sensible or not.
fn any_edit() -> impl Strategy<Value = Edit> {
    let stages: Vec<Stage> = plan().stages();
    (0..stages.len(), 0..4usize, 0..9usize, 0..3usize, -2.0..2.0f64).prop_map(move |(stage, layer, kind, input, x)| {
        let at = at(stages[stage], layer);
        let with = Intervention { tokens: Some(vec![(input, input + 2)]), ..Intervention::of(Change::Scale(x)) };
        let to =
            [Parameter::Scale(x), Parameter::Eps(x), Parameter::Divisor(x), Parameter::Multiplier(x), Parameter::Window(Some(input + 1))];
        match kind {
            0..=4 => Edit::Parameter { at, to: to[kind] },
            5 => Edit::Bypass { at, input },
            6 => Edit::Read { at, input, from: super::tests::at(stages[(stage * 7 + layer) % stages.len()], input) },
            7 => Edit::Rope { at, to: RopeConfig::plain(10.0 + x, 4) },
            _ => Edit::Intervene { at, with },
        }
    })
}

/// What an edit touches: attention's parameters are those of all its ops.
fn place(edit: &Edit) -> (Option<usize>, String) {
    let attention = matches!(at_of(edit).stage, Stage::AttnScores | Stage::AttnProbs | Stage::AttnCoreOut);
    (at_of(edit).layer, if attention { "attention".into() } else { at_of(edit).stage.name().into() })
}

proptest! {
    #[test]
    fn an_edited_plan_keeps_the_rules_or_is_refused(edits in proptest::collection::vec(any_edit(), 1..4)) {
        if let Ok(edited) = apply(&plan(), &edits) {
            prop_assert_eq!(verify(&edited), Ok(()));
            // Two edits may undo each other; one never does nothing.
            prop_assert!(edits.len() > 1 || edited != plan());
        }
    }
    #[test]
    fn edits_of_different_places_commute(a in any_edit(), b in any_edit()) {
        prop_assume!(place(&a) != place(&b));
        let (one, other) = (apply(&plan(), &[a.clone(), b.clone()]), apply(&plan(), &[b, a]));
        prop_assert_eq!(one.ok(), other.ok());
    }
}

/// The value that an edit changes.
fn at_of(edit: &Edit) -> At {
    match edit {
        Edit::Parameter { at, .. }
        | Edit::Read { at, .. }
        | Edit::Bypass { at, .. }
        | Edit::Rope { at, .. }
        | Edit::Intervene { at, .. } => *at,
        other => panic!("{other:?} changes no value by its place"),
    }
}
