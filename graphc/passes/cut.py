"""The cheapest set of values from which others can be computed: a minimum vertex cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def cheapest_cut(weights: Mapping[K, int], operands: Mapping[K, Iterable[K]], wanted: Iterable[K]) -> set[K]:
    """The values of least total weight that every path from a value without operands to a wanted value meets.

    `weights` has every value, `operands` those that can be computed, with what from. Of several cuts of equal weight
    it is the one nearest to the wanted values. Found along shortest augmenting paths (Edmonds and Karp, 1972).
    """
    # Each value is an edge from (value, False) to (value, True) whose capacity is its weight.
    room: dict[tuple[K, bool] | None, dict[tuple[K, bool] | None, int]] = {None: {}}
    unlimited = sum(weights.values()) + 1
    for value, weight in weights.items():
        room.setdefault((value, False), {})[value, True] = weight
        room.setdefault((value, True), {}).setdefault((value, False), 0)
        for operand in operands.get(value, ()):
            room.setdefault((operand, True), {})[value, False] = unlimited
            room[value, False].setdefault((operand, True), 0)
    sources = {(value, False) for value in weights if value not in operands}
    for value in wanted:
        room[value, True][None] = unlimited
        room[None].setdefault((value, True), 0)
    while path := _path(room, sources):
        flow = min(room[a][b] for a, b in path)
        for a, b in path:
            room[a][b] -= flow
            room[b][a] += flow
    reaching = _reaching(room)
    return {value for value in weights if (value, True) in reaching and (value, False) not in reaching}


_Vertex = tuple[K, bool] | None  # None is the sink
_Room = dict[_Vertex[K], dict[_Vertex[K], int]]


def _path(room: _Room[K], sources: Iterable[_Vertex[K]]) -> list[tuple[_Vertex[K], _Vertex[K]]]:
    """The edges of a shortest path to the sink that has room left; empty where there is none."""
    before: dict[_Vertex[K], _Vertex[K]] = {source: source for source in sources}
    queue = deque(before)
    while queue and None not in before:
        here = queue.popleft()
        for there, left in room[here].items():
            if left > 0 and there not in before:
                before[there] = here
                queue.append(there)
    path: list[tuple[_Vertex[K], _Vertex[K]]] = []
    here = None
    while here in before and before[here] != here:
        path.append((before[here], here))
        here = before[here]
    return path


def _reaching(room: _Room[K]) -> set[_Vertex[K]]:
    """The vertices from which the sink can still be reached."""
    found: set[_Vertex[K]] = {None}
    stack: list[_Vertex[K]] = [None]
    while stack:
        there = stack.pop()
        for here in room[there]:
            if here not in found and room[here][there] > 0:
                found.add(here)
                stack.append(here)
    return found
