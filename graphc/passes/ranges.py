"""The range of what each value of a graph can be within a box of positions: what a mask leaves of a block.

Before: `%2 = less_equal %column, %row`, `%4 = where %2, %score, %minus_infinity`, `%6 = exp (sub %4, %top)`
After:  for rows 0 to 7 and columns 8 to 15: %2 is false, %4 is -inf, %6 is 0.

What is not known is taken for any finite number: an infinity or NaN among the operands can leave its range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

from graphc.ir.graph import Graph, Value
from graphc.ir.types import DType
from graphc.passes.fold import number_of

Range = tuple[float, float]  # the least and the greatest; a bool is 0 or 1

LARGEST = 1.7976931348623157e308
ANY: Range = (-LARGEST, LARGEST)
MAYBE: Range = (0, 1)


def ranges_of(graph: Graph, axes: Mapping[Value, Sequence[int]], box: Mapping[int, range]) -> dict[Value, Range]:
    """The range of each node's value where the axes with the numbers in `box` are at positions within it."""
    found: dict[Value, Range] = {}
    for node in graph.nodes:
        given = [found.get(value) or _any(value) for value in node.inputs]
        if node.op.name == "iota":
            axis = node.attrs["axis"]
            places = box.get(axes[node.output][axis], range(node.output.type.extents[axis]))
            found[node.output] = places[0], places[-1]
        elif node.op.name == "constant":
            number = number_of(node.output)
            is_one = number is not None and not math.isnan(number)
            found[node.output] = (number, number) if is_one else _any(node.output)
        elif node.op.name == "convert" and node.inputs[0].dtype.is_float and not node.output.dtype.is_float:
            found[node.output] = _any(node.output)
        else:
            rule = _RULES.get(node.op.name)
            found[node.output] = rule(*given) if rule else _any(node.output)
    return found


def _any(value: Value) -> Range:
    return MAYBE if value.dtype is DType.BOOL else ANY


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
    least, greatest = (math.exp(min(end, 709.0)) for end in x)
    return least, LARGEST if x[1] > 709 else greatest


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
