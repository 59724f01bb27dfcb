"""Memory at aligned addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from graphc.codegen.enter import FLAGS, Offsets, offsets_behind
from graphc.errors import PlanError
from graphc.ir import memory

Array = np.ndarray[Any, Any]
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


def _offsets() -> Offsets | None:
    """Where the fields of NumPy's arrays are, if they are where NumPy's C interface says on every probe."""
    probes: list[Array] = [np.zeros(3), np.zeros((2, 5), np.int32)[1:], np.zeros((), np.bool_), np.zeros((4, 3)).T]
    found = offsets_behind(object.__basicsize__)
    try:
        return found if all(_is_laid_out(array, found) for array in probes) else None
    except (TypeError, ValueError, AttributeError):  # another Python, whose objects are not at their `id`
        return None


def _is_laid_out(array: Array, offsets: Offsets) -> bool:
    extents = (ctypes.c_int64 * array.ndim).from_address(_word(id(array) + offsets.extents).value or 1)
    flags = ctypes.c_int32.from_address(id(array) + offsets.flags).value & FLAGS == FLAGS
    return (
        _word(id(array) + offsets.kind).value == id(np.ndarray)
        and _word(id(array) + offsets.data).value == array.ctypes.data
        and ctypes.c_int32.from_address(id(array) + offsets.rank).value == array.ndim
        and tuple(extents) == array.shape
        and _word(id(array) + offsets.dtype).value == id(array.dtype)
        and flags == array.flags.carray
    )


OFFSETS = _offsets()
_DATA = OFFSETS.data if OFFSETS else 0


def _by_interface(array: Array) -> int:
    return int(array.ctypes.data)


def _by_layout(array: Array) -> int:
    """Reading the field takes a third of the time."""
    return _word(id(array) + _DATA).value


address: Callable[[Array], int] = _by_layout if OFFSETS else _by_interface
"""Of an array's first element."""
