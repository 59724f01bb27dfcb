"""Reductions in flight: accumulators side by side, folded as a fixed tree, and partial results of blocks.

A long sum is split three times: over `lanes * unroll` accumulators, over rows, and over blocks. That is fast, accurate,
and the same for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.errors import LoweringError
from graphc.ir.graph import Node
from graphc.ir.index import ZERO, Index, flatten
from graphc.ir.op import Reduction
from graphc.ir.types import DType
from graphc.loops.ir import Buffer, Const, Expr, Load, LoopKind, Scalar, Space
from graphc.loops.nest import vectors
from graphc.loops.point import Point


def combine(node: Node) -> str:
    """The scalar op of a reduction."""
    return _kind(node).combine


def identity_of(node: Node) -> Const:
    """The result of reducing nothing."""
    dtype = node.output.dtype
    return Const(dtype.numpy.type(_kind(node).identity(dtype)).item(), dtype)


def _kind(node: Node) -> Reduction:
    if not isinstance(node.op.kind, Reduction):
        raise LoweringError(f"{node.op.name} is not a reduction", node.location)
    return node.op.kind


@dataclass(frozen=True, slots=True)
class Total:
    """One reduction along a row: `slots` accumulators, of which each element has its own."""

    op: str
    start: Const
    buffer: Buffer
    lanes: int

    @staticmethod
    def open(point: Point, op: str, start: Const, extent: int, lanes: int, unroll: int) -> Total:
        """Accumulators for rows of `extent` elements, set to the identity."""
        slots = 1 if extent == 1 else min(lanes * unroll, -(-extent // lanes) * lanes)
        total = Total(op, start, point.local("acc", start.dtype, slots), lanes)
        fill(point, total.buffer, ZERO, slots, start, lanes, unroll)
        return total

    def add(self, point: Point, slot: Index, value: Expr) -> None:
        point.reduce(self.op, self.buffer, slot, value)

    def fold(self, point: Point) -> Expr:
        """The result: vectors folded pairwise, then the lanes of the last one."""
        (slots,) = self.buffer.shape
        if slots == 1:
            return point.load(self.buffer, ZERO)
        count = slots // self.lanes
        while count > 1:
            half = (count + 1) // 2
            with (
                point.loop("u", count - half, LoopKind.UNROLLED) as number,
                point.loop("v", self.lanes, LoopKind.VECTOR, self.lanes) as lane,
            ):
                at = number * self.lanes + lane
                self.add(point, at, point.load(self.buffer, at + half * self.lanes))
            count = half
        result = point.local("sum", self.start.dtype, 1)
        point.store(result, ZERO, self.start)
        with point.loop("v", self.lanes, LoopKind.VECTOR, self.lanes) as lane:
            point.reduce(self.op, result, ZERO, point.load(self.buffer, lane))
        return point.load(result, ZERO)


REGISTER_VECTORS = 32  # no target has room for more of them


def fill(point: Point, buffer: Buffer, start: Index, extent: int, value: Const, lanes: int, unroll: int) -> None:
    """Set `extent` elements from `start` on; a small local without a loop, so that it can live in registers."""
    if buffer.space is Space.LOCAL and extent <= REGISTER_VECTORS * lanes:
        unroll = max(unroll, extent // lanes)
    vectors(point, extent, lanes, unroll, lambda position, _: point.store(buffer, start + position, value))


@dataclass(frozen=True, slots=True)
class Partial:
    """An accumulation's results, one row for each block of the sweep."""

    node: Node
    extent: int
    buffer: Buffer

    @staticmethod
    def of(name: str, node: Node, blocks: int) -> Partial:
        extent = math.prod(node.output.type.extents)
        return Partial(node, extent, Buffer(name, node.output.dtype, (blocks * extent,), Space.SCRATCH))

    def clear(self, point: Point, block: Index, lanes: int, unroll: int) -> None:
        fill(point, self.buffer, block * self.extent, self.extent, identity_of(self.node), lanes, unroll)

    def add(self, point: Point, block: Index, position: Index, value: Expr) -> None:
        point.reduce(combine(self.node), self.buffer, block * self.extent + position, value, self.node.location)

    def store(self, point: Point, block: Index, position: Index, value: Expr) -> None:
        point.store(self.buffer, block * self.extent + position, value, self.node.location)

    def result(self, index: tuple[Index, ...]) -> Expr:
        """An element of the result: all blocks' partial results, added as a balanced tree."""
        position = flatten(index, self.node.output.type.extents)
        starts = range(0, self.buffer.shape[0], self.extent)
        return tree(combine(self.node), [Load(self.buffer, (position + s,)) for s in starts], self.node.output.dtype)


def tree(op: str, terms: Sequence[Expr], dtype: DType) -> Expr:
    """A balanced tree: neighbours first."""
    while len(terms) > 1:
        pairs = [Scalar(op, (a, b), dtype) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = [*pairs, *terms[len(pairs) * 2 :]]
    return terms[0]
