"""Gradients against differences, for every op and for compositions, to third order; and the errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from samples import SAMPLES, Sample

import graphc as gx
from graphc import autodiff, ops, reference, testing
from graphc.errors import GradientError, MismatchError
from graphc.ir import dim as dims
from graphc.ir.graph import Literal, Value, build, make_node
from graphc.ir.op import Elementwise, Op
from graphc.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]
SMOOTH = [s for s in SAMPLES if s.smooth and all(a.size for a in s.arrays)]
STEP = 1e-3


def scalar(graph_inputs: Sequence[Value], output: Value, point: Sequence[Array]) -> float:
    (found,), _ = reference.evaluate(build("f", graph_inputs, [output]), point)
    return float(found)


def slopes_agree(inputs: list[Value], y: Value, point: list[Array], order: int) -> None:
    """Each derivative of y along a random direction of the float inputs is what differences say."""
    random = np.random.default_rng(3)
    weights = ops.constant(value=_literal(random.standard_normal(y.type.extents)))
    y = ops.reduce_sum(ops.mul(y, weights), axes=tuple(range(y.type.rank)))
    moving = [n for n, v in enumerate(inputs) if v.dtype.is_float]
    for level in range(order):
        direction = {n: random.standard_normal(point[n].shape) for n in moving}

        def at(step: float, y: Value = y, direction: dict[int, Array] = direction) -> float:
            return scalar(inputs, y, [a + step * direction[n] if n in direction else a for n, a in enumerate(point)])

        wanted = (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)
        try:
            gradients = autodiff.grad(y, [inputs[n] for n in moving])
        except GradientError as error:  # the slope before was constant: so must this be
            assert "does not depend" in str(error)
            assert abs(wanted) < 1e-9
            return
        terms = []
        for n, gradient in zip(moving, gradients, strict=True):
            product = ops.mul(gradient, ops.constant(value=_literal(direction[n])))
            terms.append(ops.reduce_sum(product, axes=tuple(range(product.type.rank))))
        y = terms[0]
        for term in terms[1:]:
            y = ops.add(y, term)
        found = scalar(inputs, y, point)
        assert found == pytest.approx(wanted, rel=1e-6 * 10**level, abs=1e-7 * 10**level)


def _literal(array: Any) -> Literal:
    return Literal.of(np.asarray(array))


@pytest.mark.parametrize("sample", SMOOTH, ids=lambda s: s.name)
def test_gradients_to_second_order(sample: Sample) -> None:
    inputs, y = sample.build()
    slopes_agree(inputs, y, list(sample.arrays), order=2)


def test_third_order_gradients_of_a_small_network_in_float64() -> None:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(s) for s in ((3, 4), (5, 4), (5,), (2, 5))]

    def network(x: gx.Tensor, w: gx.Tensor, b: gx.Tensor, v: gx.Tensor) -> gx.Tensor:
        scores = gx.tanh(x @ w.T + b) @ v.T
        return gx.mean(gx.logsumexp(scores, 1) - scores[:, 0])

    testing.check_gradients(network, arrays, order=3)


COMPOSITIONS: dict[str, Callable[[gx.Tensor], gx.Tensor]] = {
    "softmax": gx.softmax,
    "log_softmax": gx.log_softmax,
    "logsumexp": lambda x: gx.logsumexp(x, 1),
    "gelu": gx.gelu,
    "gelu_tanh": lambda x: gx.gelu(x, "tanh"),
    "silu": gx.silu,
    "softplus": gx.softplus,
    "elu": gx.elu,
    "layer_norm": lambda x: gx.layer_norm(x, 5),
    "var": lambda x: gx.var(x, 1),
    "std": lambda x: gx.std(x, 0, ddof=1),
    "index": lambda x: x[1:, ::2] * x[0, -1],
    "gram": lambda x: x @ x.T,
    "einsum": lambda x: gx.einsum("ab,cb,ad->d", x, x, x),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions_to_second_order(name: str) -> None:
    x = np.random.default_rng(2).standard_normal((4, 5))
    testing.check_gradients(COMPOSITIONS[name], [x], order=2, tolerance=1e-6)


def test_check_gradients_finds_a_wrong_gradient() -> None:
    with pytest.raises(MismatchError, match="derivative 1"):
        testing.check_gradients(lambda x: x * gx.stop_gradient(x), [np.ones(3)], order=1)


def test_slopes_may_be_flat() -> None:
    """The second derivative of what is linear, in all its operands or in one, is no error but 0."""
    testing.check_gradients(lambda w: gx.sum(w * 2), [np.ones(3)])
    testing.check_gradients(lambda w, v: gx.sum(w * 2) + gx.sum(v**3), [np.ones(3), np.ones(2)])
    with pytest.raises(GradientError, match="does not depend on %x1"):
        testing.check_gradients(lambda w, v: gx.sum(w), [np.ones(3), np.ones(2)])


def value(dtype: DType, *shape: Any, name: str = "x") -> Value:
    return Value(TensorType(dtype, shape), name=name)


def test_a_gradient_needs_a_float_scalar() -> None:
    x = value(DType.F32, 3)
    with pytest.raises(GradientError, match=r"needs a scalar, not f32\[3\].*\n.*test_autodiff.py"):
        autodiff.grad(ops.exp(x), [x])
    with pytest.raises(GradientError, match="only a float"):
        autodiff.grad(value(DType.I64), [x])
    with pytest.raises(GradientError, match="is not a float"):
        autodiff.grad(ops.reduce_sum(x, axes=(0,)), [value(DType.I64, 2)])


def test_what_is_not_connected_raises_and_what_is_constant_is_zero() -> None:
    x, y = value(DType.F32, 3), value(DType.F32, 2, name="other")
    total = ops.reduce_sum(ops.floor(x), axes=(0,))
    with pytest.raises(GradientError, match=r"f32\[\] does not depend on %other"):
        autodiff.grad(total, [y])
    (zero,) = autodiff.grad(total, [x])
    assert zero.type == x.type
    (found,), _ = reference.evaluate(build("f", [x], [zero]), [np.ones(3)])
    assert not found.any()


def test_an_op_without_a_rule_raises_with_its_line() -> None:
    x = value(DType.F32)
    odd = Op("odd", Elementwise(), lambda t: t, None)
    with pytest.raises(GradientError, match=r"odd has no gradient rule\n  at .*test_autodiff.py:\d+"):
        autodiff.grad(make_node(odd, [x], {}).output, [x])


def test_gradients_of_named_dimensions_have_their_type() -> None:
    batch = dims.named("batch")
    x, w = value(DType.F32, batch, 3), value(DType.F32, 3, 4, name="w")
    y = ops.tanh(ops.contract(x, w, spec="bi,io->bo"))
    dx, dw = autodiff.grad(ops.reduce_sum(y, axes=(0, 1)), [x, w])
    assert (dx.type, dw.type) == (x.type, w.type)


def test_gradients_take_the_line_of_what_they_derive_from() -> None:
    x = value(DType.F32)
    y = ops.exp(x)
    (dx,) = autodiff.grad(ops.tanh(y), [x])
    assert dx.node is not None and y.node is not None
    assert dx.node.location == y.node.location
