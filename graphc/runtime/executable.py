"""A compiled step for one set of sizes: machine code, its arena, its constants, and the table that holds all addresses.

Invariants:
 1. nothing is allocated inside a step; the arena exists before the first;
 2. a step that fails a check has written no state: checks come first;
 3. one step runs at a time, as it owns the arena.
"""

from __future__ import annotations

import ctypes
import operator
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc import reference
from graphc.codegen import step as code
from graphc.codegen.jit import Compiled, compile
from graphc.errors import GraphcError
from graphc.ir.graph import Graph, Node
from graphc.ir.types import TensorType
from graphc.loops.ir import Function
from graphc.plan import Call, Plan
from graphc.runtime import team
from graphc.runtime.memory import address, aligned_bytes, aligned_copy, empty_arrays

Array = np.ndarray[Any, Any]
_STEP = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
Run = Callable[[int], int]  # of a step on the table at an address


class Executable:
    """Native code for `plan`, in which call node n runs `kernels[n]`, by `threads` threads."""

    def __init__(self, plan: Plan, kernels: Mapping[Node, Function], compiled: Compiled, threads: int = 1) -> None:
        self.plan, self.kernels, self.compiled, self.threads = plan, kernels, compiled, threads
        self.arena = aligned_bytes(plan.arena_bytes, plan.graph.name)
        self.constants = [aligned_copy(literal.array) for literal in plan.constants]
        self.results = [value.type for value in plan.graph.outputs]
        fixed = [*(a.ctypes.data for a in self.constants), self.arena.ctypes.data]
        given = len(plan.graph.inputs) + len(plan.graph.state) + len(self.results)
        self.table = (ctypes.c_uint64 * (given + len(fixed)))(*[0] * given, *fixed)
        self.place = ctypes.addressof(self.table)
        self.run = self._entry(compiled)
        self.lock = threading.Lock()
        self._entered: Sequence[Array] = ()  # the state whose addresses are in the table
        self._outputs = [(type.extents, type.dtype.numpy) for type in self.results]

    def __call__(self, inputs: Sequence[Array], state: Sequence[Array]) -> list[Array]:
        """One step: new arrays for the outputs, `state` updated in place. Raises what a failed check says."""
        outputs = empty_arrays(self._outputs, self.plan.graph.name)
        with self.lock:
            self.enter(inputs, state, outputs)
            failed = self.run(self.place)
            if failed:
                raise self._failure(failed, self.table)
        return outputs

    def times(self, inputs: Sequence[Array], state: Sequence[Array], repeat: int) -> Array:
        """Seconds of each step of the plan, one row per repetition, on a copy of the state.

        The processor's counter is read around each call; the whole step, timed from outside, says how fast it counts.
        """
        timed = compile(code.emit_timed(self.plan, self.kernels, threaded=self.threads > 1), self._symbols())
        run = self._entry(timed)
        counts = np.zeros((repeat, self.threads, len(self.plan.steps) + 1), np.int64)
        elapsed = 0.0
        with self.lock:
            copies = [array.copy() for array in state]
            outputs = empty_arrays(self._outputs, self.plan.graph.name)
            self.enter(inputs, copies, outputs)
            table = (ctypes.c_uint64 * (len(self.table) + 1))(*self.table)
            for row in counts:
                table[len(self.table)] = row.ctypes.data
                start = time.perf_counter()
                failed = run(ctypes.addressof(table))
                elapsed += time.perf_counter() - start
                if failed:
                    raise self._failure(failed, table)
            del outputs
        cycles = np.diff(counts[:, 0], axis=1)
        seconds: Array = cycles * (elapsed / max(1, int(cycles.sum())))
        return seconds

    def enter(self, inputs: Sequence[Array], state: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Write the arrays' addresses into the table; the state's only when it is not the one of the last step."""
        table, entry = self.table, 0
        for array in inputs:
            table[entry] = address(array)
            entry += 1
        if len(self._entered) != len(state) or not all(map(operator.is_, state, self._entered)):
            for place, array in enumerate(state, entry):
                table[place] = address(array)
            self._entered = state
        entry += len(state)
        for array in outputs:
            table[entry] = address(array)
            entry += 1

    def _entry(self, compiled: Compiled) -> Run:
        """The step of some machine code, as a function of its table."""
        step = compiled.address(code.NAME)
        if self.threads == 1:
            return _STEP(step)
        return lambda table: team.team(self.threads).run(step, table)  # a forked process has another team

    def _symbols(self) -> dict[str, int]:
        names = {function.name for function in self.kernels.values()}
        return {**symbols(self.threads), **{name: self.compiled.address(name) for name in names}}

    def _failure(self, number: int, table: ctypes.Array[ctypes.c_uint64]) -> GraphcError:
        """The error of check `number` (from 1): its kernel run again by the reference on what it was given."""
        call = [call for call in self.plan.calls if call.is_check][number - 1]
        operands = [
            _view(table[self.plan.entry(place)] + place.offset, value.type)
            for value, place in zip(call.node.inputs, call.operands, strict=True)
        ]
        try:
            reference.run(_body(call), operands)
        except GraphcError as error:
            return error
        raise AssertionError(f"check {number} failed natively and passes in the reference")


def symbols(threads: int) -> dict[str, int]:
    """Addresses that the code of a step needs."""
    return {"barrier": team.machine_code().address("barrier")} if threads > 1 else {}


def _body(call: Call) -> Graph:
    body: Graph = call.node.attrs["body"]
    return body


def _view(place: int, type: TensorType) -> Array:
    memory = (ctypes.c_char * type.nbytes).from_address(place)
    return np.frombuffer(memoryview(memory), type.dtype.numpy).reshape(type.extents)
