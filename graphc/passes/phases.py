"""Convolutions of an image with gaps (zeros between its elements) are cut into phases, which skip the gaps.

The input gradient of a convolution with stride s, and a transposed convolution, slide a window of k taps over an image
q with s - 1 zeros between its elements: q[l + y s] = a[y], out[h] = sum over j of q[h + j] w[j]. Most products are with
zeros. Let h = m s + r with 0 <= r < s, and l = A s + B with 0 <= B < s. Only the taps j = t s + B - r meet an element,
the one at y = m - A + t, so that

    out[m s + r] = sum over t of a[m - A + t] w[t s + B - r]

Every s-th place of the result is a convolution of `a` itself with every s-th tap. All of them are one contraction,
which has the phase r as one more letter behind its place; a reshape joins the two.

Phases above B need a tap of zeros in front, t = 0, so that all have the same. With s - 1 - B places more before the
result's first, which are cut off again, B is s - 1 and none is needed: whichever of the two makes fewer products.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, copy_node, rebuild
from graphc.ops.contraction import letters
from graphc.passes.convolution import part_of
from graphc.passes.manager import graph_pass


@graph_pass
def split_phases(graph: Graph) -> Graph:
    """Replace convolutions of images with gaps by convolutions of the images.

    Before: `%1 = pad %0 interior=[1]`, `%2 = windows %1 size=[3]`, `%3 = contract %2, %w spec="oxi,oic->xc"`. After:
    windows of 2 of `%0`, `contract .. spec="oxi,oiac->xac"`, where a is the phase, and a reshape.
    """

    def split(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        outputs = copy_node(node, inputs)
        found = _split(outputs[0]) if node.op.name == "contract" else None
        return outputs if found is None else (found,)

    return rebuild(graph, split)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis with gaps."""

    place: str  # its letter in the image and in the result
    tap: str  # its letter in the windows and in the filters
    phase: str  # a letter of its own
    number: int  # of the image's axis
    elements: int  # of the image
    count: int  # places in the result
    size: int  # taps
    low: int  # zeros before the first element
    stride: int  # from element to element
    skipped: int = 0  # places in the result before the first that is asked for

    def shifted(self) -> Axis:
        """The axis with so many more places that no phase needs a tap of zeros in front."""
        more = self.front
        return replace(self, count=self.count + more, low=self.low + more, skipped=more)

    @property
    def front(self) -> int:
        """Zero taps to add, so that tap t s + s - 1 - r of the filters is tap t of phase r."""
        return self.stride - 1 - self.low % self.stride

    @property
    def taps(self) -> int:
        """Of each phase."""
        return -(-(self.size + self.front) // self.stride)

    @property
    def places(self) -> int:
        """Of each phase."""
        return -(-self.count // self.stride)

    @property
    def margins(self) -> tuple[int, int]:
        """Zeros to add around the image's elements; below 0: elements that no window meets."""
        before = self.low // self.stride
        return before, self.places + self.taps - 1 - before - self.elements


def _split(result: Value) -> Value | None:
    node = result.node
    assert node is not None
    (a, b), (first, second, out) = node.inputs, letters(node.attrs["spec"])
    if not _has_gaps(a):
        (a, first), (b, second) = (b, second), (a, first)
    axes = _axes(a, first, second, out) if _has_gaps(a) else []
    if not axes:
        return None
    image, filters = _windows(a, axes), _filters(b, second, axes)
    phase = {axis.place: axis.phase for axis in axes}
    spec = f"{first},{_with_phases(second, axes)}->{''.join(c + phase.get(c, '') for c in out)}"
    found = ops.contract(image, filters, spec=spec)
    whole = {axis.place: axis.places * axis.stride for axis in axes}
    skipped = {axis.place: axis.skipped for axis in axes}
    found = ops.reshape(found, shape=[whole.get(c, extent) for c, extent in zip(out, result.shape)])
    starts = [skipped.get(c, 0) for c in out]
    return part_of(found, [(start, start + extent) for start, extent in zip(starts, result.shape)])


def _has_gaps(value: Value) -> bool:
    """Whether a value is windows of an image with zeros between its elements."""
    windows = value.node
    if windows is None or windows.op.name != "windows":
        return False
    pad = windows.inputs[0].node
    return pad is not None and pad.op.name == "pad" and any(pad.attrs["interior"]) and pad.attrs["value"] == 0


def _axes(windows: Value, first: str, second: str, out: str) -> list[Axis]:
    """The axes to cut: with gaps, more than one tap, dense windows at every place, and taps that filters have and a sum
    runs over."""
    assert windows.node is not None
    attrs, pad = windows.node.attrs, windows.node.inputs[0].node
    assert pad is not None
    rank, unused = pad.output.type.rank, _unused(first + second)
    found = []
    for n, (number, size, stride, dilation) in enumerate(
        zip(attrs["axes"], attrs["size"], attrs["stride"], attrs["dilation"], strict=True)
    ):
        place, tap, gap = first[number], first[rank + n], pad.attrs["interior"][number]
        is_summed = tap in second and tap not in out
        if gap and size > 1 and stride == dilation == 1 and place in out and place not in second and is_summed:
            elements, count = pad.inputs[0].shape[number], windows.shape[number]
            low = pad.attrs["low"][number]
            axis = Axis(place, tap, next(unused), number, elements, count, size, low, gap + 1)
            found.append(min(axis, axis.shifted(), key=lambda choice: choice.places * choice.taps))
    return found


def _unused(known: str) -> Iterator[str]:
    return (c for c in string.ascii_letters if c not in known)


def _windows(windows: Value, axes: Sequence[Axis]) -> Value:
    """Windows of the image itself, along the axes to cut."""
    assert windows.node is not None
    attrs, pad = windows.node.attrs, windows.node.inputs[0].node
    assert pad is not None
    (image,) = pad.inputs
    low, high, interior = (list(pad.attrs[name]) for name in ("low", "high", "interior"))
    size = list(attrs["size"])
    ranges: list[tuple[int, int]] = [(0, extent) for extent in image.shape]
    for axis in axes:
        before, behind = axis.margins
        ranges[axis.number] = max(0, -before), axis.elements + min(0, behind)
        low[axis.number], high[axis.number], interior[axis.number] = max(0, before), max(0, behind), 0
        size[attrs["axes"].index(axis.number)] = axis.taps
    padded = ops.pad(part_of(image, ranges), low=low, high=high, interior=interior, value=0.0)
    return ops.windows(padded, **{**attrs, "size": tuple(size)})


def _filters(b: Value, spec: str, axes: Sequence[Axis]) -> Value:
    """Filters [.., taps of a phase, phases, ..]: taps stand before the last letter, which stays innermost."""
    by_tap = {axis.tap: axis for axis in axes}
    low = [by_tap[c].front if c in by_tap else 0 for c in spec]
    high = [a.taps * a.stride - a.size - a.front if (a := by_tap.get(c)) else 0 for c in spec]
    b = ops.pad(b, low=low, high=high, interior=[0] * len(spec), value=0.0)
    parts = [(by_tap[c].taps, by_tap[c].stride) if c in by_tap else (extent,) for c, extent in zip(spec, b.shape)]
    split = ops.reshape(b, shape=[extent for part in parts for extent in part])
    named = "".join(c + by_tap[c].phase if c in by_tap else c for c in spec)
    order = [named.index(c) for c in _with_phases(spec, axes)]
    return ops.reverse(ops.transpose(split, perm=order), axes=sorted(order.index(named.index(a.phase)) for a in axes))


def _with_phases(spec: str, axes: Sequence[Axis]) -> str:
    """The filters' letters: those that are no taps, but for the last, which stands behind taps and phases."""
    by_tap = {axis.tap: axis for axis in axes}
    others = [c for c in spec if c not in by_tap]
    return "".join([*others[:-1], *(axis.tap + axis.phase for axis in axes), *others[-1:]])
