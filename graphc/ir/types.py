"""Types of values: an element type and a shape."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from graphc.errors import DTypeError, ShapeError
from graphc.ir import dim as dims
from graphc.ir import source
from graphc.ir.dim import Dim, Polynomial

Shape = tuple[Dim, ...]


class DType(enum.Enum):
    """Element type. The member's value is its name in IR text."""

    F32 = "f32"
    F64 = "f64"
    I32 = "i32"
    I64 = "i64"
    BOOL = "bool"

    __hash__ = object.__hash__  # members are compared by identity; Enum's own is written in Python and asked for often

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of the same elements, in native byte order."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _NUMPY[self].itemsize

    @property
    def is_float(self) -> bool:
        return self in FLOATS

    @property
    def is_int(self) -> bool:
        return self in INTS

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"graphc.{_NUMPY[self].name}"


float32, float64, int32, int64, bool_ = DType.F32, DType.F64, DType.I32, DType.I64, DType.BOOL
FLOATS, INTS = (DType.F32, DType.F64), (DType.I32, DType.I64)
NUMBERS, ALL = INTS + FLOATS, (*INTS, *FLOATS, DType.BOOL)

_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F32: np.dtype(np.float32),
    DType.F64: np.dtype(np.float64),
    DType.I32: np.dtype(np.int32),
    DType.I64: np.dtype(np.int64),
    DType.BOOL: np.dtype(np.bool_),
}
_FROM_NUMPY: dict[np.dtype[Any], DType] = {numpy: dtype for dtype, numpy in _NUMPY.items()}


def as_dtype(spec: Any) -> DType:
    """A DType from itself, its IR name, or anything `numpy.dtype` accepts; raises DTypeError otherwise."""
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in DType._value2member_map_:
        return DType(spec)
    try:
        found = None if spec is None else _FROM_NUMPY.get(np.dtype(spec).newbyteorder("="))
    except TypeError:
        found = None
    if found is None:
        listed = ", ".join(d.numpy.name for d in DType)
        raise DTypeError(f"unsupported dtype {spec}; graphc has {listed}", source.here())
    return found


def is_extent(dim: object) -> bool:
    """Whether `dim` can be the extent of an axis."""
    return isinstance(dim, Polynomial) or (type(dim) is int and dim >= 0)  # True is no number of elements


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; prints as `f32[batch,784]`. Raises ShapeError for an extent that is none."""

    dtype: DType
    shape: Shape
    is_bound: bool = field(init=False, compare=False, repr=False)  # whether all extents are numbers

    def __post_init__(self) -> None:
        for extent in self.shape:
            if not is_extent(extent):
                raise ShapeError(f"an extent is a whole number from 0 on, or named, not {extent!r}")
        object.__setattr__(self, "is_bound", not any(isinstance(extent, Polynomial) for extent in self.shape))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return dims.product(self.shape)

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape as integers; raises ShapeError while a named dimension is unbound."""
        if not self.is_bound:
            raise ShapeError(f"type {self} has unbound named dimensions")
        return cast(tuple[int, ...], self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a contiguous array of this type, once its dimensions are numbers."""
        return math.prod(self.extents) * self.dtype.itemsize

    def with_shape(self, shape: Shape) -> TensorType:
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"
