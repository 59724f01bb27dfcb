"""Elements by their positions, and positions as elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc import ops
from graphc.frontend.functional.elementwise import equal
from graphc.frontend.functional.shapes import expand_dims
from graphc.frontend.indexing import positions, take_along
from graphc.frontend.tensor import Tensor, as_tensor, axis_of, convert
from graphc.ir.dim import Dim
from graphc.ir.types import as_dtype


def check_index(indices: Tensor, size: Dim, what: str) -> Tensor:
    """The indices; a call raises IndexRangeError, before any state changes, when one is not in [0, size)."""
    return Tensor(ops.check_index(as_tensor(indices).value, size=size, what=what))


def take(x: Tensor, indices: Any, axis: int = 0) -> Tensor:
    """The elements at `indices` along `axis` (torch's index_select); negative ones count from the end.

    Positions that are known are checked here, others when the function runs.
    """
    at = axis_of(axis, x.ndim)
    return Tensor(ops.gather(x.value, positions(indices, x.shape[at]).value, axis=at))


def take_along_axis(x: Tensor, indices: Any, axis: int = -1) -> Tensor:
    """x at `indices`, of as many axes, along `axis`, and elsewhere at the same place (torch's gather)."""
    return take_along(x, as_tensor(indices), axis)


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight`, [classes, width], at `indices`; they are checked when the function runs."""
    return Tensor(ops.gather(weight.value, check_index(indices, weight.shape[0], "token").value, axis=0))


def scatter_add(indices: Tensor, updates: Tensor, size: Dim, axis: int = 0) -> Tensor:
    """Zeros of `size` along `axis`, plus `updates` at `indices`; an index outside is dropped."""
    return Tensor(ops.scatter_add(indices.value, updates.value, axis=axis, size=size))


def one_hot(indices: Tensor, classes: int, dtype: Any = np.float32) -> Tensor:
    """1 at each index along a new last axis; the indices are checked when the function runs."""
    checked = check_index(indices, classes, "index")
    shape = (*checked.shape, classes)
    here = Tensor(ops.iota(shape=shape, axis=checked.ndim, dtype=checked.dtype))
    return convert(equal(here, expand_dims(checked, -1)), as_dtype(dtype))
