"""Every op: its type rule and its meaning agree, its index map says what it does, and wrong operands raise."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from samples import SAMPLES, Sample

from graphc import ops, reference
from graphc.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError
from graphc.ir import dim as dims
from graphc.ir.binding import bind
from graphc.ir.graph import Value, build
from graphc.ir.index import Index
from graphc.ir.op import OPS, Movement
from graphc.ir.types import DType, TensorType, as_dtype

MOVEMENTS = [s for s in SAMPLES if isinstance(OPS[s.op].kind, Movement)]
NAN, INF = float("nan"), float("inf")


def evaluate(sample: Sample) -> Any:
    evaluator = OPS[sample.op].evaluate
    if evaluator is not None:
        return np.asarray(evaluator(*sample.arrays, **sample.attrs))
    inputs, result = sample.build()
    (found,), _ = reference.run(build(sample.op, inputs, [result]), sample.arrays)
    return found


def test_samples_cover_the_op_table() -> None:
    assert {sample.op for sample in SAMPLES} == set(OPS) - {"kernel"}


@pytest.mark.parametrize("op", sorted({s.op for s in SAMPLES}))
def test_infer_agrees_with_evaluate(op: str) -> None:
    for sample in SAMPLES:
        if sample.op == op:
            _, value = sample.build()
            result = evaluate(sample)
            assert TensorType(as_dtype(result.dtype), result.shape) == value.type, sample.name


@pytest.mark.parametrize("sample", MOVEMENTS, ids=lambda s: s.name)
def test_index_maps_say_where_elements_come_from(sample: Sample) -> None:
    _, value = sample.build()
    node = value.node
    assert node is not None
    kind = node.op.kind
    assert isinstance(kind, Movement)
    result = evaluate(sample)
    for place in product(*map(range, result.shape)):
        wanted = kind.fill(node)
        for piece in kind.index_map(node, tuple(map(Index, place))):
            if all(condition.evaluate({}) for condition in piece.conditions):
                wanted = sample.arrays[piece.operand][tuple(i.evaluate({}) for i in piece.index)]
                break
        assert result[place] == wanted


def value(dtype: DType, *shape: Any) -> Value:
    return Value(TensorType(dtype, shape), name="x")


def pad(x: Value, *, value: Any, interior: int = 0) -> Value:
    return ops.pad(x, low=(1,), high=(0,), interior=(interior,), value=value)


def windows(x: Value, *, size: Any, stride: int = 1) -> Value:
    return ops.windows(x, axes=(0,), size=(size,), stride=(stride,), dilation=(1,))


F32, F64, I64, BOOL = DType.F32, DType.F64, DType.I64, DType.BOOL


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ShapeError, lambda: ops.add(value(F32, 3), value(F32, 4)), "f32[3] and f32[4]"),
        (DTypeError, lambda: ops.add(value(F32, 3), value(F64, 3)), "f32[3] and f64[3]"),
        (DTypeError, lambda: ops.exp(value(I64, 3)), "f32, f64, not i64"),
        (DTypeError, lambda: ops.div(value(I64, 3), value(I64, 3)), "not i64"),
        (ShapeError, lambda: ops.reshape(value(F32, 3, 4), shape=(5,)), "12 elements"),
        (ShapeError, lambda: ops.reshape(value(F32, 3, 4), shape=(-3, -4)), "from 0 on, or named, not -3"),
        (ShapeError, lambda: ops.reshape(value(F32, 3, 4), shape=(6.0, 2)), "not 6.0"),
        (ShapeError, lambda: ops.broadcast(value(F32), shape=(-3,), axes=()), "not -3"),
        (ShapeError, lambda: ops.iota(shape=(-3,), axis=0, dtype=I64), "not -3"),
        (ArgumentError, lambda: ops.transpose(value(F32, 3, 4), perm=(0, 0)), "distinct"),
        (ShapeError, lambda: ops.broadcast(value(F32, 3), shape=(2, 4), axes=(1,)), "f32[3] cannot be broadcast"),
        (ArgumentError, lambda: ops.broadcast(value(F32, 3, 4), shape=(4, 3), axes=(1, 0)), "must increase"),
        (ArgumentError, lambda: ops.slice(value(F32, 3), start=(1,), stop=(4,), step=(1,)), "1:4:1"),
        (
            ArgumentError,
            lambda: ops.slice(value(F32, 3), start=(0,), stop=(3,), step=(0,)),
            "step must be whole numbers from 1 on",
        ),
        (ArgumentError, lambda: ops.pad(value(F32, 3), low=(-1,), high=(0,), interior=(0,), value=0), "low=[-1]"),
        (ArgumentError, lambda: pad(value(I64, 3), value=2.5), "i64 has no number 2.5"),
        (ArgumentError, lambda: pad(value(I64, 3), value=INF), "i64 has no number inf"),
        (ArgumentError, lambda: pad(value(DType.I32, 3), value=2**31), "i32 has no number"),
        (ArgumentError, lambda: pad(value(BOOL, 3), value=2), "bool has no number 2"),
        (ArgumentError, lambda: pad(value(F32, 3), value="0"), "must be a number, not '0'"),
        (ArgumentError, lambda: pad(value(F32, 3), value=0, interior=-1), "interior must be whole"),
        (ShapeError, lambda: ops.concat(value(F32, 3, 2), value(F32, 3, 3), axis=0), "f32[3,3]"),
        (
            ShapeError,
            lambda: ops.windows(value(F32, 3), axes=(0,), size=(4,), stride=(1,), dilation=(1,)),
            "does not fit",
        ),
        (ArgumentError, lambda: windows(value(F32, 3), size=0), "size must be whole numbers from 1 on"),
        (ArgumentError, lambda: windows(value(F32, 3), size=dims.named("n")), "size must be whole numbers"),
        (
            ShapeError,
            lambda: ops.unwindows(value(F32, 6, 2), axes=(0,), extents=(8,), stride=(1,), dilation=(1,)),
            "does not hold the windows of extent 8",
        ),
        (ArgumentError, lambda: ops.concat(axis=0), "needs an operand"),
        (DTypeError, lambda: ops.concat(value(F32, 3), value(F64, 3), axis=0), "f32"),
        (ArgumentError, lambda: ops.reverse(value(F32, 3), axes=(0, 0)), "distinct"),
        (ArgumentError, lambda: ops.reduce_sum(value(F32, 3), axes=(1,)), "[0, 1)"),
        (DTypeError, lambda: ops.reduce_sum(value(BOOL, 3), axes=(0,)), "not bool"),
        (DTypeError, lambda: ops.reduce_any(value(I64, 3), axes=(0,)), "not i64"),
        (
            ShapeError,
            lambda: ops.contract(value(F32, 3, 4), value(F32, 5, 2), spec="mk,kn->mn"),
            "is 4 in one operand and 5 in",
        ),
        (ArgumentError, lambda: ops.contract(value(F32, 3), value(F32, 3), spec="m,n->m"), "one place"),
        (ArgumentError, lambda: ops.contract(value(F32, 3, 3), value(F32, 3), spec="mm,m->m"), "twice"),
        (DTypeError, lambda: ops.gather(value(F32, 3), value(F32, 3), axis=0), "i32, i64, not f32"),
        (ShapeError, lambda: ops.gather(value(F32, 0), value(I64, 3), axis=0), "nothing can be gathered"),
        (ArgumentError, lambda: ops.contract(value(F32, 3), value(F32, 3), spec="i,i"), "must look like"),
        (ShapeError, lambda: ops.contract(value(F32, 3), value(F32, 3), spec="ij,j->i"), "does not fit f32[3]"),
        (ShapeError, lambda: ops.scatter_add(value(I64, 4), value(F32, 3), axis=0, size=9), "do not hold indices"),
        (ArgumentError, lambda: ops.scatter_add(value(I64, 3), value(F32, 3), axis=0, size=-1), "size must be"),
        (ArgumentError, lambda: ops.check_index(value(I64, 3), size=-1, what="label"), "size must be"),
        (ArgumentError, lambda: ops.extent(dim="n", dtype=F32), "not 'n'"),
        (ArgumentError, lambda: ops.constant(value=3), "must be a literal, not 3"),
        (DTypeError, lambda: ops.convert(value(F32, 3), dtype="f64"), "not f64"),
        (DTypeError, lambda: ops.where(value(F32, 3), value(F32, 3), value(F32, 3)), "bool, not f32"),
    ],
)
def test_wrong_operands_raise_at_the_users_line(error: type[Exception], make: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    first, *_, last = str(caught.value).split("\n")
    assert message in first
    assert re.match(r"[a-z_]+\(.*\): ", first), "names the op and its operands' types"
    assert re.search(r"  at .*test_ops.py:\d+$", last)


def test_an_error_says_where_its_operands_come_from() -> None:
    x, y = ops.exp(value(F32, 3)), value(F32, 4)
    with pytest.raises(ShapeError) as caught:
        ops.add(x, y)
    assert x.node is not None
    wanted = ["add(f32[3], f32[4]): operands differ in shape: f32[3] and f32[4]"]
    wanted += [f"  operand 0 f32[3] is from {x.node.location}", "  operand 1 f32[4] is %x"]
    assert str(caught.value).split("\n")[:-1] == wanted


def run(op: str, *arrays: Any, **attrs: Any) -> Any:
    evaluator = OPS[op].evaluate
    assert evaluator is not None
    return evaluator(*map(np.asarray, arrays), **attrs)


def test_integer_arithmetic_is_total() -> None:
    least = np.iinfo(np.int64).min
    np.testing.assert_array_equal(run("floor_div", [7, -7, 7, 3, least], [2, 2, -2, 0, -1]), [3, -4, -4, 0, least])
    np.testing.assert_array_equal(run("mod", [7, -7, 7, 3], [2, 2, -2, 0]), [1, 1, -1, 0])
    np.testing.assert_array_equal(run("pow", [2, -1, -1, 0, 3], [-1, -3, -2, -1, 3]), [0, -1, 1, 0, 27])
    found = run("convert", [NAN, INF, -INF, 3.9, -3.9, 1e30], dtype=DType.I32)
    np.testing.assert_array_equal(found, [0, 2**31 - 1, -(2**31), 3, -3, 2**31 - 1])


def test_nan_propagates() -> None:
    for op in ("maximum", "minimum"):
        assert np.isnan(run(op, [NAN, 1.0], [1.0, NAN])).all()
    assert np.isnan(run("relu", NAN))
    assert np.isnan(run("sign", NAN))
    assert np.isnan(run("reduce_max", [1.0, NAN], axes=(0,)))


def test_reductions_of_nothing_are_the_identity() -> None:
    nothing = np.zeros((0,))
    assert [run(f"reduce_{op}", nothing, axes=(0,)) for op in ("sum", "prod", "max", "min")] == [0, 1, -INF, INF]


def test_a_check_names_the_index_and_its_range() -> None:
    with pytest.raises(IndexRangeError, match=r"label 7 is outside \[0, 5\)"):
        run("check_index", [1, 7], size=5, what="label")


def test_named_dimensions_pass_through_and_bind() -> None:
    batch = dims.named("batch")
    x, w = value(F32, batch, 6), Value(TensorType(F32, (4, 6)), name="w")
    y = ops.contract(x, w, spec="bk,nk->bn")
    y = ops.reshape(y, shape=(batch * 2, 2))
    y = ops.concat(y, y, axis=0)
    y = ops.pad(
        ops.slice(y, start=(1, 0), stop=(batch * 4, 2), step=(1, 1)), low=(1, 0), high=(0, 0), interior=(0, 0), value=1
    )
    total = ops.mul(ops.reduce_sum(y, axes=(0, 1)), ops.extent(dim=batch, dtype=F32))
    assert y.shape == (batch * 4, 2)
    graph = build("f", [x, w], [total])
    given = [np.ones((3, 6), np.float32), np.ones((4, 6), np.float32)]
    (found,), _ = reference.evaluate(graph, given)
    (bound,), _ = reference.evaluate(bind(graph, {"batch": 3}), given)
    assert found == bound == 3 * (6 * 23 + 6 * 0 + 2 - 6 + 6 - 6)


def test_a_stride_over_a_named_dimension_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"windows\(f32\[n\]\): dimension n is not a multiple of 2"):
        windows(value(F32, dims.named("n")), size=2, stride=2)
