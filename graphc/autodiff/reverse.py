"""Symbolic reverse-mode differentiation: a walk over the nodes, output first, applying each op's own gradient rule.

Knows no op by name. Only the rule of scans is here (`loops`), as it needs the walk itself for the step. Gradients are
ordinary graph, so they can be printed and differentiated again. Each gradient node takes the source line of the node
that it is derived from.

A gradient of zero and a missing gradient rule differ: `None` for an operand is zero, an op without a rule raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc import ops
from graphc.autodiff import loops
from graphc.errors import GradientError
from graphc.ir import source
from graphc.ir.graph import Node, Value, topological
from graphc.ir.op import Scan
from graphc.ops.control import depending


def grad(output: Value, wrt: Sequence[Value], cotangent: Value | None = None) -> tuple[Value, ...]:
    """d output / d value for each value in `wrt`, of that value's type.

    `output` must be a float scalar, unless a `cotangent` of its type weighs its elements. Raises GradientError for
    anything else, for a value of an integer dtype, for one that `output` does not depend on, and for an op on the
    way that has no gradient rule.
    """
    wrt = tuple(wrt)
    seed = _seed(output, cotangent)
    _require_connected(output, wrt, topological([output]))
    cotangents = pull({output: seed}, wrt)
    return tuple(cotangents[v] if v in cotangents else ops.full_like(v, 0) for v in wrt)


def pull(seeds: Mapping[Value, Value], wrt: Sequence[Value]) -> dict[Value, Value]:
    """The cotangents of those of `wrt` that have one, when the values in `seeds` have those."""
    nodes = topological(seeds)
    active = depending(nodes, wrt)
    cotangents = dict(seeds)
    for node in reversed(nodes):
        if not active.intersection(node.outputs):
            continue
        for value, share in _shares(node, cotangents, active):
            if value not in active:
                continue
            with source.located(node.location):
                known = cotangents.get(value)
                cotangents[value] = share if known is None else ops.add(known, share)
    return {value: cotangents[value] for value in wrt if value in cotangents}


def _seed(output: Value, cotangent: Value | None) -> Value:
    location = output.node.location if output.node else source.here()
    if not output.dtype.is_float:
        raise GradientError(f"only a float can be differentiated, not {output.type}", location)
    if cotangent is None and output.shape != ():
        raise GradientError(f"a gradient needs a scalar, not {output.type}; take its sum or mean", location)
    if cotangent is not None and cotangent.type != output.type:
        raise GradientError(f"the cotangent of {output.type} cannot be {cotangent.type}", location)
    with source.located(location):
        return ops.full_like(output, 1) if cotangent is None else cotangent


def _require_connected(output: Value, wrt: Sequence[Value], nodes: Sequence[Node]) -> None:
    reached = {output, *(value for node in nodes for value in node.inputs)}
    for number, value in enumerate(wrt):
        name = f"%{value.name}" if value.name else f"value {number}"
        location = value.node.location if value.node else source.here()
        if not value.dtype.is_float:
            raise GradientError(f"no gradient with respect to {name}: {value.type} is not a float", location)
        if value not in reached:
            raise GradientError(f"{output.type} does not depend on {name}: {value.type}", location)


def _shares(node: Node, cotangents: dict[Value, Value], active: set[Value]) -> list[tuple[Value, Value]]:
    """What the node hands on to each of its operands."""
    found = [cotangents[v] for v in node.outputs if v in cotangents]
    if not found:
        return []
    with source.located(node.location):
        if isinstance(node.op.kind, Scan):
            pairs = loops.shares(node, cotangents, active, pull)
        elif node.op.vjp is None:
            raise GradientError(f"{node.op.name} has no gradient rule", node.location)
        else:
            shares = node.op.vjp(found[0], node)
            pairs = [(v, share) for v, share in zip(node.inputs, shares, strict=True) if share is not None]
    for value, share in pairs:
        assert share.type == value.type, f"{node.op.name}: the cotangent of {value.type} is {share.type}"
    return pairs
