"""The gradient of a scan: a scan in the opposite direction.

    forward     y[t], c[t+1] = step(c[t], x[t], w)
    backward    dc[t], dx[t] = the gradient of the step, given dc[t+1] and dy[t];   dw: `sums`

What the backward step needs of the forward one is saved there, as a further result of each step: by a second forward
scan, which `passes.scans` makes one with the first. Elementwise work and movement on what is known anyway (slices,
constants, what is saved) is computed again; nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

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


class _Gradient:
    """The backward scan of one node. Its step is found as graph on values of the forward step, and only then closed.

    given    results that have a cotangent: (value of the step, its cotangent there, the stack of cotangents)
    carried  carries, and their cotangents in the backward step
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
        totals = [(value, sums.of(pulled[value])) for value in self.constants if value in pulled]
        forward = {value for node in self.body.nodes for value in node.outputs} | set(self.body.state)
        sliced = [value for value in self.sliced if value in pulled]
        made = [value for value in sums.stacks if value not in forward]
        accumulators = {value: Value(value.type) for value in sums.sums}
        following = [pulled.get(state) or ops.full_like(state, 0) for state in self.live]
        following += [ops.add(sum, value) for value, sum in accumulators.items()]
        wanted = [*(pulled[value] for value in sliced), *made, *following]
        saved = self._save([*self._needed(wanted, forward), *(value for value in sums.stacks if value in forward)])

        inside = {value: Value(value.type) for value in (*self.sliced, *saved, *self.constants)}
        stacks = [(inside[value], stack) for value, stack in [*((v, outer[v]) for v in self.sliced), *saved.items()]]
        stacks += [(inner, stack) for _, inner, stack in self.given]
        constants = [(inside[value], outer[value]) for value in self.constants]
        results = substitute(wanted, inside)
        used = {value for node in topological(results) for value in node.inputs}.union(results)
        stacks, constants = ([pair for pair in pairs if pair[0] in used] for pairs in (stacks, constants))
        state = [*(self.carried[carry] for carry in self.live), *accumulators.values()]
        count = len(sliced) + len(made)
        step = _step(
            f"{self.body.name}.gradient",
            [inner for inner, _ in stacks],
            [inner for inner, _ in constants],
            list(zip(state, results[count:], strict=True)),
            results[:count],
        )
        init = [self.finals.get(carry) or ops.full_like(carry, 0) for carry in self.live]
        init += [ops.full_like(value, 0) for value in accumulators]
        xs, fixed = [stack for _, stack in stacks], [constant for _, constant in constants]
        node = ops.scan(init, xs, fixed, length=self.length, body=step, reverse=not self.node.attrs["reverse"])
        finals, tops = node.outputs[: len(state)], node.outputs[len(state) :]

        found = {sums.sums[value]: final for value, final in zip(accumulators, finals[len(self.live) :], strict=True)}
        found |= {sums.stacks[value]: top for value, top in zip(made, tops[len(sliced) :], strict=True)}
        found |= {sums.stacks[value]: stack for value, stack in saved.items() if value in sums.stacks}
        outside = substitute([total for _, total in totals], found)
        return [
            *((outer[carry], final) for carry, final in zip(self.live, finals)),
            *((outer[value], top) for value, top in zip(sliced, tops)),
            *((outer[value], total) for (value, _), total in zip(totals, outside, strict=True)),
        ]

    def _sums(self) -> Sums:
        inner = [cotangent for _, cotangent, _ in self.given]
        changing = [*self.body.state, *self.sliced, *self.carried.values(), *inner]
        varying = depending(topological(self.pulled.values()), changing)
        known = {value: self.outer[value] for value in self.sliced}
        known |= {cotangent: stack for _, cotangent, stack in self.given}
        constants = {value: self.outer[value] for value in self.constants}
        stored = [*self.body.outputs, *self.body.state, *(self.pulled[v] for v in self.sliced if v in self.pulled)]
        return Sums(self.length, varying, known, stored, constants)

    def _needed(self, wanted: Sequence[Value], forward: set[Value]) -> list[Value]:
        """The values of the forward step to save: those from which the wanted ones can be computed again cheaply."""
        body = self.body
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
