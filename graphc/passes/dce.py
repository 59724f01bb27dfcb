"""Dead code: nodes that no output and no next state needs."""

from __future__ import annotations

from graphc.ir.graph import Graph, topological
from graphc.passes.manager import graph_pass


@graph_pass
def dce(graph: Graph) -> Graph:
    """Drop what no result needs. A check whose indices nobody reads goes too: it guards nothing.

    Before: `%0 = exp %x`, `%1 = neg %x`, `return %1`. After: `%0 = neg %x`, `return %0`.
    """
    needed = set(topological(graph.results))
    if len(needed) == len(graph.nodes):
        return graph
    nodes = tuple(node for node in graph.nodes if node in needed)
    return Graph(graph.name, graph.inputs, graph.state, nodes, graph.outputs, graph.next)
