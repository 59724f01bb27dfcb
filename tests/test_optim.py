"""SGD against its formulas for every combination of settings, and against torch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, optim
from graphc.errors import ArgumentError, GradientError

SETTINGS = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n, "maximize": x}
    for m, d, w, n, x in product((0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True), (False, True))
    if not (n and (m == 0 or d != 0))
]
TARGET = np.array([1.0, -2.0, 0.5])


def steps(mode: str, settings: dict[str, Any], count: int = 5) -> np.ndarray[Any, Any]:
    """Where `count` steps down (w - target)**2 lead from 0, in float64."""
    w = gx.Parameter(np.zeros(3), "w")
    loss = gx.sum((w - TARGET) * (w - TARGET))
    step = gx.compile([], loss, updates=optim.SGD([w], lr=0.1, **settings).minimize(loss), mode=mode)
    for _ in range(count):
        step()
    return w.data


def formula(settings: dict[str, Any], count: int = 5) -> np.ndarray[Any, Any]:
    """torch.optim.SGD's documentation, line by line."""
    w, buffer = np.zeros(3), None
    lr = np.float64(np.float32(0.1))
    for _ in range(count):
        g = 2 * (w - TARGET)
        g = -g if settings["maximize"] else g
        g = g + settings["weight_decay"] * w
        if settings["momentum"]:
            buffer = g if buffer is None else settings["momentum"] * buffer + (1 - settings["dampening"]) * g
            g = g + settings["momentum"] * buffer if settings["nesterov"] else buffer
        w = w - lr * g
    return w


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_sgd_is_its_formula(settings: dict[str, Any], mode: str) -> None:
    np.testing.assert_allclose(steps(mode, settings), formula(settings), rtol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sgd_is_torchs(settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=float(np.float32(0.1)), **settings)
    for _ in range(5):
        optimizer.zero_grad()
        ((w - torch.tensor(TARGET)) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(steps("native", settings), w.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.0), "eps": 1e-3, "maximize": True}])
def test_adam_is_torchs(name: str, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = getattr(torch.optim, name)([theirs], lr=float(np.float32(0.1)), **settings)
    w = gx.Parameter(np.ones(3), "w")
    loss = gx.sum((w - TARGET) ** 2)
    step = gx.compile([], loss, updates=getattr(optim, name)([w], lr=0.1, **settings).minimize(loss))
    for _ in range(7):
        optimizer.zero_grad()
        ((theirs - torch.tensor(TARGET)) ** 2).sum().backward()
        optimizer.step()
        step()
        np.testing.assert_allclose(w.data, theirs.detach().numpy(), rtol=1e-12)


def test_adam_refuses_what_torch_refuses() -> None:
    w = gx.Parameter([1.0], "w")
    for settings in ({"betas": (1.0, 0.9)}, {"betas": (0.9,)}, {"eps": -1.0}, {"weight_decay": -1.0}, {"lr": -0.1}):
        with pytest.raises(ArgumentError):
            optim.Adam([w], **settings)


def test_the_learning_rate_changes_without_compiling_again() -> None:
    w = gx.Parameter(np.ones(2, np.float32), "w")
    optimizer = optim.SGD([w], lr=0.5)
    step = gx.compile([], gx.sum(w), updates=optimizer.minimize(gx.sum(w)))
    step()
    compiled = step.compilation()
    optimizer.lr = 0.25
    step()
    assert step.compilation() is compiled
    assert w.data.tolist() == [0.25, 0.25]
    assert optimizer.lr == 0.25


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fifty_steps_of_the_mlp_follow_torch(seed: int) -> None:
    """With seeds 0 and 7 torch's own float32 and float64 part by 1e-4, where a relu's operand rounds across zero."""
    torch = pytest.importorskip("torch")
    gx.manual_seed(seed)
    random = np.random.default_rng(seed)
    images, labels = random.random((50, 64, 784), np.float32), random.integers(0, 10, (50, 64))
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    theirs = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    theirs.load_state_dict({name: torch.tensor(array) for name, array in net.state_dict().items()})
    x, label = gx.placeholder("x", ("batch", 784)), gx.placeholder("label", ("batch",), gx.int64)
    loss = nn.CrossEntropyLoss()(net(x), label)
    step = gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), lr=0.01).minimize(loss))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01)
    for batch, classes in zip(images, labels, strict=True):
        wanted = torch.nn.functional.cross_entropy(theirs(torch.tensor(batch)), torch.tensor(classes))
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        assert step(batch, classes) == pytest.approx(wanted.item(), abs=1e-5)


def test_mistakes_are_refused() -> None:
    w = gx.Parameter(np.ones(2, np.float32), "w")
    for settings, message in (
        ({"lr": -1.0}, "lr must be a number of at least 0"),
        ({"momentum": -0.1}, "momentum must be a number of at least"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"nesterov": True}, "nesterov needs"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs"),
    ):
        with pytest.raises(ArgumentError, match=message):
            optim.SGD([w], **settings)
    with pytest.raises(ArgumentError, match="at least one"):
        optim.SGD([])
    with pytest.raises(ArgumentError, match="twice"):
        optim.SGD([w, w])
    with pytest.raises(ArgumentError, match="trains parameters, not Buffer"):
        optim.SGD([gx.Buffer(np.ones(2))])  # type: ignore[list-item]
    other = gx.Parameter(np.ones(2, np.float32), "other")
    with pytest.raises(GradientError, match="does not depend on %other"):
        optim.SGD([other]).minimize(gx.sum(w))
