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
from dataclasses import dataclass

from graphc.codegen import math
from graphc.codegen.llvm import Body, constant, is_constant, llvm_type, suffix
from graphc.errors import LoweringError
from graphc.ir.types import DType


@dataclass(frozen=True, slots=True)
class _Lines:
    """Writes instructions on operands of one dtype and lane count."""

    body: Body
    dtype: DType
    lanes: int

    @property
    def type(self) -> str:
        return llvm_type(self.dtype, self.lanes)

    @property
    def bools(self) -> str:
        return llvm_type(DType.BOOL, self.lanes)

    def constant(self, value: float | int) -> str:
        return constant(value, self.dtype, self.lanes)

    def binary(self, instruction: str, a: str, b: str) -> str:
        return self.body.emit(f"{instruction} {self.type} {a}, {b}")

    def flag(self, instruction: str, a: str, b: str) -> str:
        """A logical instruction on bools."""
        return self.body.emit(f"{instruction} {self.bools} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        return self.body.emit(f"select {self.bools} {condition}, {self.type} {a}, {self.type} {b}")

    def call(self, intrinsic: str, *args: str) -> str:
        name = f"llvm.{intrinsic}.{suffix(self.dtype, self.lanes)}"
        return self.body.call(name, self.type, [(self.type, arg) for arg in args])


def emit(body: Body, op: str, args: Sequence[str], arg_dtypes: Sequence[DType], dtype: DType, lanes: int = 1) -> str:
    """Appends the op on operands `args` to `body`; returns the result's name. `dtype` is the result's."""
    if op == "convert":
        return _convert(body, args[0], arg_dtypes[0], dtype, lanes)
    lines = _Lines(body, arg_dtypes[-1], lanes)  # the last operand's: where(condition, a, b) works on a and b
    for table, has in (
        (_FLOAT, lines.dtype.is_float),
        (_INT, lines.dtype.is_int),
        (_BOOL, lines.dtype is DType.BOOL),
        (_ANY, True),
    ):
        if has and op in table:
            return table[op](lines, *args)
    if op in math.FUNCTIONS and lines.dtype.is_float:
        return math.FUNCTIONS[op](body, list(args), dtype, lanes)
    raise LoweringError(f"no instructions for {op} on {', '.join(map(str, arg_dtypes))}")


def _instruction(text: str) -> Callable[..., str]:
    return lambda e, a, b: e.binary(text, a, b)


def _intrinsic(name: str) -> Callable[..., str]:
    return lambda e, *args: e.call(name, *args)


def _extreme(greater: str) -> Callable[..., str]:
    """maximum or minimum of floats.

    `a > b ? a : b` is one instruction (vmaxps), which gives b when either is NaN; what is left is a NaN in a. With a
    constant as `a` that half folds away, so that relu is a single instruction.
    """

    def write(e: _Lines, a: str, b: str) -> str:
        if is_constant(b):
            a, b = b, a
        chosen = e.select(e.binary(f"fcmp {greater}", a, b), a, b)
        return e.select(e.binary("fcmp uno", a, a), a, chosen)

    return write


def _float_sign(e: _Lines, a: str) -> str:
    zero = e.constant(0.0)
    rest = e.select(e.binary("fcmp oeq", a, zero), zero, a)
    rest = e.select(e.binary("fcmp olt", a, zero), e.constant(-1.0), rest)
    return e.select(e.binary("fcmp ogt", a, zero), e.constant(1.0), rest)


def _int_sign(e: _Lines, a: str) -> str:
    zero = e.constant(0)
    rest = e.select(e.binary("icmp slt", a, zero), e.constant(-1), zero)
    return e.select(e.binary("icmp sgt", a, zero), e.constant(1), rest)


def _rsqrt(e: _Lines, a: str) -> str:
    return e.binary("fdiv", e.constant(1.0), e.call("sqrt", a))


def _float_divide(e: _Lines, a: str, b: str) -> tuple[str, str]:
    """Quotient rounded down and remainder with the divisor's sign, as CPython and NumPy define them."""
    zero = e.constant(0.0)
    rest = e.binary("frem", a, b)
    quotient = e.binary("fdiv", e.binary("fsub", a, rest), b)
    nonzero = e.binary("fcmp une", rest, zero)
    signs_differ = e.flag("xor", e.binary("fcmp olt", rest, zero), e.binary("fcmp olt", b, zero))
    adjust = e.flag("and", nonzero, signs_differ)
    rest = e.select(adjust, e.binary("fadd", rest, b), rest)
    rest = e.select(nonzero, rest, e.call("copysign", zero, b))
    quotient = e.select(adjust, e.binary("fsub", quotient, e.constant(1.0)), quotient)
    down = e.call("floor", quotient)
    too_low = e.binary("fcmp ogt", e.binary("fsub", quotient, down), e.constant(0.5))
    down = e.select(too_low, e.binary("fadd", down, e.constant(1.0)), down)
    plain = e.binary("fdiv", a, b)
    down = e.select(e.binary("fcmp une", quotient, zero), down, e.call("copysign", zero, plain))
    return e.select(e.binary("fcmp oeq", b, zero), plain, down), rest


def _int_divide(e: _Lines, a: str, b: str) -> tuple[str, str]:
    """Quotient rounded down and remainder with the divisor's sign; 0 and 0 for b = 0, no trap for min / -1."""
    zero, least = e.constant(0), e.constant(-(2 ** (8 * e.dtype.itemsize - 1)))
    by_zero = e.binary("icmp eq", b, zero)
    overflow = e.flag("and", e.binary("icmp eq", a, least), e.binary("icmp eq", b, e.constant(-1)))
    divisor = e.select(e.flag("or", by_zero, overflow), e.constant(1), b)
    quotient, rest = e.binary("sdiv", a, divisor), e.binary("srem", a, divisor)
    signs_differ = e.binary("icmp slt", e.binary("xor", rest, b), zero)
    adjust = e.flag("and", e.binary("icmp ne", rest, zero), signs_differ)
    quotient = e.select(adjust, e.binary("sub", quotient, e.constant(1)), quotient)
    return e.select(by_zero, zero, quotient), e.select(adjust, e.binary("add", rest, b), rest)


def _int_pow(e: _Lines, a: str, b: str) -> str:
    """By repeated squaring, modulo 2**bits; a negative exponent gives 1 / a**-b, truncated (0 for a = 0)."""
    zero, one, bits = e.constant(0), e.constant(1), 8 * e.dtype.itemsize
    result, square = one, a
    for bit in range(bits - 1):
        used = e.binary("icmp ne", e.binary("and", b, e.constant(1 << bit)), zero)
        result = e.select(used, e.binary("mul", result, square), result)
        square = e.binary("mul", square, square)
    odd = e.binary("icmp ne", e.binary("and", b, one), zero)
    inverse = e.select(e.binary("icmp eq", a, one), one, zero)
    minus_one = e.constant(-1)
    inverse = e.select(e.binary("icmp eq", a, minus_one), e.select(odd, minus_one, one), inverse)
    return e.select(e.binary("icmp slt", b, zero), inverse, result)


def _int_fma(e: _Lines, a: str, b: str, c: str) -> str:
    return e.binary("add", e.binary("mul", a, b), c)


def _convert(body: Body, a: str, source: DType, target: DType, lanes: int) -> str:
    if source is target:
        return a
    old, new = _Lines(body, source, lanes), _Lines(body, target, lanes)
    if target is DType.BOOL:
        return old.binary("fcmp une" if source.is_float else "icmp ne", a, old.constant(0))
    if source.is_float and target.is_int:
        name = f"llvm.fptosi.sat.{suffix(target, lanes)}.{suffix(source, lanes)}"
        return body.call(name, new.type, [(old.type, a)])
    wider = target.itemsize > source.itemsize
    if source is DType.BOOL:
        instruction = "uitofp" if target.is_float else "zext"
    elif target.is_float:
        instruction = "sitofp" if source.is_int else "fpext" if wider else "fptrunc"
    else:
        instruction = "sext" if wider else "trunc"
    return body.emit(f"{instruction} {old.type} {a} to {new.type}")


_FLOAT: dict[str, Callable[..., str]] = {
    "neg": lambda e, a: e.body.emit(f"fneg {e.type} {a}"),
    "abs": _intrinsic("fabs"),
    "sign": _float_sign,
    "floor": _intrinsic("floor"),
    "ceil": _intrinsic("ceil"),
    "round": _intrinsic("rint"),
    "sqrt": _intrinsic("sqrt"),
    "rsqrt": _rsqrt,
    "add": _instruction("fadd"),
    "sub": _instruction("fsub"),
    "mul": _instruction("fmul"),
    "div": _instruction("fdiv"),
    "floor_div": lambda e, a, b: _float_divide(e, a, b)[0],
    "mod": lambda e, a, b: _float_divide(e, a, b)[1],
    "maximum": _extreme("ogt"),
    "minimum": _extreme("olt"),
    "equal": _instruction("fcmp oeq"),
    "not_equal": _instruction("fcmp une"),
    "less": _instruction("fcmp olt"),
    "less_equal": _instruction("fcmp ole"),
    "greater": _instruction("fcmp ogt"),
    "greater_equal": _instruction("fcmp oge"),
    "fma": _intrinsic("fma"),
}

_INT: dict[str, Callable[..., str]] = {
    "neg": lambda e, a: e.binary("sub", e.constant(0), a),
    "abs": lambda e, a: e.select(e.binary("icmp slt", a, e.constant(0)), e.binary("sub", e.constant(0), a), a),
    "sign": _int_sign,
    "floor": lambda e, a: a,
    "ceil": lambda e, a: a,
    "round": lambda e, a: a,
    "add": _instruction("add"),
    "sub": _instruction("sub"),
    "mul": _instruction("mul"),
    "floor_div": lambda e, a, b: _int_divide(e, a, b)[0],
    "mod": lambda e, a, b: _int_divide(e, a, b)[1],
    "pow": _int_pow,
    "maximum": lambda e, a, b: e.select(e.binary("icmp sgt", a, b), a, b),
    "minimum": lambda e, a, b: e.select(e.binary("icmp slt", a, b), a, b),
    "equal": _instruction("icmp eq"),
    "not_equal": _instruction("icmp ne"),
    "less": _instruction("icmp slt"),
    "less_equal": _instruction("icmp sle"),
    "greater": _instruction("icmp sgt"),
    "greater_equal": _instruction("icmp sge"),
    "fma": _int_fma,
}

_BOOL: dict[str, Callable[..., str]] = {  # as numbers, false < true
    "add": _instruction("or"),
    "mul": _instruction("and"),
    "maximum": _instruction("or"),
    "minimum": _instruction("and"),
    "equal": _instruction("icmp eq"),
    "not_equal": _instruction("icmp ne"),
    "less": _instruction("icmp ult"),
    "less_equal": _instruction("icmp ule"),
    "greater": _instruction("icmp ugt"),
    "greater_equal": _instruction("icmp uge"),
    "logical_not": lambda e, a: e.flag("xor", a, e.constant(1)),
    "logical_and": _instruction("and"),
    "logical_or": _instruction("or"),
}

_ANY: dict[str, Callable[..., str]] = {"where": lambda e, c, a, b: e.select(c, a, b)}
