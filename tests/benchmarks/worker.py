"""One contender on one workload, in a process of its own: `worker.py CONTENDER WORKLOAD KIND THREADS ARRAYS.npz`.

Commands come as lines on standard input, answers go as lines of JSON on standard output:

    start          {"first": seconds from import to the first finished step, "losses": of three steps, "bytes": peak}
    run SECONDS    {"times": seconds of each step}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Serve until standard input ends."""
    contender, workload, kind, threads, file = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = threads
    import numpy as np

    with np.load(file) as arrays:
        given = {name[6:]: arrays[name] for name in arrays.files if name.startswith("given/")}
        state = {name[6:]: arrays[name] for name in arrays.files if name.startswith("state/")}
    step: Any = None
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "start":
            before = _peak()
            try:
                start = time.perf_counter()
                step = _build(contender, workload, kind, given, state, int(threads))
                losses = [_number(step())]
                first = time.perf_counter() - start
                losses += [_number(step()) for _ in range(2)]
            except Exception as error:
                print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:200]}"}), file=answers)
                return
            answer: dict[str, Any] = {"first": first, "losses": losses, "bytes": _peak() - before}
        else:
            times: list[float] = []
            end = time.perf_counter() + float(rest[0])
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
            answer = {"times": times}
        print(json.dumps(answer), file=answers)


def _peak() -> int:
    """Bytes; getrusage would tell the parent's where that was higher."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _number(result: Any) -> float:
    while isinstance(result, list | tuple):
        result = result[0]
    return float(result.sum()) if getattr(result, "ndim", 0) else float(result)


def _build(contender: str, workload: str, kind: str, given: Any, state: Any, threads: int) -> Any:
    library, _, variant = contender.partition("-")
    if library == "graphc":
        import workloads

        return workloads.steps(workloads.WORKLOADS[workload], given, state, threads)
    module = __import__(f"peer_{library}")
    return module.build(variant, workload, kind, given, state, threads)


if __name__ == "__main__":
    main()
