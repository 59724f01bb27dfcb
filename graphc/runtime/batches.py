"""A data set cut into batches: which inputs are cut, in which order rows come, and what results look like.

**The batch dimension** is the first named dimension that an input begins with (inputs in order); where no input begins
with a name, it is the first extent of the first input that has one. Every input that begins with the batch dimension is
cut along its first axis; any other is given whole to each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.errors import ArgumentError, FeedError
from graphc.ir import dim as dims
from graphc.ir.dim import Dim, Polynomial
from graphc.ir.graph import Value
from graphc.ir.types import TensorType
from graphc.runtime.feeds import conform

Array = np.ndarray[Any, Any]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """`count` steps on batches of `size` rows: the first is step number `first` of the epoch, and begins at `row`."""

    first: int
    row: int
    count: int
    size: int

    def rows(self, step: int) -> slice:
        """Of the part's step `step`."""
        return slice(self.row + step * self.size, self.row + (step + 1) * self.size)


@dataclass(frozen=True, eq=False, slots=True)
class Result:
    """An output of all steps. `joined`: a row for each row that was visited; otherwise one for each step."""

    array: Array
    joined: bool

    def of(self, part: Part) -> Array:
        """What the steps of a part write, one behind the other."""
        return self.array[part.row :] if self.joined else self.array[part.first :]

    def at(self, part: Part, step: int) -> Array:
        """What the part's step `step` writes."""
        return self.array[part.rows(step)] if self.joined else self.array[part.first + step : part.first + step + 1]


@dataclass(frozen=True, eq=False, slots=True)
class Batches:
    """Arrays for the inputs, and how they are cut.

    arrays   what the inputs are cut from, or are as a whole
    cut      for each, whether it is cut
    rows     that the cut ones have
    batch    the batch dimension
    order    numbers of the rows in the order of their use; None: as they lie
    parts    of whole batches, and of the smaller one behind them
    """

    arrays: tuple[Array, ...]
    cut: tuple[bool, ...]
    rows: int
    batch: Dim
    order: Array | None
    parts: tuple[Part, ...]

    def shapes(self, part: Part) -> Shapes:
        """Of the inputs of one step."""
        pairs = zip(self.arrays, self.cut, strict=True)
        return tuple((part.size, *array.shape[1:]) if cut else array.shape for array, cut in pairs)

    def inputs(self, part: Part, step: int) -> list[Array]:
        """Of the part's step `step`."""
        rows = part.rows(step) if self.order is None else self.order[part.rows(step)]
        return [array[rows] if cut else array for array, cut in zip(self.arrays, self.cut, strict=True)]

    def results(self, declared: Sequence[Value], types: Sequence[Sequence[TensorType]]) -> list[Result]:
        """New arrays for the outputs of all steps: a row for each step, or for each row of an output that is cut, too.

        `declared` are the outputs, `types` those of a step of each part. Raises ArgumentError for an output of another
        size in the last batch.
        """
        return [self._result(n, value, [own[n] for own in types]) for n, value in enumerate(declared)]

    def _result(self, number: int, declared: Value, types: list[TensorType]) -> Result:
        joined = isinstance(self.batch, Polynomial) and declared.shape[:1] == (self.batch,)
        extents = [type.extents[joined:] for type in types]
        if any(each != extents[0] for each in extents):
            raise ArgumentError(
                f"output {number} is {declared.type}: the last batch, of {self.parts[-1].size} rows, gives it another "
                f"size; drop_last=True leaves that out"
            )
        rows = sum(part.count * (part.size if joined else 1) for part in self.parts)
        return Result(np.empty((rows, *extents[0]), declared.dtype.numpy), joined)


def cut(values: Sequence[Value], given: Sequence[Any], batch_size: int | None, seed: Any, drop_last: bool) -> Batches:
    """Arrays for inputs, cut into batches of `batch_size` rows; `seed` as `numpy.random.default_rng` takes it, or None.

    Raises ArgumentError and FeedError for what cannot be cut so, and what `conform` raises.
    """
    batch = _batch_dimension(values)
    is_cut = tuple(value.shape[:1] == (batch,) for value in values)
    arrays = tuple(
        conform(_any_rows(value) if cut else value, array)
        for value, cut, array in zip(values, is_cut, given, strict=True)
    )
    lengths = {value.name: len(array) for value, array, cut in zip(values, arrays, is_cut, strict=True) if cut}
    (first, rows), *others = lengths.items()
    for name, length in others:
        if length != rows:
            raise FeedError(f"{first} has {rows} rows and {name} has {length}; they are cut into the same batches")
    if not rows:
        raise FeedError(f"{first} has no rows, so there is no batch")
    size = _size(batch, batch_size)
    count, rest = divmod(rows, size)
    if rest and isinstance(batch, int) and not drop_last:
        raise ArgumentError(
            f"{rows} rows are no multiple of the fixed batch of {size}; drop_last=True leaves out {rest}"
        )
    if drop_last and not count:
        raise ArgumentError(f"drop_last leaves nothing of {rows} rows in batches of {size}")
    parts = [Part(0, 0, count, size), Part(count, count * size, 1, 0 if drop_last else rest)]
    order = None if seed is None else _order(seed, rows)
    return Batches(arrays, is_cut, rows, batch, order, tuple(part for part in parts if part.count and part.size))


def _order(seed: Any, rows: int) -> Array:
    try:
        random = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"seed {seed!r} gives no random numbers: {error}") from None
    return random.permutation(rows).astype(np.int64, copy=False)


def _batch_dimension(values: Sequence[Value]) -> Dim:
    leading = [value.shape[0] for value in values if value.shape]
    if not leading:
        raise ArgumentError("no input has an axis that could be cut into batches")
    return next((dim for dim in leading if isinstance(dim, Polynomial)), leading[0])


def _any_rows(value: Value) -> Value:
    return Value(value.type.with_shape((dims.named("rows"), *value.shape[1:])), name=value.name)


def _size(batch: Dim, wanted: int | None) -> int:
    if wanted is None and isinstance(batch, int):
        wanted = batch
    if wanted is None:
        raise ArgumentError(f"say how many rows a batch has: batch_size=64 (dimension {batch})")
    if not isinstance(wanted, int | np.integer) or isinstance(wanted, bool) or wanted < 1:
        raise ArgumentError(f"batch_size must be a whole number from 1 on, not {wanted!r}")
    if isinstance(batch, int) and wanted != batch:
        raise ArgumentError(f"the inputs have batches of {batch} rows; batch_size is {wanted}")
    return int(wanted)
