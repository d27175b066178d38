//! The list of what is planted: which fault, in which model, in which layer, and how the doctor is asked. Its order is fixed.

use super::files::Folder;
use super::plant::PLANTS;
use super::plant::formulas::FORMULA_PLANTS;
use super::plant::gguf::GGUF_PLANTS;
use super::plant::kernels::KERNEL_PLANTS;
use crate::{Result, root};
use serde_json::Value;
use std::collections::HashSet;
use std::path::PathBuf;

/// What is planted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Nothing.
    Clean,
    /// A row of `PLANTS`.
    Folder(usize),
    /// Two of them.
    Two(usize, usize),
    /// A row of `KERNEL_PLANTS`.
    Kernel(usize),
    /// A row of `GGUF_PLANTS`.
    Gguf(usize),
    /// A row of `FORMULA_PLANTS`.
    Formula(usize),
}

/// How the doctor is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// Against transformers' values.
    Golden,
    /// Against the right model on another prompt, a short or a long one.
    Right { long: bool },
    /// Against a run of another formula.
    Formula,
    /// Against the right model in the same packed format.
    Packed(&'static str),
    /// Without a reference, on the oracle; in f16.
    Alone { f16: bool },
    /// Without a reference, on the GPU.
    Gpu { f16: bool },
}

impl Setting {
    /// For ids.
    fn name(self) -> &'static str {
        match self {
            Self::Golden => "golden",
            Self::Right { long: false } => "right",
            Self::Right { long: true } => "right-long",
            Self::Formula => "formula",
            Self::Packed(format) => format,
            Self::Alone { f16: false } => "alone",
            Self::Alone { f16: true } => "alone-f16",
            Self::Gpu { f16: false } => "alone-gpu",
            Self::Gpu { f16: true } => "alone-gpu-f16",
        }
    }
}

/// One diagnosis that is asked for.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// Unique: class, variant, model, layer, number, setting.
    pub id: String,
    pub model: String,
    pub kind: Kind,
    pub layer: usize,
    pub number: u64,
    pub setting: Setting,
}

/// The class that should be named, and the variant.
pub fn class(kind: Kind) -> (String, String) {
    let of = |class: &str, variant: &str| (class.to_string(), variant.to_string());
    match kind {
        Kind::Clean => of("clean", "none"),
        Kind::Folder(i) => of(PLANTS[i].0, PLANTS[i].1),
        Kind::Two(a, b) => of("two", &format!("{}+{}", PLANTS[a].0, PLANTS[b].0)),
        Kind::Kernel(i) => of(KERNEL_PLANTS[i].0, &format!("{}.wgsl {}", KERNEL_PLANTS[i].2, KERNEL_PLANTS[i].1)),
        Kind::Gguf(i) => of(GGUF_PLANTS[i].0, &format!("gguf {}", GGUF_PLANTS[i].1)),
        Kind::Formula(i) => of(FORMULA_PLANTS[i].0, &format!("formula {}", FORMULA_PLANTS[i].1)),
    }
}

pub fn folder(model: &str) -> PathBuf {
    root().join(if model == "demo" { "models/demo".into() } else { format!("tests/data/{model}") })
}

/// Models in which kernels are planted: among them windows, caps, norms of heads, both activations, one layer only.
const KERNEL_MODELS: [&str; 4] = ["mistral", "gemma2", "qwen3", "llama-yarn"];
/// Likewise kernels of ops that these have not.
const DELTA_MODELS: [&str; 4] = ["qwen3-5", "qwen3-5-tied", "qwen3-next", "qwen3-5-moe"];
const SCALE_MODELS: [&str; 4] = ["gemma4", "gemma4-shared", "gemma4-moe", "gemma4"];

/// The models that run a kernel.
fn models_of(kernel: &str) -> [&'static str; 4] {
    match kernel {
        "delta_in" | "gated_delta" | "sigmoid_scale" | "short_conv" => DELTA_MODELS,
        "scale" => SCALE_MODELS,
        _ => KERNEL_MODELS,
    }
}
/// Classes that a pair is drawn from: they are in different ops, and each is found alone.
const PAIRS: [&str; 8] =
    ["norm_eps", "rope_base", "attn_softcap", "final_softcap", "attn_scale", "activation", "swapped_tensors", "corrupt_weight"];

/// Whether a model's run reaches what is changed of a kernel: caps, windows and activations are not every model's.
fn runs(kernel: &str, variant: &str, model: &str) -> bool {
    match (kernel, variant) {
        ("soft_cap", _) | ("activation", "tanh") => model == "gemma2",
        ("activation", _) => model != "gemma2",
        ("visible", _) => ["gemma2", "mistral"].contains(&model),
        _ => true,
    }
}

struct List(Vec<Mutant>);

impl List {
    fn add(&mut self, kind: Kind, model: &str, layer: usize, number: u64, setting: Setting) {
        let (class, variant) = class(kind);
        let id = format!("{class}/{variant}/{model}/{layer}/{number}/{}", setting.name());
        self.0.push(Mutant { id, model: model.into(), kind, layer, number, setting });
    }
}

/// Every mutant that is planned; some models cannot have some faults.
pub fn mutants() -> Result<Vec<Mutant>> {
    let mut models: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/data"))? {
        let path = entry?.path();
        if path.join("golden.safetensors").is_file() {
            models.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    models.sort();
    let layers = |model: &str| -> Result<usize> {
        Ok(Folder::read(&folder(model))?.text_config().get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(3) as usize)
    };
    // A reference without the value is of a model without the op.
    let stages = |model: &str| -> Result<HashSet<String>> {
        let values = super::plant::formulas::values(&std::fs::read(folder(model).join("golden.safetensors"))?)?;
        Ok(values.keys().filter_map(|key| key.rsplit('.').next()).map(str::to_string).collect())
    };
    let sites = |per_layer: bool, layers: usize| {
        let mut sites = if per_layer { vec![0, layers / 2, layers - 1] } else { vec![0] };
        sites.dedup();
        sites
    };
    let is_half = |class: &str| class == "bf16_overflow_f16";
    let mut list = List(Vec::new());
    for model in &models {
        let layers = layers(model)?;
        list.add(Kind::Clean, model, 0, 0, Setting::Golden);
        (1..8).for_each(|number| list.add(Kind::Clean, model, 0, number, Setting::Right { long: number % 2 == 0 }));
        (0..4).for_each(|number| list.add(Kind::Clean, model, 0, number, Setting::Alone { f16: number % 2 == 1 }));
        for (plant, (class, _, per_layer, _)) in PLANTS.iter().enumerate() {
            for layer in sites(*per_layer, layers) {
                let setting = if is_half(class) { Setting::Alone { f16: true } } else { Setting::Golden };
                list.add(Kind::Folder(plant), model, layer, 0, setting);
                if ["chat_template", "bos_doubled", "tied_head"].contains(class) || PLANTS[plant].1 == "nan" {
                    list.add(Kind::Folder(plant), model, layer, 0, Setting::Alone { f16: false });
                }
            }
        }
        let stages = stages(model)?;
        for (plant, (_, _, stage, _)) in FORMULA_PLANTS.iter().enumerate() {
            if stages.contains(*stage) {
                list.add(Kind::Formula(plant), model, 0, 0, Setting::Formula);
            }
        }
        for (plant, (_, _, per_layer, _)) in GGUF_PLANTS.iter().enumerate() {
            for layer in sites(*per_layer, layers) {
                list.add(Kind::Gguf(plant), model, layer, 0, Setting::Packed("q8_0"));
            }
        }
        list.add(Kind::Clean, model, 0, 0, Setting::Packed("q8_0"));
        let pairs: Vec<usize> = (0..PLANTS.len()).filter(|i| PAIRS.contains(&PLANTS[*i].0) && PLANTS[*i].1 != "nan").collect();
        for number in 0..4 {
            // Strides that differ from model to model.
            let (a, b) = (pairs[(3 * number + model.len()) % pairs.len()], pairs[(5 * number + 1 + model.len()) % pairs.len()]);
            if PLANTS[a].0 != PLANTS[b].0 {
                list.add(Kind::Two(a.min(b), a.max(b)), model, number % layers, number as u64, Setting::Golden);
            }
        }
    }
    let layers = layers("demo")?;
    for format in ["q8_0", "q4_k", "q6_k"] {
        list.add(Kind::Clean, "demo", 0, 0, Setting::Packed(format));
        for (plant, (_, _, per_layer, _)) in GGUF_PLANTS.iter().enumerate() {
            sites(*per_layer, layers).into_iter().for_each(|layer| list.add(Kind::Gguf(plant), "demo", layer, 0, Setting::Packed(format)));
        }
    }
    for (plant, (class, _, per_layer, _)) in PLANTS.iter().enumerate().filter(|(_, plant)| !is_half(plant.0)) {
        list.add(Kind::Folder(plant), "demo", layers / 2, 0, Setting::Right { long: true });
        if !per_layer || ["gate_up_swapped", "swapped_tensors", "corrupt_weight", "swapped_layers"].contains(class) {
            list.add(Kind::Folder(plant), "demo", layers / 2, 0, Setting::Alone { f16: false });
        }
    }
    for number in 0..KERNEL_MODELS.len() as u64 {
        for model in KERNEL_MODELS.into_iter().chain([DELTA_MODELS[number as usize], SCALE_MODELS[number as usize]]) {
            list.add(Kind::Clean, model, 0, number, Setting::Gpu { f16: number % 2 == 1 });
        }
        for plant in 0..KERNEL_PLANTS.len() {
            // Every kernel fault in another model each time.
            let models = models_of(KERNEL_PLANTS[plant].2);
            let model = models[(plant + number as usize) % models.len()];
            // What is written to a cache in f16 stands in another line.
            let is_cached = KERNEL_PLANTS[plant].0 == "kv_corruption" && number % 2 == 1;
            if runs(KERNEL_PLANTS[plant].2, KERNEL_PLANTS[plant].1, model) && !is_cached {
                list.add(Kind::Kernel(plant), model, 0, number, Setting::Gpu { f16: number % 2 == 1 });
            }
        }
    }
    (0..8).for_each(|number| list.add(Kind::Clean, "demo", 0, number, Setting::Alone { f16: false }));
    Ok(list.0)
}
