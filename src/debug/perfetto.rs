//! Times of kernels as a trace file for Perfetto (ui.perfetto.dev) and chrome://tracing: plain JSON events, one track
//! each for steps, layers and kernels. Times are the caller's.

use crate::plan::At;
use serde_json::{Value, json};

/// One dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSpan {
    /// The kernel's name.
    pub kernel: String,
    /// The value being computed.
    pub at: At,
    /// Nanoseconds since any fixed moment, the same for all steps.
    pub start_ns: f64,
    /// Nanoseconds.
    pub duration_ns: f64,
}

/// The dispatches of one step, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSpans {
    /// Name of the step: `prompt`, `decode 3`.
    pub name: String,
    /// Its dispatches.
    pub kernels: Vec<KernelSpan>,
}

/// Tracks: id and name.
const TRACKS: [(u32, &str); 3] = [(1, "steps"), (2, "layers"), (3, "kernels")];

/// The trace file's text. `about` names the model and the device. NaN and infinite times count as 0.
pub fn trace(about: &str, steps: &[StepSpans]) -> String {
    let name = |kind: &str, tid: u32, name: &str| json!({"ph": "M", "pid": 1, "tid": tid, "name": kind, "args": {"name": name}});
    let mut events = vec![name("process_name", 0, about)];
    events.extend(TRACKS.iter().map(|(tid, track)| name("thread_name", *tid, track)));
    for step in steps {
        events.extend(slice(1, &step.name, "step", &step.kernels.iter().collect::<Vec<_>>(), json!({"kernels": step.kernels.len()})));
        for run in step.kernels.chunk_by(|a, b| a.at.layer == b.at.layer) {
            let label = run.first().and_then(|k| k.at.layer).map_or("outside layers".to_string(), |l| format!("layer {l}"));
            events.extend(slice(2, &label, "layer", &run.iter().collect::<Vec<_>>(), json!({"kernels": run.len()})));
        }
        for kernel in &step.kernels {
            let label = format!("{} {}", kernel.kernel, kernel.at);
            let args = json!({"kernel": kernel.kernel, "stage": kernel.at.stage.name(), "layer": kernel.at.layer});
            events.extend(slice(3, &label, kernel.at.stage.info().category, &[kernel], args));
        }
    }
    json!({"displayTimeUnit": "ns", "traceEvents": events}).to_string()
}

/// An event that spans `kernels`; none for no kernel.
fn slice(tid: u32, name: &str, category: &str, kernels: &[&KernelSpan], args: Value) -> Option<Value> {
    let number = |x: f64| if x.is_finite() { x } else { 0.0 };
    let (first, last) = (kernels.first()?, kernels.last()?);
    let start = number(first.start_ns);
    let end = number(last.start_ns) + number(last.duration_ns).max(0.0);
    let (ts, dur) = (start / 1e3, (end - start).max(0.0) / 1e3);
    Some(json!({"ph": "X", "pid": 1, "tid": tid, "name": name, "cat": category, "ts": ts, "dur": dur, "args": args}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Stage;

    #[test]
    fn events_of_every_track() {
        let span = |kernel: &str, stage, layer, start_ns| KernelSpan {
            kernel: kernel.into(),
            at: At { stage, layer },
            start_ns,
            duration_ns: 500.0,
        };
        let kernels = vec![
            span("embed", Stage::EmbedOut, None, 1000.0),
            span("linear", Stage::QProj, Some(0), 2000.0),
            span("rope", Stage::QRope, Some(0), 3000.0),
            span("linear", Stage::QProj, Some(1), f64::NAN),
        ];
        let text =
            trace("demo on a device", &[StepSpans { name: "prompt".into(), kernels }, StepSpans { name: "none".into(), kernels: vec![] }]);
        let json: Value = serde_json::from_str(&text).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let track = |tid: u32| events.iter().filter(|e| e["tid"] == tid && e["ph"] == "X").collect::<Vec<_>>();
        assert_eq!((track(1).len(), track(2).len(), track(3).len()), (1, 3, 4));
        let layer = track(2)[1];
        assert_eq!((&layer["name"], layer["ts"].as_f64(), layer["dur"].as_f64()), (&"layer 0".into(), Some(2.0), Some(1.5)));
        assert_eq!((&track(3)[2]["cat"], &track(3)[2]["args"]["stage"]), (&"attn".into(), &"q_rope".into()));
        assert_eq!(events[0]["args"]["name"], "demo on a device");
    }
}
