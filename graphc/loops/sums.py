"""Accumulations of a tile's elements: added up in registers first, then to the block's partial results.

Before: for 8 rows of 48 columns, sum[column] += element, 24 vectors read and written.  After: 3 vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.ir.graph import Node
from graphc.ir.index import ZERO, Index
from graphc.loops.ir import Buffer, Expr, LoopKind
from graphc.loops.nest import Group
from graphc.loops.sweep import accumulation_target
from graphc.loops.tile import Multiplier, Tile
from graphc.loops.totals import Partial, combine, fill, identity_of
from graphc.passes.forms import Contract


@dataclass(frozen=True, eq=False, slots=True)
class TileSum:
    """One accumulation; `by_row`, `by_column`: whether elements of different rows, columns go to different places."""

    partial: Partial
    target: Index
    by_row: bool
    by_column: bool
    buffer: Buffer | None  # None: nothing in a tile comes together

    def place(self, tile: Tile, row: Index, column: Index, lane: Index) -> Index:
        """Where an element is added in the buffer."""
        return row * tile.lanes + lane if self.by_row else column if self.by_column else lane


@dataclass(frozen=True, eq=False, slots=True)
class TileSums:
    """All accumulations of one tile."""

    multiplier: Multiplier
    tile: Tile
    sums: tuple[TileSum, ...]

    @staticmethod
    def open(multiplier: Multiplier, form: Contract, tile: Tile, partials: Mapping[Node, Partial]) -> TileSums:
        """Buffers set to the identity."""
        found = []
        for node, partial in partials.items():
            target = accumulation_target(form, node)
            by_row, by_column = (_moves(multiplier, target, g) for g in (multiplier.roles.rows, multiplier.roles.cols))
            buffer = None
            if not (by_row and by_column):
                room = tile.height * tile.lanes if by_row else tile.slots if by_column else tile.lanes
                buffer = multiplier.point.local("sum", node.output.dtype, room)
                fill(multiplier.point, buffer, ZERO, room, identity_of(node), tile.lanes, 1)
            found.append(TileSum(partial, target, by_row, by_column, buffer))
        return TileSums(multiplier, tile, tuple(found))

    def add(self, block: Index, row: Index, column: Index, lane: Index, terms: Mapping[Node, Expr]) -> None:
        """Add one element's terms."""
        point = self.multiplier.point
        for total in self.sums:
            node = total.partial.node
            if total.buffer is None:
                total.partial.add(point, block, total.target, terms[node])
            else:
                point.reduce(combine(node), total.buffer, total.place(self.tile, row, column, lane), terms[node])

    def flush(self, block: Index) -> None:
        """Add the buffers to the block's partial results."""
        for total in self.sums:
            if total.buffer is not None:
                self._flush(total, total.buffer, block)

    def _flush(self, total: TileSum, buffer: Buffer, block: Index) -> None:
        multiplier, tile, point = self.multiplier, self.tile, self.multiplier.point

        def add(row: Index, column: Index, slot: Index) -> None:
            with multiplier.at(tile.row + row, tile.col + column):
                total.partial.add(point, block, total.target, point.load(buffer, slot))

        if total.by_column:
            multiplier.vectors(tile, lambda column, lane: add(ZERO, column, column))
            return
        height = tile.height if total.by_row else 1
        with (
            point.loop("v", tile.lanes, LoopKind.VECTOR, tile.lanes) as lane,
            point.loop("i", height, LoopKind.UNROLLED) as row,
        ):
            add(row, ZERO, row * tile.lanes + lane)


def _moves(multiplier: Multiplier, target: Index, group: Group | None) -> bool:
    return group is not None and any(multiplier.roles.variables[axis] in target.variables() for axis in group.axes)
