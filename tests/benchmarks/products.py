"""Contractions against NumPy's BLAS: the products of training, and small ones.

    python tests/benchmarks/products.py [--threads 2] [--seconds 0.2] [--only large small] [--out FILE]

large    one product, on so many threads
stacked  many small independent products in one call, on one thread: the native code
single   one small product in a call that returns a new array, on one thread: Python's share of the time included
bound    the same on arrays that are bound once (`function.bind`), against NumPy's matmul with `out=`

Both sides get the same arrays and work in turns, after a pause in which the other's threads fall asleep; the ratio is
NumPy's median over graphc's. The large shapes are of DeepBench's training set (github.com/baidu-research/DeepBench,
code/kernels/gemm_problems.h), up to 2 GFLOP, and of layers of multi-layer perceptrons, convolutions, LSTMs and
transformers with their gradients. Shapes are rows x columns x depth of row-major arrays: DeepBench counts in columns,
so its M, N, K read N, M, K here.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import graphc as gx

Array = np.ndarray[Any, Any]
SPECS = {"nn": "mk,kn->mn", "nt": "mk,nk->mn", "tn": "km,kn->mn"}  # n: as it is multiplied; t: transposed in memory
TURNS = 3
LOOK = 0.02  # seconds; a process at rest uses a tenth of them at most
STACK = 2 * 1024 * 1024  # bytes of a stack of small products: long enough for the call itself not to matter


@dataclass(frozen=True)
class Product:
    """rows x cols = rows x deep times deep x cols."""

    rows: int
    cols: int
    deep: int
    form: str
    what: str

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.cols * self.deep

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}x{self.deep} {self.form}"

    def stack(self, itemsize: int) -> int:
        """How many fit STACK."""
        size = itemsize * (self.rows * self.cols + self.rows * self.deep + self.deep * self.cols)
        return max(1, STACK // size)


LARGE = (
    Product(16, 1760, 1760, "nn", "DeepBench, vanilla RNN"),
    Product(64, 1760, 1760, "nn", "DeepBench, vanilla RNN"),
    Product(128, 1760, 1760, "nt", "DeepBench, vanilla RNN"),
    Product(32, 2048, 2048, "nn", "DeepBench, vanilla RNN"),
    Product(128, 2048, 2048, "nt", "DeepBench, vanilla RNN"),
    Product(64, 2560, 2560, "nt", "DeepBench, vanilla RNN"),
    Product(32, 4096, 4096, "nn", "DeepBench, vanilla RNN"),
    Product(16, 4096, 4096, "nt", "DeepBench, vanilla RNN"),
    Product(8457, 35, 1760, "nn", "DeepBench, speech"),
    Product(8457, 35, 2048, "nt", "DeepBench, speech"),
    Product(32, 7680, 2560, "nn", "DeepBench, GRU"),
    Product(16, 7680, 2560, "nt", "DeepBench, GRU"),
    Product(64, 3072, 1024, "nn", "DeepBench, GRU"),
    Product(128, 3072, 1024, "nt", "DeepBench, GRU"),
    Product(256, 1024, 784, "nt", "MLP, forward"),
    Product(256, 1024, 1024, "nn", "MLP, gradient of the input"),
    Product(1024, 1024, 256, "tn", "MLP, gradient of the weight"),
    Product(128, 784, 8192, "tn", "MLP, gradient of the weight, large batch"),
    Product(8192, 128, 784, "nt", "MLP, forward, large batch"),
    Product(8192, 10, 128, "nt", "MLP, last layer"),
    Product(10, 128, 8192, "tn", "MLP, last layer, gradient of the weight"),
    Product(7744, 64, 288, "nt", "convolution as windows, forward"),
    Product(64, 288, 7744, "tn", "convolution as windows, gradient of the filter"),
    Product(32768, 16, 144, "nt", "convolution as windows, few channels"),
    Product(32, 1024, 256, "nt", "LSTM, one step"),
    Product(1024, 256, 1600, "tn", "LSTM, gradient of the weight"),
    Product(2048, 512, 128, "nt", "transformer, feed-forward"),
    Product(512, 128, 2048, "tn", "transformer, gradient of the weight"),
)
SMALL = (
    Product(4, 4, 4, "nn", "small"),
    Product(8, 8, 8, "nn", "small"),
    Product(3, 5, 7, "nn", "small"),
    Product(16, 16, 16, "nn", "small"),
    Product(13, 29, 61, "nn", "small"),
    Product(32, 32, 32, "nn", "small"),
    Product(48, 48, 48, "nt", "small"),
    Product(64, 64, 64, "nn", "small"),
    Product(64, 64, 64, "nt", "small"),
    Product(64, 64, 64, "tn", "small"),
    Product(64, 10, 64, "nt", "small"),
    Product(10, 64, 64, "tn", "small"),
    Product(64, 64, 10, "nn", "small"),
    Product(64, 1, 64, "nn", "small"),
    Product(1, 64, 64, "nt", "small"),
    Product(16, 64, 8, "tn", "small"),
    Product(24, 40, 56, "nt", "small"),
)
Call = Callable[[], Any]


def pair(product: Product, dtype: Any, threads: int, how: str) -> tuple[Call, Call]:
    """(graphc's call, NumPy's call), which write where they wrote before, or for "single" return a new array."""
    left, right = SPECS[product.form].partition("->")[0].split(",")
    sizes = {"m": product.rows, "n": product.cols, "k": product.deep}
    stack = (product.stack(np.dtype(dtype).itemsize),) if how == "stacked" else ()
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((*stack, *(sizes[x] for x in part))).astype(dtype) for part in (left, right))
    z = "z" * len(stack)
    spec = f"{z}{left},{z}{right}->{z}mn"
    x, y = (gx.placeholder(name, array.shape, array.dtype) for name, array in (("a", a), ("b", b)))
    ta, tb = (array.swapaxes(-1, -2) if turned == "t" else array for array, turned in zip((a, b), product.form))
    wanted = np.matmul(ta, tb)
    out = np.empty_like(wanted)
    if how in ("single", "bound"):
        function = gx.compile([x, y], gx.einsum(spec, x, y), threads=threads)
        own: Call = function.bind(a, b) if how == "bound" else lambda: function(a, b)
        found = own()
    else:
        held = gx.Buffer(np.zeros_like(wanted))
        update = gx.compile([x, y], [], {held: gx.einsum(spec, x, y)}, threads=threads)
        update(a, b)
        found, own = held.data, lambda: update(a, b)
    other: Call = (lambda: np.matmul(ta, tb)) if how == "single" else lambda: np.matmul(ta, tb, out=out)
    tolerance = 4 * product.deep * np.finfo(dtype).eps  # of sums in another order: steps and partial sums of sqrt(deep)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=float(tolerance))
    return own, other


def rest() -> None:
    """Wait until no thread of this process works: OpenBLAS's spin after a call, for 25 or 100 ms as it was built, and
    would take a processor from the next contender."""
    working = True
    while working:
        before = time.process_time()
        time.sleep(LOOK)
        working = time.process_time() - before > LOOK / 10


def compare(calls: Sequence[Call], seconds: float) -> list[float]:
    """Median seconds of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(TURNS):
        for call, found in zip(calls, times, strict=True):
            rest()
            found += turn(call, seconds / TURNS)
    return [median(found) for found in times]


def turn(call: Call, seconds: float) -> list[float]:
    """Seconds of a call, again and again: each of a few that together take long enough for the clock."""
    start = time.perf_counter()
    for _ in range(3):
        call()
    count = max(1, round(5e-5 / ((time.perf_counter() - start) / 3)))
    found = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not found:
        start = time.perf_counter()
        for _ in range(count):
            call()
        found.append((time.perf_counter() - start) / count)
    return found


def section(title: str, products: Sequence[Product], threads: int, seconds: float) -> list[dict[str, Any]]:
    """Measure and print a group of products, in both float types."""
    print(f"\n{title}, {threads} thread{'s' * (threads > 1)}\n{'':22}{'float32':>24}{'float64':>30}", flush=True)
    records = []
    for product in products:
        text = f"{product!s:22}"
        for dtype in (np.float32, np.float64):
            with threadpool_limits(threads, user_api="blas"):
                own, other = compare(pair(product, dtype, threads, title), seconds)
            work = product.flops * (product.stack(np.dtype(dtype).itemsize) if title == "stacked" else 1)
            text += f"{other / own:8.2f} x {work / own / 1e9:7.1f} GFLOP/s    "
            records.append(
                {"section": title, "product": str(product), "dtype": dtype.__name__, "seconds": own, "numpy": other}
            )
        print(text, product.what, flush=True)
    means = [
        geometric_mean(r["numpy"] / r["seconds"] for r in records if r["dtype"] == dtype.__name__)
        for dtype in (np.float32, np.float64)
    ]
    print(f"{'geometric mean':22}{means[0]:8.2f} x{means[1]:28.2f} x", flush=True)
    return records


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the large ones")
    parser.add_argument("--seconds", type=float, default=0.2, help="of calls, for each product, type and contender")
    parser.add_argument("--only", nargs="+", default=["large", "small"], choices=["large", "small"])
    parser.add_argument("--out", help="write OUT.json")
    options = parser.parse_args()
    records = []
    if "large" in options.only:
        records += section("large", LARGE, options.threads, options.seconds)
    if "small" in options.only:
        for title in ("stacked", "single", "bound"):
            records += section(title, SMALL, 1, options.seconds)
    if options.out:
        Path(f"{options.out}.json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
