"""Batch tiling: the same results in strips, for any number of threads, in the memory of a strip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import compare, nn, ops, optim, pipeline, reference
from graphc.codegen.step import emit_step
from graphc.errors import VerifyError
from graphc.ir.graph import Graph, Value, build
from graphc.ir.op import Scan
from graphc.ir.types import DType, TensorType
from graphc.ir.verify import verify
from graphc.passes import manager, strips
from graphc.plan import verify as verify_plan
from graphc.runtime.feeds import examples

Array = np.ndarray[Any, Any]
BATCH = 24


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a few rows, whatever they cost."""
    monkeypatch.setattr(strips, "FAR", 0)
    monkeypatch.setattr(strips, "STRIP", 1024)
    monkeypatch.setattr(strips, "OVERSIZE", 1 << 30)
    monkeypatch.setattr(strips, "FEWEST_ROWS", 1)
    monkeypatch.setattr(strips, "COST_NEAR", 0.0)


def _loss(logits: gx.Tensor, label: gx.Tensor) -> gx.Tensor:
    return nn.CrossEntropyLoss()(logits, label)


def _mlp(x: gx.Tensor, label: gx.Tensor) -> gx.Tensor:
    return _loss(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))(gx.flatten(x, 1)), label[:, 0])


def _cnn(x: gx.Tensor, label: gx.Tensor) -> gx.Tensor:
    net = nn.Sequential(nn.Conv2d(1, 8, 2, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return _loss(net(x.reshape(x.shape[0], 1, 3, 4)), label[:, 0])


def _pooled(x: gx.Tensor, label: gx.Tensor) -> gx.Tensor:
    """A convolution behind pooling, whose gradient goes to the place of each maximum."""
    before, behind = nn.Conv2d(1, 8, 2, 1, 1), nn.Conv2d(8, 8, 2, 1, 1)
    net = nn.Sequential(before, nn.ReLU(), nn.MaxPool2d(2), behind, nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))
    return _loss(net(x.reshape(x.shape[0], 1, 3, 4)), label[:, 0])


def _tagger(x: gx.Tensor, label: gx.Tensor) -> gx.Tensor:
    """Embedded tokens, attention over 3 places, a tag for each."""
    places, head = nn.Embedding(3, 8), nn.Linear(8, 5)
    tokens = nn.Embedding(5, 8)(label) + nn.Linear(4, 8)(gx.softmax(x, -1)) + places.weight
    seen = gx.scaled_dot_product_attention(tokens, tokens, nn.LayerNorm(8)(tokens), is_causal=True)
    return _loss(gx.flatten(head(seen), 0, 1), gx.flatten(label))


def _recurrent(x: gx.Tensor, label: gx.Tensor) -> gx.Tensor:
    """A tag for each of 3 steps of two layers of LSTM."""
    features, _ = nn.LSTM(4, 8, num_layers=2, batch_first=True)(x)
    return _loss(gx.flatten(nn.Linear(8, 5)(features), 0, 1), gx.flatten(label))


NETWORKS: dict[str, Callable[[gx.Tensor, gx.Tensor], gx.Tensor]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "pooled": _pooled,
    "tagger": _tagger,
    "recurrent": _recurrent,
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def _step(name: str, threads: int = 1, mode: str = "native") -> gx.Function:
    gx.manual_seed(0)
    x, label = gx.placeholder("x", (BATCH, 3, 4)), gx.placeholder("label", (BATCH, 3), gx.int64)
    loss = NETWORKS[name](x, label)
    parameters = [state for state in gx.compile([x, label], loss).state if isinstance(state, gx.Parameter)]
    return gx.compile([x, label], loss, updates=optim.SGD(parameters, 0.1).minimize(loss), threads=threads, mode=mode)


def _feeds() -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    return random.standard_normal((BATCH, 3, 4)).astype(np.float32), random.integers(0, 5, (BATCH, 3))


def _loops(graph: Graph) -> list[Any]:
    return [node for node in graph.nodes if isinstance(node.op.kind, Scan)]


@every_network
def test_a_step_in_strips_computes_the_step(name: str) -> None:
    graph = _step(name).graph
    before, _ = manager.run(graph, ("merge_scans", "simplify", "fold", "cse"))
    after, _ = manager.run(before, ("tile_batch",))
    verify(after)
    (shares,) = _loops(after)
    inner = [loop for loop in _loops(shares.attrs["body"]) if loop.attrs["body"].name.endswith(".strip")]
    assert not shares.attrs["body"].state and prod(loop.attrs["length"] for loop in (shares, *inner)) > 4
    feeds = examples(before)
    wanted, found = reference.run(before, feeds), reference.run(after, feeds)
    for array, other in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        compare.require_close(array, other, before, name, scale=1.0)


@every_network
def test_steps_in_strips_have_the_same_bits_for_any_number_of_threads(name: str) -> None:
    losses, weights = [], []
    for threads in (1, 2, 3, 16, 17):
        step = _step(name, threads)
        losses.append([step(*_feeds()) for _ in range(3)])
        weights.append([state.data.tobytes() for state in step.state])
        plan = step.plan
        verify_plan(plan.graph, plan)
        (loop,) = plan.loops
        assert loop.shares == min(threads, loop.node.attrs["length"])
    assert losses[1:] == losses[:-1] and weights[1:] == weights[:-1]
    interpreted = _step(name, mode="interpret")
    np.testing.assert_allclose([interpreted(*_feeds()) for _ in range(3)], losses[0], rtol=1e-5)


def test_no_array_is_stored_as_one_value() -> None:
    """LLVM takes its bytes one by one: the team of a thread that runs strips alone took 20 ms to compile."""
    (step := _step("mlp", 2))(*_feeds())
    compilation = step.compilation()
    text = emit_step(compilation.plan, compilation.functions, threaded=True)
    assert "call i64 @claim" in text and "store [" not in text


def test_what_is_read_outside_is_whole_again() -> None:
    x = gx.placeholder("x", (BATCH, 6))
    w = gx.constant(np.random.default_rng(1).standard_normal((6, 7)).astype(np.float32))
    product = x @ w
    f = gx.compile([x], [gx.sum(product), product.T, product * 2])
    array = np.random.default_rng(2).standard_normal((BATCH, 6)).astype(np.float32)
    total, turned, _ = f(array)
    assert _loops(f.compilation().stages["tile_batch"])
    np.testing.assert_allclose(turned, (array @ w.value.node.attrs["value"].array).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, turned.sum(), rtol=1e-4, atol=1e-4)


def test_gradients_of_convolutions_stay_inside_behind_pooling_too() -> None:
    (step := _step("pooled"))(*_feeds())
    outside = step.compilation().stages["tile_batch"].nodes
    assert not [node for node in outside if node.op.name in ("windows", "where")]


def test_what_is_repeated_outside_is_not_stored() -> None:
    """Windows that are read outside are taken there, of the image."""
    x, w = (Value(TensorType(DType.F32, shape), name=name) for name, shape in (("x", (BATCH, 9)), ("w", (3, 5))))
    padded = ops.pad(ops.exp(x), low=(0, 1), high=(0, 1), interior=(0, 0), value=0.0)
    taps = ops.windows(padded, axes=(1,), size=(3,), stride=(1,), dilation=(1,))
    rows = ops.contract(taps, w, spec="mxi,in->mxn")
    graph = build("step", [x, w], [taps, ops.reduce_sum(rows, axes=(0,))])
    after, _ = manager.run(graph, ("tile_batch",))
    (shares,) = _loops(after)
    assert [value.type.nbytes for value in shares.outputs[1:]] == [x.type.nbytes]
    feeds = examples(graph)
    for found, wanted in zip(reference.run(after, feeds)[0], reference.run(graph, feeds)[0], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_statistics_of_a_batch_are_not_cut() -> None:
    x = gx.placeholder("x", (BATCH, 6))
    y = (x - gx.mean(x, 0)) @ gx.constant(np.ones((6, 4), np.float32))
    f = gx.compile([x], gx.sum(y * y))
    array = np.random.default_rng(2).standard_normal((BATCH, 6)).astype(np.float32)
    wanted = np.square((array - array.mean(0)) @ np.ones((6, 4))).sum()
    np.testing.assert_allclose(f(array), wanted, rtol=1e-4)


def test_taps_that_lie_along_the_batch_are_not_cut() -> None:
    """Places within windows are no parts of each other: `unwindows` of a strip of them is another shape."""
    x, w = (Value(TensorType(DType.F32, shape), name=name) for name, shape in (("x", (BATCH, 4)), ("w", (4, 5))))
    rows = ops.contract(x, w, spec="mk,kn->mn")
    taps = ops.transpose(rows, perm=(1, 0))
    spread = ops.unwindows(taps, axes=(0,), extents=(BATCH + 4,), stride=(1,), dilation=(1,))
    graph = build("step", [x, w], [spread, ops.reduce_sum(rows, axes=(0,))])
    after, _ = manager.run(graph, ("tile_batch",))
    assert _loops(after)
    feeds = examples(graph)
    for found, wanted in zip(reference.run(after, feeds)[0], reference.run(graph, feeds)[0], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_bad_label_in_any_strip_leaves_the_parameters() -> None:
    step = _step("mlp", 2)
    x, label = _feeds()
    step(x, label)
    before = [state.data.copy() for state in step.state]
    label[-1] = 9
    with pytest.raises(gx.errors.IndexRangeError):
        step(x, label)
    assert all(np.array_equal(a, state.data) for a, state in zip(before, step.state, strict=True))


def test_a_step_takes_the_memory_of_a_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    def arena(far: int) -> int:
        monkeypatch.setattr(strips, "FAR", far)
        x = gx.placeholder("x", (960, 8))
        h = gx.tanh(x @ gx.constant(np.ones((8, 64), np.float32)))
        f = gx.compile([x], gx.sum(h * h @ gx.constant(np.ones((64, 64), np.float32))))
        f(np.ones((960, 8), np.float32))
        return f.plan.arena_bytes

    monkeypatch.setattr(strips, "STRIP", 16_000)
    assert arena(0) < arena(1 << 40) / 7


def test_the_tiled_graph_is_the_pipelines() -> None:
    assert "tile_batch" in pipeline.PASSES


# Loops of many small steps ---------------------------------------------------------------------------------------


@pytest.fixture
def loops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is no reason to cut a batch."""
    monkeypatch.setattr(strips, "FAR", 1 << 40)
    monkeypatch.setattr(strips, "STEP_ROWS", 8)
    monkeypatch.setattr(strips, "STEPS_ROWS", 1)


def _shares(graph: Graph) -> list[int]:
    return [loop.attrs["length"] for loop in _loops(graph) if loop.attrs["body"].name.endswith(".share")]


def test_each_share_of_a_batch_runs_its_own_recurrence(loops_alone: None) -> None:
    losses = []
    for threads in (1, 2, 3, 5, 16):
        step = _step("recurrent", threads)
        losses.append([step(*_feeds()) for _ in range(3)])
        assert _shares(step.compilation().stages["tile_batch"]) == [3]
        (loop,) = step.plan.loops
        assert loop.shares == min(threads, 3) and len(loop.plan.loops) == 4
    assert losses[1:] == losses[:-1]
    interpreted = _step("recurrent", mode="interpret")
    np.testing.assert_allclose([interpreted(*_feeds()) for _ in range(3)], losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("STEP_ROWS", 13), ("STEPS_ROWS", 3 * 24), ("STEP_CONSTANTS", 4 * 4 * 8 * 4)]
)
def test_a_recurrence_that_gains_nothing_stays_whole(
    name: str, value: int, loops_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where shares have too few rows, or too few steps of them, or matrices fill the cache."""
    monkeypatch.setattr(strips, name, value)
    (step := _step("recurrent"))(*_feeds())
    assert _shares(step.compilation().stages["tile_batch"]) == []


def _scanned(step: Callable[[gx.Tensor, gx.Tensor], gx.Tensor], start: gx.Tensor) -> tuple[gx.Function, Array]:
    """What a loop makes of 3 slices of a batch, added up, and its result without one."""
    x = gx.placeholder("x", (BATCH, 3, 4))
    w = gx.constant(np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32))
    final, _ = gx.scan(lambda c, s: (step(c, s @ w), c), start, gx.transpose(x, (1, 0, 2)))
    f = gx.compile([x], gx.sum(final))
    return f, gx.compile([x], gx.sum(final), mode="interpret")(_feeds()[0])


def test_a_carry_that_all_examples_change_is_not_cut(loops_alone: None) -> None:
    f, wanted = _scanned(lambda c, s: c + s + gx.mean(s, 0), gx.zeros((BATCH, 4)))
    np.testing.assert_allclose(f(_feeds()[0]), wanted, rtol=1e-4)
    assert _shares(f.compilation().stages["tile_batch"]) == []


def test_a_first_carry_that_differs_between_examples_is_not_cut(loops_alone: None) -> None:
    start = np.random.default_rng(3).standard_normal((BATCH, 4)).astype(np.float32)
    f, wanted = _scanned(lambda c, s: gx.tanh(c + s), gx.constant(start))
    np.testing.assert_allclose(f(_feeds()[0]), wanted, rtol=1e-4)
    assert _shares(f.compilation().stages["tile_batch"]) == []


def test_a_carry_of_its_own_part_is_cut(loops_alone: None) -> None:
    f, wanted = _scanned(lambda c, s: gx.tanh(c + s), gx.zeros((BATCH, 4)))
    np.testing.assert_allclose(f(_feeds()[0]), wanted, rtol=1e-4)
    assert _shares(f.compilation().stages["tile_batch"]) == [3]


def test_a_team_that_is_a_part_does_not_divide() -> None:
    """It has no room for teams of its own."""
    x = gx.placeholder("x", (4, 2, 8))
    _, y = gx.scan(lambda _, rows: (None, gx.scan(lambda _, row: (None, gx.tanh(row)), None, rows)[1]), None, x)
    (f := gx.compile([x], y, threads=2))(np.zeros((4, 2, 8), np.float32))
    plan = f.plan
    (outer,) = plan.loops
    (inner,) = outer.plan.loops
    assert (outer.shares, inner.shares) == (2, 1)
    divided = replace(outer.plan, steps=tuple(replace(s, shares=2) if s is inner else s for s in outer.plan.steps))
    broken = tuple(replace(s, plan=divided) if s is outer else s for s in plan.steps)
    with pytest.raises(VerifyError, match="are shared, and so are those of a loop inside"):
        verify_plan(plan.graph, replace(plan, steps=broken))
