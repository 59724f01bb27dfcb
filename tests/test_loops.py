"""The loop IR's text, verifier and interpreter."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from graphc.errors import ParseError, VerifyError
from graphc.ir.index import Condition, Index, Var
from graphc.ir.types import DType
from graphc.loops.interpret import fma, run
from graphc.loops.ir import Buffer, Const, Function, Let, Space, Store
from graphc.loops.text import parse_function, print_function
from graphc.loops.verify import bounds, verify

EVERYTHING = """\
kernel every.thing(x: f32[64,128] in, n: i64[7] in, y: f32[64] out, z: bool[] out, part: f64[2,3] scratch) {
  local fine: bool[]
  fine[] = true
  for i parallel 64 {
    local acc: f32[16]
    for v vector 16 lanes 16 {
      acc[v] = -inf:f32
    }
    for j 8 {
      prefetch x[i+9, 16*j]
      for v vector 12 lanes 16 {
        prefetch part[j, v]
        let t0 = x[i, 16*j+v]                                     // train.py:12
        let t1 = x[i-1, (16*j+v)/2+3*(v-5)%7] if i-1>=0 and -1*v+7>=0 and j==0 else nan
        let t2 = x[i, @n[0]]
        let t3 = select(i-3>=0, t0, 1e-07:f32)
        acc[v] max= fma(t0, t1, t3)                               // model.py:3
        acc[v] min= where(less(t0, t2), t0, convert(position(2*j+v-1):i64):f32)
      }
    }
    if i-3>=0 and i-4==0 {
      for u unrolled 2 {
        y[i] += mul(acc[u], 2.5:f32)
        y[i] *= acc[u+2]
      }
    }
  }
  for i 7 {
    fine[] and= greater_equal(n[i], -3:i64)
    fine[] or= false
    part[1, @n[i]] += 1e+20:f64                                   // a file:name.py:7
  }
  check fine[] code 2
  z[] = fine[]
}
"""


def test_text_is_printed_as_it_was_parsed() -> None:
    function = parse_function(EVERYTHING)
    assert print_function(function) == EVERYTHING
    again = parse_function(print_function(function))
    assert print_function(again) == EVERYTHING
    assert [b.name for b in function.scratch] == ["part"]


def test_equal_functions_have_equal_text_without_locations() -> None:
    y = Buffer("y", DType.F32, (), Space.OUTPUT)
    function = parse_function("kernel f(y: f32[] out) {\n  y[] = 1.0:f32  // a.py:3\n}")
    other = Function("f", (), (y,), (), (Store(y, (), Const(1.0, DType.F32)),))
    assert function != other
    assert print_function(function, locations=False) == print_function(other)


@pytest.mark.parametrize("number", ["-0.0", "1.5", "1e-45", "inf", "-inf", "nan", "3.4028234663852886e+38"])
def test_floats_keep_their_value_in_text(number: str) -> None:
    y = Buffer("y", DType.F64, (), Space.OUTPUT)
    function = Function("f", (), (y,), (), (Store(y, (), Const(float(number), DType.F64)),))
    assert f"y[] = {number}:f64" in print_function(function)
    (got,) = run(parse_function(print_function(function)), ())
    assert got.tobytes() == np.float64(number).tobytes()


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("kernel f(y: f32[] out) {\n  y[] = t0\n}", 2, 9, "t0 is not bound"),
        ("kernel f(y: f32[2] out) {\n  y[i] = 0.0:f32\n}", 2, 5, "variable i is not bound"),
        ("kernel f(y: f32[] out) {\n  x[] = 0.0:f32\n}", 2, 3, "no buffer x"),
        ("kernel f(y: f16[] out) {\n}", 1, 16, "unknown dtype 'f16'"),
        ("kernel f(y: f32[] out) {\n  y[] = 0.0:f32 y[]\n}", 2, 17, "expected a newline"),
        ("kernel f(y: f32[] out) {\n  y[] ^= 0.0:f32\n}", 2, 7, "unexpected '^'"),
        ("kernel f(y: f32[] out) {\n  for i wild 3 {\n  }\n}", 2, 14, "unknown kind of loop 'wild'"),
        ("kernel f(y: f32[] out) {\n", 2, 1, "expected"),
    ],
)
def test_malformed_text_is_reported_with_its_place(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ParseError, match=message.replace("^", r"\^")) as failure:
        parse_function(text)
    assert (failure.value.line, failure.value.column) == (line, column)


def kernel(body: str) -> str:
    return f"kernel f(x: f32[8,16] in, n: i64[8] in, y: f32[8,16] out, z: f32[] out, p: bool[] out) {{\n{body}\n}}"


REJECTED = {
    "is no square whose side is a power of two": "local s: f32[3,3]\ntranspose s",
    "is not a local in scope": "transpose x",
    "is transposed in vector loop": "local s: f32[4,4]\nfor v vector 4 lanes 4 {\n transpose s\n}",
    "local s is asked for beforehand": "local s: f32[4]\nprefetch s[0]",
    "ask for elements of x that are no neighbours": "for v vector 8 lanes 8 {\n prefetch x[0, 2*v]\n}",
    "ask for elements of y that are no neighbours": "for v vector 8 lanes 8 {\n prefetch y[v, 0]\n}",
    "y has 2 dimensions, its index 1": "prefetch y[0]",
    "outside 0..7": "for i 8 {\n y[i+1, 0] = 0.0:f32\n}",
    "runs over -1..6": "for i 8 {\n z[] += x[i-1, 0] if 7-1*i>=0 else 0.0\n}",
    "outside 0..15": "for i 5 {\n for v vector 16 lanes 16 {\n  y[i, v+i] = 0.0:f32\n }\n}",
    "input x is written": "x[0, 0] = 0.0:f32",
    "has 2 dimensions, its index 1": "y[0] = 0.0:f32",
    "t is bound twice": "let t = x[0, 0]\nlet t = x[0, 1]",
    "variable i is bound twice": "for i 2 {\n for i 2 {\n  z[] = x[i, 0]\n }\n}",
    "extent 12 and 12 lanes": "for v vector 12 lanes 12 {\n y[0, v] = 0.0:f32\n}",
    "extent 16 and 8 lanes": "for v vector 16 lanes 8 {\n y[0, v] = 0.0:f32\n}",
    "vector loop i stands in vector loop v": "for v vector 8 lanes 8 {\n for i vector 2 lanes 2 {\n }\n}",
    "the lanes of v store different values": "for v vector 8 lanes 8 {\n let t = x[0, v]\n z[] = t\n}",
    "parallel loop p stands in another loop": "for i 2 {\n for p parallel 2 {\n  y[i, p] = 0.0:f32\n }\n}",
    "parallel loop p stands under a condition": "if 0>=0 {\n for p parallel 2 {\n  y[0, p] = 0.0:f32\n }\n}",
    "every iteration of p writes the same element of z": "for p parallel 2 {\n z[] += 1.0:f32\n}",
    "writes local t": "local t: f32[2]\nfor p parallel 2 {\n t[p] = 1.0:f32\n}",
    "the value for z is i64, not f32": "z[] = n[0]",
    "the result of less is f32, not bool": "z[] = less(x[0, 0], x[0, 1]):f32",
    "no scalar op frobnicate": "z[] = frobnicate(x[0, 0])",
    "fma takes three floats": "z[] = fma(x[0, 0], x[0, 1])",
    "check code 0 is not above 0": "check true code 0",
    "a check stands in": "for p parallel 2 {\n check true code 1\n}",
    "a check's condition is f32": "check x[0, 0] code 1",
    "is f32, not an integer": "z[] = x[0, @x[0, 1]]",
    "the other side of a select": "for i 2 {\n z[] = select(i-1>=0, x[0, 0], n[0])\n}",
}


@pytest.mark.parametrize("message", REJECTED)
def test_the_verifier_rejects(message: str) -> None:
    function = parse_function(kernel(REJECTED[message]))
    with pytest.raises(VerifyError) as failure:
        verify(function)
    assert message in str(failure.value)


def test_the_verifier_rejects_a_read_that_is_no_longer_in_scope() -> None:
    inside = parse_function(kernel("for i 2 {\n let t = x[i, 0]\n z[] = t\n}"))
    (loop,) = inside.body
    (let, store) = loop.body  # type: ignore[union-attr]
    assert isinstance(let, Let)
    verify(inside)
    with pytest.raises(VerifyError, match="t is not bound"):
        verify(Function("f", inside.inputs, inside.outputs, (), (loop, store)))


ACCEPTED = {
    "conditions": "for i 8 {\n if i-1>=0 {\n  z[] = x[i-1, 0]\n }\n}",
    "two sums": "for i 8 {\n for j 3 {\n  z[] += x[i+j-1, 2*j] if i+j-1>=0 and 8-1*i-1*j>=0 else 0.0\n }\n}",
    "dilated": "for i 17 {\n z[] += x[(i-1)/2, 0] if (i-1)%2==0 and i-1>=0 and 15-1*i>=0 else 0.0\n}",
    "equal": "for i 30 {\n if i-9==0 {\n  z[] = x[i-2, i]\n }\n}",
    "triangle": "for i 8 {\n for j 16 {\n  if i-1*j>=0 {\n   y[i-1*j, j] = 0.0:f32\n  }\n }\n}",
    "parallel and pinned": "for p parallel 2 {\n y[p, 0] = 1.0:f32\n if p-1==0 {\n  z[] = 1.0:f32\n }\n}",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_verifier_accepts_what_conditions_make_safe(name: str) -> None:
    verify(parse_function(kernel(ACCEPTED[name])))


def test_bounds_under_conditions_hold_for_every_value_and_are_tight_for_padding() -> None:
    generator = random.Random(0)
    variables = [Var("a", 4), Var("b", 5), Var("c", 3)]

    def index() -> Index:
        return Index(generator.randint(-6, 6), tuple((v, c) for v in variables if (c := generator.randint(-2, 2))))

    met = 0
    for _ in range(300):
        target, conditions = index(), [Condition(index(), generator.random() < 0.2) for _ in range(2)]
        low, high = bounds(target, conditions)
        for a in range(4):
            for b in range(5):
                for c in range(3):
                    point = dict(zip(variables, (a, b, c), strict=True))
                    if all(condition.evaluate(point) for condition in conditions):
                        met += 1
                        assert low <= target.evaluate(point) <= high
    assert met > 1000
    inner = Index(-1, ((variables[0], 1), (variables[2], 1)))
    around = [Condition(inner), Condition(inner * -1 + 3)]
    assert bounds(inner * 10 + Index(0, ((variables[1], 1),)), around) == (0, 34)


def test_vector_statements_run_in_lock_step() -> None:
    function = parse_function("""
        kernel f(y: f32[4] out) {
          for v vector 4 lanes 4 {
            y[v] = position(v):f32
          }
          for v vector 4 lanes 4 {
            y[v] = y[3-1*v]
          }
        }""")
    (y,) = run(function, ())
    assert y.tolist() == [3, 2, 1, 0]


def test_lanes_are_folded_as_a_balanced_tree() -> None:
    x = np.array([1e8, 1.0, -1e8, 1.0, 3.0], np.float32)
    text = """
        kernel f(x: f32[5] in, y: f32[] out) {{
          y[] = 0.5:f32
          for v vector {0} lanes 8 {{
            y[] += x[v]
          }}
        }}"""
    (four,) = run(parse_function(text.format(4)), [x])
    assert four == 2.5  # (1e8 + -1e8) + (1 + 1), then 0.5 + that
    (five,) = run(parse_function(text.format(5)), [x])
    pairs = [np.float32(x[0] + x[4]), x[1], x[2], x[3]]  # lane 4 meets lane 0; lanes 5 to 7 do not run
    assert five == np.float32(0.5) + ((pairs[0] + pairs[2]) + (pairs[1] + pairs[3]))


def test_positions_that_are_data_are_clamped_when_read_and_dropped_when_written() -> None:
    function = parse_function("""
        kernel f(x: f32[3] in, n: i64[4] in, y: f32[4] out, z: f32[3] out) {
          for i 3 {
            z[i] = 0.0:f32
          }
          for i 4 {
            y[i] = x[@n[i]]
            z[@n[i]] += 1.0:f32
          }
        }""")
    y, z = run(function, {"n": np.array([-5, 1, 1, 9]), "x": np.array([1.0, 2.0, 3.0])})
    assert y.tolist() == [1, 2, 2, 3] and z.tolist() == [0, 2, 0]


def test_a_masked_load_gives_the_other_value_and_touches_nothing() -> None:
    function = parse_function("""
        kernel f(x: f32[3] in, y: f32[8] out) {
          for v vector 8 lanes 8 {
            y[v] = x[v-2] if v-2>=0 and 4-1*v>=0 else -1.0
          }
        }""")
    (y,) = run(function, [np.array([1.0, 2.0, 3.0])])
    assert y.tolist() == [-1, -1, 1, 2, 3, -1, -1, -1]


@pytest.mark.parametrize("body", ["y[0] += 1.0:f32", "y[(p)/2] = 1.0:f32", "y[p] = y[3-1*p]"])
def test_iterations_of_a_parallel_loop_may_not_meet(body: str) -> None:
    function = parse_function(f"kernel f(y: f32[4] out) {{\n  for p parallel 4 {{\n    {body}\n  }}\n}}")
    with pytest.raises(VerifyError, match="two iterations of a parallel loop meet in y"):
        run(function, ())


def test_an_access_outside_a_buffer_is_an_error() -> None:
    function = parse_function("kernel f(x: f32[2,3] in, y: f32[] out) {\n  y[] = x[0, 3]\n}")
    with pytest.raises(VerifyError, match="access outside x"):
        run(function, [np.zeros((2, 3))])


def test_what_is_never_written_is_nan() -> None:
    (y,) = run(parse_function("kernel f(y: f32[2] out) {\n  y[0] = 1.0:f32\n}"), ())
    assert y[0] == 1 and math.isnan(y[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype: type) -> None:
    generator = np.random.default_rng(0)
    bits = 23 if dtype is np.float32 else 52
    differs = 0
    for _ in range(2000):
        a, b = (dtype(1 + generator.integers(0, 1 << bits) * 2.0**-bits) for _ in range(2))
        c = (
            dtype(-(a * b))
            if generator.random() < 0.5
            else dtype(generator.standard_normal() * 2.0 ** generator.integers(-60, 3))
        )
        got = Fraction(float(fma(a, b, c)))
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        near = [
            dtype(float(got)),
            np.nextafter(dtype(got), dtype(np.inf)),
            np.nextafter(dtype(got), dtype(-np.inf)),
        ]
        assert all(abs(got - exact) <= abs(Fraction(float(other)) - exact) for other in near)
        differs += fma(a, b, c) != dtype(a * b) + c
    assert differs > 100


def test_fma_keeps_zeros_infinities_and_nan() -> None:
    one, zero, huge = np.float32(1), np.float32(0), np.float32(3e38)
    assert np.signbit(fma(-zero, one, -zero)) and not np.signbit(fma(one, one, -one))
    assert fma(huge, huge, zero) == np.inf and np.isnan(fma(zero, np.float32(np.inf), one))
    assert fma(np.float64(1e308), 10.0, np.float64(-np.inf)) == -np.inf
