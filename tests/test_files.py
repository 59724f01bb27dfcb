"""File tests: `tests/ir/*.gc`.

    // RUN: simplify cse          the passes
    graph f(...) { ... }          before
    // ----
    graph f(...) { ... }          after, exactly; `pytest --bless` writes it

A file whose first line is `// ERROR: message` must be refused, by parser or verifier, with that message.
Both halves are also printed back, verified, and run on the same random numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphc import compare, pipeline, reference
from graphc.errors import GraphcError
from graphc.ir.graph import Graph
from graphc.ir.text import parse
from graphc.ir.verify import verify
from graphc.passes.manager import run
from graphc.runtime.feeds import examples

FILES = sorted((Path(__file__).parent / "ir").glob("*.gc"))
SEPARATOR = "// ----\n"


def read(text: str, name: str) -> Graph:
    graph = parse(text, name)
    verify(graph)
    assert str(graph) == text
    return graph


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_file(file: Path, bless: bool) -> None:
    first, text = file.read_text().split("\n", 1)
    directive, _, argument = first.removeprefix("// ").partition(": ")
    if directive == "ERROR":
        with pytest.raises(GraphcError) as caught:
            verify(parse(text, file.name))
        assert argument in str(caught.value)
        return
    assert directive == "RUN"
    before_text, _, after_text = text.partition(SEPARATOR)
    before = read(before_text, file.name)
    found, _ = run(before, argument.split())
    if bless:
        file.write_text(f"{first}\n{before_text}{SEPARATOR}{found}")
        return
    assert str(found) == after_text
    after = read(after_text, file.name)
    feeds = examples(before)
    wanted = reference.run(before, feeds)
    for stage in (found, after):
        for results, others in zip(reference.run(stage, feeds), wanted, strict=True):
            for array, other in zip(results, others, strict=True):
                compare.require_close(np.asarray(array), np.asarray(other), before, file.stem, scale=1.0)
    pipeline.build(after, {})


def test_there_are_file_tests() -> None:
    assert len(FILES) >= 10
