"""Where the time of a step goes, call by call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.ir.graph import Node
from graphc.passes.manager import work_of
from graphc.plan import Call, Copy, Loop, Plan
from graphc.runtime.executable import Executable

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One call of the plan: median seconds, scalar operations, bytes of operands and results."""

    name: str
    line: str
    seconds: float
    operations: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """The rows in the order of the step; `str` is a table, the costliest first."""

    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(row.seconds for row in self.rows)

    def __str__(self) -> str:
        cells = [("µs", "share", "GFLOP/s", "GB/s", "kernel", "line")]
        for row in sorted(self.rows, key=lambda row: -row.seconds):
            rate = max(row.seconds, 1e-12) * 1e9
            share = row.seconds / max(self.seconds, 1e-12)
            cells.append(
                (
                    f"{row.seconds * 1e6:.1f}",
                    f"{share:.1%}",
                    f"{row.operations / rate:.1f}",
                    f"{row.bytes / rate:.1f}",
                    row.name,
                    row.line,
                )
            )
        widths = [max(len(row[column]) for row in cells) for column in range(6)]
        lines = [
            "  ".join([*map(str.rjust, r[:4], widths), *map(str.ljust, r[4:], widths[4:])]).rstrip() for r in cells
        ]
        return "\n".join([*lines, f"{self.seconds * 1e6:.1f} µs in {len(self.rows)} calls"])


def measure(executable: Executable, inputs: Sequence[Array], state: Sequence[Array], repeat: int) -> Profile:
    """Run the step `repeat` times on copies of the state, and take the median of each call, summed over its rounds."""
    found = iter(executable.times(inputs, state, repeat).T)
    times = {plan: [next(found) for _ in plan.steps] for plan in executable.plan.all()}
    return Profile(tuple(_rows(executable.plan, times, 1)))


def _rows(plan: Plan, times: Mapping[Plan, Sequence[Array]], rounds: int) -> Iterator[Row]:
    """The rows of a plan that is run so many times, in order; a loop's own is what is left beside its steps."""
    for step, seconds in zip(plan.steps, times[plan], strict=True):
        match step:
            case Copy():
                yield Row("copy", "", float(np.median(seconds)), 0, 2 * step.bytes * rounds)
            case Call(node=node):
                work = work_of(node)
                yield _row(node.attrs["name"], node, seconds, work.operations * rounds, work.bytes * rounds)
            case Loop(node=node):
                yield _row(f"loop {node.attrs['body'].name}", node, seconds - sum(times[step.plan]))
                yield from _rows(step.plan, times, rounds * node.attrs["length"])


def _row(name: str, node: Node, seconds: Array, operations: int = 0, bytes: int = 0) -> Row:
    line = node.location.short if node.location else ""
    return Row(name, line, float(np.median(seconds)), operations, bytes)
