"""How the pairs of a region are cut: into heads, blocks of rows with the columns that they need, and strips of these.

Before: the axes of scores f32[2,4,2048,2048], of which 2 and 4 are heads, then rows and columns, under a causal mask
After:  blocks of 512 rows with 512, 1024, 1536 and 2048 columns, in strips of 64 rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import gcd, prod

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Contraction, Reduction
from graphc.passes.axes import axes_of
from graphc.passes.pair_regions import Region
from graphc.passes.ranges import ranges_of

STRIP = 512 * 1024  # bytes of a strip of pairs, of which there are some three at a time
ROWS = (16, 32, 64, 128)  # of a strip: fewer keep no register tile busy, more are of no use
SUMS = 2  # bytes of sums that a strip may add to, for each byte of its pairs
BLOCK = (256, 512)  # rows of a block: a quarter of all within these bounds, or more where that makes too many
BLOCKS = 8  # at most, and one of what is left: each is compiled for itself
SHARED = 8  # heads that threads can share; where there are fewer, they share rows, too
PART = 32  # rows of a block's part


@dataclass(frozen=True, slots=True)
class Block:
    """Rows with the columns that they need, in strips of so many rows."""

    rows: range
    columns: range
    strip: int


@dataclass(frozen=True, eq=False)
class Tiling:
    """The body of a region, and what its axes (numbers of `axes_of`) are.

    same     for each input the first one with the same operand
    heads    axes that everything has an independent part for
    rows     the axis that is cut in strips
    columns  the other one of the pairs
    sums     the outputs that are sums over the rows
    """

    region: Region
    same: tuple[int, ...]
    axes: Mapping[Value, tuple[int, ...]]
    heads: tuple[int, ...]
    rows: int
    columns: int
    sums: frozenset[Value]

    @staticmethod
    def of(region: Region, same: tuple[int, ...]) -> Tiling | None:
        """How a region is cut; None where there is no axis to be cut."""
        if not region.seeds:
            return None
        body, axes, first = region.body, axes_of(region.body), region.seeds[0]
        extents = {number: n for value, numbers in axes.items() for number, n in zip(numbers, value.type.extents)}
        if any(set(axes[seed.output]) != set(axes[first.output]) for seed in region.seeds):
            return None
        sums = {number: _sums(body, axes, number) for number in axes[first.output] if extents[number] > 1}
        left, right = (set(axes[value]) for value in first.inputs)
        crossings = [*product(left - right, right - left), *product(right - left, left - right)]
        choices = [(r, c) for r, c in crossings if c in sums and _is_cut(body, axes, r, c, sums.get(r))]
        if not choices:
            return None

        def cost(choice: tuple[int, int]) -> tuple[int, int]:
            row, column = choice
            return sum(v.type.nbytes for v in sums[row] or ()), -extents[row] * extents[column]

        rows, columns = min(choices, key=cost)
        heads = [c for c in sums if c not in (rows, columns) and sums[c] == set()]
        return Tiling(region, same, axes, tuple(heads), rows, columns, frozenset(sums[rows] or ()))

    @property
    def body(self) -> Graph:
        """The region's."""
        return self.region.body

    @property
    def pairs(self) -> Value:
        """A value of one element for each pair."""
        return self.region.seeds[0].output

    def extent(self, number: int) -> int:
        """How long an axis is."""
        pairs = self.pairs
        return pairs.type.extents[self.axes[pairs].index(number)]

    @property
    def count(self) -> int:
        """How many heads there are."""
        return prod(map(self.extent, self.heads))

    @property
    def row(self) -> int:
        """Bytes of one row of one head's pairs."""
        return self.pairs.type.nbytes // (self.count * self.extent(self.rows))

    @property
    def added(self) -> int:
        """Bytes of one head's sums, to which each strip adds."""
        return sum(value.type.nbytes for value in self.sums) // self.count

    @cached_property
    def strip(self) -> int:
        """Rows of a strip: as many as stay in a cache, or as make up for the sums that it adds to."""
        fitting = max((n for n in ROWS if n * self.row <= STRIP), default=ROWS[0])
        enough = next((n for n in ROWS if n >= fitting and self.added <= SUMS * n * self.row), ROWS[-1])
        return min(self.extent(self.rows), enough)

    @cached_property
    def blocks(self) -> list[Block]:
        """The rows, cut into blocks with columns of their own where a mask says so."""
        found = []
        for rows, columns in self._bands:
            part = len(rows) // self.shares
            found.append(Block(rows, columns, part if part <= self.strip else gcd(part, self.strip)))
        return found

    @cached_property
    def shares(self) -> int:
        """Equal parts of each block's rows that threads can take; 1 where heads are enough."""
        counts = [n for n in (2, 4, 8) if self.count * n < 2 * SHARED and all(_parts(r, n) for r, _ in self._bands)]
        return counts[-1] if counts and self.count < SHARED else 1

    @cached_property
    def _bands(self) -> list[tuple[range, range]]:
        """Rows and the columns that they need."""
        found: list[tuple[range, range]] = []
        for rows in _cut(self.extent(self.rows), self.strip):
            cuts = _cut(self.extent(self.columns), self.strip)
            while len(cuts) > 1 and not self._is_needed(rows, cuts[0]):
                del cuts[0]
            while len(cuts) > 1 and not self._is_needed(rows, cuts[-1]):
                del cuts[-1]
            columns = range(cuts[0].start, cuts[-1].stop)
            if found and found[-1][1] == columns and len(rows) % self.strip == 0:  # not what is left over
                rows = range(found.pop()[0].start, rows.stop)
            found.append((rows, columns))
        return found

    @property
    def adds_little(self) -> bool:
        """Whether a strip's pairs are many enough for the sums that it adds to."""
        return self.added <= SUMS * self.strip * self.row

    @property
    def share(self) -> float:
        """Of all pairs, those that are made."""
        made = sum(len(block.rows) * len(block.columns) for block in self.blocks)
        return made / (self.extent(self.rows) * self.extent(self.columns))

    def has_pairs(self, value: Value) -> bool:
        """Whether a value of the body has an element for each pair."""
        return self.rows in self.axes[value] and self.columns in self.axes[value]

    def _is_needed(self, rows: range, columns: range) -> bool:
        """Whether what is made of these pairs is anything but what sums and maxima begin with."""
        known = ranges_of(self.body, self.axes, {self.rows: rows, self.columns: columns})
        for node in self.body.nodes:
            for value in node.inputs:
                if self.has_pairs(value) and not self.has_pairs(node.output):
                    start = _start(node)
                    if start is None or known.get(value) != (start, start):
                        return True
        return False


def _start(node: Node) -> float | None:
    """What leaves the result of a node as it is, wherever it stands in the operand that has the pairs."""
    match node.op.kind:
        case Contraction():
            return 0
        case Reduction() as kind:
            return float(kind.identity(node.output.dtype))
    return None


def _sums(body: Graph, axes: Mapping[Value, Sequence[int]], number: int) -> set[Value] | None:
    """The values that are sums over an axis of what has it; None where it is not simply handed on or summed."""
    found: set[Value] = set()
    for node in body.nodes:
        given, out = [axes[value].count(number) for value in node.inputs], axes[node.output].count(number)
        if max((out, *given)) > 1:
            return None
        if any(given) and not out:
            if not (node.op.name == "reduce_sum" or isinstance(node.op.kind, Contraction)):
                return None
            found.add(node.output)
    return None if any(value in found for node in body.nodes for value in node.inputs) else found


def _is_cut(body: Graph, axes: Mapping[Value, Sequence[int]], rows: int, columns: int, sums: set[Value] | None) -> bool:
    """Whether all that is wanted is a sum over the rows, or has rows, and no columns that might be left out."""
    if sums is None:
        return False
    return all(value in sums or (rows in axes[value] and columns not in axes[value]) for value in body.outputs)


def _cut(extent: int, step: int) -> list[range]:
    """Equal pieces, in whole steps, and what is left."""
    least, most = BLOCK
    size = max(-(-extent // BLOCKS), min(-(-extent // 4), most), least)
    whole = extent // step * step
    cuts = sorted({*range(0, whole, -(-size // step) * step), whole, extent})
    return [range(start, stop) for start, stop in pairwise(cuts)]


def _parts(rows: range, count: int) -> bool:
    """Whether rows are cut into so many parts that still fill register tiles."""
    return len(rows) % count == 0 and len(rows) // count >= PART
