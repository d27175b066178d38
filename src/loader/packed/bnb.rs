//! NF4 and FP4 of bitsandbytes: nibbles of the flattened matrix, the high one of each byte first, in blocks that need not begin
//! where rows do; `absmax` for each block. Where `absmax` is of bytes, these are numbers of `nested_quant_map`, scaled by
//! `nested_absmax`, and `nested_offset` is added; block sizes and offset are JSON in `quant_state`.

use super::{Codes, Part, Row, Shape};
use crate::quant::four_bit;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FourBit {
    pub nf4: bool,
    /// Elements of a block.
    pub block: usize,
    /// Blocks.
    pub count: usize,
    /// `absmax` is packed too: blocks of its second level.
    pub nested: Option<usize>,
}

/// Positions of the parts.
pub(super) const STATE: usize = 2;
pub(super) const MAP: usize = 3;
const NESTED: usize = 4;
const NESTED_MAP: usize = 5;

impl FourBit {
    /// The scale of each block.
    ///
    /// # Errors
    /// The part and a message, where `quant_state` or the table of levels says something else than the tensors.
    pub fn scales(&self, parts: &[Part], shape: Shape) -> Result<(Vec<f32>, Codes), (usize, String)> {
        let state = |message: String| (STATE, message);
        let part = |i: usize| parts.get(i).ok_or_else(|| state("its tensors are incomplete".into()));
        let text = std::str::from_utf8(&part(STATE)?.bytes).map_err(|e| state(format!("is no JSON: {e}")))?;
        let json = crate::json::parse("quant_state", text).map_err(|e| state(e.message))?;
        let kind = if self.nf4 { "nf4" } else { "fp4" };
        let expected =
            [("quant_type", serde_json::json!(kind)), ("blocksize", self.block.into()), ("shape", vec![shape.rows, shape.columns].into())];
        for (key, expected) in expected {
            if json[key] != expected {
                return Err(state(format!("`{key}`: expected {expected}, found {}", json[key])));
            }
        }
        let levels = if self.nf4 { &four_bit::NF4 } else { &four_bit::FP4 };
        let map = part(MAP)?;
        if let Some(at) = (0..16).find(|i| (map.number(*i) - levels[*i]).abs() > 1e-6) {
            return Err((MAP, format!("level {at} is {}, expected {}: another table than that of {kind}", map.number(at), levels[at])));
        }
        let codes = if self.nf4 { Codes::Nf4 } else { Codes::Fp4 };
        let absmax = part(1)?;
        let Some(blocks) = self.nested else { return Ok(((0..self.count).map(|i| absmax.number(i)).collect(), codes)) };
        let (scales, map) = (part(NESTED)?, part(NESTED_MAP)?);
        let size = json["nested_blocksize"].as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        let size = size.filter(|size| self.count.div_ceil(*size) == blocks);
        let size = size.ok_or_else(|| {
            state(format!("`nested_blocksize`: {} does not make {blocks} blocks of {}", json["nested_blocksize"], self.count))
        })?;
        let offset = json["nested_offset"].as_f64().ok_or_else(|| state("`nested_offset`: expected a number".into()))? as f32;
        let scale = |i: usize| map.number(usize::from(absmax.byte(i))) * scales.number(i / size) + offset;
        Ok(((0..self.count).map(scale).collect(), codes))
    }
    pub fn row(&self, parts: &[Part], shape: Shape, row: usize, out: &mut Row) {
        let [weight, ..] = parts else { return };
        let first = row * shape.columns;
        for (column, code) in out.codes.iter_mut().enumerate() {
            let at = first + column;
            *code = weight.byte(at / 2) >> if at.is_multiple_of(2) { 4 } else { 0 } & 15;
        }
    }
}
