"""Where arrays begin: with a cache line, so that no vector that a kernel loads from one lies across two lines.

NumPy's own arrays begin at multiples of 16 bytes; then almost every 64-byte vector takes two accesses, and weights that
stay in the second-level cache are read at half its speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned_bytes(size: int) -> Array:
    """Uninitialised memory at an address that is a multiple of ALIGNMENT. Raises MemoryError."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :][:size]


def aligned_copy(array: Array) -> Array:
    """The same elements, C-contiguous, in aligned memory."""
    memory = aligned_bytes(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory
