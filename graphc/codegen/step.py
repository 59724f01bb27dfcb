"""The step: the one native function of a plan, which calls the kernels in order.

    i64 step(ptr table)          the table holds the address of every memory (`Plan.entry`); the result is 0, or the
                                 number of the check that failed, counted from 1
    i64 step(ptr table, ptr team, i64 tid, i64 threads)
                                 called by every thread of a team; they meet after each call

A loop of the plan is a counted loop around a call of a function of its own, `i64 loop0(ptr table)`, which is made like
the step, from the plan of the loop's step. Each thread fills a table on its own stack; from one round to the next the
addresses of slices and results move on, and so do those of carries that are read back from results. Where the last
round has less to do, its number is passed as a bit: `i64 loop0(ptr table, i1 last)`. The rounds of a
loop in shares (`plan.steps.Loop`) are claimed by threads, each of which runs its own as a team of one; where there are
no more rounds than shares, the threads divide into a team for each.

Checks come before any state is written (the planner's order), so a step that fails changes no state. Every thread
runs the checks for itself: all of them leave at the same place. What comes after a check may be written over what it
reads, so threads meet before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod

from graphc.codegen import enter, team
from graphc.codegen.claims import claims
from graphc.codegen.emit import ATTRIBUTES, BARRIER, add, returns_status
from graphc.codegen.llvm import Body, Module
from graphc.ir.graph import Node
from graphc.loops.ir import Buffer, Function
from graphc.loops.target import Target
from graphc.plan import Address, Base, Call, Copy, Loop, Plan
from graphc.plan.steps import Step, aligned, read_back

NAME = "step"
MODULE_SIZE = 60_000  # characters of text from which a module is full: some 20 ms of compilation
CLOCK = "declare i64 @llvm.readcyclecounter()"


def scratch_bytes(function: Function) -> int:
    """Memory that a call of the function needs beside operands and results."""
    return sum(map(_bytes, function.scratch))


def emit_kernels(functions: Iterable[Function], target: Target, *, threaded: bool = False) -> Iterator[str]:
    """Modules with kernels, each of which can be compiled by itself.

    How they are divided follows from their text alone. A check is what every thread does for itself.
    """
    module = Module(target)
    for function in functions:
        add(function, module, threaded=threaded and not returns_status(function))
        if module.size >= MODULE_SIZE:
            yield str(module)
            module = Module(target)
    if module.size:
        yield str(module)


def emit_entry(
    plan: Plan,
    kernels: Mapping[Node, Function],
    *,
    threaded: bool = False,
    offsets: enter.Offsets | None = None,
    runs: bool = False,
) -> str:
    """A module with the step, and where it is known how arrays are laid out a function that enters them, and runs it.

    See `codegen.enter`.
    """
    way_in = enter.emit(offsets, runs=runs) if offsets else ""
    return emit_step(plan, kernels, threaded=threaded) + way_in


def emit_step(plan: Plan, kernels: Mapping[Node, Function], *, threaded: bool = False, timed: bool = False) -> str:
    """A module with the step and its loops alone. With `timed` they read the cycle counter around every call.

    The table's last entry, behind the arena, then is where cycles are added up: for each thread one i64 for each step
    of each plan, in the order of `plan.all()`.
    """
    module = Module()
    for function in _distinct(plan, kernels):
        result = "i64" if returns_status(function) else "void"
        types = ["ptr"] * len((*function.inputs, *function.outputs, *function.scratch))
        types += ["ptr", "i64", "i64"] if threaded and result == "void" else []
        parameters = ", ".join(types)
        module.declare(f"declare {result} @{function.name}({parameters})")
    _write(plan, kernels, module, threaded=threaded, timed=timed)
    return str(module)


def columns(plan: Plan) -> tuple[dict[Plan, int], int]:
    """Where the counts of each plan's steps start, and how many there are in all."""
    first: dict[Plan, int] = {}
    count = 0
    for inner in plan.all():
        first[inner] = count
        count += len(inner.steps)
    return first, count


def _distinct(plan: Plan, kernels: Mapping[Node, Function]) -> Iterable[Function]:
    calls = [call for inner in plan.all() for call in inner.calls]
    return {kernels[call.node].name: kernels[call.node] for call in calls}.values()


def _write(plan: Plan, kernels: Mapping[Node, Function], module: Module, *, threaded: bool, timed: bool) -> None:
    """Append the functions of a plan and of its loops."""
    outermost, *inner = plan.all()
    names = {outermost: NAME, **{loop: f"loop{number}" for number, loop in enumerate(inner)}}
    tails = {loop.plan: loop.tail for part in names for loop in part.loops}
    for part in names:
        _Step(part, kernels, module, names, threaded=threaded, timed=timed).write(tails.get(part, 0))


class _Step:
    """The function of one plan; `names` are those of all functions, the outermost first."""

    def __init__(
        self,
        plan: Plan,
        kernels: Mapping[Node, Function],
        module: Module,
        names: Mapping[Plan, str],
        *,
        threaded: bool,
        timed: bool,
    ) -> None:
        self.plan, self.kernels, self.module, self.names = plan, kernels, module, names
        self.threaded, self.timed = threaded, timed
        self.body = Body(module)
        self.bases: dict[int, str] = {}
        self.columns, self.width = columns(next(iter(names)))
        self.counts = self.before = ""  # where this thread's cycles are added up, and where the last reading is

    def write(self, tail: int) -> None:
        """Append the function to the module; with `tail`, it leaves out so many steps in the last round."""
        self.load_table()
        self.start_clock()
        checks = 0
        for number, (before, step) in enumerate(pairwise((None, *self.plan.steps))):
            if _is_check(before) and not _is_check(step):
                self.meet()
            if tail and number == len(self.plan.steps) - tail:
                self.leave_if_last()
            match step:
                case Copy():
                    self.copy(step)
                case Call(is_check=True):
                    checks += 1
                    self.check(step, checks)
                case Call():
                    self.call(step)
                case Loop():
                    self.loop(step)
            self.read_clock(number)
        self.body.void("ret i64 0")
        parameters = "ptr noalias %table" + (", ptr %team, i64 %tid, i64 %threads" if self.threaded else "")
        parameters += ", i1 %last" if tail else ""
        self.module.add(f"define i64 @{self.names[self.plan]}({parameters}) {ATTRIBUTES} {{\nentry:\n{self.body}\n}}")

    def leave_if_last(self) -> None:
        """All threads return here in the last round."""
        leave, on = self.body.label("leave"), self.body.label("on")
        self.body.void(f"br i1 %last, label %{leave}, label %{on}")
        self.body.start(leave)
        self.body.void("ret i64 0")
        self.body.start(on)

    def load_table(self) -> None:
        """All addresses are loaded once, at the start."""
        plan, memories = self.plan, self.plan.entry
        used = {memories(address) for step in plan.steps for address in _addresses(step)}
        if self.timed:
            used.add(plan.entries)
        for entry in sorted(used):
            place = self.body.emit(f"getelementptr i8, ptr %table, i64 {8 * entry}") if entry else "%table"
            self.bases[entry] = self.body.emit(f"load ptr, ptr {place}")

    def start_clock(self) -> None:
        if not self.timed:
            return
        self.module.declare(CLOCK)
        self.counts = self.bases[self.plan.entries]
        if self.threaded and self.names[self.plan] == NAME:  # a loop is given the row of its thread
            row = self.body.emit(f"mul i64 %tid, {self.width}")
            self.counts = self.body.emit(f"getelementptr i64, ptr {self.counts}, i64 {row}")
        self.before = self.body.emit("alloca i64")
        self.body.void(f"store i64 {self.body.emit('call i64 @llvm.readcyclecounter()')}, ptr {self.before}")

    def read_clock(self, number: int) -> None:
        """Add the cycles since the last reading to those of a step."""
        if not self.timed:
            return
        emit = self.body.emit
        now = emit("call i64 @llvm.readcyclecounter()")
        taken = emit(f"sub i64 {now}, {emit(f'load i64, ptr {self.before}')}")
        place = emit(f"getelementptr i64, ptr {self.counts}, i64 {self.columns[self.plan] + number}")
        total = emit(f"add i64 {emit(f'load i64, ptr {place}')}, {taken}")
        self.body.void(f"store i64 {total}, ptr {place}")
        self.body.void(f"store i64 {now}, ptr {self.before}")

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
        self.copy_bytes([(self.address(copy.source), self.address(copy.target), copy.bytes)])

    def copy_bytes(self, pairs: Sequence[tuple[str, str, int]]) -> None:
        """One thread copies (from, to, so many bytes); the others wait for it."""
        texts = [
            f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {size}, i1 false)"
            for source, target, size in pairs
            if source != target
        ]
        if not texts:
            return
        self.module.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        if not self.threaded:
            for text in texts:
                self.body.void(text)
            return
        first = self.body.emit("icmp eq i64 %tid, 0")
        mine, on = self.body.label("copy"), self.body.label("copied")
        self.body.void(f"br i1 {first}, label %{mine}, label %{on}")
        self.body.start(mine)
        for text in texts:
            self.body.void(text)
        self.body.void(f"br label %{on}")
        self.body.start(on)
        self.meet()

    # Loops

    def loop(self, step: Loop) -> None:
        """The first carries to their places, then the rounds, then what was read back to the final carries."""
        frame = _Frame(step, [self.address(a) for a in step.operands], [self.address(a) for a in step.results])
        back = frame.back if frame.length else {}
        self.copy_bytes([copy for number, copy in enumerate(frame.first_copies()) if number not in back])
        if not frame.length:
            return
        if step.shares == 1:
            parameters = ", ptr %team, i64 %tid, i64 %threads" if self.threaded else ""
            self.rounds(step, frame, self.table(step, frame), "0", str(frame.length), parameters)
        elif step.shares == frame.length:
            round, parameters = self.divide(step.shares)
            following = self.body.emit(f"add i64 {round}, 1")
            self.rounds(step, frame, self.table(step, frame, round), round, following, parameters)
            self.meet()
        else:
            table, parameters = self.table(step, frame, "%tid"), self.alone()
            with claims(self.body, 0, frame.length) as (start, stop):
                self.rounds(step, frame, table, start, stop, parameters)
            self.meet()
        self.copy_bytes([self.last_copy(frame, carry, result) for carry, result in back.items()])

    def rounds(self, step: Loop, frame: _Frame, table: str, start: str, stop: str, parameters: str) -> None:
        """Rounds from `start` to `stop`, by the team in the parameters."""
        body, emit, back = self.body, self.body.emit, frame.back
        head, round, leave = (body.label(hint) for hint in ("head", "round", "leave"))
        before = body.block
        body.void(f"br label %{head}")
        body.start(head)
        number = body.phi("i64", (start, before))
        body.void(f"br i1 {emit(f'icmp slt i64 {number}, {stop}')}, label %{round}, label %{leave}")
        body.start(round)
        place = emit(f"sub i64 {frame.length - 1}, {number}") if frame.is_reverse else number
        for entry, base, pitch in frame.moving():
            self.enter(table, entry, emit(f"getelementptr i8, ptr {base}, i64 {emit(f'mul i64 {place}, {pitch}')}"))
        is_first = emit(f"icmp eq i64 {number}, 0") if back else ""
        for carry, result in back.items():
            (entry, base, pitch), first = frame.result(result), frame.operands[carry]
            earlier = emit(f"{'add' if frame.is_reverse else 'sub'} i64 {place}, 1")
            stored = emit(f"getelementptr i8, ptr {base}, i64 {emit(f'mul i64 {earlier}, {pitch}')}")
            self.enter(table, frame.carry(carry), emit(f"select i1 {is_first}, ptr {first}, ptr {stored}"))
        last = f", i1 {emit(f'icmp eq i64 {number}, {frame.length - 1}')}" if step.tail else ""
        emit(f"call i64 @{self.names[step.plan]}(ptr {table}{parameters}{last})")
        body.add_incoming(number, emit(f"add i64 {number}, 1"), body.block)
        body.void(f"br label %{head}")
        body.start(leave)

    def alone(self) -> str:
        """This thread as a team of one."""
        self.module.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        alone = self.body.emit(f"alloca [{team.size(1)} x i8], align 64")
        self.body.void(f"call void @llvm.memset.p0.i64(ptr {alone}, i8 0, i64 {team.size(1)}, i1 false)")
        self.body.void(f"store i64 1, ptr {self.body.emit(f'getelementptr i8, ptr {alone}, i64 {team.THREADS}')}")
        return f", ptr {alone}, i64 0, i64 1"

    def divide(self, teams: int) -> tuple[str, str]:
        """The number of this thread's team among so many, all about equally large; and the team as parameters."""
        emit = self.body.emit

        def first(number: str) -> str:
            before = emit(f"mul i64 {number}, %threads")
            return emit(f"udiv i64 {emit(f'add i64 {before}, {teams - 1}')}, {teams}")

        number = emit(f"udiv i64 {emit(f'mul i64 %tid, {teams}')}, %threads")
        start, stop = first(number), first(emit(f"add i64 {number}, 1"))
        count = emit(f"sub i64 {stop}, {start}")
        self.module.declare("declare ptr @part(ptr, i64, i64)")
        part = emit(f"call ptr @part(ptr %team, i64 {number}, i64 {count})")
        self.meet()
        return number, f", ptr {part}, i64 {emit(f'sub i64 %tid, {start}')}, i64 {count}"

    def table(self, step: Loop, frame: _Frame, share: str = "0") -> str:
        """A table for a loop's function, with the addresses that stay the same; `share` says which arena is the one."""
        plan = step.plan
        table = self.body.emit(f"alloca [{plan.entries + 1} x ptr], align 64")
        for entry, address in frame.fixed():
            self.enter(table, entry, address)
        for number, place in enumerate(step.constants):
            self.enter(table, plan.entry(Address(Base.CONSTANT, number)), self.address(place))
        if step.scratch is not None:
            arena = self.address(step.scratch.address)
            if step.shares > 1:
                mine = self.body.emit(f"mul i64 {share}, {aligned(plan.arena_bytes)}")
                arena = self.body.emit(f"getelementptr i8, ptr {arena}, i64 {mine}")
            self.enter(table, plan.entry(Address(Base.ARENA)), arena)
        if self.timed:
            self.enter(table, plan.entries, self.counts)
        return table

    def enter(self, table: str, entry: int, address: str) -> None:
        place = self.body.emit(f"getelementptr ptr, ptr {table}, i64 {entry}")
        self.body.void(f"store ptr {address}, ptr {place}")

    def last_copy(self, frame: _Frame, carry: int, result: int) -> tuple[str, str, int]:
        _, base, pitch = frame.result(result)
        last = 0 if frame.is_reverse else frame.length - 1
        source = self.body.emit(f"getelementptr i8, ptr {base}, i64 {last * pitch}")
        return source, frame.results[carry], pitch


class _Frame:
    """Where a loop's step finds what: entries of its table, base addresses, and bytes from one slice to the next."""

    def __init__(self, step: Loop, operands: Sequence[str], results: Sequence[str]) -> None:
        self.plan, self.operands, self.results = step.plan, operands, results
        self.length, self.is_reverse = step.node.attrs["length"], step.node.attrs["reverse"]
        self.slices, self.body = step.node.attrs["slices"], step.node.attrs["body"]
        self.carries = len(self.body.state)
        self.back = read_back(self.body)

    def carry(self, number: int) -> int:
        return self.plan.entry(Address(Base.STATE, number))

    def result(self, number: int) -> tuple[int, str, int]:
        entry = self.plan.entry(Address(Base.OUTPUT, number))
        return entry, self.results[self.carries + number], self.body.outputs[number].type.nbytes

    def first_copies(self) -> Iterable[tuple[str, str, int]]:
        """(from, to, bytes) for each carry."""
        sizes = [value.type.nbytes for value in self.body.state]
        return zip(self.operands[: self.carries], self.results[: self.carries], sizes, strict=True)

    def fixed(self) -> Iterable[tuple[int, str]]:
        """Entries that stay the same: of carries that have a place, and of constants."""
        yield from ((self.carry(n), self.results[n]) for n in range(self.carries) if n not in self.back)
        for number, address in enumerate(self.operands[self.carries + self.slices :], self.slices):
            yield self.plan.entry(Address(Base.INPUT, number)), address

    def moving(self) -> Iterable[tuple[int, str, int]]:
        """Entries of slices and results."""
        stacks = zip(self.body.inputs[: self.slices], self.operands[self.carries :], strict=False)
        for number, (value, base) in enumerate(stacks):
            yield self.plan.entry(Address(Base.INPUT, number)), base, value.type.nbytes
        yield from (self.result(number) for number in range(len(self.body.outputs)))


def _is_check(step: Step | None) -> bool:
    return isinstance(step, Call) and step.is_check


def _bytes(buffer: Buffer) -> int:
    return aligned(prod(buffer.shape) * buffer.dtype.itemsize)


def _addresses(step: Call | Copy | Loop) -> Sequence[Address]:
    match step:
        case Copy():
            return step.source, step.target
        case Call():
            return *step.operands, *step.results, *([step.scratch.address] if step.scratch else [])
        case Loop():
            return *step.operands, *step.results, *step.constants, *([step.scratch.address] if step.scratch else [])
