"""Elementwise ops: one element out per element in, all shapes equal.

Meaning is NumPy's, made total where NumPy leaves it open:
 1. maximum and minimum propagate NaN;
 2. integers wrap around; x // 0 and x % 0 are 0; a negative integer power is the truncated reciprocal;
 3. float -> int truncates, NaN becomes 0, and what is out of range becomes the nearest integer.

float32 functions are evaluated in float64 and rounded once, so that the reference is right to half an ulp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import graphc.ops as ops
from graphc.ir.graph import Node, Value
from graphc.ir.op import Elementwise
from graphc.ir.types import ALL, FLOATS, NUMBERS, DType, TensorType
from graphc.ops.define import Constructor, Rule, define, require_dtype, require_same_shape, zero_gradient

BOOLS = (DType.BOOL,)
LINEAR = ("add", "sub", "neg")


def _unary(name: str, accepts: Sequence[DType], evaluate: Any, vjp: Rule, doc: str) -> Constructor:
    def infer(x: TensorType) -> TensorType:
        require_dtype(accepts, x)
        return x

    return define(name, Elementwise(name in LINEAR), infer, _quiet(evaluate), vjp, doc)


def _binary(
    name: str, accepts: Sequence[DType], evaluate: Any, vjp: Rule, doc: str, result: DType | None = None
) -> Constructor:
    def infer(a: TensorType, b: TensorType) -> TensorType:
        require_dtype(accepts, a, b)
        require_same_shape(a, b)
        return a.with_dtype(result or a.dtype)

    return define(name, Elementwise(name in LINEAR), infer, _quiet(evaluate), vjp, doc)


def _quiet(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """IEEE results without NumPy's warnings."""

    def quiet(*arrays: Any, **attrs: Any) -> Any:
        with np.errstate(all="ignore"):
            return evaluate(*arrays, **attrs)

    return quiet


def _wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluated in float64, rounded to the operands' dtype."""

    def wide(*arrays: Any) -> Any:
        return np.asarray(function(*(np.asarray(a, np.float64) for a in arrays))).astype(arrays[0].dtype)[()]

    return wide


# Meaning --------------------------------------------------------------------------------------------------------

_erf = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def _floor_div(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.floating):
        return np.floor_divide(a, b)
    return np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b))).astype(a.dtype)[()]


def _mod(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.floating):
        return np.mod(a, b)
    return np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b))).astype(a.dtype)[()]


def _pow(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.floating):
        return _wide(np.power)(a, b)
    inverse = np.where(a == 1, 1, np.where(a == -1, np.where(b % 2 == 0, 1, -1), 0))
    return np.where(b < 0, inverse, np.power(a, np.maximum(b, 0))).astype(a.dtype)[()]


def _convert(x: Any, *, dtype: DType) -> Any:
    x = np.asarray(x)
    if not (np.issubdtype(x.dtype, np.floating) and dtype.is_int):
        return x.astype(dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    low, high = float(limits.min), float(limits.max) + 1.0  # both exact; max itself is not for 64 bits
    inside = (x >= low) & (x < high)
    outside = np.where(x >= high, limits.max, np.where(x < low, limits.min, 0)).astype(dtype.numpy)
    return np.where(inside, np.where(inside, x, 0).astype(dtype.numpy), outside)


# Gradients ------------------------------------------------------------------------------------------------------


def _times(cotangent: Value, number: float) -> Value:
    return ops.mul(cotangent, ops.full_like(cotangent, number))


def _derivative(rule: Callable[[Value, Value], Value]) -> Rule:
    """The rule of y = f(x) with derivative `rule(x, y)`."""
    return lambda cotangent, node: (ops.mul(cotangent, rule(node.inputs[0], node.output)),)


def _one_minus(x: Value) -> Value:
    return ops.sub(ops.full_like(x, 1), x)


def _erf_slope(x: Value, y: Value) -> Value:
    return _times(ops.exp(ops.neg(ops.mul(x, x))), 2 / math.sqrt(math.pi))


def _rsqrt_slope(x: Value, y: Value) -> Value:
    return _times(ops.mul(y, ops.mul(y, y)), -0.5)


def _pow_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    """d/da = b a**(b-1), 0 for a = b = 0; d/db = a**b log a, 0 for a = 0 and b >= 0.

    Where b = 0 and 1/a could overflow, 0 a**0 stands for 0 a**(b-1): derivatives of it stay finite, too.
    """
    a, b = node.inputs
    zero, one = ops.full_like(a, 0), ops.full_like(a, 1)
    small = ops.less(ops.abs(a), ops.full_like(a, float(np.finfo(a.dtype.numpy).tiny)))
    flat = ops.logical_and(ops.equal(b, zero), small)
    slope_a = ops.mul(b, ops.pow(a, ops.where(flat, zero, ops.sub(b, one))))
    vanishes = ops.logical_and(ops.equal(a, zero), ops.greater_equal(b, zero))
    slope_b = ops.mul(node.output, ops.log(ops.where(vanishes, one, a)))
    return ops.mul(cotangent, slope_a), ops.mul(cotangent, slope_b)


def _choice_vjp(better: str) -> Rule:
    """The chosen operand receives the cotangent; equal operands receive half each, as in torch and JAX."""

    def rule(cotangent: Value, node: Node) -> Sequence[Value]:
        a, b = node.inputs
        tie = ops.where(ops.equal(a, b), _times(cotangent, 0.5), ops.full_like(a, 0))
        compare: Constructor = getattr(ops, better)
        return ops.where(compare(a, b), cotangent, tie), ops.where(compare(b, a), cotangent, tie)

    return rule


def _relu_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    zero = ops.full_like(cotangent, 0)
    return (ops.where(ops.less_equal(node.output, zero), zero, cotangent),)


def _div_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    _, b = node.inputs
    share = ops.div(cotangent, b)
    return share, ops.neg(ops.mul(share, node.output))


def _mod_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    a, b = node.inputs
    return cotangent, ops.neg(ops.mul(cotangent, ops.floor_div(a, b)))


def _mul_vjp(cotangent: Value, node: Node) -> Sequence[Value]:
    a, b = node.inputs
    return ops.mul(cotangent, b), ops.mul(cotangent, a)


def _where_vjp(cotangent: Value, node: Node) -> Sequence[Value | None]:
    condition, *_ = node.inputs
    zero = ops.full_like(cotangent, 0)
    return None, ops.where(condition, cotangent, zero), ops.where(condition, zero, cotangent)


def _convert_vjp(cotangent: Value, node: Node) -> Sequence[Value | None]:
    (x,) = node.inputs
    return (ops.convert(cotangent, dtype=x.dtype) if x.dtype.is_float and cotangent.dtype.is_float else None,)


def _convert_type(x: TensorType, *, dtype: DType) -> TensorType:
    found = x.with_dtype(dtype)
    require_dtype(ALL, found)
    return found


def _where_type(condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
    require_dtype(BOOLS, condition)
    require_dtype(ALL, a, b)
    require_same_shape(condition, a, b)
    return a


# One operand ----------------------------------------------------------------------------------------------------

neg: Constructor = _unary("neg", NUMBERS, np.negative, lambda g, n: (ops.neg(g),), "-x")
abs: Constructor = _unary("abs", NUMBERS, np.abs, _derivative(lambda x, y: ops.sign(x)), "|x|")
sign: Constructor = _unary("sign", NUMBERS, np.sign, zero_gradient, "-1, 0 or 1; NaN for NaN")
floor: Constructor = _unary("floor", FLOATS, np.floor, zero_gradient, "the largest integer <= x")
ceil: Constructor = _unary("ceil", FLOATS, np.ceil, zero_gradient, "the smallest integer >= x")
round: Constructor = _unary("round", FLOATS, np.rint, zero_gradient, "the nearest integer, halves to even")
sqrt: Constructor = _unary("sqrt", FLOATS, np.sqrt, lambda g, n: (ops.div(_times(g, 0.5), n.output),), "sqrt(x)")
rsqrt: Constructor = _unary("rsqrt", FLOATS, _wide(lambda x: 1 / np.sqrt(x)), _derivative(_rsqrt_slope), "1 / sqrt(x)")
exp: Constructor = _unary("exp", FLOATS, _wide(np.exp), _derivative(lambda x, y: y), "e**x")
expm1: Constructor = _unary(
    "expm1", FLOATS, _wide(np.expm1), _derivative(lambda x, y: ops.add(y, ops.full_like(y, 1))), "e**x - 1"
)
log: Constructor = _unary("log", FLOATS, _wide(np.log), lambda g, n: (ops.div(g, n.inputs[0]),), "natural logarithm")
log1p: Constructor = _unary(
    "log1p",
    FLOATS,
    _wide(np.log1p),
    lambda g, n: (ops.div(g, ops.add(n.inputs[0], ops.full_like(g, 1))),),
    "log(1 + x)",
)
sin: Constructor = _unary("sin", FLOATS, _wide(np.sin), _derivative(lambda x, y: ops.cos(x)), "sin(x), x in radians")
cos: Constructor = _unary(
    "cos", FLOATS, _wide(np.cos), _derivative(lambda x, y: ops.neg(ops.sin(x))), "cos(x), x in radians"
)
tanh: Constructor = _unary(
    "tanh", FLOATS, _wide(np.tanh), _derivative(lambda x, y: _one_minus(ops.mul(y, y))), "tanh(x)"
)
sigmoid: Constructor = _unary(
    "sigmoid", FLOATS, _wide(_sigmoid), _derivative(lambda x, y: ops.mul(y, _one_minus(y))), "1 / (1 + e**-x)"
)
erf: Constructor = _unary("erf", FLOATS, _wide(_erf), _derivative(_erf_slope), "the error function")
relu: Constructor = _unary(  # a primitive, so that its gradient needs y alone: where y is kept, x need not be
    "relu", NUMBERS, lambda x: np.where(x <= 0, np.zeros_like(x), x), _relu_vjp, "0 where x <= 0, else x; NaN for NaN"
)
logical_not: Constructor = _unary("logical_not", BOOLS, np.logical_not, zero_gradient, "not x")
convert: Constructor = define(
    "convert",
    Elementwise(),
    _convert_type,
    _quiet(_convert),
    _convert_vjp,
    "x in another dtype; float to int truncates and saturates",
)

# Two ------------------------------------------------------------------------------------------------------------

add: Constructor = _binary("add", NUMBERS, np.add, lambda g, n: (g, g), "a + b")
sub: Constructor = _binary("sub", NUMBERS, np.subtract, lambda g, n: (g, ops.neg(g)), "a - b")
mul: Constructor = _binary("mul", NUMBERS, np.multiply, _mul_vjp, "a * b")
div: Constructor = _binary("div", FLOATS, np.divide, _div_vjp, "a / b")
floor_div: Constructor = _binary(
    "floor_div", NUMBERS, _floor_div, zero_gradient, "floor(a / b); 0 for integers with b = 0"
)
mod: Constructor = _binary("mod", NUMBERS, _mod, _mod_vjp, "a - b * floor(a / b); 0 for integers with b = 0")
pow: Constructor = _binary("pow", NUMBERS, _pow, _pow_vjp, "a ** b")
maximum: Constructor = _binary("maximum", NUMBERS, np.maximum, _choice_vjp("greater"), "the larger; NaN if one is NaN")
minimum: Constructor = _binary("minimum", NUMBERS, np.minimum, _choice_vjp("less"), "the smaller; NaN if one is NaN")
equal: Constructor = _binary("equal", ALL, np.equal, zero_gradient, "a == b", DType.BOOL)
not_equal: Constructor = _binary("not_equal", ALL, np.not_equal, zero_gradient, "a != b", DType.BOOL)
less: Constructor = _binary("less", ALL, np.less, zero_gradient, "a < b", DType.BOOL)
less_equal: Constructor = _binary("less_equal", ALL, np.less_equal, zero_gradient, "a <= b", DType.BOOL)
greater: Constructor = _binary("greater", ALL, np.greater, zero_gradient, "a > b", DType.BOOL)
greater_equal: Constructor = _binary("greater_equal", ALL, np.greater_equal, zero_gradient, "a >= b", DType.BOOL)
logical_and: Constructor = _binary("logical_and", BOOLS, np.logical_and, zero_gradient, "a and b")
logical_or: Constructor = _binary("logical_or", BOOLS, np.logical_or, zero_gradient, "a or b")

# Three ----------------------------------------------------------------------------------------------------------

where: Constructor = define("where", Elementwise(), _where_type, np.where, _where_vjp, "a where condition, else b")
