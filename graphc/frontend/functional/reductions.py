"""Reductions along axes, with NumPy's rules: `axis` is a number, several, or None for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import ops
from graphc.frontend.functional.elementwise import abs, equal, exp, log, not_equal, sqrt, stop_gradient, where
from graphc.frontend.tensor import Tensor, as_float, as_tensor, axis_of, constant, convert, reshape
from graphc.ir import dim as dims
from graphc.ir.graph import Value
from graphc.ir.types import DType

Axes = int | Sequence[int] | None


def axes_of(axis: Axes, rank: int) -> tuple[int, ...]:
    """The axes counted from the front, sorted, all of them for None; raises ArgumentError for one that is outside."""
    given = range(rank) if axis is None else [axis] if isinstance(axis, int | np.integer) else axis
    return tuple(sorted(axis_of(a, rank) for a in given))


def _reduce(op: Callable[..., Value], x: Any, axis: Axes, keepdims: bool) -> Tensor:
    found = as_tensor(x)
    axes = axes_of(axis, found.ndim)
    result = Tensor(op(found.value, axes=axes))
    if not keepdims:
        return result
    return reshape(result, tuple(1 if a in axes else d for a, d in enumerate(found.shape)))


def sum(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum along `axis`; integers and bools are added as int64, as in NumPy."""
    return _reduce(ops.reduce_sum, _countable(x), axis, keepdims)


def prod(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The product along `axis`; integers and bools are multiplied as int64, as in NumPy."""
    return _reduce(ops.reduce_prod, _countable(x), axis, keepdims)


def _countable(x: Any) -> Tensor:
    found = as_tensor(x)
    return found if found.dtype.is_float else convert(found, DType.I64)


def max(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest along `axis` (torch's amax); equal ones share the gradient.

    Raises ShapeError for no elements; where their number is not known yet, a call does.
    """
    return _extreme(ops.reduce_max, ops.reduce_any, x, axis, keepdims)


def min(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The smallest along `axis` (torch's amin); equal ones share the gradient.

    Raises ShapeError for no elements; where their number is not known yet, a call does.
    """
    return _extreme(ops.reduce_min, ops.reduce_all, x, axis, keepdims)


def largest(x: Tensor, axis: Axes) -> Tensor:
    """The largest along `axis`, which is kept as 1: what exponentials are shifted by. Of nothing: -infinity."""
    return _reduce(ops.reduce_max, x, axis, True)


def _extreme(op: Callable[..., Value], of_bools: Callable[..., Value], x: Any, axis: Axes, keepdims: bool) -> Tensor:
    found = as_tensor(x)
    found = require_count(found, axes_of(axis, found.ndim), 1, "a largest or smallest element")
    return _reduce(of_bools if found.dtype is DType.BOOL else op, found, axis, keepdims)


amax, amin = max, min


def all(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether all bools along `axis` hold."""
    return _reduce(ops.reduce_all, x, axis, keepdims)


def any(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether a bool along `axis` holds."""
    return _reduce(ops.reduce_any, x, axis, keepdims)


def count_of(x: Tensor, axes: Sequence[int], dtype: DType) -> Tensor:
    """The number of elements along axes, as a scalar of a float dtype."""
    known = math.prod(d for a in axes if isinstance(d := x.shape[a], int))
    total = constant(known, dtype)
    for a in axes:
        dim = x.shape[a]
        if not isinstance(dim, int):
            total = total * Tensor(ops.extent(dim=dim, dtype=dtype))
    return total


def require_count(x: Tensor, axes: Sequence[int], least: int, what: str) -> Tensor:
    """x, of which `what` needs so many elements along axes; raises ShapeError here, or when a call gives it fewer."""
    count = dims.product(x.shape[a] for a in axes)
    is_enough = isinstance(count, int) and count >= least
    return x if is_enough else Tensor(ops.require(x.value, dim=count, at_least=least, what=what))


def mean(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean along `axis`; integers and bools give float64, as in NumPy. Of nothing: NaN."""
    found = as_float(x)
    axes = axes_of(axis, found.ndim)
    return sum(found, axes, keepdims) / count_of(found, axes, found.dtype)


def var(x: Any, axis: Axes = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The mean of the squared distances from the mean; the divisor is the number of elements less `ddof`."""
    found = as_float(x)
    axes = axes_of(axis, found.ndim)
    centred = found - mean(found, axes, keepdims=True)
    return sum(centred * centred, axes, keepdims) / (count_of(found, axes, found.dtype) - float(ddof))


def std(x: Any, axis: Axes = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The square root of `var`. The gradient where all elements are equal is 0."""
    return _root(var(x, axis, keepdims, ddof))


def argmax(x: Any, axis: int | None = None) -> Tensor:
    """The position of the largest along `axis` (of all, flattened, for None), as int64: the first of equals."""
    return _position_of(max, x, axis)


def argmin(x: Any, axis: int | None = None) -> Tensor:
    """The position of the smallest along `axis` (of all, flattened, for None), as int64: the first of equals."""
    return _position_of(min, x, axis)


def _position_of(best: Callable[..., Tensor], x: Any, axis: int | None) -> Tensor:
    found = as_tensor(x)
    if axis is None:
        found, axis = reshape(found, (-1,)), 0
    at = axis_of(axis, found.ndim)
    top = best(found, at, keepdims=True)
    is_top = equal(found, top) | not_equal(found, found)  # a NaN counts as the best, as in NumPy
    here = Tensor(ops.iota(shape=found.shape, axis=at, dtype=DType.I64))
    return min(where(is_top, here, int(np.iinfo(np.int64).max)), at)


def logsumexp(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """log(sum(e**x)), shifted by the maximum."""
    found = as_float(x)
    top = stop_gradient(largest(found, axis))
    top = where(equal(abs(top), float("inf")), 0.0, top)
    total = log(sum(exp(found - top), axis, keepdims=True)) + top
    return total if keepdims else _reduce(ops.reduce_sum, total, axis, False)


def norm(x: Any, axis: Axes = None, keepdims: bool = False, p: float = 2.0) -> Tensor:
    """(sum |x|**p)**(1/p) along `axis`; for p infinite the largest |x| or, negative, the smallest; for p = 0 how many
    are not 0. The gradient at 0 is 0 for p > 0.
    """
    found = as_float(x)
    if math.isinf(p):
        return (max if p > 0 else min)(abs(found), axis, keepdims)
    if p == 0:
        return sum(convert(not_equal(found, 0.0), found.dtype), axis, keepdims)
    if p < 0:
        return sum(abs(found) ** p, axis, keepdims) ** (1 / p)
    if p == 1:
        return sum(abs(found), axis, keepdims)
    if p == 2:
        return _root(sum(found * found, axis, keepdims))
    powers = _away_from_zero(lambda size: size**p, abs(found))
    return _away_from_zero(lambda total: total ** (1 / p), sum(powers, axis, keepdims))


def _root(x: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0."""
    return _away_from_zero(sqrt, x)


def _away_from_zero(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function that is 0 at 0, with the derivative 0 there."""
    is_zero = equal(x, 0.0)
    return where(is_zero, 0.0, function(where(is_zero, 1.0, x)))


def count_nonzero(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The number of elements along `axis` that are not 0, as int64."""
    return sum(not_equal(x, 0), axis, keepdims)
