"""Operators, broadcasting, promotion and indexing are NumPy's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import reference
from graphc.compiler import trace
from graphc.errors import ArgumentError, DTypeError, ShapeError

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


def run(function: Callable[..., Any], *arrays: Any) -> Array:
    """The function of tensors on these arrays, by the reference."""
    inputs = [gx.placeholder(f"x{n}", a.shape, a.dtype) for n, a in enumerate(map(np.asarray, arrays))]
    result = function(*inputs)
    graph, state = trace(inputs, [result], {}, "f")
    (found,), _ = reference.evaluate(graph, [*map(np.asarray, arrays), *(s.data for s in state)])
    return found


def same(function: Callable[..., Any], *arrays: Any, rtol: float = 1e-6) -> None:
    """The function does to tensors what it does to arrays, dtype included."""
    with np.errstate(all="ignore"):
        wanted = np.asarray(function(*map(np.asarray, arrays)))
    found = run(function, *arrays)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-12)


DTYPES = (np.float32, np.float64, np.int32, np.int64)
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod)
COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


@pytest.mark.parametrize("op", [*ARITHMETIC, *COMPARISONS, operator.pow])
def test_operators_promote_as_numpy_does(op: Callable[..., Any]) -> None:
    for first in DTYPES:
        for second in DTYPES:
            same(op, RANDOM.integers(1, 5, (2, 3)).astype(first), RANDOM.integers(1, 5, 3).astype(second))
        for number in (2, 3, 1.5, True):
            x = RANDOM.integers(1, 5, (2, 3)).astype(first)
            same(lambda x, n=number: op(x, n), x)
            same(lambda x, n=number: op(n, x), x)


def test_unary_operators() -> None:
    x = RANDOM.standard_normal((2, 3)).astype(np.float32)
    same(lambda x: -x, x)
    same(lambda x: +x, x)
    same(abs, x)
    same(lambda x: ~(x > 0) | (x > 1) & (x < 2), x)


def test_an_array_on_the_left_asks_the_tensor() -> None:
    x = RANDOM.standard_normal((2, 3)).astype(np.float32)
    found = run(lambda t: x * t + x, x)
    np.testing.assert_allclose(found, x * x + x, rtol=1e-6)


@pytest.mark.parametrize(
    ("a", "b"), [((3,), (2, 3)), ((2, 1), (1, 3)), ((), (2, 3)), ((4, 1, 3), (2, 1)), ((0, 3), (1, 3)), ((1,), (1,))]
)
def test_shapes_broadcast_as_numpys(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    same(operator.sub, RANDOM.standard_normal(a), RANDOM.standard_normal(b))


MATMULS = [
    *[((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4))],
    *[((5, 2, 3), (5, 3, 4)), ((4, 1, 2, 3), (5, 3, 2)), ((5, 2, 3), (3,)), ((3,), (5, 3, 2)), ((0, 3), (3, 2))],
]


@pytest.mark.parametrize(("a", "b"), MATMULS)
def test_matmul_is_numpys(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    same(operator.matmul, RANDOM.standard_normal(a), RANDOM.standard_normal(b), rtol=1e-9)


KEYS: list[Any] = [
    0,
    -1,
    (1, 2),
    (1, -2),
    slice(1, 3),
    slice(None, None, 2),
    slice(None, None, -1),
    slice(3, 0, -2),
    slice(5, 2),
    (slice(None), 1),
    (Ellipsis, 1),
    (1, Ellipsis),
    (None, 1),
    (slice(None), None, 2),
    (Ellipsis, None),
    (slice(1, None), slice(None, -1), 0),
    (),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_is_numpys(key: Any) -> None:
    same(lambda x: x[key], RANDOM.standard_normal((4, 5, 6)))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_integer_tensor_gathers(place: int) -> None:
    x, at = RANDOM.standard_normal((4, 5, 6)), np.array([[1, 0], [3, 2]])
    same(lambda x, i: x[(*[slice(None)] * place, i)], x, at)
    same(lambda x: x[(None, *[slice(None)] * place, np.array([2, 1]))], x)


def test_shapes_and_dtypes_are_known() -> None:
    x = gx.placeholder("x", ("batch", 3), gx.int32)
    assert str((x[1:] * 2.0).type) == "f64[batch-1,3]"
    assert str(x.T.astype("float32").type) == "f32[3,batch]"
    assert str(x.reshape(-1).type) == "i32[3*batch]"
    assert (x.ndim, x.dtype, x.name) == (2, gx.int32, "x")
    assert repr(x) == "<graphc tensor x: i32[batch,3]>"


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ShapeError, lambda x, y: x + y, "f32[2,3] and f32[4]"),
        (ShapeError, lambda x, y: x @ y, "inner extents of matmul differ"),
        (ShapeError, lambda x, y: x.reshape(7), "f32[2,3]"),
        (ShapeError, lambda x, y: x.reshape(-1, 4), "cannot be reshaped to [-1, 4]"),
        (ArgumentError, lambda x, y: x.reshape(-1, -1), "only one extent"),
        (ArgumentError, lambda x, y: x.reshape(1, 2, 3).transpose(1, 2), "swapaxes exchanges two"),
        (ArgumentError, lambda x, y: x[0, 0, 0], "has 2 axes"),
        (ArgumentError, lambda x, y: x[2], "index 2 is outside an axis of 2"),
        (ArgumentError, lambda x, y: bool(x > 0), "no truth value"),
        (ArgumentError, lambda x, y: list(x), "cannot be iterated over"),
        (ArgumentError, lambda x, y: x + "one", "not str"),
        (DTypeError, lambda x, y: x + 1j, "complex"),
        (DTypeError, lambda x, y: gx.where(x, x, x), "must be bool"),
        (DTypeError, lambda x, y: x + np.array(["a"]), "dtype"),
        (ArgumentError, lambda x, y: gx.placeholder("a b", (3,)), "identifier"),
        (ArgumentError, lambda x, y: gx.placeholder("a", (-3,)), "negative"),
        (ArgumentError, lambda x, y: gx.placeholder("a", (2.5,)), "2.5"),
        (ArgumentError, lambda x, y: gx.sum(x, 2), "axis 2 is outside"),
        (DTypeError, lambda x, y: gx.placeholder("a", (3,), np.complex64), "unsupported dtype"),
    ],
)
def test_mistakes_are_refused_at_the_users_line(error: type[Exception], make: Any, message: str) -> None:
    x, y = gx.placeholder("x", (2, 3)), gx.placeholder("y", (4,))
    with pytest.raises(error) as caught:
        make(x, y)
    assert message in str(caught.value)


def test_a_broadcast_error_shows_where_both_operands_come_from() -> None:
    x, y = gx.exp(gx.placeholder("x", (2, 3))), gx.placeholder("y", (4,))
    with pytest.raises(ShapeError) as caught:
        x + y
    text = str(caught.value)
    assert "operand 0 f32[2,3] is from" in text
    assert "operand 1 f32[4] is %y" in text
    assert text.count("test_tensor.py:") == 2


def test_named_dimensions_do_not_mix() -> None:
    x, y = gx.placeholder("x", ("n", 3)), gx.placeholder("y", ("m", 3))
    with pytest.raises(ShapeError, match=r"f32\[n,3\] and f32\[m,3\]"):
        x + y


def test_a_parameter_holds_a_copy() -> None:
    source = np.ones(3, np.float32)
    parameter = gx.Parameter(source, "w")
    source[0] = 7
    assert parameter.data[0] == 1
    parameter.data = [1.0, 2.0, 3.0]
    assert parameter.data.dtype == np.float32
    assert gx.Parameter([1.5]).dtype == gx.float32


def test_states_begin_with_a_cache_line() -> None:
    for shape in ((), (3,), (784, 128), (0, 5)):
        state = gx.Parameter(np.ones(shape, np.float32))
        assert state.data.ctypes.data % 64 == 0
        state.data = np.zeros(shape)
        assert state.data.ctypes.data % 64 == 0
        assert state.data.shape == shape and state.data.dtype == np.float32


def test_the_size_of_a_named_dimension_is_a_number_in_a_call() -> None:
    x = gx.placeholder("x", ("n", 3))
    n = x.shape[0]
    results = [x.sum() / n, n * x, n - x, x > n, gx.constant(n), gx.sqrt(gx.constant(n, "float32")), 2 * n // 2 + x]
    results += [n > x, n // (x + 1), n % (x + 1), n + np.int64(1) + x, 4 * n // np.int64(2) + x]
    found = gx.compile([x], results)(array := np.arange(6, dtype=np.float32).reshape(2, 3))
    wanted = [array.sum() / 2, 2 * array, 2 - array, array > 2, 2, np.sqrt(np.float32(2)), 2 + array]
    wanted += [array < 2, 2 // (array + 1), 2 % (array + 1), 3 + array, 4 + array]
    for result, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, other, rtol=1e-6)
    dtypes = [*["f32"] * 3, "bool", "i64", "f32", "f32", "bool", *["f32"] * 4]
    assert [str(result.dtype) for result in results] == dtypes


def test_a_slice_may_end_at_a_named_dimension() -> None:
    """A mask of the longest sequence, of which a call takes what it needs."""
    x, mask = gx.placeholder("x", ("n", "t")), np.tril(np.ones((5, 5), np.float32))
    n, t = x.shape
    f = gx.compile([x], [gx.constant(mask)[:t, :t], x[:, t - 1], x[n - 1], x[:, 1:t], x[:n]])
    array = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    wanted = [mask[:3, :3], array[:, 2], array[1], array[:, 1:], array]
    for found, other in zip(f(array), wanted, strict=True):
        np.testing.assert_array_equal(found, other)
    with pytest.raises(ArgumentError, match="slice 0:6:1 is not within 0:5"):
        f(np.zeros((2, 6), np.float32))
