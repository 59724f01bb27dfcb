"""Text prints and parses back byte for byte; malformed text is refused with its line and column."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from graphs import random_graphs
from hypothesis import HealthCheck, given, settings
from samples import SAMPLES

from graphc import ops, pipeline
from graphc.errors import ParseError
from graphc.ir import dim as dims
from graphc.ir.graph import Graph, Literal, Value, build
from graphc.ir.signature import signature
from graphc.ir.text import parse, print_graph
from graphc.ir.types import DType, TensorType
from graphc.ir.verify import verify

CASES = Path(__file__).parent / "ir"


def round_trip(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse(text)
    verify(again)
    assert print_graph(again) == text
    assert signature(again) == signature(graph)


@pytest.mark.parametrize("op", sorted({s.op for s in SAMPLES}))
def test_every_op_prints_and_parses_back(op: str) -> None:
    for sample in SAMPLES:
        if sample.op == op:
            inputs, y = sample.build()
            round_trip(build("f", inputs, [y]))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(random_graphs())
def test_every_stage_of_random_graphs_prints_and_parses_back(case: tuple[Graph, Any]) -> None:
    for graph in pipeline.build(case[0], {}).stages.values():
        round_trip(graph)


LITERALS = [
    np.array([1.5, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38], np.float32),
    np.array([0.1, 1 / 3], np.float64),
    np.frombuffer(np.uint32(0x7FC00001).tobytes(), np.float32),  # a NaN that no text names
    np.arange(17),
    np.full((100, 3), 2.5),
    np.zeros((0, 3), np.int32),
    np.array([True, False]),
    np.array(-(2**63)),
]


@pytest.mark.parametrize("array", LITERALS, ids=range(len(LITERALS)))
def test_literals_keep_their_bits(array: Any) -> None:
    round_trip(build("f", [], [ops.constant(value=Literal.of(array))]))


def test_numbers_and_names_keep_their_kind() -> None:
    batch = dims.named("batch")
    x = Value(TensorType(DType.F32, (batch, 3)), name="layer 1/weight")
    w = Value(TensorType(DType.F32, (3,)), name="0")
    y = ops.pad(x, low=(0, 1), high=(batch * 2 - 1, 0), interior=(0, 0), value=float("-inf"))
    y = ops.pad(y, low=(0, 0), high=(1, 0), interior=(0, 0), value=2)
    graph = build(
        'odd "name"',
        [x],
        [y, ops.check_index(ops.iota(shape=(4,), axis=0, dtype=DType.I64), size=batch, what='a "label"')],
        [(w, ops.neg(w))],
    )
    round_trip(graph)
    assert '%"layer 1/weight": f32[batch,3]' in str(graph)
    assert '%"0": f32[3]' in str(graph)


def test_locations_are_read_back() -> None:
    x = Value(TensorType(DType.F32, ()), name="x")
    graph = parse(str(build("f", [x], [ops.exp(x)])))
    location = graph.nodes[0].location
    assert location is not None
    assert location.file == "test_text.py"


def test_a_graph_of_ten_thousand_nodes_prints_and_parses() -> None:
    x = y = Value(TensorType(DType.F32, (3,)), name="x")
    for _ in range(10_000):
        y = ops.add(y, x)
    text = str(build("deep", [x], [y]))
    assert str(parse(text)) == text


GOOD = """graph f(%x: f32[2,3]; state %w: f32[3]) {
  %0 = exp %x : f32[2,3]
  %1 = reduce_sum %0 axes=[0] : f32[3]
  return %0
  next %w = %1
}
"""


def test_the_good_text_is_good() -> None:
    assert str(parse(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "message"),
    [
        ("exp", "exq", 2, 8, "unknown op 'exq'"),
        ("%0 axes", "%7 axes", 3, 19, "%7 is not defined"),
        ("f32[3]\n  return", "f32[4]\n  return", 3, 33, "reduce_sum gives f32[3], not f32[4]"),
        ("axes=[0]", "axis=[0]", 3, 22, "reduce_sum has no attribute axis"),
        (" axes=[0]", "", 3, 8, "needs the attribute axes"),
        ("axes=[0]", "axes=[5]", 3, 8, "axes [5] must be distinct"),
        ("%1 = reduce", "%0 = reduce", 3, 3, "%0 is defined twice"),
        ("f32[2,3];", "f33[2,3];", 1, 13, "unknown dtype 'f33'"),
        ("return", "retur", 4, 3, "expected 'return'"),
        ("next %w", "next %x", 5, 8, "%x is not a state"),
        ("next %w = %1", "next %w = %0", 5, 8, "%w is f32[3]; its next value is f32[2,3]"),
        ("}\n", "", 6, 1, "expected '}'"),
        ("}\n", "}\nx", 7, 1, "expected the end"),
        ("graph", "grap", 1, 1, "expected 'graph'"),
        ("exp %x", "exp $x", 2, 12, "unexpected character '$'"),
        ("exp %x", "add %x", 2, 8, "missing"),
        ("state %w", "state %x", 1, 29, "%x is defined twice"),
    ],
)
def test_malformed_text_is_refused_with_line_and_column(
    old: str, new: str, line: int, column: int, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ParseError) as caught:
        parse(GOOD.replace(old, new, 1), "step.gc")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"step.gc:{line}:{column}: ")


@pytest.mark.parametrize(
    ("literal", "message"),
    [
        ("f32[2]{1.0}x", "no attribute x"),
        ("f32[2]{1.0,2.0,3.0}", "8 bytes, not 12"),
        ("f32[2]{one,two}", "'one' is no f32"),
        ("i32[1]{99999999999}", "does not fit i32"),
        ("f32[n]{1.0}", "must be numbers"),
        ("f32[2]{base64:!!}", "unexpected character"),
        ("f32[2]{base64:AAA}", "base64"),
        ("f32[99999999999999]{1.0}", "a literal of 399999999999996 bytes cannot be had"),
        ("[" * 10_000, "nested too deeply"),
        (r'"\u12"', "malformed string"),
    ],
)
def test_malformed_literals_are_refused(literal: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(f"graph f() {{\n  %0 = constant value={literal} : f32[2]\n  return %0\n}}\n")


@pytest.mark.parametrize("extent", ["-1", "1+", "+", "n+-1", "n**2", "true", "²", "-n*"])
def test_an_extent_that_is_none_is_refused_with_its_place(extent: str) -> None:
    with pytest.raises(ParseError, match=r"<text>:1:1\d: "):
        parse(f"graph f(%x: f32[{extent}]) {{\n  return %x\n}}\n")


def test_a_bool_is_no_extent_and_no_axis() -> None:
    """`true` in a shape printed as f32[True], which does not parse."""
    for line in ("reshape %x shape=[4,true] : f32[4,1]", "reduce_sum %x axes=[true] : f32[4]"):
        with pytest.raises(ParseError):
            parse(f"graph f(%x: f32[4,1]) {{\n  %0 = {line}\n  return %0\n}}\n")


TOKENS = [
    "graph",
    "%0",
    "%x",
    "f32[2]",
    "i64",
    "-1",
    "9" * 20,
    "1e400",
    "nan",
    "none",
    "true",
    '"a"',
    r'"\u"',
    "base64:A=",
]
TOKENS += [
    "n*m",
    "axes=[0]",
    "kernel",
    "constant",
    "//",
    "\0",
    "é",
    "٣",
    "1_0",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    ",",
    "=",
    ":",
]


def test_a_source_file_whose_name_begins_with_a_blank_reads_back() -> None:
    text = print_graph(parse("graph f(%x: f32[2]) {\n  %0 = neg %x : f32[2]  // folder/ model.py:7\n  return %0\n}\n"))
    assert "// model.py:7" in text
    assert print_graph(parse(text)) == text


@pytest.mark.parametrize("seed", range(4))
def test_mutilated_text_is_refused_with_its_place_or_reads_back(seed: int) -> None:
    """Truncations, deletions, repetitions and foreign tokens: a ParseError or a graph, never another error."""
    random = Random(seed)
    sources = [
        half for file in sorted(CASES.glob("*.gc")) for half in file.read_text().split("// ----") if "graph" in half
    ]
    for _ in range(400):
        text = random.choice(sources)
        for _ in range(random.choice((1, 1, 2))):
            at = random.randrange(len(text) + 1)
            end = at + random.randrange(12)
            text = (
                text[:at] + random.choice(("", text[at:end] * 2, *TOKENS)) + random.choice(("", text[at:], text[end:]))
            )
        try:
            graph = parse(text)
        except ParseError:
            continue
        assert print_graph(parse(print_graph(graph))) == print_graph(graph)
