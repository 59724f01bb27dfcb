"""Reshapes that stand between a result and elementwise work on it move below the work, so that both can be one kernel.

Before: `%1 = reshape %0`, `%2 = mul %1, %mask`. After: `%1 = reshape %mask`, `%2 = mul %0, %1`, `%3 = reshape %2`.
The reshape of the stored `%mask` is a view; the product has the shape of `%0` and can be the epilogue of that.
"""

from __future__ import annotations

from math import prod

from graphc.ir.dim import Dim
from graphc.ir.graph import Graph, Node, Value, copy_node, make_node, rebuild
from graphc.ir.op import OPS, Elementwise, Generator, Movement
from graphc.ir.types import Shape


def is_squeeze(node: Node) -> bool:
    """Whether a reshape only adds or removes axes of extent 1."""
    before, after = node.inputs[0].shape, node.output.shape
    return [extent for extent in before if extent != 1] == [extent for extent in after if extent != 1]


def sink_reshapes(graph: Graph) -> Graph:
    """Move the reshape of a computed value below the elementwise work that is its only reader."""
    users = graph.users()
    results = set(graph.results)

    def sink(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        if not isinstance(node.op.kind, Elementwise):
            return copy_node(node, inputs)
        for old, value in zip(node.inputs, inputs, strict=True):
            if len(users[old]) == 1 and old not in results and _is_sinkable(value):
                return _sunk(node, inputs, value)
        return copy_node(node, inputs)

    return rebuild(graph, sink)


def _is_sinkable(value: Value) -> bool:
    if value.node is None or value.node.op.name != "reshape" or is_squeeze(value.node):
        return False
    above = value.node.inputs[0].node
    return above is not None and not isinstance(above.op.kind, Movement | Generator)


def _sunk(node: Node, inputs: tuple[Value, ...], chosen: Value) -> tuple[Value, ...]:
    assert chosen.node is not None
    shape = chosen.node.inputs[0].shape
    if not all(_can_reshape(value, shape) for value in inputs):
        return copy_node(node, inputs)
    operands = [_reshaped(value, shape) for value in inputs]
    result = make_node(node.op, operands, node.attrs).output
    return (_reshaped(result, node.output.shape),)


def _can_reshape(value: Value, shape: Shape) -> bool:
    """Whether a value can be had in another shape without being stored for it."""
    if value.node is None or not isinstance(value.node.op.kind, Movement):
        return True
    operand = value.node.inputs[0]
    if value.node.op.name == "reshape":
        return operand.shape == shape or _can_reshape(operand, shape)
    divided = _divided(value.node, shape) if value.node.op.name == "broadcast" else None
    return divided is not None and _can_reshape(operand, divided[0])


def _reshaped(value: Value, shape: Shape) -> Value:
    node = value.node
    if node is not None and node.op.name == "reshape":
        return _reshaped(node.inputs[0], shape)
    if value.shape == shape:
        return value
    if node is not None and node.op.name == "broadcast":
        divided = _divided(node, shape)
        assert divided is not None
        operand, axes = divided
        return make_node(node.op, (_reshaped(node.inputs[0], operand),), {"shape": shape, "axes": axes}).output
    if node is not None and isinstance(node.op.kind, Elementwise) and _is_unary_on(node, shape):
        return make_node(node.op, (_reshaped(node.inputs[0], shape),), node.attrs).output
    return make_node(OPS["reshape"], (value,), {"shape": shape}).output


def _divided(broadcast: Node, shape: Shape) -> tuple[Shape, tuple[int, ...]] | None:
    """The operand's shape and axes in a broadcast to another shape, which divides the axes of the result further.

    None for any other shape.
    """
    (operand,), axes = broadcast.inputs, broadcast.attrs["axes"]
    parts: list[Dim] = []
    places: list[int] = []
    place = 0
    for axis, extent in enumerate(broadcast.output.shape):
        first = place
        while place < len(shape) and prod(shape[first:place]) != extent:
            place += 1
        if prod(shape[first:place]) != extent:
            return None
        if axis in axes:
            whole = operand.shape[axes.index(axis)] == extent
            parts += shape[first:place] if whole else [1] * (place - first)
            places += range(first, place)
    return (tuple(parts), tuple(places)) if place == len(shape) else None


def _is_unary_on(node: Node, shape: Shape) -> bool:
    return len(node.inputs) == 1 and _can_reshape(node.inputs[0], shape)
