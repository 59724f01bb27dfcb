"""Generators: values without operands."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.errors import ArgumentError
from graphc.ir.dim import Dim
from graphc.ir.graph import Literal, Value
from graphc.ir.op import Generator
from graphc.ir.types import FLOATS, INTS, DType, TensorType
from graphc.ops import movement
from graphc.ops.define import Constructor, define, require_axes, require_dtype, require_extents, zero_gradient


def _constant_type(*, value: Literal) -> TensorType:
    if not isinstance(value, Literal):
        raise ArgumentError(f"value must be a literal, not {value!r}")
    return value.type


def _iota_type(*, shape: tuple[Dim, ...], axis: int, dtype: DType) -> TensorType:
    require_axes((axis,), len(shape))
    found = TensorType(dtype, shape)
    require_dtype((*INTS, *FLOATS), found)
    return found


def _iota(*, shape: tuple[int, ...], axis: int, dtype: DType) -> Any:
    line = np.arange(shape[axis], dtype=dtype.numpy)
    return np.broadcast_to(line.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def _extent_type(*, dim: Dim, dtype: DType) -> TensorType:
    found = TensorType(dtype, ())
    require_dtype((*INTS, *FLOATS), found)
    require_extents(dim=dim)
    return found


constant: Constructor = define(
    "constant",
    Generator(),
    _constant_type,
    lambda *, value: value.array,
    zero_gradient,
    "the literal `value`",
)
iota: Constructor = define(
    "iota",
    Generator(),
    _iota_type,
    _iota,
    zero_gradient,
    "each element's position along `axis`",
)
extent: Constructor = define(
    "extent",
    Generator(),
    _extent_type,
    lambda *, dim, dtype: np.asarray(dim, dtype.numpy),
    zero_gradient,
    "the size of the dimension `dim`, as a scalar",
)


def full(shape: tuple[Dim, ...], number: float, dtype: DType) -> Value:
    """`number` in every element of `shape`."""
    scalar = constant(value=Literal.of(np.asarray(number, dtype.numpy)))
    return movement.broadcast(scalar, shape=shape, axes=()) if shape else scalar


def full_like(value: Value, number: float) -> Value:
    """`number` in every element of the type of `value`."""
    return full(value.shape, number, value.dtype)
