"""What a graph computes, as a hashable value: equal signatures mean equal programs, whatever their names and lines."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from graphc.ir.graph import Graph, Node, Value


def signature(graph: Graph) -> Hashable:
    """Types of the inputs and state, every node with its attributes, and which values are results."""
    number: dict[Value, int] = {}
    for value in (*graph.inputs, *graph.state, *(v for node in graph.nodes for v in node.outputs)):
        number[value] = len(number)
    return (
        tuple(value.type for value in graph.inputs),
        tuple(value.type for value in graph.state),
        tuple((node.op.name, tuple(number[v] for v in node.inputs), attributes(node)) for node in graph.nodes),
        tuple(number[value] for value in graph.outputs),
        tuple((number[state], number[value]) for state, value in graph.next),
    )


def attributes(node: Node) -> Hashable:
    """The attributes of a node as a hashable value."""
    return tuple(map(_attr, sorted(node.attrs.items())))


def _attr(item: tuple[str, Any]) -> Hashable:
    """Numbers keep their type and sign: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    name, value = item
    match value:
        case Graph():
            return name, signature(value)
        case bool() | int() | float():
            return name, type(value).__name__, repr(value)
        case _:
            return name, value
