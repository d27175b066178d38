//! Weights that are changed as they are read. The plan stays as it is; whoever reads the files makes the change.

use crate::model::WeightRole;
use crate::plan::{Plan, WeightId};
use serde::{Deserialize, Serialize};

/// A weight by what it is, so that plans of other configs have it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slot {
    /// Its role.
    pub role: WeightRole,
    /// Its layer.
    pub layer: Option<usize>,
    /// A bias.
    pub bias: bool,
}

/// What a weight becomes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// These elements, counted row by row, have these values.
    Elements(Vec<(usize, f32)>),
    /// A number is added to every element.
    Add(f64),
    /// Every element is multiplied.
    Scale(f64),
    /// All of another weight of the same shape.
    From(Slot),
    /// Each row is one of another weight, or of this one.
    Rows(Vec<(Slot, usize)>),
    /// The elements as they lie, read column by column.
    Transposed,
    /// The 16 bits of each element, read as this type. They are those of the other one, which has every element exactly.
    ReadAs(Half),
    /// All of the same weight of the right copy that the model is held against.
    OfReference,
}

/// A type of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// 5 bits of exponent.
    F16,
    /// 8 bits of exponent.
    Bf16,
}

impl Half {
    /// What the bits of `x` in the other type say in this one; `None` where the other type does not have `x`.
    pub fn read(self, x: f32) -> Option<f32> {
        let (bits, back) = match self {
            Self::F16 => (half::bf16::from_f32(x).to_bits(), half::bf16::from_f32(x).to_f32()),
            Self::Bf16 => (half::f16::from_f32(x).to_bits(), half::f16::from_f32(x).to_f32()),
        };
        let read = match self {
            Self::F16 => half::f16::from_bits(bits).to_f32(),
            Self::Bf16 => half::bf16::from_bits(bits).to_f32(),
        };
        (back == x || x.is_nan()).then_some(read)
    }
}

impl Slot {
    /// That of weight `id` of `plan`.
    pub fn of(plan: &Plan, id: WeightId) -> Self {
        let slot = &plan.weights[id.0];
        Self { role: slot.role, layer: slot.layer, bias: slot.bias }
    }
    /// `L3 q_proj.bias`, as `WeightSlot::label`.
    pub fn label(self) -> String {
        let layer = self.layer.map(|layer| format!("L{layer} ")).unwrap_or_default();
        format!("{layer}{}{}", self.role.name(), if self.bias { ".bias" } else { "" })
    }
    /// The weight of `plan`, if it has it. A tied head is the embedding.
    pub fn find(self, plan: &Plan) -> Option<WeightId> {
        let place = |role| plan.weights.iter().position(|w| w.role == role && w.layer == self.layer && w.bias == self.bias);
        place(self.role).map(WeightId)
    }
}

impl Change {
    /// Why it cannot be made of the weight `slot` of `plan`.
    pub(super) fn refused(&self, plan: &Plan, slot: Slot) -> Result<(), String> {
        let of = |slot: Slot| slot.find(plan).map(|id| &plan.weights[id.0]).ok_or_else(|| format!("this model has no {}", slot.label()));
        let weight = of(slot)?;
        let (elements, rows) = (weight.elements(), weight.shape.first().copied().unwrap_or(0));
        let changes_nothing = match self {
            Self::Elements(list) => list.is_empty(),
            Self::Add(x) => *x == 0.0,
            Self::Scale(x) => *x == 1.0,
            Self::From(other) => *other == slot,
            Self::Rows(list) => list.iter().enumerate().all(|(i, row)| *row == (slot, i)),
            Self::Transposed => weight.shape.len() < 2,
            Self::ReadAs(_) | Self::OfReference => false,
        };
        if changes_nothing {
            return Err("it changes nothing".into());
        }
        let fits = match self {
            Self::Elements(list) => list.iter().all(|(at, _)| *at < elements),
            Self::Add(x) | Self::Scale(x) => x.is_finite(),
            Self::From(other) => of(*other)?.elements() == elements,
            Self::Rows(list) => {
                let columns = elements.checked_div(rows);
                let mut fits = list.len() == rows;
                for (other, row) in list {
                    let other = of(*other)?;
                    let of_other = other.shape.first().copied().unwrap_or(0);
                    fits &= *row < of_other && other.elements().checked_div(of_other) == columns;
                }
                fits
            }
            Self::Transposed | Self::ReadAs(_) | Self::OfReference => true,
        };
        if fits { Ok(()) } else { Err(format!("the change does not fit its shape {:?}", weight.shape)) }
    }
}
