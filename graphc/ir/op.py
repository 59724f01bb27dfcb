"""Ops: a name with its rules attached, and the table of them all.

Adding an op is one definition: type rule, meaning, gradient and kind. The kind decides how it is lowered and fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphc.ir.index import Index, Piece
from graphc.ir.types import DType, TensorType

if TYPE_CHECKING:
    from graphc.ir.graph import Node, Value


@dataclass(frozen=True, slots=True)
class Elementwise:
    """One element out per element in, all shapes equal. The op's name is the scalar op.

    `linear`: f(x, ...) + f(y, ...) = f(x + y, ...).
    """

    linear: bool = False


@dataclass(frozen=True, slots=True)
class Generator:
    """No operands: an element is a function of its position (constant, iota)."""


@dataclass(frozen=True, slots=True)
class Movement:
    """Elements keep their values and change place.

    `index_map(node, out_index)` returns the pieces that an output element may come from; the first whose
    conditions hold is it, and `fill(node)` is the value where none does.
    """

    index_map: Callable[[Node, tuple[Index, ...]], tuple[Piece, ...]]
    fill: Callable[[Node], float | int | bool] = lambda node: 0


@dataclass(frozen=True, slots=True)
class Reduction:
    """Axes (attribute `axes`) folded away with a scalar op and its identity."""

    combine: str
    identity: Callable[[DType], float | int | bool]


@dataclass(frozen=True, slots=True)
class Contraction:
    """Sum of products over shared letters (attribute `spec`, as in einsum)."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A hand-written lowering, found in loops under the op's name."""


@dataclass(frozen=True, slots=True)
class Call:
    """Holds a graph in the attribute `body`; its meaning is the body's."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Runs the graph in the attribute `body` step by step: its state is carried from one step to the next.

    The operands are the first carries, then slices and constants: the body's state, then its inputs (`parameters`).
    """

    @staticmethod
    def parameters(node: Node) -> tuple[Value, ...]:
        """What stands in the body for each operand; for a stacked one it is one slice."""
        body = node.attrs["body"]
        return (*body.state, *body.inputs)


Kind = Elementwise | Generator | Movement | Reduction | Contraction | Opaque | Call | Scan


@dataclass(frozen=True, slots=True)
class Op:
    """A primitive.

    infer(*operand_types, **attrs) -> TensorType        raises ShapeError, DTypeError, ArgumentError
    evaluate(*arrays, **attrs) -> array                 NumPy; receives numbers for all dimensions
    vjp(cotangent, node) -> one cotangent per operand   None in the tuple: no gradient flows to that operand.
                                                        None instead of a rule: there is none, and autodiff raises
                                                        (but for a scan, whose rule is autodiff's own).
    """

    name: str
    kind: Kind
    infer: Callable[..., TensorType | tuple[TensorType, ...]]
    evaluate: Callable[..., Any] | None
    vjp: Callable[[Value, Node], Sequence[Value | None]] | None = None
    doc: str = ""  # one line: the meaning, as a formula where there is one

    def __repr__(self) -> str:
        return f"<op {self.name}>"


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Enter `op` in the table; a name may be taken once."""
    if op.name in OPS:
        raise ValueError(f"op {op.name} is defined twice")
    OPS[op.name] = op
    return op
