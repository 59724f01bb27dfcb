"""Memory at aligned addresses."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.errors import PlanError
from graphc.plan import ALIGNMENT

Array = np.ndarray[Any, Any]


def aligned_bytes(size: int, name: str) -> Array:
    """Uninitialised memory at an address that is a multiple of ALIGNMENT; raises PlanError when there is not enough."""
    try:
        memory = np.empty(size + ALIGNMENT, np.uint8)
    except MemoryError:
        raise PlanError(f"{name} needs an arena of {size / 2**20:.1f} MiB, which cannot be had") from None
    return memory[-memory.ctypes.data % ALIGNMENT :][:size]


def aligned_copy(array: Array) -> Array:
    """The same elements in aligned memory."""
    memory = aligned_bytes(array.nbytes, "a constant").view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory
