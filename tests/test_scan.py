"""Scans: their meaning, their gradients, what passes make of them, and native loops."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from graphs import random_scans
from hypothesis import HealthCheck, given, settings
from samples import recurrence

import graphc as gx
from graphc import nn, ops, optim, pipeline, plan, reference, testing
from graphc.errors import ArgumentError, DTypeError, GradientError, IndexRangeError, ShapeError
from graphc.frontend.indexing import index
from graphc.ir.graph import Graph, Node, Value, build, copy_node, rebuild, substitute
from graphc.ir.op import Scan
from graphc.ir.text import parse
from graphc.ir.types import DType, TensorType
from graphc.ops.control import Parts
from graphc.passes.manager import run
from graphc.tools.command import main

Array = np.ndarray[Any, Any]


def random(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def placeholders(**arrays: Array) -> list[gx.Tensor]:
    return [gx.placeholder(name, array.shape, array.dtype) for name, array in arrays.items()]


def scans(graph: Graph) -> list[Any]:
    return [node for node in graph.nodes if isinstance(node.op.kind, Scan)]


# Meaning --------------------------------------------------------------------------------------------------------

X, W, H = random(6, 2, 3), random(3, 3, seed=1) / 2, random(2, 3, seed=2)


def network(x: gx.Tensor, w: gx.Tensor, h: gx.Tensor, reverse: bool = False) -> tuple[Any, Any]:
    def step(state: Any, x: gx.Tensor) -> tuple[Any, Any]:
        h, total = state
        h = gx.tanh(x + h @ w)
        return (h, total + gx.sum(h)), (h * x, total)

    return gx.scan(step, (h, gx.constant(0.0, w.dtype)), x, reverse=reverse)


def in_numpy(x: Array, w: Array, h: Array, reverse: bool = False) -> list[Array]:
    total: Any = x.dtype.type(0)
    products, totals = np.empty_like(x), np.empty(len(x), x.dtype)
    for t in range(len(x))[:: -1 if reverse else 1]:
        h = np.tanh(x[t] + h @ w)
        products[t], totals[t] = h * x[t], total
        total = total + h.sum()
    return [h, total, products, totals]


@pytest.mark.parametrize("mode", ["interpret", "native", "check"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_a_scan_is_a_loop(length: int, reverse: bool, mode: str) -> None:
    x, w, h = placeholders(x=X[:length], w=W, h=H)
    (last, total), (products, totals) = network(x, w, h, reverse)
    found = gx.compile([x, w, h], [last, total, products, totals], mode=mode)(X[:length], W, H)
    for array, wanted in zip(found, in_numpy(X[:length], W, H, reverse), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-12, atol=1e-12)


def test_carries_may_change_places() -> None:
    n = gx.placeholder("n", ())
    (a, b), ys = gx.scan(lambda c, _: ((c[1], c[0] + c[1]), (c[0], c[1])), (n, n + 1), length=6)
    numbers = [0, 1, 1, 2, 3, 5, 8, 13]
    found = gx.compile([n], [a, b, *ys], mode="check")(np.float32(0))
    for array, wanted in zip(found, (numbers[6], numbers[7], numbers[:6], numbers[1:7]), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_structures_of_tensors_keep_their_form() -> None:
    x = gx.placeholder("x", (4, 3))
    carry, ys = gx.scan(lambda c, x: ([c[0] + x, (c[1][0],)], (x, [None, x])), [gx.zeros((3,)), (gx.ones((2,)),)], x)
    assert isinstance(carry, list) and isinstance(carry[1], tuple) and isinstance(ys[1], list) and ys[1][0] is None
    assert (carry[0].shape, carry[1][0].shape, ys[0].shape) == ((3,), (2,), (4, 3))


def test_without_slices_a_length_is_needed() -> None:
    a = gx.placeholder("a", ())
    last, powers = gx.scan(lambda c, _: (c * a, c), gx.constant(1.0), length=5)
    found = gx.compile([a], [last, powers])(np.float32(2))
    assert found[0] == 32
    np.testing.assert_array_equal(found[1], [1, 2, 4, 8, 16])
    with pytest.raises(ArgumentError, match=r"needs a length\n  at .*test_scan.py"):
        gx.scan(lambda c, _: (c, c), a)


def test_named_dimensions_pass_through() -> None:
    x, h = gx.placeholder("x", ("time", "batch", 3)), gx.placeholder("h", ("batch", 3))
    last, ys = gx.scan(lambda h, x: (gx.tanh(h + x), h * x), h, x)
    gradients = gx.grad(gx.sum(ys) + gx.sum(last), [x, h])
    function = gx.compile([x, h], [last, ys, *gradients])
    for time, batch in ((1, 2), (5, 4)):
        arrays = random(time, batch, 3, dtype=np.float32), random(batch, 3, dtype=np.float32)
        testing.assert_matches_interpreter(function, *arrays)
        assert function(*arrays)[1].shape == (time, batch, 3)


def test_what_does_not_change_from_step_to_step_stays_outside() -> None:
    x, w = placeholders(x=X, w=W)
    _, ys = gx.scan(lambda c, x: (c, x @ gx.exp(w).T + gx.arange(3, dtype="float64")), None, x)
    graph = gx.compile([x, w], ys).graph
    (node,) = scans(graph)
    assert "exp" in {n.op.name for n in graph.nodes}
    assert {n.op.name for n in node.attrs["body"].nodes} <= {"contract", "add", "transpose", "iota", "broadcast"}
    (array,) = (gx.compile([x, w], ys)(X, W),)
    np.testing.assert_allclose(array, X @ np.exp(W).T + np.arange(3), rtol=1e-12)


def test_scans_nest() -> None:
    x, w = placeholders(x=X, w=W)

    def row(total: gx.Tensor, row: gx.Tensor) -> tuple[gx.Tensor, gx.Tensor]:
        total = gx.tanh(total + row @ w)
        return total, total

    def step(total: gx.Tensor, matrix: gx.Tensor) -> tuple[gx.Tensor, gx.Tensor]:
        total, rows = gx.scan(row, total, matrix)
        return total, gx.sum(rows * matrix)

    last, ys = gx.scan(step, gx.zeros((3,), "float64"), x)
    (dw,) = gx.grad(gx.sum(ys) + gx.sum(last), [w])
    function = gx.compile([x, w], [last, ys, dw])
    total, sums = np.zeros(3), []
    for matrix in X:
        rows = []
        for line in matrix:
            total = np.tanh(total + line @ W)
            rows.append(total)
        sums.append((np.stack(rows) * matrix).sum())
    found = function(X, W)
    np.testing.assert_allclose(found[0], total, rtol=1e-12)
    np.testing.assert_allclose(found[1], sums, rtol=1e-12)
    testing.assert_matches_interpreter(function, X, W)
    plan.verify(function.plan.graph, function.plan)


def test_indices_are_checked_before_the_first_step() -> None:
    table = gx.Parameter(random(5, 3, dtype=np.float32))
    tokens, h = gx.placeholder("tokens", (4, 2), gx.int64), gx.placeholder("h", (2, 3))
    last, _ = gx.scan(lambda h, t: (gx.tanh(h + gx.embedding(t + 1, table)), None), h, tokens)
    step = gx.compile([tokens, h], last, updates=optim.SGD([table], lr=0.1).minimize(gx.sum(last)))
    good, state = np.random.default_rng(0).integers(-1, 4, (4, 2)), random(2, 3, dtype=np.float32)
    testing.assert_matches_interpreter(step, good, state)
    before, bad = table.data.copy(), good.copy()
    bad[2, 1] = 7
    with pytest.raises(IndexRangeError, match="8 is outside"):
        step(bad, state)
    np.testing.assert_array_equal(table.data, before)


# What is refused ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_at_the_users_line() -> None:
    x = gx.placeholder("x", (4, 3))
    zero, count = gx.zeros((3,)), gx.constant(0)
    cases: list[tuple[type[Exception], Any, str]] = [
        (
            ShapeError,
            lambda: gx.scan(lambda c, x: (gx.sum(c), x), zero, x),
            r"carry 0 is f32\[3\]; the step makes it f32\[\]",
        ),
        (
            DTypeError,
            lambda: gx.scan(lambda c, x: (c * 0.5, x), count, x),
            r"carry 0 is i64\[\]; the step makes it f64",
        ),
        (ArgumentError, lambda: gx.scan(lambda c, x: ((c, c), x), zero, x), "has 1 tensors; the step returns 2"),
        (ArgumentError, lambda: gx.scan(lambda c, x: c, zero, x), "returns a carry and a result"),
        (ShapeError, lambda: gx.scan(lambda c, x: (c, c), zero, (x, zero)), r"f32\[3\] has 3 slices, not 4"),
        (ShapeError, lambda: gx.scan(lambda c, x: (c, c), zero, count), r"i64\[\] has none"),
        (ShapeError, lambda: gx.scan(lambda c, x: (c, c), zero, x, length=5), "has 4 slices, not 5"),
        (
            ArgumentError,
            lambda: gx.scan(lambda c, x: (c, object()), zero, x),
            "result has a object, which is no tensor",
        ),
        (
            ArgumentError,
            lambda: gx.scan(lambda c, x: (c + 1, gx.embedding(c, gx.zeros((2, 3)))), count, x),
            "depends on a carry",
        ),
    ]
    for error, make, message in cases:
        with pytest.raises(error, match=message) as caught:
            make()
        assert re.search(r"  at .*test_scan.py:\d+$", str(caught.value)), caught.value


def test_a_scan_of_ir_says_what_is_wrong() -> None:
    body = recurrence(DType.F32)
    x, w, h = (Value(TensorType(DType.F32, shape)) for shape in ((4, 2, 3), (3, 3), (2, 3)))
    n = Value(TensorType(DType.I64, ()))
    with pytest.raises(ShapeError, match=r"the stack of slices x of the step recurrence must be f32\[5,2,3\]"):
        ops.scan([n, h], [x], [w], length=5, body=body)
    with pytest.raises(ArgumentError, match="takes 4 operands, not 3"):
        ops.scan([n, h], [x], [], length=4, body=body)
    with pytest.raises(ShapeError, match="carry h"):
        ops.scan([n, w], [x], [w], length=4, body=body)
    lost = Graph("lost", body.inputs, body.state, body.nodes, body.outputs, body.next[:1])
    with pytest.raises(ArgumentError, match="each carry its next value"):
        ops.scan([n, h], [x], [w], length=4, body=lost)
    index = Value(TensorType(DType.I64, ()), name="i")
    checking = build("checking", [index], [ops.check_index(index, size=3, what="index")])
    with pytest.raises(ArgumentError, match="checks come before a loop"):
        ops.scan([], [Value(TensorType(DType.I64, (4,)))], [], length=4, body=checking)


# Gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_to_third_order(reverse: bool) -> None:
    def value(x: gx.Tensor, w: gx.Tensor, h: gx.Tensor) -> gx.Tensor:
        (last, total), (products, totals) = network(x, w, h, reverse)
        return gx.sum(products * products) + gx.sum(last) * total + gx.sum(gx.sin(totals))

    testing.check_gradients(value, [X[:3], W, H], order=3, tolerance=1e-6)


def test_gradients_of_all_that_a_step_may_do_with_a_constant() -> None:
    """Bias, scale, product on either side, gather: some are summed outside, some in a carry."""
    arrays = [random(4, 2, 3), random(3, 3, seed=1), random(3, seed=2), random(2, 3, seed=3), random(3, 2, seed=4)]

    def value(x: gx.Tensor, w: gx.Tensor, bias: gx.Tensor, scale: gx.Tensor, left: gx.Tensor) -> gx.Tensor:
        def step(c: gx.Tensor, x: gx.Tensor) -> tuple[gx.Tensor, gx.Tensor]:
            mixed = gx.tanh(left @ x @ w + bias - c)
            return mixed * gx.sigmoid(left @ scale), mixed[0] * w[1] + gx.sum(scale * x) * bias[::-1]

        last, ys = gx.scan(step, gx.zeros((3, 3), "float64"), x)
        return gx.sum(last * last) + gx.sum(ys * ys)

    testing.check_gradients(value, arrays, order=2, tolerance=1e-6)


def test_integers_are_carried_along_and_have_no_gradient() -> None:
    x = gx.placeholder("x", (4, 3), "float64")
    (count, _), ys = gx.scan(
        lambda c, x: ((c[0] + 1, c[1] * x), c[1] * c[0]), (gx.constant(0), gx.ones((3,), "float64")), x
    )
    (dx,) = gx.grad(gx.sum(ys), [x])
    found = gx.compile([x], [count, dx])(random(4, 3))
    assert found[0] == 4
    with pytest.raises(GradientError, match="only a float"):
        gx.grad(count, [x])


def test_the_gradient_of_a_weight_is_one_product_outside() -> None:
    x, w, h = placeholders(x=X, w=W, h=H)
    _, ys = gx.scan(lambda h, x: (gx.tanh(x + h @ w),) * 2, h, x)
    (dw,) = gx.grad(gx.sum(ys * ys), [w])
    graph = gx.compile([x, w, h], dw).graph
    found, _ = run(graph, pipeline.PASSES[:-1])
    forward, backward = scans(found)
    inside = [n.attrs["spec"] for node in (forward, backward) for n in node.attrs["body"].nodes if "spec" in n.attrs]
    assert len(inside) == 2, "one product in each step, forward and backward"
    assert len(backward.attrs["body"].state) == 1, "the carry's cotangent: nothing is added up"
    assert [n.attrs["spec"] for n in found.nodes if n.op.name == "contract"] == ["amn,amk->kn"]


def unrolled(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """A scan as one copy of its body for each step."""
    if not isinstance(node.op.kind, Scan):
        return copy_node(node, inputs)
    parts, body, length = Parts.of(node, inputs), node.attrs["body"], node.attrs["length"]
    carries: Any = parts.init
    results: list[Any] = [None] * length
    for t in range(length)[:: -1 if node.attrs["reverse"] else 1]:
        slices = [index(gx.Tensor(x), t).value for x in parts.xs]
        new = dict(zip(Scan.parameters(node), (*carries, *slices, *parts.constants), strict=True))
        found = substitute(rebuild(body, unrolled).results, new)
        results[t], carries = found[: len(body.outputs)], found[len(body.outputs) :]
    stacks = [
        ops.concat(*(ops.reshape(v, shape=(1, *v.shape)) for v in column), axis=0)
        for column in zip(*results, strict=True)
    ]
    return (*carries, *stacks)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(random_scans())
def test_gradients_are_those_of_the_unrolled_loop(case: tuple[Graph, list[Array]]) -> None:
    graph, feeds = case
    hypothesis.note(str(graph))
    flat = rebuild(graph, unrolled)
    read = [x for x in graph.inputs if x in flat.users()]
    gradients = []
    for version in (graph, flat):
        total = sum((gx.sum(gx.sin(gx.Tensor(y))) for y in version.outputs), gx.constant(0.0))
        found = gx.grad(total, [gx.Tensor(x) for x in read])
        gradients.append(build("gradient", version.inputs, [y.value for y in found]))
    compilation = pipeline.build(gradients[0], {})
    plan.verify(compilation.plan.graph, compilation.plan)
    wanted, _ = reference.run(gradients[1], feeds)
    for found in (reference.run(gradients[0], feeds)[0], compilation.executable(feeds, [])):
        for array, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-4)  # 1 - tanh(x)**2 cancels where x is large


# Passes ---------------------------------------------------------------------------------------------------------


def test_the_forward_scan_of_a_gradient_is_the_scan_itself() -> None:
    x, w, h = placeholders(x=X, w=W, h=H)
    (last, total), (products, _) = network(x, w, h)
    gradients = gx.grad(gx.sum(products) + total, [x, w, h])
    graph = gx.compile([x, w, h], [last, *gradients]).graph
    assert len(scans(graph)) == 3
    found, _ = run(graph, ["merge_scans"])
    assert len(scans(found)) == 2


@pytest.mark.parametrize("reverse", [False, True])
def test_a_gradient_has_no_terms_for_carries_that_are_zeros(reverse: bool) -> None:
    """A weight that multiplies a carry meets the first one in no product of its gradient; the others are read in place,
    from what they became one step earlier."""
    x, w = placeholders(x=X, w=W)

    def step(h: gx.Tensor, x: gx.Tensor) -> tuple[gx.Tensor, gx.Tensor]:
        h = gx.tanh(x + h @ w)
        return h, h

    _, hs = gx.scan(step, gx.zeros((2, 3), np.float64), x, reverse=reverse)
    f = gx.compile([x, w], gx.grad(gx.sum(hs * hs), [x, w]))
    testing.assert_matches_interpreter(f, X, W)
    kernels = [node for node in f.compilation().plan.graph.nodes if node.op.name == "kernel"]
    bodies = [node.attrs["body"] for node in kernels]
    products = [n for body in bodies for n in body.nodes if n.op.name == "contract"]
    assert [product.inputs[0].shape[0] for product in products] == [len(X) - 1]
    assert not any(node.op.name == "concat" for body in bodies for node in body.nodes)


def test_passes_leave_a_graph_without_scans_alone() -> None:
    x = gx.placeholder("x", (4, 3))
    graph = gx.compile([x], gx.sum(x * x)).graph
    for name in ("merge_scans", "slim_scans", "hoist", "block_weights"):
        assert run(graph, [name])[0] is graph


def test_a_square_matrix_and_its_transpose_are_laid_out_apart() -> None:
    w, x = (random(*shape, seed=seed) for seed, shape in enumerate([(256, 256), (3, 4, 256)]))
    given = placeholders(w=w, x=x)

    def there_and_back(carry: gx.Tensor, row: gx.Tensor) -> tuple[gx.Tensor, gx.Tensor]:
        carry = gx.tanh(gx.tanh(carry @ given[0].T / 16 + row) @ given[0] / 16)
        return carry, carry

    _, results = gx.scan(there_and_back, given[1][0], given[1])
    testing.assert_matches_interpreter(gx.compile(given, results), w, x)


def test_the_ledger_counts_every_step() -> None:
    x, w = placeholders(x=X, w=W)
    _, ys = gx.scan(lambda c, x: (c, x @ w), None, x)
    _, ledger = run(gx.compile([x, w], ys).graph, ["dce"])
    _, after = ledger.rows[0].work
    assert after.operations == 6 * 2 * 2 * 3 * 3


# Native ---------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 48, batch_first=True), nn.Linear(48, 5)

    def forward(self, x: gx.Tensor) -> gx.Tensor:
        return self.head(self.lstm(x)[0])


def training(threads: int = 1, mode: str = "native") -> tuple[Any, list[Array], Tagger]:
    gx.manual_seed(0)
    net = Tagger()
    x, label = gx.placeholder("x", (16, 7, 8)), gx.placeholder("label", (16, 7), gx.int64)
    loss = nn.CrossEntropyLoss()(gx.flatten(net(x), 0, 1), gx.flatten(label))
    updates = optim.SGD(net.parameters(), lr=0.5).minimize(loss)
    step = gx.compile([x, label], loss, updates=updates, threads=threads, mode=mode)
    arrays = [random(16, 7, 8, dtype=np.float32), np.random.default_rng(0).integers(0, 5, (16, 7))]
    return step, arrays, net


def test_a_training_step_with_a_scan_has_the_same_bits_for_any_number_of_threads() -> None:
    runs = []
    for threads in (1, 2, 3):
        step, arrays, net = training(threads)
        losses = [step(*arrays) for _ in range(5)]
        runs.append([np.float32(losses).tobytes(), *(p.data.tobytes() for p in net.parameters())])
        assert losses[-1] < losses[0]
    assert runs[0] == runs[1] == runs[2]


def test_a_training_step_with_a_scan_agrees_with_the_interpreter() -> None:
    step, arrays, _ = training(mode="check")
    for _ in range(3):
        step(*arrays)
    testing.assert_matches_interpreter(step, *arrays)


def test_the_weights_of_a_large_recurrence_agree_with_the_interpreter() -> None:
    """Large enough for the gradient's operands to be copied block by block: the states before each step, too."""
    gx.manual_seed(0)
    net = nn.LSTM(8, 256, batch_first=True)
    x, wanted = gx.placeholder("x", (32, 40, 8)), gx.placeholder("wanted", (32, 40, 256))
    loss = gx.mean((net(x)[0] - wanted) ** 2)
    step = gx.compile([x, wanted], loss, updates=optim.SGD(net.parameters(), lr=10.0).minimize(loss))
    arrays = [random(32, 40, size, seed=size, dtype=np.float32) for size in (8, 256)]
    testing.assert_matches_interpreter(step, *arrays)


def test_every_stage_can_be_read_back_and_the_plan_is_verified() -> None:
    step, arrays, _ = training()
    compilation = step.compilation_for(*arrays)
    for name in compilation.stages:
        text = compilation.text(name)
        assert str(parse(text)) == text
    fused = parse(compilation.text("fused"))
    assert pipeline.passes_for(fused) == ()
    again = pipeline.build(fused, {})
    assert again.text("llvm") == compilation.text("llvm")
    plan.verify(compilation.plan.graph, compilation.plan)
    assert "loops 2" in str(compilation.plan)
    assert "7 x step" in str(compilation.plan)


def test_the_plan_of_a_step_is_verified_with_the_plan() -> None:
    step, arrays, _ = training()
    whole = step.compilation_for(*arrays).plan
    (first, *_) = whole.loops
    broken = plan.Plan(
        first.plan.graph, first.plan.steps[:-1], first.plan.slots, first.plan.constants, first.plan.arena_bytes, (0,)
    )
    loop = plan.Loop(first.node, first.operands, first.results, broken, first.constants, first.scratch)
    steps = tuple(loop if step is first else step for step in whole.steps)
    with pytest.raises(gx.errors.VerifyError, match="never called"):
        plan.verify(
            whole.graph,
            plan.Plan(whole.graph, steps, whole.slots, whole.constants, whole.arena_bytes, whole.live_bytes),
        )


def test_the_last_round_leaves_out_what_only_a_further_round_would_read() -> None:
    step, arrays, _ = training()
    forward, backward = step.compilation_for(*arrays).plan.loops
    assert (forward.tail, backward.tail) == (0, 1)
    assert "7 x step.gradient (the last without 1 step)" in str(step.compilation_for(*arrays).plan)

    x, w, first = (random(*shape, seed=seed) for seed, shape in enumerate([(5, 3, 4), (4, 4), (3, 4)]))
    given = placeholders(x=x, w=w, first=first)

    def finish(carry: gx.Tensor, row: gx.Tensor) -> tuple[gx.Tensor, gx.Tensor]:
        return gx.tanh(carry @ given[1] + row), gx.exp(carry)

    last, results = gx.scan(finish, given[2], given[0])
    for outputs, is_less in (([gx.sum(results)], True), ([gx.sum(results), last], False)):
        for threads in (1, 2):
            run = gx.compile(given, outputs, threads=threads)
            (loop,) = run.compilation_for(x, w, first).plan.loops
            assert (loop.tail > 0) is is_less
            testing.assert_matches_interpreter(run, x, w, first)


@pytest.mark.parametrize(("reads_last", "tail", "message"), [(True, 1, "carry %c0"), (False, 3, "a result")])
def test_a_last_round_that_leaves_out_what_is_read_is_refused(reads_last: bool, tail: int, message: str) -> None:
    x, w, first = (random(*shape) for shape in [(5, 3, 4), (4, 4), (3, 4)])
    given = placeholders(x=x, w=w, first=first)
    last, results = gx.scan(lambda c, row: (gx.tanh(c @ given[1] + row), gx.exp(c)), given[2], given[0])
    whole = gx.compile(given, [last, results] if reads_last else [results]).compilation_for(x, w, first).plan
    (loop,) = whole.loops
    steps = tuple(dataclasses.replace(step, tail=tail) if step is loop else step for step in whole.steps)
    broken = plan.Plan(whole.graph, steps, whole.slots, whole.constants, whole.arena_bytes, whole.live_bytes)
    with pytest.raises(gx.errors.VerifyError, match=f"leaves out {message}"):
        plan.verify(whole.graph, broken)


def test_a_carry_that_is_a_result_is_read_back_not_copied() -> None:
    step, arrays, _ = training()
    forward, _ = step.compilation_for(*arrays).plan.loops
    assert not forward.plan.copies


def test_the_profile_looks_into_loops() -> None:
    step, arrays, _ = training()
    step(*arrays)
    profile = step.profile(repeat=3)
    inner = [row for row in profile.rows if row.name.startswith("loop ")]
    assert len(inner) == 2
    assert len(profile.rows) == sum(len(part.steps) for part in step.plan.all())
    assert sum(row.operations for row in profile.rows) > 7 * 2 * 2 * 16 * 192 * 48


def test_tables_in_a_step_are_constants_of_the_plan() -> None:
    """A hand-written dump may have them there; passes take them out."""
    text = """graph f(%x: f32[3,4]) {
  %0 = scan %x length=3 slices=1 reverse=false : f32[3,4] {
    graph step(%x0: f32[4]) {
      %0 = constant value=f32[4]{1.0,2.0,3.0,4.0} : f32[4]
      %1 = kernel %x0, %0 name="mul" : f32[4] {
        graph mul(%p0: f32[4], %p1: f32[4]) {
          %0 = mul %p0, %p1 : f32[4]
          return %0
        }
      }
      return %1
    }
  }
  return %0
}
"""
    graph = parse(text)
    compilation = pipeline.build(graph, {})
    plan.verify(graph, compilation.plan)
    x = random(3, 4, dtype=np.float32)
    (found,) = compilation.executable([x], [])
    np.testing.assert_array_equal(found, x * np.float32([1, 2, 3, 4]))


def test_a_long_lstm_compiles_as_fast_as_a_short_one() -> None:
    """What is compiled does not depend on the number of steps."""
    sizes = []
    for length in (30, 300):
        x = gx.placeholder("x", (2, length, 4))
        function = gx.compile([x], nn.LSTM(4, 8, batch_first=True)(x)[0])
        sizes.append(len(function.compilation().functions))
    assert sizes[0] == sizes[1]


def test_an_lstm_takes_sequences_of_any_length() -> None:
    x = gx.placeholder("x", ("batch", "time", 3))
    net = nn.LSTM(3, 5, batch_first=True)
    function = gx.compile([x], net(x)[0])
    long = random(2, 6, 3, dtype=np.float32)
    np.testing.assert_allclose(function(long)[:, :4], function(long[:, :4]), rtol=1e-5, atol=1e-6)


def test_the_command_takes_files_with_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step, arrays, _ = training()
    compilation = step.compilation_for(*arrays)
    files = []
    for name in ("bind", "slim_scans", "fused"):
        files.append(str(tmp_path / f"{name}.gc"))
        Path(files[-1]).write_text(compilation.text(name))
    assert main(["run", "--compare", *files]) == 0
    assert capsys.readouterr().out.count("agree") == 3
    assert main(["opt", files[0]]) == 0
    assert capsys.readouterr().out == compilation.text("fused")
    for stage in ("plan", "loops", "llvm"):
        assert main(["dump", "--stage", stage, files[-1]]) == 0
        assert capsys.readouterr().out == compilation.text(stage)
    for picture in ("step.svg", "step.dot"):
        assert main(["dot", files[-1], "-o", str(tmp_path / picture)]) == 0
        assert "7 x step" in (tmp_path / picture).read_text()
