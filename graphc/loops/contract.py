"""Contract kernels: sums of products in register tiles, with work on the way in and on the way out.

Before: C[m,n] = sum over k of A[m,k] B[n,k], then bias, relu, column sums.
After:  the operands that are not plain inputs into scratch, the panel into strips of columns
        for blocks of tiles, in parallel: for strips of columns: for tiles of rows:
            acc[rows, vectors] += A[row, k] * panel[k, vector] over all k; then the epilogue on the tile
        what was added up in each block, over the blocks

`roles` says which letter does what, `pack` prepares the operands, `tile` adds up, `tiling` chooses the numbers.

Invariants:
 1. the order of every sum follows from shapes and schedule alone, so results have the same bits for any number of
    threads;
 2. each element of the result gets its epilogue once, by one block; whatever may lie in one place with an output is
    read at that element only, before it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Condition, Index, flatten, unflatten
from graphc.loops.apart import lies_apart, turn
from graphc.loops.ir import Buffer, Const, Expr, Function, Load, LoopKind, Space
from graphc.loops.nest import Group, blocks, collapse, identity, leading, size, spans_of, spread, walk
from graphc.loops.pack import Prepare, block_panels, computed, in_place, panels
from graphc.loops.point import Point, always, location, parameters
from graphc.loops.roles import Operand, Roles, assign, axes_of, place_in
from graphc.loops.schedule import PACK_EACH, PACK_FIRST, PACK_NEVER, ContractSchedule
from graphc.loops.sums import TileSums
from graphc.loops.sweep import fill_finals
from graphc.loops.tile import Factors, Multiplier, Tile
from graphc.loops.totals import Partial, identity_of
from graphc.passes.forms import Contract

Operands = Callable[[Index, Index], tuple[Factors, Prepare | None]]  # of a block: see `factors`
Fill = Callable[[Buffer, Tile, Index], None]  # sums of a tile in a step


def lower_contract(body: Graph, form: Contract, name: str, schedule: ContractSchedule) -> Function:
    """The loops of a Contract body."""
    inputs, outputs = parameters(body)
    point = Point(dict(zip(body.inputs, inputs, strict=True)))
    axes = axes_of(body, form)
    kernel = _Kernel(point, body, form, assign(axes, schedule.axis), schedule)
    results = dict(zip(body.outputs, outputs, strict=True))
    if 0 in axes.extents:
        kernel.nothing(results)
    else:
        kernel.something(results)
    kernel.finals(results)
    return Function(name, inputs, outputs, tuple(kernel.scratch), tuple(point.statements))


@dataclass(frozen=True, eq=False, slots=True)
class Grid:
    """How tiles are divided into blocks that threads may share: parts of the batch, of rows and of columns.

    Blocks that follow each other, which often one thread does, are of the same columns if a row of the result is longer
    than a column, and of the same rows if not: so they read the same part of the larger operand.
    """

    lead: Sequence[Group]  # of the batch, divided; the others are walked inside
    rest: Sequence[Group]
    tiles: int  # full ones, down the rows
    strips: int  # full ones, along the columns
    parts: tuple[int, int, int]
    lengths: tuple[int, int, int]  # of a part: points of `lead`, tiles, strips
    is_wide: bool  # rows are longer than columns

    @property
    def blocks(self) -> int:
        return prod(self.parts)

    def place(self, block: Index) -> tuple[Index, Index, Index]:
        """Which parts a block is of."""
        points, rows, cols = self.parts
        if self.is_wide:
            point, col, row = unflatten(block, (points, cols, rows))
        else:
            point, row, col = unflatten(block, (points, rows, cols))
        return point, row, col


def grid(roles: Roles, schedule: ContractSchedule, wanted: int) -> Grid:
    """About `wanted` blocks: of the batch if that is enough, else of rows too, else of columns too; or, where the
    schedule says so, of columns first."""
    high, broad = tile_of(roles, schedule)
    tiles, strips = roles.height // high, roles.width // broad
    if schedule.across:
        cols, along = _cut(strips, wanted, 1)
        wanted = -(-wanted // cols)
    lead, rest = leading(roles.batch, wanted)
    points, length = _cut(size(lead), wanted, 1)
    shared = 1 if schedule.pack == PACK_EACH else -(-wanted // points)  # a panel is packed by one block only
    rows, down = _cut(tiles, shared, min(schedule.strip, tiles))
    if not schedule.across:
        cols, along = _cut(strips, -(-wanted // (points * rows)), 1)
    return Grid(lead, rest, tiles, strips, (points, rows, cols), (length, down, along), roles.width > roles.height)


def tile_of(roles: Roles, schedule: ContractSchedule) -> tuple[int, int]:
    """Rows and columns of a full tile."""
    width = schedule.vectors * (1 if roles.dots else schedule.lanes)
    return min(schedule.rows, roles.height), min(width, roles.width)


def _cut(count: int, wanted: int, step: int) -> tuple[int, int]:
    """(parts, iterations of each) for about `wanted` parts of `count`, each a multiple of `step`."""
    steps = -(-count // step)
    length = -(-steps // blocks(steps, wanted)) * step
    return -(-count // length), length


class _Kernel:
    """The loops of one kernel."""

    def __init__(self, point: Point, body: Graph, form: Contract, roles: Roles, schedule: ContractSchedule) -> None:
        self.point, self.body, self.form, self.roles, self.schedule = point, body, form, roles, schedule
        self.multiplier = Multiplier(point, roles, schedule, form.contraction.location)
        self.result = form.contraction.output
        self.high, self.broad = tile_of(roles, schedule)
        self.scratch: list[Buffer] = []
        self.partials: dict[Node, Partial] = {}

    def nothing(self, results: Mapping[Value, Buffer]) -> None:
        """A product without terms, or without elements."""
        if 0 not in self.form.space:
            self.tiles(results, lambda _: (lambda acc, tile, _: self.multiplier.clear(acc, tile), None))

    def something(self, results: Mapping[Value, Buffer]) -> None:
        """Operands, then tiles; with several parts of the depth first their sums, then the tiles."""
        parts, steps = self.parts
        turns = lies_apart(self.body, self.form, self.roles)
        if parts > 1 or turns:
            slabs = self.new("slabs", parts * prod(self.form.space))
            self.slabs(slabs)
            if turns:
                turn(self.point, self.body, self.form, self.order, slabs, results, self.schedule.lanes)
            else:
                self.tiles(results, lambda _: (lambda acc, tile, _: self.collect(acc, tile, slabs), None))
            return
        plan = grid(self.roles, self.schedule, self.schedule.blocks)
        sums = self.new("sums", prod(self.form.space)) if steps > 1 else None
        factors = self.factors(plan, plan.blocks)

        def multiplied(block: Index) -> tuple[Fill, Prepare | None]:
            given, prepare = factors(block, block)

            def fill(acc: Buffer, tile: Tile, step: Index) -> None:
                with self.point.when((Condition(step - (steps - 1)),)):
                    self.await_epilogue(tile)
                self.extend(acc, tile, given, sums, ZERO, step)

            return fill, prepare

        self.tiles(results, multiplied, sums)

    def finals(self, results: Mapping[Value, Buffer]) -> None:
        """What depends on accumulations."""
        self.point.barriers.clear()
        for node in self.form.accumulations:
            partial = self.partials.get(node)
            self.point.barriers[node.output] = partial.result if partial else always(identity_of(node))
        finals = [value for value in self.body.outputs if value in self.form.finals]
        fill_finals(self.point, self.body, finals, results, self.schedule.lanes)

    # Operands ------------------------------------------------------------------------------------------------

    def factors(self, plan: Grid, blocks: int) -> Operands:
        """Both operands as the tiles of a block read them, and what fills its panels, if something must.

        Of the number of a block among `blocks`, and of its number in `plan`.
        """
        roles, schedule = self.roles, self.schedule
        pieces, own = prod(self.parts), in_place(self.point, roles.left, self.source(roles.left))
        packs = schedule.pack if roles.cols and not roles.dots else PACK_NEVER
        if packs == PACK_EACH and roles.depth:
            along = plan.lengths[2]
            buffer, of = block_panels(
                self.point, roles, self.read(PACK_EACH), self.broad, schedule.lanes, pieces, blocks, along
            )
            self.scratch.append(buffer)

            def packed(number: Index, block: Index) -> tuple[Factors, Prepare | None]:
                _, _, col_part = plan.place(block)
                panel, fill = of(number, col_part * (along * self.broad))
                return Factors(own, panel, pieces), fill

            return packed
        if packs:
            buffer, panel = panels(self.point, roles, self.read(PACK_FIRST), self.broad, schedule.lanes)
            self.scratch.append(buffer)
        else:
            panel = in_place(self.point, roles.panel, self.source(roles.panel))
        return lambda _number, _block: (Factors(own, panel, pieces), None)

    @property
    def parts(self) -> tuple[int, int]:
        """Parts of the depth and steps of each; as many as there are terms for."""
        most = max((group.extent for group in self.roles.depth), default=1)
        parts = min(self.schedule.parts, most)
        return parts, min(self.schedule.steps, most // parts)

    def source(self, operand: Operand) -> Buffer:
        """Where an operand's source is; computed into scratch unless it is an input."""
        if operand.source not in self.point.buffers:
            buffer = computed(self.point, operand.source, self.schedule)
            self.scratch.append(buffer)
            self.point.buffers = {**self.point.buffers, operand.source: buffer}
        return self.point.buffers[operand.source]

    def read(self, pack: int) -> Callable[[], Expr]:
        """The panel's operand at the current point, as packing reads it; computed there if it is read once."""
        panel = self.roles.panel
        is_once = pack == PACK_FIRST or self.roles.panel_is_own
        if panel.source not in self.point.buffers and is_once and self.walks_as_one(panel):
            return lambda: self.point.at(panel.source, panel.index)
        buffer = self.source(panel)
        return lambda: self.point.load(buffer, panel.place)

    def walks_as_one(self, operand: Operand) -> bool:
        """Whether what an operand is computed from has its axes in the same groups as its own elements.

        Groups hold for the accesses that they were made from; a pad or a concat cuts an axis that others join.
        """
        probe = Point(self.point.buffers)
        probe.at(operand.source, operand.index)
        roles = self.roles
        groups = [*roles.batch, *roles.depth, *(group for group in (roles.rows, roles.cols) if group)]
        single = [part for group in groups for part in (group.parts or (group,))]
        return all(len(collapse(g.axes, roles.variables, probe.accesses, probe.uses)) <= 1 for g in single)

    def new(self, name: str, size: int) -> Buffer:
        buffer = Buffer(self.point.name(name), self.result.dtype, (size,), Space.SCRATCH)
        self.scratch.append(buffer)
        return buffer

    # Blocks --------------------------------------------------------------------------------------------------

    def tiles(
        self,
        results: Mapping[Value, Buffer],
        of: Callable[[Index], tuple[Fill, Prepare | None]],
        sums: Buffer | None = None,
    ) -> None:
        """All tiles, each filled, then given its epilogue. `of` a block: what fills its tiles, and what comes before.

        With `sums`, where they are put down meanwhile, in all the steps of a part, of which the last has the epilogue.
        """
        plan, steps = grid(self.roles, self.schedule, self.schedule.blocks), self.parts[1] if sums else 1
        for node in self.form.accumulations:
            self.partials[node] = Partial.of(self.point.name("part"), node, plan.blocks)
            self.scratch.append(self.partials[node].buffer)
        with self.point.loop("b", plan.blocks, LoopKind.PARALLEL, keep=True) as block:
            for partial in self.partials.values():
                partial.clear(self.point, block, self.schedule.lanes, 1)
            fill, prepare = of(block)
            with self.point.loop("s", steps) as step:

                def finish(tile: Tile) -> None:
                    acc = self.point.local("acc", self.result.dtype, tile.size)
                    fill(acc, tile, step)
                    if sums:
                        with self.point.when((Condition(Index(steps - 2) - step),)):
                            self.put(acc, tile, sums, ZERO)
                    with self.point.when((Condition(step - (steps - 1)),)):
                        self.epilogue(acc, tile, block, results)

                self.sweep(plan, block, finish, prepare, step)

    def slabs(self, slabs: Buffer) -> None:
        """Sums over the parts of the depth, one result-sized slab for each."""
        parts, steps = self.parts
        plan = grid(self.roles, self.schedule, -(-self.schedule.blocks // parts))
        factors = self.factors(plan, parts * plan.blocks)
        with self.point.loop("b", parts * plan.blocks, LoopKind.PARALLEL, keep=True) as number:
            part, block = unflatten(number, (parts, plan.blocks))
            given, prepare = factors(number, block)
            with self.point.loop("s", steps) as step:

                def put(tile: Tile) -> None:
                    acc = self.point.local("acc", self.result.dtype, tile.size)
                    self.extend(acc, tile, given, slabs if steps > 1 else None, part, step)
                    self.put(acc, tile, slabs, part)

                self.sweep(plan, block, put, prepare, part * steps + step)

    def sweep(
        self, plan: Grid, block: Index, body: Callable[[Tile], None], prepare: Prepare | None, piece: Index
    ) -> None:
        """`body` for each tile of a block: strips of columns, and down each a few tiles of rows before the next.

        For each point of the batch; or for each strip, where the points share the panel and its strips are more than
        the cache holds: then down each strip the tiles of several points.
        """
        roles, point, high, broad = self.roles, self.point, self.high, self.broad
        part, row_part, col_part = plan.place(block)
        length, down, along = plan.lengths
        step = min(self.schedule.strip, plan.tiles) if prepare is None else down
        lanes = min(self.schedule.lanes, _power(broad)) if roles.dots else self.schedule.lanes

        def tile(row: Index, height: int, col: Index, width: int) -> None:
            with point.section():
                body(Tile(row, height, col, width, lanes if roles.cols else 1))

        def across(body: Callable[[Index, int], None]) -> None:
            with self.share(col_part, along, plan.strips, "n") as strip:
                body(strip * broad, broad)
            if roles.width % broad:
                with point.when((Condition(col_part - (plan.parts[2] - 1), equal=True),)):
                    body(Index(plan.strips * broad), roles.width % broad)

        def tiles(chunk: Index, col: Index, width: int) -> None:
            with self.share(row_part * (down // step) + chunk, step, plan.tiles, "t") as number:
                tile(number * high, high, col, width)

        def rest(col: Index, width: int) -> None:
            if roles.height % high:
                with point.when((Condition(row_part - (plan.parts[1] - 1), equal=True),)):
                    tile(Index(plan.tiles * high), roles.height % high, col, width)

        def strip(col: Index, width: int) -> None:
            if plan.tiles:
                tiles(ZERO, col, width)
            rest(col, width)

        @contextmanager
        def points(first: Index, count: int) -> Iterator[None]:
            with (
                self.share(part * (length // count) + first, count, size(plan.lead), "o") as position,
                point.where(spread(plan.lead, roles.variables, position)),
                walk(point, spans_of(plan.rest), roles.variables),
            ):
                yield

        if prepare is None and self.schedule.strip > plan.tiles and roles.is_panel_shared:
            together = _divisor(length, self.schedule.strip // (plan.tiles * size(plan.rest)))

            def over(chunk: Index, col: Index, width: int) -> None:
                with points(chunk, together):
                    strip(col, width)

            with point.loop("m", length // together) as chunk:
                across(partial(over, chunk))
            return
        with points(ZERO, length):
            if prepare is not None:
                prepare(across, piece)
            if down <= step:
                across(strip)
                return
            with point.loop("m", down // step) as chunk:
                across(lambda col, width: tiles(chunk, col, width))
            if roles.height % high:
                across(rest)

    @contextmanager
    def share(self, part: Index, length: int, count: int, name: str) -> Iterator[Index]:
        """The positions below `count` in a part of so many."""
        with self.point.loop(name, length) as number:
            position = part * length + number
            with self.point.when((Condition(Index(count - 1) - position),)):
                yield position

    @property
    def swept(self) -> list[Value]:
        """The outputs that are stored tile by tile."""
        return [value for value in self.body.outputs if value not in self.form.finals]

    # Tiles ---------------------------------------------------------------------------------------------------

    @property
    def order(self) -> list[int]:
        """The result's axes in the order in which sums are put down: those of the columns innermost."""
        cols = self.roles.cols.axes if self.roles.cols else ()
        return sorted(range(len(self.form.space)), key=lambda axis: axis in cols)

    @property
    def here(self) -> Index:
        """The current point's position in sums that are put down."""
        space = self.form.space
        return flatten([identity(space)[axis] for axis in self.order], [space[axis] for axis in self.order])

    def extend(self, acc: Buffer, tile: Tile, factors: Factors, sums: Buffer | None, part: Index, step: Index) -> None:
        """The tile's sums after a step: what `sums` holds from the steps before, and this one's products."""
        self.multiplier.clear(acc, tile)
        if sums:
            with self.point.when((Condition(step - 1),)):
                self.take(acc, tile, sums, part)
        self.multiplier.add_products(acc, tile, factors, part * self.parts[1] + step)

    def take(self, acc: Buffer, tile: Tile, sums: Buffer, part: Index) -> None:
        """The tile's sums so far."""

        def load(row: Index, column: Index, _: Index) -> None:
            value = self.point.load(sums, part * prod(self.form.space) + self.here)
            self.point.store(acc, row * tile.slots + column, value)

        self.multiplier.each(tile, load)

    def put(self, acc: Buffer, tile: Tile, sums: Buffer, part: Index) -> None:
        def store(row: Index, column: Index, _: Index) -> None:
            value = self.point.load(acc, row * tile.slots + column)
            self.point.store(sums, part * prod(self.form.space) + self.here, value)

        self.multiplier.each(tile, store)

    def collect(self, acc: Buffer, tile: Tile, slabs: Buffer) -> None:
        """The sum of all parts."""
        self.take(acc, tile, slabs, ZERO)

        def add(row: Index, column: Index, _: Index) -> None:
            value = self.point.load(slabs, (part + 1) * prod(self.form.space) + self.here)
            self.point.reduce("add", acc, row * tile.slots + column, value)

        with self.point.loop("s", self.parts[0] - 1) as part:
            self.multiplier.each(tile, add)

    def await_epilogue(self, tile: Tile) -> None:
        """Ask for what the epilogue reads side by side along the columns, where the schedule says so."""

        def ask(_row: Index, _column: Index, _lane: Index) -> None:
            for value, place in self.awaited:
                self.point.prefetch(self.point.buffers[value], place)

        if self.awaited:
            self.multiplier.each(tile, ask)

    @cached_property
    def awaited(self) -> list[tuple[Value, Index]]:
        """Inputs that the epilogue reads, and where, as far as each row has its own and it lies along the columns."""
        rows, cols, probe = self.roles.rows, self.roles.cols, Point(self.point.buffers)
        if not self.schedule.early or rows is None or cols is None:
            return []
        probe.barriers[self.result] = always(Const(0, self.result.dtype))
        for value in (*self.swept, *(node.inputs[0] for node in self.form.accumulations)):
            probe.at(value, place_in(self.form, value))
        step, found = Index(0, ((cols.variable, 1),)), dict.fromkeys((load.value, load.place) for load in probe.loads)
        return [
            (value, place)
            for value, place in found
            if place.depends_on(rows.variable) and not (place - step).depends_on(cols.variable)
        ]

    def epilogue(self, acc: Buffer, tile: Tile, block: Index, results: Mapping[Value, Buffer]) -> None:
        """What is stored and added up for each element of a tile."""
        point, form = self.point, self.form
        sums = TileSums.open(self.multiplier, form, tile, self.partials)

        def element(row: Index, column: Index, lane: Index) -> None:
            point.barriers[self.result] = lambda _: Load(acc, (row * tile.slots + column,))
            values = [(value, point.at(value, place_in(form, value))) for value in self.swept]
            operands = ((node, node.inputs[0]) for node in form.accumulations)
            terms = {node: point.at(value, place_in(form, value)) for node, value in operands}
            for value, expr in values:
                place = flatten(place_in(form, value), value.type.extents)
                point.store(results[value], place, expr, location(value))
            sums.add(block, row, column, lane, terms)
            del point.barriers[self.result]

        self.multiplier.each(tile, element)
        sums.flush(block)


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`."""
    return max((n for n in range(1, min(number, most) + 1) if number % n == 0), default=1)


def _power(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << (number - 1).bit_length()
