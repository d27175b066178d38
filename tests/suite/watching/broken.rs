//! Anomaly rules: quiet on every golden model and on the built-in one, by margins that are printed; each fires on a
//! model that is broken in its way, at the place where it is broken.

use super::{collecting, generate, gpu};
use crate::golden::{Golden, demo, goldens};
use doppler::cpu::CpuExecutor;
use doppler::debug::anomaly::{AnomalyObserver, AnomalyOptions, Margins, Profile, RULES};
use doppler::debug::dump::DumpObserver;
use doppler::debug::observers::Observers;
use doppler::debug::record::{Finding, Record, Sink};
use doppler::exec::{Executor, Storage, WeightSink};
use doppler::gpu::GpuExecutor;
use doppler::model::WeightRole;
use doppler::plan::{At, Plan, WeightId, WeightSlot};
use doppler::quant::Format;
use doppler::{Kind, Result};
use std::cell::RefCell;

/// Changes a weight's elements on their way: slot, row, column, element.
type Break = dyn Fn(&WeightSlot, usize, usize, f32) -> f32;

/// A sink that hands on other weights than it gets.
struct Breaking<'b, S> {
    inner: S,
    plan: Plan,
    edit: &'b Break,
}

impl<S: WeightSink> WeightSink for Breaking<'_, S> {
    fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
        let slot = &self.plan.weights[id.0];
        let columns = slot.elements() / slot.shape[0];
        let edited =
            format.values(&bytes)?.into_iter().enumerate().map(|(i, x)| (self.edit)(slot, first_row + i / columns, i % columns, x));
        let bytes: Vec<u8> = edited.flat_map(f32::to_le_bytes).collect();
        self.inner.put(id, Format::F32, first_row, bytes.into())
    }
}

fn broken<S: WeightSink>(golden: &Golden, executor: S, edit: &Break) -> S {
    golden.filled(Breaking { inner: executor, plan: golden.plan.clone(), edit }).inner
}

fn oracle(golden: &Golden) -> CpuExecutor<f32> {
    CpuExecutor::new(golden.plan.clone(), Storage::F32).expect("a verified plan")
}

fn options(golden: &Golden) -> AnomalyOptions {
    let pad = golden.config.pad_token_id.filter(|id| !golden.config.eos_token_ids.contains(id));
    AnomalyOptions { pad, ..AnomalyOptions::new(golden.prompt.len(), golden.config.vocab_size) }
}

struct Watched {
    findings: Vec<Finding>,
    margins: Margins,
    profile: Profile,
}

/// Twelve greedy tokens of a golden model's prompt, watched.
fn watch<E: Executor>(golden: &Golden, executor: &E, options: AnomalyOptions) -> Watched {
    let records = RefCell::new(Vec::new());
    let mut anomalies = AnomalyObserver::new(executor.plan(), options, collecting(&records));
    let generated = generate(executor, &golden.prompt, 64, golden.generated.len(), &[], Some(&mut anomalies));
    if let Err(error) = &generated {
        assert_eq!(error.kind, Kind::Finding, "{}: {error}", golden.name);
    }
    let found = Watched { findings: anomalies.findings().to_vec(), margins: anomalies.margins(), profile: anomalies.profile() };
    drop(anomalies);
    let emitted = records.into_inner().iter().map(|r| r.line(0.0)).collect::<Vec<_>>();
    assert_eq!(emitted, found.findings.iter().map(Finding::text).collect::<Vec<_>>());
    found
}

fn line(name: &str, m: &Margins) -> String {
    let entropy = m.entropy.map_or(String::new(), |e| format!("{e:.2e}"));
    let place = |at: Option<At>| at.map_or(String::new(), |at| at.to_string());
    format!(
        "{name:24} {:9.2} {:9.2} {:9.3} {:9.4} {entropy:>10} {:7}  {}, {}",
        m.explosion,
        m.collapse,
        m.spike,
        m.flat,
        m.repetitions,
        place(m.explosion_at),
        place(m.collapse_at)
    )
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is the point of --nocapture")]
fn healthy_models_are_quiet() {
    println!(
        "{:24} {:>9} {:>9} {:>9} {:>9} {:>10} {:>7}",
        "model (threshold)", "grow 10", "fall 10", "dim 0.5", "flat .995", "nats 1e-8", "rep. 8"
    );
    let mut failures = Vec::new();
    for golden in goldens() {
        let seen = watch(&golden, &golden.oracle::<f32>(Storage::F32), options(&golden));
        println!("{}", line(&golden.name, &seen.margins));
        failures.extend(seen.findings.iter().map(|f| format!("{}: {}", golden.name, f.text())));
        // A profile of the same run is quiet about it, and again after a way through JSON.
        let (profile, _) = Profile::from_json(&seen.profile.to_json(&golden.name), "profile").expect("a profile");
        let again = watch(&golden, &golden.oracle::<f32>(Storage::F32), AnomalyOptions { profile: Some(profile), ..options(&golden) });
        failures.extend(again.findings.iter().map(|f| format!("{} with its profile: {}", golden.name, f.text())));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Transformers' outcome of a question of the built-in model's exam.
#[derive(serde::Deserialize)]
struct Expected {
    ids: Vec<u32>,
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is the point of --nocapture")]
fn the_built_in_model_is_quiet() {
    let golden = demo();
    let text = std::fs::read_to_string(golden.folder.join("expected.json")).expect("the exam");
    let exam: Vec<Expected> = serde_json::from_str(&text).expect("the exam");
    let executor = golden.oracle::<f32>(Storage::F32);
    let mut margins: Vec<Margins> = Vec::new();
    let mut failures = Vec::new();
    let mut profile: Option<Profile> = None;
    for (i, question) in exam.iter().enumerate().step_by(24) {
        let options = AnomalyOptions { prompt_end: question.ids.len(), ..options(&golden) };
        let mut quiet = AnomalyObserver::new(&golden.plan, options.clone(), Sink::new(|_| Ok(())));
        let mut judged = AnomalyObserver::new(&golden.plan, AnomalyOptions { profile: profile.clone(), ..options }, Sink::new(|_| Ok(())));
        let mut both = Observers::new(&golden.plan, vec![&mut quiet, &mut judged]);
        generate(&executor, &question.ids, 512, 24, &golden.config.eos_token_ids, Some(&mut both)).expect("an answer");
        margins.push(quiet.margins());
        failures.extend(quiet.findings().iter().map(|f| format!("question {i}: {}", f.text())));
        failures.extend(judged.findings().iter().map(|f| format!("question {i} with the others' profile: {}", f.text())));
        // The first eight are the profile that the others are held against.
        if margins.len() < 8 {
            let seen = quiet.profile();
            let mut known = if profile.is_none() { seen.clone() } else { profile.take().unwrap_or_default() };
            known.join(&seen);
            profile = Some(known);
        }
    }
    let most = |f: fn(&Margins) -> f64| margins.iter().map(f).fold(0.0, f64::max);
    let worst = Margins {
        explosion: most(|m| m.explosion),
        explosion_at: margins.iter().max_by(|a, b| a.explosion.total_cmp(&b.explosion)).and_then(|m| m.explosion_at),
        collapse: most(|m| m.collapse),
        collapse_at: margins.iter().max_by(|a, b| a.collapse.total_cmp(&b.collapse)).and_then(|m| m.collapse_at),
        spike: most(|m| m.spike),
        flat: most(|m| m.flat),
        entropy: margins.iter().filter_map(|m| m.entropy).reduce(f64::min),
        repetitions: margins.iter().map(|m| m.repetitions).max().unwrap_or(0),
    };
    println!("{} over {} questions", line("demo", &worst), margins.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A break and what must be found: kind, stage, layer.
struct Case {
    what: &'static str,
    edit: Box<Break>,
    found: (&'static str, Option<&'static str>, Option<usize>),
}

fn case(
    what: &'static str,
    found: (&'static str, Option<&'static str>, Option<usize>),
    edit: impl Fn(&WeightSlot, usize, usize, f32) -> f32 + 'static,
) -> Case {
    Case { what, edit: Box::new(edit), found }
}

/// Scales weight `role` of layer `layer`.
fn scaled(role: WeightRole, layer: Option<usize>, by: f32) -> impl Fn(&WeightSlot, usize, usize, f32) -> f32 {
    move |slot, _, _, x| if slot.role == role && slot.layer == layer { x * by } else { x }
}

fn cases(golden: &Golden) -> Vec<Case> {
    use WeightRole::*;
    let last = golden.plan.num_layers - 1;
    let mut cases = vec![
        case("a NaN in one weight", ("non_finite", Some("ffn_out"), Some(1)), |slot, row, column, x| {
            if slot.role == DownProj && slot.layer == Some(1) && (row, column) == (5, 3) { f32::NAN } else { x }
        }),
        case("an Inf in a norm", ("non_finite", Some("attn_normed"), Some(last)), move |slot, row, _, x| {
            if slot.role == AttnNorm && slot.layer == Some(last) && row == 2 { f32::INFINITY } else { x }
        }),
        case("queries too large", ("explosion", Some("q_proj"), Some(1)), scaled(QProj, Some(1), 1000.0)),
        case("the last gate too large", ("explosion", Some("ffn_gate"), Some(last)), scaled(GateProj, Some(last), 1000.0)),
        case("values too small", ("collapse", Some("v_proj"), Some(1)), scaled(VProj, Some(1), 1e-3)),
        case("weights never filled", ("all_zero", Some("o_proj"), Some(1)), scaled(OProj, Some(1), 0.0)),
        case("one dimension of the embedding", ("dim_spike", Some("embed_out"), None), |slot, _, column, x| {
            if slot.role == Embed && column == 7 { x.signum() * 300.0 } else { x }
        }),
    ];
    let head = if golden.config.tie_word_embeddings { Embed } else { Head };
    let final_norm_off = -(golden.config.norm.weight_offset() as f32);
    cases.push(case("a final norm of nothing", ("flat", Some("logits_final"), None), move |slot, _, _, x| {
        if slot.role == FinalNorm { final_norm_off } else { x }
    }));
    if golden.config.tie_word_embeddings {
        // Only the newest token is left, and its own row is the most like it.
        cases.push(case("layers that add nothing", ("repeated_tokens", None, None), |slot, _, _, x| {
            if matches!(slot.role, OProj | DownProj) { 0.0 } else { x }
        }));
    } else {
        cases.push(case("logits far too large", ("saturated", Some("logits_final"), None), scaled(head, None, 3000.0)));
    }
    if golden.config.final_logit_softcapping.is_some() {
        let by = 3000.0;
        let norm =
            move |slot: &WeightSlot, _, _, x: f32| if slot.role == FinalNorm { (x - final_norm_off) * by + final_norm_off } else { x };
        cases.push(case("logits at their cap", ("saturated", Some("logits_final"), None), norm));
    }
    cases
}

#[test]
fn every_rule_fires_on_a_model_broken_in_its_way() {
    let mut seen: Vec<&str> = Vec::new();
    let mut failures = Vec::new();
    for golden in goldens().iter().filter(|g| ["gemma2", "llama3", "qwen3"].contains(&g.name.as_str())) {
        for case in cases(golden) {
            let found = watch(golden, &broken(golden, oracle(golden), &*case.edit), options(golden)).findings;
            let matches = |f: &&Finding| (f.kind, f.stage, f.layer) == case.found;
            let lines: Vec<String> = found.iter().map(Finding::text).collect();
            match found.iter().find(matches) {
                Some(finding) => seen.push(finding.kind),
                None => failures.push(format!("{}, {}: {:?} not among\n  {}", golden.name, case.what, case.found, lines.join("\n  "))),
            }
            // What began elsewhere is not told twice.
            if matches!(case.found.0, "explosion" | "collapse" | "non_finite")
                && found.iter().filter(|f| f.kind == case.found.0).count() > 1
            {
                failures.push(format!("{}, {}: told twice\n  {}", golden.name, case.what, lines.join("\n  ")));
            }
        }
        seen.push("untrained"); // `an_untrained_model_is_no_fault`
        for kind in ["pad_wins", "padded_row_wins"] {
            seen.push(kind);
            failures.extend(row_wins(golden, kind));
        }
    }
    failures.extend(RULES.iter().filter(|r| !seen.contains(&r.name)).map(|r| format!("no case for {}", r.name)));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Random weights behind norms as a model begins with them are not called broken; a trained model whose logits are lost is.
#[test]
fn an_untrained_model_is_no_fault() {
    use WeightRole::*;
    let kinds = |found: &[Finding]| found.iter().map(|f| f.kind).collect::<Vec<_>>();
    // A tied head cannot be made small without the embedding, whose values would then be those of no initial model.
    let untied: Vec<_> = goldens().into_iter().filter(|g| !g.config.tie_word_embeddings).collect();
    assert!(untied.len() >= 2, "{}", untied.len());
    for golden in &untied {
        let offset = golden.config.norm.weight_offset() as f32;
        for (small, is_flat) in [(0.002, true), (0.1, false)] {
            let head = move |slot: &WeightSlot, x: f32| if slot.role == Head { small * x } else { x };
            let initial = move |slot: &WeightSlot, _: usize, _: usize, x: f32| match slot.role {
                AttnNorm | QNorm | KNorm | PostAttnNorm | FfnNorm | PostFfnNorm | FinalNorm if slot.bias => 0.0,
                AttnNorm | QNorm | KNorm | PostAttnNorm | FfnNorm | PostFfnNorm | FinalNorm => 1.0 - offset,
                DeltaNorm => 1.0,
                _ => head(slot, x),
            };
            let found = watch(golden, &broken(golden, oracle(golden), &initial), options(golden)).findings;
            let kinds = kinds(&found);
            assert!(!kinds.contains(&"flat") && !kinds.contains(&"repeated_tokens"), "{} {small}: {kinds:?}", golden.name);
            assert!(!is_flat || kinds.contains(&"untrained"), "{} {small}: {kinds:?}", golden.name);
        }
    }
    let golden = demo();
    let offset = golden.config.norm.weight_offset() as f32;
    let small = move |slot: &WeightSlot, _: usize, _: usize, x: f32| if slot.role == FinalNorm { (x + offset) * 1e-3 - offset } else { x };
    let executor = broken(&golden, oracle(&golden), &small);
    let found = watch(&golden, &executor, options(&golden)).findings;
    assert!(kinds(&found).contains(&"flat") && !kinds(&found).contains(&"untrained"), "{:?}", kinds(&found));
}

/// Gives a row of the head that must not win three times what the winner has.
fn row_wins(golden: &Golden, kind: &str) -> Option<String> {
    let head = if golden.config.tie_word_embeddings { WeightRole::Embed } else { WeightRole::Head };
    let winner = golden.generated[0] as usize;
    let rows = RefCell::new(Vec::new());
    let keep = |slot: &WeightSlot, row: usize, _: usize, x: f32| {
        if slot.role == head && row == winner {
            rows.borrow_mut().push(x);
        }
        x
    };
    // A closure that borrows cannot be a `Break`: the row is read first, by a sink of its own.
    struct Reader<'r>(&'r dyn Fn(&WeightSlot, usize, usize, f32) -> f32, Plan);
    impl WeightSink for Reader<'_> {
        fn put(&mut self, id: WeightId, format: Format, first_row: usize, bytes: bytes::Bytes) -> Result<()> {
            let slot = &self.1.weights[id.0];
            let columns = slot.elements() / slot.shape[0];
            for (i, x) in format.values(&bytes)?.into_iter().enumerate() {
                (self.0)(slot, first_row + i / columns, i % columns, x);
            }
            Ok(())
        }
    }
    golden.filled(Reader(&keep, golden.plan.clone()));
    let row = rows.into_inner();
    let unused = (0..golden.config.vocab_size as u32).rev().find(|id| !golden.prompt.contains(id) && *id as usize != winner)? as usize;
    let edit = move |slot: &WeightSlot, r: usize, c: usize, x: f32| if slot.role == head && r == unused { 3.0 * row[c] } else { x };
    let mut options = options(golden);
    if kind == "pad_wins" {
        options.pad = Some(unused as u32);
    } else {
        (options.valid_vocab, options.pad) = (unused, None);
    }
    let found = watch(golden, &broken(golden, oracle(golden), &edit), options).findings;
    let hit = found.iter().any(|f| f.kind == kind && f.dim == Some(unused) && f.step == 0);
    (!hit).then(|| format!("{}: {kind} not among {:?}", golden.name, found.iter().map(Finding::text).collect::<Vec<_>>()))
}

#[test]
fn the_gpu_tells_the_same_place() {
    for golden in goldens().iter().filter(|g| g.name == "gemma2") {
        for case in cases(golden).into_iter().filter(|c| ["non_finite", "explosion", "all_zero"].contains(&c.found.0)) {
            let Some(whole) = gpu(golden, Storage::F32) else { return };
            let fresh = GpuExecutor::new(whole.gpu().clone(), golden.plan.clone(), Storage::F32).expect("an executor");
            let found = watch(golden, &broken(golden, fresh, &*case.edit), options(golden)).findings;
            let told = found.iter().any(|f| (f.kind, f.stage, f.layer) == case.found);
            assert!(told, "{}: {:?}", case.what, found.iter().map(Finding::text).collect::<Vec<_>>());
        }
    }
}

/// `stop` ends the run at the first finding, after every observer has seen the step.
#[test]
fn stopping_at_the_first_finding() {
    let golden = goldens().into_iter().find(|g| g.name == "gemma2").expect("a golden model");
    let executor = broken(&golden, oracle(&golden), &scaled(WeightRole::QProj, Some(1), 1000.0));
    let mut dump = DumpObserver::new(&golden.plan, ["q_proj"], None).expect("a stage");
    let lines = RefCell::new(Vec::new());
    let sink = Sink::new(|record: Record| {
        lines.borrow_mut().push(record.line(0.0));
        Ok(())
    });
    let mut anomalies = AnomalyObserver::new(&golden.plan, AnomalyOptions { stop: true, ..options(&golden) }, sink);
    let mut both = Observers::new(&golden.plan, vec![&mut anomalies, &mut dump]);
    let error = generate(&executor, &golden.prompt, 64, 8, &[], Some(&mut both)).expect_err("a finding");
    assert_eq!(error.kind, Kind::Finding);
    assert!(error.message.contains("stopped at the first finding: ANOMALY kind=explosion stage=q_proj layer=1 "), "{error}");
    drop(anomalies);
    assert_eq!((lines.borrow().len(), dump.input_ids().len(), dump.generated_ids().len()), (1, golden.prompt.len(), 1));
}
