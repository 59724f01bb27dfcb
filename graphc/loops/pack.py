"""The operands of a contraction as the tiles read them: in place, computed beforehand, or in panels.

Before: B[n,k], read down its columns.
After:  panels[strip][k][column of the strip], so that each k has its vectors side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

from graphc.ir.graph import Value
from graphc.ir.index import Condition, Index, Var, flatten, unflatten
from graphc.ir.types import DType
from graphc.loops.ir import Buffer, Expr, LoopKind, Space
from graphc.loops.maps import fill_space
from graphc.loops.nest import Group, Span, part_of, size, spans_of, spread, vectors, walk
from graphc.loops.point import Point, location
from graphc.loops.roles import Operand, Roles
from graphc.loops.schedule import ContractSchedule, MapSchedule
from graphc.loops.squares import turned

LINE = 16  # elements along the depth that are copied together where the depth is dense and there are no vectors

# Of the current point, in a strip (its first column, width), in a piece; zero where a condition fails.
Element = Callable[[Index, int, Index, tuple[Condition, ...]], Expr]
Read = Callable[[], Expr]  # the panel's operand at the current point
Strips = Callable[[Callable[[Index, int], None]], None]  # calls its argument for each strip of a block
Prepare = Callable[[Strips, Index], None]  # makes the panels of a block's strips for a piece of the depth


def computed(point: Point, value: Value, schedule: ContractSchedule) -> Buffer:
    """The value in scratch, computed before the tiles."""
    shape = value.type.extents
    buffer = Buffer(point.name("operand"), value.dtype, (prod(shape),), Space.SCRATCH)
    with point.section():
        fill_space(point, shape, [(buffer, value)], MapSchedule(schedule.lanes, 1, schedule.blocks))
    return buffer


def in_place(point: Point, operand: Operand, buffer: Buffer) -> Element:
    """The operand read where its source lies."""
    return lambda _first, _wide, _piece, conditions: point.load(buffer, operand.place, conditions)


def panels(point: Point, roles: Roles, read: Read, width: int, lanes: int) -> tuple[Buffer, Element]:
    """Panels of `width` columns, for the whole depth, in scratch; and how to read them."""
    cols = roles.cols
    assert cols is not None
    batch = roles.within(roles.batch, roles.panel)
    full, tail = divmod(cols.extent, width)
    pitch = -(-tail // lanes) * lanes
    each = roles.deep * (full * width + pitch)
    copies = size(batch)
    buffer = Buffer(point.name("panels"), roles.panel.source.dtype, (copies * each,), Space.SCRATCH)
    column = Index(0, ((cols.variable, 1),))
    is_copy = roles.panel.source in point.buffers
    spans = spans_of(in_source_order(roles.panel, roles.depth) if is_copy else roles.depth)

    def place(first: Index, wide: int) -> Index:
        inside = row_major(roles.depth) * (width if wide == width else pitch) + (column - first)
        return row_major(batch) * each + first * roles.deep + inside

    def fill(first: Index, wide: int) -> None:
        _copy(point, roles, read, spans, first, wide, lanes, lambda: (buffer, place(first, wide)))

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
    return buffer, lambda first, wide, _piece, conditions: point.load(buffer, place(first, wide), conditions)


def block_panels(
    point: Point, roles: Roles, read: Read, width: int, lanes: int, pieces: int, blocks: int, strips: int
) -> tuple[Buffer, Callable[[Index, Index], tuple[Element, Prepare]]]:
    """Room for the panels of one piece of the depth in each block; and how to fill and to read a block's.

    A block has `strips` full strips; the last one also what is left over. Given its number and its first column, and
    read row by row, however short a strip's rows are; strip by strip where the source's lines run along the depth.
    """
    cols, cut = roles.cols, roles.cut(pieces)
    assert cols is not None
    length, rest = divmod(cut.extent, pieces)
    pitch = -(-(cols.extent % width) // lanes) * lanes
    extents = [length + rest if group is cut else group.extent for group in roles.depth]
    deep = prod(extents)
    each = deep * (strips * width + pitch)
    buffer = Buffer(point.name("panels"), roles.panel.source.dtype, (blocks * each,), Space.SCRATCH)
    column, places = Index(0, ((cols.variable, 1),)), [Index(0, ((g.variable, 1),)) for g in roles.depth]

    def of(block: Index, base: Index) -> tuple[Element, Prepare]:
        def place(first: Index, wide: int, piece: Index) -> Index:
            here = [at - piece * length if g is cut else at for g, at in zip(roles.depth, places, strict=True)]
            inside = flatten(here, extents)
            return block * each + (first - base) * deep + inside * (width if wide == width else pitch) + column - first

        def fill(across: Strips, piece: Index) -> None:
            def copy(start: Index, count: int) -> None:
                spans = part_of(roles.depth, cut, start, count)
                with point.section():
                    if _is_turned(roles.panel, cols, spans):
                        across(partial(strip, spans))
                        return
                    with walk(point, spans, roles.variables):
                        across(partial(strip, ()))

            def strip(spans: Sequence[Span], first: Index, wide: int) -> None:
                _copy(point, roles, read, spans, first, wide, lanes, lambda: (buffer, place(first, wide, piece)))

            copy(piece * length, length)
            if rest:
                with point.when((Condition(piece - (pieces - 1), equal=True),)):
                    copy(Index(pieces * length), rest)

        return lambda first, wide, piece, conditions: point.load(buffer, place(first, wide, piece), conditions), fill

    return buffer, of


def in_source_order(operand: Operand, depth: Sequence[Group]) -> list[Group]:
    """The depth as it lies in the operand's source, the nearest neighbours innermost; dense ones as one group."""
    found = sorted(depth, key=lambda group: -abs(operand.stride(group)))
    dense: list[Group] = []
    while found and operand.stride(found[-1]) == size(dense):
        dense.insert(0, found.pop())
    return [*found, Group.product(dense)] if len(dense) > 1 else [*found, *dense]


def row_major(groups: Sequence[Group]) -> Index:
    """The current point's position in the product of the groups."""
    return flatten([Index(0, ((g.variable, 1),)) for g in groups], [g.extent for g in groups])


def _copy(
    point: Point,
    roles: Roles,
    read: Read,
    spans: Sequence[Span],
    first: Index,
    wide: int,
    lanes: int,
    target: Callable[[], tuple[Buffer, Index]],
) -> None:
    """Copy a strip of the panel, for a part of the depth."""
    operand, cols = roles.panel, roles.cols
    assert cols is not None

    def load(position: Index) -> Expr:
        with point.where(cols.at(first + position, roles.variables)):
            return read()

    def store(position: Index, element: Expr) -> None:
        with point.where(cols.at(first + position, roles.variables)):
            point.store(*target(), element, location(operand.value))

    if _is_turned(operand, cols, spans):
        _transposed(point, spans, roles.variables, wide, lanes, operand.source.dtype, load, store)
    else:
        with walk(point, spans, roles.variables):
            vectors(point, wide, lanes, max(1, wide // lanes), lambda position, _: store(position, load(position)))


def _is_turned(operand: Operand, cols: Group, spans: Sequence[Span]) -> bool:
    """Whether it is dense along the depth that is walked and not along the columns."""
    return operand.stride(cols) != 1 and bool(spans) and operand.stride(spans[-1].group) == 1


def _transposed(
    point: Point,
    spans: Sequence[Span],
    variables: dict[int, Var],
    wide: int,
    side: int,
    dtype: DType,
    load: Callable[[Index], Expr],
    store: Callable[[Index, Expr], None],
) -> None:
    """Squares of `side` columns and places along the depth, in vectors, with masks at the edges.

    Each line of the source is read once, however few of them the cache can hold at a time.
    """
    *outer, (inner, start, extent) = spans
    flat = Group(inner.axes, inner.extent, inner.variable)  # as the source holds it

    def square(column: Index, columns: int, k: Index, length: int) -> None:
        def element(row: Index, place: Index) -> Expr:
            with point.where(flat.at(start + k + row, variables)):
                return load(column + place)

        elements = turned(point, dtype, side, length, columns, element)
        with (
            point.loop("v", columns, LoopKind.VECTOR, side) as lane,
            point.loop("u", length, LoopKind.UNROLLED) as row,
            point.where(inner.at(start + k + row, variables)),
        ):
            store(column + lane, point.load(elements, row * side + lane))

    def line(columns: int, k: Index, length: int) -> None:
        with (
            point.loop("j", columns) as column,
            point.loop("u", length, LoopKind.UNROLLED) as number,
        ):
            with point.where(flat.at(start + k + number, variables)):
                element = load(column)
            with point.where(inner.at(start + k + number, variables)):
                store(column, element)

    def across(k: Index, length: int) -> None:
        if side == 1:
            line(wide, k, length)
            return
        with point.loop("j", wide // side) as column:
            square(column * side, side, k, length)
        if wide % side:
            square(Index(wide // side * side), wide % side, k, length)

    tall = side if side > 1 else LINE
    with walk(point, outer, variables):
        with point.loop("k", extent // tall) as number:
            across(number * tall, tall)
        if extent % tall:
            across(Index(extent // tall * tall), extent % tall)
