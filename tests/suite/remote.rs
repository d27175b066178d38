//! An executor behind a link computes what the executor on the other side computes, bit by bit; what comes over the link
//! breaks nothing.

use crate::golden::{Golden, goldens};
use crate::support::adapter;
use doppler::exec::{Executor, Pick, Read, Replaceable, Rows, Step, Storage, Tokens, WeightSink};
use doppler::gpu::{GpuExecutor, GpuOptions, Log};
use doppler::plan::{ValueId, WeightId};
use doppler::quant::Format;
use doppler::remote::{Host, Link, Remote, number};
use doppler::tensor::Tensor;
use doppler::{Kind, Result};
use pollster::block_on;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A link within this process: every call is answered when it is sent.
#[derive(Debug, Clone)]
struct Near {
    host: Rc<Host>,
    answers: Rc<RefCell<HashMap<u32, Vec<u8>>>>,
}

impl Link for Near {
    fn send(&self, call: Vec<u8>) -> Result<()> {
        let answer = block_on(self.host.answer(&call));
        self.answers.borrow_mut().insert(number(&call)?, answer);
        Ok(())
    }
    fn wait(&self, number: u32) -> Result<Vec<u8>> {
        Ok(self.answers.borrow_mut().remove(&number).expect("an answer"))
    }
}

fn golden() -> Golden {
    goldens().into_iter().find(|g| g.name == "gemma2").expect("gemma2")
}

fn executor(golden: &Golden) -> Option<GpuExecutor> {
    let gpu = adapter(GpuOptions::default())?;
    Some(golden.filled(GpuExecutor::new(gpu, golden.plan.clone(), Storage::F16).expect("an executor")))
}

fn remote(golden: &Golden) -> Option<Remote<Near>> {
    let link = Near { host: Rc::new(Host::new(executor(golden)?)), answers: Rc::default() };
    Some(Remote::new(link, golden.plan.clone(), Storage::F16, "elsewhere".into()))
}

#[test]
fn it_computes_what_the_other_side_computes() {
    let golden = golden();
    let (Some(here), Some(mut there)) = (executor(&golden), remote(&golden)) else { return };
    assert_eq!(golden.stages(&there), golden.stages(&here), "every stage, bit by bit");
    assert_eq!(golden.greedy(&there, 7), golden.greedy(&here, 7));
    let inputs = [Tensor::new(vec![3, 1], vec![2.0, 5.0, 7.0]).expect("ids")];
    let eval = |executor: &dyn Fn(ValueId) -> Result<Tensor>| executor(ValueId(0)).expect("an embedding");
    assert_eq!(eval(&|id| block_on(there.eval(id, &inputs, 0, false))), eval(&|id| block_on(here.eval(id, &inputs, 0, false))));
    // Caches are counted here as there, and what cannot be is refused there.
    let mut cache = there.new_cache(8, 4).expect("a cache");
    let pick = Some(Pick { valid: golden.plan.vocab_size });
    let step = Step { tokens: Tokens::Ids(&[2, 5, 7]), rows: Rows::Last, pick, read: Read::Top(3), long_rope: false, requests: &[] };
    let output = block_on(there.step(&mut cache, &step)).expect("a step");
    assert_eq!((there.len(&cache), output.top.map(|top| top.len())), (3, Some(3)));
    assert!(there.truncate(&mut cache, 1) && !there.truncate(&mut cache, 5));
    assert_eq!(there.len(&cache), 1);
    there.grow(&mut cache, 20).expect("room");
    assert_eq!(there.capacity(&cache), 20);
    let long = Step { tokens: Tokens::Ids(&[2; 5]), ..step };
    assert_eq!(block_on(there.step(&mut cache, &long)).expect_err("a step of 5 in chunks of 4").kind, Kind::Invalid);
    assert_eq!(there.new_cache(0, 0).expect_err("no cache").kind, Kind::Invalid);
    // The log has this side's kernel names.
    there.set_log(Log::Names).expect("a log");
    let mut cache = there.new_cache(8, 4).expect("a cache");
    block_on(there.step(&mut cache, &step)).expect("a step");
    let log = there.take_log().expect("the log");
    assert!(log.len() == 1 && log[0].dispatches.iter().any(|d| d.kernel == "rms_norm"), "{log:?}");
    // A weight put again, as it was and as zeros.
    let before = golden.stages(&there)["logits_final"].clone();
    let slot = golden.plan.weights.iter().position(|slot| slot.label() == "L1 q_proj").expect("a weight");
    there.clear(WeightId(slot)).expect("cleared");
    let zeros = vec![0u8; golden.plan.weights[slot].elements() * 4];
    there.put(WeightId(slot), Format::F32, 0, zeros.into()).expect("put");
    assert_ne!(golden.stages(&there)["logits_final"], before);
    assert!(there.clear(WeightId(9999)).is_err());
}

#[test]
fn whatever_comes_is_answered() {
    let golden = golden();
    let Some(there) = remote(&golden) else { return };
    let host = there.link().host.clone();
    proptest!(ProptestConfig::with_cases(300), |(bytes in proptest::collection::vec(any::<u8>(), 0..40))| {
        // Calls that ask for memory by the gigabyte are the device's to refuse; here they would only take time.
        prop_assume!(bytes.get(4) != Some(&0));
        let answer = block_on(host.answer(&bytes));
        prop_assert_eq!(number(&answer).ok(), number(&bytes).ok().or(Some(0)));
    });
}
