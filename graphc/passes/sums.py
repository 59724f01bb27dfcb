"""Equations of sums: sums of sums, and what can be taken out of one.

As in `movements`, each takes a node of the op that it is entered under, and returns what stands for it, or None.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from math import prod

from graphc import ops
from graphc.ir.graph import Node, Value
from graphc.passes.fold import number_of
from graphc.passes.rewrite import made_by

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
    """sum(x - m) = 0 m, where m is the mean of x: zero, or not a number where x has what is not finite"""
    (x,), axes = node.inputs, node.attrs["axes"]
    deviation = made_by(x, "sub")
    spread = made_by(deviation.inputs[1], "broadcast") if deviation else None
    mean = made_by(spread.inputs[0], "div") if spread else None
    total = made_by(mean.inputs[0], "reduce_sum") if mean else None
    if deviation is None or spread is None or mean is None or total is None:
        return None
    kept = tuple(axis for axis in range(x.type.rank) if axis not in axes)
    same = total.inputs[0] is deviation.inputs[0] and total.attrs["axes"] == axes and spread.attrs["axes"] == kept
    count = prod(x.shape[axis] for axis in axes)
    if not same or not count or number_of(mean.inputs[1]) != count:
        return None
    return ops.mul(mean.output, ops.full_like(mean.output, 0))


def sum_after_sum(node: Node) -> Value | None:
    """sum(x + k y) = sum(x) + k sum(y), where k follows from another sum over the same elements

    Then one pass over them finds all three sums, as in the gradients of normalisations. Not sum(x + k): that would
    cancel where k is minus the mean of x.
    """
    if not node.output.dtype.is_float:
        return None
    terms = [(positive, *_split(value, node)) for positive, value in _terms(node.inputs[0], True)]
    if not any(repeated for _, repeated, _ in terms):
        return None
    totals = [
        reduce(
            ops.mul,
            (_along_the_kept(factor, node) for factor in repeated),
            ops.reduce_sum(rest, axes=node.attrs["axes"]),
        )
        for _, repeated, rest in terms
    ]
    found = totals[0]  # of a term that is added: it has none before it
    for (positive, _, _), total in zip(terms[1:], totals[1:], strict=True):
        found = (ops.add if positive else ops.sub)(found, total)
    return found


def _terms(value: Value, positive: bool) -> Iterator[tuple[bool, Value]]:
    """(whether it is added, the value) for each term of a sum of elements."""
    node = value.node
    if node is None or node.op.name not in ("add", "sub"):
        yield positive, value
        return
    first, second = node.inputs
    yield from _terms(first, positive)
    yield from _terms(second, positive == (node.op.name == "add"))


def _factors(value: Value) -> Iterator[Value]:
    node = made_by(value, "mul")
    if node is None:
        yield value
        return
    for operand in node.inputs:
        yield from _factors(operand)


def _split(value: Value, node: Node) -> tuple[list[Node], Value]:
    """(the factors of a term that are repeated along the axes of a sum, the product of the others), if one of them
    follows from another such sum; else nothing and the term itself."""
    factors = list(_factors(value))
    spread = [made_by(factor, "broadcast") for factor in factors]
    repeated = [s for s in spread if s and not set(s.attrs["axes"]) & set(node.attrs["axes"])]
    if len(repeated) == len(factors) or not any(_follows(s, node) for s in repeated):
        return [], value
    return repeated, reduce(ops.mul, (factor for factor in factors if factor.node not in repeated))


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
