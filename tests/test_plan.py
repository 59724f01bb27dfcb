"""Memory plans: where values lie, when they share memory, and that the verifier sees every mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc import ops
from graphc.errors import ShapeError, VerifyError
from graphc.ir.dim import named
from graphc.ir.graph import Graph, Literal, Node, Value, build, make_node
from graphc.ir.op import OPS
from graphc.ir.types import TensorType, float32, int64
from graphc.plan import ALIGNMENT, Address, Base, Call, Copy, Plan, Scratch, make, verify
from graphc.plan.arena import Interval, live_bytes, place

Array = np.ndarray[Any, Any]

# Graphs ----------------------------------------------------------------------------------------------------------


def given_value(name: str, *shape: int, dtype: Any = float32) -> Value:
    return Value(TensorType(dtype, shape), name=name)


def kernel(name: str, function: Callable[..., Value | tuple[Value, ...]], *operands: Value) -> tuple[Value, ...]:
    """A kernel whose body is what `function` builds."""
    inputs = tuple(Value(value.type, name=f"p{i}") for i, value in enumerate(operands))
    found = function(*inputs)
    body = build(name, inputs, found if isinstance(found, tuple) else (found,))
    return make_node(OPS["kernel"], operands, {"name": name, "body": body}).outputs


def single(name: str, function: Callable[..., Value], *operands: Value) -> Value:
    (result,) = kernel(name, function, *operands)
    return result


def exp(x: Value) -> Value:
    return single("exp", ops.exp, x)


def add(a: Value, b: Value) -> Value:
    return single("add", ops.add, a, b)


def turned(x: Value) -> Value:
    """x + its transpose: may not be written over x."""
    return single("turned", lambda p: ops.add(p, ops.transpose(p, perm=(1, 0))), x)


def sums(x: Value) -> Value:
    return single("sums", lambda p: ops.reduce_sum(p, axes=(1,)), x)


def total(x: Value) -> Value:
    return single("total", lambda p: ops.reduce_sum(p, axes=tuple(range(len(p.shape)))), x)


def check(x: Value, size: int = 10) -> Value:
    return single("check", lambda p: ops.check_index(p, size=size, what="label"), x)


def matmul(a: Value, b: Value) -> Value:
    return single("matmul", lambda p, q: ops.contract(p, q, spec="mk,nk->mn"), a, b)


def constant(array: Any) -> Value:
    return ops.constant(value=Literal.of(np.asarray(array, np.float32)))


def planned(graph: Graph, scratch: Mapping[Node, int] | None = None) -> Plan:
    plan = make(graph, scratch or {})
    verify(graph, plan)
    return plan


def place_of(plan: Plan, value: Value) -> str:
    return str(plan.slots[value].address)


# A step in bytes -------------------------------------------------------------------------------------------------


def evaluate(graph: Graph, feeds: Mapping[Value, Array]) -> dict[Value, Array]:
    """Every value of a graph."""
    known = dict(feeds)
    for node in graph.nodes:
        known.update(zip(node.outputs, results_of(node, [known[value] for value in node.inputs]), strict=True))
    return known


def results_of(node: Node, operands: list[Array]) -> list[Array]:
    if node.op.name == "kernel":
        body: Graph = node.attrs["body"]
        inside = evaluate(body, dict(zip(body.inputs, operands, strict=True)))
        return [inside[value] for value in body.outputs]
    assert node.op.evaluate is not None
    return [np.asarray(node.op.evaluate(*operands, **node.attrs))]


class Machine:
    """The memories of a step as bytes: what was never written is 0xff, which is NaN."""

    def __init__(self, plan: Plan, feeds: Mapping[Value, Array]) -> None:
        graph = plan.graph
        contents = [feeds[value].tobytes() for value in (*graph.inputs, *graph.state)]
        contents += [b"\xff" * value.type.nbytes for value in graph.outputs]
        contents += [literal.data for literal in plan.constants]
        self.plan = plan
        self.memories = [bytearray(data) for data in (*contents, b"\xff" * plan.arena_bytes)]

    def run(self) -> None:
        for step in self.plan.steps:
            match step:
                case Copy(value, source, target):
                    self.store(target, self.load(source, value.type))
                case Call(node, addresses, targets, scratch):
                    operands = [self.load(a, v.type) for a, v in zip(addresses, node.inputs, strict=True)]
                    found = results_of(node, operands)
                    if scratch is not None:
                        self.store(scratch.address, np.full(scratch.bytes, 0xFF, np.uint8))
                    for target, array in zip(targets, found, strict=len(targets) > 0):
                        self.store(target, array)

    def load(self, address: Address, type: TensorType) -> Array:
        memory = self.memories[self.plan.entry(address)]
        data = bytes(memory[address.offset : address.offset + type.nbytes])
        return np.frombuffer(data, type.dtype.numpy).reshape(type.extents)

    def store(self, address: Address, array: Array) -> None:
        memory, data = self.memories[self.plan.entry(address)], array.tobytes()
        assert address.offset + len(data) <= len(memory)
        memory[address.offset : address.offset + len(data)] = data


def computes(plan: Plan) -> bool:
    """Whether carrying out a plan gives the outputs and next states of its graph."""
    graph = plan.graph
    random = np.random.default_rng(0)
    feeds = {
        value: random.integers(0, 5, value.type.extents).astype(value.type.dtype.numpy)
        for value in (*graph.inputs, *graph.state)
    }
    with np.errstate(all="ignore"):
        known = evaluate(graph, feeds)
        machine = Machine(plan, feeds)
        machine.run()
    new = {state: state for state in graph.state} | dict(graph.next)
    expected = [(Address(Base.OUTPUT, i), value) for i, value in enumerate(graph.outputs)]
    expected += [(Address(Base.STATE, i), new[state]) for i, state in enumerate(graph.state)]
    expected += [(Address(Base.INPUT, i), value) for i, value in enumerate(graph.inputs)]
    return all(machine.load(a, v.type).tobytes() == known[v].tobytes() for a, v in expected)
