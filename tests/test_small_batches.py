"""Steps on a few samples: blocks that stand alone, whatever the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from networks import NETWORKS, Training

import graphc as gx
from graphc import nn, ops, optim, testing
from graphc.codegen.emit import emit
from graphc.ir.graph import Value, build
from graphc.ir.types import DType, TensorType
from graphc.loops.lower import lower
from graphc.loops.schedule import parse
from graphc.loops.target import AVX2
from graphc.loops.verify import verify

EXTRA = {"rows": " buffer=16384", "columns": ""}


@pytest.mark.parametrize("batch", [1, 2, 3, *(pytest.param(n, marks=pytest.mark.fuzz) for n in (4, 5, 6, 7))])
@pytest.mark.parametrize("name", NETWORKS)
def test_small_batches_give_the_same_bits_on_any_number_of_threads(name: str, batch: int) -> None:
    shared = Training(name, 2, batch)
    testing.assert_matches_interpreter(shared.step, *shared.feeds)
    found = [training.run(3) for training in (Training(name, 1, batch), shared)]
    for key, array in found[0].items():
        assert array.tobytes() == found[1][key].tobytes(), key


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("batch", [2, 3])
def test_rows_that_are_left_over_beside_blocks_of_them(batch: int, threads: int) -> None:
    """The pooled gradient of a bias and what it is summed from: 22 rows in 3 blocks of 7 and one of 1 at batch 2."""
    gx.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 10)
    )  # fmt: skip
    random = np.random.default_rng(0)
    images, labels = random.standard_normal((batch, 32, 13, 13)).astype(np.float32), random.integers(0, 10, batch)
    x, label = (gx.placeholder(n, a.shape, a.dtype) for n, a in (("x", images), ("label", labels)))
    loss = nn.CrossEntropyLoss()(net(x), label)
    step = gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), lr=0.01).minimize(loss), threads=threads)
    testing.assert_matches_interpreter(step, images, labels)


@pytest.mark.parametrize("kind", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(rows, columns) for rows in (1, 2, 7, 22) for columns in (1, 3, 64, 70)])
def test_any_number_of_blocks_can_be_shared(shape: tuple[int, int], kind: str) -> None:
    """Values stored and summed down their columns in one sweep; emitting raises where that cannot be divided."""
    x, w = Value(TensorType(DType.F32, shape)), Value(TensorType(DType.F32, shape[1:]))
    y = ops.tanh(x)
    body = build("f", [x, w], [y, ops.sub(w, ops.reduce_sum(y, axes=(0,)))])
    for blocks in range(1, 9):
        function = lower(body, "f", AVX2, parse(f"{kind} lanes=8 unroll=4 blocks={blocks}" + EXTRA[kind]))
        verify(function)
        assert "define void @f" in emit(function, AVX2, threaded=True)
