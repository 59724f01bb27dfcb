"""Nanoseconds to come from Python into a step and back: calls, bound calls, epochs, and what the peers take.

    python tests/benchmarks/dispatch.py [--rounds 20]

Calls on one thread, in one process, in turns; the least of all rounds, as everything else is noise. `tiny` is a dot
product of 4 numbers (a few nanoseconds of work), `infer1` a 784-128-10 network on one row. Peers that are not installed
are left out.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gx
from graphc import nn

Array = np.ndarray[Any, Any]
Step = Callable[[], Any]
CALLS = 2000  # in a round


def seconds(step: Step, calls: int) -> float:
    """Of one call."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def alone(step: gx.Function, *arrays: Array) -> Step:
    """The native function on a table of addresses, and nothing else."""
    native = step.compilation().executable
    outputs = [np.empty(*result) for result in native.results]
    table = native.new_table((*arrays, *(state.data for state in step.state), *outputs))
    place, kept = ctypes.addressof(table), (table, outputs)
    return lambda: native.run(place) if kept else None


def tiny() -> dict[str, Step]:
    """Calls of a step with next to no work."""
    a, b = np.ones(4, np.float32), np.ones(4, np.float32)
    x, y = gx.placeholder("x", (4,)), gx.placeholder("y", (4,))
    step = gx.compile([x, y], gx.sum(x * y), threads=1)
    step(a, b)
    return {
        "graphc call": lambda: step(a, b),
        "graphc bound": step.bind(a, b),
        "native step alone": alone(step, a, b),
        "numpy dot": lambda: np.dot(a, b),
    }


def infer1() -> dict[str, Step]:
    """Calls of a small network, NumPy in and out."""
    gx.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    x = gx.placeholder("x", (1, 784))
    step = gx.compile([x], net(x), threads=1)
    given = np.random.default_rng(0).random((1, 784), np.float32)
    wanted = step(given)
    found: dict[str, Step] = {
        "graphc call": lambda: step(given),
        "graphc bound": step.bind(given),
        "native step alone": alone(step, given),
    }
    state = net.state_dict()
    for peer, build in {"torch": _torch, "onnxruntime": _onnxruntime}.items():
        if importlib.util.find_spec(peer):
            for name, call in build(state, given).items():
                np.testing.assert_allclose(call(), wanted, rtol=1e-4, atol=1e-6)
                found[name] = call
    return found


def _torch(state: dict[str, Array], given: Array) -> dict[str, Step]:
    import torch

    torch.set_num_threads(1)
    first, last = torch.nn.Linear(784, 128), torch.nn.Linear(128, 10)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    @torch.inference_mode()
    def call() -> Any:
        return net(torch.from_numpy(given)).numpy()

    return {"torch": call}


def _onnxruntime(state: dict[str, Array], given: Array) -> dict[str, Step]:
    import onnxruntime
    import peer_onnxruntime

    session = peer_onnxruntime.session(given, state, 1)
    bound = session.io_binding()
    out = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 10), np.float32))
    bound.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(given))
    bound.bind_ortvalue_output(session.get_outputs()[0].name, out)

    def rebound() -> Any:
        session.run_with_iobinding(bound)
        return out.numpy()

    return {"onnxruntime": lambda: session.run(None, {"x": given})[0], "onnxruntime bound": rebound}


def report(title: str, steps: dict[str, Step], rounds: int) -> None:
    """A line for each."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            best[name] = min(best[name], seconds(step, CALLS))
    print(title)
    for name, least in best.items():
        print(f"  {name:20} {least * 1e9:8.0f} ns")


def epochs(rounds: int) -> None:
    """Nanoseconds per step of epochs with next to no work, in order and shuffled."""
    x = gx.placeholder("x", ("batch", 16))
    data = np.ones((100_000, 16), np.float32)
    print("epoch, per step of 4 rows of 64 bytes")
    count = gx.Parameter(np.zeros((), np.float32), "count")
    step = gx.compile([x], x[0, 0] + count, updates={count: count + 1}, threads=1)
    for order, seed in {"in order": None, "shuffled": 0}.items():
        run = functools.partial(step.epoch, data, batch_size=4, seed=seed)
        least = min(seconds(run, 1) for _ in range(rounds))
        print(f"  {order:20} {least / (len(data) / 4) * 1e9:8.0f} ns")


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    report("tiny", tiny(), options.rounds)
    report("infer1", infer1(), options.rounds)
    epochs(options.rounds)


if __name__ == "__main__":
    main()
