"""Rows kernels whose rows lie across memory: column sums, batch norm over channels-last, softmax over a middle axis.

Before: s = sum(x, 0), over [1000,256].
After:  for each tile of a few vectors of columns: one accumulator per column while walking down the rows.

With few columns and many rows, blocks of rows are summed apart and their partial results added in a fixed tree. Each
phase then runs over all blocks before the next one, and what it found about the columns goes to scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Index, Var, unflatten
from graphc.loops.ir import Buffer, Function, Load, LoopKind
from graphc.loops.nest import block_length, leading, shared, size, spans_of, spread, vectors, walk
from graphc.loops.point import Barrier, Point, location
from graphc.loops.schedule import ColumnsSchedule, cost, in_flight
from graphc.loops.sweep import Phase, Results, Sweep, groups, phase_by_phase, plan_sweep, sweep_function
from graphc.loops.totals import Partial, combine, fill, identity_of
from graphc.passes.forms import Rows

# Emits a tile: its first column, its width, the block of rows, their first one, how many.
Tile = Callable[[Index, int, Index, Index, int], None]


def lower_columns(body: Graph, form: Rows, name: str, schedule: ColumnsSchedule) -> Function:
    """The loops of a Rows body without accumulations, a tile of columns at a time."""
    if form.accumulations:
        raise LoweringError(f"kernel {name} has accumulations; it cannot be lowered by columns")

    def emit(point: Point, results: Results) -> Iterable[Buffer]:
        lowering = _Lowering(point, plan_sweep(body, form, form.axes, 0), schedule, results)
        lowering.run()
        return lowering.scratch

    return sweep_function(body, form, name, schedule.lanes, emit)


class _Lowering:
    """One kernel's loops. `slot` is the accumulator of the column that is being emitted."""

    def __init__(self, point: Point, sweep: Sweep, schedule: ColumnsSchedule, results: Results) -> None:
        self.point, self.sweep, self.schedule, self.results = point, sweep, schedule, results
        self.lanes, self.unroll = schedule.lanes, schedule.unroll
        self.rows = groups(sweep.body, sweep.form, point.buffers, sweep.form.axes)
        across = groups(sweep.body, sweep.form, point.buffers, sweep.form.kept)
        self.outer, self.inner = across[:-1], across[-1:]
        self.tiles, self.left = divmod(size(self.inner), self.lanes * self.unroll)
        wanted = schedule.blocks // max(1, size(self.outer) * self.tiles)
        self.lead, self.rest = leading(self.rows, wanted)
        self.length = block_length(size(self.lead), wanted)
        self.slot = ZERO
        self.scratch: list[Buffer] = []

    def run(self) -> None:
        """Emit whole columns, all phases of a tile together; or, where rows are cut into blocks, phase after phase."""
        if self.length == size(self.lead):
            self.everywhere(self.columns)
            return
        self.scratch = phase_by_phase(self.point, self.sweep, self.results, self.lanes, self.in_blocks)

    def in_blocks(self, phase: Phase) -> list[Partial]:
        """A phase, block by block; returns the totals of all blocks."""
        count = -(-size(self.lead) // self.length)
        partials = [Partial.of(self.point.name("part"), node, count) for node in phase.totals]

        def block(start: Index, width: int, number: Index, first: Index, length: int) -> None:
            known = dict(self.point.barriers)
            self.phase(phase, start, width, first, length)
            self.across(start, width, lambda: self.store_partials(partials, number))
            self.point.barriers = known

        self.everywhere(block)
        return partials

    def columns(self, start: Index, width: int, _: Index, first: Index, length: int) -> None:
        """All phases of a tile's columns."""
        self.point.barriers.clear()
        for phase in self.sweep.phases:
            self.phase(phase, start, width, first, length)
            for value in phase.known:
                self.keep(value, start, width)
        self.across(start, width, lambda: self.store(self.sweep.row_outputs))

    def everywhere(self, emit: Tile) -> None:
        """Full tiles and the columns that are left, over full blocks of rows and the rows that are left."""
        width, rows = self.lanes * self.unroll, size(self.lead)
        for start, count, across in ((0, self.tiles, width), (self.tiles * width, min(self.left, 1), self.left)):
            self.region(start, count, across, 0, rows // self.length, self.length, emit)
            self.region(start, count, across, rows // self.length, min(rows % self.length, 1), rows % self.length, emit)

    def region(self, start: int, tiles: int, width: int, block: int, blocks: int, length: int, emit: Tile) -> None:
        """Tiles of `width` columns from column `start` on, over row blocks of `length` from block `block` on."""
        extents = (size(self.outer), tiles, blocks)
        count = math.prod(extents)
        first_row = size(self.lead) - length if block else 0

        def tasks(_: Index, first: Index, number: int) -> None:
            with self.point.loop("t", number) as task:
                outer, tile, part = unflatten(first + task, extents)
                with self.point.where(spread(self.outer, self.sweep.variables, outer)):
                    emit(tile * width + start, width, part + block, part * length + first_row, length)

        if count:
            shared(self.point, count, block_length(count, self.schedule.blocks), tasks)

    def phase(self, phase: Phase, start: Index, width: int, first_row: Index, length: int) -> None:
        """One walk down the rows: as many side by side as a narrow tile leaves registers for, each with totals of its
        own, so that one sum does not wait for the other."""
        point, sweep = self.point, self.sweep
        beside = min(self.unroll, in_flight(cost(sweep.body)))
        side, slots = max(1, beside * self.lanes // width) if phase.totals else 1, self.slots(width)
        totals = {node: point.local("acc", node.output.dtype, side * slots) for node in phase.totals}
        for node, buffer in totals.items():
            fill(point, buffer, ZERO, side * slots, identity_of(node), self.lanes, self.unroll)

        def element(base: Index) -> None:
            values = [(node, point.at(node.inputs[0], sweep.index(node.inputs[0]))) for node in phase.totals]
            self.store(phase.outputs)
            for node, expr in values:
                point.reduce(combine(node), totals[node], base + self.slot, expr, node.location)

        self.down(first_row, length, side, lambda number: self.across(start, width, lambda: element(number * slots)))
        for node, buffer in totals.items():
            self.fold(node, buffer, side, start, width)
            point.barriers[node.output] = self.column(buffer)

    def down(self, first_row: Index, length: int, side: int, row: Callable[[Index], None]) -> None:
        """Walk down some rows, `side` at a time: `row` is told which of them it emits."""
        point, variables = self.point, self.sweep.variables

        def rows(count: int, at: Callable[[Index], dict[Var, Index]]) -> None:
            for first, times, together in ((0, count // side, side), (count // side * side, count % side, 1)):
                with (
                    point.loop("r", times) as block,
                    point.loop("u", together, LoopKind.UNROLLED) as number,
                    point.where(at(block * together + number + first)),
                ):
                    row(number)

        if not self.rest:
            rows(length, lambda position: spread(self.lead, variables, first_row + position))
            return
        *outer, inner = self.rest
        with (
            point.loop("r", length) as number,
            point.where(spread(self.lead, variables, first_row + number)),
            walk(point, spans_of(outer), variables),
        ):
            rows(inner.extent, lambda position: inner.at(position, variables))

    def fold(self, node: Node, buffer: Buffer, side: int, start: Index, width: int) -> None:
        """Add up the totals of rows side by side, as a fixed tree."""
        point, slots = self.point, self.slots(width)

        def add(place: Index, other: Index) -> None:
            point.reduce(combine(node), buffer, place + self.slot, point.load(buffer, other + self.slot))

        while side > 1:
            half = (side + 1) // 2
            with point.loop("u", side - half, LoopKind.UNROLLED) as number:
                self.across(start, width, partial(add, number * slots, (number + half) * slots))
            side = half

    def keep(self, value: Value, start: Index, width: int) -> None:
        """Compute a value of each column once, for the walks that follow."""
        buffer = self.point.local("acc", value.dtype, self.slots(width))
        here = self.sweep.index(value)
        self.across(start, width, lambda: self.point.store(buffer, self.slot, self.point.at(value, here)))
        self.point.barriers[value] = self.column(buffer)

    def slots(self, width: int) -> int:
        """Elements of a local with one for each column of a tile."""
        return 1 if width == 1 else -(-width // self.lanes) * self.lanes

    def store(self, values: Iterable[Value]) -> None:
        exprs = [(value, self.point.at(value, self.sweep.index(value))) for value in values]
        for value, expr in exprs:
            self.point.store(self.results[value], self.sweep.flat(value), expr, location(value))

    def store_partials(self, partials: Iterable[Partial], block: Index) -> None:
        for sums in partials:
            expr = self.point.at(sums.node.output, self.sweep.index(sums.node.output))
            sums.store(self.point, block, self.sweep.target(sums.node), expr)

    def across(self, start: Index, width: int, element: Callable[[], None]) -> None:
        """The vectors of a tile."""

        def vector(position: Index, slot: Index) -> None:
            self.slot = slot
            with self.point.where(spread(self.inner, self.sweep.variables, start + position)):
                element()

        vectors(self.point, width, self.lanes, self.unroll, vector)

    def column(self, buffer: Buffer) -> Barrier:
        return lambda _: Load(buffer, (self.slot,))
