"""Indexing with NumPy's meaning: ints, slices, None, Ellipsis, and integers or bools in arrays.

Slices and ints move elements; arrays of positions gather. Several of them are one position in the axes laid flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import ops
from graphc.errors import ArgumentError, DTypeError, ShapeError
from graphc.frontend.tensor import Tensor, as_tensor, axis_of, binary, broadcast_shapes, broadcast_to, convert, reshape
from graphc.ir import dim as dims
from graphc.ir import source
from graphc.ir.dim import Dim
from graphc.ir.types import DType

Array = np.ndarray[Any, Any]


def index(x: Tensor, key: Any) -> Tensor:
    """`x[key]` for ints, slices with positive or negative steps, None, Ellipsis, and arrays.

    Integer tensors, arrays and lists gather, as in NumPy; arrays of bools, which must be known, select (of a named
    dimension without a look at its size, so long as what they select is there). Negative
    positions count from the end. Known positions outside raise ArgumentError here, others IndexRangeError when a
    step runs.
    """
    keys = _complete(x, key)
    arrays = [k for k in keys if not _is_plain(k)]
    if len(arrays) > 1 or (arrays and not _is_run(keys)):
        keys = [as_tensor(np.asarray(k)) if isinstance(k, int | np.integer) else k for k in keys]
    axes = [k for k in keys if k is not None]
    bounds = [_bounds(k, extent) for k, extent in zip(axes, x.shape, strict=True)]
    value, everything = x.value, [(0, extent, 1) for extent in x.shape]
    if bounds != everything:
        steps = [abs(step) for _, _, step in bounds]
        value = ops.slice(value, start=[b[0] for b in bounds], stop=[b[1] for b in bounds], step=steps)
    backwards = [axis for axis, (_, _, step) in enumerate(bounds) if step < 0]
    if backwards:
        value = ops.reverse(value, axes=backwards)
    extents, shape, gathered = iter(value.shape), list[Dim](), dict[int, Any]()
    for k in keys:
        extent = 1 if k is None else next(extents)
        if not _is_plain(k):
            gathered[len(shape)] = k
        if not _is_place(k):
            shape.append(extent)
    if tuple(shape) != value.shape:
        value = ops.reshape(value, shape=shape)
    return _gathered(Tensor(value), gathered) if gathered else Tensor(value)


def _is_plain(key: Any) -> bool:
    return isinstance(key, slice | None) or _is_place(key)


def _is_place(key: Any) -> bool:
    return isinstance(key, int | np.integer | dims.Polynomial)


def _is_run(keys: Sequence[Any]) -> bool:
    """Whether arrays and ints stand side by side: what they choose then stands in their place, and else in front."""
    places = [n for n, k in enumerate(keys) if k is not None and not isinstance(k, slice)]
    return places == list(range(places[0], places[-1] + 1))


def _gathered(x: Tensor, chosen: dict[int, Any]) -> Tensor:
    """Elements at the positions `chosen` along axes, which are taken together."""
    axes = list(chosen)
    at = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    rest = [a for a in range(x.ndim) if a not in chosen]
    order = [*rest[:at], *axes, *rest[at:]]
    if order != list(range(x.ndim)):
        x = x.transpose(*order)
    found = [positions(k, x.shape[at + n]) for n, k in enumerate(chosen.values())]
    shape, place = broadcast_shapes(*found), found[0]
    for n, following in enumerate(found[1:], at + 1):
        size = x.shape[n]
        stride = size if isinstance(size, int) else Tensor(ops.extent(dim=size, dtype=DType.I64))
        place = place * stride + following
    if len(axes) > 1:
        x = reshape(x, (*x.shape[:at], dims.product(x.shape[at : at + len(axes)]), *x.shape[at + len(axes) :]))
    return Tensor(ops.gather(x.value, broadcast_to(place, shape).value, axis=at))


def positions(indices: Any, extent: Dim, what: str = "index") -> Tensor:
    """Positions in an axis of `extent` from integers that may count from the end, checked here or when a step runs."""
    if not isinstance(indices, Tensor) and isinstance(extent, int):
        array = np.asarray(indices)
        if array.dtype.kind in "iu" and array.size:
            low, high = int(array.min()), int(array.max())
            if low < -extent or high >= extent:
                raise ArgumentError(
                    f"{what} {low if low < -extent else high} is outside an axis of {extent}", source.here()
                )
            return as_tensor(np.where(array < 0, array + extent, array).astype(np.int64))
    found = as_tensor(np.zeros(0, np.int64) if isinstance(indices, list) and not indices else indices)
    if not found.dtype.is_int:
        raise DTypeError(f"positions must be integers, not {found.type}", source.here())
    wide = convert(found, DType.I64)
    size = as_tensor(extent) if isinstance(extent, int) else Tensor(ops.extent(dim=extent, dtype=DType.I64))
    zero = ops.full_like(wide.value, 0)
    counted = ops.where(ops.less(wide.value, zero), binary(ops.add, wide, size).value, wide.value)
    return Tensor(ops.check_index(counted, size=extent, what=what))


def take_along(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """x at `indices` along `axis`, elsewhere at the same place (NumPy's take_along_axis, torch's gather)."""
    at = axis_of(axis, x.ndim)
    if indices.ndim != x.ndim:
        raise ShapeError(f"positions {indices.type} need as many axes as {x.type}", source.here())
    shape = indices.shape
    here = [Tensor(ops.iota(shape=shape, axis=a, dtype=DType.I64)) for a in range(x.ndim)]
    return _gathered(x, {a: indices if a == at else here[a] for a in range(x.ndim)})


def _complete(x: Tensor, key: Any) -> list[Any]:
    """The keys with one for each axis, None where an axis is new; bools become the positions that they choose."""
    keys = key if isinstance(key, tuple) else (key,)
    ellipses = [n for n, k in enumerate(keys) if k is Ellipsis]
    place = ellipses[0] if ellipses else len(keys)
    first, last = keys[:place], keys[place + 1 :]
    used = sum(map(_axes_taken, (*first, *last)))
    if used > x.ndim or len(ellipses) > 1:
        raise ArgumentError(f"{x.type} has {x.ndim} axes; [{', '.join(map(str, keys))}] has more", source.here())
    rest = [slice(None)] * (x.ndim - used)
    found, axis = list[Any](), 0
    for k in (*first, *rest, *last):
        taken = _axes_taken(k)
        found += _positions_of_bools(k, x.shape[axis : axis + taken])
        axis += taken
    return found


def _axes_taken(key: Any) -> int:
    """How many axes a key is about."""
    if isinstance(key, list | np.ndarray):
        array = np.asarray(key)
        return array.ndim if array.dtype == np.bool_ else 1
    return int(key is not None)


def _positions_of_bools(key: Any, extents: Sequence[Dim]) -> tuple[Any, ...]:
    """A key, or the positions that bools choose along axes of these extents."""
    if isinstance(key, Tensor) and key.dtype is DType.BOOL:
        raise DTypeError(f"{key.type} selects a number of elements that is not known; use where()", source.here())
    if isinstance(key, bool | np.bool_) or (isinstance(key, np.ndarray) and key.dtype == np.bool_ and not key.ndim):
        raise ArgumentError("True and False are no positions; use None for a new axis", source.here())
    if isinstance(key, list | np.ndarray):
        array = np.asarray(key)
        if array.dtype != np.bool_:
            return (key,)
        for axis, (given, extent) in enumerate(zip(array.shape, extents, strict=True)):
            if isinstance(extent, int) and given != extent:
                raise ArgumentError(f"{given} bools choose along axis {axis} of {extent} elements", source.here())
        return tuple(np.nonzero(array))
    return (key,)


def _bounds(key: Any, extent: Dim) -> tuple[Dim, Dim, int]:
    """First element, the one behind the last, and the step (negative: taken in opposite order)."""
    if isinstance(key, slice):
        if key.step == 0:
            raise ArgumentError("the step of a slice must not be 0", source.here())
        if key == slice(None):
            return 0, extent, 1
        if isinstance(extent, int) and not any(isinstance(n, dims.Polynomial) for n in (key.start, key.stop)):
            chosen = range(extent)[key]
            if not len(chosen):
                return 0, 0, 1
            low, high = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
            return low, high + 1, key.step or 1
        if key.step in (None, 1):
            return _from_front(key.start, extent, 0), _from_front(key.stop, extent, extent), 1
        raise ShapeError(f"a slice with a step needs a number, not the dimension {extent}", source.here())
    if isinstance(key, int | np.integer | dims.Polynomial):
        place = _from_front(key, extent, 0)
        if isinstance(place, int) and (place < 0 or (isinstance(extent, int) and place >= extent)):
            raise ArgumentError(f"index {key} is outside an axis of {extent}", source.here())
        return place, place + 1, 1
    return 0, extent, 1


def _from_front(place: Any, extent: Dim, default: Dim) -> Dim:
    """A place that may count from the end, where it is a number; a named dimension never does."""
    if place is None:
        return default
    if isinstance(place, dims.Polynomial):
        return place
    if not isinstance(place, int | np.integer):
        raise ArgumentError(f"a slice begins and ends at whole numbers, not {place!r}", source.here())
    return int(place) if place >= 0 else extent + int(place)
