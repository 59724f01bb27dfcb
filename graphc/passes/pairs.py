"""Pairs in strips: attention without its T x T scores, and whatever else makes something for each pair of rows.

Before: `%2 = contract %q, %k spec="abmk,abnk->abmn"`, f32[2,4,2048,2048], its softmax, the product of that with `%v`
After:  a scan over the 8 heads, whose step is a scan over strips f32[64,2048] of each.

What a strip makes stays in the cache of a core. The backward pass computes the scores again, which takes less time than
to write and read them; what it needs of their rows (maxima, sums) is handed on. Sums over all rows (the gradients of
keys and values) are carried from strip to strip.

What a mask of positions leaves out is not computed: rows are first cut into blocks, and each has the columns that it
needs (`ranges`): under a causal mask those up to its last row. Columns are left out where everything that is made of them
is what a sum or maximum begins with. An infinity or NaN that a mask hides is hidden for good.

Heads are independent, so that threads take whole ones. How rows are cut depends on shapes alone, and so do all results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from graphlib import TopologicalSorter
from itertools import pairwise, product
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, build, copy_node
from graphc.ir.op import Contraction, Reduction
from graphc.ir.source import located
from graphc.ir.types import DType
from graphc.passes.axes import axes_of, resized
from graphc.passes.manager import graph_pass
from graphc.passes.ranges import ranges_of
from graphc.passes.regions import Region, regions

FAR = 16 * 1024 * 1024  # bytes of pairs that are worth it
STRIP = 512 * 1024  # bytes of a strip of them, of which there are some three at a time
ROWS = (16, 128)  # of a strip: fewer keep no register tile busy, more are of no use
SUMS = 8  # bytes of sums that strips add to, for each byte of pairs
BLOCKS = 4  # of rows with columns of their own: each is compiled for itself


@graph_pass
def tile_pairs(graph: Graph) -> Graph:
    """Make pairs of rows in strips, where storing them does not pay.

    Before: `%0 = contract %q, %k spec="mk,nk->mn"`, `%1 = exp %0`, `%2 = contract %1, %v spec="mn,nk->mk"`, where `%0`
    is large. After: a scan over strips of `%q`.
    """
    found = [[_Tiling.of(region) for region in parts] for parts in regions(graph)]
    tilings = [t for parts in found for t in parts if all(parts) and _pays([p for p in parts if p])]
    return _with(graph, [t for t in tilings if t is not None]) if tilings else graph


def _with(graph: Graph, tilings: Sequence[_Tiling]) -> Graph:
    """The graph with loops in place of what the tilings make."""
    made = {value: tiling for tiling in tilings for value in tiling.region.wanted}
    operands: dict[Node | _Tiling, Sequence[Value]] = {node: node.inputs for node in graph.nodes}
    operands |= {tiling: tuple(tiling.region.given.values()) for tiling in tilings}
    before = {part: [made.get(v, v.node) for v in values] for part, values in operands.items()}
    order = TopologicalSorter({part: [p for p in parts if p is not None] for part, parts in before.items()})
    new: dict[Value, Value] = {}
    for part in order.static_order():
        if isinstance(part, Node):
            with located(part.location):
                values = copy_node(part, tuple(new.get(v, v) for v in part.inputs))
            new |= {old: v for old, v in zip(part.outputs, values, strict=True) if old not in made}
        else:
            given = {inner: new.get(value, value) for inner, value in part.region.given.items()}
            new |= zip(part.region.wanted, _Loops(part, given).values(), strict=True)
    results = [new.get(value, value) for value in graph.results]
    count = len(graph.outputs)
    next = zip((state for state, _ in graph.next), results[count:], strict=True)
    return build(graph.name, graph.inputs, results[:count], next, graph.state)


# What is cut, and where ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows with the columns that they need, in strips of so many rows."""

    rows: range
    columns: range
    strip: int

    @property
    def strips(self) -> int:
        return len(self.rows) // self.strip


@dataclass(frozen=True, eq=False, slots=True)
class _Tiling:
    """A region, and what its axes (numbers of `axes_of`) are.

    outer    axes that everything has an independent part for: heads
    rows     the axis that is cut in strips
    columns  the other one of the pairs
    sums     the outputs that are sums over the rows
    """

    region: Region
    axes: Mapping[Value, tuple[int, ...]]
    outer: tuple[int, ...]
    rows: int
    columns: int
    sums: frozenset[Value]

    @staticmethod
    def of(region: Region) -> _Tiling | None:
        """The tiling of a region; None where there is no axis to be cut."""
        body, axes = region.body, axes_of(region.body)
        first = region.seeds[0]
        extents = {number: n for value, numbers in axes.items() for number, n in zip(numbers, value.type.extents)}
        if any(set(axes[seed.output]) != set(axes[first.output]) for seed in region.seeds):
            return None
        sums = {number: _sums(body, axes, number) for number in axes[first.output] if extents[number] > 1}
        left, right = (set(axes[value]) for value in first.inputs)
        crossings = [*product(left - right, right - left), *product(right - left, left - right)]
        choices = [(r, c) for r, c in crossings if c in sums and _is_cut(body, axes, r, sums.get(r))]
        if not choices:
            return None

        def cost(choice: tuple[int, int]) -> tuple[int, int]:
            row, column = choice
            return sum(v.type.nbytes for v in sums[row] or ()), -extents[row] * extents[column]

        rows, columns = min(choices, key=cost)
        outer = [c for c in sums if c not in (rows, columns) and sums[c] == set()]
        outer = [c for c in outer if all(c in axes[value] for value in body.outputs)]
        return _Tiling(region, axes, tuple(outer), rows, columns, frozenset(sums[rows] or ()))

    @property
    def pairs(self) -> Value:
        """A value of one element for each pair."""
        return self.region.seeds[0].output

    def extent(self, number: int) -> int:
        """How long an axis is."""
        pairs = self.pairs
        return pairs.type.extents[self.axes[pairs].index(number)]

    @property
    def heads(self) -> int:
        """How many independent parts there are."""
        return prod(map(self.extent, self.outer))

    def strip(self) -> int:
        """Rows of a strip."""
        rows = self.extent(self.rows)
        fits = STRIP // max(1, self.pairs.type.nbytes // (self.heads * rows))
        least, most = ROWS
        return min(rows, next(n for n in _halves(most, least) if n <= max(fits, least)))

    def blocks(self) -> list[_Block]:
        """The rows, cut into blocks with columns of their own where a mask says so."""
        strip, columns = self.strip(), self.extent(self.columns)
        found = []
        for rows in _cut(self.extent(self.rows), strip):
            cuts = _cut(columns, strip)
            while len(cuts) > 1 and not self._is_needed(rows, cuts[0]):
                del cuts[0]
            while len(cuts) > 1 and not self._is_needed(rows, cuts[-1]):
                del cuts[-1]
            found.append(_Block(rows, range(cuts[0].start, cuts[-1].stop), min(strip, len(rows))))
        return _joined(found)

    def _is_needed(self, rows: range, columns: range) -> bool:
        """Whether what is made of these pairs is anything but what sums and maxima begin with."""
        body, axes = self.region.body, self.axes
        known = ranges_of(body, axes, {self.rows: rows, self.columns: columns})
        for node in body.nodes:
            for value in node.inputs:
                is_pair = self.rows in axes[value] and self.columns in axes[value]
                if is_pair and not (self.rows in axes[node.output] and self.columns in axes[node.output]):
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
        elif out and not any(given) and node.op.name == "reshape":
            return None
    return None if any(value in found for node in body.nodes for value in node.inputs) else found


def _is_cut(body: Graph, axes: Mapping[Value, Sequence[int]], rows: int, sums: set[Value] | None) -> bool:
    """Whether all that is wanted has rows, or is a sum over them."""
    return sums is not None and all(rows in axes[value] or value in sums for value in body.outputs)


def _halves(most: int, least: int) -> list[int]:
    return [most >> n for n in range(most.bit_length()) if most >> n >= least]


def _cut(extent: int, step: int) -> list[range]:
    """At most BLOCKS equal pieces, in whole steps, and what is left."""
    size = -(-extent // (BLOCKS * step)) * step
    whole = extent // step * step
    cuts = sorted({*range(0, whole, size), whole, extent})
    return [range(start, stop) for start, stop in pairwise(cuts)]


def _joined(blocks: Sequence[_Block]) -> list[_Block]:
    """The same with one block where neighbours need the same columns."""
    found: list[_Block] = []
    for block in blocks:
        last = found[-1] if found else block
        if last is not block and (last.columns, last.strip) == (block.columns, block.strip):
            found[-1] = _Block(range(last.rows.start, block.rows.stop), block.columns, block.strip)
        else:
            found.append(block)
    return found


def _pays(tilings: Sequence[_Tiling]) -> bool:
    """Whether the pairs are too many to be stored, and adding to sums costs less."""
    if sum(seed.output.type.nbytes for t in tilings for seed in t.region.seeds) < FAR:
        return False
    for tiling in tilings:
        strips = tiling.extent(tiling.rows) / tiling.strip()
        if strips * sum(value.type.nbytes for value in tiling.sums) > SUMS * tiling.pairs.type.nbytes:
            return False
    return True


# Loops -----------------------------------------------------------------------------------------------------------


class _Loops:
    """The loops of one tiling, on `given` operands: one over heads, around one over strips for each block of rows.

    In between, the axes of values stand in another order: heads, rows, others.
    """

    def __init__(self, tiling: _Tiling, given: Mapping[Value, Value]) -> None:
        self.tiling, self.given = tiling, given
        self.body, self.axes, self.rows, self.outer = tiling.region.body, tiling.axes, tiling.rows, tiling.outer
        self.blocks = tiling.blocks()

    def values(self) -> list[Value]:
        """What stands for the outputs of the region."""
        with located(self.tiling.region.seeds[0].location):
            stacks = {value: self._stack(value) for value in self.given if self._has_heads(value)}
            places = {number: self._head_positions(number) for number in self._counted(self.outer)}
            whole = {v: self._in_order(self.given[v], self.axes[v]) for v in self.given if v not in stacks}

            def head(_: Sequence[Value], slices: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
                local = dict(zip(stacks, slices, strict=False))
                return (), self._head({**whole, **local}, dict(zip(places, slices[len(stacks) :], strict=True)))

            name = f"{self.body.name}.head"
            _, found = _loop(name, self.tiling.heads, (*stacks.values(), *places.values()), (), head)
            return [self._whole(old, value) for old, value in zip(self.body.outputs, found, strict=True)]

    def _head(self, local: Mapping[Value, Value], places: Mapping[int, Value]) -> list[Value]:
        """The outputs for one head."""
        found = [self._block(block, local, places) for block in self.blocks]
        return [
            _total(parts) if old in self.tiling.sums else _after_each_other(parts)
            for old, parts in zip(self.body.outputs, zip(*found, strict=True), strict=True)
        ]

    def _block(self, block: _Block, local: Mapping[Value, Value], places: Mapping[int, Value]) -> list[Value]:
        """The outputs for the rows of one block: their rows, and sums over them."""
        cut = {v: _cut_rows(value, block) for v, value in local.items() if self.rows in self.axes[v]}
        rows = _cut_rows(ops.iota(shape=(self.tiling.extent(self.rows),), axis=0, dtype=DType.I64), block)
        columns, first = len(block.columns), block.columns.start
        sizes = {**dict.fromkeys(self.outer, 1), self.rows: block.strip, self.tiling.columns: columns}
        summed = [value for value in self.body.outputs if value in self.tiling.sums]

        def strip(carries: Sequence[Value], slices: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
            parts = {**local, **dict(zip(cut, slices, strict=False))}
            given = {inner: self._restored(inner, value, block) for inner, value in parts.items()}
            positions = {**places, self.rows: slices[-1]}
            if first:
                here = ops.iota(shape=(columns,), axis=0, dtype=DType.I64)
                positions[self.tiling.columns] = ops.add(here, ops.full_like(here, first))
            made = dict(zip(self.body.outputs, resized(self.body, self.axes, sizes, given, positions), strict=True))
            flat = {old: self._without_heads(old, value) for old, value in made.items()}
            following = [ops.add(carry, flat[old]) for carry, old in zip(carries, summed, strict=True)]
            return following, [value for old, value in flat.items() if old not in self.tiling.sums]

        init = [ops.full(self._shape(value, sizes), 0, value.dtype) for value in summed]
        name = f"{self.body.name}.strip"
        sums, stacks = _loop(name, block.strips, (*cut.values(), rows), init, strip)
        total = dict(zip(summed, sums, strict=True))
        joined = iter([ops.reshape(v, shape=(len(block.rows), *v.shape[2:])) for v in stacks])
        return [self._padded(v, total[v], block) if v in total else next(joined) for v in self.body.outputs]

    # Order of axes -----------------------------------------------------------------------------------------------

    def _order(self, numbers: Sequence[int]) -> list[int]:
        """The axes with these numbers, in the order in between."""
        first = {number: place for place, number in enumerate((*self.outer, self.rows))}
        return sorted(range(len(numbers)), key=lambda axis: first.get(numbers[axis], len(first)))

    def _in_order(self, value: Value, numbers: Sequence[int]) -> Value:
        order = self._order(numbers)
        return value if order == sorted(order) else ops.transpose(value, perm=order)

    def _out_of_order(self, value: Value, numbers: Sequence[int]) -> Value:
        order = self._order(numbers)
        return value if order == sorted(order) else ops.transpose(value, perm=[order.index(n) for n in range(len(order))])

    def _has_heads(self, value: Value) -> bool:
        return not set(self.outer).isdisjoint(self.axes[value])

    def _stack(self, inner: Value) -> Value:
        """An operand's parts for all heads along its first axis."""
        numbers = self.axes[inner]
        value = self._in_order(self.given[inner], numbers)
        heads = tuple(map(self.tiling.extent, self.outer))
        present = [place for place, number in enumerate(self.outer) if number in numbers]
        rest = value.shape[len(present) :]
        if len(present) < len(heads):
            axes = (*present, *range(len(heads), len(heads) + len(rest)))
            value = ops.broadcast(value, shape=(*heads, *rest), axes=axes)
        return ops.reshape(value, shape=(self.tiling.heads, *rest))

    def _counted(self, numbers: Sequence[int]) -> list[int]:
        """The axes along which positions are asked for."""
        iotas = [node for node in self.body.nodes if node.op.name == "iota"]
        found = {self.axes[node.output][node.attrs["axis"]] for node in iotas}
        return [number for number in numbers if number in found]

    def _head_positions(self, number: int) -> Value:
        heads = tuple(map(self.tiling.extent, self.outer))
        places = ops.iota(shape=heads, axis=self.outer.index(number), dtype=DType.I64)
        return ops.reshape(places, shape=(self.tiling.heads, 1))

    def _shape(self, value: Value, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """The shape of one head's part of a value."""
        numbers, extents = self.axes[value], value.type.extents
        order = [axis for axis in self._order(numbers) if numbers[axis] not in self.outer]
        return tuple(sizes.get(numbers[axis], extents[axis]) for axis in order)

    def _restored(self, inner: Value, part: Value, block: _Block) -> Value:
        """One head's part of an operand as the body takes it: with the heads' axes, and the columns of the block."""
        numbers, columns = self.axes[inner], self.tiling.columns
        if self._has_heads(inner):
            part = ops.reshape(part, shape=(*[1 for n in numbers if n in self.outer], *part.shape))
        value = self._out_of_order(part, numbers)
        return _sliced(value, numbers.index(columns), block.columns) if columns in numbers else value

    def _without_heads(self, old: Value, value: Value) -> Value:
        value = self._in_order(value, self.axes[old])
        return ops.reshape(value, shape=value.shape[len(self.outer) :]) if self.outer else value

    def _whole(self, old: Value, stack: Value) -> Value:
        """An output from its parts for all heads."""
        heads = tuple(map(self.tiling.extent, self.outer))
        return self._out_of_order(ops.reshape(stack, shape=(*heads, *stack.shape[1:])), self.axes[old])

    def _padded(self, old: Value, total: Value, block: _Block) -> Value:
        """A sum for the columns of a block, with zeros for the others."""
        numbers, columns = [n for n in self.axes[old] if n not in self.outer], self.tiling.columns
        if columns not in numbers or len(block.columns) == self.tiling.extent(columns):
            return total
        low, high = [0] * len(numbers), [0] * len(numbers)
        axis = numbers.index(columns)
        low[axis], high[axis] = block.columns.start, self.tiling.extent(columns) - block.columns.stop
        return ops.pad(total, low=low, high=high, interior=[0] * len(numbers), value=0)


Step = Callable[[Sequence[Value], Sequence[Value]], tuple[Sequence[Value], Sequence[Value]]]


def _loop(
    name: str, length: int, stacks: Sequence[Value], init: Sequence[Value], step: Step
) -> tuple[Sequence[Value], Sequence[Value]]:
    """A scan of `step(carries, slices) -> carries, results`: the last carries and the stacked results."""
    if length == 1:
        following, results = step(init, [ops.reshape(v, shape=v.shape[1:]) for v in stacks])
        return following, [ops.reshape(v, shape=(1, *v.shape)) for v in results]
    carries = [Value(v.type) for v in init]
    slices = [Value(v.type.with_shape(v.shape[1:])) for v in stacks]
    following, results = step(carries, slices)
    stack_of = dict(zip(slices, stacks, strict=True))
    outputs = ops.close(name, init, carries, stack_of, following, results, length=length).outputs
    return outputs[: len(init)], outputs[len(init) :]


def _cut_rows(value: Value, block: _Block) -> Value:
    """The rows of a block in strips: [rows, …] -> [strips, rows of a strip, …]."""
    rows = _sliced(value, 0, block.rows)
    return ops.reshape(rows, shape=(block.strips, block.strip, *value.shape[1:]))


def _sliced(value: Value, axis: int, places: range) -> Value:
    if len(places) == value.shape[axis]:
        return value
    rank, shape = value.type.rank, value.type.extents
    start = [places.start if n == axis else 0 for n in range(rank)]
    stop = [places.stop if n == axis else shape[n] for n in range(rank)]
    return ops.slice(value, start=start, stop=stop, step=[1] * rank)


def _after_each_other(parts: Sequence[Value]) -> Value:
    return ops.concat(*parts, axis=0) if len(parts) > 1 else parts[0]


def _total(parts: Sequence[Value]) -> Value:
    return reduce(ops.add, parts)
