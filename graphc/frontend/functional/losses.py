"""Losses: torch.nn.functional's, with its reductions."""

from __future__ import annotations

from typing import Any

from graphc import ops
from graphc.errors import ArgumentError, DTypeError, ShapeError
from graphc.frontend.functional.activations import log_softmax, softplus
from graphc.frontend.functional.elementwise import (
    abs,
    clip,
    equal,
    exp,
    log,
    not_equal,
    stop_gradient,
    where,
)
from graphc.frontend.functional.making import zeros_like
from graphc.frontend.functional.reductions import count_of, mean, sum
from graphc.frontend.functional.selection import check_index
from graphc.frontend.functional.shapes import expand_dims
from graphc.frontend.tensor import Tensor, as_tensor, broadcast_to, convert, reshape
from graphc.ir import source


def _reduced(losses: Tensor, reduction: str, counts: Tensor | None = None) -> Tensor:
    """The losses, their sum, or their mean, where `counts` says how much each counts."""
    match reduction:
        case "mean":
            return mean(losses) if counts is None else sum(losses) / sum(counts)
        case "sum":
            return sum(losses)
        case "none":
            return losses
    raise ArgumentError(f'reduction must be "mean", "sum" or "none", not {reduction!r}', source.here())


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Any = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target], as torch's.

    input            scores [N, C] or [N, C, d1, ...], or [C]; float
    target           classes, of the same shape without C; integer. A call raises IndexRangeError, before any state
                     changes, when one is not in [0, C). Or probabilities of the shape of input; float
    weight           [C], how much each class counts; "mean" divides by the sum of the targets' weights
    ignore_index     a class that counts nothing. None by default, where torch has -100: a stray label then raises
    label_smoothing  the part of the target that is spread evenly over all classes

    Raises ShapeError and DTypeError when they do not fit, and ArgumentError for a smoothing that is no part.
    """
    if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"label_smoothing must be from 0 to 1, not {label_smoothing!r}", source.here())
    axis = 0 if input.ndim == 1 else 1
    logs = log_softmax(input, axis)
    if target.dtype.is_float and target.ndim == input.ndim:
        return _of_probabilities(logs, target, weight, axis, reduction, label_smoothing)
    losses, counts, counted = _of_classes(logs, target, weight, axis, ignore_index)
    if label_smoothing:
        even = mean(logs, axis) if weight is None else mean(logs * _along(weight, logs, axis), axis)
        even = even if counted is None else where(counted, even, 0.0)
        losses = (1 - label_smoothing) * losses - label_smoothing * even
    return _reduced(losses, reduction, counts)


def nll_loss(
    input: Tensor, target: Tensor, weight: Any = None, *, ignore_index: int | None = None, reduction: str = "mean"
) -> Tensor:
    """-input[target] for log-probabilities [N, C] or [N, C, d1, ...] and classes; see `cross_entropy`."""
    losses, counts, _ = _of_classes(input, target, weight, 0 if input.ndim == 1 else 1, ignore_index)
    return _reduced(losses, reduction, counts)


def _of_classes(
    logs: Tensor, target: Tensor, weight: Any, axis: int, ignore_index: int | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """-weight[target] logs[target] of each target, how much each counts, and whether (None: all do, equally)."""
    if not target.dtype.is_int:
        raise DTypeError(f"classes must be integers, not {target.type}", source.here())
    if target.shape != (*logs.shape[:axis], *logs.shape[axis + 1 :]):
        raise ShapeError(f"classes {target.type} do not fit scores {logs.type}", source.here())
    counted = None if ignore_index is None else not_equal(target, ignore_index)
    checked = check_index(target if counted is None else where(counted, target, 0), logs.shape[axis], "label")
    here = Tensor(ops.iota(shape=logs.shape, axis=axis, dtype=checked.dtype))
    is_target = equal(here, expand_dims(checked, axis))
    losses = -sum(where(is_target, logs, zeros_like(logs)), axis)
    counts = None if counted is None else convert(counted, logs.dtype)
    if weight is not None:
        weights = sum(where(is_target, _along(weight, logs, axis), 0.0), axis)
        counts = weights if counts is None else weights * counts
        return losses * counts, counts, counted
    return losses if counted is None else where(counted, losses, 0.0), counts, counted


def _of_probabilities(
    logs: Tensor, target: Tensor, weight: Any, axis: int, reduction: str, label_smoothing: float
) -> Tensor:
    if target.shape != logs.shape:
        raise ShapeError(f"probabilities {target.type} do not fit scores {logs.type}", source.here())
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / count_of(logs, (axis,), logs.dtype)
    weighed = logs * target if weight is None else logs * target * _along(weight, logs, axis)
    return _reduced(-sum(weighed, axis), reduction)


def _along(weight: Any, x: Tensor, axis: int) -> Tensor:
    """One weight per class, in the shape of the scores."""
    found = convert(as_tensor(weight), x.dtype)
    if found.shape != (x.shape[axis],):
        raise ShapeError(f"{x.shape[axis]} classes need as many weights, not {found.type}", source.here())
    return broadcast_to(reshape(found, (-1, *(1,) * (x.ndim - axis - 1))), x.shape)


def mse_loss(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The squared difference; raises ShapeError unless the shapes are equal."""
    difference = input - _same_shape(input, target)
    return _reduced(difference * difference, reduction)


def l1_loss(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The absolute difference; raises ShapeError unless the shapes are equal."""
    return _reduced(abs(input - _same_shape(input, target)), reduction)


def binary_cross_entropy_with_logits(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """-(t log sigmoid(x) + (1 - t) log sigmoid(-x)), as max(x, 0) - x t + log1p(e**-|x|)."""
    return _reduced(softplus(input) - input * _same_shape(input, target), reduction)


def binary_cross_entropy(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """-(t log x + (1 - t) log(1 - x)) for probabilities x; logarithms from -100 on, slopes up to 1e12, as torch's."""
    wanted = _same_shape(input, target)
    logs = _log_of_probability(input), _log_of_probability(1.0 - input)
    return _reduced(-(wanted * logs[0] + (1.0 - wanted) * logs[1]), reduction)


def _log_of_probability(x: Tensor) -> Tensor:
    """log(x), at least -100; below 1e-12 it has the slope that it has there."""
    is_tiny, fixed = x < 1e-12, stop_gradient(x)
    return where(is_tiny, clip(log(fixed), -100.0) + (x - fixed) * 1e12, log(where(is_tiny, 1.0, x)))


def smooth_l1_loss(input: Tensor, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d**2 / (2 beta) for a difference |d| < beta, else |d| - beta / 2."""
    if beta == 0:
        return l1_loss(input, target, reduction)
    return huber_loss(input, target, reduction, beta) / beta


def huber_loss(input: Tensor, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d**2 / 2 for a difference |d| < delta, else delta (|d| - delta / 2) (Huber, 1964)."""
    difference = input - _same_shape(input, target)
    size = abs(difference)
    losses = where(size < delta, 0.5 * difference * difference, delta * (size - 0.5 * delta))
    return _reduced(losses, reduction)


def kl_div(input: Tensor, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """t (log t - x) for log-probabilities x and probabilities t, or their logarithms; 0 where t is 0.

    "batchmean" is the sum over the first extent, which is the divergence; "mean" divides by all elements, as torch's.
    """
    wanted = _same_shape(input, target)
    if log_target:
        losses = exp(wanted) * (wanted - input)
    else:
        is_zero = equal(wanted, 0.0)
        losses = wanted * (log(where(is_zero, 1.0, wanted)) - input)
    if reduction == "batchmean":
        return sum(losses) / count_of(input, (0,), input.dtype)
    return _reduced(losses, reduction)


def _same_shape(input: Tensor, target: Any) -> Tensor:
    """The target as a tensor; raises ShapeError unless it has the shape of the input."""
    wanted = as_tensor(target)
    if input.shape != wanted.shape:
        raise ShapeError(f"input {input.type} and target {wanted.type} differ in shape", source.here())
    return wanted
