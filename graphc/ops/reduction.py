"""Reductions: the elements along `axes` folded into one; the axes are dropped.

The reference sums float32 in float64 and rounds once, and an empty sum is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np

import graphc.ops as ops
from graphc.errors import GradientError
from graphc.ir import dim as dims
from graphc.ir.graph import Node, Value
from graphc.ir.op import Reduction
from graphc.ir.types import NUMBERS, DType, TensorType, as_dtype
from graphc.ops.define import Constructor, Rule, define, require_axes, require_dtype, zero_gradient


def _reduction(
    name: str,
    combine: str,
    identity: Callable[[DType], float | int | bool],
    accepts: Sequence[DType],
    fold: Callable[..., Any],
    vjp: Rule,
    doc: str,
) -> Constructor:
    def infer(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
        require_dtype(accepts, x)
        require_axes(axes, x.rank)
        return x.with_shape(tuple(d for a, d in enumerate(x.shape) if a not in axes))

    def evaluate(x: Any, *, axes: tuple[int, ...]) -> Any:
        start = identity(as_dtype(x.dtype))
        with np.errstate(all="ignore"):
            return np.asarray(fold(x, axis=axes, initial=start)).astype(x.dtype)

    return define(name, Reduction(combine, identity), infer, evaluate, vjp, doc)


def _wide(fold: Callable[..., Any]) -> Callable[..., Any]:
    def wide(x: Any, **options: Any) -> Any:
        return fold(x, dtype=np.float64 if x.dtype.kind == "f" else x.dtype, **options)

    return wide


def along(value: Value, node: Node) -> Value:
    """A value of the reduction's result type, read along the axes that were folded."""
    (x,) = node.inputs
    kept = tuple(a for a in range(x.type.rank) if a not in node.attrs["axes"])
    return ops.broadcast(value, shape=x.shape, axes=kept)


def _extreme_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """Equal extremes share the cotangent evenly, as torch.amax does."""
    (x,) = node.inputs
    chosen = ops.equal(x, along(node.output, node))
    count = ops.reduce_sum(ops.convert(chosen, dtype=x.dtype), axes=node.attrs["axes"])
    return (ops.where(chosen, along(ops.div(cotangent, count), node), ops.full_like(x, 0)),)


def _prod_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """Back through a tree of pairwise products: no division, so a zero spoils no derivative of any order."""
    (x,), axes = node.inputs, node.attrs["axes"]
    order = (*(a for a in range(x.type.rank) if a not in axes), *axes)
    rows, count = dims.product(cotangent.shape), dims.product(x.shape[a] for a in axes)
    if not isinstance(count, int):
        raise GradientError(f"the gradient of reduce_prod needs a number of factors, not {count}", node.location)
    factors = ops.reshape(ops.transpose(x, perm=order), shape=(rows, count))
    levels = []
    while factors.shape[1] > 1:
        half, odd = divmod(factors.shape[1], 2)
        left, right = _columns(factors, 0, half), _columns(factors, half, 2 * half)
        rest = [_columns(factors, 2 * half, 2 * half + 1) for _ in range(odd)]
        levels.append((left, right, *rest))
        factors = ops.concat(ops.mul(left, right), *rest, axis=1)
    share = ops.broadcast(ops.reshape(cotangent, shape=(rows,)), shape=factors.shape, axes=(0,))
    for left, right, *rest in reversed(levels):
        size = left.shape[1]
        pair, single = _columns(share, 0, size), [_columns(share, size, size + 1) for _ in rest]
        share = ops.concat(ops.mul(pair, right), ops.mul(pair, left), *single, axis=1)
    moved = ops.reshape(share, shape=tuple(x.shape[a] for a in order))
    return (ops.transpose(moved, perm=tuple(order.index(a) for a in range(x.type.rank))),)


def _first_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """The first of equal extremes, in row-major order of the axes, takes the cotangent, as torch's pooling does."""
    (x,), axes = node.inputs, node.attrs["axes"]
    here, step = None, 1
    for axis in reversed(axes):
        extent = x.shape[axis]
        if not isinstance(extent, int):
            raise GradientError(
                f"the gradient of {node.op.name} needs numbers for extents, not {extent}", node.location
            )
        place = ops.mul(ops.iota(shape=x.shape, axis=axis, dtype=DType.I32), ops.full(x.shape, step, DType.I32))
        here, step = place if here is None else ops.add(here, place), step * extent
    if here is None:
        return (cotangent,)
    beyond = ops.full_like(here, step)
    first = ops.reduce_min(ops.where(ops.equal(x, along(node.output, node)), here, beyond), axes=axes)
    return (ops.where(ops.equal(here, along(first, node)), along(cotangent, node), ops.full_like(x, 0)),)


def _columns(x: Value, start: int, stop: int) -> Value:
    """Some columns of a matrix."""
    return ops.slice(x, start=(0, start), stop=(x.shape[0], stop), step=(1, 1))


def _lowest(dtype: DType) -> float | int:
    return -inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)


def _highest(dtype: DType) -> float | int:
    return inf if dtype.is_float else int(np.iinfo(dtype.numpy).max)


BOOLS = (DType.BOOL,)

reduce_sum: Constructor = _reduction(
    "reduce_sum", "add", lambda dtype: 0, NUMBERS, _wide(np.sum), lambda g, n: (along(g, n),), "the sum"
)
reduce_prod: Constructor = _reduction(
    "reduce_prod", "mul", lambda dtype: 1, NUMBERS, _wide(np.prod), _prod_vjp, "the product"
)
reduce_max: Constructor = _reduction(
    "reduce_max", "maximum", _lowest, NUMBERS, np.max, _extreme_vjp, "the largest; NaN if one is NaN"
)
reduce_min: Constructor = _reduction(
    "reduce_min", "minimum", _highest, NUMBERS, np.min, _extreme_vjp, "the smallest; NaN if one is NaN"
)
reduce_all: Constructor = _reduction(
    "reduce_all", "logical_and", lambda dtype: True, BOOLS, np.logical_and.reduce, zero_gradient, "whether all hold"
)
reduce_any: Constructor = _reduction(
    "reduce_any", "logical_or", lambda dtype: False, BOOLS, np.logical_or.reduce, zero_gradient, "whether one holds"
)
reduce_first_max: Constructor = _reduction(
    "reduce_first_max",
    "maximum",
    _lowest,
    NUMBERS,
    np.max,
    _first_vjp,
    "reduce_max whose gradient goes to the first of equals",
)
