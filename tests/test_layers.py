"""Layers for images, sequences and attention against torch: forward, gradients, state, over many configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, optim
from graphc.errors import ArgumentError, ShapeError
from graphc.testing import assert_matches_interpreter

Array = np.ndarray[Any, Any]
torch = pytest.importorskip("torch")


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hold(ours: nn.Module, theirs: Any, x: Array, out: Any = lambda y: y) -> None:
    """The same outputs, and gradients of a weighted sum with respect to x and to every parameter."""
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    given = gx.placeholder("x", x.shape)
    found = out(ours(given))
    weights = random(*map(int, found.shape), seed=1)
    names, parameters = zip(*ours.named_parameters(), strict=True) if list(ours.parameters()) else ((), ())
    gradients = gx.grad(gx.sum(found * weights), [given, *parameters])
    function = gx.compile([given], [found, *gradients])
    results = function(x)
    assert_matches_interpreter(function, x)
    tensor = torch.tensor(x, requires_grad=True)
    wanted = out(theirs(tensor))
    (wanted * torch.tensor(weights)).sum().backward()
    own = dict(theirs.named_parameters())
    expected = [wanted.detach(), tensor.grad, *(own[name].grad for name in names)]
    for name, array, other in zip(("output", "x", *names), results, expected, strict=True):
        scale = max(1e-3, float(other.abs().max()))
        np.testing.assert_allclose(array, other.numpy(), rtol=1e-4, atol=2e-5 * scale, err_msg=name)


CONVOLUTIONS = [
    ((3, 4, 8, 8), {"out_channels": 5, "kernel_size": 3}),
    ((2, 1, 28, 28), {"out_channels": 32, "kernel_size": 3, "padding": 1}),
    ((2, 16, 9, 7), {"out_channels": 20, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "bias": False}),
    ((2, 6, 10, 10), {"out_channels": 4, "kernel_size": 3, "dilation": 2, "padding": "same"}),
    ((2, 6, 9, 9), {"out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 6}),
    ((1, 8, 8, 8), {"out_channels": 12, "kernel_size": 5, "padding": 2, "groups": 4, "dilation": 1}),
    ((2, 3, 7, 11), {"out_channels": 2, "kernel_size": 1, "stride": 3}),
    ((2, 4, 6, 6), {"out_channels": 17, "kernel_size": 1}),
    ((1, 2, 12, 12), {"out_channels": 3, "kernel_size": (4, 3), "stride": 3, "dilation": (1, 2), "padding": (2, 1)}),
]


@pytest.mark.parametrize(("shape", "options"), CONVOLUTIONS)
def test_convolution(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    gx.manual_seed(0)
    hold(nn.Conv2d(shape[1], **options), torch.nn.Conv2d(shape[1], **options), random(*shape))


POOLS = [
    ("MaxPool2d", (2, 3, 8, 8), {"kernel_size": 2}),
    ("MaxPool2d", (2, 3, 9, 7), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("MaxPool2d", (1, 2, 10, 10), {"kernel_size": (2, 3), "stride": (3, 1), "dilation": 2}),
    ("MaxPool2d", (1, 2, 7, 8), {"kernel_size": 2, "ceil_mode": True}),
    ("AvgPool2d", (2, 3, 8, 8), {"kernel_size": 2}),
    ("AvgPool2d", (2, 3, 9, 7), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("AvgPool2d", (2, 3, 9, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    ("AvgPool2d", (1, 2, 7, 8), {"kernel_size": 2, "ceil_mode": True}),
    ("AvgPool2d", (1, 2, 7, 8), {"kernel_size": 3, "padding": 1, "ceil_mode": True}),
    ("AdaptiveAvgPool2d", (2, 3, 8, 8), {"output_size": 1}),
    ("AdaptiveAvgPool2d", (2, 3, 9, 7), {"output_size": (4, None)}),
    ("AdaptiveAvgPool2d", (2, 3, 10, 12), {"output_size": (5, 7)}),
]


@pytest.mark.parametrize(("name", "shape", "options"), POOLS)
def test_pooling(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    hold(getattr(nn, name)(**options), getattr(torch.nn, name)(**options), random(*shape))


def test_equal_elements_of_a_pool_give_the_gradient_to_the_first() -> None:
    hold(nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1), np.round(random(2, 2, 9, 9)))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1, "momentum": 0.3}])
def test_batch_norm(options: dict[str, Any]) -> None:
    hold(nn.BatchNorm2d(3, **options), torch.nn.BatchNorm2d(3, **options), 2 * random(4, 3, 5, 6) + 1)


def test_running_statistics_follow_torch() -> None:
    ours, theirs = nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    x = gx.placeholder("x", ("batch", 3, 4, 4))
    step = gx.compile([x], ours(ours(x)))  # twice in one step
    evaluate = gx.compile([x], ours.eval()(x))
    for seed in range(3):
        batch = 3 * random(5, 3, 4, 4, seed=seed) + seed
        np.testing.assert_allclose(step(batch), theirs(theirs(torch.tensor(batch))).detach(), rtol=1e-4, atol=1e-5)
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, theirs.state_dict()[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    batch = random(2, 3, 4, 4)
    np.testing.assert_allclose(evaluate(batch), theirs.eval()(torch.tensor(batch)).detach(), rtol=1e-4, atol=1e-5)
    assert not evaluate.graph.next


LSTMS = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("options", LSTMS)
@pytest.mark.parametrize("part", ["output", "h", "c"])
def test_lstm(options: dict[str, Any], part: str) -> None:
    gx.manual_seed(0)
    pick = {"output": lambda y: y[0], "h": lambda y: y[1][0], "c": lambda y: y[1][1]}[part]
    hold(nn.LSTM(3, 5, **options), torch.nn.LSTM(3, 5, **options), random(4, 3, 3), pick)


def test_lstm_takes_states() -> None:
    ours, theirs = nn.LSTM(3, 5, batch_first=True), torch.nn.LSTM(3, 5, batch_first=True)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    arrays = random(2, 4, 3), random(1, 2, 5, seed=1), random(1, 2, 5, seed=2)
    x, h, c = (gx.placeholder(name, array.shape) for name, array in zip("xhc", arrays, strict=True))
    output, (hn, cn) = ours(x, (h, c))
    found = gx.compile([x, h, c], [output, hn, cn])(*arrays)
    wanted, states = theirs(torch.tensor(arrays[0]), tuple(map(torch.tensor, arrays[1:])))
    for array, other in zip(found, (wanted, *states), strict=True):
        np.testing.assert_allclose(array, other.detach(), rtol=1e-4, atol=1e-6)


MASKS: list[Any] = [None, "causal", random(6, 6) > 0, random(2, 3, 6, 6)]


@pytest.mark.parametrize("mask", MASKS, ids=["none", "causal", "bool", "float"])
def test_attention(mask: Any) -> None:
    arrays = [random(2, 3, 6, 8, seed=n) for n in range(3)]
    q, k, v = (gx.placeholder(name, a.shape) for name, a in zip("qkv", arrays, strict=True))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    if isinstance(mask, str):
        found, wanted = (
            f(*p, is_causal=True)
            for f, p in (
                (gx.scaled_dot_product_attention, (q, k, v)),
                (torch.nn.functional.scaled_dot_product_attention, tensors),
            )
        )
    else:
        if mask is not None and mask.dtype == np.bool_:
            mask[:, 0] = True  # a row that sees nothing is NaN in both
        found = gx.scaled_dot_product_attention(q, k, v, mask)
        theirs = None if mask is None else torch.tensor(mask)
        wanted = torch.nn.functional.scaled_dot_product_attention(*tensors, theirs)
    weights = random(2, 3, 6, 8, seed=9)
    function = gx.compile([q, k, v], [found, *gx.grad(gx.sum(found * weights), [q, k, v])])
    (wanted * torch.tensor(weights)).sum().backward()
    for array, other in zip(function(*arrays), [wanted.detach(), *(t.grad for t in tensors)], strict=True):
        np.testing.assert_allclose(array, other.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads", [3, 8])
def test_long_attention(heads: int, is_causal: bool) -> None:
    """Long enough to be made in strips; heads that are few share rows. Lengths are no multiples of anything."""
    arrays = [random(1, heads, n, 12, seed=n) for n in (1304, 1201, 1201)]
    q, k, v = (gx.placeholder(name, a.shape) for name, a in zip("qkv", arrays, strict=True))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    found = gx.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    wanted = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)
    function = gx.compile([q, k, v], [found, *gx.grad(gx.sum(gx.sin(found)), [q, k, v])])
    torch.sin(wanted).sum().backward()
    for array, other in zip(function(*arrays), [wanted.detach(), *(t.grad for t in tensors)], strict=True):
        np.testing.assert_allclose(array, other.numpy(), rtol=1e-3, atol=1e-4)
    assert function.plan.loops and function.plan.arena_bytes < 4 * heads * 1304 * 1201


def test_a_grouped_convolution_of_no_images() -> None:
    """Its channels were to follow from the number of elements: a ShapeError."""
    x = gx.placeholder("x", (0, 4, 5, 5))
    found = gx.compile([x], nn.Conv2d(4, 16, 3, groups=2)(x))(np.zeros((0, 4, 5, 5), np.float32))
    assert found.shape == (0, 16, 3, 3)


def test_what_does_not_fit_is_refused() -> None:
    x = gx.placeholder("x", (2, 4, 8, 8))
    weight = gx.Parameter(random(6, 3, 3, 3))
    with pytest.raises(ShapeError, match="does not fit"):
        gx.conv2d(x, weight)
    with pytest.raises(ShapeError, match="a window of 9 elements does not fit"):
        gx.max_pool2d(x, 9)
    with pytest.raises(ShapeError, match=r"\[N, C, H, W\]"):
        nn.MaxPool2d(2)(gx.placeholder("y", (3, 4)))
    with pytest.raises(ArgumentError, match="stride must be"):
        nn.Conv2d(4, 4, 3, stride=0)(x)
    with pytest.raises(ArgumentError, match="half of the window"):
        gx.max_pool2d(x, 2, padding=2)
    with pytest.raises(ShapeError, match="BatchNorm2d takes"):
        nn.BatchNorm2d(3)(x)


def test_a_convolutional_network_follows_torch() -> None:
    gx.manual_seed(0)

    def net(m: Any) -> Any:
        return m.Sequential(
            m.Conv2d(1, 8, 3, padding=1), m.ReLU(), m.MaxPool2d(2),
            m.Conv2d(8, 16, 3, padding=1, bias=False), m.BatchNorm2d(16), m.ReLU(), m.MaxPool2d(2),
            m.Flatten(), m.Linear(16 * 9, 10),
        )  # fmt: skip

    ours, theirs = net(nn), net(torch.nn)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    x, label = gx.placeholder("x", ("batch", 1, 12, 12)), gx.placeholder("label", ("batch",), gx.int64)
    loss = nn.CrossEntropyLoss()(ours(x), label)
    step = gx.compile([x, label], loss, updates=optim.SGD(ours.parameters(), lr=0.05, momentum=0.9).minimize(loss))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for seed in range(10):
        batch, labels = random(16, 1, 12, 12, seed=seed), np.random.default_rng(seed).integers(0, 10, 16)
        wanted = torch.nn.functional.cross_entropy(theirs(torch.tensor(batch)), torch.tensor(labels))
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        assert step(batch, labels) == pytest.approx(wanted.item(), abs=1e-4)
