"""The numbers of a contraction's loops, by a rough count of cycles.

Measured on a core with one 512-bit fma per cycle: any tile with at least 8 accumulators and up to 10 rows that stays in
the registers runs within 5 % of the peak, with its panel in place or packed. So tiles are chosen to divide the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphc.ir.graph import Graph
from graphc.loops.roles import NO_AXIS, Axes, Roles, assign, axes_of, candidates
from graphc.loops.schedule import ContractSchedule, share
from graphc.loops.target import Target
from graphc.passes.forms import Contract

PAGE, ASSOCIATIVE = 4096, 8  # bytes; lines that are so far apart share one set of so many ways in the cache
LATENCY = 4  # of an fma, in cycles
TILE_COST = 8  # cycles to set up a tile, for each of its vectors
VARIANT_COST = 0.03  # of the time, for each further shape of tile: each is compiled
MOST_ROWS = {1: 16, 2: 8, 3: 8}  # by vectors side by side; with more rows their addresses no longer fit the registers
MOST_VECTORS = 16
COPY, COPY_ACROSS, GATHER, SCATTER = 0.3, 1.2, 3.0, 4.0  # cycles for an element
FOLD = 3  # cycles for the lanes of one dot product
DEEPEST = 2048  # terms of a sum that are added without a break
PIECE = 512  # terms between breaks
SLABS = 16 * 1024 * 1024  # bytes of partial sums


def choose(body: Graph, form: Contract, target: Target) -> ContractSchedule:
    """The schedule for a body of this form."""
    axes = axes_of(body, form)
    found = [_Choice.of(axes, axis, form, target) for axis in candidates(axes)]
    return min(found, key=lambda choice: choice.cost).schedule


@dataclass(frozen=True, slots=True)
class _Choice:
    cost: float
    schedule: ContractSchedule

    @staticmethod
    def of(axes: Axes, axis: int, form: Contract, target: Target) -> _Choice:
        roles = assign(axes, axis)
        itemsize = form.contraction.output.dtype.itemsize
        along = roles.depth[-1].extent if roles.dots else roles.width
        lanes = min(target.lanes(itemsize), 1 << (along - 1).bit_length()) if axis != NO_AXIS else 1
        cost, vectors, rows, unroll = (_dot_tile if roles.dots else _tile)(roles, lanes, itemsize, target)
        work = roles.copies * roles.height * roles.width * roles.deep
        parts, steps = _pieces(roles, itemsize)
        piece = roles.deep // (parts * steps)
        pack = not roles.dots and _worth_packing(roles, rows, piece * itemsize, itemsize, target)
        tall = max(1, target.l2 // 4 // (itemsize * piece * rows))
        schedule = ContractSchedule(
            axis=axis,
            lanes=lanes,
            vectors=vectors,
            rows=rows,
            unroll=unroll,
            blocks=share(work // lanes),
            strip=max(1, min(tall, roles.height // rows)),
            parts=parts,
            steps=steps,
            pack=int(pack),
            fma=int(target.fma),
        )
        return _Choice(cost * roles.copies + _traffic(axes, roles, pack), schedule)


def _aliased(stride: int) -> bool:
    """Whether lines so many bytes apart compete for one place in the first-level cache."""
    return stride != 0 and stride % PAGE == 0


def _tile(roles: Roles, lanes: int, itemsize: int, target: Target) -> tuple[float, int, int, int]:
    """(cycles for one point of the batch, vectors, rows, 1) of the best tile."""
    room = target.registers * 3 // 4
    found = []
    for vectors in range(1, min(MOST_VECTORS, room, -(-roles.width // lanes)) + 1):
        most = min(roles.height, room // vectors, MOST_ROWS.get(vectors, 8))
        if _aliased(roles.left.stride(roles.rows) * itemsize):
            most = min(most, ASSOCIATIVE)
        for rows in range(1, most + 1):
            found.append((_strips(roles, lanes, vectors, rows), vectors, rows, 1))
    return min(found)


def _strips(roles: Roles, lanes: int, vectors: int, rows: int) -> float:
    """Cycles of all tiles of that shape and of the smaller ones at the edges."""
    down, across = divmod(roles.height, rows), divmod(-(-roles.width // lanes), vectors)
    heights = [(down[0], rows), (int(down[1] > 0), down[1])]
    widths = [(across[0], vectors), (int(across[1] > 0), across[1])]
    shapes = [(a * b, height, width) for a, height in heights for b, width in widths if a * b]
    total = sum(count * _cycles(roles.deep, height, width) for count, height, width in shapes)
    return total * (1 + VARIANT_COST * (len(shapes) - 1))


def _cycles(deep: int, rows: int, vectors: int) -> float:
    loads = vectors + rows / 2
    return deep * (max(rows * vectors, loads, LATENCY) + 0.3 + 0.03 * loads) + TILE_COST * rows * vectors


def _dot_tile(roles: Roles, lanes: int, itemsize: int, target: Target) -> tuple[float, int, int, int]:
    """(cycles for one point of the batch, columns, rows, accumulators of each)."""
    room = 2 * LATENCY
    steps = prod(group.extent for group in roles.depth[:-1]) * -(-roles.depth[-1].extent // lanes)
    found = []
    for rows in range(1, min(roles.height, 4) + 1):
        for cols in range(1, min(roles.width, room // rows, 8) + 1):
            tiles = -(-roles.height // rows) * -(-roles.width // cols)
            uneven = bool(roles.height % rows) + bool(roles.width % cols)
            step = max(rows * cols, rows + cols)
            cycles = tiles * (steps * step + FOLD * rows * cols + TILE_COST) * (1 + VARIANT_COST * uneven)
            found.append((cycles, cols, rows, max(1, min(2 * LATENCY // (rows * cols), steps))))
    return min(found)


def _worth_packing(roles: Roles, rows: int, column: int, itemsize: int, target: Target) -> bool:
    """Whether to copy the panel: when it is not dense along the columns and read by several tiles of rows, or so large
    or so aligned that its lines compete for their place in the cache. A column of a piece has `column` bytes."""
    if roles.cols is None or roles.panel is roles.left:
        return False
    stride = roles.panel.stride(roles.cols)
    if stride != 1:
        return roles.height > rows or roles.height >= 4
    if any(_aliased(roles.panel.stride(group) * itemsize) for group in roles.depth):
        return roles.height >= 64 and roles.deep > 64
    return column * roles.width > target.l2 and roles.height >= 192


def _traffic(axes: Axes, roles: Roles, pack: bool) -> float:
    """Cycles for elements that are copied, gathered or scattered."""
    points = roles.copies * roles.height * roles.width
    cols = roles.cols
    scattered = sum(cols is not None and place.coefficient(cols.variable) != 1 for place in axes.stored)
    held = prod(group.extent for group in roles.within(roles.batch, roles.panel)) * roles.width * roles.deep
    cost = SCATTER * points * scattered
    if roles.dots or cols is None:
        return cost
    dense = roles.panel.stride(cols) == 1
    across = bool(roles.depth) and roles.panel.stride(roles.depth[-1]) == 1
    if pack:
        return cost + held * (COPY if dense else COPY_ACROSS if across else GATHER)
    both = roles.left.stride(cols) not in (0, 1)
    tiles = roles.copies * roles.deep * roles.width
    return cost + GATHER * (tiles * (not dense) + points * roles.deep * both)


def _pieces(roles: Roles, itemsize: int) -> tuple[int, int]:
    """(parts, steps): how a deep sum is cut."""
    longest = max((group.extent for group in roles.depth), default=1)
    if roles.deep <= DEEPEST or (roles.dots and roles.deep <= 16 * DEEPEST):
        return 1, 1
    elements = roles.copies * roles.height * roles.width
    parts = max(1, min(8, roles.deep // DEEPEST, SLABS // (itemsize * elements), longest))
    piece = PIECE * (16 if roles.dots else 1)
    steps = max(1, min(round(roles.deep / parts / piece), longest // parts))
    return parts, steps
