"""Operands that lie in another order than the results are read in squares, and turned in registers.

Before: z[k,n] = x[n,k].  After: for 16 n and 16 k, 16 vectors along x's rows, `transpose`, 16 vectors along z's.

Each line of memory is then read once, and as a whole, however far apart its neighbours in the result are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from graphc.ir.graph import Value
from graphc.ir.index import Div, Index, Mod, Var, flatten, unflatten
from graphc.ir.types import DType
from graphc.loops.ir import Buffer, Expr, Load, LoopKind
from graphc.loops.nest import Group, block_length, shared, size, spread
from graphc.loops.point import Access, Barrier, Point
from graphc.loops.schedule import MapSchedule


def turned(
    point: Point, dtype: DType, side: int, height: int, width: int, load: Callable[[Index, Index], Expr]
) -> Buffer:
    """A square local of `load(row, column)`, of which columns are dense in memory: vectors along them change places
    with vectors along rows. What is beyond `height` rows and `width` columns is undefined."""
    square = point.local("square", dtype, side, side)
    with (
        point.loop("v", height, LoopKind.VECTOR, side) as row,
        point.loop("u", width, LoopKind.UNROLLED) as column,
    ):
        point.store(square, column * side + row, load(row, column))
    point.transpose(square)
    return square


def crossed_axis(reads: Sequence[Access], outer: Sequence[Group], inner: Group, lanes: int) -> Group | None:
    """The axis along which most reads are dense that are not so along `inner`.

    None where squares would be mostly empty both ways: one of their sides must be at least half full.
    """
    counts = {group: sum(_crosses(read, group, inner) for read in reads) for group in outer}
    found = [group for group in outer if counts[group] and 2 * max(group.extent, inner.extent) >= lanes > 1]
    return max(found, key=lambda group: counts[group], default=None)


def _crosses(read: Access, group: Group, inner: Group) -> bool:
    """Whether a read steps from one element of memory to the next along the group, and further along `inner`."""
    stride = read.place.coefficient(inner.variable)
    is_plain = not any(isinstance(atom, Div | Mod) for atom, _ in read.place.terms)
    return is_plain and stride not in (0, 1) and read.place.coefficient(group.variable) == 1


def in_squares(
    point: Point,
    outer: Sequence[Group],
    crossed: Group,
    inner: Group,
    variables: dict[int, Var],
    reads: Iterable[Access],
    schedule: MapSchedule,
    element: Callable[[], None],
) -> None:
    """`element()` at each point of a space, in squares along `crossed` and `inner`, bands of which threads may share.

    Results are dense along `inner`. `reads`: those of the element; the ones that are dense along `crossed` are turned.
    Chains of functions are not cut into stages here: what is turned fills the registers.
    """
    side = schedule.lanes
    crossing = _distinct(read for read in reads if _crosses(read, crossed, inner))

    def bands(count: int, start: int, height: int) -> None:
        def some(_: Index, first: Index, length: int) -> None:
            with point.loop("r", length) as number:
                row, place = unflatten(first + number, (size(outer), count))
                with point.where(spread(outer, variables, row)):
                    band(place * side + start, height)

        total = size(outer) * count
        shared(point, total, block_length(total, schedule.blocks), some)

    def band(top: Index, height: int) -> None:
        full, left = divmod(inner.extent, side)
        with point.loop("j", full) as number:
            square(top, height, number * side, side)
        if left:
            square(top, height, Index(full * side), left)

    def square(top: Index, height: int, first: Index, width: int) -> None:
        def here(row: Index, column: Index) -> dict[Var, Index]:
            return crossed.at(top + row, variables) | inner.at(first + column, variables)

        def load(read: Access, row: Index, column: Index) -> Expr:
            with point.where(here(row, column)):
                return point.load(point.buffers[read.value], read.place, read.conditions)

        squares = {read: turned(point, read.value.dtype, side, height, width, partial(load, read)) for read in crossing}
        kind = LoopKind.UNROLLED if schedule.unroll > 1 else LoopKind.SERIAL  # of much work, the code would be long
        with (
            point.loop("v", width, LoopKind.VECTOR, side) as column,
            point.loop("u", height, kind) as row,
            point.where(here(row, column)),
            point.knowing(_elements(squares, row * side + column)),
        ):
            element()

    full, left = divmod(crossed.extent, side)
    if full:
        bands(full, 0, side)
    if left:
        bands(1, full * side, left)


def _distinct(reads: Iterable[Access]) -> list[Access]:
    """One for each place; none where conditions differ."""
    found: dict[tuple[Value, Index], set[Access]] = {}
    for read in reads:
        found.setdefault((read.value, read.place), set()).add(read)
    return [read for same in found.values() if len(same) == 1 for read in same]


def _elements(squares: Mapping[Access, Buffer], here: Index) -> dict[Value, Barrier]:
    """What stands in squares, where it is asked for at the place that was read."""

    def element(value: Value, index: tuple[Index, ...]) -> Expr | None:
        place = flatten(index, value.type.extents)
        found = (square for read, square in squares.items() if (read.value, read.place) == (value, place))
        return next((Load(square, (here,)) for square in found), None)

    return {read.value: partial(element, read.value) for read in squares}
