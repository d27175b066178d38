//! A device that computes op by op through the oracle, with attention and a cache of its own, and with one fault. What is wrong
//! is planted here, with nothing of what finds it.

use doppler::cpu::CpuExecutor;
use doppler::exec::*;
use doppler::plan::intervention::{Change, Intervention};
use doppler::plan::{Attention, Op, Plan, StateId, StatePart, ValueId};
use doppler::tensor::Tensor;
use doppler::{Error, Result};
use pollster::block_on;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// In which steps a fault shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    Always,
    Prompt,
    Decode,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plant {
    None,
    /// The value of a node times a factor.
    Scaled(ValueId, f32),
    /// Attention sees so many positions more at its end.
    Causal(isize),
    /// Its window is so much wider.
    Wider(isize),
    /// Its window is not there.
    Windowless,
    /// Query heads read key heads in turn.
    InTurn,
    /// RoPE counts from here.
    Turned(usize),
    /// Keys and values are written so many slots later.
    Slot(usize),
    /// What is written at some positions is scaled.
    Damaged(usize, f32),
    /// A cache that grows loses the row of this position.
    Lost(usize),
    /// What was taken back is not written again.
    Kept,
    /// Probabilities of later positions are NaN.
    NotANumber(usize),
    /// The last elements of rows are not computed.
    Short(ValueId, usize),
    /// Rows are those of so many tokens before.
    Late(ValueId, usize),
    /// Nothing is the same twice.
    Unsteady(f32),
    /// What the last run left counts.
    Leftover(f32),
    /// What the last run left is multiplied by 0.
    TimesZero,
    /// Logits of a sequence have some of its neighbour's.
    Mixed(f32),
    /// A neighbour's key is written into a sequence's first slot.
    Crossed,
    /// The choice is the second best.
    Second,
}

pub struct Simulated {
    pub inner: CpuExecutor<f32>,
    pub plant: Plant,
    pub when: When,
    ticks: Cell<u32>,
    left: RefCell<Vec<f32>>,
    interventions: Vec<(ValueId, Vec<Intervention>)>,
}

pub struct Slots {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    written: usize,
    len: usize,
    capacity: usize,
    picked: Option<u32>,
}

impl Slots {
    fn part(&mut self, state: StateId, part: StatePart) -> &mut Vec<f32> {
        match part {
            StatePart::Keys => &mut self.keys[state.0],
            StatePart::Values => &mut self.values[state.0],
            StatePart::Inputs | StatePart::Matrix => panic!("a convolution has no place in the plans of these tests"),
        }
    }
}

impl Simulated {
    pub fn new(inner: CpuExecutor<f32>, plant: Plant, when: When) -> Self {
        Self { inner, plant, when, ticks: Cell::new(0), left: RefCell::default(), interventions: Vec::new() }
    }
    fn shows(&self, tokens: usize) -> bool {
        match self.when {
            When::Always => true,
            When::Prompt => tokens > DECODE_TOKENS,
            When::Decode => tokens <= DECODE_TOKENS,
        }
    }
    fn width(&self, state: StateId) -> usize {
        self.inner.plan().kv(state).expect("a state of keys and values").width()
    }

    /// Some nodes, each after what it reads.
    fn nodes(
        &self,
        slots: &mut Slots,
        nodes: &[ValueId],
        given: BTreeMap<ValueId, Tensor>,
        ids: &[u32],
        long: bool,
    ) -> Result<BTreeMap<ValueId, Tensor>> {
        let (plan, tokens, first) = (self.inner.plan(), ids.len(), slots.len);
        let mut made = given;
        let mut order = nodes.to_vec();
        order.sort_unstable();
        for id in order {
            let node = plan.node(id);
            let mut inputs: Vec<Tensor> = node.inputs.iter().map(|input| made[input].clone()).collect();
            match &node.op {
                Op::Embed { .. } => inputs = vec![Tensor::new(vec![tokens, 1], ids.iter().map(|id| *id as f32).collect())?],
                Op::AttnScores(a) => inputs[1] = self.held(slots, (a.state, StatePart::Keys), first + tokens)?,
                Op::AttnMix(a) => inputs[1] = self.held(slots, (a.state, StatePart::Values), first + tokens)?,
                _ => {}
            }
            let mut value = match node.op {
                Op::Append { state, part } => self.append(slots, (state, part), &inputs[0], self.shows(tokens))?,
                _ => self.op(id, &inputs, first, long)?,
            };
            for one in self.interventions.iter().filter(|(of, _)| *of == id).flat_map(|(_, list)| list) {
                if let Intervention { change: Change::Add { given, .. }, .. } = one {
                    let width = value.width();
                    value.data.iter_mut().enumerate().for_each(|(i, x)| *x += given.tensor.data[i % width]);
                }
            }
            made.insert(id, value);
        }
        slots.len += tokens;
        slots.written = slots.written.max(slots.len);
        Ok(made)
    }

    /// Writes rows into the cache; what it then holds of their positions.
    fn append(&self, slots: &mut Slots, (state, part): (StateId, StatePart), rows: &Tensor, shows: bool) -> Result<Tensor> {
        let (width, first, written) = (self.width(state), slots.len, slots.written);
        let held = slots.part(state, part);
        for (row, data) in rows.data.chunks(width).enumerate() {
            let position = first + row;
            let mut slot = position;
            let mut factor = 1.0;
            match self.plant {
                Plant::Slot(by) if shows => slot += by,
                Plant::Damaged(every, by) if shows && position % every == every / 2 => factor = by,
                Plant::Kept if position < written => continue,
                _ => {}
            }
            if held.len() < (slot + 1) * width {
                held.resize((slot + 1) * width, 0.0);
            }
            held[slot * width..(slot + 1) * width].iter_mut().zip(data).for_each(|(to, x)| *to = x * factor);
        }
        let positions = first + rows.rows();
        held.resize(held.len().max(positions * width), 0.0);
        Tensor::new(vec![rows.rows(), width], held[first * width..positions * width].to_vec())
    }

    /// What the cache holds of the first positions.
    fn held(&self, slots: &mut Slots, (state, part): (StateId, StatePart), positions: usize) -> Result<Tensor> {
        let width = self.width(state);
        let held = slots.part(state, part);
        held.resize(held.len().max(positions * width), 0.0);
        Tensor::new(vec![positions, width], held[..positions * width].to_vec())
    }

    /// One op on its inputs.
    fn op(&self, id: ValueId, inputs: &[Tensor], first: usize, long: bool) -> Result<Tensor> {
        let node = self.inner.plan().node(id);
        let tokens = if node.at.stage.layout().is_scores() { inputs[0].shape[inputs[0].shape.len() - 2] } else { inputs[0].shape[0] };
        let tokens = if let Op::AttnMix(_) = node.op { inputs[0].shape[1] } else { tokens };
        if !self.shows(tokens) {
            return block_on(self.inner.eval(id, inputs, first, long));
        }
        let attends = matches!(self.plant, Plant::Causal(_) | Plant::Wider(_) | Plant::Windowless | Plant::InTurn);
        let mut value = match (&node.op, self.plant) {
            (Op::AttnScores(a), _) if attends => self.scores(a, inputs, first),
            (Op::AttnProbs(a), _) if attends => self.probs(a, inputs, first),
            (Op::AttnMix(a), _) if attends => self.mix(a, inputs, first),
            (Op::Rope { .. }, Plant::Turned(by)) => block_on(self.inner.eval(id, inputs, first + by, long))?,
            _ => block_on(self.inner.eval(id, inputs, first, long))?,
        };
        let width = value.shape.last().copied().unwrap_or(1);
        match self.plant {
            Plant::Scaled(at, by) if at == id => value.data.iter_mut().for_each(|x| *x *= by),
            Plant::NotANumber(from) if matches!(node.op, Op::AttnProbs(_)) => {
                let tokens = value.shape[1];
                let rows = value.data.chunks_mut(width).enumerate();
                rows.filter(|(row, _)| first + row % tokens >= from).for_each(|(_, row)| row.fill(f32::NAN));
            }
            Plant::Short(at, by) if at == id => value.data.chunks_mut(width).for_each(|row| {
                let from = width - by.min(width - 1);
                row[from..].fill(0.0);
            }),
            Plant::Late(at, by) if at == id => {
                let rows = value.data.len() / width;
                let old = value.data.clone();
                (0..rows).for_each(|row| {
                    let from = row.saturating_sub(by) * width;
                    value.data[row * width..(row + 1) * width].copy_from_slice(&old[from..from + width]);
                });
            }
            _ => {}
        }
        Ok(value)
    }

    fn sees(&self, a: &Attention, position: usize, key: usize) -> bool {
        let end = match self.plant {
            Plant::Causal(by) => position.checked_add_signed(by),
            _ => Some(position),
        };
        let window = match self.plant {
            Plant::Wider(by) => a.window.and_then(|window| window.checked_add_signed(by)),
            Plant::Windowless => None,
            _ => a.window,
        };
        end.is_some_and(|end| key <= end) && window.is_none_or(|window| key + window > position)
    }
    fn kv_head(&self, a: &Attention, head: usize) -> usize {
        if self.plant == Plant::InTurn { head % a.kv_heads } else { head * a.kv_heads / a.heads }
    }
    fn scores(&self, a: &Attention, inputs: &[Tensor], first: usize) -> Tensor {
        let (q, k, d) = (&inputs[0], &inputs[1], a.head_dim);
        let (tokens, positions) = (q.rows(), k.rows());
        let mut data = vec![0.0; a.heads * tokens * positions];
        for (cell, out) in data.iter_mut().enumerate() {
            let (head, t, s) = (cell / positions / tokens, cell / positions % tokens, cell % positions);
            if !self.sees(a, first + t, s) {
                continue;
            }
            let kv = self.kv_head(a, head);
            let dot: f64 = (0..d).map(|i| f64::from(q.row(t)[head * d + i]) * f64::from(k.row(s)[kv * d + i])).sum();
            let x = dot * a.scale;
            *out = a.softcap.map_or(x, |cap| cap * (x / cap).tanh()) as f32;
        }
        Tensor { shape: vec![a.heads, tokens, positions], data }
    }
    fn probs(&self, a: &Attention, inputs: &[Tensor], first: usize) -> Tensor {
        let mut to = inputs[0].clone();
        let (tokens, positions) = (to.shape[1], to.shape[2]);
        for (row, cells) in to.data.chunks_mut(positions).enumerate() {
            let seen: Vec<usize> = (0..positions).filter(|s| self.sees(a, first + row % tokens, *s)).collect();
            let top = seen.iter().map(|s| cells[*s]).fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = seen.iter().map(|s| f64::from(cells[*s] - top).exp()).sum();
            let old = cells.to_vec();
            cells.fill(0.0);
            seen.iter().for_each(|s| cells[*s] = (f64::from(old[*s] - top).exp() / total) as f32);
        }
        to
    }
    fn mix(&self, a: &Attention, inputs: &[Tensor], first: usize) -> Tensor {
        let (p, v, d) = (&inputs[0], &inputs[1], a.head_dim);
        let (tokens, positions) = (p.shape[1], v.rows());
        let mut data = vec![0.0; tokens * a.heads * d];
        for (i, out) in data.iter_mut().enumerate() {
            let (t, head, dim) = (i / (a.heads * d), i / d % a.heads, i % d);
            let kv = self.kv_head(a, head);
            let cell = |s: usize| f64::from(p.data[(head * tokens + t) * positions + s]) * f64::from(v.row(s)[kv * d + dim]);
            *out = (0..positions).filter(|s| self.sees(a, first + t, *s)).map(cell).sum::<f64>() as f32;
        }
        Tensor { shape: vec![tokens, a.heads * d], data }
    }
}

impl Editable for Simulated {
    fn set_interventions(&mut self, interventions: &[(ValueId, Vec<Intervention>)]) -> Result<()> {
        interventions.clone_into(&mut self.interventions);
        Ok(())
    }
}

impl Executor for Simulated {
    type Cache = Slots;
    type Pending = StepOutput;

    fn plan(&self) -> &Plan {
        self.inner.plan()
    }
    fn describe(&self) -> String {
        "a simulated device".into()
    }
    fn storage(&self) -> Storage {
        self.inner.storage()
    }
    fn new_cache(&self, capacity: usize, _: usize) -> Result<Slots> {
        let empty = || vec![Vec::new(); self.plan().states.len()];
        Ok(Slots { keys: empty(), values: empty(), written: 0, len: 0, capacity, picked: None })
    }
    fn grow(&self, cache: &mut Slots, capacity: usize) -> Result<()> {
        cache.capacity = cache.capacity.max(capacity);
        if let Plant::Lost(position) = self.plant {
            for (index, keys) in cache.keys.iter_mut().enumerate() {
                let width = self.width(StateId(index));
                keys.iter_mut().skip(position * width).take(width).for_each(|x| *x = 0.0);
            }
        }
        Ok(())
    }
    fn len(&self, cache: &Slots) -> usize {
        cache.len
    }
    fn capacity(&self, cache: &Slots) -> usize {
        cache.capacity
    }
    fn truncate(&self, cache: &mut Slots, len: usize) -> bool {
        cache.len = cache.len.min(len);
        if len == 0 {
            cache.written = 0;
        }
        true
    }
    fn submit(&self, cache: &mut Slots, step: &Step<'_>) -> Result<StepOutput> {
        let picked = [cache.picked.unwrap_or(0)];
        let ids = match step.tokens {
            Tokens::Ids(ids) => ids,
            Tokens::Picked => &picked,
        };
        let (plan, first) = (self.plan(), cache.len);
        let wanted = match_requests(plan, step.requests)?;
        let all: Vec<ValueId> = (0..plan.nodes.len()).map(ValueId).collect();
        let mut made = self.nodes(cache, &all, BTreeMap::new(), ids, step.long_rope)?;
        let tick = self.ticks.replace(self.ticks.get() + 1);
        let last = made.get_mut(all.last().expect("a plan has nodes")).expect("all was computed");
        let before = self.left.replace(last.data.clone());
        match self.plant {
            Plant::Unsteady(by) if self.shows(ids.len()) => last.data.iter_mut().for_each(|x| *x *= 1.0 + by * (tick % 7) as f32),
            Plant::Leftover(by) if self.shows(ids.len()) => {
                last.data.iter_mut().zip(before.iter().cycle()).for_each(|(x, left)| *x += by * left)
            }
            Plant::TimesZero if self.shows(ids.len()) => {
                last.data.iter_mut().zip(before.iter().cycle()).for_each(|(x, left)| *x += 0.0 * left)
            }
            _ => {}
        }
        let row = last.row(last.rows() - 1).to_vec();
        let mut output = StepOutput { logits: (step.read == Read::Logits).then(|| row.clone()), ..StepOutput::default() };
        if let Some(pick) = step.pick {
            let chosen = block_on(self.choose(cache, &row, pick, 2))?;
            output.token = chosen.next;
            if let Read::Top(k) = step.read {
                output.top = Some(block_on(self.choose(cache, &row, pick, k))?.top);
            }
        }
        cache.picked = output.token;
        for (id, want) in wanted {
            let content = match want {
                Want::Full => Content::Full(made[&id].clone()),
                _ => Content::Stats(Stats::default()),
            };
            output.values.push(Observed { at: plan.node(id).at, first_token: first, content });
        }
        Ok(output)
    }
    fn submit_batch(&self, batch: &mut [Entry<'_, Slots>]) -> Result<Vec<StepOutput>> {
        let mut made = batch.iter_mut().map(|entry| self.submit(entry.cache, &entry.step)).collect::<Result<Vec<_>>>()?;
        if let (Plant::Mixed(by), [a, b, ..]) = (self.plant, &mut made[..])
            && let (Some(a), Some(b)) = (&mut a.logits, &b.logits)
        {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += by * b);
        }
        if let (Plant::Crossed, [a, b, ..]) = (self.plant, batch) {
            let width = self.width(StateId(0));
            let count = a.cache.keys[0].len().min(b.cache.keys[0].len()).min(width);
            a.cache.keys[0][..count].copy_from_slice(&b.cache.keys[0][..count]);
        }
        Ok(made)
    }
    async fn finish(&self, pending: StepOutput) -> Result<StepOutput> {
        Ok(pending)
    }
    async fn eval(&self, id: ValueId, inputs: &[Tensor], first_position: usize, long_rope: bool) -> Result<Tensor> {
        let node = self.plan().node(id);
        if !matches!(self.plant, Plant::Slot(_) | Plant::Damaged(..)) {
            return self.op(id, inputs, first_position, long_rope);
        }
        // As in a step, keys and values go through the cache.
        let mut slots = self.new_cache(0, 1)?;
        if let Op::Append { state, part } = node.op {
            slots.len = first_position;
            return self.append(&mut slots, (state, part), &inputs[0], self.shows(inputs[0].rows()));
        }
        let Some((state, part)) = node.op.reads_state() else { return self.op(id, inputs, first_position, long_rope) };
        let keys = matches!(node.op, Op::AttnScores(_));
        let tokens = if keys { inputs[0].rows() } else { inputs[0].shape[1] };
        let cached = self.append(&mut slots, (state, part), &inputs[1], self.shows(tokens))?;
        self.op(id, &[inputs[0].clone(), cached], first_position, long_rope)
    }
    fn groups(&self) -> Result<Vec<Group>> {
        let plan = self.plan();
        let mut groups = Vec::new();
        for (i, node) in plan.nodes.iter().enumerate() {
            let nodes = match node.op {
                Op::AttnMix(_) => {
                    let probs = node.inputs[0];
                    let scores = plan.node(probs).inputs[0];
                    let mut nodes = vec![plan.node(scores).inputs[1], node.inputs[1], scores, probs, ValueId(i)];
                    nodes.sort_unstable();
                    nodes
                }
                Op::AttnScores(_) | Op::AttnProbs(_) | Op::Append { .. } | Op::Same => continue,
                _ => vec![ValueId(i)],
            };
            let name = if nodes.len() > 1 { "attention" } else { node.op.name() }.to_string();
            let made = |id: &ValueId| *id == ValueId(i) || plan.node(*id).op.appends();
            let makes = nodes.iter().copied().filter(made).collect();
            let by_size = nodes.len() == 1;
            groups.push(Group { name, nodes, makes, by_size, together: false });
        }
        Ok(groups)
    }
    async fn part(&self, cache: &mut Slots, part: &Part<'_>) -> Result<Tensor> {
        let reads = part.check(self.plan(), cache.len)?;
        let given = reads.into_iter().zip(part.inputs.iter().cloned()).collect();
        let mut made = self.nodes(cache, part.nodes, given, part.ids, part.long_rope)?;
        part.nodes.last().and_then(|id| made.remove(id)).ok_or_else(|| Error::device("nothing was computed"))
    }
    async fn cached(&self, cache: &Slots, state: StateId) -> Result<Cached> {
        let width = self.width(state);
        let rows = |held: &[f32]| {
            let data: Vec<f32> = held.iter().copied().chain(std::iter::repeat(0.0)).take(cache.len * width).collect();
            Tensor::new(vec![cache.len, width], data)
        };
        Ok(Cached { first: 0, parts: vec![rows(&cache.keys[state.0])?, rows(&cache.values[state.0])?] })
    }
    async fn choose(&self, _: &mut Slots, logits: &[f32], rules: Pick, k: usize) -> Result<Chosen> {
        let mut order: Vec<(u32, f32)> =
            (0..).zip(logits.iter().copied()).take(rules.valid).filter(|(_, x)| *x > f32::NEG_INFINITY).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.plant == Plant::Second && order.len() > 1 {
            order.swap(0, 1);
        }
        order.truncate(k.max(1));
        let odd = logits.iter().take(rules.valid).any(|x| x.is_nan());
        Ok(Chosen { next: order.first().map(|best| best.0).filter(|_| !odd), top: order })
    }
}
