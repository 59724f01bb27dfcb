"""What is timed: networks of graphc with their shapes, data and cost. The peers build the same from the same arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import graphc as gx
from graphc import nn, optim

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
LR = 0.01


@dataclass(frozen=True)
class Workload:
    """`arrays` are the inputs by name; `net` has the parameters; `value` is what a step computes from placeholders.

    kind   "train": forward, backward, SGD; "infer": forward; "gradients": value and all gradients
    flops  of one step, as plain arithmetic; operands: bytes that a memory-bound step must move (0: it is not)
    """

    name: str
    kind: str
    arrays: Callable[[], Arrays]
    net: Callable[[], nn.Module]
    value: Callable[[Any, Mapping[str, Any]], Any]
    flops: float
    bytes: float = 0.0


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _normal(*shape: int) -> Array:
    return _rng().standard_normal(shape, np.float32)


def _classified(shape: tuple[int, ...], classes: int) -> Arrays:
    return {"x": _normal(*shape), "label": _rng().integers(0, classes, shape[0])}


def _loss(net: Any, given: Mapping[str, Any]) -> Any:
    return nn.CrossEntropyLoss()(net(given["x"]), given["label"])


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.ReLU()] * (n > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)


def _mlp(name: str, batch: int, *sizes: int) -> Workload:
    products = [2.0 * batch * a * b for a, b in itertools.pairwise(sizes)]
    flops = 3 * sum(products) - products[0]  # nothing needs the gradient of the input
    return Workload(name, "train", lambda: _classified((batch, sizes[0]), sizes[-1]), lambda: mlp(*sizes), _loss, flops)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.bn3 = nn.BatchNorm2d(outputs) if inputs != outputs else None

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(gx.relu(self.bn1(self.conv1(x)))))
        return gx.relu(y + (x if self.short is None or self.bn3 is None else self.bn3(self.short(x))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.fc(gx.mean(self.blocks(gx.relu(self.bn(self.stem(x)))), (2, 3)))


HEADS = 4


class Block(nn.Module):
    """A transformer block: attention and a feed-forward net, each behind a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        parts = self.qkv(self.ln1(x)).reshape(batch, length, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        seen = gx.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.proj(seen.transpose(0, 2, 1, 3).reshape(batch, length, width))
        return x + self.fc2(gx.gelu(self.fc1(self.ln2(x)), "tanh"))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Any) -> Any:
        return self.head(self.ln(self.blocks(self.tokens(x) + self.places.weight)))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 256, batch_first=True), nn.Linear(256, 65)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0])


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(1024)


def _tokens(net: Any, given: Mapping[str, Any]) -> Any:
    return nn.CrossEntropyLoss()(gx.flatten(net(given["x"]), 0, 1), gx.flatten(given["label"]))


def _elementwise(net: Any, given: Mapping[str, Any]) -> Any:
    a, b, d, e = (given[name] for name in "abde")
    return gx.sum(gx.tanh(a * b + d) * gx.sigmoid(e) + gx.exp(-a * a))


def _normed(net: Any, given: Mapping[str, Any]) -> Any:
    return gx.sum(gx.gelu(net.ln(given["x"]), "tanh") * given["w"])


def _conv_flops(shapes: list[tuple[int, int, int, int]], batch: int) -> float:
    """Of (inputs, outputs, window, pixels): forward and both gradients, but for the first."""
    each = [2.0 * batch * a * b * k * k * p for a, b, k, p in shapes]
    return 3 * sum(each) - each[0]


MILLION = 1_000_000
WORKLOADS = {
    w.name: w
    for w in (
        _mlp("mlp_full", 60000, 784, 128, 10),
        _mlp("mlp_64", 64, 784, 128, 10),
        _mlp("mlp_wide", 256, 784, 1024, 1024, 10),
        Workload(
            "mlp_infer1", "infer", lambda: {"x": _normal(1, 784)}, lambda: mlp(784, 128, 10),
            lambda net, given: net(given["x"]), 2.0 * (784 * 128 + 1280), 4.0 * (784 * 128 + 1280),
        ),
        Workload(
            "cnn", "train", lambda: _classified((64, 1, 28, 28), 10), cnn, _loss,
            _conv_flops([(1, 32, 3, 676), (32, 64, 3, 121), (1600, 128, 1, 1), (128, 10, 1, 1)], 64),
        ),
        Workload(
            "resnet", "train", lambda: _classified((32, 3, 32, 32), 10), ResNet, _loss,
            _conv_flops(
                [(3, 16, 3, 1024), (16, 16, 3, 1024), (16, 16, 3, 1024), (16, 32, 3, 256), (32, 32, 3, 256),
                 (16, 32, 1, 256), (32, 64, 3, 64), (64, 64, 3, 64), (32, 64, 1, 64)], 32),
        ),
        Workload(
            "gpt", "train", lambda: {name: _rng().integers(0, 65, (16, 128)) for name in ("x", "label")},
            lambda: GPT(4, 128, 128, 65), _tokens,
            3 * 2.0 * 16 * 128 * (4 * (12 * 128 * 128 + 2 * 128 * 128) + 128 * 65),
        ),
        Workload(
            "lstm", "train",
            lambda: {"x": _normal(32, 50, 64), "label": _rng().integers(0, 65, (32, 50))}, Tagger, _tokens,
            2.0 * 32 * 50 * (3 * (4 * 256 * (64 + 256) + 256 * 65) - 4 * 256 * 64),
        ),
        Workload(
            "elementwise", "infer",
            lambda: {name: np.random.default_rng(n).standard_normal(10 * MILLION, np.float32)
                     for n, name in enumerate("abde")},
            nn.Identity, _elementwise, 80.0 * 10 * MILLION, 160.0 * MILLION,
        ),
        Workload(
            "layernorm", "gradients", lambda: {"x": _normal(4096, 1024), "w": _normal(4096, 1024)[::-1].copy()},
            Norm, _normed, 60.0 * 4096 * 1024, 12.0 * 4096 * 1024,
        ),
    )
}  # fmt: skip


def parameters(workload: Workload) -> Arrays:
    """The initial parameters by torch's names: of the network built from seed 0."""
    gx.manual_seed(0)
    return workload.net().state_dict()


def function(workload: Workload, given: Arrays, state: Arrays, threads: int) -> Any:
    """graphc's function, not yet compiled; its inputs are those of `given`, in order."""
    net = workload.net()
    net.load_state_dict(state)
    places = {name: gx.placeholder(name, array.shape, array.dtype) for name, array in given.items()}
    inputs = list(places.values())
    value = workload.value(net, places)
    match workload.kind:
        case "train":
            updates = optim.SGD(net.parameters(), lr=LR).minimize(value)
            return gx.compile(inputs, value, updates=updates, threads=threads)
        case "infer":
            return gx.compile(inputs, value, threads=threads)
    gradients = gx.grad(value, [*net.parameters(), places["x"]])
    return gx.compile(inputs, [value, *gradients], threads=threads)


def steps(workload: Workload, given: Arrays, state: Arrays, threads: int) -> Callable[[], Any]:
    """One step of graphc."""
    compiled, arrays = function(workload, given, state, threads), list(given.values())
    return lambda: compiled(*arrays)
