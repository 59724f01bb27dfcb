"""The MLP training step against PyTorch: alternating in one process, medians and their ratio.

    python tests/benchmarks/mlp.py [--threads 1] [--seconds 5]

Prints one line per batch size; the losses of both must agree. Needs the extra `peers`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="per batch size")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    print(f"{'workload':12} {'graphc ms':>10} {'torch ms':>10} {'torch / graphc':>15}")
    for batch in (64, 60000):
        ours, theirs = steps(batch, options.threads)
        for _ in range(3):
            a, b = float(ours()), float(theirs())
            if abs(a - b) > 1e-4:
                sys.exit(f"batch {batch}: losses differ, {a} and {b}")
        first, second = alternate(ours, theirs, options.seconds)
        print(f"batch {batch:<6} {first * 1e3:10.3f} {second * 1e3:10.3f} {second / first:15.2f}")


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Median seconds of both, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for call, found in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    first, second = (sorted(found)[len(found) // 2] for found in times)
    return first, second


def steps(batch: int, threads: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One training step of graphc and one of torch, from equal weights on equal data."""
    import numpy as np
    import torch

    import graphc as gx
    from graphc import nn, optim

    torch.set_num_threads(threads)
    gx.manual_seed(0)
    random = np.random.default_rng(0)
    images, labels = random.standard_normal((batch, 784)).astype(np.float32), random.integers(0, 10, batch)
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    x, label = gx.placeholder("x", ("batch", 784)), gx.placeholder("label", ("batch",), gx.int64)
    loss = nn.CrossEntropyLoss()(net(x), label)
    step = gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), lr=0.01).minimize(loss), threads=threads)
    theirs = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    theirs.load_state_dict({name: torch.tensor(array) for name, array in net.state_dict().items()})
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01)
    given, classes = torch.tensor(images), torch.tensor(labels)

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.nn.functional.cross_entropy(theirs(given), classes)
        total.backward()
        optimizer.step()
        return float(total)

    return lambda: step(images, labels), train


if __name__ == "__main__":
    main()
