"""Threads that share a step: Python threads inside a native loop, which spin for a while and then sleep.

A thread sleeps in Python between steps, and natively inside one (`codegen.team`).

Invariants:
 1. nothing starts at import, nor before the first step that several threads share;
 2. a team runs one step at a time, whoever calls;
 3. a worker that sleeps has seen every posted step: it declares that it sleeps, then looks once more;
 4. a process that was forked starts a team of its own.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import threading
from pathlib import Path
from typing import Any

import numpy as np

from graphc.codegen import claims
from graphc.codegen import team as code
from graphc.codegen.jit import Compiled, compile
from graphc.runtime.memory import aligned_bytes

Array = np.ndarray[Any, Any]
PATIENCE = 20_000  # looks before a worker sleeps: some hundred microseconds
_ARCHITECTURE = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of the same


def available() -> int:
    """Processors that this process may use: its affinity mask, and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))


@functools.cache
def machine_code() -> Compiled:
    """The native functions of `codegen.team` and `codegen.claims`."""
    library, machine = ctypes.CDLL(None), platform.machine().lower()
    machine = _ARCHITECTURE.get(machine, machine)
    futex = code.FUTEX.get(machine) if platform.system() == "Linux" else None
    names = (code.YIELD,) if futex is None else (code.YIELD, code.SYSTEM_CALL)
    symbols = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names}
    return compile(f"{code.emit(machine, futex)}\n{claims.emit()}", symbols)


def members(threads: int) -> Array:
    """The memory of a team."""
    memory = aligned_bytes(code.divisible_size(threads), "a team of threads")
    memory[:] = 0
    memory.view(np.int64)[code.THREADS // 8] = threads
    return memory


class Team:
    """`threads` threads, the caller included."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.memory = members(threads)
        self.address = self.memory.ctypes.data
        self.posted = ctypes.c_int64.from_address(self.address + code.POSTED)
        self.native = native = machine_code()  # for as long as a worker runs in it
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._post = ctypes.CFUNCTYPE(None, pointer, pointer, pointer)(native.address("post"))
        self._share = ctypes.CFUNCTYPE(number, pointer)(native.address("share"))
        self._work = ctypes.CFUNCTYPE(number, pointer, number, number, number)(native.address("work"))
        self.lock = threading.Lock()
        self.sleeping = [False] * threads
        self.wake = [threading.Event() for _ in range(threads)]
        for tid in range(1, threads):
            threading.Thread(target=self._worker, args=(tid,), name=f"graphc-{tid}", daemon=True).start()

    def run(self, step: int, table: int) -> int:
        """One step, by all threads; its result."""
        with self.lock:
            try:
                self._post(self.address, step, table)
            finally:  # an interrupt comes after the call: the workers have begun, and will wait for this thread
                if True in self.sleeping:
                    for tid, asleep in enumerate(self.sleeping):
                        if asleep:
                            self.wake[tid].set()
                status = int(self._share(self.address))
            return status

    def _worker(self, tid: int) -> None:
        seen = 0
        while True:
            seen = self._work(self.address, tid, seen, PATIENCE)
            self.sleeping[tid] = True
            if self.posted.value == seen:
                self.wake[tid].wait()
            self.wake[tid].clear()
            self.sleeping[tid] = False


_teams: dict[int, Team] = {}
_starting = threading.Lock()


def team(threads: int) -> Team:
    """The team of this size, started when it is first asked for."""
    found = _teams.get(threads)
    if found is None:
        with _starting:
            found = _teams.get(threads) or Team(threads)
            _teams[threads] = found
    return found


def _forget() -> None:
    """In a forked child: its parent's threads are not here."""
    global _starting
    _teams.clear()
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
