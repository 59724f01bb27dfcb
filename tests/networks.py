"""Small networks of every family with their training step: the shapes are large enough for threads to share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import graphc as gx
from graphc import nn, optim

Array = np.ndarray[Any, Any]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


class GPT(nn.Module):
    """One causal block, pre-norm, on embedded tokens."""

    def __init__(self, vocabulary: int = 30, length: int = 24, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Any) -> Any:
        x = self.tokens(x) + self.places.weight
        batch, length, width = x.shape
        parts = self.qkv(self.ln1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = (parts.transpose(2, 0, 3, 1, 4)[n] for n in range(3))
        seen = gx.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(seen.transpose(0, 2, 1, 3).reshape(batch, length, width))
        x = x + self.fc2(gx.gelu(self.fc1(self.ln2(x)), "tanh"))
        return gx.flatten(self.head(x), 0, 1)


class LSTM(nn.Module):
    """A tag for every place of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 48, batch_first=True), nn.Linear(48, 12)

    def forward(self, x: Any) -> Any:
        return gx.flatten(self.head(self.lstm(x)[0]), 0, 1)


def _rows(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _classes(count: int, *shape: int) -> Array:
    return np.random.default_rng(1).integers(0, count, shape)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Sequence[Array]]]] = {
    "mlp": (mlp, lambda: (_rows(96, 96), _classes(10, 96))),
    "cnn": (cnn, lambda: (_rows(8, 3, 16, 16), _classes(10, 8))),
    "gpt": (GPT, lambda: (_classes(30, 6, 24), _classes(30, 6 * 24))),
    "lstm": (LSTM, lambda: (_rows(32, 4, 24), _classes(12, 32 * 4))),
}


class Training:
    """A network from seed 0, its compiled step and its data, or the first `batch` samples of it."""

    def __init__(self, name: str, threads: int = 1, batch: int | None = None) -> None:
        make, data = NETWORKS[name]
        gx.manual_seed(0)
        self.net, (samples, labels) = make(), data()
        each = len(labels) // len(samples)
        count = len(samples) if batch is None else batch
        self.feeds = samples[:count], labels[: count * each]
        x, label = (gx.placeholder(n, a.shape, a.dtype) for n, a in zip(("x", "label"), self.feeds, strict=True))
        loss = nn.CrossEntropyLoss()(self.net(x), label)
        updates = optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9).minimize(loss)
        self.step = gx.compile([x, label], loss, updates=updates, threads=threads)

    def run(self, steps: int) -> dict[str, Array]:
        """Parameters and buffers after so many more steps."""
        for _ in range(steps):
            self.step(*self.feeds)
        return {name: array.copy() for name, array in self.net.state_dict().items()}
