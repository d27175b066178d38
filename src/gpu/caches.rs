//! The caches of all sequences of an executor. Keys and values of a layer are in one buffer each, so that one dispatch reads
//! those of many sequences; each sequence has its own slots of them, its slab. `shared/ring.wgsl` finds a position's slot.
//! A buffer is as large as its slabs need, and is made again when a sequence needs more.

use super::buffers::{KvBuffers, storage_buffer};
use super::state::GpuExecutor;
use crate::error::{Error, Result};
use crate::geometry::{SLABS, slots, windows};
use crate::plan::Plan;
use crate::tensor::{DType, product};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Keys and values of every layer, and who has which slots.
#[derive(Debug)]
pub struct Caches {
    /// Of each of the plan's states.
    pub kv: Vec<KvBuffers>,
    /// A kind of slab for each window that layers have.
    kinds: Vec<Kind>,
    /// Which places of picked ids are taken.
    picked: Vec<bool>,
}

/// The slots of the layers with one window.
#[derive(Debug, Default, PartialEq)]
struct Kind {
    window: Option<usize>,
    /// Slots of a buffer.
    slots: usize,
    /// Slabs, in ascending order.
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
    /// A slab of `count` slots, in the first gap that holds it, or behind the last.
    fn take(&mut self, count: usize) -> Range<usize> {
        let (mut first, mut place) = (0, self.taken.len());
        for (i, range) in self.taken.iter().enumerate() {
            if range.start - first >= count {
                place = i;
                break;
            }
            first = range.end;
        }
        let slab = first..first.saturating_add(count);
        self.taken.insert(place, slab.clone());
        self.slots = self.slots.max(slab.end);
        slab
    }
    /// Whether `slab` was made `count` slots long where it is.
    fn extend(&mut self, slab: &Range<usize>, count: usize) -> bool {
        let Some(i) = self.taken.iter().position(|range| range == slab) else { return false };
        let end = slab.start.saturating_add(count);
        if self.taken.get(i + 1).is_some_and(|next| next.start < end) {
            return false;
        }
        self.taken[i].end = end;
        self.slots = self.slots.max(end);
        true
    }
    fn release(&mut self, slab: &Range<usize>) {
        self.taken.retain(|range| range != slab);
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
        Ok(Self { kv: Vec::new(), kinds, picked: Vec::new() })
    }
    /// Whether no sequence has anything.
    pub fn is_empty(&self) -> bool {
        !self.picked.contains(&true)
    }
    /// Places of picked ids.
    pub fn sequences(&self) -> usize {
        self.picked.len()
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
    /// First slot and slots of each kind, as kernels read them.
    pub fn origins(&self) -> [[u32; 2]; SLABS] {
        let mut found = [[0, 1]; SLABS];
        for (slab, range) in found.iter_mut().zip(&self.ranges) {
            *slab = [range.start as u32, range.len() as u32];
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
        let slabs = {
            let mut caches = self.caches.borrow_mut();
            if caches.is_empty() {
                caches.kinds.iter_mut().for_each(|kind| kind.slots = 0);
                caches.picked.clear();
            }
            let picked = caches.picked.iter().position(|taken| !taken).unwrap_or(caches.picked.len());
            if picked == caches.picked.len() {
                caches.picked.push(false);
            }
            caches.picked[picked] = true;
            let ranges = caches.kinds.iter_mut().map(|kind| kind.take(slots(kind.window, capacity, chunk))).collect();
            Slabs { ranges, picked, caches: self.caches.clone() }
        };
        self.fit_caches()?;
        Ok(slabs)
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
        let result = self.fit_caches().and_then(|()| {
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

    /// Makes the buffers as large as the slabs need. Programs bind them, so that all are made anew.
    fn fit_caches(&self) -> Result<()> {
        let mut caches = self.caches.borrow_mut();
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut changed = false;
        let dtype = self.storage.cache;
        for (i, (layer, spec)) in self.plan.kvs().enumerate() {
            let kind = caches.kind(spec.window);
            let slots = caches.kinds[kind].slots;
            if caches.kv.get(i).is_some_and(|kv| kv.slots == slots) {
                continue;
            }
            let bytes = product([slots, spec.width(), dtype.size()]);
            let buffer = |what: &str| storage_buffer(&self.gpu, &format!("{what} of layer {layer} for {slots} positions"), bytes);
            let new = KvBuffers { keys: buffer("keys")?, values: buffer("values")?, kind, slots, dtype };
            match caches.kv.get_mut(i) {
                Some(old) => {
                    for (old, new) in [(&old.keys, &new.keys), (&old.values, &new.values)] {
                        encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size().min(new.size()));
                    }
                    *old = new;
                }
                None => caches.kv.push(new),
            }
            changed = true;
        }
        if changed {
            self.gpu.queue.submit([encoder.finish()]);
            if let Some(workspace) = &mut *self.workspace.borrow_mut() {
                workspace.programs.clear();
            }
        }
        self.gpu.check()
    }

    /// Writes zeros into slots of every layer of a kind.
    fn clear_slots(&self, kind: usize, slots: Range<usize>) {
        let caches = self.caches.borrow();
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for ((_, spec), kv) in self.plan.kvs().zip(&caches.kv).filter(|(_, kv)| kv.kind == kind && !slots.is_empty()) {
            let row = spec.width() * kv.dtype.size();
            for buffer in [&kv.keys, &kv.values] {
                encoder.clear_buffer(buffer, product([slots.start, row]), Some(product([slots.len(), row])));
            }
        }
        self.gpu.queue.submit([encoder.finish()]);
    }

    /// Copies slots of every layer of a kind to others of the same buffers. The two do not overlap.
    fn copy_slots(&self, kind: usize, from: Range<usize>, to: usize) -> Result<()> {
        let caches = self.caches.borrow();
        for ((_, spec), kv) in self.plan.kvs().zip(&caches.kv).filter(|(_, kv)| kv.kind == kind) {
            let row = spec.width() * kv.dtype.size();
            let bytes = product([from.len(), row]);
            // No buffer may be copied into itself.
            let between = storage_buffer(&self.gpu, "slots on their way", bytes)?;
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            for buffer in [&kv.keys, &kv.values] {
                encoder.copy_buffer_to_buffer(buffer, product([from.start, row]), &between, 0, bytes);
                encoder.copy_buffer_to_buffer(&between, 0, buffer, product([to, row]), bytes);
            }
            self.gpu.queue.submit([encoder.finish()]);
        }
        self.gpu.check()
    }
}

/// Bytes of a slab of `slots` slots in all layers of its kind, keys and values.
pub(super) fn slab_bytes(plan: &Plan, slabs: &Slabs, dtype: DType) -> u64 {
    let of = |(_, spec): (usize, &crate::plan::KvSpec)| {
        2 * crate::geometry::buffer_bytes(product([slabs.of(spec.window).len(), spec.width(), dtype.size()]))
    };
    plan.kvs().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_take_the_first_gap_and_never_overlap() {
        let mut kind = Kind::default();
        let (a, b, c) = (kind.take(10), kind.take(5), kind.take(7));
        assert_eq!((a.clone(), b.clone(), c.clone(), kind.slots), (0..10, 10..15, 15..22, 22));
        assert!(!kind.extend(&a, 11), "b is behind it");
        assert!(kind.extend(&c, 9));
        kind.release(&b);
        assert!(kind.extend(&a, 12));
        assert_eq!((kind.take(3), kind.take(3), kind.slots), (12..15, 24..27, 27));
        kind.release(&(0..12));
        assert_eq!(kind.take(4), 0..4);
        assert!(kind.taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
