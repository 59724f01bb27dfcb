"""Batch tiling: a step over a large batch becomes loops over strips of it, forward and backward together.

Before: `%1 = contract %x, %w spec="mk,nk->mn"`, …, `%9 = contract %8, %x spec="mn,mk->nk"`, x: f32[60000,784]
After:  a scan over 8 shares of x, whose step is a scan over 30 strips f32[250,784]. The carry of the inner one is the
        sum of the strips' `%9`; the outer one has none, and its stacked results are added up.

What lies between the inputs and the sums over the batch then needs memory for one strip alone, and stays in the cache
from the forward to the backward pass. The shares are independent, so that threads take whole ones and meet at the end.
How the batch is cut follows from shapes alone, and so do all sums. What is made of the sums comes after the loops.

It pays where the values in between are larger than the caches, so that each is written to memory and read again, and
the sums, which every strip adds to, are small compared with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, build, substitute
from graphc.ir.op import Contraction, Elementwise, Opaque
from graphc.ir.source import located
from graphc.ops.contraction import letters
from graphc.passes.manager import graph_pass
from graphc.passes.mapped import Role, narrow, narrowed, rule

FAR = 16 * 1024 * 1024  # bytes of values between inputs and sums that no cache is counted on to hold
STRIP = 1024 * 1024  # bytes of a strip's values: what the second-level cache of a core holds
OVERSIZE = 4  # times as large, a strip leaves that cache as a whole batch does
NEAR = 1024 * 1024  # bytes of sums that stay there beside
COST_NEAR, COST_FAR = 0.1, 0.5  # of adding to a byte of a sum, in bytes to and from memory
FEWEST_ROWS = 64  # of a strip: fewer keep no register tile busy
SHARES = 8  # for threads to take


@graph_pass
def tile_batch(graph: Graph) -> Graph:
    """Run a step in strips of its batch, where that pays.

    Before: `%1 = exp %0`, `%2 = reduce_sum %1 axes=[0]`, where `%0` is a large product. After: a scan over shares of
    the batch, which scans over strips of them.
    """
    batch = _batch(graph)
    region = _Region.of(graph, batch) if batch else None
    strips = region.strips() if region else 1
    return _Tiling(region, strips).run() if region and strips > 1 else graph


def _batch(graph: Graph) -> int:
    """The leading extent that most bytes of the inputs have."""
    found: dict[int, int] = {}
    for value in graph.inputs:
        if value.type.rank:
            extent = value.type.extents[0]
            found[extent] = found.get(extent, 0) + value.type.nbytes
    return max(found, key=lambda extent: (found[extent], extent), default=0)


@dataclass(frozen=True, eq=False, slots=True)
class _Region:
    """What belongs into the loops.

    axes    the axis of every mapped value; of the sources, which are not computed inside, it is the first
    inside  the mapped nodes and the sums, in order
    """

    graph: Graph
    batch: int
    sources: frozenset[Value]
    axes: dict[Value, int]
    inside: tuple[Node, ...]
    sums: tuple[Node, ...]

    @staticmethod
    def of(graph: Graph, batch: int) -> _Region:
        sources = {value for value in graph.inputs if value.type.rank and value.type.extents[0] == batch}
        axes = dict.fromkeys(sources, 0)
        early = _before_checks(graph)
        after: set[Value] = set()  # sums, and what is made of them
        inside: list[Node] = []
        sums: list[Node] = []
        for node in graph.nodes:
            known = [axes.get(value) for value in node.inputs]
            if not after.isdisjoint(node.inputs):
                after.update(node.outputs)
                continue
            if all(axis is None for axis in known):
                continue
            found = rule(node, known) if len(node.outputs) == 1 else Role.OTHER
            if isinstance(found, int) and node.output.type.extents[found] % batch:
                found = Role.OTHER
            is_early = node.op.name == "check_index" or (found == 0 and (node in early or node.op.name == "reshape"))
            if is_early and all(value in sources for value in node.inputs if value in axes):
                sources.add(node.output)
                axes[node.output] = 0
            elif isinstance(found, int):
                axes[node.output] = found
                inside.append(node)
            else:
                after.update(node.outputs)
                if found is Role.SUM:
                    inside.append(node)
                    sums.append(node)
        return _Region(graph, batch, frozenset(sources), axes, tuple(inside), tuple(sums))

    def wanted(self) -> list[Value]:
        """The mapped values that are read outside."""
        inside = set(self.inside)
        read = {value for node in self.graph.nodes if node not in inside for value in node.inputs}
        read.update(self.graph.results)
        return [node.output for node in self.inside if node.output in self.axes and node.output in read]

    def strips(self) -> int:
        """How many strips are best; 1 where the step is better left whole."""
        wanted = set(self.wanted())
        inner = sum(node.output.type.nbytes for node in self.inside if self._is_stored(node, wanted))
        sums = sum(node.output.type.nbytes for node in self.sums)
        if inner < FAR or not self.sums:
            return 1
        best = -(-(inner + sum(value.type.nbytes for value in self.sources)) // STRIP)
        cost = 2 * sums * (COST_NEAR if sums <= NEAR else COST_FAR)
        most = min(self.batch, self.batch * self._rows() // FEWEST_ROWS, int(inner / cost) if cost else self.batch)
        counts = [n for n in range(max(2, best // OVERSIZE), min(most, 2 * best) + 1) if self.batch % n == 0]
        return min(counts, key=lambda n: (-_shares(n), abs(n - best)), default=1)

    def _is_stored(self, node: Node, wanted: set[Value]) -> bool:
        """Whether a mapped value goes through memory only because the step is whole: a product's result mostly does."""
        is_mapped = node.output in self.axes and node.output not in wanted
        return is_mapped and isinstance(node.op.kind, Contraction | Opaque)

    def _rows(self) -> int:
        """The fewest rows for each example of a product with something that all examples share."""
        found = []
        for node in self.inside:
            if node.output not in self.axes or not isinstance(node.op.kind, Contraction):
                continue
            *parts, result = letters(node.attrs["spec"])
            mapped = [part for part, value in zip(parts, node.inputs, strict=True) if value in self.axes]
            if len(mapped) == 1:
                found.append(prod(n for c, n in zip(result, node.output.type.extents) if c in mapped[0]))
        return min(found, default=self.batch) // self.batch


def _before_checks(graph: Graph) -> set[Node]:
    """The checks of indices, which come before everything, and what they need."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op.name == "check_index" or node in found:
            found.add(node)
            found.update(value.node for value in node.inputs if value.node is not None)
    return found


def _shares(strips: int) -> int:
    """The shares of so many strips, all equal: at most SHARES."""
    return next(n for n in range(min(SHARES, strips), 0, -1) if strips % n == 0)


class _Tiling:
    """The graph with its loops."""

    def __init__(self, region: _Region, strips: int) -> None:
        self.graph, self.region, self.strips = region.graph, region, strips
        self.shares = _shares(strips)
        self.slices: dict[Value, Value] = {}  # of each source, what a strip has
        self.strip_of: dict[Value, Value] = {}  # and of which part of a share that is one strip
        self.share_of: dict[Value, Value] = {}  # of which stack this part is one
        self.inner: dict[Value, Value] = {}  # what stands for a value inside

    def run(self) -> Graph:
        region, graph = self.region, self.graph
        wanted = region.wanted()
        for node in region.inside:
            with located(node.location):
                self.inner[node.output] = self._narrowed(node)
        scan = self._loops([self._leading(value) for value in wanted])
        sums, stacks = scan.outputs[: len(region.sums)], scan.outputs[len(region.sums) :]
        new = {node.output: ops.reduce_sum(s, axes=(0,)) for node, s in zip(region.sums, sums, strict=True)}
        new |= {value: self._whole(value, stack) for value, stack in zip(wanted, stacks, strict=True)}
        found = substitute(graph.results, new)
        count = len(graph.outputs)
        next = zip((state for state, _ in graph.next), found[count:], strict=True)
        return build(graph.name, graph.inputs, found[:count], next, graph.state)

    def _narrowed(self, node: Node) -> Value:
        """A node of the region on a strip."""
        axes = self.region.axes
        out = axes.get(node.output)
        inputs = []
        for value in node.inputs:
            if value in self.region.sources:
                inputs.append(self._slice(value))
            elif value in axes:
                inputs.append(self.inner[value])
            elif out is not None and (isinstance(node.op.kind, Elementwise) or node.op.name == "concat"):
                inputs.append(narrow(value, out, self.strips))
            else:
                inputs.append(value)
        return narrowed(node, inputs, out, self.strips)

    def _slice(self, source: Value) -> Value:
        if source not in self.slices:
            extent, *others = source.type.extents
            shape = (self.shares, self.strips // self.shares, extent // self.strips, *others)
            share, strip = (Value(source.type.with_shape(shape[n:])) for n in (1, 2))
            self.share_of[share] = ops.reshape(source, shape=shape)
            self.strip_of[strip] = share
            self.slices[source] = strip
        return self.slices[source]

    def _loops(self, results: list[Value]) -> Node:
        """The scan over shares of the scan over strips: sums of the shares, then results of all strips, stacked."""
        sums = self.region.sums
        carries = [Value(node.output.type) for node in sums]
        following = []
        for carry, node in zip(carries, sums, strict=True):
            with located(node.location):
                following.append(ops.add(carry, self.inner[node.output]))
        init, name = [ops.full_like(carry, 0) for carry in carries], self.graph.name
        count = self.strips // self.shares
        with located(sums[0].location):
            inner = ops.close(f"{name}.strip", init, carries, self.strip_of, following, results, length=count)
            return ops.close(f"{name}.share", (), (), self.share_of, (), inner.outputs, length=self.shares)

    def _leading(self, value: Value) -> Value:
        """A strip's result with the axis of the batch first, so that stacked strips are whole."""
        axis = self.region.axes[value]
        return ops.transpose(self.inner[value], perm=_first(axis, value.type.rank)) if axis else self.inner[value]

    def _whole(self, value: Value, stack: Value) -> Value:
        axis, rank = self.region.axes[value], value.type.rank
        perm = _first(axis, rank)
        whole = ops.reshape(stack, shape=[value.shape[a] for a in perm])
        return ops.transpose(whole, perm=[perm.index(a) for a in range(rank)]) if axis else whole


def _first(axis: int, rank: int) -> list[int]:
    return [axis, *(other for other in range(rank) if other != axis)]
