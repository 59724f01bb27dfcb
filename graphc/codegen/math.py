"""exp, log, tanh, erf, pow … as vector arithmetic: no branches, no tables, no libm call.

Every function is within 2 units in the last place over its whole range, and right for NaN, infinities, signed zeros,
and subnormal arguments and results. The method is the classical one: reduce the argument to a small interval, evaluate
a polynomial there, put the result together (J.-M. Muller, Elementary Functions, 3rd ed., chapters 3, 10 and 11). The
coefficients are minimax: found by Remez' exchange algorithm in 160-bit arithmetic; for f32 each was rounded in
turn, lowest degree first, and the others were fitted again. Comments give the error of the rounded polynomial,
relative to the function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, nan

from graphc.codegen import trigonometry
from graphc.codegen.lanes import Lanes, fast_two_sum, hexadecimal, polynomial, two_product, two_sum
from graphc.ir.types import DType


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format and the constants of the functions in it."""

    mantissa: int  # bits after the leading one
    bias: int
    ln2_high: float  # so few bits that a product with an exponent is exact
    ln2_low: float
    exp_range: tuple[float, float]  # below and above, exp is 0 and infinity
    expm1_low: float  # below, expm1 is -1
    tanh_high: float  # above, tanh is 1
    erf_high: float  # above, erf is 1
    exp: tuple[float, ...]  # (exp(r) - 1 - r) / r² on |r| <= ln2 / 2, best for exp
    expm1: tuple[float, ...]  # the same, best for expm1
    tanh: tuple[float, ...]  # (tanh(x) / x - 1) / x² in x², below 0.625
    erf_border: float
    erf_near: tuple[float, ...]  # erf(x) / x - 1 in x², below the border
    erf_origin: float
    erf_far: tuple[float, ...]  # -log(1 - erf(x)) in x - origin, above the border
    log: tuple[float, ...]  # for 1 + y from sqrt(1/2) to sqrt(2), either (log(1 + y) - y + y²/2) / y³ in y
    log_quotient: bool  # or (log((1 + s) / (1 - s)) / s - 2) / s² in s², s = y / (2 + y)

    @property
    def shifter(self) -> float:
        """Added to a number, it rounds it to an integer, which is then in the low bits of the sum."""
        return 1.5 * 2.0**self.mantissa

    @property
    def tiny(self) -> float:
        """The least normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def negligible(self) -> float:
        """Below, x and x + x² / 2 are the same number."""
        return 2.0 ** -(self.mantissa + 4)

    @property
    def sqrt_half(self) -> int:
        """The bits of the square root of 1/2."""
        return {23: 0x3F3504F3, 52: 0x3FE6A09E667F3BCD}[self.mantissa]


_SINGLE = Format(
    mantissa=23,
    bias=127,
    ln2_high=355 / 512,
    ln2_low=-2.1219444005469057e-04,
    exp_range=(-104.0, 89.0),
    expm1_low=-18.0,
    tanh_high=9.1,
    erf_high=4.0,
    exp=hexadecimal("1.FFFFFCp-2 1.555488p-3 1.555844p-5 1.124084p-7 1.6ADBEAp-10"),  # 2^-28.2
    expm1=hexadecimal("1.FFFFFEp-2 1.5554A8p-3 1.5556D4p-5 1.122DEp-7 1.6BC44Ep-10"),  # 2^-26.0
    tanh=hexadecimal("-1.555532p-2 1.1106F6p-3 -1.B835DAp-5 1.51FC7Ap-6 -1.752A16p-8"),  # 2^-27.7
    erf_border=0.9375,
    erf_near=hexadecimal("1.06EBA8p-3 -1.812740p-2 1.CE2D64p-4 -1.B80120p-6 1.544AA8p-8 -1.A6126Ep-11 1.4F8E56p-14"),
    erf_origin=0.0,
    log=hexadecimal(  # 2^-27.3
        "1.55554Ap-2 -1.00022p-2 1.99A5B6p-3 -1.54788Ep-3 1.226B64p-3 -1.0CDD92p-3 1.07E4EAp-3 -1.4230A6p-4"
    ),
    log_quotient=False,
    erf_far=hexadecimal("1.D4CE0Ap-13 1.20A7D8p0 1.4655E8p-1 1.A9045Ep-4 -1.6AD8E0p-6 1.8C3E72p-9 -1.969F9Ap-13"),
)

_EXP_DOUBLE = hexadecimal(  # 2^-61.7
    "1p-1 1.5555555555559p-3 1.555555555555Ap-5 1.111111110F610p-7 1.6C16C16C14365p-10 "
    "1.A01A01B02C242p-13 1.A01A01B0FFFCCp-16 1.71DDF78E6CC7Ap-19 1.27E4C5041B61Dp-22 "
    "1.AF60340C8F4CEp-26 1.1F9656E793F0Ep-29"
)

_DOUBLE = Format(
    mantissa=52,
    bias=1023,
    ln2_high=0.6931471805598903,
    ln2_low=5.497923018708371e-14,
    exp_range=(-746.0, 710.0),
    expm1_low=-40.0,
    tanh_high=20.0,
    erf_high=5.95,
    exp=_EXP_DOUBLE,
    expm1=_EXP_DOUBLE,
    tanh=hexadecimal(  # 2^-56.4
        "-1.55555555554FFp-2 1.111111110ACCEp-3 -1.BA1BA1B5064DBp-5 1.664F477ADAE00p-6 -1.226E162BF3AA2p-7 "
        "1.D6CF280DAE01Cp-9 -1.7D68A31F418F8p-10 1.3366125BA1B95p-11 -1.DF55749E575D1p-13 1.439114664D71Ep-14 "
        "-1.0DA70C3154E32p-16"
    ),
    erf_border=1.0,
    erf_near=hexadecimal(  # 2^-56.9
        "1.06EBA8214DB68p-3 -1.812746B0379BDp-2 1.CE2F21A040D16p-4 -1.B82CE311FA93Fp-6 "
        "1.565BCCF92B379p-8 -1.C02DB03DD8DCEp-11 1.F9A2BAA931D0Cp-14 -1.F4CA4D72B3E56p-17 "
        "1.B97FD3FEBEA16p-20 -1.5C0727E2941F1p-23 1.D71B15F8149E6p-27 -1.ABAE5E5CDEE03p-31"
    ),
    erf_origin=1.0,
    log=hexadecimal(  # 2^-58.5
        "1.5555555555593p-1 1.999999997FB32p-2 1.24924942179E6p-2 1.C71C51E7F79D4p-3 "
        "1.7466462CCC059p-3 1.39A0F4F588DAEp-3 1.2F0D8F54BC361p-3"
    ),
    log_quotient=True,
    erf_far=hexadecimal(  # 2^-59.5 of erf
        "1.D97FBF27AA2A1p0 1.51C9B0006C236p1 1.AFABC11A295F4p-1 1.5477F09C0369Cp-5 "
        "-1.48C9D3EB1DFB0p-7 1.033F65B005AE0p-9 -1.F1B38979D497Fp-13 -1.B8DE9D972C040p-16 "
        "1.C7A780DEC5D06p-16 -1.426BD85C920EBp-17 1.1475574D6CE65p-19 -1.32D4526B13928p-23 "
        "-1.A2F41661B2D1Cp-24 1.BEFE2C60EE714p-25 -1.002BA25BFA980p-26 1.899E538CF7E7Ap-29 "
        "-1.94E0A60D62399p-32 1.FAE7D30D9DBB3p-36 -1.2477112843352p-40"
    ),
)

# f64 as f32's pow needs it
_SHORT = replace(
    _DOUBLE,
    exp=hexadecimal(  # 2^-34.1
        "1.0000003B20B5Dp-1 1.5555543E6C027p-3 1.55548B7D16CDAp-5 1.111274D31D491p-7 1.6D8F2B6AD3B3Fp-10 "
        "1.9F06F1B8F7535p-13"
    ),
    log=hexadecimal(  # 2^-35.6
        "1.555555C45435Ap-2 -1.FFFFFD2C3F186p-3 1.999917179E3AAp-3 -1.5555F30ED5496p-3 1.24AAE666B02CAp-3 "
        "-1.000200EFA97CDp-3 1.C318F0027D543p-4 -1.95742C185499Fp-4 1.9897069528509p-4 -1.989F8ADD3640Ap-4 "
        "1.C54EC9B9D5B7Ap-5"
    ),
    log_quotient=False,
)

_POW_DOUBLE = hexadecimal(  # (log((1 + s) / (1 - s)) / s - 2 - 2 s² / 3) / s⁴ in s², 2^-72.5
    "1.9999999999996p-2 1.2492492493049p-2 1.C71C71C57DFF9p-3 1.745D18337A9EFp-3 "
    "1.3B1362672438Fp-3 1.1120C17EF96D9p-3 1.DE318EA4C5D57p-4 1.EB20D2F2FCA99p-4"
)

_FORMATS = {DType.F32: _SINGLE, DType.F64: _DOUBLE}
_LOG2_E = 1.4426950408889634


# The exponential family: x = n ln2 + r ------------------------------------------------------------------------


def _reduce(x: Lanes, f: Format, bias: int) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """(r, what r lacks by rounding, n, an integer whose low bits are n + bias), by Cody and Waite's two-part ln2."""
    shifted = x.mad(_LOG2_E, f.shifter + bias)
    n = shifted - (f.shifter + bias)
    high = n.mad(-f.ln2_high, x)
    r = n.mad(-f.ln2_low, high)
    return r, n.mad(-f.ln2_low, high - r), n, shifted.bits()


def _expm1_of_reduced(r: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    return (r * r).mad(polynomial(r, coefficients), r)


def _scale_twice(y: Lanes, biased: Lanes, f: Format) -> Lanes:
    """y 2^n from the bits of n + 2 bias, in two steps, so that over- and underflow happen once, in the last product."""
    half = (biased << (f.mantissa - 1)) & ((2 * f.bias + 1) << f.mantissa)
    return y * half.bits() * ((biased << f.mantissa) - half).bits()


def _exp_clamped(x: Lanes, f: Format, extra: Lanes | None = None) -> Lanes:
    """exp(x + extra) for x in `exp_range`, extra tiny."""
    r, _, n, biased = _reduce(x, f, 2 * f.bias)
    if extra is not None:
        r = r + extra
    y = _expm1_of_reduced(r, f.exp) + 1.0
    return y.scaled(n) if y.can_scale else _scale_twice(y, biased, f)


def _exp(x: Lanes, f: Format) -> Lanes:
    low, high = f.exp_range
    return _exp_clamped(x.at_least(low).at_most(high), f)


def _exp_negative(x: Lanes, f: Format) -> tuple[Lanes, Lanes]:
    """(2^n, exp(r) - 1) for x from 2 - bias to 0, where 2^n is normal."""
    r, _, _, biased = _reduce(x, f, f.bias)
    return (biased << f.mantissa).bits(), _expm1_of_reduced(r, f.expm1)


def _expm1(x: Lanes, f: Format) -> Lanes:
    """Works on 2^(n - 1), which is finite wherever the result is. Next to n = 0, r's rounding error would show."""
    r, lacking, _, biased = _reduce(x.at_least(f.expm1_low).at_most(f.exp_range[1]), f, f.bias - 1)
    scale = (biased << f.mantissa).bits()
    q = (r * r).mad(polynomial(r, f.expm1), lacking) + r
    half = q.mad(scale, scale - 0.5)
    return (abs(x) < f.negligible).select(x, half + half)


def _tanh(x: Lanes, f: Format) -> Lanes:
    """x + x³ P(x²) near 0; further out 1 - 2 e / (1 + e) with e = exp(-2|x|), a fraction below 1/2."""
    size = abs(x).at_most(f.tanh_high)
    square = size * size
    near = (square * size).mad(polynomial(square, f.tanh), size)
    scale, q = _exp_negative(size * -2.0, f)
    e = q.mad(scale, scale)
    far = 1.0 - (e + e) / (e + 1.0)
    return (size < 0.625).select(near, far).with_sign(x)


def _sigmoid(x: Lanes, f: Format) -> Lanes:
    """With e = exp(-|x|) and t = e / (1 + e): 1 - t on the right, e / (1 + e) = e - e t on the left.

    The sum 1 + e may lose half a unit of a small e; in t alone that would be one unit of the result.
    """
    e = _exp_clamped((-abs(x)).at_least(f.exp_range[0]), f)
    t = e / (e + 1.0)
    side = (x > 0.0).select(x.like(1.0), e)
    return (-t).mad(side, side)


def _erf(x: Lanes, f: Format) -> Lanes:
    """x + x P(x²) near 0; 1 - exp(-Q(|x|)) further out, where only the absolute error of the exponential matters."""
    size = abs(x).at_most(f.erf_high)
    scale, q = _exp_negative(-polynomial(size - f.erf_origin, f.erf_far), f)
    far = 1.0 - q.mad(scale, scale)
    near = size.mad(polynomial(size * size, f.erf_near), size)
    return (size < f.erf_border).select(near, far).with_sign(x)


# Logarithms: x = 2^e (1 + f) ----------------------------------------------------------------------------------


def _split(x: Lanes, f: Format) -> tuple[Lanes, Lanes, Lanes]:
    """(e, the bits of e + bias, m) with x = 2^e m and sqrt(1/2) <= m < sqrt(2), for normal positive x."""
    bits = x.bits() - (f.sqrt_half - (f.bias << f.mantissa))
    biased = bits >> f.mantissa
    unit = 2.0**f.mantissa  # an integer in the low bits of this number adds its value
    e = (biased | ((f.mantissa + f.bias) << f.mantissa)).bits() - (unit + f.bias)
    m = ((bits & ((1 << f.mantissa) - 1)) + f.sqrt_half).bits()
    return e, biased, m


def _log_of_parts(e: Lanes, y: Lanes, f: Format) -> Lanes:
    """e ln2 + log(1 + y) = e ln2 + y - y²/2 + …, the small terms first."""
    low, square = e * f.ln2_low, y * y
    if not f.log_quotient:
        rest = (square * y).mad(polynomial(y, f.log), low)
        return e.mad(f.ln2_high, y + square.mad(-0.5, rest))
    s, half = y / (y + 2.0), square * 0.5  # a division halves the polynomial's degree
    z = s * s
    rest = s.mad(z.mad(polynomial(z, f.log), half), low)  # log(1 + y) = y - (y²/2 - s (y²/2 + R(s²)))
    return e.mad(f.ln2_high, y - (half - rest))


def _log_special(result: Lanes, x: Lanes) -> Lanes:
    """The limits of a logarithm whose argument is x."""
    result = (x < inf).select(result, x)
    result = (x < 0.0).select(x.like(nan), result)
    return x.equals(0.0).select(x.like(-inf), result)


def _normal(x: Lanes, f: Format) -> tuple[Lanes, Lanes]:
    """(x, or 2^k x where x is subnormal; 0 or k)."""
    small, k = x < f.tiny, float(f.mantissa)
    return small.select(x * 2.0**k, x), small.select(x.like(k), x.like(0.0))


def _log(x: Lanes, f: Format) -> Lanes:
    normal, k = _normal(x, f)
    e, _, m = _split(normal, f)
    return _log_special(_log_of_parts(e - k, m - 1.0, f), x)


def _log1p(x: Lanes, f: Format) -> Lanes:
    """log(u) with u = 1 + x, whose rounding error joins the fraction."""
    u = x + 1.0
    error = (x > 1.0).select(1.0 - (u - x), x - (u - 1.0))
    e, biased, m = _split(u, f)
    biased = (biased < 2 * f.bias).select(biased, biased.like(2 * f.bias))
    inverse = ((2 * f.bias - biased) << f.mantissa).bits()  # 2^-e; beyond, the error is lost in x anyway
    result = _log_special(_log_of_parts(e, error.mad(inverse, m - 1.0), f), u)
    return (abs(x) < f.negligible).select(x, result)


# Powers -------------------------------------------------------------------------------------------------------


def _pow_single(x: Lanes, y: Lanes) -> Lanes:
    """Through f64, where a rounding error of the exponent is far below f32's precision."""
    f, wide_x, wide_y = _SHORT, abs(x).cast("fpext", DType.F64), y.cast("fpext", DType.F64)
    e, _, m = _split(wide_x, f)
    power = _log_of_parts(e, m - 1.0, f) * wide_y
    r, _, _, biased = _reduce(power.at_least(-110.0).at_most(90.0), f, f.bias)
    scale = (biased << f.mantissa).bits()
    result = _expm1_of_reduced(r, f.exp).mad(scale, scale).cast("fptrunc", DType.F32)
    return _pow_special(result, x, y, _SINGLE)


def _pow_double(x: Lanes, y: Lanes) -> Lanes:
    """The logarithm to 68 bits as a sum of two numbers, for its error is multiplied by up to 745."""
    f = _DOUBLE
    normal, k = _normal(abs(x), f)
    e, _, m = _split(normal, f)
    high, low = _log_in_two(e - k, m)
    # an exponent of 2^70 and more gives 0, 1 or infinity; the product must not overflow
    y_bounded = y.at_least(-(2.0**70)).at_most(2.0**70)
    power, error = two_product(y_bounded, high)
    error = y_bounded.mad(low, error)
    least, most = f.exp_range
    inside = (power > least) & (power < most)
    result = _exp_clamped(power.at_least(least).at_most(most), f, inside.select(error, error.like(0.0)))
    return _pow_special(result, x, y, f)


def _log_in_two(e: Lanes, m: Lanes) -> tuple[Lanes, Lanes]:
    """e ln2 + log(m) = e ln2 + 2 s + s³ (2/3 + s² P(s²)), s = (m - 1) / (m + 1), as high + low."""
    top, (bottom, bottom_low) = m - 1.0, two_sum(m, m.like(1.0))
    s = top / bottom
    product, product_low = two_product(s, bottom)
    s_low = ((top - product) - product_low - s * bottom_low) / bottom
    z, z_low = two_product(s, s)
    z_low = (s + s).mad(s_low, z_low)
    # 2/3 is the sum of two numbers; the rest of the polynomial is small enough for one
    two_thirds, two_thirds_low = m.like(2 / 3), 3.700743415417188e-17
    r, r_low = fast_two_sum(two_thirds, z * polynomial(z, _POW_DOUBLE))
    r_low = r_low + two_thirds_low
    cube, cube_low = two_product(z, s)
    cube_low = z.mad(s_low, z_low.mad(s, cube_low))
    tail, tail_low = two_product(cube, r)
    tail_low = cube.mad(r_low, cube_low.mad(r, tail_low))
    total, total_low = fast_two_sum(s + s, tail)
    total_low = total_low + (tail_low + (s_low + s_low))
    exponent, exponent_low = e * _DOUBLE.ln2_high, e * _DOUBLE.ln2_low
    high, low = fast_two_sum(exponent, total)  # e = 0 or |e ln2| > |log(m)|
    low = low + total_low + exponent_low
    return fast_two_sum(high, low)


def _pow_special(result: Lanes, x: Lanes, y: Lanes, f: Format) -> Lanes:
    """C99 F.9.4.4, from `result` = |x|^y for finite nonzero x and finite y."""
    size, zero, one = abs(x), x.like(0.0), x.like(1.0)
    grows = (size > 1.0) ^ (y < 0.0)
    extreme = size.equals(0.0) | size.equals(inf) | abs(y).equals(inf)
    result = extreme.select(grows.select(x.like(inf), zero), result)
    result = (extreme & size.equals(1.0)).select(one, result)
    # integers of 2^mantissa and more are their own rounding, those of twice that are even
    integer, half = _is_integer(y, f), y * 0.5
    odd = integer & ~_is_integer(half, f)
    negative = x.bits() < 0
    result = (negative & odd).select(-result, result)
    invalid = (x < 0.0) & (x > -inf) & ~integer
    result = invalid.select(x.like(nan), result)
    result = (x.is_nan() | y.is_nan()).select(x.like(nan), result)
    return (x.equals(1.0) | y.equals(0.0)).select(one, result)


def _is_integer(y: Lanes, f: Format) -> Lanes:
    """Rounds |y| by adding and subtracting 2^mantissa, from where on every number is an integer."""
    size, unit = abs(y), 2.0**f.mantissa
    return ((size + unit) - unit).equals(size) | (size >= unit)


def _pow(x: Lanes, y: Lanes) -> Lanes:
    return _pow_single(x, y) if x.dtype is DType.F32 else _pow_double(x, y)


def _with_format(function: Callable[[Lanes, Format], Lanes]) -> Callable[..., Lanes]:
    return lambda x: function(x, _FORMATS[x.dtype])


FUNCTIONS: dict[str, Callable[..., Lanes]] = {
    "exp": _with_format(_exp),
    "expm1": _with_format(_expm1),
    "log": _with_format(_log),
    "log1p": _with_format(_log1p),
    "tanh": _with_format(_tanh),
    "sigmoid": _with_format(_sigmoid),
    "erf": _with_format(_erf),
    "pow": _pow,
    "sin": trigonometry.sin,
    "cos": trigonometry.cos,
}
