"""The ladder: reference = simplified = fused = loops interpreted = native, for every op and for random graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
from graphs import random_graphs
from hypothesis import HealthCheck, given, settings
from samples import SAMPLES

import graphc as gx
from graphc import compare, pipeline, reference
from graphc.ir.graph import Graph, build
from graphc.loops import interpret
from graphc.loops.verify import verify as verify_loops
from graphc.plan import verify as verify_plan

Array = np.ndarray[Any, Any]


def climb(graph: Graph, feeds: list[Array]) -> None:
    """Every rung computes what the reference does; the first that differs names itself."""
    feeds = [np.ascontiguousarray(a).reshape(np.shape(a)) for a in feeds]
    wanted, _ = reference.run(graph, feeds)
    compilation = pipeline.build(graph, {})
    for name, stage in compilation.stages.items():
        found, _ = reference.run(stage, feeds)
        close(found, wanted, graph, name)
    plan = compilation.plan
    verify_plan(plan.graph, plan)
    for function in compilation.kernels.values():
        verify_loops(function)

    def observe(node: Any, operands: list[Array], results: tuple[Array, ...]) -> None:
        function = compilation.functions.get(node)
        if function is not None and function.outputs:
            found = interpret.run(function, operands)
            shaped = [a.reshape(b.shape) for a, b in zip(found, results, strict=True)]
            close(shaped, results, node.attrs["body"], f"loops of {node.attrs['name']}")

    if sum(a.size for a in feeds) < 2000:
        reference.run(plan.graph, feeds, observe)
    compilation.executable.arena.view(np.uint8)[...] = 0xFF  # NaN: a read of dead memory shows
    found = compilation.executable(feeds[: len(graph.inputs)], feeds[len(graph.inputs) :])
    close(found, wanted, graph, "native")


def close(found: Any, wanted: Any, graph: Graph, rung: str) -> None:
    for number, (array, other) in enumerate(zip(found, wanted, strict=True)):
        compare.require_close(np.asarray(array), np.asarray(other), graph, f"{rung}, output {number}", scale=1.0)


@pytest.mark.parametrize("op", sorted({sample.op for sample in SAMPLES}))
def test_every_op_on_every_rung(op: str) -> None:
    inputs, outputs, feeds = [], [], []
    for number, sample in enumerate(s for s in SAMPLES if s.op == op):
        values, y = sample.build()
        for value, array in zip(values, sample.arrays, strict=True):
            value.name = f"x{number}_{len(inputs)}"
            inputs.append(value)
            feeds.append(array)
        outputs.append(y)
    climb(build(op, inputs, outputs), feeds)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(random_graphs())
def test_random_graphs_on_every_rung(case: tuple[Graph, list[Array]]) -> None:
    graph, feeds = case
    hypothesis.note(str(graph))
    climb(graph, feeds)


@pytest.mark.fuzz
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs())
def test_many_random_graphs_on_every_rung(case: tuple[Graph, list[Array]]) -> None:
    graph, feeds = case
    hypothesis.note(str(graph))
    climb(graph, feeds)


@pytest.mark.parametrize("size", [5, 256, 700])
def test_stages_of_a_chain_of_functions_may_write_over_what_later_ones_read(size: int) -> None:
    start = np.linspace(-1, 1, size, dtype=np.float32)
    state, other = (gx.Parameter(start.copy(), name=name) for name in ("state", "other"))
    mixed = gx.tanh(gx.exp(state)) * state + gx.tanh(gx.sigmoid(state) * state)
    step = gx.compile([], gx.exp(state), updates={state: gx.exp(state) - state, other: mixed})
    np.testing.assert_allclose(step(), np.exp(start), rtol=1e-6)
    np.testing.assert_allclose(state.data, np.exp(start) - start, rtol=1e-5, atol=1e-6)
    wanted = np.tanh(np.exp(start)) * start + np.tanh(start / (1 + np.exp(-start)))
    np.testing.assert_allclose(other.data, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("move", [lambda x: x.T, lambda x: gx.flip(x, 0), lambda x: gx.concat([x[:13], x[13:]])])
def test_a_late_stage_that_moves_what_it_reads_is_not_parted_from_what_is_written_over_it(
    move: Callable[[gx.Tensor], gx.Tensor],
) -> None:
    start = np.random.default_rng(0).uniform(-1, 1, (40, 40)).astype(np.float32)
    state = gx.Parameter(start.copy(), name="state")
    deep = move(gx.tanh(gx.exp(move(state))))
    mixed = gx.concat([gx.tanh(gx.exp(state))[:13], state[13:]])
    step = gx.compile([], [deep, mixed], updates={state: gx.exp(state)})
    late = np.tanh(np.exp(start))
    for found, wanted in zip(step(), (late, np.concatenate([late[:13], start[13:]])), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.data, np.exp(start), rtol=1e-6)
