"""Convolution, pooling and batch normalisation of images [N, C, H, W], as torch.nn.functional's.

A convolution is a contraction over sliding windows, pooling a reduction of them; neither is a primitive, so gradients
of every order follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc import ops
from graphc.errors import ArgumentError, ShapeError
from graphc.frontend import functional as F
from graphc.frontend.functional.reductions import count_of, require_count
from graphc.frontend.state import State
from graphc.frontend.tensor import Tensor, constant, convert, promote, reshape
from graphc.ir import source

Pair = int | tuple[int, ...]


def pair(value: Pair, what: str, low: int = 1) -> tuple[int, int]:
    """A number for height and width; raises ArgumentError for what is none, or below `low`."""
    numbers = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(numbers) != 2 or any(not isinstance(n, int | np.integer) or n < low for n in numbers):
        raise ArgumentError(f"{what} must be one or two whole numbers of at least {low}, not {value!r}", source.here())
    return int(numbers[0]), int(numbers[1])


def windows(x: Tensor, size: Pair, stride: Pair = 1, dilation: Pair = 1) -> Tensor:
    """Sliding windows of the last two axes: [..., H, W] -> [..., rows, columns, size[0], size[1]]."""
    sizes, strides, steps = pair(size, "size"), pair(stride, "stride"), pair(dilation, "dilation")
    axes = (x.ndim - 2, x.ndim - 1)
    return Tensor(ops.windows(x.value, axes=axes, size=sizes, stride=strides, dilation=steps))


def _padded(x: Tensor, before: tuple[int, int], after: tuple[int, int], value: float = 0.0) -> Tensor:
    if not any((*before, *after)):
        return x
    return F.pad(x, [(0, 0)] * (x.ndim - 2) + list(zip(before, after, strict=True)), value)


def _image(x: Tensor, what: str) -> None:
    if x.ndim != 4:
        raise ShapeError(f"{what} takes images [N, C, H, W], not {x.type}", source.here())


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation: [N, C, H, W] with weight [O, C / groups, KH, KW] and bias [O] -> [N, O, OH, OW].

        out[n, o, y, x] = bias[o] + sum over c, i, j of weight[o, c, i, j] input[n, c, y s + i d - p, x s + j d - p]

    `padding` is in zeros on each side, "valid" (none) or "same" (the output has the input's size; needs stride 1).
    Raises ShapeError when channels, groups or sizes do not fit.
    """
    _image(input, "conv2d")
    image, filters = promote(input, weight)
    outputs, size = weight.shape[0], tuple(d for d in weight.shape[2:] if isinstance(d, int))
    fits = len(size) == 2 and groups >= 1 and input.shape[1] == weight.shape[1] * groups
    if not fits or not isinstance(outputs, int) or outputs % groups:
        raise ShapeError(f"weight {weight.type} does not fit {input.type} in {groups} groups", source.here())
    strides, steps = pair(stride, "stride"), pair(dilation, "dilation")
    before, after = _padding(padding, size, strides, steps)
    image = _padded(image, before, after)
    if groups == 1:
        seen = windows(image, pair(size, "kernel_size"), strides, steps)
        result = Tensor(ops.contract(seen.value, filters.value, spec="ncyxij,ocij->noyx"))
    else:
        parted = reshape(image, (image.shape[0], groups, weight.shape[1], *image.shape[2:]))
        seen = windows(parted, pair(size, "kernel_size"), strides, steps)
        parts = reshape(filters, (groups, outputs // groups, *weight.shape[1:]))
        result = Tensor(ops.contract(seen.value, parts.value, spec="ngcyxij,gocij->ngoyx"))
        result = reshape(result, (result.shape[0], outputs, *result.shape[3:]))
    return result if bias is None else result + reshape(bias, (outputs, 1, 1))


def _padding(
    padding: Pair | str, size: Any, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What to add before and after both axes."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ArgumentError('padding "same" needs stride 1', source.here())
        total = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
        before = (total[0] // 2, total[1] // 2)
        return before, (total[0] - before[0], total[1] - before[1])
    if isinstance(padding, str):
        raise ArgumentError(f'padding must be numbers, "same" or "valid", not {padding!r}', source.here())
    found = pair(padding, "padding", 0)
    return found, found


def _pooled(
    x: Tensor, size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool, fill: float
) -> Tensor:
    """The windows of a pooling; with `ceil_mode` also those that only start inside the image or its left padding."""
    _image(x, "pooling")
    sizes, steps, edge = pair(size, "kernel_size"), pair(dilation, "dilation"), pair(padding, "padding", 0)
    strides = sizes if stride is None else pair(stride, "stride")
    if any(2 * p > k for p, k in zip(edge, sizes, strict=True)):
        raise ArgumentError(f"padding {padding} is more than half of the window {size}", source.here())
    more = [0, 0]
    for axis, (k, s, d, p) in enumerate(zip(sizes, strides, steps, edge, strict=True)):
        extent = x.shape[2 + axis]
        if ceil_mode and isinstance(extent, int):
            reach = d * (k - 1) + 1
            count = -(-(extent + 2 * p - reach) // s) + 1
            count -= (count - 1) * s >= extent + p
            more[axis] = max(0, (count - 1) * s + reach - extent - 2 * p)
    after = (edge[0] + more[0], edge[1] + more[1])
    return windows(_padded(x, edge, after, fill), sizes, strides, steps)


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest of each window of [N, C, H, W]; the stride is the window's size unless given.

    The gradient goes to the first of equal elements, as torch's.
    """
    seen = _pooled(input, kernel_size, stride, padding, dilation, ceil_mode, -math.inf)
    return Tensor(ops.reduce_first_max(seen.value, axes=(4, 5)))


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of [N, C, H, W]; padding counts as zeros unless `count_include_pad` is False."""
    total = F.sum(_pooled(input, kernel_size, stride, padding, 1, ceil_mode, 0.0), (4, 5))
    sizes = pair(kernel_size, "kernel_size")
    if not ceil_mode and (count_include_pad or pair(padding, "padding", 0) == (0, 0)):
        return total * (1.0 / (sizes[0] * sizes[1]))
    inside = F.ones((1, 1, *input.shape[2:]), input.dtype)
    edge = pair(padding, "padding", 0)
    if count_include_pad:  # but not what ceil_mode adds
        inside, padding = _padded(inside, edge, edge, 1.0), 0
    strides = kernel_size if stride is None else stride
    count = F.sum(_pooled(inside, kernel_size, strides, padding, 1, ceil_mode, 0.0), (4, 5))
    return total / count[:, :, : total.shape[2], : total.shape[3]]


def adaptive_avg_pool2d(input: Tensor, output_size: Pair | tuple[int | None, int | None]) -> Tensor:
    """Means over output_size[0] x output_size[1] parts of [N, C, H, W]; None keeps an axis.

    Part i of `size` covers the elements from floor(i H / size) to ceil((i + 1) H / size).
    """
    _image(input, "adaptive_avg_pool2d")
    wanted = (output_size, output_size) if isinstance(output_size, int) else output_size
    result = input
    for axis, size in zip((2, 3), wanted, strict=True):
        extent = input.shape[axis]
        if size is None or size == extent:
            continue
        if size == 1:
            result = F.mean(result, axis, keepdims=True)
            continue
        if not isinstance(extent, int):
            raise ShapeError(f"cannot part the dimension {extent} in {size}", source.here())
        parts = [(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)]
        weights = np.zeros((size, extent), result.dtype.numpy)
        for row, (first, last) in enumerate(parts):
            weights[row, first:last] = 1 / (last - first)
        spec = "nchw,yh->ncyw" if axis == 2 else "nchw,xw->nchx"
        result = Tensor(ops.contract(result.value, constant(weights).value, spec=spec))
    return result


def batch_norm(
    input: Tensor,
    running_mean: State | None,
    running_var: State | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps), times weight, plus bias, per channel of [N, C, ...] (Ioffe and Szegedy, 2015).

    In training mean and variance (biased) are the batch's, and a compiled function that computes the result also moves
    the running ones by `momentum` towards them (the variance unbiased), as torch does. Otherwise they are the running
    ones.

    Raises ShapeError in training for fewer than two values of a channel; where their number is not known yet, a call
    does.
    """
    if input.ndim < 2:
        raise ShapeError(f"batch_norm takes [N, C, ...], not {input.type}", source.here())
    axes = tuple(a for a in range(input.ndim) if a != 1)
    shape = (input.shape[1],) + (1,) * (input.ndim - 2)
    if training or running_mean is None or running_var is None:
        input = require_count(input, axes, 2, "a channel's variance in training")
        mean = F.mean(input, axes, keepdims=True)
        centred = input - mean
        var = F.mean(centred * centred, axes, keepdims=True)
        normal = centred * F.rsqrt(var + eps)
        if running_mean is not None and running_var is not None:
            count = count_of(input, axes, input.dtype)
            unbiased = F.stop_gradient(var) * (count / (count - 1.0))
            for state, now in ((running_mean, F.stop_gradient(mean)), (running_var, unbiased)):
                state.follow(normal, _towards(reshape(now, (input.shape[1],)), momentum))
    else:
        normal = (input - reshape(running_mean, shape)) * F.rsqrt(reshape(running_var, shape) + eps)
    scaled = normal if weight is None else normal * reshape(weight, shape)
    return scaled if bias is None else scaled + reshape(bias, shape)


def _towards(now: Tensor, momentum: float) -> Callable[[Tensor], Tensor]:
    return lambda state: (1 - momentum) * state + momentum * convert(now, state.dtype)
