"""Constant folding: what does not depend on inputs or state is computed now.

A value that repeats one number stays a scalar constant and a broadcast, however large it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import ops
from graphc.ir.graph import Graph, Literal, Node, Value, copy_node, rebuild
from graphc.ir.op import Elementwise, Movement, Opaque
from graphc.passes.forms import splat
from graphc.passes.manager import graph_pass

LARGEST = 1024  # elements of a table that folding may make


@graph_pass
def fold(graph: Graph) -> Graph:
    """Evaluate nodes whose operands are constants.

    Before: `%0 = constant value=f32[]{2.0}`, `%1 = neg %0`. After: `%0 = constant value=f32[]{-2.0}`.
    """
    return rebuild(graph, _fold)


def _fold(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    found = _evaluated(node, inputs)
    return copy_node(node, inputs) if found is None else (found,)


def _evaluated(node: Node, inputs: tuple[Value, ...]) -> Value | None:
    op = node.op
    if op.evaluate is None or op.name == "constant" or isinstance(op.kind, Opaque) or len(node.outputs) > 1:
        return None
    if op.name == "extent":
        return ops.constant(value=Literal.of(op.evaluate(**node.attrs))) if isinstance(node.attrs["dim"], int) else None
    if not inputs or (op.name == "broadcast" and inputs[0].type.rank == 0):
        return None
    result = node.output.type
    number = number_of(inputs[0])
    if number is not None and isinstance(op.kind, Movement) and op.name not in ("pad", "unwindows", "concat"):
        return ops.full(result.shape, number, result.dtype)
    found = work_on_numbers(node, inputs)
    if found is not None:
        return found
    literals = [literal_of(value) for value in inputs]
    if any(literal is None for literal in literals) or int(np.prod(result.extents)) > LARGEST:
        return None
    arrays = [literal.array for literal in literals if literal is not None]
    return ops.constant(value=Literal.of(op.evaluate(*arrays, **node.attrs)))


def work_on_numbers(node: Node, inputs: Sequence[Value]) -> Value | None:
    """What elementwise work on these operands is, where each repeats one number: a number, repeated."""
    if not isinstance(node.op.kind, Elementwise) or node.op.evaluate is None:
        return None
    numbers = []
    for value in inputs:
        numbers.append(number_of(value))
        if numbers[-1] is None:
            return None
    scalars = [np.asarray(n, v.dtype.numpy) for n, v in zip(numbers, inputs, strict=True)]
    return ops.full(node.output.shape, _item(node.op.evaluate(*scalars, **node.attrs)), node.output.dtype)


def number_of(value: Value) -> Any:
    """The number that every element of a value is known to have, or None."""
    node = value.node
    if node is None:
        return None
    if node.op.name == "broadcast":
        return number_of(node.inputs[0])
    return splat(node.attrs["value"]) if node.op.name == "constant" else None


def literal_of(value: Value) -> Literal | None:
    """The literal that a value is, if it is a constant."""
    node = value.node
    return node.attrs["value"] if node is not None and node.op.name == "constant" else None


def _item(array: Any) -> Any:
    return np.asarray(array).item()
