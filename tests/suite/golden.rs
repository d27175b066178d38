//! The golden models of `tests/data`, which `src/debug/reference/make_tiny.py` made from transformers classes
//! (float32, eager): every stage of a prompt, greedy ids. What their tests on the oracle and the GPU share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use doppler::config::{ModelConfig, ResolveOptions, resolve};
use doppler::cpu::{CpuExecutor, Real};
use doppler::exec::{Content, Executor, Pick, Read, Request, Rows, Step, Storage, Tokens, Want, WeightSink};
use doppler::formats::safetensors::read_header;
use doppler::formats::{ByteSource, InMemory};
use doppler::inference::pipeline;
use doppler::loader::{Checkpoint, load, match_slots, open_directory};
use doppler::plan::Plan;
use doppler::quant::Format;
use doppler::tensor::{Tensor, to_f32};
use pollster::block_on;

/// A golden model: its config and plan, and what transformers computed.
pub struct Golden {
    pub name: String,
    pub folder: PathBuf,
    pub config: ModelConfig,
    pub plan: Plan,
    pub values: BTreeMap<String, Tensor>,
    pub prompt: Vec<u32>,
    pub generated: Vec<u32>,
}

/// Every golden model, in the order of names.
pub fn goldens() -> Vec<Golden> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let folders = std::fs::read_dir(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.expect("a folder's entry").path()).collect();
    folders.retain(|folder| folder.join("golden.safetensors").is_file());
    folders.sort();
    assert!(!folders.is_empty(), "no golden models in {}", data.display());
    folders.into_iter().map(golden).collect()
}

/// The built-in model, which is trained.
pub fn demo() -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let files = open_directory(&folder).expect("the built-in model");
    let config =
        resolve(&files.texts.config, files.texts.generation_config.as_deref(), ResolveOptions::default()).expect("a config").config;
    let plan = pipeline::build(&config).expect("a plan");
    let (prompt, generated) = (vec![2, 7, 8, 9], vec![0; 12]);
    Golden { name: "demo".into(), folder, config, plan, values: BTreeMap::new(), prompt, generated }
}

fn golden(folder: PathBuf) -> Golden {
    let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
    let source = InMemory::open(&folder.join("golden.safetensors")).expect("a golden file");
    let header = block_on(read_header(&source)).expect("a golden file's header");
    let mut values = BTreeMap::new();
    for entry in header.tensors {
        let bytes = block_on(source.read(entry.range)).expect("a tensor's bytes");
        let data = to_f32(&bytes, entry.dtype.known().expect("f32 or i32"));
        values.insert(entry.name, Tensor::new(entry.shape, data).expect("the header was checked"));
    }
    let mut ids = |key: &str| -> Vec<u32> {
        let tensor = values.remove(key).unwrap_or_else(|| panic!("{name}: no {key}"));
        tensor.data.iter().map(|id| *id as u32).collect()
    };
    let (prompt, generated) = (ids("input_ids"), ids("generated_ids"));
    let files = open_directory(&folder).expect("a model folder");
    let resolved = resolve(&files.texts.config, files.texts.generation_config.as_deref(), ResolveOptions::default());
    let config = resolved.unwrap_or_else(|e| panic!("{name}: {e}")).config;
    let plan = pipeline::build(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
    Golden { name, folder, config, plan, values, prompt, generated }
}

impl Golden {
    /// The oracle with the model's weights.
    pub fn oracle<T: Real>(&self, storage: Storage) -> CpuExecutor<T> {
        self.filled(CpuExecutor::new(self.plan.clone(), storage).expect("a verified plan"))
    }

    /// `executor` with the model's weights.
    pub fn filled<S: WeightSink>(&self, mut executor: S) -> S {
        self.fill(&mut executor);
        executor
    }

    /// Puts the model's weights into `executor`; the types that they are stored as.
    pub fn fill<S: WeightSink>(&self, executor: &mut S) -> Vec<Format> {
        let files = open_directory(&self.folder).expect("a model folder");
        let filled = block_on(async {
            let checkpoint = Checkpoint::open(files.sources, files.shards.as_ref()).await?;
            let matched = match_slots(&self.plan, &self.config.tensors, &checkpoint.index, false)?;
            let report = load(&self.plan, &checkpoint, &matched, true, executor, &mut |_| {}).await?;
            Ok::<_, doppler::Error>((report, matched.formats()))
        });
        let (report, formats) = filled.unwrap_or_else(|e| panic!("{}: {e}", self.name));
        assert!(report.non_finite.is_empty(), "{}: {:?}", self.name, report.non_finite);
        formats
    }

    /// Whether a sequence of `length` uses the long list of a longrope model.
    fn long(&self, length: usize) -> bool {
        self.plan.is_long(length)
    }

    /// Every stage of the prompt, by key.
    pub fn stages<E: Executor>(&self, executor: &E) -> BTreeMap<String, Tensor> {
        let requests: Vec<Request> =
            self.plan.stages().into_iter().map(|stage| Request { stage, layers: None, want: Want::Full }).collect();
        let mut cache = executor.new_cache(self.prompt.len(), self.prompt.len()).expect("a cache");
        let step = Step {
            tokens: Tokens::Ids(&self.prompt),
            rows: Rows::Last,
            pick: None,
            read: Read::Nothing,
            long_rope: self.long(self.prompt.len()),
            requests: &requests,
        };
        let output = block_on(executor.step(&mut cache, &step)).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let full = |content| match content {
            Content::Full(tensor) => tensor,
            other => panic!("all elements were asked for, found {other:?}"),
        };
        output.values.into_iter().map(|v| (v.at.key(), full(v.content))).collect()
    }

    /// What transformers shows, and what its cache then holds: it keeps what is appended as it is.
    pub fn values_and_cached(&self) -> BTreeMap<String, Tensor> {
        let cached = self.plan.nodes.iter().filter(|node| node.op.appends());
        let appended = cached.filter_map(|node| Some((node.at.key(), self.values.get(&self.plan.node(node.inputs[0]).at.key())?.clone())));
        self.values.clone().into_iter().chain(appended).collect()
    }

    /// As many greedy ids as transformers gave, the prompt in steps of `chunk` tokens. When a longrope model passes its
    /// original length, the sequence is computed again with the other list, as transformers does.
    pub fn greedy<E: Executor>(&self, executor: &E, chunk: usize) -> Vec<u32> {
        let pick = Pick { valid: self.plan.vocab_size };
        let (mut all, mut cached, mut long) = (self.prompt.clone(), 0, self.long(self.prompt.len()));
        let new_cache = || executor.new_cache(self.prompt.len() + self.generated.len(), chunk).expect("a cache");
        let mut cache = new_cache();
        while all.len() < self.prompt.len() + self.generated.len() {
            if self.long(all.len()) != long {
                (cache, cached, long) = (new_cache(), 0, !long);
            }
            let new = &all[cached..];
            let mut token = None;
            for (i, ids) in new.chunks(chunk).enumerate() {
                let last = (i + 1) * chunk >= new.len();
                let (rows, pick) = if last { (Rows::Last, Some(pick)) } else { (Rows::None, None) };
                // A token that the step before picked need not have been read.
                let tokens = if cached >= self.prompt.len() && new.len() == 1 { Tokens::Picked } else { Tokens::Ids(ids) };
                let step = Step { tokens, rows, pick, read: Read::Nothing, long_rope: long, requests: &[] };
                token = block_on(executor.step(&mut cache, &step)).unwrap_or_else(|e| panic!("{}: {e}", self.name)).token;
            }
            cached = all.len();
            all.push(token.expect("picked"));
        }
        all.split_off(self.prompt.len())
    }
}
