"""PyTorch's side of the workloads: eager, compiled, and with channels last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

HEADS, LR = 4, 0.01


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.ReLU()] * (n > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


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
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.fc(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        parts = self.qkv(self.ln1(x)).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


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


def _elementwise(net: Any, given: Mapping[str, Any]) -> Any:
    a, b, d, e = (given[name] for name in "abde")
    return torch.sum(torch.tanh(a * b + d) * torch.sigmoid(e) + torch.exp(-a * a))


def _loss(net: Any, given: Mapping[str, Any]) -> Any:
    return F.cross_entropy(net(given["x"]), given["label"])


def _tokens(net: Any, given: Mapping[str, Any]) -> Any:
    return F.cross_entropy(net(given["x"]).flatten(0, 1), given["label"].flatten())


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Mapping[str, Any]], Any]]] = {
    "mlp_full": (lambda: mlp(784, 128, 10), _loss),
    "mlp_64": (lambda: mlp(784, 128, 10), _loss),
    "mlp_wide": (lambda: mlp(784, 1024, 1024, 10), _loss),
    "mlp_infer1": (lambda: mlp(784, 128, 10), lambda net, given: net(given["x"])),
    "cnn": (cnn, _loss),
    "resnet": (ResNet, _loss),
    "gpt": (lambda: GPT(4, 128, 128, 65), _tokens),
    "lstm": (Tagger, _tokens),
    "elementwise": (nn.Identity, _elementwise),
    "layernorm": (Norm, lambda net, given: (F.gelu(net.ln(given["x"]), approximate="tanh") * given["w"]).sum()),
}


def build(variant: str, name: str, kind: str, given: Mapping[str, Any], state: Any, threads: int) -> Callable[[], Any]:
    """One step; `variant` is "eager", "compile", "channels_last" or "compile_channels_last"."""
    torch.compiler.reset()  # a step built before, with other sizes, must not make these sizes variables
    torch.set_num_threads(threads)
    make, value = NETS[name]
    net = make()
    net.load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    arrays = {key: torch.tensor(array) for key, array in given.items()}
    compiles = variant.startswith("compile")
    if variant.endswith("channels_last"):
        net = net.to(memory_format=torch.channels_last)
        arrays["x"] = arrays["x"].to(memory_format=torch.channels_last)
    if kind == "infer":
        if name == "mlp_infer1":
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
