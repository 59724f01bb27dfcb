"""Equations of softmax and of log(sum(e**x)), whose sums are repeated along what was summed.

As in `movements`, each takes a node of the op that it is entered under, and returns what stands for it, or None. The
stable forms subtract the maximum; `algebra` has the equations that need no sum.
"""

from __future__ import annotations

from graphc import ops
from graphc.ir.graph import Node, Value
from graphc.passes.rewrite import made_by, repeated


def log_of_sum_of_exp(node: Node) -> Value | None:
    """log(sum(e**x)) = m + log(sum(e**(x - m))), m = max(x)"""
    total = made_by(node.inputs[0], "reduce_sum")
    inner = made_by(total.inputs[0], "exp") if total else None
    if total is None or inner is None or _is_shifted(inner.inputs[0]):
        return None
    (x,), axes = inner.inputs, total.attrs["axes"]
    top, shifted = _shift(x, axes)
    return ops.add(top, ops.log(ops.reduce_sum(ops.exp(shifted), axes=axes)))


def exp_over_sum(node: Node) -> Value | None:
    """g / sum(e**x) e**x = g e**(x - m) / sum(e**(x - m)): the gradient of log(sum(e**x))"""
    for first, second in (node.inputs, node.inputs[::-1]):
        inner, spread = made_by(second, "exp"), made_by(first, "broadcast")
        share = made_by(spread.inputs[0], "div") if spread else None
        total = made_by(share.inputs[1], "reduce_sum") if share else None
        if inner is None or spread is None or share is None or total is None or total.inputs[0] is not second:
            continue
        (x,), axes = inner.inputs, total.attrs["axes"]
        kept = tuple(a for a in range(x.type.rank) if a not in axes)
        if spread.attrs["axes"] != kept or _is_shifted(x):
            continue
        _, shifted = _shift(x, axes)
        e = ops.exp(shifted)
        stable = ops.div(share.inputs[0], ops.reduce_sum(e, axes=axes))
        return ops.mul(ops.broadcast(stable, shape=x.shape, axes=kept), e)
    return None


def gradient_of_softmax(node: Node) -> Value | None:
    """(g / b - sum(p g / b)) e = (g - sum(p g)) p, where p = e / b, and b is the same along the sum"""
    for change, e in (node.inputs, node.inputs[::-1]):
        added = made_by(change, "add")
        for share, spread in (added.inputs, added.inputs[::-1]) if added else ():
            quotient, total = made_by(share, "div"), _subtracted_sum(spread)
            product = made_by(total.inputs[0], "mul") if total else None
            if quotient is None or total is None or product is None or share not in product.inputs:
                continue
            g, b = quotient.inputs
            p = product.inputs[product.inputs[0] is share]
            ratio, divisor, axes = made_by(p, "div"), made_by(b, "broadcast"), total.attrs["axes"]
            if ratio is None or ratio.inputs != (e, b) or divisor is None or set(divisor.attrs["axes"]) & set(axes):
                continue
            kept = tuple(a for a in range(g.type.rank) if a not in axes)
            same = ops.broadcast(ops.reduce_sum(ops.mul(p, g), axes=axes), shape=g.shape, axes=kept)
            return ops.mul(ops.sub(g, same), p)
    return None


def _subtracted_sum(x: Value) -> Node | None:
    """The sum whose negative is repeated along what was summed."""
    spread = made_by(x, "broadcast")
    flat = made_by(spread.inputs[0], "reshape") if spread else None
    minus = made_by(flat.inputs[0] if flat else spread.inputs[0], "neg") if spread else None
    total = made_by(minus.inputs[0], "reduce_sum") if minus else None
    return total if minus and total and repeated(x, total.attrs["axes"]) is minus.output else None


def _shift(x: Value, axes: tuple[int, ...]) -> tuple[Value, Value]:
    """The maximum (0 where it is infinite), and x without it."""
    kept = tuple(a for a in range(x.type.rank) if a not in axes)
    top = ops.reduce_max(x, axes=axes)
    finite = ops.less(ops.abs(top), ops.full_like(top, float("inf")))
    top = ops.where(finite, top, ops.full_like(top, 0))
    return top, ops.sub(x, ops.broadcast(top, shape=x.shape, axes=kept))


def _is_shifted(x: Value) -> bool:
    """Whether something that comes from a maximum has been subtracted."""
    node = made_by(x, "sub")
    if node is None:
        return False
    value: Value = node.inputs[1]
    while value.node is not None and value.node.op.name in ("broadcast", "reshape", "stop_gradient", "where"):
        value = value.node.inputs[-2] if value.node.op.name == "where" else value.node.inputs[0]
    return value.node is not None and value.node.op.name == "reduce_max"
