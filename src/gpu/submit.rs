//! Submitting steps, of one sequence or of several together, and reading what was asked of them.
//!
//! Steps of a few tokens of which nobody wants a value are joined: their rows go through the same dispatches, which read
//! weights once for several rows. Every other step is a part of its own, with the dispatches that it has alone. A row's
//! kernels add in the same order in both cases, so that the bits of a sequence do not depend on who is computed with it.

use super::layouts::{Candidate, Origin, StepUniform, structs};
use super::log::StepTimer;
use super::pipelines::Extent;
use super::program::{HeadBatches, Item, Program, ProgramKey, Size};
use super::readback::{Piece, Readback};
use super::recording::{Recorder, SERIAL};
use super::state::{GpuCache, GpuExecutor};
use super::workspace::{part_origins, step_slots};
use crate::error::Result;
use crate::exec::{Entry, Observed, Read, Step, StepOutput, Tokens};
use crate::geometry::{MOST_ENTRIES, Room, head_batch};
use crate::plan::{At, Stage};
use crate::tensor::{DType, product, to_f32};
use std::rc::Rc;

/// A submitted step.
#[derive(Debug)]
pub struct GpuPending {
    readback: Option<Readback>,
    layout: Vec<(Section, u64, u64)>,
    extent: Extent,
    batches: HeadBatches,
    program: Rc<Program>,
    valid: usize,
    timer: Option<StepTimer>,
}

/// What a section of a readback holds.
#[derive(Debug, Clone, PartialEq)]
enum Section {
    Top,
    Logits,
    /// Rows of `captures[i]`.
    Full(usize),
    Stats,
    Gathered,
    Times,
}

/// What a step asks of the device.
struct Asked {
    key: ProgramKey,
    tokens: usize,
    batches: HeadBatches,
}

/// Steps that are computed together.
struct Part {
    /// Which of the entries, and the row of the first token of each.
    entries: Vec<(usize, usize)>,
    key: ProgramKey,
    extent: Extent,
    batches: HeadBatches,
    /// First slot of the step uniform.
    slot: usize,
}

/// Where a step's results are read.
struct Target {
    layout: Vec<(Section, u64, u64)>,
    buffer: wgpu::Buffer,
    bytes: u64,
}

impl GpuExecutor {
    /// As `Executor::submit_batch`.
    pub(super) fn submit_entries(&self, entries: &mut [Entry<'_, GpuCache>]) -> Result<Vec<GpuPending>> {
        let mut asked = Vec::new();
        for entry in entries.iter() {
            let (key, tokens, batches) = self.key(entry.cache, &entry.step)?;
            asked.push(Asked { key, tokens, batches });
        }
        let parts = self.parts(entries, &asked)?;
        let programs = self.programs_of(&parts)?;
        let serial = self.begin_parts(entries, &parts)?;

        let workspace = self.workspace.borrow();
        let workspace = workspace.as_ref().ok_or_else(super::state::no_workspace)?;
        let runs = |items: &[Item]| items.iter().filter(|item| matches!(item, Item::Run(..))).count();
        let of_part =
            |(part, program): (&Part, &Rc<Program>)| runs(&program.body) + part.batches.len() * (runs(&program.head) + program.picks.len());
        let count: usize = parts.iter().zip(&programs).map(of_part).sum();
        let mut timer = StepTimer::new(&self.gpu, self.log.level.get(), count);
        let times = timer.as_ref().map_or(0, |timer| timer.bytes(count));
        let times = if times > 0 { Some(self.times_buffer(times)?) } else { None };

        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut targets: Vec<Option<Target>> = Vec::new();
        targets.resize_with(entries.len(), || None);
        for (number, (part, program)) in parts.iter().zip(&programs).enumerate() {
            self.write_gather_indices(program);
            for (index, _) in &part.entries {
                // The times of all parts come back with the first entry.
                let times = times.as_ref().filter(|_| *index == 0);
                targets[*index] = self.target(&entries[*index].step, part, &asked[*index], program, times)?;
            }
            let alone = targets[part.entries[0].0].as_ref();
            let mut full = full_values(alone);
            let mut recorder = Recorder {
                encoder: &mut encoder,
                pass: None,
                limit: self.gpu.caps.max_workgroups,
                timer: timer.as_mut(),
                shared: &workspace.shared,
                part: number,
                bound: None,
            };
            recorder.items(program, &program.body, part.extent, part.slot, &mut full, alone.map(|target| &target.buffer))?;
            for (i, (first, rows)) in part.batches.iter().enumerate() {
                let (slot, picks) = (part.slot + 1 + i, part.picks(i));
                let extent = Extent { head_rows: *rows, picks, ..part.extent };
                recorder.items(program, &program.head, extent, slot, &mut full, alone.map(|target| &target.buffer))?;
                for dispatch in program.picks.iter().filter(|_| picks > 0) {
                    recorder.run(dispatch, At { stage: Stage::Sampled, layer: None }, extent, slot)?;
                }
                // Logits are written over by the next batch of rows.
                for (index, row) in &part.entries {
                    let last = row + asked[*index].tokens - 1;
                    let Some(target) = targets[*index].as_ref().filter(|_| (*first..first + rows).contains(&last)) else { continue };
                    let logits = &program.logits;
                    let source = product([last - first, logits.row_bytes()]);
                    recorder.copy(target.piece(&Section::Logits, &logits.buffer, source), &target.buffer);
                }
            }
            for (index, row) in &part.entries {
                let Some(target) = &targets[*index] else { continue };
                // Candidates of a sequence alone are those of its last row.
                let row = if part.joined() { row + asked[*index].tokens - 1 } else { 0 };
                let first = product([row, part.key.top_k, size_of::<Candidate>()]);
                let results =
                    [(Section::Top, &program.top, first), (Section::Stats, &program.stats, 0), (Section::Gathered, &program.gathered, 0)];
                for (section, buffer, offset) in results {
                    recorder.copy(buffer.as_ref().and_then(|buffer| target.piece(&section, buffer, offset)), &target.buffer);
                }
                recorder.copy(Some(target.guard(&workspace.step)), &target.buffer);
            }
        }
        if let (Some(timer), Some(times)) = (&timer, &times) {
            timer.resolve(&mut encoder, times);
            if let Some(target) = &targets[0]
                && let Some(piece) = target.piece(&Section::Times, times, 0)
            {
                encoder.copy_buffer_to_buffer(&piece.source, piece.source_offset, &target.buffer, piece.offset, piece.bytes);
            }
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        for (entry, asked) in entries.iter_mut().zip(&asked) {
            entry.cache.advance(asked.tokens);
        }
        self.gpu.check()?;

        let mut pending: Vec<Option<GpuPending>> = Vec::new();
        pending.resize_with(entries.len(), || None);
        for (part, program) in parts.iter().zip(&programs) {
            for (index, _) in &part.entries {
                let (layout, readback) = match targets[*index].take() {
                    Some(Target { layout, buffer, bytes }) => (layout, Some(Readback::start(buffer, bytes, serial, submission.clone()))),
                    None => (Vec::new(), None),
                };
                let cache = &entries[*index].cache;
                let extent = match part.entries.len() {
                    1 => part.extent,
                    _ => Extent::of(asked[*index].tokens, cache.len - asked[*index].tokens, 0),
                };
                pending[*index] = Some(GpuPending {
                    readback,
                    layout,
                    extent,
                    batches: part.batches.clone(),
                    program: program.clone(),
                    valid: asked[*index].key.pick.unwrap_or(self.plan.vocab_size),
                    timer: timer.take_if(|_| *index == 0),
                });
            }
        }
        Ok(pending.into_iter().flatten().collect())
    }

    /// Which steps are computed together, in parts, and where each part's slots are.
    fn parts(&self, entries: &[Entry<'_, GpuCache>], asked: &[Asked]) -> Result<Vec<Part>> {
        // Attention op by op keeps the scores of one sequence.
        let joins = |asked: &Asked| asked.key.size != Size::Many && asked.key.requests.is_empty() && asked.key.scores.is_none();
        let mut parts: Vec<Part> = Vec::new();
        for (index, found) in asked.iter().enumerate() {
            let position = entries[index].cache.len;
            let last = position + found.tokens;
            let fits = |part: &&mut Part| {
                let alike = part.key.pick == found.key.pick || part.key.pick.is_none() || found.key.pick.is_none();
                let all = part.entries.iter().all(|(i, _)| joins(&asked[*i]));
                alike && all && joins(found) && part.extent.tokens + found.tokens <= MOST_ENTRIES
            };
            match parts.iter_mut().find(fits) {
                Some(part) => {
                    part.entries.push((index, part.extent.tokens));
                    part.extent.tokens += found.tokens;
                    part.extent.last = part.extent.last.max(last);
                    part.key.pick = part.key.pick.or(found.key.pick);
                    part.key.top_k = part.key.top_k.max(found.key.top_k);
                    part.key.head |= found.key.head;
                }
                None => parts.push(Part {
                    entries: vec![(index, 0)],
                    key: found.key.clone(),
                    extent: Extent::of(found.tokens, position, found.batches.last().map_or(0, |batch| batch.1)),
                    batches: found.batches.clone(),
                    slot: 0,
                }),
            }
        }
        let rows = parts.iter().filter(|part| part.key.size != Size::Many).map(|part| part.extent.tokens).max().unwrap_or(0);
        let tokens: usize = asked.iter().map(|asked| asked.tokens).sum();
        let ids = self.caches.borrow().sequences() + tokens;
        // Room for more rows than there are, so that a few more need no new buffers; a sequence alone has just its own.
        let rows = if asked.len() > 1 { rows.next_power_of_two() } else { rows };
        // The head of joined steps is computed for every row: that is one dispatch, and each has its bits.
        let head_rows = |part: &Part| if part.key.head { part.extent.tokens } else { 0 };
        let slots = parts.iter().map(|part| match part.joined() {
            true => 1 + head_rows(part).div_ceil(head_batch(&self.plan, part.extent.tokens)),
            false => 1 + part.batches.len(),
        });
        self.make_room(Room { chunk: 1, capacity: 1, rows, ids, slots: slots.sum(), parts: parts.len() }, false)?;
        let mut slot = 0;
        for part in &mut parts {
            if part.joined() {
                (part.key.size, part.key.together) = (Size::few(part.extent.tokens, self.thin()), true);
                part.batches = self.batches_of(part.key.size, head_rows(part))?;
            }
            part.slot = slot;
            slot += 1 + part.batches.len();
        }
        Ok(parts)
    }

    fn programs_of(&self, parts: &[Part]) -> Result<Vec<Rc<Program>>> {
        parts.iter().map(|part| self.program(part.key.clone())).collect()
    }

    /// Writes what the kernels of a step read of it: token ids, where tokens are from, and for each part a slot for all and
    /// one for each batch of logits rows. The step's number.
    fn begin_parts(&self, entries: &[Entry<'_, GpuCache>], parts: &[Part]) -> Result<u32> {
        let mut workspace = self.workspace.borrow_mut();
        let workspace = workspace.as_mut().ok_or_else(super::state::no_workspace)?;
        workspace.serial = workspace.serial.wrapping_add(1).max(1);
        let first_id = self.caches.borrow().sequences();
        let (mut ids, mut slots, mut origins): (Vec<u32>, Vec<StepUniform>, Vec<Vec<Origin>>) = Default::default();
        for part in parts {
            let mut of_part = Vec::new();
            for (index, _) in &part.entries {
                let Entry { cache, step } = &entries[*index];
                let id = match step.tokens {
                    Tokens::Ids(list) => {
                        ids.extend(list);
                        first_id + ids.len() - list.len()
                    }
                    Tokens::Picked => cache.slabs.picked,
                };
                let origin = cache.origin(id, step.long_rope);
                match part.joined() {
                    true => {
                        let tokens = if let Tokens::Ids(list) = step.tokens { list.len() } else { 1 };
                        of_part.extend((0..tokens as u32).map(|i| origin.of_token(i, i + 1 == tokens as u32)));
                    }
                    false => of_part.push(origin),
                }
            }
            let whole = StepUniform {
                tokens: part.extent.tokens as u32,
                position: part.extent.position as u32,
                serial: workspace.serial,
                entries: of_part.len() as u32,
                ..Default::default()
            };
            slots.push(whole);
            slots.extend(part.batches.iter().enumerate().map(|(i, (first, rows))| StepUniform {
                head_first: *first as u32,
                head_rows: *rows as u32,
                batch: i as u32,
                pick_first: (rows - part.picks(i)) as u32,
                pick_at: if part.joined() { *first as u32 } else { 0 },
                ..whole
            }));
            origins.push(of_part);
        }
        let queue = &self.gpu.queue;
        if !ids.is_empty() {
            queue.write_buffer(&workspace.ids, (first_id * 4) as u64, bytemuck::cast_slice(&ids));
        }
        queue.write_buffer(&workspace.step, 0, &step_slots(&slots));
        queue.write_buffer(&workspace.origins, 0, &part_origins(&origins));
        Ok(workspace.serial)
    }

    /// The buffer that the results of a step are read from, and what is where in it; `None` where nothing is read.
    fn target(
        &self,
        step: &Step<'_>,
        part: &Part,
        asked: &Asked,
        program: &Program,
        times: Option<&wgpu::Buffer>,
    ) -> Result<Option<Target>> {
        let mut layout: Vec<(Section, u64, u64)> = Vec::new();
        let mut used = 0u64;
        let mut add = |section: Section, bytes: u64| {
            layout.push((section, used, bytes));
            used += bytes;
        };
        // Full values are copied where they arise, since their buffers are used again.
        let rows_of = |i: usize, batch_rows: usize| {
            let capture = &program.captures[i];
            if self.plan.node(capture.id).at.stage.layout().is_scores() {
                product([self.plan.node(capture.id).width, part.extent.tokens, part.extent.last, 4])
            } else {
                product([if capture.head { batch_rows } else { part.extent.tokens }, capture.value.row_bytes()])
            }
        };
        for item in &program.body {
            if let Item::Copy(i) = item {
                add(Section::Full(*i), rows_of(*i, 0));
            }
        }
        for (_, count) in &part.batches {
            for item in &program.head {
                if let Item::Copy(i) = item {
                    add(Section::Full(*i), rows_of(*i, *count));
                }
            }
        }
        if program.top.is_some() && asked.key.top_k > 0 {
            let most = if let Read::Top(k) = step.read { k.max(1) } else { 1 };
            add(Section::Top, (most.min(asked.key.top_k) * size_of::<Candidate>()) as u64);
        }
        if step.read == Read::Logits && !asked.batches.is_empty() {
            add(Section::Logits, program.logits.row_bytes() as u64);
        }
        for (section, buffer) in [(Section::Stats, &program.stats), (Section::Gathered, &program.gathered)] {
            if let Some(buffer) = buffer {
                add(section, buffer.size());
            }
        }
        if let Some(times) = times {
            add(Section::Times, times.size());
        }
        if used == 0 {
            return Ok(None);
        }
        let bytes = used + 4;
        Ok(Some(Target { layout, buffer: self.pool.take(&self.gpu, bytes)?, bytes }))
    }

    /// As `Executor::finish`.
    pub(super) async fn finish_step(&self, pending: GpuPending) -> Result<StepOutput> {
        let GpuPending { readback, layout, extent, batches, program, valid, timer } = pending;
        let mut output = StepOutput { notes: program.notes.clone(), ..Default::default() };
        let mut ticks = Vec::new();
        let Some(readback) = readback else {
            self.keep(timer, extent, &ticks);
            return Ok(output);
        };
        self.pool
            .finish(&self.gpu, readback, |bytes| {
                let mut full: Vec<Vec<f32>> = vec![Vec::new(); program.captures.len()];
                let (mut stats, mut gathered): (&[u8], Vec<f32>) = (&[], Vec::new());
                for (section, offset, size) in &layout {
                    let held = &bytes[*offset as usize..(*offset + *size) as usize];
                    match section {
                        Section::Top => {
                            let top: Vec<(u32, f32)> = structs::<Candidate>(held).filter_map(Candidate::read).collect();
                            output.token = top.first().filter(|(id, x)| x.is_finite() && (*id as usize) < valid).map(|t| t.0);
                            output.top = Some(top);
                        }
                        Section::Logits => output.logits = Some(to_f32(held, DType::F32)[..self.plan.vocab_size].to_vec()),
                        Section::Full(i) => full[*i].extend(self.unpad(&program.captures[*i], held)),
                        Section::Stats => stats = held,
                        Section::Times => ticks = held.to_vec(),
                        Section::Gathered => gathered = to_f32(held, DType::F32),
                    }
                }
                for (i, capture) in program.captures.iter().enumerate() {
                    let content = self.content(capture, extent, &batches, std::mem::take(&mut full[i]), stats, &gathered)?;
                    output.values.push(Observed { at: self.plan.node(capture.id).at, first_token: extent.position, content });
                }
                Ok(())
            })
            .await??;
        self.keep(timer, extent, &ticks);
        Ok(output)
    }
}

impl Part {
    /// Whether its rows may be of several sequences: each token then has its own origin.
    fn joined(&self) -> bool {
        self.entries.len() > 1
    }
    /// Rows of batch `i` of logits from which a token is picked: its last one where all are of one sequence, of the last batch.
    fn picks(&self, i: usize) -> usize {
        match (self.key.top_k > 0, self.joined()) {
            (false, _) => 0,
            (true, true) => self.batches[i].1,
            (true, false) => usize::from(i + 1 == self.batches.len()),
        }
    }
}

impl Target {
    /// The copy of `section`, if it is read, from `source`.
    fn piece(&self, section: &Section, source: &wgpu::Buffer, source_offset: u64) -> Option<Piece> {
        let (_, offset, bytes) = self.layout.iter().find(|(found, ..)| found == section)?;
        Some(Piece { source: source.clone(), source_offset, offset: *offset, bytes: *bytes })
    }
    /// The copy of the step's number.
    fn guard(&self, step: &wgpu::Buffer) -> Piece {
        Piece { source: step.clone(), source_offset: SERIAL, offset: self.bytes - 4, bytes: 4 }
    }
}

/// Where whole values go, in the order in which they arise.
fn full_values(target: Option<&Target>) -> std::vec::IntoIter<(u64, u64)> {
    let all = target.map(|target| target.layout.as_slice()).unwrap_or_default();
    let full = all.iter().filter(|(section, ..)| matches!(section, Section::Full(_)));
    full.map(|(_, offset, bytes)| (*offset, *bytes)).collect::<Vec<_>>().into_iter()
}
