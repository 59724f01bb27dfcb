"""The step: the one native function of a plan, which calls the kernels in order.

    i64 step(ptr table)          the table holds the address of every memory (`Plan.entry`); the result is 0, or the
                                 number of the check that failed, counted from 1
    i64 step(ptr table, ptr team, i64 tid, i64 threads)
                                 called by every thread of a team; they meet after each call

Checks come before any state is written (the planner's order), so a step that fails changes no state. Every thread
runs the checks for itself: all of them leave at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from graphc.codegen.emit import ATTRIBUTES, BARRIER, add, returns_status
from graphc.codegen.llvm import Body, Module
from graphc.ir.graph import Node
from graphc.loops.ir import Buffer, Function
from graphc.loops.target import Target
from graphc.plan import Address, Call, Copy, Plan
from graphc.plan.steps import aligned

NAME = "step"
MODULE_SIZE = 60_000  # characters of text from which a module is full: some 20 ms of compilation
CLOCK = "declare i64 @llvm.readcyclecounter()"


def scratch_bytes(function: Function) -> int:
    """Memory that a call of the function needs beside operands and results."""
    return sum(map(_bytes, function.scratch))


def emit_modules(
    plan: Plan, kernels: Mapping[Node, Function], target: Target, *, threaded: bool = False
) -> Iterator[str]:
    """Modules with every kernel that the plan calls, each once, and at last one with the step that calls them.

    Each of them can be compiled by itself. How kernels are divided follows from their text alone.
    """
    module = Module(fma=target.fma)
    checks = {kernels[call.node].name for call in plan.calls if call.is_check}
    for function in _distinct(plan, kernels):
        add(function, module, threaded=threaded and function.name not in checks)
        if module.size >= MODULE_SIZE:
            yield str(module)
            module = Module(fma=target.fma)
    if module.size:
        yield str(module)
    yield emit_step(plan, kernels, threaded=threaded)


def emit_step(plan: Plan, kernels: Mapping[Node, Function], *, threaded: bool = False, timed: bool = False) -> str:
    """A module with the step alone. With `timed` it reads the cycle counter around every call.

    The table's last entry, behind the arena, then is where the counts go: for each thread one i64 before the first call
    and one after each.
    """
    module = Module()
    for function in _distinct(plan, kernels):
        result = "i64" if returns_status(function) else "void"
        types = ["ptr"] * len((*function.inputs, *function.outputs, *function.scratch))
        types += ["ptr", "i64", "i64"] if threaded and result == "void" else []
        parameters = ", ".join(types)
        module.declare(f"declare {result} @{function.name}({parameters})")
    _Step(plan, kernels, module, threaded=threaded, timed=timed).write()
    return str(module)


def _distinct(plan: Plan, kernels: Mapping[Node, Function]) -> Iterable[Function]:
    return {kernels[call.node].name: kernels[call.node] for call in plan.calls}.values()


class _Step:
    def __init__(
        self, plan: Plan, kernels: Mapping[Node, Function], module: Module, *, threaded: bool, timed: bool
    ) -> None:
        self.plan, self.kernels, self.module = plan, kernels, module
        self.threaded, self.timed = threaded, timed
        self.body = Body(module)
        self.bases: dict[int, str] = {}

    def write(self) -> None:
        """Append the function to the module."""
        self.load_table()
        self.clock(0)
        checks = 0
        for number, step in enumerate(self.plan.steps):
            match step:
                case Copy():
                    self.copy(step)
                case Call(is_check=True):
                    checks += 1
                    self.check(step, checks)
                case Call():
                    self.call(step)
            self.clock(number + 1)
        self.body.void("ret i64 0")
        parameters = "ptr noalias %table" + (", ptr %team, i64 %tid, i64 %threads" if self.threaded else "")
        self.module.add(f"define i64 @{NAME}({parameters}) {ATTRIBUTES} {{\nentry:\n{self.body}\n}}")

    def load_table(self) -> None:
        """All addresses are loaded once, at the start."""
        plan, memories = self.plan, self.plan.entry
        used = {memories(address) for step in plan.steps for address in _addresses(step)}
        if self.timed:
            used.add(len(plan.graph.inputs) + len(plan.graph.state) + len(plan.graph.outputs) + len(plan.constants) + 1)
        for entry in sorted(used):
            place = self.body.emit(f"getelementptr i8, ptr %table, i64 {8 * entry}") if entry else "%table"
            self.bases[entry] = self.body.emit(f"load ptr, ptr {place}")

    def clock(self, number: int) -> None:
        if not self.timed:
            return
        self.module.declare(CLOCK)
        now = self.body.emit("call i64 @llvm.readcyclecounter()")
        mine = str(number)
        if self.threaded:
            row = self.body.emit(f"mul i64 %tid, {len(self.plan.steps) + 1}")
            mine = self.body.emit(f"add i64 {row}, {number}")
        place = self.body.emit(f"getelementptr i64, ptr {self.bases[max(self.bases)]}, i64 {mine}")
        self.body.void(f"store i64 {now}, ptr {place}")

    def address(self, address: Address, offset: int = 0) -> str:
        base, offset = self.bases[self.plan.entry(address)], address.offset + offset
        return self.body.emit(f"getelementptr i8, ptr {base}, i64 {offset}") if offset else base

    def arguments(self, call: Call) -> str:
        places = [self.address(address) for address in (*call.operands, *call.results)]
        if call.scratch is not None:
            offset = 0
            for buffer in self.kernels[call.node].scratch:
                places.append(self.address(call.scratch.address, offset))
                offset += _bytes(buffer)
        return ", ".join(f"ptr {place}" for place in places)

    def call(self, call: Call) -> None:
        team = ", ptr %team, i64 %tid, i64 %threads" if self.threaded else ""
        self.body.void(f"call void @{self.kernels[call.node].name}({self.arguments(call)}{team})")
        self.meet()

    def meet(self) -> None:
        if self.threaded:
            self.module.declare(BARRIER)
            self.body.void("call void @barrier(ptr %team)")

    def check(self, call: Call, number: int) -> None:
        if not returns_status(self.kernels[call.node]):  # no indices, nothing to check
            return
        status = self.body.emit(f"call i64 @{self.kernels[call.node].name}({self.arguments(call)})")
        failed = self.body.emit(f"icmp ne i64 {status}, 0")
        leave, on = self.body.label("failed"), self.body.label("passed")
        self.body.void(f"br i1 {failed}, label %{leave}, label %{on}")
        self.body.start(leave)
        self.body.void(f"ret i64 {number}")
        self.body.start(on)

    def copy(self, copy: Copy) -> None:
        """One thread copies; the others wait for it."""
        self.module.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        source, target = self.address(copy.source), self.address(copy.target)
        text = f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {copy.bytes}, i1 false)"
        if not self.threaded:
            self.body.void(text)
            return
        first = self.body.emit("icmp eq i64 %tid, 0")
        mine, on = self.body.label("copy"), self.body.label("copied")
        self.body.void(f"br i1 {first}, label %{mine}, label %{on}")
        self.body.start(mine)
        self.body.void(text)
        self.body.void(f"br label %{on}")
        self.body.start(on)
        self.meet()


def _bytes(buffer: Buffer) -> int:
    return aligned(prod(buffer.shape) * buffer.dtype.itemsize)


def _addresses(step: Call | Copy) -> Sequence[Address]:
    match step:
        case Copy():
            return step.source, step.target
        case Call():
            return *step.operands, *step.results, *([step.scratch.address] if step.scratch else [])
