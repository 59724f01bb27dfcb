"""Epochs: the same bits as a loop of steps, whatever the order, the size of the last batch, threads and mode."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import compiler, nn, optim
from graphc.errors import ArgumentError, FeedError, FeedTypeError, IndexRangeError, StateError
from graphc.runtime import epoch

Array = np.ndarray[Any, Any]
ROWS = 203
MODES = ["native", "interpret", "check"]


class Problem:
    """A classifier with three inputs: two that are cut into batches, one that is not; threads share 16 rows."""

    def __init__(self, mode: str = "native", threads: int | None = 1) -> None:
        gx.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(9, 1024), nn.ReLU(), nn.Linear(1024, 3))
        scale = gx.placeholder("scale", (9,))
        x, label = gx.placeholder("x", ("batch", 9)), gx.placeholder("label", ("batch",), gx.int64)
        logits = self.net(x * scale)
        loss = nn.CrossEntropyLoss()(logits, label)
        self.optimizer = optim.SGD(self.net.parameters(), lr=0.01, momentum=0.5)
        updates = self.optimizer.minimize(loss)
        self.step = gx.compile([scale, x, label], [loss, logits], updates=updates, mode=mode, threads=threads)

    def weights(self) -> list[bytes]:
        return [state.data.tobytes() for state in self.step.state]


def data(rows: int = ROWS) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(rows)
    scale, x = random.random(9, np.float32), random.standard_normal((rows, 9)).astype(np.float32)
    return scale, x, random.integers(0, 3, rows)


def batches(rows: int, size: int, seed: int | None) -> Iterator[Any]:
    """Which rows each step takes, as an epoch promises it."""
    order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
    return (order[start : start + size] for start in range(0, rows, size))


@pytest.mark.parametrize(("mode", "threads"), [("native", 1), ("native", 2), ("interpret", 1), ("check", 1)])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("size", [1, 16, 29, 500])  # ROWS is a multiple of 29
def test_an_epoch_has_the_bits_of_a_loop_of_steps(mode: str, threads: int, seed: int | None, size: int) -> None:
    scale, x, label = data()
    stepped, whole = Problem(mode, threads), Problem(mode, threads)
    found = [stepped.step(scale, x[rows], label[rows]) for rows in batches(ROWS, size, seed)]
    losses, logits = whole.step.epoch(scale, x, label, batch_size=size, seed=seed)
    assert losses.tobytes() == np.array([loss for loss, _ in found]).tobytes()
    assert logits.tobytes() == np.concatenate([each for _, each in found]).tobytes()
    assert losses.shape == (-(-ROWS // size),) and logits.shape == (ROWS, 3)
    assert (
        mode == "interpret" or size < 16 or whole.step.compilation(batch=min(size, ROWS)).executable.threads == threads
    )
    assert whole.weights() == stepped.weights()


def test_large_steps_are_shared_by_threads() -> None:
    results = []
    for threads in (1, 2, 3):
        gx.manual_seed(0)
        net = nn.Sequential(nn.Linear(200, 160), nn.GELU(), nn.Linear(160, 10))
        x, label = gx.placeholder("x", ("batch", 200)), gx.placeholder("label", ("batch",), gx.int64)
        loss = nn.CrossEntropyLoss()(net(x), label)
        updates = optim.SGD(net.parameters(), lr=0.05).minimize(loss)
        step = gx.compile([x, label], loss, updates=updates, threads=threads)
        random = np.random.default_rng(0)
        images, labels = random.standard_normal((1000, 200)).astype(np.float32), random.integers(0, 10, 1000)
        losses = [step.epoch(images, labels, batch_size=96, seed=seed) for seed in (None, 1, 2)]
        results.append((np.concatenate(losses).tobytes(), [p.data.tobytes() for p in net.parameters()]))
    assert results[0] == results[1] == results[2]


def test_the_smaller_last_batch_may_be_left_out() -> None:
    (scale, x, label), whole, part = data(), Problem(), Problem()
    losses, logits = whole.step.epoch(scale, x, label, batch_size=50, seed=1, drop_last=True)
    assert losses.shape == (4,) and logits.shape == (200, 3)
    for rows in [*batches(ROWS, 50, 1)][:4]:
        part.step(scale, x[rows], label[rows])
    assert part.weights() == whole.weights()
    assert len(whole.step.epoch(scale, x[:100], label[:100], batch_size=50, drop_last=True)[0]) == 2


def test_inputs_by_name_and_of_every_kind_that_loses_nothing() -> None:
    (scale, x, label), one, other = data(), Problem(), Problem()
    wide = np.zeros((ROWS, 18), np.float32)
    wide[:, ::2] = x
    wanted, _ = one.step.epoch(scale, x, label, batch_size=32)
    found, _ = other.step.epoch(scale.tolist(), label=label.astype(np.uint8), x=wide[:, ::2], batch_size=32)
    assert wanted.tobytes() == found.tobytes()


def test_a_generator_gives_every_epoch_another_order() -> None:
    scale, x, label = data()
    problem, random = Problem(), np.random.default_rng(3)
    problem.optimizer.lr = 0
    first, second = (problem.step.epoch(scale, x, label, batch_size=ROWS, seed=random)[1] for _ in range(2))
    assert first.tobytes() != second.tobytes()
    np.testing.assert_array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


@pytest.mark.parametrize("mode", MODES)
def test_epochs_bind_the_graph_once_for_each_size_of_a_batch(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, bound, bind = Problem(mode), [], compiler.bind
    monkeypatch.setattr(compiler, "bind", lambda graph, sizes: bound.append(sizes) or bind(graph, sizes))
    for _ in range(3):
        problem.step.epoch(*data(), batch_size=100)
    assert bound == [{"batch": 100}, {"batch": ROWS - 200}]


@pytest.mark.parametrize("mode", MODES)
def test_a_fixed_batch_is_cut_as_it_is_declared(mode: str) -> None:
    table, x = gx.placeholder("table", (4, 5)), gx.placeholder("x", (5, 2))
    count = gx.Parameter(np.zeros((), np.float32), "count")
    step = gx.compile([x, table], gx.matmul(table, x) + count, updates={count: count + 1}, mode=mode)
    rows, weights = np.arange(30, dtype=np.float32).reshape(15, 2), np.arange(20, dtype=np.float32).reshape(4, 5)
    found = step.epoch(rows, weights)
    np.testing.assert_array_equal(found, [weights @ rows[5 * n : 5 * n + 5] + n for n in range(3)])
    assert step.epoch(rows[:13], weights, drop_last=True).shape == (2, 4, 2)
    with pytest.raises(ArgumentError, match=r"13 rows are no multiple of the fixed batch of 5; drop_last=True leaves"):
        step.epoch(rows[:13], weights)
    with pytest.raises(ArgumentError, match="the inputs have batches of 5 rows; batch_size is 3"):
        step.epoch(rows, weights, batch_size=3)


def test_the_data_are_not_copied_in_order_and_not_changed() -> None:
    x = gx.placeholder("x", ("batch", 3))
    step = gx.compile([x], x * 2)
    given = np.arange(30, dtype=np.float32).reshape(10, 3)
    given.flags.writeable = False
    np.testing.assert_array_equal(step.epoch(given, batch_size=4), given * 2)
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_array_equal(step.epoch(given, batch_size=4, seed=0), given[order] * 2)


def test_state_that_is_replaced_between_epochs_is_seen() -> None:
    scale, x, label = data()
    problem, fresh = Problem(), Problem()
    kept = problem.net.state_dict()
    first, _ = problem.step.epoch(scale, x, label, batch_size=32)
    for state in problem.step.state:
        if "momentum" in state.name:
            state.data = np.zeros(state.data.shape)
    for name, parameter in problem.net.named_parameters():
        parameter.data = kept[name]
    again, _ = problem.step.epoch(scale, x, label, batch_size=32)
    assert again.tobytes() == first.tobytes() == fresh.step.epoch(scale, x, label, batch_size=32)[0].tobytes()
    next(iter(problem.net.parameters())).data = np.zeros((2, 2))
    with pytest.raises(StateError, match="compile again"):
        problem.step.epoch(scale, x, label, batch_size=32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (FeedError, "x has 203 rows and label has 202", lambda f, s, x, y: f(s, x, y[1:], batch_size=32)),
        (FeedError, "x has no rows", lambda f, s, x, y: f(s, x[:0], y[:0], batch_size=32)),
        (ArgumentError, "batch_size must be a whole number from 1 on, not 0", lambda f, *a: f(*a, batch_size=0)),
        (ArgumentError, "batch_size must be a whole number from 1 on, not 2.5", lambda f, *a: f(*a, batch_size=2.5)),
        (ArgumentError, r"say how many rows a batch has: batch_size=64 \(dimension batch\)", lambda f, *a: f(*a)),
        (
            ArgumentError,
            "drop_last leaves nothing of 203 rows in batches of 300",
            lambda f, *a: f(*a, batch_size=300, drop_last=True),
        ),
        (FeedTypeError, "no array for label", lambda f, s, x, y: f(s, x, batch_size=32)),
        (FeedTypeError, "not an array of float64", lambda f, s, x, y: f(s, x.astype(float), y, batch_size=32)),
        (FeedError, r"input x is f32\[rows,9\]", lambda f, s, x, y: f(s, x[:, 1:], y, batch_size=32)),
        (FeedError, "input scale", lambda f, s, x, y: f(x, x, y, batch_size=32)),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_fit_is_refused_before_the_first_step(error: Any, message: str, call: Any, mode: str) -> None:
    problem = Problem(mode)
    before = problem.weights()
    with pytest.raises(error, match=message):
        call(problem.step.epoch, *data())
    assert problem.weights() == before


def test_an_epoch_needs_an_axis_to_cut_and_equal_results() -> None:
    x, y = gx.placeholder("x", ()), gx.placeholder("y", ("batch",))
    with pytest.raises(ArgumentError, match="no input has an axis"):
        gx.compile([x], x).epoch(1.0, batch_size=2)
    outer = gx.compile([y], gx.expand_dims(y, 0) * 2)
    with pytest.raises(ArgumentError, match=r"output 0 is f32\[1,batch\]: the last batch, of 1 rows"):
        outer.epoch(np.zeros(5, np.float32), batch_size=2)
    assert outer.epoch(np.zeros(5, np.float32), batch_size=2, drop_last=True).shape == (2, 1, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_failed_check_names_its_batch_and_keeps_the_steps_before(mode: str, seed: int | None, threads: int) -> None:
    scale, x, label = data()
    rows = [*batches(ROWS, 16, seed)]
    for number in (0, 5, 12):  # the last is the smaller one
        problem, wanted = Problem(mode, threads), Problem(mode, threads)
        wrong = label.copy()
        wrong[rows[number][-1]] = 3
        with pytest.raises(IndexRangeError, match=rf"batch {number}: label 3 is outside \[0, 3\)[\s\S]*test_epoch.py:"):
            problem.step.epoch(scale, x, wrong, batch_size=16, seed=seed)
        for each in rows[:number]:
            wanted.step(scale, x[each], label[each])
        assert problem.weights() == wanted.weights()


class Interrupted(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_comes_through_between_two_steps(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "CHUNK", 0.001)
    x = gx.placeholder("x", ("batch", 3))
    one, two = gx.Parameter(np.zeros(150_000, np.float32), "one"), gx.Parameter(np.zeros(150_000, np.float32), "two")
    step = gx.compile([x], gx.sum(x), updates={one: one + 1, two: two + 1}, threads=threads)
    rows = np.ones((2_000_000, 3), np.float32)
    step.epoch(rows[:1], batch_size=1)
    assert step.compilation().executable.threads == threads

    def interrupt(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in (0.003, 0.005, 0.008, 0.013):
            start = time.perf_counter()
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, delay)
                step.epoch(rows, batch_size=1)
            assert time.perf_counter() - start < 5
            assert (one.data == one.data[0]).all() and (
                two.data == one.data[0]
            ).all()  # every state has seen the same steps
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(step.epoch(rows[:100], batch_size=1)) == 100


def test_other_threads_may_call_the_function_during_an_epoch() -> None:
    scale, x, label = data(20_000)
    problem, alone = Problem(), Problem()
    problem.optimizer.lr = alone.optimizer.lr = 0
    wanted, _ = alone.step.epoch(scale, x, label, batch_size=7)
    found: list[Any] = []
    worker = threading.Thread(target=lambda: found.extend(problem.step(scale, x[:7], label[:7])[0] for _ in range(200)))
    worker.start()
    losses, _ = problem.step.epoch(scale, x, label, batch_size=7)
    worker.join()
    assert losses.tobytes() == wanted.tobytes()
    assert set(found) == {wanted[0]}
