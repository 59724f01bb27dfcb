"""Simplification: work on numbers is done, and the rules of `algebra` and `movements` applied until none fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graphc.errors import PassError
from graphc.ir.graph import Graph, Node, Value, copy_node, rebuild
from graphc.passes.algebra import RULES
from graphc.passes.fold import work_on_numbers
from graphc.passes.manager import graph_pass
from graphc.passes.movements import SIMPLIFICATIONS, UNSHARED, Simplification, work_before_movement
from graphc.passes.rewrite import by_root, made_by

MOST_SWEEPS = 50  # far more than any graph has needed; more would mean rules that undo each other
_RULES = by_root(RULES)


@graph_pass
def simplify(graph: Graph) -> Graph:
    """Apply every rule that fits, from the operands to the results, again until nothing changes.

    Before: `%0 = exp %x`, `%1 = constant value=f32[]{1.0}`, `%2 = sub %0, %1`. After: `%0 = expm1 %x`.
    """
    settled: set[Node] = set()
    for _ in range(MOST_SWEEPS):
        found = rebuild(graph, _Sweep(graph, settled))
        if found is graph:
            return graph
        graph = found
    raise PassError(f"rules of simplify undo each other in {graph.name}")


class _Sweep:
    """The transformation of one sweep, which knows how often each value is read.

    `settled` are nodes that no rule fits: a node with all above it is immutable, so none will.
    """

    def __init__(self, graph: Graph, settled: set[Node]) -> None:
        self.settled = settled
        self.reads = Counter(value for node in graph.nodes for value in node.inputs)
        self.reads.update(graph.results)

    def __call__(self, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        outputs = copy_node(node, inputs)
        if len(outputs) > 1:
            return outputs
        (value,) = outputs
        assert value.node is not None
        more = UNSHARED.get(node.op.name, ())
        alone = more if more and self._is_alone(node.inputs[0]) else ()
        if value.node in self.settled and not alone:
            return outputs
        found = _rewritten(value.node, alone)
        if found is None:
            self.settled.add(value.node)
            return outputs
        assert found.type == value.type, f"a rule made {found.type} of {value.type}"
        return (found,)

    def _is_alone(self, value: Value) -> bool:
        """Whether one node alone reads a value and, where it is reshaped, what it was before."""
        while self.reads[value] == 1:
            inner = made_by(value, "reshape")
            if inner is None:
                return True
            (value,) = inner.inputs
        return False


def _rewritten(node: Node, more: Sequence[Simplification]) -> Value | None:
    """What the first rule that fits makes of a node's value."""
    number = work_on_numbers(node, node.inputs)
    if number is not None:
        return number
    for simplification in (*SIMPLIFICATIONS.get(node.op.name, ()), *more):
        found = simplification(node)
        if found is not None:
            return found
    for rule in _RULES.get(node.op.name, ()):
        found = rule.apply(node.output)
        if found is not None:
            return found
    return work_before_movement(node)
