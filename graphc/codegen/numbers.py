"""Index arithmetic as instructions: numbers that all lanes share, numbers of each lane, masks.

Invariants:
 1. a variable is a number (unrolled), an i64 register (serial, parallel) or the lanes of the one vector loop in scope;
 2. an instruction stands in front of the outermost loop that changes none of its operands, and is remembered while the
    block that holds it dominates what follows (`Numbers.inner`);
 3. numbers that a mask or a condition excludes are unspecified, so nothing traps on them and no memory is touched for
    them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from graphc.codegen.llvm import Body, constant, is_constant, llvm_type
from graphc.ir.index import ZERO, Atom, Condition, Div, Index, Mod, Var
from graphc.ir.types import DType

_MOST_I32 = 2**31 - 1
_MOST_LANES = 64


@dataclass(frozen=True, slots=True)
class Mask:
    """Which lanes run: those that are `live` at compile time and, if given, set in the register `runtime`."""

    live: tuple[bool, ...]
    runtime: str | None = None

    @property
    def full(self) -> bool:
        return self.runtime is None and all(self.live)

    @property
    def empty(self) -> bool:
        return not any(self.live)

    @property
    def operand(self) -> str:
        """As an operand of type `<lanes x i1>`; the register excludes what is not live."""
        return self.runtime or "<" + ", ".join(f"i1 {str(lane).lower()}" for lane in self.live) + ">"


@dataclass(slots=True)
class _Region:
    """A loop's body or a conditional block: what is written in it, and the lines in front of a loop."""

    ahead: list[str] | None = None
    written: dict[object, str] = field(default_factory=dict)


class Numbers:
    """Writes the integers that indices stand for. A resolved index holds no unrolled variable."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.known: dict[Var, int] = {}
        self.registers: dict[Var, str] = {}
        self.vector: Var | None = None
        self.lanes = 1
        self._regions = [_Region()]
        self._depths: dict[str, int] = {}  # how many regions are around an operand; it may change within the innermost

    @contextmanager
    def inner(self, loop: list[str] | None = None) -> Iterator[None]:
        """A region that does not dominate what follows it; of a `loop`, the lines in front of it are given."""
        self._regions.append(_Region(loop))
        yield
        self._regions.pop()

    def enter(self, var: Var, register: str) -> None:
        """The register of a loop's variable, in the innermost region."""
        self.registers[var] = register
        self._depths[register] = len(self._regions) - 1

    def fixed(self, operand: str) -> str:
        """An operand that the whole function knows: a parameter, a stack slot."""
        self._depths[operand] = 0
        return operand

    def keep(self, operand: str) -> None:
        """Remember where an operand has been written."""
        self._depths.setdefault(operand, len(self._regions) - 1)

    def depth(self, operand: str) -> int:
        """How many regions an operand needs around it; those of one that nobody `keep`s are all."""
        return 0 if is_constant(operand) else self._depths.get(operand, len(self._regions) - 1)

    def once(self, key: tuple[object, ...], instruction: str) -> str:
        """The result of an instruction, written unless it already has been. The key holds all operands.

        The instruction touches no memory and never traps, so it may run where what asked for it would not.
        """
        for region in reversed(self._regions):
            if key in region.written:
                return region.written[key]
        needed = max((self.depth(part) for part in key if isinstance(part, str)), default=0)
        inner = [n for n in range(needed + 1, len(self._regions)) if self._regions[n].ahead is not None]
        place, ahead = (inner[0] - 1, self._regions[inner[0]].ahead) if inner else (len(self._regions) - 1, None)
        result = self.body.emit(instruction, ahead)
        self._regions[place].written[key] = result
        self._depths[result] = place
        return result

    def resolve(self, index: Index) -> Index:
        """With unrolled variables replaced by their numbers."""
        if not self.known:
            return index
        const, kept = index.const, []
        for term in index.terms:
            atom, factor = term
            if isinstance(atom, Var):
                number = self.known.get(atom)
                if number is not None:
                    const += factor * number
                    continue
            elif not self.known.keys().isdisjoint(atom.index.variables()):
                return index.substitute({var: Index(number) for var, number in self.known.items()})
            kept.append(term)
        return Index(const, tuple(kept)) if len(kept) < len(index.terms) else index

    def varies(self, index: Index) -> bool:
        """Whether a resolved index differs from lane to lane."""
        vector = self.vector
        return vector is not None and any(_depends(atom, vector) for atom, _ in index.terms)

    def vary(self, conditions: Iterable[Condition]) -> bool:
        """Whether a condition differs from lane to lane."""
        return any(self.varies(self.resolve(condition.index)) for condition in conditions)

    # Numbers that all lanes share ----------------------------------------------------------------------------

    def uniform(self, index: Index) -> str:
        """A resolved index that does not vary, as i64."""
        if not index.terms:
            return str(index.const)
        total = ""
        for atom, factor in index.terms:
            term = self._atom(atom)
            if factor != 1:
                term = self.once((term, "*", factor), f"mul nsw i64 {term}, {factor}")
            total = self.once((total, "+", term), f"add nsw i64 {total}, {term}") if total else term
        return self.once((total, "+", index.const), f"add nsw i64 {total}, {index.const}") if index.const else total

    def by_depth(self, index: Index) -> list[Index]:
        """The terms of an index that does not vary, those that loops around others change first."""
        found: dict[int, list[tuple[Atom, int]]] = {}
        for term in index.terms:
            found.setdefault(self.depth(self._atom(term[0])), []).append(term)
        return [Index(0, tuple(found[depth])) for depth in sorted(found)]

    def _atom(self, atom: Atom) -> str:
        match atom:
            case Var():
                return self.registers[atom]
            case Div(inner, divisor):
                shift = _shift(inner, divisor)
                number = self.uniform(inner + shift * divisor)
                quotient = self.once((number, "/", divisor), f"udiv i64 {number}, {divisor}")
                return self.once((quotient, "-", shift), f"sub nsw i64 {quotient}, {shift}") if shift else quotient
            case Mod(inner, divisor):
                number = self.uniform(inner + _shift(inner, divisor) * divisor)
                return self.once((number, "mod", divisor), f"urem i64 {number}, {divisor}")

    # Numbers of each lane ------------------------------------------------------------------------------------

    def varying(self, index: Index) -> tuple[str, DType]:
        """A resolved index in every lane, and its type: i32 where that holds all intermediate numbers."""
        dtype = DType.I32 if _magnitude(index) <= _MOST_I32 else DType.I64
        return self._lanewise(index, dtype), dtype

    def split(self, index: Index) -> tuple[Index, Index]:
        """A resolved index as the sum of what all lanes share and what differs from lane to lane."""
        if self.vector is None:
            return index, ZERO
        shared: list[tuple[Atom, int]] = []
        varying: list[tuple[Atom, int]] = []
        for term in index.terms:
            (varying if _depends(term[0], self.vector) else shared).append(term)
        return (Index(index.const, tuple(shared)), Index(0, tuple(varying))) if varying else (index, ZERO)

    def _lanewise(self, index: Index, dtype: DType) -> str:
        kind = llvm_type(dtype, self.lanes)
        shared, varying = self.split(index)
        total = ""
        for atom, factor in varying.terms:
            term = self._lane_term(atom, factor, dtype)
            total = self.once((total, "+", term, kind), f"add {kind} {total}, {term}") if total else term
        if shared == ZERO:
            return total or constant(0, dtype, self.lanes)
        base = self.uniform(shared)
        if dtype is DType.I32 and not is_constant(base):
            base = self.once((base, "i32"), f"trunc i64 {base} to i32")
        base = self.splat(base, dtype)
        return self.once((total, "+", base, kind), f"add {kind} {total}, {base}") if total else base

    def _lane_term(self, atom: Atom, factor: int, dtype: DType) -> str:
        """factor * atom, for an atom that varies."""
        kind = llvm_type(dtype, self.lanes)
        match atom:
            case Var():
                return "<" + ", ".join(f"{llvm_type(dtype)} {factor * lane}" for lane in range(self.lanes)) + ">"
            case Div(inner, divisor):
                shift = _shift(inner, divisor)
                term = self._divided("udiv", inner + shift * divisor, divisor, dtype)
                if shift:
                    back = constant(-shift, dtype, self.lanes)
                    term = self.once((term, "+", back, kind), f"add {kind} {term}, {back}")
            case Mod(inner, divisor):
                term = self._divided("urem", inner + _shift(inner, divisor) * divisor, divisor, dtype)
        if factor == 1:
            return term
        return self.once((term, "*", factor, kind), f"mul {kind} {term}, {constant(factor, dtype, self.lanes)}")

    def _divided(self, instruction: str, inner: Index, divisor: int, dtype: DType) -> str:
        kind, number = llvm_type(dtype, self.lanes), self._lanewise(inner, dtype)
        by = constant(divisor, dtype, self.lanes)
        return self.once((instruction, number, by, kind), f"{instruction} {kind} {number}, {by}")

    def splat(self, operand: str, dtype: DType) -> str:
        """A scalar operand in every lane."""
        scalar, kind = llvm_type(dtype), llvm_type(dtype, self.lanes)
        if is_constant(operand):
            return f"splat ({scalar} {operand})"
        first = self.once((operand, "insert", kind), f"insertelement {kind} poison, {scalar} {operand}, i64 0")
        order = f"<{self.lanes} x i32> zeroinitializer"
        return self.once((first, "splat", kind), f"shufflevector {kind} {first}, {kind} poison, {order}")

    # Conditions ----------------------------------------------------------------------------------------------

    def holds(self, conditions: Iterable[Condition]) -> str | None:
        """Whether all conditions hold that no lane changes, as i1; None: they do."""
        total: str | None = None
        for condition in self._open(conditions):
            if self.varies(condition.index):
                continue
            if condition.known is False:
                return "false"
            number, test = self.uniform(condition.index), _test(condition)
            total = self._both(total, self.once((test, number), f"icmp {test} i64 {number}, 0"), "i1")
        return total

    def masked(self, mask: Mask, conditions: Iterable[Condition], *, shared: bool) -> Mask:
        """The lanes of `mask` for which the conditions hold; with `shared` also those that no lane changes."""
        assert self.vector is not None
        conditions, kind = tuple(conditions), llvm_type(DType.BOOL, self.lanes)
        live, bits = mask.live, mask.runtime
        flag = self.holds(conditions) if shared else None
        if flag == "false":
            return Mask((False,) * self.lanes)
        if flag is not None:
            bits = self._both(bits, self.splat(flag, DType.BOOL), kind)
        for condition in self._open(conditions):
            if not self.varies(condition.index):
                continue
            if condition.index.variables() == {self.vector}:
                live = tuple(on and condition.evaluate({self.vector: lane}) for lane, on in enumerate(live))
            else:
                bits = self._both(bits, self._lane_test(condition), kind)
        if bits and not all(live):
            bits = self._both(bits, Mask(live).operand, kind)
        return Mask(live, bits)

    def _lane_test(self, condition: Condition) -> str:
        number, dtype = self.varying(condition.index)
        kind, zero, test = llvm_type(dtype, self.lanes), constant(0, dtype, self.lanes), _test(condition)
        return self.once((test, number, kind), f"icmp {test} {kind} {number}, {zero}")

    def some(self, mask: Mask) -> str | None:
        """Whether any lane runs, as i1; None: at least one does."""
        if mask.runtime is None:
            return "false" if mask.empty else None
        kind = llvm_type(DType.BOOL, self.lanes)
        return self.body.call(f"llvm.vector.reduce.or.v{self.lanes}i1", "i1", [(kind, mask.runtime)])

    def _both(self, a: str | None, b: str, kind: str) -> str:
        return b if a is None else self.once((a, "and", b), f"and {kind} {a}, {b}")

    def _open(self, conditions: Iterable[Condition]) -> Iterator[Condition]:
        """The conditions, resolved, that are not known to hold."""
        for condition in conditions:
            found = Condition(self.resolve(condition.index), condition.equal)
            if found.known is not True:
                yield found


def _depends(atom: Atom, var: Var) -> bool:
    return atom == var if isinstance(atom, Var) else atom.index.depends_on(var)


def _test(condition: Condition) -> str:
    return "eq" if condition.equal else "sge"


def _shift(index: Index, divisor: int) -> int:
    """How many divisors to add so that the number is not negative and unsigned division rounds down."""
    return max(0, -(index.bounds[0] // divisor))


def _magnitude(index: Index) -> int:
    """A bound for the size of every intermediate number, also in the lanes past a vector loop's extent."""
    total = abs(index.const)
    for atom, factor in index.terms:
        match atom:
            case Var(_, extent):
                size = extent + _MOST_LANES
            case Div(inner, divisor) | Mod(inner, divisor):
                size = _magnitude(inner) + divisor
        total += abs(factor) * size
    return total
