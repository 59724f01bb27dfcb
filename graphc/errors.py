"""Every exception that graphc raises, and how it is worded.

A message is short and lower case: what is wrong with both values, then the user's line. Each class also
derives from the built-in exception that a NumPy user would expect, so `except ValueError` keeps working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphc.ir.source import Location


class GraphcError(Exception):
    """Base of all graphc errors. `location` is the user's line, where one is known."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        self.message = message
        self.location = location
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}\n  at {self.location}" if self.location else self.message


class ShapeError(GraphcError, ValueError):
    """Operand shapes do not fit the operation."""


class DTypeError(GraphcError, TypeError):
    """Operand dtypes do not fit the operation."""


class ArgumentError(GraphcError, ValueError):
    """An argument is outside what the operation, layer or optimiser accepts."""


class GradientError(GraphcError, ValueError):
    """A gradient was asked for that does not exist: non-scalar, not connected, or an op without a rule."""


class FeedError(GraphcError, ValueError):
    """An array handed to a compiled function does not fit its placeholder."""


class FeedTypeError(FeedError, TypeError):
    """A feed is missing, unexpected or of the wrong dtype."""


class StateError(GraphcError, RuntimeError):
    """A parameter changed (shape, dtype) since the graph that uses it was compiled."""


class IndexRangeError(GraphcError, IndexError):
    """An integer used as an index (a class label, a token) lies outside its range."""


class ParseError(GraphcError, ValueError):
    """Malformed text; `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int, source: str = "<text>") -> None:
        self.line, self.column, self.source = line, column, source
        super().__init__(f"{source}:{line}:{column}: {message}")


class VerifyError(GraphcError, AssertionError):
    """An invariant of the IR does not hold: a defect of a pass or of hand-edited text."""


class PassError(GraphcError, RuntimeError):
    """A pass failed; the message names it and says how to replay it from text."""


class PlanError(GraphcError, MemoryError):
    """The arena of a step cannot be had."""


class LoweringError(GraphcError, RuntimeError):
    """A kernel has no native form: always a defect of graphc."""


class MismatchError(GraphcError, AssertionError):
    """Two ways of running the same graph disagree (see `graphc.testing`)."""
