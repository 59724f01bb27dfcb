"""Contract kernels: sums of products in register tiles, with work on the way in and on the way out.

Before: C[m,n] = sum over k of A[m,k] B[n,k], then bias, relu, column sums.
After:  for each panel of columns: B's panel into scratch, k by k, as vectors
        for blocks of rows, panels, tiles of rows: acc[rows, vectors] += A[row,k] * panel[k,vector] over all k;
        then the epilogue on the tile.

The letters of the spec take roles. The last axis of the result that is longer than 1 gives the *columns*, which run
along vectors; the operand that holds it is the *panel* operand. Of the other operand's own letters the longest gives
the *rows* of a tile. All other letters of the result are looped over outside, the summed ones (*depth*) inside.

Invariants:
 1. every sum runs over k in order, in one accumulator per element and block of k; blocks add up in order. The order
    follows from shapes and schedule alone, so results have the same bits for any number of threads;
 2. an operand is read in place when its elements are plain loads (and, for the panel operand, lie side by side along
    the columns or are used once); otherwise it is computed once into scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Index, Var, flatten, unflatten
from graphc.loops.ir import Buffer, Const, Expr, Function, Let, Load, LoopKind, Scalar, Space
from graphc.loops.nest import Group, axis_variables, block_length, identity, shared, spread, vectors, walk
from graphc.loops.point import Point, always, location, parameters
from graphc.loops.schedule import ContractSchedule, choose_contract
from graphc.loops.sweep import accumulation_target, fill_finals
from graphc.loops.target import Target
from graphc.loops.totals import Partial, identity_of
from graphc.passes.forms import Contract, output_placement


def lower_contract(body: Graph, form: Contract, name: str, schedule: ContractSchedule) -> Function:
    """The loops of a Contract body."""
    inputs, outputs = parameters(body)
    point = Point(dict(zip(body.inputs, inputs, strict=True)))
    results = dict(zip(body.outputs, outputs, strict=True))
    lowering = _Lowering(point, body, form, roles(form), schedule, results)
    lowering.run()
    return Function(name, inputs, outputs, tuple(lowering.scratch), tuple(point.statements))


# Roles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand: its value, and the axis (of the space, then of the depth) that each of its dimensions runs along."""

    value: Value
    axes: tuple[int, ...]

    def index(self, variables: Mapping[int, Var]) -> tuple[Index, ...]:
        """Its element at the current point."""
        return tuple(Index(0, ((variables[a], 1),)) if a in variables else ZERO for a in self.axes)


@dataclass(frozen=True, eq=False, slots=True)
class Roles:
    """Which axis does what. Axes of the result's space come first, then those of the depth."""

    extents: tuple[int, ...]
    variables: dict[int, Var]
    rows: int | None
    cols: int | None
    outer: tuple[int, ...]
    depth: tuple[int, ...]
    left: Operand  # holds the rows
    panel: Operand  # holds the columns

    def extent(self, axis: int | None) -> int:
        return 1 if axis is None else self.extents[axis]

    def group(self, axis: int) -> Group:
        return Group((axis,), self.extents[axis], self.variables[axis])


def roles(form: Contract) -> Roles:
    """Roles of the letters of a contraction."""
    node = form.contraction
    sources, result = node.attrs["spec"].split("->")
    parts = sources.split(",")
    sizes = {
        c: n for part, v in zip(parts, node.inputs, strict=True) for c, n in zip(part, v.type.extents, strict=True)
    }
    letters = [*result, *(c for c in sizes if c not in result)]
    extents = tuple(sizes[c] for c in letters)
    variables = axis_variables(form.space) | {
        axis: Var(f"k{axis}", extents[axis]) for axis in range(len(result), len(letters)) if extents[axis] > 1
    }
    operands = [Operand(v, tuple(map(letters.index, part))) for part, v in zip(parts, node.inputs, strict=True)]
    space = [axis for axis in range(len(result)) if extents[axis] > 1]
    cols = space[-1] if space else None
    left, panel = operands if cols is None or cols in operands[1].axes else reversed(operands)
    own = [axis for axis in space if axis in left.axes and axis not in panel.axes]
    rows = max(own, key=lambda axis: (extents[axis], axis), default=None)
    outer = tuple(axis for axis in space if axis not in (rows, cols))
    depth = tuple(axis for axis in range(len(result), len(letters)) if extents[axis] > 1)
    return Roles(extents, variables, rows, cols, outer, depth, left, panel)


# Loops ----------------------------------------------------------------------------------------------------------

Element = Callable[[], Expr]


class _Lowering:
    """The loops of one kernel."""

    def __init__(
        self,
        point: Point,
        body: Graph,
        form: Contract,
        roles: Roles,
        schedule: ContractSchedule,
        results: Mapping[Value, Buffer],
    ) -> None:
        self.point, self.body, self.form, self.roles = point, body, form, roles
        self.schedule, self.results = schedule, results
        self.lanes = schedule.lanes
        self.dtype = form.contraction.output.dtype
        self.scratch: list[Buffer] = []
        self.partials: dict[Node, Partial] = {}
        self.here = identity(form.space)

    def run(self) -> None:
        """Scratch copies of the operands, the tiles, the finals."""
        if 0 in self.form.space:
            pass
        elif 0 in self.roles.extents:
            self.tiles(None)  # a sum of nothing
        else:
            self.tiles((self.operand(self.roles.left), self.panel()))
        self.point.barriers.clear()
        for node in self.form.accumulations:
            partial = self.partials.get(node)
            self.point.barriers[node.output] = partial.result if partial else always(identity_of(node))
        finals = [value for value in self.body.outputs if value in self.form.finals]
        fill_finals(self.point, self.body, finals, self.results, self.lanes)

    # Operands

    def operand(self, operand: Operand) -> Element:
        """How an element of the left operand is had: in place, or from a row-major copy in scratch."""
        if is_plain(self.point, operand, self.roles) is not None or self.roles.extent(self.roles.cols) == 1:
            return lambda: self.point.at(operand.value, operand.index(self.roles.variables))
        depth = [axis for axis in operand.axes if axis in self.roles.depth]
        axes = [*(axis for axis in operand.axes if axis in self.roles.variables and axis not in depth), *depth]
        extents = [self.roles.extents[axis] for axis in axes]
        buffer = self.buffer("left", math.prod(extents))
        place = flatten([Index(0, ((self.roles.variables[axis], 1),)) for axis in axes], extents)
        *lead, last = [self.roles.group(axis) for axis in axes]

        def rows(_: Index, first: Index, length: int) -> None:
            with self.point.loop("r", length) as row, self.point.where(spread(lead, self.roles.variables, first + row)):
                vectors(self.point, last.extent, self.lanes, 1, store)

        def store(position: Index, _: Index) -> None:
            with self.point.where(last.at(position, self.roles.variables)):
                value = self.point.at(operand.value, operand.index(self.roles.variables))
                self.point.store(buffer, place, value, location(operand.value))

        count = math.prod(group.extent for group in lead)
        with self.point.section():
            shared(self.point, count, block_length(count, self.schedule.blocks), rows)
        return lambda: self.point.load(buffer, place)

    def panel(self) -> Element:
        """How an element of the panel operand is had: in place, or from panels in scratch, k by k."""
        roles, operand = self.roles, self.roles.panel
        plain = is_plain(self.point, operand, roles)
        stride = plain.coefficient(roles.variables[roles.cols]) if plain and roles.cols in roles.variables else 0
        if plain is not None and (roles.cols is None or (stride == 1 and not self.schedule.pack)):
            return lambda: self.point.at(operand.value, operand.index(roles.variables))
        if roles.cols is None or (plain is not None and roles.extent(roles.rows) == 1):
            return lambda: self.point.at(operand.value, operand.index(roles.variables))
        outer = [axis for axis in roles.outer if axis in operand.axes]
        groups, width = [roles.group(axis) for axis in outer], self.width
        depth = [roles.group(axis) for axis in roles.depth]
        deep, columns = math.prod(g.extent for g in depth), roles.extent(roles.cols)
        count, each = math.prod(g.extent for g in groups), deep * columns
        buffer = self.buffer("panels", count * each)
        col, k = (
            self.column_variable(),
            flatten([Index(0, ((g.variable, 1),)) for g in depth], [g.extent for g in depth]),
        )
        base = flatten([Index(0, ((g.variable, 1),)) for g in groups], [g.extent for g in groups]) * each

        def place(first: Index, wide: int) -> Index:
            """Position of the current element in the panel of columns first, first + 1, ..., first + wide - 1."""
            return base + first * deep + k * wide + (Index(0, ((col, 1),)) - first)

        def fill(first: Index, wide: int) -> None:
            def store(position: Index, _: Index) -> None:
                with self.point.where({col: first + position}):
                    value = self.point.at(operand.value, operand.index(roles.variables))
                    self.point.store(buffer, place(first, wide), value, location(operand.value))

            with walk(self.point, depth, roles.variables):
                vectors(self.point, wide, self.lanes, max(1, wide // self.lanes), store)

        full, tail = divmod(columns, width)
        if full:
            with self.point.section(), self.point.loop("p", count * full, LoopKind.PARALLEL) as number:
                *before, strip = unflatten(number, [*(g.extent for g in groups), full])
                with self.point.where(_at(groups, before)):
                    fill(strip * width, width)
        if tail:
            with (
                self.point.section(),
                self.point.loop("p", count, LoopKind.PARALLEL) as number,
                self.point.where(spread(groups, roles.variables, number)),
            ):
                fill(Index(full * width), tail)
        return lambda: self.point.load(buffer, place(self.first, self.wide))

    def buffer(self, name: str, size: int) -> Buffer:
        found = Buffer(self.point.name(name), self.dtype, (size,), Space.SCRATCH)
        self.scratch.append(found)
        return found

    def column_variable(self) -> Var:
        assert self.roles.cols is not None
        return self.roles.variables[self.roles.cols]

    @property
    def width(self) -> int:
        """Columns of a full panel."""
        return self.schedule.vectors * self.lanes

    # Tiles

    def tiles(self, factors: tuple[Element, Element] | None) -> None:
        """All tiles. Units, each some tiles of rows at one place of the outer axes, are shared by threads; what is left
        over of the rows comes after them. Inside a unit run panels, then tiles of rows."""
        roles, point, wanted = self.roles, self.point, self.schedule.blocks
        outer = [roles.group(axis) for axis in roles.outer]
        count, rows = math.prod(g.extent for g in outer), roles.extent(roles.rows)
        high = min(self.schedule.rows, rows)
        tiles, rest = divmod(rows, high)
        length = block_length(tiles, -(-wanted // count))
        units, left = count * (tiles // length), tiles % length
        pieces, ends = block_length(units, wanted), block_length(count, wanted)
        first_end = -(-units // pieces)
        blocks = first_end + (-(-count // ends) if left or rest else 0)
        for node in self.form.accumulations:
            self.partials[node] = Partial.of(point.name("part"), node, blocks)
            self.scratch.append(self.partials[node].buffer)

        def clear(block: Index) -> None:
            for partial in self.partials.values():
                partial.clear(point, block, self.lanes, 1)

        def block(number: Index, first: Index, length: int, height: int) -> None:
            for start, width in self.strips():
                with self.strip(start, width) as first_column, point.loop("t", length) as tile:
                    self.tile(number, first + tile * height, height, first_column, width, factors)

        def full(number: Index, first: Index, size: int) -> None:
            clear(number)
            with point.loop("o", size) as unit:
                position, part = unflatten(first + unit, [count, tiles // length])
                with point.where(spread(outer, roles.variables, position)):
                    block(number, part * (length * high), length, high)

        def end(number: Index, first: Index, size: int) -> None:
            clear(number + first_end)
            with point.loop("o", size) as unit, point.where(spread(outer, roles.variables, first + unit)):
                if left:
                    block(number + first_end, Index((tiles - left) * high), left, high)
                if rest:
                    block(number + first_end, Index(tiles * high), 1, rest)

        shared(point, units, pieces, full)
        if left or rest:
            shared(point, count, ends, end)

    def strips(self) -> Iterator[tuple[int, int]]:
        """(first column, width) of the full panels together, and of the last one."""
        columns = self.roles.extent(self.roles.cols)
        full, tail = divmod(columns, self.width)
        if full:
            yield 0, self.width
        if tail:
            yield full * self.width, tail

    @contextmanager
    def strip(self, start: int, width: int) -> Iterator[Index]:
        full = self.roles.extent(self.roles.cols) // self.width if width == self.width else 1
        with self.point.loop("n", full) as number:
            yield number * width + start

    def tile(
        self,
        block: Index,
        first_row: Index,
        height: int,
        first: Index,
        wide: int,
        factors: tuple[Element, Element] | None,
    ) -> None:
        """One register tile: `height` rows from `first_row`, `wide` columns from `first`."""
        point, roles, lanes = self.point, self.roles, self.lanes
        self.first, self.wide = first, wide
        slots = -(-wide // lanes) * lanes if wide > 1 else 1
        with point.section():
            acc = point.local("acc", self.dtype, height * slots)
            zero = Const(0.0 if self.dtype.is_float else 0, self.dtype)

            def each(body: Callable[[Index], None], before: Callable[[], object] = lambda: None) -> None:
                """`body(slot)` for every element of the tile, with the space variables standing there.

                `before` is called once for each vector, where the row does not matter.
                """
                for u in range(-(-wide // lanes)):
                    active = min(lanes, wide - u * lanes)
                    with self.vector(active) as lane:
                        column = lane + u * lanes
                        with point.where(self.position(first_row, first + column)):
                            before()
                        with (
                            point.loop("i", height, LoopKind.UNROLLED) as row,
                            point.where(self.position(first_row + row, first + column)),
                        ):
                            body(row * slots + column)

            each(lambda slot: point.store(acc, slot, zero))
            if factors:
                left, panel = factors
                factor: list[Expr] = []

                def load_panel() -> None:
                    factor[:] = [panel()]

                def multiply(slot: Index) -> None:
                    total = self.multiply_add(left(), factor[0], point.load(acc, slot))
                    point.store(acc, slot, total, self.form.contraction.location)

                with walk(point, [roles.group(axis) for axis in roles.depth], roles.variables):
                    each(multiply, load_panel)
            point.barriers[self.form.contraction.output] = self.reader(acc, slots, first_row, first)
            each(lambda slot: self.epilogue(block))
            del point.barriers[self.form.contraction.output]

    def multiply_add(self, a: Expr, b: Expr, total: Expr) -> Expr:
        """a * b + total; rounded once for floats."""
        if self.dtype.is_float:
            return Scalar("fma", (a, b, total), self.dtype)
        return Scalar("add", (Scalar("mul", (a, b), self.dtype), total), self.dtype)

    @contextmanager
    def vector(self, active: int) -> Iterator[Index]:
        if self.roles.cols is None:
            yield ZERO
            return
        with self.point.loop("v", active, LoopKind.VECTOR, self.lanes) as lane:
            yield lane

    def position(self, row: Index, column: Index) -> dict[Var, Index]:
        found: dict[Var, Index] = {}
        if self.roles.rows is not None:
            found[self.roles.variables[self.roles.rows]] = row
        if self.roles.cols is not None:
            found[self.roles.variables[self.roles.cols]] = column
        return found

    def reader(self, acc: Buffer, slots: int, first_row: Index, first: Index) -> Callable[[tuple[Index, ...]], Expr]:
        """The contraction's result at an index, from the tile."""

        def read(index: tuple[Index, ...]) -> Expr:
            row = ZERO if self.roles.rows is None else index[self.roles.rows] - first_row
            column = ZERO if self.roles.cols is None else index[self.roles.cols] - first
            return Load(acc, (row * slots + column,))

        return read

    def epilogue(self, block: Index) -> None:
        """What is stored and added up at the current point."""
        point = self.point
        swept = [value for value in self.body.outputs if value not in self.form.finals]
        values = [(value, point.at(value, self.index(value))) for value in swept]
        terms = [(node, point.at(node.inputs[0], self.index(node.inputs[0]))) for node in self.form.accumulations]
        for value, expr in values:
            place = flatten(self.index(value), value.type.extents)
            point.store(self.results[value], place, expr, location(value))
        for node, expr in terms:
            self.partials[node].add(point, block, accumulation_target(self.form, node), expr)

    def index(self, value: Value) -> tuple[Index, ...]:
        placement = output_placement(self.form, value) or ()
        return tuple(ZERO if axis is None else self.here[axis] for axis in placement)


def _position(groups: list[Group]) -> Index:
    """The current row-major position in the product of the groups."""
    return flatten([Index(0, ((g.variable, 1),)) for g in groups], [g.extent for g in groups])


def _at(groups: list[Group], positions: list[Index]) -> dict[Var, Index]:
    return {group.variable: position for group, position in zip(groups, positions, strict=True)}


def is_plain(point: Point, operand: Operand, roles: Roles) -> Index | None:
    """The flat position of an operand's element when that is one unconditional load at an affine place."""
    probe = Point(point.buffers)
    probe.at(operand.value, operand.index(roles.variables))
    match probe.statements:
        case [Let(value=Load(conditions=()))] if not any(
            not isinstance(atom, Var) for atom, _ in probe.accesses[0].terms
        ):
            return probe.accesses[0]
    return None


def choose(body: Graph, form: Contract, target: Target) -> ContractSchedule:
    """The schedule for a body of this form."""
    found = roles(form)
    return choose_contract(
        body,
        found.extent(found.rows),
        found.extent(found.cols),
        math.prod(found.extents[axis] for axis in found.depth),
        math.prod(found.extents[axis] for axis in found.outer),
        target,
    )
