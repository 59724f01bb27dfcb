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
LR, CLASSES = 0.01, 10


@dataclass(frozen=True)
class Workload:
    """`arrays` are the inputs by name; `net` has the parameters; `value` is what a step computes from placeholders.

    family  what the peers build, from `sizes`
    kind    "train": forward, backward, SGD; "infer": forward; "gradients": value and all gradients
    flops   of one step, as plain arithmetic; bytes: that a memory-bound step must move (0: it is not)
    """

    name: str
    family: str
    sizes: tuple[int, ...]
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


def cnn(image: int, inputs: int, window: int, hidden: int, *filters: int) -> nn.Module:
    """Convolutions, each with a pooling of 2, and two linear layers."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((inputs, *filters)):
        layers += [nn.Conv2d(a, b, window), nn.ReLU(), nn.MaxPool2d(2)]
        image = (image - window + 1) // 2
    flat = filters[-1] * image * image
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


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
    """A residual block of each width; all but the first halve the image."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        pairs = itertools.pairwise((widths[0], *widths))
        self.blocks = nn.Sequential(*(Residual(a, b, 1 + (n > 0)) for n, (a, b) in enumerate(pairs)))
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Any) -> Any:
        return self.fc(gx.mean(self.blocks(gx.relu(self.bn(self.stem(x)))), (2, 3)))


class Mobile(nn.Module):
    """Depthwise convolutions, each before a 1x1 convolution to the next width; all but the first halve the image."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        pairs = list(itertools.pairwise(widths))
        self.deep = nn.ModuleList(nn.Conv2d(a, a, 3, 1 + (n > 0), 1, 1, a, False) for n, (a, _) in enumerate(pairs))
        self.wide = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in pairs)
        self.bn1, self.bn2 = (nn.ModuleList(nn.BatchNorm2d(pair[k]) for pair in pairs) for k in (0, 1))
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Any) -> Any:
        x = gx.relu6(self.bn(self.stem(x)))
        for deep, bn1, wide, bn2 in zip(self.deep, self.bn1, self.wide, self.bn2, strict=True):
            x = gx.relu6(bn2(wide(gx.relu6(bn1(deep(x))))))
        return self.fc(gx.mean(x, (2, 3)))


class Dense(nn.Module):
    """Convolutions of all that there is, whose results are put beside it."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        widths = [width + n * growth for n in range(layers + 1)]
        self.bn = nn.ModuleList(nn.BatchNorm2d(a) for a in widths[:-1])
        self.conv = nn.ModuleList(nn.Conv2d(a, growth, 3, padding=1, bias=False) for a in widths[:-1])
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for bn, conv in zip(self.bn, self.conv, strict=True):
            x = gx.concat([x, conv(gx.relu(bn(x)))], 1)
        return self.fc(gx.mean(x, (2, 3)))


class Block(nn.Module):
    """A transformer block: attention and a feed-forward net, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        parts = (
            self.qkv(self.ln1(x)).reshape(batch, length, 3, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        )
        seen = gx.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.proj(seen.transpose(0, 2, 1, 3).reshape(batch, length, width))
        return x + self.fc2(gx.gelu(self.fc1(self.ln2(x)), "tanh"))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Any) -> Any:
        return self.head(self.ln(self.blocks(self.tokens(x) + self.places.weight)))


class Tagger(nn.Module):
    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(inputs, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0])


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)


def _tokens(net: Any, given: Mapping[str, Any]) -> Any:
    return nn.CrossEntropyLoss()(gx.flatten(net(given["x"]), 0, 1), gx.flatten(given["label"]))


def _elementwise(net: Any, given: Mapping[str, Any]) -> Any:
    a, b, d, e = (given[name] for name in "abde")
    return gx.sum(gx.tanh(a * b + d) * gx.sigmoid(e) + gx.exp(-a * a))


def _normed(net: Any, given: Mapping[str, Any]) -> Any:
    return gx.sum(gx.gelu(net.ln(given["x"]), "tanh") * given["w"])


# Families: a workload of some sizes ------------------------------------------------------------------------------


def _mlp(name: str, batch: int, *sizes: int) -> Workload:
    products = [2.0 * batch * a * b for a, b in itertools.pairwise(sizes)]
    flops = 3 * sum(products) - products[0]  # nothing needs the gradient of the input
    return Workload(
        name, "mlp", sizes, "train", lambda: _classified((batch, sizes[0]), sizes[-1]), lambda: mlp(*sizes), _loss,
        flops,
    )  # fmt: skip


def _infer(name: str, batch: int, *sizes: int) -> Workload:
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    return Workload(
        name, "infer", sizes, "infer", lambda: {"x": _normal(batch, sizes[0])}, lambda: mlp(*sizes),
        lambda net, given: net(given["x"]), 2.0 * batch * weights, 4.0 * weights,
    )  # fmt: skip


def _conv_flops(shapes: list[tuple[int, int, int, int]], batch: int) -> float:
    """Of (inputs, outputs, window, pixels): forward and both gradients, but for the first."""
    each = [2.0 * batch * a * b * k * k * p for a, b, k, p in shapes]
    return 3 * sum(each) - each[0]


def _cnn(name: str, batch: int, image: int, inputs: int, window: int, hidden: int, *filters: int) -> Workload:
    shapes, size = [], image
    for a, b in itertools.pairwise((inputs, *filters)):
        shapes.append((a, b, window, (size - window + 1) ** 2))
        size = (size - window + 1) // 2
    shapes += [(filters[-1] * size * size, hidden, 1, 1), (hidden, CLASSES, 1, 1)]
    sizes = (image, inputs, window, hidden, *filters)
    return Workload(
        name, "cnn", sizes, "train", lambda: _classified((batch, inputs, image, image), CLASSES), lambda: cnn(*sizes),
        _loss, _conv_flops(shapes, batch),
    )  # fmt: skip


def _resnet(name: str, batch: int, image: int, *widths: int) -> Workload:
    shapes = [(3, widths[0], 3, image**2)]
    for n, (a, b) in enumerate(itertools.pairwise((widths[0], *widths))):
        pixels = (image >> n) ** 2
        shapes += [(a, b, 3, pixels), (b, b, 3, pixels), *[(a, b, 1, pixels)] * (a != b)]
    return Workload(
        name, "resnet", widths, "train", lambda: _classified((batch, 3, image, image), CLASSES),
        lambda: ResNet(*widths), _loss, _conv_flops(shapes, batch),
    )  # fmt: skip


def _mobile(name: str, batch: int, image: int, *widths: int) -> Workload:
    shapes = [(3, widths[0], 3, image**2)]
    for n, (a, b) in enumerate(itertools.pairwise(widths)):
        shapes += [(1, a, 3, (image >> n) ** 2), (a, b, 1, (image >> n) ** 2)]
    return Workload(
        name, "mobile", widths, "train", lambda: _classified((batch, 3, image, image), CLASSES),
        lambda: Mobile(*widths), _loss, _conv_flops(shapes, batch),
    )  # fmt: skip


def _dense(name: str, batch: int, image: int, width: int, growth: int, layers: int) -> Workload:
    shapes = [(3, width, 3, image**2), *((width + n * growth, growth, 3, image**2) for n in range(layers))]
    sizes = width, growth, layers
    return Workload(
        name, "dense", sizes, "train", lambda: _classified((batch, 3, image, image), CLASSES),
        lambda: Dense(*sizes), _loss, _conv_flops(shapes, batch),
    )  # fmt: skip


def _gpt(name: str, batch: int, layers: int, width: int, heads: int, length: int, vocabulary: int) -> Workload:
    each = layers * (12 * width * width + 2 * length * width) + width * vocabulary
    sizes = layers, width, heads, length, vocabulary
    return Workload(
        name, "gpt", sizes, "train",
        lambda: {name: _rng().integers(0, vocabulary, (batch, length)) for name in ("x", "label")},
        lambda: GPT(*sizes), _tokens, 3 * 2.0 * batch * length * each,
    )  # fmt: skip


def _lstm(name: str, batch: int, length: int, inputs: int, hidden: int, classes: int) -> Workload:
    each = 3 * (4 * hidden * (inputs + hidden) + hidden * classes) - 4 * hidden * inputs
    sizes = inputs, hidden, classes
    return Workload(
        name, "lstm", sizes, "train",
        lambda: {"x": _normal(batch, length, inputs), "label": _rng().integers(0, classes, (batch, length))},
        lambda: Tagger(*sizes), _tokens, 2.0 * batch * length * each,
    )  # fmt: skip


def _maps(name: str, count: int) -> Workload:
    return Workload(
        name, "elementwise", (), "infer",
        lambda: {name: np.random.default_rng(n).standard_normal(count, np.float32) for n, name in enumerate("abde")},
        nn.Identity, _elementwise, 80.0 * count, 16.0 * count,
    )  # fmt: skip


def _norm(name: str, rows: int, width: int) -> Workload:
    return Workload(
        name, "layernorm", (width,), "gradients",
        lambda: {"x": _normal(rows, width), "w": _normal(rows, width)[::-1].copy()}, lambda: Norm(width), _normed,
        60.0 * rows * width, 12.0 * rows * width,
    )  # fmt: skip


WORKLOADS = {
    w.name: w
    for w in (
        _mlp("mlp_full", 60000, 784, 128, 10),
        _mlp("mlp_64", 64, 784, 128, 10),
        _mlp("mlp_wide", 256, 784, 1024, 1024, 10),
        _infer("mlp_infer1", 1, 784, 128, 10),
        _cnn("cnn", 64, 28, 1, 3, 128, 32, 64),
        _resnet("resnet", 32, 32, 16, 32, 64),
        _gpt("gpt", 16, 4, 128, 4, 128, 65),
        _lstm("lstm", 32, 50, 64, 256, 65),
        _maps("elementwise", 10_000_000),
        _norm("layernorm", 4096, 1024),
    )
}

OTHERS = {
    w.name: w
    for w in (
        _mlp("mlp_tiny", 32, 64, 32, 10),
        _mlp("mlp_deep", 128, 256, 256, 256, 256, 256, 256, 10),
        _mlp("mlp_odd", 100, 300, 201, 99, 51, 7),
        _mlp("mlp_large", 4096, 512, 512, 512, 100),
        _mlp("mlp_pyramid", 1000, 2000, 500, 100, 20, 2),
        _infer("infer_8", 8, 784, 128, 10),
        _infer("infer_wide", 1, 512, 1024, 1024, 100),
        _infer("infer_256", 256, 784, 256, 256, 10),
        _cnn("cnn_lenet", 128, 28, 1, 5, 84, 6, 16),
        _cnn("cnn_color", 32, 32, 3, 3, 256, 32, 64),
        _cnn("cnn_deep", 16, 64, 3, 3, 128, 32, 64, 128),
        _resnet("resnet_wide", 16, 32, 64, 128),
        _resnet("resnet_deep", 8, 64, 32, 64, 128, 256),
        _resnet("resnet_narrow", 128, 16, 8, 16, 32),
        _resnet("resnet_full", 16, 32, 64, 128, 256, 512),
        _mobile("mobile", 32, 32, 32, 64, 128, 256),
        _dense("dense", 16, 32, 24, 12, 6),
        _gpt("gpt_small", 32, 2, 64, 2, 64, 65),
        _gpt("gpt_long", 4, 4, 192, 6, 256, 100),
        _gpt("gpt_wide", 2, 2, 512, 8, 128, 1000),
        _gpt("gpt_1k", 2, 2, 128, 4, 1024, 65),
        _gpt("gpt_2k", 1, 2, 128, 4, 2048, 65),
        _lstm("lstm_small", 64, 32, 32, 128, 20),
        _lstm("lstm_one", 1, 100, 40, 256, 30),
        _lstm("lstm_wide", 16, 20, 300, 512, 100),
        _maps("map_million", 1_000_000),
        _maps("map_small", 50_000),
        _norm("norm_narrow", 32768, 128),
        _norm("norm_768", 2048, 768),
        _norm("norm_few", 64, 4096),
    )
}
"""Other sizes of the same families, and other mixes of the same layers."""

ALL = WORKLOADS | OTHERS


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
