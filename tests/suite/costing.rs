//! What packing costs: the built-in model packed in memory, against the original; which tensors it comes from, what a
//! budget of bits buys, and what knowing the importance of columns is worth.

mod packed;

use crate::agreeing::{Edited, agreement, demo, fill, stored, windows};
use crate::golden::Golden;
use crate::support::{everything, observe};
use doppler::cpu::CpuExecutor;
use doppler::debug::agreement::Window;
use doppler::debug::attribution::{Attribution, Text, attribute, noise};
use doppler::debug::budget::{Ask, FORMATS, Suggestion, suggest};
use doppler::debug::cost::{after, bits, cost, f16_formats, recipe_formats};
use doppler::debug::exam::{items, sit};
use doppler::debug::importance::{collect, of_weights};
use doppler::debug::weight_source::{Encoded, Stored, WeightSource};
use doppler::exec::{Executor, Storage};
use doppler::inference::chat::ChatTemplate;
use doppler::inference::tokenizer::{Tokenizer, TokenizerConfig};
use doppler::model::WeightRole;
use doppler::plan::{Op, Plan, WeightId, WeightSlot};
use doppler::quant::Format;
use doppler::quant::importance::Importance;
use doppler::quant::recipe::{Keep, ModelFacts, Recipe};
use pollster::block_on;
use std::ops::ControlFlow;

type Oracle = CpuExecutor<f32>;

/// An executor of `plan` with the weights of `source`.
fn filled(plan: &Plan, source: &impl WeightSource) -> Oracle {
    fill(plan, CpuExecutor::new(plan.clone(), Storage::F32).expect("a plan"), source)
}

/// The built-in model in `format`, all its matrices.
fn uniform(demo: &Golden, source: &impl WeightSource, format: Format, importance: &[Option<Vec<f32>>]) -> Oracle {
    let formats = recipe_formats(&demo.plan, &Recipe::uniform(format));
    filled(&demo.plan, &Encoded::new(source, &demo.plan, formats, importance))
}

const FACTS: ModelFacts = ModelFacts { tied: true, queries_per_kv: 2 };

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn coarser_formats_cost_more_and_f16_is_the_floor() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 3);
    let (checkpoint, matched) = stored(&demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let (plan, before) = (&demo.plan, matched.formats());
    let original = demo.oracle::<f32>(Storage::F32);
    let mut last = 0.0;
    for format in [Format::Q8_0, Format::Q4K, Format::Q2K] {
        let formats = after(&before, &recipe_formats(plan, &Recipe::uniform(format)));
        let floor = || {
            let rounded = filled(plan, &Encoded::new(&source, plan, f16_formats(plan), &[]));
            Ok((rounded, after(&before, &f16_formats(plan))))
        };
        let packed = (uniform(&demo, &source, format, &[]), &formats[..]);
        let mut heard = Vec::new();
        let found = block_on(cost(&original, packed, floor, &windows, plan.vocab_size, &mut |p| {
            heard.push((p.done, p.of));
            ControlFlow::Continue(())
        }))
        .expect("a cost");
        println!("{}", found.lines().join("\n"));
        let (kl, floor) = (found.packed.agreement.kl.mean, found.floor.as_ref().expect("a floor").agreement.kl.mean);
        // The same figures as of an agreement of the two.
        let again = agreement(&original, &uniform(&demo, &source, format, &[]), &windows);
        assert_eq!(found.packed.agreement, again);
        assert!(kl > last && floor < kl && found.is_complete(), "{format}: {kl} {floor}");
        assert!(heard.is_sorted() && heard.last().is_some_and(|(done, of)| done == of), "{heard:?}");
        let vectors: usize = plan.weights.iter().filter(|slot| slot.shape.len() == 1).map(|slot| slot.elements()).sum();
        let all: usize = plan.weights.iter().map(|slot| slot.elements()).sum();
        let expected = (16.0 * vectors as f64 + format.bits() * (all - vectors) as f64) / all as f64;
        assert!((found.packed.bits - expected).abs() < 1e-9 && found.packed.formats.contains(&format), "{}", found.packed.bits);
        let lines = found.lines();
        assert!(lines[0].starts_with("FLOOR formats=f16,bf16 bits=16.000 tokens=") && lines[1].contains(" deltaP="), "{lines:?}");
        last = kl;
    }
}

/// Tensors of files with other conventions: norms that hold the 1 which the ops of the other plan add, and queries that hold
/// a part of its factor on scores.
#[test]
fn weights_of_other_conventions_are_the_same_weights() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 1);
    let (checkpoint, matched) = stored(&demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let mut plan = demo.plan.clone();
    let mut norms = Vec::new();
    for node in &mut plan.nodes {
        match &mut node.op {
            Op::RmsNorm { weight, offset, .. } => {
                assert_eq!(*offset, 1.0);
                (*offset, norms) = (0.0, [norms, vec![*weight]].concat());
            }
            Op::AttnScores(attention) | Op::AttnProbs(attention) | Op::AttnMix(attention) => attention.scale *= 2.0,
            _ => {}
        }
    }
    let queries = |id: WeightId| plan.weights[id.0].role == WeightRole::QProj;
    let guilty = plan.weights.iter().position(|slot| slot.label() == "L2 post_ffn_norm").expect("a norm");
    let packed = |id: WeightId, _: usize, x: f32| match id {
        WeightId(id) if id == guilty => 1.25 * (x + 1.0),
        id if norms.contains(&id) => x + 1.0,
        id if queries(id) => x / 2.0,
        _ => x,
    };
    let own = Edited::new(&plan, &source, &packed);
    let found = block_on(noise([&demo.plan, &plan], &source, &own, &mut |_| ControlFlow::Continue(()))).expect("noise");
    assert_eq!((found.tensors.len(), found.tensors[0].noise.id), (1, WeightId(guilty)));
    let (exact, mut executor) = (demo.oracle::<f32>(Storage::F32), filled(&plan, &own));
    let text = Text { windows: &windows, valid: plan.vocab_size, most: None };
    let found =
        block_on(attribute(&exact, &mut executor, &source, &own, text, &mut |_| ControlFlow::Continue(()))).expect("an attribution");
    let restored = found.tensors[0].restored.expect("restored");
    assert!(restored.share > 0.999_999 && restored.kl < 1e-12, "{}", found.tensors[0].text());
}

/// A tensor whose blocks are damaged is told from formats that are coarse, by what its format could hold.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn damaged_blocks_are_told_from_coarse_ones() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 1);
    let (checkpoint, matched) = stored(&demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let plan = &demo.plan;
    let exact = demo.oracle::<f32>(Storage::F32);
    let attributed = |own: &dyn Fn(WeightId, &mut Vec<u8>), format: Format| -> Attribution {
        let encoded = Encoded::new(&source, plan, recipe_formats(plan, &Recipe::uniform(format)), &[]);
        let own = Damaged { inner: &encoded, damage: own };
        let text = Text { windows: &windows, valid: plan.vocab_size, most: Some(2) };
        block_on(attribute(&exact, &mut filled(plan, &own), &source, &own, text, &mut |_| ControlFlow::Continue(())))
            .expect("an attribution")
    };
    let coarse = attributed(&|_, _| {}, Format::Q2K);
    println!("{}\n{}", coarse.text(), coarse.tensors[0].text());
    assert!(coarse.tensors.iter().all(|t| t.noise.anomaly().is_none()));
    // Our own encoder leaves what it leaves, rows being all that is looked at.
    assert!(coarse.tensors.iter().all(|t| t.noise.attainable.is_some_and(|l2| (l2 / t.noise.relative_l2 - 1.0).abs() < 0.05)));
    let guilty = plan.weights.iter().position(|slot| slot.label() == "L3 down_proj").expect("a down projection");
    // The scale of each block, its first number, is of its neighbour.
    let damage = |id: WeightId, bytes: &mut Vec<u8>| {
        if id.0 == guilty {
            let first: Vec<u8> = bytes[..2].to_vec();
            let blocks = bytes.len() / 144;
            (0..blocks).for_each(|b| {
                let next = if b + 1 < blocks { bytes[(b + 1) * 144..][..2].to_vec() } else { first.clone() };
                bytes[b * 144..][..2].copy_from_slice(&next);
            });
            // And one row in eight lost its mins.
            (0..blocks).step_by(8).for_each(|b| bytes[b * 144 + 2..][..2].fill(0));
        }
    };
    let broken = attributed(&damage, Format::Q4K);
    println!("{}\n{}", broken.text(), broken.tensors[0].text());
    let poor: Vec<String> = broken.tensors.iter().filter_map(|t| t.noise.anomaly()).collect();
    assert!(
        poor.len() == 1
            && poor[0].starts_with("ANOMALY kind=poor_quantisation tensor=model.layers.3.mlp.down_proj.weight role=L3.down_proj value=0."),
        "{poor:?}"
    );
}

/// A source whose bytes are damaged on the way.
struct Damaged<'s, W> {
    inner: &'s W,
    damage: &'s dyn Fn(WeightId, &mut Vec<u8>),
}

impl<W: WeightSource> WeightSource for Damaged<'_, W> {
    fn name(&self, plan: &Plan, id: WeightId) -> String {
        self.inner.name(plan, id)
    }
    async fn rows(&self, id: WeightId, rows: std::ops::Range<usize>) -> doppler::Result<(Format, bytes::Bytes)> {
        let (format, bytes) = self.inner.rows(id, rows).await?;
        let mut bytes = bytes.to_vec();
        (self.damage)(id, &mut bytes);
        Ok((format, bytes.into()))
    }
}

/// Windows of the held-out text to choose by, and others to judge by.
fn halves(tokenizer: &Tokenizer) -> [Vec<Window>; 2] {
    let all = windows(tokenizer, 6);
    [0, 1].map(|odd| all.iter().skip(odd).step_by(2).take(2).cloned().collect())
}

fn suggested(demo: &Golden, tokenizer: &Tokenizer, budget: f64) -> Suggestion {
    let (checkpoint, matched) = stored(demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let (exact, mut executor) = (demo.oracle::<f32>(Storage::F32), demo.oracle::<f32>(Storage::F32));
    let [choosing, judging] = halves(tokenizer);
    let ask = Ask {
        bits: budget,
        formats: &FORMATS,
        facts: FACTS,
        importance: &[],
        choosing: &choosing,
        judging: &judging,
        valid: demo.plan.vocab_size,
    };
    let mut heard = |_: &str, _: usize, _: usize| ControlFlow::Continue(());
    block_on(suggest(&exact, &mut executor, &source, &matched.formats(), &ask, &mut heard)).expect("a suggestion")
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn a_budget_buys_more_than_the_plain_recipe_of_its_size() {
    let (demo, tokenizer) = demo();
    let plan = &demo.plan;
    let (_, matched) = stored(&demo);
    let plain = recipe_formats(plan, &Recipe::mixture("q4_k_m", FACTS).expect("a mixture"));
    let budget = bits(plan, &after(&matched.formats(), &plain));
    let found = suggested(&demo, &tokenizer, budget);
    println!("{}", found.lines().join("\n"));
    assert!(found.complete && found.plain.name == "q4_k_m" && found.suggested.bits <= budget + 1e-9, "{}", found.lines().join("\n"));
    let (ours, theirs) = (found.suggested.kl.expect("judged"), found.plain.kl.expect("judged"));
    assert!(found.is_better() == Some(true) && ours < theirs, "{ours} {theirs}");
    // The lines are the recipe: what they choose has its bits.
    let keep: Vec<Keep> = found.keep.iter().map(|line| Keep::parse(line).expect("a line of a recipe")).collect();
    let formats = recipe_formats(plan, &Recipe::uniform(found.base).keeping(keep));
    assert!((bits(plan, &after(&matched.formats(), &formats)) - found.suggested.bits).abs() < 1e-12);
    for tensor in &found.tensors {
        let at = plan.weights.iter().position(|slot| slot.label() == tensor.role).expect("its slot");
        assert_eq!(formats[at], Some(tensor.chosen), "{}", tensor.role);
    }
    assert!(found.options().starts_with(&format!("--quantize {}", found.base)));
}

#[test]
fn budgets_that_cannot_be_are_refused() {
    let (demo, tokenizer) = demo();
    let (checkpoint, matched) = stored(&demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let windows = windows(&tokenizer, 1);
    let error = |bits: f64, formats: &[Format]| {
        let (exact, mut executor) = (demo.oracle::<f32>(Storage::F32), demo.oracle::<f32>(Storage::F32));
        let valid = demo.plan.vocab_size;
        let ask = Ask { bits, formats, facts: FACTS, importance: &[], choosing: &windows, judging: &windows, valid };
        let mut heard = |_: &str, _: usize, _: usize| ControlFlow::Continue(());
        block_on(suggest(&exact, &mut executor, &source, &matched.formats(), &ask, &mut heard)).map(|_| ()).unwrap_err().message
    };
    assert!(
        error(2.0, &FORMATS).contains("2.0 bits per weight are too few: the smallest of the formats need 2.6"),
        "{}",
        error(2.0, &FORMATS)
    );
    assert!(error(f64::NAN, &FORMATS).contains("expected bits per weight") && error(4.0, &[]).contains("formats to choose from"));
    assert!(error(4.0, &[Format::Iq2S]).contains("iq2_s can be read, not written"));
}

fn importance(demo: &Golden, windows: &[Window]) -> Importance {
    let executor = demo.oracle::<f32>(Storage::F32);
    block_on(collect(&executor, &demo.config.tensors, windows, "text", &mut |_| ControlFlow::Continue(()))).expect("importance")
}

/// The sums are those of the values that a dump of the same tokens would hold.
#[test]
fn importance_is_the_mean_square_of_what_products_read() {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 2);
    let found = importance(&demo, &windows);
    let executor = demo.oracle::<f32>(Storage::F32);
    let values: Vec<_> = windows.iter().map(|w| observe(&executor, &w.ids, &everything(executor.plan()), false)).collect();
    let reads = [
        ("blk.3.attn_q.weight", "layer.3.attn_normed"),
        ("blk.3.attn_v.weight", "layer.3.attn_normed"),
        ("blk.0.attn_output.weight", "layer.0.attn_core_out"),
        ("blk.6.ffn_gate.weight", "layer.6.ffn_in"),
        ("blk.6.ffn_down.weight", "layer.6.ffn_act"),
    ];
    for (tensor, stage) in reads {
        let sums = &found.tensors[tensor];
        let rows: usize = values.iter().map(|v| v[stage].rows()).sum();
        assert_eq!(sums.counts, [rows as f32], "{tensor}");
        for column in [0, 7, sums.columns() - 1] {
            let squares = values.iter().flat_map(|v| (0..v[stage].rows()).map(|row| f64::from(v[stage].row(row)[column]).powi(2)));
            let expected = squares.sum::<f64>();
            assert!((f64::from(sums.squares[column]) / expected - 1.0).abs() < 1e-6, "{tensor} {column}");
        }
    }
    // Seven layers of seven matrices, and the head, which is the embedding.
    assert!(found.tensors.len() == 50 && found.tensors.contains_key("token_embd.weight") && found.chunks == 2);
    let known = of_weights(&found, &demo.plan).expect("its own");
    assert_eq!(known.iter().flatten().count(), 50);
    let error = of_weights(&Importance::default(), &demo.plan).unwrap_err().message;
    assert!(error.contains("of another model"), "{error}");
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn importance_lowers_the_divergence_of_coarse_formats() {
    let (demo, tokenizer) = demo();
    let (checkpoint, matched) = stored(&demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let all = windows(&tokenizer, 24);
    // Measured on other documents than it is judged by.
    let (calibration, judging) = all.split_at(21);
    let known = of_weights(&importance(&demo, calibration), &demo.plan).expect("its own");
    let original = demo.oracle::<f32>(Storage::F32);
    for format in [Format::Q4K, Format::Q3K, Format::Q2K] {
        let kl = |importance: &[Option<Vec<f32>>]| agreement(&original, &uniform(&demo, &source, format, importance), judging).kl.mean;
        let (plain, weighted) = (kl(&[]), kl(&known));
        println!("{format}: {plain:.6} without, {weighted:.6} with importance");
        assert!(weighted < plain, "{format}: {weighted} for {plain}");
    }
}

/// The table of docs/BENCHMARKS.md: size, error, divergence and exam per format.
#[test]
#[ignore = "minutes: it makes the table of docs/BENCHMARKS.md"]
#[expect(clippy::print_stdout, reason = "the table is the point")]
fn table_of_formats() {
    let (demo, tokenizer) = demo();
    let uniform = ["f16", "q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "iq4_xs", "iq4_nl", "q4_0", "mxfp4", "q3_k", "q2_k"];
    let uniform = uniform.map(|name| (format!("all {name}"), Recipe::uniform(Format::parse(name).expect("a format"))));
    let mixtures = ["q5_k_m", "q4_k_m", "q3_k_m", "q2_k"];
    let mixtures = mixtures.map(|name| (format!("mixture {name}"), Recipe::mixture(name, FACTS).expect("a mixture")));
    let all = [&uniform[..], &mixtures].concat();
    let rows: Vec<String> = std::thread::scope(|scope| {
        let start = |(name, recipe)| {
            scope.spawn({
                let (demo, tokenizer) = (&demo, &tokenizer);
                move || row_of(demo, tokenizer, name, recipe)
            })
        };
        let started: Vec<_> = all.iter().map(|(name, recipe)| start((name, recipe))).collect();
        started.into_iter().map(|thread| thread.join().expect("a row")).collect()
    });
    println!(
        "| matrices | bits per weight | relative squared error | mean KL | 99 % KL | largest KL | same top token | RMS Δp | perplexity ratio | exam |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    println!("{}", rows.join("\n"));
}

/// One row of the table.
fn row_of(demo: &Golden, tokenizer: &Tokenizer, name: &str, recipe: &Recipe) -> String {
    let plan = &demo.plan;
    let (checkpoint, matched) = stored(demo);
    let source = Stored { checkpoint: &checkpoint, matched: &matched };
    let formats = recipe_formats(plan, recipe);
    let packed = Encoded::new(&source, plan, formats.clone(), &[]);
    // Of all matrices together: each weighs as much as its squares.
    let squares = |(id, slot): (usize, &WeightSlot)| {
        let (format, bytes) = block_on(source.rows(WeightId(id), 0..slot.shape[0])).expect("rows");
        let matrix = slot.shape.len() == 2;
        format.values(&bytes).expect("values").iter().filter(|_| matrix).map(|x| f64::from(*x).powi(2)).sum::<f64>()
    };
    let squares: Vec<f64> = plan.weights.iter().enumerate().map(squares).collect();
    let noise = block_on(noise([plan; 2], &source, &packed, &mut |_| ControlFlow::Continue(()))).expect("noise");
    let error = noise.tensors.iter().map(|t| t.noise.squared_error * squares[t.noise.id.0]).sum::<f64>() / squares.iter().sum::<f64>();
    let executor = filled(plan, &packed);
    let found = agreement(&demo.oracle::<f32>(Storage::F32), &executor, &windows(tokenizer, usize::MAX));
    let (kl, bits) = (&found.kl, bits(plan, &after(&matched.formats(), &formats)));
    format!(
        "| {name} | {bits:.2} | {error:.1e} | {:.2e} | {:.2e} | {:.2e} | {:.2} % | {:.2} % | {:.5} ± {:.5} | {} |",
        kl.mean,
        kl.p99,
        kl.max,
        100.0 * found.same_top.value,
        100.0 * found.delta_p,
        found.ratio.value,
        found.ratio.error,
        exam(demo, tokenizer, &executor),
    )
}

/// Right answers of the exam, of all.
fn exam(demo: &Golden, tokenizer: &Tokenizer, executor: &Oracle) -> String {
    let read = |name: &str| std::fs::read_to_string(demo.folder.join(name)).expect("a file of the built-in model");
    let words = TokenizerConfig::from_json(read("tokenizer_config.json").as_bytes()).expect("a tokenizer config");
    let template = ChatTemplate::new(None, words.chat_template.as_ref(), &words.named_tokens).expect("a template");
    let items = items(&read("exam.jsonl")).expect("an exam");
    let answers = block_on(sit(executor, tokenizer, template.as_ref(), &items, &mut |_, _| {})).expect("answers");
    format!("{} of {}", answers.iter().filter(|answer| answer.right).count(), answers.len())
}
