"""The graph as the planner sees it: calls that read and write storages.

A storage is the bytes of one value and of all views of it; it is named by that value, its root. `home` gives the
storages that do not lie in the arena: inputs, state, constants, outputs that are computed, and next states that may be
written in place. The last ask for an order: `before` makes everything that reads the old state come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from graphc.ir.graph import Graph, Literal, Node, Value
from graphc.ir.op import Scan
from graphc.passes.forms import may_alias
from graphc.plan.steps import Address, Base


def checks(node: Node) -> bool:
    """Whether a call may fail."""
    names = (n.op.name for n in node.attrs["body"].nodes) if node.op.name == "kernel" else (node.op.name,)
    return "check_index" in names


def viewed(node: Node) -> int | None:
    """The operand whose bytes the output of a node is; None when the output has bytes of its own."""
    if node.op.name in ("reshape", "check_index"):
        return 0
    if node.op.name == "kernel" and checks(node):
        body: Graph = node.attrs["body"]
        (check,) = (n for n in body.nodes if n.op.name == "check_index")
        return body.inputs.index(check.inputs[0])
    return None


@dataclass(frozen=True, eq=False)
class Storages:
    """What `storages` found. `early`: the checks and what they need. `kept`: what is read after the last call."""

    graph: Graph
    calls: tuple[Node, ...]
    root: Mapping[Value, Value]
    home: Mapping[Value, Address]
    constants: tuple[Literal, ...]
    before: Mapping[Node, tuple[Node, ...]]
    after: Mapping[Node, tuple[Node, ...]]
    early: frozenset[Node]
    kept: frozenset[Value]
    _overwrites: dict[tuple[Node, Value, int], bool] = field(default_factory=dict)

    def reads(self, node: Node) -> tuple[Value, ...]:
        """The storages that a call reads, each once."""
        return tuple(dict.fromkeys(self.root[value] for value in node.inputs))

    def makes(self, node: Node) -> tuple[Value, ...]:
        """The storages that a call writes."""
        return tuple(value for value in node.outputs if self.root[value] is value)

    def overwrites(self, node: Node, old: Value, output: int) -> bool:
        """Whether an output may be written over the storage `old`, which the call may read."""
        key = node, old, output
        if key not in self._overwrites:
            self._overwrites[key] = _overwrites(self.root, node, old, output)
        return self._overwrites[key]


def storages(graph: Graph, inner: Iterable[Literal] = ()) -> Storages:
    """Find the storages of a graph and the homes of those that are not the arena's. `inner`: constants of its loops."""
    root = _roots(graph)
    home, constants = _homes(graph, root, inner)
    calls = tuple(node for node in graph.nodes if node.op.name not in ("reshape", "constant"))
    before = {node: dict.fromkeys(maker for v in node.inputs for maker in _makers(v)) for node in calls}
    after: dict[Node, dict[Node, None]] = {node: {} for node in calls}
    for node in calls:
        for maker in before[node]:
            after[maker][node] = None
    early = _ancestors(before, (node for node in calls if checks(node)))
    _update_in_place(graph, root, home, before, after, early)
    kept = {root[value] for value in graph.results} - home.keys()
    return Storages(
        graph,
        calls,
        root,
        home,
        constants,
        {node: tuple(found) for node, found in before.items()},
        {node: tuple(found) for node, found in after.items()},
        early,
        frozenset(kept),
    )


def _roots(graph: Graph) -> dict[Value, Value]:
    found = {value: value for value in (*graph.inputs, *graph.state)}
    for node in graph.nodes:
        operand = viewed(node)
        for output in node.outputs:
            found[output] = output if operand is None else found[node.inputs[operand]]
    return found


def _homes(
    graph: Graph, root: Mapping[Value, Value], inner: Iterable[Literal]
) -> tuple[dict[Value, Address], tuple[Literal, ...]]:
    home = {value: Address(Base.INPUT, index) for index, value in enumerate(graph.inputs)}
    home |= {value: Address(Base.STATE, index) for index, value in enumerate(graph.state)}
    tables = {node.output: node.attrs["value"] for node in graph.nodes if node.op.name == "constant"}
    pool: dict[bytes, Literal] = {}
    for literal in (*tables.values(), *inner):
        pool.setdefault(literal.data, literal)
    place = {data: Address(Base.CONSTANT, index) for index, data in enumerate(pool)}
    home |= {value: place[literal.data] for value, literal in tables.items()}
    for index, value in enumerate(graph.outputs):
        home.setdefault(root[value], Address(Base.OUTPUT, index))
    return home, tuple(pool.values())


def _makers(value: Value) -> Iterable[Node]:
    """The call that must have run before `value` can be read."""
    while value.node is not None and value.node.op.name == "reshape":
        (value,) = value.node.inputs
    return () if value.node is None or value.node.op.name == "constant" else (value.node,)


def _ancestors(before: Mapping[Node, Iterable[Node]], nodes: Iterable[Node]) -> frozenset[Node]:
    """The nodes and everything that must run before them."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(before[node])
    return frozenset(found)


def _overwrites(root: Mapping[Value, Value], node: Node, old: Value, output: int) -> bool:
    reading = [position for position, value in enumerate(node.inputs) if root[value] is old]
    if isinstance(node.op.kind, Scan):  # a final carry may lie where the first one did
        return all(position == output < len(node.attrs["body"].state) for position in reading)
    return all(node.op.name == "kernel" and may_alias(node, position, output) for position in reading)


def _update_in_place(
    graph: Graph,
    root: Mapping[Value, Value],
    home: dict[Value, Address],
    before: Mapping[Node, dict[Node, None]],
    after: Mapping[Node, dict[Node, None]],
    early: frozenset[Node],
) -> None:
    """Give next states the state as their home where the old value can be read by all others before.

    Not where the old value becomes another state (that copy comes last), nor where a check might come later.
    """
    readers: dict[Value, dict[Node, None]] = {}
    for node in before:
        for value in node.inputs:
            readers.setdefault(root[value], {})[node] = None
    read_last = {root[value] for state, value in graph.next if root[value] is not state}
    for state, value in graph.next:
        new = root[value]
        writer = new.node
        if new in home or state in read_last or writer is None or writer in early:
            continue
        others = [node for node in readers.get(state, ()) if node is not writer]
        if not _overwrites(root, writer, state, new.index) or _reaches(after, writer, others):
            continue
        home[new] = home[state]
        for node in others:
            before[writer][node] = None
            after[node][writer] = None


def _reaches(after: Mapping[Node, Iterable[Node]], start: Node, goals: Iterable[Node]) -> bool:
    """Whether one of the goals must run after `start`."""
    wanted = set(goals)
    found: set[Node] = set()
    stack = [start]
    while stack and wanted:
        for node in after[stack.pop()]:
            if node in wanted:
                return True
            if node not in found:
                found.add(node)
                stack.append(node)
    return False
