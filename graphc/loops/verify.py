"""The invariants of the loop IR; `verify` raises VerifyError for the first that does not hold.

 1. buffers: names are unique; inputs and outputs are what their space says; an access names a parameter or a `Local`
    in scope, with one index for each dimension; inputs are not written.
 2. names: a loop variable in an index is bound by an enclosing loop of the same extent, a `Read` by an earlier `Let`
    in scope with the same dtype; neither is bound twice in one scope.
 3. bounds: every access lies inside its buffer for all values of the variables that pass the conditions around it;
    a divisor is positive, a position that is data stands for index 0 along its axis.
 4. vector loops: lanes are a power of two, 1 <= extent <= lanes; inside are only unrolled and serial loops, no `Check`,
    and a `Store` to one place stores one value.
 5. parallel loops are in no other loop and under no condition; every element that they write outside their own locals
    depends on their variable, and none is a local from outside; no `Check` is inside.
 6. a `Transpose` is of a square local of its own thread, outside vector loops; a `Prefetch` is of shared memory, and of
    neighbours in a vector loop.
 7. types: a `Store`, `Reduce` or `StoreAt` writes its buffer's dtype; scalar ops have the operands and result of
    the op table; positions are integers and a `Check` tests a bool; its code is above 0.

That parallel iterations never meet in one element is checked as they run, by `loops.interpret`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

import graphc.ops  # noqa: F401  fills the op table
from graphc.errors import GraphcError, VerifyError
from graphc.ir.index import Condition, Div, Index, Mod, Var
from graphc.ir.op import OPS
from graphc.ir.source import Location
from graphc.ir.types import DType, TensorType
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
    dtype_of,
)
from graphc.loops.text import REDUCE_SIGNS

MOST_POINTS = 1 << 22  # values of the variables that are tried one by one where no proof is found


def verify(function: Function) -> None:
    """Check every invariant above."""
    parameters = (*function.inputs, *function.outputs, *function.scratch)
    spaces = (
        *((b, Space.INPUT) for b in function.inputs),
        *((b, Space.OUTPUT) for b in function.outputs),
        *((b, Space.SCRATCH) for b in function.scratch),
    )
    for buffer, space in spaces:
        if buffer.space is not space:
            raise VerifyError(f"kernel {function.name}: {buffer.name} is {buffer.space.value}, listed as {space.value}")
    names = [buffer.name for buffer in parameters]
    if len(set(names)) < len(names):
        raise VerifyError(f"kernel {function.name}: two parameters of one name among {', '.join(names)}")
    _block(function.body, _Scope(function.name, {b.name: b for b in parameters}, {}, {}))


@dataclass(frozen=True)
class _Scope:
    """What is known where a statement stands. The dicts are copied when a block is entered."""

    kernel: str
    buffers: dict[str, Buffer]
    variables: dict[str, Var]
    reads: dict[str, tuple[DType, bool]]  # dtype, and whether it differs from lane to lane
    conditions: tuple[Condition, ...] = ()
    vector: Var | None = None
    parallel: Var | None = None
    shared: frozenset[Buffer] = frozenset()  # buffers from outside the parallel loop
    loops: int = 0
    location: Location | None = None

    def fail(self, message: str) -> NoReturn:
        raise VerifyError(f"kernel {self.kernel}: {message}", self.location)

    def inner(self, **changes: object) -> _Scope:
        """A block inside this one."""
        copies = {"buffers": dict(self.buffers), "variables": dict(self.variables), "reads": dict(self.reads)}
        return replace(self, **{**copies, **changes})  # type: ignore[arg-type]

    def varies(self, indices: Iterable[Index]) -> bool:
        """Whether one of the indices differs from lane to lane."""
        return self.vector is not None and any(index.depends_on(self.vector) for index in indices)


# Statements --------------------------------------------------------------------------------------------------


def _block(body: tuple[Stmt, ...], scope: _Scope) -> None:
    for stmt in body:
        _statement(stmt, scope)


def _statement(stmt: Stmt, scope: _Scope) -> None:
    match stmt:
        case Loop():
            _loop(stmt, scope)
        case If(conditions, body):
            _conditions(conditions, scope)
            _block(body, scope.inner(conditions=(*scope.conditions, *conditions)))
        case Local(buffer):
            if buffer.space is not Space.LOCAL or buffer.name in scope.buffers:
                scope.fail(f"local {buffer.name} is not local, or its name is taken")
            scope.buffers[buffer.name] = buffer
        case Let(name, value, location):
            if name in scope.reads:
                scope.fail(f"{name} is bound twice")
            scope.reads[name] = (dtype_of(value), _expr(value, replace(scope, location=location)))
        case Check(condition, code):
            if scope.vector or scope.parallel:
                scope.fail("a check stands in a vector or parallel loop")
            _expr(condition, scope)
            _same(dtype_of(condition), DType.BOOL, "a check's condition", scope)
            if code <= 0:
                scope.fail(f"check code {code} is not above 0")
        case Transpose(buffer):
            _transpose(buffer, scope)
        case Prefetch(buffer, index):
            _prefetch(buffer, index, scope)
        case Store() | Reduce() | StoreAt():
            _write(stmt, replace(scope, location=stmt.location))


def _loop(loop: Loop, scope: _Scope) -> None:
    var = loop.var
    if var.name in scope.variables:
        scope.fail(f"variable {var} is bound twice")
    if scope.vector is not None and loop.kind not in (LoopKind.UNROLLED, LoopKind.SERIAL):
        scope.fail(f"{loop.kind.value} loop {var} stands in vector loop {scope.vector}")
    changes: dict[str, object] = {"variables": {**scope.variables, var.name: var}, "loops": scope.loops + 1}
    match loop.kind:
        case LoopKind.VECTOR:
            if loop.lanes < 1 or loop.lanes & (loop.lanes - 1) or not 1 <= var.extent <= loop.lanes:
                scope.fail(f"vector loop {var} has extent {var.extent} and {loop.lanes} lanes")
            changes["vector"] = var
        case LoopKind.PARALLEL:
            if scope.loops:
                scope.fail(f"parallel loop {var} stands in another loop")
            if scope.conditions:
                scope.fail(f"parallel loop {var} stands under a condition")
            changes |= {"parallel": var, "shared": frozenset(scope.buffers.values())}
    if var.extent < 0 or (loop.kind is not LoopKind.VECTOR and loop.lanes != 1):
        scope.fail(f"{loop.kind.value} loop {var} has extent {var.extent} and {loop.lanes} lanes")
    if var.extent:
        _block(loop.body, scope.inner(**changes))


def _transpose(buffer: Buffer, scope: _Scope) -> None:
    if scope.buffers.get(buffer.name) != buffer or buffer.space is not Space.LOCAL or buffer in scope.shared:
        scope.fail(f"{buffer.name} is transposed, but is not a local in scope")
    side = buffer.shape[0] if buffer.shape else 0
    if buffer.shape != (side, side) or side & (side - 1) or not side:
        scope.fail(f"{buffer.name}[{buffer.shape}] is transposed, but is no square whose side is a power of two")
    if scope.vector is not None:
        scope.fail(f"{buffer.name} is transposed in vector loop {scope.vector}")


def _prefetch(buffer: Buffer, index: tuple[Index, ...], scope: _Scope) -> None:
    _dimensions(buffer, index, scope)
    if buffer.space is Space.LOCAL:
        scope.fail(f"local {buffer.name} is asked for beforehand")
    if scope.vector is not None:
        *outer, last = index
        along = Index(0, ((scope.vector, 1),))
        if scope.varies(outer) or (scope.varies([last]) and scope.varies([last - along])):
            scope.fail(f"the lanes of {scope.vector} ask for elements of {buffer.name} that are no neighbours")


def _write(stmt: Store | Reduce | StoreAt, scope: _Scope) -> None:
    buffer = stmt.buffer
    if buffer.space is Space.INPUT:
        scope.fail(f"input {buffer.name} is written")
    varies = _expr(stmt.value, scope)
    _same(dtype_of(stmt.value), buffer.dtype, f"the value for {buffer.name}", scope)
    data = False
    match stmt:
        case StoreAt(axis=axis, at=at):
            _position(buffer, stmt.index, axis, at, scope)
            data = True
        case Reduce(op=op):
            if op not in REDUCE_SIGNS:
                scope.fail(f"{op} is not a reduction; those are {', '.join(REDUCE_SIGNS)}")
        case Store():
            if varies and not scope.varies(stmt.index):
                scope.fail(f"the lanes of {scope.vector} store different values to one element of {buffer.name}")
    _access(buffer, stmt.index, scope, ())
    alone = scope.parallel is None or scope.parallel.extent <= 1
    depends = alone or any(index.depends_on(scope.parallel) for index in stmt.index if scope.parallel)
    if buffer in scope.shared and buffer.space is Space.LOCAL:
        scope.fail(f"parallel loop {scope.parallel} writes local {buffer.name}, which each thread has for itself")
    if buffer in scope.shared and not depends and not _pinned(scope):
        where = "an element given by data" if data else "the same element"
        scope.fail(f"every iteration of {scope.parallel} writes {where} of {buffer.name}")


def _pinned(scope: _Scope) -> bool:
    """Whether a condition `==` lets at most one parallel iteration through."""
    assert scope.parallel is not None
    return any(c.equal and c.index.depends_on(scope.parallel) for c in scope.conditions)


# Expressions -------------------------------------------------------------------------------------------------


def _expr(expr: Expr, scope: _Scope) -> bool:
    """Check an expression; whether it differs from lane to lane."""
    match expr:
        case Const():
            return False
        case Position(index):
            _variables(index, scope)
            return scope.varies([index])
        case Load(buffer, index, conditions):
            _conditions(conditions, scope)
            _access(buffer, index, scope, conditions)
            return scope.varies([*index, *(c.index for c in conditions)])
        case LoadAt(buffer, index, axis, at):
            varies = _position(buffer, index, axis, at, scope)
            _access(buffer, index, scope, ())
            if not buffer.shape[axis]:
                scope.fail(f"there is nothing to load along axis {axis} of {buffer.name}")
            return varies or scope.varies(index)
        case Read(name, dtype):
            if name not in scope.reads:
                scope.fail(f"{name} is not bound")
            bound, varies = scope.reads[name]
            _same(dtype, bound, name, scope)
            return varies
        case Scalar(op, args, dtype):
            varying = [_expr(arg, scope) for arg in args]
            _same(dtype, _result(op, args, dtype, scope), f"the result of {op}", scope)
            return any(varying)
        case Select(conditions, then, otherwise):
            _conditions(conditions, scope)
            varying = [_expr(then, scope), _expr(otherwise, scope)]
            _same(dtype_of(otherwise), dtype_of(then), "the other side of a select", scope)
            return any(varying) or scope.varies(c.index for c in conditions)


def _result(op: str, args: tuple[Expr, ...], dtype: DType, scope: _Scope) -> DType:
    types = [TensorType(dtype_of(arg), ()) for arg in args]
    if op == "fma":
        if len(types) != 3 or len(set(types)) != 1 or not types[0].dtype.is_float:
            scope.fail(f"fma takes three floats of one type, not {', '.join(map(str, types))}")
        return types[0].dtype
    if op not in OPS:
        scope.fail(f"no scalar op {op}")
    try:
        found = OPS[op].infer(*types, **({"dtype": dtype} if op == "convert" else {}))
    except (GraphcError, TypeError) as error:
        scope.fail(f"{op}({', '.join(map(str, types))}): {error}")
    assert isinstance(found, TensorType)
    return found.dtype


def _position(buffer: Buffer, index: tuple[Index, ...], axis: int, at: Expr, scope: _Scope) -> bool:
    varies = _expr(at, scope)
    if not dtype_of(at).is_int:
        scope.fail(f"a position in {buffer.name} is {dtype_of(at)}, not an integer")
    if not 0 <= axis < len(index) or index[axis] != Index():
        scope.fail(f"position {axis} in {buffer.name} is data; its index must be 0")
    return varies


def _same(found: DType, wanted: DType, what: str, scope: _Scope) -> None:
    if found is not wanted:
        scope.fail(f"{what} is {found}, not {wanted}")


def _conditions(conditions: tuple[Condition, ...], scope: _Scope) -> None:
    for condition in conditions:
        _variables(condition.index, scope)


def _variables(index: Index, scope: _Scope) -> None:
    for var in index.variables():
        if scope.variables.get(var.name) != var:
            scope.fail(f"variable {var} (extent {var.extent}) is not bound by a loop")
    if any(divisor <= 0 for divisor in _divisors(index)):
        scope.fail(f"a divisor of {index} is not positive")


def _divisors(index: Index) -> Iterator[int]:
    for atom, _ in index.terms:
        if isinstance(atom, Div | Mod):
            yield atom.divisor
            yield from _divisors(atom.index)


# Bounds ------------------------------------------------------------------------------------------------------


def _access(buffer: Buffer, index: tuple[Index, ...], scope: _Scope, conditions: tuple[Condition, ...]) -> None:
    _dimensions(buffer, index, scope)
    around = (*scope.conditions, *conditions)
    for place, extent in zip(index, buffer.shape, strict=True):
        low, high = place.bounds
        if low >= 0 and high < extent:
            continue
        low, high = bounds(place, around)
        if (low < 0 or high >= extent) and not _tried(place, extent, around):
            shown = " and ".join(map(str, around)) or "no condition"
            scope.fail(f"index {place} of {buffer.name} runs over {low}..{high}, outside 0..{extent - 1}, with {shown}")


def _dimensions(buffer: Buffer, index: tuple[Index, ...], scope: _Scope) -> None:
    if scope.buffers.get(buffer.name) != buffer:
        scope.fail(f"buffer {buffer.name} is not in scope")
    if len(index) != len(buffer.shape):
        scope.fail(f"{buffer.name} has {len(buffer.shape)} dimensions, its index {len(index)}")
    for place in index:
        _variables(place, scope)


def bounds(index: Index, conditions: Sequence[Condition]) -> tuple[int, int]:
    """Inclusive bounds of `index` over all values of the variables for which the conditions hold."""
    facts = [condition.index for condition in conditions]
    facts += [condition.index * -1 for condition in conditions if condition.equal]
    low, high = _lowest(index, facts), -_lowest(index * -1, facts)
    return low, high


def _lowest(index: Index, facts: Sequence[Index]) -> int:
    """A lower bound: subtract multiples of what is known to be non-negative while that helps.

    `10*(a-2)+b` with a-2 >= 0: subtracting ten times the fact leaves b, whose bound is 0.
    """
    best, improved, most = _box(index, facts), True, index.bounds[1]
    while improved and best <= most:  # above: the facts contradict each other, nothing is left to bound
        improved = False
        for fact in facts:
            for factor in _factors(index, fact):
                rest = index - fact * factor
                low = _box(rest, facts)
                if low > best:
                    best, index, improved = low, rest, True
    return best


def _factors(index: Index, fact: Index) -> set[int]:
    ours = dict(index.terms)
    return {ours[atom] // c for atom, c in fact.terms if atom in ours and ours[atom] // c > 0}


def _box(index: Index, facts: Sequence[Index]) -> int:
    total = index.const
    plain = [fact for fact in facts if all(isinstance(atom, Var) for atom, _ in fact.terms)]
    for atom, factor in index.terms:
        low, high = Index(0, ((atom, 1),)).bounds
        if isinstance(atom, Div) and plain:
            low = max(low, _lowest(atom.index, plain) // atom.divisor)
            high = min(high, -_lowest(atom.index * -1, plain) // atom.divisor)
        total += min(factor * low, factor * high)
    return total


def _tried(index: Index, extent: int, conditions: tuple[Condition, ...]) -> bool:
    """Whether the index stays inside for each value of the variables, if those can be tried one by one."""
    variables = set(index.variables())
    used = [c for c in conditions if c.index.variables() & variables]
    variables |= {v for c in used for v in c.index.variables()}
    order = sorted(variables)
    points = int(np.prod([v.extent for v in order], dtype=object))
    if points > MOST_POINTS:
        return False
    grid = dict(zip(order, np.indices([v.extent for v in order], sparse=True), strict=True))
    inside = np.ones([v.extent for v in order], bool)
    for condition in used:
        number = condition.index.evaluate(grid)  # type: ignore[arg-type]
        inside &= number == 0 if condition.equal else number >= 0
    number = index.evaluate(grid)  # type: ignore[arg-type]
    return not np.any(inside & ((number < 0) | (number >= extent)))
