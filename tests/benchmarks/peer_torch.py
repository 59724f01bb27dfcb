"""PyTorch's side of the workloads: eager, compiled, and with channels last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

LR, CLASSES = 0.01, 10


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
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.bn3 = nn.BatchNorm2d(outputs) if inputs != outputs else None

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None or self.bn3 is None else self.bn3(self.short(x))))


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
        return self.fc(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise convolutions, each before a 1x1 convolution to the next width; all but the first halve the image."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        pairs = list(itertools.pairwise(widths))
        self.deep = nn.ModuleList(
            nn.Conv2d(a, a, 3, 1 + (n > 0), 1, groups=a, bias=False) for n, (a, _) in enumerate(pairs)
        )
        self.wide = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in pairs)
        self.bn1, self.bn2 = (nn.ModuleList(nn.BatchNorm2d(pair[k]) for pair in pairs) for k in (0, 1))
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Any) -> Any:
        x = F.relu6(self.bn(self.stem(x)))
        for deep, bn1, wide, bn2 in zip(self.deep, self.bn1, self.wide, self.bn2, strict=True):
            x = F.relu6(bn2(wide(F.relu6(bn1(deep(x))))))
        return self.fc(x.mean((2, 3)))


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
            x = torch.cat([x, conv(F.relu(bn(x)))], 1)
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        parts = self.qkv(self.ln1(x)).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


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


def _elementwise(net: Any, given: Mapping[str, Any]) -> Any:
    a, b, d, e = (given[name] for name in "abde")
    return torch.sum(torch.tanh(a * b + d) * torch.sigmoid(e) + torch.exp(-a * a))


def _loss(net: Any, given: Mapping[str, Any]) -> Any:
    return F.cross_entropy(net(given["x"]), given["label"])


def _tokens(net: Any, given: Mapping[str, Any]) -> Any:
    return F.cross_entropy(net(given["x"]).flatten(0, 1), given["label"].flatten())


FAMILIES: dict[str, tuple[Callable[..., nn.Module], Callable[[Any, Mapping[str, Any]], Any]]] = {
    "mlp": (mlp, _loss),
    "infer": (mlp, lambda net, given: net(given["x"])),
    "cnn": (cnn, _loss),
    "resnet": (ResNet, _loss),
    "mobile": (Mobile, _loss),
    "dense": (Dense, _loss),
    "gpt": (GPT, _tokens),
    "lstm": (Tagger, _tokens),
    "elementwise": (nn.Identity, _elementwise),
    "layernorm": (Norm, lambda net, given: (F.gelu(net.ln(given["x"]), approximate="tanh") * given["w"]).sum()),
}


def build(
    variant: str, family: str, sizes: Sequence[int], kind: str, given: Mapping[str, Any], state: Any, threads: int
) -> Callable[[], Any]:
    """One step; `variant` is "eager", "compile", "channels_last" or "compile_channels_last"."""
    torch.compiler.reset()  # a step built before, with other sizes, must not make these sizes variables
    torch.set_num_threads(threads)
    make, value = FAMILIES[family]
    net = make(*sizes)
    net.load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    arrays = {key: torch.tensor(array) for key, array in given.items()}
    compiles = variant.startswith("compile")
    if variant.endswith("channels_last"):
        net = net.to(memory_format=torch.channels_last)
        arrays["x"] = arrays["x"].to(memory_format=torch.channels_last)
    if kind == "infer":
        if family == "infer":
            call = torch.compile(net) if compiles else net

            def infer() -> Any:
                with torch.inference_mode():
                    return call(torch.from_numpy(given["x"])).numpy()

            return infer

        def forward() -> Any:
            return value(net, arrays)

        compiled = torch.compile(forward) if compiles else forward

        def evaluate() -> Any:
            with torch.inference_mode():
                return compiled().item()

        return evaluate
    function = torch.compile(value) if compiles else value
    if kind == "gradients":
        arrays["x"].requires_grad_(True)
        wanted = [*net.parameters(), arrays["x"]]

        def gradients() -> Any:
            total = function(net, arrays)
            return [total.item(), *torch.autograd.grad(total, wanted)]

        return gradients
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def train() -> Any:
        optimizer.zero_grad(set_to_none=True)
        total = function(net, arrays)
        total.backward()
        optimizer.step()
        return total.item()

    return train
