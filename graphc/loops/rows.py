"""Rows kernels whose rows run along memory: softmax, layer norm, cross entropy, sums to a scalar or over leading axes.

Before: m = max(x, 1); e = exp(x - m); y = e / sum(e, 1), over [64,1000].
After:  for each row: accumulate m in lanes, fold; e into a row buffer and its sum in lanes, fold; y from the buffer.

Few long rows with several phases are cut into blocks, and each phase runs over all of them before the next one.
Accumulations over rows go to one partial result per block of rows; finals add the blocks up in a fixed tree.
A kernel without phases may run along any axes, so it takes the innermost ones that move together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from graphc.ir.graph import Graph, Node
from graphc.ir.index import ZERO, Index
from graphc.loops.ir import Buffer, Expr, Function, Load
from graphc.loops.nest import (
    Group,
    Span,
    block_length,
    identity,
    leading,
    part_of,
    shared,
    size,
    spans_of,
    spread,
    vectors,
    walk,
)
from graphc.loops.point import Barrier, Point, always, location
from graphc.loops.schedule import RowsSchedule
from graphc.loops.sweep import Phase, Results, Sweep, add_up, groups, phase_by_phase, plan_sweep, sweep_function
from graphc.loops.totals import Partial, Total, combine, identity_of
from graphc.passes.forms import Rows, is_single_phase, levels, lies_across

FEW_ROWS = 8  # fewer rows than this are not enough to share out; a row is then cut into blocks


def lower_rows(body: Graph, form: Rows, name: str, schedule: RowsSchedule) -> Function:
    """The loops of a Rows body, one row after the other."""
    form = without_phases(body, form) if _walks_in_order(body, form, schedule) else form

    def emit(point: Point, results: Results) -> Iterable[Buffer]:
        if form.reductions:
            inner = groups(body, form, point.buffers, form.axes)
            outer = groups(body, form, point.buffers, form.kept)
        else:
            found = groups(body, form, point.buffers, range(len(form.space)))
            outer, inner = found[:-1], found[-1:]
        axes = form.axes if form.reductions else tuple(axis for group in inner for axis in group.axes)
        sweep = plan_sweep(body, form, axes, schedule.buffer)
        lowering = _Lowering(point, sweep, schedule, outer, inner)
        return lowering.run(results)

    return sweep_function(body, form, name, schedule.lanes, emit)


def without_phases(body: Graph, form: Rows) -> Rows:
    """The same kernel with all reductions taken as accumulations: allowed where no later phase reads a result."""
    level = levels(body, form)
    finals = form.finals | {value for value, number in level.items() if number > 0}
    sums = (*form.reductions, *form.accumulations)
    return replace(form, reductions=(), accumulations=sums, finals=frozenset(finals))


def _walks_in_order(body: Graph, form: Rows, schedule: RowsSchedule) -> bool:
    """Whether to sweep memory in order and sort sums out by target: for few rows, or rows across memory.

    Not where a sum is over values of rows, which come once for each row and not for each point.
    """
    rows, points = math.prod(form.space[axis] for axis in form.kept), math.prod(form.space)
    is_of_points = all(math.prod(node.inputs[0].type.extents) == points for node in form.accumulations)
    is_better = rows < min(FEW_ROWS, schedule.blocks) or lies_across(form)
    return is_single_phase(body, form) and is_of_points and is_better


class _Lowering:
    """One kernel's loops; what differs between blocks and rows is passed down, what is the kernel's is kept here."""

    def __init__(
        self, point: Point, sweep: Sweep, schedule: RowsSchedule, outer: list[Group], inner: list[Group]
    ) -> None:
        self.point, self.sweep, self.schedule = point, sweep, schedule
        self.outer, self.inner = outer, inner
        self.lanes, self.unroll = schedule.lanes, schedule.unroll
        self.partials: dict[Node, Partial] = {}

    def run(self, results: Results) -> list[Buffer]:
        """Emit the sweep, then the finals; returns scratch."""
        point, sweep = self.point, self.sweep
        if self.has_few_long_rows():
            return phase_by_phase(point, sweep, results, self.lanes, lambda phase: self.in_blocks(phase, results))
        rows, extent = size(self.outer), self.inner[-1].extent if self.inner else 1
        cut = not sweep.form.reductions and rows < min(FEW_ROWS, self.schedule.blocks)
        lead, rest = ([], self.outer) if cut else leading(self.outer, self.schedule.blocks)
        count, step = (extent, self.lanes * self.unroll) if cut else (size(lead), 1)
        length = block_length(count, self.schedule.blocks, step)
        blocks = -(-count // length)
        for node in sweep.form.accumulations:
            self.partials[node] = Partial.of(point.name("part"), node, blocks)

        def block(number: Index, first: Index, length: int) -> None:
            for partial in self.partials.values():
                partial.clear(point, number, self.lanes, self.unroll)
            with (
                point.loop("r", 1 if cut else length) as row,
                point.where(spread(lead, sweep.variables, row if cut else first + row)),
                walk(point, spans_of(rest), sweep.variables),
            ):
                spans = [Span(group, first, length) for group in self.inner] if cut else spans_of(self.inner)
                self.row(number, spans, results)

        shared(point, count, length, block)
        partials = tuple(self.partials.values())
        add_up(point, sweep.body, sweep.form.finals, partials, results, self.lanes)
        return [partial.buffer for partial in partials]

    def has_few_long_rows(self) -> bool:
        """Whether rows are too few to share out, have several phases, and are too long to keep anything of them."""
        form = self.sweep.form
        is_few = size(self.outer) < min(FEW_ROWS, self.schedule.blocks)
        has_phases = bool(form.reductions) and not form.accumulations
        return is_few and has_phases and self.sweep.row_extent > max(1, self.schedule.buffer)

    def in_blocks(self, phase: Phase, results: Results) -> list[Partial]:
        """A phase of rows that are cut along their longest group; returns the totals of all blocks."""
        cut = max(self.inner, key=lambda group: group.extent)
        step = self.lanes * self.unroll if cut is self.inner[-1] else 1
        length = block_length(cut.extent, self.schedule.blocks, step)
        partials = {n: Partial.of(self.point.name("part"), n, -(-cut.extent // length)) for n in phase.totals}

        def block(number: Index, first: Index, length: int) -> None:
            spans = part_of(self.inner, cut, first, length)
            with walk(self.point, spans_of(self.outer), self.sweep.variables):
                for node, total in self.phase(phase, number, spans, results).items():
                    partials[node].store(self.point, number, self.sweep.target(node), total)

        shared(self.point, cut.extent, length, block)
        return list(partials.values())

    def row(self, block: Index, spans: Sequence[Span], results: Results) -> None:
        """One row, or a part of one."""
        point, sweep = self.point, self.sweep
        point.barriers.clear()
        for phase in sweep.phases:
            for node, total in self.phase(phase, block, spans, results).items():
                if node in self.partials:
                    self.partials[node].add(point, block, sweep.target(node), total)
                else:
                    point.barriers[node.output] = always(total)
        values = [(value, point.at(value, sweep.index(value))) for value in sweep.row_outputs]
        operands = [(node, point.at(node.inputs[0], sweep.index(node.inputs[0]))) for node in sweep.row_sums]
        for value, expr in values:
            point.store(results[value], sweep.flat(value), expr, location(value))
        for node, expr in operands:
            self.partials[node].add(point, block, sweep.target(node), expr)

    def phase(self, phase: Phase, block: Index, spans: Sequence[Span], results: Results) -> dict[Node, Expr]:
        """One pass over a row or a part of it; returns its totals."""
        point, sweep = self.point, self.sweep
        extent = spans[-1].length if spans else 1
        totals = {
            node: Total.open(point, combine(node), identity_of(node), extent, self.lanes, self.unroll)
            for node in phase.totals
        }
        kept = {value: point.local("row", value.dtype, sweep.row_extent) for value in phase.keep}

        def element(slot: Index) -> None:
            roots = [*phase.keep, *phase.outputs, *(node.inputs[0] for node in (*phase.totals, *phase.columns))]
            exprs = {value: point.at(value, sweep.index(value)) for value in roots}
            for value, buffer in kept.items():
                point.store(buffer, sweep.row_position(), exprs[value])
            for node, total in totals.items():
                total.add(point, slot, exprs[node.inputs[0]])
            for node in phase.columns:
                self.partials[node].add(point, block, sweep.target(node), exprs[node.inputs[0]])
            for value in phase.outputs:
                point.store(results[value], sweep.flat(value), exprs[value], location(value))

        self.along(element, spans)
        found = {node: total.fold(point) for node, total in totals.items()}
        for value, buffer in kept.items():
            point.barriers[value] = _kept(buffer, sweep)
        return found

    def along(self, element: Callable[[Index], None], spans: Sequence[Span]) -> None:
        """The loops over a row."""
        if not spans:
            element(ZERO)
            return
        *lead, (last, start, extent) = spans
        variables = self.sweep.variables

        def vector(position: Index, slot: Index) -> None:
            with self.point.where(last.at(start + position, variables)):
                element(slot)

        with walk(self.point, lead, variables):
            vectors(self.point, extent, self.lanes, self.unroll, vector)


def _kept(buffer: Buffer, sweep: Sweep) -> Barrier:
    here = identity(sweep.form.space)
    return lambda index: Load(buffer, (sweep.row_position(),)) if index == here else None
