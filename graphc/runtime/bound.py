"""Steps on arrays that are bound once: a call has next to nothing left to do in Python.

Invariants:
 1. the arrays live as long as the `Bound`, which refers to them;
 2. an output shares memory with no input, no state and no other output;
 3. a state that was replaced (`parameter.data = ...`) is noticed by the next call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import FeedError, FeedTypeError
from graphc.ir.types import TensorType
from graphc.runtime.executable import Executable
from graphc.runtime.memory import address
from graphc.runtime.state import Held

Array = np.ndarray[Any, Any]


class Bound:
    """One step per call, on what the bound arrays hold by then.

    inputs    the arrays that steps read, by name: write the next batch into them
    outputs   the arrays that every call writes; a call returns the only one, or their tuple, always the same objects

    Calls from several Python threads run one after the other, and share the outputs.
    """

    __slots__ = ("_results", "_run", "inputs", "outputs")

    def __init__(
        self, inputs: Mapping[str, Array], outputs: Sequence[Array], single: bool, run: Callable[[], None]
    ) -> None:
        self.inputs, self.outputs = dict(inputs), tuple(outputs)
        self._results = self.outputs[0] if single else self.outputs
        self._run = run

    def __call__(self) -> Any:
        """One step; raises what a call of the function with these arrays would raise."""
        self._run()
        return self._results


def native_run(
    executable: Executable, held: Held, inputs: Sequence[Array], outputs: Sequence[Array]
) -> Callable[[], None]:
    """A step of an executable with a table of its own, as a function; whoever calls it keeps the arrays alive."""
    entered, lock = held.arrays(), executable.lock
    table = executable.new_table((*inputs, *entered, *outputs))
    place, has_state = ctypes.addressof(table), bool(entered)
    run = executable.on(place)

    def renew() -> None:
        nonlocal entered
        arrays = held.arrays()
        if arrays is not entered:
            table[executable.states] = [address(array) for array in arrays]
            entered = arrays

    def step() -> None:
        with lock:
            renew()
            failed = run()
            if failed is not None:
                raise executable.failure(failed, table)

    def brief_step() -> None:
        if has_state and held.arrays() is not entered:
            with lock:
                renew()
        if run() is not None:
            again()

    def again() -> None:
        """What a brief step could not do while the arena was in use; or did not, as a check had failed."""
        with lock, executable.in_use():
            renew()
            failed = executable.run(place)
            if failed:
                raise executable.failure(failed, table)

    return brief_step if executable.brief else step


def outputs_of(
    types: Sequence[TensorType], out: Array | Sequence[Array] | None, others: Sequence[Array]
) -> list[Array]:
    """Arrays for outputs of these types: new ones, or `out` where it fits.

    Raises FeedError for arrays that do not, or that share memory with each other or with `others`.
    """
    if out is None:
        return [np.empty(type.extents, type.dtype.numpy) for type in types]
    found = [out] if isinstance(out, np.ndarray) else list(out)
    if len(found) != len(types):
        raise FeedError(f"there are {len(types)} outputs; {len(found)} arrays were given for them")
    for number, (array, type) in enumerate(zip(found, types, strict=True)):
        if not isinstance(array, np.ndarray) or array.dtype != type.dtype.numpy or not array.flags.carray:
            raise FeedTypeError(f"output {number} needs a writeable C-contiguous array of {type.dtype.numpy.name}")
        if array.shape != type.extents:
            raise FeedError(f"output {number} is {type}, which an array of shape {list(array.shape)} does not fit")
        if any(np.may_share_memory(array, other) for other in (*others, *found[:number])):
            raise FeedError(f"output {number} shares memory with an input, a state or another output")
    return found
