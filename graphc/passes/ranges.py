"""The range of what each value of a graph can be within a box of positions: what a mask leaves of a block.

Before: `%2 = less_equal %column, %row`, `%4 = where %2, %score, %minus_infinity`, `%6 = exp (sub %4, %top)`
After:  for rows 0 to 7 and columns 8 to 15: %2 is false, %4 is -inf, %6 is 0.

What is not known is taken for any finite number, and so are integers that do not fit their type; floats are rounded
outwards. An infinity or NaN among the operands, or from an overflow, can leave its range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.types import DType
from graphc.passes.fold import number_of

Range = tuple[float, float]  # the least and the greatest; a bool is 0 or 1

LARGEST = 1.7976931348623157e308
ANY: Range = (-LARGEST, LARGEST)
MAYBE: Range = (0, 1)
NORMAL = 87.0  # e**x is a normal float32 up to here, and down to -87
ERROR = 1e-6  # of exp, relative


def ranges_of(graph: Graph, axes: Mapping[Value, Sequence[int]], box: Mapping[int, range]) -> dict[Value, Range]:
    """The range of each node's value where the axes with the numbers in `box` are at positions within it."""
    found: dict[Value, Range] = {}
    for node in graph.nodes:
        out = node.output
        found[out] = _in_type(_range(node, axes, box, [found.get(v) or _any(v.dtype) for v in node.inputs]), out.dtype)
    return found


def _range(node: Node, axes: Mapping[Value, Sequence[int]], box: Mapping[int, range], given: Sequence[Range]) -> Range:
    """The range of a node's exact results."""
    name, out = node.op.name, node.output
    match name:
        case "iota":
            axis = node.attrs["axis"]
            places = box.get(axes[out][axis], range(out.type.extents[axis]))
            return places[0], places[-1]
        case "constant":
            number = number_of(out)
            return (number, number) if number is not None and not math.isnan(number) else _any(out.dtype)
        case "convert" if out.dtype is DType.BOOL:
            return _not(_equal(given[0], (0, 0)))
        case "convert" if out.dtype.is_int and node.inputs[0].dtype.is_float:
            return ANY
    rule = _RULES.get(name)
    return rule(*given) if rule else _any(out.dtype)


def _in_type(exact: Range, dtype: DType) -> Range:
    """The range of results in their type."""
    if dtype.is_float:
        return _rounded(exact[0], dtype, -math.inf), _rounded(exact[1], dtype, math.inf)
    if dtype.is_int:
        limits = np.iinfo(dtype.numpy)
        return exact if limits.min <= exact[0] and exact[1] <= limits.max else ANY
    return exact


def _rounded(number: float, dtype: DType, outwards: float) -> float:
    """A bound that holds for rounded results, too."""
    limits = np.finfo(dtype.numpy)
    if number == 0 or abs(number) >= float(limits.max):
        return number
    near = dtype.numpy.type(number)
    is_exact = float(near) == number and (dtype is not DType.F64 or (number == int(number) and abs(number) < 2**52))
    return float(near if is_exact else np.nextafter(near, dtype.numpy.type(outwards)))


def _any(dtype: DType) -> Range:
    return MAYBE if dtype is DType.BOOL else ANY


def _at_corners(f: Callable[[float, float], float]) -> Callable[[Range, Range], Range]:
    """The rule of a function that rises or falls in each of two operands."""

    def rule(x: Range, y: Range) -> Range:
        values = []
        for a, b in product(x, y):
            value = f(a, b)
            values.append(min(max(value, -LARGEST), LARGEST) if math.isfinite(a) and math.isfinite(b) else value)
        return ANY if any(map(math.isnan, values)) else (min(values), max(values))

    return rule


def _quotient(x: Range, y: Range) -> Range:
    if x[0] == x[1] == 0:
        return x  # 0 / 0, which is no number, is left out as infinities are
    return ANY if y[0] <= 0 <= y[1] else _at_corners(lambda a, b: a / b)(x, y)


def _floor_quotient(x: Range, y: Range) -> Range:
    return _at_corners(lambda a, b: a // b)(x, y) if y[0] > 0 else ANY


def _exp(x: Range) -> Range:
    """A little more than a kernel's error on each side; 0 at -inf alone for sure."""
    if x[1] == -math.inf:
        return 0, 0
    low, high = (math.exp(min(max(end, -NORMAL), NORMAL)) for end in x)
    return low * (1 - ERROR) if x[0] > -NORMAL else 0, LARGEST if x[1] > NORMAL else high * (1 + ERROR)


def _ordered(x: Range, y: Range, is_strict: bool) -> Range:
    """x < y, or x <= y."""
    always = x[1] < y[0] or (not is_strict and x[1] == y[0])
    never = x[0] > y[1] or (is_strict and x[0] == y[1])
    return (1, 1) if always else (0, 0) if never else MAYBE


def _equal(x: Range, y: Range) -> Range:
    if x[1] < y[0] or y[1] < x[0]:
        return 0, 0
    return (1, 1) if x[0] == x[1] == y[0] == y[1] else MAYBE


def _not(x: Range) -> Range:
    return 1 - x[1], 1 - x[0]


def _chosen(condition: Range, x: Range, y: Range) -> Range:
    if condition != MAYBE:
        return x if condition == (1, 1) else y
    return min(x[0], y[0]), max(x[1], y[1])


_RULES: dict[str, Callable[..., Range]] = {
    **dict.fromkeys(("broadcast", "reshape", "transpose", "convert"), lambda x: x),
    "neg": lambda x: (-x[1], -x[0]),
    "exp": _exp,
    "add": _at_corners(lambda a, b: a + b),
    "sub": _at_corners(lambda a, b: a - b),
    "mul": _at_corners(lambda a, b: a * b),
    "div": _quotient,
    "floor_div": _floor_quotient,
    "maximum": _at_corners(max),
    "minimum": _at_corners(min),
    "less": lambda x, y: _ordered(x, y, True),
    "less_equal": lambda x, y: _ordered(x, y, False),
    "greater": lambda x, y: _ordered(y, x, True),
    "greater_equal": lambda x, y: _ordered(y, x, False),
    "equal": _equal,
    "not_equal": lambda x, y: _not(_equal(x, y)),
    "logical_not": _not,
    "logical_and": _at_corners(min),
    "logical_or": _at_corners(max),
    "where": _chosen,
}
