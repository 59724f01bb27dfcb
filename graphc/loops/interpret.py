"""The loop IR run by NumPy, one scalar iteration at a time: slow, and exactly what `loops.ir` says.

The second oracle: where it differs from the reference a kernel was lowered wrongly, where native code differs from it
the emitter is wrong. Outputs, scratch and locals start out poisoned (NaN, or the lowest integer), positions outside
a buffer raise, and so does an element that two iterations of a parallel loop touch, one of them writing.

A value is a NumPy scalar, or an array with one element per lane of the vector loop around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np

import graphc.ops  # noqa: F401  fills the op table
from graphc.errors import GraphcError, VerifyError
from graphc.ir.index import Condition, Div, Index, Mod, Var
from graphc.ir.op import OPS
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
    Stmt,
    Store,
    StoreAt,
    Transpose,
)

Array = np.ndarray[Any, Any]


class CheckFailed(GraphcError, RuntimeError):
    """A `Check` did not hold; `code` is its status."""

    def __init__(self, name: str, code: int) -> None:
        self.code = code
        super().__init__(f"kernel {name}: check failed with code {code}")


def run(function: Function, inputs: Sequence[Any] | Mapping[str, Any]) -> tuple[Array, ...]:
    """The outputs for input arrays in order, or by buffer name; any shape with the right number of elements.

    Raises CheckFailed where a check does not hold, and VerifyError for an access outside a buffer or a race.
    """
    given = [inputs[b.name] for b in function.inputs] if isinstance(inputs, Mapping) else list(inputs)
    machine = _Machine(function.name)
    for buffer, value in zip(function.inputs, given, strict=True):
        array = np.array(value, buffer.dtype.numpy)
        machine.memory[buffer] = _Memory(buffer, array.reshape(-1))
    for buffer in (*function.outputs, *function.scratch):
        machine.allocate(buffer)
    with np.errstate(all="ignore"):
        machine.block(function.body)
    return tuple(machine.memory[b].data.reshape(b.shape) for b in function.outputs)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a*b+c rounded once, for scalars or arrays of float32 or float64."""
    a, b, c = np.broadcast_arrays(a, b, c)
    if a.dtype == np.float32:
        with np.errstate(all="ignore"):
            return _fma32(a.astype(np.float64), b.astype(np.float64), c.astype(np.float64))[()]
    return np.array([_fma64(*map(float, t)) for t in zip(a.flat, b.flat, c.flat, strict=True)]).reshape(a.shape)[()]


def _fma32(a: Array, b: Array, c: Array) -> Array:
    """The product is exact in float64; the sum is rounded to odd, so that rounding it to float32 is right
    (Boldo and Melquiond, Emulation of a FMA and correctly rounded sums, 2008)."""
    product = a * b
    total = np.asarray(product + c)
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (total.view(np.int64) & 1) == 0
    nudge = np.isfinite(total) & (error != 0) & even
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where(nudge, np.nextafter(total, toward), total).astype(np.float32)


def _fma64(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c  # also where a * b would overflow
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


@dataclass
class _Memory:
    """A flat buffer, and for each element the parallel iterations (plus one) that last wrote and read it."""

    buffer: Buffer
    data: Array
    writer: Array = field(init=False)
    reader: Array = field(init=False)

    def __post_init__(self) -> None:
        self.writer = np.zeros(self.data.shape, np.int64)
        self.reader = np.zeros(self.data.shape, np.int64)


@dataclass
class _Machine:
    name: str
    memory: dict[Buffer, _Memory] = field(default_factory=dict)
    numbers: dict[Var, Any] = field(default_factory=dict)
    reads: dict[str, Any] = field(default_factory=dict)
    lanes: int = 0  # of the vector loop that is running
    active: Array | None = None  # its lanes for which all conditions around hold
    iteration: int = 0  # of the parallel loop that is running, from 1

    def allocate(self, buffer: Buffer) -> None:
        size = int(np.prod(buffer.shape, dtype=np.int64))
        self.memory[buffer] = _Memory(buffer, np.full(size, _poison(buffer.dtype), buffer.dtype.numpy))

    # Statements ----------------------------------------------------------------------------------------------

    def block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self.step(stmt)

    def step(self, stmt: Stmt) -> None:
        match stmt:
            case Loop():
                self.loop(stmt)
            case Local(buffer):
                self.allocate(buffer)
            case Let(name, value):
                self.reads[name] = self.value(value)
            case Store(buffer, index, value):
                self.store(buffer, self.offset(buffer, index), self.value(value))
            case Reduce(op, buffer, index, value):
                self.reduce(op, buffer, index, self.value(value))
            case StoreAt(buffer, index, axis, at, value):
                self.store_at(buffer, index, axis, self.value(at), self.value(value))
            case Transpose(buffer):
                data = self.memory[buffer].data
                data[:] = data.reshape(buffer.shape).T.flatten()
            case Prefetch():
                pass
            case If(conditions, inner):
                self.branch(conditions, inner)
            case Check(condition, code):
                if not np.all(self.value(condition)):
                    raise CheckFailed(self.name, code)

    def loop(self, loop: Loop) -> None:
        var = loop.var
        if loop.kind is LoopKind.VECTOR:
            self.numbers[var], self.lanes = np.arange(var.extent), var.extent
            self.active = np.ones(var.extent, bool)
            self.block(loop.body)
            self.active, self.lanes = None, 0
            return
        for number in range(var.extent):
            self.numbers[var] = number
            if loop.kind is LoopKind.PARALLEL:
                self.iteration = number + 1
            self.block(loop.body)
        if loop.kind is LoopKind.PARALLEL:
            self.iteration = 0
            for memory in self.memory.values():
                memory.writer[:] = memory.reader[:] = 0

    def branch(self, conditions: tuple[Condition, ...], body: tuple[Stmt, ...]) -> None:
        holds = self.all(conditions)
        if np.ndim(holds) == 0:
            if holds:
                self.block(body)
            return
        assert self.active is not None
        outside = self.active
        self.active = outside & holds
        self.block(body)
        self.active = outside

    def store(self, buffer: Buffer, offset: Any, value: Any) -> None:
        """Later lanes win where several write one element."""
        if np.ndim(offset) == 0 and np.ndim(value) == 0:
            if self.active is None or self.active.any():
                self.write(buffer, np.asarray([offset]), value)
            return
        assert self.active is not None
        offset, value = np.broadcast_to(offset, self.lanes), np.broadcast_to(value, self.lanes)
        for lane in np.flatnonzero(self.active):
            self.write(buffer, offset[lane : lane + 1], value[lane])

    def reduce(self, op: str, buffer: Buffer, index: tuple[Index, ...], value: Any) -> None:
        offset = self.offset(buffer, index)
        if self.active is None:
            self.combine(op, buffer, np.asarray([offset]), value)
            return
        value = np.broadcast_to(value, self.lanes)
        if np.ndim(offset) == 0:
            if self.active.any():
                self.combine(op, buffer, np.asarray([offset]), self.fold(op, value))
            return
        for lane in np.flatnonzero(self.active):
            self.combine(op, buffer, offset[lane : lane + 1], value[lane])

    def combine(self, op: str, buffer: Buffer, offset: Array, value: Any) -> None:
        self.write(buffer, offset, OPS[op].evaluate(self.read(buffer, offset)[0], value))  # type: ignore[misc]

    def fold(self, op: str, value: Array) -> Any:
        """A balanced tree over the lanes; a lane that is masked off adds nothing."""
        assert self.active is not None
        width = 1 << (self.lanes - 1).bit_length()
        level: list[Any] = [value[i] if self.active[i] else None for i in range(self.lanes)]
        while width > 1:
            width //= 2
            level = [_join(op, a, b) for a, b in zip_longest(level[:width], level[width:])]
        return level[0]

    def store_at(self, buffer: Buffer, index: tuple[Index, ...], axis: int, at: Any, value: Any) -> None:
        extent = buffer.shape[axis]
        inside = (at >= 0) & (at < extent)
        offset = self.offset(buffer, index) + np.clip(at, 0, extent - 1) * _stride(buffer, axis)
        if self.active is None:
            if inside:
                self.combine("add", buffer, np.asarray([offset]), value)
            return
        offset, inside = np.broadcast_to(offset, self.lanes), np.broadcast_to(inside, self.lanes)
        value = np.broadcast_to(value, self.lanes)
        for lane in np.flatnonzero(self.active & inside):
            self.combine("add", buffer, offset[lane : lane + 1], value[lane])

    # Memory --------------------------------------------------------------------------------------------------

    def offset(self, buffer: Buffer, index: tuple[Index, ...]) -> Any:
        """Position in the flat buffer; -1 where an index is outside its dimension."""
        flat: Any = 0
        inside: Any = True
        for place, extent in zip(index, buffer.shape, strict=True):
            number = self.number(place)
            inside = inside & (number >= 0) & (number < extent)
            flat = flat * extent + number
        return np.where(inside, flat, -1)[()]

    def write(self, buffer: Buffer, offset: Array, value: Any) -> None:
        memory = self.memory[buffer]
        self.inside(buffer, offset)
        self.exclusive(memory.writer, offset, buffer)
        self.exclusive(memory.reader, offset, buffer)
        memory.writer[offset] = self.iteration
        memory.data[offset] = value

    def read(self, buffer: Buffer, offset: Array) -> Array:
        memory = self.memory[buffer]
        self.inside(buffer, offset)
        self.exclusive(memory.writer, offset, buffer)
        memory.reader[offset] = self.iteration
        return memory.data[offset]

    def inside(self, buffer: Buffer, offset: Array) -> None:
        if (offset < 0).any():
            raise VerifyError(f"kernel {self.name}: access outside {buffer.name}[{buffer.shape}] at {self.numbers}")

    def exclusive(self, owner: Array, offset: Array, buffer: Buffer) -> None:
        if self.iteration and not np.isin(owner[offset], (0, self.iteration)).all():
            raise VerifyError(f"kernel {self.name}: two iterations of a parallel loop meet in {buffer.name}")

    # Expressions ---------------------------------------------------------------------------------------------

    def value(self, expr: Expr) -> Any:
        match expr:
            case Const(value, dtype):
                return dtype.numpy.type(value)
            case Position(index, dtype):
                return np.asarray(self.number(index)).astype(dtype.numpy)[()]
            case Load(buffer, index, conditions, otherwise):
                return self.load(buffer, self.offset(buffer, index), self.all(conditions), otherwise)
            case LoadAt(buffer, index, axis, at):
                place = np.clip(np.asarray(self.value(at)).astype(np.int64), 0, buffer.shape[axis] - 1)
                offset = self.offset(buffer, index) + place * _stride(buffer, axis)
                return self.load(buffer, offset[()], True, 0)
            case Read(name):
                return self.reads[name]
            case Scalar(op, args, dtype):
                return _scalar(op, [self.value(arg) for arg in args], dtype)
            case Select(conditions, then, otherwise):
                return np.where(self.all(conditions), self.value(then), self.value(otherwise))[()]

    def load(self, buffer: Buffer, offset: Any, holds: Any, otherwise: float | int | bool) -> Any:
        """Lanes that are masked off read nothing; their value is never used."""
        other = buffer.dtype.numpy.type(otherwise)
        if np.ndim(offset) == 0 and np.ndim(holds) == 0:
            wanted = bool(holds) and (self.active is None or bool(self.active.any()))
            return self.read(buffer, np.asarray([offset]))[0] if wanted else other
        assert self.active is not None
        lanes = np.broadcast_to(holds, self.lanes) & self.active
        result = np.full(self.lanes, other)
        result[lanes] = self.read(buffer, np.broadcast_to(offset, self.lanes)[lanes])
        return result

    def all(self, conditions: tuple[Condition, ...]) -> Any:
        holds: Any = True
        for condition in conditions:
            number = self.number(condition.index)
            holds = holds & (number == 0 if condition.equal else number >= 0)
        return holds

    def number(self, index: Index) -> Any:
        total: Any = index.const
        for atom, factor in index.terms:
            match atom:
                case Var():
                    total = total + factor * self.numbers[atom]
                case Div(inner, divisor):
                    total = total + factor * (self.number(inner) // divisor)
                case Mod(inner, divisor):
                    total = total + factor * (self.number(inner) % divisor)
        return total


def _scalar(op: str, args: list[Any], dtype: DType) -> Any:
    if op == "fma":
        return fma(*args)
    evaluate: Callable[..., Any] = OPS[op].evaluate  # type: ignore[assignment]
    attrs = {"dtype": dtype} if op == "convert" else {}
    return np.asarray(evaluate(*np.broadcast_arrays(*args), **attrs)).astype(dtype.numpy)[()]


def _join(op: str, a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return OPS[op].evaluate(a, b)  # type: ignore[misc]


def _stride(buffer: Buffer, axis: int) -> int:
    return int(np.prod(buffer.shape[axis + 1 :], dtype=np.int64))


def _poison(dtype: DType) -> Any:
    if dtype.is_float:
        return np.nan
    return np.iinfo(dtype.numpy).min if dtype.is_int else True
