"""What a sweep must do in each phase, before any loop is chosen, and the finals behind it: shared by the lowerings of
Rows kernels.

Row work reads or writes elements along R; the rest belongs to one element of K and is done once the row's phases are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.index import ZERO, Index, Var, flatten
from graphc.ir.op import Elementwise, Movement
from graphc.loops.ir import Buffer, Function, Load, Space
from graphc.loops.maps import fill_space
from graphc.loops.nest import Group, axis_variables, collapse, identity
from graphc.loops.point import Barrier, Point, always, parameters
from graphc.loops.schedule import COSTS, MapSchedule, cost, share
from graphc.loops.totals import Partial, identity_of
from graphc.passes.forms import Contract, Rows, levels, output_placement

WORTH_KEEPING = 6  # scalar operations to compute an element again that cost more than storing and loading it

Results = Mapping[Value, Buffer]


def sweep_function(
    body: Graph, form: Rows, name: str, lanes: int, emit: Callable[[Point, Results], Iterable[Buffer]]
) -> Function:
    """A Rows body as a function: `emit` writes the loops and tells what scratch they use. A space without points needs
    neither."""
    inputs, outputs = parameters(body)
    point, results = Point(dict(zip(body.inputs, inputs, strict=True))), dict(zip(body.outputs, outputs, strict=True))
    scratch: Iterable[Buffer] = ()
    if 0 in form.space:
        fill_empty(point, body, form, results, lanes)
    else:
        scratch = emit(point, results)
    return Function(name, inputs, outputs, tuple(scratch), tuple(point.statements))


@dataclass(frozen=True, eq=False)
class Phase:
    """One pass over a row: what to total, what to store, what to add up by columns, what to keep for later passes; and
    what is then known of the row that these read along it."""

    totals: tuple[Node, ...]
    outputs: tuple[Value, ...]
    columns: tuple[Node, ...]
    keep: tuple[Value, ...]
    known: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A Rows body, the axes that a row runs along, and the work sorted by phase."""

    body: Graph
    form: Rows
    axes: tuple[int, ...]
    variables: dict[int, Var]
    phases: tuple[Phase, ...]
    row_outputs: tuple[Value, ...]  # one element per row
    row_sums: tuple[Node, ...]  # accumulations of values with one element per row

    def index(self, value: Value) -> tuple[Index, ...]:
        """Where a placed or pure value is read at the current point."""
        here = identity(self.form.space)
        return tuple(ZERO if axis is None else here[axis] for axis in output_placement(self.form, value) or ())

    def flat(self, value: Value) -> Index:
        return flatten(self.index(value), value.type.extents)

    def target(self, accumulation: Node) -> Index:
        """The flat position in an accumulation's result that the current point adds to."""
        return accumulation_target(self.form, accumulation)

    def row_position(self) -> Index:
        """The current point's position along its row."""
        here = identity(self.form.space)
        return flatten([here[axis] for axis in self.axes], [self.form.space[axis] for axis in self.axes])

    @property
    def row_extent(self) -> int:
        return math.prod(self.form.space[axis] for axis in self.axes)


def groups(body: Graph, form: Rows, buffers: Mapping[Value, Buffer], axes: Iterable[int]) -> list[Group]:
    """Those axes, run together where everything that the sweep touches allows it."""
    point = Point(buffers)
    for node in form.reductions:
        point.barriers[node.output] = always(identity_of(node))
    sweep = Sweep(body, form, (), {}, (), (), ())
    outputs = [value for value in body.outputs if value not in form.finals]
    operands = [node.inputs[0] for node in (*form.reductions, *form.accumulations)]
    for value in (*outputs, *operands):
        point.at(value, sweep.index(value))
    written = [*map(sweep.flat, outputs), *(accumulation_target(form, node) for node in form.accumulations)]
    return collapse(axes, axis_variables(form.space), [*point.accesses, *written], point.uses)


def plan_sweep(body: Graph, form: Rows, axes: tuple[int, ...], buffer: int) -> Sweep:
    """Sort a body's work for rows along `axes`; rows of up to `buffer` elements may keep values between phases."""

    def along(value: Value, dims: Iterable[int] | None = None) -> bool:
        placement = output_placement(form, value) or ()
        return any(placement[d] in axes for d in (range(len(placement)) if dims is None else dims))

    def by_column(node: Node) -> bool:
        operand = node.inputs[0]
        return along(operand, (d for d in range(operand.type.rank) if d not in node.attrs["axes"]))

    level = levels(body, form)
    swept = [value for value in body.outputs if value not in form.finals]
    outputs = [value for value in swept if along(value)]
    sums = [node for node in form.accumulations if along(node.inputs[0])]
    totals = [*form.reductions, *(node for node in sums if not by_column(node))]
    columns = [node for node in sums if by_column(node)]
    last = max((level[v] for v in (*outputs, *(node.inputs[0] for node in (*totals, *columns)))), default=0)
    along_rows = _read_along_rows(body, form)
    phases: list[Phase] = []
    for number in range(last + 1):
        phases.append(
            Phase(
                tuple(node for node in totals if level[node.inputs[0]] == number),
                tuple(value for value in outputs if level[value] == number),
                tuple(node for node in columns if level[node.inputs[0]] == number),
                (),
                tuple(value for value in along_rows if level[value] == number + 1),
            )
        )
    phases = [phase for phase in phases if phase.totals or phase.outputs or phase.columns]
    if math.prod(form.space[axis] for axis in axes) <= buffer:
        phases = _with_kept(form, phases)
    return Sweep(
        body,
        form,
        axes,
        axis_variables(form.space),
        tuple(phases),
        tuple(value for value in swept if not along(value)),
        tuple(node for node in form.accumulations if not along(node.inputs[0])),
    )


def accumulation_target(form: Rows | Contract, accumulation: Node) -> Index:
    """The flat position in an accumulation's result, in index variables of the space."""
    (operand,) = accumulation.inputs
    here, placement = identity(form.space), output_placement(form, operand) or ()
    kept = [d for d in range(operand.type.rank) if d not in accumulation.attrs["axes"]]
    index = [ZERO if (axis := placement[d]) is None else here[axis] for d in kept]
    return flatten(index, [operand.type.extents[d] for d in kept])


def phase_by_phase(
    point: Point, sweep: Sweep, results: Results, lanes: int, run: Callable[[Phase], Sequence[Partial]]
) -> list[Buffer]:
    """All phases, each over all blocks before the next, and what belongs to rows; `run` emits one and tells its totals.

    A row's totals, and what later phases read of them, go to scratch. Returns all scratch.
    """
    scratch: list[Buffer] = []

    def store(values: Sequence[Value]) -> None:
        found = {v: Buffer(point.name("row"), v.dtype, (math.prod(v.type.extents),), Space.SCRATCH) for v in values}
        fill_finals(point, sweep.body, values, found, lanes)
        point.barriers |= {value: _stored(value, buffer) for value, buffer in found.items()}
        scratch.extend(found.values())

    for phase in sweep.phases:
        partials = run(phase)
        scratch += [total.buffer for total in partials]
        point.barriers |= {total.node.output: total.result for total in partials}
        store([total.node.output for total in partials])
        store(phase.known)
    fill_finals(point, sweep.body, sweep.row_outputs, results, lanes)
    return scratch


def _read_along_rows(body: Graph, form: Rows) -> list[Value]:
    """Values of rows, computed from reductions, that row elements read."""
    found = [
        node.inputs[0]
        for node in body.nodes
        if isinstance(node.op.kind, Movement) and form.space == node.output.type.extents
    ]
    return [
        value
        for value in dict.fromkeys(found)
        if value in form.placements
        and not set(form.axes) & set(form.placements[value])
        and value.node is not None
        and isinstance(value.node.op.kind, Elementwise)
    ]


def _stored(value: Value, buffer: Buffer) -> Barrier:
    return lambda index: Load(buffer, (flatten(index, value.type.extents),))


def add_up(
    point: Point, body: Graph, finals: frozenset[Value], partials: Sequence[Partial], outputs: Results, lanes: int
) -> None:
    """The finals among the outputs, from the partial results of all blocks."""
    point.barriers.clear()
    point.barriers.update({partial.node.output: partial.result for partial in partials})
    fill_finals(point, body, [value for value in body.outputs if value in finals], outputs, lanes)


def fill_finals(point: Point, body: Graph, values: Iterable[Value], outputs: Results, lanes: int) -> None:
    """Compute outputs that no longer depend on the sweep, those of one shape together."""
    shapes: dict[tuple[int, ...], list[Value]] = {}
    for value in values:
        shapes.setdefault(value.type.extents, []).append(value)
    for shape, same in shapes.items():
        schedule = MapSchedule(lanes, 1, share(math.prod(shape) * cost(body)))
        fill_space(point, shape, [(outputs[value], value) for value in same], schedule)


def fill_empty(point: Point, body: Graph, form: Rows, outputs: Results, lanes: int) -> None:
    """A space without points: every reduction is its identity."""
    for node in (*form.reductions, *form.accumulations):
        point.barriers[node.output] = always(identity_of(node))
    fill_finals(point, body, body.outputs, outputs, lanes)


def _with_kept(form: Rows, phases: list[Phase]) -> list[Phase]:
    """Each phase with the elements that a later phase reads again and that cost much to compute."""
    stops = {node.output for node in (*form.reductions, *form.accumulations)}
    cones = [_cone([*p.outputs, *(n.inputs[0] for n in (*p.totals, *p.columns))], stops) for p in phases]
    keep: list[list[Value]] = [[] for _ in phases]
    kept: set[Value] = set()
    for later, cone in enumerate(cones):
        for earlier in range(later):
            again = [value for value in cone if value in cones[earlier] and _is_point(form, value)]
            edge = {v for value, users in cone.items() for v in again if value is v and _is_edge(users, cones[earlier])}
            for value in again:
                if value in edge and value not in kept and _work(form, value, stops | kept) >= WORTH_KEEPING:
                    keep[earlier].append(value)
                    kept.add(value)
    return [replace(phase, keep=tuple(k)) for phase, k in zip(phases, keep, strict=True)]


def _cone(roots: Iterable[Value], stops: set[Value]) -> dict[Value, list[Value | None]]:
    """The values that computing `roots` computes, each with its users (None: it is a root)."""
    found: dict[Value, list[Value | None]] = {}
    stack: list[tuple[Value, Value | None]] = [(root, None) for root in roots]
    while stack:
        value, user = stack.pop()
        if value in stops or value.node is None:
            continue
        known = value in found
        found.setdefault(value, []).append(user)
        if not known:
            stack.extend((operand, value) for operand in value.node.inputs)
    return found


def _is_edge(users: Iterable[Value | None], earlier: dict[Value, list[Value | None]]) -> bool:
    return any(user is None or user not in earlier for user in users)


def _is_point(form: Rows, value: Value) -> bool:
    """Whether a value has one element for each point of the space, at that point."""
    node = value.node
    return node is not None and isinstance(node.op.kind, Elementwise) and value.type.extents == form.space


def _work(form: Rows, value: Value, stops: set[Value]) -> int:
    """Scalar operations to compute one element of a row again."""
    seen: set[Value] = set()
    stack, total = [value], 0
    while stack:
        value = stack.pop()
        if value.node is None or value in seen or (value in stops and total):
            continue
        seen.add(value)
        if isinstance(value.node.op.kind, Elementwise) and value.type.extents == form.space:
            total += COSTS.get(value.node.op.name, 1)
        stack.extend(value.node.inputs)
    return total
