//! The meter over made-up logits, and its lines.

use super::measure::{Agreement, Meter};
use super::windows::Window;
use crate::error::Kind;
use crate::tensor::Tensor;

/// Two windows after BOS (id 9): tokens 0 to 3 of a text.
fn windows() -> Vec<Window> {
    vec![Window { ids: vec![9, 0, 1], added: 1, first: 0 }, Window { ids: vec![9, 1, 0], added: 1, first: 2 }]
}

/// Logits of three ids, the last of which is padding, for every predicting place.
fn measured(a: [[f32; 3]; 4], b: [[f32; 3]; 4]) -> crate::Result<Agreement> {
    let (windows, mut meter) = (windows(), Meter::new(2));
    let rows = |all: &[[f32; 3]; 4], number: usize| {
        // The window's last row, which predicts nothing, is there too.
        let data = [all[2 * number], all[2 * number + 1], [f32::NAN; 3]].concat();
        Tensor::new(vec![3, 3], data).unwrap()
    };
    for (number, window) in windows.iter().enumerate() {
        meter.take(number, window, 0, &rows(&a, number), &rows(&b, number));
    }
    meter.finish(&windows, 4)
}

#[test]
fn figures_are_those_of_the_definitions() {
    let three = 3f32.ln();
    // p = (1/2, 1/2) in A throughout; B has (1/4, 3/4) at the third token. Padding would win, and must not count.
    let even = [0.0, 0.0, 50.0];
    let b = [even, even, [0.0, three, -9.0], even];
    let found = measured([even; 4], b).unwrap();
    let kl = 0.5 * (4.0f64 / 3.0).ln();
    assert_eq!((found.tokens, found.windows, found.window, found.complete), (4, 2, 3, true));
    assert!((found.kl.mean - kl / 4.0).abs() < 1e-8 && (found.kl.max - kl).abs() < 1e-8);
    assert_eq!((found.kl.median, found.kl.p90, found.kl.max_token), (0.0, found.kl.max, 2));
    // The true token there is id 1, which B gives 3/4. Perplexity of A is 2.
    assert!((found.a.perplexity - 2.0).abs() < 1e-12 && found.a.error < 1e-12);
    let step = (0.75f64 / 0.5).ln();
    assert!((found.ratio.value - (-step / 4.0).exp()).abs() < 1e-7);
    // Differences (0, 0, −step, 0): s² = step²/4, so s/√4 = step/4.
    assert!((found.ratio.error - found.ratio.value * step / 4.0).abs() < 1e-7);
    assert!((found.delta_log_p - step / 4.0).abs() < 1e-7);
    // 3/4 for 1/2 at one token of four: √((1/4)²/4).
    assert!((found.delta_p - 0.125).abs() < 1e-8);
    // Ties go to the first id: B's best is another one at the third token.
    assert_eq!(found.same_top.value, 0.75);
    assert!((found.same_top.error - (0.75f64 * 0.25 / 4.0).sqrt()).abs() < 1e-15);
    let worst = &found.worst[..];
    assert_eq!((worst.len(), worst[0].token, worst[0].window, worst[0].position), (1, 2, 1, 1));
    assert_eq!((&worst[0].before[..], worst[0].expected.id, &worst[0].after[..]), (&[9][..], 1, &[0][..]));
    assert!((worst[0].expected.b - 0.75).abs() < 1e-7 && worst[0].top_a.id == 0 && worst[0].top_b.id == 1);

    let line = found.text();
    for part in
        ["AGREEMENT tokens=4 ", " klMax=0.143841@t2 ", " sameTop=75.000%±21.651 ", " perplexityA=2.0000±0.0000 ", " ratio=0.903602±"]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(found.anomaly().is_none() && !line.contains("incomplete"));
    let shown = |ids: &[u32]| ids.iter().map(|id| format!("<{id}>")).collect::<String>();
    let lines = found.worst_lines(&shown);
    assert!(lines[0].starts_with("WORST 1 kl=0.143841 token=2 window=1 position=1 expected=\"<1>\"(id=1,a=0.5,b=0.75)"), "{lines:?}");
    assert!(lines[0].ends_with("text=\"<9>«<1>»<0>\""), "{lines:?}");
}

#[test]
fn equal_rows_diverge_by_nothing_and_broken_ones_are_left_out() {
    let row = [0.3, -1.7, 0.0];
    let same = measured([row; 4], [row; 4]).unwrap();
    assert_eq!(
        (same.kl.mean, same.kl.max, same.same_top.value, same.delta_log_p + same.delta_p, same.ratio.value),
        (0.0, 0.0, 1.0, 0.0, 1.0)
    );
    assert!(same.worst.is_empty());

    let nan = [f32::NAN, 0.0, 0.0];
    let padding = [0.3, -1.7, f32::NAN];
    let found = measured([row, row, padding, row], [row, nan, padding, nan]).unwrap();
    assert_eq!((found.tokens, found.complete, found.kl.max), (2, true, 0.0));
    assert_eq!((found.non_finite.a, found.non_finite.b, found.non_finite.first), (0, 2, Some(1)));
    assert!(found.anomaly().unwrap().starts_with("ANOMALY kind=non_finite_logits stage=logits_final token=1 a=0 b=2"));
    assert_eq!(measured([nan; 4], [row; 4]).unwrap_err().kind, Kind::Finding);

    // What B rules out altogether is an infinite divergence, said as a text in JSON.
    let out = [0.0, f32::NEG_INFINITY, 0.0];
    let found = measured([row; 4], [row, row, out, row]).unwrap();
    assert_eq!(serde_json::to_value(&found).unwrap()["kl"]["max"], "Inf");
    assert!(found.text().contains("klMax=Inf@t2"), "{}", found.text());
}

#[test]
fn threads_give_what_one_thread_gives() {
    // 24 rows of 65,536 logits are worth threads, one row is not.
    let (rows, vocab) = (24, 1 << 16);
    let logits = |salt: u32| -> Vec<f32> {
        (0..rows * vocab).map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(salt) >> 8) as f32 / 4e6).collect()
    };
    let (a, b) = (logits(0), logits(1 << 27));
    let window = Window { ids: (0..=rows as u32).collect(), added: 0, first: 0 };
    let tensor = |data: &[f32]| Tensor::new(vec![data.len() / vocab, vocab], data.to_vec()).unwrap();
    let (mut together, mut alone) = (Meter::new(vocab), Meter::new(vocab));
    together.take(0, &window, 0, &tensor(&a), &tensor(&b));
    for (row, (a, b)) in a.chunks(vocab).zip(b.chunks(vocab)).enumerate() {
        alone.take(0, &window, row, &tensor(a), &tensor(b));
    }
    let windows = [window];
    assert_eq!(together.finish(&windows, rows).unwrap(), alone.finish(&windows, rows).unwrap());
}
