"""The call: a fused kernel, whose meaning is its body."""

from __future__ import annotations

from collections.abc import Iterable

from graphc.errors import ShapeError
from graphc.ir.graph import Graph, Node, Value, make_node
from graphc.ir.op import Call, Op, register
from graphc.ir.source import Location
from graphc.ir.types import TensorType


def _kernel_type(*operands: TensorType, name: str, body: Graph) -> tuple[TensorType, ...]:
    wanted = tuple(value.type for value in body.inputs)
    if operands != wanted:
        given, needed = (", ".join(map(str, types)) for types in (operands, wanted))
        raise ShapeError(f"kernel {name} takes ({needed}), not ({given})")
    return tuple(value.type for value in body.outputs)


KERNEL = register(Op("kernel", Call(), _kernel_type, None, None, "the outputs of the graph `body`"))


def kernel(operands: Iterable[Value], *, name: str, body: Graph, location: Location | None = None) -> Node:
    """A node that computes the outputs of `body`, whose inputs are the operands in order."""
    return make_node(KERNEL, operands, {"name": name, "body": body}, location)
