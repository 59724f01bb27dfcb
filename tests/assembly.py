"""Reading assembly of x86-64 and AArch64: the loops that are one block, and what they do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.LBB\w+):", re.MULTILINE)
_JUMP = re.compile(r"^\t(?:j\w+|b\.\w+|cbn?z\t\w+,|tbn?z\t\w+, #\d+,)\s+(\.LBB\w+)", re.MULTILINE)
_FRAME = "movq\t%rsp, %rbp"  # else rbp is a register like any other


@dataclass(frozen=True)
class HotLoop:
    """The instructions from a label to the jump back to it."""

    text: str
    has_frame: bool

    @property
    def multiply_adds(self) -> list[str]:
        """Fused multiply-adds, packed or not."""
        return re.findall(r"^\t(?:vfn?m(?:add|sub)\w+|fmla)\t.*$", self.text, re.MULTILINE)

    def packed(self, register: str) -> list[str]:
        """Those on whole registers of a class: `ymm`, `zmm`."""
        return [line for line in self.multiply_adds if re.search(rf"p[sd]\t.*%{register}\d+$", line)]

    @property
    def stack(self) -> list[str]:
        """Instructions that touch the stack."""
        pointer = r"\(%r[sb]p|\[sp" if self.has_frame else r"\(%rsp|\[sp"
        return re.findall(rf"^\t.*(?:{pointer}).*$", self.text, re.MULTILINE)

    @property
    def stores(self) -> list[str]:
        """Vectors that are written to memory."""
        return re.findall(r"^\tvmov\w+\t%[xyz]mm\d+, .*\(.*$", self.text, re.MULTILINE)


def loops(assembly: str) -> Iterator[HotLoop]:
    """Every innermost loop without branches."""
    labels = list(_LABEL.finditer(assembly))
    for label, following in zip(labels, [*labels[1:], None]):
        block = assembly[label.end() : following.start() if following else len(assembly)]
        jump = _JUMP.search(block)
        if jump and jump.group(1) == label.group(1):
            yield HotLoop(block[: jump.end()], _FRAME in assembly)


def hottest(assembly: str) -> HotLoop:
    """The loop with the most multiply-adds."""
    return max(loops(assembly), key=lambda loop: len(loop.multiply_adds))
