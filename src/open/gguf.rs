//! A model that GGUF files describe: their headers give config, words and the places of weights.

use crate::config::{FACTORS, GgufConfig, GgufTensors, gguf_config};
use crate::error::{Error, Result};
use crate::formats::gguf::{join, names, read_header};
use crate::formats::{ByteSource, ModelTexts};
use crate::loader::{Checkpoint, Gguf, ModelFiles};
use crate::model::{LayerConfig, ModelConfig, Resolved, Source, TensorName, TensorNames, TensorRows, WeightRole};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Reads the headers of a model's GGUF files, which are in order, and the few tensors whose values belong to the config.
///
/// # Errors
/// Those of `read_header`, `join` and `gguf_config`, with `path` in front; `Kind::Io` when reading fails.
pub async fn open_gguf<S: ByteSource>(path: PathBuf, sources: Vec<S>) -> Result<ModelFiles<S>> {
    let mut headers = Vec::with_capacity(sources.len());
    for source in &sources {
        headers.push(read_header(source).await?);
    }
    let file_names: Vec<&str> = sources.iter().map(ByteSource::name).collect();
    let header = join(headers, &file_names)?;
    let (mut shapes, mut factors) = (BTreeMap::new(), BTreeMap::new());
    for tensor in &header.tensors {
        shapes.insert(tensor.name.clone(), tensor.shape.clone());
        if FACTORS.contains(&tensor.name.as_str()) {
            let entry = tensor.entry();
            let format = entry.dtype.format().filter(|format| format.is_plain() && entry.bytes() <= 1 << 20);
            let format = format.ok_or_else(|| {
                let message = format!(
                    "tensor `{}`: expected a short list of plain numbers, found {} bytes of {}",
                    entry.name,
                    entry.bytes(),
                    entry.dtype
                );
                Error::format(path.display(), message)
            })?;
            let bytes = sources[tensor.file].read(tensor.range.clone()).await?;
            factors.insert(tensor.name.clone(), format.values(&bytes)?);
        }
    }
    let tensors = GgufTensors { shapes: &shapes, factors: &factors };
    let config = gguf_config(&header.metadata.to_json(), &tensors).map_err(|e| e.within(path.display()))?;
    let text = serde_json::to_string(&config.config).map_err(|e| Error::format(path.display(), e))?;
    let texts = ModelTexts { config: text, ..ModelTexts::default() };
    let GgufConfig { sources: of_keys, norms_hold_offset, neighbouring_pairs, tiled_values, ignored, notes, .. } = config;
    let gguf = Gguf { header, sources: of_keys, norms_hold_offset, neighbouring_pairs, tiled_values, ignored, notes };
    Ok(ModelFiles { gguf: Some(Arc::new(gguf)), ..ModelFiles::new(path, texts, sources, None) })
}

/// Where a file that has the tensors for which `has` is true keeps the weights of `config`; with `tiled`, value heads of delta rules are
/// not by key head.
pub fn tensor_names(config: &ModelConfig, tiled: bool, has: impl Fn(&str) -> bool) -> Vec<(WeightRole, TensorName)> {
    let gated = config.attentions().find(|attention| attention.gated).map(|attention| attention.head_dim);
    let delta = config.layers.iter().find_map(LayerConfig::delta_rule).map(|rule| rule.heads);
    let of_role = |role: WeightRole| {
        let (template, fused) = match (role, gated) {
            (WeightRole::QProj | WeightRole::AttnGate, Some(_)) => (names::FUSED[0].1, names::FUSED[0].0),
            _ => names::template(role.name(), &has)?,
        };
        let fused: Vec<WeightRole> = fused.iter().filter_map(|role| WeightRole::parse(role)).collect();
        let mut rows = TensorRows { negated_exp: role == WeightRole::DeltaDecay, ..TensorRows::default() };
        match (&fused[..], delta) {
            ([WeightRole::QProj, WeightRole::AttnGate], _) => rows.interleaved = gated,
            ([WeightRole::DeltaB, _], Some(heads)) => rows.interleaved = Some(heads.share()),
            ([WeightRole::DeltaQkv, _], Some(heads)) => rows.sections = Some(heads.sections()),
            ([], Some(heads)) if tiled && heads.share() > 1 => rows.tiles = heads.tiles(role),
            _ => {}
        }
        Some((role, TensorName { template: template.into(), fused, bare: names::is_whole(template), rows }))
    };
    WeightRole::TABLE.iter().filter_map(|(role, _)| of_role(*role)).collect()
}

/// `text` with `with` in place of each `word` that does not go on behind it.
fn replaced(text: &str, word: &str, with: &str) -> String {
    let parts: Vec<&str> = text.split(word).collect();
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            let goes_on = part.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            out += if goes_on { word } else { with };
        }
        out += part;
    }
    out
}

impl Gguf {
    /// Puts what only the file knows into a config that was made from its metadata: names of tensors, the conventions of the
    /// format, and the metadata in place of keys of config.json.
    pub fn amend(&self, resolved: &mut Resolved) {
        let Resolved { config, sources, notes, .. } = resolved;
        notes.extend_from_slice(&self.notes);
        let origins: BTreeMap<&str, &str> = self.sources.iter().map(|(key, from)| (key.as_str(), from.as_str())).collect();
        for (_, _, source) in sources.iter_mut() {
            // A key may be within one that has an origin: `rope_scaling.factor`.
            if let Source::Config(key) = source
                && let Some(from) = origins.get(key.split('.').next().unwrap_or(key))
            {
                *source = Source::Gguf((*from).to_string());
            }
            // What is computed from keys says so: no file of that name is there.
            if let Source::Derived(how) = source {
                for (key, from) in &origins {
                    *how = replaced(how, &format!("config.json {key}"), from);
                }
            }
        }
        if self.norms_hold_offset && config.norm.weight_offset() != 0.0 {
            config.norm = config.norm.with_weight_offset(0.0);
            let line = sources.iter_mut().find(|(field, _, _)| field == "norm.weightOffset");
            if let Some((_, value, source)) = line {
                *value = "0.0".into();
                *source = Source::Gguf("GGUF convention: the weights hold the added 1 already".into());
            }
        }
        config.tensors = self.names(config);
        if let Some((_, value, source)) = sources.iter_mut().find(|(field, _, _)| field == "tensors") {
            *value = format!("{} roles", config.tensors.names.len());
            *source = Source::Gguf("GGUF convention: its names".into());
        }
    }
    /// Where the file keeps the weights.
    fn names(&self, config: &ModelConfig) -> TensorNames {
        let shape = |name: &str| self.header.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| &tensor.shape[..]);
        let plain = names::plain(shape);
        // Layers that read the keys and values of others may have some nevertheless, as published files do.
        let shares = |layer: &LayerConfig| layer.attention().is_some_and(|a| a.shared_kv.is_some());
        let sharing = config.layers.iter().enumerate().filter(|(_, layer)| shares(layer)).map(|(i, _)| i);
        let unread = sharing.flat_map(|i| names::KEYS_AND_VALUES.map(|name| format!("blk.{i}.{name}.")));
        let known: BTreeSet<String> = self.header.tensors.iter().map(|tensor| names::of_first_layer(&tensor.name)).collect();
        TensorNames {
            prefixes: vec![String::new()],
            names: tensor_names(config, self.tiled_values, |name| known.contains(name) || (plain && name == names::GATE)),
            ignored: names::IGNORED.map(String::from).into_iter().chain(self.ignored.iter().cloned()).chain(unread).collect(),
            neighbours: config.attentions().next().map(|a| a.head_dim).filter(|_| self.neighbouring_pairs),
            packing: None,
        }
    }
    /// The checkpoint over `sources`, the files of this model.
    ///
    /// # Errors
    /// `Kind::Format` for a tensor that is there twice.
    pub fn checkpoint<S: Clone>(&self, sources: &[S]) -> Result<Checkpoint<S>> {
        Ok(Checkpoint::of_index(sources.to_vec(), self.header.index()?))
    }
}
