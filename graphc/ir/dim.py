"""Dimensions: an integer, or a polynomial in named dimensions such as `batch` or `128*batch+1`.

A polynomial is kept in one canonical form (sorted monomials, no zero coefficient, never constant), so that
equality of dimensions is equality of values. Whatever evaluates to a plain number is an `int`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from graphc.errors import ArgumentError, ShapeError
from graphc.ir import source

RESERVED = frozenset(("none", "true", "false", "inf", "nan", "f32", "f64", "i32", "i64", "bool"))  # words of IR text

Monomial = tuple[str, ...]  # sorted names, repeated for powers; () is the constant


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A dimension that is not yet a number. Build one with `named`, then use +, -, * and exact //.

    What only a number can do raises ArgumentError.
    """

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        if not self._is_exact("+", other):
            return NotImplemented
        return _canonical([*self.terms, *_terms(other)])

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        if not self._is_exact("-", other):
            return NotImplemented
        return _canonical([*self.terms, *((m, -c) for m, c in _terms(other))])

    def __rsub__(self, other: Dim) -> Dim:
        if not self._is_exact("-", other):
            return NotImplemented
        return _canonical([*_terms(other), *((m, -c) for m, c in self.terms)])

    def __neg__(self) -> Dim:
        return self * -1

    def __mul__(self, other: Dim) -> Dim:
        if not self._is_exact("*", other):
            return NotImplemented
        return _canonical((tuple(sorted(m + n)), c * d) for m, c in self.terms for n, d in _terms(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Dim:
        if not isinstance(other, Polynomial | float) and hasattr(other, "__index__") and operator.index(other) > 0:
            return floor_div(self, operator.index(other))
        refused: Dim = self._divided(other)
        return refused

    def __index__(self) -> int:
        raise self._unknown(f"int({self})")

    def __float__(self) -> float:
        raise self._unknown(f"float({self})")

    def _compared(self, other: object) -> Any:
        if not isinstance(other, int | float | Polynomial):
            return NotImplemented
        raise self._unknown(f"comparing {self} with {other!r}")

    __lt__ = __le__ = __gt__ = __ge__ = _compared

    def _divided(self, other: object) -> Any:
        if not isinstance(other, int | float | Polynomial):
            return NotImplemented
        raise self._unknown(f"dividing, {self} and {other!r},")

    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __rfloordiv__ = _divided

    def _is_exact(self, op: str, other: object) -> bool:
        """Whether the other operand is a dimension, too; raises ArgumentError for a number that is none."""
        if isinstance(other, float):
            raise self._unknown(f"{self} {op} {other!r}")
        return isinstance(other, int | Polynomial)

    def _unknown(self, what: str) -> ArgumentError:
        return ArgumentError(
            f"{what} needs a number, and dimension {self} has its size in a call only; "
            "graphc.constant(x.shape[axis]) is the size as a tensor",
            source.here(),
        )

    def __str__(self) -> str:
        text = ""
        for names, coefficient in self.terms:
            factors = "*".join(names)
            size = abs(coefficient)
            body = str(size) if not names else factors if size == 1 else f"{size}*{factors}"
            sign = "-" if coefficient < 0 else "+" if text else ""
            text += sign + body
        return text

    __repr__ = __str__


Dim = int | Polynomial


def named(name: str) -> Polynomial:
    """The dimension called `name`, which must be an identifier."""
    if not name.isidentifier() or name in RESERVED:
        raise ArgumentError(
            f"a dimension's name must be an identifier that text does not use, not {name!r}", source.here()
        )
    return Polynomial((((name,), 1),))


def exact_div(dim: Dim, divisor: Dim) -> Dim:
    """`dim / divisor`; raises ShapeError unless the division leaves no rest for every value of the names."""
    if isinstance(dim, int) and isinstance(divisor, int):
        if divisor and dim % divisor == 0:
            return dim // divisor
    elif dim == divisor:
        return 1
    elif len(_terms(divisor)) == 1:
        ((names, coefficient),) = _terms(divisor)
        quotient = [_divide_monomial(m, c, names, coefficient) for m, c in _terms(dim)]
        if all(term is not None for term in quotient):
            return _canonical(term for term in quotient if term is not None)
    raise ShapeError(f"dimension {dim} is not a multiple of {divisor}")


def floor_div(dim: Dim, divisor: int) -> Dim:
    """`dim // divisor`; raises ShapeError unless `divisor` divides the factor of every name."""
    constant = next((c for names, c in _terms(dim) if names == ()), 0)
    return exact_div(dim - constant, divisor) + constant // divisor


def product(dims: Iterable[Dim]) -> Dim:
    """Number of elements of a shape."""
    return prod(dims, start=1)


def names_of(dim: Dim) -> frozenset[str]:
    """The names that `dim` depends on."""
    return frozenset(name for monomial, _ in _terms(dim) for name in monomial)


def bind(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """`dim` with the names in `sizes` replaced by numbers."""
    if isinstance(dim, int):
        return dim
    return _canonical(
        (tuple(n for n in m if n not in sizes), c * prod(sizes[n] for n in m if n in sizes)) for m, c in dim.terms
    )


def parse(text: str) -> Dim:
    """Inverse of `str`; raises ArgumentError on anything else."""
    if not re.fullmatch(r"[+-]?[^+-]+([+-][^+-]+)*", text):
        raise ArgumentError(
            f"a dimension is a number, a name, or a sum of products of them, not {text!r}", source.here()
        )
    total: Dim = 0
    for sign, body in re.findall(r"([+-]?)([^+-]+)", text):
        term: Dim = -1 if sign == "-" else 1
        for factor in body.split("*"):
            term = term * (int(factor) if factor.isascii() and factor.isdecimal() else named(factor))
        total = total + term
    return total


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return (((), dim),) if isinstance(dim, int) else dim.terms


def _canonical(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    kept = sorted(((m, c) for m, c in total.items() if c), key=lambda term: (-len(term[0]), term[0]))
    if not kept:
        return 0
    if kept[0][0] == ():
        return kept[0][1]
    return Polynomial(tuple(kept))


def _divide_monomial(names: Monomial, coefficient: int, by: Monomial, divisor: int) -> tuple[Monomial, int] | None:
    rest = list(names)
    for name in by:
        if name not in rest:
            return None
        rest.remove(name)
    return None if divisor == 0 or coefficient % divisor else (tuple(rest), coefficient // divisor)
