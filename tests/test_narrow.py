"""Short rows side by side: native code computes what the reference does, for every width, dtype, target and threads."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from test_emit import native, same

from graphc import compare, ops
from graphc.codegen import jit
from graphc.codegen.emit import emit
from graphc.errors import ArgumentError
from graphc.ir.graph import Graph, Node, Value, build
from graphc.ir.op import OPS
from graphc.ir.types import DType, TensorType
from graphc.loops.lower import lower
from graphc.loops.schedule import NarrowSchedule, lanes_of
from graphc.loops.verify import verify
from graphc.passes.forms import may_alias
from graphc.reference import evaluate
from graphc.runtime.executable import symbols
from graphc.runtime.team import members

Array = np.ndarray[Any, Any]
SPACES = [(5, 2), (16, 3), (33, 7), (3, 16), (1, 9, 17), (4, 5, 3, 2), (200, 10)]
CASES = [
    *((space, DType.F32) for space in SPACES),
    *((SPACES[2], dtype) for dtype in (DType.F64, DType.I32, DType.I64)),
]


def body_of(space: tuple[int, ...], dtype: DType) -> Graph:
    """Three phases over the last axis of `space` with every kind of operand, result and accumulation.

    Of an operand that is transposed, one that is the same for each row, one with an element for each row, flags and
    places in a row; results of rows and of elements; sums over all rows, over everything, and flags of columns.
    """
    last = len(space) - 1
    kept, rows = tuple(range(last)), space[:-1]
    backwards = tuple(reversed(range(len(space))))
    kinds = {
        "x": (dtype, space),
        "turned": (dtype, space[::-1]),
        "column": (dtype, space[-1:]),
        "row": (dtype, rows),
        "at": (DType.I64, rows),
        "flag": (DType.BOOL, space),
    }
    given = {name: Value(TensorType(kind, shape), name=name) for name, (kind, shape) in kinds.items()}

    def spread(value: Value, *axes: int) -> Value:
        return ops.broadcast(value, shape=space, axes=axes)

    x = ops.add(given["x"], ops.transpose(given["turned"], perm=backwards))
    x = ops.where(given["flag"], x, spread(given["column"], last))
    high = ops.reduce_max(x, axes=(last,))
    y = ops.sub(x, spread(high, *kept))
    total = ops.add(ops.reduce_sum(y, axes=(last,)), given["row"])
    below = ops.less(y, spread(total, *kept))
    hot = ops.equal(spread(given["at"], *kept), ops.iota(shape=space, axis=last, dtype=DType.I64))
    z = ops.where(hot, ops.sub(y, spread(total, *kept)), ops.add(y, y))
    sums = [ops.reduce_sum(z, axes=kept), ops.reduce_max(z, axes=tuple(range(last + 1)))]
    flags = [ops.reduce_any(below, axes=kept), ops.reduce_all(below, axes=(last,))]
    return build("body", list(given.values()), [z, below, total, *sums, *flags, ops.reduce_min(total, axes=kept)])


def feeds_of(body: Graph, *, special: bool = False) -> list[Array]:
    random = np.random.default_rng(0)
    found = []
    for value in body.inputs:
        shape = value.type.extents
        array = random.standard_normal(shape) if value.dtype.is_float else random.integers(0, 5, shape)
        if special and value.dtype.is_float and value.name == "x":
            array[random.random(shape) < 0.1] = np.nan
            array[random.random(shape) < 0.1] = np.inf
        found.append((array > 0 if value.dtype is DType.BOOL else array).astype(value.dtype.numpy))
    return found


def check(body: Graph, schedule: NarrowSchedule, feeds: list[Array]) -> None:
    """Against the reference, and the same bits from one thread and from several."""
    function = lower(body, "body", jit.host_target(), schedule)
    verify(function)
    with np.errstate(invalid="ignore"):
        wanted, _ = evaluate(body, feeds)
    found, _ = native(function, feeds)
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        compare.require_close(ours.reshape(theirs.shape), np.asarray(theirs), body, f"output {number}", scale=4.0)
    for threads in (1, 3):
        again, _ = native(function, feeds, threads)
        assert all(map(same, again, found))


@pytest.mark.parametrize(("space", "dtype"), CASES)
def test_rows_of_any_width_and_type_in_lanes(space: tuple[int, ...], dtype: DType) -> None:
    body = body_of(space, dtype)
    check(body, NarrowSchedule(lanes_of(body, jit.host_target()), 9), feeds_of(body))
    check(body, NarrowSchedule(4, 2), feeds_of(body, special=True))


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("space", [(33, 7), (200, 10)])
def test_older_processors_have_rows_in_lanes(
    space: tuple[int, ...], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHC_TARGET", target)
    try:
        lanes = lanes_of(body := body_of(space, DType.F32), jit.host_target())
    except ArgumentError as error:
        pytest.skip(str(error))
    check(body, NarrowSchedule(lanes, 9), feeds_of(body))


@pytest.mark.parametrize("space", [(33, 7), (200, 10)])
def test_results_may_lie_over_operands_of_rows_in_lanes(space: tuple[int, ...]) -> None:
    body = body_of(space, DType.F32)
    function = lower(body, "body", target := jit.host_target(), NarrowSchedule(lanes_of(body, target), 9))
    node = Node(OPS["kernel"], body.inputs, {"name": "body", "body": body}, None)
    over = {0: 0, 2: 3}  # the elements over x, the rows over `row`
    assert all(may_alias(node, operand, result) for result, operand in over.items())
    feeds = [np.ascontiguousarray(feed).copy() for feed in feeds_of(body)]
    wanted, _ = native(function, feeds)
    results = [feeds[over[n]] if n in over else np.empty_like(array) for n, array in enumerate(wanted)]
    memory = [*feeds, *results, *(np.empty(b.shape, b.dtype.numpy) for b in function.scratch)]
    team, compiled = members(1), jit.compile(emit(function, target, threaded=True), symbols(2))
    kinds = [ctypes.c_void_p] * len(memory), [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    run = ctypes.CFUNCTYPE(None, *kinds[0], *kinds[1])(compiled.address("body"))
    run(*(array.ctypes.data for array in memory), team.ctypes.data, 0, 1)
    assert all(map(same, (array.reshape(w.shape) for array, w in zip(results, wanted, strict=True)), wanted))
