"""Rules: left = right on random numbers, each fires, and what they make of unstable forms is stable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import random_graphs
from hypothesis import HealthCheck, given, settings

import graphc as gx
from graphc import compare, ops, reference, testing
from graphc.compiler import trace
from graphc.ir.graph import Graph, Value, build
from graphc.ir.types import DType, TensorType
from graphc.passes import PASSES, cse, dce, fold, manager, simplify
from graphc.passes.algebra import RULES
from graphc.passes.rewrite import Rule, repeated

Array = np.ndarray[Any, Any]


def fresh(rule: Rule, shape: tuple[int, ...]) -> list[Value]:
    return [Value(TensorType(u.dtype, shape), name=u.name) for u in rule.unknowns]


def numbers(value: Value, random: np.random.Generator) -> Array:
    if value.dtype is DType.BOOL:
        return random.integers(0, 2, value.type.extents).astype(np.bool_)
    return random.uniform(0.1, 3.0, value.type.extents).astype(value.dtype.numpy)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.equation)
@pytest.mark.parametrize("shape", [(), (7,), (2, 5)])
def test_left_is_right(rule: Rule, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    unknowns = fresh(rule, shape)
    feeds = [numbers(value, random) for value in unknowns]
    graph = build("f", unknowns, [rule.left(*unknowns), rule.right(*unknowns)])
    (left, right), _ = reference.evaluate(graph, feeds)
    compare.require_close(right, left, graph, rule.equation, scale=1.0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.equation)
def test_every_rule_fires(rule: Rule) -> None:
    unknowns = fresh(rule, (3, 4))
    left = rule.left(*unknowns)
    found = rule.apply(left)
    assert found is not None
    assert found.type == left.type
    graph = build("f", unknowns, [left])
    assert simplify(graph) is not graph


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(random_graphs())
def test_passes_keep_the_meaning_and_settle(case: tuple[Graph, list[Array]]) -> None:
    graph, feeds = case
    wanted, _ = reference.run(graph, feeds)
    for name in ("simplify", "fold", "cse", "dce"):
        after = PASSES[name](graph)
        found, _ = reference.run(after, feeds)
        for array, other in zip(found, wanted, strict=True):
            compare.require_close(np.asarray(array), np.asarray(other), graph, name, scale=1.0)
        assert PASSES[name](after) is after


def run(build_tensor: Any, feeds: list[float], passes: bool = True) -> list[Array]:
    """Value and gradient of a function of one tensor, after the passes."""
    x = gx.placeholder("x", (len(feeds),))
    y = build_tensor(x)
    total = gx.sum(y)
    graph, _ = trace([x], [y, gx.grad(total, x)[0]], {}, "f")
    for apply in (simplify, fold, cse, dce) if passes else ():
        graph = apply(graph)
    outputs, _ = reference.evaluate(graph, [np.array(feeds, np.float32)])
    return list(outputs)


@pytest.mark.parametrize(
    ("unstable", "stable"),
    [
        (lambda x: gx.log(1.0 + gx.exp(x)), lambda x: np.logaddexp(0, x)),
        (lambda x: gx.log(gx.sigmoid(x)), lambda x: -np.logaddexp(0, -x)),
        (lambda x: gx.log(gx.softmax(x)), lambda x: x - np.logaddexp.reduce(x)),
        (lambda x: gx.log(gx.sum(gx.exp(x))), lambda x: np.logaddexp.reduce(x)),
        (lambda x: gx.log(gx.sum(gx.exp(x), 0, keepdims=True)), lambda x: np.logaddexp.reduce(x)[None]),
        (lambda x: 1.0 - gx.sigmoid(x), lambda x: np.exp(-np.logaddexp(0, x))),
    ],
)
def test_unstable_forms_become_stable(unstable: Any, stable: Any) -> None:
    x = [-200.0, -20.0, 0.5, 30.0, 200.0]
    value, slope = run(unstable, x)
    with np.errstate(under="ignore"):
        wanted = stable(np.array(x, np.float64))
    np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-38)
    assert np.isfinite(slope).all()


def test_small_differences_are_kept() -> None:
    x = [1e-8, -3e-7]
    value, _ = run(lambda x: gx.exp(x) - 1.0, x)
    np.testing.assert_allclose(value, np.expm1(x), rtol=1e-6)
    value, _ = run(lambda x: gx.log(1.0 + x), x)
    np.testing.assert_allclose(value, np.log1p(x), rtol=1e-6)


def _close(compute: Any, *arrays: Array) -> None:
    """Native results are the interpreter's."""
    places = [gx.placeholder(f"x{number}", array.shape) for number, array in enumerate(arrays)]
    native, wanted = (gx.compile(places, compute(*places), mode=mode)(*arrays) for mode in ("native", "interpret"))
    np.testing.assert_allclose(native, wanted, rtol=1e-4)


def test_what_cancels_is_not_summed_apart() -> None:
    """sum(a - b + k y), where k follows from another sum, became sum(a) - sum(b) + k sum(y): 2 % off."""
    random = np.random.default_rng(0)
    a = (1000 + random.standard_normal((4096, 8))).astype(np.float32)
    b = (a - 1e-3 * (1 + 0.1 * random.standard_normal(a.shape))).astype(np.float32)
    y = (1e-3 * random.standard_normal(a.shape)).astype(np.float32)
    _close(lambda a, b, y: gx.sum(a - b + gx.sum((a - b) * (a - b), 0) * y, 0), a, b, y)


def test_sums_of_nothing_are_zero() -> None:
    """Beside a mean of nothing, which is not a number, they became that, too."""
    _close(lambda x: gx.sum(x + gx.mean(x, 0) * x, 0), np.zeros((0, 3), np.float32))


def test_long_chains_of_terms_and_factors_are_simplified_in_linear_time() -> None:
    """All ways through a chain that parts and meets were counted, and a long one ended in a RecursionError."""

    def chained(x: gx.Tensor) -> gx.Tensor:
        for _ in range(40):
            x = x + gx.tanh(x) * x + x
        for _ in range(1200):
            x = x + 1.0
        return gx.sum(x * gx.mean(x, 0), 0)

    _close(chained, np.zeros((3, 2), np.float32))


def test_a_transpose_beside_a_contraction_is_a_matter_of_letters() -> None:
    x, w = gx.placeholder("x", (4, 3)), gx.Parameter(np.ones((5, 3), np.float32), "w")
    graph, _ = trace([x], [(x @ w.T).T], {}, "f")
    simple = simplify(graph)
    assert [(n.op.name, n.attrs.get("spec")) for n in simple.nodes] == [("contract", "mk,nk->nm")]


@pytest.mark.parametrize("spec", ["km,kn->mn", "mk,kn->nm", "kn,km->mn"])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 1])
def test_zeros_that_make_a_sum_longer_are_not_multiplied(spec: str, before: int, after: int) -> None:
    """On either side, of either operand; zeros in between stay, and those along an axis of the result."""
    sizes = {"m": 4, "n": 5, "k": 9}
    letters = spec.split("->")[0].split(",")
    for number, part in enumerate(letters):
        shapes = [tuple(sizes[c] for c in other) for other in letters]
        axis = part.index("k")
        shapes[number] = tuple(3 if c == "k" else sizes[c] for c in part)
        inner = gx.zeros(tuple(3 - (before + after) % 3 if c == "k" else sizes[c] for c in part))
        a, b = given = [gx.placeholder(name, shape) for name, shape in zip("ab", shapes)]
        zeros = [gx.zeros(tuple(n if c == "k" else sizes[c] for c in part)) for n in (before, after)]
        parts = [zeros[0], given[number], inner, given[number], zeros[1]]
        operands = [a, b]
        operands[number] = gx.concat([p for p in parts if 0 not in p.shape], axis)
        length = operands[number].shape[axis]
        other = 1 - number
        shape = tuple(length if c == "k" else sizes[c] for c in letters[other])
        given[other] = operands[other] = gx.placeholder("other", shape)
        f = gx.compile(given, gx.einsum(spec, *operands))
        feeds = [np.random.default_rng(0).standard_normal(x.shape).astype(np.float32) for x in given]
        testing.assert_matches_interpreter(f, *feeds)
        graph = simplify(f.graph)
        (product,) = (node for node in graph.nodes if node.op.name == "contract")
        assert product.inputs[number].shape[axis] == length - before - after


def test_zeros_along_an_axis_of_a_product_stay() -> None:
    x, w = gx.placeholder("x", (3, 4)), gx.placeholder("w", (4, 5))
    f = gx.compile([x, w], gx.concat([gx.zeros((2, 4)), x], 0) @ w)
    feeds = [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 5))]
    testing.assert_matches_interpreter(f, *feeds)
    assert (
        gx.compile([x, w], gx.concat([gx.zeros((2, 4)), gx.zeros((1, 4))], 0) @ w)(*feeds).tolist() == [[0.0] * 5] * 3
    )


def test_a_slice_of_a_scalar_that_is_reshaped() -> None:
    """There were no axes to cut."""
    x = gx.placeholder("x", ())
    assert gx.compile([x], gx.reshape(x, (1,))[::2])(np.float32(3)) == 3
    total = gx.reshape(gx.sum(gx.placeholder("y", (4,)) * np.ones(4, np.float32)), (1, 1))[:, ::-2]
    assert total.shape == (1, 1)


def test_a_slice_of_nothing_that_is_reshaped() -> None:
    x = gx.placeholder("x", (3, 0, 4))
    assert gx.compile([x], gx.reshape(x[2, 0:0], (0, 5))[:, 1:3])(np.zeros((3, 0, 4), np.float32)).shape == (0, 2)


def test_integers_have_no_reciprocal_that_is_one() -> None:
    """`x**-1 = 1 / x` is a rule of floats."""
    x = gx.placeholder("x", (4,), "int32")
    found = gx.compile([x], x ** gx.full((4,), -1, "int32"))(np.array([1, -1, 2, 3], np.int32))
    assert list(found) == [1, -1, 0, 0]


@pytest.mark.parametrize("name", ["stored", "product", "shared"])
def test_a_slice_stops_above_a_reshape_that_is_a_view(name: str) -> None:
    """Below it the slice was a copy of its own, where it had been part of what reads it."""
    x, w = gx.placeholder("x", (9, 1024)), gx.placeholder("w", (1024, 1024))
    if name == "stored":
        results, calls = gx.reshape(x, (9, 32, 32))[1:] + 1.0, 1
    elif name == "product":
        results, calls = gx.reshape(x, (9, 32, 32))[:-1] @ w[:32, :16], 1
    else:
        y = gx.reshape(x @ w, (9, 32, 32))
        results, calls = (y[1:] - y[:-1]) * 2 + gx.reshape(y[1:].transpose(0, 2, 1), (8, 32, 32)), 2
    f = gx.compile([x, w], results)
    feeds = [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((9, 1024), (1024, 1024))]
    testing.assert_matches_interpreter(f, *feeds)
    assert len(f.compilation().kernels) == calls


def test_a_shared_contraction_is_not_done_twice() -> None:
    x, w = gx.placeholder("x", (4, 3)), gx.Parameter(np.ones((3, 5), np.float32), "w")
    y = x @ w
    graph, _ = trace([x], [y, y.T], {}, "f")
    assert [n.op.name for n in simplify(graph).nodes].count("contract") == 1


def test_equal_nodes_are_one_and_dead_ones_go() -> None:
    x = Value(TensorType(DType.F32, (3,)), name="x")
    y = ops.add(ops.exp(x), ops.exp(x))
    graph = build("f", [x], [y])
    assert [n.op.name for n in cse(graph).nodes] == ["exp", "add"]
    dead = ops.tanh(x)
    assert dead.node is not None
    whole = Graph("f", (x,), (), (*graph.nodes, dead.node), (y,))
    assert len(dce(whole).nodes) == len(graph.nodes)


def test_constants_of_one_number_stay_small() -> None:
    big = ops.full((1000, 1000), 2.0, DType.F32)
    (value,) = fold(build("f", [], [ops.exp(ops.add(big, big))])).outputs
    assert value.node is not None and value.node.op.name == "broadcast"


def test_ten_thousand_nodes_take_passes_in_linear_work() -> None:
    """Simplification visits each node a bounded number of times: twice the nodes, about twice the calls."""
    calls = []
    for count in (1000, 2000):
        x = y = Value(TensorType(DType.F32, (3,)), name="x")
        for _ in range(count):
            y = ops.neg(ops.add(ops.tanh(y), x))
        seen = 0
        original = Rule.apply

        def counted(self: Rule, value: Value, original: Any = original) -> Any:
            nonlocal seen
            seen += 1
            return original(self, value)

        Rule.apply = counted  # type: ignore[method-assign]
        try:
            simplify(build("f", [x], [y]))
        finally:
            Rule.apply = original  # type: ignore[method-assign]
        calls.append(seen)
    assert calls[1] < 2.5 * calls[0]


@pytest.mark.parametrize("lead", [(), (1,), (2,), (1, 1), (3, 1)], ids=str)
def test_gradient_of_softmax_is_the_same_for_one_example(lead: tuple[int, ...]) -> None:
    """What is repeated along an axis is read without axes of one element; the equations looked for them."""
    x, g = (gx.placeholder(name, (*lead, 3, 5)) for name in "xg")
    (slope,) = gx.grad(gx.sum(gx.softmax(x, -1) * g), [x])
    graph, _ = manager.run(gx.compile([x, g], slope).graph, ("simplify", "fold", "cse"))
    ops = [node.op.name for node in graph.nodes]
    assert (ops.count("div"), ops.count("exp"), ops.count("mul")) == (1, 1, 2)


def test_what_is_repeated_has_the_axes_that_are_left() -> None:
    x = Value(TensorType(DType.F32, (2, 3)), name="x")
    joined = ops.broadcast(ops.reshape(x, shape=(6,)), shape=(1, 6, 4), axes=(1,))
    assert repeated(joined, (2,)) is None
    row = Value(TensorType(DType.F32, (1, 6)), name="row")
    assert repeated(ops.broadcast(ops.reshape(row, shape=(6,)), shape=(1, 6, 4), axes=(1,)), (2,)) is row
