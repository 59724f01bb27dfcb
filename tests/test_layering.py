"""Imports run downhill and stand at the top; importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "graphc"
LAYERS = [
    ["errors"],
    ["settings"],
    ["ir"],
    ["ops"],
    ["reference", "rounding", "autodiff"],
    ["frontend", "passes"],
    ["plan"],
    ["loops"],
    ["codegen"],
    ["runtime"],
    ["compare"],
    ["pipeline"],
    ["compiler"],
    ["testing", "tools"],
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(PACKAGE.rglob("*.py"))
LATE = {"llvmlite": {"codegen", "runtime"}, "networkx": {"plan", "passes", "tools"}}


def layer_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "graphc" else [node.module]
            found += [(node, name) for name in names]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_downhill_and_stand_at_the_top(file: Path) -> None:
    tree = ast.parse(file.read_text())
    own = layer_of(file)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node, name in imports(tree):
        if id(node) in typing_only:
            continue
        assert node.col_offset == 0, f"import of {name} inside a function"
        root, *rest = name.split(".")
        if root in LATE:
            assert own in LATE[root], f"{own} imports {root}"
        if root != "graphc" or not rest or own in ("__init__", "__main__"):
            continue
        other = rest[0]
        if other == own:
            continue
        assert LEVEL[other] < LEVEL[own], f"{own} imports {other}"


def test_importing_the_package_is_light() -> None:
    heavy = ("llvmlite", "networkx", "graphc.compiler", "graphc.codegen", "graphc.passes")
    code = f"import sys, graphc; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_file_says_what_it_is_about() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())) or not file.read_text().strip(), file
