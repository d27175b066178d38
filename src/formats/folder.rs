//! The files of a model folder that are texts, as they stand in Hugging Face's layout. This table is the one place that
//! names them; it interprets none.

use crate::error::Result;
use serde::{Deserialize, Serialize};

macro_rules! texts {
    ($($field:ident = $file:literal,)*) => {
        /// Texts by the names of their files, which are also the keys in JSON; absent files are `None`.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct ModelTexts {
            /// `config.json`, which every model has.
            #[serde(rename = "config.json")]
            pub config: String,
            $(
                #[doc = concat!("`", $file, "`")]
                #[serde(rename = $file, default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<String>,
            )*
        }

        impl ModelTexts {
            /// The files.
            pub const FILES: &'static [&'static str] = &["config.json", $($file),*];

            /// Reads each file with `read`, which has no text for files that are absent; `None` without config.json.
            ///
            /// # Errors
            /// Those of `read`.
            pub fn read(mut read: impl FnMut(&'static str) -> Result<Option<String>>) -> Result<Option<Self>> {
                let Some(config) = read("config.json")? else { return Ok(None) };
                Ok(Some(Self { config, $($field: read($file)?),* }))
            }
            /// The texts that there are, by the names of their files.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &String)> {
                let texts = [("config.json", Some(&self.config)), $(($file, self.$field.as_ref())),*];
                texts.into_iter().filter_map(|(name, text)| Some((name, text?)))
            }
        }
    };
}

texts! {
    generation_config = "generation_config.json",
    tokenizer = "tokenizer.json",
    tokenizer_config = "tokenizer_config.json",
    special_tokens_map = "special_tokens_map.json",
    added_tokens = "added_tokens.json",
    chat_template = "chat_template.jinja",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_listed_and_written_alike() {
        let texts = ModelTexts::read(|name| Ok((name != "tokenizer.json").then(|| format!("of {name}")))).unwrap().unwrap();
        let listed: Vec<&str> = texts.iter().map(|(name, _)| name).collect();
        assert_eq!(listed.len(), ModelTexts::FILES.len() - 1);
        assert!(texts.iter().all(|(name, text)| *text == format!("of {name}")) && texts.tokenizer.is_none());
        let json = serde_json::to_value(&texts).unwrap();
        assert_eq!(json.as_object().unwrap().len(), listed.len());
        assert_eq!(serde_json::from_value::<ModelTexts>(json).unwrap(), texts);
        assert!(ModelTexts::read(|_| Ok(None)).unwrap().is_none());
    }

    /// A page's files are listed in JavaScript, before there is any Rust to ask.
    #[test]
    fn the_web_package_lists_the_same_files() {
        let options = include_str!("../../web/package/options.js");
        let list = options.split_once("export const FILES = [").unwrap().1.split_once("\n];").unwrap().0;
        let names: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
        assert_eq!(names, ModelTexts::FILES);
    }
}
