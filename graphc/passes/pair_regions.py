"""Where a graph makes something for each pair of two things' rows, and what it makes of that.

The scores of attention are such *pairs*: a product whose result is far larger than its operands, elementwise work on
it, then sums, maxima and products that are small again. A `Region` is one such stretch, from small to small values.

Where other work stands between a forward and a backward pass, these are two regions. Pairs of the first that the second
reads are part of both, and computed twice; small values are handed on.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

from graphc.ir.graph import Graph, Node, Value, topological
from graphc.ir.op import Contraction, Elementwise, Reduction
from graphc.passes.axes import is_known, keeps_axes

RATIO = 4  # elements of a product that makes pairs, for each of its operands' elements
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
EXTREMES = ("reduce_max", "reduce_min", "reduce_first_max")


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """A part of a graph as a graph of its own.

    given   what each input of `body` is outside; what is read in several places has an input for each
    wanted  what each output of `body` is outside
    seeds   the products that make the pairs
    again   the nodes that an earlier region has, too
    """

    body: Graph
    given: Mapping[Value, Value]
    wanted: tuple[Value, ...]
    seeds: tuple[Node, ...]
    again: frozenset[Node]


@dataclass(eq=False, slots=True)
class _Stretch:
    """What belongs together, of all levels.

    own   makes pairs, or makes of them what is small, or of that what the pairs need again
    free  large, but made of small values or of positions: made again wherever it is read
    """

    seeds: list[Node] = field(default_factory=list)
    own: dict[Node, None] = field(default_factory=dict)
    free: dict[Node, None] = field(default_factory=dict)


def regions(graph: Graph) -> list[list[Region]]:
    """For each stretch of pairs the regions that make it up, the first one first."""
    pairs, stretches = _stretches(graph)
    if not stretches:
        return []
    users = graph.users()
    for stretch in stretches:
        _complete(stretch, users, pairs)
    levels = _levels(graph, stretches)
    position = {node: number for number, node in enumerate(graph.nodes)}
    found = []
    for stretch, level in zip(stretches, levels, strict=True):
        parts = [_Part(stretch, level, number, pairs) for number in range(1 + max(level.values()))]
        inside = stretch.own.keys() | stretch.free.keys()
        read = {value for part in parts for value in part.read}.union(graph.results)
        read.update(v for node in stretch.own for v in node.outputs if not inside.issuperset(users.get(v, ())))
        found.append([part.region(graph.name, position, read) for part in parts])
    return found


# What belongs together -------------------------------------------------------------------------------------------


def _stretches(graph: Graph) -> tuple[Mapping[Value, _Stretch], list[_Stretch]]:
    """Pairs, and the stretches that they belong to; what reads two of them makes these one."""
    of: dict[Value, int] = {}
    parent: list[int] = []
    owner: dict[Node, int] = {}
    seeds: dict[Node, None] = {}
    unknown: set[int] = set()

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for node in graph.nodes:
        found = sorted({root(of[value]) for value in node.inputs if value in of})
        if not found and not _is_seed(node):
            continue
        if not found:
            seeds[node] = None
            parent.append(len(parent))
            found = [len(parent) - 1]
        for other in found[1:]:
            parent[other] = found[0]
        owner[node] = found[0]
        if node in seeds or isinstance(node.op.kind, Elementwise) or node.op.name in ("reshape", "transpose"):
            of[node.output] = found[0]
        elif not isinstance(node.op.kind, Reduction | Contraction):
            unknown.add(found[0])
    unknown.update(of[value] for value in graph.results if value in of)
    stretches: dict[int, _Stretch] = {}
    for node, number in owner.items():
        stretch = stretches.setdefault(root(number), _Stretch())
        stretch.own[node] = None
        if node in seeds:
            stretch.seeds.append(node)
    bad = set(map(root, unknown))
    good = [stretch for number, stretch in stretches.items() if number not in bad]
    return {value: stretches[root(number)] for value, number in of.items()}, good


def _is_seed(node: Node) -> bool:
    if not isinstance(node.op.kind, Contraction):
        return False
    return _size(node.output) >= RATIO * sum(map(_size, node.inputs))


def _size(value: Value) -> int:
    return value.type.nbytes // value.dtype.itemsize


def _is_cheap(node: Node) -> bool:
    return is_known(node) and not isinstance(node.op.kind, Contraction)


def _complete(stretch: _Stretch, users: Mapping[Value, Sequence[Node]], pairs: Mapping[Value, _Stretch]) -> None:
    """Add what lies between the small values that the stretch makes and those that its pairs need, and what is free."""
    below: dict[Node, None] = {}
    stack = [node for node in stretch.own if isinstance(node.op.kind, Reduction)]
    while stack:
        for user in users.get(stack.pop().output, ()):
            if user not in below and user not in stretch.own and _is_cheap(user):
                below[user] = None
                stack.append(user)
    size = _size(stretch.seeds[0].output)
    values = [value for node in stretch.own for value in node.inputs]
    while values:
        node = values.pop().node
        if node is None or node in stretch.own or node in stretch.free or not _is_cheap(node):
            continue
        if _size(node.output) >= size:
            if not keeps_axes(node):
                continue  # a view of what is stored elsewhere
            stretch.free[node] = None
        elif node in below:
            stretch.own[node] = None
        else:
            continue
        values.extend(node.inputs)


# Before and after other work -------------------------------------------------------------------------------------


def _levels(graph: Graph, stretches: Sequence[_Stretch]) -> list[dict[Node, int]]:
    """For each stretch the level of its nodes: how often a way to it leaves the stretch and comes back.

    Bit n of a mask is for stretch n.
    """
    own, member = _masks(s.own for s in stretches), _masks([*s.own, *s.free] for s in stretches)
    levels: list[dict[Node, int]] = [dict.fromkeys((*s.own, *s.free), 0) for s in stretches]
    reached, level = member, 0
    while reached:
        level += 1
        within: dict[Value, int] = {}  # made in the stretch, on this level's predecessor or later
        behind: dict[Value, int] = {}  # made of that outside
        again: dict[Node, int] = {}
        for node in graph.nodes:
            mine = member.get(node, 0)
            inner = reduce(or_, (within.get(value, 0) for value in node.inputs), 0)
            outer = reduce(or_, (behind.get(value, 0) for value in node.inputs), inner & ~mine)
            inner = inner & mine | own.get(node, 0) & reached.get(node, 0)
            within.update(dict.fromkeys(node.outputs, inner))
            behind.update(dict.fromkeys(node.outputs, outer))
            if outer & mine:
                again[node] = outer & mine
        for node, mask in again.items():
            for number in _bits(mask):
                levels[number][node] = level
        reached = again
    return levels


def _masks(groups: Iterable[Iterable[Node]]) -> dict[Node, int]:
    found: dict[Node, int] = {}
    for number, nodes in enumerate(groups):
        for node in nodes:
            found[node] = found.get(node, 0) | 1 << number
    return found


def _bits(mask: int) -> Iterator[int]:
    while mask:
        yield mask.bit_length() - 1
        mask &= ~(1 << mask.bit_length() - 1)


# One level -------------------------------------------------------------------------------------------------------


class _Part:
    """The nodes of one level, those of lower ones that are computed again, and what they read from outside."""

    def __init__(
        self, stretch: _Stretch, levels: Mapping[Node, int], level: int, pairs: Mapping[Value, _Stretch]
    ) -> None:
        self.stretch, self.levels, self.level, self.pairs = stretch, levels, level, pairs
        self.own = [node for node in stretch.own if levels[node] == level]
        self.again: Container[str] = ()  # reductions of lower levels that are made again, as pairs are
        self.nodes, self.read = self._closure()
        if any(node.op.name in COMPARISONS and node.inputs[0].dtype.is_float for node in self.nodes):
            # Another kernel may round pairs differently: an extreme is compared with those that it is one of.
            self.again = EXTREMES
            self.nodes, self.read = self._closure()

    def _closure(self) -> tuple[dict[Node, None], dict[Value, None]]:
        """The nodes that are inside, and the values that these read from outside."""
        nodes, read = dict.fromkeys(self.own), dict[Value, None]()
        values = [value for node in self.own for value in node.inputs]
        while values:
            value = values.pop()
            if not self._is_inside(value):
                read[value] = None
            elif value.node not in nodes:
                assert value.node is not None
                nodes[value.node] = None
                values.extend(value.node.inputs)
        return nodes, read

    def _is_inside(self, value: Value) -> bool:
        node = value.node
        if node is None:
            return False
        if node in self.stretch.own:
            return self.levels[node] == self.level or value in self.pairs or node.op.name in self.again
        return node in self.stretch.free or (node.op.name == "constant" and not value.shape)

    def region(self, name: str, position: Mapping[Node, int], read: Container[Value]) -> Region:
        """The region of which all is wanted that the level makes and others read."""
        new: dict[Value, Value] = {}
        given: dict[Value, Value] = {}
        copies: dict[Node, Node] = {}
        for node in sorted(self.nodes, key=position.__getitem__):
            inputs = []
            for value in node.inputs:
                if value in new:
                    inputs.append(new[value])
                else:
                    inputs.append(Value(value.type))
                    given[inputs[-1]] = value
            copies[node] = Node(node.op, tuple(inputs), node.attrs, node.location)
            new[node.output] = copies[node].output
        wanted = tuple(node.output for node in self.own if node.output in read)
        outputs = tuple(new[value] for value in wanted)
        nodes = topological(outputs)  # without what only a later region reads: it makes that again
        used = {value for node in nodes for value in node.inputs}
        given = {inner: value for inner, value in given.items() if inner in used}
        needed = {node: copy for node, copy in copies.items() if copy in set(nodes)}
        again = frozenset(copy for node, copy in needed.items() if self.levels.get(node, self.level) < self.level)
        seeds = tuple(needed[node] for node in self.stretch.seeds if node in needed)
        return Region(Graph(name, tuple(given), (), nodes, outputs), given, wanted, seeds, again)
