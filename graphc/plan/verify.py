"""A plan is checked by carrying it out, with names of values in place of their bytes.

Every memory is a list of runs of bytes, and each run carries the value that was last written there. Nothing here is
shared with the planner: what is a view, what is a check and what may be overwritten is found again from the graph.

 1. each node but views and constants is called once; a call's addresses are those of its operands and results;
 2. every run that a call or a copy reads carries the value that it expects, and the checks on that value have run;
 3. results and scratch stay within their memory, are aligned, and overlap neither each other nor any operand, unless a
    result has exactly an operand's place and `may_alias` allows it;
 4. inputs and constants are never written, state not before the last check;
 5. the constants are the graph's literals;
 6. the plan of a loop's step computes the step, finds its constants, and has room for its arena, for each of those that
    run at once: only steps without carries do; and what its last round leaves out is read by nobody behind the loop;
 7. at the end each output carries its value, each state its next value or the old one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from graphc.errors import VerifyError
from graphc.ir.graph import Graph, Node, Value
from graphc.ir.memory import ALIGNMENT
from graphc.ir.op import Scan
from graphc.ops.control import depending
from graphc.passes.forms import may_alias
from graphc.plan.model import Plan
from graphc.plan.steps import Address, Base, Call, Copy, Loop, aligned

Tag = Value | None
Range = tuple[Base, int, int, int]  # memory, its number, first byte, byte behind the last


def verify(graph: Graph, plan: Plan) -> None:
    """Raise VerifyError unless the plan computes the graph."""
    _Simulation(graph, plan).run()


class Memory:
    """Runs of bytes: `tags[i]` holds from `starts[i]` to the next start, the last one to the size."""

    def __init__(self, size: int, tag: Tag) -> None:
        self.size = size
        self.starts, self.tags = [0], [tag]

    def write(self, start: int, end: int, tag: Tag) -> None:
        if start == end:
            return
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, end - 1) - 1
        after = self.tags[last]
        starts, tags = [start], [tag]
        if self.starts[first] < start:
            starts, tags = [self.starts[first], start], [self.tags[first], tag]
        ends_at = self.starts[last + 1] if last + 1 < len(self.starts) else self.size
        if end < ends_at:
            starts.append(end)
            tags.append(after)
        self.starts[first : last + 1], self.tags[first : last + 1] = starts, tags

    def read(self, start: int, end: int) -> set[Tag]:
        """All that lies between two positions."""
        if start == end:
            return set()
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, end - 1)
        return set(self.tags[first:last])


class _Simulation:
    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.same: dict[Value, Value] = {}
        self.passed: dict[Value, frozenset[Node]] = {}
        self._follow_views()
        self.memories: dict[tuple[Base, int], Memory] = {(Base.ARENA, 0): Memory(plan.arena_bytes, None)}
        for base, values in ((Base.INPUT, graph.inputs), (Base.STATE, graph.state)):
            for index, value in enumerate(values):
                self.memories[base, index] = Memory(value.type.nbytes, value)
        for index, value in enumerate(graph.outputs):
            self.memories[Base.OUTPUT, index] = Memory(value.type.nbytes, None)
        self._load_constants()
        self.called: set[Node] = set()

    def run(self) -> None:
        checks = {node for nodes in self.passed.values() for node in nodes}
        for step in self.plan.steps:
            match step:
                case Call():
                    self._call(step, checks)
                    if step.is_check != _has_check(step.node):
                        raise VerifyError(f"{step.node!r} is{'' if step.is_check else ' not'} planned as a check")
                case Loop():
                    self._call(step, checks)
                    self._inner(step)
                case Copy():
                    self._copy(step, checks)
        wanted = {node for node in self.graph.nodes if node.op.name not in ("reshape", "constant")}
        if self.called != wanted:
            raise VerifyError(
                f"{len(wanted - self.called)} nodes are never called, {len(self.called - wanted)} are not the graph's"
            )
        new = dict(self.graph.next)
        for index, value in enumerate(self.graph.outputs):
            self._expect(Address(Base.OUTPUT, index), value, f"output {index}")
        for index, state in enumerate(self.graph.state):
            self._expect(Address(Base.STATE, index), new.get(state, state), f"state %{state.name}")
        if self.plan.lower_bound > self.plan.arena_bytes:
            raise VerifyError(f"an arena of {self.plan.arena_bytes} bytes is below the bound {self.plan.lower_bound}")

    # The graph

    def _follow_views(self) -> None:
        """For each value, the value that has its bytes and the checks between them."""
        for value in (*self.graph.inputs, *self.graph.state):
            self.same[value], self.passed[value] = value, frozenset()
        for node in self.graph.nodes:
            source = _source(node)
            for output in node.outputs:
                if source is None:
                    self.same[output], self.passed[output] = output, frozenset()
                else:
                    check = () if node.op.name == "reshape" else (node,)
                    self.same[output], self.passed[output] = self.same[source], self.passed[source].union(check)

    def _load_constants(self) -> None:
        sizes = [len(literal.data) for literal in self.plan.constants]
        for index, size in enumerate(sizes):
            self.memories[Base.CONSTANT, index] = Memory(size, None)
        for node in self.graph.nodes:
            if node.op.name == "constant":
                address = self.plan.slots[node.output].address
                if (
                    address.base is not Base.CONSTANT
                    or self.plan.constants[address.index].data != node.attrs["value"].data
                ):
                    raise VerifyError(f"{address} is not the literal of {node!r}", node.location)
                self._tag_constant(address.index, node.output)

    def _tag_constant(self, index: int, value: Value) -> None:
        """Literals of equal bytes are one value."""
        first = next(iter(self.memories[Base.CONSTANT, index].read(0, value.type.nbytes)), None)
        if first is None:
            self.memories[Base.CONSTANT, index].write(0, value.type.nbytes, value)
        else:
            self.same[value] = first
            self.same |= {view: first for view, root in self.same.items() if root is value}

    # Steps

    def _call(self, call: Call | Loop, checks: set[Node]) -> None:
        node = call.node
        if node in self.called:
            raise VerifyError(f"{node!r} is called twice", node.location)
        results = () if _source(node) is not None else node.outputs
        if len(call.operands) != len(node.inputs) or len(call.results) != len(results):
            raise VerifyError(f"the call of {node!r} has {len(call.operands)} operands and {len(call.results)} results")
        reads = [
            self._expect(a, v, f"operand {i} of {node!r}") for i, (a, v) in enumerate(zip(call.operands, node.inputs))
        ]
        writes = [self._range(a, v.type.nbytes) for a, v in zip(call.results, results)]
        for output, write in enumerate(writes):
            for operand, read in enumerate(reads):
                if _overlap(read, write) and not (read == write and _allowed(node, operand, output)):
                    raise VerifyError(f"result {output} of {node!r} overlaps operand {operand}", node.location)
        if call.scratch is not None:
            scratch = self._range(call.scratch.address, call.scratch.bytes)
            if scratch[0] is not Base.ARENA or any(_overlap(scratch, read) for read in reads):
                raise VerifyError(f"the scratch of {node!r} overlaps an operand", node.location)
            writes.append(scratch)
        if any(_overlap(a, b) for i, a in enumerate(writes) for b in writes[:i]):
            raise VerifyError(f"results of {node!r} overlap", node.location)
        for write, value in zip(writes, (*results, None)):
            self._write(write, value, checks)
        self.called.add(node)

    def _inner(self, loop: Loop) -> None:
        body: Graph = loop.node.attrs["body"]
        graph, plan = loop.plan.graph, loop.plan
        whole = (body.inputs, body.state, body.nodes, body.outputs)
        if (graph.inputs, graph.state, graph.nodes, graph.outputs) != whole:
            raise VerifyError(f"the plan in {loop.node!r} is not of its step", loop.node.location)
        for state, value in body.next:
            if dict(graph.next).get(state) is not value and (state in dict(graph.next) or value not in body.outputs):
                raise VerifyError(f"the step of {loop.node!r} loses carry %{state.name}", loop.node.location)
        verify(graph, plan)
        found = [self.plan.constants[address.index].data for address in loop.constants]
        if found != [literal.data for literal in plan.constants]:
            raise VerifyError(f"the constants of {loop.node!r} lie elsewhere", loop.node.location)
        if loop.shares > 1 and body.state:
            raise VerifyError(f"the steps of {loop.node!r} depend on each other, but are shared", loop.node.location)
        if loop.shares > 1 and any(inner.shares > 1 for part in plan.all() for inner in part.loops):
            raise VerifyError(f"the steps of {loop.node!r} are shared, and so are those of a loop inside")
        self._tail(loop)
        if aligned(plan.arena_bytes) * loop.shares > (loop.scratch.bytes if loop.scratch else 0):
            raise VerifyError(f"the step of {loop.node!r} has no room for its arena", loop.node.location)

    def _tail(self, loop: Loop) -> None:
        """Without the last steps, nothing may be missing but carries that are not used."""
        used = {value for node in self.graph.nodes for value in node.inputs}.union(self.graph.results)
        finals = dict(zip(loop.node.attrs["body"].state, loop.node.outputs))
        graph, steps = loop.plan.graph, loop.plan.steps
        tail = steps[len(steps) - loop.tail :]
        made = depending(graph.nodes, (v for step in tail if not isinstance(step, Copy) for v in step.node.outputs))
        stored = {step.target for step in tail if isinstance(step, Copy)}
        for state, value in graph.next:
            is_missing = value in made or Address(Base.STATE, graph.state.index(state)) in stored
            if is_missing and finals[state] in used:
                raise VerifyError(f"the last round of {loop.node!r} leaves out carry %{state.name}", loop.node.location)
        if not made.isdisjoint(graph.outputs) or any(address.base is not Base.STATE for address in stored):
            raise VerifyError(f"the last round of {loop.node!r} leaves out a result", loop.node.location)

    def _copy(self, copy: Copy, checks: set[Node]) -> None:
        read, write = self._range(copy.source, copy.bytes), self._range(copy.target, copy.bytes)
        tags = self._memory(read).read(*read[2:])
        if (copy.bytes and (len(tags) != 1 or None in tags)) or _overlap(read, write):
            raise VerifyError(f"the copy from {copy.source} to {copy.target} reads {tags}")
        self._write(write, tags.pop() if tags else None, checks)

    def _write(self, where: Range, value: Tag, checks: set[Node]) -> None:
        if where[0] in (Base.INPUT, Base.CONSTANT):
            raise VerifyError(f"{where[0].value} {where[1]} is written")
        if where[0] is Base.STATE and not checks <= self.called:
            raise VerifyError(f"state {where[1]} is written before all checks have passed")
        self._memory(where).write(*where[2:], value)

    # Bytes

    def _expect(self, address: Address, value: Value, who: str) -> Range:
        """The range of a value that must lie at an address now."""
        where = self._range(address, value.type.nbytes)
        found = self._memory(where).read(*where[2:])
        if value.type.nbytes and {None if tag is None else self.same[tag] for tag in found} != {self.same[value]}:
            raise VerifyError(f"{who} is not at {address}: {found} instead of {value}")
        if not self.passed[value] <= self.called:
            raise VerifyError(f"{who} is read before it was checked")
        return where

    def _range(self, address: Address, size: int) -> Range:
        where = address.base, address.index, address.offset, address.offset + size
        memory = self._memory(where)
        if address.offset < 0 or where[3] > memory.size:
            raise VerifyError(f"{size} bytes at {address} leave its {memory.size} bytes")
        if address.offset % ALIGNMENT:
            raise VerifyError(f"{address} is not a multiple of {ALIGNMENT}")
        return where

    def _memory(self, where: Range) -> Memory:
        memory = self.memories.get(where[:2])
        if memory is None:
            raise VerifyError(f"there is no {where[0].value} {where[1]}")
        return memory


def _overlap(a: Range, b: Range) -> bool:
    return a[:2] == b[:2] and max(a[2], b[2]) < min(a[3], b[3])


def _has_check(node: Node) -> bool:
    inner: Sequence[Node] = node.attrs["body"].nodes if node.op.name == "kernel" else (node,)
    return any(n.op.name == "check_index" for n in inner)


def _source(node: Node) -> Value | None:
    """The operand whose bytes a node passes on."""
    if node.op.name in ("reshape", "check_index"):
        return node.inputs[0]
    if not _has_check(node):
        return None
    body: Graph = node.attrs["body"]
    origin: Mapping[Value, Value] = dict(zip(body.inputs, node.inputs))
    (result,) = body.outputs
    assert result.node is not None
    return origin[result.node.inputs[0]]


def _allowed(node: Node, operand: int, output: int) -> bool:
    if isinstance(node.op.kind, Scan):
        return operand == output < len(node.attrs["body"].state)
    return node.op.name == "kernel" and may_alias(node, operand, output)
