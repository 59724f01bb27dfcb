"""Which values have one independent part for each example of a batch, and along which axis these lie.

A value is *mapped* along an axis when its part number n there depends on part n of the operands alone, as in
elementwise work, products with weights, and movements that leave the axis in its order. A *sum* adds the parts up: a
reduction over the axis, a contraction whose letter it is, a scatter of mapped updates. What is made of sums, or by an
op that has no rule here, is neither. The results of a scan are mapped when all of them are, and all that its steps make
of mapped values is: a counter among the carries, or a mean over the batch, leaves it whole.

An axis that joins others has the batch's outermost: its extent is a multiple of the batch's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Contraction, Elementwise, Generator, Opaque, Reduction, Scan
from graphc.ops.contraction import letters
from graphc.ops.control import Parts
from graphc.passes.axes import behind


class Role(enum.Enum):
    """What becomes of mapped operands, where that is no mapped value."""

    SUM = enum.auto()
    OTHER = enum.auto()


Axes = Sequence[int | None]  # of the operands; None: not mapped
Found = int | Role


def roles(node: Node, axes: Axes, batch: int) -> Sequence[Found]:
    """The axis of each output of a node of which at least one operand is mapped, in a batch of so many examples."""
    found = _scan(node, axes, batch) if isinstance(node.op.kind, Scan) else (_rule(node, axes),)
    pairs = zip(found, node.outputs, strict=True)
    return [Role.OTHER if isinstance(f, int) and v.type.extents[f] % batch else f for f, v in pairs]


def _rule(node: Node, axes: Axes) -> Found:
    match node.op.kind:
        case Elementwise():
            return _same(node, axes)
        case Contraction():
            return _contract(node, axes)
        case Reduction():
            return _reduce(node, axes)
        case Opaque():
            return _OPAQUE.get(node.op.name, _other)(node, axes)
        case Generator():
            return Role.OTHER
        case _:
            return _MOVEMENTS.get(node.op.name, _other)(node, axes)


def _other(node: Node, axes: Axes) -> Found:
    return Role.OTHER


def _same(node: Node, axes: Axes) -> Found:
    """One axis for all operands, which have one shape; those that are not mapped must be had in parts."""
    found = {axis for axis in axes if axis is not None}
    if len(found) > 1:
        return Role.OTHER
    (axis,) = found
    fits = (known is not None or can_narrow(value, axis) for value, known in zip(node.inputs, axes, strict=True))
    return axis if all(fits) else Role.OTHER


def _contract(node: Node, axes: Axes) -> Found:
    *parts, result = letters(node.attrs["spec"])
    found = {part[axis] for part, axis in zip(parts, axes, strict=True) if axis is not None}
    if len(found) > 1:
        return Role.OTHER
    (letter,) = found
    if any(letter in part and axis is None for part, axis in zip(parts, axes, strict=True)):
        return Role.OTHER
    return result.index(letter) if letter in result else Role.SUM


def _reduce(node: Node, axes: Axes) -> Found:
    (axis,), reduced = axes, node.attrs["axes"]
    assert axis is not None
    if axis in reduced:
        return Role.SUM if node.op.name == "reduce_sum" else Role.OTHER
    return axis - len([other for other in reduced if other < axis])


def _gather(node: Node, axes: Axes) -> Found:
    of_data, of_indices = axes
    axis: int = node.attrs["axis"]
    if of_data is None and of_indices is not None:
        return axis + of_indices
    if of_indices is None and of_data is not None and of_data != axis:
        return of_data if of_data < axis else of_data + node.inputs[1].type.rank - 1
    return Role.OTHER


def _scatter_add(node: Node, axes: Axes) -> Found:
    (of_indices, of_updates), axis = axes, node.attrs["axis"]
    is_sum = of_indices is not None and of_updates == axis + of_indices
    return Role.SUM if is_sum else Role.OTHER


_OPAQUE: dict[str, Callable[[Node, Axes], Found]] = {"gather": _gather, "scatter_add": _scatter_add}


# Movements of one operand --------------------------------------------------------------------------------------


def _reshape(node: Node, axes: Axes) -> Found:
    """The axis with as many elements before it: there the batch is outermost, too."""
    (axis,) = axes
    assert axis is not None
    place = behind(node.output.type.extents, prod(node.inputs[0].type.extents[:axis]))
    return Role.OTHER if place is None else place


def _slice(node: Node, axes: Axes) -> Found:
    (axis,), attrs = axes, node.attrs
    assert axis is not None
    whole = attrs["start"][axis] == 0 and attrs["stop"][axis] == node.inputs[0].shape[axis] and attrs["step"][axis] == 1
    return axis if whole else Role.OTHER


def _pad(node: Node, axes: Axes) -> Found:
    (axis,) = axes
    assert axis is not None
    return Role.OTHER if any(node.attrs[name][axis] for name in ("low", "high", "interior")) else axis


def _along_others(node: Node, axes: Axes) -> Found:
    (axis,) = axes
    assert axis is not None
    return Role.OTHER if axis in node.attrs["axes"] else axis


def _unwindows(node: Node, axes: Axes) -> Found:
    """The places within windows, which stand last, say where an element goes: their parts are not alike."""
    (axis,) = axes
    assert axis is not None
    is_tap = axis >= node.inputs[0].type.rank - len(node.attrs["axes"])
    return Role.OTHER if is_tap else _along_others(node, axes)


def _concat(node: Node, axes: Axes) -> Found:
    found = _same(node, axes)
    return Role.OTHER if found == node.attrs["axis"] else found


def _transpose(node: Node, axes: Axes) -> Found:
    (axis,) = axes
    assert axis is not None
    place: int = node.attrs["perm"].index(axis)
    return place


def _broadcast(node: Node, axes: Axes) -> Found:
    (axis,) = axes
    assert axis is not None
    place: int = node.attrs["axes"][axis]
    return place


_MOVEMENTS: dict[str, Callable[[Node, Axes], Found]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "reverse": _along_others,
    "windows": _along_others,
    "unwindows": _unwindows,
    "concat": _concat,
}


def can_narrow(value: Value, axis: int) -> bool:
    """Whether a value that is not mapped is the same in all parts of an axis, as it is repeated there."""
    node = value.node
    if node is None:
        return False
    before = axis_before(node, axis)
    if before is not None:
        return all(can_narrow(operand, before) for operand in node.inputs)
    if node.op.name == "broadcast":
        (x,), axes = node.inputs, node.attrs["axes"]
        return axis not in axes or x.shape[axes.index(axis)] == 1
    return node.op.name == "iota" and node.attrs["axis"] != axis


def axis_before(node: Node, axis: int) -> int | None:
    """The axis of a node's operands that one of its result is, where it is made part by part."""
    if isinstance(node.op.kind, Elementwise):
        return axis
    if node.op.name != "reshape":
        return None
    before, after = node.inputs[0].type.extents, node.output.type.extents
    place = behind(before, prod(after[:axis]))
    return place if place is not None and before[place] == after[axis] else None


# Loops ---------------------------------------------------------------------------------------------------------


def _scan(node: Node, axes: Axes, batch: int) -> Sequence[Found]:
    """Carries as in the step, and stacked results along one axis more."""
    body: Graph = node.attrs["body"]
    inner = in_step(node, axes, batch)
    carries, results = ([inner.get(value) for value in values] for values in (body.state, body.outputs))
    if None in carries or None in results:
        return [Role.OTHER] * len(node.outputs)
    return [*(axis for axis in carries if axis is not None), *(axis + 1 for axis in results if axis is not None)]


def in_step(node: Node, axes: Axes, batch: int) -> dict[Value, int]:
    """The axes of what is mapped in a scan's step; none where not all is that is made of it."""
    body, parts = node.attrs["body"], Parts.of(node)
    known = {value: axis for value, axis in zip(Scan.parameters(node), axes, strict=True) if axis is not None}
    if any(known.get(value) == 0 for value in parts.sliced):
        return {}
    known |= {value: known[value] - 1 for value in parts.sliced if value in known}
    while more := _carried(body, known, batch):
        known |= more
    found = _mapped(body.nodes, known, batch)
    if found is None or any(found.get(value) != known.get(state) for state, value in body.next):
        return {}
    carries = zip(body.state, parts.init, axes, strict=False)
    unmapped = [(init, known[state]) for state, init, axis in carries if state in known and axis is None]
    return found if all(can_narrow(init, axis) for init, axis in unmapped) else {}


def _carried(body: Graph, known: Mapping[Value, int], batch: int) -> dict[Value, int]:
    """Further carries that become what is mapped, if those beside it are: elementwise work says along which axis."""
    found = dict(known)
    for node in body.nodes:
        axes = [found[value] for value in node.inputs if value in found]
        if axes and isinstance(node.op.kind, Elementwise):
            found[node.output] = axes[0]
        elif axes:
            pairs = zip(node.outputs, roles(node, [found.get(value) for value in node.inputs], batch), strict=True)
            found |= {value: axis for value, axis in pairs if isinstance(axis, int)}
    return {state: found[value] for state, value in body.next if value in found and state not in known}


def _mapped(nodes: Iterable[Node], known: Mapping[Value, int], batch: int) -> dict[Value, int] | None:
    """`known`, and what the nodes make of that; None where that is not mapped."""
    found = dict(known)
    for node in nodes:
        axes = [found.get(value) for value in node.inputs]
        if all(axis is None for axis in axes):
            continue
        for value, axis in zip(node.outputs, roles(node, axes, batch), strict=True):
            if not isinstance(axis, int):
                return None
            found[value] = axis
    return found
