//! Seeing what a model computes: observers that sessions offer values to, and readers of what these wrote.
//! Everything here is above inference, which knows none of it.

#[cfg(not(target_arch = "wasm32"))]
pub mod activations;
pub mod agreement;
pub mod anomaly;
pub mod attribution;
pub mod budget;
pub mod bundle;
pub mod categories;
pub mod compare;
pub mod cost;
pub mod doctor;
pub mod dump;
pub mod exam;
pub mod floor;
pub mod html;
pub mod importance;
pub mod interventions;
pub mod lens;
pub mod lines;
pub mod logits_view;
pub mod number;
pub mod observers;
pub mod patching;
pub mod perfetto;
pub mod places;
pub mod probe;
pub mod record;
pub mod self_test;
pub mod sketch;
pub mod summary;
pub mod tokenisation;
pub mod trace;
pub mod watching;
pub mod weight_source;

use crate::error::{Error, Result};
use crate::exec::{Request, Want, match_requests};
use crate::plan::{Plan, Stage};

/// Stages by name (aliases included, `all` for every stage that the model has) as requests of `want`, in the table's
/// order; per-layer stages in `layers`, or in every layer that has them. `sampled` is not a
/// value of the plan: the flag says whether it was named.
///
/// # Errors
/// `Kind::Invalid` for names and layers that this model lacks, naming the nearest; for no name at all.
pub fn select<'a>(
    plan: &Plan,
    names: impl IntoIterator<Item = &'a str>,
    layers: Option<&[usize]>,
    want: &Want,
) -> Result<(Vec<Request>, bool)> {
    let (mut stages, mut all, mut sampled) = (Vec::new(), false, false);
    for name in names {
        match name.trim() {
            "all" => all = true,
            name => match Stage::parse(name)? {
                Stage::Sampled => sampled = true,
                stage => stages.push(stage),
            },
        }
    }
    if stages.is_empty() && !all && !sampled {
        return Err(Error::invalid("stages", "expected at least one name, or `all`"));
    }
    let named = stages.clone();
    if all {
        stages.extend(plan.stages());
    }
    stages.sort_unstable();
    stages.dedup();
    let mut requests = Vec::new();
    for stage in stages {
        let mut wanted = layers.filter(|_| stage.info().per_layer).map(<[usize]>::to_vec);
        if let (false, Some(wanted)) = (named.contains(&stage), &mut wanted) {
            // `all` takes what is there; a stage that was named must be in every layer that was named.
            let having = plan.layers_with(stage);
            wanted.retain(|layer| having.contains(layer) || *layer >= plan.num_layers);
            if wanted.is_empty() {
                continue;
            }
        }
        requests.push(Request { stage, layers: wanted, want: want.clone() });
    }
    match_requests(plan, &requests)?;
    Ok((requests, sampled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::pipeline;

    #[test]
    fn names_aliases_all_and_layers() {
        let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        let of = |names: &[&str], layers: Option<&[usize]>| select(&plan, names.iter().copied(), layers, &Want::Stats);
        let (requests, sampled) = of(&["ffn_out", "attn_out", "sampled", "o_proj"], Some(&[2, 0])).unwrap();
        let found: Vec<_> = requests.iter().map(|r| (r.stage, r.layers.clone())).collect();
        assert_eq!(found, [(Stage::OProj, Some(vec![2, 0])), (Stage::FfnOut, Some(vec![2, 0]))]);
        assert!(sampled);
        let (requests, sampled) = of(&["all"], Some(&[1])).unwrap();
        assert_eq!((requests.len(), sampled), (plan.stages().len(), false));
        assert!(requests.iter().any(|r| r.stage == Stage::Logits && r.layers.is_none()));
        for (names, layers, expected) in [
            (&["layer_uot"][..], None, "layer_out"),
            (&["q_norm"], None, "no stage `q_norm`"),
            (&["layer_out"], Some(&[3][..]), "layers 0 to 2"),
            (&["all"], Some(&[3]), "layers 0 to 2"),
            (&[], None, "at least one"),
        ] {
            let error = of(names, layers).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
    }
}
