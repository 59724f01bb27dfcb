"""A compiled step for one set of sizes: machine code, its arena, its constants, and the table that holds all addresses.

Invariants:
 1. nothing is allocated inside a step; the arena exists before the first;
 2. a step that fails a check has written no state: checks come first;
 3. one step runs at a time, as it owns the arena.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from graphc import reference
from graphc.codegen import enter
from graphc.codegen import step as code
from graphc.codegen.jit import Compiled, compile
from graphc.errors import GraphcError
from graphc.ir.graph import Graph, Node
from graphc.ir.memory import aligned_copy
from graphc.ir.types import TensorType
from graphc.loops.ir import Function
from graphc.plan import Call, Plan
from graphc.runtime import team
from graphc.runtime.builtin import builtin
from graphc.runtime.memory import OFFSETS, address, aligned_bytes, empty_arrays

Array = np.ndarray[Any, Any]
_STEP = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
Run = Callable[[int], int]  # of a step on the table at an address
Table = ctypes.Array[ctypes.c_uint64]


class Executable:
    """Native code for `plan`, in which call node n runs `kernels[n]`, by `threads` threads.

    A `brief` step, of one thread, is over before the interpreter could be given to another Python thread and taken
    back: it keeps it, and needs no lock. `busy` is not 0 while something uses the arena that may let go of it.
    """

    def __init__(
        self, plan: Plan, kernels: Mapping[Node, Function], compiled: Compiled, threads: int = 1, brief: bool = False
    ) -> None:
        self.plan, self.kernels, self.compiled, self.threads = plan, kernels, compiled, threads
        self.arena = aligned_bytes(plan.arena_bytes, plan.graph.name)
        self.constants = [aligned_copy(literal.array) for literal in plan.constants]
        self.results = [(value.type.extents, value.dtype.numpy) for value in plan.graph.outputs]
        self.step = compiled.address(code.NAME)
        self.brief = brief
        self.busy = ctypes.c_int64(0)
        self.run = self.entry(self.step)
        self.way_in = compiled.address(enter.NAME) if OFFSETS else 0
        self.lock = threading.Lock()
        inputs, state = len(plan.graph.inputs), len(plan.graph.state)
        self._given = inputs + state + len(self.results)
        self._inputs, self.states = slice(inputs), slice(inputs, inputs + state)
        self._outputs = slice(inputs + state, self._given)
        self.table = self.new_table()
        self.place = ctypes.addressof(self.table)
        self._entered: tuple[Array, ...] = ()  # the state whose addresses are in the table

    def __call__(self, inputs: Sequence[Array], state: tuple[Array, ...]) -> list[Array]:
        """One step: new arrays for the outputs, `state` updated in place. Raises what a failed check says."""
        outputs = empty_arrays(self.results, self.plan.graph.name)
        table = self.table
        with self.lock, self.in_use():
            table[self._inputs] = [address(array) for array in inputs]
            table[self._outputs] = [address(array) for array in outputs]
            if state is not self._entered:
                self.take(state)
            failed = self.run(self.place)
            if failed:
                raise self.failure(failed, table)
        return outputs

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Brief steps wait meanwhile, as the interpreter may be let go of. Whoever enters this has the lock."""
        self.busy.value = 1
        try:
            yield
        finally:
            self.busy.value = 0

    def take(self, state: tuple[Array, ...]) -> None:
        """Enter the addresses of the state in the table; no other arrays are kept alive from here on."""
        self.table[self.states] = [address(array) for array in state]
        self._entered = state

    def new_table(self, arrays: Iterable[Array] = ()) -> Table:
        """A table with the addresses of the constants, the arena, and `arrays`: inputs, state, outputs, in order."""
        own = (*self.constants, self.arena)
        table = (ctypes.c_uint64 * (self._given + len(own)))(*map(address, arrays))
        table[self._given :] = [address(array) for array in own]
        return table

    def times(self, inputs: Sequence[Array], state: Sequence[Array], repeat: int) -> Array:
        """Seconds of each step of the plan, then of those in its loops (`Plan.all`), one row per repetition.

        Works on a copy of the state. The processor's counter is read around each call; the whole step, timed from
        outside, says how fast it counts.
        """
        timed = compile(code.emit_step(self.plan, self.kernels, threaded=self.threads > 1, timed=True), self._symbols())
        run = self.entry(timed.address(code.NAME))
        counts = np.zeros((repeat, self.threads, code.columns(self.plan)[1]), np.int64)
        elapsed = 0.0
        with self.lock, self.in_use():
            copies = [array.copy() for array in state]
            outputs = empty_arrays(self.results, self.plan.graph.name)
            own = self.new_table((*inputs, *copies, *outputs))
            table = (ctypes.c_uint64 * (len(own) + 1))(*own)
            for row in counts:
                table[len(own)] = row.ctypes.data
                start = time.perf_counter()
                failed = run(ctypes.addressof(table))
                elapsed += time.perf_counter() - start
                if failed:
                    raise self.failure(failed, table)
            del outputs
        cycles = counts[:, 0]
        seconds: Array = cycles * (elapsed / max(1, int(cycles[:, : len(self.plan.steps)].sum())))
        return seconds

    def entry(self, function: int) -> Run:
        """The native function at an address, a step or what runs steps, as a function of its table."""
        if self.threads == 1:
            return _STEP(function)
        return lambda table: team.team(self.threads).run(function, table)  # a forked process has another team

    def on(self, place: int) -> Callable[[], int | None]:
        """The step on the table at an address: None, or the number of the check that failed, or IN_USE of a brief one.

        Unless it is brief, whoever calls it has the lock.
        """
        if self.threads == 1 and OFFSETS:
            return builtin(self.step, place, busy=self.busy if self.brief else None, keeps=self.brief)
        return lambda: self.run(place) or None

    def _symbols(self) -> dict[str, int]:
        names = {function.name for function in self.kernels.values()}
        return {**symbols(self.threads), **{name: self.compiled.address(name) for name in names}}

    def failure(self, number: int, table: Table) -> GraphcError:
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
    return {name: team.machine_code().address(name) for name in ("barrier", "claim", "part")} if threads > 1 else {}


def _body(call: Call) -> Graph:
    body: Graph = call.node.attrs["body"]
    return body


def _view(place: int, type: TensorType) -> Array:
    memory = (ctypes.c_char * type.nbytes).from_address(place)
    return np.frombuffer(memoryview(memory), type.dtype.numpy).reshape(type.extents)
