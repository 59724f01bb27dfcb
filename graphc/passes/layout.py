"""Layout: images between kernels lie channels last, however the user writes them.

Before: `%2 = contract %1, %w spec="ncyxij,ocij->noyx"`, `%3 = relu %2`.
After:  `%2 = contract %1, %w spec="ncyxij,ocij->nyxo"`, `%3 = relu %2`; what needs the old order reads a transpose.

A convolution's result is given with the filters' letter innermost, along which vectors run without gaps whatever the
image's size. The order is handed on by whatever can work in it (`_RULES`): elementwise work, pads, slices, windows,
concats, reductions; a contraction takes it as the order of its letters, and everything else gets a transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, copy_node, make_node, with_results
from graphc.ir.op import Elementwise, Generator
from graphc.ir.source import located
from graphc.ops.contraction import letters
from graphc.passes.manager import graph_pass
from graphc.passes.rewrite import grouped, made_by

FEWEST_CHANNELS = 8  # with fewer, vectors along them would be mostly empty

Order = tuple[int, ...]  # stored axis k is the value's axis order[k]


@dataclass(frozen=True, slots=True)
class Laid:
    """A value as it is stored."""

    stored: Value
    order: Order

    @property
    def is_plain(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    @property
    def plain(self) -> Value:
        """The value itself, transposed where it is stored otherwise."""
        return self.stored if self.is_plain else ops.transpose(self.stored, perm=_inverse(self.order))


@graph_pass
def layout(graph: Graph) -> Graph:
    """Store the results of convolutions channels last, and what is computed from them.

    Before: `%2 = contract %1, %w spec="ncyxij,ocij->noyx"`. After: the letters `nyxo`, and a transpose where needed.
    """
    if not any(_channels_last(node) for node in graph.nodes):
        return graph
    laid: dict[Value, Laid] = {}

    def look(value: Value) -> Laid:
        return laid.get(value) or Laid(value, tuple(range(value.type.rank)))

    plain: dict[Value, Value] = {}
    by_rows = _plain_images(graph)

    def as_plain(value: Value) -> Value:
        if value not in plain:
            plain[value] = look(value).plain
        return plain[value]

    for node in graph.nodes:
        with located(node.location):
            given = [look(value) for value in node.inputs]
            found = None
            if node.op.name == "contract":
                found = _contract(node, given)
            elif node not in by_rows and not all(operand.is_plain for operand in given):
                rule = _elementwise if isinstance(node.op.kind, Elementwise) else _RULES.get(node.op.name)
                found = rule(node, given) if rule else None
            if found is not None:
                laid[node.output] = found
                continue
            outputs = copy_node(node, tuple(map(as_plain, node.inputs)))
            laid.update((old, Laid(new, tuple(range(new.type.rank)))) for old, new in zip(node.outputs, outputs))
    return with_results(graph, [as_plain(value) for value in graph.results])


def _inverse(order: Order) -> Order:
    return tuple(order.index(axis) for axis in range(len(order)))


# Contractions --------------------------------------------------------------------------------------------------


def _convolutions(node: Node) -> Iterator[tuple[Node, Order, int]]:
    """(windows, the order of the result with what only the filters have innermost, how many channels these are) for
    each way in which a node is a convolution. A few phases of a place (`phases.split_phases`) stay behind it."""
    if node.op.name != "contract":
        return
    first, second, result = letters(node.attrs["spec"])
    extents = dict(zip(result, node.output.type.extents))
    for value, image, filters in ((node.inputs[0], first, second), (node.inputs[1], second, first)):
        windows = made_by(value, "windows")
        places = [image[axis] for axis in windows.attrs["axes"]] if windows else []
        if windows is None or not all(place in result for place in places):
            continue
        groups: list[str] = []
        for c in result:
            if groups and groups[-1] in places and c not in image and extents[c] < FEWEST_CHANNELS:
                groups[-1] += c
            else:
                groups.append(c)
        groups.sort(key=lambda group: (group[0] in filters, group[0] not in image))
        order = tuple(result.index(c) for group in groups for c in group)
        yield windows, order, prod(extents[group[0]] for group in groups if group[0] in filters)


def _channels_last(node: Node) -> Order | None:
    """The order for the result of a convolution with channels enough; None for other products."""
    plain = tuple(range(node.output.type.rank)) if node.op.name == "contract" else ()
    orders = (order for _, order, channels in _convolutions(node) if channels >= FEWEST_CHANNELS and order != plain)
    return next(orders, None)


def _plain_images(graph: Graph) -> set[Node]:
    """The windows of convolutions with few filters, and the pads below them: their vectors run along the image's rows.

    An image that lies channels last is turned once, when it is padded, rather than gathered for each tap.
    """
    found: set[Node] = set()
    for node in graph.nodes:
        for windows, _, channels in _convolutions(node):
            pad = made_by(windows.inputs[0], "pad")
            found |= {windows, pad} if pad and channels < FEWEST_CHANNELS else set()
    return found


def _contract(node: Node, given: Sequence[Laid]) -> Laid:
    first, second, result = letters(node.attrs["spec"])
    order = _channels_last(node) or _handed_on(node, given) or tuple(range(len(result)))
    parts = ["".join(part[axis] for axis in operand.order) for part, operand in zip((first, second), given)]
    spec = f"{parts[0]},{parts[1]}->{''.join(result[axis] for axis in order)}"
    operands = tuple(operand.stored for operand in given)
    if operands == node.inputs and spec == node.attrs["spec"]:
        return Laid(node.output, order)
    return Laid(ops.contract(*operands, spec=spec), order)


def _handed_on(node: Node, given: Sequence[Laid]) -> Order | None:
    """The order for a product with an image that is laid: its letters as they lie, then those of the other operand."""
    *parts, result = letters(node.attrs["spec"])
    images = [number for number, operand in enumerate(given) if not operand.is_plain]
    if len(images) != 1:
        return None
    (number,) = images
    image = "".join(parts[number][axis] for axis in given[number].order)
    order = sorted(range(len(result)), key=lambda a: image.index(result[a]) if result[a] in image else len(image))
    return tuple(order)


# What works in any order ---------------------------------------------------------------------------------------


def _elementwise(node: Node, given: Sequence[Laid]) -> Laid:
    order, operands = _together(given)
    return Laid(make_node(node.op, operands, node.attrs, node.location).output, order)


def _together(given: Sequence[Laid]) -> tuple[Order, list[Value]]:
    """All operands in the order other than the plain one in which most bytes lie already: what is plain here is plain
    by default."""
    weights: dict[Order, int] = {}
    for operand in given:
        if not operand.is_plain:
            weights[operand.order] = weights.get(operand.order, 0) + operand.stored.type.nbytes
    order = max(weights, key=lambda key: weights[key])
    return order, [_brought(operand, order) for operand in given]


def _is_free(value: Value) -> bool:
    """Whether a value can be had in any order at once: a repetition, or what follows from positions."""
    node = value.node
    if node is None:
        return False
    if isinstance(node.op.kind, Elementwise):
        return all(map(_is_free, node.inputs))
    return isinstance(node.op.kind, Generator) or node.op.name == "broadcast"


def _brought(operand: Laid, order: Order) -> Value:
    """An operand in some order."""
    if operand.order == order:
        return operand.stored
    if operand.is_plain and _is_free(operand.stored):
        return _permuted(operand.stored, order)
    return ops.transpose(operand.stored, perm=[operand.order.index(axis) for axis in order])


def _permuted(value: Value, order: Order) -> Value:
    """transpose(value, order), made anew in that order where that costs nothing."""
    node = value.node
    assert node is not None
    shape, inverse = tuple(value.shape[axis] for axis in order), _inverse(order)
    if isinstance(node.op.kind, Elementwise):
        operands = [_permuted(operand, order) for operand in node.inputs]
        return make_node(node.op, operands, node.attrs, node.location).output
    if node.op.name == "iota":
        return ops.iota(shape=shape, axis=inverse[node.attrs["axis"]], dtype=value.dtype)
    if node.op.name == "broadcast":
        places = [inverse[axis] for axis in node.attrs["axes"]]
        perm = sorted(range(len(places)), key=places.__getitem__)
        (x,) = node.inputs
        source = x if perm == list(range(len(perm))) else ops.transpose(x, perm=perm)
        return ops.broadcast(source, shape=shape, axes=sorted(places))
    return ops.transpose(value, perm=order)


def _broadcast(node: Node, given: Sequence[Laid]) -> Laid:
    """New axes stand behind those of the operand."""
    (x,), axes = given, node.attrs["axes"]
    order = tuple(axes[axis] for axis in x.order)
    order += tuple(axis for axis in range(node.output.type.rank) if axis not in order)
    shape = [node.output.shape[axis] for axis in order]
    return Laid(ops.broadcast(x.stored, shape=shape, axes=range(len(axes))), order)


def _transpose(node: Node, given: Sequence[Laid]) -> Laid:
    inverse = _inverse(node.attrs["perm"])
    return Laid(given[0].stored, tuple(inverse[axis] for axis in given[0].order))


def _reduce(node: Node, given: Sequence[Laid]) -> Laid:
    (x,), axes = given, node.attrs["axes"]
    kept = [axis for axis in range(len(x.order)) if axis not in axes]
    order = tuple(kept.index(axis) for axis in x.order if axis in kept)
    stored = tuple(sorted(x.order.index(axis) for axis in axes))
    if node.op.name == "reduce_sum":
        return Laid(_sum(x.stored, stored), order)
    return Laid(make_node(node.op, (x.stored,), {**node.attrs, "axes": stored}).output, order)


def _sum(x: Value, axes: Sequence[int]) -> Value:
    """The sum of a reshaped product, where that splits or joins its letters, is taken of the product itself, whose
    kernel can then find it."""
    view, extents = made_by(x, "reshape"), x.type.extents
    if view is None or made_by(view.inputs[0], "contract") is None or any(extents[axis] == 1 for axis in axes):
        return ops.reduce_sum(x, axes=axes)
    groups = grouped(view.inputs[0].type.extents, extents)
    if any(0 < len(set(after) & set(axes)) < len(after) for _, after in groups):
        return ops.reduce_sum(x, axes=axes)
    summed = sorted(axis for before, after in groups if after[0] in axes for axis in before)
    shape = [extent for axis, extent in enumerate(extents) if axis not in axes]
    return ops.reshape(ops.reduce_sum(view.inputs[0], axes=summed), shape=shape)


def _per_axis(*names: str) -> Callable[[Node, Sequence[Laid]], Laid]:
    """A movement with attributes that have an entry for each axis."""

    def rule(node: Node, given: Sequence[Laid]) -> Laid:
        (x,) = given
        attrs = {**node.attrs, **{name: tuple(node.attrs[name][axis] for axis in x.order) for name in names}}
        return Laid(make_node(node.op, (x.stored,), attrs).output, x.order)

    return rule


def _reverse(node: Node, given: Sequence[Laid]) -> Laid:
    (x,) = given
    axes = sorted(x.order.index(axis) for axis in node.attrs["axes"])
    return Laid(ops.reverse(x.stored, axes=axes), x.order)


def _windows(node: Node, given: Sequence[Laid]) -> Laid | None:
    """The places within windows stay behind everything else."""
    (x,), rank = given, node.output.type.rank - (len(node.attrs["axes"]) if node.op.name == "windows" else 0)
    count = len(node.attrs["axes"])
    last = tuple(range(rank, rank + count)) if node.op.name == "windows" else tuple(range(rank - count, rank))
    if node.op.name == "unwindows" and x.order[-count:] != last:
        return None
    attrs = {**node.attrs, "axes": tuple(x.order.index(axis) for axis in node.attrs["axes"])}
    order = (*x.order, *last) if node.op.name == "windows" else x.order
    return Laid(make_node(node.op, (x.stored,), attrs).output, order)


def _reshape(node: Node, given: Sequence[Laid]) -> Laid | None:
    """Where each axis is split, or axes are joined that also lie side by side; axes of one element lie anywhere."""
    (x,) = given
    before, after = node.inputs[0].type.extents, node.output.type.extents
    if 0 in before:
        return None
    groups = {first[0]: (first, second) for first, second in grouped(before, after)}
    found = [groups[axis] for axis in x.order if axis in groups]
    wanted = [axis for first, _ in found for axis in first]
    if wanted != [axis for axis in x.order if before[axis] != 1]:
        return None
    order = [axis for _, second in found for axis in second]
    for axis, extent in enumerate(after):
        if extent == 1:
            order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    return Laid(ops.reshape(x.stored, shape=[node.output.shape[axis] for axis in order]), tuple(order))


def _concat(node: Node, given: Sequence[Laid]) -> Laid:
    order, operands = _together(given)
    return Laid(ops.concat(*operands, axis=order.index(node.attrs["axis"])), order)


def _same(node: Node, given: Sequence[Laid]) -> Laid:
    return Laid(make_node(node.op, (given[0].stored,), node.attrs).output, given[0].order)


_RULES: dict[str, Callable[[Node, Sequence[Laid]], Laid | None]] = {
    "broadcast": _broadcast,
    "transpose": _transpose,
    "pad": _per_axis("low", "high", "interior"),
    "slice": _per_axis("start", "stop", "step"),
    "reverse": _reverse,
    "windows": _windows,
    "unwindows": _windows,
    "reshape": _reshape,
    "concat": _concat,
    "stop_gradient": _same,
    **dict.fromkeys(("reduce_sum", "reduce_prod", "reduce_max", "reduce_first_max", "reduce_min"), _reduce),
    **dict.fromkeys(("reduce_all", "reduce_any"), _reduce),
}
