//! One op alone on given inputs: the definition of a node, applied to what somebody else computed.

use super::executor::{CpuExecutor, Place, Tables, shape};
use super::real::Real;
use crate::error::{Error, Result};
use crate::plan::{Node, Op, Plan, ValueId};
use crate::tensor::Tensor;

impl<T: Real> CpuExecutor<T> {
    /// See `Executor::eval`. Inputs are rounded as a step would have stored them. Missing weights of this op, inputs of
    /// another number or shape than the plan's and invalid ids are errors.
    pub(super) fn alone(&self, id: ValueId, inputs: &[Tensor], first: usize, long_rope: bool) -> Result<Tensor> {
        let plan = &self.plan;
        let node = plan.nodes.get(id.0).ok_or_else(|| Error::invalid("value", format!("the plan has no value {}", id.0)))?;
        let wrong = |what: String| Error::invalid(format!("inputs of {}", node.at), what);
        let (rows, positions) = extent(plan, node, inputs).map_err(wrong)?;
        let keys_first = (first + rows).checked_sub(positions).filter(|_| rows <= positions);
        let keys_first = keys_first.ok_or_else(|| wrong(format!("{positions} key positions for {rows} rows from position {first} on")))?;
        if keys_first > 0 && matches!(node.op, Op::GatedDelta { .. }) {
            return Err(wrong(format!("expected those of all positions before, found none before position {keys_first}")));
        }

        let mut data: Vec<Vec<T>> = inputs.iter().map(|t| t.data.iter().map(|x| T::from_f32(*x)).collect()).collect();
        for (i, (data, source)) in data.iter_mut().zip(&node.inputs).enumerate() {
            if i == 1 && node.op.reads_state().is_some() {
                Self::round(data, self.storage.of_appended(plan, *source).unwrap_or(self.storage.cache));
            } else if self.stored[source.0] {
                Self::round(data, self.storage.activations);
            }
        }
        let ids = if matches!(node.op, Op::Embed { .. }) { ids(&inputs[0]).map_err(wrong)? } else { Vec::new() };
        let mut tables = Tables::default();
        if matches!(node.op, Op::Rope { .. }) {
            tables.cover(plan, first + rows, first + rows, long_rope);
        }
        let place = Place { rows, first, keys_first, ids: &ids, ropes: &tables.ropes, matrices: &[] };
        let slices: Vec<&[T]> = data.iter().map(Vec::as_slice).collect();
        let y = self.compute(id, &slices, &place)?;
        Tensor::new(shape(node, rows, y.len()), y.iter().map(|x| x.to_f32()).collect())
    }
}

/// Checks the inputs' shapes; returns the rows to compute and the positions of keys and values (the rows where there
/// are none).
fn extent(plan: &Plan, node: &Node, inputs: &[Tensor]) -> std::result::Result<(usize, usize), String> {
    let embed = matches!(node.op, Op::Embed { .. });
    let count = if embed { 1 } else { node.inputs.len() };
    if inputs.len() != count {
        return Err(format!("expected {count}, found {}", inputs.len()));
    }
    let first = inputs.first().map(|t| t.shape.as_slice()).unwrap_or_default();
    let (rows, positions) = match (&node.op, first) {
        (Op::AttnScores(_) | Op::ShortConv { .. } | Op::GatedDelta { .. }, [rows, _]) => {
            (*rows, inputs[1].shape.first().copied().unwrap_or(0))
        }
        (_, [_, rows, positions]) => (*rows, *positions),
        (_, shape) => (shape.first().copied().unwrap_or(0), shape.first().copied().unwrap_or(0)),
    };
    if rows == 0 {
        return Err("no rows".into());
    }
    for (i, input) in inputs.iter().enumerate() {
        let keys = i == 1 && node.op.reads_state().is_some();
        let expected = match node.inputs.get(i).map(|source| plan.node(*source)) {
            None => vec![rows, 1],
            Some(source) => source.at.stage.layout().shape(source.width, if keys { positions } else { rows }, positions),
        };
        if input.shape != expected {
            return Err(format!("number {i}: expected shape {expected:?}, found {:?}", input.shape));
        }
    }
    Ok((rows, positions))
}

/// Token ids of a tensor [T, 1].
fn ids(tensor: &Tensor) -> std::result::Result<Vec<u32>, String> {
    let id = |x: &f32| if *x >= 0.0 && x.fract() == 0.0 && *x < 16_777_216.0 { Ok(*x as u32) } else { Err(format!("{x} is no token id")) };
    tensor.data.iter().map(id).collect()
}
