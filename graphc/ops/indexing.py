"""Ops whose positions are data. None of them reads or writes outside an array, whatever the integers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import graphc.ops as ops
from graphc.errors import IndexRangeError, ShapeError
from graphc.ir.dim import Dim
from graphc.ir.graph import Node, Value
from graphc.ir.op import Opaque
from graphc.ir.types import INTS, NUMBERS, TensorType
from graphc.ops.define import Constructor, define, require_axes, require_dtype, require_extents, zero_gradient


def _gather_type(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    require_dtype(INTS, indices)
    require_axes((axis,), x.rank)
    if x.shape[axis] == 0:
        raise ShapeError(f"nothing can be gathered along axis {axis} of {x}")
    return x.with_shape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_vjp(cotangent: Value, node: Node) -> Sequence[Value | None]:
    x, indices = node.inputs
    axis, dtype = node.attrs["axis"], indices.dtype
    size = x.shape[axis]
    last = ops.sub(ops.extent(dim=size, dtype=dtype), ops.full((), 1, dtype))
    clamped = ops.maximum(
        ops.minimum(indices, ops.broadcast(last, shape=indices.shape, axes=())), ops.full_like(indices, 0)
    )
    return ops.scatter_add(clamped, cotangent, axis=axis, size=size), None


gather: Constructor = define(
    "gather",
    Opaque(),
    _gather_type,
    lambda x, indices, *, axis: np.take(x, indices, axis, mode="clip"),
    _gather_vjp,
    "the elements of x at `indices` along `axis`, as numpy.take; an index outside is clamped",
)


def _scatter_type(indices: TensorType, updates: TensorType, *, axis: int, size: Dim) -> TensorType:
    require_dtype(INTS, indices)
    require_dtype(NUMBERS, updates)
    require_extents(size=size)
    behind = axis + indices.rank
    require_axes((axis,), updates.rank - indices.rank + 1)
    if updates.shape[axis:behind] != indices.shape:
        raise ShapeError(f"updates {updates} do not hold indices {indices} at axis {axis}")
    return updates.with_shape((*updates.shape[:axis], size, *updates.shape[behind:]))


def _scatter_add(indices: Any, updates: Any, *, axis: int, size: int) -> Any:
    indices, updates = np.asarray(indices), np.asarray(updates)
    rank = indices.ndim
    moved = np.moveaxis(updates, range(axis, axis + rank), range(rank)).reshape(
        indices.size, *updates.shape[:axis], *updates.shape[axis + rank :]
    )
    wide = np.float64 if updates.dtype.kind == "f" else updates.dtype
    result = np.zeros((size, *moved.shape[1:]), wide)
    inside = (indices.reshape(-1) >= 0) & (indices.reshape(-1) < size)
    np.add.at(result, indices.reshape(-1)[inside], moved[inside])
    return np.moveaxis(result, 0, axis).astype(updates.dtype)


def _scatter_vjp(cotangent: Value, node: Node) -> Sequence[Value | None]:
    """Zero for an update that was dropped."""
    indices, updates = node.inputs
    axis, size = node.attrs["axis"], node.attrs["size"]
    found = ops.gather(cotangent, indices, axis=axis)
    limit = ops.broadcast(ops.extent(dim=size, dtype=indices.dtype), shape=indices.shape, axes=())
    inside = ops.logical_and(ops.greater_equal(indices, ops.full_like(indices, 0)), ops.less(indices, limit))
    mask = ops.broadcast(inside, shape=updates.shape, axes=tuple(range(axis, axis + indices.type.rank)))
    return None, ops.where(mask, found, ops.full_like(updates, 0))


scatter_add: Constructor = define(
    "scatter_add",
    Opaque(),
    _scatter_type,
    _scatter_add,
    _scatter_vjp,
    "zeros of `size` along `axis`, plus `updates` at `indices`; an index outside is dropped",
)


def _check_type(indices: TensorType, *, size: Dim, what: str) -> TensorType:
    require_dtype(INTS, indices)
    require_extents(size=size)
    return indices


def _check(indices: Any, *, size: int, what: str) -> Any:
    indices = np.asarray(indices)
    outside = (indices < 0) | (indices >= size)
    if outside.any():
        raise IndexRangeError(f"{what} {indices[outside].flat[0]} is outside [0, {size})")
    return indices


check_index: Constructor = define(
    "check_index",
    Opaque(),
    _check_type,
    _check,
    zero_gradient,
    "the indices; raises IndexRangeError when one is not in [0, size)",
)
