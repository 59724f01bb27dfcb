"""Functions of one element, or of the elements at one place of several tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc import ops
from graphc.errors import DTypeError
from graphc.frontend.tensor import (
    Tensor,
    as_float,
    as_tensor,
    binary,
    broadcast_shapes,
    broadcast_to,
    constant,
    divide,
    power,
    promote,
)
from graphc.ir import source
from graphc.ir.graph import Value
from graphc.ir.types import DType


def _real(op: Callable[..., Value], x: Any) -> Tensor:
    return Tensor(op(as_float(x).value))


def _rounded(op: Callable[..., Value], x: Any) -> Tensor:
    found = as_tensor(x)
    return found if found.dtype.is_int else _real(op, found)


def exp(x: Any) -> Tensor:
    """e**x."""
    return _real(ops.exp, x)


def expm1(x: Any) -> Tensor:
    """e**x - 1, exact near 0."""
    return _real(ops.expm1, x)


def log(x: Any) -> Tensor:
    """Natural logarithm."""
    return _real(ops.log, x)


def log1p(x: Any) -> Tensor:
    """log(1 + x), exact near 0."""
    return _real(ops.log1p, x)


def sqrt(x: Any) -> Tensor:
    """Square root."""
    return _real(ops.sqrt, x)


def rsqrt(x: Any) -> Tensor:
    """1 / sqrt(x)."""
    return _real(ops.rsqrt, x)


def exp2(x: Any) -> Tensor:
    """2**x."""
    return power(2.0, as_float(x))  # e**(x log 2) would round the exponent, which is large


def log2(x: Any) -> Tensor:
    """Logarithm to base 2."""
    return log(x) * (1 / math.log(2))


def log10(x: Any) -> Tensor:
    """Logarithm to base 10."""
    return log(x) * (1 / math.log(10))


def reciprocal(x: Any) -> Tensor:
    """1 / x."""
    return divide(1, as_float(x))


def sin(x: Any) -> Tensor:
    """Sine, x in radians."""
    return _real(ops.sin, x)


def cos(x: Any) -> Tensor:
    """Cosine, x in radians."""
    return _real(ops.cos, x)


def tanh(x: Any) -> Tensor:
    """Hyperbolic tangent."""
    return _real(ops.tanh, x)


def tan(x: Any) -> Tensor:
    """Tangent, x in radians."""
    return sin(x) / cos(x)


def sinh(x: Any) -> Tensor:
    """Hyperbolic sine: of |x| it is (m + m / (m + 1)) / 2 with m = e**|x| - 1, far out e**(|x| / 2)**2 / 2.

    |x| is a choice between x and -x, which is not flat at 0, where the derivative would be lost.
    """
    found = as_float(x)
    positive = found >= 0
    size = where(positive, found, -found)
    is_far = size > 20.0
    more, half = expm1(where(is_far, 0.0, size)), exp(0.5 * size)
    result = where(is_far, 0.5 * half * half, 0.5 * (more + more / (more + 1.0)))
    return where(positive, result, -result)


def cosh(x: Any) -> Tensor:
    """Hyperbolic cosine, (e**x + e**-x) / 2."""
    found = as_float(x)
    return 0.5 * exp(found) + 0.5 * exp(-found)


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e**-x)."""
    return _real(ops.sigmoid, x)


def erf(x: Any) -> Tensor:
    """The error function."""
    return _real(ops.erf, x)


def floor(x: Any) -> Tensor:
    """The largest integer <= x, in the dtype of x."""
    return _rounded(ops.floor, x)


def ceil(x: Any) -> Tensor:
    """The smallest integer >= x, in the dtype of x."""
    return _rounded(ops.ceil, x)


def round(x: Any) -> Tensor:
    """The nearest integer, halves to even, in the dtype of x."""
    return _rounded(ops.round, x)


def trunc(x: Any) -> Tensor:
    """The nearest integer towards 0, in the dtype of x."""
    found = as_tensor(x)
    return found if found.dtype.is_int else where(less(found, 0), ceil(found), floor(found))


def neg(x: Any) -> Tensor:
    """-x."""
    return -as_tensor(x)


def isnan(x: Any) -> Tensor:
    """Whether each element is NaN."""
    found = as_tensor(x)
    return not_equal(found, found)


def isinf(x: Any) -> Tensor:
    """Whether each element is infinite."""
    found = as_float(x)
    return equal(abs(found), math.inf)


def isfinite(x: Any) -> Tensor:
    """Whether each element is neither NaN nor infinite."""
    found = as_float(x)
    return less(abs(found), math.inf)


def nan_to_num(x: Any, nan: float = 0.0) -> Tensor:
    """x, with `nan` for NaN, and the largest number of the dtype, of its sign, for infinity."""
    found = as_float(x)
    limit = float(np.finfo(found.dtype.numpy).max)
    return clip(where(isnan(found), nan, found), -limit, limit)


def sign(x: Any) -> Tensor:
    """-1, 0 or 1; NaN for NaN."""
    return Tensor(ops.sign(as_tensor(x).value))


def abs(x: Any) -> Tensor:
    """|x|."""
    return Tensor(ops.abs(as_tensor(x).value))


def square(x: Any) -> Tensor:
    """x * x."""
    found = as_tensor(x)
    return found * found


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of each pair; NaN where one is NaN."""
    return binary(ops.maximum, a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of each pair; NaN where one is NaN."""
    return binary(ops.minimum, a, b)


def clip(x: Any, low: Any = None, high: Any = None) -> Tensor:
    """x, at least `low` and at most `high`; the gradient at the bounds is 1, as in torch."""
    found = as_tensor(x)
    found = found if low is None else where(binary(ops.less, found, low), low, found)
    return found if high is None else where(binary(ops.greater, found, high), high, found)


def add(a: Any, b: Any) -> Tensor:
    """a + b; of bools: a or b."""
    return binary(ops.add, a, b)


def subtract(a: Any, b: Any) -> Tensor:
    """a - b."""
    return binary(ops.sub, a, b)


def multiply(a: Any, b: Any) -> Tensor:
    """a * b; of bools: a and b."""
    return binary(ops.mul, a, b)


def floor_divide(a: Any, b: Any) -> Tensor:
    """floor(a / b)."""
    return binary(ops.floor_div, a, b)


def remainder(a: Any, b: Any) -> Tensor:
    """a - b * floor(a / b), of the sign of b, as Python's %."""
    return binary(ops.mod, a, b)


def less(a: Any, b: Any) -> Tensor:
    """a < b, as bools."""
    return binary(ops.less, a, b)


def less_equal(a: Any, b: Any) -> Tensor:
    """a <= b, as bools."""
    return binary(ops.less_equal, a, b)


def greater(a: Any, b: Any) -> Tensor:
    """a > b, as bools."""
    return binary(ops.greater, a, b)


def greater_equal(a: Any, b: Any) -> Tensor:
    """a >= b, as bools."""
    return binary(ops.greater_equal, a, b)


def equal(a: Any, b: Any) -> Tensor:
    """a == b, as bools."""
    return binary(ops.equal, a, b)


def not_equal(a: Any, b: Any) -> Tensor:
    """a != b, as bools."""
    return binary(ops.not_equal, a, b)


def logical_and(a: Any, b: Any) -> Tensor:
    """a and b, for bools."""
    return binary(ops.logical_and, a, b)


def logical_or(a: Any, b: Any) -> Tensor:
    """a or b, for bools."""
    return binary(ops.logical_or, a, b)


def logical_not(x: Any) -> Tensor:
    """not x, for bools."""
    return Tensor(ops.logical_not(as_tensor(x).value))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where `condition` (bool) holds, else b; all are broadcast."""
    chosen = as_tensor(condition)
    if chosen.dtype is not DType.BOOL:
        raise DTypeError(f"the condition of where must be bool, not {chosen.type}", source.here())
    first, second = promote(a, b)
    shape = broadcast_shapes(chosen, first, second)
    return Tensor(ops.where(*(broadcast_to(x, shape).value for x in (chosen, first, second))))


def masked_fill(x: Any, mask: Any, value: Any) -> Tensor:
    """`value` where `mask` (bool) holds, else x, in the dtype of x."""
    found = as_tensor(x)
    return where(mask, constant(value, found.dtype), found)


def lerp(start: Any, end: Any, weight: Any) -> Tensor:
    """start + weight * (end - start)."""
    first = as_tensor(start)
    return first + as_tensor(weight) * (as_tensor(end) - first)


def logaddexp(a: Any, b: Any) -> Tensor:
    """log(e**a + e**b), shifted by the larger."""
    first, second = promote(as_float(a), as_float(b))
    first_is_larger = first > second
    larger, smaller = where(first_is_larger, first, second), where(first_is_larger, second, first)
    return larger + log1p(exp(where(equal(larger, smaller) & isinf(larger), 0.0, smaller - larger)))


def stop_gradient(x: Tensor) -> Tensor:
    """x, a constant to differentiation (torch's detach)."""
    return Tensor(ops.stop_gradient(x.value))


clamp, detach, pow, true_divide, div, mul, sub = clip, stop_gradient, power, divide, divide, multiply, subtract
