//! Patching over the oracle with a random model: what must come back does.

use super::*;
use crate::cpu::CpuExecutor;
use crate::exec::{Storage, WeightSink};
use crate::inference::pipeline;
use crate::plan::WeightId;
use crate::quant::Format;
use pollster::block_on;

fn executor() -> CpuExecutor<f32> {
    let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
    let mut executor = CpuExecutor::new(plan.clone(), Storage::F32).unwrap();
    for (i, slot) in plan.weights.iter().enumerate() {
        let value = |j: usize| ((i * 31 + j * j * 7 + j * 13) % 65) as f32 / 32.0 - 1.0;
        let bytes: Vec<u8> = (0..slot.elements()).flat_map(|j| value(j).to_le_bytes()).collect();
        executor.put(WeightId(i), Format::F32, 0, bytes.into()).unwrap();
    }
    executor
}

fn asked<'a>(clean: &'a [u32], corrupted: &'a [u32]) -> Question<'a> {
    let (stage, column) = (Stage::LayerOut, Column::Token);
    Question { clean, corrupted, stage, column, layers: None, answer: Some(1), against: Some(2), chunk: 3 }
}

#[test]
fn the_last_tokens_stream_brings_everything_back() {
    let mut executor = executor();
    let (clean, corrupted) = ([1u32, 3, 5, 2, 4], [1u32, 3, 6, 2, 4]);
    let mut runs = 0;
    let map = block_on(patch(&mut executor, &asked(&clean, &corrupted), &mut |done, of| {
        runs = done;
        assert_eq!(of, 15);
    }))
    .unwrap();
    assert_eq!((runs, map.first_difference, map.layers.clone()), (15, 2, vec![0, 1, 2]));
    assert!(map.regained.iter().all(|cells| cells[..2] == [0.0, 0.0]), "{map:?}");
    // After the last layer only the last token counts, and it is everything.
    let last = &map.regained[2];
    assert!((last[4] - 1.0).abs() < 1e-4 && last[2].abs() < 1e-4 && last[3].abs() < 1e-4, "{last:?}");
    assert!(executor.plan().interventions().is_empty());
    let heads = Question { stage: Stage::AttnCoreOut, column: Column::Head, ..asked(&clean, &corrupted) };
    let map = block_on(patch(&mut executor, &heads, &mut |_, _| {})).unwrap();
    assert!(map.regained.iter().all(|cells| cells.len() == 2), "{map:?}");
    let page = html(&map, &[], &|id| format!("<{id}>"), &["a&b".into(), "b".into()], &[]);
    assert!(page.contains("a&amp;b") && page.contains("&lt;1&gt;") && !page.contains("http"), "{page}");
}

#[test]
fn contributions_add_up_to_the_difference() {
    let executor = executor();
    let ids = [1u32, 3, 5, 2];
    let (logits, _) = block_on(run(&executor, &ids, 2, &[])).unwrap();
    let parts = block_on(contributions(&executor, &ids, 2, 4, 7)).unwrap();
    let (sum, whole) = (parts.iter().map(|part| part.difference).sum::<f64>(), f64::from(logits[4]) - f64::from(logits[7]));
    assert!((sum - whole).abs() < 1e-4 * whole.abs().max(1.0), "{sum} and {whole}");
    assert_eq!((parts.len(), parts[0].at.stage), (7, Stage::EmbedOut));
}

#[test]
fn what_cannot_be_compared_is_said() {
    let mut executor = executor();
    let mut refused = |asked: Question<'_>| block_on(patch(&mut executor, &asked, &mut |_, _| {})).unwrap_err().message;
    assert!(refused(asked(&[1, 2], &[1])).contains("2 and 1 tokens"));
    assert!(refused(asked(&[1, 2], &[1, 2])).contains("the same tokens"));
    assert!(refused(Question { stage: Stage::AttnProbs, ..asked(&[1, 2], &[1, 3]) }).contains("no row of every token"));
    assert!(refused(Question { stage: Stage::QNorm, ..asked(&[1, 2], &[1, 3]) }).contains("this model has no q_norm"));
    assert!(refused(Question { layers: Some(&[7]), ..asked(&[1, 2], &[1, 3]) }).contains("layer 7 has no layer_out"));
    assert!(refused(Question { column: Column::Head, ..asked(&[1, 2], &[1, 3]) }).contains("not made of heads"));
    assert!(refused(Question { answer: Some(2), ..asked(&[1, 2], &[1, 3]) }).contains("token 2 is both"));
    assert!(refused(Question { answer: Some(9999), ..asked(&[1, 2], &[1, 3]) }).contains("no id 9999"));
}
