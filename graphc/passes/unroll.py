"""Small windows are unrolled: pooling, and its gradient, become elementwise work on whole images.

    max over i, j of windows(x)           maximum(maximum(x[0::2, 0::2], x[0::2, 1::2]), ...)
    sum over i, j of unwindows(e)         e[h / 2, w / 2, h % 2, w % 2], where windows do not overlap;
                                          otherwise the sum of each window's places put back

A loop over a window of four elements is all overhead; as elementwise work vectors run along the image, and it can join
the kernels around it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import prod
from typing import Any

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, apply, copy_node, make_node, rebuild
from graphc.ir.op import OPS, Elementwise, Generator, Reduction
from graphc.passes.manager import graph_pass

MOST_PLACES = 16  # of a window; beyond, a loop is as fast and much less code


@graph_pass
def unroll(graph: Graph) -> Graph:
    """Replace reductions over small windows by elementwise work.

    Before: `%1 = windows %0 axes=[0] size=[2] stride=[2] dilation=[1]`, `%2 = reduce_max %1 axes=[1]`. After: two
    slices of `%0` with step 2, and their `maximum`.
    """
    known: dict[Any, bool] = {}
    return rebuild(graph, lambda node, inputs: _unrolled(node, inputs, known))


def _unrolled(node: Node, inputs: tuple[Value, ...], known: dict[Any, bool]) -> tuple[Value, ...]:
    outputs = copy_node(node, inputs)
    if not isinstance(node.op.kind, Reduction):
        return outputs
    (x,), axes = inputs, node.attrs["axes"]
    if prod(x.shape[axis] for axis in axes) > MOST_PLACES or 0 in x.shape:
        return outputs
    above = x.node
    if node.op.name == "reduce_sum" and above is not None and above.op.name == "unwindows":
        first = x.type.rank - len(above.attrs["axes"])
        return (_put_back(above),) if sorted(axes) == list(range(first, x.type.rank)) else outputs
    if not _slides(x, known):
        return outputs
    memo: dict[Any, Value] = {}
    places = itertools.product(*(range(x.shape[axis]) for axis in axes))
    parts = [_at(x, dict(zip(axes, place, strict=True)), memo) for place in places]
    result = parts[0]
    for part in parts[1:]:
        result = apply(OPS[node.op.kind.combine], result, part)
    return (result,)


def _slides(value: Value, known: dict[Any, bool]) -> bool:
    """Whether a value is computed from windows, element by element. Iterative: depth is not limited."""
    stack = [value]
    while stack:
        node = stack[-1].node
        operands = node.inputs if node is not None and isinstance(node.op.kind, Elementwise) else ()
        open = [operand for operand in operands if operand not in known]
        stack += open
        if not open:
            windows = node is not None and node.op.name == "windows"
            known[stack.pop()] = windows or any(known[operand] for operand in operands)
    return known[value]


def _at(value: Value, fixed: Mapping[int, int], memo: dict[Any, Value]) -> Value:
    """A value where some of its axes are at fixed positions; these axes are dropped."""
    if not fixed:
        return value
    key = value, tuple(sorted(fixed.items()))
    if key not in memo:
        memo[key] = _fixed(value, fixed, memo)
    return memo[key]


def _fixed(value: Value, fixed: Mapping[int, int], memo: dict[Any, Value]) -> Value:
    node, kept = value.node, [axis for axis in range(value.type.rank) if axis not in fixed]
    shape = [value.shape[axis] for axis in kept]
    if node is not None:
        if isinstance(node.op.kind, Elementwise):
            return make_node(node.op, [_at(v, fixed, memo) for v in node.inputs], node.attrs, node.location).output
        match node.op.name:
            case "broadcast":
                (x,), axes = node.inputs, node.attrs["axes"]
                inner = {n: fixed[a] if x.shape[n] != 1 else 0 for n, a in enumerate(axes) if a in fixed}
                left = [kept.index(a) for a in axes if a not in fixed]
                return ops.broadcast(_at(x, inner, memo), shape=shape, axes=left)
            case "iota":
                axis = node.attrs["axis"]
                if axis in fixed:
                    return ops.full(tuple(shape), fixed[axis], value.dtype)
                return ops.iota(shape=shape, axis=kept.index(axis), dtype=value.dtype)
            case "windows":
                first = value.type.rank - len(node.attrs["axes"])
                if sorted(fixed) == list(range(first, value.type.rank)):
                    return _window_place(node, [fixed[first + n] for n in range(len(node.attrs["axes"]))])
    start = [fixed.get(axis, 0) for axis in range(value.type.rank)]
    stop = [fixed[axis] + 1 if axis in fixed else extent for axis, extent in enumerate(value.shape)]
    return ops.reshape(ops.slice(value, start=start, stop=stop, step=[1] * value.type.rank), shape=shape)


def _window_place(windows: Node, place: list[int]) -> Value:
    """The elements at one place of all windows."""
    (x,), attrs = windows.inputs, windows.attrs
    start, stop, step = [0] * x.type.rank, list(x.shape), [1] * x.type.rank
    for axis, stride, dilation, k in zip(attrs["axes"], attrs["stride"], attrs["dilation"], place, strict=True):
        start[axis], step[axis] = k * dilation, stride
        stop[axis] = start[axis] + (windows.output.shape[axis] - 1) * stride + 1
    return ops.slice(x, start=start, stop=stop, step=step)


# The adjoint ---------------------------------------------------------------------------------------------------


def _put_back(node: Node) -> Value:
    """sum over the places of unwindows(e)."""
    (e,), attrs = node.inputs, node.attrs
    rank = e.type.rank - len(attrs["axes"])
    sizes = e.shape[rank:]
    shape = node.output.shape[:rank]
    if attrs["stride"] == sizes and set(attrs["dilation"]) == {1}:
        found = _interleaved(e, attrs["axes"], {})
        rest = [extent - have for extent, have in zip(shape, found.shape, strict=True)]
        zero = (0,) * rank
        return ops.pad(found, low=zero, high=rest, interior=zero, value=0.0) if any(rest) else found
    memo: dict[Any, Value] = {}
    total = None
    for place in itertools.product(*map(range, sizes)):
        part = _at(e, {rank + n: k for n, k in enumerate(place)}, memo)
        low, interior = [0] * rank, [0] * rank
        for axis, stride, dilation, k in zip(attrs["axes"], attrs["stride"], attrs["dilation"], place, strict=True):
            low[axis], interior[axis] = k * dilation, stride - 1
        spans = [(n - 1) * (i + 1) + 1 for n, i in zip(part.shape, interior, strict=True)]
        high = [extent - b - span for extent, b, span in zip(shape, low, spans, strict=True)]
        part = ops.pad(part, low=low, high=high, interior=interior, value=0.0)
        total = part if total is None else ops.add(total, part)
    assert total is not None
    return total


def _interleaved(e: Value, axes: tuple[int, ...], memo: dict[Value, Value]) -> Value:
    """e[..., h, ..., i] as [..., h size + i, ...]: each window's places side by side. Work on e is done there."""
    if e in memo:
        return memo[e]
    node, rank = e.node, e.type.rank - len(axes)
    order: list[int] = []
    for axis in range(rank):
        order += [axis, rank + axes.index(axis)] if axis in axes else [axis]
    split = [e.shape[axis] for axis in order]
    merged = [e.shape[axis] * (e.shape[rank + axes.index(axis)] if axis in axes else 1) for axis in range(rank)]
    found: Value
    if node is not None and isinstance(node.op.kind, Elementwise):
        operands = [_interleaved(operand, axes, memo) for operand in node.inputs]
        found = make_node(node.op, operands, node.attrs, node.location).output
    elif node is not None and node.op.name == "broadcast":
        places = [order.index(axis) for axis in node.attrs["axes"]]
        if places == sorted(places):
            found = ops.reshape(ops.broadcast(node.inputs[0], shape=split, axes=places), shape=merged)
        else:
            found = ops.reshape(ops.transpose(e, perm=order), shape=merged)
    elif node is not None and isinstance(node.op.kind, Generator) and node.op.name == "iota":
        spread = ops.iota(shape=split, axis=order.index(node.attrs["axis"]), dtype=e.dtype)
        found = ops.reshape(spread, shape=merged)
    else:
        found = ops.reshape(ops.transpose(e, perm=order), shape=merged)
    memo[e] = found
    return found
