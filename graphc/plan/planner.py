"""Planning: order the calls, find what is live when, share the arena."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from graphc.ir.graph import Graph, Node, Value, topological
from graphc.ir.op import Scan
from graphc.plan.arena import Interval, live_bytes, place
from graphc.plan.model import Plan
from graphc.plan.order import orders
from graphc.plan.steps import Address, Base, Call, Copy, Loop, Scratch, Slot, Step, aligned, shares_of, step_graph
from graphc.plan.storage import Storages, checks, storages, viewed

_EMPTY: Mapping[Node, int] = {}


@dataclass(frozen=True, eq=False, slots=True)
class _Move:
    """A copy before places are known: of a storage to an address, or to a storage of its own in the arena."""

    source: Value
    target: Address | Value


_Item = Node | _Move


@dataclass(frozen=True, eq=False, slots=True)
class _Draft:
    """Items in order, and for what lies in the arena which interval it is in.

    Storages that are written over each other share one interval. `over` gives the storage below.
    """

    items: tuple[_Item, ...]
    live: Mapping[Value, tuple[int, int]]
    intervals: tuple[Interval, ...]
    interval_of: Mapping[Value | Node, int]
    over: Mapping[Value, Value]
    live_bytes: tuple[int, ...]


def make(graph: Graph, scratch: Mapping[Node, int] = _EMPTY, threads: int = 1) -> Plan:
    """The plan of a graph without named dimensions, for so many threads.

    `scratch`: bytes that a call needs besides operands and results. Raises ShapeError for a dimension that is a name.
    """
    shares = {node: shares_of(node, threads) for node in graph.nodes if isinstance(node.op.kind, Scan)}
    plans = {node: make(step_graph(node), scratch, threads if n == 1 else 1) for node, n in shares.items()}
    scratch = {**scratch, **{node: n * aligned(plans[node].arena_bytes) for node, n in shares.items()}}
    found = storages(graph, (literal for plan in plans.values() for literal in plan.constants))
    drafts = [_draft(found, order, scratch) for order in orders(found)]
    draft = min(drafts, key=lambda draft: max(draft.live_bytes, default=0))
    return _finish(found, draft, scratch, plans, shares)


# Copies --------------------------------------------------------------------------------------------------------


def _moves_of_given(found: Storages) -> Iterator[_Move]:
    """Outputs that are inputs, state or constants. They are copied before any state is written."""
    for index, value in enumerate(found.graph.outputs):
        root = found.root[value]
        if found.home[root].base is not Base.OUTPUT:
            yield _Move(root, Address(Base.OUTPUT, index))


def _moves_of_duplicates(found: Storages) -> Iterator[_Move]:
    """Outputs that are computed, but lie in an earlier output."""
    for index, value in enumerate(found.graph.outputs):
        home = found.home[found.root[value]]
        if home.base is Base.OUTPUT and home.index != index:
            yield _Move(found.root[value], Address(Base.OUTPUT, index))


def _moves_to_state(found: Storages) -> Iterator[_Move]:
    """Next states that lie elsewhere: each state is read before it is written, cycles go through the arena."""
    sources: dict[Value, Value] = {state: found.root[value] for state, value in found.graph.next}
    sources = {state: root for state, root in sources.items() if found.home.get(root) != found.home[state]}
    reads = Counter(sources.values())
    free = [state for state in sources if not reads[state]]
    while sources:
        if free:
            state = free.pop(0)
            root = sources.pop(state)
            yield _Move(root, found.home[state])
            reads[root] -= 1
            if root in sources and not reads[root]:
                free.append(root)
            continue
        state = next(iter(sources))
        saved = Value(state.type, name=f"{state.name}.old")
        yield _Move(state, saved)
        sources = {target: saved if root is state else root for target, root in sources.items()}
        reads[saved] = reads.pop(state)
        free.append(state)


# What is live when ---------------------------------------------------------------------------------------------


def _draft(found: Storages, order: Sequence[Node], scratch: Mapping[Node, int]) -> _Draft:
    early, late = order[: len(found.early)], order[len(found.early) :]
    given, last = _moves_of_given(found), (*_moves_of_duplicates(found), *_moves_to_state(found))
    items: tuple[_Item, ...] = (*early, *given, *late, *last)
    live = _live(found, items)
    intervals: list[Interval] = []
    interval_of: dict[Value | Node, int] = {}
    over: dict[Value, Value] = {}
    for time, item in enumerate(items):
        below = _written_over(found, item, time, live) if isinstance(item, Node) else {}
        for value in _made(found, item):
            if value in found.home:
                continue
            if value in below:
                over[value] = below[value]
                number = interval_of[value] = interval_of[below[value]]
                intervals[number] = Interval(intervals[number].bytes, intervals[number].first, live[value][1])
                continue
            interval_of[value] = len(intervals)
            intervals.append(Interval(aligned(value.type.nbytes), *live[value]))
        if isinstance(item, Node) and scratch.get(item, 0):
            interval_of[item] = len(intervals)
            intervals.append(Interval(aligned(scratch[item]), time, time))
    return _Draft(items, live, tuple(intervals), interval_of, over, live_bytes(intervals, len(items)))


def _made(found: Storages, item: _Item) -> tuple[Value, ...]:
    """The storages that an item writes first."""
    if isinstance(item, _Move):
        return (item.target,) if isinstance(item.target, Value) else ()
    return found.makes(item)


def _live(found: Storages, items: Sequence[_Item]) -> dict[Value, tuple[int, int]]:
    """For each storage its first and last step: from the one that makes it to the last that needs it."""
    end = max(0, len(items) - 1)
    kept = {found.root[value] for value in found.graph.results}
    replaced = {state for state, value in found.graph.next if found.root[value] is not state}
    live = {value: (0, 0 if value in replaced else end) for value in found.home}
    for time, item in enumerate(items):
        reads = found.reads(item) if isinstance(item, Node) else (item.source,)
        for value in reads:
            live[value] = live[value][0], max(live[value][1], time)
        for value in _made(found, item):
            live[value] = time, end if value in kept and value in found.home else time
    return live


def _written_over(found: Storages, node: Node, time: int, live: Mapping[Value, tuple[int, int]]) -> dict[Value, Value]:
    """Results of a call in the arena and the operands there that may be lost under them."""
    dying = [value for value in found.reads(node) if value not in found.home and live[value][1] == time]
    below: dict[Value, Value] = {}
    for value in found.makes(node):
        if value in found.home or not value.type.nbytes:
            continue
        for operand in dying:
            if operand.type.nbytes == value.type.nbytes and found.overwrites(node, operand, value.index):
                below[value] = operand
                dying.remove(operand)
                break
    return below


# The plan ------------------------------------------------------------------------------------------------------


def _finish(
    found: Storages,
    draft: _Draft,
    scratch: Mapping[Node, int],
    plans: Mapping[Node, Plan],
    shares: Mapping[Node, int],
) -> Plan:
    offsets, arena_bytes = place(draft.intervals, max(draft.live_bytes, default=0))

    table = {literal.data: Address(Base.CONSTANT, index) for index, literal in enumerate(found.constants)}
    used = {value for node in found.graph.nodes for value in node.inputs}.union(found.graph.results)

    def in_arena(key: Value | Node) -> Address:
        return Address(Base.ARENA, 0, offsets[draft.interval_of[key]])

    def address(root: Value) -> Address:
        return found.home[root] if root in found.home else in_arena(root)

    def step(item: _Item) -> Step:
        if isinstance(item, _Move):
            target = in_arena(item.target) if isinstance(item.target, Value) else item.target
            return Copy(item.source, address(item.source), target, item.source.type.nbytes)
        operands = tuple(address(found.root[value]) for value in item.inputs)
        results = tuple(address(value) for value in found.makes(item))
        room = Scratch(in_arena(item), scratch[item]) if scratch.get(item, 0) else None
        if item in plans:
            constants = tuple(table[literal.data] for literal in plans[item].constants)
            tail = _tail(plans[item], item.attrs["body"].state, [value in used for value in item.outputs])
            return Loop(item, operands, results, plans[item], constants, room, shares[item], tail)
        return Call(item, operands, results, room, checks(item))

    def slot(value: Value) -> Slot:
        root, node = found.root[value], value.node
        operand = None if node is None else viewed(node)
        view = None if node is None or operand is None else node.inputs[operand]
        return Slot(address(root), value.type.nbytes, *draft.live[root], view, over=_over(found, draft, value))

    return Plan(
        found.graph,
        tuple(step(item) for item in draft.items),
        {value: slot(value) for value in found.root},
        found.constants,
        arena_bytes,
        draft.live_bytes,
    )


def _tail(plan: Plan, carries: Sequence[Value], used: Sequence[bool]) -> int:
    """How many of the last steps of a loop's plan only make carries whose final value is not used."""
    unused = {carry for carry, is_used in zip(carries, used, strict=False) if not is_used}
    wanted = [*plan.graph.outputs, *(value for state, value in plan.graph.next if state not in unused)]
    needed = set(topological(wanted))

    def is_needed(step: Step) -> bool:
        if isinstance(step, Copy):
            target = step.target
            return target.base is not Base.STATE or plan.graph.state[target.index] not in unused
        return step.node in needed

    return sum(1 for _ in takewhile(lambda step: not is_needed(step), reversed(plan.steps)))


def _over(found: Storages, draft: _Draft, value: Value) -> Value | None:
    """The storage that a result is written over: a dead operand, or the state that it replaces."""
    home = found.home.get(value)
    if home is not None and home.base is Base.STATE and value.node is not None:
        return found.graph.state[home.index]
    return draft.over.get(value)
