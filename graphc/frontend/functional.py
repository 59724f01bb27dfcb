"""Functions of tensors: NumPy's reductions and shapes, torch.nn.functional's activations and losses.

Everything is composed of primitives, so gradients of every order follow. Axes are NumPy's (`axis=`, None for all).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import ops
from graphc.errors import ArgumentError, DTypeError, ShapeError
from graphc.frontend.tensor import (
    Tensor,
    as_float,
    as_shape,
    axis_of,
    binary,
    broadcast_shapes,
    broadcast_to,
    constant,
    convert,
    matmul,
    promote,
    reshape,
)
from graphc.ir import source
from graphc.ir.dim import Dim
from graphc.ir.graph import Value
from graphc.ir.types import DType, as_dtype
from graphc.ops.define import require_number

Axes = int | Sequence[int] | None


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else constant(x)


def _real(op: Callable[..., Value], x: Any) -> Tensor:
    return Tensor(op(as_float(x).value))


def _rounded(op: Callable[..., Value], x: Any) -> Tensor:
    found = _tensor(x)
    return found if found.dtype.is_int else _real(op, found)


# Elementwise ----------------------------------------------------------------------------------------------------


def exp(x: Any) -> Tensor:
    """e**x."""
    return _real(ops.exp, x)


def expm1(x: Any) -> Tensor:
    """e**x - 1, exact near 0."""
    return _real(ops.expm1, x)


def log(x: Any) -> Tensor:
    """Natural logarithm."""
    return _real(ops.log, x)


def log1p(x: Any) -> Tensor:
    """log(1 + x), exact near 0."""
    return _real(ops.log1p, x)


def sqrt(x: Any) -> Tensor:
    """Square root."""
    return _real(ops.sqrt, x)


def rsqrt(x: Any) -> Tensor:
    """1 / sqrt(x)."""
    return _real(ops.rsqrt, x)


def sin(x: Any) -> Tensor:
    """Sine, x in radians."""
    return _real(ops.sin, x)


def cos(x: Any) -> Tensor:
    """Cosine, x in radians."""
    return _real(ops.cos, x)


def tanh(x: Any) -> Tensor:
    """Hyperbolic tangent."""
    return _real(ops.tanh, x)


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e**-x)."""
    return _real(ops.sigmoid, x)


def erf(x: Any) -> Tensor:
    """The error function."""
    return _real(ops.erf, x)


def floor(x: Any) -> Tensor:
    """The largest integer <= x, in the dtype of x."""
    return _rounded(ops.floor, x)


def ceil(x: Any) -> Tensor:
    """The smallest integer >= x, in the dtype of x."""
    return _rounded(ops.ceil, x)


def round(x: Any) -> Tensor:
    """The nearest integer, halves to even, in the dtype of x."""
    return _rounded(ops.round, x)


def sign(x: Any) -> Tensor:
    """-1, 0 or 1; NaN for NaN."""
    return Tensor(ops.sign(_tensor(x).value))


def abs(x: Any) -> Tensor:
    """|x|."""
    return Tensor(ops.abs(_tensor(x).value))


def square(x: Any) -> Tensor:
    """x * x."""
    found = _tensor(x)
    return found * found


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of each pair; NaN where one is NaN."""
    return binary(ops.maximum, a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of each pair; NaN where one is NaN."""
    return binary(ops.minimum, a, b)


def clip(x: Any, low: Any = None, high: Any = None) -> Tensor:
    """x, at least `low` and at most `high`; the gradient at the bounds is 1, as in torch."""
    found = _tensor(x)
    found = found if low is None else where(binary(ops.less, found, low), low, found)
    return found if high is None else where(binary(ops.greater, found, high), high, found)


def equal(a: Any, b: Any) -> Tensor:
    """a == b, as bools."""
    return binary(ops.equal, a, b)


def not_equal(a: Any, b: Any) -> Tensor:
    """a != b, as bools."""
    return binary(ops.not_equal, a, b)


def logical_and(a: Any, b: Any) -> Tensor:
    """a and b, for bools."""
    return binary(ops.logical_and, a, b)


def logical_or(a: Any, b: Any) -> Tensor:
    """a or b, for bools."""
    return binary(ops.logical_or, a, b)


def logical_not(x: Any) -> Tensor:
    """not x, for bools."""
    return Tensor(ops.logical_not(_tensor(x).value))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where `condition` (bool) holds, else b; all are broadcast."""
    chosen = _tensor(condition)
    if chosen.dtype is not DType.BOOL:
        raise DTypeError(f"the condition of where must be bool, not {chosen.type}", source.here())
    first, second = promote(a, b)
    shape = broadcast_shapes(chosen, first, second)
    return Tensor(ops.where(*(broadcast_to(x, shape).value for x in (chosen, first, second))))


def stop_gradient(x: Tensor) -> Tensor:
    """x, a constant to differentiation (torch's detach)."""
    return Tensor(ops.stop_gradient(x.value))


# Activations ----------------------------------------------------------------------------------------------------


def relu(x: Any) -> Tensor:
    """0 where x <= 0, else x; the gradient at 0 is 0."""
    return Tensor(ops.relu(_tensor(x).value))


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    found = as_float(x)
    return where(found > 0, found, found * negative_slope)


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (e**x - 1)."""
    found = as_float(x)
    return where(found > 0, found, alpha * expm1(minimum(found, 0.0)))


def silu(x: Any) -> Tensor:
    """x * sigmoid(x)."""
    found = as_float(x)
    return found * sigmoid(found)


def softplus(x: Any) -> Tensor:
    """log(1 + e**x), as max(x, 0) + log1p(e**-|x|).

    -|x| is a choice between x and -x, neither of which is flat at 0, where the derivative of |x| would be lost.
    """
    found = as_float(x)
    return relu(found) + log1p(exp(where(found > 0, -found, found)))


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x times the normal distribution function (Hendrycks and Gimpel, 2016).

    approximate  "none": 0.5 x (1 + erf(x / sqrt 2)); "tanh": 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3)))
    """
    found = as_float(x)
    match approximate:
        case "none":
            return found * 0.5 * (1.0 + erf(found * math.sqrt(0.5)))
        case "tanh":
            inner = math.sqrt(2 / math.pi) * (found + 0.044715 * (found * found * found))
            return 0.5 * found * (1.0 + tanh(inner))
    raise ArgumentError(f'approximate must be "none" or "tanh", not {approximate!r}', source.here())


# Reductions -----------------------------------------------------------------------------------------------------


def _axes(axis: Axes, rank: int) -> tuple[int, ...]:
    given = range(rank) if axis is None else [axis] if isinstance(axis, int | np.integer) else axis
    return tuple(sorted(axis_of(a, rank) for a in given))


def _reduce(op: Callable[..., Value], x: Any, axis: Axes, keepdims: bool) -> Tensor:
    found = _tensor(x)
    axes = _axes(axis, found.ndim)
    result = Tensor(op(found.value, axes=axes))
    if not keepdims:
        return result
    return reshape(result, tuple(1 if a in axes else d for a, d in enumerate(found.shape)))


def sum(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum along `axis`; integers and bools are added as int64, as in NumPy."""
    return _reduce(ops.reduce_sum, _countable(x), axis, keepdims)


def prod(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The product along `axis`; integers and bools are multiplied as int64, as in NumPy."""
    return _reduce(ops.reduce_prod, _countable(x), axis, keepdims)


def _countable(x: Any) -> Tensor:
    found = _tensor(x)
    return found if found.dtype.is_float else convert(found, DType.I64)


def max(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest along `axis` (torch's amax); equal ones share the gradient. Raises ArgumentError for no elements."""
    return _extreme(ops.reduce_max, ops.reduce_any, x, axis, keepdims)


def min(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The smallest along `axis` (torch's amin); equal ones share the gradient. Raises ArgumentError for no elements."""
    return _extreme(ops.reduce_min, ops.reduce_all, x, axis, keepdims)


def _extreme(op: Callable[..., Value], of_bools: Callable[..., Value], x: Any, axis: Axes, keepdims: bool) -> Tensor:
    found = _tensor(x)
    if 0 in (found.shape[a] for a in _axes(axis, found.ndim)):
        raise ArgumentError(f"{found.type} has no largest or smallest element along axis {axis}", source.here())
    return _reduce(of_bools if found.dtype is DType.BOOL else op, found, axis, keepdims)


amax, amin = max, min


def all(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether all bools along `axis` hold."""
    return _reduce(ops.reduce_all, x, axis, keepdims)


def any(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether a bool along `axis` holds."""
    return _reduce(ops.reduce_any, x, axis, keepdims)


def _count(x: Tensor, axes: Sequence[int], dtype: DType) -> Tensor:
    """The number of elements along axes, as a scalar of a float dtype."""
    known = math.prod(d for a in axes if isinstance(d := x.shape[a], int))
    total = constant(known, dtype)
    for a in axes:
        dim = x.shape[a]
        if not isinstance(dim, int):
            total = total * Tensor(ops.extent(dim=dim, dtype=dtype))
    return total


def mean(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean along `axis`; integers and bools give float64, as in NumPy. Of nothing: NaN."""
    found = as_float(x)
    axes = _axes(axis, found.ndim)
    return sum(found, axes, keepdims) / _count(found, axes, found.dtype)


def var(x: Any, axis: Axes = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The mean of the squared distances from the mean; the divisor is the number of elements less `ddof`."""
    found = as_float(x)
    axes = _axes(axis, found.ndim)
    centred = found - mean(found, axes, keepdims=True)
    return sum(centred * centred, axes, keepdims) / (_count(found, axes, found.dtype) - float(ddof))


def std(x: Any, axis: Axes = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The square root of `var`."""
    return sqrt(var(x, axis, keepdims, ddof))


def argmax(x: Any, axis: int | None = None) -> Tensor:
    """The position of the largest along `axis` (of all, flattened, for None), as int64: the first of equals."""
    return _position_of(max, x, axis)


def argmin(x: Any, axis: int | None = None) -> Tensor:
    """The position of the smallest along `axis` (of all, flattened, for None), as int64: the first of equals."""
    return _position_of(min, x, axis)


def _position_of(best: Callable[..., Tensor], x: Any, axis: int | None) -> Tensor:
    found = _tensor(x)
    if axis is None:
        found, axis = reshape(found, (-1,)), 0
    at = axis_of(axis, found.ndim)
    top = best(found, at, keepdims=True)
    is_top = equal(found, top) | not_equal(found, found)  # a NaN counts as the best, as in NumPy
    here = Tensor(ops.iota(shape=found.shape, axis=at, dtype=DType.I64))
    return min(where(is_top, here, int(np.iinfo(np.int64).max)), at)


def logsumexp(x: Any, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """log(sum(e**x)), shifted by the maximum."""
    found = as_float(x)
    top = stop_gradient(_reduce(ops.reduce_max, found, axis, True))
    top = where(equal(abs(top), float("inf")), 0.0, top)
    total = log(sum(exp(found - top), axis, keepdims=True)) + top
    return total if keepdims else _reduce(ops.reduce_sum, total, axis, False)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """e**x / sum(e**x) along `axis`, shifted by the maximum."""
    found = as_float(x)
    e = exp(found - stop_gradient(_reduce(ops.reduce_max, found, axis, True)))
    return e / sum(e, axis, keepdims=True)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """log(softmax(x)) without the division: x - max - log(sum(e**(x - max)))."""
    found = as_float(x)
    shifted = found - stop_gradient(_reduce(ops.reduce_max, found, axis, True))
    return shifted - log(sum(exp(shifted), axis, keepdims=True))


# Shapes ---------------------------------------------------------------------------------------------------------


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim (inclusive) as one."""
    first, last = axis_of(start_dim, x.ndim), axis_of(end_dim, x.ndim)
    size: Dim = 1
    for d in x.shape[first : last + 1]:
        size = size * d
    return reshape(x, (*x.shape[:first], size, *x.shape[last + 1 :]))


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The axes in the order `axes`, by default the opposite one (NumPy's transpose, torch's permute)."""
    return x.transpose(*(axes or ()))


permute = transpose


def swapaxes(x: Tensor, a: int, b: int) -> Tensor:
    """Axes a and b exchanged."""
    order = list(range(x.ndim))
    first, second = axis_of(a, x.ndim), axis_of(b, x.ndim)
    order[first], order[second] = second, first
    return x.transpose(*order)


def expand_dims(x: Tensor, axis: int) -> Tensor:
    """A new axis of extent 1 at `axis` of the result."""
    at = axis_of(axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


unsqueeze = expand_dims


def squeeze(x: Tensor, axis: Axes = None) -> Tensor:
    """Without the axes of extent 1, or without those given."""
    axes = [a for a, d in enumerate(x.shape) if d == 1] if axis is None else _axes(axis, x.ndim)
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"axis {a} of {x.type} is not 1", source.here())
    return reshape(x, tuple(d for a, d in enumerate(x.shape) if a not in axes))


def concat(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors one after the other along `axis`."""
    found = promote(*tensors)
    return Tensor(ops.concat(*(t.value for t in found), axis=axis_of(axis, found[0].ndim)))


concatenate = concat


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors side by side along a new axis."""
    return concat([expand_dims(_tensor(t), axis) for t in tensors], axis)


def split(x: Tensor, size: int, axis: int = 0) -> list[Tensor]:
    """Pieces of `size` along `axis`, the last one smaller where it must be (torch's split)."""
    at = axis_of(axis, x.ndim)
    extent = x.shape[at]
    if not isinstance(extent, int) or size < 1:
        raise ShapeError(f"cannot split axis {at} of {x.type} into pieces of {size}", source.here())
    lead: tuple[slice, ...] = (slice(None),) * at
    return [x[(*lead, slice(first, first + size))] for first in range(0, extent, size)]


def chunk(x: Tensor, chunks: int, axis: int = 0) -> list[Tensor]:
    """About `chunks` equal pieces along `axis` (torch's chunk)."""
    extent = x.shape[axis_of(axis, x.ndim)]
    if not isinstance(extent, int):
        raise ShapeError(f"cannot cut the dimension {extent} into chunks", source.here())
    return split(x, -(-extent // chunks), axis)


def pad(x: Any, width: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`value` before and after each axis: width[axis] = (before, after), as NumPy's pad."""
    found = _tensor(x)
    if len(width) != found.ndim:
        raise ArgumentError(f"pad needs {found.ndim} pairs, not {len(width)}", source.here())
    low, high = [w[0] for w in width], [w[1] for w in width]
    return Tensor(ops.pad(found.value, low=low, high=high, interior=(0,) * found.ndim, value=value))


def flip(x: Tensor, axis: Axes = None) -> Tensor:
    """The elements in opposite order along `axis`."""
    return Tensor(ops.reverse(x.value, axes=_axes(axis, x.ndim)))


# Making ---------------------------------------------------------------------------------------------------------


def full(shape: Any, value: float, dtype: Any = np.float32) -> Tensor:
    """`value` in every element."""
    number, kind = value.item() if isinstance(value, np.generic) else value, as_dtype(dtype)
    require_number(number, kind)
    return Tensor(ops.full(as_shape(shape), number, kind))


def zeros(shape: Any, dtype: Any = np.float32) -> Tensor:
    """0 in every element."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = np.float32) -> Tensor:
    """1 in every element."""
    return full(shape, 1, dtype)


def zeros_like(x: Tensor) -> Tensor:
    """0 in every element of the type of x."""
    return Tensor(ops.full_like(x.value, 0))


def ones_like(x: Tensor) -> Tensor:
    """1 in every element of the type of x."""
    return Tensor(ops.full_like(x.value, 1))


def arange(size: Any, dtype: Any = np.int64) -> Tensor:
    """0, 1, ..., size - 1; the size may be a named dimension."""
    (extent,) = as_shape((size,))
    return Tensor(ops.iota(shape=(extent,), axis=0, dtype=as_dtype(dtype)))


def _row_and_column(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each element's position along the last two axes."""
    row, column = (Tensor(ops.iota(shape=x.shape, axis=x.ndim - n, dtype=DType.I64)) for n in (2, 1))
    return row, column


def tril(x: Tensor, k: int = 0) -> Tensor:
    """The matrices in the last two axes, 0 above diagonal k."""
    row, column = _row_and_column(x)
    return where(column <= row + k, x, zeros_like(x))


def triu(x: Tensor, k: int = 0) -> Tensor:
    """The matrices in the last two axes, 0 below diagonal k."""
    row, column = _row_and_column(x)
    return where(column >= row + k, x, zeros_like(x))


def one_hot(indices: Tensor, classes: int, dtype: Any = np.float32) -> Tensor:
    """1 at each index along a new last axis; the indices are checked when the function runs."""
    checked = check_index(indices, classes, "index")
    shape = (*checked.shape, classes)
    here = Tensor(ops.iota(shape=shape, axis=checked.ndim, dtype=checked.dtype))
    return convert(equal(here, expand_dims(checked, -1)), as_dtype(dtype))


# Indexing -------------------------------------------------------------------------------------------------------


def check_index(indices: Tensor, size: Dim, what: str) -> Tensor:
    """The indices; a call raises IndexRangeError, before any state changes, when one is not in [0, size)."""
    return Tensor(ops.check_index(_tensor(indices).value, size=size, what=what))


def take(x: Tensor, indices: Any, axis: int = 0) -> Tensor:
    """The elements at `indices` along `axis`; the indices are checked when the function runs."""
    at = axis_of(axis, x.ndim)
    return Tensor(ops.gather(x.value, check_index(indices, x.shape[at], "index").value, axis=at))


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight`, [classes, width], at `indices`; they are checked when the function runs."""
    return Tensor(ops.gather(weight.value, check_index(indices, weight.shape[0], "token").value, axis=0))


def scatter_add(indices: Tensor, updates: Tensor, size: Dim, axis: int = 0) -> Tensor:
    """Zeros of `size` along `axis`, plus `updates` at `indices`; an index outside is dropped."""
    return Tensor(ops.scatter_add(indices.value, updates.value, axis=axis, size=size))


# Products -------------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; x is [..., inputs], weight [outputs, inputs], bias [outputs]."""
    product = matmul(x, weight.T)
    return product if bias is None else product + bias


def einsum(spec: str, *operands: Any) -> Tensor:
    """NumPy's einsum for any number of operands; without "->" the result has the letters that occur once, sorted.

    No letter may occur twice in one operand, and "..." is not supported.
    """
    found = promote(*operands)
    left, arrow, result = spec.replace(" ", "").partition("->")
    parts = left.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    repeated = builtins.any(len(set(part)) < len(part) for part in parts)
    if len(parts) != len(found) or "." in spec or repeated or not set(result) <= set(left):
        raise ArgumentError(f'einsum "{spec}" does not fit {len(found)} operands, or repeats a letter', source.here())
    value, letters = found[0], parts[0]
    for number, other in enumerate(found[1:], 1):
        needed = set(result).union(*parts[number + 1 :])
        value, letters = _without_lone(value, letters, needed | set(parts[number]))
        other, theirs = _without_lone(other, parts[number], needed | set(letters))
        kept = "".join(c for c in dict.fromkeys(letters + theirs) if c in needed)
        value = Tensor(ops.contract(value.value, other.value, spec=f"{letters},{theirs}->{kept}"))
        letters = kept
    value, letters = _without_lone(value, letters, set(result))
    return value.transpose(*map(letters.index, result)) if letters != result else value


def _without_lone(x: Tensor, letters: str, needed: set[str]) -> tuple[Tensor, str]:
    """Sum over the letters that nothing else has."""
    lone = [a for a, c in enumerate(letters) if c not in needed]
    return (sum(x, lone), "".join(c for c in letters if c in needed)) if lone else (x, letters)


# Normalisation and losses ---------------------------------------------------------------------------------------


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last axes, times weight, plus bias (Ba et al., 2016)."""
    count = len(as_shape(normalized_shape))
    if tuple(x.shape[-count:]) != as_shape(normalized_shape):
        raise ShapeError(f"the last axes of {x.type} are not {normalized_shape}", source.here())
    axes = tuple(range(x.ndim - count, x.ndim))
    centred = x - mean(x, axes, keepdims=True)
    normal = centred * rsqrt(mean(centred * centred, axes, keepdims=True) + eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    match reduction:
        case "mean":
            return mean(losses)
        case "sum":
            return sum(losses)
        case "none":
            return losses
    raise ArgumentError(f'reduction must be "mean", "sum" or "none", not {reduction!r}', source.here())


def cross_entropy(input: Tensor, target: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """-log softmax(input)[target], as torch's.

    input   scores [N, C] or [N, C, d1, ...], or [C]; float
    target  classes, of the same shape without C; integer. A call raises IndexRangeError, before any state changes, when
            one is not in [0, C).

    Raises ShapeError and DTypeError when they do not fit.
    """
    axis = 0 if input.ndim == 1 else 1
    if not target.dtype.is_int:
        raise DTypeError(f"classes must be integers, not {target.type}", source.here())
    if target.shape != (*input.shape[:axis], *input.shape[axis + 1 :]):
        raise ShapeError(f"classes {target.type} do not fit scores {input.type}", source.here())
    classes = input.shape[axis]
    checked = check_index(target, classes, "label")
    here = Tensor(ops.iota(shape=input.shape, axis=axis, dtype=checked.dtype))
    logs = log_softmax(input, axis)
    losses = -sum(where(equal(here, expand_dims(checked, axis)), logs, zeros_like(logs)), axis)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * mean(logs, axis)
    return _reduced(losses, reduction)


def nll_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """-input[target] for log-probabilities [N, C] and classes [N]."""
    here = Tensor(ops.iota(shape=input.shape, axis=1, dtype=target.dtype))
    checked = check_index(target, input.shape[1], "label")
    return _reduced(-sum(where(equal(here, expand_dims(checked, 1)), input, zeros_like(input)), 1), reduction)


def mse_loss(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The squared difference; raises ShapeError unless the shapes are equal."""
    difference = _same_shape(input, target)
    return _reduced(difference * difference, reduction)


def l1_loss(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The absolute difference; raises ShapeError unless the shapes are equal."""
    return _reduced(abs(_same_shape(input, target)), reduction)


def binary_cross_entropy_with_logits(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """-(t log sigmoid(x) + (1 - t) log sigmoid(-x)), as max(x, 0) - x t + log1p(e**-|x|)."""
    _same_shape(input, target)
    return _reduced(softplus(input) - input * target, reduction)


def _same_shape(input: Tensor, target: Any) -> Tensor:
    wanted = _tensor(target)
    if input.shape != wanted.shape:
        raise ShapeError(f"input {input.type} and target {wanted.type} differ in shape", source.here())
    return input - wanted


# Attention ------------------------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query key^T scale + mask) value, as torch's: [..., T, E], [..., S, E], [..., S, V] -> [..., T, V].

    attn_mask  bool (True: may look) or float (added), broadcast to [..., T, S]
    is_causal  position t sees positions up to t
    scale      1 / sqrt(E) by default
    """
    width = query.shape[-1]
    if scale is None:
        if not isinstance(width, int):
            raise ShapeError(f"attention over the dimension {width} needs a scale", source.here())
        scale = 1 / math.sqrt(width)
    scores = (query @ swapaxes(key, -1, -2)) * scale
    if is_causal:
        if attn_mask is not None:
            raise ArgumentError("give attn_mask or is_causal, not both", source.here())
        row, column = _row_and_column(scores)
        scores = where(column <= row, scores, -math.inf)
    elif attn_mask is not None:
        mask = _tensor(attn_mask)
        scores = where(mask, scores, -math.inf) if mask.dtype is DType.BOOL else scores + mask
    return softmax(scores, -1) @ value
