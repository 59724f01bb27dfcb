"""The documents say what is true: their code runs, what they show is what it prints, generated parts are current."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from graphc.ir.text import parse
from graphc.tools.oplist import render

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


def test_the_tour_prints_what_it_shows(bless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "docs" / "tour.md"
    text = file.read_text()
    scope: dict[str, Any] = {"__name__": "tour"}
    printed, parts, place = "", [], 0
    for block in FENCE.finditer(text):
        kind, body = block.groups()
        if kind == "python":
            line = text.count("\n", 0, block.start(2))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * line + body, "tour.md", "exec"), scope)
            printed = out.getvalue()
        else:
            if not bless:
                assert body == printed
            parts += [text[place : block.start(2)], printed]
            place = block.end(2)
    if bless:
        file.write_text("".join([*parts, text[place:]]))


def test_the_example_of_the_readme_runs() -> None:
    scope: dict[str, Any] = {"__name__": "readme"}
    blocks = [body for kind, body in FENCE.findall((ROOT / "README.md").read_text()) if kind == "python"]
    assert blocks
    for body in blocks:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(body, "README.md", "exec"), scope)


def test_the_op_list_is_current() -> None:
    assert (ROOT / "docs" / "ops.md").read_text() == render()


def test_the_text_of_the_text_format_parses() -> None:
    example = re.search(r"```\n(graph step.*?)```", (ROOT / "docs" / "text.md").read_text(), re.DOTALL)
    assert example is not None
    assert str(parse(example.group(1))) == example.group(1)


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            if "://" not in target:
                assert (file.parent / target).exists(), f"{file.name}: {target}"


# Examples -------------------------------------------------------------------------------------------------------


def example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What an example prints."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return out.getvalue()


def test_the_digits_are_learnt_natively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "digits.png"
    text = example("train_digits.py", "--out", str(picture), monkeypatch=monkeypatch)
    found = re.search(r"validation accuracy ([0-9.]+) on 359", text)
    assert found is not None
    assert float(found.group(1)) >= 0.97
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_interpreted_digits_have_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    losses = []
    for mode in ("native", "interpret"):
        arguments = ("--epochs", "3", "--mode", mode, "--out", str(tmp_path / "digits.png"))
        text = example("train_digits.py", *arguments, monkeypatch=monkeypatch)
        losses.append([float(number) for number in re.findall(r"loss ([0-9.]+)", text)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 3


def test_the_tour_of_the_ir_prints_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    text = example("ir_tour.py", monkeypatch=monkeypatch)
    for stage in ("graph", "fused", "plan", "loops", "llvm", "assembly"):
        assert f"==== {stage} " in text


def test_mnist_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    import numpy as np

    random = np.random.default_rng(0)
    for part, count in (("train", 128), ("t10k", 32)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = random.integers(0, 10, count).astype(np.uint8)
        head = b"\0\0\x08\x03" + np.array([count, 28, 28], ">i4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = b"\0\0\x08\x01" + np.array([count], ">i4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    assert "epoch 2: loss" in example("mnist_mlp.py", str(tmp_path), "--epochs", "2", monkeypatch=monkeypatch)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="not an IDX file"):
        example("mnist_mlp.py", str(tmp_path), monkeypatch=monkeypatch)
