"""Functions with a name of torch's or NumPy's have their values, dtypes and gradients, at the awkward points too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.errors import ArgumentError, DTypeError, IndexRangeError

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
POINTS = np.array([-100, -20, -5, -3, -1, -0.5, -0.0, 0, 0.5, 1, 3, 5, 6, 20, 100])
SCORES, CLASSES = RANDOM.standard_normal((4, 5)), np.array([0, 4, 2, 2])
SHARES, WEIGHT = RANDOM.dirichlet(np.ones(5), 4), RANDOM.random(5)
IGNORED = np.array([0, -100, 2, -100])
CUBE, PLACES = RANDOM.standard_normal((4, 5, 3)), RANDOM.integers(0, 5, (4, 2, 3))


def values(function: Any, arrays: tuple[Array, ...], mode: str) -> list[Array]:
    """The result, and the gradients of the sum of its squares."""
    inputs = [gx.placeholder(f"x{n}", a.shape, a.dtype) for n, a in enumerate(arrays)]
    y = function(*inputs)
    floats = [x for x in inputs if x.dtype.is_float]
    slopes = gx.grad(gx.sum(y * y), floats) if y.dtype.is_float else ()
    return list(gx.compile(inputs, [y, *slopes], mode=mode)(*arrays))


def torchs(torch: Any, function: Any, arrays: tuple[Array, ...]) -> list[Array]:
    inputs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y = function(*inputs)
    floats = [x for x in inputs if x.requires_grad]
    slopes = torch.autograd.grad((y * y).sum(), floats) if y.is_floating_point() else ()
    return [y.detach().numpy(), *(s.numpy() for s in slopes)]


def by_name(name: str, **options: Any) -> tuple[Any, Any]:
    def theirs(torch: Any) -> Any:
        found = getattr(torch.nn.functional, name, None) or getattr(torch, name)
        return lambda *tensors: found(*tensors, **{{"axis": "dim"}.get(k, k): v for k, v in options.items()})

    return lambda *tensors: getattr(gx, name)(*tensors, **options), theirs


ELEMENTWISE = [
    "relu",
    "relu6",
    "elu",
    "celu",
    "selu",
    "silu",
    "mish",
    "softplus",
    "gelu",
    "sigmoid",
    "tanh",
    "hardtanh",
    "abs",
]
ELEMENTWISE += [
    "hardswish",
    "logsigmoid",
    "softsign",
    "sign",
    "square",
    "exp2",
    "sin",
    "cos",
    "tan",
    "erf",
    "trunc",
    "isnan",
]
ELEMENTWISE += ["isinf", "isfinite"]  # hardsigmoid is not here: its slope in torch is 1/6 as a float32
CASES: dict[str, tuple[tuple[Any, Any], tuple[Array, ...]]] = {
    **{name: (by_name(name), (POINTS,)) for name in ELEMENTWISE},
    "clip": ((lambda x: gx.clip(x, -1, 1), lambda torch: lambda x: torch.clip(x, -1, 1)), (POINTS,)),
    "sinh": (by_name("sinh"), (POINTS[1:-1],)),
    "cosh": (by_name("cosh"), (POINTS[1:-1],)),
    "log2": (by_name("log2"), (np.abs(POINTS) + 1,)),
    "log10": (by_name("log10"), (np.abs(POINTS) + 1,)),
    "logaddexp": (by_name("logaddexp"), (POINTS, POINTS[::-1].copy())),
    "norm": ((lambda x: gx.norm(x, 1), lambda torch: lambda x: torch.linalg.vector_norm(x, dim=1)), (SCORES,)),
    "normalize": (by_name("normalize"), (SCORES,)),
    "cosine_similarity": (by_name("cosine_similarity"), (SCORES, SHARES)),
    "softmin": ((gx.softmin, lambda torch: lambda x: torch.nn.functional.softmin(x, -1)), (SCORES,)),
    "glu": (by_name("glu", axis=0), (SCORES,)),
    "roll": ((lambda x: gx.roll(x, 2, 1), lambda torch: lambda x: torch.roll(x, 2, 1)), (SCORES,)),
    "tile": ((lambda x: gx.tile(x, (2, 1, 3)), lambda torch: lambda x: torch.tile(x, (2, 1, 3))), (SCORES,)),
    "repeat": (by_name("repeat_interleave", repeats=2, axis=1), (SCORES,)),
    "gather": (
        (lambda x, i: x.gather(1, i), lambda torch: lambda x, i: torch.gather(x, 1, i)),
        (CUBE, PLACES),
    ),
    "picked": (
        (lambda x, i: x[gx.arange(4), i], lambda torch: lambda x, i: x[torch.arange(4), i]),
        (SCORES, CLASSES),
    ),
    "outer": (by_name("outer"), (POINTS[:3], POINTS[:4])),
    "trace": (by_name("trace"), (SCORES[:4, :4].copy(),)),
    "huber_loss": (by_name("huber_loss", delta=0.7), (SCORES, SHARES)),
    "smooth_l1_loss": (by_name("smooth_l1_loss", beta=0.5), (SCORES, SHARES)),
    "binary_cross_entropy": (by_name("binary_cross_entropy"), (SHARES * 0.9 + 0.05, SHARES[::-1] * 0.9 + 0.05)),
    "logits at 0": (by_name("binary_cross_entropy_with_logits"), (np.zeros((4, 5)), SHARES)),
    "kl_div": (by_name("kl_div", reduction="batchmean"), (SCORES, SHARES)),
    "amax ties": (
        (lambda x: gx.max(x, 1), lambda torch: lambda x: torch.amax(x, 1)),
        (np.array([[1.0, 2, 2], [3, 3, 3]]),),
    ),
    **{
        f"cross_entropy {reduction} {options}": (
            by_name("cross_entropy", reduction=reduction, **options),
            (SCORES, target),
        )
        for reduction in ("mean", "sum", "none")
        for options, target in (
            ({"ignore_index": -100}, IGNORED),
            ({"ignore_index": 2, "label_smoothing": 0.1}, CLASSES),
            ({"label_smoothing": 0.1}, SHARES),
            ({}, SHARES),
        )
    },
    "nll_loss": (by_name("nll_loss", ignore_index=-100), (SCORES, IGNORED)),
    **{
        f"einsum {spec}": (
            (lambda *a, spec=spec: gx.einsum(spec, *a), lambda torch, spec=spec: lambda *a: torch.einsum(spec, *a)),
            tuple(
                RANDOM.standard_normal((3,) * len(part.replace("...", "zz"))) for part in spec.split("->")[0].split(",")
            ),
        )
        for spec in (
            "ii->i",
            "ii",
            "iij->j",
            "...ij->...ji",
            "...ij,jk->...ik",
            "...i,...i->...",
            "bij,bjk",
            "ij,jk,kl->il",
        )
    },
}


@pytest.mark.parametrize("mode", ["native", "interpret"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(case: str, mode: str) -> None:
    torch = pytest.importorskip("torch")
    (ours, theirs), arrays = CASES[case]
    for found, wanted in zip(values(ours, arrays, mode), torchs(torch, theirs(torch), arrays), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights_are_torchs(reduction: str) -> None:
    torch = pytest.importorskip("torch")
    for target, options in (
        (CLASSES, {}),
        (IGNORED, {"ignore_index": -100}),
        (CLASSES, {"label_smoothing": 0.1}),
        (SHARES, {}),
    ):
        ours = nn.CrossEntropyLoss(WEIGHT, reduction=reduction, **options)
        theirs = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHT), reduction=reduction, **options)
        found = values(ours, (SCORES, target), "native")[:2]
        for array, wanted in zip(found, torchs(torch, theirs, (SCORES, target))[:2], strict=True):
            np.testing.assert_allclose(array, wanted, rtol=1e-9)


def test_nothing_is_ignored_unless_it_is_asked_for() -> None:
    with pytest.raises(IndexRangeError, match="label -100 is outside"):
        values(gx.cross_entropy, (SCORES, IGNORED), "native")


@pytest.mark.parametrize("reduce", [gx.sum, gx.prod, gx.max, gx.min, gx.mean, gx.argmax, gx.argmin, gx.all, gx.any])
@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.int64])
def test_reductions_of_whole_numbers_are_numpys(reduce: Any, dtype: Any) -> None:
    array = RANDOM.integers(0, 2, (3, 4)).astype(dtype)
    if reduce in (gx.all, gx.any) and dtype is not np.bool_:
        pytest.skip("all and any are of bools")
    wanted = getattr(np, reduce.__name__)(array, 1)
    found = gx.compile([x := gx.placeholder("x", (3, 4), dtype)], reduce(x, 1))(array)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_arithmetic_on_bools_is_numpys() -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    x, y = gx.placeholder("x", (4,), bool), gx.placeholder("y", (4,), bool)
    found = gx.compile([x, y], [x + y, x * y, x ^ y, True & x, gx.maximum(x, y), gx.minimum(x, y)])(a, b)
    for array, wanted in zip(found, [a + b, a * b, a ^ b, a, np.maximum(a, b), np.minimum(a, b)], strict=True):
        np.testing.assert_array_equal(array, wanted)


KEYS: list[Any] = [
    (np.array([0, 2, -1]),),
    (slice(None), [0, -1]),
    (np.array([True, False, True, True]),),
    (slice(None), np.array([True, False, True, True, False]), 1),
    (np.array([0, 1, 3]), np.array([0, -5, 4])),
    (np.array([[0], [3]]), slice(None), np.array([0, 1, 5])),
    (0, slice(None), [1, 2]),
    (slice(1, 3), [0, 1], None, [2, 3]),
    (RANDOM.random((4, 5)) > 0.5,),
    (Ellipsis, [1, 2], slice(None, None, -2)),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_arrays_index_as_numpys(key: Any, mode: str) -> None:
    array = RANDOM.standard_normal((4, 5, 6))
    x = gx.placeholder("x", array.shape, "float64")
    np.testing.assert_array_equal(gx.compile([x], x[key], mode=mode)(array), array[key])
    tensors = tuple(
        gx.constant(k) if isinstance(k, np.ndarray | list) and np.asarray(k).dtype != np.bool_ else k for k in key
    )
    np.testing.assert_array_equal(gx.compile([x], x[tensors], mode=mode)(array), array[key])


def test_positions_outside_are_refused_when_they_are_known_and_when_they_are_fed() -> None:
    """They once were clamped into range, in silence: x[-1] in an array was x[0]."""
    x, i = gx.placeholder("x", ("n", 3)), gx.placeholder("i", (2,), gx.int32)
    pick = gx.compile([x, i], x[i])
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(pick(array, np.array([-1, 2], np.int32)), array[[-1, 2]])
    for wrong in (4, -5, 2**31 - 1, -(2**31)):
        with pytest.raises(IndexRangeError, match=r"outside \[0, 4\)[\s\S]*test_against_torch.py"):
            pick(array, np.array([0, wrong], np.int32))
    with pytest.raises(ArgumentError, match="index 3 is outside an axis of 3"):
        x[:, [0, 3]]
    with pytest.raises(DTypeError, match="selects a number of elements that is not known"):
        x[x > 0]
    with pytest.raises(ArgumentError, match="True and False are no positions"):
        x[True]


def test_methods_are_the_functions() -> None:
    array = RANDOM.random((2, 3, 4))
    x = gx.placeholder("x", array.shape, "float64")
    ours = [x.sum(0), x.mean((0, 1)), x.max(-1, keepdims=True), x.argmax(1), x.view(6, -1), x.permute(2, 0, 1), x.mT]
    ours += [
        x.unsqueeze(1).squeeze(1),
        x.flatten(1),
        x.clamp(0.2, 0.8),
        x.log().exp(),
        x[:, :1].expand(2, 3, -1),
        x.std(),
    ]
    wanted = [array.sum(0), array.mean((0, 1)), array.max(-1, keepdims=True), array.argmax(1), array.reshape(6, 4)]
    wanted += [array.transpose(2, 0, 1), array.swapaxes(1, 2), array, array.reshape(2, 12), array.clip(0.2, 0.8), array]
    wanted += [np.broadcast_to(array[:, :1], (2, 3, 4)), array.std()]
    for found, right in zip(gx.compile([x], ours)(array), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-12)
    assert (x.size(), x.size(-1), x.dim(), x.numel(), x.float().dtype) == ((2, 3, 4), 4, 3, 24, gx.float32)
