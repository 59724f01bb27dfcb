"""Functions against NumPy's formulas, and against torch where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_tensor import run

import graphc as gx
from graphc.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 5, 6))

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sum": (lambda x: gx.sum(x, (0, 2)), lambda x: x.sum((0, 2))),
    "sum_all": (gx.sum, np.sum),
    "sum_bools": (lambda x: gx.sum(x > 0, 1), lambda x: (x > 0).sum(1)),
    "keepdims": (lambda x: gx.max(x, 1, keepdims=True), lambda x: x.max(1, keepdims=True)),
    "min": (lambda x: gx.min(x, -1), lambda x: x.min(-1)),
    "prod": (lambda x: gx.prod(x, 1), lambda x: x.prod(1)),
    "mean": (lambda x: gx.mean(x, 1), lambda x: x.mean(1)),
    "mean_bools": (lambda x: gx.mean(x > 0), lambda x: (x > 0).mean()),
    "var": (lambda x: gx.var(x, (0, 1), ddof=1), lambda x: x.var((0, 1), ddof=1)),
    "std": (lambda x: gx.std(x, 2, keepdims=True), lambda x: x.std(2, keepdims=True)),
    "all": (lambda x: gx.all(x > -1, 0), lambda x: (x > -1).all(0)),
    "any": (lambda x: gx.any(x > 1, 0), lambda x: (x > 1).any(0)),
    "argmax": (lambda x: gx.argmax(x, 1), lambda x: x.argmax(1)),
    "argmax_all": (gx.argmax, np.argmax),
    "argmin": (lambda x: gx.argmin(x, -1), lambda x: x.argmin(-1)),
    "argmax_ties": (lambda x: gx.argmax(gx.round(x), 1), lambda x: np.round(x).argmax(1)),
    "clip": (lambda x: gx.clip(x, -0.5, 1), lambda x: x.clip(-0.5, 1)),
    "where": (lambda x: gx.where(x > 0, x, 0.5), lambda x: np.where(x > 0, x, 0.5)),
    "flatten": (lambda x: gx.flatten(x, 1), lambda x: x.reshape(4, 30)),
    "swapaxes": (lambda x: gx.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1)),
    "transpose": (lambda x: gx.transpose(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1)),
    "squeeze": (lambda x: gx.squeeze(x[:1]), lambda x: x[:1].squeeze()),
    "expand_dims": (lambda x: gx.expand_dims(x, -1), lambda x: np.expand_dims(x, -1)),
    "concat": (lambda x: gx.concat([x, x * 2], 1), lambda x: np.concatenate([x, x * 2], 1)),
    "stack": (lambda x: gx.stack([x, -x], -1), lambda x: np.stack([x, -x], -1)),
    "split": (lambda x: gx.split(x, 2, 1)[2], lambda x: x[:, 4:]),
    "chunk": (lambda x: gx.chunk(x, 2, 2)[1], lambda x: x[..., 3:]),
    "pad": (lambda x: gx.pad(x, [(1, 0), (0, 2), (1, 1)], 3.0), None),
    "flip": (lambda x: gx.flip(x, (0, 2)), lambda x: np.flip(x, (0, 2))),
    "tril": (lambda x: gx.tril(x, 1), lambda x: np.tril(x, 1)),
    "triu": (lambda x: gx.triu(x, -1), lambda x: np.triu(x, -1)),
    "take": (lambda x: gx.take(x, np.array([2, 0]), 1), lambda x: np.take(x, [2, 0], 1)),
    "logsumexp": (lambda x: gx.logsumexp(x, 1), lambda x: np.logaddexp.reduce(x, 1)),
    "softplus": (gx.softplus, lambda x: np.logaddexp(x, 0)),
    "einsum": (lambda x: gx.einsum("abc,dbc->ad", x, x), lambda x: np.einsum("abc,dbc->ad", x, x)),
    "einsum_implicit": (lambda x: gx.einsum("abc,abd", x, x), lambda x: np.einsum("abc,abd", x, x)),
    "einsum_three": (
        lambda x: gx.einsum("abc,dbe,fbc->aef", x, x, x),
        lambda x: np.einsum("abc,dbe,fbc->aef", x, x, x),
    ),
    "einsum_one": (lambda x: gx.einsum("abc->ca", x), lambda x: np.einsum("abc->ca", x)),
    "einsum_lone": (lambda x: gx.einsum("abc,ade->e", x, x), lambda x: np.einsum("abc,ade->e", x, x)),
}
PAIRS["pad"] = PAIRS["pad"][0], lambda x: np.pad(x, [(1, 0), (0, 2), (1, 1)], constant_values=3.0)


@pytest.mark.parametrize("name", PAIRS)
def test_functions_are_numpys(name: str) -> None:
    ours, numpys = PAIRS[name]
    found, wanted = run(ours, X), np.asarray(numpys(X))
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_exp2_of_a_large_exponent_is_as_exact_as_of_a_small_one() -> None:
    """By e**(x log 2) it was wrong by 67 units in the last place."""
    x = gx.placeholder("x", ("n",))
    exponents = np.random.default_rng(0).uniform(-120, 120, 4096).astype(np.float32)
    wanted = np.exp2(exponents.astype(np.float64))
    units = np.abs(gx.compile([x], gx.exp2(x))(exponents) - wanted) / np.spacing(wanted.astype(np.float32))
    assert units.max() <= 2


def test_einsum_keeps_the_dtype() -> None:
    """Letters that one operand alone has were added up as int64, which the other operand was not."""
    i, j, b = (
        gx.placeholder("i", (2, 3), "int32"),
        gx.placeholder("j", (3, 4), "int32"),
        gx.placeholder("b", (3, 3), "bool"),
    )
    arrays = (
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.eye(3, dtype=bool),
    )
    results = [
        gx.einsum("ij,jk->k", i, j),
        gx.einsum("ij->i", i),
        gx.diagonal(i[:, :2]),
        gx.diagonal(b),
        gx.einsum("ij->i", b),
    ]
    wanted = [
        np.einsum("ij,jk->k", *arrays[:2]), np.einsum("ij->i", arrays[0]), np.diagonal(arrays[0]),
        np.diagonal(arrays[2]), np.einsum("ij->i", arrays[2]),
    ]  # fmt: skip
    for found, other in zip(gx.compile([i, j, b], results)(*arrays), wanted, strict=True):
        assert found.dtype == other.dtype
        np.testing.assert_array_equal(found, other)


def test_argmax_of_nan_is_the_first_nan() -> None:
    x = np.array([1.0, np.nan, 3.0, np.nan])
    assert run(gx.argmax, x) == np.argmax(x) == 1


def test_makers() -> None:
    assert run(lambda: gx.arange(3)).tolist() == [0, 1, 2]
    assert run(lambda: gx.zeros((2, 1))).tolist() == [[0.0], [0.0]]
    assert run(lambda: gx.full(2, 7, gx.int32)).tolist() == [7, 7]
    assert run(lambda x: gx.one_hot(x, 3), np.array([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert run(lambda x: gx.ones_like(x) + gx.zeros_like(x), np.zeros(2)).tolist() == [1, 1]


def test_layer_norm_is_its_formula() -> None:
    w, b = RANDOM.standard_normal((2, 5, 6))
    found = run(lambda x, w, b: gx.layer_norm(x, (5, 6), w, b, eps=1e-3), X, w, b)
    mean, var = X.mean((1, 2), keepdims=True), X.var((1, 2), keepdims=True)
    np.testing.assert_allclose(found, (X - mean) / np.sqrt(var + 1e-3) * w + b, rtol=1e-9)


def log_softmax(x: Array, axis: int) -> Array:
    return np.asarray(x - np.logaddexp.reduce(x, axis, keepdims=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_formula(reduction: str, smoothing: float) -> None:
    for shape in ((7, 5), (3, 5, 2)):
        scores, classes = RANDOM.standard_normal(shape), RANDOM.integers(0, 5, (shape[0], *shape[2:]))
        logs = log_softmax(scores, 1)
        losses = -np.take_along_axis(logs, classes[:, None], 1)[:, 0] * (1 - smoothing) - smoothing * logs.mean(1)
        wanted = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]
        found = run(
            lambda s, c: gx.cross_entropy(s, c, reduction=reduction, label_smoothing=smoothing), scores, classes
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_other_losses_are_their_formulas() -> None:
    x, t = RANDOM.standard_normal((2, 6)), RANDOM.random((2, 6))
    np.testing.assert_allclose(run(gx.mse_loss, x, t), ((x - t) ** 2).mean(), rtol=1e-9)
    np.testing.assert_allclose(run(gx.l1_loss, x, t), np.abs(x - t).mean(), rtol=1e-9)
    s = 1 / (1 + np.exp(-x))
    wanted = -(t * np.log(s) + (1 - t) * np.log(1 - s)).mean()
    np.testing.assert_allclose(run(gx.binary_cross_entropy_with_logits, x, t), wanted, rtol=1e-9)
    logs, classes = log_softmax(x, 1), np.array([1, 4])
    np.testing.assert_allclose(run(gx.nll_loss, logs, classes), -logs[[0, 1], classes].mean(), rtol=1e-9)


def test_a_label_outside_the_classes_is_named() -> None:
    with pytest.raises(IndexRangeError, match=r"label 5 is outside \[0, 5\)\n  at .*test_tensor.py"):
        run(gx.cross_entropy, np.zeros((2, 5)), np.array([0, 5]))


def test_wrong_losses_are_refused() -> None:
    x = gx.placeholder("x", (4, 5))
    with pytest.raises(DTypeError, match="classes must be integers"):
        gx.cross_entropy(x, gx.placeholder("t", (4,)))
    with pytest.raises(ShapeError, match=r"i64\[3\] do not fit scores f32\[4,5\]"):
        gx.cross_entropy(x, gx.placeholder("t", (3,), gx.int64))
    with pytest.raises(ShapeError, match="differ in shape"):
        gx.mse_loss(x, gx.placeholder("t", (4,)))
    with pytest.raises(ArgumentError, match="reduction must be"):
        gx.mse_loss(x, x, "average")
    with pytest.raises(ArgumentError, match="approximate must be"):
        gx.gelu(x, "fast")
    with pytest.raises(ShapeError, match="no diagonal along axes 0 and 1"):
        gx.einsum("aa->a", x)
    for spec in ("ab,bc->ac", "abc->a", "ab->ac", "a->a", "ab->aa", "a.b->ab", "a1->a", "...abc->a"):
        with pytest.raises(ArgumentError, match="does not fit operands of"):
            gx.einsum(spec, x)


ACTIVATIONS = ["relu", "leaky_relu", "elu", "silu", "softplus", "gelu", "sigmoid", "tanh", "softmax", "log_softmax"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.functional, name)
    options = {"dim": -1} if "softmax" in name else {}
    x = np.concatenate([X[0, 0], [0.0, -0.0, 30.0, -30.0, np.inf, np.nan]])[None]
    if "softmax" in name:
        x = x[:, :-2]
    wanted = theirs(torch.tensor(x), **options).numpy()
    np.testing.assert_allclose(run(getattr(gx, name), x), wanted, rtol=1e-9, atol=1e-15)


def _with_gradient(function: Callable[[gx.Tensor], gx.Tensor], array: Any) -> tuple[Any, Any]:
    """A function's value at an array, and the gradient of its sum, native and interpreted."""
    array = np.asarray(array, np.float32)
    x = gx.placeholder("x", array.shape)
    y = function(x)
    results = [gx.compile([x], [y, *gx.grad(gx.sum(y), [x])], mode=mode)(array) for mode in ("native", "interpret")]
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    value, gradient = results[0]
    return value, gradient


def test_gelu_by_tanh_keeps_its_digits_far_below_zero() -> None:
    """1 + tanh(u) would lose them all. What is left is the rounding of u, times u."""
    x = np.linspace(-8, 4, 97)
    slope = 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    half = 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    value, gradient = _with_gradient(lambda t: gx.gelu(t, "tanh"), x.astype(np.float32))
    np.testing.assert_allclose(value, x * half, rtol=3e-5)
    np.testing.assert_allclose(gradient, half + x * half * (1 - half) * slope, rtol=3e-5, atol=1e-6)


def test_sinh_has_a_slope_at_zero_and_a_value_as_far_as_float32_goes() -> None:
    """Of |x| and its sign, the derivative at 0 was 0; half of e**x was infinite before sinh is."""
    value, gradient = _with_gradient(gx.sinh, [0.0, -0.0, 1e-30, -2.0, 30.0, 89.0])
    np.testing.assert_allclose(value, np.sinh([0.0, -0.0, 1e-30, -2.0, 30.0, 89.0]), rtol=1e-6)
    assert list(np.signbit(value)) == [False, True, False, True, False, False]
    np.testing.assert_allclose(gradient[:5], np.cosh([0.0, 0.0, 0.0, -2.0, 30.0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "slope"), [(gx.elu, 1.0), (lambda x: gx.elu(x, 2.0), 2.0), (gx.selu, 1.7580993), (gx.celu, 1.0)]
)
def test_units_that_are_smooth_on_the_left_have_that_slope_at_zero(function: Any, slope: float) -> None:
    """The bound of a minimum took half of it."""
    _, gradient = _with_gradient(function, [0.0, 1e-30])
    np.testing.assert_allclose(gradient[0], slope, rtol=1e-6)


def test_certain_probabilities_have_finite_gradients() -> None:
    """The logarithm of 0 was bounded, its derivative was not: 0 / 0. So sigmoids that saturate ended the training."""
    target = np.array([0, 1, 1, 0, 0.3, 0.3, 1], np.float32)
    losses, gradient = _with_gradient(
        lambda x: gx.binary_cross_entropy(x, gx.constant(target), "none"), [0, 1, 0.5, 1, 0, 1, 1e-39]
    )
    np.testing.assert_allclose(losses, [0, 0, np.log(2), 100, 30, 70, -np.log(1e-39)], rtol=1e-5)
    np.testing.assert_allclose(gradient, [1, -1, -2, 1e12, -3e11, 7e11, -1e12], rtol=1e-5)
    _, gradient = _with_gradient(
        lambda x: gx.binary_cross_entropy(gx.sigmoid(x), gx.ones_like(x)), [-200.0, -104.0, -20.0, 0.0, 200.0]
    )
    assert np.isfinite(gradient).all() and np.isclose(gradient[3], -0.1)


@pytest.mark.parametrize(
    "function",
    [gx.std, gx.norm, lambda x: gx.norm(x, p=3.0), lambda x: gx.norm(x, p=0.5)],
    ids=["std", "2", "3", "0.5"],
)
def test_roots_of_nothing_have_the_gradient_zero(function: Any) -> None:
    value, gradient = _with_gradient(function, np.zeros(3))
    assert value == 0 and not gradient.any()
    value, gradient = _with_gradient(function, [1.0, 0.0, 2.0])
    assert value > 0 and np.isfinite(gradient).all() and gradient.any()


@pytest.mark.parametrize("p", [-np.inf, -2.0, -1.0, 0, 0.5, 1, 2, 3, np.inf])
def test_norms_are_numpys(p: float) -> None:
    x = gx.placeholder("x", (4,))
    f = gx.compile([x], gx.norm(x, p=p))
    for array in ([1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -2.0, 0.0]):
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(f(np.array(array, np.float32)), np.linalg.norm(array, p), rtol=1e-5)


def test_a_call_without_elements_has_no_largest() -> None:
    """What is known only in a call gave -infinity, and the largest integer for a place."""
    x = gx.placeholder("x", ("n", 2))
    for function in (gx.max, gx.min, gx.argmax, gx.argmin):
        f = gx.compile([x], function(x, 0))
        f(np.ones((1, 2), np.float32))
        with pytest.raises(gx.errors.ShapeError, match="smallest element needs 1 or more elements, not 0"):
            f(np.ones((0, 2), np.float32))
    assert gx.compile([x], gx.max(gx.softmax(x, 1), 1))(np.ones((0, 2), np.float32)).shape == (0,)
