//! `doppler devices`: the adapters of this machine, what they offer, and whether they compute rightly.

use crate::end::{Ended, Stop};
use crate::load::available_memory;
use crate::{output, progress};
use doppler::Result;
use doppler::debug::self_test::{self, Verdict};
use doppler::forecast::size;
use doppler::gpu::device::AdapterSummary;
use doppler::gpu::{Gpu, GpuExecutor, GpuOptions, list_adapters};
use pollster::block_on;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only list the adapters
    #[arg(long)]
    no_self_test: bool,
    /// Write the list as JSON, in place of the text if FILE is `-` (stdout)
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

/// What was found out about one adapter.
struct Tested {
    adapter: AdapterSummary,
    /// `--device gpu` takes this one.
    chosen: bool,
    verdict: Option<Result<Verdict>>,
}

fn self_tested(gpu: &Gpu) -> Result<Verdict> {
    let ways = self_test::Way::all(gpu.caps.f16, gpu.caps.matrix.is_some());
    let make = |plan, way: self_test::Way| {
        let mut executor = GpuExecutor::new(gpu.clone(), plan, way.storage)?;
        executor.set_batched(way.batched);
        Ok(executor)
    };
    progress::shown("self-test", |set| block_on(self_test::run(&ways, make, |_, done, all| set(done, all))))
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    output::check(&[("--json", args.json.as_deref().map(Path::new))])?;
    let adapters = block_on(list_adapters());
    let opened = block_on(Gpu::open(GpuOptions::default())).ok();
    let is_opened =
        |a: &AdapterSummary| opened.as_ref().is_some_and(|gpu| gpu.caps.name == a.name && gpu.caps.driver.starts_with(&a.backend));
    let chosen = adapters.iter().position(is_opened);
    let mut tested = Vec::new();
    for (i, adapter) in adapters.into_iter().enumerate() {
        let test = || block_on(Gpu::open(GpuOptions { adapter: Some(i), ..GpuOptions::default() })).and_then(|gpu| self_tested(&gpu));
        tested.push(Tested { adapter, chosen: chosen == Some(i), verdict: (!args.no_self_test).then(test) });
    }
    if let Some(path) = &args.json {
        let adapters: Vec<Value> = tested.iter().map(Tested::json).collect();
        output::document(path, &json!({"adapters": adapters, "hostMemoryAvailable": available_memory()}))?;
    }
    if args.json.as_deref() != Some("-") {
        print(&tested)?;
    }
    let good = |t: &Tested| t.verdict.as_ref().is_none_or(|v| v.as_ref().is_ok_and(|v| v.failures.is_empty()));
    Ok(if tested.iter().all(good) { Ended::Fine } else { Ended::Finding })
}

impl Tested {
    fn json(&self) -> Value {
        let a = &self.adapter;
        let verdict = self.verdict.as_ref().map(|verdict| match verdict {
            Ok(v) => json!({
                "passed": v.failures.is_empty(), "worstOverFloor": v.worst, "at": v.at, "allowed": self_test::ALLOWED, "failures": v.failures,
            }),
            Err(e) => json!({"passed": false, "failures": [e.message]}),
        });
        json!({
            "name": a.name, "kind": a.kind, "software": a.software, "backend": a.backend, "driver": a.driver, "chosen": self.chosen,
            "maxBinding": a.max_binding, "maxBuffer": a.max_buffer, "workgroupMemory": a.workgroup_memory,
            "maxInvocations": a.max_invocations, "subgroups": a.subgroups.map(|(least, most)| [least, most]),
            "f16": a.f16, "timestamps": a.timestamps, "selfTest": verdict,
        })
    }
}

fn print(tested: &[Tested]) -> Result<(), Stop> {
    let mut out = crate::terminal::stdout();
    for (i, Tested { adapter: a, chosen, verdict }) in tested.iter().enumerate() {
        let taken = match (*chosen, a.software) {
            (false, _) => "",
            (true, false) => " (the one that --device gpu takes)",
            (true, true) => " (the one that --device gpu takes; it is software, so --device auto takes the oracle, which is faster)",
        };
        writeln!(out, "adapter {i}: {}{taken}", a.name)?;
        writeln!(out, "  {}, {} {}", a.kind, a.backend, a.driver)?;
        let subgroups = match a.subgroups {
            None => "no subgroups".to_string(),
            Some((least, most)) if least == most => format!("subgroups of {least}"),
            Some((least, most)) => format!("subgroups of {least} to {most}"),
        };
        let has = |on: bool, what: &str| if on { what.to_string() } else { format!("no {what}") };
        writeln!(out, "  features: {}, {subgroups}, {}", has(a.f16, "f16"), has(a.timestamps, "timestamps"))?;
        let (binding, buffer, shared) = (size(a.max_binding), size(a.max_buffer), size(a.workgroup_memory.into()));
        writeln!(out, "  limits: binding {binding}, buffer {buffer}, workgroup memory {shared}, {} invocations", a.max_invocations)?;
        match verdict {
            None => writeln!(out, "  self-test: not run")?,
            Some(Err(e)) => writeln!(out, "  self-test: FAILED: {e}")?,
            Some(Ok(v)) if v.failures.is_empty() => {
                let (worst, allowed) = (v.worst, self_test::ALLOWED);
                writeln!(out, "  self-test: passed; at most {worst:.1} times the rounding floor ({}), {allowed} is allowed", v.at)?;
            }
            Some(Ok(v)) => {
                writeln!(out, "  self-test: FAILED")?;
                for line in &v.failures {
                    writeln!(out, "    {line}")?;
                }
            }
        }
    }
    if tested.is_empty() {
        writeln!(out, "no WebGPU adapter; on Debian and Ubuntu `apt-get install mesa-vulkan-drivers` gives a software one")?;
    }
    let memory = available_memory().map(|bytes| format!(", {} of memory available", size(bytes))).unwrap_or_default();
    writeln!(out, "cpu: the oracle, always there (--device cpu){memory}")?;
    Ok(())
}
