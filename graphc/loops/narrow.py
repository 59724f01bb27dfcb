"""Rows kernels whose rows are short: one row in each lane, as many side by side as a vector has lanes.

Before: m = max(x, 1); e = exp(x - m); y = e / sum(e, 1), over [64,10].
After:  for each 16 rows: their elements, turned into 10 vectors; m, e and y as vectors; y turned back.

So ten full vectors are worked on instead of sixteen that are not, and nothing is folded across lanes but sums over
rows, once for each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Index
from graphc.loops.ir import Buffer, Function, Load, LoopKind
from graphc.loops.nest import UNROLLED_VECTORS, Group, block_length, identity, shared
from graphc.loops.point import Barrier, Point, always, location
from graphc.loops.schedule import NarrowSchedule
from graphc.loops.sweep import Phase, Results, Sweep, add_up, groups, plan_sweep, sweep_function
from graphc.loops.totals import Partial, combine, fill, identity_of
from graphc.passes.forms import Rows, is_narrow


def lower_narrow(body: Graph, form: Rows, name: str, schedule: NarrowSchedule) -> Function:
    """The loops of a Rows body, `schedule.lanes` rows at a time."""
    if not is_narrow(form):
        raise LoweringError(f"kernel {name} has rows that lie apart, or sums over some of them")

    def emit(point: Point, results: Results) -> Iterable[Buffer]:
        lowering = _Lowering(point, plan_sweep(body, form, form.axes, math.prod(form.space)), schedule, results)
        lowering.run()
        return [partial.buffer for partial in lowering.partials.values()]

    return sweep_function(body, form, name, schedule.lanes, emit)


class _Lowering:
    """One kernel's loops. `lane` is the row that is being emitted, `place` the element's place in it.

    Elements of a row are in squares of `lanes` places and rows: `square` is the number of the one that is walked.
    """

    def __init__(self, point: Point, sweep: Sweep, schedule: NarrowSchedule, results: Results) -> None:
        self.point, self.sweep, self.results = point, sweep, results
        self.lanes, self.blocks = schedule.lanes, schedule.blocks
        self.rows = Group.product(groups(sweep.body, sweep.form, point.buffers, sweep.form.kept))
        self.row = Group.product(groups(sweep.body, sweep.form, point.buffers, sweep.form.axes))
        self.partials: dict[Node, Partial] = {}
        self.sums: dict[Node, Buffer] = {}
        self.square = 0
        self.place = self.lane = ZERO

    def run(self) -> None:
        """Emit blocks of full tiles and the rows that are left, then the finals."""
        point, form = self.point, self.sweep.form
        tiles, left = divmod(self.rows.extent, self.lanes)
        length = block_length(tiles, self.blocks)
        blocks = -(-tiles // length) if tiles else 0
        for node in form.accumulations:
            self.partials[node] = Partial.of(point.name("part"), node, blocks + (left > 0))

        def block(number: Index, first: Index, length: int) -> None:
            with self.summed(number), point.loop("t", length) as tile:
                self.tile((first + tile) * self.lanes, self.lanes)

        if tiles:
            shared(point, tiles, length, block)
        if left:
            with point.loop("b", 1, keep=True), point.section(), self.summed(Index(blocks)):
                self.tile(Index(tiles * self.lanes), left)
        add_up(point, self.sweep.body, form.finals, tuple(self.partials.values()), self.results, self.lanes)

    @contextmanager
    def summed(self, block: Index) -> Iterator[None]:
        """Sums of each lane for what is emitted inside; afterwards they are folded into the block's partial results."""
        point, lanes = self.point, self.lanes
        for node, results in self.partials.items():
            results.clear(point, block, lanes, 1)
            self.sums[node] = self.register("sum", node.output, self.by_place(node))
            fill(point, self.sums[node], ZERO, self.sums[node].shape[0], identity_of(node), lanes, 1)
        yield

        def fold(node: Node) -> None:
            with self.vector(lanes):
                expr = point.load(self.sums[node], self.position(self.by_place(node)))
                self.partials[node].add(point, block, self.sweep.target(node), expr)

        for node in self.partials:
            if self.by_place(node):
                self.along(partial(fold, node))
            else:
                fold(node)

    def tile(self, first: Index, rows: int) -> None:
        """`rows` rows from `first` on, one in each lane."""
        point, sweep = self.point, self.sweep
        point.barriers.clear()
        for value in sweep.body.inputs:
            if value.type.extents == sweep.form.space:
                point.barriers[value] = self.turned(value, first, rows)
        written = {value: self.squares(value) for phase in sweep.phases for value in phase.outputs}
        totals = {
            node: self.register("acc", node.output, False)
            for phase in sweep.phases
            for node in phase.totals
            if node not in self.sums
        }
        kept = {value: self.register("row", value, True) for phase in sweep.phases for value in phase.keep}
        with self.vector(rows), point.where(self.rows.at(first + self.lane, sweep.variables)):
            for phase in sweep.phases:
                self.phase(phase, written, totals, kept)
            values = [(value, point.at(value, sweep.index(value))) for value in sweep.row_outputs]
            for node in sweep.row_sums:
                self.add(node, self.sums[node], False)
            for value, expr in values:
                point.store(self.results[value], sweep.flat(value), expr, location(value))
        for value, squares in written.items():
            self.turn_back(value, squares, first, rows)

    def phase(
        self,
        phase: Phase,
        written: Mapping[Value, list[Buffer]],
        totals: Mapping[Node, Buffer],
        kept: Mapping[Value, Buffer],
    ) -> None:
        """One walk along the rows."""
        point, sweep = self.point, self.sweep
        for node in phase.totals:
            if node in totals:
                point.store(totals[node], self.lane, identity_of(node))

        def element() -> None:
            for value in phase.keep:
                point.store(kept[value], self.position(True), point.at(value, sweep.index(value)))
            for node in phase.totals:
                self.add(node, totals[node] if node in totals else self.sums[node], False)
            for node in phase.columns:
                self.add(node, self.sums[node], True)
            for value in phase.outputs:
                expr = point.at(value, sweep.index(value))
                point.store(*self.element(written[value]), expr, location(value))

        self.along(element)
        for node in phase.totals:
            if node in totals:
                point.barriers[node.output] = always(point.load(totals[node], self.lane))
        for value in phase.keep:
            point.barriers[value] = self.known(kept[value])

    def add(self, node: Node, total: Buffer, by_place: bool) -> None:
        """The current element, to a total of its lane."""
        expr = self.point.at(node.inputs[0], self.sweep.index(node.inputs[0]))
        self.point.reduce(combine(node), total, self.position(by_place), expr, node.location)

    def by_place(self, node: Node) -> bool:
        """Whether an accumulation has a result for each place of a row, or one for all."""
        return any(node in phase.columns for phase in self.sweep.phases)

    # Where elements are ------------------------------------------------------------------------------------------

    def register(self, name: str, value: Value, by_place: bool) -> Buffer:
        """A vector of rows, or one for each place of a row."""
        return self.point.local(name, value.dtype, (self.row.extent if by_place else 1) * self.lanes)

    def position(self, by_place: bool) -> Index:
        """The current element's in a register."""
        return self.place * self.lanes + self.lane if by_place else self.lane

    def known(self, kept: Buffer) -> Barrier:
        """An element that was kept: at the current point only."""
        here = identity(self.sweep.form.space)
        return lambda index: Load(kept, (self.position(True),)) if index == here else None

    def squares(self, value: Value) -> list[Buffer]:
        """Room for the rows of a tile."""
        return [self.point.local("square", value.dtype, self.lanes, self.lanes) for _ in self.starts]

    def element(self, squares: list[Buffer]) -> tuple[Buffer, Index]:
        """The current one: places one below the other, rows side by side."""
        return squares[self.square], (self.place - self.square * self.lanes) * self.lanes + self.lane

    def turned(self, value: Value, first: Index, rows: int) -> Barrier:
        """An operand's rows, side by side."""
        point, squares, here = self.point, self.squares(value), identity(self.sweep.form.space)

        def copy(square: Buffer, index: Index) -> None:
            point.store(square, index, point.load(point.buffers[value], self.sweep.flat(value)))

        self.across(squares, first, rows, copy)
        for square in squares:
            point.transpose(square)

        def known(index: tuple[Index, ...]) -> Load | None:
            square, place = self.element(squares)
            return Load(square, (place,)) if index == here else None

        return known

    def turn_back(self, value: Value, squares: list[Buffer], first: Index, rows: int) -> None:
        """A result's rows, one below the other."""
        for square in squares:
            self.point.transpose(square)

        def copy(square: Buffer, index: Index) -> None:
            self.point.store(
                self.results[value], self.sweep.flat(value), self.point.load(square, index), location(value)
            )

        self.across(squares, first, rows, copy)

    # Loops -------------------------------------------------------------------------------------------------------

    @property
    def starts(self) -> range:
        """The first place of each square."""
        return range(0, self.row.extent, self.lanes)

    @contextmanager
    def vector(self, rows: int) -> Iterator[None]:
        """A row in each lane."""
        with self.point.loop("v", rows, LoopKind.VECTOR, self.lanes) as self.lane:
            yield

    def along(self, element: Callable[[], None]) -> None:
        """The places of a row, inside a vector."""
        for square, start in enumerate(self.starts):
            self.square = square
            width = min(self.lanes, self.row.extent - start)
            kind = LoopKind.UNROLLED if width <= UNROLLED_VECTORS else LoopKind.SERIAL
            with self.point.loop("u", width, kind) as within:
                self.place = within + start
                with self.point.where(self.row.at(self.place, self.sweep.variables)):
                    element()

    def across(self, squares: list[Buffer], first: Index, rows: int, copy: Callable[[Buffer, Index], None]) -> None:
        """Rows one below the other, each in vectors."""
        variables = self.sweep.variables
        for square, start in zip(squares, self.starts, strict=True):
            width = min(self.lanes, self.row.extent - start)
            with (
                self.point.loop("u", rows, LoopKind.UNROLLED) as row,
                self.point.loop("v", width, LoopKind.VECTOR, self.lanes) as lane,
                self.point.where(self.rows.at(first + row, variables) | self.row.at(lane + start, variables)),
            ):
                copy(square, row * self.lanes + lane)
