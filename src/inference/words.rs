//! A model's words: its tokenizer and chat template, built from the texts of its files; prompts and conversations to ids,
//! ids to text. It asks no clock: the caller gives the time that a template may show.

use crate::error::{Error, Result};
use crate::formats::ModelTexts;
use crate::formats::gguf::Metadata;
use crate::inference::chat::{ChatInput, ChatTemplate, Clock, Message};
use crate::inference::session::SessionOptions;
use crate::inference::tokenizer::{TokenIds, Tokenizer, TokenizerConfig, gguf_chat_template};
use crate::model::ModelConfig;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A tokenizer, and the chat template where the model has one.
pub struct Words {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

/// What a chat template is rendered with.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// The conversation, oldest message first.
    pub messages: Vec<Message>,
    /// JSON schemas of tools, a list.
    #[serde(default)]
    pub tools: Option<Value>,
    /// Further variables of the template.
    #[serde(default)]
    pub variables: Map<String, Value>,
}

impl Words {
    /// The words of the model that `config` describes and `texts` belong to; `None` without tokenizer.json.
    ///
    /// # Errors
    /// `Kind::Tokenizer`, `Kind::Template`.
    pub fn read(texts: &ModelTexts, config: &ModelConfig) -> Result<Option<Self>> {
        let Some(json) = &texts.tokenizer else { return Ok(None) };
        let files = [&texts.tokenizer_config, &texts.special_tokens_map, &texts.added_tokens].map(|text| text.as_deref());
        let of_file = TokenizerConfig::from_files(files)?;
        let ids = TokenIds { bos: config.bos_token_id, eos: config.eos_token_ids.clone(), pad: config.pad_token_id };
        let tokenizer = Tokenizer::from_bytes(json.as_bytes(), &of_file, &ids)?;
        let template = ChatTemplate::new(texts.chat_template.as_deref(), of_file.chat_template.as_ref(), tokenizer.named_tokens())?;
        Ok(Some(Self { tokenizer, template }))
    }
    /// The words of a model whose GGUF file has `metadata`; `None` where that has no vocabulary.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`]; `Kind::Template`.
    pub fn of_gguf(metadata: &Metadata) -> Result<Option<Self>> {
        if metadata.text("tokenizer.ggml.model")?.is_none_or(|model| matches!(model, "none" | "no_vocab")) {
            return Ok(None);
        }
        let tokenizer = Tokenizer::from_gguf(metadata)?;
        let template = ChatTemplate::new(None, gguf_chat_template(metadata)?.as_ref(), tokenizer.named_tokens())?;
        Ok(Some(Self { tokenizer, template }))
    }
    /// The chat template, where the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }
    /// Ids of a raw prompt, with what the tokenizer adds.
    ///
    /// # Errors
    /// `Kind::Invalid` for an empty text; what the tokenizer reports.
    pub fn raw(&self, prompt: &str) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return Err(Error::invalid("prompt", "it is empty"));
        }
        self.tokenizer.encode(prompt, true)
    }
    /// Ids of a conversation that the model is to continue. The template writes BOS where it belongs.
    ///
    /// # Errors
    /// `Kind::Template` if the model has no template or it refuses the conversation.
    pub fn chat(&self, chat: &Chat, now: Clock) -> Result<Vec<u32>> {
        let Some(template) = &self.template else {
            return Err(Error::template("this model has no chat template; give a text to continue it as it stands"));
        };
        let Chat { messages, tools, variables } = chat;
        let text = template.render(&ChatInput { messages, add_generation_prompt: true, tools: tools.as_ref(), variables, now })?;
        self.tokenizer.encode(&text, false)
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
    /// PAD, where its choice is a fault: not where it ends generation too, or is an ordinary piece of text.
    pub fn idle_pad(&self) -> Option<u32> {
        self.tokenizer.idle_pad()
    }
    /// What was done otherwise than the model's files say, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.tokenizer.notes().to_vec();
        let problem = self.template.as_ref().and_then(ChatTemplate::problem);
        notes.extend(problem.map(|problem| format!("{}; only conversations need it", problem.message)));
        notes
    }
    /// What of `chat` the model's template leaves out: a sentence, as transformers says nothing.
    pub fn unread(&self, chat: &Chat) -> Option<String> {
        let unread = chat.tools.is_some() && self.template.as_ref().is_some_and(|template| !template.reads_tools());
        unread.then(|| "the chat template never reads `tools`, so the model does not see the tools that were given".to_string())
    }
}

/// How a session over a head of `rows` logits is set up; without `words` every row may win.
pub fn session_options(words: Option<&Words>, rows: usize, capacity: usize, chunk: usize) -> SessionOptions {
    SessionOptions {
        capacity,
        chunk,
        valid_vocab: words.map_or(rows, |words| rows.min(words.tokenizer.vocab_size() as usize)),
        pad: words.and_then(Words::idle_pad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ResolveOptions, resolve};

    const NOW: Clock = Clock { unix_seconds: 0, utc_offset: 0 };

    macro_rules! golden {
        ($name:literal) => {
            include_str!(concat!("../../tests/data/gemma2/", $name)).to_string()
        };
    }

    fn texts() -> ModelTexts {
        let text = |name: &str| match name {
            "config.json" => Some(golden!("config.json")),
            "generation_config.json" => Some(golden!("generation_config.json")),
            "tokenizer.json" => Some(golden!("tokenizer.json")),
            "tokenizer_config.json" => Some(golden!("tokenizer_config.json")),
            _ => None,
        };
        ModelTexts::read(|name| Ok(text(name))).unwrap().unwrap()
    }

    fn config() -> ModelConfig {
        resolve(&texts().config, texts().generation_config.as_deref(), ResolveOptions::default()).unwrap().config
    }

    /// What a conversation relies on: what was read and generated so far need not be read again.
    #[test]
    fn a_conversation_begins_with_its_beginning() {
        let words = Words::read(&texts(), &config()).unwrap().unwrap();
        let chat = |messages: &[Message]| words.chat(&Chat { messages: messages.to_vec(), ..Chat::default() }, NOW);
        let (question, answer) = (Message::new("user", "Is the table right?"), "The first row is.");
        let mut known = chat(std::slice::from_ref(&question)).unwrap();
        known.extend(words.tokenizer.encode(answer, false).unwrap());
        let whole = chat(&[question, Message::new("assistant", answer), Message::new("user", "And the second?")]).unwrap();
        assert!(whole.len() > known.len() && whole[..known.len()] == known, "{known:?} {whole:?}");
        assert!(words.tokenizer.is_eos(whole[known.len()]), "the answer's end-of-sequence id follows, as it was generated");
        assert!(words.raw("").is_err());
    }

    #[test]
    fn pad_is_a_finding_unless_it_ends_generation() {
        let of = |pad: u32, eos: Vec<u32>| {
            let config = ModelConfig { eos_token_ids: eos, pad_token_id: Some(pad), ..config() };
            session_options(Words::read(&texts(), &config).unwrap().as_ref(), 1000, 8, 8)
        };
        let ends = |eos: Vec<u32>| of(0, eos);
        assert_eq!(of(300, vec![1]).pad, None, "an ordinary token is text, whatever a file calls it");
        assert_eq!((ends(vec![1]).pad, ends(vec![1, 0]).pad), (Some(0), None));
        assert_eq!((ends(vec![1]).valid_vocab < 1000, session_options(None, 1000, 8, 8).valid_vocab), (true, 1000));
    }
}
