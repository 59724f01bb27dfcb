"""Vector arithmetic that reads as arithmetic: `Lanes` values write LLVM instructions as they are combined.

Everything is IEEE arithmetic, rounded to nearest. `mad` is the one operation that differs between targets: fused where
the target has the instruction, otherwise a product and a sum. Code that needs the rounding error of a product asks for
it by `two_product`, which is exact on every target.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.llvm import Body, constant, is_constant, llvm_type, suffix
from graphc.ir.types import DType

_INTEGER = {DType.F32: DType.I32, DType.F64: DType.I64, DType.I32: DType.F32, DType.I64: DType.F64}


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """A vector (with one lane, a scalar) in registers. Numbers on either side of an operator become constants."""

    body: Body
    operand: str
    dtype: DType
    lanes: int

    @property
    def type(self) -> str:
        return llvm_type(self.dtype, self.lanes)

    @property
    def is_constant(self) -> bool:
        return is_constant(self.operand)

    def like(self, number: Lanes | float) -> Lanes:
        """`number` as a vector of this type."""
        if isinstance(number, Lanes):
            return number
        return self._value(constant(number, self.dtype, self.lanes))

    def arithmetic(self, name: str, other: Lanes | float) -> Lanes:
        """`add`, `sub`, `mul`, `and`, `fdiv` …: the instruction of that name, an `f` before it added for floats."""
        instruction = f"f{name}" if self.dtype.is_float else name
        return self._value(self.body.emit(f"{instruction} {self.type} {self.operand}, {self.like(other).operand}"))

    def compare(self, ordered: str, integer: str, other: Lanes | float) -> Lanes:
        """fcmp or icmp with one of the two predicates."""
        predicate = f"fcmp {ordered}" if self.dtype.is_float else f"icmp {integer}"
        return self._value(
            self.body.emit(f"{predicate} {self.type} {self.operand}, {self.like(other).operand}"), DType.BOOL
        )

    def call(self, intrinsic: str, *args: Lanes | float) -> Lanes:
        """An LLVM intrinsic on this and more operands of this type."""
        operands = [(self.type, self.like(arg).operand) for arg in (self, *args)]
        return self._value(self.body.call(f"llvm.{intrinsic}.{suffix(self.dtype, self.lanes)}", self.type, operands))

    def cast(self, instruction: str, dtype: DType) -> Lanes:
        """`bitcast`, `fpext`, `trunc` …"""
        result = llvm_type(dtype, self.lanes)
        return self._value(self.body.emit(f"{instruction} {self.type} {self.operand} to {result}"), dtype)

    def bits(self) -> Lanes:
        """The same bits as an integer, or back as a float."""
        return self.cast("bitcast", _INTEGER[self.dtype])

    def __add__(self, other: Lanes | float) -> Lanes:
        return self.arithmetic("add", other)

    def __radd__(self, other: float) -> Lanes:
        return self.like(other).arithmetic("add", self)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self.arithmetic("sub", other)

    def __rsub__(self, other: float) -> Lanes:
        return self.like(other).arithmetic("sub", self)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self.arithmetic("mul", other)

    def __rmul__(self, other: float) -> Lanes:
        return self.like(other).arithmetic("mul", self)

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self.arithmetic("div", other)

    def __rtruediv__(self, other: float) -> Lanes:
        return self.like(other).arithmetic("div", self)

    def __and__(self, other: Lanes | int) -> Lanes:
        return self.arithmetic("and", other)

    def __or__(self, other: Lanes | int) -> Lanes:
        return self.arithmetic("or", other)

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self.arithmetic("xor", other)

    def __lshift__(self, bits: int) -> Lanes:
        return self.arithmetic("shl", bits)

    def __rshift__(self, bits: int) -> Lanes:
        """Logical: zeros come in from the left."""
        return self.arithmetic("lshr", bits)

    def __neg__(self) -> Lanes:
        if not self.dtype.is_float:
            return 0 - self
        return self._value(self.body.emit(f"fneg {self.type} {self.operand}"))

    def __invert__(self) -> Lanes:
        return self ^ (1 if self.dtype is DType.BOOL else -1)

    def __abs__(self) -> Lanes:
        return self.call("fabs") if self.dtype.is_float else (self < 0).select(-self, self)

    def __lt__(self, other: Lanes | float) -> Lanes:
        return self.compare("olt", "slt", other)

    def __le__(self, other: Lanes | float) -> Lanes:
        return self.compare("ole", "sle", other)

    def __gt__(self, other: Lanes | float) -> Lanes:
        return self.compare("ogt", "sgt", other)

    def __ge__(self, other: Lanes | float) -> Lanes:
        return self.compare("oge", "sge", other)

    def equals(self, other: Lanes | float) -> Lanes:
        return self.compare("oeq", "eq", other)

    def differs(self, other: Lanes | float) -> Lanes:
        """True also where either is NaN."""
        return self.compare("une", "ne", other)

    def is_nan(self) -> Lanes:
        return self.compare("uno", "", self)

    def select(self, then: Lanes, otherwise: Lanes) -> Lanes:
        """`then` where this bool is true."""
        operands = f"{then.type} {then.operand}, {then.type} {otherwise.operand}"
        return then._value(self.body.emit(f"select {self.type} {self.operand}, {operands}"))

    def at_least(self, low: float) -> Lanes:
        """This, or `low` where it is less; NaN stays. One instruction on x86."""
        return (self.like(low) > self).select(self.like(low), self)

    def at_most(self, high: float) -> Lanes:
        """This, or `high` where it is greater; NaN stays."""
        return (self.like(high) < self).select(self.like(high), self)

    def with_sign(self, of: Lanes) -> Lanes:
        return self.call("copysign", of)

    def mad(self, factor: Lanes | float, term: Lanes | float) -> Lanes:
        """self * factor + term, fused where that is an instruction."""
        return self.call("fma", factor, term) if self.body.module.fma else self * factor + term

    @property
    def can_scale(self) -> bool:
        """Whether `scaled` is an instruction: of AVX-512, on a whole register."""
        return self.body.module.lanes == self.lanes * self.dtype.itemsize // 4 == 16

    def scaled(self, n: Lanes) -> Lanes:
        """self * 2**n for whole n, rounded once, however small or large the result."""
        kind, mask = self.type, f"i{self.lanes}"
        name = f"llvm.x86.avx512.mask.scalef.p{'s' if self.dtype is DType.F32 else 'd'}.512"
        operands = [(kind, self.operand), (kind, n.operand), (kind, self.operand), (mask, "-1"), ("i32", "4")]
        return self._value(self.body.call(name, kind, operands))

    def _value(self, operand: str, dtype: DType | None = None) -> Lanes:
        return Lanes(self.body, operand, dtype or self.dtype, self.lanes)


def polynomial(x: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    """c0 + c1 x + c2 x² + …, as (c0 + c1 x) + (c2 + c3 x) x² + … by Horner's rule in x²: a chain of half the length."""
    pairs = [_line(x, coefficients[n : n + 2]) for n in range(0, len(coefficients), 2)]
    square = x * x
    *rest, result = pairs
    for pair in reversed(rest):
        result = result.mad(square, pair)
    return result


def _line(x: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    return x.like(coefficients[0]) if len(coefficients) == 1 else x.like(coefficients[1]).mad(x, coefficients[0])


def hexadecimal(numbers: str) -> tuple[float, ...]:
    """Numbers written exactly, in C's hexadecimal notation without its 0x."""
    return tuple(map(float.fromhex, numbers.split()))


def two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """a + b, rounded, and its rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fast_two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """The same for |a| >= |b| or a = 0 (Dekker)."""
    total = a + b
    return total, b - (total - a)


def two_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """a * b, rounded, and its rounding error: by fma, or by Dekker's and Veltkamp's splitting (f64, no overflow)."""
    product = a * b
    if a.body.module.fma:
        return product, a.call("fma", b, -product)
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _halves(a: Lanes) -> tuple[Lanes, Lanes]:
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high
