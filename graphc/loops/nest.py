"""Loop nests: axes that run together, vector loops with a masked tail, blocks for threads.

Every number here follows from shapes and the schedule, never from the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from graphc.ir.index import ZERO, Div, Index, Mod, Var, unflatten, var
from graphc.loops.ir import LoopKind
from graphc.loops.point import Point

UNROLLED_VECTORS = 8  # at most this many vectors of a rest are written out one after the other


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent axes that every access walks as one: `extent` is their product, `variable` the innermost one.

    Or, with `parts`, the product of several such groups, walked in row-major order.
    """

    axes: tuple[int, ...]
    extent: int
    variable: Var
    parts: tuple[Group, ...] = ()

    @staticmethod
    def product(parts: Sequence[Group]) -> Group:
        """Those groups as one, the last innermost."""
        axes = tuple(axis for part in parts for axis in part.axes)
        return Group(axes, size(parts), parts[-1].variable, tuple(parts))

    def at(self, position: Index, variables: Mapping[int, Var]) -> dict[Var, Index]:
        """Index variables of the axes when the group stands at `position`."""
        if self.parts:
            return spread(self.parts, variables, position)
        return {variables[axis]: position if variables[axis] == self.variable else ZERO for axis in self.axes}


def axis_variables(space: Sequence[int]) -> dict[int, Var]:
    """An index variable for each axis of extent greater than 1."""
    return {axis: Var(f"a{axis}", extent) for axis, extent in enumerate(space) if extent > 1}


def identity(space: Sequence[int]) -> tuple[Index, ...]:
    """The index of the current point of a space."""
    return tuple(var(f"a{axis}", extent) for axis, extent in enumerate(space))


def collapse(
    axes: Iterable[int], variables: Mapping[int, Var], accesses: Sequence[Index], uses: Sequence[Index]
) -> list[Group]:
    """Groups of neighbouring `axes` that all accesses walk with one stride; none for axes of extent 1.

    Before: accesses 24*a0+4*a1+a2 over a0<2, a1<6, a2<4.  After: one group of extent 48, accessed at f.
    """
    rigid = {v for index in uses for v in index.variables()}
    for index in accesses:
        for atom, _ in index.terms:
            if isinstance(atom, Div | Mod):
                rigid |= atom.index.variables()
    groups: list[list[int]] = []
    for axis in axes:
        if axis not in variables:
            continue
        inner = variables[axis]
        outer = variables[groups[-1][-1]] if groups else inner
        joined = bool(groups) and not {inner, outer} & rigid
        if joined and all(i.coefficient(outer) == inner.extent * i.coefficient(inner) for i in accesses):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return [Group(tuple(g), math.prod(variables[a].extent for a in g), variables[g[-1]]) for g in groups]


def spread(groups: Sequence[Group], variables: Mapping[int, Var], flat: Index) -> dict[Var, Index]:
    """Index variables for the row-major position `flat` in the product of the groups."""
    found: dict[Var, Index] = {}
    for group, position in zip(groups, unflatten(flat, [g.extent for g in groups]), strict=True):
        found |= group.at(position, variables)
    return found


def leading(groups: Sequence[Group], wanted: int) -> tuple[Sequence[Group], Sequence[Group]]:
    """The first groups, as many as it takes to cut into `wanted` blocks, and the others."""
    count = min(1, len(groups))
    while count < len(groups) and size(groups[:count]) < wanted:
        count += 1
    return groups[:count], groups[count:]


class Span(NamedTuple):
    """A part of a group: where it starts, and its length."""

    group: Group
    start: Index
    length: int


def spans_of(groups: Iterable[Group]) -> list[Span]:
    """Those groups from end to end."""
    return [Span(group, ZERO, group.extent) for group in groups]


def part_of(groups: Iterable[Group], cut: Group, start: Index, length: int) -> list[Span]:
    """Those groups: one of them from `start` on, the others from end to end."""
    return [Span(group, start, length) if group is cut else Span(group, ZERO, group.extent) for group in groups]


@contextmanager
def walk(point: Point, spans: Sequence[Span], variables: Mapping[int, Var]) -> Iterator[None]:
    """One serial loop for each span around what is emitted inside."""
    with ExitStack() as stack:
        for group, start, length in spans:
            position = stack.enter_context(point.loop("r", length))
            stack.enter_context(point.where(group.at(start + position, variables)))
        yield


def size(groups: Iterable[Group]) -> int:
    """Number of points of the product of the groups."""
    return math.prod(group.extent for group in groups)


def vectors(point: Point, extent: int, lanes: int, unroll: int, body: Callable[[Index, Index], None]) -> None:
    """`body(position, slot)` for 0 <= position < extent: unrolled vectors, then the rest, then one masked vector.

    `slot` numbers the element among the `lanes * unroll` that are in flight, for accumulators that stand side by side.
    """
    if extent == 1:
        body(ZERO, ZERO)
        return
    step = lanes * unroll
    main = extent // step
    with point.loop("i", main) as chunk:
        _full(point, unroll if main else 0, LoopKind.UNROLLED, lanes, lambda slot: body(chunk * step + slot, slot))
    rest = (extent - main * step) // lanes
    kind = LoopKind.UNROLLED if rest <= UNROLLED_VECTORS else LoopKind.SERIAL
    _full(point, rest, kind, lanes, lambda slot: body(slot + main * step, slot))
    tail = extent - main * step - rest * lanes
    if tail:
        with point.loop("v", tail, LoopKind.VECTOR, lanes) as lane:
            body(lane + (main * step + rest * lanes), lane + rest * lanes)


def _full(point: Point, count: int, kind: LoopKind, lanes: int, body: Callable[[Index], None]) -> None:
    if count == 0:
        return
    with point.loop("u", count, kind) as number, point.loop("v", lanes, LoopKind.VECTOR, lanes) as lane:
        body(number * lanes + lane)


def blocks(count: int, wanted: int) -> int:
    """How many equal blocks to cut `count` iterations into: about `wanted`, exactly dividing where that is near."""
    wanted = max(1, min(wanted, count))
    near = [n for n in range(wanted, 2 * wanted) if n <= count and count % n == 0]
    return near[0] if near else wanted


def block_length(count: int, wanted: int, step: int = 1) -> int:
    """Iterations per block for about `wanted` blocks of `count`; a multiple of `step` where there are several."""
    steps = count // step
    return count if min(steps, wanted) <= 1 else steps // blocks(steps, wanted) * step


def shared(point: Point, count: int, length: int, body: Callable[[Index, Index, int], None]) -> int:
    """Cut `count` iterations into blocks of `length` that threads may share, and a last one with what is left over.

    `body(block, first, length)` emits one block. Returns how many blocks there are with the last. One that is alone is
    a loop, too: its locals end with it, so that one thread can run all of it.
    """
    number = count // length
    kind = LoopKind.PARALLEL if number > 1 else LoopKind.SERIAL
    with point.loop("b", number, kind, keep=True) as block, point.section():
        body(block, block * length, length)
    left = count - number * length
    if left:
        with point.loop("b", 1, keep=True), point.section():
            body(Index(number), Index(number * length), left)
    return number + bool(left)
