//! Times of a generation, and the lines about it: those of `doppler debug`, for a report.

use crate::host::now;
use crate::model::Loaded;
use doppler::exec::Executor;
use doppler::inference::session::{Event, Generated, StopReason};
use doppler::inference::tokenizer::escape_line;
use serde_json::{Value, json};

/// Times of a generation, in milliseconds.
pub struct Clock {
    start: f64,
    prefilled: f64,
    end: f64,
}

impl Clock {
    /// One that starts now.
    pub fn new() -> Self {
        let start = now();
        Self { start, prefilled: start, end: start }
    }
    /// Takes note of an event.
    pub fn hear(&mut self, event: Event) {
        if matches!(event, Event::Prefill { done, total } if done == total) {
            self.prefilled = now();
        }
    }
    /// The generation is over.
    pub fn stop(&mut self) {
        self.end = now();
    }
    /// Milliseconds in all, tokens of the prompt a second, tokens of the answer a second.
    fn speeds(&self, generated: &Generated) -> (f64, Option<f64>, Option<f64>) {
        let rate = |count: usize, milliseconds: f64| (count > 0 && milliseconds > 0.0).then(|| count as f64 / milliseconds * 1e3);
        let prefill = rate(generated.prefill_tokens, self.prefilled - self.start);
        // The first token belongs to the prompt's time.
        (self.end - self.start, prefill, rate(generated.ids.len().saturating_sub(1), self.end - self.prefilled))
    }
    /// `rest` with what was generated and how fast, under the names of the JSON of a `Done` line.
    pub fn join(&self, generated: &Generated, mut rest: Value) -> Value {
        let (milliseconds, prefill, decode) = self.speeds(generated);
        let known = json!({
            "ids": generated.ids,
            "tokens": generated.ids.len(),
            "milliseconds": milliseconds,
            "prefillTokens": generated.prefill_tokens,
            "prefillTokensPerSecond": prefill,
            "decodeTokensPerSecond": decode,
            "logits": generated.logits_hash.map(|hash| format!("{hash:016x}")),
            "stop": match generated.stop {
                StopReason::MaxTokens => "maxTokens",
                StopReason::Eos => "eos",
                StopReason::Capacity => "context",
                StopReason::Interrupted => "interrupted",
            },
        });
        if let (Value::Object(rest), Value::Object(known)) = (&mut rest, known) {
            rest.extend(known);
        }
        rest
    }
    /// The lines of a generation's end, `Output …` and `Done …`.
    pub fn lines(&self, generated: &Generated, text: Option<&str>) -> [String; 2] {
        let (milliseconds, prefill, decode) = self.speeds(generated);
        let rate = |rate: Option<f64>| rate.map_or("-".to_string(), |rate| format!("{rate:.1}"));
        let ids = || format!("ids {}", generated.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
        let output = text.map_or_else(ids, escape_line);
        let hash = generated.logits_hash.map(|hash| format!(" logits={hash:016x}")).unwrap_or_default();
        let (tokens, prefill, decode) = (generated.ids.len(), rate(prefill), rate(decode));
        let done = format!("Done {tokens} tokens in {milliseconds:.1} ms (prefill {prefill} tok/s, decode {decode} tok/s){hash}");
        [format!("Output {output}"), done]
    }
}

/// The `Config` line of a model, and one for each tensor of which weights are no numbers.
pub fn about(loaded: &Loaded) -> Vec<String> {
    let (config, plan) = (&loaded.resolved.config, loaded.plan());
    let ignored = &loaded.resolved.ignored_keys;
    let ignored = if ignored.is_empty() { String::new() } else { format!(" ignored={}", ignored.join(",")) };
    let line = format!(
        "Config model={} preset={} layers={} hidden={} vocab={} weights={} dtype={} context={}{ignored} device={}",
        loaded.name,
        config.preset,
        plan.num_layers,
        config.hidden_size,
        config.vocab_size,
        loaded.weight_types,
        loaded.executor.storage().activations,
        plan.max_positions,
        loaded.executor.describe()
    );
    let odd = loaded.non_finite.iter().map(|found| {
        let doppler::loader::NonFinite { tensor, shape, nan, inf, first } = found;
        format!("ANOMALY kind=non_finite_weights tensor={tensor} shape={shape:?} nan={nan} inf={inf} first={first}")
    });
    std::iter::once(line).chain(odd).collect()
}
