"""Units of fusion: the nodes whose results are stored somewhere, each with the cheap nodes computed along with it.

*Cheap* nodes have no place of their own; every kernel that reads one computes it again:
 - scalars, positions, and what follows from them in a few operations;
 - movement of one operand, including reshapes of what is repeated, or that only add or remove axes of extent 1;
 - elementwise work of a few operations on fewer bytes than its result has floats (labels compared, a bool converted).
A result of the graph, what a view is taken of, and what is gathered from, is a unit even where it is cheap. Any other
reshape is a *view*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Call, Elementwise, Generator, Movement, Scan
from graphc.passes.forms import is_splat_or_position
from graphc.passes.rewrite import made_by
from graphc.passes.sink import is_squeeze

RECOMPUTE_COST = 4  # of a cheap node with all cheap nodes above it

# Operations per element, an addition being 1.
_COSTS = {"div": 3, "floor_div": 6, "mod": 8, "sqrt": 4, "rsqrt": 6, "pow": 32}
_COSTS |= dict.fromkeys(("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf"), 12)


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """A node whose results are stored, and the cheap nodes that are computed with it."""

    node: Node
    cheap: tuple[Node, ...]
    reads: Mapping[Value, int]  # stored values and graph inputs, with the number of elements read through movement
    direct: frozenset[Value]  # those of them that are read in place


@dataclass(frozen=True, slots=True)
class Cone:
    """What computing a cheap node takes."""

    cost: int
    leaves: frozenset[Value]


def units(graph: Graph, cheap: Mapping[Node, Cone]) -> list[Unit]:
    """The units of a graph in topological order; views, calls and scans are units without cheap nodes."""
    wanted = set(graph.results)
    stored: list[Node] = []
    for node in reversed(graph.nodes):
        if is_table(node):
            continue
        if wanted.isdisjoint(node.outputs) and node in cheap:
            continue
        if is_view(node, cheap):
            wanted.update(node.inputs)
        wanted.update(pinned(node))
        stored.append(node)
    number = {node: position for position, node in enumerate(graph.nodes)}
    return [unit_of(node, cheap, number) for node in reversed(stored)]


def cheap_nodes(graph: Graph) -> dict[Node, Cone]:
    found: dict[Node, Cone] = {}
    for node in graph.nodes:
        cones = [found.get(value.node) if value.node else None for value in dict.fromkeys(node.inputs)]
        leaves = [cone.leaves if cone else {value} for cone, value in zip(cones, dict.fromkeys(node.inputs))]
        cone = Cone(cost(node) + sum(c.cost for c in cones if c), frozenset[Value]().union(*leaves))
        if cone.cost <= RECOMPUTE_COST and _is_cheap(node, cone):
            found[node] = cone
    return found


def _is_cheap(node: Node, cone: Cone) -> bool:
    match node.op.kind:
        case Generator():
            return not is_table(node)
        case Movement():
            if len(node.inputs) > 1 or _interleaves(node):
                return False
            return node.op.name != "reshape" or _is_read_anew(node, cone) or is_squeeze(node)
        case Elementwise():
            return sum(leaf.type.nbytes for leaf in cone.leaves) < 4 * size(node.output)
    return False


def _is_read_anew(node: Node, cone: Cone) -> bool:
    """Whether a reshape is of something that is larger than what it is read from: a repetition, positions."""
    return sum(size(leaf) for leaf in cone.leaves) < size(node.output)


def _interleaves(node: Node) -> bool:
    """Whether it is a reshape that puts repeated elements side by side along the innermost axis: read in place, every
    vector along it would be gathered."""
    spread = made_by(node.inputs[0], "broadcast")
    if node.op.name != "reshape" or spread is None:
        return False
    extents = node.inputs[0].type.extents
    last = next((extent for extent in reversed(node.output.type.extents) if extent > 1), 1)
    joined = [axis for axis, extent in enumerate(extents) if extent > 1 and prod(extents[axis + 1 :]) < last]
    is_repeated = [axis not in spread.attrs["axes"] for axis in joined]
    return any(is_repeated) and not all(is_repeated)


def is_table(node: Node) -> bool:
    """Whether a node is a constant that stays outside kernels."""
    return isinstance(node.op.kind, Generator) and not is_splat_or_position(node)


def is_view(node: Node, cheap: Mapping[Node, Cone]) -> bool:
    return node.op.name == "reshape" and (node not in cheap or bool(cheap[node].leaves))


def pinned(node: Node) -> tuple[Value, ...]:
    """What a node reads at places that are data, or passes on: it must be stored, even where it is cheap."""
    if isinstance(node.op.kind, Scan):
        return node.inputs
    return node.inputs[:1] if node.op.name in ("gather", "check_index") else ()


def unit_of(node: Node, cheap: Mapping[Node, Cone], number: Mapping[Node, int]) -> Unit:
    if isinstance(node.op.kind, Call | Scan) or is_view(node, cheap):
        return Unit(node, (), dict.fromkeys(node.inputs, 0), frozenset(node.inputs))
    reads: dict[Value, int] = {}
    direct: set[Value] = set()
    seen: dict[Node, None] = {}
    stack = [node]
    while stack:
        reader = stack.pop()
        for value in reader.inputs:
            if value.node is None or value.node not in cheap or value in pinned(node):
                moved = isinstance(reader.op.kind, Movement)
                times = size(value if reader.op.name == "concat" else reader.output)  # a concat reads each element once
                reads[value] = reads.get(value, 0) + (times if moved else 0)
                direct.update(() if moved else (value,))
            elif value.node not in seen:
                seen[value.node] = None
                stack.append(value.node)
    return Unit(node, tuple(sorted(seen, key=number.__getitem__)), reads, frozenset(direct))


def cost(node: Node) -> int:
    return _COSTS.get(node.op.name, 1) if isinstance(node.op.kind, Elementwise) else 0


def work(unit: Unit) -> int:
    """Operations per element; 0 unless all of it is elementwise work or movement."""
    return sum(map(cost, (*unit.cheap, unit.node))) if isinstance(unit.node.op.kind, Elementwise) else 0


def size(value: Value) -> int:
    return prod(value.type.extents)
