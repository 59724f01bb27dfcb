"""Common subexpressions: equal ops on equal operands are one node."""

from __future__ import annotations

from collections.abc import Hashable

from graphc.ir.graph import Graph, Node, Value, copy_node, rebuild
from graphc.ir.signature import attributes
from graphc.passes.manager import graph_pass


@graph_pass
def cse(graph: Graph) -> Graph:
    """Compute equal values once; the first node, with its line, stands for all.

    Before: `%0 = exp %x`, `%1 = exp %x`, `%2 = add %0, %1`. After: `%0 = exp %x`, `%1 = add %0, %0`.
    """
    known: dict[Hashable, tuple[Value, ...]] = {}

    def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        key = node.op.name, tuple(map(id, inputs)), attributes(node)
        if key not in known:
            known[key] = copy_node(node, inputs)
        return known[key]

    return rebuild(graph, transform)
