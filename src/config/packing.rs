//! `quantization_config` of packed checkpoints, read strictly: a key that is not known could change what codes mean. What it
//! says of modules that are not packed is passed over: the tensors show it.

use super::keys::Object;
use super::values::{brief, is_off};
use crate::error::{Error, Result};
use crate::model::{GptqZeros, PackedLayout, Packing};
use serde_json::Value;

/// A packing, and what there is to say of it.
pub(super) struct Read {
    pub packing: Packing,
    /// Keys that were not understood, where the caller allows them.
    pub ignored: Vec<String>,
    /// What it asks for that is not done.
    pub notes: Vec<String>,
}

/// Most bits of a code in any layout.
const MOST_BITS: usize = 16;

/// An object of the config, with its path.
struct Part<'a> {
    path: String,
    object: &'a Object,
}

impl<'a> Part<'a> {
    fn of(path: String, value: &'a Value) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| Error::config(&path, format!("expected an object, found {}", brief(value))))?;
        Ok(Self { path, object })
    }
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }
    /// A value that is not off.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !is_off(value))
    }
    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(key, "expected a text", value));
        self.get(key).map(text).transpose()
    }
    fn on(&self, key: &str) -> bool {
        self.get(key).is_some()
    }
    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::config(self.key(key), format!("{expected}, found {}", brief(found)))
    }
    fn unsupported(&self, key: &str, what: impl std::fmt::Display) -> Error {
        super::keys::unsupported(self.key(key), what)
    }
    /// A whole number from `least` on.
    fn count(&self, key: &str, least: u64) -> Result<Option<usize>> {
        let count = |value: &Value| {
            let number = value.as_u64().filter(|n| *n >= least && *n <= u64::from(u32::MAX));
            number.map(|n| n as usize).ok_or_else(|| self.wrong(key, &format!("expected a whole number from {least} on"), value))
        };
        self.object.get(key).filter(|value| !value.is_null()).map(count).transpose()
    }
    /// Bits of a code.
    fn bits(&self, key: &str) -> Result<Vec<u32>> {
        match self.count(key, 1)? {
            Some(bits) if bits > MOST_BITS => {
                Err(Error::config(self.key(key), format!("expected the bits of a code, 1 to {MOST_BITS}, found {bits}")))
            }
            bits => Ok(bits.map(|bits| bits as u32).into_iter().collect()),
        }
    }
    /// Columns of a group; −1 is all of them, for which 0 stands.
    fn group(&self) -> Result<Vec<usize>> {
        match self.object.get("group_size") {
            Some(value) if value.as_i64() == Some(-1) => Ok(vec![0]),
            _ => Ok(self.count("group_size", 1)?.into_iter().collect()),
        }
    }
    /// Two sizes of a block.
    fn block(&self, key: &str) -> Result<Option<[usize; 2]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = |value: &Value| value.as_u64().filter(|n| (1..=1 << 20).contains(n)).map(|n| n as usize);
        let sizes = value.as_array().and_then(|list| list.iter().map(size).collect::<Option<Vec<usize>>>());
        match sizes.as_deref() {
            Some([rows, columns]) => Ok(Some([*rows, *columns])),
            _ => Err(self.wrong(key, "expected two sizes, such as [128, 128]", value)),
        }
    }
    /// Refuses keys that are neither in `known` nor off.
    fn only(&self, known: &[&str], allow: bool, ignored: &mut Vec<String>) -> Result<()> {
        for (key, value) in self.object {
            if known.contains(&key.as_str()) || key.starts_with('_') || is_off(value) {
                continue;
            }
            if !allow {
                let message = "not known here, and could change what packed weights mean; `--allow-unknown-config` reads them without it";
                return Err(Error::config(self.key(key), message));
            }
            ignored.push(self.key(key));
        }
        Ok(())
    }
}

/// Reads the value of the key at `path`. With `allow`, keys that are not known are passed over.
///
/// # Errors
/// `Kind::Config` for keys that are not known or have a bad value; `Kind::Unsupported` for what is known and not read.
pub(super) fn read(path: &str, value: &Value, allow: bool) -> Result<Read> {
    let part = Part::of(path.to_string(), value)?;
    let (mut ignored, mut notes) = (Vec::new(), Vec::new());
    let loads = ["load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"].iter().any(|key| part.on(key));
    let packing = match part.text("quant_method")? {
        Some("gptq") => gptq(&part, allow, &mut ignored)?,
        Some("awq") => awq(&part, allow, &mut ignored)?,
        Some("compressed-tensors") => compressed(&part, allow, &mut ignored, &mut notes)?,
        Some("fp8" | "fbgemm_fp8") => fp8(&part, allow, &mut ignored, &mut notes)?,
        Some("bitsandbytes") => bitsandbytes(&part, allow, &mut ignored)?,
        Some("mxfp4") => mxfp4(&part, allow, &mut ignored)?,
        Some(other) => return Err(part.unsupported("quant_method", format!("{other:.40} is not read"))),
        None if loads => bitsandbytes(&part, allow, &mut ignored)?,
        None if part.on("group_size") && part.on("bits") => mlx(&part)?,
        None => return Err(Error::config(part.key("quant_method"), "is missing: how the weights are packed is not stated")),
    };
    Ok(Read { packing, ignored, notes })
}

fn gptq(part: &Part<'_>, allow: bool, ignored: &mut Vec<String>) -> Result<Packing> {
    const KNOWN: &[&str] = &[
        "quant_method",
        "bits",
        "group_size",
        "desc_act",
        "sym",
        "checkpoint_format",
        "format",
        "meta",
        "true_sequential",
        "static_groups",
        "damp_percent",
        "damp_auto_increment",
        "act_group_aware",
        "lm_head",
        "pack_dtype",
        "dynamic",
        "model_name_or_path",
        "model_file_base_name",
        "is_marlin_format",
        "dataset",
        "tokenizer",
        "batch_size",
        "block_name_to_quantize",
        "backend",
        "module_name_preceding_first_block",
        "modules_in_block_to_quantize",
        "modules_to_not_convert",
        "model_seqlen",
        "pad_token_id",
        "max_input_length",
        "cache_block_outputs",
        "use_cuda_fp16",
        "use_exllama",
        "disable_exllama",
        "exllama_config",
        "quantizer",
        "mse",
        "offload_to_disk",
        "offload_to_disk_path",
        "hessian",
        "failsafe",
        "method",
        "device",
        "adapter",
        "parallel_packing",
        "fallback",
        "gptaq",
        "foem",
        "moe",
        "offload",
        "process",
        "vram_strategy",
        "gc_mode",
        "wait_for_submodule_finalizers",
    ];
    part.only(KNOWN, allow, ignored)?;
    let stated = if part.on("checkpoint_format") { "checkpoint_format" } else { "format" };
    if part.on("is_marlin_format") {
        return Err(part.unsupported("is_marlin_format", "weights in the order of the marlin kernel are not read"));
    }
    if part.text("pack_dtype")?.is_some_and(|name| name != "int32") {
        return Err(part.unsupported("pack_dtype", "only int32 is read"));
    }
    // Modules may have numbers of their own then; the tensors show them.
    let own = part.get("dynamic");
    let (mut bits, mut groups) = (part.bits("bits")?, part.group()?);
    if own.is_some() {
        (bits, groups) = (Vec::new(), Vec::new());
    }
    let by_word = part.get("meta").and_then(gptqmodel).is_some_and(|version| version < 7);
    let zeros = match part.text(stated)? {
        Some("gptq_v2") => GptqZeros::Plain,
        None | Some("gptq") if by_word => GptqZeros::LessOneByWord,
        None | Some("gptq") => GptqZeros::LessOne,
        Some(other) => return Err(part.unsupported(stated, format!("{other:.40} is not read, only gptq and gptq_v2"))),
    };
    let sorted = part.on("desc_act") || own.is_some_and(|own| own.to_string().contains("\"desc_act\":true"));
    Ok(Packing { layout: PackedLayout::Gptq { ordered: !sorted || groups == [0], zeros }, bits, groups })
}

/// The major version of the GPTQModel that wrote the files, if it did.
fn gptqmodel(meta: &Value) -> Option<u32> {
    let text = meta.to_string();
    let (_, version) = text.split_once("gptqmodel:")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn awq(part: &Part<'_>, allow: bool, ignored: &mut Vec<String>) -> Result<Packing> {
    const KNOWN: &[&str] = &[
        "quant_method",
        "bits",
        "w_bit",
        "group_size",
        "q_group_size",
        "zero_point",
        "version",
        "format",
        "modules_to_not_convert",
        "backend",
        "do_fuse",
        "fuse_max_seq_len",
        "modules_to_fuse",
        "exllama_config",
        "sym",
        "desc_act",
        "true_sequential",
        "damp_percent",
        "act_group_aware",
        "batch_size",
        "cache_block_outputs",
        "checkpoint_format",
        "meta",
        "lm_head",
        "pack_dtype",
    ];
    part.only(KNOWN, allow, ignored)?;
    for key in ["version", "format", "checkpoint_format"] {
        if let Some(version) = part.text(key)?.filter(|version| !version.eq_ignore_ascii_case("gemm")) {
            return Err(part.unsupported(key, format!("{version:.40} is not read, only gemm")));
        }
    }
    if part.object.get("zero_point").is_some_and(is_off) {
        return Err(part.unsupported("zero_point", "files without zero points are not read"));
    }
    let bits = if part.on("bits") { part.bits("bits")? } else { part.bits("w_bit")? };
    Ok(Packing { layout: PackedLayout::Awq, bits, groups: part.group()? })
}

fn compressed(part: &Part<'_>, allow: bool, ignored: &mut Vec<String>, notes: &mut Vec<String>) -> Result<Packing> {
    const KNOWN: &[&str] = &[
        "quant_method",
        "format",
        "config_groups",
        "ignore",
        "kv_cache_scheme",
        "global_compression_ratio",
        "quantization_status",
        "sparsity_config",
        "transform_config",
        "version",
    ];
    const FORMATS: [&str; 5] = ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"];
    part.only(KNOWN, allow, ignored)?;
    let format = |part: &Part<'_>| match part.text("format")? {
        Some(name) if !FORMATS.contains(&name) => {
            Err(part.unsupported("format", format!("{name:.40} is not read, only {}", FORMATS.join(", "))))
        }
        _ => Ok(()),
    };
    format(part)?;
    if part.on("transform_config") {
        return Err(part.unsupported("transform_config", "rotations of activations are not run"));
    }
    if let Some(sparse) = part.get("sparsity_config") {
        let sparse = Part::of(part.key("sparsity_config"), sparse)?;
        if sparse.text("format")?.is_some_and(|format| format != "dense") {
            return Err(sparse.unsupported("format", "sparse weights are not read"));
        }
    }
    if part.on("kv_cache_scheme") {
        notes.push(format!(
            "config.json: `{}` asks for a quantised cache; Doppler stores keys and values unquantised",
            part.key("kv_cache_scheme")
        ));
    }
    let mut packing = Packing { layout: PackedLayout::Compressed { block: None }, bits: Vec::new(), groups: Vec::new() };
    let Some(groups) = part.get("config_groups") else { return Ok(packing) };
    for (name, value) in Part::of(part.key("config_groups"), groups)?.object {
        let group = Part::of(format!("{}.config_groups.{name}", part.path), value)?;
        group.only(&["weights", "input_activations", "output_activations", "targets", "format"], allow, ignored)?;
        format(&group)?;
        if let Some(key) = ["input_activations", "output_activations"].into_iter().find(|key| group.on(key)) {
            notes.push(activations(&group.key(key)));
        }
        let Some(weights) = group.get("weights") else { continue };
        let weights = Part::of(group.key("weights"), weights)?;
        let known = [
            "num_bits",
            "type",
            "symmetric",
            "strategy",
            "group_size",
            "block_structure",
            "actorder",
            "dynamic",
            "observer",
            "observer_kwargs",
            "scale_dtype",
            "zp_dtype",
        ];
        weights.only(&known, allow, ignored)?;
        packing.bits.extend(weights.bits("num_bits")?);
        let (group_size, strategy) = (weights.group()?, weights.text("strategy")?);
        match strategy {
            Some("group") | None => packing.groups.extend(group_size),
            Some("tensor" | "channel") => packing.groups.push(0),
            Some("block") => {
                let block = weights.block("block_structure")?;
                packing.groups.extend(block.map(|[_, columns]| columns));
                packing.layout = PackedLayout::Compressed { block };
            }
            Some(other) => return Err(weights.unsupported("strategy", format!("{other:.40} is not read"))),
        }
        if weights.on("dynamic") {
            return Err(weights.unsupported("dynamic", "weights that are packed as the model runs are not read"));
        }
    }
    Ok(packing)
}

/// What is said of activations that other libraries would round.
fn activations(key: &str) -> String {
    format!("config.json: `{key}` asks for quantised activations; Doppler quantises weights only and keeps activations as they are")
}

fn fp8(part: &Part<'_>, allow: bool, ignored: &mut Vec<String>, notes: &mut Vec<String>) -> Result<Packing> {
    const KNOWN: &[&str] = &[
        "quant_method",
        "activation_scheme",
        "weight_block_size",
        "modules_to_not_convert",
        "modules_to_convert",
        "ignored_layers",
        "fmt",
        "scale_fmt",
        "dequantize",
        "expert_dtype",
        "activation_scale_ub",
        "kv_cache_scheme",
    ];
    part.only(KNOWN, allow, ignored)?;
    if part.text("fmt")?.is_some_and(|fmt| fmt != "e4m3") {
        return Err(part.unsupported("fmt", "only e4m3 is read"));
    }
    // Both names of this method quantise activations; the first states how.
    let key = if part.on("activation_scheme") { "activation_scheme" } else { "quant_method" };
    notes.push(activations(&part.key(key)));
    let block = part.block("weight_block_size")?;
    Ok(Packing { layout: PackedLayout::Fp8 { block }, bits: Vec::new(), groups: Vec::new() })
}

fn bitsandbytes(part: &Part<'_>, allow: bool, ignored: &mut Vec<String>) -> Result<Packing> {
    const KNOWN: &[&str] = &[
        "quant_method",
        "load_in_4bit",
        "load_in_8bit",
        "llm_int8_threshold",
        "llm_int8_skip_modules",
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_storage",
    ];
    part.only(KNOWN, allow, ignored)?;
    Ok(Packing { layout: PackedLayout::Bitsandbytes, bits: Vec::new(), groups: Vec::new() })
}

/// Which modules are packed, the tensors show.
fn mxfp4(part: &Part<'_>, allow: bool, ignored: &mut Vec<String>) -> Result<Packing> {
    part.only(&["quant_method", "modules_to_not_convert", "dequantize"], allow, ignored)?;
    Ok(Packing { layout: PackedLayout::Mxfp4, bits: Vec::new(), groups: Vec::new() })
}

/// Modules may have numbers of their own, under their names.
fn mlx(part: &Part<'_>) -> Result<Packing> {
    let mut layout = PackedLayout::Mlx;
    let (mut bits, mut groups) = (part.bits("bits")?, part.group()?);
    match part.text("mode")? {
        None | Some("affine") => {}
        Some("mxfp4") => layout = PackedLayout::MlxMxfp4,
        Some(other) => return Err(part.unsupported("mode", format!("{other:.40} is not read, only affine and mxfp4"))),
    }
    for (name, value) in part.object {
        match value {
            Value::Object(_) => {
                let own = Part::of(part.key(name), value)?;
                if own.text("mode")? != part.text("mode")? && own.on("mode") {
                    return Err(own.unsupported("mode", "modules of several modes are not read"));
                }
                bits.extend(own.bits("bits")?);
                groups.extend(own.group()?);
            }
            Value::Bool(_) => {}
            _ if ["bits", "group_size", "mode"].contains(&name.as_str()) => {}
            _ => return Err(Error::config(part.key(name), "not known here, and could change what packed weights mean")),
        }
    }
    Ok(Packing { layout, bits, groups })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::json;

    fn packing(value: Value) -> Packing {
        read("quantization_config", &value, false).map(|read| read.packing).unwrap()
    }

    #[test]
    fn methods_are_told_apart() {
        let gptq = |extra: Value| {
            let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false});
            config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            packing(config)
        };
        let layout = |ordered, zeros| PackedLayout::Gptq { ordered, zeros };
        assert_eq!(gptq(json!({})).layout, layout(true, GptqZeros::LessOne));
        assert_eq!(gptq(json!({"checkpoint_format": "gptq_v2", "desc_act": true})).layout, layout(false, GptqZeros::Plain));
        assert_eq!(gptq(json!({"desc_act": true, "group_size": -1})).layout, layout(true, GptqZeros::LessOne));
        for (version, zeros) in [("7.0.0", GptqZeros::LessOne), ("10.1", GptqZeros::LessOne), ("6.0.3", GptqZeros::LessOneByWord)] {
            assert_eq!(gptq(json!({"meta": {"quantizer": [format!("gptqmodel:{version}")]}})).layout, layout(true, zeros), "{version}");
        }
        assert_eq!((gptq(json!({})).bits, gptq(json!({})).groups), (vec![4], vec![128]));

        let group = json!({"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32}});
        let found = packing(json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}));
        assert_eq!((found.bits, found.groups), (vec![4], vec![32]));
        let found = packing(json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}));
        assert_eq!(found.layout, PackedLayout::Fp8 { block: Some([128, 128]) });
        assert_eq!(packing(json!({"load_in_8bit": true})).layout, PackedLayout::Bitsandbytes);
        let found = packing(json!({"bits": 4, "group_size": 64, "mode": "affine", "lm_head": {"bits": 8, "group_size": 64}, "x": false}));
        assert_eq!((found.layout, found.bits), (PackedLayout::Mlx, vec![4, 8]));
    }

    #[test]
    fn what_could_change_the_maths_is_refused_by_its_name() {
        for (value, key, kind) in [
            (json!({"bits": 4}), "quantization_config.quant_method", Kind::Config),
            (json!({"quant_method": "hqq"}), "quantization_config.quant_method", Kind::Unsupported),
            (json!({"quant_method": "gptq", "bits": -4}), "quantization_config.bits", Kind::Config),
            (json!({"quant_method": "gptq", "bits": 255}), "quantization_config.bits", Kind::Config),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": -2}), "quantization_config.group_size", Kind::Config),
            (json!({"quant_method": "gptq", "checkpoint_format": "marlin"}), "checkpoint_format", Kind::Unsupported),
            (json!({"quant_method": "gptq", "rotation": "hadamard"}), "rotation", Kind::Config),
            (json!({"quant_method": "awq", "version": "gemv"}), "version", Kind::Unsupported),
            (json!({"quant_method": "fp8", "weight_block_size": [128, -1]}), "weight_block_size", Kind::Config),
            (json!({"quant_method": "fp8", "weight_block_size": [128, 0]}), "weight_block_size", Kind::Config),
            (json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}), "format", Kind::Unsupported),
            (json!({"quant_method": "compressed-tensors", "transform_config": {"a": 1}}), "transform_config", Kind::Unsupported),
            (json!({"bits": 4, "group_size": 64, "mode": "nvfp4"}), "mode", Kind::Unsupported),
            (json!("gptq"), "quantization_config", Kind::Config),
        ] {
            let error = read("quantization_config", &value, false).map(|read| read.packing).unwrap_err();
            assert!(error.kind == kind && error.message.contains(key), "{value}: {error}");
        }
        let allowed = read("q", &json!({"quant_method": "gptq", "bits": 4, "rotation": "x"}), true).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(allowed.ignored, ["q.rotation"]);
    }

    #[test]
    fn activations_that_others_would_round_are_noted() {
        let config = json!({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": {
            "targets": ["Linear"], "input_activations": {"num_bits": 8, "dynamic": true},
            "weights": {"num_bits": 8, "strategy": "channel"}}}});
        for value in [config, json!({"quant_method": "fp8", "activation_scheme": "dynamic"})] {
            let read = read("q", &value, false).unwrap_or_else(|e| panic!("{e}"));
            assert!(read.notes[0].contains("keeps activations as they are"), "{:?}", read.notes);
        }
    }
}
