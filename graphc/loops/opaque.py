"""Opaque kernels: ops whose positions are data.

gather       a Map whose loads find their place at run time
scatter_add  zero, then additions in the order of the indices, so that results do not depend on threads
check_index  one test over all indices; no outputs, since the result is a view of the operand
"""

from __future__ import annotations

import math

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Node
from graphc.ir.index import ZERO, Index, unflatten
from graphc.ir.types import DType
from graphc.loops.ir import Check, Const, Function, Scalar, Store, StoreAt
from graphc.loops.maps import lower_map
from graphc.loops.nest import block_length, shared, vectors
from graphc.loops.point import Point, parameters
from graphc.loops.schedule import MapSchedule
from graphc.loops.totals import Total
from graphc.passes.forms import Map, Opaque

FAILED = 1  # the status of a kernel whose check does not hold


def lower_opaque(body: Graph, form: Opaque, name: str, schedule: MapSchedule) -> Function:
    """The loops of an Opaque body."""
    match form.node.op.name:
        case "gather":
            return lower_map(body, Map(form.node.output.type.extents), name, schedule)
        case "scatter_add":
            return _scatter_add(body, form.node, name, schedule)
        case "check_index":
            return _check_index(body, form.node, name, schedule)
        case other:
            raise LoweringError(f"op {other} has no lowering", form.node.location)


def _scatter_add(body: Graph, node: Node, name: str, schedule: MapSchedule) -> Function:
    inputs, (output,) = parameters(body)
    point = Point(dict(zip(body.inputs, inputs, strict=True)))
    indices, updates = node.inputs
    axis, rank = node.attrs["axis"], indices.type.rank
    before, rows, behind = output.shape
    zero = Const(0.0 if output.dtype.is_float else 0, output.dtype)
    count = math.prod(indices.type.extents)

    def clear(outer: Index) -> None:
        with point.loop("r", rows) as row:
            vectors(
                point,
                behind,
                schedule.lanes,
                schedule.unroll,
                lambda position, _: point.statements.append(Store(output, (outer, row, position), zero)),
            )

    def add(outer: Index, item: Index, position: Index) -> None:
        middle = unflatten(item, indices.type.extents)
        index = (
            *unflatten(outer, updates.type.extents[:axis]),
            *middle,
            *unflatten(position, updates.type.extents[axis + rank :]),
        )
        at, value = point.at(indices, middle), point.at(updates, index)
        point.statements.append(StoreAt(output, (outer, ZERO, position), 1, at, value, node.location))

    def block(_: Index, first: Index, length: int) -> None:
        with point.loop("r", length) as row:
            outer = first + row
            clear(outer)
            if not count:
                return
            with point.loop("r", count) as item:
                vectors(point, behind, schedule.lanes, schedule.unroll, lambda position, _: add(outer, item, position))

    if before * rows * behind:
        shared(point, before, block_length(before, schedule.blocks), block)
    return Function(name, inputs, (output,), (), tuple(point.statements))


def _check_index(body: Graph, node: Node, name: str, schedule: MapSchedule) -> Function:
    inputs, _ = parameters(body)
    point = Point(dict(zip(body.inputs, inputs, strict=True)))
    (indices,) = node.inputs
    count = math.prod(indices.type.extents)
    if not count:
        return Function(name, inputs, (), (), ())
    zero, limit = Const(0, indices.dtype), Const(node.attrs["size"], indices.dtype)
    total = Total.open(point, "logical_and", Const(True, DType.BOOL), count, schedule.lanes, schedule.unroll)

    def test(position: Index, slot: Index) -> None:
        value = point.load(inputs[0], position)
        low = Scalar("greater_equal", (value, zero), DType.BOOL)
        high = Scalar("less", (value, limit), DType.BOOL)
        total.add(point, slot, point.let(Scalar("logical_and", (low, high), DType.BOOL)))

    vectors(point, count, schedule.lanes, schedule.unroll, test)
    point.statements.append(Check(total.fold(point), FAILED))
    return Function(name, inputs, (), (), tuple(point.statements))
