"""Rows of values reduced as Doppler reduces them: statistics, sketches, distances. numpy only.

`stats` is `src/cpu/stats.rs` per row; a sketch is 64 sums of a row's elements under signs that depend on the element's
index alone, so that the mean square of the difference of two rows' sketches estimates their squared distance.
"""

from functools import lru_cache

import numpy as np

SIZE = 64
STATS = ("count", "max_abs", "max_dim", "mean", "rms", "min", "max", "nan", "inf", "zero")
BLOCK = 1 << 14  # elements whose signs are held at once


def stats(values):
    """[…, width] f32 to […, 10] f32, the columns of `STATS`."""
    rows = flat(values)
    count = rows.shape[1]
    finite, nan = np.isfinite(rows), np.isnan(rows)
    number = finite.sum(1)
    exact = np.where(finite, rows, 0).astype(np.float64)
    divisor = np.maximum(number, 1)
    place = magnitudes(rows).argmax(1) if count else np.zeros(len(rows), int)
    columns = [
        np.full(len(rows), count),
        np.abs(rows[np.arange(len(rows)), place]) if count else np.zeros(len(rows)),
        place,
        exact.sum(1) / divisor,
        np.sqrt((exact * exact).sum(1) / divisor),
        np.where(number > 0, np.where(finite, rows, np.inf).min(1, initial=np.inf), 0),
        np.where(number > 0, np.where(finite, rows, -np.inf).max(1, initial=-np.inf), 0),
        nan.sum(1),
        (~finite & ~nan).sum(1),
        (rows == 0).sum(1),
    ]
    return np.stack([np.asarray(c, np.float32) for c in columns], 1).reshape(*values.shape[:-1], len(STATS))


def magnitudes(values):
    """Words that order as magnitudes do: an f32 without its sign; finite ones, infinity, then every NaN alike."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.where(np.isnan(values), np.uint32(0xFFFFFFFF), bits)


def flat(values):
    """[…, width] to [rows, width], for widths of 0 too."""
    return values.reshape(int(np.prod(values.shape[:-1])), values.shape[-1])


@lru_cache(maxsize=32)
def signs(start, count):
    """Signs of elements `start`… of a row: [count, 64] of ±1, from the bits of splitmix64(index)."""
    with np.errstate(over="ignore"):
        z = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    bits = (z[:, None] >> np.arange(SIZE, dtype=np.uint64)) & np.uint64(1)
    return np.where(bits == 1, np.int8(1), np.int8(-1))


def sketch(values):
    """[…, width] to […, 64] f32; elements that are not finite count as 0, sums are taken in f64."""
    rows = flat(values)
    made = np.zeros((len(rows), SIZE))
    for start in range(0, rows.shape[1], BLOCK):
        block = rows[:, start : start + BLOCK].astype(np.float64)
        made += np.where(np.isfinite(block), block, 0) @ signs(start, block.shape[1]).astype(np.float64)
    return made.astype(np.float32).reshape(*values.shape[:-1], SIZE)


def distances(a, b):
    """L2 distance of each row: […, width] twice to […] f32."""
    return np.sqrt(np.square(a.astype(np.float64) - b.astype(np.float64)).sum(-1)).astype(np.float32)


def summary(values, scores=False, head_dim=None, first_token=0):
    """The text of a whole value's statistics, as a TRACE line ends: `maxAbs=12.25@t2,d334 mean=… zero=0`."""
    from common import number, significant

    flat = stats(np.ascontiguousarray(values).reshape(1, -1))[0]
    _, max_abs, _, mean, rms, low, high, *_ = flat
    finite, nan = np.isfinite(values), np.isnan(values)
    counts = nan.sum(), (~finite & ~nan).sum(), (values == 0).sum()
    # The place is found anew: an f32 column cannot hold every index of a large value.
    place = np.unravel_index(int(magnitudes(values).argmax()), values.shape)
    if scores:
        where = f"h{place[0]},t{first_token + place[1]},p{place[2]}"
    else:
        where = f"t{first_token + place[0]},d{place[1]}" + (f" head={place[1] // head_dim}" if head_dim else "")
    ends = " ".join(f"{name}={int(count)}" for name, count in zip(("nan", "inf", "zero"), counts))
    return (f"maxAbs={number(max_abs)}@{where} mean={significant(mean)} rms={significant(rms)} "
            f"min={number(low)} max={number(high)} {ends}")
