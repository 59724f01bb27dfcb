"""Memory at aligned addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from graphc.errors import PlanError
from graphc.ir import memory

Array = np.ndarray[Any, Any]
_HEAD = object.__basicsize__
_word = ctypes.c_size_t.from_address


def aligned_bytes(size: int, name: str) -> Array:
    """Uninitialised memory at an address that is a multiple of ALIGNMENT; raises PlanError when there is not enough."""
    try:
        return memory.aligned_bytes(size)
    except (MemoryError, ValueError, OverflowError):  # NumPy's, for what is too large to be asked for
        raise PlanError(f"{name} needs an arena of {size / 2**20:.1f} MiB, which cannot be had") from None


def empty_arrays(types: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], name: str) -> list[Array]:
    """New arrays for the results of a step; raises PlanError when there is not enough memory."""
    try:
        return [np.empty(shape, dtype) for shape, dtype in types]
    except (MemoryError, ValueError):
        size = sum(prod(shape) * dtype.itemsize for shape, dtype in types)
        raise PlanError(f"the outputs of {name} need {size / 2**20:.1f} MiB, which cannot be had") from None


def _by_interface(array: Array) -> int:
    return int(array.ctypes.data)


def _by_layout(array: Array) -> int:
    """Where NumPy's C interface keeps the address: the first field behind the object's head."""
    return _word(id(array) + _HEAD).value


def _fastest() -> Callable[[Array], int]:
    """Reading the field takes a third of the time; it is used where it gives the right addresses."""
    probes: list[Array] = [np.zeros(3), np.zeros((2, 2), np.int32)[1:], np.zeros((), np.bool_)]
    return _by_layout if all(_by_layout(a) == _by_interface(a) for a in probes) else _by_interface


address: Callable[[Array], int] = _fastest()
"""Of an array's first element."""
