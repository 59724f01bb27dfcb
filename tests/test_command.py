"""The graphc command, used as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from test_compile import Problem, batch

from graphc.ir.text import parse
from graphc.pipeline import PASSES
from graphc.tools.command import main

GRAPH = """graph f(%x: f32[n,3], %at: i64[n]; state %w: f32[3]) {
  %0 = check_index %at size=4 what="place" : i64[n]
  %1 = broadcast %w shape=[n,3] axes=[1] : f32[n,3]
  %2 = exp %x : f32[n,3]
  %3 = exp %x : f32[n,3]
  %4 = add %2, %3 : f32[n,3]
  %5 = mul %4, %1 : f32[n,3]
  %6 = reduce_sum %5 axes=[0] : f32[3]
  return %6, %0
  next %w = %6
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.gc"
    path.write_text(GRAPH)
    return path


def test_opt_applies_the_named_passes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "--passes", "cse,dce", "--ledger", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.count("exp") == 1
    parse(out)
    assert err.split()[:2] == ["pass", "ms"]


def test_run_prints_results_of_both_modes_alike(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for mode in ("native", "interpret"):
        assert main(["run", "--mode", mode, "--size", "n=5", str(file)]) == 0
        texts.append(capsys.readouterr().out)
    assert [line.split("=")[0] for line in texts[0].splitlines()] == [
        "output 0: f32[3] ",
        "output 1: i64[5] ",
        "next %w: f32[3] ",
    ]
    assert texts[0] == texts[1]


def test_run_takes_given_arrays(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {"x": np.zeros((2, 3), np.float32), "at": np.array([1, 3]), "w": np.ones(3, np.float32)}
    np.savez(tmp_path / "feeds.npz", **arrays)
    assert main(["run", "--feeds", str(tmp_path / "feeds.npz"), "--size", "n=2", str(file)]) == 0
    assert "output 0: f32[3] = [4. 4. 4.]" in capsys.readouterr().out


def test_compare_holds_every_dumped_stage_against_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAPHC_DUMP", str(tmp_path))
    Problem().step(*batch(6))
    monkeypatch.delenv("GRAPHC_DUMP")
    files = sorted(map(str, tmp_path.glob("*.gc")))
    assert main(["run", "--compare", "--size", "batch=6", *files]) == 0
    assert capsys.readouterr().out.count("agree") == len(files) == len(PASSES) + 2  # graph, bind


def test_compare_notices_a_hand_edited_difference(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = file.with_name("g.gc")
    other.write_text(GRAPH.replace("%4 = add", "%4 = mul"))
    assert main(["run", "--compare", "--size", "n=5", str(file), str(other)]) == 1
    assert "g.gc against f.gc, output 0" in capsys.readouterr().err


def test_dump_prints_stages(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage, word in (
        ("fused", "kernel"),
        ("plan", "arena"),
        ("loops", "exp"),
        ("llvm", "define"),
        ("assembly", "ret"),
    ):
        assert main(["dump", "--stage", stage, "--size", "n=5", str(file)]) == 0
        assert word in capsys.readouterr().out


def test_dot_draws(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dot", str(file)]) == 0
    assert capsys.readouterr().out.startswith('digraph "f" {')
    picture = tmp_path / "f.svg"
    assert main(["dot", str(file), "-o", str(picture)]) == 0
    root = ElementTree.parse(picture).getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"%x", "check_index", "reduce_sum", "return"} <= set(texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opt", "--passes", "faster", "FILE"], "there is no pass 'faster'"),
        (["opt", "missing.gc"], "missing.gc: No such file"),
        (["run", "FILE"], "say how large n is: --size n=64"),
        (["run", "--size", "n", "FILE"], "--size looks like batch=64"),
        (["dump", "--stage", "machine", "--size", "n=2", "FILE"], "there is no stage 'machine'"),
        (["dot", "FILE", "-o", "f.png"], "a drawing is a .svg or .dot file"),
    ],
)
def test_mistakes_get_one_message(
    file: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file) if a == "FILE" else a for a in arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("graphc: ")
    assert message in err


def test_feeds_say_how_large_a_dimension_is(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.zeros((2, 3), np.float32), at=np.zeros(2, int), w=np.ones(3, "f4"))
    assert main(["run", "--feeds", str(tmp_path / "feeds.npz"), str(file)]) == 0
    capsys.readouterr()
    np.savez(tmp_path / "objects.npz", x=np.array([None]))
    for name, content in (("no.npz", b"graph"), ("one.npz", b""), ("objects.npz", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert main(["run", "--feeds", str(tmp_path / name), str(file)]) == 1
        assert capsys.readouterr().err == f"graphc: {name} is no .npz file of arrays of numbers\n"


def test_bytes_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes.gc").write_bytes(b"\xff\xfe")
    assert main(["opt", str(tmp_path / "bytes.gc")]) == 1
    assert capsys.readouterr().err == "graphc: bytes.gc is no text\n"


def test_a_pass_that_needs_numbers_says_how_to_give_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(file)]) == 1
    assert capsys.readouterr().err == "graphc: say how large n is: --size n=64\n"
    assert main(["opt", "--size", "n=4", str(file)]) == 0


def test_a_reader_that_has_seen_enough_is_no_mistake(file: Path) -> None:
    """As `graphc opt .. | head`: the pipe is closed before all is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "graphc", "opt", "--passes", "", str(file)]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (1, b"")


def test_malformed_files_are_refused_with_their_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GRAPH.replace("exp", "expp", 1))
    assert main(["opt", str(file)]) == 1
    assert capsys.readouterr().err == "graphc: f.gc:4:8: unknown op 'expp'\n"
