"""Modules: parameters and their names, initial values, state, and torch's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.errors import ArgumentError, IndexRangeError, ShapeError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 3, bias=False))])
        self.norm = nn.LayerNorm(3)
        self.count = gx.Buffer(np.zeros((), np.int64))

    def forward(self, x: gx.Tensor) -> gx.Tensor:
        x = self.fc1(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


NAMES = ["fc1.weight", "fc1.bias", "blocks.0.weight", "blocks.0.bias", "blocks.1.1.weight", "norm.weight", "norm.bias"]


def test_parameters_are_found_and_named_by_their_path() -> None:
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [p.name for p in net.parameters()] == NAMES
    assert [b.name for b in net.buffers()] == ["count"]
    assert list(net.state_dict()) == ["count", *NAMES]
    x = gx.placeholder("x", (2, 6))
    assert "state %fc1.weight: f32[4,6]" in gx.compile([x], net(x), mode="interpret").ir()


def test_a_shared_parameter_is_one_parameter() -> None:
    net = Net()
    net.tied = net.fc1
    assert len(list(net.parameters())) == len(NAMES)


def test_the_same_seed_gives_the_same_numbers() -> None:
    def numbers(seed: int) -> list[bytes]:
        gx.manual_seed(seed)
        return [p.data.tobytes() for p in Net().parameters()]

    assert numbers(3) == numbers(3) != numbers(4)


def test_linear_starts_within_torchs_bounds() -> None:
    layer = nn.Linear(400, 300)
    for parameter in layer.parameters():
        assert 0.9 / 20 < np.abs(parameter.data).max() <= 1 / 20


def test_state_is_loaded_completely_or_not_at_all() -> None:
    first, second = Net(), Net()
    second.load_state_dict(first.state_dict())
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    wrong = {**first.state_dict(), "norm.bias": np.zeros(7)}
    wrong["fc1.bias"] = wrong["fc1.bias"] + 1
    with pytest.raises(ShapeError, match=r"norm.bias is f32\[3\], not an array of shape \[7\]"):
        second.load_state_dict(wrong)
    assert np.array_equal(second.fc1.bias.data, first.fc1.bias.data)
    with pytest.raises(ArgumentError, match=r"missing: norm.bias; unexpected: other"):
        second.load_state_dict({**{k: v for k, v in wrong.items() if k != "norm.bias"}, "other": 1})


def test_modules_print_as_torchs_do() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    assert repr(net) == ("Sequential(\n  (0): Linear(in_features=3, out_features=2, bias=True)\n  (1): ReLU()\n)")


def test_mistakes_are_refused() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            self.fc = nn.Linear(2, 2)

    with pytest.raises(ArgumentError, match="call super"):
        Late()
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)
    with pytest.raises(ArgumentError, match="reduction"):
        nn.MSELoss("avg")


def test_train_and_eval_reach_every_module() -> None:
    net = Net()
    assert not any(m.training for m in net.eval().modules())
    assert all(m.training for m in net.train().modules())


def test_an_embedding_refuses_a_token_outside() -> None:
    at = gx.placeholder("at", ("n",), gx.int64)
    look = gx.compile([at], nn.Embedding(5, 3)(at))
    assert look(np.array([0, 4])).shape == (2, 3)
    with pytest.raises(IndexRangeError, match=r"token -1 is outside \[0, 5\)"):
        look(np.array([0, -1]))


def test_containers_hold_modules_only_and_are_edited_as_torchs() -> None:
    first, second, third = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)
    net = nn.Sequential({"a": first, "b": second}).append(third)
    assert [*net] == [first, second, third]
    assert isinstance(net[:2], nn.Sequential) and [*net[:2]] == [first, second]
    assert net.pop(0) is first and [name for name, _ in net.named_parameters()] == ["1.weight", "1.bias"]
    assert third.weight.name == "1.weight"
    for make in (lambda: nn.Sequential(1), lambda: nn.ModuleList([gx.relu]), lambda: net.append(None)):
        with pytest.raises(ArgumentError, match="holds modules, not"):
            make()
    parts = nn.ModuleDict({"x": first})
    parts["y"] = third
    assert "y" in parts and list(parts.keys()) == ["x", "y"] and parts["y"] is third


def test_parts_are_found_by_path_and_forgotten_when_they_are_deleted() -> None:
    net = Net()
    assert net.get_submodule("blocks.1.1") is net.blocks[1][1]
    assert net.get_parameter("fc1.bias") is net.fc1.bias
    for look in (net.get_submodule, net.get_parameter):
        with pytest.raises(ArgumentError, match="has no"):
            look("fc1.nothing")
    seen: list[str] = []
    net.apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Linear", "Linear", "ReLU", "Linear", "Sequential", "ModuleList", "LayerNorm", "Net"]
    del net.fc1
    assert [name for name, _ in net.named_parameters()] == NAMES[2:]
    net.register_buffer("mask", np.ones(2, np.float32))
    assert [name for name, _ in net.named_buffers()] == ["count", "mask"]


def _copied(ours: Any, theirs: Any) -> Any:
    ours.load_state_dict({name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()})
    return ours


LAYERS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda nn: nn.Linear(6, 3), None, (2, 4, 6)),
    "linear without bias": (lambda nn: nn.Linear(6, 3, bias=False), None, (4, 6)),
    "layer norm": (lambda nn: nn.LayerNorm((4, 6), eps=1e-3), None, (3, 4, 6)),
    "mlp": (lambda nn: nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 2), nn.Tanh()), None, (5, 6)),
    "activations": (lambda nn: nn.Sequential(nn.SiLU(), nn.LeakyReLU(0.2), nn.Softmax(dim=1)), None, (5, 6)),
    "more activations": (lambda nn: nn.Sequential(nn.Mish(), nn.ELU(0.5), nn.Softplus(), nn.SELU()), None, (5, 6)),
    "hard activations": (lambda nn: nn.Sequential(nn.Hardswish(), nn.Hardtanh(-0.5, 2.0), nn.ReLU6()), None, (5, 6)),
    "soft activations": (lambda nn: nn.Sequential(nn.CELU(2.0), nn.Softsign(), nn.LogSigmoid()), None, (5, 6)),
    "gated": (lambda nn: nn.Sequential(nn.GLU(), nn.Hardsigmoid(), nn.Softmin(dim=1)), None, (5, 6)),
    "prelu": (lambda nn: nn.PReLU(4), None, (3, 4, 2)),
    "group norm": (lambda nn: nn.GroupNorm(2, 4), None, (3, 4, 5)),
    "rms norm": (lambda nn: nn.RMSNorm(6), None, (3, 4, 6)),
    "flatten": (lambda nn: nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.LogSoftmax(dim=-1)), None, (3, 2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_torchs_values_and_gradients(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, _, shape = LAYERS[name]
    theirs = make(torch.nn)
    ours = _copied(make(nn), theirs)
    numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x = gx.placeholder("x", ("batch", *shape[1:]))
    y = ours(x)
    parameters = list(ours.parameters())
    step = gx.compile([x], [y, *gx.grad(gx.sum(y * y), [x, *parameters])])
    found = step(numbers)
    given = torch.tensor(numbers, requires_grad=True)
    wanted = theirs(given)
    slopes = torch.autograd.grad((wanted * wanted).sum(), [given, *theirs.parameters()])
    for array, tensor in zip(found, [wanted, *slopes], strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=2e-4, atol=2e-5)


def test_a_part_that_is_replaced_keeps_its_place() -> None:
    """A new layer went to the end, and the sequence computed something else."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    setattr(net, "0", nn.Linear(2, 3))
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    net[0].weight = gx.Parameter(np.zeros((3, 2), np.float32))
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    net[0].weight = 3.0
    assert list(net.state_dict()) == ["0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("count", [0, 1])
def test_batch_norm_refuses_to_learn_a_variance_of_one_value(count: int) -> None:
    """Its running variance became NaN."""
    norm, x = nn.BatchNorm2d(2), gx.placeholder("x", ("n", 2, 1, 1))
    f = gx.compile([x], norm(x))
    f(np.ones((2, 2, 1, 1), np.float32))
    with pytest.raises(ShapeError, match="variance in training needs 2 or more elements"):
        f(np.ones((count, 2, 1, 1), np.float32))
    assert np.isfinite(norm.running_var.data).all()
    with pytest.raises(ShapeError, match="needs 2 or more elements, not 1"):
        norm(gx.placeholder("y", (1, 2, 1, 1)))
