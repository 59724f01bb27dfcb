"""How a plan prints: its size, its steps with the bytes that are live, its values with the steps they live through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphc.ir.graph import Graph, Value
from graphc.plan.steps import Base, Call, Copy, Loop, Slot, Step

if TYPE_CHECKING:
    from graphc.plan.model import Plan

BAR = 32  # characters of a full bar
WIDEST = 110  # characters of a step, up to which columns are lined up
CHART = 64  # characters of the longest chart of live ranges


def render(plan: Plan) -> str:
    """All of a plan, as lines of text that end with a newline; the plans of its loops' steps are indented."""
    names = _names(plan.graph)
    blocks = [_summary(plan), _steps(plan, names), _values(plan, names)]
    blocks += [["    " + line for line in render(loop.plan).split("\n")[:-1]] for loop in plan.loops]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks if block) + "\n"


def _summary(plan: Plan) -> list[str]:
    loops = f"loops {len(plan.loops)}, " if plan.loops else ""
    over = sum(slot.over is not None for slot in plan.slots.values())
    views = sum(slot.view is not None for slot in plan.slots.values())
    ratio = plan.arena_bytes / plan.lower_bound if plan.lower_bound else 1.0
    lines = [
        f"plan {plan.graph.name}: calls {len(plan.calls)}, {loops}copies {len(plan.copies)}, views {views}, "
        f"in place {over}",
        f"arena {plan.arena_bytes} bytes, {ratio:.3f} x the {plan.lower_bound} that are live at once",
    ]
    if plan.constants:
        lines.append(f"constants {sum(len(literal.data) for literal in plan.constants)} bytes")
    return lines


def _names(graph: Graph) -> dict[Value, str]:
    """Inputs and state by name, results by number."""
    names = {value: f"%{value.name}" for value in (*graph.inputs, *graph.state)}
    made = (value for node in graph.nodes for value in node.outputs)
    return names | {value: f"%{number}" for number, value in enumerate(made)}


def _steps(plan: Plan, names: Mapping[Value, str]) -> list[str]:
    texts = [_step(step, names) for step in plan.steps]
    width = min(WIDEST, max(map(len, texts), default=0))
    size = len(str(plan.lower_bound))
    lines = []
    for number, (text, live) in enumerate(zip(texts, plan.live_bytes, strict=True)):
        bar = "#" * round(BAR * live / plan.lower_bound) if plan.lower_bound else ""
        lines.append(f"  {number:>3}  {text:<{width}}  {live:>{size}} {bar}")
    return ["steps, and the bytes of arena that are live", *lines] if lines else []


def _step(step: Step, names: Mapping[Value, str]) -> str:
    match step:
        case Copy(value, source, target):
            return f"copy {names.get(value, f'%{value.name}')} from {source} to {target}"
        case Call(node=node) | Loop(node=node):
            results = ", ".join(names[value] for value in node.outputs)
            operands = ", ".join(names[value] for value in node.inputs)
            scratch = f" with {step.scratch.bytes} bytes at {step.scratch.address}" if step.scratch else ""
            return f"{results} = {_called(step)} {operands}{scratch}"


def _called(step: Call | Loop) -> str:
    attrs = step.node.attrs
    if isinstance(step, Loop):
        shared = f" in {step.shares} shares" if step.shares > 1 else ""
        tail = f" (the last without {step.tail} step{'s' * (step.tail > 1)})" if step.tail else ""
        return f"{attrs['length']} x {attrs['body'].name}{shared}{tail}"
    return str(attrs.get("name", step.node.op.name))


def _values(plan: Plan, names: Mapping[Value, str]) -> list[str]:
    rows = [
        (
            names[value],
            str(value.type),
            str(slot.bytes),
            str(slot.address),
            _mark(slot, names),
            f"{slot.first}..{slot.last}",
            _chart(slot, len(plan.steps)),
        )
        for value, slot in plan.slots.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (False, False, True, False, False, True, False)
    lines = [
        "  " + "  ".join(f"{cell:>{w}}" if r else f"{cell:<{w}}" for cell, w, r in zip(row, widths, right, strict=True))
        for row in rows
    ]
    return ["values: bytes, place, and the steps in which they are needed", *lines] if lines else []


def _mark(slot: Slot, names: Mapping[Value, str]) -> str:
    if slot.view is not None:
        return f"view of {names[slot.view]}"
    return f"over {names[slot.over]}" if slot.over is not None else ""


def _chart(slot: Slot, steps: int) -> str:
    """One character for each step, or for several where there are many; only what lies in the arena."""
    if slot.address.base is not Base.ARENA or slot.view is not None:
        return ""
    columns = min(steps, CHART)
    first, last = slot.first * columns // steps, slot.last * columns // steps
    return "." * first + "#" * (last - first + 1) + "." * (columns - last - 1)
