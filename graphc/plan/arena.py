"""Offsets in one block for intervals of time, so that what is live at once does not overlap.

This is dynamic storage allocation, which is NP-hard; largest first into the lowest gap comes close to the bound
(Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020), and where it does not, placing
what sticks out first helps.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

EFFORT = 2_000_000  # pairs of intervals to compare in all tries together
TRIES = 48


@dataclass(frozen=True, slots=True)
class Interval:
    """`bytes` bytes (already rounded to the alignment), needed from step `first` to step `last`, both included."""

    bytes: int
    first: int
    last: int


_KEYS: tuple[Callable[[Interval], tuple[int, ...]], ...] = (
    lambda i: (-i.bytes, i.first),
    lambda i: (-i.bytes * (i.last - i.first + 1), i.first),
    lambda i: (i.first, -i.bytes),
    lambda i: (-i.last, -i.bytes),
)


def live_bytes(intervals: Sequence[Interval], steps: int) -> tuple[int, ...]:
    """Bytes that are needed at each step. No placement is smaller than the largest."""
    changes = [0] * (steps + 1)
    for interval in intervals:
        changes[interval.first] += interval.bytes
        changes[interval.last + 1] -= interval.bytes
    return tuple(accumulate(changes))[:steps]


def place(intervals: Sequence[Interval], bound: int) -> tuple[tuple[int, ...], int]:
    """(an offset for each interval, bytes needed). The best of a few orders, stopping at the lower bound `bound`."""
    tries = max(1, min(TRIES, EFFORT // max(1, len(intervals) ** 2)))
    best: tuple[int, ...] = ()
    least: int | None = None
    orders = [sorted(range(len(intervals)), key=lambda i: key(intervals[i])) for key in _KEYS]
    for number in range(tries):
        which = number % len(orders)
        offsets = _first_fit(intervals, orders[which])
        ends = [offset + interval.bytes for offset, interval in zip(offsets, intervals, strict=True)]
        peak = max(ends, default=0)
        if least is None or peak < least:
            best, least = offsets, peak
        if least == bound:
            break
        orders[which].sort(key=lambda i: ends[i] < peak)  # stable: what sticks out comes first, the rest as it was
    return best, least or 0


def _first_fit(intervals: Sequence[Interval], order: Sequence[int]) -> tuple[int, ...]:
    """Each interval, in the given order, in the lowest gap between those that are live with it."""
    offsets = [0] * len(intervals)
    placed: list[tuple[int, int, int, int]] = []  # start, end, first, last; sorted
    for number in order:
        interval = intervals[number]
        low = 0
        for start, end, first, last in placed:
            if start >= low + interval.bytes:
                break
            if end > low and first <= interval.last and interval.first <= last:
                low = end
        offsets[number] = low
        insort(placed, (low, low + interval.bytes, interval.first, interval.last))
    return tuple(offsets)
