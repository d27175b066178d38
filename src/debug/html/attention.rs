//! What the report's attention maps are drawn from: the probabilities of every head, a byte each. A byte is the square root
//! of a probability in 254 steps, so that small ones are told apart; 255 stands for NaN and Inf.

use super::TokenCell;
use super::frame::drawing;
use crate::debug::dump::DumpObserver;
use crate::error::{Error, Result};
use crate::plan::{Plan, Stage, ValueId};
use crate::tensor::Tensor;
use serde_json::json;

/// The most bytes of maps in a report.
const MOST: usize = 64 << 20;
/// The byte of what is not finite.
const ODD: u8 = 255;

/// Watches attention in `layers`, or in all that have it, of a run of at most `tokens` tokens.
///
/// # Errors
/// `Kind::Invalid` for layers without attention, and for more than a report can hold.
pub fn attention(plan: &Plan, layers: Option<&[usize]>, tokens: usize) -> Result<DumpObserver> {
    let observer = DumpObserver::new(plan, [Stage::AttnProbs.name()], layers)?;
    let wanted =
        |at: crate::plan::At| at.stage == Stage::AttnProbs && layers.is_none_or(|list| at.layer.is_some_and(|l| list.contains(&l)));
    let heads = plan.nodes.iter().enumerate().filter(|(_, node)| wanted(node.at)).filter_map(|(i, _)| plan.heads(ValueId(i)));
    let bytes = heads.sum::<usize>().saturating_mul(tokens).saturating_mul(tokens.saturating_add(1)) / 2;
    if bytes > MOST {
        let (needed, most) = (bytes >> 20, MOST >> 20);
        let message =
            format!("maps of {tokens} tokens take {needed} MiB, and a report holds at most {most}: name fewer layers, or generate less");
        return Err(Error::invalid("attention", message));
    }
    Ok(observer)
}

/// The place of the maps; empty where there are none.
pub(in crate::debug) fn section(seen: &DumpObserver, tokens: &[TokenCell]) -> String {
    let layers: Vec<_> = seen.scores(Stage::AttnProbs).into_iter().map(|(layer, pieces)| layer_json(layer, &pieces)).collect();
    if layers.is_empty() {
        return String::new();
    }
    let texts = tokens.iter().map(|token| token.text.clone().unwrap_or_else(|| format!("#{}", token.id)));
    let held = json!({ "layers": layers, "tokens": texts.collect::<Vec<_>>() });
    drawing("attention", "attention", "Attention", &held)
}

/// Probabilities of one layer: pieces [heads, tokens, positions], one after the other.
fn layer_json(layer: Option<usize>, pieces: &[&Tensor]) -> serde_json::Value {
    let heads = pieces.iter().map(|piece| piece.shape[0]).min().unwrap_or(0);
    let row = |piece: &Tensor, head: usize, token: usize| piece.row(head * piece.shape[1] + token).to_vec();
    let (mut widths, mut rows) = (Vec::new(), vec![Vec::new(); heads]);
    for piece in pieces {
        for token in 0..piece.shape[1] {
            let of: Vec<Vec<f32>> = (0..heads).map(|head| row(piece, head, token)).collect();
            // Of what a token does not see nothing is kept: zeros at the end.
            let width = of.iter().map(|row| row.iter().rposition(|x| *x != 0.0).map_or(0, |last| last + 1)).max().unwrap_or(0);
            of.into_iter().zip(&mut rows).for_each(|(row, all)| all.extend(row[..width].iter().map(|x| byte(*x))));
            widths.push(width);
        }
    }
    json!({ "layer": layer, "heads": heads, "widths": widths, "data": base64(&rows.concat()) })
}

fn byte(x: f32) -> u8 {
    if x.is_finite() { (x.clamp(0.0, 1.0).sqrt() * 254.0).round() as u8 } else { ODD }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let all = at(0) << 16 | at(1) << 8 | at(2);
        let digit = |i: usize| if i <= three.len() { char::from(DIGITS[(all >> (18 - 6 * i) & 63) as usize]) } else { '=' };
        out.extend((0..4).map(digit));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelled_as_browsers_read_them() {
        for (bytes, text) in [(&b""[..], ""), (b"M", "TQ=="), (b"Ma", "TWE="), (b"Man", "TWFu"), (&[255, 254, 0, 1], "//4AAQ==")] {
            assert_eq!(base64(bytes), text);
        }
    }

    #[test]
    fn more_than_a_report_can_hold_is_refused() {
        let plan = crate::inference::pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        assert!(attention(&plan, None, 100).is_ok());
        assert!(attention(&plan, None, 100_000).unwrap_err().message.contains("at most 64"));
        assert!(attention(&plan, None, usize::MAX).is_err() && attention(&plan, Some(&[99]), 8).is_err());
    }

    #[test]
    fn a_layer_keeps_what_its_tokens_see() {
        // Two heads, two tokens of a prompt, then one more.
        let prompt = Tensor::new(vec![2, 2, 2], vec![1.0, 0.0, 0.25, 0.75, 1.0, 0.0, f32::NAN, 0.5]).unwrap();
        let step = Tensor::new(vec![2, 1, 3], vec![0.0, 0.0, 1.0, 1.0, 0.0, 0.0]).unwrap();
        let json = layer_json(Some(4), &[&prompt, &step]);
        assert_eq!((&json["layer"], &json["heads"], &json["widths"]), (&json!(4), &json!(2), &json!([1, 2, 3])));
        assert_eq!(json["data"], base64(&[254, 127, 220, 0, 0, 254, 254, 255, 180, 254, 0, 0]));
    }
}
