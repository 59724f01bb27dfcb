"""Convolutions of images with gaps: the same values when they are cut into phases, whatever the letters."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphc import ops, reference
from graphc.ir.graph import Graph, Value, build
from graphc.ir.types import DType, TensorType
from graphc.ir.verify import verify
from graphc.passes import manager
from graphc.runtime.feeds import examples


def _value(name: str, *shape: int) -> Value:
    return Value(TensorType(DType.F32, shape), name=name)


def _split(graph: Graph) -> Graph:
    found, _ = manager.run(graph, ("split_phases",))
    verify(found)
    return found


def _has_gaps(graph: Graph) -> bool:
    return any(any(node.attrs.get("interior", ())) for node in graph.nodes)


def _require_same(graph: Graph, other: Graph) -> None:
    feeds = examples(graph)
    (found,), (wanted,) = reference.run(other, feeds)[0], reference.run(graph, feeds)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@st.composite
def _convolutions(draw: st.DrawFn) -> Graph:
    """Windows of an image [channels, places..], which is padded with and between its elements, times filters."""
    spaces = draw(st.integers(1, 2))
    image = _value("x", draw(st.integers(1, 3)), *(draw(st.integers(1, 5)) for _ in range(spaces)))
    low, high, interior = ([0, *(draw(st.integers(0, most)) for _ in range(spaces))] for most in (6, 6, 3))
    padded = ops.pad(image, low=low, high=high, interior=interior, value=0.0)
    axes = draw(st.permutations(range(1, spaces + 1)))
    size = [draw(st.integers(1, min(4, padded.type.extents[axis]))) for axis in axes]
    dilation = [draw(st.integers(1, 2)) if 2 * k <= padded.type.extents[a] else 1 for a, k in zip(axes, size)]
    stride = [draw(st.sampled_from((1, 1, 2))) for _ in axes]
    seen = ops.windows(padded, axes=axes, size=size, stride=stride, dilation=dilation)
    first = "abcdef"[: seen.type.rank]
    taps, places = first[spaces + 1 :], first[1 : spaces + 1]
    second = "".join(draw(st.permutations(taps + draw(st.sampled_from(("", "o", "a", "ao", "b"))))))
    kept = [c for c in (*taps, "a") if c not in second or draw(st.integers(0, 3)) == 0]
    result = "".join(draw(st.permutations([*places, *(c for c in second if c == "o"), *kept])))
    extents = {**dict(zip(first, seen.type.extents)), "o": 3}
    operands = [(seen, first), (_value("w", *(extents[c] for c in second)), second)]
    (a, left), (b, right) = draw(st.permutations(operands))
    product = ops.contract(a, b, spec=f"{left},{right}->{result}")
    return build("step", [image, *(v for v in (a, b) if v.node is None)], [product])


@given(_convolutions())
def test_phases_are_the_convolution(graph: Graph) -> None:
    _require_same(graph, _split(graph))


def _product(spec: str) -> Graph:
    image, filters = _value("x", 4, 2), _value("w", 3, 2)
    padded = ops.pad(image, low=(1, 0), high=(2, 0), interior=(1, 0), value=0.0)
    seen = ops.windows(padded, axes=(0,), size=(3,), stride=(1,), dilation=(1,))
    return build("step", [image, filters], [ops.contract(seen, filters, spec=spec)])


def test_the_gaps_of_a_summed_tap_are_gone() -> None:
    graph = _product("yct,tc->y")
    assert _has_gaps(graph) and not _has_gaps(_split(graph))
    _require_same(graph, _split(graph))


def test_a_tap_that_stays_in_the_result_is_not_cut() -> None:
    """Its products are results, zeros too: split_phases failed on the shape of what was left of them."""
    graph = _product("yct,tc->yt")
    assert _has_gaps(_split(graph))
    _require_same(graph, _split(graph))


def test_phases_of_even_filters_need_no_tap_of_zeros() -> None:
    """The gradient of a stride of 2 with filters of 4: each phase meets 2 of them, not 3."""
    image, filters = _value("x", 8, 5), _value("w", 4, 5)
    padded = ops.pad(image, low=(2, 0), high=(2, 0), interior=(1, 0), value=0.0)
    seen = ops.windows(padded, axes=(0,), size=(4,), stride=(1,), dilation=(1,))
    graph = build("step", [image, filters], [ops.contract(seen, filters, spec="yct,tc->y")])
    (found,) = [node for node in _split(graph).nodes if node.op.name == "windows"]
    assert found.attrs["size"] == (2,)
    _require_same(graph, _split(graph))
