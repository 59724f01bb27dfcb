"""Handwritten digits: train a classifier natively, and look at what it has learnt.

    python examples/train_digits.py [--mode native|interpret] [--epochs 40] [--out digits.png]

Data: the UCI digits that scikit-learn carries, 1797 images of 8x8 pixels. A fifth is held out for validation.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import graphc as gx
from graphc import nn, optim

Array = np.ndarray[Any, Any]


class Net(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x: gx.Tensor) -> gx.Tensor:
        x = gx.relu(self.fc1(x))
        x = gx.relu(self.fc2(x))
        return self.fc3(x)


def load(seed: int) -> tuple[Array, Array, Array, Array]:
    """Training images and labels, validation images and labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images, labels = digits.data[order].astype(np.float32) / 16, digits.target[order].astype(np.int64)
    held_out = len(labels) // 5
    return images[held_out:], labels[held_out:], images[:held_out], labels[:held_out]


def draw(file: Path, losses: list[float], accuracies: list[float], images: Array, found: Array, labels: Array) -> None:
    """A picture: loss and accuracy by epoch, and some predictions, mistakes first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 2])
    left, right = upper.subplots(1, 2)
    left.plot(range(1, len(losses) + 1), losses)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    right.plot(range(1, len(accuracies) + 1), accuracies, color="tab:green")
    right.set(xlabel="epoch", ylabel="validation accuracy", ylim=(min(0.9, min(accuracies)), 1.0))
    shown = np.argsort(found == labels, kind="stable")[:12]
    for axes, number in zip(lower.subplots(1, 12), shown, strict=True):
        axes.imshow(images[number].reshape(8, 8), cmap="gray_r")
        right_answer = found[number] == labels[number]
        axes.set_title(f"{found[number]}", color="black" if right_answer else "tab:red")
        axes.set_xlabel("" if right_answer else f"is {labels[number]}")
        axes.set(xticks=[], yticks=[])
    lower.suptitle("predictions (wrong ones in red)")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Train, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("native", "interpret", "check"), default="native")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    options = parser.parse_args()

    gx.manual_seed(options.seed)
    train_x, train_y, test_x, test_y = load(options.seed)

    x = gx.placeholder("x", ("batch", 64))
    label = gx.placeholder("label", ("batch",), gx.int64)
    net = Net()
    logits = net(x)
    loss = nn.CrossEntropyLoss()(logits, label)
    optimizer = optim.SGD(net.parameters(), lr=options.lr, momentum=0.9)

    step = gx.compile([x, label], loss, updates=optimizer.minimize(loss), mode=options.mode)
    classify = gx.compile([x], gx.argmax(logits, 1), mode=options.mode, name="classify")

    random = np.random.default_rng(options.seed)
    losses, accuracies, times = [], [], []
    live = sys.stdout.isatty()
    for epoch in range(1, options.epochs + 1):
        if epoch == options.epochs * 3 // 4:
            optimizer.lr /= 10
        start = time.perf_counter()
        steps = step.epoch(train_x, train_y, batch_size=options.batch, seed=random)
        times.append((time.perf_counter() - start) / len(steps))
        losses.append(float(np.mean(steps)))
        accuracies.append(float(np.mean(classify(test_x) == test_y)))
        done = "#" * (30 * epoch // options.epochs)
        line = f"epoch {epoch:3d}  [{done:<30}]  loss {losses[-1]:.6f}  validation accuracy {accuracies[-1]:.4f}"
        print(line, end="\r" if live and epoch < options.epochs else "\n", flush=True)

    found = classify(test_x)
    print(f"validation accuracy {np.mean(found == test_y):.4f} on {len(test_y)} images that were not trained on")
    print(f"{np.median(times) * 1e6:.0f} µs per step of {options.batch} images ({options.mode})")
    if options.mode != "interpret":
        print(f"arena {step.plan.arena_bytes} bytes")
    draw(options.out, losses, accuracies, test_x, found, test_y)
    print(f"picture in {options.out}")


if __name__ == "__main__":
    main()
