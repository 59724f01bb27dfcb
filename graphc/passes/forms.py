"""Kernel forms: what one kernel may contain, and which of its outputs may be written over an operand.

`classify` says which form a body has, `None` when lowering could not make one kernel of it. Values that depend on
a barrier (a reduction or the contraction) are *placed*: each of their dimensions is one axis of the form's space, or
has extent 1. Lowering computes a barrier's result once and reads it only where the placement says.

 Map       no barrier; all outputs have one shape, the space, or are a concat of values of that shape, each of which is
           computed at every point and stored in its part.
 Rows      phases: reductions of the whole space over the same axes R; their results are K-values (K: the other axes),
           which later phases read along R. Outputs are space values, K-values and finals.
 Contract  one contraction, whose result is the space; prologue above it, epilogue below.
 Opaque    one opaque op with pointwise work above its indices and updates; what `gather` reads and `check_index`
           passes on must be an input.

An *accumulation* is a reduction of a placed or pure value over any other axes. What depends on one is a *final*: work
on the accumulated values, done once after the sweep, reading nothing else that is placed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from graphc.ir.graph import Graph, Literal, Node, Value
from graphc.ir.index import Index, flatten, var
from graphc.ir.op import Call, Contraction, Generator, Movement, Reduction, Scan
from graphc.ir.op import Opaque as OpaqueKind
from graphc.passes.places import Placement, Places, placement_of, pure_placement


@dataclass(frozen=True, eq=False)
class Map:
    """Pointwise work: every output element depends on operand elements alone."""

    space: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """A sweep over K; for each of its elements, phases over R."""

    space: tuple[int, ...]
    axes: tuple[int, ...]
    reductions: tuple[Node, ...]
    accumulations: tuple[Node, ...] = ()
    finals: frozenset[Value] = frozenset()
    placements: dict[Value, Placement] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[int, ...]:
        """K: the axes that are not reduced."""
        return tuple(axis for axis in range(len(self.space)) if axis not in self.axes)


@dataclass(frozen=True, eq=False)
class Contract:
    """A contraction with what is computed on the way in and on the way out."""

    space: tuple[int, ...]
    contraction: Node
    prologue: tuple[Node, ...]
    epilogue: tuple[Node, ...]
    accumulations: tuple[Node, ...] = ()
    finals: frozenset[Value] = frozenset()
    placements: dict[Value, Placement] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A single opaque op; its operands may be computed on the fly."""

    node: Node


Form = Map | Rows | Contract | Opaque


def classify(body: Graph) -> Form | None:
    """The form of a kernel body, or None when no single kernel can hold it. Linear in the size of the body."""
    barriers: list[Node] = []
    for node in body.nodes:
        match node.op.kind:
            case Call() | Scan():
                return None
            case Generator() if not is_splat_or_position(node):
                return None
            case Reduction() | Contraction() | OpaqueKind():
                barriers.append(node)
    reductions = [node for node in barriers if isinstance(node.op.kind, Reduction)]
    match [node for node in barriers if not isinstance(node.op.kind, Reduction)]:
        case [] if not reductions:
            return _map(body)
        case []:
            return _rows(body, reductions)
        case [single] if isinstance(single.op.kind, Contraction):
            return _contract(body, single)
        case [single] if not reductions:
            stored = single.inputs[0].node not in body.nodes or single.op.name == "scatter_add"
            return Opaque(single) if body.outputs == single.outputs and stored else None
    return None


def is_splat_or_position(node: Node) -> bool:
    """Whether a generator's element needs no table: one repeated number, or a function of the position."""
    literal = node.attrs.get("value")
    return not isinstance(literal, Literal) or splat(literal) is not None


def splat(literal: Literal) -> float | int | bool | None:
    """The number that every element of a constant has; None when they differ (or there are none)."""
    size = literal.type.dtype.itemsize
    if not literal.data or literal.data != literal.data[:size] * (len(literal.data) // size):
        return None
    number: float | int | bool = np.frombuffer(literal.data, literal.type.dtype.numpy, 1).item()
    return number


def output_placement(form: Rows | Contract, value: Value) -> Placement | None:
    """Where an output or an accumulated value lies in the space; None when it fits neither space nor K."""
    if value in form.placements:
        return form.placements[value]
    kept = form.kept if isinstance(form, Rows) else ()
    return pure_placement(value.type.extents, form.space, kept)


def stored_parts(space: tuple[int, ...], value: Value) -> list[tuple[Value, tuple[Index, ...]]]:
    """An output of a Map as values of the space, each with the place in the output of its current element."""
    here = _identity(space)
    if value.type.extents == space:
        return [(value, here)]
    assert value.node is not None
    axis = value.node.attrs["axis"]
    return [
        (part, (*here[:axis], here[axis] + number * space[axis], *here[axis + 1 :]))
        for number, part in enumerate(value.node.inputs)
    ]


def _map(body: Graph) -> Map | None:
    for shape_of in (_shape_of_parts, lambda value: value.type.extents):
        shapes = set(map(shape_of, body.outputs))
        if len(shapes) == 1:
            return Map(shapes.pop())
    return None


def _shape_of_parts(value: Value) -> tuple[int, ...]:
    """The shape of the values that a value is a concat of, or its own."""
    node = value.node
    parts = {part.type.extents for part in node.inputs} if node is not None and node.op.name == "concat" else set()
    return parts.pop() if len(parts) == 1 else value.type.extents


def _rows(body: Graph, reductions: list[Node]) -> Rows | None:
    chosen = _sweep_axes(body, reductions)
    if chosen is None:
        return None
    space, axes, necessary = chosen
    kept = tuple(axis for axis in range(len(space)) if axis not in axes)
    places = Places(space)
    phases: list[Node] = []
    accumulations: list[Node] = []
    for node in body.nodes:
        if not isinstance(node.op.kind, Reduction):
            if not places.follow(node):
                return None
            continue
        (operand,) = node.inputs
        placement = places.of.get(operand) or pure_placement(operand.type.extents, space, kept)
        if operand in places.finals or placement is None:
            return None
        if (
            operand.type.extents == space
            and placement == placement_of(space, range(len(space)))
            and _axes(node) == axes
        ):
            phases.append(node)
            places.of[node.output] = placement_of(space, kept)
        elif node in necessary:
            return None
        else:
            accumulations.append(node)
            places.finals.add(node.output)
    form = Rows(space, axes, tuple(phases), tuple(accumulations), frozenset(places.finals), places.of)
    fits = all(value in places.finals or output_placement(form, value) is not None for value in body.outputs)
    return form if fits else None


def _contract(body: Graph, contraction: Node) -> Contract | None:
    space = contraction.output.type.extents
    above = _ancestors(body, contraction)
    places = Places(space)
    places.of[contraction.output] = placement_of(space, range(len(space)))
    accumulations: list[Node] = []
    epilogue: list[Node] = []
    for node in body.nodes:
        if node is contraction:
            continue
        if isinstance(node.op.kind, Reduction):
            (operand,) = node.inputs
            if node in above or operand not in places.of:
                return None
            accumulations.append(node)
            places.finals.add(node.output)
            continue
        if node not in above:
            epilogue.append(node)
        if not places.follow(node):
            return None
    if not all(value in places.finals or value in places.of for value in body.outputs):
        return None
    prologue = tuple(node for node in body.nodes if node in above)
    finals = frozenset(places.finals)
    return Contract(space, contraction, prologue, tuple(epilogue), tuple(accumulations), finals, places.of)


def _sweep_axes(body: Graph, reductions: list[Node]) -> tuple[tuple[int, ...], tuple[int, ...], frozenset[Node]] | None:
    """Space and reduced axes of a sweep, and the reductions that must be phases: others read their results."""
    necessary = _read_again(body)
    shapes = {(node.inputs[0].type.extents, _axes(node)) for node in reductions if node in necessary}
    if len(shapes) > 1:
        return None
    if shapes:
        space, axes = shapes.pop()
        return space, axes, necessary
    space = max((node.inputs[0].type.extents for node in reductions), key=lambda shape: (math.prod(shape), len(shape)))
    found = sorted({_axes(node) for node in reductions if node.inputs[0].type.extents == space})
    last = len(space) - 1
    rows = [axes for axes in found if last in axes and len(axes) <= last]
    return space, found[0] if len(found) == 1 else rows[0] if rows else (last,), necessary


def _read_again(body: Graph) -> frozenset[Node]:
    """The reductions whose results are broadcast or reduced again."""
    sources: dict[Value, frozenset[Node]] = {}
    found: set[Node] = set()
    for node in body.nodes:
        made = [value for value in node.inputs if value in sources]
        below = frozenset().union(*(sources[value] for value in made))
        if isinstance(node.op.kind, Reduction):
            found |= below
            sources[node.output] = frozenset((node,))
        elif made:
            sources[node.output] = below
            if math.prod(node.output.type.extents) > max(math.prod(value.type.extents) for value in made):
                found |= below
    return frozenset(found)


def _axes(node: Node) -> tuple[int, ...]:
    return tuple(sorted(node.attrs["axes"]))


def _ancestors(body: Graph, node: Node) -> set[Node]:
    """The nodes of a body that `node` depends on."""
    needed = set(node.inputs)
    found: set[Node] = set()
    for above in reversed(body.nodes):
        if not needed.isdisjoint(above.outputs):
            found.add(above)
            needed.update(above.inputs)
    return found


# Levels: in which phase a value is known ---------------------------------------------------------------------


def levels(body: Graph, form: Rows) -> dict[Value, int]:
    """For each value, how many phases must have ended before it can be computed. Finals are left out."""
    found: dict[Value, int] = dict.fromkeys(body.inputs, 0)
    phases = set(form.reductions)
    for node in body.nodes:
        if node.output not in form.finals:
            found[node.output] = max((found[v] for v in node.inputs), default=0) + (node in phases)
    return found


def is_single_phase(body: Graph, form: Rows) -> bool:
    """Whether no reduction's result is read in the sweep."""
    level = levels(body, form)
    along = set(form.axes)
    swept = [v for v in body.outputs if v not in form.finals and along & set(output_placement(form, v) or ())]
    operands = [node.inputs[0] for node in (*form.reductions, *form.accumulations)]
    return bool(form.reductions) and all(level[value] == 0 for value in (*swept, *operands))


def lies_across(form: Rows) -> bool:
    """Whether rows lie across memory: the innermost axis is not reduced."""
    inner = max((axis for axis, extent in enumerate(form.space) if extent > 1), default=-1)
    return inner >= 0 and inner not in form.axes


def is_narrow(form: Rows) -> bool:
    """Whether rows follow each other in memory and every accumulation is over all rows."""
    wide = [axis for axis, extent in enumerate(form.space) if extent > 1]
    kept, along = (set(wide) & set(axes) for axes in (form.kept, form.axes))
    if not along or not kept or max(kept) > min(along):
        return False
    return all(kept.isdisjoint(_left(form, node)) for node in form.accumulations)


def _left(form: Rows, accumulation: Node) -> set[int | None]:
    """The axes of the space that an accumulation's result has."""
    (operand,) = accumulation.inputs
    placement = output_placement(form, operand) or ()
    return {axis for d, axis in enumerate(placement) if d not in accumulation.attrs["axes"]}


# In-place outputs --------------------------------------------------------------------------------------------


def may_alias(node: Node, operand: int, output: int) -> bool:
    """Whether a `kernel` node's output may be written over its operand.

    True only when every read of the operand is of the very element that the iteration writes, and no later part of the
    kernel reads it. Says nothing about the sizes: the operand must have the output's type.
    """
    body: Graph = node.attrs["body"]
    form = classify(body)
    source, result = body.inputs[operand], body.outputs[output]
    if form is None or isinstance(form, Opaque) or source.type != result.type:
        return False
    if isinstance(form, Map):
        if result.type.extents != form.space:
            return False
        roots = [(part, _identity(form.space)) for value in body.outputs for part, _ in stored_parts(form.space, value)]
        return _reads_only_at(roots, source, flatten(_identity(form.space), form.space), frozenset())
    sweep = [value for value in body.outputs if value not in form.finals]
    sweep += [accumulation.inputs[0] for accumulation in form.accumulations]
    barriers = frozenset(v for n in (*_barriers(form), *form.accumulations) for v in n.outputs)
    inner = [value for barrier in _barriers(form) for value in barrier.inputs]
    finals = [value for value in body.outputs if value in form.finals]
    if result in form.finals:
        same = [value for value in finals if value.type.shape == result.type.shape]
        others = [*sweep, *inner, *(value for value in finals if value not in same)]
        here = _identity(result.type.extents)
        spot = flatten(here, result.type.extents)
        return not _reached(others, source, barriers) and _reads_only_at(
            [(value, here) for value in same], source, spot, barriers
        )
    if _reached(finals, source, barriers) or (isinstance(form, Contract) and _reached(inner, source, barriers)):
        return False
    if isinstance(form, Rows):
        level = levels(body, form)
        if any(level[value] > level[result] and _reached([value], source, barriers) for value in (*sweep, *inner)):
            return False
        places = {v: (_place_index(form, v), v.type.extents) for v in sweep if _covers(form, v, form.kept)}
        rows = list(places)
        others = [value for value in rows if places[value] != places.get(result)]
        if result in rows and _reached(others, source, barriers):
            return False  # values of rows may be finished by `fill_finals`, in its order, shape after shape
        sweep = [*sweep, *inner]
    if not _covers(form, result, range(len(form.space))) and not (
        isinstance(form, Rows) and _covers(form, result, form.kept)
    ):
        return False
    spot = flatten(_place_index(form, result), result.type.extents)
    return _reads_only_at([(value, _place_index(form, value)) for value in sweep], source, spot, barriers)


def _barriers(form: Rows | Contract) -> tuple[Node, ...]:
    return form.reductions if isinstance(form, Rows) else (form.contraction,)


def _covers(form: Rows | Contract, value: Value, axes: Iterable[int]) -> bool:
    """Whether a value has one element for each point of some axes: of the space, or of K, which is written last."""
    placement = output_placement(form, value) or ()
    return {axis for axis in placement if axis is not None} == {axis for axis in axes if form.space[axis] > 1}


def _place_index(form: Rows | Contract, value: Value) -> tuple[Index, ...]:
    axes = _identity(form.space)
    return tuple(Index() if axis is None else axes[axis] for axis in output_placement(form, value) or ())


def _identity(space: tuple[int, ...]) -> tuple[Index, ...]:
    return tuple(var(f"a{axis}", extent) for axis, extent in enumerate(space))


def _reached(roots: Iterable[Value], source: Value, barriers: frozenset[Value]) -> bool:
    """Whether computing `roots` reads `source`, barriers' results being known."""
    seen: set[Value] = set()
    stack = list(roots)
    while stack:
        value = stack.pop()
        if value is source:
            return True
        if value.node is not None and value not in seen and value not in barriers:
            seen.add(value)
            stack.extend(value.node.inputs)
    return False


def _reads_only_at(
    roots: Iterable[tuple[Value, tuple[Index, ...]]], source: Value, spot: Index, barriers: frozenset[Value]
) -> bool:
    """Whether computing `roots` reads `source` at no flat position but `spot`."""
    seen: set[tuple[Value, tuple[Index, ...]]] = set()
    stack = list(roots)
    while stack:
        value, index = item = stack.pop()
        if value is source and flatten(index, source.type.extents) != spot:
            return False
        if value.node is None or item in seen or value in barriers:
            continue
        seen.add(item)
        if isinstance(value.node.op.kind, Movement):
            pieces = value.node.op.kind.index_map(value.node, index)
            stack.extend((value.node.inputs[piece.operand], piece.index) for piece in pieces)
        else:
            stack.extend((operand, index) for operand in value.node.inputs)
    return True
