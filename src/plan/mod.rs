//! The plan: a model's computation as plain data. Ops produce named values; nothing here computes anything,
//! and nothing here knows devices, files or model families.

pub mod builder;
mod changes;
pub mod edit;
pub mod intervention;
pub mod op;
pub mod rope;
pub mod stage;
pub mod text;
pub mod verify;

pub use op::{
    Attention, ConvEnding, ConvSpec, KvSpec, Node, Op, Plan, StateId, StateKind, StatePart, StateSpec, ValueId, WeightId, WeightSlot,
};
pub use stage::{At, Layout, STAGES, Stage};
