//! The oracle against Hugging Face: every folder of `tests/data` holds a tiny model and `golden.safetensors`, which
//! `src/debug/reference/make_tiny.py` wrote from transformers (float32, eager): every stage of the prompt, greedy ids.
//! `cargo test golden_cpu -- --nocapture` prints the worst stage of every model.

use crate::golden::goldens;
use doppler::exec::Storage;
use doppler::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Relative L2 distance that the oracle keeps to at every stage. Float32 in another order of summation, which is all
/// that differs, was measured at 2.2e-6 at most on these models.
const TOLERANCE: f64 = 1e-5;

/// |a − b| / |b|, both as vectors; infinite where shapes differ or a is not finite.
fn relative_l2(a: &Tensor, b: &Tensor) -> f64 {
    if a.shape != b.shape || a.data.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let distance = norm(&mut a.data.iter().zip(&b.data).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    if distance == 0.0 { 0.0 } else { distance / norm(&mut b.data.iter().map(|b| f64::from(*b))) }
}

/// The largest distance of `found` from `expected` and its key.
fn worst<'a>(found: &BTreeMap<String, Tensor>, expected: &'a BTreeMap<String, Tensor>) -> (f64, &'a str) {
    let distance = |(key, expected): (&'a String, _)| (found.get(key).map_or(f64::INFINITY, |f| relative_l2(f, expected)), key.as_str());
    expected.iter().map(distance).fold((0.0, ""), |worst, next| if next.0 > worst.0 { next } else { worst })
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is the point of --nocapture")]
fn every_stage_agrees_with_transformers() {
    println!("{:20} {:>6} {:>10} worst stage (f32 from golden)  {:>10} {:>10}", "model", "stages", "rel L2", "f64-golden", "f64-f32");
    let mut failures = Vec::new();
    for golden in goldens() {
        let found = golden.stages(&golden.oracle::<f32>(Storage::F32));
        let exact = golden.stages(&golden.oracle::<f64>(Storage::F32));
        let values = golden.values_and_cached();
        let (distance, key) = worst(&found, &values);
        let ((reference, _), (floor, _)) = (worst(&exact, &values), worst(&found, &exact));
        println!("{:20} {:6} {distance:10.2e} {key:30}  {reference:10.2e} {floor:10.2e}", golden.name, values.len());

        for (key, expected) in &values {
            match found.get(key) {
                None => failures.push(format!("{}: the plan has no {key}, which transformers shows", golden.name)),
                Some(value) if value.shape != expected.shape => {
                    failures.push(format!("{}: {key} has shape {:?}, expected {:?}", golden.name, value.shape, expected.shape));
                }
                Some(value) if relative_l2(value, expected) > TOLERANCE => {
                    failures.push(format!("{}: {key} is off by {:.2e}", golden.name, relative_l2(value, expected)));
                }
                Some(_) => {}
            }
        }
        let shown: BTreeSet<&String> = values.keys().collect();
        failures.extend(found.keys().filter(|k| !shown.contains(k)).map(|k| format!("{}: the golden file has no {k}", golden.name)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn greedy_ids_agree_with_transformers_in_any_chunks() {
    for golden in goldens() {
        let executor = golden.oracle::<f32>(Storage::F32);
        for chunk in [golden.prompt.len() + golden.generated.len(), 7, 1] {
            assert_eq!(golden.greedy(&executor, chunk), golden.generated, "{}, prompt in steps of {chunk}", golden.name);
        }
    }
}
