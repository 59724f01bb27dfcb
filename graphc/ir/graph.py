"""Values, nodes and graphs: immutable, typed, in topological order.

Invariants, checked by `verify`:
 1. a node's operands are inputs, state, or outputs of earlier nodes of the same graph;
 2. a node's output types are what its op infers from the operand types and attributes;
 3. `next` pairs a state value with a value of the same type, each state at most once.

State is pure: `next` says what a state value becomes after the step; updating in place is the planner's choice.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc.errors import GraphcError
from graphc.ir import source
from graphc.ir.op import Op
from graphc.ir.source import Location
from graphc.ir.types import DType, TensorType, as_dtype


@dataclass(frozen=True, slots=True)
class Literal:
    """The elements of a constant: hashable, immutable, compared by bits."""

    type: TensorType
    data: bytes

    @staticmethod
    def of(array: Any) -> Literal:
        """The literal for an array (or number) of a supported dtype."""
        array = np.asarray(array)
        dtype = as_dtype(array.dtype)
        return Literal(TensorType(dtype, array.shape), np.ascontiguousarray(array, dtype.numpy).tobytes())

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """A read-only array of the elements."""
        return np.frombuffer(self.data, self.type.dtype.numpy).reshape(self.type.extents)

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()


Attr = Any  # None, bool, int, float, str, DType, Polynomial, Literal, Graph, or a tuple of these


class Value:
    """A typed result of a node, or an input (`node` is None and `name` is set). Compared by identity."""

    __slots__ = ("index", "name", "node", "type")

    def __init__(self, type: TensorType, *, node: Node | None = None, index: int = 0, name: str = "") -> None:
        self.type, self.node, self.index, self.name = type, node, index, name

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.type.shape

    def __repr__(self) -> str:
        origin = f"%{self.name}" if self.node is None else self.node.op.name
        return f"<{origin} : {self.type}>"


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """An op applied to operands. Compared by identity; `outputs` are created with it."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    location: Location | None
    outputs: tuple[Value, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = self.op.infer(*(value.type for value in self.inputs), **self.attrs)
        types = found if isinstance(found, tuple) else (found,)
        object.__setattr__(self, "outputs", tuple(Value(t, node=self, index=i) for i, t in enumerate(types)))

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    def __repr__(self) -> str:
        return f"<node {self.op.name}({', '.join(str(v.type) for v in self.inputs)})>"


def make_node(op: Op, inputs: Iterable[Value], attrs: Mapping[str, Any], location: Location | None = None) -> Node:
    """Apply `op`. An error of its type rule is raised again with the op, the operand types and the user's line."""
    inputs = tuple(inputs)
    location = location or source.here()
    try:
        return Node(op, inputs, dict(attrs), location)
    except GraphcError as error:
        operands = ", ".join(str(value.type) for value in inputs)
        lines = [f"{op.name}({operands}): {error.message}"]
        for number, value in enumerate(inputs):
            if value.node is not None and value.node.location is not None:
                lines.append(f"  operand {number} {value.type} is from {value.node.location}")
            elif value.node is None and value.name:
                lines.append(f"  operand {number} {value.type} is %{value.name}")
        raise type(error)("\n".join(lines), location) from None


def apply(op: Op, *inputs: Value, **attrs: Any) -> Value:
    """The value of a single-output op applied to operands."""
    return make_node(op, inputs, attrs).output


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    """A program: inputs and state in, outputs and next state out."""

    name: str
    inputs: tuple[Value, ...]
    state: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    next: tuple[tuple[Value, Value], ...] = ()

    @property
    def results(self) -> tuple[Value, ...]:
        """Everything that the graph must compute: outputs, then next states."""
        return (*self.outputs, *(value for _, value in self.next))

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each value, in order, once per node."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return found

    def __str__(self) -> str:
        return _printer[-1](self)

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.inputs)} inputs, {len(self.state)} state, {len(self.nodes)} nodes>"


_printer: list[Callable[[Graph], str]] = [repr]


def set_printer(printer: Callable[[Graph], str]) -> None:
    """What `str` of a graph is: `ir.text` comes after this module, and sets it."""
    _printer.append(printer)


def topological(results: Iterable[Value], known: Container[Value] = ()) -> tuple[Node, ...]:
    """The nodes that `results` depend on, operands first, in a stable order. Iterative: depth is not limited.

    What `known` values are made from is left out.
    """
    done: set[Node] = set()
    order: list[Node] = []
    stack: list[tuple[Node, Iterator[Value]]] = []

    def visit(value: Value) -> None:
        if value.node is not None and value.node not in done and value not in known:
            done.add(value.node)
            stack.append((value.node, iter(value.node.inputs)))

    for result in results:
        visit(result)
        while stack:
            node, operands = stack[-1]
            for operand in operands:
                if operand.node is not None and operand.node not in done and operand not in known:
                    visit(operand)
                    break
            else:
                order.append(node)
                stack.pop()
    return tuple(order)


def build(
    name: str,
    inputs: Iterable[Value],
    outputs: Iterable[Value],
    next: Iterable[tuple[Value, Value]] = (),
    state: Iterable[Value] = (),
) -> Graph:
    """The graph of everything that `outputs` and `next` need. `state` lists further states that are read."""
    outputs, next = tuple(outputs), tuple(next)
    states = tuple(dict.fromkeys((*state, *(value for value, _ in next))))
    nodes = topological((*outputs, *(value for _, value in next)))
    return Graph(name, tuple(inputs), states, nodes, outputs, next)


def rebuild(graph: Graph, transform: Callable[[Node, tuple[Value, ...]], tuple[Value, ...]]) -> Graph:
    """A fold over the nodes: `transform(node, new_inputs)` returns the values that stand for the node's outputs.

    Nodes that become unused are dropped. Returns `graph` itself when no value changed.
    """
    new: dict[Value, Value] = {}
    changed = False
    for node in graph.nodes:
        with source.located(node.location):
            values = transform(node, tuple([new.get(v, v) for v in node.inputs]))
        for old, value in zip(node.outputs, values, strict=True):
            if old is not value:
                changed = True
                new[old] = value
    if not changed:
        return graph
    return with_results(graph, [new.get(v, v) for v in graph.results])


def with_results(graph: Graph, results: Sequence[Value]) -> Graph:
    """The graph of other results on the same inputs and state: outputs, then next states."""
    count = len(graph.outputs)
    next = zip((state for state, _ in graph.next), results[count:], strict=True)
    return build(graph.name, graph.inputs, results[:count], next, graph.state)


def substitute(values: Iterable[Value], new: dict[Value, Value]) -> list[Value]:
    """The values computed from what `new` has in place of others; every node that is made again is entered there."""
    values = list(values)
    for node in topological(values, known=new):
        with source.located(node.location):
            new.update(zip(node.outputs, copy_node(node, tuple(new.get(v, v) for v in node.inputs)), strict=True))
    return [new.get(value, value) for value in values]


def copy_node(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """The same op on other operands; the node itself where the operands are the same objects."""
    if inputs == node.inputs:  # values are compared by identity
        return node.outputs
    return make_node(node.op, inputs, node.attrs, node.location).outputs
