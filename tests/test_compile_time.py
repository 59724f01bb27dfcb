"""Compile time, counted in work: kernels, rules tried, unions classified. Seconds are in benchmarks/compile_time.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

import graphc as gx
from graphc import nn, optim, pipeline
from graphc.codegen import jit
from graphc.codegen import step as code
from graphc.ir.binding import bind
from graphc.ir.graph import Graph
from graphc.passes import manager
from graphc.plan import make


class Block(nn.Module):
    """A residual block with a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Any) -> Any:
        return x + gx.gelu(self.linear(self.norm(x)))


def training(layers: int) -> Graph:
    """A training step of a network of equal layers."""
    x, label = gx.placeholder("x", (8, 16)), gx.placeholder("label", (8,), gx.int64)
    net = nn.Sequential(*[Block() for _ in range(layers)], nn.Linear(16, 4))
    loss = nn.CrossEntropyLoss()(net(x), label)
    updates = optim.SGD(net.parameters(), lr=0.01).minimize(loss)
    return bind(gx.compile([x, label], loss, updates=updates).graph, {})


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> Iterator[dict[str, int]]:
    """How often functions of a module are called."""
    counts = dict.fromkeys(names, 0)

    def counting(name: str) -> Any:
        function = getattr(module, name)

        def call(*args: Any, **attrs: Any) -> Any:
            counts[name] += 1
            return function(*args, **attrs)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(module, name, counting(name))
        yield counts


def module_of(function: manager.Pass) -> ModuleType:
    return sys.modules[function.__module__]


def test_the_number_of_kernels_does_not_depend_on_the_number_of_equal_layers() -> None:
    target, texts = jit.host_target(), {}
    for layers in (4, 12):
        fused, _ = manager.run(training(layers), pipeline.PASSES)
        kernels = pipeline.lower_kernels(fused, target)
        plan = make(fused, {node: code.scratch_bytes(kernel) for node, kernel in kernels.items()})
        assert len(plan.calls) > 4 * layers
        texts[layers] = list(code.emit_kernels(dict.fromkeys(kernels.values()), target))
    assert texts[4] == texts[12]


def test_passes_do_twice_the_work_for_twice_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    simplify, fuse = (module_of(manager.PASSES[name]) for name in ("simplify", "fuse"))
    found = []
    for layers in (10, 20):
        graph = training(layers)
        with (
            counted(monkeypatch, simplify, "_rewritten", "copy_node") as rules,
            counted(monkeypatch, fuse, "classify", "unit_of", "make_kernel") as joins,
        ):
            manager.run(graph, pipeline.PASSES)
        found.append(rules | joins)
    assert all(count > 50 for count in found[0].values())
    for name, count in found[0].items():
        assert 1.8 * count < found[1][name] < 2.2 * count, name


def test_simplify_tries_no_rule_twice_on_a_node_that_has_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = training(10)
    simplify = module_of(manager.PASSES["simplify"])
    with counted(monkeypatch, simplify, "_rewritten", "copy_node") as counts:
        manager.PASSES["simplify"](graph)
    assert counts["copy_node"] > 3 * len(graph.nodes)  # sweeps
    assert counts["_rewritten"] < 0.75 * counts["copy_node"]


def test_graphs_may_be_deep() -> None:
    x = value = gx.placeholder("x", (4,))
    for number in range(1500):
        value = gx.tanh(value) if number % 2 else value * x
    graph = gx.compile([x], [value, gx.sum(value)]).graph
    fused, _ = manager.run(graph, pipeline.PASSES)
    assert len(fused.nodes) < 50
    assert len(pipeline.lower_kernels(fused, jit.host_target())) == len(fused.nodes)


def test_a_deep_chain_and_its_gradient_are_fused_in_linear_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every link saves values for the gradient, so groups have as many neighbours as fuse allows them members."""
    fuse: Any = module_of(manager.PASSES["fuse"])
    looks, leaves = 0, fuse._Fusion._leaves

    def counting(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return bool(leaves(*args))

    monkeypatch.setattr(fuse._Fusion, "_leaves", counting)
    found = []
    for links in (200, 400):
        x = value = gx.placeholder("x", (64,))
        for number in range(links):
            value = gx.tanh(value) if number % 2 else value * x
        loss = gx.sum(value)
        graph = bind(gx.compile([x], [loss, *gx.grad(loss, [x])]).graph, {})
        looks = 0
        with counted(monkeypatch, fuse, "classify", "unit_of", "make_kernel") as joins:
            manager.run(graph, pipeline.PASSES)
        found.append(joins)
        assert looks < 150 * len(graph.nodes)  # the members of a group are not looked at again for each neighbour
    for name, count in found[0].items():
        assert 1.7 * count < found[1][name] < 2.3 * count, name
