"""Random graphs of primitive ops, with numbers to feed them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from graphc import ops
from graphc.ir.graph import Graph, Value, build
from graphc.ir.types import DType, TensorType

Array = np.ndarray[Any, Any]
EXTENTS = (1, 2, 3, 5, 17)
TAME = ("neg", "abs", "relu", "tanh", "sigmoid", "erf", "sin", "cos", "floor")  # bounded growth
PAIRS = ("add", "sub", "mul", "maximum", "minimum")


@st.composite
def random_graphs(draw: st.DrawFn, most: int = 14) -> tuple[Graph, list[Array]]:
    """A graph of up to `most` steps over one to three float32 inputs, and arrays for them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    extent = st.sampled_from(EXTENTS)
    count = draw(st.integers(1, 3))
    shapes = [tuple(draw(st.lists(extent, min_size=0, max_size=3))) for _ in range(count)]
    inputs = [Value(TensorType(DType.F32, shape), name=f"x{n}") for n, shape in enumerate(shapes)]
    values: list[Value] = list(inputs)
    for _ in range(draw(st.integers(1, most))):
        values.append(draw(_step(values)))
    used = {v for value in values for v in (value.node.inputs if value.node else ())}
    outputs = [v for v in values if v not in used and v.node is not None] or [values[-1]]
    extra = draw(st.lists(st.sampled_from(values), max_size=2))
    graph = build("random", inputs, [*outputs, *extra])
    feeds = [random.uniform(-2, 2, shape).astype(np.float32) for shape in shapes]
    return graph, feeds


@st.composite
def random_scans(draw: st.DrawFn) -> tuple[Graph, list[Array]]:
    """A graph of one or two loops and what feeds them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.sampled_from((1, 2, 3, 5))), *draw(st.lists(st.sampled_from((1, 2, 3)), min_size=1, max_size=2)))
    x, y = (Value(TensorType(DType.F32, shape), name=name) for name in "xy")
    first = Value(TensorType(DType.F32, shape[1:]), name="c")
    values: list[Value] = [x, y, first]
    for _ in range(draw(st.integers(1, 2))):
        stacks = [v for v in values if v.shape[:1] == shape[:1] and v.type.rank > 1]
        values.append(draw(_scan(draw(st.sampled_from(stacks)), values)))
        values.append(ops.tanh(ops.add(values[-1], values[-1])))
    feeds = [random.uniform(-2, 2, v.type.extents).astype(np.float32) for v in (x, y, first)]
    return build("loops", [x, y, first], [values[-1], values[-2]]), feeds


@st.composite
def _step(draw: st.DrawFn, values: list[Value]) -> Value:
    x = draw(st.sampled_from(values))
    rank, shape = x.type.rank, x.shape
    kinds = ["unary", "binary", "where", "reshape", "outer"]
    if rank:
        kinds += [
            "reduce",
            "reduce",
            "transpose",
            "broadcast",
            "slice",
            "pad",
            "reverse",
            "concat",
            "softmax",
            "window",
        ]
        kinds += ["contract", "contract", "gather", "scan"]
    match draw(st.sampled_from(kinds)):
        case "unary":
            return getattr(ops, draw(st.sampled_from(TAME)))(x)
        case "binary":
            y = _fitted(draw, x, values)
            return ops.tanh(getattr(ops, draw(st.sampled_from(PAIRS)))(x, y))
        case "where":
            y = _fitted(draw, x, values)
            return ops.where(ops.less(x, y), y, ops.full_like(x, 0.5))
        case "reshape":
            return ops.reshape(x, shape=(*shape, 1) if draw(st.booleans()) else (int(np.prod(shape)),))
        case "outer":
            return (
                ops.broadcast(x, shape=(draw(st.sampled_from((2, 3))), *shape), axes=range(1, rank + 1))
                if rank < 3
                else x
            )
        case "reduce":
            axes = sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1)))
            op = draw(st.sampled_from(("reduce_sum", "reduce_max", "reduce_min")))
            return ops.tanh(getattr(ops, op)(x, axes=axes))
        case "transpose":
            return ops.transpose(x, perm=draw(st.permutations(range(rank))))
        case "broadcast":
            total = ops.reduce_max(x, axes=(0,))
            return ops.broadcast(total, shape=shape, axes=range(1, rank))
        case "slice":
            start = [draw(st.integers(0, d - 1)) for d in shape]
            stop = [draw(st.integers(s + 1, d)) for s, d in zip(start, shape, strict=True)]
            return ops.slice(x, start=start, stop=stop, step=[draw(st.integers(1, 2)) for _ in shape])
        case "pad":
            low, high = ([draw(st.integers(0, 2)) for _ in shape] for _ in range(2))
            interior = [draw(st.integers(0, 1)) for _ in shape]
            return ops.pad(x, low=low, high=high, interior=interior, value=0.25)
        case "reverse":
            return ops.reverse(x, axes=(draw(st.integers(0, rank - 1)),))
        case "concat":
            return ops.concat(x, ops.neg(x), axis=draw(st.integers(0, rank - 1)))
        case "softmax":
            axes = (draw(st.integers(0, rank - 1)),)
            kept = [a for a in range(rank) if a not in axes]
            e = ops.exp(ops.sub(x, ops.broadcast(ops.reduce_max(x, axes=axes), shape=shape, axes=kept)))
            return ops.div(e, ops.broadcast(ops.reduce_sum(e, axes=axes), shape=shape, axes=kept))
        case "window":
            axis = draw(st.integers(0, rank - 1))
            size = draw(st.integers(1, shape[axis]))
            seen = ops.windows(x, axes=(axis,), size=(size,), stride=(draw(st.integers(1, 2)),), dilation=(1,))
            return ops.reduce_max(seen, axes=(rank,))
        case "contract":
            weight = ops.tanh(_fitted(draw, x, values))
            letters = "abcdef"[:rank]
            summed = draw(st.sampled_from(letters))
            spec = f"{letters},{letters.replace(summed, 'z') if draw(st.booleans()) else letters}->"
            if "z" in spec:  # an outer product over one axis, batched over the others
                return ops.tanh(ops.contract(x, weight, spec=f"{spec}{letters}z")) if rank < 3 else x
            return ops.tanh(ops.contract(x, weight, spec=spec + letters.replace(summed, "")))
        case "scan":
            return draw(_scan(x, values))
        case _:
            at = ops.convert(ops.mul(x, ops.full_like(x, 3.0)), dtype=DType.I64)
            flat = ops.reshape(at, shape=(int(np.prod(shape)),))
            return ops.gather(x, ops.slice(flat, start=(0,), stop=(1,), step=(1,)), axis=draw(st.integers(0, rank - 1)))


@st.composite
def _scan(draw: st.DrawFn, x: Value, values: list[Value]) -> Value:
    """A loop along the first axis, whose step is a random graph of one or two carries, a slice and a constant."""
    carries = [Value(TensorType(x.dtype, x.shape[1:]), name=f"c{n}") for n in range(draw(st.integers(1, 2)))]
    slice, other = (Value(TensorType(x.dtype, x.shape[1:]), name=name) for name in "xw")
    seen = [v for v in values if v.shape == slice.shape]
    inner: list[Value] = [*carries, slice, *([other] if seen else [])]
    for _ in range(draw(st.integers(1, 4))):
        inner.append(draw(_step(inner)))
    same = st.sampled_from([v for v in inner if v.shape == slice.shape])
    next = [(c, draw(same) if draw(st.booleans()) else ops.tanh(ops.add(draw(same), draw(same)))) for c in carries]
    results = draw(st.lists(st.sampled_from(inner), max_size=3))
    body = build("step", [slice, *([other] if seen else [])], results, next)
    constants = [draw(st.sampled_from(seen))] if seen else []
    first = [draw(st.sampled_from(seen)) if seen else ops.reduce_max(x, axes=(0,)) for _ in carries]
    node = ops.scan(first, [x], constants, length=x.shape[0], body=body, reverse=draw(st.booleans()))
    return draw(st.sampled_from(node.outputs))


def _fitted(draw: st.DrawFn, x: Value, values: list[Value]) -> Value:
    """Another value of the same shape: one that has it, or one that is repeated to it."""
    same = [v for v in values if v.shape == x.shape]
    scalars = [v for v in values if v.type.rank == 0]
    y = draw(st.sampled_from([*same, *scalars]))
    return y if y.shape == x.shape else ops.broadcast(y, shape=x.shape, axes=())
