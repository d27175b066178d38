//! A model that a manifest describes: its texts are those of a folder in Hugging Face's layout, its weights lie by role in
//! shards.

use crate::error::{Error, Result};
use crate::formats::manifest::{self, Manifest};
use crate::formats::sharded::Sharded;
use crate::formats::{ByteSource, ModelTexts};
use crate::loader::ModelFiles;
use crate::model::{Resolved, Source, TensorName, TensorNames, TensorRows, WeightRole};
use std::path::PathBuf;
use std::sync::Arc;

/// The files of the model that `manifest` describes: its texts, and its shards in the manifest's order, which become one
/// file. That texts have the hashes of the manifest is for those to check who have their bytes.
///
/// # Errors
/// `Kind::Format` for shards of another number or length.
pub fn open_manifest<S: ByteSource, T: From<Sharded<S>>>(
    path: PathBuf,
    texts: ModelTexts,
    manifest: Manifest,
    shards: Vec<S>,
) -> Result<ModelFiles<T>> {
    let name = path.join(manifest::FILE).display().to_string();
    let sharded = Sharded::new(name, &manifest, shards)?;
    Ok(ModelFiles { manifest: Some(Arc::new(manifest)), ..ModelFiles::new(path, texts, vec![sharded.into()], None) })
}

/// The model in the folder at `path`, which has a manifest. Its texts are compared with their hashes, its shards are
/// opened; those are hashed as they are read.
///
/// # Errors
/// `Kind::Io` for files that are missing and texts that are links out of the folder; those of `Manifest::parse` and [`open_manifest`]; `Kind::Format` for texts that are
/// not those of the manifest.
#[cfg(not(target_arch = "wasm32"))]
pub fn open_folder(path: &std::path::Path) -> Result<ModelFiles> {
    use crate::formats::text::{MAX_INDEX, MAX_TOKENIZER, read_verbatim};
    use crate::formats::{Local, LocalFile};
    use crate::loader::check_within;
    let file = path.join(manifest::FILE);
    check_within(path, &file)?;
    let manifest = Manifest::parse(&file.display().to_string(), &read_verbatim(&file, MAX_INDEX)?)?;
    let listed = |name: &str| manifest.texts.iter().any(|file| file.name == name);
    let text = |file: &std::path::Path| check_within(path, file).and_then(|()| read_verbatim(file, MAX_TOKENIZER));
    let texts = ModelTexts::read(|name| listed(name).then(|| text(&path.join(name))).transpose())?;
    let texts = texts.ok_or_else(|| Error::format(file.display(), "it lists no config.json"))?;
    check_texts(&manifest, &texts, path)?;
    let open = |shard: &manifest::Hashed| LocalFile::open(&path.join(&shard.name)).map(Local::File);
    let shards = manifest.shards.iter().map(open).collect::<Result<Vec<_>>>()?;
    open_manifest(path.to_path_buf(), texts, manifest, shards)
}

/// What manifests call weights: their roles, with the layer in front of those that layers have.
pub fn tensor_names() -> TensorNames {
    let of_role = |(role, name): &(WeightRole, &str)| {
        let template = if role.is_of_layers() { format!("layer.{{layer}}.{name}") } else { (*name).to_owned() };
        (*role, TensorName { template, fused: Vec::new(), bare: false, rows: TensorRows::default() })
    };
    let names = WeightRole::TABLE.iter().map(of_role).collect();
    TensorNames { prefixes: vec![String::new()], names, ignored: Vec::new(), neighbours: None, packing: None }
}

/// Puts the manifest's names of weights in place of those that go with config.json.
pub(super) fn amend(resolved: &mut Resolved) {
    resolved.config.tensors = tensor_names();
    // What the config says of packed weights was of the source.
    resolved.quantised = None;
    if let Some((_, value, source)) = resolved.sources.iter_mut().find(|(field, _, _)| field == "tensors") {
        *value = format!("{} roles", resolved.config.tensors.names.len());
        *source = Source::Derived(format!("{}: weights by role", manifest::FILE));
    }
}

/// Refuses texts that are not those of the manifest: each with its SHA-256, as `hash` finds it.
///
/// # Errors
/// `Kind::Format`, naming the file.
pub fn check_texts(manifest: &Manifest, texts: &ModelTexts, place: &std::path::Path) -> Result<()> {
    for file in &manifest.texts {
        let text = texts.iter().find(|(name, _)| *name == file.name).map(|(_, text)| text.as_bytes());
        let found = text.map(crate::formats::sharded::sha256_of);
        if found.as_deref() != Some(file.sha256.as_str()) {
            let found = found.map_or("it is missing".into(), |found| format!("its SHA-256 is {found}, expected {}", file.sha256));
            let message = format!("not the file that the manifest lists: {found}; restore it, or convert the model again");
            return Err(Error::format(place.join(&file.name).display(), message));
        }
    }
    Ok(())
}
