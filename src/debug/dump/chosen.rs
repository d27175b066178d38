//! A dump of chosen values rather than of whole stages.

use super::DumpObserver;
use crate::error::{Error, Result};
use crate::exec::{Request, Want};
use crate::plan::{At, Plan};
use std::collections::BTreeMap;

impl DumpObserver {
    /// An observer of exactly `values`: a stage may be wanted in some layers only, another in others.
    ///
    /// # Errors
    /// `Kind::Invalid` for values that the model lacks.
    pub fn chosen(plan: &Plan, values: &[At]) -> Result<Self> {
        let mut layers: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for at in values {
            if plan.find(*at).is_none() {
                return Err(Error::invalid("stages", format!("this model has no {at}; `doppler stages` lists what it has")));
            }
            layers.entry(at.stage).or_default().extend(at.layer);
        }
        let mut observer = Self::new(plan, ["sampled"], None)?;
        if !layers.is_empty() {
            let request =
                |(stage, layers): (_, Vec<usize>)| Request { stage, layers: (!layers.is_empty()).then_some(layers), want: Want::Full };
            observer.requests = layers.into_iter().map(request).collect();
        }
        observer.sampled = false;
        Ok(observer)
    }
}
