"""Groups of vertices of an acyclic graph that can be joined while the graph of groups stays acyclic.

Invariants:
 1. every vertex is in one group, and groups are listed in a topological order (`order`);
 2. two groups are joined only when no path leads from one to the other through a third (their union is convex).

The order is kept up to date as in Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic graphs"
(2006): a path from one group to another visits only groups listed between them, so a search is confined to that
stretch. It runs from both ends in turn and stops as soon as either end is exhausted, which is cheap for near
neighbours; a search that grows beyond `SEARCH_LIMIT` counts as a path.
"""

from __future__ import annotations

from collections.abc import Sequence

SEARCH_LIMIT = 500
_GAP = 1 << 32


class Partition:
    """Groups named by one of their vertices. Vertices are 0, 1, … in topological order; one group each at first."""

    def __init__(self, successors: Sequence[set[int]]) -> None:
        count = len(successors)
        self.group_of = list(range(count))
        self.members = {vertex: [vertex] for vertex in range(count)}
        self.after = [set(found) for found in successors]
        self.before: list[set[int]] = [set() for _ in range(count)]
        for vertex, found in enumerate(successors):
            for successor in found:
                self.before[successor].add(vertex)
        self._sentinel = count
        self._next = [*range(1, count + 1), 0]
        self._previous = [count, *range(count)]
        self._label: list[int] = []
        self._relabel()

    def order(self) -> list[int]:
        """The groups, each after all those that it depends on."""
        found: list[int] = []
        group = self._next[self._sentinel]
        while group != self._sentinel:
            found.append(group)
            group = self._next[group]
        return found

    def sorted(self, first: int, second: int) -> tuple[int, int]:
        """Two groups in the listed order."""
        return (first, second) if self._label[first] < self._label[second] else (second, first)

    def can_join(self, first: int, second: int) -> bool:
        """Whether the union of two groups is convex, as far as the search goes."""
        return self._separate(*self.sorted(first, second)) is not None

    def join(self, first: int, second: int) -> int | None:
        """Join two groups and return the name of the union, or None (nothing changed) where it is not convex."""
        first, second = self.sorted(first, second)
        found = self._separate(first, second)
        if found is None:
            return None
        below, moved = found
        moved.sort(key=self._label.__getitem__)
        anchor = second if below else self._previous[first]
        for group in moved:
            self._unlink(group)
            self._insert(group, anchor)
            anchor = group
        return self._unite(first, second, place=second if below else first)

    def _separate(self, first: int, second: int) -> tuple[bool, list[int]] | None:
        """The groups between the two that must move: (True, those below `first`) or (False, those above `second`)."""
        low, high = self._label[first], self._label[second]
        below, above = {first}, {second}
        down = [group for group in self.after[first] if group != second and self._label[group] < high]
        up = [group for group in self.before[second] if group != first and self._label[group] > low]
        below.update(down)
        above.update(up)
        while down and up:
            if not below.isdisjoint(up) or len(below) + len(above) > SEARCH_LIMIT:
                return None
            group = down.pop()
            found = [g for g in self.after[group] if g not in below and self._label[g] <= high]
            below.update(found)
            down.extend(found)
            group = up.pop()
            found = [g for g in self.before[group] if g not in above and self._label[g] >= low]
            above.update(found)
            up.extend(found)
            if second in below or first in above:
                return None
        if not down:
            return True, [group for group in below if group != first]
        return False, [group for group in above if group != second]

    def _unite(self, first: int, second: int, place: int) -> int:
        degree = {group: len(self.after[group]) + len(self.before[group]) for group in (first, second)}
        gone, kept = sorted((first, second), key=degree.__getitem__)
        for mine, theirs in ((self.after, self.before), (self.before, self.after)):
            for neighbour in mine[gone]:
                theirs[neighbour].discard(gone)
                theirs[neighbour].add(kept)
            mine[kept] |= mine[gone]
            mine[gone] = set()
        self.after[kept] -= {gone, kept}
        self.before[kept] -= {gone, kept}
        for vertex in self.members[gone]:
            self.group_of[vertex] = kept
        self.members[kept] = sorted(self.members[kept] + self.members.pop(gone))
        if place == gone:
            self._unlink(kept)
            self._insert(kept, gone)
        self._unlink(gone)
        return kept

    # The list: doubly linked, with labels that increase along it.

    def _unlink(self, group: int) -> None:
        before, after = self._previous[group], self._next[group]
        self._next[before], self._previous[after] = after, before

    def _insert(self, group: int, anchor: int) -> None:
        after = self._next[anchor]
        self._next[anchor] = self._previous[after] = group
        self._previous[group], self._next[group] = anchor, after
        low = -1 if anchor == self._sentinel else self._label[anchor]
        high = low + 2 * _GAP if after == self._sentinel else self._label[after]
        self._label[group] = (low + high) // 2
        if self._label[group] in (low, high):
            self._relabel()

    def _relabel(self) -> None:
        self._label = self._label or [0] * (self._sentinel + 1)
        for number, group in enumerate(self.order(), start=1):
            self._label[group] = number * _GAP
