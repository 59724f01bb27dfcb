"""How far rounding may move each element of a graph's results: first-order error analysis beside the reference.

Every value carries the size of its error, element by element. Operands' errors go through an op as the op itself says,
so that none needs a rule of its own; errors of different origin add up as the root of the sum of their squares:

    elementwise           what changes when one operand is moved by its error, up or down. A condition that may go
                          either way counts as both ways; a product has the errors' product, too; a quotient whose
                          divisor may be 0 is as large as the least divisor allows that the ops above it leave
    movement, sum,        sqrt(f(x**2 + e**2) - f(x**2)): these only add and multiply
    product, contraction
    maximum, minimum      what changes when all elements are moved by their errors, up or down

To that each op adds its own rounding: `LOCAL` units in the last place of its result, and for a sum of n terms
max(LOCAL, sqrt(n)) units of the sum of their magnitudes, whatever they cancel to: the probabilistic bound of Higham and
Mary, "A new approach to probabilistic rounding error analysis" (2019), for any order of the additions.

Errors are taken as independent, since the worst case grows so fast with depth that wrong results would pass for rounded
ones. `LOCAL` leaves room for those that are not: on small networks of every family native code uses a quarter of these
errors, which are 1e-6 of the result's size where nothing cancels. A wrong sign, a missing term or another element of
the operand changes a sum of n terms by about 1/n of their magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.op import Call, Contraction, Elementwise, Movement, Reduction, Scan
from graphc.ir.types import DType

Array = np.ndarray[Any, Any]

LOCAL: Mapping[DType, float] = {  # ulps, of one op
    DType.F32: 4.0,
    DType.F64: 16.0,  # the reference computes in float64 itself and is no more exact
}
_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_SUMS = ("reduce_sum", "unwindows", "scatter_add")  # and contractions


class Bounded(NamedTuple):
    """An array (float64 for floats) and the bounds of its elements' errors, float64."""

    value: Array
    error: Array


def errors(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    """Bounds for the outputs, then the next states, of a bound graph on exact arrays for inputs then state."""
    outputs, following = _run(graph, [Bounded(_wide(a), np.zeros(np.shape(a))) for a in arrays])
    return [result.error for result in (*outputs, *following)]


def _run(graph: Graph, given: Sequence[Bounded]) -> tuple[list[Bounded], list[Bounded]]:
    known: dict[Value, Bounded] = dict(zip((*graph.inputs, *graph.state), given, strict=True))
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            known.update(zip(node.outputs, _apply(node, [known[v] for v in node.inputs]), strict=True))
    return [known[v] for v in graph.outputs], [known[v] for _, v in graph.next]


def _apply(node: Node, operands: list[Bounded]) -> list[Bounded]:
    match node.op.kind:
        case Call():
            return _run(node.attrs["body"], operands)[0]
        case Scan():
            return _scan(operands, **node.attrs)
        case _:
            value = _evaluate(node, [operand.value for operand in operands])
            return [Bounded(value, np.hypot(_passed_on(node, operands, value), _own(node, operands, value)))]


def _scan(operands: list[Bounded], *, length: int, slices: int, reverse: bool, body: Graph) -> list[Bounded]:
    carries, given = operands[: len(body.state)], operands[len(body.state) :]
    stacked, constants = given[:slices], given[slices:]
    results = []
    for value in body.outputs:
        shape, wide = (length, *value.type.extents), np.float64 if value.dtype.is_float else value.dtype.numpy
        results.append(Bounded(np.empty(shape, wide), np.empty(shape)))
    for t in range(length)[:: -1 if reverse else 1]:
        here = [Bounded(value[t, ...], error[t, ...]) for value, error in stacked]
        outputs, carries = _run(body, [*here, *constants, *carries])
        for result, output in zip(results, outputs, strict=True):
            result.value[t], result.error[t] = output
    return [*carries, *results]


def _passed_on(node: Node, operands: list[Bounded], value: Array) -> Array:
    """What the operands' errors do to the result."""
    moving = [n for n, operand in enumerate(operands) if operand.error.any()]
    if not moving:
        return np.zeros(value.shape)
    match node.op.kind:
        case Elementwise():
            found = reduce(np.hypot, (_shifted(node, operands, [n], value) for n in moving))
            return _beyond_first_order(node, operands, found)
        case Movement() | Contraction() | Reduction(combine="add" | "mul"):
            return _grown(node, operands, moving)
        case _ if node.op.name == "scatter_add" or (node.op.name == "gather" and moving == [0]):
            return _grown(node, operands, [1 if node.op.name == "scatter_add" else 0])
        case _:
            return _shifted(node, operands, moving, value)


def _beyond_first_order(node: Node, operands: Sequence[Bounded], found: Array) -> Array:
    """Where errors may be as large as the operands, what moving one at a time does not show."""
    first, last = operands[0], operands[-1]
    if node.op.name == "mul":
        found = np.hypot(found, first.error * last.error)
    if node.op.name == "div" and (last.error >= np.abs(last.value)).any():
        largest = (np.abs(first.value) + first.error) / max(_least(node.inputs[1]), 0.0)
        found = np.where(last.error >= np.abs(last.value), largest + np.abs(first.value / last.value), found)
    if node.op.name in _COMPARISONS:  # of one origin, as an element and the maximum of its row
        found = np.where(first.value == last.value, 0.0, found)
    return found


def _least(value: Value, further: int = 8) -> float:
    """A number that a value is no smaller than, by a few of the ops that make it; -infinity where they do not say."""
    node = value.node
    if node is None or not further:
        return -np.inf
    inputs = [partial(_least, operand, further - 1) for operand in node.inputs]
    match node.op.name:
        case "constant":
            return float(node.attrs["value"].array.min(initial=np.inf))
        case "broadcast" | "reshape" | "transpose" | "slice" | "convert" | "stop_gradient":
            return inputs[0]()
        case "add":
            return sum(least() for least in inputs)
        case "sqrt" | "abs" | "exp" | "sigmoid" | "relu":
            return 0.0
        case "mul" | "div" if node.inputs[0] is node.inputs[1] or min(least() for least in inputs) >= 0:
            return 0.0
    return -np.inf


def _shifted(node: Node, operands: list[Bounded], moving: Sequence[int], value: Array) -> Array:
    """The larger of the changes when some operands are moved by their errors, up and down."""
    found = np.zeros(value.shape)
    for sign in (1, -1):
        moved = [_moved(x, sign) if n in moving else x.value for n, x in enumerate(operands)]
        if node.op.name in ("sqrt", "rsqrt"):  # of what is not negative, whatever its error
            moved = [np.where(operands[0].value >= 0, np.maximum(moved[0], 0.0), moved[0])]
        found = np.maximum(found, _change(_evaluate(node, moved), value))
    return found


def _moved(operand: Bounded, sign: int) -> Array:
    value, error = operand
    if value.dtype.kind == "b":  # up: every doubtful one true; down: false
        return np.where(error > 0, sign > 0, value)
    return np.asarray(value + sign * error.astype(value.dtype))


def _grown(node: Node, operands: list[Bounded], moving: Sequence[int]) -> Array:
    """The change of an op that only adds and multiplies, squared and taken over squares: independent errors."""
    squares = [size * size if size.dtype.kind == "f" else size for size in _magnitudes(node, operands)]
    grown = [
        square + x.error * x.error if n in moving else square
        for n, (square, x) in enumerate(zip(squares, operands, strict=True))
    ]
    return np.sqrt(_change(_evaluate(node, grown), _evaluate(node, squares)))


def _own(node: Node, operands: list[Bounded], value: Array) -> Array:
    """The rounding of the op itself."""
    dtype = node.output.dtype
    if not dtype.is_float:
        return np.zeros(value.shape)
    match node.op.kind:
        case Elementwise() | Reduction(combine="mul"):
            return LOCAL[dtype] * _unit(value, dtype)
        case _ if node.op.name in _SUMS or isinstance(node.op.kind, Contraction):
            sizes = _magnitudes(node, operands)
            terms = _evaluate(node, [np.ones_like(size) if size.dtype.kind == "f" else size for size in sizes])
            growth = max(LOCAL[dtype], sqrt(float(terms.max(initial=1.0))))
            return growth * _unit(_evaluate(node, sizes), dtype)
    return np.zeros(value.shape)


def _magnitudes(node: Node, operands: list[Bounded]) -> list[Array]:
    """The operands without signs; positions stay as they are."""
    positions = {"scatter_add": 0, "gather": 1}.get(node.op.name)
    return [x.value if n == positions else np.abs(x.value.astype(np.float64)) for n, x in enumerate(operands)]


def _evaluate(node: Node, arrays: Sequence[Array]) -> Array:
    assert node.op.evaluate is not None
    return _wide(node.op.evaluate(*arrays, **node.attrs))


def _wide(found: Any) -> Array:
    array: Array = np.asarray(found)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _change(found: Array, value: Array) -> Array:
    """|found - value|; infinite where a finite element is lost, none where it was not finite."""
    change: Array = np.abs(found.astype(np.float64) - value.astype(np.float64))
    return np.where(np.isfinite(value), np.where(np.isnan(change), np.inf, change), 0.0)


def _unit(value: Array, dtype: DType) -> Array:
    """A unit in the last place of each element, about: none of zero, which is exact, and of what is not finite."""
    found = np.abs(value) * float(np.finfo(dtype.numpy).eps)
    return np.where(np.isfinite(found), found, 0.0)
