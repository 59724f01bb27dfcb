"""Where compile time goes: seconds of each stage, for the workloads and for graphs that grow.

    python tests/benchmarks/compile_time.py [WORKLOAD | GRAPH:NODES ...] [--threads 2]

The stages follow each other here, while `graphc.compile` makes machine code of the first kernels as it writes the
others, on all processors: `first` is what a user waits for, from building the tensors to the end of the first step, in
a process that has compiled before. The growing graphs show how each stage's time follows the number of nodes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import workloads
from workloads import ALL, WORKLOADS

import graphc as gx
from graphc import nn, optim, pipeline
from graphc.codegen import jit
from graphc.codegen import step as code
from graphc.ir.binding import bind
from graphc.passes import manager
from graphc.plan import make
from graphc.runtime.executable import symbols

SIZES = (1_000, 3_000, 10_000)
STAGES = ("trace", *pipeline.PASSES, "lower", "plan", "emit", "llvm")


class Block(nn.Module):
    """A residual block: layer norm, and a linear layer with gelu."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        return x + gx.gelu(self.linear(self.norm(x)))


def residual(nodes: int) -> Any:
    """Training of a deep residual network: every layer has the same shape."""
    x, label = gx.placeholder("x", (8, 32)), gx.placeholder("label", (8,), gx.int64)
    net = nn.Sequential(*[Block(32) for _ in range(max(1, nodes // 93))], nn.Linear(32, 10))
    loss = nn.CrossEntropyLoss()(net(x), label)
    return gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), lr=0.01).minimize(loss), threads=1)


def chain(nodes: int) -> Any:
    """One long chain of elementwise work."""
    x = value = gx.placeholder("x", (64,))
    for number in range(nodes):
        value = gx.tanh(value) if number % 2 else value * x
    return gx.compile([x], value, threads=1)


GRAPHS: dict[str, Callable[[int], Any]] = {"residual": residual, "chain": chain}


def stages(make_function: Callable[[], Any], threads: int) -> dict[str, float]:
    """Seconds of each stage, one after the other; counts of what was compiled."""
    found, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        found[name], start = now - start, now

    function = make_function()
    lap("trace")
    target, graph = jit.host_target(), bind(function.graph, {})
    start = time.perf_counter()
    fused, ledger = manager.run(graph, pipeline.PASSES)
    lap("passes")
    found |= {row.name: row.seconds for row in ledger.rows}
    kernels = pipeline.lower_kernels(fused, target)
    lap("lower")
    plan = make(fused, {node: code.scratch_bytes(kernel) for node, kernel in kernels.items()})
    lap("plan")
    texts = list(code.emit_kernels(dict.fromkeys(kernels.values()), target, threaded=threads > 1))
    texts.append(code.emit_entry(plan, kernels, threaded=threads > 1))
    lap("emit")
    jit.compile_all(texts, symbols(threads), 1)
    lap("llvm")
    distinct = {kernel.name for kernel in kernels.values()}
    size = sum(map(len, texts)) / 1e3
    return found | {"nodes": len(graph.nodes), "kernels": len(distinct), "calls": len(plan.calls), "kB": size}


def first(make_step: Callable[[], Callable[[], Any]]) -> float:
    """Seconds from building the tensors to the end of the first step."""
    start = time.perf_counter()
    make_step()()
    return time.perf_counter() - start


def measure(name: str, threads: int) -> dict[str, float]:
    """The line of a workload, or of `GRAPH:NODES`."""
    if name in ALL:
        workload = ALL[name]
        given, state = workload.arrays(), workloads.parameters(workload)

        def step() -> Callable[[], Any]:
            return workloads.steps(workload, given, state, threads)

        return stages(lambda: workloads.function(workload, given, state, threads), threads) | {"first": first(step)}
    graph, _, size = name.partition(":")

    def small() -> Callable[[], Any]:
        function = GRAPHS[graph](int(size))
        arrays = [np.zeros(value.type.extents, value.dtype.numpy) for value in function.graph.inputs]
        return lambda: function(*arrays)

    return stages(lambda: GRAPHS[graph](int(size)), 1) | {"first": first(small)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(WORKLOADS)}, {', '.join(GRAPHS)}:NODES")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    names = options.names or [*WORKLOADS, *(f"{graph}:{size}" for graph in GRAPHS for size in SIZES)]
    columns = ("nodes", "calls", "kernels", "kB")
    print(f"{'ms':16}", *(f"{name:>9}" for name in (*columns, *STAGES, "first")))
    for name in names:
        line = measure(name, options.threads)
        counts, times = (line[c] for c in columns), (1e3 * line[s] for s in (*STAGES, "first"))
        print(f"{name:16}", *(f"{n:9.0f}" for n in counts), *(f"{t:9.1f}" for t in times), flush=True)


if __name__ == "__main__":
    main()
