"""Calls of every op, for tests that hold for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc import ops
from graphc.ir.graph import Graph, Literal, Value, build, make_node
from graphc.ir.op import OPS
from graphc.ir.types import FLOATS, INTS, DType, TensorType, as_dtype

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(1)


@dataclass(frozen=True, eq=False)
class Sample:
    """An op on arrays. `smooth`: its derivative can be checked by differences at these numbers."""

    op: str
    arrays: tuple[Array, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    smooth: bool = False

    @property
    def name(self) -> str:
        """For pytest."""
        shapes = "_".join(f"{a.dtype.name}{list(a.shape)}".replace(" ", "") for a in self.arrays)
        plain = ((k, v) for k, v in self.attrs.items() if not isinstance(v, Literal | Graph))
        extra = ",".join(f"{k}={v}" for k, v in plain).replace(" ", "")
        return f"{self.op}-{shapes}-{extra}"

    def build(self) -> tuple[list[Value], Value]:
        """Inputs of the arrays' types, and the op's last result on them."""
        inputs = [Value(TensorType(as_dtype(a.dtype), a.shape), name=f"x{n}") for n, a in enumerate(self.arrays)]
        return inputs, make_node(OPS[self.op], inputs, self.attrs).outputs[-1]


SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (5,), (3, 33), (0, 4), (2, 3, 4))


def normal(shape: tuple[int, ...], dtype: DType = DType.F64) -> Array:
    return RANDOM.standard_normal(shape).astype(dtype.numpy)


def away(shape: tuple[int, ...], dtype: DType = DType.F64) -> Array:
    """Numbers that are not near 0, where |x| and relu have a corner."""
    x = normal(shape)
    return (x + np.copysign(0.1, x)).astype(dtype.numpy)


def distinct(shape: tuple[int, ...], dtype: DType = DType.F64) -> Array:
    """Numbers of which no two are near each other, where the maximum changes."""
    size = int(np.prod(shape))
    return (RANDOM.permutation(size).reshape(shape) / 10 - size / 20).astype(dtype.numpy)


def positive(shape: tuple[int, ...], dtype: DType = DType.F64) -> Array:
    return (np.abs(normal(shape)) + 0.5).astype(dtype.numpy)


def integers(shape: tuple[int, ...], dtype: DType = DType.I64, low: int = -4, high: int = 5) -> Array:
    return RANDOM.integers(low, high, shape).astype(dtype.numpy)


def bools(shape: tuple[int, ...]) -> Array:
    return RANDOM.integers(0, 2, shape).astype(np.bool_)


def _unary() -> list[Sample]:
    anywhere = ("neg", "abs", "sign", "relu", "exp", "expm1", "sin", "cos", "tanh", "sigmoid", "erf")
    steps = ("floor", "ceil", "round", "sign")
    found = []
    for shape in SHAPES:
        for dtype in FLOATS:
            for op in (*anywhere, "floor", "ceil", "round"):
                found.append(Sample(op, (away(shape, dtype),), smooth=dtype is DType.F64 and op not in steps))
            for op in ("sqrt", "rsqrt", "log", "log1p"):
                found.append(Sample(op, (positive(shape, dtype),), smooth=dtype is DType.F64))
        for dtype in INTS:
            for op in ("neg", "abs", "sign", "relu"):
                found.append(Sample(op, (integers(shape, dtype),)))
        found.append(Sample("logical_not", (bools(shape),)))
        for source in (
            normal(shape, DType.F32),
            normal(shape),
            integers(shape, DType.I32),
            integers(shape),
            bools(shape),
        ):
            for target in DType:
                smooth = source.dtype == np.float64 and target is DType.F64
                found.append(Sample("convert", (source,), {"dtype": target}, smooth))
    return found


def _binary() -> list[Sample]:
    found = []
    for shape in SHAPES:
        for dtype in FLOATS:
            exact = dtype is DType.F64
            for op in ("add", "sub", "mul", "maximum", "minimum"):
                x = normal(shape)
                pair = x.astype(dtype.numpy), (x + away(shape)).astype(dtype.numpy)
                found.append(Sample(op, pair, smooth=exact))
            for op in ("div", "pow", "mod", "floor_div"):
                pair = positive(shape, dtype), positive(shape, dtype)
                found.append(Sample(op, pair, smooth=exact and op in ("div", "pow")))
        for dtype in INTS:
            for op in ("add", "sub", "mul", "maximum", "minimum", "floor_div", "mod", "pow"):
                found.append(Sample(op, (integers(shape, dtype), integers(shape, dtype))))
        for op in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
            for make in (normal, integers):
                found.append(Sample(op, (make(shape), make(shape))))
            found.append(Sample(op, (bools(shape), bools(shape))))
        for op in ("logical_and", "logical_or"):
            found.append(Sample(op, (bools(shape), bools(shape))))
        found.append(Sample("where", (bools(shape), normal(shape), normal(shape)), smooth=True))
        found.append(Sample("where", (bools(shape), integers(shape), integers(shape))))
    return found


def _generators() -> list[Sample]:
    literals = [normal((3, 2), DType.F32), np.zeros((4, 5)), integers(()), bools((3,)), np.zeros((0, 2), np.float32)]
    found = [Sample("constant", (), {"value": Literal.of(array)}) for array in literals]
    found += [Sample("iota", (), {"shape": (3, 4), "axis": a, "dtype": d}) for a in (0, 1) for d in (*INTS, *FLOATS)]
    found += [Sample("extent", (), {"dim": 7, "dtype": dtype}) for dtype in (*INTS, *FLOATS)]
    return found


def _movements() -> list[Sample]:
    x, y = normal((3, 4, 5)), normal((2, 7))
    calls: list[tuple[str, tuple[Array, ...], dict[str, Any]]] = [
        ("reshape", (x,), {"shape": (12, 5)}),
        ("reshape", (x,), {"shape": (5, 1, 12)}),
        ("reshape", (normal((0, 3)),), {"shape": (3, 0, 2)}),
        ("transpose", (x,), {"perm": (2, 0, 1)}),
        ("transpose", (y,), {"perm": (1, 0)}),
        ("transpose", (normal(()),), {"perm": ()}),
        ("broadcast", (normal((4, 1)),), {"shape": (3, 4, 5), "axes": (1, 2)}),
        ("broadcast", (normal(()),), {"shape": (2, 3), "axes": ()}),
        ("broadcast", (y,), {"shape": (2, 3, 7), "axes": (0, 2)}),
        ("slice", (x,), {"start": (1, 0, 2), "stop": (3, 4, 4), "step": (1, 1, 1)}),
        ("slice", (x,), {"start": (0, 1, 0), "stop": (3, 4, 5), "step": (2, 2, 3)}),
        ("slice", (x,), {"start": (0, 2, 0), "stop": (3, 2, 5), "step": (1, 1, 1)}),
        ("pad", (y,), {"low": (1, 2), "high": (0, 3), "interior": (0, 0), "value": 2.5}),
        ("pad", (y,), {"low": (0, 1), "high": (2, 0), "interior": (1, 2), "value": 0}),
        ("pad", (normal((0, 2)),), {"low": (1, 0), "high": (1, 1), "interior": (2, 1), "value": -1.0}),
        ("reverse", (x,), {"axes": (0, 2)}),
        ("reverse", (y,), {"axes": ()}),
        ("concat", (y, normal((2, 1)), normal((2, 4))), {"axis": 1}),
        ("concat", (x,), {"axis": 0}),
        ("concat", (normal((0, 7)), y), {"axis": 0}),
        ("windows", (normal((2, 3, 8, 9)),), _windows((2, 3), (3, 2), (1, 1), (1, 1))),
        ("windows", (normal((2, 11)),), _windows((1,), (3,), (2,), (2,))),
        ("windows", (normal((6, 5)),), _windows((0,), (2,), (3,), (1,))),
        ("stop_gradient", (y,), {}),
        ("require", (y,), {"dim": 3, "at_least": 2, "what": "a mean"}),
    ]
    found = [Sample(op, arrays, attrs, smooth=op != "stop_gradient") for op, arrays, attrs in calls]
    for extent, size, stride, dilation in ((8, 3, 1, 1), (11, 3, 2, 2), (6, 2, 3, 1), (7, 3, 2, 1)):
        count = (extent - dilation * (size - 1) - 1) // stride + 1
        attrs = {"axes": (1,), "extents": (extent,), "stride": (stride,), "dilation": (dilation,)}
        found.append(Sample("unwindows", (normal((2, count, size)),), attrs, smooth=True))
    two = {"axes": (0, 1), "extents": (6, 7), "stride": (2, 1), "dilation": (1, 2)}
    return [*found, Sample("unwindows", (normal((3, 3, 2, 3)),), two, smooth=True)]


def _windows(axes: Any, size: Any, stride: Any, dilation: Any) -> dict[str, Any]:
    return {"axes": axes, "size": size, "stride": stride, "dilation": dilation}


def _reductions() -> list[Sample]:
    found = []
    for shape, axes in (
        ((3, 33), (1,)),
        ((3, 33), (0,)),
        ((2, 3, 4), (0, 2)),
        ((5,), (0,)),
        ((2, 3), ()),
        ((70, 9), (0, 1)),
    ):
        for op in ("reduce_sum", "reduce_max", "reduce_first_max", "reduce_min", "reduce_prod"):
            attrs = {"axes": axes}
            numbers = distinct if op in ("reduce_max", "reduce_first_max", "reduce_min") else normal
            found.append(Sample(op, (numbers(shape),), attrs, smooth=op != "reduce_prod" or 70 not in shape))
            found.append(Sample(op, (normal(shape, DType.F32),), attrs))
            found.append(Sample(op, (integers(shape),), attrs))
        for op in ("reduce_all", "reduce_any"):
            found.append(Sample(op, (bools(shape),), {"axes": axes}))
    found += [
        Sample("reduce_sum", (normal((0, 4)),), {"axes": (0,)}),
        Sample("reduce_max", (normal((4, 0)),), {"axes": (1,)}),
    ]
    with_zero = np.array([[1.5, 0.0, 2.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]])
    return [*found, Sample("reduce_prod", (with_zero,), {"axes": (1,)})]


def _contractions() -> list[Sample]:
    calls = [
        ("mk,kn->mn", (5, 7), (7, 9)),
        ("mk,nk->mn", (13, 7), (33, 7)),
        ("km,kn->mn", (5, 17), (5, 40)),
        ("km,nk->nm", (5, 3), (6, 5)),
        ("mk,kn->nm", (9, 5), (5, 7)),
        ("bmk,bkn->bmn", (3, 9, 4), (3, 4, 18)),
        ("bhtd,bhsd->bhts", (2, 3, 8, 4), (2, 3, 8, 4)),
        ("bij,kj->bik", (2, 3, 5), (4, 5)),
        ("k,k->", (9,), (9,)),
        ("mk,k->m", (20, 5), (5,)),
        ("k,kn->n", (70,), (70, 20)),
        ("m,n->mn", (4,), (5,)),
        ("bi,bi->b", (6, 5), (6, 5)),
        ("ij,ij->ij", (3, 5), (3, 5)),
        ("ijk,kji->", (2, 3, 4), (4, 3, 2)),
        ("mk,kn->mn", (0, 3), (3, 4)),
        ("mk,kn->mn", (2, 0), (0, 4)),
        ("mk,kn->mn", (64, 100), (100, 100)),
        (",n->n", (), (5,)),
    ]
    found = [Sample("contract", (normal(a), normal(b)), {"spec": s}, smooth=64 not in a) for s, a, b in calls]
    found += [Sample("contract", (normal(a, DType.F32), normal(b, DType.F32)), {"spec": s}) for s, a, b in calls]
    return [*found, Sample("contract", (integers((3, 4)), integers((4, 5))), {"spec": "mk,kn->mn"})]


def _indexing() -> list[Sample]:
    x = normal((4, 5, 6))
    found = []
    for axis, dtype in ((0, DType.I64), (1, DType.I32), (2, DType.I64)):
        inside = integers((3, 2), dtype, 0, 4)
        outside = integers((3, 2), dtype, -3, 9)
        found.append(Sample("gather", (x, inside), {"axis": axis}, smooth=True))
        found.append(Sample("gather", (x, outside), {"axis": axis}, smooth=True))
        updates = normal((*x.shape[:axis], 3, 2, *x.shape[axis + 1 :]))
        found.append(Sample("scatter_add", (inside, updates), {"axis": axis, "size": 4}, smooth=True))
        found.append(Sample("scatter_add", (outside, updates), {"axis": axis, "size": 5}, smooth=True))
    found.append(Sample("gather", (normal((7,)), integers((), DType.I64, 0, 7)), {"axis": 0}, smooth=True))
    found.append(Sample("scatter_add", (integers((0,)), normal((0, 3))), {"axis": 0, "size": 4}))
    return [*found, Sample("check_index", (integers((2, 3), low=0),), {"size": 5, "what": "label"})]


def recurrence(dtype: DType, results: bool = True) -> Graph:
    """h = tanh(h w + x) and n = n + 1; the step's result is h x."""
    x, w, h = (Value(TensorType(dtype, shape), name=n) for n, shape in (("x", (2, 3)), ("w", (3, 3)), ("h", (2, 3))))
    count = Value(TensorType(DType.I64, ()), name="n")
    following = ops.tanh(ops.add(ops.contract(h, w, spec="mk,kn->mn"), x))
    next = [(count, ops.add(count, ops.full((), 1, DType.I64))), (h, following)]
    return build("recurrence", [x, w], [ops.mul(following, x)] if results else [], next)


def _scans() -> list[Sample]:
    found = []
    for length, reverse, results in (
        (4, False, True),
        (4, True, True),
        (1, False, True),
        (0, True, True),
        (3, True, False),
    ):
        for dtype in FLOATS:
            arrays = (integers(()), normal((2, 3), dtype), normal((length, 2, 3), dtype), normal((3, 3), dtype))
            attrs = {"length": length, "slices": 1, "reverse": reverse, "body": recurrence(dtype, results)}
            found.append(Sample("scan", arrays, attrs, smooth=dtype is DType.F64 and length > 0))
    x = Value(TensorType(DType.F32, (5,)), name="x")
    squares = build("squares", [x], [ops.mul(x, x)])
    return [
        *found,
        Sample("scan", (normal((3, 5), DType.F32),), {"length": 3, "slices": 1, "reverse": False, "body": squares}),
    ]


SAMPLES = [
    *_unary(),
    *_binary(),
    *_generators(),
    *_movements(),
    *_reductions(),
    *_contractions(),
    *_indexing(),
    *_scans(),
]
