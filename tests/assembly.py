"""Reading x86 assembly: the loops that are one block, and what they do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.LBB\w+):", re.MULTILINE)
_JUMP = re.compile(r"^\tj\w+\t(\.LBB\w+)", re.MULTILINE)


@dataclass(frozen=True)
class HotLoop:
    """The instructions from a label to the jump back to it."""

    text: str

    @property
    def multiply_adds(self) -> list[str]:
        """Fused multiply-adds, packed or not."""
        return re.findall(r"^\tvfn?m(?:add|sub)\w+\t.*$", self.text, re.MULTILINE)

    def packed(self, register: str) -> list[str]:
        """Those on whole registers of a class: `ymm`, `zmm`."""
        return [line for line in self.multiply_adds if re.search(rf"p[sd]\t.*%{register}\d+$", line)]

    @property
    def stack(self) -> list[str]:
        """Instructions that touch the stack."""
        return re.findall(r"^\t.*\(%r[sb]p.*$", self.text, re.MULTILINE)

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
            yield HotLoop(block[: jump.end()])


def hottest(assembly: str) -> HotLoop:
    """The loop with the most multiply-adds."""
    return max(loops(assembly), key=lambda loop: len(loop.multiply_adds))
