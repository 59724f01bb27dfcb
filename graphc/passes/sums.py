"""Equations of sums: sums of sums, and what can be taken out of one.

As in `movements`, each takes a node of the op that it is entered under, and returns what stands for it, or None.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from math import prod

from graphc import ops
from graphc.ir.graph import Node, Value
from graphc.passes.fold import number_of
from graphc.passes.rewrite import made_by, repeated

MOST_PARTS = 16  # terms or factors that are looked at
MOST_SEEN = 64  # values that are looked at to find what a factor follows from


def reduce_nothing(node: Node) -> Value | None:
    """a reduction over axes of extent 1 is a reshape"""
    (x,), axes = node.inputs, node.attrs["axes"]
    return ops.reshape(x, shape=node.output.shape) if all(x.shape[a] == 1 for a in axes) else None


def sum_of_sum(node: Node) -> Value | None:
    """sum(sum(x)) = sum over both sets of axes"""
    inner = made_by(node.inputs[0], "reduce_sum")
    if inner is None or not node.output.dtype.is_float:
        return None
    (x,) = inner.inputs
    kept = [a for a in range(x.type.rank) if a not in inner.attrs["axes"]]
    axes = sorted([*inner.attrs["axes"], *(kept[a] for a in node.attrs["axes"])])
    return ops.reduce_sum(x, axes=axes)


def sum_of_negated(node: Node) -> Value | None:
    """sum(-x) = -sum(x)"""
    inner = made_by(node.inputs[0], "neg")
    return ops.neg(ops.reduce_sum(inner.inputs[0], axes=node.attrs["axes"])) if inner else None


def sum_of_deviations(node: Node) -> Value | None:
    """sum(x - m) = 0 m, where m is the mean of x: zero, or not a number where m is not finite"""
    (x,), axes = node.inputs, node.attrs["axes"]
    deviation = made_by(x, "sub")
    mean = made_by(repeated(deviation.inputs[1], axes), "div") if deviation else None
    total = made_by(mean.inputs[0], "reduce_sum") if mean else None
    if deviation is None or mean is None or total is None:
        return None
    count = prod(x.shape[axis] for axis in axes)
    is_mean = total.inputs[0] is deviation.inputs[0] and total.attrs["axes"] == axes
    if not is_mean or not count or number_of(mean.inputs[1]) != count:
        return None
    return ops.mul(mean.output, ops.full_like(mean.output, 0))


def sum_after_sum(node: Node) -> Value | None:
    """sum(x + k y) = sum(x) + k sum(y), where k follows from another sum over the same elements

    Then one pass over them finds all three sums, as in the gradients of normalisations. What has no such factor stays
    together, as its parts may cancel: x - c, where c is repeated. Where k is infinite, both sides are infinite or not
    a number, but not always the same of the two.
    """
    x, axes = node.inputs[0], node.attrs["axes"]
    if not x.dtype.is_float or any(x.shape[axis] == 0 for axis in axes):
        return None
    terms = [(sign, *_split(value, node)) for sign, value in _parts(x, "add", "sub")]
    if not any(factors for _, factors, _ in terms):
        return None
    together = _added((sign, value) for sign, factors, value in terms if not factors)
    totals = [(1, ops.reduce_sum(together, axes=axes))] if together else []
    for sign, factors, rest in terms:
        if factors:
            total = ops.reduce_sum(rest, axes=axes)
            totals.append((sign, reduce(ops.mul, (_along_the_kept(factor, node) for factor in factors), total)))
    return _added(totals)


def _added(terms: Iterable[tuple[int, Value]]) -> Value | None:
    """The sum of terms with signs; None where there are none."""
    found: Value | None = None
    for sign, value in terms:
        if found is None:
            found = value if sign > 0 else ops.neg(value)
        else:
            found = (ops.add if sign > 0 else ops.sub)(found, value)
    return found


def _parts(value: Value, *names: str) -> list[tuple[int, Value]]:
    """(sign, value) for the terms of a sum, or the factors of a product: nodes of these ops.

    At most MOST_PARTS; what is left then stays whole.
    """
    found: list[tuple[int, Value]] = []
    waiting = [(1, value)]
    while waiting:
        sign, value = waiting.pop()
        node = value.node
        if node is None or node.op.name not in names or len(found) + len(waiting) + 2 > MOST_PARTS:
            found.append((sign, value))
            continue
        first, second = node.inputs
        waiting += [(-sign if node.op.name == "sub" else sign, second), (sign, first)]
    return found


def _split(value: Value, node: Node) -> tuple[list[Node], Value]:
    """(the factors of a term that are repeated along the axes of a sum, the product of the others), if one of them
    follows from another such sum; else no factors and the term itself."""
    factors = [factor for _, factor in _parts(value, "mul")]
    spread = [made_by(factor, "broadcast") for factor in factors]
    taken = [s for s in spread if s and not set(s.attrs["axes"]) & set(node.attrs["axes"])]
    if len(taken) == len(factors) or not any(_follows(s, node) for s in taken):
        return [], value
    return taken, reduce(ops.mul, (factor for factor in factors if factor.node not in taken))


def _follows(spread: Node, node: Node) -> bool:
    """Whether what is repeated depends on a sum like `node`: of values of the same shape, over the same axes."""
    seen, waiting = set[Value](), list(spread.inputs)
    while waiting and len(seen) < MOST_SEEN:
        value = waiting.pop()
        if value in seen or value.node is None:
            continue
        seen.add(value)
        (*operands,) = value.node.inputs
        if value.node.op.name == node.op.name and operands[0].shape == node.inputs[0].shape:
            if value.node.attrs["axes"] == node.attrs["axes"]:
                return True
            continue
        waiting += operands
    return False


def _along_the_kept(spread: Node, node: Node) -> Value:
    """A repeated value, repeated as the sum's result."""
    kept = [axis for axis in range(node.inputs[0].type.rank) if axis not in node.attrs["axes"]]
    axes = [kept.index(axis) for axis in spread.attrs["axes"]]
    return ops.broadcast(spread.inputs[0], shape=node.output.shape, axes=axes)
