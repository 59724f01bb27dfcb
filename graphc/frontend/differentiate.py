"""Gradients of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from graphc import autodiff
from graphc.errors import ArgumentError
from graphc.frontend.tensor import Tensor


def grad(output: Tensor, inputs: Tensor | Sequence[Tensor], cotangent: Tensor | None = None) -> tuple[Tensor, ...]:
    """d output / d input for each of `inputs`, as more graph: it can be printed, compiled, differentiated again.

    `output` is a float scalar, or `cotangent`, of its type, weighs its elements. Raises GradientError for anything
    else, and for an input that `output` does not depend on.
    """
    wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for tensor in (output, *wanted):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"grad takes tensors, not {type(tensor).__name__}")
    weight = None if cotangent is None else cotangent.value
    return tuple(map(Tensor, autodiff.grad(output.value, [t.value for t in wanted], weight)))
