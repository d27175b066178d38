//! The caches of all sequences of an executor. Each part of a state, keys or values or what a convolution reads, is in one buffer, so that one dispatch reads
//! those of many sequences; each sequence has its own slots of them, its slab. `shared/ring.wgsl` finds a position's slot.
//! A buffer is as large as the slabs of one sequence need, or all that were reserved; it is made again, half as large again at
//! least, when further ones need more.

use super::buffers::{StateBuffers, storage_buffer};
use super::state::GpuExecutor;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::exec::{Sequences, Storage};
use crate::geometry::{Room, SLABS, buffer_bytes, cache_bytes, slots, windows};
use crate::plan::{Plan, StateKind, StatePart};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The states of every layer, and who has which slots.
#[derive(Debug)]
pub struct Caches {
    /// Of each of the plan's states.
    pub states: Vec<StateBuffers>,
    /// A kind of slab for each window that layers have.
    kinds: Vec<Kind>,
    /// Which places of picked ids are taken.
    picked: Vec<bool>,
    /// For what room was asked once and for all.
    reserved: Option<Sequences>,
}

/// The slots of the layers with one window.
#[derive(Debug, Default, PartialEq)]
struct Kind {
    window: Option<usize>,
    /// Slots that a slab of a reserved sequence may grow to where it is; 0 where none is reserved.
    place: usize,
    /// What belongs to each slab, in ascending order: the slab, and where it may grow to.
    taken: Vec<Range<usize>>,
}

/// What a sequence has of the caches; given back when dropped.
#[derive(Debug)]
pub struct Slabs {
    /// Of each kind.
    ranges: Vec<Range<usize>>,
    /// Where the id that was picked last is.
    pub picked: usize,
    caches: Rc<RefCell<Caches>>,
}

impl Kind {
    /// A slab of `count` slots, in the first gap that holds it, or after the last.
    fn take(&mut self, count: usize) -> Range<usize> {
        let own = count.max(self.place);
        let (mut first, mut place) = (0, self.taken.len());
        for (i, range) in self.taken.iter().enumerate() {
            if range.start - first >= own {
                place = i;
                break;
            }
            first = range.end;
        }
        self.taken.insert(place, first..first.saturating_add(own));
        first..first.saturating_add(count)
    }
    /// Whether `slab` can be `count` slots long where it is; it then has them.
    fn extend(&mut self, slab: &Range<usize>, count: usize) -> bool {
        let Some(i) = self.taken.iter().position(|range| range.start == slab.start) else { return false };
        let end = slab.start.saturating_add(count);
        if self.taken.get(i + 1).is_some_and(|next| next.start < end) {
            return false;
        }
        self.taken[i].end = self.taken[i].end.max(end);
        true
    }
    fn release(&mut self, slab: &Range<usize>) {
        self.taken.retain(|range| range.start != slab.start);
    }
    /// Slots that all slabs need.
    fn needed(&self) -> usize {
        self.taken.last().map_or(0, |range| range.end)
    }
}

impl Caches {
    /// The caches of `plan` without a sequence.
    pub fn new(plan: &Plan) -> Result<Self> {
        let windows = windows(plan);
        if windows.len() > SLABS {
            let what =
                format!("layers with {} different windows on a GPU, more than {SLABS}; the CPU oracle runs it (device cpu)", windows.len());
            return Err(Error::unsupported(what));
        }
        let kinds = windows.into_iter().map(|window| Kind { window, ..Kind::default() }).collect();
        Ok(Self { states: Vec::new(), kinds, picked: Vec::new(), reserved: None })
    }
    /// Whether no sequence has anything.
    pub fn is_empty(&self) -> bool {
        !self.picked.contains(&true)
    }
    /// Places of picked ids.
    pub fn sequences(&self) -> usize {
        self.picked.len()
    }
    /// What is reserved of the workspace.
    pub fn reserved(&self) -> Option<Room> {
        self.reserved.map(Room::of)
    }
    /// Sequences that are reserved.
    fn reserved_count(&self) -> usize {
        self.reserved.map_or(0, |reserved| reserved.count)
    }
    /// Slots of the buffers of each kind: as many as are reserved or needed, at least. Where several sequences need more than
    /// there are, a half more than there are where `ahead`. With `exactly`, what is there does not count.
    fn slots(&self, exactly: bool, ahead: bool) -> Vec<usize> {
        let of = |(kind, found): (usize, &Kind)| {
            let there = self.states.iter().find(|state| state.kind == kind && !exactly).map_or(0, |state| state.slots);
            let needed = found.needed().max(found.place.saturating_mul(self.reserved_count()));
            let grows = ahead && found.taken.len() > 1 && needed > there;
            there.max(needed).max(if grows { there.saturating_add(there / 2) } else { 0 })
        };
        self.kinds.iter().enumerate().map(of).collect()
    }
    /// The kind of slab that layers with `window` have.
    pub fn kind(&self, window: Option<usize>) -> usize {
        self.kinds.iter().position(|kind| kind.window == window).unwrap_or(0)
    }
}

impl Slabs {
    /// The slots of the layers with `window`.
    pub fn of(&self, window: Option<usize>) -> Range<usize> {
        self.ranges[self.caches.borrow().kind(window)].clone()
    }
    /// First slot and slots of each kind, as kernels read them; of matrices the slot to `start` from, and what position they come before.
    pub fn origins(&self, start: (usize, usize)) -> [[u32; 2]; SLABS] {
        let mut found = [[0, 1]; SLABS];
        for ((slab, range), kind) in found.iter_mut().zip(&self.ranges).zip(&self.caches.borrow().kinds) {
            let (first, count) = if kind.window == Some(0) { (range.start + start.0, start.1) } else { (range.start, range.len()) };
            *slab = [first as u32, count as u32];
        }
        found
    }
}

impl Drop for Slabs {
    fn drop(&mut self) {
        let mut caches = self.caches.borrow_mut();
        for (kind, range) in caches.kinds.iter_mut().zip(&self.ranges) {
            kind.release(range);
        }
        caches.picked[self.picked] = false;
    }
}

impl GpuExecutor {
    /// Empty slabs of a sequence of `capacity` positions in steps of at most `chunk` tokens. Nothing that was there before is left:
    /// a kernel that reads what nobody wrote then does so alike each time.
    pub(super) fn take_slabs(&self, capacity: usize, chunk: usize) -> Result<Slabs> {
        let slabs = self.reserve_slabs(capacity, chunk)?;
        for (kind, range) in slabs.ranges.iter().enumerate() {
            self.clear_slots(kind, range.clone());
        }
        Ok(slabs)
    }

    /// As `take_slabs`, with whatever is in them.
    fn reserve_slabs(&self, capacity: usize, chunk: usize) -> Result<Slabs> {
        let (slabs, first) = {
            let mut caches = self.caches.borrow_mut();
            let first = caches.is_empty();
            if first {
                caches.picked = vec![false; caches.reserved_count()];
            }
            let picked = caches.picked.iter().position(|taken| !taken).unwrap_or(caches.picked.len());
            if picked == caches.picked.len() {
                caches.picked.push(false);
            }
            caches.picked[picked] = true;
            let ranges = caches.kinds.iter_mut().map(|kind| kind.take(slots(kind.window, capacity, chunk))).collect();
            (Slabs { ranges, picked, caches: self.caches.clone() }, first)
        };
        self.fit_caches(first)?;
        Ok(slabs)
    }

    /// As `Executor::reserve`.
    pub(super) fn reserve_sequences(&self, sequences: Sequences) -> Result<()> {
        let Sequences { count, capacity, chunk } = sequences;
        if count > 0 && (capacity == 0 || chunk == 0) {
            return Err(Error::invalid("sequences", format!("capacity {capacity} and chunk {chunk} must be above 0")));
        }
        let chunk = chunk.min(capacity);
        let set = |reserved: Option<Sequences>| {
            let mut caches = self.caches.borrow_mut();
            let place = |window| reserved.map_or(0, |of| slots(window, of.capacity, of.chunk));
            caches.kinds.iter_mut().for_each(|kind| kind.place = place(kind.window));
            std::mem::replace(&mut caches.reserved, reserved)
        };
        let wanted = (count > 0).then_some(Sequences { count, capacity, chunk });
        let before = set(wanted);
        let alone = self.caches.borrow().is_empty();
        let made = self.fit_caches(alone).and_then(|()| wanted.map_or(Ok(()), |wanted| self.make_room(Room::of(wanted), alone)));
        if made.is_err() {
            set(before);
            return made;
        }
        let mut caches = self.caches.borrow_mut();
        let places = caches.picked.len().max(count);
        caches.picked.resize(places, false);
        Ok(())
    }

    /// Makes slabs long enough for `capacity` positions; what is in them stays. A slab that cannot grow where it is moves.
    pub(super) fn grow_slabs(&self, slabs: &mut Slabs, capacity: usize, chunk: usize) -> Result<()> {
        let mut moved: Vec<(usize, Range<usize>)> = Vec::new();
        let lengths: Vec<usize> = slabs.ranges.iter().map(Range::len).collect();
        {
            let mut caches = self.caches.borrow_mut();
            for (i, (kind, range)) in caches.kinds.iter_mut().zip(&mut slabs.ranges).enumerate() {
                let count = slots(kind.window, capacity, chunk);
                if count == range.len() {
                    continue; // a windowed layer that already has its full ring
                }
                if kind.extend(range, count) {
                    range.end = range.start + count;
                } else {
                    moved.push((i, std::mem::replace(range, kind.take(count))));
                }
            }
        }
        let result = self.fit_caches(false).and_then(|()| {
            for (kind, (range, length)) in slabs.ranges.iter().zip(lengths).enumerate() {
                self.clear_slots(kind, range.start + length..range.end);
            }
            // A cache that can still grow has never wrapped: position q is in slot q.
            for (kind, from) in &moved {
                self.copy_slots(*kind, from.clone(), slabs.ranges[*kind].start)?;
            }
            Ok(())
        });
        let mut caches = self.caches.borrow_mut();
        for (kind, from) in &moved {
            caches.kinds[*kind].release(from);
        }
        result
    }

    /// Slabs of the same lengths with the same content.
    pub(super) fn copy_slabs(&self, slabs: &Slabs, capacity: usize, chunk: usize) -> Result<Slabs> {
        let copy = self.reserve_slabs(capacity, chunk)?;
        for (kind, (from, to)) in slabs.ranges.iter().zip(&copy.ranges).enumerate() {
            self.copy_slots(kind, from.clone(), to.start)?;
        }
        Ok(copy)
    }

    /// Makes the buffers as large as the slabs need. Programs bind them, so that all are made anew. With `exactly`, nobody has
    /// anything in them, and they are made no larger.
    fn fit_caches(&self, exactly: bool) -> Result<()> {
        let (ahead, needed) = {
            let caches = self.caches.borrow();
            (caches.slots(exactly, true), caches.slots(exactly, false))
        };
        match self.make_caches(&ahead, exactly) {
            Err(error) if error.kind == ErrorKind::Memory && ahead != needed => self.make_caches(&needed, exactly),
            made => made,
        }
    }

    /// Makes the buffers of each kind with so many slots; where that fails, all stays as it was.
    fn make_caches(&self, slots: &[usize], exactly: bool) -> Result<()> {
        let mut caches = self.caches.borrow_mut();
        if exactly && caches.states.iter().any(|state| state.slots != slots[state.kind]) {
            // Nobody's any more: let go of them first.
            caches.states.clear();
        }
        let mut made = Vec::new();
        for (i, state) in self.plan.states.iter().enumerate() {
            let (kind, dtype) = (caches.kind(state.kind.window()), self.storage.of(&state.kind));
            let slots = slots[kind];
            if caches.states.get(i).is_some_and(|state| state.slots == slots) {
                continue;
            }
            let bytes = cache_bytes(&state.kind, slots, dtype);
            let name = |part: StatePart| format!("{} of layer {} for {slots} positions", part.name(), state.layer);
            let parts = state.kind.parts().iter().map(|part| storage_buffer(&self.gpu, &name(*part), bytes)).collect::<Result<_>>()?;
            made.push((i, StateBuffers { parts, kind, slots, dtype }));
        }
        self.gpu.check()?;
        if made.is_empty() {
            return Ok(());
        }
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for (i, new) in made {
            match caches.states.get_mut(i) {
                Some(old) => {
                    for (old, new) in old.parts.iter().zip(&new.parts) {
                        encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size().min(new.size()));
                    }
                    *old = new;
                }
                None => caches.states.push(new),
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
        if let Some(workspace) = &mut *self.workspace.borrow_mut() {
            workspace.programs.clear();
        }
        self.gpu.check()
    }

    /// Writes zeros into slots of every layer of a kind.
    fn clear_slots(&self, kind: usize, slots: Range<usize>) {
        let caches = self.caches.borrow();
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for (spec, state) in self.plan.states.iter().zip(&caches.states).filter(|(_, state)| state.kind == kind && !slots.is_empty()) {
            let bytes = |slots| cache_bytes(&spec.kind, slots, state.dtype);
            for buffer in &state.parts {
                encoder.clear_buffer(buffer, bytes(slots.start), Some(bytes(slots.len())));
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
    }

    /// Copies slots of every layer of a kind to others of the same buffers. The two do not overlap.
    fn copy_slots(&self, kind: usize, from: Range<usize>, to: usize) -> Result<()> {
        let caches = self.caches.borrow();
        for (spec, state) in self.plan.states.iter().zip(&caches.states).filter(|(_, state)| state.kind == kind) {
            let at = |slot| cache_bytes(&spec.kind, slot, state.dtype);
            let bytes = at(from.len());
            // No buffer may be copied into itself.
            let between = storage_buffer(&self.gpu, "slots on their way", bytes)?;
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            for buffer in &state.parts {
                encoder.copy_buffer_to_buffer(buffer, at(from.start), &between, 0, bytes);
                encoder.copy_buffer_to_buffer(&between, 0, buffer, at(to), bytes);
            }
            self.gpu.queue.submit([encoder.finish()]);
        }
        self.gpu.check()
    }
}

/// Bytes that a sequence with `slabs` has of all states.
pub(super) fn slab_bytes(plan: &Plan, slabs: &Slabs, storage: Storage) -> u64 {
    let bytes = |kind: &StateKind| {
        let part = buffer_bytes(cache_bytes(kind, slabs.of(kind.window()).len(), storage.of(kind)));
        part * kind.parts().len() as u64
    };
    plan.states.iter().map(|state| bytes(&state.kind)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_take_the_first_gap_and_never_overlap() {
        let mut kind = Kind::default();
        let (a, b, c) = (kind.take(10), kind.take(5), kind.take(7));
        assert_eq!((a.clone(), b.clone(), c.clone(), kind.needed()), (0..10, 10..15, 15..22, 22));
        assert!(!kind.extend(&a, 11), "b is after it");
        assert!(kind.extend(&c, 9));
        kind.release(&b);
        assert!(kind.extend(&a, 12));
        assert_eq!((kind.take(3), kind.take(3), kind.needed()), (12..15, 24..27, 27));
        kind.release(&(0..12));
        assert_eq!(kind.take(4), 0..4);
        assert!(kind.taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    #[test]
    fn reserved_slabs_grow_where_they_are() {
        let mut kind = Kind { place: 10, ..Kind::default() };
        let (a, b) = (kind.take(3), kind.take(10));
        assert_eq!((a.clone(), b, kind.needed()), (0..3, 10..20, 20));
        assert!(kind.extend(&a, 10) && !kind.extend(&a, 11));
        kind.release(&a);
        assert_eq!((kind.take(4), kind.take(12)), (0..4, 20..32));
    }
}
