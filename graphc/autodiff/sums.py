"""Sums over all steps of a loop, taken outside of it as far as they can be.

    sum over t of contract(a[t], b[t])      contract over the stacks of a and b, with t as one more summed letter
    sum over t of contract(a[t], b)         contract(sum over t of a[t], b)
    sum over t of sum(a[t])                 the sum of the stack of a
    sum over t of f(a[t]), f linear         f(sum over t of a[t]): add, sub, neg, and movements

So a weight's cotangent is one large product, not many small ones. What is none of these is added up in a carry; so is a
product whose operands would take more memory than its result has: in each step it is large enough by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from string import ascii_letters

from graphc import ops
from graphc.ir import source
from graphc.ir.dim import Dim
from graphc.ir.graph import Node, Value, apply, substitute, topological
from graphc.ir.op import Contraction, Elementwise, Movement, Reduction
from graphc.ops.contraction import letters
from graphc.ops.control import stacked


class Sums:
    """Builds sums on stand-ins, and remembers what must be stacked or added up in the loop for them.

    stacks, sums   for values of the step, what stands outside for the stack of it, or for its sum
    """

    def __init__(
        self,
        length: Dim,
        varying: Collection[Value],
        known: Mapping[Value, Value],
        stored: Collection[Value],
        constants: Mapping[Value, Value],
    ) -> None:
        """Sums of values of a step.

        varying    what changes from step to step
        known      slices, and the stacks that they are of
        stored     what is stacked whether sums need it or not
        constants  what the constants of the step are outside
        """
        self.length, self.varying, self.known, self.constants = length, varying, known, constants
        self.stored = {*stored, *known}
        self.stacks: dict[Value, Value] = {}
        self.sums: dict[Value, Value] = {}

    def of(self, value: Value) -> Value:
        """The sum of a value of the step over all steps."""
        through, leaves = self._cut(value)
        totals = {leaf: self._leaf(leaf, is_folded) for leaf, is_folded in leaves.items()}
        for node in topological([value], known=leaves):
            if through.isdisjoint(node.outputs):
                continue
            with source.located(node.location):
                totals[node.output] = self._sum(node, totals)
        return totals[value]

    def _cut(self, value: Value) -> tuple[set[Value], dict[Value, bool]]:
        """What can be computed from sums, and the values whose sums that takes: True where those are summed again."""
        through: set[Value] = set()
        leaves: dict[Value, bool] = {}
        todo = [(value, False)]
        while todo:
            value, is_folded = todo.pop()
            if value.node is None or not self._is_linear(value.node):
                leaves[value] = is_folded or leaves.get(value, False)
            elif value not in through:
                through.add(value)
                if not self._is_product(value.node):
                    is_folded |= isinstance(value.node.op.kind, Reduction)
                    todo += [(v, is_folded) for v in self._summed(value.node)]
        return through, leaves

    def _is_linear(self, node: Node) -> bool:
        match node.op.kind:
            case Elementwise(linear=linear):
                return linear
            case Movement(fill=fill):
                return fill(node) == 0
            case Reduction(combine=combine):
                return combine == "add"
            case Contraction():
                return self._pays(node) if self._is_product(node) else any(v in self.varying for v in node.inputs)
        return False

    def _is_product(self, node: Node) -> bool:
        return isinstance(node.op.kind, Contraction) and all(value in self.varying for value in node.inputs)

    def _pays(self, node: Node) -> bool:
        """Whether stacking the operands of a product takes no more memory, in each step, than its result has."""
        sizes = [value.type.size for value in node.inputs if value not in self.stored]
        result = node.output.type.size
        if not isinstance(result, int) or not all(isinstance(size, int) for size in sizes):
            return True
        return sum(size for size in sizes if isinstance(size, int)) <= result

    def _summed(self, node: Node) -> list[Value]:
        """The operands whose sums are taken: but for a contraction, in which one is constant, all."""
        if not isinstance(node.op.kind, Contraction):
            return list(node.inputs)
        return [value for value in node.inputs if value in self.varying]

    def _sum(self, node: Node, totals: Mapping[Value, Value]) -> Value:
        if self._is_product(node):
            first, second, result = letters(node.attrs["spec"])
            t = next(letter for letter in ascii_letters if letter not in first + second)
            return ops.contract(*map(self._stack, node.inputs), spec=f"{t}{first},{t}{second}->{result}")
        summed = self._summed(node)
        operands = [totals[value] if value in summed else self._outside(value) for value in node.inputs]
        return apply(node.op, *operands, **node.attrs)

    def _leaf(self, value: Value, is_folded: bool) -> Value:
        if is_folded or value in self.known or value in self.stacks:
            return ops.reduce_sum(self._stack(value), axes=(0,))
        return self.sums.setdefault(value, Value(value.type))

    def _stack(self, value: Value) -> Value:
        if value in self.known:
            return self.known[value]
        return self.stacks.setdefault(value, Value(stacked(value.type, self.length)))

    def _outside(self, value: Value) -> Value:
        (found,) = substitute([value], dict(self.constants))
        return found
