"""Placements: where a value inside a kernel lies in the kernel's iteration space.

A placed value depends on a barrier (a reduction, the contraction). Each of its dimensions runs along one axis of the
space, or has extent 1; lowering reads it only there.
"""

from __future__ import annotations

from collections.abc import Iterable

from graphc.ir.graph import Node, Value
from graphc.ir.index import Index, Var, var
from graphc.ir.op import Elementwise, Movement

Placement = tuple[int | None, ...]  # per dimension: the axis of the space it runs along; None where the extent is 1


def placement_of(space: tuple[int, ...], axes: Iterable[int | None]) -> Placement:
    """The placement of dimensions that run along `axes`."""
    return tuple(axis if axis is not None and space[axis] > 1 else None for axis in axes)


def pure_placement(shape: tuple[int, ...], space: tuple[int, ...], kept: tuple[int, ...]) -> Placement | None:
    """Where a value without barriers lies: over the space, over K, or over K with reduced axes of extent 1."""
    if shape == space:
        return placement_of(space, range(len(space)))
    if shape == tuple(space[axis] for axis in kept):
        return placement_of(space, kept)
    if shape == tuple(extent if axis in kept else 1 for axis, extent in enumerate(space)):
        return placement_of(space, (axis if axis in kept else None for axis in range(len(space))))
    return None


class Places:
    """Placements and finals, grown node by node."""

    def __init__(self, space: tuple[int, ...]) -> None:
        self.space = space
        self.of: dict[Value, Placement] = {}
        self.finals: set[Value] = set()

    def follow(self, node: Node) -> bool:
        """Place a pointwise node's output; False when it mixes places or moves a placed value out of line."""
        placed = [self.of[value] for value in node.inputs if value in self.of]
        if any(value in self.finals for value in node.inputs):
            self.finals.add(node.output)
            return not placed
        if not placed:
            return True
        found = placed[0] if isinstance(node.op.kind, Elementwise) else self._moved(node, placed[0])
        if found is None or len(set(placed)) > 1:
            return False
        self.of[node.output] = found
        return True

    def _moved(self, node: Node, placement: Placement) -> Placement | None:
        if not isinstance(node.op.kind, Movement) or len(node.inputs) != 1:
            return None
        shape = node.output.type.extents
        pieces = node.op.kind.index_map(node, tuple(var(f"d{d}", extent) for d, extent in enumerate(shape)))
        if len(pieces) != 1 or pieces[0].conditions:
            return None
        found: dict[int, int | None] = {}
        for position, extent, axis in zip(pieces[0].index, node.inputs[0].type.extents, placement, strict=True):
            if extent == 1:
                continue
            match position:
                case Index(0, ((Var(name, size), 1),)) if size == extent:
                    found[int(name[1:])] = axis
                case _:
                    return None
        free = [d for d, extent in enumerate(shape) if extent > 1 and d not in found]
        if not free:
            return tuple(found.get(d) for d in range(len(shape)))
        spread = shape == self.space and all(axis == d for d, axis in found.items())
        return placement_of(self.space, range(len(shape))) if spread else None
