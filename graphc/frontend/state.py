"""State: tensors whose value is fed by the array that they hold. A `Parameter` is trained, a `Buffer` is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from graphc.errors import ArgumentError, DTypeError
from graphc.frontend.tensor import Tensor, as_array
from graphc.ir import source
from graphc.ir.graph import Node, Value
from graphc.ir.memory import aligned_copy
from graphc.ir.types import DType, TensorType, as_dtype

Array = np.ndarray[Any, Any]


class _StateValue(Value):
    """The value of a state; knows who holds its array."""

    __slots__ = ("holder",)
    holder: State


class State(Tensor):
    """A tensor with an array of its own, which compiled functions read, and replace where it is updated."""

    __slots__ = ("_data",)
    replaced: ClassVar[object] = object()
    """Another object each time that some state has been given another array: what was read before may be stale."""

    def __init__(self, data: Any, name: str = "") -> None:
        array = as_array(data)
        self._data = _own(array, as_dtype(array.dtype))
        value = _StateValue(TensorType(as_dtype(array.dtype), array.shape), name=name)
        value.holder = self
        super().__init__(value)

    @property
    def data(self) -> Array:
        """The array itself: writing into it is seen by the next call."""
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        """Replace the array by a copy; it must have the same dtype, and the shape that compiled functions expect."""
        self._data = _own(as_array(data, self.dtype), self.dtype)
        State.replaced = object()

    @staticmethod
    def holding(value: Value) -> State | None:
        """Whose value this is, if it is a state's."""
        return value.holder if isinstance(value, _StateValue) else None

    def follow(self, cause: Tensor, update: Callable[[Tensor], Tensor]) -> None:
        """Whatever is compiled with `cause` in its graph also sets this state to `update(state)`, as updates do.

        Several updates of one state are applied one after the other, in the order of their causes in the graph.
        """
        if cause.value.node is None:
            raise ArgumentError(f"{cause.name or 'an input'} is computed by nothing that a state could follow")
        _FOLLOWERS.setdefault(cause.value.node, []).append((self, update))

    def rename(self, name: str) -> None:
        """Set the name that printed graphs show."""
        self.value.name = name

    def __repr__(self) -> str:
        return f"<graphc {type(self).__name__.lower()} {self.name}: {self.type}>"


def _own(data: Any, dtype: DType) -> Array:
    """A copy: nobody else holds the memory that steps write to."""
    return aligned_copy(np.asarray(data, dtype.numpy))


_FOLLOWERS: WeakKeyDictionary[Node, list[tuple[State, Callable[[Tensor], Tensor]]]] = WeakKeyDictionary()


def followers(nodes: Iterable[Node]) -> dict[State, Tensor]:
    """The next value of each state that follows one of the nodes."""
    found: dict[State, Tensor] = {}
    for node in nodes:
        for state, update in _FOLLOWERS.get(node, ()):
            found[state] = update(found.get(state, state))
    return found


class Parameter(State):
    """State that an optimiser trains. Holds a copy of `data`, an array of floats; raises DTypeError for another."""

    __slots__ = ()

    def __init__(self, data: Any, name: str = "") -> None:
        super().__init__(data, name)
        if not self.dtype.is_float:
            raise DTypeError(f"a parameter holds floats, not {self.type}; a Buffer holds anything", source.here())


class Buffer(State):
    """State that is no parameter: a running mean, a momentum, a count."""

    __slots__ = ()
