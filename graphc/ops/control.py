"""The scan: a step that is run again and again, carrying values from one step to the next.

    carries = init
    for t in range(length):                                  downwards with `reverse`
        y[t], carries = body(stacked[0][t], ..., constants; carries)
    return carries, y

The step is a `Graph`: its state are the carries and its next states what they become, its inputs one slice of each
stacked operand and then the constants, its outputs the step's results, which are stacked along a new leading axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphc.errors import ArgumentError, ShapeError
from graphc.ir.dim import Dim
from graphc.ir.graph import Graph, Node, Value, make_node, substitute, topological
from graphc.ir.op import Generator, Movement, Op, Scan, register
from graphc.ir.types import TensorType
from graphc.ops.define import require_extents


def stacked(type: TensorType, length: Dim) -> TensorType:
    """`length` values of a type along a new leading axis."""
    return type.with_shape((length, *type.shape))


def _scan_type(*operands: TensorType, length: Dim, slices: int, reverse: bool, body: Graph) -> tuple[TensorType, ...]:
    require_extents(length=length)
    if not isinstance(reverse, bool):
        raise ArgumentError(f"reverse must be true or false, not {reverse!r}")
    if not isinstance(slices, int) or not 0 <= slices <= len(body.inputs):
        raise ArgumentError(f"slices must be in [0, {len(body.inputs)}], not {slices!r}")
    if tuple(state for state, _ in body.next) != body.state:
        raise ArgumentError(f"the step {body.name} must give each carry its next value, in order")
    if any(node.op.name == "check_index" for node in body.nodes):
        raise ArgumentError(f"the step {body.name} cannot check indices: checks come before a loop")
    sliced, constants = body.inputs[:slices], body.inputs[slices:]
    wanted = [(f"carry {value.name}", value.type) for value in body.state]
    wanted += [(f"the stack of slices {value.name}", stacked(value.type, length)) for value in sliced]
    wanted += [(f"constant {value.name}", value.type) for value in constants]
    if len(operands) != len(wanted):
        raise ArgumentError(f"the step {body.name} takes {len(wanted)} operands, not {len(operands)}")
    for (what, type), operand in zip(wanted, operands, strict=True):
        if operand != type:
            raise ShapeError(f"{what} of the step {body.name} must be {type}, not {operand}")
    return (*(value.type for value in body.state), *(stacked(value.type, length) for value in body.outputs))


SCAN = register(
    Op(
        "scan",
        Scan(),
        _scan_type,
        None,
        None,
        "final carries and stacked results of `length` steps of the graph `body`",
    )
)


def scan(
    init: Sequence[Value],
    xs: Sequence[Value],
    constants: Iterable[Value],
    *,
    length: Dim,
    body: Graph,
    reverse: bool = False,
) -> Node:
    """A node that runs `body` for each slice of `xs`; its outputs are the final carries, then the stacked results.

    Raises ShapeError for an operand that is not of the type that the body takes, and ArgumentError for a body that is
    no step: a carry without a next value, a check.
    """
    attrs = {"length": length, "slices": len(xs), "reverse": reverse, "body": body}
    return make_node(SCAN, (*init, *xs, *constants), attrs)


def close(
    name: str,
    init: Sequence[Value],
    carries: Sequence[Value],
    stack_of: Mapping[Value, Value],
    following: Sequence[Value],
    results: Sequence[Value],
    *,
    length: Dim,
    reverse: bool = False,
) -> Node:
    """The scan whose step has been built as graph on carries, slices of the stacks in `stack_of`, and values outside.

    What it reads of these becomes its constants. `following`: the carries after a step.
    """
    values = [*following, *results]
    varying = depending(topological(values), (*carries, *stack_of))
    constants = {value: Value(value.type) for value in invariants(values, varying)}
    used = {value for node in topological(values) for value in node.inputs}.union(values)
    stacks = {inner: stack for inner, stack in stack_of.items() if inner in used}
    found = substitute(values, dict(constants))
    for letter, parameters in (("c", carries), ("x", stacks), ("w", constants.values())):
        for number, value in enumerate(parameters):
            value.name = f"{letter}{number}"
    next = tuple(zip(carries, found[: len(following)], strict=True))
    outputs = tuple(found[len(following) :])
    body = Graph(name, (*stacks, *constants.values()), tuple(carries), topological(found), outputs, next)
    return scan(init, list(stacks.values()), constants, length=length, body=body, reverse=reverse)


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """A scan's operands, by what they are. `sliced` and `fixed` are the inputs of its body."""

    init: tuple[Value, ...]
    xs: tuple[Value, ...]
    constants: tuple[Value, ...]
    sliced: tuple[Value, ...]
    fixed: tuple[Value, ...]
    finals: tuple[Value, ...]
    stacks: tuple[Value, ...]

    @staticmethod
    def of(node: Node, operands: Sequence[Value] = ()) -> Parts:
        """The parts of a scan; `operands` in place of its own."""
        operands = tuple(operands or node.inputs)
        body, slices = node.attrs["body"], node.attrs["slices"]
        carries = len(body.state)
        given = operands[carries:]
        return Parts(
            operands[:carries],
            given[:slices],
            given[slices:],
            body.inputs[:slices],
            body.inputs[slices:],
            node.outputs[:carries],
            node.outputs[carries:],
        )


def depending(nodes: Iterable[Node], values: Iterable[Value]) -> set[Value]:
    """The values on a way from `values`, themselves included."""
    found = set(values)
    for node in nodes:
        if not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def invariants(values: Iterable[Value], varying: Collection[Value]) -> list[Value]:
    """What a step that computes `values` should be given as constants, in the order of first use.

    That is all that does not vary from step to step, but for numbers, positions, and movements of one operand: these
    cost nothing inside, and may take much memory outside. What a loop inside reads is stored anyway.
    """
    found: dict[Value, None] = {}
    seen: set[Value] = set()
    stack = list(values)[::-1]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.node is not None and (value in varying or _is_free(value.node)):
            stored = value.node.inputs if isinstance(value.node.op.kind, Scan) else ()
            moved = {operand: None for operand in stored if operand not in varying and _is_turned(operand)}
            found |= moved
            stack.extend(operand for operand in reversed(value.node.inputs) if operand not in moved)
        elif value not in varying:
            found[value] = None
    return list(found)


def _is_turned(value: Value) -> bool:
    """Whether a value is another one in another order."""
    node = value.node
    if node is None or not isinstance(node.op.kind, Movement) or len(node.inputs) != 1:
        return False
    return node.op.name == "transpose" or (node.op.name == "reshape" and _is_turned(node.inputs[0]))


def _is_free(node: Node) -> bool:
    match node.op.kind:
        case Generator():
            return node.op.name != "constant" or node.output.shape == ()
        case Movement():
            return len(node.inputs) == 1
    return False
