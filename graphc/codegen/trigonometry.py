"""sin and cos over the whole range, as internal functions of the module.

x = n π/2 + r with |r| <= π/4 (a little more by rounding); then a polynomial in r and a choice by n mod 4. The reduction
is done in f64 for f32 too. Up to |x| = 2^20, π/2 in a few parts suffices (Cody and Waite). Beyond, a loop over the
digits of 2/π computes x 2/π mod 4 to 150 bits (Payne and Hanek), for the whole vector whenever one lane needs it. That
branch is why these are functions to be called; the rest of the code around stays free of branches.
"""

from __future__ import annotations

from dataclasses import replace
from math import pi

from graphc.codegen.lanes import Lanes, fast_two_sum, hexadecimal, polynomial, two_product, two_sum
from graphc.codegen.llvm import Body, constant, llvm_type, suffix
from graphc.ir.types import DType

_LIMIT = 2.0**20  # of |x| for the short reduction: n then has 20 bits

# π/2 = A + B + C + D, the first three of 33 bits, so that their products with n are exact
_HALF_PI = hexadecimal("1.921FB544p0 1.0B4611A6p-34 1.3198A2E0p-69 1.B839A252049C1p-104")
_HALF_PI_2 = hexadecimal("1.921FB54442D18p0 1.1A62633145C07p-54")  # the same in two parts
_HALF_PI_REST = 6.077100506506192e-11  # what A leaves, in one number

_SIN = {  # (sin(r) / r - 1) / r² in r²: 2^-27.9, 2^-57.8
    DType.F32: hexadecimal("-1.555544p-3 1.1106BCp-7 -1.991694p-13"),
    DType.F64: hexadecimal(
        "-1.5555555555547p-3 1.111111110F5F0p-7 -1.A01A019BBD217p-13 1.71DE352C10C74p-19 "
        "-1.AE5E2956664AAp-26 1.5D80EBCCE1C5Dp-33"
    ),
}
_COS = {  # (cos(r) - 1 + r²/2) / r⁴ in r²: 2^-33.1, 2^-64.0
    DType.F32: hexadecimal("1.55554Ap-5 -1.6C0C1Ap-10 1.99E0EEp-16"),
    DType.F64: hexadecimal(
        "1.555555555554Ap-5 -1.6C16C16C14EBEp-10 1.A01A019C6A5D9p-16 -1.27E4F7D4A35C0p-22 "
        "1.1EE9C69C74DC9p-29 -1.8F9ACB8DA0C06p-37"
    ),
}

_IDENTITY = {DType.F32: 2.0**-14, DType.F64: 2.0**-28}  # below, sin(x) = x
_SHIFTER = 1.5 * 2.0**52

_DIGIT_BITS, _DIGITS, _SCALE = 53, 23, 200
_TWO_OVER_PI_BITS = 1220
_TWO_OVER_PI = int(  # the first bits after the point
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1921cfe1d"
    "eb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ffde05980fef2f118b"
    "5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b"
    "6babf",
    16,
)


def sin(x: Lanes) -> Lanes:
    return _call("sin", x, 0)


def cos(x: Lanes) -> Lanes:
    return _call("cos", x, 1)


def _call(name: str, x: Lanes, quarter_turns: int) -> Lanes:
    """Calls the internal function for this type, writing it on first use."""
    symbol = f"@{name}.{suffix(x.dtype, x.lanes)}"
    x.body.module.define(symbol, lambda: _function(symbol, x, quarter_turns))
    return replace(x, operand=x.body.emit(f"call {x.type} {symbol}({x.type} {x.operand})"))


def _function(symbol: str, like: Lanes, quarter_turns: int) -> str:
    body = Body(like.body.module)
    x = replace(like, body=body, operand="%x")
    n, high, low = _reduce(x if x.dtype is DType.F64 else x.cast("fpext", DType.F64), x.dtype)
    quadrant = (n + _SHIFTER).bits()
    if x.dtype is DType.F32:
        high, quadrant = high.cast("fptrunc", DType.F32), quadrant.cast("trunc", DType.I32)
        sine, cosine = _sin_single(high), _cos_single(high)
    else:
        sine, cosine = _sin_double(high, low), _cos_double(high, low)
    quadrant = quadrant + quarter_turns
    result = (quadrant & 1).equals(0).select(sine, cosine)
    result = (quadrant & 2).equals(0).select(result, -result)
    if quarter_turns == 0:
        result = (abs(x) < _IDENTITY[x.dtype]).select(x, result)
    body.void(f"ret {x.type} {result.operand}")
    return f"define internal {x.type} {symbol}({x.type} %x) {{\nentry:\n{body}\n}}"


# Polynomials --------------------------------------------------------------------------------------------------


def _sin_single(r: Lanes) -> Lanes:
    z = r * r
    return (z * r).mad(polynomial(z, _SIN[DType.F32]), r)


def _cos_single(r: Lanes) -> Lanes:
    z = r * r
    return z.mad(z.mad(polynomial(z, _COS[DType.F32]), -0.5), 1.0)


def _sin_double(r: Lanes, low: Lanes) -> Lanes:
    """r + (r³ S(r²) + low cos r)."""
    z = r * r
    slope = z.mad(-0.5, 1.0)
    return r + (z * r).mad(polynomial(z, _SIN[DType.F64]), low * slope)


def _cos_double(r: Lanes, low: Lanes) -> Lanes:
    """1 - r²/2 with its rounding error, then r⁴ C(r²) - r low."""
    z = r * r
    half = z * 0.5
    top = 1.0 - half
    rest = (1.0 - top) - half
    return top + (z * z).mad(polynomial(z, _COS[DType.F64]), rest - r * low)


# Reduction ----------------------------------------------------------------------------------------------------


def _reduce(x: Lanes, precision: DType) -> tuple[Lanes, Lanes, Lanes]:
    """(n mod 2^50, r, what r lacks) with x = n π/2 + r."""
    body = x.body
    short = _reduce_short(x, precision)
    large = abs(x) > _LIMIT
    some = large.operand if x.lanes == 1 else _any(large)
    long_label, end = body.label("long"), body.label("end")
    before = body.block
    body.void(f"br i1 {some}, label %{long_label}, label %{end}")
    body.start(long_label)
    chosen = [large.select(a, b) for a, b in zip(_reduce_long(x), short)]
    after = body.block
    body.void(f"br label %{end}")
    body.start(end)
    n, high, low = (
        replace(a, operand=body.phi(a.type, (a.operand, after), (b.operand, before))) for a, b in zip(chosen, short)
    )
    return n, high, low


def _any(flags: Lanes) -> str:
    name = f"llvm.vector.reduce.or.v{flags.lanes}i1"
    return flags.body.call(name, "i1", [(flags.type, flags.operand)])


def _reduce_short(x: Lanes, precision: DType) -> tuple[Lanes, Lanes, Lanes]:
    a, b, c, d = _HALF_PI
    n = x.mad(2 / pi, _SHIFTER) - _SHIFTER
    high = n.mad(-a, x)
    if precision is DType.F32:
        return n, n.mad(-_HALF_PI_REST, high), x.like(0.0)
    high, low = two_sum(high, n * -b)
    high, error = two_sum(high, n * -c)
    low = n.mad(-d, low + error)
    return n, *fast_two_sum(high, low)


def _reduce_long(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """Adds x times each digit of 2/π, modulo 4, into three numbers; both products and sums are exact."""
    body, zero = x.body, x.like(0.0).operand
    table = _digits(body)
    scaled = x * 2.0**-_SCALE
    before, loop, end = body.block, body.label("digit"), body.label("sum")
    body.void(f"br label %{loop}")
    body.start(loop)
    index = body.phi("i64", ("0", before))
    sums = [replace(x, operand=body.phi(x.type, (zero, before))) for _ in range(3)]
    address = body.emit(f"getelementptr double, ptr {table}, i64 {index}")
    digit = replace(x, operand=_splat(body, body.emit(f"load double, ptr {address}"), x.lanes))
    updated = sums
    for part in two_product(scaled, digit):
        updated = _accumulate(updated, part - (part * 0.25).call("rint") * 4.0)
    following = body.emit(f"add i64 {index}, 1")
    for phi, value in zip((index, *(s.operand for s in sums)), (following, *(s.operand for s in updated))):
        body.add_incoming(phi, value, loop)
    more = body.emit(f"icmp ult i64 {following}, {_DIGITS}")
    body.void(f"br i1 {more}, label %{loop}, label %{end}")
    body.start(end)
    return _turns(*updated)


def _accumulate(sums: list[Lanes], term: Lanes) -> list[Lanes]:
    first, second, third = sums
    first, term = two_sum(first, term)
    second, term = two_sum(second, term)
    return [first, second, third + term]


def _turns(first: Lanes, second: Lanes, third: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """The sum's nearest integer, and π/2 times its fraction."""
    n = first.call("rint")
    first, second = two_sum(first - n, second)
    second, third = two_sum(second, third)
    first, second = two_sum(first, second)
    second = second + third
    a, b = _HALF_PI_2
    high, low = two_product(first, first.like(a))
    low = first.mad(b, second.mad(a, low))
    return n, *fast_two_sum(high, low)


def _splat(body: Body, scalar: str, lanes: int) -> str:
    if lanes == 1:
        return scalar
    vector = llvm_type(DType.F64, lanes)
    first = body.emit(f"insertelement {vector} poison, double {scalar}, i64 0")
    return body.emit(f"shufflevector {vector} {first}, {vector} poison, <{lanes} x i32> zeroinitializer")


def _digits(body: Body) -> str:
    """The table of 2/π in digits of 53 bits, times 2^200: the last are normal, and their products are finite."""
    symbol = "@two_over_pi"

    def write() -> str:
        total = _DIGIT_BITS * _DIGITS
        bits = _TWO_OVER_PI >> (_TWO_OVER_PI_BITS - total)
        digits = [
            float(bits >> (total - _DIGIT_BITS * (i + 1)) & (1 << _DIGIT_BITS) - 1)
            * 2.0 ** (_SCALE - _DIGIT_BITS * (i + 1))
            for i in range(_DIGITS)
        ]
        values = ", ".join(f"double {constant(digit, DType.F64)}" for digit in digits)
        return f"{symbol} = internal constant [{_DIGITS} x double] [{values}]"

    body.module.define(symbol, write)
    return symbol
