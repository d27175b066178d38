//! Work for all processors. Browsers have one thread: there it is done in order. It knows no models.

use crate::error::Result;
use std::ops::Range;

/// The ranges of `size` of which `all` consists; the last may be shorter.
pub fn parts(all: Range<usize>, size: usize) -> impl ExactSizeIterator<Item = Range<usize>> + Send {
    let size = size.max(1);
    (0..all.len().div_ceil(size)).map(move |part| {
        let first = all.start + part * size;
        first..all.end.min(first + size)
    })
}

/// Threads that work at once; 1 in browsers.
pub fn count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` with each of `parts`. A thread takes the next part when it is done with one, and has a state of its own for
/// all of them, from `state`. After an error no more parts are begun.
///
/// # Errors
/// The first error of `work`, as the threads are listed.
pub fn each<P: Send, S>(
    mut parts: impl ExactSizeIterator<Item = P> + Send,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, P) -> Result<()> + Sync,
) -> Result<()> {
    #[cfg(not(target_arch = "wasm32"))]
    if parts.len() > 1 {
        return together(parts, &state, &work);
    }
    let mut state = state();
    parts.try_for_each(|part| work(&mut state, part))
}

/// `one` of each of `0..count`, in order.
pub fn map<T: Send>(count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut made: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let work = |(): &mut (), (i, slot): (usize, &mut Option<T>)| {
        *slot = Some(one(i));
        Ok(())
    };
    // No part fails, so every slot is filled.
    let done = each(made.iter_mut().enumerate(), || (), work);
    done.map_or_else(|_| Vec::new(), |()| made.into_iter().flatten().collect())
}

#[cfg(not(target_arch = "wasm32"))]
fn together<P: Send, S>(
    parts: impl ExactSizeIterator<Item = P> + Send,
    state: &(impl Fn() -> S + Sync),
    work: &(impl Fn(&mut S, P) -> Result<()> + Sync),
) -> Result<()> {
    use std::sync::{Mutex, PoisonError};

    let threads = count().min(parts.len());
    let queue = Mutex::new(Some(parts));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(Iterator::next);
    let run = || {
        let mut state = state();
        while let Some(part) = next() {
            if let Err(error) = work(&mut state, part) {
                *queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let ended = others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.fold(run(), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_part_is_worked_on_once_and_an_error_ends_the_work() {
        for (all, size) in [(3..3, 4), (0..1, 4), (5..17, 4), (5..18, 4), (0..1000, 1)] {
            let mut seen = vec![0; all.end];
            let slots = seen[all.clone()].chunks_mut(size).zip(parts(all.clone(), size));
            each(
                slots,
                || (),
                |(), (slot, part)| {
                    assert_eq!(slot.len(), part.len());
                    slot.iter_mut().zip(part).for_each(|(slot, i)| *slot += i + 1);
                    Ok(())
                },
            )
            .unwrap();
            assert!((0..all.end).all(|i| seen[i] == if all.contains(&i) { i + 1 } else { 0 }), "{all:?} by {size}");
        }
        assert_eq!(map(100, |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
        let begun = AtomicUsize::new(0);
        let work = |(): &mut (), part: Range<usize>| {
            begun.fetch_add(1, Ordering::Relaxed);
            if part.start == 0 { Err(Error::invalid("part", "the first")) } else { Ok(()) }
        };
        let error = each(parts(0..1 << 20, 1), || (), work).unwrap_err();
        assert!(error.message.contains("the first") && begun.into_inner() < 1 << 20);
    }
}
