"""Tensors with a mean, a variance or a length that is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.errors import ShapeError
from graphc.frontend.functional.elementwise import maximum, rsqrt
from graphc.frontend.functional.reductions import Axes, mean, norm, sum
from graphc.frontend.functional.shapes import repeat_interleave
from graphc.frontend.tensor import Tensor, as_shape, reshape
from graphc.ir import source


def _last_axes(x: Tensor, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The last axes, which must have the shape `normalized_shape`."""
    wanted = as_shape(normalized_shape)
    if not wanted or x.shape[-len(wanted) :] != wanted:
        raise ShapeError(f"the last axes of {x.type} are not {normalized_shape}", source.here())
    return tuple(range(x.ndim - len(wanted), x.ndim))


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last axes, times weight, plus bias (Ba et al., 2016)."""
    axes = _last_axes(x, normalized_shape)
    centred = x - mean(x, axes, keepdims=True)
    normal = centred * rsqrt(mean(centred * centred, axes, keepdims=True) + eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


def rms_norm(
    x: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x**2) + eps) over the last axes, times weight (Zhang and Sennrich, 2019); eps is the dtype's."""
    axes = _last_axes(x, normalized_shape)
    least = float(np.finfo(x.dtype.numpy).eps) if eps is None else eps
    normal = x * rsqrt(mean(x * x, axes, keepdims=True) + least)
    return normal if weight is None else normal * weight


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over each group of channels of [N, C, ...] (Wu and He, 2018), scaled by channel."""
    channels = x.shape[1] if x.ndim > 1 else None
    if not isinstance(channels, int) or num_groups < 1 or channels % num_groups:
        raise ShapeError(f"the channels of {x.type} cannot be parted in {num_groups} groups", source.here())
    size, places = channels // num_groups, tuple(range(2, x.ndim))
    per_channel = (channels, *(1,) * (x.ndim - 2))

    def in_groups(y: Tensor) -> Tensor:
        """The mean of each group, for each of its channels: of the channels' means, which add up whole vectors."""
        of_channels = mean(y, places) if places else y
        of_groups = mean(reshape(of_channels, (x.shape[0], num_groups, size)), 2)
        return reshape(repeat_interleave(of_groups, size, 1), (x.shape[0], *per_channel))

    centred = x - in_groups(x)
    normal = centred * rsqrt(in_groups(centred * centred) + eps)
    scaled = normal if weight is None else normal * reshape(weight, per_channel)
    return scaled if bias is None else scaled + reshape(bias, per_channel)


def normalize(x: Tensor, p: float = 2.0, axis: Axes = 1, eps: float = 1e-12) -> Tensor:
    """x / max(norm(x), eps) along `axis`."""
    return x / maximum(norm(x, axis, keepdims=True, p=p), eps)


def cosine_similarity(a: Tensor, b: Tensor, axis: int = 1, eps: float = 1e-8) -> Tensor:
    """a b / (max(|a|, eps) max(|b|, eps)) along `axis`."""
    return sum(a * b, axis) / (maximum(norm(a, axis), eps) * maximum(norm(b, axis), eps))
