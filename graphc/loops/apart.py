"""Results that lie apart along the columns of a tile: their epilogue is a map of the sums, which it turns in squares.

Before: g[o,c,j,i] = sum over p of x[p,j,i,c] dy[p,o], the gradient of a filter, in tiles with o as columns, each
        element of which would be a store of its own.
After:  the sums of each part of the depth in scratch, as [c,j,i,o]; parts added up; then w - lr g over [o,c,j,i], for
        which 16 o and 16 of the others are read along o, turned, and written along the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Value
from graphc.ir.types import TensorType
from graphc.loops.ir import Buffer
from graphc.loops.maps import fill_space
from graphc.loops.nest import identity
from graphc.loops.point import Point
from graphc.loops.roles import Roles, place_in
from graphc.loops.schedule import MapSchedule, cost, share
from graphc.passes.forms import Contract
from graphc.passes.kernels import clone

UNROLL = 2  # vectors in flight, and squares are written out row after row


def lies_apart(body: Graph, form: Contract, roles: Roles) -> bool:
    """Whether neighbours along the columns are none in the result, and all there is to do is pointwise."""
    here, cols = identity(form.space), roles.cols
    is_apart = cols is not None and not roles.dots and roles.result.coefficient(cols.variable) != 1
    is_pointwise = all(v.type.extents == form.space and place_in(form, v) == here for v in body.outputs)
    return is_apart and is_pointwise and not form.accumulations


def turn(
    point: Point,
    body: Graph,
    form: Contract,
    order: Sequence[int],
    slabs: Buffer,
    results: Mapping[Value, Buffer],
    lanes: int,
) -> None:
    """The epilogue. `slabs`: the sums of all parts, one after the other, each with the result's axes in `order`."""
    space, dtype, size = form.space, form.contraction.output.dtype, prod(form.space)
    schedule = MapSchedule(lanes, UNROLL, share(size * cost(body)))
    parts = Value(TensorType(dtype, slabs.shape))
    sums = Value(TensorType(dtype, tuple(space[axis] for axis in order)))  # the first of them
    point.buffers = {**point.buffers, parts: slabs, sums: slabs}
    starts = range(0, slabs.shape[0], size)
    if len(starts) > 1:
        terms = [ops.slice(parts, start=[start], stop=[start + size], step=[1]) for start in starts]
        with point.section():
            fill_space(point, (size,), [(slabs, reduce(ops.add, terms))], schedule)
    new = {form.contraction.output: ops.transpose(sums, perm=[order.index(axis) for axis in range(len(space))])}
    clone(form.epilogue, new)  # enters what stands for its values in `new`
    fill_space(point, space, [(results[value], new[value]) for value in body.outputs], schedule)
