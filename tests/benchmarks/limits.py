"""What the machine allows, measured by graphc's own kernels: fused multiply-adds per second, and bytes per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gx

SIDE = 96  # a product that stays in the first-level cache
DEPTH = 96
MEMORY = 64 * 1024 * 1024  # elements, far beyond the caches


def operations(threads: int) -> Callable[[], float]:
    """Measures floating-point operations per second of a product that stays in each core's cache."""
    copies = 64 * threads
    a, b = (gx.placeholder(name, (copies, SIDE, DEPTH)) for name in "ab")
    step = gx.compile([a, b], gx.sum(gx.matmul(a, b)), threads=threads)
    arrays = [np.ones((copies, SIDE, DEPTH), np.float32)] * 2
    return lambda: 2.0 * copies * SIDE * SIDE * DEPTH / _seconds(lambda: step(*arrays))


def bandwidth(threads: int) -> Callable[[], float]:
    """Measures bytes per second that a sum reads."""
    x = gx.placeholder("x", (MEMORY,))
    step = gx.compile([x], gx.sum(x), threads=threads)
    array = np.ones(MEMORY, np.float32)
    return lambda: 4.0 * MEMORY / _seconds(lambda: step(array))


def _seconds(call: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
