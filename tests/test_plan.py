"""Memory plans: where values lie, when they share memory, and that the verifier sees every mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
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
from graphc.plan.verify import Memory

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


def check(x: Value, size: int = 1_000_000) -> Value:
    return single("check", lambda p: ops.check_index(p, size=size, what="label"), x)


def matmul(a: Value, b: Value) -> Value:
    return single("matmul", lambda p, q: ops.contract(p, q, spec="mk,kn->mn"), a, b)


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
                    for target, array in zip(targets, found):
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


# What is shared --------------------------------------------------------------------------------------------------


def test_a_chain_of_elementwise_kernels_needs_the_memory_of_one_value() -> None:
    x = given_value("x", 16, 16)
    first = exp(x)
    second = exp(first)
    plan = planned(build("f", [x], [total(exp(second))]))
    assert plan.arena_bytes == x.type.nbytes
    assert plan.slots[second].over is first
    assert computes(plan)


def test_a_value_read_out_of_line_is_not_written_over() -> None:
    x = given_value("x", 16, 16)
    first = exp(x)
    second = turned(first)
    plan = planned(build("f", [x], [total(second)]))
    assert plan.slots[second].over is None
    assert plan.arena_bytes == 2 * x.type.nbytes
    assert computes(plan)


def test_a_value_that_is_read_later_is_not_written_over() -> None:
    x = given_value("x", 16, 16)
    first = exp(x)
    second = exp(first)
    plan = planned(build("f", [x], [total(add(first, second))]))
    assert plan.slots[second].over is None
    assert computes(plan)


def test_a_view_keeps_its_operand_live() -> None:
    x = given_value("x", 8, 8)
    first = exp(x)
    flat = ops.reshape(first, shape=(64,))
    other = turned(turned(x))
    plan = planned(build("f", [x], [total(flat), total(other), total(add(flat, ops.reshape(other, shape=(64,))))]))
    assert plan.slots[flat].view is first
    assert plan.slots[flat].address == plan.slots[first].address
    assert computes(plan)


def test_outputs_are_written_where_the_caller_wants_them() -> None:
    x = given_value("x", 8, 8)
    y = exp(x)
    flat = ops.reshape(y, shape=(64,))
    plan = planned(build("f", [x], [flat, add(y, y)]))
    assert place_of(plan, y) == place_of(plan, flat) == "output 0"
    assert plan.arena_bytes == 0 and not plan.copies
    assert computes(plan)


def test_outputs_that_lie_elsewhere_are_copied() -> None:
    x, w = given_value("x", 4), given_value("w", 4)
    c, y = constant([1, 2, 3, 4]), exp(x)
    plan = planned(build("f", [x], [x, w, c, y, y, ops.reshape(y, shape=(2, 2))], [(w, add(w, y))]))
    copied = [(str(copy.source), str(copy.target)) for copy in plan.copies]
    assert copied[:3] == [("input 0", "output 0"), ("state 0", "output 1"), ("constant 0", "output 2")]
    assert copied[3:] == [("output 3", "output 4"), ("output 3", "output 5")]
    assert computes(plan)


def test_equal_constants_are_held_once() -> None:
    x = given_value("x", 4)
    a, b, c = constant([1, 2, 3, 4]), constant([[1, 2], [3, 4]]), constant([4, 3, 2, 1])
    plan = planned(build("f", [x], [add(add(x, a), add(ops.reshape(b, shape=(4,)), c))]))
    assert [literal.array.tolist() for literal in plan.constants] == [[1, 2, 3, 4], [4, 3, 2, 1]]
    assert place_of(plan, a) == place_of(plan, b) == "constant 0"
    assert computes(plan)


def test_scratch_is_live_during_its_call_alone() -> None:
    x = given_value("x", 16, 16)
    first = turned(x)
    second = turned(first)
    graph = build("f", [x], [total(second)])
    assert first.node is not None and second.node is not None
    plan = planned(graph, {first.node: 3000, second.node: 3000})
    scratch = [call.scratch for call in plan.calls]
    assert [None if s is None else s.bytes for s in scratch] == [3000, 3000, None]
    assert plan.arena_bytes == plan.lower_bound == 2 * 1024 + 3008
    assert computes(plan)


def test_results_that_nobody_reads_have_memory_of_their_own() -> None:
    x = given_value("x", 16)
    used, _ = kernel("both", lambda p: (ops.exp(p), ops.neg(p)), x)
    plan = planned(build("f", [x], [total(used)]))
    assert plan.arena_bytes == 128
    assert computes(plan)


def test_values_without_elements_need_no_memory() -> None:
    x = given_value("x", 0, 4)
    plan = planned(build("f", [x], [sums(exp(x)), exp(exp(x))]))
    assert plan.arena_bytes == 0
    assert computes(plan)


def test_unbound_dimensions_are_refused() -> None:
    x = Value(TensorType(float32, (named("batch"),)), name="x")
    with pytest.raises(ShapeError, match="unbound"):
        make(build("f", [x], [total(ops.exp(ops.exp(x)))]))


# Order -----------------------------------------------------------------------------------------------------------


def test_branches_are_finished_one_after_the_other() -> None:
    x = given_value("x", 64, 64)
    branches = [single("big", lambda p, i=i: ops.mul(ops.transpose(p, perm=(1, 0)), p), x) for i in range(8)]
    means = [total(branch) for branch in branches]
    result = means[0]
    for mean in means[1:]:
        result = add(result, mean)
    graph = build("f", [x], [result])
    wide = dict.fromkeys((*(branch.node for branch in branches), *graph.nodes))
    plan = planned(Graph("f", graph.inputs, (), tuple(node for node in wide if node), graph.outputs))
    assert plan.arena_bytes <= x.type.nbytes + 8 * ALIGNMENT
    assert computes(plan)


def test_the_last_reader_of_a_large_value_comes_before_smaller_work() -> None:
    x = given_value("x", 32, 32)

    def rows(count: int, large: Value, number: Value) -> Value:
        part = ops.slice(large, start=(0, 0), stop=(count, 32), step=(1, 1))
        return ops.add(part, ops.broadcast(number, shape=(count, 32), axes=()))

    large = exp(x)
    number = total(large)
    half = single("half", lambda p: ops.exp(ops.slice(p, start=(0, 0), stop=(16, 32), step=(1, 1))), large)
    parts = [single("part", lambda p, n: rows(8, p, n), x, number) for _ in range(4)]

    def join(first: Value, *others: Value) -> Value:
        result = ops.reduce_sum(first, axes=(0, 1))
        for other in others:
            result = ops.add(result, ops.reduce_sum(other, axes=(0, 1)))
        return result

    graph = build("f", [x], [single("join", join, *parts, half)])
    plan = planned(graph)
    assert [call.node for call in plan.calls][2] is half.node
    assert plan.lower_bound == 4096 + ALIGNMENT + 2048
    assert computes(plan)


def test_checks_come_first_and_before_every_write_to_state() -> None:
    x, w = given_value("x", 4), given_value("w", 4)
    label = given_value("label", 3, dtype=int64)
    late = check(single("shift", lambda p: ops.add(p, p), label))
    read = single("take", lambda p, i: ops.gather(p, i, axis=0), x, late)
    plan = planned(build("f", [x, label], [read], [(w, exp(w))]))
    assert [call.node.attrs["name"] for call in plan.calls[:2]] == ["shift", "check"]
    assert [call.is_check for call in plan.calls] == [False, True, False, False]
    assert plan.calls[1].results == () and plan.slots[late].view is not None
    assert not plan.copies
    assert computes(plan)


def test_state_that_a_check_depends_on_is_staged() -> None:
    w = given_value("w", 4, dtype=int64)
    new = single("double", lambda p: ops.add(p, p), w)
    checked = check(new)
    graph = build("f", [], [total(checked)], [(w, new)])
    plan = planned(graph)
    assert [str(copy.target) for copy in plan.copies] == ["state 0"]
    assert place_of(plan, new).startswith("arena")
    assert computes(plan)


def test_an_unfused_check_is_a_view_as_well() -> None:
    label = given_value("label", 3, dtype=int64)
    checked = ops.check_index(label, size=10, what="label")
    plan = planned(build("f", [label], [total(checked)]))
    assert place_of(plan, checked) == "input 0" and plan.calls[0].is_check


def test_plans_are_reproducible() -> None:
    x = given_value("x", 8, 8)
    graph = build("f", [x], [total(add(exp(turned(x)), turned(exp(x))))])
    assert str(make(graph)) == str(make(graph))


# State -----------------------------------------------------------------------------------------------------------


def test_state_is_updated_in_place_after_its_other_readers() -> None:
    x, w = given_value("x", 8, 8), given_value("w", 8, 8)
    new = single("update", ops.sub, w, exp(x))  # stands before the reader of the old value in the graph's order
    later = total(matmul(x, w))
    plan = planned(build("f", [x], [total(new), later], [(w, new)]))
    assert place_of(plan, new) == "state 0" and plan.slots[new].over is w
    assert not plan.copies
    assert [call.node for call in plan.calls].index(new.node) > 1  # type: ignore[arg-type]
    assert computes(plan)


def test_state_is_staged_when_the_update_reads_it_out_of_line() -> None:
    w = given_value("w", 8, 8)
    plan = planned(build("f", [], [], [(w, turned(w))]))
    assert [(str(copy.source), str(copy.target)) for copy in plan.copies] == [("arena+0", "state 0")]
    assert computes(plan)


def test_state_is_staged_when_the_update_reads_a_second_view_of_it_out_of_line() -> None:
    w = given_value("w", 8, 8)
    both = single("both", lambda p, q: ops.add(p, ops.transpose(q, perm=(1, 0))), w, ops.reshape(w, shape=(8, 8)))
    plan = planned(build("f", [], [], [(w, both)]))
    assert [str(copy.target) for copy in plan.copies] == ["state 0"]
    assert computes(plan)


def test_state_whose_old_value_nobody_reads_is_written_in_place() -> None:
    x, w = given_value("x", 8), given_value("w", 8)
    plan = planned(build("f", [x], [], [(w, exp(x))]))
    assert not plan.copies and plan.arena_bytes == 0
    assert computes(plan)


def test_state_is_staged_when_a_reader_of_the_old_value_needs_the_new_one() -> None:
    w = given_value("w", 8, 8)
    new = exp(w)
    plan = planned(build("f", [], [total(matmul(new, w))], [(w, new)]))
    assert [str(copy.target) for copy in plan.copies] == ["state 0"]
    assert computes(plan)


def test_one_kernel_updates_a_weight_and_its_momentum_in_place() -> None:
    x, w, m = given_value("x", 8, 8), given_value("w", 8, 8), given_value("m", 8, 8)

    def update(w: Value, m: Value, g: Value) -> tuple[Value, Value]:
        new = ops.add(m, g)
        return ops.sub(w, new), new

    new_w, new_m = kernel("update", update, w, m, x)
    plan = planned(build("f", [x], [total(matmul(w, m))], [(w, new_w), (m, new_m)]))
    assert not plan.copies and plan.arena_bytes == 8 * 8 * 4
    assert computes(plan)


def test_a_next_state_that_is_also_an_output_is_copied_once() -> None:
    w = given_value("w", 8)
    new = exp(w)
    plan = planned(build("f", [], [new], [(w, new)]))
    assert [(str(c.source), str(c.target)) for c in plan.copies] == [("output 0", "state 0")]
    assert computes(plan)


def test_two_states_with_one_next_value() -> None:
    a, b = given_value("a", 8), given_value("b", 8)
    new = add(a, b)
    plan = planned(build("f", [], [], [(a, new), (b, new)]))
    assert [(str(c.source), str(c.target)) for c in plan.copies] == [("state 0", "state 1")]
    assert computes(plan)


def test_swapped_states_pass_through_the_arena() -> None:
    a, b = given_value("a", 8), given_value("b", 8)
    plan = planned(build("f", [], [], [(a, b), (b, a)]))
    assert [(str(c.source), str(c.target)) for c in plan.copies] == [
        ("state 0", "arena+0"),
        ("state 1", "state 0"),
        ("arena+0", "state 1"),
    ]
    assert plan.arena_bytes == ALIGNMENT
    assert computes(plan)


def test_states_move_along_a_delay_line_without_staging_what_is_given() -> None:
    x = given_value("x", 8)
    a, b, c = (given_value(name, 8) for name in "abc")
    plan = planned(build("f", [x], [], [(a, x), (b, a), (c, b)]))
    assert [str(copy.target) for copy in plan.copies] == ["state 2", "state 1", "state 0"]
    assert plan.arena_bytes == 0
    assert computes(plan)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_rotated_states_need_one_temporary(length: int) -> None:
    states = [given_value(f"s{i}", 8) for i in range(length)]
    outside = given_value("outside", 8)
    rotated = [*zip(states, [*states[1:], states[0]]), (outside, states[1])]
    plan = planned(build("f", [], [outside], rotated))
    assert plan.arena_bytes == ALIGNMENT
    assert computes(plan)


def test_a_state_that_becomes_itself_is_not_touched() -> None:
    w, v = given_value("w", 8), given_value("v", 8)
    same = ops.reshape(ops.reshape(w, shape=(2, 4)), shape=(8,))
    plan = planned(build("f", [], [], [(w, same)], [v]))
    assert plan.steps == ()
    assert computes(plan)


def test_an_output_shows_the_state_before_the_step() -> None:
    w = given_value("w", 8)
    plan = planned(build("f", [], [w], [(w, exp(w))]))
    assert [type(step) for step in plan.steps] == [Copy, Call]
    assert place_of(plan, plan.calls[0].node.output) == "state 0"
    assert computes(plan)


# Offsets ---------------------------------------------------------------------------------------------------------

intervals = st.lists(
    st.builds(lambda size, first, length: Interval(size * 64, first, first + length), *[st.integers(0, 12)] * 3),
    max_size=40,
)


@given(intervals)
def test_intervals_that_are_live_together_do_not_overlap(found: list[Interval]) -> None:
    bound = max(live_bytes(found, 32), default=0)
    offsets, needed = place(found, bound)
    spans = [(offset, offset + i.bytes, i.first, i.last) for offset, i in zip(offsets, found, strict=True)]
    for number, (low, high, first, last) in enumerate(spans):
        for other_low, other_high, other_first, other_last in spans[:number]:
            together = first <= other_last and other_first <= last
            assert not together or high <= other_low or other_high <= low
    assert needed == max((high for _, high, _, _ in spans), default=0)
    assert bound == max((sum(i.bytes for i in found if i.first <= t <= i.last) for t in range(25)), default=0)
    assert needed >= bound


@pytest.mark.parametrize("seed", range(10))
def test_the_arena_of_a_deep_network_is_within_a_twentieth_of_the_bound(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [int(n) for n in random.integers(1, 200, 12)]
    x = given_value("x", 32, sizes[0])
    weights = [given_value(f"w{i}", *pair) for i, pair in enumerate(pairwise(sizes))]
    seen = [x]
    for weight in weights:
        seen.append(matmul(seen[-1], weight))
    back, updates = exp(seen[-1]), []
    for weight, activation in zip(reversed(weights), reversed(seen[:-1])):
        gradient = single("dw", lambda p, q: ops.contract(p, q, spec="mk,mn->kn"), activation, back)
        updates.append((weight, single("update", ops.sub, weight, gradient)))
        back = single("dx", lambda p, q: ops.contract(p, q, spec="mn,kn->mk"), back, weight)
    plan = planned(build("f", [x], [total(seen[-1])], updates))
    assert not plan.copies
    assert plan.arena_bytes <= 1.05 * plan.lower_bound


# Any graph -------------------------------------------------------------------------------------------------------

SIDE = 6


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Kernels of all sorts on square, flat and single values, with any of them as outputs and next states."""
    inputs = [given_value(f"x{i}", SIDE, SIDE) for i in range(draw(st.integers(0, 2)))]
    state = [given_value(f"s{i}", SIDE, SIDE) for i in range(draw(st.integers(1, 4)))]
    labels = [given_value("label", SIDE, dtype=int64), given_value("count", SIDE, dtype=int64)]
    square = [*inputs, *state, constant(np.ones((SIDE, SIDE))), constant(np.eye(SIDE))]
    columns: list[Value] = []
    for _ in range(draw(st.integers(0, 14))):
        a, b = (draw(st.sampled_from(square)) for _ in range(2))
        match draw(st.integers(0, 8)):
            case 0:
                square.append(ops.add(a, b))
            case 1:
                square.append(add(a, b))
            case 2:
                square += kernel("both", lambda p, q: (ops.sub(p, q), ops.add(p, q)), a, b)
            case 3:
                square.append(turned(a))
            case 4:
                flat = (ops.reshape(v, shape=(SIDE * SIDE,)) for v in (a, b))
                square.append(ops.reshape(single("mul", ops.mul, *flat), shape=(SIDE, SIDE)))
            case 5:
                columns.append(sums(a))
            case 6:
                row = draw(st.sampled_from([*columns, sums(b)]))
                spread = lambda p, q: ops.add(p, ops.broadcast(q, shape=(SIDE, SIDE), axes=(0,)))  # noqa: E731
                square.append(single("spread", spread, a, row))
            case 7:
                label = draw(st.sampled_from(labels))
                labels.append(check(label) if draw(st.booleans()) else add(label, label))
            case _:
                square.append(single("take", lambda p, i: ops.gather(p, i, axis=0), a, draw(st.sampled_from(labels))))
    pool = [*square, *columns, *labels]
    outputs = draw(st.lists(st.sampled_from(pool), max_size=4))
    changed = draw(st.lists(st.sampled_from([*state, labels[1]]), unique=True))
    next = [(s, draw(st.sampled_from(labels if s is labels[1] else square))) for s in changed]
    return build("any", [*inputs, labels[0]], outputs, next, [*state, labels[1]])


def with_scratch(graph: Graph, sizes: list[int]) -> dict[Node, int]:
    calls = [node for node in graph.nodes if node.op.name == "kernel"]
    return {node: size for node, size in zip(calls, sizes) if size}


scratch_sizes = st.lists(st.sampled_from([0, 8, 200]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(graphs(), scratch_sizes)
def test_the_plan_of_any_graph_computes_it(graph: Graph, sizes: list[int]) -> None:
    plan = planned(graph, with_scratch(graph, sizes))
    assert computes(plan)
    assert plan.arena_bytes <= sum(max(ALIGNMENT, slot.bytes) for slot in plan.slots.values()) + 256 * len(sizes)
    assert str(plan).startswith("plan any: ")


@settings(max_examples=150, deadline=None)
@given(graphs(), scratch_sizes)
def test_the_bound_is_what_is_live_at_the_fullest_step(graph: Graph, sizes: list[int]) -> None:
    plan = make(graph, with_scratch(graph, sizes))
    live: dict[int, int] = {}
    most = 0
    for step in reversed(plan.steps):  # backwards: bytes are live above their reader, up to their writer
        reads, writes, scratch = accesses(step)
        most = max(most, sum((live | reads | writes | scratch).values()))
        live = {offset: size for offset, size in live.items() if offset not in writes} | reads
    assert not live
    assert plan.lower_bound == most <= plan.arena_bytes


def accesses(step: Call | Copy) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Offsets and rounded sizes in the arena that a step reads, writes and uses."""

    def rounded(addresses: tuple[Address, ...], sizes: list[int]) -> dict[int, int]:
        found = zip(addresses, sizes, strict=True)
        return {a.offset: -(-size // ALIGNMENT) * ALIGNMENT for a, size in found if a.base is Base.ARENA}

    if isinstance(step, Copy):
        return rounded((step.source,), [step.bytes]), rounded((step.target,), [step.bytes]), {}
    reads = rounded(step.operands, [value.type.nbytes for value in step.node.inputs])
    made = step.node.outputs if step.results else ()
    scratch = rounded((step.scratch.address,), [step.scratch.bytes]) if step.scratch else {}
    return reads, rounded(step.results, [value.type.nbytes for value in made]), scratch


# Wrong plans -----------------------------------------------------------------------------------------------------


def moved(address: Address, choice: int) -> Address:
    """Another address nearby."""
    bases = list(Base)
    match choice % 3:
        case 0:
            return replace(address, offset=address.offset + ALIGNMENT * (choice % 7 - 3))
        case 1:
            return replace(address, index=choice % 4)
        case _:
            return Address(bases[choice % len(bases)], choice % 3)


def spoiled(plan: Plan, draw: Callable[[st.SearchStrategy[int]], int]) -> Plan:
    """A plan with one mistake: a step left out, swapped with its neighbour, or with one address changed."""
    steps = list(plan.steps)
    at, choice = draw(st.integers(0, len(steps) - 1)), draw(st.integers(0, 200))
    match draw(st.integers(0, 3)), steps[at]:
        case 0, _:
            del steps[at]
        case 1, _:
            steps[at - 1], steps[at] = steps[at], steps[at - 1]
        case _, Copy(source=source, target=target) as copy:
            changed = draw(st.booleans())
            steps[at] = replace(
                copy, **({"source": moved(source, choice)} if changed else {"target": moved(target, choice)})
            )
        case _, Call(operands=operands, results=results) as call:
            addresses = [*operands, *results]
            if addresses:
                which = draw(st.integers(0, len(addresses) - 1))
                addresses[which] = moved(addresses[which], choice)
            steps[at] = replace(
                call, operands=tuple(addresses[: len(operands)]), results=tuple(addresses[len(operands) :])
            )
    return replace(plan, steps=tuple(steps))


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data())
def test_a_spoiled_plan_is_rejected_unless_it_still_computes_the_graph(graph: Graph, data: st.DataObject) -> None:
    plan = make(graph)
    if not plan.steps:
        return
    wrong = spoiled(plan, data.draw)
    try:
        verify(graph, wrong)
    except VerifyError:
        return
    assert computes(wrong)


def small() -> tuple[Graph, Plan]:
    """A plan with a check, a view, scratch, a value in place, a staged and an updated state."""
    x, label = given_value("x", 4, 8), given_value("label", 4, dtype=int64)
    w, s = given_value("w", 8, 8), given_value("s", 4, 8)
    checked = check(label)
    hidden = exp(matmul(x, w))
    picked = single("take", lambda p, i: ops.gather(p, i, axis=0), ops.reshape(hidden, shape=(8, 4)), checked)
    gradient = single("dw", lambda p, q: ops.contract(p, q, spec="mk,mn->kn"), x, hidden)
    new = single("update", ops.sub, w, gradient)
    graph = build("step", [x, label], [total(picked)], [(w, new), (s, x)])
    assert gradient.node is not None
    return graph, planned(graph, {gradient.node: 500})


def test_a_plan_prints_sizes_steps_and_values() -> None:
    assert str(small()[1]) == PRINTED


def test_one_long_step_does_not_widen_the_others() -> None:
    states = [given_value(f"a_parameter_with_a_long_name_{n}", 4) for n in range(6)]
    both = single("both", lambda *p: ops.add(p[0], p[-1]), *states)
    printed = str(planned(build("step", [], [exp(states[0]), both], [], states)))
    short, long = sorted(len(line) for line in printed.split("\n") if re.match(r" +\d+  %", line))
    assert short < 130 < len(", ".join(state.name for state in states)) < long


PRINTED = """\
plan step: calls 7, copies 1, views 2, in place 2
arena 896 bytes, 1.000 x the 896 that are live at once

steps, and the bytes of arena that are live
    0  %3 = check %label                           0
    1  %0 = matmul %x, %w                        128 #####
    2  %1 = exp %0                               128 #####
    3  %4 = take %2, %3                          192 #######
    4  %5 = total %4                             192 #######
    5  %6 = dw %x, %1 with 500 bytes at arena+0  896 ################################
    6  %7 = update %w, %6                        256 #########
    7  copy %x from input 0 to state 1             0

values: bytes, place, and the steps in which they are needed
  %x      f32[4,8]  128  input 0                    0..7
  %label  i64[4]     32  input 1                    0..7
  %w      f32[8,8]  256  state 0                    0..6
  %s      f32[4,8]  128  state 1                    0..0
  %0      f32[4,8]  128  arena+768                  1..2  .##.....
  %1      f32[4,8]  128  arena+768  over %0         2..5  ..####..
  %2      f32[8,4]  128  arena+768  view of %1      2..5
  %3      i64[4]     32  input 1    view of %label  0..7
  %4      f32[4,4]   64  arena+0                    3..4  ...##...
  %5      f32[]       4  output 0                   4..7
  %6      f32[8,8]  256  arena+512                  5..6  .....##.
  %7      f32[8,8]  256  state 0    over %w         6..7
"""


def at(steps: tuple[Call | Copy, ...], name: str) -> int:
    return next(i for i, s in enumerate(steps) if isinstance(s, Call) and s.node.attrs["name"] == name)


def changed(plan: Plan, name: str, **fields: Any) -> Plan:
    """A plan with other fields in the call of one kernel."""
    steps = list(plan.steps)
    steps[at(plan.steps, name)] = replace(plan.calls[at(plan.calls, name)], **fields)
    return replace(plan, steps=tuple(steps))


def in_order(plan: Plan, *order: str) -> Plan:
    calls = tuple(plan.calls[at(plan.calls, name)] for name in order)
    return replace(plan, steps=(*calls, *plan.copies))


def arena(offset: int) -> Address:
    return Address(Base.ARENA, 0, offset)


MISTAKES: dict[str, Callable[[Plan], Plan]] = {
    "1 nodes are never called": lambda p: replace(p, steps=p.steps[:-2] + p.steps[-1:]),
    "is called twice": lambda p: replace(p, steps=(p.steps[0], *p.steps)),
    "operand 0 of .* is not at state 0": lambda p: changed(p, "exp", operands=(Address(Base.STATE, 0),)),
    "leave its": lambda p: replace(p, arena_bytes=p.arena_bytes - ALIGNMENT),
    "there is no input 7": lambda p: changed(p, "check", operands=(Address(Base.INPUT, 7),)),
    "not a multiple of 64": lambda p: changed(p, "exp", results=(arena(8),)),
    "input 0 is written": lambda p: changed(p, "exp", results=(Address(Base.INPUT, 0),)),
    "result 0 of .* overlaps operand 0": lambda p: changed(
        p, "take", results=p.calls[at(p.calls, "take")].operands[:1]
    ),
    "scratch of .* overlaps an operand": lambda p: changed(
        p, "dw", scratch=Scratch(p.calls[at(p.calls, "dw")].operands[1], 8)
    ),
    "results of .* overlap": lambda p: changed(p, "dw", scratch=Scratch(p.calls[at(p.calls, "dw")].results[0], 8)),
    "written before all checks": lambda p: in_order(p, "matmul", "exp", "dw", "update", "check", "take", "total"),
    "read before it was checked": lambda p: in_order(p, "matmul", "exp", "take", "check", "total", "dw", "update"),
    "planned as a check": lambda p: changed(p, "check", is_check=False),
    "0 operands": lambda p: changed(p, "exp", operands=()),
    "state %s is not at state 1": lambda p: replace(p, steps=p.calls),
    "output 0 is not at output 0": lambda p: changed(p, "total", results=(arena(128),)),
    "the copy from input 0": lambda p: replace(p, steps=(*p.calls, replace(p.copies[0], target=p.copies[0].source))),
    "is below the bound": lambda p: replace(p, live_bytes=(10**6,)),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_the_verifier_rejects(message: str) -> None:
    graph, plan = small()
    with pytest.raises(VerifyError, match=message) as failure:
        verify(graph, MISTAKES[message](plan))
    assert re.search(message, failure.value.message)


def test_the_verifier_rejects_another_constant() -> None:
    x = given_value("x", 4)
    graph = build("f", [x], [add(x, constant([1, 2, 3, 4]))])
    with pytest.raises(VerifyError, match="is not the literal"):
        verify(graph, replace(make(graph), constants=(Literal.of(np.ones(4, np.float32)),)))


def test_the_verifier_rejects_a_result_over_an_operand_that_is_read_out_of_line() -> None:
    x = given_value("x", 4, 4)
    first = exp(x)
    second = turned(first)
    graph = build("f", [x], [total(second)])
    plan = make(graph)
    same = plan.slots[first].address
    with pytest.raises(VerifyError, match=r"result 0 of .* overlaps operand 0"):
        verify(graph, changed(changed(plan, "turned", results=(same,)), "total", operands=(same,)))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 3))))
def test_memory_remembers_every_byte(writes: list[tuple[int, int, int]]) -> None:
    tags = [given_value(str(i)) for i in range(4)]
    memory, plain = Memory(20, None), [None] * 20
    for first, second, number in writes:
        start, end = sorted((first, second))
        memory.write(start, end, tags[number])
        plain[start:end] = [tags[number]] * (end - start)  # type: ignore[list-item]
        assert memory.read(start, 20) == set(plain[start:])
        assert memory.read(0, end) == set(plain[:end])
    assert [memory.read(i, i + 1) for i in range(20)] == [{tag} for tag in plain]
