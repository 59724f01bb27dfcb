"""The memory plan of a step: in which order its calls run, and where every value lies.

`make(graph, scratch)` plans a fused graph without named dimensions, `verify(graph, plan)` simulates the plan. Values
lie

    input     in the caller's arrays, which are never written
    state     in the parameters: old values, and next values that may be written in place
    output    in the caller's result arrays
    constant  in a pool of the literals that kernels read, each distinct one once
    arena     in one block of `plan.arena_bytes` bytes, shared by what is not live at the same time

and none of these memories overlaps another. A scan is a `Loop`, with a plan of its own for one step, whose arena is the
loop's scratch. A `reshape`, and the result of `check_index`, is a view of its operand.

Invariants, checked by `verify`:
 1. every call finds its operands as they were computed, every output and next state lies in its place at the end;
 2. no state is written before all checks have passed: a step that fails leaves the state as it was;
 3. a result lies over an operand only where `passes.forms.may_alias` allows it;
 4. arena offsets are multiples of `ALIGNMENT`; nothing lies outside of its memory.
"""

from graphc.ir.memory import ALIGNMENT
from graphc.plan.model import Plan
from graphc.plan.planner import make
from graphc.plan.steps import Address, Base, Call, Copy, Loop, Scratch, Slot, shares_of
from graphc.plan.verify import verify

__all__ = [
    "ALIGNMENT",
    "Address",
    "Base",
    "Call",
    "Copy",
    "Loop",
    "Plan",
    "Scratch",
    "Slot",
    "make",
    "shares_of",
    "verify",
]
