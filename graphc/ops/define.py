"""How an op is entered in the table and becomes a constructor, and the type rules that many ops share.

A gradient rule builds graph with other ops' constructors, and those rules are mutually recursive (broadcast needs
reduce_sum, reduce_sum needs broadcast). Rules therefore reach their siblings as `ops.name` at call time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.errors import ArgumentError, DTypeError, ShapeError
from graphc.ir import source
from graphc.ir.graph import Node, Value, apply
from graphc.ir.op import Kind, Op, register
from graphc.ir.types import DType, TensorType, is_extent

Rule = Callable[[Value, Node], Sequence[Value | None]]
Constructor = Callable[..., Value]


def define(
    name: str,
    kind: Kind,
    infer: Callable[..., TensorType],
    evaluate: Callable[..., Any],
    vjp: Rule | None,
    doc: str,
) -> Constructor:
    """Enter an op in the table; returns `constructor(*operands, **attributes) -> Value`.

    Attributes may be given as lists and NumPy integers; they are stored as tuples and ints.
    """
    op = register(Op(name, kind, infer, evaluate, vjp, doc))

    def constructor(*operands: Value, **attrs: Any) -> Value:
        return apply(op, *operands, **{key: _plain(attr) for key, attr in attrs.items()})

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = doc
    return constructor


def _plain(attr: Any) -> Any:
    if isinstance(attr, list | tuple | range):
        return tuple(map(_plain, attr))
    return attr.item() if isinstance(attr, np.generic) else attr


# Type rules ---------------------------------------------------------------------------------------------------


def require_dtype(accepted: Sequence[DType], *types: TensorType) -> None:
    """Raises DTypeError unless all types have one dtype, and it is accepted."""
    for type in types:
        if type.dtype not in accepted:
            raise DTypeError(f"dtype must be one of {', '.join(map(str, accepted))}, not {type.dtype}")
        if type.dtype is not types[0].dtype:
            raise DTypeError(f"operands differ in dtype: {types[0]} and {type}")


def require_same_shape(*types: TensorType) -> None:
    """Raises ShapeError unless all types have one shape."""
    for type in types[1:]:
        if type.shape != types[0].shape:
            raise ShapeError(f"operands differ in shape: {types[0]} and {type}")


def require_axes(axes: Sequence[int], rank: int) -> None:
    """Raises ArgumentError unless `axes` are distinct numbers in [0, rank)."""
    if len(set(axes)) != len(axes) or not all(type(a) is int and 0 <= a < rank for a in axes):
        raise ArgumentError(f"axes {list(axes)} must be distinct and in [0, {rank})")


def require_length(rank: int, **attrs: Sequence[Any]) -> None:
    """Raises ArgumentError unless every attribute has `rank` entries."""
    for name, attr in attrs.items():
        if len(attr) != rank:
            raise ArgumentError(f"{name} needs {rank} entries, not {list(attr)}")


def require_whole(least: int, **attrs: Sequence[Any]) -> None:
    """Raises ArgumentError unless every attribute's entries are integers from `least` on."""
    for name, attr in attrs.items():
        if not all(type(entry) is int and entry >= least for entry in attr):
            raise ArgumentError(f"{name} must be whole numbers from {least} on, not {list(attr)}")


def require_extents(**attrs: Any) -> None:
    """Raises ArgumentError unless every attribute could be the extent of an axis."""
    for name, attr in attrs.items():
        if not is_extent(attr):
            raise ArgumentError(f"{name} must be a whole number from 0 on, or a named dimension, not {attr!r}")


def require_number(value: Any, dtype: DType) -> None:
    """Raises ArgumentError unless `dtype` has the number `value`; a float is rounded to the nearest."""
    if not isinstance(value, int | float):
        raise ArgumentError(f"value must be a number, not {value!r}", source.here())
    if dtype.is_float:
        return
    low, high = (0, 1) if dtype is DType.BOOL else (np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max)
    if value != value or not low <= value <= high or int(value) != value:
        raise ArgumentError(f"{dtype} has no number {value}", source.here())


# Gradients ------------------------------------------------------------------------------------------------------


def zero_gradient(cotangent: Value, node: Node) -> Sequence[None]:
    """The rule of a piecewise constant: nothing flows to any operand."""
    return (None,) * len(node.inputs)
