//! What `generation_config.json` says of the choice of tokens: the rules that Doppler follows, as `generate` of transformers
//! does with `do_sample=False`, and notes on the rest. Nothing in it is an error: transformers loads the model all the same.

use super::keys::Object;
use super::values::brief;
use crate::model::GenerationRules;
use serde_json::Value;

/// Keys that Doppler does not follow, with the value at which they change nothing. How many tokens are generated is always
/// the caller's to say.
const OTHERS: [(&str, f64); 12] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("guidance_scale", 1.0),
    ("diversity_penalty", 0.0),
    ("penalty_alpha", 0.0),
    ("dola_layers", 0.0),
    ("watermarking_config", 0.0),
    ("stop_strings", 0.0),
    ("max_time", 0.0),
    ("token_healing", 0.0),
    ("remove_invalid_values", 0.0),
];
/// Keys that matter where `do_sample` is true.
const SAMPLING: [&str; 8] = ["temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"];

/// The rules, a sentence that says which ones a run follows, and one for each that none does.
pub(super) struct Read {
    pub rules: GenerationRules,
    pub followed: Option<String>,
    pub notes: Vec<String>,
}

/// Reads the rules from `object` of `file`. `eos` are the ids that end a generation; ids from `vocab_size` on choose nothing.
pub(super) fn read(file: &str, object: &Object, eos: &[u32], vocab_size: usize) -> Read {
    let mut reader = Reader { object, vocab_size, followed: Vec::new(), others: Vec::new() };
    let r = &mut reader;
    let rules = GenerationRules {
        sequence_bias: r.take("sequence_bias", biases),
        encoder_repetition_penalty: r.take("encoder_repetition_penalty", factor),
        repetition_penalty: r.take("repetition_penalty", factor),
        no_repeat_ngram: r.take("no_repeat_ngram_size", count),
        encoder_no_repeat_ngram: r.take("encoder_no_repeat_ngram_size", count),
        bad_words: r.take("bad_words_ids", words),
        min_length: r.take("min_length", count),
        min_new_tokens: r.take("min_new_tokens", count),
        forced_bos: r.take("forced_bos_token_id", ids),
        forced_eos: r.take("forced_eos_token_id", ids),
        exponential_decay: r.take("exponential_decay_length_penalty", decay),
        suppress: r.take("suppress_tokens", listed),
        begin_suppress: r.take("begin_suppress_tokens", listed),
        eos: eos.to_vec(),
        ..GenerationRules::default()
    };
    reader.note_others();
    let Reader { followed, others, .. } = reader;
    let decide = if followed.len() == 1 { "decides" } else { "decide" };
    let said = || format!("{file}: {} {decide} which tokens are chosen, as in transformers", followed.join(", "));
    let said = (!followed.is_empty()).then(said);
    let mut notes = Vec::new();
    if !others.is_empty() {
        let are = if others.len() == 1 { "is" } else { "are" };
        notes.push(format!("{file}: {} {are} not followed", others.join(", ")));
    }
    if object.get("do_sample") == Some(&Value::Bool(true)) {
        let stated = SAMPLING.iter().filter_map(|key| Some((key, object.get(*key).filter(|v| !v.is_null())?)));
        let stated: String = stated.map(|(key, value)| format!(", {key} {}", brief(value))).collect();
        let are = if stated.is_empty() { "is" } else { "are" };
        let what = "not followed: tokens are chosen greedily unless the options of this run say otherwise";
        notes.push(format!("{file}: do_sample true{stated} {are} {what}"));
    }
    Read { rules, followed: said, notes }
}

struct Reader<'a> {
    object: &'a Object,
    vocab_size: usize,
    /// Keys with their values.
    followed: Vec<String>,
    others: Vec<String>,
}

impl Reader<'_> {
    /// The value of `key`; the default where it is absent, null or not understood.
    fn take<T: Default + PartialEq>(&mut self, key: &str, read: impl Fn(&Value, usize) -> Option<T>) -> T {
        let Some(value) = self.object.get(key).filter(|v| !v.is_null()) else { return T::default() };
        let said = format!("{key} {}", brief(value));
        let Some(found) = read(value, self.vocab_size) else {
            self.others.push(format!("{said} (not understood)"));
            return T::default();
        };
        if found != T::default() {
            self.followed.push(said);
        }
        found
    }
    fn note_others(&mut self) {
        for (key, harmless) in OTHERS {
            let Some(value) = self.object.get(key).filter(|v| !v.is_null() && **v != Value::Bool(false)) else { continue };
            let empty = value.as_array().is_some_and(Vec::is_empty);
            if value.as_f64() != Some(harmless) && !empty {
                self.others.push(format!("{key} {}", brief(value)));
            }
        }
    }
}

/// One id or several. Ids that the vocabulary lacks, negative ones too, are left out.
fn ids(value: &Value, vocab_size: usize) -> Option<Vec<u32>> {
    known(value, vocab_size, Value::as_i64)
}

/// A list of ids, of which whole numbers written as `46.0` are some too. Of one number alone transformers makes an error.
fn listed(value: &Value, vocab_size: usize) -> Option<Vec<u32>> {
    let whole = |v: &Value| v.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 2f64.powi(53)).map(|x| x as i64);
    value.as_array()?;
    known(value, vocab_size, whole)
}

/// Those ids of `value`, one or several as `one` reads them, that the vocabulary has.
fn known(value: &Value, vocab_size: usize, one: impl Fn(&Value) -> Option<i64>) -> Option<Vec<u32>> {
    let all: Vec<i64> = match value {
        Value::Array(list) => list.iter().map(one).collect::<Option<_>>()?,
        other => vec![one(other)?],
    };
    Some(all.into_iter().filter_map(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size).collect())
}

/// Sequences of ids; those with ids that the vocabulary lacks, which never occur, are left out.
fn words(value: &Value, vocab_size: usize) -> Option<Vec<Vec<u32>>> {
    let all = value.as_array()?.iter();
    let all: Vec<(usize, Vec<u32>)> = all.map(|v| Some((v.as_array()?.len(), ids(v, vocab_size)?))).collect::<Option<_>>()?;
    Some(all.into_iter().filter(|(stated, ids)| *stated == ids.len() && *stated > 0).map(|(_, ids)| ids).collect())
}

/// Sequences of ids, each with what is added to the logit of its last id.
fn biases(value: &Value, vocab_size: usize) -> Option<Vec<(Vec<u32>, f32)>> {
    let mut all: Vec<(Vec<u32>, f32)> = Vec::new();
    for pair in value.as_array()? {
        let [sequence, bias] = pair.as_array()?.as_slice() else { return None };
        let bias = match bias.as_str() {
            Some("-Infinity") => f32::NEG_INFINITY,
            _ => bias.as_f64().map(|x| x as f32).filter(|x| x.is_finite())?,
        };
        let stated = sequence.as_array()?.len();
        let ids = ids(sequence, vocab_size)?;
        if stated > 0 && stated == ids.len() {
            // Of two biases of one sequence the last counts.
            all.retain(|(known, _)| *known != ids);
            all.push((ids, bias));
        }
    }
    Some(all)
}

fn count(value: &Value, _: usize) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// A penalty; 1 is none.
fn factor(value: &Value, _: usize) -> Option<Option<f32>> {
    let factor = value.as_f64().map(|x| x as f32).filter(|x| *x > 0.0 && x.is_finite())?;
    Some((factor != 1.0).then_some(factor))
}

fn decay(value: &Value, _: usize) -> Option<Option<(usize, f64)>> {
    let [start, factor] = value.as_array()?.as_slice() else { return None };
    Some(Some((usize::try_from(start.as_u64()?).ok()?, factor.as_f64()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: &Value) -> (GenerationRules, Vec<String>) {
        let read = read("g.json", value.as_object().unwrap(), &[2], 50);
        (read.rules, read.followed.into_iter().chain(read.notes).collect())
    }

    #[test]
    fn rules_are_followed_and_said() {
        let (rules, notes) =
            of(&json!({"suppress_tokens": [-1, 7, 50, 8], "repetition_penalty": 1.5, "bad_words_ids": [[3], [4, 60], [5, 6]],
            "sequence_bias": [[[1], 2.0], [[1], "-Infinity"]], "forced_eos_token_id": 2, "no_repeat_ngram_size": 3,
            "exponential_decay_length_penalty": [4, 1.1], "max_new_tokens": 9}));
        assert_eq!((&rules.suppress[..], rules.repetition_penalty, &rules.forced_eos[..]), (&[7, 8][..], Some(1.5), &[2][..]));
        assert_eq!((rules.bad_words, rules.no_repeat_ngram), (vec![vec![3], vec![5, 6]], 3));
        assert_eq!((rules.sequence_bias, rules.exponential_decay), (vec![(vec![1], f32::NEG_INFINITY)], Some((4, 1.1))));
        assert!(
            notes.len() == 1 && notes[0].contains("suppress_tokens [-1,7,50,8]") && notes[0].contains("as in transformers"),
            "{notes:?}"
        );
    }

    #[test]
    fn ids_to_suppress_are_a_list_and_may_be_written_as_floats() {
        let (rules, notes) = of(&json!({"suppress_tokens": [46.0, 7], "begin_suppress_tokens": [3]}));
        assert_eq!((rules.suppress, rules.begin_suppress), (vec![46, 7], vec![3]));
        assert!(notes[0].contains("suppress_tokens [46.0,7], begin_suppress_tokens [3] decide which"), "{notes:?}");
        // Transformers refuses all of these when it generates.
        for bad in [json!({"suppress_tokens": 46}), json!({"begin_suppress_tokens": 46}), json!({"bad_words_ids": [[46.0]]})] {
            let (rules, notes) = of(&bad);
            assert!(!rules.any() && notes.len() == 1 && notes[0].ends_with("(not understood) is not followed"), "{notes:?}");
        }
    }

    #[test]
    fn values_that_change_nothing_are_not_mentioned() {
        let quiet = json!({"suppress_tokens": null, "begin_suppress_tokens": [], "repetition_penalty": 1.0, "num_beams": 1, "do_sample": false,
            "temperature": 0.6, "min_length": 0, "token_healing": false, "stop_strings": [], "typical_p": 1.0, "max_length": 20});
        let (rules, notes) = of(&quiet);
        assert!(!rules.any() && notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn what_is_not_followed_is_said_with_its_value() {
        let (rules, notes) = of(&json!({"num_beams": 4, "penalty_alpha": 0.6, "suppress_tokens": "x", "repetition_penalty": -1.0,
            "do_sample": true, "temperature": 0.6, "top_p": 0.9}));
        assert!(!rules.any());
        let expected = ["num_beams 4", "penalty_alpha 0.6", "suppress_tokens \"x\" (not understood)", "repetition_penalty -1.0"];
        assert!(expected.iter().all(|e| notes[0].contains(e)) && notes[0].ends_with("are not followed"), "{notes:?}");
        assert!(notes[1].contains("do_sample true, temperature 0.6, top_p 0.9 are not followed"), "{notes:?}");
    }
}
