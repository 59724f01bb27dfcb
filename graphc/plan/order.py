"""Orders of the calls: checks and what they need first, then by priority among the calls that are ready.

Two candidates: the graph's own order, which follows the results depth first, and a greedy one, which takes what frees
most. The planner keeps the one that needs less. Ties follow the graph's order, so plans are reproducible.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from graphc.ir.graph import Node, Value
from graphc.plan.steps import aligned
from graphc.plan.storage import Storages


def orders(storages: Storages) -> Iterator[tuple[Node, ...]]:
    """Candidate orders, the plainest first."""
    yield _schedule(storages, {})
    sizes = {value: aligned(value.type.nbytes) for value in storages.root.values() if value not in storages.home}
    yield _schedule(storages, sizes)


def _schedule(storages: Storages, sizes: Mapping[Value, int]) -> tuple[Node, ...]:
    """List scheduling: of the calls that are ready, the one by which the live bytes grow least. Near-linear.

    `sizes`: bytes of the storages that count. A call's growth only ever falls, when it becomes the last reader of an
    operand; it is then entered once more, and the older entry is skipped.
    """
    position = {node: number for number, node in enumerate(storages.calls)}
    readers: dict[Value, list[Node]] = {}
    for node in storages.calls:
        for value in storages.reads(node):
            readers.setdefault(value, []).append(node)
    left = {value: len(nodes) + (value in storages.kept) for value, nodes in readers.items()}
    waiting = {node: len(storages.before[node]) for node in storages.calls}
    done: set[Node] = set()
    order: list[Node] = []
    queue: list[tuple[bool, int, int]] = []

    def offer(node: Node) -> None:
        new = sum(sizes.get(value, 0) for value in storages.makes(node) if value in left or value in storages.kept)
        freed = sum(sizes.get(value, 0) for value in storages.reads(node) if left[value] == 1)
        heapq.heappush(queue, (node not in storages.early, new - freed, position[node]))

    for node in storages.calls:
        if not waiting[node]:
            offer(node)
    while queue:
        node = storages.calls[heapq.heappop(queue)[2]]
        if node in done:
            continue
        done.add(node)
        order.append(node)
        for value in storages.reads(node):
            left[value] -= 1
            if left[value] == 1:
                for last in readers[value]:
                    if last not in done and not waiting[last]:
                        offer(last)
        for following in storages.after[node]:
            waiting[following] -= 1
            if not waiting[following]:
                offer(following)
    return tuple(order)
