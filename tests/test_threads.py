"""Steps that threads share: the same bits, the same errors, from any Python thread, after sleep and fork."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import threading
import time
from itertools import chain
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, optim, pipeline, testing
from graphc.codegen import team as code
from graphc.codegen.claims import FEWEST, LOOPS
from graphc.codegen.emit import emit
from graphc.codegen.jit import compile, host_target
from graphc.codegen.step import emit_step
from graphc.errors import ArgumentError, IndexRangeError
from graphc.ir.text import parse
from graphc.loops.text import parse_function
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


class Claims:
    """What threads of a team that does not run would claim."""

    def __init__(self, threads: int) -> None:
        self.memory = team.members(threads)
        word, number = ctypes.c_void_p, ctypes.c_int64
        native = team.machine_code()
        self._claim = ctypes.CFUNCTYPE(number, word, number, number, number)(native.address("claim"))

    def claim(self, tid: int, loop: int, extent: int) -> range:
        """Iterations of a loop."""
        part = self._claim(self.memory.ctypes.data, tid, loop, extent)
        return range(part >> 32, part & (2**32 - 1))

    def rest(self, tid: int, loop: int, extent: int) -> list[int]:
        """All that a thread is given until nothing is left."""
        return list(chain.from_iterable(iter(lambda: self.claim(tid, loop, extent), range(0))))


@pytest.mark.parametrize("extent", [0, 1, 2, 7, 64, 1000, 100_003])
def test_a_thread_that_is_alone_gets_its_own_piece_and_then_the_others(extent: int) -> None:
    own = extent // 3
    for tid in range(3):
        starts = [tid * extent // 3, (tid + 1) * extent // 3]
        wanted = [*range(starts[0], extent), *range(starts[0])]
        assert Claims(3).rest(tid, 0, extent) == wanted
    assert Claims(1).claim(0, 0, extent) == range(extent)
    assert not extent or len(Claims(3).claim(0, 0, extent)) <= max(1, own)


def test_who_is_late_finds_nothing_left_and_leaves_the_next_loop_whole() -> None:
    claims = Claims(2)
    assert claims.claim(1, 0, 10) == range(5, 6)  # and is held up
    assert claims.rest(0, 0, 10) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert claims.claim(0, 1, 8) == range(1)
    assert not claims.claim(1, 0, 10)
    assert claims.rest(1, 1, 8) == [4, 5, 6, 7, 1, 2, 3]


def test_loops_have_new_numbers_after_a_barrier() -> None:
    claims = Claims(2)
    barrier = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(team.machine_code().address("barrier"))
    for _ in range(3):
        assert claims.rest(0, 0, 5) == [0, 1, 2, 3, 4]
        assert not claims.rest(1, 0, 5)
        other = threading.Thread(target=barrier, args=(claims.memory.ctypes.data,))
        other.start()
        barrier(claims.memory.ctypes.data)
        other.join()


@pytest.mark.parametrize("barriers", [2**27, 2**28 - 1, 2**31, 2**40])
def test_a_team_that_has_long_met_without_claims_still_shares_a_loop(barriers: int) -> None:
    """Numbers of 32 bits took words of long ago for those of a next loop: nobody ran the loop at all."""
    claims = Claims(2)
    assert claims.rest(0, 0, 5) == [0, 1, 2, 3, 4]
    claims.memory.view(np.int64)[code.GENERATION // 8] += barriers
    assert claims.rest(1, 0, 5) == [2, 3, 4, 0, 1]
    assert not claims.rest(0, 0, 5)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_together_claim_everything_once(threads: int) -> None:
    claims, found = Claims(threads), [[] for _ in range(threads)]

    def work(tid: int) -> None:
        for loop in range(4):
            found[tid] += [(loop, number) for number in claims.rest(tid, loop, 10_000)]

    workers = [threading.Thread(target=work, args=(tid,)) for tid in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(chain(*found)) == [(loop, number) for loop in range(4) for number in range(10_000)]


def test_many_loops_without_a_dependence_still_have_numbers_of_their_own() -> None:
    count = 2 * LOOPS + 3
    outputs = ", ".join(f"y{n}: f32[{FEWEST}] out" for n in range(count))
    loops = "".join(f"  for p{n} parallel {FEWEST} {{\n y{n}[p{n}] = x[p{n}]\n }}\n" for n in range(count))
    text = emit(
        parse_function(f"kernel f(x: f32[{FEWEST + 1}] in, {outputs}) {{\n{loops}}}"), host_target(), threaded=True
    )
    assert text.count("call void @barrier") == 2


@pytest.mark.parametrize(("size", "barriers"), [(8, 1), (9, 0)])
def test_what_other_threads_read_is_not_written_over(size: int, barriers: int) -> None:
    """Found by random networks: an updated parameter lay over the old one, which the loop before still read."""
    text = f"""kernel f(x: f32[8] in, old: f32[8] in, y: f32[8] out, new: f32[{size}] out) {{
  for p parallel 8 {{
    y[p] = mul(x[p], old[0])
  }}
  for i {size} {{
    new[i] = 1.0:f32
  }}
}}"""
    assert emit(parse_function(text), host_target(), threaded=True).count("call void @barrier") == barriers


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
