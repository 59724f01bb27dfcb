"""Every op: its type rule and its meaning agree, its index map says what it does, and wrong operands raise."""

from __future__ import annotations

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
    assert evaluator is not None
    return np.asarray(evaluator(*sample.arrays, **sample.attrs))


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


F32, F64, I64, BOOL = DType.F32, DType.F64, DType.I64, DType.BOOL


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ShapeError, lambda: ops.add(value(F32, 3), value(F32, 4)), "f32[3] and f32[4]"),
        (DTypeError, lambda: ops.add(value(F32, 3), value(F64, 3)), "f32[3] and f64[3]"),
        (DTypeError, lambda: ops.exp(value(I64, 3)), "f32, f64, not i64"),
        (DTypeError, lambda: ops.div(value(I64, 3), value(I64, 3)), "not i64"),
        (ShapeError, lambda: ops.reshape(value(F32, 3, 4), shape=(5,)), "12 elements"),
        (ShapeError, lambda: ops.reshape(value(F32, 3, 4), shape=(-3, -4)), "not -3"),
        (ArgumentError, lambda: ops.transpose(value(F32, 3, 4), perm=(0, 0)), "distinct"),
        (ShapeError, lambda: ops.broadcast(value(F32, 3), shape=(2, 4), axes=(1,)), "f32[3] cannot be broadcast"),
        (ArgumentError, lambda: ops.broadcast(value(F32, 3, 4), shape=(4, 3), axes=(1, 0)), "must increase"),
        (ArgumentError, lambda: ops.slice(value(F32, 3), start=(1,), stop=(4,), step=(1,)), "1:4:1"),
        (ArgumentError, lambda: ops.slice(value(F32, 3), start=(0,), stop=(3,), step=(0,)), "0:3:0"),
        (ArgumentError, lambda: ops.pad(value(F32, 3), low=(-1,), high=(0,), interior=(0,), value=0), "negative"),
        (ShapeError, lambda: ops.concat(value(F32, 3, 2), value(F32, 3, 3), axis=0), "f32[3,3]"),
        (
            ShapeError,
            lambda: ops.windows(value(F32, 3), axes=(0,), size=(4,), stride=(1,), dilation=(1,)),
            "does not fit",
        ),
        (ArgumentError, lambda: ops.reduce_sum(value(F32, 3), axes=(1,)), "[0, 1)"),
        (
            ShapeError,
            lambda: ops.contract(value(F32, 3, 4), value(F32, 5, 2), spec="mk,kn->mn"),
            "is 4 in one operand and 5 in",
        ),
        (ArgumentError, lambda: ops.contract(value(F32, 3), value(F32, 3), spec="m,n->m"), "one place"),
        (ArgumentError, lambda: ops.contract(value(F32, 3, 3), value(F32, 3), spec="mm,m->m"), "twice"),
        (DTypeError, lambda: ops.gather(value(F32, 3), value(F32, 3), axis=0), "i32, i64, not f32"),
        (ShapeError, lambda: ops.gather(value(F32, 0), value(I64, 3), axis=0), "nothing can be gathered"),
        (DTypeError, lambda: ops.where(value(F32, 3), value(F32, 3), value(F32, 3)), "bool, not f32"),
    ],
)
def test_wrong_operands_raise_at_the_users_line(error: type[Exception], make: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    assert "test_ops.py" in str(caught.value)


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
    with pytest.raises(ShapeError, match="need a number"):
        ops.windows(value(F32, dims.named("n")), axes=(0,), size=(2,), stride=(2,), dilation=(1,))
