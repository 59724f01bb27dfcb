"""The verifier: what must hold of every graph, after every pass and after reading text.

1. names of inputs and state are not empty and not used twice; inputs and state come from no node
2. an operand is an input, a state, or an output of an earlier node of the same graph
3. a node's output types are what its op infers from operand types and attributes
4. outputs and next values are values of this graph
5. `next` pairs a state with a value of its type, each state at most once
6. attributes are of kinds that can be printed
7. a body obeys all of this; that of a kernel has no state, and returns a value once
"""

from __future__ import annotations

from typing import Any

from graphc.errors import GraphcError, VerifyError
from graphc.ir.dim import Polynomial
from graphc.ir.graph import Graph, Literal, Node, Value
from graphc.ir.op import OPS, Call
from graphc.ir.types import DType


def verify(graph: Graph) -> None:
    """Raises VerifyError, with the number of the broken rule, unless the graph is well formed."""
    _verify_graph(graph, set())


def _verify_graph(graph: Graph, done: set[Graph]) -> None:
    """`done`: the bodies that have been looked at, which several nodes may share."""
    if graph in done:
        return
    done.add(graph)
    parameters = (*graph.inputs, *graph.state)
    names = [value.name for value in parameters]
    if len(set(names)) < len(names) or "" in names:
        repeated = next(name for name in names if not name or names.count(name) > 1)
        _fail(1, graph, f"the name {repeated!r} of an input or state is empty or used twice")
    for value in parameters:
        if value.node is not None:
            _fail(1, graph, f"parameter {value.name} is the result of {value.node.op.name}")
    known = set(parameters)
    for node in graph.nodes:
        _verify_node(graph, node, known, done)
        known.update(node.outputs)
    for value in graph.results:
        if value not in known:
            _fail(4, graph, f"a result {value.type} is not a value of the graph")
    every, states = set(graph.state), set[Value]()
    for state, value in graph.next:
        if state not in every or state in states or state.type != value.type:
            _fail(5, graph, f"next {state.name}: {state.type} = {value.type}")
        states.add(state)


def _verify_node(graph: Graph, node: Node, known: set[Value], done: set[Graph]) -> None:
    for number, value in enumerate(node.inputs):
        if value not in known:
            _fail(2, graph, f"operand {number} of {node!r} is not defined before it", node)
    for name, attr in node.attrs.items():
        if not _printable(attr):
            _fail(6, graph, f"attribute {name} of {node.op.name} is a {type(attr).__name__}", node)
    body = node.attrs.get("body")
    if isinstance(body, Graph):
        is_kernel = isinstance(node.op.kind, Call)
        if is_kernel and (body.state or body.next):
            _fail(7, graph, f"the body of kernel {body.name} has state", node)
        if is_kernel and len(set(body.outputs)) < len(body.outputs):
            _fail(7, graph, f"the body of kernel {body.name} returns a value twice", node)
        _verify_graph(body, done)
    if OPS.get(node.op.name) is not node.op:
        _fail(3, graph, f"{node.op.name} is not in the op table", node)
    try:
        found = node.op.infer(*(value.type for value in node.inputs), **node.attrs)
    except (GraphcError, TypeError) as error:
        _fail(3, graph, f"{node!r}: {error}", node)
    types = found if isinstance(found, tuple) else (found,)
    if types != tuple(value.type for value in node.outputs):
        _fail(
            3, graph, f"{node!r} has outputs {[str(v.type) for v in node.outputs]}, not {list(map(str, types))}", node
        )


def _printable(attr: Any) -> bool:
    if isinstance(attr, tuple):
        return all(map(_printable, attr))
    return attr is None or isinstance(attr, bool | int | float | str | DType | Polynomial | Literal | Graph)


def _fail(rule: int, graph: Graph, message: str, node: Node | None = None) -> None:
    raise VerifyError(f"graph {graph.name}, rule {rule}: {message}", node.location if node else None)
