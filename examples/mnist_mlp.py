"""784-128-10 on MNIST-shaped data: 60000 rows, cross entropy, SGD with lr 0.01.

    python examples/mnist_mlp.py [directory] [--batch 64] [--epochs 1]

`directory` holds MNIST's four IDX files (plain or .gz); without one the data are random numbers of that shape.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path
from typing import Any

import numpy as np

import graphc as gx
from graphc import nn, optim

Array = np.ndarray[Any, Any]
ROWS, PIXELS, CLASSES = 60000, 784, 10


def read_idx(directory: Path, stem: str) -> Array:
    """The array in an IDX file: two zero bytes, type 8 (uint8), rank, big-endian extents, elements."""
    found = [path for path in (directory / stem, directory / f"{stem}.gz") if path.exists()]
    if not found:
        raise SystemExit(f"no {stem} or {stem}.gz in {directory}")
    raw = gzip.decompress(found[0].read_bytes()) if found[0].suffix == ".gz" else found[0].read_bytes()
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{found[0]} is not an IDX file of bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4)
    if len(raw) != 4 + 4 * rank + int(np.prod(shape)):
        raise SystemExit(f"{found[0]} is cut short")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(directory: Path | None, seed: int) -> tuple[Array, Array, Array, Array]:
    """Training images in [0, 1] and labels, test images and labels."""
    if directory is None:
        random = np.random.default_rng(seed)
        teacher = random.standard_normal((PIXELS, CLASSES)).astype(np.float32)
        images = random.random((ROWS + ROWS // 6, PIXELS), np.float32)
        labels = np.argmax((images - 0.5) @ teacher, 1)
        return images[:ROWS], labels[:ROWS], images[ROWS:], labels[ROWS:]
    train, test = (read_idx(directory, f"{part}-images-idx3-ubyte") for part in ("train", "t10k"))
    labels, answers = (read_idx(directory, f"{part}-labels-idx1-ubyte") for part in ("train", "t10k"))
    flat = [a.reshape(len(a), -1).astype(np.float32) / 255 for a in (train, test)]
    return flat[0], labels.astype(np.int64), flat[1], answers.astype(np.int64)


def main() -> None:
    """Train for some epochs, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    gx.manual_seed(options.seed)
    train_x, train_y, test_x, test_y = load(options.directory, options.seed)
    x = gx.placeholder("x", ("batch", PIXELS))
    label = gx.placeholder("label", ("batch",), gx.int64)
    net = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    logits = net(x)
    loss = nn.CrossEntropyLoss()(logits, label)
    step = gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), lr=0.01).minimize(loss))
    accuracy = gx.compile([x, label], gx.mean(gx.equal(gx.argmax(logits, 1), label)), name="accuracy")

    random = np.random.default_rng(options.seed)
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        losses = step.epoch(train_x, train_y, batch_size=options.batch, seed=random)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch}: loss {losses[0]:.4f} -> {np.mean(losses[-50:]):.4f}, "
            f"test accuracy {accuracy(test_x, test_y):.4f}, {seconds / len(losses) * 1e6:.0f} µs per step"
        )
    print(step.profile(train_x[: options.batch], train_y[: options.batch]))


if __name__ == "__main__":
    main()
