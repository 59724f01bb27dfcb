"""The loops of one tiling: over shares of the rows, over heads, and for each block of rows over strips of it.

Before: the body of a region, `%2 = contract %q, %k spec="abmk,abnk->abmn"` and what follows, for all pairs
After:  a step that does the same for 1 x 1 x 64 x 512 of them, on slices of `%q`; sums are added up in its carries.

In between, the axes of values stand in another order: heads, rows, others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import chain

from graphc import ops
from graphc.ir.graph import Value
from graphc.ir.source import located
from graphc.ir.types import DType
from graphc.passes.axes import resized
from graphc.passes.pair_tiling import Block, Tiling


def loops(tiling: Tiling) -> list[Value]:
    """What stands for the outputs of the body, made in loops of its inputs."""
    return _Loops(tiling).values()


What = Value | int  # an input of the body, or the number of an axis whose positions are asked for
Parts = Mapping[tuple[What, Block | None], Value]  # what stands for it in a loop; rows stand apart for each block


class _Loops:
    """What the loops of one tiling are made of.

    first  for each input of the body the first one of the same operand that is cut in the same way
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling, self.body, self.axes = tiling, tiling.body, tiling.axes
        self.rows, self.heads, self.blocks = tiling.rows, tiling.heads, tiling.blocks
        cut = {*self.heads, self.rows, tiling.columns}
        known: dict[tuple[int, ...], Value] = {}
        self.first = {
            inner: known.setdefault((operand, *(n if n in cut else -1 for n in self.axes[inner])), inner)
            for inner, operand in zip(self.body.inputs, tiling.same, strict=True)
        }
        self.summed = [value for value in self.body.outputs if value in tiling.sums]
        self.stacked = [value for value in self.body.outputs if value not in tiling.sums]

    def values(self) -> list[Value]:
        """What stands for the outputs of the region."""
        inputs = dict.fromkeys(self.first.values())
        with located(self.tiling.region.seeds[0].location):
            rows: list[What] = [*filter(self._has_rows, inputs), self.rows]
            shares = {(what, block): self._shares(what, block) for what in rows for block in self.blocks}
            whole: Parts = {(v, None): self._stack(v) for v in inputs if not self._has_rows(v)}

            def share(_: Sequence[Value], slices: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
                return (), self._share({**whole, **dict(zip(shares, slices, strict=True))})

            name = f"{self.body.name}.share"
            _, found = _loop(name, self.tiling.shares, (*shares.values(),), (), share)
            made = {old: self._total(value) for old, value in zip(self.summed, found, strict=False)}
            for number, old in enumerate(self.stacked):
                start = len(self.summed) + number * len(self.blocks)
                made[old] = self._rows(found[start : start + len(self.blocks)])
            return [self._whole(old, made[old]) for old in self.body.outputs]

    def _share(self, parts: Parts) -> Sequence[Value]:
        """Sums over one share of the rows, and its part of each block of the other outputs, for all heads."""
        heads = {key: value for key, value in parts.items() if self._has_heads(key[0])}
        heads |= {(number, None): self._head_positions(number) for number in self._counted()}

        def head(_: Sequence[Value], slices: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
            local = {**parts, **dict(zip(heads, slices, strict=True))}
            found = [self._block(b, {what: v for (what, i), v in local.items() if i in (b, None)}) for b in self.blocks]
            sums = [reduce(ops.add, values) for values in zip(*(sums for sums, _ in found), strict=True)]
            rows = zip(*(rows for _, rows in found), strict=True)  # for each output, of all blocks
            return (), [*sums, *chain.from_iterable(rows)]

        _, found = _loop(f"{self.body.name}.head", self.tiling.count, (*heads.values(),), (), head)
        return found

    def _block(self, block: Block, local: Mapping[What, Value]) -> tuple[list[Value], list[Value]]:
        """For the rows of one block, one head and one share: sums over them, and the other outputs."""
        cut = {what: _strips(value, block.strip) for what, value in local.items() if self._has_rows(what)}
        columns, start = len(block.columns), block.columns.start
        sizes = {**dict.fromkeys(self.heads, 1), self.rows: block.strip, self.tiling.columns: columns}

        def strip(carries: Sequence[Value], slices: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
            parts = {**local, **dict(zip(cut, slices, strict=True))}
            given = {inner: self._restored(inner, parts[first], block) for inner, first in self.first.items()}
            positions = {what: value for what, value in parts.items() if isinstance(what, int)}
            if start:
                here = ops.iota(shape=(columns,), axis=0, dtype=DType.I64)
                positions[self.tiling.columns] = ops.add(here, ops.full_like(here, start))
            made = dict(zip(self.body.outputs, resized(self.body, self.axes, sizes, given, positions), strict=True))
            flat = {old: self._without_heads(old, value) for old, value in made.items()}
            following = [ops.add(carry, flat[old]) for carry, old in zip(carries, self.summed, strict=True)]
            return following, [flat[old] for old in self.stacked]

        init = [ops.full(self._shape(value, sizes), 0, value.dtype) for value in self.summed]
        count = len(block.rows) // (self.tiling.shares * block.strip)
        sums, rows = _loop(f"{self.body.name}.strip", count, (*cut.values(),), init, strip)
        padded = [self._padded(old, total, block) for old, total in zip(self.summed, sums, strict=True)]
        return padded, [_shaped(v, (v.shape[0] * v.shape[1], *v.shape[2:])) for v in rows]

    # Shares and heads --------------------------------------------------------------------------------------------

    def _shares(self, what: What, block: Block) -> Value:
        """The rows of a block in equal shares: [shares, heads (where it has any), rows, …]."""
        if isinstance(what, int):
            value = ops.iota(shape=(self.tiling.extent(what),), axis=0, dtype=DType.I64)
        else:
            value = self._stack(what)
        axis = int(self._has_heads(what))
        part = _sliced(value, axis, block.rows)
        size = len(block.rows) // self.tiling.shares
        part = _shaped(part, (*part.shape[:axis], self.tiling.shares, size, *part.shape[axis + 1 :]))
        return _moved(part, [axis, *(other for other in range(part.type.rank) if other != axis)])

    def _rows(self, blocks: Sequence[Value]) -> Value:
        """[heads, rows, …] of the shares of each block."""
        parts = []
        for value in blocks:
            shares, heads, size, *rest = value.shape
            moved = _moved(value, [1, 0, *range(2, value.type.rank)])
            parts.append(_shaped(moved, (heads, shares * size, *rest)))
        return ops.concat(*parts, axis=1) if len(parts) > 1 else parts[0]

    def _total(self, shares: Value) -> Value:
        return ops.reduce_sum(shares, axes=(0,)) if self.tiling.shares > 1 else _shaped(shares, shares.shape[1:])

    def _has_rows(self, what: What) -> bool:
        return what == self.rows if isinstance(what, int) else self.rows in self.axes[what]

    def _has_heads(self, what: What) -> bool:
        return not isinstance(what, int) and not set(self.heads).isdisjoint(self.axes[what])

    def _stack(self, inner: Value) -> Value:
        """An operand's parts for all heads along its first axis; as it is where it has no heads."""
        numbers = self.axes[inner]
        value = self._in_order(inner, numbers)
        if not self._has_heads(inner):
            return value
        heads = tuple(map(self.tiling.extent, self.heads))
        present = [place for place, number in enumerate(self.heads) if number in numbers]
        rest = value.shape[len(present) :]
        if len(present) < len(heads):
            axes = (*present, *range(len(heads), len(heads) + len(rest)))
            value = ops.broadcast(value, shape=(*heads, *rest), axes=axes)
        return _shaped(value, (self.tiling.count, *rest))

    def _counted(self) -> list[int]:
        """The axes of heads along which positions are asked for."""
        iotas = [node for node in self.body.nodes if node.op.name == "iota"]
        found = {self.axes[node.output][node.attrs["axis"]] for node in iotas}
        return [number for number in self.heads if number in found]

    def _head_positions(self, number: int) -> Value:
        heads = tuple(map(self.tiling.extent, self.heads))
        places = ops.iota(shape=heads, axis=self.heads.index(number), dtype=DType.I64)
        return _shaped(places, (self.tiling.count, 1))

    # Order of axes -----------------------------------------------------------------------------------------------

    def _order(self, numbers: Sequence[int]) -> list[int]:
        """The axes with these numbers, in the order in between."""
        first = {number: place for place, number in enumerate((*self.heads, self.rows))}
        return sorted(range(len(numbers)), key=lambda axis: first.get(numbers[axis], len(first)))

    def _in_order(self, value: Value, numbers: Sequence[int]) -> Value:
        return _moved(value, self._order(numbers))

    def _out_of_order(self, value: Value, numbers: Sequence[int]) -> Value:
        order = self._order(numbers)
        return _moved(value, [order.index(axis) for axis in range(len(order))])

    def _shape(self, value: Value, sizes: Mapping[int, int]) -> tuple[int, ...]:
        """The shape of one head's part of a value."""
        numbers, extents = self.axes[value], value.type.extents
        order = [axis for axis in self._order(numbers) if numbers[axis] not in self.heads]
        return tuple(sizes.get(numbers[axis], extents[axis]) for axis in order)

    def _restored(self, inner: Value, part: Value, block: Block) -> Value:
        """One head's part of an operand as the body takes it: with the heads' axes, and the columns of the block."""
        numbers, columns = self.axes[inner], self.tiling.columns
        if self._has_heads(inner):
            part = _shaped(part, (*[1 for n in numbers if n in self.heads], *part.shape))
        value = self._out_of_order(part, numbers)
        return _sliced(value, numbers.index(columns), block.columns) if columns in numbers else value

    def _without_heads(self, old: Value, value: Value) -> Value:
        value = self._in_order(value, self.axes[old])
        return _shaped(value, value.shape[len(self.heads) :]) if self.heads else value

    def _whole(self, old: Value, stack: Value) -> Value:
        """An output from its parts for all heads."""
        heads = tuple(map(self.tiling.extent, self.heads))
        return self._out_of_order(_shaped(stack, (*heads, *stack.shape[1:])), self.axes[old])

    def _padded(self, old: Value, total: Value, block: Block) -> Value:
        """A sum for the columns of a block, with zeros for the others."""
        numbers, columns = [n for n in self.axes[old] if n not in self.heads], self.tiling.columns
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


def _strips(value: Value, size: int) -> Value:
    """Rows in strips: [rows, …] -> [strips, rows of a strip, …]."""
    return _shaped(value, (value.type.extents[0] // size, size, *value.shape[1:]))


def _sliced(value: Value, axis: int, places: range) -> Value:
    if len(places) == value.shape[axis]:
        return value
    rank, shape = value.type.rank, value.type.extents
    start = [places.start if n == axis else 0 for n in range(rank)]
    stop = [places.stop if n == axis else shape[n] for n in range(rank)]
    return ops.slice(value, start=start, stop=stop, step=[1] * rank)
