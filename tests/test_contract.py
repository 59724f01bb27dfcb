"""Contractions: loops and native code compute what the reference computes, whatever the spec, shape and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_emit import native

from graphc import ops
from graphc.codegen import jit
from graphc.ir.graph import Graph, Literal, Value, build
from graphc.ir.types import DType, TensorType
from graphc.loops import interpret, schedule, tiling
from graphc.loops.lower import lower
from graphc.loops.roles import Roles, assign, axes_of
from graphc.loops.target import AVX2, TARGETS
from graphc.loops.text import parse_function, print_function
from graphc.loops.verify import verify
from graphc.passes.forms import Contract, classify
from graphc.reference import evaluate

RNG = np.random.default_rng(0)
NUMBERS = (DType.F32, DType.F64, DType.I32, DType.I64)
TILES = (  # of any axis: `axis` is filled in
    "lanes=4 vectors=2 rows=3 unroll=2 blocks=3 across=0 strip=2 parts=1 steps=1 pack=1 ahead=0 early=1 fma=1",
    "lanes=4 vectors=1 rows=2 unroll=1 blocks=1 across=0 strip=1 parts=2 steps=1 pack=0 ahead=4 early=0 fma=0",
    "lanes=2 vectors=3 rows=1 unroll=3 blocks=9 across=1 strip=3 parts=2 steps=2 pack=1 ahead=0 early=1 fma=1",
    "lanes=4 vectors=1 rows=3 unroll=1 blocks=2 across=0 strip=9 parts=1 steps=2 pack=2 ahead=3 early=1 fma=1",
    "lanes=2 vectors=2 rows=2 unroll=1 blocks=4 across=0 strip=1 parts=2 steps=2 pack=2 ahead=3 early=1 fma=1",
    "lanes=4 vectors=1 rows=2 unroll=1 blocks=3 across=1 strip=20 parts=1 steps=2 pack=1 ahead=0 early=1 fma=1",
    "lanes=4 vectors=1 rows=2 unroll=1 blocks=2 across=0 strip=6 parts=1 steps=1 pack=1 ahead=0 early=1 fma=1",
)
MATMULS = ("mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->nm", "bmk,bkn->bmn", "bmk,nk->mbn")


def value(shape: Sequence[int], dtype: DType = DType.F32) -> Value:
    return Value(TensorType(dtype, tuple(shape)), name="x")


def splat(number: float, shape: Sequence[int]) -> Value:
    return ops.constant(value=Literal.of(np.full(shape, number, np.float32)))


def operands(spec: str, sizes: dict[str, int], dtype: DType = DType.F32) -> list[Value]:
    first, second = spec.split("->")[0].split(",")
    return [value([sizes[letter] for letter in part], dtype) for part in (first, second)]


def feed(x: Value) -> np.ndarray:
    if x.dtype.is_float:
        return RNG.standard_normal(x.type.extents).astype(x.dtype.numpy)
    return RNG.integers(-9, 9, x.type.extents).astype(x.dtype.numpy)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    exact = expected.dtype.kind != "f"
    tolerance = 0.0 if exact else 1e-12 if expected.dtype == np.float64 else 2e-5
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=tolerance, atol=tolerance)


def check(inputs: list[Value], outputs: list[Value], pick: int | None = None) -> None:
    """Interpreted loops against the reference, for every target and for schedules along every axis (or one of them)."""
    body = build("body", inputs, outputs)
    form = classify(body)
    assert isinstance(form, Contract)
    feeds = [feed(x) for x in inputs]
    wanted, _ = evaluate(body, feeds)
    axes = [-1, *axes_of(body, form).variables]
    forced = [f"contract axis={axis} {tile}" for axis in axes for tile in TILES]
    for chosen in (None, *(forced if pick is None else [forced[pick % len(forced)]])):
        for target in TARGETS.values() if chosen is None else [AVX2]:
            function = lower(body, "body", target, schedule.parse(chosen) if chosen else None)
            verify(function)
            text = print_function(function)
            assert print_function(parse_function(text)) == text
            for found, expected in zip(interpret.run(function, feeds), wanted, strict=True):
                close(found, expected)


def check_native(body: Graph, feeds: list[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    function = lower(body, "body", jit.host_target())
    for found, expected in zip(native(function, feeds)[0], wanted, strict=True):
        close(found, expected)


@st.composite
def products(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A random spec and the sizes of its letters."""
    homes = draw(st.lists(st.sampled_from(["ab", "ac", "bc", "abc"]), min_size=0, max_size=5))
    letters = "klmno"[: len(homes)]
    parts = [[x for x, home in zip(letters, homes, strict=True) if place in home] for place in "abc"]
    a, b, c = ("".join(draw(st.permutations(part))) for part in parts)
    return f"{a},{b}->{c}", {x: draw(st.sampled_from([0, 1, 2, 3, 5, 9, 2, 3, 5, 9])) for x in letters}


@given(product=products(), dtype=st.sampled_from(NUMBERS), pick=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_product_of_two_operands_is_summed_right(
    product: tuple[str, dict[str, int]], dtype: DType, pick: int
) -> None:
    spec, sizes = product
    if np.prod([float(size) for size in sizes.values()]) > 3000:
        sizes = dict.fromkeys(sizes, 3)
    a, b = operands(spec, sizes, dtype)
    check([a, b], [ops.contract(a, b, spec=spec)], pick)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("spec", MATMULS)
def test_native_products_of_every_type_and_transposition(spec: str, dtype: DType) -> None:
    a, b = operands(spec, {"b": 3, "m": 13, "n": 37, "k": 21}, dtype)
    body = build("body", [a, b], [ops.contract(a, b, spec=spec)])
    feeds = [feed(a), feed(b)]
    check_native(body, feeds, evaluate(body, feeds)[0])


def made(x: Value, how: str) -> Value:
    """Something of x's shape that is computed from it."""
    rank, extents = x.type.rank, x.type.extents
    none = (0,) * rank
    match how:
        case "square":
            return ops.mul(x, x)
        case "shifted":  # along the first axis, as the values of a recurrence before each step
            zeros = ops.broadcast(splat(0.0, ()), shape=(1, *extents[1:]), axes=())
            rest = ops.slice(x, start=none, stop=(extents[0] - 1, *extents[1:]), step=(1,) * rank)
            return ops.concat(zeros, rest, axis=0)
        case _:  # padded: along the last axis
            low = (*none[1:], 2)
            rest = ops.slice(x, start=none, stop=(*extents[:-1], extents[-1] - 2), step=(1,) * rank)
            return ops.pad(rest, low=low, high=none, interior=none, value=0.5)


@pytest.mark.parametrize("how", ["square", "shifted", "padded"])
@pytest.mark.parametrize("spec", ["abm,abn->mn", "mab,nab->mn", "abm,nab->mn", "bmk,bnk->bmn"])
def test_operands_are_computed_where_their_axes_run_together_or_not(spec: str, how: str) -> None:
    sizes = {"a": 2, "b": 3, "m": 3, "n": 5, "k": 4}
    x, y = operands(spec, sizes)
    check([x, y], [ops.contract(x, made(y, how), spec=spec)])
    check([x, y], [ops.contract(made(x, how), y, spec=spec)])


# Around the product --------------------------------------------------------------------------------------------


def along(x: Value, space: Sequence[int], *axes: int) -> Value:
    return ops.broadcast(x, shape=tuple(space), axes=axes)


sizes_of_matmul = st.fixed_dictionaries({"b": st.integers(1, 3), **{x: st.integers(1, 9) for x in "mnk"}})


@pytest.mark.parametrize("spec", MATMULS)
@given(sizes=sizes_of_matmul, pick=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_an_epilogue_stores_transposed_and_adds_up_over_every_axis(spec: str, sizes: dict[str, int], pick: int) -> None:
    a, b = operands(spec, sizes)
    y = ops.contract(a, b, spec=spec)
    space, axes = y.type.extents, tuple(range(y.type.rank))
    bias, residual = value(space[-1:]), value(space)
    z = ops.add(ops.tanh(ops.add(y, along(bias, space, y.type.rank - 1))), residual)
    sums = [ops.reduce_sum(z, axes=tuple(d for d in axes if d != kept)) for kept in axes]
    total = ops.mul(ops.reduce_sum(ops.mul(z, z), axes=axes), splat(0.5, ()))
    update = ops.sub(bias, ops.mul(sums[-1], splat(0.1, space[-1:])))
    turned = ops.transpose(z, perm=tuple(reversed(axes)))
    largest = ops.reduce_max(turned, axes=(0,))
    check([a, b, bias, residual], [turned, total, update, *sums[:-1], largest], pick)


@pytest.mark.parametrize("spec", MATMULS)
@given(sizes=sizes_of_matmul, pick=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_a_prologue_computes_pads_and_turns_the_operands(spec: str, sizes: dict[str, int], pick: int) -> None:
    first, second = operands(spec, sizes)
    a, b = value(first.type.extents[::-1]), value(second.type.extents)
    turned = ops.transpose(ops.exp(a), perm=tuple(range(a.type.rank))[::-1])
    none, one = (0,) * b.type.rank, (1,) * b.type.rank
    padded = ops.pad(b, low=one, high=none, interior=none, value=0.5)
    shifted = ops.slice(padded, start=none, stop=b.type.extents, step=one)
    check([a, b], [ops.contract(turned, shifted, spec=spec)], pick)


def test_packing_computes_what_walks_the_axes_as_the_product_does_and_copies_what_does_not() -> None:
    a, b = value((8, 16, 3)), value((7, 16, 3))
    joined = ops.exp(b)
    parted = ops.pad(b, low=(9, 0, 0), high=(0, 0, 0), interior=(0, 0, 0), value=2.0)
    for operand, is_copied in ((joined, False), (parted, True)):
        body = build("body", [a, b], [ops.contract(a, operand, spec="mlk,nlk->mn")])
        function = lower(body, "body", AVX2, schedule.parse(f"contract axis=1 {TILES[0]}"))
        verify(function)
        assert any(buffer.name.startswith("operand") for buffer in function.scratch) is is_copied
        feeds = [feed(a), feed(b)]
        (wanted,), _ = evaluate(body, feeds)
        close(interpret.run(function, feeds)[0], wanted)


def test_one_value_may_be_both_operands() -> None:
    a = value((5, 7))
    square = ops.neg(a)
    check([a], [ops.contract(square, square, spec="mk,nk->mn")])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_both_its_gradients_are_products_of_windows(channels_last: bool, stride: int) -> None:
    n, c, o, size, kernel = 2, 2, 3, 4, 2
    x = value((n, size, size, c) if channels_last else (n, c, size, size))
    axes = (1, 2) if channels_last else (2, 3)
    w = value((o, kernel, kernel, c) if channels_last else (o, c, kernel, kernel))
    edge = tuple(int(d in axes) for d in range(4))
    padded = ops.pad(x, low=edge, high=edge, interior=(0,) * 4, value=0.0)
    windows = ops.windows(padded, axes=axes, size=(kernel, kernel), stride=(stride, stride), dilation=(1, 1))
    forward = "nhwcij,oijc->nhwo" if channels_last else "nchwij,ocij->nohw"
    y = ops.contract(windows, w, spec=forward)
    cotangent = value(y.type.extents)
    inputs, result = forward.split("->")
    left, right = inputs.split(",")
    check([x, w], [ops.tanh(y)], 1)
    check([x, cotangent], [ops.contract(windows, cotangent, spec=f"{left},{result}->{right}")], 5)


@pytest.mark.parametrize("spec", ["mk,kn->mn", "mk,nk->mn", "k,k->", "km,kn->mn"])
@pytest.mark.parametrize("deep", [4097, 40000])
def test_deep_sums_are_taken_in_pieces(spec: str, deep: int) -> None:
    a, b = operands(spec, {"m": 3, "n": 5, "k": deep})
    body = build("body", [a, b], [ops.neg(ops.contract(a, b, spec=spec))])
    function = lower(body, "body", jit.host_target())
    verify(function)
    pieces = any(buffer.name.startswith("slabs") for buffer in function.scratch)
    assert pieces or "k,k" in spec or "nk" in spec
    feeds = [feed(a), feed(b)]
    (found,), _ = native(function, feeds)
    (wanted,), _ = evaluate(body, feeds)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("sizes", [(0, 4, 5), (4, 0, 5), (4, 5, 0), (0, 0, 0), (1, 1, 0)])
def test_empty_operands_give_zeros_with_their_epilogue(sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    a, b = value((m, k)), value((k, n))
    y = ops.exp(ops.contract(a, b, spec="mk,kn->mn"))
    check([a, b], [y, ops.reduce_sum(y, axes=(0,)), ops.reduce_sum(y, axes=(0, 1))])


# Convolutions' shapes ----------------------------------------------------------------------------------------


def windows_of(images: int, side: int, channels: int, size: int = 3) -> tuple[Value, Value]:
    """Images [n,y,x,c] with a border of zeros, and their windows [n,y,x,j,i,c] at every place."""
    x = value((images, side, side, channels))
    margins = [0, size // 2, size // 2, 0]
    padded = ops.pad(x, low=margins, high=margins, interior=[0] * 4, value=0.0)
    return x, ops.transpose(
        ops.windows(padded, axes=(1, 2), size=(size, size), stride=(1, 1), dilation=(1, 1)), perm=(0, 1, 2, 4, 5, 3)
    )


def roles_of(body: Graph, axis: int) -> Roles:
    """Of the axes of a product whose vectors run along one of them."""
    form = classify(body)
    assert isinstance(form, Contract)
    return assign(axes_of(body, form), axis)


def test_a_filter_gradient_is_added_up_along_its_columns_and_then_turned() -> None:
    """Its columns lie apart in the filters: written tile by tile, each element would be a store of its own."""
    x, windows = windows_of(1, 4, 4)
    cotangent, filters = value((1, 4, 4, 8)), value((8, 4, 3, 3))
    gradient = ops.contract(windows, cotangent, spec="nyxjic,nyxo->ocji")
    update = ops.sub(filters, ops.mul(gradient, splat(0.1, gradient.type.extents)))
    check([x, cotangent, filters], [update], 3)
    check([x, cotangent, filters], [update, gradient], 5)
    function = lower(build("body", [x, cotangent, filters], [update]), "body", AVX2)
    assert "transpose square" in print_function(function)


def test_rows_of_a_tile_are_neighbours_although_there_are_more_images() -> None:
    x, windows = windows_of(20, 8, 4)
    body = build("body", [x, w := value((16, 4, 3, 3))], [ops.contract(windows, w, spec="nyxjic,ocji->nyxo")])
    rows = roles_of(body, 3).rows
    assert rows is not None and rows.axes == (2,)


def test_rows_of_a_depthwise_filters_gradient_are_its_taps() -> None:
    """Else all of the images are read once for each of them."""
    x, windows = windows_of(16, 6, 8)
    body = build("body", [x, g := value((16, 6, 6, 8))], [ops.contract(g, windows, spec="nyxc,nyxjic->cji")])
    roles = roles_of(body, 0)
    assert roles.rows is not None and roles.height == 9 and not roles.batch
    check([x, g], list(body.outputs), 4)


def test_a_deep_sum_over_images_is_cut_between_them() -> None:
    """A piece of each of them would be read with what lies around it."""
    x, windows = windows_of(16, 30, 8)
    body = build("body", [x, g := value((16, 30, 30, 16))], [ops.contract(g, windows, spec="nyxo,nyxjic->ojic")])
    roles = roles_of(body, 0)
    assert roles.pieces(30) == 16 and roles.cut(16).extent == 16
    few = replace(roles, depth=roles.depth[1:])
    assert few.pieces(40) == 30 and few.cut(30).extent == 30


def test_a_deep_sum_over_few_sequences_is_cut_within_them() -> None:
    """Between 8 examples of 4096 places there were 8 pieces, each eight times as long as the cache holds."""
    for examples, wanted, pieces, extent in ((8, 64, 64, 4096), (16, 64, 64, 4096), (48, 64, 48, 48), (64, 64, 64, 64)):
        a, b = (value((examples, 4097, 32)) for _ in "ab")
        cuts = [ops.slice(v, start=[0, 0, 0], stop=[examples, 4096, 32], step=[1, 1, 1]) for v in (a, b)]
        roles = roles_of(build("body", [a, b], [ops.contract(*cuts, spec="zkm,zkn->mn")]), 1)
        assert roles.pieces(wanted) == pieces and roles.cut(pieces).extent == extent


def test_a_panel_larger_than_the_cache_is_cut_across_and_shared_by_all_images() -> None:
    x, windows = windows_of(4, 6, 16)
    body = build("body", [x, w := value((64, 16, 3, 3))], [ops.contract(windows, w, spec="nyxjic,ocji->nyxo")])
    form = classify(body)
    assert isinstance(form, Contract)
    chosen = tiling.choose(body, form, replace(AVX2, l1=1024, l2=16 * 1024))
    assert chosen.across == 1 and chosen.strip > 6 // chosen.rows
    function = lower(body, "body", AVX2, chosen)
    verify(function)
    feeds = [feed(v) for v in (x, w)]
    (found,), _ = native(function, feeds)
    (wanted,), _ = evaluate(body, feeds)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-4)
