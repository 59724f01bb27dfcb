"""What a plan consists of: addresses, slots, calls, copies."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.ir.graph import Graph, Node, Value
from graphc.ir.memory import ALIGNMENT

if TYPE_CHECKING:
    from graphc.plan.model import Plan


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Base(enum.Enum):
    """A kind of memory. The step's table lists them in this order, one address for each array, one for the arena."""

    INPUT = "input"
    STATE = "state"
    OUTPUT = "output"
    CONSTANT = "constant"
    ARENA = "arena"


@dataclass(frozen=True, slots=True)
class Address:
    """`offset` bytes behind the start of input, state, output or constant number `index`, or of the arena."""

    base: Base
    index: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"arena+{self.offset}" if self.base is Base.ARENA else f"{self.base.value} {self.index}"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value lies, and during which steps (both inclusive) its bytes must stay.

    `view` is the operand whose bytes these are, `over` the dead operand that the value is written over.
    """

    address: Address
    bytes: int
    first: int
    last: int
    view: Value | None = None
    over: Value | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory of one call."""

    address: Address
    bytes: int


@dataclass(frozen=True, slots=True)
class Call:
    """A node to run. `results` leaves out outputs that are views: a check has operands alone."""

    node: Node
    operands: tuple[Address, ...]
    results: tuple[Address, ...]
    scratch: Scratch | None = None
    is_check: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """`bytes` bytes of `value` to another place."""

    value: Value
    source: Address
    target: Address
    bytes: int


@dataclass(frozen=True, eq=False, slots=True)
class Loop:
    """A scan to run: `plan`, that of its step (`step_graph`), as often as the node says.

    The step finds slices and stacked results at their places in the operands and results, its carries in the final
    ones, which are first copied there. `constants` is where those of the step lie, and `scratch` holds its arena.

    With one of `shares` all threads run each step together. With more they are so many teams, each of which runs steps
    of its own, in an arena of its own: one after the other in `scratch`.

    The last `tail` steps of the plan make nothing but carries that nobody reads behind the loop: the last round has no
    need of them.
    """

    node: Node
    operands: tuple[Address, ...]
    results: tuple[Address, ...]
    plan: Plan
    constants: tuple[Address, ...]
    scratch: Scratch | None = None
    shares: int = 1
    tail: int = 0


Step = Call | Copy | Loop


def shares_of(node: Node, threads: int) -> int:
    """Into how many shares the steps of a scan are divided: without carries they are independent of each other."""
    return 1 if node.attrs["body"].state else max(1, min(threads, node.attrs["length"]))


def read_back(body: Graph) -> Mapping[int, int]:
    """The carries of a step that are results too, and which: a step reads them where the one before stored them."""
    place = {value: number for number, value in reversed(list(enumerate(body.outputs)))}
    return {number: place[value] for number, (_, value) in enumerate(body.next) if value in place}


def step_graph(node: Node) -> Graph:
    """What one step of a scan computes in its memory: a carry that is read back is not written."""
    body: Graph = node.attrs["body"]
    back = read_back(body)
    next = tuple(pair for number, pair in enumerate(body.next) if number not in back)
    return Graph(body.name, body.inputs, body.state, body.nodes, body.outputs, next)
