"""Every elementwise op as LLVM instructions, for one element or a vector of them.

The meaning is NumPy's, to the bit where NumPy's own arithmetic is exact:
 1. no fast-math: exactly the operations written;
 2. maximum and minimum propagate NaN; comparisons with NaN are false, but for not_equal;
 3. integers wrap around; division and remainder round towards minus infinity and never trap: x // 0 = x % 0 = 0;
 4. round is half to even; sign(NaN) is NaN; rsqrt is 1 / sqrt, rounded twice;
 5. float -> int truncates; NaN becomes 0 and what is out of range the nearest integer (NumPy leaves both undefined).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan

from graphc.codegen import math
from graphc.codegen.lanes import Lanes
from graphc.codegen.llvm import Body, llvm_type, suffix
from graphc.errors import LoweringError
from graphc.ir.types import DType


def emit(body: Body, op: str, args: Sequence[str], arg_dtypes: Sequence[DType], dtype: DType, lanes: int = 1) -> str:
    """Appends the op on operands `args` to `body`; returns the result's name. `dtype` is the result's."""
    operands = [Lanes(body, arg, arg_dtype, lanes) for arg, arg_dtype in zip(args, arg_dtypes, strict=True)]
    if op == "convert":
        return _convert(operands[0], dtype).operand
    table = _TABLES[arg_dtypes[-1]]  # the last, for where(condition, a, b) is an op on a and b
    if op not in table:
        raise LoweringError(f"no instructions for {op} on {', '.join(map(str, arg_dtypes))}")
    return table[op](*operands).operand


def _arithmetic(name: str) -> Callable[..., Lanes]:
    return lambda a, b: a.arithmetic(name, b)


def _intrinsic(name: str) -> Callable[..., Lanes]:
    return lambda a, *rest: a.call(name, *rest)


def _maximum(a: Lanes, b: Lanes) -> Lanes:
    """`a > b ? a : b` is one instruction (vmaxps), which gives b when either is NaN; what is left is a NaN in a.

    With a constant as `a` that part folds away, so that relu is a single instruction. Writing the NaN as a constant
    keeps LLVM from merging the two selections of `a`, which costs more.
    """
    if b.is_constant:
        a, b = b, a
    return a.is_nan().select(a.like(nan), (a > b).select(a, b))


def _minimum(a: Lanes, b: Lanes) -> Lanes:
    if b.is_constant:
        a, b = b, a
    return a.is_nan().select(a.like(nan), (a < b).select(a, b))


def _sign(a: Lanes) -> Lanes:
    zero = a.like(0)
    rest = a.equals(0).select(zero, a) if a.dtype.is_float else zero
    return (a > 0).select(a.like(1), (a < 0).select(a.like(-1), rest))


def _float_divide(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """Quotient rounded down and remainder with the divisor's sign, as CPython and NumPy define them."""
    zero, rest = a.like(0.0), a.arithmetic("rem", b)
    quotient, inexact = (a - rest) / b, rest.differs(0.0)
    adjust = inexact & ((rest < 0.0) ^ (b < 0.0))
    rest = inexact.select(adjust.select(rest + b, rest), zero.with_sign(b))
    quotient = adjust.select(quotient - 1.0, quotient)
    down = quotient.call("floor")
    down = (quotient - down > 0.5).select(down + 1.0, down)
    plain = a / b
    down = quotient.differs(0.0).select(down, zero.with_sign(plain))
    return b.equals(0.0).select(plain, down), rest


def _int_divide(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """Quotient rounded down and remainder with the divisor's sign; 0 and 0 for b = 0, no trap for min / -1."""
    least = -(2 ** (8 * a.dtype.itemsize - 1))
    by_zero, overflow = b.equals(0), a.equals(least) & b.equals(-1)
    divisor = (by_zero | overflow).select(b.like(1), b)
    quotient, rest = a.arithmetic("sdiv", divisor), a.arithmetic("srem", divisor)
    adjust = rest.differs(0) & ((rest ^ b) < 0)
    return by_zero.select(a.like(0), adjust.select(quotient - 1, quotient)), adjust.select(rest + b, rest)


def _int_pow(a: Lanes, b: Lanes) -> Lanes:
    """By repeated squaring, modulo 2**bits; a negative exponent gives 1 / a**-b, truncated (0 for a = 0)."""
    zero, one, result, square = a.like(0), a.like(1), a.like(1), a
    for bit in range(8 * a.dtype.itemsize - 1):
        result = (b & (1 << bit)).differs(0).select(result * square, result)
        square = square * square
    inverse = a.equals(-1).select((b & 1).equals(0).select(one, a), a.equals(1).select(one, zero))
    return (b < 0).select(inverse, result)


def _convert(a: Lanes, target: DType) -> Lanes:
    source = a.dtype
    if source is target:
        return a
    if target is DType.BOOL:
        return a.differs(0)
    if source is DType.BOOL:
        return a.cast("uitofp" if target.is_float else "zext", target)
    if source.is_float and target.is_int:
        name = f"llvm.fptosi.sat.{suffix(target, a.lanes)}.{suffix(source, a.lanes)}"
        result = a.body.call(name, llvm_type(target, a.lanes), [(a.type, a.operand)])
        return Lanes(a.body, result, target, a.lanes)
    wider = target.itemsize > source.itemsize
    if target.is_float:
        return a.cast("sitofp" if source.is_int else "fpext" if wider else "fptrunc", target)
    return a.cast("sext" if wider else "trunc", target)


_COMPARISONS: dict[str, Callable[..., Lanes]] = {
    "equal": Lanes.equals,
    "not_equal": Lanes.differs,
    "less": Lanes.__lt__,
    "less_equal": Lanes.__le__,
    "greater": Lanes.__gt__,
    "greater_equal": Lanes.__ge__,
}

_NUMBER: dict[str, Callable[..., Lanes]] = {
    **_COMPARISONS,
    "where": Lanes.select,
    "neg": Lanes.__neg__,
    "abs": Lanes.__abs__,
    "sign": _sign,
    "relu": lambda a: (a <= 0).select(a.like(0), a),
    "add": Lanes.__add__,
    "sub": Lanes.__sub__,
    "mul": Lanes.__mul__,
}

_FLOAT: dict[str, Callable[..., Lanes]] = {
    **_NUMBER,
    **math.FUNCTIONS,
    "floor": _intrinsic("floor"),
    "ceil": _intrinsic("ceil"),
    "round": _intrinsic("rint"),
    "sqrt": _intrinsic("sqrt"),
    "rsqrt": lambda a: 1.0 / a.call("sqrt"),
    "div": Lanes.__truediv__,
    "floor_div": lambda a, b: _float_divide(a, b)[0],
    "mod": lambda a, b: _float_divide(a, b)[1],
    "maximum": _maximum,
    "minimum": _minimum,
    "fma": _intrinsic("fma"),
}

_INT: dict[str, Callable[..., Lanes]] = {
    **_NUMBER,
    "floor": lambda a: a,
    "ceil": lambda a: a,
    "round": lambda a: a,
    "floor_div": lambda a, b: _int_divide(a, b)[0],
    "mod": lambda a, b: _int_divide(a, b)[1],
    "pow": _int_pow,
    "maximum": lambda a, b: (a > b).select(a, b),
    "minimum": lambda a, b: (a < b).select(a, b),
    "fma": lambda a, b, c: a * b + c,
}

_BOOL: dict[str, Callable[..., Lanes]] = {  # as numbers: false < true, add is or, mul is and
    "where": Lanes.select,
    "add": _arithmetic("or"),
    "mul": _arithmetic("and"),
    "maximum": _arithmetic("or"),
    "minimum": _arithmetic("and"),
    "equal": Lanes.equals,
    "not_equal": Lanes.differs,
    "less": lambda a, b: b & ~a,
    "less_equal": lambda a, b: b | ~a,
    "greater": lambda a, b: a & ~b,
    "greater_equal": lambda a, b: a | ~b,
    "logical_not": Lanes.__invert__,
    "logical_and": _arithmetic("and"),
    "logical_or": _arithmetic("or"),
}

_TABLES = {DType.F32: _FLOAT, DType.F64: _FLOAT, DType.I32: _INT, DType.I64: _INT, DType.BOOL: _BOOL}
