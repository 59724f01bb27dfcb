"""Many steps in one native loop, over a data set in memory.

Invariants:
 1. the loop returns to Python every CHUNK seconds or so, between two steps: interrupts come through there, with every
    parameter as some whole number of steps has left it;
 2. a step that fails a check ends the loop, with parameters as after the step before.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from graphc.codegen import epoch as code
from graphc.codegen.jit import Compiled, compile
from graphc.errors import GraphcError
from graphc.plan.steps import aligned
from graphc.runtime.batches import Batches, Part, Result
from graphc.runtime.executable import Executable, Table, symbols
from graphc.runtime.memory import address, aligned_bytes
from graphc.runtime.state import Held

Array = np.ndarray[Any, Any]
CHUNK = 0.05  # seconds
Move = tuple[int, int, int, int, int]  # the words of `codegen.epoch`


@functools.cache
def machine_code(threaded: bool) -> Compiled:
    """The native loop."""
    return compile(code.emit(threaded=threaded), symbols(2 if threaded else 1))


class Loop:
    """The steps of one part of an epoch.

    Each thread has a table; a list of moves says which of its addresses change from step to step (`codegen.epoch`).
    """

    def __init__(
        self, executable: Executable, held: Held, batches: Batches, part: Part, results: Sequence[Result]
    ) -> None:
        self.executable, self.held, self.part = executable, held, part
        self.entered = held.arrays()
        inputs, outputs = _sources(batches, part), [result.of(part) for result in results]
        moves = [
            *_input_moves(batches, part, inputs),
            *_output_moves(executable, outputs, len(inputs) + len(self.entered)),
        ]
        table = executable.new_table((*inputs, *self.entered, *outputs))
        self.tables = _repeated(table, executable.threads)
        self.moves = (ctypes.c_int64 * (code.MOVE_WORDS * len(moves)))(*chain.from_iterable(moves))
        self.kept = batches, inputs, outputs  # alive
        self.words = (ctypes.c_int64 * code.WORDS)()
        for place, word in {
            code.STEP: executable.step,
            code.TABLES: address(self.tables),
            code.PITCH: self.tables.strides[0],
            code.MOVES: ctypes.addressof(self.moves),
            code.COUNT: len(moves),
            code.ORDER: 0 if batches.order is None else address(batches.order[part.row :]),
            code.ROWS: part.size,
        }.items():
            self.words[place] = word
        self.native = executable.entry(machine_code(executable.threads > 1).address(code.NAME))

    def run(self) -> None:
        """All steps. Raises what a failed check says, and in which batch."""
        done, pace = 0, 1
        while done < self.part.count:
            stop = min(self.part.count, done + pace)
            start = time.perf_counter()
            with self.executable.lock, self.executable.in_use():
                self._enter()
                self.words[code.FIRST], self.words[code.STOP] = done, stop
                failed = self.native(ctypes.addressof(self.words))
                if failed:
                    table = (ctypes.c_uint64 * self.tables.shape[1]).from_buffer(self.tables)
                    error = self.executable.failure(failed, table)
                    raise in_batch(error, self.part.first + self.words[code.REACHED])
            seconds = time.perf_counter() - start
            pace = max(1, int((stop - done) * CHUNK / max(seconds, 1e-6)))
            done = stop

    def _enter(self) -> None:
        """Write the state's addresses when one was replaced."""
        arrays = self.held.arrays()
        if arrays is not self.entered:
            self.tables[:, self.executable.states] = [address(array) for array in arrays]
            self.entered = arrays


def in_batch(error: GraphcError, number: int) -> GraphcError:
    """The error, which says in which batch (from 0) it came."""
    error.message = f"batch {number}: {error.message}"
    return error


def _sources(batches: Batches, part: Part) -> list[Array]:
    """Where the steps read: the data in their place, from the part's first row on, or buffers for gathered rows."""
    found = []
    for array, cut in zip(batches.arrays, batches.cut, strict=True):
        if cut and batches.order is None:
            array = array[part.row :]
        elif cut:
            array = aligned_bytes(part.size * _row(array), "a batch")
        found.append(array)
    return found


def _input_moves(batches: Batches, part: Part, sources: Sequence[Array]) -> Iterator[Move]:
    for entry, (array, source, cut) in enumerate(zip(batches.arrays, sources, batches.cut, strict=True)):
        if cut and batches.order is None:
            yield 8 * entry, address(source), part.size * _row(array), _row(array), 0
        elif cut:
            yield 8 * entry, address(array), 0, _row(array), address(source)


def _output_moves(executable: Executable, outputs: Sequence[Array], entry: int) -> Iterator[Move]:
    for n, (array, value) in enumerate(zip(outputs, executable.plan.graph.outputs, strict=True)):
        yield 8 * (entry + n), address(array), value.type.nbytes, 0, 0


def _row(array: Array) -> int:
    """Bytes of a row."""
    return array.nbytes // len(array)


def _repeated(table: Table, threads: int) -> Array:
    """The table for each thread, in cache lines of its own."""
    pitch = aligned(ctypes.sizeof(table)) // 8
    tables = aligned_bytes(8 * pitch * threads, "an epoch").view(np.uint64).reshape(threads, pitch)
    tables[:, : len(table)] = table
    return tables
