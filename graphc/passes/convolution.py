"""Equations of windows, pads and contractions: a gradient of a convolution is a convolution.

As in `movements`, each takes a node of the op that it is entered under, and returns what stands for it, or None.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc import ops
from graphc.ir.graph import Node, Value
from graphc.ops.contraction import letters
from graphc.passes.fold import number_of
from graphc.passes.rewrite import made_by


def sum_of_unwindows(node: Node) -> Value | None:
    """sum(unwindows(contract(g, w))) = contract(windows(pad(g)), reverse(w)): a convolution's gradient of its input

    With stride s, dilation d and k taps: out[h] = sum over y s + i d = h of g[y] w[i]. Let q be g with s - 1 zeros
    between its elements and d (k - 1) zeros before and so many after that out has its extent: q[y s + d (k - 1)] =
    g[y]. Then out[h] = sum over i of q[h + d i] w[k - 1 - i].
    """
    inner = made_by(node.inputs[0], "unwindows")
    product = made_by(inner.inputs[0], "contract") if inner else None
    if inner is None or product is None:
        return None
    axes, rank = inner.attrs["axes"], inner.output.type.rank - len(inner.attrs["axes"])
    if sorted(node.attrs["axes"]) != list(range(rank, rank + len(axes))):
        return None
    (a, b), (first, second, result) = product.inputs, letters(product.attrs["spec"])
    places, taps = [result[axis] for axis in axes], result[rank:]
    if not _apart(first, second, places, taps):
        (a, first), (b, second) = (b, second), (a, first)
        if not _apart(first, second, places, taps):
            return None
    low, high, interior = ([0] * len(first) for _ in range(3))
    wide, after = [], ([0] * rank, [0] * rank)  # axes with more than one tap, and zeros that others get at the end
    steps = zip(axes, places, taps, inner.attrs["extents"], inner.attrs["stride"], inner.attrs["dilation"])
    for axis, place, tap, extent, stride, dilation in steps:
        count, size = a.shape[first.index(place)], b.shape[second.index(tap)]
        if not isinstance(extent, int) or not isinstance(count, int):
            return None
        rest = extent - (count - 1) * stride - 1
        if size == 1:
            after[0][axis], after[1][axis] = rest, stride - 1
            continue
        spot = first.index(place)
        low[spot], high[spot], interior[spot] = dilation * (size - 1), rest, stride - 1
        wide.append((spot, tap, size, dilation))
    if wide:
        padded = ops.pad(a, low=low, high=high, interior=interior, value=0.0)
        spots, _, sizes, dilations = zip(*wide)
        a = ops.windows(padded, axes=spots, size=sizes, stride=(1,) * len(wide), dilation=dilations)
        b = ops.reverse(b, axes=[second.index(tap) for _, tap, _, _ in wide])
    kept = "".join(tap for _, tap, _, _ in wide)
    lone = [tap for tap in taps if tap not in kept]
    b = ops.reshape(b, shape=[d for c, d in zip(second, b.shape) if c not in lone])
    second = "".join(c for c in second if c not in lone)
    found = ops.contract(a, b, spec=f"{first}{kept},{second}->{result[:rank]}")
    if not any((*after[0], *after[1])):
        return found
    return ops.pad(found, low=(0,) * rank, high=after[0], interior=after[1], value=0.0)


def _apart(first: str, second: str, places: Sequence[str], taps: str) -> bool:
    """Whether one operand alone has the places and the other alone the taps."""
    return not set(places) & set(second) and set(taps) <= set(second) and not set(taps) & set(first)


def slice_of_contract(node: Node) -> Value | None:
    """slice(contract(a, b)) = contract(slice(a), slice(b))"""
    inner = made_by(node.inputs[0], "contract")
    if inner is None or any(step != 1 for step in node.attrs["step"]):
        return None
    *parts, result = letters(inner.attrs["spec"])
    ranges = dict(zip(result, zip(node.attrs["start"], node.attrs["stop"])))
    operands = []
    for value, part in zip(inner.inputs, parts, strict=True):
        found = [ranges.get(c, (0, extent)) for c, extent in zip(part, value.shape)]
        operands.append(part_of(value, found))
    return ops.contract(*operands, spec=inner.attrs["spec"])


def contract_of_zeros(node: Node) -> Value | None:
    """contract(a, concat(0, b)) = contract(slice(a), b) where the sum is over the axis that was made longer

    As in `phases`, zeros that the program puts in are not multiplied: what they would meet is not looked at, so that
    a NaN there is not passed on.
    """
    *parts, result = letters(node.attrs["spec"])
    for one, other in ((0, 1), (1, 0)):
        longer = made_by(node.inputs[one], "concat")
        letter = parts[one][longer.attrs["axis"]] if longer else ""
        if longer is None or letter in result:
            continue
        axis, pieces = longer.attrs["axis"], list(longer.inputs)
        first = last = 0
        while len(pieces) > 1 and number_of(pieces[0]) == 0:
            first += pieces.pop(0).shape[axis]
        while len(pieces) > 1 and number_of(pieces[-1]) == 0:
            last += pieces.pop().shape[axis]
        if len(pieces) == len(longer.inputs):
            continue
        operands = list(node.inputs)
        operands[one] = ops.concat(*pieces, axis=axis) if len(pieces) > 1 else pieces[0]
        a = operands[other]
        ranges = [(first, n - last) if c == letter else (0, n) for c, n in zip(parts[other], a.shape, strict=True)]
        operands[other] = part_of(a, ranges)
        return ops.contract(*operands, spec=node.attrs["spec"])
    return None


def slice_of_windows(node: Node) -> Value | None:
    """slice(windows(x)) = windows(slice(x))"""
    inner = made_by(node.inputs[0], "windows")
    if inner is None or any(step != 1 for step in node.attrs["step"]):
        return None
    (x,), attrs = inner.inputs, inner.attrs
    ranges = list(zip(node.attrs["start"], node.attrs["stop"]))
    found, sizes = ranges[: x.type.rank], ranges[x.type.rank :]
    for axis, stride, dilation, (first, last) in zip(attrs["axes"], attrs["stride"], attrs["dilation"], sizes):
        start, stop = found[axis]
        found[axis] = start * stride + first * dilation, (stop - 1) * stride + (last - 1) * dilation + 1
    size = [last - first for first, last in sizes]
    return ops.windows(part_of(x, found), **{**attrs, "size": size})


def slice_of_pad(node: Node) -> Value | None:
    """slice(pad(x)) = pad(slice(x)), with less padding"""
    inner = made_by(node.inputs[0], "pad")
    if inner is None or any(step != 1 for step in node.attrs["step"]):
        return None
    (x,) = inner.inputs
    ranges, low, high = [], [], []
    for extent, before, between, start, stop in zip(
        x.shape, inner.attrs["low"], inner.attrs["interior"], node.attrs["start"], node.attrs["stop"]
    ):
        if not isinstance(extent, int) or not isinstance(stop, int):
            return None
        step = between + 1
        first = max(0, -((before - start) // step))
        last = min(extent, (stop - 1 - before) // step + 1)
        if first >= last:
            return None
        ranges.append((first, last))
        low.append(before + first * step - start)
        high.append(stop - before - (last - 1) * step - 1)
    return ops.pad(part_of(x, ranges), low=low, high=high, interior=inner.attrs["interior"], value=inner.attrs["value"])


def slice_of_slice(node: Node) -> Value | None:
    """slice(slice(x)) = slice(x)"""
    inner = made_by(node.inputs[0], "slice")
    if inner is None or any(step != 1 for step in inner.attrs["step"]):
        return None
    start = [a + b for a, b in zip(inner.attrs["start"], node.attrs["start"])]
    stop = [a + b for a, b in zip(inner.attrs["start"], node.attrs["stop"])]
    return ops.slice(inner.inputs[0], start=start, stop=stop, step=node.attrs["step"])


def part_of(x: Value, ranges: Sequence[tuple[int, int]]) -> Value:
    """The elements from a first to a last along each axis; the value itself where that is all."""
    if all(r == (0, extent) for r, extent in zip(ranges, x.shape)):
        return x
    start, stop = zip(*ranges)
    return ops.slice(x, start=start, stop=stop, step=(1,) * len(start))
