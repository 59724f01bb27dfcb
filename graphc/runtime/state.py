"""The state of a graph: arrays that the front end's tensors hold, and may replace, between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.errors import StateError
from graphc.frontend.state import State
from graphc.ir.graph import Graph, Value

Array = np.ndarray[Any, Any]


class Held:
    """The arrays of `graph.state`, in its order, read from `holders`."""

    def __init__(self, graph: Graph, holders: Sequence[State]) -> None:
        self.graph, self.holders = graph, tuple(holders)
        self._read: tuple[object, tuple[Array, ...], frozenset[int]] = (None, (), frozenset())

    def arrays(self) -> tuple[Array, ...]:
        """The arrays; the same tuple until one has been replaced.

        Raises StateError when one is not of the type that it had when the graph was compiled.
        """
        replaced, arrays, _ = self._read
        return arrays if replaced is State.replaced else self._again()

    def _again(self) -> tuple[Array, ...]:
        replaced = State.replaced  # read first: what is replaced from here on is read again by the next call
        arrays = tuple(holder.data for holder in self.holders)
        for value, array in zip(self.graph.state, arrays, strict=True):
            if array.shape != value.type.shape or array.dtype != value.dtype.numpy:
                raise StateError(
                    f"{value.name} was {value.type} when {self.graph.name} was compiled and is now "
                    f"{array.dtype}{list(array.shape)}; compile again"
                )
        self._read = (replaced, arrays, frozenset(map(id, map(_owner, arrays))))
        return arrays

    def overlap(self, array: Array) -> Value | None:
        """A state that the array shares memory with."""
        _, arrays, ids = self._read
        owner = _owner(array)
        if type(owner) is np.ndarray and owner.flags.owndata and id(owner) not in ids:
            return None
        pairs = zip(self.graph.state, arrays, strict=True)
        return next((value for value, other in pairs if np.may_share_memory(array, other)), None)


def _owner(array: Array) -> Any:
    """What owns the array's memory; of NumPy's arrays it is the array that was made first."""
    return array if array.base is None else array.base
