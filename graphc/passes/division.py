"""One of the equal parts of a batch: nodes on parts of their operands, for what `passes.mapped` says is mapped.

Before: `%1 = tanh %0`, %0: f32[32,256], which is mapped along axis 0.  After, one of 2 parts: the same, f32[16,256].

A scan's step is divided with it. What is not mapped but repeated along the axis is made again, smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphc.ir.graph import Graph, Node, Value, copy_node, make_node, topological
from graphc.ir.op import Elementwise, Scan
from graphc.ir.types import TensorType
from graphc.passes.mapped import axis_before, in_step

_EXTENTS = {"reshape": "shape", "broadcast": "shape", "iota": "shape", "slice": "stop"}  # attributes that hold them


@dataclass(frozen=True, slots=True)
class Division:
    """A batch of so many examples in so many parts."""

    batch: int
    parts: int

    def type(self, whole: TensorType, axis: int) -> TensorType:
        """The type of a part."""
        return whole.with_shape(tuple(n // self.parts if place == axis else n for place, n in enumerate(whole.extents)))

    def part(self, node: Node, axes: Mapping[Value, int], new: Mapping[Value, Value]) -> Sequence[Value]:
        """The node on parts of its mapped operands. `axes`: of what is mapped; `new`: what stands for values now."""
        inputs = [new.get(value, value) for value in node.inputs]
        if isinstance(node.op.kind, Scan):
            return self._loop(node, axes, inputs)
        out = axes.get(node.output)
        if out is not None and (isinstance(node.op.kind, Elementwise) or node.op.name == "concat"):
            pairs = zip(node.inputs, inputs, strict=True)
            inputs = [value if old in axes else _narrow(value, out, self.parts) for old, value in pairs]
        return (_narrowed(node, inputs, out, self.parts),)

    def _loop(self, node: Node, axes: Mapping[Value, int], inputs: list[Value]) -> Sequence[Value]:
        """A scan on parts: its step on parts, from parts of the first carries."""
        body: Graph = node.attrs["body"]
        inner = in_step(node, [axes.get(value) for value in node.inputs], self.batch)
        for place, (state, old) in enumerate(zip(body.state, node.inputs, strict=False)):
            if state in inner and old not in axes:
                inputs[place] = _narrow(inputs[place], inner[state], self.parts)
        new = {}
        for value in (*body.inputs, *body.state):
            type = self.type(value.type, inner[value]) if value in inner else value.type
            new[value] = Value(type, name=value.name)
        for step in body.nodes:
            is_mapped = any(value in inner for value in step.inputs)
            given = tuple(new.get(value, value) for value in step.inputs)
            made = self.part(step, inner, new) if is_mapped else copy_node(step, given)
            new.update(zip(step.outputs, made, strict=True))
        results = tuple(new[value] for value in body.outputs)
        next = tuple((new[state], new[value]) for state, value in body.next)
        states, given = (tuple(new[value] for value in values) for values in (body.state, body.inputs))
        nodes = topological((*results, *(value for _, value in next)))
        narrow_body = Graph(body.name, given, states, nodes, results, next)
        return make_node(node.op, tuple(inputs), {**node.attrs, "body": narrow_body}, node.location).outputs


def _narrowed(node: Node, inputs: Iterable[Value], axis: int | None, parts: int) -> Value:
    """The node on operands whose axes are one of `parts` as long; `axis`: the output's that is, too."""
    attrs, name = dict(node.attrs), _EXTENTS.get(node.op.name)
    if name is not None and axis is not None:
        attrs[name] = tuple(n // parts if place == axis else n for place, n in enumerate(attrs[name]))
    return Node(node.op, tuple(inputs), attrs, node.location).output


def _narrow(value: Value, axis: int, parts: int) -> Value:
    """One part of a value for which `can_narrow`."""
    node = value.node
    assert node is not None
    before = axis_before(node, axis)
    inputs = [operand if before is None else _narrow(operand, before, parts) for operand in node.inputs]
    return _narrowed(node, inputs, axis, parts)
