"""Pairs in strips: attention without its T x T scores computes attention, in less memory, whatever the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from networks import GPT

import graphc as gx
from graphc import compare, nn, ops, optim, pipeline, reference
from graphc.frontend.tensor import Tensor
from graphc.ir.graph import Graph, Value, build
from graphc.ir.op import Scan
from graphc.ir.types import DType, TensorType
from graphc.ir.verify import verify
from graphc.passes import manager, pair_tiling, pairs, ranges
from graphc.passes.axes import axes_of, resized
from graphc.passes.pair_regions import regions
from graphc.passes.ranges import ranges_of
from graphc.plan import verify as verify_plan
from graphc.runtime.feeds import examples

Array = np.ndarray[Any, Any]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
HEADS, ROWS, WIDTH = 3, 22, 2
BEFORE = ("merge_scans", "simplify", "unroll", "fold", "cse")


REAL = {
    (module, name): getattr(module, name) for module in (pairs, pair_tiling) for name in dir(module) if name.isupper()
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of any number, in strips of 2 or 4 rows and blocks of some 4."""
    monkeypatch.setattr(pairs, "FAR", 0)
    monkeypatch.setattr(pairs, "FEWEST", 0)
    monkeypatch.setattr(pair_tiling, "STRIP", 4 * 4 * ROWS)
    monkeypatch.setattr(pair_tiling, "ROWS", (2, 4))
    monkeypatch.setattr(pair_tiling, "SUMS", 1 << 20)
    monkeypatch.setattr(pair_tiling, "BLOCK", (4, 6))


def _positions(scores: Tensor) -> tuple[Tensor, Tensor]:
    shape = scores.value.shape
    row, column = (Tensor(ops.iota(shape=shape, axis=len(shape) - n, dtype=DType.I64)) for n in (2, 1))
    return row, column


def _with_mask(keep: Callable[[Tensor, Tensor], Tensor]) -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ gx.swapaxes(k, -1, -2)
        return gx.softmax(gx.where(keep(*_positions(scores)), scores, -np.inf), -1) @ v

    return attention


def _biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A slope for each head, as ALiBi's, whose numbers the heads count."""
    scores = q @ gx.swapaxes(k, -1, -2)
    row, column = _positions(scores)
    head = Tensor(ops.iota(shape=scores.value.shape, axis=scores.ndim - 3, dtype=DType.I64))
    return gx.softmax(scores - (row - column) * gx.exp(-(head + 1.0)), -1) @ v


def _with_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A number for each pair, the same for all heads."""
    random = np.random.default_rng(5)
    bias = gx.Parameter(random.standard_normal((q.shape[-2], k.shape[-2])).astype(np.float32), name="bias")
    return gx.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel of distances, without a maximum in front."""
    squares = gx.sum(q * q, -1, keepdims=True) - 2 * (q @ gx.swapaxes(k, -1, -2))
    return gx.exp(-0.1 * (squares + gx.swapaxes(gx.sum(k * k, -1, keepdims=True), -1, -2))) @ v


FORMS: dict[str, Attention] = {
    "full": gx.scaled_dot_product_attention,
    "causal": lambda q, k, v: gx.scaled_dot_product_attention(q, k, v, is_causal=True),
    "window": _with_mask(lambda row, column: (column <= row) & (row - column < 7)),
    "band": _with_mask(lambda row, column: gx.abs(row - column) < 3),
    "later": _with_mask(lambda row, column: column >= row - 6),
    "blocks": _with_mask(lambda row, column: row // 7 == column // 5),
    "bias": _with_bias,
    "slopes": _biased,
    "distances": _distances,
    "logits": lambda q, k, v: gx.log_softmax(q @ gx.swapaxes(k, -1, -2), -1) @ v,
}
every_form = pytest.mark.parametrize("form", FORMS)
shapes = pytest.mark.parametrize(
    "lead, rows, columns",
    [((2, HEADS), ROWS, ROWS), ((1, 1), ROWS, ROWS), ((HEADS,), 13, ROWS), ((HEADS, 1), ROWS, 17)],
    ids=str,
)


def _tensors(lead: tuple[int, ...], rows: int, columns: int) -> list[Tensor]:
    extents = {"q": rows, "k": columns, "v": columns, "g": rows}
    return [gx.placeholder(name, (*lead, extent, WIDTH)) for name, extent in extents.items()]


def _graph(form: Attention, lead: tuple[int, ...], rows: int, columns: int) -> Graph:
    """Attention and its gradients, with something between forward and backward that no strip goes through."""
    q, k, v, g = _tensors(lead, rows, columns)
    found = form(q, k, v)
    mixed = gx.sum((found @ _square()) ** 2 * g)
    graph = gx.compile([q, k, v, g], [found, *gx.grad(mixed, [q, k, v])]).graph
    return manager.run(graph, BEFORE)[0]


def _square() -> Tensor:
    return gx.constant(np.random.default_rng(6).standard_normal((WIDTH, WIDTH)).astype(np.float32))


def _scans(graph: Graph) -> Iterator[Any]:
    for node in graph.nodes:
        if isinstance(node.op.kind, Scan):
            yield node
            yield from _scans(node.attrs["body"])


def _largest(graph: Graph) -> int:
    """Elements of the largest value, in steps of scans too."""
    found = [value.type.nbytes // value.dtype.itemsize for node in graph.nodes for value in node.outputs]
    return max([*found, *(_largest(node.attrs["body"]) for node in graph.nodes if isinstance(node.op.kind, Scan))])


def _require_equal(after: Graph, before: Graph) -> None:
    feeds = examples(before)
    wanted, found = reference.run(before, feeds)[0], reference.run(after, feeds)[0]
    for number, (array, other) in enumerate(zip(found, wanted, strict=True)):
        compare.require_close(array, other, before, f"output {number}", scale=1.0)


@every_form
@shapes
@pytest.mark.parametrize("part", [1, 32])
def test_pairs_in_strips_compute_the_same(
    form: str, lead: tuple[int, ...], rows: int, columns: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_tiling, "PART", part)
    before = _graph(FORMS[form], lead, rows, columns)
    after, _ = manager.run(before, ("tile_pairs",))
    verify(after)
    assert list(_scans(after)) and (_largest(after) < _largest(before) or form == "bias")
    _require_equal(after, before)


@every_form
@pytest.mark.parametrize("part", [1, 32])
def test_native_pairs_in_strips_have_the_same_bits_for_any_number_of_threads(
    form: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_tiling, "PART", part)
    bits = []
    for threads in (1, 2, 5):
        q, k, v, g = _tensors((2, HEADS), ROWS, ROWS)
        found = FORMS[form](q, k, v)
        slopes = gx.grad(gx.sum((found @ _square()) ** 2 * g), [q, k, v])
        f = gx.compile([q, k, v, g], [found, *slopes], threads=threads, mode="check")
        random = np.random.default_rng(3)
        results = f(*(random.standard_normal(x.shape).astype(np.float32) for x in (q, k, v, g)))
        verify_plan(f.plan.graph, f.plan)
        parts = 2 if part == 1 else 2 * HEADS
        assert [loop.node.attrs["length"] for loop in f.plan.loops] == [parts, parts]
        assert [loop.shares for loop in f.plan.loops] == [min(threads, parts)] * 2
        bits.append([array.tobytes() for array in results])
    assert bits[1:] == bits[:-1]


# What is cut, and where ------------------------------------------------------------------------------------------


def _blocks(form: str) -> list[list[tuple[range, range]]]:
    """The rows and columns of each block, for both regions."""
    (parts,) = regions(_graph(FORMS[form], (1, HEADS), ROWS, ROWS))
    tilings = [pairs._tiling(region, {}) for region in parts]
    return [[(block.rows, block.columns) for block in tiling.blocks] for tiling in tilings if tiling is not None]


def test_a_mask_leaves_out_columns() -> None:
    every, ends = range(ROWS), (8, 16, 20, 22)
    rows = [range(start, stop) for start, stop in pairwise((0, *ends))]
    assert _blocks("full") == [[(range(20), every), (range(20, ROWS), every)]] * 2
    assert _blocks("causal") == [[(r, range(stop)) for r, stop in zip(rows, ends, strict=True)]] * 2
    assert _blocks("window") == [list(zip(rows, (range(8), range(16), range(8, 20), range(8, 22)), strict=True))] * 2
    apart = [(range(16), range(16)), (range(16, 20), range(8, 16)), (range(20, 22), range(8, 20))]
    assert _blocks("blocks") == [apart] * 2
    assert _blocks("bias") == _blocks("slopes") == _blocks("distances") == _blocks("full")


def test_pairs_are_not_stored_and_not_made_twice_but_where_they_are_needed_twice() -> None:
    before = _graph(FORMS["causal"], (1, HEADS), ROWS, ROWS)
    first, second = regions(before)[0]
    assert [len(part.seeds) for part in (first, second)] == [1, 2]
    assert {value.shape for value in first.wanted} == {(1, HEADS, ROWS, WIDTH), (HEADS, ROWS)}
    assert {value.shape for value in second.wanted} == {(1, HEADS, ROWS, WIDTH)}


def test_what_is_not_in_between_is_one_region() -> None:
    """Where the cotangent does not wait for the result, forward and backward pass are one loop."""
    q, k, v, g = _tensors((HEADS,), ROWS, ROWS)
    found = FORMS["causal"](q, k, v)
    graph = gx.compile([q, k, v, g], [found, *gx.grad(gx.sum(found * g), [q, k, v])]).graph
    graph, _ = manager.run(graph, BEFORE)
    ((region,),) = regions(graph)
    assert len(region.wanted) == 4 and len(region.seeds) == 2
    after, _ = manager.run(graph, ("tile_pairs",))
    _require_equal(after, graph)


@pytest.mark.parametrize("name", ["scores", "gathered", "joined", "along both", "chained"])
def test_what_cannot_be_cut_stays_as_it_is(name: str) -> None:
    q, k, v, _ = _tensors((HEADS,), ROWS, ROWS)
    p = gx.softmax(q @ gx.swapaxes(k, -1, -2), -1)
    outputs = {
        "scores": [p @ v, p],
        "gathered": [gx.take(p, gx.constant([1, 0]), 2), p @ v],
        "joined": [gx.max(gx.concatenate([p, p], 2), -1), p @ v],
        "chained": [p @ gx.softmax(k @ gx.swapaxes(v, -1, -2), -1) @ v],
        "along both": [gx.softmax(p * p, -2) @ v],
    }[name]
    graph, _ = manager.run(gx.compile([q, k, v], outputs).graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert after is graph


@pytest.mark.parametrize("dtype", [gx.float32, gx.float64], ids=str)
def test_other_layouts(dtype: Any) -> None:
    """Keys that all heads share, rows in front of heads, one sum over heads as well."""
    q = gx.placeholder("q", (2, ROWS, HEADS, WIDTH), dtype)
    k, v = (gx.placeholder(name, (2, ROWS, WIDTH), dtype) for name in "kv")
    scores = gx.einsum("bthd,bsd->bhts", q, k)
    row, column = _positions(scores)
    found = gx.einsum("bhts,bsd->bthd", gx.softmax(gx.where(column <= row, scores, -np.inf), -1), v)
    loss = gx.sum(gx.sin(found @ gx.constant(np.eye(WIDTH)[::-1].astype(dtype.numpy))))
    f = gx.compile([q, k, v], [loss, *gx.grad(loss, [q, k, v])], mode="check", threads=2)
    random = np.random.default_rng(0)
    f(*(random.standard_normal(x.shape).astype(dtype.numpy) for x in (q, k, v)))
    assert list(_scans(f.compilation().stages["tile_pairs"]))
    assert _largest(f.compilation().stages["tile_pairs"]) < 2 * HEADS * ROWS * ROWS


def test_second_derivatives() -> None:
    q, k, v, _ = _tensors((HEADS,), ROWS, ROWS)
    loss = gx.sum(gx.sin(FORMS["causal"](q, k, v)))
    (slope,) = gx.grad(loss, [q])
    graph = gx.compile([q, k, v], gx.grad(gx.sum(slope * slope), [q, k, v])).graph
    graph, _ = manager.run(graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert len([node for node in after.nodes if isinstance(node.op.kind, Scan)]) > 2
    _require_equal(after, graph)


def test_second_derivatives_through_a_layer_whose_weight_is_used_twice() -> None:
    """A product of the first region was in it for the sake of the second alone, which makes it again."""
    x = gx.placeholder("x", (HEADS, ROWS, WIDTH))
    w = gx.Parameter(np.array([[1.0, 0.3], [-0.2, 0.8]], np.float32), name="w")
    y = x + gx.sin(FORMS["causal"](x @ w, x, x @ w) @ w)
    (slope,) = gx.grad(gx.sum(y * y), [w])
    graph = gx.compile([x], gx.grad(gx.sum(slope * slope), [w, x])).graph
    graph, _ = manager.run(graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert list(_scans(after))
    _require_equal(after, graph)


def test_stretches_that_wait_for_each_other_stay_as_they_are() -> None:
    q, k, v, g = _tensors((HEADS,), ROWS, ROWS)
    first, second = q @ gx.swapaxes(k, -1, -2), g @ gx.swapaxes(v, -1, -2)
    top, other = (gx.max(s, -1, keepdims=True) for s in (first, second))
    third = gx.softmax(q @ gx.swapaxes(v, -1, -2), -1) @ k
    found = [gx.exp(first - other) @ v, gx.exp(second - top) @ v, third]
    graph, _ = manager.run(gx.compile([q, k, v, g], found).graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert len([node for node in after.nodes if isinstance(node.op.kind, Scan)]) == 1
    _require_equal(after, graph)


def test_what_has_rows_and_columns_is_whole() -> None:
    """Where heads share their keys, heads could be the rows, and a sum over the others would miss columns."""
    q, k = gx.placeholder("q", (2, 4, ROWS, WIDTH)), gx.placeholder("k", (ROWS, WIDTH))
    scores = q @ k.T
    row, column = _positions(scores)
    e = gx.where((column <= row) & (column < 15), gx.exp(0.1 * scores), 0)
    graph, _ = manager.run(gx.compile([q, k], [e @ k, gx.sum(e, -2)]).graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert [value.shape for value in after.outputs] == [(2, 4, ROWS, WIDTH), (2, 4, ROWS)]
    _require_equal(after, graph)


def test_one_tensor_may_be_queries_keys_and_values() -> None:
    """It is cut along its rows in one place, and whole in others."""
    x = gx.placeholder("x", (HEADS, ROWS, WIDTH))
    found = FORMS["causal"](x, x, x)
    graph, _ = manager.run(gx.compile([x], [found, *gx.grad(gx.sum(gx.sin(found)), [x])]).graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    heads = [node for node in after.nodes if isinstance(node.op.kind, Scan)]
    assert [node.attrs["slices"] for node in heads] == [
        4 + 1,
        4 * 4 + 1,
    ]  # rows of 4 blocks, and x; again with top, sum and slope
    _require_equal(after, graph)


def test_equal_layers_share_their_loops() -> None:
    """Else each is fused for itself."""
    x = gx.placeholder("x", (HEADS, ROWS, WIDTH))
    found = x
    for _ in range(3):
        q, k, v = (found @ _square() for _ in range(3))
        found = gx.sin(FORMS["causal"](q * 2, k * 3, v))
    graph, _ = manager.run(gx.compile([x], [found, *gx.grad(gx.sum(found), [x])]).graph, pipeline.PASSES)
    bodies = [node.attrs["body"] for node in graph.nodes if isinstance(node.op.kind, Scan)]
    assert len(bodies) == 6 and len(set(bodies)) < 6


def test_attention_in_the_steps_of_another_loop() -> None:
    """A large batch is cut first, then what each strip of it makes."""
    x = gx.placeholder("x", (4, ROWS, WIDTH))
    w = gx.Parameter(np.eye(WIDTH, dtype=np.float32), name="w")

    def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        found = FORMS["causal"](row @ w, row, row)
        return carry + gx.sum(found, 0), found

    total, _ = gx.scan(step, gx.zeros((WIDTH,)), x)
    loss = gx.sum(total * total)
    f = gx.compile([x], loss, updates=optim.SGD([w], 0.1).minimize(loss), mode="check", threads=2)
    for _ in range(2):
        f(np.random.default_rng(0).standard_normal((4, ROWS, WIDTH)).astype(np.float32))
    assert len(list(_scans(f.compilation().stages["tile_pairs"]))) > 2


def test_a_network_learns_in_strips_as_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for far in (0, 1 << 60):
        monkeypatch.setattr(pairs, "FAR", far)
        gx.manual_seed(0)
        net = GPT(vocabulary=11, length=ROWS, width=8, heads=4)
        x, label = (gx.placeholder(name, (2, ROWS), gx.int64) for name in ("x", "label"))
        loss = nn.CrossEntropyLoss()(net(x), gx.flatten(label))
        step = gx.compile([x, label], loss, updates=optim.SGD(net.parameters(), 0.5).minimize(loss), threads=2)
        random = np.random.default_rng(0)
        feeds = random.integers(0, 11, (2, ROWS)), random.integers(0, 11, (2, ROWS))
        losses.append([step(*feeds) for _ in range(20)])
        assert bool(list(_scans(step.compilation().stages["tile_pairs"]))) == (far == 0)
    assert losses[0][-1] < 0.8 * losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def _training(batch: int, heads: int, length: int, width: int, form: str = "full") -> Graph:
    q, k, v = (gx.placeholder(name, (batch, heads, length, width)) for name in "qkv")
    found = FORMS[form](q, k, v)
    mixed = found @ gx.constant(np.eye(width, dtype=np.float32))
    return gx.compile([q, k, v], [found, *gx.grad(gx.sum(mixed * mixed), [q, k, v])]).graph


def _mlp(rows: int, *widths: int) -> Graph:
    x = gx.placeholder("x", (rows, widths[0]))
    net = nn.Sequential(*(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())))
    return gx.compile([x], net(x)).graph


COSTS: dict[str, tuple[Callable[[], Graph], bool]] = {
    "long": (lambda: _training(1, 8, 2048, 32), True),
    "short": (lambda: _training(1, 4, 256, 32), False),
    "deep: made again for more than it takes to store": (lambda: _training(1, 4, 2048, 128), False),
    "deep, but half is left out": (lambda: _training(1, 4, 2048, 128, "causal"), True),
    "deep, but too many to be stored": (lambda: _training(1, 8, 4096, 128), True),
    "a hidden layer of few units": (lambda: _mlp(200_000, 2, 64, 2), False),
    "a hidden layer four times as wide": (lambda: _mlp(8192, 512, 2048, 512), False),
}


@pytest.mark.parametrize("name", COSTS)
def test_pairs_are_made_in_strips_where_that_pays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, constant), value in REAL.items():
        monkeypatch.setattr(module, constant, value)
    build, pays = COSTS[name]
    graph, _ = manager.run(build(), BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert (after is not graph) == pays


def test_rows_are_those_that_need_no_sums() -> None:
    q, k, v, _ = _tensors((HEADS,), ROWS, ROWS)
    for found in (FORMS["distances"](q, k, v), gx.swapaxes(k, -1, -2) @ gx.exp(q @ gx.swapaxes(k, -1, -2))):
        ((region,),) = regions(manager.run(gx.compile([q, k, v], found).graph, BEFORE)[0])
        tiling = pairs._tiling(region, {})
        assert tiling is not None and not tiling.sums


def test_a_maximum_over_rows_is_no_sum() -> None:
    q, k, v, _ = _tensors((HEADS,), ROWS, ROWS)
    e = gx.exp(q @ gx.swapaxes(k, -1, -2))
    graph, _ = manager.run(gx.compile([q, k, v], [e @ v, gx.max(e, -2)]).graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert list(_scans(after))
    _require_equal(after, graph)


def test_an_extreme_is_equal_to_one_of_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again by another kernel, scores may be rounded differently, and none be equal to a maximum that was kept."""
    monkeypatch.setattr(pair_tiling, "PART", 1)
    q, k, v = (gx.placeholder(name, (2, n, HEADS, WIDTH)) for name, n in (("q", 40), ("k", 23), ("v", 23)))
    scores = gx.einsum("ambk,anbk->abmn", q, k)
    row, column = _positions(scores)
    masked = scores * gx.logical_not(column > row).astype(gx.float32)
    p = gx.softmax(masked, -1) * gx.max(masked, -1, keepdims=True) * gx.softmax(0.3 * scores, -1)
    found = gx.einsum("abmk,akbn->ambn", p, v)
    slopes = gx.grad(gx.sum(gx.sin(found @ _square())), [v, q, k])
    f = gx.compile([q, k, v], [found, gx.max(masked, -1), gx.sum(p), *slopes], mode="check")
    (parts,) = regions(manager.run(f.graph, BEFORE)[0])
    assert [node.op.name for node in parts[-1].body.nodes].count("equal") == 1
    for seed in range(3):
        random = np.random.default_rng(seed)
        f(*(random.standard_normal(x.shape).astype(np.float32) for x in (q, k, v)))


def test_numbers_for_pairs_may_come_in_one_row() -> None:
    """What makes them one table again is a view, and no axis of it is one of theirs."""
    q, k, v, _ = _tensors((HEADS,), ROWS, ROWS)
    flat = gx.placeholder("bias", (HEADS * ROWS * ROWS,))
    found = gx.scaled_dot_product_attention(q, k, v, attn_mask=flat.reshape(HEADS, ROWS, ROWS))
    graph, _ = manager.run(gx.compile([q, k, v, flat], found).graph, BEFORE)
    after, _ = manager.run(graph, ("tile_pairs",))
    assert list(_scans(after))
    _require_equal(after, graph)


@pytest.mark.parametrize("heads, shares", [(1, 8), (2, 4), (3, 4), (4, 2), (7, 2), (8, 1), (24, 1)])
def test_few_heads_are_shared_by_rows(heads: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_tiling, "PART", 1)
    (parts,) = regions(_graph(FORMS["causal"], (1, heads), 64, 64))
    for region in parts:
        tiling = pairs._tiling(region, {})
        assert tiling is not None and tiling.shares == shares
        assert all(len(block.rows) % (shares * block.strip) == 0 for block in tiling.blocks)
    (parts,) = regions(_graph(FORMS["causal"], (1, heads), 61, 61))  # no two parts are equal
    assert [tiling.shares for tiling in (pairs._tiling(region, {}) for region in parts) if tiling] == [1, 1]


def test_few_pairs_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "FAR", 16 * 1024 * 1024)
    graph = _graph(FORMS["causal"], (1, HEADS), ROWS, ROWS)
    assert manager.run(graph, ("tile_pairs",))[0] is graph


def test_sums_larger_than_pairs_are_not_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_tiling, "SUMS", 0)
    graph = _graph(FORMS["causal"], (1, HEADS), ROWS, ROWS)
    assert manager.run(graph, ("tile_pairs",))[0] is graph


# Axes and ranges -------------------------------------------------------------------------------------------------


def test_axes_are_letters_of_one_long_einsum() -> None:
    q, k = (Value(TensorType(DType.F32, shape), name=name) for name, shape in (("q", (8, 2)), ("k", (9, 2))))
    scores = ops.contract(q, k, spec="mk,nk->mn")
    top = ops.reduce_max(scores, axes=(1,))
    spread = ops.broadcast(ops.reshape(top, shape=(8, 1)), shape=(8, 9), axes=(0, 1))
    turned = ops.transpose(ops.sub(scores, spread), perm=(1, 0))
    axes = axes_of(build("f", [q, k], [turned]))
    row, width = axes[q]
    column = axes[k][0]
    assert axes[k] == (column, width) and axes[scores] == (row, column) and axes[top] == (row,)
    assert axes[turned] == (column, row) and len({row, column, width}) == 3


def test_a_reshape_that_joins_axes_makes_a_new_one() -> None:
    x = Value(TensorType(DType.F32, (4, 3, 5)), name="x")
    joined = ops.reshape(x, shape=(4, 1, 15))
    axes = axes_of(build("f", [x], [joined]))
    assert axes[joined][0] == axes[x][0] and axes[joined][2] not in axes[x]


def test_a_resized_graph_computes_parts() -> None:
    before = _graph(FORMS["slopes"], (HEADS,), ROWS, ROWS)
    body = regions(before)[0][0].body
    axes, chosen = axes_of(body), [3, 4, 5, 6, 7]
    row = axes[body.outputs[0]][1]
    given = {}
    for number, value in enumerate(body.inputs):
        shape = tuple(len(chosen) if n == row else e for n, e in zip(axes[value], value.shape, strict=True))
        given[value] = Value(value.type.with_shape(shape), name=f"p{number}")
    places = Value(TensorType(DType.I64, (len(chosen),)), name="places")
    part = build("part", [*given.values(), places], resized(body, axes, {row: len(chosen)}, given, {row: places}))
    feeds = examples(body)
    cut = [np.take(f, chosen, axes[v].index(row)) if row in axes[v] else f for v, f in zip(given, feeds, strict=True)]
    wanted, found = reference.run(body, feeds)[0], reference.run(part, [*cut, np.array(chosen)])[0]
    for value, whole, array in zip(body.outputs, wanted, found, strict=True):
        np.testing.assert_allclose(array, np.take(whole, chosen, axes[value].index(row)), rtol=1e-5, atol=1e-6)


MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "converted": lambda row, column: gx.maximum(row - column + 6, 0).astype(gx.bool_),
    "rounded": lambda row, column: column.astype(gx.float32) * np.float32(0.1) < np.float32(0.1) * np.float32(15),
    "seventh": lambda row, column: column.astype(gx.float32) * np.float32(1 / 7) < row.astype(gx.float32) / 7,
    "underflow": lambda row, column: ~(gx.exp(-20.0 * column.astype(gx.float32)) > 0),
    "or": lambda row, column: (row - column).astype(gx.bool_) | (row < 4),
    "truncated": lambda row, column: (column.astype(gx.float32) * np.float32(-0.5)).astype(gx.int64) >= -3,
    "wrapped": lambda row, column: column.astype(gx.int32) * 1_000_000_000 <= row,
    "not": lambda row, column: ~(column > row) & (column != 3) & gx.equal(column // 2 * 2, column),
}


def _masked(name: str) -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ gx.swapaxes(k, -1, -2)
        return gx.exp(0.1 * gx.where(MASKS[name](*_positions(scores)), scores, -np.inf)) @ v

    return attention


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("block", [(1, 1), (4, 6)])
def test_masks_that_are_not_what_real_numbers_say(
    name: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_tiling, "BLOCK", block)
    monkeypatch.setattr(pair_tiling, "BLOCKS", 22)

    before = _graph(_masked(name), (HEADS,), ROWS, ROWS)
    after, _ = manager.run(before, ("tile_pairs",))
    assert list(_scans(after))
    _require_equal(after, before)


@pytest.mark.parametrize("name", [*MASKS, "causal", "window", "band", "later", "blocks", "slopes"])
def test_ranges_hold(name: str) -> None:
    """Every element within a box, as its type rounds it, is in the range that is said of it."""
    graph = _graph(_masked(name) if name in MASKS else FORMS[name], (HEADS,), ROWS, ROWS)
    axes = axes_of(graph)
    seed = next(node for node in graph.nodes if node.op.name == "contract").output
    _, row, column = axes[seed]
    values = [value for node in graph.nodes for value in node.outputs if {row, column} & set(axes[value])]
    every = Graph(graph.name, graph.inputs, (), graph.nodes, tuple(values))
    arrays = dict(zip(values, reference.run(every, examples(graph))[0], strict=True))
    boxes = [{row: range(a, a + 6), column: range(b, b + 5)} for a in range(0, 16, 5) for b in range(0, 17, 4)]
    boxes += [{row: range(a, a + 1), column: range(b, b + 1)} for a in range(ROWS) for b in range(a % 3, ROWS, 3)]
    known = 0
    for box in boxes:
        found = ranges_of(graph, axes, box)
        for value, array in arrays.items():
            least, greatest = found[value]
            places = [slice(box[n].start, box[n].stop) if n in box else slice(None) for n in axes[value]]
            part = array[tuple(places)].astype(np.float64)
            assert least <= part.min() and part.max() <= greatest, (value.type, box)
            known += least == greatest and value.shape == seed.shape
    assert known > 100


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=str)
def test_bounds_are_rounded_outwards(dtype: DType) -> None:
    """A kernel may round once where the reference rounds twice."""
    for number in (0.1, -1 / 3, 1e-30, 12345.678, -1e30):
        least, greatest = ranges._in_type((number, number), dtype)
        assert least < number < greatest and greatest - least < 1e-6 * abs(number)
    assert ranges._in_type((-3.0, 2.0), dtype) == (-3, 2)
    assert ranges._in_type((-np.inf, 0.0), dtype) == (-np.inf, 0)
    assert ranges._in_type((-ranges.LARGEST, ranges.LARGEST), dtype) == ranges.ANY


def test_ranges_of_single_rules() -> None:
    rules, maybe = ranges._RULES, ranges.MAYBE
    assert rules["less_equal"]((0, 3), (3, 5)) == (1, 1) and rules["less"]((0, 3), (3, 5)) == maybe
    assert rules["less"]((3, 5), (0, 3)) == (0, 0) and rules["less_equal"]((3, 5), (0, 3)) == maybe
    assert rules["equal"]((0, 3), (3, 5)) == maybe and rules["not_equal"]((0, 2), (3, 5)) == (1, 1)
    assert rules["floor_div"]((-7, 5), (2, 2)) == (-4, 2) and rules["floor_div"]((1, 5), (-1, 2)) == ranges.ANY
    assert rules["mul"]((-2, 3), (-5, 4)) == (-15, 12) and rules["sub"]((0, 1), (5, 6)) == (-6, -4)
    assert rules["add"]((-np.inf, -np.inf), ranges.ANY) == (-np.inf, -np.inf) and rules["exp"]((-np.inf,) * 2) == (0, 0)
    assert rules["div"]((0, 0), ranges.ANY) == (0, 0) and rules["div"]((1, 2), (-1, 1)) == ranges.ANY
    assert rules["where"](maybe, (0, 1), (5, 6)) == (0, 6) and rules["where"]((0, 0), (0, 1), (5, 6)) == (5, 6)
