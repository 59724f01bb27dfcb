"""Which letter of a contraction does what.

The letters of the spec are axes: those of the result first, in its order, then the summed ones. One axis is chosen for
vectors to run along, and the others follow from it:

    along a letter of the result   that letter is the *columns*; the operand that holds it is the *panel*
    along a summed letter          every element is a dot product; the panel's own longest letter is the columns
    along none                     scalars

A letter that the panel lacks gives the *rows*, the nearest in memory of those that are long enough: a tile reuses each
panel vector for several of them. Where all are short (the places of a filter), several are the rows together, as many
as one tile can hold. Where both operands hold the columns, the panel is the second; but windows, of which the other
lacks the taps, are no panel: else both would be read once for each tap. Other letters of the result are the *batch*,
looped over outside; the summed ones are the *depth*.

Invariants:
 1. neighbouring axes of one role that every access walks as one form one group;
 2. each operand is a plain copy, at affine positions, of its `source`: an input, or a value to compute beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from graphc.errors import LoweringError
from graphc.ir.graph import Graph, Value
from graphc.ir.index import ZERO, Index, Var, flatten, var
from graphc.ir.op import Movement
from graphc.loops.ir import Const
from graphc.loops.nest import Group, axis_variables, collapse, identity, size
from graphc.loops.point import Point, always, parameters
from graphc.loops.sweep import accumulation_target
from graphc.passes.forms import Contract, output_placement

NO_AXIS = -1
SHORT, MOST_TOGETHER = 8, 12  # rows: below this a tile starves; so many fit the registers of most processors
ENOUGH_PIECES = 8  # of a deep sum that is cut between images
ENOUGH = 6  # rows that make better tiles than more of them farther apart: windows beside each other share elements


@dataclass(frozen=True, eq=False, slots=True)
class Operand:
    """One operand: the axis that each of its dimensions runs along, and where its current element comes from."""

    value: Value
    axes: frozenset[int]
    source: Value
    index: tuple[Index, ...]  # in the source
    place: Index  # the same, flat

    def stride(self, group: Group | None) -> int:
        """Distance of neighbours along a group."""
        return self.place.coefficient(group.variable) if group else 0

    def overlaps(self, group: Group) -> bool:
        """Whether elements along a group are met again along another axis: those of windows, and of their taps."""
        return any(_meet(index, group.variable) for index in self.index)


@dataclass(frozen=True, eq=False, slots=True)
class Axes:
    """A contraction's axes, operands, and everything that its loops read or write."""

    rank: int  # of the result
    extents: tuple[int, ...]
    variables: dict[int, Var]
    operands: tuple[Operand, Operand]
    accesses: tuple[Index, ...]
    uses: tuple[Index, ...]
    stored: tuple[Index, ...]  # flat positions of the outputs that are written tile by tile

    def groups(self, axes: Iterable[int]) -> list[Group]:
        """Those axes, run together where every access allows it."""
        return collapse(axes, self.variables, self.accesses, self.uses)

    def homes(self) -> dict[tuple[bool, bool, bool], list[int]]:
        """Axes by whether the first operand, the second and the result hold them; summed ones by falling strides."""
        found: dict[tuple[bool, bool, bool], list[int]] = {}
        for axis in sorted(self.variables, key=lambda a: self._strides(a) if a >= self.rank else ()):
            first, second = (axis in operand.axes for operand in self.operands)
            found.setdefault((first, second, axis < self.rank), []).append(axis)
        return found

    def own(self, operand: Operand) -> list[Group]:
        """Those of the result that this operand alone holds."""
        first, second = self.operands
        return self.groups(self.homes().get((operand is first, operand is second, True), ()))

    def _strides(self, axis: int) -> tuple[int, ...]:
        return tuple(-abs(operand.place.coefficient(self.variables[axis])) for operand in self.operands)


@dataclass(frozen=True, eq=False, slots=True)
class Roles:
    """Groups of axes by what they do, the outermost loop first."""

    variables: dict[int, Var]
    batch: tuple[Group, ...]
    rows: Group | None
    cols: Group | None
    depth: tuple[Group, ...]  # the vectors' group last, for dot products
    left: Operand
    panel: Operand
    dots: bool
    result: Index  # the flat position of its current element
    deep: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "deep", prod(group.extent for group in self.depth))

    @property
    def height(self) -> int:
        return self.rows.extent if self.rows else 1

    @property
    def width(self) -> int:
        return self.cols.extent if self.cols else 1

    def cut(self, pieces: int) -> Group:
        """The group of the depth that so many pieces are cut out of: the outermost that is long enough, else the
        longest."""
        return next((g for g in self.depth if g.extent >= pieces), self._longest)

    def pieces(self, wanted: int) -> int:
        """Into how many pieces the depth is best cut, of so many or fewer.

        Into fewer where these are of neighbours in memory and no more than twice as long; or where an operand's windows
        overlap along the longest group: a piece of each image would be read with what lies around it.
        """
        if wanted == 1 or not self.depth:
            return 1
        longest = self._longest
        for group in self.depth:
            is_near = 2 * group.extent >= min(wanted, longest.extent) or self._overlaps(longest)
            if group.extent >= ENOUGH_PIECES and is_near and not self._overlaps(group):
                return min(wanted, group.extent)
        return min(wanted, longest.extent)

    @property
    def _longest(self) -> Group:
        return max(self.depth, key=lambda group: group.extent)

    def _overlaps(self, group: Group) -> bool:
        return self.left.overlaps(group) or self.panel.overlaps(group)

    @property
    def copies(self) -> int:
        """Points of the batch."""
        return prod(group.extent for group in self.batch)

    @property
    def panel_is_own(self) -> bool:
        """Whether every point of the batch has a panel of its own."""
        return len(self.within(self.batch, self.panel)) == len(self.batch)

    @property
    def is_panel_shared(self) -> bool:
        """Whether all points of the batch have one panel."""
        return not self.within(self.batch, self.panel)

    def within(self, groups: Iterable[Group], operand: Operand) -> list[Group]:
        """The groups that an operand holds."""
        return [group for group in groups if operand.axes.issuperset(group.axes)]


def axes_of(body: Graph, form: Contract) -> Axes:
    """The axes of a contraction and its accesses, whichever axis vectors will run along."""
    node = form.contraction
    inputs, result = node.attrs["spec"].split("->")
    parts = inputs.split(",")
    sizes = {
        c: n for part, v in zip(parts, node.inputs, strict=True) for c, n in zip(part, v.type.extents, strict=True)
    }
    letters = [*result, *(c for c in sizes if c not in result)]
    extents = tuple(sizes[c] for c in letters)
    variables = axis_variables(extents)
    operands = []
    for value, part in zip(node.inputs, parts, strict=True):
        axes = [letters.index(c) for c in part]
        source, index = _source(value, tuple(var(f"a{axis}", extents[axis]) for axis in axes))
        operands.append(Operand(value, frozenset(axes), source, index, flatten(index, source.type.extents)))
    probe = Point(dict(zip(body.inputs, parameters(body)[0], strict=True)))
    probe.barriers[node.output] = always(Const(0, node.output.dtype))
    swept = [value for value in body.outputs if value not in form.finals]
    for value in (*swept, *(accumulation.inputs[0] for accumulation in form.accumulations)):
        probe.at(value, place_in(form, value))
    stored = tuple(flatten(place_in(form, value), value.type.extents) for value in swept)
    added = (accumulation_target(form, accumulation) for accumulation in form.accumulations)
    result_place = flatten(identity(form.space), form.space)
    accesses = (*probe.accesses, result_place, *stored, *added, *(operand.place for operand in operands))
    first, second = operands
    return Axes(len(result), extents, variables, (first, second), accesses, tuple(probe.uses), stored)


def place_in(form: Contract, value: Value) -> tuple[Index, ...]:
    """Where a placed value is read at the current point of the result's space."""
    here = identity(form.space)
    return tuple(ZERO if axis is None else here[axis] for axis in output_placement(form, value) or ())


def candidates(axes: Axes) -> list[int]:
    """Axes that vectors could run along, one of each group: of the result, and those that both operands hold dense."""
    found: dict[Var, int] = {}
    for home in axes.homes().values():
        for group in axes.groups(home):
            dense = all(operand.stride(group) == 1 for operand in axes.operands)
            if home[0] < axes.rank or dense:
                found[group.variable] = group.axes[-1]
    return sorted(found.values()) or [NO_AXIS]


def assign(axes: Axes, axis: int) -> Roles:
    """The roles when vectors run along `axis`; raises LoweringError when there is no such axis."""
    if axis != NO_AXIS and axis not in axes.variables:
        raise LoweringError(f"vectors cannot run along axis {axis} of a product with axes {sorted(axes.variables)}")
    dots, homes = axis >= axes.rank, axes.homes()
    outer = [a for a in axes.variables if a < axes.rank]
    last = outer[-1] if outer and (dots or axis == NO_AXIS) else axis
    left, panel = axes.operands
    if last != NO_AXIS and last not in panel.axes:
        left, panel = panel, left
    own, others = axes.own(left), axes.own(panel)
    is_shared = last in left.axes and last in panel.axes and not own
    if is_shared and any(map(panel.overlaps, others)):  # a depthwise filter's gradient
        left, panel, own, others = panel, left, others, own
    found = [*own, *others, *axes.groups(homes.get((True, True, True), ()))]
    longest = max(others, key=lambda g: (g.extent, g.axes), default=None) if dots else None
    cols = next((g for g in found if axis in g.axes), longest)
    rows = _rows([g for g in own if g is not cols], left, together=not dots)
    used = {cols, *((rows.parts or (rows,)) if rows else ())}
    batch = sorted((g for g in found if g not in used), key=lambda g: g.axes)
    depth = sorted(axes.groups(homes.get((True, True, False), ())), key=lambda g: axis in g.axes)
    place = flatten(identity(axes.extents[: axes.rank]), axes.extents[: axes.rank])
    return Roles(axes.variables, tuple(batch), rows, cols, tuple(depth), left, panel, dots, place)


def _meet(index: Index, variable: Var) -> bool:
    """Whether steps along a variable lead where steps along another one do."""
    size = abs(index.coefficient(variable))
    for atom, factor in index.terms:
        if size and isinstance(atom, Var) and atom != variable:
            (near, extent), (far, _) = sorted(((size, variable.extent), (abs(factor), atom.extent)))
            if near * (extent - 1) >= far:
                return True
    return False


def _rows(groups: Sequence[Group], left: Operand, *, together: bool) -> Group | None:
    """Of the groups that are long enough for a tile the one whose elements are nearest to each other; where there is
    none, the longest, or short ones `together`, innermost first, as long as a tile holds them all."""
    longest = max(groups, key=lambda g: (g.extent, g.axes), default=None)
    if longest is None or not together:
        return longest
    if longest.extent >= SHORT:
        return min((g for g in groups if g.extent >= ENOUGH), key=lambda g: abs(left.stride(g)))
    parts: list[Group] = []
    for group in sorted(groups, key=lambda g: g.axes, reverse=True):
        if size([group, *parts]) <= MOST_TOGETHER:
            parts.insert(0, group)
    return Group.product(parts) if len(parts) > 1 and size(parts) > longest.extent else longest


def _source(value: Value, index: tuple[Index, ...]) -> tuple[Value, tuple[Index, ...]]:
    """The value to read an operand's element from, and the position there.

    That is an input where movement alone leads to it by affine positions, else the smallest value on the way.
    """
    best = value, index
    while value.node is not None and isinstance(value.node.op.kind, Movement):
        pieces = value.node.op.kind.index_map(value.node, index)
        if len(pieces) != 1 or any(condition.known is not True for condition in pieces[0].conditions):
            break
        value, index = value.node.inputs[pieces[0].operand], tuple(pieces[0].index)
        small = value.node is None or prod(value.type.extents) <= prod(best[0].type.extents)
        if small and all(isinstance(atom, Var) for atom, _ in flatten(index, value.type.extents).terms):
            best = value, index
    return best
