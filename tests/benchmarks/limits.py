"""What the machine allows, found by loops that do nothing else: multiply-adds per second, and bytes read per second.

A probe shows less than the machine can do while others use it or its clock is down, never more. So a run probes again
and again, before, between and after the turns of each workload, and takes the best of all readings for the limit.
Those between the turns tell, besides, what the machine could do in just those minutes.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from graphc.codegen import jit

ACCUMULATORS = 12  # at least latency times units of any core (4 cycles, two or three units); they fit 16 registers
SECONDS = 4e-3  # of a reading
READINGS = 4  # in each probe
GUESS = 1e6  # rounds per second, of the first reading


def multiply_adds(lanes: int) -> str:
    """`void spin(ptr data, i64 period, i64 count)`: `count` rounds of independent multiply-adds in registers."""
    vector = f"<{lanes} x float>"
    return _loop(lanes, [f"  %c{n} = call {vector} @llvm.fmuladd({vector} %b{n}, {vector} %a0, {vector} %a0)"
                         for n in range(ACCUMULATORS)])  # fmt: skip


def reads(lanes: int) -> str:
    """`void spin(ptr data, i64 period, i64 count)`: read `count` rounds of vectors, going around after `period`."""
    vector, body = f"<{lanes} x float>", []
    for n in range(ACCUMULATORS):
        body += [
            f"  %q{n} = getelementptr {vector}, ptr %here, i64 {n}",
            f"  %d{n} = load {vector}, ptr %q{n}, align 4",
            f"  %c{n} = fadd {vector} %b{n}, %d{n}",
        ]
    return _loop(lanes, body)


def _loop(lanes: int, body: Iterable[str]) -> str:
    """A loop that makes vectors %c0, %c1, ... of %b0, %b1, ...: first of %a0, %a1, ... in memory; stores the last."""
    vector, numbers = f"<{lanes} x float>", range(ACCUMULATORS)
    return "\n".join((
        f"declare {vector} @llvm.fmuladd({vector}, {vector}, {vector})",
        "define void @spin(ptr %data, i64 %period, i64 %count) {",
        "entry:",
        *(f"  %p{n} = getelementptr {vector}, ptr %data, i64 {n}" for n in numbers),
        *(f"  %a{n} = load {vector}, ptr %p{n}, align 4" for n in numbers),
        "  br label %loop",
        "loop:",
        "  %done = phi i64 [ 0, %entry ], [ %more, %loop ]",
        "  %round = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %b{n} = phi {vector} [ %a{n}, %entry ], [ %c{n}, %loop ]" for n in numbers),
        f"  %offset = mul i64 %round, {ACCUMULATORS}",
        f"  %here = getelementptr {vector}, ptr %data, i64 %offset",
        *body,
        "  %following = add i64 %round, 1",
        "  %around = icmp eq i64 %following, %period",
        "  %next = select i1 %around, i64 0, i64 %following",
        "  %more = add i64 %done, 1",
        "  %on = icmp ult i64 %more, %count",
        "  br i1 %on, label %loop, label %end",
        "end:",
        *(f"  store {vector} %c{n}, ptr %p{n}, align 4" for n in numbers),
        "  ret void",
        "}",
    ))  # fmt: skip


class Loop:
    """One of the loops above, run by some threads at once, each on its own part of so many bytes in all."""

    def __init__(self, text: Callable[[int], str], threads: int, size: int = 0) -> None:
        lanes = jit.host_target().lanes_f32
        self.code = jit.compile(text(lanes))
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self.spin = kind(self.code.address("spin"))
        elements = ACCUMULATORS * lanes  # of a round
        self.period = max(1, round(size / (4 * elements * threads)))
        self.parts = [np.full(self.period * elements, 0.5, np.float32) for _ in range(threads)]
        self.elements = elements * threads
        self.best = 0.0  # rounds per second of each thread

    def probe(self) -> float:
        """Some more readings; returns the best of these."""
        readings = []
        for _ in range(READINGS):
            count = max(self.period, round(SECONDS * (self.best or GUESS)))
            readings.append(count / self._seconds(count))
            self.best = max(self.best, readings[-1])
        return max(readings)

    def _seconds(self, count: int) -> float:
        """From when the first thread starts to when the last one ends."""
        times: list[tuple[float, float]] = []
        ready = threading.Barrier(len(self.parts))

        def work(part: np.ndarray) -> None:
            ready.wait()
            start = time.perf_counter()
            self.spin(part.ctypes.data, self.period, count)
            times.append((start, time.perf_counter()))

        threads = [threading.Thread(target=work, args=(part,)) for part in self.parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        starts, ends = zip(*times, strict=True)
        return max(ends) - min(starts)


class Machine:
    """The limits of so many threads: arithmetic, and reading again and again as many bytes as a step moves."""

    def __init__(self, threads: int, sizes: Iterable[float]) -> None:
        self.arithmetic = Loop(multiply_adds, threads)
        self.memory = {size: Loop(reads, threads, int(size)) for size in sorted(set(sizes)) if size}
        self.probes = 0

    def probe(self) -> None:
        """Measure everything once more."""
        self.probes += 1
        for loop in (self.arithmetic, *self.memory.values()):
            loop.probe()

    def seconds_now(self, operations: float, size: float) -> float:
        """`seconds`, from new readings alone."""
        self.probes += 1
        arithmetic, memory = self.arithmetic, self.memory.get(size)
        least = operations / (2.0 * arithmetic.elements * arithmetic.probe())
        return max(least, size / (4.0 * memory.elements * memory.probe())) if memory else least

    @property
    def operations(self) -> float:
        """Floating-point operations per second, in single precision."""
        return 2.0 * self.arithmetic.elements * self.arithmetic.best

    def bandwidth(self, size: float) -> float:
        """Bytes read per second, from that many."""
        loop = self.memory[size]
        return 4.0 * loop.elements * loop.best

    def seconds(self, operations: float, size: float) -> float:
        """The least that a step can take, which does so many operations and moves so many bytes (0: few)."""
        return max(operations / self.operations, size / self.bandwidth(size) if size else 0.0)

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        sizes = {f"{size:.0f}": self.bandwidth(size) for size in self.memory}
        return {"flops_per_second": self.operations, "bytes_per_second_by_bytes": sizes, "probes": self.probes}

    def __str__(self) -> str:
        reads = (f", {self.bandwidth(size) / 1e9:.1f} GB/s from {size / 1e6:.4g} MB" for size in self.memory)
        return (
            f"{self.operations / 1e9:.0f} GFLOP/s{''.join(reads)} "
            f"on {len(self.arithmetic.parts)} threads, the best of {self.probes} probes"
        )
