"""Textual LLVM IR, written line by line.

Text is built directly, as that is an order of magnitude faster than building and printing an object per instruction,
and as it is what LLVM's own documentation and dumps show. Invariants:
 1. every SSA name and label of a `Body` is unique in it;
 2. an operand (a `str`) is an SSA name or a constant, without its type;
 3. what a body needs from outside (intrinsics, constant tables, internal functions) is recorded once in its `Module`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from graphc.ir.types import DType
from graphc.loops.target import Target

_REGISTER = {DType.F32: "float", DType.F64: "double", DType.I32: "i32", DType.I64: "i64", DType.BOOL: "i1"}
_MEMORY = {**_REGISTER, DType.BOOL: "i8"}
_SUFFIX = {DType.F32: "f32", DType.F64: "f64", DType.I32: "i32", DType.I64: "i64", DType.BOOL: "i1"}


def llvm_type(dtype: DType, lanes: int = 1) -> str:
    """The type of a value in registers: `float`, `<16 x float>`; a bool is `i1`."""
    return _REGISTER[dtype] if lanes == 1 else f"<{lanes} x {_REGISTER[dtype]}>"


def memory_type(dtype: DType, lanes: int = 1) -> str:
    """The type of the same value in memory: a bool is one byte, 0 or 1."""
    return _MEMORY[dtype] if lanes == 1 else f"<{lanes} x {_MEMORY[dtype]}>"


def suffix(dtype: DType, lanes: int = 1) -> str:
    """The type as intrinsics spell it in their names: `f32`, `v16f32`."""
    return _SUFFIX[dtype] if lanes == 1 else f"v{lanes}{_SUFFIX[dtype]}"


def constant(value: float | int | bool, dtype: DType, lanes: int = 1) -> str:
    """A constant operand, exact to the bit (floats as the hexadecimal bits of a double), in every lane."""
    scalar = _scalar_constant(value, dtype)
    return scalar if lanes == 1 else f"splat ({_REGISTER[dtype]} {scalar})"


def is_constant(operand: str) -> bool:
    """Whether an operand is a constant rather than an SSA name."""
    return not operand.startswith("%")


def _scalar_constant(value: float | int | bool, dtype: DType) -> str:
    match dtype:
        case DType.BOOL:
            return "true" if value else "false"
        case DType.I32 | DType.I64:
            return str(int(value))
        case DType.F32:
            value = float(dtype.numpy.type(value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


class Module:
    """What the functions of one module share: declarations, constant tables and internal functions, each once."""

    def __init__(self, target: Target | None = None) -> None:
        """Without a target for what has no vectors."""
        self.fma = target is None or target.fma  # whether a fused multiply-add is an instruction
        self.lanes = target.lanes_f32 if target else 1  # of f32, in a register
        self._declarations: dict[str, None] = {}
        self._definitions: dict[str, str] = {}
        self._functions: list[str] = []

    def declare(self, line: str) -> None:
        """Needs the external function `line`, such as `declare float @llvm.fabs.f32(float)`."""
        self._declarations[line] = None

    def define(self, name: str, text: Callable[[], str]) -> None:
        """Needs the internal function or constant called `name`; `text` writes it the first time."""
        if name not in self._definitions:
            self._definitions[name] = ""  # reserves the name while the text is written
            self._definitions[name] = text()

    def add(self, function: str) -> None:
        """Appends a function's text."""
        self._functions.append(function)

    @property
    def size(self) -> int:
        """Characters of the functions."""
        return sum(map(len, self._functions))

    def __str__(self) -> str:
        return "\n".join([*self._declarations, *self._definitions.values(), *self._functions]) + "\n"


class Body:
    """The instructions of one function, in order."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.block = "entry"  # label of the block being written, for phi instructions
        self._lines: list[str] = []
        self._later: dict[int, list[str]] = {}  # lines that are written in front of some line afterwards
        self._phis: dict[str, int] = {}  # line of each
        self._count = 0

    def name(self, hint: str = "t") -> str:
        """A fresh SSA name."""
        self._count += 1
        return f"%{hint}{self._count}"

    def emit(self, instruction: str, place: list[str] | None = None) -> str:
        """Appends an instruction with a result, to a reserved place if given, and returns the result's name."""
        result = self.name()
        (self._lines if place is None else place).append(f"  {result} = {instruction}")
        return result

    def reserve(self) -> list[str]:
        """A place, here, for instructions that are written later."""
        return self._later.setdefault(len(self._lines), [])

    def void(self, instruction: str) -> None:
        """Appends an instruction without a result: store, br, ret."""
        self._lines.append(f"  {instruction}")

    def label(self, hint: str = "b") -> str:
        """A fresh label (without `%`), to branch to and to `start` later."""
        return self.name(hint)[1:]

    def start(self, label: str) -> None:
        """Begins the block `label`; the previous one must have ended with a terminator."""
        self._lines.append(f"{label}:")
        self.block = label

    def call(self, function: str, result: str, args: Sequence[tuple[str, str]]) -> str:
        """Calls an intrinsic or libm function (declared on first use); `args` are (type, operand) pairs."""
        self.module.declare(f"declare {result} @{function}({', '.join(type for type, _ in args)})")
        return self.emit(f"call {result} @{function}({', '.join(f'{type} {operand}' for type, operand in args)})")

    def phi(self, type: str, *incoming: tuple[str, str]) -> str:
        """A phi instruction of (operand, label) pairs; a loop adds the pair of its back edge by `add_incoming`."""
        name = self.emit(f"phi {type} " + ", ".join(f"[ {value}, %{label} ]" for value, label in incoming))
        self._phis[name] = len(self._lines) - 1
        return name

    def add_incoming(self, phi: str, value: str, label: str) -> None:
        self._lines[self._phis[phi]] += f", [ {value}, %{label} ]"

    def __str__(self) -> str:
        lines: list[str] = []
        for number, line in enumerate(self._lines):
            lines += self._later.get(number, ())
            lines.append(line)
        return "\n".join(lines)


def word(name: str, block: str, number: int, kind: str = "i64") -> str:
    """The lines that load `%name` from a block of words in memory: the one of that number at `%block`."""
    return (
        f"  %{name}.place = getelementptr i64, ptr %{block}, i64 {number}\n  %{name} = load {kind}, ptr %{name}.place"
    )
