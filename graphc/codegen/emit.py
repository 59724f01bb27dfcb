"""Loops to LLVM text, without deciding anything: what is written here was chosen by `loops.schedule`.

    SERIAL    a counted loop                UNROLLED  its body, once for each number
    VECTOR    its body once, on vectors     PARALLEL  as SERIAL; with `threaded`, the share of one thread

Invariants:
 1. no fast-math flag is written and `llvm.fma` only where the loops say `fma`;
 2. parameters are pointers, inputs then outputs then scratch, in order; outputs may lie where an input lies, scratch
    overlaps nothing. With `threaded` follow `ptr team, i64 tid, i64 threads`, and all threads call the function;
 3. a function with a `Check` returns i64, 0 or the code of the first that fails; any other returns nothing;
 4. threads share the iterations of parallel loops, or claim them (`codegen.claims`). Between the loops every thread
    computes locals for itself, thread 0 alone writes memory, and `void @barrier(ptr team)` is called where another
    thread's writes may be read, or what it still reads may be written over. Nobody waits at the end: that is the
    caller's; all have met before the call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from graphc.codegen import scalar
from graphc.codegen.claims import FEWEST, LOOPS, claims
from graphc.codegen.llvm import Body, Module, constant, llvm_type, memory_type
from graphc.codegen.memory import Element, Memory, Offset, Run, Spread
from graphc.codegen.numbers import Mask, Numbers
from graphc.errors import LoweringError
from graphc.ir.index import Condition, Index
from graphc.ir.types import DType
from graphc.loops.ir import (
    Buffer,
    Check,
    Const,
    Expr,
    Function,
    If,
    Let,
    Load,
    LoadAt,
    Local,
    Loop,
    LoopKind,
    Position,
    Prefetch,
    Read,
    Reduce,
    Scalar,
    Select,
    Space,
    Stmt,
    Store,
    StoreAt,
    Transpose,
)
from graphc.loops.target import Target
from graphc.loops.walk import declared, read, statements, written

ATTRIBUTES = 'nounwind "prefer-vector-width"="512" "min-legal-vector-width"="512"'
TEAM = ("ptr %team", "i64 %tid", "i64 %threads")  # further parameters of a threaded function
BARRIER = "declare void @barrier(ptr)"
# LLVM spends a quarter of its time on replacing the counters of loops by addresses. With vectors of 16 lanes that gains
# nothing, with 8 or 4 a hundredth of the time of a step. So from 16 on counters are hidden from it: it does not look
# through `expect`, which returns what it is given.
HIDDEN_FROM = 16


def emit(function: Function, target: Target, *, threaded: bool = False) -> str:
    """A module with this function alone."""
    return emit_module([function], target, threaded=threaded)


def emit_module(functions: Iterable[Function], target: Target, step: str = "", *, threaded: bool = False) -> str:
    """A module with the functions and the text of whatever calls them."""
    module = Module(target)
    for function in functions:
        add(function, module, threaded=threaded)
    if step:
        module.add(step)
    return str(module)


def add(function: Function, module: Module, *, threaded: bool = False) -> None:
    """Append the function, and what it needs, to a module."""
    emitter = _Emitter(function, module, threaded)
    module.add(emitter.function())


def returns_status(function: Function) -> bool:
    """Whether the function returns the code of a failed check, rather than nothing."""
    return any(isinstance(stmt, Check) for stmt in statements(function.body))


@dataclass(frozen=True, slots=True)
class _Value:
    """An operand; with `lanes` 1 the same in every lane."""

    operand: str
    dtype: DType
    lanes: int = 1


class _Emitter:
    def __init__(self, function: Function, module: Module, threaded: bool) -> None:
        self.kernel, self.threaded = function, threaded
        self.body = Body(module)
        self.numbers = Numbers(self.body)
        self.memory = Memory(self.body, self.numbers)
        self.mask = Mask((True,))
        self.reads: dict[str, _Value] = {}
        self.status = returns_status(function)
        self.claimed = 0  # loops that threads claim, since the last barrier
        self.widest = max((s.lanes for s in statements(function.body) if isinstance(s, Loop)), default=1)

    def function(self) -> str:
        kernel = self.kernel
        parameters = []
        for buffer in (*kernel.inputs, *kernel.outputs, *kernel.scratch):
            self.memory.base[buffer] = self.numbers.fixed(f"%p.{buffer.name}")
            trait = {Space.INPUT: " readonly", Space.SCRATCH: " noalias"}.get(buffer.space, "")
            parameters.append(f"ptr{trait} %p.{buffer.name}")
        if self.threaded:
            parameters.extend(TEAM)
            self.team(kernel.body)
        else:
            self.block(kernel.body)
        self.body.void("ret i64 0" if self.status else "ret void")
        result = "i64" if self.status else "void"
        head = f"define {result} @{kernel.name}({', '.join(parameters)}) {ATTRIBUTES} {{"
        return "\n".join([head, "entry:", *self.memory.slots, str(self.body), "}"])

    # Threads -------------------------------------------------------------------------------------------------

    def team(self, body: tuple[Stmt, ...]) -> None:
        """The outermost statements, divided among threads as invariant 4 says."""
        if not any(_is_parallel(stmt) for stmt in body) and _memory(written(body)):
            with self.memory.when(self.first_thread()):
                self.block(body)
            return
        pending: list[tuple[bool, set[Buffer], set[Buffer]]] = []  # since the last barrier: alone, read, written
        for stmt in body:
            reads, writes = _memory(read([stmt])), _memory(written([stmt]))
            alone, over = bool(writes) and not _is_parallel(stmt), writes | self.below(writes)
            needed = any(not (alone and before) and (w & (reads | writes) or r & over) for before, r, w in pending)
            if needed or self.claimed == LOOPS:
                self.body.module.declare(BARRIER)
                self.body.void("call void @barrier(ptr %team)")
                pending.clear()
                self.claimed = 0
            pending.append((alone, reads, writes))
            if alone and written([stmt]) - writes - declared([stmt]):
                raise LoweringError(f"kernel {self.kernel.name}: one loop writes memory and a local that outlives it")
            with self.memory.when(self.first_thread() if alone else None):
                self.step(stmt)

    def below(self, written: set[Buffer]) -> set[Buffer]:
        """The inputs that some of these buffers may lie over: outputs of the same type."""
        types = {(b.dtype, b.shape) for b in written if b.space is Space.OUTPUT}
        return {b for b in self.kernel.inputs if (b.dtype, b.shape) in types}

    def first_thread(self) -> str:
        return self.numbers.once(("first",), "icmp eq i64 %tid, 0")

    # Statements ----------------------------------------------------------------------------------------------

    def block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self.step(stmt)

    def step(self, stmt: Stmt) -> None:
        match stmt:
            case Loop():
                self.loop(stmt)
            case Local(buffer):
                self.memory.local(buffer, self.widest)
            case Let(name, value):
                self.reads[name] = found = self.value(value)
                self.numbers.keep(found.operand)
            case Store(buffer, index, value):
                self.store(buffer, index, self.value(value))
            case Reduce(op, buffer, index, value):
                self.reduce(op, buffer, index, None, self.value(value))
            case StoreAt():
                self.store_at(stmt)
            case Transpose(buffer):
                self.transpose(buffer)
            case Prefetch(buffer, index):
                self.prefetch(buffer, index)
            case If(conditions, body):
                self.branch(conditions, body)
            case Check(condition, code):
                self.check(self.value(condition), code)

    def loop(self, loop: Loop) -> None:
        numbers, var = self.numbers, loop.var
        match loop.kind:
            case LoopKind.VECTOR if loop.lanes > 1:
                numbers.vector, numbers.lanes = var, loop.lanes
                self.mask = Mask(tuple(lane < var.extent for lane in range(loop.lanes)))
                self.block(loop.body)
                numbers.vector, numbers.lanes, self.mask = None, 1, Mask((True,))
            case LoopKind.PARALLEL if self.threaded:
                self.shared(loop)
            case LoopKind.SERIAL | LoopKind.PARALLEL if var.extent > 1:
                self.counted(loop, "0", str(var.extent))
            case _:
                self.unrolled(loop)

    def shared(self, loop: Loop) -> None:
        """Of a loop of many iterations what this thread claims, a part after the other; of one of few its own piece:
        from extent * tid / threads to extent * (tid + 1) / threads."""
        if loop.var.extent >= FEWEST:
            with claims(self.body, self.claimed, loop.var.extent) as (start, stop), self.numbers.inner():
                self.counted(loop, start, stop)
            self.claimed += 1
            return
        following = self.numbers.once(("following",), "add nuw nsw i64 %tid, 1")
        ends = (self.body.emit(f"mul nuw nsw i64 {number}, {loop.var.extent}") for number in ("%tid", following))
        start, stop = (self.body.emit(f"udiv i64 {end}, %threads") for end in ends)
        with self.memory.when(self.body.emit(f"icmp ult i64 {start}, {stop}")):
            self.counted(loop, start, stop)

    def unrolled(self, loop: Loop) -> None:
        for number in range(loop.var.extent):
            self.numbers.known[loop.var] = number
            self.block(loop.body)
        self.numbers.known.pop(loop.var, None)

    def counted(self, loop: Loop, start: str, stop: str) -> None:
        """Runs at least once: start < stop."""
        body = self.body
        before, head, last = body.block, body.label("loop"), body.label("next")
        number, following = body.name("i"), body.name("i")
        ahead = body.reserve()
        body.void(f"br label %{head}")
        body.start(head)
        body.void(f"{number} = phi i64 [ {start}, %{before} ], [ {following}, %{last} ]")
        with self.numbers.inner(ahead):
            self.numbers.enter(loop.var, number)
            self.block(loop.body)
        body.void(f"br label %{last}")
        body.start(last)
        is_hidden = body.module.lanes >= HIDDEN_FROM
        more = body.name("i") if is_hidden else following
        body.void(f"{more} = add nuw nsw i64 {number}, 1")
        if is_hidden:
            body.module.declare("declare i64 @llvm.expect.i64(i64, i64)")
            body.void(f"{following} = call i64 @llvm.expect.i64(i64 {more}, i64 0)")
        goes_on, behind = body.emit(f"icmp ne i64 {following}, {stop}"), body.label("done")
        body.void(f"br i1 {goes_on}, label %{head}, label %{behind}")
        body.start(behind)

    def branch(self, conditions: tuple[Condition, ...], body: tuple[Stmt, ...]) -> None:
        shared = self.numbers.holds(conditions)
        if shared == "false":
            return
        with self.memory.when(shared):
            if self.numbers.vector is None:
                self.block(body)
                return
            outside = self.mask
            self.mask = self.numbers.masked(outside, conditions, shared=False)
            if not self.mask.empty:
                self.block(body)
            self.mask = outside

    def transpose(self, buffer: Buffer) -> None:
        """Rows are vectors; blocks of 1, 2, 4, … lanes beside the diagonal change places, in pairs of rows."""
        side, base, element = buffer.shape[0], self.memory.base[buffer], memory_type(buffer.dtype)
        kind = memory_type(buffer.dtype, side)
        places = [self.body.emit(f"getelementptr {element}, ptr {base}, i64 {row * side}") for row in range(side)]
        rows = [self.body.emit(f"load {kind}, ptr {place}, align 64") for place in places]
        block = side // 2
        while block:
            low = [lane if not lane & block else side + lane - block for lane in range(side)]
            high = [lane + block if not lane & block else side + lane for lane in range(side)]
            for row in (row for row in range(side) if not row & block):
                pair = f"{kind} {rows[row]}, {kind} {rows[row + block]}"
                rows[row], rows[row + block] = (self.shuffle(pair, order) for order in (low, high))
            block //= 2
        for vector, place in zip(rows, places, strict=True):
            self.body.void(f"store {kind} {vector}, ptr {place}, align 64")

    def prefetch(self, buffer: Buffer, index: tuple[Index, ...]) -> None:
        """To read, into all caches; of a vector the line in which it begins."""
        place = self.memory.place(buffer, index)
        assert isinstance(place, Element | Run)
        self.body.module.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.body.void(f"call void @llvm.prefetch.p0(ptr {place.pointer}, i32 0, i32 3, i32 1)")

    def shuffle(self, pair: str, order: list[int]) -> str:
        lanes = ", ".join(f"i32 {lane}" for lane in order)
        return self.body.emit(f"shufflevector {pair}, <{len(order)} x i32> <{lanes}>")

    def check(self, condition: _Value, code: int) -> None:
        fine, failed = self.body.label("fine"), self.body.label("failed")
        self.body.void(f"br i1 {condition.operand}, label %{fine}, label %{failed}")
        self.body.start(failed)
        self.body.void(f"ret i64 {code}")
        self.body.start(fine)

    # Writing -------------------------------------------------------------------------------------------------

    def store(self, buffer: Buffer, index: tuple[Index, ...], value: _Value) -> None:
        place = self.memory.place(buffer, index)
        if isinstance(place, Element):
            with self.memory.when(self.numbers.some(self.mask)):
                self.memory.put(buffer.dtype, place, value.operand)
            return
        self.memory.put_vector(buffer, place, self.spread(value), self.mask)

    def reduce(self, op: str, buffer: Buffer, index: tuple[Index, ...], offset: Offset | None, value: _Value) -> None:
        """Combine with an element, with a vector of them, or lane after lane where lanes may meet."""
        dtype = buffer.dtype
        place = self.memory.place(buffer, index, offset)
        match place:
            case Element():
                folded = self.fold(op, value) if self.numbers.vector is not None else value.operand
                with self.memory.when(self.numbers.some(self.mask)):
                    self.accumulate(op, dtype, place, folded)
            case Spread(distinct=False):
                self.each_lane(op, dtype, place, self.spread(value), self.mask)
            case Run() | Spread():
                before = self.memory.vector(buffer, place, self.mask, 0)
                result = self.scalar(op, [before, self.spread(value)], dtype, self.numbers.lanes)
                self.memory.put_vector(buffer, place, result, self.mask)

    def accumulate(self, op: str, dtype: DType, place: Element, value: str) -> None:
        before = self.memory.element(dtype, place, None, 0)
        self.memory.put(dtype, place, self.scalar(op, [before, value], dtype, 1))

    def fold(self, op: str, value: _Value) -> str:
        """A balanced tree over the lanes; those that are masked off hold the identity, which changes no bit."""
        dtype, lanes = value.dtype, self.numbers.lanes
        vector = self.spread(value)
        if not self.mask.full:
            kind, bits = llvm_type(dtype, lanes), llvm_type(DType.BOOL, lanes)
            neutral = constant(_identity(op, dtype), dtype, lanes)
            vector = self.body.emit(f"select {bits} {self.mask.operand}, {kind} {vector}, {kind} {neutral}")
        while lanes > 1:
            low, high = (self.half(vector, dtype, lanes, first) for first in (0, lanes // 2))
            lanes //= 2
            vector = self.scalar(op, [low, high], dtype, lanes)
        return vector

    def half(self, vector: str, dtype: DType, lanes: int, first: int) -> str:
        kind = llvm_type(dtype, lanes)
        if lanes == 2:
            return self.body.emit(f"extractelement {kind} {vector}, i64 {first}")
        order = ", ".join(f"i32 {first + lane}" for lane in range(lanes // 2))
        return self.body.emit(f"shufflevector {kind} {vector}, {kind} poison, <{lanes // 2} x i32> <{order}>")

    def store_at(self, stmt: StoreAt) -> None:
        buffer, extent = stmt.buffer, stmt.buffer.shape[stmt.axis]
        at, value = self.value(stmt.at), self.value(stmt.value)
        wide = self.convert(at, DType.I64)
        kind, limit = llvm_type(DType.I64, wide.lanes), constant(extent, DType.I64, wide.lanes)
        inside = self.body.emit(f"icmp ult {kind} {wide.operand}, {limit}")
        offset = self.scaled(wide, buffer, stmt.axis)
        if wide.lanes == 1:
            with self.memory.when(inside):
                self.reduce("add", buffer, stmt.index, offset, value)
            return
        mask = self.mask
        bits = llvm_type(DType.BOOL, wide.lanes)
        if not mask.full:
            inside = self.body.emit(f"and {bits} {inside}, {mask.operand}")
        place = self.memory.place(buffer, stmt.index, offset)
        assert isinstance(place, Spread)
        self.each_lane("add", buffer.dtype, place, self.spread(value), Mask(mask.live, inside))

    def each_lane(self, op: str, dtype: DType, place: Spread, value: str, mask: Mask) -> None:
        lanes = self.numbers.lanes
        for lane in (lane for lane, live in enumerate(mask.live) if live):
            condition = None
            if mask.runtime:
                bits = llvm_type(DType.BOOL, lanes)
                condition = self.body.emit(f"extractelement {bits} {mask.runtime}, i64 {lane}")
            with self.memory.when(condition):
                kind = llvm_type(dtype, lanes)
                pointer = self.body.emit(f"extractelement <{lanes} x ptr> {place.pointers}, i64 {lane}")
                element = self.body.emit(f"extractelement {kind} {value}, i64 {lane}")
                self.accumulate(op, dtype, Element(pointer), element)

    # Expressions ---------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> _Value:
        match expr:
            case Const(value, dtype):
                return _Value(constant(value, dtype), dtype)
            case Position(index, dtype):
                return self.convert(self.number(self.numbers.resolve(index)), dtype)
            case Load():
                return self.load(expr)
            case LoadAt():
                return self.load_at(expr)
            case Read(name):
                return self.reads[name]
            case Scalar(op, args, dtype):
                values = [self.value(arg) for arg in args]
                lanes = max(value.lanes for value in values)
                operands = [self.spread(v) if lanes > 1 else v.operand for v in values]
                result = scalar.emit(self.body, op, operands, [v.dtype for v in values], dtype, lanes)
                return _Value(result, dtype, lanes)
            case Select():
                return self.select(expr)

    def number(self, index: Index) -> _Value:
        if not self.numbers.varies(index):
            return _Value(self.numbers.uniform(index), DType.I64)
        operand, dtype = self.numbers.varying(index)
        return _Value(operand, dtype, self.numbers.lanes)

    def load(self, load: Load) -> _Value:
        dtype, numbers = load.buffer.dtype, self.numbers
        if numbers.vector is None:
            return self.load_one(load, self.mask)
        mask = numbers.masked(self.mask, load.conditions, shared=True)
        if mask.empty:
            return _Value(constant(load.otherwise, dtype), dtype)
        place = self.memory.place(load.buffer, load.index)
        if isinstance(place, Run):
            flag, mask = numbers.holds(load.conditions), numbers.masked(self.mask, load.conditions, shared=False)
            place = self.memory.instead(dtype, place, flag, load.otherwise)
        if not isinstance(place, Element):
            return _Value(self.memory.vector(load.buffer, place, mask, load.otherwise), dtype, numbers.lanes)
        if not numbers.vary(load.conditions):
            return self.load_one(load, self.mask)
        found = self.memory.element(dtype, place, numbers.some(mask), load.otherwise)
        other = _Value(constant(load.otherwise, dtype), dtype)
        return self.choose(mask.operand, _Value(found, dtype), other)

    def load_one(self, load: Load, mask: Mask) -> _Value:
        """A load that is the same in every lane."""
        dtype = load.buffer.dtype
        flag = self.numbers.holds(load.conditions)
        if flag == "false":
            return _Value(constant(load.otherwise, dtype), dtype)
        some = self.numbers.some(mask)
        place = self.memory.place(load.buffer, load.index)
        assert isinstance(place, Element)
        if flag and some:
            flag = self.body.emit(f"and i1 {flag}, {some}")
        return _Value(self.memory.element(dtype, place, flag or some, load.otherwise), dtype)

    def load_at(self, load: LoadAt) -> _Value:
        buffer, dtype = load.buffer, load.buffer.dtype
        at = self.convert(self.value(load.at), DType.I64)
        last = constant(buffer.shape[load.axis] - 1, DType.I64, at.lanes)
        low = self.scalar("maximum", [at.operand, constant(0, DType.I64, at.lanes)], DType.I64, at.lanes)
        clamped = _Value(self.scalar("minimum", [low, last], DType.I64, at.lanes), DType.I64, at.lanes)
        offset = self.scaled(clamped, buffer, load.axis)
        place = self.memory.place(buffer, load.index, offset)
        if isinstance(place, Element):
            condition = self.numbers.some(self.mask) if self.numbers.vector is not None else None
            return _Value(self.memory.element(dtype, place, condition, 0), dtype)
        return _Value(self.memory.vector(buffer, place, self.mask, 0), dtype, self.numbers.lanes)

    def select(self, select: Select) -> _Value:
        then, otherwise = self.value(select.then), self.value(select.otherwise)
        if self.numbers.vary(select.conditions):
            mask = self.numbers.masked(Mask((True,) * self.numbers.lanes), select.conditions, shared=True)
            if mask.full or mask.empty:
                return then if mask.full else otherwise
            return self.choose(mask.operand, then, otherwise)
        flag = self.numbers.holds(select.conditions)
        if flag is None or flag == "false":
            return then if flag is None else otherwise
        lanes = max(then.lanes, otherwise.lanes)
        kind = llvm_type(then.dtype, lanes)
        a, b = (v.operand if lanes == 1 else self.spread(v) for v in (then, otherwise))
        return _Value(self.body.emit(f"select i1 {flag}, {kind} {a}, {kind} {b}"), then.dtype, lanes)

    def choose(self, bits: str, then: _Value, otherwise: _Value) -> _Value:
        """Lane by lane."""
        lanes = self.numbers.lanes
        kind, mask = llvm_type(then.dtype, lanes), llvm_type(DType.BOOL, lanes)
        chosen = f"select {mask} {bits}, {kind} {self.spread(then)}, {kind} {self.spread(otherwise)}"
        return _Value(self.body.emit(chosen), then.dtype, lanes)

    # Operands ------------------------------------------------------------------------------------------------

    def spread(self, value: _Value) -> str:
        """The operand with one element for each lane."""
        if value.lanes == self.numbers.lanes:
            return value.operand
        return self.numbers.splat(value.operand, value.dtype)

    def convert(self, value: _Value, dtype: DType) -> _Value:
        operand = scalar.emit(self.body, "convert", [value.operand], [value.dtype], dtype, value.lanes)
        return _Value(operand, dtype, value.lanes)

    def scalar(self, op: str, args: list[str], dtype: DType, lanes: int) -> str:
        return scalar.emit(self.body, op, args, [dtype] * len(args), dtype, lanes)

    def scaled(self, at: _Value, buffer: Buffer, axis: int) -> Offset:
        """How far from index 0 along `axis` an element is."""
        stride = math.prod(buffer.shape[axis + 1 :])
        if stride == 1:
            return Offset(at.operand, at.lanes > 1)
        kind, by = llvm_type(DType.I64, at.lanes), constant(stride, DType.I64, at.lanes)
        return Offset(self.body.emit(f"mul nsw {kind} {at.operand}, {by}"), at.lanes > 1)


def _is_parallel(stmt: Stmt) -> bool:
    return isinstance(stmt, Loop) and stmt.kind is LoopKind.PARALLEL


def _memory(buffers: Iterable[Buffer]) -> set[Buffer]:
    """Those that threads share."""
    return {buffer for buffer in buffers if buffer.space is not Space.LOCAL}


def _identity(op: str, dtype: DType) -> float | int | bool:
    """What combines with every value to that value, to the bit."""
    least: float | int = -math.inf if dtype.is_float else -(1 << (8 * dtype.itemsize - 1))
    most: float | int = math.inf if dtype.is_float else -int(least) - 1 if dtype.is_int else 1
    table: dict[str, float | int | bool] = {
        "add": -0.0 if dtype.is_float else 0,
        "mul": 1,
        "maximum": least if dtype is not DType.BOOL else False,
        "minimum": most,
        "logical_and": True,
        "logical_or": False,
    }
    return table[op]
