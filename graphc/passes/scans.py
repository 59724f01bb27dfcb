"""Scans: equal ones become one, what a step need not do is taken out of it, and what nobody reads is dropped."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from graphc import ops
from graphc.ir.graph import Graph, Node, Value, copy_node, make_node, rebuild, substitute, topological
from graphc.ir.op import Scan
from graphc.ir.signature import signature
from graphc.ops.control import Parts, depending, invariants
from graphc.passes.manager import graph_pass

Transform = Callable[[Node, tuple[Value, ...]], tuple[Value, ...]]


def _on_scans(graph: Graph, transform: Transform) -> Graph:
    """Rebuild a graph whose scans are transformed."""
    if not any(isinstance(node.op.kind, Scan) for node in graph.nodes):
        return graph
    return rebuild(
        graph, lambda node, new: transform(node, new) if isinstance(node.op.kind, Scan) else copy_node(node, new)
    )


# Equal loops ----------------------------------------------------------------------------------------------------


@graph_pass
def merge_scans(graph: Graph) -> Graph:
    """Make scans of the same operands, whose carries go through the same values, one scan with the results of all.

    Before: `%0, %1 = scan %c, %x` whose step returns `%y`, `%2, %3 = scan %c, %x` with the same step that returns `%z`.
    After: `%0, %1, %2 = scan %c, %x`, whose step returns `%y, %z`; and then as `slim_scans`, so that what is known of
    old carries outside of the scan is there to be simplified.
    """
    return slim_scans(_merged(graph))


def _merged(graph: Graph) -> Graph:
    while True:
        groups: dict[Hashable, list[Node]] = {}
        for node in graph.nodes:
            if isinstance(node.op.kind, Scan):
                groups.setdefault(_recurrence(node), []).append(node)
        if all(len(nodes) == 1 for nodes in groups.values()):
            return graph
        graph = _on_scans(graph, _Merging(groups.values()))


def _recurrence(node: Node) -> Hashable:
    """What the carries of a scan go through."""
    attrs = {name: attr for name, attr in node.attrs.items() if name != "body"}
    return tuple(map(id, node.inputs)), tuple(sorted(attrs.items())), signature(_without_results(node.attrs["body"]))


def _without_results(body: Graph) -> Graph:
    nodes = topological(value for _, value in body.next)
    return Graph(body.name, body.inputs, body.state, nodes, (), body.next)


class _Merging:
    """The transformation that puts one scan in place of each group."""

    def __init__(self, groups: Iterable[Sequence[Node]]) -> None:
        self.groups = {node: nodes for nodes in groups for node in nodes}
        self.outputs: dict[Node, tuple[Value, ...]] = {}

    def __call__(self, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        nodes = self.groups[node]
        if len(nodes) == 1:
            return copy_node(node, inputs)
        if node not in self.outputs:
            self._merge(nodes, inputs)
        return self.outputs[node]

    def _merge(self, group: Sequence[Node], inputs: tuple[Value, ...]) -> None:
        first, body = group[0], group[0].attrs["body"]
        results = [_results_in(body, node.attrs["body"]) for node in group]
        outputs = tuple(dict.fromkeys(value for found in results for value in found))
        nodes = topological((*outputs, *(value for _, value in body.next)))
        whole = Graph(body.name, body.inputs, body.state, nodes, outputs, body.next)
        merged = make_node(first.op, inputs, {**first.attrs, "body": whole})
        carries = len(body.state)
        place = {value: merged.outputs[carries + number] for number, value in enumerate(outputs)}
        for node, found in zip(group, results, strict=True):
            self.outputs[node] = (*merged.outputs[:carries], *(place[value] for value in found))


def _results_in(body: Graph, other: Graph) -> list[Value]:
    """The results of another body, whose carries are the same, as values of this body."""
    mine, theirs = _without_results(body), _without_results(other)
    new = dict(zip((*theirs.inputs, *theirs.state), (*mine.inputs, *mine.state), strict=True))
    for node, same in zip(theirs.nodes, mine.nodes, strict=True):
        new.update(zip(node.outputs, same.outputs, strict=True))
    return substitute(other.outputs, new)


# Less in each step ----------------------------------------------------------------------------------------------


@graph_pass
def slim_scans(graph: Graph) -> Graph:
    """Drop carries and results that nobody reads, results that are known outside, and operands that are not needed.

    A result that is another result, a slice, a constant, or a carry before the step, is not stored: the last is the
    carry after the step before.

    Before: `%2, %3 = scan %0, %1` whose step returns `%c0` and has `next %c0 = %4`. After: the step returns `%4`, and
    the old carries are `concat` of `%0` and all but the last of these.
    """
    while True:
        used = {value for node in graph.nodes for value in node.inputs}.union(graph.results)
        found = _on_scans(graph, _slimmer(used))
        if found is graph:
            return graph
        graph = found


def _slimmer(used: set[Value]) -> Transform:
    return lambda node, inputs: _Slim(node, inputs, used).outputs()


class _Slim:
    """One scan on its way to a smaller one.

    outer     constants of the step, and carries that never change: what they are outside
    stack_of  slices and the stacks that they are of
    kept      results that are stored
    live      carries that are needed
    """

    def __init__(self, node: Node, inputs: tuple[Value, ...], used: set[Value]) -> None:
        self.node, self.inputs, self.used, self.parts = node, inputs, used, Parts.of(node, inputs)
        self.body: Graph = node.attrs["body"]
        self.length = node.attrs["length"]
        self.following = dict(self.body.next)
        self.first = dict(zip(self.body.state, self.parts.init, strict=True))
        still = {state: first for state, first in self.first.items() if self.following[state] is state}
        self.outer = {**dict(zip(self.parts.fixed, self.parts.constants, strict=True)), **still}
        self.stack_of = dict(zip(self.parts.sliced, self.parts.xs, strict=True))
        read = [value for value, stack in zip(self.body.outputs, self.parts.stacks, strict=True) if stack in used]
        stored = [self.following[value] if self._is_shifted(value) else value for value in read]
        self.kept = list(dict.fromkeys(v for v in stored if v not in self.outer and v not in self.stack_of))
        self.live = self._live()

    def outputs(self) -> tuple[Value, ...]:
        """What stands for the outputs of the scan; for those that are not used, anything."""
        made = self._made()
        if made is self.node:
            return copy_node(self.node, self.inputs)
        new, count = made.outputs if made else (), len(self.live)
        finals = dict(zip(self.live, new[:count], strict=True))
        stacks = dict(zip(self.kept, new[count:], strict=True))
        outputs = []
        for state, final in zip(self.body.state, self.parts.finals, strict=True):
            outputs.append(finals.get(state, self.outer.get(state, final)))
        for value, stack in zip(self.body.outputs, self.parts.stacks, strict=True):
            outputs.append(self._stack(value, stacks) if stack in self.used else stack)
        return tuple(outputs)

    def _made(self) -> Node | None:
        """The scan that is left: the node itself where all of it is needed, None where nothing is."""
        results = [*self.kept, *(self.following[state] for state in self.live)]
        if not results:
            return None
        read = {value for node in topological(results) for value in node.inputs}.union(results)
        xs, constants = _distinct(self.stack_of, read), _distinct(self.outer, read)
        sliced, fixed = tuple(dict.fromkeys(xs.values())), tuple(dict.fromkeys(constants.values()))
        operands = [*(self.first[v] for v in self.live), *(self.stack_of[v] for v in sliced)]
        operands += [self.outer[v] for v in fixed]
        if operands == list(self.inputs) and self.kept == list(self.body.outputs):
            return self.node
        values = substitute(results, {**xs, **constants})
        outputs, next = values[: len(self.kept)], zip(self.live, values[len(self.kept) :], strict=True)
        nodes, name = topological(values), self.body.name
        body = Graph(name, (*sliced, *fixed), tuple(self.live), nodes, tuple(outputs), tuple(next))
        return make_node(self.node.op, operands, {**self.node.attrs, "slices": len(sliced), "body": body})

    def _live(self) -> list[Value]:
        """The carries whose final value is used, or that something else needs."""
        finals = zip(self.body.state, self.parts.finals, strict=True)
        live = {state for state, final in finals if final in self.used} - self.outer.keys()
        while True:
            results = [*self.kept, *(self.following[state] for state in live)]
            read = {value for node in topological(results) for value in node.inputs}.union(results)
            more = {state for state in self.body.state if state in read} - live - self.outer.keys()
            if not more:
                return [state for state in self.body.state if state in live]
            live |= more

    def _is_shifted(self, value: Value) -> bool:
        """Whether a result is a carry before the step, to be had from what it becomes in the steps."""
        if value not in self.first or value in self.outer or self.following[value] in self.first:
            return False
        return isinstance(self.length, int) and self.length > 0

    def _stack(self, value: Value, stacks: dict[Value, Value]) -> Value:
        """What a value of the step is in all steps."""
        if value in stacks:
            return stacks[value]
        if value in self.stack_of:
            return self.stack_of[value]
        if value in self.outer:
            shape = (self.length, *value.shape)
            return ops.broadcast(self.outer[value], shape=shape, axes=range(1, len(shape)))
        after = self._stack(self.following[value], stacks)
        first = ops.reshape(self.first[value], shape=(1, *value.shape))
        if self.length == 1:
            return first
        start, stop = (1, self.length) if self.node.attrs["reverse"] else (0, self.length - 1)
        rest = (0,) * value.type.rank
        others = ops.slice(after, start=(start, *rest), stop=(stop, *value.shape), step=(1,) * after.type.rank)
        return ops.concat(*((others, first) if self.node.attrs["reverse"] else (first, others)), axis=0)


def _distinct(outer: dict[Value, Value], read: set[Value]) -> dict[Value, Value]:
    """For each parameter that is read, the first one that stands for the same value outside."""
    first: dict[Value, Value] = {}
    return {inner: first.setdefault(value, inner) for inner, value in outer.items() if inner in read}


# Work that is the same in each step -----------------------------------------------------------------------------


@graph_pass
def hoist(graph: Graph) -> Graph:
    """Compute before a scan what is the same in each of its steps.

    Before: a step that reads `%1 = exp %w0` of its constant `%w0`. After: `exp` outside, whose result is a constant.
    """
    return _on_scans(graph, _hoisted)


def _hoisted(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    parts, body = Parts.of(node, inputs), node.attrs["body"]
    varying = depending(body.nodes, (*body.state, *parts.sliced))
    moved = [value for value in invariants(body.results, varying) if value.node is not None]
    if not moved:
        return copy_node(node, inputs)
    outside = substitute(moved, dict(zip(parts.fixed, parts.constants, strict=True)))
    names = _fresh({value.name for value in (*body.state, *body.inputs)}, len(moved))
    new = {value: Value(value.type, name=name) for value, name in zip(moved, names, strict=True)}
    results = substitute(body.results, dict(new))
    count = len(body.outputs)
    next = tuple(zip(body.state, results[count:], strict=True))
    step = Graph(
        body.name, (*body.inputs, *new.values()), body.state, topological(results), tuple(results[:count]), next
    )
    return make_node(node.op, (*inputs, *outside), {**node.attrs, "body": step}).outputs


def _fresh(taken: set[str], count: int) -> list[str]:
    """Names w0, w1, … that are not taken."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if f"w{number}" not in taken:
            found.append(f"w{number}")
        number += 1
    return found
