"""Forms: what one kernel may hold, and which outputs may overwrite an operand."""

from __future__ import annotations

import pytest

from graphc import ops
from graphc.ir.graph import Node, Value, build
from graphc.ir.op import OPS
from graphc.ir.types import DType, TensorType
from graphc.passes.forms import Contract, Map, Opaque, Rows, classify, levels, may_alias


def value(*shape: int) -> Value:
    return Value(TensorType(DType.F32, shape), name="x")


def rows(x: Value) -> Value:
    """x divided by its row sums."""
    return ops.div(x, ops.broadcast(ops.reduce_sum(x, axes=(1,)), shape=x.type.extents, axes=(0,)))


def aliases(inputs: list[Value], outputs: list[Value]) -> list[list[bool]]:
    """For each operand, which outputs may be written over it."""
    body = build("body", inputs, outputs)
    node = Node(OPS["kernel"], tuple(inputs), {"name": "body", "body": body}, None)
    return [[may_alias(node, i, o) for o in range(len(outputs))] for i in range(len(inputs))]


def test_a_later_reduction_over_other_axes_is_an_accumulation() -> None:
    x = value(4, 8)
    y = rows(x)
    form = classify(build("f", [x], [y, ops.reduce_sum(y, axes=(0,))]))
    assert isinstance(form, Rows)
    assert form.axes == (1,) and len(form.reductions) == 1 and len(form.accumulations) == 1


def test_a_reduced_value_that_is_broadcast_decides_the_reduced_axes() -> None:
    x = value(4, 8)
    form = classify(build("f", [x], [ops.reduce_sum(x, axes=(0,)), rows(x)]))
    assert isinstance(form, Rows) and form.axes == (1,)


def test_levels_count_the_phases_before_a_value() -> None:
    x = value(4, 8)
    twice = rows(rows(x))
    body = build("f", [x], [twice])
    form = classify(body)
    assert isinstance(form, Rows) and levels(body, form)[twice] == 2


def test_phases_over_different_axes_do_not_fit_one_kernel() -> None:
    x = value(4, 4)
    columns = ops.broadcast(ops.reduce_sum(x, axes=(0,)), shape=(4, 4), axes=(1,))
    assert classify(build("f", [x], [ops.add(rows(x), columns)])) is None


def test_a_row_value_read_out_of_line_does_not_fit() -> None:
    x = value(4, 4)
    sums = ops.reduce_sum(x, axes=(1,))
    crossed = ops.mul(x, ops.broadcast(sums, shape=(4, 4), axes=(1,)))
    assert classify(build("f", [x], [crossed])) is None
    turned = ops.mul(x, ops.broadcast(ops.reverse(sums, axes=(0,)), shape=(4, 4), axes=(0,)))
    assert classify(build("f", [x], [turned])) is None


def test_outputs_of_two_shapes_are_not_a_map() -> None:
    x = value(4, 8)
    assert classify(build("f", [x], [ops.neg(x), ops.transpose(x, perm=(1, 0))])) is None


def test_a_contraction_takes_prologue_epilogue_and_column_sums() -> None:
    a, b, bias = value(4, 8), value(8, 5), value(5)
    product = ops.contract(ops.exp(a), ops.neg(b), spec="mk,kn->mn")
    out = ops.add(product, ops.broadcast(bias, shape=(4, 5), axes=(1,)))
    form = classify(build("f", [a, b, bias], [out, ops.transpose(out, perm=(1, 0)), ops.reduce_sum(out, axes=(0,))]))
    assert isinstance(form, Contract)
    assert [node.op.name for node in form.prologue] == ["exp", "neg"]
    assert [node.op.name for node in form.epilogue] == ["broadcast", "add", "transpose"]
    assert len(form.accumulations) == 1


def test_two_contractions_or_a_normalised_contraction_are_two_kernels() -> None:
    a = value(4, 4)
    square = ops.contract(a, a, spec="mk,kn->mn")
    assert classify(build("f", [a], [ops.contract(square, a, spec="mk,kn->mn")])) is None
    assert classify(build("f", [a], [rows(square)])) is None
    assert classify(build("f", [a], [ops.contract(rows(a), a, spec="mk,kn->mn")])) is None


def test_an_opaque_op_keeps_what_it_indexes_as_an_input() -> None:
    x, at = value(4, 8), Value(TensorType(DType.I64, (3,)), name="at")
    assert isinstance(classify(build("f", [x, at], [ops.gather(x, at, axis=0)])), Opaque)
    assert classify(build("f", [x, at], [ops.gather(ops.exp(x), at, axis=0)])) is None
    assert classify(build("f", [x, at], [ops.exp(ops.gather(x, at, axis=0))])) is None


def test_a_map_may_overwrite_what_it_reads_in_place() -> None:
    x, y, bias = value(4, 8), value(4, 8), value(8)
    assert isinstance(classify(build("f", [x, y], [ops.add(x, y)])), Map)
    assert aliases([x, y], [ops.add(x, y)]) == [[True], [True]]
    assert aliases([x, bias], [ops.add(x, ops.broadcast(bias, shape=(4, 8), axes=(1,)))]) == [[True], [False]]
    assert aliases([x], [ops.add(x, ops.reverse(x, axes=(1,)))]) == [[False]]


def test_rows_may_overwrite_only_what_no_later_phase_reads() -> None:
    x = value(4, 8)
    assert aliases([x], [rows(x)]) == [[True]]
    assert aliases([x], [ops.neg(x), rows(x)]) == [[False, True]]


def test_a_row_value_overwrites_only_an_operand_that_is_read_at_its_row() -> None:
    x, c = value(4, 8), value(4)
    total = ops.reduce_sum(ops.mul(x, rows(x)), axes=(1,))
    assert aliases([x, c], [ops.add(c, total)]) == [[False], [True]]
    assert aliases([x, c], [ops.add(ops.reverse(c, axes=(0,)), total)]) == [[False], [False]]
    later = ops.mul(rows(x), ops.broadcast(c, shape=(4, 8), axes=(0,)))
    assert aliases([x, c], [ops.add(c, total), later]) == [[False, True], [True, False]]  # rows come first


def test_an_update_may_overwrite_a_parameter_that_the_sweep_does_not_read() -> None:
    x, bias = value(4, 8), value(8)
    y = rows(x)
    update = ops.sub(bias, ops.reduce_sum(y, axes=(0,)))
    assert aliases([x, bias], [y, update]) == [[True, False], [False, True]]
    read = ops.mul(y, ops.broadcast(bias, shape=(4, 8), axes=(1,)))
    assert aliases([x, bias], [read, update]) == [[True, False], [False, False]]


@pytest.mark.parametrize("spec", ["mk,kn->mn", "mn,nk->mk"])
def test_a_contraction_may_overwrite_its_residual_but_not_its_operands(spec: str) -> None:
    a, b, residual = value(4, 4), value(4, 4), value(4, 4)
    out = ops.add(ops.contract(a, b, spec=spec), residual)
    assert aliases([a, b, residual], [out]) == [[False], [False], [True]]


def test_a_column_value_is_not_written_over_what_one_of_another_shape_reads() -> None:
    """Values of columns are finished shape after shape, so the second would find its operand overwritten."""
    x, weight = value(64, 8), value(8)
    total = ops.reduce_sum(x, axes=(0,))
    changed = ops.sub(weight, total)
    flat, lying = ops.mul(weight, total), ops.broadcast(ops.mul(weight, total), shape=(1, 8), axes=(1,))
    assert aliases([x, weight], [changed, flat])[1][0]
    assert not aliases([x, weight], [changed, lying])[1][0]


def test_a_column_value_is_not_written_over_what_a_turned_one_reads() -> None:
    """Found in review: both are finished in one loop, which reads one at [j,i] after the other was written there."""
    x, weight = value(64, 8, 8), value(8, 8)
    total = ops.reduce_sum(x, axes=(0,))
    changed, turned = ops.sub(weight, total), ops.transpose(ops.mul(weight, total), perm=(1, 0))
    assert not aliases([x, weight], [changed, turned])[1][0]
