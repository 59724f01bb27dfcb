"""Sums that cancel: what is rounding passes, and what is wrong does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, Training
from samples import SAMPLES

import graphc as gx
from graphc import compare, nn, ops, optim, reference, rounding, testing
from graphc.errors import MismatchError
from graphc.ir.graph import Graph, Value, build
from graphc.ir.types import DType, TensorType
from graphc.runtime.executable import Executable

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# What is right passes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "check"])
def test_the_gradient_of_a_bias_before_batch_norm_is_nothing_but_rounding(mode: str) -> None:
    gx.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    x, label = gx.placeholder("x", (8, 3, 16, 16)), gx.placeholder("label", (8,), gx.int64)
    loss = nn.CrossEntropyLoss()(net(x), label)
    updates = optim.SGD(net.parameters(), lr=0.05, momentum=0.9).minimize(loss)
    step = gx.compile([x, label], [loss, *gx.grad(loss, net.parameters())], updates=updates, mode=mode)
    feeds = normal(8, 3, 16, 16), np.arange(8) % 10
    if mode == "native":
        testing.assert_matches_interpreter(step, *feeds)
    _, _, bias, *_ = step(*feeds)
    assert np.abs(bias).max() < 1e-6


@pytest.mark.parametrize("optimiser", [optim.Adam, optim.AdamW])
def test_adam_divides_by_the_root_of_a_gradient_that_is_nothing_but_rounding(optimiser: Any) -> None:
    """The bias's step is its learning rate with the sign of a rounding error: 1e8 ulp, which was an error."""
    gx.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1))
    x, y = gx.placeholder("x", (7, 1, 8, 8)), gx.placeholder("y", (7, 1))
    loss = nn.MSELoss()(net(x), y)
    step = gx.compile([x, y], loss, updates=optimiser(net.parameters()).minimize(loss), mode="check")
    for _ in range(3):
        step(normal(7, 1, 8, 8), normal(7, 1))


def test_what_a_divisor_is_made_of_is_looked_at_for_a_few_ops() -> None:
    """Sums of sums of one value have as many ways up as 2 to the power of their depth."""
    x = gx.placeholder("x", (3,))
    divisor = x
    for _ in range(60):
        divisor = divisor + divisor * divisor
    graph = gx.compile([x], x / divisor).compilation().stages["bind"]
    rounding.errors(graph, [np.zeros(3, np.float32)])
    assert rounding._least(divisor.value) == -np.inf


@pytest.mark.parametrize("amount", [1.0, 1e6])
def test_a_step_of_adam_is_no_larger_than_its_least_divisor_allows(
    amount: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root's error was infinite, and so anything passed for the bias."""
    gx.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1))
    x, y = gx.placeholder("x", (7, 1, 8, 8)), gx.placeholder("y", (7, 1))
    loss = nn.MSELoss()(net(x), y)
    step = gx.compile([x, y], loss, updates=optim.Adam(net.parameters()).minimize(loss), mode="check")
    step(normal(7, 1, 8, 8), normal(7, 1))
    place, run = [state.name for state in step.state].index("0.bias"), Executable.__call__

    def wrong(self: Executable, inputs: Any, state: Any) -> Any:
        found = run(self, inputs, state)
        state[place][...] += amount
        return found

    monkeypatch.setattr(Executable, "__call__", wrong)
    with pytest.raises(MismatchError, match=r"0\.bias"):
        step(normal(7, 1, 8, 8), normal(7, 1))


def test_losses_of_rows_that_are_classified_well_are_small_differences_of_large_numbers() -> None:
    logits, label = gx.placeholder("logits", (64, 10)), gx.placeholder("label", (64,), gx.int64)
    labels = np.arange(64) % 10
    scores = normal(64, 10)
    scores[np.arange(64), labels] += 12
    for reduction in ("none", "mean"):
        loss = nn.CrossEntropyLoss(reduction=reduction)(logits, label)
        testing.assert_matches_interpreter(gx.compile([logits, label], loss), scores, labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_errors_hold_and_are_small(name: str) -> None:
    training = Training(name)
    training.step(*training.feeds)
    compilation = training.step.compilation_for(*training.feeds)
    graph, inputs = compilation.stages["bind"], training.step.feeds(*training.feeds)
    state = [holder.data.copy() for holder in training.step.state]
    outputs, following = reference.run(graph, [*inputs, *state])
    errors = rounding.errors(graph, [*inputs, *state])
    found = compilation.executable(inputs, tuple(state))
    place = dict(zip(graph.state, state, strict=True))
    found += [place[value] for value, _ in graph.next]
    for array, wanted, error in zip(found, [*outputs, *following], errors, strict=True):
        assert (np.abs(array.astype(np.float64) - wanted) <= error).all()
        assert np.median(error) < 1e-3 * np.abs(wanted).max()


def test_every_op_has_errors() -> None:
    for sample in SAMPLES:
        values, y = sample.build()
        graph = build(sample.op, values, [y])
        (result,), _ = reference.run(graph, sample.arrays)
        (error,) = rounding.errors(graph, sample.arrays)
        assert error.shape == result.shape
        assert np.isfinite(error).all()
        assert result.dtype.kind == "f" or not error.any()  # operands are exact, and so are integers


# What is wrong fails -------------------------------------------------------------------------------------------

ROWS = 500


def centred_sums() -> Graph:
    """sum(y * (x - mean(x)), 0): for constant columns of y nothing remains."""
    x, y = (Value(TensorType(DType.F32, (ROWS, 8)), name=name) for name in "xy")
    shape = (ROWS, 8)
    mean = ops.mul(ops.reduce_sum(x, axes=(0,)), ops.full((8,), 1 / ROWS, DType.F32))
    centred = ops.sub(x, ops.broadcast(mean, shape=shape, axes=(1,)))
    return build("f", [x, y], [ops.reduce_sum(ops.mul(y, centred), axes=(0,))])


def without_a_term(terms: Array) -> Array:
    return terms[1:]


def with_a_wrong_sign(terms: Array) -> Array:
    return np.concatenate([-terms[:1], terms[1:]])


def one_row_twice(terms: Array) -> Array:
    return np.concatenate([terms[:1], terms[:-1]])


@pytest.mark.parametrize("bug", [without_a_term, with_a_wrong_sign, one_row_twice])
def test_wrong_sums_that_should_cancel_are_found(bug: Callable[[Array], Array]) -> None:
    graph, x, y = centred_sums(), normal(ROWS, 8), np.ones((ROWS, 8), np.float32)
    x[0], x[-1] = 1.0, -1.0  # terms of the ordinary size
    (wanted,), _ = reference.run(graph, [x, y])
    terms = y * (x - x.mean(0, dtype=np.float32))
    rounded = terms.sum(0, dtype=np.float32)
    with pytest.raises(MismatchError):
        compare.require_close(rounded, wanted, graph, "ulps of the result alone")
    compare.require_all_close(["sums"], [rounded], [wanted], graph, [x, y])
    with pytest.raises(MismatchError, match="sums: native and interpreted differ by"):
        compare.require_all_close(["sums"], [bug(terms).sum(0, dtype=np.float32)], [wanted], graph, [x, y])


def test_a_shifted_index_and_a_lost_infinity_are_found() -> None:
    x = Value(TensorType(DType.F32, (4, 64)), name="x")
    graph, data = build("f", [x], [ops.reduce_sum(ops.sub(x, ops.reverse(x, axes=(1,))), axes=(1,))]), normal(4, 64)
    (wanted,), _ = reference.run(graph, [data])
    shifted = (data - np.roll(data[:, ::-1], 1, 0)).sum(1)
    with pytest.raises(MismatchError):
        compare.require_all_close(["sums"], [shifted], [wanted], graph, [data])
    data[2, 3] = np.inf
    (wanted,), _ = reference.run(graph, [data])
    assert np.isnan(wanted[2])
    compare.require_all_close(["sums"], [wanted.copy()], [wanted], graph, [data])
    with pytest.raises(MismatchError):
        compare.require_all_close(["sums"], [np.nan_to_num(wanted)], [wanted], graph, [data])
