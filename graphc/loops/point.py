"""One element at a time: the pointwise part of a kernel body becomes expressions.

`Point.at(value, index)` is the element of a value at an index, by recursion through elementwise, generator and movement
nodes down to loads of the kernel's inputs. Reductions and contractions are barriers: the caller says what to read.

Invariants:
 1. each element is computed once per scope: results are bound by `Let` and remembered by (value, position, conditions);
 2. a `Let` stands in the outermost loop that binds the variables it needs, but never above an `If`, and loads of
    memory that the kernel itself writes stay where they were asked for;
 3. a load reached through conditions (padding, concatenation) carries them, so evaluating it is always safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Condition, Index, Var, flatten, unflatten
from graphc.ir.op import Elementwise, Generator, Movement, Opaque
from graphc.ir.source import Location
from graphc.ir.types import DType
from graphc.loops.ir import (
    Buffer,
    Const,
    Expr,
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
    Transpose,
    dtype_of,
)
from graphc.passes.forms import splat

Barrier = Callable[[tuple[Index, ...]], Expr | None]  # None: not known at this index, compute it


@dataclass(frozen=True, slots=True)
class Access:
    """A load of a kernel's input at a flat position, safe where conditions hold."""

    value: Value
    place: Index
    conditions: tuple[Condition, ...]


_Key = tuple[Value, tuple[Index, ...], tuple[Condition, ...]]


@dataclass
class _Scope:
    statements: list[Stmt] = field(default_factory=list)
    memo: dict[_Key, Expr] = field(default_factory=dict)
    fence: bool = False


class Point:
    """Builds statements; `at` gives elements, `loop` and `when` open scopes.

    `substitution` says what an index variable of the body's space is in terms of loop variables. It is applied to every
    flat position, so an axis that runs together with its neighbour may stand for both of them.
    """

    def __init__(self, buffers: Mapping[Value, Buffer]) -> None:
        self.buffers = buffers
        self.barriers: dict[Value, Barrier] = {}
        self.substitution: dict[Var, Index] = {}
        self.accesses: list[Index] = []  # every flat position that was read or written, before substitution
        self.loads: list[Access] = []  # those of inputs
        self.uses: list[Index] = []  # every index that was used as a number or in a condition
        self._scopes = [_Scope()]
        self._depths: dict[Var | str, int] = {}
        self._count = 0

    @property
    def statements(self) -> list[Stmt]:
        """Of the innermost open scope."""
        return self._scopes[-1].statements

    # Scopes --------------------------------------------------------------------------------------------------

    def name(self, prefix: str) -> str:
        """A name not used before in this kernel."""
        self._count += 1
        return f"{prefix}{self._count - 1}"

    @contextmanager
    def loop(
        self, prefix: str, extent: int, kind: LoopKind = LoopKind.SERIAL, lanes: int = 1, *, keep: bool = False
    ) -> Iterator[Index]:
        """A loop over `extent` around what is emitted inside; one iteration needs no loop unless told to `keep` it,
        none emits nothing."""
        if extent == 1 and not keep:
            yield ZERO
            return
        variable = Var(self.name(prefix), extent)
        self._scopes.append(_Scope())
        self._depths[variable] = len(self._scopes) - 1
        yield Index(0, ((variable, 1),))
        body = tuple(self._scopes.pop().statements)
        if body and extent:
            self.statements.append(Loop(variable, kind, body, lanes))

    @contextmanager
    def section(self) -> Iterator[None]:
        """Forgets, afterwards, the elements computed inside: barriers may have other results there than elsewhere."""
        self._scopes.append(_Scope())
        yield
        statements = self._scopes.pop().statements
        self.statements.extend(statements)

    @contextmanager
    def when(self, conditions: tuple[Condition, ...]) -> Iterator[None]:
        """`If` around what is emitted inside, unless the conditions are known to hold."""
        conditions = tuple(c for c in map(self._substituted, conditions) if c.known is not True)
        if not conditions:
            yield
            return
        self._scopes.append(_Scope(fence=True))
        yield
        body = tuple(self._scopes.pop().statements)
        if body:
            self.statements.append(If(conditions, body))

    @contextmanager
    def where(self, substitution: Mapping[Var, Index]) -> Iterator[None]:
        """Index variables stand for other indices inside."""
        before = self.substitution
        self.substitution = {**before, **substitution}
        yield
        self.substitution = before

    @contextmanager
    def knowing(self, barriers: Mapping[Value, Barrier]) -> Iterator[None]:
        """Further barriers inside."""
        before = self.barriers
        self.barriers = {**before, **barriers}
        yield
        self.barriers = before

    def local(self, prefix: str, dtype: DType, *shape: int) -> Buffer:
        """A LOCAL buffer, in scope from here to the end of the enclosing loop."""
        buffer = Buffer(self.name(prefix), dtype, shape, Space.LOCAL)
        self.statements.append(Local(buffer))
        return buffer

    def store(self, buffer: Buffer, index: Index, value: Expr, location: Location | None = None) -> None:
        """`buffer[index] = value`, for a flat buffer."""
        self.statements.append(Store(buffer, self._place(buffer, self._record(index)), value, location))

    def reduce(self, op: str, buffer: Buffer, index: Index, value: Expr, location: Location | None = None) -> None:
        """`buffer[index] = op(buffer[index], value)`, for a flat buffer."""
        self.statements.append(Reduce(op, buffer, self._place(buffer, self._record(index)), value, location))

    def transpose(self, buffer: Buffer) -> None:
        """Rows and columns of a square local change places."""
        self.statements.append(Transpose(buffer))

    def prefetch(self, buffer: Buffer, index: Index) -> None:
        """Ask for an element of a flat buffer that is read later."""
        self.statements.append(Prefetch(buffer, self._place(buffer, index)))

    def load(self, buffer: Buffer, index: Index, conditions: tuple[Condition, ...] = ()) -> Expr:
        """The element of a flat buffer; zero where a condition fails."""
        zero = 0.0 if buffer.dtype.is_float else 0
        live = tuple(c for c in map(self._substituted, conditions) if c.known is not True)
        if any(condition.known is False for condition in live):
            return Const(zero, buffer.dtype)
        return self.let(Load(buffer, self._place(buffer, self._record(index)), live, zero if live else 0))

    def let(self, expr: Expr, location: Location | None = None) -> Expr:
        """Bind an expression in the outermost scope where it may stand."""
        return expr if isinstance(expr, Const | Read) else self._bind(expr, location)[0]

    # Elements ------------------------------------------------------------------------------------------------

    def at(self, value: Value, index: tuple[Index, ...], conditions: tuple[Condition, ...] = ()) -> Expr:
        """The element of `value` at `index`, computed only where `conditions` make its loads safe."""
        key = (value, tuple(self._where(i) for i in index), tuple(map(self._substituted, conditions)))
        for scope in reversed(self._scopes):
            if key in scope.memo:
                return scope.memo[key]
        known = self.barriers[value](index) if value in self.barriers else None
        expr = self._settle(known) if known is not None else self._compute(value, index, conditions)
        if isinstance(expr, Const | Read):
            depth = self._depth(expr)
        else:
            expr, depth = self._bind(expr, location(value))
        self._scopes[depth].memo[key] = expr
        return expr

    def _compute(self, value: Value, index: tuple[Index, ...], conditions: tuple[Condition, ...]) -> Expr:
        node = value.node
        if node is None:
            return self._input(value, index, conditions, 0)
        match node.op.kind:
            case Generator():
                return self._generate(node, index)
            case Elementwise():
                args = tuple(self.at(operand, index, conditions) for operand in node.inputs)
                return Scalar(node.op.name, args, value.dtype)
            case Movement():
                return self._move(node, index, conditions)
            case Opaque() if node.op.name == "gather":
                return self._gather(node, index)
        raise LoweringError(f"no element of {node.op.name} can be computed by itself", node.location)

    def _generate(self, node: Node, index: tuple[Index, ...]) -> Expr:
        if "value" in node.attrs:
            number = splat(node.attrs["value"])
            if number is not None:
                return Const(number, node.output.dtype)
        elif "axis" in node.attrs:
            position = index[node.attrs["axis"]]
            self.uses.append(position)
            return Position(self._where(position), node.output.dtype)
        raise LoweringError(f"{node.op.name} has no element as a function of its position", node.location)

    def _move(self, node: Node, index: tuple[Index, ...], conditions: tuple[Condition, ...]) -> Expr:
        kind = node.op.kind
        assert isinstance(kind, Movement)
        fill = node.output.dtype.numpy.type(kind.fill(node)).item()
        result: Expr = Const(fill, node.output.dtype)
        for piece in reversed(kind.index_map(node, index)):
            self.uses.extend(condition.index for condition in piece.conditions)
            live = tuple(c for c in map(self._substituted, piece.conditions) if c.known is not True)
            if any(condition.known is False for condition in live):
                continue
            operand = node.inputs[piece.operand]
            if not live:
                result = self.at(operand, piece.index, conditions)
            elif operand in self.buffers and operand not in self.barriers and isinstance(result, Const):
                result = self._input(operand, piece.index, (*conditions, *live), result.value)
            else:
                then = self.at(operand, piece.index, (*conditions, *live))
                result = Select(live, then, self.let(result))
        return result

    def _input(
        self, value: Value, index: tuple[Index, ...], conditions: tuple[Condition, ...], otherwise: float | int | bool
    ) -> Expr:
        buffer = self.buffers[value]
        flat = flatten(index, value.type.extents)
        self.accesses.append(flat)
        self.loads.append(Access(value, flat, conditions))
        place = tuple(map(self._where, index)) if buffer.shape == value.type.extents else self._place(buffer, flat)
        return Load(buffer, place, tuple(dict.fromkeys(map(self._substituted, conditions))), otherwise)

    def _gather(self, node: Node, index: tuple[Index, ...]) -> Expr:
        data, indices = node.inputs
        axis, behind = node.attrs["axis"], node.attrs["axis"] + indices.type.rank
        at = self.at(indices, index[axis:behind])
        outer = flatten(index[:axis], data.type.extents[:axis])
        inner = flatten(index[behind:], data.type.extents[axis + 1 :])
        self.accesses += (outer, inner)
        return LoadAt(self.buffers[data], (self._where(outer), ZERO, self._where(inner)), 1, at)

    def _settle(self, expr: Expr) -> Expr:
        """What a barrier said, in loop variables."""
        match expr:
            case Load(buffer, (flat,)):
                return Load(buffer, self._place(buffer, self._record(flat)))
            case Scalar(op, args, dtype):
                return Scalar(op, tuple(map(self._settle, args)), dtype)
            case _:
                return expr

    # Depths --------------------------------------------------------------------------------------------------

    def _bind(self, expr: Expr, location: Location | None) -> tuple[Read, int]:
        fence = max(depth for depth, scope in enumerate(self._scopes) if scope.fence or depth == 0)
        depth = max(fence, self._depth(expr))
        read = Read(self.name("t"), dtype_of(expr))
        self._scopes[depth].statements.append(Let(read.name, expr, location))
        self._depths[read.name] = depth
        return read, depth

    def _depth(self, expr: Expr) -> int:
        """The outermost scope in which all that `expr` needs is bound."""
        match expr:
            case Const():
                return 0
            case Read(name):
                return self._depths.get(name, len(self._scopes) - 1)
            case Position(index):
                return self._deepest([index])
            case Load(buffer, index, conditions) if buffer.space is Space.INPUT:
                return self._deepest([*index, *(condition.index for condition in conditions)])
            case LoadAt(buffer, index, _, at) if buffer.space is Space.INPUT:
                return max(self._deepest(index), self._depth(at))
            case Load() | LoadAt():
                return len(self._scopes) - 1
            case Scalar(_, args):
                return max(map(self._depth, args))
            case Select(conditions, then, otherwise):
                inside = self._deepest(condition.index for condition in conditions)
                return max(inside, self._depth(then), self._depth(otherwise))

    def _deepest(self, indices: Iterable[Index]) -> int:
        here = len(self._scopes) - 1
        return max((self._depths.get(v, here) for index in indices for v in index.variables()), default=0)

    def _where(self, index: Index) -> Index:
        return index.substitute(self.substitution) if self.substitution and index.terms else index

    def _record(self, flat: Index) -> Index:
        self.accesses.append(flat)
        return flat

    def _place(self, buffer: Buffer, flat: Index) -> tuple[Index, ...]:
        """The index of a flat position in a buffer that may be cut into several dimensions."""
        flat = self._where(flat)
        return (flat,) if len(buffer.shape) == 1 else unflatten(flat, buffer.shape)

    def _substituted(self, condition: Condition) -> Condition:
        return condition.substitute(self.substitution) if self.substitution else condition


def always(expr: Expr) -> Barrier:
    """A barrier whose result is one expression, wherever it is read."""
    return lambda _: expr


def location(value: Value) -> Location | None:
    """The user's line that a value comes from."""
    return value.node.location if value.node else None


def parameters(body: Graph) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """Buffers for a body's inputs and outputs: flat, but (before, axis, behind) where an op indexes an axis."""
    cut: dict[Value, int] = {}
    for node in body.nodes:
        match node.op.name:
            case "gather":
                cut[node.inputs[0]] = node.attrs["axis"]
            case "scatter_add":
                cut[node.output] = node.attrs["axis"]

    def buffers(prefix: str, values: Sequence[Value], space: Space) -> tuple[Buffer, ...]:
        return tuple(Buffer(f"{prefix}{n}", v.dtype, shape(v), space) for n, v in enumerate(values))

    def shape(value: Value) -> tuple[int, ...]:
        extents, axis = value.type.extents, cut.get(value)
        if axis is None:
            return (math.prod(extents),)
        return math.prod(extents[:axis]), extents[axis], math.prod(extents[axis + 1 :])

    return buffers("in", body.inputs, Space.INPUT), buffers("out", body.outputs, Space.OUTPUT)
