"""Random numbers for initial values. `manual_seed` makes all that follow reproducible, on every platform.

Until it is called, numbers come from fresh entropy, as in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_generator = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Start the sequence of initial values that belongs to `seed`."""
    global _generator
    _generator = np.random.default_rng(seed)


def uniform(low: float, high: float, shape: tuple[int, ...]) -> Array:
    """float32 numbers in [low, high)."""
    return _generator.uniform(low, high, shape).astype(np.float32)


def normal(mean: float, deviation: float, shape: tuple[int, ...]) -> Array:
    """Normally distributed float32 numbers."""
    return _generator.normal(mean, deviation, shape).astype(np.float32)
