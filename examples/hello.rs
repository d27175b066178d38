//! A model in fifteen lines: text as it comes, a conversation, and the values that the model computes.
#![allow(clippy::print_stdout, missing_docs, reason = "an example that prints; the lines above say what it is")]

use doppler::{AnswerOptions, Message, Model, Result};

pub fn main() -> Result<()> {
    let model = Model::open("models/demo")?;
    let options = AnswerOptions { max_tokens: 16, ..AnswerOptions::default() };
    model.generate("The color of the sky is", &options, |text| print!("{text}"))?;

    let answer = model.chat(&[Message::new("user", "What color is the sky?")], &options, |_| ())?;
    println!("\n{} ({:?})", answer.text, answer.stop);

    for value in model.observe("The color of the sky is", &["ffn_out@0-2", "logits_final"])? {
        println!("{} {:?}", value.at, value.tensor.shape);
    }
    Ok(())
}
