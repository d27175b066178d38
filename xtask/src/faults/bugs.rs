//! Bugs that ports of models had, collected from the public fix logs of other engines, and the mutants that have the same fault
//! with numbers of our own. What a bug needs that no model here has is said.

use serde_json::Value;
use std::fmt::Write;

/// A bug in our words; how the ids of its mutants begin; what is missing where there are none.
pub struct Bug(pub &'static str, pub &'static [&'static str], pub &'static str);

/// The 45 of them.
pub const BUGS: &[Bug] = &[
    Bug("a norm's weight is stored without the 1 that the op expects in it", &["norm_offset/weights/"], ""),
    Bug("1 is added to the weights of norms that have it", &["norm_offset/weights/"], ""),
    Bug("1 is added to norms of a layout that was shifted before", &["norm_offset/weights/"], ""),
    Bug("the epsilon of another generation of the model", &["norm_eps/config/", "norm_eps/gguf metadata/"], ""),
    Bug("the norm of a projector is not given its epsilon", &[], "projectors"),
    Bug("a norm's weight is not handed on: it multiplies by 1", &["corrupt_weight/identity norm/"], ""),
    Bug("halves are rotated, but q and k are permuted for pairs", &["permuted_qk/both/", "permuted_qk/rows/"], ""),
    Bug("pairs are rotated, but q and k are not permuted", &["permuted_qk/both back/"], ""),
    Bug("the scaling of RoPE is ignored on global layers", &["rope_scaling/of global layers/", "rope_scaling/removed/"], ""),
    Bug("the base is read under a key that the file does not have", &["rope_base/config/", "rope_base/local/"], ""),
    Bug("sliding layers are rotated with the scaling of global ones", &["rope_scaling/of sliding layers/"], ""),
    Bug("the rotated part of a head is not handed on: all of it is rotated", &["partial_rotary/all/"], ""),
    Bug("the original context of a scaled RoPE is that of this run", &["rope_scaling/original/"], ""),
    Bug("the long factors of longrope are taken from the first token on", &["rope_scaling/short is long/"], ""),
    Bug("the short factors of longrope are taken in long prompts", &["rope_scaling/long is short/"], ""),
    Bug("YaRN's factor on attention is not read", &["rope_scaling/attention factor/"], ""),
    Bug("an indexer rotates pairs in place of halves", &[], "indexers of sparse attention"),
    Bug("learned positions are not added in decode", &[], "learned positions"),
    Bug("a rotation kernel is wrong from some position on", &["wrong_kernel/rope.wgsl beyond/", "wrong_kernel/heads.wgsl beyond/"], ""),
    Bug("a right scale of attention that is not the usual one", &["clean/none/granite/"], ""),
    Bug(
        "one key too many in a window",
        &["window_off_by_one/config/", "window_off_by_one/gguf metadata/", "window_off_by_one/visible.wgsl wider/"],
        "",
    ),
    Bug("global and sliding layers have each other's mask", &["window_pattern/exchanged/", "window_pattern/layers/"], ""),
    Bug("ALiBi takes its first rows in decode", &[], "ALiBi"),
    Bug("sinks are not bound", &["attn_sinks/none/"], ""),
    Bug("a ring that wrapped is read out of the order of time", &["kv_position/"], ""),
    Bug("layers that share a cache keep a scale of their own", &["attn_scale/formula layers that share keys/"], ""),
    Bug("a cache holds zeros", &["kv_corruption/zeros"], ""),
    Bug("the limit of a clamped activation is not passed", &["activation_clamp/beyond/"], ""),
    Bug("the limits of single layers are not read", &[], "limits of single layers"),
    Bug("a router scores by softmax in place of sigmoid, and its bias is in the weights", &["router/formula sigmoid/"], ""),
    Bug("a router applies softmax only where it renormalises", &["router/formula no function/"], ""),
    Bug("the weights of the chosen experts are not renormalised", &["router/division/"], ""),
    Bug("experts that compute nothing are weighted", &[], "experts that compute nothing"),
    Bug(
        "a recurrent state is not multiplied by its decay",
        &["delta_rule/formula no decay/", "delta_rule/formula matrices without decay/", "wrong_kernel/gated_delta.wgsl no decay/"],
        "",
    ),
    Bug(
        "a sum of squares is a mean",
        &["delta_rule/formula mean of keys/", "delta_rule/formula mean of queries/", "wrong_kernel/delta_in.wgsl mean/"],
        "",
    ),
    Bug("padding reaches a state through a convolution", &["attention_mask/formula padding/"], ""),
    Bug("softplus in half precision gives NaN", &["wrong_kernel/delta_in.wgsl softplus/"], ""),
    Bug("the factor of embeddings is lost with their class", &["embed_scale/config/"], ""),
    Bug("the values of a model overflow f16", &["bf16_overflow_f16/scaled/"], ""),
    Bug("codes of packed blocks are unpacked in another order", &["quant_unpack/gguf nibbles/"], ""),
    Bug("rows of bf16 are read as another type", &["corrupt_weight/another type/"], ""),
    Bug(
        "keys are stored with another scale than they are read with",
        &["kv_corruption/damaged", "kv_corruption/heads.wgsl", "kv_corruption/kv_write.wgsl"],
        "",
    ),
    Bug("a loop covers half of what it steps over", &["wrong_kernel/attention.wgsl half of the keys/", "subgroup_size/reduce.wgsl"], ""),
    Bug("bindings that are written overlap", &[], "bindings that overlap, which WebGPU refuses"),
    Bug("the offset of a tensor of experts is ignored, and an index overflows", &["swapped_tensors/experts/"], ""),
];

/// How many of them can be expressed and are named, and one line for each.
///
/// A bug counts as named where at least nine in ten of its mutants are named rightly first and none wrongly.
pub fn table(lines: &str) -> String {
    let results: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (mut expressed, mut named, mut rows) = (0, 0, String::new());
    for (number, Bug(what, ids, lacks)) in BUGS.iter().enumerate() {
        let of = |result: &&Value| result["id"].as_str().is_some_and(|id| ids.iter().any(|begin| id.starts_with(begin)));
        let planted: Vec<&str> = results.iter().filter(of).filter_map(|result| result["judged"].as_str()).collect();
        let right = planted.iter().filter(|judged| ["named", "clean"].contains(judged)).count();
        let wrong = planted.iter().any(|judged| ["wrong name", "false alarm"].contains(judged));
        let is_named = !planted.is_empty() && !wrong && right * 10 >= planted.len() * 9;
        expressed += usize::from(!ids.is_empty());
        named += usize::from(is_named);
        let found = match (ids.is_empty(), is_named) {
            (true, _) => format!("needs {lacks}"),
            (_, true) => format!("named, {right} of {}", planted.len()),
            (_, false) => format!("NOT NAMED, {right} of {}", planted.len()),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(rows, "  {:2} {what}: {found}", number + 1);
    }
    format!("of the {} real bugs {expressed} can be expressed, {named} named\n{rows}", BUGS.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::mutants::mutants;
    use serde_json::json;

    #[test]
    fn bugs_have_mutants_or_say_what_is_missing() {
        let planted = mutants().unwrap_or_else(|e| panic!("{e}"));
        let devices = std::fs::read_to_string(crate::root().join("tests/suite/devices.rs")).unwrap_or_default();
        for Bug(what, ids, lacks) in BUGS {
            assert!(ids.is_empty() != lacks.is_empty(), "{what}");
            for begin in *ids {
                let (class, variant) = begin.trim_end_matches('/').split_once('/').unwrap_or((begin, ""));
                let simulated = devices.contains(&format!("(\"{class}\", \"{variant}"));
                assert!(simulated || planted.iter().any(|mutant| mutant.id.starts_with(begin)), "{what}: nothing is planted as {begin}");
            }
        }
        assert_eq!(BUGS.len(), 45);
    }

    #[test]
    fn nine_in_ten_are_named_and_none_wrongly() {
        let lines = |judged: &[&str]| {
            let line = |(i, judged): (usize, &&str)| json!({"id": format!("norm_eps/config/m/{i}/0/golden"), "judged": judged}).to_string();
            table(&judged.iter().enumerate().map(line).collect::<Vec<_>>().join("\n"))
        };
        assert!(lines(&["named"; 10]).contains("can be expressed, 1 named"));
        let mut some = ["named"; 10];
        some[3] = "missed";
        assert!(lines(&some).contains("named, 9 of 10"));
        some[3] = "wrong name";
        assert!(lines(&some).contains("NOT NAMED, 9 of 10"));
        assert!(lines(&["abstained", "named"]).contains("can be expressed, 0 named"));
    }
}
