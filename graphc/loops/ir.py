"""The loop IR, whole: what a kernel is once it is loops over memory.

Invariants, checked by `loops.verify`:
 1. every variable in an index is bound by an enclosing loop, every `Read` by an earlier `Let` in scope;
 2. for all values of the loop variables a load or store lies inside its buffer, or stands under conditions that
    exclude the rest (`If`, or a load's own `conditions`);
 3. inside a vector loop are only unrolled and serial ones, which all lanes walk together: one vector variable is in
    scope at most;
 4. parallel loops are outermost, under no condition, and no two of their iterations write the same element.

Semantics:
 - `Loop` runs its variable over 0 <= var < var.extent.  SERIAL in order.  UNROLLED the same, expanded by the emitter.
   VECTOR: all iterations in lock step, one lane each, `lanes` wide (extent < lanes: the rest is masked off).
   PARALLEL: iterations in any order, on any thread.
 - A `Store` or `Load` whose index has coefficient 1 in the vector variable is contiguous, 0 uniform, else a gather.
 - A `Reduce` whose target does not depend on the vector variable folds the lanes as a balanced tree
   (lane i with lane i + lanes/2, and so on), then combines the result with the target.
 - `Check` ends the step with `code` where its condition is false; nothing has been written to state by then.
 - floating-point: exactly the operations written, in the order written; fma only where `fma` is written.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from graphc.ir.index import Condition, Index, Var
from graphc.ir.source import Location
from graphc.ir.types import DType


class Space(enum.Enum):
    """Where a buffer lives."""

    INPUT = "in"
    OUTPUT = "out"
    LOCAL = "local"  # small, on the stack of the thread that runs the enclosing body; registers after unrolling
    SCRATCH = "scratch"  # from the arena, per kernel

    __hash__ = object.__hash__  # as of types.DType


class LoopKind(enum.Enum):
    SERIAL = "serial"
    PARALLEL = "parallel"
    VECTOR = "vector"
    UNROLLED = "unrolled"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A contiguous row-major array."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    space: Space


# Expressions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    value: float | int | bool
    dtype: DType


@dataclass(frozen=True, slots=True)
class Position:
    """The number `index` as a value (iota)."""

    index: Index
    dtype: DType


@dataclass(frozen=True, slots=True)
class Load:
    """`buffer[index]`, or `otherwise` where a condition fails (the load is not executed there)."""

    buffer: Buffer
    index: tuple[Index, ...]
    conditions: tuple[Condition, ...] = ()
    otherwise: float | int | bool = 0


@dataclass(frozen=True, slots=True)
class LoadAt:
    """A load whose position along `axis` is the integer expression `at`, clamped into range."""

    buffer: Buffer
    index: tuple[Index, ...]
    axis: int
    at: Expr


@dataclass(frozen=True, slots=True)
class Read:
    """A scalar bound by `Let`."""

    name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar op by name: every elementwise op of the table, and `fma`. `dtype` is the result's."""

    op: str
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class Select:
    """`then` where all conditions hold, else `otherwise`; both sides are safe to evaluate."""

    conditions: tuple[Condition, ...]
    then: Expr
    otherwise: Expr


Expr = Const | Position | Load | LoadAt | Read | Scalar | Select


# Statements --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loop:
    var: Var
    kind: LoopKind
    body: tuple[Stmt, ...]
    lanes: int = 1  # vector loops only; var.extent <= lanes


@dataclass(frozen=True, slots=True)
class Local:
    """Brings a LOCAL buffer into scope, uninitialised."""

    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Let:
    name: str
    value: Expr
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Store:
    buffer: Buffer
    index: tuple[Index, ...]
    value: Expr
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Reduce:
    """`buffer[index] = op(buffer[index], value)`, op one of add, mul, maximum, minimum, logical_and, logical_or."""

    op: str
    buffer: Buffer
    index: tuple[Index, ...]
    value: Expr
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class StoreAt:
    """Adds `value` to `buffer[..., at, ...]` (position `at` along `axis`); skipped where `at` is out of range."""

    buffer: Buffer
    index: tuple[Index, ...]
    axis: int
    at: Expr
    value: Expr
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Transpose:
    """Rows and columns of a square LOCAL buffer change places; its side is a power of two."""

    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Asks for the cache line of an element, which will soon be read; it may lie anywhere, as nothing changes."""

    buffer: Buffer
    index: tuple[Index, ...]


@dataclass(frozen=True, slots=True)
class If:
    conditions: tuple[Condition, ...]
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """Ends the step with status `code` (> 0) where `condition`, a bool expression, is false."""

    condition: Expr
    code: int


Stmt = Loop | Local | Let | Store | Reduce | StoreAt | Transpose | Prefetch | If | Check


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel: parameters (INPUT then OUTPUT, in order), SCRATCH buffers, body."""

    name: str
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    scratch: tuple[Buffer, ...]
    body: tuple[Stmt, ...]


def dtype_of(expr: Expr) -> DType:
    """The element type of an expression."""
    match expr:
        case Load(buffer) | LoadAt(buffer):
            return buffer.dtype
        case Select(_, then):
            return dtype_of(then)
        case Const() | Position() | Read() | Scalar():
            return expr.dtype
