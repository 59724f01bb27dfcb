"""Compiled functions as users call them: feeds, sizes, state, errors that lose nothing, what can be looked at."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, optim, testing
from graphc.errors import (
    ArgumentError,
    FeedError,
    FeedTypeError,
    IndexRangeError,
    MismatchError,
    PlanError,
    StateError,
)
from graphc.ir.op import OPS
from graphc.pipeline import PASSES
from graphc.runtime.memory import aligned_bytes

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


class Problem:
    """A small classifier, its training step and its evaluation."""

    def __init__(self, mode: str = "native", **sgd: Any) -> None:
        gx.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        x = gx.placeholder("x", ("batch", 6))
        label = gx.placeholder("label", ("batch",), gx.int64)
        logits = self.net(x)
        loss = nn.CrossEntropyLoss()(logits, label)
        updates = optim.SGD(self.net.parameters(), **{"lr": 0.1, **sgd}).minimize(loss)
        self.step = gx.compile([x, label], loss, updates=updates, mode=mode)
        correct = gx.mean(gx.equal(gx.argmax(logits, 1), label))
        self.evaluate = gx.compile([x, label], [loss, correct], mode=mode, name="evaluate")

    def weights(self) -> list[bytes]:
        return [p.data.tobytes() for p in self.net.parameters()]


def batch(size: int = 5) -> tuple[Array, Array]:
    random = np.random.default_rng(size)
    return random.standard_normal((size, 6)).astype(np.float32), random.integers(0, 3, size)


def test_training_reduces_the_loss_and_evaluation_sees_it() -> None:
    problem, (x, label) = Problem(momentum=0.9), batch(20)
    first = problem.step(x, label)
    for _ in range(100):
        last = problem.step(x, label)
    assert last < 0.5 * first
    loss, correct = problem.evaluate(x, label)
    assert loss < last
    assert correct > 0.9


def test_native_interpreted_and_checked_steps_agree() -> None:
    results = []
    for mode in ("native", "interpret", "check"):
        problem = Problem(mode, momentum=0.9, nesterov=True, weight_decay=0.01)
        random = np.random.default_rng(1)
        data = [(random.standard_normal((7, 6)).astype(np.float32), random.integers(0, 3, 7)) for _ in range(10)]
        results.append([problem.step(*each) for each in data])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    assert results[0] == results[2]


def test_repeated_runs_have_the_same_bits() -> None:
    x, label = batch(33)
    runs = []
    for _ in range(2):
        problem = Problem()
        for _ in range(20):
            problem.step(x, label)
        runs.append(problem.weights())
    assert runs[0] == runs[1]


def test_every_batch_size_simply_works() -> None:
    problem, interpreted = Problem(), Problem("interpret")
    for size in (5, 64, 1, 5, 17):
        x, label = batch(size)
        assert problem.step(x, label) == pytest.approx(interpreted.step(x, label), rel=1e-5)
    assert "f32[17,6]" in problem.step.ir("bind")
    assert "f32[64,6]" in problem.step.ir("bind", batch=64)


def test_an_empty_batch_has_no_mean() -> None:
    for mode in ("native", "interpret"):
        x, label = batch(0)
        assert np.isnan(Problem(mode).evaluate(x, label)[0])


def test_feeds_by_name_and_by_position() -> None:
    problem, (x, label) = Problem(), batch()
    assert problem.evaluate(x, label) == problem.evaluate(label=label, x=x) == problem.evaluate(x, label=label)


def test_arrays_of_every_kind_are_accepted_where_nothing_is_lost() -> None:
    problem, (x, label) = Problem(), batch(6)
    wanted = problem.evaluate(x, label)
    wide = np.zeros((6, 12), np.float32)
    wide[:, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    raw = np.zeros(6 * 6 * 4 + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(6, 6)
    unaligned[...] = x
    for same in (wide[:, ::2], np.asfortranarray(x), x.astype(">f4"), frozen, unaligned, x.tolist(), x[::-1][::-1]):
        assert problem.evaluate(same, label) == wanted
    for same in (label.astype(np.int32), label.astype(np.uint8), label.tolist()):
        assert problem.evaluate(x, same) == wanted


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (FeedTypeError, lambda f, x, y: f(x), "no array for label"),
        (FeedTypeError, lambda f, x, y: f(x, y, y), "2 inputs are taken (x, label), 3 were given"),
        (FeedTypeError, lambda f, x, y: f(x, labels=y), "no input is called labels; there are x, label"),
        (FeedTypeError, lambda f, x, y: f(x, x=x, label=y), "input x is given twice"),
        (FeedTypeError, lambda f, x, y: f(x.astype(np.float64), y), "not an array of float64; convert it with .astype"),
        (
            FeedTypeError,
            lambda f, x, y: f(x, y.astype(np.float32)),
            "label is i64[batch], not an array of float32",
        ),
        (FeedTypeError, lambda f, x, y: f(x.astype(object), y), "array of object"),
        (FeedTypeError, lambda f, x, y: f("images", y), "not an array of <U6"),
        (FeedTypeError, lambda f, x, y: f([[1.0], [2.0, 3.0]], y), "input x"),
        (FeedTypeError, lambda f, x, y: f(None, y), "input x"),
        (FeedError, lambda f, x, y: f(x[0], y), "an array of shape [6] does not fit"),
        (FeedError, lambda f, x, y: f(x[:, :5], y), "input x is f32[batch,6], which an array of shape [5, 5]"),
        (FeedError, lambda f, x, y: f(x, y[:4]), "dimension batch is 5 in x and 4 in label"),
        (IndexRangeError, lambda f, x, y: f(x, y + 3), "label 3 is outside [0, 3)"),
        (IndexRangeError, lambda f, x, y: f(x, y - 2**62), "is outside [0, 3)"),
    ],
)
@pytest.mark.parametrize("mode", ["native", "interpret", "check"])
def test_a_step_that_raises_leaves_every_parameter_as_it_was(error: Any, call: Any, message: str, mode: str) -> None:
    problem = Problem(mode, momentum=0.9)
    x, label = RANDOM.standard_normal((5, 6)).astype(np.float32), np.array([0, 1, 2, 0, 1])
    problem.step(x, label)
    before = problem.weights()
    with pytest.raises(error) as caught:
        call(problem.step, x, label)
    assert message in str(caught.value)
    assert problem.weights() == before
    problem.step(x, label)


def test_states_without_names_are_numbered_from_the_second() -> None:
    first, second = gx.Parameter(np.zeros(2, np.float32)), gx.Parameter(np.zeros(2, np.float32))
    assert [value.name for value in gx.compile([], gx.sum(first * second)).graph.state] == ["state", "state_2"]


def test_a_failed_check_names_the_users_line() -> None:
    problem, (x, label) = Problem(), batch()
    with pytest.raises(IndexRangeError, match=r"test_compile\.py:"):
        problem.step(x, label + 7)


def test_a_parameter_that_changed_its_shape_is_refused() -> None:
    problem, (x, label) = Problem(), batch()
    problem.step(x, label)
    weight = next(iter(problem.net.parameters()))
    weight.data = np.zeros((9, 6))
    with pytest.raises(StateError, match=r"0.weight was f32\[8,6\] .* now float32\[9, 6\]; compile again"):
        problem.step(x, label)
    weight.data = np.zeros((8, 6))
    problem.step(x, label)


def test_state_fed_as_input_is_not_overwritten_while_it_is_read() -> None:
    w = gx.Parameter(np.arange(6, dtype=np.float32), "w")
    x = gx.placeholder("x", (6,))
    step = gx.compile([x], gx.sum(x), updates={w: w * 0.5 + x[::-1]})
    step(w.data)
    np.testing.assert_array_equal(w.data, np.arange(6) * 0.5 + np.arange(6)[::-1])


def test_two_states_swap() -> None:
    a, b = gx.Parameter(np.zeros(3, np.float32), "a"), gx.Parameter(np.ones(3, np.float32), "b")
    step = gx.compile([], [], updates={a: b, b: a})
    assert step() == ()
    assert (a.data[0], b.data[0]) == (1, 0)


def test_outputs_belong_to_the_caller() -> None:
    x = gx.placeholder("x", (3,))
    double = gx.compile([x], [x, x * 2])
    given = np.ones(3, np.float32)
    same, twice = double(given)
    again = double(given)[1]
    assert not np.shares_memory(same, given)
    assert not np.shares_memory(twice, again)
    same[0] = 5
    assert given[0] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: gx.compile([x], x + y), "placeholder y: f32[3] is needed, but is not among the inputs"),
        (lambda x, y: gx.compile([x, x], x), "distinct placeholders"),
        (lambda x, y: gx.compile([x + y], x), "distinct placeholders"),
        (lambda x, y: gx.compile([x], 3), "not int"),
        (lambda x, y: gx.compile([x], x, mode="fast"), "mode must be one of native"),
        (lambda x, y: gx.compile([x], x, threads=0), "threads must be a number from 1 to 256, not 0"),
        (lambda x, y: gx.compile([x], x, updates={gx.Parameter([1.0]): x}), "its update is f32[3]"),
    ],
)
def test_what_cannot_be_compiled_is_refused(make: Any, message: str) -> None:
    x, y = gx.placeholder("x", (3,)), gx.placeholder("y", (3,))
    with pytest.raises((ArgumentError, TypeError)) as caught:
        make(x, y)
    assert message in str(caught.value)


def test_an_arena_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(PlanError, match=r"step needs an arena of 1099511627776.0 MiB, which cannot be had"):
        aligned_bytes(2**60, "step")


@pytest.mark.parametrize("shape", [(2**45,), (2**40, 2**40), (2**31, 2**31, 4)])
def test_results_that_cannot_be_had_are_refused(shape: tuple[int, ...]) -> None:
    """Also where their bytes do not fit 64 bits: 2**64 of them once were an arena of none."""
    x = gx.placeholder("x", (1,))
    wide = gx.broadcast_to(x, shape)
    with pytest.raises(PlanError, match="cannot be had"):
        gx.compile([x], wide + 1)(np.ones(1, np.float32))


def test_an_arena_of_more_than_64_bits_is_refused() -> None:
    """Its bytes, 2**66, once came out as an arena of none."""
    x = gx.placeholder("x", (1,))
    turned = gx.reshape(gx.transpose(gx.softmax(gx.reshape(gx.broadcast_to(x, (2**31, 2**33)), (2**31, -1)))), (-1,))
    with pytest.raises(PlanError, match=r"step needs an arena of .* MiB, which cannot be had"):
        gx.compile([x], turned[:2])(np.ones(1, np.float32))


def test_two_python_threads_may_call_one_function() -> None:
    problem, (x, label) = Problem(), batch(50)
    wanted = problem.evaluate(x, label)
    found: list[Any] = []

    def work() -> None:
        found.extend(problem.evaluate(x, label) for _ in range(50))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [wanted] * 200


# Looking inside -------------------------------------------------------------------------------------------------


def test_every_stage_can_be_printed() -> None:
    problem = Problem()
    for stage in ("graph", "bind", "simplify", "fold", "cse", "dce", "fused", "plan", "loops", "llvm", "assembly"):
        text = problem.step.ir(stage, batch=4)
        assert len(text.splitlines()) > 5, stage
    with pytest.raises(ArgumentError, match="there is no stage 'loop'; there are graph"):
        problem.step.ir("loop", batch=4)
    assert "test_compile.py:" in problem.step.ir("fused", batch=4)


def test_stages_ask_for_sizes_that_are_not_known() -> None:
    with pytest.raises(ArgumentError, match="say how large batch is"):
        Problem().step.ir("fused")


def test_the_plan_is_close_to_its_lower_bound() -> None:
    problem, (x, label) = Problem(), batch()
    problem.step(x, label)
    plan = problem.step.plan
    assert plan.arena_bytes <= 1.05 * plan.lower_bound
    assert "arena" in str(plan)


def test_a_profile_lists_every_call_and_changes_nothing() -> None:
    problem, (x, label) = Problem(), batch()
    problem.step(x, label)
    before = problem.weights()
    profile = problem.step.profile()
    assert len(profile.rows) == len(problem.step.plan.steps)
    assert "GFLOP/s" in str(profile)
    assert len(problem.step.profile(x, label, repeat=3).rows) == len(profile.rows)
    assert problem.weights() == before


def test_dumps_hold_every_stage_and_can_be_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_DUMP", str(tmp_path))
    problem, (x, label) = Problem(), batch(4)
    problem.step(x, label)
    names = sorted(path.name for path in tmp_path.iterdir())
    stages = ["graph", "bind", *PASSES, "plan", "loops", "llvm", "assembly"]
    assert [name.split(".")[3] for name in names] == stages


def test_debug_levels_print_more_and_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for level in "01234":
        monkeypatch.setenv("GRAPHC_DEBUG", level)
        Problem().step(*batch(4))
        sizes.append(len(capsys.readouterr().out))
    assert sizes[0] == 0
    assert sizes == sorted(set(sizes))


def test_a_function_prints_what_it_takes() -> None:
    assert repr(Problem().step) == "<graphc function step(x: f32[batch,6], label: i64[batch]), native, 5 states>"


# For users' tests ------------------------------------------------------------------------------------------------


def test_assert_matches_interpreter_accepts_a_right_step_and_changes_nothing() -> None:
    problem = Problem()
    before = problem.weights()
    testing.assert_matches_interpreter(problem.step, *batch(9))
    assert problem.weights() == before


def test_assert_matches_interpreter_names_the_first_kernel_that_differs() -> None:
    problem, (x, label) = Problem(), batch(9)
    compilation = problem.step.compilation_for(x, label)
    executable = compilation.executable
    wrong = next(n for n in executable.plan.graph.nodes if n.op.name == "kernel" and "relu" in n.attrs["name"])
    node = next(n for n in wrong.attrs["body"].nodes if n.op.name == "relu")
    object.__setattr__(node, "op", OPS["tanh"])  # the reference now computes something else than the machine code
    with pytest.raises(MismatchError, match=r"kernel contract_.*relu.* differ by .* ulp[\s\S]*test_compile.py:"):
        testing.assert_matches_interpreter(problem.step, x, label)


def test_layers_without_units_are_trained_on_one_row() -> None:
    """A reshape between an extent of 0 and one of 1 once divided by zero while kernels were formed."""
    for mode in ("native", "interpret"):
        gx.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 3))
        x, label = gx.placeholder("x", ("batch", 6)), gx.placeholder("label", ("batch",), gx.int64)
        loss = nn.CrossEntropyLoss()(net(x), label)
        step = gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), momentum=0.9).minimize(loss), mode=mode)
        for size in (1, 3):
            assert step(np.ones((size, 6), np.float32), np.zeros(size, np.int64)) == pytest.approx(np.log(3), abs=0.01)
