"""Index arithmetic: how one element's position follows from another's.

Shared by the ops' index maps (what a transpose or a window means) and the loop IR (where a load reads). An index
is affine in integer variables, each of which knows its extent; splitting a flat index (reshape) gives `Div` and
`Mod` atoms, which simplify away whenever the extents prove them affine.

Invariants: terms are sorted by atom, coefficients are never zero, and every `Var` runs over 0 <= var < extent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Var:
    """An integer variable, 0 <= value < extent."""

    name: str
    extent: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Div:
    """Floor division by a positive constant."""

    index: Index
    divisor: int

    def __str__(self) -> str:
        return f"({self.index})/{self.divisor}"


@dataclass(frozen=True, slots=True)
class Mod:
    """Remainder (sign of the divisor, which is positive)."""

    index: Index
    divisor: int

    def __str__(self) -> str:
        return f"({self.index})%{self.divisor}"


Atom = Var | Div | Mod


@dataclass(frozen=True, slots=True)
class Index:
    """const + sum of coefficient * atom."""

    const: int = 0
    terms: tuple[tuple[Atom, int], ...] = ()

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.const + other, self.terms)
        if not self.terms or not other.terms:
            return Index(self.const + other.const, self.terms or other.terms)
        return _sum(self.const + other.const, [*self.terms, *other.terms])

    def __sub__(self, other: Index | int) -> Index:
        return self + other * -1

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return ZERO
        return Index(self.const * factor, tuple((atom, c * factor) for atom, c in self.terms))

    def __str__(self) -> str:
        parts = [str(atom) if c == 1 else f"{c}*{atom}" for atom, c in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return "+".join(parts).replace("+-", "-")

    @property
    def bounds(self) -> tuple[int, int]:
        """Inclusive lower and upper bound over all values of the variables."""
        low = high = self.const
        for atom, c in self.terms:
            a, b = _atom_bounds(atom)
            low, high = low + min(c * a, c * b), high + max(c * a, c * b)
        return low, high

    def coefficient(self, var: Var) -> int:
        """Factor of `var` in the affine part."""
        return next((c for atom, c in self.terms if atom == var), 0)

    def depends_on(self, var: Var) -> bool:
        return var in self.variables()

    def variables(self) -> frozenset[Var]:
        found: set[Var] = set()
        for atom, _ in self.terms:
            if isinstance(atom, Var):
                found.add(atom)
            else:
                found |= atom.index.variables()
        return frozenset(found)

    def substitute(self, values: Mapping[Var, Index]) -> Index:
        """Every variable in `values` replaced by its index."""
        const, terms = self.const, []
        for atom, c in self.terms:
            match atom:
                case Var():
                    replaced = values.get(atom)
                case Div(inner, divisor):
                    replaced = divide(inner.substitute(values), divisor)
                case Mod(inner, divisor):
                    replaced = modulo(inner.substitute(values), divisor)
            if replaced is None:
                terms.append((atom, c))
            else:
                const += replaced.const * c
                terms += [(other, factor * c) for other, factor in replaced.terms]
        return _sum(const, terms)

    def evaluate(self, values: Mapping[Var, int]) -> int:
        """The number for given values of the variables (or an array of numbers, for arrays that broadcast)."""
        total = self.const
        for atom, c in self.terms:
            match atom:
                case Var():
                    total = total + c * values[atom]
                case Div(inner, divisor):
                    total = total + c * (inner.evaluate(values) // divisor)
                case Mod(inner, divisor):
                    total = total + c * (inner.evaluate(values) % divisor)
        return total


ZERO = Index()


@dataclass(frozen=True, slots=True)
class Condition:
    """`index >= 0`, or `index == 0` when `equal`."""

    index: Index
    equal: bool = False

    def __str__(self) -> str:
        return f"{self.index}{'==' if self.equal else '>='}0"

    @property
    def known(self) -> bool | None:
        """True or False when the bounds decide it, otherwise None."""
        low, high = self.index.bounds
        if self.equal:
            return True if low == high == 0 else False if low > 0 or high < 0 else None
        return True if low >= 0 else False if high < 0 else None

    def substitute(self, values: Mapping[Var, Index]) -> Condition:
        return Condition(self.index.substitute(values), self.equal)

    def evaluate(self, values: Mapping[Var, int]) -> bool:
        number = self.index.evaluate(values)
        return number == 0 if self.equal else number >= 0


@dataclass(frozen=True, slots=True)
class Piece:
    """One source of an element: operand number, position in it, and the conditions under which it applies."""

    operand: int
    index: tuple[Index, ...]
    conditions: tuple[Condition, ...] = ()


def var(name: str, extent: int) -> Index:
    """A variable as an index; a variable of extent 1 is the number 0."""
    return ZERO if extent == 1 else Index(0, ((Var(name, extent), 1),))


def constant(number: int) -> Index:
    return Index(number)


def divide(index: Index, divisor: int) -> Index:
    """Floor division, simplified with the variables' extents."""
    exact, rest = _split(index, divisor)
    low, high = rest.bounds
    if low // divisor == high // divisor:
        return exact + low // divisor
    return exact + Index(0, ((Div(rest, divisor), 1),))


def modulo(index: Index, divisor: int) -> Index:
    """Remainder, simplified with the variables' extents."""
    _, rest = _split(index, divisor)
    low, high = rest.bounds
    if low // divisor == high // divisor:
        return rest - low // divisor * divisor
    return Index(0, ((Mod(rest, divisor), 1),))


def flatten(index: Sequence[Index], extents: Sequence[int]) -> Index:
    """Row-major position of `index` in an array of shape `extents`."""
    flat = ZERO
    for position, extent in zip(index, extents, strict=True):
        flat = flat * extent + position
    return flat


def unflatten(flat: Index, extents: Sequence[int]) -> tuple[Index, ...]:
    """Inverse of `flatten`, for 0 <= flat < product of extents."""
    result: list[Index] = []
    for extent in (max(1, extent) for extent in reversed(extents)):  # where one is 0 there is no position to find
        result.append(modulo(flat, extent) if len(result) + 1 < len(extents) else flat)
        flat = divide(flat, extent)
    return tuple(reversed(result))


def _split(index: Index, divisor: int) -> tuple[Index, Index]:
    """(quotient of the terms that divide exactly, the rest)."""
    exact = Index(index.const // divisor, tuple((a, c // divisor) for a, c in index.terms if c % divisor == 0))
    return exact, Index(index.const % divisor, tuple((a, c) for a, c in index.terms if c % divisor))


def _sum(const: int, terms: Iterable[tuple[Atom, int]]) -> Index:
    total: dict[Atom, int] = {}
    for atom, c in terms:
        total[atom] = total.get(atom, 0) + c
    found = [(atom, c) for atom, c in total.items() if c]
    if len(found) > 1:
        found.sort(key=lambda term: str(term[0]))
    return Index(const, tuple(found))


def _atom_bounds(atom: Atom) -> tuple[int, int]:
    match atom:
        case Var(_, extent):
            return 0, extent - 1
        case Div(index, divisor):
            low, high = index.bounds
            return low // divisor, high // divisor
        case Mod(index, divisor):
            low, high = index.bounds
            if low // divisor == high // divisor:
                return low % divisor, high % divisor
            return 0, divisor - 1
