//! What a hypothesis changes: numbers of a model's config, from which the plan is built again, and weights on the way to an
//! executor. Plain data; nothing is examined here.

use crate::debug::weight_source::WeightSource;
use crate::error::{Error, Result};
use crate::model::{Activation, AttentionConfig, LayerConfig, ModelConfig, RopeScaling, Router, WeightRole};
use crate::plan::{Plan, WeightId};
use crate::quant::Format;
use bytes::Bytes;
use std::ops::Range;

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Of the config.
    Config(ConfigEdit),
    /// Of a weight.
    Weight(Slot, Change),
}

/// A weight by what it is, so that plans of other configs have it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// Its role.
    pub role: WeightRole,
    /// Its layer.
    pub layer: Option<usize>,
    /// A bias.
    pub bias: bool,
}

/// A number of the config.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the fields of `ModelConfig`")]
pub enum ConfigEdit {
    NormEps(f64),
    NormOffset(f64),
    EmbeddingScale(f64),
    ResidualMultiplier(f64),
    LogitsScaling(f64),
    AttentionScale(f64),
    AttnSoftcap(Option<f64>),
    FinalSoftcap(Option<f64>),
    Activation(Activation),
    Router(Router),
    /// Of a RoPE.
    Theta(usize, f64),
    Scaling(usize, RopeScaling),
    RotaryDim(usize, usize),
    /// Of layers.
    LayerRope(Vec<usize>, Option<usize>),
    Windows(Vec<(usize, Option<usize>)>),
    Tied(bool),
}

/// What a weight becomes.
#[derive(Debug, Clone, PartialEq)]
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
}

/// The attention of a layer, if there is one.
fn attention(config: &mut ModelConfig, layer: usize) -> Option<&mut AttentionConfig> {
    config.layers.get_mut(layer).and_then(LayerConfig::attention_mut)
}

impl ConfigEdit {
    /// Changes `config`.
    pub fn apply(&self, config: &mut ModelConfig) {
        let rope = |config: &mut ModelConfig, i: usize, change: &dyn Fn(&mut crate::model::RopeConfig)| {
            config.ropes.get_mut(i).into_iter().for_each(change);
        };
        match self {
            Self::NormEps(x) => config.norm = config.norm.with_eps(*x),
            Self::NormOffset(x) => config.norm = config.norm.with_weight_offset(*x),
            Self::EmbeddingScale(x) => config.embedding_scale = *x,
            Self::ResidualMultiplier(x) => config.residual_multiplier = *x,
            Self::LogitsScaling(x) => config.logits_scaling = *x,
            Self::AttentionScale(x) => config.attentions_mut().for_each(|a| a.scale = *x),
            Self::AttnSoftcap(x) => config.attentions_mut().for_each(|a| a.softcap = *x),
            Self::FinalSoftcap(x) => config.final_logit_softcapping = *x,
            Self::Activation(x) => {
                config.denses_mut().for_each(|dense| dense.activation = *x);
                config.experts_mut().for_each(|experts| experts.activation = *x);
            }
            Self::Router(x) => config.experts_mut().for_each(|experts| experts.router = *x),
            Self::Theta(i, x) => rope(config, *i, &|r| r.theta = *x),
            Self::Scaling(i, x) => rope(config, *i, &|r| r.scaling = x.clone()),
            Self::RotaryDim(i, x) => rope(config, *i, &|r| r.rotary_dim = *x),
            Self::LayerRope(layers, x) => {
                for layer in layers {
                    if let Some(attention) = attention(config, *layer) {
                        attention.rope = *x;
                    }
                }
            }
            Self::Windows(windows) => {
                for (layer, window) in windows {
                    if let Some(attention) = attention(config, *layer) {
                        attention.window = *window;
                    }
                }
            }
            Self::Tied(x) => config.tie_word_embeddings = *x,
        }
    }
    /// The field of `Resolved::sources` that says where the number came from.
    pub fn field(&self) -> String {
        match self {
            Self::NormEps(_) => "norm.eps".into(),
            Self::NormOffset(_) => "norm.weightOffset".into(),
            Self::EmbeddingScale(_) => "embeddingScale".into(),
            Self::ResidualMultiplier(_) => "residualMultiplier".into(),
            Self::LogitsScaling(_) => "logitsScaling".into(),
            Self::AttentionScale(_) => "layers[].mixer.scale".into(),
            Self::AttnSoftcap(_) => "layers[].mixer.softcap".into(),
            Self::FinalSoftcap(_) => "finalLogitSoftcapping".into(),
            Self::Activation(_) => "layers[].ffn.activation".into(),
            Self::Router(_) => "layers[].ffn.router".into(),
            Self::Theta(i, _) => format!("ropes[{i}].theta"),
            Self::Scaling(i, _) => format!("ropes[{i}].scaling"),
            Self::RotaryDim(i, _) => format!("ropes[{i}].rotaryDim"),
            Self::LayerRope(..) => "layers[].mixer.rope".into(),
            Self::Windows(_) => "layers[].mixer.window".into(),
            Self::Tied(_) => "tieWordEmbeddings".into(),
        }
    }
}

impl std::fmt::Display for ConfigEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |x: &Option<f64>| x.map_or("none".to_string(), |x| format!("{x}"));
        let field = self.field();
        match self {
            Self::NormEps(x)
            | Self::NormOffset(x)
            | Self::EmbeddingScale(x)
            | Self::ResidualMultiplier(x)
            | Self::LogitsScaling(x)
            | Self::AttentionScale(x)
            | Self::Theta(_, x) => write!(f, "{field} = {x}"),
            Self::AttnSoftcap(x) | Self::FinalSoftcap(x) => write!(f, "{field} = {}", number(x)),
            Self::Activation(x) => write!(f, "{field} = {x:?}"),
            Self::Router(x) => write!(f, "{field} = {x:?}"),
            Self::Scaling(_, x) => write!(f, "{field} = {x:?}"),
            Self::RotaryDim(_, x) => write!(f, "{field} = {x}"),
            Self::LayerRope(layers, x) => write!(f, "{field} of layers {layers:?} = {x:?}"),
            Self::Windows(x) => write!(f, "{field} = {x:?}"),
            Self::Tied(x) => write!(f, "{field} = {x}"),
        }
    }
}

impl Slot {
    /// That of weight `id` of `plan`.
    pub fn of(plan: &Plan, id: WeightId) -> Self {
        let slot = &plan.weights[id.0];
        Self { role: slot.role, layer: slot.layer, bias: slot.bias }
    }
    /// The weight of `plan`, if it has it. A tied head is the embedding.
    pub fn find(self, plan: &Plan) -> Option<WeightId> {
        let place = |role| plan.weights.iter().position(|w| w.role == role && w.layer == self.layer && w.bias == self.bias);
        place(self.role).map(WeightId)
    }
}

/// The weights of `inner` with changes.
#[derive(Debug)]
pub struct Edited<'s, S> {
    inner: &'s S,
    plan: &'s Plan,
    changes: &'s [(Slot, Change)],
}

impl<'s, S: WeightSource> Edited<'s, S> {
    /// The weights of `inner`, which are those of `plan`, changed.
    pub fn new(inner: &'s S, plan: &'s Plan, changes: &'s [(Slot, Change)]) -> Self {
        Self { inner, plan, changes }
    }
    /// All of a weight as it is stored.
    async fn stored(&self, id: WeightId) -> Result<Vec<f32>> {
        let rows = self.plan.weights[id.0].shape.first().copied().unwrap_or(1);
        let (format, bytes) = self.inner.rows(id, 0..rows).await?;
        format.values(&bytes)
    }
    /// All of a weight, changed.
    ///
    /// # Errors
    /// Those of the source; `Kind::Weights` for a change that does not fit.
    pub async fn whole(&self, id: WeightId) -> Result<Vec<f32>> {
        let slot = Slot::of(self.plan, id);
        let mut values = self.stored(id).await?;
        let shape = &self.plan.weights[id.0].shape;
        let misfit = || Error::weights(format!("{}: the change does not fit its shape {shape:?}", self.plan.weights[id.0].label()));
        for (_, change) in self.changes.iter().filter(|(of, _)| *of == slot) {
            match change {
                Change::Elements(list) => {
                    for (at, value) in list {
                        *values.get_mut(*at).ok_or_else(misfit)? = *value;
                    }
                }
                Change::Add(x) => values.iter_mut().for_each(|v| *v = (f64::from(*v) + x) as f32),
                Change::Scale(x) => values.iter_mut().for_each(|v| *v = (f64::from(*v) * x) as f32),
                Change::From(other) => {
                    let other = self.stored(other.find(self.plan).ok_or_else(misfit)?).await?;
                    values = if other.len() == values.len() { other } else { return Err(misfit()) };
                }
                Change::Rows(rows) => values = self.rows_of(rows, shape).await?,
                Change::Transposed => {
                    let [rows, columns] = shape[..] else { return Err(misfit()) };
                    values = (0..rows * columns).map(|i| values[(i % columns) * rows + i / columns]).collect();
                }
            }
        }
        Ok(values)
    }
    async fn rows_of(&self, rows: &[(Slot, usize)], shape: &[usize]) -> Result<Vec<f32>> {
        let columns: usize = shape.iter().skip(1).product();
        let mut known: Vec<(Slot, Vec<f32>)> = Vec::new();
        let mut values = Vec::with_capacity(rows.len() * columns);
        for (slot, row) in rows {
            if known.iter().all(|(of, _)| of != slot) {
                let id = slot.find(self.plan).ok_or_else(|| Error::weights("a row is taken from a weight that is not there"))?;
                known.push((*slot, self.stored(id).await?));
            }
            let of = known.iter().find(|(of, _)| of == slot).map_or(&[][..], |(_, values)| values);
            values.extend_from_slice(of.get(row * columns..(row + 1) * columns).unwrap_or_default());
        }
        Ok(values)
    }
}

impl<S: WeightSource> WeightSource for Edited<'_, S> {
    fn name(&self, plan: &Plan, id: WeightId) -> String {
        self.inner.name(plan, id)
    }
    async fn rows(&self, id: WeightId, rows: Range<usize>) -> Result<(Format, Bytes)> {
        let slot = Slot::of(self.plan, id);
        if self.changes.iter().all(|(of, _)| *of != slot) {
            return self.inner.rows(id, rows).await;
        }
        let columns = crate::debug::weight_source::columns(&self.plan.weights[id.0]);
        let values = self.whole(id).await?;
        let part = values.get(rows.start * columns..rows.end * columns).unwrap_or_default();
        Ok((Format::F32, part.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()))
    }
}
