"""One contender on one workload, in a process of its own.

    worker.py CONTENDER WORKLOAD FAMILY SIZES KIND THREADS ARRAYS.npz

Commands come as lines on standard input, answers go as lines of JSON on standard output:

    start          {"import": seconds, "first": seconds to build, compile and run a step, "losses": of three steps}
    run SECONDS    {"times": seconds of each step}
    memory         {"bytes": peak of three steps beyond the inputs}, in a process that was asked nothing before

A process may use as many processors as there are threads, so that what counts processors comes to the same number.

Memory is what is resident. The library first builds and runs the same step for a batch of four, so that what it loads,
compiles with and never gives back is there; then it builds the real one and takes its own copies of the arrays. From
there on the peak is counted: the activations and gradients of the steps, and what compiling them takes beyond a small
one (a library that compiles at the first call, not when it builds, is charged for that).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)  # fmt: skip
STEPS = 3


class Contender:
    """A library and what it is to do."""

    def __init__(
        self, name: str, workload: str, family: str, sizes: Sequence[int], kind: str, threads: int, file: str
    ) -> None:
        import numpy as np  # after the environment is set

        self.library, _, self.variant = name.partition("-")
        self.workload, self.threads = workload, threads
        self.task = family, sizes, kind
        with np.load(file) as arrays:
            self.given = {name[6:]: arrays[name] for name in arrays.files if name.startswith("given/")}
            self.state = {name[6:]: arrays[name] for name in arrays.files if name.startswith("state/")}
        self.few = {name: array[:4].copy() for name, array in self.given.items()}
        self.step: Any = None

    def start(self) -> dict[str, Any]:
        """Import, build, and take the first steps."""
        start = time.perf_counter()
        module = self.module()
        ready = time.perf_counter()
        self.step = self.build(module, self.given)
        losses = [_number(self.step())]
        first = time.perf_counter() - ready
        losses += [_number(self.step()) for _ in range(STEPS - 1)]
        return {"import": ready - start, "first": first, "losses": losses}

    def run(self, seconds: str) -> dict[str, Any]:
        """Steps for so long, at least one."""
        times: list[float] = []
        end = time.perf_counter() + float(seconds)
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        return {"times": times}

    def memory(self) -> dict[str, Any]:
        """The peak of some steps."""
        module = self.module()
        step = self.build(module, self.few)
        for _ in range(STEPS):
            step()
        step = self.build(module, self.given)
        _give_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
        for _ in range(STEPS):
            step()
        return {"bytes": _resident("VmHWM") - before}

    def module(self) -> Any:
        return importlib.import_module("workloads" if self.library == "graphc" else f"peer_{self.library}")

    def build(self, module: Any, given: Mapping[str, Any]) -> Any:
        """One step of this contender on these arrays."""
        if self.library == "graphc":
            return module.steps(module.ALL[self.workload], given, self.state, self.threads)
        return module.build(self.variant, *self.task, given, self.state, self.threads)


def main() -> None:
    """Serve until standard input ends."""
    contender, workload, family, sizes, kind, threads, file = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    os.environ |= dict.fromkeys(THREADS, threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    served = Contender(contender, workload, family, json.loads(sizes), kind, int(threads), file)
    commands = {"start": served.start, "run": served.run, "memory": served.memory}
    for line in sys.stdin:
        command, *rest = line.split()
        try:
            print(json.dumps(commands[command](*rest)), file=answers)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:200]}"}), file=answers)
            return


def _resident(field: str) -> int:
    """Bytes; getrusage would tell the parent's where that was higher."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def _give_back() -> None:
    """Free memory returns to the system, else what was used before could be used again unseen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _number(result: Any) -> float:
    while isinstance(result, list | tuple):
        result = result[0]
    return float(result.sum()) if getattr(result, "ndim", 0) else float(result)


if __name__ == "__main__":
    main()
