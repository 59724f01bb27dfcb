"""Named dimensions become numbers: which sizes arrays imply, and a graph for given sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from graphc.errors import FeedError
from graphc.ir import dim as dims
from graphc.ir.dim import Dim, Polynomial
from graphc.ir.graph import Graph, Value, make_node
from graphc.ir.types import TensorType


def names_of(values: Iterable[Value]) -> frozenset[str]:
    """The dimension names in the values' types."""
    return frozenset(name for value in values for d in value.shape for name in dims.names_of(d))


def sizes_of(values: Iterable[Value], shapes: Iterable[tuple[int, ...]]) -> dict[str, int]:
    """The size of each name when `values` have these shapes.

    Raises FeedError for a wrong rank, a wrong extent, two sizes of one name, or a name that stays unknown.
    """
    pairs = [(value, shape) for value, shape in zip(values, shapes, strict=True)]
    sizes: dict[str, int] = {}
    origin: dict[str, Value] = {}
    for value, shape in pairs:
        if len(shape) != value.type.rank:
            raise FeedError(f"{_name(value)} is {value.type}, which an array of shape {list(shape)} does not fit")
        for extent, wanted in zip(shape, value.shape, strict=True):
            name = _only_name(wanted)
            if name is None:
                continue
            if sizes.setdefault(name, extent) != extent:
                first = _name(origin[name])
                raise FeedError(f"dimension {name} is {sizes[name]} in {first} and {extent} in {_name(value)}")
            origin.setdefault(name, value)
    for value, shape in pairs:
        for extent, wanted in zip(shape, value.shape, strict=True):
            bound = dims.bind(wanted, sizes)
            if not isinstance(bound, int):
                raise FeedError(f"no feed says how large dimension {bound} of {_name(value)} is")
            if bound != extent:
                raise FeedError(f"{_name(value)} is {value.type}, which an array of shape {list(shape)} does not fit")
    return sizes


def bind(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with the names in `sizes` replaced, in types and attributes. The same object when `sizes` is empty.

    Raises FeedError, with the line of the node, for a name that no input or state has.
    """
    _require_known(graph, names_of((*graph.inputs, *graph.state)).union(sizes))
    if not sizes:
        return graph
    new = {value: Value(_bind_type(value.type, sizes), name=value.name) for value in (*graph.inputs, *graph.state)}
    nodes = []
    for node in graph.nodes:
        attrs = {key: _bind_attr(attr, sizes) for key, attr in node.attrs.items()}
        copy = make_node(node.op, (new[v] for v in node.inputs), attrs, node.location)
        new.update(zip(node.outputs, copy.outputs, strict=True))
        nodes.append(copy)
    return Graph(
        graph.name,
        tuple(new[v] for v in graph.inputs),
        tuple(new[v] for v in graph.state),
        tuple(nodes),
        tuple(new[v] for v in graph.outputs),
        tuple((new[state], new[value]) for state, value in graph.next),
    )


def _require_known(graph: Graph, known: frozenset[str]) -> None:
    for node in graph.nodes:
        for name in sorted(names_of(node.outputs).union(*map(_names_in, node.attrs.values()))):
            if name not in known:
                raise FeedError(f"no feed says how large dimension {name} is", node.location)


def _names_in(attr: Any) -> frozenset[str]:
    match attr:
        case Polynomial():
            return dims.names_of(attr)
        case tuple():
            return frozenset().union(*map(_names_in, attr))
        case _:
            return frozenset()


def _only_name(dim: Dim) -> str | None:
    """The name, when the dimension is nothing else."""
    return dim.terms[0][0][0] if isinstance(dim, Polynomial) and dim == dims.named(dim.terms[0][0][0]) else None


def _name(value: Value) -> str:
    return value.name or str(value.type)


def _bind_type(type: TensorType, sizes: Mapping[str, int]) -> TensorType:
    return type.with_shape(tuple(dims.bind(d, sizes) for d in type.shape))


def _bind_attr(attr: Any, sizes: Mapping[str, int]) -> Any:
    match attr:
        case Polynomial():
            return dims.bind(attr, sizes)
        case tuple():
            return tuple(_bind_attr(part, sizes) for part in attr)
        case Graph():
            return bind(attr, sizes)
        case _:
            return attr
