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

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from graphlib import TopologicalSorter
from itertools import pairwise, product
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, build, copy_node, substitute
from graphc.ir.op import Contraction, Reduction
from graphc.ir.signature import signature
from graphc.ir.source import located
from graphc.ir.types import DType
from graphc.passes.axes import axes_of, resized
from graphc.passes.manager import graph_pass
from graphc.passes.ranges import ranges_of
from graphc.passes.regions import Region, regions

FAR = 16 * 1024 * 1024  # bytes of pairs that are worth it
STRIP = 512 * 1024  # bytes of a strip of them, of which there are some three at a time
ROWS = (16, 32, 64, 128)  # of a strip: fewer keep no register tile busy, more are of no use
SUMS = 2  # bytes of sums that a strip may add to, for each byte of its pairs
BLOCK = (256, 512)  # rows of a block, of which there are 4 where it would not be larger
BLOCKS = 8  # at most: each is compiled for itself


@graph_pass
def tile_pairs(graph: Graph) -> Graph:
    """Make pairs of rows in strips, where storing them does not pay.

    Before: `%0 = contract %q, %k spec="mk,nk->mn"`, `%1 = exp %0`, `%2 = contract %1, %v spec="mn,nk->mk"`, where `%0`
    is large. After: a scan over strips of `%q`.
    """
    known: dict[Hashable, _Tiling | None] = {}
    found: dict[Region, _Tiling] = {}
    for parts in regions(graph):
        tilings = [_tiling(region, known) for region in parts]
        if _pays(tilings):
            found |= {region: tiling for region, tiling in zip(parts, tilings, strict=True) if tiling}
    return _with(graph, found) if found else graph


def _tiling(region: Region, known: dict[Hashable, _Tiling | None]) -> _Tiling | None:
    """The tiling of a region; one for all that are equal, as those of repeated layers."""
    operands = list(region.given.values())
    same = tuple(map(operands.index, operands))
    key = signature(region.body), same
    if key not in known:
        known[key] = _Tiling.of(region, same)
    return known[key]


def _with(graph: Graph, tilings: Mapping[Region, _Tiling]) -> Graph:
    """The graph with loops in place of what regions make."""
    made = {value: region for region in tilings for value in region.wanted}
    operands: dict[Node | Region, Sequence[Value]] = {node: node.inputs for node in graph.nodes}
    operands |= {region: tuple(region.given.values()) for region in tilings}
    before = {part: [made.get(v, v.node) for v in values] for part, values in operands.items()}
    order = TopologicalSorter({part: [p for p in parts if p is not None] for part, parts in before.items()})
    loops = {tiling: _Loops(tiling).values() for tiling in dict.fromkeys(tilings.values())}
    new: dict[Value, Value] = {}
    for part in order.static_order():
        if isinstance(part, Node):
            with located(part.location):
                values = copy_node(part, tuple(new.get(v, v) for v in part.inputs))
            new |= {old: v for old, v in zip(part.outputs, values, strict=True) if old not in made}
        else:
            tiling = tilings[part]
            given = [new.get(value, value) for value in part.given.values()]
            found = substitute(loops[tiling], dict(zip(tiling.body.inputs, given, strict=True)))
            new |= zip(part.wanted, found, strict=True)
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
    """The body of a region, and what its axes (numbers of `axes_of`) are.

    same     for each input the first one with the same operand
    outer    axes that everything has an independent part for: heads
    rows     the axis that is cut in strips
    columns  the other one of the pairs
    sums     the outputs that are sums over the rows
    """

    body: Graph
    seeds: tuple[Node, ...]
    same: tuple[int, ...]
    axes: Mapping[Value, tuple[int, ...]]
    outer: tuple[int, ...]
    rows: int
    columns: int
    sums: frozenset[Value]

    @staticmethod
    def of(region: Region, same: tuple[int, ...]) -> _Tiling | None:
        """How a region is cut; None where there is no axis to be cut."""
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
        return _Tiling(body, region.seeds, same, axes, tuple(outer), rows, columns, frozenset(sums[rows] or ()))

    @property
    def pairs(self) -> Value:
        """A value of one element for each pair."""
        return self.seeds[0].output

    def extent(self, number: int) -> int:
        """How long an axis is."""
        pairs = self.pairs
        return pairs.type.extents[self.axes[pairs].index(number)]

    @property
    def heads(self) -> int:
        """How many independent parts there are."""
        return prod(map(self.extent, self.outer))

    def strip(self) -> int:
        """Rows of a strip: as many as stay in a cache, or as make up for the sums that it adds to."""
        rows = self.extent(self.rows)
        row = self.pairs.type.nbytes // (self.heads * rows)
        fitting = max((n for n in ROWS if n * row <= STRIP), default=ROWS[0])
        return min(rows, next((n for n in ROWS if n >= fitting and self._sums <= SUMS * n * row), ROWS[-1]))

    def adds_little(self) -> bool:
        """Whether adding to the sums costs less than storing the pairs."""
        rows = self.extent(self.rows)
        return self._sums * rows <= SUMS * self.strip() * (self.pairs.type.nbytes // self.heads)

    @property
    def _sums(self) -> int:
        """Bytes of one head's sums."""
        return sum(value.type.nbytes for value in self.sums) // self.heads

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
        body, axes = self.body, self.axes
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


def _cut(extent: int, step: int) -> list[range]:
    """Equal pieces, in whole steps, and what is left."""
    least, most = BLOCK
    size = max(-(-extent // BLOCKS), min(-(-extent // 4), most), least)
    whole = extent // step * step
    cuts = sorted({*range(0, whole, -(-size // step) * step), whole, extent})
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


def _pays(found: Sequence[_Tiling | None]) -> bool:
    """Whether all regions can be cut, their pairs are too many to be stored, and adding to sums costs less."""
    tilings = [tiling for tiling in found if tiling is not None]
    if len(tilings) < len(found):
        return False
    if sum(seed.output.type.nbytes for t in tilings for seed in t.seeds) < FAR:
        return False
    return all(t.adds_little() for t in tilings)


# Loops -----------------------------------------------------------------------------------------------------------


class _Loops:
    """The loops of one tiling, on the inputs of its body: over heads, and for each block of rows over strips of it.

    In between, the axes of values stand in another order: heads, rows, others.
    """

    def __init__(self, tiling: _Tiling) -> None:
        self.tiling, self.body, self.axes = tiling, tiling.body, tiling.axes
        self.rows, self.outer, self.blocks = tiling.rows, tiling.outer, tiling.blocks()
        cut = {*self.outer, self.rows, tiling.columns}
        known: dict[tuple[int, ...], Value] = {}
        self.first = {  # for each input the first one of the same operand that is cut in the same way
            inner: known.setdefault((operand, *(n if n in cut else -1 for n in self.axes[inner])), inner)
            for inner, operand in zip(self.body.inputs, tiling.same, strict=True)
        }

    def values(self) -> list[Value]:
        """What stands for the outputs of the region."""
        with located(self.tiling.seeds[0].location):
            read = dict.fromkeys(self.first.values())
            stacks = {value: self._stack(value) for value in read if self._has_heads(value)}
            places = {number: self._head_positions(number) for number in self._counted(self.outer)}
            whole = {v: self._in_order(v, self.axes[v]) for v in read if v not in stacks}

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
            given = {inner: self._restored(inner, parts[first], block) for inner, first in self.first.items()}
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
        joined = iter([_shaped(v, (len(block.rows), *v.shape[2:])) for v in stacks])
        return [self._padded(v, total[v], block) if v in total else next(joined) for v in self.body.outputs]

    # Order of axes -----------------------------------------------------------------------------------------------

    def _order(self, numbers: Sequence[int]) -> list[int]:
        """The axes with these numbers, in the order in between."""
        first = {number: place for place, number in enumerate((*self.outer, self.rows))}
        return sorted(range(len(numbers)), key=lambda axis: first.get(numbers[axis], len(first)))

    def _in_order(self, value: Value, numbers: Sequence[int]) -> Value:
        return _moved(value, self._order(numbers))

    def _out_of_order(self, value: Value, numbers: Sequence[int]) -> Value:
        order = self._order(numbers)
        return _moved(value, [order.index(axis) for axis in range(len(order))])

    def _has_heads(self, value: Value) -> bool:
        return not set(self.outer).isdisjoint(self.axes[value])

    def _stack(self, inner: Value) -> Value:
        """An operand's parts for all heads along its first axis."""
        numbers = self.axes[inner]
        value = self._in_order(inner, numbers)
        heads = tuple(map(self.tiling.extent, self.outer))
        present = [place for place, number in enumerate(self.outer) if number in numbers]
        rest = value.shape[len(present) :]
        if len(present) < len(heads):
            axes = (*present, *range(len(heads), len(heads) + len(rest)))
            value = ops.broadcast(value, shape=(*heads, *rest), axes=axes)
        return _shaped(value, (self.tiling.heads, *rest))

    def _counted(self, numbers: Sequence[int]) -> list[int]:
        """The axes along which positions are asked for."""
        iotas = [node for node in self.body.nodes if node.op.name == "iota"]
        found = {self.axes[node.output][node.attrs["axis"]] for node in iotas}
        return [number for number in numbers if number in found]

    def _head_positions(self, number: int) -> Value:
        heads = tuple(map(self.tiling.extent, self.outer))
        places = ops.iota(shape=heads, axis=self.outer.index(number), dtype=DType.I64)
        return _shaped(places, (self.tiling.heads, 1))

    def _shape(self, value: Value, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """The shape of one head's part of a value."""
        numbers, extents = self.axes[value], value.type.extents
        order = [axis for axis in self._order(numbers) if numbers[axis] not in self.outer]
        return tuple(sizes.get(numbers[axis], extents[axis]) for axis in order)

    def _restored(self, inner: Value, part: Value, block: _Block) -> Value:
        """One head's part of an operand as the body takes it: with the heads' axes, and the columns of the block."""
        numbers, columns = self.axes[inner], self.tiling.columns
        if self._has_heads(inner):
            part = _shaped(part, (*[1 for n in numbers if n in self.outer], *part.shape))
        value = self._out_of_order(part, numbers)
        return _sliced(value, numbers.index(columns), block.columns) if columns in numbers else value

    def _without_heads(self, old: Value, value: Value) -> Value:
        value = self._in_order(value, self.axes[old])
        return _shaped(value, value.shape[len(self.outer) :]) if self.outer else value

    def _whole(self, old: Value, stack: Value) -> Value:
        """An output from its parts for all heads."""
        heads = tuple(map(self.tiling.extent, self.outer))
        return self._out_of_order(_shaped(stack, (*heads, *stack.shape[1:])), self.axes[old])

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
        following, results = step(init, [_shaped(v, v.shape[1:]) for v in stacks])
        return following, [_shaped(v, (1, *v.shape)) for v in results]
    carries = [Value(v.type) for v in init]
    slices = [Value(v.type.with_shape(v.shape[1:])) for v in stacks]
    following, results = step(carries, slices)
    stack_of = dict(zip(slices, stacks, strict=True))
    outputs = ops.close(name, init, carries, stack_of, following, results, length=length).outputs
    return outputs[: len(init)], outputs[len(init) :]


def _shaped(value: Value, shape: Sequence[int]) -> Value:
    """A reshape, of what was reshaped before."""
    while value.node is not None and value.node.op.name == "reshape":
        (value,) = value.node.inputs
    return value if value.shape == tuple(shape) else ops.reshape(value, shape=shape)


def _moved(value: Value, perm: Sequence[int]) -> Value:
    """A transpose, which is a reshape where none but axes of one element move."""
    long = [axis for axis in perm if value.shape[axis] != 1]
    if long == sorted(long):
        return _shaped(value, [value.shape[axis] for axis in perm])
    return ops.transpose(value, perm=perm)


def _cut_rows(value: Value, block: _Block) -> Value:
    """The rows of a block in strips: [rows, …] -> [strips, rows of a strip, …]."""
    rows = _sliced(value, 0, block.rows)
    return _shaped(rows, (block.strips, block.strip, *value.shape[1:]))


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
