"""The gradient of a scan: a scan in the opposite direction.

    forward     y[t], c[t+1] = step(c[t], x[t], w)
    backward    dc[t], dx[t] = the gradient of the step, given dc[t+1] and dy[t];   dw: `sums`

What the backward step needs of the forward one is saved there, as a further result of each step: by a second forward
scan, which `passes.scans` makes one with the first. Elementwise work and movement on what is known anyway (slices,
constants, what is saved) is computed again; nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphc import ops
from graphc.autodiff.sums import Sums
from graphc.ir.graph import Graph, Node, Value, substitute, topological
from graphc.ir.op import Elementwise, Generator, Movement, Scan
from graphc.ops.control import Parts, depending

Pull = Callable[[Mapping[Value, Value], Sequence[Value]], dict[Value, Value]]
Shares = list[tuple[Value, Value]]


def shares(node: Node, cotangents: Mapping[Value, Value], active: set[Value], pull: Pull) -> Shares:
    """Pairs of an active operand of a scan and its cotangent. `pull(seeds, wrt)` differentiates ordinary graph."""
    pairs = zip(node.inputs, Scan.parameters(node), strict=True)
    wrt = _moving(node.attrs["body"], [inner for outer, inner in pairs if outer in active])
    gradient = _Gradient(node, cotangents, wrt, pull)
    return gradient.shares() if gradient.pulled else []


def _moving(body: Graph, given: Iterable[Value]) -> list[Value]:
    """The float parameters on a way from the given ones, through any number of steps."""
    found = {value for value in given if value.dtype.is_float}
    while True:
        reached = depending(body.nodes, found)
        more = {state for state, value in body.next if value in reached and state.dtype.is_float} - found
        if not more:
            return [value for value in (*body.state, *body.inputs) if value in found]
        found |= more


@dataclass(frozen=True, eq=False, slots=True)
class _Carry:
    """A carry of the backward scan: its first value outside, its name in the step, and what it becomes there."""

    first: Value
    state: Value
    following: Value


def _accumulator(value: Value) -> _Carry:
    """The sum of a value of the step so far."""
    total = Value(value.type)
    return _Carry(ops.full_like(value, 0), total, ops.add(total, value))


class _Gradient:
    """The backward scan of one node. Its step is found as graph on values of the forward step, and only then closed.

    given    results that have a cotangent: (value of the step, its cotangent there, the stack of cotangents)
    carried  carries, and their cotangents in the backward step
    forward  what the forward step computes, and its carries
    live     the carries whose cotangent is not zero in all steps
    pulled   the cotangents of the step's parameters
    """

    def __init__(self, node: Node, cotangents: Mapping[Value, Value], wrt: Sequence[Value], pull: Pull) -> None:
        self.node = node
        self.body: Graph = node.attrs["body"]
        parts = Parts.of(node)
        self.length, self.sliced, self.constants = node.attrs["length"], parts.sliced, parts.fixed
        self.outer = dict(zip(Scan.parameters(node), node.inputs, strict=True))
        finals = zip(self.body.state, parts.finals, strict=True)
        self.finals = {state: cotangents[value] for state, value in finals if value in cotangents}
        results = zip(self.body.outputs, parts.stacks, strict=True)
        self.given = [(value, Value(value.type), cotangents[y]) for value, y in results if y in cotangents]
        self.carried = {state: Value(state.type) for state in self.body.state if state in wrt}
        self.forward = {value for node in self.body.nodes for value in node.outputs} | set(self.body.state)
        self.live, self.pulled = self._pull(wrt, pull)

    def _pull(self, wrt: Sequence[Value], pull: Pull) -> tuple[list[Value], dict[Value, Value]]:
        live = {state for state in self.carried if state in self.finals}
        while True:
            seeds: dict[Value, Value] = {}
            shares = [(value, self.carried[state]) for state, value in self.body.next if state in live]
            for value, cotangent in [*shares, *((value, cotangent) for value, cotangent, _ in self.given)]:
                seeds[value] = ops.add(seeds[value], cotangent) if value in seeds else cotangent
            found = pull(seeds, wrt)
            reached = {state for state in self.carried if state in found}
            if reached <= live:
                return [state for state in self.carried if state in live], found
            live |= reached

    def shares(self) -> Shares:
        pulled, outer = self.pulled, self.outer
        sums = self._sums()
        totals = [(outer[value], sums.of(pulled[value])) for value in self.constants if value in pulled]
        sliced = [value for value in self.sliced if value in pulled]
        made = [value for value in sums.stacks if value not in self.forward]
        results = [*(pulled[value] for value in sliced), *made]
        carries = [*map(self._carry, self.live), *map(_accumulator, sums.sums)]
        needed = self._needed([*results, *(carry.following for carry in carries)])
        saved = self._save([*needed, *(value for value in sums.stacks if value in self.forward)])
        finals, stacks = self._backward(carries, results, saved)

        found = dict(zip(sums.sums.values(), finals[len(self.live) :], strict=True))
        found |= {sums.stacks[value]: stack for value, stack in zip(made, stacks[len(sliced) :], strict=True)}
        found |= {sums.stacks[value]: stack for value, stack in saved.items() if value in sums.stacks}
        outside = substitute([total for _, total in totals], found)
        return [
            *((outer[state], final) for state, final in zip(self.live, finals)),
            *((outer[value], stack) for value, stack in zip(sliced, stacks)),
            *((operand, total) for (operand, _), total in zip(totals, outside, strict=True)),
        ]

    def _carry(self, state: Value) -> _Carry:
        """The cotangent of a carry: after the last step what comes from outside."""
        first = self.finals.get(state) or ops.full_like(state, 0)
        return _Carry(first, self.carried[state], self.pulled.get(state) or ops.full_like(state, 0))

    def _backward(
        self, carries: Sequence[_Carry], results: Sequence[Value], saved: Mapping[Value, Value]
    ) -> tuple[Sequence[Value], Sequence[Value]]:
        """The finals and the stacked results of the backward scan, which is given what of all this it reads."""
        inside = {value: Value(value.type) for value in (*self.sliced, *saved, *self.constants)}
        xs = [(inside[value], self.outer[value]) for value in self.sliced]
        xs += [(inside[value], stack) for value, stack in saved.items()]
        xs += [(inner, stack) for _, inner, stack in self.given]
        constants = [(inside[value], self.outer[value]) for value in self.constants]
        found = substitute([*results, *(carry.following for carry in carries)], inside)
        used = {value for node in topological(found) for value in node.inputs}.union(found)
        xs, constants = ([pair for pair in pairs if pair[0] in used] for pairs in (xs, constants))
        step = _step(
            f"{self.body.name}.gradient",
            [inner for inner, _ in xs],
            [inner for inner, _ in constants],
            list(zip((carry.state for carry in carries), found[len(results) :], strict=True)),
            found[: len(results)],
        )
        node = ops.scan(
            [carry.first for carry in carries],
            [stack for _, stack in xs],
            [constant for _, constant in constants],
            length=self.length,
            body=step,
            reverse=not self.node.attrs["reverse"],
        )
        return node.outputs[: len(carries)], node.outputs[len(carries) :]

    def _sums(self) -> Sums:
        inner = [cotangent for _, cotangent, _ in self.given]
        changing = [*self.body.state, *self.sliced, *self.carried.values(), *inner]
        varying = depending(topological(self.pulled.values()), changing)
        known = {value: self.outer[value] for value in self.sliced}
        known |= {cotangent: stack for _, cotangent, stack in self.given}
        constants = {value: self.outer[value] for value in self.constants}
        stored = [*self.body.outputs, *self.body.state, *(self.pulled[v] for v in self.sliced if v in self.pulled)]
        return Sums(self.length, varying, known, stored, constants)

    def _needed(self, wanted: Sequence[Value]) -> list[Value]:
        """The values of the forward step to save: those from which the wanted ones can be computed again cheaply."""
        body, forward = self.body, self.forward
        reads = {v for node in topological(wanted, known=forward) for v in node.inputs}.union(wanted)
        needed = reads & forward
        for node in reversed(body.nodes):
            if _repeats(node) and not needed.isdisjoint(node.outputs):
                needed.update(value for value in node.inputs if value in forward)
        saved = [state for state in body.state if state in needed]
        known = {*self.sliced, *self.constants, *saved}
        varying = depending(body.nodes, (*body.state, *self.sliced))
        for node in body.nodes:
            is_light = isinstance(node.op.kind, Generator | Elementwise | Movement) and known.issuperset(node.inputs)
            if is_light or varying.isdisjoint(node.outputs):
                known.update(node.outputs)
                continue
            found = [value for value in node.outputs if value in needed]
            saved += found
            known.update(found)
        return saved

    def _save(self, values: Sequence[Value]) -> dict[Value, Value]:
        """The stacks of some values of the forward step, from a scan that has them as further results."""
        values = list(dict.fromkeys(values))
        if not values:
            return {}
        node, body = self.node, self.body
        step = Graph(body.name, body.inputs, body.state, body.nodes, (*body.outputs, *values), body.next)
        init, xs, constants = ([self.outer[v] for v in part] for part in (body.state, self.sliced, self.constants))
        again = ops.scan(init, xs, constants, length=self.length, body=step, reverse=node.attrs["reverse"])
        return dict(zip(values, again.outputs[len(body.state) + len(body.outputs) :], strict=True))


def _repeats(node: Node) -> bool:
    """Whether a movement has more elements than what it is of."""
    if not isinstance(node.op.kind, Movement) or len(node.inputs) > 1:
        return False
    before, after = node.inputs[0].type, node.output.type
    if isinstance(before.size, int) and isinstance(after.size, int):
        return after.size > before.size
    return after.rank > before.rank


def _step(
    name: str,
    slices: Sequence[Value],
    constants: Sequence[Value],
    next: Sequence[tuple[Value, Value]],
    outputs: Sequence[Value],
) -> Graph:
    """A step, its parameters named by their places."""
    state = tuple(value for value, _ in next)
    for letter, values in (("c", state), ("x", slices), ("w", constants)):
        for number, value in enumerate(values):
            value.name = f"{letter}{number}"
    nodes = topological((*outputs, *(value for _, value in next)))
    return Graph(name, (*slices, *constants), state, nodes, tuple(outputs), tuple(next))
