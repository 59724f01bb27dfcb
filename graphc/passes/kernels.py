"""Kernel nodes: a body with positional inputs, a name that says what it does, the line of its main node.

Inputs are p0, p1, … in the order of their first use, nodes stand in the order in which the outputs need them, and
reshapes of operands are views in front of the kernel: layers that do the same have equal text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphc.ir import source
from graphc.ir.graph import Graph, Node, Value, make_node, topological
from graphc.ir.op import OPS, Contraction, Generator, Movement
from graphc.passes.forms import Contract, Form, Opaque, Rows

NAME_LENGTH = 40


def make_kernel(nodes: Sequence[Node], outputs: Sequence[Value], form: Form, new: dict[Value, Value]) -> None:
    """Make the kernel that computes `outputs` with `nodes`, on operands from `new`, and enter its outputs there."""
    inside: dict[Value, Value] = {}
    origin: dict[Value, Value] = {}
    views = _leading_views(nodes)
    for node in nodes:
        if node in views:
            continue
        for value in node.inputs:
            if value not in inside:
                inside[value] = Value(value.type)
                origin[inside[value]] = value
        clone((node,), inside)
    results = tuple(inside[value] for value in outputs)
    ordered = topological(results)
    inputs = tuple(dict.fromkeys(v for node in ordered for v in node.inputs if v.node is None))
    for position, value in enumerate(inputs):
        value.name = f"p{position}"
    name = _name(ordered)
    attrs = {"name": name, "body": Graph(name, inputs, (), ordered, results)}
    operands = [_outside(origin[value], new) for value in inputs]
    with source.located(_main_node(form, outputs).location):
        kernel = make_node(OPS["kernel"], operands, attrs)
    new.update(zip(outputs, kernel.outputs, strict=True))


def clone(nodes: Iterable[Node], new: dict[Value, Value]) -> None:
    """Make nodes again, on the operands that `new` has for theirs, and enter their outputs there."""
    for node in nodes:
        with source.located(node.location):
            copy = make_node(node.op, (new.get(value, value) for value in node.inputs), node.attrs)
        new.update(zip(node.outputs, copy.outputs, strict=True))


def _leading_views(nodes: Iterable[Node]) -> set[Node]:
    """The reshapes of a kernel's operands."""
    found: set[Node] = set()
    made: set[Value] = set()
    for node in nodes:
        if node.op.name == "reshape" and made.isdisjoint(node.inputs):
            found.add(node)
        else:
            made.update(node.outputs)
    return found


def _outside(value: Value, new: dict[Value, Value]) -> Value:
    """What stands for a value between the kernels; a reshape is made when it is first asked for."""
    if value not in new and value.node is not None and value.node.op.name == "reshape":
        operand = value.node.inputs[0]
        new[operand] = _outside(operand, new)
        clone((value.node,), new)
    return new.get(value, value)


def _main_node(form: Form, outputs: Sequence[Value]) -> Node:
    match form:
        case Contract(contraction=node) | Opaque(node=node):
            return node
        case Rows(reductions=(node, *_)) | Rows(accumulations=(node, *_)):
            return node
    (node, *_) = [value.node for value in reversed(outputs) if value.node is not None]
    return node


def _name(nodes: Iterable[Node]) -> str:
    """What a kernel does: its operations, each once, cut to a readable length."""
    named = [node for node in nodes if not isinstance(node.op.kind, Generator)]
    work = [node for node in named if not isinstance(node.op.kind, Movement) and node.op.name != "convert"]
    work.sort(key=lambda node: not isinstance(node.op.kind, Contraction))
    words = dict.fromkeys(node.op.name for node in work or named or nodes)
    name = ""
    for word in words:
        if name and len(name) + len(word) >= NAME_LENGTH:
            break
        name += f"_{word}" if name else word
    return name
