//! What the files show without running anything: weights that are no numbers, a head that is stored twice and differs,
//! tensors that are 0 or equal to another one. Only the first two are faults by themselves.

use super::Cause;
use super::report::{Fault, Fix, Site, Suspect, Verdict};
use super::trial::{Patient, Trial};
use crate::debug::weight_source::Edited;
use crate::error::Result;
use crate::formats::ByteSource;
use crate::loader::Matched;
use crate::plan::WeightId;
use crate::plan::edit::Slot;
use std::collections::HashMap;

/// Examines the weights of `patient`; what is a fault by itself is returned.
///
/// # Errors
/// Those of reading the files.
pub async fn weights<S: ByteSource>(patient: &Patient<'_, S>, matched: &Matched, verdict: &mut Verdict) -> Result<Vec<Fault>> {
    let trial = Trial::new(patient, &[])?;
    let stored = trial.stored(patient);
    let source = Edited::new(&stored, &trial.plan, &[]);
    let (mut faults, mut seen) = (Vec::new(), HashMap::<u64, Slot>::new());
    for id in (0..trial.plan.weights.len()).map(WeightId) {
        let (slot, values) = (Slot::of(&trial.plan, id), source.whole(id).await?);
        let tensor = trial.tensor(patient, slot);
        let odd: Vec<usize> = (0..values.len()).filter(|i| !values[*i].is_finite()).collect();
        let site = Site { layer: slot.layer, tensor: tensor.clone(), ..Site::default() };
        let name = tensor.unwrap_or_default();
        if let Some(first) = odd.first() {
            let evidence = vec![format!("{} elements of {name} are NaN or Inf, the first is number {first}", odd.len())];
            let fix = Fix { text: format!("fetch or convert the checkpoint again: {name} is damaged"), ..Fix::default() };
            faults.push(Fault { cause: Cause::CorruptWeight, site, fix: Some(fix), evidence });
            continue;
        }
        let matrix = trial.plan.weights[id.0].shape.len() > 1;
        if matrix && values.iter().all(|x| *x == 0.0) {
            verdict.suspects.push(Suspect { cause: Cause::CorruptWeight, site, why: format!("every element of {name} is 0") });
            continue;
        }
        let hash = xxhash_rust::xxh64::xxh64(bytemuck::cast_slice(&values), 0);
        if let Some(other) = seen.insert(hash, slot).filter(|_| matrix) {
            let why = format!("{name} is equal to {} of layer {:?}, element by element", other.role.name(), other.layer);
            let cause = if other.role == slot.role { Cause::SwappedLayers } else { Cause::SwappedTensors };
            verdict.suspects.push(Suspect { cause, site, why });
        }
    }
    verdict.examined.push(format!("{} weights: NaN, Inf, tensors of zeros, tensors equal to another", trial.plan.weights.len()));
    faults.extend(head_copy(patient, matched).await?);
    Ok(faults)
}

/// A head that is stored although it is tied, and is not the embedding.
async fn head_copy<S: ByteSource>(patient: &Patient<'_, S>, matched: &Matched) -> Result<Option<Fault>> {
    let Some((head, table)) = matched.head_copy else { return Ok(None) };
    let entries = patient.checkpoint.index.entries();
    let (head, table) = (&entries[head], &entries[table]);
    let sources = &patient.checkpoint.sources;
    let (a, b) = (sources[head.file].read(head.range.clone()).await?, sources[table.file].read(table.range.clone()).await?);
    if a == b {
        return Ok(None);
    }
    let site = Site { tensor: Some(head.name.clone()), config_key: Some("tie_word_embeddings".into()), ..Site::default() };
    let evidence = vec![format!("the config ties the head to the embedding, but {} is stored and differs from {}", head.name, table.name)];
    let mut fix = Fix { text: "in config.json, set `tie_word_embeddings` to false".into(), applicable: true, ..Fix::default() };
    fix.config.insert("tie_word_embeddings".into(), false.into());
    Ok(Some(Fault { cause: Cause::TiedHead, site, fix: Some(fix), evidence }))
}
