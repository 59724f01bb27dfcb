"""Every rule of the verifier, broken by a graph."""

from __future__ import annotations

from typing import Any

import pytest

from graphc import ops
from graphc.errors import VerifyError
from graphc.ir.graph import Graph, Node, Value, build
from graphc.ir.op import OPS, Elementwise, Op
from graphc.ir.text import parse
from graphc.ir.types import DType, TensorType
from graphc.ir.verify import verify


def value(name: str, *shape: int) -> Value:
    return Value(TensorType(DType.F32, shape), name=name)


def retyped() -> Node:
    """A node whose output type is not what its op infers."""
    node = Node(OPS["exp"], (value("x", 3),), {}, None)
    object.__setattr__(node, "outputs", (Value(TensorType(DType.F32, (4,)), node=node),))
    return node


def broken() -> dict[str, tuple[int, Graph]]:
    x, w = value("x", 3), value("w", 3)
    y = ops.exp(x)
    z = ops.neg(y)
    assert y.node is not None and z.node is not None
    foreign = Node(Op("exp", Elementwise(), lambda t: t, None), (x,), {}, None)
    odd: Any = Node(OPS["exp"], (x,), {}, None)
    object.__setattr__(odd, "attrs", {"note": object()})
    wrong = retyped()
    body = Graph("body", (value("p0", 3),), (w,), (), (w,), ())
    kernel = ops.kernel([x], name="k", body=body)
    return {
        "twice": (1, Graph("f", (x, value("x", 3)), (), (), ())),
        "empty": (1, Graph("f", (value("", 3),), (), (), ())),
        "computed": (1, Graph("f", (y,), (), (), ())),
        "order": (2, Graph("f", (x,), (), (z.node, y.node), (z,))),
        "stranger": (2, Graph("f", (w,), (), (y.node,), (y,))),
        "type": (3, Graph("f", wrong.inputs, (), (wrong,), wrong.outputs)),
        "op": (3, Graph("f", (x,), (), (foreign,), foreign.outputs)),
        "result": (4, Graph("f", (x,), (), (), (y,))),
        "next": (5, Graph("f", (x,), (w,), (), (), ((w, x), (w, x)))),
        "next of an input": (5, Graph("f", (x,), (w,), (), (), ((x, w),))),
        "attribute": (6, Graph("f", (x,), (), (odd,), ())),
        "body": (7, Graph("f", (x,), (), (kernel,), kernel.outputs)),
    }


@pytest.mark.parametrize("case", broken())
def test_a_broken_rule_is_named(case: str) -> None:
    rule, graph = broken()[case]
    graph = Graph(*(graph.name, graph.inputs, graph.state, graph.nodes, graph.outputs, graph.next))
    with pytest.raises(VerifyError, match=rf"rule {rule}:" if case != "body" else "rule [17]"):
        verify(graph)


def test_a_good_graph_passes() -> None:
    x, w = value("x", 3), value("w", 3)
    verify(build("f", [x], [ops.exp(x)], [(w, ops.add(w, x))]))


def test_a_kernel_that_returns_a_value_twice_is_refused() -> None:
    """Its native code stored one of the two, and left the other as it was."""
    graph = parse(
        """graph f(%x: f32[3]) {
  %0, %1 = kernel %x name="exp" : f32[3], f32[3] {
    graph exp(%a: f32[3]) {
      %0 = exp %a : f32[3]
      return %0, %0
    }
  }
  return %0, %1
}
"""
    )
    with pytest.raises(VerifyError, match="rule 7: the body of kernel exp returns a value twice"):
        verify(graph)
