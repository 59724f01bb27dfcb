"""Movement ops: elements keep their values and change place. Each is one map from an output index to input indices."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

import graphc.ops as ops
from graphc.errors import ArgumentError, ShapeError
from graphc.ir import dim as dims
from graphc.ir.dim import Dim
from graphc.ir.graph import Node, Value
from graphc.ir.index import ZERO, Condition, Index, Piece, divide, flatten, modulo, unflatten
from graphc.ir.op import Movement
from graphc.ir.types import DType, Shape, TensorType, is_extent
from graphc.ops.define import (
    Constructor,
    define,
    require_axes,
    require_dtype,
    require_extents,
    require_length,
    require_number,
    require_whole,
    zero_gradient,
)

Place = tuple[Index, ...]
_range = builtins.slice


def _source(*index: Index) -> tuple[Piece, ...]:
    """The one piece of a movement of a single operand that leaves no gap."""
    return (Piece(0, tuple(index)),)


# reshape --------------------------------------------------------------------------------------------------------


def _reshape_type(x: TensorType, *, shape: Shape) -> TensorType:
    found = x.with_shape(shape)
    if found.size != x.size:
        raise ShapeError(f"{x} has {x.size} elements, shape [{','.join(map(str, shape))}] has {found.size}")
    return found


def _reshape_map(node: Node, index: Place) -> tuple[Piece, ...]:
    (x,) = node.inputs
    return _source(*unflatten(flatten(index, node.output.type.extents), x.type.extents))


reshape: Constructor = define(
    "reshape",
    Movement(_reshape_map),
    _reshape_type,
    lambda x, *, shape: np.reshape(x, shape),
    lambda g, node: (ops.reshape(g, shape=node.inputs[0].shape),),
    "the elements in row-major order as `shape`",
)

# transpose ------------------------------------------------------------------------------------------------------


def _transpose_type(x: TensorType, *, perm: tuple[int, ...]) -> TensorType:
    require_length(x.rank, perm=perm)
    require_axes(perm, x.rank)
    return x.with_shape(tuple(x.shape[p] for p in perm))


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(perm.index(axis) for axis in range(len(perm)))


transpose: Constructor = define(
    "transpose",
    Movement(lambda node, index: _source(*(index[p] for p in _inverse(node.attrs["perm"])))),
    _transpose_type,
    lambda x, *, perm: np.transpose(x, perm),
    lambda g, node: (ops.transpose(g, perm=_inverse(node.attrs["perm"])),),
    "axis i of the result is axis perm[i] of x",
)

# broadcast ------------------------------------------------------------------------------------------------------


def _broadcast_type(x: TensorType, *, shape: Shape, axes: tuple[int, ...]) -> TensorType:
    require_length(x.rank, axes=axes)
    require_axes(axes, len(shape))
    if list(axes) != sorted(axes):
        raise ArgumentError(f"axes {list(axes)} must increase")
    for axis, extent in zip(axes, x.shape, strict=True):
        if extent not in (1, shape[axis]):
            raise ShapeError(f"{x} cannot be broadcast to [{','.join(map(str, shape))}] along axes {list(axes)}")
    return x.with_shape(shape)


def _broadcast_map(node: Node, index: Place) -> tuple[Piece, ...]:
    extents = node.inputs[0].type.extents
    return _source(*(ZERO if e == 1 else index[axis] for e, axis in zip(extents, node.attrs["axes"], strict=True)))


def _broadcast(x: Any, *, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    x = np.asarray(x)
    spread = [1] * len(shape)
    for axis, extent in zip(axes, x.shape, strict=True):
        spread[axis] = extent
    return np.broadcast_to(x.reshape(spread), shape)


def _broadcast_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """The sum over the axes that are new or were stretched."""
    (x,), axes = node.inputs, node.attrs["axes"]
    stretched = {a for a, e in zip(axes, x.shape, strict=True) if e != cotangent.shape[a]}
    summed = tuple(a for a in range(len(cotangent.shape)) if a not in axes or a in stretched)
    total = ops.reduce_sum(cotangent, axes=summed) if summed else cotangent
    return (ops.reshape(total, shape=x.shape) if stretched else total,)


broadcast: Constructor = define(
    "broadcast",
    Movement(_broadcast_map),
    _broadcast_type,
    _broadcast,
    _broadcast_vjp,
    "axis i of x becomes axis axes[i] of `shape`, of equal extent or stretched from 1; the other axes are new",
)

# slice ----------------------------------------------------------------------------------------------------------


def _slice_type(x: TensorType, *, start: tuple[int, ...], stop: Shape, step: tuple[int, ...]) -> TensorType:
    require_length(x.rank, start=start, stop=stop, step=step)
    require_whole(1, step=step)
    return x.with_shape(tuple(map(_sliced, x.shape, start, stop, step)))


def _sliced(extent: Dim, start: Dim, stop: Dim, step: int) -> Dim:
    if not all(map(is_extent, (start, stop - start, extent - stop))):
        raise ArgumentError(f"slice {start}:{stop}:{step} is not within 0:{extent}")
    return dims.floor_div(stop - start + (step - 1), step)


def _slice_map(node: Node, index: Place) -> tuple[Piece, ...]:
    return _source(*(i * k + s for i, s, k in zip(index, node.attrs["start"], node.attrs["step"], strict=True)))


def _slice_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    (x,), start, step = node.inputs, node.attrs["start"], node.attrs["step"]
    last = tuple(s + _dilated(d, k - 1) for d, s, k in zip(cotangent.shape, start, step, strict=True))
    high = tuple(e - d for e, d in zip(x.shape, last, strict=True))
    return (ops.pad(cotangent, low=start, high=high, interior=tuple(k - 1 for k in step), value=0),)


slice: Constructor = define(
    "slice",
    Movement(_slice_map),
    _slice_type,
    lambda x, *, start, stop, step: x[tuple(map(_range, start, stop, step))],
    _slice_vjp,
    "elements start, start + step, ... below stop, along each axis",
)

# pad ------------------------------------------------------------------------------------------------------------


def _pad_type(x: TensorType, *, low: Shape, high: Shape, interior: tuple[int, ...], value: float) -> TensorType:
    require_length(x.rank, low=low, high=high, interior=interior)
    require_whole(0, interior=interior)
    require_number(value, x.dtype)
    if not all(map(is_extent, (*low, *high))):
        raise ArgumentError(f"padding must be whole numbers from 0 on: low={list(low)}, high={list(high)}")
    return x.with_shape(tuple(b + _dilated(d, i) + t for d, b, t, i in zip(x.shape, low, high, interior, strict=True)))


def _dilated(extent: Dim, interior: int) -> Dim:
    """The extent with `interior` elements between neighbours."""
    return extent if interior == 0 or extent == 0 else extent + (extent - 1) * interior


def _pad_map(node: Node, index: Place) -> tuple[Piece, ...]:
    extents = node.inputs[0].type.extents
    place: list[Index] = []
    conditions: list[Condition] = []
    for i, extent, low, interior in zip(index, extents, node.attrs["low"], node.attrs["interior"], strict=True):
        source, needed = _spread(i - Index(low), extent, interior + 1)
        place.append(source)
        conditions += needed
    return (Piece(0, tuple(place), tuple(conditions)),)


def _spread(position: Index, extent: int, step: int) -> tuple[Index, tuple[Condition, ...]]:
    """Which of `extent` elements, `step` apart, stands at a position, and when one does."""
    bounds = (Condition(position), Condition(Index((extent - 1) * step) - position))
    if step == 1:
        return position, bounds
    return divide(position, step), (*bounds, Condition(modulo(position, step), equal=True))


def _pad(x: Any, *, low: Any, high: Any, interior: Any, value: float) -> Any:
    x = np.asarray(x)
    inner = [_dilated(n, i) for n, i in zip(x.shape, interior, strict=True)]
    result = np.full([b + n + t for b, n, t in zip(low, inner, high, strict=True)], value, x.dtype)
    result[tuple(_range(b, b + n, i + 1) for b, n, i in zip(low, inner, interior, strict=True))] = x
    return result


def _pad_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    low, high, interior = node.attrs["low"], node.attrs["high"], node.attrs["interior"]
    stop = tuple(d - t for d, t in zip(cotangent.shape, high, strict=True))
    return (ops.slice(cotangent, start=low, stop=stop, step=tuple(i + 1 for i in interior)),)


pad: Constructor = define(
    "pad",
    Movement(_pad_map, lambda node: node.attrs["value"]),
    _pad_type,
    _pad,
    _pad_vjp,
    "`value` before, after and, `interior` times, between the elements of each axis",
)

# reverse --------------------------------------------------------------------------------------------------------


def _reverse_type(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    require_axes(axes, x.rank)
    return x


def _reverse_map(node: Node, index: Place) -> tuple[Piece, ...]:
    axes, extents = node.attrs["axes"], node.output.type.extents
    return _source(*(Index(extents[a] - 1) - i if a in axes else i for a, i in enumerate(index)))


reverse: Constructor = define(
    "reverse",
    Movement(_reverse_map),
    _reverse_type,
    lambda x, *, axes: np.flip(x, axes),
    lambda g, node: (ops.reverse(g, axes=node.attrs["axes"]),),
    "the elements in opposite order along `axes`",
)

# concat ---------------------------------------------------------------------------------------------------------


def _concat_type(*operands: TensorType, axis: int) -> TensorType:
    if not operands:
        raise ArgumentError("concat needs an operand")
    first = operands[0]
    require_axes((axis,), first.rank)
    require_dtype((first.dtype,), *operands)
    for other in operands[1:]:
        if other.rank != first.rank or _without(other.shape, axis) != _without(first.shape, axis):
            raise ShapeError(f"operands differ beside axis {axis}: {first} and {other}")
    total: Dim = 0
    for operand in operands:
        total = total + operand.shape[axis]
    return first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1 :]))


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _concat_map(node: Node, index: Place) -> tuple[Piece, ...]:
    axis, offset = node.attrs["axis"], 0
    pieces = []
    for number, operand in enumerate(node.inputs):
        extent = operand.type.extents[axis]
        inside = index[axis] - Index(offset)
        conditions = (Condition(inside), Condition(Index(extent - 1) - inside))
        pieces.append(Piece(number, (*index[:axis], inside, *index[axis + 1 :]), conditions))
        offset += extent
    return tuple(pieces)


def _concat_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    axis, parts = node.attrs["axis"], []
    first: Dim = 0
    for operand in node.inputs:
        start = tuple(first if a == axis else 0 for a in range(len(cotangent.shape)))
        first = first + operand.shape[axis]
        stop = tuple(first if a == axis else d for a, d in enumerate(cotangent.shape))
        parts.append(ops.slice(cotangent, start=start, stop=stop, step=(1,) * len(start)))
    return parts


concat: Constructor = define(
    "concat",
    Movement(_concat_map),
    _concat_type,
    lambda *arrays, axis: np.concatenate(arrays, axis),
    _concat_vjp,
    "the operands one after the other along `axis`",
)

# windows and its adjoint ----------------------------------------------------------------------------------------


def window_count(extent: Dim, size: int, stride: int, dilation: int) -> Dim:
    """How many windows of `size` elements fit: floor((extent - dilation (size - 1) - 1) / stride) + 1."""
    reach = dilation * (size - 1) + 1
    if isinstance(extent, int) and extent < reach:
        raise ShapeError(f"a window of {reach} elements does not fit in {extent}")
    return dims.floor_div(extent - reach, stride) + 1


def _windows_type(
    x: TensorType,
    *,
    axes: tuple[int, ...],
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> TensorType:
    require_axes(axes, x.rank)
    require_length(len(axes), size=size, stride=stride, dilation=dilation)
    require_whole(1, size=size, stride=stride, dilation=dilation)
    shape = list(x.shape)
    for a, k, s, d in zip(axes, size, stride, dilation, strict=True):
        shape[a] = window_count(shape[a], k, s, d)
    return x.with_shape((*shape, *size))


def _windows_map(node: Node, index: Place) -> tuple[Piece, ...]:
    rank = node.inputs[0].type.rank
    place = list(index[:rank])
    steps = zip(node.attrs["axes"], node.attrs["stride"], node.attrs["dilation"], index[rank:], strict=True)
    for axis, stride, dilation, within in steps:
        place[axis] = place[axis] * stride + within * dilation
    return _source(*place)


def _windows(x: Any, *, axes: Any, size: Any, stride: Any, dilation: Any) -> Any:
    x = np.asarray(x)
    shape, strides = [*x.shape, *size], list(x.strides)
    for a, k, s, d in zip(axes, size, stride, dilation, strict=True):
        shape[a] = int(window_count(x.shape[a], k, s, d))
        strides.append(x.strides[a] * d)
        strides[a] = x.strides[a] * s
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


def _windows_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """The sum, over the places within a window, of each window's element put back where it came from."""
    (x,), axes = node.inputs, node.attrs["axes"]
    extents = tuple(x.shape[a] for a in axes)
    steps = {"stride": node.attrs["stride"], "dilation": node.attrs["dilation"]}
    spread = ops.unwindows(cotangent, axes=axes, extents=extents, **steps)
    within = tuple(range(x.type.rank, x.type.rank + len(axes)))
    return (ops.reduce_sum(spread, axes=within),)


windows: Constructor = define(
    "windows",
    Movement(_windows_map),
    _windows_type,
    _windows,
    _windows_vjp,
    "sliding windows: each of `axes` counts windows, whose extents `size` are appended as last axes",
)


def _unwindows_type(
    x: TensorType, *, axes: tuple[int, ...], extents: Shape, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> TensorType:
    rank = x.rank - len(axes)
    require_axes(axes, rank)
    require_length(len(axes), extents=extents, stride=stride, dilation=dilation)
    require_whole(1, stride=stride, dilation=dilation)
    shape = list(x.shape)
    for number, (a, e, s, d) in enumerate(zip(axes, extents, stride, dilation, strict=True)):
        size = x.shape[rank + number]
        if not isinstance(size, int) or window_count(e, size, s, d) != x.shape[a]:
            raise ShapeError(f"{x} does not hold the windows of extent {e} along axis {a}")
        shape[a] = e
    return x.with_shape(tuple(shape))


def _unwindows_map(node: Node, index: Place) -> tuple[Piece, ...]:
    (x,), axes = node.inputs, node.attrs["axes"]
    rank, place = x.type.rank - len(axes), list(index)
    conditions: list[Condition] = []
    steps = zip(axes, node.attrs["stride"], node.attrs["dilation"], index[rank:], strict=True)
    for axis, stride, dilation, within in steps:
        place[axis], needed = _spread(place[axis] - within * dilation, x.type.extents[axis], stride)
        conditions += needed
    return (Piece(0, tuple(place), tuple(conditions)),)


def _unwindows(x: Any, *, axes: Any, extents: Any, stride: Any, dilation: Any) -> Any:
    rank = x.ndim - len(axes)
    shape = list(x.shape)
    for axis, extent in zip(axes, extents, strict=True):
        shape[axis] = extent
    result = np.zeros(shape, x.dtype)
    for within in np.ndindex(*x.shape[rank:]):
        place: list[Any] = [np.s_[:]] * rank
        for axis, s, d, k in zip(axes, stride, dilation, within, strict=True):
            place[axis] = _range(k * d, k * d + (x.shape[axis] - 1) * s + 1, s)
        result[(*place, *within)] = x[(..., *within)]
    return result


def _unwindows_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """Windows of the cotangent, of which only those places count that are the place within the window."""
    (x,), axes = node.inputs, node.attrs["axes"]
    rank = x.type.rank - len(axes)
    attrs = {"axes": axes, "stride": node.attrs["stride"], "dilation": node.attrs["dilation"]}
    seen = ops.windows(cotangent, size=x.shape[rank:], **attrs)
    own: Value | None = None
    for number in range(len(axes)):
        axis = rank + number
        first = ops.iota(shape=seen.shape, axis=axis, dtype=DType.I64)
        second = ops.iota(shape=seen.shape, axis=axis + len(axes), dtype=DType.I64)
        match = ops.equal(first, second)
        own = match if own is None else ops.logical_and(own, match)
    kept = seen if own is None else ops.where(own, seen, ops.full_like(seen, 0))
    return (ops.reduce_sum(kept, axes=tuple(range(x.type.rank, seen.type.rank))),)


unwindows: Constructor = define(
    "unwindows",
    Movement(_unwindows_map),
    _unwindows_type,
    _unwindows,
    _unwindows_vjp,
    "each element of each window back at its place, 0 elsewhere; summed over the last axes: the adjoint of windows",
)

# stop_gradient --------------------------------------------------------------------------------------------------

stop_gradient: Constructor = define(
    "stop_gradient",
    Movement(lambda node, index: _source(*index)),
    lambda x: x,
    lambda x: x,
    zero_gradient,
    "x, a constant to differentiation",
)

# require --------------------------------------------------------------------------------------------------------


def _require_type(x: TensorType, *, dim: Dim, at_least: int, what: str) -> TensorType:
    require_extents(dim=dim)
    require_whole(0, at_least=(at_least,))
    if isinstance(dim, int) and dim < at_least:
        raise ShapeError(f"{what} needs {at_least} or more elements, not {dim}")
    return x


require: Constructor = define(
    "require",
    Movement(lambda node, index: _source(*index)),
    _require_type,
    lambda x, *, dim, at_least, what: x,
    lambda g, node: (g,),
    "x; an error where the dimension `dim` is less than `at_least`, also when it gets its size",
)
