"""Source lines: where in the user's program a node comes from.

A node takes the innermost frame outside the graphc package, unless `located(...)` says otherwise: autodiff and
the passes use it to hand a node's line on to the nodes that they derive from it.
"""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar, Token
from dataclasses import dataclass

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_override: ContextVar[tuple[Location | None] | None] = ContextVar("location", default=None)


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a file; prints with the full path. `short` is without it, and without blanks around it."""

    file: str
    line: int

    @property
    def short(self) -> str:
        return f"{os.path.basename(self.file).strip()}:{self.line}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def here() -> Location | None:
    """The location for a node built now, or None when no frame outside the package exists."""
    override = _override.get()
    if override is not None:
        return override[0]
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGE):
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)


class located:  # entered once for every node of a pass: a generator would take three times as long
    """Nodes built inside `with located(location)` take that location."""

    __slots__ = ("location", "token")

    def __init__(self, location: Location | None) -> None:
        self.location = location

    def __enter__(self) -> None:
        self.token: Token[tuple[Location | None] | None] = _override.set((self.location,))

    def __exit__(self, *_: object) -> None:
        _override.reset(self.token)
