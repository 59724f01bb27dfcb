"""Lowering: kernel bodies as loops compute what the reference computes, for every form, shape and schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphc as gx
from graphc import ops
from graphc.errors import ArgumentError, LoweringError
from graphc.ir.graph import Literal, Value, build
from graphc.ir.index import ZERO
from graphc.ir.types import DType, TensorType
from graphc.loops import interpret, schedule
from graphc.loops.ir import Buffer, Const, Function, Local, Loop, LoopKind, Space, Stmt, Transpose
from graphc.loops.lower import lower
from graphc.loops.point import Point
from graphc.loops.stages import Stage, stages
from graphc.loops.target import AVX2, TARGETS, from_features
from graphc.loops.totals import fill
from graphc.loops.verify import verify
from graphc.loops.walk import statements
from graphc.passes.forms import Form, Map, Opaque, Rows, classify, is_narrow
from graphc.reference import evaluate

RNG = np.random.default_rng(0)
MAPS = (None, "map lanes=4 unroll=2 blocks=3", "map lanes=1 unroll=1 blocks=1")
ROWS = (
    None,
    "rows lanes=4 unroll=2 blocks=3 buffer=10000",
    "rows lanes=4 unroll=4 blocks=1 buffer=0",
    "rows lanes=2 unroll=1 blocks=7 buffer=64",
    "rows lanes=2 unroll=2 blocks=5 buffer=0",
)
COLUMNS = (*ROWS, "columns lanes=4 unroll=2 blocks=3", "columns lanes=2 unroll=1 blocks=9")
NARROW = ("narrow lanes=4 blocks=3", "narrow lanes=2 blocks=1")
SHAPES = [(), (1,), (7,), (0,), (33,), (3, 5), (4, 16), (1, 9), (9, 1), (2, 3, 5), (2, 1, 8), (0, 4), (4, 0)]
FULL = [shape for shape in SHAPES if shape and 0 not in shape]
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple)


def value(shape: tuple[int, ...], dtype: DType = DType.F32) -> Value:
    return Value(TensorType(dtype, shape), name="x")


def splat(number: float, shape: tuple[int, ...]) -> Value:
    return ops.constant(value=Literal.of(np.full(shape, number, np.float32)))


def along(x: Value, space: tuple[int, ...], *axes: int) -> Value:
    return ops.broadcast(x, shape=space, axes=axes)


def others(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(d for d in range(len(shape)) if d != axis)


def softmax(x: Value, axis: int) -> Value:
    space, kept = x.type.extents, others(x.type.extents, axis)
    e = ops.exp(ops.sub(x, along(ops.reduce_max(x, axes=(axis,)), space, *kept)))
    return ops.div(e, along(ops.reduce_sum(e, axes=(axis,)), space, *kept))


def feed(x: Value) -> np.ndarray:
    if x.dtype.is_float:
        return RNG.standard_normal(x.type.extents).astype(x.dtype.numpy)
    return RNG.integers(0, 2 if x.dtype is DType.BOOL else 5, x.type.extents).astype(x.dtype.numpy)


def check(form: type[Form], inputs: list[Value], outputs: list[Value], schedules: tuple[str | None, ...]) -> None:
    body = build("body", inputs, outputs)
    found_form = classify(body)
    assert isinstance(found_form, form)
    if isinstance(found_form, Rows) and is_narrow(found_form):
        schedules = (*schedules, *NARROW)
    feeds = [feed(x) for x in inputs]
    wanted, _ = evaluate(body, feeds)
    for text in schedules:
        function = lower(body, "body", AVX2, schedule.parse(text) if text else None)
        verify(function)
        for expected, found in zip(wanted, interpret.run(function, feeds), strict=True):
            np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


# Map ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise_work_with_two_outputs_is_one_map(shape: tuple[int, ...]) -> None:
    x, y = value(shape), value(shape)
    check(Map, [x, y], [ops.add(ops.exp(x), y), ops.less(x, y)], MAPS)


@pytest.mark.parametrize("shape", FULL)
def test_movement_inside_a_map_reads_the_right_elements(shape: tuple[int, ...]) -> None:
    x, y, rank = value(shape), value(shape), len(shape)
    backwards = tuple(reversed(range(rank)))
    moved = ops.transpose(x, perm=backwards)
    low, high = (1,) * rank, (2,) * rank
    none = (0,) * rank
    check(Map, [x], [moved], MAPS)
    check(Map, [x], [ops.neg(ops.reshape(moved, shape=(math.prod(shape),)))], MAPS)
    check(Map, [x], [ops.pad(x, low=low, high=high, interior=none, value=3.0)], MAPS)
    check(Map, [x], [ops.pad(ops.neg(x), low=low, high=high, interior=low, value=3.0)], MAPS)
    check(Map, [x, y], [ops.concat(x, ops.neg(y), x, axis=rank - 1)], MAPS)
    check(Map, [x], [ops.neg(ops.reverse(x, axes=(rank - 1,)))], MAPS)
    check(Map, [x], [ops.add(x, ops.iota(shape=shape, axis=0, dtype=DType.F32))], MAPS)


def test_axes_that_all_operands_walk_together_become_one_loop() -> None:
    x, y = value((8, 64)), value((8, 64))
    (block,) = lower(build("f", [x, y], [ops.add(x, y)]), "f", AVX2).body
    assert isinstance(block, Loop)
    (loop,) = block.body
    assert isinstance(loop, Loop) and loop.var.extent == 8 * 64 // 32


@pytest.mark.parametrize("shape", [(), (7,), (300,), (3, 256), (2, 600), (1, 9)])
def test_chains_of_functions_are_done_in_stages(shape: tuple[int, ...]) -> None:
    x, y = value(shape), value(shape)
    deep = ops.tanh(ops.mul(ops.exp(x), y))
    outputs = [deep, ops.add(ops.sigmoid(deep), ops.mul(x, y)), ops.exp(x)]
    check(Map, [x, y], outputs, MAPS)
    backwards = ops.transpose(ops.exp(ops.sin(x)), perm=tuple(range(len(shape)))[::-1])
    check(Map, [x], [ops.reshape(ops.tanh(backwards), shape=(math.prod(shape),))], MAPS)
    function = lower(build("f", [x, y], outputs), "f", AVX2)
    kept = [stmt.buffer for stmt in statements(function.body) if isinstance(stmt, Local)]
    assert bool(kept) is bool(shape)


def test_a_stage_keeps_what_it_reads_and_no_stage_is_needed_for_one_function() -> None:
    x, y = value((8,)), value((8,))
    slow = ops.exp(x)
    late = ops.add(ops.tanh(slow), y)
    assert stages([late, slow], (8,)) == [Stage((slow,), (slow, y)), Stage((late,), ())]
    scaled = ops.mul(slow, y)
    assert stages([slow, scaled], (8,)) == [Stage((slow, scaled), ())]


TURNED = [
    ((40, 24), (1, 0)),
    ((3, 50), (1, 0)),
    ((50, 3), (1, 0)),
    ((2, 17, 9), (0, 2, 1)),
    ((5, 4, 3, 18), (3, 1, 0, 2)),
]


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.I64, DType.BOOL])
@pytest.mark.parametrize(("shape", "perm"), TURNED)
def test_operands_in_another_order_are_turned_in_squares(
    shape: tuple[int, ...], perm: tuple[int, ...], dtype: DType
) -> None:
    x, turned = value(shape, dtype), tuple(shape[axis] for axis in perm)
    y = value(turned, dtype)
    function = lower(build("f", [x], [ops.transpose(x, perm=perm)]), "f", AVX2)
    assert any(isinstance(stmt, Transpose) for stmt in statements(function.body))
    check(Map, [x], [ops.transpose(x, perm=perm)], MAPS)
    check(Map, [x, y], [ops.equal(ops.transpose(x, perm=perm), y)], MAPS)


def test_squares_turn_what_is_padded_and_several_operands_and_places() -> None:
    x, y = value((20, 30)), value((20, 30))
    padded = ops.pad(x, low=(2, 0), high=(0, 3), interior=(0, 0), value=7.0)
    check(Map, [x], [ops.transpose(padded, perm=(1, 0))], MAPS)
    check(Map, [x, y], [ops.sub(ops.transpose(x, perm=(1, 0)), ops.exp(ops.transpose(y, perm=(1, 0))))], MAPS)
    tops = [ops.slice(x, start=(n, n), stop=(18 + n, 28 + n), step=(1, 1)) for n in range(3)]
    turned = [ops.transpose(top, perm=(1, 0)) for top in tops]
    check(Map, [x], [ops.add(ops.add(*turned[:2]), turned[2])], MAPS)
    ends = ops.concat(ops.transpose(x, perm=(1, 0)), ops.transpose(y, perm=(1, 0)), axis=1)
    check(Map, [x, y], [ops.neg(ends)], MAPS)


def test_blocks_of_a_map_do_not_depend_on_threads_and_are_parallel() -> None:
    x = value((1024, 1024))
    (loop,) = lower(build("f", [x], [ops.tanh(x)]), "f", AVX2).body
    assert isinstance(loop, Loop) and loop.kind is LoopKind.PARALLEL and loop.var.extent == schedule.MOST_BLOCKS


def test_a_broadcast_row_scalar_is_computed_outside_the_vector_loop() -> None:
    x, b = value((4, 64)), value((4,))
    (block,) = lower(build("f", [x, b], [ops.add(x, along(ops.exp(b), (4, 64), 0))]), "f", AVX2).body
    assert isinstance(block, Loop)
    (rows,) = block.body
    assert isinstance(rows, Loop)
    assert [type(stmt).__name__ for stmt in rows.body] == ["Let", "Let", "Loop"]


# Rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [(shape, axis) for shape in FULL for axis in range(len(shape))])
def test_softmax_is_one_kernel_over_any_axis(shape: tuple[int, ...], axis: int) -> None:
    x = value(shape)
    check(Rows, [x], [softmax(x, axis)], COLUMNS)


@pytest.mark.parametrize(("shape", "axis"), [(shape, axis) for shape in FULL for axis in range(len(shape))])
def test_sums_over_rows_and_an_update_ride_on_the_sweep(shape: tuple[int, ...], axis: int) -> None:
    x, y, bias = value(shape), value(shape), value((shape[axis],))
    s = softmax(x, axis)
    loss = ops.mul(ops.reduce_sum(ops.mul(s, y), axes=tuple(range(len(shape)))), splat(0.5, ()))
    columns = ops.reduce_sum(s, axes=others(shape, axis))
    update = ops.sub(bias, ops.mul(columns, splat(0.1, (shape[axis],))))
    check(Rows, [x, y, bias], [s, loss, update], ROWS)


@pytest.mark.parametrize(("shape", "axis"), [(shape, axis) for shape in SHAPES for axis in range(len(shape))])
def test_reductions_over_one_axis_with_what_they_read(shape: tuple[int, ...], axis: int) -> None:
    x = value(shape)
    e = ops.exp(x)
    check(Rows, [x], [ops.reduce_sum(e, axes=(axis,)), e], COLUMNS)
    check(Rows, [x], [ops.neg(ops.reduce_max(x, axes=(axis,)))], COLUMNS)


@pytest.mark.parametrize("shape", SHAPES)
def test_reductions_over_several_sets_of_axes_share_a_sweep(shape: tuple[int, ...]) -> None:
    x, everything = value(shape), tuple(range(len(shape)))
    check(Rows, [x], [ops.reduce_sum(ops.exp(x), axes=everything), ops.neg(x)], COLUMNS)
    if len(shape) > 1:
        sums = [ops.reduce_sum(x, axes=axes) for axes in ((0,), everything[-1:], everything)]
        check(Rows, [x], sums, ROWS)
        check(Rows, [x], sums[::2], ROWS)


@pytest.mark.parametrize("axes", [(0, 2), (0, 1), (1, 2), (0,)])
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)))
@settings(max_examples=10, deadline=None)
def test_normalisation_over_any_axes_has_two_phases(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    x = value(shape)
    kept = tuple(d for d in range(3) if d not in axes)
    row = tuple(shape[d] for d in kept)
    scale = value(row)
    mean = ops.mul(ops.reduce_sum(x, axes=axes), splat(0.1, row))
    centred = ops.sub(x, along(mean, shape, *kept))
    variance = ops.reduce_sum(ops.mul(centred, centred), axes=axes)
    y = ops.mul(centred, along(ops.mul(ops.exp(ops.neg(variance)), scale), shape, *kept))
    check(Rows, [x, scale], [ops.transpose(y, perm=(2, 0, 1)), mean], COLUMNS)


@given(shape=shapes)
@settings(max_examples=8, deadline=None)
def test_large_reductions_are_summed_in_blocks(shape: tuple[int, ...]) -> None:
    x = value((*shape, 40))
    everything = tuple(range(x.type.rank))
    check(Rows, [x], [ops.reduce_sum(x, axes=everything), ops.reduce_max(x, axes=everything)], ROWS)
    check(Rows, [x], [ops.reduce_sum(x, axes=everything[:-1])], COLUMNS)


@pytest.mark.parametrize("dtype", DType)
def test_every_dtype_reduces(dtype: DType) -> None:
    x = value((6, 11), dtype)
    reduce = ops.reduce_all if dtype is DType.BOOL else ops.reduce_prod
    check(Rows, [x], [reduce(x, axes=(0,))], COLUMNS)
    check(Rows, [x], [reduce(x, axes=(1,))], ROWS)


def test_expensive_elements_are_kept_between_phases() -> None:
    x = value((4, 64))
    body = build("softmax", [x], [softmax(x, 1)])
    for text, exponentials in (("rows lanes=8 unroll=1 blocks=1 buffer=64", 1), (ROWS[2], 2)):
        function = lower(body, "softmax", AVX2, schedule.parse(text or ""))
        assert str(function.body).count("op='exp'") == exponentials


@pytest.mark.parametrize(
    ("shape", "narrow"), [((64, 10), True), ((64, 16), True), ((64, 17), False), ((3, 10), True), ((1, 10), False)]
)
def test_short_rows_stand_side_by_side(shape: tuple[int, ...], narrow: bool) -> None:
    x = value(shape)
    form = classify(body := build("softmax", [x], [softmax(x, 1)]))
    assert isinstance(form, Rows)
    assert isinstance(schedule.choose(body, form, AVX2), schedule.NarrowSchedule) == narrow


def test_rows_that_lie_apart_cannot_stand_side_by_side() -> None:
    x = value((64, 10))
    body = build("softmax", [x], [softmax(x, 0)])
    with pytest.raises(LoweringError, match="lie apart"):
        lower(body, "softmax", AVX2, schedule.parse(NARROW[0]))


def test_an_accumulation_with_several_blocks_has_partial_results() -> None:
    x = value((512, 256))
    s = softmax(x, 1)
    function = lower(build("f", [x], [s, ops.reduce_sum(s, axes=(0,))]), "f", AVX2)
    (partial,) = function.scratch
    assert partial.shape == (parallel_blocks(function) * 256,) and parallel_blocks(function) > 1


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sum_over_values_of_rows_beside_sums_over_rows(axis: int) -> None:
    """Found in review: walked in the order of memory, it was added up once for each point."""
    x, v = value((5, 6)), value((1, 6) if axis == 0 else (5, 1))
    check(Rows, [x, v], [ops.reduce_sum(x, axes=(axis,)), ops.reduce_sum(ops.mul(v, v), axes=(0, 1))], ROWS)


def test_a_result_of_rows_may_lie_in_another_order() -> None:
    """A sweep behind a reduction was overlooked where its result is turned: lowering ended in a KeyError."""
    x = gx.placeholder("x", (110, 30, 32))
    array = np.random.default_rng(0).standard_normal((110, 30, 32)).astype(np.float32)
    found = gx.compile([x], gx.transpose(x - gx.mean(x), (0, 2, 1)))(array)
    np.testing.assert_allclose(found, (array - array.mean()).transpose(0, 2, 1), rtol=1e-5, atol=1e-6)


def test_an_axis_of_one_element_makes_no_value_of_rows() -> None:
    """What is swept and reshaped to the space was taken for one value a row: a variable that no loop binds."""
    x = gx.placeholder("x", (2, 4, 4, 2))
    deviation = x - gx.max(x, (0, 1, 2), keepdims=True) * 0.5
    wide = gx.reshape(deviation, (1, 2, 4, 4, 2))
    (gradient,) = gx.grad(gx.mean(wide * wide * 0.5 + wide), [x])
    array = np.random.default_rng(0).standard_normal((2, 4, 4, 2)).astype(np.float32)
    native, wanted = (gx.compile([x], gradient, mode=mode)(array) for mode in ("native", "interpret"))
    np.testing.assert_allclose(native, wanted, rtol=1e-5, atol=1e-6)


def test_every_phase_of_few_columns_is_shared_out() -> None:
    """Batch norm over 16 channels: a vector of columns alone would be work for one thread."""
    x = value((4096, 16))
    mean = ops.mul(ops.reduce_sum(x, axes=(0,)), splat(1 / 4096, (16,)))
    centred = ops.sub(x, along(mean, x.shape, 1))
    variance = ops.reduce_sum(ops.mul(centred, centred), axes=(0,))
    body = build("f", [x], [ops.mul(centred, along(ops.rsqrt(variance), x.shape, 1)), mean])
    function = lower(body, "f", AVX2, schedule.parse("columns lanes=8 unroll=4 blocks=8"))
    shared = [s for s in function.body if isinstance(s, Loop) and s.kind is LoopKind.PARALLEL]
    assert [loop.var.extent for loop in shared] == [8, 8, 8]
    check(Rows, [x], body.outputs, ("columns lanes=8 unroll=4 blocks=8", "columns lanes=8 unroll=3 blocks=5"))


def test_every_phase_of_few_long_rows_is_shared_out() -> None:
    """The softmax of one vector: a row alone would be work for one thread."""
    x = value((2, 40, 50))
    peak = ops.reduce_max(x, axes=(1, 2))
    e = ops.exp(ops.sub(x, along(peak, x.shape, 0)))
    y = ops.div(e, along(ops.reduce_sum(e, axes=(1, 2)), x.shape, 0))
    texts = ("rows lanes=8 unroll=2 blocks=8 buffer=64", "rows lanes=4 unroll=3 blocks=7 buffer=64")
    function = lower(build("f", [x], [y, peak]), "f", AVX2, schedule.parse(texts[0]))
    shared = [s for s in function.body if isinstance(s, Loop) and s.kind is LoopKind.PARALLEL]
    assert [loop.var.extent for loop in shared] == [8, 8, 8]
    for out in ([y, peak], [ops.transpose(y, perm=(1, 0, 2))]):
        check(Rows, [x], out, texts)


def parallel_blocks(function: Function) -> int:
    def extents(body: tuple[Stmt, ...]) -> list[int]:
        return [s.var.extent for s in body if isinstance(s, Loop) and s.kind is LoopKind.PARALLEL]

    return max(extents(function.body), default=1)


# Opaque ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
def test_gather_clamps_and_scatter_add_drops(axis: int) -> None:
    x, at = value((4, 5, 3)), value((2, 3), DType.I64)
    updates = value((*(4, 5, 3)[:axis], 2, 3, *(4, 5, 3)[axis + 1 :]))
    check(Opaque, [x, at], [ops.gather(x, ops.add(at, at), axis=axis)], MAPS)
    check(Opaque, [at, updates], [ops.scatter_add(at, ops.neg(updates), axis=axis, size=4)], MAPS)


@pytest.mark.parametrize(("bad", "holds"), [(0, True), (4, True), (5, False), (-1, False)])
def test_check_index_fails_on_one_index_out_of_range(bad: int, holds: bool) -> None:
    at = value((19,), DType.I64)
    function = lower(build("f", [at], [ops.check_index(at, size=5, what="class")]), "f", AVX2)
    verify(function)
    indices = np.arange(19) % 5
    indices[13] = bad
    assert function.outputs == ()
    if holds:
        interpret.run(function, [indices])
    else:
        with pytest.raises(interpret.CheckFailed):
            interpret.run(function, [indices])


# Schedules and targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text in (*MAPS, *COLUMNS) if text])
def test_schedules_print_and_parse(text: str) -> None:
    assert str(schedule.parse(text)) == text


@pytest.mark.parametrize("text", ["map lanes=4", "squares lanes=4", "rows lanes=4 unroll=2 blocks=3 buffer=1 size=2"])
def test_a_malformed_schedule_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="a schedule looks like"):
        schedule.parse(text)


def test_a_schedule_for_another_form_is_refused() -> None:
    x = value((4,))
    with pytest.raises(LoweringError, match="map kernel; its schedule is rows"):
        lower(build("f", [x], [ops.neg(x)]), "f", AVX2, schedule.parse(ROWS[1] or ""))


def test_a_body_without_a_form_is_refused() -> None:
    x = value((4, 5))
    body = build("f", [x], [ops.neg(x), ops.transpose(x, perm=(1, 0))])
    with pytest.raises(LoweringError, match="has no form"):
        lower(body, "f", AVX2)


def test_targets_follow_the_features() -> None:
    features = dict.fromkeys(("avx2", "fma"), True)
    assert from_features({}, "x86_64").lanes(4) == 4
    assert from_features(features, "AMD64") is AVX2 and AVX2.lanes(8) == 4
    assert from_features(features, "arm64") is TARGETS["aarch64"]


def test_a_small_local_is_filled_without_a_loop_so_that_it_can_live_in_registers() -> None:
    kinds = {}
    for space in (Space.LOCAL, Space.SCRATCH):
        point, buffer = Point({}), Buffer("t", DType.F32, (320,), space)
        fill(point, buffer, ZERO, 320, Const(0.0, DType.F32), 16, 1)
        kinds[space] = {loop.kind for loop in statements(tuple(point.statements)) if isinstance(loop, Loop)}
    assert kinds == {
        Space.LOCAL: {LoopKind.UNROLLED, LoopKind.VECTOR},
        Space.SCRATCH: {LoopKind.SERIAL, LoopKind.VECTOR},
    }
