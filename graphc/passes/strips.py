"""Batch tiling: a step over a large batch becomes loops over strips of it, forward and backward together.

Before: `%1 = contract %x, %w spec="mk,nk->mn"`, …, `%9 = contract %8, %x spec="mn,mk->nk"`, x: f32[60000,784]
After:  a scan over 8 shares of x, whose step is a scan over 30 strips f32[250,784]. The carry of the inner one is the
        sum of the strips' `%9`; the outer one has none, and its stacked results are added up.

What lies between the inputs and the sums over the batch then needs memory for one strip alone, and stays in the cache
from the forward to the backward pass. The shares are independent, so that threads take whole ones and meet at the end.
How the batch is cut follows from shapes alone, and so do all sums. What is made of the sums comes after the loops.

It pays where the values in between are larger than the caches, so that each is written to memory and read again, and
the sums, which every strip adds to, are small compared with them.

And it pays where there are loops of many small steps: threads that run a step together meet after each of its kernels
and read what the others wrote, while those with shares of the batch have no need of each other. Then a share is one
strip.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, substitute, with_results
from graphc.ir.op import Contraction, Movement, Opaque, Scan
from graphc.ir.source import located
from graphc.ops.contraction import letters
from graphc.ops.control import Parts
from graphc.passes.division import Division
from graphc.passes.manager import graph_pass
from graphc.passes.mapped import Role, roles

FAR = 16 * 1024 * 1024  # bytes of values between inputs and sums that no cache is counted on to hold
STRIP = 1024 * 1024  # bytes of a strip's values: what the second-level cache of a core holds
OVERSIZE = 4  # times as large, a strip leaves that cache as a whole batch does
NEAR = 1024 * 1024  # bytes of sums that stay there beside
COST_NEAR, COST_FAR = 0.1, 0.5  # of adding to a byte of a sum, in bytes to and from memory
FEWEST_ROWS = 64  # of a strip: fewer keep no register tile busy
SHARES = 8  # for threads to take
STEP_ROWS = 16  # of a product in a step of a loop: each reads the matrix once for so many
STEPS_ROWS = 128  # of all steps, that make up for the sums of one more share
STEP_CONSTANTS = 8 * 1024 * 1024  # bytes that every step reads, which stay in the last cache


@graph_pass
def tile_batch(graph: Graph) -> Graph:
    """Run a step in strips of its batch, where that pays.

    Before: `%1 = exp %0`, `%2 = reduce_sum %1 axes=[0]`, where `%0` is a large product. After: a scan over shares of
    the batch, which scans over strips of them.
    """
    batch = _batch(graph)
    region = _Region.of(graph, batch) if batch else None
    shares, strips = region.counts() if region else (1, 1)
    return _Tiling(region, shares, strips).run() if region and shares * strips > 1 else graph


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
            found = roles(node, known, batch)
            at_front = node in early or node.op.name == "reshape"
            is_early = node.op.name == "check_index" or (found[0] == 0 and at_front)
            places = {value: axis for value, axis in zip(node.outputs, found, strict=True) if isinstance(axis, int)}
            if is_early and all(value in sources for value in node.inputs if value in axes):
                sources.add(node.output)
                axes[node.output] = 0
            elif len(places) == len(found):
                axes |= places
                inside.append(node)
            else:
                after.update(node.outputs)
                if Role.SUM in found:
                    inside.append(node)
                    sums.append(node)
        return _Region(graph, batch, frozenset(sources), axes, tuple(inside), tuple(sums))

    def wanted(self) -> list[Value]:
        """The mapped values that are needed outside; not what is repeated of smaller ones, which is repeated there."""
        inside = set(self.inside)
        read = {value for node in self.graph.nodes if node not in inside for value in node.inputs}
        read.update(self.graph.results)
        needed = {self._repeated(value, inside) for value in read}
        return [value for node in self.inside for value in node.outputs if value in self.axes and value in needed]

    def _repeated(self, value: Value, inside: set[Node]) -> Value:
        """The smallest value that a mapped one is a movement of: windows, a padded form, a repetition."""
        while value.node in inside and isinstance(value.node.op.kind, Movement) and value in self.axes:
            (operand, *others) = value.node.inputs
            if others or operand.type.nbytes >= value.type.nbytes:
                break
            value = operand
        return value

    def counts(self) -> tuple[int, int]:
        """How many shares are best, and how many strips in each; (1, 1) where the step is better left whole."""
        strips = self._strips()
        shares = _shares(strips) if strips > 1 else self._shares_of_loops()
        return shares, max(1, strips // shares)

    def _shares_of_loops(self) -> int:
        """As many as leave each step of the loops rows enough."""
        loops = [node for node in self.inside if isinstance(node.op.kind, Scan) and _multiplies(node)]
        if not loops or not self.sums:
            return 1
        shortest = min(node.attrs["length"] for node in loops)
        matrices = {value for node in loops for value in Parts.of(node).constants if value not in self.axes}
        if sum(value.type.nbytes for value in matrices) > STEP_CONSTANTS:
            return 1
        counts = [n for n in range(2, SHARES + 1) if self.batch % n == 0 and self.batch // n >= STEP_ROWS]
        return max((n for n in counts if self.batch // n * shortest >= STEPS_ROWS), default=1)

    def _strips(self) -> int:
        """How many strips stay in the cache; 1 where that is of no use."""
        wanted = set(self.wanted())
        mapped = [value for node in self.inside for value in node.outputs]
        inner = sum(value.type.nbytes for value in mapped if self._is_stored(value, wanted))
        sums = sum(node.output.type.nbytes for node in self.sums)
        if inner < FAR or not self.sums:
            return 1
        best = -(-(inner + sum(value.type.nbytes for value in self.sources)) // STRIP)
        cost = 2 * sums * (COST_NEAR if sums <= NEAR else COST_FAR)
        most = min(self.batch, self.batch * self._rows() // FEWEST_ROWS, int(inner / cost) if cost else self.batch)
        counts = [n for n in range(max(2, best // OVERSIZE), min(most, 2 * best) + 1) if self.batch % n == 0]
        return min(counts, key=lambda n: (-_shares(n), abs(n - best)), default=1)

    def _is_stored(self, value: Value, wanted: set[Value]) -> bool:
        """Whether a mapped value goes through memory only because the step is whole: a product's result mostly does."""
        is_mapped = value in self.axes and value not in wanted
        return is_mapped and value.node is not None and isinstance(value.node.op.kind, Contraction | Opaque | Scan)

    def _rows(self) -> int:
        """The fewest rows for each example of a product with something that all examples share."""
        found = []
        for node in self.inside:
            if isinstance(node.op.kind, Scan) and _multiplies(node):
                return 1
            if node.outputs[0] not in self.axes or not isinstance(node.op.kind, Contraction):
                continue
            *parts, result = letters(node.attrs["spec"])
            mapped = [part for part, value in zip(parts, node.inputs, strict=True) if value in self.axes]
            if len(mapped) == 1:
                found.append(prod(n for c, n in zip(result, node.output.type.extents) if c in mapped[0]))
        return min(found, default=self.batch) // self.batch


def _multiplies(loop: Node) -> bool:
    """Whether there are products in the steps of a loop."""
    return any(isinstance(node.op.kind, Contraction) for node in loop.attrs["body"].nodes)


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
    """The graph with its loops: over so many shares, and over so many strips of each."""

    def __init__(self, region: _Region, shares: int, strips: int) -> None:
        self.graph, self.region, self.shares, self.strips = region.graph, region, shares, strips
        self.division = Division(region.batch, shares * strips)
        self.strip_of: dict[Value, Value] = {}  # of a source's strip, which part of a share it is one of
        self.share_of: dict[Value, Value] = {}  # of which stack this part is one
        self.inner: dict[Value, Value] = {}  # what stands for a value inside: for a source, a strip of it

    def run(self) -> Graph:
        region, graph = self.region, self.graph
        wanted = region.wanted()
        for node in region.inside:
            with located(node.location):
                for value in node.inputs:
                    if value in region.sources and value not in self.inner:
                        self.inner[value] = self._slice(value)
                parts = self.division.part(node, region.axes, self.inner)
            self.inner.update(zip(node.outputs, parts, strict=True))
        scan = self._loops([self._leading(value) for value in wanted])
        sums, stacks = scan.outputs[: len(region.sums)], scan.outputs[len(region.sums) :]
        new = {node.output: ops.reduce_sum(s, axes=(0,)) for node, s in zip(region.sums, sums, strict=True)}
        new |= {value: self._whole(value, stack) for value, stack in zip(wanted, stacks, strict=True)}
        return with_results(graph, substitute(graph.results, new))

    def _slice(self, source: Value) -> Value:
        extent, *others = source.type.extents
        shape = (self.shares, self.strips, extent // (self.shares * self.strips), *others)
        share, strip = (Value(source.type.with_shape(shape[n:])) for n in (1, 2))
        if self.strips == 1:
            shape, share = (self.shares, *shape[2:]), strip
        self.share_of[share] = ops.reshape(source, shape=shape)
        self.strip_of[strip] = share
        return strip

    def _loops(self, results: list[Value]) -> Node:
        """The scan over shares of the scan over strips: sums of the shares, then results of all strips, stacked."""
        sums, name = self.region.sums, self.graph.name
        if self.strips == 1:
            results = [*(self.inner[node.output] for node in sums), *results]
            with located(sums[0].location):
                return ops.close(f"{name}.share", (), (), self.share_of, (), results, length=self.shares)
        carries = [Value(node.output.type) for node in sums]
        following = []
        for carry, node in zip(carries, sums, strict=True):
            with located(node.location):
                following.append(ops.add(carry, self.inner[node.output]))
        init = [ops.full_like(carry, 0) for carry in carries]
        with located(sums[0].location):
            inner = ops.close(f"{name}.strip", init, carries, self.strip_of, following, results, length=self.strips)
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
