"""Equations between elementwise expressions: identities, and stable forms of what overflows or cancels.

The equations hold for real numbers. A rule may change the last bits of a float, never by more than the expression on
its left is exact to; those that would lose a NaN or an infinity (x - x = 0, 0 x = 0) are not here. The sign of a zero
may change (x + 0 = x), and so may that of an infinity which is made of it; roots for half powers say what they do.
"""

from __future__ import annotations

from graphc import ops
from graphc.ir.graph import Value
from graphc.ir.types import DType
from graphc.passes.rewrite import Rule, made_by

BOOL, F32 = DType.BOOL, DType.F32


def _zero(x: Value) -> Value:
    return ops.full_like(x, 0)


def _one(x: Value) -> Value:
    return ops.full_like(x, 1)


def _always(x: Value) -> Value:
    return ops.full(x.shape, True, BOOL)


def _never(x: Value) -> Value:
    return ops.full(x.shape, False, BOOL)


def _fourth_power(x: Value) -> Value:
    return ops.mul(ops.mul(x, x), ops.mul(x, x))


def _softplus(x: Value) -> Value:
    """log(1 + e**x) without overflow."""
    return ops.add(ops.relu(x), ops.log1p(ops.exp(ops.neg(ops.abs(x)))))


def _is_minus_abs(x: Value) -> bool:
    """Whether x is -|y|, of which e**x cannot overflow."""
    negated = made_by(x, "neg")
    return negated is not None and made_by(negated.inputs[0], "abs") is not None


IDENTITIES = (
    Rule("x + 0 = x", lambda x: ops.add(x, _zero(x)), lambda x: x),
    Rule("x - 0 = x", lambda x: ops.sub(x, _zero(x)), lambda x: x),
    Rule("0 - x = -x", lambda x: ops.sub(_zero(x), x), ops.neg),
    Rule("x 1 = x", lambda x: ops.mul(x, _one(x)), lambda x: x),
    Rule("x (-1) = -x", lambda x: ops.mul(x, ops.full_like(x, -1)), ops.neg),
    Rule("x / 1 = x", lambda x: ops.div(x, _one(x)), lambda x: x),
    Rule("-(-x) = x", lambda x: ops.neg(ops.neg(x)), lambda x: x),
    Rule("x + (-y) = x - y", lambda x, y: ops.add(x, ops.neg(y)), ops.sub),
    Rule("x - (-y) = x + y", lambda x, y: ops.sub(x, ops.neg(y)), ops.add),
    Rule("-(x - y) = y - x", lambda x, y: ops.neg(ops.sub(x, y)), lambda x, y: ops.sub(y, x)),
    Rule("(-x) (-y) = x y", lambda x, y: ops.mul(ops.neg(x), ops.neg(y)), ops.mul),
    Rule("x**1 = x", lambda x: ops.pow(x, _one(x)), lambda x: x),
    Rule("x**2 = x x", lambda x: ops.pow(x, ops.full_like(x, 2)), lambda x: ops.mul(x, x)),
    Rule("x**3 = x x x", lambda x: ops.pow(x, ops.full_like(x, 3)), lambda x: ops.mul(x, ops.mul(x, x))),
    Rule("x**4 = (x x) (x x)", lambda x: ops.pow(x, ops.full_like(x, 4)), _fourth_power),
    # Roots, as torch's: at -inf NaN, where a power is infinite or 0; at -0 minus what a power is.
    Rule("x**0.5 = sqrt(x)", lambda x: ops.pow(x, ops.full_like(x, 0.5)), ops.sqrt),
    Rule("x**-0.5 = rsqrt(x)", lambda x: ops.pow(x, ops.full_like(x, -0.5)), ops.rsqrt),
    Rule(
        "x**-1 = 1 / x",
        lambda x: ops.pow(x, ops.full_like(x, -1)),
        lambda x: ops.div(_one(x), x),
        unless=lambda x: not x.dtype.is_float,  # an integer's is 0, 1 or -1
    ),
    Rule("1 / sqrt(x) = rsqrt(x)", lambda x: ops.div(_one(x), ops.sqrt(x)), ops.rsqrt),
    Rule("|-x| = |x|", lambda x: ops.abs(ops.neg(x)), ops.abs),
    Rule("||x|| = |x|", lambda x: ops.abs(ops.abs(x)), ops.abs),
    Rule("relu(relu(x)) = relu(x)", lambda x: ops.relu(ops.relu(x)), ops.relu),
    Rule("not not a = a", lambda a: ops.logical_not(ops.logical_not(a)), lambda a: a, (BOOL,)),
    Rule("a and true = a", lambda a: ops.logical_and(a, _one(a)), lambda a: a, (BOOL,)),
    Rule("a and false = false", lambda a: ops.logical_and(a, _zero(a)), _zero, (BOOL,)),
    Rule("a or false = a", lambda a: ops.logical_or(a, _zero(a)), lambda a: a, (BOOL,)),
    Rule("a or true = true", lambda a: ops.logical_or(a, _one(a)), _one, (BOOL,)),
    Rule("a and a = a", lambda a: ops.logical_and(a, a), lambda a: a, (BOOL,)),
    Rule("a or a = a", lambda a: ops.logical_or(a, a), lambda a: a, (BOOL,)),
    Rule("where(true, x, y) = x", lambda x, y: ops.where(_always(x), x, y), lambda x, y: x),
    Rule("where(false, x, y) = y", lambda x, y: ops.where(_never(x), x, y), lambda x, y: y),
    Rule("where(a, x, x) = x", lambda a, x: ops.where(a, x, x), lambda a, x: x, (BOOL, F32)),
    Rule(
        "where(not a, x, y) = where(a, y, x)",
        lambda a, x, y: ops.where(ops.logical_not(a), x, y),
        lambda a, x, y: ops.where(a, y, x),
        (BOOL, F32),
    ),
    Rule(
        "-where(a, x, 0) = where(a, -x, 0)",
        lambda a, x: ops.neg(ops.where(a, x, _zero(x))),
        lambda a, x: ops.where(a, ops.neg(x), _zero(x)),
        (BOOL, F32),
    ),
)

STABLE = (
    Rule("log(1 + x) = log1p(x)", lambda x: ops.log(ops.add(_one(x), x)), ops.log1p),
    Rule("e**x - 1 = expm1(x)", lambda x: ops.sub(ops.exp(x), _one(x)), ops.expm1),
    Rule("log1p(e**x) = softplus(x)", lambda x: ops.log1p(ops.exp(x)), _softplus, unless=_is_minus_abs),
    Rule(
        "g / (1 + e**x) e**x = g sigmoid(x)",  # the gradient of log(1 + e**x)
        lambda g, x: ops.mul(ops.div(g, ops.add(_one(x), ops.exp(x))), ops.exp(x)),
        lambda g, x: ops.mul(g, ops.sigmoid(x)),
    ),
    Rule(
        "e**x / (1 + e**x) = sigmoid(x)",
        lambda x: ops.div(ops.exp(x), ops.add(_one(x), ops.exp(x))),
        ops.sigmoid,
    ),
    Rule(
        "1 / (1 + e**-x) = sigmoid(x)", lambda x: ops.div(_one(x), ops.add(_one(x), ops.exp(ops.neg(x)))), ops.sigmoid
    ),
    Rule("1 - sigmoid(x) = sigmoid(-x)", lambda x: ops.sub(_one(x), ops.sigmoid(x)), lambda x: ops.sigmoid(ops.neg(x))),
    Rule(
        "log(sigmoid(x)) = -softplus(-x)", lambda x: ops.log(ops.sigmoid(x)), lambda x: ops.neg(_softplus(ops.neg(x)))
    ),
    Rule(
        "g / s(x) (s(x) s(-x)) = g s(-x)",  # the gradient of log(sigmoid(x))
        lambda g, x: ops.mul(ops.div(g, ops.sigmoid(x)), ops.mul(ops.sigmoid(x), ops.sigmoid(ops.neg(x)))),
        lambda g, x: ops.mul(g, ops.sigmoid(ops.neg(x))),
    ),
    Rule("log(e**x) = x", lambda x: ops.log(ops.exp(x)), lambda x: x),
    Rule(
        "log(e**x / y) = x - log(y)",  # log(softmax)
        lambda x, y: ops.log(ops.div(ops.exp(x), y)),
        lambda x, y: ops.sub(x, ops.log(y)),
    ),
    Rule(  # this and the next three: the gradient of log(softmax)
        "g / (e**x / y) / y = g / e**x",
        lambda g, x, y: ops.div(ops.div(g, ops.div(ops.exp(x), y)), y),
        lambda g, x, y: ops.div(g, ops.exp(x)),
    ),
    Rule("g / e**x e**x = g", lambda g, x: ops.mul(ops.div(g, ops.exp(x)), ops.exp(x)), lambda g, x: g),
    Rule(
        "(g / e**x + c) e**x = g + c e**x",
        lambda g, x, c: ops.mul(ops.add(ops.div(g, ops.exp(x)), c), ops.exp(x)),
        lambda g, x, c: ops.add(g, ops.mul(c, ops.exp(x))),
    ),
    Rule(
        "g / e**x (e**x / y) = g / y",
        lambda g, x, y: ops.mul(ops.div(g, ops.exp(x)), ops.div(ops.exp(x), y)),
        lambda g, x, y: ops.div(g, y),
    ),
)

RULES = (*STABLE, *IDENTITIES)
