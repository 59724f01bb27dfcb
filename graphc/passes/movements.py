"""Equations between movements, and between movements and what they move to or from.

Each takes a node of the ops that it is entered under, and returns what stands for its output, or None. What is moved
late is moved less: elementwise work on repeated elements is done before they are repeated, and a transpose on either
side of a contraction is a matter of its letters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphc import ops
from graphc.ir.graph import Node, Value, apply
from graphc.ir.op import Elementwise
from graphc.ops.contraction import letters
from graphc.passes.convolution import (
    contract_of_zeros,
    slice_of_contract,
    slice_of_pad,
    slice_of_slice,
    slice_of_windows,
    sum_of_unwindows,
)
from graphc.passes.fold import number_of
from graphc.passes.rewrite import grouped, made_by
from graphc.passes.softmax import exp_over_sum, gradient_of_softmax, log_of_sum_of_exp
from graphc.passes.sums import reduce_nothing, sum_after_sum, sum_of_deviations, sum_of_negated, sum_of_sum

Simplification = Callable[[Node], Value | None]


def same(node: Node) -> Value | None:
    """A movement that moves nothing: a reshape to the same shape, a slice of everything, ..."""
    (x,) = node.inputs
    attrs: dict[str, Any] = dict(node.attrs)
    match node.op.name:
        case "stop_gradient":
            return x
        case "convert":
            return x if attrs["dtype"] is x.dtype else None
        case "transpose":
            return x if attrs["perm"] == tuple(range(x.type.rank)) else None
        case "reverse":
            return x if all(x.shape[a] == 1 for a in attrs["axes"]) else None
        case "slice" if any(s != 1 for s in attrs["step"]):
            return None
        case "pad" if any(attrs["interior"]):
            return None
    return x if x.type == node.output.type else None


def reshape_twice(node: Node) -> Value | None:
    """reshape(reshape(x)) = reshape(x)"""
    inner = made_by(node.inputs[0], "reshape")
    return ops.reshape(inner.inputs[0], shape=node.attrs["shape"]) if inner else None


def transpose_twice(node: Node) -> Value | None:
    """transpose(transpose(x)) = transpose(x)"""
    inner = made_by(node.inputs[0], "transpose")
    if inner is None:
        return None
    return ops.transpose(inner.inputs[0], perm=[inner.attrs["perm"][p] for p in node.attrs["perm"]])


def transpose_of_contract(node: Node) -> Value | None:
    """transpose(contract(a, b)) = contract(a, b) with the result's letters in another order"""
    inner = made_by(node.inputs[0], "contract")
    if inner is None:
        return None
    first, second, result = letters(inner.attrs["spec"])
    order = "".join(result[p] for p in node.attrs["perm"])
    return ops.contract(*inner.inputs, spec=f"{first},{second}->{order}")


def contract_of_transpose(node: Node) -> Value | None:
    """contract(transpose(a), b) = contract(a, b) with a's letters in another order"""
    *parts, result = letters(node.attrs["spec"])
    operands = list(node.inputs)
    for number, value in enumerate(operands):
        inner = made_by(value, "transpose")
        if inner is not None:
            perm = inner.attrs["perm"]
            parts[number] = "".join(parts[number][perm.index(a)] for a in range(len(perm)))
            operands[number] = inner.inputs[0]
    if operands == list(node.inputs):
        return None
    return ops.contract(*operands, spec=f"{parts[0]},{parts[1]}->{result}")


def broadcast_twice(node: Node) -> Value | None:
    """broadcast(broadcast(x)) = broadcast(x)"""
    inner = made_by(node.inputs[0], "broadcast")
    if inner is None:
        return None
    axes = [node.attrs["axes"][a] for a in inner.attrs["axes"]]
    return ops.broadcast(inner.inputs[0], shape=node.attrs["shape"], axes=axes)


def broadcast_of_ones(node: Node) -> Value | None:
    """broadcast(x) = broadcast(x without its axes of extent 1)"""
    (x,), axes = node.inputs, node.attrs["axes"]
    kept = [a for a, extent in enumerate(x.shape) if extent != 1]
    if len(kept) == x.type.rank:
        return None
    flat = ops.reshape(x, shape=[x.shape[a] for a in kept])
    return ops.broadcast(flat, shape=node.attrs["shape"], axes=[axes[a] for a in kept])


def reshape_of_broadcast(node: Node) -> Value | None:
    """reshape(broadcast(x)) = broadcast(x) where only axes of extent 1 come or go"""
    inner = made_by(node.inputs[0], "broadcast")
    shape = node.attrs["shape"]
    if inner is None or [d for d in shape if d != 1] != [d for d in inner.output.shape if d != 1]:
        return None
    places = [a for a, d in enumerate(shape) if d != 1]
    full = [a for a, d in enumerate(inner.output.shape) if d != 1]
    (x,), axes = inner.inputs, inner.attrs["axes"]
    if any(x.shape[n] != 1 and a not in full for n, a in enumerate(axes)) or any(d == 1 for d in x.shape):
        return None
    return ops.broadcast(x, shape=shape, axes=[places[full.index(a)] for a in axes])


def slice_of_reshape(node: Node) -> Value | None:
    """slice(reshape(x)) = reshape(slice(x)) where the reshape neither splits nor joins the axes that are cut

    And where x is made by what a slice goes on into: a reshape is a view of what is stored, and a slice would be.
    """
    inner, attrs = made_by(node.inputs[0], "reshape"), node.attrs
    if inner is None or 0 in node.output.shape:
        return None
    (x,), whole = inner.inputs, inner.output.type.extents
    if x.node is None or x.node.op.name not in ("contract", "windows", "pad", "slice") or not x.type.rank:
        return None
    found = [(0, extent, 1) for extent in x.type.extents]
    for before, after in grouped(x.type.extents, whole):
        parts = [(attrs["start"][axis], attrs["stop"][axis], attrs["step"][axis]) for axis in after]
        if parts == [(0, whole[axis], 1) for axis in after]:
            continue
        if len(before) > 1 or len(after) > 1:
            return None
        found[before[0]] = parts[0]
    start, stop, step = zip(*found)
    return ops.reshape(ops.slice(x, start=start, stop=stop, step=step), shape=node.output.shape)


def work_before_movement(node: Node) -> Value | None:
    """f(m(x), m(y), 2) = m(f(x, y, 2)), where m is a broadcast or a reshape, the same for all operands"""
    if not isinstance(node.op.kind, Elementwise) or not node.inputs:
        return None
    moved = [value.node for value in node.inputs if number_of(value) is None]
    first = moved[0] if moved else None
    if first is None or first.op.name not in ("broadcast", "reshape"):
        return None
    (x,) = first.inputs
    for inner in moved:
        if inner is None or inner.op is not first.op or inner.attrs != first.attrs or inner.inputs[0].shape != x.shape:
            return None
    operands = []
    for value in node.inputs:
        number, inner = number_of(value), value.node
        if number is not None:
            operands.append(ops.full(x.shape, number, value.dtype))
        elif inner is not None:
            operands.append(inner.inputs[0])
    return apply(first.op, apply(node.op, *operands, **node.attrs), **first.attrs)


def sum_of_pads(node: Node) -> Value | None:
    """pad(x) + pad(y) + ... = concat(x, y, ...), where each element of the sum comes from one of them"""
    parts: list[Node] = []
    stack = list(node.inputs)
    while stack:
        value = stack.pop()
        inner = made_by(value, "pad")
        if inner is not None and number_of(value) is None:
            parts.append(inner)
        elif made_by(value, "add") is not None and value.node is not None:
            stack.extend(value.node.inputs)
        else:
            return None
    axes = {a for part in parts for a, d in enumerate(node.output.shape) if part.inputs[0].shape[a] != d}
    if len(axes) != 1 or any(part.attrs["value"] != 0 for part in parts):
        return None
    (axis,) = axes
    if not all(isinstance(part.attrs["low"][axis], int) for part in parts):
        return None
    parts.sort(key=lambda part: int(part.attrs["low"][axis]))
    place: Any = 0
    for part in parts:
        if part.attrs["low"][axis] != place or part.attrs["interior"][axis]:
            return None
        place = place + part.inputs[0].shape[axis]
    return ops.concat(*(part.inputs[0] for part in parts), axis=axis) if place == node.output.shape[axis] else None


UNSHARED: dict[str, tuple[Simplification, ...]] = {  # only where nobody else reads the operand
    "transpose": (transpose_of_contract,),
    "slice": (slice_of_contract, slice_of_reshape),
}
SIMPLIFICATIONS: dict[str, tuple[Simplification, ...]] = {
    "stop_gradient": (same,),
    "require": (same,),
    "convert": (same,),
    "reshape": (same, reshape_twice, reshape_of_broadcast),
    "transpose": (same, transpose_twice),
    "slice": (same, slice_of_slice, slice_of_windows, slice_of_pad),
    "pad": (same,),
    "reverse": (same,),
    "broadcast": (same, broadcast_twice, broadcast_of_ones),
    "contract": (contract_of_transpose, contract_of_zeros),
    "add": (sum_of_pads,),
    "reduce_sum": (sum_of_unwindows, reduce_nothing, sum_of_negated, sum_of_sum, sum_of_deviations, sum_after_sum),
    "reduce_max": (reduce_nothing,),
    "reduce_min": (reduce_nothing,),
    "log": (log_of_sum_of_exp,),
    "mul": (exp_over_sum, gradient_of_softmax),
}
