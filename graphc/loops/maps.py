"""Map kernels: every output element computed by itself.

Before: z = relu(x + y) over [64,128].  After: blocks of one long loop over 8192 elements, in vectors.
Before: z = transpose x over [64,128].  After: squares of 16 x 16 elements, read along x's rows and written along z's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from graphc.ir.graph import Graph, Value
from graphc.ir.index import ZERO, Index, flatten
from graphc.loops.ir import Buffer, Function
from graphc.loops.nest import (
    axis_variables,
    block_length,
    collapse,
    identity,
    leading,
    shared,
    size,
    spans_of,
    spread,
    vectors,
    walk,
)
from graphc.loops.point import Point, location, parameters
from graphc.loops.schedule import MapSchedule
from graphc.loops.squares import crossed_axis, in_squares
from graphc.loops.stages import in_stages, stages
from graphc.passes.forms import Map, stored_parts

Results = Sequence[tuple[Buffer, Value]]
Parts = Sequence[tuple[Buffer, Value, Index]]  # with the flat position of the current element


def lower_map(body: Graph, form: Map, name: str, schedule: MapSchedule) -> Function:
    """The loops of a Map body."""
    inputs, outputs = parameters(body)
    point = Point(dict(zip(body.inputs, inputs, strict=True)))
    parts = [
        (buffer, part, flatten(place, value.type.extents))
        for buffer, value in zip(outputs, body.outputs, strict=True)
        for part, place in stored_parts(form.space, value)
    ]
    _fill(point, form.space, parts, schedule)
    return Function(name, inputs, outputs, (), tuple(point.statements))


def fill_space(point: Point, space: tuple[int, ...], results: Results, schedule: MapSchedule) -> None:
    """Store each result, whose shape is `space`, into its flat buffer. All are computed before any is stored."""
    target = flatten(identity(space), space)
    _fill(point, space, [(buffer, value, target) for buffer, value in results], schedule)


def _fill(point: Point, space: tuple[int, ...], parts: Parts, schedule: MapSchedule) -> None:
    variables, here = axis_variables(space), identity(space)
    if 0 in space:
        return
    probe = Point(point.buffers)
    probe.barriers = point.barriers
    for _, value, _ in parts:
        probe.at(value, here)
    targets = [target for _, _, target in parts]
    groups = collapse(range(len(space)), variables, [*probe.accesses, *targets], probe.uses)

    def store(values: Sequence[Value]) -> None:
        found = [(*part, point.at(part[1], here)) for part in parts if part[1] in values]
        for buffer, value, target, expr in found:
            point.store(buffer, target, expr, location(value))

    results = [value for _, value, _ in parts]
    chain = stages(results, space)

    if not groups:
        store(results)
        return
    *outer, inner = groups
    crossed = crossed_axis(probe.loads, outer, inner, schedule.lanes)
    if crossed:
        outer.remove(crossed)
        in_squares(point, outer, crossed, inner, variables, probe.loads, schedule, partial(store, results))
        return
    lead, rest = leading(outer, schedule.blocks)

    def stretch(start: Index, offset: Index, length: int, body: Callable[[Index], None]) -> None:
        def vector(position: Index, _: Index) -> None:
            with point.where(inner.at(start + offset + position, variables)):
                body(position)

        vectors(point, length, schedule.lanes, schedule.unroll, vector)

    def span(start: Index, length: int) -> None:
        if len(chain) == 1:
            stretch(start, ZERO, length, lambda _: store(results))
            return
        in_stages(point, chain, here, length, lambda *part: stretch(start, *part), store)

    def rows(_: Index, first: Index, length: int) -> None:
        with (
            point.loop("r", length) as row,
            point.where(spread(lead, variables, first + row)),
            walk(point, spans_of(rest), variables),
        ):
            span(ZERO, inner.extent)

    if outer:
        shared(point, size(lead), block_length(size(lead), schedule.blocks), rows)
    else:
        length = block_length(inner.extent, schedule.blocks, schedule.lanes * schedule.unroll)
        shared(point, inner.extent, length, lambda _, first, length: span(first, length))
