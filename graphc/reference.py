"""The oracle: any graph, run node by node with NumPy, unoptimised. `mode="interpret"` is this.

What it computes is what a graph means. Every node is evaluated by its op's own `evaluate`; a kernel by its body, a scan
by its body again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import graphc.ops  # noqa: F401  fills the op table, which parsed text needs
from graphc.errors import FeedError, FeedTypeError, GraphcError
from graphc.ir.binding import bind, sizes_of
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Call, Scan

Array = np.ndarray[Any, Any]
Observer = Callable[[Node, list[Array], tuple[Array, ...]], None]


def evaluate(
    graph: Graph, feeds: Sequence[Any] | Mapping[str, Any], observe: Observer | None = None
) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """The outputs, and the next value of each state by name.

    `feeds` are arrays for inputs then state, in order or by name; they are converted to the dtype of their value.
    `observe(node, operands, results)` sees every node. Raises FeedError for feeds that do not fit, and whatever an
    op raises (IndexRangeError), with the line of the node.
    """
    parameters = (*graph.inputs, *graph.state)
    arrays = [np.asarray(a, v.dtype.numpy) for v, a in zip(parameters, _ordered(parameters, feeds), strict=True)]
    sizes = sizes_of(parameters, [a.shape for a in arrays])
    results, following = run(bind(graph, sizes), arrays, observe)
    return results, {state.name: array for (state, _), array in zip(graph.next, following, strict=True)}


def run(
    graph: Graph, arrays: Sequence[Array], observe: Observer | None = None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Outputs and next states of a bound graph, for arrays of inputs then state. Dead arrays are dropped."""
    known: dict[Value, Array] = dict(zip((*graph.inputs, *graph.state), arrays, strict=True))
    last = {value: node for node in graph.nodes for value in node.inputs}
    kept = {*graph.results, *known}
    for node in graph.nodes:
        operands = [known[v] for v in node.inputs]
        results = _apply(node, operands, observe)
        known.update(zip(node.outputs, results, strict=True))
        if observe is not None:
            observe(node, operands, results)
        for value in {*node.inputs, *node.outputs}:
            if value not in kept and last.get(value, node) is node:
                del known[value]
    return tuple(known[v] for v in graph.outputs), tuple(known[v] for _, v in graph.next)


def _apply(node: Node, operands: list[Array], observe: Observer | None) -> tuple[Array, ...]:
    match node.op.kind:
        case Call():
            outputs, _ = run(node.attrs["body"], operands, observe)
            return outputs
        case Scan():
            return _scan(operands, observe, **node.attrs)
    assert node.op.evaluate is not None
    try:
        result = node.op.evaluate(*operands, **node.attrs)
    except GraphcError as error:
        error.location = error.location or node.location
        raise
    return (np.asarray(result),)


def _scan(
    operands: list[Array], observe: Observer | None, *, length: int, slices: int, reverse: bool, body: Graph
) -> tuple[Array, ...]:
    carries: Sequence[Array] = operands[: len(body.state)]
    given = operands[len(body.state) :]
    stacked, constants = given[:slices], given[slices:]
    results = [np.empty((length, *v.type.extents), v.dtype.numpy) for v in body.outputs]
    for t in range(length)[:: -1 if reverse else 1]:
        outputs, carries = run(body, [*(array[t, ...] for array in stacked), *constants, *carries], observe)
        for result, output in zip(results, outputs, strict=True):
            result[t] = output
    return (*carries, *results)


def _ordered(parameters: Sequence[Value], feeds: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    names = [value.name for value in parameters]
    if not isinstance(feeds, Mapping):
        if len(feeds) != len(parameters):
            raise FeedTypeError(f"{len(parameters)} arrays are needed ({', '.join(names)}), {len(feeds)} were given")
        return list(feeds)
    unknown = [name for name in feeds if name not in names]
    if unknown:
        raise FeedError(f"no input is called {unknown[0]}; there are {', '.join(names)}")
    missing = [name for name in names if name not in feeds]
    if missing:
        raise FeedTypeError(f"no array for {', '.join(missing)}")
    return [feeds[name] for name in names]
