//! Conversations on the command line.

use doppler::inference::chat::{Clock, Message};
use doppler::inference::words::{Chat, Words};
use doppler::{Error, Result};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ids of a conversation that the model is to continue.
///
/// # Errors
/// `Kind::Invalid` for an empty last message; those of `Words::chat`.
pub fn ids(words: &Words, messages: &[Message]) -> Result<Vec<u32>> {
    let last = messages.last().and_then(|m| m.content.as_ref()?.as_str()).unwrap_or_default();
    if last.is_empty() {
        return Err(Error::invalid("prompt", "it is empty"));
    }
    words.chat(&Chat { messages: messages.to_vec(), ..Chat::default() }, now())
}

/// Now, in UTC.
fn now() -> Clock {
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    Clock { unix_seconds, utc_offset: 0 }
}
