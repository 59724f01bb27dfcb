"""Calls whose arrays fit as they are: native code looks at them, and runs the step (`codegen.enter`).

Invariants:
 1. a call that does not fit has done nothing, and is made again by whoever can convert what was given, or refuse it;
 2. a state that was replaced (`parameter.data = ...`) is noticed by the next call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from graphc.codegen import enter as code
from graphc.ir.graph import Value
from graphc.runtime.builtin import builtin
from graphc.runtime.executable import Executable
from graphc.runtime.memory import address
from graphc.runtime.state import Held

Array = np.ndarray[Any, Any]
Entrance = Callable[[tuple[Any, ...]], Any]


def entrance(executable: Executable, held: Held, single: bool) -> Entrance | None:
    """A step of `executable` as a function of the arguments of a call; its result is None where they do not fit.

    Otherwise it returns the outputs, new arrays or numbers: the only one if `single`. None where there is no such way.
    """
    if not executable.way_in:
        return None
    graph, wanted, empty = executable.plan.graph, executable.results, np.empty
    inputs, states, outputs = len(graph.inputs), len(graph.state), len(wanted)
    brief, is_number = executable.brief, [not extents for extents, _ in wanted]
    table: Any = executable.new_table()
    lock, state = executable.lock, tuple[Array, ...]()
    ranges = slice(end := code.OBJECTS + inputs + outputs, end + 2 * states)
    records = [word for value in graph.inputs for word in _record(value)]
    call: Any = (ctypes.c_uint64 * (ranges.stop + len(records)))()
    here, place = ctypes.addressof(call), ctypes.addressof(table)
    memory, looks = here + 8 * ranges.start, here + 8 * ranges.stop
    call[ranges.stop :] = records
    call[: code.OBJECTS] = [inputs, outputs, states, looks, memory if graph.next else 0, id(np.ndarray), place]
    busy = executable.busy if brief else None
    look = builtin(executable.way_in, here, here + 8 * code.OBJECTS, busy=busy)  # and run, where that is brief
    run = executable.on(place)

    def renew() -> None:
        nonlocal state
        arrays = held.arrays()
        if arrays is not state:
            executable.take(arrays)
            table[executable.states] = starts = [address(array) for array in arrays]
            ends = [start + array.nbytes for start, array in zip(starts, arrays, strict=True)]
            call[ranges] = list(chain.from_iterable(zip(starts, ends, strict=True)))
            state = arrays

    def enter(args: tuple[Any, ...]) -> Any:
        if len(args) != inputs:
            return None
        results = []
        try:
            for extents, dtype in wanted:
                results.append(empty(extents, dtype))
        except (MemoryError, ValueError):  # too large; who comes next says so
            return None
        if brief:
            if held.arrays() is not state:
                with lock:
                    renew()
            if look(*args, *results) is not None:  # who comes next converts, waits, or says what is wrong
                return None
        else:
            with lock:
                renew()
                if look(*args, *results) is not None:
                    return None
                failed = run()
                if failed is not None:
                    raise executable.failure(failed, table)
        if single:
            return results[0][()] if is_number[0] else results[0]
        return tuple([array[()] if number else array for array, number in zip(results, is_number)])

    return enter


def _record(value: Value) -> tuple[int, ...]:
    """What an input's array must be; its dtype's object lives for ever."""
    return id(value.dtype.numpy), value.type.nbytes, value.type.rank, *value.type.extents
