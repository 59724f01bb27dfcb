"""Loads and stores of buffers, from one element to a masked gather.

Invariants:
 1. a vector access carries its element's alignment, so any position will do;
 2. a bool is a byte, 0 or 1, in memory and an i1 in registers;
 3. an element under a condition is not touched where it fails: where the condition is one for all lanes, a load reads
    a constant in its place (a masked load of an address that does not exist takes hundreds of cycles), else vectors
    are masked; a scalar store is jumped over;
 4. a local is a stack slot with room for one vector past its end, so that a constant mask needs no masked access:
    LLVM's SROA then turns it into registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from graphc.codegen.llvm import Body, constant, llvm_type, memory_type, suffix
from graphc.codegen.numbers import Mask, Numbers
from graphc.ir.index import Index, flatten
from graphc.ir.types import DType
from graphc.loops.ir import Buffer, Space


@dataclass(frozen=True, slots=True)
class Element:
    """One address that all lanes share."""

    pointer: str


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring elements, one for each lane."""

    pointer: str


@dataclass(frozen=True, slots=True)
class Spread:
    """An address for each lane; `distinct` where no two can be equal."""

    pointers: str
    distinct: bool


Place = Element | Run | Spread


@dataclass(frozen=True, slots=True)
class Offset:
    """A position known at run time only: i64, in every lane if `varying`."""

    operand: str
    varying: bool


class Memory:
    """Where the buffers of one function are, and how their elements are read and written."""

    def __init__(self, body: Body, numbers: Numbers) -> None:
        self.body, self.numbers = body, numbers
        self.base: dict[Buffer, str] = {}
        self._flat: dict[tuple[tuple[Index, ...], tuple[int, ...]], Index] = {}  # unrolled bodies ask again and again
        self.slots: list[str] = []  # lines for the entry block

    def local(self, buffer: Buffer, lanes: int) -> None:
        """Bring a local into scope; `lanes` is the widest vector of the function."""
        self.base[buffer] = self.body.name("local")
        room = math.prod(buffer.shape) + (lanes if lanes > 1 else 0)
        self.slots.append(f"  {self.base[buffer]} = alloca [{room} x {memory_type(buffer.dtype)}], align 64")

    @contextmanager
    def when(self, condition: str | None) -> Iterator[None]:
        """What is written inside runs where `condition` holds; None: always."""
        if condition is None:
            yield
            return
        then, behind = self.body.label("then"), self.body.label("behind")
        self.body.void(f"br i1 {condition}, label %{then}, label %{behind}")
        self.body.start(then)
        with self.numbers.inner():
            yield
        self.body.void(f"br label %{behind}")
        self.body.start(behind)

    def place(self, buffer: Buffer, index: tuple[Index, ...], offset: Offset | None = None, *, safe: bool) -> Place:
        """Where an element is; `safe`: surely inside the buffer, in every lane."""
        numbers = self.numbers
        flat = numbers.resolve(self._flatten(index, buffer.shape))
        kind, base = memory_type(buffer.dtype), self.base[buffer]
        inbounds = " inbounds" if safe else ""
        vector = numbers.vector
        stride = flat.coefficient(vector) if vector is not None else 0
        rest = flat - Index(0, ((vector, stride),)) if vector is not None and stride else flat
        affine = not numbers.varies(rest)
        if affine and stride in (0, 1) and not (offset and offset.varying):
            number = numbers.uniform(rest)
            if offset:
                number = numbers.once((number, "+", offset.operand), f"add nsw i64 {number}, {offset.operand}")
            pointer = numbers.once((base, number), f"getelementptr{inbounds} {kind}, ptr {base}, i64 {number}")
            return Run(pointer) if stride else Element(pointer)
        operand, dtype = self._positions(flat, offset)
        pointers = f"getelementptr {kind}, ptr {base}, {llvm_type(dtype, numbers.lanes)} {operand}"
        return Spread(numbers.once((base, operand, dtype), pointers), affine and stride != 0 and offset is None)

    def _positions(self, flat: Index, offset: Offset | None) -> tuple[str, DType]:
        numbers = self.numbers
        if offset is None:
            return numbers.varying(flat)
        wide = llvm_type(DType.I64, numbers.lanes)
        more = offset.operand if offset.varying else numbers.splat(offset.operand, DType.I64)
        if not numbers.varies(flat):
            static = numbers.splat(numbers.uniform(flat), DType.I64)
        else:
            static, dtype = numbers.varying(flat)
            if dtype is not DType.I64:
                narrow = llvm_type(dtype, numbers.lanes)
                static = numbers.once((static, "i64"), f"sext {narrow} {static} to {wide}")
        return numbers.once((static, "+", more, wide), f"add {wide} {static}, {more}"), DType.I64

    def _flatten(self, index: tuple[Index, ...], shape: tuple[int, ...]) -> Index:
        key = index, shape
        if key not in self._flat:
            self._flat[key] = flatten(index, shape)
        return self._flat[key]

    # Reading -------------------------------------------------------------------------------------------------

    def element(self, dtype: DType, place: Element, condition: str | None, otherwise: float | int | bool) -> str:
        """One element; `otherwise` where the condition fails."""
        pointer, kind = place.pointer, memory_type(dtype)
        if condition is not None:
            pointer = self.body.emit(f"select i1 {condition}, ptr {pointer}, ptr {self._constant(dtype, otherwise, 1)}")
        return self._register(self.body.emit(f"load {kind}, ptr {pointer}, align {dtype.itemsize}"), dtype, 1)

    def instead(self, dtype: DType, place: Run, condition: str | None, otherwise: float | int | bool) -> Run:
        """The run, or where the condition fails as many times `otherwise`."""
        if condition is None:
            return place
        constants = self._constant(dtype, otherwise, self.numbers.lanes)
        return Run(self.body.emit(f"select i1 {condition}, ptr {place.pointer}, ptr {constants}"))

    def vector(self, buffer: Buffer, place: Run | Spread, mask: Mask, otherwise: float | int | bool) -> str:
        """One element for each lane; `otherwise` where the mask excludes it."""
        dtype, lanes = buffer.dtype, self.numbers.lanes
        kind = memory_type(dtype, lanes)
        match place:
            case Run(pointer) if mask.full or self._is_slot(buffer, mask):
                found = self.body.emit(f"load {kind}, ptr {pointer}, align {dtype.itemsize}")
            case Run(pointer):
                found = self._masked("load", dtype, "ptr", pointer, mask, otherwise)
            case Spread(pointers):
                found = self._masked("gather", dtype, f"<{lanes} x ptr>", pointers, mask, otherwise)
        return self._register(found, dtype, lanes)

    def _masked(
        self, what: str, dtype: DType, kind: str, pointer: str, mask: Mask, otherwise: float | int | bool
    ) -> str:
        lanes = self.numbers.lanes
        result = memory_type(dtype, lanes)
        rest = f"splat (i8 {int(otherwise)})" if dtype is DType.BOOL else constant(otherwise, dtype, lanes)
        args = [(kind, pointer), ("i32", str(dtype.itemsize)), (self._bits, mask.operand), (result, rest)]
        return self.body.call(self._intrinsic(what, dtype), result, args)

    # Writing -------------------------------------------------------------------------------------------------

    def put(self, dtype: DType, place: Element, value: str) -> None:
        """Store one element."""
        stored = self._bytes(value, dtype, 1)
        self.body.void(f"store {memory_type(dtype)} {stored}, ptr {place.pointer}, align {dtype.itemsize}")

    def put_vector(self, buffer: Buffer, place: Run | Spread, value: str, mask: Mask) -> None:
        """Store one element for each lane that the mask includes; later lanes win."""
        dtype, lanes = buffer.dtype, self.numbers.lanes
        kind, vector = memory_type(dtype, lanes), llvm_type(dtype, lanes)
        match place:
            case Run(pointer) if mask.full or self._is_slot(buffer, mask):
                if not mask.full:
                    before = self.vector(buffer, place, mask, 0)
                    value = self.body.emit(f"select {self._bits} {mask.operand}, {vector} {value}, {vector} {before}")
                stored = self._bytes(value, dtype, lanes)
                self.body.void(f"store {kind} {stored}, ptr {pointer}, align {dtype.itemsize}")
            case Run(pointer):
                self._put_masked("store", dtype, "ptr", pointer, value, mask)
            case Spread(pointers):
                self._put_masked("scatter", dtype, f"<{lanes} x ptr>", pointers, value, mask)

    def _put_masked(self, what: str, dtype: DType, kind: str, pointer: str, value: str, mask: Mask) -> None:
        stored = memory_type(dtype, self.numbers.lanes), self._bytes(value, dtype, self.numbers.lanes)
        args = [stored, (kind, pointer), ("i32", str(dtype.itemsize)), (self._bits, mask.operand)]
        name = self._intrinsic(what, dtype)
        self.body.module.declare(f"declare void @{name}({', '.join(kind for kind, _ in args)})")
        self.body.void(f"call void @{name}({', '.join(f'{kind} {operand}' for kind, operand in args)})")

    # Types ---------------------------------------------------------------------------------------------------

    @property
    def _bits(self) -> str:
        return llvm_type(DType.BOOL, self.numbers.lanes)

    def _intrinsic(self, what: str, dtype: DType) -> str:
        lanes = self.numbers.lanes
        vector = f"v{lanes}i8" if dtype is DType.BOOL else suffix(dtype, lanes)
        pointer = "p0" if what in ("load", "store") else f"v{lanes}p0"
        return f"llvm.masked.{what}.{vector}.{pointer}"

    def _is_slot(self, buffer: Buffer, mask: Mask) -> bool:
        return buffer.space is Space.LOCAL and mask.runtime is None

    def _register(self, operand: str, dtype: DType, lanes: int) -> str:
        if dtype is not DType.BOOL:
            return operand
        zero = "0" if lanes == 1 else "zeroinitializer"
        return self.body.emit(f"icmp ne {memory_type(dtype, lanes)} {operand}, {zero}")

    def _bytes(self, operand: str, dtype: DType, lanes: int) -> str:
        if dtype is not DType.BOOL:
            return operand
        return self.body.emit(f"zext {llvm_type(dtype, lanes)} {operand} to {memory_type(dtype, lanes)}")

    def _constant(self, dtype: DType, value: float | int | bool, lanes: int) -> str:
        """A constant in memory, once for each lane."""
        kind, scalar = memory_type(dtype, lanes), memory_type(dtype)
        number = str(int(value)) if dtype is DType.BOOL else constant(value, dtype)
        text = number if lanes == 1 else f"splat ({scalar} {number})"
        name = f"@otherwise.{scalar}.x{lanes}.{number.replace('-', 'm')}"
        self.body.module.define(name, lambda: f"{name} = private unnamed_addr constant {kind} {text}")
        return name
