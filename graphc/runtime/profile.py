"""Where the time of a step goes, call by call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.passes.manager import work_of
from graphc.plan import Call
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
    """Run the step `repeat` times on copies of the state, and take the median of each call."""
    seconds = np.median(executable.times(inputs, state, repeat), axis=0)
    rows = []
    for step, elapsed in zip(executable.plan.steps, seconds, strict=True):
        if isinstance(step, Call):
            work = work_of(step.node)
            where = step.node.location
            rows.append(
                Row(step.node.attrs["name"], where.short if where else "", float(elapsed), work.operations, work.bytes)
            )
        else:
            rows.append(Row("copy", "", float(elapsed), 0, 2 * step.bytes))
    return Profile(tuple(rows))
