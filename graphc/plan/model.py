"""What a plan is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from graphc.ir.graph import Graph, Literal, Value
from graphc.plan import text
from graphc.plan.steps import Address, Base, Call, Copy, Loop, Slot, Step


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """A step as a list of calls and copies between fixed addresses. `str` shows all of it.

    slots         every input, state and node output of the graph
    constants     what the constant memories hold
    arena_bytes   bytes of arena that the step needs
    live_bytes    bytes of arena, rounded to ALIGNMENT, that are live at each step
    """

    graph: Graph
    steps: tuple[Step, ...]
    slots: Mapping[Value, Slot]
    constants: tuple[Literal, ...]
    arena_bytes: int
    live_bytes: tuple[int, ...]

    @property
    def lower_bound(self) -> int:
        """Most bytes that are live at once: no arena could be smaller in this order."""
        return max(self.live_bytes, default=0)

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(step for step in self.steps if isinstance(step, Call))

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(step for step in self.steps if isinstance(step, Loop))

    def all(self) -> Iterator[Plan]:
        """This plan, and those of the steps of its loops."""
        yield self
        for loop in self.loops:
            yield from loop.plan.all()

    @property
    def entries(self) -> int:
        """Length of the table: one address for each memory."""
        return self.entry(Address(Base.ARENA)) + 1

    @property
    def copies(self) -> tuple[Copy, ...]:
        return tuple(step for step in self.steps if isinstance(step, Copy))

    def entry(self, address: Address) -> int:
        """Position of a memory's address in the table [inputs..., states..., outputs..., constants..., arena]."""
        inputs, state, outputs = len(self.graph.inputs), len(self.graph.state), len(self.graph.outputs)
        match address.base:
            case Base.INPUT:
                return address.index
            case Base.STATE:
                return inputs + address.index
            case Base.OUTPUT:
                return inputs + state + address.index
            case Base.CONSTANT:
                return inputs + state + outputs + address.index
            case Base.ARENA:
                return inputs + state + outputs + len(self.constants)
            case _:
                assert_never(address.base)

    def __str__(self) -> str:
        return text.render(self)

    def __repr__(self) -> str:
        return f"<plan of {self.graph.name}: {len(self.steps)} steps, {self.arena_bytes} bytes of arena>"
