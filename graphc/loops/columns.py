"""Rows kernels whose rows lie across memory: column sums, batch norm over channels-last, softmax over a middle axis.

Before: s = sum(x, 0), over [1000,256].
After:  for each tile of a few vectors of columns: one accumulator per column while walking down the rows.

With few columns and many rows, blocks of rows are summed apart and their partial results added in a fixed tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Index, unflatten
from graphc.ir.op import Elementwise, Movement
from graphc.ir.types import DType
from graphc.loops.ir import Buffer, Function, Load
from graphc.loops.nest import Group, block_length, leading, shared, size, spread, vectors, walk
from graphc.loops.point import Barrier, Point, location
from graphc.loops.rows import without_phases
from graphc.loops.schedule import ColumnsSchedule
from graphc.loops.sweep import Phase, Results, Sweep, add_up, groups, plan_sweep, sweep_function
from graphc.loops.totals import Partial, combine, fill, identity_of
from graphc.passes.forms import Rows, is_single_phase, levels


def lower_columns(body: Graph, form: Rows, name: str, schedule: ColumnsSchedule) -> Function:
    """The loops of a Rows body without accumulations, a tile of columns at a time."""
    if form.accumulations:
        raise LoweringError(f"kernel {name} has accumulations; it cannot be lowered by columns")

    def emit(point: Point, results: Results) -> Iterable[Partial]:
        lowering = _Lowering(point, plan_sweep(body, form, form.axes, 0), schedule)
        lowering.run(results)
        return lowering.partials.values()

    return sweep_function(body, form, name, schedule.lanes, emit)


class _Lowering:
    """One kernel's loops. `slot` is the accumulator of the column that is being emitted."""

    def __init__(self, point: Point, sweep: Sweep, schedule: ColumnsSchedule) -> None:
        self.point, self.sweep, self.schedule = point, sweep, schedule
        self.lanes, self.unroll = schedule.lanes, schedule.unroll
        self.down = groups(sweep.body, sweep.form, point.buffers, sweep.form.axes)
        across = groups(sweep.body, sweep.form, point.buffers, sweep.form.kept)
        self.outer, self.inner = across[:-1], across[-1:]
        self.levels = levels(sweep.body, sweep.form)
        self.lead: Sequence[Group] = ()
        self.rest: Sequence[Group] = ()
        self.slot = ZERO
        self.partials: dict[Node, Partial] = {}

    def run(self, results: Results) -> None:
        """Emit full tiles and the columns that are left; where rows are cut into blocks, add those up."""
        body, form = self.sweep.body, self.sweep.form
        width = self.lanes * self.unroll
        tiles, left = divmod(size(self.inner), width)
        wanted = self.schedule.blocks // max(1, size(self.outer) * tiles)
        self.lead, self.rest = leading(self.down, wanted) if is_single_phase(body, form) else ([], self.down)
        rows = size(self.lead)
        length = block_length(rows, wanted)
        blocks = -(-rows // length)
        if blocks > 1:
            self.partials = {n: Partial.of(self.point.name("part"), n, blocks) for n in form.reductions}
        for start, count, across in ((0, tiles, width), (tiles * width, min(left, 1), left)):
            self.region(start, count, across, 0, rows // length, length, results)
            self.region(start, count, across, rows // length, min(rows % length, 1), rows % length, results)
        if self.partials:
            finals = without_phases(body, form).finals
            add_up(self.point, body, finals, tuple(self.partials.values()), results, self.lanes)

    def region(
        self, start: int, tiles: int, width: int, block: int, blocks: int, length: int, results: Results
    ) -> None:
        """Tiles of `width` columns from column `start` on, over row blocks of `length` from block `block` on."""
        extents = (size(self.outer), tiles, blocks)
        count = math.prod(extents)
        first_row = size(self.lead) - length if block else 0

        def tasks(_: Index, first: Index, number: int) -> None:
            with self.point.loop("t", number) as task:
                outer, tile, part = unflatten(first + task, extents)
                with self.point.where(spread(self.outer, self.sweep.variables, outer)):
                    self.tile(tile * width + start, width, part + block, part * length + first_row, length, results)

        if count:
            shared(self.point, count, block_length(count, self.schedule.blocks), tasks)

    def tile(self, start: Index, width: int, block: Index, first_row: Index, length: int, results: Results) -> None:
        """All phases for some columns."""
        point, sweep = self.point, self.sweep
        point.barriers.clear()
        for phase in sweep.phases:
            self.phase(phase, start, width, first_row, length, results)
        if self.partials:
            self.across(start, width, lambda: self.store_partials(block))
        else:
            self.across(start, width, lambda: self.store(sweep.row_outputs, results))

    def phase(self, phase: Phase, start: Index, width: int, first_row: Index, length: int, results: Results) -> None:
        """One walk down the rows."""
        point, sweep = self.point, self.sweep
        totals = {node: self.registers(width, node.output.dtype) for node in phase.totals}
        for node, buffer in totals.items():
            fill(point, buffer, ZERO, buffer.shape[0], identity_of(node), self.lanes, self.unroll)

        def element() -> None:
            values = [(node, point.at(node.inputs[0], sweep.index(node.inputs[0]))) for node in phase.totals]
            self.store(phase.outputs, results)
            for node, expr in values:
                point.reduce(combine(node), totals[node], self.slot, expr, node.location)

        with (
            point.loop("r", length) as row,
            point.where(spread(self.lead, sweep.variables, first_row + row)),
            walk(point, self.rest, sweep.variables),
        ):
            self.across(start, width, element)
        for node, buffer in totals.items():
            point.barriers[node.output] = self.column(buffer)
        ready = {self.levels[node.output] for node in phase.totals}
        for value in _read_along_rows(sweep):
            if self.levels[value] in ready:
                self.keep(value, start, width)

    def keep(self, value: Value, start: Index, width: int) -> None:
        """Compute a value of each column once, for the walks that follow."""
        buffer = self.registers(width, value.dtype)
        here = self.sweep.index(value)
        self.across(start, width, lambda: self.point.store(buffer, self.slot, self.point.at(value, here)))
        self.point.barriers[value] = self.column(buffer)

    def registers(self, width: int, dtype: DType) -> Buffer:
        """A local element for each column of a tile."""
        return self.point.local("acc", dtype, 1 if width == 1 else -(-width // self.lanes) * self.lanes)

    def store(self, values: Iterable[Value], results: Results) -> None:
        exprs = [(value, self.point.at(value, self.sweep.index(value))) for value in values]
        for value, expr in exprs:
            self.point.store(results[value], self.sweep.flat(value), expr, location(value))

    def store_partials(self, block: Index) -> None:
        for node, partial in self.partials.items():
            expr = self.point.at(node.output, self.sweep.index(node.output))
            self.point.store(partial.buffer, block * partial.extent + self.sweep.target(node), expr)

    def across(self, start: Index, width: int, element: Callable[[], None]) -> None:
        """The vectors of a tile."""

        def vector(position: Index, slot: Index) -> None:
            self.slot = slot
            with self.point.where(spread(self.inner, self.sweep.variables, start + position)):
                element()

        vectors(self.point, width, self.lanes, self.unroll, vector)

    def column(self, buffer: Buffer) -> Barrier:
        return lambda _: Load(buffer, (self.slot,))


def _read_along_rows(sweep: Sweep) -> list[Value]:
    """Column values, computed from reductions, that row elements read."""
    found = [
        node.inputs[0]
        for node in sweep.body.nodes
        if isinstance(node.op.kind, Movement) and sweep.form.space == node.output.type.extents
    ]
    return [
        value
        for value in dict.fromkeys(found)
        if value in sweep.form.placements
        and value.type.extents != sweep.form.space
        and value.node is not None
        and isinstance(value.node.op.kind, Elementwise)
    ]
