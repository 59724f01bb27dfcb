"""The numbers of a contraction's loops, by a rough count of cycles.

A cycle has two fmas and two loads, as on most processors with vectors; where it has one fma, the same tiles are good:
any tile with at least 8 accumulators that stays in the registers then runs within 5 % of the peak. A tile loads
rows + vectors times for rows * vectors fmas, so it should be nearly square, counted like that, and divide the shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from graphc.ir.graph import Graph
from graphc.loops.roles import NO_AXIS, Axes, Operand, Roles, assign, axes_of, candidates
from graphc.loops.schedule import MOST_BLOCKS, PACK_EACH, PACK_FIRST, PACK_NEVER, ContractSchedule, share
from graphc.loops.target import Target
from graphc.passes.forms import Contract

PAGE, ASSOCIATIVE = 4096, 8  # bytes; lines that are so far apart share one set of so many ways in the cache
LATENCY = 4  # of an fma, in cycles
PER_CYCLE = 2  # fmas, and loads
STEP_COST, LOAD_COST = 0.2, 0.02  # cycles of a step of the sum, and more for each of its loads
TILE_COST = 4  # cycles to set up a tile, for each of its vectors
VARIANT_COST = 0.01  # of the time, for each further shape of tile: each is compiled
MOST_ROWS = {1: 16, 2: 8, 3: 8}  # by vectors side by side; with more rows their addresses no longer fit the registers
MOST_VECTORS = 16
MOST_SHARED = 4  # of a strip that many tiles read again: it should stay in the cache
LINE_ROWS = (4, 8)  # of a tile that shares lines of the left operand with the next ones
LINE_TILE, NEAR_ROWS = 16, 4  # sums of a tile that has whole lines, and rows of the panel on a page that it needs
PAGES = 32  # that the processor can address at once
PAGE_WALK = 1.0  # cycles to come to another page, which are mostly hidden
ALIASED_WALK = 3.0  # the same where its lines compete with those of the page before
FROM_MEMORY = 32  # times as long where that page is in no cache
FAR_VECTOR = 0.3  # cycles that a vector of the panel adds when the panel does not stay in the first-level cache
FROM_L1, FROM_L2, FROM_L3 = 0.5, 1.25, 2.3  # cycles for a vector from a level of the cache, one behind the other
SEEN = 0.25  # of what loads take beyond the first level, behind other work
STREAM_COST = 0.2  # of that, for several streams: of one, more is fetched ahead
COPY, COPY_ACROSS, GATHER_NEAR, GATHER, SCATTER = 0.3, 0.5, 1.5, 3.0, 5.0  # cycles for an element
CACHE_LINE, LINE_COST = 64, 0.5  # bytes of a cache line, and cycles to come to another of them
DOT_LOAD = 0.225  # cycles that a vector of an operand adds to those of its products
ROW_COST = 6  # cycles to put down a row of dot products
FOLD = 3  # cycles for the lanes of one dot product
MOST_DOTS = 20  # side by side
DEEPEST = 2048  # terms of a sum that are added without a break
PIECE = 512  # terms between breaks
DEEP_TO_AWAIT = 128  # terms of sums, meanwhile what the epilogue reads can come
FEWEST_ROWS = 48  # that make narrow tiles worth while
ROWS_TO_PACK = 96  # that make copying a panel worth while where its lines compete for the cache
BLOCKS = 16  # that pack what they read: large ones
FEW_STRIPS = 8  # that are not divided well however wide they are
FEWEST_TILES = 2  # of rows in a strip that is cut for the sake of more blocks
HIGH, ROW_PARTS = 256, 8  # rows of a result that is cut into so many parts of its rows
MOST_PARTS = 8  # of a deep sum, added up side by side
SLABS = 16 * 1024 * 1024  # bytes of partial sums
CANDIDATES = 8  # tiles for each axis whose memory traffic is looked at

Cost = tuple[float, int, int, int]


def choose(body: Graph, form: Contract, target: Target) -> ContractSchedule:
    """The schedule for a body of this form: the cheapest, of those that fetch whole lines where some do."""
    axes = axes_of(body, form)
    found = [choice for axis in candidates(axes) for choice in _Choice.of(axes, axis, form, target)]
    return min(found, key=lambda choice: (not choice.whole_lines, choice.cost)).schedule


@dataclass(frozen=True, slots=True)
class _Choice:
    cost: float
    whole_lines: bool  # tiles have all rows of a line of the left operand
    schedule: ContractSchedule

    @staticmethod
    def of(axes: Axes, axis: int, form: Contract, target: Target) -> Iterator[_Choice]:
        """The most promising tiles for vectors along an axis."""
        roles = assign(axes, axis)
        itemsize = form.contraction.output.dtype.itemsize
        along = roles.depth[-1].extent if roles.dots else roles.width
        lanes = min(target.lanes(itemsize), 1 << (along - 1).bit_length()) if axis != NO_AXIS else 1
        by_lines = _goes_by_lines(roles, itemsize, target)
        whole_lines = by_lines and _takes_whole_lines(roles, itemsize, target)
        if roles.dots:
            tiles = _dot_tiles(roles, lanes, itemsize, target)
        else:
            tiles = _tiles(roles, lanes, by_lines, itemsize, target)
        for cost, vectors, rows, unroll in tiles:
            broad = vectors * (1 if roles.dots else lanes)
            pack = PACK_NEVER if roles.dots or by_lines else _packing(roles, rows, broad, itemsize, target)
            most = BLOCKS if pack == PACK_EACH or by_lines else MOST_BLOCKS
            blocks = min(share(round(PER_CYCLE * cost * roles.copies)), most)
            parts, steps = _pieces(roles, pack, by_lines, broad, blocks, itemsize, target)
            across = _is_cut_across(roles, pack, itemsize, target)
            if by_lines:
                strip = max(1, CACHE_LINE // (rows * itemsize))
            else:
                cuts = _row_parts(roles, rows, broad, pack, blocks, steps)
                strip = _strip(roles, rows, pack, roles.deep // (parts * steps) * itemsize, cuts, target)
            schedule = ContractSchedule(
                axis=axis,
                lanes=lanes,
                vectors=vectors,
                rows=rows,
                unroll=unroll,
                blocks=blocks,
                across=int(across),
                strip=strip,
                parts=parts,
                steps=steps,
                pack=pack,
                ahead=_ahead(roles, itemsize, target),
                early=int(not roles.dots and roles.deep >= DEEP_TO_AWAIT),
                fma=int(target.fma),
            )
            total = cost * roles.copies * _uneven(roles, schedule, broad)
            yield _Choice(total + _traffic(axes, roles, pack, broad, itemsize), whole_lines, schedule)


def _aliased(stride: int) -> bool:
    """Whether lines so many bytes apart compete for one place in the first-level cache."""
    return stride != 0 and stride % PAGE == 0


def _tiles(roles: Roles, lanes: int, by_lines: bool, itemsize: int, target: Target) -> list[Cost]:
    """(cycles for one point of the batch, vectors, rows, 1) of the best tiles."""
    room = target.registers * 3 // 4
    walk, lines = _page_walks(roles, roles.left, itemsize), LINE_COST * _lines(roles, itemsize)
    widest = MOST_SHARED if roles.height >= FEWEST_ROWS and roles.deep > PIECE // 4 else MOST_VECTORS
    found = []
    for vectors in range(1, min(widest, room, -(-roles.width // lanes)) + 1):
        beside = (target.registers - 1) // vectors - 1  # rows, with a row of the panel and an element of the other
        most = min(roles.height, room // vectors, beside, MOST_ROWS.get(vectors, 8))
        if _aliased(roles.left.stride(roles.rows) * itemsize):
            most = min(most, ASSOCIATIVE)
        whole = roles.rows is not None and roles.rows.parts and roles.height <= min(room // vectors, beside)
        heights = [roles.height] if whole else range(1, most + 1)  # of a product at constant places: any number
        if by_lines:
            heights = [rows for rows in _line_heights(roles, vectors, itemsize, target) if rows <= most]
        for rows in heights:
            far = min(roles.deep, PIECE) * vectors * lanes * itemsize > target.l1 // 2 and not by_lines
            found.append((_strips(roles, lanes, vectors, rows, walk + rows * lines, far), vectors, rows, 1))
    return sorted(found)[:CANDIDATES]


def _line_heights(roles: Roles, vectors: int, itemsize: int, target: Target) -> Sequence[int]:
    """Rows of a tile of a product that goes by lines, so that tiles begin and end where lines do.

    All of a line where that is best; elsewhere few, above all where lines compete: all loads of one that is late wait
    for it.
    """
    line = CACHE_LINE // itemsize
    if _takes_whole_lines(roles, itemsize, target):
        return (line,) if vectors * line <= LINE_TILE else ()
    return LINE_ROWS[:1] if _lines_kept(roles, itemsize, target) < PIECE else LINE_ROWS


def _page_walks(roles: Roles, operand: Operand, itemsize: int) -> float:
    """Cycles for each term of a sum because the operand's element stands on another page than the one before."""
    if not roles.depth:
        return 0.0
    inner = roles.depth[-1]
    pitch = abs(operand.stride(inner)) * itemsize
    if min(inner.extent, PIECE) * pitch <= PAGES * PAGE:
        return 0.0
    return min(2.0, pitch / PAGE) * (ALIASED_WALK if _aliased(pitch) else PAGE_WALK)


def _lines(roles: Roles, itemsize: int) -> float:
    """Lines of the left operand that a term of the sum comes to in each row, beyond those of rows dense along it."""
    if not roles.depth or abs(roles.left.stride(roles.rows)) * itemsize < CACHE_LINE:
        return 0.0
    pitch = min(abs(roles.left.stride(group)) for group in roles.depth) * itemsize
    return max(0.0, min(1.0, pitch / CACHE_LINE) - itemsize / CACHE_LINE)


def _strips(roles: Roles, lanes: int, vectors: int, rows: int, walk: float, far: bool) -> float:
    """Cycles of all tiles of that shape and of the smaller ones at the edges."""
    down, across = divmod(roles.height, rows), divmod(-(-roles.width // lanes), vectors)
    heights = [(down[0], rows), (int(down[1] > 0), down[1])]
    widths = [(across[0], vectors), (int(across[1] > 0), across[1])]
    shapes = [(a * b, height, width) for a, height in heights for b, width in widths if a * b]
    total = sum(count * _cycles(roles.deep, height, width, walk, FAR_VECTOR * far) for count, height, width in shapes)
    return total * (1 + VARIANT_COST * (len(shapes) - 1))


def _cycles(deep: int, rows: int, vectors: int, walk: float, far: float) -> float:
    loads = vectors + rows
    step = max(rows * vectors, loads, 2 * LATENCY) / PER_CYCLE + STEP_COST + LOAD_COST * loads
    return deep * (step + walk + far * vectors) + TILE_COST * rows * vectors


def _dot_tiles(roles: Roles, lanes: int, itemsize: int, target: Target) -> list[Cost]:
    """(cycles for one point of the batch, columns, rows, accumulators of each) of the best tiles."""
    steps = prod(group.extent for group in roles.depth[:-1]) * -(-roles.depth[-1].extent // lanes)
    left, panel = (extent * roles.deep * itemsize for extent in (roles.height, roles.width))
    fetch = FROM_L3 if panel > target.l2 else FROM_L2 if panel > target.l1 else FROM_L1
    far = FROM_L2 if left > target.l1 else FROM_L1
    found = []
    for rows in range(1, min(roles.height, 4) + 1):
        for cols in range(1, min(roles.width, MOST_DOTS // rows, 10) + 1):
            tiles = -(-roles.height // rows) * -(-roles.width // cols)
            uneven = bool(roles.height % rows) + bool(roles.width % cols)
            times = 1 if cols * roles.deep * itemsize > target.l1 // 2 else -(-roles.height // rows)
            near = (fetch + (times - 1) * FROM_L1) / times
            loads = rows * far + cols * near * (1 + STREAM_COST * (cols > 1))
            step = max(rows * cols / PER_CYCLE + DOT_LOAD * (rows + cols), loads, LATENCY / max(1, steps))
            step += SEEN * (loads - FROM_L1 * (rows + cols))
            cycles = tiles * (steps * step + FOLD * rows * cols + ROW_COST * rows) * (1 + VARIANT_COST * uneven)
            found.append((cycles, cols, rows, max(1, min(2 * LATENCY // (rows * cols), steps))))
    return sorted(found)[:CANDIDATES]


def _packing(roles: Roles, rows: int, broad: int, itemsize: int, target: Target) -> int:
    """Whether and when to copy the panel.

    Not where it is dense along the columns and small, or read by too few tiles of rows: a processor fetches pages that
    follow each other at a steady distance ahead, and copying costs more than that leaves to gain. Where the lines of a
    deep sum compete for their place in the cache, or the rows are so many that each strip is fetched again and again,
    strip by strip, which needs little room; likewise where it is not dense and each point of the batch has its own, or
    it is larger than the cache and the other operand is not. Otherwise beforehand: when it is not dense, or so large or
    so aligned that it does not stay in the cache. (Not asked for products that go by lines.)
    """
    if roles.cols is None or roles.panel is roles.left:
        return PACK_NEVER
    if roles.panel.stride(roles.cols) != 1:
        if roles.height <= rows and roles.height < 4:
            return PACK_NEVER
        left, panel = (roles.deep * extent * itemsize for extent in (roles.height, roles.width))
        in_strips = roles.width >= BLOCKS * broad and left <= target.l2 < panel
        return PACK_EACH if roles.panel_is_own and (roles.copies >= BLOCKS or in_strips) else PACK_FIRST
    pitches = [abs(roles.panel.stride(group)) * itemsize for group in roles.depth]
    aliased = any(map(_aliased, pitches))
    if roles.deep * max(pitches, default=0) > target.l2 // 2 and roles.panel_is_own:
        if _is_tall(roles):
            return PACK_FIRST
        is_worth_it = _is_fetched_again(roles, itemsize, target) or (aliased and roles.height >= ROWS_TO_PACK)
        return PACK_EACH if is_worth_it else PACK_NEVER
    if aliased:
        return PACK_FIRST if roles.height >= 64 and roles.deep > 64 else PACK_NEVER
    return PACK_FIRST if itemsize * roles.deep * roles.width > target.l2 and roles.height >= 192 else PACK_NEVER


def _uneven(roles: Roles, schedule: ContractSchedule, broad: int) -> float:
    """How much longer two threads take where they share whole strips, which do not divide equally: half of what it
    could be, as the one that has no more takes some of the other's."""
    strips = schedule.parts * roles.width / broad
    is_shared = schedule.pack == PACK_EACH and roles.copies == 1 and strips >= FEW_STRIPS
    return 0.5 + -(-strips // 2) / strips if is_shared else 1.0


def _is_tall(roles: Roles) -> bool:
    """Whether blocks are cut out of the rows of the result: one that has many, no wider than high, of short sums.

    Then the panel is the smaller operand, and each block reads and writes long pieces of the result.
    """
    is_high = roles.height >= max(roles.width, HIGH) and roles.copies == 1
    return is_high and roles.panel.stride(roles.cols) == 1 and 1 < roles.deep <= PIECE


def _is_fetched_again(roles: Roles, itemsize: int, target: Target) -> bool:
    """Whether the left operand is so large that each strip of columns would fetch it again."""
    return roles.height * min(roles.deep, DEEPEST) * itemsize > 2 * target.l2


def _lies_across(roles: Roles, itemsize: int, target: Target) -> bool:
    """Whether lines of the left operand lie across the sum: one holds neighbouring rows of the result for one term.

    For targets whose vectors are as long as a line; for others, nothing that follows from it has been found to pay.
    """
    pitch = min((abs(roles.left.stride(group)) for group in roles.depth), default=0) * itemsize
    is_line = target.lanes(itemsize) * itemsize >= CACHE_LINE
    return is_line and roles.left.stride(roles.rows) == 1 and pitch > CACHE_LINE and not roles.dots


def _goes_by_lines(roles: Roles, itemsize: int, target: Target) -> bool:
    """Whether the rows of one line of the left operand pass over all strips of columns before the next line's rows.

    For a deep sum across both operands, as a weight's gradient is one, of which the left is large and no smaller than
    the panel: it is fetched once then. The panel is fetched again, so a piece of it must fit the cache.
    """
    if not _lies_across(roles, itemsize, target) or roles.panel.stride(roles.cols) != 1 or roles.copies > 1:
        return False
    size = roles.height * min(roles.deep, DEEPEST) * itemsize
    is_large = size >= target.l2 if _takes_whole_lines(roles, itemsize, target) else size > 2 * target.l2
    is_high = roles.height >= roles.width and roles.deep > PIECE and is_large
    return is_high and _lines_kept(roles, itemsize, target) * roles.width * itemsize <= target.l2


def _takes_whole_lines(roles: Roles, itemsize: int, target: Target) -> bool:
    """Whether a tile of a product that goes by lines has all rows of one, so that it is fetched for one tile only.

    Such a tile is narrow. So the panel's rows must stand close, several on a page, where a processor fetches them ahead
    by itself, and divide into full vectors.
    """
    is_near = NEAR_ROWS * abs(roles.panel.stride(roles.depth[-1])) * itemsize <= PAGE
    return is_near and roles.width % target.lanes(itemsize) == 0


def _ahead(roles: Roles, itemsize: int, target: Target) -> int:
    """Rows of a line, if the first-level cache does not hold the left operand, whose lines lie across the sum: those of
    the next rows are asked for, as a processor that fetches ahead by itself stays within a page."""
    is_far = _lies_across(roles, itemsize, target) and roles.height * roles.deep * itemsize > target.l1
    return CACHE_LINE // itemsize if is_far else 0


def _lines_kept(roles: Roles, itemsize: int, target: Target) -> int:
    """Terms, up to a piece, whose lines of the left operand fill two thirds of the places that the second-level cache
    has for lines so far apart."""
    pitch = max(abs(roles.left.stride(group)) for group in roles.depth) * itemsize
    return max(PIECE // 4, min(PIECE, 2 * target.l2 // (3 * (pitch & -pitch))))


def _is_cut_across(roles: Roles, pack: int, itemsize: int, target: Target) -> bool:
    """Whether blocks are cut out of the columns: where all points of the batch have one panel, and it is larger than
    the cache and than the other operand. Each block then reads a part of it, again and again."""
    panel = roles.deep * roles.width * itemsize
    left = prod(roles.left.source.type.extents) * itemsize
    return bool(roles.batch) and pack != PACK_EACH and roles.is_panel_shared and panel > max(left, target.l2)


def _row_parts(roles: Roles, rows: int, broad: int, pack: int, blocks: int, steps: int) -> int:
    """Parts into which the rows of the result should be cut: what strips of columns leave to be had of the blocks,
    unless a block packs its own panel, or pieces of the panel should stay in the cache until all rows were over them.
    """
    if pack == PACK_FIRST and _is_tall(roles):
        return ROW_PARTS
    if pack == PACK_EACH or steps > 1:
        return 1
    wanted = blocks // (roles.copies * max(1, roles.width // broad))
    return max(1, min(wanted, roles.height // rows // FEWEST_TILES))


def _strip(roles: Roles, rows: int, pack: int, piece: int, cuts: int, target: Target) -> int:
    """Tiles of rows that pass over a strip before the next: as many as the cache holds, in so many equal parts or more.

    Those of several points of the batch, where all of these have one panel, of which the cache holds no more.
    """
    tiles = roles.height // rows
    if pack != PACK_EACH and roles.batch and roles.is_panel_shared and roles.width * piece > target.l2 // 2:
        each = prod(roles.left.source.type.extents) // (roles.copies * tiles) * roles.left.source.dtype.itemsize
        return max(tiles, target.l2 // 2 // max(1, each))
    chunks = max(1, -(-tiles * rows * piece // target.l2), cuts)
    return max(1, -(-tiles // chunks))


def _traffic(axes: Axes, roles: Roles, pack: int, broad: int, itemsize: int) -> float:
    """Cycles for elements that are copied, gathered or scattered."""
    points = roles.copies * roles.height * roles.width
    cols = roles.cols
    scattered = sum(cols is not None and place.coefficient(cols.variable) != 1 for place in axes.stored)
    held = prod(group.extent for group in roles.within(roles.batch, roles.panel)) * roles.width * roles.deep
    cost = SCATTER * points * scattered
    if roles.dots or cols is None:
        return cost
    if roles.left.stride(cols) not in (0, 1):
        cost += GATHER * points * roles.deep
    stride = roles.panel.stride(cols)
    dense = stride == 1
    across = any(roles.panel.stride(group) == 1 for group in roles.depth)
    if pack:
        copy = COPY + FROM_MEMORY * _page_walks(roles, roles.panel, itemsize) / broad
        gather = GATHER_NEAR if pack == PACK_FIRST and abs(stride) * itemsize <= CACHE_LINE else GATHER
        return cost + held * (copy if dense else COPY_ACROSS if across else gather)
    return cost + GATHER * roles.copies * roles.deep * roles.width * (not dense)


def _pieces(
    roles: Roles, pack: int, by_lines: bool, broad: int, blocks: int, itemsize: int, target: Target
) -> tuple[int, int]:
    """(parts, steps): how a deep sum is cut.

    Into parts where there are too few strips for the blocks, too many terms for one sum, or lines are fetched: the
    fewer blocks of rows share a part, the longer are the pieces of memory that each reads. Into steps where what is
    read should stay in the cache until all strips have been over it: panels of a block, lines that compete, and rows
    of the other operand that would fill it.
    """
    parts = steps = 1
    if pack == PACK_EACH or by_lines:
        wanted = MOST_PARTS if by_lines else -(-blocks // -(-roles.width // broad))
        parts = max(1, min(MOST_PARTS, roles.deep // PIECE, wanted))
        if by_lines:
            steps = -(-roles.deep // (parts * _lines_kept(roles, itemsize, target)))
        elif roles.height * roles.deep // parts * itemsize > target.l2:
            steps = round(roles.deep / parts / PIECE)
    elif roles.deep <= DEEPEST or (roles.dots and roles.deep <= 16 * DEEPEST):
        pitches = [abs(roles.panel.stride(group)) * itemsize for group in roles.depth]
        leaves = any(map(_aliased, pitches)) or 2 * roles.height * roles.deep * itemsize > target.l2
        if pack == PACK_NEVER and not roles.dots and leaves:
            steps = round(roles.deep / PIECE)
    else:
        elements = roles.copies * roles.height * roles.width
        parts = max(1, min(MOST_PARTS, roles.deep // DEEPEST, SLABS // (itemsize * elements)))
        steps = round(roles.deep / parts / (PIECE * (16 if roles.dots else 1)))
    pieces = roles.pieces(parts * max(1, steps))
    parts = min(parts, pieces)
    return parts, pieces // parts
