"""Rewrite rules as data: a pattern, what to put in its place, and the equation between them.

    Rule("x + 0 = x", lambda x: ops.add(x, ops.full_like(x, 0)), lambda x: x)

Both sides are functions of the same unknowns that build graph. The left side, built once on stand-ins, is the pattern;
the right side is built on what the unknowns turn out to be. So both can also be run, and each rule is tested by that.

A pattern matches by op and attributes. A repeated number matches any shape of that number, and operands of commutative
ops match in either order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from graphc.ir.graph import Node, Value
from graphc.ir.types import DType, TensorType
from graphc.passes.fold import number_of

COMMUTATIVE = frozenset(("add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or"))
Build = Callable[..., Value]
Bindings = dict[Value, Value]


@dataclass(frozen=True, eq=False)
class Rule:
    """`left` = `right` for all values of the unknowns, which are of `dtypes` (repeated for all unknowns)."""

    equation: str
    left: Build
    right: Build
    dtypes: tuple[DType, ...] = (DType.F32,)  # of the stand-ins; the rule applies to every dtype that its ops accept
    unless: Callable[..., bool] = lambda *unknowns: False  # a form of the unknowns for which the rule has nothing to do
    unknowns: tuple[Value, ...] = field(init=False)
    pattern: Value = field(init=False)

    def __post_init__(self) -> None:
        names = list(inspect.signature(self.left).parameters)
        dtypes = [self.dtypes[min(n, len(self.dtypes) - 1)] for n in range(len(names))]
        unknowns = tuple(Value(TensorType(d, (2, 3)), name=n) for d, n in zip(dtypes, names, strict=True))
        object.__setattr__(self, "unknowns", unknowns)
        object.__setattr__(self, "pattern", self.left(*unknowns))

    @property
    def root(self) -> str:
        """The op that the pattern starts with."""
        assert self.pattern.node is not None
        return self.pattern.node.op.name

    def apply(self, value: Value) -> Value | None:
        """What stands for `value`, when it has the form of the left side."""
        bindings: Bindings = {}
        if not _match(self.pattern, value, bindings):
            return None
        unknowns = [bindings[unknown] for unknown in self.unknowns]
        return None if self.unless(*unknowns) else self.right(*unknowns)


def made_by(value: Value | None, op: str) -> Node | None:
    """The node that a value comes from, if it is of that op."""
    return value.node if value and value.node is not None and value.node.op.name == op else None


def repeated(value: Value | None, axes: Iterable[int]) -> Value | None:
    """What is repeated along these axes alone, the others in their order, if a value is that.

    Axes of one element may be missing where the repetition reads it.
    """
    spread = made_by(value, "broadcast") if value else None
    if spread is None:
        return None
    (x,), shape, places = spread.inputs, spread.output.shape, spread.attrs["axes"]
    kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
    if places == kept:
        return x
    reshaped = made_by(x, "reshape")
    before = reshaped.inputs[0] if reshaped and places == tuple(a for a in kept if shape[a] != 1) else None
    return before if before is not None and before.shape == tuple(shape[a] for a in kept) else None


def grouped(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes before and after a reshape that hold the same elements, in the smallest groups; none of one element."""
    found: list[tuple[list[int], list[int]]] = []
    left, right = ([axis for axis, extent in enumerate(extents) if extent != 1] for extents in (before, after))
    while left:
        first, second = [left.pop(0)], [right.pop(0)]
        while (a := prod(before[axis] for axis in first)) != (b := prod(after[axis] for axis in second)):
            if a < b:
                first.append(left.pop(0))
            else:
                second.append(right.pop(0))
        found.append((first, second))
    return found


def by_root(rules: Iterable[Rule]) -> dict[str, tuple[Rule, ...]]:
    """The rules whose pattern starts with each op, in order."""
    found: dict[str, tuple[Rule, ...]] = {}
    for rule in rules:
        found[rule.root] = (*found.get(rule.root, ()), rule)
    return found


_number = functools.cache(number_of)  # of what is in a pattern


def _match(pattern: Value, value: Value, bindings: Bindings) -> bool:
    """Whether a value has the pattern's form; enters what the unknowns are."""
    if pattern.node is None:
        return bindings.setdefault(pattern, value) is value
    number = _number(pattern)
    if number is not None:
        return bool(number_of(value) == number)
    node = value.node
    if node is None or node.op is not pattern.node.op or node.attrs != pattern.node.attrs:
        return False
    orders = [node.inputs]
    if node.op.name in COMMUTATIVE:
        orders.append(node.inputs[::-1])
    for operands in orders:
        trial = dict(bindings)
        if all(_match(p, v, trial) for p, v in zip(pattern.node.inputs, operands, strict=True)):
            bindings.update(trial)
            return True
    return False
