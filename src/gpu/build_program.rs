//! Building programs: the dispatches of a step, lowered once for every combination of chunk kind, choice and requests, and
//! what a step's requests become.

use super::buffers::{Value, Values, storage_buffer};
use super::layouts::{Candidate, Partial, Place, StatsValue};
use super::lower::Lowering;
use super::pipelines::{Call, Dispatch, Grid, RowCount, SHARE, read, sharing, write};
use super::program::{Capture, CaptureKey, CaptureKind, HeadBatches, Item, PARTIAL_GROUPS, Program, ProgramKey, Size};
use super::state::{GpuCache, GpuExecutor, IfMade, no_workspace};
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::exec::{Read, Rows, Step, Tokens, Want, head_rows, match_requests};
use crate::geometry::{runs, stride};
use crate::groups::Group;
use crate::plan::{Node, Op, Stage, ValueId};
use crate::tensor::{DType, product};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Programs that are kept.
const MOST_PROGRAMS: usize = 32;
/// Values laid out [heads, T, positions] grow by so many positions at a time.
const SCORES_POSITIONS: usize = 512;
/// Values that stats.wgsl takes at a time, and the define by which it does where a device binds as many buffers and two more:
/// the table and the results.
const STATS_VALUES: [(usize, Option<&str>); 3] = [(6, None), (30, Some("WIDE")), (126, Some("WIDEST"))];
/// Candidates that one workgroup of top_k.wgsl reads.
pub(super) const TOP_K_CHUNK: usize = 2048;
/// Most candidates that can be asked for.
pub const TOP_K_MAX: usize = 256;

impl GpuExecutor {
    /// The program of a step, one that is known or newly lowered.
    pub(super) fn program(&self, key: ProgramKey) -> Result<Rc<Program>> {
        let mut workspace = self.workspace.borrow_mut();
        let workspace = workspace.as_mut().ok_or_else(no_workspace)?;
        if let Some(found) = workspace.programs.get(&key) {
            return Ok(found.clone());
        }
        if workspace.programs.len() > MOST_PROGRAMS {
            workspace.programs.clear();
        }
        let program = Rc::new(self.build_program(workspace, &key)?);
        self.programs_made.set(self.programs_made.get() + 1);
        workspace.programs.insert(key, program.clone());
        Ok(program)
    }

    fn build_program(&self, workspace: &mut Workspace, key: &ProgramKey) -> Result<Program> {
        let caches = self.caches.borrow();
        let (groups, notes) = self.groups_and_notes(key);
        let many = key.size == Size::Many;
        let values = if many { &mut workspace.values } else { &mut workspace.decode };
        if let Some((tokens, positions)) = key.scores {
            self.make_scores(values, &groups, tokens, positions)?;
        }
        self.make_appended(values, key, if many { workspace.room.chunk } else { workspace.room.rows })?;
        let values = if many { &workspace.values } else { &workspace.decode };
        let head_batch = values.head_batch;
        let lowering = Lowering {
            gpu: &self.gpu,
            plan: &self.plan,
            weights: &self.weights,
            values,
            states: &caches.states,
            ropes: &workspace.ropes,
            ids: &workspace.ids,
            partials: &workspace.partials,
            expert_order: &workspace.expert_order,
            runs: runs(workspace.room.capacity),
            size: key.size,
            head_block: if key.together { key.size.block() } else { 1 },
            shift: 0,
        };
        let mut captures = Vec::new();
        let (mut partials, mut gathers, mut reduced) = (0, 0, 0);
        for (id, want) in &key.requests {
            let value = values.get(&self.plan, *id)?.clone();
            let head = self.plan.in_head(*id);
            let kind = match want {
                CaptureKey::Full => CaptureKind::Full,
                CaptureKey::Stats | CaptureKey::HeadStats => {
                    let by_head = *want == CaptureKey::HeadStats;
                    let parts = if by_head { self.plan.heads(*id).unwrap_or(1) } else { 1 };
                    let many = many || self.plan.node(*id).at.stage.layout().is_scores();
                    let most = if many { PARTIAL_GROUPS } else { sharing(self.plan.node(*id).width, PARTIAL_GROUPS) };
                    let groups = most.div_ceil(parts);
                    let batches = if head { workspace.room.chunk.div_ceil(head_batch) } else { 1 };
                    partials += groups * parts * batches;
                    reduced += 1;
                    CaptureKind::Stats { slot: partials - groups * parts * batches, groups, parts, by_head }
                }
                CaptureKey::Gather(tokens, dims) => {
                    gathers += tokens.len() * dims.len();
                    CaptureKind::Gather { first: gathers - tokens.len() * dims.len(), tokens: tokens.clone(), dims: dims.clone() }
                }
            };
            captures.push(Capture { id: *id, value, head, kind });
        }
        let make = |what: &str, count: usize, bytes: usize| {
            if count == 0 { Ok(None) } else { storage_buffer(&self.gpu, what, product([count, bytes])).map(Some) }
        };
        let stats = make("statistics", partials, size_of::<Partial>())?;
        let table = make("statistics table", reduced, size_of::<StatsValue>())?;
        let gathered = make("gathered values", gathers, 4)?;
        let gather_at = make("gather indices", gathers, size_of::<Place>())?;

        let mut watch =
            StatsBatcher { executor: self, captures: &captures, stats: &stats, table: &table, entries: Vec::new(), waiting: Vec::new() };
        let (mut body, mut head) = (Vec::new(), Vec::new());
        let computed = groups.iter().filter(|group| key.head || !group.nodes.iter().any(|id| self.plan.in_head(*id)));
        let lowered: Vec<(&Group, Vec<Call>)> = computed.map(|group| Ok((group, lowering.group(group)?))).collect::<Result<_>>()?;
        self.pipelines.compile_all(&self.gpu, lowered.iter().flat_map(|(_, calls)| calls));
        let mut groups = lowered.into_iter().peekable();
        for index in 0..self.plan.nodes.len() {
            let id = ValueId(index);
            let at = self.plan.nodes[index].at;
            // A group is computed where the last of its nodes is, and then all that it makes is there.
            let (group, calls) = groups.next_if(|(group, _)| group.nodes.last() == Some(&id)).unzip();
            if self.plan.in_head(id) && !key.head {
                continue;
            }
            let items = if self.plan.in_head(id) { &mut head } else { &mut body };
            for call in calls.unwrap_or_default() {
                for buffer in call.written() {
                    watch.before_writing(buffer, items)?;
                }
                items.push(Item::Run(self.pipelines.dispatch(&self.gpu, call)?, at));
            }
            let renamed = [id];
            let made = match group {
                Some(group) => &group.makes[..],
                None if matches!(self.plan.node(id).op, Op::Same) => &renamed[..],
                None => &[],
            };
            let mut read = None;
            for (i, want) in captures.iter().enumerate().filter(|(_, w)| made.contains(&w.id)) {
                if self.plan.node(want.id).op.appends() && read.replace(want.id) != Some(want.id) {
                    let call = lowering.kv_read(want.id)?;
                    for buffer in call.written() {
                        watch.before_writing(buffer, items)?;
                    }
                    items.push(Item::Run(self.pipelines.dispatch(&self.gpu, call)?, self.plan.node(want.id).at));
                }
                match self.gather_call(want, &gathered, &gather_at) {
                    Some(call) => items.push(Item::Run(self.pipelines.dispatch(&self.gpu, call)?, at)),
                    None => watch.add(i, items)?,
                }
            }
            // The head runs once per batch of rows, so nothing may wait across its beginning.
            let next = ValueId(index + 1);
            if next.0 == self.plan.nodes.len() || self.plan.in_head(next) != self.plan.in_head(id) {
                watch.flush(items)?;
            }
        }
        if let Some(table) = &table {
            self.gpu.queue.write_buffer(table, 0, bytemuck::cast_slice(&watch.entries));
        }
        let logits = values.get(&self.plan, ValueId(self.plan.nodes.len() - 1))?.clone();
        let (picks, top) = self.picks(workspace, &logits, key)?;
        Ok(Program { body, head, picks, top, logits, stats, gathered, gather_at, captures, notes })
    }

    /// The groups of a step, and a note on what had to be opened although it changes bits.
    fn groups_and_notes(&self, key: &ProgramKey) -> (Vec<Group>, Vec<String>) {
        let wanted: Vec<ValueId> = key.requests.iter().map(|(id, _)| *id).collect();
        let groups = self.groups_of(&wanted, key.size);
        let (mut stages, mut layers) = (Vec::new(), Vec::new());
        for group in self.groups_of(&[], key.size).iter().filter(|group| group.pattern.opening_changes_bits()) {
            let inside = |id: &&ValueId| self.plan.node(**id).at.stage.layout().is_scores() && wanted.contains(id);
            let names = group.nodes.iter().filter(inside).map(|id| self.plan.node(*id).at);
            for at in names {
                if !stages.contains(&at.stage.name()) {
                    stages.push(at.stage.name());
                }
                layers.extend(at.layer);
            }
        }
        layers.dedup();
        if layers.is_empty() {
            return (groups, Vec::new());
        }
        let which = if layers.len() == self.plan.num_layers { "all layers".to_string() } else { format!("layers {layers:?}") };
        let note = format!(
            "fusion dropped: attention runs as attn_scores, attn_probs and attn_mix in {which}, because {} {} asked for",
            stages.join(" and "),
            if stages.len() > 1 { "were" } else { "was" }
        );
        (groups, vec![note])
    }

    /// One buffer for the scores and one for the probabilities, shared by the layers that need them.
    fn make_scores(&self, values: &mut Values, groups: &[Group], tokens: usize, positions: usize) -> Result<()> {
        for stage in [Stage::AttnScores, Stage::AttnProbs] {
            let mut shared: Option<wgpu::Buffer> = None;
            for (index, node) in self.plan.nodes.iter().enumerate() {
                if node.at.stage != stage || !groups.iter().any(|group| group.makes.contains(&ValueId(index))) {
                    continue;
                }
                let bytes = product([node.width, tokens, positions, 4]);
                if shared.as_ref().is_none_or(|b| b.size() < bytes) {
                    shared = Some(storage_buffer(&self.gpu, stage.name(), bytes)?);
                }
                if let Some(buffer) = &shared {
                    values.set(ValueId(index), Value { buffer: buffer.clone(), dtype: DType::F32, stride: positions });
                }
            }
        }
        Ok(())
    }

    /// Buffers of `rows` tokens for what is appended to caches and wanted: one for all where prompts are read, as other values
    /// share theirs, and one for each in decode.
    fn make_appended(&self, values: &mut Values, key: &ProgramKey, rows: usize) -> Result<()> {
        let mut shared = None;
        let appended = |id: ValueId| Some((id, self.storage.of_appended(&self.plan, id)?));
        let wanted = || key.requests.iter().filter_map(|(id, _)| appended(*id));
        let row_bytes = |id: ValueId, dtype: DType| stride(self.plan.node(id).width) * dtype.size();
        let most = wanted().map(|(id, dtype)| row_bytes(id, dtype)).max().unwrap_or(0);
        for (id, dtype) in wanted() {
            let stride = stride(self.plan.node(id).width);
            if values.has(id) {
                continue;
            }
            let make = |row_bytes: usize| storage_buffer(&self.gpu, "cached values", product([rows, row_bytes]));
            let buffer = match &shared {
                Some(buffer) => wgpu::Buffer::clone(buffer),
                None if key.size == Size::Many => shared.insert(make(most)?).clone(),
                None => make(row_bytes(id, dtype))?,
            };
            values.set(id, Value { buffer, dtype, stride });
        }
        Ok(())
    }

    /// The dispatch that gathers chosen elements of a wanted value; `None` for other kinds of wants.
    fn gather_call(&self, want: &Capture, gathered: &Option<wgpu::Buffer>, gather_at: &Option<wgpu::Buffer>) -> Option<Call> {
        let CaptureKind::Gather { first, tokens, dims } = &want.kind else { return None };
        let mut defines = if want.value.dtype == DType::F16 { vec!["X_F16"] } else { Vec::new() };
        if want.head {
            defines.push("HEAD");
        }
        let count = tokens.len() * dims.len();
        Some(Call {
            kernel: "gather",
            defines,
            constants: Vec::new(),
            params: vec![("count", count.into()), ("slot", (*first).into()), ("stride", want.value.stride.into())],
            buffers: vec![read(&want.value.buffer), read(gather_at.as_ref()?), write(gathered.as_ref()?)],
            grid: Grid::Fixed([count.div_ceil(64) as u32, 1]),
        })
    }

    /// The passes of top_k over the rows of logits from which a token is picked.
    pub(super) fn picks(&self, workspace: &Workspace, logits: &Value, key: &ProgramKey) -> Result<(Vec<Dispatch>, Option<wgpu::Buffer>)> {
        let (Some(valid), true) = (key.pick, key.head && key.top_k > 0) else { return Ok((Vec::new(), None)) };
        let (mut count, mut input): (usize, Option<wgpu::Buffer>) = (self.plan.vocab_size, None);
        let mut dispatches = Vec::new();
        let rows = if matches!(key.size, Size::Several { .. } | Size::Thin { .. }) { workspace.room.rows } else { 1 };
        loop {
            let groups = count.div_ceil(TOP_K_CHUNK);
            let out = storage_buffer(&self.gpu, "candidates", product([rows, groups, key.top_k, size_of::<Candidate>()]))?;
            let mut defines = Vec::new();
            let mut buffers = match &input {
                None => {
                    defines.push("FIRST");
                    vec![read(&logits.buffer)]
                }
                Some(buffer) => vec![read(buffer)],
            };
            buffers.push(write(&out));
            if groups == 1 {
                defines.push("LAST");
                buffers.push(write(&workspace.ids));
            }
            let call = Call {
                kernel: "top_k",
                defines,
                constants: Vec::new(),
                params: vec![("count", count.into()), ("k", key.top_k.into()), ("valid", valid.into()), ("stride", logits.stride.into())],
                buffers,
                grid: Grid::Rows { rows: RowCount::Picks, groups },
            };
            dispatches.push(self.pipelines.dispatch(&self.gpu, call)?);
            if groups == 1 {
                return Ok((dispatches, Some(out)));
            }
            count = groups * key.top_k;
            input = Some(out);
        }
    }

    /// What identifies the program of `step`, and its tokens.
    pub(super) fn key(&self, cache: &GpuCache, step: &Step<'_>) -> Result<(ProgramKey, usize, HeadBatches)> {
        let tokens = match step.tokens {
            Tokens::Ids(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.plan.vocab_size) {
                    let message = format!("token id {id} is outside the model's vocabulary of {} rows", self.plan.vocab_size);
                    return Err(Error::invalid("token ids", message));
                }
                ids.len()
            }
            Tokens::Picked => 1,
        };
        if tokens == 0 {
            return Err(Error::invalid("step", "no tokens"));
        }
        if tokens > cache.chunk || cache.len + tokens > cache.capacity {
            let message = format!(
                "{tokens} tokens at position {} do not fit a cache of {} positions and steps of {}",
                cache.len, cache.capacity, cache.chunk
            );
            return Err(Error::invalid("step", message));
        }
        let mut resolved = match_requests(&self.plan, step.requests)?;
        self.drop_unmade(&mut resolved, self.size_of(tokens));
        let batches = self.head_batches(cache.len, tokens, step.rows, &resolved)?;
        let top_k = match (step.read, step.pick) {
            (Read::Top(k), Some(_)) if k <= TOP_K_MAX => k.max(1),
            (Read::Top(k), Some(_)) => return Err(Error::invalid("topK", format!("at most {TOP_K_MAX} candidates can be read, not {k}"))),
            (Read::Top(_), None) => return Err(Error::invalid("step", "candidates need the rules of a pick")),
            (_, pick) => usize::from(pick.is_some()),
        };
        if let Some(pick) = step.pick
            && (pick.valid == 0 || pick.valid > self.plan.vocab_size)
        {
            return Err(Error::invalid("step", format!("{} valid ids in a vocabulary of {}", pick.valid, self.plan.vocab_size)));
        }
        let changed = |node: &Node| !node.interventions.is_empty() && node.at.stage.layout().is_scores();
        let scores = self.gpu.no_fusion
            || resolved.iter().map(|(id, _)| id).chain(&self.opened).any(|id| self.plan.node(*id).at.stage.layout().is_scores())
            || self.plan.nodes.iter().any(changed);
        let last = cache.len + tokens;
        let requests = resolved.into_iter().map(|(id, want)| {
            let want = match want {
                Want::Full => CaptureKey::Full,
                Want::Stats | Want::StatsIfMade => CaptureKey::Stats,
                Want::HeadStats => CaptureKey::HeadStats,
                Want::Gather { tokens, dims } => {
                    CaptureKey::Gather(tokens.into_iter().filter(|t| (cache.len..last).contains(t)).map(|t| t - cache.len).collect(), dims)
                }
            };
            (id, want)
        });
        let key = ProgramKey {
            size: self.size_of(tokens),
            together: false,
            head: !batches.is_empty(),
            top_k: if batches.is_empty() { 0 } else { top_k },
            pick: step.pick.map(|p| p.valid),
            requests: requests.filter(|(_, w)| !matches!(w, CaptureKey::Gather(t, d) if t.is_empty() || d.is_empty())).collect(),
            scores: scores.then_some((tokens, last.next_multiple_of(SCORES_POSITIONS).min(cache.capacity))),
        };
        if key.requests.iter().any(|(id, w)| matches!(w, CaptureKey::Gather(..)) && self.plan.node(*id).at.stage.layout().is_scores()) {
            return Err(Error::invalid("probe", "attn_scores and attn_probs are read whole or as statistics, not by dims"));
        }
        Ok((key, tokens, batches))
    }

    /// Drops what was asked for only where it is made, and is not.
    fn drop_unmade(&self, requests: &mut Vec<(ValueId, Want)>, size: Size) {
        let ids = |welcome: bool| requests.iter().filter(move |(_, want)| (*want == Want::StatsIfMade) == welcome).map(|(id, _)| *id);
        let (wanted, welcome): (Vec<ValueId>, Vec<ValueId>) = (ids(false).collect(), ids(true).collect());
        if welcome.is_empty() {
            return;
        }
        let mut last = self.if_made.borrow_mut();
        let alike = |known: &&mut IfMade| (&known.wanted, &known.welcome, known.size) == (&wanted, &welcome, size);
        let made = match last.as_mut().filter(alike) {
            Some(known) => &known.made,
            None => {
                let makes: BTreeSet<ValueId> =
                    self.groups_with(&wanted, &welcome, size).into_iter().flat_map(|group| group.makes).collect();
                let is_made = |id: &ValueId| {
                    let mut id = *id;
                    while let (Op::Same, [input]) = (&self.plan.node(id).op, &self.plan.node(id).inputs[..]) {
                        id = *input;
                    }
                    makes.contains(&id)
                };
                let made = welcome.iter().copied().filter(is_made).collect();
                &last.insert(IfMade { wanted, welcome, size, made }).made
            }
        };
        // In the plan's order, as requests are.
        requests.retain(|(id, want)| *want != Want::StatsIfMade || made.binary_search(id).is_ok());
    }

    /// (first row, rows) of each batch of logits, the last token's last: as many as fit where every row is needed.
    fn head_batches(&self, first: usize, tokens: usize, rows: Rows, wanted: &[(ValueId, Want)]) -> Result<HeadBatches> {
        match head_rows(&self.plan, wanted, rows, first, tokens) {
            Some(rows) => Ok(rows.into_iter().map(|row| (row, 1)).collect()),
            None => self.batches_of(self.size_of(tokens), tokens),
        }
    }
    /// Batches of the logits of all of `rows` rows.
    pub(super) fn batches_of(&self, size: Size, rows: usize) -> Result<HeadBatches> {
        let workspace = self.workspace.borrow();
        let workspace = workspace.as_ref().ok_or_else(no_workspace)?;
        let batch = if size == Size::Many { workspace.values.head_batch } else { workspace.decode.head_batch };
        Ok((0..rows).step_by(batch).map(|first| (first, batch.min(rows - first))).collect())
    }
}

/// Captures whose reduction or copy has not been recorded yet. They wait until as many as a dispatch takes are there,
/// or until their buffer is about to be written again.
struct StatsBatcher<'a> {
    executor: &'a GpuExecutor,
    captures: &'a [Capture],
    stats: &'a Option<wgpu::Buffer>,
    table: &'a Option<wgpu::Buffer>,
    /// The table's contents so far.
    entries: Vec<StatsValue>,
    waiting: Vec<usize>,
}

impl StatsBatcher<'_> {
    fn before_writing(&mut self, buffer: &wgpu::Buffer, items: &mut Vec<Item>) -> Result<()> {
        if self.waiting.iter().any(|i| self.captures[*i].value.buffer == *buffer) { self.flush(items) } else { Ok(()) }
    }
    fn add(&mut self, i: usize, items: &mut Vec<Item>) -> Result<()> {
        self.waiting.push(i);
        let reducing = self.waiting.iter().filter(|i| matches!(self.captures[**i].kind, CaptureKind::Stats { .. })).count();
        let binds = self.executor.gpu.caps.storage_buffers as usize;
        let most = STATS_VALUES.iter().rev().find(|(values, _)| values + 2 <= binds).map_or(STATS_VALUES[0].0, |(values, _)| *values);
        if reducing == most { self.flush(items) } else { Ok(()) }
    }
    fn flush(&mut self, items: &mut Vec<Item>) -> Result<()> {
        let first = self.entries.len();
        let (mut buffers, mut at, mut rows_of) = (Vec::new(), None, RowCount::Tokens);
        // Of values together: elements of a token's row, heads with a cell for each position, parts, workgroups of a part.
        let [mut width, mut cells, mut parts, mut most] = [0; 4];
        for i in std::mem::take(&mut self.waiting) {
            let want = &self.captures[i];
            let node = self.executor.plan.node(want.id);
            let CaptureKind::Stats { slot, groups, parts: of_value, .. } = want.kind else {
                items.push(Item::Copy(i));
                continue;
            };
            let scores = node.at.stage.layout().is_scores();
            self.entries.push(StatsValue {
                width: node.width as u32,
                stride: want.value.stride as u32,
                rows: match (scores, want.head) {
                    (true, _) => StatsValue::ROWS_SCORES,
                    (_, true) => StatsValue::ROWS_HEAD,
                    _ => StatsValue::ROWS_TOKENS,
                },
                groups: groups as u32,
                slot: slot as u32,
                narrow: u32::from(want.value.dtype == DType::F16),
                parts: of_value as u32,
            });
            buffers.push(read(&want.value.buffer));
            if scores {
                cells = cells.max(node.width / of_value);
            } else {
                width = width.max(node.width / of_value);
            }
            (parts, most) = (parts.max(of_value), most.max(groups));
            if want.head {
                rows_of = RowCount::HeadRows;
            }
            at.get_or_insert(node.at);
        }
        let (Some(at), Some(stats), Some(table)) = (at, self.stats, self.table) else { return Ok(()) };
        let (count, first_value) = (buffers.len(), buffers[0].clone());
        // Every binding must be filled; what is beyond the count is not read.
        let enough = STATS_VALUES.iter().find(|(values, _)| *values >= count);
        let (most_values, define) = *enough.ok_or_else(|| Error::plan(format!("statistics of {count} values at a time")))?;
        buffers.resize_with(most_values, || first_value.clone());
        buffers.extend([read(table), write(stats)]);
        let call = Call {
            kernel: "stats",
            defines: define.into_iter().collect(),
            constants: vec![("SHARE", SHARE as f64)],
            params: vec![("first", first.into())],
            buffers,
            grid: Grid::Shares { rows: rows_of, width, heads: cells, parts, groups: most, values: count },
        };
        items.push(Item::Run(self.executor.pipelines.dispatch(&self.executor.gpu, call)?, at));
        Ok(())
    }
}
