"""Which axes of the values of a graph are one axis, as if its nodes were one long einsum.

Before: `%2 = contract %q, %k spec="mk,nk->mn"`, `%3 = reduce_max %2 axes=[1]`, `%4 = broadcast %3 shape=[8,9] axes=[0]`
After:  %q has the axes (0, 1), %k (2, 1), %2 and %4 (0, 2), %3 (0,): numbers stand for what einsum writes as letters.

A graph with other extents for some of them computes the same on parts of its operands (`resized`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Contraction, Elementwise, Generator, Reduction
from graphc.ir.source import located
from graphc.ops.contraction import letters

Place = tuple[Value, int]  # an axis of a value
MOVEMENTS = ("broadcast", "reshape", "transpose")


def is_known(node: Node) -> bool:
    """Whether `axes_of` has a rule for a node, and `resized` makes it in other sizes."""
    match node.op.kind:
        case Elementwise() | Contraction() | Reduction():
            return True
        case Generator():
            return node.op.name == "iota" or node.output.shape == ()
    return node.op.name in MOVEMENTS


def keeps_axes(node: Node) -> bool:
    """Whether a node is no reshape, or one that leaves all axes of more than one element as they are."""
    if node.op.name != "reshape":
        return True
    long = [sum(extent > 1 for extent in value.type.extents) for value in (*node.inputs, node.output)]
    return long == [len(list(_pairs(node)))] * 2


def axes_of(graph: Graph) -> dict[Value, tuple[int, ...]]:
    """A number for each axis of each value, equal where the axes are one. All nodes must be known."""
    parent: dict[Place, Place] = {}

    def root(place: Place) -> Place:
        while (above := parent.get(place, place)) != place:
            parent[place] = place = parent.get(above, above)
        return place

    for node in graph.nodes:
        for first, *others in _joined(node):
            for place in others:
                parent[root(place)] = root(first)
    numbers: dict[Place, int] = {}
    values = dict.fromkeys((*graph.inputs, *(value for node in graph.nodes for value in (*node.inputs, *node.outputs))))
    return {
        value: tuple(numbers.setdefault(root((value, axis)), len(numbers)) for axis in range(value.type.rank))
        for value in values
    }


def _joined(node: Node) -> Iterator[Sequence[Place]]:
    """The places that a node makes one, group by group."""
    values = (*node.inputs, node.output)
    match node.op.kind:
        case Elementwise():
            yield from (tuple((value, axis) for value in values) for axis in range(node.output.type.rank))
        case Contraction():
            parts = letters(node.attrs["spec"])
            for letter in dict.fromkeys("".join(parts)):
                yield tuple((v, part.index(letter)) for v, part in zip(values, parts, strict=True) if letter in part)
        case Generator():
            pass
        case _:
            (x,) = node.inputs
            yield from (((x, here), (node.output, there)) for here, there in _pairs(node))


def _pairs(node: Node) -> Iterator[tuple[int, int]]:
    """The axes of the operand and of the result of a movement or reduction that are the same."""
    (x,), out = node.inputs, node.output
    match node.op.name:
        case "broadcast":
            yield from ((a, b) for a, b in enumerate(node.attrs["axes"]) if x.shape[a] == out.shape[b])
        case "transpose":
            yield from ((a, b) for b, a in enumerate(node.attrs["perm"]))
        case "reshape":
            before, after = x.type.extents, out.type.extents
            for axis, extent in enumerate(before):
                place = behind(after, prod(before[:axis])) if extent > 1 else None
                if place is not None and after[place] == extent:
                    yield axis, place
        case _:
            kept = [axis for axis in range(x.type.rank) if axis not in node.attrs["axes"]]
            yield from ((a, b) for b, a in enumerate(kept))


def behind(extents: Sequence[int], count: int) -> int | None:
    """The axis of more than one element that has so many elements before it."""
    return next((a for a, extent in enumerate(extents) if extent > 1 and prod(extents[:a]) == count), None)


def resized(
    graph: Graph,
    axes: Mapping[Value, Sequence[int]],
    sizes: Mapping[int, int],
    given: Mapping[Value, Value],
    positions: Mapping[int, Value],
) -> list[Value]:
    """What the graph computes when some axes have other sizes, from what stands for its inputs.

    positions  of an axis that does not begin at 0: an i64 for each element
    """
    new = dict(given)
    for node in graph.nodes:
        inputs, attrs = [new.get(value, value) for value in node.inputs], dict(node.attrs)
        if "shape" in attrs:
            numbers = zip(axes[node.output], node.output.type.extents, strict=True)
            attrs["shape"] = tuple(sizes.get(number, extent) for number, extent in numbers)
        with located(node.location):
            if node.op.name == "iota" and axes[node.output][attrs["axis"]] in positions:
                found = positions[axes[node.output][attrs["axis"]]]
                made = ops.convert(found, dtype=attrs["dtype"]) if found.dtype is not attrs["dtype"] else found
                new[node.output] = ops.broadcast(made, shape=attrs["shape"], axes=(attrs["axis"],))
            else:
                new[node.output] = Node(node.op, tuple(inputs), attrs, node.location).output
    return [new.get(value, value) for value in graph.outputs]
