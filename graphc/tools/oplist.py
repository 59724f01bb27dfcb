"""The op list of the documentation: `python -m graphc.tools.oplist > docs/ops.md`."""

from __future__ import annotations

import inspect

import graphc.ops  # noqa: F401  fills the table
from graphc.ir.op import OPS, Op, Scan
from graphc.ir.text import attribute_names
from graphc.ops.define import zero_gradient

_KINDS = ("Generator", "Elementwise", "Movement", "Reduction", "Contraction", "Opaque", "Call", "Scan")


def render() -> str:
    """The table of all ops, by kind."""
    lines = [
        "# Ops",
        "",
        "Generated from the op table by `python -m graphc.tools.oplist`. Operands stand before attributes, as in text.",
        "Gradient: `zero` where the op is constant or piecewise so; asking for one that is `none` raises.",
    ]
    for kind in _KINDS:
        lines += ["", f"## {kind}", "", "| op | meaning | gradient |", "|---|---|---|"]
        for op in sorted(OPS.values(), key=lambda op: op.name):
            if type(op.kind).__name__ == kind:
                lines.append(f"| `{_call(op)}` | {op.doc.replace('|', chr(92) + '|')} | {_gradient(op)} |")
    return "\n".join(lines) + "\n"


def _gradient(op: Op) -> str:
    match op.vjp:
        case None:
            return "yes" if isinstance(op.kind, Scan) else "none"
        case rule if rule is zero_gradient:
            return "zero"
        case _:
            return "yes"


def _call(op: Op) -> str:
    """The op with its operands and attributes."""
    operands = []
    for parameter in inspect.signature(op.infer).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            operands.append(f"{parameter.name}...")
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            operands.append(parameter.name)
    return " ".join([op.name, ", ".join(operands), *(f"{name}=" for name in attribute_names(op))]).replace("  ", " ")


if __name__ == "__main__":
    print(render(), end="")
