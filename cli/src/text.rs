//! A model's words: its tokenizer and chat template, prompts to ids and ids to text.

use crate::model::Model;
use doppler::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use doppler::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig};
use doppler::{Error, Result};
use std::time::{SystemTime, UNIX_EPOCH};

/// A tokenizer, and the template where the model has one.
pub struct Text {
    pub tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Text {
    /// Reads the model's tokenizer; `None` if it has none.
    ///
    /// # Errors
    /// `Kind::Tokenizer`, `Kind::Template`.
    pub fn read(model: &Model) -> Result<Option<Self>> {
        let Some(files) = &model.files else { return Ok(None) };
        let Some(json) = &files.tokenizer else { return Ok(None) };
        let about = |e: Error| e.within(model.path.display());
        let texts = [&files.tokenizer_config, &files.special_tokens_map, &files.added_tokens].map(|text| text.as_deref());
        let config = TokenizerConfig::from_files(texts).map_err(about)?;
        let of = &model.resolved.config;
        let ids = TokenIds { bos: of.bos_token_id, eos: of.eos_token_ids.clone(), pad: of.pad_token_id };
        let tokenizer = Tokenizer::from_bytes(json.as_bytes(), &config, &ids).map_err(about)?;
        let template = ChatTemplate::new(files.chat_template.as_deref(), config.chat_template.as_ref(), tokenizer.named_tokens());
        Ok(Some(Self { template: template.map_err(about)?, tokenizer }))
    }
    /// As [`Self::read`], for commands that cannot do without.
    ///
    /// # Errors
    /// `Kind::Tokenizer` if there is no tokenizer; `hint` says what to do instead.
    pub fn needed(model: &Model, hint: &str) -> Result<Self> {
        Self::read(model)?.ok_or_else(|| Self::absent(model, hint))
    }
    /// The error for a model without a tokenizer; `hint` says what to do instead.
    pub fn absent(model: &Model, hint: &str) -> Error {
        let why = model.files.as_ref().map_or_else(String::new, ModelFiles::without_tokenizer);
        Error::tokenizer(format!("{}: {why}; {hint}", model.path.display()))
    }
    /// The chat template, where the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }
    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }
    /// Ids of a raw prompt, with what the tokenizer adds.
    ///
    /// # Errors
    /// `Kind::Invalid` for an empty text.
    pub fn raw(&self, prompt: &str) -> Result<Vec<u32>> {
        not_empty(prompt)?;
        self.tokenizer.encode(prompt, true)
    }
    /// Ids of a conversation that the model is to continue.
    ///
    /// # Errors
    /// `Kind::Template` if the model has no template or it refuses the conversation; `Kind::Invalid` for an empty last
    /// message.
    pub fn chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let last = messages.last().and_then(|m| m.content.as_ref()?.as_str()).unwrap_or_default();
        not_empty(last)?;
        let Some(template) = &self.template else {
            return Err(Error::template("this model has no chat template; leave out --chat and -i to continue raw text"));
        };
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
        let input = ChatInput {
            messages,
            add_generation_prompt: true,
            tools: None,
            variables: &serde_json::Map::new(),
            now: Clock { unix_seconds, utc_offset: 0 },
        };
        self.tokenizer.encode(&template.render(&input)?, false)
    }
    /// The text of `ids` as it follows `context`, without special tokens.
    ///
    /// # Errors
    /// `Kind::Tokenizer`.
    pub fn after(&self, context: &[u32], ids: &[u32]) -> Result<String> {
        let mut stream = self.tokenizer.stream(context, true)?;
        let mut text = String::new();
        for id in ids {
            text += &stream.push(&self.tokenizer, *id)?;
        }
        Ok(text + &stream.finish(&self.tokenizer)?)
    }
    /// PAD, where it must not be chosen: where it is a special token, and none that ends generation. An ordinary token that
    /// a file names as PAD is text like any other, as in transformers.
    pub fn masked_pad(&self) -> Option<u32> {
        self.tokenizer.pad().filter(|id| self.tokenizer.is_special(*id) && !self.tokenizer.is_eos(*id))
    }
}

fn not_empty(prompt: &str) -> Result<()> {
    if prompt.is_empty() { Err(Error::invalid("prompt", "it is empty")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `run -i` relies on: what was read and generated so far need not be read again.
    #[test]
    fn a_conversation_begins_with_its_beginning() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/gemma2");
        let model = crate::model::open(folder, false).unwrap();
        let text = Text::read(&model).unwrap().unwrap();
        let (question, answer) = (Message::new("user", "Is the table right?"), "The first row is.");
        let mut known = text.chat(std::slice::from_ref(&question)).unwrap();
        known.extend(text.tokenizer.encode(answer, false).unwrap());
        let messages = [question, Message::new("assistant", answer), Message::new("user", "And the second?")];
        let whole = text.chat(&messages).unwrap();
        assert!(whole.len() > known.len() && whole[..known.len()] == known, "{known:?} {whole:?}");
        assert!(text.tokenizer.is_eos(whole[known.len()]), "the answer's end-of-sequence id follows, as it was generated");
        assert!(text.chat(&[]).is_err() && text.raw("").is_err());
    }

    #[test]
    fn pad_is_masked_unless_it_ends_generation() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/gemma2");
        let model = crate::model::open(folder, false).unwrap();
        let json = model.files.as_ref().unwrap().tokenizer.clone().unwrap();
        let masked = |pad: u32, eos: Vec<u32>| {
            let ids = TokenIds { bos: None, eos, pad: Some(pad) };
            let tokenizer = Tokenizer::from_bytes(json.as_bytes(), &TokenizerConfig::default(), &ids).unwrap();
            Text { tokenizer, template: None }.masked_pad()
        };
        assert_eq!((masked(0, vec![1]), masked(0, vec![1, 0])), (Some(0), None));
        assert_eq!(masked(300, vec![1]), None, "an ordinary token");
    }
}
