//! Numbers about a model that is served, as Prometheus reads them. The names follow those of other servers, so that gateways
//! need only another prefix. Counters are added to by the threads that know; nothing here waits.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is counted of one model.
#[derive(Default)]
pub struct Metrics {
    pub running: AtomicU64,
    /// Positions of reserved room that are in use.
    pub positions: AtomicU64,
    pub prompt_tokens: AtomicU64,
    /// Tokens of prompts of sequences that have read them, and how many of these were there before.
    pub prefix_queries: AtomicU64,
    pub prefix_hits: AtomicU64,
    pub generated_tokens: AtomicU64,
    /// Requests by how they ended.
    pub finished: AtomicU64,
    pub failed: AtomicU64,
    pub refused: AtomicU64,
    pub left: AtomicU64,
    pub first_token: Histogram,
    pub next_token: Histogram,
    pub whole: Histogram,
}

/// Upper bounds of the histograms, in seconds.
const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Durations by size.
#[derive(Default)]
pub struct Histogram(Mutex<Counts>);

#[derive(Default, Clone)]
struct Counts {
    /// Of each bound, and of what is larger than all.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = counts.counts.get_mut(place) {
            *count += 1;
        }
        counts.sum += seconds;
    }
    fn write(&self, out: &mut String, name: &str, model: &str) {
        let Counts { counts, sum } = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = 0;
        for (place, count) in counts.into_iter().enumerate() {
            all += count;
            let bound = BOUNDS.get(place).map_or("+Inf".to_string(), f64::to_string);
            let _ = writeln!(out, "doppler:{name}_bucket{{{model},le=\"{bound}\"}} {all}");
        }
        let _ = writeln!(out, "doppler:{name}_sum{{{model}}} {sum}\ndoppler:{name}_count{{{model}}} {all}");
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// Sets a gauge.
pub fn set(gauge: &AtomicU64, value: usize) {
    gauge.store(value as u64, Ordering::Relaxed);
}

/// A model for [`text`]: its id, its numbers, requests that wait, and the positions that there is room for.
pub struct Counted<'a> {
    pub id: &'a str,
    pub metrics: &'a Metrics,
    pub waiting: usize,
    pub room: usize,
}

/// The numbers of `models` in Prometheus' text format.
pub fn text(models: &[Counted<'_>]) -> String {
    let mut out = String::new();
    let label = |id: &str| format!("model_name=\"{}\"", id.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
    let head = |out: &mut String, name: &str, kind: &str, about: &str| {
        let _ = writeln!(out, "# HELP doppler:{name} {about}\n# TYPE doppler:{name} {kind}");
    };
    let mut numbers = |name: &str, kind: &str, about: &str, of: &dyn Fn(&Counted<'_>) -> Vec<(String, f64)>| {
        head(&mut out, name, kind, about);
        for model in models {
            for (more, value) in of(model) {
                let _ = writeln!(out, "doppler:{name}{{{}{more}}} {value}", label(model.id));
            }
        }
    };
    let one = |value: f64| vec![(String::new(), value)];
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    numbers("num_requests_running", "gauge", "Sequences that are computed.", &|m| one(of(&m.metrics.running)));
    numbers("num_requests_waiting", "gauge", "Sequences in the queue.", &|m| one(m.waiting as f64));
    numbers("kv_cache_usage_perc", "gauge", "Share of the reserved positions that are in use, 1 is all.", &|m| {
        one(of(&m.metrics.positions) / (m.room.max(1) as f64))
    });
    numbers("prompt_tokens_total", "counter", "Tokens of prompts.", &|m| one(of(&m.metrics.prompt_tokens)));
    numbers("prefix_cache_queries_total", "counter", "Tokens of prompts that sequences began with.", &|m| {
        one(of(&m.metrics.prefix_queries))
    });
    numbers("prefix_cache_hits_total", "counter", "Of these, tokens that another sequence had read.", &|m| one(of(&m.metrics.prefix_hits)));
    numbers("generation_tokens_total", "counter", "Tokens that were generated.", &|m| one(of(&m.metrics.generated_tokens)));
    numbers("requests_total", "counter", "Requests by how they ended.", &|m| {
        let Metrics { finished, failed, refused, left, .. } = m.metrics;
        let ends = [("finished", finished), ("failed", failed), ("refused", refused), ("left", left)];
        ends.map(|(name, counter)| (format!(",end=\"{name}\""), of(counter))).to_vec()
    });
    type Of = fn(&Metrics) -> &Histogram;
    let histograms: [(&str, &str, Of); 3] = [
        ("time_to_first_token_seconds", "From a request to its first token.", |m| &m.first_token),
        ("inter_token_latency_seconds", "From a token to the next one.", |m| &m.next_token),
        ("e2e_request_latency_seconds", "From a request to its end.", |m| &m.whole),
    ];
    for (name, about, of) in histograms {
        let _ = writeln!(out, "# HELP doppler:{name} {about}\n# TYPE doppler:{name} histogram");
        models.iter().for_each(|model| of(model.metrics).write(&mut out, name, &label(model.id)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        add(&metrics.prompt_tokens, 7);
        set(&metrics.positions, 5);
        [1, 2, 30, 100_000].into_iter().for_each(|ms| metrics.first_token.add(Duration::from_millis(ms)));
        let text = text(&[Counted { id: "a\"b", metrics: &metrics, waiting: 3, room: 20 }]);
        for line in [
            "# TYPE doppler:prompt_tokens_total counter\ndoppler:prompt_tokens_total{model_name=\"a\\\"b\"} 7",
            "doppler:num_requests_waiting{model_name=\"a\\\"b\"} 3",
            "doppler:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.25",
            "doppler:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.001\"} 1",
            "doppler:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.0025\"} 2",
            "doppler:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"60\"} 3",
            "doppler:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"+Inf\"} 4",
            "doppler:time_to_first_token_seconds_count{model_name=\"a\\\"b\"} 4",
            "doppler:requests_total{model_name=\"a\\\"b\",end=\"refused\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
