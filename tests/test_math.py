"""The elementary functions against high-precision references; the scalar ops against NumPy."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest

from graphc.codegen import jit, scalar
from graphc.codegen.llvm import Body, Module, is_constant, llvm_type, memory_type
from graphc.errors import ArgumentError, LoweringError
from graphc.ir.types import ALL, DType, bool_, float32, float64, int32, int64

Array = np.ndarray[Any, Any]
LIMIT = 2.0  # units in the last place
TARGETS = ("native", "x86-64-v3", "x86-64")
FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos")
DTYPES = (float32, float64)


@functools.cache
def compiled(op: str, operands: tuple[DType, ...], result: DType, lanes: int, target: str) -> Callable[..., Array]:
    """`op` on arrays, `lanes` elements at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHC_TARGET", target)
        try:
            module = Module(jit.host_target())
        except ArgumentError as error:
            pytest.skip(str(error))
        body = Body(module)
        loads = [load(body, f"%in{i}", dtype, lanes) for i, dtype in enumerate(operands)]
        value = scalar.emit(body, op, loads, operands, result, lanes)
        if result is bool_:
            value = body.emit(f"zext {llvm_type(bool_, lanes)} {value} to {memory_type(bool_, lanes)}")
        address = body.emit(f"getelementptr {memory_type(result)}, ptr %out, i64 %i")
        body.void(f"store {memory_type(result, lanes)} {value}, ptr {address}, align 1")
        body.void(f"%following = add i64 %i, {lanes}")
        body.void("%more = icmp ult i64 %following, %n")
        body.void("br i1 %more, label %loop, label %done")
        parameters = ", ".join([*(f"ptr %in{i}" for i in range(len(operands))), "ptr %out", "i64 %n"])
        module.add(
            f"define void @apply({parameters}) {{\nentry:\n  br label %loop\nloop:\n"
            f"  %i = phi i64 [ 0, %entry ], [ %following, %loop ]\n{body}\ndone:\n  ret void\n}}"
        )
        code = jit.compile(str(module))
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(operands) + 1), ctypes.c_int64)(code.address("apply"))

    def call(*arrays: Array) -> Array:
        assert code
        count = len(arrays[0])
        padded = [np.resize(np.ascontiguousarray(a), -(-count // lanes) * lanes) for a in arrays]
        out = np.empty(len(padded[0]), result.numpy)
        function(*(a.ctypes.data for a in padded), out.ctypes.data, len(out))
        return out[:count]

    return call


def load(body: Body, pointer: str, dtype: DType, lanes: int) -> str:
    address = body.emit(f"getelementptr {memory_type(dtype)}, ptr {pointer}, i64 %i")
    value = body.emit(f"load {memory_type(dtype, lanes)}, ptr {address}, align 1")
    if dtype is bool_:
        return body.emit(f"trunc {memory_type(bool_, lanes)} {value} to {llvm_type(bool_, lanes)}")
    return value


def unary(op: str, dtype: DType, lanes: int = 16, target: str = "native") -> Callable[..., Array]:
    return compiled(op, (dtype,), dtype, lanes, target)


# References ---------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


DOUBLE: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "erf": np.vectorize(math.erf),
    "sin": np.sin,
    "cos": np.cos,
}


def many(op: str, x: float) -> Any:
    """`op` to 1300 bits, as sin of 1e308 and log1p of 5e-324 need."""
    with mpmath.workprec(1300):
        number = mpmath.mpf(x)
        if op == "sigmoid":
            return 1 / (1 + mpmath.exp(-number))
        return getattr(mpmath, op)(number)


def units(result: Array, exact: Sequence[Any] | Array) -> Array:
    """Distance in units in the last place of the exact result, at least those of subnormal numbers."""
    info = np.finfo(result.dtype)
    if isinstance(exact, np.ndarray):
        _, exponent = np.frexp(exact)
        unit = np.ldexp(1.0, np.maximum(exponent - 1, info.minexp) - info.nmant)
        return np.asarray(np.abs(result.astype(np.float64) - exact) / unit)
    distances = []
    for got, want in zip(result, exact, strict=True):
        exponent = int(mpmath.frexp(want)[1])
        unit = mpmath.ldexp(1, max(exponent - 1, int(info.minexp)) - info.nmant)
        distances.append(float(abs(mpmath.mpf(float(got)) - want) / unit))
    return np.array(distances)


def assert_close(name: str, x: Array, result: Array, exact: Sequence[Any] | Array) -> None:
    distance = units(result, exact)
    worst = int(np.argmax(np.where(np.isnan(distance), np.inf, distance)))
    assert distance[worst] <= LIMIT, f"{name}({x[worst]!r}) = {result[worst]!r}, {distance[worst]:.2f} ulp off"


def samples(op: str, dtype: DType, count: int) -> Array:
    """Random bits, moderate numbers, and the neighbourhoods where a function changes its method or its limit."""
    rng = np.random.default_rng(17)
    unsigned = np.uint32 if dtype is float32 else np.uint64
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize), count, dtype=np.uint64).astype(unsigned).view(dtype.numpy)
    moderate = rng.normal(0, 1, count) * np.exp(rng.uniform(-5, 5, count))
    borders = [0.3466, 0.375, 0.625, 0.7072, 0.9375, 1, 1.4143, 9.1, 20, 4, 5.95, 87.34, 88.73, 103.98, 708.4, 709.79]
    borders += [745.14, 1.570796, 3.1415927, 355, 2.0**20, 1e300]
    near = np.concatenate([b * (1 + rng.normal(0, 1e-4, count // 40)) for b in borders])
    near = near[near < np.finfo(dtype.numpy).max]
    small = np.finfo(dtype.numpy).smallest_subnormal * rng.integers(1, 1 << 20, count // 10)
    x = np.concatenate([moderate, near, -near, small, -small]).astype(dtype.numpy)
    x = np.concatenate([bits[np.isfinite(bits)], x])
    lowest = {"log": 0.0, "log1p": -1.0}.get(op, -np.inf)
    return np.asarray(x[x > lowest])


# Accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_f32_functions_are_within_2_ulp_everywhere(op: str, target: str) -> None:
    x = samples(op, float32, 1 << 14)
    with np.errstate(all="ignore"):
        exact = DOUBLE[op](x.astype(np.float64))
        x, exact = x[np.abs(exact) < 3.4028235e38], exact[np.abs(exact) < 3.4028235e38]
    assert_close(op, x, unary(op, float32, target=target)(x), exact)


@pytest.mark.parametrize("op", [op for op in FUNCTIONS if op != "erf"])
def test_f32_functions_are_within_2_ulp_at_every_8191st_bit_pattern(op: str) -> None:
    x = np.arange(0, 1 << 32, 8191, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        exact = DOUBLE[op](x.astype(np.float64))
        rounded = exact.astype(np.float32)
    result, finite = unary(op, float32)(x), np.isfinite(rounded)
    np.testing.assert_array_equal(result[~finite], rounded[~finite])
    assert_close(op, x[finite], result[finite], exact[finite])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_f64_functions_are_within_2_ulp_everywhere(op: str, target: str) -> None:
    x = np.random.default_rng(5).permutation(samples(op, float64, 1 << 10))[:500]
    x = np.unique(np.clip(x, -800, 709.78)) if op in ("exp", "expm1", "sigmoid") else x
    assert_close(op, x, unary(op, float64, target=target)(x), [many(op, float(number)) for number in x])


@pytest.mark.parametrize("target", ["native", "x86-64"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pow_is_within_2_ulp_everywhere(dtype: DType, target: str) -> None:
    rng = np.random.default_rng(7)
    largest = 88.0 if dtype is float32 else 709.0
    power = rng.uniform(-largest * 1.16, largest, 3000)  # logarithm of the result, subnormal ones included
    base = np.exp(rng.choice([1e-6, 1e-2, 1, 40], 3000) * rng.uniform(-2, 2, 3000)).astype(dtype.numpy)
    power, base = power[base != 1], base[base != 1]
    exponent = (power / np.log(base, dtype=np.float64)).astype(dtype.numpy)
    result = compiled("pow", (dtype, dtype), dtype, 16, target)(base, exponent)
    with mpmath.workprec(200):
        exact = [mpmath.mpf(float(a)) ** mpmath.mpf(float(b)) for a, b in zip(base, exponent)]
        assert_close("pow", base, result, exact)


@pytest.mark.parametrize("target", ["native", "x86-64"])
@pytest.mark.parametrize("op", ["sin", "cos"])
def test_f64_reduction_keeps_its_precision_next_to_multiples_of_half_pi(op: str, target: str) -> None:
    # the last is the double whose cosine is the smallest (Kahan; Muller, table 11.1)
    x = [math.pi / 2 * k for k in (1, 2, 3, 355, 1 << 20, (1 << 20) + 1)]
    x += [1e5, 2.0**20, math.nextafter(2.0**20, 1e9), 1e22, 1.7976931348623157e308, 6381956970095103.0 * 2.0**797]
    numbers = np.array(x + [-number for number in x])
    exact = [many(op, float(number)) for number in numbers]
    assert_close(op, numbers, unary(op, float64, target=target)(numbers), exact)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_every_lane_count_gives_the_same_bits(op: str, lanes: int) -> None:
    for dtype in DTYPES:
        x = samples(op, dtype, 1 << 9)
        assert unary(op, dtype, lanes)(x).tobytes() == unary(op, dtype)(x).tobytes()


NAN, INF = math.nan, math.inf
LIMITS = {  # op: results for nan, inf, -inf, 0, -0
    "exp": (NAN, INF, 0.0, 1.0, 1.0),
    "expm1": (NAN, INF, -1.0, 0.0, -0.0),
    "log": (NAN, INF, NAN, -INF, -INF),
    "log1p": (NAN, INF, NAN, 0.0, -0.0),
    "tanh": (NAN, 1.0, -1.0, 0.0, -0.0),
    "sigmoid": (NAN, 1.0, 0.0, 0.5, 0.5),
    "erf": (NAN, 1.0, -1.0, 0.0, -0.0),
    "sin": (NAN, NAN, NAN, 0.0, -0.0),
    "cos": (NAN, NAN, NAN, 1.0, 1.0),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_limits_and_signed_zeros_are_those_of_ieee_754(op: str, target: str) -> None:
    for dtype in DTYPES:
        result = unary(op, dtype, target=target)(np.array([NAN, INF, -INF, 0.0, -0.0], dtype.numpy))
        expected = np.array(LIMITS[op], dtype.numpy)
        np.testing.assert_array_equal(result, expected)
        signs = np.signbit(result[~np.isnan(result)])
        np.testing.assert_array_equal(signs, np.signbit(expected[~np.isnan(expected)]))


@pytest.mark.parametrize(
    ("dtype", "largest", "least"),
    [(float32, 88.72283, -103.97208), (float64, 709.782712893384, -745.13321910194)],
)
def test_exp_overflows_and_underflows_exactly_at_its_limits(dtype: DType, largest: float, least: float) -> None:
    x = np.array([largest, largest, least, least], dtype.numpy)
    x[1] = np.nextafter(x[1], dtype.numpy.type(np.inf))
    x[3] = least - 0.01
    result = unary("exp", dtype)(x)
    assert 0.99 * np.finfo(dtype.numpy).max < result[0] < np.inf
    np.testing.assert_array_equal(result[1:], [np.inf, np.finfo(dtype.numpy).smallest_subnormal, 0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pow_of_special_numbers_is_that_of_c99(dtype: DType, target: str) -> None:
    special = [0.0, -0.0, INF, -INF, NAN, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 1.5, -1.5, 2.0**23, 2.0**24, 2.0**52 + 1]
    special += [2.0**53, 1e38, -1e38, 1e-40, 1.7e308, -1.7e308, 5e-324]
    with np.errstate(all="ignore"):
        numbers = np.array(special, dtype.numpy)
        base, exponent = (a.ravel() for a in np.meshgrid(numbers, numbers))
        expected = np.power(base, exponent)
    result = compiled("pow", (dtype, dtype), dtype, 16, target)(base, exponent)
    np.testing.assert_allclose(result, expected, rtol=4 * np.finfo(dtype.numpy).eps, atol=0)
    numeric = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(result[numeric]), np.signbit(expected[numeric]))


# Scalar ops ---------------------------------------------------------------------------------------------------


def floats(dtype: DType) -> Array:
    small = np.finfo(dtype.numpy).smallest_subnormal
    values = [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, 3.0, -3.0, 7.25, 1e10, -1e30, small, -small, INF, -INF, NAN]
    return np.array(values, dtype.numpy)


def ints(dtype: DType) -> Array:
    least, most = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    return np.array([0, 1, -1, 2, -2, 3, -3, 7, -7, 1000, least, least + 1, most], dtype.numpy)


def values(dtype: DType) -> Array:
    if dtype is bool_:
        return np.array([False, True])
    return floats(dtype) if dtype.is_float else ints(dtype)


UNARY_FLOAT = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x.dtype.type(1) / np.sqrt(x),
}
UNARY_INT = {"neg": np.negative, "abs": np.abs, "sign": np.sign, "floor": np.copy, "ceil": np.copy, "round": np.copy}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
COMPARISONS = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
LOGICAL = {"logical_and": np.logical_and, "logical_or": np.logical_or}


def check(
    op: str, reference: Callable[..., Array], arrays: Sequence[Array], dtypes: tuple[DType, ...], result: DType
) -> None:
    with np.errstate(all="ignore"):
        expected = reference(*arrays).astype(result.numpy)
    for target, lanes in (("native", 16), ("native", 1), ("x86-64", 4)):
        got = compiled(op, dtypes, result, lanes, target)(*arrays)
        np.testing.assert_array_equal(got, expected, err_msg=f"{op} on {dtypes}, {target}")
        if result.is_float and op not in ("maximum", "minimum"):
            numeric = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(got[numeric]), np.signbit(expected[numeric]), err_msg=op)


@pytest.mark.parametrize("dtype", [float32, float64, int32, int64], ids=str)
def test_operations_on_one_number_agree_with_numpy(dtype: DType) -> None:
    for op, reference in (UNARY_FLOAT if dtype.is_float else UNARY_INT).items():
        check(op, reference, [values(dtype)], (dtype,), dtype)


@pytest.mark.parametrize("dtype", [float32, float64, int32, int64], ids=str)
def test_operations_on_two_numbers_agree_with_numpy(dtype: DType) -> None:
    pair = [a.ravel() for a in np.meshgrid(values(dtype), values(dtype))]
    for op, reference in BINARY.items():
        check(op, reference, pair, (dtype, dtype), dtype)
    for op, reference in COMPARISONS.items():
        check(op, reference, pair, (dtype, dtype), bool_)


def test_division_agrees_with_numpy() -> None:
    for dtype in DTYPES:
        pair = [a.ravel() for a in np.meshgrid(values(dtype), values(dtype))]
        check("div", np.divide, pair, (dtype, dtype), dtype)


def test_operations_on_bools_agree_with_numpy() -> None:
    pair = [a.ravel() for a in np.meshgrid(values(bool_), values(bool_))]
    extremes = {"maximum": np.maximum, "minimum": np.minimum, "add": np.add, "mul": np.multiply}
    for op, reference in {**COMPARISONS, **LOGICAL, **extremes}.items():
        check(op, reference, pair, (bool_, bool_), bool_)
    check("logical_not", np.logical_not, [values(bool_)], (bool_,), bool_)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_where_chooses_element_by_element(dtype: DType) -> None:
    a, b = (array.ravel() for array in np.meshgrid(values(dtype), values(dtype)))
    condition = np.arange(len(a)) % 3 == 0
    check("where", np.where, [condition, a, b], (bool_, dtype, dtype), dtype)


@pytest.mark.parametrize("dtype", [int32, int64], ids=str)
def test_integer_pow_wraps_around_and_truncates_reciprocals(dtype: DType) -> None:
    base = np.array([2, -3, 7, 0, 10, -1, -1, 1, 2, 0, 3], dtype.numpy)
    exponent = np.array([10, 3, 40, 0, 70, -3, -4, -9, -1, -2, 2], dtype.numpy)
    truncated = {5: -1, 6: 1, 7: 1, 8: 0, 9: 0}
    expected = np.power(base, np.abs(exponent))
    for position, number in truncated.items():
        expected[position] = number
    np.testing.assert_array_equal(compiled("pow", (dtype, dtype), dtype, 4, "native")(base, exponent), expected)


@pytest.mark.parametrize("target", ALL, ids=str)
@pytest.mark.parametrize("source", ALL, ids=str)
def test_conversion_agrees_with_numpy_and_saturates(source: DType, target: DType) -> None:
    def reference(x: Array) -> Array:
        if not (source.is_float and target.is_int):
            return x.astype(target.numpy)
        info = np.iinfo(target.numpy)
        bounded = [int(min(max(number, -1e300), 1e300)) if number == number else 0 for number in x.tolist()]
        return np.array([min(max(number, int(info.min)), int(info.max)) for number in bounded])

    check("convert", reference, [values(source)], (source,), target)


@pytest.mark.parametrize("target", ["native", "x86-64"])
def test_fma_rounds_once(target: str) -> None:
    for dtype in DTYPES:
        epsilon = np.finfo(dtype.numpy).eps
        a = np.array([1 + epsilon], dtype.numpy)
        c = -(a * a)
        result = compiled("fma", (dtype, dtype, dtype), dtype, 4, target)(a, a, c)
        assert result[0] == epsilon**2


def test_maximum_with_a_constant_propagates_nan_in_one_instruction() -> None:
    body = Body(Module())
    result = scalar.emit(body, "maximum", ["%x", "splat (float 0x0000000000000000)"], (float32, float32), float32, 4)
    module = f"define <4 x float> @f(<4 x float> %x) {{\n{body}\n  ret <4 x float> {result}\n}}"
    text = jit.compile(module).assembly()
    assert "maxps" in text
    assert "cmp" not in text


def test_an_unknown_op_is_an_error() -> None:
    with pytest.raises(LoweringError, match="no instructions for exp on i32"):
        scalar.emit(Body(Module()), "exp", ["%x"], [int32], int32)


def test_constants_are_told_from_ssa_names() -> None:
    assert is_constant("splat (i32 1)")
    assert not is_constant("%t1")
