//! Spelling of numbers, joined statistics, JSON.

use super::*;
use crate::cpu::stats::stats;
use crate::plan::Stage;

const AT: At = At { stage: Stage::FfnOut, layer: Some(3) };

fn summary(values: &[f32], first_token: usize) -> Summary {
    Summary::new(&stats(values, 4), AT, first_token, values.len() / 4, None)
}

#[test]
fn numbers_give_back_their_bits() {
    for x in [12.25f32, 0.1, 1e-30, -3.4e38, 1.0, -0.0, 16_777_217.0, 1.0e-45, 123_456.79] {
        for text in [number(x), padded(x)] {
            assert_eq!(text.parse::<f32>().unwrap().to_bits(), x.to_bits(), "{text}");
        }
    }
    assert_eq!([number(f32::NAN), number(f32::INFINITY), padded(f32::NEG_INFINITY)], ["NaN", "Inf", "-Inf"]);
    assert_eq!([padded(12.25), padded(-3.0), padded(0.123_456), padded(1e-9)], ["12.2500", "-3.0000", "0.123456", "1e-9"]);
    assert_eq!(
        [significant(1.0 / 3.0), significant(12345.678), significant(0.0), significant(f64::NAN)],
        ["0.333333", "12345.7", "0.0", "NaN"]
    );
    assert_eq!(significant(1e300), "Inf");
}

#[test]
fn joined_statistics_are_those_of_the_whole() {
    let values: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 - 4.5).collect();
    let mut joined = summary(&values[..8], 0);
    joined.join(&summary(&values[8..12], 2));
    joined.join(&summary(&values[12..], 3));
    let whole = summary(&values, 0);
    assert!((joined.mean - whole.mean).abs() < 1e-6 && (joined.rms - whole.rms).abs() < 1e-6);
    let exact = |s: &Summary| (s.count, s.max_abs, s.token, s.dim, s.min, s.max, s.zero);
    assert_eq!(exact(&joined), exact(&whole));

    let mut broken = summary(&[1.0, f32::INFINITY, 2.0, 0.0], 0);
    broken.join(&summary(&[9.0; 4], 1));
    assert_eq!((broken.max_abs, broken.token, broken.max, broken.inf), (f32::INFINITY, 0, 9.0, 1));
    broken.join(&summary(&[1.0, 1.0, 1.0, f32::NAN], 2));
    assert!(broken.max_abs.is_nan() && (broken.token, broken.dim) == (2, 3));
}

#[test]
fn places_of_heads() {
    let s = Stats { max_row: 7, max_dim: 5, max_abs: 1.0, ..Stats::default() };
    let scores = At { stage: Stage::AttnProbs, layer: Some(0) };
    let found = Summary::new(&s, scores, 10, 3, None);
    assert_eq!((found.head, found.token, found.dim), (Some(2), 11, 5));
    assert!(found.text(scores).starts_with("maxAbs=1.0@h2,t11,p5 mean="));
    let found = Summary::new(&s, At { stage: Stage::QProj, layer: Some(0) }, 10, 8, Some(4));
    assert!(found.text(At { stage: Stage::QProj, layer: Some(0) }).starts_with("maxAbs=1.0@t17,d5 head=1 mean="));
    assert_eq!(Summary::new(&s, scores, 10, 0, Some(0)).token, 10);
}

#[test]
fn json_keeps_what_is_not_finite() {
    let text = serde_json::to_string(&summary(&[1.0, f32::NEG_INFINITY, f32::NAN, 0.0], 0)).unwrap();
    assert!(text.contains(r#""maxAbs":"NaN""#) && text.contains(r#""head":null"#), "{text}");
    let again: Summary = serde_json::from_str(&text).unwrap();
    assert!(again.max_abs.is_nan() && again.inf == 1);
    let told = Record::Told(ToldRecord { category: "loader".into(), text: "x".into() });
    assert_eq!(serde_json::to_string(&told).unwrap(), r#"{"type":"told","category":"loader","text":"x"}"#);
    assert_eq!(told.line(12.345), "[12.3ms][TRACE:loader] x");
}

#[test]
fn a_sink_refuses_records_of_its_own() {
    let told = || Record::Told(ToldRecord { category: "perf".into(), text: String::new() });
    let cell: Rc<RefCell<Option<Sink<'_>>>> = Rc::default();
    let inner = cell.clone();
    let sink = Sink::new(move |record| inner.borrow().as_ref().map_or(Ok(()), |sink| sink.put(record)));
    *cell.borrow_mut() = Some(sink.clone());
    assert!(sink.put(told()).is_err());
    *cell.borrow_mut() = None;
    assert!(sink.put(told()).is_ok());
}
