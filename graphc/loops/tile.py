"""One register tile of a contraction: its sums, and the two ways to make them.

    products   acc[row, column vector] += left[row] * panel[column vector], for every k
    dots       acc[row, column, k lane] += left[row, k vector] * panel[column, k vector], then the lanes are folded

Invariants: a tile is a local buffer of `height` rows of `slots` elements, all of whose indices are constants once it is
unrolled; every sum runs over k in order (dots: `lanes * unroll` of them side by side, then a fixed tree). Lanes beyond
the tile's width, in the last vector, are summed like the others and stored nowhere: a mask would cost a blend each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from graphc.ir.index import ZERO, Condition, Index, Var
from graphc.ir.source import Location
from graphc.loops.ir import Buffer, Const, Expr, LoopKind, Scalar, dtype_of
from graphc.loops.nest import Span, part_of, vectors, walk
from graphc.loops.pack import Element
from graphc.loops.point import Point
from graphc.loops.roles import Roles
from graphc.loops.schedule import ContractSchedule
from graphc.loops.totals import fill


@dataclass(frozen=True, slots=True)
class Tile:
    """Where a tile stands, in rows and columns, and how large it is."""

    row: Index
    height: int
    col: Index
    width: int
    lanes: int  # along the columns

    @property
    def slots(self) -> int:
        """Columns with those that only fill up the last vector."""
        return -(-self.width // self.lanes) * self.lanes

    @property
    def size(self) -> int:
        return self.height * self.slots


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """What is multiplied, and the depth: `pieces` equal pieces of one group, the last with what is left."""

    left: Element
    panel: Element
    pieces: int


@dataclass(frozen=True, eq=False, slots=True)
class Multiplier:
    """Emits the sums of tiles."""

    point: Point
    roles: Roles
    schedule: ContractSchedule
    location: Location | None

    # Positions -----------------------------------------------------------------------------------------------

    @contextmanager
    def at(self, row: Index, column: Index) -> Iterator[None]:
        """The space's variables stand at that row and column inside."""
        found: dict[Var, Index] = {}
        for group, position in ((self.roles.rows, row), (self.roles.cols, column)):
            if group:
                found |= group.at(position, self.roles.variables)
        with self.point.where(found):
            yield

    def vectors(self, tile: Tile, body: Callable[[Index, Index], None], *, whole: bool = False) -> None:
        """`body(column of the tile, lane)` for each vector of columns, unrolled; the last masked, unless `whole`."""
        full, tail = divmod(tile.slots if whole else tile.width, tile.lanes)
        for first, count, active in ((0, full, tile.lanes), (full, int(tail > 0), tail)):
            if count:
                with (
                    self.point.loop("u", count, LoopKind.UNROLLED) as number,
                    self.point.loop("v", active, LoopKind.VECTOR, tile.lanes) as lane,
                ):
                    body((number + first) * tile.lanes + lane, lane)

    def each(self, tile: Tile, body: Callable[[Index, Index, Index], None]) -> None:
        """`body(row of the tile, column, lane)` for every element, the space's variables standing there."""

        def down(column: Index, lane: Index) -> None:
            with (
                self.point.loop("i", tile.height, LoopKind.UNROLLED) as row,
                self.at(tile.row + row, tile.col + column),
            ):
                body(row, column, lane)

        self.vectors(tile, down)

    # Sums ----------------------------------------------------------------------------------------------------

    def clear(self, acc: Buffer, tile: Tile) -> None:
        """All sums of the tile are zero."""
        zero = Const(0.0 if acc.dtype.is_float else 0, acc.dtype)

        def down(column: Index, _: Index) -> None:
            with self.point.loop("i", tile.height, LoopKind.UNROLLED) as row:
                self.point.store(acc, row * tile.slots + column, zero)

        self.vectors(tile, down, whole=True)

    def add_products(self, acc: Buffer, tile: Tile, factors: Factors, piece: Index) -> None:
        """Add the products of one piece of the depth."""
        if self.roles.dots:
            self._dots(acc, tile, factors, piece)
            return
        point = self.point
        whole = self.roles.left.stride(self.roles.cols) == 0  # else the left factor has no element for further lanes

        def load(column: Index, _: Index) -> None:
            inside = Condition(Index(tile.width - 1) - column)
            with self.at(tile.row, tile.col + column):
                point.store(row_of_panel, column, factors.panel(tile.col, tile.width, piece, (inside,)))

        def multiply(row: Index, column: Index) -> None:
            with self.at(tile.row + row, tile.col + column):
                left, slot = factors.left(tile.col, tile.width, piece, ()), row * tile.slots + column
                sums = self.multiply_add(left, point.load(row_of_panel, column), point.load(acc, slot))
                point.store(acc, slot, sums, self.location)

        def element() -> None:
            """Row by row: then the vectors of the panel and one broadcast element stay in registers, not all rows'."""
            if self.schedule.ahead:
                with self.at(tile.row + self.schedule.ahead, tile.col):
                    point.prefetch(point.buffers[self.roles.left.source], self.roles.left.place)
            self.vectors(tile, load, whole=whole)
            with point.loop("i", tile.height, LoopKind.UNROLLED) as row:
                self.vectors(tile, lambda column, _: multiply(row, column), whole=whole)

        def inner(spans: Sequence[Span]) -> None:
            with walk(point, spans, self.roles.variables):
                element()

        row_of_panel = point.local("row", acc.dtype, tile.slots)
        if self.roles.depth:
            self._pieces(factors.pieces, piece, inner)
        else:
            element()

    def multiply_add(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """a * b + c, rounded once where the type and the schedule have it so."""
        dtype = dtype_of(c)
        if self.schedule.fma and dtype.is_float:
            return Scalar("fma", (a, b, c), dtype)
        return Scalar("add", (Scalar("mul", (a, b), dtype), c), dtype)

    def _pieces(self, count: int, piece: Index, body: Callable[[Sequence[Span]], None]) -> None:
        """`body` for a piece of the depth."""
        cut = self.roles.cut(count)
        length, rest = divmod(cut.extent, count)
        body(part_of(self.roles.depth, cut, piece * length, length))
        if rest:
            with self.point.when((Condition(piece - (count - 1), equal=True),)):
                body(part_of(self.roles.depth, cut, Index(count * length), rest))

    # Dot products --------------------------------------------------------------------------------------------

    def _dots(self, acc: Buffer, tile: Tile, factors: Factors, piece: Index) -> None:
        point, lanes = self.point, self.schedule.lanes
        flight = lanes * self.schedule.unroll  # products that are added side by side
        sums = point.local("sums", acc.dtype, tile.height * tile.width * flight)
        zero = Const(0.0 if acc.dtype.is_float else 0, acc.dtype)
        fill(point, sums, ZERO, tile.height * tile.width * flight, zero, lanes, 1)
        along = self.roles.depth[-1]

        def element(position: Index, slot: Index) -> None:
            with point.where(along.at(position, self.roles.variables)):
                self._grid(tile, lambda row, column: multiply(slot, row, column))

        def multiply(slot: Index, row: Index, column: Index) -> None:
            place = (row * tile.width + column) * flight + slot
            left, right = (factor(tile.col, tile.width, piece, ()) for factor in (factors.left, factors.panel))
            point.store(sums, place, self.multiply_add(left, right, point.load(sums, place)), self.location)

        def inner(spans: Sequence[Span]) -> None:
            *outer, along = spans
            with walk(point, outer, self.roles.variables):
                self._run(along.start, along.length, element)

        self._pieces(factors.pieces, piece, inner)
        self._fold(sums, acc, tile)

    def _run(self, start: Index, length: int, element: Callable[[Index, Index], None]) -> None:
        """Vectors along the depth."""
        schedule = self.schedule
        vectors(self.point, length, schedule.lanes, schedule.unroll, lambda place, slot: element(start + place, slot))

    def _fold(self, sums: Buffer, acc: Buffer, tile: Tile) -> None:
        """Add up each dot product: its vectors pairwise, then the lanes."""
        point, lanes, count = self.point, self.schedule.lanes, self.schedule.unroll
        flight = lanes * count

        def at(row: Index, column: Index, lane: Index) -> Index:
            return (row * tile.width + column) * flight + lane

        def join(half: int, number: Index) -> None:
            def add(row: Index, column: Index) -> None:
                place = at(row, column, lane + number * lanes)
                point.reduce("add", sums, place, point.load(sums, place + half * lanes))

            self._grid(tile, add)

        def fold(row: Index, column: Index) -> None:
            point.reduce("add", acc, row * tile.slots + column, point.load(sums, at(row, column, lane)))

        with point.loop("v", lanes, LoopKind.VECTOR, lanes) as lane:
            while count > 1:
                half = (count + 1) // 2
                with point.loop("u", count - half, LoopKind.UNROLLED) as number:
                    join(half, number)
                count = half
            self._grid(tile, fold)

    def _grid(self, tile: Tile, body: Callable[[Index, Index], None]) -> None:
        """`body(row, column)` for each element, unrolled; the space's variables stand there."""
        with (
            self.point.loop("i", tile.height, LoopKind.UNROLLED) as row,
            self.point.loop("j", tile.width, LoopKind.UNROLLED) as column,
            self.at(tile.row + row, tile.col + column),
        ):
            body(row, column)
