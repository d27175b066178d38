//! The texts of a folder in Hugging Face's layout that stand for a model: its own, or those that a GGUF file's metadata make.

use crate::config::{ResolveOptions, resolve};
use crate::error::{Error, Result};
use crate::formats::ModelTexts;
use crate::inference::tokenizer::gguf_chat_template;
use crate::model::TensorNames;
use crate::open::Opened;
use serde_json::{Map, Value, json};

/// The texts, the names of weights that go with their config, and what the family adds to the weights of norms.
pub(super) fn of(model: &Opened) -> Result<(ModelTexts, TensorNames, f64)> {
    let texts = match &model.files.gguf {
        None => model.files.texts.clone(),
        Some(_) => of_gguf(model)?,
    };
    // As whoever opens the folder will read it, without the conventions of the source.
    let options = ResolveOptions { allow_unknown: true };
    let config = resolve(&texts.config, texts.generation_config.as_deref(), options)?.config;
    Ok((texts, config.tensors, config.norm.weight_offset()))
}

fn of_gguf(model: &Opened) -> Result<ModelTexts> {
    let text = |value: Value| serde_json::to_string_pretty(&value).map(|text| text + "\n").map_err(|e| Error::format("config", e));
    let config: Value = serde_json::from_str(&model.files.texts.config).map_err(|e| Error::format("config", e))?;
    let mut texts = ModelTexts { config: text(config)?, ..ModelTexts::default() };
    let (Some(words), Some(gguf)) = (model.words()?, &model.files.gguf) else { return Ok(texts) };
    let tokenizer = &words.tokenizer;
    texts.tokenizer = Some(tokenizer.to_json()?);
    let mut settings: Map<String, Value> = tokenizer.named_tokens().iter().map(|(name, text)| (name.clone(), json!(text))).collect();
    settings.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    settings.insert("clean_up_tokenization_spaces".into(), false.into());
    if let Some(template) = gguf_chat_template(&gguf.header.metadata)? {
        settings.insert("chat_template".into(), template);
    }
    texts.tokenizer_config = Some(text(settings.into())?);
    let mut generation = Map::new();
    let mut set = |key: &str, value: Option<Value>| value.map(|value| generation.insert(key.into(), value));
    set("bos_token_id", tokenizer.bos().map(Value::from));
    set("eos_token_id", Some(tokenizer.eos()).filter(|ids| !ids.is_empty()).map(|ids| json!(ids)));
    set("pad_token_id", tokenizer.pad().map(Value::from));
    texts.generation_config = Some(text(generation.into())?);
    Ok(texts)
}
