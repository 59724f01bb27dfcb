"""Tensors: what users compute with. A `Tensor` is an IR value with operators.

Here, and nowhere below, shapes are broadcast and dtypes promoted, by NumPy's rules (NEP 50: a Python number takes the
dtype of the tensor that it meets). The IR receives explicit `broadcast` and `convert` nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

import graphc.frontend as frontend
from graphc import ops
from graphc.errors import ArgumentError, DTypeError, GraphcError, ShapeError
from graphc.ir import dim as dims
from graphc.ir import source
from graphc.ir.dim import Dim
from graphc.ir.graph import Literal, Value
from graphc.ir.types import DType, Shape, TensorType, as_dtype

Array = np.ndarray[Any, Any]
Number = bool | int | float
Operand = "Tensor | Number | Array"


class Tensor:
    """A symbolic array. Made by `placeholder`, `Parameter`, `constant`, and by computing with others."""

    __slots__ = ("__weakref__", "value")
    __array_ufunc__ = None  # so that array + tensor asks the tensor
    __hash__ = object.__hash__

    def __init__(self, value: Value) -> None:
        self.value = value

    @property
    def type(self) -> TensorType:
        """Element type and shape."""
        return self.value.type

    @property
    def shape(self) -> Shape:
        """Extents: numbers, or named dimensions."""
        return self.value.shape

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def ndim(self) -> int:
        return self.value.type.rank

    @property
    def name(self) -> str:
        """Of a placeholder or state; empty for what is computed."""
        return self.value.name

    @property
    def T(self) -> Tensor:
        """The axes in opposite order."""
        return Tensor(ops.transpose(self.value, perm=range(self.ndim)[::-1]))

    def __repr__(self) -> str:
        name = self.name or (self.value.node.op.name if self.value.node else "")
        return f"<graphc tensor {name}: {self.type}>"

    # Arithmetic ------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return binary(ops.add, self, other)

    def __radd__(self, other: Any) -> Tensor:
        return binary(ops.add, other, self)

    def __sub__(self, other: Any) -> Tensor:
        return binary(ops.sub, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return binary(ops.sub, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return binary(ops.mul, self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return binary(ops.mul, other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return divide(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return binary(ops.floor_div, self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return binary(ops.floor_div, other, self)

    def __mod__(self, other: Any) -> Tensor:
        return binary(ops.mod, self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return binary(ops.mod, other, self)

    def __pow__(self, other: Any) -> Tensor:
        return power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self)

    def __neg__(self) -> Tensor:
        return Tensor(ops.neg(self.value))

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return Tensor(ops.abs(self.value))

    def __invert__(self) -> Tensor:
        return Tensor(ops.logical_not(self.value))

    def __and__(self, other: Any) -> Tensor:
        return binary(ops.logical_and, self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Tensor:
        return binary(ops.logical_or, self, other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Tensor:
        return logical_xor(self, other)

    __rxor__ = __xor__

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return binary(ops.equal, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return binary(ops.not_equal, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return binary(ops.less, self, other)

    def __le__(self, other: Any) -> Tensor:
        return binary(ops.less_equal, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return binary(ops.greater, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return binary(ops.greater_equal, self, other)

    def __array__(self, *args: Any, **named: Any) -> NoReturn:
        raise ArgumentError(f"{self.type} has no elements while the graph is built; compile it", source.here())

    def __bool__(self) -> NoReturn:
        raise ArgumentError("a tensor has no truth value while the graph is built; use where()", source.here())

    def __len__(self) -> int:
        if not self.shape or not isinstance(self.shape[0], int):
            raise ArgumentError(f"{self.type} has no length that is known while the graph is built", source.here())
        return self.shape[0]

    def __iter__(self) -> NoReturn:
        raise ArgumentError(f"{self.type} cannot be iterated over; index it or use split()", source.here())

    def __getitem__(self, key: Any) -> Tensor:
        return frontend.indexing.index(self, key)

    # Shape and dtype -------------------------------------------------------------------------------------------

    def astype(self, dtype: Any) -> Tensor:
        """The elements in another dtype; float to int truncates and saturates."""
        return convert(self, as_dtype(dtype))

    def reshape(self, *shape: Any) -> Tensor:
        """The elements, row by row, in another shape; one extent may be -1."""
        return reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in another order, by default the opposite one, as NumPy's; `swapaxes` is torch's."""
        axes = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        if axes and len(axes) != self.ndim:
            raise ArgumentError(
                f"transpose takes all {self.ndim} axes of {self.type} in their new order, not {axes}; "
                f"swapaxes exchanges two",
                source.here(),
            )
        order = range(self.ndim)[::-1] if not axes else [axis_of(a, self.ndim) for a in axes]
        return Tensor(ops.transpose(self.value, perm=order))

    view, permute = reshape, transpose

    @property
    def mT(self) -> Tensor:
        """The matrices in the last two axes, transposed."""
        return frontend.functional.swapaxes(self, -1, -2)

    def size(self, axis: int | None = None) -> Any:
        """The shape, or the extent of one axis."""
        return self.shape if axis is None else self.shape[axis_of(axis, self.ndim)]

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    def numel(self) -> Dim:
        """The number of elements."""
        return self.type.size

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Axes start_dim to end_dim (inclusive) as one."""
        return frontend.functional.flatten(self, start_dim, end_dim)

    def squeeze(self, axis: int | Sequence[int] | None = None) -> Tensor:
        """Without the axes of extent 1, or without those given."""
        return frontend.functional.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Tensor:
        """A new axis of extent 1."""
        return frontend.functional.expand_dims(self, axis)

    def swapaxes(self, a: int, b: int) -> Tensor:
        """Axes a and b exchanged."""
        return frontend.functional.swapaxes(self, a, b)

    def expand(self, *shape: Any) -> Tensor:
        """The elements repeated along axes of extent 1 and new ones; -1 keeps an extent."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        own = (1,) * (len(wanted) - self.ndim) + self.shape
        return broadcast_to(self, tuple(e if d == -1 else _as_dim(d) for d, e in zip(wanted, own, strict=True)))

    def float(self) -> Tensor:
        """The elements as float32."""
        return convert(self, DType.F32)

    def double(self) -> Tensor:
        """The elements as float64."""
        return convert(self, DType.F64)

    def long(self) -> Tensor:
        """The elements as int64."""
        return convert(self, DType.I64)

    def detach(self) -> Tensor:
        """The tensor, a constant to differentiation."""
        return frontend.functional.stop_gradient(self)

    # Reductions ------------------------------------------------------------------------------------------------

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.sum(self, axis, keepdims)

    def prod(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.prod(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.mean(self, axis, keepdims)

    def var(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        return frontend.functional.var(self, axis, keepdims, ddof)

    def std(self, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        return frontend.functional.std(self, axis, keepdims, ddof)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.min(self, axis, keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.all(self, axis, keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return frontend.functional.any(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Tensor:
        return frontend.functional.argmax(self, axis)

    def argmin(self, axis: int | None = None) -> Tensor:
        return frontend.functional.argmin(self, axis)

    # Elementwise -----------------------------------------------------------------------------------------------

    def abs(self) -> Tensor:
        return frontend.functional.abs(self)

    def exp(self) -> Tensor:
        return frontend.functional.exp(self)

    def log(self) -> Tensor:
        return frontend.functional.log(self)

    def sqrt(self) -> Tensor:
        return frontend.functional.sqrt(self)

    def square(self) -> Tensor:
        return frontend.functional.square(self)

    def tanh(self) -> Tensor:
        return frontend.functional.tanh(self)

    def sigmoid(self) -> Tensor:
        return frontend.functional.sigmoid(self)

    def relu(self) -> Tensor:
        return frontend.functional.relu(self)

    def softmax(self, axis: int = -1) -> Tensor:
        return frontend.functional.softmax(self, axis)

    def log_softmax(self, axis: int = -1) -> Tensor:
        return frontend.functional.log_softmax(self, axis)

    def clip(self, low: Any = None, high: Any = None) -> Tensor:
        return frontend.functional.clip(self, low, high)

    clamp = clip

    def masked_fill(self, mask: Any, value: Any) -> Tensor:
        return frontend.functional.masked_fill(self, mask, value)

    def gather(self, axis: int, index: Any) -> Tensor:
        """The elements at `index` along `axis`, elsewhere at the same place (torch's gather)."""
        return frontend.functional.take_along_axis(self, index, axis)


# Leaves ---------------------------------------------------------------------------------------------------------


def placeholder(name: str, shape: Sequence[Any] = (), dtype: Any = np.float32) -> Tensor:
    """An input, fed on every call.

    shape   extents: numbers, names of dimensions ("batch"; equal names are equal sizes), or sums of them

    Raises ArgumentError for a name or extent that is none.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(f"a placeholder's name must be an identifier, not {name!r}", source.here())
    return Tensor(Value(TensorType(as_dtype(dtype), as_shape(shape)), name=name))


def constant(array: Any, dtype: Any = None) -> Tensor:
    """A constant from an array, numbers or nested lists. Python floats become float32, Python ints int64.

    A named dimension becomes its size, as int64.
    """
    if isinstance(array, Tensor):
        return array if dtype is None else convert(array, as_dtype(dtype))
    if isinstance(array, dims.Polynomial):
        return Tensor(ops.extent(dim=array, dtype=DType.I64 if dtype is None else as_dtype(dtype)))
    return Tensor(ops.constant(value=Literal.of(as_array(array, None if dtype is None else as_dtype(dtype)))))


def as_array(data: Any, dtype: DType | None = None) -> Array:
    """`data` as an array of `dtype`, or of its own: Python floats become float32, Python ints int64.

    Raises ArgumentError for what is no array, and for NaN, infinity and numbers out of range where `dtype` is of
    integers, and DTypeError for elements that are no numbers.
    """
    try:
        found = np.asarray(float(data) if dtype and dtype.is_float and isinstance(data, int) else data)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ArgumentError(f"not an array of numbers: {error}", source.here()) from None
    if dtype is None:
        is_weak = not isinstance(data, np.ndarray | np.generic) and found.dtype == np.float64
        dtype = DType.F32 if is_weak else as_dtype(found.dtype)
    if isinstance(data, int) and found.dtype.hasobject:
        raise ArgumentError(f"{dtype} has no number {data}", source.here())
    if found.dtype.kind not in "biuf":
        raise DTypeError(f"{found.dtype} cannot become {dtype}", source.here())
    if dtype.is_int and found.dtype.kind != "b" and found.size:
        limits = np.iinfo(dtype.numpy)
        low, high = found.min().item(), found.max().item()  # Python numbers compare exactly; NaN compares false
        if not (limits.min <= low and high <= limits.max):
            raise ArgumentError(
                f"{dtype} has no number {low if low != low or low < limits.min else high}", source.here()
            )
    with np.errstate(over="ignore"):  # float64 that float32 has not is infinite
        return found.astype(dtype.numpy, copy=False)


# Shapes ---------------------------------------------------------------------------------------------------------


def as_shape(shape: Any) -> Shape:
    """Extents from numbers, names and dimensions."""
    return tuple(map(_as_dim, shape if isinstance(shape, tuple | list) else (shape,)))


def _as_dim(extent: Any) -> Dim:
    if isinstance(extent, str):
        return dims.parse(extent)
    if isinstance(extent, dims.Polynomial):
        return extent
    try:
        number = operator.index(extent)
    except TypeError:
        raise ArgumentError(f"an extent must be a number or a name, not {extent!r}", source.here()) from None
    if number < 0:
        raise ArgumentError(f"an extent must not be negative: {number}", source.here())
    return number


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front; raises ArgumentError when it is outside."""
    if not isinstance(axis, int | np.integer) or not -rank <= axis < rank:
        raise ArgumentError(f"axis {axis} is outside a shape of {rank} axes", source.here())
    return int(axis) % rank


def reshape(x: Tensor, shape: Sequence[Any]) -> Tensor:
    """The elements in row-major order as `shape`, of which one extent may be -1."""
    wanted = [d if d == -1 else _as_dim(d) for d in shape]
    if wanted.count(-1) > 1:
        raise ArgumentError(f"only one extent may be -1, not {list(shape)}", source.here())
    if -1 in wanted:
        rest = dims.product(d for d in wanted if d != -1)
        try:
            wanted[wanted.index(-1)] = dims.exact_div(x.type.size, rest)
        except ShapeError:
            raise ShapeError(f"{x.type} cannot be reshaped to {list(shape)}", source.here()) from None
    return Tensor(ops.reshape(x.value, shape=wanted))


def broadcast_shapes(*tensors: Tensor) -> Shape:
    """The shape that NumPy's rules give: aligned at the end, extents equal or 1."""
    rank = max((t.ndim for t in tensors), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        extents = [t.shape[axis] for t in tensors if t.ndim >= -axis]
        found = {d for d in extents if d != 1}
        if len(found) > 1:
            raise ShapeError(_mismatch("shapes do not broadcast", tensors), source.here())
        result.append(found.pop() if found else 1)
    return tuple(result)


def _mismatch(what: str, tensors: Sequence[Tensor]) -> str:
    """A message with the operands' types and lines."""
    lines = [f"{what}: " + " and ".join(str(t.type) for t in tensors)]
    for number, tensor in enumerate(tensors):
        node = tensor.value.node
        if node is not None and node.location is not None:
            lines.append(f"  operand {number} {tensor.type} is from {node.location}")
        elif tensor.name:
            lines.append(f"  operand {number} {tensor.type} is %{tensor.name}")
    return "\n".join(lines)


def broadcast_to(x: Tensor, shape: Shape) -> Tensor:
    """The elements repeated along new and stretched axes, by NumPy's rules."""
    if x.shape == shape:
        return x
    if x.ndim > len(shape):
        raise ShapeError(f"{x.type} has more axes than [{','.join(map(str, shape))}]", source.here())
    return Tensor(ops.broadcast(x.value, shape=shape, axes=range(len(shape) - x.ndim, len(shape))))


# Dtypes ---------------------------------------------------------------------------------------------------------


def convert(x: Tensor, dtype: DType) -> Tensor:
    """The elements in another dtype; the tensor itself where it has that dtype."""
    return x if x.dtype is dtype else Tensor(ops.convert(x.value, dtype=dtype))


_OPERANDS = (Tensor, dims.Polynomial, bool, int, float, complex, list, tuple, np.ndarray, np.generic)


def promote(*operands: Any) -> list[Tensor]:
    """The operands as tensors of one dtype, NumPy's result_type; Python numbers are weak."""
    for x in operands:
        if not isinstance(x, _OPERANDS):
            raise ArgumentError(f"expected a tensor, array or number, not {type(x).__name__}", source.here())
    kinds: list[Any] = [x.dtype.numpy if isinstance(x, Tensor) else x for x in operands]
    kinds = [1 if isinstance(k, dims.Polynomial) else k for k in kinds]
    try:
        kinds = [k if isinstance(k, np.dtype | bool | int | float) else np.asarray(k).dtype for k in kinds]
        dtype = as_dtype(np.result_type(*kinds)) if any(isinstance(k, np.dtype) for k in kinds) else None
    except GraphcError as error:
        raise DTypeError(f"no common dtype: {error.message}", source.here()) from None
    except (ValueError, TypeError, OverflowError) as error:
        raise DTypeError(f"no common dtype: {error}", source.here()) from None
    return [_as_tensor(x, dtype) for x in operands]


def _as_tensor(x: Any, dtype: DType | None) -> Tensor:
    if isinstance(x, Tensor):
        return x if dtype is None else convert(x, dtype)
    return constant(x, dtype)


_ON_BOOLS: dict[Callable[..., Value], Callable[..., Value]] = {  # NumPy's meaning of arithmetic on bools
    ops.add: ops.logical_or,
    ops.mul: ops.logical_and,
    ops.maximum: ops.logical_or,
    ops.minimum: ops.logical_and,
}


def binary(op: Callable[..., Value], a: Any, b: Any) -> Tensor:
    """An elementwise op of two operands, which are promoted and broadcast."""
    first, second = promote(a, b)
    if first.dtype is DType.BOOL:
        op = _ON_BOOLS.get(op, op)
    shape = broadcast_shapes(first, second)
    return Tensor(op(broadcast_to(first, shape).value, broadcast_to(second, shape).value))


def logical_xor(a: Any, b: Any) -> Tensor:
    """Either a or b, for bools."""
    first, second = promote(a, b)
    if first.dtype is not DType.BOOL:
        raise DTypeError(_mismatch("logical_xor takes bools", (first, second)), source.here())
    return binary(ops.not_equal, first, second)


def power(a: Any, b: Any) -> Tensor:
    """a ** b; as in NumPy, an integer has no power of a negative number that is known."""
    first, second = promote(a, b)
    if first.dtype.is_int and isinstance(b, int) and b < 0:
        raise ArgumentError(f"{first.type} has no power {b}; convert it to float", source.here())
    return binary(ops.pow, first, second)


def divide(a: Any, b: Any) -> Tensor:
    """True division: integers give float64, as in NumPy."""
    first, second = promote(a, b)
    return binary(ops.div, _as_float(first), _as_float(second))


def _as_float(x: Tensor) -> Tensor:
    return x if x.dtype.is_float else convert(x, DType.F64)


def as_tensor(x: Any) -> Tensor:
    """x itself, or the constant that it stands for."""
    return x if isinstance(x, Tensor) else constant(x)


def as_float(x: Any) -> Tensor:
    """A tensor that functions of real numbers accept: integers and bools become float64, as in NumPy."""
    return _as_float(as_tensor(x))


# Products -------------------------------------------------------------------------------------------------------


def matmul(a: Any, b: Any) -> Tensor:
    """NumPy's matmul: matrices in the last two axes, the others broadcast; a vector is a row left and a column right.

    Raises ShapeError when the inner extents differ or an operand is a scalar.
    """
    first, second = promote(a, b)
    if first.ndim == 0 or second.ndim == 0 or first.shape[-1] != second.shape[-2 if second.ndim > 1 else 0]:
        raise ShapeError(_mismatch("inner extents of matmul differ", (first, second)), source.here())
    batch = _joined(first.shape[:-2], second.shape[:-2])
    first, one = _batched(first, batch, "mk")
    second, two = _batched(second, batch, "kn")
    result = BATCH[: len(batch)] + "".join(x for x in "mn" if x in one + two)
    return Tensor(ops.contract(first.value, second.value, spec=f"{one},{two}->{result}"))


BATCH = "abcdefghij"  # letters of batch axes


def _batched(x: Tensor, batch: Shape, matrix: str) -> tuple[Tensor, str]:
    """An operand of matmul with its batch axes broadcast, and its letters. One that has none is read by every batch."""
    if x.ndim == 1:
        return x, "k"
    if x.ndim == 2:
        return x, matrix
    return broadcast_to(x, (*batch, *x.shape[-2:])), BATCH[: len(batch)] + matrix


def _joined(*shapes: Shape) -> Shape:
    return broadcast_shapes(*(Tensor(Value(TensorType(DType.BOOL, shape))) for shape in shapes))
