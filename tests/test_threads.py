"""Steps that threads share: the same bits, the same errors, from any Python thread, after sleep and fork."""

from __future__ import annotations

import functools
import os
import platform
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, optim, pipeline, testing
from graphc.codegen.jit import compile
from graphc.codegen.step import emit_step
from graphc.errors import ArgumentError, IndexRangeError
from graphc.ir.text import parse
from graphc.runtime import team
from graphc.runtime.executable import symbols
from graphc.runtime.team import available

Array = np.ndarray[Any, Any]


class Problem:
    """A network whose kernels are large enough to be cut into blocks."""

    def __init__(self, threads: int | None, batch: int = 96) -> None:
        gx.manual_seed(0)
        random = np.random.default_rng(0)
        self.net = nn.Sequential(nn.Linear(200, 160), nn.LayerNorm(160), nn.GELU(), nn.Linear(160, 10))
        x, label = gx.placeholder("x", ("batch", 200)), gx.placeholder("label", ("batch",), gx.int64)
        loss = nn.CrossEntropyLoss()(self.net(x), label)
        updates = optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9).minimize(loss)
        self.step = gx.compile([x, label], loss, updates=updates, threads=threads)
        self.x, self.label = random.standard_normal((batch, 200)).astype(np.float32), random.integers(0, 10, batch)

    def run(self, count: int) -> list[bytes]:
        for _ in range(count):
            self.step(self.x, self.label)
        return [p.data.tobytes() for p in self.net.parameters()]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    wanted = Problem(1).run(200)
    assert all(Problem(threads).run(200) == wanted for threads in (2, 3))


def test_kernels_are_shared_and_agree_with_the_interpreter() -> None:
    problem = Problem(2)
    assert "parallel" in problem.step.ir("loops", batch=96)
    testing.assert_matches_interpreter(problem.step, problem.x, problem.label)


def test_a_failed_check_stops_every_thread_before_it_writes() -> None:
    problem = Problem(2)
    before = problem.run(3)
    with pytest.raises(IndexRangeError, match=r"label 10 is outside \[0, 10\)"):
        problem.step(problem.x, problem.label + 1)
    assert problem.run(0) == before
    assert problem.run(2) != before


CHECKED = """graph step(; state %at: i64[65536]) {
  %0 = check_index %at size=16 what="place" : i64[65536]
  %1 = add %0, %0 : i64[65536]
  %2 = reduce_sum %1 axes=[0] : i64[]
  return %2
  next %at = %1
}
"""


def test_threads_meet_between_a_check_and_what_is_written_over_its_operand() -> None:
    """One ran ahead and wrote what another was still checking: that one left, and the first waited for ever."""
    compilation = pipeline.build(parse(CHECKED, "step.gc"), {}, 2)
    check, update = compilation.plan.calls
    assert check.is_check and update.results[0] == check.operands[0]
    text = emit_step(compilation.plan, compilation.functions, threaded=True)
    names = [compilation.functions[call.node].name for call in (check, update)]
    assert re.findall(r"call \w+ @(\w+)\(", text) == [names[0], "barrier", names[1], "barrier"]


def test_workers_wake_from_sleep() -> None:
    problem = Problem(2)
    problem.run(1)
    for _ in range(3):
        time.sleep(0.05)
        problem.run(1)
    assert problem.run(0) == Problem(1).run(4)


def test_python_threads_share_a_team() -> None:
    problems = [Problem(2), Problem(2)]
    found: dict[int, list[bytes]] = {}
    workers = [threading.Thread(target=lambda n=n, p=p: found.setdefault(n, p.run(30))) for n, p in enumerate(problems)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wanted = Problem(1).run(30)
    assert found == {0: wanted, 1: wanted}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_starts_its_own_team() -> None:
    problem = Problem(2)
    problem.run(1)
    wanted = Problem(1).run(3)
    child = os.fork()
    if child == 0:
        os._exit(0 if Problem(2).run(3) == wanted and problem.run(2) == wanted else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


MEETING = """
declare void @barrier(ptr)

define i64 @meet(ptr %table, ptr %team, i64 %tid, i64 %threads) {
entry:
  %times = load i64, ptr %table
  %place = getelementptr i64, ptr %table, i64 1
  %work = load i64, ptr %place
  %late = icmp ne i64 %tid, 0
  %turns = select i1 %late, i64 %work, i64 1
  br label %meeting
meeting:
  %count = phi i64 [ 0, %entry ], [ %more, %arrive ]
  br label %busy
busy:
  %turn = phi i64 [ 0, %meeting ], [ %next, %busy ]
  %ignored = load volatile i64, ptr %table
  %next = add i64 %turn, 1
  %on = icmp ult i64 %next, %turns
  br i1 %on, label %busy, label %arrive
arrive:
  call void @barrier(ptr %team)
  %more = add i64 %count, 1
  %again = icmp ult i64 %more, %times
  br i1 %again, label %meeting, label %done
done:
  ret i64 %more
}
"""  # all threads meet so many times; between two meetings all but the first look at memory so many times


def meet(crew: team.Team, times: int, looks: int) -> int:
    """Run MEETING; how many meetings there were."""
    meeting = compile(MEETING, symbols(crew.threads))
    table = np.array([times, looks], np.int64)
    return crew.run(meeting.address("meet"), table.ctypes.data)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_more_threads_than_processors_meet_at_every_barrier(threads: int) -> None:
    assert meet(team.Team(threads), 2000, 1) == 2000


def test_barriers_that_cannot_sleep_offer_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Elsewhere")
    monkeypatch.setattr(team, "machine_code", functools.cache(team.machine_code.__wrapped__))
    assert meet(team.Team(3), 2000, 1) == 2000


@pytest.mark.skipif(platform.system() != "Linux", reason="threads sleep by a system call of Linux")
def test_a_thread_that_waits_long_leaves_its_processor_to_others() -> None:
    crew = team.Team(2)
    meet(crew, 1, 1)
    start, used = time.perf_counter(), time.thread_time()
    meet(crew, 10, 20_000_000)
    elapsed, used = time.perf_counter() - start, time.thread_time() - used
    assert elapsed > 0.01
    assert used < elapsed / 2


def test_small_graphs_stay_on_one_thread_and_large_ones_use_all() -> None:
    small, large = Problem(None, batch=1), Problem(None, batch=2000)
    small.run(1)
    large.run(1)
    assert small.step.compilation().executable.threads == 1
    assert large.step.compilation().executable.threads == available()


def test_what_no_kernel_divides_is_not_shared() -> None:
    problem = Problem(2, batch=1)
    problem.run(1)
    assert "parallel 2" not in problem.step.ir("loops")
    assert problem.step.compilation().executable.threads == 1


def test_the_number_of_threads_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_THREADS", "3")
    problem = Problem(None)
    problem.run(1)
    assert problem.step.compilation().executable.threads == 3
    monkeypatch.setenv("GRAPHC_THREADS", "many")
    with pytest.raises(ArgumentError, match="GRAPHC_THREADS must be a number from 1 to 256, not 'many'"):
        Problem(None)


def test_a_profile_of_threads_lists_every_call() -> None:
    problem = Problem(2)
    problem.run(1)
    profile = problem.step.profile(repeat=3)
    assert len(profile.rows) == len(problem.step.plan.steps)
    assert profile.seconds > 0
