"""Tensors from nothing but numbers, and triangles of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc import ops
from graphc.errors import ArgumentError
from graphc.frontend.functional.elementwise import where
from graphc.frontend.tensor import Tensor, as_shape, constant, convert
from graphc.ir import source
from graphc.ir.types import DType, Shape, as_dtype
from graphc.ops.define import require_number


def full(shape: Any, value: float, dtype: Any = np.float32) -> Tensor:
    """`value` in every element."""
    if isinstance(dtype, int):
        raise ArgumentError(f"a shape is one argument, ({shape}, {dtype}); the other is a dtype", source.here())
    number, kind = value.item() if isinstance(value, np.generic) else value, as_dtype(dtype)
    require_number(number, kind)
    return Tensor(ops.full(as_shape(shape), number, kind))


def zeros(shape: Any, dtype: Any = np.float32) -> Tensor:
    """0 in every element."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = np.float32) -> Tensor:
    """1 in every element."""
    return full(shape, 1, dtype)


def zeros_like(x: Tensor) -> Tensor:
    """0 in every element of the type of x."""
    return Tensor(ops.full_like(x.value, 0))


def ones_like(x: Tensor) -> Tensor:
    """1 in every element of the type of x."""
    return Tensor(ops.full_like(x.value, 1))


def full_like(x: Tensor, value: float) -> Tensor:
    """`value` in every element of the type of x."""
    return full(x.shape, value, x.dtype)


def arange(start: Any, stop: Any = None, step: int = 1, dtype: Any = np.int64) -> Tensor:
    """0, 1, ..., start - 1 (which may be a named dimension); or whole numbers from start in steps to before stop."""
    if stop is None and step == 1:
        (extent,) = as_shape((start,))
        return Tensor(ops.iota(shape=(extent,), axis=0, dtype=as_dtype(dtype)))
    bounds = (0, start, step) if stop is None else (start, stop, step)
    if not all(isinstance(bound, int | np.integer) for bound in bounds) or not step:
        raise ArgumentError(f"arange takes whole numbers and a step that is not 0, not {bounds}", source.here())
    return constant(np.arange(*bounds), dtype)


def linspace(start: float, stop: float, num: int, dtype: Any = np.float32) -> Tensor:
    """`num` numbers in equal steps from start to stop, both included."""
    return constant(np.linspace(start, stop, num), dtype)


def eye(rows: int, columns: int | None = None, dtype: Any = np.float32) -> Tensor:
    """The identity matrix: 1 where row and column are equal, else 0."""
    row, column = row_and_column(as_shape((rows, rows if columns is None else columns)))
    return convert(row == column, as_dtype(dtype))


def row_and_column(shape: Shape) -> tuple[Tensor, Tensor]:
    """Each element's position along the last two axes."""
    row, column = (Tensor(ops.iota(shape=shape, axis=len(shape) - n, dtype=DType.I64)) for n in (2, 1))
    return row, column


def tril(x: Tensor, k: int = 0) -> Tensor:
    """The matrices in the last two axes, 0 above diagonal k."""
    row, column = row_and_column(x.shape)
    return where(column <= row + k, x, zeros_like(x))


def triu(x: Tensor, k: int = 0) -> Tensor:
    """The matrices in the last two axes, 0 below diagonal k."""
    row, column = row_and_column(x.shape)
    return where(column >= row + k, x, zeros_like(x))
