"""What is fused into what, and that kernels compute what the nodes did."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import graphc as gx
import graphc.ops
from graphc.ir.graph import Graph, Literal, Value, apply, build
from graphc.ir.op import OPS
from graphc.ir.source import Location, located
from graphc.ir.types import TensorType, float32, int64
from graphc.passes.forms import Contract, Map, Rows, classify, is_splat_or_position
from graphc.passes.fuse import fuse, inline
from graphc.reference import evaluate

# Small language for building graphs -----------------------------------------------------------------------------


def make(op: str, *operands: Value, **attrs: Any) -> Value:
    return apply(OPS[op], *operands, **attrs)


def given(name: str, *shape: int, dtype: Any = float32) -> Value:
    return Value(TensorType(dtype, shape), name=name)


def splat(number: float, shape: tuple[int, ...]) -> Value:
    return make("broadcast", make("constant", value=Literal.of(np.float32(number))), shape=shape, axes=())


def rows(value: Value, like: Value) -> Value:
    """One number per row, along the row."""
    return make("broadcast", value, shape=like.shape, axes=tuple(range(len(value.shape))))


def columns(value: Value, like: Value) -> Value:
    return make("broadcast", value, shape=like.shape, axes=(len(like.shape) - 1,))


def linear(x: Value, weight: Value, bias: Value) -> Value:
    y = make("contract", x, weight, spec="mk,nk->mn")
    return make("add", y, columns(bias, y))


def sgd(weight: Value, gradient: Value) -> Value:
    return make("sub", weight, make("mul", gradient, splat(0.1, gradient.shape)))


def softmax(x: Value) -> Value:
    last = (len(x.shape) - 1,)
    e = make("exp", make("sub", x, rows(make("reduce_max", x, axes=last), x)))
    return make("div", e, rows(make("reduce_sum", e, axes=last), x))


def mean(x: Value) -> Value:
    total = make("reduce_sum", x, axes=(len(x.shape) - 1,))
    return make("mul", total, splat(1 / x.shape[-1], total.shape))


def normalise(x: Value) -> tuple[Value, Value]:
    """Normalised rows and the reciprocal of their deviation."""
    centred = make("sub", x, rows(mean(x), x))
    variance = mean(make("mul", centred, centred))
    scale = make("rsqrt", make("add", variance, splat(1e-5, variance.shape)))
    return make("mul", centred, rows(scale, x)), scale


def normalise_backward(dy: Value, normal: Value, scale: Value) -> Value:
    along = make("mul", normal, rows(mean(make("mul", dy, normal)), dy))
    return make("mul", make("sub", make("sub", dy, rows(mean(dy), dy)), along), rows(scale, dy))


def mlp_step(batch: int = 16, sizes: tuple[int, ...] = (20, 12, 10)) -> Graph:
    """relu MLP, softmax cross entropy, gradients, SGD."""
    x, label = given("x", batch, sizes[0]), given("label", batch, dtype=int64)
    weights = [given(f"w{i}", n, k) for i, (k, n) in enumerate(pairwise(sizes))]
    biases = [given(f"b{i}", n) for i, n in enumerate(sizes[1:])]
    read: list[Value] = []
    masks: list[Value] = []
    z = x
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        read.append(make("maximum", z, splat(0, z.shape)) if i else x)
        masks.append(make("greater", z, splat(0, z.shape)))
        z = linear(read[-1], weight, bias)
    shifted = make("sub", z, rows(make("reduce_max", z, axes=(1,)), z))
    log_sum = make("log", make("reduce_sum", make("exp", shifted), axes=(1,)))
    log_p = make("sub", shifted, rows(log_sum, z))
    classes = make("iota", shape=z.shape, axis=1, dtype=int64)
    target = make("convert", make("equal", rows(label, z), classes), dtype=float32)
    picked = make("reduce_sum", make("mul", log_p, target), axes=(1,))
    loss = make("neg", make("reduce_sum", picked, axes=(0,)))
    d = make("sub", make("exp", log_p), target)
    updates = []
    for i in reversed(range(len(weights))):
        updates.append((weights[i], sgd(weights[i], make("contract", d, read[i], spec="mn,mk->nk"))))
        updates.append((biases[i], sgd(biases[i], make("reduce_sum", d, axes=(0,)))))
        if i:
            d = make("contract", d, weights[i], spec="mn,nk->mk")
            d = make("where", masks[i], d, splat(0, d.shape))
    return build("step", [x, label], [loss], updates)


# Looking at the result ------------------------------------------------------------------------------------------


def feeds(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        value.name: rng.integers(0, 5, value.shape)
        if value.dtype.is_int
        else np.abs(rng.standard_normal(value.shape)).astype(value.dtype.numpy)
        for value in (*graph.inputs, *graph.state)
    }


def results(graph: Graph, given: Any) -> list[Any]:
    """Outputs, then next states."""
    outputs, following = evaluate(graph, given)
    return [*outputs, *following.values()]


def fused(graph: Graph) -> Graph:
    """The fused graph, checked: only kernels, views and tables; equal values; inlining is the inverse."""
    result = fuse(graph)
    for node in result.nodes:
        if node.op.name == "kernel":
            assert classify(node.attrs["body"]) is not None
        else:
            assert node.op.name == "reshape" or not is_splat_or_position(node)
    given = feeds(graph)
    expected = results(graph, given)
    for other in (result, inline(result), fuse(inline(result))):
        found = results(other, given)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert all(node.op.name != "kernel" for node in inline(result).nodes)
    return result


def kernels(graph: Graph) -> list[Graph]:
    return [node.attrs["body"] for node in graph.nodes if node.op.name == "kernel"]


def forms(graph: Graph) -> list[str]:
    return sorted(type(classify(body)).__name__ for body in kernels(graph))


def stored_bytes(graph: Graph) -> int:
    return sum(v.type.nbytes for n in graph.nodes if n.op.name == "kernel" for v in n.outputs)


# Tests ----------------------------------------------------------------------------------------------------------


def test_a_training_step_of_two_layers_is_six_kernels() -> None:
    result = fused(mlp_step())
    assert forms(result) == ["Contract"] * 5 + ["Rows"]
    outputs = sorted([str(v.type) for v in body.outputs] for body in kernels(result))
    assert outputs == [
        ["f32[10,12]"],
        ["f32[12,20]"],
        ["f32[16,10]"],
        ["f32[16,12]", "bool[16,12]"],
        ["f32[16,12]", "f32[12]"],
        ["f32[]", "f32[16,10]", "f32[10]"],
    ]


def test_a_result_that_is_a_repeated_number_in_another_shape_is_one_kernel() -> None:
    result = fused(build("zeros", [], [make("reshape", splat(0.0, (3, 4)), shape=(1, 3, 4))]))
    assert [node.op.name for node in result.nodes] == ["kernel"]


def test_repeated_layers_share_the_text_of_their_kernels() -> None:
    result = fused(mlp_step(sizes=(10,) * 8))
    # Two more layers than in the step of six kernels are needed until everything repeats.
    assert len(kernels(result)) == 3 * 7
    assert len({str(body) for body in kernels(result)}) <= 9


def test_momentum_updates_buffer_and_weight_in_the_epilogue_of_the_gradient() -> None:
    x, dy = given("x", 6, 5), given("dy", 6, 4)
    weight, buffer = given("w", 4, 5), given("m", 4, 5)
    gradient = make("contract", dy, x, spec="mn,mk->nk")
    moved = make("add", make("mul", buffer, splat(0.9, buffer.shape)), gradient)
    (body,) = kernels(fused(build("step", [x, dy], [], [(buffer, moved), (weight, sgd(weight, moved))])))
    assert isinstance(classify(body), Contract)
    assert len(body.outputs) == 2


def test_layer_norm_is_one_kernel() -> None:
    x, weight, bias = given("x", 8, 12), given("weight", 12), given("bias", 12)
    y = make("add", make("mul", normalise(x)[0], columns(weight, x)), columns(bias, x))
    (body,) = kernels(fused(build("norm", [x, weight, bias], [y])))
    assert isinstance(classify(body), Rows)


def test_layer_norm_backward_is_one_kernel_behind_a_product_that_sums_the_gradient_of_the_bias() -> None:
    x, weight, w1 = given("x", 8, 12), given("weight", 12), given("w1", 12, 12)
    normal, scale = normalise(x)
    y = make("contract", make("mul", normal, columns(weight, x)), w1, spec="mk,nk->mn")
    dy = make("contract", make("mul", y, y), w1, spec="mn,nk->mk")
    dweight = make("reduce_sum", make("mul", dy, normal), axes=(0,))
    dbias = make("reduce_sum", dy, axes=(0,))
    dx = normalise_backward(make("mul", dy, columns(weight, dy)), normal, scale)
    result = fused(build("norm", [x, weight, w1], [dx, dweight, dbias]))
    assert forms(result) == ["Contract", "Contract", "Rows", "Rows"]
    makers = [value.node for value in result.outputs]
    assert makers[0] is makers[1] and makers[0] is not makers[2]
    assert makers[2] is not None and isinstance(classify(makers[2].attrs["body"]), Contract)


def test_what_is_repeated_side_by_side_is_stored() -> None:
    """A mean of each group, for all of its channels: where it is read along them, each vector would be gathered."""
    x, means = given("x", 4, 9, 12), given("means", 4, 3)
    spread = make("reshape", make("broadcast", means, shape=(4, 3, 4), axes=(0, 1)), shape=(4, 12))
    centred = make("sub", x, make("broadcast", spread, shape=(4, 9, 12), axes=(0, 2)))
    _, last = kernels(fused(build("step", [x, means], [centred])))
    assert sorted(value.type.extents for value in last.inputs) == [(4, 9, 12), (4, 12)]


def test_normalised_values_are_computed_again_rather_than_stored() -> None:
    x, w1 = given("x", 8, 12), given("w1", 12, 12)
    normal, scale = normalise(x)
    y = make("contract", make("tanh", normal), w1, spec="mk,nk->mn")
    dx = normalise_backward(make("mul", y, y), normal, scale)
    forward, *_ = (n for n in fused(build("norm", [x, w1], [dx])).nodes if n.op.name == "kernel")
    assert sorted(str(value.type) for value in forward.outputs) == ["f32[8,12]", "f32[8]", "f32[8]"]


@pytest.mark.parametrize(("rows", "stored", "tanhs"), [(8, 3, 1), (40_000, 2, 2)], ids=["near", "far"])
def test_the_derivative_of_gelu_is_computed_from_its_argument(rows: int, stored: int, tanhs: int) -> None:
    """And from the stored tanh, if that will be in a cache; else from a tanh that is computed again."""
    x, w1, w2 = given("x", rows, 12), given("w1", 10, 12), given("w2", 12, 10)
    z = make("contract", x, w1, spec="mk,nk->mn")
    cube = make("mul", make("mul", z, z), z)
    t = make("tanh", make("mul", make("add", z, make("mul", cube, splat(0.0447, z.shape))), splat(0.8, z.shape)))
    half = make("mul", z, splat(0.5, z.shape))
    one = splat(1, z.shape)
    y = make("contract", make("mul", half, make("add", one, t)), w2, spec="mk,nk->mn")
    dg = make("contract", y, w2, spec="mn,nk->mk")
    dt = make("mul", make("mul", dg, half), make("sub", one, make("mul", t, t)))
    inner = make("add", one, make("mul", make("mul", z, z), splat(0.134, z.shape)))
    dz = make("add", make("mul", dt, inner), make("mul", make("mul", dg, splat(0.5, z.shape)), make("add", one, t)))
    forward, *others = kernels(fused(build("gelu", [x, w1, w2], [dz])))
    assert len(forward.outputs) == stored
    assert sum(node.op.name == "tanh" for body in (forward, *others) for node in body.nodes) == tanhs


def test_attention_stores_scores_probabilities_and_heads_in_the_order_that_a_view_needs() -> None:
    b, t, h, d = 2, 6, 2, 4
    x = given("x", b, t, h * d)
    weights = [given(f"w{name}", h * d, h * d) for name in "qkvo"]

    def heads(weight: Value) -> Value:
        split = make("reshape", make("contract", x, weight, spec="btc,dc->btd"), shape=(b, t, h, d))
        return make("transpose", split, perm=(0, 2, 1, 3))

    q, k, v = (heads(weight) for weight in weights[:3])
    scores = make("contract", q, k, spec="bhtd,bhsd->bhts")
    position = [make("iota", shape=scores.shape, axis=axis, dtype=int64) for axis in (3, 2)]
    scores = make("mul", scores, splat(d**-0.5, scores.shape))
    scores = make("where", make("less_equal", *position), scores, splat(-1e9, scores.shape))
    mixed = make("transpose", make("contract", softmax(scores), v, spec="bhts,bhsd->bhtd"), perm=(0, 2, 1, 3))
    merged = make("reshape", mixed, shape=(b, t, h * d))
    y = make("add", x, make("contract", merged, weights[3], spec="btc,dc->btd"))
    result = fused(build("attention", [x, *weights], [y]))
    assert forms(result) == ["Contract"] * 6 + ["Rows"]
    assert sum(node.op.name == "reshape" for node in result.nodes) == 4


def test_a_mask_follows_a_contraction_through_the_reshape_between_them() -> None:
    z, dy, weight = given("z", 4, 3, 2, 2), given("dy", 4, 5), given("w", 5, 12)
    mask = make("greater", make("tanh", z), splat(0, z.shape))
    d = make("reshape", make("contract", dy, weight, spec="mn,nk->mk"), shape=z.shape)
    result = fused(build("flat", [z, dy, weight], [make("where", mask, d, splat(0, z.shape)), mask]))
    assert forms(result) == ["Contract", "Map"]


def test_a_wide_mask_of_labels_is_recomputed_where_it_is_read() -> None:
    label, x = given("label", 8, dtype=int64), given("x", 8, 5)
    classes = make("iota", shape=x.shape, axis=1, dtype=int64)
    target = make("convert", make("equal", rows(label, x), classes), dtype=float32)
    first = make("contract", x, target, spec="mk,mn->kn")
    second = make("contract", target, x, spec="mk,nk->mn")
    assert forms(fused(build("labels", [label, x], [first, second]))) == ["Contract", "Contract"]


def test_costly_work_on_an_operand_is_stored_before_the_contraction() -> None:
    x, w = given("x", 6, 5), given("w", 4, 5)
    y = make("contract", make("exp", x), w, spec="mk,nk->mn")
    assert forms(fused(build("costly", [x, w], [y]))) == ["Contract", "Map"]
    y = make("contract", make("neg", x), w, spec="mk,nk->mn")
    assert forms(fused(build("cheap", [x, w], [y]))) == ["Contract"]


def test_a_power_of_a_scalar_is_not_computed_for_every_element() -> None:
    x, s = given("x", 64, 64), given("s")
    y = make("div", x, rows(make("pow", s, s), x))
    assert [body.name for body in kernels(fused(build("scalar", [x, s], [y])))] == ["pow", "div"]


def test_work_whose_operand_depends_on_a_result_of_the_group_stays_outside() -> None:
    x, w = given("x", 6, 6), given("w", 6, 6)
    a = make("exp", x)
    b = make("contract", a, w, spec="mk,nk->mn")
    y = make("add", a, make("contract", make("tanh", b), w, spec="mk,nk->mn"))
    assert forms(fused(build("skip", [x, w], [y]))) == ["Contract", "Contract", "Map"]


def test_sums_of_one_value_are_siblings() -> None:
    x = given("x", 8, 12)
    total = make("reduce_sum", x, axes=(1,))
    largest = make("reduce_max", x, axes=(1,))
    assert forms(fused(build("sums", [x], [total, largest]))) == ["Rows"]


def test_a_broadcast_is_reduced_without_being_stored() -> None:
    a, b = given("a", 8), given("b", 12)
    product = make(
        "mul", make("broadcast", a, shape=(8, 12), axes=(0,)), make("broadcast", b, shape=(8, 12), axes=(1,))
    )
    result = fused(build("outer", [a, b], [make("reduce_sum", product, axes=(1,))]))
    assert stored_bytes(result) == 8 * 4


def test_constants_of_differing_elements_stay_between_the_kernels() -> None:
    x = given("x", 3)
    table = make("constant", value=Literal.of(np.float32([1, 2, 3])))
    result = fused(build("table", [x], [make("mul", x, table)]))
    assert sorted(node.op.name for node in result.nodes) == ["constant", "kernel"]


def test_a_scalar_constant_as_a_result_is_made_by_a_kernel() -> None:
    assert forms(fused(build("constant", [], [splat(2, (3,))]))) == ["Map"]


def test_fusing_again_changes_nothing_but_identities() -> None:
    once = fuse(mlp_step())
    assert [node.op.name for node in fuse(once).nodes] == [node.op.name for node in once.nodes]


def test_body_nodes_and_kernels_keep_their_lines() -> None:
    x, w = given("x", 6, 5), given("w", 4, 5)
    first, second = Location("model.py", 1), Location("model.py", 2)
    with located(first):
        y = make("contract", x, w, spec="mk,nk->mn")
    with located(second):
        y = make("tanh", y)
    (node,) = fuse(build("lines", [x, w], [y])).nodes
    assert node.location == first
    assert [inner.location for inner in node.attrs["body"].nodes] == [first, second]


def test_the_work_of_fusion_grows_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = 0

    def counting(body: Graph) -> object:
        nonlocal visited
        visited += len(body.nodes)
        return classify(body)

    monkeypatch.setattr(sys.modules["graphc.passes.fuse"], "classify", counting)
    per_node = []
    for depth in (20, 80):
        graph = mlp_step(4, (6,) * depth)
        visited = 0
        fuse(graph)
        per_node.append(visited / len(graph.nodes))
    assert per_node[1] < 1.2 * per_node[0]


def test_long_elementwise_chains_are_cut_into_kernels() -> None:
    x = given("x", 4)
    y = x
    for _ in range(300):
        y = make("tanh", y)
    result = fused(build("chain", [x], [y]))
    assert forms(result) == ["Map"] * len(kernels(result))
    assert len(kernels(result)) < 10
    assert isinstance(classify(kernels(result)[0]), Map)


def test_a_result_that_is_stored_turned_too_is_not_written_over_its_operand() -> None:
    """Found by random networks: the turned one was computed from the operand after that was gone."""
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in ((64, 8), (8, 16), (64, 64, 16), (64, 5))]
    x, a, s, w = (gx.placeholder(name, array.shape) for name, array in zip("xasw", arrays, strict=True))
    last, _ = gx.scan(lambda c, _: (gx.tanh(c) * 0.5 + x @ a, None), gx.zeros((64, 16)), None, length=3)
    turned = gx.transpose(last + gx.mean(s, 0), (1, 0))
    found, wanted = (
        gx.compile([x, a, s, w], [turned @ w, turned], threads=1, mode=mode)(*arrays)
        for mode in ("native", "interpret")
    )
    for array, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-4)


def test_a_broadcast_of_what_cannot_be_divided_stays_above_a_product() -> None:
    """Found by random networks: the reshape went below a broadcast whose own operand was a broadcast of other axes."""
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 6, 5), (5, 4), (9,))]
    x, k, p = (gx.placeholder(name, array.shape) for name, array in zip("xkp", arrays, strict=True))
    twice = gx.reshape(gx.broadcast_to(gx.reshape(p, (1, 9)), (2, 9)), (18, 1))
    found = gx.compile([x, k, p], gx.reshape(x @ k, (18, 4)) + twice, threads=1)(*arrays)
    wanted = (arrays[0] @ arrays[1]).reshape(18, 4) + np.tile(arrays[2], 2)[:, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
