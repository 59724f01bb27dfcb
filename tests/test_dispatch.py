"""Bound steps: the same results as calls, in arrays that stay; what cannot be bound is refused. And calls that native
code looks at."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import pipeline
from graphc.codegen import builtin as code
from graphc.codegen import jit
from graphc.errors import FeedError, FeedTypeError, IndexRangeError, StateError
from graphc.frontend.state import State
from graphc.runtime.builtin import builtin
from graphc.runtime.executable import Executable
from graphc.runtime.team import team

Array = np.ndarray[Any, Any]
MODES = ["native", "interpret", "check"]


@pytest.fixture(autouse=True, params=[pipeline.BRIEF, 0.0], ids=["brief", "long"])
def brief(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether steps as short as those here keep the interpreter: they go other ways."""
    monkeypatch.setattr(pipeline, "BRIEF", request.param)
    return bool(request.param)


class Problem:
    """A product and a sum, with a weight that grows."""

    def __init__(self, mode: str = "native", threads: int = 1) -> None:
        self.weight = gx.Parameter(np.full((3, 4), 0.5, np.float32), "weight")
        x, index = gx.placeholder("x", ("batch", 3)), gx.placeholder("index", ("batch",), gx.int64)
        y = gx.matmul(x, self.weight)
        chosen = gx.nll_loss(y, index)
        updates = {self.weight: self.weight * 1.25}
        self.step = gx.compile([x, index], [y, chosen], updates=updates, mode=mode, threads=threads)
        self.x, self.index = np.arange(15, dtype=np.float32).reshape(5, 3), np.arange(5) % 4


def same(found: Any, wanted: Any) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bound_step_does_what_a_call_does(mode: str, threads: int) -> None:
    bound, called = Problem(mode, threads), Problem(mode, threads)
    run = bound.step.bind(bound.x, index=bound.index)
    for _ in range(3):
        assert same(run(), called.step(called.x, called.index))
    bound.x[...] = called.x[::-1]
    bound.index[0] = 3
    assert same(run(), called.step(called.x[::-1], bound.index))
    assert bound.weight.data.tobytes() == called.weight.data.tobytes()


def test_results_are_always_the_same_arrays() -> None:
    problem = Problem()
    run = problem.step.bind(problem.x, problem.index)
    first = run()
    kept = first[0].copy()
    assert run() is first and first == run.outputs
    assert not np.array_equal(first[0], kept)
    assert run.inputs["x"] is problem.x
    assert first[1].shape == ()
    y = gx.placeholder("y", (2,))
    assert gx.compile([y], y * 2).bind(np.ones(2, np.float32))().tolist() == [2, 2]


@pytest.mark.parametrize("mode", MODES)
def test_outputs_go_where_the_caller_wants_them(mode: str) -> None:
    problem, called = Problem(mode), Problem(mode)
    out = np.zeros((5, 4), np.float32), np.zeros((), np.float32)
    run = problem.step.bind(problem.x, problem.index, out=out)
    assert run()[0] is out[0]
    assert same(out, called.step(called.x, called.index))


def test_bound_arrays_live_as_long_as_the_bound_step() -> None:
    problem, called = Problem(), Problem()
    run = problem.step.bind(problem.x.copy(), problem.index.copy())
    del problem
    gc.collect()
    filled = [np.full((5, 3), np.nan, np.float32) for _ in range(50)]  # would take freed memory
    assert same(run(), called.step(called.x, called.index))
    assert len(filled) == 50


@pytest.mark.parametrize("mode", MODES)
def test_a_replaced_parameter_is_noticed(mode: str) -> None:
    problem = Problem(mode)
    run = problem.step.bind(problem.x, problem.index)
    run()
    problem.weight.data = np.ones((3, 4))
    assert run()[0].tolist() == np.tile(problem.x.sum(1, keepdims=True), (1, 4)).tolist()
    problem.weight.data[...] = 0  # as load_state_dict does
    assert not run()[0].any()
    problem.weight.data = np.ones((4, 4))
    with pytest.raises(StateError, match="compile again"):
        run()
    problem.weight.data = np.ones((3, 4))
    assert run()[0].any()


@pytest.mark.parametrize("mode", MODES)
def test_a_bound_step_that_fails_changes_nothing(mode: str) -> None:
    problem = Problem(mode)
    run = problem.step.bind(problem.x, problem.index)
    before = problem.weight.data.tobytes()
    problem.index[2] = 4
    with pytest.raises(IndexRangeError, match=r"4 is outside \[0, 4\)"):
        run()
    assert problem.weight.data.tobytes() == before
    problem.index[2] = 0
    run()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (FeedTypeError, "input x is bound to an array, not to list", lambda p: p.step.bind([[1.0] * 3], p.index[:1])),
        (FeedTypeError, "which is read where it lies", lambda p: p.step.bind(p.x.astype(float), p.index)),
        (FeedTypeError, "which is read where it lies", lambda p: p.step.bind(p.x, p.index.astype(np.int32))),
        (FeedTypeError, "C-contiguous", lambda p: p.step.bind(np.asfortranarray(p.x), p.index)),
        (FeedTypeError, "no array for index", lambda p: p.step.bind(p.x)),
        (FeedError, "does not fit", lambda p: p.step.bind(p.x[:, :2].copy(), p.index)),
        (FeedError, "dimension batch is 5 in x and 4 in index", lambda p: p.step.bind(p.x, p.index[:4])),
        (
            FeedError,
            "input x shares memory with weight",
            lambda p: p.step.bind(p.weight.data.reshape(4, 3), p.index[:4]),
        ),
        (FeedError, "there are 2 outputs; 1 arrays", lambda p: p.step.bind(p.x, p.index, out=np.zeros(1))),
        (FeedTypeError, "output 0 needs a writeable C-contiguous", lambda p: bind_out(p, np.zeros((5, 4)))),
        (FeedError, r"output 0 is f32\[5,4\]", lambda p: bind_out(p, np.zeros((4, 5), np.float32))),
        (FeedError, "output 0 shares memory", lambda p: bind_out(p, p.weight.data[:2], rows=2)),
        (FeedError, "output 1 shares memory", lambda p: p.step.bind(p.x, p.index, out=overlapping())),
    ],
)
def test_what_cannot_be_bound_is_refused(error: Any, message: str, call: Any) -> None:
    problem = Problem()
    with pytest.raises(error, match=message):
        call(problem)


def bind_out(problem: Problem, first: Array, rows: int = 5) -> Any:
    return problem.step.bind(problem.x[:rows], problem.index[:rows], out=[first, np.zeros((), np.float32)])


def overlapping() -> list[Array]:
    memory = np.zeros(20, np.float32)
    return [memory.reshape(5, 4), memory[3:4].reshape(())]


def test_python_threads_may_share_a_bound_step() -> None:
    x = gx.placeholder("x", (50,))
    count = gx.Parameter(np.zeros((), np.float32), "count")
    run = gx.compile([x], gx.sum(x), updates={count: count + 1}).bind(np.ones(50, np.float32))
    workers = [threading.Thread(target=lambda: [run() for _ in range(200)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert count.data == 800
    assert run() == 50


class Interrupted(Exception):
    pass


def counters() -> tuple[gx.Parameter, gx.Parameter, Any]:
    """Two states that two threads count up, and the step."""
    a, b = gx.Parameter(np.zeros(150_000, np.float32), "a"), gx.Parameter(np.zeros(150_000, np.float32), "b")
    step = gx.compile([], [], updates={a: a + 1, b: b + 1}, threads=2)
    run = step.bind()
    run()
    assert step.compilation().executable.threads == 2
    return a, b, run


def test_an_interrupt_lets_all_threads_end_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One between the post of a step and this thread's part of it once left the workers at a barrier."""
    a, b, run = counters()
    workers = team(2)
    post = workers._post

    def interrupted(*args: Any) -> None:
        post(*args)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_post", interrupted)
        with pytest.raises(Interrupted):
            run()
    assert (a.data == 2).all() and (b.data == 2).all()
    run()
    assert (a.data == 3).all() and (b.data == 3).all()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_steps_are_whole_whenever_an_interrupt_comes() -> None:
    a, b, run = counters()

    def interrupt(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in np.random.default_rng(0).uniform(1e-4, 1e-3, 50):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                while True:
                    run()
            except Interrupted:
                assert (a.data == a.data[0]).all() and (b.data == a.data[0]).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    run()


# Calls -----------------------------------------------------------------------------------------------------------


def looked_at(problem: Problem, *args: Any) -> Any:
    """What native code makes of a call: None where it does not take it."""
    assert problem.step._enter is not None
    return problem.step._enter(args)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_fits_is_what_the_interpreter_computes(threads: int) -> None:
    problem, other = Problem("native", threads), Problem("interpret")
    problem.step(problem.x, problem.index), other.step(other.x, other.index)
    for _ in range(3):
        found, wanted = looked_at(problem, problem.x, problem.index), other.step(other.x, other.index)
        assert [np.shape(a) for a in found] == [(5, 4), ()] and type(found[1]) is np.float32
        for array, expected in zip(found, wanted, strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert problem.weight.data.tobytes() == other.weight.data.tobytes()


def test_every_call_returns_arrays_of_its_own() -> None:
    problem = Problem()
    results = [problem.step(problem.x, problem.index)[0] for _ in range(4)]
    assert not any(np.shares_memory(a, b) for a in results for b in results if a is not b)


class Subclass(np.ndarray):
    """An array that could mean something else by its elements."""


MISFITS: dict[str, Any] = {
    "a list": lambda p: (p.x.tolist(), p.index),
    "a number": lambda p: (1.0, p.index),
    "nothing": lambda p: (None, p.index),
    "too few": lambda p: (p.x,),
    "too many": lambda p: (p.x, p.index, p.index),
    "another dtype": lambda p: (p.x, p.index.astype(np.int32)),
    "another byte order": lambda p: (p.x.astype(">f4"), p.index),
    "fewer rows": lambda p: (p.x[:4], p.index),
    "one axis more": lambda p: (p.x[..., None], p.index),
    "one axis less": lambda p: (p.x[:, 0].copy(), p.index),
    "another order": lambda p: (np.asfortranarray(p.x), p.index),
    "every second": lambda p: (np.repeat(p.x, 2, 0)[::2], p.index),
    "unaligned": lambda p: (np.frombuffer(b"\0" + p.x.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 3), p.index),
    "read only": lambda p: (np.broadcast_to(p.x[:1], (5, 3)), p.index),
    "a subclass": lambda p: (p.x.view(Subclass), p.index),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_call_that_does_not_fit_has_done_nothing(what: str) -> None:
    problem = Problem()
    problem.step(problem.x, problem.index)
    before = problem.weight.data.tobytes()
    assert looked_at(problem, *MISFITS[what](problem)) is None
    assert problem.weight.data.tobytes() == before


def test_a_call_with_a_states_memory_reads_what_it_was() -> None:
    x, weight = gx.placeholder("x", (4,)), gx.Parameter(np.arange(4.0, dtype=np.float32), "weight")
    step = gx.compile([x], x * 1, updates={weight: weight + 10 * x[::-1]})
    step(np.zeros(4, np.float32))
    assert step._enter is not None and step._enter((weight.data,)) is None
    assert step(weight.data).tolist() == [0, 1, 2, 3] and weight.data.tolist() == [30, 21, 12, 3]
    weight.data = np.ones(4)
    step(np.zeros(4, np.float32))
    assert step._enter((weight.data,)) is None
    memory = np.zeros(32, np.float32)  # wherever it begins, 4 aligned elements with some on both sides are in it
    place = -memory[8:].ctypes.data % 64 // 4 + 8
    weight._data, State.replaced = memory[place : place + 4], object()  # a part of an array with elements around it
    step(np.zeros(4, np.float32))
    for start, fits in ((-2, False), (2, False), (-4, True)):
        given = memory[place + start : place + start + 4]
        assert (step._enter((given,)) is not None) == fits


def test_arrays_that_were_replaced_are_not_kept() -> None:
    x, weight = gx.placeholder("x", (4,)), gx.Parameter(np.ones(4, np.float32), "weight")
    step = gx.compile([x], x * weight)
    step(np.ones(4, np.float32))
    memory = weakref.ref(weight.data.base)
    weight.data = np.zeros(4)
    assert not step(np.ones(4, np.float32)).any() and memory() is None


def test_calls_of_changing_sizes_go_to_the_version_of_each() -> None:
    x = gx.placeholder("x", ("n",))
    step = gx.compile([x], [x * 2, gx.sum(x)])
    for n in (3, 5, 3, 3, 5, 0, 5):
        doubled, total = step(np.arange(n, dtype=np.float32))
        assert doubled.tolist() == [2 * k for k in range(n)] and total == n * (n - 1) / 2
        assert step.plan.graph.inputs[0].type.extents == (n,)
    step.compilation_for(np.zeros(7, np.float32))
    step(np.zeros(5, np.float32))
    assert step.plan.graph.inputs[0].type.extents == (5,)


def test_a_parameter_that_is_replaced_between_calls_is_read_anew() -> None:
    problem = Problem()
    for factor in (1.0, 2.0, 3.0):
        problem.weight.data = np.full((3, 4), factor)
        for _ in range(2):
            problem.step(problem.x, problem.index)
    assert problem.weight.data.tolist() == np.full((3, 4), 3 * 1.25**2).tolist()
    problem.weight.data = np.ones((4, 4))
    with pytest.raises(StateError, match="compile again"):
        problem.step(problem.x, problem.index)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_fails_changes_nothing(threads: int) -> None:
    problem = Problem("native", threads)
    problem.step(problem.x, problem.index)
    before = problem.weight.data.tobytes()
    for _ in range(2):
        with pytest.raises(IndexRangeError, match=r"9 is outside \[0, 4\)"):
            problem.step(problem.x, np.full(5, 9))
    assert problem.weight.data.tobytes() == before
    problem.step(problem.x, problem.index)


def test_python_threads_may_call_one_step() -> None:
    x = gx.placeholder("x", (200_000,))  # long enough for one to come while another is in the step
    count = gx.Parameter(np.zeros((), np.float32), "count")
    step, wrong = gx.compile([x], gx.sum(x), updates={count: count + 1}), list[int]()

    def work(number: int) -> None:
        array = np.full(200_000, number, np.float32)
        wrong.extend(1 for _ in range(200) if step(array) != 200_000 * number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert count.data == 800 and not wrong


# Brief steps -----------------------------------------------------------------------------------------------------


def test_a_step_is_brief_where_it_is_short_and_one_threads(brief: bool) -> None:
    x = gx.placeholder("x", ("n",))
    for n, threads, short in ((1000, 1, True), (3_000_000, 1, False), (200_000, 2, False)):
        executable = gx.compile([x], gx.exp(x), threads=threads).compilation(n=n).executable
        assert executable.brief == (brief and short)


@pytest.mark.parametrize("way", ["bound", "called"])
def test_a_step_waits_for_whoever_uses_the_arena(way: str) -> None:
    problem = Problem()
    problem.step(problem.x, problem.index)
    run = problem.step.bind(problem.x, problem.index)
    call = {"bound": run, "called": lambda: problem.step(problem.x, problem.index)}[way]
    worker = threading.Thread(target=call)
    executable = problem.step.compilation(batch=5).executable
    with executable.lock, executable.in_use():  # as a step is that lets go of the interpreter
        worker.start()
        worker.join(0.05)
        assert worker.is_alive() and problem.weight.data[0, 0] == 0.5 * 1.25
    worker.join()
    assert problem.weight.data[0, 0] == 0.5 * 1.25**2


def test_an_epoch_and_brief_steps_share_an_arena() -> None:
    x, count = gx.placeholder("x", (8, 64)), gx.Parameter(np.zeros((), np.float32), "count")
    y, eye = gx.tanh(x), gx.constant(np.eye(64, dtype=np.float32))
    step = gx.compile([x], gx.sum(gx.exp(gx.tanh(y @ eye) @ eye)), updates={count: count + 1})
    data, wrong, done = np.zeros((8 * 10_000, 64), np.float32), list[float](), threading.Event()
    run = step.bind(np.ones((8, 64), np.float32))
    wanted = run()[()]
    assert step.compilation().executable.arena.size

    def work() -> None:
        while not done.is_set():
            found = run()[()]
            if found != wanted:
                wrong.append(found)

    worker = threading.Thread(target=work)
    worker.start()
    losses = step.epoch(data, batch_size=8)
    done.set()
    worker.join()
    assert not wrong and (losses == 512).all()


@pytest.mark.parametrize("way", ["bound", "called"])
def test_a_failed_check_is_looked_at_before_others_use_the_arena(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = Problem(), list[tuple[int, bool]]()
    problem.step(problem.x, problem.index)
    wrong = np.full(5, 9)
    run = problem.step.bind(problem.x, wrong)
    executable, failure = problem.step.compilation().executable, Executable.failure

    def looking(self: Executable, number: int, table: Any) -> Exception:
        seen.append((self.busy.value, self.lock.locked()))
        return failure(self, number, table)

    monkeypatch.setattr(Executable, "failure", looking)
    with pytest.raises(IndexRangeError, match="9 is outside"):
        run() if way == "bound" else problem.step(problem.x, wrong)
    assert [locked for _, locked in seen] == [True]
    assert not executable.brief or seen[0][0] == 1
    assert executable.busy.value == 0 and not executable.lock.locked()


def test_the_interpreter_is_let_go_of_during_a_step_that_is_not_brief(brief: bool) -> None:
    problem = Problem()
    problem.step(problem.x, problem.index)
    executable: Any = problem.step.compilation().executable
    assert executable.on(executable.place).__name__ == (code.KEEPING if brief else code.LETTING_GO)
    before = problem.weight.data[0, 0]
    executable.busy.value = 1  # left so by an interrupt: steps that take the lock do not look at it
    problem.step(problem.x, problem.index)
    problem.step.bind(problem.x, problem.index)()
    assert problem.weight.data[0, 0] == before * 1.25**2
    first, second = code.emit().split("define ptr ")[1:]
    assert code.KEEPING in first and "PyEval" not in first
    order = [second.index(f"@{name}") for name in (code.LETTING_GO, "PyEval_SaveThread", "PyEval_RestoreThread")]
    assert order == sorted(order) and order[1] < second.index("call i64 %function") < order[2]


def test_a_builtin_returns_a_number_or_none_and_keeps_nothing() -> None:
    source = "define i64 @look(ptr %words) {\n  %n = load i64, ptr %words\n  ret i64 %n\n}\n"
    compiled = jit.compile(source)
    words, busy = (ctypes.c_int64 * 3)(), ctypes.c_int64()
    place = ctypes.addressof(words)
    function = builtin(compiled.address("look"), place, place + 8, busy=busy)
    given = object()
    before = sys.getrefcount(None), sys.getrefcount(given)
    assert [function(given, None) for _ in range(1000)] == [None] * 1000
    assert abs(sys.getrefcount(None) - before[0]) < 100 and sys.getrefcount(given) == before[1]
    assert list(words) == [0, id(given), id(None)]
    for number in (77, -1):
        words[0] = number
        assert function() == number
    busy.value = 1
    assert function(None, given) == code.IN_USE and words[1] == id(given)
