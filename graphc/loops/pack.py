"""The operands of a contraction as the tiles read them: in place, computed beforehand, or in panels.

Before: B[n,k], read down its columns.
After:  panels[strip][k][column of the strip], so that each k has its vectors side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from graphc.ir.graph import Value
from graphc.ir.index import Index, Var, flatten, unflatten
from graphc.loops.ir import Buffer, Expr, LoopKind, Space
from graphc.loops.maps import fill_space
from graphc.loops.nest import Group, spread, vectors, walk
from graphc.loops.point import Point, location
from graphc.loops.roles import Operand, Roles
from graphc.loops.schedule import ContractSchedule, MapSchedule

LINE = 16  # elements along the depth that are copied together where the depth is dense: one line of memory

Element = Callable[[Index, int], Expr]  # of the current point, in the strip of columns that starts there, so wide


def computed(point: Point, value: Value, schedule: ContractSchedule) -> Buffer:
    """The value in scratch, computed before the tiles."""
    shape = value.type.extents
    buffer = Buffer(point.name("operand"), value.dtype, (prod(shape),), Space.SCRATCH)
    with point.section():
        fill_space(point, shape, [(buffer, value)], MapSchedule(schedule.lanes, 1, schedule.blocks))
    return buffer


def in_place(point: Point, operand: Operand, buffer: Buffer) -> Element:
    """The operand read where its source lies."""
    return lambda _first, _wide: point.load(buffer, operand.place)


def panels(point: Point, roles: Roles, source: Buffer, width: int, lanes: int) -> tuple[Buffer, Element]:
    """Panels of `width` columns in scratch, and how to read them."""
    operand, cols = roles.panel, roles.cols
    assert cols is not None
    batch = roles.within(roles.batch, operand)
    full, tail = divmod(cols.extent, width)
    pitch = -(-tail // lanes) * lanes
    each = roles.deep * (full * width + pitch)
    copies = prod(group.extent for group in batch)
    buffer = Buffer(point.name("panels"), source.dtype, (copies * each,), Space.SCRATCH)
    column = Index(0, ((cols.variable, 1),))

    def place(first: Index, wide: int) -> Index:
        inside = row_major(roles.depth) * (width if wide == width else pitch) + (column - first)
        return row_major(batch) * each + first * roles.deep + inside

    def fill(first: Index, wide: int) -> None:
        def copy(position: Index) -> None:
            with point.where(cols.at(first + position, roles.variables)):
                value = point.load(source, operand.place)
                point.store(buffer, place(first, wide), value, location(operand.value))

        if operand.stride(cols) != 1 and roles.depth and operand.stride(roles.depth[-1]) == 1:
            _transposed(point, roles.depth, roles.variables, wide, copy)
        else:
            with walk(point, roles.depth, roles.variables):
                vectors(point, wide, lanes, max(1, wide // lanes), lambda position, _: copy(position))

    if full:
        with point.section(), point.loop("p", copies * full, LoopKind.PARALLEL, keep=True) as number:
            copied, strip = unflatten(number, (copies, full))
            with point.where(spread(batch, roles.variables, copied)):
                fill(strip * width, width)
    if tail:
        with (
            point.section(),
            point.loop("p", copies, LoopKind.PARALLEL, keep=True) as number,
            point.where(spread(batch, roles.variables, number)),
        ):
            fill(Index(full * width), tail)
    return buffer, lambda first, wide: point.load(buffer, place(first, wide))


def row_major(groups: list[Group] | tuple[Group, ...]) -> Index:
    """The current point's position in the product of the groups."""
    return flatten([Index(0, ((g.variable, 1),)) for g in groups], [g.extent for g in groups])


def _transposed(
    point: Point, depth: tuple[Group, ...], variables: dict[int, Var], wide: int, copy: Callable[[Index], None]
) -> None:
    """Line by line of the source, so that each is read once however few of them the cache can hold at a time."""
    *outer, inner = depth
    lines, rest = divmod(inner.extent, LINE)

    def line(start: Index, length: int) -> None:
        with (
            point.loop("j", wide) as column,
            point.loop("u", length, LoopKind.UNROLLED) as k,
            point.where(inner.at(start + k, variables)),
        ):
            copy(column)

    with walk(point, outer, variables):
        with point.loop("k", lines) as number:
            line(number * LINE, LINE)
        if rest:
            line(Index(lines * LINE), rest)
