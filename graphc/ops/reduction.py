"""Reductions: the elements along `axes` folded into one; the axes are dropped.

The reference sums float32 in float64 and rounds once, and an empty sum is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np

import graphc.ops as ops
from graphc.ir.graph import Node, Value
from graphc.ir.op import Reduction
from graphc.ir.types import NUMBERS, DType, TensorType, as_dtype
from graphc.ops.define import Constructor, Rule, define, require_axes, require_dtype


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
    """y / x where nothing is zero; beside exactly one zero, the product of the others at that zero."""
    (x,), axes = node.inputs, node.attrs["axes"]
    zero, one = ops.full_like(x, 0), ops.full_like(x, 1)
    is_zero = ops.equal(x, zero)
    zeros = along(ops.reduce_sum(ops.convert(is_zero, dtype=x.dtype), axes=axes), node)
    nonzero = ops.where(is_zero, one, x)
    others = along(ops.reduce_prod(nonzero, axes=axes), node)
    alone = ops.logical_and(is_zero, ops.equal(zeros, one))
    slope = ops.where(ops.equal(zeros, zero), ops.div(others, nonzero), ops.where(alone, others, zero))
    return (ops.mul(along(cotangent, node), slope),)


def _lowest(dtype: DType) -> float | int:
    return -inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)


def _highest(dtype: DType) -> float | int:
    return inf if dtype.is_float else int(np.iinfo(dtype.numpy).max)


def _none(cotangent: Value, node: Node) -> Sequence[None]:
    return (None,)


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
    "reduce_all", "logical_and", lambda dtype: True, BOOLS, np.logical_and.reduce, _none, "whether all hold"
)
reduce_any: Constructor = _reduction(
    "reduce_any", "logical_or", lambda dtype: False, BOOLS, np.logical_or.reduce, _none, "whether one holds"
)
