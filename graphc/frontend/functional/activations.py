"""Activations, softmax included: torch.nn.functional's names and defaults."""

from __future__ import annotations

import math
from typing import Any

from graphc import ops
from graphc.errors import ArgumentError, ShapeError
from graphc.frontend.functional.elementwise import (
    abs,
    erf,
    exp,
    expm1,
    log,
    log1p,
    sigmoid,
    stop_gradient,
    tanh,
    where,
)
from graphc.frontend.functional.reductions import largest, sum
from graphc.frontend.tensor import Tensor, as_float, as_tensor, axis_of, reshape
from graphc.ir import source


def relu(x: Any) -> Tensor:
    """0 where x <= 0, else x; the gradient at 0 is 0."""
    return Tensor(ops.relu(as_tensor(x).value))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    found = as_float(x)
    return where(found > 0, found, found * negative_slope)


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (e**x - 1)."""
    found = as_float(x)
    return where(found > 0, found, alpha * expm1(_left(found)))


def _left(x: Tensor) -> Tensor:
    """x where x <= 0, else 0. At 0 its derivative is 1: that of `minimum` would be shared with the bound."""
    return where(x > 0, 0.0, x)


def silu(x: Any) -> Tensor:
    """x * sigmoid(x)."""
    found = as_float(x)
    return found * sigmoid(found)


def softplus(x: Any) -> Tensor:
    """log(1 + e**x), as max(x, 0) + log1p(e**-|x|).

    -|x| is a choice between x and -x, neither of which is flat at 0, where the derivative of |x| would be lost.
    """
    found = as_float(x)
    return relu(found) + log1p(exp(where(found > 0, -found, found)))


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x times the normal distribution function (Hendrycks and Gimpel, 2016).

    approximate  "none": 0.5 x (1 + erf(x / sqrt 2)); "tanh": 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x**3)

    The second is computed as x sigmoid(2 u): the same, but 1 + tanh(u) would lose all digits where u is far below 0.
    """
    found = as_float(x)
    match approximate:
        case "none":
            return found * 0.5 * (1.0 + erf(found * math.sqrt(0.5)))
        case "tanh":
            twice = math.sqrt(8 / math.pi)
            return found * sigmoid(found * (twice + 0.044715 * twice * (found * found)))
    raise ArgumentError(f'approximate must be "none" or "tanh", not {approximate!r}', source.here())


def softmax(x: Any, axis: int = -1) -> Tensor:
    """e**x / sum(e**x) along `axis`, shifted by the maximum."""
    found = as_float(x)
    e = exp(found - stop_gradient(largest(found, axis)))
    return e / sum(e, axis, keepdims=True)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """log(softmax(x)) without the division: x - max - log(sum(e**(x - max)))."""
    found = as_float(x)
    shifted = found - stop_gradient(largest(found, axis))
    return shifted - log(sum(exp(shifted), axis, keepdims=True))


def relu6(x: Any) -> Tensor:
    """x, at least 0 and at most 6."""
    return hardtanh(x, 0.0, 6.0)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x, at least min_val and at most max_val; the gradient at the bounds is 0, as torch's."""
    found = as_float(x)
    return where(found <= min_val, min_val, where(found >= max_val, max_val, found))


def hardsigmoid(x: Any) -> Tensor:
    """relu6(x + 3) / 6."""
    return relu6(as_float(x) + 3.0) / 6.0


def hardswish(x: Any) -> Tensor:
    """x relu6(x + 3) / 6 (Howard et al., 2019)."""
    found = as_float(x)
    return found * hardsigmoid(found)


def mish(x: Any) -> Tensor:
    """x tanh(softplus(x)) (Misra, 2019)."""
    found = as_float(x)
    return found * tanh(softplus(found))


def celu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (e**(x / alpha) - 1)."""
    found = as_float(x)
    return where(found > 0, found, alpha * expm1(_left(found) / alpha))


def selu(x: Any) -> Tensor:
    """A scaled elu that keeps mean 0 and variance 1 (Klambauer et al., 2017)."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def logsigmoid(x: Any) -> Tensor:
    """log(sigmoid(x)), as -softplus(-x)."""
    return -softplus(-as_float(x))


def softsign(x: Any) -> Tensor:
    """x / (1 + |x|)."""
    found = as_float(x)
    return found / (1.0 + abs(found))


def softmin(x: Any, axis: int = -1) -> Tensor:
    """softmax(-x)."""
    return softmax(-as_float(x), axis)


def glu(x: Any, axis: int = -1) -> Tensor:
    """a * sigmoid(b), for the halves a and b of x along `axis` (Dauphin et al., 2017)."""
    found = as_float(x)
    at = axis_of(axis, found.ndim)
    extent = found.shape[at]
    if not isinstance(extent, int) or extent % 2:
        raise ShapeError(f"axis {at} of {found.type} has no halves", source.here())
    lead = (slice(None),) * at
    return found[(*lead, slice(extent // 2))] * sigmoid(found[(*lead, slice(extent // 2, None))])


def prelu(x: Any, weight: Any) -> Tensor:
    """x where x > 0, else weight * x: weight has one element, or one for each channel of [N, C, ...]."""
    found, slope = as_float(x), as_tensor(weight)
    if slope.shape != (1,) and found.ndim > 1:
        slope = reshape(slope, (-1, *(1,) * (found.ndim - 2)))
    return where(found > 0, found, found * slope)
