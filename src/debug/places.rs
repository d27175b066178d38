//! From the positions that people write (negative, `"mid"`) to the layers and tokens that a model and a prompt have,
//! and from elements to heads.

use crate::config::runtime::Position;
use crate::error::{Error, Result};
use crate::plan::{At, Plan, ValueId};
use std::collections::BTreeMap;

/// The layers that `wanted` means, ascending, each once.
///
/// # Errors
/// `Kind::Invalid` for a layer that the model lacks.
pub fn layers(plan: &Plan, wanted: &[Position]) -> Result<Vec<usize>> {
    indices(wanted, plan.num_layers, |position| {
        let last = plan.num_layers.saturating_sub(1);
        Error::invalid("layers", format!("this model has layers 0 to {last}, so there is no layer {position}"))
    })
}

/// The positions that `wanted` means in a prompt of `tokens` tokens, ascending, each once.
///
/// # Errors
/// `Kind::Invalid` for a token that the prompt lacks.
pub fn tokens(tokens: usize, wanted: &[Position]) -> Result<Vec<usize>> {
    indices(wanted, tokens, |position| {
        let last = tokens.saturating_sub(1);
        Error::invalid("tokens", format!("the prompt has tokens 0 to {last}, so there is no token {position}"))
    })
}

fn indices(wanted: &[Position], count: usize, absent: impl Fn(Position) -> Error) -> Result<Vec<usize>> {
    let mut found = wanted.iter().map(|p| p.index(count).ok_or_else(|| absent(*p))).collect::<Result<Vec<usize>>>()?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Width of a head, for every value whose rows are heads side by side.
pub fn head_dims(plan: &Plan) -> BTreeMap<At, usize> {
    let headed = plan.nodes.iter().enumerate().filter(|(_, node)| node.at.stage.is_headed());
    headed.filter_map(|(i, node)| Some((node.at, plan.head_dim(ValueId(i))?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::pipeline;
    use crate::plan::Stage;

    #[test]
    fn positions_and_heads() {
        let plan = pipeline::build(&crate::loader::tests::tiny_config(true)).unwrap();
        assert_eq!(layers(&plan, &[Position::At(-1), Position::Mid, Position::At(0), Position::At(2)]).unwrap(), [0, 1, 2]);
        assert!(layers(&plan, &[Position::At(3)]).unwrap_err().message.contains("layers 0 to 2, so there is no layer 3"));
        assert_eq!(tokens(7, &[Position::At(-1), Position::At(0)]).unwrap(), [0, 6]);
        assert!(tokens(7, &[Position::At(-8)]).unwrap_err().message.contains("no token -8"));
        assert!(tokens(0, &[Position::Mid]).is_err());
        let heads = head_dims(&plan);
        assert_eq!(heads.get(&At { stage: Stage::AttnCoreOut, layer: Some(2) }), Some(&4));
        assert_eq!(heads.get(&At { stage: Stage::OProj, layer: Some(2) }), None);
    }
}
