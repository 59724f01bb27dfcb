"""Loops in the graph: `scan`.

The step's function is called once, on placeholders. What it reads of the tensors around it becomes constants of the
loop: computed outside, before the first step. Movements of such tensors stay inside, where they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from graphc import ops
from graphc.errors import ArgumentError, DTypeError, ShapeError
from graphc.frontend.state import followers
from graphc.frontend.tensor import Tensor, as_shape, constant
from graphc.ir import source
from graphc.ir.dim import Dim
from graphc.ir.graph import Node, Value, substitute, topological
from graphc.ops.control import depending

Step = Callable[[Any, Any], tuple[Any, Any]]


def scan(f: Step, init: Any, xs: Any = None, length: Any = None, reverse: bool = False) -> tuple[Any, Any]:
    """Run `carry, y = f(carry, x)` for each x in `xs`; returns the last carry and the stacked y.

    f        is called once, while the graph is built; it may read any tensor around it. Everything that it takes and
             returns is a tensor, None, or a tuple or list of such
    init     the first carry; f must return a carry of the same types
    xs       tensors with one leading axis of the same length; f gets one slice of each
    length   the number of steps: needed where xs has no tensor
    reverse  from the last x to the first; results stand at the place of their x

    Equal to jax.lax.scan. Raises ArgumentError, ShapeError or DTypeError for what does not fit.
    """
    carries, carry_of = _flatten(init, "init")
    stacks, x_of = _flatten(xs, "xs")
    steps = _length(stacks, length)
    inner = [Value(value.type, name=f"c{n}") for n, value in enumerate(carries)]
    slices = [Value(value.type.with_shape(value.shape[1:]), name=f"x{n}") for n, value in enumerate(stacks)]
    found = f(carry_of(inner), x_of(slices))
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise ArgumentError("the step of a scan returns a carry and a result: (carry, y)", source.here())
    following, _ = _flatten(found[0], "the carry")
    results, y_of = _flatten(found[1], "the result")
    _require_same(carries, following)
    outputs = _Loop(carries, inner, stacks, slices, steps, reverse).run(following, results)
    return carry_of(outputs[: len(carries)]), y_of(outputs[len(carries) :])


# Structures -----------------------------------------------------------------------------------------------------


def _flatten(structure: Any, what: str) -> tuple[list[Value], Callable[[Iterable[Value]], Any]]:
    """The tensors in tuples and lists, and how to put others in their places."""

    def leaves(part: Any) -> Iterator[Value]:
        if isinstance(part, tuple | list):
            for item in part:
                yield from leaves(item)
        elif part is not None:
            try:
                yield constant(part).value
            except (DTypeError, ValueError, TypeError):
                raise ArgumentError(f"{what} has a {type(part).__name__}, which is no tensor", source.here()) from None

    def filled(part: Any, values: Iterator[Value]) -> Any:
        if isinstance(part, tuple | list):
            items = [filled(item, values) for item in part]
            return items if isinstance(part, list) else type(part)(*items) if hasattr(part, "_fields") else tuple(items)
        return None if part is None else Tensor(next(values))

    return list(leaves(structure)), lambda values: filled(structure, iter(values))


def _length(stacks: Sequence[Value], length: Any) -> Dim:
    """The number of steps."""
    (wanted,) = (None,) if length is None else as_shape(length)
    for value in stacks:
        if not value.shape:
            raise ShapeError(f"xs are stacked along a leading axis; {value.type} has none", source.here())
        wanted = value.shape[0] if wanted is None else wanted
        if value.shape[0] != wanted:
            raise ShapeError(f"{value.type} has {value.shape[0]} slices, not {wanted}", source.here())
    if wanted is None:
        raise ArgumentError("a scan without xs needs a length", source.here())
    return wanted


def _require_same(carries: Sequence[Value], following: Sequence[Value]) -> None:
    if len(carries) != len(following):
        raise ArgumentError(
            f"the carry has {len(carries)} tensors; the step returns {len(following)} as the next", source.here()
        )
    for number, (old, new) in enumerate(zip(carries, following, strict=True)):
        if old.type != new.type:
            error = DTypeError if old.dtype is not new.dtype else ShapeError
            where = f" (from {new.node.location})" if new.node is not None and new.node.location else ""
            raise error(f"carry {number} is {old.type}; the step makes it {new.type}{where}", source.here())


# The step -------------------------------------------------------------------------------------------------------


class _Loop:
    """One loop whose step has been traced on `inner` carries and `slices`."""

    def __init__(
        self,
        carries: Sequence[Value],
        inner: Sequence[Value],
        stacks: Sequence[Value],
        slices: Sequence[Value],
        length: Dim,
        reverse: bool,
    ) -> None:
        self.carries, self.inner, self.length, self.reverse = carries, inner, length, reverse
        self.stack_of = dict(zip(slices, stacks, strict=True))

    def run(self, following: Sequence[Value], results: Sequence[Value]) -> tuple[Value, ...]:
        """The loop's outputs: final carries, then stacked results."""
        values = [*following, *results]
        checked = self._check_before(values)
        values = substitute(values, checked)
        return self._scan(values[: len(following)], values[len(following) :])

    def _check_before(self, values: Sequence[Value]) -> dict[Value, Value]:
        """Checks of indices come before the loop; returns what stands for their results in the step."""
        new: dict[Value, Value] = {}
        for node in self._inside(values):
            if followers([node]):
                raise ArgumentError("a state cannot follow what a step of a scan computes", node.location)
            if node.op.name != "check_index":
                continue
            (indices,) = substitute(node.inputs, new)
            if any(value in self.inner for n in self._inside([indices]) for value in n.inputs) or indices in self.inner:
                raise ArgumentError(
                    f"{node.attrs['what']} depends on a carry of a scan, and cannot be checked before the loop starts",
                    node.location,
                )
            with source.located(node.location):
                stack = self.stack_of.get(indices)
                if stack is None:
                    (stack,) = _Loop((), (), [*self.stack_of.values()], [*self.stack_of], self.length, False).run(
                        (), [indices]
                    )
                inner = Value(indices.type)
                self.stack_of[inner] = ops.check_index(stack, **node.attrs)
                new[node.output] = inner
        return new

    def _inside(self, values: Iterable[Value]) -> list[Node]:
        """The nodes that vary from step to step."""
        order = topological(values)
        varying = depending(order, (*self.inner, *self.stack_of))
        return [node for node in order if not varying.isdisjoint(node.outputs)]

    def _scan(self, following: Sequence[Value], results: Sequence[Value]) -> tuple[Value, ...]:
        scan = ops.close(
            "step",
            self.carries,
            self.inner,
            self.stack_of,
            following,
            results,
            length=self.length,
            reverse=self.reverse,
        )
        return scan.outputs
