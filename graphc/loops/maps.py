"""Map kernels: every output element computed by itself.

Before: z = relu(x + y) over [64,128].  After: blocks of one long loop over 8192 elements, in vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir.graph import Graph, Value
from graphc.ir.index import Index, flatten
from graphc.loops.ir import Buffer, Function
from graphc.loops.nest import (
    Group,
    axis_variables,
    block_length,
    collapse,
    identity,
    leading,
    shared,
    size,
    spread,
    vectors,
    walk,
)
from graphc.loops.point import Point, location, parameters
from graphc.loops.schedule import MapSchedule
from graphc.passes.forms import Map, stored_parts

ALIAS, ASSOCIATIVE = 512, 8  # elements between addresses that compete for one cache set, and how many fit in it

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

    def element() -> None:
        values = [(buffer, value, target, point.at(value, here)) for buffer, value, target in parts]
        for buffer, value, target, expr in values:
            point.store(buffer, target, expr, location(value))

    if not groups:
        element()
        return
    *outer, inner = groups
    lead, rest = leading(outer, schedule.blocks)

    def span(start: Index, length: int) -> None:
        def vector(position: Index, _: Index) -> None:
            with point.where(inner.at(start + position, variables)):
                element()

        vectors(point, length, lanes, schedule.unroll, vector)

    tile = _tile(probe.accesses, inner, schedule.tile)
    lanes = schedule.lanes if tile == inner.extent else min(schedule.lanes, 1 << (tile.bit_length() - 1))

    def rows(_: Index, first: Index, length: int) -> None:
        with point.loop("j", inner.extent // tile) as part:
            strip(part * tile, tile, first, length)
        strip(Index(inner.extent // tile * tile), inner.extent % tile, first, length)

    def strip(start: Index, width: int, first: Index, length: int) -> None:
        with (
            point.loop("r", length) as row,
            point.where(spread(lead, variables, first + row)),
            walk(point, rest, variables),
        ):
            span(start, width)

    if outer:
        shared(point, size(lead), block_length(size(lead), schedule.blocks), rows)
    else:
        length = block_length(inner.extent, schedule.blocks, schedule.lanes * schedule.unroll)
        shared(point, inner.extent, length, lambda _, first, length: span(first, length))


def _tile(accesses: Sequence[Index], inner: Group, most: int) -> int:
    """How much of a row to do before the next: all, unless a load runs along another axis and its cache lines are used
    again in the next row. Lines that are a multiple of ALIAS elements apart share few places in the cache."""
    strides = [
        abs(index.coefficient(inner.variable))
        for index in accesses
        if any(abs(factor) == 1 for _, factor in index.terms)
    ]
    crossing = [stride for stride in strides if stride > 1]
    if not crossing:
        return inner.extent
    return min(most, ASSOCIATIVE) if any(stride % ALIAS == 0 for stride in crossing) else most
