"""Tensors in another shape, in another order, or together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc import ops
from graphc.errors import ArgumentError, ShapeError
from graphc.frontend.functional.reductions import Axes, axes_of
from graphc.frontend.tensor import Tensor, as_tensor, axis_of, broadcast_to, promote, reshape
from graphc.ir import source
from graphc.ir.dim import Dim


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim (inclusive) as one."""
    first, last = axis_of(start_dim, x.ndim), axis_of(end_dim, x.ndim)
    size: Dim = 1
    for d in x.shape[first : last + 1]:
        size = size * d
    return reshape(x, (*x.shape[:first], size, *x.shape[last + 1 :]))


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The axes in the order `axes`, by default the opposite one (NumPy's transpose, torch's permute)."""
    return x.transpose(*(axes or ()))


permute = transpose


def swapaxes(x: Tensor, a: int, b: int) -> Tensor:
    """Axes a and b exchanged."""
    order = list(range(x.ndim))
    first, second = axis_of(a, x.ndim), axis_of(b, x.ndim)
    order[first], order[second] = second, first
    return x.transpose(*order)


def expand_dims(x: Tensor, axis: int) -> Tensor:
    """A new axis of extent 1 at `axis` of the result."""
    at = axis_of(axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


unsqueeze = expand_dims


def squeeze(x: Tensor, axis: Axes = None) -> Tensor:
    """Without the axes of extent 1, or without those given."""
    axes = [a for a, d in enumerate(x.shape) if d == 1] if axis is None else axes_of(axis, x.ndim)
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"axis {a} of {x.type} is not 1", source.here())
    return reshape(x, tuple(d for a, d in enumerate(x.shape) if a not in axes))


def concat(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors one after the other along `axis`."""
    found = promote(*tensors)
    return Tensor(ops.concat(*(t.value for t in found), axis=axis_of(axis, found[0].ndim)))


concatenate = cat = concat


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors side by side along a new axis."""
    return concat([expand_dims(as_tensor(t), axis) for t in tensors], axis)


def split(x: Tensor, size: int, axis: int = 0) -> list[Tensor]:
    """Pieces of `size` along `axis`, the last one smaller where it must be (torch's split)."""
    at = axis_of(axis, x.ndim)
    extent = x.shape[at]
    if not isinstance(extent, int) or size < 1:
        raise ShapeError(f"cannot split axis {at} of {x.type} into pieces of {size}", source.here())
    lead: tuple[slice, ...] = (slice(None),) * at
    return [x[(*lead, slice(first, first + size))] for first in range(0, extent, size)]


def chunk(x: Tensor, chunks: int, axis: int = 0) -> list[Tensor]:
    """About `chunks` equal pieces along `axis` (torch's chunk)."""
    extent = x.shape[axis_of(axis, x.ndim)]
    if not isinstance(extent, int):
        raise ShapeError(f"cannot cut the dimension {extent} into chunks", source.here())
    return split(x, -(-extent // chunks), axis)


def pad(x: Any, width: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`value` before and after each axis: width[axis] = (before, after), as NumPy's pad."""
    found = as_tensor(x)
    if len(width) != found.ndim:
        raise ArgumentError(f"pad needs {found.ndim} pairs, not {len(width)}", source.here())
    low, high = [w[0] for w in width], [w[1] for w in width]
    return Tensor(ops.pad(found.value, low=low, high=high, interior=(0,) * found.ndim, value=value))


def flip(x: Tensor, axis: Axes = None) -> Tensor:
    """The elements in opposite order along `axis`."""
    return Tensor(ops.reverse(x.value, axes=axes_of(axis, x.ndim)))


def ravel(x: Tensor) -> Tensor:
    """The elements, row by row, along one axis."""
    return reshape(x, (-1,))


def moveaxis(x: Tensor, origin: int, destination: int) -> Tensor:
    """One axis in another place, the others in their order."""
    order = [a for a in range(x.ndim) if a != axis_of(origin, x.ndim)]
    order.insert(axis_of(destination, x.ndim), axis_of(origin, x.ndim))
    return x.transpose(*order)


def unbind(x: Tensor, axis: int = 0) -> list[Tensor]:
    """What stands at each position along `axis`, without that axis."""
    at = axis_of(axis, x.ndim)
    return [squeeze(piece, at) for piece in split(x, 1, at)]


def roll(x: Tensor, shift: int, axis: int) -> Tensor:
    """The elements moved by `shift` along `axis`; what leaves at one end enters at the other."""
    at = axis_of(axis, x.ndim)
    extent = x.shape[at]
    if not isinstance(extent, int):
        raise ShapeError(f"cannot roll the dimension {extent}", source.here())
    first = -shift % extent if extent else 0
    lead = (slice(None),) * at
    return concat([x[(*lead, slice(first, None))], x[(*lead, slice(first))]], at) if first else x


def tile(x: Tensor, repeats: int | Sequence[int]) -> Tensor:
    """x several times along each axis (NumPy's tile, torch's repeat)."""
    times = [repeats] if isinstance(repeats, int) else list(repeats)
    rank = max(x.ndim, len(times))
    times = [1] * (rank - len(times)) + times
    shape = (1,) * (rank - x.ndim) + x.shape
    wide = broadcast_to(
        reshape(x, [d for e in shape for d in (1, e)]), tuple(d for t, e in zip(times, shape) for d in (t, e))
    )
    return reshape(wide, [t * e for t, e in zip(times, shape)])


def repeat_interleave(x: Tensor, repeats: int, axis: int) -> Tensor:
    """Each element `repeats` times along `axis`, side by side (NumPy's repeat)."""
    at = axis_of(axis, x.ndim)
    wide = expand_dims(x, at + 1)
    wide = broadcast_to(wide, (*x.shape[: at + 1], repeats, *x.shape[at + 1 :]))
    return reshape(wide, (*x.shape[:at], x.shape[at] * repeats, *x.shape[at + 1 :]))
